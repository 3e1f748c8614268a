# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises for 05 · Decoding
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lohar-animesh-27112001/ELL881-advance_LLM-assignment/blob/main/notebooks/exercises/05_decoding.ipynb)
#
# Four exercises, about an hour: two filters, one step of beam search, and a cache. Write your code in the cells that say
# `raise NotImplementedError`, and run the cell after each: it tells you what is right, or what the mistake looks like. Apart from the cache,
# your functions must not change what they are given. The exercises go with [notebook 05](../05_decoding.ipynb). $B$ texts are continued at once,
# each in a row of its own, and there are $V$ words in the vocabulary.

# %% cellView="form" tags=["setup"]
# @title Set-up: run this cell first
import os
import sys

REPOSITORY = "https://github.com/lohar-animesh-27112001/ELL881-advance_LLM-assignment"
if "google.colab" in sys.modules:
    os.system(f"cd /content && [ -d course ] || git clone -q --depth=1 {REPOSITORY} course")
sys.path[:0] = ["/content/course/notebooks", "..", "../..", "notebooks", "."]
import colab  # not found? Open this notebook inside the repository, or correct REPOSITORY

colab.start()

# %%
import math

import torch

from checks import decoding as check

# %% [markdown]
# ## 1 · Temperature and top-k
#
# ●○○ · 10 minutes
#
# A sampler does not draw from the model's own distribution. It divides the logits by a temperature $\tau$, keeps the $k$ likeliest words of
# each row, and gives all others the probability 0. Write the distribution that it draws from. The temperature may be as small as 0.05,
# which makes logits of hundreds; and $k$ may be larger than $V$, which keeps all words.


# %% tags=["exercise"]
def sampling_distribution(logits, temperature, k):
    """The distribution that sampling draws from.

    Args:
        logits: (B, V); a word that must never come out has -inf.
        temperature: above 0.
        k: at least 1. No two words of a row have the same logit, unless it is -inf.

    Returns:
        probabilities (B, V), each word in its own place; each row sums to 1.
    """
    raise NotImplementedError


# %% tags=["solution"]
def sampling_distribution(logits, temperature, k):
    scores = logits / temperature  # (B, V)
    best = scores.topk(min(k, scores.shape[-1])).values  # (B, k), the largest first
    return scores.masked_fill(scores < best[:, -1:], -math.inf).softmax(-1)  # (B, V)


# %% tags=["second"]
def sampling_distribution(logits, temperature, k):
    rows = []
    for row in logits.double():  # (V,)
        weights = ((row - row.max()) / temperature).exp()  # (V,), the best has 1
        kept = row.argsort(descending=True)[:k]  # (k,)
        filtered = torch.zeros_like(weights)  # (V,)
        filtered[kept] = weights[kept]
        rows.append(filtered / filtered.sum())
    return torch.stack(rows)  # (B, V)


# %% tags=["mistake"] says="sharpen"
def sampling_distribution(logits, temperature, k):
    scores = logits * temperature
    best = scores.topk(min(k, scores.shape[-1])).values
    return scores.masked_fill(scores < best[:, -1:], -math.inf).softmax(-1)


# %% tags=["mistake"] says="before the softmax"
def sampling_distribution(logits, temperature, k):
    probabilities = logits.softmax(-1) / temperature
    best = probabilities.topk(min(k, logits.shape[-1])).values
    kept = probabilities * (probabilities >= best[:, -1:])
    return kept / kept.sum(-1, keepdim=True)


# %% tags=["mistake"] says="filter applied after the softmax"
def sampling_distribution(logits, temperature, k):
    probabilities = (logits / temperature).softmax(-1)
    best = probabilities.topk(min(k, logits.shape[-1])).values
    return probabilities * (probabilities >= best[:, -1:])


# %% tags=["mistake"] says="exactly 0"
def sampling_distribution(logits, temperature, k):
    scores = logits / temperature
    best = scores.topk(min(k, scores.shape[-1])).values
    return scores.masked_fill(scores < best[:, -1:], 0.0).softmax(-1)


