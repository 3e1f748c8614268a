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
# gradient to the last bit. You will plot how memory rises and falls during a pass, and see the same arithmetic spread
# over several machines.
#
# **You will be able to**
#
# - write gradient accumulation, and show when the mean of means is wrong;
# - say what a larger batch buys, and what it costs;
# - write gradient checkpointing, and say what it must replay;
# - choose how many blocks to recompute together, and say why the square root is the wrong answer here;
# - compute a loss without ever holding all logits.
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
import math
import statistics
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise

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
# A large batch gives a steadier gradient, and needs more memory. But a gradient is a sum over tokens, and a sum can be
# computed in parts. In PyTorch `backward()` *adds* to `.grad`. So we call it for one small batch after another, and
# only then take a step. This is **gradient
# accumulation**:
#
# ```python
# optimizer.zero_grad()
# tokens = (batch[:, 1:] != pad_id).sum()          # of the whole batch
# for part in batch.split(16):                     # a mini-batch at a time
#     total, _ = loss_sum(model, part)             # a sum, not a mean
#     (total / tokens).backward()                  # adds to .grad
# optimizer.step()
# ```
#
# Is the result the gradient of the whole batch? To keep rounding out of the comparison, this part runs in 64-bit
# arithmetic, on four stories of unequal length.

# %%
exact = Decoder(trained.config).double()
exact.load_state_dict(trained.state_dict())
pad_id, texts = tokenizer.pad_id, []
for text, length in zip(stories.train, (9, 61, 30, 45), strict=False):
    texts.append(" ".join(tokenizer.split(text)[:length]))
ragged = encode_stories(tokenizer, texts, exact.config.context_length).long()  # (4, T)
tokens = (ragged[:, 1:] != pad_id).sum()  # ()


# %%
def gradient():
    """The accumulated gradients of all parameters, as one long vector; resets them to zero."""
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
# **Predict.** Here each story is a mini-batch of its own. Which of these has the same gradient as the whole batch: the
# sum of the four summed losses, divided by the number of all tokens, or the mean of the four mean losses?

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

# %%
claim(
    f"the sum of sums is off by ≈{off_by['sum of sums']:.0e} of the largest gradient, less than "
    "1e-12",
    off_by["sum of sums"] < 1e-12,
)
claim(
    f"the mean of means is off by ≈{off_by['mean of means']:.0%}, more than a tenth",
    off_by["mean of means"] > 0.1,
)

# %% [markdown]
# The mean of means looks harmless. But it gives each *story* the same weight, so a token of a short story counts more
# than a token of a long one:

# %%
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
# Hugging Face's `transformers` had this bug until October 2024 ([the fix](https://github.com/huggingface/transformers/pull/34191)): the
# loss function returned a mean, and dividing by the number of mini-batches seemed right. The bug shows only if
# mini-batches differ in their number of tokens. The course's `optimizer_step` does what the lines above do, and also
# clips the gradient; its lines about processes are explained at the end of this notebook.

# %%
show_source(optimizer_step, fold="optimizer_step, from helpers/training.py")

# %%
few = replace(stories, train=stories.train[:96], validation=stories.validation[:50])
settings = TrainingConfig(epochs=1, precision="fp32", warmup_steps=1)
once, in_four = (
    train(
        new_model(stories, tokenizer),
        tokenizer,
        few,
        replace(settings, batch_size=size, accumulation_steps=steps),
    ).column("validation_loss")
    for size, steps in ((32, 1), (8, 4))
)

# %%
apart = max(abs(a / b - 1) for a, b in zip(once, in_four, strict=True))
claim(
    f"{len(once)} steps of 32 stories, or of 4 × 8: the relative difference of the losses is "
    f"≈{apart:.0e}, less than 1e-4",
    apart < 1e-4,
)

# %% [markdown]
# How much memory does this save? The backward pass needs what the forward pass computed, and that grows with the
# mini-batch. `measure_peak_memory` counts the bytes of the tensors that a call creates, and returns their peak. The
# parameters come on top, and so do the *moments* that the optimizer keeps for each of them (the running means of
# notebook 04). They do not depend on the batch, and are left out here.

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
share = step_peaks["8 times 16"] / step_peaks["128 at once"]

