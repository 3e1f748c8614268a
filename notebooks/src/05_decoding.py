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
# **Promise.** The model gives a probability to every next word. You will turn that into text in four ways, build beam search
# and watch its tree grow, and write the same text with a cache, which reads every token once. Then you will break the cache in three
# ways. No error tells you, and a careless reader may miss two of them.
#
# **Prerequisites.** [04 · Training](04_training.ipynb). The trained model is read from `checkpoints/`; where there is none, it
# is trained first.
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
from helpers.evaluation import against_truth, evaluate_continuations, judge_continuations
from helpers.explorers import SamplingExplorer
from helpers.grammar import bundled_grammar
from helpers.kv_cache import KVCache
from helpers.notebook import FigureFolder, claim, load_numbers, show_source, table
from helpers.recipe import VALIDATION, load_or_train
from helpers.stories import load_stories
from helpers.training import encode_stories

figures = FigureFolder(CORPUS)
# The same notebook, run on TinyStories.
known = load_numbers("tinystories", "05") if CORPUS == "bundled" else {}
model, tokenizer, metadata = load_or_train(CORPUS)
stories = load_stories(CORPUS, validation=VALIDATION)
device = model.output.weight.device
print(
    f"{model.num_parameters():,} parameters, {len(tokenizer):,} words, trained for "
    f"{metadata['step']} steps"
)

# %% [markdown]
# ## One distribution
#
# Here is the beginning of a story. What does the model expect next?

# %%
PROMPT = "Tom was a small boy who had a wise dog named Momo. One sunny"


def log_probabilities(ids):
    """Of each word to come after these ids, (V,): -inf for what never comes out."""
    with torch.no_grad():
        scores = (
            model(torch.tensor([ids], device=device))[0, -1].float().log_softmax(-1).cpu()
        )  # (V,)
    # Control words but <eos>; and the table may have more rows than there are words.
    scores[tokenizer.excluded_ids(len(scores))] = -torch.inf
    return scores


START = [tokenizer.sos_id, *tokenizer.encode(PROMPT)]
scores = log_probabilities(START)
order = scores.argsort(descending=True)[:9].tolist()
likeliest = {tokenizer.word(i): i for i in order}

# %% [markdown]
# Four rules for the same logits $z$:
#
# - **greedy**: the likeliest word, always;
# - **temperature** $\tau$: draw from $\mathrm{softmax}(z / \tau)$. Below 1 the likely words gain, above 1 the unlikely ones;
# - **top-k**: only the $k$ likeliest words stay;
# - **top-p**, the nucleus ([Holtzman et al. 2020](https://arxiv.org/abs/1904.09751)): the fewest words whose probabilities sum to $p$ stay.
#   In a clear case that is one word, in an open one many.
#
# **Predict.** Which of the four keeps the *shape* of what it lets through, and which bends it?

# %%
rules = {
    "as it is": filtered_distribution(scores),
    "greedy": filtered_distribution(scores, top_k=1),
    "temperature 0.5": filtered_distribution(scores, temperature=0.5),
    "temperature 1.5": filtered_distribution(scores, temperature=1.5),
    "top-k 3": filtered_distribution(scores, top_k=3),
    "top-p 0.8": filtered_distribution(scores, top_p=0.8),
}
figures.save_figure(
    plots.distributions(
        list(likeliest),
        {name: probabilities[order].tolist() for name, probabilities in rules.items()},
        title=f"The next word after “… {PROMPT[-12:]}”",
    ),
    "05_distribution",
    alt=(
        "Bars: the probabilities of the nine likeliest next words under six rules. Low "
        "temperature and filters raise the likeliest."
    ),
)

# %% [markdown]
# Temperature bends the distribution: ratios between words change, and no word is ever out. The two filters cut it off and
# scale up what is left, so ratios stay. The figure shows one place in one story, and an open one. How often is there nothing
# to choose?

# %%
for name, probabilities in rules.items():
    print(
        f"{name:16} {int((probabilities > 0).sum()):5,} words left, sum {probabilities.sum():.3f}"
    )
a, b = order[0], order[1]
ratio = {
    name: (probabilities[a] / probabilities[b]).item() for name, probabilities in rules.items()
}
assert math.isclose(ratio["as it is"], ratio["top-k 3"], rel_tol=1e-4), "a filter keeps the ratios"
assert math.isclose(ratio["as it is"] ** 2, ratio["temperature 0.5"], rel_tol=1e-4), (
    "temperature 0.5 squares them"
)

held_out_ids = encode_stories(
    tokenizer, stories.validation[:100], model.config.context_length
)  # (N, T)
with torch.no_grad():
    top = model(held_out_ids[:, :-1].long().to(device)).softmax(-1).amax(-1).cpu()  # (N, T-1)
share = (top[held_out_ids[:, 1:] != tokenizer.pad_id] > 0.9).float().mean().item()
print(
    f"in 100 validation stories, the likeliest word has more than 0.9 at {share:.0%} of the places"
)

# %% [markdown]
# Try them together (live in Jupyter and Colab):

# %%
SamplingExplorer(
    lambda temperature, top_k, top_p: filtered_distribution(
        scores, temperature, top_k, top_p
    ).numpy(),
    likeliest,
)

# %% [markdown]
# ## Word by word
#
# `generate` repeats one step: read, choose, append, until `<eos>` or the end of the context. In the listing, `reader.scores()`
# gives the log-probabilities of the next word for each running row, `pick` is the rule, and `reader.read` appends the word
# and drops the rows that have ended. Shorter prompts are filled up with `<pad>` on the left, and the mask hides it.

