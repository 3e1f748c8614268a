"""Where stories come from: the bundled grammar, TinyStories, or a file or folder of your own."""

import functools
import glob
import hashlib
import mmap
import os
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.grammar import bundled_grammar
from helpers.support.checks import check, counts, require
from helpers.support.files import raise_if_full_or_locked
from helpers.support.hub import first_texts

# Eldan & Li 2023, "TinyStories: How Small Can Language Models Be".
HUB_NAME = "roneneldan/TinyStories"
SEPARATOR = b"<|endoftext|>"  # stands between the stories of a .txt file
CORPORA = ("bundled", "tinystories")  # those with a name; every other corpus is a path
EXTENSIONS = (".txt", ".parquet", ".jsonl")

_MARK = re.compile(rb"[!-~]")  # something that is not white space, told without decoding
_ACCEPTED = (
    "give 'bundled', 'tinystories' (from the Hugging Face Hub), a .txt, .parquet or .jsonl file, "
    "or a folder that holds train.* and validation.*"
)


@dataclass(frozen=True)
class Stories:
    """A corpus in two splits that share no story.

    The bundled stories come with exact probabilities. For each story, a float64 array (words + 1,)
    holds the -log p, in nats, of each word that `WordTokenizer.split` gives, and last of `<eos>`,
    given all words before it. Nobody knows the probabilities of other corpora: there it is None.
    """

    name: str  # of the corpus, and of its folders
    train: Sequence[str]  # to learn from
    validation: Sequence[str]  # to evaluate on
    train_nats: Sequence[np.ndarray] | None = None
    validation_nats: Sequence[np.ndarray] | None = None


def load_stories(
    source: str | Path = "bundled", train: int = 10_000, validation: int = 1_000
) -> Stories:
    """Stories of a corpus, in its own order, without those of white space alone.

    Args:
        source: "bundled" (told by our grammar, the same on every machine), "tinystories"
            (streamed from the Hub once, then kept on disk), a folder that holds train.* and
            validation.*, or one file, whose last `validation` stories are held out. Files are
            .txt (stories separated by `<|endoftext|>`), .parquet or .jsonl (column `text`). All
            are read lazily.
        train: how many stories to train on, at most.
        validation: how many stories to evaluate on, at most.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ConnectionError: if the Hub cannot be reached or falls silent.
        ValueError: if a count is below 1, a file is empty or not what its extension says, or both
            splits share a story.
        OSError: if the cache of `datasets` cannot be written.
    """
    check(locals(), {"train validation": ("a whole number of at least 1", counts)})
    if source == "bundled":
        return _bundled(train, validation)
    if source == "tinystories":
        return _from_hub(train, validation)
    path = Path(source)
    require(
        path.exists(),
        f"there is no corpus and no file or folder called {str(source)!r}: {_ACCEPTED}",
        FileNotFoundError,
    )
    return _from_disk(path, train, validation)


def corpus_name(corpus: str | Path) -> str:
    """The name of a corpus and of its folders: for a path, its last part without the extension.

    Raises ValueError if a path would take the folder of the bundled corpus.
    """
    if corpus in CORPORA:
        return str(corpus)
    path = Path(corpus).resolve()
    name = path.stem if path.suffix in EXTENSIONS else path.name
    require(
        name not in ("", "bundled"),
        f"{str(corpus)!r} gives the name {name!r}, which is taken: rename the file or folder",
    )
    return name


class _Lazy(Sequence):
    """A sequence whose items are made when asked for; a slice of it is another one."""

    def __init__(self, rows: Sequence[int], read: Callable[[int], object]):
        self._rows, self._read = rows, read

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return _Lazy(self._rows[index], self._read)
        return self._read(int(self._rows[index]))


def _bundled(train: int, validation: int) -> Stories:
    def split(name: str, count: int) -> tuple[_Lazy, _Lazy]:
        tell = functools.cache(lambda i: bundled_grammar().story(f"{name}-{i}"))
        return _Lazy(range(count), lambda i: tell(i)[0]), _Lazy(range(count), lambda i: tell(i)[1])

    texts, nats = split("train", train)
    held_out, held_out_nats = split("validation", validation)
    return Stories("bundled", texts, held_out, nats, held_out_nats)


def _from_hub(train: int, validation: int) -> Stories:
    """TinyStories, without the training stories that validation holds too: nobody edits the Hub."""
    held_out = _hub_split("validation", validation)
    texts = _hub_split("train", train)
    shared = {row for row, _ in _shared(texts, held_out)}
    if shared:
        print(f"{len(shared)} training stories are left out: the validation split holds them too")
        texts = _Lazy([row for row in range(len(texts)) if row not in shared], texts.__getitem__)
    return Stories("tinystories", texts, held_out)


def _hub_split(split: str, count: int) -> _Lazy:
    """The first `count` stories of a split, from the cache of `datasets` or streamed into it."""
    import datasets  # heavy, and needed by few corpora

    # One try: the client below it has tried a silent server for more than a minute by then.
    datasets.config.STREAMING_READ_MAX_RETRIES = 1
    # All of this is part of the cache's key, the loading function too.
    wanted = {"load": datasets.load_dataset, "name": HUB_NAME, "split": split, "count": count}
    try:
        table = datasets.Dataset.from_generator(first_texts, gen_kwargs=wanted, split=split)
    except Exception as error:
        raise_if_full_or_locked(error, datasets.config.HF_DATASETS_CACHE)
        cause = error.__cause__ or error
        raise ConnectionError(
            f"TinyStories did not come from the Hugging Face Hub ({type(cause).__name__}: "
            f"{cause}). Connect to the network, unset HF_HUB_OFFLINE and try again; offline, use "
            "load_stories('bundled'), or give the path of a folder that holds train.txt and "
            "validation.txt"
        ) from error
    return _column(table, f"{HUB_NAME}, split {split}")


