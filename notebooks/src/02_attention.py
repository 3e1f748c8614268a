# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Attention
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/02_attention.ipynb)
#
# **Promise.** You will build attention, from a loop over words to the layer of our model, and check it against PyTorch.
# Then you will write a **head** by hand. A head is a part of that layer that looks for one thing; yours will be two
# matrices that make every word read the word before it, without any training.
#
# **You will be able to**
#
# - compute the attention of one word with pencil and paper, and of all words with two matrix products;
# - say why scores are divided by $\sqrt{d_k}$ and why the mask comes before the softmax, and show what goes wrong otherwise;
# - split a tensor into heads, and recognise the wrong `view` that raises no error;
# - write down the matrices of a head with a given job, and make two heads work together;
# - say what a picture of attention weights shows, and what it does not.
#
# **Prerequisites.** [01 · Embeddings](01_embeddings.ipynb), whose letters for sizes are used here.
#
# **Running time.** Less than half a minute on two cores.

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
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from helpers import attention_plots, plots
from helpers.explorers import AttentionExplorer
from helpers.heads import pattern_targets
from helpers.model import Decoder, ModelConfig, MultiHeadAttention, sinusoidal_positions
from helpers.notebook import FigureFolder, claim, show_source, table
from helpers.tokenizer import WordTokenizer

figures = FigureFolder(CORPUS)

# %% [markdown]
# ## One word asks
#
# In *Mia lost her red ball*, the word *ball* alone does not say what kind of ball it is, or whose. The other words do.
# Attention lets a word collect what it needs from the words before it, and from itself.
#
# Each word offers a **key**, which says what it is, and a **value**, which is what it gives away. The word that reads
# has a **query**, which says what it is looking for. Here are five words with tiny vectors that we made up. The two
# numbers of a key mean *is a person* and *describes a thing*. The two numbers of a value mean *Mia-ness* and *redness*.

# %%
words = ["mia", "lost", "her", "red", "ball"]
# Columns: person, describes a thing.
keys = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])  # (T, d)
# Columns: Mia-ness, redness.
values = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.8, 0.0], [0.0, 1.0], [0.0, 0.0]])  # (T, d)
query = torch.tensor([1.0, 2.0])  # (d,): "ball" looks for an owner, and even more for a description

# %% [markdown]
# There are three steps. **Score** each key by its dot product with the query (we explain the division by $\sqrt{d_k}$ soon; $d_k$ is
# the number of entries of a key, $d$ in our shapes). Turn the scores into **weights** that are positive and sum to 1, with the
# softmax. Take the weighted **mean** of the values.


# %%
def one_query(query, keys, values):
    """Attention of one word, by a loop over the words that it reads: scores, weights, mean."""
    scores = []
    for key in keys:
        dot = sum(float(a) * float(b) for a, b in zip(query, key, strict=True))
        scores.append(dot / math.sqrt(len(query)))
    total = sum(math.exp(score) for score in scores)
    weights = [math.exp(score) / total for score in scores]
    mixed = [
        sum(weight * float(value[i]) for weight, value in zip(weights, values, strict=True))
        for i in range(values.shape[1])
    ]
    return scores, weights, mixed


# %%
scores, weights, mixed = one_query(query, keys, values)
rows = [[words[i], f"{scores[i]:.2f}", f"{weights[i]:.2f}", *values[i].tolist()] for i in range(5)]
table(
    [*rows, ["sum, mean", "", f"{sum(weights):.2f}", *mixed]],
    ["word", "score", "weight", "Mia-ness", "redness"],
    caption=(
        "Attention by hand: the scores of one query, the weights that the softmax turns them into, "
        "and the values that are averaged with these weights."
    ),
)

# %% [markdown]
# *Red* gets the largest weight, because its key fits the query best. The last row is what *ball* receives: more redness than
# Mia-ness. No single word wins; each contributes according to its weight.
#
# ## All words ask at once
#
# Give every word a query and stack the queries as rows of a matrix $Q$. Stack keys and values as $K$ and $V$. Now one
# matrix product gives all the scores, and a second one gives all the means ([Vaswani et al.
# 2017](https://arxiv.org/abs/1706.03762), section 3.2.1):
#
# $$\operatorname{Attention}(Q, K, V) = \operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right)V$$
#
# Row $t$ of the weights belongs to the word that reads, column $s$ to the word that is read. ($V$ is a matrix here, as in the
# paper, and not the size of the vocabulary. Below, we make up a query for every word; the last is that of *ball*.)

# %%
queries = torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 0.0], [1.0, 0.0], [1.0, 2.0]])  # (T, d)
scores = queries @ keys.T / keys.shape[-1] ** 0.5  # (T, T)
weights = scores.softmax(dim=-1)  # (T, T), each row sums to 1
mixed = weights @ values  # (T, d)

# %%
by_loop = torch.tensor([one_query(query, keys, values)[2] for query in queries])  # (T, d)
difference = (mixed - by_loop).abs().max().item()
claim(f"loop and matrix form differ by ≈{difference:.0e}, less than 1e-6", difference < 1e-6)

