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
# **Promise.** You will take one step on 128 stories with about a quarter of the memory that its tensors need at once (parameters
# and moments not counted). You will throw away most of what the backward pass needs, compute it a second time, and get the same
# gradient to the last bit. You will see memory as a line that rises and falls, and bring the peak of a pass down to about a
# fifth. And you will see why the same loop also works on many machines.
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
from torch.utils.checkpoint import checkpoint as pytorchs_checkpoint  # as a judge only

from helpers import memory, plots
from helpers.loss import OutputLoss, loss_sum, output_loss
from helpers.memory import checkpoint, measure_peak_memory, memory_timeline
from helpers.model import Decoder, ModelConfig
from helpers.notebook import FigureFolder, load_numbers, show_source, table
from helpers.recipe import VALIDATION, load_or_train, new_model
from helpers.stories import load_stories
from helpers.support.hardware import pick_device, pick_precision
from helpers.training import TrainingConfig, encode_stories, optimizer_step, train

figures = FigureFolder(CORPUS)
stories = load_stories(CORPUS, validation=VALIDATION)
trained, tokenizer, _ = load_or_train(CORPUS)
device = pick_device()
ids = encode_stories(tokenizer, stories.train[:512], trained.config.context_length).long()  # (N, T)

# %% [markdown]
# ## Gradients add
#
# A large batch gives a steadier gradient, and needs more memory. But a gradient is a sum over tokens, and a sum can be made in
# parts. In PyTorch, `backward()` *adds* to `.grad`. So: backward for one small batch after another, then one step. This is
# **gradient accumulation**.
#
# To compare gradients we want exact arithmetic, or nearly so: this part runs in float64. The stories get unequal lengths, as
# real ones have.

# %%
exact = Decoder(trained.config).double()
exact.load_state_dict(trained.state_dict())
lengths = (9, 61, 30, 45)
texts = [
    " ".join(tokenizer.split(text)[:length])
    for text, length in zip(stories.train, lengths, strict=False)
]
ragged = encode_stories(tokenizer, texts, exact.config.context_length).long()  # (4, T)


def gradient(loss):
    """Of every parameter, as one long vector."""
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(exact.parameters()))]
    )  # (P,)


