"""Refusals: settings that break a rule, and conditions that do not hold."""

import re

import pytest

from helpers.support.checks import check, counts, require

RULES = {
    "rows columns": ("a whole number of at least 1", counts),
    "limit": ("a whole number of at least 1", counts, None),
    "rate": ("a finite number, 0 or more", lambda rate: 0 <= rate < float("inf")),
    "pair": ("two numbers", lambda pair: len(pair) == 2),
    "how": ("'fast' or 'slow'", ("fast", "slow").__contains__),
}
RIGHT = {"rows": 1, "columns": 2, "limit": 3, "rate": 0.5, "pair": (1, 2), "how": "slow"}
ROWS = "a whole number of at least 1"


def test_settings_that_fit_pass():
    assert check(RIGHT, RULES) is None
    check(RIGHT | {"limit": None, "rate": 0, "another": "that no rule names"}, RULES)
    check({}, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, f"rows=0: must be {ROWS}"),
        ({"columns": 0}, f"columns=0: must be {ROWS}"),  # the second name of a rule
        ({"rows": None}, f"rows=None: must be {ROWS}"),  # None is not welcome
        ({"limit": 0}, f"limit=0: must be {ROWS}, or None"),
        ({"rate": float("nan")}, "rate=nan: must be a finite number, 0 or more"),
        ({"rate": "much"}, "rate='much': must be a finite number, 0 or more"),  # a TypeError
        ({"rate": None}, "rate=None: must be a finite number, 0 or more"),
        ({"pair": 1}, "pair=1: must be two numbers"),
        ({"how": "fast "}, "how='fast ': must be 'fast' or 'slow'"),
        ({"how": []}, "how=[]: must be 'fast' or 'slow'"),
        ({"how": "", "rows": 0, "rate": -1}, f"rows=0: must be {ROWS}"),  # the first rule's
    ],
    ids=str,
)
def test_a_setting_that_breaks_a_rule_is_named_with_its_value(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(RIGHT | changes, RULES)


def test_a_refusal_leaves_the_rules_as_they_were():
    for _ in range(2):
        with pytest.raises(ValueError, match=r"at least 1, or None$"):
            check(RIGHT | {"limit": -1}, RULES)


def test_an_error_of_another_kind_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        check({"x": 0}, {"x": ("a divisor", lambda x: 1 / x)})
    with pytest.raises(KeyError, match="absent"):
        check({}, {"absent": ("there", bool)})


def test_what_counts_is_whole_and_at_least_one():
    assert [counts(number) for number in (1, 10**30)] == [True, True]
    wrong = (0, -1, True, 1.0, float("nan"), "1", None, (1,))
    assert [counts(number) for number in wrong] == [False] * len(wrong)


def test_a_condition_that_does_not_hold_raises_the_error_that_was_asked_for():
    require(True, "unused")
    require([0], "unused")  # whatever is true
    with pytest.raises(ValueError, match=r"^give more$"):
        require([], "give more")
    with pytest.raises(FileNotFoundError, match=r"^it is missing$"):
        require(None, "it is missing", FileNotFoundError)
