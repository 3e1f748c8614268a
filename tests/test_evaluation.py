"""Perplexity, landmarks, the floor and head scores against cases counted by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.evaluation import PATTERNS, entropy_floor, head_scores, landmarks, pattern_targets, perplexity, words_after
from helpers.model import Decoder, ModelConfig
from helpers.stories import Stories
from helpers.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer([f"w{i}" for i in range(16)])


def test_perplexity_is_exp_of_the_mean_over_all_tokens():
    torch.manual_seed(0)
    model = Decoder(
        ModelConfig(vocab_size=20, embedding_dim=12, d_model=16, num_layers=1, num_heads=2, d_ff=32, context_length=12)
    )
    texts = ["w1 w2 w3", "w4 w5 w6 w7 w8 w9", "w1"]
    total = count = 0
    for text in texts:
        ids = torch.tensor([[1, *TOKENIZER.encode(text), 2]])
        total += F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    assert perplexity(model, TOKENIZER, texts) == pytest.approx(math.exp(total / count), rel=1e-5)


def test_landmarks_by_hand():
    """Twenty copies of one story, so that every smoothing weight is fitted on the same counts."""
    train = torch.tensor([[1, 4, 5, 4, 5, 2]] * 20)
    validation = torch.tensor([[1, 4, 5, 2, 0, 0]])
    marks = landmarks(train, validation, vocab_size=6)
    assert marks["uniform"] == pytest.approx(math.log(6))
    unigram = {4: 41 / 106, 5: 41 / 106, 2: 21 / 106}  # counts plus one, of 100 tokens and 6 words
    assert marks["unigram"] == pytest.approx(-sum(math.log(unigram[i]) for i in (4, 5, 2)) / 3)
    weight = 0.3  # the least smoothing wins, as the pairs never vary
    smoothed = lambda pair, word, before: (pair + weight * unigram[word]) / (before + weight)
    bigram = [smoothed(20, 4, 20), smoothed(40, 5, 40), smoothed(20, 2, 40)]
    assert marks["bigram"] == pytest.approx(-sum(map(math.log, bigram)) / 3)


def test_the_floor_is_the_mean_over_the_tokens_that_are_predicted():
    stories = Stories("made", ["a"], ["b", "c"], validation_nats=[np.array([1.0, 2.0, 3.0]), np.array([4.0])])
    assert entropy_floor(stories, length=3) == pytest.approx((1 + 2 + 4) / 3)
    with pytest.raises(ValueError, match="only the bundled corpus has an exact floor"):
        entropy_floor(Stories("made", ["a"], ["b"]), length=3)


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
    assert targets["same name"] == {(4, 1), (6, 3)}  # mia comes after ".", tom after the second "saw"
    assert targets["previous sound"] == {(3, 2), (4, 3), (7, 6)}
    assert targets["next sound"] == {(6, 3), (7, 4)}  # not (5, 2): mia is no sound


def test_words_after_a_pattern():
    tokenizer = WordTokenizer(["mia", "pom", "zim", "named", "a"])
    texts = ["A cat named Mia. A dog named Rex.", 'a song, "Zim pom."']
    assert words_after(r"named ([A-Z]\w+)", texts, tokenizer) == {tokenizer.encode("mia")[0]}  # Rex is not known
    assert words_after(r'song, "([^".]+)\.', texts, tokenizer) == set(tokenizer.encode("zim pom"))


class HandMade(torch.nn.Module):
    """Two heads in one layer: one looks at the previous word (or at itself, at the start), one evenly at all."""

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
    assert scores["same word"][0] == pytest.approx(
        [(1 / 4 - even) / (1 - even) for even in [_even()]] + [0.0], abs=1e-6
    )


def _even():
    """Queries with an earlier copy: three in the first story (1 of 6, 7, 8 words), one in the second (1 of 3)."""
    return (1 / 6 + 1 / 7 + 1 / 8 + 1 / 3) / 4
