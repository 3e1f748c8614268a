"""One style for every figure, and the plots that the notebooks share.

A plot takes arrays and returns a matplotlib `Figure`, or raises ValueError if it is given nothing
to draw. Nothing is shown until a `FigureFolder` saves it, with a text for those who cannot see it.
Layers and heads are numbered from 1 in every label and slider; array indices start at 0.
"""

import base64
import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle, product
from unicodedata import category

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox
from PIL import Image

from helpers.support.checks import FILLED, check, require

COLORS = sns.color_palette("colorblind").as_hex()
GREY = "#6b7280"
LINES = ("-", "--", "-.", ":")
DPI = 128  # of the PNGs in the notebooks
# Comes with matplotlib: the same everywhere.
FONT = FontProperties(
    family="DejaVu Sans", style="normal", variant="normal", weight="normal", stretch="normal"
)
# Colour-blind-safe colours, and files that differ only if their content does.
STYLE = [
    "default",  # instead of the matplotlibrc of whoever runs this
    sns.axes_style("whitegrid"),
    sns.plotting_context("notebook", font_scale=0.8),
    {
        "axes.prop_cycle": matplotlib.cycler(color=COLORS),
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "font.sans-serif": FONT.get_family(),
        "grid.color": "#e5e7eb",
        "svg.fonttype": "path",  # letters as shapes: the same if the font is absent
        "svg.hashsalt": "figures",
    },
]
_own: dict = {}  # the session's own settings, while a figure is made in ours


def use_style() -> None:
    """One style for what is drawn from here until `render` has written it.

    Some settings count when a line is made, others, such as those of ticks, when a figure is
    written. Afterwards the session has its own settings again.
    """
    before = matplotlib.rcParams.copy()
    if before["svg.hashsalt"] != STYLE[-1]["svg.hashsalt"]:
        _own.clear()  # the style is not in force, so these are of long ago
    plt.style.use(STYLE)
    after = matplotlib.rcParams.copy()  # to look at the original's "backend" would start one
    _own.update({name: value for name, value in before.items() if after[name] != value})


def subplots(
    rows: int = 1,
    columns: int = 1,
    size: tuple[float, float] = (7.0, 4.0),
    squeeze: bool = True,
    **data: Collection,
):
    """An empty figure of `size` inches in the style, and its axes: one, or an array.

    Args:
        squeeze: whether the array has no axis of length 1; False: it is (rows, columns).
        data: what will be drawn, by its name. Raises ValueError if any of it is empty.
    """
    check(data, dict.fromkeys(data, FILLED))
    use_style()
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)  # laid out as it is drawn
    return figure, figure.subplots(rows, columns, squeeze=squeeze)


class Picture:
    """A figure as a notebook stores it: a PNG with its alt text, which also stands in for it."""

    def __init__(self, figure: Figure, alt: str, labels: Mapping[str, str] | None = None):
        drawn, file = io.BytesIO(), io.BytesIO()
        render(figure, drawn, format="png", dpi=DPI)
        # 64 colours are enough for a chart, and a quarter of the size.
        Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
            file, format="png", optimize=True
        )
        self.png, self.alt = file.getvalue(), alt
        self.width = round(figure.get_figwidth() * 96)  # CSS pixels
        self.labels = labels or {}  # what the report looks for
        plt.close(figure)  # a pyplot figure would be shown a second time

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/png": base64.b64encode(self.png).decode(), "text/plain": repr(self)}, {
            "image/png": {"alt": self.alt, "width": self.width, **self.labels}
        }


