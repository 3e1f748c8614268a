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
# **Promise.** You will write the training loop, train the decoder with it, and watch its loss pass three landmarks and
# come close to a fourth, the lowest loss that any model can have. You will see the model repeat a song that it has read
# only once, find the attention heads that it needs for this, and switch them off.
#
# **You will be able to**
#
# - write a training loop for a language model, in fifteen lines, and say what each line is for;
# - say what a loss in nats means, by comparing it with landmarks that need no network;
# - tell from samples what a model has learned so far, and what it has not;
# - compare two recipes in such a way that the answer is not due to chance;
# - find what an attention head looks at, and measure whether the model needs it.
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
from contextlib import contextmanager
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
from helpers.model import Decoder, ModelConfig
from helpers.muon import Muon
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
# the target is the story without its first. The model always reads the true words, never its own guesses (**teacher
# forcing**), and the causal mask lets one pass answer all 63.
#
# Stories in a batch differ in length, so short ones are padded with `<pad>`. Padding is not an exercise: it is easy to
# predict, and counting it would flatter the model. So the loss is the sum over the real targets, divided by *their*
# number.

# %%
train_ids = encode_stories(tokenizer, stories.train, ModelConfig.context_length)  # (N, T)
validation_ids = encode_stories(tokenizer, stories.validation, ModelConfig.context_length)  # (M, T)

# %%
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
easy = by_hand * count / len(targets)
print(f"if the padding counted too, and cost nothing, the mean would be ≈{easy:.2f}")

# %% [markdown]
# `loss_sum` returns the sum of the losses and the number of targets. It never holds the logits of all tokens at once;
# notebook 06 shows how.
#
# ## What is a good loss?
#
# A loss of 3 nats per token says little by itself. Landmarks give it a scale. Each is the loss of a predictor that
# needs no network:
#
# - **uniform** treats every word as equally likely, which costs $\ln V$;
# - **unigram** predicts each word by how often it occurs, $P(w)$;
# - **bigram** predicts each word by how often it follows *the word before*. If $w$ came $n(v, w)$ times after $v$ in
#   the training stories, and $v$ came $n(v)$ times, then $P(w \mid v)$ is $n(v, w) + \alpha P(w)$, divided by
#   $n(v) + \alpha$. The share of $P(w)$ keeps a pair that never occurred from being impossible. The best $\alpha$ is
#   found on a tenth of the training stories;
# - **entropy floor**: the mean of $-\ln p$, where $p$ is the true probability of each word, which the grammar knows.
#   On average no model can predict better: any other distribution loses more, and notebook 05 measures how much.
#   (The floor in notebook 03 was that of one batch, learned by heart. Real text has a floor, too, but nobody knows it.)


# %%
def pairs_of(ids):
    """Each word and its successor, unless that is padding: (2, pairs)."""
    pairs = ids.long().unfold(1, 2, 1).flatten(0, 1)  # (N · (T-1), 2)
    return pairs[pairs[:, 1] != tokenizer.pad_id].T


def bigram_loss(train_ids, test_ids, alpha):
    v, w = pairs_of(train_ids)
    counts = torch.zeros(V, V).index_put_((v, w), torch.tensor(1.0), accumulate=True)  # (V, V)
    unigram = (counts.sum(0) + 1) / (len(w) + V)  # (V,), no word impossible
    v, w = pairs_of(test_ids)
    p = (counts[v, w] + alpha * unigram[w]) / (counts.sum(1)[v] + alpha)  # (pairs,)
    return -p.log().mean().item()


# %%
tenth = len(train_ids) // 10
tried = {a: bigram_loss(train_ids[:-tenth], train_ids[-tenth:], a) for a in (0.3, 1, 3, 10, 30)}
by_hand = bigram_loss(train_ids, validation_ids, min(tried, key=tried.get))
marks = landmarks(train_ids, validation_ids, V)

# %% cellView="form" tags=["hide-input"]
claim(
    f"the bigram by hand costs ≈{by_hand:.3f} nats per token, as `landmarks` finds",
    abs(by_hand - marks["bigram"]) < 1e-3,
)

# %% cellView="form" tags=["hide-input"]
if stories.validation_nats is not None:
    marks["entropy floor"] = entropy_floor(stories, ModelConfig.context_length)
table(
    [[name, f"{loss:.2f}", f"{math.exp(loss):,.1f}"] for name, loss in marks.items()],
    ["landmark", "nats per token", "perplexity"],
    caption=(
        "The landmarks for these stories. The first three need only the stories, the floor needs "
        "the grammar. The perplexity is the number of equally likely words with the same loss."
    ),
)

# %%
show_source(entropy_floor, fold="The floor: entropy_floor, from helpers/grammar.py")

# %% [markdown]
# The difference between unigram and bigram is what one word of context is worth. To get from the bigram to the floor, a
# model has to look further back, as attention can: at a name from two sentences ago, or at the colour of a lost ball.
#
# ## The training loop
#
# A training step has five parts: take a batch, compute its loss, compute the gradient of the loss with respect to every
# parameter, shorten the gradient if it is too long (**clipping**), and let the **optimizer** change the parameters. The
# **learning rate** says how large that change may be. An **epoch** is one pass over all stories, in random order.


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
# That is all. `make_optimizer` and `learning_rate_at` hold our recipe, which the next section explains; a group's
# *share* lets some parameters move faster than others. The course's `train` also measures the validation loss, saves
# the run, resumes it after a crash, and works on several GPUs. Apart from that, do the two agree? We compare thirty
# steps on a hundred stories, eight stories a step, in 32-bit arithmetic:

# %%
thirty = TrainingConfig(
    batch_size=8, max_steps=30, warmup_steps=10, validate_every=1, precision="fp32", device="cpu"
)
few = replace(stories, train=stories.train[:100], validation=stories.validation[:4])

# %%
model = new_model(stories, tokenizer)
ours = training_loop(model, train_ids[:100], thirty, total_steps=30, stop_after=30)
model = new_model(stories, tokenizer)
theirs = train(model, tokenizer, few, thirty).column("train_loss")

# %% cellView="form" tags=["hide-input"]
claim(
    f"from ≈{ours[0]:.2f} to ≈{ours[-1]:.2f} nats; all {len(ours)} losses are those of `train`, to "
    "the last digit",
    ours == list(theirs),
)

# %% [markdown]
# **Precision.** Many processors multiply 16-bit *bfloat16* numbers faster than 32-bit ones. If this one does, `train`
# uses them for the large matrix products (**mixed precision**; [Micikevicius et al.
# 2018](https://arxiv.org/abs/1710.03740) used another 16-bit format). bfloat16 has the range of 32-bit numbers, but
# only two to three decimal digits, so a small change of a weight would be lost in rounding. The weights, the residual
# stream, the norms and the sums of losses therefore stay in 32 bits. PyTorch's `autocast` sorts this out:

# %%
one = torch.tensor(1.0, dtype=torch.bfloat16)  # ()
print("in bfloat16, 1 + 1/128 =", (one + 1 / 128).item(), "and 1 + 1/512 =", (one + 1 / 512).item())

