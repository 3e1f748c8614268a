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
# **Promise.** You will build attention from one loop to the layer that our model uses, and know why each part is there.
# At the end you will write down two matrices by hand, and they make every word read the word before it. Nothing is
# trained.
#
# **Prerequisites.** [01 · Embeddings](01_embeddings.ipynb): a word is a vector, and a position is a set of clock hands.
#
# **Running time.** About 10 seconds on two cores. All sentences are our own, so every corpus gives the same numbers.

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
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from helpers import attention_plots, plots
from helpers.explorers import AttentionExplorer
from helpers.heads import pattern_targets
from helpers.model import Decoder, ModelConfig, MultiHeadAttention, sinusoidal_positions
from helpers.notebook import FigureFolder, show_source, table
from helpers.tokenizer import WordTokenizer

figures = FigureFolder(CORPUS)

# %% [markdown]
# ## One word asks
#
# In *Mia lost her red ball*, the word *ball* alone does not say what kind of ball, or whose. The other words do.
# Attention lets a word collect what it needs from the words before it, and from itself.
#
# Each word offers a **key**, which says what it is, and a **value**, which is what it gives away. The word that reads
# has a **query**, which says what it is looking for. Here are five words with tiny vectors, made up by us. The two
# numbers of a key mean *is a person* and *describes a thing*. The two numbers of a value mean *Mia-ness* and *redness*.

# %%
words = ["mia", "lost", "her", "red", "ball"]
# Columns: person, describes a thing.
keys = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])  # (T, K)
# Columns: Mia-ness, redness.
values = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.8, 0.0], [0.0, 1.0], [0.0, 0.0]])  # (T, K)
query = torch.tensor([1.0, 2.0])  # (K,): "ball" looks for an owner, and even more for a description

# %% [markdown]
# Three steps. **Score** each key by its dot product with the query (the division by $\sqrt{d}$ is explained soon). Turn
# the scores into **weights** that are positive and sum to 1: the softmax. Take the weighted **mean** of the values.


# %%
def one_query(query, keys, values):
    """Attention of one word, by a loop over the words that it reads. Returns scores, weights and
    the mixed value.
    """
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
rows = [
    [words[i], f"{scores[i]:.2f}", f"{weights[i]:.2f}", *values[i].tolist()]
    for i in range(len(words))
]
table(
    [*rows, ["sum, mean", "", f"{sum(weights):.2f}", *mixed]],
    ["word", "score", "weight", "Mia-ness", "redness"],
)

# %% [markdown]
# *Red* gets the largest weight, because its key fits the query best. The last row is what *ball* takes home: rather
# red, and a little Mia's. No word is chosen; each gives its share.

# %% [markdown]
# ## All words ask at once
#
# Give every word a query and stack them as rows: $Q$. Stack keys and values: $K$, $V$. Now one matrix product makes all
# the scores, and a second one all the means (Vaswani et al. 2017, section 3.2.1 [@vaswani2017attention]):
#
# $$\operatorname{Attention}(Q, K, V) = \operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d}}\right)V$$
#
# Row $t$ of the weights belongs to the word that reads, column $s$ to the word that is read.

# %%
queries = torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 0.0], [1.0, 0.0], [1.0, 2.0]])  # (T, K)
scores = queries @ keys.T / keys.shape[-1] ** 0.5  # (T, T)
weights = scores.softmax(dim=-1)  # (T, T), each row sums to 1
mixed = weights @ values  # (T, K)

by_loop = torch.tensor([one_query(query, keys, values)[2] for query in queries])  # (T, K)
assert torch.allclose(mixed, by_loop, atol=1e-6), "the matrix form is not the loop"
print(
    f"loop and matrix form agree: {torch.allclose(mixed, by_loop, atol=1e-6)}, shape "
    f"{tuple(mixed.shape)}"
)

