"""The reader of fastText's binary files, bit for bit as the package reads them, in little memory.

fastText gives each word the mean of several vectors: its own, and one for each of its character
n-grams, which are hashed into a fixed number of buckets. A word that was never seen still has
n-grams, and therefore a vector. Bojanowski et al. 2017, "Enriching Word Vectors with Subword
Information", section 3.2.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from helpers.support.checks import require

MISSING, FROM_NGRAMS, IN_DICTIONARY = range(3)  # where a vector comes from
_FETCH_AGAIN = "download or train it again"


def fnv1a(data: bytes) -> int:
    """fastText's 32-bit FNV-1a hash: bytes of 0x80 and above are sign-extended before the XOR."""
    value = 2166136261
    for byte in data:
        value = (value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619 & 0xFFFFFFFF
    return value


class FastTextBin:
    """A fastText .bin on disk, of which only the rows that are asked for are read.

    The vectors equal the package's `get_word_vector`, bit for bit. Only the words themselves stay
    in memory (20 MB for two million). A look-up goes through all of them (0.2 s for two million),
    so ask for many words at once.

    Raises ValueError if the file is cut short, pruned, quantised, of a newer format or not a .bin.
    """

    _MAGIC, _SUPERVISED = 793712314, 3
    # magic, version; 12 settings, t; size, words, labels, tokens, pruned
    _HEADER = struct.Struct("<2i12id3i2q")
    # A word, then its count (int64) and its type (int8).
    _ENTRY = re.compile(rb"([^\0]*)\0.{9}", re.DOTALL)

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._size = self.path.stat().st_size
        try:
            with open(self.path, "rb") as file:
                self._read_frame(file)
        except struct.error:
            self._refuse_unless(False, f"is cut short: {_FETCH_AGAIN}")

    def _refuse_unless(self, condition: object, problem: str) -> None:
        require(condition, f"{self.path} {problem}")

    def _read_frame(self, file: BinaryIO) -> None:
        """Everything but the two tables of numbers."""
        check, damaged = self._refuse_unless, f"is damaged, its parts disagree: {_FETCH_AGAIN}"
        cut_short = f"is cut short: {_FETCH_AGAIN}"
        unquantised = "its vectors are not exact: use the .bin from before quantising"
        header = file.read(self._HEADER.size)
        check(
            header[:4] == struct.pack("<i", self._MAGIC), "is no fastText .bin: download it again"
        )
        fields = self._HEADER.unpack(header)
        (version, self.dim), (model, self.bucket, self.minn, self.maxn) = fields[1:3], fields[9:13]
        size, self._words, pruned = fields[15], fields[16], fields[19]
        check(version <= 12, f"has format {version}, newer than 12: this reader is too old for it")
        check(pruned < 0, f"is pruned, {unquantised}")
        if version == 11 and model == self._SUPERVISED:
            self.maxn = 0  # such models had no character n-grams
        shape = (self._words + self.bucket, self.dim)
        check(
            0 <= self._words <= size and self.dim > 0 and self.bucket >= (self.maxn > 0),
            f"is damaged, its header makes no sense: {_FETCH_AGAIN}",
        )
        check(10 * size < self._size, cut_short)
        self._blocks = list(self._read_dictionary(file, size))
        quantised, *found = struct.unpack("<B2q", file.read(17))
        check(quantised != 1, f"is quantised, {unquantised}")
        check((quantised, *found) == (0, *shape), damaged)
        self._table_start = file.tell()
        end = self._table_start + 4 * shape[0] * shape[1]
        check(end < self._size, cut_short)
        file.seek(end)
        _, *found = struct.unpack("<B2q", file.read(17))
        check(min(found) >= 0, damaged)
        check(file.tell() + 4 * found[0] * found[1] <= self._size, cut_short)

    def _read_dictionary(self, file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield (id of the first word, words joined by zero bytes), and stop after the last entry.

        A million bytes at a time: two million words as Python objects would fill 100 MB. Words
        come before labels.
        """
        start, seen, data = file.tell(), 0, b""
        while seen < size:
            chunk = file.read(1 << 20)
            data += chunk
            # Up to the last zero byte with a count and a type after it; the rest waits.
            whole = data.rfind(b"\0", 0, max(0, len(data) - 9)) + 10
            entries = self._ENTRY.findall(data[:whole])[: size - seen]
            self._refuse_unless(
                entries or (chunk and len(data) < 1 << 22),
                f"is damaged, a word does not end: {_FETCH_AGAIN}",
            )
            if words := entries[: max(0, self._words - seen)]:
                yield seen, b"\0".join(words)
            used = sum(map(len, entries)) + 10 * len(entries)
            start, seen, data = start + used, seen + len(entries), data[used:]
        file.seek(start)

    def subwords(self, word: str) -> list[str]:
        """The word's character n-grams, by start and then by length, with `<` and `>` around it."""
        if word in ("", "</s>"):  # </s>, the end of a line in the training text, has no n-grams
            return []
        marked = f"<{word}>"
        return [
            marked[start : start + n]
            for start in range(len(marked))
            for n in range(max(1, self.minn), min(self.maxn, len(marked) - start) + 1)
            if n > 1 or 0 < start < len(marked) - 1
        ]

    def _row_ids(self, words: Sequence[str]) -> list[list[int]]:
        """For each word the rows whose mean is its vector: its own first, then its n-grams'."""
        encoded = [word.encode("utf-8", "surrogatepass") for word in words]
        wanted, ids = set(encoded) - {b""}, {}
        for first, block in self._blocks:
            ids.update(
                (word, i) for i, word in enumerate(block.split(b"\0"), first) if word in wanted
            )
        rows = [[ids[word]] if word in ids else [] for word in encoded]
        for word, own in zip(words, rows, strict=True):
            own += [
                self._words + fnv1a(gram) % self.bucket
                for gram in (gram.encode("utf-8", "surrogatepass") for gram in self.subwords(word))
            ]
        return rows

    def lookup(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """float32[len(words), dim], zero if missing, and int8[len(words)]: where each comes from.

        The second holds MISSING, FROM_NGRAMS or IN_DICTIONARY.
        """
        row_ids = self._row_ids(words)
        vectors = np.zeros((len(words), self.dim), np.float32)  # (len(words), dim)
        ignore = np.errstate(over="ignore", invalid="ignore")  # `WordVectors.matrix` refuses
        with open(self.path, "rb", buffering=0) as file, ignore:
            # 500 words at a time: their rows take some 10 MB.
            for first in range(0, len(words), 500):
                batch = row_ids[first : first + 500]
                table = self._read_rows(file, sorted({row for rows in batch for row in rows}))
                for total, rows in zip(vectors[first:], batch, strict=False):
                    # One by one, as fastText does: float sums depend on their order.
                    for row in rows:
                        total += table[row]
                    total *= np.float32(1 / max(1, len(rows)))
        kinds = [
            (IN_DICTIONARY if ids[0] < self._words else FROM_NGRAMS) if ids else MISSING
            for ids in row_ids
        ]
        return vectors, np.array(kinds, np.int8)  # (len(words), dim), (len(words),)

    def _read_rows(self, file: BinaryIO, row_ids: list[int]) -> dict[int, np.ndarray]:
        """Row id -> float32[dim], for sorted ids; neighbouring rows are read in one go."""
        table = np.empty((len(row_ids), self.dim), "<f4")  # (len(row_ids), dim)
        starts = np.flatnonzero(np.diff(row_ids, prepend=-2) != 1).tolist()
        for start, end in zip(starts, [*starts[1:], len(row_ids)], strict=False):
            file.seek(self._table_start + 4 * self.dim * row_ids[start])
            run = table[start:end]
            self._refuse_unless(
                file.readinto(run) == run.nbytes, "was cut short while it was read: load it again"
            )
        return dict(zip(row_ids, table, strict=True))