# %% tags=["mistake"] says="k - 1 words"
def sampling_distribution(logits, temperature, k):
    scores = logits / temperature
    best = scores.topk(min(k, scores.shape[-1])).values
    return scores.masked_fill(scores <= best[:, -1:], -math.inf).softmax(-1)


# %% tags=["mistake"] says="least likely"
def sampling_distribution(logits, temperature, k):
    scores = logits / temperature
    kept = scores.argsort(-1)[:, :k]
    return torch.full_like(scores, -math.inf).scatter(-1, kept, scores.gather(-1, kept)).softmax(-1)


# %% tags=["mistake"] says="one row for all"
def sampling_distribution(logits, temperature, k):
    scores = logits / temperature
    threshold = scores.flatten().topk(min(k, scores.numel())).values[-1]
    return scores.masked_fill(scores < threshold, -math.inf).softmax(-1)


# %% tags=["mistake"] says="columns"
def sampling_distribution(logits, temperature, k):
    scores = logits / temperature
    best = scores.topk(min(k, scores.shape[-1])).values
    return scores.masked_fill(scores < best[:, -1:], -math.inf).softmax(0)


# %% tags=["mistake"] says="k probabilities"
def sampling_distribution(logits, temperature, k):
    return (logits / temperature).topk(min(k, logits.shape[-1])).values.softmax(-1)


# %% tags=["mistake"] says="softmax of probabilities"
def sampling_distribution(logits, temperature, k):
    scores = logits.softmax(-1) / temperature
    best = scores.topk(min(k, scores.shape[-1])).values
    return scores.masked_fill(scores < best[:, -1:], -math.inf).softmax(-1)


# %% tags=["mistake"] says="larger than V"
def sampling_distribution(logits, temperature, k):
    scores = logits / temperature
    return scores.masked_fill(scores < scores.topk(k).values[:, -1:], -math.inf).softmax(-1)


# %% tags=["mistake"] says="overflow"
def sampling_distribution(logits, temperature, k):
    weights = (logits / temperature).exp()
    best = weights.topk(min(k, weights.shape[-1])).values
    weights = weights * (weights >= best[:, -1:])
    return weights / weights.sum(-1, keepdim=True)


# %% tags=["mistake"] says="raised to a power"
def sampling_distribution(logits, temperature, k):
    weights = logits.softmax(-1) ** (1 / temperature)
    best = weights.topk(min(k, weights.shape[-1])).values
    weights = weights * (weights >= best[:, -1:])
    return weights / weights.sum(-1, keepdim=True)


# %% tags=["mistake"] says="in place"
def sampling_distribution(logits, temperature, k):
    logits /= temperature
    best = logits.topk(min(k, logits.shape[-1])).values
    return logits.masked_fill(logits < best[:, -1:], -math.inf).softmax(-1)


# %% tags=["check"]
check.sampling_distribution(sampling_distribution)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# The softmax gives a word exactly 0 if its score is $-\infty$, and makes the others sum to 1 by itself. So what has to be done before it?
#
# </details>

# %% [markdown]
# ## 2 · Top-p
#
# ●●○ · 15 minutes
#
# Top-p, the *nucleus*, keeps the fewest words whose probabilities sum to $p$ or more: one word where the model is sure, and many where it is
# not. Rank the words of each row, add their probabilities up from the likeliest on, and keep those that are needed to reach $p$. If
# two words tie for the last place, keep either of them. Then put what is left back into the words' own places, as a distribution.


# %% tags=["exercise"]
def nucleus(probabilities, p):
    """The fewest words of each row that reach p, the likeliest first, as a distribution.

    Args:
        probabilities: (B, V); each row sums to 1.
        p: above 0 and at most 1.

    Returns:
        (B, V), each word in its own place, 0 if it is not kept; each row sums to 1.
    """
    raise NotImplementedError


# %% tags=["solution"]
def nucleus(probabilities, p):
    ranked, words = probabilities.sort(descending=True)  # (B, V) each
    likelier = ranked.cumsum(-1) - ranked  # (B, V), the probability of all likelier words
    kept = ranked * (likelier < p)  # (B, V)
    kept = kept / kept.sum(-1, keepdim=True)  # (B, V)
    return torch.zeros_like(probabilities).scatter(-1, words, kept)  # (B, V)