# %%
show_source(token_by_token)

# %% [markdown]
# Each prompt draws from a random stream of its own, made from the seed and its place in the list. Who its neighbours are does
# not matter. The same seed at two temperatures draws the same random numbers, so such texts resemble each other.

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
for name, options in how.items():
    alone = generate(model, tokenizer, PROMPTS[:1], max_new_tokens=40, **options)
    assert alone[0].ids == texts[name][0].ids, f"{name}: the neighbours change the text"
print("the first text is the same alone and beside the others: True")
unknown = [
    word
    for prompt in PROMPTS
    for word in tokenizer.split(prompt)
    if tokenizer.encode(word) == [tokenizer.unk_id]
]
print("words of the prompts that the model does not know:", ", ".join(unknown) or "none")

# %% tags=["nbval-ignore-output"]
table(
    [
        [name, prompt, found.text]
        for name in texts
        for prompt, found in zip(PROMPTS, texts[name], strict=True)
    ],
    ["rule", "prompt", "continuation"],
)

# %% [markdown]
# Read them for their meaning: who does what, and does the next sentence know it? **Greedy** texts hardly vary: the likeliest
# friends, the likeliest animals. With chance most details differ; rules that share a seed may share some. At **0.7** and with
# either filter most sentences know of each other: pronouns fit, and friends and songs come back under their own names. At **1** a
# sentence breaks here and there: *The musician leaned over the sunflower grew*. At **1.3** even people change: Stella becomes Freya. The
# **last prompt** shows what the model is. Its vocabulary lacks *because*, so it reads `<unk>`, and goes on as after a word that may stand
# there: *boy*, *ram who had …*. It has learnt these stories, not English.
#
# Are the draws fair? Draw the next word of one prompt two thousand times, and compare with the probabilities. χ² adds up the
# squared gaps between counts and expectations, each divided by the expectation. With eight words to draw from, fair draws
# exceed 24.3 once in a thousand times.

# %%
draws = generate(model, tokenizer, [PROMPT] * 2000, max_new_tokens=1, seed=0, top_k=8)
counts = Counter(one.ids[0] for one in draws)
expected = filtered_distribution(scores, top_k=8)  # (V,)
common = [i for i in expected.nonzero()[:, 0].tolist() if expected[i] * 2000 >= 5]
chi_squared = sum(
    (counts[i] - 2000 * expected[i].item()) ** 2 / (2000 * expected[i].item()) for i in common
)
assert set(counts) <= set(expected.nonzero()[:, 0].tolist()), (
    "a word came out that the filter had removed"
)
# 7 degrees of freedom, p = 0.001.
assert chi_squared < 24.3, "the draws do not follow the distribution"
again = generate(model, tokenizer, [PROMPT] * 20, max_new_tokens=1, seed=0, top_k=8)
assert [one.ids for one in again] == [one.ids for one in draws[:20]]
print(
    f"χ² = {chi_squared:.0f}: the draws follow the filtered distribution; and the same seed draws "
    "the same words"
)

# %% [markdown]
# ## Fifty stories
#
# The assignment's test: the first 5 words of 50 validation stories as prompts. Two numbers for each rule:
#
# - **perplexity**: exp of the mean negative log-probability of what was written, all tokens of all stories together, under the
#   model itself and always at temperature 1. It says how sure the model was of its own words;
# - **BLEU** ([Papineni et al. 2002](https://aclanthology.org/P02-1040/)), 0 to 100: the geometric mean of four shares, of how many of its words,
#   pairs, triples and fours stand in the true continuation too, lowered where the text is too short. The words of all stories
#   are counted together; the mean of the stories' own BLEUs stands beside it. The prompt does not count.
#
# Beside them two references: the true continuation, and text of a *trigram* model. It has no network: it draws the next word by
# how often that word followed the last two in training.
#
# **Predict.** Which text will have the lowest perplexity: the true one, the sampled, or the greedy one? And will it be the
# best?
#
# A sampled text is one draw of many, so each sampling rule writes several, each with a seed of its own: four here, ten in what was
# recorded on TinyStories. The intervals say what fifty other stories and other seeds might have given. They are a *bootstrap*:
# draw fifty stories and as many seeds with replacement, many times, and see how far the numbers move. Rules without chance have
# one text per story, so there only the stories vary.

# %%
train_ids = encode_stories(tokenizer, stories.train, model.config.context_length)  # (N, T)
tables = [defaultdict(Counter) for _ in range(3)]  # {0, 1 or 2 tokens before: {token: how often}}
for row in train_ids.tolist():
    for before, counts in enumerate(tables):
        for end in range(before, len(row) - row.count(tokenizer.pad_id)):
            counts[tuple(row[end - before : end])][row[end]] += 1


def trigram(ids):
    """Probabilities (V,) of the next token, each table smoothed towards the one before it."""
    probabilities = np.full(model.config.vocab_size, 1 / model.config.vocab_size)  # (V,)
    for before, counts in enumerate(tables):
        seen = counts.get(tuple(ids[len(ids) - before :]), {})
        probabilities = probabilities / (sum(seen.values()) + 1)  # (V,)
        probabilities[list(seen)] += np.array([*seen.values()]) / (sum(seen.values()) + 1)
    probabilities[tokenizer.excluded_ids(len(probabilities))] = 0
    return probabilities / probabilities.sum()


def trigram_writer(seed):
    rng = np.random.default_rng(seed)

    def write(ids, limit):
        new = []
        while len(new) < limit and tokenizer.eos_id not in new:
            new.append(int(rng.choice(model.config.vocab_size, p=trigram(ids + new))))
        return new

    return write


