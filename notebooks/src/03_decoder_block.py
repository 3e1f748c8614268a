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
# **Promise.** You will put a whole decoder together from its parts, check it against PyTorch and against the loss that
# it must have before and after it learns one batch by heart. At the end you will take a prediction apart: so much of it
# came from the word, so much from attention, so much from each feed-forward layer, and the sum is exact.
#
# **Prerequisites.** [01 · Embeddings](01_embeddings.ipynb) and [02 · Attention](02_attention.ipynb).
#
# **Running time.** About one minute on two cores.

# %% tags=["parameters"]
CORPUS = "bundled"  # or "tinystories" (from the Hugging Face Hub), or the path of a file,
# or of a folder with train.* and validation.*

# %% tags=["setup"]
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/lohar-animesh-27112001/ELL881-advance_LLM-assignment"

if "google.colab" in sys.modules:
    if not Path("/content/course").exists():
        subprocess.run(
            ["git", "clone", "--quiet", "--depth=1", REPOSITORY, "/content/course"], check=True
        )
    if not Path("/content/course/notebooks/colab.py").is_file():
        raise RuntimeError(
            f"{REPOSITORY} does not hold this course: put the right address into this cell"
        )
    # Adds what is missing.
    subprocess.run([sys.executable, "/content/course/notebooks/colab.py"], check=True)
here = Path("/content/course") if "google.colab" in sys.modules else Path.cwd().resolve()
ROOT = next((folder for folder in (here, *here.parents) if (folder / "helpers").is_dir()), None)
if ROOT is None:
    raise RuntimeError(
        "open this notebook inside the repository: no folder `helpers` above the working folder"
    )
sys.path.insert(0, str(ROOT))
os.chdir(ROOT / "notebooks")

# %%
import copy
import math
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from helpers import plots
from helpers.loss import loss_sum
from helpers.model import Decoder, DecoderBlock, FeedForward, LayerNorm, ModelConfig
from helpers.notebook import FigureFolder, show_source, table
from helpers.stories import load_stories
from helpers.tokenizer import WordTokenizer
from helpers.training import encode_stories

figures = FigureFolder(CORPUS)
stories = load_stories(CORPUS)
tokenizer = WordTokenizer.train(stories.train)
V = len(tokenizer)
print(f"{len(stories.train):,} stories, a vocabulary of {V:,} tokens")

# %% [markdown]
# ## The whole on one page
#
# Each token has a vector, its **residual stream**. The word and its position write it first. Then every part of every
# block does the same three things: it *reads* a normed copy of the stream, *computes*, and *adds* its result. Nothing
# is ever overwritten.
#
# ```
# words + positions ──┬────────────────────(+)──┬────────────────────────(+)── … ── norm ── output ── logits
#                     └─ norm ─ attention ──┘   └── norm ─ feed-forward ──┘
#                     ╰╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ one block ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╯
# ```
#
# Only attention looks at other tokens; it was the subject of [02 · Attention](02_attention.ipynb). This notebook builds
# the rest, puts it together, and checks it.

# %% [markdown]
# ## Why 300 becomes 296
#
# Our word vectors have 300 numbers, as fastText's usually do, and the model has 8 heads. Each head gets an equal share
# of the width. Ask for a model 300 wide:

# %%
try:
    ModelConfig(d_model=300)
except ValueError as error:
    print(error)
else:
    raise AssertionError(
        "300 numbers cannot be shared equally among 8 heads: this should have been refused"
    )

# %% [markdown]
# So the blocks are 296 wide, and one linear layer, the *projection*, takes each word vector from 300 numbers to 296.
# What does it cost?

# %%
assignment = Decoder(ModelConfig())
config = assignment.config
price = sum(p.numel() for p in assignment.projection.parameters())
share = price / assignment.num_parameters()

assert config.d_model == 296 == 8 * 37
assert price == 300 * 296 + 296
width = config.d_model // config.num_heads
print(f"{config.d_model} = {config.num_heads} heads × {width} numbers")
print(f"the projection: {price:,} parameters, {share:.1%} of the model")

# %% [markdown]
# <details><summary>Could we have kept 300?</summary>
#
# With 6 or 10 heads, yes: both divide 300. With 8 heads the nearest widths are 296 and 304, and both need the
# projection. A projection also lets the width of the model and that of the word vectors be chosen apart, whatever the
# heads.
# </details>

# %% [markdown]
# ## LayerNorm by hand
#
# A stream to which everything is added changes its size all the time. The parts should not have to care. So each part
# reads a copy with a fixed scale: subtract the mean of the token's numbers, divide by their standard deviation, and let
# the model choose a gain $g$ and a bias $b$ for each of the $D$ numbers (Ba et al. 2016, section 3 [@ba2016layer]):
#
# $$\operatorname{norm}(x)_i = g_i\,\frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}} + b_i, \qquad
# \mu = \frac{1}{D}\sum_j x_j, \qquad \sigma^2 = \frac{1}{D}\sum_j (x_j - \mu)^2$$
#
# First one vector, by a loop.


# %%
def norm_by_loop(x, gain, bias, eps=1e-5):
    """One token's vector, a list of D numbers."""
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return [
        g * (value - mean) / math.sqrt(variance + eps) + b
        for value, g, b in zip(x, gain, bias, strict=True)
    ]


x = [2.0, 4.0, 6.0, 0.0]
y = norm_by_loop(x, gain=[1.0] * 4, bias=[0.0] * 4)
print(
    [round(value, 2) for value in y],
    "mean",
    round(sum(y) / 4, 4),
    "variance",
    round(sum(v * v for v in y) / 4, 4),
)

