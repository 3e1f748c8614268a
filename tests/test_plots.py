import io
import os
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from support import start

from helpers import plots
from helpers.plots import Picture

STEPS = range(8)
ROWS = [{"step": step, "train_loss": 9 / (step + 1)} for step in STEPS]
for row in ROWS:
    row["validation_loss"] = 10 / (row["step"] + 1) if row["step"] % 2 == 0 else None


def test_whiskers_of_bars_end_at_the_intervals():
    ends = {"two": (4.0, 7.0), "one": (2.0, 3.5)}
    figure = plots.bars({"one": 3.0, "two": 5.0}, x_label="x", intervals=ends)
    whiskers = figure.axes[0].containers[0][2][0].get_segments()
    assert [[x for x, _ in whisker] for whisker in whiskers] == [[2.0, 3.5], [4.0, 7.0]]


def test_titles_are_text_and_the_numbers_of_an_axis_are_formulas():
    figure = plots.bars({r"$\frac$": 1.0}, x_label="$ in $\\", title=r"$\frac{$ and $x$")
    plots.render(figure, io.BytesIO(), format="svg")  # a formula with an error would raise
    figure = plots.compare_curves({"$x$": ([1, 2], [1e-3, 1e3])}, title="$", log_y=True)
    figure.axes[0].set_xscale("log")
    plots.render(figure, io.BytesIO(), format="svg")
    ticks = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert ticks
    assert all(label.get_parse_math() for label in ticks)


def test_labels_are_short_and_show_what_is_there():
    words = ["day", "$x$", " ", "an-unusually-long-word", "a\0\ud800b"]
    assert plots.labels(words) == ["day", r"\$x\$", "␣", "an-unusually-…", "a��b"]


def test_text_that_no_file_can_hold_becomes_writable():
    assert plots.writable("a\0b \ud800 \u0085c é 🐕") == "a�b � �c é 🐕"


def test_a_character_that_the_font_lacks_is_shown_as_its_code_point(recwarn):
    assert plots.labels(["🐕", "ab狗"]) == ["U+1F415", "abU+72D7"]
    assert plots.labels(["今天天气很好"]) == ["U+4ECAU+5929U…"]  # as long as other labels, at most
    names = {"🐕 dog": {"狗": 1.0}, "é": {"狗": 2.0}}
    picture = lambda function, *values: function(*values, x_label="𓃠", title="🐕\n𝟘 狗\0")
    for figure in (picture(plots.bars, {"🐕 dog": 1.0}), picture(plots.bars, names)):
        file = io.BytesIO()
        plots.render(figure, file, format="svg")
        texts = file.getvalue().decode()
        for text in ("U+1F415 dog", "U+130E0", "U+1F415", "𝟘 U+72D7�"):
            assert f"<!-- {text} -->" in texts
    assert "<!-- U+72D7 -->" in texts  # in the legend
    assert Picture(figure, "🐕").alt == "🐕"
    assert not recwarn.list


# Other than the defaults, as far as a value can be made up: matplotlib itself skips the rest.
HOSTILE = {
    name: not value if isinstance(value, bool) else 2 * value + 1
    for name, value in matplotlib.rcParamsDefault.items()
    if isinstance(value, bool | int | float)
}
HOSTILE |= {name: "red" for name in matplotlib.rcParamsDefault if name.endswith("color")}
HOSTILE |= {"axes.titlelocation": "right", "axes.labelweight": "bold", "axes.grid.which": "both"}
HOSTILE |= {"font.family": "serif", "font.weight": "bold", "mathtext.fontset": "stix"}
HOSTILE |= {"image.origin": "lower", "image.cmap": "plasma", "savefig.bbox": "tight"}
HOSTILE |= {"lines.linestyle": "dashed", "lines.marker": "x", "legend.loc": "right"}
HOSTILE |= {"svg.fonttype": "none", "svg.id": "x", "xtick.direction": "inout", "hatch.color": "red"}


@pytest.mark.slow
def test_nobodys_matplotlibrc_changes_a_figure(tmp_path):
    path = tmp_path / "matplotlibrc"
    written = []
    for settings in ({}, HOSTILE):
        path.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
        done = start("draw_figures", environment=os.environ | {"MATPLOTLIBRC": str(path)})
        assert done.returncode == 0, done.stderr
        written.append(done.stdout.splitlines())
    assert written[0] == written[1]
    assert len(set(written[0])) == len(written[0]) > 15


def settings():
    return dict(matplotlib.rcParams.copy())


def test_the_session_has_its_own_settings_again_when_a_figure_is_written():
    with matplotlib.rc_context({"axes.facecolor": "pink", "figure.figsize": (9, 9)}):
        before = settings()
        figure = plots.bars({"one": 1.0}, x_label="count")
        assert settings() != before  # so that what a notebook adds to it has the style too
        plt.rcParams["figure.figsize"] = (3, 3)
        Picture(figure, "A bar.")
        assert settings() == before | {"figure.figsize": [3, 3]}
        with plt.style.context("dark_background"):
            figure = plots.bars({"one": 1.0}, x_label="count")
        Picture(figure, "A bar.")
        assert settings() == before | {"figure.figsize": [3, 3]}