# %% [markdown]
# The numbers are the same, without a loop. (Here every word still reads every other; the mask follows below.) In a model nobody
# writes queries, keys and values by hand. They are three linear maps of the same word vectors $X$, one row per word:
# $Q = XW_Q$, $K = XW_K$, $V = XW_V$. Training finds the three matrices.
#
# ## Why divide by √dₖ?
#
# A dot product adds $d_k$ products. If the numbers are independent, with mean 0 and variance 1, each product has variance
# 1 too, and variances add: the sum has variance $d_k$. So the more entries a query and a key have, the larger their
# scores. Let us measure this with random queries and keys.


# %%
def random_scores(d, count=2000, keys=10):
    """Dot products of `count` random queries with 10 random keys each, (count, keys)."""
    generator = torch.Generator().manual_seed(d)
    query = torch.randn(count, 1, d, generator=generator, dtype=torch.float64)  # (N, 1, d)
    key = torch.randn(count, keys, d, generator=generator, dtype=torch.float64)  # (N, 10, d)
    return (query * key).sum(-1)  # (N, 10)


# %%
widths = [1, 4, 16, 64, 256, 1024]
dots = {d: random_scores(d) for d in widths}
variance = {d: dots[d].var().item() for d in widths}
table(
    [[d, f"{variance[d]:,.0f}", f"{variance[d] / d:.2f}"] for d in widths],
    ["dₖ", "variance of q · k", "divided by dₖ"],
    caption=(
        "The variance of a score grows with the width of the key. Both columns are measured "
        "on random vectors."
    ),
)

# %%
worst = max(abs(variance[d] / d - 1) for d in widths)
claim(f"the variance is dₖ, within {worst:.0%}", worst < 0.1)

# %% [markdown]
# So the standard deviation of a score is $\sqrt{d_k}$, and dividing by it brings the scores back to size 1, for every $d_k$.
#
# **Predict.** Leave the division out. There are ten keys, all random, none better than another. What happens to the largest of the ten
# weights as $d_k$ grows: does it shrink, stay near 1/10, or grow?

# %%
largest = {
    "scores as they are": [dots[d].softmax(-1).amax(-1).mean().item() for d in widths],
    "scores divided by √dₖ": [
        (dots[d] / d**0.5).softmax(-1).amax(-1).mean().item() for d in widths
    ],
}

# %% cellView="form" tags=["hide-input"]
figure = plots.compare_curves(
    {label: (widths, y) for label, y in largest.items()},
    landmarks={"uniform": 1 / 10},
    x_label="dₖ, the number of entries of query and key (logarithmic)",
    y_label="largest of the ten weights (mean)",
    title="Without √dₖ, one key takes nearly all the weight by chance",
)
figure.axes[0].set_xscale("log", base=2)
figure.axes[0].set_xticks(widths, widths)
figures.save_figure(
    figure,
    "02_sqrt_d",
    alt=(
        "Largest attention weight against the number of entries of a key: it rises towards 1 "
        "without the division by the root, and stays flat with it."
    ),
    caption=(
        "A weight near 1 means that one key takes almost everything, and then the gradient of the "
        "softmax is near 0. The vectors are random, not trained."
    ),
)

# %%
undivided, divided = (y[-1] for y in largest.values())
claim(
    f"at dₖ = {widths[-1]} the largest weight is {undivided:.2f} without the division, "
    f"{divided:.2f} with it",
    undivided > 0.9 > 0.4 > divided,
)

# %% [markdown]
# Each point is an average over two thousand random queries. Without the division, the largest weight climbs towards 1:
# the head looks at one word, chosen by chance. With it, the largest weight hardly depends on $d_k$ and stays far lower.
# (Even then it is not 1/10, because the largest of ten random scores gets more than an equal share.) The figure is
# about random vectors, as at the start of training. A trained head may well put nearly all its weight on one word. But
# it then does so for a reason: its matrices have grown.
#
# Why is a sharp start bad? A weight $w$ changes with its score at the rate $w(1 - w)$. Near 0 and near 1 this rate is almost 0,
# so there is almost no gradient to learn from.

# %%
for label, scale in (("scores as they are", 1.0), ("scores divided by √dₖ", widths[-1] ** -0.5)):
    w = (dots[widths[-1]] * scale).softmax(-1)  # (N, S)
    print(f"{label:22} dₖ = {widths[-1]}: mean of w(1 - w) = {(w * (1 - w)).mean():.3f}")

# %% [markdown]
# ## Nobody reads the future
#
# The model learns to predict the next word. A word that could read the next one would only copy it. So the weights on
# later words must be zero. The **mask** sees to that. It is a matrix $M$, 0 where a word may look and $-\infty$ where it may not:
#
# $$\operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d_k}} + M\right)V$$
#
# A score of $-\infty$ becomes a weight of $e^{-\infty} = 0$. Could we not simply set the weights of later words to 0 after the
# softmax? Take four words with made-up scores, and try both.

# %%
scores = torch.tensor(
    [[1.0, 2.0, 0.0, 3.0], [0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 1.0, 2.0], [2.0, 1.0, 0.0, 1.0]]
)  # (T, T)
future = torch.ones(4, 4).triu(1).bool()  # (T, T), True above the diagonal


# %%
def mask_after(scores):
    return scores.softmax(-1).masked_fill(future, 0.0)  # (T, T)


