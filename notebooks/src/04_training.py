# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Training
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/04_training.ipynb)
#
# **Promise.** You will write the training loop, train the decoder with it, and watch its loss pass three landmarks and come close to a
# fourth, the lowest loss that any model can have. You will see the model repeat a song that it has read only once, find
# the attention heads that do this, and switch them off.
#
# **You will be able to**
#
# - write a training loop for a language model, in fifteen lines, and say what each line is for;
# - say what a loss in nats means, by comparing it with landmarks that need no network;
# - tell from samples what a model has learned so far, and what it has not;
# - compare two recipes in such a way that the answer is not due to chance;
# - find what an attention head looks at, and measure whether it matters.
#
# **Prerequisites.** [03 · The decoder block](03_decoder_block.ipynb).
#
# **Running time.** Five to seven minutes on two cores, most of it for one training run. Add half a minute for the word
# vectors if they are not cached yet.

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
from dataclasses import replace
from datetime import date
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# %%
from helpers import attention_plots, plots
from helpers.checkpoints import load_checkpoint
from helpers.decoding import generate
from helpers.evaluation import bits_per_character, landmarks, perplexity, quotable
from helpers.explorers import AttentionExplorer
from helpers.grammar import bundled_grammar, entropy_floor
from helpers.heads import head_scores, pattern_targets, words_after
from helpers.loss import loss_sum
from helpers.model import ModelConfig
from helpers.muon import orthogonalize
from helpers.notebook import ROOT, FigureFolder, claim, load_numbers, show_source, table
from helpers.recipe import VALIDATION, made_from, new_model, save_trained, trained_path
from helpers.stories import corpus_name, load_stories
from helpers.tokenizer import WordTokenizer
from helpers.training import (
    TrainingConfig,
    encode_stories,
    epoch_order,
    learning_rate_at,
    make_optimizer,
    train,
)
from helpers.vectors import train_vectors

# %%
figures = FigureFolder(CORPUS)
stories = load_stories(CORPUS, validation=VALIDATION)
tokenizer = WordTokenizer.train(stories.train, vocab_size=10_000)
V = len(tokenizer)
print(f"{len(stories.train):,} training and {len(stories.validation):,} validation stories")

# %% [markdown]
# ## The loss of a batch
#
# A story of 64 tokens gives 63 exercises at once, as in notebook 01: the input is the story without its last token, and
# the target is the story without its first.
# The model always reads the true words, never its own guesses (**teacher forcing**), and the causal mask lets one
# pass answer all 63. Stories in a batch differ in length, so short ones are padded with `<pad>`. Padding is not an
# exercise: the loss is the sum over the real targets, divided by *their* number.

# %%
train_ids = encode_stories(tokenizer, stories.train, ModelConfig.context_length)  # (N, T)
validation_ids = encode_stories(tokenizer, stories.validation, ModelConfig.context_length)  # (M, T)
batch = train_ids[:32].long()  # (B, T)
model = new_model(stories, tokenizer)
with torch.no_grad():
    logits = model(batch[:, :-1]).flatten(0, 1)  # (B · (T-1), V)
    targets = batch[:, 1:].flatten()  # (B · (T-1),)
    nats = F.cross_entropy(logits, targets, reduction="none")  # (B · (T-1),)
    by_hand = nats[targets != tokenizer.pad_id].mean()  # ()
    total, count = loss_sum(model, batch)  # (), ()

# %%
claim(
    f"{count} real targets of {len(targets)}: ≈{by_hand:.4f} nats by hand and by `loss_sum`",
    torch.isclose(by_hand, total / count, rtol=1e-5),
)
print(f"the mean if padding counted, too: {nats.mean():.2f}")

# %% [markdown]
# `loss_sum` returns the sum of the losses and the number of targets. It never holds the logits of all tokens at once; notebook 06 shows
# how.
#
# ## What is a good loss?
#
# A loss of 3 nats per token says little by itself. Landmarks give it a scale. Each is the loss of a predictor that
# needs no network:
#
# - **uniform** treats every word as equally likely, which costs $\ln V$;
# - **unigram** predicts each word by how often it occurs;
# - **bigram** predicts each word by how often it follows *the word before*;
# - **entropy floor**: the mean of $-\ln p$, where $p$ is the true probability of each word, which the grammar knows.
#   On average no model can predict better: any other distribution loses more, and notebook 05 measures how much.
#   (The floor in notebook 03 was that of one batch, learned by heart. This is the floor of stories that the model has
#   not seen. Real text has a floor, too, but nobody knows it.)

# %%
marks = landmarks(train_ids, validation_ids, V)
if stories.validation_nats is not None:
    marks["entropy floor"] = entropy_floor(stories, ModelConfig.context_length)

# %% cellView="form" tags=["hide-input"]
table(
    [[name, f"{loss:.2f}", f"{math.exp(loss):,.1f}"] for name, loss in marks.items()],
    ["landmark", "nats per token", "perplexity"],
    caption=(
        "The landmarks for these stories. The perplexity is the number of equally likely words "
        "that would give the same loss."
    ),
)

# %% [markdown]
# The difference between unigram and bigram is what one word of context is worth. To get from the bigram to the floor, a
# model has to look further back: at a name from two sentences ago, or at the colour of a lost ball. That is the part
# that attention can add.
#
# ## The training loop
#
# A training step has five parts: take a batch, compute its loss, compute the gradient of the loss with respect to every parameter,
# shorten the gradient if it is too long, and let the **optimizer** change the parameters. The **learning rate** says how large that change
# may be. An **epoch** is one pass over all stories, in random order.


# %%
def training_loop(model, ids, config, total_steps, stop_after):
    """The first steps of a run of `total_steps`; returns the mean loss of each batch."""
    optimizer, losses = make_optimizer(model, config), []
    for step in range(stop_after):
        steps_per_epoch = math.ceil(len(ids) / config.batch_size)
        epoch, place = divmod(step, steps_per_epoch)
        order = epoch_order(len(ids), config.seed, epoch)  # (N,), random
        batch = ids[order[place * config.batch_size :][: config.batch_size]].long()  # (B, T)
        total, count = loss_sum(model, batch)  # (), ()
        optimizer.zero_grad()
        (total / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, total_steps, config) * group["share"]
        optimizer.step()
        losses.append(total.item() / count.item())
    return losses