# %%
with torch.no_grad():
    exact, count = loss_sum(model, train_ids[:32].long())
    with torch.autocast("cpu", torch.bfloat16):  # large products in bfloat16
        rounded, _ = loss_sum(model, train_ids[:32].long())
difference = abs((exact - rounded) / count).item()

# %% cellView="form" tags=["hide-input"]
claim(f"the loss of a batch changes by ≈{difference:.4f} nats, less than 0.01", difference < 0.01)

# %% [markdown]
# ## The recipe
#
# Our recipe makes three choices: how to start, at which rate, and with which optimizer. We compare it with *the
# baseline recipe*, which is the plain way to train: random starting vectors, a constant rate of 0.0003, Adam (explained
# below), and dropout 0.1.
#
# **Start.** The embedding starts from fastText vectors, trained on the training stories alone, and is trained further.
# The output layer starts from them, too: the row that scores a word starts as the word's vector, sent through the
# projection, minus the mean over all words. So words with similar uses start with similar scores.

# %%
show_source(Decoder.start_from_vectors, fold="The start: start_from_vectors, from helpers/model.py")

# %% [markdown]
# **Schedule.** The learning rate climbs during the first steps, while the optimizer's averages are still poor
# (**warm-up**). Then it stays constant, and over the last two fifths of the run it falls linearly to zero, so that the
# last steps make only small corrections ([Hägele et al. 2024](https://arxiv.org/abs/2405.18392)). The curve is a
# trapezoid: at step $t$ of $T$, with a warm-up of $w$ steps, the rate is $\eta\,\min\big(1, \frac{t+1}{w},
# \frac{T-t}{0.4\,T}\big)$.

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
        "Warm-up, plateau and decay of our recipe, beside the constant rate of the baseline "
        "recipe. The matrices of our blocks move at twice the rate that is shown."
    ),
)

# %%
show_source(learning_rate_at, fold="All schedules: learning_rate_at, from helpers/training.py")

# %% [markdown]
# **Optimizer.** The gradient of one batch is noisy, and some parameters have far larger gradients than others. **Adam**
# ([Kingma & Ba 2015](https://arxiv.org/abs/1412.6980)) keeps two running means for each number $\theta$: $m$ of its
# gradient $g$, and $s$ of the gradient's square. It moves the number by the first divided by the root of the second:
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\,g, \qquad s \leftarrow \beta_2 s + (1 - \beta_2)\,g^2, \qquad
# \theta \leftarrow \theta - \eta\,\frac{\hat m}{\sqrt{\hat s} + \epsilon}.$$
#
# Both means start at 0 and are too small at first; $\hat m = m / (1 - \beta_1^n)$ and
# $\hat s = s / (1 - \beta_2^n)$ make up for it after $n$ steps. If all gradients of a number were ten times as large,
# its steps would be the same, apart from $\epsilon$. Steady gradients make long steps, and gradients that keep changing
# their sign make short ones. We compare ten steps by hand with PyTorch's *AdamW* (Adam with a different weight decay,
# which we do not use; [Loshchilov & Hutter 2019](https://arxiv.org/abs/1711.05101)):


# %%
def adam_step(p, state, rate, betas=(0.9, 0.99), eps=1e-8):
    """Move p by its gradient. state: the two running means, and the number of steps."""
    state["n"] += 1
    state["mean"] = betas[0] * state["mean"] + (1 - betas[0]) * p.grad  # as p
    state["square"] = betas[1] * state["square"] + (1 - betas[1]) * p.grad**2  # as p
    mean = state["mean"] / (1 - betas[0] ** state["n"])
    square = state["square"] / (1 - betas[1] ** state["n"])
    p.data -= rate * mean / (square.sqrt() + eps)


# %%
def apart_after_ten(step, make):
    """How far a step by hand and an optimizer are apart after ten steps on random gradients."""
    torch.manual_seed(0)
    start = torch.randn(5, 4)  # (5, 4)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer, state = make(theirs), {"n": 0, "mean": 0.0, "square": 0.0}
    for _ in range(10):
        ours.grad = theirs.grad = torch.randn(5, 4)  # (5, 4)
        step(ours, state, 0.01)
        optimizer.step()
    return (ours - theirs).abs().max().item()


# %%
apart = apart_after_ten(
    adam_step, lambda p: torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
)
claim(f"Adam by hand and PyTorch's differ by ≈{apart:.0e}, less than 1e-6", apart < 1e-6)

# %% [markdown]
# Adam treats each number separately. But a matrix is more than a list of numbers. It is a sum of *directions*, each
# with a strength, its **singular value**, and a gradient has a few strong directions and many weak ones. **Muon**
# ([Jordan et al. 2024](https://kellerjordan.github.io/posts/muon/)) makes the strong ones about equal, and lifts the
# weak ones, before it takes a step. It needs matrix products only. If $X = U \Sigma V^\top$ has the singular values
# $\Sigma$, then $X X^\top X = U \Sigma^3 V^\top$: the values change, and the directions stay. In this way the
# **Newton–Schulz** iteration applies $x \mapsto a x + b x^3 + c x^5$ to all of them, five times. With Jordan's $a$, $b$
# and $c$, a small value grows about 3.4-fold each time, until it is near 1.
#
# The rest resembles Adam: a running mean of the gradient $G$, here with a look one step ahead (Nesterov's momentum). An
# $N \times M$ matrix whose singular values are all 1 has numbers of about $1 / \sqrt{\max(N, M)}$, so a factor of
# $0.2 \sqrt{\max(N, M)}$ would make the step about as long as one of AdamW's ([Liu et al.
# 2025](https://arxiv.org/abs/2502.16982)). (Where many directions stay weak, as in the figure below, it is shorter.)
#
# $$m \leftarrow 0.95\,m + 0.05\,G, \qquad W \leftarrow W - \eta \cdot 0.2 \sqrt{\max(N, M)} \cdot
# \mathrm{NewtonSchulz}(0.95\,m + 0.05\,G).$$


# %%
def newton_schulz(x, a=3.4445, b=-4.7750, c=2.0315):
    """The same directions, with singular values that are nearer to 1. x (N, M)"""
    x = x / x.norm()  # (N, M), now no singular value is above 1
    for _ in range(5):
        xx = x @ x.T  # (N, N)
        x = a * x + (b * xx + c * xx @ xx) @ x  # (N, M)
    return x


def muon_step(p, state, rate):
    """Move a matrix by its gradient. state: the running mean."""
    state["mean"] = 0.95 * state["mean"] + 0.05 * p.grad  # (N, M)
    ahead = 0.95 * state["mean"] + 0.05 * p.grad  # (N, M)
    p.data -= rate * 0.2 * max(p.shape) ** 0.5 * newton_schulz(ahead)


# %%
apart = apart_after_ten(
    muon_step, lambda p: Muon([{"params": [p], "orthogonal": 1}], lr=0.01, weight_decay=0.0)
)
claim(f"Muon by hand and the course's differ by ≈{apart:.0e}, less than 1e-5", apart < 1e-5)