def render(figure: Figure, file, **options) -> None:
    """Write a figure to a file object, as `Figure.savefig` does with these options."""
    use_style()
    for text in figure.findobj(Text):
        text.set_text(_drawable(text.get_text(), text.get_fontproperties()))
        # A `$` is a `$`, except in the numbers of a logarithmic axis.
        if "$" in text.get_text() and not re.search(r"^\$\\mathdefault|\\\$", text.get_text()):
            text.set_parse_math(False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not again for each format
    figure.savefig(file, **options)
    dict.update(matplotlib.rcParams, _own)  # without a second warning of what is deprecated


def labels(tokens: Sequence[str]) -> list[str]:
    """Words as labels: shortened, a blank made visible, no `$` that would start a formula.

    A character that the font lacks is shown as its code point, such as U+1F600.
    """
    require(not isinstance(tokens, str), "tokens is one string: give a list of words")
    words = [_drawable(writable(str(token))) for token in tokens]
    words = [word if len(word) <= 14 else f"{word[:13]}…" for word in words]
    return [word.replace("$", r"\$") if word.strip() else "␣" for word in words]


def _drawable(text: str, font: FontProperties = FONT) -> str:
    """Text as a figure can show it: characters that the font lacks become their code points."""
    has_glyph = get_font(findfont(font)).get_char_index
    return "".join(
        letter if letter == "\n" or has_glyph(ord(letter)) else f"U+{ord(letter):04X}"
        for letter in "\n".join(map(writable, text.split("\n")))
    )


def writable(text: str) -> str:
    """`�` for control characters, lone surrogates and unassigned ones: files cannot hold them."""
    return "".join("�" if category(letter) in ("Cc", "Cs", "Cn") else letter for letter in text)


def shown(value) -> str:
    """A value as tables and labels write it: floats with three digits."""
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else " ".join(str(value).split())


def compare_curves(
    curves: Mapping[str, tuple[Sequence, Sequence]],
    *,
    x_label: str = "step",
    title: str = "",
    y_label: str = "loss (nats per token)",
    landmarks: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
) -> Figure:
    """Several runs on one graph.

    Args:
        curves: {label: (x, y)}.
        landmarks: {label: y}, level lines named at the right.
        log_x: whether each step to the right is a doubling, with a tick at every x.
        log_y: whether the y axis is logarithmic.
        from_zero: whether y begins at 0.
    """
    figure, axes = subplots(size=(7.5, 4.2), curves=curves)
    for (label, (x, y)), color, line in zip(
        curves.items(), cycle(COLORS), cycle(LINES), strict=False
    ):
        axes.plot(
            x,
            y,
            label=label,
            color=color,
            linestyle=line,
            linewidth=1.8,
            marker="o" if len(x) <= 12 else "",
        )
    if log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set(
            ticks=sorted({value for x, _ in curves.values() for value in x}),
            major_formatter=lambda value, _: f"{value:g}",
        )
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)),
            major_formatter=lambda value, _: f"{value:,.10g}",
            minor_locator=NullLocator(),
        )
    if from_zero:
        axes.set_ylim(bottom=0)
    for value in (landmarks or {}).values():
        axes.axhline(value, color=GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    _label_lines(axes, landmarks or {})
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.legend(frameon=True)
    return figure


def _label_lines(axes, landmarks: Mapping[str, float], gap: float = 0.06) -> None:
    """Names at the right edge, pushed apart by `gap` (in heights of the axes) so that none covers
    another.
    """
    low, high = map(axes.yaxis.get_transform().transform, axes.get_ylim())
    axes.set_ylim(axes.get_ylim())  # what follows must not move the lines
    places = sorted(
        (float((axes.yaxis.get_transform().transform(y) - low) / (high - low)), label, y)
        for label, y in landmarks.items()
    )
    # Name i is at least i gaps above the lowest, and as many below the top as names follow it.
    steps, room = gap * np.arange(len(places)), 1 - gap * (len(places) - 1)
    free = (np.array([place for place, *_ in places]) - steps).clip(0, room)
    heights = np.maximum.accumulate(free) + steps
    for (place, label, y), height in zip(places, heights, strict=True):
        axes.annotate(
            f"{label} {shown(float(y))}",
            xy=(1, place),
            xytext=(1.03, height),
            xycoords="axes fraction",
            va="center",
            fontsize=8.5,
            color="#374151",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 0},
            annotation_clip=False,
        )


def loss_curves(
    rows: Sequence[Mapping], landmarks: Mapping[str, float] | None = None, *, title: str = ""
) -> Figure:
    """Training and validation loss of one run, in nats per token.

    rows: mappings with "step", "train_loss" and "validation_loss"; a loss that was not measured is
    absent, None or NaN. landmarks: {label: nats}, such as {"bigram": 2.5, "entropy floor": 1.0}.
    """
    return compare_curves(_loss_columns(rows), landmarks=landmarks, title=title)


