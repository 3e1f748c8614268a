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
# and watch its tree grow, and make all of them several times faster with a cache that changes not one word. Then you will
# break the cache in three ways, and see that the text does not show it.
#
# **Prerequisites.** [04 · Training](04_training.ipynb). The trained model is read from `checkpoints/`; where there is none, it
# is trained first.
#
# **Running time.** About two minutes on two cores.

# %% tags=["parameters"]
CORPUS = "bundled"  # "tinystories" (from the Hugging Face Hub), or the path of a file, or of a folder with train.* and validation.*

# %% tags=["setup"]
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/lohar-animesh-27112001/ELL881-advance_LLM-assignment"

if "google.colab" in sys.modules and not Path("/content/course").exists():
    subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, "/content/course"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", "/content/course"], check=True)
here = Path("/content/course") if "google.colab" in sys.modules else Path.cwd().resolve()
ROOT = next((folder for folder in (here, *here.parents) if (folder / "helpers").is_dir()), None)
if ROOT is None:
    raise RuntimeError("open this notebook inside the repository: no folder `helpers` above the working folder")
sys.path.insert(0, str(ROOT))
os.chdir(ROOT / "notebooks")

# %%
import math
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import torch

from helpers import plots
from helpers.decoding import beam_search, filtered_distribution, generate, token_by_token
from helpers.evaluation import Trigram, bleu_signature, evaluate_continuations
from helpers.model import KVCache
from helpers.plots import FigureFolder, SamplingExplorer, load_numbers, show_source, table
from helpers.stories import load_stories
from helpers.training import encode_stories, load_or_train

figures = FigureFolder(CORPUS)
known = load_numbers("tinystories", "05") if CORPUS == "bundled" else {}  # the same notebook, run on TinyStories
model, tokenizer, metadata = load_or_train(CORPUS)
stories = load_stories(CORPUS, validation=500)
device = model.output.weight.device
print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} words, trained for {metadata['step']} steps")

# %% [markdown]
# ## One distribution
#
# Here is the beginning of a story. What does the model expect next?

# %%
PROMPT = "Tom was a small boy who lived near the sea. Tom had a wise dog named Max who told jokes. One day, Tom"


def next_distribution(prompt):
    ids = torch.tensor([[tokenizer.sos_id, *tokenizer.encode(prompt)]], device=device)  # (1, T)
    with torch.no_grad():
        logits = model(ids)[0, -1].float().cpu()  # (V,)
    logits[[tokenizer.pad_id, tokenizer.sos_id, tokenizer.unk_id]] = -torch.inf  # these never come out
    logits[len(tokenizer) :] = -torch.inf
    return logits


logits = next_distribution(PROMPT)
order = logits.argsort(descending=True)[:12].tolist()
likeliest = {tokenizer.word(i): i for i in order}

# %% [markdown]
# Four rules for the same logits $z$:
#
# - **greedy**: the likeliest word, always;
# - **temperature** $\tau$: draw from $\mathrm{softmax}(z / \tau)$. Below 1 the likely words gain, above 1 the unlikely ones;
# - **top-k**: only the $k$ likeliest words stay;
# - **top-p**, the nucleus (Holtzman et al. 2020 [@holtzman2020curious]): the fewest words whose probabilities sum to $p$ stay.
#   In a clear case that is one word, in an open one hundreds.
#
# **Predict.** Which of the four keeps the *shape* of what it lets through, and which bends it?

# %%
rules = {
    "as it is": filtered_distribution(logits),
    "temperature 0.5": filtered_distribution(logits, temperature=0.5),
    "temperature 1.5": filtered_distribution(logits, temperature=1.5),
    "top-k 3": filtered_distribution(logits, top_k=3),
    "top-p 0.8": filtered_distribution(logits, top_p=0.8),
}
figures.save_figure(
    plots.distributions(
        list(likeliest),
        {name: probabilities[order].tolist() for name, probabilities in rules.items()},
        title=f"The next word after “… {PROMPT[-12:]}”",
    ),
    "05_distribution",
    alt="Probabilities of the twelve likeliest next words under five rules, as bars: low temperature and filters move them up.",
)

