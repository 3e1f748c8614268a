# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Decoding
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/05_decoding.ipynb)
#
# **Promise.** The model gives a probability to every possible next word. You will turn these probabilities into text in
# four ways, write the sampler, beam search and a cache yourself, and let the grammar judge the results. Then you will
# break the cache in three ways that raise no error, and find out how to detect them.
#
# **You will be able to**
#
# - write the loop that generates text, with temperature, top-k and top-p;
# - write beam search, and say when a wider beam loses;
# - write a cache of keys and values, and say why old ones never change;
# - say what perplexity and BLEU tell you about generated text, and what they cannot;
# - test a cache in a way that reveals mistakes.
#
# **Prerequisites.** [04 · Training](04_training.ipynb). The trained model is read from `checkpoints/`; if there is
# none, it is trained first.
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
import time
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import torch
from IPython.display import display

from helpers import plots
from helpers.decoding import beam_search, filtered_distribution, generate, token_by_token
from helpers.evaluation import (
    against_truth,
    evaluate_continuations,
    judge_continuations,
    quotable,
)
from helpers.explorers import SamplingExplorer
from helpers.grammar import bundled_grammar
from helpers.kv_cache import KVCache
from helpers.notebook import FigureFolder, claim, load_numbers, show_source, table
from helpers.recipe import VALIDATION, load_or_train, made_from
from helpers.stories import load_stories
from helpers.training import encode_stories

# %%
figures = FigureFolder(CORPUS)
recorded = load_numbers("tinystories", "05") if CORPUS == "bundled" else {}  # on real stories
model, tokenizer, metadata = load_or_train(CORPUS)
stories = load_stories(CORPUS, validation=VALIDATION)
device = model.output.weight.device
print(f"{model.num_parameters():,} parameters, trained for {metadata['step']} steps")

# %% [markdown]
# ## One distribution
#
# Here is the beginning of a story. What does the model expect next? (Three of the four special tokens must never be
# generated. `excluded_ids` lists them, and also the rows of the table that hold no word.)

# %%
PROMPT = "Tom was a small boy who had a wise dog named Momo. One sunny"
NEVER = tokenizer.excluded_ids(model.config.vocab_size)


# %%
@torch.no_grad()
def next_logits(ids):
    """The score of every word as the next one after these ids, (V,)."""
    logits = model(torch.tensor([ids], device=device))[0, -1].float().cpu()  # (V,)
    logits[NEVER] = -torch.inf
    return logits


# %%
START = [tokenizer.sos_id, *tokenizer.encode(PROMPT)]
logits = next_logits(START)
order = logits.argsort(descending=True)[:9].tolist()
likeliest = {tokenizer.word(i): i for i in order}

# %% [markdown]
# Four rules choose from the same logits $z$:
#
# - **greedy** always takes the likeliest word;
# - **temperature** $\tau$ draws from $\mathrm{softmax}(z / \tau)$. Below 1 the likely words gain, above 1 the unlikely ones;
# - **top-k** keeps only the $k$ likeliest words;
# - **top-p**, the nucleus ([Holtzman et al. 2020](https://arxiv.org/abs/1904.09751)), keeps the fewest words whose probabilities sum to
#   $p$ or more. If the model is sure, that is one word; if not, it is many.
#
# Here are the two filters in code. They set the scores of the words that they remove to $-\infty$.


# %%
def keep_top_k(logits, k):  # (V,) -> (V,)
    kept = logits.topk(k)  # (k,) each
    return torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)


# %%
def keep_top_p(logits, p):  # (V,) -> (V,)
    ranked, words = logits.softmax(-1).sort(descending=True)  # (V,) each
    likelier = ranked.cumsum(-1) - ranked  # (V,), the probability of all likelier words
    return logits.index_fill(-1, words[likelier >= p], -torch.inf)


# %% [markdown]
# **Predict.** Which of the rules keep the *ratios* between the probabilities of the words that remain, and which change
# them?

# %%
rules = {
    "as it is": logits.softmax(-1),
    "greedy": keep_top_k(logits, 1).softmax(-1),
    "temperature 0.5": (logits / 0.5).softmax(-1),
    "temperature 1.5": (logits / 1.5).softmax(-1),
    "top-k 3": keep_top_k(logits, 3).softmax(-1),
    "top-p 0.8": keep_top_p(logits, 0.8).softmax(-1),
}  # {rule: (V,)}

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.distributions(
        list(likeliest),
        {name: probabilities[order].tolist() for name, probabilities in rules.items()},
        title=f"The next word after “… {PROMPT[-9:]}”",
    ),
    "05_distribution",
    alt=(
        "Bars: the probabilities of the nine likeliest next words under six rules. Low "
        "temperature and filters raise the likeliest."
    ),
    caption=(
        "Six rules on the same logits. A filter sets the small bars to exactly 0; a "
        "temperature never does."
    ),
)

# %%
ratio = {name: (p[order[0]] / p[order[1]]).item() for name, p in rules.items()}

# %%
claim(
    f"the likeliest word is ≈{ratio['as it is']:.2f} times as likely as the second, ≈"
    f"{ratio['top-k 3']:.2f} times after top-k, ≈{ratio['temperature 0.5']:.2f} times at "
    "temperature 0.5: the filter keeps the ratio, the temperature squares it",
    math.isclose(ratio["as it is"], ratio["top-k 3"], rel_tol=1e-4)
    and math.isclose(ratio["as it is"] ** 2, ratio["temperature 0.5"], rel_tol=1e-4),
)

# %% [markdown]
# Temperature changes the ratios, but never rules a word out. The two filters remove words and scale up the rest, so the
# ratios stay the same. This is one place in one story, where many words are possible. How often is there hardly a
# choice?

# %%
held_out_ids = encode_stories(
    tokenizer, stories.validation[:100], model.config.context_length
)  # (N, T)
with torch.no_grad():
    largest = model(held_out_ids[:, :-1].long().to(device)).softmax(-1).amax(-1).cpu()  # (N, T-1)
sure = (largest[held_out_ids[:, 1:] != tokenizer.pad_id] > 0.9).float().mean().item()

# %%
print(f"in 100 stories, the likeliest word has a probability above 0.9 at {sure:.0%} of places")

# %% [markdown]
# At such a place top-p 0.9 leaves one word, and top-k 8 still leaves eight. Try them together (live in Jupyter and Colab):

