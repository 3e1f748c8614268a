"""What is recorded in figures/: made by the present defaults, and no sentence of a dataset in it.

The tests that need the recorded stories run if TINYSTORIES names their folder.
"""

import json
import os
import re
from itertools import chain

import pytest
from support import ROOT, report_script

from helpers.recipe import VALIDATION, made_from
from helpers.stories import Stories, load_stories
from helpers.tokenizer import WordTokenizer

RECORDED = {
    path: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "figures").glob("*/*.json"))
}
MADE = {
    str(path.relative_to(ROOT / "figures")): numbers["made_from"]
    for path, numbers in RECORDED.items()
    if "made_from" in numbers
}
sample = pytest.mark.skipif("TINYSTORIES" not in os.environ, reason="TINYSTORIES names no folder")


def made(corpus, **options):
    stories = load_stories(corpus, validation=VALIDATION)
    return made_from(stories, WordTokenizer.train(stories.train, **options))


def test_training_decoding_and_memory_say_what_they_were_made_from():
    expected = {f"{corpus}/0{n}.json" for corpus in ("bundled", "tinystories") for n in (4, 5, 6)}
    others = ("ablations", "protocol", "vectors", "whole", "epochs")
    expected |= {f"tinystories/{name}.json" for name in others} | {"bundled/scaling.json"}
    assert MADE.keys() == expected


def test_recordings_are_those_of_the_present_recipe():
    present = made_from(Stories("any", ["a"], ["b"]), WordTokenizer([]))["recipe"]
    assert [name for name, digests in MADE.items() if digests["recipe"] != present] == []


def test_the_numbers_of_the_grammar_stories_are_of_these_stories():
    present = dict.fromkeys([f"bundled/0{n}.json" for n in (4, 5, 6)], made("bundled"))
    present["bundled/scaling.json"] = report_script("scaling").prepared()["made_from"]
    assert {name: MADE[name] for name in present} == present


@sample
def test_recordings_are_of_these_stories():
    whole, plain = (made(os.environ["TINYSTORIES"], keep_punctuation=p) for p in (True, False))
    for name in ("04", "05", "06", "vectors", "ablations", "epochs"):
        assert MADE[f"tinystories/{name}.json"] == whole, name
    context = report_script("whole").CONTEXT
    assert MADE["tinystories/whole.json"] == whole | {"context": context}
    assert MADE["tinystories/protocol.json"] == plain


def texts_in(value):
    """All strings inside a JSON value."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return list(chain.from_iterable(map(texts_in, parts)))


@sample
def test_no_recorded_text_shares_a_long_run_of_words_with_the_stories():
    def runs(text, length=13):
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    stories = load_stories(os.environ["TINYSTORIES"], train=10**9, validation=10**9)
    known = set().union(*map(runs, chain(stories.train, stories.validation)))
    shared = {
        text
        for path, numbers in RECORDED.items()
        for text in texts_in(numbers)
        if runs(text) & known
    }
    assert shared == set()