# %%
COUNT, SEEDS = 50, 4 if known else 10
held_out = stories.validation[:COUNT]
prompts_of_fifty = [" ".join(tokenizer.split(text)[:5]) for text in held_out]
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


def together(parts):
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


judged = {
    "the true continuation": evaluate_continuations(model, tokenizer, held_out, strategy="true")
}
for name, runs in protocol.items():
    judged[name] = together(
        [evaluate_continuations(model, tokenizer, held_out, **options) for options in runs]
    )
judged["trigram model"] = together(
    [
        evaluate_continuations(model, tokenizer, held_out, writer=trigram_writer(seed))
        for seed in range(SEEDS)
    ]
)
measured = {
    name: {
        "perplexity": found.perplexity,
        "bleu": found.bleu,
        "mean_story_bleu": found.mean_story_bleu,
        "intervals": found.intervals(),
        "texts": len(found.generations),
        "ended": sum(one.ids[-1:] == [tokenizer.eos_id] for one in found.generations),
    }
    for name, found in judged.items()
}


def score_table(measured):
    rows = []
    for name, found in measured.items():
        row = [name]
        for measure, digits in (("perplexity", 2), ("bleu", 1)):
            low, high = found["intervals"][measure]
            row += [f"{found[measure]:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"]
        rows.append([*row, f"{found['mean_story_bleu']:.1f}"])
    return table(
        rows,
        ["continuation", "perplexity", "95 % interval", "BLEU", "95 % of BLEU", "mean of stories"],
    )


print("trigram model:", judged["trigram model"].generations[0].text)

# %% tags=["nbval-ignore-output"]
score_table(measured)

# %%
perplexities = {name: found.perplexity for name, found in judged.items()}
assert perplexities["greedy"] < perplexities["temperature 1"] < perplexities["temperature 1.3"]
assert (
    perplexities["greedy"] < perplexities["the true continuation"] < perplexities["trigram model"]
)
print("greedy text is less surprising than the truth, trigram text far more: True")

# %% [markdown]
# The same on TinyStories, recorded. The earlier deliverable, another answer to the same assignment, reported 691 and 0.0 there: its `generate` wrote
# nothing, and what it scored was padding.

# %%
score_table({name: known["continuations"][name] for name in measured} if known else measured)

# %% [markdown]
# Low perplexity is not good writing. Greedy text and beams lie *below* the true continuation, on both corpora: they are less
# surprising than real stories are. Text drawn at temperature 1 should surprise the model about as much as real text does, if
# its probabilities are right. It nearly does: a little more than the truth on the bundled stories, a little less on
# TinyStories. The trigram model sees two words back and no more, and ours sees at once that such text goes nowhere.
#
# BLEU against one true continuation is low for every rule, because after five words a story can go anywhere. It rewards what
# is common: the less chance in a rule, the higher. Where two intervals overlap, a difference means little. And neither
# number shows whether a story makes sense: the trigram model, which makes none, gets its part of the BLEU too. (BLEU is
# sacrebleu's ([Post 2018](https://aclanthology.org/W18-6319/)): one reference, capitals kept, words already split, missing groups smoothed.)

# %% [markdown]
# ## The grammar as a judge
#
# Perplexity says how sure the model was, and BLEU how many words agree with one of many possible stories. Neither says whether
# a text could be a story at all. For real stories nobody knows; people read them, or ask a larger model. The bundled stories come
# from a grammar, and the grammar can say it: after any beginning it knows every word that may come next, and the exact
# probability of each. A text is **impossible** from the first word on that has probability zero, such as the name of somebody
# who is not in the story.

# %%
GRAMMAR = bundled_grammar() if CORPUS == "bundled" else None  # nobody knows that of other stories
if GRAMMAR:
    story = stories.validation[0]
    other = story.replace(story.split()[0], "Tom", 1)
    judged_story, judged_other = GRAMMAR.judge(story), GRAMMAR.judge(other)
    print(f"{story}\n→ complete: {judged_story.complete}, {judged_story.nats.sum():.1f} nats")
    words = tokenizer.split(other)
    print(
        f"\nwith another name at the start → impossible from word {judged_other.broken_at} on, "
        f"“{words[judged_other.broken_at]}”; the likeliest word there is "
        f"“{max(judged_other.possible, key=judged_other.possible.get)}”"
    )
    assert judged_story.complete
    assert judged_other.broken_at is not None

# %% [markdown]
# First the model itself, before any rule chooses from it. At each word of a story we know two distributions: $p$, the grammar's, and
# $q$, the model's. Their **Kullback–Leibler divergence** $\sum_w p(w) \ln \frac{p(w)}{q(w)}$ is what the model loses there on
# average, whichever word comes. So its mean over many stories must be the mean loss less the mean of $-\ln p$. That is
# the gap to the floor in notebook 04, measured in another way.
#
# **Predict.** The divergence is an exact sum over all words, the difference of losses depends on the words that happened to come.
# Which of the two measures the gap more precisely?

# %%
if GRAMMAR:
    truth = against_truth(model, tokenizer, GRAMMAR, stories.validation[:400])
    noise = truth["loss"] - truth["truth"] - truth["divergence"]  # (positions,)
    error = noise.std() / math.sqrt(len(noise))
    gap, divergence = (truth["loss"] - truth["truth"]).mean(), truth["divergence"].mean()
    claim(f"{len(noise):,} words of 400 validation stories are enough", len(noise) >= 20_000)
    claim(
        f"loss less true loss is ≈{gap:.4f} nats per word, the divergence ≈{divergence:.4f}: they "
        f"differ by ≈{abs(noise.mean()) / error:.1f} standard errors, fewer than 3",
        abs(noise.mean()) < 3 * error,
    )
    claim(
        f"the model gives ≈{100 * truth['impossible'].mean():.1f} % of its probability to "
        "impossible words, less than 5 %",
        truth["impossible"].mean() < 0.05,
    )

