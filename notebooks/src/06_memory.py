# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Memory
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/06_memory.ipynb)
#
# **Promise.** You will take one training step on 128 stories with about a quarter of the extra memory that such a step
# normally takes. You will throw away most of what the backward pass needs, compute it a second time, and get the same
# gradient to the last bit. You will plot how memory rises and falls during a pass, and divide a batch as several
# machines would.
#
# **You will be able to**
#
# - write gradient accumulation, and divide each part's loss by the right number;
# - say what a larger batch buys, and what it costs;
# - write gradient checkpointing, and say what it must replay;
# - choose how many blocks to recompute together, and say what the choice depends on;
# - compute a loss without ever holding all logits;
# - let several processes share a batch.
#
# **Prerequisites.** [04 · Training](04_training.ipynb).
#
# **Running time.** About two minutes on two cores.

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
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint as pytorchs_checkpoint

from helpers import memory, plots
from helpers.loss import OutputLoss, loss_sum, output_loss
from helpers.memory import checkpoint, measure_peak_memory, memory_timeline
from helpers.model import Decoder, ModelConfig
from helpers.notebook import FigureFolder, claim, load_numbers, show_source, table
from helpers.recipe import VALIDATION, load_or_train, made_from, new_model
from helpers.stories import load_stories
from helpers.support.hardware import pick_device, pick_precision
from helpers.training import TrainingConfig, encode_stories, optimizer_step, train

# %%
figures = FigureFolder(CORPUS)
stories = load_stories(CORPUS, validation=VALIDATION)
trained, tokenizer, _ = load_or_train(CORPUS)
device = pick_device()
ids = encode_stories(tokenizer, stories.train[:512], trained.config.context_length).long()  # (N, T)

# %% [markdown]
# ## Gradients add
#
# A mean over more stories is a steadier gradient, and needs more memory. But the gradient of a sum is the sum of the
# gradients, so it can be computed in parts. In PyTorch `backward()` *adds* to `.grad`. So we cut the batch into
# **mini-batches**, call `backward()` for one after another, and only then take a step. This is **gradient
# accumulation**.
#
# By what must we divide the loss of a mini-batch? We try two answers on four stories of unequal length, each a
# mini-batch of its own, in 64-bit arithmetic, so that rounding changes little. `loss_sum` returns the sum of the
# losses, and the number of words that were predicted.

# %%
exact = Decoder(trained.config).double()
exact.load_state_dict(trained.state_dict())
pad_id, texts = tokenizer.pad_id, []
for text, length in zip(stories.train, (9, 61, 30, 45), strict=False):
    texts.append(" ".join(tokenizer.split(text)[:length]))
ragged = encode_stories(tokenizer, texts, exact.config.context_length).long()  # (4, T), unequal
tokens = (ragged[:, 1:] != pad_id).sum()  # ()


# %%
def gradient():
    """The accumulated gradients of all P parameters, as one vector; resets them to zero."""
    found = torch.cat([p.grad.flatten() for p in exact.parameters()])  # (P,)
    exact.zero_grad(set_to_none=True)
    return found


