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
# Then you will write a **head** by hand. A head is a part of that layer with attention weights of its own. Yours will
# be two matrices that make every word (but the first) read the word before it, without any training.
#
# **You will be able to**
#
# - compute the attention of one word with pencil and paper, and of all words with two matrix products;
# - say why scores are divided by $\sqrt{d_k}$, and what happens otherwise;
# - say why the mask comes before the softmax, and show what leaks otherwise;
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
# **Attention** lets a word collect what it needs from the words before it, and from itself.
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
# There are three steps. **Score** each key by its dot product with the query, divided by $\sqrt{d_k}$. ($d_k$ is the
# number of entries of a key, $d$ in our shapes. We explain the division below.) Turn the scores into **weights** that
# are positive and sum to 1, with the softmax. Take the weighted **mean** of the values.


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

# %% cellView="form" tags=["hide-input"]
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
# *Red* gets the largest weight, because its key fits the query best. The last row is what *ball* receives: more redness
# than Mia-ness. Even a score of 0 gets a small weight. But *lost* and *ball* have nothing to give: their values are
# zero.
#
# ## All words ask at once
#
# Give every word a query and stack the queries as rows of a matrix $Q$. Stack keys and values as $K$ and $V$. Now one
# matrix product gives all the scores, and a second one gives all the means ([Vaswani et al.
# 2017](https://arxiv.org/abs/1706.03762), section 3.2.1):
#
# $$\operatorname{Attention}(Q, K, V) = \operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right)V$$
#
# Row $t$ of the weights belongs to the word that reads, column $s$ to the word that is read. ($V$ is a matrix here, as
# in the paper, and not the size of the vocabulary.) Below, we make up a query for every word; the last is that of
# *ball*.

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
# The numbers are the same, without a loop. (Here every word still reads every other; the mask follows below.) In a
# model nobody writes queries, keys and values by hand. They are three linear maps of the same word vectors $X$, one row
# per word: $Q = XW_Q$, $K = XW_K$, $V = XW_V$. (Our layer adds a bias to each.) Training finds the three matrices.
#
# ## Why divide by √dₖ?
#
# A dot product adds $d_k$ products. If the numbers are independent, with mean 0 and variance 1, each product has mean 0
# and variance 1 too, and the variances add: the sum has variance $d_k$. So the more entries a query and a key have, the
# larger their scores. Let us measure this with random queries and keys.


# %%
def random_vectors(d, count=2000):
    """Random queries, (N, 1, d), and ten random keys for each, (N, 10, d)."""
    generator = torch.Generator().manual_seed(d)
    query = torch.randn(count, 1, d, generator=generator, dtype=torch.float64)  # (N, 1, d)
    return query, torch.randn(count, 10, d, generator=generator, dtype=torch.float64)


def random_scores(d):
    query, key = random_vectors(d)  # (N, 1, d), (N, 10, d)
    return (query * key).sum(-1)  # (N, 10)


# %%
widths = [1, 4, 16, 64, 256, 1024]
dots = {d: random_scores(d) for d in widths}
variance = {d: dots[d].var().item() for d in widths}

# %% cellView="form" tags=["hide-input"]
table(
    [[d, f"{variance[d]:,.0f}", f"{variance[d] / d:.2f}"] for d in widths],
    ["dₖ", "variance of q · k", "divided by dₖ"],
    caption=(
        "The variance of a score grows with the number of entries. Both columns are measured, "
        "on random vectors."
    ),
)

# %% [markdown]
# So the standard deviation of a score is $\sqrt{d_k}$, and dividing by it brings these scores back to size 1, whatever
# $d_k$.
#
# **Predict.** Leave the division out. There are ten keys, all random, none better than another. What happens to the
# largest of the ten weights as $d_k$ grows: does it shrink towards 1/10, stay as it is, or grow towards 1?

# %%
largest = {
    "scores as they are": [dots[d].softmax(-1).amax(-1).mean().item() for d in widths],
    "scores divided by √dₖ": [
        (dots[d] / d**0.5).softmax(-1).amax(-1).mean().item() for d in widths
    ],
}