# %% [markdown]
# Now the rules. Each continues the first five words of 200 validation stories to their end, or to the end of the context. A
# continuation is **possible** if no word of it is impossible. *Words before* is the median number of words that a failed one
# wrote before its first impossible word, and *true cost* is the mean of $-\ln p$ of all words before that place: how surprising they
# are to somebody who knows the grammar.
#
# **Predict.** Which rule tells the most possible stories? Which the fewest?

# %%
verdicts = {}
if GRAMMAR:
    for name, runs in protocol.items():
        if name != "beam search, 10":
            written = evaluate_continuations(model, tokenizer, stories.validation[:200], **runs[0])
            verdicts[name] = judge_continuations(GRAMMAR, tokenizer, written)

# %% tags=["nbval-ignore-output"]
if verdicts:
    display(
        table(
            [
                [
                    name,
                    f"{found['possible']:.0%}",
                    f"{found['low']:.0%} to {found['high']:.0%}",
                    f"{found['words']:.0f}",
                    f"{found['nats']:.2f}",
                ]
                for name, found in verdicts.items()
            ],
            ["rule", "possible", "95 % interval", "words before", "true cost, nats"],
        )
    )

# %%
if verdicts:
    display(
        figures.save_figure(
            plots.bars(
                {name: 100 * found["possible"] for name, found in verdicts.items()},
                x_label="possible continuations, per cent of 200",
                title="Chance costs possible stories",
                intervals={
                    name: (100 * found["low"], 100 * found["high"])
                    for name, found in verdicts.items()
                },
            ),
            "05_possible",
            alt=(
                "Bars with intervals: the share of possible continuations under seven rules. "
                "Temperature 1.3 is far below the others."
            ),
        )
    )
    cool, plain, hot = (verdicts[f"temperature {t}"] for t in ("0.7", "1", "1.3"))
    claim(
        f"possible continuations fall from ≈{100 * cool['possible']:.0f} % at temperature 0.7 to "
        f"≈{100 * plain['possible']:.0f} % at 1 and ≈{100 * hot['possible']:.0f} % at 1.3",
        cool["possible"] > plain["possible"] and plain["low"] > hot["high"],
    )

# %% [markdown]
# **One impossible word is enough**, and at temperature 1 the model picks one with the small probability printed above, at each word
# anew. Over fifty words that adds up. What cuts off or lowers the unlikely words therefore helps a lot, and raising them does
# great harm. Compare this with the BLEU of the same rules: it hardly tells them apart. The true cost shows the price: rules that
# choose the likely words write what the grammar, too, finds likely, and less of the variety that its stories have.
#
# Do the texts end? The corpus says how often a story fits into the context; texts from nothing at temperature 1 should do the
# same.

# %%
if GRAMMAR:
    thousand = generate(
        model, tokenizer, [""] * 1000, max_new_tokens=model.config.context_length - 1, seed=0
    )
    ended = float(np.mean([one.ids[-1] == tokenizer.eos_id for one in thousand]))
    fits = (train_ids == tokenizer.eos_id).any(1).float().mean().item()
    claim(
        f"≈{100 * ended:.1f} % of 1,000 texts end within the context, and {fits:.1%} of the "
        "training stories do: within 5 points",
        abs(ended - fits) < 0.05,
    )

# %% [markdown]
# ## Beam search
#
# Greedy takes the best *next* word. The best *sentence* may begin with a second-best word. Beam search keeps the $k$ likeliest
# beginnings, extends each by every word, and keeps the $k$ likeliest again. Here it is without a batch or a cache:


# %%
def slow_beams(start, width, steps):
    """The running beams (ids, log-probability) after `steps`; and of each step the 2 · width best
    candidates, as (the beam that it extends, word, log-probability, kept).
    """
    beams, tree = [([], 0.0)], []
    for _ in range(steps):
        candidates = []
        for place, (ids, total) in enumerate(beams):
            best = log_probabilities([*start, *ids]).topk(2 * width)
            for score, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                candidates.append((total + score, [*ids, token], place))
        candidates = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * width]
        tree.append(
            [
                (place, tokenizer.word(ids[-1]), total, i < width)
                for i, (total, ids, place) in enumerate(candidates)
            ]
        )
        beams = [(ids, total) for total, ids, _ in candidates[:width]]
    return beams, tree


WIDTH, STEPS = 3, 5
beams, tree = slow_beams(START, WIDTH, STEPS)
fast = generate(model, tokenizer, [PROMPT], max_new_tokens=STEPS, strategy="beam", num_beams=WIDTH)[
    0
].beams
assert [one.ids for one in fast] == [ids for ids, _ in beams], (
    "the slow and the fast beam search differ"
)
print("the beams of `generate` are those of the slow search: True")

# %% [markdown]
# `generate` does the same for many prompts at once: all beams of all prompts are rows of one batch. When one beam continues
# another, it takes over that beam's keys and values (see *The cache*). Twice the width is ranked, because up to `width` of the
# candidates may end in `<eos>`; those are set aside with their score. `_is_done` stops a prompt when no running beam can
# still win.

# %%
show_source(beam_search)