def difference(ours, reference):
    """The largest difference, as a share of the largest gradient."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


# %%
logits = exact(ragged[:, :-1])  # (4, T-1, V)
F.cross_entropy(logits.flatten(0, 1), ragged[:, 1:].flatten(), ignore_index=pad_id).backward()
whole = gradient()  # (P,)

# %% [markdown]
# **Predict.** Which has the same gradient as the whole batch: the sum of the four summed losses, divided by the number
# of all tokens; the mean of the four mean losses; or both?

# %%
for part in ragged.split(1):
    total, _ = loss_sum(exact, part)  # ()
    (total / tokens).backward()
sum_of_sums = gradient()  # (P,)

# %%
for part in ragged.split(1):
    total, count = loss_sum(exact, part)  # (), ()
    (total / count / len(ragged)).backward()
mean_of_means = gradient()  # (P,)

# %%
off_by = {
    "sum of sums": difference(sum_of_sums, whole),
    "mean of means": difference(mean_of_means, whole),
}

# %% cellView="form" tags=["hide-input", "hide-output"]
claim(
    f"the sum of sums is off by ≈{off_by['sum of sums']:.0e} of the largest gradient, less than "
    "1e-12",
    off_by["sum of sums"] < 1e-12,
)
claim(
    f"the mean of means is off by ≈{off_by['mean of means']:.0%}, more than a tenth",
    off_by["mean of means"] > 0.1,
)

# %% cellView="form" tags=["hide-input", "hide-output"]
counts = (ragged[:, 1:] != pad_id).sum(dim=1).tolist()
table(
    [[n, f"1/{tokens}", f"1/{4 * n}", f"{tokens.item() / (4 * n):.1f} ×"] for n in counts],
    ["tokens of the story", "weight of each in the batch", "in the mean of means", "ratio"],
    caption=(
        "Four stories of different lengths: the weight that one token gets in a mean over all "
        "tokens, and in a mean of means."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Only the sum of sums has the same gradient. The mean of means gives each *story* the same weight, so a token of a
# short story counts more than a token of a long one, as the table shows.
#
# </details>
#
# One step of training with an accumulated gradient:


# %%
def accumulation_step(model, optimizer, batch, size):
    """One step on a batch (B, T), of which `size` stories are in memory at a time."""
    optimizer.zero_grad()
    tokens = (batch[:, 1:] != pad_id).sum()  # (), of the whole batch
    for part in batch.split(size):  # a mini-batch at a time
        total, _ = loss_sum(model, part)  # a sum, not a mean
        (total / tokens).backward()  # adds to .grad
    optimizer.step()


# %% [markdown]
# Hugging Face's `transformers` took the mean of means until October 2024
# ([the fix](https://github.com/huggingface/transformers/pull/34191)). Such a bug shows only if mini-batches differ in
# their number of tokens.
#
# The course's `optimizer_step` does the same as this function, and can also clip the gradient. (Its lines about
# processes are explained at the end of this notebook.) We take one step with each, from the same parameters.

# %%
show_source(optimizer_step, fold="optimizer_step, from helpers/training.py")


# %%
def equal(these, those):
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


ours, theirs = copy.deepcopy(exact), copy.deepcopy(exact)
accumulation_step(ours, torch.optim.AdamW(ours.parameters(), lr=1e-3), ragged, size=1)
how = TrainingConfig(batch_size=1, clip_norm=None)
adam = torch.optim.AdamW(theirs.parameters())
optimizer_step(theirs, adam, ragged, 1e-3, how, "fp32")  # "fp32": all in 32-bit numbers
claim(
    "after a step of AdamW with either function, all parameters are the same, bit for bit",
    equal(ours.parameters(), theirs.parameters()),
)

# %% [markdown]
# How much memory does this save? The backward pass needs many of the results that the forward pass computed. These
# **activations** grow with the mini-batch. `measure_peak_memory` counts the bytes of the tensors that a call creates,
# and returns their peak. (Its listing is folded under *Compute it twice*.) The parameters come on top, and so do the
# **moments**, two running means that AdamW keeps for each parameter. They do not depend on the batch, and are not in
# the three numbers that are printed next.

# %%
config = TrainingConfig(batch_size=16, precision="fp32")
full = Decoder(ModelConfig()).to(device).train()  # 10,000 words: 8,940,768 parameters


# %%
def step_of(model, stories_at_once, accumulation_steps, precision="fp32"):
    """One step with a learning rate of 0, as a function to measure. No moments."""
    batch = ids[: stories_at_once * accumulation_steps].to(model.output.weight.device)  # (B, T)
    settings = replace(config, batch_size=stories_at_once, accumulation_steps=accumulation_steps)
    nothing = torch.optim.SGD(model.parameters(), lr=0.0)
    return partial(optimizer_step, model, nothing, batch, 0.0, settings, precision)


# %%
step_peaks = {}
for name, how in {"16 alone": (16, 1), "8 times 16": (16, 8), "128 at once": (128, 1)}.items():
    step_peaks[name] = measure_peak_memory(step_of(full, *how))
    full.zero_grad(set_to_none=True)
    print(f"{name:12} {step_peaks[name] / 1e6:4.0f} MB")
fixed = 3 * 4 * full.num_parameters()  # bytes of the parameters and of two moments each, fp32

# %%
share = step_peaks["8 times 16"] / step_peaks["128 at once"]
in_all = (step_peaks["8 times 16"] + fixed) / (step_peaks["128 at once"] + fixed)
claim(
    f"8 times 16 adds ≈{share:.0%} of what 128 at once add, less than 30 %; with the "
    f"{fixed / 1e6:.0f} MB of parameters and moments it needs ≈{in_all:.0%}",
    share < 0.3,
)

# %% [markdown]
# Accumulation needs one thing more than a single small batch does: the sum of the gradients, which is as large as the
# parameters, stays in memory while the next mini-batch is processed. It does not grow with the number of mini-batches.
#
# ## Steps of 16, 32, 64 and 128 stories
#
# We accumulate 1, 2, 4 or 8 mini-batches of 16 stories. Each run reads the same 384 stories once (10,000 on another
# corpus), in 24, 12, 6 or 3 steps. All start from the same random model (one seed), with a schedule fitted to their
# number of steps. (Only 16 × 1 is long enough for a warm-up, of two steps.) AdamW trains the whole model, without Muon,
# because the rule for the learning rate below is known for Adam and its relatives.
#
# **Predict.** Which run has the lowest loss at the end: the one with 16 stories a step, the one with 128, or are they
# level, since all have read the same stories?

# %% cellView="form" tags=["hide-input"]
STORIES = 384 if CORPUS == "bundled" else 10_000  # 384 = 3 × 128: no step is smaller than the rest
some = replace(stories, train=stories.train[:STORIES], validation=stories.validation[:100])

# %%
ACCUMULATION = (1, 2, 4, 8)
BASE_RATE = 7e-4  # for 16 stories; small, since the shortest runs have no warm-up


# %%
def run(accumulation_steps, learning_rate):
    steps = math.ceil(len(some.train) / (16 * accumulation_steps))
    recipe = TrainingConfig(
        epochs=1,
        batch_size=16,
        accumulation_steps=accumulation_steps,
        learning_rate=learning_rate,
        muon=None,
        warmup_steps=max(1, steps // 10),
        validate_every=max(1, steps // 12),
    )
    return train(new_model(stories, tokenizer), tokenizer, some, recipe)


# %%
same = {a: run(a, BASE_RATE) for a in ACCUMULATION}
scaled = {a: same[a] if a == 1 else run(a, BASE_RATE * math.sqrt(a)) for a in ACCUMULATION}
final = {
    name: {a: h.rows[-1]["validation_loss"] for a, h in runs.items()}
    for name, runs in (("same", same), ("scaled", scaled))
}


# %% cellView="form" tags=["hide-input"]
def against(column, runs, unit=1):
    """{label: (tokens or steps, validation losses)}"""
    return {
        f"16 × {a} = {16 * a}": ([n / unit for n in h.column(column)], h.column("validation_loss"))
        for a, h in runs.items()
    }


# %% cellView="form" tags=["hide-input", "hide-output"]
figures.save_figure(
    plots.compare_curves(
        against("tokens", same, 1000),
        x_label="tokens read (thousands)",
        y_label="validation loss (nats per token)",
        title="Token for token, more steps learn more",
    ),
    "06_accumulation_tokens",
    alt=(
        "Four loss curves against tokens: the more mini-batches are accumulated, the higher the "
        "curve lies."
    ),
    caption=(
        "Compare the right ends: all four have read the same stories. The legend names the stories "
        "of a step. All runs use the same rate, which may favour the small batch. One seed."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# The smallest batch wins by far: it takes eight times as many steps on the same stories.
#
# </details>
#
# How do the same runs compare if we count steps instead of tokens?

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        against("step", same),
        x_label="optimizer step",
        y_label="validation loss (nats per token)",
        title="Step for step, 32, 64 and 128 stories learn almost the same",
    ),
    "06_accumulation_steps",
    alt=(
        "The same four curves against optimizer steps: those of 32, 64 and 128 stories lie on one "
        "another until each ends; that of 16 stories lies a little higher."
    ),
    caption=(
        "Compare the curves at the same step, before they flatten: each flattens near its end, "
        "where its rate falls. The curve of 16 × 1 has a warm-up: its first step has half the rate."
    ),
)

# %%
for a, history in same.items():
    print(f"16 × {a}: ≈{history.column('validation_loss')[1]:.2f} nats after two steps")

# %% [markdown]
# After two steps, the run with 128 stories a step has hardly learned more than that with 32, although it has read four
# times as many words. So in these first steps the noise of small batches does not seem to be what slows learning down.
# (That 16 × 1 lies higher is at least partly due to its warm-up.) These few steps cannot show whether a larger batch
# helps after many epochs.
#
# Can a larger batch use a larger learning rate? For optimizers like Adam, theory says that the rate should grow with
# the square root of the batch size
# ([Malladi et al. 2022](https://arxiv.org/abs/2205.10287)).

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        against("tokens", scaled, 1000),
        x_label="tokens read (thousands)",
        y_label="validation loss (nats per token)",
        title="If the rate grows with the square root, the curves move closer",
    ),
    "06_accumulation_scaled",
    alt=(
        "Four loss curves against tokens with scaled learning rates: closer together than with "
        "one rate for all."
    ),
    caption=(
        "Compare the right ends with those of the first figure. The distance that remains may be "
        "the cost of fewer steps, or of a rate that is still too small. One seed."
    ),
)

# %% cellView="form" tags=["hide-input"]
claim(
    f"at the same rate 16 × 1 ends at ≈{final['same'][1]:.2f} nats and 16 × 8 at "
    f"≈{final['same'][8]:.2f}; with a larger rate 16 × 8 reaches ≈{final['scaled'][8]:.2f}",
    final["same"][1] < final["same"][8] > final["scaled"][8],
)

# %% [markdown]
# The larger rate helps the larger batches here. We did not run the small batch at those rates, so this does not show
# that only a large batch tolerates them, nor that the square root is the right law.
#
# And how long does it take? The four variants take turns, and each reads 128 stories. We scale the faster of two turns
# up to an epoch of 10,000 stories.

# %%
EPOCH = 10_000
runner = new_model(stories, tokenizer).to(device).train()
precision = pick_precision(device)


# %% cellView="form" tags=["hide-input"]
def seconds(ways, turns):
    """The fewest seconds that each function took; they take turns."""
    taken = dict.fromkeys(ways, math.inf)
    for _ in range(turns):
        for name, function in ways.items():
            started = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            taken[name] = min(taken[name], time.perf_counter() - started)
    return taken


# %% cellView="form" tags=["hide-input"]
def several(step, times):
    return lambda: [step() for _ in range(times)]


of_128 = {a: several(step_of(runner, 16, a, precision), 8 // a) for a in ACCUMULATION}
per_epoch = {a: value * EPOCH / 128 for a, value in seconds(of_128, turns=2).items()}

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [
            f"16 × {a}",
            same[a].rows[-1]["step"],
            f"{final['same'][a]:.2f}",
            f"{final['scaled'][a]:.2f}",
            f"{per_epoch[a]:.0f}",
        ]
        for a in ACCUMULATION
    ],
    [
        "stories in a step",
        f"steps in {len(some.train):,} stories",
        f"loss, rate {BASE_RATE}",
        "loss, rate · √accumulation",
        f"seconds for {EPOCH:,} stories ({device}, {precision})",
    ],
    caption=(
        "The final loss of each run, and the time of an epoch of plain gradient descent, without "
        "moments (bf16: with 16-bit products). Read the last column downwards: a tenth may be "
        "noise."
    ),
)

# %% [markdown]
# All four variants read the same mini-batches, so their times should be about the same. (AdamW's update costs more than
# that of plain gradient descent, and with an accumulation of 8 it is made an eighth as often.) Accumulation buys a
# larger batch, at the price of storing one set of gradients. If the batch need not be large, it buys nothing.
#
# ## What the backward pass needs
#
# Which activations does PyTorch keep? Every operation keeps what its derivative will need: a product keeps its factors,
# a softmax its result. `saved_tensors_hooks(pack, unpack)` lets us look. PyTorch calls
# `pack` on each tensor that it wants to keep, stores what `pack` returns, and calls `unpack` on that when the backward
# pass needs it. We look at one block, for a batch of 16, without dropout. In this section and the next everything runs
# on the CPU, because a GPU has a random state of its own.

# %%
block, mask = full.cpu().blocks[0], full.mask[:63, :63]
x = torch.randn(16, 63, 296, requires_grad=True)  # (B, T, D)
own = {p.data_ptr() for p in [*block.parameters(), mask]}
kept = {}


# %%
def look(tensor):
    storage = tensor.untyped_storage()
    if storage.data_ptr() not in own:
        kept[storage.data_ptr()] = tensor  # held, so that no address is used twice
    return tensor


# %%
with saved_tensors_hooks(look, lambda tensor: tensor):
    y, _ = block(x, mask)

# %%
sizes = {}
for tensor in kept.values():
    sizes.setdefault(tuple(tensor.shape), []).append(tensor.untyped_storage().nbytes())
inside = sum(map(sum, sizes.values()))
kept.clear()

# %% cellView="form" tags=["hide-input"]
table(
    [
        [str(shape), len(each), f"{sum(each) / 1e6:.1f}"]
        for shape, each in sorted(sizes.items(), key=lambda pair: -sum(pair[1]))
    ],
    ["kept, by shape", "how many", "MB in all"],
    caption="What autograd keeps of one block between the forward and the backward pass.",
)

# %% cellView="form" tags=["hide-input"]
claim(
    f"the block's input takes {x.nbytes / 1e6:.1f} MB, and the block keeps {inside / 1e6:.1f} MB, "
    f"{inside / x.nbytes:.0f} times as much",
    inside > 10 * x.nbytes,
)

# %% [markdown]
# (1,008 rows are 16 stories of 63 words, flattened for a product; 1,024 is the width of the feed-forward part; 128 is 8
# heads times 16 stories, and 37 is a head's width. The attention weights have the shape 63 × 63.)
#
# ## Compute it twice
#
# So we keep only the *input* of each block, and forget what was computed inside it. When the backward pass reaches the
# block, we run the block again from its input, and continue. This costs the time of one more forward pass, and in
# return only one block's inside is in memory at a time. This is **gradient checkpointing**, also called *activation
# checkpointing* ([Chen et al. 2016](https://arxiv.org/abs/1604.06174)). (The checkpoints of notebook 04 are saved
# models, and something else.)
#
# We write it as an operation with a backward pass of its own. In PyTorch this is a subclass of
# **`torch.autograd.Function`**, called as `Recompute.apply(function, x)`, with two static methods:
#
# - `forward(ctx, …)` computes the result. What the backward pass will need goes into `ctx` (the **context**): tensors
#   with `save_for_backward`, anything else as an attribute. We save the input and the function, and nothing else.
# - `backward(ctx, grad)` gets the gradient with respect to the result. It returns one gradient for each argument of
#   `forward` after `ctx`: `None` for the function, which is not a tensor, and the gradient of $x$.


# %%
class Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():  # nothing inside is kept
            return function(x)

    @staticmethod
    def backward(ctx, grad):  # must return the gradients of (function, x)
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():  # the second time with everything kept
            y = ctx.function(x)
        y.backward(grad)  # adds to the parameters' .grad on its way to x
        return None, x.grad


# %% [markdown]
# (The input must require a gradient. Otherwise `backward` is never called, and the block silently gets no gradient.) We
# compare the gradients of three blocks, called with this function and called plainly:


# %%
def all_gradients(model, way):
    """Gradients of all blocks, each called as way(function, x); function(x) is the block."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # for dropout
    stream = x  # (B, T, D)
    for block in model.blocks:
        stream = way(lambda x, block=block: block(x, mask)[0], stream)  # (B, T, D)
    model.norm(stream).square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


