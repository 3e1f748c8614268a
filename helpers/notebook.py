"""What the cells of a notebook show and keep: figures, numbers, tables, source, claims."""

import inspect
import io
import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from IPython.display import display
from matplotlib.figure import Figure

from helpers.explorers import AttentionExplorer
from helpers.plots import Picture, render, shown, writable
from helpers.stories import corpus_name
from helpers.support.checks import require
from helpers.support.files import make_folder, user_path, write_whole

ROOT = Path(__file__).resolve().parents[1]


def figures_root(default: Path | None = None) -> Path:
    """The folder that holds a folder of figures for each corpus.

    It is `$FIGURES_DIR`, or else `default`, or else figures/ in the repository.
    """
    return user_path(os.environ.get("FIGURES_DIR") or default or ROOT / "figures")


class Captioned(Picture):
    """A picture that a notebook shows with its caption below it, as a text of its own."""

    def _ipython_display_(self) -> None:
        data, metadata = self._repr_mimebundle_()
        display(data, metadata=metadata, raw=True)
        if caption := self.labels.get("caption"):
            display({"text/markdown": f"*{_escape(caption)}*", "text/plain": caption}, raw=True)


class FigureFolder:
    """Where a run's figures and numbers go: <corpus>/ in `figures_root()`."""

    def __init__(self, corpus: str):
        self.path = figures_root() / corpus_name(corpus)

    def save_figure(self, figure: Figure, name: str, alt: str, caption: str = "") -> Picture:
        """Write `<name>.svg`, and return what the notebook shows.

        Args:
            alt: what the figure shows, in one plain sentence, for those who cannot see it.
            caption: what stands below it, for those who can.

        Raises ValueError if alt is empty.
        """
        require(
            alt.strip(), f"figure {name!r} needs an alt text: say in one sentence what it shows"
        )
        alt = writable(" ".join(alt.split()))
        file = io.BytesIO()
        render(figure, file, format="svg", metadata={"Date": None, "Creator": None, "Title": alt})
        make_folder(self.path)
        write_whole(self.path / f"{name}.svg", file.getvalue())
        labels = {"figure": f"{self.path.name}/{name}"}
        return Captioned(figure, alt, labels | ({"caption": caption} if caption else {}))

    def save_explorer(self, explorer: AttentionExplorer, name: str) -> AttentionExplorer:
        """Write an explorer's matrices to `<name>.json`, for the report's own, and return it."""
        self.save_numbers(
            name,
            {
                "sentences": [
                    {"title": title, "tokens": list(tokens), "attention": weights.round(3)}
                    for title, (tokens, weights) in explorer.sentences.items()
                ],
                "notes": {f"{layer},{head}": n for (layer, head), n in explorer.notes.items()},
                "start": {
                    "sentence": explorer.sentence.index,
                    "layer": explorer.layer.value,
                    "head": explorer.head.value,
                },
            },
        )
        explorer.labels = dict.fromkeys(("figure", "explorer"), f"{self.path.name}/{name}")
        return explorer

    def save_numbers(self, name: str, numbers: Mapping) -> None:
        """Write `<name>.json`: keys sorted, floats to six digits; from NumPy and torch too.

        Raises ValueError if a number is not finite (write None instead), TypeError for what JSON
        cannot hold.
        """
        text = json.dumps(numbers, default=_plain, allow_nan=False)
        rounded = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.6g}"))
        text = json.dumps(rounded, sort_keys=True, indent=1, ensure_ascii=False)
        # A list of numbers stands in one line, not in one for each.
        text = re.sub(r"\[\n[^\[\]{}]*\]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text)
        make_folder(self.path)
        # A lone surrogate as JSON writes it.
        write_whole(self.path / f"{name}.json", f"{text}\n".encode("utf-8", "backslashreplace"))


def load_numbers(corpus: str, name: str) -> dict:
    """The numbers of a corpus that `save_numbers` wrote to `<name>.json`.

    They are those of this run, from <corpus>/ in `figures_root()`. If it has not written any,
    they are those that the repository carries, from figures/<corpus>/.

    Raises FileNotFoundError if there are neither, ValueError if the file is damaged.
    """
    places = [
        root / corpus_name(corpus) / f"{name}.json" for root in (figures_root(), ROOT / "figures")
    ]
    path = next((place for place in places if place.is_file()), places[-1])
    advice = "`make record CORPUS=path` writes it, or `make benchmark RECORD=1` what was measured"
    require(path.is_file(), f"{path} is missing: {advice}", FileNotFoundError)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {advice}") from error


def load_explorer(corpus: str, name: str) -> AttentionExplorer:
    """What `save_explorer` wrote for a corpus: found, and refused, as `load_numbers` does."""
    saved = load_numbers(corpus, name)
    explorer = AttentionExplorer(
        {s["title"]: (s["tokens"], s["attention"]) for s in saved["sentences"]},
        notes={tuple(map(int, place.split(","))): n for place, n in saved["notes"].items()},
    )
    explorer.sentence.index = saved["start"]["sentence"]
    explorer.layer.value, explorer.head.value = saved["start"]["layer"], saved["start"]["head"]
    explorer.labels = dict.fromkeys(("figure", "explorer"), f"{corpus_name(corpus)}/{name}")
    return explorer


def _plain(value):
    """An array or a tensor as lists or a number, for JSON."""
    require(hasattr(value, "tolist"), f"JSON cannot hold {value!r}", TypeError)
    return value.tolist()


class Markdown:
    """An output that Jupyter, Colab, GitHub and the report draw from Markdown, or else as text."""

    def __init__(self, markdown: str, text: str):
        self.markdown, self.text = markdown, text

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/markdown": self.markdown, "text/plain": self.text}


def claim(text: str, condition) -> None:
    """Print a sentence if its condition holds; otherwise stop the notebook.

    A number after ≈ may differ on another machine. The comparison of stored outputs replaces it
    (tests/nbval.cfg), so the reader sees it and everything else is compared strictly.

    Raises AssertionError if the condition is false.
    """
    require(condition, f"this does not hold here: {text}", AssertionError)
    print(f"✓ {text}")


def show_source(thing, fold: str = "") -> Markdown:
    """The source of a class, function or module: the code that runs, not a copy of it.

    fold: a title, under which the listing is folded away.
    """
    source = textwrap.dedent(inspect.getsource(thing)).rstrip()
    listing = f"```python\n{source}\n```"
    if not fold:
        return Markdown(listing, source)
    folded = f"<details><summary>{fold}</summary>\n\n{listing}\n\n</details>"
    return Markdown(folded, f"{fold}\n\n{source}")


def table(
    rows: Sequence[Sequence | Mapping], columns: Sequence[str], caption: str = ""
) -> Markdown:
    """A table under its caption.

    rows: sequences, or mappings from column to value. Floats show three digits; a string stays as
    it is. Raises ValueError if a row does not fit the columns.
    """
    rows = [map(row.get, columns) if isinstance(row, Mapping) else row for row in rows]
    cells = [list(columns), *([shown(value) for value in row] for row in rows)]
    require(
        all(len(row) == len(columns) for row in cells),
        f"{len(columns)} columns, but rows of {[len(row) for row in cells[1:]]} values",
    )
    numeric = [
        bool(rows) and all(re.match(r"[-+−]?\d|$", row[i]) for row in cells[1:])
        for i in range(len(columns))
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            f"{c:{'>' if right else '<'}{w}}"
            for c, right, w in zip(row, numeric, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
    head, *body = (f"| {' | '.join(map(_escape, row))} |" for row in cells)
    rule = f"| {' | '.join('--:' if right else ':--' for right in numeric)} |"
    above = f"*{_escape(' '.join(caption.split()))}*\n\n" if caption else ""
    return Markdown(
        above + "\n".join([head, rule, *body]),
        "\n".join([caption, *lines] if caption else lines),
    )


def _escape(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_~&$<>|\[\]])", r"\\\1", text)
