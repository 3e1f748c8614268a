"""Make the notebooks of exercises from notebooks/src/exercises/NN.py, and execute them.

    python report/exercises.py           -> notebooks/exercises/NN.ipynb, and solutions/NN.ipynb
    python report/exercises.py --sync    the same, inputs only; the repository's address too
    python report/exercises.py --try 02  what the check of each exercise says to each solution
    python report/exercises.py 02 03     some of them, by the beginning of their name

A source has one cell with each of these tags for an exercise; cells without a tag are in both
editions.

    exercise    what the reader fills in; it raises NotImplementedError
    solution    a right one, which takes its place in the solution edition
    second      another right one; one or more
    mistake     a wrong one, with says="a word of the message that it must cause"; three or more
    check       one line, which gives the reader's object to its check
    hint        folded, in the readers' edition only
"""

import argparse
import ast
import contextlib
import io
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
from nbformat.v4 import new_code_cell, new_markdown_cell

import execute

ROOT = Path(__file__).resolve().parents[1]
READERS = ROOT / "notebooks" / "exercises"
sys.path.insert(0, str(READERS))  # for `checks`; that of `helpers` is set by execute
TAGS = {"exercise", "solution", "second", "mistake", "check", "hint"}


def sources(names: list[str] = ()) -> list[Path]:
    """The sources whose names begin with one of `names`; all of them if there is none."""
    found = sorted((ROOT / "notebooks/src/exercises").glob("*.py"))
    return [path for path in found if not names or path.stem.startswith(tuple(names))]


def role(cell) -> str:
    """The tag that says which part of an exercise a cell is, or an empty string."""
    return next((tag for tag in cell.metadata.get("tags", []) if tag in TAGS), "")


# Editions -----------------------------------------------------------------------------------------


def editions(path: Path) -> dict[Path, object]:
    """The notebooks of a source, not executed, by the path of each."""
    made = {}
    for folder, cells_of in ((READERS, for_readers), (READERS / "solutions", with_solutions)):
        notebook = jupytext.read(path)
        notebook.cells = cells_of(notebook.cells, path.stem)
        for cell in notebook.cells:
            cell.metadata.pop("says", None)
        # Not paired: a text that Jupyter keeps beside it would overwrite the source.
        notebook.metadata = type(notebook.metadata)(
            execute.KERNEL | {"jupytext": {"formats": "ipynb"}}
        )
        execute.set_ids(notebook)
        made[folder / f"{path.stem}.ipynb"] = notebook
    return made


def for_readers(cells: list, name: str) -> list:
    kept, title = [], ""
    for cell in cells:
        title = heading(cell) or title
        if role(cell) in ("solution", "second", "mistake"):
            continue
        if role(cell) == "hint":
            anchor = title.replace(" ", "-")
            cell.source += f"\n\n[Solution](solutions/{name}.ipynb#{anchor})"
        kept.append(cell)
    return kept


def with_solutions(cells: list, name: str) -> list:
    kept, others, stub = [], [], ""
    for cell in cells:
        match role(cell):
            case "exercise":
                stub = cell.source
            case "solution":
                kept.append(new_code_cell(filled(stub, cell.source)))
            case "second":
                others += [new_markdown_cell("Another way:"), new_code_cell(cell.source)]
            case "check":
                kept.append(cell)
                for other in others:
                    kept.append(other)
                    if other.cell_type == "code":
                        kept.append(new_code_cell(cell.source))
                others = []
            case "":
                if cell.cell_type == "markdown":
                    cell.source = moved(cell.source, name, first=not kept)
                kept.append(cell)
    return kept


def heading(cell) -> str:
    """The title of an exercise, if this cell has one."""
    found = re.match(r"## (.*)", cell.source) if cell.cell_type == "markdown" else None
    return found[1] if found else ""


def filled(stub: str, solution: str) -> str:
    """The stub with the solution's body, so that its docstring stays; or the solution."""
    head, _, rest = stub.partition('    """')
    body = solution.removeprefix(head)
    if not head.startswith("def ") or not rest or body == solution:
        return solution
    return stub.removesuffix("    raise NotImplementedError") + body


def moved(text: str, name: str, first: bool) -> str:
    """Text whose links are right one folder deeper. The first cell says which edition this is."""
    text = re.sub(r"\]\((?!https?:|#)", "](../", text)
    if not first:
        return text
    text = text.replace("/notebooks/exercises/", "/notebooks/exercises/solutions/")
    title, rest = text.split("\n", 1)
    title = title.replace("Exercises for", "Solutions of the exercises for")
    return (
        f"{title}\n{rest}\n\n**This edition holds the solutions**: [try without](../{name}.ipynb)."
    )


