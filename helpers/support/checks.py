"""One way to refuse a setting: its name, its value, and what it must be."""

import reprlib
from collections.abc import Iterable, Mapping


def check(values: Mapping, rules: Mapping[str, tuple]) -> None:
    """Refuse settings that break a rule.

    Args:
        values: the settings by name.
        rules: for one name, or several between spaces: what each must be in words, such as "a
            whole number of at least 1"; a function from the value to whether it is that (a
            TypeError means no, as of a word for a number); and a third item, None, if None may be.

    Raises:
        ValueError: for the first that does not fit.
    """
    for names, (rule, fits, *or_none) in rules.items():
        for name in names.split():
            value = values[name]
            try:
                right = (value is None and or_none) or fits(value)
            except TypeError:
                right = False
            if not right:
                raise ValueError(
                    f"{name}={reprlib.repr(value)}: must be {rule}{', or None' if or_none else ''}"
                )


def counts(number) -> bool:
    """Whether a number counts things: it is whole, and at least 1."""
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


# Rules for `check`. One string is refused: a list of strings is meant.
TEXTS = (
    "a list of strings, at least one",
    lambda texts: (
        not isinstance(texts, str | bytes | Mapping)
        and len(texts) > 0
        and (not isinstance(texts, list | tuple) or all(isinstance(text, str) for text in texts))
    ),
)
FILLED = (
    "a list or mapping with at least one entry",
    lambda values: not isinstance(values, str) and len(values) > 0,
)


def require(condition, message: str, error: type[Exception] = ValueError) -> None:
    """Raise an error that says what to do, unless the condition holds."""
    if not condition:
        raise error(message)


def texts_of(texts, name: str = "texts") -> list[str]:
    """Texts as a list, which may come from an iterator, and may be none.

    Raises ValueError if they are one string, or hold anything but strings.
    """
    many = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Mapping)
    found = list(texts) if many else [None]
    require(
        all(isinstance(text, str) for text in found),
        f"{name}={reprlib.repr(texts)}: must be a list of strings",
    )
    return found