# %% [markdown]
# That is all. (A group's *share* lets some parameters move faster than others; the recipe below uses it.) The course's `train` also
# measures the validation loss, saves the run, resumes it after a crash, and works on several GPUs. Apart from that, do
# the two agree? We compare thirty steps in 32-bit arithmetic:

# %%
thirty = TrainingConfig(
    max_steps=30, warmup_steps=10, validate_every=1, precision="fp32", device="cpu"
)
few = replace(stories, validation=stories.validation[:4])
model = new_model(stories, tokenizer)
ours = training_loop(model, train_ids, thirty, total_steps=30, stop_after=30)
model = new_model(stories, tokenizer)
theirs = train(model, tokenizer, few, thirty).column("train_loss")

# %%
claim(
    f"from ≈{ours[0]:.2f} to ≈{ours[-1]:.2f} nats; all {len(ours)} losses are those of `train`, to "
    "the last digit",
    ours == list(theirs),
)

# %% [markdown]
# ## The recipe
#
# Our recipe makes four choices. We compare it with *the baseline recipe*, which is the plain way to train: Adam at a
# constant rate of 0.0003, random starting vectors, and dropout 0.1.
#
# **Start.** The embedding starts from fastText vectors, trained on the training stories alone, and is trained further.
# The output layer starts from them, too: the row that scores a word starts as the word's vector, sent through the
# projection, minus the mean over all words. So words with similar uses start with similar scores.
#
# **Schedule.** The learning rate climbs during the first steps, while the optimizer's averages are still poor
# (*warm-up*). Then it stays constant, and over the last two fifths of the run it falls linearly to zero, so that the
# last steps make only small corrections
# ([Hägele et al. 2024](https://arxiv.org/abs/2405.18392)).

# %%
vectors = train_vectors(stories.train, tokenizer)
config = TrainingConfig(folder=str(ROOT / "runs" / corpus_name(CORPUS)))
baseline = TrainingConfig.baseline()
total_steps = config.epochs * math.ceil(len(stories.train) / config.batch_size)
steps = range(0, total_steps, 3)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        {
            name: (steps, [1000 * learning_rate_at(step, total_steps, one) for step in steps])
            for name, one in {"our recipe": config, "baseline recipe": baseline}.items()
        },
        y_label="learning rate (thousandths)",
        title="A short climb, a plateau, a long way down",
    ),
    "04_schedule",
    alt=(
        "Learning rate against step: ours climbs to its maximum within the warm-up, stays there, "
        "and falls linearly to zero over the last two fifths; the baseline's is flat."
    ),
    caption=(
        "Warm-up, plateau and decay of our recipe beside the constant rate of the baseline recipe."
    ),
)

# %% [markdown]
# **Optimizer.** The gradient of one batch is noisy, and some parameters have far larger gradients than others. **Adam** ([Kingma & Ba
# 2015](https://arxiv.org/abs/1412.6980)) keeps two running means for each number: of its gradient, and of the gradient's square.
# It moves the number by the first mean divided by the square root of the second. So what matters is not the size of a
# gradient, but how steady it is. Here is one of its steps by hand, to compare with PyTorch's *AdamW* (Adam with a
# different weight decay, which we do not use; [Loshchilov & Hutter
# 2019](https://arxiv.org/abs/1711.05101)):


# %%
def adam_step(p, state, rate, betas=(0.9, 0.99), eps=1e-8):
    """Move p by its gradient. state: the two running means, and the number of steps."""
    state["n"] += 1
    state["mean"] = betas[0] * state["mean"] + (1 - betas[0]) * p.grad  # as p
    state["square"] = betas[1] * state["square"] + (1 - betas[1]) * p.grad**2  # as p
    mean = state["mean"] / (1 - betas[0] ** state["n"])  # the means start at 0: make up for it
    square = state["square"] / (1 - betas[1] ** state["n"])
    p.data -= rate * mean / (square.sqrt() + eps)


# %%
torch.manual_seed(0)
start = torch.randn(5, 4)  # (5, 4)
ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
adamw = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
state = {"n": 0, "mean": 0.0, "square": 0.0}
for _ in range(10):
    ours.grad = theirs.grad = torch.randn(5, 4)  # (5, 4)
    adam_step(ours, state, 0.01)
    adamw.step()
apart = (ours - theirs).abs().max().item()

# %%
claim(f"after ten steps the two differ by ≈{apart:.0e}, less than 1e-6", apart < 1e-6)

# %% [markdown]
# Adam treats each number separately. But a matrix is more than a list of numbers: its gradient has a few strong
# *directions* (singular vectors), along which it would move again and again, and many weak ones.
# **Muon** ([Jordan et al. 2024](https://kellerjordan.github.io/posts/muon/))
# takes a running mean of the gradient of a matrix, and brings it closer to an orthogonal matrix before using it as the
# step: the strong directions then count about equally, and weak ones are raised a great deal. This needs no
# decomposition of the matrix, only a polynomial in matrix products, applied five times:

# %%
show_source(orthogonalize)

# %%
model = new_model(stories, tokenizer, vectors)
total, count = loss_sum(model, train_ids[:32].long())
(total / count).backward()
gradient = model.blocks[0].attention.output.weight.grad  # (D, D)
model.zero_grad(set_to_none=True)
before = torch.linalg.svdvals(gradient)  # (D,): the strength of each direction
after = torch.linalg.svdvals(orthogonalize(gradient[None]))[0]  # (D,)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        {
            "of the gradient": (range(1, len(before) + 1), (before / before[0]).tolist()),
            "of the step": (range(1, len(after) + 1), after.tolist()),
        },
        x_label="direction, strongest first",
        y_label="singular value",
        title="Muon lets weak directions count",
    ),
    "04_muon",
    alt=(
        "Singular values of a gradient, as shares of the largest, fall to almost nothing after a "
        "few directions; those of the step are near 1 at first and fall slowly, over about 100."
    ),
    caption=(
        "Read from left to right: the gradient has almost nothing left after a few "
        "directions, while the step still has weight in about a hundred. The weakest directions "
        "stay weak."
    ),
)

# %%
strong = [(values > 0.1 * values.max()).sum().item() for values in (before, after)]
claim(
    f"directions above a tenth of the strongest: ≈{strong[0]} before, ≈{strong[1]} after, more "
    "than three times as many",
    strong[1] > 3 * strong[0],
)

