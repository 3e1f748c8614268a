"""The grammar of the bundled stories, which knows the exact probability of each of its words.

There are no hidden states: the words so far always tell every random choice so far. So the
probability of each word, given all words before it, is known exactly. The mean of its negative
logarithm is the entropy of the stories: a loss that no model can beat on average. The grammar also
judges any text: which words could come next, and the first word that no story could have.
"""

import functools
import math
import random
import re
import tomllib
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate, pairwise
from operator import eq
from pathlib import Path

import numpy as np

from helpers.support.checks import require, texts_of
from helpers.tokenizer import WordTokenizer

# The r-th word of a list has weight 1 / (r + FLATTENING): Zipf's law, flattened at the top.
FLATTENING = 10.0
END = "<eos>"

_SLOT = re.compile(r"\{(\w+)\}")
_split = WordTokenizer([]).split


@dataclass(frozen=True)
class _Option:
    """One alternative of a choice."""

    key: str  # the row it stands in, or its text if there are no named rows
    items: tuple[tuple[str, tuple[str, ...]] | str, ...]  # texts with their words, and slots
    head: tuple[str, ...]  # the words before the first slot
    weight: float

    def compiled(self) -> list:
        """[weight, key, items] for `Grammar.table`; a text without words says nothing there."""
        items = [item.lower() if isinstance(item, str) else list(item[1]) for item in self.items]
        return [self.weight, self.key, [item for item in items if item]]


class _Choice:
    """Options of which one is drawn, and the -log p that each adds to the words of its head.

    (An option without a head adds it to its first slot.) Options may share their first words: "in
    the tree" and "in the barn". A word's probability is then the weight of the options that agree
    up to it, divided by the weight of those that agree up to the word before.
    """

    def __init__(self, options: list[_Option]):
        self.options = options
        self.cumulative = list(accumulate(option.weight for option in options))
        total = self.cumulative[-1]
        self.weight, self.sharing, self.first = Counter(), Counter(), {}
        for index, option in enumerate(options):
            for head in _beginnings(option):
                self.weight[head] += option.weight
                self.sharing[head] += 1
                self.first.setdefault(head, index)
        self.nats = []
        for option in options:
            masses = [total, *(self.weight[head] for head in _beginnings(option))]
            steps = [math.log(before / after) for before, after in pairwise(masses)]
            self.nats.append(steps or [math.log(total / option.weight)])

    def closest(self, words: Sequence[str]) -> int | None:
        """An option that shares the most first words with these, or None if none shares any."""
        index = None
        for end in range(1, len(words) + 1):
            if (found := self.first.get(tuple(words[:end]))) is None:
                break
            index = found
        return index

    def after(self, words: tuple[str, ...]) -> dict[str, float]:
        """The distribution of the word after these, with which at least one head begins."""
        heads = {
            option.head[: len(words) + 1]
            for option in self.options
            if option.head[: len(words)] == words
        }
        return {head[-1]: self.weight[head] / self.weight[words] for head in heads}


def _beginnings(option: _Option) -> list[tuple[str, ...]]:
    return [option.head[:end] for end in range(1, len(option.head) + 1)]


@dataclass(frozen=True)
class _Rule:
    remembered: bool
    key_rule: str | None  # the rule whose value names the row
    rows: dict[str | None, _Choice]  # None: all rows, while key_rule has no value, if it may not

    @property
    def slots(self) -> set[str]:
        options = [option for choice in self.rows.values() for option in choice.options]
        return {i.lower() for option in options for i in option.items if isinstance(i, str)}


@dataclass(frozen=True)
class Judgement:
    """What the grammar says about a text."""

    nats: np.ndarray  # (possible words,) float64: -log p of each, and of <eos> if complete
    broken_at: int | None  # the index of the first word that no story could have there
    possible: dict[str, float]  # what could stand there, or else after the last word
    complete: bool  # the text is a whole story