# %%
figures.save_figure(
    plots.beam_tree(tree, title=f"Three beams after “… {PROMPT[-12:]}”"),
    "05_beams",
    alt=(
        "A tree from left to right: at each of five steps six candidate words with their "
        "log-probabilities, three of them kept."
    ),
)

# %% [markdown]
# Each column is a step, the best candidate on top; the number is the log-probability of the whole beginning, blue boxes are
# kept. Follow greedy's path, the best word of the best word of the best word: it need not stay on top. Where all blue boxes of a
# column hang on one parent, the other beginnings have died: wide as it is, the search soon goes on from one of them.
#
# Is it *right*? With texts of two words we can look for the ten likeliest by force. Adding a word never makes a text likelier. So a
# first word that is less likely than the tenth-best pair found cannot begin a better pair: we skip it. All others we try with
# every second word. Beam search with a beam for each of these first words must find the same ten. (With a beam for every
# beginning, it *is* exhaustive search. With ten it may miss some.)

# %%
ten = generate(model, tokenizer, [PROMPT], max_new_tokens=2, strategy="beam", num_beams=10)[0].beams
first = (scores >= ten[-1].logprob - 1e-4).nonzero()[:, 0].tolist()
wide = generate(
    model, tokenizer, [PROMPT], max_new_tokens=2, strategy="beam", num_beams=max(10, len(first))
)[0].beams
every = []
for word in first:
    after = log_probabilities([*START, word])  # (V,)
    every += [
        (scores[word].item() + after[other].item(), [word, other])
        for other in range(len(tokenizer))
    ]
every.sort(key=lambda pair: -pair[0])
likeliest = [ids for _, ids in every[:10]]
assert [one.ids for one in wide[:10]] == likeliest, "exhaustive search finds other pairs"
print(
    f"of all {(len(tokenizer) - 4) ** 2:,} pairs of words, {len(wide)} beams find the ten "
    "likeliest: True"
)
for width in (1, 2, 10):
    narrow = generate(
        model, tokenizer, [PROMPT], max_new_tokens=2, strategy="beam", num_beams=width
    )[0].beams
    print(
        f"of the {width} likeliest, {width} beams find "
        f"{sum(one.ids in likeliest[:width] for one in narrow)}"
    )

# %% [markdown]
# **Length.** Log-probabilities only fall, so long texts lose against short ones. The *length penalty* $\alpha$ compares
# $\log p \,/\, \text{length}^{\alpha}$ instead. Since $\log p$ is negative, a *larger* $\alpha$ favours *longer* texts. Two
# texts that have ended, with made-up numbers:

# %%
ended = {"short": (-6.0, 4), "long": (-9.0, 8)}  # log-probability, tokens
table(
    [
        [
            f"{alpha:g}",
            *(f"{total / length**alpha:.2f}" for total, length in ended.values()),
            max(ended, key=lambda name: ended[name][0] / ended[name][1] ** alpha),
        ]
        for alpha in (0.0, 0.5, 1.0)
    ],
    ["α", "short: −6 nats, 4 tokens", "long: −9 nats, 8 tokens", "wins"],
)

# %% [markdown]
# `generate` uses $\alpha = 1$ unless told otherwise. Does it matter? Five beams continue the beginnings of fifty stories,
# once with $\alpha = 0$ and once with $\alpha = 1$:

# %% tags=["nbval-ignore-output"]
by_length = {
    alpha: evaluate_continuations(
        model, tokenizer, held_out, strategy="beam", num_beams=5, length_penalty=alpha
    ).generations
    for alpha in (0.0, 1.0)
}
changed = [
    (prompt, short.text, long.text)
    for prompt, short, long in zip(prompts_of_fifty, *by_length.values(), strict=True)
    if short.ids != long.ids and short.ids[-1] == long.ids[-1] == tokenizer.eos_id
]
print(f"of 50 prompts, {len(changed)} get another complete story")
table(changed[:2], ["prompt", "α = 0", "α = 1"])

# %%
if known:
    assert changed, "the length penalty decides nothing"

# %% [markdown]
# **A wider beam is not always better.** It can lose even by its own measure: a beginning that would have led to the best text
# is pushed out by others that look better for a while. Here are the beginnings of a hundred stories, continued by 30 words.
#
# **Predict.** How often will five beams find a likelier text than greedy?

# %%
hundred = [" ".join(tokenizer.split(text)[:5]) for text in stories.validation[:100]]
found = {
    width: generate(model, tokenizer, hundred, max_new_tokens=30, strategy="beam", num_beams=width)
    for width in (1, 2, 5, 10)
}
gains = {
    (narrow, wide): np.array(
        [b.logprob - a.logprob for a, b in zip(found[narrow], found[wide], strict=True)]
    )
    for narrow, wide in ((1, 2), (1, 5), (2, 5), (5, 10))
}
widths_compared = {
    f"{narrow} and {wide}": {
        "likelier": int((gain > 1e-3).sum()),
        "same": int((abs(gain) <= 1e-3).sum()),
        "less likely": int((gain < -1e-3).sum()),
        "mean gain": float(gain.mean()),
    }
    for (narrow, wide), gain in gains.items()
}

# %% tags=["nbval-ignore-output"]
table(
    [
        [name, *list(row.values())[:3], f"{row['mean gain']:+.2f}"]
        for name, row in widths_compared.items()
    ],
    ["beams", "the wider is likelier", "the same", "less likely", "mean gain, nats"],
)

# %% [markdown]
# The worst case for two beams:

# %%
case = int(gains[1, 2].argmin())
table(
    [[width, f"{beams[case].logprob:.0f}", beams[case].text] for width, beams in found.items()],
    ["beams", "log-probability", f"after “{hundred[case]}”"],
)