# The checks, tried --------------------------------------------------------------------------------


@dataclass
class Exercise:
    """One exercise of a source: texts of cells. A mistake is a pair of `says` and text."""

    title: str
    stub: str
    solutions: list[str] = field(default_factory=list)
    mistakes: list[tuple[str, str]] = field(default_factory=list)
    check: str = ""
    hint: str = ""


def read(path: Path) -> list:
    """The cells of a source in order: texts of code without a tag, and an Exercise for each."""
    found, title = [], ""
    for cell in jupytext.read(path).cells:
        title, kind = heading(cell) or title, role(cell)
        if kind == "exercise":
            found.append(Exercise(title, cell.source))
        elif kind in ("solution", "second"):
            found[-1].solutions.append(cell.source)
        elif kind == "mistake":
            found[-1].mistakes.append((cell.metadata["says"], cell.source))
        elif kind:
            setattr(found[-1], kind, cell.source)
        elif cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
            found.append(cell.source)
    return found


def verdict(exercise: Exercise, solution: str, names: dict):
    """What the check says to a solution that sees these names, which it adds to."""
    exec(compile(solution, "<solution>", "exec"), names)
    *before, last = ast.parse(exercise.check).body
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(ast.Module(before, []), "<check>", "exec"), names)
        return eval(compile(ast.Expression(last.value), "<check>", "eval"), names)


def tried(path: Path):
    """(exercise, kind, says, verdict) of every solution in a source, the stub among them."""
    names = {"__name__": "__main__"}
    for part in read(path):
        if isinstance(part, str):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(part, str(path), "exec"), names)
            continue
        solved, *others = (dict(names) for _ in part.solutions)
        yield part, "stub", "not done yet", verdict(part, part.stub, dict(names))
        for text, own in zip(part.solutions, (solved, *others), strict=True):
            yield part, "right", "", verdict(part, text, own)
        for says, text in part.mistakes:
            yield part, "mistake", says, verdict(part, text, dict(solved))
        names = solved


def show(path: Path) -> None:
    wanted, title = {"stub": None, "right": True, "mistake": False}, ""
    begin = time.monotonic()
    for part, kind, says, found in tried(path):
        if part.title != title:
            title = part.title
            print(f"\n{path.stem}: {title}")
        good = found.right is wanted[kind] and says in found.message
        wish = "" if good else f"    <-- should be {wanted[kind]} and say {says!r}"
        print(f"    {'ok   ' if good else 'WRONG'} {kind:8} {found.message}{wish}")
    print(f"{time.monotonic() - begin:.1f} s")


# All of them --------------------------------------------------------------------------------------


def renew(path: Path, run: bool) -> list[str]:
    """Write the notebooks of a source, and return what is wrong with them."""
    problems = []
    for target, notebook in editions(path).items():
        begin, found = time.monotonic(), []
        target.parent.mkdir(exist_ok=True)
        if run:
            found = execute.execute(notebook, folder=target.parent)
            found += execute.machine_paths(notebook)
            if not found:
                execute.write(notebook, target)
        else:
            execute.write_inputs(notebook, target)
        name = target.relative_to(READERS).with_suffix("").as_posix()
        print(f"{name:30} {'FAILED' if found else 'ok':6} {time.monotonic() - begin:4.0f} s")
        problems += [f"{name}: {problem}" for problem in found]
    return problems


def out_of_step() -> list[str]:
    """The names of notebooks that are not what their sources make, or that lack a source."""
    made = {target: notebook for path in sources() for target, notebook in editions(path).items()}
    here = {*READERS.glob("*.ipynb"), *(READERS / "solutions").glob("*.ipynb")}
    differ = {
        path
        for path in here & made.keys()
        if execute.inputs(jupytext.read(path)) != execute.inputs(made[path])
    }
    return sorted(str(path.relative_to(READERS)) for path in (here ^ made.keys()) | differ)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="the beginnings of the sources' names")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--sync", action="store_true", help="write inputs, execute nothing")
    how.add_argument("--try", action="store_true", dest="tries", help="print what checks say")
    options = parser.parse_args()
    paths = sources(options.names)
    if not paths:
        parser.error(f"no source begins with {' or '.join(options.names)}")
    if options.tries:
        for path in paths:
            show(path)
        return 0
    if options.sync:
        execute.renew_address(paths)
    problems = [problem for path in paths for problem in renew(path, not options.sync)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
