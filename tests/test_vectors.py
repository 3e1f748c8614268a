"""Word vectors: trained, read, streamed and cached; every broken source is one clear error."""

import bz2
import functools
import gzip
import http.server
import importlib.metadata
import io
import json
import lzma
import os
import pickle
import random
import re
import socket
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fasttext
import numpy as np
import pytest
from support import start

from helpers import vectors as module
from helpers.tokenizer import WordTokenizer
from helpers.vectors import TextVectors, load_vectors, neighbours, train_vectors

STORIES = ["Mia saw a fox.\nThe fox saw Mia!", "The river was cold. Mia crossed the bridge."] * 20
TINY = {"dim": 8, "epochs": 2, "bucket": 200}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache directory of this test's own."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def bins(tmp_path_factory):
    """A folder of two models: usual.bin builds any word, words_only.bin the words that it saw."""
    folder = tmp_path_factory.mktemp("bins")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(folder))
        train_vectors(STORIES, **TINY).path.rename(folder / "usual.bin")
        train_vectors(STORIES, **TINY | {"dim": 12, "maxn": 0}).path.rename(
            folder / "words_only.bin"
        )
    return folder


def load_model(path):
    """The package's own reader: the judge of ours."""
    return fasttext.load_model(str(path))


def assert_same_bits(ours, judge, word):
    assert word in ours
    assert ours[word].dtype == np.float32
    assert ours[word].tobytes() == judge.get_word_vector(word).tobytes(), word


# --- a .bin, and the matrix -----------------------------------------------------------------------


def test_bin_equals_the_package_bit_for_bit(bins):
    ours, judge = load_vectors(bins / "usual.bin"), load_model(bins / "usual.bin")
    for word in ("mia", "foxes", "müde", "狐狸", "<eos>"):
        assert_same_bits(ours, judge, word)
    ours, judge = load_vectors(bins / "words_only.bin"), load_model(bins / "words_only.bin")
    assert_same_bits(ours, judge, "mia")
    for word in ("foxes", "", "Mia"):
        assert word not in ours
        with pytest.raises(KeyError, match=f"no vector for {word!r}"):
            ours[word]