# %% [markdown]
# Then a batch, without a loop. Mean and variance are taken over the last axis only, so that no token sees another, and
# no story sees another. (Batch normalisation would mix them.)

# %%
torch.manual_seed(0)
batch = 5 * torch.randn(2, 3, 8) + 2  # (B, T, D)
gain, bias = torch.randn(8), torch.randn(8)  # (D,), (D,)

mean = batch.mean(-1, keepdim=True)  # (B, T, 1)
variance = (batch - mean).square().mean(-1, keepdim=True)  # (B, T, 1)
normed = gain * (batch - mean) / torch.sqrt(variance + 1e-5) + bias  # (B, T, D)

# %% [markdown]
# The course's own class does just this.

# %%
show_source(LayerNorm)

# %% [markdown]
# Four versions, one answer: the loop, the batch, our class, and PyTorch's class as the judge.


# %%
def error(ours, reference):
    """The largest difference, relative to the largest value."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


ours, judge = LayerNorm(8), nn.LayerNorm(8)
ours.load_state_dict({"gain": gain, "bias": bias})
judge.load_state_dict({"weight": gain, "bias": bias})
by_loop = torch.tensor(
    [
        [norm_by_loop(token, gain.tolist(), bias.tolist()) for token in story]
        for story in batch.tolist()
    ]
)

errors = {
    name: error(value, judge(batch))
    for name, value in {"loop": by_loop, "batch": normed, "class": ours(batch)}.items()
}
assert max(errors.values()) < 1e-6, f"not the judge's LayerNorm: {errors}"
print("within 1e-6 of torch.nn.LayerNorm:", *errors)

# %% [markdown]
# <details><summary>A trap: which variance?</summary>
#
# `Tensor.var` divides by $D - 1$ unless told otherwise; LayerNorm divides by $D$. With 8 numbers the difference is 7 %.
# With 296 it is so small that the model would train as well, and differ from everybody else's.
# </details>
#
# **Predict.** Multiply the input by 3 and add 7. What happens to the output?

# %%
change = error(ours(3 * batch + 7), ours(batch))
length = LayerNorm(296)(torch.randn(4, 296)).norm(dim=-1)  # (4,)

assert change < 1e-4, "scale or shift went through the norm"
assert torch.allclose(length, torch.full((4,), 296**0.5), rtol=1e-4)
print("scale and shift of the input change the output by less than 0.01 %:", change < 1e-4)
print(f"length of any vector of 296 numbers after the norm: √296 = {length.mean():.1f}")

# %% [markdown]
# Nothing. What is left of a vector is its direction, at the length $\sqrt{D}$; how long it was is forgotten. ("Almost
# nothing": $\varepsilon$, which prevents a division by zero, is not scaled with the rest.)

# %% [markdown]
# ## GELU, and the feed-forward part
#
# Between two linear layers there must be something that is not linear, or the two would be one. ReLU keeps a number or
# drops it. GELU weighs it by the probability that a standard normal number is smaller (Hendrycks & Gimpel 2016, section
# 2 [@hendrycks2016gaussian]):
#
# $$\operatorname{GELU}(x) = x\,\Phi(x), \qquad \Phi(x) = \tfrac{1}{2}\left(1 + \operatorname{erf}\tfrac{x}{\sqrt 2}\right)$$


# %%
def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


x = torch.linspace(-4, 4, 801, requires_grad=True)  # (801,)
y = gelu(x)  # (801,)
(slope,) = torch.autograd.grad(y.sum(), x)  # (801,)

assert error(y, F.gelu(x)) < 1e-6, "this is not PyTorch's GELU"
lowest = y.argmin().item()
print(f"equal to F.gelu within 1e-6; lowest point {y[lowest]:.2f}, at x = {x[lowest]:.2f}")

# %%
figure, (left, right) = plots.subplots(1, 2, size=(8.6, 3.6))
at = x.detach()
for panel, smooth, sharp in ((left, y.detach(), at.relu()), (right, slope, (at > 0).float())):
    panel.plot(at, smooth, color=plots.COLORS[0], label="GELU")
    panel.plot(at, sharp, color=plots.COLORS[1], linestyle="--", label="ReLU")
    panel.set_xlabel("input x (no unit)")
left.set(ylabel="output (no unit)")
right.set(ylabel="slope: output per input")
left.set_title("GELU: ReLU with a soft corner,")
right.set_title("and its slope does not jump")
left.legend()
figures.save_figure(
    figure,
    "03_gelu",
    alt="GELU beside ReLU, and their slopes: GELU bends smoothly and dips slightly below zero.",
)

# %% [markdown]
# Left: the two functions; right: their slopes, by which every gradient through this place is multiplied. For slightly
# negative inputs ReLU's slope is exactly zero, so nothing can be learned there; GELU's is not. The curves do not show
# that one trains better than the other. That would be an experiment; we take GELU because the GPT family does.
#
# The feed-forward part widens each token's vector (296 → 1,024), applies GELU, and narrows it again. The original used
# ReLU here (Vaswani et al. 2017, section 3.3 [@vaswani2017attention]).

# %%
show_source(FeedForward)

# %% [markdown]
# It treats each token by itself: attention moves information *between* tokens, feed-forward works on it *within* one.
# Feed it token by token, and nothing changes.

# %%
small = ModelConfig(vocab_size=50, embedding_dim=20, d_model=24, num_heads=4, d_ff=48)
feed_forward = FeedForward(small)
tokens = torch.randn(1, 6, 24)  # (B, T, D)
one_by_one = torch.cat([feed_forward(tokens[:, t : t + 1]) for t in range(6)], dim=1)  # (B, T, D)

assert error(one_by_one, feed_forward(tokens)) < 1e-6, "a token has looked at another one"
print("six tokens one by one = six tokens at once")

# %% [markdown]
# ## The block, step by step
#
# Now all parts are there. Take six tokens, 24 numbers each, and a block whose every parameter is random, gains and
# biases too, so that none hides behind a one or a zero.

# %%
torch.manual_seed(1)
block = DecoderBlock(small)
for parameter in block.parameters():
    nn.init.normal_(parameter, std=0.3)
x = torch.randn(2, 6, 24)  # (B, T, D)
mask = torch.full((6, 6), float("-inf")).triu(1)  # (T, T): 0 for the past, -inf for the future

# %% [markdown]
# Read a normed copy; mix it with the past; add.

# %%
copy_1 = block.attention_norm(x)  # (B, T, D)
mixed, weights = block.attention(copy_1, mask)  # (B, T, D), (B, H, T, T)
after_attention = x + mixed  # (B, T, D)

# %% [markdown]
# Read a normed copy of *that*; think about it; add.

# %%
copy_2 = block.feed_forward_norm(after_attention)  # (B, T, D)
by_hand = after_attention + block.feed_forward(copy_2)  # (B, T, D)

assert error(by_hand, block(x, mask)[0]) < 1e-6, "DecoderBlock does something else"
show_source(DecoderBlock)

# %% [markdown]
# The judge is PyTorch's ready-made layer. It is called *encoder* layer, but with a causal mask, and without attention
# to a second text, it is the block of a decoder-only model. Our weights go in under its names.

# %%
JUDGES = {
    "attention.qkv.weight": "self_attn.in_proj_weight",
    "attention.qkv.bias": "self_attn.in_proj_bias",
    "attention.output": "self_attn.out_proj",
    "attention_norm.gain": "norm1.weight",
    "attention_norm.bias": "norm1.bias",
    "feed_forward_norm.gain": "norm2.weight",
    "feed_forward_norm.bias": "norm2.bias",
    "feed_forward.expand": "linear1",
    "feed_forward.contract": "linear2",
}


def judges_name(name):
    ours = next(prefix for prefix in JUDGES if name.startswith(prefix))
    return name.replace(ours, JUDGES[ours])


# %%
def judge_of(block, norm_first=True):
    """PyTorch's layer with the weights of `block`."""
    layer = nn.TransformerEncoderLayer(
        24,
        4,
        dim_feedforward=48,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=norm_first,
    )
    layer.load_state_dict({judges_name(name): value for name, value in block.state_dict().items()})
    return layer


