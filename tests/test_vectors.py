"""Word vectors: the reader equals the fastText package bit for bit, and every broken source is one
clear error.
"""

import functools
import gzip
import http.server
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import vectors as module
from helpers.tokenizer import WordTokenizer
from helpers.vectors import FastTextBin, fnv1a, load_vectors, neighbours, train_vectors

fasttext = pytest.importorskip("fasttext", reason="the package is the judge of the reader")

ROOT = Path(__file__).parents[1]
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
TRAIN = """
import json, sys, fasttext
for name, settings in json.load(open("models.json")).items():
    minn, maxn = settings.pop("lengths")
    fasttext.train_unsupervised(
        "text.txt", minn=minn, maxn=maxn, minCount=1, thread=1, epoch=2, verbose=0, **settings
    ).save_model(name + ".bin")
supervised = dict(input="labels.txt", thread=1, verbose=0, dim=8, minn=2, maxn=4, epoch=1)
supervised["loss"] = "hs"
model = fasttext.train_supervised(**supervised, bucket=400)
model.save_model("supervised.bin")
model.quantize()
model.save_model("quantised.bin")
model = fasttext.train_supervised(**supervised, bucket=400)
model.quantize(cutoff=300)
model.save_model("pruned.bin")
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder of tiny models that the package trained and wrote."""
    folder = tmp_path_factory.mktemp("models")
    rng = random.Random(1)
    lines = [" ".join(rng.choices(SEEN, k=9)) for _ in range(300)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "labels.txt").write_text(
        "".join(f"__label__{i % 3} {x}\n" for i, x in enumerate(lines)), encoding="utf-8"
    )
    (folder / "models.json").write_text(json.dumps(MODELS))
    zeros = os.environ | {
        "MALLOC_PERTURB_": "255"
    }  # with one thread the package leaves most of its table unset
    subprocess.run(
        [sys.executable, "-c", TRAIN], cwd=folder, env=zeros, check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="session")
def oracle():
    return functools.cache(lambda path: fasttext.load_model(str(path)))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory of this test's own."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_same_bits(ours, judge, word):
    expected = judge.get_word_vector(word)
    if judge.get_subwords(word)[1].size == 0:
        assert word not in ours
        with pytest.raises(KeyError, match="no vector"):
            ours[word]
    else:
        assert word in ours
        assert ours[word].dtype == np.float32
        assert ours[word].tobytes() == expected.tobytes(), word


# --- reading a .bin -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, "supervised"])
def test_bin_equals_the_package_bit_for_bit(models, oracle, name):
    ours, judge = load_vectors(models / f"{name}.bin"), oracle(models / f"{name}.bin")
    rng = random.Random(name)
    alphabet = "".join(SEEN) + "xyz"
    invented = ["".join(rng.choices(alphabet, k=rng.randint(1, 12))) for _ in range(150)]
    assert ours.dim == judge.get_dimension()
    for word in [*judge.get_words(), *UNSEEN, *invented]:
        assert_same_bits(ours, judge, word)


def test_bin_equals_the_package_on_any_text(models, oracle):
    ours, judge = load_vectors(models / "one_character.bin"), oracle(models / "one_character.bin")

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
    def check(word):
        assert_same_bits(ours, judge, word)

    check()


def test_many_words_at_once_equal_the_words_one_by_one(models, oracle):
    words = [
        f"{a}{b}" for a in SEEN for b in SEEN
    ]  # several batches, the seen words among unseen ones
    ours, judge = load_vectors(models / "usual.bin"), oracle(models / "usual.bin")
    matrix = ours.matrix(WordTokenizer([*SEEN, *words]))[4:]
    for word, row in zip([*SEEN, *words], matrix, strict=True):
        assert row.tobytes() == judge.get_word_vector(word).tobytes(), word