# %% [markdown]
# Temperature bends the distribution: ratios between words change, and no word is ever out. The two filters cut it off and
# scale up what is left, so ratios stay. The figure shows one place in one story; elsewhere nearly all of the probability is
# on one word, and all rules agree.

# %%
for name, probabilities in rules.items():
    print(f"{name:16} {int((probabilities > 0).sum()):5,} words left, sum {probabilities.sum():.3f}")
a, b = order[0], order[1]
ratio = {name: (probabilities[a] / probabilities[b]).item() for name, probabilities in rules.items()}
assert math.isclose(ratio["as it is"], ratio["top-k 3"], rel_tol=1e-4), "a filter keeps the ratios"
assert math.isclose(ratio["as it is"] ** 2, ratio["temperature 0.5"], rel_tol=1e-4), "temperature 0.5 squares them"

# %% [markdown]
# Try them together (live in Jupyter and Colab):

# %%
SamplingExplorer(lambda temperature, top_k, top_p: filtered_distribution(logits, temperature, top_k, top_p), likeliest)

# %% [markdown]
# ## Word by word
#
# `generate` repeats one step: read, choose, append, until `<eos>` or the end of the context. Prompts of unequal length stand
# in one batch with `<pad>` on their left, which no token looks at. A text that has ended leaves the batch.

# %%
show_source(token_by_token)

# %% [markdown]
# `pick` is the rule: the likeliest token, or a draw. Each prompt draws from a random stream of its own, so its text does not
# depend on what else is in the batch. Here are four prompts. No story of the bundled corpus begins like the last one.

# %%
PROMPTS = [
    "Once upon a time, there was a",
    "Mia was a little girl who",
    "Long ago, a princess named",
    "Tom was sad because",
]
how = {
    "greedy": {"strategy": "greedy"},
    "temperature 0.7": {"temperature": 0.7, "seed": 0},
    "temperature 1": {"seed": 0},
    "temperature 1.3": {"temperature": 1.3, "seed": 0},
}

# %% tags=["nbval-ignore-output"]
texts = {name: generate(model, tokenizer, PROMPTS, max_new_tokens=40, **options) for name, options in how.items()}
table(
    [[name, prompt, found.text] for name in texts for prompt, found in zip(PROMPTS, texts[name], strict=True)],
    ["rule", "prompt", "continuation"],
)

# %% [markdown]
# Read them for their meaning: who does what, and does the next sentence know it? **Greedy** sentences are right, names return
# where they should, and the texts resemble each other: the commonest friend, the commonest song. At **temperature 0.7** every
# detail differs, and most of it still fits. Not all: look for a song that is sung by an animal nobody has met. At
# **temperature 1** one text has a sentence that lost its way in the middle, and at **1.3** most texts have one: after a word
# that has no business there, the model must go on from a place where it has never been. After **the last prompt** all rules
# do badly. No story goes on from *because*, so the model falls back on what it knows of beginnings: *who lived …*. It has
# learnt these stories, not English.
#
# Are the draws fair? Draw the next word of one prompt two thousand times, and compare with the probabilities.

# %%
draws = generate(model, tokenizer, [PROMPT] * 2000, max_new_tokens=1, seed=0, top_k=8)
counts = Counter(one.ids[0] for one in draws)
expected = filtered_distribution(logits, top_k=8)  # (V,)
common = [i for i in expected.nonzero()[:, 0].tolist() if expected[i] * 2000 >= 5]
chi_squared = sum((counts[i] - 2000 * expected[i].item()) ** 2 / (2000 * expected[i].item()) for i in common)
assert set(counts) <= set(expected.nonzero()[:, 0].tolist()), "a word came out that the filter had removed"
assert chi_squared < 24.3, "the draws do not follow the distribution"  # 7 degrees of freedom, p = 0.001
again = generate(model, tokenizer, [PROMPT] * 20, max_new_tokens=1, seed=0, top_k=8)
assert [one.ids for one in again] == [one.ids for one in draws[:20]]
print(
    "draws follow the filtered distribution (χ² below its 99.9 % point), and the same seed draws the same words: True"
)

