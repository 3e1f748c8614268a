import base64
import json
import re
import struct
import zlib
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection

from helpers import plots
from helpers.plots import (
    AttentionExplorer,
    FigureFolder,
    SamplingExplorer,
    load_numbers,
    show_source,
    table,
)

WORDS = ["<sos>", "one", "$", "day", "$", "lily"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FIGURES_DIR", str(tmp_path / "figures"))
    return FigureFolder("bundled")


def attention(layers=2, heads=4, words=6, seed=0):
    """Causal weights that add up to one: [L, H, T, T]."""
    weights = np.tri(words) * np.random.default_rng(seed).random((layers, heads, words, words))
    return weights / weights.sum(-1, keepdims=True)


EVERY_PLOT = {
    "heatmap": lambda: plots.heatmap(attention()[0, 0], WORDS, title="x"),
    "scores": lambda: plots.heatmap(np.eye(2, 6), WORDS[:2], WORDS, limits=(-1, 1), label="score"),
    "head_grid": lambda: plots.head_grid(attention(), WORDS, notes={(1, 2): "previous word"}),
    "arrows": lambda: plots.arrows(attention()[0, 0], WORDS),
    "arrow_grid": lambda: plots.head_grid(attention()[1], WORDS, kind="arrows", first_layer=2),
    "loss_curves": lambda: plots.loss_curves(ROWS, {"uniform": 9.2, "bigram": 3.0}),
    "perplexity_curve": lambda: plots.perplexity_curve(ROWS, {"bigram": 3.0}),
    "compare_curves": lambda: plots.compare_curves({"a": ([1, 2], [3, 4]), "b": ([1, 2], [4, 3])}),
    "bars": lambda: plots.bars({"one $": 1.0, "two $": 20_000.0}, x_label="tokens/s"),
    "grouped_bars": lambda: plots.grouped_bars(
        {"a": {"ours": 2.0, "theirs": 1.0}, "b": {"ours": 3.0}},
        x_label="times",
        limit=("limit", 4.0),
    ),
    "straight_lines": lambda: plots.straight_lines(
        {name: ([1, 2, 4], [2.0, 4.1, 8.2]) for name in "abcd"}, y_label="ms", title="x"
    ),
    "scatter_words": lambda: plots.scatter_words(np.eye(6, 2), WORDS, groups=list("aabbcc")),
    "position_heatmap": lambda: plots.position_heatmap(np.sin(np.arange(80).reshape(10, 8))),
}
ROWS = [
    {
        "step": step,
        "train_loss": 9 / (step + 1),
        "validation_loss": 10 / (step + 1) if step % 2 == 0 else None,
    }
    for step in range(8)
]


def texts(figure):
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]


def pixels(png):
    """The raw image data of a PNG, to see whether two pictures differ."""
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    return zlib.decompress(data)


@pytest.mark.parametrize("name", EVERY_PLOT)
def test_a_plot_saved_twice_gives_the_same_bytes_and_opens_no_window(name, folder):
    first = folder.save_figure(EVERY_PLOT[name](), name, alt="What it shows.")
    svg = (folder.path / f"{name}.svg").read_bytes()
    second = folder.save_figure(EVERY_PLOT[name](), name, alt="What it shows.")
    assert first.png == second.png
    assert (folder.path / f"{name}.svg").read_bytes() == svg
    assert b"<title>What it shows.</title>" in svg
    assert not re.search(
        rb"20\d\d-\d\d|<text|matplotlib\.org/?<", svg
    )  # no date, no font needed, no version
    assert plt.get_fignums() == []
    assert [path.name for path in folder.path.iterdir()] == [f"{name}.svg"]


def test_a_figure_shows_a_png_with_its_alt_text(folder):
    picture = folder.save_figure(
        EVERY_PLOT["bars"](), "bars", alt="Two bars,\n  the second longer."
    )
    data, metadata = picture._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == repr(picture) == "Figure: Two bars, the second longer."
    assert metadata["image/png"]["alt"] == "Two bars, the second longer."
    assert metadata["image/png"]["width"] == 672  # 7 inches of 96 pixels
    with pytest.raises(ValueError, match="alt text"):
        folder.save_figure(EVERY_PLOT["bars"](), "bars", alt=" ")