class Grammar:
    """Tells stories, each word with its exact probability, and judges texts.

    The head of bundled_grammar.toml explains the notation, of which `remembered` and `fresh` are
    the two tables. Raises ValueError if the words would not tell which option was drawn, an option
    is empty, a slot has no rule, a rule leads back to itself, or a rule is never used.
    """

    def __init__(self, remembered: dict, fresh: dict):
        both = remembered.keys() & fresh.keys()
        require(
            not both,
            f"rules defined twice, as remembered and as fresh: {', '.join(sorted(both))}",
        )
        self._rules = {name: _rule(name, spec, True) for name, spec in remembered.items()}
        self._rules |= {name: _rule(name, spec, False) for name, spec in fresh.items()}
        self._check()

    def story(self, seed: str) -> tuple[str, np.ndarray]:
        """The story of a seed, and the -log p of each of its words and of `<eos>`.

        The second is (words + 1,) of float64, in nats.
        """
        draw = random.Random(seed).random
        return self.tell(lambda sums: bisect(sums, draw() * sums[-1], 0, len(sums) - 1))

    def tell(self, choose: Callable[[list[float]], int]) -> tuple[str, np.ndarray]:
        """As `story`. choose: the cumulative weights of a choice -> the index of an option."""
        texts, nats = [], []
        for text, _, steps, _ in self._walk(lambda choice, *_: choose(choice.cumulative)):
            texts.append(text)
            nats += steps
        return "".join(texts), np.array(nats)  # (words + 1,)

    def next_words(self, words: Sequence[str]) -> dict[str, float]:
        """The exact distribution of the next word, and of `<eos>`, after these words.

        Args:
            words: the beginning of a story, as `WordTokenizer.split` gives it; it may be empty.

        Returns:
            {word: probability}; {} if no story begins so, or if the words end with `<eos>`.

        Raises:
            ValueError: if `words` is a string, or holds anything but strings.
        """
        judged = self.judge(texts_of(words, "words"))
        return judged.possible if judged.broken_at is None else {}

    def judge(self, text: str | Sequence[str]) -> Judgement:
        """The true -log p of each word of a text, up to the first word that no story could have.

        Args:
            text: a story, or the beginning of one; or its words, as `WordTokenizer.split` gives
                them. `<eos>` may be the last word, and says that the text ends there.

        Raises:
            ValueError: if `text` is neither a string nor a list of strings.
        """
        words = _split(text) if isinstance(text, str) else texts_of(text, "text")
        nats, possible = [], {}

        def follow(choice: _Choice, name: str, values: Mapping[str, _Option]) -> int | None:
            nonlocal possible
            ahead = words[len(nats) :]
            index = choice.closest(ahead)
            if index is None and ahead:
                index = self._led_by(choice, ahead[0], values)
            if index is None:
                possible = self._first(name, values)
            return index

        for _, expected, steps, choice in self._walk(follow):
            ahead = words[len(nats) : len(nats) + len(expected)]
            same = [*map(eq, expected, ahead), False].index(False)
            nats += steps[:same]
            if same < len(expected):
                possible = choice.after(expected[:same]) if choice else {expected[same]: 1.0}
                break
        broken_at = len(nats) if len(nats) < len(words) else None
        complete = broken_at is None and possible.keys() <= {END}
        if complete and possible:
            nats.append(0.0)  # after the last word the end is certain
        return Judgement(np.array(nats, np.float64), broken_at, possible, complete)

    def table(self) -> dict:
        """All rules, as JSON can hold them, for a program that reads texts as `judge` does.

        {name: {remembered, keyRule, always, rows}}: rows {name: [[weight, key, items], …]}; an item
        is a list of words or the name of a rule. always: all rows are open while keyRule has no
        value.
        """
        return {
            name: {
                "remembered": rule.remembered,
                "keyRule": rule.key_rule,
                "always": None in rule.rows,
                "rows": {
                    row: [option.compiled() for option in choice.options]
                    for row, choice in rule.rows.items()
                    if row is not None
                },
            }
            for name, rule in self._rules.items()
        }

    def _walk(self, choose: Callable) -> Iterator[tuple]:
        """A story piece by piece: (text, its words, their nats, the choice whose head it is).

        The last piece is `<eos>`, without text. choose: a choice, the name of its rule and the
        remembered values -> the index of an option, or None to stop.
        """
        values, waiting = {}, ["story"]
        pending = 0.0  # -log p of the choices made since the last word
        head, capital = None, False
        while waiting:
            item = waiting.pop()
            if isinstance(item, str):
                name, capital = item.lower(), capital or item[0].isupper()
                option = values.get(name)
                if option is None:
                    choice = self._choice(name, values)
                    index = choose(choice, name, values)
                    if index is None:
                        return
                    option, nats = choice.options[index], choice.nats[index]
                    if self._rules[name].remembered:
                        values[name] = option
                    head = (choice, nats) if option.head else None
                    pending += 0.0 if option.head else nats[0]
                waiting.extend(reversed(option.items))
                continue
            text, words = item
            choice, nats = head or (None, [0.0] * len(words))
            if words:
                nats, pending = [pending + nats[0], *nats[1:]], 0.0
            yield text[:1].upper() + text[1:] if capital else text, words, nats, choice
            head, capital = None, False
        yield "", (END,), [pending], None  # nothing is drawn after the last word

    def _first(self, name: str, values: Mapping[str, _Option]) -> dict[str, float]:
        """The distribution of the first word of a rule."""
        if name in values:
            return {values[name].head[0]: 1.0}
        choice, first = self._choice(name, values), Counter()
        for option in choice.options:
            inner = {option.head[0]: 1.0} if option.head else self._first(_slot(option), values)
            for word, p in inner.items():
                first[word] += p * option.weight / choice.cumulative[-1]
        return dict(first)

    def _led_by(self, choice: _Choice, word: str, values: Mapping[str, _Option]) -> int | None:
        """The option whose first slot can begin with this word."""
        for index, option in enumerate(choice.options):
            if not option.head and word in self._first(_slot(option), values):
                return index
        return None

    def _choice(self, name: str, values: dict[str, _Option]) -> _Choice:
        rule = self._rules[name]
        key = values.get(rule.key_rule)
        choice = rule.rows.get(key and key.key)
        if choice is None:
            state = f"is {key.key!r}, for which there is no row" if key else "has no value yet"
            raise ValueError(f"rule {name!r} depends on {rule.key_rule!r}, which {state}")
        return choice

    def _check(self) -> None:
        slots = {name: rule.slots for name, rule in self._rules.items()}
        used = {"story"}.union(
            {rule.key_rule for rule in self._rules.values()} - {None}, *slots.values()
        )
        missing, spare = sorted(used - self._rules.keys()), sorted(self._rules.keys() - used)
        require(
            not missing and not spare,
            f"slots without a rule: {missing}; rules that no slot uses: {spare}",
        )
        try:  # what a rule uses comes before it
            order = list(TopologicalSorter(slots).static_order())
        except CycleError as error:
            raise ValueError(f"a rule leads back to itself: {' -> '.join(error.args[1])}") from None
        first_words: dict[str, set[str]] = {}
        for name in order:
            first_words[name] = set().union(
                *(_first_words(name, c, first_words) for c in self._rules[name].rows.values())
            )