# %% [markdown]
# Same numbers, no loop. (Here every word still reads every other; the mask comes in a moment.) In the model nobody
# writes queries, keys and values by hand. They are three linear maps of the same word vectors $X$, one row per word: $Q
# = XW_Q$, $K = XW_K$, $V = XW_V$. Training finds the three matrices.

# %% [markdown]
# ## Why divide by √d?
#
# A dot product adds $d$ products. If the numbers are independent, with mean 0 and variance 1, each product has variance
# 1 too, and variances add: the sum has variance $d$. Long vectors make large scores. Let us measure it on random
# queries and keys.


# %%
def random_scores(d, count=2000, keys=10):
    """Dot products of `count` random queries with 10 random keys each, (count, keys)."""
    generator = torch.Generator().manual_seed(d)
    query = torch.randn(count, 1, d, generator=generator, dtype=torch.float64)  # (N, 1, K)
    key = torch.randn(count, keys, d, generator=generator, dtype=torch.float64)  # (N, S, K)
    return (query * key).sum(-1)  # (N, S)


# %%
widths = [1, 4, 16, 64, 256, 1024]
dots = {d: random_scores(d) for d in widths}
variance = {d: dots[d].var().item() for d in widths}

# %%
assert all(0.9 < variance[d] / d < 1.1 for d in widths), "the variance of a dot product is not d"
table(
    [[d, f"{variance[d]:,.0f}", f"{variance[d] / d:.2f}"] for d in widths],
    ["d", "variance of q · k", "divided by d"],
)

# %% [markdown]
# The variance is $d$, within the error of the sample. So the standard deviation is $\sqrt{d}$, and dividing by it
# brings the scores back to size 1, for every $d$.
#
# **Predict.** Leave the division out. Ten keys, all random, none better than another. What does the softmax do as $d$
# grows?

# %%
largest = {
    "scores as they are": [dots[d].softmax(-1).amax(-1).mean().item() for d in widths],
    "scores divided by √d": [(dots[d] / d**0.5).softmax(-1).amax(-1).mean().item() for d in widths],
}

# %%
figure = plots.compare_curves(
    {label: (widths, y) for label, y in largest.items()},
    landmarks={"uniform": 1 / 10},
    x_label="d, the length of query and key (logarithmic)",
    y_label="largest of the ten weights (mean)",
    title="Without √d, one key takes it all by chance",
)
figure.axes[0].set_xscale("log", base=2)
figure.axes[0].set_xticks(widths, widths)
figures.save_figure(
    figure,
    "02_sqrt_d",
    alt=(
        "Largest attention weight against d: it rises towards 1 without the division by the root "
        "of d, and stays flat with it."
    ),
)

# %%
for label, y in largest.items():
    print(f"{label:22} d = {widths[-1]}: largest weight {y[-1]:.2f}")
assert largest["scores as they are"][-1] > 0.9 > 0.4 > largest["scores divided by √d"][-1]

# %% [markdown]
# Read each point as an average over two thousand random queries. Undivided, the winner's weight climbs towards 1: the
# head looks at one word, chosen by chance. Divided, it hardly depends on $d$, and stays well below. (It is not 1/10
# even then: of ten random scores one is the largest.) The figure is about random vectors, as at the start of training.
# A trained head may well be sharp; then it is sharp for a reason, because its matrices have grown.
#
# Why is a sharp start bad? A weight $w$ changes with its score at the rate $w(1 - w)$. Near 0 and near 1 that is
# nothing, so there is almost no gradient to learn from.

# %%
for label, scale in (("scores as they are", 1.0), ("scores divided by √d", widths[-1] ** -0.5)):
    w = (dots[widths[-1]] * scale).softmax(-1)  # (N, S)
    print(f"{label:22} d = {widths[-1]}: mean of w(1 - w) = {(w * (1 - w)).mean():.3f}")

# %% [markdown]
# ## Nobody reads the future
#
# The model learns to predict the next word. A word that could read the next one would only copy it. So the weights on
# later words must be zero. This is the **mask**.
#
# Where does it go: before the softmax or after it? Take four words with made-up scores, and try both.

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


