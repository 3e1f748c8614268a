"""What the cells of a notebook show and keep: figures, numbers, tables, source, claims."""

import inspect
import io
import json
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from helpers.explorers import AttentionExplorer
from helpers.plots import Picture, render, shown, writable
from helpers.stories import corpus_name
from helpers.support.checks import require
from helpers.support.files import make_folder, write_whole

ROOT = Path(__file__).resolve().parents[1]


class FigureFolder:
    """Where a run's figures and numbers go: `$FIGURES_DIR`, or else figures/<corpus> here."""

    def __init__(self, corpus: str):
        self.path = Path(os.environ.get("FIGURES_DIR") or ROOT / "figures" / corpus_name(corpus))

    def save_figure(self, figure: Figure, name: str, alt: str) -> "Picture":
        """Write `<name>.svg`, and return what the notebook shows.

        alt: what the figure shows, in one plain sentence. Raises ValueError if it is empty.
        """
        require(
            alt.strip(), f"figure {name!r} needs an alt text: say in one sentence what it shows"
        )
        alt = writable(" ".join(alt.split()))
        file = io.BytesIO()
        render(figure, file, format="svg", metadata={"Date": None, "Creator": None, "Title": alt})
        make_folder(self.path)
        write_whole(self.path / f"{name}.svg", file.getvalue())
        return Picture(figure, alt, name)

    def save_explorer(self, explorer: "AttentionExplorer", name: str) -> "AttentionExplorer":
        """Write an explorer's matrices to `<name>.json`, for the report's own, and return it."""
        sentences = [
            {"title": title, "tokens": list(tokens), "attention": np.round(weights, 3).tolist()}
            for title, (tokens, weights) in explorer.sentences.items()
        ]
        start = {
            "sentence": explorer.sentence.index,
            "layer": explorer.layer.value,
            "head": explorer.head.value,
        }
        self.save_numbers(name, {"sentences": sentences, "start": start})
        explorer.labels = {"figure": name, "explorer": f"{self.path.name}/{name}"}
        return explorer

    def save_numbers(self, name: str, numbers: Mapping) -> None:
        """Write `<name>.json`: keys sorted, floats to six digits; from NumPy and torch too.

        Raises ValueError if a number is not finite (write None instead), TypeError for what JSON
        cannot hold.
        """
        text = json.dumps(
            _plain(numbers), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
        )
        # A list of numbers stands in one line, not in one for each.
        text = re.sub(r"\[\n[^\[\]{}]*\]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text)
        make_folder(self.path)
        # A lone surrogate as JSON writes it.
        write_whole(self.path / f"{name}.json", f"{text}\n".encode("utf-8", "backslashreplace"))


def load_numbers(corpus: str, name: str) -> dict:
    """The numbers that the repository carries for a corpus: `figures/<corpus>/<name>.json`.

    Raises FileNotFoundError if they have not been recorded, ValueError if the file is damaged.
    """
    path = ROOT / "figures" / corpus_name(corpus) / f"{name}.json"
    here, advice = path.relative_to(ROOT), f"record it with `make record CORPUS={corpus}`"
    require(path.is_file(), f"{here} is missing: {advice}", FileNotFoundError)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{here} is damaged ({error}): {advice}") from error


def load_explorer(corpus: str, name: str) -> "AttentionExplorer":
    """What `save_explorer` wrote for a corpus; raises as `load_numbers` does."""
    saved = load_numbers(corpus, name)
    explorer = AttentionExplorer(
        {s["title"]: (s["tokens"], s["attention"]) for s in saved["sentences"]}
    )
    explorer.sentence.index = saved["start"]["sentence"]
    explorer.layer.value, explorer.head.value = saved["start"]["layer"], saved["start"]["head"]
    explorer.labels = {"figure": name, "explorer": f"{corpus_name(corpus)}/{name}"}
    return explorer


def _plain(value):
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


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


def show_source(thing) -> Markdown:
    """The source of a class, function or module: the code that runs, not a copy of it."""
    source = textwrap.dedent(inspect.getsource(thing)).rstrip()
    return Markdown(f"```python\n{source}\n```", source)


def table(
    rows: Sequence[Sequence | Mapping], columns: Sequence[str], caption: str = ""
) -> Markdown:
    """A table under its caption.

    rows: sequences, or mappings from column to value. Floats show three digits; a string stays as
    it is. Raises ValueError if a row does not fit the columns.
    """
    rows = [
        [row.get(column) for column in columns] if isinstance(row, Mapping) else list(row)
        for row in rows
    ]
    for row in rows:
        require(
            len(row) == len(columns),
            f"{len(columns)} columns, but a row of {len(row)} values: {row!r}",
        )
    cells = [list(columns)] + [[shown(value) for value in row] for row in rows]
    numeric = [
        bool(rows) and all(re.match(r"[-+−]?\d|$", row[i]) for row in cells[1:])
        for i in range(len(columns))
    ]
    escaped = [[_escape(cell) for cell in row] for row in cells]
    escaped.insert(1, ["--:" if right else ":--" for right in numeric])
    markdown = [f"| {' | '.join(row)} |" for row in escaped]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            f"{c:{'>' if right else '<'}{w}}"
            for c, right, w in zip(row, numeric, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
    if caption:
        markdown = [f"*{_escape(' '.join(caption.split()))}*", "", *markdown]
        lines = [caption, *lines]
    return Markdown("\n".join(markdown), "\n".join(lines))


def _escape(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_~&$<>|\[\]])", r"\\\1", text)
