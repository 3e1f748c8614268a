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
    bleu,
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
# Here is the beginning of a story. What does the model expect next? (`excluded_ids` lists what must never be generated:
# `<pad>`, `<sos>`, `<unk>`, and the rows of the output table that stand for no word.)

# %%
PROMPT = "Tom was a small boy who had a wise dog named Momo. One sunny day, he"
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
print("the nine likeliest next words:", ", ".join(likeliest))

# %% [markdown]
# Four rules choose from the same logits $z$:
#
# - **greedy** always takes the likeliest word;
# - **temperature** $\tau$ draws from $\mathrm{softmax}(z / \tau)$. Below 1 the likely words gain, above 1 the unlikely
#   ones;
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
# **Predict.** Take the ratio between the probabilities of the first two words. What becomes of it under top-k 3, and
# what at temperature 0.5: does it stay as it is, is it doubled, or is it squared?

# %%
rules = {
    "as it is": logits.softmax(-1),
    "greedy": keep_top_k(logits, 1).softmax(-1),
    "temperature 0.5": (logits / 0.5).softmax(-1),
    "temperature 1.5": (logits / 1.5).softmax(-1),
    "top-k 3": keep_top_k(logits, 3).softmax(-1),
    "top-p 0.8": keep_top_p(logits, 0.8).softmax(-1),
}  # {rule: (V,)}

# %%
ratio = {name: (p[order[0]] / p[order[1]]).item() for name, p in rules.items()}

