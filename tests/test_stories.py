"""Stories: the bundled corpus, what can be wrong with a file, and the Hub's."""

import gzip
import hashlib
import json
import math
import os
import pickle
import re
import time
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest

from helpers.stories import Stories, corpus_name, load_stories
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
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "65b26e17a14e065e"
    assert bundled.name == "bundled"


def test_the_ids_of_the_bundled_stories_are_the_same_everywhere(bundled, tokenizer):
    """The bundled checkpoint learned these ids: another way to split needs another one."""
    ids = [tokenizer.encode_story(text, 64) for text in bundled.train[:200]]
    assert hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()[:16] == "1ad8fe450399693c"
    assert tokenizer.digest[:16] == "dfdae4111fa96bab"


def test_bundled_is_lazy_and_each_story_stands_alone(bundled):
    started = time.perf_counter()
    many = load_stories(train=10**9)  # its digest is not asked for
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


def test_three_in_four_bundled_stories_end_within_the_context(bundled):
    """Lengths count `<sos>` and `<eos>`; the rest are cut, so that both are seen in training."""
    lengths = np.array([len(nats) + 1 for nats in bundled.train_nats])
    assert 0.70 <= np.mean(lengths <= 64) <= 0.80
    assert lengths.min() >= 25
    assert lengths.max() <= 120


def test_bundled_needs_more_than_the_previous_word(bundled, tokenizer):
    """Even bigrams counted on the stories that they are scored on stay 0.8 nats above the floor."""
    rows = [tokenizer.encode_story(text, 64) for text in bundled.train]
    rows = [[i for i in row if i != tokenizer.pad_id] for row in rows]
    floor = np.concatenate([nats[:63] for nats in bundled.train_nats]).mean()
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


def test_a_song_returns_whole_within_the_context(bundled, tokenizer):
    """So that a model must look back for it, and can."""
    ends = []
    for text in bundled.train:
        if song := re.search(r'song, "([^".]+)\.', text):
            words, sounds = ["<sos>", *tokenizer.split(text)], tokenizer.split(song[1])
            starts = (i for i in range(len(words)) if words[i : i + len(sounds)] == sounds)
            ends.append([i + len(sounds) for i in starts][1])
    assert len(ends) > len(bundled.train) / 4
    assert np.mean(np.array(ends) <= 64) > 0.99


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
    told = (
        r"too few stories, 10: it needs more than 10, .* Add stories, or give a folder with train"
    )
    with pytest.raises(ValueError, match=told):
        load_stories(tmp_path / f"ten{kind}", validation=10)


def test_a_tilde_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(write(tmp_path / "ten.txt", TEN).parent))
    assert list(load_stories("~/ten.txt", validation=3).train) == TEN[:7]
    assert corpus_name("~/ten.txt") == "ten"
    assert corpus_name(Path("~")) == tmp_path.name


def test_counts_may_be_numpys(tmp_path):
    path = write(tmp_path / "ten.txt", TEN)
    stories = load_stories(path, train=np.int64(4), validation=np.uint8(3))
    assert (list(stories.train), list(stories.validation)) == (TEN[:4], TEN[7:])
    assert len(load_stories(train=np.int32(5), validation=np.int16(2)).train) == 5


def test_the_digest_tells_texts_and_their_boundaries_apart(tmp_path):
    splits = [
        (["ab", "c"], ["d"]),
        (["a", "bc"], ["d"]),
        (["ab"], ["c", "d"]),
        (["ab", "c"], ["e"]),
    ]
    splits += [(["c", "ab"], ["d"]), (["d"], ["ab", "c"]), (["abc"], ["d"]), (["\ud800"], ["d"])]
    made = {Stories("x", train, validation).digest for train, validation in splits}
    assert len(made) == 8
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in made)
    one = load_stories(write(tmp_path / "ten.txt", TEN), validation=3)
    assert one.digest == Stories("another name", tuple(TEN[:7]), TEN[7:]).digest
    assert one.digest != load_stories(tmp_path / "ten.txt", validation=4).digest
    assert one.digest is one.digest  # computed once


def generated():
    yield "Mia ran."


@pytest.mark.parametrize("texts", ["Mia", b"Mia", None, ["Mia", None], [1], [b"Mia"], generated()])
def test_stories_that_are_no_lists_of_strings_are_refused(texts):
    for name in ("train", "validation"):
        told = rf"^{name}=.*: must be a list of texts, one at least; texts must be strings$"
        with pytest.raises(ValueError, match=told):
            Stories("mine", **{"train": ["a"], "validation": ["b"]} | {name: texts})
    Stories("mine", ["a"], np.array(["b", "c"], object))


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
    with pytest.raises((ValueError, OSError)) as caught:
        load_stories(source, **counts)
    return str(caught.value)


