# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · The decoder block
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/03_decoder_block.ipynb)
#
# **Promise.** You will write a whole *decoder-only transformer*: a model that reads a text from left to right through a
# stack of blocks, all built alike, and scores every word that could come next. (The first transformer also had an
# *encoder*, which reads another text, such as a sentence to translate.) You will write it from its parts, as a
# class of under thirty lines. You will check it against PyTorch, and against two losses that you can calculate: the
# loss before training, and the lowest loss on a few stories that the model knows by heart. At the end you will take a
# prediction apart, and see how much of it came from the word, from attention, and from each feed-forward layer.
#
# **You will be able to**
#
# - write a decoder-only transformer from memory, and say what each line is for;
# - say where the parameters are, and what weight tying and dropout would change;
# - explain how the place of the norm changes the gradients, and what our choice costs;
# - calculate the loss of an untrained model, and the lowest possible loss on one batch;
# - detect a leak of the future from the loss alone;
# - split a logit into what each part wrote, and say under what condition the split is exact.
#
# **Prerequisites.** [01 · Embeddings](01_embeddings.ipynb) and [02 · Attention](02_attention.ipynb).
#
# **Running time.** About one minute on two cores.

# %% tags=["parameters"]
CORPUS = "bundled"  # or "tinystories" (from the Hugging Face Hub), or the path of a file,
# or of a folder with train.* and validation.*

# %% cellView="form" tags=["setup"]
# @title Set-up: run this cell first
import os
import sys

REPOSITORY = "https://github.com/lohar-animesh-27112001/ELL881-advance_LLM-assignment"
if "google.colab" in sys.modules:
    os.system(f"cd /content && [ -d course ] || git clone -q --depth=1 {REPOSITORY} course")
sys.path[:0] = ["/content/course/notebooks", "notebooks", "."]
import colab  # not found? Open this notebook inside the repository, or correct REPOSITORY

colab.start()

# %%
import copy
import math
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from helpers import model as course
from helpers import plots
from helpers.model import DecoderBlock, FeedForward, LayerNorm, ModelConfig, sinusoidal_positions
from helpers.notebook import FigureFolder, claim, show_source, table
from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer

figures = FigureFolder(CORPUS)
stories = load_stories(CORPUS)
tokenizer = WordTokenizer.train(stories.train)
V = len(tokenizer)

# %%
print(f"{len(stories.train):,} stories, a vocabulary of {V:,} tokens")

# %% [markdown]
# ## The whole model on one page
#
# Each token has a vector, its **residual stream**. It starts as the sum of the word and its position. Then every part
# of every block does the same three things: it *reads* a normalised copy of the stream, *computes*, and *adds* its
# result. Nothing is ever overwritten.
#
# ```
# words + positions ──┬────────────────────(+)──┬────────────────────────(+)── … ── norm ── output ── logits
#                     └─ norm ─ attention ──┘   └── norm ─ feed-forward ──┘
#                     ╰╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ one block ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╯
# ```
#
# Only attention looks at other tokens; it was the subject of [02 · Attention](02_attention.ipynb). We now build the
# other parts, and then the whole model. (*Residual* comes from networks in which a part computes only what is to be
# added to its input. *Normalised* is explained next.)
#
# ## LayerNorm by hand
#
# The size of the stream changes with everything that is added to it, and the parts should not have to adapt to that.
# So each part reads a copy with a fixed scale: subtract the mean of the token's numbers, divide by their standard
# deviation, and let the model learn a gain $g$ and a bias $b$ for each of the $D$ numbers
# ([Ba et al. 2016](https://arxiv.org/abs/1607.06450), section 3):
#
# $$\operatorname{norm}(x)_i = g_i\,\frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}} + b_i, \qquad
# \mu = \frac{1}{D}\sum_j x_j, \qquad \sigma^2 = \frac{1}{D}\sum_j (x_j - \mu)^2$$
#
# We start with one vector and a loop ($\varepsilon$ only prevents a division by zero):


# %%
def norm_by_loop(x, gain, bias, eps=1e-5):
    """One token's vector, a list of D numbers."""
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return [
        g * (value - mean) / math.sqrt(variance + eps) + b
        for value, g, b in zip(x, gain, bias, strict=True)
    ]


y = norm_by_loop([2.0, 4.0, 6.0, 0.0], gain=[1.0] * 4, bias=[0.0] * 4)

# %%
print([round(value, 2) for value in y], "variance", round(sum(v * v for v in y) / 4, 4))

# %% [markdown]
# For a whole batch the mean and the variance are taken over the last axis only, so that no token sees another token,
# and no story another story. (Batch normalisation would mix them.) Here is the course's class:

# %%
show_source(LayerNorm)

# %% [markdown]
# Is it the same as the loop, and as PyTorch's own class? Whenever we compare two results in this notebook, we report
# their largest difference, relative to the largest value:


