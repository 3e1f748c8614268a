"""One style for every figure, and the plots that the notebooks share.

A plot takes arrays and returns a matplotlib `Figure`. Nothing is shown until a `FigureFolder` saves
it, with a text for those who cannot see it. Layers and heads are numbered from 1 in every label and
slider; array indices start at 0.
"""

import base64
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from unicodedata import category

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator
from PIL import Image

COLORS = sns.color_palette("colorblind").as_hex()
GREY = "#6b7280"
LINES = ("-", "--", "-.", ":")
DPI = 128  # of the PNGs in the notebooks


def use_style() -> None:
    """One style: colour-blind-safe colours, and files that differ only if their content does."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        font_scale=0.8,
        rc={
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
            "grid.color": "#e5e7eb",
            "svg.fonttype": "path",  # letters as shapes: the same if the font is absent
            "svg.hashsalt": "figures",
        },
    )


def subplots(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7.0, 4.0)):
    """An empty figure of `size` inches in the style, and its axes (one, or an array)."""
    use_style()
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)  # laid out as it is drawn
    return figure, figure.subplots(rows, columns)


class Picture:
    """A figure as a notebook stores it: a PNG with its alt text, which also stands in for it."""

    def __init__(self, figure: Figure, alt: str, name: str = ""):
        self.png, self.alt = _png(figure), alt
        self.width = round(figure.get_figwidth() * 96)  # CSS pixels
        self.labels = {"figure": name} if name else {}  # what the report looks for
        plt.close(figure)  # a pyplot figure would be shown a second time

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/png": base64.b64encode(self.png).decode(), "text/plain": repr(self)}, {
            "image/png": {"alt": self.alt, "width": self.width, **self.labels}
        }


def render(figure: Figure, file, **options) -> None:
    """Write a figure to a file object, as `Figure.savefig` does with these options."""
    with warnings.catch_warnings():
        # A box stands for an emoji: that is no error.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for text in figure.findobj(Text):
            # A `$` is a `$`, except in the numbers of a logarithmic axis.
            if "$" in text.get_text() and not re.search(r"^\$\\mathdefault|\\\$", text.get_text()):
                text.set_parse_math(False)
        if figure.get_layout_engine() is not None:
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, not again for each format
        with matplotlib.rc_context({"svg.hashsalt": "figures", "svg.fonttype": "path"}):
            figure.savefig(file, **options)


def _png(figure: Figure) -> bytes:
    """64 colours are enough for a chart, and a quarter of the size."""
    drawn, file = io.BytesIO(), io.BytesIO()
    render(figure, drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
        file, format="png", optimize=True
    )
    return file.getvalue()


def labels(tokens: Sequence[str]) -> list[str]:
    """Words as labels: shortened, a blank made visible, no `$` that would start a formula."""
    return [
        word.replace("$", r"\$") if word.strip() else "␣"
        for word in (
            writable(word if len(word) <= 14 else f"{word[:13]}…") for word in map(str, tokens)
        )
    ]


def writable(text: str) -> str:
    """`�` for control characters, lone surrogates and unassigned ones: files cannot hold them."""
    return "".join("�" if category(letter) in ("Cc", "Cs", "Cn") else letter for letter in text)


def shown(value) -> str:
    """A value as tables and labels write it: floats with three digits."""
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(str(value).split())


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
    figure, axes = subplots(size=(7.5, 4.2))
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
        ticks = sorted({value for x, _ in curves.values() for value in x})
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.yaxis.minorticks_off()
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
    text_at = []
    for place, *_ in places:
        text_at.append(max(place, text_at[-1] + gap if text_at else 0.0))
    overflow = 1.0
    for i in range(len(text_at) - 1, -1, -1):  # what was pushed out at the top comes back down
        text_at[i] = min(text_at[i], overflow)
        overflow = text_at[i] - gap
    for (place, label, y), height in zip(places, text_at, strict=True):
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


def perplexity_curve(
    rows: Sequence[Mapping], landmarks: Mapping[str, float] | None = None, *, title=""
) -> Figure:
    """The perplexity of one run, on a logarithmic axis; arguments as for `loss_curves`."""
    curves = {label: (x, np.exp(y)) for label, (x, y) in _loss_columns(rows).items()}
    return compare_curves(
        curves,
        landmarks={label: math.exp(value) for label, value in (landmarks or {}).items()},
        title=title,
        y_label="perplexity",
        log_y=True,
    )


def _loss_columns(rows) -> dict[str, tuple[list, list]]:
    columns = {}
    for label, key in (("training", "train_loss"), ("validation", "validation_loss")):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        points = [(step, loss) for step, loss in points if not math.isnan(loss)]
        if points:
            columns[label] = tuple(map(list, zip(*points, strict=True)))
    return columns


def bars(values: Mapping[str, float], *, x_label: str, title: str = "") -> Figure:
    """Horizontal bars, the first at the top, each with its value."""
    figure, axes = subplots(size=(7.0, 0.42 * len(values) + 1.1))
    drawn = axes.barh(range(len(values)), list(values.values()), color=COLORS[0], height=0.65)
    axes.bar_label(drawn, [shown(value) for value in values.values()], padding=4, fontsize=9)
    _finish_bars(axes, [label.replace("$", r"\$") for label in values], x_label, title, 0.12)
    return figure


def _finish_bars(axes, names: list[str], x_label: str, title: str, margin: float) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.margins(x=margin)
    axes.grid(False, axis="y")
    axes.invert_yaxis()
    axes.set(xlabel=x_label, title=title)


def grouped_bars(
    values: Mapping[str, Mapping[str, float]],
    *,
    x_label: str,
    title: str = "",
    limit: tuple[str, float] | None = None,
) -> Figure:
    """Horizontal bars, the first label at the top, with a bar for each series.

    values: {label: {series: value}}. limit: name and place of a line across all bars.
    """
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    height = 0.8 / len(names)
    figure, axes = subplots(size=(7.5, 0.26 * len(values) * len(names) + 1.4))
    for number, (name, color) in enumerate(zip(names, cycle(COLORS), strict=False)):
        rows = [(place, row[name]) for place, row in enumerate(values.values()) if name in row]
        places = [place + (number - (len(names) - 1) / 2) * height for place, _ in rows]
        drawn = axes.barh(
            places, [value for _, value in rows], height=0.9 * height, color=color, label=name
        )
        axes.bar_label(drawn, [shown(float(value)) for _, value in rows], padding=3, fontsize=8)
    _finish_bars(axes, list(values), x_label, title, 0.1)
    if limit:
        axes.axvline(limit[1], color=GREY, linewidth=1.2, linestyle=(0, (2, 2)), label=limit[0])
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def straight_lines(
    series: Mapping[str, tuple[Sequence, Sequence]], *, y_label: str, title: str = ""
) -> Figure:
    """A panel for each series: its points, and the straight line nearest to them (least squares).

    series: {x label: (x, y)}.
    """
    columns = min(3, len(series))
    lines = math.ceil(len(series) / columns)
    figure, grid = subplots(lines, columns, size=(2.9 * columns, 2.5 * lines + 0.3))
    panels = list(np.asarray(grid).flat)
    for panel, (label, (x, y)) in zip(panels, series.items(), strict=False):
        slope, start = np.polyfit(x, y, 1)
        ends = np.array([0, max(x)])
        panel.plot(ends, start + slope * ends, color=GREY, linewidth=1.2, linestyle=(0, (2, 2)))
        panel.plot(x, y, color=COLORS[0], marker="o", linestyle="")
        panel.set(ylim=(0, None), xlabel=label)
    for panel in panels[len(series) :]:
        panel.axis("off")
    figure.supylabel(y_label, fontsize=10)
    figure.suptitle(title)
    return figure


def scatter_words(
    points, words: Sequence[str], groups: Sequence[str] | None = None, *, title: str = ""
) -> Figure:
    """A map of words. points: [N, 2]; groups: a label for each, shown by colour and marker."""
    figure, axes = subplots(size=(7.0, 5.0))
    points = np.asarray(points, dtype=float)
    groups = np.asarray(["" if groups is None else group for group in (groups or words)])
    for group, color, marker in zip(
        dict.fromkeys(groups), cycle(COLORS), cycle("os^DvPX*"), strict=False
    ):
        axes.scatter(*points[groups == group].T, s=22, color=color, marker=marker, label=str(group))
    axes.set(xlabel="first direction", ylabel="second direction", title=title)
    if groups[0]:
        axes.legend()
    _label_points(axes, points, labels(words))
    return figure


def _label_points(axes, points, words: Sequence[str]) -> None:
    """A word beside each point, on the side where it covers the least of what is there."""
    axes.margins(0.1)
    axes.figure.draw_without_rendering()  # from here on the axes are where they will be
    at = axes.transData.transform(points)  # (N, 2), pixels
    unit = axes.figure.dpi / 100  # pixels that 8-point letters were measured in
    taken = [(x - 3 * unit, y - 3 * unit, x + 3 * unit, y + 3 * unit) for x, y in at]
    for (x, y), point, word in zip(at, points, words, strict=True):
        width, height = 5.2 * unit * len(word), 10 * unit
        right, left, above, below = 5 * unit, -5 * unit - width, 3 * unit, -11 * unit
        sides = [(right, above), (right, below), (left, above), (left, below)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in sides]
        covers = lambda a, b, c, d: sum(a < r and p < c and b < s and q < d for p, q, r, s in taken)
        covered = [covers(*box) for box in boxes]
        best = covered.index(min(covered))
        taken.append(boxes[best])
        # In points, which mean the same in every format.
        offset = np.array(sides[best]) * 72 / axes.figure.dpi
        axes.annotate(word, point, xytext=offset, textcoords="offset points", fontsize=8)


def position_heatmap(positions, *, title: str = "") -> Figure:
    """Position vectors, one column for each position. positions: [T, D], from -1 to 1."""
    figure, axes = subplots(size=(7.0, 4.0))
    image = axes.imshow(
        np.asarray(positions).T,
        aspect="auto",
        cmap="vlag",
        vmin=-1,
        vmax=1,
        interpolation="nearest",
    )
    axes.set(xlabel="position in the text", ylabel="dimension", title=title)
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="value")
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
    limit = limit or min(1.0, 1.1 * max(float(np.max(values)) for values in rules.values()))
    figure, axes = subplots(
        1, len(rules), size=(max(4.0, 2.1 * len(rules)), 0.24 * len(words) + 1.1)
    )
    places, panels = range(len(words)), np.atleast_1d(axes)
    ends = {"xlim": (0, limit), "ylim": (len(words) - 0.5, -0.5), "yticks": places}
    for panel, (name, values), color in zip(panels, rules.items(), cycle(COLORS), strict=False):
        panel.barh(places, values, color=color)
        panel.set(title=name, xlabel="probability", **ends)
        panel.set_yticklabels(labels(words) if panel is panels[0] else [])
        panel.grid(axis="y", visible=False)
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
        size=(1.35 * (len(steps) + 1), 0.34 * max(len(step) for step in steps) + 0.9)
    )
    middle = {"ha": "center", "va": "center"}
    places = [(0.0, 0.0)]
    box = {"facecolor": "white", "edgecolor": GREY}
    axes.text(0, 0, "prompt", fontsize=8, bbox=box, **middle)
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
            box = {"fc": "white", "ec": edge, "lw": width, "boxstyle": "round,pad=0.2"}
            axes.text(
                *end,
                f"{labels([word])[0]}  {total:.1f}",
                fontsize=7.5,
                color=ink,
                bbox=box,
                **middle,
            )
        places = here
    axes.set(xlim=(-0.5, len(steps) + 0.6), title=title)
    axes.margins(y=0.12)
    axes.axis("off")
    return figure