# %%
model = new_model(stories, tokenizer, vectors)
total, count = loss_sum(model, train_ids[:32].long())
(total / count).backward()
gradient = model.blocks[0].attention.output.weight.grad  # (D, D)
model.zero_grad(set_to_none=True)

# %%
before = torch.linalg.svdvals(gradient)  # (D,): the strength of each direction
after = torch.linalg.svdvals(newton_schulz(gradient))  # (D,)
strong = [(values > 0.1 * values.max()).sum().item() for values in (before, after)]

# %% cellView="form" tags=["hide-input"]
claim(
    f"directions above a tenth of the strongest: ≈{strong[0]} before, ≈{strong[1]} after, more "
    "than three times as many",
    strong[1] > 3 * strong[0],
)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        {
            "gradient, largest set to 1": (
                range(1, len(before) + 1),
                (before / before[0]).tolist(),
            ),
            "after Newton–Schulz": (range(1, len(after) + 1), after.tolist()),
        },
        x_label="rank of the direction (each curve sorted by itself)",
        y_label="singular value",
        title="A gradient has few strong directions, its Muon step has dozens",
    ),
    "04_muon",
    alt=(
        "Singular values of a gradient, as shares of the largest, fall to almost nothing after a "
        "few directions; those after Newton–Schulz are near 1 at first and fall slowly, over about "
        "100."
    ),
    caption=(
        "Look where each curve falls below a tenth. The weakest directions stay weak. This is the "
        "gradient of one batch before training, not a running mean."
    ),
)

# %% [markdown]
# The *share* in the training loop is this: Muon moves the matrices of the blocks at twice the rate of all other
# parameters, which AdamW trains. Queries, keys and values count as three matrices. The figure does not show that Muon
# helps; the comparison of recipes below does.

# %%
show_source(Muon, fold="The course's Muon, with AdamW for the other parameters: helpers/muon.py")

# %%
show_source(make_optimizer, fold="Who gets what: make_optimizer, from helpers/training.py")

# %% [markdown]
# ## Names, songs, and heads that follow them
#
# Before we train, we choose what to watch. Some words can be known only from much earlier in the story. One kind is a
# **name** that returns. Another is a **song** whose words mean nothing, as in *"Zim tala pom vero."* Each of these
# words, the **sounds**, is drawn from the twelve that its place in the song allows, all about equally likely. So nobody
# can predict them the first time, not even from the sound before. When the song is sung again, they are certain for a
# reader who remembers it.

# %%
names = words_after(r"\b(?:named|called) ([A-Z]\w+)", stories.train, tokenizer)  # ids
sounds = words_after(r'song, "([^".]+)\.', stories.train, tokenizer)  # ids
singing = np.mean(['song, "' in story for story in stories.train])
print(
    f"{len(names)} names, {len(sounds)} sounds; {singing:.0%} of the training stories have a song"
)

# %% [markdown]
# What could a head do about it? A **pattern** says, at some places of a text, which earlier words a head should read:
#
# - **same name**: if the next word is a name that has been mentioned, its earlier mentions;
# - **previous sound**: at a sound, the sound just before it;
# - **next sound**: at a sound, those that followed its earlier copies. This is the induction head of notebook 02
#   ([Olsson et al. 2022](https://arxiv.org/abs/2209.11895)), within songs. There, a head of an earlier layer had to tell
#   each word what came before it: that is what *previous sound* would be for.
#
# How closely does a head follow a pattern? Let $m$ be the weight that it puts on the pattern's words, and $c$ the
# weight that an even spread would put there, both averaged over the places that the pattern speaks about. The **score**
# is
#
# $$\frac{m - c}{1 - c}.$$
#
# It is 0 for an even spread, 1 if all weight is on the pattern's words, and negative for a head that avoids them. We
# compute one score by hand, for *previous word*, a pattern that asks for the word just before.


# %%
def score(weights, keys):
    """How closely one head (T, T) follows a pattern (T, T) of which words to read."""
    asked = keys.any(1)  # (T,): the places that the pattern speaks about
    even = keys.sum(1) / np.arange(1, len(keys) + 1)  # (T,): by an even spread
    m, c = (weights * keys).sum(1)[asked].mean(), even[asked].mean()  # (), ()
    return (m - c) / (1 - c)


# %%
ids = validation_ids[:1, :32]  # (1, T)
with torch.no_grad():
    _, attention = model(ids.long(), return_attention=True)  # (L, 1, H, T, T)

# %%
keys = pattern_targets(ids[0].tolist(), names, sounds)["previous word"]  # (T, T)
by_hand = score(attention[1, 0, 4].numpy(), keys)
theirs = head_scores(model, ids, names, sounds)["previous word"][1, 4]
claim(f"a score by hand and by `head_scores`: ≈{by_hand:.4f}", abs(by_hand - theirs) < 1e-5)

# %%
show_source(pattern_targets, fold="All patterns: pattern_targets, from helpers/heads.py")

# %% [markdown]
# ## The run
#
# We train for three epochs, with 32 stories per step. The validation loss is measured every 50 steps, and more often at
# the start. Each time we also score all heads, on 32 validation stories. At the first measurement below the unigram
# landmark, and again at the first below the bigram landmark, the model writes sixteen stories from nothing but `<sos>`.

# %%
samples, followed = {}, []


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

# %% cellView="form" tags=["hide-input"]
final = history.rows[-1]["validation_loss"]
crossed = {
    name: next((row["step"] for row in history.rows if row["validation_loss"] < loss), math.inf)
    for name, loss in marks.items()
}
claim(
    f"the landmarks are passed in order: uniform by step ≈{crossed['uniform']}, unigram by "
    f"≈{crossed['unigram']}, bigram by ≈{crossed['bigram']}",
    crossed["uniform"] <= crossed["unigram"] < crossed["bigram"] < math.inf,
)
claim(
    f"the loss ends at ≈{final:.3f} nats, half a nat or more below the bigram",
    final < marks["bigram"] - 0.5,
)
if "entropy floor" in marks:
    gap = final - marks["entropy floor"]
    claim(f"the model ends ≈{gap:.3f} nats per token above the floor, less than 0.1", 0 < gap < 0.1)

# %% [markdown]
# On other text nobody can say how much is left to learn; here we can. When was it learned? Both panels below have a
# logarithmic axis for the step, because most of the change happens early. The upper panel shows the loss, the lower one
# the highest score of any head for each of the three patterns (in stories without songs, for *same name* only).

