"""Perplexity, bits per character, landmarks, the floor and BLEU against cases counted by hand."""

import functools
import math
import sys

import numpy as np
import pytest
import sacrebleu
import torch
import torch.nn.functional as F
from support import TOKENIZER, made_model
from test_grammar import SMALL, enumerate_stories

from helpers.decoding import Generation, generate
from helpers.evaluation import (
    Continuations,
    against_truth,
    bits_per_character,
    bleu,
    evaluate_continuations,
    judge_continuations,
    landmarks,
    perplexity,
    quotable,
)
from helpers.grammar import Grammar, bundled_grammar, entropy_floor
from helpers.stories import Stories
from helpers.tokenizer import WordTokenizer


def tiny_model():
    return made_model(num_layers=1).eval()


def nats_and_tokens(model, texts, given=1):
    """The loss of what follows the first `given` ids of each text, by itself, and its length."""
    total = count = 0
    for text in texts:
        ids = torch.tensor([1, *TOKENIZER.encode(text), 2][:12])  # (T,)
        logits = model(ids[None, :-1])[0, given - 1 :]  # (T - given, V)
        total += F.cross_entropy(logits, ids[given:], reduction="sum").item()
        count += len(ids) - given
    return total, count


def test_perplexity_is_exp_of_the_mean_over_all_tokens():
    model, texts = tiny_model(), ["w1 w2 w3", "w4 w5 w6 w7 w8 w9", "w1"]
    total, count = nats_and_tokens(model, texts)
    assert count == 4 + 7 + 2
    assert perplexity(model, TOKENIZER, texts) == pytest.approx(math.exp(total / count), rel=1e-5)


def model_of(probabilities):
    """It finds these tokens likely, whatever came before."""
    model = made_model(vocab_size=len(probabilities))
    torch.nn.init.zeros_(model.output.weight)
    with torch.no_grad():
        model.output.bias.copy_(torch.tensor(probabilities).log())
    return model


def test_bits_per_character_by_hand():
    """The letters of "ab" and "b", each with its end, are 1 a, 2 b and 2 ends. Plus one each, and
    one for all others, they are 9.
    """
    tokenizer = WordTokenizer(["ab", "b"])
    model = model_of([1 / 32, 1 / 32, 1 / 4, 1 / 2, 1 / 8, 1 / 16])
    bits = lambda *texts: pytest.approx(bits_per_character(model, tokenizer, texts), rel=1e-6)
    assert bits("ab b") == (3 + 4 + 2) / 4
    assert bits("\n AB  b ") == (3 + 4 + 2) / 5  # white space counts, but not at the ends
    spelled = math.log2(9 / 3 * 9 / 2 * 9 / 3)  # b, a, end
    assert bits("ab Ba") == (3 + 1 + spelled + 2) / 5
    assert bits("ab Ba", "b ab") == (3 + 1 + spelled + 2 + 4 + 3 + 2) / 9
    unseen = math.log2(9 * (sys.maxunicode + 1))  # of all other letters, this one
    assert bits("ab xx") == (3 + 1 + 2 * unseen + math.log2(9 / 3) + 2) / 5


def test_a_tokenizer_without_letters_does_not_spell_for_nothing():
    """The end of a word has a count of one, and so have all letters together."""
    model, empty = model_of([1 / 4] * 4), WordTokenizer([])
    letter = math.log2(2 * (sys.maxunicode + 1))
    assert bits_per_character(model, empty, ["one"]) == pytest.approx((2 + 3 * letter + 1 + 2) / 3)


