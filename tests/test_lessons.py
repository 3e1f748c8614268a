"""What the second edition of a notebook promises its reader; the stored notebooks are read."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
import torch
from support import ROOT

from helpers import model as course
from helpers.model import ModelConfig

LESSONS = [
    ROOT / "notebooks" / f"{name}.ipynb"
    for name in ("01_embeddings", "02_attention", "03_decoder_block")
]
every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)

# Claims that every edition keeps, as they stand in the stored outputs.
KEPT = {
    "02_attention": [
        r"✓ two matrices set by hand make a previous-word head",
        r"✓ the wrong view raises no error: its shape is right, its content is not",
        r"✓ the weights of the past move by up to [\d.]+ if masked after the softmax, by 0 if",
        r"✓ the \d+ outputs before the exchanged word do not move, bit for bit; without",
    ],
    "03_decoder_block": [
        r"✓ ln V \+ D/\(D \+ V\) = [\d.]+ nats, measured ≈[\d.]+: within 0.02, and ln V is",
        r"✓ the floor is [\d.]+ nats per token = 8 ln 8 / \d+ tokens",
        r"✓ after 100 steps the loss is ≈[\d.]+: at most 0.01 nats above the floor, not below",
        r"✓ without the mask the loss is ≈[\d.]+, less than a third of the floor",
        r"✓ 12 blocks: for every seed pre-norm ends at least ≈[\d.]+ nats lower",
        r"✓ learned: \d+ tokens × [\d,]+ logits are the sum of the parts, within ≈",
    ],
}


def cells_of(path, kind="code"):
    return [cell for cell in jupytext.read(path).cells if cell.cell_type == kind]


def printed(path):
    outputs = [output for cell in cells_of(path) for output in cell.outputs]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)


def written_out(cell):
    """Whether the lesson of this cell is a class, written out."""
    return any(isinstance(part, ast.ClassDef) for part in ast.parse(cell.source).body)


@pytest.mark.parametrize("path", [p for p in LESSONS if p.stem in KEPT], ids=lambda path: path.stem)
def test_what_must_survive_is_claimed(path):
    text = printed(path)
    assert [claim for claim in KEPT[path.stem] if not re.search(claim, text)] == []


@every_lesson
def test_cells_are_short(path):
    cells = [cell for cell in cells_of(path) if not written_out(cell)]
    lengths = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in cells]
    assert max(lengths) <= 25, cells[lengths.index(max(lengths))].source
    assert statistics.median(lengths) <= 6


@every_lesson
def test_no_output_says_only_that_it_is_true(path):
    said = [o.text for cell in cells_of(path) for o in cell.outputs if o.output_type == "stream"]
    lines = "".join(said).splitlines()
    assert lines
    assert [line for line in lines if re.search(r"\b(True|False)$", line)] == []


@every_lesson
def test_prose_reads_without_the_report(path):
    text = "\n".join(cell.source for cell in cells_of(path, "markdown"))
    assert re.findall(r"\[@\w+", text) == []
    assert re.findall(r"the assignment|earlier deliverable|this corpus", text) == []
    for part in ("**You will be able to**", "## Recap", "## What GPT and Llama do differently"):
        assert text.count(part) == 1


@every_lesson
def test_few_cells_of_a_lesson_are_exempt(path):
    cells = cells_of(path)
    exempt = [cell for cell in cells if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert len(exempt) <= 0.1 * len(cells)


def test_every_work_is_linked_and_cited():
    bibliography = (ROOT / "report" / "references.bib").read_text(encoding="utf-8")
    addresses = re.findall(r"^  url = \{(.*)\}", bibliography, flags=re.MULTILINE)
    assert len(addresses) == bibliography.count("\n@") == len(set(addresses))
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "notebooks" / "src").glob("*.py")]
    assert [url for url in addresses if f"]({url})" not in "\n".join(sources)] == []


# --- The set-up cell ------------------------------------------------------------------------------


def setup_cell():
    (cell,) = {
        cell.source: cell
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in cells_of(path)
        if "setup" in cell.metadata.get("tags", [])
    }.values()
    return cell


def test_the_set_up_cell_is_short_and_folded_in_colab():
    cell = setup_cell()
    assert cell.metadata["cellView"] == "form"
    title, *lines = [line for line in cell.source.splitlines() if line]
    assert title.startswith("# @title ")
    assert len(lines) <= 8


def test_the_set_up_cell_finds_the_course_from_its_folders(tmp_path):
    program = tmp_path / "cell.py"
    program.write_text(f"{setup_cell().source}\nimport helpers\nprint(helpers.__file__)")
    command = [sys.executable, program]
    for folder in (ROOT, ROOT / "notebooks"):
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert Path(found.stdout.strip()) == ROOT / "helpers" / "__init__.py"
    lost = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Open this notebook inside the repository" in lost.stderr


def test_the_set_up_cell_clones_the_course_in_colab(tmp_path):
    """From a clone's address, twice, without what pip would install."""
    source = setup_cell().source.replace("/content", str(tmp_path))
    source = re.sub(r"(?m)^REPOSITORY = .*$", f"REPOSITORY = {str(ROOT)!r}", source)
    colab = tmp_path / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").touch()
    program = f"""
import subprocess, sys
import google.colab
subprocess.run = lambda command, **how: subprocess.CompletedProcess(command, 0, stdout="")
for _ in range(2):
    exec({source!r})
import helpers
print(helpers.__file__)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(tmp_path / "course" / "helpers" / "__init__.py")


# --- What is written out --------------------------------------------------------------------------


def class_cell(path, name):
    (found,) = [cell.source for cell in cells_of(path) if cell.source.startswith(f"class {name}(")]
    return found


def test_the_decoder_of_notebook_03_is_the_courses():
    """It uses torch and what the reader has seen; at full size its logits are the helper's."""
    source = class_cell(LESSONS[2], "Decoder")
    assert len(source.splitlines()) <= 35
    seen = {
        name: getattr(course, name)
        for name in ("DecoderBlock", "LayerNorm", "sinusoidal_positions")
    }
    space = {"torch": torch, "nn": torch.nn} | seen
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    made = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert names - made - arguments <= {*space, "super", "range", "float"}
    exec(source, space)
    torch.manual_seed(0)
    theirs = course.Decoder(ModelConfig())
    ours = space["Decoder"](ModelConfig())
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(4, 10_000, (3, 64))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids)).abs().max() <= 1e-6
