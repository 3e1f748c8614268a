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

import numpy as np
import torch

from helpers import plots
from helpers.decoding import filtered_distribution, generate
from helpers.evaluation import Trigram, evaluate_continuations
from helpers.model import KVCache
from helpers.plots import FigureFolder, SamplingExplorer, show_source, table
from helpers.stories import load_stories
from helpers.training import encode_stories, load_or_train

figures = FigureFolder(CORPUS)
model, tokenizer, metadata = load_or_train(CORPUS)
stories = load_stories(CORPUS, validation=500)
print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} words, trained for {metadata['step']} steps")

# %% [markdown]
# ## One distribution
#
# Here is the beginning of a story. What does the model expect next?

# %%
PROMPT = "Mia was a little girl. She had a"


def next_distribution(prompt):
    ids = torch.tensor([[tokenizer.sos_id, *tokenizer.encode(prompt)]], device=model.output.weight.device)  # (1, T)
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
        title=f"The next word after “{PROMPT} …”",
    ),
    "05_distribution",
    alt="Probabilities of the twelve likeliest next words under five rules, as bars: low temperature and filters move them up.",
)

# %% [markdown]
# Temperature bends the distribution: ratios between words change. The two filters cut it off and scale up what is left, so
# ratios stay. The figure shows one place in one story; elsewhere nearly all of the probability is on one word, and the rules
# agree.

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
# `generate` repeats one step: read, choose, append, until `<eos>` or the end of the context. Each prompt draws from a random
# stream of its own, so a text does not depend on what else is in the batch.

# %%
PROMPTS = ["Once upon a time, there was a", "Tom was sad because", "The next morning, the girl", "One day, a"]
how = {
    "greedy": {"strategy": "greedy"},
    "temperature 0.7": {"temperature": 0.7, "seed": 0},
    "temperature 1": {"seed": 0},
    "temperature 1.3": {"temperature": 1.3, "seed": 0},
}

# %% tags=["nbval-ignore-output"]
texts = {name: generate(model, tokenizer, PROMPTS, max_new_tokens=40, **options) for name, options in how.items()}
table([[name, prompt, found.text] for name in texts for prompt, found in zip(PROMPTS, texts[name], strict=True)][:16],
      ["rule", "prompt", "continuation"])  # fmt: skip

# %% [markdown]
# Read them aloud. Greedy text is safe: it takes the most common opening, then the most common plot. At temperature 1 the words are
# as varied as in the training stories. At 1.3 a rare word comes up every few words, and after each the model must go on from
# a place where it has never been. A sentence is judged by its meaning: who does what, and does the next sentence know it?
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
trigram = Trigram(encode_stories(tokenizer, stories.train[:2000], model.config.context_length), model.config.vocab_size)
limit = model.config.context_length - 6
judged["trigram model"] = together(
    [trigram.continuations(model, tokenizer, judged["greedy"], limit, seed) for seed in range(2)]
)
intervals = {name: found.intervals() for name, found in judged.items()}

# %% tags=["nbval-ignore-output"]
table(
    [
        [
            name,
            f"{found.perplexity:.2f}",
            "{:.2f} to {:.2f}".format(*intervals[name]["perplexity"]),
            f"{found.bleu:.1f}",
            "{:.1f} to {:.1f}".format(*intervals[name]["bleu"]),
        ]
        for name, found in judged.items()
    ],
    ["continuation", "perplexity", "95 % interval", "BLEU", "95 % interval"],
)

# %%
perplexities = {name: found.perplexity for name, found in judged.items()}
assert perplexities["greedy"] < perplexities["temperature 1"] < perplexities["temperature 1.3"]
assert perplexities["greedy"] < perplexities["the true continuation"] < perplexities["trigram model"]
assert judged["the true continuation"].bleu > 99.9
print("greedy text is less surprising than the truth, trigram text far more: True")

# %% [markdown]
# Low perplexity is not good writing. Greedy text and beams are *below* the true continuation: they are less surprising than
# real stories are. Sampling at temperature 1 comes closest to the truth, as it should: then the model writes as it believes
# stories go. The trigram text is right from word to word, and the model sees at once that it goes nowhere.
#
# BLEU against one true continuation is low for every rule, because after five words a story can go anywhere. Its interval is
# wide; differences within it mean nothing. (sacrebleu [@post2018call], words as tokens, exponential smoothing.)

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
                scores = model(torch.tensor([start + ids]))[0, -1].log_softmax(-1)  # (V,)
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


model.cpu()
WIDTH, STEPS = 4, 6
beams, tree = slow_beams(PROMPT, WIDTH, STEPS)
fast = generate(model, tokenizer, [PROMPT], max_new_tokens=STEPS, strategy="beam", num_beams=WIDTH)[0].beams
assert [one.ids for one in fast] == [ids for ids, _, _ in beams], "the slow and the fast beam search differ"
print("the beams of `generate` are those of the slow search: True")

