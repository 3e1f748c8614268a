"""The grammar of the bundled stories, which knows the exact probability of each of its words.

There are no hidden states: the words so far always tell every random choice so far. So the
probability of each word, given all words before it, is known exactly. The mean of its negative
logarithm is the entropy of the stories: a loss that no model can beat on average.
"""

import functools
import math
import random
import re
import tomllib
from bisect import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from helpers.support.checks import require
from helpers.tokenizer import WordTokenizer

# The r-th word of a list has weight 1 / (r + FLATTENING): Zipf's law, flattened at the top.
FLATTENING = 10.0

_SLOT = re.compile(r"\{(\w+)\}")
_split = WordTokenizer([]).split


@dataclass(frozen=True)
class _Option:
    """One alternative of a choice."""

    key: str  # the row it stands in, or its text if there are no named rows
    items: tuple[tuple[str, int] | str, ...]  # texts with their number of words, and slots
    head: tuple[str, ...]  # the words before the first slot
    weight: float


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
    rows: dict[str | None, _Choice]  # None: all rows, while key_rule has no value, if it may not

    @property
    def slots(self) -> set[str]:
        options = [option for choice in self.rows.values() for option in choice.options]
        return {i.lower() for option in options for i in option.items if isinstance(i, str)}


class Grammar:
    """Tells stories, each word with its exact probability.

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
        # Nothing is drawn after the last word.
        return "".join(texts), np.array([*nats, pending])  # (words + 1,)

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


def _first_words(name: str, choice: _Choice, of_rule: dict[str, set[str]]) -> set[str]:
    """The words with which a choice may begin; ValueError if they do not tell which was drawn."""
    seen, heads = set(), {option.head[0] for option in choice.options if option.head}
    for option in choice.options:
        shared = {" ".join(option.head)} if choice.sharing[option.head] > 1 else set()
        if not option.head:
            words = of_rule[option.items[0].lower()]
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
    items = [p if i % 2 else (p, len(_split(p))) for i, p in enumerate(pieces) if p]
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