def test_subwords_equal_the_package(models, oracle):
    for name in ("usual", "one_character", "zero_minimum", "words_only"):
        ours, judge = load_vectors(models / f"{name}.bin"), oracle(models / f"{name}.bin")
        for word in ("lantern", "müde", "狐狸", "a", "</s>", "riverbank", "👩‍🚀"):
            expected = judge.get_subwords(word)[0]
            # the package puts a known word itself first
            assert ours.subwords(word) == expected[word in judge.words :]
    assert load_vectors(models / "wide.bin").subwords("fox") == ["<fox>"]


def test_old_supervised_models_have_no_ngrams(models, tmp_path):
    data = bytearray((models / "supervised.bin").read_bytes())
    data[4:8] = struct.pack("<i", 11)
    old = tmp_path / "old.bin"
    old.write_bytes(data)
    ours, judge = load_vectors(old), fasttext.load_model(str(old))
    assert_same_bits(ours, judge, "lantern")
    assert_same_bits(ours, judge, "lanterns")
    assert "lanterns" not in ours


def test_dictionary_longer_than_a_chunk(tmp_path):
    """Entries lie across the borders of chunks, in any phase, and counts hold zero bytes and
    letters.
    """
    rng = random.Random(5)
    words = [f"{i}{'ü' * rng.randint(0, 40)}" for i in range(60_000)]
    path = tmp_path / "long.bin"
    write_bin(path, words, bucket=0, dim=1, counts=rng)
    with open(path, "r+b") as file:
        file.seek(table_start(path, words))
        file.write(np.arange(len(words), dtype="<f4").tobytes())
    assert path.stat().st_size > 3 << 20
    ours = load_vectors(path)
    chosen = rng.sample(range(len(words)), 2000)
    matrix = ours.matrix(WordTokenizer([words[i] for i in chosen]))
    assert matrix[4:, 0].tolist() == [float(i) for i in chosen]
    assert ours[words[-1]] == len(words) - 1
    assert ours[words[0]] == 0
    assert "60000" not in ours


def write_bin(path, words, bucket, dim, counts, minn=0, maxn=0):
    """A .bin of format 12 with a real dictionary; its tables are holes in the file, which read as
    zero.
    """
    entries = b"".join(
        w.encode() + b"\0" + struct.pack("<qb", counts.randint(1, 1 << 40), 0) for w in words
    )
    header = struct.pack(
        "<2i12id", 793712314, 12, dim, 5, 1, 1, 5, 1, 2, 2, bucket, minn, maxn, 100, 1e-4
    )
    rows = len(words) + bucket
    with open(path, "wb") as file:
        file.write(header + struct.pack("<3i2q", len(words), len(words), 0, 99, -1) + entries)
        file.write(struct.pack("<B2q", 0, rows, dim))
        file.seek(rows * dim * 4, os.SEEK_CUR)
        file.write(struct.pack("<B2q", 0, len(words), dim))
        file.truncate(file.tell() + len(words) * dim * 4)


def table_start(path, words):
    return 92 + sum(len(w.encode()) + 10 for w in words) + 17


MEASURE = """
import resource, sys
from helpers.tokenizer import WordTokenizer
from helpers.vectors import load_vectors
words = open(sys.argv[2], encoding="utf-8").read().split()
tokenizer = WordTokenizer(words)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
matrix = load_vectors(sys.argv[1]).matrix(tokenizer)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unit = 1 if sys.platform == "darwin" else 1024
print((after - before) * unit, float(matrix[4 + words.index("word199999"), 299]))
"""


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
            file.seek(table_start(path, words) + 4 * 300 * row)
            file.write(np.full(300, value, "<f4").tobytes())
    (tmp_path / "words.txt").write_text(
        "\n".join([*words[::22], *(f"new{i}" for i in range(908)), words[-1]])
    )
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "words.txt")]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(result[0]) <= 100e6
    assert np.float32(result[1]) == np.float32(sum(range(1, len(rows) + 1))) * np.float32(
        1 / len(rows)
    )


# --- the matrix -----------------------------------------------------------------------------------