# %%
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
)

# %% [markdown]
# Both have zeros above the diagonal. But masked after the softmax, the rows no longer sum to 1: the future has taken
# its share and was thrown away. Masked before, a score of $-\infty$ becomes a weight of $e^{-\infty} = 0$, and the rest
# shares the whole 1.
#
# It is worse than a wrong sum. Raise the score of the last word, which the first three must not see, and watch *their*
# weights.

# %%
changed = scores.clone()
changed[:3, 3] += 2.0  # the last word becomes more attractive
leak = (mask_after(changed) - after)[:3].abs().amax(-1)  # (3,)
assert (leak > 0).all(), "masked after the softmax, the past should move"
assert torch.equal(mask_before(changed)[:3], before[:3]), (
    "masked before the softmax, the past must not move"
)
for word, x in zip(words, leak.tolist(), strict=False):
    print(f"masked after:  the weights of {word!r} moved by up to {x:.2f}")
print("masked before: no weight moved by a single bit")

# %% [markdown]
# Masked too late, the weights of the past carry a trace of the future: a leak that no heat-map of zeros shows. In
# formulas the mask is a matrix $M$, 0 where a word may look and $-\infty$ where it may not:
#
# $$\operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d}} + M\right)V$$
#
# **Predict.** Our whole model, three layers deep, reads a sentence. Then one word in its middle is exchanged. Which of
# the model's outputs change: those before the word, those after it, or all?

# %%
SENTENCES = [
    "Mia lost her red ball. Tom found the red ball.",
    "Tom was sad. He lost his kite. Mia helped him.",
    "The cat saw the dog, and the dog saw the cat.",
]

# %%
tokenizer = WordTokenizer.train(SENTENCES)
torch.manual_seed(0)
model = Decoder(ModelConfig(vocab_size=len(tokenizer))).eval()  # not trained

# %%
original, exchanged = (
    torch.tensor([[tokenizer.sos_id, *tokenizer.encode(text)]])  # (B, T)
    for text in (SENTENCES[1], SENTENCES[1].replace("kite", "ball"))
)

# %%
place = int((original != exchanged).nonzero()[0, 1])
with torch.no_grad():
    moved = (model(original) - model(exchanged))[0].abs().amax(-1)  # (T,)
    model.mask.zero_()  # the same model, its mask taken away
    moved_unmasked = (model(original) - model(exchanged))[0].abs().amax(-1)  # (T,)

# %%
assert (moved[:place] == 0).all(), "the past moved: the mask is wrong"
assert (moved[place:] > 0).all(), "the word and all after it must notice the exchange"
assert (moved_unmasked > 0).all(), "without the mask, every word notices"


# %%
def change(x):
    return "0, bit for bit" if x == 0 else f"{x:.2f}"


# %%
pairs = zip(original[0].tolist(), exchanged[0].tolist(), strict=True)
names = [
    tokenizer.word(a) if a == b else f"{tokenizer.word(a)} → {tokenizer.word(b)}" for a, b in pairs
]
table(
    [[name, change(moved[t]), change(moved_unmasked[t])] for t, name in enumerate(names)],
    ["word", "output moved by", "without the mask"],
)

# %% [markdown]
# Nothing before the exchanged word moves, not by the last bit, through all layers. Without the mask, every output
# moves. This is what makes training efficient: one pass over a story gives a fair prediction at every word. And when
# text is written word by word, the keys and values of the past stay as they are, so they can be kept.

# %% [markdown]
# ## Several heads are one reshape
#
# One set of weights can look for one thing. So the model's width is cut into equal shares, and each share, a **head**,
# attends on its own (Vaswani et al. 2017, section 3.2.2). Numbers in order show who gets what: two words of width six,
# two heads.