# %%
assert gains[1, 2][case] < -0.1, "no wider beam lost: the sample is too small to show it"
assert widths_compared["2 and 5"]["likelier"] > widths_compared["2 and 5"]["less likely"]
print("there are prompts where greedy finds a likelier text than two beams: True")
if known:
    row = known["widths_compared"]["1 and 5"]
    print(
        f"on TinyStories, 5 beams against greedy: likelier {row['likelier']} times, less likely "
        f"{row['less likely']}, mean gain {row['mean gain']:+.1f} nats"
    )

# %% [markdown]
# Five beams find a likelier text than greedy for nearly every prompt. But ten beams, compared with five, lose more often than they win.
# So "beam search finds the likeliest text" is a hope, not a law.

# %% [markdown]
# ## Beam search against sampling
#
# Five validation prompts, beams of 5 and 10 against sampling, as the assignment asks. Speed is the median of five runs in which
# the rules take turns. *Distinct*: of all pairs of neighbouring words in the five texts together, the share that are
# different. Texts that resemble each other lower it.

# %%
five = stories.validation[:5]
rivals = {
    "sampling": {"seed": 0},
    "greedy": {"strategy": "greedy"},
    "5 beams": {"strategy": "beam", "num_beams": 5},
    "10 beams": {"strategy": "beam", "num_beams": 10},
}


def tokens_per_second(runs, repeats=5):
    """Median tokens per second of each, interleaved, after one run to warm up. runs: {name:
    function that counts tokens}.
    """
    speeds = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            count = run()
            if repeat:
                speeds[name].append(count / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in speeds.items()}


def written(options):
    return lambda: int(evaluate_continuations(model, tokenizer, five, **options).tokens.sum())


speeds = tokens_per_second({name: written(options) for name, options in rivals.items()})
compared = {
    name: evaluate_continuations(model, tokenizer, five, **options)
    for name, options in rivals.items()
}


def distinct(found):
    pairs = [pair for one in found.generations for pair in zip(one.ids, one.ids[1:], strict=False)]
    return len(set(pairs)) / len(pairs)


five_intervals = {name: found.intervals()["bleu"] for name, found in compared.items()}
per_token = {name: -found.nats.sum() / found.tokens.sum() for name, found in compared.items()}

# %% tags=["nbval-ignore-output"]
display(
    table(
        [
            [
                name,
                f"{speeds[name]:,.0f}",
                f"{speeds[name] / speeds['sampling']:.2f}",
                f"{found.bleu:.1f}",
                "{:.0f} to {:.0f}".format(*five_intervals[name]),
                f"{per_token[name]:.2f}",
                f"{distinct(found):.2f}",
            ]
            for name, found in compared.items()
        ],
        [
            "rule",
            f"tokens/s ({device.type}, {torch.get_num_threads()} threads)",
            "of sampling",
            "BLEU",
            "95 %",
            "log-probability per token",
            "distinct",
        ],
    )
)
table(
    [[name, found.generations[0].text] for name, found in compared.items()],
    ["rule", "the first of the five"],
)

# %%
assert min(per_token["5 beams"], per_token["10 beams"]) > per_token["sampling"]
print("beams find likelier text than sampling: True")

# %%
figures.save_figure(
    plots.bars(
        speeds, x_label="tokens per second (finished text only)", title="Finished tokens per second"
    ),
    "05_beam_speed",
    alt="Bars of tokens per second for sampling, greedy, 5 beams and 10 beams.",
)

# %% [markdown]
# **The trade-off.** Five beams read five rows for each token, ten beams ten, but all rows in one batch: the figure shows what
# that costs on this machine. Beams buy likelihood, and pay with variety: texts by greedy or by beams share more of their pairs of
# words than sampled ones do. BLEU on five prompts settles nothing: look at its intervals. So for stories, sample. Beams suit tasks
# with few right answers, such as translation.

# %% [markdown]
# ## The cache
#
# To write token 60, the model reads the 59 before it. To write token 61, it reads the same 59 again. Must it? Thanks to the
# causal mask nothing that a token computes depends on later tokens. So its keys and values, once computed, never change (as
# long as the text fits the context):

# %%
story = torch.tensor([tokenizer.encode_story(stories.validation[0], 40)], device=device)  # (1, T)
kept = []
for length in (20, 40):
    cache = KVCache(model.config, 1, device=device)
    with torch.no_grad():
        model(story[:, :length], cache)
    kept.append(torch.stack([cache.keys, cache.values])[..., :20, :])  # (2, L, 1, H, 20, d)
assert (kept[0] - kept[1]).abs().max() < 1e-5 * kept[0].abs().max(), (
    "old tokens change when new ones come"
)
print("20 more tokens leave the keys and values of the first 20 as they were, within 0.001 %: True")

# %% [markdown]
# **Keep them.** Reading then has two parts. *Prefill*: read the prompt in one pass, and fill the cache. *Decode*: read one new
# token; its query meets the stored keys. Queries need no cache: an old token has asked already.

# %%
show_source(KVCache)

# %%
cache = KVCache(model.config, 1, device=device)
with torch.no_grad():
    whole = model(story)  # (1, T, V)
    prefill = model(story[:, :10], cache)  # (1, 10, V)
    steps = [model(story[:, t : t + 1], cache) for t in range(10, 40)]  # (1, 1, V) each
difference = (torch.cat([prefill, *steps], dim=1) - whole).abs().max().item()
assert difference < 1e-4, "the cache changes the logits"
print("prefill and 30 single steps give the logits of one pass, within 0.0001: True")

