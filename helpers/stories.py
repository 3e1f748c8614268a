"""Where stories come from: the bundled grammar, TinyStories, or a file or folder of your own."""

import functools
import glob
import hashlib
import mmap
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.grammar import bundled_grammar
from helpers.support.checks import check, require
from helpers.support.files import kind_of_file, raise_if_full_or_locked, user_path
from helpers.support.hub import first_texts

# Eldan & Li 2023, "TinyStories: How Small Can Language Models Be".
HUB_NAME = "roneneldan/TinyStories"
SEPARATOR = b"<|endoftext|>"  # stands between the stories of a .txt file
CORPORA = ("bundled", "tinystories")  # those with a name; every other corpus is a path
EXTENSIONS = (".txt", ".parquet", ".jsonl")

_ACCEPTED = (
    "give 'bundled', 'tinystories' (from the Hugging Face Hub), a .txt, .parquet or .jsonl file, "
    "or a folder that holds train.* and validation.*"
)
_ADVICE = {  # by a word in what a file is
    "compressed": "unpack it",
    "archive": "unpack it",
    "damaged": "name it .txt or .jsonl if it is text, otherwise copy it again",
    "Parquet": "name it .parquet",
    "LFS": "fetch the file with `git lfs pull`",
}


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

    def __post_init__(self):
        """Raises ValueError unless both splits are lists of strings."""
        check(
            vars(self),
            {
                "train validation": (
                    "a list of texts, one at least; texts must be strings",
                    _are_texts,
                )
            },
        )

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of both splits' texts, in hexadecimal: other texts, or others held out, have
        another. All texts are read for it once.
        """
        hashes = [_hash(text) for split in (self.train, self.validation) for text in split]
        return hashlib.sha256(len(self.train).to_bytes(8) + b"".join(hashes)).hexdigest()


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
        ValueError: if a count is no whole number of at least 1, a file is empty or not what its
            extension says, or both splits share a story.
        OSError: if a file cannot be read, or the cache of `datasets` cannot be written.
    """
    check(
        locals(),
        {
            "source": ("a name or a path", lambda source: isinstance(source, str | Path)),
            "train validation": (
                "a whole number of at least 1",
                lambda count: not isinstance(count, bool) and operator.index(count) >= 1,
            ),
        },
    )
    train, validation = operator.index(train), operator.index(validation)
    named = {"bundled": _bundled, "tinystories": _from_hub}
    if source in named:
        return named[source](train, validation)
    path = user_path(source)
    require(
        os.path.exists(path),
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
    path = user_path(corpus).resolve()
    name = path.stem if path.suffix.lower() in EXTENSIONS else path.name
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


def _are_texts(texts) -> bool:
    """Ours are, unread; a generator has no length."""
    return isinstance(texts, _Lazy) or (
        not isinstance(texts, str | bytes | Mapping)
        and len(texts) > 0
        and all(isinstance(text, str) for text in texts)
    )


def _bundled(train: int, validation: int) -> Stories:
    tell = functools.cache(bundled_grammar().story)  # (text, nats) by name
    parts = [
        _Lazy(range(count), lambda row, split=split, part=part: tell(f"{split}-{row}")[part])
        for part in (0, 1)
        for split, count in (("train", train), ("validation", validation))
    ]
    return Stories("bundled", *parts)


def _from_hub(train: int, validation: int) -> Stories:
    """TinyStories, without the training stories that validation holds too: nobody edits the Hub."""
    held_out, texts = _hub_split("validation", validation), _hub_split("train", train)
    if shared := {row for row, _ in _shared(texts, held_out)}:
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
    return _column(
        functools.partial(
            datasets.Dataset.from_generator, first_texts, gen_kwargs=wanted, split=split
        ),
        "TinyStories did not come from the Hugging Face Hub",
        "connect to the network, unset HF_HUB_OFFLINE and try again; offline, use "
        "load_stories('bundled'), or give the path of a folder that holds train.txt and "
        "validation.txt",
        ConnectionError,
    )


def _from_disk(path: Path, train: int, validation: int) -> Stories:
    """A folder's two files, or one file of which the last stories are held out."""
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
            f"{path} holds too few stories, {len(stories)}: it needs more than {validation}, of "
            f"which the last {validation} are held out for validation. Add stories, or "
            "give a folder with train.txt and validation.txt (load_stories has validation=, too)",
        )
        texts, held_out = stories[:-validation][:train], stories[-validation:]
    if shared := _shared(texts, held_out):
        raise ValueError(
            f"{path}: {len(shared)} training stories are in the validation split too (first: "
            f"training story {shared[0][0]} is validation story {shared[0][1]}, counted from 0). "
            "Validation would test memory: remove them from one"
        )
    return Stories(corpus_name(path), texts, held_out)