# %% cellView="form" tags=["hide-input", "hide-output"]
figure = plots.compare_curves(
    {label: (widths, y) for label, y in largest.items()},
    landmarks={"uniform": 1 / 10},
    x_label="dₖ, the number of entries of query and key (logarithmic)",
    y_label="largest of the ten weights (mean)",
    title="Without √dₖ, one key takes more and more of the weight",
)
figure.axes[0].set_xscale("log", base=2)
figure.axes[0].set_xticks(widths, widths)
figures.save_figure(
    figure,
    "02_sqrt_d",
    alt=(
        "Largest attention weight against the number of entries of a key: it rises towards 1 "
        "without the division by the root, and stays near 0.3 with it."
    ),
    caption=(
        "Compare the two curves at the right edge. Each point is the mean over 2,000 random "
        "queries with ten random keys each. The vectors of a trained model are not random."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Without the division, the largest weight grows to 0.96 at $d_k$ = 1,024: the head looks at one word, chosen by chance.
# With it, the largest weight stays near 0.3. (It is not 1/10, because the largest of ten random scores gets more than
# an equal share.)
#
# </details>
#
# Why does this matter? A weight $w$ changes with its score at the rate $w(1 - w)$, which is 1/4 if $w$ is 1/2, and
# almost 0 if $w$ is near 0 or near 1. If all weights of a query are near 0 or 1, almost no gradient reaches the query,
# so training hardly changes where it looks. How common is that? We let PyTorch compute the gradient of each query's
# largest weight with respect to the query, also for $d_k$ = 37, the size in our model.


# %%
def gradients(d, divide):
    """Length of the gradient of each query's largest weight, with respect to the query, (N,)."""
    query, key = random_vectors(d)  # (N, 1, d), (N, 10, d)
    scores = (query.requires_grad_() * key).sum(-1) / (d**0.5 if divide else 1)  # (N, 10)
    scores.softmax(-1).amax(-1).sum().backward()
    return query.grad.norm(dim=-1)[:, 0]  # (N,)


# %% cellView="form" tags=["hide-input"]
rows = []
for d in (4, 37, 256, 1024):
    both = [gradients(d, divide) for divide in (False, True)]
    rows.append([d, *(f"{(found < 0.01).double().mean():.0%}" for found in both)])
    rows[-1] += [f"{found.median():.2g}" for found in both]
table(
    rows,
    ["dₖ", "below 0.01", "below 0.01, with √dₖ", "median", "median, with √dₖ"],
    caption=(
        "How long the gradient of the largest weight is, for 2,000 random queries: the share of "
        "queries that hardly get one, and the median, without the division and with it."
    ),
)

# %% [markdown]
# Without the division, more and more queries get almost no gradient as $d_k$ grows. Others get a larger one: at our 37,
# the median is above that of the divided scores. With the division, the median hardly depends on $d_k$, and 0 % of the
# queries fall below 0.01. (All this concerns random vectors. A trained head may well put nearly all its weight on one
# word, but then training has led it there, for example by enlarging its matrices.)
#
# Two roots are easy to confuse. Notebook 01 *multiplied* word vectors by $\sqrt{D}$, because they start out too short
# beside the positions. Here we *divide* scores by $\sqrt{d_k}$, because they start out too large for the softmax.
#
# ## Nobody reads the future
#
# The model learns to predict the next word. If a word could read the next one, it could simply copy it. So the weights
# on later words must be zero. The **mask** sees to that. It is a matrix $M$ that is added to the scores: 0 where a word
# may look and $-\infty$ where it may not.
#
# $$\operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d_k}} + M\right)V$$
#
# A score of $-\infty$ becomes a weight of $e^{-\infty} = 0$. Could we not simply set the weights of later words to 0
# after the softmax? Take four words with made-up scores, and try both.

# %%
scores = torch.tensor(
    [[1.0, 2.0, 0.0, 3.0], [0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 1.0, 2.0], [2.0, 1.0, 0.0, 1.0]]
)  # (T, T)


# %%
def causal_mask(length):
    return torch.full((length, length), -torch.inf).triu(1)  # (T, T), -inf above the diagonal


def mask_after(scores):
    return scores.softmax(-1).tril()  # (T, T), 0 above the diagonal


def mask_before(scores):
    return (scores + causal_mask(len(scores))).softmax(-1)  # (T, T)


# %%
after, before = mask_after(scores), mask_before(scores)  # (T, T) each


# %% cellView="form" tags=["hide-input"]
def weights_and_sum(row):
    return "  ".join(f"{value:.2f}" for value in row.tolist()), f"{row.sum():.2f}"


table(
    [[words[t], *weights_and_sum(after[t]), *weights_and_sum(before[t])] for t in range(4)],
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
# If the mask comes too late, the weights of the past carry a trace of the future. In a heat-map, the squares for the
# future look right, all zero; only the sums of the rows give the leak away. (One could repair it by dividing each row
# by its sum. Masking before the softmax does the same in one step.)
#
# Now to our whole model, three layers of attention and other parts (`Decoder`, which notebook 03 builds). Its outputs
# are logits: at each position, a score for every word that could come next. The model is not trained.

# %%
SENTENCES = [
    "Mia lost her red ball. Tom found the red ball.",
    "Tom was sad. He lost his kite. Mia helped him.",
    "The cat saw the dog, and the dog saw the cat.",
]
tokenizer = WordTokenizer.train(SENTENCES)
torch.manual_seed(0)
model = Decoder(ModelConfig(vocab_size=len(tokenizer))).eval()

# %% [markdown]
# **Predict.** The model reads *Tom was sad. He lost his kite. Mia helped him.* Then we replace *kite* by *ball*. At
# which positions do its outputs change: only at the new word, from there to the end, or everywhere?

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

# %% cellView="form" tags=["hide-input", "hide-output"]
claim(
    f"the {place} outputs before the exchanged word do not move, bit for bit; without the mask all "
    "move",
    (moved[:place] == 0).all() and (moved[place:] > 0).all() and (unmasked > 0).all(),
)
names = [tokenizer.word(i) for i in original[0].tolist()]
names[place] += " → ball"
table(
    [[name, f"{moved[t]:.2g}", f"{unmasked[t]:.2g}"] for t, name in enumerate(names)],
    ["word", "output moves by", "without the mask"],
    caption=(
        "How far the outputs at each position move when one word is exchanged: the largest change "
        "of a logit. Look at the zeros above the exchanged word."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# From the new word to the end. The eight outputs before it stay the same to the last bit, through all three layers.
# Without the mask, everything moves.
#
# </details>
#
# Attention like this, in which the words of one text read each other and none reads ahead, is called **causal
# self-attention**. It makes training efficient: one pass over a story gives a prediction at every word, and each
# prediction has seen only the words up to its own. And when the model writes text word by word, the keys and values of
# the past do not change, so they can be stored.
#
# ## Several heads are one reshape
#
# One row of attention weights sums to 1: what it spends on one word, it cannot spend on another. So we cut queries,
# keys and values, with $D$ numbers each, into $H$ equal shares of $d$ numbers. Each share is a head, and attends on its
# own (Vaswani et al. 2017, section 3.2.2). Every head still reads the whole word, because $W_Q$, $W_K$ and $W_V$ come
# before the cut. To see which numbers go to which head, we take two words of six numbers each, count through them from
# 0 to 11, and split them between two heads.

# %%
B, T, H, d = 1, 2, 2, 3
x = torch.arange(B * T * H * d).view(B, T, H * d)  # (B, T, D)
split = x.view(B, T, H, d).permute(0, 2, 1, 3)  # (B, H, T, d)
print("the two words:", x[0].tolist())
for h in range(H):
    print(f"head {h + 1}:", split[0, h].tolist())

# %% [markdown]
# Each head gets one half of both words. No number is computed or copied: `view` and `permute` only change how the
# numbers are indexed. The order matters. A direct `view(B, H, T, d)` has the right shape but the wrong content: it cuts
# between words, so here each head gets all of one word and nothing of the other.

# %%
wrong = x.view(B, H, T, d)  # (B, H, T, d)
print("head 1, wrong view:", wrong[0, 0].tolist())
claim(
    "the wrong view raises no error: its shape is right, its content is not",
    wrong.shape == split.shape and not torch.equal(wrong, split),
)
print("word 1 after the heads are joined:", wrong.transpose(1, 2).reshape(B, T, -1)[0, 0].tolist())

# %% [markdown]
# When the heads are joined again, word 1 holds numbers of word 2. Row 1 of head 2 *is* word 2, and every row reads
# itself. So no mask can keep the future out of such a layer.

# %% [markdown]
# **Three at once.** Our layer computes queries, keys and values in one product, so each token first has $3D$ numbers:
# its query, its key and its value, one after the other, each with its heads side by side. `view` gives each of these
# parts an axis of its own, and `permute` moves the axis of size 3 to the front, so that the result can be unpacked into
# three tensors. This time we count from 0 to 35:

# %%
qkv = torch.arange(B * T * 3 * H * d).view(B, T, 3, H, d)  # (B, T, 3, H, d)
q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, d) → three of (B, H, T, d)

# %% cellView="form" tags=["hide-input"]
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
# Here is the layer that every later notebook uses. One matrix makes the queries, keys and values of all heads. Then
# come the reshape, scores, mask, softmax and mean. Finally the heads are put side by side again, and a last matrix, the
# **output matrix**, mixes them. (The query is divided by $\sqrt{d_k}$ before the product, which gives the same scores.
# `remember`, `KVCache` and masks of shape (B, 1, T, S) are for notebook 05, in which some tokens were read in earlier
# calls. Until then `remember` is None, and $S = T$.)

# %%
show_source(MultiHeadAttention)

# %% [markdown]
# Besides the output matrix, one thing is new: **dropout** on the weights. In training it sets each weight to zero with
# a given probability $p$ and divides the others by $1 - p$, so that the mean over many draws stays the same. A head
# then cannot rely on a single word. When the model is used, dropout does nothing; and `ModelConfig` sets its
# probability to 0 unless we ask for more, as we do here. (Notebook 03 explains what it is for.)

# %%
torch.manual_seed(0)
draws = F.dropout(before[3].repeat(10_000, 1), 0.25)  # (N, T)
for name, row in {"weights": before[3], "one draw": draws[0], "mean of all": draws.mean(0)}.items():
    print(f"{name:12}", *(f"≈{w:.2f}" for w in row.tolist()), f"  sum ≈{row.sum():.2f}")

# %% [markdown]
# (So the comment *each row sums to 1* in the listing is about the weights before dropout.)
#
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
x, mask = torch.randn(1, 12, config.d_model), causal_mask(12)  # (B, T, D), (T, T)
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
    claim(f"{name}: ≈{difference:.1g} from the layer, less than 1e-6", difference < 1e-6)

# %% [markdown]
# ## A head written by hand
#
# Trained models often have heads that read, at each word, the word just before it ([Olsson et al.
# 2022](https://arxiv.org/abs/2209.11895)). Does that have to be learned? No: we can write down a $W_Q$ and a $W_K$ that
# do it for every sentence, provided that they see only the positions.
#
# Let each word's key be its own position vector, $k_s = p_s$. The dot product of two position vectors is largest when
# they are equal, so the query at $t$ should be $p_{t-1}$. But the word at $t$ only has $p_t$. We need *one* matrix that
# turns $p_t$ into $p_{t-1}$, for every $t$.
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
claim(
    f"one matrix turns each of {len(p) - 1} positions into the one before: ≈{error:.0e} off",
    error < 1e-5,
)

# %% [markdown]
# Call this turn $R$. Our vectors are rows, and for a row $p_{t-1} = p_t R^\top$. So $W_Q = R^\top$, and $W_K$ is the
# identity. (`nn.Linear` multiplies by the transpose of its `weight`, so there the weight is $R$ itself.) Before the
# division by $\sqrt{d_k}$, the score of key $s$ for query $t$ is $\sum_\omega \cos\omega(t - 1 - s)$: it depends only
# on how far $s$ is from the position where we want to look.
#
# **Predict.** The right word has the highest score: each of the 18 hands adds $\cos 0 = 1$. What is the score of its
# nearest neighbours: below 5, about 9, or above 14?

# %%
profile = [float((omega * distance).cos().sum()) for distance in range(len(p))]

# %% cellView="form" tags=["hide-input", "hide-output"]
table(
    [["score", *[f"{value:.1f}" for value in profile[:6]], f"at most {max(profile[6:]):.1f}"]],
    ["words away from t - 1", "0", "1", "2", "3", "4", "5", f"6 to {len(p) - 1}"],
    caption=(
        "The score of the hand-made head, by the distance from the word before. It falls over the "
        "next five words; farther away it goes up and down, but stays below the first three."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# The neighbours come close, with 14.4. One word turns the fastest hand by 1 radian, and $\cos 1$ is still 0.54; the
# other hands turn less. The division by $\sqrt{37} \approx 6.1$ leaves a gap of 0.6, and $e^{0.6} \approx 1.8$: the
# right word gets less than twice the weight of each neighbour.
#
# </details>
#
# The softmax depends only on the *differences* between scores. To enlarge them all, we multiply $W_Q$ by a number, the
# **sharpness**.


# %%
def previous_word(sharpness):
    """Weights of the hand-made head at every position, (T, T). Only positions go in."""
    q, k = p @ (sharpness * turn_back(1)).T, p  # (T, 2 HANDS) each
    return (q @ k.T / WIDTH**0.5 + causal_mask(len(p))).softmax(-1)  # (T, T)


# %%
worst = {sharpness: float(previous_word(sharpness).diagonal(-1).min()) for sharpness in (1, 3, 10)}

# %% cellView="form" tags=["hide-input"]
table(
    [[sharpness, f"{weight:.3f}"] for sharpness, weight in worst.items()],
    ["sharpness", f"least weight on the previous word, over {len(p) - 1} positions"],
    caption="A larger factor before the softmax brings the weight nearer to 1.",
)

# %%
tokens = ["<sos>", *tokenizer.split(SENTENCES[0])]
weights = previous_word(sharpness=10)[: len(tokens), : len(tokens)]  # (T, T)
claim(
    "two matrices set by hand make a previous-word head: at least "
    f"{worst[10]:.3f} of the weight lies on the previous word",
    worst[10] > 0.95,
)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    attention_plots.heatmap(
        weights, tokens, title="Every word but the first reads the word before it"
    ),
    "02_previous_word",
    alt="Heat-map of the hand-made head: nearly all the weight lies just below the diagonal.",
    caption=(
        "Each row is a word that reads. Look for its dark square, one step left of the diagonal. "
        "The picture does not show what the head passes on."
    ),
)

# %% [markdown]
# **Two matrices set by hand make a previous-word head, without training.** Only `<sos>` has nothing before it, so it
# reads itself. Here is the same head as arrows:

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    attention_plots.arrows(weights, tokens, title="One step up, at every word but the first"),
    "02_previous_word_arrows",
    alt="Arrows from each word but the first on the left to the word one line higher on the right.",
    caption=(
        "The same weights as arrows; those below 0.1 have none. The positions of the words decide "
        "them; what the words mean plays no part."
    ),
)

# %% [markdown]
# That a head like this *can* exist follows from the positions alone. Whether training finds one is another question,
# which notebook 04 answers.
#
# ## Two heads in a row: induction
#
# What is a previous-word head good for? Suppose a text says *Tom lost his kite … Tom*. A good guess for the next word
# is *lost*, because that is what followed the earlier *Tom*. Two heads in two layers can find it:
#
# 1. A **previous-word head** in the first layer tells every word which word stood before it. Now *lost* knows "I came
#    after *Tom*".
# 2. A head in the second layer asks: "which word came after a word like me?" Its query is the word itself; its keys are
#    what the first head brought.
#
# The second is called an **induction head** (Olsson et al. 2022). Here each word is a one-hot vector. The factor 10 is
# a sharpness; nothing is divided by $\sqrt{d_k}$ here:


# %%
def induction(ids):
    """What the last of these tokens reads, and the two layers' weights. ids (T,)."""
    T, word = len(ids), F.one_hot(ids, len(tokenizer)).float()  # (T, V)
    first = previous_word(sharpness=10)[:T, :T]  # (T, T)
    came_after = first @ word  # (T, V): what the first head brings
    scores = 10 * word @ came_after.T + causal_mask(T)  # (T, T): which came after a word like me?
    second = scores.softmax(-1)  # (T, T)
    return (second @ word)[-1], first, second  # (V,), (T, T), (T, T)


# %%
text = ["<sos>", *tokenizer.split("Tom lost his kite. Mia found the ball. Tom")]
ids = torch.tensor([tokenizer.sos_id, *tokenizer.encode(" ".join(text[1:]))])  # (T,)
answer, first, second = induction(ids)
print(f"the last “tom” reads: {answer.max():.2f} of “{tokenizer.word(answer.argmax().item())}”")

# %% cellView="form" tags=["hide-input"]
table(
    [[t, text[t], text[first[t].argmax()], f"{second[-1, t]:.2f}"] for t in range(1, len(text))],
    ["position", "word", "came after", "weight from the last “tom”"],
    caption="The induction head at work: the last “tom” finds the word that came after the first.",
)

# %% [markdown]
# The last *tom* finds the one position that comes after another *tom*, and reads *lost* there. No matrix mentions *tom*
# or *lost*: the pair works for any words whose vectors are perpendicular and equally
# long, as one-hot vectors are. Notebook 04 looks for such pairs in the
# trained model.
#
# ## Eight heads written by hand
#
# A head can ask for words as well as for positions. Let a word be a vector with a single large number, in the
# coordinate that its id selects. If $W_Q$ and $W_K$ both pick out these numbers, two different words score 0 and two
# equal words score high. This makes a **same-word head**. And a table from words to words, used as $W_Q$, makes a head
# in which *he* asks for *tom*.
#
# In our model, word and position are added, number by number. We put the words into coordinates where the positions are
# small: the slowest sines hardly leave zero within one sentence. A head of 37 numbers has room for 37 different tokens,
# and our three sentences need 25. A word will be the number 4 in its coordinate, much larger than any position there.
# (The full model normalises the sum before attention reads it, see notebook 03. Here attention reads it as it is.)

# %%
coordinates = torch.arange(config.d_model - 2 * WIDTH, config.d_model, 2)  # (d,), the slowest sines
loudest = positions[:16, coordinates].max()
print(f"in the {WIDTH} coordinates of the words, 16 positions are at most {loudest:.3f}")


# %%
def embed(ids):
    """Word plus position, as in the model. ids (T,) -> (T, D)."""
    x = positions[: len(ids)].clone()  # (T, D)
    x[:, coordinates] += 4 * F.one_hot(torch.tensor(ids), WIDTH)  # (T, d)
    return x


# %% [markdown]
# Each of our heads reads either the position or the word, and $W_Q$ says what it asks for. `where` selects the 36
# numbers of the fast hands, and `what` the 37 numbers of the word.

# %%
where = torch.eye(WIDTH, config.d_model)  # (d, D); the last row stays 0
where[2 * HANDS :] = 0
what = torch.eye(config.d_model)[coordinates]  # (d, D), the word


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
# Now fill the model's own `MultiHeadAttention` with these matrices, twice: once as a sharp layer, and once with a tenth
# of the sharpness. Both read the same input; nothing is stacked yet.


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

# %% [markdown]
# **Predict.** The head called *next word* asks for a word that is masked. Where will its weight go: to the word itself,
# to `<sos>`, or evenly to all words that it may read?


# %%
@torch.no_grad()
def attend(ids):
    """The weights of the sharp layer and of the blunt one. ids (T,) -> (2, H, T, T)."""
    x, mask = embed(ids)[None], causal_mask(len(ids))  # (1, T, D), (T, T)
    return torch.cat([layer(x, mask)[1] for layer in layers])  # (2, H, T, T)


encoded = [[tokenizer.sos_id, *tokenizer.encode(text)] for text in SENTENCES]
attention = [attend(ids) for ids in encoded]  # for each sentence (2, H, T, T)

# %% cellView="form" tags=["hide-input", "hide-output"]
figures.save_figure(
    attention_plots.head_grid(
        attention[1][0],
        ["<sos>", *tokenizer.split(SENTENCES[1])],
        titles=list(heads),
        title="Hand-made heads read what they ask for, if they may",
    ),
    "02_eight_heads",
    alt="Eight hand-made heads as heat-maps on one sentence; two of them look alike.",
    caption=(
        "The title of each picture names the head's job. Look for the two that are alike: itself "
        "and next word. The pictures do not show what the heads pass on."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# To the word itself. It is the nearest word that the head may read, and so the one with the highest score that is left:
# 14.4 against 5.5 for the word before it, times the sharpness and before the division.
#
# </details>
#
# Four heads ask for positions: one and two words back, the word itself, and the word ahead. Three ask for words. *Same
# word* finds the word itself and, at a full stop, the earlier full stops too, in nearly equal parts. *Who is he?* sends
# *he*, *his* and *him* to *tom*, and would send *her* to *mia*; all other words read `<sos>`. The last head asks for
# nothing, and spreads its weight evenly over the word itself and the past. These patterns are clean because we designed
# them. A trained head may mix several, or follow none.
#
# How much of a head's weight lies where it should? A **pattern** says for each word which words it should read: the
# *previous word*, *itself*, the earlier copies of the *same word*, or the *start token* (from the third token on, since
# for the second it is the previous word too). We
# average the weight on a pattern over all words for which it has something to read. Notebook 04 judges trained heads in
# this way.


# %% cellView="form" tags=["hide-input"]
def on_pattern(pattern, layer, head):
    """Mean weight on the keys of a pattern, over all words that have such a key."""
    found = []
    for ids, weights in zip(encoded, attention, strict=True):
        allowed = torch.from_numpy(pattern_targets(ids)[pattern])  # (T, T)
        on_keys = (weights[layer, head] * allowed).sum(-1)  # (T,)
        found.append(on_keys[allowed.any(-1)])
    return torch.cat(found).mean().item()


uniform = list(heads).index("uniform")
numbers = {}
for name in ("previous word", "itself", "same word", "start token"):
    head = list(heads).index(name)
    numbers[name] = [on_pattern(name, *which) for which in ((0, head), (1, head), (0, uniform))]
table(
    [[name, *[f"{value:.3f}" for value in row]] for name, row in numbers.items()],
    ["head, on its own pattern", "sharp", "blunt: a tenth as sharp", "uniform head"],
    caption=(
        "The mean weight that each head puts on the pattern it was made for, compared with a "
        "blunter copy of it and with a head that has no pattern."
    ),
)

# %% [markdown]
# The last column shows what evenly spread attention would give. *Same word* cannot reach 1: it divides its weight
# between the earlier copies, which count towards the pattern, and the word itself, which does not.
#
# Now look around. The name of each head is above its picture. Before you move a slider, say what you expect to see.
# **Type a sentence of your own** and press Enter, and the layers read it; they know only the words of the three
# sentences. (On paper and on GitHub you see a single picture.)


# %% cellView="form" tags=["hide-input"]
def read(text):
    """The tokens of a sentence, and what both layers read, (2, H, T, T)."""
    ids = [tokenizer.sos_id, *tokenizer.encode(text)]
    if len(ids) > len(positions):
        raise ValueError(f"type at most {len(positions) - 1} words")
    names = ["<sos>", *tokenizer.split(text)]
    return [a if a in id_of else f"{a} (unknown)" for a in names], attend(ids).numpy()


notes = {(layer, h): name for layer in (1, 2) for h, name in enumerate(heads, start=1)}
explorer = AttentionExplorer({text: read(text) for text in SENTENCES}, read=read, notes=notes)
explorer.sentence.value, explorer.head.value = SENTENCES[2], 5  # the first picture
figures.save_explorer(explorer, "02_attention")

# %% [markdown]
# *Look at the rows of “the”: this same-word head divides their weight between the word itself and the earlier copies.
# What it passes on is not in the picture.*
#
# ## What attention weights do not show
#
# A heat-map shows where a head *reads*. It does not show what the head *does*. That is decided by the value matrix and
# by the output matrix, and neither is in the picture ([Elhage et al.
# 2021](https://transformer-circuits.pub/2021/framework/index.html) analyse separately where a head reads and what it
# does). The value matrix of our previous-word head passes on the word that it reads. So what a position receives,
# before the output matrix, is one number for each token, and the largest names the word:

# %%
weights = attention[0][0, 0]  # (T, T), the sharp previous-word head on the first sentence
received = weights @ (embed(encoded[0]) @ what.T)  # (T, d), the head's mixture of values
lines = {"word": encoded[0], "receives": received.argmax(-1).tolist()}

# %% cellView="form" tags=["hide-input"]
table(
    [[name, *map(tokenizer.word, line)] for name, line in lines.items()],
    ["position", *map(str, range(len(encoded[0])))],
    caption="The words of the sentence, and the word that each position receives from the head.",
)

# %% [markdown]
# The second line is the first, moved by one: every word but `<sos>` now *knows* the word before it. But take another
# value matrix, and the same picture means something else:

# %%
red, ball = id_of["red"], encoded[0].index(id_of["ball"])  # a coordinate, a position
for name, W_V in {"the word": what, "its opposite": -what, "nothing": 0 * what}.items():
    passed_on = weights @ (embed(encoded[0]) @ W_V.T)  # (T, d)
    print(f"passes on {name:12}  “ball” receives {passed_on[ball, red]:4.1f} of “red”")

# %% [markdown]
# Values also differ in length. A large weight on a short value does little; a small weight on a long value can decide
# everything: 0.9 of a value of length 0.1 adds 0.09, and 0.1 of a value of length 10 adds 1. And in layer 2 or 3, the
# vector of a word no longer holds only that word, but also what earlier layers put there. So treat a heat-map as a
# question, not as an explanation.

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
# - A word scores its own key and those of the words before it, the softmax turns the scores into weights, and the
#   values are averaged with these weights.
# - The scores of random queries and keys have variance $d_k$; dividing by $\sqrt{d_k}$ keeps the softmax soft at the
#   start.
# - If the mask comes *before* the softmax, no output depends on later words. We exchanged one word, and the outputs
#   before it stayed the same to the last bit.
# - Heads are a reshape of queries, keys and values. Our layer gives the same results as the loops and as PyTorch's own
#   layer, up to rounding.
# - A $W_Q$ that turns the clock hands back, multiplied by a sharpness, makes a previous-word head. Together with an
#   induction head in the next layer, it finds what followed an earlier copy of a word.
# - Weights say where a head reads, not what it does.
#
# ## What GPT and Llama do differently
#
# - **Fused attention.** Programs that run these models today usually do not build the (T, T) table of weights in memory.
#   FlashAttention ([Dao et al. 2022](https://arxiv.org/abs/2205.14135)) computes the same result block by block, which
#   saves memory and time when contexts have thousands of tokens. In PyTorch it is behind
#   `F.scaled_dot_product_attention`. Ours keeps the table, because we want to look at it.
# - **Fewer keys.** In Llama 3 several heads share keys and values (grouped-query attention,
#   [Ainslie et al. 2023](https://arxiv.org/abs/2305.13245)), so storing old keys and values takes less memory (notebook
#   05).
# - **Positions inside attention.** Llama adds no position vectors. It rotates queries and keys in every layer, each by
#   an angle that grows with its position (rotary embeddings, RoPE, [Su et al.
#   2021](https://arxiv.org/abs/2104.09864)), so the positions enter a score only through the distance of two words.
#   Our head by hand makes one fixed turn, by one step.
#
# Next: [03 · The decoder block](03_decoder_block.ipynb) puts the layer to work.
#
# ## Can you?
#
# 1. Two keys have the scores 0 and ln 3 (already divided by √dₖ), and the values (4, 0) and (0, 4). What does the word
#    receive? Which two matrix products compute this for all words?
#    <details><summary>Answer:</summary> The exponentials are 1 and 3, so the weights are 1/4 and 3/4, and the mean is
#    (1, 3). For all words: queries times keys transposed and, after the softmax, weights times values.</details>
# 2. Random queries and keys have 64 entries, with variance 1. How large are their scores, and what happens without the
#    division?
#    <details><summary>Answer:</summary> Their standard deviation is 8. Without the division one key, chosen by chance,
#    takes most of the weight. The larger $d_k$, the more queries then get almost no gradient.</details>
# 3. Why does the mask come before the softmax? How would you show the leak otherwise?
#    <details><summary>Answer:</summary> Afterwards the future has already taken its share of the sum. Raise the score
#    of a later word: if the mask comes too late, the weights of the past change.</details>
# 4. A colleague writes <code>x.view(B, H, T, d)</code>. What does each head get?
#    <details><summary>Answer:</summary> All numbers of some words instead of some numbers of all words (and even parts
#    of words if H does not divide T).</details>
# 5. Which matrices make a head that reads the word two positions back? Which two heads together find what followed an
#    earlier copy of a word?
#    <details><summary>Answer:</summary> A turn of the hands back by two steps, times a sharpness, as W_Q, and the
#    identity as W_K, both acting on positions. A previous-word head and, in the next layer, an induction head: its
#    query is the word, and its keys are what the first head brought.</details>
# 6. A head puts all its weight on one word. What is still unknown?
#    <details><summary>Answer:</summary> What it passes on: that depends on the value matrix and on the output
#    matrix.</details>
#
# ## Exercises
#
# There are five tasks, with solutions and with checks that name your mistake: attention from its formula, the causal
# mask, splitting into heads, joining them, and a head made by hand that looks two words back. They take about an hour
# and a quarter: [exercises for 02](exercises/02_attention.ipynb).
#
# ## References
#
# - [Ainslie et al. 2023](https://arxiv.org/abs/2305.13245), *GQA: Training Generalized Multi-Query Transformer
#   Models from Multi-Head Checkpoints*
# - [Dao et al. 2022](https://arxiv.org/abs/2205.14135), *FlashAttention: Fast and Memory-Efficient Exact
#   Attention with IO-Awareness*
# - [Elhage et al. 2021](https://transformer-circuits.pub/2021/framework/index.html), *A Mathematical Framework for
#   Transformer Circuits*
# - [Olsson et al. 2022](https://arxiv.org/abs/2209.11895), *In-context Learning and Induction Heads*
# - [Su et al. 2021](https://arxiv.org/abs/2104.09864), *RoFormer: Enhanced Transformer with Rotary Position Embedding*
# - [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), *Attention Is All You Need*, sections 3.2 and 3.5
