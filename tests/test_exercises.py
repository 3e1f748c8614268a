"""The exercises: each check accepts right solutions, rejects mistakes by their name, never raises.

What a student gets is made from one source, and runs as it is.
"""

import re
from importlib import import_module

import jupytext
import numpy as np
import pytest
import torch
from support import ROOT, displayed, report_script

exercises = report_script("exercises")
checks = import_module("checks")  # which exercises lets be found
NAMES = [path.stem for path in exercises.sources()]
every_source = pytest.mark.parametrize("path", exercises.sources(), ids=NAMES)
MADE = sorted(exercises.READERS.rglob("*.ipynb"))
every_notebook = pytest.mark.parametrize(
    "path", MADE, ids=[str(path.relative_to(exercises.READERS)) for path in MADE]
)


def parts(path):
    return [part for part in exercises.read(path) if not isinstance(part, str)]


def test_each_chapter_has_exercises_and_each_exercise_has_mistakes():
    assert [path.stem for path in sorted((ROOT / "notebooks").glob("0[1-6]*.ipynb"))] == NAMES
    everything = [part for path in exercises.sources() for part in parts(path)]
    assert len(everything) >= 20
    told = re.search(r"exercises,\s(\d+)\sin all", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert int(told[1]) == len(everything)
    assert {part.title: len(part.mistakes) for part in everything if len(part.mistakes) < 3} == {}
    assert {part.title for part in everything if len(part.solutions) < 2} == set()


@every_source
def test_an_exercise_says_how_hard_it_is_and_how_long_it_takes(path):
    opening = re.compile(r"## \d+ · .+\n\n(●○○|●●○|●●●) · \d+ minutes.*\n\n\S")
    cells = jupytext.read(path).cells
    titles = [cell.source for cell in cells if re.match(r"## \d", cell.source)]
    assert [text.splitlines()[0] for text in titles if not opening.match(text)] == []
    assert len(titles) == len(parts(path))
    for number, part in enumerate(parts(path), 1):
        assert part.title.startswith(f"{number} · ")
        assert re.match(r"<details><summary>Hint</summary>\n\n[\s\S]+\n</details>$", part.hint)
        assert len(part.check.splitlines()) == 1


@pytest.mark.slow
@every_source
def test_a_check_accepts_the_right_and_names_each_mistake(path):
    for part, kind, says, found in exercises.tried(path):
        place = f"{part.title}: {kind} {says!r} was answered with {found.message!r}"
        assert found.right is {"stub": None, "right": True, "mistake": False}[kind], place
        assert says in found.message, place
        assert kind != "mistake" or says.strip(), place
        assert not found.message.startswith(checks.UNNAMED), place


# The notebooks ------------------------------------------------------------------------------------


def test_the_notebooks_are_what_the_sources_make():
    wrong = exercises.out_of_step()
    assert not wrong, f"out of step with notebooks/src/exercises: {wrong}; run `make notebooks`"
    # Jupyter pairs neither with the other: the reader's notebook would overwrite the source.
    for path in (*MADE, *exercises.sources()):
        alone = "ipynb" if path.suffix == ".ipynb" else "py:percent"
        assert jupytext.read(path).metadata["jupytext"]["formats"] == alone


@every_notebook
def test_every_check_says_what_it_should(path):
    """Untouched, that nothing is done; in the edition with solutions, that all is right."""
    sign = "✓ " if path.parent.name == "solutions" else "○ not done yet\n"
    cells = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result"}
    assert "widgets" not in jupytext.read(path).metadata
    assert exercises.execute.machine_paths(jupytext.read(path)) == []
    tested = [cell for cell in cells if re.match(r"check\.\w+\(", cell.source)]
    assert len(tested) >= 3
    for cell in tested:
        (output,) = cell.outputs
        assert output.text.startswith(sign), f"{cell.source}: {output.text}"
        assert "✗" not in output.text


@every_notebook
def test_every_link_leads_somewhere(path):
    """Those to a place in the solutions, too, as Jupyter names it."""
    text = "\n".join(c.source for c in jupytext.read(path).cells if c.cell_type == "markdown")
    found = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", text)
    assert found
    for file, anchor in found:
        target = path.parent / file
        assert target.is_file(), file
        titles = [exercises.heading(cell) for cell in jupytext.read(target).cells]
        assert not anchor or anchor in [title.replace(" ", "-") for title in titles], anchor
    if path.parent == exercises.READERS:
        assert text.count("[Solution](") == len(
            parts(ROOT / "notebooks/src/exercises" / f"{path.stem}.py")
        )


def test_each_chapter_leads_to_its_exercises():
    for name in NAMES:
        text = (ROOT / "notebooks/src" / f"{name}.py").read_text(encoding="utf-8")
        assert text.count(f"(exercises/{name}.ipynb)") == 1


def test_a_solution_keeps_the_docstring_of_its_stub():
    stub = 'def f(x):\n    """Twice x.\n\n    x: (N,).\n    """\n    raise NotImplementedError'
    whole = exercises.filled(stub, "def f(x):\n    return 2 * x")
    assert whole == stub.replace("raise NotImplementedError", "return 2 * x")
    for other in ("f = torch.add", "def f(x, y=2):\n    return y * x"):
        assert exercises.filled(stub, other) == other
    assert exercises.filled("answer = ...", "answer = 3") == "answer = 3"


# What every check does ----------------------------------------------------------------------------


@checks.exercise
def twice(student):
    x = torch.arange(6.0).view(2, 3) + 1  # (2, 3)
    checks.compare(checks.call(student, x), 2 * x, [(x, "is that x itself?")])
    return "2 rows"


def stub(x):
    raise NotImplementedError


def silent(x):
    2 * x


def in_place(x):
    x *= 2
    return x


def leaves(x):
    raise KeyError(x.shape[0])


@pytest.mark.parametrize(
    ("student", "right", "says"),
    [
        (stub, None, "not done yet"),
        (None, None, "not done yet"),
        (..., None, "not done yet"),
        (lambda x: 2 * x, True, "2 rows"),
        (lambda x: (x + x).double(), True, "2 rows"),
        (lambda x: [[2 * float(a) for a in row] for row in x], True, "2 rows"),
        (lambda x: [2 * row for row in x], True, "2 rows"),
        (lambda x: 2 * x.numpy(), True, "2 rows"),
        (lambda x: x, False, "is that x itself?"),
        (silent, False, "without `return`"),
        (in_place, False, "in place"),
        (leaves, False, "KeyError: 2. It was given a tensor of shape (2, 3)"),
        (lambda: 0, False, "TypeError"),
        (lambda x: torch.nn.Module()(x), False, 'missing the required "forward"'),
        (3, False, "TypeError"),
        (lambda x: "2x", False, "is a str"),
        (lambda x: 2 * x.mT, False, "are two axes exchanged?"),
        (lambda x: 2 * x[None], False, "one axis or more too many"),
        (lambda x: 2 * x[0], False, "lacks an axis"),
        (lambda x: 2 * x[:, :1], False, "which axis has the wrong size?"),
        (lambda x: 2 * x * torch.nan, False, "nan"),
        (lambda x: x.int(), False, "is that x itself?"),
        (lambda x: 3 * x.int(), False, "whole numbers"),
        (lambda x: 5 * x, False, "is 2.5 times what it should be"),
        (lambda x: 2 * x + 1, False, "off by the same +1"),
        (lambda x: x**2, False, checks.UNNAMED),
        (lambda x: 2 * x / (x - 1), False, checks.UNNAMED),
    ],
)
def test_a_check_answers_and_never_raises(student, right, says, capsys):
    state = torch.get_rng_state()
    found = twice(student)
    assert found.right is right
    assert says in found.message
    assert (
        capsys.readouterr().out
        == f"{ {True: '✓', False: '✗', None: '○'}[right] } {found.message}\n"
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert displayed(found) == ({}, {})  # the cell shows what was printed, and no value


def test_half_a_solution_has_a_sign_of_its_own(capsys):
    @checks.exercise
    def check(student):
        raise checks.Halfway("and now?")

    assert check(1).right is False
    assert capsys.readouterr().out == "◐ and now?\n"


def test_a_change_inside_a_list_is_seen():
    def clears(rows, names):
        rows[0].zero_()
        return rows

    with pytest.raises(checks.Wrong, match="argument 1"):
        checks.call(clears, [torch.ones(2), np.ones(2)], {"a": 1})
    with pytest.raises(checks.Wrong, match="argument 2"):
        checks.call(lambda rows, names: names.clear(), [], {"a": 1})
    assert checks.call(lambda rows: rows, (torch.tensor([1.0, torch.nan]),))