# %%
SamplingExplorer(lambda *setting: filtered_distribution(logits, *setting).numpy(), likeliest)

# %% [markdown]
# ## Word by word
#
# To write a text, we repeat three steps (score, choose, append) until `<eos>` or a limit is reached. To *draw* a word
# with the right probability, we take a random number between 0 and 1, and walk along the words, adding up their
# probabilities, until the sum exceeds that number.


# %%
def write(ids, limit, uniform=None, temperature=1.0, top_k=None, top_p=None):
    """New ids after these. `uniform` returns a random number for each draw; None means greedy."""
    ids, given = list(ids), len(ids)
    while len(ids) < given + limit and ids[-1] != tokenizer.eos_id:
        logits = next_logits(ids) / temperature  # (V,)
        if top_k is not None:
            logits = keep_top_k(logits, top_k)  # (V,)
        if top_p is not None:
            logits = keep_top_p(logits, top_p)  # (V,)
        if uniform is None:
            ids.append(logits.argmax().item())
        else:
            upto = logits.softmax(-1).double().cumsum(-1)  # (V,)
            ids.append(torch.searchsorted(upto, uniform() * upto[-1:], right=True).item())
    return ids[given:]


# %% [markdown]
# That is all. The course's `generate` writes many texts at once, keeps what it has computed (see *The cache* below),
# and drops a row once its text has ended. Each prompt has its own random stream, which depends on the seed and on the
# prompt's place in the list. Given the same random numbers, the two must write the same words:

# %%
settings = {
    "greedy": {},
    "temperature 0.7": {"temperature": 0.7},
    "top-k 8": {"top_k": 8},
    "top-p 0.9": {"top_p": 0.9},
}
same = []
for name, options in settings.items():
    stream = torch.Generator().manual_seed(5)
    draw = lambda stream=stream: torch.rand(1, generator=stream, dtype=torch.float64)
    ours = write(START, 40, None if name == "greedy" else draw, **options)
    how = {"strategy": "greedy"} if name == "greedy" else options
    theirs = generate(model, tokenizer, [PROMPT], max_new_tokens=40, seed=5, **how)[0].ids
    same.append(ours == theirs)

# %%
claim(f"{len(same)} texts by hand are those of `generate`, word for word", all(same))

# %%
show_source(token_by_token, fold="The course's loop, from helpers/decoding.py")

# %% [markdown]
# What does each rule write? Read for meaning: who does what, and does the next sentence agree?

# %%
PROMPTS = ["Once upon a time, there was a", "Mia was a little girl who", "Tom was sad because"]
how = {
    "greedy": {"strategy": "greedy"},
    "temperature 0.7": {"temperature": 0.7, "seed": 0},
    "temperature 1": {"seed": 0},
    "temperature 1.3": {"temperature": 1.3, "seed": 0},
    "top-k 8": {"top_k": 8, "seed": 0},
    "top-p 0.9": {"top_p": 0.9, "seed": 0},
}
texts = {
    name: generate(model, tokenizer, PROMPTS, max_new_tokens=40, **options)
    for name, options in how.items()
}
alone = {
    name: generate(model, tokenizer, PROMPTS[:1], max_new_tokens=40, **options)[0].ids
    for name, options in how.items()
}

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [name, prompt, found.text]
        for name in texts
        for prompt, found in zip(PROMPTS, texts[name], strict=True)
    ],
    ["rule", "prompt", "continuation"],
    caption="The same three prompts under every rule.",
)

# %%
claim(
    "a text does not depend on its neighbours: the first of three is the same if written alone",
    all(ids == texts[name][0].ids for name, ids in alone.items()),
)

# %%
unknown = [
    w for p in PROMPTS for w in tokenizer.split(p) if tokenizer.encode(w) == [tokenizer.unk_id]
]

# %%
print("words of the prompts that the model does not know:", ", ".join(unknown) or "none")

# %% [markdown]
# **Greedy** texts hardly vary: they tell of the likeliest friends and the likeliest animals. Sampled texts differ more.
# At temperature **0.7** and with either filter, most sentences agree with each other: pronouns fit, and friends and
# songs keep their names. At **1** a sentence goes wrong here and there, and at **1.3** even people change. The **last
# prompt** shows a limit of the model. If a word is not in its vocabulary, the model reads `<unk>`, and continues as it
# would after some other word that can stand there. It has learned these stories, not English.
#
# ## The grammar as a judge
#
# Could such a text be a story at all? For real stories, a person or a larger model has to read the text and decide. For
# the grammar stories, the grammar can decide: after any beginning it knows every word that may come next, and the exact
# probability of each. A text becomes **impossible** at the first word that has probability zero there, such as the name
# of somebody who is not in the story.

# %%
GRAMMAR = bundled_grammar() if CORPUS == "bundled" else None  # other stories have no known grammar
if GRAMMAR:
    story = stories.validation[0]
    other = story.replace(story.split()[0], "Tom", 1)
    judged, changed = GRAMMAR.judge(story), GRAMMAR.judge(other)
    words = tokenizer.split(other)
    print(story)
    claim(f"the story is complete; it costs {judged.nats.sum():.1f} nats", judged.complete)
    claim(
        f"with another name at the start it becomes impossible at word {changed.broken_at}, “"
        f"{words[changed.broken_at]}”",
        changed.broken_at is not None,
    )

# %% [markdown]
# First we judge the model itself, before any rule chooses from its probabilities. At each word of a story we know two
# distributions: $p$, the grammar's, and $q$, the model's.
# Their **Kullback–Leibler divergence** $\sum_w p(w) \ln \frac{p(w)}{q(w)}$ is how much more the model loses there than
# the grammar would, averaged over the words that may come next. So its mean over many stories should equal the mean
# loss minus the mean of $-\ln p$: the gap to the floor of notebook 04, measured in another way. (The divergence is
# never negative, and zero only if $q = p$.) The two means agree if they differ by no more than a few *standard errors*;
# one standard error is the typical chance deviation of a mean of so many numbers.

# %%
if GRAMMAR:
    truth = against_truth(model, tokenizer, GRAMMAR, stories.validation[:400])
    noise = truth["loss"] - truth["truth"] - truth["divergence"]  # (positions,)
    error = noise.std() / math.sqrt(len(noise))
    gap, divergence = (truth["loss"] - truth["truth"]).mean(), truth["divergence"].mean()
    impossible = 100 * truth["impossible"].mean()