# %%
def plainly(function, x):
    return function(x)


# %%
ours, plain = all_gradients(full, Recompute.apply), all_gradients(full, plainly)
claim(f"{len(plain)} gradients are the same, bit for bit", equal(ours, plain))

# %% [markdown]
# **Predict.** Now switch dropout on. What happens to the gradients of `Recompute`: are they still the same, are they
# wrong without any warning, or does PyTorch raise an error?

# %%
full.set_dropout(0.1)
plain, ours, theirs = (all_gradients(full, way) for way in (plainly, Recompute.apply, checkpoint))
off = max(difference(a, b) for a, b in zip(ours, plain, strict=True))

# %% cellView="form" tags=["hide-input", "hide-output"]
claim(f"with dropout, Recompute's gradients are off by up to ≈{off:.0%} of the largest", off > 0.01)
claim("those of helpers.memory.checkpoint are the same, bit for bit", equal(theirs, plain))

# %% [markdown]
# <details><summary>What happened</summary>
#
# They are wrong, and no error is raised. The second pass drew different random numbers, so it dropped different units,
# and the gradient mixes two different passes.
#
# </details>
#
# The second pass must repeat the first exactly. So we also keep the random state, a few kilobytes, and start the second
# pass from it:


# %%
class RecomputeTheSame(Recompute):
    @staticmethod
    def forward(ctx, function, x):
        ctx.random_state = torch.get_rng_state()
        return Recompute.forward(ctx, function, x)

    @staticmethod
    def backward(ctx, grad):
        with torch.random.fork_rng(devices=[]):  # later draws are unaffected
            torch.set_rng_state(ctx.random_state)
            return Recompute.backward(ctx, grad)