# %% [markdown]
# We use Muon only for the matrices of the blocks. AdamW still trains the word vectors, the output layer, the gains and
# the biases. The figure does not show that Muon helps; the comparison of recipes below does.
#
# **Precision.** If the processor multiplies 16-bit *bfloat16* numbers faster than 32-bit ones, the large matrix
# products use them
# (mixed precision, [Micikevicius et al. 2018](https://arxiv.org/abs/1710.03740)). bfloat16 keeps the range of 32-bit numbers, but only two
# to three decimal digits, so a small change of a weight would be lost in rounding. The weights themselves, the residual stream, the norms
# and the sums of losses therefore stay in 32 bits.

# %%
one = torch.tensor(1.0, dtype=torch.bfloat16)  # ()

# %%
print("in bfloat16, 1 + 1/128 =", (one + 1 / 128).item(), "and 1 + 1/512 =", (one + 1 / 512).item())
with torch.no_grad():
    exact, count = loss_sum(model, train_ids[:32].long())
    with torch.autocast("cpu", torch.bfloat16):  # large products in bfloat16
        rounded, _ = loss_sum(model, train_ids[:32].long())
difference = abs((exact - rounded) / count).item()

# %%
claim(f"the loss of a batch changes by ≈{difference:.4f} nats, less than 0.01", difference < 0.01)

# %% [markdown]
# ## The run
#
# We train for three epochs, with 32 stories per step. The validation loss is measured every 50 steps, and more often at
# the start. At the first measurement below the unigram landmark, and again at the first below the bigram landmark, the
# model writes sixteen stories from nothing but `<sos>`. At each measurement we also ask how closely the best head
# follows certain patterns; the section on heads explains them.
#
# **Predict.** What will the samples get right just after the unigram landmark? And after the bigram?

# %%
# Ids of people's and animals' names, and of the meaningless words of songs.
names = words_after(r"\b(?:named|called) ([A-Z]\w+)", stories.train, tokenizer)
sounds = words_after(r'song, "([^".]+)\.', stories.train, tokenizer)
samples, followed = {}, []


# %%
def write_samples(stage, step, model):
    written = generate(model, tokenizer, [""] * 16, max_new_tokens=62, seed=1)
    samples[stage] = {"step": step, "generations": written}


def watch(row, model):
    for name in ("unigram", "bigram"):
        if name not in samples and row["validation_loss"] < marks[name]:
            write_samples(name, row["step"], model)
    followed.append(head_scores(model, validation_ids[:32], names, sounds))


# %%
scores_before = head_scores(model, validation_ids[:64], names, sounds)
write_samples("untrained", 0, model)

# %% tags=["nbval-ignore-output"]
history = train(model, tokenizer, stories, config, on_validation=watch)
write_samples("trained", total_steps, model)

# %%
final = history.rows[-1]["validation_loss"]
crossed = {
    name: next((row["step"] for row in history.rows if row["validation_loss"] < loss), math.inf)
    for name, loss in marks.items()
}

# %%
claim(
    f"the landmarks are passed in order: uniform at step ≈{crossed['uniform']}, unigram at "
    f"≈{crossed['unigram']}, bigram at ≈{crossed['bigram']}",
    crossed["uniform"] <= crossed["unigram"] < crossed["bigram"] < math.inf,
)
claim(
    f"the loss ends at ≈{final:.3f} nats, half a nat or more below the bigram",
    final < marks["bigram"] - 0.5,
)

# %%
if "entropy floor" in marks:
    gap = final - marks["entropy floor"]
    claim(f"the model ends ≈{gap:.3f} nats per token above the floor, less than 0.1", 0 < gap < 0.1)

# %% [markdown]
# On other text nobody can say how much is left to learn; here we can. What did the model learn, and when? Both panels
# below have a logarithmic axis for the step, because most of the change happens early. The upper panel shows the loss.
# The lower one shows how closely the best head follows each of three patterns of attention. A head that follows *next
# sound*, for example, reads what came after an earlier copy of the current sound.

# %%
watched = [p for p in ("same name", "previous sound", "next sound") if p in followed[-1]]
curves = {pattern: [float(found[pattern].max()) for found in followed] for pattern in watched}
circuit = next(
    (
        row["step"]
        for row, score in zip(history.rows, curves[watched[-1]], strict=True)
        if score > 0.3
    ),
    None,
)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.loss_and_scores(
        history.rows,
        marks,
        curves,
        (f"a head follows “{watched[-1]}”", circuit) if circuit else None,
        title="The loss passes the landmarks first, then the heads form",
    ),
    "04_loss",
    alt=(
        "Above: training and validation loss against the step on a logarithmic axis, falling past "
        "the uniform, unigram and bigram lines to the floor. Below: scores of the best heads, "
        "near zero for a long time, then rising."
    ),
    caption=(
        "Steps are on a logarithmic axis. The landmarks are crossed first. The heads form "
        "later, while the loss falls slowly towards the floor. That the two happen together "
        "does not prove that one causes the other; switching heads off, below, tests that."
    ),
)

# %% [markdown]
# Both losses fall fast to the unigram landmark (how often each word occurs) and past the bigram landmark (which word
# follows which). Then comes the slow part, in which attention learns to look back.
# The vertical line marks the measurement at which a head's score for *next sound* first
# exceeds 0.3. The training curve is a mean over the steps between two measurements, so early on it lags behind. The figure does not show
# *what* was learned in each stretch; the samples below do.
#
# The notebooks that follow load a trained model from `checkpoints/` with `load_or_train`. The one for the grammar
# stories comes with the repository, and this run must end at nearly the same loss. For any other corpus, the model of
# this run is saved.

# %%
place = trained_path(CORPUS, stories)
if CORPUS != "bundled" or not place.exists():
    save_trained(place, model, tokenizer, history, stories)
_, _, then = load_checkpoint(place)
apart = abs(final - then["validation_loss"])
claim(f"this run and the model in {place.parent.name}/ end ≈{apart:.3f} nats apart", apart < 0.03)

# %% [markdown]
# ## What each landmark buys
#
# One sample may be luck, so we measure all sixteen at each stage. How many of their word **pairs** occur in the
# training stories? How many of the **names** in them have been mentioned before in the same story? The grammar also
# judges the samples: after how many words does a text say something that **no story could say**, and how many texts are
# **complete** stories, possible from `<sos>` to `<eos>`?