def test_figures_go_to_the_folder_of_the_corpus(monkeypatch, tmp_path):
    monkeypatch.delenv("FIGURES_DIR")
    assert FigureFolder("bundled").path == plots.ROOT / "figures" / "bundled"
    assert FigureFolder("../somewhere/my stories.txt").path == plots.ROOT / "figures" / "my stories"
    assert FigureFolder(str(tmp_path / "tinystories")).path == FigureFolder("tinystories").path
    with pytest.raises(ValueError, match="rename"):
        FigureFolder("elsewhere/bundled.txt")
    assert not (
        plots.ROOT / "figures" / "my stories"
    ).exists()  # made when something is saved, not before


def test_numbers_are_written_sorted_and_rounded(folder, monkeypatch):
    numbers = {
        "z": np.float32(1.23456789),
        "a": np.arange(4).reshape(2, 2),
        "t": torch.tensor([0.5, 2.0]),
        "n": {"none": None, "yes": True, "int": np.int64(12_345_678), "text": "[\n1, 2]"},
    }
    folder.save_numbers("04", numbers)
    text = (folder.path / "04.json").read_text(encoding="utf-8")
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
    assert (folder.path / "04.json").read_text(
        encoding="utf-8"
    ) == text  # a refused write leaves the old file
    monkeypatch.setattr(plots, "ROOT", folder.path.parent)
    folder.path.rename(folder.path.with_name("bundled"))
    (folder.path.parent / "figures").mkdir()
    (folder.path.parent / "bundled").rename(folder.path.parent / "figures" / "bundled")
    assert load_numbers("bundled", "04") == expected
    with pytest.raises(FileNotFoundError, match="make record"):
        load_numbers("tinystories", "04")
    path = folder.path.parent / "figures" / "bundled" / "04.json"
    path.write_text(text[:40], encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"04\.json is damaged .*: record it again with `make record"
    ):
        load_numbers("bundled", "04")


def test_numbers_hold_words_that_utf_8_cannot(folder, monkeypatch):
    folder.save_numbers("04", {"word": "a\ud800b", "other": "é"})
    text = (folder.path / "04.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"word": "a\ud800b", "other": "é"}


def test_words_are_text_and_never_a_formula(folder):
    figure = plots.heatmap(attention()[0, 0], WORDS)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["<sos>", "one", r"\$", "day", r"\$", "lily"]
    figure = plots.heatmap(np.eye(3), ["$x$", "", "an-unusually-long-word"])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        r"\$x\$",
        "␣",
        "an-unusually-…",
    ]
    folder.save_figure(figure, "odd", alt="odd words")  # a formula with an error would raise here


def test_titles_are_text_too(folder):
    figure = plots.bars({r"$\frac$": 1.0}, x_label="$ in $\\", title=r"$\frac{$ and $x$")
    folder.save_figure(figure, "odd", alt="a\0b \ud800\n $x$ <b> \u0085c")
    root = ElementTree.parse(folder.path / "odd.svg").getroot()
    assert "a�b � $x$ <b> c" in "".join(root.itertext())
    figure = plots.compare_curves({"$x$": ([1, 2], [1e-3, 1e3])}, title="$", log_y=True)
    figure.axes[0].set_xscale("log")
    folder.save_figure(figure, "log", alt="numbers of a logarithmic axis are formulas")
    ticks = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert ticks
    assert all(label.get_parse_math() for label in ticks)


def test_a_word_without_a_glyph_is_not_an_error(folder, recwarn):
    folder.save_figure(
        plots.heatmap(np.eye(2), ["🐕", "狗"]), "emoji", alt="two words that the font lacks"
    )
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_heatmap_shows_the_matrix_and_hides_a_future_without_weight():
    weights = attention()[0, 0]
    shown = plots.heatmap(weights, WORDS).axes[0].images[0].get_array()
    np.testing.assert_array_equal(
        np.ma.getmaskarray(shown), np.triu(np.ones_like(weights, bool), 1)
    )
    np.testing.assert_array_equal(shown.filled(0), weights)
    shown = plots.heatmap(weights.T, WORDS).axes[0].images[0].get_array()
    assert not np.ma.getmaskarray(shown).any()
    with pytest.raises(ValueError, match=r"\(6, 6\) for 5"):
        plots.heatmap(weights, WORDS[:5])


