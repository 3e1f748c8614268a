"""fastText word vectors: train them, read them from a .bin, stream them, and make a tokenizer's
embedding matrix.

fastText (Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information", section 3.2)
gives each word the mean of several vectors: its own, and one for each of its character n-grams,
which are hashed into a fixed number of buckets. A word that was never seen still has n-grams, and
therefore a vector.
"""

import gzip
import hashlib
import http.client
import importlib.metadata
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from helpers import tokenizer as tokenizer_module
from helpers.files import beside, clear_left, make_folder, write_whole
from helpers.tokenizer import SPECIALS, WordTokenizer

_MISSING, _FROM_NGRAMS, _IN_DICTIONARY = range(3)
_AGAIN = "download or train it again"
_WIDEST = 10_000  # dimensions of a text file's vectors


class Coverage(NamedTuple):
    """How many of a tokenizer's words are in the dictionary, are built from n-grams, and have no
    vector.
    """

    in_dictionary: int
    from_ngrams: int
    missing: int


class WordVectors:
    """`vectors[word]` is float32[dim], a KeyError where the word has none; `word in vectors` tells
    beforehand.

    The empty word has no vector. Case matters to the files, and a tokenizer's words are lower-case.
    """

    dim: int

    def _lookup(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """float32[len(words), dim], zero where missing, and int8[len(words)]: where each row comes
        from.
        """
        raise NotImplementedError

    def __getitem__(self, word: str) -> np.ndarray:
        vectors, kinds = self._lookup([word])
        if kinds[0] == _MISSING:
            raise KeyError(
                f"no vector for {word!r}: it is not among the words that were read, nor can it be "
                "built"
            )
        return vectors[0]

    def __contains__(self, word: str) -> bool:
        return bool(self._lookup([word])[1][0] != _MISSING)

    def coverage(self, tokenizer: WordTokenizer) -> Coverage:
        """Counts over the tokenizer's words; special tokens are not looked up."""
        missing, from_ngrams, in_dictionary = np.bincount(
            self._lookup(tokenizer.words)[1], minlength=3
        ).tolist()
        return Coverage(in_dictionary, from_ngrams, missing)

    def matrix(
        self, tokenizer: WordTokenizer, rows: int | None = None, seed: int = 0
    ) -> np.ndarray:
        """float32[rows, dim], whose row i is the vector of `tokenizer.word(i)`; rows is
        len(tokenizer) if not given.

        `<pad>` is zero, and so is each row past the vocabulary. The other special tokens and the
        words without a vector are drawn from a normal distribution of mean zero and the standard
        deviation of the vectors that were found. Raises ValueError where rows is too small, where
        no word has a vector, or where a number is NaN or beyond a million.
        """
        rows = len(tokenizer) if rows is None else rows
        if rows < len(tokenizer):
            raise ValueError(
                f"a vocabulary larger than the table: {len(tokenizer):,} tokens, {rows:,} rows. "
                "Ask for more rows, or train the tokenizer with a smaller vocab_size"
            )
        vectors, kinds = self._lookup(tokenizer.words)  # (len(words), dim), (len(words),)
        found = kinds != _MISSING
        if not found.any():
            raise ValueError(
                "none of the tokenizer's words has a vector: are the vectors for this language?"
            )
        if not (
            np.abs(vectors) < 1e6
        ).all():  # real ones are below 100, and NaN is not below anything
            raise ValueError(
                "some vectors hold NaN or numbers beyond a million: download or train the file "
                "again"
            )
        drawn = np.flatnonzero(
            np.concatenate([[False, True, True, True], ~found])
        )  # (specials - 1 + missing,)
        matrix = np.zeros((rows, self.dim), np.float32)  # (rows, dim)
        matrix[len(SPECIALS) : len(tokenizer)] = vectors
        matrix[drawn] = np.random.default_rng(seed).normal(
            0, vectors[found].std(), (len(drawn), self.dim)
        )
        return matrix


def neighbours(
    matrix: np.ndarray, words: Sequence[str], query: np.ndarray, k: int = 10
) -> list[tuple[str, float]]:
    """The k rows of matrix[len(words), dim] with the largest cosine to query[dim], best first, as
    (word, cosine).
    """
    lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(query)  # (len(words),)
    cosines = (
        matrix @ query / np.where(lengths == 0, 1, lengths)
    )  # (len(words),), zero where a vector is zero
    return [(words[i], float(cosines[i])) for i in np.argsort(-cosines, kind="stable")[:k]]


def fnv1a(data: bytes) -> int:
    """fastText's 32-bit FNV-1a hash. Its bytes are signed: from 0x80 on, ones are put in front
    before the xor.
    """
    value = 2166136261
    for byte in data:
        value = (value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619 & 0xFFFFFFFF
    return value


class FastTextBin(WordVectors):
    """A fastText .bin on disk, of which only the rows that are asked for are read.

    Equal, bit for bit, to the package's `get_word_vector`. Only the words themselves stay in memory
    (20 MB for two million). A look-up goes through all of them (0.2 s there), so ask for many words
    at once, with `matrix`. Raises ValueError where the file is cut short, pruned, quantised, of a
    newer format or something else.
    """

    _MAGIC, _SUPERVISED = 793712314, 3
    _HEADER = struct.Struct(
        "<2i12id3i2q"
    )  # magic, version; 12 settings, t; size, words, labels, tokens, pruned
    _ENTRY = re.compile(
        rb"([^\0]*)\0.{9}", re.DOTALL
    )  # a word, then its count (int64) and its type (int8)

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._size = self.path.stat().st_size
        try:
            with open(self.path, "rb") as file:
                self._read_frame(file)
        except struct.error:
            self._check(False, f"is cut short: {_AGAIN}")

    def _check(self, condition: object, problem: str) -> None:
        if not condition:
            raise ValueError(f"{self.path} {problem}")

    def _read_frame(self, file: BinaryIO) -> None:
        """Everything but the two tables of numbers."""
        header = file.read(self._HEADER.size)
        self._check(
            header[:4] == struct.pack("<i", self._MAGIC), "is no fastText .bin: download it again"
        )
        fields = self._HEADER.unpack(header)
        version, self.dim, model, self.bucket, self.minn, self.maxn = (
            fields[1],
            fields[2],
            *fields[9:13],
        )
        size, self._words, pruned = fields[15], fields[16], fields[19]
        self._check(
            version <= 12, f"has format {version}, newer than 12: this reader is too old for it"
        )
        self._check(
            pruned < 0, "is pruned, its vectors are not exact: use the .bin from before quantising"
        )
        if version == 11 and model == self._SUPERVISED:
            self.maxn = 0  # such models had no character n-grams
        shape = (self._words + self.bucket, self.dim)
        plausible = 0 <= self._words <= size and self.dim > 0 and self.bucket >= (self.maxn > 0)
        self._check(plausible, f"is damaged, its header makes no sense: {_AGAIN}")
        self._check(10 * size < self._size, f"is cut short: {_AGAIN}")
        self._blocks = list(self._read_dictionary(file, size))
        quantised, *found = struct.unpack("<B2q", file.read(17))
        self._check(
            quantised != 1,
            "is quantised, its vectors are not exact: use the .bin from before quantising",
        )
        self._check((quantised, *found) == (0, *shape), f"is damaged, its parts disagree: {_AGAIN}")
        self._table_start = file.tell()
        self._check(
            self._table_start + 4 * shape[0] * shape[1] < self._size, f"is cut short: {_AGAIN}"
        )
        file.seek(self._table_start + 4 * shape[0] * shape[1])
        _, *found = struct.unpack("<B2q", file.read(17))
        self._check(min(found) >= 0, f"is damaged, its parts disagree: {_AGAIN}")
        self._check(file.tell() + 4 * found[0] * found[1] <= self._size, f"is cut short: {_AGAIN}")

    def _read_dictionary(self, file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield (id of the first word, words joined by zero bytes); leave the file behind the last
        entry.

        A million bytes at a time: two million words as Python objects would fill 100 MB. Words come
        before labels.
        """
        start, seen, data = file.tell(), 0, b""
        while seen < size:
            chunk = file.read(1 << 20)
            data += chunk
            # Up to the last zero byte that has a count and a type behind it; the rest waits for the
            # next chunk.
            entries = self._ENTRY.findall(data[: data.rfind(b"\0", 0, max(0, len(data) - 9)) + 10])[
                : size - seen
            ]
            self._check(
                entries or (chunk and len(data) < 1 << 22),
                f"is damaged, a word does not end: {_AGAIN}",
            )
            if words := entries[: max(0, self._words - seen)]:
                yield seen, b"\0".join(words)
            used = sum(map(len, entries)) + 10 * len(entries)
            start, seen, data = start + used, seen + len(entries), data[used:]
        file.seek(start)

    def subwords(self, word: str) -> list[str]:
        """The word's character n-grams, by start and then by length, with `<` and `>` as its
        borders.
        """
        if word in (
            "",
            "</s>",
        ):  # </s> is the end of a line in the training text: one token, without n-grams
            return []
        marked = f"<{word}>"
        return [
            marked[start : start + n]
            for start in range(len(marked))
            for n in range(max(1, self.minn), min(self.maxn, len(marked) - start) + 1)
            if n > 1 or 0 < start < len(marked) - 1
        ]

    def _row_ids(self, words: Sequence[str]) -> list[list[int]]:
        """For each word the rows of the table whose mean is its vector: its own first, then those
        of its n-grams.
        """
        encoded = [word.encode("utf-8", "surrogatepass") for word in words]
        wanted, ids = set(encoded) - {b""}, {}
        for first, block in self._blocks:
            ids.update(
                (word, i) for i, word in enumerate(block.split(b"\0"), first) if word in wanted
            )
        rows = [[ids[word]] if word in ids else [] for word in encoded]
        for word, own in zip(words, rows, strict=True):
            grams = (gram.encode("utf-8", "surrogatepass") for gram in self.subwords(word))
            own += [self._words + fnv1a(gram) % self.bucket for gram in grams]
        return rows

    def _lookup(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        row_ids = self._row_ids(words)
        vectors = np.zeros((len(words), self.dim), np.float32)  # (len(words), dim)
        with (
            open(self.path, "rb", buffering=0) as file,
            np.errstate(over="ignore", invalid="ignore"),
        ):  # `matrix` refuses
            for first in range(
                0, len(words), 500
            ):  # 500 words at a time: their rows take some 10 MB
                batch = row_ids[first : first + 500]
                table = self._read_rows(file, sorted({row for rows in batch for row in rows}))
                for total, rows in zip(vectors[first:], batch, strict=False):
                    for row in rows:
                        total += table[
                            row
                        ]  # one by one, as fastText does: float sums depend on their order
                    total *= np.float32(1 / max(1, len(rows)))
        kinds = [
            (_IN_DICTIONARY if ids[0] < self._words else _FROM_NGRAMS) if ids else _MISSING
            for ids in row_ids
        ]
        return vectors, np.array(kinds, np.int8)

    def _read_rows(self, file: BinaryIO, row_ids: list[int]) -> dict[int, np.ndarray]:
        """Row id -> float32[dim], for sorted ids: the disk is read in one direction, neighbouring
        rows in one go.
        """
        table = np.empty((len(row_ids), self.dim), "<f4")  # (len(row_ids), dim)
        starts = np.flatnonzero(np.diff(row_ids, prepend=-2) != 1).tolist()
        for start, end in zip(starts, [*starts[1:], len(row_ids)], strict=False):
            file.seek(self._table_start + 4 * self.dim * row_ids[start])
            run = table[start:end]
            self._check(
                file.readinto(run) == run.nbytes, "was cut short while it was read: load it again"
            )
        return dict(zip(row_ids, table, strict=True))


class TextVectors(WordVectors):
    """Words and vectors in memory: what `load_vectors` keeps of a .vec file. No other word can be
    built.
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray):
        """words: n different ones. vectors: float32[n, dim]."""
        self.dim = vectors.shape[1]
        self._vectors, self._row_of = vectors, {word: i for i, word in enumerate(words) if word}

    def _lookup(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array([self._row_of.get(word, -1) for word in words], np.int64)  # (len(words),)
        vectors = np.zeros((len(words), self.dim), np.float32)  # (len(words), dim)
        vectors[ids >= 0] = self._vectors[ids[ids >= 0]]
        return vectors, np.where(ids >= 0, _IN_DICTIONARY, _MISSING).astype(np.int8)


def load_vectors(
    source: str | Path,
    limit: int = 400_000,
    *,
    words: Iterable[str] | None = None,
    timeout: float = 30.0,
) -> WordVectors:
    """Word vectors from a fastText .bin, from a .vec or .vec.gz, or from the http(s) address of a
    .vec or .vec.gz.

    A .bin is read on demand; it needs neither `limit` nor `words`. A text file has no index, so it
    is read here, once: its first `limit` rows, the most frequent words. All of them stay in memory
    (400,000 x 300 floats: 480 MB). With `words=tokenizer.words` only those do, and they are cached
    (see `cache_directory`), so that nothing is downloaded or unpacked a second time. A download is
    unpacked while it runs, and is never stored itself. timeout: seconds without an answer after
    which a download is given up.

    Raises FileNotFoundError for no such file, ConnectionError where a download fails or breaks off,
    ValueError for anything that is not a whole file of one of these formats, and OSError where the
    cache cannot be written.
    """
    source = str(source)
    if not _name(source).endswith((".bin", ".vec", ".vec.gz")):
        raise ValueError(
            f"{source}: its name ends in none of .bin, .vec and .vec.gz, the formats of fastText "
            "vectors"
        )
    if limit < 1:
        raise ValueError(f"limit={limit} leaves no rows to read: give 1 or more")
    if not _is_remote(source) and not Path(source).is_file():
        raise FileNotFoundError(
            f"no such file: {source}. Check the path, or make vectors with train_vectors(texts)"
        )
    if _name(source).endswith(".bin"):
        if _is_remote(source):
            raise ValueError(
                f"{source}: a .bin is not streamed. Download it and give its path, or stream the "
                ".vec.gz"
            )
        return FastTextBin(source)
    if words is None:
        return TextVectors(*_read_text(source, limit, None, timeout))
    row_of = {word: i for i, word in enumerate(dict.fromkeys(words))}

    def build(folder: Path) -> Path:
        found, vectors = _read_text(source, limit, row_of, timeout)
        table = np.full(
            (len(row_of), vectors.shape[1]), np.nan, np.float32
        )  # (len(words), dim), NaN: no vector
        table[[row_of[word] for word in found]] = vectors
        content = io.BytesIO()
        np.save(content, table)
        write_whole(folder / "rows.npy", content.getvalue())
        return folder / "rows.npy"

    stat = None if _is_remote(source) else Path(source).stat()
    identity = (
        [source] if stat is None else [str(Path(source).resolve()), stat.st_size, stat.st_mtime_ns]
    )
    table = np.load(_cached(json.dumps(["rows 1", identity, limit, list(row_of)]).encode(), build))
    found = ~np.isnan(table[:, 0])  # (len(words),)
    return TextVectors([word for word, i in row_of.items() if found[i]], table[found])


def _is_remote(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def _name(source: str) -> str:
    """The lower-case file name or address, without the query behind an address."""
    return (re.split("[?#]", source)[0] if _is_remote(source) else source).lower()


def _read_text(
    source: str, limit: int, wanted: Container[str] | None, timeout: float
) -> tuple[list[str], np.ndarray]:
    """The words of the first `limit` rows of a .vec, `wanted` ones only where given; their vectors,
    float32[n, dim].
    """
    words, numbers, seen = {}, array("f"), 0
    try:
        with _open_text(source, timeout) as lines:
            first = lines.readline(1000)
            if first.lstrip().startswith(b"<"):
                raise ValueError("it is a web page")
            if not first.endswith(b"\n"):
                raise EOFError("its first line does not end")
            if not re.fullmatch(rb"[1-9]\d* [1-9]\d*\s*", first):
                raise ValueError(
                    f"it starts with {first[:40]!r}, not with the numbers of rows and dimensions"
                )
            rows, dim = map(int, first.split())
            if dim > _WIDEST:
                raise ValueError(
                    f"its first line promises {dim:,} dimensions, more than any word vectors have"
                )
            # bytes of a row: what is compressed may unpack to a line without end
            longest = 4_000 + 40 * dim
            each = iter(lambda: lines.readline(longest), b"")
            bar = tqdm(
                each,
                "streaming vectors",
                min(rows, limit),
                unit=" rows",
                disable=not _is_remote(source),
            )
            for seen, line in enumerate(bar, start=1):
                if len(line) == longest:
                    raise ValueError(f"the row has {longest:,} bytes or more")
                word, *values = line.rstrip(b" \r\n").split(b" ")
                if seen > rows:
                    raise ValueError(f"its first line promises {rows:,} rows, and there are more")
                if len(values) != dim:
                    raise (ValueError if line.endswith(b"\n") else EOFError)(
                        f"{len(values)} numbers instead of {dim}"
                    )
                word = word.decode("utf-8", "surrogateescape")
                if word not in words and (wanted is None or word in wanted):
                    words[word] = None
                    numbers.extend(map(float, values))
                if seen == limit < rows:
                    break
        if seen < min(rows, limit):
            raise EOFError(f"its first line promises {rows:,} rows")
        vectors = np.frombuffer(numbers, np.float32).reshape(-1, dim)  # (len(words), dim)
        if not np.isfinite(vectors).all():
            raise ValueError("some numbers are NaN or infinite")
    except urllib.error.URLError as error:
        raise ConnectionError(
            f"cannot fetch {source} ({error}): check the address and the network"
        ) from error
    except (ValueError, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{source}, row {seen:,}: {error}. Check where it leads, or fetch another copy"
        ) from error
    except (EOFError, zlib.error, http.client.HTTPException, OSError) as error:
        broken = f"{source} breaks off after row {seen:,} ({error or type(error).__name__})"
        if _is_remote(source):
            raise ConnectionError(
                f"{broken}: try again, or download the file and give its path"
            ) from error
        raise ValueError(f"{broken}: download it again") from error
    return list(words), vectors


@contextmanager
def _open_text(source: str, timeout: float) -> Iterator[BinaryIO]:
    """The unpacked lines of a file or an address."""
    with (
        urllib.request.urlopen(source, timeout=timeout)
        if _is_remote(source)
        else open(source, "rb") as raw
    ):
        yield gzip.GzipFile(fileobj=raw) if _name(source).endswith(".gz") else raw
        if _is_remote(source) and not raw.read(1) and raw.length:
            raise EOFError(
                f"{raw.length:,} bytes are missing"
            )  # the last number may be cut, and still be a number


_TRAIN = """
import json, sys, fasttext
settings = json.loads(sys.argv[1])
settings |= {"model": "skipgram", "loss": "ns", "thread": 1, "label": " "}  # no labels
settings["verbose"] = 0
fasttext.train_unsupervised("text.txt", **settings).save_model("model.bin")
"""


def train_vectors(
    texts: Iterable[str],
    tokenizer: WordTokenizer | None = None,
    *,
    dim: int = 300,
    epochs: int = 3,
    window: int = 5,  # words to each side that are predicted
    negatives: int = 5,  # random words that each of them is told apart from
    learning_rate: float = 0.05,
    min_count: int = 1,  # rarer words are left out
    bucket: int = 20_000,  # rows that all n-grams share
    minn: int = 3,  # shortest and longest n-gram; maxn=0: none, so unseen words have no vector
    maxn: int = 6,
) -> FastTextBin:
    """Skip-gram fastText vectors of the words of `texts`, split as `tokenizer` splits
    (`WordTokenizer([])` by default).

    The same texts and settings give the same bytes: one thread, in a process of its own whose
    memory starts as zeros, because the package sets a tenth of its table and leaves the rest as it
    finds it. The whole model is cached (see `cache_directory`), since unseen words are built from
    it: 4 * dim * (2 * words + bucket) bytes.

    Raises ValueError where the texts have no words, ImportError where fastText is missing,
    RuntimeError where it fails, OSError where the cache cannot be written.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one string: give a list of texts, one string for each story")
    texts, tokenizer = list(texts), tokenizer or WordTokenizer([])
    settings = {"dim": dim, "epoch": epochs, "ws": window, "neg": negatives, "lr": learning_rate}
    settings |= {"minCount": min_count, "bucket": bucket if maxn else 0, "minn": minn, "maxn": maxn}

    def build(folder: Path) -> Path:
        lines = [" ".join(tokenizer.split(text)) for text in texts]
        if not any(map(str.strip, lines)):
            raise ValueError("no words to train vectors from: the texts are empty")
        write_whole(folder / "text.txt", "\n".join(lines) + "\n")
        # glibc fills each new block with the complement of PERTURB, and asks the system for large
        # ones, which are zero.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not re.match("MALLOC_|GLIBC_", name)
        }
        environment |= {"MALLOC_PERTURB_": "255", "MALLOC_MMAP_THRESHOLD_": "65536"}
        command = [sys.executable, "-c", _TRAIN, json.dumps(settings)]
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace"
        )
        if run.returncode:
            raise RuntimeError(
                f"fastText failed (exit {run.returncode}) with {settings}: "
                f"{run.stderr.strip()[-500:]}"
            )
        try:
            FastTextBin(folder / "model.bin")
        except (ValueError, FileNotFoundError) as error:  # fastText itself does not notice
            raise OSError(
                f"fastText could not write all of its vectors into {cache_directory()}: make room "
                "on the disk, or name another folder in CACHE_DIR, then try again"
            ) from error
        return folder / "model.bin"

    key = hashlib.sha256(
        json.dumps([_TRAIN, _fasttext_version(), settings, tokenizer.keep_punctuation]).encode()
    )
    key.update(Path(tokenizer_module.__file__).read_bytes())  # how texts are split
    for text in texts:
        key.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return FastTextBin(_cached(key.digest(), build))


def _fasttext_version() -> str:
    for name in (
        "fasttext-numpy2",
        "fasttext",
        "fasttext-community",
    ):  # each is imported as fasttext
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ImportError(
        "fastText is missing, and training vectors needs it: pip install fasttext-numpy2"
    )


def cache_directory() -> Path:
    """Where trained and streamed vectors are kept: $CACHE_DIR, or .cache/vectors in the repository.
    May be deleted.
    """
    return Path(os.environ.get("CACHE_DIR") or Path(__file__).parents[1] / ".cache" / "vectors")


def _cached(key: bytes, build: Callable[[Path], Path]) -> Path:
    """The file that `build(folder)` makes, built unless the cache has it. key: everything that
    determines its content.

    Its name holds the hashes of the key and of the content. It gets this name in one step, when it
    is whole: neither two processes at once nor one that dies can leave half a file. A file that no
    longer has its hash is built again.
    """
    directory = cache_directory()
    stem = hashlib.sha256(key).hexdigest()[:16]
    for path in sorted(directory.glob(f"{stem}-*")):
        with suppress(FileNotFoundError):  # another process has found the damage
            if path.name == f"{stem}-{_file_hash(path)}{path.suffix}":
                return path
            print(
                f"{path} is damaged: its content no longer has the hash in its name. It is built "
                "again."
            )
            path.unlink()
    make_folder(directory)
    clear_left(directory / stem, hours=24)  # no training takes as long
    partial = beside(directory / stem, "partial")
    make_folder(partial)
    try:
        built = build(partial)
        path = directory / f"{stem}-{_file_hash(built)}{built.suffix}"
        with open(built, "rb") as file:
            os.fsync(file.fileno())  # all of it is on the disk before it has its name
        built.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
