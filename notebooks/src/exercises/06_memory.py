# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises for 06 · Memory
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/exercises/06_memory.ipynb)
#
# Three exercises on memory, about 50 minutes; then six programs with a bug each, about half an hour. Write your code in the cells that say
# `raise NotImplementedError`, and run the cell after each: it tells you what is right, or what the mistake looks like. They go with
# [notebook 06](../06_memory.ipynb); the letters for sizes are those of [notebook 01](../01_embeddings.ipynb).

# %% cellView="form" tags=["setup"]
# @title Set-up: run this cell first
import os
import sys

REPOSITORY = "https://github.com/lohar-animesh-27112001/ELL881-advance_LLM-assignment"
if "google.colab" in sys.modules:
    os.system(f"cd /content && [ -d course ] || git clone -q --depth=1 {REPOSITORY} course")
sys.path[:0] = ["/content/course/notebooks", "..", "../..", "notebooks", "."]
import colab  # not found? Open this notebook inside the repository, or correct REPOSITORY

colab.start()

# %%
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from checks import memory as check
from checks.memory import peak_floats
from helpers.loss import loss_sum
from helpers.notebook import show_source

# %% [markdown]
# ## 1 · Accumulate over unequal stories
#
# ●●○ · 15 minutes
#
# A batch is too large for the memory, so read a few stories at a time and let their gradients add up. The result must be the gradient of
# the mean loss over all words of the batch that are predicted; `<pad>` (id 0) is not. Stories differ in length, and the last part may
# have fewer stories than the others. `loss_sum(model, part)` returns the sum of the losses of some stories, and how many words were
# predicted.


# %% tags=["exercise"]
def accumulate(model, batch, size):
    """Leave the gradient of the batch's mean loss in every parameter's .grad, and take no step.

    Args:
        model: a Decoder; its .grad may still hold something from an earlier step.
        batch: (B, T) ids.
        size: how many stories to read at a time, at most.
    """
    raise NotImplementedError


# %% tags=["solution"]
def accumulate(model, batch, size):
    model.zero_grad()
    tokens = (batch[:, 1:] != 0).sum()  # (), of the whole batch
    for part in batch.split(size):
        total, _ = loss_sum(model, part)  # ()
        (total / tokens).backward()


# %% tags=["second"]
def accumulate(model, batch, size):
    parameters = list(model.parameters())
    sums, words = [torch.zeros_like(p) for p in parameters], 0
    for start in range(0, len(batch), size):
        part = batch[start : start + size]  # (size, T)
        logits, targets = model(part[:, :-1]), part[:, 1:]  # (size, T-1, V), (size, T-1)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (size, T-1)
        for total, more in zip(
            sums, torch.autograd.grad(losses[targets != 0].sum(), parameters), strict=True
        ):
            total += more
        words += int((targets != 0).sum())
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total / words


# %% tags=["mistake"] says="mean of means"
def accumulate(model, batch, size):
    model.zero_grad()
    parts = batch.split(size)
    for part in parts:
        total, number = loss_sum(model, part)
        (total / number / len(parts)).backward()


# %% tags=["mistake"] says="mean of means"
def accumulate(model, batch, size):
    model.zero_grad()
    parts = batch.split(size)
    for part in parts:
        logits = model(part[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), ignore_index=0)
        (loss / len(parts)).backward()


# %% tags=["mistake"] says="add up the means"
def accumulate(model, batch, size):
    model.zero_grad()
    for part in batch.split(size):
        total, number = loss_sum(model, part)
        (total / number).backward()


# %% tags=["mistake"] says="sum of all losses"
def accumulate(model, batch, size):
    model.zero_grad()
    for part in batch.split(size):
        loss_sum(model, part)[0].backward()


# %% tags=["mistake"] says="earlier step"
def accumulate(model, batch, size):
    tokens = (batch[:, 1:] != 0).sum()
    for part in batch.split(size):
        (loss_sum(model, part)[0] / tokens).backward()


# %% tags=["mistake"] says="only one mini-batch"
def accumulate(model, batch, size):
    tokens = (batch[:, 1:] != 0).sum()
    for part in batch.split(size):
        model.zero_grad()
        (loss_sum(model, part)[0] / tokens).backward()


# %% tags=["mistake"] says="`<pad>`"
def accumulate(model, batch, size):
    model.zero_grad()
    for part in batch.split(size):
        (loss_sum(model, part)[0] / batch[:, 1:].numel()).backward()


