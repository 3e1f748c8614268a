"""The reader of fastText's .bin equals the package bit for bit; a broken file is a clear error."""

import functools
import json
import os
import random
import re
import struct
import time

import fasttext
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import start

from helpers.fasttext_bin import FROM_NGRAMS, IN_DICTIONARY, MISSING, FastTextBin, fnv1a

IN_TEXT = """mia fox river lantern crossed bridge kindly o'clock well-known müde straße naïve über
ёлка звезда мир 狐狸 星星 橋 🙂 👩\u200d🚀 🏳️\u200d🌈 e\u0301tude ﬁne 𝒳𝒴 a ab ."""
NOT_IN_TEXT = """foxes riverbank lanterns bridges zug mü üü ß ж звёздочка 狐 狐狸座 星星橋 🙂🙂
👩\u200d🚀👩\u200d🚀 \u200d \u0301 👨\u200d👩\u200d👧
\ufeffmia <mia> < > <> </s> __label__x q qq Mia MIA mia! ½ ™ İ"""
SEEN = IN_TEXT.split()
UNSEEN = [*NOT_IN_TEXT.split(), "two words", "\n", "\t", "\u00a0", "\u2028", "\x7f", "\0", "fox\0"]

# Each with dictionary words, n-grams and dimensions of another kind. `lengths` is (minn, maxn).
MODELS = {
    "usual": {"lengths": (3, 6), "dim": 16, "bucket": 1000},
    "one_character": {"lengths": (1, 3), "dim": 10, "bucket": 77},
    "zero_minimum": {"lengths": (0, 2), "dim": 7, "bucket": 500},
    "wide": {"lengths": (5, 5), "dim": 300, "bucket": 1000},
    "words_only": {"lengths": (0, 0), "dim": 12, "bucket": 0},
    "cbow": {"lengths": (2, 4), "dim": 9, "bucket": 333, "model": "cbow"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of tiny models that the package trained and wrote."""
    folder = tmp_path_factory.mktemp("models")
    rng = random.Random(1)
    lines = [" ".join(rng.choices(SEEN, k=9)) for _ in range(300)]
    labelled = [f"__label__{i % 3} {line}\n" for i, line in enumerate(lines)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "labels.txt").write_text("".join(labelled), encoding="utf-8")
    (folder / "models.json").write_text(json.dumps(MODELS))
    # With one thread the package leaves most of its table unset.
    zeros = os.environ | {"MALLOC_PERTURB_": "255"}
    done = start("train_bins", folder, environment=zeros)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def both(models):
    """A model by its name, as our reader and as the package have it."""
    path = functools.partial("{}/{}.bin".format, models)
    return functools.cache(lambda name: (FastTextBin(path(name)), fasttext.load_model(path(name))))


def assert_same_bits(ours, judge, word):
    (vector,), (kind,) = ours.lookup([word])
    assert vector.dtype == np.float32
    assert vector.tobytes() == judge.get_word_vector(word).tobytes(), word
    if judge.get_subwords(word)[1].size == 0:
        assert kind == MISSING
        assert not vector.any()
    else:
        assert kind == (IN_DICTIONARY if judge.get_word_id(word) >= 0 else FROM_NGRAMS)


@pytest.mark.parametrize("name", [*MODELS, "supervised"])
def test_it_equals_the_package_bit_for_bit(both, name):
    ours, judge = both(name)
    rng = random.Random(name)
    alphabet = "".join(SEEN) + "xyz"
    invented = ["".join(rng.choices(alphabet, k=rng.randint(1, 12))) for _ in range(150)]
    assert ours.dim == judge.get_dimension()
    for word in [*judge.get_words(), *UNSEEN, *invented]:
        assert_same_bits(ours, judge, word)


def test_it_equals_the_package_on_any_text(both):
    ours, judge = both("one_character")

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
    def check(word):
        assert_same_bits(ours, judge, word)

    check()


def test_many_words_at_once_equal_the_words_one_by_one(both):
    # Several batches, the seen words among unseen ones.
    words = [*SEEN, *(f"{a}{b}" for a in SEEN for b in SEEN)]
    ours, judge = both("usual")
    vectors, kinds = ours.lookup(words)
    assert kinds.tolist() == [IN_DICTIONARY if word in judge else FROM_NGRAMS for word in words]
    for word, vector in zip(words, vectors, strict=True):
        assert vector.tobytes() == judge.get_word_vector(word).tobytes(), word


def test_no_words_give_no_vectors(both):
    ours, _ = both("usual")
    vectors, kinds = ours.lookup([])
    assert (vectors.shape, kinds.shape) == ((0, 16), (0,))
    assert (vectors.dtype, kinds.dtype) == (np.float32, np.int8)
    assert ours.subwords("") == []
    assert ours.lookup([""])[1] == MISSING


def test_a_tilde_is_home(models, monkeypatch):
    monkeypatch.setenv("HOME" if os.name != "nt" else "USERPROFILE", str(models))
    assert FastTextBin("~/usual.bin").path == models / "usual.bin"


def test_labels_are_no_words(both):
    ours, judge = both("supervised")
    assert judge.get_labels()
    assert ours.lookup(judge.get_labels())[1].tolist() == [
        FROM_NGRAMS if judge.get_subwords(label)[1].size else MISSING
        for label in judge.get_labels()
    ]


def test_subwords_equal_the_package(both):
    for name in ("usual", "one_character", "zero_minimum", "words_only"):
        ours, judge = both(name)
        for word in ("lantern", "müde", "狐狸", "a", "</s>", "riverbank", "👩‍🚀"):
            expected = judge.get_subwords(word)[0]
            # The package puts a known word itself first.
            assert ours.subwords(word) == expected[word in judge.words :]
    assert both("wide")[0].subwords("fox") == ["<fox>"]


def test_old_supervised_models_have_no_ngrams(models, tmp_path):
    data = bytearray((models / "supervised.bin").read_bytes())
    data[4:8] = struct.pack("<i", 11)
    old = tmp_path / "old.bin"
    old.write_bytes(data)
    ours, judge = FastTextBin(old), fasttext.load_model(str(old))
    assert_same_bits(ours, judge, "lantern")
    assert_same_bits(ours, judge, "lanterns")
    assert ours.lookup(["lanterns"])[1] == MISSING


def test_a_dictionary_longer_than_a_chunk(tmp_path):
    """Entries lie across the borders of chunks in any phase; counts hold zero bytes and letters."""
    rng = random.Random(5)
    words = [f"{i}{'ü' * rng.randint(0, 40)}" for i in range(60_000)]
    path = tmp_path / "long.bin"
    write_bin(path, words, bucket=0, dim=1, counts=rng)
    with open(path, "r+b") as file:
        file.seek(table_start(words))
        file.write(np.arange(len(words), dtype="<f4").tobytes())
    assert path.stat().st_size > 3 << 20
    ours = FastTextBin(path)
    chosen = [*rng.sample(range(len(words)), 2000), len(words) - 1, 0]
    vectors, kinds = ours.lookup([words[i] for i in chosen])
    assert vectors[:, 0].tolist() == [float(i) for i in chosen]
    assert (kinds == IN_DICTIONARY).all()
    assert ours.lookup(["60000"])[1] == MISSING


def write_bin(path, words, bucket, dim, counts, minn=0, maxn=0):
    """A .bin of format 12 with a real dictionary; its tables are holes in the file, read as 0."""
    ends = [struct.pack("<qb", counts.randint(1, 1 << 40), 0) for _ in words]
    entries = [word.encode() + b"\0" + end for word, end in zip(words, ends, strict=True)]
    numbers = (793712314, 12, dim, 5, 1, 1, 5, 1, 2, 2, bucket, minn, maxn, 100, 1e-4)
    rows, sizes = len(words) + bucket, (len(words), len(words), 0, 99, -1)
    with open(path, "wb") as file:
        file.write(struct.pack("<2i12id3i2q", *numbers, *sizes) + b"".join(entries))
        file.write(struct.pack("<B2q", 0, rows, dim))
        file.seek(rows * dim * 4, os.SEEK_CUR)
        file.write(struct.pack("<B2q", 0, len(words), dim))
        file.truncate(file.tell() + len(words) * dim * 4)


def table_start(words):
    return 92 + sum(len(word.encode()) + 10 for word in words) + 17


@pytest.mark.skipif(os.name == "nt", reason="holes in files and getrusage are Unix")
def test_ten_thousand_words_of_a_2_gb_file_take_less_than_100_mb(tmp_path):
    words, bucket = [f"word{i}" for i in range(200_000)], 1_600_000
    path = tmp_path / "large.bin"
    write_bin(path, words, bucket, dim=300, counts=random.Random(2), minn=5, maxn=5)
    assert path.stat().st_size > 2 << 30
    grams = FastTextBin(path).subwords("word199999")
    rows = [199_999, *(len(words) + fnv1a(gram.encode()) % bucket for gram in grams)]
    assert max(rows) * 1200 > 3 << 29
    with open(path, "r+b") as file:
        for value, row in enumerate(rows, start=1):
            file.seek(table_start(words) + 4 * 300 * row)
            file.write(np.full(300, value, "<f4").tobytes())
    asked = [*words[::22], *(f"new{i}" for i in range(908)), words[-1]]
    (tmp_path / "words.txt").write_text("\n".join(asked))
    done = start("matrix_memory", path, tmp_path / "words.txt")
    assert done.returncode == 0, done.stderr
    taken, last = done.stdout.split()
    assert int(taken) <= 100e6
    mean = np.float32(sum(range(1, len(rows) + 1))) * np.float32(1 / len(rows))
    assert np.float32(last) == mean


def test_fnv1a():
    assert fnv1a(b"") == 0x811C9DC5  # published test vectors of 32-bit FNV-1a, for ASCII
    assert fnv1a(b"a") == 0xE40C292C
    assert fnv1a(b"foobar") == 0xBF9CF968
    unsigned = 2166136261
    for byte in "ü".encode():
        unsigned = (unsigned ^ byte) * 16777619 % 2**32
    assert fnv1a("ü".encode()) != unsigned


# --- broken files ---------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_refused(models, tmp_path):
    data = (models / "one_character.bin").read_bytes()
    path = tmp_path / "cut.bin"
    for length in [*range(0, 600, 7), *range(600, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(
            ValueError, match=r"is (cut short or damaged|no fastText|empty)"
        ) as caught:
            FastTextBin(path)
        assert str(caught.value).startswith(f"{path} is ")
        assert re.search("download or train it again|fetch another copy", str(caught.value))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"<!DO", "no fastText .bin"),
        (4, struct.pack("<i", 13), "format 13"),
        (8, struct.pack("<i", -5), "damaged"),
        (8, struct.pack("<i", 11), "damaged"),
        (40, struct.pack("<i", 0), "damaged"),
        (64, struct.pack("<i", -1), "damaged"),
        (64, struct.pack("<i", 1 << 30), "damaged"),
        (64, struct.pack("<i", 20), "damaged"),
        (68, struct.pack("<i", 20), "damaged"),
        (84, struct.pack("<q", 3), "pruned"),
    ],
)
def test_a_changed_header_is_refused(models, tmp_path, offset, value, message):
    data = bytearray((models / "one_character.bin").read_bytes())
    data[offset : offset + len(value)] = value
    (tmp_path / "changed.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        FastTextBin(tmp_path / "changed.bin")


def test_a_file_that_promises_more_than_memory_is_refused(models, both, tmp_path):
    """In both places, so that they agree."""
    data = bytearray((models / "one_character.bin").read_bytes())
    sizes = table_start(both("one_character")[1].words) - 16
    rows, dim = struct.unpack_from("<2q", data, sizes)
    assert dim == 10
    struct.pack_into("<i", data, 8, 2**31 - 1)
    struct.pack_into("<2q", data, sizes, rows, 2**31 - 1)
    (tmp_path / "large.bin").write_bytes(data)
    with pytest.raises(ValueError, match="is cut short or damaged"):
        FastTextBin(tmp_path / "large.bin")


def test_what_is_no_bin_is_named(tmp_path):
    (tmp_path / "table.vec").write_text("1 2\nfox 1 2\n")
    with pytest.raises(ValueError, match=r"table\.vec is no \.bin: use load_vectors"):
        FastTextBin(tmp_path / "table.vec")
    with pytest.raises(FileNotFoundError):
        FastTextBin(tmp_path / "absent.bin")


@pytest.mark.parametrize("name", ["quantised", "pruned"])
def test_compressed_models_are_refused(models, name):
    with pytest.raises(ValueError, match=f"is {name}, so not exact: use the .bin from before"):
        FastTextBin(models / f"{name}.bin")


def test_a_dictionary_without_end_is_refused_at_once(tmp_path):
    path = tmp_path / "endless.bin"
    write_bin(path, ["fox"], bucket=0, dim=1, counts=random.Random(0))
    path.write_bytes(path.read_bytes()[:92] + b"x" * (6 << 20))
    started = time.monotonic()
    with pytest.raises(ValueError, match="is cut short or damaged"):
        FastTextBin(path)
    assert time.monotonic() - started < 2


def test_a_file_that_shrinks_after_loading_is_noticed(models, tmp_path):
    path = tmp_path / "shrinks.bin"
    path.write_bytes((models / "usual.bin").read_bytes())
    ours = FastTextBin(path)
    os.truncate(path, 2000)
    with pytest.raises(ValueError, match="cut short while it was read"):
        ours.lookup(["mia"])