# %%
B, T, H, K = 1, 2, 2, 3
x = torch.arange(B * T * H * K).view(B, T, H * K)  # (B, T, D)
by_loop = [x[:, :, h * K : (h + 1) * K] for h in range(H)]  # H times (B, T, K)
at_once = x.view(B, T, H, K).permute(0, 2, 1, 3)  # (B, H, T, K)

# %%
for h in range(H):
    assert torch.equal(at_once[:, h], by_loop[h]), "a head must be a slice of the columns"
    print(f"head {h + 1}:", at_once[0, h].tolist())

# %% [markdown]
# No number is computed and none is copied: `view` and `permute` only say how to walk through them. The order matters. A
# direct `view(B, H, T, K)` has the right shape and the wrong content: it cuts between words, not between columns.

# %%
# Head 1 now holds all of the first word and none of the second.
wrong = x.view(B, H, T, K)  # (B, H, T, K)
assert wrong.shape == at_once.shape, "the mistake raises no error"
assert not torch.equal(wrong, at_once), "the wrong reshape should mix up the words"
print("head 1, wrongly:", wrong[0, 0].tolist())

# %% [markdown]
# ## The layer of our model
#
# All parts are there. This is the layer that every later notebook uses. One matrix makes queries, keys and values of
# all heads in a single product; the reshape; scores, mask, softmax, mean; then the heads are put side by side again,
# and a last matrix mixes them. (`remember` is for the cache of notebook 05. Until then it is None, and $S = T$.)

# %%
show_source(MultiHeadAttention)

# %% [markdown]
# Is it what we derived? Write it once more, slowly: a loop over words, a loop over heads, and our `one_query` for each.
# A word is given only the words up to itself, so this version needs no mask.


# %%
def by_loops(layer, x):
    """The same layer by loops. x (T, D) -> (T, D)."""
    q, k, v = layer.qkv(x).double().chunk(3, dim=-1)  # (T, D) each
    width = x.shape[-1] // layer.num_heads
    rows = []
    for t in range(len(x)):
        shares = [slice(h * width, (h + 1) * width) for h in range(layer.num_heads)]
        rows.append(
            [
                number
                for own in shares
                for number in one_query(q[t, own], k[: t + 1, own], v[: t + 1, own])[2]
            ]
        )
    return layer.output(torch.tensor(rows))  # (T, D)


# %% [markdown]
# And the independent judge: PyTorch's own `nn.MultiheadAttention`, with the same weights.

# %%
torch.manual_seed(0)
config = ModelConfig()
layer, judge = (
    MultiHeadAttention(config),
    nn.MultiheadAttention(config.d_model, config.num_heads, batch_first=True),
)
parts = {"in_proj_": layer.qkv, "out_proj.": layer.output}  # PyTorch's names for our two matrices
same = {f"{name}{key}": x for name, part in parts.items() for key, x in part.state_dict().items()}
judge.load_state_dict(same)
print("given to PyTorch's layer:", *same)


# %%
def causal_mask(length):
    return torch.full((length, length), -torch.inf).triu(1)  # (T, T)


x = torch.randn(1, 12, config.d_model)  # (B, T, D)
mask = causal_mask(12)  # (T, T)

# %%
with torch.no_grad():
    ours, weights = layer(x, mask)  # (B, T, D), (B, H, T, T)
    # The same shapes.
    theirs, their_weights = judge(x, x, x, attn_mask=mask, average_attn_weights=False)
    differences = {
        "our loops": (ours[0] - by_loops(layer, x[0])).abs().max(),
        "PyTorch's output": (ours - theirs).abs().max(),
        "PyTorch's weights": (weights - their_weights).abs().max(),
    }

# %%
for name, difference in differences.items():
    assert difference < 1e-6, f"the layer differs from {name} by {difference:.1e}"
    print(f"{name:18} differ by less than 1e-6: {bool(difference < 1e-6)}")