def _from_disk(path: Path, train: int, validation: int) -> Stories:
    """A folder's two files, or one file of which the last stories are held out."""
    name = corpus_name(path)
    if path.is_dir():
        texts = _read(_split_file(path, "train"))[:train]
        held_out = _read(_split_file(path, "validation"))[:validation]
    else:
        partner = {"train": "validation", "validation": "train"}.get(path.stem)
        require(
            not any(partner and path.with_name(partner + end).exists() for end in EXTENSIONS),
            f"{path} is one split of a corpus: give the folder {path.parent}, so that the splits "
            "stay apart",
        )
        stories = _read(path)
        require(
            len(stories) > validation,
            f"{path} holds {len(stories)} stories, of which the last {validation} are held out for "
            "validation, which leaves none for training: ask for less with load_stories(..., "
            "validation=...)",
        )
        texts, held_out = stories[:-validation][:train], stories[-validation:]
    if shared := _shared(texts, held_out):
        raise ValueError(
            f"{path}: {len(shared)} training stories are in the validation split too (first: "
            f"training story {shared[0][0]} is validation story {shared[0][1]}, counted from 0). "
            "Validation would test memory: remove them from one"
        )
    return Stories(name, texts, held_out)


def _split_file(folder: Path, split: str) -> Path:
    names = [split + extension for extension in EXTENSIONS]
    found = [name for name in names if (folder / name).exists()]
    require(
        len(found) == 1,
        f"{folder} holds {' and '.join(found) or f'no {split} split'}: it needs exactly one of "
        f"{', '.join(names)}",
    )
    return folder / found[0]


def _shared(train: Sequence[str], validation: Sequence[str]) -> list[tuple[int, int]]:
    """(training row, validation row) of each story that both hold, outer white space aside."""

    def digest(text: str) -> bytes:  # 16 bytes stand for a story: millions of them fit into memory
        return hashlib.blake2b(text.strip().encode(), digest_size=16).digest()

    row_of = {digest(text): row for row, text in enumerate(validation)}
    return [
        (row, row_of[key])
        for row, key in enumerate(digest(text) for text in train)
        if key in row_of
    ]


def _read(path: Path) -> _Lazy:
    """All stories of a file, lazily. Raises ValueError if it is empty or of another kind."""
    require(path.suffix in EXTENSIONS, f"{path} has an unknown extension: {_ACCEPTED}")
    with path.open("rb") as file:
        require(file.read(1), f"{path} is empty: {_ACCEPTED}")
    return _read_txt(path) if path.suffix == ".txt" else _read_table(path)


def _read_txt(path: Path) -> _Lazy:
    """A .txt file is mapped, not read: what stays in memory is where each story begins and ends."""
    path, bounds = path.resolve(), array("q")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        loaded = os.fstat(file.fileno())
        start = 3 if content[:3] == b"\xef\xbb\xbf" else 0  # a byte-order mark
        while start < len(content):
            end = content.find(SEPARATOR, start)
            end = len(content) if end < 0 else end
            if (
                _MARK.search(content, start, end)
                or content[start:end].decode("utf-8", "replace").strip()
            ):
                bounds.extend((start, end))
            start = end + len(SEPARATOR)
    spans = np.array(bounds, dtype=np.int64).reshape(-1, 2)  # (stories, 2)
    require(len(spans), f"{path} holds white space only: {_ACCEPTED}")

    def read(row: int) -> str:
        start, end = spans[row]
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) != (loaded.st_size, loaded.st_mtime_ns):
                raise ValueError(f"{path} was changed since it was loaded: load it again")
            file.seek(start)
            text = file.read(end - start)
        try:
            return text.decode("utf-8").strip().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 (byte {start + error.start}): save it as UTF-8 text"
            ) from None

    return _Lazy(range(len(spans)), read)


def _read_table(path: Path) -> _Lazy:
    """A .parquet or .jsonl file becomes a memory-mapped Arrow table in the cache of `datasets`."""
    import datasets

    dataset = datasets.Dataset
    make = dataset.from_parquet if path.suffix == ".parquet" else dataset.from_json
    try:  # escaped, or they would read every file that a name like a[1] stands for
        table = make(glob.escape(str(path)))
    except Exception as error:
        raise_if_full_or_locked(error, datasets.config.HF_DATASETS_CACHE)
        cause = error.__cause__ or error
        raise ValueError(
            f"{path} could not be read as {path.suffix} ({type(cause).__name__}: {cause})"
        ) from error
    return _column(table, str(path))


def _column(table, origin: str) -> _Lazy:
    """The column `text` of a datasets.Dataset, without the rows of nothing or white space."""
    kind = getattr(table.features.get("text"), "dtype", None)  # objects have none
    require(
        kind in ("string", "large_string"),
        f"{origin} has no column `text` of strings, only {table.features}: rename the column "
        "of stories",
    )
    column = table.data.column("text")
    try:
        rows = np.fromiter(
            (row for row, text in enumerate(column) if (text.as_py() or "").strip()), dtype=np.int64
        )
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{origin} holds text that is not UTF-8 ({error}): save it as UTF-8"
        ) from None
    require(
        len(rows),
        f"{origin} holds no story: the column `text` has {len(column)} rows, none with a word",
    )
    return _Lazy(rows, lambda row: column[row].as_py().strip())
