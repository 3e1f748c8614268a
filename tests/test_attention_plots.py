import io

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from support import LABELS, causal_weights

from helpers.attention_plots import arrows, head_grid, heatmap
from helpers.plots import Picture, render


def test_words_are_text_and_never_a_formula():
    names = lambda figure: [label.get_text() for label in figure.axes[0].get_xticklabels()]
    figure = heatmap(causal_weights()[0, 0], LABELS)
    assert names(figure) == ["<sos>", "one", r"\$", "day", r"\$", "lily"]
    figure = heatmap(np.eye(3), ["$x$", "", "an-unusually-long-word"])
    assert names(figure) == [r"\$x\$", "␣", "an-unusually-…"]
    render(figure, io.BytesIO(), format="svg")  # a formula with an error would raise here
    Picture(figure, "odd words")


def test_a_word_without_a_glyph_is_not_an_error(recwarn):
    figure = heatmap(np.eye(2), ["🐕", "狗"])  # the font lacks both
    render(figure, io.BytesIO(), format="svg")
    Picture(figure, "two words")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["U+1F415", "U+72D7"]
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_heatmap_shows_the_matrix_and_hides_a_future_without_weight():
    weights = causal_weights()[0, 0]
    shown = lambda matrix: heatmap(matrix, LABELS).axes[0].images[0].get_array()
    hidden = np.ma.getmaskarray(shown(weights))
    np.testing.assert_array_equal(hidden, np.triu(np.ones_like(weights, bool), 1))
    np.testing.assert_array_equal(shown(weights).filled(0), weights)
    assert not np.ma.getmaskarray(shown(weights.T)).any()
    with pytest.raises(ValueError, match=r"a matrix of shape \(6, 6\) for 5 × 5 words"):
        heatmap(weights, LABELS[:5])


def test_a_heatmap_frames_cells_and_says_what_is_grey():
    weights = causal_weights()[0, 0]
    axes = heatmap(weights, LABELS, marked=[(3, 1), (5, 5)]).axes[0]
    assert [patch.get_xy() for patch in axes.patches] == [(0.5, 2.5), (4.5, 4.5)]
    assert axes.get_xlabel() == "is read (grey: the future)"
    axes = heatmap(weights.T, LABELS).axes[0]
    assert (axes.get_xlabel(), len(axes.patches)) == ("is read", 0)


@pytest.mark.parametrize("kind", ["heatmap", "arrows"])
def test_the_grid_has_a_numbered_panel_for_every_head(kind):
    attention, notes = causal_weights(3, 5), {(3, 5): "reads names"}
    figure = head_grid(attention, LABELS, kind=kind, notes=notes)
    titles = [panel.get_title(loc="left") for panel in figure.axes if panel.get_title(loc="left")]
    expected = [f"layer {layer}, head {head}" for layer in (1, 2, 3) for head in (1, 2, 3, 4, 5)]
    assert titles == [*expected[:-1], "layer 3, head 5\nreads names"]
    one_layer = head_grid(attention[1], LABELS, kind=kind, first_layer=2)
    assert one_layer.axes[0].get_title(loc="left") == "layer 2, head 1"


def test_the_grid_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="kind='bars': choose 'heatmap' or 'arrows'"):
        head_grid(causal_weights(), LABELS, kind="bars")
    with pytest.raises(ValueError, match=r"attention of shape \(2, 4, 6, 6\) for 5 words"):
        head_grid(causal_weights(), LABELS[:-1])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: heatmap(np.zeros((0, 0)), []), r"a matrix of shape \(0, 0\) for 0 × 0 words"),
        (lambda: arrows(np.zeros((0, 0)), []), r"of shape \(1, 1, 0, 0\) for 0 words"),
        (lambda: head_grid(np.zeros((2, 2, 0, 0)), []), r"of shape \(2, 2, 0, 0\) for 0 words"),
        (lambda: head_grid(np.zeros((2, 0, 1, 1)), ["a"]), r"of shape \(2, 0, 1, 1\) for 1 word"),
        (lambda: heatmap(np.eye(2), "ab"), "tokens is one string: give a list of words"),
        (lambda: head_grid(np.eye(2)[None], "ab"), "tokens is one string: give a list of words"),
        (lambda: arrows(np.eye(2), "ab"), "tokens is one string: give a list of words"),
    ],
)
def test_no_words_or_one_string_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_arrows_grow_with_the_weight_and_start_at_the_threshold():
    weights = np.zeros((3, 3))
    weights[2, 0], weights[2, 1], weights[1, 0] = 0.7, 0.2, 0.05
    figure = arrows(weights, ["a", "b", "c"], threshold=0.1)
    (lines,) = (one for one in figure.axes[0].collections if isinstance(one, LineCollection))
    ends = [(round(start), round(end)) for (_, start), (_, end) in lines.get_segments()]
    # Row of the word that reads, row of the word that is read; the widest on top.
    assert ends == [(2, 1), (2, 0)]
    assert lines.get_linewidths()[1] > lines.get_linewidths()[0]
    assert lines.get_colors()[1][:3].sum() < lines.get_colors()[0][:3].sum()  # and darker