assert error(by_hand, judge_of(block)(x, src_mask=mask)) < 1e-6, (
    "PyTorch's layer gives something else"
)
print("by hand = DecoderBlock = torch.nn.TransformerEncoderLayer, within 1e-6")

# %% [markdown]
# ## The residual stream
#
# `stream = stream + part(norm(stream))`, six times over in our three blocks. So at any time the stream is the sum of
# what was written so far. This function walks through a model and keeps each part's writing apart:


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
# Try it on an untrained model that is as wide and as deep as the assignment's, with the vocabulary of this corpus, and
# on a little story of our own.

# %%
STORY = (
    "Once upon a time, there was a little girl named Mia. Mia had a red ball. Tom had a blue "
    "kite. One day, Mia lost the red ball. She was sad. Tom looked under the tree and found the "
    "red ball. Mia was very happy."
)
ids = torch.tensor([[tokenizer.sos_id, *tokenizer.encode(STORY)]])  # (1, T)
torch.manual_seed(0)
untrained = Decoder(ModelConfig(vocab_size=V)).eval()

with torch.no_grad():
    parts = writes(untrained, ids)
    same = error(untrained.norm(sum(parts.values())), untrained.hidden(ids)[0])
assert same < 1e-5, "the sum of the parts is not the stream"
print(f"{len(parts)} parts write into the stream of each of {ids.shape[1]} tokens")

# %%
# Length of the stream after each write.
stream = torch.stack(list(parts.values())).cumsum(0).norm(dim=-1)[:, 0]  # (parts, T)
sizes = torch.stack(list(parts.values())).norm(dim=-1)[:, 0]  # (parts, T): the length of each write

figure, axes = plots.subplots(size=(7.5, 4.0))
places = np.arange(len(parts))
axes.bar(
    places,
    sizes.mean(1),
    color=plots.COLORS[9],
    width=0.6,
    label="what the part writes (mean of the tokens)",
)
axes.plot(
    places,
    stream.mean(1),
    color=plots.COLORS[0],
    marker="o",
    label="the stream after it (mean of the tokens)",
)
axes.fill_between(
    places,
    stream.amin(1),
    stream.amax(1),
    color=plots.COLORS[0],
    alpha=0.2,
    label="from the shortest to the longest",
)
axes.set_xticks(places, [name.replace(" ", "\n") for name in parts])
axes.set(
    xlabel="part, in the order of writing", ylabel="length of the vector (no unit)", ylim=(0, None)
)
axes.set_title("Each write makes the stream longer (untrained model)")
axes.legend(loc="upper left")
figures.save_figure(
    figure,
    "03_stream",
    alt="Length of the residual stream after each part of three blocks: it grows with every write.",
)

# %%
assert (stream.mean(1).diff() > 0).all(), "a write made the stream shorter"
pythagoras = sizes.square().sum(0).sqrt() / stream[-1]  # (T,)
print(
    f"from {stream[0].mean():.0f} to {stream[-1].mean():.0f}: the sum of all lengths would be "
    f"{sizes.sum(0).mean():.0f}"
)
print(f"√(sum of squared lengths) / length of the sum: {pythagoras.mean():.1f}")