# %%
figures.save_figure(
    plots.beam_tree(tree, title=f"Four beams after “{PROMPT} …”"),
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
SHORT = [" ".join(tokenizer.split(text)[:5]) for text in stories.validation[:20]]
lengths = {}
for alpha in (0.0, 0.5, 1.0, 2.0):
    found = generate(model, tokenizer, SHORT, max_new_tokens=58, strategy="beam", num_beams=5, length_penalty=alpha)
    lengths[alpha] = np.mean([len(one.ids) for one in found])
assert list(lengths.values()) == sorted(lengths.values()), "a larger penalty gives longer texts"
print("mean length never falls as the penalty grows:", " ≤ ".join(f"α = {alpha:g}" for alpha in lengths))

# %% [markdown]
# **A wider beam is not always better.** It can lose even by its own measure: a beginning that would have led to the best text
# is pushed out by others that look better for a while. Let us look for such cases among a hundred stories.

# %%
hundred = [" ".join(tokenizer.split(text)[:5]) for text in stories.validation[:100]]
found = {
    width: generate(model, tokenizer, hundred, max_new_tokens=30, strategy="beam", num_beams=width, length_penalty=0.0)
    for width in (1, 2, 5, 10)
}
worse = {
    (narrow, wide): sum(b.logprob < a.logprob - 1e-3 for a, b in zip(found[narrow], found[wide], strict=True))
    for narrow, wide in ((1, 2), (1, 5), (2, 5), (5, 10))
}

# %% tags=["nbval-ignore-output"]
table(
    [[f"{narrow} and {wide}", count] for (narrow, wide), count in worse.items()],
    ["widths", "of 100 prompts, the wider beam is less likely"],
)

# %%
assert sum(worse.values()) > 0, "no wider beam lost: the sample is too small to show it"
print("there are prompts where the wider beam finds a less likely text: True")

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
# wanted; for stories, sampling is. BLEU on five prompts is too noisy to settle it: its interval above is for fifty.

# %% [markdown]
# ## The cache
#
# To write token 60, the model reads the 59 before it. To write token 61, it reads the same 59 again. Must it? Thanks to the
# causal mask nothing that a token computes depends on later tokens. So its keys and values, once computed, never change:

# %%
story = torch.tensor([tokenizer.encode_story(stories.validation[0], 40)])  # (1, T)
kept = []
for length in (20, 40):
    cache = KVCache(model.config, 1)
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
cache = KVCache(model.config, 1)
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
tokenizer_without_end = 1e9  # keep all rows to the same length, so that the two do the same work
bias = model.output.bias[tokenizer.eos_id].item()
with torch.no_grad():
    model.output.bias[tokenizer.eos_id] = -tokenizer_without_end
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
with torch.no_grad():
    model.output.bias[tokenizer.eos_id] = bias
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
def greedy_with(step, prompts, count):
    """Greedy text by a step function (cache, last token, position) -> logits; returns new ids and all logits."""
    width = min(len(ids) for ids in prompts)
    start = torch.tensor([ids[:width] for ids in prompts])  # (B, T)
    cache = KVCache(model.config, len(prompts))
    logits = [model(start, cache)[:, -1]]  # (B, V)
    ids = []
    for _ in range(count):
        scores = logits[-1].clone()
        scores[:, : tokenizer.unk_id + 1] = -torch.inf
        scores[:, len(tokenizer) :] = -torch.inf
        ids.append(scores.argmax(-1))
        logits.append(step(cache, ids[-1][:, None], start, ids))
    return torch.stack(ids, 1), torch.stack(logits, 1)


def right(cache, token, start, ids):
    return model(token, cache)[:, -1]


def positions_anew(cache, token, start, ids):
    true = model.positions.clone()
    model.positions[cache.length] = true[0]
    logits = model(token, cache)[:, -1]
    model.positions.copy_(true)
    return logits


def never_filled(cache, token, start, ids):
    return model(token, KVCache(model.config, len(token)))[:, -1]


def rows_mixed(cache, token, start, ids):
    if len(ids) == 1:
        cache.reorder(torch.arange(len(token)).roll(1))
    return model(token, cache)[:, -1]


# %%
prompts = [
    [tokenizer.sos_id, *tokenizer.encode(" ".join(tokenizer.split(text)[:12]))] for text in stories.validation[:8]
]
COUNT_NEW = 30
ids, correct = greedy_with(right, prompts, COUNT_NEW)
broken = {
    "positions start anew": positions_anew,
    "never filled": never_filled,
    "another row's keys": rows_mixed,
}
drift, rows = {}, [["right", tokenizer.decode(ids[0].tolist())]]
for name, step in broken.items():
    wrong_ids, logits = greedy_with(step, prompts, COUNT_NEW)
    # The same words are fed to both, so that a difference is the cache's and not another text's.
    _, fed = greedy_with(
        lambda c, t, s, new, step=step: step(c, ids[:, len(new) - 1 : len(new)], s, new), prompts, COUNT_NEW
    )
    drift[name] = (fed - correct).abs().amax(-1).mean(0).tolist()  # (COUNT_NEW + 1,)
    rows.append([name, tokenizer.decode(wrong_ids[0].tolist())])

# %% tags=["nbval-ignore-output"]
table(rows, ["cache", "what is written after " + repr(tokenizer.decode(prompts[0]))])

# %%
figures.save_figure(
    plots.compare_curves(
        {name: (range(COUNT_NEW + 1), values) for name, values in drift.items()},
        x_label="new tokens",
        y_label="largest difference of a logit",
        title="Three broken caches: wrong from the first token on",
    ),
    "05_broken",
    alt="Largest logit difference to the right cache against new tokens for three broken caches: zero at first, then large.",
)
for name, values in drift.items():
    assert values[0] == 0, f"{name}: prefill is wrong too"
    assert min(values[1:]) > 0.1, f"{name}: the logits do not show it"
print("all three agree on the prompt, and are off by more than 0.1 at every new token: True")

# %% [markdown]
# **The text stays fluent while the logits drift.** Prefill is right in all three, so the first new word is right. After that
# every logit is off, yet most words still follow from the word before, and English goes on. Reading finds at best the cache
# that is never filled. So do not judge a cache by its text: compare its logits with those of one full pass, as we did above.
# It is the only test that all three fail.

# %%
figures.save_numbers(
    "05",
    {
        "distribution": {name: probabilities[order].tolist() for name, probabilities in rules.items()},
        "words": list(likeliest),
        "continuations": {
            name: {"perplexity": found.perplexity, "bleu": found.bleu, "intervals": intervals[name]}
            for name, found in judged.items()
        },
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