# %%
mended = all_gradients(full, RecomputeTheSame.apply)
claim("with the random state replayed they are the same, bit for bit", equal(mended, plain))

# %% [markdown]
# The course's helper `checkpoint` also handles GPUs, and differs in one more way. `Recompute` throws away the
# **graph**, which is autograd's record of the operations, and builds a second one. So parameters get their gradients in
# a backward pass within the backward pass. The helper keeps the first graph, and stores *placeholders* in place of
# tensors, with the hooks that you saw above: `forget` returns an empty placeholder, and `recall` the tensor that the
# second run has put into it. The second run stops as soon as the last placeholder is filled.

# %%
show_source(
    memory, fold="helpers/memory.py: checkpoint, its placeholders, and the meter of peak memory"
)

# %% [markdown]
# ## One gradient, three profiles
#
# A **segment** is a run of consecutive blocks that are recomputed together: only the input of the first is kept. We
# take twelve blocks and a batch of 16, and record memory after every operation of a forward and a backward pass. We
# do this three times: keeping everything, with three segments of four blocks, and with a segment for each block.
# Dropout is on, so a block keeps more than above: the dropout masks, and the attention weights a second time.
#
# **Predict.** The first way holds the insides of twelve blocks at once, the second those of four, the third that of
# one. Are the peaks in the ratio 12 : 4 : 1, or are they closer together, or further apart?

