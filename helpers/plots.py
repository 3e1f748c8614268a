"""One style for every figure, and the plots that the notebooks share.

A plot takes arrays and returns a matplotlib `Figure`. Nothing is shown until a `FigureFolder` saves
it, with a text for those who cannot see it. Layers and heads are numbered from 1 in every label and
slider; array indices start at 0.
"""

import base64
import inspect
import io
import json
import math
import os
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from unicodedata import category

import ipywidgets as widgets
import matplotlib
import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator
from PIL import Image

from helpers.files import make_folder, write_whole
from helpers.stories import corpus_name

ROOT = Path(__file__).resolve().parents[1]
COLORS = sns.color_palette("colorblind").as_hex()
GREY = "#6b7280"
LINES = ("-", "--", "-.", ":")
DPI = 128  # of the PNGs in the notebooks


def use_style() -> None:
    """One style: colour-blind-safe colours, and files that differ only if their content does."""
    settings = {
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same on every machine
        "grid.color": "#e5e7eb",
        "svg.fonttype": "path",  # letters as shapes: the same where the font is absent
        "svg.hashsalt": "figures",
    }
    sns.set_theme(
        context="notebook", style="whitegrid", palette="colorblind", font_scale=0.8, rc=settings
    )


def subplots(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7.0, 4.0)):
    """An empty figure of `size` inches in the style, and its axes (one, or an array). Nothing is
    displayed.
    """
    use_style()
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)  # laid out as it is drawn
    return figure, figure.subplots(rows, columns)


# Files --------------------------------------------------------------------------------------------


class FigureFolder:
    """Where one run's figures and numbers go: `$FIGURES_DIR` if set, else `figures/<corpus>` of the
    repository.
    """

    def __init__(self, corpus: str):
        self.path = Path(os.environ.get("FIGURES_DIR") or ROOT / "figures" / corpus_name(corpus))
        use_style()

    def save_figure(self, figure: Figure, name: str, alt: str) -> "Picture":
        """Write `<name>.svg`, and return what the notebook shows. `alt`: what the figure shows, in
        one plain sentence.

        Raises ValueError where `alt` is empty.
        """
        if not alt.strip():
            raise ValueError(
                f"figure {name!r} needs an alt text: say in one sentence what it shows"
            )
        alt = _writable(" ".join(alt.split()))
        file = io.BytesIO()
        _render(figure, file, format="svg", metadata={"Date": None, "Creator": None, "Title": alt})
        self._write(f"{name}.svg", file.getvalue())
        return Picture(figure, alt, name)

    def save_explorer(self, explorer: "AttentionExplorer", name: str) -> "AttentionExplorer":
        """Write the matrices of an explorer to `<name>.json`, from which the report makes its own,
        and return it.
        """
        sentences = [
            {"title": title, "tokens": list(tokens), "attention": np.round(weights, 3).tolist()}
            for title, (tokens, weights) in explorer.sentences.items()
        ]
        start = {name: explorer.controls[name].value for name in ("layer", "head")}
        start["sentence"] = list(explorer.sentences).index(explorer.sentence.value)
        self.save_numbers(name, {"sentences": sentences, "start": start})
        explorer.labels = {"figure": name, "explorer": f"{self.path.name}/{name}"}
        return explorer

    def save_numbers(self, name: str, numbers: Mapping) -> None:
        """Write `<name>.json`: keys sorted, floats to six digits; NumPy and torch values are
        welcome.

        Raises ValueError for a number that is not finite (write None instead), TypeError for what
        JSON cannot hold.
        """
        text = json.dumps(
            _plain(numbers), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
        )
        one_line = re.compile(r"\[\n[^\[\]{}]*\]")  # a list of numbers: one line, not one each
        text = one_line.sub(lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text)
        self._write(
            f"{name}.json", f"{text}\n".encode("utf-8", "backslashreplace")
        )  # as JSON writes a lone surrogate

    def _write(self, name: str, content: bytes) -> None:
        make_folder(self.path)
        write_whole(self.path / name, content)


