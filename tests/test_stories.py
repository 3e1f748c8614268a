"""Stories: the grammar's probabilities against a list of all its stories; and all that can be wrong
with a file.
"""

import hashlib
import json
import math
import random
import re
import time
import tomllib
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from threading import Event

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi

from helpers import stories as module
from helpers.stories import FLATTENING, Grammar, load_stories
from helpers.tokenizer import WordTokenizer

# --- The grammar engine: exact, by enumeration ----------------------------------------------------

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
    """The story of the choices `path`, then 0s: its probability, text and nats, and the paths that
    branch off it.
    """
    path, depth, probability, beside = list(path), 0, 1.0, []

    def choose(cumulative):
        nonlocal depth, probability
        if depth == len(path):
            beside.extend([*path, other] for other in range(1, len(cumulative)))
            path.append(0)
        chosen = path[depth]
        depth += 1
        probability *= (
            cumulative[chosen] - (cumulative[chosen - 1] if chosen else 0)
        ) / cumulative[-1]
        return chosen

    text, nats = grammar._tell(choose)
    return probability, text, nats, beside


def enumerate_stories(grammar):
    """(probability, text, nats) of every story: all sequences of choices, one after another."""
    waiting = [[]]
    while waiting:
        *told, beside = replay(grammar, waiting.pop())
        waiting += beside
        yield told


def assert_exact(grammar):
    """Each word's nats are what the list of all stories says: -log(P(words so far and this one) /
    P(words so far)).
    """
    split = WordTokenizer([]).split
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
    return len(told)


def test_every_probability_is_what_the_list_of_all_stories_says():
    assert assert_exact(Grammar(**SMALL)) > 500


def bundled_rules():
    return tomllib.loads(
        Path(module.__file__).with_name("bundled_grammar.toml").read_text(encoding="utf-8")
    )


def cut(spec, keep, rng):
    """The same rule with `keep` of its options, in each row."""
    if isinstance(spec, dict):
        return {
            key: row if key in ("given", "agrees") else cut(row, keep, rng)
            for key, row in spec.items()
        }
    options = [text.strip() for text in spec.split(",")] if isinstance(spec, str) else spec
    chosen = rng.sample(options, min(keep, len(options)))
    return ", ".join(chosen) if isinstance(spec, str) else chosen


def used_rules(fresh, remembered, start="story"):
    """The rules that can still be reached from the story: the rest would be refused as unused."""
    reached, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            text = json.dumps(fresh.get(name, remembered.get(name)))
            waiting += [slot.lower() for slot in re.findall(r"\{(\w+)\}", text)]
            waiting += re.findall(r'"(?:given|agrees)": "(\w+)"', text)
    return reached


@pytest.mark.parametrize("seed", range(9))
def test_cut_down_bundled_grammar_is_exact(seed):
    rng, rules = random.Random(f"cut-{seed}"), bundled_rules()
    plots = [text.strip().removeprefix("2 ") for text in rules["remembered"]["plot"].split(",")]
    rules["remembered"]["plot"] = plots[seed]
    for name in ("scene", "lesson"):
        rules["fresh"][name] = {"given": "plot", plots[seed]: rules["fresh"][name][plots[seed]]}
    kept = {
        section: {name: cut(spec, 1, rng) for name, spec in specs.items()}
        for section, specs in rules.items()
    }
    count = 0
    for name in rng.sample(
        [*rules["remembered"], *rules["fresh"]], 60
    ):  # open one rule after another, while all fits
        section = "remembered" if name in rules["remembered"] else "fresh"
        trial = {**kept, section: {**kept[section], name: cut(rules[section][name], 2, rng)}}
        reached = used_rules(trial["fresh"], trial["remembered"])
        grammar = Grammar(
            *(
                {n: s for n, s in trial[part].items() if n in reached}
                for part in ("remembered", "fresh")
            )
        )
        size = sum(1 for _, _ in zip(range(401), enumerate_stories(grammar), strict=False))
        if size <= 400:
            kept, best, count = trial, grammar, size
        if count > 150:
            break
    assert count > 50
    assert assert_exact(best) == count


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
    assert {text: p for p, text, _ in enumerate_stories(Grammar({}, {"story": ["3 a", "b"]}))} == {
        "a": 0.75,
        "b": 0.25,
    }


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


# --- The bundled corpus ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled():
    return load_stories("bundled", train=3_000, validation=300)