def mask_before(scores):
    return scores.masked_fill(future, -torch.inf).softmax(-1)  # (T, T)


# %%
def shown(row):
    return "  ".join(f"{value:.2f}" for value in row.tolist())


after, before = mask_after(scores), mask_before(scores)  # (T, T) each
table(
    [
        [
            words[t],
            shown(after[t]),
            f"{after[t].sum():.2f}",
            shown(before[t]),
            f"{before[t].sum():.2f}",
        ]
        for t in range(4)
    ],
    ["word", "masked after the softmax", "sum", "masked before", "sum"],
    caption=(
        "The weights of the first four words, masked after the softmax and before it. A row that "
        "sums to less than 1 has given weight to the future."
    ),
)

# %% [markdown]
# Both have zeros above the diagonal. But if the mask comes after the softmax, only the last row still sums to 1: in the
# others the future took a share, which was then thrown away. If the mask comes before, the words that are left share
# the whole weight of 1.
#
# The damage goes beyond a wrong sum. Raise the score of the last word, which the first three must not see, and watch
# *their* weights.

# %%
changed = scores.clone()
changed[:3, 3] += 2.0  # the last word becomes more attractive
leak = (mask_after(changed) - after)[:3].abs().max().item()
kept = (mask_before(changed) - before)[:3].abs().max().item()
claim(
    f"the weights of the past move by up to {leak:.2f} if masked after the softmax, by {kept:.0f} "
    "if masked before",
    leak > 0.1 and kept == 0,
)

# %% [markdown]
# If the mask comes too late, the weights of the past carry a trace of the future. A heat-map does not show this leak:
# its weights on the future are all zero.
#
# **Predict.** Our whole model, three layers of attention and other parts (`Decoder`, which notebook 03 builds), reads a
# sentence. Then we replace one word in its middle. Which of the model's outputs change: those before the word, those
# after it, or all?

# %%
SENTENCES = [
    "Mia lost her red ball. Tom found the red ball.",
    "Tom was sad. He lost his kite. Mia helped him.",
    "The cat saw the dog, and the dog saw the cat.",
]
tokenizer = WordTokenizer.train(SENTENCES)
torch.manual_seed(0)
model = Decoder(ModelConfig(vocab_size=len(tokenizer))).eval()  # not trained

# %%
original, exchanged = (
    torch.tensor([[tokenizer.sos_id, *tokenizer.encode(text)]])  # (B, T)
    for text in (SENTENCES[1], SENTENCES[1].replace("kite", "ball"))
)
place = int((original != exchanged).nonzero()[0, 1])
with torch.no_grad():
    moved = (model(original) - model(exchanged))[0].abs().amax(-1)  # (T,)
    model.mask.zero_()  # the same model without its mask
    unmasked = (model(original) - model(exchanged))[0].abs().amax(-1)  # (T,)

# %%
names = [tokenizer.word(i) for i in original[0].tolist()]
names[place] += " → ball"
table(
    [[name, f"{moved[t]:.2g}", f"{unmasked[t]:.2g}"] for t, name in enumerate(names)],
    ["word", "output moves by", "without the mask"],
    caption=(
        "How far each word's output moves when one word is exchanged. With the mask, only the "
        "outputs from that word on may move."
    ),
)

# %%
claim(
    f"the {place} outputs before the exchanged word do not move, bit for bit; without the mask all "
    "move",
    (moved[:place] == 0).all() and (moved[place:] > 0).all() and (unmasked > 0).all(),
)

# %% [markdown]
# This holds through all layers. Attention like this, in which the words of one text read each other and none reads ahead, is called
# *causal self-attention*. It makes training efficient: one pass over a story gives a fair prediction at every word. And
# when the model writes text word by word, the keys and values of the past do not change, so they can be stored.
#
# ## Several heads are one reshape
#
# One set of attention weights can look for only one thing. So we cut queries, keys and values, with $D$ numbers each,
# into $H$ equal shares of $d$ numbers. Each share, called a **head**, attends on its own (Vaswani et al. 2017, section
# 3.2.2). Every head still reads the whole word, because $W_Q$, $W_K$ and $W_V$ come before the cut. To see which
# numbers each head gets, we number the entries of two words of width six, and split them between two heads.

# %%
B, T, H, d = 1, 2, 2, 3
x = torch.arange(B * T * H * d).view(B, T, H * d)  # (B, T, D)
by_loop = [x[:, :, h * d : (h + 1) * d] for h in range(H)]  # H times (B, T, d)
at_once = x.view(B, T, H, d).permute(0, 2, 1, 3)  # (B, H, T, d)
for h in range(H):
    print(f"head {h + 1}:", at_once[0, h].tolist())
claim(
    "each head has its own columns of both words",
    all(torch.equal(at_once[:, h], by_loop[h]) for h in range(H)),
)

# %% [markdown]
# No number is computed or copied: `view` and `permute` only change how the numbers are indexed. The order matters. A
# direct `view(B, H, T, d)` has the right shape but the wrong content: it cuts between words, so here each head gets all
# of one word and nothing of the other.

