"""Measures: perplexity, the landmarks of a loss curve, and what each attention head looks at."""

import math
import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from helpers.model import Decoder
from helpers.stories import Stories
from helpers.tokenizer import WordTokenizer
from helpers.training import encode_stories, mean_loss


def perplexity(model: Decoder, tokenizer: WordTokenizer, texts: Sequence[str]) -> float:
    """exp of the mean loss per token, in fp32, over the first context_length tokens of each text, `<sos>` not predicted."""
    ids = encode_stories(tokenizer, texts, model.config.context_length)  # (N, T)
    return math.exp(mean_loss(model, ids, tokenizer.pad_id, precision="fp32"))


def landmarks(train_ids: Tensor, validation_ids: Tensor, vocab_size: int, pad_id: int = 0) -> dict[str, float]:
    """Losses in nats per token, on validation_ids (M, T), of three models that need no network, fitted on train_ids (N, T).

    uniform: every token equally likely; unigram: by frequency; bigram: by frequency after the token before, smoothed
    towards the unigram. The smoothing weight is chosen on the last tenth of the training stories.
    """
    fit, tune = train_ids[: -len(train_ids) // 10], train_ids[-len(train_ids) // 10 :]
    weights = [0.3, 1, 3, 10, 30, 100]
    best = min(weights, key=lambda weight: _ngram_losses(fit, tune, vocab_size, pad_id, weight)[1])
    unigram, bigram = _ngram_losses(train_ids, validation_ids, vocab_size, pad_id, best)
    return {"uniform": math.log(vocab_size), "unigram": unigram, "bigram": bigram}


def _ngram_losses(
    train_ids: Tensor, test_ids: Tensor, vocab_size: int, pad_id: int, weight: float
) -> tuple[float, float]:
    """P(w | v) = (count(v, w) + weight · P(w)) / (count(v) + weight), a Dirichlet prior centred on the unigram."""

    def pairs(ids):
        before, after = (part.flatten().long().numpy() for part in (ids[:, :-1], ids[:, 1:]))  # (N·(T-1),) each
        real = after != pad_id
        return before[real], after[real]

    before, after = pairs(train_ids)
    counts = np.bincount(after, minlength=vocab_size) + 1.0  # (V,), one added: no word is impossible
    unigram = counts / counts.sum()  # (V,)
    context = np.bincount(before, minlength=vocab_size)  # (V,)
    keys, pair_counts = np.unique(before * vocab_size + after, return_counts=True)
    before, after = pairs(test_ids)
    wanted = before * vocab_size + after
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    seen = np.where(keys[place] == wanted, pair_counts[place], 0)
    bigram = (seen + weight * unigram[after]) / (context[before] + weight)
    return float(-np.log(unigram[after]).mean()), float(-np.log(bigram).mean())


def entropy_floor(stories: Stories, length: int) -> float:
    """The mean loss of the true probabilities, in nats per token, on the first `length` ids of the validation stories: on
    average over such stories, no model can have a lower one.

    Raises ValueError for a corpus whose probabilities nobody knows.
    """
    if stories.validation_nats is None:
        raise ValueError(f"the entropy of {stories.name!r} is not known: only the bundled corpus has an exact floor")
    nats = [story[: length - 1] for story in stories.validation_nats]  # <sos> is given, length - 1 tokens are predicted
    return float(np.concatenate(nats).mean())


def words_after(pattern: str, texts: Iterable[str], tokenizer: WordTokenizer) -> set[int]:
    """Ids of all words that group 1 of a regular expression finds in texts. Words outside the vocabulary are left out.

    words_after(r"\\b(?:named|called) ([A-Z]\\w+)", …) are the names of a story's people and animals.
    """
    found = {match for text in texts for match in re.findall(pattern, text)}
    return {i for match in found for i in tokenizer.encode(match)} - {tokenizer.unk_id}


PATTERNS = (
    "itself",
    "previous word",
    "start token",
    "same word",
    "after same word",
    "same name",
    "previous sound",
    "next sound",
)


def pattern_targets(
    ids: Sequence[int], names: Collection[int] = (), sounds: Collection[int] = ()
) -> dict[str, np.ndarray]:
    """For each pattern a boolean (T, T): does query row t, under this pattern, look at key s? Keys never lie ahead.

    "same word" is an earlier copy of the query's word; "after same word" the word that followed such a copy (an induction
    head, Olsson et al. 2022). "same name" belongs to queries whose NEXT word is one of `names` (token ids) and has been
    mentioned before: its earlier mentions are what a head that brings the name back must look at. "previous sound" and
    "next sound" are "previous word" and "after same word" among `sounds` alone, the words of songs: query, key and, for
    "next sound", the copy are all sounds.
    """
    ids = np.asarray(ids)  # (T,)
    T = len(ids)
    t, s = np.indices((T, T))  # (T, T) each: query, key
    copy = (ids[:, None] == ids[None, :]) & (s < t)  # (T, T)
    after, named = np.zeros((2, T, T), dtype=bool)
    after[:, 1:] = copy[:, :-1]
    named[:-1] = copy[1:] & np.isin(ids[1:], list(names))[:, None]
    sound = np.isin(ids, list(sounds))  # (T,)
    both = sound[:, None] & sound[None, :]  # (T, T)
    return {
        "itself": s == t,
        "previous word": s == t - 1,
        "start token": (s == 0) & (t > 1),
        "same word": copy,
        "after same word": after,
        "same name": named,
        "previous sound": (s == t - 1) & both,
        "next sound": after & both,
    }


@torch.no_grad()
def head_scores(
    model: Decoder, ids: Tensor, names: Collection[int] = (), sounds: Collection[int] = (), pad_id: int = 0
) -> dict[str, np.ndarray]:
    """How much each head follows each pattern: {pattern: (L, H)}, 0 for an even spread of attention, 1 for nothing else.

    The score is (m - c) / (1 - c): m is the attention on the pattern's keys, averaged over the queries that have such keys,
    and c what a head that looks at all words alike would put there. ids: encoded stories (N, T); `<pad>` is left out.
    A pattern that no query of these stories has is left out too.
    """
    was_training = model.training
    model.eval()
    mass, even, queries = (dict.fromkeys(PATTERNS, 0.0) for _ in range(3))
    for rows in ids.split(16):
        _, attention = model(rows.long().to(model.output.weight.device), return_attention=True)
        attention = attention.float().cpu().numpy()  # (L, B, H, T, T)
        for b, row in enumerate(rows.tolist()):
            length = len(row) - row.count(pad_id)
            weights = attention[:, b, :, :length, :length]  # (L, H, t, t)
            for pattern, keys in pattern_targets(row[:length], names, sounds).items():
                asked = keys.any(axis=1)  # (t,)
                mass[pattern] = mass[pattern] + (weights * keys).sum(axis=-1)[..., asked].sum(axis=-1)  # (L, H)
                even[pattern] += (keys.sum(axis=1) / np.arange(1, length + 1))[asked].sum()
                queries[pattern] += asked.sum()
    model.train(was_training)
    return {p: (mass[p] - even[p]) / (queries[p] - even[p]) for p in PATTERNS if queries[p] > even[p]}