# %%
claim(f"8 times 16 needs ≈{share:.0%} of the memory of 128 at once, less than 30 %", share < 0.3)

# %% [markdown]
# Accumulation needs one thing more than a single small batch does: the sum of the gradients, which is as large as the
# parameters, stays in memory while the next mini-batch is processed. It does not grow with the number of mini-batches.
#
# ## Steps of 16, 32, 64 and 128 stories
#
# We accumulate 1, 2, 4 or 8 mini-batches of 16 stories, so that a step sees 16 to 128 stories. Each run takes one
# epoch, from the same random start, with warm-up and schedule fitted to its number of steps. Here AdamW trains the
# whole model, without Muon, because the rule for the learning rate below is known for Adam and its relatives.
#
# **Predict.** All four see the same stories once. Which has learned most at the end?

# %%
STORIES = 800 if CORPUS == "bundled" else 10_000  # an epoch
some = replace(stories, train=stories.train[:STORIES], validation=stories.validation[:100])
ACCUMULATION = (1, 2, 4, 8)
BASE_RATE = 7e-4  # for 16 stories; small, since the shortest run has few steps to warm up in


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


# %%
def against(column, runs, unit=1):
    """{label: (tokens or steps, validation losses)}"""
    return {
        f"16 × {a} = {16 * a}": ([n / unit for n in h.column(column)], h.column("validation_loss"))
        for a, h in runs.items()
    }


# %% cellView="form" tags=["hide-input"]
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
        "At the same number of tokens, a larger batch has made fewer steps. All runs use the "
        "same rate, which favours the small batch."
    ),
)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        against("step", same),
        x_label="optimizer step",
        y_label="validation loss (nats per token)",
        title="Step for step, the larger batch starts ahead, then its schedule ends",
    ),
    "06_accumulation_steps",
    alt=(
        "The same four curves against optimizer steps: larger batches start "
        "lower, and end sooner and higher."
    ),
    caption=(
        "The same runs against steps. A larger batch has read more tokens at each step, so "
        "the comparison favours it."
    ),
)

# %% [markdown]
# The two figures show the same four runs. Plotted against tokens, the smallest batch wins: it takes seven times as many
# steps on the same data. Plotted against steps, the larger batch starts ahead. The warm-up alone could explain this,
# because it takes a tenth of the steps: the first step of 16 × 8 has the full rate, and that of 16 × 1 only a part of
# it. Then the rate of the larger batch falls to zero, and its curve flattens. So the figure cannot show how much a less
# noisy gradient helps; nor does it show what happens after many epochs, when the noise of small batches begins to cost.
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
        "The rate grows with the square root of the batch size. The remaining distance is what "
        "fewer steps cost in so short a run."
    ),
)

# %%
claim(
    f"at the same rate 16 × 1 ends at ≈{final['same'][1]:.2f} nats and 16 × 8 at "
    f"≈{final['same'][8]:.2f}; with a larger rate 16 × 8 reaches ≈{final['scaled'][8]:.2f}",
    final["same"][1] < final["same"][8] > final["scaled"][8],
)

# %% [markdown]
# The larger rate helps the larger batches here. We did not run the small batch at those rates, so this does not show
# that only a large batch tolerates them, nor that the square root is the right law.
#
# And how long does it take? The four variants take turns, and each reads 128 stories. We scale the median of three
# turns up to an epoch of 10,000 stories.

# %%
EPOCH = 10_000
runner = new_model(stories, tokenizer).to(device).train()
precision = pick_precision(device)


# %%
def seconds(steps, repeats=3):
    """Median seconds of each function, in turns, after one run to warm up."""
    taken = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, function in steps.items():
            started = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


# %%
def several(step, times):
    return lambda: [step() for _ in range(times)]