# %% [markdown]
# ## Fifty stories
#
# The assignment's test: the first 5 words of 50 validation stories as prompts. Two numbers for each rule:
#
# - **perplexity** per token of what was written, under the model itself: how sure it was of its own words;
# - **BLEU** (Papineni et al. 2002 [@papineni2002bleu]): how many of its word groups, up to four words long, stand in the true
#   continuation too, from 0 to 100. The prompt has no part in it.
#
# Beside them two references: the true continuation, and text of a *trigram* model, which has no network.
#
# **Predict.** Which text will have the lowest perplexity: the true one, the sampled, or the greedy one? And will it be the
# best?
#
# A sampled text is one draw of many, so each sampling rule writes ten, with ten seeds. The intervals say what fifty other
# stories and ten other seeds might have given (a bootstrap over both).

# %%
COUNT, SEEDS = 50, 10
held_out = stories.validation[:COUNT]
protocol = {
    "greedy": [{"strategy": "greedy"}],
    "beam search, 5": [{"strategy": "beam", "num_beams": 5}],
    "beam search, 10": [{"strategy": "beam", "num_beams": 10}],
    "temperature 0.7": [{"temperature": 0.7, "seed": seed} for seed in range(SEEDS)],
    "temperature 1": [{"seed": seed} for seed in range(SEEDS)],
    "temperature 1.3": [{"temperature": 1.3, "seed": seed} for seed in range(SEEDS)],
}


def together(parts):
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


judged = {"the true continuation": evaluate_continuations(model, tokenizer, held_out, strategy="true")}
for name, runs in protocol.items():
    judged[name] = together([evaluate_continuations(model, tokenizer, held_out, **options) for options in runs])
train_ids = encode_stories(tokenizer, stories.train, model.config.context_length)  # (N, T)
trigram = Trigram(train_ids, model.config.vocab_size)
limit = model.config.context_length - 6
judged["trigram model"] = together(
    [trigram.continuations(model, tokenizer, judged["greedy"], limit, seed) for seed in range(SEEDS)]
)
scores = {
    name: {"perplexity": found.perplexity, "bleu": found.bleu, "intervals": found.intervals()}
    for name, found in judged.items()
}


def score_table(scores):
    rows = []
    for name, found in scores.items():
        row = [name]
        for measure, digits in (("perplexity", 2), ("bleu", 1)):
            low, high = found["intervals"][measure]
            row += [f"{found[measure]:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"]
        rows.append(row)
    return table(rows, ["continuation", "perplexity", "95 % interval", "BLEU", "95 % interval of BLEU"])


print(bleu_signature())

# %% tags=["nbval-ignore-output"]
score_table(scores)

# %%
perplexities = {name: found.perplexity for name, found in judged.items()}
assert perplexities["greedy"] < perplexities["temperature 1"] < perplexities["temperature 1.3"]
assert perplexities["greedy"] < perplexities["the true continuation"] < perplexities["trigram model"]
print("greedy text is less surprising than the truth, trigram text far more: True")

# %% [markdown]
# The same on TinyStories, recorded. An earlier deliverable of the same assignment reported 691 and 0.0 there: its `generate` wrote
# nothing, and what it scored was padding.

# %%
score_table(known["continuations"] if known else scores)

# %% [markdown]
# Low perplexity is not good writing. Greedy text and beams lie *below* the true continuation: they are less surprising than
# real stories are. At temperature 1, on both corpora, the text is about as surprising as the truth. That is how it should be:
# text drawn from a model's own probabilities surprises it as much as real text does, if those probabilities are right. The
# trigram text is right from word to word, and the model sees at once that it goes nowhere.
#
# BLEU against one true continuation is low for every rule, because after five words a story can go anywhere. Where two
# intervals overlap, a difference means little. And neither number shows whether a story makes sense: the trigram model, which
# makes none, still gets a part of the BLEU. (BLEU is sacrebleu's [@post2018call], words as tokens; the signature above says how.)