# %%
wrong = x.view(B, H, T, d)  # (B, H, T, d)
print("head 1, wrong view:", wrong[0, 0].tolist())
claim(
    "the wrong view raises no error: its shape is right, its content is not",
    wrong.shape == at_once.shape and not torch.equal(wrong, at_once),
)

# %% [markdown]
# **Three at once.** Our layer computes queries, keys and values in one product, so each token first has $3D$ numbers: its query,
# its key and its value, one after the other, each with its heads side by side. `view` gives each of these parts an axis
# of its own, and `permute` moves the axis of size 3 to the front, so that the result can be unpacked into three
# tensors. Here it is with consecutive numbers again:

# %%
qkv = torch.arange(B * T * 3 * H * d).view(B, T, 3, H, d)  # (B, T, 3, H, d)
q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, d) → three of (B, H, T, d)
table(
    [
        [f"word {t + 1}, head {h + 1}", *(str(z[0, h, t].tolist()) for z in (q, k, v))]
        for t in range(T)
        for h in range(H)
    ],
    ["", "query", "key", "value"],
    caption="Two words and two heads, small enough to follow each number through the reshape.",
)

# %% [markdown]
# ## The layer of our model
#
# We now have every part. Here is the layer that every later notebook uses. One matrix makes the queries, keys and
# values of all heads. Then come the reshape, scores, mask, softmax and mean. Finally the heads are put side by side
# again, and a last matrix mixes them. (`remember` is for notebook 05, in which some tokens were read in earlier calls.
# Until then it is None, and $S = T$.)

# %%
show_source(MultiHeadAttention)

# %% [markdown]
# One thing is new: **dropout** on the weights. In training it sets each weight to zero with a given probability and scales the others up,
# so that the mean over many draws stays the same. A head then cannot rely on a single word. When the model is used,
# dropout does nothing. (Notebook 03 explains what it is for.)

# %%
torch.manual_seed(0)
print("before: ", [round(x, 2) for x in before[3].tolist()])
print("dropped:", [round(x, 2) for x in F.dropout(before[3], 0.25).tolist()])

# %% [markdown]
# Does the layer compute what we derived? We write it once more, the slow way: a loop over words, a loop over heads, and
# our `one_query` inside. Each word is given only the words up to itself, so this version needs no mask.


# %%
def by_loops(layer, x):
    """The same layer by loops. x (T, D) -> (T, D)."""
    q, k, v = layer.qkv(x).double().chunk(3, dim=-1)  # (T, D) each
    width, rows = x.shape[-1] // layer.num_heads, []
    for t in range(len(x)):
        row = []
        for h in range(layer.num_heads):
            own = slice(h * width, (h + 1) * width)
            row += one_query(q[t, own], k[: t + 1, own], v[: t + 1, own])[2]
        rows.append(row)
    return layer.output(torch.tensor(rows))  # (T, D)


# %% [markdown]
# For an independent check, we give the weights of our layer to PyTorch's own `nn.MultiheadAttention`.

# %%
torch.manual_seed(0)
config = ModelConfig()
layer = MultiHeadAttention(config)
judge = nn.MultiheadAttention(config.d_model, config.num_heads, batch_first=True)
judge.in_proj_weight, judge.in_proj_bias = layer.qkv.weight, layer.qkv.bias
judge.out_proj.weight, judge.out_proj.bias = layer.output.weight, layer.output.bias


# %%
def causal_mask(length):
    return torch.full((length, length), -torch.inf).triu(1)  # (T, T)


x = torch.randn(1, 12, config.d_model)  # (B, T, D)
mask = causal_mask(12)  # (T, T)
with torch.no_grad():
    ours, weights = layer(x, mask)  # (B, T, D), (B, H, T, T)
    theirs, their_weights = judge(x, x, x, attn_mask=mask, average_attn_weights=False)
    slow = by_loops(layer, x[0])  # (T, D)

# %%
differences = {
    "our loops": (ours[0] - slow).abs().max().item(),
    "PyTorch's output": (ours - theirs).abs().max().item(),
    "PyTorch's weights": (weights - their_weights).abs().max().item(),
}
for name, difference in differences.items():
    claim(f"{name}: ≈{difference:.0e} from the layer, less than 1e-6", difference < 1e-6)

# %% [markdown]
# ## A head written by hand
#
# Trained models often have heads that read, at each word, the word just before it ([Olsson et al.
# 2022](https://arxiv.org/abs/2209.11895)). Does that have to be learned? No: we can write down a $W_Q$ and a $W_K$ that
# do it for every word of every sentence, provided that they see only the positions.
#
# Let each word's key be its own position vector, $k_s = p_s$. The dot product of two position vectors is largest when they are
# equal, so the query at $t$ should be $p_{t-1}$. But the word at $t$ only has $p_t$. We need *one* matrix that turns $p_t$ into
# $p_{t-1}$, for every $t$.
#
# Remember the clock: each pair of numbers in $p_t$ is a hand that turns by a fixed angle $\omega$ with every word. To
# go one step back, turn the hand by the same angle in the other direction, wherever it points. Such a turn is a matrix:
#
# $$\begin{pmatrix}\cos\omega & -\sin\omega\\ \sin\omega & \cos\omega\end{pmatrix}
# \begin{pmatrix}\sin\omega t\\ \cos\omega t\end{pmatrix} =
# \begin{pmatrix}\sin\omega(t-1)\\ \cos\omega(t-1)\end{pmatrix}$$
#
# A head of our model has room for only some of the hands. We take the fastest, because they tell neighbours apart.