def difference(ours, reference):
    """The largest one, as a share of the largest gradient."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


logits = exact(ragged[:, :-1])  # (4, T-1, V)
whole = gradient(
    F.cross_entropy(logits.flatten(0, 1), ragged[:, 1:].flatten(), ignore_index=tokenizer.pad_id)
)  # (P,)
print("real tokens of the four stories:", (ragged[:, 1:] != tokenizer.pad_id).sum(dim=1).tolist())

# %% [markdown]
# **Predict.** Each story is a mini-batch of its own here. Which of these is the gradient of the whole batch: the mean of the
# four mean losses, or the sum of the four sums over the number of all tokens?


# %%
def parts():
    """Of each story the sum of its losses, and the number of its tokens."""
    return [loss_sum(exact, row, tokenizer.pad_id) for row in ragged.split(1)]


tokens = sum(count for _, count in parts())
sum_of_sums = gradient(sum(total / tokens for total, _ in parts()))  # (P,)
mean_of_means = gradient(sum(total / count for total, count in parts()) / len(ragged))  # (P,)
off_by = {
    "sum of sums": difference(sum_of_sums, whole),
    "mean of means": difference(mean_of_means, whole),
}
assert off_by["sum of sums"] < 1e-12, "gradients add"
assert off_by["mean of means"] > 0.1, "the mean of means should be another gradient"
print(f"sum of sums:   off by less than 1e-12: {off_by['sum of sums'] < 1e-12}")
print(f"mean of means: off by {off_by['mean of means']:.0%} of the largest gradient")

# %% [markdown]
# The mean of means looks harmless, and is wrong. In it each *story* weighs the same, so that a token of a short story weighs
# more than a token of a long one:

# %%
counts = [count.item() for _, count in parts()]
table(
    [
        [
            count,
            f"1/{tokens}",
            f"1/{len(counts) * count}",
            f"{tokens.item() / (len(counts) * count):.1f} ×",
        ]
        for count in counts
    ],
    ["tokens of the story", "weight of each in the batch", "in the mean of means", "ratio"],
)

# %% [markdown]
# Hugging Face's `transformers` had this fault until October 2024
# ([its mending](https://github.com/huggingface/transformers/pull/34191)), since the loss function returned a mean, and dividing by
# the number of mini-batches seemed right. It shows only where mini-batches differ in their number of tokens. Our loop counts the tokens of
# the whole step first, and divides every sum by that count:

# %%
show_source(optimizer_step)

# %% [markdown]
# Clipping and the optimizer wait until all parts are in; schedule and log count optimizer steps. The lines about processes
# have their turn at the end of this notebook.

# %%
few = replace(stories, train=stories.train[:96], validation=stories.validation[:50])
settings = TrainingConfig(epochs=1, precision="fp32", warmup_steps=1)
once, in_four = (
    train(
        new_model(stories, tokenizer),
        tokenizer,
        few,
        replace(settings, batch_size=size, accumulation_steps=steps),
    )
    for size, steps in ((32, 1), (8, 4))
)
assert once.column("step") == in_four.column("step") == [1, 2, 3]
assert all(
    math.isclose(a, b, rel_tol=1e-4)
    for a, b in zip(once.column("validation_loss"), in_four.column("validation_loss"), strict=True)
)
print("three steps of 32 stories, and three of 4 × 8: the same losses, within 0.01 %: True")

# %% [markdown]
# What does it save? The backward pass needs what the forward pass computed (more on that below), and that grows with the
# mini-batch. `measure_peak_memory` counts the bytes of the tensors that a call makes, at their peak. The parameters and the
# moments that the optimizer keeps of each, two with AdamW and one with Muon, come on top. They do not depend on the batch, and
# are left out here.

# %%
config = TrainingConfig(batch_size=16, precision="fp32")
assignments = Decoder(ModelConfig()).to(device).train()  # the assignment's 8,940,768 parameters
print(
    f"{assignments.num_parameters():,} parameters, {assignments.num_parameters() * 4 / 1e6:.0f} "
    "MB in float32"
)


def step_of(model, stories_at_once, accumulation_steps, precision="fp32"):
    """One optimizer step with a learning rate of 0, as a function to measure. Plain gradient
    descent, without moments.
    """
    batch = ids[: stories_at_once * accumulation_steps].to(model.output.weight.device)  # (B, T)
    settings = replace(config, batch_size=stories_at_once, accumulation_steps=accumulation_steps)
    nothing = torch.optim.SGD(model.parameters(), lr=0.0)
    return partial(optimizer_step, model, nothing, batch, 0.0, settings, precision)


step_peaks = {}
for name, (stories_at_once, steps) in {
    "16 alone": (16, 1),
    "8 times 16": (16, 8),
    "128 at once": (128, 1),
}.items():
    step_peaks[name] = measure_peak_memory(step_of(assignments, stories_at_once, steps))
    assignments.zero_grad(set_to_none=True)
    print(f"{name:12} {step_peaks[name] / 1e6:4.0f} MB")
assert step_peaks["16 alone"] < step_peaks["8 times 16"] < 0.3 * step_peaks["128 at once"]

# %% [markdown]
# Accumulating costs one thing more than a single small batch: the sum of the gradients, as large as the parameters, stays while
# the next mini-batch is read. It does not grow with the number of mini-batches.

# %% [markdown]
# ## Sixteen, and one, two, four or eight of them
#
# The course's assignment asks for this experiment: mini-batches of 16, accumulated over 1, 2, 4 and 8, so that a step sees 16 to 128 stories. One
# epoch each, from the same random start, with our recipe (04), its warm-up and schedule fitted to the number of steps. AdamW moves
# all of it here, without Muon: the rule below for its rate is known for Adam alone.
#
# **Predict.** All four see the same stories once. Which has learnt most at the end?

# %%
STORIES = 800 if CORPUS == "bundled" else 10_000  # an epoch
some = replace(stories, train=stories.train[:STORIES], validation=stories.validation[:100])
ACCUMULATION = (1, 2, 4, 8)
BASE_RATE = 7e-4  # for 16 stories; small, since the shortest run has few steps to warm up in


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


same = {a: run(a, BASE_RATE) for a in ACCUMULATION}
scaled = {a: same[a] if a == 1 else run(a, BASE_RATE * math.sqrt(a)) for a in ACCUMULATION}
final = {
    name: {a: h.rows[-1]["validation_loss"] for a, h in runs.items()}
    for name, runs in (("same", same), ("scaled", scaled))
}
print(
    f"{len(some.train):,} stories:",
    {f"16 × {a}": f"{h.rows[-1]['step']} steps" for a, h in same.items()},
)

# %%
figures.save_figure(
    plots.compare_curves(
        {
            f"16 × {a} = {16 * a}": (
                [n / 1000 for n in h.column("tokens")],
                h.column("validation_loss"),
            )
            for a, h in same.items()
        },
        x_label="tokens read (thousands)",
        y_label="validation loss (nats per token)",
        title="Token for token, more steps learn more",
    ),
    "06_accumulation_tokens",
    alt=(
        "Four loss curves against tokens: the more mini-batches are accumulated, the higher the "
        "curve lies."
    ),
)

# %%
figures.save_figure(
    plots.compare_curves(
        {
            f"16 × {a} = {16 * a}": (h.column("step"), h.column("validation_loss"))
            for a, h in same.items()
        },
        x_label="optimizer step",
        y_label="validation loss (nats per token)",
        title="Step for step, the larger batch starts ahead, then its schedule ends",
    ),
    "06_accumulation_steps",
    alt=(
        "The same four curves against optimizer steps: the larger the batch, the lower it "
        "starts, and the sooner and higher it ends."
    ),
)

# %% [markdown]
# The same four runs, seen twice. Against tokens, the smallest batch wins: it takes eight times as many steps in the same data.
# Against steps, the larger batch starts ahead. Its warm-up, a tenth of its steps, alone could explain this: the first step of
# 16 × 8 has the full rate, that of 16 × 1 a tenth of it. Then the rate of the larger batch falls to zero, its curve flattens, and
# the next one passes it. So the figure cannot tell how much a less noisy gradient helps; nor does it show what happens after
# many epochs, where the noise of small batches begins to cost.
#
# Can a larger batch use a larger learning rate? For Adam-like optimizers theory says: grow it with the square root of the batch
# ([Malladi et al. 2022](https://arxiv.org/abs/2205.10287)).

# %%
assert final["same"][1] < final["same"][8], "more steps in the same data learn more"
assert final["scaled"][8] < final["same"][8], "a larger batch profits from a larger rate"
print(
    "eight times the batch at the same rate learns less from the same stories; a larger rate "
    "makes up for a part: True"
)
figures.save_figure(
    plots.compare_curves(
        {
            f"16 × {a} = {16 * a}": (
                [n / 1000 for n in h.column("tokens")],
                h.column("validation_loss"),
            )
            for a, h in scaled.items()
        },
        x_label="tokens read (thousands)",
        y_label="validation loss (nats per token)",
        title="With learning rates grown by the square root, the curves move closer",
    ),
    "06_accumulation_scaled",
    alt=(
        "Four loss curves against tokens with scaled learning rates: closer together than with "
        "one rate for all."
    ),
)

# %% [markdown]
# The larger rate helps the larger batches here. We did not run the small batch at those rates, so this does not show that only a
# large batch can bear them, nor that the square root is the right law.
#
# And the time? Each way reads 128 stories, in turns; the median of three, scaled up to an epoch of 10,000 stories
# (the model of this corpus).

# %%
EPOCH = 10_000
runner = new_model(stories, tokenizer).to(device).train()
precision = pick_precision(device)


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


def several(step, times):
    for _ in range(times):
        step()


per_128 = seconds(
    {a: partial(several, step_of(runner, 16, a, precision), 8 // a) for a in ACCUMULATION}
)
per_epoch = {a: value * EPOCH / 128 for a, value in per_128.items()}

# %% tags=["nbval-ignore-output"]
table(
    [
        [
            16 * a,
            a,
            same[a].rows[-1]["step"],
            f"{final['same'][a]:.2f}",
            f"{final['scaled'][a]:.2f}",
            f"{per_epoch[a]:.0f}",
        ]
        for a in ACCUMULATION
    ],
    [
        "effective batch",
        "accumulation",
        f"steps in {len(some.train):,} stories",
        f"loss, rate {BASE_RATE}",
        "loss, rate · √accumulation",
        f"seconds per epoch of {EPOCH:,} stories ({device}, {precision})",
    ],
)

# %% [markdown]
# The same mini-batches are read each way, so the times should differ by no more than this machine's noise. We timed plain
# gradient descent, whose own step costs almost nothing. AdamW's costs more, and is taken an eighth as often with an accumulation of
# 8. What accumulation buys is batch size, for the memory of one set of gradients. Where the batch need not be
# large, it buys nothing.
#
# ## What the backward pass needs
#
# Parameters, gradients and two moments make four times the size of the parameters, whatever the batch. The rest grows with the
# batch. What is it? Every operation keeps what its derivative will need: a product keeps its factors, a softmax its result.
# `saved_tensors_hooks(pack, unpack)` lets us look: PyTorch calls `pack` on each tensor that it wants to keep, stores what `pack`
# returns, and calls `unpack` on that when the backward pass asks. Here is one block, for a batch of 16, without dropout.

# %%
block = assignments.blocks[0]
mask = assignments.mask[:63, :63]
x = torch.randn(16, 63, 296, device=device, requires_grad=True)  # (B, T, D)
kept = {}


def look(tensor):
    own = {p.data_ptr() for p in block.parameters()} | {mask.data_ptr()}
    if tensor.untyped_storage().data_ptr() not in own:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
    return tensor


with saved_tensors_hooks(look, lambda tensor: tensor):
    y, _ = block(x, mask)
sizes = {tuple(t.shape): [] for t in kept.values()}
for t in kept.values():
    sizes[tuple(t.shape)].append(t.untyped_storage().nbytes())
inside, incoming = sum(map(sum, sizes.values())), x.nbytes
kept.clear()
table(
    [
        [str(shape), len(each), f"{sum(each) / 1e6:.1f}"]
        for shape, each in sorted(sizes.items(), key=lambda pair: -sum(pair[1]))
    ],
    ["kept, by shape", "how many", "MB in all"],
)

# %% [markdown]
# 1,008 rows are 16 stories of 63 words, flattened for a product; 1,024 is the width of the feed-forward part; 128 are the 8 heads of 16
# stories, and 37 is a head's width. The attention weights have the shape 63 × 63.

# %%
print(
    f"the block's input has {incoming / 1e6:.1f} MB; the block keeps {inside / 1e6:.1f} MB, "
    f"{inside / incoming:.0f} times as much"
)
assert inside > 10 * incoming

# %% [markdown]
# So: keep the *input* of each block and forget its inside. When the backward pass comes to the block, run it again from the
# input, and go on. One more forward pass in time; one inside in memory instead of all. This is **gradient checkpointing**
# ([Chen et al. 2016](https://arxiv.org/abs/1604.06174)). By hand, its idea is one function with a backward pass of its own:


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
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():  # the second time with everything kept
            y = ctx.function(x)
        y.backward(grad)  # adds to the parameters' .grad on its way to x
        return None, x.grad


def through(model, x, way):
    """All blocks, then a loss; way(function, x) calls a block."""
    for block in model.blocks:
        x = way(lambda x, block=block: block(x, mask)[0], x)  # (B, T, D)
    return model.norm(x).square().mean()


def all_gradients(model, way, seed=0):
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)  # for dropout
    through(model, x, way).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def equal(these, those):
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


def plainly(function, x):
    return function(x)


assert equal(all_gradients(assignments, Recompute.apply), all_gradients(assignments, plainly))
print("the same gradients, bit for bit: True")

# %% [markdown]
# (The input must require a gradient. Else `backward` is never called, and the block gets no gradient, without an error.)
#
# **Predict.** Now switch dropout on. What goes wrong?

# %%
assignments.set_dropout(0.1)
assert not equal(all_gradients(assignments, Recompute.apply), all_gradients(assignments, plainly))
assert equal(all_gradients(assignments, checkpoint), all_gradients(assignments, plainly))
print(
    "with dropout, the sketch's gradients are those of plain training: False; those of "
    "helpers.memory.checkpoint: True"
)

# %% [markdown]
# The second pass drew other random numbers, so it dropped other units: a gradient of something that never was. No error says
# so. The helper keeps the random state (a few kilobytes) with the input, and the second pass starts from it. Here it is:

# %%
show_source(checkpoint)

# %% [markdown]
# It differs from the sketch in one more way. The sketch throws the graph away and builds a second one; parameters get their
# gradients in a backward pass within the backward pass, which surprises everything that watches gradients. The helper keeps
# the first graph, with *placeholders* where tensors were, by the hooks that you saw above: `forget` returns an empty placeholder
# instead of the tensor, and `recall` hands out what has been put into it meanwhile.

# %%
show_source(memory.Segment)

# %% [markdown]
# Who fills them? The helper's `Recompute` stands at the end of the segment. The backward pass comes by there first, before it asks for
# anything inside:

# %%
show_source(memory.Recompute)

# %% [markdown]
# The second run stops as soon as the last placeholder is filled. Without dropout that saves the feed-forward's second product,
# whose result nobody needs. With dropout the mask after it is needed, so the product is computed too.
#
# ## One gradient, three profiles
#
# Twelve blocks, a batch of 16. Memory after every operation of a forward and a backward pass: keeping all; in three segments of
# four blocks; and with a segment for each block. Dropout is on, so a block keeps more than above: its masks, and the attention
# weights a second time, after dropout.
#
# **Predict.** Draw the three lines before you look.

# %%
deep = Decoder(ModelConfig(num_layers=12, dropout=0.1)).to(device).train()
batch = ids[:16].to(device)  # (B, T)


def training_pass(model, segments, batch=batch):
    model.set_recomputation(*segments)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    loss_sum(model, batch, tokenizer.pad_id)[0].backward()


ways = {"all kept": (), "3 segments": (3,), "12 segments": (12,)}
timelines, gradients = {}, {}
for name, segments in ways.items():
    timelines[name] = memory_timeline(partial(training_pass, deep, segments))
    gradients[name] = [p.grad for p in deep.parameters()]
peaks = {name: max(line) for name, line in timelines.items()}
assert equal(gradients["3 segments"], gradients["all kept"])
assert equal(gradients["12 segments"], gradients["all kept"])
assert peaks["12 segments"] < peaks["3 segments"] < peaks["all kept"]
assert peaks["12 segments"] < 0.35 * peaks["all kept"]
print("one gradient, bit for bit: True")
for name, value in peaks.items():
    print(f"{name:18} peak {value / 1e6:4.0f} MB, {value / peaks['all kept']:.0%}")


# %%
gradients.clear()
deep.zero_grad(set_to_none=True)


def outline(line, points=300):
    """The peak in each of `points` equal parts: (number of operations, MB)."""
    ends = [len(line) * i // points for i in range(points + 1)]
    return ends[:-1], [max(line[a:b]) / 1e6 for a, b in pairwise(ends)]


figures.save_figure(
    plots.compare_curves(
        {name: outline(line) for name, line in timelines.items()},
        x_label="operations done",
        y_label="memory of the pass (MB)",
        title="One mountain, three hills, or twelve small teeth",
    ),
    "06_profiles",
    alt=(
        "Memory during a training pass of 12 blocks: keeping all climbs to a high peak; "
        "checkpointed it stays low, with a tooth for each segment."
    ),
)

# %% [markdown]
# Keeping all climbs through the forward pass and comes down in the backward pass. With segments the forward pass climbs only by
# their inputs, up to the output layer, whose loss makes its own gradients at once: the step. Then each segment is filled and
# emptied, a tooth for each, and the line is longer by the operations that are done twice. What rises towards the right is the gradients
# of the parameters, which nobody can forget. The axis counts operations, not seconds; and the meter sees tensors only, not what a
# matrix product uses for itself.
#
# ## The assignment's model
#
# What part 2.4 of the assignment asks for: three blocks, batch 32, dropout 0.1, with and without. The judge beside them is PyTorch's own checkpointing.

# %%
judged = Decoder(ModelConfig(dropout=0.1)).to(device).train()
batch_32 = ids[:32].to(device)  # (B, T)


def pytorchs_loss(model, batch):
    inputs, targets = batch[:, :-1], batch[:, 1:]  # (B, T-1) each
    T = inputs.shape[1]
    x = (
        model.projection(model.embedding(inputs)) * model.config.d_model**0.5 + model.positions[:T]
    )  # (B, T, D)
    x = model.dropout(x)  # (B, T, D)
    for block in model.blocks:
        x, _ = pytorchs_checkpoint(block, x, model.mask[:T, :T], use_reentrant=False)  # (B, T, D)
    return output_loss(
        model.norm(x), model.output.weight, model.output.bias, targets, tokenizer.pad_id
    )  # ()


def by_pytorch(model, batch):
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    pytorchs_loss(model, batch).backward()


contest = {
    "all kept": partial(training_pass, judged, (), batch_32),
    "ours, a segment a block": partial(training_pass, judged, (3,), batch_32),
    "PyTorch's, a segment a block": partial(by_pytorch, judged, batch_32),
}
contest_gradients, contest_peaks = {}, {}
for name, function in contest.items():
    judged.zero_grad(set_to_none=True)
    contest_peaks[name] = measure_peak_memory(function)
    contest_gradients[name] = [p.grad for p in judged.parameters()]
assert equal(contest_gradients["ours, a segment a block"], contest_gradients["all kept"])
assert equal(contest_gradients["PyTorch's, a segment a block"], contest_gradients["all kept"])
assert (
    contest_peaks["ours, a segment a block"] <= 1.02 * contest_peaks["PyTorch's, a segment a block"]
)
assert contest_peaks["ours, a segment a block"] < 0.6 * contest_peaks["all kept"]
contest_gradients.clear()
contest_seconds = seconds(contest)
print("one gradient, bit for bit, and no more memory than PyTorch's own: True")

# %% tags=["nbval-ignore-output"]
try:  # `python report/benchmark.py --gpu --record` writes it
    gpu = load_numbers("benchmark", "06_gpu")
except FileNotFoundError:
    gpu = {}
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
table(
    contest_table + gpu.get("checkpointing", []),
    ["way", "peak, MB", "seconds per epoch", "of the time", "device"],
)

# %%
print("measured by the benchmark on a GPU:", gpu.get("name", "not yet"))

# %% [markdown]
# Forward is about one part of the work, backward two. So a second forward pass should cost about a third more; the column *of the
# time* shows what it cost here. What the memory buys is a choice: the same model in less of it,
# or a larger batch or a deeper model in the same.
#
# ## How many segments?
#
# With $n$ blocks in $s$ segments we keep $s$ inputs, and the inside of one segment, $n/s$ blocks, at a time:
#
# $$\text{peak}(s) \approx s \cdot a + \frac{n}{s} \cdot b, \qquad a: \text{one input}, \quad b: \text{the inside of one block.}$$
#
# Where the derivative by $s$, $a - n b / s^2$, is zero, the peak is lowest: $s = \sqrt{n \, b / a}$. Textbooks take $a = b$, and
# find $s = \sqrt{n}$. If $n$ is less than $b / a$, the best $s$ would be more than $n$: then a segment for each block is best, as
# for the three and twelve blocks above.
#
# **Predict.** Our $b$ is many times $a$. Where does the best $s$ of 64 blocks lie?

# %%
narrow = ModelConfig(
    vocab_size=len(tokenizer), embedding_dim=16, d_model=32, num_layers=64, num_heads=4, d_ff=112
)
tower = Decoder(narrow).to(device).train()
tower_peaks = {}
for segments in [(2,), (4,), (8,), (16,), (32,), (64,), (8, 8)]:
    tower.set_recomputation(*segments)
    tower.zero_grad(set_to_none=True)
    tower_peaks[segments] = measure_peak_memory(
        lambda: tower.hidden(batch[:, :-1])[0].square().mean().backward()  # the blocks alone
    )
a_bytes = 16 * 63 * 32 * 4  # B · T · D · 4
# From the two peaks with the largest segments: peak(2) − peak(4) = (64/2 − 64/4) · b − 2 · a.
b_bytes = (tower_peaks[2,] - tower_peaks[4,] + 2 * a_bytes) / (64 / 2 - 64 / 4)
print(
    f"b is {b_bytes / a_bytes:.0f} times a, so the best number of segments is about "
    f"{math.sqrt(64 * b_bytes / a_bytes):.0f}; 32 and 64 lie on either side of it"
)
assert tower_peaks[64,] < 0.5 * tower_peaks[8,], "the square root should lose"
assert tower_peaks[8, 8] < tower_peaks[64,], "nesting should win"

# %%
counts = [2, 4, 8, 16, 32, 64]
figures.save_figure(
    plots.compare_curves(
        {
            "measured": (counts, [tower_peaks[s,] / 1e6 for s in counts]),
            "s · a + (64/s) · b": (
                counts,
                [(s * a_bytes + 64 / s * b_bytes) / 1e6 for s in counts],
            ),
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
)

# %% [markdown]
# The two points at the left gave $b$; the other four test the formula. The square root loses by far, because it builds eight insides at once where one would do. A segment for each block is nearly
# the best that one level can do; then the 64 inputs are what is left. Nesting attacks those: keep 8 inputs, and inside a
# segment that is being computed again, 8 more. It pays with a third forward pass. (The measured line contains the gradients of
# the parameters too, so it lies above the formula where peaks are low.)
#
# ## The logits
#
# One more tensor is larger than all the others: the logits, $B \cdot T \times V$, and their softmax, and its gradient. For one
# batch of 32 × 63 tokens and 10,000 words each of them takes 81 MB. But the loss of a row needs the logits of that row only. So
# take a few hundred rows at a time. And since the loss is one number, its gradient is known at once. A row's loss is
# $\log \sum_j e^{z_j} - z_y$, and its derivative by $z_j$ is the softmax of $z_j$, less 1 where $j = y$. So the forward pass computes it, and the
# backward pass has nothing to do but to scale it. Our loop has done this all along: none of the peaks above holds all logits.

# %%
show_source(OutputLoss)

# %%
torch.manual_seed(0)
hidden, weight, bias = (
    t.to(device)
    for t in (torch.randn(32 * 63, 296), torch.randn(10_000, 296) / 17, torch.zeros(10_000))
)
targets = torch.randint(1, 10_000, (32 * 63,)).to(device)  # (N,)
ROWS = 512  # a chunk's


def plain_loss(hidden, weight, bias):
    return F.cross_entropy(
        F.linear(hidden, weight, bias), targets, ignore_index=0, reduction="sum"
    )  # ()


def chunked_loss(hidden, weight, bias):
    return output_loss(hidden, weight, bias, targets, ignore_index=0, rows_per_chunk=ROWS)  # ()


def loss_gradients(loss, dtype):
    leaves = [t.to(dtype).clone().requires_grad_() for t in (hidden, weight, bias)]
    return torch.autograd.grad(loss(*leaves), leaves)


exactly = [loss_gradients(loss, torch.float64) for loss in (plain_loss, chunked_loss)]
assert all(difference(ours, theirs) < 1e-12 for theirs, ours in zip(*exactly, strict=True))
exactly.clear()
loss_peaks = {
    name: measure_peak_memory(partial(loss_gradients, loss, torch.float32))
    - hidden.nbytes
    - weight.nbytes
    - bias.nbytes
    for name, loss in (("all logits at once", plain_loss), (f"{ROWS} rows at a time", chunked_loss))
}
ratio = loss_peaks[f"{ROWS} rows at a time"] / loss_peaks["all logits at once"]
assert ratio <= 0.25
print("the same gradients in float64, within 1e-12: True")
for name, value in loss_peaks.items():
    print(f"{name}: {value / 1e6:.0f} MB")

# %% [markdown]
# The first number is about three tensors of 81 MB. Of the second, two tensors of 512 rows are 41 MB, and the gradients themselves most
# of the rest.
#
# ## More than one machine
#
# Gradients add, wherever they were computed. So a batch can be shared among processes, each on a GPU or a machine of its own:
# every process computes the gradient of its shard, all exchange them, and all take the same step. PyTorch's
# `DistributedDataParallel` does the exchange, and takes the *mean* over the processes. Our loop multiplies by their number
# first, and divides by the tokens of *all* shards. In miniature, with two "processes":

# %%
shards = [ragged[0::2], ragged[1::2]]  # (2, T) each, no story in both
of_shard = [
    gradient(loss_sum(exact, shard, tokenizer.pad_id)[0] / tokens * len(shards)) for shard in shards
]  # (P,) each
assert difference(sum(of_shard) / len(shards), whole) < 1e-12
print("the mean over two processes is the gradient of the whole batch, within 1e-12: True")

# %% [markdown]
# With real processes, from the repository's folder:
#
# ```bash
# torchrun --nproc-per-node 2 -m helpers.training --corpus tinystories --batch-size 16 --accumulation-steps 2
# torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m helpers.training --corpus tinystories
# ```
#
# Every setting of `TrainingConfig` is an option. With accumulation the exchange happens once a step. The first process alone
# logs and saves. `tests/test_training.py` runs two processes beside one with twice the accumulation, in float64: after 50
# steps their curves agree within 1e-9.
#
# What would all of TinyStories take, 2.1 million stories, one epoch? From the speed measured above, at best as many times
# faster as there are machines. The price is an assumption: put in yours.

# %% tags=["nbval-ignore-output"]
ALL_STORIES, PRICE = 2_100_000, 0.10  # dollars per hour of a machine like this one
hours = contest_seconds["all kept"] / 32 * ALL_STORIES / 3600
table(
    [[machines, f"{hours / machines:.1f}", f"{hours * PRICE:.2f}"] for machines in (1, 2, 8)],
    [f"machines like this one ({device}, fp32)", "hours an epoch, at best", "dollars"],
)

# %% cellView="form" tags=["numbers"]
# @title The numbers that notebook 07 reports
figures.save_numbers(
    "06",
    {
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
        "twelve_blocks": peaks,
        "checkpointing": contest_table,
        "segments_of_64": {
            " x ".join(map(str, segments)): value for segments, value in tower_peaks.items()
        },
        "loss_step": loss_peaks,
        "hours_for_all_stories": hours,
    },
)

# %% [markdown]
# ## How near the limit?
#
# What *must* be computed are the matrix products; a step can be as fast as they are, no faster. `make benchmark` times them alone, and
# then whole steps, in turns, on one machine: ours; that of an earlier deliverable of the same assignment, written anew from its
# description; and a GPT-2 of our sizes in Hugging Face's `transformers`, without dropout, as ours. This is what it recorded on
# the machine that the caption names. Another machine gives other times. Ratios carry over better, but they too depend on the
# processor: the README has them for three instruction sets.
#
# **Predict.** Which part of a training step are its matrix products: a third, a half, nine tenths?

# %%
speed = load_numbers("benchmark", "speed")
steps, limit = speed["training"]["rows"], speed["training"]["limit_ms"]
measured_on = " ".join([f"Measured on {speed['machine']['caption']}.", *speed["machine"]["busy"]])
table(
    [
        [
            name,
            f"{row['ms']:.0f}",
            f"{row['tokens_per_second']['median']:,.0f}",
            f"{limit[name.rpartition(', ')[2]] / row['ms']:.0%}",
        ]
        for name, row in steps.items()
    ],
    ["training step of 32 × 63 tokens", "ms", "tokens/s", "of it matrix products"],
    caption=f"Training steps, timed in turns. {measured_on}",
)

# %%
shown = "{median:.2f} ({q1:.2f} to {q3:.2f}, lowest {low:.2f})"
ratios, alike = speed["training"]["ratios"], speed["training"]["ratios_with_our_memory"]
table(
    [[name, shown.format(**ratios[name]), shown.format(**alike[name])] for name in ratios],
    [
        "ours",
        "times as fast: median of the turns (quartiles, lowest)",
        "with our memory setting for all",
    ],
    caption=f"Our training step beside the others'. {measured_on}",
)


# %%
def verdict(row):
    """Who is ahead, if the same one is in three quarters of the turns."""
    ahead = "ours is faster" if row["q1"] > 1 else "the other is faster" if row["q3"] < 1 else ""
    return f"{ahead} in three turns of four" if ahead else "no difference beyond the noise"


for name in ratios:
    print(f"{name}: {verdict(ratios[name])}; one memory setting for all: {verdict(alike[name])}")

# %% [markdown]
# (The earlier deliverable's step is in float32, the only precision that it has; ours is set beside it in both.) The share of the
# products bounds what anybody can win: if they are most of a step, nobody can be much faster than another.
#
# The last column of the table gives all of them one of our settings. By default the C library gives large blocks of memory back to the system,
# which must clear their pages for the next step; `keep_freed_memory` asks it not to. The difference between the two columns is what
# this clearing costs the others. It looks like arithmetic, and is memory.
#
# And what is the rest of a step, beside its products? PyTorch's profiler adds up the time of each operation of ours.

# %%
profile = speed["training"]["profile"]
by_share = sorted(profile["percent"].items(), key=lambda kind: -kind[1])
table(
    [[kind, f"{share:.0f}"] for kind, share in by_share],
    [f"our training step in {profile['precision']}", "% of the operations' time"],
    caption=f"Our training step by kind of operation. {measured_on}",
)

# %% [markdown]
# The shares are of the profiler's own sum, and it adds a little to each operation, so many small ones look somewhat larger than they are.
# In bfloat16 the weights stay in float32 and are converted in every step: those casts are the price of bfloat16 products.
#
# Now decoding. A step reads one token per text, so the weights are read for few rows. The judges are Hugging Face's `generate`
# and a **plain loop**: some twenty lines over our own model, with our cache and an argmax, and nothing else. It packs no weights, keeps
# no token out, adds up no log-probabilities, and lets no row end. It runs the same model, so the difference to it is what
# `generate` itself costs, less what it saves.

# %%
times = {
    f"{row['work']}, {precision}": {
        "ours": row["ratio"]["median"],
        **(
            {"a plain loop": row["plain loop"]["median"] / row["Hugging Face"]["median"]}
            if "plain loop" in row
            else {}
        ),
        "the products alone": row["limit"] / row["Hugging Face"]["median"],
    }
    for precision, rows in speed["decoding"].items()
    for row in rows
}
FigureFolder("benchmark").save_figure(
    plots.bars(
        times,
        x_label="tokens per second, as a multiple of Hugging Face's generate",
        title="Decoding speed beside two other loops, and the limit of the products",
        limit=("Hugging Face", 1.0),
    ),
    "06_decoding",
    alt=(
        "Bars of decoding speed relative to Hugging Face's generate: ours, that of a plain loop "
        "if the search is greedy, and that of the matrix products alone."
    ),
)

# %%
for precision, rows in speed["decoding"].items():
    for row in rows:
        beside = {"Hugging Face": row["ratio"]}
        if "ratio_plain" in row:
            beside["the plain loop"] = row["ratio_plain"]
        for whom, ratio in beside.items():
            print(
                f"{row['work']}, {precision}: {ratio['median']:.2f} times {whom}; {verdict(ratio)}"
            )

# %% [markdown]
# What `generate` does for its speed: if that is quicker on this processor for so many rows, it packs the weights once, in the order in
# which the processor multiplies them, instead of once a step (`packed_weights`). In bfloat16 PyTorch has packed products of its own, and
# less is left to gain. Beams that go on in their own row of the cache are not copied. What it pays for, beside the plain loop, are the
# log-probability of each token, the tokens that never come out, and rows that end when they are done. What lies between us and
# the limit are the small operations of a step: norms, softmax, copies into the cache, and Python between them.
#
# Does bfloat16 cost quality? The same model, all weights in bfloat16:

# %%
exact, rounded = speed["perplexity"]["fp32"], speed["perplexity"]["bf16"]
assert abs(rounded / exact - 1) < 0.005
print(f"perplexity in float32 {exact:.4f}, in bfloat16 {rounded:.4f}")

# %% [markdown]
# **As work grows.** Each cost might be a straight line: twice the stories, twice the time, plus something fixed. One should bend.
#
# **Predict.** Which of these bends: batch, context, blocks, vocabulary, tokens in the cache?

# %%
grown = speed["scaling"]
FigureFolder("benchmark").save_figure(
    plots.straight_lines(
        {name: (row["x"], row["ms"]) for name, row in grown.items()},
        y_label="milliseconds",
        title="What a step costs as one thing grows",
    ),
    "06_scaling",
    alt=(
        "Five panels of milliseconds against batch, context, blocks, vocabulary and tokens in "
        "the cache, each beside a straight line."
    ),
)

# %%
bend = {}
for name, row in grown.items():
    points = list(zip(row["x"], row["ms"], strict=True))
    slopes = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(points)]
    bend[name] = slopes[-1] / slopes[0]
table(
    [[name, f"{value:.2f}"] for name, value in bend.items()],
    ["cost against", "last slope / first slope"],
    caption=f"How far each cost is from a straight line. {measured_on}",
)

# %% [markdown]
# *Tokens in the cache* is one decoding step of 20 texts; the others are training steps. A ratio of 1 is a straight line, up to the
# noise of the machine, which can be larger than a slight bend. Context must bend upwards in the end, as every token looks at
# every other: the scores have $T^2$ entries. But at our 64 tokens they are a small part of the work, and even at 256 not a large one.
# A batch adds nothing of this kind; if its line bends, its tensors have outgrown the processor's own fast memory. With a cache
# the quadratic cost is spread: each new token pays once for those before it.
#
# ## Recap
#
# - Gradients add. Divide by the tokens of the whole step, never by the number of mini-batches.
# - Accumulation buys a large batch for the memory of a small one and of one set of gradients. It reads what small batches read.
#   Token for token it learns less.
# - Checkpointing keeps a segment's input and computes its inside twice: same gradient to the bit, if the random state is replayed.
# - The best number of segments depends on how large a block's inside is; here one for each block or two, or nesting.
# - The logits need never exist all at once.
# - A batch can be shared among machines by the same arithmetic.
# - A training step takes at least the time of its matrix products. What it takes beyond them is small operations and memory.
#
# ## Try it
#
# 1. Put `set_dropout(0.0)` before the sketch with dropout. Why do its gradients agree again?
# 2. Nest three levels, `set_recomputation(4, 4, 4)`, on the tower. What does the third level save, and what does it cost?
# 3. Set `rows_per_chunk` to 16 and to 2,016. Which is slower, and why?
#
# ## References
#
# - [Chen et al. 2016](https://arxiv.org/abs/1604.06174), *Training Deep Nets with Sublinear Memory Cost*
# - [Malladi et al. 2022](https://arxiv.org/abs/2205.10287), *On the SDEs and Scaling Rules for Adaptive Gradient Algorithms*
