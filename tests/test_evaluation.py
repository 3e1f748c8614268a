"""Perplexity, landmarks, the floor and head scores against cases counted by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import sacrebleu
import torch
import torch.nn.functional as F

from helpers.decoding import generate
from helpers.evaluation import (
    PATTERNS,
    Trigram,
    bleu,
    bleu_signature,
    entropy_floor,
    evaluate_continuations,
    head_scores,
    landmarks,
    pattern_targets,
    perplexity,
    words_after,
)
from helpers.model import Decoder, ModelConfig
from helpers.stories import Stories
from helpers.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer([f"w{i}" for i in range(16)])


def test_perplexity_is_exp_of_the_mean_over_all_tokens():
    torch.manual_seed(0)
    model = Decoder(
        ModelConfig(
            vocab_size=20,
            embedding_dim=12,
            d_model=16,
            num_layers=1,
            num_heads=2,
            d_ff=32,
            context_length=12,
        )
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
    stories = Stories(
        "made", ["a"], ["b", "c"], validation_nats=[np.array([1.0, 2.0, 3.0]), np.array([4.0])]
    )
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
    assert targets["same name"] == {
        (4, 1),
        (6, 3),
    }  # mia comes after ".", tom after the second "saw"
    assert targets["previous sound"] == {(3, 2), (4, 3), (7, 6)}
    assert targets["next sound"] == {(6, 3), (7, 4)}  # not (5, 2): mia is no sound


def test_words_after_a_pattern():
    tokenizer = WordTokenizer(["mia", "pom", "zim", "named", "a"])
    texts = ["A cat named Mia. A dog named Rex.", 'a song, "Zim pom."']
    assert words_after(r"named ([A-Z]\w+)", texts, tokenizer) == {
        tokenizer.encode("mia")[0]
    }  # Rex is not known
    assert words_after(r'song, "([^".]+)\.', texts, tokenizer) == set(tokenizer.encode("zim pom"))


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
    assert scores["same word"][0] == pytest.approx(
        [(1 / 4 - even) / (1 - even) for even in [_even()]] + [0.0], abs=1e-6
    )


def _even():
    """Queries with an earlier copy: three in the first story (1 of 6, 7, 8 words), one in the
    second (1 of 3).
    """
    return (1 / 6 + 1 / 7 + 1 / 8 + 1 / 3) / 4


# --- Continuations --------------------------------------------------------------------------------


def tiny_model():
    torch.manual_seed(0)
    sizes = {
        "embedding_dim": 12,
        "d_model": 16,
        "num_layers": 1,
        "num_heads": 2,
        "d_ff": 32,
        "context_length": 12,
    }
    return Decoder(ModelConfig(vocab_size=20, **sizes)).eval()


TEXTS = [" ".join(f"w{(i * k) % 16}" for k in range(1, 9 + i)) for i in range(1, 7)]


def test_bleu_by_hand():
    """Of 6 words 5 match, of 5 pairs 3, of 4 triples 2, of 3 fours 1; as many words as the
    reference has.
    """
    assert bleu(["a b c d x f"], ["a b c d e f"]) == pytest.approx(
        100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    )
    assert bleu(["a b c d"], ["a b c d e f"]) == pytest.approx(
        100 * math.exp(1 - 6 / 4)
    )  # the brevity penalty
    assert bleu(["w1 , w2 w3 .", "w3"], ["w1 , w2 w3 .", "w3"]) == pytest.approx(100)
    with pytest.raises(ValueError, match="argument"):
        bleu(["a"], ["a", "b"])


def test_bleu_is_sacrebleus():
    generator = np.random.default_rng(0)
    pairs = [
        [" ".join(generator.choice(list("abcde"), size=12)) for _ in range(2)] for _ in range(30)
    ]
    hypotheses, references = zip(*pairs, strict=True)
    expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none").score
    assert bleu(hypotheses, references) == pytest.approx(expected, abs=1e-9)


def test_the_signature_names_what_bleu_depends_on():
    assert bleu_signature().startswith("nrefs:1|case:mixed|eff:no|tok:none|smooth:exp|version:")


def test_continuations_leave_the_prompt_out():
    model = tiny_model()
    found = evaluate_continuations(
        model, TOKENIZER, TEXTS, prompt_tokens=3, max_new_tokens=4, strategy="greedy"
    )
    assert found.prompts[0] == " ".join(TEXTS[0].split()[:3])
    assert found.references[0] == " ".join(TEXTS[0].split()[3:7])
    alone = generate(model, TOKENIZER, found.prompts, max_new_tokens=4, strategy="greedy")
    assert [one.ids for one in found.generations] == [one.ids for one in alone]
    nats, tokens = -sum(one.logprob for one in alone), sum(len(one.ids) for one in alone)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found.bleu == bleu([one.text.lower() for one in alone], found.references)
    assert len((found + found).hypotheses) == 2 * len(TEXTS)
    assert (found + found).perplexity == pytest.approx(found.perplexity)


def test_the_true_continuation_is_its_own_reference():
    model = tiny_model()
    true = evaluate_continuations(model, TOKENIZER, TEXTS, prompt_tokens=3, strategy="true")
    assert true.bleu == pytest.approx(100)
    total = count = 0
    for text in TEXTS:
        ids = torch.tensor([[1, *TOKENIZER.encode(text), 2][:12]])
        total += F.cross_entropy(model(ids[:, :-1])[0, 3:], ids[0, 4:], reduction="sum").item()
        count += ids.shape[1] - 4
    assert true.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


def test_intervals_hold_the_value_and_shrink_with_more_prompts_only():
    words = np.random.default_rng(0).integers(16, size=(160, 9))
    texts = [" ".join(f"w{i}" for i in row) for row in words]
    model, how = tiny_model(), {"prompt_tokens": 3, "strategy": "greedy"}

    def width(found):
        low, high = found.intervals(resamples=300)["perplexity"]
        assert low < found.perplexity < high
        return high - low

    few, many = (
        evaluate_continuations(model, TOKENIZER, some, **how) for some in (texts[:10], texts)
    )
    # the square root of 16, as far as two samples can tell
    assert 2.5 < width(few) / width(many) < 6
    assert width(few + few + few) == pytest.approx(width(few), rel=0.2)  # the same again is no news


def test_a_text_without_a_continuation_is_refused():
    with pytest.raises(ValueError, match="text 1 has 3 words: nothing follows a prompt of 3"):
        evaluate_continuations(tiny_model(), TOKENIZER, [TEXTS[0], "w1 w2 w3"], prompt_tokens=3)


def test_trigram_probabilities_by_hand():
    """After (5, 6): 7 twice, 8 once. Each order gives way to the one below with the weight of one
    observation.
    """
    model = Trigram(
        torch.tensor([[1, 5, 6, 7, 2], [1, 5, 6, 7, 2], [1, 5, 6, 8, 2]]), vocab_size=10
    )
    unigram = (3 + 1 / 10) / (15 + 1), (2 + 1 / 10) / (15 + 1)  # of 6 and 7, of 15 tokens
    bigram = (2 + unigram[1]) / (3 + 1)  # 7 after 6
    assert model.distribution([1, 5, 6])[7] == pytest.approx((2 + bigram) / (3 + 1))
    assert model.distribution([9, 6])[7] == pytest.approx(
        bigram
    )  # an unknown pair: the bigram is left
    assert model.distribution([])[6] == pytest.approx(unigram[0])
    for before in ([], [6], [5, 6], [1, 5, 6], [4, 4]):
        assert model.distribution(before).sum() == pytest.approx(1)


def test_trigram_continuations_are_drawn_from_it():
    like = evaluate_continuations(
        tiny_model(), TOKENIZER, TEXTS, prompt_tokens=3, strategy="greedy"
    )
    ids = torch.tensor([[1, *TOKENIZER.encode(text), 2][:10] for text in TEXTS])
    drawn = Trigram(ids, vocab_size=20, weight=1e-9).continuations(
        tiny_model(), TOKENIZER, like, limit=4
    )
    pairs = {pair for row in ids.tolist() for pair in pairwise(row)}
    for prompt, one in zip(drawn.prompts, drawn.generations, strict=True):
        row = [*TOKENIZER.encode(prompt), *one.ids]
        assert set(pairwise(row[2:])) <= pairs
    assert drawn.references == like.references