def load_numbers(corpus: str, name: str) -> dict:
    """The numbers that the repository carries for a corpus: `figures/<corpus>/<name>.json`.

    Raises FileNotFoundError where they have not been recorded, ValueError where the file is
    damaged.
    """
    path, record = (
        ROOT / "figures" / corpus_name(corpus) / f"{name}.json",
        f"`make record CORPUS={corpus}`",
    )
    if not path.is_file():
        raise FileNotFoundError(f"{path.relative_to(ROOT)} is missing: record it with {record}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path.relative_to(ROOT)} is damaged ({error}): record it again with {record}"
        ) from error


def load_explorer(corpus: str, name: str) -> "AttentionExplorer":
    """What `save_explorer` wrote for a corpus, to be looked at again. Raises FileNotFoundError as
    `load_numbers` does.
    """
    saved = load_numbers(corpus, name)
    explorer = AttentionExplorer(
        {s["title"]: (s["tokens"], np.array(s["attention"])) for s in saved["sentences"]}
    )
    explorer.sentence.index = saved["start"]["sentence"]
    explorer.layer.value, explorer.head.value = saved["start"]["layer"], saved["start"]["head"]
    explorer.labels = {"figure": name, "explorer": f"{corpus_name(corpus)}/{name}"}
    return explorer


class Picture:
    """A figure as a notebook stores it: a PNG with its alt text, and the alt text alone where no
    image shows.
    """

    def __init__(self, figure: Figure, alt: str, name: str = ""):
        self.png, self.alt = _png(figure), alt
        self.width = round(figure.get_figwidth() * 96)  # CSS pixels
        self.labels = {"figure": name} if name else {}  # what the report looks for
        plt.close(figure)  # a pyplot figure would be shown a second time

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": repr(self)}
        return data, {"image/png": {"alt": self.alt, "width": self.width, **self.labels}}


def _render(figure: Figure, file, **options) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from"
        )  # a box stands for an emoji: not an error
        for text in figure.findobj(
            Text
        ):  # a `$` is a `$`, but for the numbers of a logarithmic axis
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
    _render(figure, drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
        file, format="png", optimize=True
    )
    return file.getvalue()


def _plain(value):
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


# Text outputs -------------------------------------------------------------------------------------


class Markdown:
    """An output that Jupyter, Colab, GitHub and the report draw from Markdown, with plain text
    beside it.
    """

    def __init__(self, markdown: str, text: str):
        self.markdown, self.text = markdown, text

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/markdown": self.markdown, "text/plain": self.text}


def show_source(thing) -> Markdown:
    """The source of a class, function or module: the code that runs, not a copy of it."""
    source = textwrap.dedent(inspect.getsource(thing)).rstrip()
    return Markdown(f"```python\n{source}\n```", source)


def table(
    rows: Sequence[Sequence | Mapping], columns: Sequence[str], caption: str = ""
) -> Markdown:
    """A table, under its caption. rows: sequences, or mappings from column to value. Floats show
    three digits; a string stays as it is.

    Raises ValueError for a row that does not fit the columns.
    """
    rows = [
        [row.get(column) for column in columns] if isinstance(row, Mapping) else list(row)
        for row in rows
    ]
    if wrong := [row for row in rows if len(row) != len(columns)]:
        raise ValueError(
            f"{len(columns)} columns, but a row of {len(wrong[0])} values: {wrong[0]!r}"
        )
    cells = [list(columns)] + [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(rows) and all(re.match(r"[-+−]?\d|$", row[i]) for row in cells[1:])
        for i in range(len(columns))
    ]
    rule = ["--:" if right else ":--" for right in numeric]
    escaped = [[_escape(cell) for cell in row] for row in cells]
    markdown = [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [">" if right else "<" for right in numeric]
    lines = [
        "  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)).rstrip()
        for row in cells
    ]
    if caption:
        markdown = [f"*{_escape(' '.join(caption.split()))}*", "", *markdown]
        lines = [caption, *lines]
    return Markdown("\n".join(markdown), "\n".join(lines))


def _escape(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_~&$<>|\[\]])", r"\\\1", text)


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(str(value).split())