# %% [markdown]
# ## Beam search
#
# Greedy takes the best *next* word. The best *sentence* may begin with a second-best word. Beam search keeps the $k$ likeliest
# beginnings, extends each by every word, and keeps the $k$ likeliest again. Written out slowly:


# %%
def slow_beams(prompt, width, steps):
    """The running beams after each step, as (parent, word, log-probability, kept), the 2 · width best candidates each."""
    start = [tokenizer.sos_id, *tokenizer.encode(prompt)]
    beams, tree = [([], 0.0, 0)], []
    for _ in range(steps):
        candidates = []
        for ids, total, place in beams:
            with torch.no_grad():
                scores = model(torch.tensor([start + ids], device=device))[0, -1].log_softmax(-1)  # (V,)
            scores[[tokenizer.pad_id, tokenizer.sos_id, tokenizer.unk_id]] = -torch.inf
            best = scores[: len(tokenizer)].topk(2 * width)
            for score, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                candidates.append((total + score, [*ids, token], place))
        candidates = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * width]
        tree.append(
            [
                (place, tokenizer.word(ids[-1]), total, rank < width)
                for rank, (total, ids, place) in enumerate(candidates)
            ]
        )
        beams = [(ids, total, rank) for rank, (total, ids, _) in enumerate(candidates[:width])]
    return beams, tree


WIDTH, STEPS = 4, 6
beams, tree = slow_beams(PROMPT, WIDTH, STEPS)
fast = generate(model, tokenizer, [PROMPT], max_new_tokens=STEPS, strategy="beam", num_beams=WIDTH)[0].beams
assert [one.ids for one in fast] == [ids for ids, _, _ in beams], "the slow and the fast beam search differ"
print("the beams of `generate` are those of the slow search: True")

# %% [markdown]
# `generate` does the same for many prompts at once. All beams of all prompts are rows of one batch. When a beam goes on from
# another one, its rows in the cache (below) are copied along.

# %%
show_source(beam_search)

# %%
figures.save_figure(
    plots.beam_tree(tree, title=f"Four beams after “… {PROMPT[-12:]}”"),
    "05_beams",
    alt="A tree from left to right: at each of six steps eight candidate words with their log-probabilities, four of them kept.",
)

# %% [markdown]
# Each column is a step, the best candidate on top; the number is the log-probability of the whole beginning, blue boxes are
# kept. Look for a blue box whose parent was not on top: greedy would never have come there. And look at how soon all blue
# boxes hang on one early branch: wide as it is, the search soon differs in its last words only.
#
# Log-probabilities only fall, so long texts lose against short ones. The **length penalty** $\alpha$ compares
# $\log p \,/\, \text{length}^{\alpha}$ instead. Since $\log p$ is negative, a *larger* $\alpha$ favours *longer* texts.

# %%
hundred = [" ".join(tokenizer.split(text)[:5]) for text in stories.validation[:100]]
lengths = {}
for alpha in (0.0, 0.5, 1.0, 2.0):
    found = generate(
        model, tokenizer, hundred[:20], max_new_tokens=58, strategy="beam", num_beams=5, length_penalty=alpha
    )
    lengths[alpha] = np.mean([len(one.ids) for one in found])
assert list(lengths.values()) == sorted(lengths.values()), "a larger penalty gives longer texts"
print("mean length never falls as the penalty grows:", " ≤ ".join(f"α = {alpha:g}" for alpha in lengths))

# %% [markdown]
# **A wider beam is not always better.** It can lose even by its own measure: a beginning that would have led to the best text
# is pushed out by others that look better for a while. Let us look for such cases among the beginnings of a hundred stories.