def test_bits_per_character_of_texts_longer_than_the_context():
    """A window of 12 ids predicts 11; each later one adds 6, and drops the first 6."""
    model, total = made_model(dropout=0.5).train(), 0
    texts = [" ".join(f"w{(7 * i) % 30}" for i in range(n)) for n in (3, 10, 11, 16, 17, 40)]
    found = bits_per_character(model, TOKENIZER, texts)
    assert model.training
    model.eval()
    for text in texts:
        ids = torch.tensor([1, *TOKENIZER.encode(text), 2])  # (T,)
        for t in range(1, len(ids)):
            seen = ids[None, max(0, t // 6 - 1) * 6 : t]  # (1, tokens before t in its window)
            total -= model(seen)[0, -1].log_softmax(-1)[ids[t]].item()
    assert found * math.log(2) * sum(map(len, texts)) == pytest.approx(total, rel=1e-5)


def test_bits_per_character_is_perplexity_in_other_units():
    model, texts = tiny_model(), ["w1 w2 w3", "w4 w5 w6 w7 w8 w9"]
    bits = math.log2(perplexity(model, TOKENIZER, texts)) * (4 + 7) / (8 + 17)
    assert bits_per_character(model, TOKENIZER, texts) == pytest.approx(bits, rel=1e-5)


def test_bits_per_character_compares_tokenizers_with_and_without_punctuation():
    """The marks that one of them reads are words of their own, and move the others' ids."""
    stories = ["One day, Lily ran. Lily ran, and ran!", "One day."]
    kept, dropped = (WordTokenizer.train(stories, keep_punctuation=keep) for keep in (True, False))
    assert kept.encode("One day") != dropped.encode("One day")
    model = model_of([1 / 16] * 16)
    for text, marks in [("One day Lily ran", 0), ("One day, Lily ran.", 2)]:
        costs = [bits_per_character(model, one, [text]) * len(text) for one in (kept, dropped)]
        assert costs == pytest.approx([4 * (4 + marks + 1), 4 * (4 + 1)])
    model = tiny_model()  # with the same words, whatever it predicts
    kept, dropped = (WordTokenizer([*TOKENIZER.words, "."], (), keep) for keep in (True, False))
    both = [bits_per_character(model, one, ["W1 w2 w3", "w4"]) for one in (kept, dropped)]
    assert both[0] == both[1]


@pytest.mark.slow
def test_expected_loss_is_entropy_and_divergence():
    """The sums over all stories of a small grammar, three of whose words are unknown."""
    grammar = Grammar(**SMALL)
    following = functools.cache(lambda words: Grammar.next_words(grammar, list(words)))
    grammar.next_words = lambda words: following(tuple(words))  # stories share their beginnings
    told = list(enumerate_stories(grammar))
    texts, chances = [text for _, text, _ in told], [p for p, _, _ in told]
    every = WordTokenizer.train(texts)
    for words in (every.words, sorted({*every.words} - {"hen", "sad", "glad"})):
        tokenizer = WordTokenizer(words)
        model = made_model(vocab_size=len(tokenizer), context_length=40).double().eval()
        expected = dict.fromkeys(["loss", "truth", "divergence"], 0.0)
        for p, text, nats in told:
            found = against_truth(model, tokenizer, grammar, [text])
            assert ((found["impossible"] > 0) & (found["impossible"] < 1)).all()
            if tokenizer.words == every.words:
                np.testing.assert_allclose(found["truth"], nats, rtol=0, atol=1e-12)
            for name in expected:
                expected[name] += p * found[name].sum()
        entropy = expected["truth"]
        assert expected["divergence"] > 1
        assert abs(expected["loss"] - entropy - expected["divergence"]) < 1e-9
    whole = -sum(p * math.log(p) for p in chances)
    assert entropy < whole - 0.1  # unknown words are one, and easier to foresee


def test_truth_by_hand():
    """Of two stories, a quarter and three quarters: the model gives both words these chances, and
    a fifth of all to the end, where the story cannot end.
    """
    grammar = Grammar({}, {"story": ["3 w0", "w1"]})
    chances = torch.full((40,), 1e-30)  # (V,)
    chances[[TOKENIZER.eos_id, *TOKENIZER.encode("w0 w1")]] = torch.tensor([0.2, 0.6, 0.2])
    found = against_truth(model_of(chances.tolist()), TOKENIZER, grammar, ["w0", "w1"])
    expected = {
        "loss": [-math.log(0.6), -math.log(0.2), -math.log(0.2), -math.log(0.2)],
        "truth": [-math.log(0.75), 0, -math.log(0.25), 0],
        "divergence": [0.75 * math.log(0.75 / 0.6) + 0.25 * math.log(0.25 / 0.2), -math.log(0.2)]
        * 2,
        "impossible": [0.2, 0.8, 0.2, 0.8],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-9)


def test_texts_that_the_grammar_does_not_tell_are_refused():
    with pytest.raises(ValueError, match=r"^no story of this grammar begins with 'w1 w2'$"):
        against_truth(tiny_model(), TOKENIZER, Grammar({}, {"story": ["w1"]}), ["w1 w2"])


def test_continuations_are_judged_by_the_grammar():
    """A prompt of one word, and four texts: whole, cut, broken at the third word, ended early."""
    grammar = Grammar({}, {"story": ["3 w0 w1 w2 w3", "w0 w4"]})
    texts = [["w1", "w2", "w3", "<eos>"], ["w1", "w2"], ["w1", "w2", "w4"], ["w4", "w1"]]
    ids = [[2 if word == "<eos>" else TOKENIZER.encode(word)[0] for word in text] for text in texts]
    written = [
        Generation(" ".join(text), row, -1.0, -1.0) for text, row in zip(texts, ids, strict=True)
    ]
    found = judge_continuations(
        grammar, TOKENIZER, Continuations(["w0"] * 4, [""] * 4, [""] * 4, written)
    )
    assert found["possible"] == 0.5
    assert found["words"] == 1.5  # the medians of 2 and 1
    first, second = math.log(4 / 3), math.log(4)  # after w0, w1 or w4; all else is certain
    assert found["nats"] == pytest.approx((3 * first + second) / (4 + 2 + 2 + 1))
    assert (found["low"], found["high"]) == pytest.approx((0.150, 0.850), abs=1e-3)
    every = Continuations(["w0"], [""], [""], written[:1])
    assert math.isnan(judge_continuations(grammar, TOKENIZER, every)["words"])
    other = Continuations(["w7"], [""], [""], written[:1])
    with pytest.raises(ValueError, match=r"^no story of this grammar begins with 'w7'$"):
        judge_continuations(grammar, TOKENIZER, other)


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
    nats = [np.array([1.0, 2.0, 3.0]), np.array([4.0])]
    stories = Stories("made", ["a"], ["b", "c"], validation_nats=nats)
    assert entropy_floor(stories, length=3) == pytest.approx((1 + 2 + 4) / 3)
    with pytest.raises(ValueError, match=r"^nobody knows the entropy of 'made': take 'bundled'$"):
        entropy_floor(Stories("made", ["a"], ["b"]), length=3)


# --- Continuations --------------------------------------------------------------------------------


TEXTS = [" ".join(f"w{(i * k) % 16}" for k in range(1, 9 + i)) for i in range(1, 7)]


def test_bleu_by_hand():
    """Of 6 words 5 match, of 5 pairs 3, of 4 triples 2, of 3 fours 1; as many words as the
    reference has.
    """
    same_length = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu(["a b c d x f"], ["a b c d e f"]) == pytest.approx(same_length)
    brevity_penalty = math.exp(1 - 6 / 4)
    assert bleu(["a b c d"], ["a b c d e f"]) == pytest.approx(100 * brevity_penalty)
    assert bleu(["w1 , w2 w3 .", "w3"], ["w1 , w2 w3 .", "w3"]) == pytest.approx(100)
    with pytest.raises(ValueError, match="argument"):
        bleu(["a"], ["a", "b"])


def test_bleu_is_sacrebleus():
    rng = np.random.default_rng(0)
    draw = lambda: " ".join(rng.choice(list("abcde"), size=12))
    hypotheses, references = zip(*[[draw(), draw()] for _ in range(30)], strict=True)
    expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none").score
    assert bleu(hypotheses, references) == pytest.approx(expected, abs=1e-9)


def test_continuations_leave_the_prompt_out():
    model, how = tiny_model(), {"max_new_tokens": 4, "strategy": "greedy"}
    found = evaluate_continuations(model, TOKENIZER, TEXTS, prompt_tokens=3, **how)
    assert found.prompts[0] == " ".join(TEXTS[0].split()[:3])
    assert found.references[0] == " ".join(TEXTS[0].split()[3:7])
    alone = generate(model, TOKENIZER, found.prompts, **how)
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
    total, count = nats_and_tokens(model, TEXTS, given=4)
    assert true.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


def test_intervals_hold_the_value_and_shrink_with_more_prompts_only():
    words = np.random.default_rng(0).integers(16, size=(160, 9))
    texts = [" ".join(f"w{i}" for i in row) for row in words]
    model, how = tiny_model(), {"prompt_tokens": 3, "strategy": "greedy"}

    def width(found):
        low, high = found.intervals(resamples=300)["perplexity"]
        assert low < found.perplexity < high
        return high - low

    measure = lambda some: evaluate_continuations(model, TOKENIZER, some, **how)
    few, many = measure(texts[:10]), measure(texts)
    # the square root of 16, as far as two samples can tell
    assert 2.5 < width(few) / width(many) < 6
    assert width(few + few + few) == pytest.approx(width(few), rel=0.2)  # the same again is no news


def test_a_text_without_a_continuation_is_refused():
    message = r"^text 1 has 3 words: nothing follows a prompt of 3$"
    with pytest.raises(ValueError, match=message):
        evaluate_continuations(tiny_model(), TOKENIZER, [TEXTS[0], "w1 w2 w3"], prompt_tokens=3)


FILLED = "must be a list of strings, at least one"


@pytest.mark.parametrize(
    ("message", "measure"),
    {
        "texts": lambda model: perplexity(model, TOKENIZER, []),
        "^texts": lambda model: perplexity(model, TOKENIZER, "a text"),
        rf"^texts=\[\]: {FILLED}$": lambda model: bits_per_character(model, TOKENIZER, []),
        f"^texts='a text': {FILLED}$": lambda model: bits_per_character(model, TOKENIZER, "a text"),
        "^no characters to divide the bits among: the texts are empty$": lambda model: (
            bits_per_character(model, TOKENIZER, ["", " \n"])
        ),
        rf"hypotheses=\[\]: {FILLED}": lambda model: bleu([], []),
        f"hypotheses='a': {FILLED}": lambda model: bleu("a", ["b"]),
        f"references='b': {FILLED}": lambda model: bleu(["a"], "b"),
        rf"texts=\[\]: {FILLED}": lambda model: evaluate_continuations(model, TOKENIZER, []),
        f"texts='a b': {FILLED}": lambda model: evaluate_continuations(model, TOKENIZER, "a b"),
        "max_new_tokens=0: must be a whole number of at least 1": lambda model: (
            evaluate_continuations(model, TOKENIZER, TEXTS, max_new_tokens=0)
        ),
        "prompt_tokens=11: must be a whole number from 0 to 10": lambda model: (
            evaluate_continuations(model, TOKENIZER, TEXTS, prompt_tokens=11)
        ),
        r"\(0, 9\) hold no two tokens": lambda model: landmarks(
            torch.ones(1, 9).int(), torch.ones(2, 9).int(), 40
        ),
        r"\(0, 8\) hold no two tokens": lambda model: landmarks(
            torch.ones(2, 9).int(), torch.ones(0, 8).int(), 40
        ),
    }.items(),
)
def test_nothing_to_measure_is_refused(message, measure):
    with pytest.raises(ValueError, match=message):
        measure(tiny_model())


def test_a_continuation_without_a_prompt_is_measured_whole():
    how = {"prompt_tokens": 0, "strategy": "true"}
    model = made_model(num_layers=1, dropout=0.5).eval()
    total, count = nats_and_tokens(model, TEXTS)
    found = evaluate_continuations(model, TOKENIZER, TEXTS, **how)
    assert found.tokens.sum() == count
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    model.train()  # what is given is measured without dropout
    assert evaluate_continuations(model, TOKENIZER, TEXTS, **how).perplexity == found.perplexity


def test_another_writer_is_judged_by_the_model():
    """It gets the prompt's ids; what it writes costs what the model says."""
    model, how, asked = tiny_model(), {"prompt_tokens": 3, "max_new_tokens": 4}, []

    def write(before, limit):
        asked.append((before, limit))
        return [5, 6, 2]

    found = evaluate_continuations(model, TOKENIZER, TEXTS, writer=write, **how)
    assert asked == [([1, *TOKENIZER.encode(text)[:3]], 4) for text in TEXTS]
    assert found.hypotheses == ["w1 w2"] * len(TEXTS)
    written = [" ".join([*text.split()[:3], "w1", "w2"]) for text in TEXTS]
    true = evaluate_continuations(model, TOKENIZER, written, strategy="true", **how)
    assert found.perplexity == pytest.approx(true.perplexity, rel=1e-6)


def test_another_models_tokenizer_is_refused_by_every_measure():
    model, other = made_model(), WordTokenizer(TOKENIZER.words[::-1])
    model.tokenizer_digest = TOKENIZER.digest
    for measure in (
        lambda: perplexity(model, other, TEXTS),
        lambda: bits_per_character(model, other, TEXTS),
        lambda: against_truth(model, other, bundled_grammar(), TEXTS),
        lambda: evaluate_continuations(model, other, TEXTS, prompt_tokens=3, strategy="true"),
        lambda: evaluate_continuations(model, other, TEXTS, prompt_tokens=3, strategy="greedy"),
    ):
        with pytest.raises(ValueError, match="the tokenizer is another model's"):
            measure()


def test_a_quoted_text_shares_no_long_run_of_words_with_a_story():
    stories = ["One two three, four. Five!", "six"]
    same, longer = "Zero two THREE four six", "zero, one two three four zero"
    assert quotable([same, longer, ""], stories, longest=3) == [
        same,
        "zero, one two three … zero",
        "",
    ]
    assert quotable(["One two three four, five, six!"], stories, longest=3) == [
        "One two three … six!"
    ]
    assert quotable([longer], [], longest=3) == [longer]
