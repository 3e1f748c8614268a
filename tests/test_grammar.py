"""The grammar: its probabilities against a list of all its stories."""

import json
import math
import random
import re
import time
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from helpers import grammar as module
from helpers.grammar import FLATTENING, Grammar, bundled_grammar
from helpers.tokenizer import WordTokenizer

# Every construct: rows that agree in either order, a table given by a word and one given by a row,
# weights, options that share first words, slots first, capitals, possessives, dialogue, remembered
# words repeated, fresh ones redrawn.
SMALL = {
    "remembered": {
        "kind": {"agrees": "hero", "she": "3 girl, hen", "he": "boy"},
        "hero": {"agrees": "kind", "she": "Mia, Zoe", "he": "Tom"},
        "toy": "ball, toy boat, toy train",
    },
    "fresh": {
        "story": [
            "2 A {kind} named {hero} {lost}.",
            "{hero} was a {kind}. {They} {lost}!",
            "In {mood} {mood} May, {hero} {lost}.",
        ],
        "they": {"given": "hero", "she": "she", "he": "he"},
        "lost": ['lost {hero}\'s {toy}. "Is it {where}?" asked {hero}. {reply}', "2 slept"],
        "where": {
            "given": "toy",
            "ball": "in the tree, in the barn, in a pot",
            "toy boat": "here",
            "toy train": ["{mood} here"],
        },
        "reply": [
            '"No," said {someone}. {someone_too} laughed',
            '"Yes," said {someone}',
            "{someone_too} laughed",
        ],
        "someone": ["the {toy}", "{mood} {hero}"],
        "someone_too": ["The {mood} {toy}", "{Mood} {hero}"],
        "mood": "sad, glad",
    },
}


def replay(grammar, path):
    """The story of the choices `path`, then 0s: its probability, text and nats.

    And last, the paths that branch off it.
    """
    path, depth, probability, beside = list(path), 0, 1.0, []

    def choose(cumulative):
        nonlocal depth, probability
        if depth == len(path):
            beside.extend([*path, other] for other in range(1, len(cumulative)))
            path.append(0)
        chosen = path[depth]
        depth += 1
        weight = cumulative[chosen] - (cumulative[chosen - 1] if chosen else 0)
        probability *= weight / cumulative[-1]
        return chosen

    text, nats = grammar.tell(choose)
    return probability, text, nats, beside


def enumerate_stories(grammar):
    """(probability, text, nats) of every story: all sequences of choices, one after another."""
    waiting = [[]]
    while waiting:
        *told, beside = replay(grammar, waiting.pop())
        waiting += beside
        yield told


split = WordTokenizer([]).split


def assert_exact(grammar):
    """Each word's nats, and each beginning's next words, are what the list of all stories says.

    The probability of a word is P(words so far and this one) / P(words so far).
    """
    told = [(p, (*split(text), "<eos>"), nats) for p, text, nats in enumerate_stories(grammar)]
    assert math.fsum(p for p, _, _ in told) == pytest.approx(1, abs=1e-12)
    assert len({words for _, words, _ in told}) == len(told)
    mass = Counter()
    for p, words, _ in told:
        for end in range(len(words) + 1):
            mass[words[:end]] += p
    for _, words, nats in told:
        expected = [math.log(mass[words[:i]] / mass[words[: i + 1]]) for i in range(len(words))]
        assert nats.dtype == np.float64
        np.testing.assert_allclose(nats, expected, rtol=0, atol=1e-11)
    following = {words[:end]: {} for _, words, _ in told for end in range(len(words) + 1)}
    for words in mass.keys() - {()}:
        following[words[:-1]][words[-1]] = mass[words] / mass[words[:-1]]
    for words, expected in following.items():
        assert grammar.next_words(list(words)) == pytest.approx(expected, rel=0, abs=1e-12)
    return len(told)


def test_every_probability_is_what_the_list_of_all_stories_says():
    assert assert_exact(Grammar(**SMALL)) > 500