# %%
found = {
    width: generate(model, tokenizer, hundred, max_new_tokens=30, strategy="beam", num_beams=width, length_penalty=0.0)
    for width in (1, 2, 5, 10)
}
pairs_of_widths = ((1, 2), (1, 5), (2, 5), (5, 10))
losses = {
    (narrow, wide): [b.logprob - a.logprob for a, b in zip(found[narrow], found[wide], strict=True)]
    for narrow, wide in pairs_of_widths
}
worse = {widths: sum(difference < -1e-3 for difference in differences) for widths, differences in losses.items()}

# %% tags=["nbval-ignore-output"]
table(
    [[f"{narrow} and {wide}", count] for (narrow, wide), count in worse.items()],
    ["widths", "of 100 prompts, the wider beam is less likely"],
)

# %% [markdown]
# The worst of them, 1 beam (greedy) against 2:

# %% tags=["nbval-ignore-output"]
case = int(np.argmin(losses[1, 2]))
table(
    [[width, f"{kept[case].logprob:.1f}", kept[case].text] for width, kept in found.items()],
    ["beams", "log-probability", f"written after “{hundred[case]}”"],
)

# %%
assert min(losses[1, 2]) < -0.1, "no wider beam lost: the sample is too small to show it"
print("there are prompts where greedy finds a likelier text than two beams: True")

# %% [markdown]
# ## Beam search against sampling
#
# Five validation prompts, beams of 5 and 10 against sampling, as the assignment asks. *Distinct* is the share of different
# pairs of words among all pairs: repetition lowers it. Speed is a ratio to sampling, measured side by side, the median of
# several runs.

# %%
five = stories.validation[:5]
rivals = {
    "sampling": {"seed": 0},
    "greedy": {"strategy": "greedy"},
    "5 beams": {"strategy": "beam", "num_beams": 5},
    "10 beams": {"strategy": "beam", "num_beams": 10},
}


def tokens_per_second(runs, repeats=5):
    """Median tokens per second of each, interleaved, after one run to warm up. runs: {name: function that counts tokens}."""
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
compared = {name: evaluate_continuations(model, tokenizer, five, **options) for name, options in rivals.items()}


def distinct(found):
    pairs = [pair for one in found.generations for pair in zip(one.ids, one.ids[1:], strict=False)]
    return len(set(pairs)) / len(pairs)


# %% tags=["nbval-ignore-output"]
table(
    [
        [
            name,
            f"{speeds[name]:,.0f}",
            f"{found.bleu:.1f}",
            f"{-found.nats.sum() / found.tokens.sum():.2f}",
            f"{distinct(found):.2f}",
            found.generations[0].text,
        ]
        for name, found in compared.items()
    ],
    ["rule", "tokens/s", "BLEU", "log-probability per token", "distinct pairs", "the first of the five"],
)

# %%
assert speeds["10 beams"] < speeds["5 beams"] < speeds["sampling"], "more beams are slower"
per_token = {name: -found.nats.sum() / found.tokens.sum() for name, found in compared.items()}
assert min(per_token["5 beams"], per_token["10 beams"]) > per_token["sampling"]
print("beams find likelier text than sampling, and take longer for it: True")

# %%
figures.save_figure(
    plots.bars(speeds, x_label="tokens per second (finished text only)", title="Beams cost speed"),
    "05_beam_speed",
    alt="Bars of tokens per second for sampling, greedy, 5 beams and 10 beams: the more beams, the slower.",
)

# %% [markdown]
# The trade-off: beam search reads $k$ rows for every row that it returns, and finds text that the model thinks likelier. Likelier
# is not better: it is the most ordinary story, told again. For translation, where one right answer exists, that is what is
# wanted; for stories, sampling is. BLEU on five prompts settles nothing: look at how wide the intervals are for fifty. Beside the
# likelihood, beams buy sameness: read the texts, and see the pairs repeat.

