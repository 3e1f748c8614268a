"""The checks of the exercises: each says what is wrong with a solution, and never how to write it.

A check is a function of the reader's object. It calls `call`, `expect` and `compare`, and returns
a sentence for a right solution:

    @exercise
    def mean(student):
        x = torch.randn(3, 5)
        known = [(x.sum(-1), "you add up, but do not divide: is this a sum?")]
        compare(call(student, x), x.mean(-1), known)
        return "the means of 3 rows"
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

# How a message begins that says where a result differs, but not by which mistake.
UNNAMED = "Not yet right: "


class Wrong(Exception):
    """A solution is wrong; the message says what is."""


class Halfway(Wrong):
    """The first half of a solution is right, and the second is wrong, or not there yet."""


@dataclass(frozen=True)
class Verdict:
    """What a check found: right is None if the exercise is not done yet."""

    right: bool | None
    message: str
    halfway: bool = False

    def _ipython_display_(self) -> None:
        """Nothing: the check has printed its message."""


def exercise(check: Callable[[object], str]) -> Callable[[object], Verdict]:
    """Turn a function of the reader's object into a check that prints its verdict, never raises."""

    @functools.wraps(check)
    def checked(student) -> Verdict:
        _calls.clear()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # on tensors this small, more would only wait for each other
        try:
            with torch.random.fork_rng(devices=[]):  # the reader's random numbers stay as they are
                torch.manual_seed(0)
                verdict = _judge(check, student)
        finally:
            torch.set_num_threads(threads)
        sign = "◐" if verdict.halfway else {True: "✓", False: "✗", None: "○"}[verdict.right]
        print(f"{sign} {verdict.message}")
        return verdict

    return checked


def _judge(check, student) -> Verdict:
    if student is None or student is ...:
        return Verdict(None, "not done yet")
    try:
        return Verdict(True, check(student))
    except Wrong as wrong:
        return Verdict(False, str(wrong), isinstance(wrong, Halfway))
    except Exception as error:
        # PyTorch raises NotImplementedError too, with a message.
        if isinstance(error, NotImplementedError) and not error.args:
            return Verdict(None, "not done yet")
        reason = (str(error).strip().splitlines() or [""])[0]
        given = f" It was given {_calls[-1]}." if _calls else ""
        return Verdict(False, f"your code raised {type(error).__name__}: {reason}.{given}")


def expect(condition, message: str) -> None:
    """Reject the solution with this message unless the condition holds."""
    if not condition:
        raise Wrong(message)


_calls: list[str] = []  # what the reader's functions were given since the check began


def call(student: Callable, *given, **named):
    """What the reader's function returns. It is rejected if it changes an argument in place."""
    everything = [*given, *named.values()]
    _calls.append(", ".join(map(_described, everything)) or "no arguments")
    before = [_copied(value) for value in everything]
    result = student(*given, **named)
    for number, (old, new) in enumerate(zip(before, everything, strict=True), 1):
        expect(
            _same(old, new),
            f"you change argument {number} in place, and whoever calls you still needs it: which "
            "line writes into it? (+= does, and so does a method whose name ends with _.)",
        )
    return result


def _described(value) -> str:
    if isinstance(value, Tensor | np.ndarray):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def _copied(value):
    """A copy of tensors, arrays, and lists, tuples and dicts of them; anything else as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return [_copied(part) for part in value]
    return value


def _same(old, new) -> bool:
    if isinstance(new, Tensor):
        return old.shape == new.shape and torch.equal(old.nan_to_num(), new.detach().nan_to_num())
    if isinstance(new, np.ndarray):
        return np.array_equal(old, new)
    if isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in new)
    if type(new) in (list, tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    return True


def as_tensor(result, what: str = "the result") -> Tensor:
    """A reader's tensor, array, number, or list of them, as a tensor without its graph."""
    expect(result is not None, f"{what} is None: does the function end without `return`?")
    if isinstance(result, Tensor):
        return result.detach()
    try:
        if isinstance(result, list | tuple) and any(isinstance(part, Tensor) for part in result):
            return torch.stack([as_tensor(part) for part in result])
        return torch.as_tensor(float(result) if type(result) is Fraction else np.asarray(result))
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what} should be a tensor, and is a {type(result).__name__}") from None