# %%
def error(ours, reference):
    """The largest difference, relative to the largest value."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


# %% cellView="form" tags=["hide-input"]
# @title Two stories of three tokens, normalised in three ways
torch.manual_seed(0)
batch = 5 * torch.randn(2, 3, 8) + 2  # (B, T, D)
ours, theirs = LayerNorm(8), nn.LayerNorm(8)
ours.gain.data = theirs.weight.data = torch.randn(8)  # (D,)
ours.bias.data = theirs.bias.data = torch.randn(8)  # (D,)
gain, bias = ours.gain.tolist(), ours.bias.tolist()
loop = torch.tensor([[norm_by_loop(x, gain, bias) for x in story] for story in batch.tolist()])
apart = max(error(found, theirs(batch)) for found in (loop, ours(batch)))  # (B, T, D) each
claim(f"loop = LayerNorm = torch.nn.LayerNorm, within ≈{apart:.1g}", apart < 1e-6)

# %% [markdown]
# **Predict.** Multiply every number of the input by 3, and add 7. Is the output multiplied by 3, shifted by 7, both,
# or neither?

# %% cellView="form" tags=["hide-input"]
norm = LayerNorm(296)  # with gain 1 and bias 0
x = torch.randn(4, 296)  # (T, D)
change = error(norm(3 * x + 7), norm(x))
length = norm(x).norm(dim=-1)  # (T,): the root of the sum of the squares

# %% cellView="form" tags=["hide-input", "hide-output"]
claim(f"the output changes by ≈{change:.0e} of its largest value, less than 1e-4", change < 1e-4)
claim(
    f"every vector of 296 numbers comes out with the length √296 = {296**0.5:.1f}",
    torch.allclose(length, torch.tensor(296**0.5), rtol=1e-4),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Neither: the output stays the same. Subtracting the mean removes the 7, and dividing by the standard deviation removes
# the 3. (The tiny change comes from $\varepsilon$ and from rounding.)
#
# </details>
#
# With gain 1 and bias 0, the norm keeps only the direction of a vector's differences from its mean, and sets their
# length to $\sqrt{D}$.
#
# ## GELU, and the feed-forward part
#
# Between two linear layers there must be something that is not linear, or the two would amount to one. ReLU keeps a
# number or sets it to 0. GELU multiplies it by $\Phi(x)$, the probability that a random number from the standard normal
# distribution is smaller than it ([Hendrycks & Gimpel 2016](https://arxiv.org/abs/1606.08415), section 2). Libraries
# calculate $\Phi$ from the *error function*, erf:
#
# $$\operatorname{GELU}(x) = x\,\Phi(x), \qquad \Phi(x) = \tfrac{1}{2}\left(1 + \operatorname{erf}\tfrac{x}{\sqrt 2}\right)$$


# %%
def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


# %%
at = torch.linspace(-4, 4, 801, requires_grad=True)  # (801,)
out = gelu(at)  # (801,)
(slope,) = torch.autograd.grad(out.sum(), at)  # (801,)
claim(f"our gelu equals F.gelu within ≈{error(out, F.gelu(at)):.1g}", error(out, F.gelu(at)) < 1e-6)

# %% cellView="form" tags=["hide-input"]
at = at.detach()
figures.save_figure(
    plots.compare_curves(
        {
            "GELU": (at, out.detach()),
            "ReLU": (at, at.relu()),
            "slope of GELU": (at, slope),
            "slope of ReLU": (at, (at > 0).float()),
        },
        x_label="input x (no unit)",
        y_label="output, or slope (no unit)",
        title="GELU is a ReLU with a soft corner, and its slope does not jump",
    ),
    "03_gelu",
    alt="GELU beside ReLU, and their slopes: GELU bends smoothly and dips slightly below zero.",
    caption=(
        "Compare the corners at 0: the slope of ReLU jumps there, that of GELU does not, but GELU "
        "dips below 0. The figure does not show an advantage in training."
    ),
)

# %% [markdown]
# Every gradient that passes through is multiplied by the slope. If the input of a ReLU is negative, the weights before
# it get no gradient from this token, because the slope is exactly zero. GELU's slope is zero only at one point, near
# −0.75, and close to zero far below. The curves do not show that one trains better than the other; only an experiment
# could. We take GELU because the GPT family does.
#
# The feed-forward part widens each token's vector (296 → 1,024), applies GELU, and narrows it again. The original
# transformer used ReLU here ([Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), section 3.3).

# %%
show_source(FeedForward)

# %% [markdown]
# Nothing in it mixes tokens: both linear layers work on the last axis only. Attention moves information *between*
# tokens, and feed-forward works on it *within* a token.
#
# **What is dropout for?** In training it sets each number to zero with some probability. A part then cannot rely on any
# single number, which makes it harder to learn stories by heart
# ([Srivastava et al. 2014](https://jmlr.org/papers/v15/srivastava14a.html)). It has no parameters, and it is switched
# off when the model is used. The parts above contain it, with a probability of 0 unless we set another. Notebook 04
# measures whether it helps.
#
# ## The block, step by step
#
# Take two stories of six tokens, with 24 numbers per token, and a block whose parameters are all random. (Gains of 1
# and biases of 0 could hide a mistake.)

# %%
torch.manual_seed(1)
small = ModelConfig(vocab_size=50, embedding_dim=20, d_model=24, num_heads=4, d_ff=48)
block = DecoderBlock(small)
for parameter in block.parameters():
    nn.init.normal_(parameter, std=0.3)
x = torch.randn(2, 6, 24)  # (B, T, D)
mask = torch.full((6, 6), float("-inf")).triu(1)  # (T, T): 0 for the past, -inf for the future

# %% [markdown]
# First read a normalised copy of the stream, mix it with the past, and add the result. Then read a normalised copy of
# *that*, compute, and add again.

# %%
mixed, weights = block.attention(block.attention_norm(x), mask)  # (B, T, D), (B, H, T, T)
after_attention = x + mixed  # (B, T, D)
thought = block.feed_forward(block.feed_forward_norm(after_attention))  # (B, T, D)
by_hand = after_attention + thought  # (B, T, D)

# %%
apart = error(by_hand, block(x, mask)[0])
claim(f"by hand = DecoderBlock, within ≈{apart:.1g}", apart < 1e-6)

# %%
show_source(DecoderBlock)

# %% [markdown]
# PyTorch has a ready-made layer to compare with. It is called an *encoder* layer, after the half of the original
# transformer that reads a whole text at once, future included. With a mask that hides the future, it is the block of a
# decoder-only model. We copy our weights into it.

# %% cellView="form" tags=["hide-input"]
# @title PyTorch's layer with the weights of our block


def theirs_of(block, norm_first=True):
    """PyTorch's layer, which lists its parameters as attention, feed-forward, norms."""
    layer = nn.TransformerEncoderLayer(
        24, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    parts = block.attention, block.feed_forward, block.attention_norm, block.feed_forward_norm
    ours = [parameter for part in parts for parameter in part.parameters()]
    for mine, theirs in zip(ours, layer.parameters(), strict=True):
        theirs.data = mine.data
    return layer


apart = error(by_hand, theirs_of(block)(x, src_mask=mask))
claim(f"DecoderBlock = torch.nn.TransformerEncoderLayer, within ≈{apart:.1g}", apart < 1e-6)

# %% [markdown]
# ## The whole decoder
#
# Two details remain. First, our word vectors have $E = 300$ numbers, as the published fastText vectors have, but eight
# heads cannot share 300 equally. So the model is $D = 296 = 8 \cdot 37$ wide, and a linear layer, the **projection**,
# takes each word vector from 300 to 296. Second, after the last block a **final norm** gives the stream the same size
# for every token, before the output layer scores all words.
#
# You now have every part, and here is the class. Two factors in it look alike and do different things: the $\sqrt{D}$
# below makes words long enough to be seen beside the positions (notebook 01), and the $1/\sqrt{d_k}$ inside attention
# keeps its softmax soft (notebook 02).


# %%
class Decoder(nn.Module):
    """Token ids in, scores of every possible next token out."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)  # (V, E)
        self.projection = nn.Linear(config.embedding_dim, config.d_model)  # E → D
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.d_model)
        self.output = nn.Linear(config.d_model, config.vocab_size)  # D → V
        length = config.context_length
        # Buffers move to another device with the model, and are not trained.
        positions = sinusoidal_positions(length, config.d_model)  # (T, D)
        self.register_buffer("positions", positions, persistent=False)
        mask = torch.full((length, length), float("-inf")).triu(1)  # (T, T)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, ids):  # (B, T) -> (B, T, V)
        T = ids.shape[1]
        words = self.projection(self.embedding(ids)) * self.config.d_model**0.5  # (B, T, D)
        stream = words + self.positions[:T]  # (B, T, D)
        for block in self.blocks:
            stream, _ = block(stream, self.mask[:T, :T])  # (B, T, D)
        return self.output(self.norm(stream))  # (B, T, V)


# %% [markdown]
# That is the model. (In exercise 4 you write it yourself.) With the same weights, the course's own `Decoder` must give
# the same logits, at full size:

# %%
torch.manual_seed(0)
full = course.Decoder(ModelConfig())
ours = Decoder(ModelConfig())
ours.load_state_dict(full.state_dict())
ids = torch.randint(4, 10_000, (2, 64))  # (B, T)
with torch.no_grad():
    apart = (ours(ids) - full(ids)).abs().max().item()

# %% cellView="form" tags=["hide-input"]
claim(f"{ids.numel()} × 10,000 logits agree within ≈{apart:.1g}, less than 1e-6", apart < 1e-6)

# %% [markdown]
# The notebooks from 04 on use the course's class. It has what later notebooks need: dropout on the first sum, a cache
# (05), recomputation and a loss that never holds all logits (06), and clear error messages.

# %%
show_source(course.Decoder, fold="The course's own Decoder, from helpers/model.py")

# %% [markdown]
# This notebook continues with the class above. Before we can try it, it needs two things: initial weights, and a loss.
#
# **Initial weights.** Word vectors are drawn with a standard deviation of 0.02, and biases are 0. Matrices follow
# *Xavier's rule*: the more inputs and outputs a matrix has, the smaller its weights, so that vectors keep roughly their
# size when they pass through it. The course's method sets them, for its class or for ours:

# %%
show_source(course.Decoder.initialize)

# %% [markdown]
# The **loss** is that of notebook 01: the input is the story without its last token; the target is the story without
# its first.


# %%
def fresh(config, seed, kind=Decoder):
    torch.manual_seed(seed)
    model = kind(config)
    course.Decoder.initialize(model)
    return model


def mean_loss(model, ids):
    """Mean cross-entropy of the next tokens, in nats. `<pad>`, id 0, is not a target."""
    logits = model(ids[:, :-1])  # (B, T-1, V)
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)


# %% [markdown]
# ## Where the parameters are
#
# `ModelConfig()` is the full model, with a vocabulary of 10,000 words, as for real stories. The number of heads does
# not appear in any formula.


# %%
def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


# %% cellView="form" tags=["hide-input"]
layer = full.blocks[0]
sizes = {
    "embedding": ("10,000 × 300", count(full.embedding)),
    "projection": ("300 × 296 + 296", count(full.projection)),
    "attention": ("4 × (296 × 296 + 296)", count(layer.attention)),
    "feed-forward": ("296 × 1,024 + 1,024 + 1,024 × 296 + 296", count(layer.feed_forward)),
    "two norms": ("2 × (296 + 296)", count(layer.attention_norm, layer.feed_forward_norm)),
    "one block": ("attention, feed-forward, two norms", count(layer)),
    "three blocks": ("3 × one block", count(full.blocks)),
    "final norm": ("296 + 296", count(full.norm)),
    "output": ("296 × 10,000 + 10,000", count(full.output)),
    "the whole model": ("embedding, projection, three blocks, final norm, output", count(full)),
}
table(
    [[part, *row] for part, row in sizes.items()],
    ["part", "formula", "parameters"],
    caption=(
        "Where the parameters are. With 10,000 words, the two tables of words hold most of them, "
        "and the blocks nearly all the rest."
    ),
)

# %% cellView="form" tags=["hide-input"]
tables, saved = count(full.embedding, full.output), full.output.weight.numel()
grammar_model = Decoder(ModelConfig(vocab_size=V))
for name, one in {"with 10,000 words": full, f"with {V:,} words": grammar_model}.items():
    words, attention = count(one.embedding, one.output), 3 * count(layer.attention)
    print(
        f"{name}: {count(one):,} parameters, {words / count(one):.0%} in the two tables of words, "
        f"{attention / count(one):.0%} in attention"
    )
print(f"the output's matrix: {saved:,} parameters, {saved / count(full):.0%} of the full model")

# %% [markdown]
# Attention, the famous part, holds only a small share of the full model's parameters. Two thirds belong to the
# vocabulary, which has one table on the way in and one on the way out. (The grammar stories have fewer words, so their
# model is smaller.) **Weight tying** uses one table for both ([Press & Wolf 2017](https://arxiv.org/abs/1608.05859)): a
# word is scored by its own projected vector. Then the output's matrix, a third of the full model, is not needed. (In
# the class below it is still there, unused, so that both kinds start from the same random numbers.)


# %%
class TiedDecoder(Decoder):
    """The output layer scores each word by its own projected vector."""

    def forward(self, ids):  # (B, T) -> (B, T, V)
        T = ids.shape[1]
        table_of_words = self.projection(self.embedding.weight)  # (V, D)
        stream = table_of_words[ids] * self.config.d_model**0.5 + self.positions[:T]  # (B, T, D)
        for block in self.blocks:
            stream, _ = block(stream, self.mask[:T, :T])  # (B, T, D)
        return self.norm(stream) @ table_of_words.T + self.output.bias  # (B, T, V)


# %% [markdown]
# What does it cost? We train both kinds for a few steps. A step computes the gradient of the loss, and an **optimizer**
# moves every parameter against it; the **learning rate** says how far. Notebook 04 explains the optimizer that we use
# here, *AdamW*, with its `betas`.

# %%
some = torch.tensor([tokenizer.encode_story(text, 64) for text in stories.train[:320]])  # (N, 64)


def first_steps(model, steps=80, batch_size=4, learning_rate=2e-3):
    """The loss at each of the first steps of training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        rows = torch.arange(step * batch_size, (step + 1) * batch_size) % len(some)  # (B,)
        loss = mean_loss(model, some[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# To be fair, both kinds must start alike. So the output matrix of the untied model starts as a copy of the projected
# word vectors: then both give the same logits before the first step.

# %%
narrow = ModelConfig(vocab_size=V, d_model=128, d_ff=512)


def start(kind, seed):
    model = fresh(narrow, seed, kind)
    with torch.no_grad():
        model.output.weight.copy_(model.projection(model.embedding.weight))  # (V, D)
    return model


# %%
with torch.no_grad():
    apart = error(start(TiedDecoder, 0)(some[:4]), start(Decoder, 0)(some[:4]))
claim(f"before the first step both kinds give the same logits, within ≈{apart:.1g}", apart < 1e-4)

# %%
KINDS = {"two tables": Decoder, "tied": TiedDecoder}
tying = {
    rate: {
        name: [np.mean(first_steps(start(kind, s), 40, learning_rate=rate)[-10:]) for s in range(3)]
        for name, kind in KINDS.items()
    }
    for rate in (2e-3, 5e-4)
}

# %% cellView="form" tags=["hide-input"]
table(
    [
        [f"{rate:g}", name, *(f"≈{loss:.2f}" for loss in found)]
        for rate, kinds in tying.items()
        for name, found in kinds.items()
    ],
    ["learning rate", "mean loss of steps 31 to 40, nats per token", "seed 0", "seed 1", "seed 2"],
    caption=(
        "Two tables of words against one, 128 numbers wide, at two learning rates. Compare the two "
        "rows of each rate. Forty steps show only the start of training."
    ),
)

# %% [markdown]
# The answer depends on the learning rate: for each of the three seeds, two tables are ahead at the higher rate, and one
# table at the lower. (Probably a tied score moves further in a step of the same rate, because the word vector *and* the
# projection move.) So a comparison at one rate says little about tying, and forty steps do not show which kind ends
# lower. This much is certain: tying saves a third of the full model's parameters, and one vector then has two jobs. It
# must represent the word when it is *read*, and when it is *expected* next. We keep two tables: both can start from
# fastText vectors (notebook 04), and each learns its own job.
#
# ## The residual stream
#
# Our three blocks compute `stream = stream + part(norm(stream))` six times. So at any point the stream is the sum of
# what was written so far. This function walks through a model and records separately what each part writes:


# %%
def writes(model, ids):
    """What each part adds to the stream, in order: {part: (B, T, D)}."""
    T = ids.shape[1]
    words = model.projection(model.embedding(ids)) * model.config.d_model**0.5  # (B, T, D)
    parts = {"words": words, "positions": model.positions[:T].expand_as(words)}  # (B, T, D) each
    for number, block in enumerate(model.blocks, start=1):
        read = block.attention_norm(sum(parts.values()))  # (B, T, D)
        parts[f"attention {number}"] = block.attention(read, model.mask[:T, :T])[0]  # (B, T, D)
        read = block.feed_forward_norm(sum(parts.values()))  # (B, T, D)
        parts[f"feed-forward {number}"] = block.feed_forward(read)  # (B, T, D)
    return parts


# %% [markdown]
# Try it on an untrained model and a little story.

# %%
STORY = (
    "Once upon a time, there was a little girl named Mia. Mia had a red ball. Tom had a blue "
    "kite. One day, Mia lost the red ball. She was sad. Tom looked under the tree and found the "
    "red ball. Mia was very happy."
)
ids = torch.tensor([[tokenizer.sos_id, *tokenizer.encode(STORY)]])  # (1, T)
untrained = fresh(ModelConfig(vocab_size=V), seed=0)
with torch.no_grad():
    parts = writes(untrained, ids)
    apart = error(untrained.output(untrained.norm(sum(parts.values()))), untrained(ids))

# %% cellView="form" tags=["hide-input"]
claim(f"the sum of {len(parts)} parts gives the logits, within ≈{apart:.1g}", apart < 1e-5)

# %%
written = torch.stack(list(parts.values()))[:, 0]  # (parts, T, D)
sizes_of = written.norm(dim=-1).mean(1)  # (parts,): the length of each write
stream = written.cumsum(0).norm(dim=-1).mean(1)  # (parts,): length of the stream after it

# %% cellView="form" tags=["hide-input"]
order = range(len(parts))
figure = plots.compare_curves(
    {
        "the stream after each part": (order, stream.tolist()),
        "what the part writes": (order, sizes_of.tolist()),
    },
    x_label="part, in the order of writing",
    y_label="mean length over the tokens (no unit)",
    title="Each write makes the stream longer (untrained model)",
    from_zero=True,
)
figure.axes[0].set_xticks(order, [name.replace(" ", "\n") for name in parts])
figures.save_figure(
    figure,
    "03_stream",
    alt="Length of the residual stream after each part of three blocks: it grows with every write.",
    caption=(
        "The upper curve is the stream, the lower one what each part adds to it, in one story. "
        "Lengths say how much is written, not what."
    ),
)

# %%
root = sizes_of.square().sum().sqrt().item()
claim(
    f"if all writes were perpendicular, the stream would end ≈{root:.0f} long; it ends "
    f"≈{stream[-1]:.0f} long, and the two differ by less than a tenth",
    abs(root / stream[-1] - 1) < 0.1,
)

# %% [markdown]
# The lengths do not simply add up. Random vectors with hundreds of entries are nearly perpendicular, so it is the
# *squares* of their lengths that add up, as Pythagoras says. In this untrained model the positions are longer than the
# words.
#
# ## Before or after? Where the norm goes
#
# The original transformer is **post-norm**: `norm(x + f(x))` (Vaswani et al. 2017, section 3.1). Ours is **pre-norm**:
# `x + f(norm(x))`, as in most later models.
#
# ```
# post-norm (2017)
# x ──┬───────────────(+)── norm ──┬─────────────────(+)── norm ──
#     └── attention ───┘           └── feed-forward ──┘
#
# pre-norm (ours)
# x ──┬──────────────────────(+)──┬────────────────────────(+)──
#     └── norm ─ attention ───┘   └── norm ─ feed-forward ──┘
# ```
#
# In post-norm every norm is *in* the stream, and rescales everything written before it. In pre-norm the norms are
# beside the stream, which runs uninterrupted from the input to the last block. Here are the same parts in the other
# order:


# %%
class PostNormBlock(DecoderBlock):
    """norm(x + f(x)), from the same parts."""

    def forward(self, x, mask, remember=None):
        mixed, weights = self.attention(x, mask, remember)  # (B, T, D), (B, H, T, T)
        x = self.attention_norm(x + mixed)  # (B, T, D)
        return self.feed_forward_norm(x + self.feed_forward(x)), weights  # (B, T, D)


# %% cellView="form" tags=["hide-input"]
post = PostNormBlock(small)
post.load_state_dict(block.state_dict())  # random gains and biases too
apart = error(post(x, mask)[0], theirs_of(block, norm_first=False)(x, src_mask=mask))
claim(f"PostNormBlock = PyTorch's layer with norm_first=False, within ≈{apart:.1g}", apart < 1e-6)

# %% [markdown]
# [Xiong et al. 2020](https://arxiv.org/abs/2002.04745), section 3, compared the gradients of the two *before the first
# step of training*. We do the same with narrow stacks (64 numbers per token) of 3 to 24 blocks. For each seed both
# kinds start from the same weights.

# %%
BLOCKS = {"pre-norm": DecoderBlock, "post-norm": PostNormBlock}
DEPTHS = (3, 6, 12, 24)
eight = some[:8]  # (8, 64)


def stack(kind, depth, seed):
    config = ModelConfig(vocab_size=V, d_model=64, d_ff=256, num_layers=depth)
    model = Decoder(config)
    model.blocks = nn.ModuleList(BLOCKS[kind](config) for _ in range(depth))
    torch.manual_seed(seed)
    course.Decoder.initialize(model)
    if kind == "post-norm":
        model.norm = nn.Identity()  # its last block already ends with a norm
    return model


def gradients(kind, depth, seed):
    """The length of the gradient of the loss at each block's last matrix, (L,)."""
    model = stack(kind, depth, seed)
    mean_loss(model, eight).backward()
    return torch.stack([block.feed_forward.contract.weight.grad.norm() for block in model.blocks])


# %% [markdown]
# **Predict.** Look at the *last* block of each stack. When the stack gets deeper, does the gradient of its last block
# grow, shrink or stay the same: in pre-norm, and in post-norm?

# %%
measured = {
    (kind, depth): torch.stack([gradients(kind, depth, seed) for seed in range(5)]).mean(0)  # (L,)
    for kind in BLOCKS
    for depth in DEPTHS
}
last = {kind: [measured[kind, depth][-1].item() for depth in DEPTHS] for kind in BLOCKS}

# %% cellView="form" tags=["hide-input", "hide-output"]
guide = [last["pre-norm"][0] * (3 / depth) ** 0.5 for depth in DEPTHS]
figure = plots.compare_curves(
    {kind: (DEPTHS, values) for kind, values in last.items()} | {"guide: 1 / √L": (DEPTHS, guide)},
    x_label="blocks in the stack, L",
    y_label="length of the last block's gradient (nats per unit)",
    title="Pre-norm: the deeper the stack, the smaller its last block's gradient",
    log_x=True,
    from_zero=True,
)
figure.axes[0].lines[-1].set(marker="", color=plots.GREY)  # a guide, not a measurement
figure.axes[0].legend()
figures.save_figure(
    figure,
    "03_gradients",
    alt="Gradient of the last block for 3 to 24 blocks: post-norm level, pre-norm falling.",
    caption=(
        "Follow the two lines with points from left to right; the grey one is a guide to the eye. "
        "Each point is the gradient with respect to the last block's last matrix, a mean of five "
        "seeds on one batch, before training."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
first_to_last = {kind: (measured[kind, 12][0] / measured[kind, 12][-1]).item() for kind in BLOCKS}
shrinks = last["pre-norm"][0] / last["pre-norm"][-1]
rises = last["post-norm"][-1] / last["post-norm"][0]
claim(
    f"from 3 to 24 blocks the last block's gradient falls ≈{shrinks:.1f}-fold in pre-norm, and "
    f"changes by a factor of ≈{rises:.1f} in post-norm",
    shrinks > 2 and 0.67 < rises < 1.5,
)
claim(
    f"of 12 blocks, the first gets ≈{first_to_last['pre-norm']:.1f} times the gradient of the last "
    f"in pre-norm, ≈{first_to_last['post-norm']:.1f} times in post-norm",
    first_to_last["pre-norm"] > 2,
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# In post-norm the gradient of the last block hardly depends on the depth. In pre-norm it falls about as $1/\sqrt{L}$.
# The bounds in Theorem 1 of Xiong et al. behave in the same way: that for post-norm does not contain $L$, and that for
# pre-norm is proportional to $1/\sqrt{L}$.
#
# </details>
#
# The reason is the norm nearest to the output: on its way back, the gradient is divided by the standard deviation of
# what this norm reads. In pre-norm that is the whole stream, a sum of $2L$ nearly perpendicular writes, which grows
# about as $\sqrt{L}$; in post-norm it is a sum of only two vectors, however deep the stack is.
#
# On the way back, once it is through the final norm, the gradient has a free path in pre-norm: the stream is a sum, so
# the gradient at its end arrives unchanged at the output of *every* block. What the later blocks pass back is added to
# it, and so the first of twelve blocks gets three times the gradient of the last. In post-norm the gradient must pass
# two norms in each block. At the start this costs it nothing that we could measure: the first block gets more than the
# last there, too.
#
# All this is about the moment before the first step. What happens after it? As a yardstick we take a model that knows
# only how frequent each word is. If a share $f_w$ of the targets is the word $w$, its loss is $-\sum_w f_w \ln f_w$.
#
# (In practice the learning rate often begins small and rises over the first steps, a **warm-up**. We do without it
# here.)

# %%
shares = torch.bincount(some[:, 1:].flatten(), minlength=V)[1:].double()  # (V - 1,), no <pad>
shares = shares[shares > 0] / shares.sum()  # (words that occur,)
unigram = -(shares * shares.log()).sum().item()
print(f"word counts alone: ≈{unigram:.2f} nats per token")

# %% [markdown]
# **Predict.** Train stacks of three and of twelve blocks, pre-norm and post-norm, on the same data for 80 steps at the
# same learning rate (0.002, no warm-up). Which of the four get below the loss of word counts alone?

# %%
runs = {
    (kind, depth): np.array([first_steps(stack(kind, depth, seed)) for seed in range(3)])
    for depth in (3, 12)
    for kind in BLOCKS
}  # (seeds, steps) each

# %% cellView="form" tags=["hide-input", "hide-output"]
tenth = np.ones(10) / 10
figures.save_figure(
    plots.compare_curves(
        {
            f"{kind}, {depth} blocks": (range(10, 81), np.convolve(run.mean(0), tenth, "valid"))
            for (kind, depth), run in runs.items()
        },
        landmarks={"word counts alone": unigram},
        y_label="training loss (nats per token, mean of 10 steps)",
        title="In 80 steps, twelve post-norm blocks do not even reach word counts",
    ),
    "03_first_steps",
    alt=(
        "Training loss of four stacks over 80 steps, means of three seeds: three fall below "
        "the line of word counts, the post-norm stack of 12 blocks stops just above it."
    ),
    caption=(
        "Compare each curve, the mean of three seeds, with the line “word counts alone”. All runs "
        "have one learning rate and no warm-up; with a warm-up post-norm could do better."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
end = {key: run[:, -10:].mean(1) for key, run in runs.items()}  # (seeds,): the last ten steps
twelve = (end["post-norm", 12] - end["pre-norm", 12]).min()
claim(f"12 blocks: for every seed pre-norm ends at least ≈{twelve:.1f} nats lower", twelve > 0.5)

# %% cellView="form" tags=["hide-input", "hide-output"]
table(
    [
        [f"{kind}, {depth} blocks", *(f"≈{loss:.2f}" for loss in losses)]
        for (kind, depth), losses in end.items()
    ],
    ["loss, mean of the last 10 of 80 steps", "seed 0", "seed 1", "seed 2"],
    caption=(
        "Where the same runs end, seed by seed. Compare differences between rows with the spread "
        "within a row."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Three of the four do. The post-norm stack of twelve blocks comes near the line and turns away. With three blocks, our
# depth, both kinds learn; post-norm ends a little behind, by about a tenth of a nat or less. In so few steps, twelve
# pre-norm blocks are behind three.
#
# </details>
#
# Xiong et al. argue that a deep post-norm stack needs a warm-up, because its last blocks start with large gradients.
# Our runs do not prove this: with three blocks the last block's gradient is about as large, and yet they learn. Nor do
# they show that post-norm is worse once it trains: they show one learning rate, without warm-up, at a width of 64.
#
# What does pre-norm cost? Nothing in it limits the growth of the stream.


# %%
@torch.no_grad()
def stream_lengths(model, ids):
    """Mean length of the tokens' streams after each block, divided by √D."""
    T, lengths, root = ids.shape[1], [], model.config.d_model**0.5
    x = model.projection(model.embedding(ids)) * root + model.positions[:T]  # (B, T, D)
    for block in model.blocks:
        x, _ = block(x, model.mask[:T, :T])  # (B, T, D), (B, H, T, T)
        lengths.append(x.norm(dim=-1).mean().item() / root)
    return lengths


lengths = {kind: stream_lengths(stack(kind, 12, seed=0), eight) for kind in BLOCKS}

# %% cellView="form" tags=["hide-input"]
with torch.no_grad():
    parts = writes(stack("pre-norm", 12, seed=0), eight)  # {part: (B, T, D)}
added = [parts[f"attention {b}"] + parts[f"feed-forward {b}"] for b in range(1, 13)]  # (B, T, D)
added = [write.norm(dim=-1).mean().item() / 64**0.5 for write in added]
named = {"pre-norm": lengths["pre-norm"], "what a pre-norm block adds": added}
named |= {"post-norm": lengths["post-norm"]}
table(
    [[name, *(f"{row[b - 1]:.1f}" for b in (1, 4, 8, 12))] for name, row in named.items()],
    ["length / √D", "block 1", "block 4", "block 8", "block 12"],
    caption=(
        "The length of the stream after four of the twelve blocks, and of what each of these "
        "blocks "
        "adds to it: one seed, before training."
    ),
)

# %%
deep = stack("pre-norm", 12, seed=0)
with torch.no_grad():
    logits = deep(eight)  # (B, T, V)
    deep.norm = nn.Identity()
    louder = (deep(eight).std() / logits.std()).item()

# %% cellView="form" tags=["hide-input"]
claim(
    f"without a final norm, 12 pre-norm blocks would have logits ≈{louder:.1f} times as large",
    louder > 2,
)

# %% [markdown]
# In post-norm the stream has the length $\sqrt{D}$ after every block. In pre-norm it grows. Later blocks add vectors of
# similar length to an ever longer stream, so each changes it less. And without the final norm the logits, which
# are linear in the stream, would grow with it.
#
# ## The loss before training
#
# An untrained model knows nothing, so each of the $V$ tokens should get the probability $1/V$, and the loss should be
# $-\ln \frac{1}{V} = \ln V$. To test this, take text in which no word is more frequent than another: random tokens.
#
# **Predict.** Is the loss of an untrained model exactly $\ln V$, a little less, or a little more?

# %%
noise = torch.randint(4, V, (16, 64), generator=torch.Generator().manual_seed(0))  # (B, T)
models = [fresh(ModelConfig(vocab_size=V), seed) for seed in range(5)]
with torch.no_grad():
    initial = sum(mean_loss(model, noise).item() for model in models) / len(models)

# %% cellView="form" tags=["hide-input", "hide-output"]
print(f"ln V = ln {V:,} = {math.log(V):.3f} nats; mean of five random starts: ≈{initial:.3f}")

# %% [markdown]
# <details><summary>What happened</summary>
#
# It is a little more. The logits are not all equal: they scatter at random, and this raises the loss.
#
# </details>
#
# We can calculate the difference. With the logits $z$ the loss is $\ln \sum_w e^{z_w} - z_{\text{next}}$. Over random
# starts, the second term is 0 on average. In the first, the sum over many words is close to $V$ times the mean of
# $e^z$, so the loss is close to $\ln V + \ln \operatorname{mean}(e^z)$.
#
# How much do logits scatter? After the final norm each token's $D$ numbers have variance 1. Xavier's rule draws the
# output's weights with variance $\frac{2}{D+V}$
# ([Glorot & Bengio 2010](https://proceedings.mlr.press/v9/glorot10a.html), equation 16), so a logit has the variance
# $s^2 = \frac{2D}{D+V}$. For normal $z$ the mean of $e^z$ is $e^{s^2/2}$, so
#
# $$\text{loss} \approx \ln V + \frac{s^2}{2} = \ln V + \frac{D}{D+V}$$

# %%
D = full.config.d_model
expected = math.log(V) + D / (D + V)

# %% cellView="form" tags=["hide-input"]
claim(
    f"ln V + D/(D + V) = {expected:.3f} nats, measured ≈{initial:.3f}: within 0.02, and ln V is "
    f"{expected - math.log(V):.2f} away",
    abs(initial - expected) < 0.02,
)

# %%
with torch.no_grad():
    farthest = max(abs(mean_loss(model, some[:16]).item() - expected) for model in models)
claim(
    f"on stories, single starts are up to ≈{farthest:.2f} nats away from it, less than 0.3",
    farthest < 0.3,
)

# %% [markdown]
# The formula is about the mean over random starts. On stories a single start scatters around it, probably because a few
# words are frequent, and their logits happen to lie a little above or below the mean. If your first loss is far away,
# suspect a bug, such as weights that were drawn too large, before you spend time on training. If it is close, there may
# still be one: on stories, a single start cannot even tell $\ln V$ from $\ln V + D/(D+V)$.
#
# ## One batch by heart
#
# The second check is whether the model can **overfit one batch**, that is, learn it by heart. We train it in a plain
# loop, always on the same eight stories, without *weight decay* (which would pull all weights towards 0). One of the
# eight is the little story from above. If the loss does not fall to almost nothing, look for a mistake: targets that
# are shifted wrongly, say, or a part that gets no gradient.
#
# But the loss cannot fall to zero. What can a model not know, even if it knows all eight stories by heart?

# %%
batch = torch.tensor([tokenizer.encode_story(text, 64) for text in [STORY, *stories.train[:7]]])


def learn_by_heart(model, steps=100):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = mean_loss(model, batch)  # batch (8, 64)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # at most 1 long: no step too large
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
model = fresh(narrow, seed=0)
honest = learn_by_heart(model)

# %% [markdown]
# The model cannot know *which* of the eight stories it is in. All begin with `<sos>`, so the first word must be a
# guess, and perhaps the second. We can count what this costs. For each beginning of a story, count which tokens follow
# it in the eight stories, and how often. These frequencies are the best possible probabilities, and the mean of their
# $-\ln p$ is the **floor of this batch**: no model that reads from left to right can have a lower loss on it. (It lies far
# below the floor of the grammar, which notebook 01 computed. That one holds for new stories, and this one for a model
# that knows these eight by heart.)

# %%
begun, continued = Counter(), Counter()
for story in batch.tolist():
    story = [token for token in story if token != tokenizer.pad_id]
    for t in range(1, len(story)):
        begun[tuple(story[:t])] += 1
        continued[tuple(story[: t + 1])] += 1
targets = continued.total()
floor = sum(n * math.log(begun[text[:-1]] / n) for text, n in continued.items()) / targets

# %% [markdown]
# The floor has a simple form. If $n_t$ of the eight stories begin like this one up to its $t$-th token (`<sos>` is the
# first, so $n_1 = 8$), and all eight differ within 64 tokens, the product of its frequencies is
# $\frac{n_1}{8} \cdot \frac{n_2}{n_1} \cdots \frac{1}{n_{T-1}} = \frac{1}{8}$. So each story costs $\ln 8$ nats, all of
# it at the words where stories differ, and the eight stories together cost $8 \ln 8$ nats.

# %% cellView="form" tags=["hide-input"]
claim(
    f"the floor is {floor:.4f} nats per token = 8 ln 8 / {targets} tokens",
    abs(floor - 8 * math.log(8) / targets) < 1e-12,
)
claim(
    f"after 100 steps the loss is ≈{honest[-1]:.4f}: at most 0.01 nats above the floor, not below",
    floor <= honest[-1] < floor + 0.01,
)

# %% [markdown]
# Suppose that the mask was forgotten, so that the model sees the future. Its loss falls, and no error is raised.
#
# **Predict.** Where will its loss end: above the floor of the batch, on it, or below it?

# %%
cheat = fresh(narrow, seed=0)
cheat.mask.zero_()  # every token may look at every other
cheating = learn_by_heart(cheat)

# %% cellView="form" tags=["hide-input", "hide-output"]
claim(
    f"without the mask the loss is ≈{cheating[-1]:.4f}, less than a third of the floor",
    cheating[-1] < floor / 3,
)

# %% cellView="form" tags=["hide-input", "hide-output"]
figures.save_figure(
    plots.compare_curves(
        {"with the mask": (range(1, 101), honest), "mask forgotten": (range(1, 101), cheating)},
        landmarks={"ln V": math.log(V), "floor": floor},
        y_label="training loss (nats per token)",
        title="An honest model stays above the floor; a cheat falls through",
        log_y=True,
    ),
    "03_one_batch",
    alt=(
        "Loss on one batch over 100 steps: the model with a mask levels off at the floor, the "
        "one without goes below it."
    ),
    caption=(
        "Compare both curves with the line marked “floor”, the lowest loss that is possible "
        "without seeing the future (logarithmic axis). The figure says nothing about new stories."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Both losses start near $\ln V$. The honest one levels off just above the floor. The cheating one falls through it,
# because a token that sees the next one need not guess which story this is.
#
# </details>
#
# A loss below the floor of its own batch is proof of a mistake: the model sees the future, or the loss is computed
# wrongly. Learning eight stories by heart is the opposite of what training is for. It is a test of the code, and it
# takes seconds.
#
# ## Who wrote the prediction?
#
# What does the model that knows eight stories by heart expect halfway through its blocks? The **logit lens**
# ([nostalgebraist 2020](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens))
# reads the stream early: it sends the sum of what was written so far through the final norm and the output layer, as if
# there were no more blocks. Our story contains *the* three times, followed by two different words. The word that goes
# in is the same, so something else in the stream must tell the model which word comes next.

# %%
exact = copy.deepcopy(model).double()  # double precision, so that rounding cannot hide a mistake
with torch.no_grad():
    parts = writes(exact, batch)  # {part: (B, T, D)}
    streams = torch.stack(list(parts.values())).cumsum(0)[:, 0]  # (parts, T, D), of our story
    early = exact.output(exact.norm(streams)).argmax(-1)  # (parts, T)
names = [tokenizer.word(i) for i in batch[0].tolist()]
places = [t for t, name in enumerate(names) if name == "the"]

# %% cellView="form" tags=["hide-input"]
table(
    [
        [part, *(tokenizer.word(i) for i in row[places].tolist())]
        for part, row in zip(parts, early, strict=True)
    ]
    + [["(the story)", *(names[t + 1] for t in places)]],
    ["likeliest next word, read after", *(f"… {names[t - 1]} the" for t in places)],
    caption=(
        "The logit lens applies the output layer early, after each part; compare its rows with the "
        "last one. It shows what could be read off the stream, not what the model uses."
    ),
)

# %% [markdown]
# After *words*, all three places give the same answer, because the same vector was written in each. Adding the
# *positions* makes them different, but a position says only where in the story we are, not what has happened. At these
# three places, the right word can be read off from the first attention on.
#
# How much does each part contribute to a logit? The stream is a sum, and the output layer is linear. Only the final
# norm comes between them, and it is *not* linear: it divides by the standard deviation of the whole stream. Can a logit
# still be split exactly into what each part contributed? Yes, under one condition. Run the model, note for each token
# the number by which the norm divides, and keep that number fixed. What remains of the norm, subtracting a mean and
# multiplying by constants, is linear. So the logits are a sum over everything that was written, $u$:
#
# $$\text{logits} = \sum_{u}\left(\frac{u - \operatorname{mean}(u)}{\sqrt{\sigma^2 + \varepsilon}} \odot g\right) W^\top +
# \underbrace{b_{\text{norm}} W^\top + b_{\text{output}}}_{\text{biases}}$$
#
# Here $\sqrt{\sigma^2 + \varepsilon}$ is the fixed number, $g$ and $b_{\text{norm}}$ are the final norm's gain and
# bias, $W$ and $b_{\text{output}}$ the output layer's matrix and bias, and $\odot$ multiplies number by number. This is
# called *direct logit attribution*. The view of the stream as a sum of what the parts write is that of [Elhage et al.
# 2021](https://transformer-circuits.pub/2021/framework/index.html).


# %%
@torch.no_grad()
def direct_logits(model, ids):
    """Each part's share of the logits, {part: (B, T, V)}; together they are the logits."""
    parts, weight = writes(model, ids), model.output.weight  # {part: (B, T, D)}, (V, D)
    variance = sum(parts.values()).var(-1, unbiased=False, keepdim=True)  # (B, T, 1)
    gain = model.norm.gain * torch.rsqrt(variance + model.norm.eps)  # (B, T, D), held fixed
    shares = {
        name: (part - part.mean(-1, keepdim=True)) * gain @ weight.T for name, part in parts.items()
    }
    constant = model.norm.bias @ weight.T + model.output.bias  # (V,)
    return shares | {"biases": constant.expand_as(shares["words"])}


# %%
worst = {}
for name, candidate in {"learned": exact, "untrained": copy.deepcopy(untrained).double()}.items():
    with torch.no_grad():
        total = sum(direct_logits(candidate, batch).values())  # (B, T, V)
        worst[name] = (total - candidate(batch)).abs().max().item()
    claim(
        f"{name}: {batch.numel()} tokens × {V:,} logits are the sum of the parts, within "
        f"≈{worst[name]:.0e}",
        worst[name] < 1e-9,
    )

# %% [markdown]
# **With the final norm's scale held fixed, the logits are exactly the sum of what every part wrote into the stream,
# plus biases.** This holds for any weights and involves no approximation.
#
# Now we use it. The softmax does not change when the same number is added to all logits, so a single logit means
# nothing by itself. To see what decides *between* two words, take the difference between their logits. We choose *red*
# and *tree*, the words that follow the first and the second *the*.

# %%
split = torch.stack([share[0] for share in direct_logits(exact, batch).values()])  # (parts, T, V)
red, tree = (batch[0, t + 1].item() for t in places[:2])
between = (split[..., tree] - split[..., red])[:, places[:2]]  # (parts, 2)

# %% cellView="form" tags=["hide-input"]
after = [f"after “{names[t - 1]} the”" for t in places[:2]]
figures.save_figure(
    plots.bars(
        {
            name: dict(zip(after, row, strict=True))
            for name, row in zip([*parts, "biases"], between.tolist(), strict=True)
        },
        x_label="logit of “tree” minus logit of “red” (nats)",
        title="The model reads the same word and gives opposite answers",
    ),
    "03_attribution",
    alt=(
        "What each part adds to the logit of tree minus that of red: words favour tree and biases "
        "favour red in both places; most other parts favour red after “lost the”, and tree after "
        "“under the”."
    ),
    caption=(
        "A bar to the left favours “red”, a bar to the right “tree”: compare the two colours of "
        "each part. The bars add up exactly if the final norm's scale is held fixed. They do not "
        "show what a part passes on to later parts."
    ),
)

# %% cellView="form" tags=["hide-input"]
gaps = (between[:, 1] - between[:, 0]).tolist()  # (parts,): from one place to the other
share, attention = (
    sum(gap for name, gap in zip(parts, gaps, strict=False) if kind in name) / sum(gaps)
    for kind in ("feed-forward", "attention")
)
totals = between.sum(0).tolist()
claim(
    f"all parts together: ≈{totals[0]:.1f} after “lost the”, ≈{totals[1]:.1f} after “under the”; "
    "of "
    f"the gap feed-forward layers wrote ≈{share:.0%}, attention ≈{attention:.0%}",
    totals[0] < 0 < totals[1],
)

# %% [markdown]
# *Words* favours *tree* in both places, and *biases* favour *red* in both: *the* by itself cannot know what comes next.
# (The two bars of *words* differ in length because the norm divides by a different number in each place.) Most of the
# gap was written by feed-forward layers. But a feed-forward layer sees only its own token. To tell the two places apart
# it can use only the position and what attention has brought there, and the bars do not show such indirect effects.
# Also, this model has only learned eight stories by heart: a bar here explains this prediction, not the language.

# %% cellView="form" tags=["numbers"]
# @title The numbers that notebook 07 reports
figures.save_numbers(
    "03",
    {
        "parameters": {part: number for part, (_, number) in sizes.items()},
        "vocabulary_share": tables / count(full),
        "vocabulary_size": V,
        "tying": tying[2e-3],
        "gradients": {
            f"{kind}, {depth} blocks": values for (kind, depth), values in measured.items()
        },
        "first_steps_end": {f"{kind}, {depth} blocks": x for (kind, depth), x in end.items()},
        "unigram_loss": unigram,
        "stream_lengths": lengths,
        "initial_loss": {"ln_V": math.log(V), "predicted": expected, "measured": initial},
        "one_batch": {"floor": floor, "with_mask": honest[-1], "mask_forgotten": cheating[-1]},
        "attribution": {"error": worst, "places": between},
    },
)

# %% [markdown]
# ## Recap
#
# - A decoder consists of word vectors and positions, blocks that read a normalised copy of the stream and add to it, a
#   final norm, and an output layer. Ours has under thirty lines and gives the same logits as the course's own.
# - With 10,000 words, two thirds of the parameters are in the two tables of words; with the grammar stories'
#   vocabulary, less than a third. Whether tying them costs anything cannot be seen at one learning rate.
# - Before training, the gradient of the last block falls about as $1/\sqrt{L}$ in pre-norm, because the final norm
#   divides by an ever longer stream. In 80 steps at one learning rate and without warm-up, twelve pre-norm blocks got
#   below word counts, and twelve post-norm blocks did not; with three blocks both did.
# - Two losses are known beforehand: that of a random start, $\ln V + D/(D+V)$ on average, and the floor of one batch. A
#   loss below that floor means that the future leaks, or that the loss is computed wrongly.
# - With the final norm's scale held fixed, the logits are exactly the sum of what every part wrote, plus biases.
#
# ## What GPT and Llama do differently
#
# - **Norm.** Llama uses RMSNorm ([Zhang & Sennrich 2019](https://arxiv.org/abs/1910.07467)): no mean is subtracted and
#   there is no bias, which is cheaper; its authors found the results comparable.
# - **Initial weights.** GPT-2 is pre-norm too, and draws the matrices that write into the stream smaller by a factor of
#   $1/\sqrt{N}$, where $N$ is the number of parts that write, so that the stream does not grow with the depth at the
#   start
#   ([Radford et al. 2019](https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf),
#   section 2.3).
# - **Feed-forward.** Llama widens each vector twice, sends one copy through a smooth gate, and multiplies the two
#   (SwiGLU; [Shazeer 2020](https://arxiv.org/abs/2002.05202) found lower losses and offers no explanation).
# - **Tied tables.** GPT-2 uses one table for input and output, which saves parameters. In large models the tables are a
#   small share, and many keep two.
# - **Dropout.** The first GPT used 0.1. Models that see each text only once have less chance to learn it by heart, and
#   are usually trained without it.
#
# Next: [04 · Training](04_training.ipynb) trains this model until its loss almost reaches the floor of the grammar, and
# examines every head.
#
# ## Can you?
#
# 1. Close the notebook and write <code>Decoder</code>. What does each line of <code>forward</code> make, and what shape
#    does it have?
#    <details><summary>Answer:</summary> Word vectors (B, T, E), projected to (B, T, D) and scaled by √D; plus
#    positions; through the blocks, with the mask; normalised; scored: (B, T, V).</details>
# 2. Which part of the full model has the most parameters, and what change would save a third? How many parameters does
#    dropout add, and what does it do when the model is used?
#    <details><summary>Answer:</summary> The two tables of words; tying them. Dropout adds none, and does nothing when
#    the model is used.</details>
# 3. Why does the gradient of the last block fall with the depth in pre-norm, but not in post-norm? And why does
#    pre-norm need a final norm?
#    <details><summary>Answer:</summary> The last norm divides the gradient by the size of what it reads. In pre-norm
#    that is the whole stream, which grows as √L; in post-norm it is a sum of two vectors. Without the final norm, the
#    logits would grow with the stream.</details>
# 4. A vocabulary of 10,000 and a width of 296: what loss should the untrained model have, and what would a loss of 14
#    mean? And how low can the loss get on one batch of four different stories with 200 targets in all?
#    <details><summary>Answer:</summary> ln 10,000 + 296 / 10,296 ≈ 9.24. At 14 the logits scatter far too much,
#    probably because the initial weights are much too large. On the batch: 4 ln 4 / 200 ≈ 0.028.</details>
# 5. The loss on one batch falls below its floor. What is wrong?
#    <details><summary>Answer:</summary> The model sees the words that it should predict, or the loss is computed
#    wrongly.</details>
# 6. When is "the logits are the sum of what every part wrote" exact?
#    <details><summary>Answer:</summary> When the number by which the final norm divides is held fixed, and the biases
#    are added.</details>
#
# ## Exercises
#
# There are five tasks, with solutions and with checks that name your mistake: the norm, a formula for the number of
# parameters, the block, the whole decoder, and a lens that reads the stream halfway through. They take about an hour
# and a half: [exercises for 03](exercises/03_decoder_block.ipynb).
#
# ## References
#
# - [Ba et al. 2016](https://arxiv.org/abs/1607.06450), *Layer Normalization*, section 3
# - [Elhage et al. 2021](https://transformer-circuits.pub/2021/framework/index.html), *A Mathematical Framework for
#   Transformer Circuits*
# - [Glorot & Bengio 2010](https://proceedings.mlr.press/v9/glorot10a.html), *Understanding the Difficulty of Training
#   Deep Feedforward Neural Networks*
# - [Hendrycks & Gimpel 2016](https://arxiv.org/abs/1606.08415), *Gaussian Error Linear Units*
# - [nostalgebraist 2020](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens),
#   *Interpreting GPT: the Logit Lens*
# - [Press & Wolf 2017](https://arxiv.org/abs/1608.05859), *Using the Output Embedding to Improve Language Models*
# - [Radford et al. 2019](https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf),
#   *Language Models are Unsupervised Multitask Learners*, section 2.3
# - [Shazeer 2020](https://arxiv.org/abs/2002.05202), *GLU Variants Improve Transformer*
# - [Srivastava et al. 2014](https://jmlr.org/papers/v15/srivastava14a.html), *Dropout: A Simple Way to Prevent Neural
#   Networks from Overfitting*
# - [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), *Attention Is All You Need*, sections 3.1 and 3.3
# - [Xiong et al. 2020](https://arxiv.org/abs/2002.04745), *On Layer Normalization in the Transformer Architecture*
# - [Zhang & Sennrich 2019](https://arxiv.org/abs/1910.07467), *Root Mean Square Layer Normalization*