# %%
def measure(generations):
    texts = [g.ids for g in generations]
    pairs = [pair in known_pairs for ids in texts for pair in pairwise(ids)]
    again = [w in ids[:t] for ids in texts for t, w in enumerate(ids) if w in names]
    found = {"known pairs": np.mean(pairs), "names again": np.mean(again) if again else 0.0}
    if CORPUS == "bundled":
        verdicts = [bundled_grammar().judge([*map(tokenizer.word, ids)]) for ids in texts]
        found["possible words"] = float(np.mean([len(v.nats) for v in verdicts]))
        ends = [ids[-1:] == [tokenizer.eos_id] for ids in texts]
        found["complete"] = sum(
            end and v.broken_at is None for end, v in zip(ends, verdicts, strict=True)
        )
    return found


# %%
known_pairs = {pair for row in train_ids.tolist() for pair in pairwise(row)}
measured = {stage: measure(kept["generations"]) for stage, kept in samples.items()}

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [
            stage,
            samples[stage]["step"],
            *(
                f"{v:.0%}" if name in ("known pairs", "names again") else f"{v:.0f}"
                for name, v in found.items()
            ),
        ]
        for stage, found in measured.items()
    ],
    [
        "after",
        "step",
        "known pairs",
        "names again",
        "possible words at the start",
        "complete, of 16",
    ][: 2 + len(measured["trained"])],
    caption=(
        "What the samples get right at each landmark, judged by the grammar. Each row has only "
        "sixteen stories, so a difference of one or two means nothing."
    ),
)

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [[stage, kept["generations"][0].text] for stage, kept in samples.items()],
    ["after", "one of the sixteen stories, from nothing"],
    caption="The first of the sixteen stories at each landmark.",
)

# %%
pairs = [measured[stage]["known pairs"] for stage in ("untrained", "unigram", "bigram", "trained")]

# %%
claim(
    "more pairs are known after each landmark: " + ", ".join(f"≈{share:.0%}" for share in pairs),
    pairs == sorted(set(pairs)),
)
if CORPUS == "bundled":
    then, now = (measured[stage] for stage in ("bigram", "trained"))
    claim(
        f"repeated names and complete stories come later: ≈{then['names again']:.0%} of names are "
        f"repeats after the bigram, ≈{now['names again']:.0%} at the end; ≈{then['complete']} and "
        f"≈{now['complete']} stories are complete",
        now["names again"] > then["names again"] and now["complete"] > then["complete"],
    )

# %% [markdown]
# **Each landmark that the curve crosses changes what the samples get right.** After the unigram landmark, words are as
# frequent as they should be, but few neighbouring words belong together. After the bigram landmark, most pairs are
# known, but the story forgets whom it is about. Only well below the bigram do names and things more often stay the same
# from sentence to sentence, and only there does the model write whole stories that the grammar could have told. A high
# share of known pairs is no merit in itself: a model that copied its training stories would score 100 %.
#
# ## Overfitting
#
# In the loss curves above, training and validation stay together, because stories from a grammar contain little that a
# model could learn by heart. Real stories contain more. The next figure shows the same blocks and recipe, with a larger
# vocabulary, on ten thousand stories of TinyStories ([Eldan & Li
# 2023](https://arxiv.org/abs/2305.07759)):

# %%
real = load_numbers("tinystories", "04")["history"] if CORPUS == "bundled" else history.rows

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.loss_curves(real, title="Real stories: training pulls away from validation"),
    "04_overfitting",
    alt=(
        "Training and validation loss on TinyStories over three epochs: the training loss steps "
        "down at each new epoch and ends well below the validation loss, which levels off."
    ),
    caption=(
        "Watch the gap between the two lines open from the second epoch on. A recorded run on "
        "real stories."
    ),
)

# %%
end = real[-1]
claim(
    f"after three epochs the training loss is {end['train_loss']:.2f}, the validation loss "
    f"{end['validation_loss']:.2f}",
    end["train_loss"] < end["validation_loss"] - 0.1,
)

# %% [markdown]
# The training loss steps down each time the stories come round again, because the model begins to memorize them.
# The validation loss does not
# follow. That gap is **overfitting**. It costs nothing as long as the validation loss still falls. (TinyStories are
# longer than our stories, and most are cut off at 64 tokens, so a model trained on them sees beginnings, and hardly
# ever an end. With a context of 256 the same model reads whole stories: `load_or_train(CORPUS, context_length=256)`
# trains it in half an hour, and it tells its own stories to the end. [07 Results](07_results.ipynb#Whole-stories) gives
# its losses, and three of its stories.)
#
# ## Does this trick help?
#
# One run cannot answer that, because two runs that differ only in their random numbers end at different losses. Here
# are almost fifty answers, recorded on TinyStories. The model, the stories, the 300 steps and the three seeds are the
# same for all rows; each row changes one thing, or builds on the rows before it. (One row, *the recipe, in the time of
# AdamW*, takes fewer steps.) Zero is AdamW with a learning rate that falls along half a cosine ([Loshchilov & Hutter
# 2017](https://arxiv.org/abs/1608.03983)). The loss is measured on a **development set**: stories that no run was
# trained on, and that are not used for any final result of this course. If a recipe is chosen and reported on the same
# stories, it looks better than it is.
#
# **Predict.** Which moves the loss most: the optimizer, the schedule, or regularization (dropout, weight decay, label smoothing)?

# %%
recorded = load_numbers("tinystories", "ablations")["runs"]
base = recorded["AdamW, cosine"]
differences = {
    part: {
        name: [run[part] - base[seed][part] for seed, run in runs.items()]
        for name, runs in recorded.items()
        if runs is not base
    }
    for part in ("development", "validation")
}
mean = {part: {n: np.mean(v) for n, v in found.items()} for part, found in differences.items()}
orders = {part: sorted(found, key=found.get) for part, found in mean.items()}

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.ranked(
        differences["development"],
        x_label="nats per token more than AdamW with a cosine",
        title="Start and optimizer matter most; dropout hurts",
    ),
    "04_tricks",
    alt=(
        "Bars of the change in loss for each trick. The recipe lies furthest left, near "
        "minus 0.19; weight decay and zero start near zero; dropout and label smoothing right of "
        "it; random vectors furthest right, at 0.23."
    ),
    caption=(
        "Changes to the left of the line help, those to the right hurt. Each point is one seed, "
        "each bar the mean. The order holds for this model and this amount of text."
    ),
)

