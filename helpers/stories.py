"""Where stories come from: the bundled grammar, TinyStories from the Hugging Face Hub, or a local
file or folder.

The bundled corpus is told by a grammar of little stories, `bundled_grammar.toml`, whose header
explains its few marks. There are no hidden states: the words so far always tell every random choice
so far. So the probability of each word, given all words before it, is known exactly. The mean of
its negative logarithm is the corpus' entropy: a loss that no model can beat on average.
"""

import functools
import glob
import hashlib
import math
import mmap
import os
import random
import re
import tomllib
from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate, islice, pairwise
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import numpy as np

from helpers.files import raise_if_full_or_locked

HUB_NAME = (
    "roneneldan/TinyStories"  # Eldan & Li 2023, "TinyStories: How Small Can Language Models Be"
)
SEPARATOR = b"<|endoftext|>"  # stands between the stories of a .txt file
CORPORA = ("bundled", "tinystories")  # those with a name; every other corpus is a path
EXTENSIONS = (".txt", ".parquet", ".jsonl")
SILENCE = 60.0  # seconds without a story after which the Hub is given up
# The r-th word of a list has weight 1 / (r + FLATTENING): Zipf's law, flattened at the top.
FLATTENING = 10.0

_GRAMMAR = Path(__file__).with_name("bundled_grammar.toml")
_SLOT = re.compile(r"\{(\w+)\}")
_TOKEN = re.compile(
    r"'s\b|\w+(?:(?!'s\b)['-]\w+)*|[^\w\s]"
)  # the words that WordTokenizer sees in the grammar's text
_MARK = re.compile(rb"[!-~]")  # something that is not white space, told without decoding
_ACCEPTED = (
    "give 'bundled', 'tinystories' (from the Hugging Face Hub), a .txt, .parquet or .jsonl file, "
    "or a folder that holds train.* and validation.*"
)


@dataclass(frozen=True)
class Stories:
    """A corpus in two splits that share no story: `train` trains, `validation` evaluates.

    name: the folder of the corpus' figures. train_nats, validation_nats: of the bundled corpus, one
    float64 array per story, (words + 1,): the exact -log p, in nats, of each word that
    `WordTokenizer.split` gives, and last of `<eos>`, given all before it. None for other corpora,
    whose true probabilities nobody knows.
    """

    name: str
    train: Sequence[str]
    validation: Sequence[str]
    train_nats: Sequence[np.ndarray] | None = None
    validation_nats: Sequence[np.ndarray] | None = None


def load_stories(
    source: str | Path = "bundled", train: int = 10_000, validation: int = 1_000
) -> Stories:
    """At most `train` and `validation` stories of a corpus, in its own order; stories of white
    space only are skipped.

    source: "bundled" (told by our grammar, the same on every machine), "tinystories" (streamed from
    the Hub once, then kept on disk), a folder that holds train.* and validation.*, or one file,
    whose last `validation` stories are held out. Files are .txt (stories separated by
    `<|endoftext|>`), .parquet or .jsonl (column `text`), read lazily.

    Raises FileNotFoundError where there is nothing of that name, ConnectionError where the Hub
    cannot be reached or falls silent, ValueError where a count is below 1, a file is empty or not
    what its extension says, or both splits share a story, and OSError where the cache of `datasets`
    cannot be written.
    """
    for split, count in (("train", train), ("validation", validation)):
        if count < 1:
            raise ValueError(f"{split}={count}: ask for at least one story of each split")
    if source == "bundled":
        return _bundled(train, validation)
    if source == "tinystories":
        return _from_hub(train, validation)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"there is no corpus and no file or folder called {str(source)!r}: {_ACCEPTED}"
        )
    return _from_disk(path, train, validation)