# A phrase that tells each plot of the bundled stories from the others.
PLOTS = {
    "lost on the way": r"(lost (his|her) way|got lost|wrong turn|in circles|astray) in the ",
    "moved away": r"Then \w+ (moved|sailed|went|travelled) to ",
    "forgotten words": r" At the [\w ]+, \w+ forgot ",
    "lullaby": r" baby (brother|sister|cousin) ",
    "gate": r" (found|discovered|noticed|saw|came upon) a \w+ (gate|door|trapdoor|hatch) ",
    "monster": r" (blocked|guarded|barred) the ",
    "hide-and-seek": r" played hide-and-seek",
    "race": r" they ran in the ",
    "noise": r" (night|evening), they heard a ",
    "lost thing": r" could not find it ",
    "swap": r" (swapped|traded|exchanged) it with ",
    "sharing": r" would not share it ",
    "creature": r"(?<!they )heard a \w+ \w+ (in|under|behind|near|by|among) ",
    "baking": r" but had no ",
    "stranger": r" (met|saw|noticed|passed) a [\w-]+ (?!gate|door|trapdoor|hatch)",
    "seed": r" planted a ",
}


def bundled_rules():
    path = Path(module.__file__).with_name("bundled_grammar.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def cut(spec, keep, rng):
    """The same rule with `keep` of its options, in each row."""
    if isinstance(spec, dict):
        names = ("given", "agrees")
        return {key: row if key in names else cut(row, keep, rng) for key, row in spec.items()}
    options = [text.strip() for text in spec.split(",")] if isinstance(spec, str) else spec
    chosen = rng.sample(options, min(keep, len(options)))
    return ", ".join(chosen) if isinstance(spec, str) else chosen


def only_used(rules):
    """The rules that can still be reached from the story: the rest would be refused as unused."""
    both = rules["remembered"] | rules["fresh"]
    reached, waiting = set(), ["story"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            text = json.dumps(both.get(name))
            waiting += [slot.lower() for slot in re.findall(r"\{(\w+)\}", text)]
            waiting += re.findall(r'"(?:given|agrees)": "(\w+)"', text)
    return {part: {n: s for n, s in specs.items() if n in reached} for part, specs in rules.items()}


@pytest.mark.parametrize("plot", PLOTS)
def test_cut_down_bundled_grammar_is_exact(plot):
    rng, rules, told = random.Random(f"cut-{plot}"), bundled_rules(), ""
    while not re.search(PLOTS[plot], told):  # one option of each rule, until they tell this plot
        kept = {
            section: {name: cut(spec, 1, rng) for name, spec in specs.items()}
            for section, specs in rules.items()
        }
        told = Grammar(**only_used(kept)).story("0")[0]
    count = 0
    # Open one rule after another, while all fits.
    used = only_used(kept)
    names = [*used["remembered"], *used["fresh"]]
    for name in rng.sample(names, len(names)):
        section = "remembered" if name in rules["remembered"] else "fresh"
        opened = {name: cut(rules[section][name], 2, rng)}
        trial = kept | {section: kept[section] | opened}
        grammar = Grammar(**only_used(trial))
        size = sum(1 for _, _ in zip(range(401), enumerate_stories(grammar), strict=False))
        if size <= 400:
            kept, best, count = trial, grammar, size
        if count > 150:
            break
    assert count > 50
    assert assert_exact(best) == count


def test_every_bundled_story_has_one_plot_and_no_plot_is_rare():
    told = [bundled_grammar().story(f"train-{i}")[0] for i in range(3_000)]
    plots = [[name for name, phrase in PLOTS.items() if re.search(phrase, t)] for t in told]
    assert [text for text, found in zip(told, plots, strict=True) if len(found) != 1] == []
    assert min(Counter(name for (name,) in plots).values()) > 0.05 * len(told)


def test_ten_thousand_bundled_stories_differ_and_are_told_fast():
    started = time.perf_counter()
    told = [bundled_grammar().story(f"train-{i}")[0] for i in range(10_000)]
    assert time.perf_counter() - started < 10
    assert len(set(told)) >= 9_990


def test_sampled_frequencies_match_the_probabilities():
    grammar, draws = Grammar(**SMALL), 20_000
    expected = {text: p * draws for p, text, _ in enumerate_stories(grammar)}
    seen = Counter(grammar.story(f"draw-{i}")[0] for i in range(draws))
    assert seen.keys() <= expected.keys()
    common = [text for text, count in expected.items() if count >= 10]
    chi_square = sum((seen[text] - expected[text]) ** 2 / expected[text] for text in common)
    assert chi_square < len(common) + 4 * math.sqrt(2 * len(common))


def test_weights():
    told = {text: p for p, text, _ in enumerate_stories(Grammar({}, {"story": "2 a, b, c"}))}
    weights = [2 / (1 + FLATTENING), 1 / (2 + FLATTENING), 1 / (3 + FLATTENING)]
    assert [told[word] for word in "abc"] == pytest.approx([w / sum(weights) for w in weights])
    told = {text: p for p, text, _ in enumerate_stories(Grammar({}, {"story": ["3 a", "b"]}))}
    assert told == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize(
    ("remembered", "fresh", "message"),
    [
        ({}, {"story": ["a dog", "a cat", "a dog"]}, "begin with 'a dog'"),
        ({}, {"story": ["a dog", "a dog barks"]}, "begin with 'a dog'"),
        ({}, {"story": ["a {x} dog", "a small cat"], "x": "big, small"}, "begin with 'a'"),
        ({}, {"story": ["{x} dog", "small cat"], "x": "big, small"}, "begin with 'small'"),
        ({}, {"story": ["{x} dog", "{x} cat"], "x": "big"}, "begin with 'big'"),
        ({}, {"story": ["a {x}"]}, r"without a rule: \['x'\]"),
        ({}, {"story": ["a"], "x": "b"}, r"no slot uses: \['x'\]"),
        ({}, {"story": ["a {x}"], "x": ["b {story}"]}, "leads back to itself"),
        ({}, {"story": ["a", ""]}, "must begin with a word"),
        ({}, {"story": [" {x} b"], "x": "c"}, "must begin with a word"),
        ({"x": ["b {y}"]}, {"story": ["a {x}"], "y": "c"}, "may hold no slots"),
        ({"story": "a"}, {"story": ["a"]}, "defined twice"),
    ],
)
def test_grammar_refuses_what_would_not_be_exact(remembered, fresh, message):
    with pytest.raises(ValueError, match=message):
        Grammar(remembered, fresh)


def test_a_table_needs_its_key_and_its_row():
    table = {"given": "x", "b": "c"}
    with pytest.raises(ValueError, match="'y' depends on 'x', which has no value yet"):
        Grammar({"x": "b"}, {"story": ["a {y} {x}"], "y": table}).story("0")
    with pytest.raises(ValueError, match="is 'd', for which there is no row"):
        Grammar({"x": "d"}, {"story": ["a {x} {y}"], "y": table}).story("0")


def assert_judged(grammar, text, nats):
    """A story is possible to the last bit, and so is what is left when it is cut after any word."""
    whole = grammar.judge(text)
    assert whole.complete
    assert whole.broken_at is None
    assert whole.possible == {"<eos>": 1.0}
    assert whole.nats.dtype == np.float64
    assert np.array_equal(whole.nats, nats)
    words = split(text)
    for end in range(len(words)):
        cut = grammar.judge(words[:end])
        assert np.array_equal(cut.nats, nats[:end])
        assert (cut.broken_at, cut.complete) == (None, False)
        assert words[end] in cut.possible


def assert_next_words(grammar, text, nats):
    """The distribution after every beginning sums to 1 and agrees with the story's own nats."""
    words = [*split(text), "<eos>"]
    for end, word in enumerate(words):
        following = grammar.next_words(words[:end])
        assert math.fsum(following.values()) == pytest.approx(1, abs=1e-12)
        assert following[word] == pytest.approx(math.exp(-nats[end]), rel=0, abs=1e-12)
    assert grammar.next_words(words) == {}


@pytest.mark.slow
def test_every_told_story_is_judged_possible():
    small = Grammar(**SMALL)
    for _, text, nats in enumerate_stories(small):
        assert_judged(small, text, nats)
    for i in range(10):
        assert_judged(bundled_grammar(), *bundled_grammar().story(f"validation-{i}"))
        assert_next_words(bundled_grammar(), *bundled_grammar().story(f"validation-{i}"))


@pytest.mark.slow
def test_next_words_after_every_beginning_of_many_stories():
    for i in range(500):
        assert_next_words(bundled_grammar(), *bundled_grammar().story(f"validation-{i}"))


def test_a_wrong_word_is_found_wherever_it_stands():
    for i in range(20):
        text, nats = bundled_grammar().story(f"validation-{i}")
        words = split(text)
        for at in range(len(words)):
            judged = bundled_grammar().judge([*words[:at], "xylophones", *words[at + 1 :]])
            assert judged.broken_at == at
            assert not judged.complete
            assert np.array_equal(judged.nats, nats[:at])
            assert judged.possible == bundled_grammar().next_words(words[:at])
            assert bundled_grammar().next_words([*words[:at], "xylophones"]) == {}


def test_judge_knows_where_a_story_may_end_and_what_agrees():
    grammar = Grammar(**SMALL)
    wrong = grammar.judge("Tom was a girl. She slept.")
    assert (wrong.broken_at, wrong.possible, wrong.complete) == (3, {"boy": 1.0}, False)
    beyond = grammar.judge("Tom was a boy. He slept! He")
    assert (beyond.broken_at, beyond.possible, beyond.complete) == (8, {"<eos>": 1.0}, False)
    ended = grammar.judge(["tom", "was", "a", "boy", ".", "he", "slept", "!", "<eos>"])
    assert (ended.broken_at, ended.possible, ended.complete) == (None, {}, True)
    assert np.array_equal(ended.nats, grammar.judge("Tom was a boy. He slept!").nats)
    early = grammar.judge(["tom", "was", "<eos>"])
    assert (early.broken_at, early.possible, early.complete) == (2, {"a": 1.0}, False)
    nothing = grammar.judge("")
    assert (nothing.nats.shape, nothing.broken_at, nothing.complete) == ((0,), None, False)
    assert nothing.possible == grammar.next_words([])
    assert set(nothing.possible) == {"a", "in", "tom", "mia", "zoe"}
    # Two options begin alike: what may follow belongs to either.
    inside = grammar.next_words(split("Tom was a boy. He lost Tom's ball. \"Is it in the"))
    assert set(inside) == {"tree", "barn"}


@pytest.mark.parametrize("wrong", ["once upon", ["once", 3], 3, None])
def test_next_words_refuses_what_is_no_list_of_words(wrong):
    with pytest.raises(ValueError, match="must be a list of strings"):
        bundled_grammar().next_words(wrong)


def test_a_thousand_stories_are_judged_fast():
    told = [bundled_grammar().story(f"train-{i}") for i in range(1_000)]
    started = time.perf_counter()
    for text, nats in told:
        assert np.array_equal(bundled_grammar().judge(text).nats, nats)
    assert time.perf_counter() - started < 10


def test_the_bundled_grammar_is_the_file_read_once():
    grammar, again = bundled_grammar(), Grammar(**bundled_rules())
    assert grammar is bundled_grammar()
    assert grammar.story("train-0")[0] == again.story("train-0")[0] != grammar.story("train-1")[0]


def test_the_table_of_a_grammar_holds_all_its_rules():
    """Another program reads texts with it: the live page's tests compare the two."""
    table = Grammar(**SMALL).table()
    assert json.loads(json.dumps(table)) == table
    assert table["kind"] == {
        "remembered": True,
        "keyRule": "hero",
        "always": True,
        "rows": {
            "she": [[3 / 11, "she", [["girl"]]], [1 / 12, "she", [["hen"]]]],
            "he": [[1 / 11, "he", [["boy"]]]],
        },
    }
    assert table["someone_too"]["rows"][""][1] == [1.0, "{Mood} {hero}", ["mood", "hero"]]
    assert not table["where"]["always"]