def test_a_broken_bin_is_refused(bins, tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes((bins / "usual.bin").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut\.bin is cut short or damaged: download or"):
        load_vectors(path)


def test_matrix_rows_are_the_tokenizers_words(bins):
    vectors = load_vectors(bins / "usual.bin")
    tokenizer = WordTokenizer(["river", "", "fox", "rivers", "mia"])
    matrix = vectors.matrix(tokenizer, rows=12)
    assert matrix.shape == (12, 8)
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


def test_words_without_a_vector_have_the_standard_deviation_of_the_found(bins):
    vectors = load_vectors(bins / "words_only.bin")
    tokenizer = WordTokenizer(["river", "mia", *(f"missing{i}" for i in range(2000))])
    matrix = vectors.matrix(tokenizer)
    assert vectors.coverage(tokenizer) == (2, 0, 2000)
    # 24,000 draws: three standard errors.
    assert matrix[6:].std() == pytest.approx(matrix[4:6].std(), rel=0.03)
    assert abs(matrix[6:].mean()) < 0.02 * matrix[4:6].std()
    assert len(np.unique(matrix[6:], axis=0)) == 2000


def test_special_tokens_are_not_looked_up(tmp_path):
    """The file may know words of these names; the specials are not those words."""
    path = write_vec(tmp_path / "specials.vec", {"<unk>": [9, 9], "<pad>": [9, 9], "fox": [1, 2]})
    matrix = load_vectors(path).matrix(WordTokenizer(["fox", "<unk>"]))
    assert matrix[[4, 5]].tolist() == [[1, 2], [9, 9]]
    assert matrix[0].tolist() == [0, 0]
    assert (matrix[3] != 9).all()


def test_matrix_refuses(bins, tmp_path):
    vectors = load_vectors(bins / "words_only.bin")
    with pytest.raises(ValueError, match=r"a vocabulary larger than the table: 6 tokens, 5 rows"):
        vectors.matrix(WordTokenizer(["mia", "fox"]), rows=5)
    for words in (["xylophone"], []):
        with pytest.raises(ValueError, match=f"none of the tokenizer's {len(words)} words has a"):
            vectors.matrix(WordTokenizer(words))
    data, mia = (bins / "words_only.bin").read_bytes(), vectors["mia"]
    assert data.count(mia.tobytes()) == 1
    for number in (np.nan, 1e6, -np.inf):
        changed = np.where(np.arange(12) == 7, np.float32(number), mia)
        (tmp_path / "changed.bin").write_bytes(data.replace(mia.tobytes(), changed.tobytes()))
        with pytest.raises(ValueError, match="some vectors hold NaN or numbers beyond a million"):
            load_vectors(tmp_path / "changed.bin").matrix(WordTokenizer(["mia"]))


def test_text_vectors_know_the_words_they_were_given():
    vectors = TextVectors(["fox", "", "mia"], np.float32([[1, 2], [3, 4], [5, 6]]))
    assert vectors.dim == 2
    found, kinds = vectors.lookup(["mia", "absent", "", "fox"])
    assert (found.dtype, kinds.dtype) == (np.float32, np.int8)
    assert found.tolist() == [[5, 6], [0, 0], [0, 0], [1, 2]]
    assert vectors.coverage(WordTokenizer(["mia", "absent", "", "fox"])) == (2, 0, 2)
    none, no_kinds = vectors.lookup([])
    assert (none.shape, no_kinds.shape) == ((0, 2), (0,))
    assert vectors.coverage(WordTokenizer([])) == (0, 0, 0)
    assert "fox" not in TextVectors([], np.zeros((0, 2), np.float32))


def test_neighbours():
    matrix = np.float32([[0, 0], [2, 0], [0, 1], [-1, 0], [3, 3]])
    words = ["zero", "east", "north", "west", "diagonal"]
    found = neighbours(matrix, words, np.float32([5, 0]), k=3)
    assert [word for word, _ in found] == ["east", "diagonal", "zero"]
    assert [cosine for _, cosine in found] == pytest.approx([1, 0.5**0.5, 0])
    assert len(neighbours(matrix, words, np.float32([5, 0]), k=9)) == 5
    assert neighbours(matrix, words, np.float32([5, 0]), k=0) == []
    assert neighbours(matrix[:0], [], np.float32([5, 0])) == []


def test_torch_is_not_imported():
    done = start("imported", "helpers.vectors")
    assert done.returncode == 0, done.stderr
    modules = done.stdout.split()
    assert "helpers.vectors" in modules
    assert "torch" not in modules


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
    """No last line end, Windows line ends, a word twice (the first counts), odd spaces in words."""
    table = {"fox": [1, 2], "non\u00a0breaking": [3, 4], "line\u2028separator": [5, 6]}
    vectors = load_vectors(write_vec(tmp_path / "a.vec", table, end=""))
    assert vectors["line\u2028separator"].tolist() == [5, 6]
    (tmp_path / "b.vec").write_bytes(b"2 2\r\nfox 1 2\r\nfox 3 4\r\n")
    assert load_vectors(tmp_path / "b.vec")["fox"].tolist() == [1, 2]


def test_wanted_words_alone_are_kept_and_cached(tmp_path, cache):
    table = random_table(50)
    path = write_vec(tmp_path / "table.vec.gz", table)
    words = ["wörd7", "absent", "wörd3", "wörd49", "wörd7"]
    first, again = (load_vectors(path, limit=20, words=words) for _ in range(2))
    assert len(list(cache.iterdir())) == 1
    for vectors in (first, again):
        there = [word in vectors for word in ("wörd7", "absent", "wörd3", "wörd49", "wörd8")]
        assert there == [True, False, True, False, False]
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


def packed_web_page(path):
    path.write_bytes(gzip.compress(b"<html>Not here</html>"))


def packed_zeros(path):
    path.write_bytes(gzip.compress(b"50 20\n" + bytes(30_000_000)))


def edited(old, new):
    def edit(path):
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return edit


def test_no_words_give_no_vectors(tmp_path, cache):
    path = write_vec(tmp_path / "t.vec", random_table(5))
    for _ in range(2):  # read, and from the cache
        vectors = load_vectors(path, words=[])
        assert vectors.dim == load_vectors(path).dim
        assert "wörd1" not in vectors


ENDLESS = "the row has 4,800 bytes or more"
BROKEN_TEXTS = {
    "torn.vec": (torn, "row 34: 6 numbers instead of 20"),
    "torn.vec.gz": (torn, r"row \d+: Compressed file ended"),
    "flipped.vec.gz": (flipped, r"row \d+: "),
    "packed_page.vec.gz": (packed_web_page, "row 0: it starts with b'<html>Not here</html>', not"),
    "more_promised.vec": (edited(b"50 20", b"51 20"), "it has 50 rows and promises 51"),
    "fewer_promised.vec": (edited(b"50 20", b"49 20"), "promises 49 rows, and there are more"),
    "wider.vec": (edited(b"50 20", b"50 21"), "row 1: 20 numbers instead of 21"),
    "narrower.vec": (edited(b"50 20", b"50 19"), "row 1: 20 numbers instead of 19"),
    "no_number.vec": (edited("wörd9 ".encode(), "wörd9 x".encode()), "row 10: could not convert"),
    "nan.vec": (edited("wörd9 ".encode(), "wörd9 nan ".encode()), "row 10: 21 numbers"),
    "infinite.vec": (edited(b" -0.", b" inf -0."), "row 1"),
    "wide.vec": (edited(b"50 20", b"50 20000000000"), "it starts with b'50 20000000000"),
    "endless.vec": (edited("wörd9 ".encode(), b"w" * 4_800 + b" "), f"row 10: {ENDLESS}"),
    "endless.vec.gz": (packed_zeros, f"row 1: {ENDLESS}"),
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
        assert "fetch another copy" in str(caught.value)
    assert not any(cache.iterdir())


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_vectors(write_vec(tmp_path / "nan.vec", {"fox": [1, float("nan")]}))


TEXT = b"2 5\nfox 1 2 3 4 5\nmia 6 7 8 9 0\n"
FLOATS = np.float32([0.5, -1, 0, 2, 3]).tobytes()
ZIPPED, TORCH = io.BytesIO(), io.BytesIO()
with zipfile.ZipFile(ZIPPED, "w") as file:
    file.writestr("table.vec", TEXT)
with zipfile.ZipFile(TORCH, "w") as file:  # as torch.save writes it
    file.writestr("weights/data.pkl", pickle.dumps({}))
NUMPY = io.BytesIO()
np.save(NUMPY, np.eye(2))
GIVE = "give a fastText .bin, .vec or .vec.gz"
GLOVE = "put the line '<number of rows> 5' in front and name it .vec"
UNPACK = "unpack it if it holds vectors"
FOREIGN = {
    "a gzip": (
        gzip.compress(TEXT, mtime=0),
        "compressed with gzip: unpack it, or name it .vec.gz",
        ".vec.gz",
    ),
    "a text": (TEXT, "text that is not compressed: name it .vec, or", ".vec"),
    "word2vec": (
        b"2 5\nfox " + FLOATS + b"\nmia " + FLOATS + b"\n",
        r"in word2vec's binary format: .* gensim, KeyedVectors\.load_word2vec_format\('model\.\w+",
    ),
    "GloVe": (TEXT.split(b"\n", 1)[1], f"text without a first line of sizes, .* {GLOVE}"),
    "bzip2": (bz2.compress(TEXT), f"compressed with bzip2: {UNPACK}"),
    "xz": (lzma.compress(TEXT), f"compressed with xz: {UNPACK}"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), f"compressed with zstd: {UNPACK}"),
    "zip": (ZIPPED.getvalue(), f"a zip archive: {UNPACK}"),
    "PyTorch": (TORCH.getvalue(), f"a PyTorch file: {GIVE}"),
    "pickle": (pickle.dumps({"fox": 1}), f"a pickle or a PyTorch file: {GIVE}"),
    "NumPy": (NUMPY.getvalue(), f"a NumPy file: {GIVE}"),
    "page": (b"<!DOCTYPE html>\n<html>Not here</html>\n", f"a web page: {GIVE}"),
    "UTF-16": (TEXT.decode().encode("utf-16"), "text in UTF-16: save it as UTF-8"),
    "empty": (b"", "empty: see whether the download failed"),
    "story": (b"Mia saw a fox.", "no fastText .*, it starts with b'Mia saw a fox.': give one"),
}


@pytest.mark.parametrize("suffix", [".bin", ".vec", ".vec.gz", ".TXT"])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_fasttexts_is_named(tmp_path, name, suffix):
    content, message, *right = FOREIGN[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    if suffix in right:
        assert load_vectors(path)["fox"].tolist() == [1, 2, 3, 4, 5]
        return
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is {message}") as caught:
        load_vectors(path)
    assert str(caught.value).endswith(", or fetch another copy")


@pytest.mark.parametrize("suffix", [".vec", ".vec.gz", ".model"])
def test_a_bin_by_another_name(tmp_path, bins, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes((bins / "usual.bin").read_bytes())
    with pytest.raises(ValueError, match=r" is a fastText \.bin: name it \.bin"):
        load_vectors(path)


def test_a_tilde_is_home(tmp_path, bins, monkeypatch):
    monkeypatch.setenv("HOME" if os.name != "nt" else "USERPROFILE", str(tmp_path))
    (tmp_path / "usual.BIN").write_bytes((bins / "usual.bin").read_bytes())
    write_vec(tmp_path / "table.vec.gz", {"fox": [1, 2]})
    assert "fox" in load_vectors("~/usual.BIN")
    assert "fox" in load_vectors(Path("~/table.vec.gz"), words=["fox"])
    with pytest.raises(FileNotFoundError, match=re.escape(f"no such file: {tmp_path / 'no.vec'}")):
        load_vectors("~/no.vec")


def test_bad_requests(tmp_path, bins):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.bin"):
        load_vectors(tmp_path / "absent.bin")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_vectors("absent.vec.gz")
    for name in ("", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            load_vectors(name)
    with pytest.raises(ValueError, match="limit=0"):
        load_vectors(bins / "usual.bin", limit=0)
    with pytest.raises(ValueError, match=r"no \.vec or \.vec\.gz; a \.bin must be on disk"):
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
    for word, row in table.items():
        assert vectors[word].tolist() == np.float32(row).tolist()
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
    """The server keeps the second half back to the end of the test; the limit needs the first."""
    body = write_vec(tmp_path / f"t{suffix}", random_table(3000)).read_bytes()
    url = serve(server, f"/t{suffix}", body, cut=len(body) // 2, then=server.release)
    assert "wörd199" in load_vectors(url, limit=200, timeout=5)


@pytest.mark.parametrize("suffix", [".vec", ".vec.gz"])
@pytest.mark.parametrize("cut", [0, 2, 30, 15_000, -3, -1])
def test_an_interrupted_stream(tmp_path, server, cache, suffix, cut):
    body = write_vec(tmp_path / f"t{suffix}", random_table(300), end="").read_bytes()
    url = serve(server, f"/t{suffix}", body, cut=cut)
    told = r"/t\S+, row \d+: .*try again, or fetch another copy"
    for words in (None, ["wörd5"]):
        with pytest.raises(ConnectionError, match=told):
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
    with pytest.raises(ConnectionError, match=r"absent.* 404.*Check the path or address"):
        load_vectors(serve(server, "/absent.vec.gz", page, status=404))
    with pytest.raises(ValueError, match="it starts with b'<!DOCTYPE html>"):
        load_vectors(serve(server, "/page.vec", page))
    with pytest.raises(ValueError, match="gzip"):
        load_vectors(serve(server, "/page.vec.gz", page))
    with pytest.raises(ValueError, match="promises 9 rows"):
        load_vectors(serve(server, "/more.vec", b"9 1\n" + b"a 1\nb 2\n" * 5))


def test_no_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match=r"refused.* Check the path or address, try again"):
        load_vectors(f"http://127.0.0.1:{port}/t.vec", timeout=2)


# --- training and the cache -----------------------------------------------------------------------


def test_training_twice_gives_the_same_bytes_and_trains_once(cache, monkeypatch):
    tokenizer = WordTokenizer.train(STORIES)
    vectors = train_vectors(STORIES, tokenizer, **TINY)
    assert vectors.dim == 8
    assert vectors.coverage(tokenizer) == (len(tokenizer.words), 0, 0)
    assert_same_bits(vectors, load_model(vectors.path), "mia")
    assert_same_bits(vectors, load_model(vectors.path), "foxes")
    assert "." in vectors
    assert np.abs(vectors.matrix(tokenizer)).max() > 1e-3

    def trained_again(*args, **kwargs):
        pytest.fail("trained a second time")

    monkeypatch.setattr(subprocess, "run", trained_again)
    again = train_vectors(iter(STORIES), tokenizer, **TINY)
    assert again.path == vectors.path
    assert [path.name for path in cache.iterdir()] == [vectors.path.name]


def test_training_does_not_depend_on_what_memory_held_before(tmp_path, monkeypatch):
    first = train_vectors(STORIES, **TINY).path.read_bytes()
    # If the variable is inherited, glibc fills each new block with this byte: the package reads
    # what it finds there.
    monkeypatch.setenv("MALLOC_PERTURB_", "77")
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "other"))
    assert train_vectors(STORIES, **TINY).path.read_bytes() == first


def test_whatever_determines_the_vectors_is_in_the_key(bins, monkeypatch):
    keys = []
    path = bins / "usual.bin"
    monkeypatch.setattr(module, "cached", lambda key, build: keys.append(key) or path)
    train_vectors(STORIES, **TINY)
    train_vectors(iter(STORIES), WordTokenizer(["fox"]), **TINY)  # its vocabulary plays no part
    assert keys[0] == keys[1]
    for name, value in {
        **{"dim": 9, "epochs": 1, "window": 2, "negatives": 2, "learning_rate": 0.1, "minn": 2},
        **{"min_count": 2, "bucket": 201, "maxn": 0, "tokenizer": WordTokenizer([], (), False)},
    }.items():
        train_vectors(STORIES, **TINY | {name: value})
    train_vectors(STORIES[1:], **TINY)
    train_vectors(["".join(STORIES[:2]), *STORIES[2:]], **TINY)
    for version in ("TRAINING", "SPLITTING"):
        monkeypatch.setattr(module, version, getattr(module, version) + 1)
        train_vectors(STORIES, **TINY)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99")
    train_vectors(STORIES, **TINY)
    assert len(set(keys)) == len(keys) - 1


def test_settings_reach_fasttext():
    tokenizer = WordTokenizer([], keep_punctuation=False)
    plain = train_vectors(STORIES, tokenizer, **TINY | {"maxn": 0, "bucket": 5})
    assert (plain.maxn, plain.bucket, plain.dim) == (0, 0, 8)
    assert "mia" in plain
    assert "mi" not in plain
    assert "." not in plain


@pytest.mark.parametrize("damage", [torn, flipped])
def test_damaged_vectors_are_trained_again_with_a_note(capsys, damage):
    vectors = train_vectors(STORIES, **TINY)
    expected = vectors.path.read_bytes()
    assert capsys.readouterr().out == ""
    damage(vectors.path)
    again = train_vectors(STORIES, **TINY)
    assert "is damaged" in capsys.readouterr().out
    assert again.path.read_bytes() == expected


def test_two_processes_at_once(cache):
    train = functools.partial(start, "train_vectors", json.dumps([STORIES, TINY]))
    with ThreadPoolExecutor(2) as pool:
        both = [each.result() for each in (pool.submit(train), pool.submit(train))]
    assert [done.returncode for done in both] == [0, 0], both[0].stderr + both[1].stderr
    name = both[0].stdout.strip()
    assert both[1].stdout.strip() == name
    assert [path.name for path in cache.iterdir()] == [name]


def test_training_failures(cache, monkeypatch):
    for texts in ("Mia saw a fox.", None, ["Mia", None]):
        with pytest.raises(ValueError, match=r"^texts=.*: must be a list of strings$"):
            train_vectors(texts)
    for texts in (["", "  \n"], []):
        with pytest.raises(ValueError, match="texts are empty"):
            train_vectors(texts, **TINY)
    with pytest.raises(RuntimeError, match=r"fastText failed .*exit"):
        train_vectors(STORIES, **TINY | {"dim": "many"})
    monkeypatch.setattr(importlib.metadata, "version", missing_package)
    with pytest.raises(ImportError, match="fasttext-numpy2"):
        train_vectors(STORIES, **TINY)
    assert not any(cache.iterdir())


def missing_package(name):
    raise importlib.metadata.PackageNotFoundError(name)