# %% [markdown]
# ## A head written by hand
#
# Trained models are known to have heads that read, at each word, the word just before it (Olsson et al. 2022
# [@olsson2022context]). Must that be learned?
#
# **Predict.** Can you write down a $W_Q$ and a $W_K$ that do it, for every word and every sentence? What would the
# query of the word at position $t$ have to be?
#
# The keys are easy: let each word's key be its own position vector, $k_s = p_s$. The dot product of two position
# vectors is largest when they are equal. So the query at $t$ should be $p_{t-1}$. But the word at $t$ only has $p_t$.
# Is there *one* matrix that turns $p_t$ into $p_{t-1}$, for every $t$?
#
# Remember the clock: each pair of numbers in $p_t$ is a hand that turns by a fixed angle $\omega$ with every word. One
# step back is the same turn backwards, wherever the hand stands. A turn is a matrix:
#
# $$\begin{pmatrix}\cos\omega & -\sin\omega\\ \sin\omega & \cos\omega\end{pmatrix}
# \begin{pmatrix}\sin\omega t\\ \cos\omega t\end{pmatrix} =
# \begin{pmatrix}\sin\omega(t-1)\\ \cos\omega(t-1)\end{pmatrix}$$
#
# A head of our model has room for only some of the hands. We take the fastest, because they tell neighbours apart.

# %%
WIDTH = config.d_model // config.num_heads  # of one head
HANDS = WIDTH // 2
# The angle of each hand per word.
omega = 10_000 ** (-2 * torch.arange(HANDS) / config.d_model)  # (HANDS,)
print(f"a head is {WIDTH} numbers wide: room for {HANDS} hands of {config.d_model // 2}")


# %%
def turn_back(steps):
    """The matrix that takes p(t) to p(t - steps), (2 HANDS, 2 HANDS)."""
    angle = steps * omega  # (HANDS,)
    turns = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1)  # (HANDS, 4)
    return torch.block_diag(*turns.view(HANDS, 2, 2))  # (2 HANDS, 2 HANDS)


# %%
positions = sinusoidal_positions(config.context_length, config.d_model)  # (T, D)
p = positions[:, : 2 * HANDS]  # (T, 2 HANDS)
error = (p[1:] @ turn_back(1).T - p[:-1]).abs().max()
assert error < 1e-5, "the turned p(t) is not p(t - 1)"
print(
    f"one matrix takes every p(t) to p(t - 1), for {config.context_length - 1} values of t: "
    f"{bool(error < 1e-5)}"
)

# %% [markdown]
# So $W_Q$ is that turn and $W_K$ the identity. (Our vectors are rows, so the code multiplies by the transpose, as
# `nn.Linear` does.) The score of key $s$ for query $t$ is $\sum \cos\omega(t - 1 - s)$: it depends only on how far $s$
# is from the place where we want to look.

# %%
distances = range(5)
profile = [float((omega * distance).cos().sum()) for distance in distances]
table(
    [["score", *[f"{value:.1f}" for value in profile]]],
    ["words away from t - 1", *map(str, distances)],
)

# %% [markdown]
# The right word wins, but its neighbours are close behind. The softmax looks at *differences* of scores, so multiply
# $W_Q$ by a number, the **sharpness**. This is how a head becomes sure of itself: its matrices grow.


# %%
def previous_word(sharpness):
    """Weights of the hand-made head at every position, (T, T). Only positions go in."""
    q, k = p @ (sharpness * turn_back(1)).T, p  # (T, 2 HANDS) each
    return (q @ k.T / WIDTH**0.5 + causal_mask(len(p))).softmax(-1)  # (T, T)


# %%
worst = {sharpness: float(previous_word(sharpness).diagonal(-1).min()) for sharpness in (1, 3, 10)}
rows = [[sharpness, f"{weight:.3f}"] for sharpness, weight in worst.items()]
table(rows, ["sharpness", f"least weight on the previous word, over {len(p) - 1} positions"])