# %% [markdown]
# ## The cache
#
# To write token 60, the model reads the 59 before it. To write token 61, it reads the same 59 again. Must it? Thanks to the
# causal mask nothing that a token computes depends on later tokens. So its keys and values, once computed, never change:

# %%
story = torch.tensor([tokenizer.encode_story(stories.validation[0], 40)], device=device)  # (1, T)
kept = []
for length in (20, 40):
    cache = KVCache(model.config, 1, device=device)
    with torch.no_grad():
        model(story[:, :length], cache)
    kept.append(cache.keys[..., :20, :].clone())  # (L, 1, H, 20, K)
assert torch.allclose(kept[0], kept[1], atol=1e-5), "keys of old tokens change when new tokens come"
print("20 more tokens change the keys of the first 20 by less than 0.00001: True")

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
    f"for 20 stories: {cache.nbytes:,} bytes, as the formula says; the model itself has {4 * model.num_parameters():,}"
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
        found = generate(model, tokenizer, TWENTY, max_new_tokens=length, strategy="greedy", use_cache=use_cache)
        return sum(len(one.ids) for one in found)

    speed[length] = tokens_per_second({"with cache": lambda: run(True), "without": lambda: run(False)}, repeats=3)
same = [
    [one.ids for one in generate(model, tokenizer, TWENTY, max_new_tokens=59, strategy="greedy", use_cache=cached)]
    for cached in (True, False)
]
assert same[0] == same[1], "the cache changes the text"
print("20 texts of 59 tokens, with and without the cache: the same, word for word")

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
ratios = {length: fast["with cache"] / fast["without"] for length, fast in speed.items()}
assert ratios[59] > max(2, ratios[7]), "the cache does not pay, or not more for longer texts"
figures.save_figure(
    plots.compare_curves(
        {name: (LENGTHS, [speed[length][name] for length in LENGTHS]) for name in ("with cache", "without")},
        x_label="new tokens a text",
        y_label="tokens per second, 20 texts",
        title="With a cache, speed hardly depends on length",
    ),
    "05_cache_speed",
    alt="Tokens per second against text length: with the cache nearly flat, without it falling.",
)

# %% [markdown]
# Without a cache, a text of $n$ tokens takes $1 + 2 + \dots + n \approx n^2/2$ token reads; with it, $n$. The figure shows
# speeds, not quality: quality is the same, because the text is the same.

# %% [markdown]
# ## Three broken caches
#
# A cache that is wrong does not crash. Here are three mistakes that real programs have made:
#
# 1. **positions start anew**: each new token is read as if it stood at position 0;
# 2. **never filled**: the cache stays empty, so a new token sees itself only;
# 3. **one row for all**: rows get another row's keys, as when beams are reordered and the cache is not.
#
# **Predict.** Which of them will you notice by reading the text?


# %%
@torch.no_grad()
def greedy_with(step, prompts, count, words=None):
    """Greedy text by step(cache, tokens, number of the step) -> logits; or, given words (B, count), the logits on them.

    Returns ids (B, count) and logits (B, count, V), each row of them scored before the word of that place was read.
    """
    start = torch.tensor(prompts, device=device)  # (B, T)
    cache = KVCache(model.config, len(prompts), device=device)
    logits, ids = [model(start, cache)[:, -1]], []  # prefill; logits (B, V)
    for number in range(count):
        scores = logits[-1].clone()  # (B, V)
        scores[:, [tokenizer.pad_id, tokenizer.sos_id, tokenizer.eos_id, tokenizer.unk_id]] = -torch.inf
        scores[:, len(tokenizer) :] = -torch.inf
        ids.append(scores.argmax(-1) if words is None else words[:, number])  # (B,)
        if number < count - 1:
            logits.append(step(cache, ids[-1][:, None], number))  # (B, V)
    return torch.stack(ids, 1), torch.stack(logits, 1)  # (B, count), (B, count, V)


def right(cache, tokens, number):
    return model(tokens, cache)[:, -1]  # (B, V)


