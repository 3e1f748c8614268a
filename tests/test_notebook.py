import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from nbformat.v4 import new_output
from support import LABELS, ROOT, causal_weights, displayed, write_notebook

from helpers import attention_plots, notebook, plots
from helpers.explorers import AttentionExplorer
from helpers.notebook import FigureFolder, claim, load_explorer, load_numbers, show_source, table

ROWS = [
    {"step": 0, "train_loss": 9.0, "validation_loss": 10.0},
    {"step": 1, "train_loss": 4.5, "validation_loss": None},
    {"step": 2, "train_loss": 3.0, "validation_loss": 3.3},
]
CURVES = {"a": ([1, 2], [3, 4]), "b": ([1, 2], [4, 3])}
TIMES = {"a": {"ours": 2.0, "theirs": 1.0}, "b": {"ours": 3.0}}
GROWTH = {name: ([1, 2, 4], [2.0, 4.1, 8.2]) for name in "abcd"}
TREE = [[(0, "lost", -1.0, True), (0, "kept", -2.0, False)], [(0, "$", -1.5, True)]]
SCORES = {"limits": (-1, 1), "label": "score"}
NOTES = {(1, 2): "previous word"}
HEADS = causal_weights()
EVERY_PLOT = {
    "heatmap": lambda: attention_plots.heatmap(HEADS[0, 0], LABELS, title="x"),
    "scores": lambda: attention_plots.heatmap(np.eye(2, 6), LABELS[:2], LABELS, **SCORES),
    "head_grid": lambda: attention_plots.head_grid(HEADS, LABELS, notes=NOTES),
    "arrows": lambda: attention_plots.arrows(HEADS[0, 0], LABELS),
    "arrow_grid": lambda: attention_plots.head_grid(HEADS[1], LABELS, kind="arrows", first_layer=2),
    "loss_curves": lambda: plots.loss_curves(ROWS, {"uniform": 9.2, "bigram": 3.0}),
    "perplexity_curve": lambda: plots.perplexity_curve(ROWS, {"bigram": 3.0}),
    "compare_curves": lambda: plots.compare_curves(CURVES),
    "bars": lambda: plots.bars({"one $": 1.0, "two $": 20_000.0}, x_label="tokens/s"),
    "bars of series": lambda: plots.bars(TIMES, x_label="times", limit=("limit", 4.0)),
    "straight_lines": lambda: plots.straight_lines(GROWTH, y_label="ms", title="x"),
    "scatter_words": lambda: plots.scatter_words(np.eye(6, 2), LABELS, groups=list("aabbcc")),
    "position_heatmap": lambda: plots.position_heatmap(np.sin(np.arange(80).reshape(10, 8))),
    "distributions": lambda: plots.distributions(["a", "$"], {"as it is": [0.3, 0.2]}, title="x"),
    "beam_tree": lambda: plots.beam_tree(TREE, title="x"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of figures in a repository of its own, so that what it saves can be loaded."""
    monkeypatch.delenv("FIGURES_DIR")
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    return FigureFolder("bundled")


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_PLOT)
def test_a_plot_saved_twice_gives_the_same_bytes_and_opens_no_window(name, folder):
    first = folder.save_figure(EVERY_PLOT[name](), name, alt="What it shows.")
    svg = (folder.path / f"{name}.svg").read_bytes()
    second = folder.save_figure(EVERY_PLOT[name](), name, alt="What it shows.")
    assert first.png == second.png
    assert (folder.path / f"{name}.svg").read_bytes() == svg
    assert b"<title>What it shows.</title>" in svg
    # No date, no font needed, no version.
    assert not re.search(rb"20\d\d-\d\d|<text|matplotlib\.org/?<", svg)
    assert plt.get_fignums() == []
    assert [path.name for path in folder.path.iterdir()] == [f"{name}.svg"]


def test_a_figure_shows_a_png_with_its_alt_text(folder):
    alt = "Two bars,\n  the second longer."
    picture = folder.save_figure(EVERY_PLOT["bars"](), "bars", alt=alt, caption="Two bars.")
    data, metadata = picture._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == repr(picture) == "Figure: Two bars, the second longer."
    assert metadata["image/png"]["alt"] == "Two bars, the second longer."
    assert metadata["image/png"]["width"] == 672  # 7 inches of 96 pixels
    assert metadata["image/png"]["figure"] == f"{folder.path.name}/bars"
    assert metadata["image/png"]["caption"] == "Two bars."
    with pytest.raises(ValueError, match="figure 'bars' needs an alt text"):
        folder.save_figure(EVERY_PLOT["bars"](), "bars", alt=" ")


def test_a_caption_stands_below_its_figure(folder, capsys):
    for caption, below in (("Two * bars.", "'*Two \\\\* bars.*'"), ("", None)):
        picture = folder.save_figure(EVERY_PLOT["bars"](), "bars", alt="Bars.", caption=caption)
        picture._ipython_display_()
        first, *others = capsys.readouterr().out.splitlines()
        assert "image/png" in first
        assert [line for line in others if "text/markdown" in line] == others
        assert below is None if not others else below in others[0]


def test_titles_and_alt_texts_are_text(folder):
    figure = plots.bars({r"$\frac$": 1.0}, x_label="$ in $\\", title=r"$\frac{$ and $x$")
    folder.save_figure(figure, "odd", alt="a\0b \ud800\n $x$ <b> \u0085c")
    root = ElementTree.parse(folder.path / "odd.svg").getroot()
    assert "a�b � $x$ <b> c" in "".join(root.itertext())


@pytest.mark.parametrize(
    ("place", "figures"),
    [
        (None, ROOT / "figures"),
        ("", ROOT / "figures"),
        ("~/it's here", Path("/home of somebody/it's here")),
    ],
)
def test_figures_go_to_the_folder_of_the_corpus(monkeypatch, tmp_path, place, figures):
    monkeypatch.setenv("HOME", "/home of somebody")
    if place is None:
        monkeypatch.delenv("FIGURES_DIR")
    else:
        monkeypatch.setenv("FIGURES_DIR", place)
    assert FigureFolder("bundled").path == figures / "bundled"
    assert FigureFolder("../somewhere/my stories.txt").path == figures / "my stories"
    assert FigureFolder(str(tmp_path / "tinystories")).path == FigureFolder("tinystories").path
    with pytest.raises(ValueError, match="rename"):
        FigureFolder("elsewhere/bundled.txt")
    assert not (figures / "my stories").exists()  # made when something is saved, not before


def test_numbers_are_written_sorted_and_rounded(folder):
    numbers = {
        "z": np.float32(1.23456789),
        "a": np.arange(4).reshape(2, 2),
        "t": torch.tensor([0.5, 2.0]),
        "n": {"none": None, "yes": True, "int": np.int64(12_345_678), "text": "[\n1, 2]"},
    }
    folder.save_numbers("04", numbers)
    path = folder.path / "04.json"
    text = path.read_text(encoding="utf-8")
    expected = {
        "a": [[0, 1], [2, 3]],
        "n": {"int": 12_345_678, "none": None, "text": "[\n1, 2]", "yes": True},
        "t": [0.5, 2.0],
        "z": 1.23457,
    }
    assert json.loads(text) == expected
    assert list(json.loads(text)) == sorted(expected)
    assert "[ 0, 1 ]" in text  # a row of numbers is one line of a diff
    for wrong in (float("nan"), np.inf):
        with pytest.raises(ValueError, match="JSON"):
            folder.save_numbers("04", {"x": wrong})
    with pytest.raises(TypeError, match=r"JSON cannot hold \{1\}"):
        folder.save_numbers("04", {"x": {1}})
    assert path.read_text(encoding="utf-8") == text  # a refused write leaves the old file
    assert load_numbers("bundled", "04") == expected


def test_numbers_of_this_run_come_before_those_of_the_repository(folder, tmp_path, monkeypatch):
    folder.save_numbers("04", {"from": "the repository"})
    FigureFolder("tinystories").save_numbers("04", {"from": "the repository"})
    monkeypatch.setenv("FIGURES_DIR", str(tmp_path / "run"))
    assert load_numbers("bundled", "04") == {"from": "the repository"}
    FigureFolder("bundled").save_numbers("04", {"from": "this run"})
    assert load_numbers("bundled", "04") == {"from": "this run"}
    assert load_numbers("tinystories", "04") == {"from": "the repository"}
    monkeypatch.delenv("FIGURES_DIR")
    assert load_numbers("bundled", "04") == {"from": "the repository"}


def test_numbers_that_cannot_be_loaded_say_what_records_them(folder):
    missing = r"figures/tinystories/04\.json is missing: `make record CORPUS=path` writes it"
    with pytest.raises(FileNotFoundError, match=missing):
        load_numbers("tinystories", "04")
    folder.save_numbers("04", {"number": 1})
    path = folder.path / "04.json"
    path.write_text(path.read_text(encoding="utf-8")[:-4], encoding="utf-8")
    damaged = r"figures/bundled/04\.json is damaged \(.+\): `make record CORPUS=path` writes it"
    with pytest.raises(ValueError, match=damaged):
        load_numbers("bundled", "04")


def test_numbers_hold_words_that_utf_8_cannot(folder):
    folder.save_numbers("04", {"word": "a\ud800b", "other": "é"})
    text = (folder.path / "04.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"word": "a\ud800b", "other": "é"}


@pytest.mark.usefixtures("folder")
def test_a_saved_explorer_is_the_same_again():
    sentences = {"first": (LABELS, HEADS), "second": (LABELS[:3], causal_weights(words=3))}
    explorer = AttentionExplorer(sentences, notes={(1, 3): "reads names"})
    explorer.sentence.value, explorer.head.value = "second", 3
    assert repr(explorer).endswith("attention of “second”. reads names")
    assert FigureFolder("mine").save_explorer(explorer, "02_heads") is explorer
    again = load_explorer("mine", "02_heads")
    assert (again.sentence.value, again.layer.value, again.head.value) == ("second", 1, 3)
    assert again.notes == explorer.notes
    for title, (tokens, weights) in explorer.sentences.items():
        assert again.sentences[title][0] == tokens
        assert np.abs(again.sentences[title][1] - weights).max() <= 0.0005
    for shown in (explorer, again):
        labels = displayed(shown)[1]["image/png"]
        assert (labels["figure"], labels["explorer"]) == ("mine/02_heads", "mine/02_heads")
    with pytest.raises(FileNotFoundError, match="make record"):
        load_explorer("mine", "03_heads")


def test_show_source_holds_the_real_source():
    data, _ = displayed(show_source(FigureFolder))
    assert data["text/plain"].startswith("class FigureFolder:")
    assert data["text/markdown"] == f"```python\n{data['text/plain']}\n```"
    assert data["text/plain"] in (ROOT / "helpers" / "notebook.py").read_text(encoding="utf-8")


def test_a_table_is_markdown_with_text_beside_it():
    rows = [["<pad> | $", 8_940_768, 14.9123], {"loss": None, "model": "b*", "size": 5}]
    shown = table(rows, ["model", "size", "loss"])
    assert shown.markdown.splitlines() == [
        "| model | size | loss |",
        "| :-- | --: | --: |",
        r"| \<pad\> \| \$ | 8,940,768 | 14.9 |",
        r"| b\* | 5 |  |",
    ]
    lines = ["model           size  loss", "<pad> | $  8,940,768  14.9", "b*                 5"]
    assert repr(shown).splitlines() == lines
    with pytest.raises(ValueError, match=r"2 columns, but rows of \[2, 1\] values"):
        table([["a", "b"], ["a"]], ["x", "y"])


@pytest.mark.parametrize("make", [bool, np.bool_, np.array, torch.tensor])
def test_a_claim_is_printed_if_it_holds_and_stops_the_notebook_if_not(make, capsys):
    claim("a loss of ≈0.5 is below 1", make(True))
    assert capsys.readouterr().out == "✓ a loss of ≈0.5 is below 1\n"
    with pytest.raises(AssertionError, match=r"does not hold here: 2 \* 2 is 5$"):
        claim("2 * 2 is 5", make(False))
    assert capsys.readouterr().out == ""


# What is stored, what a fresh run prints, and whether nbval takes the one for the other.
CLAIMS = [
    ("the same words", "the same words", True),
    ("a loss of ≈0.038 after 5 epochs", "a loss of ≈0.041 after 5 epochs", True),
    ("a loss of ≈0.038 after 5 epochs", "a loss of ≈0.038 after 6 epochs", False),
    ("a loss of ≈0.038 after 5 epochs", "a cost of ≈0.038 after 5 epochs", False),
    ("≈1,234.5 tokens", "≈98.5 tokens", True),
    ("≈99,999", "≈1,000,000", True),
    ("a step of ≈−1.2e-7", "a step of ≈3e-08", True),
    ("≈-0.5 and ≈+2", "≈0.25 and ≈−1.75E+10", True),
    ("≈ 7 ms", "≈ 11 ms", True),
    ("≈12 % of the time", "≈9.5 % of the time", True),
    ("≈12 %", "≈12 ‰", False),
    ("≈3× as fast", "≈2.7× as fast", True),
    ("≈3× as fast", "≈3+ as fast", False),
    ("It is ≈0.5.", "It is ≈0.6.", True),
    ("It is ≈0.5.", "It is ≈0.5", False),
    ("≈1, 2 and 3", "≈1, 4 and 3", False),
    ("≈1,2", "≈1,3", False),
    ("≈5 of 10", "≈5 of 11", False),
    ("≈1/3", "≈1/4", False),
    ("3 ≈2", "4 ≈2", False),
    ("≈0.3", "0.3", False),
    ("≈0.3", "≈nan", False),
    ("≈ a third", "≈ a fourth", False),
]


def compare_notebooks(folder, *names, options=("-p", "no:cacheprovider")):
    """What nbval says of notebooks in a folder, compared as `make test` does."""
    rules = ["--nbval-sanitize-with", str(ROOT / "tests" / "nbval.cfg"), *options]
    shown = "--nbval --nbval-current-env -v --color=no --tb=no".split()
    command = [sys.executable, "-m", "pytest", *names, *shown, *rules]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_fresh_run_may_differ_in_a_number_after_almost_equal_and_in_nothing_else(tmp_path):
    outputs = [[new_output("stream", name="stdout", text=f"✓ {was}\n")] for was, _, _ in CLAIMS]
    cells = [f"claim({now!r}, True)" for _, now, _ in CLAIMS]
    first = ("# NBVAL_IGNORE_OUTPUT\nfrom helpers.notebook import claim", [])  # fonts are scanned
    write_notebook(tmp_path / "claims.ipynb", first, *zip(cells, outputs, strict=True))
    done = compare_notebooks(tmp_path, "claims.ipynb")
    results = re.findall(r"::Cell \d+ (PASSED|FAILED)", done.stdout)
    assert results[:1] == ["PASSED"], done.stdout + done.stderr
    passed = [result == "PASSED" for result in results[1:]]
    assert [(was, now, same) for (was, now, _), same in zip(CLAIMS, passed, strict=True)] == CLAIMS


@pytest.mark.slow
def test_a_notebook_does_not_read_what_another_wrote_in_the_same_test(tmp_path):
    """Whatever comes first: 07 shows numbers of 04, and those of this machine may be others."""
    steps = load_numbers("bundled", "04")["steps"]
    first = ("# NBVAL_IGNORE_OUTPUT\nfrom helpers.notebook import *", [])
    writes = ("FigureFolder('bundled').save_numbers('04', {'steps': -1})", [])
    shown = [new_output("stream", name="stdout", text=f"{steps}\n")]
    write_notebook(tmp_path / "04.ipynb", first, writes)
    write_notebook(
        tmp_path / "07.ipynb", first, ("print(load_numbers('bundled', '04')['steps'])", shown)
    )
    options = ["-p", "conftest", f"--rootdir={tmp_path}", "-c", os.devnull]
    done = compare_notebooks(tmp_path, "04.ipynb", "07.ipynb", options=options)
    assert done.returncode == 0, done.stdout + done.stderr