def test_clear_errors(tmp_path):
    assert "'tinystories'" in error_of("tiny-stories")
    assert "'bundled'" in error_of(tmp_path / "missing.txt")
    for count in (0, -1, 1.5, "all", True, np.bool_(True), None, np.float32(3), np.int64(0)):
        name = "validation" if count == "all" else "train"
        refusal = error_of("bundled", **{name: count})
        assert refusal == f"{name}={count!r}: must be a whole number of at least 1"
    (tmp_path / "a.csv").write_text("text\nOne")
    assert "unknown extension" in error_of(tmp_path / "a.csv")
    (tmp_path / "empty.txt").touch()
    assert "is empty" in error_of(tmp_path / "empty.txt")
    assert "white space only" in error_of(write(tmp_path / "blank.txt", [" ", "\n"]))
    for nothing in (None, b"tales.txt", 3, ["tales.txt"]):
        assert error_of(nothing) == f"source={nothing!r}: must be a name or a path"
    for name in ("x" * 300, "a\0b"):
        assert "there is no corpus and no file or folder called" in error_of(name)
    (tmp_path / "latin.txt").write_bytes("One.<|endoftext|>Two é".encode("latin-1"))
    assert "not UTF-8 (byte 21)" in error_of(tmp_path / "latin.txt", validation=1)
    assert "rename the file" in error_of(write(tmp_path / "bundled.txt", TEN), validation=1)


def test_a_text_file_without_separators_is_told_about_them(tmp_path):
    told = "the separator `<|endoftext|>` stands nowhere in it: put it between the stories"
    (tmp_path / "one.txt").write_text("Once upon a time.\n\nThe end.\n")
    assert told in error_of(tmp_path / "one.txt")
    (tmp_path / "both").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "both" / f"{split}.txt").write_text("Once upon a time.")
    assert told in error_of(tmp_path / "both")
    (tmp_path / "one.txt").write_text("Once upon a time.<|endoftext|>")
    assert "holds too few stories, 1: it needs more than 1000" in error_of(tmp_path / "one.txt")


TEXT = "".join(f"{text}\n<|endoftext|>\n" for text in TEN)
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEN)


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (TEXT.encode("utf-16"), "text in UTF-16: save its stories as UTF-8 text"),
        (TEXT.encode("utf-32-le"), "text in UTF-32: save its stories as UTF-8 text"),
        (gzip.compress(TEXT.encode(), mtime=0), "compressed with gzip: unpack it"),
        (b"PK\x03\x04\x14", "a zip archive: unpack it"),
        (b"%PDF-1.7\n", "a PDF: save its stories as UTF-8 text"),
        (f"<!doctype html>{TEXT}".encode(), "a web page: save its stories as UTF-8 text"),
        (pickle.dumps(TEN), "a pickle or a PyTorch file: save its stories as UTF-8 text"),
    ],
)
def test_a_file_that_is_something_else_is_refused_as_what_it_is(tmp_path, kind, content, told):
    (tmp_path / f"tales{kind}").write_bytes(content)
    assert f"tales{kind} is {told}" in error_of(tmp_path / f"tales{kind}", validation=1)


def test_windows_tools_write_what_is_read_too(tmp_path):
    """A byte-order mark before JSON, and an extension in capitals."""
    for name, content in (("tales.jsonl", LINES), ("TALES.TXT", TEXT)):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        stories = load_stories(tmp_path / name, validation=1)
        assert [*stories.train, *stories.validation] == TEN
        assert stories.name == name.split(".")[0]