# %% cellView="form" tags=["hide-input", "hide-output"]
figures.save_figure(
    plots.distributions(
        list(likeliest),
        {name: probabilities[order].tolist() for name, probabilities in rules.items()},
        title=f"Filters cut words off, temperatures do not: after “… {PROMPT[-13:]}”",
    ),
    "05_distribution",
    alt=(
        "Bars: the probabilities of the nine likeliest next words under six rules. Low "
        "temperature and filters raise the likeliest."
    ),
    caption=(
        "Compare the first two bars of each panel. A filter sets the small bars to exactly 0; a "
        "temperature only makes some too short to see. The rest of the vocabulary is not shown."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
claim(
    f"the likeliest word is ≈{ratio['as it is']:.2f} times as likely as the second, ≈"
    f"{ratio['top-k 3']:.2f} times after top-k 3, ≈{ratio['temperature 0.5']:.1f} times at "
    f"temperature 0.5, ≈{ratio['temperature 1.5']:.2f} times at 1.5",
    math.isclose(ratio["as it is"], ratio["top-k 3"], rel_tol=1e-4)
    and math.isclose(ratio["as it is"] ** 2, ratio["temperature 0.5"], rel_tol=1e-4),
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# The filter keeps the ratio, and temperature 0.5 squares it. Dividing the logits by $\tau$ raises every ratio to the
# power $1/\tau$, since $e^{a/\tau} / e^{b/\tau} = (e^a / e^b)^{1/\tau}$.
#
# </details>
#
# Temperature changes the ratios, but never rules a word out. A filter removes words and scales up the rest, so their
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
print(f"in 100 stories, the likeliest word has a probability above 0.9 at ≈{sure:.0%} of places")

# %% [markdown]
# At such a place top-p 0.9 keeps a single word, and top-k as many as ever. Here are both filters at the place above,
# and at one a few words later where the model is sure:

# %%
SURE = f"{PROMPT} heard a strange sound under the"
sure_logits = next_logits([tokenizer.sos_id, *tokenizer.encode(SURE)])

# %%
places = {" ".join(text.split()[-3:]): z for text, z in ((PROMPT, logits), (SURE, sure_logits))}
left = {
    name: [int((kept > -torch.inf).sum()) for kept in (keep_top_k(z, 8), keep_top_p(z, 0.9))]
    for name, z in places.items()
}

# %% cellView="form" tags=["hide-input"]
table(
    [
        [f"… {name}", tokenizer.word(z.argmax().item()), f"≈{z.softmax(-1).max():.2f}", *left[name]]
        for name, z in places.items()
    ],
    ["after", "likeliest word", "its probability", "words left by top-k 8", "by top-p 0.9"],
    caption="Top-k keeps as many words at a sure place as at an open one. Top-p adapts.",
)

# %% [markdown]
# Try all rules together, first at the open place and then at the sure one. The pictures are live in Jupyter and Colab:
# move a slider, and watch which bars disappear and which only change their length.


# %%
def explore(scores):  # (V,)
    words = {tokenizer.word(i): i for i in scores.topk(9).indices.tolist()}
    return SamplingExplorer(lambda *rule: filtered_distribution(scores, *rule).numpy(), words)


# %%
explore(logits)

# %%
explore(sure_logits)

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

# %% cellView="form" tags=["hide-input"]
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
claim(f"{len(same)} texts by hand are those of `generate`, word for word", all(same))

# %% [markdown]
# In the listing, `reader` passes the new tokens to the model, and `pick` is the rule: it chooses one token for each
# row.

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
unknown = [
    w for p in PROMPTS for w in tokenizer.split(p) if tokenizer.encode(w) == [tokenizer.unk_id]
]
print("words of the prompts that the model does not know:", ", ".join(unknown) or "none")

# %% [markdown]
# **Greedy** texts tell of the likeliest friends and the likeliest animals, and two of the three tell nearly the same
# story. Sampled texts differ more.
# At temperature **0.7** and with either filter, most sentences agree with each other: pronouns fit, and friends and
# songs keep their names. At **1** a sentence goes wrong here and there, and at **1.3** even people change. The **last
# prompt** shows a limit of the model. If a word is not in its vocabulary, the model reads `<unk>`, which it has never
# met in training, and continues as it would after some other word. It has learned these stories, not English.
#
# ## The grammar as a judge
#
# Could such a text be a story at all? For real stories, a person or a larger model has to read the text and decide. For
# the grammar stories, the grammar can decide: after any beginning it knows every word that may come next, and the exact
# probability of each. A text becomes **impossible** at the first word that has probability zero there, such as the name
# of somebody who is not in the story.

# %% cellView="form" tags=["hide-input"]
GRAMMAR = bundled_grammar() if CORPUS == "bundled" else None  # other stories have no known grammar
if GRAMMAR:
    story = stories.validation[0]
    other = story.replace(story.split()[0], "Tom", 1)
    judged, changed = GRAMMAR.judge(story), GRAMMAR.judge(other)
    words = tokenizer.split(other)
    print(story)
    claim(f"the story is complete; it costs {judged.nats.sum():.1f} nats", judged.complete)
    claim(
        f"with another name at the start it becomes impossible at its word number "
        f"{changed.broken_at + 1}, “{words[changed.broken_at]}”",
        changed.broken_at is not None,
    )

# %% [markdown]
# First we judge the model itself, before any rule chooses from its probabilities. At each word of a story we know two
# distributions: $p$, the grammar's, and $q$, the model's. How much more does the model lose at this place than the
# grammar would, averaged over the words that may come next? This is the **Kullback–Leibler divergence**
#
# $$D(p, q) = \sum_w p(w) \ln \frac{p(w)}{q(w)}.$$
#
# It is never negative. Since $\ln x \le x - 1$, we have
#
# $$-D = \sum_w p(w) \ln \frac{q(w)}{p(w)} \le \sum_w (q(w) - p(w)) \le 0,$$
#
# where the sums run over the words that may come next.


# %%
@torch.no_grad()
def divergence_after(words):
    """D(p, q) for the word that follows these."""
    ids = [tokenizer.sos_id, *tokenizer.encode(" ".join(words))]
    log_q = model(torch.tensor([ids], device=device))[0, -1].log_softmax(-1)  # (V,)
    p = Counter()  # {id: probability}; all words that the model does not know are one, <unk>
    for word, probability in GRAMMAR.next_words(words).items():
        p[number_of.get(word, tokenizer.unk_id)] += probability
    return sum(chance * (math.log(chance) - log_q[i].item()) for i, chance in p.items())


# %% cellView="form" tags=["hide-input"]
number_of = {tokenizer.word(i): i for i in range(len(tokenizer))}
if GRAMMAR:
    words = tokenizer.split(story)
    theirs = against_truth(model, tokenizer, GRAMMAR, [story])["divergence"]  # (places,)
    apart = np.abs(theirs - [divergence_after(words[:t]) for t in range(len(theirs))]).max()
    claim(
        f"at {len(theirs)} places of the story above, D by hand is that of `against_truth`, within "
        f"≈{apart:.0e}",
        apart < 1e-4,
    )

# %% [markdown]
# So the mean of $D$ over many stories should equal the mean loss minus the mean of $-\ln p$: the gap to the floor of
# notebook 04, measured in another way and on 250 stories. The two agree if they differ by no more than a few *standard
# errors*; one standard error says how far a mean of so many numbers is typically off by chance.

# %% cellView="form" tags=["hide-input"]
if GRAMMAR:
    truth = against_truth(model, tokenizer, GRAMMAR, stories.validation[:250])
    noise = truth["loss"] - truth["truth"] - truth["divergence"]  # (positions,)
    error = noise.std() / math.sqrt(len(noise))
    gap, divergence = (truth["loss"] - truth["truth"]).mean(), truth["divergence"].mean()
    impossible = 100 * truth["impossible"].mean()
    claim(
        f"over {len(noise):,} words the loss less the true loss is ≈{gap:.4f} nats, the divergence "
        f"≈{divergence:.4f}: ≈{abs(noise.mean()) / error:.1f} standard errors apart, fewer than 3",
        abs(noise.mean()) < 3 * error,
    )
    claim(
        f"impossible words get ≈{impossible:.1f} % of the probability, less than 5 %",
        impossible < 5,
    )

# %% [markdown]
# Now we judge the rules. Each continues the first five words of 200 validation stories until the story ends or the
# context is full. A continuation is **possible** if no word of it is impossible.
#
# **Predict.** Of the 200 continuations drawn at temperature 1, how many will be possible: nearly all, about half, or
# hardly any? And how many of those that greedy writes?

# %% cellView="form" tags=["hide-input"]
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

# %% cellView="form" tags=["hide-input"]
verdicts, two_hundred = {}, stories.validation[:200]
for name in [name for name in protocol if GRAMMAR and name != "beam search, 10"]:
    continued = evaluate_continuations(model, tokenizer, two_hundred, **protocol[name][0])
    verdicts[name] = judge_continuations(GRAMMAR, tokenizer, continued)

# %% cellView="form" tags=["hide-input"]
if GRAMMAR:
    continued = evaluate_continuations(model, tokenizer, two_hundred, strategy="true")
    true_verdict = judge_continuations(GRAMMAR, tokenizer, continued)

# %% cellView="form" tags=["hide-input", "hide-output"]
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
            "The lines are 95 % intervals (Wilson's: they contain the true share in 95 of 100 "
            "such experiments). A "
            "possible continuation is one that the grammar can write; it need not be a good one."
        ),
    )
    display(picture)

# %% cellView="form" tags=["hide-input", "hide-output", "nbval-ignore-output"]
if verdicts:
    rows = []
    for name, v in ({"true stories": true_verdict} | verdicts).items():
        failed = round(200 * (1 - v["possible"]))
        words = f"{v['words']:.0f}" if failed >= 10 else "–"
        share = f"{v['possible']:.1%}", f"{v['low']:.1%} to {v['high']:.1%}"
        rows.append([name, *share, failed, words, f"{v['nats']:.2f}"])
    shown = table(
        rows,
        ["text", "possible", "95 % interval", "failed", "words before it", "true cost, nats"],
        caption=(
            "200 continuations for each rule, judged by the grammar. Failed: how many have an "
            "impossible word. Words before it: the median over the failed texts, if there are ten. "
            "True cost: the mean of −ln p over all words before the first impossible one."
        ),
    )
    display(shown)

# %% [markdown]
# <details><summary>What happened</summary>
#
# At temperature 1 fewer than half of the texts are possible, although the model gives only about 1.5 % to impossible
# words. Greedy text is nearly always possible, and so is that of beam search. (All sampling rules used the same seed,
# so their rows are not independent.)
#
# </details>
#
# **One impossible word is enough.** If each word is possible with probability 0.985, then all of fifty words are
# possible with probability $0.985^{50} \approx 0.47$. So a rule that makes unlikely words rarer, or cuts them off,
# helps a lot. The *true cost* shows the price. It is the mean of $-\ln p$, up to the first impossible word. Greedy
# search and beam search write words that cost the grammar less than those of true stories: they keep to what is likely,
# and lose some of the variety of the stories. The cost of temperature 0.7 and of the two filters is close to that of
# the true stories, up to the first impossible word.

# %% [markdown]
# ## Fifty stories, two numbers
#
# Without a grammar we have to measure something else. Our test takes the first five words of 50 validation
# stories as prompts, and reports two numbers for each rule.
#
# - **Perplexity of what was written**: $e$ to the power of the mean of $-\ln q$ under the model itself, at temperature
#   1; it says how sure the model was of its own words.
# - **BLEU** ([Papineni et al. 2002](https://aclanthology.org/P02-1040/)), from 0 to 100, compares the text with the
#   true continuation: what share of its words, pairs, triples and quadruples also occur there?
#
# BLEU is the geometric mean of the four shares, lowered if the text is too short. For a text of $c$ words and a true
# one of $r$ words,
#
# $$\text{BLEU} = 100 \cdot \min(1, e^{1 - r/c}) \cdot (p_1 p_2 p_3 p_4)^{1/4}.$$
#
# Each share $p_n$ is **clipped**: if the text repeats a group of $n$ words, the group counts at most as often as it
# occurs in the truth. For counters, `&` takes the smaller count:


# %%
def groups_of(words, n):
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


# %%
def bleu_by_hand(text, truth):
    """BLEU of one text, and its four shares."""
    text, truth = text.split(), truth.split()
    shares = []
    for n in range(1, 5):
        ours, theirs = groups_of(text, n), groups_of(truth, n)
        shares.append((ours & theirs).total() / ours.total())
    brevity = min(1.0, math.exp(1 - len(truth) / len(text)))
    return 100 * brevity * math.prod(shares) ** (1 / 4), shares


# %%
TRUTH = "one day , he heard a weak noise under the bridge ."
attempts = {
    "repeats itself": "he heard a weak noise . he heard a weak noise .",
    "makes sense": "one day , he saw a lost lamb in the garden .",
    "is jumbled": "under the bridge . one day , he heard a weak noise",
}

# %%
by_hand = {name: bleu_by_hand(text, TRUTH) for name, text in attempts.items()}

# %% cellView="form" tags=["hide-input"]
table(
    [
        [f"{name}: “{text}”", *(f"{share:.2f}" for share in by_hand[name][1]), f"{score:.1f}"]
        for (name, text), (score, _) in zip(attempts.items(), by_hand.values(), strict=True)
    ],
    ["text", "words", "pairs", "triples", "quadruples", "BLEU"],
    caption=f"Three texts against “{TRUTH}”: their clipped shares, and BLEU.",
)

# %%
theirs = [bleu([text], [TRUTH]) for text in attempts.values()]
claim(
    f"the course's `bleu`, which is sacrebleu's, says the same: {np.round(theirs, 1).tolist()}",
    np.allclose(theirs, [score for score, _ in by_hand.values()]),
)

# %% [markdown]
# In the first text every word occurs twice, but counts once. And the jumbled text scores more than three times as much
# as the one that makes sense, because it is made of pieces of the true one. (For many texts the counts are added up
# first, and sacrebleu, the usual program for BLEU ([Post 2018](https://aclanthology.org/W18-6319/)) replaces a share of
# zero by a small number. The prompt does not count.)
#
# We compare the rules with two references: the true continuation, and the text of a **trigram** model, which has no
# network. It draws the next word according to how often that word followed the last two in training. Many pairs are
# rare, so it mixes in what followed the last word alone, and how frequent the word is at all. If the last two words
# occurred $n$ times, and $w$ followed them $c(w)$ times, then
#
# $$p(w) = \frac{c(w) + p'(w)}{n + 1},$$
#
# where $p'$ is the same estimate from the last word alone, and so on; the last of them gives each word the same.

# %%
train_ids = encode_stories(tokenizer, stories.train, model.config.context_length)  # (N, T)
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


# %% cellView="form" tags=["hide-input"]
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
#
# **Predict.** Which text will have the lowest perplexity: the true one, the one sampled at temperature 1, or the greedy
# one? And will it be the best text?

# %%
held_out = stories.validation[:50]
runs = {"the true continuation": [{"strategy": "true"}]} | protocol
runs["trigram model"] = [{"writer": trigram_writer(seed)} for seed in range(SEEDS)]

# %%
scored = {}
for name, ways in runs.items():
    first, *more = (evaluate_continuations(model, tokenizer, held_out, **way) for way in ways)
    scored[name] = sum(more, start=first)

# %% cellView="form" tags=["hide-input"]
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


def score_table(measured, where):
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
        caption=f"{where}: fifty prompts, with bootstrap intervals over prompts and seeds.",
    )