# %% tags=["second"]
def nucleus(probabilities, p):
    result = []
    for row in probabilities.tolist():
        kept, total = [0.0] * len(row), 0.0
        for word in sorted(range(len(row)), key=lambda word: -row[word]):
            kept[word] = row[word]
            total += row[word]
            if total >= p:
                break
        result.append([value / total for value in kept])
    return torch.tensor(result)  # (B, V)


# %% tags=["mistake"] says="less than p"
def nucleus(probabilities, p):
    ranked, words = probabilities.sort(descending=True)
    kept = ranked * (ranked.cumsum(-1) <= p)
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, words, kept)


# %% tags=["mistake"] says="one word more"
def nucleus(probabilities, p):
    ranked, words = probabilities.sort(descending=True)
    number = (ranked.cumsum(-1) < p).sum(-1, keepdim=True)
    kept = ranked * (torch.arange(ranked.shape[-1]) <= number + 1)
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, words, kept)


# %% tags=["mistake"] says="exactly 0.75"
def nucleus(probabilities, p):
    ranked, words = probabilities.sort(descending=True)
    kept = ranked * (ranked.cumsum(-1) - ranked <= p)
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, words, kept)


# %% tags=["mistake"] says="no longer sum to 1"
def nucleus(probabilities, p):
    ranked, words = probabilities.sort(descending=True)
    kept = ranked * (ranked.cumsum(-1) - ranked < p)
    return torch.zeros_like(probabilities).scatter(-1, words, kept)


# %% tags=["mistake"] says="order of the ranking"
def nucleus(probabilities, p):
    ranked = probabilities.sort(descending=True).values
    kept = ranked * (ranked.cumsum(-1) - ranked < p)
    return kept / kept.sum(-1, keepdim=True)


# %% tags=["mistake"] says="from which end"
def nucleus(probabilities, p):
    ranked, words = probabilities.sort()
    kept = ranked * (ranked.cumsum(-1) - ranked < p)
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, words, kept)


# %% tags=["mistake"] says="order of the vocabulary"
def nucleus(probabilities, p):
    kept = probabilities * (probabilities.cumsum(-1) - probabilities < p)
    return kept / kept.sum(-1, keepdim=True)


# %% tags=["mistake"] says="from row to row"
def nucleus(probabilities, p):
    ranked, words = probabilities.sort(descending=True)
    number = int((ranked[0].cumsum(-1) < p).sum()) + 1
    best = words[:, :number]
    kept = torch.zeros_like(probabilities).scatter(-1, best, probabilities.gather(-1, best))
    return kept / kept.sum(-1, keepdim=True)


# %% tags=["mistake"] says="by rank"
def nucleus(probabilities, p):
    ranked = probabilities.sort(descending=True).values
    number = (ranked.cumsum(-1) - ranked < p).sum(-1, keepdim=True)
    kept = probabilities * (probabilities >= ranked.gather(-1, number - 1))
    return kept / kept.sum(-1, keepdim=True)


# %% tags=["mistake"] says="alone"
def nucleus(probabilities, p):
    kept = probabilities * (probabilities >= 1 - p)
    return kept / kept.sum(-1, keepdim=True)


# %% tags=["mistake"] says="alone with p"
def nucleus(probabilities, p):
    sure = probabilities >= p
    kept = probabilities * (sure | ~sure.any(-1, keepdim=True))
    return kept / kept.sum(-1, keepdim=True)


# %% tags=["mistake"] says="softmax of probabilities"
def nucleus(probabilities, p):
    ranked, words = probabilities.sort(descending=True)
    kept = ranked.masked_fill(ranked.cumsum(-1) - ranked >= p, -math.inf)
    return torch.zeros_like(probabilities).scatter(-1, words, kept.softmax(-1))


# %% tags=["check"]
check.nucleus(nucleus)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# A word is needed if the words that are likelier than it do not reach $p$ yet. `cumsum` gives the sum up to and including each word; what is
# the sum without it? `sort` also returns where each value came from, and `scatter` can send it back there.
#
# </details>

