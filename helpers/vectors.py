"""fastText word vectors: train, read, stream and cache them; a tokenizer's embedding matrix."""

import gzip
import hashlib
import http.client
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import urllib.request
import zlib
from array import array
from collections.abc import Container, Iterable, Sequence
from itertools import compress
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from helpers.fasttext_bin import IN_DICTIONARY, MISSING, SIZES, FastTextBin, foreign_file
from helpers.support.checks import check, counts, require, texts_of
from helpers.support.files import cache_directory, cached, user_path, write_whole
from helpers.tokenizer import SPECIALS, SPLITTING, WordTokenizer

TRAINING = 1  # raise it when the same texts and settings would train other vectors


class WordVectors:
    """Vectors by word: `vectors[word]` is float32[dim], a KeyError if the word has none.

    `word in vectors` tells beforehand. The empty word has no vector. Case matters to the files,
    and a tokenizer's words are lower-case. A subclass has `dim`, and `lookup(words)` as
    `FastTextBin` has it.
    """

    def __getitem__(self, word: str) -> np.ndarray:
        vectors, kinds = self.lookup([word])
        require(
            kinds[0] != MISSING,
            f"no vector for {word!r}: it was not read, nor can it be built",
            KeyError,
        )
        return vectors[0]

    def __contains__(self, word: str) -> bool:
        return bool(self.lookup([word])[1][0] != MISSING)

    def coverage(self, tokenizer: WordTokenizer) -> tuple[int, ...]:
        """How many of a tokenizer's words are in the dictionary, built from n-grams, or missing."""
        _, kinds = self.lookup(tokenizer.words)  # (len(words),)
        return tuple(np.bincount(kinds, minlength=3).tolist()[::-1])

    def matrix(
        self, tokenizer: WordTokenizer, rows: int | None = None, seed: int = 0
    ) -> np.ndarray:
        """The embedding of a tokenizer: row i is the vector of `tokenizer.word(i)`.

        `<pad>` is zero, and so is each row past the vocabulary. The other special tokens and the
        words without a vector are drawn from a normal distribution of mean zero and the standard
        deviation of the vectors that were found.

        Args:
            tokenizer: whose words.
            rows: how many; None means len(tokenizer).
            seed: of the rows that are drawn.

        Returns:
            float32[rows, dim].

        Raises:
            ValueError: if rows is too small, no word has a vector, or a number is NaN or beyond a
                million.
        """
        rows = len(tokenizer) if rows is None else rows
        require(
            rows >= len(tokenizer),
            f"a vocabulary larger than the table: {len(tokenizer):,} tokens, {rows:,} rows. "
            "Ask for more rows, or train the tokenizer with a smaller vocab_size",
        )
        vectors, kinds = self.lookup(tokenizer.words)  # (len(words), dim), (len(words),)
        found = kinds != MISSING
        require(
            found.any(),
            f"none of the tokenizer's {len(found):,} words has a vector: train it on texts, and "
            "use vectors for this language",
        )
        # Real ones are below 100, and NaN is not below anything.
        require(
            (np.abs(vectors) < 1e6).all(),
            "some vectors hold NaN or numbers beyond a million: download or train the file again",
        )
        drawn = np.flatnonzero(np.concatenate([[False, True, True, True], ~found]))  # (drawn,)
        matrix = np.zeros((rows, self.dim), np.float32)  # (rows, dim)
        matrix[len(SPECIALS) : len(tokenizer)] = vectors
        matrix[drawn] = np.random.default_rng(seed).normal(
            0, vectors[found].std(), (len(drawn), self.dim)
        )
        return matrix


def neighbours(
    matrix: np.ndarray, words: Sequence[str], query: np.ndarray, k: int = 10
) -> list[tuple[str, float]]:
    """The k words whose vectors have the largest cosine to a query, best first, as (word, cosine).

    All words if they are fewer than k; none if there are no words, or k is 0.

    Args:
        matrix: (len(words), dim).
        words: one for each row.
        query: (dim,).
        k: how many.
    """
    lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(query)  # (len(words),)
    # A vector of zeros has cosine zero.
    cosines = matrix @ query / np.where(lengths == 0, 1, lengths)  # (len(words),)
    return [(words[i], float(cosines[i])) for i in np.argsort(-cosines, kind="stable")[:k]]


class BinVectors(FastTextBin, WordVectors):
    """The vectors of a fastText .bin on disk, for every word that can be built from it."""