# %% cellView="form" tags=["hide-input"]
watched = [p for p in ("same name", "previous sound", "next sound") if p in followed[-1]]
curves = {pattern: [float(found[pattern].max()) for found in followed] for pattern in watched}
highest = [max(values) for values in zip(*curves.values(), strict=True)]
first = next((i for i, value in enumerate(highest) if value > 0.3), -1)
covered = marks["bigram"] - history.rows[first]["validation_loss"]
circuit = next(
    (row["step"] for row, x in zip(history.rows, curves[watched[-1]], strict=True) if x > 0.3), None
)
print(
    "the first of the three patterns scores above 0.3 at step "
    f"≈{history.rows[first]['step']}; by then the loss has "
    f"come ≈{100 * covered / (marks['bigram'] - final):.0f} % of the way from the bigram to its end"
)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.loss_and_scores(
        history.rows,
        marks,
        curves,
        (f"a head follows “{watched[-1]}”", circuit) if circuit else None,
        title="Three landmarks come first; heads for names and songs follow",
    ),
    "04_loss",
    alt=(
        "Above: training and validation loss against the step on a logarithmic axis, falling past "
        "the uniform, unigram and bigram lines to the floor. Below: scores of the best heads, "
        "near zero for a long time, then rising."
    ),
    caption=(
        "Follow the vertical line from panel to panel: it marks the first measurement at which a "
        f"head scores above 0.3 for {watched[-1]}. Three landmarks are crossed by then. Early on, "
        "the "
        "training loss lags, because it is a mean over the steps since the last measurement. The "
        "figure does not prove that the heads make the loss fall."
    ),
)

# %% [markdown]
# Both losses fall fast past the unigram landmark (how often each word occurs) and the bigram landmark (which word
# follows which). Then comes the slow part. Most of the way from the bigram to the end is covered before a head follows
# any of the three patterns with a score of 0.3, so most of that came without a head that follows them closely. The
# figure does not show what it was.
#
# The notebooks that follow load a trained model from `checkpoints/` with `load_or_train`. The one for the grammar
# stories comes with the repository, and this run must end at nearly the same loss. For any other corpus, the model of
# this run is saved.

# %% cellView="form" tags=["hide-input"]
place = trained_path(CORPUS, stories)
if CORPUS != "bundled" or not place.exists():
    save_trained(place, model, tokenizer, history, stories)
_, _, then = load_checkpoint(place)
apart = abs(final - then["validation_loss"])
claim(f"this run and the model in {place.parent.name}/ end ≈{apart:.3f} nats apart", apart < 0.03)

# %% [markdown]
# ## What each landmark buys
#
# One sample may be luck, so we measure all sixteen at each of four stages: untrained, at the first measurement below
# the unigram landmark, at the first below the bigram landmark, and trained. How many of their word **pairs** occur in
# the training stories? How many of the **names** in them have been mentioned before in the same story? And the grammar
# judges them: where does a text first say something that **no story could say**, and which are **complete** stories,
# possible from `<sos>` to `<eos>`?


# %%
def measure(texts):
    """Shares of known pairs, and of names that are repeated. texts: lists of ids."""
    pairs = [pair in known_pairs for ids in texts for pair in pairwise(ids)]
    again = [w in ids[:t] for ids in texts for t, w in enumerate(ids) if w in names]
    return {"known pairs": np.mean(pairs), "names again": np.mean(again) if again else 0.0}


def judge(ids):
    """What the grammar says: .broken_at is the place of the first impossible word, or None."""
    return bundled_grammar().judge([tokenizer.word(i) for i in ids])


# %%
known_pairs = {pair for row in train_ids.tolist() for pair in pairwise(row)}
measured = {stage: measure([g.ids for g in kept["generations"]]) for stage, kept in samples.items()}
# For comparison, the validation stories, cut at the same length:
real = [[i for i in row[1:63] if i != tokenizer.pad_id] for row in validation_ids.tolist()]

# %% [markdown]
# **Predict.** Which of these will the model get right as soon as it is below the bigram landmark: pairs, names, whole
# stories? And which only at the end?

# %% cellView="form" tags=["hide-input"]
possible = {}
for stage, kept in samples.items() if CORPUS == "bundled" else ():
    texts = [g.ids for g in kept["generations"]]
    verdicts = [judge(ids) for ids in texts]
    unbroken = [ids for ids, v in zip(texts, verdicts, strict=True) if v.broken_at is None]
    possible[stage] = len(unbroken)
    measured[stage] |= {
        "possible words": float(np.mean([len(v.nats) for v in verdicts])),
        "complete": sum(ids[-1:] == [tokenizer.eos_id] for ids in unbroken),
    }

# %% cellView="form" tags=["hide-input", "hide-output", "nbval-ignore-output"]
rows = measured | {"validation stories": measure(real)}
table(
    [
        [
            stage,
            samples[stage]["step"] if stage in samples else None,
            f"{row['known pairs']:.0%}",
            f"{row['names again']:.0%}",
            f"{row['possible words']:.0f}" if "possible words" in row else None,
            possible.get(stage),
            row.get("complete"),
        ]
        for stage, row in rows.items()
    ],
    ["stage", "step", "known pairs", "names again", "possible words", "possible", "complete"],
    caption=(
        "Sixteen samples at each stage, so a difference of one or two means nothing; last, the "
        "validation stories, cut at the same length. Possible words: how many come before the "
        "first impossible one, on average. Possible: samples without an impossible word, some of "
        "them cut off; complete: those of them that reach their end."
    ),
)


# %% cellView="form" tags=["hide-input"]
def verdict(ids):
    if CORPUS != "bundled":
        return ""
    at, words = judge(ids).broken_at, [tokenizer.word(i) for i in ids]
    end = "complete" if ids[-1] == tokenizer.eos_id else "possible so far, cut off"
    return end if at is None else f"impossible from word {at + 1}, “{words[at]}”"


chosen = {stage: kept["generations"][:1] for stage, kept in samples.items()}
first, *others = samples["trained"]["generations"]
chosen["trained"] = [first, *(g for g in others if g.ids[-1:] == [tokenizer.eos_id])][:4]