# %% tags=["mistake"] says="ever predicted"
def accumulate(model, batch, size):
    model.zero_grad()
    tokens = (batch != 0).sum()
    for part in batch.split(size):
        (loss_sum(model, part)[0] / tokens).backward()


# %% tags=["mistake"] says="len(batch) // size"
def accumulate(model, batch, size):
    model.zero_grad()
    tokens = (batch[:, 1:] != 0).sum()
    for number in range(len(batch) // size):
        part = batch[number * size : (number + 1) * size]
        (loss_sum(model, part)[0] / tokens).backward()


# %% tags=["mistake"] says="nothing is saved"
def accumulate(model, batch, size):
    model.zero_grad()
    results = [loss_sum(model, part) for part in batch.split(size)]
    (sum(total for total, _ in results) / sum(number for _, number in results)).backward()


# %% tags=["mistake"] says="read at once"
def accumulate(model, batch, size):
    model.zero_grad()
    total, number = loss_sum(model, batch)
    (total / number).backward()


# %% tags=["check"]
check.accumulate(accumulate)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The gradient of a sum is the sum of gradients, and `backward()` adds to `.grad`. What must the sum of each part be divided by, and
# can you compute it before you read the first part?
#
# </details>

# %% [markdown]
# ## 2 · Compute it twice
#
# ●●● · 25 minutes
#
# Gradient checkpointing: call a function without keeping what is inside, and call it again when the backward pass comes. Write
# `recomputed`, as a `torch.autograd.Function` or otherwise. (The check would accept `torch.utils.checkpoint`, but you would learn nothing.) The
# function may use dropout. The second call must then drop the same units as the first, and it must not be noticed by anybody else: random
# numbers go on after the forward pass as they do after `function(x)`, and after the backward pass as if there had been no second call. All
# this must also work if several checkpointed segments follow each other.


# %% tags=["exercise"]
def recomputed(function, x):
    """function(x), of which only x and a random state are kept for the backward pass.

    Args:
        function: from a tensor to a tensor; its parameters get their gradients as always.
        x: (N, D), which requires a gradient; on the CPU.

    Returns:
        function(x), computed once now and once more in the backward pass.
    """
    raise NotImplementedError


# %% tags=["solution"]
def recomputed(function, x):
    return Recompute.apply(function, x)


class Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.random_state = function, torch.get_rng_state()
        ctx.save_for_backward(x)
        return function(x)  # gradients are off here, so that nothing inside is kept

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()  # (N, D)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.random_state)
            y = ctx.function(x)  # (N, D)
        y.backward(grad)  # reaches the parameters too
        return None, x.grad


# %% tags=["second"]
def recomputed(function, x):
    state, made = torch.get_rng_state(), {}

    def again():
        now = torch.get_rng_state()
        torch.set_rng_state(state)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            function(x.detach().requires_grad_())
        torch.set_rng_state(now)

    def keep(tensor):
        made[len(made)] = tensor.detach()
        return tensor

    places = iter(range(10**9))

    def recall(place):
        if not made:
            again()
        return made[place]

    with torch.autograd.graph.saved_tensors_hooks(lambda _: next(places), recall):
        return function(x)


# %% tags=["second"]
def recomputed(function, x):
    return BothSaved.apply(function, x)


class BothSaved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x, torch.get_rng_state())
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        x, state = ctx.saved_tensors  # (N, D), and bytes
        now, x = torch.get_rng_state(), x.detach().requires_grad_()
        torch.set_rng_state(state)
        with torch.enable_grad():
            (ctx.function(x) * grad).sum().backward()
        torch.set_rng_state(now)
        return None, x.grad


# %% tags=["mistake"] says="gradients are off"
def recomputed(function, x):
    return Graphless.apply(function, x)