# %%
if GRAMMAR:
    claim(
        f"over {len(noise):,} words the loss less the true loss is ≈{gap:.4f} nats, the divergence "
        f"≈{divergence:.4f}: ≈{abs(noise.mean()) / error:.1f} standard errors apart, fewer than 3",
        abs(noise.mean()) < 3 * error and len(noise) >= 20_000,
    )
    claim(
        f"impossible words get ≈{impossible:.1f} % of the probability, less than 5 %",
        impossible < 5,
    )

# %% [markdown]
# Now we judge the rules. Each continues the first five words of 200 validation stories until the story ends or the
# context is full. A continuation is
# **possible** if no word of it is impossible.
#
# **Predict.** Which rule writes the most possible stories, and which the fewest? How large is the difference?

# %%
SEEDS = 4 if CORPUS == "bundled" else 10
protocol = {
    "greedy": [{"strategy": "greedy"}],
    "beam search, 5": [{"strategy": "beam", "num_beams": 5}],
    "beam search, 10": [{"strategy": "beam", "num_beams": 10}],
    "temperature 0.7": [{"temperature": 0.7, "seed": seed} for seed in range(SEEDS)],
    "temperature 1": [{"seed": seed} for seed in range(SEEDS)],
    "temperature 1.3": [{"temperature": 1.3, "seed": seed} for seed in range(SEEDS)],
    "top-k 8": [{"top_k": 8, "seed": seed} for seed in range(SEEDS)],
    "top-p 0.9": [{"top_p": 0.9, "seed": seed} for seed in range(SEEDS)],
}
verdicts = {}
for name in [name for name in protocol if GRAMMAR and name != "beam search, 10"]:
    two_hundred = stories.validation[:200]
    continued = evaluate_continuations(model, tokenizer, two_hundred, **protocol[name][0])
    verdicts[name] = judge_continuations(GRAMMAR, tokenizer, continued)

# %%
if verdicts:
    percent = {
        name: 100 * np.array([v["possible"], v["low"], v["high"]]) for name, v in verdicts.items()
    }
    picture = figures.save_figure(
        plots.bars(
            {name: shares[0] for name, shares in percent.items()},
            x_label="possible continuations, per cent of 200",
            title="More randomness, fewer possible stories",
            intervals={name: shares[1:] for name, shares in percent.items()},
        ),
        "05_possible",
        alt=(
            "Bars with intervals: the share of possible continuations under seven rules. "
            "Temperature 1.3 is far below the others."
        ),
        caption=(
            "The lines are 95 % intervals (Wilson). A possible continuation is one that the "
            "grammar can write; it need not be a good one."
        ),
    )
    display(picture)

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [
            name,
            f"{v['possible']:.0%}",
            f"{v['low']:.0%} to {v['high']:.0%}",
            f"{v['words']:.0f}",
            f"{v['nats']:.2f}",
        ]
        for name, v in verdicts.items()
    ],
    [
        "rule",
        "possible",
        "95 % interval",
        "words before the first impossible one",
        "true cost, nats",
    ],
    caption=(
        "200 continuations for each rule, judged by the grammar. The true cost is a mean over "
        "the words before the first impossible one."
    ),
)

# %%
if verdicts:
    cool, plain, hot = (verdicts[f"temperature {t}"] for t in ("0.7", "1", "1.3"))
    claim(
        f"possible continuations fall from ≈{100 * cool['possible']:.0f} % at temperature 0.7 to "
        f"≈{100 * plain['possible']:.0f} % at 1 and ≈{100 * hot['possible']:.0f} % at 1.3",
        cool["possible"] > plain["possible"] and plain["low"] > hot["high"],
    )

# %% [markdown]
# **One impossible word is enough.** At temperature 1 there is a small chance (the one above) of an impossible word at
# every step, and over fifty words these chances add up. So a rule that makes unlikely words rarer, or cuts them off,
# helps a lot. The *true cost* shows the price. It is the mean of $-\ln p$ up to the first impossible word. Rules that
# choose likely words write what the grammar finds likely, too, and lose some of the variety of its stories.
# (The number of words is a median over the failed texts.)
#
# Do the texts end? A certain share of the training stories fits into the context, and texts written from nothing at
# temperature 1 should fit as often.

# %%
train_ids = encode_stories(tokenizer, stories.train, model.config.context_length)  # (N, T)
if GRAMMAR:
    room = model.config.context_length - 1
    thousand = generate(model, tokenizer, [""] * 1000, max_new_tokens=room, seed=0)
    ended = float(np.mean([one.ids[-1] == tokenizer.eos_id for one in thousand]))
    fits = (train_ids == tokenizer.eos_id).any(1).float().mean().item()
    claim(
        f"≈{100 * ended:.1f} % of 1,000 texts end within the context, and {fits:.1%} of the "
        "training stories do; the difference is less than 5 points",
        abs(ended - fits) < 0.05,
    )

# %% [markdown]
# ## Fifty stories, two numbers
#
# Without a grammar we have to measure something else. The usual test takes the first five words of 50 validation
# stories as prompts, and reports two numbers for each rule.
#
# - **Perplexity of what was written**: $e$ to the power of the mean of $-\ln q$ under the model itself, at temperature
#   1; it says how sure the model was of its own words.
# - **BLEU** ([Papineni et al. 2002](https://aclanthology.org/P02-1040/)), from 0 to 100, compares the text with the
#   true continuation: what share of its words, pairs, triples and quadruples also occur there? BLEU is the geometric
#   mean of the four shares, lowered if the text is too short. The counts of all stories are added up first. (We use
#   sacrebleu's version ([Post 2018](https://aclanthology.org/W18-6319/)); the prompt
#   does not count.)
#
# We compare the rules with two references: the true continuation, and the text of a *trigram* model, which has no
# network. It draws the next word according to how often that word followed the last two in training.
#
# **Predict.** Which text will have the lowest perplexity: the true one, the sampled one or the greedy one? And will it
# be the best text?

# %%
tables = [defaultdict(Counter) for _ in range(3)]  # {0, 1 or 2 tokens before: {token: how often}}
for row in train_ids.tolist():
    for before, counts in enumerate(tables):
        for end in range(before, len(row) - row.count(tokenizer.pad_id)):
            counts[tuple(row[end - before : end])][row[end]] += 1


