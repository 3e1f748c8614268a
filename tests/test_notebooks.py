"""What every stored notebook must be. nbval compares their outputs; these checks read the files
alone.
"""

import ast
import os
import re
import sys
from importlib import import_module
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "report"))
execute = import_module("execute")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
EXEMPT = {"nbval-ignore-output", "nbval-skip"}


def code_cells(path):
    return [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]


def outputs(path):
    return [output for cell in code_cells(path) for output in cell.outputs]


def test_there_are_notebooks_and_each_agrees_with_its_text():
    assert NOTEBOOKS, "notebooks/ is empty: `make notebooks` writes the notebooks"
    wrong = execute.out_of_step()
    assert not wrong, (
        f"out of step with notebooks/src: {', '.join(wrong)}; run `make notebooks`, or `make sync`"
    )


@every_notebook
def test_every_cell_was_executed_in_order(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_no_output_is_an_error_or_a_warning(path):
    assert not [
        output
        for output in outputs(path)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


@every_notebook
def test_no_widget_state_is_stored(path):
    assert "widgets" not in jupytext.read(path).metadata
    assert not [output for output in outputs(path) if execute.WIDGET_VIEW in output.get("data", {})]


@every_notebook
def test_no_output_shows_a_path_of_the_machine(path):
    assert execute.machine_paths(jupytext.read(path)) == []


@every_notebook
def test_every_figure_has_an_alt_text(path):
    for output in outputs(path):
        for kind in output.get("data", {}):
            if kind.startswith("image/"):
                assert output.metadata.get(kind, {}).get("alt", "").strip(), output.data.get(
                    "text/plain"
                )


@every_notebook
def test_what_a_cell_is_to_show_ends_it(path):
    """Jupyter shows the value of a cell's last line only: a table before it would be lost."""
    shown = re.compile(r"(table|show_\w+|plots\.\w+|.*\.save_(figure|explorer)|\w*Explorer)$")
    for cell in code_cells(path):
        for statement in ast.parse(cell.source).body[:-1]:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                assert not shown.match(ast.unparse(statement.value.func)), ast.unparse(statement)


@every_notebook
def test_few_cells_are_exempt_from_comparison(path):
    cells = code_cells(path)
    marked = [
        cell
        for cell in cells
        if EXEMPT & set(cell.metadata.get("tags", [])) or "NBVAL_" in cell.source.upper()
    ]
    assert len(marked) <= 0.15 * len(cells), [cell.source.splitlines()[0] for cell in marked]


@every_notebook
def test_a_chapter_opens_with_a_promise_and_the_results_with_an_abstract(path):
    cells = jupytext.read(path).cells
    first_code = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    opening = "\n".join(cell.source for cell in cells[:first_code])
    assert opening.startswith("# ")
    results = path.stem == "07_results"
    for part in () if results else ("promise", "prerequisites", "running time"):
        assert part in opening.lower(), f"the opening does not name its {part}"
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    assert results == ("**Abstract.**" in str(shown[:1]))
    assert "parameters" in cells[first_code].metadata.get("tags", [])
    corpus = "tinystories" if results else "bundled"
    assert cells[first_code].source.startswith(f'CORPUS = "{corpus}"')


def test_the_tests_write_to_a_temporary_folder():
    folder = Path(os.environ["FIGURES_DIR"])
    assert folder.name == "test_notebooks"  # a folder for each file: none reads what another wrote
    assert folder.parent.is_dir()
    assert not folder.is_relative_to(ROOT)


def test_colab_is_told_only_versions_that_pip_reads():
    """Debian's own packages have versions such as 0.8.4-1build1: pip refuses the whole file."""
    sys.path.insert(0, str(ROOT / "notebooks"))
    pins = import_module("colab").pins
    good = "torch==2.11.0+cu128\npython-apt==2.4.0+ubuntu4\nnumpy==2.1.3\na==1!2.0rc1.post2.dev3\n"
    bad = "ufw==0.36.1-4ubuntu0.1\ndistro==0.8.4-1build1\nb==2024a\nc==1.0~rc1\nWARNING: x\n"
    assert pins(bad + good + bad) == good


@every_notebook
def test_it_converts_to_a_script_that_is_python(path):
    assert jupytext.read(path).metadata["language_info"]["file_extension"] == ".py"