# %%
WIDTH = config.d_model // config.num_heads  # of one head
HANDS = WIDTH // 2
omega = 10_000 ** (
    -2 * torch.arange(HANDS) / config.d_model
)  # (HANDS,), each hand's angle per word
print(f"a head is {WIDTH} numbers wide: room for {HANDS} of the {config.d_model // 2} hands")


# %%
def turn_back(steps):
    """The matrix that takes p(t) to p(t - steps), (2 HANDS, 2 HANDS)."""
    angle = steps * omega  # (HANDS,)
    turns = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1)  # (HANDS, 4)
    return torch.block_diag(*turns.view(HANDS, 2, 2))  # (2 HANDS, 2 HANDS)


# %%
positions = sinusoidal_positions(config.context_length, config.d_model)  # (T, D)
p = positions[:, : 2 * HANDS]  # (T, 2 HANDS)
error = (p[1:] @ turn_back(1).T - p[:-1]).abs().max().item()
claim(f"one matrix takes all {len(p) - 1} p(t) to p(t - 1), within ≈{error:.0e}", error < 1e-5)

# %% [markdown]
# So $W_Q$ is that turn, and $W_K$ is the identity. (Our vectors are rows, so the code multiplies by the transpose, as
# `nn.Linear` does.) The score of key $s$ for query $t$ is $\sum_\omega \cos\omega(t - 1 - s)$: it depends only on how far $s$
# is from the place where we want to look.
#
# **Predict.** The right word has the highest score, 18. How much lower are the scores of its neighbours, and is the gap
# large enough for the softmax?

# %%
profile = [float((omega * distance).cos().sum()) for distance in range(5)]

# %% cellView="form" tags=["hide-input"]
table(
    [["score", *[f"{value:.1f}" for value in profile]]],
    ["words away from t - 1", "0", "1", "2", "3", "4"],
    caption=(
        "The score of the hand-made head: largest at the word before, and falling with the "
        "distance from it."
    ),
)

# %% [markdown]
# The right word wins, but its neighbours are close behind, and the division by $\sqrt{d_k}$ makes the gap six times
# smaller. The softmax depends only on *differences* between scores, so we multiply $W_Q$ by a number, the
# **sharpness**. This is how a head becomes sure of
# itself: its matrices grow.


# %%
def previous_word(sharpness):
    """Weights of the hand-made head at every position, (T, T). Only positions go in."""
    q, k = p @ (sharpness * turn_back(1)).T, p  # (T, 2 HANDS) each
    return (q @ k.T / WIDTH**0.5 + causal_mask(len(p))).softmax(-1)  # (T, T)


# %%
worst = {sharpness: float(previous_word(sharpness).diagonal(-1).min()) for sharpness in (1, 3, 10)}
table(
    [[sharpness, f"{weight:.3f}"] for sharpness, weight in worst.items()],
    ["sharpness", f"least weight on the previous word, over {len(p) - 1} positions"],
    caption="A larger factor before the softmax brings the weight nearer to 1.",
)

# %%
tokens = ["<sos>", *tokenizer.split(SENTENCES[0])]
weights = previous_word(sharpness=10)[: len(tokens), : len(tokens)]  # (T, T)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    attention_plots.heatmap(
        weights, tokens, title="Every word but the first reads the word before it"
    ),
    "02_previous_word",
    alt="Heat-map of the hand-made head: nearly all the weight lies just below the diagonal.",
    caption="Look below the diagonal. The first word has nothing before it, so it reads itself.",
)

# %%
claim(
    "two matrices set by hand make a previous-word head: at least "
    f"{worst[10]:.3f} of the weight lies on the previous word",
    worst[10] > 0.95,
)

# %% [markdown]
# **Two matrices set by hand make a previous-word head, without training.** Each row is a word that reads; its dark
# square is one step left of the diagonal. Only `<sos>` has nothing before it, so it reads itself. Grey marks the
# future, which the mask forbids. Here is the same head as arrows:

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    attention_plots.arrows(weights, tokens, title="One step up, at every word but the first"),
    "02_previous_word_arrows",
    alt="Arrows from each word but the first on the left to the word one line higher on the right.",
    caption=(
        "The same weights as arrows. The positions of the words decide them; what the words mean "
        "plays no part."
    ),
)

# %% [markdown]
# Every arrow but the first climbs one line: *mia* reads `<sos>`, *lost* reads *mia*. Weights below 0.1 have no arrow. That a
# head like this *can* exist follows from the positions alone. Whether training finds one is another question, which notebook
# 04 answers.
#
# ## Two heads in a row: induction
#
# What is a previous-word head good for? Suppose a text says *Tom lost his kite … Tom*. A good guess for the next word is *lost*,
# because that is what followed *Tom* the last time. Two heads in two layers can find it:
#
# 1. A **previous-word head** in the first layer tells every word which word stood before it. Now *lost* knows "I came after *Tom*".
# 2. A head in the second layer asks: "which word came after a word like me?" Its query is the word itself; its keys are
#    what the first head brought.
#
# The second is called an **induction head** (Olsson et al. 2022). Here it is with one-hot vectors as words:


# %%
def induction(ids):
    """What the last of these tokens reads, and the two layers' weights. ids (T,)."""
    T, word = len(ids), F.one_hot(ids, 50).float()  # (T, V)
    first = previous_word(sharpness=10)[:T, :T]  # (T, T)
    came_after = first @ word  # (T, V): what the first head brings
    scores = 10 * word @ came_after.T + causal_mask(T)  # (T, T): which came after a word like me?
    second = scores.softmax(-1)  # (T, T)
    return (second @ word)[-1], first, second  # (V,), (T, T), (T, T)


# %%
text = ["<sos>", *tokenizer.split("Tom lost his kite. Mia found the ball. Tom")]
ids = torch.tensor([tokenizer.sos_id, *tokenizer.encode(" ".join(text[1:]))])  # (T,)
answer, first, second = induction(ids)

# %% cellView="form" tags=["hide-input"]
table(
    [[t, text[t], text[first[t].argmax()], f"{second[-1, t]:.2f}"] for t in range(1, len(text))],
    ["place", "word", "came after", "weight from the last “tom”"],
    caption="The induction head at work: the last “tom” finds the word that came after the first.",
)

# %%
claim(
    f"the second “tom” reads “{tokenizer.word(answer.argmax().item())}”, weight {answer.max():.2f}",
    tokenizer.word(answer.argmax().item()) == "lost" and answer.max() > 0.9,
)
hits = 0
for seed in range(100):
    some = torch.randperm(50, generator=torch.Generator().manual_seed(seed))[:20]  # (T,)
    hits += int(induction(torch.cat([some, some[7:8]]))[0].argmax() == some[8])
claim(f"in {hits} of 100 texts of 20 random words, it finds what followed the eighth", hits == 100)

# %% [markdown]
# The last *tom* finds the one place that comes after another *tom*, and reads *lost* there. The pair of heads never
# learned anything about *lost*: it works for any word, even one that means nothing. Notebook 04 looks for such pairs in
# the trained model.
#
# ## Eight heads written by hand
#
# A head can ask for words as well as for places. Let a word be a vector with a single large number, at the place of its
# id. If $W_Q$ and $W_K$ both select these numbers, two different words score 0 and two equal words score high. This
# makes a **same-word head**. And a table from words to words, used as $W_Q$, makes a head in which *he* asks for *tom*.
#
# In our model, word and position are added, number by number. We put the words where the positions are small: the
# slowest sines hardly leave zero within one sentence. A head of 37 numbers has room for 37 different words, enough for our three
# sentences. (The full model normalises the sum before attention reads it, see notebook 03. Here attention reads it as
# it is.)

# %%
word_places = torch.arange(config.d_model - 2 * WIDTH, config.d_model, 2)  # (d,), the slowest sines
loudest = positions[:16, word_places].max()
print(f"largest position value at these places, within 16 words: {loudest:.3f}")


# %%
def embed(ids):
    """Word plus position, as in the model. ids (T,) -> (T, D)."""
    x = positions[: len(ids)].clone()  # (T, D)
    x[:, word_places] += 4 * F.one_hot(torch.tensor(ids), WIDTH)  # (T, d)
    return x


# %% [markdown]
# Each of our heads reads either the place or the word, and $W_Q$ says what it asks for. `where` and `what` select, from
# all $D$ numbers, as many as fit into one head.

# %%
where = torch.eye(WIDTH, config.d_model)  # (d, D), the fast hands; one number is left over
where[2 * HANDS :] = 0
what = torch.eye(config.d_model)[word_places]  # (d, D), the word


def step_back(steps):
    return torch.block_diag(turn_back(steps), torch.zeros(1, 1))  # (d, d)


# %%
id_of = {tokenizer.word(i): i for i in range(len(tokenizer))}


def asks_for(wishes, otherwise):
    """A table from words to words, (d, d). Column: the word that reads; row: the word it wants."""
    matrix = torch.zeros(WIDTH, WIDTH)  # (d, d)
    for word, i in id_of.items():
        matrix[id_of[wishes.get(word, otherwise)], i] = 1
    return matrix


# %%
pronouns = {"her": "mia", "he": "tom", "his": "tom", "him": "tom"}
heads = {
    "previous word": (where, step_back(1)),
    "two words back": (where, step_back(2)),
    "itself": (where, step_back(0)),
    "next word": (where, step_back(-1)),
    "same word": (what, torch.eye(WIDTH)),
    "start token": (what, asks_for({}, otherwise="<sos>")),
    "who is he?": (what, asks_for(pronouns, otherwise="<sos>")),
    "uniform": (what, torch.zeros(WIDTH, WIDTH)),
}

# %% [markdown]
# **Predict.** The head called *next word* asks for a word that is masked. Where will its weight go?
#
# Now fill the model's own `MultiHeadAttention` with these matrices, twice: once as a sharp layer, and once with a tenth of the
# sharpness.


