"""Attention as pictures: one head as a heat-map or as arrows, and all heads side by side."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np
import seaborn as sns
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from helpers.plots import COLORS, GREY, labels, subplots
from helpers.support.checks import require


def heatmap(
    matrix,
    tokens: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    title: str = "",
    label: str = "attention weight",
    limits: tuple[float, float] = (0.0, 1.0),
    marked: Sequence[tuple[int, int]] = (),
) -> Figure:
    """One head as a heat-map: each row is the word that reads, each column a word that is read.

    If there is no weight above the diagonal, the future is grey.

    Args:
        matrix: [T, S].
        tokens, keys: the words of the rows and of the columns; None: the same.
        label, limits: of the colour scale; a negative limit gives two colours around zero.
        marked: (row, column) of cells to frame.

    Raises:
        ValueError: if there are no words, or they do not fit the matrix.
    """
    matrix, keys = np.asarray(matrix, dtype=float), tokens if keys is None else keys
    require(
        matrix.size and matrix.shape == (len(tokens), len(keys)),
        f"a matrix of shape {matrix.shape} for {len(tokens)} × {len(keys)} words",
    )
    side = max(3.2, 0.24 * max(matrix.shape))
    figure, axes = subplots(size=(side + 2.2, side * matrix.shape[0] / matrix.shape[1] + 1.2))
    image = _draw_heatmap(axes, matrix, tokens, keys, limits)
    _frame(axes, marked)
    if matrix.size <= 100:
        for row, column in np.argwhere(~np.ma.getmaskarray(image.get_array())):
            shade = image.cmap(image.norm(matrix[row, column]))
            ink = "white" if np.dot(shade[:3], (0.3, 0.59, 0.11)) < 0.5 else "black"
            axes.text(
                column,
                row,
                f"{matrix[row, column]:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color=ink,
            )
    axes.set(ylabel="reads", xlabel=f"is read{_future(image)}", title=title)
    figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    return figure


def arrows(weights, tokens: Sequence[str], *, threshold: float = 0.1, title: str = "") -> Figure:
    """One head as arrows from the word that reads (left) to what it reads (right).

    Width and shade are the weight.

    weights: [T, T]; those below `threshold` are hidden. Raises ValueError as `head_grid` does.
    """
    one_head = np.asarray(weights)[None]  # [1, T, T]
    return head_grid(one_head, tokens, kind="arrows", threshold=threshold, titles=[title])


def head_grid(
    attention,
    tokens: Sequence[str],
    *,
    kind: str = "heatmap",
    first_layer: int = 1,
    threshold: float = 0.1,
    notes: Mapping[tuple[int, int], str] | None = None,
    marked: Mapping[tuple[int, int], tuple[int, int]] | None = None,
    titles: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Every head side by side, as heat-maps or arrows, four in a line.

    Args:
        attention: [L, H, T, T], or [H, T, T] for one layer, whose number is `first_layer`.
        tokens: T words.
        kind: "heatmap" or "arrows".
        threshold: arrows of a smaller weight are hidden.
        notes: further lines for a head's title, by (layer, head), both from 1.
        marked: (row, column) of the cell to frame in a heat-map, by (layer, head), both from 1.
        titles: instead of "layer 1, head 1", and so on.
        title: of the whole figure.

    Raises:
        ValueError: if the kind is unknown, there are no words or heads, or the words do not fit.
    """
    attention = np.asarray(attention, dtype=float)
    attention = attention[None] if attention.ndim == 3 else attention
    require(kind in ("heatmap", "arrows"), f"kind={kind!r}: choose 'heatmap' or 'arrows'")
    require(
        attention.size and attention.shape[2:] == (len(tokens), len(tokens)),
        f"attention of shape {attention.shape} for {len(tokens)} words: give [layers, heads, T, T]",
    )
    layers, heads = attention.shape[:2]
    columns, lines = min(4, heads), math.ceil(heads / 4)
    # A word's height and a panel's width, in inches.
    pitch, width = (0.105, max(1.6, 0.105 * len(tokens))) if kind == "heatmap" else (0.135, 2.4)
    notes = notes or {}
    noted = max((len(note.split("\n")) for note in notes.values()), default=0)
    height = max(1.6, pitch * len(tokens)) + 0.4 + 0.15 * noted
    figure, grid = subplots(
        layers * lines, columns, size=(width * columns + 1.4, height * layers * lines + 0.7)
    )
    grid = np.asarray(grid).reshape(layers, lines * columns)
    for panel in grid.flat:
        panel.axis("off")
    for number, (layer, head) in enumerate(product(range(layers), range(heads))):
        panel, name = grid[layer, head], (first_layer + layer, head + 1)
        head_name = titles[number] if titles else f"layer {name[0]}, head {name[1]}"
        panel.set_title(f"{head_name}\n{notes[name]}" if name in notes else head_name, fontsize=9)
        if kind == "heatmap":
            panel.axis("on")
            image = _draw_heatmap(
                panel,
                attention[layer, head],
                tokens if head % columns == 0 else (),
                tokens if head + columns >= heads else (),
            )
            _frame(panel, [marked[name]] if name in (marked or {}) else ())
        else:
            _draw_arrows(panel, attention[layer, head], tokens, threshold)
    if kind == "heatmap":
        _label_grid(figure, image, grid)
    figure.suptitle(title or None)
    return figure