class TextVectors(WordVectors):
    """Words and vectors in memory, as `load_vectors` keeps them of a .vec; no other word has one.

    words: n different ones. vectors: float32[n, dim].
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray):
        self.dim = vectors.shape[1]
        self._vectors, self._row_of = vectors, {word: i for i, word in enumerate(words) if word}

    def lookup(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array([self._row_of.get(word, -1) for word in words], np.int64)  # (len(words),)
        vectors = np.zeros((len(words), self.dim), np.float32)  # (len(words), dim)
        vectors[ids >= 0] = self._vectors[ids[ids >= 0]]
        return vectors, np.where(ids >= 0, IN_DICTIONARY, MISSING).astype(np.int8)


def load_vectors(
    source: str | Path,
    limit: int = 400_000,
    *,
    words: Iterable[str] | None = None,
    timeout: float = 30.0,
) -> WordVectors:
    """Word vectors from a fastText .bin, .vec or .vec.gz.

    A .bin is read on demand; it needs neither `limit` nor `words`. A text file has no index, so it
    is read here, once. A download is unpacked while it runs, and is never stored itself.

    Args:
        source: the file (~ is your home), or the http(s) address of a .vec or .vec.gz.
        limit: how many rows of a text file to read. The most frequent words come first. All of
            them stay in memory (400,000 × 300 floats: 480 MB).
        words: keep these alone, in a cache too (see `cache_directory`), so that nothing is
            downloaded or unpacked a second time.
        timeout: seconds without an answer after which a download is given up.

    Raises:
        FileNotFoundError: if there is no such file.
        ConnectionError: if a download fails or breaks off.
        ValueError: if it is not a whole file of one of these formats. The message says what it is
            instead, if that can be told.
        OSError: if the file cannot be opened or the cache cannot be written.
    """
    check(
        locals(),
        {
            "source": ("a path or an address", lambda source: isinstance(source, str | Path)),
            "limit": ("a whole number of at least 1", counts),
            "words": ("a list of words", lambda words: not isinstance(words, str | bytes), None),
        },
    )
    identity = [str(source)]
    if not _is_remote(source):
        source = user_path(source)
        require(
            source.is_file(),
            f"no such file: {source}{' (it is a folder)' * source.is_dir()}. Check the path, or "
            "make vectors with train_vectors(texts)",
            FileNotFoundError,
        )
        if source.suffix.lower() == ".bin":
            return BinVectors(source)
        identity = [str(source.resolve()), source.stat().st_size, source.stat().st_mtime_ns]
    if words is None:
        return _read_vec(source, limit, None, timeout)
    wanted = list(dict.fromkeys(words))

    def build(folder: Path) -> Path:
        # The empty word has no vector: its row tells the width if there are no others.
        vectors, kinds = _read_vec(source, limit, {*wanted}, timeout).lookup([*wanted, ""])
        vectors[kinds == MISSING] = np.nan
        write_whole(folder / "rows.f4", vectors.tobytes())
        return folder / "rows.f4"

    key = json.dumps(["rows 3", identity, limit, wanted]).encode()
    table = np.fromfile(cached(key, build), "f4").reshape(len(wanted) + 1, -1)[:-1]
    found = ~np.isnan(table[:, 0])  # (len(wanted),)
    return TextVectors(list(compress(wanted, found)), table[found])


def _is_remote(source: str | Path) -> bool:
    return str(source).lower().startswith(("http://", "https://"))


def _read_vec(
    source: str | Path, limit: int, wanted: Container[str] | None, timeout: float
) -> TextVectors:
    """The words of the first `limit` rows of a .vec or .vec.gz, or the `wanted` of them."""
    remote, words, numbers, row = _is_remote(source), {}, array("f"), 0
    # An address may have a query at its end.
    name = (re.split("[?#]", source)[0] if remote else source.name).lower()
    try:
        require(name.endswith((".vec", ".vec.gz")), "no .vec or .vec.gz; a .bin must be on disk")
        with (
            urllib.request.urlopen(source, timeout=timeout) if remote else open(source, "rb") as raw
        ):
            lines = gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw
            line = lines.readline(1_000)
            require(
                SIZES.fullmatch(line),
                f"it starts with {line[:40]!r}, not with its numbers of rows and dimensions",
                ValueError if line.endswith(b"\n") else EOFError,
            )
            rows, dim = map(int, line.split())
            longest = 4_000 + 40 * dim  # bytes: a row may be compressed, and unpack to no end
            bar = {"desc": "streaming vectors", "unit": " rows", "disable": not remote}
            for row in tqdm(range(1, min(rows, limit) + 1), **bar):
                line = lines.readline(longest)
                require(line, f"it has {row - 1:,} rows and promises {rows:,}", EOFError)
                require(len(line) < longest, f"the row has {longest:,} bytes or more")
                word, *values = line.rstrip(b" \r\n").split(b" ")
                require(
                    len(values) == dim,
                    f"{len(values)} numbers instead of {dim}",
                    ValueError if line.endswith(b"\n") else EOFError,
                )
                word = word.decode("utf-8", "surrogateescape")
                if word not in words and (wanted is None or word in wanted):
                    words[word] = None
                    numbers.extend(map(float, values))
            if rows <= limit:
                require(not lines.read(1), f"it promises {rows:,} rows, and there are more")
                # Or the last number could be cut, and still be a number.
                require(not (remote and raw.length), "the last bytes are missing", EOFError)
        vectors = np.frombuffer(numbers, np.float32).reshape(-1, dim)  # (len(words), dim)
        require(np.isfinite(vectors).all(), "some numbers are NaN or infinite")
    except (ValueError, EOFError, zlib.error, http.client.HTTPException, OSError) as error:
        foreign = None if remote else foreign_file(source)
        broken_off = remote and not isinstance(error, (ValueError, gzip.BadGzipFile))
        advice = "Check the path or address, try again, or fetch another copy"
        raise (ConnectionError if broken_off else ValueError)(
            f"{source} is {foreign}" if foreign else f"{source}, row {row:,}: {error}. {advice}"
        ) from error
    return TextVectors(list(words), vectors)


_PROGRAM = """
import json, sys, fasttext
settings = json.loads(sys.argv[1])
settings |= {"model": "skipgram", "loss": "ns", "thread": 1, "verbose": 0}
settings["label"] = " "  # no word is one
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
) -> BinVectors:
    """Skip-gram fastText vectors of the words of `texts`.

    The same texts and settings give the same bytes: one thread, in a process of its own whose
    memory starts as zeros, because the package sets a tenth of its table and leaves the rest as
    it finds it. The whole model is cached (see `cache_directory`), because unseen words are built
    from it: 4 · dim · (2 · words + bucket) bytes.

    Args:
        texts: one string for each story.
        tokenizer: how they are split; None means `WordTokenizer([])`.

    Raises:
        ValueError: if the texts have no words.
        ImportError: if fastText is missing.
        RuntimeError: if it fails.
        OSError: if the cache cannot be written.
    """
    texts, tokenizer = texts_of(texts), tokenizer or WordTokenizer([])
    settings = {"dim": dim, "epoch": epochs, "ws": window, "neg": negatives, "lr": learning_rate}
    settings |= {"minCount": min_count, "bucket": bucket if maxn else 0, "minn": minn, "maxn": maxn}

    def build(folder: Path) -> Path:
        lines = [" ".join(tokenizer.split(text)) for text in texts]
        require(any(map(str.strip, lines)), "no words to train vectors from: the texts are empty")
        write_whole(folder / "text.txt", "\n".join(lines) + "\n")
        _run_fasttext(folder, settings)
        return folder / "model.bin"

    packages = importlib.metadata.packages_distributions().get("fasttext")
    require(
        packages,
        "training vectors needs a package that is missing: pip install fasttext-numpy2",
        ImportError,
    )
    how = [*map(importlib.metadata.version, packages), TRAINING, SPLITTING, settings]
    key = hashlib.sha256(json.dumps([*how, tokenizer.keep_punctuation]).encode())
    for text in texts:
        key.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return BinVectors(cached(key.digest(), build))


def _run_fasttext(folder: Path, settings: dict) -> None:
    """text.txt -> model.bin, in a process whose memory starts as zeros."""
    # glibc fills each new block with the complement of PERTURB, and maps large ones, which are 0.
    ours = {"MALLOC_PERTURB_": "255", "MALLOC_MMAP_THRESHOLD_": "65536"}
    others = {k: v for k, v in os.environ.items() if not re.match("MALLOC_|GLIBC_", k)}
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(settings)],
        cwd=folder,
        env=others | ours,
        capture_output=True,
        text=True,
        errors="replace",
    )
    require(
        run.returncode == 0,
        f"fastText failed (exit {run.returncode}) with {settings}: {run.stderr[-500:]}",
        RuntimeError,
    )
    try:
        FastTextBin(folder / "model.bin")
    except (ValueError, FileNotFoundError) as error:  # fastText itself does not notice
        raise OSError(
            f"fastText could not write all of its vectors into {cache_directory()}: make room on "
            "the disk, or name another folder in CACHE_DIR, then try again"
        ) from error