def test_a_compressed_file_is_told_so_whatever_it_is_called(tmp_path):
    (tmp_path / "tales.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert "tales.txt.gz is compressed with gzip: unpack it" in error_of(tmp_path / "tales.txt.gz")


def test_a_corpus_has_stories_in_both_splits():
    for splits in (([], ["One."]), (["One."], []), ({"One.": 1}, ["Two."])):
        with pytest.raises(ValueError, match="must be a list of texts, one at least"):
            Stories("made", *splits)


def test_a_file_of_another_extension_is_told_its_own(tmp_path):
    write(tmp_path / "tales.parquet", TEN)
    for name in ("tales.txt", "tales.jsonl"):
        (tmp_path / name).write_bytes((tmp_path / "tales.parquet").read_bytes())
        assert f"{name} is a Parquet file: name it .parquet" in error_of(tmp_path / name)
    for content in (TEXT, LINES, "\0" * 100):
        (tmp_path / "text.parquet").write_text(content)
        told = error_of(tmp_path / "text.parquet")
        assert "text or damaged: name it .txt or .jsonl if it is text, otherwise copy it" in told
    (tmp_path / "text.jsonl").write_text(TEXT)
    assert "call plain text .txt" in error_of(tmp_path / "text.jsonl")


def test_paths_that_are_no_readable_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "folder.txt").mkdir()
    assert "holds no train split: it needs exactly one of" in error_of(tmp_path / "folder.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    assert "there is no corpus and no file or folder called" in error_of(tmp_path / "loop.txt")
    write(tmp_path / "tales" / "validation.txt", TEN)
    (tmp_path / "tales" / "train.txt").mkdir()
    told = "cannot be read: it must be a file that you may read"
    assert f"train.txt {told}" in error_of(tmp_path / "tales")
    path = write(tmp_path / "secret.txt", TEN)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    assert f"secret.txt {told}" in error_of(path)


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
    advice = "each row needs its story as a string called `text`, in UTF-8"
    write(tmp_path / "a.parquet", TEN)
    datasets.Dataset.from_dict({"story": TEN}).to_parquet(str(tmp_path / "b.parquet"))
    (tmp_path / "c.jsonl").write_text('{"story": "One."}\n')
    for name in ("b.parquet", "c.jsonl"):
        told = error_of(tmp_path / name)
        assert f"{name} could not be read as .{name[2:]} (" in told
        assert "there is no column `text` of strings, only {'story'" in told
        assert advice in told
    for value in ("1", '{"a": "One."}', '["One."]', "null", "true"):
        for others in ("", LINES):
            (tmp_path / "d.jsonl").write_text(f'{others}{{"text": {value}}}\n')
            if value == "null" and others:  # a row without a story among others is passed over
                assert list(load_stories(tmp_path / "d.jsonl", validation=1).train) == TEN[:9]
            else:
                told = error_of(tmp_path / "d.jsonl")
                assert "no column `text` of strings" in told
                assert advice in told
    (tmp_path / "e.jsonl").write_text(f'{LINES}{{"author": "Mia"}}\n{{"text": "Eleven."}}\n')
    assert list(load_stories(tmp_path / "e.jsonl", validation=1).train) == TEN
    for broken in (f'{LINES}{{"text": "On\n', "One.\n", f"{LINES}3\n"):
        (tmp_path / "f.jsonl").write_text(broken)
        told = error_of(tmp_path / "f.jsonl")
        assert "could not be read as .jsonl" in told
        assert advice in told
    (tmp_path / "g.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    assert "could not be read as .parquet" in error_of(tmp_path / "g.parquet")
    assert "none with a word" in error_of(write(tmp_path / "h.parquet", [" ", ""]))


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


def hub_of(splits, log):
    """A stand-in for datasets.load_dataset that notes each call in a file."""

    def load_dataset(name, split, streaming):
        assert (name, streaming) == ("roneneldan/TinyStories", True)
        with open(log, "a") as file:
            file.write(f"{split} ")
        return datasets.Dataset.from_dict({"text": splits[split]}).to_iterable_dataset()

    return load_dataset


def test_tinystories_are_streamed_once_and_kept(monkeypatch, tmp_path):
    log, splits = str(tmp_path / "log"), {"train": ["", *TEN[:6]], "validation": TEN[6:]}
    monkeypatch.setattr(datasets, "load_dataset", hub_of(splits, log))
    for _ in range(2):
        stories = load_stories("tinystories", train=4, validation=2)
        assert stories.name == "tinystories"
        assert (list(stories.train), list(stories.validation)) == (TEN[:4], TEN[6:8])
        assert stories.validation_nats is None
        assert Path(log).read_text() == "validation train "


def test_tinystories_leaves_shared_training_stories_out(monkeypatch, tmp_path, capsys):
    splits = {"train": TEN[:6], "validation": [TEN[1], TEN[9], TEN[3]]}
    monkeypatch.setattr(datasets, "load_dataset", hub_of(splits, str(tmp_path / "log")))
    stories = load_stories("tinystories")
    assert "2 training stories are left out" in capsys.readouterr().out
    assert list(stories.train) == [TEN[0], TEN[2], *TEN[4:6]]
    assert list(stories.validation) == [TEN[1], TEN[9], TEN[3]]


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