# %% [markdown]
# A bar is the length of one part's writing, a point the length of the stream after it. The lengths do not add up as
# numbers do: random vectors with hundreds of entries are nearly perpendicular, so their *squares* add up, as Pythagoras
# says. The figure shows lengths, not meaning; and it is an untrained model, in which the positions are still louder
# than the words.

# %% [markdown]
# ## Before or after? Where the norm goes
#
# The original transformer is **post-norm**: `norm(x + f(x))` (Vaswani et al. 2017, section 3.1
# [@vaswani2017attention]). Ours is **pre-norm**: `x + f(norm(x))`, as in most later models.
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
# In post-norm every norm stands *in* the stream, and everything written before is rescaled by it. In pre-norm the norms
# stand beside it, and the stream runs through from the first word to the last layer. The same parts, in another order:


# %%
class PostNormBlock(DecoderBlock):
    """norm(x + f(x)), from the same parts."""

    def forward(self, x, mask, remember=None):
        mixed, weights = self.attention(x, mask, remember)  # (B, T, D), (B, H, T, T)
        x = self.attention_norm(x + mixed)  # (B, T, D)
        return self.feed_forward_norm(x + self.feed_forward(x)), weights  # (B, T, D)


post = PostNormBlock(small)
post.load_state_dict(block.state_dict())
assert error(post(x, mask)[0], judge_of(block, norm_first=False)(x, src_mask=mask)) < 1e-6
print("PostNormBlock = torch.nn.TransformerEncoderLayer(norm_first=False), within 1e-6")

# %% [markdown]
# Xiong et al. 2020, section 3 [@xiong2020layer], compared the gradients of the two *before the first step of training*.
# We do the same with narrow stacks (64 numbers per token) of 3 to 24 blocks. One seed gives both kinds the same
# weights.

# %%
KINDS = {"pre-norm": DecoderBlock, "post-norm": PostNormBlock}
eight = encode_stories(tokenizer, stories.train[:8], 64).long()  # (8, 64)


def stack(kind, depth, seed):
    torch.manual_seed(seed)
    config = ModelConfig(vocab_size=V, d_model=64, d_ff=256, num_layers=depth)
    model = Decoder(config)
    model.blocks = nn.ModuleList(KINDS[kind](config) for _ in range(depth))
    model.initialize()
    if kind == "post-norm":
        model.norm = nn.Identity()  # its stream leaves the last block normed
    return model


# %%
def mean_loss(model, ids):
    total, count = loss_sum(model, ids, tokenizer.pad_id)
    return total / count


def gradients(kind, depth, seed):
    """The length of the loss' gradient at each block's last matrix, (L,)."""
    model = stack(kind, depth, seed)
    mean_loss(model, eight).backward()
    return torch.stack([block.feed_forward.contract.weight.grad.norm() for block in model.blocks])


DEPTHS = (3, 6, 12, 24)
measured = {
    (kind, depth): torch.stack([gradients(kind, depth, seed) for seed in range(5)]).mean(0)  # (L,)
    for kind in KINDS
    for depth in DEPTHS
}

# %% [markdown]
# A large gradient in the last blocks is not a good sign here: the first steps then throw those blocks far.
#
# **Predict.** In which kind does the *last* block get the larger gradient? And what happens to it when the stack gets
# deeper?

# %%
figure, (left, right) = plots.subplots(1, 2, size=(9.0, 3.8))
for (kind, color), line in zip(zip(KINDS, plots.COLORS, strict=False), plots.LINES, strict=False):
    style = {"color": color, "linestyle": line, "marker": "o", "label": kind}
    left.plot(range(1, 13), measured[kind, 12], **style)
    right.plot(DEPTHS, [measured[kind, depth][-1] for depth in DEPTHS], **style)
guide = [measured["pre-norm", 3][-1] * (3 / depth) ** 0.5 for depth in DEPTHS]
right.plot(DEPTHS, guide, color=plots.GREY, linestyle=":", label="1 / √depth")
left.set(
    xlabel="block, of 12",
    ylabel="length of the gradient (nats per unit)",
    ylim=(0, None),
    xticks=range(1, 13),
)
right.set(
    xlabel="blocks in the stack", xscale="log", ylabel="gradient of the last block", ylim=(0, None)
)
right.set_xticks(DEPTHS, DEPTHS)
right.minorticks_off()
left.set_title("Pre-norm: later blocks get less")
right.set_title("… the less, the deeper the stack")
left.set_ylim(0, 1.3 * left.get_ylim()[1])
left.legend(loc="upper right")
right.legend()
figures.save_figure(
    figure,
    "03_gradients",
    alt=(
        "Gradient of each of 12 blocks before training, and of the last block for 3 to 24 "
        "blocks: post-norm level, pre-norm falling."
    ),
)

# %%
first_to_last = {kind: (measured[kind, 12][0] / measured[kind, 12][-1]).item() for kind in KINDS}
shrinks = {kind: (measured[kind, 3][-1] / measured[kind, 24][-1]).item() for kind in KINDS}

assert first_to_last["pre-norm"] > 2, "pre-norm's later blocks no longer get less"
assert shrinks["pre-norm"] > 2, "pre-norm: the last block does not get less in a deeper stack"
assert 0.67 < shrinks["post-norm"] < 1.5, "post-norm: the last gradient depends on the depth"
rows = [[kind, f"{first_to_last[kind]:.1f}", f"{shrinks[kind]:.1f}"] for kind in KINDS]
table(rows, ["", "12 blocks: first / last gradient", "last gradient: 3 blocks / 24 blocks"])