def positions_anew(cache, tokens, number):
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
# Each writes thirty words after the same twenty prompts. Two things are measured: how many of the pairs of neighbouring words
# that it writes stand somewhere in the training stories (that is what *fluent* means here), and, on the words that the right
# cache chose, how far the largest logit difference goes.

# %%
WORDS, NEW = 12, 30
openings = [tokenizer.split(text)[:WORDS] for text in stories.validation[:20]]
prompts = [[tokenizer.sos_id, *tokenizer.encode(" ".join(words))] for words in openings]
training_pairs = {pair for row in train_ids.tolist() for pair in pairwise(row)}
ids, correct = greedy_with(right, prompts, NEW)
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

# %% tags=["nbval-ignore-output"]
table(
    [[name, f"{fluent[name]:.0%}", written_by[name]] for name in caches],
    ["cache", "pairs known", f"written after “{tokenizer.decode(prompts[0])}”"],
)

# %%
for name in ("positions start anew", "never filled", "another row's keys"):
    assert drift[name][0] == 0, f"{name}: prefill is wrong too"
    assert min(drift[name][1:]) > 0.1, f"{name}: the logits do not show it"
assert max(drift["right"]) == 0
assert min(fluent["positions start anew"], fluent["another row's keys"]) > 0.7, "two of them should read well"
print("the three agree on the prompt, and are off by more than 0.1 at every word after the first: True")
figures.save_figure(
    plots.compare_curves(
        {name: (range(1, NEW + 1), values) for name, values in drift.items()},
        x_label="new word",
        y_label="largest logit difference, mean of 20 texts",
        title="Three broken caches are wrong from the second word on",
    ),
    "05_broken",
    alt="Largest logit difference to the right cache against the new word, for three broken caches: zero at the first, large after.",
)

# %% [markdown]
# **The text stays fluent while the logits drift.** Prefill is right in all three, so the first new word is right. From the
# second on every logit is off, yet with wrong positions and with another row's keys nearly all pairs of words are still good
# ones: the model writes on as if nothing had happened, about somebody else. Only the cache that is never filled gives itself
# away, since a word that sees nothing but itself soon repeats. So do not judge a cache by its text. Compare its logits with
# those of one full pass, as we did above: that test fails all three. The figure says nothing of how *bad* a difference is; a
# text can survive a large one.

# %%
figures.save_numbers(
    "05",
    {
        "distribution": {name: probabilities[order].tolist() for name, probabilities in rules.items()},
        "words": list(likeliest),
        "continuations": scores,
        "samples": {name: [one.text for one in found] for name, found in texts.items()},
        "beams": {
            name: {
                "tokens_per_second": speeds[name],
                "bleu": found.bleu,
                "logprob_per_token": per_token[name],
                "distinct_pairs": distinct(found),
            }
            for name, found in compared.items()
        },
        "wider_is_worse": {f"{narrow}, {wide}": count for (narrow, wide), count in worse.items()},
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
# - Less surprising than the truth is not better than the truth: sampling at temperature 1 matches it best.
# - Beam search finds likelier text, for more time; a wider beam can lose; a larger length penalty favours longer text.
# - Old keys and values never change, so a cache keeps them: the same text, several times faster.
# - A broken cache writes fluent text. Only the logits tell.
#
# ## Try it
#
# 1. Move the sliders until only one word is left. Which of the three did it, and is there another way?
# 2. Write with `temperature=0.1` and with `strategy="greedy"`. How often do they differ?
# 3. Break the cache in a fourth way: `cache.crop(cache.length - 1)` after every step. Does the text show it?
#
# ## References
#
# - Holtzman et al. 2020, *The Curious Case of Neural Text Degeneration* [@holtzman2020curious]
# - Papineni et al. 2002, *BLEU* [@papineni2002bleu]; Post 2018, *A Call for Clarity in Reporting BLEU Scores* [@post2018call]
# - Wu et al. 2016, *Google's Neural Machine Translation System*, section 7 on length [@wu2016google]