# %%
def trigram(ids):
    """Probabilities (V,) of the next token, each table smoothed towards the one before it."""
    probabilities = np.full(model.config.vocab_size, 1 / model.config.vocab_size)  # (V,)
    for before, counts in enumerate(tables):
        seen = counts.get(tuple(ids[len(ids) - before :]), {})
        probabilities = probabilities / (sum(seen.values()) + 1)  # (V,)
        probabilities[list(seen)] += np.array([*seen.values()]) / (sum(seen.values()) + 1)
    probabilities[NEVER] = 0
    return probabilities / probabilities.sum()


# %%
def trigram_writer(seed):
    rng = np.random.default_rng(seed)

    def write(ids, limit):
        new = []
        while len(new) < limit and tokenizer.eos_id not in new:
            new.append(int(rng.choice(model.config.vocab_size, p=trigram(ids + new))))
        return new

    return write


# %% [markdown]
# A sampled text is only one of many possible draws, so each sampling rule writes several, each with its own seed: four
# here, ten in the recording on TinyStories. The intervals say what fifty other stories and other seeds might have
# given. (They come from a *bootstrap*: we draw stories and seeds with replacement, many times, and see how far the
# numbers move.)

# %%
held_out = stories.validation[:50]
runs = {"the true continuation": [{"strategy": "true"}]} | protocol
runs["trigram model"] = [{"writer": trigram_writer(seed)} for seed in range(SEEDS)]
scored = {}
for name, ways in runs.items():
    first, *more = (evaluate_continuations(model, tokenizer, held_out, **way) for way in ways)
    scored[name] = sum(more, start=first)

# %%
measured = {
    name: {
        "perplexity": found.perplexity,
        "bleu": found.bleu,
        "mean_story_bleu": found.mean_story_bleu,
        "intervals": found.intervals(),
        "texts": len(found.generations),
        "ended": sum(one.ids[-1:] == [tokenizer.eos_id] for one in found.generations),
    }
    for name, found in scored.items()
}


# %%
def score_table(measured):
    rows = []
    for name, found in measured.items():
        row = [name]
        for measure, digits in (("perplexity", 2), ("bleu", 1)):
            low, high = found["intervals"][measure]
            row += [f"{found[measure]:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"]
        rows.append(row)
    return table(
        rows,
        ["continuation", "perplexity", "95 % interval", "BLEU", "95 % interval"],
        caption=(
            "Fifty prompts: perplexity and BLEU of the continuations, with bootstrap intervals "
            "over the prompts."
        ),
    )


# %% tags=["nbval-ignore-output"]
score_table(measured)

# %%
greedy, sampled, hot, true, simple = (
    measured[name]["perplexity"]
    for name in (
        "greedy",
        "temperature 1",
        "temperature 1.3",
        "the true continuation",
        "trigram model",
    )
)

# %%
claim(
    f"perplexity rises with randomness: greedy ≈{greedy:.2f}, temperature 1 ≈{sampled:.2f}, 1.3 "
    f"≈{hot:.2f}",
    greedy < sampled < hot,
)

# %%
claim(
    f"greedy text is less surprising than the truth (≈{true:.2f}), trigram text far more "
    f"(≈{simple:.1f})",
    greedy < true < simple,
)

# %% [markdown]
# Here is the same table for real stories, recorded earlier:

# %%
score_table({name: recorded["continuations"][name] for name in measured} if recorded else measured)

# %% [markdown]
# **Low perplexity is not the aim.** Greedy text, beams, temperature 0.7 and both filters have a *lower* perplexity than
# the true continuation, on both corpora: they surprise the model less than the true text does. If the model's
# probabilities are right, text drawn at temperature 1 should surprise it about as much as the true text. It comes
# closer to this on the grammar stories than on the real ones.
#
# BLEU against one true continuation is low for every rule, because after five words a story can go anywhere. On real
# stories, rules with less randomness score higher. And BLEU does not show whether a story makes sense: the trigram text
# does not, and scores nearly as well. The grammar told apart rules whose BLEU intervals overlap.
#
# ## Beam search
#
# Greedy takes the best *next* word. The best *text* may begin with a second-best word. **Beam search** keeps the $k$ likeliest beginnings,
# extends each by every word, and keeps the $k$ likeliest again. Here it is without a batch or a cache:


# %%
def candidates_of(beams, start, width):
    """The 2 · width best extensions, as (log-probability, ids, the beam that it extends)."""
    found = []
    for place, (total, ids) in enumerate(beams):
        scores = next_logits([*start, *ids]).log_softmax(-1)  # (V,)
        best = scores.topk(2 * width)
        for score, word in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            found.append((total + score, [*ids, word], place))
    return sorted(found, key=lambda candidate: -candidate[0])[: 2 * width]


# %%
def slow_beams(start, width, steps):
    """The likeliest beginnings of `steps` words, best first; and the candidates of each step."""
    beams, history = [(0.0, [])], []
    for _ in range(steps):
        history.append(candidates_of(beams, start, width))
        beams = [(total, ids) for total, ids, _ in history[-1][:width]]
    return beams, history


# %%
WIDTH, STEPS = 3, 5
beams, history = slow_beams(START, WIDTH, STEPS)
beam = {"strategy": "beam", "num_beams": WIDTH}
fast = generate(model, tokenizer, [PROMPT], max_new_tokens=STEPS, **beam)[0].beams

# %%
claim(
    f"the {WIDTH} beams of `generate` are those of the slow search",
    [one.ids for one in fast] == [ids for _, ids in beams],
)

# %% [markdown]
# `generate` does the same for many prompts at once: all beams of all prompts are rows of one batch. It ranks twice as
# many candidates as there are beams, because up to `width` of them may end in `<eos>`. If one of the `width` best has
# ended, it is set aside with its score, and the search for a prompt stops when no running beam can still beat those set
# aside.

# %%
show_source(beam_search, fold="The course's beam search, from helpers/decoding.py")