# %% [markdown]
# A point is the length of the loss' gradient at one block's last matrix, the mean of five random starts. In post-norm
# the last block's gradient hardly depends on the depth. In pre-norm it falls about as $1/\sqrt{L}$ (grey). That is
# theorem 1 of Xiong et al.: a deep post-norm stack starts with large gradients in its last blocks; this, they argue, is
# why it needs a learning rate that warms up slowly. The figure shows the moment before the first step, and nothing of
# what follows. Does it matter?
#
# **Predict.** The same data, the same learning rate (0.002, no warm-up). Three blocks and twelve, pre-norm and
# post-norm: which of the four learn?


# %%
def first_steps(model, steps=80, batch_size=8, learning_rate=2e-3):
    """The loss of each of the first steps of training."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    losses = []
    for step in range(steps):
        rows = torch.arange(step * batch_size, (step + 1) * batch_size) % len(some)  # (B,)
        loss = mean_loss(model, some[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


some = encode_stories(tokenizer, stories.train[:640], 64).long()  # (N, 64)
runs = {
    (kind, depth): first_steps(stack(kind, depth, seed=1)) for depth in (3, 12) for kind in KINDS
}

# %%
counts = torch.bincount(some[:, 1:].flatten(), minlength=V).double()  # (V,)
counts[tokenizer.pad_id] = 0
frequency = counts[counts > 0] / counts.sum()  # (words that occur,)
unigram = -(frequency * frequency.log()).sum().item()


def smooth(losses, width=10):
    return np.convolve(losses, np.ones(width) / width, mode="valid")  # (steps - width + 1,)


curves = {
    f"{kind}, {depth} blocks": (np.arange(10, 81), smooth(run))
    for (kind, depth), run in runs.items()
}
figures.save_figure(
    plots.compare_curves(
        curves,
        landmarks={"word counts alone": unigram},
        y_label="training loss (nats per token, mean of 10 steps)",
        title="Twelve post-norm blocks get stuck; three do not",
    ),
    "03_first_steps",
    alt=(
        "Training loss of four stacks over 80 steps: three fall, the post-norm stack of 12 "
        "blocks stays at the level of word counts."
    ),
)

# %%
end = {key: float(np.mean(losses[-10:])) for key, losses in runs.items()}
assert abs(end["post-norm", 3] - end["pre-norm", 3]) < 0.3, "three blocks: the two kinds differ"
assert end["post-norm", 12] > end["pre-norm", 12] + 0.5, (
    "twelve blocks: post-norm learns as well as pre-norm"
)
print("3 blocks: the two kinds end within 0.3 nats of each other")
print("12 blocks: pre-norm ends more than 0.5 nats below post-norm")

# %% [markdown]
# The grey line is the best loss of a model that knows only how frequent each word is. The deep post-norm stack comes
# down to it and goes no further. With **three** blocks, our depth, the two kinds learn alike: we could have taken
# either. The figure does not show that post-norm is worse once it trains. With a lower learning rate twelve blocks of
# it do learn (the second experiment under *Try it*). It is easier to get wrong.
#
# What does pre-norm cost? Nothing in it holds the stream back.


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


lengths = {kind: stream_lengths(stack(kind, 12, seed=0), eight) for kind in KINDS}
rows = [
    [kind, *(f"{values[block - 1]:.1f}" for block in (1, 4, 8, 12))]
    for kind, values in lengths.items()
]
table(rows, ["length of the stream / √D", "after block 1", "4", "8", "12"])

# %%
deep = stack("pre-norm", 12, seed=0)
with torch.no_grad():
    logits = deep(eight)  # (B, T, V)
    deep.norm = nn.Identity()
    louder = (deep(eight).std() / logits.std()).item()

assert lengths["pre-norm"][-1] > 2 * lengths["pre-norm"][0], "the pre-norm stream does not grow"
assert louder > 2, "the final norm makes no difference"
print(
    f"without a final norm the first logits of 12 pre-norm blocks are {louder:.1f} times as large"
)

# %% [markdown]
# The stream of post-norm has the length $\sqrt{D}$ after every block. That of pre-norm grows, so later blocks, whose
# writing is no longer, change less and less of it; and the last one must be followed by a **final norm**, or the logits
# would grow with the depth.

# %% [markdown]
# ## 8,940,768 parameters, row by row
#
# The model of the assignment has a table of its sizes. Ours is computed from the modules themselves. (`ModelConfig()`
# always is the assignment's model, with its 10,000 words, whatever the corpus.)


# %%
def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


block = assignment.blocks[0]
norms = (block.attention_norm, block.feed_forward_norm)
rows_of_table = [
    ["embedding", "10000 × 300", count(assignment.embedding), 3_000_000],
    ["projection", "300 × 296 + 296", count(assignment.projection), 89_096],
    ["input", "3000000 + 89096", count(assignment.embedding, assignment.projection), 3_089_096],
    ["queries, keys, values", "3 × (296 × 296 + 296)", count(block.attention.qkv), 263_736],
    ["attention's output", "296 × 296 + 296", count(block.attention.output), 87_912],
    ["attention", "263736 + 87912", count(block.attention), 351_648],
    ["expand", "296 × 1024 + 1024", count(block.feed_forward.expand), 304_128],
    ["contract", "1024 × 296 + 296", count(block.feed_forward.contract), 303_400],
    ["feed-forward", "304128 + 303400", count(block.feed_forward), 607_528],
    ["two norms", "2 × (296 + 296)", count(*norms), 1_184],
    ["one block", "351648 + 607528 + 1184", count(block), 960_360],
    ["three blocks", "3 × 960360", count(assignment.blocks), 2_881_080],
    ["final norm", "296 + 296", count(assignment.norm), 592],
    ["output", "296 × 10000 + 10000", count(assignment.output), 2_970_000],
    [
        "output, with its norm",
        "592 + 2970000",
        count(assignment.norm, assignment.output),
        2_970_592,
    ],
    ["the whole model", "3089096 + 2881080 + 2970592", count(assignment), 8_940_768],
]

# %%
for part, formula, ours, expected in rows_of_table:
    assert ours == expected == eval(formula.replace("×", "*")), (
        f"{part}: {ours:,} parameters, the table says {expected:,}"
    )
assert assignment.num_parameters() == rows_of_table[-1][2], (
    "a part of the model is missing in the table"
)
table(
    [[part, formula, ours] for part, formula, ours, _ in rows_of_table],
    ["part", "formula", "parameters"],
)

# %%
vocabulary = count(assignment.embedding, assignment.output) / count(assignment)
print(f"in the two tables of words, at the entrance and at the exit: {vocabulary:.0%}")
print(f"in attention: {3 * count(block.attention) / count(assignment):.0%}")

# %% [markdown]
# What surprised us: attention, the famous part, is a small share. Two thirds of the model are its vocabulary, read once
# on the way in and once on the way out. And the number of heads does not occur in any formula.

# %% [markdown]
# ## The loss before training
#
# An untrained model knows nothing, so each of the $V$ tokens should get the probability $1/V$, and the loss should be
# $-\ln \frac{1}{V} = \ln V$.
#
# **Predict.** Is it exactly $\ln V$, a little less, or a little more?

# %%
batch = encode_stories(tokenizer, stories.train[:16], 64).long()  # (16, 64)


@torch.no_grad()
def initial_loss(seed):
    torch.manual_seed(seed)
    return mean_loss(Decoder(ModelConfig(vocab_size=V)), batch).item()


starts = [initial_loss(seed) for seed in range(10)]
initial = sum(starts) / len(starts)
print(
    f"ln V = ln {V:,} = {math.log(V):.2f} nats; measured, mean of {len(starts)} random starts: "
    f"{initial:.2f} nats"
)

# %% [markdown]
# A little more. The logits are not all equal: they scatter at random, and a random opinion costs. We can say how much.
# After the final norm each token's $D$ numbers have variance 1. Xavier's rule draws the output's weights with variance
# $\frac{2}{D+V}$ (Glorot & Bengio 2010, equation 16 [@glorot2010understanding]), so a logit has the variance $s^2 =
# \frac{2D}{D+V}$. The mean of $e^z$ over normal $z$ is $e^{s^2/2}$, which makes the expected loss
#
# $$\ln V + \frac{s^2}{2} = \ln V + \frac{D}{D+V}$$

# %%
D = config.d_model
expected = math.log(V) + D / (D + V)
print(
    f"predicted: {expected:.2f} nats; for the assignment's 10,000 words: "
    f"{math.log(10_000) + D / (D + 10_000):.2f}"
)

assert abs(initial - expected) < 0.1, "the initial loss is not that of a model that knows nothing"
assert all(abs(start - expected) < 0.3 for start in starts), (
    "one of the random starts is far from what it must be"
)
print("measured and predicted agree within 0.1 nats:", abs(initial - expected) < 0.1)

# %% [markdown]
# A single start scatters around this value, because the few frequent words of the text happen to have logits a little
# above or below the mean. A first loss that is far away means a bug. A missing final norm, or weights drawn too large,
# show here, before a minute of training is spent.

# %% [markdown]
# ## One batch by heart
#
# The second check: can the model learn *one* batch by heart? Eight stories, always the same, and a plain loop. If the
# loss does not go to almost nothing, a gradient does not flow, or something is not connected. One of the eight is our
# own little story, the other seven come from the corpus.
#
# **Predict.** Almost nothing: but is it zero? What can a model not know, even if it knows all eight stories by heart?

# %%
batch = encode_stories(tokenizer, [STORY, *stories.train[:7]], 64).long()  # (8, 64)


def learn_by_heart(model, steps=100):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = mean_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# A model less wide than the assignment's is enough, and quicker.

# %%
narrow = ModelConfig(vocab_size=V, d_model=128, d_ff=512)
torch.manual_seed(0)
model = Decoder(narrow)
honest = learn_by_heart(model)

# %% [markdown]
# What it cannot know is *which* of the eight stories it is in. All begin with `<sos>`, and the first word must be a
# guess; perhaps the second, too. We can count what this costs: after each beginning, how often does which token follow,
# among the eight stories? The mean of $-\ln p$ of these frequencies is the **floor** of this batch: no model that reads
# from left to right can have a lower loss on this batch.

# %%
begun, continued = Counter(), Counter()
for story in batch.tolist():
    story = story[: story.index(tokenizer.pad_id)] if tokenizer.pad_id in story else story
    for t in range(1, len(story)):
        begun[tuple(story[:t])] += 1
        continued[tuple(story[: t + 1])] += 1

targets = continued.total()
floor = (
    sum(times * math.log(begun[text[:-1]] / times) for text, times in continued.items()) / targets
)
print(
    f"the floor: {floor:.4f} nats per token; (8 ln 8) / {targets} tokens = "
    f"{8 * math.log(8) / targets:.4f}"
)

# %% [markdown]
# Of course: by its end, each of eight different stories has been singled out once, and to single out one of eight costs
# $\ln 8$, wherever the paths part.

# %%
assert floor <= honest[-1] < floor + 0.01, f"the batch was not learned: {honest[-1]:.3f} nats"
print(f"the loss is now within 0.01 nats of the floor: {honest[-1] < floor + 0.01}")

# %% [markdown]
# The floor does more. Suppose that a bug lets the model see the future: the mask is forgotten. The loss falls even
# better, and nobody complains. But it falls *through the floor*.

# %%
torch.manual_seed(0)
cheat = Decoder(narrow)
cheat.mask.zero_()  # every token may look at every other
cheating = learn_by_heart(cheat)

assert cheating[-1] < floor / 3, "without a mask the model should be better than any honest one"
print(f"without the mask the loss is less than a third of the floor: {cheating[-1] < floor / 3}")

# %%
figures.save_figure(
    plots.compare_curves(
        {"with the mask": (range(1, 101), honest), "mask forgotten": (range(1, 101), cheating)},
        landmarks={"ln V": math.log(V), "floor": floor},
        y_label="training loss (nats per token)",
        title="One batch by heart: an honest model lands on the floor",
        log_y=True,
    ),
    "03_one_batch",
    alt=(
        "Loss on one batch over 100 steps: the model with a mask levels off at the floor, the "
        "one without goes below it."
    ),
)

# %% [markdown]
# The axis is logarithmic. Both curves start near $\ln V$. The honest one levels off at the floor; the cheating one goes
# through it, because a token that sees the next one need not guess which story this is. The figure says nothing about
# new stories: learning eight stories by heart is the opposite of what training is for. It is a test of the machine, and
# finds most bugs in seconds.

# %% [markdown]
# ## Who wrote the prediction?
#
# The stream is a sum. The output layer is linear. Between the two is only the final norm, which is *not* linear: it
# divides by the standard deviation of the whole stream.
#
# **Predict.** Can a logit still be split exactly into what each part contributed?
#
# Yes: for each token, run the model, note the number by which the norm divides, and keep it fixed. What remains of the
# norm, subtracting a mean and multiplying by constants, is linear, so the logits are a sum over the parts $p$:
#
# $$\text{logits} = \sum_{p}\left(\frac{p - \operatorname{mean}(p)}{\sqrt{\sigma^2 + \varepsilon}} \odot g\right) W^\top +
# \underbrace{b_{\text{norm}} W^\top + b_{\text{output}}}_{\text{biases}}$$
#
# This is *direct logit attribution*; the stream as a sum of writings is the view of Elhage et al. 2021
# [@elhage2021mathematical].


# %%
@torch.no_grad()
def direct_logits(model, ids):
    """Each part's share of the logits, {part: (B, T, V)}; together they are the logits."""
    parts, weight = writes(model, ids), model.output.weight  # {part: (B, T, D)}, (V, D)
    # A constant from here on.
    variance = sum(parts.values()).var(-1, unbiased=False, keepdim=True)  # (B, T, 1)
    gain = model.norm.gain * torch.rsqrt(variance + model.norm.eps)  # (B, T, D)
    shares = {
        name: (part - part.mean(-1, keepdim=True)) * gain @ weight.T for name, part in parts.items()
    }
    constant = model.norm.bias @ weight.T + model.output.bias  # (V,)
    return shares | {"biases": constant.expand_as(shares["words"])}