class Graphless(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.random_state = function, torch.get_rng_state()
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(ctx.random_state)
            y = ctx.function(x)
        y.backward(grad)
        return None, x.grad


# %% tags=["mistake"] says="drops other units"
def recomputed(function, x):
    return Forgetful.apply(function, x)


class Forgetful(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        y.backward(grad)
        return None, x.grad


# %% tags=["mistake"] says="leave the random state alone"
def recomputed(function, x):
    return Seeded.apply(function, x)


class Seeded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        torch.manual_seed(0)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        torch.manual_seed(0)
        with torch.enable_grad():
            y = ctx.function(x)
        y.backward(grad)
        return None, x.grad


# %% tags=["mistake"] says="for everybody"
def recomputed(function, x):
    return Rewinding.apply(function, x)


class Rewinding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.random_state = function, torch.get_rng_state()
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        torch.set_rng_state(ctx.random_state)
        with torch.enable_grad():
            y = ctx.function(x)
        y.backward(grad)
        return None, x.grad


# %% tags=["mistake"] says="drops other units"
def recomputed(function, x):
    return TooLate.apply(function, x)


class TooLate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        y = function(x)
        ctx.function, ctx.random_state = function, torch.get_rng_state()
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.random_state)
            y = ctx.function(x)
        y.backward(grad)
        return None, x.grad


# %% tags=["mistake"] says="two in a row"
def recomputed(function, x):
    return Shared.apply(function, x)


class Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        Shared.function, Shared.random_state = function, torch.get_rng_state()
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(Shared.random_state)
            y = Shared.function(x)
        y.backward(grad)
        return None, x.grad


# %% tags=["mistake"] says="no gradient"
def recomputed(function, x):
    return OfXAlone.apply(function, x)


class OfXAlone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.random_state = function, torch.get_rng_state()
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.random_state)
            y = ctx.function(x)
        return None, *torch.autograd.grad(y, x, grad)


# %% tags=["mistake"] says="has no effect"
def recomputed(function, x):
    return Summed.apply(function, x)


class Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.random_state = function, torch.get_rng_state()
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.random_state)
            ctx.function(x).sum().backward()
        return None, x.grad


# %% tags=["mistake"] says="twice"
def recomputed(function, x):
    return Attached.apply(function, x)


class Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.random_state = function, torch.get_rng_state()
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.random_state)
            y = ctx.function(x)
        y.backward(grad)
        return None, x.grad


# %% tags=["mistake"] says="not forgotten"
def recomputed(function, x):
    return function(x)


# %% tags=["mistake"] says="no graph"
def recomputed(function, x):
    with torch.no_grad():
        return function(x)


# %% tags=["check"]
check.recomputed(recomputed)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Notebook 06 writes `Recompute`, and then mends it. The forward pass has to remember two things besides the function.
# `torch.random.fork_rng` puts the random state back when its block ends.
#
# </details>

# %% [markdown]
# ## 3 · How many segments?
#
# ●●○ · 10 minutes
#
# An experiment. A tower of 24 small blocks reads 1,000 rows of 8 numbers. Each block adds to its input what a feed-forward network makes of it,
# with 16 numbers inside. The tower is divided into segments, of which only the inputs are kept, and each segment is computed again in the
# backward pass. `peak_floats(segments)` runs one training pass and returns the most floats that were held at once. Where is this peak lowest?
# Guess first: $\sqrt{24}$ is about 5.

# %%
show_source(peak_floats)


# %% tags=["exercise"]
def best_segments():
    """How many segments, from 1 to 24, hold the fewest floats at once."""
    raise NotImplementedError


# %% tags=["solution"]
def best_segments():
    return min(range(1, 25), key=peak_floats)


# %% tags=["second"]
def best_segments():
    return torch.tensor([peak_floats(segments) for segments in range(1, 25)]).argmin() + 1


# %% tags=["mistake"] says="√24"
def best_segments():
    return round(math.sqrt(24))


# %% tags=["mistake"] says="segment for each block"
def best_segments():
    return 24


# %% tags=["mistake"] says="peak itself"
def best_segments():
    return min(peak_floats(segments) for segments in range(1, 25))


# %% tags=["mistake"] says="first place"
def best_segments():
    peaks = [peak_floats(segments) for segments in range(1, 25)]
    return peaks.index(min(peaks))


# %% tags=["mistake"] says="computed again as a whole"
def best_segments():
    return max(range(1, 25), key=peak_floats)