def _label_grid(figure, image, panels) -> None:
    figure.colorbar(
        image, ax=panels.ravel().tolist(), label="attention weight", shrink=0.4, aspect=30
    )
    figure.supxlabel(f"word that is read{_future(image)}", fontsize=9)
    figure.supylabel("word that reads", fontsize=9)


def _future(image) -> str:
    """What the grey means, if there is any."""
    return " (grey: the future)" if np.ma.is_masked(image.get_array()) else ""


def _frame(axes, marked: Iterable[tuple[int, int]]) -> None:
    """A frame around each (row, column) of a heat-map."""
    for row, column in marked:
        frame = {"fill": False, "edgecolor": "#d55e00", "linewidth": 2}
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **frame))


def _draw_heatmap(axes, matrix, rows, columns, limits=(0.0, 1.0)):
    future = np.triu(np.ones(matrix.shape, bool), 1)  # [T, S]
    square = matrix.shape[0] == matrix.shape[1] > 1
    causal = square and limits[0] >= 0 and not matrix[future].any()
    colors = sns.color_palette("vlag" if limits[0] < 0 else "mako_r", as_cmap=True)
    image = axes.imshow(
        np.ma.array(matrix, mask=future & causal),
        interpolation="nearest",
        vmin=limits[0],
        vmax=limits[1],
        cmap=colors.with_extremes(bad="#d9dce1"),
    )
    size = 7 if max(matrix.shape) > 8 else 9
    axes.set_xticks(range(len(columns)), labels(columns), rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), labels(rows), fontsize=size)
    axes.grid(False)
    return image


def _draw_arrows(axes, weights, tokens, threshold):
    found = sorted(
        (weights[query, key], query, key)
        for query, key in zip(*np.nonzero(weights >= threshold), strict=True)
    )
    width, rows, columns = zip(*found, strict=True) if found else ((), (), ())
    shade = sns.light_palette(COLORS[0], as_cmap=True)  # opaque: blended lines have no clear order
    colors = [shade(min(1.0, 0.15 + weight)) for weight in width]
    axes.add_collection(
        LineCollection(
            [((0, row), (0.985, column)) for row, column in zip(rows, columns, strict=True)],
            linewidths=[0.4 + 3 * weight for weight in width],
            colors=colors,
        )
    )
    axes.scatter(
        [0.985] * len(found),
        columns,
        c=colors,
        zorder=3,
        s=[(2 + 4 * weight) ** 2 for weight in width],
        marker=">",
        linewidths=0,
    )
    for side, align, header in ((-0.06, "right", "reads"), (1.06, "left", "is read")):
        axes.text(side, -1, header, ha=align, va="center", fontsize=7.5, color=GREY)
        for row, word in enumerate(labels(tokens)):
            axes.text(side, row, word, ha=align, va="center", fontsize=8)
    axes.set(xlim=(-0.05, 1.05), ylim=(len(tokens) - 0.5, -1.5))