# %% cellView="form" tags=["hide-input", "hide-output", "nbval-ignore-output"]
table(
    [[stage, g.text, verdict(g.ids)] for stage, texts in chosen.items() for g in texts],
    ["stage", "a story from nothing", "the grammar's verdict"],
    caption=(
        "The first sample of each stage, and the first three of the trained model's others that "
        "end by themselves."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
pairs = [measured[stage]["known pairs"] for stage in ("untrained", "unigram", "bigram", "trained")]
claim(
    "more pairs are known at each stage: " + ", ".join(f"≈{share:.0%}" for share in pairs),
    pairs == sorted(set(pairs)),
)
if CORPUS == "bundled":
    then, now = (measured[stage] for stage in ("bigram", "trained"))
    claim(
        f"repeated names and complete stories come later: ≈{then['names again']:.0%} of the names "
        f"below the bigram, ≈{now['names again']:.0%} at the end; ≈{then['complete']} and "
        f"≈{now['complete']} stories are complete",
        now["names again"] > then["names again"] and now["complete"] > then["complete"],
    )

# %% [markdown]
# <details><summary>What happened</summary>
#
# Below the unigram landmark, few neighbouring words belong together. Below the bigram landmark most pairs are known,
# but the story forgets whom it is about. Only the trained model repeats names nearly as often as true stories do, and
# writes whole stories that the grammar could have told. About half of its samples still break a rule: somebody appears
# whom nobody has mentioned, for example.
#
# </details>
#
# **A loss says how much has been learned, samples say what.** A high share of known pairs is no merit in itself: a
# model that copied its training stories would score 100 %.
#
# ## Overfitting
#
# In the loss curves above, training and validation stay together as far as the figure shows, probably because stories
# from a grammar contain little that a model could learn by heart. Other stories contain more. **TinyStories** ([Eldan &
# Li 2023](https://arxiv.org/abs/2305.07759)) are short stories in the words of a small child, written by GPT-3.5 and
# GPT-4. The next figure shows the same blocks and recipe, with a larger vocabulary, on ten thousand of them:

# %% cellView="form" tags=["hide-input"]
told = load_numbers("tinystories", "04")["history"] if CORPUS == "bundled" else history.rows
figures.save_figure(
    plots.loss_curves(told, title="Training pulls away from validation, epoch by epoch"),
    "04_overfitting",
    alt=(
        "Training and validation loss on TinyStories over three epochs: the training loss steps "
        "down at each new epoch and ends well below the validation loss, which falls slowly."
    ),
    caption=(
        "Watch the gap between the two lines jump at the start of the second and third epoch. A "
        "recorded run on TinyStories, with one seed."
    ),
)

# %% cellView="form" tags=["hide-input"]
ends = [row for row in told if row["step"] % (told[-1]["step"] // config.epochs) == 0]
gaps = [row["validation_loss"] - row["train_loss"] for row in ends]
print(
    "validation minus training loss, epoch by epoch:",
    ", ".join(f"{gap:.2f}" for gap in gaps),
    "\nvalidation loss:",
    ", ".join(f"{row['validation_loss']:.2f}" for row in ends),
)

# %% [markdown]
# A small gap is there before any story has been read twice. Then the training loss steps down each time the stories
# come round again, because the model begins to memorize them, and the validation loss does not follow. The part
# of the gap that comes with the jumps is **overfitting**. It pays to go on training while the validation loss still
# falls, as it does here.
# (Most TinyStories are cut off at 64 tokens. With a context of 256 the same model reads whole ones: see [07
# Results](07_results.ipynb#Whole-stories).)
#
# ## Does this trick help?
#
# One run cannot answer that, because two runs that differ only in their random numbers end at different losses. Here
# are recorded answers, on TinyStories. The model, the stories and the three seeds are the same for all rows, and all
# but one row of the figure have 300 steps. The zero of the figure is a run with AdamW, at a rate of 0.002 that falls
# along half a cosine ([Loshchilov & Hutter 2017](https://arxiv.org/abs/1608.03983)), from fastText vectors, without
# dropout. Most rows change one thing:
#
# - *Start:* random vectors; fastText vectors in the embedding only, not in the output layer; or *frozen* ones, which are
#   never trained.
# - *Schedule:* the trapezoid from above, or a constant rate.
# - *Optimizer:* Muon on the blocks' matrices, at AdamW's rate (× 1) or twice it (× 2); or *second beta 0.99*, with which
#   Adam's mean of squares reaches back about 100 steps instead of 20.
# - *Regularization*, against overfitting: dropout; *weight decay*, which pulls weights towards zero a little at each
#   step; *label smoothing*, which asks for a probability of only 0.9 for the right word.
#
# *The recipe* is ours: Muon × 2, trapezoid and second beta 0.99. Its steps take longer, so one row gives it a fifth
# fewer of them.
#
# The loss is measured on a **development set**: stories that no run was trained on, and that are not used for any final
# result of this course. If a recipe is chosen and reported on the same stories, it looks better than it is.
#
# **Predict.** Which moves the loss most: the start, the schedule, the optimizer or the regularization?

# %% cellView="form" tags=["hide-input"]
recorded = load_numbers("tinystories", "ablations")["runs"]
base = recorded["AdamW, cosine"]

# %% cellView="form" tags=["hide-input"]
differences = {
    part: {
        name: [run[part] - base[seed][part] for seed, run in runs.items()]
        for name, runs in recorded.items()
        if runs is not base
    }
    for part in ("development", "validation")
}

# %% cellView="form" tags=["hide-input"]
mean = {part: {n: np.mean(v) for n, v in found.items()} for part, found in differences.items()}

# %% cellView="form" tags=["hide-input"]
SHOWN = {
    "the recipe": "the recipe",
    "Muon × 2, trapezoid": "Muon × 2 and trapezoid",
    "Muon × 2": "Muon × 2",
    "the recipe, in the time of AdamW": "the recipe, a fifth fewer steps",
    "trapezoid": "trapezoid",
    "Muon × 1": "Muon × 1",
    "second beta 0.99": "second beta 0.99",
    "weight decay 0.1": "weight decay 0.1",
    "dropout 0.1": "dropout 0.1",
    "label smoothing 0.1": "label smoothing 0.1",
    "constant rate": "constant rate",
    "frozen vectors": "frozen fastText vectors",
    "vectors in the embedding only": "fastText in the embedding only",
    "random start": "random vectors",
}

# %% cellView="form" tags=["hide-input", "hide-output"]
figures.save_figure(
    plots.ranked(
        {label: differences["development"][name] for name, label in SHOWN.items()},
        x_label="nats per token more than AdamW with a cosine (left is better)",
        title="Start, optimizer and schedule decide; dropout hurts",
    ),
    "04_tricks",
    alt=(
        "Bars of the change in loss for fourteen tricks. The recipe lies furthest left, near "
        "minus 0.19; weight decay at zero; dropout, label smoothing and a constant rate right of "
        "it; random vectors furthest right, at 0.23."
    ),
    caption=(
        "Changes to the left of the line help, those to the right hurt. Each point is one seed, "
        "each bar the mean of three. The large differences hold for this model, these stories and "
        "300 steps; neighbours may change places. The figure does not show what helps in a long "
        "run."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
spread = np.median([np.ptp(values) for values in differences["development"].values()])
times = load_numbers("tinystories", "ablations")["seconds"]["tricks"]["the recipe"]["of AdamW's"]
found = mean["development"]
claim(
    "on the development stories, with a fifth fewer steps, the recipe gains "
    f"{-found['the recipe, in the time of AdamW']:.3f} nats, the trapezoid alone "
    f"{-found['trapezoid']:.3f}",
    found["the recipe, in the time of AdamW"] < found["trapezoid"] < 0,
)
print(
    f"a step of the recipe takes {times['low']:.2f} to {times['high']:.2f} times as long as one "
    f"with AdamW\nfrom seed to seed, the difference from AdamW varies by {spread:.3f} nats (range "
    "of "
    "three seeds, median over the tricks)"
)

# %% cellView="form" tags=["hide-input", "hide-output"]
table(
    [
        [
            name,
            f"{x:+.3f}",
            f"{np.ptp(differences['development'][name]):.3f}",
            f"{mean['validation'][name]:+.3f}",
        ]
        for name, x in sorted(mean["development"].items(), key=lambda item: item[1])
    ],
    ["trick", "mean", "range of the seeds", "mean on validation stories"],
    caption=(
        "All tricks that were tried, in nats per token more than AdamW with a cosine. “…” stands "
        "for “Muon × 2, trapezoid, zero start”; zero start means that the last matrix of each part "
        "of a block starts at zero; × is a factor on a learning rate; iterations are those of "
        "Newton–Schulz; averaged weights are those of the last quarter of the steps."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# - **The start** moves the loss most. Most of its gain appears only if the output layer starts from them, too:
#   vectors in the embedding only gain little. Perhaps that layer must otherwise learn which words are alike.
# - **Optimizer and schedule** gain about the same: Muon × 2 gains 0.13 nats, and so does the trapezoid, compared with a
#   constant rate. With a fifth fewer steps, which take at most a tenth longer than AdamW's, the recipe
#   still gains more than the trapezoid alone, which costs no time.
# - **Regularization** does not help here. Weight decay does nothing. In 300 steps the model sees each story at most
#   once and can hardly overfit, so dropout only makes the task harder, and label smoothing asks for
#   probabilities that are not the true ones. In a long run on few stories they may help.
#
# </details>
#
# **What makes an answer.** The difference must be larger than its own variation from seed to seed: here a range of
# about 0.01 nats over three seeds, and up to 0.03 for a few tricks. The stories on which a recipe is chosen must not be
# those on which it is reported. And a trick that costs time must also win in equal time.
#
# Now two **ablations** live, on the stories of this notebook: we take one part of our recipe away, first Muon, then the
# fastText start, and train for 20 steps with 16 stories each.

# %%
live = TrainingConfig(max_steps=20, warmup_steps=10, batch_size=16, validate_every=20)
plain = TrainingConfig.baseline(  # like ours: no <eos> after a story that is cut off
    max_steps=20, batch_size=16, validate_every=20, overwrite_eos=False
)
brief = replace(stories, train=stories.train[:320], validation=stories.validation[:80])


# %%
def last_loss(config, vectors):
    run = train(new_model(stories, tokenizer, vectors), tokenizer, brief, config)
    return run.rows[-1]["validation_loss"]


# %% tags=["nbval-ignore-output"]
trials = {
    "our recipe": last_loss(live, vectors),
    "without Muon": last_loss(replace(live, muon=None), vectors),
    "without fastText": last_loss(live, None),
    "baseline recipe": last_loss(plain, None),
}

# %% cellView="form" tags=["hide-input"]
claim(
    "validation loss after 20 steps: " + ", ".join(f"{n} ≈{x:.2f}" for n, x in trials.items()),
    min(trials["without Muon"], trials["without fastText"]) > trials["our recipe"] + 0.1,
)

# %% [markdown]
# Both parts are worth far more here than any range of the seeds above, which was measured on other stories after 300
# steps. But twenty steps and one seed reward a
# fast start. They cannot show what helps in the long run.
#
# ## A song
#
# Has the model learned to repeat a song? A sound counts as *sung again* if it has followed the same sound before. The
# floor is again what the grammar's true probabilities cost.
#
# **Predict.** Twelve sounds are about equally likely. How many nats does the model lose on each the first time: less
# than 1, about 2.5, or more than 4? And when the song is sung again: nearly as much, half of it, or almost nothing?

# %%
inputs, targets = validation_ids[:, :-1].long(), validation_ids[:, 1:].long()  # (M, T-1) each
is_sound = torch.isin(validation_ids, torch.tensor(sorted(sounds)))  # (M, T)
inside = is_sound[:, 1:] & is_sound[:, :-1]  # (M, T-1): a sound after a sound

# %%
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


# %% cellView="form" tags=["hide-input", "hide-output"]
song = {}
if sounds:
    true = [torch.tensor(nats[: inside.shape[1]]) for nats in stories.validation_nats]
    true = nn.utils.rnn.pad_sequence(true, batch_first=True)  # (M, T-1)
    lost = losses_of_words(len(inputs))  # (M, T-1)
    for name, where in {"the first time": inside & ~again, "sung again": inside & again}.items():
        song[name] = {"model": lost[where].mean().item(), "floor": true[where].mean().item()}
    new, known = song["the first time"], song["sung again"]
    claim(
        f"a new song costs the model ≈{new['model']:.2f} nats per sound, within 0.2 of the floor "
        f"of {new['floor']:.2f}",
        abs(new["model"] - new["floor"]) < 0.2,
    )
    claim(
        f"sung again it costs ≈{known['model']:.2f}, less than 0.3; the floor is "
        f"{known['floor']:.2f}",
        known["model"] < 0.3,
    )

# %% [markdown]
# <details><summary>What happened</summary>
#
# The first time, the model loses about $\ln 12 \approx 2.5$ nats per sound, as even the best model must. The second
# time it loses almost nothing.
#
# </details>
#
# The weights cannot tell which song it will be, because it is drawn anew for each story. Whatever the model knows the
# second time, it has read from the context. Only attention can bring it from there. Let us look for the heads that do.
#
# ## What does each head do?
#
# The model has twenty-four heads, and nobody told them what to look at. Here are the best scores for all patterns of
# the course. *Itself*, *previous word* and *start token* ask for places, whatever word is there; *same word* asks for
# earlier copies of the word, and *after same word* for what followed them.

# %%
scores = head_scores(model, validation_ids[:64], names, sounds)


def best(pattern, scores=scores):
    """The head with the highest score, (layer, head) from 0, and its score."""
    place = np.unravel_index(scores[pattern].argmax(), scores[pattern].shape)
    return place, scores[pattern][place]


# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [
            pattern,
            f"{best(pattern, scores_before)[1]:.2f}",
            f"{best(pattern)[1]:.2f}",
            "{}.{}".format(*(i + 1 for i in best(pattern)[0])),
            ", ".join(f"{i + 1}.{j + 1}" for i, j in np.argwhere(scores[pattern] > 0.3)),
        ]
        for pattern in scores
    ],
    ["pattern", "best score before training", "after", "layer.head", "heads above 0.3"],
    caption=(
        "The best head for each pattern, before and after training, on 64 validation stories: look "
        "at names and sounds. A score says where a head looks, not whether the model needs it."
    ),
)

# %% cellView="form" tags=["hide-input"]
EARLIER, LATER = ("previous sound", "next sound") if sounds else ("previous word", "same word")
for pattern in ("same name", "next sound") if sounds else ("same name",):
    after, before = best(pattern)[1], best(pattern, scores_before)[1]
    claim(
        f"{pattern}: the best head scores ≈{after:.2f}, before training ≈{before:.2f}",
        after > 0.1 > before and (after > 0.3 or not sounds),
    )

# %% [markdown]
# Before training, no head followed a name or a song. Now several do. One of those for *next sound* is even in the first
# layer, where no earlier head can have told it what came before each word. So a high score does not prove that a head
# works like the induction head of notebook 02.
#
# Here are four heads, each the best for its pattern, on sentences of our own. A song comes in the middle of a story, so
# before the third sentence the model reads the beginning of a story, which the pictures leave out.

# %% cellView="form" tags=["hide-input"]
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

# %% cellView="form" tags=["hide-input"]
if sounds:
    heard = torch.tensor([[tokenizer.sos_id, *tokenizer.encode(f"{lead} {SENTENCES[2]}")]])
    with torch.no_grad():
        guesses = model(heard.to(model.output.weight.device))[0].argmax(-1).tolist()  # (T,)
    at = [t for t, i in enumerate(heard[0].tolist()) if tokenizer.word(i) == "zim"][1]
    sung = [tokenizer.word(i) for i in guesses[at : at + 3]]
    claim(
        f"at the second “zim tala pom” the likeliest next words are {', '.join(sung)}",
        sung == ["tala", "pom", "vero"],
    )


# %% cellView="form" tags=["hide-input"]
def show_head(pattern, number, caption):
    text, ((layer, head), _) = SENTENCES[number], best(pattern)
    tokens, weights = attention[text]
    allowed = pattern_targets(ids_of[text], names, sounds)[pattern]  # (T, T)
    allowed[:2] = False  # the first words have hardly anything else to read
    cell = np.unravel_index((weights[layer, head] * allowed).argmax(), allowed.shape)
    title = f"A head that follows “{pattern}”: layer {layer + 1}, head {head + 1}"
    return figures.save_figure(
        attention_plots.heatmap(weights[layer, head], tokens, title=title, marked=[cell]),
        f"04_head_{pattern.replace(' ', '_')}",
        alt=f"Heat-map of the head that follows “{pattern}” best; its largest weight is framed.",
        caption=f"{caption} Framed is the largest weight that fits the pattern.",
    )


# %% cellView="form" tags=["hide-input"]
show_head(
    "same name",
    0,
    "Read the rows of a comma or a full stop before a name: there the head looks at an earlier "
    "mention of that name. One sentence does not show how often it does.",
)

# %% cellView="form" tags=["hide-input"]
show_head(
    EARLIER,
    2,
    "Read the rows of the song: a dark square one step left of the diagonal is the sound before. "
    "This head does it in some rows only.",
)

# %% cellView="form" tags=["hide-input"]
show_head(
    "previous word",
    1,
    "Read one step left of the diagonal: a dark square there is the word before. This head follows "
    "its pattern in part only; its score is far below that of the first picture.",
)

# %% cellView="form" tags=["hide-input"]
show_head(
    LATER,
    2,
    "Read the rows of the song when it is sung again: the square one word after the earlier copy "
    "of the row's word is the sound to come. What the head passes on is not shown.",
)

# %% [markdown]
# All heads at once are in folded cells: how far each looks back and what it reads most, and its picture for the
# sentence with the song. After them come pictures with sliders, which work in Jupyter and Colab. They open on the head
# that scores highest for names: look at its dark squares away from the first column. **Type a sentence of your own**,
# and press Enter.

# %% cellView="form" tags=["hide-input"]
heads = [(layer, h) for layer in range(3) for h in range(model.config.num_heads)]
jobs = {
    place: [p for p in sorted(scores, key=lambda p: -scores[p][place]) if scores[p][place] > 0.3]
    for place in heads
}
keys = validation_ids[:64].long()  # (B, T)
with torch.no_grad():
    _, weights = model(keys.to(model.output.weight.device), return_attention=True)
weights = weights.float().cpu()  # (L, B, H, T, T)

# %% cellView="form" tags=["hide-input"]
places = torch.arange(keys.shape[1])  # (T,)
distance = places[:, None] - places  # (T, T), query minus key
back = (weights * distance).sum(-1)[..., 20:].mean(dim=(1, 3))  # (L, H)

# %% cellView="form" tags=["hide-input"]
real = (keys != tokenizer.pad_id).float()  # (B, T)
received = torch.einsum("lbhts,bt->lhbs", weights, real)  # (L, H, B, T): by each key
even = torch.einsum("bt,ts->bs", real / (places + 1), (distance >= 0).float())  # (B, T)

# %% cellView="form" tags=["hide-input"]
common = [
    i for i in keys.unique().tolist() if i > tokenizer.eos_id and (keys == i).sum() >= 30
]  # special tokens left out
favours = torch.stack(
    [received[..., keys == i].sum(-1) / even[keys == i].sum() for i in common], dim=-1
)  # (L, H, words)

# %% cellView="form" tags=["hide-input"]
reads = {}
for place in heads:
    most = favours[place].argsort(descending=True)[:3].tolist()
    reads[place] = [(tokenizer.word(common[j]), favours[place][j].item()) for j in most]

# %% cellView="form" tags=["hide-input", "hide-output", "nbval-ignore-output"]
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
    ["layer.head", "patterns with a score above 0.3", "words back", "reads most"],
    caption=(
        "Where each head looks: its patterns (a dash means that none has a score above 0.3), how "
        "far it looks back on average from the 21st place on, padding included, and the three "
        "words that it reads most, relative to an even spread, of those that occur 30 times or "
        "more; special tokens are left out."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
tokens, weights = attention[SENTENCES[2]]
notes = {(i + 1, h + 1): "\n".join(jobs[i, h][:2]) for i, h in heads if jobs[i, h]}
figures.save_figure(
    attention_plots.head_grid(weights, tokens, notes=notes, title="Every head, one sentence"),
    "04_heads",
    alt=f"Heat-maps of all {len(heads)} heads for: {SENTENCES[2]}",
    caption=(
        "A small picture for each head, with the words of the pictures of the song above: look "
        "for squares away from the diagonal. Many "
        "heads fit none of the named patterns, and no picture shows what a head passes on."
    ),
)


# %% cellView="form" tags=["hide-input"]
@torch.no_grad()
def read(text):
    ids = [tokenizer.sos_id, *tokenizer.encode(text)][: ModelConfig.context_length]
    given = torch.tensor([ids], device=model.output.weight.device)  # (1, T)
    _, weights = model(given, return_attention=True)
    return [tokenizer.word(i) for i in ids], weights[:, 0].float().cpu().numpy()


# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
flat = {place: note.replace("\n", ", ") for place, note in notes.items()}
explorer = AttentionExplorer(attention, read=read, notes=flat)
explorer.layer.value, explorer.head.value = (int(i) + 1 for i in best("same name")[0])
figures.save_explorer(explorer, "04_attention")

# %% [markdown]
# ## Switch a head off
#
# A score says where a head looks, not whether that matters. What a head passes on depends on the values and the output
# matrix, too. So we set the head's columns of the output matrix to zero, and measure how much worse the model does on
# the words that the head seems to help with.


# %%
@contextmanager
def silenced(*heads):
    """The model without what these heads pass on; afterwards it is as before."""
    matrices = [model.blocks[layer].attention.output.weight.data for layer, _ in heads]
    kept = [matrix.clone() for matrix in matrices]  # (D, H · d) each
    for matrix, (_, head) in zip(matrices, heads, strict=True):
        matrix.unflatten(1, (model.config.num_heads, -1))[:, head] = 0  # (D, H, d)
    yield
    for matrix, before in zip(matrices, kept, strict=True):
        matrix.copy_(before)


def cost_of_silence(*heads):
    """How many nats the loss rises, on each kind of word, when these heads are off."""
    with silenced(*heads):
        losses = losses_of_words(FEW)  # (FEW, T-1)
    return {name: (losses - whole)[places].mean().item() for name, places in where.items()}


# %%
FEW = 80
returning = torch.tensor(
    [
        [w in names and w in row[: t + 1] for t, w in enumerate(row[1:])]
        for row in validation_ids[:FEW].tolist()
    ]
)  # (FEW, T-1)

# %%
where = {"returning names": returning, "the song sung again": again[:FEW]}
where = {name: places for name, places in where.items() if places.any()}
print(", ".join(f"{name}: {places.sum()} words" for name, places in where.items()))

# %% [markdown]
# **Predict.** When a name returns, the best same-name head puts most of its weight on the right one. How much will the
# loss on returning names rise without this head: by about 0.1 nats, by half a nat, or by more than 1?

# %%
whole = losses_of_words(FEW)  # (FEW, T-1)
silence = {place: cost_of_silence(place) for place in heads}

# %% cellView="form" tags=["hide-input", "hide-output", "nbval-ignore-output"]
table(
    [
        [
            name,
            f"{i + 1}.{h + 1}",
            f"{scores[pattern][i, h]:.2f}",
            f"{silence[i, h][name]:+.2f}",
            "the highest score" if (i, h) == best(pattern)[0] else "",
        ]
        for name, pattern in zip(where, ("same name", LATER), strict=False)
        for i, h in dict.fromkeys(
            [*sorted(heads, key=lambda place: -silence[place][name])[:4], best(pattern)[0]]
        )
    ],
    ["loss on", "without", "score for the pattern", "rises by, nats", ""],
    caption=(
        "For each kind of word, the four heads that it needs most, and the head with the highest "
        "score for its pattern (same name for names, next sound for songs). One head is off at a "
        "time; 80 validation stories."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
for name in where:
    costs = sorted(costs[name] for costs in silence.values())
    claim(
        f"{name}: the costliest head costs ≈{costs[-1]:.2f} nats, the median head "
        f"≈{costs[len(costs) // 2]:.2f}",
        costs[-1] > 0.05 > costs[len(costs) // 2],
    )

# %% [markdown]
# <details><summary>What happened</summary>
#
# Without the best same-name head, the loss rises by little more than 0.1 nats. For names, another head has a lower
# score and costs most. For the song the case is even clearer: the head with the highest score for *next sound* costs
# nothing, and one with nearly the same score costs most.
#
# </details>
#
# **A score suggests which head to test, and does not say whether the model needs it.** If you train again on another
# machine, other heads may do the work.
#
# ## Two heads at once
#
# Does the costliest head for the song work as in notebook 02: has a head of the first layer told each sound what came
# before it? If so, it must lose some of its score when such heads are off. We switch off the two heads of the first
# layer that follow *previous sound* most closely, one by one and together, and for comparison the next two. Each time
# we measure the loss on the song, and the score of the costliest head.
#
# **Predict.** Off alone, one of the two costs about 0.2 nats and the other almost nothing. What will both cost
# together: about the sum, less, or several times as much?

# %%
kind = list(where)[-1]  # the song; in stories without songs, the names
late = max(heads[model.config.num_heads :], key=lambda place: silence[place][kind])
one, two, three, four = ((0, int(h)) for h in scores[EARLIER][0].argsort()[::-1][:4])

# %%
together = []
for off in ((), (one,), (two,), (one, two), (three, four)):
    with silenced(*off):
        found = head_scores(model, validation_ids[:64], names, sounds)[LATER][late]
    together.append((off, cost_of_silence(*off)[kind], found))

# %% cellView="form" tags=["hide-input", "hide-output", "nbval-ignore-output"]
table(
    [
        [
            " and ".join(f"{i + 1}.{h + 1}" for i, h in sorted(off)) or "–",
            f"{cost:+.2f}",
            f"{found:.2f}",
        ]
        for off, cost, found in together
    ],
    ["off", f"loss on {kind} rises by, nats", f"score of {late[0] + 1}.{late[1] + 1}, {LATER}"],
    caption=(
        "Compare the fourth row with the two above it: both heads together, and each alone. The "
        "last row is for comparison: the next two heads of the first layer."
    ),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Together the two cost several times the sum of their costs: each makes up for much of the other's absence. With both
# off, the costliest head loses about half of its score for *next sound*; with the two others off it loses none. So it
# depends on these two in part. Whether it does so in the way of notebook 02, and where the other half of its score
# comes from, is open.
#
# </details>
#
# **A head that costs nothing alone may still do a job that is needed,** if another head does it, too. To find out,
# switch off both.
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
        "trials": {name: trials[name] for name in ("our recipe", "baseline recipe")},
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
# - Our recipe is a start from fastText vectors, a high rate that falls late, and Muon on the blocks' matrices. How much
#   each is worth, several seeds can tell; one cannot.
# - What is new in a story, such as a song, can only be read from the context, and the model does read it there.
# - After training, heads follow patterns that none followed before. A score tells where a head looks. Whether it is
#   needed shows when it is switched off, alone and together with heads that can cover for it.
#
# ## What GPT and Llama do differently
#
# - **Text.** They train on far more text, up to trillions of tokens, and see each text once or a few times. Overfitting
#   is then hardly an issue, and newer models leave dropout out.
# - **Optimizer.** AdamW with a cosine was the rule for years. Muon has since trained a model of 16 billion parameters
#   ([Liu et al. 2025](https://arxiv.org/abs/2502.16982)). Schedules that fall late, as ours does, are common (*WSD*, for
#   warm-up, stable, decay).
# - **Batches** hold millions of tokens, spread over thousands of GPUs, each of which holds a part of the model (*data,
#   tensor and pipeline parallelism*; notebook 06 shows the first).
# - **The floor** of their text is unknown. How far the loss can fall is extrapolated from smaller models, with *scaling
#   laws* ([Hoffmann et al. 2022](https://arxiv.org/abs/2203.15556)).
# - **Heads.** We set a head's output to zero, which the other parts never met in training. Research on large models
#   often puts in the head's mean output instead, or its output on another text (*mean ablation*, *activation patching*).
#
# Next: [05 · Decoding](05_decoding.ipynb) turns the model's probabilities into text, in more ways than one.
#
# ## Can you?
#
# 1. Write the loop: which five things does a step do, and in which order?
#    <details><summary>Answer:</summary> Batch, loss, gradient (after setting the old one to zero), clipping, step of the
#    optimizer with the rate of this step.</details>
# 2. A model's loss equals the bigram's. What may it have learned, and what not?
#    <details><summary>Answer:</summary> Overall it predicts no better than a table of word pairs. It may already use more
#    context here and there, and lose as much elsewhere.</details>
# 3. The samples contain known pairs of words, but no name returns. Where on the curve are we?
#    <details><summary>Answer:</summary> Near the bigram or somewhat below it, well above the end.</details>
# 4. A friend reports that dropout improves his loss by 0.01, in one run. What do you ask?
#    <details><summary>Answer:</summary> How far two seeds differ without it, and on which stories it was chosen and
#    measured.</details>
# 5. A head scores 0.9 for a pattern. Is it needed? And if the loss stays the same when it is off, is its job needed?
#    <details><summary>Answer:</summary> A score does not say: switch the head off and measure. If nothing happens,
#    another head may do the same job: switch off both.</details>
#
# ## Exercises
#
# Five tasks with checks that name your mistake, and with solutions: the loss without padding, a training step, warm-up
# and cosine, an experiment with the learning rate, and the judge of a story. About an hour: [exercises for
# 04](exercises/04_training.ipynb).
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