# %% [markdown]
# Each bar is the mean of three seeds, and each point one of them; to the left of zero is better. *Trapezoid* is the schedule above.
# *Muon × 2* is Muon at twice AdamW's learning rate. *Zero start* starts the last matrix of each part of a block at
# zero. *Weight decay* pulls
# weights towards zero a little at each step. *Label smoothing* asks the model for a probability of only 0.9 for the
# right word. *Betas* set how far back Adam's two means reach.
# "…" stands for "Muon × 2, trapezoid, zero start". *The recipe* is ours: Muon × 2, trapezoid, and a
# second beta of 0.99.

# %%
spread = np.median([np.ptp(values) for values in differences["development"].values()])
print(f"between the seeds of one trick, the loss varies by {spread:.3f} nats (median)")
for n in (0, 1, 2, -3, -2, -1):
    print(f"{mean['development'][orders['development'][n]]:+.3f}  {orders['development'][n]}")

# %%
both = [{*orders[part][:3], *orders[part][-3:]} for part in orders]

# %%
claim("the three best and three worst are the same on validation stories", both[0] == both[1])
found = mean["development"]

# %%
claim(
    f"Muon also wins in equal time: with a fifth fewer steps, the recipe gains "
    f"{-found['the recipe, in the time of AdamW']:.3f} nats, the trapezoid alone "
    f"{-found['trapezoid']:.3f}",
    found["the recipe, in the time of AdamW"] < found["trapezoid"] < 0,
)

# %% [markdown]
# - **The optimizer.** Muon on the blocks' matrices gains more than any other optimizer setting or schedule that was tried.
#   Its steps take about a quarter more time, but it still wins when both get the same time.
# - **The schedule** is worth about a third of that. Averaging the last weights of a run at a constant rate does the
#   same: what counts is a high rate for a long time, and then a way to settle.
# - **The start from fastText vectors** is worth most of all: random vectors are the worst row. Most of the gain comes
#   from the output layer, which must otherwise learn from scratch which words are alike (see "vectors in the embedding
#   only"). Frozen vectors are better
#   than random ones and worse than trained ones.
# - **Regularization costs.** In 300 steps the model sees each story once and cannot overfit, so dropout and label
#   smoothing only make the task harder. In a long run on few stories they may help; these runs cannot show it.
# - **Little or no effect:** weight decay has none; zero start, and separate rates for the embedding or the output
#   layer, have little.
#
# Now we run two of the recipes live, on the stories of this notebook, for 40 steps:

# %%
live = TrainingConfig(max_steps=40, warmup_steps=10, validate_every=20)
brief = replace(stories, validation=stories.validation[:80])
plain = TrainingConfig.baseline(max_steps=40, validate_every=20, overwrite_eos=False)

# %% tags=["nbval-ignore-output"]
runs = {
    "our recipe": train(new_model(stories, tokenizer, vectors), tokenizer, brief, live),
    "baseline recipe": train(new_model(stories, tokenizer), tokenizer, brief, plain),
}
trials = {name: run.rows[-1]["validation_loss"] for name, run in runs.items()}

# %%
claim(
    f"after 40 steps: our recipe ≈{trials['our recipe']:.2f} nats, the baseline recipe "
    f"≈{trials['baseline recipe']:.2f}, at least half a nat more",
    trials["our recipe"] < trials["baseline recipe"] - 0.5,
)

# %% [markdown]
# Forty steps and one seed reward a fast start. They cannot show what helps in the long run.
#
# ## A song
#
# About a third of the grammar stories contain a song whose words mean nothing: *"Zim tala pom vero."* The sounds are
# drawn at random, so nobody can predict them the first time. When the song is sung again, they are certain for a reader
# who remembers it. The word before is not enough: any of twelve sounds may follow it.
#
# **Predict.** There are twelve sounds, about equally likely. How many nats should the model lose on each the first
# time? And when the song is sung again?

# %%
inputs, targets = validation_ids[:, :-1].long(), validation_ids[:, 1:].long()  # (M, T-1) each
is_sound = torch.isin(validation_ids, torch.tensor(sorted(sounds)))  # (M, T)
inside = is_sound[:, 1:] & is_sound[:, :-1]  # (M, T-1): a sound after a sound
again = torch.zeros_like(inside)  # (M, T-1): … and this pair of sounds was there before
for m, t in inside.nonzero().tolist():
    *earlier, present = pairwise(validation_ids[m, : t + 2].tolist())
    again[m, t] = present in earlier


# %%
@torch.no_grad()
def losses_of_words(count):
    """The loss of every word of the first `count` validation stories, (count, T-1)."""
    device = model.output.weight.device
    found = []
    for rows, wanted in zip(inputs[:count].split(50), targets[:count].split(50), strict=True):
        logits = model(rows.to(device)).mT.cpu()  # (B, V, T-1)
        found.append(F.cross_entropy(logits, wanted, reduction="none"))  # (B, T-1)
    return torch.cat(found)


# %%
song = {}
if sounds:
    true = [torch.tensor(nats[: inside.shape[1]]) for nats in stories.validation_nats]
    true = nn.utils.rnn.pad_sequence(true, batch_first=True)  # (M, T-1)
    lost = losses_of_words(len(inputs))  # (M, T-1)
    for name, where in {"the first time": inside & ~again, "sung again": inside & again}.items():
        song[name] = {"model": lost[where].mean().item(), "floor": true[where].mean().item()}
        print(f"{name}: the floor is {song[name]['floor']:.2f} nats per sound")

# %%
if song:
    new, known = song["the first time"], song["sung again"]
    claim(
        f"a new song costs the model ≈{new['model']:.2f} nats per sound, within 0.2 of the floor",
        abs(new["model"] - new["floor"]) < 0.2,
    )
    claim(f"sung again it costs ≈{known['model']:.2f}, less than 0.3", known["model"] < 0.3)

# %% [markdown]
# The first time, the model loses about $\ln 12 \approx 2.5$ nats per sound, as any model would. The weights cannot hold
# the song, because it is new in each story. Whatever the model knows the second time, it has read from the context. Two
# heads can do that, one after the other, like the pair that notebook 02 built by hand: the first tells each sound which
# sound came before it, and the second looks for an earlier copy of the current sound and reads what followed it. Let us
# look for them.
#
# ## What does each head do?
#
# The model has twenty-four heads, and nobody told them what to look at. We start with numbers; the pictures follow. The
# **score** of a head for a pattern is the attention that it puts on the pattern's keys, averaged over the words that
# have such keys. On its scale, 0 means that attention is spread evenly over all words, and 1 that all of it goes to the
# pattern's keys. The patterns are:
#
# - *itself*, *previous word*, *start token*: positions, whatever word is there;
# - *same word*: earlier copies of the word; *after same word*: what followed them (an *induction head*,
#   [Olsson et al. 2022](https://arxiv.org/abs/2209.11895));
# - *same name*: if the next word is a name that has been mentioned, its earlier mentions;
# - *previous sound* and *next sound*: *previous word* and *after same word* among the words of a song.