@pytest.fixture(scope="module")
def tokenizer(bundled):
    return WordTokenizer.train(bundled.train)


def test_bundled_is_the_same_everywhere(bundled):
    """The committed checkpoint was trained on these very stories: a change of the grammar asks for
    a new one.
    """
    text = "\n".join([*bundled.train[:50], *bundled.validation[:50]])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "ce078d7dfc5ecede"
    assert bundled.name == "bundled"


def test_bundled_is_lazy_and_each_story_stands_alone(bundled):
    started = time.perf_counter()
    many = load_stories(train=10**9)
    assert many.train[3] == bundled.train[3] == bundled.train[2:9:1][1]
    assert len(many.train) == 10**9
    assert many.train[-1] == many.train[10**9 - 1]
    assert time.perf_counter() - started < 1
    with pytest.raises(IndexError):
        bundled.train[3_000]


def test_bundled_nats_belong_to_the_words(bundled, tokenizer):
    for texts, nats in (
        (bundled.train, bundled.train_nats),
        (bundled.validation, bundled.validation_nats),
    ):
        assert len(texts) == len(nats)
        for text, values in zip(texts, nats, strict=True):
            assert values.shape == (len(tokenizer.split(text)) + 1,)
            assert np.isfinite(values).all()
            assert (values >= 0).all()


def test_bundled_text_survives_the_tokenizer(bundled, tokenizer):
    for text in [*bundled.train, *bundled.validation]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bundled_articles_and_marks(bundled):
    for text in bundled.train:
        assert not re.search(
            r"\b[Aa] (?!useful)[aeiou]|\b[Aa]n [^aeiou]|\b(\w+) \1\b|\.\.|  |[{}\n]", text
        ), text
        assert text[0].isupper()
        assert text[-1] == "."
        assert text.count('"') % 2 == 0


def test_bundled_is_varied_and_long_enough(bundled, tokenizer):
    assert not set(bundled.train) & set(bundled.validation)
    assert len(set(bundled.train)) == len(bundled.train)
    assert 1_500 <= len(tokenizer) <= 2_200
    lengths = np.array([len(tokenizer.split(text)) for text in bundled.train])
    assert np.mean(lengths > 64) > 0.99
    assert 90 < lengths.mean() < 160
    plots = Counter(next(verb for verb in PLOTS if f" {verb} " in text) for text in bundled.train)
    assert min(plots.values()) > 0.05 * len(bundled.train)


PLOTS = ("lost", "heard", "broke", "wanted", "kept", "planted", "entered", "feared", "sought")


def test_bundled_needs_more_than_the_previous_word(bundled, tokenizer):
    """Even a bigram table counted on the stories that it is scored on stays 0.8 nats a word above
    the floor.
    """
    rows = [tokenizer.encode_story(text, 64) for text in bundled.train]
    floor = np.mean([nats[:63] for nats in bundled.train_nats])
    assert 0.9 < floor < 1.6
    pairs = Counter(pair for row in rows for pair in pairwise(row))
    first = Counter(word for row in rows for word in row[:-1])
    bigram = -sum(n * math.log(n / first[a]) for (a, _), n in pairs.items()) / pairs.total()
    assert bigram - floor > 0.8


def test_bundled_floor_is_the_loss_of_the_true_model(bundled):
    """Two independent samples of the entropy agree within their standard errors."""
    one, two = (
        np.array([nats.sum() for nats in split])
        for split in (bundled.train_nats, bundled.validation_nats)
    )
    error = math.hypot(one.std() / math.sqrt(len(one)), two.std() / math.sqrt(len(two)))
    assert abs(one.mean() - two.mean()) < 4 * error


def test_a_song_is_random_once_and_certain_when_it_returns(bundled, tokenizer):
    """Its sounds are drawn at their first mention; where they come again, the one before tells
    which to expect.
    """
    first, again = [], []
    for text, nats in zip(bundled.train, bundled.train_nats, strict=True):
        words = tokenizer.split(text)
        song = re.search(r'song, "([^".]+)\.', text)
        if not song:
            continue
        pairs = list(pairwise(tokenizer.split(song[1])))
        seen = set()
        for i, pair in enumerate(pairwise(words), start=1):
            if pair in pairs:
                (again if pair in seen else first).append(nats[i])
                seen.add(pair)
    assert len(first) > 2_000
    assert len(again) > 2_000
    assert 2.2 < np.mean(first) < math.log(12)
    assert np.mean(again) < 0.02