def test_matrix_rows_are_the_tokenizers_words(models):
    vectors = load_vectors(models / "usual.bin")
    tokenizer = WordTokenizer(["lantern", "", "狐狸", "lanterns", "mia"])
    matrix = vectors.matrix(tokenizer, rows=12)
    assert matrix.shape == (12, 16)
    assert matrix.dtype == np.float32
    for i in (4, 6, 7, 8):
        assert (matrix[i] == vectors[tokenizer.word(i)]).all()
    assert not matrix[0].any()
    assert not matrix[9:].any()
    assert matrix[[1, 2, 3, 5]].any(axis=1).all()
    assert np.array_equal(matrix, vectors.matrix(tokenizer, rows=12))
    assert not np.array_equal(matrix[1], vectors.matrix(tokenizer, rows=12, seed=1)[1])
    assert np.array_equal(matrix[:9], vectors.matrix(tokenizer))
    assert vectors.coverage(tokenizer) == (3, 1, 1)


def test_words_without_a_vector_have_the_standard_deviation_of_the_found(models):
    vectors = load_vectors(models / "words_only.bin")
    tokenizer = WordTokenizer(["lantern", "mia", *(f"missing{i}" for i in range(2000))])
    matrix = vectors.matrix(tokenizer)
    assert vectors.coverage(tokenizer) == (2, 0, 2000)
    assert matrix[6:].std() == pytest.approx(
        matrix[4:6].std(), rel=0.03
    )  # 24,000 draws: three standard errors
    assert abs(matrix[6:].mean()) < 0.02 * matrix[4:6].std()
    assert len(np.unique(matrix[6:], axis=0)) == 2000


def test_special_tokens_are_not_looked_up(tmp_path):
    """The file may know words of these names; the specials are not those words."""
    path = write_vec(tmp_path / "specials.vec", {"<unk>": [9, 9], "<pad>": [9, 9], "fox": [1, 2]})
    matrix = load_vectors(path).matrix(WordTokenizer(["fox", "<unk>"]))
    assert matrix[[4, 5]].tolist() == [[1, 2], [9, 9]]
    assert matrix[0].tolist() == [0, 0]
    assert (matrix[3] != 9).all()


def test_matrix_refuses(models, tmp_path):
    vectors = load_vectors(models / "words_only.bin")
    with pytest.raises(ValueError, match=r"a vocabulary larger than the table: 6 tokens, 5 rows"):
        vectors.matrix(WordTokenizer(["mia", "fox"]), rows=5)
    with pytest.raises(ValueError, match="none of the tokenizer's words"):
        vectors.matrix(WordTokenizer(["xylophone"]))
    data = bytearray((models / "words_only.bin").read_bytes())
    start = table_start(
        None, oracle_words := fasttext.load_model(str(models / "words_only.bin")).words
    )
    data[start : start + 4 * 12 * len(oracle_words)] = np.full(
        12 * len(oracle_words), np.nan, "<f4"
    ).tobytes()
    (tmp_path / "nan.bin").write_bytes(data)
    with pytest.raises(ValueError, match="NaN"):
        load_vectors(tmp_path / "nan.bin").matrix(WordTokenizer(["mia"]))


def test_neighbours():
    matrix = np.array([[0, 0], [2, 0], [0, 1], [-1, 0], [3, 3]], np.float32)
    found = neighbours(
        matrix, ["zero", "east", "north", "west", "diagonal"], np.array([5, 0], np.float32), k=3
    )
    assert [word for word, _ in found] == ["east", "diagonal", "zero"]
    assert [cosine for _, cosine in found] == pytest.approx([1, 0.5**0.5, 0])


def test_fnv1a():
    assert fnv1a(b"") == 0x811C9DC5  # published test vectors of 32-bit FNV-1a, for ASCII
    assert fnv1a(b"a") == 0xE40C292C
    assert fnv1a(b"foobar") == 0xBF9CF968
    assert fnv1a("ü".encode()) != functools.reduce(
        lambda h, b: (h ^ b) * 16777619 % 2**32, "ü".encode(), 2166136261
    )