# %% tags=["check"]
check.best_segments(best_segments)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Call `peak_floats` for every number of segments; it takes a few seconds. Why is the answer not 5? Compare what one block keeps inside (what do
# a product and a GELU need for their derivatives?) with its input, and put both into the formula of notebook 06.
#
# </details>

# %% [markdown]
# ## Find the bug
#
# Six short programs follow, each a part of a tiny decoder and its training, and each with one bug: something is wrong, or missing. None raises
# an error. Six diagnostics can be run on a model:
#
# | diagnostic | what it does |
# |:--|:--|
# | `initial loss` | compares the loss before the first step with $\ln V$ |
# | `batch by heart` | trains on twelve stories, and asks whether the loss comes down to the lowest that is possible |
# | `causality` | changes a word, and compares the logits of earlier words |
# | `cache equality` | compares the logits of one pass with those of a prompt and single tokens, read with a cache |
# | `split gradient` | compares the gradient of twelve stories at once with that of five at a time |
# | `floor` | trains on twelve stories, and asks whether the loss falls below the lowest that is possible |
#
# The lowest possible loss of a model that reads these stories from left to right is not 0, because several of them begin with the same words
# and then go on differently.
#
# For each program: read it, and decide which diagnostic would see what is wrong. Set `chosen` to its name, and run the cell and its check. It
# says why that diagnostic cannot see this bug (✗), or what it shows (◐). Then correct the program, and check again. The rest of the decoder
# has no bug.

# %% [markdown]
# ## 4 · Find the bug: one matrix, used twice
#
# ●○○ · 5 minutes
#
# One matrix holds a vector for each word. The model reads these vectors, and at its end it scores each word by the product with the same
# vector. A LayerNorm comes before the scores, so the $D$ numbers that are multiplied with a vector have a size of about 1.


# %% tags=["exercise"]
chosen = None  # "initial loss", "batch by heart", …


class TiedWords(nn.Module):
    """Word vectors (V, D) that the model reads, and with which it scores what comes next."""

    def __init__(self, vocabulary, width):
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width)

    def read(self, ids):  # (B, T) -> (B, T, D)
        return self.vectors(ids)

    def score(self, x):  # (B, T, D) -> (B, T, V)
        return x @ self.vectors.weight.T


# %% tags=["solution"]
chosen = "initial loss"


class TiedWords(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.vectors.weight, std=0.02)  # nn.Embedding draws with std=1

    def read(self, ids):  # (B, T) -> (B, T, D)
        return self.vectors(ids)

    def score(self, x):  # (B, T, D) -> (B, T, V)
        return x @ self.vectors.weight.T


# %% tags=["second"]
chosen = "initial loss"


class TiedWords(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(vocabulary, width) / width)  # (V, D)

    def read(self, ids):  # (B, T) -> (B, T, D)
        return self.matrix[ids] * self.matrix.shape[1] ** 0.5

    def score(self, x):  # (B, T, D) -> (B, T, V)
        return F.linear(x, self.matrix)


# %% tags=["mistake"] says="cannot see this bug"
chosen = "batch by heart"

# %% tags=["mistake"] says="cannot see this bug"
chosen = "floor"

# %% tags=["mistake"] says="good choice"
chosen = "initial loss"


class TiedWords(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width)

    def read(self, ids):
        return self.vectors(ids) * 0.02

    def score(self, x):
        return x @ self.vectors.weight.T


# %% tags=["mistake"] says="no longer tied"
chosen = "initial loss"


class TiedWords(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width)
        self.score = nn.Linear(width, vocabulary)

    def read(self, ids):
        return self.vectors(ids)


# %% tags=["mistake"] says="same vector"
chosen = "initial loss"


class TiedWords(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width)
        nn.init.zeros_(self.vectors.weight)

    def read(self, ids):
        return self.vectors(ids)

    def score(self, x):
        return x @ self.vectors.weight.T


# %% tags=["check"]
check.tied_words(chosen, TiedWords)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A model that does not know anything yet should give all words nearly the same score, near 0. What is the standard deviation of a score, if $D$
# numbers of size 1 meet $D$ numbers of the size that `nn.Embedding` draws? Even a standard deviation of 1 is too large.
#
# </details>

# %% [markdown]
# ## 5 · Find the bug: the optimizer
#
# ●○○ · 5 minutes
#
# AdamW with weight decay on matrices, and none on gains and biases. Every parameter of the model should be trained.


# %% tags=["exercise"]
chosen = None


def make_optimizer(model, rate):
    """AdamW for all parameters at this rate; only matrices are decayed."""
    matrices = [p for p in model.parameters() if p.dim() > 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.01},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=rate,
    )


# %% tags=["solution"]
chosen = "batch by heart"


