"""The patterns of attention heads, and how far a head follows each, against cases by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.heads import PATTERNS, head_scores, pattern_targets, words_after
from helpers.tokenizer import WordTokenizer


def test_patterns_of_a_sentence():
    #      <sos> mia saw tom . mia saw tom
    ids = [1, 7, 5, 8, 4, 7, 5, 8]
    found = pattern_targets(ids, names={7, 8}, sounds={5, 8, 4})
    targets = {name: set(map(tuple, np.argwhere(keys).tolist())) for name, keys in found.items()}
    assert tuple(targets) == PATTERNS
    assert targets["itself"] == {(t, t) for t in range(8)}
    assert targets["previous word"] == {(t, t - 1) for t in range(1, 8)}
    assert targets["start token"] == {(t, 0) for t in range(2, 8)}
    assert targets["same word"] == {(5, 1), (6, 2), (7, 3)}
    assert targets["after same word"] == {(5, 2), (6, 3), (7, 4)}
    # mia comes after ".", tom after the second "saw"
    assert targets["same name"] == {(4, 1), (6, 3)}
    assert targets["previous sound"] == {(3, 2), (4, 3), (7, 6)}
    assert targets["next sound"] == {(6, 3), (7, 4)}  # not (5, 2): mia is no sound


def test_words_after_a_pattern():
    tokenizer = WordTokenizer(["mia", "pom", "zim", "named", "a"])
    texts = ["A cat named Mia. A dog named Rex.", 'a song, "Zim pom."']  # Rex is not known
    named = words_after(r"named ([A-Z]\w+)", texts, tokenizer)
    assert named == {tokenizer.encode("mia")[0]}
    assert words_after(r'song, "([^".]+)\.', texts, tokenizer) == set(tokenizer.encode("zim pom"))


@pytest.mark.parametrize(
    "measure",
    [
        lambda tokenizer: words_after("(a)", [], tokenizer),
        lambda tokenizer: words_after("(a)", "a text", tokenizer),
        lambda tokenizer: head_scores(HandMade(), torch.zeros(0, 8, dtype=torch.int32)),
    ],
)
def test_no_texts_or_one_string_are_refused(measure):
    message = "^(ids|texts)=.*: must be a list (or mapping with|of strings, at least one).*$"
    with pytest.raises(ValueError, match=message):
        measure(WordTokenizer(["a"]))
    assert {keys.shape for keys in pattern_targets([]).values()} == {(0, 0)}


class HandMade(torch.nn.Module):
    """Two heads in one layer: one looks at the previous word (or at itself, at the start), one
    evenly at all.
    """

    def __init__(self):
        super().__init__()
        self.output = torch.nn.Linear(1, 1)

    def forward(self, ids, return_attention):
        B, T = ids.shape
        previous = F.one_hot((torch.arange(T) - 1).clamp(min=0), T).float()
        even = torch.ones(T, T).tril()
        heads = torch.stack([previous, even / even.sum(-1, keepdim=True)])
        return None, heads.expand(1, B, 2, T, T)


def test_scores_are_one_for_the_pattern_and_zero_for_an_even_spread():
    ids = torch.tensor([[1, 7, 5, 8, 4, 7, 5, 8], [1, 5, 5, 2, 0, 0, 0, 0]])
    scores = head_scores(HandMade(), ids, names={7, 8})
    assert scores["previous word"][0] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert scores["itself"][0, 1] == pytest.approx(0.0, abs=1e-6)
    # Queries with an earlier copy: three in the first story (1 of 6, 7, 8 words), one in the
    # second (1 of 3), which is the word before.
    even = (1 / 6 + 1 / 7 + 1 / 8 + 1 / 3) / 4
    assert scores["same word"][0] == pytest.approx([(1 / 4 - even) / (1 - even), 0.0], abs=1e-6)