def agrees(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors have one shape and, within the tolerance, the same numbers."""
    if got.shape != wanted.shape and not got.numel() == wanted.numel() == 1:
        return False
    got, wanted = got.detach().double().reshape(wanted.shape), wanted.detach().double()
    return torch.allclose(got, wanted, rtol=tolerance, atol=tolerance)


def compare(
    got,
    wanted: Tensor | float,
    known: Iterable[tuple[Tensor | float, str]] = (),
    what: str = "the result",
    where: Callable[[tuple[int, ...]], str] = lambda index: "",
    tolerance: float = 1e-5,
) -> None:
    """Reject a result that is not the wanted one, by the name of its mistake if that is known.

    Args:
        known: what known mistakes would give, each with the message that names it. The first that
            agrees with the result is taken.
        where: says in words what is wanted at the index of the largest difference.
    """
    got, wanted = as_tensor(got, what), as_tensor(wanted)
    if agrees(got, wanted, tolerance):
        return
    for mistake, message in known:
        mistake = as_tensor(mistake)
        expect(agrees(mistake, wanted, tolerance) or not agrees(got, mistake, tolerance), message)
    _expect_shape(got, wanted.shape, what)
    expect(
        wanted.isnan().any() or not got.isnan().any(),
        f"there is nan in {what}: is 0 divided by 0, or multiplied by inf, or is a row all -inf?",
    )
    expect(
        got.is_floating_point() or not wanted.is_floating_point(),
        f"there are whole numbers ({got.dtype}) in {what}: where are the fractions cut off?",
    )
    got, wanted = got.double().reshape(wanted.shape), wanted.double()
    if wanted.numel() > 1 and got.isfinite().all() and wanted.isfinite().all():
        factor = float((got * wanted).sum() / wanted.square().sum().clamp(min=1e-30))
        expect(
            not agrees(got, factor * wanted, tolerance),
            f"each number of {what} is {factor:.3g} times what it should be: is there a factor too "
            "many, or one that is missing?",
        )
        offset = float((got - wanted).mean())
        expect(
            not agrees(got, wanted + offset, tolerance),
            f"each number of {what} is off by the same {offset:+.3g}: is something added to all?",
        )
    difference = (got - wanted).abs().nan_to_num(torch.inf, torch.inf)
    index = tuple(map(int, np.unravel_index(int(difference.argmax()), wanted.shape)))
    place = f" at index {index}" if index else ""
    share = f", {int((difference > tolerance).sum())} of {wanted.numel()} numbers differ"
    words = where(index)
    raise Wrong(
        f"{UNNAMED}the largest error of {what} is {float(difference.max()):.3g}{place}"
        + (share if index else "")
        + (f"; {words}" if words else "")
    )


def _expect_shape(got: Tensor, shape: Sequence[int], what: str) -> None:
    have, want = tuple(got.shape), tuple(shape)
    if have == want or (got.numel() == 1 and not want):
        return
    expect(
        have not in permutations(want),
        f"the shape of {what} is {have}, which is {want} in another order: are two axes exchanged?",
    )
    expect(
        len(have) <= len(want),
        f"the shape of {what} is {have}, one axis or more too many for {want}: over which "
        "should it be combined?",
    )
    expect(
        len(have) == len(want),
        f"the shape of {what} is {have}, and lacks an axis of {want}: which one went?",
    )
    raise Wrong(
        f"the shape of {what} is {have}, and should be {want}: which axis has the wrong size?"
    )


def expect_shape(got, shape: Sequence[int], what: str = "the result") -> Tensor:
    """The result as a tensor. It is rejected, by how its shape differs, unless it has this one."""
    got = as_tensor(got, what)
    _expect_shape(got, shape, what)
    return got