def test_torch_is_not_imported():
    code = "import sys, helpers.vectors; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- broken .bin files ----------------------------------------------------------------------------


def test_bin_cut_anywhere_is_refused(models, tmp_path):
    data = (models / "one_character.bin").read_bytes()
    path = tmp_path / "cut.bin"
    for length in [*range(0, 600, 7), *range(600, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut short|no fastText|damaged") as caught:
            load_vectors(path)
        assert "again" in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"<!DO", "no fastText .bin"),
        (4, struct.pack("<i", 13), "format 13"),
        (8, struct.pack("<i", -5), "damaged"),
        (8, struct.pack("<i", 11), "damaged"),
        (40, struct.pack("<i", 0), "damaged"),
        (64, struct.pack("<i", -1), "damaged"),
        (64, struct.pack("<i", 1 << 30), "cut short"),
        (64, struct.pack("<i", 20), "damaged"),
        (68, struct.pack("<i", 20), "damaged"),
        (84, struct.pack("<q", 3), "pruned"),
    ],
)
def test_bin_with_a_changed_header_is_refused(models, tmp_path, offset, value, message):
    data = bytearray((models / "one_character.bin").read_bytes())
    data[offset : offset + len(value)] = value
    (tmp_path / "changed.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_vectors(tmp_path / "changed.bin")


def test_a_bin_that_promises_more_than_memory_is_refused(models, tmp_path):
    """In both places, so that they agree."""
    data, whole = (
        bytearray((models / "one_character.bin").read_bytes()),
        FastTextBin(models / "one_character.bin"),
    )
    table = whole._table_start - 16
    rows = struct.unpack_from("<q", data, table)[0]
    for at, form, value in ((8, "<i", 2**31 - 1), (table, "<2q", (rows, 2**31 - 1))):
        struct.pack_into(form, data, at, *np.atleast_1d(value).tolist())
    (tmp_path / "large.bin").write_bytes(data)
    with pytest.raises(ValueError, match="is cut short"):
        load_vectors(tmp_path / "large.bin")


@pytest.mark.parametrize("name", ["quantised", "pruned"])
def test_compressed_models_are_refused(models, name):
    with pytest.raises(ValueError, match=f"is {name}, its vectors are not exact: use"):
        load_vectors(models / f"{name}.bin")


def test_a_dictionary_without_end_is_refused_at_once(tmp_path):
    path = tmp_path / "endless.bin"
    write_bin(path, ["fox"], bucket=0, dim=1, counts=random.Random(0))
    path.write_bytes(path.read_bytes()[:92] + b"x" * (6 << 20))
    started = time.monotonic()
    with pytest.raises(ValueError, match="a word does not end"):
        load_vectors(path)
    assert time.monotonic() - started < 2


def test_a_bin_that_shrinks_after_loading_is_noticed(models, tmp_path):
    path = tmp_path / "shrinks.bin"
    path.write_bytes((models / "usual.bin").read_bytes())
    vectors = load_vectors(path)
    os.truncate(path, 2000)
    with pytest.raises(ValueError, match="cut short while it was read"):
        vectors["mia"]


# --- .vec and .vec.gz -----------------------------------------------------------------------------


def write_vec(path, table, rows=None, end="\n"):
    dim = len(next(iter(table.values())))
    lines = [f"{len(table) if rows is None else rows} {dim}"]
    lines += [f"{word} {' '.join(map(str, numbers))} " for word, numbers in table.items()]
    data = ("\n".join(lines) + end).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def random_table(n, dim=20, seed=3):
    rng = random.Random(seed)
    return {f"wörd{i}": [round(rng.gauss(0, 1), 4) for _ in range(dim)] for i in range(n)}


@pytest.mark.parametrize("suffix", [".vec", ".vec.gz"])
def test_text_files_are_read_up_to_the_limit(tmp_path, suffix):
    table = random_table(50)
    path = write_vec(tmp_path / f"table{suffix}", table)
    vectors = load_vectors(path)
    for word, numbers in table.items():
        assert vectors[word].dtype == np.float32
        assert vectors[word].tobytes() == np.array(numbers, np.float32).tobytes()
    limited = load_vectors(str(path), 10)
    assert "wörd9" in limited
    assert "wörd10" not in limited
    for word in ("wörd10", "wörd", ""):
        with pytest.raises(KeyError, match="no vector for"):
            limited[word]
    assert limited.coverage(WordTokenizer(list(table))) == (10, 0, 40)


def test_text_files_of_other_makers(tmp_path):
    """No end of line at the end, Windows line ends, a word twice (the first counts), odd spaces
    inside words.
    """
    table = {"fox": [1, 2], "non\u00a0breaking": [3, 4], "line\u2028separator": [5, 6]}
    assert load_vectors(write_vec(tmp_path / "a.vec", table, end=""))[
        "line\u2028separator"
    ].tolist() == [5, 6]
    (tmp_path / "b.vec").write_bytes(b"2 2\r\nfox 1 2\r\nfox 3 4\r\n")
    assert load_vectors(tmp_path / "b.vec")["fox"].tolist() == [1, 2]


def test_wanted_words_alone_are_kept_and_cached(tmp_path, cache):
    table = random_table(50)
    path = write_vec(tmp_path / "table.vec.gz", table)
    words = ["wörd7", "absent", "wörd3", "wörd49", "wörd7"]
    first, again = (load_vectors(path, limit=20, words=words) for _ in range(2))
    assert len(list(cache.iterdir())) == 1
    for vectors in (first, again):
        assert [word in vectors for word in ("wörd7", "absent", "wörd3", "wörd49", "wörd8")] == [
            1,
            0,
            1,
            0,
            0,
        ]
        assert vectors["wörd3"].tolist() == np.array(table["wörd3"], np.float32).tolist()
    assert "wörd49" in load_vectors(path, limit=50, words=words)


def test_a_changed_file_is_not_answered_from_the_cache(tmp_path, cache):
    path = write_vec(tmp_path / "table.vec", {"fox": [1, 2]})
    os.utime(path, ns=(1, 1))
    assert load_vectors(path, words=["fox"])["fox"].tolist() == [1, 2]
    write_vec(path, {"fox": [3, 4]})  # of the same size
    assert load_vectors(path, words=["fox"])["fox"].tolist() == [3, 4]


def test_a_limit_that_reaches_the_last_row_checks_the_end(tmp_path):
    path = write_vec(tmp_path / "table.vec", random_table(50), rows=49)
    assert "wörd47" in load_vectors(path, limit=48)
    for limit in (49, 50):
        with pytest.raises(ValueError, match="promises 49 rows, and there are more"):
            load_vectors(path, limit=limit)


def torn(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def web_page(path):
    path.write_bytes(b"<!DOCTYPE html>\n<html>Not here</html>\n")


def packed_web_page(path):
    path.write_bytes(gzip.compress(b"<html>Not here</html>"))


def edited(old, new):
    def edit(path):
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return edit


BROKEN_TEXTS = {
    "torn.vec": (torn, "breaks off after row 34"),
    "torn.vec.gz": (torn, "breaks off after row"),
    "flipped.vec.gz": (flipped, "breaks off|gzip|row"),
    "page.vec": (web_page, "it is a web page"),
    "page.vec.gz": (web_page, "gzip"),
    "packed_page.vec.gz": (packed_web_page, "it is a web page"),
    "more_promised.vec": (edited(b"50 20", b"51 20"), "promises 51 rows"),
    "fewer_promised.vec": (edited(b"50 20", b"49 20"), "promises 49 rows, and there are more"),
    "wider.vec": (edited(b"50 20", b"50 21"), "row 1: 20 numbers instead of 21"),
    "narrower.vec": (edited(b"50 20", b"50 19"), "row 1: 20 numbers instead of 19"),
    "no_header.vec": (edited(b"50 20\n", b""), "not with the numbers of rows and dimensions"),
    "no_number.vec": (edited("wörd9 ".encode(), "wörd9 x".encode()), "row 10: could not convert"),
    "nan.vec": (edited("wörd9 ".encode(), "wörd9 nan ".encode()), "row 10: 21 numbers"),
    "infinite.vec": (edited(b" -0.", b" inf -0."), "row 1"),
    "wide.vec": (edited(b"50 20", b"50 20000000000"), "promises 20,000,000,000 dimensions"),
    "endless.vec": (
        edited("wörd9 ".encode(), b"w" * 4_800 + b" "),
        "row 10: the row has 4,800 bytes or more",
    ),
    "endless.vec.gz": (
        lambda path: path.write_bytes(gzip.compress(b"50 20\n" + bytes(30_000_000))),
        "row 1: the row has 4,800 bytes or more",
    ),
    "empty.vec": (lambda path: path.write_bytes(b""), "its first line does not end"),
    "empty.vec.gz": (lambda path: path.write_bytes(b""), "its first line does not end"),
}


@pytest.mark.parametrize("name", BROKEN_TEXTS)
def test_broken_text_files_are_refused(tmp_path, cache, name):
    damage, message = BROKEN_TEXTS[name]
    path = write_vec(tmp_path / name, random_table(50))
    damage(path)
    for words in (None, ["wörd9", "wörd3"]):
        with pytest.raises(ValueError, match=message) as caught:
            load_vectors(path, words=words)
        assert str(path) in str(caught.value)
        assert "fetch another copy" in str(caught.value) or "download it again" in str(caught.value)
    assert not any(cache.iterdir())


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_vectors(write_vec(tmp_path / "nan.vec", {"fox": [1, float("nan")]}))


def test_bad_requests(tmp_path, models):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.bin"):
        load_vectors(tmp_path / "absent.bin")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_vectors("absent.vec.gz")
    with pytest.raises(ValueError, match=r"none of \.bin, \.vec and \.vec\.gz"):
        load_vectors(models / "text.txt")
    with pytest.raises(ValueError, match="limit=0"):
        load_vectors(models / "usual.bin", limit=0)
    with pytest.raises(ValueError, match="not streamed"):
        load_vectors("http://localhost/model.bin")


# --- streaming ------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Each path is served as the test set it: (status, body, announced length, event)."""

    def do_GET(self):
        self.server.requests += 1
        status, body, length, then = self.server.answers[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if then:
            then.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answers, server.requests, server.release = {}, 0, threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


def serve(server, path, body, status=200, cut=None, then=None):
    server.answers[path] = (status, body[:cut], len(body), then)
    return server.url + path


@pytest.mark.parametrize("suffix", [".vec", ".vec.gz", ".vec.gz?download=1"])
def test_streaming(tmp_path, server, cache, capsys, suffix):
    table = random_table(300)
    body = write_vec(tmp_path / f"t{suffix.split('?')[0]}", table).read_bytes()
    url = serve(server, f"/t{suffix}", body)
    vectors = load_vectors(url)
    assert all(
        np.array_equal(vectors[word], np.array(row, np.float32)) for word, row in table.items()
    )
    assert "wörd100" not in load_vectors(url, limit=100)
    progress = capsys.readouterr().err
    assert "streaming vectors" in progress
    assert "300/300" in progress
    assert not cache.exists()
    tokenizer = WordTokenizer(["wörd5", "absent"])
    before = server.requests
    matrices = [load_vectors(url, words=tokenizer.words).matrix(tokenizer) for _ in range(2)]
    assert server.requests == before + 1
    assert matrices[0].tobytes() == matrices[1].tobytes()


@pytest.mark.parametrize("suffix", [".vec", ".vec.gz"])
def test_a_download_is_unpacked_while_it_runs(tmp_path, server, suffix):
    """The server keeps back the second half until the test is over: what the limit asks for must
    not wait for it.
    """
    body = write_vec(tmp_path / f"t{suffix}", random_table(3000)).read_bytes()
    url = serve(server, f"/t{suffix}", body, cut=len(body) // 2, then=server.release)
    assert "wörd199" in load_vectors(url, limit=200, timeout=5)


@pytest.mark.parametrize("suffix", [".vec", ".vec.gz"])
@pytest.mark.parametrize("cut", [0, 2, 30, 15_000, -3, -1])
def test_an_interrupted_stream(tmp_path, server, cache, suffix, cut):
    body = write_vec(tmp_path / f"t{suffix}", random_table(300), end="").read_bytes()
    url = serve(server, f"/t{suffix}", body, cut=cut)
    for words in (None, ["wörd5"]):
        with pytest.raises(
            ConnectionError, match=r"breaks off after row \d+ .*try again, or download"
        ):
            load_vectors(url, words=words)
    assert not any(cache.iterdir())


def test_a_server_that_falls_silent(tmp_path, server, cache):
    body = write_vec(tmp_path / "t.vec", random_table(300)).read_bytes()
    url = serve(server, "/t.vec", body, cut=20_000, then=server.release)
    with pytest.raises(ConnectionError, match=r"timed out.*try again"):
        load_vectors(url, words=["wörd5"], timeout=0.3)
    assert not any(cache.iterdir())


def test_a_stream_that_is_something_else(server, cache):
    page = b"<!DOCTYPE html>\n<html>Please log in</html>\n"
    with pytest.raises(ConnectionError, match=r"cannot fetch .*404.*check the address"):
        load_vectors(serve(server, "/absent.vec.gz", page, status=404))
    with pytest.raises(ValueError, match="it is a web page"):
        load_vectors(serve(server, "/page.vec", page))
    with pytest.raises(ValueError, match="gzip"):
        load_vectors(serve(server, "/page.vec.gz", page))
    with pytest.raises(ValueError, match="promises 9 rows"):
        load_vectors(serve(server, "/more.vec", b"9 1\n" + b"a 1\nb 2\n" * 5))


def test_no_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match=r"cannot fetch .*check the address and the network"):
        load_vectors(f"http://127.0.0.1:{port}/t.vec", timeout=2)


# --- training and the cache -----------------------------------------------------------------------

STORIES = ["Mia saw a fox.\nThe fox saw Mia!", "The river was cold. Mia crossed the bridge."] * 20
TINY = {"dim": 8, "epochs": 2, "bucket": 200}


def test_training_twice_gives_the_same_bytes_and_trains_once(cache, monkeypatch, oracle):
    tokenizer = WordTokenizer.train(STORIES)
    vectors = train_vectors(STORIES, tokenizer, **TINY)
    assert vectors.dim == 8
    assert vectors.coverage(tokenizer) == (len(tokenizer.words), 0, 0)
    assert_same_bits(vectors, oracle(vectors.path), "mia")
    assert_same_bits(vectors, oracle(vectors.path), "foxes")
    assert "." in vectors
    assert np.abs(vectors.matrix(tokenizer)).max() > 1e-3
    monkeypatch.setattr(
        subprocess, "run", lambda *args, **kwargs: pytest.fail("trained a second time")
    )
    again = train_vectors(iter(STORIES), tokenizer, **TINY)
    assert again.path == vectors.path
    assert [path.name for path in cache.iterdir()] == [vectors.path.name]


def test_training_does_not_depend_on_what_memory_held_before(cache, tmp_path, monkeypatch):
    first = train_vectors(STORIES, **TINY).path.read_bytes()
    # glibc fills each new block with this byte where the variable is inherited: the package reads
    # what it finds there.
    monkeypatch.setenv("MALLOC_PERTURB_", "77")
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "other"))
    assert train_vectors(STORIES, **TINY).path.read_bytes() == first


def test_whatever_determines_the_vectors_is_in_the_key(models, monkeypatch):
    keys = []
    monkeypatch.setattr(
        module, "_cached", lambda key, build: keys.append(key) or models / "usual.bin"
    )
    train_vectors(STORIES, **TINY)
    train_vectors(iter(STORIES), WordTokenizer(["fox"]), **TINY)  # its vocabulary plays no part
    assert keys[0] == keys[1]
    for change in (
        {"dim": 9},
        {"epochs": 1},
        {"window": 2},
        {"negatives": 2},
        {"learning_rate": 0.1},
        {"minn": 2},
    ):
        train_vectors(STORIES, **TINY | change)
    for change in (
        {"min_count": 2},
        {"bucket": 201},
        {"maxn": 0},
        {"tokenizer": WordTokenizer([], (), False)},
    ):
        train_vectors(STORIES, **TINY | change)
    train_vectors(STORIES[1:], **TINY)
    train_vectors(["".join(STORIES[:2]), *STORIES[2:]], **TINY)
    monkeypatch.setattr(module, "_fasttext_version", lambda: "fasttext-numpy2 99")
    train_vectors(STORIES, **TINY)
    assert len(set(keys)) == len(keys) - 1


def test_settings_reach_fasttext(cache):
    plain = train_vectors(
        STORIES, WordTokenizer([], keep_punctuation=False), **TINY | {"maxn": 0, "bucket": 5}
    )
    assert (plain.maxn, plain.bucket, plain.dim) == (0, 0, 8)
    assert "mia" in plain
    assert "mi" not in plain
    assert "." not in plain


@pytest.mark.parametrize("damage", [torn, flipped])
def test_a_damaged_cache_file_is_built_again_with_a_note(cache, capsys, damage):
    vectors = train_vectors(STORIES, **TINY)
    expected = vectors.path.read_bytes()
    assert capsys.readouterr().out == ""
    damage(vectors.path)
    again = train_vectors(STORIES, **TINY)
    assert "is damaged" in capsys.readouterr().out
    assert again.path.read_bytes() == expected


def test_what_a_killed_process_left_is_removed_a_day_later(cache):
    vectors = train_vectors(STORIES, **TINY)
    stem = vectors.path.name.partition("-")[0]
    vectors.path.unlink()
    old, new, other = (
        cache / f".{name}.partial"
        for name in (f"{stem}.0000000a", f"{stem}.0000000b", "other.0000000c")
    )
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "model.bin").write_text("half")
    for folder in (old, other):
        os.utime(folder, (time.time() - 100_000,) * 2)
    train_vectors(STORIES, **TINY)
    assert {path.name for path in cache.iterdir()} == {new.name, other.name, vectors.path.name}