# %%
weights = previous_word(sharpness=10)  # (T, T)
assert (weights.diagonal(-1) > 0.95).all(), "some word does not read the word before it"

# %%
tokens = ["<sos>", *tokenizer.split(SENTENCES[0])]
weights = weights[
    : len(tokens), : len(tokens)
]  # what comes after does not matter: the past does not move
figures.save_figure(
    attention_plots.heatmap(weights, tokens, title="Every word reads the word before it"),
    "02_previous_word",
    alt="Heat-map of the hand-made head: all the weight lies on the line just below the diagonal.",
)

# %% [markdown]
# **Two matrices set by hand make a previous-word head, with no training.** Each row is a word that reads; its dark
# square is one step left of the diagonal. Only `<sos>` has nothing before it, so it reads itself. Grey is the future,
# which the mask forbids. The same head as arrows:

# %%
figures.save_figure(
    attention_plots.arrows(weights, tokens, title="One step up, at every word"),
    "02_previous_word_arrows",
    alt="Arrows from each word on the left to the word one line higher on the right.",
)

# %% [markdown]
# Every arrow climbs one line: *mia* reads `<sos>`, *lost* reads *mia*. Arrows under a weight of 0.1 are hidden. That a
# head like this *can* exist follows from the positions alone. That training finds one is another question, and notebook
# 04 measures it.

# %% [markdown]
# ## Eight heads written by hand
#
# Words can be asked for as well as places. Let a word be a vector with a single large number, at the place of its id.
# Then $W_Q = W_K$ on these numbers scores 0 for two different words and high for equal ones: a **same-word head**. And
# a table from words to words, used as $W_Q$, makes a head in which *he* asks for *tom*.
#
# In our model, word and position are added, number by number. We put the words where the positions are quiet: the
# slowest sines hardly leave zero within one sentence. (The full model norms the sum before it enters attention, see
# notebook 03. Here it enters as it is.)

# %%
word_places = torch.arange(config.d_model - 2 * WIDTH, config.d_model, 2)  # (K,), the slowest sines
print(
    "largest position value at these places, within 16 words: "
    f"{positions[:16, word_places].max():.3f}"
)


# %%
def embed(ids):
    """Word plus position, as in the model. ids (T,) -> (T, D)."""
    assert max(ids) < WIDTH, "more words than a head has numbers"
    x = positions[: len(ids)].clone()  # (T, D)
    x[:, word_places] += 4 * F.one_hot(torch.tensor(ids), WIDTH)  # (T, K)
    return x


# %% [markdown]
# A head reads either the place or the word, and $W_Q$ says what it asks for. `where` and `what` select one head's width
# of numbers from all.

# %%
where = torch.eye(WIDTH, config.d_model)  # (K, D), the fast hands; one number is left over
where[2 * HANDS :] = 0
what = torch.eye(config.d_model)[word_places]  # (K, D), the word


# %%
def step_back(steps):
    return torch.block_diag(turn_back(steps), torch.zeros(1, 1))  # (K, K)


# %%
id_of = {tokenizer.word(i): i for i in range(len(tokenizer))}


def asks_for(wishes, otherwise):
    """A table from words to words as a matrix, (K, K): column = the word that reads, row = the word
    it asks for.
    """
    matrix = torch.zeros(WIDTH, WIDTH)  # (K, K)
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
# Now fill the model's own `MultiHeadAttention` with these matrices, twice: a sharp layer, and one with a tenth of the
# sharpness.


# %%
@torch.no_grad()
def hand_made_layer(sharpness):
    layer = MultiHeadAttention(config)
    W_Q = torch.cat([sharpness * wish @ part for part, wish in heads.values()])  # (D, D)
    W_K = torch.cat([part for part, _ in heads.values()])  # (D, D)
    # Every head passes on the word that it reads.
    W_V = torch.cat([what] * config.num_heads)  # (D, D)
    layer.qkv.weight.copy_(torch.cat([W_Q, W_K, W_V]))  # (3D, D)
    layer.qkv.bias.zero_()
    return layer