# %% [markdown]
# ## 3 · One step of beam search
#
# ●●○ · 15 minutes
#
# Beam search holds $W$ beginnings, and knows the log-probability of each. Every beginning can be continued by every word, which makes
# $W \cdot V$ candidates. Write the step that keeps the best of them. It must also say which beginning each one continues, because
# whatever is stored for a beginning must go on with it. (No text ends in this step,
# and no total is divided by the length of its text.)


# %% tags=["exercise"]
def beam_step(totals, scores, width):
    """The `width` likeliest continuations of all beams together, best first.

    Args:
        totals: (W,), the log-probability of each beam.
        scores: (W, V), the log-probability of each word after each beam.
        width: how many to keep, at most W * V; it may differ from W, which is 1 at the start.

    Returns:
        Three tensors or lists of length `width`: new totals; which beam each continues; its word.
    """
    raise NotImplementedError


# %% tags=["solution"]
def beam_step(totals, scores, width):
    candidates = totals[:, None] + scores  # (W, V)
    best = candidates.flatten().topk(width)  # (width,) each
    beams, words = best.indices // scores.shape[1], best.indices % scores.shape[1]  # (width,) each
    return best.values, beams, words


# %% tags=["second"]
def beam_step(totals, scores, width):
    candidates = [
        (total + score, beam, word)
        for beam, total in enumerate(totals.tolist())
        for word, score in enumerate(scores[beam].tolist())
    ]
    candidates.sort(reverse=True)
    return tuple(map(list, zip(*candidates[:width], strict=True)))


# %% tags=["mistake"] says="what did the beginning"
def beam_step(totals, scores, width):
    best = scores.flatten().topk(width)
    return best.values, best.indices // scores.shape[1], best.indices % scores.shape[1]


# %% tags=["mistake"] says="what does a product become"
def beam_step(totals, scores, width):
    best = (totals[:, None] * scores).flatten().topk(width)
    return best.values, best.indices // scores.shape[1], best.indices % scores.shape[1]


# %% tags=["mistake"] says="may not two of the best"
def beam_step(totals, scores, width):
    best = scores.max(dim=1)
    new = totals + best.values
    order = new.argsort(descending=True)[:width]
    return new[order], order, best.indices[order]


# %% tags=["mistake"] says="belong to one beam"
def beam_step(totals, scores, width):
    best = (totals[:, None] + scores).flatten().topk(width)
    return best.values, best.indices // len(totals), best.indices % len(totals)


# %% tags=["mistake"] says="exchanged"
def beam_step(totals, scores, width):
    best = (totals[:, None] + scores).flatten().topk(width)
    return best.values, best.indices % scores.shape[1], best.indices // scores.shape[1]


# %% tags=["mistake"] says="worst"
def beam_step(totals, scores, width):
    best = (totals[:, None] + scores).flatten().topk(width, largest=False)
    return best.values, best.indices // scores.shape[1], best.indices % scores.shape[1]


# %% tags=["mistake"] says="belong to one beam"
def beam_step(totals, scores, width):
    best = (totals[:, None] + scores).flatten().topk(width)
    return best.values, best.indices // width, best.indices % width


# %% tags=["mistake"] says="`width` used"
def beam_step(totals, scores, width):
    best = (totals[:, None] + scores).flatten().topk(len(totals))
    return best.values, best.indices // scores.shape[1], best.indices % scores.shape[1]


# %% tags=["mistake"] says="not in the right order"
def beam_step(totals, scores, width):
    best = (totals[:, None] + scores).flatten().topk(width)
    order = best.indices.argsort()
    places = best.indices[order]
    return best.values[order], places // scores.shape[1], places % scores.shape[1]


# %% tags=["mistake"] says="not in the right order"
def beam_step(totals, scores, width):
    candidates = (totals[:, None] + scores).flatten()
    order = candidates.argsort()[-width:]
    return candidates[order], order // scores.shape[1], order % scores.shape[1]


# %% tags=["mistake"] says="a probability to a logarithm"
def beam_step(totals, scores, width):
    best = (totals[:, None] + scores.exp()).flatten().topk(width)
    return best.values, best.indices // scores.shape[1], best.indices % scores.shape[1]