# %% [markdown]
# The cache holds, for every layer, a key and a value of every token: $2 \cdot L \cdot B \cdot T \cdot D$ numbers of 4 bytes.

# %%
cache = KVCache(model.config, batch_size=20)
c = model.config
formula = 2 * c.num_layers * 20 * c.context_length * c.d_model * 4
assert cache.nbytes == formula
print(
    f"2 · {c.num_layers} layers · 20 texts · {c.context_length} places · width {c.d_model} · 4 "
    f"bytes = {formula:,} bytes"
)
print(
    f"set aside at once, and measured: {cache.nbytes:,}; the model itself has "
    f"{4 * model.num_parameters():,}"
)

# %% [markdown]
# Twenty prompts, written with and without the cache. Speed is measured side by side, for longer and longer texts.
#
# **Predict.** Without the cache, how does the time for one more token change as the text grows? And with it?

# %%
TWENTY = [" ".join(tokenizer.split(text)[:4]) for text in stories.validation[:20]]
LENGTHS = (7, 15, 30, 59)
speed = {}
for length in LENGTHS:

    def run(use_cache, length=length):
        found = generate(
            model, tokenizer, TWENTY, max_new_tokens=length, strategy="greedy", use_cache=use_cache
        )
        return sum(len(one.ids) for one in found)

    speed[length] = tokens_per_second(
        {"with cache": lambda: run(True), "without": lambda: run(False)}, repeats=3
    )
for options in ({"strategy": "greedy"}, {"seed": 0}, {"strategy": "beam", "num_beams": 5}):
    with_cache, without = (
        [
            one.ids
            for one in generate(
                model, tokenizer, TWENTY, max_new_tokens=59, use_cache=use_cache, **options
            )
        ]
        for use_cache in (True, False)
    )
    assert with_cache == without, f"{options}: the cache changes the text"
print(
    "20 texts of 59 tokens, greedy, sampled and with 5 beams, are the same with and without the "
    "cache, word for word"
)

# %% tags=["nbval-ignore-output"]
table(
    [
        [
            length,
            f"{fast['with cache']:,.0f}",
            f"{fast['without']:,.0f}",
            f"{fast['with cache'] / fast['without']:.1f} ×",
        ]
        for length, fast in speed.items()
    ],
    ["new tokens", "with cache, tokens/s", "without", "ratio"],
)

# %%
figures.save_figure(
    plots.compare_curves(
        {
            name: (LENGTHS, [speed[length][name] for length in LENGTHS])
            for name in ("with cache", "without")
        },
        x_label="new tokens per text",
        y_label="tokens per second, 20 texts",
        title="Tokens per second with and without a cache",
        from_zero=True,
    ),
    "05_cache_speed",
    alt="Tokens per second against text length: a line with the cache, and one without it.",
)

# %% [markdown]
# Counted: after a prompt of $m$ tokens, $n$
# new ones take about $mn + n^2/2$ token reads without a cache, and $m + n$ with it. So without a cache each token takes more
# reads than the one before it, with a cache one. (In a short text few tokens share the cost of the prompt.) A clock shows less
# than the ratio of the counts:
# one long read uses a processor better than many short ones, and a small step has a price of its own.

# %% [markdown]
# ## Three broken caches
#
# A cache that is wrong does not crash. Here are three mistakes; the second is that of the earlier deliverable.
#
# 1. **positions start anew**: each new token is read as if it stood at position 0;
# 2. **never filled**: the cache stays empty, so a new token sees only itself, at position 0;
# 3. **another row's keys**: each row goes on with its neighbour's keys and values, as when beams are reordered and the cache
#    is not.
#
# **Predict.** Which of them will you notice by reading the text?


# %%
@torch.no_grad()
def greedy_with(step, prompts, count, words=None):
    """Greedy text by step(cache, tokens, number of the step) -> logits; or, given words (B, count),
    the logits on them.

    Returns ids (B, count) and logits (B, count, V), each row of them scored before the word of that
    place was read.
    """
    start = torch.tensor(prompts, device=device)  # (B, T)
    cache = KVCache(model.config, len(prompts), device=device)
    logits, ids = [model(start, cache)[:, -1]], []  # prefill; logits (B, V)
    for number in range(count):
        scores = logits[-1].clone()  # (B, V)
        scores[
            :, [tokenizer.pad_id, tokenizer.sos_id, tokenizer.eos_id, tokenizer.unk_id]
        ] = -torch.inf
        scores[:, len(tokenizer) :] = -torch.inf
        ids.append(scores.argmax(-1) if words is None else words[:, number])  # (B,)
        if number < count - 1:
            logits.append(step(cache, ids[-1][:, None], number))  # (B, V)
    return torch.stack(ids, 1), torch.stack(logits, 1)  # (B, count), (B, count, V)


def right(cache, tokens, number):
    return model(tokens, cache)[:, -1]  # (B, V)


def positions_anew(cache, tokens, number):
    # The sinusoids: one line of the table is overwritten for this step.
    positions = model.positions.clone()  # (T, D)
    model.positions[cache.length] = positions[0]
    logits = model(tokens, cache)[:, -1]  # (B, V)
    model.positions.copy_(positions)
    return logits


def never_filled(cache, tokens, number):
    return model(tokens, KVCache(model.config, len(tokens), device=device))[:, -1]  # (B, V)


def rows_mixed(cache, tokens, number):
    if number == 0:
        cache.reorder(torch.arange(len(tokens), device=device).roll(1))
    return model(tokens, cache)[:, -1]  # (B, V)