# %%
layers = [hand_made_layer(sharpness=10), hand_made_layer(sharpness=1)]

# %%
read = {}
for text in SENTENCES:
    ids = [tokenizer.sos_id, *tokenizer.encode(text)]
    with torch.no_grad():
        attention = torch.cat(
            [layer(embed(ids)[None], causal_mask(len(ids)))[1] for layer in layers]
        )  # (L, H, T, T)
    read[text] = ([tokenizer.word(i) for i in ids], attention.numpy())
    assert (attention[0, 0].diagonal(-1) > 0.95).all(), (
        "the previous-word head fails once words are added"
    )

# %%
tokens, attention = read[SENTENCES[1]]
figures.save_figure(
    attention_plots.head_grid(attention[0], tokens, titles=list(heads)),
    "02_eight_heads",
    alt="Eight hand-made heads as heat-maps on one sentence, each with its own clean pattern.",
)

# %% [markdown]
# Rows read, columns are read, as before. Four heads ask for places: see the dark line move away from the diagonal.
# *Next word* wants what it may not have, and settles for the nearest thing left: the word itself. Three ask for words.
# *Same word* finds itself and, for the full stops, the earlier ones, in equal parts. *Who is he?* sends *he*, *his* and
# *him* to *tom*; all others rest on `<sos>`. The last head asks for nothing, and looks everywhere evenly. These
# patterns are clean because we made them so. A trained head may mix several, or follow none.
#
# How much of a head's weight lies on its pattern? Average over all words of the three sentences for which the pattern
# has something to read. Notebook 04 uses the same patterns to judge trained heads.


# %%
def on_pattern(pattern, matrices):
    """Mean weight on the keys of a pattern, over the words that have such a key. matrices: one (T,
    T) per sentence.
    """
    found = []
    for text, weights in zip(SENTENCES, matrices, strict=True):
        allowed = pattern_targets([tokenizer.sos_id, *tokenizer.encode(text)])[pattern]  # (T, T)
        found.extend((weights * allowed).sum(-1)[allowed.any(-1)])
    return float(np.mean(found))


# %%
# (H, T, T) per sentence.
sharp, soft = ([attention[layer] for _, attention in read.values()] for layer in (0, 1))
numbers = {}
for name in ("previous word", "itself", "same word", "start token"):
    h, uniform = list(heads).index(name), list(heads).index("uniform")
    numbers[name] = [
        on_pattern(name, [weights[head] for weights in layer])
        for layer, head in ((sharp, h), (soft, h), (sharp, uniform))
    ]

# %%
assert numbers["previous word"][0] > 0.95
rows = [[name, *[f"{value:.3f}" for value in row]] for name, row in numbers.items()]
table(rows, ["head, on its own pattern", "layer 1: sharp", "layer 2: a tenth", "uniform head"])

# %% [markdown]
# The last column is what an even look at everything would give. *Same word* cannot reach 1: it divides its weight
# between the earlier twins, which the pattern counts, and the word itself, which it does not.
#
# Now look around. Layer 1 is sharp; layer 2 has the same eight heads with a tenth of the sharpness. (Both read the same
# input; nothing is stacked yet.) You know the answer before you move a slider: heads 1 to 8 in the order of the figure
# above. It opens on the same-word head: each *the* shares its weight among the earlier ones and itself. (On paper and
# on GitHub you see this one picture.)

# %%
explorer = AttentionExplorer(read)
# The first picture; now it is your turn.
explorer.sentence.value, explorer.head.value = SENTENCES[2], 5
figures.save_explorer(explorer, "02_attention")

# %% [markdown]
# ## What attention weights do not show
#
# A heat-map shows where a head *reads*. It does not show what the head *does*. That is decided by the value matrix and
# by the output matrix, and neither is in the picture (Elhage et al. 2021 treat the two halves apart
# [@elhage2021mathematical]). Our previous-word head passes on the word that it reads:

# %%
ids = [tokenizer.sos_id, *tokenizer.encode(SENTENCES[0])]
weights = torch.tensor(read[SENTENCES[0]][1][0, 0])  # (T, T), the sharp previous-word head
values = embed(ids) @ what.T  # (T, K)
passed_on = (weights @ values).argmax(-1).tolist()  # (T,), the largest number is the word
assert passed_on == [ids[0], *ids[:-1]], "the head must hand over the word before"

# %%
lines = {"reads": ids, "takes home": passed_on}
table(
    [[name, *map(tokenizer.word, line)] for name, line in lines.items()],
    ["position", *map(str, range(len(ids)))],
)

# %% [markdown]
# The second line is the first, moved by one: every word now *knows* the word before it. But take another value matrix,
# and the same picture means something else.

# %%
for name, W_V in {"passes on the word": what, "all zero": 0 * what}.items():
    print(
        f"{name:20} same weights, largest output {(weights @ (embed(ids) @ W_V.T)).abs().max():.1f}"
    )

# %% [markdown]
# And with one value matrix, the values still differ in length. Two words are read, with numbers made up to make the
# point:

# %%
weight, length = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 10.0])  # (2,) each, made up
effect = weight * length  # (2,)
rows = {
    "weight": weight,
    "length of the value": length,
    "share of the effect": effect / effect.sum(),
}
table(
    [[name, *[f"{x:.2f}" for x in row.tolist()]] for name, row in rows.items()],
    ["", "one word", "another word"],
)

# %% [markdown]
# A large weight on a short value does little; a small weight on a long value can decide everything. And a word in layer
# 2 or 3 is no longer only itself: its vector holds what earlier layers put there. So read a heat-map as a question, not
# as an explanation.
#
# One last thought. If a previous-word head in one layer tells each word what came before it, a same-word head in the
# next layer can look for words that were *preceded* by the word at hand, and so find what came after it last time. The
# pair is called an induction head (Olsson et al. 2022 [@olsson2022context]); notebook 04 looks for it in the trained
# model.

# %%
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
        "loops_and_pytorch_within": 1e-6,
    },
)

# %% [markdown]
# ## Recap
#
# - A word scores the keys of the words before it and its own, a softmax makes weights of the scores, and the values are
#   averaged with these weights.
# - Scores have variance $d$; dividing by $\sqrt{d}$ keeps the softmax soft at the start. The mask comes *before* the
#   softmax, and then the past does not move, not by a bit, whatever the future holds.
# - Heads are a reshape: each attends in its own share of the width. Our layer equals the loops and PyTorch's own.
# - A turn of the clock hands as $W_Q$ makes a previous-word head, by hand. Weights say where a head reads, not what it
#   does.
#
# Next: [03 · The decoder block](03_decoder_block.ipynb) puts the layer to work.
#
# ## Try it
#
# 1. Replace `step_back(2)` by `step_back(5)` in `heads`. Where do the first five words look, which have nothing five
#    words back? (Most settle for `<sos>`, the nearest there is; one of them is torn.)
# 2. In the masking cells, mask after the softmax, then divide each row by its sum: the leak is gone, up to rounding.
#    Now raise the future score by 200 instead of 2. (The rest of the row becomes 0, and 0 divided by 0 is `nan`. Masked
#    before, nothing changes.)
# 3. Build the previous-word head from the slowest hands: `torch.arange(130, 148)` in `omega`, `positions[:, 260:]` for
#    `p`. (The turn is still exact, but the head looks everywhere evenly. Try a sharpness of ten million: now rounding
#    errors choose the word.)
#
# ## References
#
# - Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits* [@elhage2021mathematical]
# - Olsson et al. 2022, *In-context Learning and Induction Heads* [@olsson2022context]
# - Vaswani et al. 2017, *Attention Is All You Need*, sections 3.2 and 3.5 [@vaswani2017attention]