def loss_and_scores(
    rows: Sequence[Mapping],
    landmarks: Mapping[str, float],
    scores: Mapping[str, Sequence[float]],
    event: tuple[str, int] | None = None,
    *,
    title: str = "",
) -> Figure:
    """The losses of one run, and below them what was scored on the way, over one logarithmic axis.

    Args:
        rows, landmarks: as for `loss_curves`.
        scores: {label: a number for each row}.
        event: (label, step), marked in both panels.
    """
    figure, (upper, lower) = subplots(2, size=(7.5, 6.2), losses=rows, scores=scores)
    for (label, points), color, line in zip(
        _loss_columns(rows).items(), COLORS, LINES, strict=False
    ):
        upper.plot(*points, label=label, color=color, linestyle=line, linewidth=1.8)
    for value in landmarks.values():
        upper.axhline(value, color=GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    steps = [row["step"] for row in rows]
    for (label, values), color, line in zip(
        scores.items(), cycle(COLORS), cycle(LINES), strict=False
    ):
        lower.plot(steps, values, label=label, color=color, linestyle=line, linewidth=1.8)
    for axes in (upper, lower):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if event:
            axes.axvline(event[1], color="black", linewidth=1)
        axes.legend(frameon=True)
    if event:
        name = f"{event[0]}: step {event[1]}"
        lower.annotate(
            name,
            (event[1], 0.9),
            xytext=(-4, 0),
            textcoords="offset points",
            xycoords=("data", "axes fraction"),
            ha="right",
            fontsize=8.5,
        )
    _label_lines(upper, landmarks)
    upper.set(title=title, ylabel="loss (nats per token)")
    lower.set(xlabel="step (logarithmic)", ylabel="score of the best head")
    return figure


def perplexity_curve(
    rows: Sequence[Mapping], landmarks: Mapping[str, float] | None = None, *, title=""
) -> Figure:
    """The perplexity of one run, on a logarithmic axis; arguments as for `loss_curves`."""
    return compare_curves(
        {label: (x, np.exp(y)) for label, (x, y) in _loss_columns(rows).items()},
        landmarks={label: math.exp(value) for label, value in (landmarks or {}).items()},
        title=title,
        y_label="perplexity",
        log_y=True,
    )


def _loss_columns(rows) -> dict[str, tuple[tuple, tuple]]:
    columns = {
        label: [
            (row["step"], row[key])
            for row in rows
            if row.get(key) is not None and not math.isnan(row[key])
        ]
        for label, key in (("training", "train_loss"), ("validation", "validation_loss"))
    }
    return {label: tuple(zip(*points, strict=True)) for label, points in columns.items() if points}


def bars(
    values: Mapping[str, float | Mapping[str, float]],
    *,
    x_label: str,
    title: str = "",
    limit: tuple[str, float] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Horizontal bars with their values, the first label at the top.

    values: {label: value}, or {label: {series: value}} with a bar for each series. limit: name and
    place of a line across all bars. intervals: {label: (low, high)}, whiskers on a single series.
    """
    groups = [row if isinstance(row, Mapping) else {"": row} for row in values.values()]
    names = list(dict.fromkeys(name for row in groups for name in row))
    height = 0.8 / max(1, len(names))
    figure, axes = subplots(
        size=(7.0 + 1.6 * (len(names) > 1), (0.16 + 0.26 * len(names)) * len(values) + 1.1),
        values=values,
        series=names,
    )
    for number, (name, color) in enumerate(zip(names, cycle(COLORS), strict=False)):
        rows = {place: row[name] for place, row in enumerate(groups) if name in row}
        places = [place + (number - (len(names) - 1) / 2) * height for place in rows]
        how = {"height": 0.85 * height, "color": color, "label": name or None}
        if intervals:
            ends = np.array([intervals[label] for label in values]).T  # (2, bars)
            how |= {"xerr": abs(ends - list(rows.values())), "ecolor": GREY, "capsize": 3}
        drawn = axes.barh(places, list(rows.values()), **how)
        axes.bar_label(drawn, [shown(float(v)) for v in rows.values()], padding=4, fontsize=8.5)
    _name_bars(axes, list(map(_drawable, values)), xmargin=0.12, xlabel=x_label, title=title)
    if limit:
        axes.axvline(limit[1], color=GREY, linewidth=1.2, linestyle=(0, (2, 2)), label=limit[0])
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def ranked(values: Mapping[str, Sequence[float]], *, x_label: str, title: str = "") -> Figure:
    """A point for each number and a bar for their mean, the smallest mean at the top; 0 is a line.

    values: {label: numbers}.
    """
    values = dict(sorted(values.items(), key=lambda item: np.mean(item[1])))
    figure, axes = subplots(size=(7.0, 0.21 * len(values) + 1.0), values=values)
    means = [float(np.mean(numbers)) for numbers in values.values()]
    colors = [COLORS[mean < 0] for mean in means]
    axes.barh(range(len(values)), means, height=0.75, color=colors, alpha=0.45)
    for place, (numbers, color) in enumerate(zip(values.values(), colors, strict=True)):
        axes.plot(numbers, [place] * len(numbers), "o", color=color, markersize=3)
    axes.axvline(0, color=GREY, linewidth=1.2)
    _name_bars(axes, list(map(_drawable, values)), xlabel=x_label, title=title, ymargin=0.01)
    axes.tick_params(axis="y", labelsize=8)
    return figure


def _name_bars(axes, names: Sequence[str], **properties) -> None:
    axes.set(yticks=range(len(names)), yticklabels=names, **properties)
    axes.grid(False, axis="y")
    axes.invert_yaxis()


def straight_lines(
    series: Mapping[str, tuple[Sequence, Sequence]], *, y_label: str, title: str = ""
) -> Figure:
    """A panel for each series: its points, and the straight line nearest to them (least squares).

    series: {x label: (x, y)}.
    """
    columns, rows = min(3, len(series)), math.ceil(len(series) / 3)
    figure, grid = subplots(
        rows,
        columns,
        size=(2.9 * columns, 2.5 * rows + 0.3),
        squeeze=False,
        series=series,
        points=min((x for x, _ in series.values()), key=len, default=()),  # none may be empty
    )
    for panel, (label, (x, y)) in zip(grid.flat, series.items(), strict=False):
        panel.set(xlim=(0, 1.05 * max(x)), ylim=(0, 1.1 * max(y)), xlabel=label)
        sns.regplot(
            x=x,
            y=y,
            ax=panel,
            ci=None,
            truncate=False,
            line_kws={"color": GREY, "linewidth": 1.2, "linestyle": (0, (2, 2))},
        )
    for panel in grid.flat[len(series) :]:
        panel.axis("off")
    figure.supylabel(y_label, fontsize=10)
    figure.suptitle(title)
    return figure


def scatter_words(
    points, words: Sequence[str], groups: Sequence[str], *, title: str = ""
) -> Figure:
    """A map of words. points: [N, 2]; groups: a label for each, shown by colour and marker."""
    figure, axes = subplots(size=(7.0, 5.0), words=words, groups=groups)
    points, groups = np.asarray(points, dtype=float), np.asarray(groups)
    for group, color, marker in zip(
        dict.fromkeys(groups), cycle(COLORS), cycle("os^DvPX*"), strict=False
    ):
        axes.scatter(
            *points[groups == group].T,
            s=22,
            color=color,
            marker=marker,
            label=_drawable(str(group)),
        )
    axes.set(xlabel="first direction", ylabel="second direction", title=title)
    axes.legend()
    _label_points(axes, points, labels(words))
    return figure


def _label_points(axes, points, words: Sequence[str]) -> None:
    """A word beside each point, on the side where it covers the least of what is there."""
    axes.margins(0.1)
    axes.figure.draw_without_rendering()  # from here on the axes are where they will be
    at = axes.transData.transform(points) / axes.figure.dpi * 100  # (N, 2), hundredths of an inch
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in at]
    for (x, y), point, word in zip(at, points, words, strict=True):
        width, height = 5.2 * len(word), 10  # of letters of 8 points
        boxes = {
            side: Bbox.from_bounds(x + side[0], y + side[1], width, height)
            for side in product((5, -5 - width), (3, -11))
        }
        best = min(boxes, key=lambda side: boxes[side].count_overlaps(taken))
        taken.append(boxes[best])
        axes.annotate(
            word,
            point,
            xytext=0.72 * np.array(best),  # points, which are the same in every format
            textcoords="offset points",
            fontsize=8,
        )


def position_heatmap(positions, *, title: str = "") -> Figure:
    """Position vectors, a column for each position: their sines, and beside them their cosines.

    positions: [T, D], from -1 to 1, sines in the even columns.
    """
    figure, panels = subplots(1, 2, size=(9.0, 4.2), positions=positions)
    positions = np.asarray(positions)
    for panel, start, name in zip(panels, (0, 1), ("sines", "cosines"), strict=True):
        sns.heatmap(
            positions[:, start::2].T,
            ax=panel,
            cmap="vlag",
            vmin=-1,
            vmax=1,
            xticklabels=10,
            yticklabels=25,
            cbar=bool(start),
            cbar_kws={"label": "value"},
            rasterized=True,  # a picture in the file, not thousands of squares
        )
        panel.set(xlabel="position in the text", ylabel="" if start else "pair i", title=name)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def distributions(
    words: Sequence[str],
    rules: Mapping[str, Sequence[float]],
    *,
    title: str = "",
    limit: float | None = None,
) -> Figure:
    """Probabilities of the same few words under several rules; a word that is out has no bar.

    limit: the end of the axis; None: the longest bar.
    """
    figure, axes = subplots(
        1,
        len(rules),
        size=(max(4.0, 2.1 * len(rules)), 0.24 * len(words) + 1.1),
        squeeze=False,
        words=words,
        rules=rules,
    )
    limit = limit or min(1.0, 1.1 * max(float(np.max(values)) for values in rules.values()))
    for panel, (name, values), color in zip(axes.flat, rules.items(), cycle(COLORS), strict=False):
        panel.barh(range(len(words)), values, color=color)
        _name_bars(
            panel,
            labels(words) if panel is axes[0, 0] else [],
            title=name,
            xlabel="probability",
            xlim=(0, limit),
            ylim=(-0.5, len(words) - 0.5),
        )
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def beam_tree(
    steps: Sequence[Sequence[tuple[int, str, float, bool]]], *, title: str = ""
) -> Figure:
    """What a beam search kept, from left to right.

    steps: for each step its candidates, best first, as (number of the candidate that it extends,
    word, log-probability in all, whether it was kept). The first step extends 0, the prompt.
    """
    figure, axes = subplots(
        size=(1.35 * (len(steps) + 1), 0.34 * max(map(len, steps), default=0) + 0.9), steps=steps
    )
    middle = {"ha": "center", "va": "center"}
    places = [(0.0, 0.0)]
    axes.text(0, 0, "prompt", fontsize=8, bbox={"fc": "white", "ec": GREY}, **middle)
    for column, step in enumerate(steps, start=1):
        here = [(float(column), -(rank - (len(step) - 1) / 2)) for rank in range(len(step))]
        for (parent, word, total, kept), end in zip(step, here, strict=True):
            edge, ink, link, line, width = (
                (COLORS[0], "black", 1.4, "-", 1.2) if kept else (GREY, GREY, 0.6, ":", 0.5)
            )
            axes.plot(
                *zip(places[parent], end, strict=True),
                color=edge,
                linewidth=link,
                linestyle=line,
                zorder=1,
            )
            axes.text(
                *end,
                f"{labels([word])[0]}  {total:.1f}",
                fontsize=7.5,
                color=ink,
                bbox={"fc": "white", "ec": edge, "lw": width, "boxstyle": "round,pad=0.2"},
                **middle,
            )
        places = here
    axes.set(xlim=(-0.5, len(steps) + 0.6), ymargin=0.12, title=title)
    axes.axis("off")
    return figure