# %% [markdown]
# Each writes thirty words after the same twenty openings. Two things are measured: how many of the pairs of neighbouring words
# that it writes stand somewhere in the training stories, and, on the words that the right cache chose, how far its logits lie
# from those of one pass over the whole text.

# %%
WORDS, NEW = 12, 30
openings = [tokenizer.split(text)[:WORDS] for text in stories.validation[:20]]
prompts = [[tokenizer.sos_id, *tokenizer.encode(" ".join(words))] for words in openings]
training_pairs = {pair for row in train_ids.tolist() for pair in pairwise(row)}
ids, _ = greedy_with(right, prompts, NEW)  # (B, NEW)
with torch.no_grad():
    whole = torch.cat([torch.tensor(prompts, device=device), ids], dim=1)  # (B, T + NEW)
    correct = model(whole)[:, len(prompts[0]) - 1 : -1]  # (B, NEW, V)
caches = {
    "right": right,
    "positions start anew": positions_anew,
    "never filled": never_filled,
    "another row's keys": rows_mixed,
}
drift, fluent, written_by = {}, {}, {}
for name, step in caches.items():
    texts_of, _ = greedy_with(step, prompts, NEW)  # (B, NEW)
    _, logits_of = greedy_with(step, prompts, NEW, words=ids)  # (B, NEW, V)
    pairs = [pair for row in texts_of.tolist() for pair in pairwise(row)]
    fluent[name] = float(np.mean([pair in training_pairs for pair in pairs]))
    drift[name] = (logits_of - correct).abs().amax(-1).mean(0).tolist()  # (NEW,)
    written_by[name] = tokenizer.decode(texts_of[0].tolist(), after=prompts[0])

table(
    [[name, text] for name, text in written_by.items()],
    ["cache", f"written after “{tokenizer.decode(prompts[0])}”"],
)

# %%
for name in ("positions start anew", "never filled", "another row's keys"):
    assert drift[name][0] < 1e-3, f"{name}: prefill is wrong too"
    assert min(drift[name][1:]) > 0.1, f"{name}: the logits do not show it"
assert max(drift["right"]) < 1e-3, "the right cache is wrong"
assert min(fluent["positions start anew"], fluent["another row's keys"]) > 0.7, (
    "two of them should pass at a glance"
)
print("right: within 0.001 of one pass at every word")
print("the three broken ones: right at the first word, off by more than 0.1 at every later one")
figures.save_figure(
    plots.compare_curves(
        {
            f"{name}: {fluent[name]:.0%} of pairs known": (range(1, NEW + 1), values)
            for name, values in drift.items()
        },
        x_label="new word",
        y_label="largest logit difference (mean of 20 texts)",
        title="Three broken caches are wrong from the second word on",
    ),
    "05_broken",
    alt=(
        "Largest logit difference to the right cache against the new word, for three broken "
        "caches: zero at the first, large after."
    ),
)

# %% [markdown]
# **No error appears, and in two of the three nearly all neighbouring words fit, while the logits are wrong.** Prefill is right in
# all three, so the first new word is right. From the second on the logits are wrong. With wrong positions, or with another row's
# keys, nearly all pairs of words are known from training. A careful reader notices all the same: one text meets the same
# goblin twice in one sentence; in another, *he* becomes *she*. With an empty cache the next word depends on the last word alone; as soon as a word comes back, the text runs in
# a circle. So do not judge a cache by its text. Compare its logits with those of one pass, on a *batch of different texts*: on a
# single text, mixed rows would not be seen. The figure does not say how bad a difference is; a text can survive a large one.

# %% cellView="form" tags=["numbers"]
# @title The numbers that notebook 07 reports
figures.save_numbers(
    "05",
    {
        "distribution": {
            name: probabilities[order].tolist() for name, probabilities in rules.items()
        },
        "words": list(likeliest),
        "continuations": measured,
        "verdicts": verdicts,
        "prompts": PROMPTS,
        "samples": {name: [one.text for one in found] for name, found in texts.items()},
        "beams": {
            name: {
                "tokens_per_second": speeds[name],
                "bleu": found.bleu,
                "bleu_interval": five_intervals[name],
                "logprob_per_token": per_token[name],
                "distinct_pairs": distinct(found),
            }
            for name, found in compared.items()
        },
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
# - One distribution, four rules: temperature bends it, top-k and top-p cut it, greedy takes its top.
# - Less surprising than the truth is not better than the truth: greedy text and beams lie below it.
# - Beam search finds likelier text than sampling, for a row of the batch for each beam. Against greedy it mostly wins, and can lose.
# - A larger length penalty favours longer texts.
# - Old keys and values never change, so a cache keeps them: the same text, and every token is read once.
# - A broken cache raises no error, and its text may pass at a glance. Logits on a batch tell.
#
# ## Try it
#
# 1. Move the sliders until only one word is left. Which of the three did it, and is there another way?
# 2. Write with `temperature=0.1` and with `strategy="greedy"`. How often do they differ?
# 3. Break the cache in a fourth way: `cache.length -= 1` after every step. Does the text show it?
#
# ## References
#
# - [Holtzman et al. 2020](https://arxiv.org/abs/1904.09751), *The Curious Case of Neural Text Degeneration*
# - [Papineni et al. 2002](https://aclanthology.org/P02-1040/), *BLEU*; [Post 2018](https://aclanthology.org/W18-6319/), *A Call for Clarity in Reporting BLEU Scores*
# - [Wu et al. 2016](https://arxiv.org/abs/1609.08144), *Google's Neural Machine Translation System*, section 7 on length