@pytest.mark.parametrize("kind", ["heatmap", "arrows"])
def test_the_grid_has_a_numbered_panel_for_every_head(kind):
    figure = plots.head_grid(attention(3, 5), WORDS, kind=kind, notes={(3, 5): "reads names"})
    titles = [panel.get_title(loc="left") for panel in figure.axes if panel.get_title(loc="left")]
    expected = [f"layer {layer}, head {head}" for layer in (1, 2, 3) for head in (1, 2, 3, 4, 5)]
    assert titles == [*expected[:-1], "layer 3, head 5\nreads names"]
    one_layer = plots.head_grid(attention()[1], WORDS, kind=kind, first_layer=2)
    assert one_layer.axes[0].get_title(loc="left") == "layer 2, head 1"


def test_the_grid_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="choose"):
        plots.head_grid(attention(), WORDS, kind="bars")
    with pytest.raises(ValueError, match="words"):
        plots.head_grid(attention(), WORDS[:-1])


def test_arrows_grow_with_the_weight_and_start_at_the_threshold():
    weights = np.zeros((3, 3))
    weights[2, 0], weights[2, 1], weights[1, 0] = 0.7, 0.2, 0.05
    figure = plots.arrows(weights, ["a", "b", "c"], threshold=0.1)
    (lines,) = (one for one in figure.axes[0].collections if isinstance(one, LineCollection))
    ends = [(round(start), round(end)) for (_, start), (_, end) in lines.get_segments()]
    assert ends == [
        (2, 1),
        (2, 0),
    ]  # (row of the word that reads, row of the word that is read), the widest on top
    assert lines.get_linewidths()[1] > lines.get_linewidths()[0]
    assert lines.get_colors()[1][:3].sum() < lines.get_colors()[0][:3].sum()  # and darker


def test_curves_skip_what_was_not_measured_and_perplexity_is_the_exponential():
    loss, perplexity = plots.loss_curves(ROWS), plots.perplexity_curve(ROWS)
    for figure, function in ((loss, lambda y: y), (perplexity, np.exp)):
        lines = {line.get_label(): line for line in figure.axes[0].lines}
        assert list(lines["training"].get_xdata()) == list(range(8))
        assert list(lines["validation"].get_xdata()) == [0, 2, 4, 6]
        expected = [function(10 / (step + 1)) for step in (0, 2, 4, 6)]
        np.testing.assert_allclose(lines["validation"].get_ydata(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "values", [[9.2, 5.5, 3.1, 3.0, 2.99], [1.0, 1.0, 1.01, 1.02], [9.0, 9.01, 9.02, 1.0]]
)
def test_names_of_landmarks_never_overlap(values):
    marks = {f"landmark {i}": value for i, value in enumerate(values)}
    figure = plots.loss_curves(ROWS, marks)
    figure.draw_without_rendering()
    names = [note for note in figure.axes[0].texts if note.get_text().startswith("landmark")]
    boxes = sorted(plt.Text.get_window_extent(note).intervaly.tolist() for note in names)
    assert len(boxes) == len(values)
    assert all(below[1] <= above[0] for below, above in pairwise(boxes))
    heights = [note.xyann[1] for note in sorted(names, key=lambda note: note.xy[1])]
    assert heights == sorted(heights)  # in the order of the lines
    assert heights[0] >= 0
    assert heights[-1] <= 1


def test_the_explorer_redraws_when_a_slider_moves():
    explorer = AttentionExplorer(
        {"first": (WORDS, attention()), "second": (WORDS[:3], attention(words=3))}
    )
    seen = {pixels(explorer.image.value)}
    for control, value in ((explorer.head, 4), (explorer.layer, 2), (explorer.sentence, "second")):
        control.value = value
        seen.add(pixels(explorer.image.value))
    assert len(seen) == 4
    assert (explorer.layer.min, explorer.layer.max, explorer.head.min, explorer.head.max) == (
        1,
        2,
        1,
        4,
    )
    assert repr(explorer) == "Figure: Layer 2, head 4 of 2 × 4: attention of “second”"
    data, metadata = explorer._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.box.model_id
    assert base64.b64decode(data["image/png"]) == explorer.image.value
    assert metadata["image/png"]["alt"]


def test_a_saved_explorer_is_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "ROOT", tmp_path)
    monkeypatch.delenv("FIGURES_DIR")
    explorer = AttentionExplorer(
        {"first": (WORDS, attention()), "second": (WORDS[:3], attention(words=3))}
    )
    explorer.sentence.value, explorer.head.value = "second", 3
    assert FigureFolder("mine").save_explorer(explorer, "02_heads") is explorer
    again = plots.load_explorer("mine", "02_heads")
    assert (again.sentence.value, again.layer.value, again.head.value) == ("second", 1, 3)
    for title, (tokens, weights) in explorer.sentences.items():
        assert again.sentences[title][0] == tokens
        assert np.abs(again.sentences[title][1] - weights).max() <= 0.0005
    assert again._repr_mimebundle_()[1]["image/png"]["explorer"] == "mine/02_heads"
    with pytest.raises(FileNotFoundError, match="record it with"):
        plots.load_explorer("mine", "03_heads")