@pytest.mark.parametrize(
    ("refused", "draw"),
    {
        "curves": lambda: plots.compare_curves({}),
        "curves ": lambda: plots.loss_curves([{"step": 1, "train_loss": None}]),
        "values": lambda: plots.bars({}, x_label=""),
        "values ": lambda: plots.ranked({}, x_label=""),
        "series": lambda: plots.bars({"a": {}}, x_label=""),
        "series ": lambda: plots.straight_lines({}, y_label=""),
        "points": lambda: plots.straight_lines({"a": ([1], [2]), "b": ([], [])}, y_label=""),
        "words": lambda: plots.scatter_words(np.zeros((0, 2)), [], []),
        "words ": lambda: plots.distributions([], {"as it is": []}),
        "words  ": lambda: plots.distributions("ab", {"as it is": [0.5, 0.5]}),
        "rules": lambda: plots.distributions(["a"], {}),
        "positions": lambda: plots.position_heatmap(np.zeros((0, 4))),
        "steps": lambda: plots.beam_tree([]),
    }.items(),
)
def test_nothing_to_draw_is_refused(refused, draw):
    message = f"^{refused.strip()}=.*: must be a list or mapping with at least one entry$"
    with pytest.raises(ValueError, match=message):
        draw()


def test_ranked_groups_are_drawn_by_their_means():
    axes = plots.ranked({"b": [3.0, 1.0], "a": [-1.0, -3.0]}, x_label="").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [bar.get_width() for bar in axes.patches] == [-2.0, 2.0]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[-1.0, -3.0], [3.0, 1.0]]
    low, high = axes.get_ylim()
    assert low > high, "the smallest is at the top"


def test_what_is_empty_inside_is_drawn_empty():
    assert plots.labels([]) == []
    with pytest.raises(ValueError, match=r"^tokens is one string: give a list of words$"):
        plots.labels("ab")
    figure = plots.compare_curves({"a": ([], []), "b": ([1], [2])}, log_x=True, log_y=True)
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[], [1]]
    assert [text.get_text() for text in plots.beam_tree([[]]).axes[0].texts] == ["prompt"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(None, ""), (True, "True"), (8_940_768, "8,940,768"), (np.int64(-1234), "-1,234")],
        *[(14.9123, "14.9"), (np.float32(0.000123456), "0.000123"), (1595.4, "1,595")],
        *[("as  it\nis", "as it is"), ("1.23456", "1.23456")],
    ],
)
def test_a_value_is_shown_with_three_digits(value, text):
    assert plots.shown(value) == text


def test_a_picture_stands_for_its_figure():
    figure, axes = plots.subplots(size=(3.0, 2.0))
    axes.plot([1, 2])
    picture = Picture(figure, "A line.", {"figure": "mine/line"})
    assert picture.png.startswith(b"\x89PNG")
    assert (picture.alt, picture.width, picture.labels) == ("A line.", 288, {"figure": "mine/line"})
    assert Picture(figure, "A line.").labels == {}
    assert repr(picture) == "Figure: A line."
    assert plt.get_fignums() == []


def test_curves_skip_what_was_not_measured_and_perplexity_is_the_exponential():
    loss, perplexity = plots.loss_curves(ROWS), plots.perplexity_curve(ROWS)
    for figure, function in ((loss, lambda y: y), (perplexity, np.exp)):
        lines = {line.get_label(): line for line in figure.axes[0].lines}
        assert list(lines["training"].get_xdata()) == list(STEPS)
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


def test_a_beam_tree_has_a_box_for_every_candidate():
    tree = [
        [(0, "lost", -1.0, True), (0, "kept", -2.0, False)],
        [(0, "his", -1.5, True), (0, "her", -3.0, False)],
    ]
    boxes = [text.get_text() for text in plots.beam_tree(tree).axes[0].texts]
    assert boxes == ["prompt", "lost  -1.0", "kept  -2.0", "his  -1.5", "her  -3.0"]


def test_distributions_share_one_axis():
    figure = plots.distributions(["a", "b"], {"as it is": [0.3, 0.2], "greedy": [0.5, 0.0]})
    assert {axes.get_xlim() for axes in figure.axes} == {(0.0, 0.55)}
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [[0.3, 0.2], [0.5, 0.0]]


def test_losses_and_scores_share_an_axis_and_an_event():
    rows = [{"step": n, "train_loss": 3.0 / n, "validation_loss": 4.0 / n} for n in (1, 2, 4, 8)]
    scores = {"same name": [0.0, 0.1, 0.4, 0.5], "next sound": [0.0, 0.0, 0.2, 0.6]}
    figure = plots.loss_and_scores(rows, {"floor": 0.5}, scores, ("it forms", 4), title="Two")
    upper, lower = figure.axes
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    drawn = {line.get_label(): list(line.get_ydata()) for line in [*upper.lines, *lower.lines]}
    assert drawn["validation"] == [4.0, 2.0, 1.0, 0.5]
    assert drawn["next sound"] == scores["next sound"]
    for axes in figure.axes:
        assert [4, 4] in [list(line.get_xdata()) for line in axes.lines]
    assert "it forms: step 4" in [text.get_text() for text in lower.texts]
    without = plots.loss_and_scores(rows, {}, scores)
    assert len(without.axes[1].lines) == 2