# %%
@torch.no_grad()
def hand_made_layer(sharpness):
    layer = MultiHeadAttention(config)
    W_Q = torch.cat([sharpness * wish @ part for part, wish in heads.values()])  # (D, D)
    W_K = torch.cat([part for part, _ in heads.values()])  # (D, D)
    W_V = torch.cat([what] * config.num_heads)  # (D, D): each head passes on the word that it reads
    layer.qkv.weight.copy_(torch.cat([W_Q, W_K, W_V]))  # (3D, D)
    layer.qkv.bias.zero_()
    return layer


layers = [hand_made_layer(sharpness=10), hand_made_layer(sharpness=1)]


# %%
@torch.no_grad()
def read(text):
    """The tokens of a sentence, and what both layers read, (L, H, T, T)."""
    ids = [tokenizer.sos_id, *tokenizer.encode(text)]
    if len(ids) > len(positions):
        raise ValueError(f"type at most {len(positions) - 1} words")
    x, mask = embed(ids)[None], causal_mask(len(ids))  # (1, T, D), (T, T)
    names = ["<sos>", *tokenizer.split(text)]
    tokens = [a if a in id_of else f"{a} (unknown)" for a in names]
    return tokens, torch.cat([layer(x, mask)[1] for layer in layers]).numpy()


sentences = {text: read(text) for text in SENTENCES}

# %%
tokens, attention = sentences[SENTENCES[1]]
figures.save_figure(
    attention_plots.head_grid(
        attention[0], tokens, titles=list(heads), title="Eight heads, each with a job of its own"
    ),
    "02_eight_heads",
    alt="Eight hand-made heads as heat-maps on one sentence; two of them look alike.",
    caption=(
        "The title of each picture names the head's job. Two look alike: the next word is masked, "
        "so the head that asks for it falls back on the nearest word that it may read, itself."
    ),
)

# %% [markdown]
# As before, each row is a word that reads, and each column a word that is read. Four heads ask for places: one and two
# words back, the word itself, and the word ahead. *Next word* cannot read what it asks for, so its weight goes to the
# nearest word left, the word itself. Three ask for words. *Same word* finds the word itself and, at a full stop, the
# earlier full stops too, in nearly equal parts. *Who is he?* sends *he*, *his* and *him* to *tom*; all other words read
# `<sos>`. The last head asks for nothing, and spreads its weight evenly. These patterns are clean because we designed
# them. A trained head may mix several, or follow none.
#
# How much of a head's weight lies on its pattern? We average over those words of the three sentences for which the
# pattern has something to read. Notebook 04 uses the same patterns to judge trained heads.


# %%
def on_pattern(pattern, layer, head):
    """Mean weight on the keys of a pattern, over all words that have such a key."""
    found = []
    for text, (_, attention) in sentences.items():
        allowed = pattern_targets([tokenizer.sos_id, *tokenizer.encode(text)])[pattern]  # (T, T)
        found.extend((attention[layer, head] * allowed).sum(-1)[allowed.any(-1)])
    return float(np.mean(found))


# %%
uniform = list(heads).index("uniform")
numbers = {}
for name in ("previous word", "itself", "same word", "start token"):
    head = list(heads).index(name)
    numbers[name] = [on_pattern(name, *place) for place in ((0, head), (1, head), (0, uniform))]
table(
    [[name, *[f"{value:.3f}" for value in row]] for name, row in numbers.items()],
    ["head, on its own pattern", "layer 1: sharp", "layer 2: a tenth as sharp", "uniform head"],
    caption=(
        "The mean weight that each head puts on the pattern it was made for, compared with a "
        "blunter copy of it and with a head that has no pattern."
    ),
)

# %% [markdown]
# The last column shows what evenly spread attention would give. *Same word* cannot reach 1: it divides its weight
# between the earlier copies, which count towards the pattern, and the word itself, which does not. (*Start token* is
# measured from the second word on. The numbers are means; the table of sharpness above gave the worst position.)
#
# Now look around. Layer 1 is sharp; layer 2 has the same eight heads with a tenth of the sharpness. (Both read the same
# input; nothing is stacked yet.) The name of each head is above its picture. Before you move a slider, say what you
# expect to see. **Type a sentence of your own** and press Enter, and the layers read it; they know only the words of
# the three sentences. (On paper and on GitHub you see a single picture.)

# %%
notes = {(layer, h): name for layer in (1, 2) for h, name in enumerate(heads, start=1)}
explorer = AttentionExplorer(sentences, read=read, notes=notes)
explorer.sentence.value, explorer.head.value = SENTENCES[2], 5  # the first picture
figures.save_explorer(explorer, "02_attention")

# %% [markdown]
# The explorer opens on the same-word head: each *the* divides its weight between itself and the earlier ones.
#
# ## What attention weights do not show
#
# A heat-map shows where a head *reads*. It does not show what the head *does*. That is decided by the value matrix and by the last matrix
# of the layer, and neither is in the picture ([Elhage et al.
# 2021](https://transformer-circuits.pub/2021/framework/index.html) analyse separately where a head reads and what it
# does). Our previous-word head passes on the word that it reads:

# %%
ids = [tokenizer.sos_id, *tokenizer.encode(SENTENCES[0])]
weights = torch.tensor(sentences[SENTENCES[0]][1][0, 0])  # (T, T), the sharp previous-word head
passed_on = (weights @ (embed(ids) @ what.T)).argmax(-1).tolist()  # (T,), the largest is the word
lines = {"word": ids, "receives": passed_on}