def _split_file(folder: Path, split: str) -> Path:
    found = [split + end for end in EXTENSIONS if (folder / (split + end)).exists()]
    require(
        len(found) == 1,
        f"{folder} holds {' and '.join(found) or f'no {split} split'}: it needs exactly one of "
        f"{', '.join(split + end for end in EXTENSIONS)}",
    )
    return folder / found[0]


def _hash(text: str) -> bytes:  # 32 bytes stand for a story: millions of them fit into memory
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _shared(train: Sequence[str], validation: Sequence[str]) -> list[tuple[int, int]]:
    """(training row, validation row) of each story that both hold."""
    row_of = {_hash(text): row for row, text in enumerate(validation)}
    keys = enumerate(map(_hash, train))
    return [(row, row_of[key]) for row, key in keys if key in row_of]


def _read(path: Path) -> _Lazy:
    """All stories of a file, lazily, without outer white space.

    Raises ValueError if it is empty or of another kind, OSError if it cannot be read.
    """
    require(
        path.is_file() and os.access(path, os.R_OK),
        f"{path} cannot be read: it must be a file that you may read",
        OSError,
    )
    require(path.stat().st_size, f"{path} is empty: {_ACCEPTED}")
    kind, extension = kind_of_file(path) or "text or damaged", path.suffix.lower()
    advice = (advice for word, advice in _ADVICE.items() if word in kind)
    require(
        kind == ("a Parquet file" if extension == ".parquet" else "text or damaged"),
        f"{path} is {kind}: {next(advice, 'save its stories as UTF-8 text')}",
    )
    require(extension in EXTENSIONS, f"{path} has an unknown extension: {_ACCEPTED}")
    return _read_txt(path) if extension == ".txt" else _read_table(path)


def _read_txt(path: Path) -> _Lazy:
    """A .txt file is mapped, not read: what stays in memory is where each story begins and ends."""
    path = path.resolve()
    with path.open("rb") as file:
        content, loaded = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path.stat()
    ends = np.fromiter((m.start() for m in re.finditer(re.escape(SEPARATOR), content)), np.int64)
    require(
        len(ends),
        f"{path}: the separator `<|endoftext|>` stands nowhere in it: put it between the stories, "
        f"if it holds stories (it begins with {content[:20]!r})",
    )
    first = 3 if content[:3] == b"\xef\xbb\xbf" else 0  # after a byte-order mark
    spans = np.stack(
        [np.append(first, ends + len(SEPARATOR)), np.append(ends, len(content))], axis=1
    )  # (stories, 2)
    try:
        spans = spans[[bool(content[start:end].decode().strip()) for start, end in spans]]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {content.find(error.object) + error.start}): save it as "
            "UTF-8 text"
        ) from None
    require(len(spans), f"{path} holds white space only: {_ACCEPTED}")

    def read(row: int) -> str:
        # Reading beyond the end of a file that is shorter now would end the process.
        found, (start, end) = path.stat(), spans[row]
        require(
            (found.st_size, found.st_mtime_ns) == (loaded.st_size, loaded.st_mtime_ns),
            f"{path} was changed since it was loaded: load it again",
        )
        return content[start:end].decode().strip().replace("\r\n", "\n")

    return _Lazy(range(len(spans)), read)


def _read_table(path: Path) -> _Lazy:
    """A .parquet or .jsonl file becomes a memory-mapped Arrow table in the cache of `datasets`."""
    import datasets

    make = (
        datasets.Dataset.from_parquet
        if path.suffix.lower() == ".parquet"
        else functools.partial(datasets.Dataset.from_json, encoding="utf-8-sig")
    )
    return _column(
        # Escaped, or they would read every file that a name like a[1] stands for.
        functools.partial(make, glob.escape(str(path))),
        f"{path} could not be read as {path.suffix}",
        "each row needs its story as a string called `text`, in UTF-8; copy a damaged file again, "
        "and call plain text .txt",
        ValueError,
    )


def _column(make: Callable, told: str, advice: str, error_type: type[Exception]) -> _Lazy:
    """The column `text` of the datasets.Dataset that make() gives, without rows of white space."""
    import datasets  # heavy, and needed by few corpora

    try:
        table = make()
        require(
            getattr(table.features.get("text"), "dtype", None) in ("string", "large_string"),
            f"there is no column `text` of strings, only {table.features}",
        )
        column = table.data.column("text")
        rows = np.fromiter(
            (row for row, text in enumerate(column) if (text.as_py() or "").strip()), dtype=np.int64
        )
        require(len(rows), f"the column `text` has {len(column)} rows, none with a word")
    except Exception as error:
        raise_if_full_or_locked(error, datasets.config.HF_DATASETS_CACHE)
        cause = error.__cause__ or error
        raise error_type(f"{told} ({type(cause).__name__}: {cause}): {advice}") from error
    return _Lazy(rows, lambda row: column[row].as_py().strip())