# %%
scores = head_scores(model, validation_ids[:64], names, sounds)


def best(pattern, scores=scores):
    """The head with the highest score, (layer, head) from 0, and its score."""
    place = np.unravel_index(scores[pattern].argmax(), scores[pattern].shape)
    return place, scores[pattern][place]


# %%
by_hand = load_numbers("bundled", "02")["weight_on_pattern"]

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [
            pattern,
            f"{best(pattern, scores_before)[1]:.2f}",
            f"{best(pattern)[1]:.2f}",
            "layer {}, head {}".format(*(i + 1 for i in best(pattern)[0])),
            f"{by_hand[pattern][0]:.2f}" if pattern in by_hand else "",
        ]
        for pattern in scores
    ],
    ["pattern", "best head before training", "after", "which", "weight of the hand-made head (02)"],
    caption=(
        "The best head for each pattern, before and after training, beside the head that "
        "notebook 02 made by hand."
    ),
)

# %%
expected = (
    {"next sound": 0.3, "same name": 0.5} if sounds else {"previous word": 0.2, "same name": 0.1}
)
for pattern, enough in expected.items():
    after, before = best(pattern)[1], best(pattern, scores_before)[1]
    claim(
        f"{pattern}: the best head scores ≈{after:.2f} after training, above {enough}, and below "
        "0.1 before",
        after > enough >= 0.1 > before,
    )
if sounds:  # several heads share this work
    together = [s["previous sound"].clip(0).sum(axis=1).max() for s in (scores, scores_before)]
    claim(
        f"previous sound: the heads of one layer together score ≈{together[0]:.2f}, above 0.6; "
        "before training no layer scores above 0.2",
        together[0] > 0.6 > 0.2 > together[1],
    )

# %% [markdown]
# Now the pictures, for sentences of our own. A song comes in the middle of a story, never at its start. So before the
# third sentence we let the model read the beginning of a story, which the pictures leave out.

# %%
if CORPUS == "bundled":
    SENTENCES = [
        "Tom was a small boy. One sunny day, Tom met a hungry man. Tom gave the man an apple.",
        'Tom lost a red ball. "Where is the ball?" asked Tom.',
        'a silly song, "Zim tala pom vero." Ben got lost in the misty hills. "Zim tala pom vero," '
        "Ben sang",
    ]
    lead = "By the sea lived a kind boy called Ben who had a wise dog named Momo, and they had"
else:
    SENTENCES = [
        "Once upon a time, there was a girl named Lily. One day, Lily saw a big dog.",
        'Tom lost his ball. "Where is it?" he asked. Mia said, "Look, Tom! It is in the tree."',
        "Ben and Sue were sad. They wanted to play, but it was dark. Then they saw the moon.",
    ]
    lead = ""

# %%
attention, ids_of = {}, {}
for text, before in zip(SENTENCES, ["", "", lead], strict=True):
    before = [tokenizer.sos_id, *tokenizer.encode(before)]
    ids = torch.tensor([before + tokenizer.encode(text)])  # (1, T)
    with torch.no_grad():
        _, weights = model(ids.to(model.output.weight.device), return_attention=True)
    shown = slice(len(before) if len(before) > 1 else 0, None)
    ids_of[text] = ids[0, shown].tolist()
    tokens = [tokenizer.word(i) for i in ids_of[text]]
    attention[text] = tokens, weights[:, 0, :, shown, shown].float().cpu().numpy()

# %%
if sounds:
    heard = torch.tensor(
        [[tokenizer.sos_id, *tokenizer.encode(f"{lead} {SENTENCES[2]}")]]
    )  # (1, T)
    with torch.no_grad():
        guesses = model(heard.to(model.output.weight.device))[0].argmax(-1).tolist()  # (T,)
    at = [t for t, i in enumerate(heard[0].tolist()) if tokenizer.word(i) == "zim"][1]
    sung = [tokenizer.word(i) for i in guesses[at : at + 3]]
    claim(
        f"after the second “zim” the likeliest words are {', '.join(sung)}",
        sung == ["tala", "pom", "vero"],
    )

# %% [markdown]
# Here are three heads, each the best for its pattern. In each picture a frame marks the cell with the most weight among
# those that fit the pattern.


# %%
def show_head(pattern, number):
    text, ((layer, head), _) = SENTENCES[number], best(pattern)
    tokens, weights = attention[text]
    allowed = pattern_targets(ids_of[text], names, sounds)[pattern]  # (T, T)
    allowed[0] = False  # the first word has nothing else to read
    cell = np.unravel_index((weights[layer, head] * allowed).argmax(), allowed.shape)
    title = f"{pattern}: layer {layer + 1}, head {head + 1}"
    return figures.save_figure(
        attention_plots.heatmap(weights[layer, head], tokens, title=title, marked=[cell]),
        f"04_head_{pattern.replace(' ', '_')}",
        alt=f"Heat-map of the head that follows “{pattern}” best; its largest weight is framed.",
        caption=(
            "The framed cell has the largest weight that fits the pattern. One sentence shows that "
            "a head can do this; the table shows how often it does."
        ),
    )


# %%
show_head("same name", 0)

# %% [markdown]
# *Same name.* In rows whose next word is a name, such as those of a comma or a full stop, the head reads an earlier
# mention of that name. Such a head can bring a name back. Whether the model needs it, we find out below by switching
# the head off.

# %%
show_head("previous sound" if sounds else "previous word", 2)

# %% [markdown]
# *Previous sound* (in real stories, *previous word*). In the rows of a song, look one step left of the diagonal. If a
# square there is dark, the head tells this sound which sound came before it. No head does that in every row; several
# share the work.

# %%
show_head("next sound" if sounds else "same word", 2)

# %% [markdown]
# *Next sound* (in real stories, *same word*). The framed square lies one word *after* the earlier copy of the row's
# word. For the head to find this square by its content, the key there must say which word came before it, and heads of
# an earlier layer may have put that in. The pictures do not prove this explanation.