of_128 = {a: several(step_of(runner, 16, a, precision), 8 // a) for a in ACCUMULATION}
per_epoch = {a: value * EPOCH / 128 for a, value in seconds(of_128).items()}

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
    caption="The final loss of each run, and the time of an epoch of plain gradient descent.",
)

# %% [markdown]
# All four variants read the same mini-batches, so the times should differ by little more than this machine's noise. (We
# timed plain gradient descent, whose update costs almost nothing. AdamW's update costs more, and with an accumulation
# of 8 it is made an eighth as often.) Accumulation buys a larger batch, at the price of storing one set of gradients.
# If the batch need not be large, it buys nothing.
#
# ## What the backward pass needs
#
# Parameters, gradients and moments do not depend on the batch. The rest of the memory grows with it. What is in that
# rest? Every operation keeps what its derivative will need:
# a product keeps its factors, a softmax its result. `saved_tensors_hooks(pack, unpack)` lets us look. PyTorch calls
# `pack` on each tensor that it wants to keep, stores what `pack` returns, and calls `unpack` on that when the backward
# pass needs it. We look at one block, for a batch of 16, without dropout.

# %%
block, mask = full.blocks[0], full.mask[:63, :63]
x = torch.randn(16, 63, 296, device=device, requires_grad=True)  # (B, T, D)
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

# %%
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
# return only one block's inside is in memory at a time. This is **gradient checkpointing** ([Chen et al.
# 2016](https://arxiv.org/abs/1604.06174)). It can be written as one function with a backward pass of its own:


# %%
class Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():  # nothing inside is kept
            return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():  # the second time with everything kept
            y = ctx.function(x)
        y.backward(grad)  # adds to the parameters' .grad on its way to x
        return None, x.grad


# %% [markdown]
# (The input must require a gradient. Otherwise `backward` is never called, and the block silently gets no gradient.) We
# compare three blocks with and without this function:


# %%
def all_gradients(model, way):
    """The gradients of three blocks; way(function, x) calls a block."""
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


def equal(these, those):
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


# %%
ours, plain = all_gradients(full, Recompute.apply), all_gradients(full, plainly)
claim(f"{len(plain)} gradients are the same, bit for bit", equal(ours, plain))

# %% [markdown]
# **Predict.** Now switch dropout on. What goes wrong?

# %%
full.set_dropout(0.1)
plain, ours, theirs = (all_gradients(full, way) for way in (plainly, Recompute.apply, checkpoint))
off = max(difference(a, b) for a, b in zip(ours, plain, strict=True))

# %%
claim(f"with dropout, Recompute's gradients are off by up to ≈{off:.0%} of the largest", off > 0.01)
claim("those of helpers.memory.checkpoint are the same, bit for bit", equal(theirs, plain))

# %% [markdown]
# The second pass drew different random numbers, so it dropped different units, and the gradient mixes two different
# passes. No error is raised. The fix is to keep the random state, a few kilobytes, with the input, and to start the
# second pass from it:


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
if device == "cpu":  # a GPU has a random state of its own
    mended = all_gradients(full, RecomputeTheSame.apply)
    claim("with the random state replayed they are the same, bit for bit", equal(mended, plain))

# %% [markdown]
# The course's helper also handles GPUs, and differs in one more way. `Recompute` throws the graph away and builds a second one, so
# parameters get their gradients in a backward pass within the backward pass. The helper keeps the first graph, and uses
# the hooks that you saw above to store *placeholders* in place of tensors: `forget` returns an empty placeholder
# instead of the tensor, and `recall` returns the tensor that the second run has put into that placeholder.
# The second run stops as soon as the last placeholder is filled.

# %%
show_source(checkpoint)

# %%
show_source(memory.Segment, fold="Placeholders: Segment, from helpers/memory.py")

# %%
show_source(memory.Recompute, fold="What fills them: Recompute, from helpers/memory.py")

# %% [markdown]
# ## One gradient, three profiles
#
# We take twelve blocks and a batch of 16, and record memory after every operation of a forward and a backward pass. We
# do this three times: keeping everything, with three segments of four blocks, and with a segment for each block.
# Dropout is on, so a block keeps more than above: the dropout masks, and the attention weights a second time.
#
# **Predict.** Draw the three lines before you look.

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

# %%
claim(
    "the three gradients are the same, bit for bit",
    all(equal(gradients[name], gradients["all kept"]) for name in gradients),
)
gradients.clear()
deep.zero_grad(set_to_none=True)


# %%
def outline(line, points=300):
    """The peak in each of `points` equal parts: (number of operations, MB)."""
    ends = [len(line) * i // points for i in range(points + 1)]
    return ends[:-1], [max(line[a:b]) / 1e6 for a, b in pairwise(ends)]


# %% cellView="form" tags=["hide-input"]
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
        "Read each line from left to right: it climbs in the forward pass and comes down in "
        "the backward pass. Its highest point is the memory that a machine must have."
    ),
)