# %% [markdown]
# In double precision, so that rounding cannot hide a mistake; for the model that has learned its batch, and for the
# untrained one.

# %%
worst = {}
for name, candidate in {"learned": model, "untrained": untrained}.items():
    exact = copy.deepcopy(candidate).double()  # float64
    with torch.no_grad():
        total = sum(direct_logits(exact, batch).values())  # (B, T, V)
        worst[name] = (total - exact(batch)).abs().max().item()

assert max(worst.values()) < 1e-9, f"the parts do not add up to the logits: {worst}"
print(f"{batch.numel()} tokens × {V:,} logits: sum of the parts = logits, within 1e-9:", *worst)

# %% [markdown]
# **The final logits are the exact sum of what every block wrote into the stream.** No approximation, for any weights.
#
# Now use it. Our story has *the* three times, followed by two different words. The same word goes in; something else in
# the stream must tell the model which word comes out.

# %%
names = [tokenizer.word(i) for i in batch[0].tolist()]
places = [t for t, name in enumerate(names) if name == "the"]
assert len(places) == 3, "this corpus lacks the words of our story: change STORY"
exact = copy.deepcopy(model).double()
with torch.no_grad():
    predicted = [tokenizer.word(i) for i in exact(batch)[0].argmax(-1).tolist()]  # (T,)