# %% [markdown]
# Now all heads at once, in numbers. How many words does each head look back, on average over all places from the 21st
# on? Which words does it favour, and how many times as much attention do they get as from an even spread?

# %%
heads = [(layer, h) for layer in range(3) for h in range(model.config.num_heads)]
jobs = {
    place: [p for p in sorted(scores, key=lambda p: -scores[p][place]) if scores[p][place] > 0.3]
    for place in heads
}
keys = validation_ids[:64].long()  # (B, T)
with torch.no_grad():
    _, weights = model(keys.to(model.output.weight.device), return_attention=True)
weights = weights.float().cpu()  # (L, B, H, T, T)
places = torch.arange(keys.shape[1])  # (T,)
distance = places[:, None] - places  # (T, T), query minus key
back = (weights * distance).sum(-1)[..., 20:].mean(dim=(1, 3))  # (L, H)

# %%
real = (keys != tokenizer.pad_id).float()  # (B, T)
received = torch.einsum("lbhts,bt->lhbs", weights, real)  # (L, H, B, T): by each key
even = torch.einsum("bt,ts->bs", real / (places + 1), (distance >= 0).float())  # (B, T)
common = [
    i for i in keys.unique().tolist() if i > tokenizer.eos_id and (keys == i).sum() >= 30
]  # special tokens left out
favours = torch.stack(
    [received[..., keys == i].sum(-1) / even[keys == i].sum() for i in common], dim=-1
)  # (L, H, words)
reads = {}
for place in heads:
    most = favours[place].argsort(descending=True)[:3].tolist()
    reads[place] = [(tokenizer.word(common[j]), favours[place][j].item()) for j in most]

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [
            f"{i + 1}.{h + 1}",
            ", ".join(jobs[i, h]) or "–",
            f"{back[i, h]:.0f}",
            ", ".join(f"{word} {times:.1f} ×" for word, times in reads[i, h]),
        ]
        for i, h in heads
    ],
    ["layer.head", "patterns with a score above 0.3", "words back", "favours"],
    caption=(
        "What each head does: the patterns that it follows, how far it looks back on average, "
        "and the words that it reads more than an even spread would."
    ),
)

# %% [markdown]
# A dash means that none of our patterns fits. The head with the shortest distance reads the phrase that is being
# written:

# %%
local = min(heads, key=lambda place: back[place].item())
tokens, weights = attention[SENTENCES[1]]
shown = weights[local]  # (T, T)
title = f"layer {local[0] + 1}, head {local[1] + 1}: {back[local]:.0f} words back on average"
figures.save_figure(
    attention_plots.heatmap(shown, tokens, title=title),
    "04_head_local",
    alt="Heat-map of the head that looks back least: the weight lies near the diagonal.",
    caption=(
        "The head that looks back the shortest distance. The picture does not show what it does "
        "with what it reads."
    ),
)

# %% [markdown]
# Other heads have mixed roles, and neither numbers nor pictures can say what they pass on. Here are all heads on the
# sentence with the song (the notes name their patterns):

# %%
tokens, weights = attention[SENTENCES[2]]
notes = {(i + 1, h + 1): "\n".join(jobs[i, h][:2]) for i, h in heads if jobs[i, h]}

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    attention_plots.head_grid(weights, tokens, notes=notes, title="Every head, one sentence"),
    "04_heads",
    alt=f"Heat-maps of all {len(heads)} heads for: {SENTENCES[2]}",
    caption=(
        "One small picture for each head, with the words of the large pictures above. "
        "Many heads fit none of the named patterns."
    ),
)

# %% [markdown]
# Below are the same pictures with sliders, live in Jupyter and Colab. They open on the head that scores highest for
# names. **Type a sentence of your own**, and press Enter.


# %%
@torch.no_grad()
def read(text):
    ids = [tokenizer.sos_id, *tokenizer.encode(text)][: ModelConfig.context_length]
    given = torch.tensor([ids], device=model.output.weight.device)  # (1, T)
    _, weights = model(given, return_attention=True)
    return [tokenizer.word(i) for i in ids], weights[:, 0].float().cpu().numpy()


# %% tags=["nbval-ignore-output"]
flat = {place: note.replace("\n", ", ") for place, note in notes.items()}
explorer = AttentionExplorer(attention, read=read, notes=flat)
explorer.layer.value, explorer.head.value = (int(i) + 1 for i in best("same name")[0])
figures.save_explorer(explorer, "04_attention")

# %% [markdown]
# None of these pictures shows *what* a head passes on. That depends on the values and the output matrix, so even a dark
# square may pass on nothing useful.
#
# ## Switch a head off
#
# A score says where a head looks, not whether that matters. So we set the head's columns of the output matrix to zero,
# and measure how much worse the model does on the words that the head seems to help with.
#
# **Predict.** When a name returns, the best same-name head puts most of its weight on the right one. How much will the
# loss on returning names rise without this head: by about 0.1 nats, by half a nat, or by more than 1?

# %%
FEW = 80
returning = torch.tensor(
    [
        [w in names and w in row[: t + 1] for t, w in enumerate(row[1:])]
        for row in validation_ids[:FEW].tolist()
    ]
)  # (FEW, T-1)
where = {"returning names": returning}
if sounds:
    where["the song sung again"] = again[:FEW]


# %%
def cost_of_silence(layer, head):
    """How many nats the loss rises, on each kind of word, when one head's part is set to 0."""
    weight = model.blocks[layer].attention.output.weight  # (D, H · d)
    width = weight.shape[1] // model.config.num_heads
    columns = slice(head * width, (head + 1) * width)
    kept = weight[:, columns].clone()  # (D, d)
    with torch.no_grad():
        weight[:, columns] = 0
        losses = losses_of_words(FEW)  # (FEW, T-1)
        weight[:, columns] = kept
    return {name: (losses - whole)[places].mean().item() for name, places in where.items()}


# %%
whole = losses_of_words(FEW)  # (FEW, T-1)
silence = {place: cost_of_silence(*place) for place in heads}

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [name, f"{i + 1}.{h + 1}", ", ".join(jobs[i, h]) or "–", f"{silence[i, h][name]:+.2f}"]
        for name in where
        for i, h in sorted(heads, key=lambda place: -silence[place][name])[:4]
    ],
    ["loss on", "without head", "its patterns", "rises by, nats"],
    caption=(
        "For each kind of word, the four heads that it needs most: the rise in loss when the "
        "output of this one head is set to zero."
    ),
)