# %% tags=["mistake"] says="rounded to 0"
def beam_step(totals, scores, width):
    best = (totals.exp()[:, None] * scores.exp()).flatten().topk(width)
    return best.values.log(), best.indices // scores.shape[1], best.indices % scores.shape[1]


# %% tags=["mistake"] says="three things"
def beam_step(totals, scores, width):
    return (totals[:, None] + scores).flatten().topk(width).values


# %% tags=["mistake"] says="in place"
def beam_step(totals, scores, width):
    scores += totals[:, None]
    best = scores.flatten().topk(width)
    return best.values, best.indices // scores.shape[1], best.indices % scores.shape[1]


# %% tags=["check"]
check.beam_step(beam_step)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# Lay all candidates out in one row, $V$ of the first beam, then $V$ of the second, and so on. The best places of this row tell both numbers:
# how many whole beams lie before a place, and how far it is into its own.
#
# </details>

# %% [markdown]
# ## 4 · A cache for one head
#
# ●●● · 20 minutes
#
# One attention head reads a text in pieces: first the prompt, then new tokens, one or a few at a time. Keys and values of old tokens never
# change, so compute each once, and keep it in `cache`. The result must be that of one pass over the whole text: each token sees itself and
# all tokens before it, those of earlier calls included, and none after it. $T$ is the number of new tokens, $D$ the model's width and $d$
# the head's.


# %% tags=["exercise"]
def attend_with_cache(x, w_q, w_k, w_v, cache):
    """Causal attention of new tokens to themselves and to all earlier ones.

    Args:
        x: (B, T, D), the new tokens of B texts.
        w_q, w_k, w_v: (D, d) each; a query is a row of x @ w_q, and so on.
        cache: a dict, one for each batch of texts. It is empty at the first call; keep in it
            whatever the later calls need.

    Returns:
        (B, T, d), the weighted means of values.
    """
    raise NotImplementedError


# %% tags=["solution"]
def attend_with_cache(x, w_q, w_k, w_v, cache):
    keys, values = x @ w_k, x @ w_v  # (B, T, d) each
    if cache:
        keys = torch.cat([cache["keys"], keys], dim=1)  # (B, S, d)
        values = torch.cat([cache["values"], values], dim=1)  # (B, S, d)
    cache.update(keys=keys, values=values)
    T, S, d = x.shape[1], keys.shape[1], keys.shape[2]
    scores = (x @ w_q) @ keys.mT / d**0.5  # (B, T, S)
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)  # (T, S)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values  # (B, T, d)


# %% tags=["second"]
def attend_with_cache(x, w_q, w_k, w_v, cache):
    results = []
    for token in x.unbind(1):  # (B, D)
        cache.setdefault("k", []).append(token @ w_k)  # (B, d) each
        cache.setdefault("v", []).append(token @ w_v)  # (B, d) each
        keys, values = torch.stack(cache["k"], 1), torch.stack(cache["v"], 1)  # (B, S, d) each
        scores = torch.einsum("bd,bsd->bs", token @ w_q, keys) * keys.shape[-1] ** -0.5  # (B, S)
        results.append(torch.einsum("bs,bsd->bd", scores.softmax(-1), values))  # (B, d)
    return torch.stack(results, 1)  # (B, T, d)


# %% tags=["mistake"] says="where is the mask"
def attend_with_cache(x, w_q, w_k, w_v, cache):
    keys, values = x @ w_k, x @ w_v
    if cache:
        keys = torch.cat([cache["keys"], keys], dim=1)
        values = torch.cat([cache["values"], values], dim=1)
    cache.update(keys=keys, values=values)
    return ((x @ w_q) @ keys.mT / keys.shape[2] ** 0.5).softmax(-1) @ values


# %% tags=["mistake"] says="the prompt is right"
def attend_with_cache(x, w_q, w_k, w_v, cache):
    keys, values = x @ w_k, x @ w_v
    T = x.shape[1]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    if cache:
        keys = torch.cat([cache["keys"], keys], dim=1)
        values = torch.cat([cache["values"], values], dim=1)
        future = torch.tensor(False)
    cache.update(keys=keys, values=values)
    scores = (x @ w_q) @ keys.mT / keys.shape[2] ** 0.5
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