def _slot(option: _Option) -> str:
    """The rule of the slot with which an option begins."""
    return option.items[0].lower()


def _first_words(name: str, choice: _Choice, of_rule: dict[str, set[str]]) -> set[str]:
    """The words with which a choice may begin; ValueError if they do not tell which was drawn."""
    seen, heads = set(), {option.head[0] for option in choice.options if option.head}
    for option in choice.options:
        shared = {" ".join(option.head)} if choice.sharing[option.head] > 1 else set()
        if not option.head:
            words = of_rule[_slot(option)]
            shared, seen = words & (seen | heads), seen | words
        require(
            not shared,
            f"rule {name!r} has two options that begin with {min(shared, default='')!r}, and the "
            "words do not tell which was drawn: move what they share in front of the choice",
        )
    return seen | heads


def _rule(name: str, spec: str | list | dict, remembered: bool) -> _Rule:
    """One entry of the file: a list of words, a list of texts, or a table of rows of either."""
    rows = dict(spec) if isinstance(spec, dict) else {"": spec}
    given, agrees = rows.pop("given", None), rows.pop("agrees", None)
    choices = {}
    for key, row in rows.items():
        listed = isinstance(row, str)
        texts = [" ".join(text.split()) for text in row.split(",")] if listed else row
        choices[key] = _Choice(
            [
                _option(key, text, 1 / (rank + FLATTENING) if listed else 1.0)
                for rank, text in enumerate(texts, 1)
            ]
        )
    every = [option for choice in choices.values() for option in choice.options]
    rule = _Rule(remembered, given or agrees, choices | ({} if given else {None: _Choice(every)}))
    require(
        not (remembered and rule.slots),
        f"rule {name!r} is remembered, so its options may hold no slots",
    )
    return rule


def _option(key: str, text: str, weight: float) -> _Option:
    """`"3 a {size} dog"` has three times the weight. Without a row's name, its key is its text."""
    factor, text = re.fullmatch(r"(?:(\d+) )?(.*)", text, re.DOTALL).groups()
    pieces = _SLOT.split(text)  # text, slot, text, slot, …, text
    items = [p if i % 2 else (p, tuple(_split(p))) for i, p in enumerate(pieces) if p]
    head = tuple(_split(pieces[0]))
    require(
        items and (head or not pieces[0]),
        f"an option must begin with a word or a slot, not {text!r}",
    )
    return _Option(key or text, tuple(items), head, weight * int(factor or 1))


@functools.cache
def bundled_grammar() -> Grammar:
    """The grammar of the bundled stories, read from bundled_grammar.toml."""
    return Grammar(
        **tomllib.loads(
            Path(__file__).with_name("bundled_grammar.toml").read_text(encoding="utf-8")
        )
    )


def entropy_floor(stories, length: int) -> float:
    """The lowest possible loss: the mean loss of the true probabilities, in nats per token.

    On average over stories like these, no model can have a lower one. It is measured on the first
    `length` ids of the validation stories.

    Args:
        stories: bundled `Stories`; nobody knows the probabilities of others (ValueError).
        length: the model's context.
    """
    nats = stories.validation_nats
    require(nats is not None, f"nobody knows the entropy of {stories.name!r}: take 'bundled'")
    # <sos> is given, so length - 1 tokens are predicted.
    return float(np.concatenate([story[: length - 1] for story in nats]).mean())