assert all(predicted[t] == names[t + 1] for t in places), "the story was not learned by heart"
table(
    [[" ".join(names[t - 2 : t + 1]), predicted[t]] for t in places],
    ["… what stands there", "predicted"],
)

# %% [markdown]
# Softmax does not notice when the same number is added to all logits. So a single logit means nothing; we count each
# part's share from the mean over the vocabulary. And to see what decides *between* two words, take the difference of
# their logits.

# %%
shares = torch.stack([share[0] for share in direct_logits(exact, batch).values()])  # (parts, T, V)
part_names = [*writes(exact, batch), "biases"]
shares = shares - shares.mean(-1, keepdim=True)  # (parts, T, V)
place = places[1]
first, second = batch[0, places[0] + 1].item(), batch[0, place + 1].item()

push = shares[:, place, second]  # (parts,)
between = (shares[..., second] - shares[..., first])[:, places[:2]]  # (parts, 2)

# %%
figure, (left, right) = plots.subplots(1, 2, size=(10.0, 4.6))
left.barh(range(len(push)), push, color=plots.COLORS[0])
left.set_title(f"“{tokenizer.word(second)}”: {part_names[push.argmax()]} pushed it most")
left.set_xlabel(f"share of its logit after “{names[place - 1]} the” (nats)")
for i, offset in enumerate((-0.2, 0.2)):
    label = f"after “{names[places[i] - 1]} the” (next: {names[places[i] + 1]})"
    color, hatch = plots.COLORS[1 - i], "//" if i == 0 else None
    right.barh(
        np.arange(len(push)) + offset,
        between[:, i],
        height=0.38,
        color=color,
        hatch=hatch,
        edgecolor="white",
        label=label,
    )