def test_the_explorer_numbers_heads_from_one():
    weights = np.stack([np.stack([np.eye(2), np.tri(2) / [[1], [2]]])])  # (1, 2, 2, 2)
    explorer = AttentionExplorer({"s": (["a", "b"], weights)})
    explorer.head.value = 2
    expected = plots.Picture(plots.heatmap(weights[0, 1], ["a", "b"], title="layer 1, head 2"), "x")
    assert explorer.image.value == expected.png


def test_the_explorer_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="6 words"):
        AttentionExplorer({"s": (WORDS, attention(words=3))})
    with pytest.raises(ValueError, match="same number of layers"):
        AttentionExplorer({"a": (WORDS, attention()), "b": (WORDS, attention(layers=1))})


def test_show_source_holds_the_real_source():
    listing = show_source(FigureFolder)
    data = listing._repr_mimebundle_()
    assert data["text/plain"].startswith("class FigureFolder:")
    assert data["text/markdown"] == f"```python\n{data['text/plain']}\n```"
    assert data["text/plain"] in (plots.ROOT / "helpers" / "plots.py").read_text(encoding="utf-8")


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
    with pytest.raises(ValueError, match="2 columns, but a row of 1"):
        table([["a"]], ["x", "y"])


def test_the_sampling_explorer_redraws_what_its_sliders_say():
    asked = []

    def filtered(temperature, top_k, top_p):
        asked.append((temperature, top_k, top_p))
        return np.array([0.5, 0.3, 0.2, 0.0])

    explorer = SamplingExplorer(filtered, {"lost": 1, "kept": 3})
    assert asked == [(1.0, None, 1.0)]
    before = explorer.image.value
    explorer.top_k.value, explorer.temperature.value, explorer.top_p.value = 5, 0.5, 0.8
    assert asked[1:] == [(1.0, 5, 1.0), (0.5, 5, 1.0), (0.5, 5, 0.8)]
    assert explorer.image.value != before
    assert repr(explorer).endswith(
        "at temperature 0.5, top-k 5, top-p 0.8: 3 words can still come out"
    )


def test_a_beam_tree_has_a_box_for_every_candidate():
    tree = [
        [(0, "lost", -1.0, True), (0, "kept", -2.0, False)],
        [(0, "his", -1.5, True), (0, "her", -3.0, False)],
    ]
    labels = [text.get_text() for text in plots.beam_tree(tree).axes[0].texts]
    assert labels == ["prompt", "lost  -1.0", "kept  -2.0", "his  -1.5", "her  -3.0"]


def test_distributions_share_one_axis():
    figure = plots.distributions(["a", "b"], {"as it is": [0.3, 0.2], "greedy": [0.5, 0.0]})
    assert {axes.get_xlim() for axes in figure.axes} == {(0.0, 0.55)}
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [[0.3, 0.2], [0.5, 0.0]]