def make_optimizer(model, rate):
    matrices = [p for p in model.parameters() if p.dim() == 2]  # it was > 2
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.01},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=rate,
    )


# %% tags=["second"]
chosen = "batch by heart"


def make_optimizer(model, rate):
    groups = [
        {"params": [p], "weight_decay": 0.01 * (p.dim() > 1), "lr": rate}
        for p in model.parameters()
    ]
    return torch.optim.AdamW(groups)


# %% tags=["mistake"] says="cannot see this bug"
chosen = "initial loss"

# %% tags=["mistake"] says="cannot see this bug"
chosen = "split gradient"

# %% tags=["mistake"] says="gains and biases"
chosen = "batch by heart"


def make_optimizer(model, rate):
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)


# %% tags=["mistake"] says="no decay"
chosen = "batch by heart"


def make_optimizer(model, rate):
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)


# %% tags=["mistake"] says="in no group"
chosen = "batch by heart"


def make_optimizer(model, rate):
    return torch.optim.AdamW([p for p in model.parameters() if p.dim() == 2], lr=rate)


# %% tags=["mistake"] says="more than one parameter group"
chosen = "batch by heart"


def make_optimizer(model, rate):
    matrices = [p for p in model.parameters() if p.dim() > 0]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0}], rate)


# %% tags=["check"]
check.optimizer(chosen, make_optimizer)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# What is `dim()` of a matrix? Print how many parameters each group has.
#
# </details>

# %% [markdown]
# ## 6 · Find the bug: attention
#
# ●●○ · 5 minutes
#
# Causal attention in $H$ heads of width $d$, of $T$ new tokens to $S$ keys. $S$ is $T$, or more if a cache holds earlier ones. At the end
# the heads stand side by side, $D = H \cdot d$ numbers for each token. More than one diagnostic sees this bug.


# %% tags=["exercise"]
chosen = None


def attend(q, k, v):
    """q (B, H, T, d), k and v (B, H, S, d) -> (B, T, D)."""
    B, H, T, d = q.shape
    S = k.shape[2]
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)  # (T, S)
    scores = q @ k.transpose(-2, -1) / d**0.5  # (B, H, T, S)
    weights = scores.masked_fill(future, -math.inf).softmax(-1)  # (B, H, T, S)
    return (weights @ v).reshape(B, T, H * d)  # (B, T, D)


# %% tags=["solution"]
chosen = "causality"  # or "cache equality", or "floor"


def attend(q, k, v):
    B, H, T, d = q.shape
    S = k.shape[2]
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)  # (T, S)
    scores = q @ k.transpose(-2, -1) / d**0.5  # (B, H, T, S)
    weights = scores.masked_fill(future, -math.inf).softmax(-1)  # (B, H, T, S)
    # Without `transpose`, a row of the result is made of several tokens of one head.
    return (weights @ v).transpose(1, 2).reshape(B, T, H * d)  # (B, T, D)


# %% tags=["second"]
chosen = "floor"


def attend(q, k, v):
    heads = []
    for q_h, k_h, v_h in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):  # (B, T, d)
        scores = q_h @ k_h.mT * q_h.shape[-1] ** -0.5  # (B, T, S)
        seen = torch.ones_like(scores[0]).tril(k_h.shape[1] - q_h.shape[1])  # (T, S)
        heads.append(scores.where(seen > 0, -math.inf).softmax(-1) @ v_h)  # (B, T, d)
    return torch.cat(heads, dim=-1)  # (B, T, D)


# %% tags=["mistake"] says="cannot see this bug"
chosen = "initial loss"

# %% tags=["mistake"] says="cannot see this bug"
chosen = "batch by heart"

# %% tags=["mistake"] says="good choice"
chosen = "causality"


def attend(q, k, v):
    B, H, T, d = q.shape
    S = k.shape[2]
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 2)
    scores = q @ k.transpose(-2, -1) / d**0.5
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, T, H * d)


# %% tags=["mistake"] says="interleaved"
chosen = "causality"


def attend(q, k, v):
    B, H, T, d = q.shape
    S = k.shape[2]
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    scores = q @ k.transpose(-2, -1) / d**0.5
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    return (weights @ v).permute(0, 2, 3, 1).reshape(B, T, H * d)