# %%
tree = [
    [
        (place, tokenizer.word(ids[-1]), total, i < WIDTH)
        for i, (total, ids, place) in enumerate(step)
    ]
    for step in history
]

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.beam_tree(tree, title=f"Three beams after “… {PROMPT[-9:]}”"),
    "05_beams",
    alt=(
        "A tree from left to right: at each of five steps six candidate words with their "
        "log-probabilities, three of them kept."
    ),
    caption=(
        "Each column is one step; the three kept beams are drawn in blue. The numbers are "
        "sums of log-probabilities, so along a path they can only fall."
    ),
)

# %% [markdown]
# Each column is a step, with the best candidate on top; the number is the log-probability of the whole beginning, and blue boxes are
# kept. Follow greedy's path, which always takes the best next word. Here it stays on top; in general it need not. In
# other trees all blue boxes of a column have the same parent: the other beginnings have been dropped, and the search
# continues from a single one, however wide it is.
#
# **Length.** Every word lowers the log-probability, so long texts are at a disadvantage.
# The **length penalty** $\alpha$ compares
# $\log p \,/\, \text{length}^{\alpha}$ instead ([Wu et al. 2016](https://arxiv.org/abs/1609.08144), section 7, use a similar formula).
# Since $\log p$ is negative, a *larger* $\alpha$ favours *longer* texts. Here are two texts that have ended, with
# made-up numbers:

# %%
finished = {"short": (-6.0, 4), "long": (-9.0, 8)}  # log-probability, tokens
scored_by = {
    alpha: {name: total / length**alpha for name, (total, length) in finished.items()}
    for alpha in (0.0, 0.5, 1.0)
}

# %% cellView="form" tags=["hide-input"]
table(
    [
        [f"{alpha:g}", *(f"{value:.2f}" for value in found.values()), max(found, key=found.get)]
        for alpha, found in scored_by.items()
    ],
    ["α", "short: −6 nats, 4 tokens", "long: −9 nats, 8 tokens", "wins"],
    caption="Two candidates and three exponents: the length penalty decides which wins.",
)

# %% [markdown]
# `generate` uses $\alpha = 1$ unless told otherwise. Does it matter? Five beams continue fifty beginnings, once with
# $\alpha = 0$ and once with $\alpha = 1$. We count the prompts for which both texts end but differ:

# %%
by_length = [
    evaluate_continuations(
        model, tokenizer, held_out, strategy="beam", num_beams=5, length_penalty=alpha
    )
    for alpha in (0.0, 1.0)
]
pairs = list(zip(by_length[0].prompts, *(found.generations for found in by_length), strict=True))
differ = [
    (prompt, short.text, long.text)
    for prompt, short, long in pairs
    if short.ids != long.ids and short.ids[-1] == long.ids[-1] == tokenizer.eos_id
]

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    differ[:2],
    ["prompt", "α = 0", "α = 1"],
    caption="Prompts for which the length penalty changes the story that is chosen.",
)

# %%
if GRAMMAR:
    claim(f"for ≈{len(differ)} of 50 prompts (at least one) both texts end and differ", differ)

# %% [markdown]
# **A wider beam is not always better**, even by its own measure. A beginning that would have led to the best text can
# be pushed out by others that look better for a while. Below, the beginnings of a hundred stories are continued by 30
# words, and the texts are compared by $\log p$ itself ($\alpha = 0$).
#
# **Predict.** For how many of the hundred prompts will five beams find a likelier text than greedy? And for how many
# will ten beams beat five?

# %%
hundred = [" ".join(tokenizer.split(text)[:5]) for text in stories.validation[:100]]
found = {
    width: generate(
        model,
        tokenizer,
        hundred,
        max_new_tokens=30,
        strategy="beam",
        num_beams=width,
        length_penalty=0.0,
    )
    for width in (1, 2, 5, 10)
}
gains, widths_compared = {}, {}
for narrow, wide in ((1, 2), (1, 5), (2, 5), (5, 10)):
    both = zip(found[narrow], found[wide], strict=True)
    gain = np.array([b.logprob - a.logprob for a, b in both])  # (100,)
    gains[narrow, wide] = gain
    widths_compared[f"{narrow} and {wide}"] = {
        "likelier": int((gain > 1e-3).sum()),
        "same": int((abs(gain) <= 1e-3).sum()),
        "less likely": int((gain < -1e-3).sum()),
        "mean gain": float(gain.mean()),
    }

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [name, *list(row.values())[:3], f"{row['mean gain']:+.2f}"]
        for name, row in widths_compared.items()
    ],
    ["beams", "the wider is likelier", "the same", "less likely", "mean gain, nats"],
    caption=(
        "Two widths on the same hundred prompts: how often the wider beam found a likelier "
        "text, and by how much on average."
    ),
)

# %%
case = int(gains[1, 2].argmin())

# %%
claim(
    f"a wider beam that loses: two beams end ≈{-gains[1, 2][case]:.1f} nats below greedy after “"
    f"{hundred[case]}”",
    gains[1, 2][case] < -0.1,
)
row = widths_compared["2 and 5"]

# %%
claim(
    f"five beams mostly find a likelier text than two: they win ≈{row['likelier']} times and lose "
    f"≈{row['less likely']} times",
    row["likelier"] > row["less likely"],
)

# %% [markdown]
# Here ten beams even lose to five more often than they win: a beginning that looks likelier at first may lead to a
# story that costs more later. So there is no guarantee that beam search finds the likeliest text.
# And likelier text is less varied, and less surprising than the
# truth.
#
# ## Beam search against sampling
#
# We compare beams of 5 and 10 with sampling, on five validation prompts. Speed is the median of five runs in which the
# rules take turns. *Distinct* is the number of different pairs of neighbouring words in the five texts together, as a
# share of all pairs.

# %%
five = stories.validation[:5]
rivals = {
    "sampling": {"seed": 0},
    "greedy": {"strategy": "greedy"},
    "5 beams": {"strategy": "beam", "num_beams": 5},
    "10 beams": {"strategy": "beam", "num_beams": 10},
}
compared = {
    name: evaluate_continuations(model, tokenizer, five, **options)
    for name, options in rivals.items()
}


# %%
def tokens_per_second(runs, repeats=5):
    """Median tokens per second, the runs taking turns. runs: {name: function that counts tokens}"""
    speeds = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            count = run()
            if repeat:  # the first time warms up
                speeds[name].append(count / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in speeds.items()}


# %%
def counted(options):
    return lambda: int(evaluate_continuations(model, tokenizer, five, **options).tokens.sum())


