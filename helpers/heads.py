"""Attention heads: the patterns that they may follow, and how far each head follows each.

Shape comments name the sizes: N stories, L blocks, B stories of a batch, H heads, T tokens.
"""

import re
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from helpers.model import Decoder
from helpers.support.checks import FILLED, TEXTS, check
from helpers.support.hardware import evaluating
from helpers.tokenizer import WordTokenizer

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
    """For each pattern a boolean (T, T): does query row t, under this pattern, look at key s?

    Keys never lie ahead.

    - "same word" is an earlier copy of the query's word; "after same word" the word that followed
      such a copy (an induction head, Olsson et al. 2022).
    - "same name" belongs to queries whose NEXT word is one of `names` and has been mentioned
      before. A head that brings the name back must look at its earlier mentions.
    - "previous sound" and "next sound" are "previous word" and "after same word" among `sounds`,
      the words of songs: query, key and, for "next sound", the copy are all sounds.

    ids, names, sounds: token ids; there may be none.
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
    model: Decoder,
    ids: Tensor,
    names: Collection[int] = (),
    sounds: Collection[int] = (),
    pad_id: int = 0,
) -> dict[str, np.ndarray]:
    """How much each head follows each pattern: 0 for even attention, 1 for nothing else.

    The score is (m - c) / (1 - c): m is the attention on the pattern's keys, averaged over the
    queries that have such keys, and c what a head that looks at all words alike would put there.

    Args:
        ids: encoded stories (N, T); `<pad>` is left out.
        names, sounds: token ids, as `pattern_targets` takes them.

    Returns:
        {pattern: (L, H)}, without the patterns that no query of these stories has.

    Raises:
        ValueError: if there are no stories.
    """
    check(locals(), {"ids": FILLED})
    mass, even, queries = (dict.fromkeys(PATTERNS, 0.0) for _ in range(3))
    for rows in ids.split(16):
        with evaluating(model):
            _, attention = model(rows.long().to(model.output.weight.device), return_attention=True)
        attention = attention.float().cpu().numpy()  # (L, B, H, T, T)
        for b, row in enumerate(rows.tolist()):
            length = len(row) - row.count(pad_id)
            weights = attention[:, b, :, :length, :length]  # (L, H, t, t)
            for pattern, keys in pattern_targets(row[:length], names, sounds).items():
                asked = keys.any(axis=1)  # (t,)
                on_keys = (weights * keys).sum(axis=-1)  # (L, H, t)
                mass[pattern] = mass[pattern] + on_keys[..., asked].sum(axis=-1)  # (L, H)
                even[pattern] += (keys.sum(axis=1) / np.arange(1, length + 1))[asked].sum()
                queries[pattern] += asked.sum()
    return {
        p: (mass[p] - even[p]) / (queries[p] - even[p]) for p in PATTERNS if queries[p] > even[p]
    }


def words_after(pattern: str, texts: Sequence[str], tokenizer: WordTokenizer) -> set[int]:
    """Ids of all words of the vocabulary that group 1 of a regular expression finds in texts.

    words_after(r"\\b(?:named|called) ([A-Z]\\w+)", …) are the names of people and animals. Raises
    ValueError if there are no texts.
    """
    check(locals(), {"texts": TEXTS})
    found = {match for text in texts for match in re.findall(pattern, text)}
    return {i for match in found for i in tokenizer.encode(match)} - {tokenizer.unk_id}