# %% tags=["nbval-ignore-output"]
place, score = best("same name")
print(
    f"without the best same-name head ({score:.2f}), the loss on returning names changes by "
    f"{silence[place]['returning names']:+.2f} nats"
)

# %%
for name in where:
    costs = sorted(costs[name] for costs in silence.values())
    claim(
        f"{name}: the costliest head costs ≈{costs[-1]:.2f} nats, and half of them less than 0.05",
        costs[-1] > 0.05 > costs[len(costs) // 2],
    )

# %% [markdown]
# The table shows which heads cost most when they are switched off one at a time. If you train again on another machine,
# other heads may do the work. Often the costliest head is not the one with the highest score: a score suggests which
# head to test, but does not say whether the model needs it. And two heads that can stand in for each other both look
# superfluous, because the table removes one head at a time.
#
# You can switch off any set of heads yourself on [the live page](../build/live.html), which `make report` builds. It is
# a single file that contains this model, and it shows the next word, the true distribution beside it, and the loss on
# held-out stories.

# %% cellView="form" tags=["numbers"]
# @title The numbers that notebook 07 reports
others = () if CORPUS == "bundled" else stories.train  # the bundled stories are ours to quote
figures.save_numbers(
    "04",
    {
        "made_from": made_from(stories, tokenizer),
        "recorded": str(date.today()),
        "parameters": model.num_parameters(),
        "vocabulary": V,
        "steps": total_steps,
        "landmarks": marks,
        "history": history.rows,
        "followed": curves,
        "validation_perplexity": perplexity(model, tokenizer, stories.validation),
        "bits_per_character": bits_per_character(model, tokenizer, stories.validation),
        "samples": {
            stage: quotable([g.text for g in kept["generations"][:4]], others)
            for stage, kept in samples.items()
        },
        "sample_measures": measured,
        "trials": trials,
        "head_scores": {"before": scores_before, "after": scores},
        "sentences": SENTENCES,
        "song": song,
        "words_back": back,
        "favoured_words": {f"{i + 1}.{h + 1}": words for (i, h), words in reads.items()},
        "silenced": {f"{i + 1}.{h + 1}": costs for (i, h), costs in silence.items()},
    },
)

# %% [markdown]
# ## Recap
#
# - A training step has five parts: batch, loss, gradient, clipping, optimizer. Padding is not a target: the loss is a
#   mean over real tokens.
# - Landmarks tell you what a loss means: uniform, unigram, bigram and, if it is known, the floor.
# - Our recipe is Muon on the blocks' matrices, fastText vectors, and a high rate that falls late. Three seeds can tell
#   how much each is worth; one cannot.
# - What is new in a story, such as a song, can only be read from the context, and the model does read it there.
# - After training, a few heads have a job that one number shows; before training none has. To see whether the job
#   matters, switch the head off.
#
# ## What GPT and Llama do differently
#
# - **Text.** They train on far more text, trillions of tokens, and see each text once or a few times. Overfitting is
#   then not an issue, and dropout is left out.
# - **Optimizer.** AdamW with a cosine was the rule for years. Muon and other optimizers for matrices have been used in
#   large runs since 2025
#   ([Liu et al. 2025](https://arxiv.org/abs/2502.16982)), and schedules that fall late are common.
# - **Batches** hold millions of tokens, spread over thousands of GPUs, each of which holds a part of the model (notebook 06).
# - **The floor** of their text is unknown. How far the loss can fall is extrapolated from smaller models
#   ([Hoffmann et al. 2022](https://arxiv.org/abs/2203.15556)).
#
# Next: [05 · Decoding](05_decoding.ipynb) turns the model's probabilities into text, in more ways than one.
#
# ## Can you?
#
# 1. Write the loop: which five things does a step do, and in which order?
#    <details><summary>Answer:</summary> Batch, loss, gradient (after setting the old one to zero), clipping, step of the optimizer with the
#    rate of this step.</details>
# 2. A model's loss equals the bigram's. What may it have learned, and what not?
#    <details><summary>Answer:</summary> On average it predicts no better than one can from the last word alone. It may
#    use more context here and there, but gains nothing from it on average.</details>
# 3. The samples contain known pairs of words, but no name returns. Where on the curve are we?
#    <details><summary>Answer:</summary> Near the bigram.</details>
# 4. A friend reports that dropout improves his loss by 0.01, in one run. What do you ask?
#    <details><summary>Answer:</summary> How far two seeds differ without it, and on which stories it was chosen and measured.</details>
# 5. A head scores 0.9 for a pattern. Is it needed?
#    <details><summary>Answer:</summary> That does not follow. Switch it off and measure.</details>
#
# ## Exercises
#
# Five tasks with checks that name your mistake, and with solutions: the loss without padding, a training step, warm-up and cosine, an
# experiment with the learning rate, and the judge of a story. About an hour: [exercises for 04](exercises/04_training.ipynb).
#
# ## References
#
# - [Eldan & Li 2023](https://arxiv.org/abs/2305.07759), *TinyStories: How Small Can Language Models Be and Still Speak Coherent English?*
# - [Hägele et al. 2024](https://arxiv.org/abs/2405.18392), *Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations*
# - [Hoffmann et al. 2022](https://arxiv.org/abs/2203.15556), *Training Compute-Optimal Large Language Models*
# - [Jordan et al. 2024](https://kellerjordan.github.io/posts/muon/), *Muon: An optimizer for hidden layers in neural networks*
# - [Kingma & Ba 2015](https://arxiv.org/abs/1412.6980), *Adam: A Method for Stochastic Optimization*
# - [Liu et al. 2025](https://arxiv.org/abs/2502.16982), *Muon is Scalable for LLM Training*
# - [Loshchilov & Hutter 2017](https://arxiv.org/abs/1608.03983), *SGDR: Stochastic Gradient Descent with Warm Restarts*
# - [Loshchilov & Hutter 2019](https://arxiv.org/abs/1711.05101), *Decoupled Weight Decay Regularization*
# - [Micikevicius et al. 2018](https://arxiv.org/abs/1710.03740), *Mixed Precision Training*
# - [Olsson et al. 2022](https://arxiv.org/abs/2209.11895), *In-context Learning and Induction Heads*