right.set_title("The same word read, two opposite answers")
right.set_xlabel(
    f"logit of “{tokenizer.word(second)}” minus logit of “{tokenizer.word(first)}” (nats)"
)
for panel in (left, right):
    panel.set_yticks(range(len(part_names)), part_names if panel is left else [])
    panel.invert_yaxis()
    panel.axvline(0, color=plots.GREY, linewidth=1)
    panel.grid(False, axis="y")
figure.legend(handles=right.get_legend_handles_labels()[0], loc="outside lower right")
figures.save_figure(
    figure,
    "03_attribution",
    alt=(
        "What each part adds to the logit of the predicted word, and to the difference between "
        "two words."
    ),
)

# %%
# All parts; attention and feed-forward only.
totals, inside = between.sum(0), between[2:-1].sum(0)  # (2,), (2,)
at_both = writes(exact, batch)["words"][0, places[:2]]  # (2, D)

assert torch.equal(at_both[0], at_both[1]), "the same word was written in two ways"
assert first == second or (totals[0] < 0 < totals[1] and inside[0] < 0 < inside[1]), (
    "attention and feed-forward did not decide"
)
print(
    f"the parts decide for “{tokenizer.word(first)}” in the first place, for "
    f"“{tokenizer.word(second)}” in the second"
)
print(
    "attention and feed-forward alone decide so, too; what the word writes is the same in both "
    "places"
)

# %% [markdown]
# Left: each bar is one part's share of the logit of the word that was predicted; all bars together are that logit,
# counted from the mean of all words. Right: the same for the difference between two words, in two places where the same
# word, *the*, is read. *Words* and *biases* point the same way in both places: *the* cannot know what comes next. What
# turns round is what attention and feed-forward wrote. And a feed-forward layer sees nothing but its own token, so it
# can only work on what attention has brought there, and on the position.
#
# What the figure does not show: indirect effects. What attention wrote early was *read* by every later part, and the
# bars do not trace that. And the model knows eight stories by heart; a bar here explains this prediction, not the
# language.

# %% [markdown]
# ## Recap
#
# - 300 numbers cannot be shared by 8 heads, 296 can; the projection between them costs one per cent of the parameters.
# - A block reads a normed copy of the stream and adds to it, twice: attention, then feed-forward. Equal to PyTorch's.
# - Pre-norm keeps deep stacks trainable and pays with a growing stream and a final norm. At three blocks either works.
# - Two numbers are known before any training: the first loss, $\ln V$ and a little, and the floor of one batch.
# - The logits are the exact sum of what every part wrote.
#
# Next: [04 · Training](04_training.ipynb).
#
# ## Try it
#
# 1. Build `Decoder(ModelConfig(num_heads=4))` and count. *Expect* 8,940,768 again: heads share the same matrices in another way.
# 2. Train twelve post-norm blocks more gently: `first_steps(stack("post-norm", 12, seed=1), steps=200, learning_rate=5e-4)`.
#    *Expect* a slow start, and then a loss well below the level of word counts, where it was stuck.
# 3. Silence a part: `silent = copy.deepcopy(exact)`, then `nn.init.zeros_(silent.blocks[0].attention.output.weight)`. How much does
#    the logit of the predicted word change? *Expect* another number than its bar: later parts read what it wrote.
#
# ## References
#
# - Vaswani et al. 2017, *Attention Is All You Need*, sections 3.1 and 3.3 [@vaswani2017attention]: the block, post-norm.
# - Ba, Kiros & Hinton 2016, *Layer Normalization*, section 3 [@ba2016layer].
# - Xiong et al. 2020, *On Layer Normalization in the Transformer Architecture*, section 3 [@xiong2020layer].
# - Hendrycks & Gimpel 2016, *Gaussian Error Linear Units*, section 2 [@hendrycks2016gaussian].
# - Glorot & Bengio 2010, *Understanding the difficulty of training deep feedforward neural networks*
#   [@glorot2010understanding]: the first weights.
# - Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits* [@elhage2021mathematical]: the residual stream.

# %%
figures.save_numbers(
    "03",
    {
        "parameters": {part: ours for part, _, ours, _ in rows_of_table},
        "projection_share": price / count(assignment),
        "vocabulary_share": vocabulary,
        "vocabulary_size": V,
        "gradients": {
            f"{kind}, {depth} blocks": values for (kind, depth), values in measured.items()
        },
        "first_steps_end": {
            f"{kind}, {depth} blocks": value for (kind, depth), value in end.items()
        },
        "unigram_loss": unigram,
        "stream_lengths": lengths,
        "stream_of_a_story": dict(zip(parts, stream.mean(1), strict=True)),
        "initial_loss": {"ln_V": math.log(V), "predicted": expected, "measured": initial},
        "one_batch": {"floor": floor, "with_mask": honest[-1], "mask_forgotten": cheating[-1]},
        "attribution": {
            "error": worst,
            "push": dict(zip(part_names, push, strict=True)),
            "places": between,
        },
    },
)