# %% tags=["check"]
check.attention(chosen, attend)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The mask is right. `reshape` takes the numbers in the order in which they lie. Which axis of `weights @ v` comes before which?
#
# </details>

# %% [markdown]
# ## 7 · Find the bug: the forward pass
#
# ●●○ · 5 minutes
#
# The forward pass of a decoder that adds a position to each word. `cache.append` takes a layer's number and its new keys and values, and
# returns all that this layer has; `cache.length` is how many tokens the cache holds; it grows when the first
# layer appends.


# %% tags=["exercise"]
chosen = None


def read(model, ids, cache):
    """Logits (B, T, V) after each of the tokens ids (B, T), which follow those in the cache."""
    T = ids.shape[1]
    x = model.words.read(ids) + model.positions[:T]  # (B, T, D)
    for layer, block in enumerate(model.blocks):
        x = block(x, partial(cache.append, layer))  # (B, T, D)
    return model.words.score(model.norm(x))  # (B, T, V)


# %% tags=["solution"]
chosen = "cache equality"


def read(model, ids, cache):
    T, before = ids.shape[1], cache.length
    x = model.words.read(ids) + model.positions[before : before + T]  # (B, T, D)
    for layer, block in enumerate(model.blocks):
        x = block(x, partial(cache.append, layer))  # (B, T, D)
    return model.words.score(model.norm(x))  # (B, T, V)


# %% tags=["second"]
chosen = "cache equality"


def read(model, ids, cache):
    places = torch.arange(ids.shape[1]) + cache.length  # (T,)
    x = torch.stack([model.words.read(row) + model.positions[places] for row in ids])  # (B, T, D)
    for layer, block in enumerate(model.blocks):
        x = block(x, lambda k, v, layer=layer: cache.append(layer, k, v))  # (B, T, D)
    return model.words.score(model.norm(x))  # (B, T, V)


# %% tags=["mistake"] says="cannot see this bug"
chosen = "causality"

# %% tags=["mistake"] says="cannot see this bug"
chosen = "floor"

# %% tags=["mistake"] says="good choice"
chosen = "cache equality"


def read(model, ids, cache):
    x = model.words.read(ids) + model.positions[cache.length]
    for layer, block in enumerate(model.blocks):
        x = block(x, partial(cache.append, layer))
    return model.words.score(model.norm(x))


# %% tags=["mistake"] says="good choice"
chosen = "cache equality"


def read(model, ids, cache):
    T = ids.shape[1]
    start = cache.length + 1 if cache.length else 0
    x = model.words.read(ids) + model.positions[(torch.arange(T) + start).clamp(max=16)]
    for layer, block in enumerate(model.blocks):
        x = block(x, partial(cache.append, layer))
    return model.words.score(model.norm(x))


# %% tags=["mistake"] says="no position"
chosen = "cache equality"


def read(model, ids, cache):
    x = model.words.read(ids)
    for layer, block in enumerate(model.blocks):
        x = block(x, partial(cache.append, layer))
    return model.words.score(model.norm(x))


# %% tags=["check"]
check.reading(chosen, read)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Read a prompt of ten tokens, and then one token more. Where in the text does that one stand?
#
# </details>

# %% [markdown]
# ## 8 · Find the bug: the gradient of a batch
#
# ●●○ · 5 minutes
#
# The gradient of a batch, read `size` stories at a time, and cut to the length `clip_norm` if it is longer. (`loss_of` is a function like
# `loss_sum` in the first exercise.)


# %% tags=["exercise"]
chosen = None


def gradient(model, batch, size, loss_of, clip_norm):
    """Leave the gradient of the mean loss of batch (B, T) in .grad, clipped."""
    model.zero_grad()
    number = (batch[:, 1:] != 0).sum()  # ()
    for part in batch.split(size):
        total, _ = loss_of(model, part)  # ()
        (total / number).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)


# %% tags=["solution"]
chosen = "split gradient"


def gradient(model, batch, size, loss_of, clip_norm):
    model.zero_grad()
    number = (batch[:, 1:] != 0).sum()  # ()
    for part in batch.split(size):
        total, _ = loss_of(model, part)  # ()
        (total / number).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)  # once, when all have been added up


# %% tags=["second"]
chosen = "split gradient"