# %%
speeds = tokens_per_second({name: counted(options) for name, options in rivals.items()})


# %%
def distinct(found):
    pairs = [pair for one in found.generations for pair in pairwise(one.ids)]
    return len(set(pairs)) / len(pairs)


# %%
trade = {
    name: {
        "tokens_per_second": speeds[name],
        "bleu": found.bleu,
        "bleu_interval": found.intervals()["bleu"],
        "logprob_per_token": -found.nats.sum() / found.tokens.sum(),
        "distinct_pairs": distinct(found),
    }
    for name, found in compared.items()
}

# %% tags=["nbval-ignore-output"]
print(f"on {device.type}, {torch.get_num_threads()} threads")

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['bleu']:.1f}",
            "{:.0f} to {:.0f}".format(*row["bleu_interval"]),
            f"{row['logprob_per_token']:.2f}",
            f"{row['distinct_pairs']:.2f}",
        ]
        for name, row in trade.items()
    ],
    ["rule", "finished tokens per second", "BLEU", "95 %", "log-probability per token", "distinct"],
    caption=(
        "What a wider beam costs, and what it gains. BLEU knows one true ending among very many."
    ),
)

# %%
certain = min(trade[name]["logprob_per_token"] for name in ("5 beams", "10 beams"))
claim(
    f"beams write likelier text: a log-probability of ≈{certain:.2f} per token or more, sampling "
    f"≈{trade['sampling']['logprob_per_token']:.2f}",
    certain > trade["sampling"]["logprob_per_token"],
)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.bars(
        speeds, x_label="tokens per second (finished text only)", title="Finished tokens per second"
    ),
    "05_beam_speed",
    alt="Bars of tokens per second for sampling, greedy, 5 beams and 10 beams.",
    caption=(
        "Only words before the end of a text count. Measured on the machine that ran this notebook."
    ),
)

# %% [markdown]
# **The trade-off.** For each token five beams read five rows and ten beams ten, but all in one batch; the figure shows
# what that costs on this machine. Beams gain likelihood, and lose variety. BLEU on five prompts settles nothing, as its
# intervals show. So for stories we
# sample. Beams suit tasks with few right answers, such as translation.
#
# ## The cache
#
# To write token 60, the model reads the 59 before it. To write token 61, it reads the same 59 again. Does it have to?
# Because of the causal mask, nothing that is computed at a token depends on later tokens.
# So its keys and values, once computed, never change, and can be kept. In each
# layer, new keys and values are appended to the old ones:


# %%
class CatCache:
    """Keys and values of all tokens read so far, {layer: two of (B, H, S, d)}."""

    def __init__(self):
        self.kept, self.length = {}, 0

    def append(self, layer, keys, values):  # (B, H, T, d) each
        if layer in self.kept:
            old_keys, old_values = self.kept[layer]  # (B, H, S - T, d) each
            keys = torch.cat([old_keys, keys], dim=2)  # (B, H, S, d)
            values = torch.cat([old_values, values], dim=2)  # (B, H, S, d)
        self.kept[layer], self.length = (keys, values), keys.shape[2]
        return keys, values


# %% [markdown]
# The attention layer of notebook 02 calls `append` (through its parameter `remember`), and attends to the keys and
# values that it returns. Reading now has two parts. **Prefill**
# reads the prompt in one pass, and fills the cache. **Decode** reads one new token at a time, and compares its query
# with the stored keys. Queries need no cache, because no later step uses the query of an old token.

# %%
story = torch.tensor([tokenizer.encode_story(stories.validation[0], 40)], device=device)  # (1, T)
caches = {"torch.cat": CatCache(), "the course's": KVCache(model.config, 1, device=device)}
with torch.no_grad():
    whole = model(story)  # (1, T, V)
    in_steps = {}
    for name, cache in caches.items():
        prefill = model(story[:, :10], cache)  # (1, 10, V)
        steps = [model(story[:, t : t + 1], cache) for t in range(10, 40)]  # (1, 1, V) each
        in_steps[name] = torch.cat([prefill, *steps], dim=1)  # (1, T, V)

# %%
for name, logits_of in in_steps.items():
    apart = (logits_of - whole).abs().max().item()
    claim(
        f"{name} cache: prefill and 30 single steps differ from one pass by ≈{apart:.0e}, less "
        "than 1e-4",
        apart < 1e-4,
    )

# %% [markdown]
# `torch.cat` copies all old keys and values at every step. The course's cache sets the memory aside once, and writes
# the new ones into it.

# %%
show_source(KVCache, fold="The course's cache, from helpers/kv_cache.py")

# %%
cache, c = KVCache(model.config, batch_size=20), model.config
formula = 2 * c.num_layers * 20 * c.context_length * c.d_model * 4

# %%
claim(
    f"2 · {c.num_layers} layers · 20 texts · {c.context_length} places · width {c.d_model} · 4 "
    f"bytes = {cache.nbytes:,} bytes; the model has {4 * model.num_parameters():,}",
    cache.nbytes == formula,
)

# %% [markdown]
# Now we continue twenty prompts with and without the cache, to longer and longer texts.
#
# **Predict.** Without the cache, how does the time for one more token change as the text grows? And with it?

# %%
TWENTY = [" ".join(tokenizer.split(text)[:4]) for text in stories.validation[:20]]
LENGTHS = (7, 15, 30, 59)


# %%
def ids_of(use_cache, length, **options):
    found = generate(
        model, tokenizer, TWENTY, max_new_tokens=length, use_cache=use_cache, **options
    )
    return [one.ids for one in found]


# %%
def count_of(use_cache, length):
    return lambda: sum(map(len, ids_of(use_cache, length, strategy="greedy")))


# %%
speed = {
    n: tokens_per_second(
        {"with cache": count_of(True, n), "without": count_of(False, n)}, repeats=3
    )
    for n in LENGTHS
}