# --- Files and folders ----------------------------------------------------------------------------

TEN = [f'Story {i}.\n"Yes," said Ünal.' for i in range(10)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write(path, texts):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_dict({"text": texts}).to_parquet(str(path))
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8"
        )
    else:
        path.write_text("".join(f"{text}\n<|endoftext|>\n" for text in texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("train_kind", [".txt", ".parquet", ".jsonl"])
@pytest.mark.parametrize("validation_kind", [".txt", ".jsonl"])
def test_folder(tmp_path, train_kind, validation_kind):
    write(tmp_path / "tales" / f"train{train_kind}", [TEN[0], " \n ", *TEN[1:7]])
    write(tmp_path / "tales" / f"validation{validation_kind}", TEN[7:])
    stories = load_stories(tmp_path / "tales")
    assert stories.name == "tales"
    assert list(stories.train) == TEN[:7]
    assert list(stories.validation) == TEN[7:]
    assert stories.validation_nats is None
    assert (stories.train[-1], list(stories.train[1:3])) == (TEN[6], TEN[1:3])
    fewer = load_stories(str(tmp_path / "tales"), train=2, validation=1)
    assert (list(fewer.train), list(fewer.validation)) == (TEN[:2], TEN[7:8])


@pytest.mark.parametrize("kind", [".txt", ".parquet", ".jsonl"])
def test_one_file_holds_out_its_last_stories(tmp_path, kind):
    stories = load_stories(write(tmp_path / f"ten{kind}", TEN), train=5, validation=3)
    assert stories.name == "ten"
    assert list(stories.train) == TEN[:5]
    assert list(stories.validation) == TEN[7:]
    assert len(load_stories(tmp_path / f"ten{kind}", validation=3).train) == 7
    with pytest.raises(ValueError, match=r"holds 10 stories, of which the last 10 .* ask for less"):
        load_stories(tmp_path / f"ten{kind}", validation=10)


def test_text_files_of_other_systems(tmp_path):
    content = b"\xef\xbb\xbfOne.\r\nTwo.\r\n<|endoftext|>\r\nThree.<|endoftext|>Four."
    (tmp_path / "dos.txt").write_bytes(content)
    stories = load_stories(tmp_path / "dos.txt", validation=1)
    assert (list(stories.train), list(stories.validation)) == (["One.\nTwo.", "Three."], ["Four."])


def test_a_large_text_file_stays_on_disk(tmp_path):
    path, count = tmp_path / "large.txt", 40_000
    with path.open("w") as file:
        for i in range(count):
            file.write(
                f"Story number {i} is about {'a small boat on a long river, ' * 20}far "
                "away.\n<|endoftext|>\n"
            )
    tracemalloc.start()
    stories = load_stories(path, train=10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(stories.train) == count - 1_000
    assert stories.train[33_333].startswith("Story number 33333 ")
    assert peak < path.stat().st_size / 10


def error_of(source, **counts):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_stories(source, **counts)
    return str(caught.value)


def test_clear_errors(tmp_path):
    assert "'tinystories'" in error_of("tiny-stories")
    assert "'bundled'" in error_of(tmp_path / "missing.txt")
    assert "train=0" in error_of("bundled", train=0)
    assert "validation=-1" in error_of("bundled", validation=-1)
    (tmp_path / "a.csv").write_text("text\nOne")
    assert "unknown extension" in error_of(tmp_path / "a.csv")
    (tmp_path / "empty.txt").touch()
    assert "is empty" in error_of(tmp_path / "empty.txt")
    assert "white space only" in error_of(write(tmp_path / "blank.txt", [" ", "\n"]))
    (tmp_path / "latin.txt").write_bytes("One.<|endoftext|>Two é".encode("latin-1"))
    assert "not UTF-8 (byte 21)" in error_of(tmp_path / "latin.txt", validation=1)
    assert "rename the file" in error_of(write(tmp_path / "bundled.txt", TEN), validation=1)


def test_a_text_file_that_changes_after_loading_is_noticed(tmp_path, monkeypatch):
    path = write(tmp_path / "tales.txt", TEN)
    monkeypatch.chdir(tmp_path)
    stories = load_stories("tales.txt", validation=2)
    monkeypatch.chdir("/")
    assert stories.train[0] == TEN[0]
    path.write_bytes(path.read_bytes()[:20])
    for row in (0, 5):
        with pytest.raises(
            ValueError, match=r"tales\.txt was changed since it was loaded: load it again"
        ):
            stories.train[row]


def test_a_name_is_no_pattern(tmp_path):
    write(tmp_path / "a1.jsonl", ["another's"] * 2)
    for name in ("a[1].jsonl", "a*.jsonl"):
        write(tmp_path / name, TEN)
        assert list(load_stories(tmp_path / name, validation=2).train) == TEN[:8]


def test_clear_errors_of_tables(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"story": "One."}\n')
    assert "no column `text`" in error_of(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": 1}\n')
    assert "no column `text` of strings" in error_of(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text("One.\n")
    assert "could not be read as .jsonl" in error_of(tmp_path / "c.jsonl")
    (tmp_path / "d.parquet").write_text("One.\n")
    assert "could not be read as .parquet" in error_of(tmp_path / "d.parquet")
    assert "none with a word" in error_of(write(tmp_path / "e.parquet", [" ", ""]))


def test_splits_cannot_be_mixed_up(tmp_path):
    folder = tmp_path / "tales"
    write(folder / "train.txt", TEN[:7])
    assert "holds no validation split" in error_of(folder)
    write(folder / "validation.txt", [*TEN[7:], f" {TEN[2]}\n", TEN[4]])
    message = error_of(folder)
    assert "2 training stories are in the validation split too" in message
    assert "training story 2 is validation story 3" in message
    assert len(load_stories(folder, train=2).train) == 2  # the shared ones are not asked for
    for split in ("train", "validation"):
        assert "give the folder" in error_of(folder / f"{split}.txt", validation=1)
    write(folder / "train.jsonl", TEN)
    assert "holds train.txt and train.jsonl" in error_of(folder)


# --- The Hub --------------------------------------------------------------------------------------


@pytest.fixture
def reached(monkeypatch):
    monkeypatch.setattr(HfApi, "repo_info", lambda self, name, repo_type, timeout: None)


def hub_of(splits, log):
    """A stand-in for datasets.load_dataset that notes each call in a file."""

    def load_dataset(name, split, streaming):
        assert (name, streaming) == ("roneneldan/TinyStories", True)
        with open(log, "a") as file:
            file.write(f"{split} ")
        return datasets.Dataset.from_dict({"text": splits[split]}).to_iterable_dataset()

    return load_dataset


@pytest.mark.usefixtures("reached")
def test_tinystories_are_streamed_once_and_kept(monkeypatch, tmp_path):
    log = str(tmp_path / "log")
    monkeypatch.setattr(
        datasets, "load_dataset", hub_of({"train": ["", *TEN[:6]], "validation": TEN[6:]}, log)
    )
    for _ in range(2):
        stories = load_stories("tinystories", train=4, validation=2)
        assert stories.name == "tinystories"
        assert (list(stories.train), list(stories.validation)) == (TEN[:4], TEN[6:8])
        assert stories.validation_nats is None
        assert Path(log).read_text() == "validation train "


@pytest.mark.usefixtures("reached")
def test_tinystories_leaves_shared_training_stories_out(monkeypatch, tmp_path, capsys):
    splits = {"train": TEN[:6], "validation": [TEN[1], TEN[9], TEN[3]]}
    monkeypatch.setattr(datasets, "load_dataset", hub_of(splits, str(tmp_path / "log")))
    stories = load_stories("tinystories")
    assert "2 training stories are left out" in capsys.readouterr().out
    assert list(stories.train) == [TEN[0], TEN[2], *TEN[4:6]]
    assert list(stories.validation) == [TEN[1], TEN[9], TEN[3]]


@pytest.mark.usefixtures("reached")
def test_tinystories_that_do_not_come(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ConnectionError, match=r"Couldn't reach the Hub.*offline, use load_stories\('bundled'\)"
    ):
        load_stories("tinystories")


@pytest.mark.usefixtures("reached")
def test_a_hub_that_falls_silent_in_mid_stream_is_given_up(monkeypatch):
    never = Event()

    def load_dataset(*args, **kwargs):
        yield {"text": TEN[0]}
        never.wait(60)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(module, "SILENCE", 0.3)
    with pytest.raises(ConnectionError, match=r"TimeoutError: no story in 0\.3 seconds"):
        load_stories("tinystories")
    never.set()