def corpus_name(corpus: str | Path) -> str:
    """The name of a corpus, and of its folders: "bundled", "tinystories", or that of its folder or
    file, without the ending.

    Raises ValueError where a path would take the folder of the bundled corpus.
    """
    if corpus in CORPORA:
        return str(corpus)
    path = Path(corpus).resolve()
    name = path.stem if path.suffix in EXTENSIONS else path.name
    if name in ("", "bundled"):
        raise ValueError(
            f"{str(corpus)!r} gives the name {name!r}, which is taken: rename the file or folder"
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


# --- The bundled corpus ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Option:
    """One alternative of a choice."""

    key: str  # the row it stands in, or its text where there are no named rows
    items: tuple[
        tuple[str, int] | str, ...
    ]  # texts with their number of words, and slots, in order
    head: tuple[str, ...]  # the words before the first slot
    weight: float


class _Choice:
    """Options of which one is drawn, and the -log p that each adds to the words of its head (or to
    its first slot).

    Options may share their first words: "in the tree" and "in the barn". A word's probability is
    then the weight of the options that agree up to it, divided by the weight of those that agree up
    to the word before.
    """

    def __init__(self, options: list[_Option]):
        self.options = options
        self.cumulative = list(accumulate(option.weight for option in options))
        total = self.cumulative[-1]
        weight, self.sharing = Counter(), Counter()
        for option in options:
            for end in range(1, len(option.head) + 1):
                weight[option.head[:end]] += option.weight
                self.sharing[option.head[:end]] += 1
        self.nats = []
        for option in options:
            masses = [total, *(weight[option.head[:end]] for end in range(1, len(option.head) + 1))]
            steps = [math.log(before / after) for before, after in pairwise(masses)]
            self.nats.append(steps or [math.log(total / option.weight)])


@dataclass(frozen=True)
class _Rule:
    remembered: bool
    key_rule: str | None  # the rule whose value names the row
    rows: dict[str, _Choice]
    pooled: (
        _Choice | None
    )  # all rows together, while key_rule has no value yet; None where it must have one

    @property
    def choices(self) -> list[_Choice]:
        return [*self.rows.values(), *([self.pooled] if self.pooled else [])]

    @property
    def slots(self) -> set[str]:
        options = (option for choice in self.rows.values() for option in choice.options)
        return {
            item.lower() for option in options for item in option.items if isinstance(item, str)
        }


class Grammar:
    """Tells stories, each word with its exact probability. The notation is explained in
    bundled_grammar.toml.

    Raises ValueError where two options of a choice begin with the same word, an option is empty, a
    slot has no rule, a rule leads back to itself, or a rule is never used.
    """

    def __init__(self, remembered: dict, fresh: dict):
        both = remembered.keys() & fresh.keys()
        if both:
            raise ValueError(
                f"rules defined twice, as remembered and as fresh: {', '.join(sorted(both))}"
            )
        self._rules = {name: _rule(name, spec, True) for name, spec in remembered.items()}
        self._rules |= {name: _rule(name, spec, False) for name, spec in fresh.items()}
        self._check()

    def story(self, seed: str) -> tuple[str, np.ndarray]:
        """The story of a seed, and the -log p in nats of each of its words and of `<eos>`, (words +
        1,) float64.
        """
        draw = random.Random(seed).random
        return self._tell(
            lambda cumulative: bisect(cumulative, draw() * cumulative[-1], 0, len(cumulative) - 1)
        )

    def _tell(self, choose: Callable[[list[float]], int]) -> tuple[str, np.ndarray]:
        """One story; `choose` gets the cumulative weights of a choice and returns the index of an
        option.
        """
        texts, nats, values = [], [], {}
        pending = 0.0  # -log p of the choices made since the last word

        def expand(slot: str):
            nonlocal pending
            name = slot.lower()
            rule, emitted = self._rules[name], len(texts)
            option, head_nats = values.get(name), None
            if option is None:
                choice = self._choice(name, values)
                index = choose(choice.cumulative)
                option, head_nats = choice.options[index], choice.nats[index]
                if rule.remembered:
                    values[name] = option
                if not option.head:
                    pending += head_nats[0]
            for item in option.items:
                if isinstance(item, str):
                    expand(item)
                    head_nats = None
                    continue
                text, words = item
                texts.append(text)
                if words:
                    first, *others = head_nats or [0.0] * words
                    nats.extend([pending + first, *others])
                    pending, head_nats = 0.0, None
            if slot[0].isupper():
                texts[emitted] = texts[emitted][:1].upper() + texts[emitted][1:]

        expand("story")
        return "".join(texts), np.array(
            [*nats, pending]
        )  # (words + 1,): nothing is drawn after the last word

    def _choice(self, name: str, values: dict[str, _Option]) -> _Choice:
        rule = self._rules[name]
        key = values.get(rule.key_rule)
        choice = rule.pooled if key is None else rule.rows.get(key.key)
        if choice is None:
            state = (
                "has no value yet" if key is None else f"is {key.key!r}, for which there is no row"
            )
            raise ValueError(f"rule {name!r} depends on {rule.key_rule!r}, which {state}")
        return choice

    def _check(self) -> None:
        slots = {name: rule.slots for name, rule in self._rules.items()}
        used = set().union(
            *slots.values(), {"story"}, {rule.key_rule for rule in self._rules.values()} - {None}
        )
        if used != self._rules.keys():
            missing, spare = sorted(used - self._rules.keys()), sorted(self._rules.keys() - used)
            raise ValueError(f"slots without a rule: {missing}; rules that no slot uses: {spare}")
        try:
            order = list(
                TopologicalSorter(slots).static_order()
            )  # what a rule uses comes before it
        except CycleError as error:
            raise ValueError(f"a rule leads back to itself: {' -> '.join(error.args[1])}") from None
        first_words: dict[str, set[str]] = {}
        for name in order:
            first_words[name] = set().union(
                *(_first_words(name, c, first_words) for c in self._rules[name].choices)
            )


def _first_words(name: str, choice: _Choice, of_rule: dict[str, set[str]]) -> set[str]:
    """The words with which a choice may begin; ValueError where the words do not tell which option
    was drawn.
    """
    seen, heads = set(), {option.head[0] for option in choice.options if option.head}
    for option in choice.options:
        shared = {" ".join(option.head)} if choice.sharing[option.head] > 1 else set()
        if not option.head:
            words = of_rule[option.items[0].lower()]
            shared, seen = words & (seen | heads), seen | words
        if shared:
            raise ValueError(
                f"rule {name!r} has two options that begin with {min(shared)!r}, and the words do "
                "not tell which was drawn: move what they share in front of the choice"
            )
    return seen | heads


def _words(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())


def _rule(name: str, spec: str | list | dict, remembered: bool) -> _Rule:
    """One entry of the grammar file: a list of words, a list of texts, or a table of rows of
    either.
    """
    rows = dict(spec) if isinstance(spec, dict) else {"": spec}
    given, agrees = rows.pop("given", None), rows.pop("agrees", None)
    choices = {}
    for key, row in rows.items():
        listed = isinstance(row, str)
        texts = [" ".join(text.split()) for text in row.split(",")] if listed else row
        options = [
            _option(key, text, 1 / (rank + FLATTENING) if listed else 1.0)
            for rank, text in enumerate(texts, 1)
        ]
        choices[key] = _Choice(options)
    pooled = (
        None
        if given
        else _Choice([option for choice in choices.values() for option in choice.options])
    )
    rule = _Rule(remembered, given or agrees, choices, pooled)
    if remembered and rule.slots:
        raise ValueError(f"rule {name!r} is remembered, so its options may hold no slots")
    return rule


def _option(key: str, text: str, weight: float) -> _Option:
    """`"3 a {size} dog"` has three times the weight. Without a named row, an option's key is its
    text.
    """
    factor, text = re.fullmatch(r"(?:(\d+) )?(.*)", text, re.DOTALL).groups()
    pieces = _SLOT.split(text)  # text, slot, text, slot, …, text
    items = [
        piece if i % 2 else (piece, len(_words(piece))) for i, piece in enumerate(pieces) if piece
    ]
    head = tuple(_words(pieces[0]))
    if not items or (pieces[0] and not head):
        raise ValueError(f"an option must begin with a word or a slot, not {text!r}")
    return _Option(key or text, tuple(items), head, weight * int(factor or 1))


@functools.cache
def _bundled_grammar() -> Grammar:
    return Grammar(**tomllib.loads(_GRAMMAR.read_text(encoding="utf-8")))


def _bundled(train: int, validation: int) -> Stories:
    grammar = _bundled_grammar()

    def split(name: str, count: int) -> tuple[_Lazy, _Lazy]:
        tell = functools.cache(lambda i: grammar.story(f"{name}-{i}"))
        return _Lazy(range(count), lambda i: tell(i)[0]), _Lazy(range(count), lambda i: tell(i)[1])

    (texts, nats), (held_out, held_out_nats) = (
        split("train", train),
        split("validation", validation),
    )
    return Stories("bundled", texts, held_out, nats, held_out_nats)


# --- Stories from the Hub and from files ----------------------------------------------------------


def _from_hub(train: int, validation: int) -> Stories:
    """TinyStories. Training stories that validation holds too are left out, with a word: nobody can
    edit the Hub.
    """
    held_out = _hub_split("validation", validation)
    texts = _hub_split("train", train)
    shared = {row for row, _ in _shared(texts, held_out)}
    if shared:
        print(f"{len(shared)} training stories are left out: the validation split holds them too")
        texts = _Lazy([row for row in range(len(texts)) if row not in shared], texts.__getitem__)
    return Stories("tinystories", texts, held_out)


def _hub_split(split: str, count: int) -> _Lazy:
    """The first `count` stories of a split, streamed into the cache of `datasets` unless they are
    there already.
    """
    import datasets  # heavy, and needed by few corpora

    try:  # the loading function is an argument, so that it is part of the cache's key
        table = datasets.Dataset.from_generator(
            _stream,
            gen_kwargs={"load": datasets.load_dataset, "split": split, "count": count},
            split=split,
        )
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


def _stream(load: Callable, split: str, count: int) -> Iterator[dict]:
    from huggingface_hub import HfApi

    def texts() -> Iterator[str]:
        rows = (row["text"] for row in load(HUB_NAME, split=split, streaming=True))
        yield from islice((text for text in rows if text.strip()), count)

    HfApi().repo_info(
        HUB_NAME, repo_type="dataset", timeout=20
    )  # without a network, `load` takes longer to say so
    yield from ({"text": text} for text in _unless_silent(texts, SILENCE))


def _unless_silent(texts: Callable[[], Iterator[str]], seconds: float) -> Iterator[str]:
    """What texts() gives, one after the other. Raises TimeoutError when the next one does not come
    in so many seconds.

    The client of the Hub asks a server that has fallen silent again and again, for many minutes.
    Here it does so in a thread that nobody waits for.
    """
    arrived = Queue(maxsize=1_000)

    def fetch():
        try:
            for text in texts():
                arrived.put((text, None))
            arrived.put((None, None))
        except Exception as error:
            arrived.put((None, error))

    Thread(target=fetch, daemon=True).start()
    while True:
        try:
            text, error = arrived.get(timeout=seconds)
        except Empty:
            raise TimeoutError(f"no story in {seconds:g} seconds") from None
        if error:
            raise error
        if text is None:
            return
        yield text


def _from_disk(path: Path, train: int, validation: int) -> Stories:
    """A folder's two files, or one file of which the last stories are held out."""
    name = corpus_name(path)
    if path.is_dir():
        texts = _read(_split_file(path, "train"))[:train]
        held_out = _read(_split_file(path, "validation"))[:validation]
    else:
        partner = {"train": "validation", "validation": "train"}.get(path.stem)
        if partner and any(
            path.with_name(partner + extension).exists() for extension in EXTENSIONS
        ):
            raise ValueError(
                f"{path} is one split of a corpus: give the folder {path.parent}, so that the "
                "splits stay apart"
            )
        stories = _read(path)
        if len(stories) <= validation:
            raise ValueError(
                f"{path} holds {len(stories)} stories, of which the last {validation} are held "
                "out for validation, which leaves none for training: ask for less with "
                "load_stories(..., validation=...)"
            )
        texts, held_out = stories[:-validation][:train], stories[-validation:]
    shared = _shared(texts, held_out)
    if shared:
        row, held_out_row = shared[0]
        raise ValueError(
            f"{path}: {len(shared)} training stories are in the validation split too (first: "
            f"training story {row} is validation story {held_out_row}, counted from 0), so "
            "validation would test memory: remove them from one"
        )
    return Stories(name, texts, held_out)


def _split_file(folder: Path, split: str) -> Path:
    found = [
        folder / (split + extension)
        for extension in EXTENSIONS
        if (folder / (split + extension)).exists()
    ]
    if len(found) != 1:
        problem = (
            f"holds {' and '.join(file.name for file in found)}"
            if found
            else f"holds no {split} split"
        )
        raise ValueError(
            f"{folder} {problem}: it needs exactly one of "
            f"{', '.join(split + e for e in EXTENSIONS)}"
        )
    return found[0]


def _shared(train: Sequence[str], validation: Sequence[str]) -> list[tuple[int, int]]:
    """(training row, validation row) of each training story that validation holds too, outer white
    space aside.
    """

    def digest(text: str) -> bytes:  # 16 bytes stand for a story: millions of them fit into memory
        return hashlib.blake2b(text.strip().encode(), digest_size=16).digest()

    row_of = {digest(text): row for row, text in enumerate(validation)}
    digests = (digest(text) for text in train)
    return [(row, row_of[key]) for row, key in enumerate(digests) if key in row_of]


def _read(path: Path) -> _Lazy:
    """All stories of a file, lazily. Raises ValueError where there are none, or where it is of
    another kind.
    """
    if path.suffix not in EXTENSIONS:
        raise ValueError(f"{path} has an unknown extension: {_ACCEPTED}")
    with path.open("rb") as file:
        if not file.read(1):
            raise ValueError(f"{path} is empty: {_ACCEPTED}")
    return _read_text(path) if path.suffix == ".txt" else _read_table(path)


def _read_text(path: Path) -> _Lazy:
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
    if not len(spans):
        raise ValueError(f"{path} holds white space only: {_ACCEPTED}")

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

    make = (
        datasets.Dataset.from_parquet if path.suffix == ".parquet" else datasets.Dataset.from_json
    )
    try:
        table = make(
            glob.escape(str(path))
        )  # they would read every file that a name like a[1] stands for
    except Exception as error:
        raise_if_full_or_locked(error, datasets.config.HF_DATASETS_CACHE)
        cause = error.__cause__ or error
        raise ValueError(
            f"{path} could not be read as {path.suffix} ({type(cause).__name__}: {cause})"
        ) from error
    return _column(table, str(path))


def _column(table, origin: str) -> _Lazy:
    """The column `text` of a datasets.Dataset, without the rows that hold nothing or white space
    only.
    """
    if "text" not in table.column_names or table.features["text"].dtype not in (
        "string",
        "large_string",
    ):
        raise ValueError(
            f"{origin} has no column `text` of strings, only {table.features}: rename the column "
            "of stories"
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
    if not len(rows):
        raise ValueError(
            f"{origin} holds no story: the column `text` has {len(column)} rows, none with a word"
        )
    return _Lazy(rows, lambda row: column[row].as_py().strip())
