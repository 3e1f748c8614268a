"""Pictures with controls: live in Jupyter and Colab, a still picture elsewhere."""

import functools
import html
import textwrap
from collections.abc import Callable, Mapping, Sequence

import ipywidgets as widgets
import numpy as np

from helpers.attention_plots import heatmap
from helpers.plots import Picture, distributions
from helpers.support.checks import require


class Explorer:
    """Controls above the picture that `draw` makes of their values.

    draw: called with the value of each control, by the names given here; returns a Figure, and a
    text for those who cannot see it. The controls are attributes of these names.
    """

    def __init__(self, draw, **controls: widgets.Widget):
        self.draw, self.controls = draw, controls
        self.labels: dict[str, str] = {}  # what the report looks for
        vars(self).update(controls)
        self.image = widgets.Image(format="png", layout={"max_width": "560px"})
        self._redraw()
        for control in controls.values():
            control.observe(self._redraw, "value")
        self.box = widgets.VBox([*controls.values(), self.image])

    def _redraw(self, change=None) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        self.picture = Picture(*self.draw(**values))
        self.image.value = self.picture.png

    def __repr__(self) -> str:
        return repr(self.picture)

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = self.picture._repr_mimebundle_()
        metadata["image/png"] |= self.labels
        return data | {
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self.box.model_id,
            }
        }, metadata


class AttentionExplorer(Explorer):
    """Choose a sentence, a layer and a head, and see its heat-map; type a sentence of your own.

    Args:
        sentences: {title: (tokens, attention[L, H, T, T])}, with the same L and H for each.
        read: makes the same of a typed sentence, or says by a ValueError what is wrong with it;
            None: nothing can be typed.
        notes: what to look at in a head, by (layer, head), both from 1; a line above its picture.

    Raises ValueError if the shapes do not fit, or if there is no sentence, word, layer or head.
    """

    def __init__(
        self,
        sentences: Mapping[str, tuple[Sequence[str], np.ndarray]],
        read: Callable[[str], tuple[Sequence[str], np.ndarray]] | None = None,
        notes: Mapping[tuple[int, int], str] | None = None,
    ):
        self.notes = notes = notes or {}
        self.sentences = sentences = {
            title: _checked(title, *shown) for title, shown in sentences.items()
        }
        sizes = {weights.shape[:2] for _, weights in sentences.values()}
        require(
            len(sizes) == 1,
            f"give one or more sentences with the same number of layers and heads: {sorted(sizes)}",
        )
        layers, heads = sizes.pop()
        slider = functools.partial(widgets.IntSlider, value=1, min=1, continuous_update=False)

        def draw(sentence, layer, head):
            tokens, weights = sentences[sentence]
            title = f"layer {layer}, head {head}"
            note = notes.get((layer, head), "")
            picture = heatmap(
                weights[layer - 1, head - 1],
                tokens,
                title=textwrap.fill(f"{title}: {note}" if note else title, 60),
            )
            name = f"{title.capitalize()} of {layers} × {heads}: attention of “{sentence}”"
            return picture, f"{name}. {note}" if note else name

        super().__init__(
            draw,
            sentence=widgets.Dropdown(options=list(sentences), description="sentence"),
            layer=slider(max=layers, description="layer"),
            head=slider(max=heads, description="head"),
        )
        if read is not None:
            self.read = read
            self.typed = widgets.Text(
                placeholder="type a sentence, then press Enter",
                description="your own",
                continuous_update=False,
            )
            self.typed.observe(self._add, "value")
            self.message = widgets.HTML()
            self.box.children = (self.typed, self.message, *self.box.children)

    def _add(self, change) -> None:
        """Show what was typed, as one more sentence."""
        title = change["new"].strip()
        if not title:
            return
        try:
            self.sentences[title] = _checked(title, *self.read(title))
        except ValueError as error:
            self.message.value = html.escape(str(error))
            return
        self.message.value = ""
        self.sentence.options = list(self.sentences)
        self.sentence.value = title


def _checked(title: str, tokens: Sequence[str], weights) -> tuple[Sequence[str], np.ndarray]:
    weights = np.asarray(weights)  # (L, H, T, T)
    require(
        weights.size and weights.shape[2:] == (len(tokens), len(tokens)),
        f"{title!r}: attention of shape {weights.shape} for {len(tokens)} words",
    )
    return tokens, weights


class SamplingExplorer(Explorer):
    """Choose temperature, top-k and top-p, and see what becomes of one distribution.

    filtered(temperature, top_k, top_p) -> probabilities (V,), an array; top_k is None if its
    slider is off. words: the words to show, {word: its place in them}.
    """

    def __init__(self, filtered, words: Mapping[str, int]):
        def draw(temperature, top_k, top_p):
            probabilities = filtered(temperature, top_k or None, top_p)  # (V,)
            left = int((probabilities > 0).sum())
            name = f"temperature {temperature:g}, top-k {top_k or 'off'}, top-p {top_p:g}"
            return distributions(
                list(words),
                {name: probabilities[list(words.values())]},
                title=f"{left:,} words left",
                limit=1.0,
            ), f"Probabilities of the next word at {name}: {left:,} words can still come out"

        slider = functools.partial(widgets.FloatSlider, value=1.0)
        super().__init__(
            draw,
            temperature=slider(min=0.1, max=2.0, step=0.1, description="temperature"),
            top_k=widgets.SelectionSlider(
                value=0,
                options=[(str(k or "off"), k) for k in (1, 2, 3, 4, 5, 10, 20, 50, 100, 500, 0)],
                description="top-k",
            ),
            top_p=slider(min=0.05, max=1.0, step=0.05, description="top-p"),
        )