# %% tags=["mistake"] says="only those of the last call"
def attend_with_cache(x, w_q, w_k, w_v, cache):
    keys = torch.cat([*cache.get("keys", []), x @ w_k], dim=1)
    values = torch.cat([*cache.get("values", []), x @ w_v], dim=1)
    cache.update(keys=[x @ w_k], values=[x @ w_v])
    T, S = x.shape[1], keys.shape[1]
    scores = (x @ w_q) @ keys.mT / keys.shape[2] ** 0.5
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


# %% tags=["mistake"] says="row 0 of the mask"
def attend_with_cache(x, w_q, w_k, w_v, cache):
    keys, values = x @ w_k, x @ w_v
    if cache:
        keys = torch.cat([cache["keys"], keys], dim=1)
        values = torch.cat([cache["values"], values], dim=1)
    cache.update(keys=keys, values=values)
    scores = (x @ w_q) @ keys.mT / keys.shape[2] ** 0.5
    future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


# %% tags=["mistake"] says="is anything kept"
def attend_with_cache(x, w_q, w_k, w_v, cache):
    keys, values = x @ w_k, x @ w_v
    cache.update(keys=keys, values=values)
    scores = (x @ w_q) @ keys.mT / keys.shape[2] ** 0.5
    future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


# %% tags=["mistake"] says="from the third call"
def attend_with_cache(x, w_q, w_k, w_v, cache):
    keys, values = x @ w_k, x @ w_v
    if cache:
        keys = torch.cat([cache["keys"], keys], dim=1)
        values = torch.cat([cache["values"], values], dim=1)
    else:
        cache.update(keys=keys, values=values)
    T, S = x.shape[1], keys.shape[1]
    scores = (x @ w_q) @ keys.mT / keys.shape[2] ** 0.5
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


# %% tags=["mistake"] says="new keys put before"
def attend_with_cache(x, w_q, w_k, w_v, cache):
    keys, values = x @ w_k, x @ w_v
    if cache:
        keys = torch.cat([keys, cache["keys"]], dim=1)
        values = torch.cat([values, cache["values"]], dim=1)
    cache.update(keys=keys, values=values)
    T, S = x.shape[1], keys.shape[1]
    scores = (x @ w_q) @ keys.mT / keys.shape[2] ** 0.5
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


# %% tags=["mistake"] says="too large"
def attend_with_cache(x, w_q, w_k, w_v, cache):
    keys, values = x @ w_k, x @ w_v
    if cache:
        keys = torch.cat([cache["keys"], keys], dim=1)
        values = torch.cat([cache["values"], values], dim=1)
    cache.update(keys=keys, values=values)
    T, S = x.shape[1], keys.shape[1]
    scores = (x @ w_q) @ keys.mT
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


# %% tags=["mistake"] says="computed again"
def attend_with_cache(x, w_q, w_k, w_v, cache):
    whole = cache["x"] = torch.cat([cache["x"], x], dim=1) if cache else x
    keys, values = whole @ w_k, whole @ w_v
    T, S = x.shape[1], whole.shape[1]
    scores = (x @ w_q) @ keys.mT / keys.shape[2] ** 0.5
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


# %% tags=["mistake"] says="outside the cache"
held = {}


def attend_with_cache(x, w_q, w_k, w_v, cache):
    keys, values = x @ w_k, x @ w_v
    if held:
        keys = torch.cat([held["keys"], keys], dim=1)
        values = torch.cat([held["values"], values], dim=1)
    held.update(keys=keys, values=values)
    T, S = x.shape[1], keys.shape[1]
    scores = (x @ w_q) @ keys.mT / keys.shape[2] ** 0.5
    future = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


# %% tags=["check"]
check.attend_with_cache(attend_with_cache)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>
#
# New keys stand after the old ones, so there are $S \ge T$ of them. The mask has one row for each *new* token and one column for each key.
# The last row may see all $S$ keys. How many may the first row see?
#
# </details>