# %%
strategies = {"greedy": {"strategy": "greedy"}, "sampled": {"seed": 0}}
strategies["5 beams"] = {"strategy": "beam", "num_beams": 5}
same = {
    name: ids_of(True, 59, **way) == ids_of(False, 59, **way) for name, way in strategies.items()
}
claim(f"20 texts, {', '.join(same)}: the same words with and without the cache", all(same.values()))

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [
        [n, *(f"{fast[way]:,.0f}" for way in fast), f"{fast['with cache'] / fast['without']:.1f} ×"]
        for n, fast in speed.items()
    ],
    ["new tokens", "with cache, tokens/s", "without", "ratio"],
    caption="Median speed of alternating runs. The longer the text, the more the cache saves.",
)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        {way: (LENGTHS, [speed[n][way] for n in LENGTHS]) for way in ("with cache", "without")},
        x_label="new tokens per text",
        y_label="tokens per second, 20 texts",
        title="Tokens per second with and without a cache",
        from_zero=True,
    ),
    "05_cache_speed",
    alt="Tokens per second against text length: a line with the cache, and one without it.",
    caption=(
        "Without a cache, every new word reads the whole text again, so the line falls. "
        "Measured on the machine that ran this notebook."
    ),
)

# %% [markdown]
# We can also count. After a prompt of $m$ tokens, $n$ new ones take about $mn + n^2/2$ token reads without a cache, and
# $m + n$ with it. So without a cache each token takes more reads than the one before it; with a cache, it takes one.
# The measured ratio is smaller than the ratio of the counts, because one long read uses a processor better than many
# short ones.
#
# ## Beyond the context
#
# The context has 64 places. What about the 65th token?

# %%
try:
    model(torch.zeros(1, model.config.context_length + 1, dtype=torch.long, device=device))
except ValueError as error:
    print(error)

# %% [markdown]
# `generate` stops there. There are two usual answers. A **sliding window** forgets the oldest words. Their keys and values can be dropped
# from a cache only if positions are relative (rotary, say). With our absolute positions, dropping a word moves every
# other word to a new position, so the window has to be read again at each step. The other answer is to train the model,
# or to train it further, with a **longer context**. Here is a window that uses `write` from above:


# %%
def write_on(ids, limit, window=48):
    ids = list(ids)
    for _ in range(limit):
        recent = [tokenizer.sos_id, *ids[-window:]]
        ids += write(recent, 1)  # greedy
    return ids


# %% tags=["nbval-ignore-output"]
far = write_on(START[1:], 100)
print(tokenizer.decode([i for i in far if i != tokenizer.eos_id]))

# %% [markdown]
# The text goes on, but the window begins in mid-sentence, which the model has never seen in training, and anyone who
# has dropped out of the window is forgotten.
#
# ## Three broken caches
#
# A cache that is wrong does not crash. Here are three mistakes:
#
# 1. **positions start again**: each new token is read as if it stood at position 0;
# 2. **never filled**: the cache stays empty, so a new token sees only itself, at position 0;
# 3. **another row's keys**: each row continues with its neighbour's keys and values, as happens if the beams are
#    reordered but the cache is not.
#
# **Predict.** Which of them will you notice by reading the text?


# %%
def right(cache, tokens, number):
    return model(tokens, cache)[:, -1]  # (B, V)


# %%
def positions_again(cache, tokens, number):
    positions = model.positions.clone()  # (T, D)
    model.positions[cache.length] = positions[0]  # for this step
    logits = model(tokens, cache)[:, -1]  # (B, V)
    model.positions.copy_(positions)
    return logits


# %%
def never_filled(cache, tokens, number):
    return model(tokens, KVCache(model.config, len(tokens), device=device))[:, -1]  # (B, V)


def rows_mixed(cache, tokens, number):
    if number == 0:
        cache.reorder(torch.arange(len(tokens), device=device).roll(1))
    return model(tokens, cache)[:, -1]  # (B, V)


# %%
@torch.no_grad()
def greedy_with(step, prompts, count, words=None):
    """Greedy text by step(cache, tokens, number) -> logits; or the logits on given words.

    Returns ids (B, count), and the logits (B, count, V) from which each was chosen.
    """
    start = torch.tensor(prompts, device=device)  # (B, T)
    cache = KVCache(model.config, len(prompts), device=device)
    logits, ids = [model(start, cache)[:, -1]], []  # prefill; (B, V) each
    for number in range(count):
        scores = logits[-1].index_fill(1, out, -torch.inf)  # (B, V)
        ids.append(scores.argmax(-1) if words is None else words[:, number])  # (B,)
        logits.append(step(cache, ids[-1][:, None], number))  # (B, V)
    return torch.stack(ids, 1), torch.stack(logits[:-1], 1)  # (B, count), (B, count, V)


# %%
never = [*NEVER, tokenizer.eos_id]
out = torch.tensor(never, device=device)  # (excluded,)

# %% [markdown]
# Each cache writes thirty words after the same twenty openings. We measure two things: how many of the pairs of
# neighbouring words occur in the training stories, and how far the logits, on the words that the right cache chose, are
# from those of one pass over the whole text.

# %%
NEW = 30
openings = [" ".join(tokenizer.split(text)[:12]) for text in stories.validation[:20]]
prompts = [[tokenizer.sos_id, *tokenizer.encode(text)] for text in openings]

# %%
known_pairs = {pair for row in train_ids.tolist() for pair in pairwise(row)}
chosen, _ = greedy_with(right, prompts, NEW)  # (B, NEW)
with torch.no_grad():
    whole = torch.cat([torch.tensor(prompts, device=device), chosen], dim=1)  # (B, T + NEW)
    correct = model(whole)[:, len(prompts[0]) - 1 : -1]  # (B, NEW, V)

# %%
ways = {
    "right": right,
    "positions start again": positions_again,
    "never filled": never_filled,
    "another row's keys": rows_mixed,
}
drift, fluent, written_by = {}, {}, {}
for name, step in ways.items():
    texts_of, _ = greedy_with(step, prompts, NEW)  # (B, NEW)
    _, logits_of = greedy_with(step, prompts, NEW, words=chosen)  # (B, NEW, V)
    pairs = [pair in known_pairs for row in texts_of.tolist() for pair in pairwise(row)]
    fluent[name] = float(np.mean(pairs))
    drift[name] = (logits_of - correct).abs().amax(-1).mean(0).tolist()  # (NEW,)
    written_by[name] = tokenizer.decode(texts_of[0].tolist(), after=prompts[0])

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
table(
    [[name, f"{fluent[name]:.0%}", text] for name, text in written_by.items()],
    ["cache", "known pairs, 20 texts", f"written after “{openings[0]}”"],
    caption=(
        "The share of word pairs that occur in training stories, and one text for each cache. "
        "Neither identifies the broken caches reliably."
    ),
)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        {name: (range(1, NEW + 1), values) for name, values in drift.items()},
        x_label="new word",
        y_label="largest logit difference (mean of 20 texts)",
        title="Three broken caches are wrong from the second word on",
    ),
    "05_broken",
    alt=(
        "Largest logit difference from one pass over the text, against the new word, for the "
        "right cache and three broken ones: the broken ones are off from the second word on."
    ),
    caption=(
        "At the first word nothing has been read from the cache yet, so all are right. Even "
        "where the logits are far off, the text may look fluent."
    ),
)