def test_two_processes_at_once(cache):
    code = f"""
from helpers.vectors import train_vectors
print(train_vectors({STORIES!r}, **{TINY!r}).matrix.__self__.path.name)
"""
    run = functools.partial(
        subprocess.Popen, [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    both = [run(), run()]
    names = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert names[0] == names[1]
    assert [path.name for path in cache.iterdir()] == names[:1]


def test_training_failures(cache, monkeypatch):
    with pytest.raises(ValueError, match="one string"):
        train_vectors("Mia saw a fox.")
    with pytest.raises(ValueError, match="texts are empty"):
        train_vectors(["", "  \n"], **TINY)
    with pytest.raises(RuntimeError, match=r"fastText failed .*exit"):
        train_vectors(STORIES, **TINY | {"dim": "many"})
    monkeypatch.setattr(module.importlib.metadata, "version", missing_package)
    with pytest.raises(ImportError, match="pip install fasttext-numpy2"):
        train_vectors(STORIES, **TINY)
    assert not any(cache.iterdir())


def missing_package(name):
    raise module.importlib.metadata.PackageNotFoundError(name)


def test_the_cache_is_in_the_repository_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    assert module.cache_directory() == tmp_path
    monkeypatch.delenv("CACHE_DIR")
    assert module.cache_directory() == ROOT / ".cache" / "vectors"