# Attention ----------------------------------------------------------------------------------------


def heatmap(
    matrix,
    tokens: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    title: str = "",
    label: str = "attention weight",
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """One head as a heat-map: each row is the word that reads, each column a word that is read.

    matrix: [T, S]. keys: the words of the columns where they are not `tokens`. limits: the ends of
    the colour scale (a negative one: two colours around zero). A matrix with no weight above the
    diagonal has the future in grey. Raises ValueError where the words do not fit the matrix.
    """
    matrix, keys = np.asarray(matrix, dtype=float), tokens if keys is None else keys
    if matrix.shape != (len(tokens), len(keys)):
        raise ValueError(f"a matrix of shape {matrix.shape} for {len(tokens)} × {len(keys)} words")
    side = max(3.2, 0.24 * max(matrix.shape))
    figure, axes = subplots(size=(side + 2.2, side * matrix.shape[0] / matrix.shape[1] + 1.2))
    image = _draw_heatmap(axes, matrix, tokens, keys, limits)
    if matrix.size <= 100:
        for row, column in product(*map(range, matrix.shape)):
            if keys is not tokens or column <= row or np.triu(matrix, 1).any():
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
    axes.set(ylabel="reads", xlabel="is read")
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    return figure


def arrows(weights, tokens: Sequence[str], *, threshold: float = 0.1, title: str = "") -> Figure:
    """One head as arrows from the word that reads (left) to what it reads (right). Width and shade
    are the weight.

    weights: [T, T]; those below `threshold` are hidden. Raises ValueError where the words do not
    fit.
    """
    return head_grid(
        np.asarray(weights, dtype=float)[None],
        tokens,
        kind="arrows",
        threshold=threshold,
        titles=[title],
    )


def head_grid(
    attention,
    tokens: Sequence[str],
    *,
    kind: str = "heatmap",
    first_layer: int = 1,
    threshold: float = 0.1,
    notes: Mapping[tuple[int, int], str] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """Every head side by side, as heat-maps or arrows.

    attention: [L, H, T, T], or [H, T, T] for one layer, whose number is `first_layer`. notes:
    further lines for a head's title, by (layer, head), both from 1. titles: instead of "layer 1,
    head 1". Raises ValueError for an unknown kind, or where the words do not fit.
    """
    attention = np.asarray(attention, dtype=float)
    attention = attention[None] if attention.ndim == 3 else attention
    if kind not in ("heatmap", "arrows"):
        raise ValueError(f"kind={kind!r}: choose 'heatmap' or 'arrows'")
    if attention.ndim != 4 or attention.shape[2:] != (len(tokens), len(tokens)):
        raise ValueError(
            f"attention of shape {attention.shape} for {len(tokens)} words: give [layers, heads, "
            "T, T]"
        )
    layers, heads = attention.shape[:2]
    columns = min(columns, heads)
    lines = math.ceil(heads / columns)
    pitch, width = (
        (0.105, max(1.6, 0.105 * len(tokens))) if kind == "heatmap" else (0.135, 2.4)
    )  # inches
    noted = max((len(note.split("\n")) for note in (notes or {}).values()), default=0)
    height = max(1.6, pitch * len(tokens)) + 0.4 + 0.15 * noted
    figure, grid = subplots(
        layers * lines, columns, size=(width * columns + 1.4, height * layers * lines + 0.7)
    )
    grid = np.asarray(grid).reshape(layers, lines * columns)
    for panel in grid.flat:
        panel.axis("off")
    for number, (layer, head) in enumerate(product(range(layers), range(heads))):
        panel, name = grid[layer, head], (first_layer + layer, head + 1)
        title = titles[number] if titles else f"layer {name[0]}, head {name[1]}"
        if notes and name in notes:
            title += f"\n{notes[name]}"
        panel.set_title(title, fontsize=9)
        if kind == "heatmap":
            panel.axis("on")
            left, bottom = head % columns == 0, head + columns >= heads
            image = _draw_heatmap(
                panel, attention[layer, head], tokens if left else (), tokens if bottom else ()
            )
        else:
            _draw_arrows(panel, attention[layer, head], tokens, threshold)
    if kind == "heatmap":
        figure.colorbar(
            image, ax=grid.ravel().tolist(), label="attention weight", shrink=0.4, aspect=30
        )
        figure.supxlabel("word that is read", fontsize=9)
        figure.supylabel("word that reads", fontsize=9)
    return figure


def _words(tokens: Sequence[str]) -> list[str]:
    """Words as labels: shortened, a blank made visible, no `$` that would start a formula, `�` for
    what no file can hold.
    """
    short = (_writable(word if len(word) <= 14 else f"{word[:13]}…") for word in map(str, tokens))
    return [word.replace("$", r"\$") if word.strip() else "␣" for word in short]


def _writable(text: str) -> str:
    """`�` for control characters, lone surrogates, and what Unicode has not assigned: no file can
    hold all of them.
    """
    return "".join("�" if category(letter) in ("Cc", "Cs", "Cn") else letter for letter in text)


def _draw_heatmap(axes, matrix, rows, columns, limits=(0.0, 1.0)):
    causal = (
        matrix.shape[0] == matrix.shape[1] > 1 and limits[0] >= 0 and not np.triu(matrix, 1).any()
    )
    shown = np.ma.array(matrix, mask=np.triu(np.ones(matrix.shape, bool), 1) if causal else False)
    colors = sns.color_palette("vlag" if limits[0] < 0 else "mako_r", as_cmap=True).with_extremes(
        bad="#d9dce1"
    )
    image = axes.imshow(shown, vmin=limits[0], vmax=limits[1], cmap=colors, interpolation="nearest")
    size = 7 if max(matrix.shape) > 8 else 9
    axes.set_xticks(range(len(columns)), _words(columns), rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), _words(rows), fontsize=size)
    axes.grid(False)
    return image


def _draw_arrows(axes, weights, tokens, threshold):
    pairs = zip(*np.nonzero(weights >= threshold), strict=True)
    found = sorted((weights[query, key], query, key) for query, key in pairs)
    width, rows, columns = zip(*found, strict=True) if found else ((), (), ())
    shade = sns.light_palette(COLORS[0], as_cmap=True)  # opaque: blended lines have no clear order
    colors = [shade(min(1.0, 0.15 + weight)) for weight in width]
    lines = [((0, row), (0.985, column)) for row, column in zip(rows, columns, strict=True)]
    axes.add_collection(
        LineCollection(lines, linewidths=[0.4 + 3 * weight for weight in width], colors=colors)
    )
    heads = [(2 + 4 * weight) ** 2 for weight in width]
    axes.scatter(
        [0.985] * len(found), columns, s=heads, c=colors, marker=">", linewidths=0, zorder=3
    )
    for side, align, header in ((-0.06, "right", "reads"), (1.06, "left", "is read")):
        axes.text(side, -1, header, ha=align, va="center", fontsize=7.5, color=GREY)
        for row, word in enumerate(_words(tokens)):
            axes.text(side, row, word, ha=align, va="center", fontsize=8)
    axes.set(xlim=(-0.05, 1.05), ylim=(len(tokens) - 0.5, -1.5))


class Explorer:
    """Controls above the picture that `draw` makes of their values: live in Jupyter and Colab, a
    picture elsewhere.

    draw(**values) -> (Figure, text for those who cannot see it); the values of the controls, by the
    names given here. The controls are attributes of those names.
    """

    def __init__(self, draw, **controls: widgets.Widget):
        self.draw, self.controls = draw, controls
        self.labels: dict[str, str] = {}  # what the report looks for
        vars(self).update(controls)
        self.picture = self._draw()
        self.image = widgets.Image(
            format="png", value=self.picture.png, layout={"max_width": "560px"}
        )
        for control in controls.values():
            control.observe(self._update, "value")
        self.box = widgets.VBox([*controls.values(), self.image])

    def _draw(self) -> Picture:
        return Picture(
            *self.draw(**{name: control.value for name, control in self.controls.items()})
        )

    def _update(self, change) -> None:
        self.picture = self._draw()
        self.image.value = self.picture.png

    def __repr__(self) -> str:
        return repr(self.picture)

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = self.picture._repr_mimebundle_()
        metadata["image/png"] |= self.labels
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return data | {"application/vnd.jupyter.widget-view+json": view}, metadata


class AttentionExplorer(Explorer):
    """Choose a sentence, a layer and a head, and see its heat-map.

    sentences: {title: (tokens, attention[L, H, T, T])}, with the same L and H for each.
    Raises ValueError where the shapes do not fit.
    """

    def __init__(self, sentences: Mapping[str, tuple[Sequence[str], np.ndarray]]):
        sentences = {
            title: (tokens, np.asarray(weights)) for title, (tokens, weights) in sentences.items()
        }
        for title, (tokens, weights) in sentences.items():
            if weights.ndim != 4 or weights.shape[2:] != (len(tokens), len(tokens)):
                raise ValueError(
                    f"{title!r}: attention of shape {weights.shape} for {len(tokens)} words"
                )
        self.sentences = sentences
        sizes = {weights.shape[:2] for _, weights in sentences.values()}
        if len(sizes) != 1:
            raise ValueError(
                f"the sentences need the same number of layers and heads, not {sorted(sizes)}"
            )
        layers, heads = sizes.pop()

        def draw(sentence, layer, head):
            tokens, weights = sentences[sentence]
            title = f"layer {layer}, head {head}"
            figure = heatmap(weights[layer - 1, head - 1], tokens, title=title)
            return figure, f"{title.capitalize()} of {layers} × {heads}: attention of “{sentence}”"

        super().__init__(
            draw,
            sentence=widgets.Dropdown(options=list(sentences), description="sentence"),
            layer=widgets.IntSlider(
                value=1, min=1, max=layers, description="layer", continuous_update=False
            ),
            head=widgets.IntSlider(
                value=1, min=1, max=heads, description="head", continuous_update=False
            ),
        )


# Decoding -----------------------------------------------------------------------------------------


def distributions(
    words: Sequence[str],
    rules: Mapping[str, Sequence[float]],
    *,
    title: str = "",
    limit: float | None = None,
) -> Figure:
    """Probabilities of the same few words under several rules, as bars side by side. A word that is
    out has no bar.

    limit: where the axis ends; None: at the longest bar.
    """
    limit = limit or min(1.0, 1.1 * max(float(np.max(values)) for values in rules.values()))
    figure, axes = subplots(
        1, len(rules), size=(max(4.0, 2.1 * len(rules)), 0.24 * len(words) + 1.1)
    )
    for panel, (name, values), color in zip(
        np.atleast_1d(axes), rules.items(), cycle(COLORS), strict=False
    ):
        panel.barh(range(len(words)), values, color=color)
        panel.set(
            title=name,
            xlabel="probability",
            xlim=(0, limit),
            ylim=(len(words) - 0.5, -0.5),
            yticks=range(len(words)),
        )
        panel.set_yticklabels(_words(words) if panel is np.atleast_1d(axes)[0] else [])
        panel.grid(axis="y", visible=False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


class SamplingExplorer(Explorer):
    """Choose temperature, top-k and top-p, and see what becomes of one distribution over the next
    word.

    filtered(temperature, top_k, top_p) -> probabilities (V,), an array; top_k is None where its
    slider is off. words: the words to show, {word: its place in them}.
    """

    def __init__(self, filtered, words: Mapping[str, int]):
        def draw(temperature, top_k, top_p):
            probabilities = filtered(temperature, top_k or None, top_p)  # (V,)
            left = int((probabilities > 0).sum())
            name = f"temperature {temperature:g}, top-k {top_k or 'off'}, top-p {top_p:g}"
            shown = {name: probabilities[list(words.values())]}
            figure = distributions(list(words), shown, title=f"{left:,} words left", limit=1.0)
            return (
                figure,
                f"Probabilities of the next word at {name}: {left:,} words can still come out",
            )

        sizes = [*((str(k), k) for k in (1, 2, 3, 4, 5, 10, 20, 50, 100, 500)), ("off", 0)]
        super().__init__(
            draw,
            temperature=widgets.FloatSlider(
                value=1.0, min=0.1, max=2.0, step=0.1, description="temperature"
            ),
            top_k=widgets.SelectionSlider(value=0, options=sizes, description="top-k"),
            top_p=widgets.FloatSlider(value=1.0, min=0.05, max=1.0, step=0.05, description="top-p"),
        )


def beam_tree(
    steps: Sequence[Sequence[tuple[int, str, float, bool]]], *, title: str = ""
) -> Figure:
    """What a beam search kept, from left to right.

    steps: for each step its candidates, best first: (the candidate of the step before that it
    extends, word, its log-probability in all, whether it was kept). The first step extends
    candidate 0, the prompt.
    """
    rows = max(len(step) for step in steps)
    figure, axes = subplots(size=(1.35 * (len(steps) + 1), 0.34 * rows + 0.9))
    places = [(0.0, 0.0)]
    axes.text(
        0,
        0,
        "prompt",
        ha="center",
        va="center",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": GREY},
    )
    for column, step in enumerate(steps, start=1):
        here = [(float(column), -(rank - (len(step) - 1) / 2)) for rank in range(len(step))]
        for (parent, word, total, kept), (x, y) in zip(step, here, strict=True):
            start = places[parent]
            color = COLORS[0] if kept else GREY
            axes.plot(
                [start[0], x],
                [start[1], y],
                color=color,
                lw=1.4 if kept else 0.6,
                ls="-" if kept else ":",
                zorder=1,
            )
            box = {
                "facecolor": "white",
                "edgecolor": color,
                "boxstyle": "round,pad=0.2",
                "lw": 1.2 if kept else 0.5,
            }
            label = f"{_words([word])[0]}  {total:.1f}"
            axes.text(
                x,
                y,
                label,
                ha="center",
                va="center",
                fontsize=7.5,
                color="black" if kept else GREY,
                bbox=box,
            )
        places = here
    axes.set(xlim=(-0.5, len(steps) + 0.6), title=title)
    axes.margins(y=0.12)
    axes.axis("off")
    return figure


# Curves and words ---------------------------------------------------------------------------------


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
    """Several runs on one graph. curves: {label: (x, y)}. landmarks: {label: y}, level lines named
    at the right.

    log_x: each step to the right is a doubling, with a tick at every x. log_y: a logarithmic axis.
    from_zero: y begins at 0.
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
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title)
    axes.legend(frameon=True)
    return figure


def _label_lines(axes, landmarks: Mapping[str, float], gap: float = 0.06) -> None:
    """Names at the right edge, pushed apart so that none covers another. gap: in heights of the
    axes.
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
        link = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            f"{label} {_cell(float(y))}",
            xy=(1, place),
            xytext=(1.03, height),
            xycoords="axes fraction",
            va="center",
            fontsize=8.5,
            color="#374151",
            arrowprops=link,
            annotation_clip=False,
        )


def loss_curves(
    rows: Sequence[Mapping], landmarks: Mapping[str, float] | None = None, *, title: str = ""
) -> Figure:
    """Training and validation loss of one run, in nats per token.

    rows: mappings with "step", "train_loss" and "validation_loss". A loss that was not measured is
    absent, None or NaN. landmarks: for example {"uniform": ln V, "unigram": ..., "bigram": ...,
    "entropy floor": ...}.
    """
    return compare_curves(_loss_columns(rows), landmarks=landmarks, title=title)


def perplexity_curve(
    rows: Sequence[Mapping], landmarks: Mapping[str, float] | None = None, *, title=""
) -> Figure:
    """The perplexity exp(loss) of one run, on a logarithmic axis. rows and landmarks as for
    `loss_curves`, in nats.
    """
    curves = {label: (x, np.exp(y)) for label, (x, y) in _loss_columns(rows).items()}
    marks = {label: math.exp(value) for label, value in (landmarks or {}).items()}
    return compare_curves(curves, landmarks=marks, title=title, y_label="perplexity", log_y=True)


def _loss_columns(rows) -> dict[str, tuple[list, list]]:
    columns = {}
    for label, key in (("training", "train_loss"), ("validation", "validation_loss")):
        points = [(row["step"], row.get(key)) for row in rows]
        points = [
            (step, loss) for step, loss in points if loss is not None and not math.isnan(loss)
        ]
        if points:
            columns[label] = tuple(map(list, zip(*points, strict=True)))
    return columns


def bars(values: Mapping[str, float], *, x_label: str, title: str = "") -> Figure:
    """Horizontal bars, the first at the top, each with its value."""
    figure, axes = subplots(size=(7.0, 0.42 * len(values) + 1.1))
    drawn = axes.barh(range(len(values)), list(values.values()), color=COLORS[0], height=0.65)
    axes.bar_label(drawn, [_cell(value) for value in values.values()], padding=4, fontsize=9)
    axes.set_yticks(range(len(values)), [label.replace("$", r"\$") for label in values])
    axes.margins(x=0.12)
    axes.grid(False, axis="y")
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    axes.set_title(title)
    return figure


def grouped_bars(
    values: Mapping[str, Mapping[str, float]],
    *,
    x_label: str,
    title: str = "",
    limit: tuple[str, float] | None = None,
) -> Figure:
    """Horizontal bars, the first label at the top, with a bar for each series: {label: {series:
    value}}. limit: the name and the place of a line across all of them.
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
        axes.bar_label(drawn, [_cell(float(value)) for _, value in rows], padding=3, fontsize=8)
    axes.set_yticks(range(len(values)), list(values))
    axes.margins(x=0.1)
    axes.grid(False, axis="y")
    axes.invert_yaxis()
    if limit:
        axes.axvline(limit[1], color=GREY, linewidth=1.2, linestyle=(0, (2, 2)), label=limit[0])
    axes.set_xlabel(x_label)
    axes.set_title(title)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def straight_lines(
    series: Mapping[str, tuple[Sequence, Sequence]], *, y_label: str, title: str = ""
) -> Figure:
    """A panel for each series, {x label: (x, y)}: its points, and the straight line nearest to them
    (least squares).
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
        panel.set_ylim(bottom=0)
        panel.set_xlabel(label)
    for panel in panels[len(series) :]:
        panel.axis("off")
    figure.supylabel(y_label, fontsize=10)
    figure.suptitle(title)
    return figure


def scatter_words(
    points, words: Sequence[str], groups: Sequence[str] | None = None, *, title: str = ""
) -> Figure:
    """A map of words. points: [N, 2]; groups: a label for each word, told apart by colour and
    marker.
    """
    figure, axes = subplots(size=(7.0, 5.0))
    points = np.asarray(points, dtype=float)
    groups = np.asarray(["" if groups is None else group for group in (groups or words)])
    for group, color, marker in zip(
        dict.fromkeys(groups), cycle(COLORS), cycle("os^DvPX*"), strict=False
    ):
        axes.scatter(*points[groups == group].T, s=22, color=color, marker=marker, label=str(group))
    axes.set(xlabel="first direction", ylabel="second direction")
    axes.set_title(title)
    if groups[0]:
        axes.legend()
    _label_points(axes, points, _words(words))
    return figure


def _label_points(axes, points, words: Sequence[str]) -> None:
    """A word beside each point, on the side where it covers the fewest words and points placed so
    far.
    """
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
        covered = [
            sum(a < r and p < c and b < s and q < d for p, q, r, s in taken) for a, b, c, d in boxes
        ]
        best = covered.index(min(covered))
        taken.append(boxes[best])
        # in points, which mean the same in every format
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
    axes.set(xlabel="position in the text", ylabel="dimension")
    axes.set_title(title)
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="value")
    return figure
