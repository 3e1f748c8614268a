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
from helpers.support.files import kind_of_file, user_path

MISSING, FROM_NGRAMS, IN_DICTIONARY = range(3)  # where a vector comes from
SIZES = re.compile(rb"[1-9]\d* [1-9]\d{0,3}\s*")  # the first line of a .vec: rows, dimensions
_MAGIC = struct.pack("<i", 793712314)
_BROKEN = "is cut short or damaged: download or train it again"


def foreign_file(path: Path) -> str | None:
    """What a file is that is not what its name says, and what to do: the end of "<path> is ...".

    None if it is what its name says: then it must be damaged.
    """
    with open(path, "rb") as file:
        first, sample = file.readline(100_000), file.read(4_000)
    kind, sizes = kind_of_file(path) or "", SIZES.fullmatch(first)
    # Whether it is one, how its name should end, what it is and what to do; the first that fits.
    kinds = (
        (not first, (), "empty: see whether the download failed"),
        (first.startswith(_MAGIC), (".bin",), "a fastText .bin: name it .bin"),
        (
            sizes and re.search(rb"[\0-\x08\x0e-\x1f]", sample),
            (),
            "in word2vec's binary format: make it text with gensim, KeyedVectors."
            f"load_word2vec_format({path.name!r}, binary=True).save_word2vec_format('x.vec')",
        ),
        (sizes, (".vec",), "text that is not compressed: name it .vec"),
        (
            re.fullmatch(rb"\S+( -?\d+(\.\d+)?(e-?\d+)?){5,}\s*", first),
            (),
            "text without a first line of sizes, as GloVe's is: put the line "
            f"'<number of rows> {len(first.split()) - 1}' in front and name it .vec",
        ),
        ("gzip" in kind, (".vec.gz",), f"{kind}: unpack it, or name it .vec.gz if it holds a .vec"),
        (
            "zip" in kind and b"/data.pkl" in first + sample,
            (),
            "a PyTorch file: give a fastText .bin, .vec or .vec.gz",
        ),
        (re.search("compressed|archive", kind), (), f"{kind}: unpack it if it holds vectors"),
        ("UTF" in kind, (), f"{kind}: save it as UTF-8"),
        (kind, (), f"{kind}: give a fastText .bin, .vec or .vec.gz"),
        (True, (), f"no fastText .bin, .vec or .vec.gz, it starts with {first[:30]!r}: give one"),
    )
    endings, words = next((endings, words) for fits, endings, words in kinds if fits)
    return None if path.name.lower().endswith(endings) else f"{words}, or fetch another copy"


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

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is cut short, damaged, pruned, quantised, of a newer format or not a .bin.
    """

    def __init__(self, path: str | Path):
        self.path = user_path(path)
        try:
            with open(self.path, "rb") as file:
                self._read_frame(file, self.path.stat().st_size)
        except struct.error:  # too few bytes
            self._refuse_unless(False, _BROKEN)

    def _refuse_unless(self, condition: object, problem: str) -> None:
        require(condition, f"{self.path} {problem}")

    def _read_frame(self, file: BinaryIO, file_size: int) -> None:
        """Everything but the two tables of numbers."""
        check, so = self._refuse_unless, "so not exact: use the .bin from before quantising"
        header = file.read(92)
        if not header.startswith(_MAGIC):
            check(False, f"is {foreign_file(self.path) or 'no .bin: use load_vectors'}")
        # Left out: the magic number; six settings; another and t; the numbers of labels and tokens.
        raw = struct.unpack("<4x2i24x4i12x2i12xq", header)
        version, self.dim, model, self.bucket, self.minn, self.maxn, size, self._words, pruned = raw
        check(version <= 12, f"has format {version}, newer than 12: this reader is too old for it")
        check(pruned < 0, f"is pruned, {so}")
        if version == 11 and model == 3:
            self.maxn = 0  # supervised models of that time had no character n-grams
        check(0 <= self._words <= size and self.dim > 0 and self.bucket >= (self.maxn > 0), _BROKEN)
        self._blocks = list(self._read_dictionary(file, size))
        quantised, *shape = struct.unpack("<B2q", file.read(17))
        check(quantised != 1, f"is quantised, {so}")
        self._table_start = file.tell()
        end = self._table_start + 4 * shape[0] * shape[1]
        check(
            (quantised, *shape) == (0, self._words + self.bucket, self.dim) and end < file_size,
            _BROKEN,
        )
        file.seek(end)
        _, *shape = struct.unpack("<B2q", file.read(17))
        check(min(shape) >= 0 and file.tell() + 4 * shape[0] * shape[1] <= file_size, _BROKEN)

    def _read_dictionary(self, file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield (id of the first word, words joined by zero bytes), and stop after the last entry.

        A million bytes at a time: two million words as Python objects would fill 100 MB.
        """
        seen, data = 0, b""
        while seen < size:
            chunk = file.read(1 << 20)
            data += chunk
            # Up to the last zero byte with a count and a type after it; the rest waits.
            whole = data.rfind(b"\0", 0, max(0, len(data) - 9)) + 10
            # A word, then its count (int64) and its type (int8).
            entries = re.findall(rb"(?s)([^\0]*)\0.{9}", data[:whole])[: size - seen]
            self._refuse_unless(entries or (chunk and len(data) < 1 << 22), _BROKEN)
            yield seen, b"\0".join(entries)
            seen += len(entries)
            data = data[sum(map(len, entries)) + 10 * len(entries) :]
        file.seek(file.tell() - len(data))

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

    def lookup(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """float32[len(words), dim], zero if missing, and int8[len(words)]: where each comes from.

        The second holds MISSING, FROM_NGRAMS or IN_DICTIONARY.
        """
        encoded = [word.encode("utf-8", "surrogatepass") for word in words]
        wanted = set(encoded) - {b""}
        own = {
            word: i
            for first, block in self._blocks
            for i, word in enumerate(block.split(b"\0"), first)
            if word in wanted and i < self._words  # labels come after the words
        }
        vectors = np.zeros((len(words), self.dim), np.float32)  # (len(words), dim)
        kinds = np.full(len(words), MISSING, np.int8)  # (len(words),)
        # `WordVectors.matrix` refuses numbers that are not finite.
        with open(self.path, "rb", buffering=0) as file, np.errstate(all="ignore"):
            for i, (word, key, total) in enumerate(zip(words, encoded, vectors, strict=True)):
                rows = [own[key]] if key in own else []
                rows += [
                    self._words + fnv1a(gram.encode("utf-8", "surrogatepass")) % self.bucket
                    for gram in self.subwords(word)
                ]
                # One by one, as fastText does: float sums depend on their order.
                for row in rows:
                    total += self._read_row(file, row)
                total *= np.float32(1 / max(1, len(rows)))
                kinds[i] = IN_DICTIONARY if key in own else FROM_NGRAMS if rows else MISSING
        return vectors, kinds

    def _read_row(self, file: BinaryIO, row: int) -> np.ndarray:
        file.seek(self._table_start + 4 * self.dim * row)
        numbers = file.read(4 * self.dim)
        self._refuse_unless(
            len(numbers) == 4 * self.dim, "was cut short while it was read: load it again"
        )
        return np.frombuffer(numbers, "<f4")  # (dim,)