# %%
broken = list(ways)[1:]

# %%
claim(
    f"the right cache stays within ≈{max(drift['right']):.0e} of one pass",
    max(drift["right"]) < 1e-3,
)
claim(
    "the broken ones are right at the first word, and then off by at least "
    + ", ".join(f"≈{min(drift[name][1:]):.1f}" for name in broken),
    all(drift[name][0] < 1e-3 and min(drift[name][1:]) > 0.1 for name in broken),
)
claim(
    f"yet two of them write mostly known pairs: ≈{100 * fluent[broken[0]]:.0f} % and ≈"
    f"{100 * fluent[broken[2]]:.0f} % are known, above 70 %",
    min(fluent[broken[0]], fluent[broken[2]]) > 0.7,
)

# %% [markdown]
# **A broken cache may write fluent text, but its logits always show the mistake.**
# Prefill is right in all three, so the first new word is right. From the second word on the logits are wrong, and no
# error appears. With wrong positions, or with another row's keys, most pairs of words are known from training, and you
# have to read carefully to see what is wrong. (Known pairs are a weak measure: a text that repeats itself has them,
# too.) With an empty cache the next word depends on the last word alone, and the text soon goes round in circles. So do
# not judge a cache by its text. Compare its logits with those of one pass, on a *batch of different texts*: with a
# single text, mixed rows would go unnoticed.

# %% cellView="form" tags=["numbers"]
# @title The numbers that notebook 07 reports
others = () if CORPUS == "bundled" else stories.train  # the bundled stories are ours to quote
searched = generate(model, tokenizer, PROMPTS, max_new_tokens=40, strategy="beam", num_beams=5)
figures.save_numbers(
    "05",
    {
        "made_from": made_from(stories, tokenizer),
        "distribution": {name: p[order].tolist() for name, p in rules.items()},
        "words": list(likeliest),
        "continuations": measured,
        "verdicts": verdicts,
        "prompts": PROMPTS,
        "samples": {
            name: quotable([one.text for one in found], others)
            for name, found in (texts | {"5 beams": searched}).items()
        },
        "beams": trade,
        "widths_compared": widths_compared,
        "cache_speed": speed,
        "cache_bytes": formula,
        "drift": drift,
        "fluent": fluent,
    },
)

# %% [markdown]
# ## Recap
#
# - Generating is a loop: score, choose, append. Temperature changes ratios, top-k and top-p remove words, and greedy
#   takes the likeliest.
# - One impossible word spoils a story, so more randomness means fewer possible stories. The grammar can count them;
#   perplexity and BLEU cannot.
# - Text that surprises the model less than the truth, such as greedy text and beams, is not better than the truth.
# - Beam search mostly finds likelier text than greedy, but it can also lose.
#   A larger length penalty favours longer texts.
# - Old keys and values never change, so a cache can keep them. The text stays the same, and every token is read only
#   once.
# - A broken cache raises no error, and its text may look right at a glance. Logits on a batch show the mistake.
#
# ## What GPT and Llama do differently
#
# - **They sample** with a temperature and top-p, and hardly ever use beams, because the likeliest text is dull. Often
#   another model chooses among several samples.
# - **The cache is the bottleneck.** For long contexts it can be larger than the model. Heads share keys and values ([Ainslie et al.
#   2023](https://arxiv.org/abs/2305.13245)), entries are stored in 8 bits or fewer, and memory is allocated in small
#   pages.
# - **Drafts.** A small model guesses several words ahead, and the large one checks them all in one pass. This gives the
#   same distribution in fewer steps ([Leviathan et al. 2023](https://arxiv.org/abs/2211.17192)).
#
# Next: [06 · Memory](06_memory.ipynb) trains the model with less memory.
#
# ## Can you?
#
# 1. The model gives one word a probability of 0.95. How many words do top-p 0.9 and top-k 8 leave?
#    <details><summary>Answer:</summary> One, and eight.</details>
# 2. When can five beams end with a less likely text than greedy?
#    <details><summary>Answer:</summary> When the beginning of greedy's text is pushed out by five others that look better for a
#    while.</details>
# 3. Why does a cache need keys and values, but no queries?
#    <details><summary>Answer:</summary> A new token's query is compared with all old keys, and reads all old values.
#    Old queries are not used again, and their results do not change.</details>
# 4. Which text would BLEU overrate?
#    <details><summary>Answer:</summary> One that is made of common words and phrases, whether it makes sense or not.</details>
# 5. A cache writes position 0 for every new token. What shows the mistake, and what does not?
#    <details><summary>Answer:</summary> Comparing the logits with those of one pass over the whole text shows it. The
#    text itself may not: it can look fluent.</details>
#
# ## Exercises
#
# Four tasks with checks that name your mistake, and with solutions: temperature and top-k, top-p, one step of beam search, and a cache
# for one head. About an hour: [exercises for 05](exercises/05_decoding.ipynb).
#
# ## References
#
# - [Ainslie et al. 2023](https://arxiv.org/abs/2305.13245), *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
#   Checkpoints*
# - [Holtzman et al. 2020](https://arxiv.org/abs/1904.09751), *The Curious Case of Neural Text Degeneration*
# - [Leviathan et al. 2023](https://arxiv.org/abs/2211.17192), *Fast Inference from Transformers via Speculative Decoding*
# - [Papineni et al. 2002](https://aclanthology.org/P02-1040/), *BLEU: a Method for Automatic Evaluation of Machine Translation*
# - [Post 2018](https://aclanthology.org/W18-6319/), *A Call for Clarity in Reporting BLEU Scores*
# - [Wu et al. 2016](https://arxiv.org/abs/1609.08144), *Google's Neural Machine Translation System*, section 7