# %%
low, middle, high = (
    profile_peaks[name] / 1e6 for name in ("12 segments", "3 segments", "all kept")
)

# %%
claim(
    f"peaks of {low:.0f}, {middle:.0f} and {high:.0f} MB: 12 segments need {low / high:.0%} of "
    "what keeping everything needs, less than 35 %",
    low < middle < high and low < 0.35 * high,
)

# %% [markdown]
# **The gradient is the same, bit for bit; the memory profiles differ.** If everything is kept, memory climbs through
# the forward pass and comes down in the backward pass. With segments, it climbs in the forward pass only by the inputs
# of the segments. The spike is the output layer, whose loss computes its gradients at once. Then each segment is filled
# and emptied, which makes one tooth per segment, and the line is longer by the operations that are done twice. The line
# rises towards the right because the gradients of the parameters have to be kept. (The axis counts operations, not
# seconds, and the meter sees only tensors, not the working memory of a matrix product.)
#
# ## Three blocks: memory and time
#
# Now we run the full model, with batches of 32 and dropout 0.1, with and without checkpointing. PyTorch's own
# checkpointing is the reference.

# %%
judged = Decoder(ModelConfig(dropout=0.1)).to(device).train()
batch_32 = ids[:32].to(device)  # (B, T)


# %%
def by_pytorch(model, batch):
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    inputs, targets, T = batch[:, :-1], batch[:, 1:], batch.shape[1] - 1  # (B, T) each
    words = model.projection(model.embedding(inputs)) * model.config.d_model**0.5  # (B, T, D)
    x = model.dropout(words + model.positions[:T])  # (B, T, D)
    for block in model.blocks:
        x, _ = pytorchs_checkpoint(block, x, model.mask[:T, :T], use_reentrant=False)  # (B, T, D)
    x, layer = model.norm(x), model.output  # (B, T, D)
    output_loss(x, layer.weight, layer.bias, targets, pad_id).backward()


# %%
contest = {
    "all kept": partial(training_pass, judged, (), batch_32),
    "ours, a segment a block": partial(training_pass, judged, (3,), batch_32),
    "PyTorch's, a segment a block": partial(by_pytorch, judged, batch_32),
}
contest_peaks, found = {}, {}
for name, function in contest.items():
    judged.zero_grad(set_to_none=True)
    contest_peaks[name] = measure_peak_memory(function)
    found[name] = [p.grad for p in judged.parameters()]
contest_seconds = seconds(contest)

# %%
all_kept, ours, theirs = contest_peaks.values()

# %%
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

# %%
BATCHES = math.ceil(EPOCH / 32)
contest_table = [
    {
        "way": name,
        "peak, MB": f"{contest_peaks[name] / 1e6:.0f}",
        "seconds per epoch": f"{contest_seconds[name] * BATCHES:.0f}",
        "of the time": f"{contest_seconds[name] / contest_seconds['all kept']:.2f}",
        "device": f"{device}, fp32",
    }
    for name in contest
]
gpu = load_numbers("benchmark", "06_gpu")["checkpointing"]  # recorded

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    contest_table + gpu,
    ["way", "peak, MB", "seconds per epoch", "of the time", "device"],
    caption=(
        "The three ways on the same batch. The seconds are those of one forward and backward "
        "pass, times the batches of an epoch; the optimizer is not included."
    ),
)

# %% [markdown]
# A backward pass is about twice the work of a forward pass. So a second forward pass should make the whole about a
# third longer; the column *of the time* shows the measured factor. (With a model as small as ours, a fast GPU waits for
# Python, and the ratio says little.) The memory saved gives you a choice: the same model in less memory, or a larger
# batch or a deeper model in the same memory.
#
# ## How many segments?
#
# If we divide $n$ blocks into $s$ segments, we keep $s$ inputs, and at any time the inside of one segment, which has
# $n/s$ blocks:
#
# $$\text{peak}(s) \approx s \cdot a + \frac{n}{s} \cdot b, \qquad a: \text{one input}, \quad b: \text{the inside of one block.}$$
#
# The peak is lowest when its derivative with respect to $s$, $a - n b / s^2$, is zero: $s = \sqrt{n \, b / a}$.
# Textbooks assume $a = b$, and find $s = \sqrt{n}$.
# If $n$ is less than $b / a$, the best $s$ would be more than $n$: then a segment for each block is best, as for the three
# and twelve blocks above.
#
# **Predict.** Our $b$ is many times $a$. What is roughly the best $s$ for 64 blocks?