def gradient(model, batch, size, loss_of, clip_norm):
    model.zero_grad(set_to_none=False)
    number = 0
    for part in batch.split(size):
        total, count = loss_of(model, part)  # (), ()
        total.backward()
        number += count
    grads = [p.grad for p in model.parameters()]
    length = torch.stack([grad.norm() for grad in grads]).norm() / number  # ()
    for grad in grads:
        grad /= number * max(1.0, length / clip_norm)


# %% tags=["mistake"] says="cannot see this bug"
chosen = "batch by heart"

# %% tags=["mistake"] says="cannot see this bug"
chosen = "floor"

# %% tags=["mistake"] says="clipped once"
chosen = "split gradient"


def gradient(model, batch, size, loss_of, clip_norm):
    model.zero_grad()
    number = (batch[:, 1:] != 0).sum()
    for part in batch.split(size):
        (loss_of(model, part)[0] / number).backward()


# %% tags=["mistake"] says="good choice"
chosen = "split gradient"


def gradient(model, batch, size, loss_of, clip_norm):
    model.zero_grad()
    parts = batch.split(size)
    for part in parts:
        total, number = loss_of(model, part)
        (total / number / len(parts)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)


# %% tags=["mistake"] says="good choice"
chosen = "split gradient"


def gradient(model, batch, size, loss_of, clip_norm):
    number = (batch[:, 1:] != 0).sum()
    for part in batch.split(size):
        model.zero_grad()
        (loss_of(model, part)[0] / number).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)


# %% tags=["check"]
check.gradient(chosen, gradient)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# After the second mini-batch, what does `.grad` hold, and what is cut?
#
# </details>

# %% [markdown]
# ## 9 · Find the bug: the loss
#
# ●●○ · 5 minutes
#
# The loss of a batch of stories, each padded with id 0 to the same length: each word predicts the next. The mean loss is the first result
# divided by the second.


# %% tags=["exercise"]
chosen = None


def story_loss(model, ids):
    """Of ids (B, T): the sum of the losses in nats, and the number of predicted words."""
    inputs, targets = ids[:, :-1], ids[:, 1:]  # (B, T-1) each
    logits = model(inputs)  # (B, T-1, V)
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")  # ()
    return total, torch.tensor(targets.numel())  # (), ()


# %% tags=["solution"]
chosen = "floor"


def story_loss(model, ids):
    inputs, targets = ids[:, :-1], ids[:, 1:]  # (B, T-1) each
    logits = model(inputs).flatten(0, 1)  # (B·(T-1), V)
    # <pad> after <pad> is easily predicted, and must not count.
    total = F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=0)  # ()
    return total, (targets != 0).sum()  # (), ()


# %% tags=["second"]
chosen = "floor"


def story_loss(model, ids):
    targets = ids[:, 1:]  # (B, T-1)
    scores = model(ids[:, :-1]).log_softmax(-1)  # (B, T-1, V)
    real = targets != 0  # (B, T-1)
    losses = -scores.gather(-1, targets[..., None])[..., 0][real]  # (real,)
    return losses.sum(), real.sum()  # (), ()


# %% tags=["mistake"] says="cannot see this bug"
chosen = "initial loss"

# %% tags=["mistake"] says="cannot see this bug"
chosen = "split gradient"

# %% tags=["mistake"] says="good choice"
chosen = "floor"


def story_loss(model, ids):
    inputs, targets = ids[:, :-1], ids[:, 1:]
    logits = model(inputs).flatten(0, 1)
    total = F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=0)
    return total, torch.tensor(targets.numel())


# %% tags=["mistake"] says="sum still has"
chosen = "floor"


def story_loss(model, ids):
    inputs, targets = ids[:, :-1], ids[:, 1:]
    total = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")
    return total, (targets != 0).sum()


# %% tags=["mistake"] says="good choice"
chosen = "floor"


def story_loss(model, ids):
    inputs, targets = ids[:, :-1], ids[:, 1:]
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=0)
    return loss, (targets != 0).sum()


# %% tags=["mistake"] says="good choice"
chosen = "floor"


def story_loss(model, ids):
    inputs, targets = ids[:, :-1], ids[:, 1:]
    logits = model(inputs).flatten(0, 1)
    total = F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=0)
    return total, (ids != 0).sum()


# %% tags=["check"]
check.loss(chosen, story_loss)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Many stories are shorter than the longest, and their last places hold `<pad>`. How hard is it to predict the next `<pad>` after the first one,
# and what does that do to a mean?
#
# </details>