# %% cellView="form" tags=["hide-input"]
table(
    [[name, *map(tokenizer.word, line)] for name, line in lines.items()],
    ["position", *map(str, range(len(ids)))],
    caption="The words of the sentence, and what each position receives from the head.",
)

# %% [markdown]
# The second line is the first, moved by one: every word now *knows* the word before it. But take another value matrix,
# and the same picture means something else:

# %%
for name, W_V in {"passes on the word": what, "all zero": 0 * what}.items():
    largest_output = (weights @ (embed(ids) @ W_V.T)).abs().max()
    print(f"{name:20} same weights, largest output {largest_output:.1f}")

# %% [markdown]
# Values also differ in length. A large weight on a short value does little; a small weight on a long value can decide everything:
# 0.9 of a value of length 0.1 adds 0.09, and 0.1 of a value of length 10 adds 1. And in layer 2 or 3, the vector of a
# word no longer holds only that word, but also what earlier layers put there. So treat a heat-map as a question, not as
# an explanation.

# %% cellView="form" tags=["numbers"]
# @title The numbers that notebook 07 reports
figures.save_numbers(
    "02",
    {
        "variance_of_dot_products": {d: round(variance[d], 1) for d in widths},
        "largest_weight": {label: [round(value, 3) for value in y] for label, y in largest.items()},
        "previous_word_worst_weight": {
            sharpness: round(weight, 3) for sharpness, weight in worst.items()
        },
        "weight_on_pattern": {
            name: [round(value, 3) for value in row] for name, row in numbers.items()
        },
        "past_moved_by": float(moved[:place].max()),
        "future_moved_by": [round(value, 2) for value in moved[place:].tolist()],
    },
)

# %% [markdown]
# ## Recap
#
# - A word scores its own key and those of the words before it, the softmax turns the scores into weights, and the values are
#   averaged with these weights.
# - Scores have variance $d_k$; dividing by $\sqrt{d_k}$ keeps the softmax soft at the start. If the mask comes *before*
#   the softmax, no output of the past changes, not even by a bit, whichever words come later.
# - Heads are a reshape of queries, keys and values. Our layer gives the same results as the loops and as PyTorch's own
#   layer.
# - A $W_Q$ that turns the clock hands back makes a previous-word head. Together with an induction head in the next
#   layer, it finds what followed a word the last time.
# - Weights say where a head reads, not what it does.
#
# ## What GPT and Llama do differently
#
# - **Fused attention.** Programs that run these models today do not build the (T, T) table of weights in memory.
#   FlashAttention
#   ([Dao et al. 2022](https://arxiv.org/abs/2205.14135)) computes the same result block by block, which matters for contexts of
#   thousands of tokens. Ours keeps the table, because we want to look at it.
# - **Fewer keys.** In Llama 3 several heads share keys and values (grouped-query attention,
#   [Ainslie et al. 2023](https://arxiv.org/abs/2305.13245)), so storing old keys and values takes less memory (notebook
#   05).
# - **Positions inside attention.** Llama rotates queries and keys (rotary embeddings), so the rotation that we wrote by
#   hand is built in, and positions matter only through the distance between two words.
#
# Next: [03 · The decoder block](03_decoder_block.ipynb) puts the layer to work.
#
# ## Can you?
#
# 1. Two keys have the scores 0 and ln 3 (already divided by $\sqrt{d_k}$). What are the weights?
#    <details><summary>Answer:</summary> 1/4 and 3/4: the exponentials are 1 and 3.</details>
# 2. Why does the mask come before the softmax?
#    <details><summary>Answer:</summary> Afterwards the future has already taken its share of the sum, so the weights of the past depend on
#    it, and no longer sum to 1.</details>
# 3. A colleague writes <code>x.view(B, H, T, d)</code>. What does each head get?
#    <details><summary>Answer:</summary> All numbers of some words instead of some numbers of all words (and even parts
#    of words if H does not divide T).</details>
# 4. Which matrices make a head that reads the word two places back?
#    <details><summary>Answer:</summary> A turn of all hands back by two steps as W_Q, and the identity as W_K, both
#    acting on positions.</details>
# 5. A head puts all its weight on one word. What is still unknown?
#    <details><summary>Answer:</summary> What it passes on: that depends on the value matrix and on the output matrix.</details>
#
# ## Exercises
#
# There are five tasks, with solutions and with checks that name your mistake: attention from its formula, the causal
# mask, splitting into heads, joining them, and a head made by hand that looks two words back. They take about an hour
# and a quarter: [exercises for 02](exercises/02_attention.ipynb).
#
# ## References
#
# - [Ainslie et al. 2023](https://arxiv.org/abs/2305.13245), *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
#   Checkpoints*
# - [Dao et al. 2022](https://arxiv.org/abs/2205.14135), *FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness*
# - [Elhage et al. 2021](https://transformer-circuits.pub/2021/framework/index.html), *A Mathematical Framework for Transformer Circuits*
# - [Olsson et al. 2022](https://arxiv.org/abs/2209.11895), *In-context Learning and Induction Heads*
# - [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), *Attention Is All You Need*, sections 3.2 and 3.5