# %% cellView="form" tags=["hide-input", "hide-output", "nbval-ignore-output"]
score_table(measured, "These stories")

# %% [markdown]
# Here is the same table for real stories, recorded earlier:

# %% cellView="form" tags=["hide-input", "hide-output"]
score_table(
    {name: recorded["continuations"][name] for name in measured} if recorded else measured,
    "TinyStories, recorded, ten seeds" if recorded else "These stories",
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Greedy text has a lower perplexity than the true continuation, on both corpora, and so have beams, temperature 0.7 and
# both filters: they surprise the model less than the true text does.
#
# </details>
#
# **Low perplexity is not the aim.** If the model's probabilities are right, text drawn at temperature 1 should surprise
# it about as much as the true text. It comes closer to this on the grammar stories than on the real ones. Perplexity
# orders the rules nearly as the grammar did, but it cannot say which text is impossible.
#
# **BLEU** against one true continuation is low for every rule, because after five words a story can go anywhere. On
# real stories, rules with less randomness score higher. And BLEU does not show whether a story makes sense. The trigram
# text knows two words of context only, yet on the grammar stories it scores about as well as greedy text, and on real
# ones higher than temperature 1.3. The grammar told apart rules whose BLEU intervals overlap; but then it judged texts
# after 200 prompts, not 50.
#
# ## Beam search
#
# Greedy takes the best *next* word. The best *text* may begin with a second-best word. **Beam search** keeps the $k$
# likeliest beginnings, the **beams**, extends each by every word, and keeps the $k$ likeliest again. Here it is without
# a batch or a cache. It ranks twice as many candidates as there are beams, because up to $k$ of them may end in
# `<eos>`, and $k$ others must be left to go on:


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
WIDTH, STEPS = 3, 7
beams, history = slow_beams(START, WIDTH, STEPS)

# %%
beam = {"strategy": "beam", "num_beams": WIDTH}
fast = generate(model, tokenizer, [PROMPT], max_new_tokens=STEPS, **beam)[0].beams
claim(
    f"the {WIDTH} beams of `generate` are those of the slow search",
    [one.ids for one in fast] == [ids for _, ids in beams],
)

# %% cellView="form" tags=["hide-input"]
tree = [
    [
        (place, tokenizer.word(ids[-1]), total, i < WIDTH)
        for i, (total, ids, place) in enumerate(step)
    ]
    for step in history
]
figures.save_figure(
    plots.beam_tree(
        tree, title=f"At each step three of six beginnings are dropped: after “… {PROMPT[-13:]}”"
    ),
    "05_beams",
    alt=(
        "A tree from left to right: at each of seven steps six candidate words with their "
        "log-probabilities, three of them kept."
    ),
    caption=(
        "Each column is one step, the best candidate on top; the three kept beams are drawn in "
        "blue. The number is the log-probability of the whole beginning, so along a path it never "
        "rises. Look for a column whose three blue boxes have one parent."
    ),
)

# %% [markdown]
# In the third column all blue boxes extend the same beginning, “heard a”. The other two, “met a” and “saw a”, are
# dropped, and the search continues from a single one, although it is three beams wide. Now follow greedy's path, which
# always takes the best next word. It stays on top for six steps: “heard a strange sound in the”. Then bushes and reeds
# share the probability, and “under the” overtakes it, because there the model is sure of “bridge”.
#
# **Texts that end.** An extension by `<eos>` that is among the $k$ best is a complete text. We set it aside with its
# score, and the others go on. How should a short text be compared with a long one? Every word lowers the
# log-probability, so long texts are at a disadvantage. The **length penalty** $\alpha$ compares
# $\log p \,/\, \text{length}^{\alpha}$ instead ([Wu et al. 2016](https://arxiv.org/abs/1609.08144), section 7, use a
# similar formula). Since $\log p$ is negative, a *larger* $\alpha$ favours *longer* texts.
#
# When may the search stop? A running beam's $\log p$ never rises. At best it stays as it is up to the limit, so the
# beam's score can reach $\log p \,/\, \text{limit}^{\alpha}$ at most ($\alpha \ge 0$). The search is over when $k$
# texts are set aside, and not even the best running beam can beat the worst of them.


# %%
def complete_beams(start, width, limit, alpha):
    """The `width` best texts that have ended or reached the limit, as (score, ids), best first."""
    running, aside = [(0.0, [])], []
    while running:
        candidates, running = candidates_of(running, start, width), []
        for rank, (total, ids, _) in enumerate(candidates):
            if ids[-1] == tokenizer.eos_id or len(ids) == limit:
                if rank < width:
                    aside.append((total / len(ids) ** alpha, ids))
            elif len(running) < width:
                running.append((total, ids))
        aside = sorted(aside, key=lambda text: -text[0])[:width]
        if len(aside) == width and running and running[0][0] / limit**alpha <= aside[-1][0]:
            break
    return aside


# %%
BEGINNING = "Lotte was a small piglet"
start = [tokenizer.sos_id, *tokenizer.encode(BEGINNING)]
limit = model.config.context_length - len(start)
by_hand = {alpha: complete_beams(start, WIDTH, limit, alpha) for alpha in (0.0, 1.0)}

# %%
same = []
for alpha, found in by_hand.items():
    options = beam | {"max_new_tokens": limit, "length_penalty": alpha}
    theirs = generate(model, tokenizer, [BEGINNING], **options)[0].beams
    same.append([ids for _, ids in found] == [one.ids for one in theirs])
claim(f"the {WIDTH} texts by hand are those of `generate`, for α = 0 and for α = 1", all(same))

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
rows = []
for alpha, ((score, ids), *_) in by_hand.items():
    total = score * len(ids) ** alpha
    numbers = len(ids), f"{total:.1f}", f"{total / len(ids):.3f}"
    rows.append([f"{alpha:g}", *numbers, f"… {tokenizer.decode(ids[-16:])}"])
table(
    rows,
    ["α", "tokens", "log p", "log p per token", "the end of the best text"],
    caption=f"“{BEGINNING}”, continued by three beams: the best text for two length penalties.",
)

# %% [markdown]
# With $\alpha = 0$ the likelier text wins. With $\alpha = 1$, which `generate` uses unless told otherwise, the longer
# one wins, because it costs less per token. How much longer do the texts become? Five beams continue fifty beginnings:

# %% cellView="form" tags=["hide-input"]
short = evaluate_continuations(
    model, tokenizer, held_out, strategy="beam", num_beams=5, length_penalty=0.0
)
both = zip(short.generations, scored["beam search, 5"].generations, strict=True)
differ = [
    len(long.ids) - len(brief.ids)
    for brief, long in both
    if brief.ids != long.ids and brief.ids[-1] == long.ids[-1] == tokenizer.eos_id
]
if differ:
    claim(
        f"for ≈{len(differ)} of 50 prompts both texts end, but differ; with α = 1 ≈"
        f"{sum(more > 0 for more in differ)} of them are longer, on average by "
        f"≈{np.mean(differ):.1f} tokens",
        np.mean(differ) > 0,
    )

# %% [markdown]
# `generate` does the same for many prompts at once: all beams of all prompts are rows of one batch. In its listing
# `Reader` passes the new tokens to the model, `_extend` is the loop over the candidates, `_is_done` is the rule for
# stopping, and `in_place` only changes the order of the rows.

# %%
show_source(beam_search, fold="The course's beam search, from helpers/decoding.py")

# %% [markdown]
# **Is a wider beam always better**, at least by its own measure? We continue the beginnings of a hundred stories by 30
# words, and compare the texts by $\log p$ itself ($\alpha = 0$). Five beams find a likelier text than greedy for most
# of these prompts.
#
# **Predict.** For how many of the hundred prompts will ten beams find a likelier text than five: for nearly all, for
# half, or for fewer?

# %%
hundred = [" ".join(tokenizer.split(text)[:5]) for text in stories.validation[:100]]
options = {"max_new_tokens": 30, "strategy": "beam", "length_penalty": 0.0}
found = {
    width: generate(model, tokenizer, hundred, num_beams=width, **options)
    for width in (1, 2, 5, 10)
}


# %%
@torch.no_grad()
def log_p_so_far(prompt, ids):
    """The log-probability of the first word, of the first two, and so on, (words,)."""
    start = [tokenizer.sos_id, *tokenizer.encode(prompt)]
    logits = model(torch.tensor([[*start, *ids[:-1]]], device=device))[0, len(start) - 1 :]
    return logits.log_softmax(-1)[range(len(ids)), ids].cumsum(0)


# %% cellView="form" tags=["hide-input", "hide-output", "nbval-ignore-output"]
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
table(
    [
        [name, *list(row.values())[:3], f"{row['mean gain']:+.2f}"]
        for name, row in widths_compared.items()
    ],
    ["beams", "the wider is likelier", "the same", "less likely", "mean gain, nats"],
    caption=(
        "Two widths on the same hundred prompts: how often the wider beam found a likelier "
        "text of 30 words, and by how much on average."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
case = int(gains[1, 2].argmin())
claim(
    f"a wider beam that loses: two beams end ≈{-gains[1, 2][case]:.1f} nats below greedy after “"
    f"{hundred[case]}”",
    gains[1, 2][case] < -0.1,
)

# %% cellView="form" tags=["hide-input", "hide-output", "nbval-ignore-output"]
case, rows = int(gains[5, 10].argmin()), []
for width in (5, 10):
    one = found[width][case]
    so_far = log_p_so_far(hundred[case], one.ids).tolist()
    rows.append([width, *(f"{so_far[:n][-1]:.1f}" for n in (4, 8, 12, 20, 30)), one.text])
table(
    rows,
    ["beams", "log p of 4 words", "of 8", "of 12", "of 20", "of 30", "text"],
    caption=f"The prompt at which ten beams do worst: “{hundred[case]}”.",
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# Ten beams lose to five more often than they win. In the example, the text that ten beams end with is ahead at eight
# and at twelve words, and far behind at thirty: it tells of a song, whose sounds are hard to guess.
#
# </details>
#
# **A wider beam is not always better**, even by its own measure. A beginning that would have led to the best text can
# be pushed out by others that look better for a while. So there is no guarantee that beam search finds the likeliest
# text. And likelier text is less varied, and less surprising than the truth.
#
# ## Beam search against sampling
#
# We compare beams of 5 and 10 with sampling, on five validation prompts. Speed is the median of three runs in which the
# rules take turns. It counts **finished tokens**: those of the texts that come out, not those of beams that were
# dropped. *Distinct* is the number of different pairs of neighbouring words in the five texts together, as a share of
# all pairs.

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


# %% cellView="form" tags=["hide-input"]
def tokens_per_second(runs, repeats=3):
    """Median tokens per second, the runs taking turns. runs: {name: function that counts tokens}"""
    speeds = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            count = run()
            if repeat:  # the first time warms up
                speeds[name].append(count / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in speeds.items()}


def counted(options):
    return lambda: int(evaluate_continuations(model, tokenizer, five, **options).tokens.sum())


speeds = tokens_per_second({name: counted(options) for name, options in rivals.items()})


# %%
def distinct(found):
    pairs = [pair for one in found.generations for pair in pairwise(one.ids)]
    return len(set(pairs)) / len(pairs)


# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
true = evaluate_continuations(model, tokenizer, five, strategy="true")

# %% cellView="form" tags=["hide-input", "nbval-ignore-output"]
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
rows = [["true stories", "", "", f"{-true.nats.sum() / true.tokens.sum():.2f}"]]
rows[0].append(f"{distinct(true):.2f}")
for name, row in trade.items():
    likely, varied = row["logprob_per_token"], row["distinct_pairs"]
    numbers = f"{row['tokens_per_second']:,.0f}", f"{row['bleu']:.1f}"
    rows.append([name, *numbers, f"{likely:.2f}", f"{varied:.2f}"])
table(
    rows,
    ["text", "finished tokens per second", "BLEU", "log-probability per token", "distinct"],
    caption=(
        f"Five prompts, on {device.type}, {torch.get_num_threads()} threads. Five texts are too "
        "few "
        "to compare their BLEU."
    ),
)

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.bars(
        speeds,
        x_label="finished tokens per second, five prompts at once",
        title="Beams cost time: every beam is one more row to read",
    ),
    "05_beam_speed",
    alt="Bars of tokens per second for sampling, greedy, 5 beams and 10 beams.",
    caption=(
        "Compare the beams with greedy. Only tokens of the texts that come out count. Measured on "
        "the machine that ran this notebook."
    ),
)

# %% [markdown]
# **The trade-off.** For each token five beams read five rows and ten beams ten, but all in one batch; the figure shows
# what that costs on this machine. Beams gain likelihood and lose variety: compare both with the true stories. So for
# stories we sample. Beams suit tasks with few right answers, such as translation.
#
# ## The cache
#
# To write token 60, the model reads the 59 before it. To write token 61, it reads the same 59 again. Does it have to?
# Because of the causal mask, nothing that is computed at a token depends on later tokens. So its keys and values, once
# computed, never change, and can be kept. In each layer, new keys and values are appended to the old ones:


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
# values that it returns. Reading now has two parts. **Prefill** reads the prompt in one pass, and fills the cache.
# **Decode** reads one new token at a time, and compares its query with the stored keys. Queries need no cache, because
# no later step uses the query of an old token.

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
# the new ones into it: for each layer, text and place a key and a value of $D$ numbers, of 4 bytes each.

# %%
show_source(KVCache, fold="The course's cache, from helpers/kv_cache.py")

# %%
cache, c = KVCache(model.config, batch_size=20), model.config
formula = 2 * c.num_layers * 20 * c.context_length * c.d_model * 4

# %% cellView="form" tags=["hide-input"]
claim(
    f"2 · {c.num_layers} layers · 20 texts · {c.context_length} places · width {c.d_model} · 4 "
    f"bytes = {cache.nbytes:,} bytes; the model has {4 * model.num_parameters():,}",
    cache.nbytes == formula,
)

# %% [markdown]
# What does the cache save? After a prompt of $m$ tokens, $n$ new ones take
# $m + (m + 1) + \dots$ token reads (about $mn + n^2/2$) without a cache, and $m + n - 1$ with it. For
# $m = 5$ and $n = 59$ that is 2,006 against 63, 32 times as many. First we check that the cache changes no word, and
# then we measure the time for one more token, as the text grows.

# %%
TWENTY = [" ".join(tokenizer.split(text)[:4]) for text in stories.validation[:20]]
strategies = {"greedy": {"strategy": "greedy"}, "sampled": {"seed": 0}}
strategies["5 beams"] = {"strategy": "beam", "num_beams": 5}

# %%
same = []
for way in strategies.values():
    with_cache, without = (
        generate(model, tokenizer, TWENTY, max_new_tokens=45, use_cache=use_cache, **way)
        for use_cache in (True, False)
    )
    same.append([one.ids for one in with_cache] == [one.ids for one in without])

# %% cellView="form" tags=["hide-input"]
claim(f"20 texts, {', '.join(strategies)}: the same words with and without the cache", all(same))


# %% cellView="form" tags=["hide-input"]
def steps_of(use_cache):
    """The rows read at each step of a greedy run, and the step's seconds, (steps,) each."""
    rows, moments = [], []

    def note(module, inputs):
        rows.append(len(inputs[0]))
        moments.append(time.perf_counter())

    hook = model.register_forward_pre_hook(note)  # called before every pass
    generate(model, tokenizer, TWENTY, max_new_tokens=59, strategy="greedy", use_cache=use_cache)
    hook.remove()
    return np.array(rows), np.diff([*moments, time.perf_counter()])


timed = {"with cache": [], "without": []}
for _ in range(3):  # the two take turns
    for way, runs_of in timed.items():
        read, seconds = steps_of(way == "with cache")
        runs_of.append(seconds)
step_times = {way: np.median(runs_of, axis=0) for way, runs_of in timed.items()}  # (steps,)
speed = {
    n: {way: float(read[:n].sum() / seconds[:n].sum()) for way, seconds in step_times.items()}
    for n in (7, 15, 30, 59)
}
all_run = int((read == len(TWENTY)).sum())  # steps before the first text ends

# %% cellView="form" tags=["hide-input"]
figures.save_figure(
    plots.compare_curves(
        {
            way: (range(5, 5 + all_run), 1000 * seconds[:all_run])
            for way, seconds in step_times.items()
        },
        x_label="tokens already in each text",
        y_label="milliseconds for one more token, 20 texts",
        title="Without a cache, one more token takes longer, the longer the text",
        from_zero=True,
    ),
    "05_cache_speed",
    alt=(
        "Milliseconds of a step against the tokens already in the text: without a cache a rising "
        "line, with the cache a level one."
    ),
    caption=(
        "Compare the slopes. The first step with the cache is prefill. The lines end when the "
        "first "
        "of the twenty texts does. Greedy, medians of three runs on the machine that ran this "
        "notebook."
    ),
)

# %% cellView="form" tags=["hide-input"]
fast = speed[59]
print(
    f"up to 59 new tokens: ≈{fast['with cache']:,.0f} tokens per second with the cache, "
    f"≈{fast['without']:,.0f} without, a ratio of ≈{fast['with cache'] / fast['without']:.1f}"
)

# %% [markdown]
# Without a cache, the time for one more token grows with the text; with the cache it hardly does. The measured ratio is
# smaller than the ratio of the counts, partly because some texts end early, and probably because one long read uses a
# processor better than many short ones.
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
# `generate` stops there. There are two usual answers. A **sliding window** forgets the oldest words. If positions are
# relative (rotary, say), the oldest keys and values can be dropped from the cache. (The text then differs from that of
# a window that is read again, because the keys that stay have seen the words that went, and a model that was not
# trained in this way may fail.) With our absolute positions, dropping a word moves every other word to a new position,
# so the window has to be read again at each step. The other answer is to train the model, or to train it further, with
# a **longer context**. Here is a window that uses `write` from above. It is short, so that we see soon what a window
# does:


# %%
def write_on(ids, limit, window):
    """A greedy text that may outgrow the context: each step reads the last `window` words only."""
    ids, given = list(ids), len(ids)
    while len(ids) < given + limit and ids[-1] != tokenizer.eos_id:
        ids += write([tokenizer.sos_id, *ids[-window:]], 1)
    return ids


# %% tags=["nbval-ignore-output"]
far = write_on(START[1:], 100, window=24)
print(f"{len(far)} tokens: {tokenizer.decode(far)}")

# %% [markdown]
# The text goes on past 64 tokens, but a character who has dropped out of the window is forgotten. In our run no name is
# left in the window when *Oscar* is written, and Momo never returns. The boy becomes *she* although *he* can still be
# read: the window begins in mid-sentence, as no training story did.
#
# ## Three broken caches
#
# A cache that is wrong need not crash. Here are three mistakes:
#
# 1. **positions start again**: with a cache, a pass sees the new tokens only, so their positions must be counted from
#    the cache's length, the **offset**. Here the offset is forgotten, and each new token is read as if it stood at
#    position 0;
# 2. **never filled**: the cache stays empty, so a new token sees only itself, at position 0;
# 3. **another row's keys**: each row continues with its neighbour's keys and values, as happens if the beams are
#    reordered but the cache is not.
#
# Each is written as a *step*: a function that reads one new token of each row, and returns the logits of the next.


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


# %% [markdown]
# The next function writes greedily with such a step. So that all texts have the same length, it never takes a token of
# `forbidden`, which includes `<eos>`.

# %%
forbidden = torch.tensor([*NEVER, tokenizer.eos_id], device=device)  # (excluded,)


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
        scores = logits[-1].index_fill(1, forbidden, -torch.inf)  # (B, V)
        ids.append(scores.argmax(-1) if words is None else words[:, number])  # (B,)
        logits.append(step(cache, ids[-1][:, None], number))  # (B, V)
    return torch.stack(ids, 1), torch.stack(logits[:-1], 1)  # (B, count), (B, count, V)


# %% [markdown]
# Each cache writes thirty words after the same twenty openings. We measure two things: how many of the pairs of
# neighbouring words occur in the training stories, and how far the logits are from those of
# one pass over the whole text. (For the logits, all caches read the words that the right one chose.)
#
# **Predict.** Which of the three will you notice by reading the text: none, one or all? And which will the share of
# known pairs reveal?

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

# %% cellView="form" tags=["hide-input", "hide-output", "nbval-ignore-output"]
table(
    [[name, f"{fluent[name]:.0%}", text] for name, text in written_by.items()],
    ["cache", "known pairs, 20 texts", f"written after “{openings[0]}”"],
    caption=(
        "The share of word pairs that occur in training stories, and one text for each cache. "
        "Neither identifies the broken caches reliably."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
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
        "Look at the first word: it is chosen before anything is read from the cache, so all are "
        "right. All three write almost only known pairs of words, "
        "which the figure does not show."
    ),
)

# %% cellView="form" tags=["hide-input", "hide-output"]
broken = list(ways)[1:]
claim(
    "on average over the texts, the right cache stays within "
    f"≈{max(drift['right']):.0e} of one pass",
    max(drift["right"]) < 1e-3,
)
claim(
    "the broken ones are right at the first word, and then off by at least "
    + ", ".join(f"≈{min(drift[name][1:]):.1f}" for name in broken),
    all(drift[name][0] < 1e-3 and min(drift[name][1:]) > 0.1 for name in broken),
)
claim(
    "yet all write known pairs: "
    + ", ".join(f"{name} ≈{100 * share:.0f} %" for name, share in fluent.items()),
    min(fluent.values()) > 0.7,
)

# %% [markdown]
# <details><summary>What happened</summary>
#
# The empty cache is noticed soon: its text goes round in circles, because the next word depends on the last word alone.
# Wrong positions show after some words, when a sentence loses its thread. The text with another row's keys reads well.
# The share of known pairs reveals none of the three.
#
# </details>
#
# **A broken cache may write fluent text; each time, its logits showed the mistake.** Prefill is right in all three, so
# the first new word is right. From the second word on the logits are wrong, and no error appears. (Known pairs are a
# weak measure: a text that repeats itself has them, too.) So do not judge a cache by its text. Compare its logits with
# those of one pass, on a *batch of different texts*: with a single text, mixed rows would go unnoticed.

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
# - One impossible word spoils a story, so more randomness means fewer possible stories. The grammar can count them.
#   Perplexity and BLEU cannot say which text is impossible, and BLEU may praise a jumbled one.
# - Text that surprises the model less than the truth, such as greedy text and beams, need not be better than the truth.
# - Beam search mostly finds likelier text than greedy, but it can also lose.
#   A larger length penalty favours longer texts.
# - Old keys and values never change, so a cache can keep them. The text stays the same, and every token is read only
#   once.
# - A broken cache need not raise an error, and its text may look right at a glance. Logits on a batch show the mistake.
#
# ## What GPT and Llama do differently
#
# - **They sample** with a temperature and top-p, and hardly ever use beams, because the likeliest text is dull. Often
#   another model chooses among several samples (search for *best-of-n*).
# - **The *KV cache* is the bottleneck** for long contexts and large batches: it can be larger than the model. Heads
#   share keys and values (*grouped-query attention*, [Ainslie et al. 2023](https://arxiv.org/abs/2305.13245)), entries
#   are stored in 8 bits or fewer (*cache quantization*), and memory is allocated in small pages (*PagedAttention*).
# - **Drafts.** In *speculative decoding* a small model guesses several words ahead, and the large one checks them all in
#   one pass. This gives the same distribution in fewer steps ([Leviathan et al.
#   2023](https://arxiv.org/abs/2211.17192)).
#
# Next: [06 · Memory](06_memory.ipynb) trains the model with less memory.
#
# ## Can you?
#
# 1. The model gives one word a probability of 0.95. How many words do top-p 0.9 and top-k 8 leave? And if one word is
#    three times as likely as another, how many times is it at temperature 0.5?
#    <details><summary>Answer:</summary> One, and eight. Nine times.</details>
# 2. When can five beams end with a less likely text than greedy?
#    <details><summary>Answer:</summary> When the beginning of greedy's text is pushed out by five others that look better
#    for a while.</details>
# 3. Why does a cache need keys and values, but no queries, and why do the old ones never change?
#    <details><summary>Answer:</summary> A new token's query is compared with all old keys, and reads all old values.
#    Old queries are not used again. Because of the causal mask, nothing at an old token depends on later ones.</details>
# 4. Which text would BLEU overrate, and what does a low perplexity of a text say?
#    <details><summary>Answer:</summary> One that is made of pieces of the true text, whether it makes sense or not. A low
#    perplexity says that the model was sure of its words, not that the text is good.</details>
# 5. A cache writes position 0 for every new token: the offset is missing. What shows the mistake, and what does not?
#    <details><summary>Answer:</summary> Comparing the logits with those of one pass over the whole text shows it. The
#    text itself may not: it can look fluent.</details>
#
# ## Exercises
#
# Four tasks with checks that name your mistake, and with solutions: temperature and top-k, top-p, one step of beam
# search, and a cache for one head. About an hour: [exercises for 05](exercises/05_decoding.ipynb).
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