# %%
deep = Decoder(ModelConfig(num_layers=12, dropout=0.1)).to(device).train()
batch = ids[:16].to(device)  # (B, T)


# %%
def training_pass(model, segments, batch=batch):
    model.set_recomputation(*segments)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    loss_sum(model, batch)[0].backward()


# %%
timelines, gradients = {}, {}
for name, segments in {"all kept": (), "3 segments": (3,), "12 segments": (12,)}.items():
    timelines[name] = memory_timeline(partial(training_pass, deep, segments))
    gradients[name] = [p.grad for p in deep.parameters()]
profile_peaks = {name: max(line) for name, line in timelines.items()}


# %% cellView="form" tags=["hide-input", "hide-output"]
def outline(line, points=300):
    """The peak in each of `points` equal parts: (number of operations, MB)."""
    ends = [len(line) * i // points for i in range(points + 1)]
    return ends[:-1], [max(line[a:b]) / 1e6 for a, b in pairwise(ends)]


figures.save_figure(
    plots.compare_curves(
        {name: outline(line) for name, line in timelines.items()},
        x_label="operations done",
        y_label="memory of the pass (MB)",
        title="Segments lower the peak: one mountain, three hills, or twelve teeth",
    ),
    "06_profiles",
    alt=(
        "Memory during a training pass of 12 blocks: with everything kept it climbs to a high "
        "peak; with checkpointing it stays low, with a tooth for each segment."
    ),
    caption=(
        "A line's highest point is the memory that the pass needs. The first 1,000 operations are "
        "the forward pass: with segments the line stays low there. Afterwards each hill or tooth "
        "is a segment, filled again and emptied. The axis does not show seconds."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
low, middle, high = (profile_peaks[n] / 1e6 for n in ("12 segments", "3 segments", "all kept"))
claim(
    f"peaks of {low:.0f}, {middle:.0f} and {high:.0f} MB: 12 segments need {low / high:.0%} of "
    "what keeping everything needs, less than 35 %",
    low < middle < high and low < 0.35 * high,
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# They are closer together, because some memory is needed in any case: the gradients of the parameters, which let the
# lines rise towards the right, the inputs of the segments, and the output layer (the spike near operation 1,000).
#
# </details>
#
# **The gradient is the same, bit for bit; the memory profiles differ.** The price is time, which shows in the longer
# lines: the forward pass is done a second time, with some bookkeeping. (The meter sees only tensors, not the working
# memory of a product.)

# %%
claim(
    "the three gradients are the same, bit for bit",
    all(equal(gradients[name], gradients["all kept"]) for name in gradients),
)
gradients.clear()
deep.zero_grad(set_to_none=True)

# %% [markdown]
# ## Three blocks: memory and time
#
# Now we run the full model, with batches of 32 and dropout 0.1, with and without checkpointing. PyTorch's own
# checkpointing is the reference: the model calls it in place of ours. Its older version calls a backward pass within
# the backward pass, as `Recompute` does, and is called *reentrant* for that; `use_reentrant=False` chooses the newer
# one, which fills placeholders.

# %%
judged = Decoder(ModelConfig(dropout=0.1)).to(device).train()
batch_32 = ids[:32].to(device)  # (B, T)


# %%
def by_pytorch(model, segments, batch):
    with patch("helpers.model.checkpoint", partial(pytorchs_checkpoint, use_reentrant=False)):
        training_pass(model, segments, batch)


# %%
contest = {
    "all kept": partial(training_pass, judged, (), batch_32),
    "ours, a segment a block": partial(training_pass, judged, (3,), batch_32),
    "PyTorch's, a segment a block": partial(by_pytorch, judged, (3,), batch_32),
}
contest_peaks, found = {}, {}
for name, function in contest.items():
    judged.zero_grad(set_to_none=True)
    contest_peaks[name] = measure_peak_memory(function)
    found[name] = [p.grad for p in judged.parameters()]
contest_seconds = seconds(contest, turns=3)

# %%
all_kept, ours, theirs = contest_peaks.values()
claim(
    "the three ways give the same gradient, bit for bit",
    all(equal(g, found["all kept"]) for g in found.values()),
)
claim(
    f"peaks of {all_kept / 1e6:.0f}, {ours / 1e6:.0f} and {theirs / 1e6:.0f} MB: ours is less than "
    "60 % of keeping all, and no more than 2 % above PyTorch's",
    ours < 0.6 * all_kept and ours <= 1.02 * theirs,
)
found.clear()

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
contest_table = [
    {
        "way": name,
        "peak, MB": f"{contest_peaks[name] / 1e6:.0f}",
        "seconds per epoch": f"{contest_seconds[name] * math.ceil(EPOCH / 32):.0f}",
        "of the time": f"{contest_seconds[name] / contest_seconds['all kept']:.2f}",
        "device": f"{device}, fp32",
    }
    for name in contest
]
table(
    contest_table + load_numbers("benchmark", "06_gpu")["checkpointing"],  # recorded
    ["way", "peak, MB", "seconds per epoch", "of the time", "device"],
    caption=(
        "The three ways on the same batch. The seconds are those of one forward and backward "
        "pass, times the batches of an epoch; the optimizer is not included. The rows of the GPU "
        "were recorded."
    ),
)

# %% [markdown]
# Compare the column *of the time*. A backward pass is about twice the work of a forward pass, so repeating the whole
# forward pass would add a third. We repeat only the three blocks, with 2.9 million weights; the output layer has 3.0
# million. By this count about a sixth is added; attention, dropout and bookkeeping, which it leaves out, come on top.
# (A fast GPU waits for Python with a model as small as ours, and its ratio says little.) The times are longer than in
# the earlier table, because this model has 10,000 words instead of the grammar's 2,082, and computes in fp32 (32-bit
# numbers). The memory saved gives you a choice: the same model in less memory, or a larger batch or a deeper model in
# the same memory.
#
# ## How many segments?
#
# If we divide $n$ blocks into $s$ segments, we keep $s$ inputs, and at any time the inside of one segment, which has
# $n/s$ blocks:
#
# $$\text{peak}(s) \approx s \cdot a + \frac{n}{s} \cdot b.$$
#
# Here $a$ is the size of one input, and $b$ that of the inside of one block.
#
# **Predict.** We take 64 narrow blocks. The inside of the block that we looked at was 19 times as large as its input.
# Which number of segments will have the lowest peak: $\sqrt{64} = 8$, fewer, or more?

# %%
sizes = {"embedding_dim": 16, "d_model": 32, "num_layers": 64, "num_heads": 4, "d_ff": 112}
tower = Decoder(ModelConfig(vocab_size=len(tokenizer), **sizes)).to(device).train()
tower_peaks, operations = {}, {}
for segments in [(2,), (4,), (8,), (16,), (32,), (64,), (8, 8)]:
    tower.set_recomputation(*segments)
    tower.zero_grad(set_to_none=True)
    line = memory_timeline(  # of the blocks alone
        lambda: tower.hidden(batch[:, :-1])[0].square().mean().backward()
    )
    tower_peaks[segments], operations[segments] = max(line), len(line)

# %%
a_bytes = 16 * 63 * 32 * 4  # B · T · D · 4
# peak(2) − peak(4) = (64/2 − 64/4) · b − 2 · a
b_bytes = (tower_peaks[2,] - tower_peaks[4,] + 2 * a_bytes) / (64 / 2 - 64 / 4)
best = math.sqrt(64 * b_bytes / a_bytes)

# %% cellView="form" tags=["hide-input", "hide-output"]
counts = [2, 4, 8, 16, 32, 64]
formula = [(s * a_bytes + 64 / s * b_bytes) / 1e6 for s in counts]
figures.save_figure(
    plots.compare_curves(
        {
            "measured": (counts, [tower_peaks[s,] / 1e6 for s in counts]),
            "s · a + (64/s) · b": (counts, formula),
        },
        x_label="segments of 64 blocks",
        y_label="peak memory (MB)",
        title="√64 = 8 segments are far too few",
        landmarks={"nested, 8 × 8:": tower_peaks[8, 8] / 1e6},
        log_x=True,
        log_y=True,
    ),
    "06_segments",
    alt=(
        "Peak memory against the number of segments, both axes logarithmic: it falls steeply up "
        "to 32 segments, and is nearly flat from there."
    ),
    caption=(
        "Look for the lowest point of the measured line: it lies far to the right of 8. The dotted "
        "line is the peak with 8 segments of 8 segments each. Both axes are logarithmic."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
claim(
    f"b is {b_bytes / a_bytes:.0f} times a, so the best number of segments is about {best:.0f}",
    32 <= best <= 64,
)
claim(
    f"64 segments peak at {tower_peaks[64,] / tower_peaks[8,]:.0%} of 8 segments, less than half",
    tower_peaks[64,] < 0.5 * tower_peaks[8,],
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# The best is a segment for every one or two blocks. With √64 = 8 segments, the insides of eight blocks are held at
# once. The points of 2 and 4 segments gave $b$; the other four test the formula. (The measured line lies a little
# higher, because it includes gradients and tensors that live only for a moment. And the inside weighs more here than in
# the full model: the stream is narrow, so the attention weights take a larger share.)
#
# </details>
#
# The peak is lowest when its derivative with respect to $s$, $a - n b / s^2$, is zero: $s = \sqrt{n \, b / a}$. The
# well-known answer, $s = \sqrt{n}$, assumes $a = b$. If $n$ is less than $b / a$, the best $s$ would be more than $n$:
# then a segment for each block is best, as for the three and twelve blocks above.
#
# What remains then are the inputs of the segments. *Nesting* reduces those, too: we keep 8 inputs, and 8 more inside
# the segment that is being computed again. The price is that most blocks are computed a third time:

# %% cellView="form" tags=["hide-input"]
claim(
    f"8 × 8 nested: {tower_peaks[8, 8] / tower_peaks[64,]:.0%} of the peak of 64 segments, "
    f"{operations[8, 8] / operations[64,]:.0%} of their operations",
    tower_peaks[8, 8] < tower_peaks[64,],
)

# %% [markdown]
# ## The logits
#
# One tensor is larger than all the others: the logits, of shape $B \cdot T \times V$. Their softmax and their gradient
# are as large. For one batch of 32 × 63 tokens and 10,000 words, each of the three takes 81 MB. But the loss of a row
# (one token of the batch) needs only the logits of that row, so we can take a few hundred rows at a time.
#
# The gradient need not wait for the backward pass. The loss is one number, so the backward pass hands one number to
# this layer, such as 1 divided by the tokens of the batch. Up to this factor the gradient is known as soon as the
# logits are. A row's loss is $\log \sum_j e^{z_j} - z_y$, with logits $z$ and target $y$. Its derivative with respect
# to $z_j$ is the softmax of $z_j$, minus 1 if $j = y$. So the forward pass computes the gradient, and the backward pass
# only multiplies it by that factor. In short:


# %%
def loss_in_chunks(hidden, weight, bias, targets, rows_per_chunk):
    """The sum of the losses, and its gradients with respect to hidden, weight and bias."""
    total, grads = 0.0, [torch.zeros_like(t) for t in (hidden, weight, bias)]
    for start in range(0, len(hidden), rows_per_chunk):
        rows = slice(start, start + rows_per_chunk)
        logits = hidden[rows] @ weight.T + bias  # (rows, V)
        right = torch.arange(len(logits)), targets[rows]
        total += (logits.logsumexp(-1) - logits[right]).sum()
        slope = logits.softmax(-1)  # (rows, V)
        slope[right] -= 1
        grads[0][rows] = slope @ weight  # (rows, D)
        grads[1] += slope.T @ hidden[rows]  # (V, D)
        grads[2] += slope.sum(0)  # (V,)
    return total, grads


# %% [markdown]
# We test it on random numbers, in the sizes of our model:

# %%
torch.manual_seed(0)
hidden = torch.randn(32 * 63, 296, device=device)  # (N, D)
weight, bias = torch.randn(10_000, 296, device=device) / 17, torch.zeros(10_000, device=device)
targets = torch.randint(1, 10_000, (32 * 63,), device=device)  # (N,)
ROWS = 512  # per chunk


# %%
def plain_loss(hidden, weight, bias):
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")  # ()


def chunked_loss(hidden, weight, bias):
    return output_loss(hidden, weight, bias, targets, ignore_index=0, rows_per_chunk=ROWS)  # ()


def loss_gradients(loss, dtype):
    leaves = [t.to(dtype).clone().requires_grad_() for t in (hidden, weight, bias)]
    return torch.autograd.grad(loss(*leaves), leaves)


# %%
by_hand = loss_in_chunks(hidden.double(), weight.double(), bias.double(), targets, ROWS)[1]
reference, helpers_way = (loss_gradients(f, torch.float64) for f in (plain_loss, chunked_loss))
for name, grads in {"by hand": by_hand, "output_loss": helpers_way}.items():
    off = max(difference(a, b) for a, b in zip(grads, reference, strict=True))
    claim(
        f"{name}: the same gradients as with all logits at once, within ≈{off:.0e}, below 1e-12",
        off < 1e-12,
    )
del by_hand, reference, helpers_way

# %%
given = hidden.nbytes + weight.nbytes + bias.nbytes
ways = {"all logits at once": plain_loss, f"{ROWS} rows at a time": chunked_loss}
loss_peaks = {
    name: measure_peak_memory(partial(loss_gradients, loss, torch.float32)) - given
    for name, loss in ways.items()
}
most, least = loss_peaks.values()

# %% cellView="form" tags=["hide-input"]
claim(
    f"all logits at once: {most / 1e6:.0f} MB; {ROWS} rows at a time: {least / 1e6:.0f} MB, at "
    "most a quarter",
    least <= most / 4,
)

# %% [markdown]
# The first number is about three tensors of 81 MB. In the second, two tensors of 512 rows account for 41 MB, and the
# gradients themselves for most of the rest. The course's model has worked this way all along: none of the peaks above
# includes all logits. Here is its version, which also skips `<pad>`, and can multiply in 16 bits:

# %%
show_source(OutputLoss, fold="OutputLoss, from helpers/loss.py")

# %% [markdown]
# ## More than one machine
#
# Gradients can be added wherever they were computed. So a batch can be shared among **processes**, each of which has a
# GPU, or a machine, of its own. Every process computes the gradient of its part of the batch (its **shard**), all
# exchange their gradients, and all take the same step. Here a larger batch buys time, because its parts are computed
# side by side. PyTorch's `DistributedDataParallel` does the exchange, and takes the *mean* over the processes. So
# `optimizer_step` first multiplies by the number of processes, and divides by the tokens of *all* shards. Here is the
# arithmetic with two shards, one after the other in one process:

# %%
shards = [ragged[0::2], ragged[1::2]]  # (2, T) each, no story in both
of_shard = []
for shard in shards:
    (loss_sum(exact, shard)[0] / tokens * len(shards)).backward()
    of_shard.append(gradient())  # (P,)
off = difference(sum(of_shard) / len(shards), whole)

# %% cellView="form" tags=["hide-input"]
claim(
    f"the mean over two shards is the gradient of the whole batch, within ≈{off:.0e}, less than "
    "1e-12",
    off < 1e-12,
)

# %% [markdown]
# PyTorch's launcher `torchrun` starts real processes. Run it from the repository's folder:
#
# ```bash
# torchrun --nproc-per-node 2 -m helpers.training --corpus tinystories \
#   --batch-size 16 --accumulation-steps 2
# torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d \
#   --rdzv-endpoint HOST:29500 -m helpers.training --corpus tinystories
# ```
#
# The first command starts two processes on this machine; a step sees 2 × 2 × 16 stories. The second is typed on each
# of four machines (*nodes*), and starts eight processes there. They find each other at a *rendezvous* (`rdzv`):
# `HOST:29500` is address and port of one machine, and `c10d` is PyTorch's own meeting service. Every setting of
# `TrainingConfig` is an option of the training program. With accumulation, gradients are exchanged only once per step.
# Only the first process logs and saves.

# %% cellView="form" tags=["numbers"]
# @title The numbers that notebook 07 reports
figures.save_numbers(
    "06",
    {
        "made_from": made_from(stories, tokenizer),
        "accumulation": {
            str(a): {
                "same_rate": same[a].rows,
                "scaled_rate": scaled[a].rows,
                "seconds_per_epoch": per_epoch[a],
            }
            for a in ACCUMULATION
        },
        "stories": len(some.train),
        "base_rate": BASE_RATE,
        "device": device,
        "precision": precision,
        "step_peaks": step_peaks,
        "accumulated_gradient_off_by": off_by,
        "twelve_blocks": profile_peaks,
        "checkpointing": contest_table,
        "segments_of_64": {
            " x ".join(map(str, segments)): value for segments, value in tower_peaks.items()
        },
        "loss_step": loss_peaks,
        "seconds_for_32_stories": contest_seconds["all kept"],
    },
)

# %% [markdown]
# ## Recap
#
# - Gradients add. Divide by the tokens of the whole step, never by the number of mini-batches.
# - Accumulation gives a large batch for the memory of a small one plus one set of gradients. For the same number of
#   tokens, the larger batch learned less here: it took fewer steps, at a rate that may have been too small for it.
# - Checkpointing keeps a segment's input and computes its inside twice. The gradient is the same, bit for bit, if the
#   random state is replayed.
# - The best number of segments is √(n·b/a): it depends on how much larger a block's inside is than its input. Here one
#   segment for every block or every two blocks is best, and nesting needs even less.
# - The logits need never exist all at once.
# - The same arithmetic lets several processes share a batch.
#
# ## What GPT and Llama do differently
#
# The words in italics are what to search for.
#
# - *Activation checkpointing* is what most libraries call it. *Selective recomputation* computes again what is large but
#   cheap, such as attention weights, and keeps the rest, which saves most of the extra time
#   ([Korthikanti et al. 2023](https://arxiv.org/abs/2205.05198)). *FlashAttention* never stores those weights at all
#   ([Dao et al. 2022](https://arxiv.org/abs/2205.14135)).
# - *ZeRO* and *FSDP* (fully sharded data parallel). Parameters, gradients and moments take about 16 bytes for each
#   parameter: with 70 billion parameters more than a terabyte, and a GPU has about 80 GB. So each GPU holds only a share
#   of them, and the others fetch it when they need it ([Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054)).
# - *Tensor parallelism* splits the matrices of a layer over several GPUs, because one layer can be too large for one.
#   *Pipeline parallelism* gives each GPU a few of the blocks, because little data passes from one block to the next.
# - *Fused linear cross-entropy* does what `loss_in_chunks` does, in a GPU program made for it. Llama 3 has 128,256 tokens in its
#   vocabulary: the logits of 8,192 tokens would take 4.2 GB in 32-bit numbers.
#
# Next: [07 · Results](07_results.ipynb) puts it all on a few pages.
#
# ## Can you?
#
# 1. A step has two mini-batches, of 10 and of 90 tokens. By what do you divide each summed loss?
#    <details><summary>Answer:</summary> By 100, the tokens of the whole step. The mean of the means would be right only
#    if all mini-batches had the same number of tokens.</details>
# 2. You double the batch by accumulation. What do you gain, and what do you pay?
#    <details><summary>Answer:</summary> A steadier gradient. You pay with half as many steps on the same stories, and with
#    the memory of one set of gradients.</details>
# 3. What does `Recompute` save, what does its `backward` do, and what must be replayed?
#    <details><summary>Answer:</summary> It saves the input. `backward` runs the function again, with gradients on, and
#    calls `backward` on the result. The random state must be replayed, or dropout draws different masks.</details>
# 4. The inside of a block is as large as four inputs, and there are 16 blocks. How many segments, and why not √16?
#    <details><summary>Answer:</summary> √(16 · 4) = 8. √n is right only if a block's inside is as small as its input.
#    </details>
# 5. Why can a loss be computed a few rows at a time, and its gradient in the forward pass?
#    <details><summary>Answer:</summary> A row's loss needs its own logits only. Its derivative is the softmax, minus 1 at
#    the target, times a factor that is the same for all rows.</details>
# 6. Four processes share a batch, and their gradients are averaged. What does each do with its summed loss?
#    <details><summary>Answer:</summary> It divides it by the tokens of all four shards, and multiplies it by 4.</details>
#
# ## Exercises
#
# Three tasks with checks that name your mistake, and with solutions: accumulation over unequal stories, computing twice
# with the same random numbers, and an experiment with the number of segments. Then six short programs with a bug each,
# and six diagnostics to choose from. About an hour and a half: [exercises for 06](exercises/06_memory.ipynb).
#
# ## References
#
# - [Chen et al. 2016](https://arxiv.org/abs/1604.06174), *Training Deep Nets with Sublinear Memory Cost*
# - [Dao et al. 2022](https://arxiv.org/abs/2205.14135), *FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness*
# - [Korthikanti et al. 2023](https://arxiv.org/abs/2205.05198), *Reducing Activation Recomputation in Large Transformer Models*
# - [Malladi et al. 2022](https://arxiv.org/abs/2205.10287), *On the SDEs and Scaling Rules for Adaptive Gradient Algorithms*
# - [Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054), *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*
