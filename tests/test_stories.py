"""Stories: the bundled corpus, what can be wrong with a file, and the Hub's."""

import hashlib
import json
import math
import re
import time
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi

from helpers.stories import corpus_name, load_stories
from helpers.tokenizer import WordTokenizer

# --- The bundled corpus ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled():
    return load_stories("bundled", train=3_000, validation=300)


@pytest.fixture(scope="module")
def tokenizer(bundled):
    return WordTokenizer.train(bundled.train)


def test_bundled_is_the_same_everywhere(bundled):
    """The bundled checkpoint learned from these stories: another grammar needs another one."""
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
    train = (bundled.train, bundled.train_nats)
    for texts, nats in (train, (bundled.validation, bundled.validation_nats)):
        assert len(texts) == len(nats)
        for text, values in zip(texts, nats, strict=True):
            assert values.shape == (len(tokenizer.split(text)) + 1,)
            assert np.isfinite(values).all()
            assert (values >= 0).all()


def test_bundled_text_survives_the_tokenizer(bundled, tokenizer):
    for text in [*bundled.train, *bundled.validation]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bundled_articles_and_marks(bundled):
    wrong = re.compile(r"\b[Aa] (?!useful)[aeiou]|\b[Aa]n [^aeiou]|\b(\w+) \1\b|\.\.|  |[{}\n]")
    for text in bundled.train:
        assert not wrong.search(text), text
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
    """Even bigrams counted on the stories that they are scored on stay 0.8 nats above the floor."""
    rows = [tokenizer.encode_story(text, 64) for text in bundled.train]
    floor = np.mean([nats[:63] for nats in bundled.train_nats])
    assert 0.9 < floor < 1.6
    pairs = Counter(pair for row in rows for pair in pairwise(row))
    first = Counter(word for row in rows for word in row[:-1])
    bigram = -sum(n * math.log(n / first[a]) for (a, _), n in pairs.items()) / pairs.total()
    assert bigram - floor > 0.8


def test_bundled_floor_is_the_loss_of_the_true_model(bundled):
    """Two independent samples of the entropy agree within their standard errors."""
    splits = (bundled.train_nats, bundled.validation_nats)
    one, two = (np.array([nats.sum() for nats in split]) for split in splits)
    error = math.hypot(one.std() / math.sqrt(len(one)), two.std() / math.sqrt(len(two)))
    assert abs(one.mean() - two.mean()) < 4 * error


def test_a_song_is_random_once_and_certain_when_it_returns(bundled, tokenizer):
    """Its sounds are drawn at their first mention; after that, each tells which comes next."""
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
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
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


@pytest.mark.slow
def test_a_large_text_file_stays_on_disk(tmp_path):
    path, count = tmp_path / "large.txt", 40_000
    rest = f" is about {'a small boat on a long river, ' * 20}far away.\n<|endoftext|>\n"
    with path.open("w") as file:
        file.writelines(f"Story number {i}{rest}" for i in range(count))
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
    for name, count in (("train", 0), ("validation", -1), ("train", 1.5), ("validation", "all")):
        refusal = error_of("bundled", **{name: count})
        assert refusal == f"{name}={count!r}: must be a whole number of at least 1"
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
    told = r"tales\.txt was changed since it was loaded: load it again"
    for row in (0, 5):
        with pytest.raises(ValueError, match=told):
            stories.train[row]


def test_a_name_is_no_pattern(tmp_path):
    write(tmp_path / "a1.jsonl", ["another's"] * 2)
    for name in ("a[1].jsonl", "a*.jsonl"):
        write(tmp_path / name, TEN)
        assert list(load_stories(tmp_path / name, validation=2).train) == TEN[:8]


def test_clear_errors_of_tables(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"story": "One."}\n')
    assert "no column `text`" in error_of(tmp_path / "a.jsonl")
    for value in ("1", '{"a": "One."}', '["One."]', "null"):
        (tmp_path / "b.jsonl").write_text(f'{{"text": {value}}}\n')
        assert "no column `text` of strings" in error_of(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text("One.\n")
    assert "could not be read as .jsonl" in error_of(tmp_path / "c.jsonl")
    (tmp_path / "d.parquet").write_text("One.\n")
    assert "could not be read as .parquet" in error_of(tmp_path / "d.parquet")
    assert "none with a word" in error_of(write(tmp_path / "e.parquet", [" ", ""]))


def test_the_name_of_a_corpus():
    assert [corpus_name(name) for name in ("bundled", "tinystories")] == ["bundled", "tinystories"]
    assert corpus_name("tales/mine.jsonl") == "mine"
    assert corpus_name(Path("tales/mine.v2")) == corpus_name("mine.v2/") == "mine.v2"
    for taken in ("/", "tales/bundled", "bundled.txt"):
        with pytest.raises(ValueError, match="which is taken: rename the file or folder"):
            corpus_name(taken)


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
    log, splits = str(tmp_path / "log"), {"train": ["", *TEN[:6]], "validation": TEN[6:]}
    monkeypatch.setattr(datasets, "load_dataset", hub_of(splits, log))
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
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 20)
    tries = []

    def load_dataset(*args, **kwargs):
        tries.append(datasets.config.STREAMING_READ_MAX_RETRIES)
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    told = r"Couldn't reach the Hub.*offline, use load_stories\('bundled'\)"
    with pytest.raises(ConnectionError, match=told):
        load_stories("tinystories")
    assert tries == [1]  # a Hub that falls silent is given up after one: see test_downloads.py