# %%
sizes = {"embedding_dim": 16, "d_model": 32, "num_layers": 64, "num_heads": 4, "d_ff": 112}
tower = Decoder(ModelConfig(vocab_size=len(tokenizer), **sizes)).to(device).train()
tower_peaks = {}
for segments in [(2,), (4,), (8,), (16,), (32,), (64,), (8, 8)]:
    tower.set_recomputation(*segments)
    tower.zero_grad(set_to_none=True)
    tower_peaks[segments] = measure_peak_memory(
        lambda: tower.hidden(batch[:, :-1])[0].square().mean().backward()  # the blocks alone
    )
a_bytes = 16 * 63 * 32 * 4  # B · T · D · 4
# peak(2) − peak(4) = (64/2 − 64/4) · b − 2 · a
b_bytes = (tower_peaks[2,] - tower_peaks[4,] + 2 * a_bytes) / (64 / 2 - 64 / 4)
best = math.sqrt(64 * b_bytes / a_bytes)

# %%
counts = [2, 4, 8, 16, 32, 64]
formula = [(s * a_bytes + 64 / s * b_bytes) / 1e6 for s in counts]

# %% cellView="form" tags=["hide-input"]
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
        "The lowest point of the measured line lies far to the right of 8. Both axes are "
        "logarithmic."
    ),
)

# %%
claim(
    f"b is {b_bytes / a_bytes:.0f} times a, so the best number of segments is about {best:.0f}",
    32 <= best <= 64,
)
claim(
    f"64 segments peak at {tower_peaks[64,] / tower_peaks[8,]:.0%} of 8 segments, less than half; "
    f"8 × 8 nested at {tower_peaks[8, 8] / tower_peaks[64,]:.0%} of 64",
    tower_peaks[64,] < 0.5 * tower_peaks[8,] and tower_peaks[8, 8] < tower_peaks[64,],
)

# %% [markdown]
# The two points at the left gave $b$; the other four test the formula. The square root, 8 segments, does much worse,
# because it holds the insides of eight blocks at once. A segment for each block is nearly the best that one level can
# do; what remains then are the 64 inputs. Nesting reduces those: we keep 8 inputs, and 8 more inside the segment that
# is being computed again. Its price is a third forward pass. (The measured line includes the gradients of the
# parameters, so it lies above the formula.)
#
# ## The logits
#
# One tensor is larger than all the others: the logits, of shape $B \cdot T \times V$. Their softmax and their gradient
# are as large. For one batch of 32 × 63 tokens and 10,000 words, each of the three takes 81 MB. But the loss of a row
# needs only the logits of that row, so we can take a few hundred rows at a time. And because the loss is one number,
# its gradient is known, up to one factor, as soon as the logits are.
# A row's loss is $\log \sum_j e^{z_j} - z_y$, and its derivative with respect to $z_j$ is the softmax of $z_j$, minus 1
# if $j = y$. So the forward pass computes the gradient, and the backward pass only multiplies it by that factor. In
# short:


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

# %%
claim(
    f"all logits at once: {most / 1e6:.0f} MB; {ROWS} rows at a time: {least / 1e6:.0f} MB, at "
    "most a quarter",
    least <= most / 4,
)

# %% [markdown]
# The first number is about three tensors of 81 MB. In the second, two tensors of 512 rows account for 41 MB, and the
# gradients themselves for most of the rest. The course's training has worked this way all along: none of the peaks
# above includes all logits.

# %%
show_source(OutputLoss, fold="OutputLoss, from helpers/loss.py")

# %% [markdown]
# ## More than one machine
#
# Gradients can be added wherever they were computed. So a batch can be shared among processes, each on a GPU or a
# machine of its own: every process computes the gradient of its part (its *shard*), all exchange their gradients, and
# all take the same step. PyTorch's `DistributedDataParallel` does the
# exchange, and takes the *mean* over the processes. So `optimizer_step` first multiplies by the number of processes,
# and divides by the tokens of *all* shards. Here is a miniature with two "processes":

# %%
shards = [ragged[0::2], ragged[1::2]]  # (2, T) each, no story in both
of_shard = []
for shard in shards:
    (loss_sum(exact, shard)[0] / tokens * len(shards)).backward()
    of_shard.append(gradient())  # (P,)
off = difference(sum(of_shard) / len(shards), whole)

# %%
claim(
    f"the mean over two processes is the gradient of the whole batch, within ≈{off:.0e}, less than "
    "1e-12",
    off < 1e-12,
)

# %% [markdown]
# To do this with real processes, run from the repository's folder:
#
# ```bash
# torchrun --nproc-per-node 2 -m helpers.training --corpus tinystories \
#   --batch-size 16 --accumulation-steps 2
# torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d \
#   --rdzv-endpoint HOST:29500 -m helpers.training --corpus tinystories
# ```
#
# Every setting of `TrainingConfig` is a command-line option. With accumulation, gradients are exchanged only once per
# step. Only the first process logs and saves. `tests/test_training.py` compares two processes with one that accumulates
# twice as much, in 64-bit arithmetic: after 50 steps their curves agree within 1e-9.

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
#   tokens, the larger batch learned less here.
# - Checkpointing keeps a segment's input and computes its inside twice. The gradient is the same, bit for bit, if the
#   random state is replayed.
# - The best number of segments depends on how large a block's inside is. Here it is one for every block or every two
#   blocks, or nesting.
# - The logits need never exist all at once.
# - The same arithmetic lets several machines share a batch.
#
# ## What GPT and Llama do differently
#
# - **Sharding.** With tens of billions of parameters, the parameters, gradients and moments alone do not fit on one
#   GPU. Each GPU holds a share of them, and the others fetch it when they need it
#   ([Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054)).
# - **Splitting a layer.** Large matrices are split, and their products are computed on several GPUs; blocks are
#   distributed over GPUs like the stations of an assembly line.
# - **Selective recomputation.** They recompute what is large but cheap to compute, such as attention weights, and keep
#   the rest
#   ([Korthikanti et al. 2023](https://arxiv.org/abs/2205.05198)). Fused attention never stores those weights at all.
#
# Next: [07 · Results](07_results.ipynb) puts it all on a few pages.
#
# ## Can you?
#
# 1. When is the mean of the mini-batches' means the right loss?
#    <details><summary>Answer:</summary> If all mini-batches have the same number of real tokens.</details>
# 2. In a step of 8 × 16 stories, which part of the memory grows with the 8, and which does not?
#    <details><summary>Answer:</summary> None of it grows with the 8. One set of gradients is kept, whatever the
#    number.</details>
# 3. What must checkpointing replay, and why?
#    <details><summary>Answer:</summary> The random state. Otherwise dropout draws different masks, and the gradient
#    belongs to another pass.</details>
# 4. The inside of a block is as large as four inputs, and there are 16 blocks. How many segments?
#    <details><summary>Answer:</summary> √(16 · 4) = 8.</details>
# 5. What is the derivative of a row's cross-entropy with respect to its logits?
#    <details><summary>Answer:</summary> The softmax, minus 1 at the target.</details>
#
# ## Exercises
#
# Three tasks with checks that name your mistake, and with solutions: accumulation over unequal stories, computing twice with the same
# random numbers, and an experiment with the number of segments. Then six short programs with a bug each, and six diagnostics to choose
# from. About an hour and a half: [exercises for 06](exercises/06_memory.ipynb).
#
# ## References
#
# - [Chen et al. 2016](https://arxiv.org/abs/1604.06174), *Training Deep Nets with Sublinear Memory Cost*
# - [Korthikanti et al. 2023](https://arxiv.org/abs/2205.05198), *Reducing Activation Recomputation in Large Transformer Models*
# - [Malladi et al. 2022](https://arxiv.org/abs/2205.10287), *On the SDEs and Scaling Rules for Adaptive Gradient Algorithms*
# - [Rajbhandari et al. 2020](https://arxiv.org/abs/1910.02054), *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*
