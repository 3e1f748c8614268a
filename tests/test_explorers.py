import base64
import struct
import zlib

import ipywidgets
import numpy as np
import pytest
from support import LABELS, causal_weights, displayed

from helpers.attention_plots import heatmap
from helpers.explorers import AttentionExplorer, Explorer, SamplingExplorer
from helpers.plots import Picture, bars


def pixels(png):
    """The raw image data of a PNG, to see whether two pictures differ."""
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    return zlib.decompress(data)


def test_an_explorer_draws_the_values_of_its_controls():
    draw = lambda size: (bars({"one": size}, x_label="size"), f"A bar of {size}.")
    explorer = Explorer(draw, size=ipywidgets.IntSlider(value=3, min=1, max=9))
    assert repr(explorer) == "Figure: A bar of 3."
    explorer.size.value = 5
    assert repr(explorer) == "Figure: A bar of 5."
    assert explorer.image.value == Picture(*draw(5)).png
    assert explorer.box.children == (explorer.size, explorer.image)


def test_the_explorer_redraws_when_a_slider_moves():
    sentences = {"first": (LABELS, causal_weights())}
    explorer = AttentionExplorer(sentences | {"second": (LABELS[:3], causal_weights(words=3))})
    seen = {pixels(explorer.image.value)}
    for control, value in ((explorer.head, 4), (explorer.layer, 2), (explorer.sentence, "second")):
        control.value = value
        seen.add(pixels(explorer.image.value))
    assert len(seen) == 4
    assert (explorer.layer.min, explorer.layer.max) == (1, 2)
    assert (explorer.head.min, explorer.head.max) == (1, 4)
    assert repr(explorer) == "Figure: Layer 2, head 4 of 2 × 4: attention of “second”"
    data, metadata = displayed(explorer)
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.box.model_id
    assert base64.b64decode(data["image/png"]) == explorer.image.value
    assert metadata["image/png"]["alt"]


def test_the_explorer_numbers_heads_from_one():
    weights = np.stack([np.stack([np.eye(2), np.tri(2) / [[1], [2]]])])  # (1, 2, 2, 2)
    explorer = AttentionExplorer({"s": (["a", "b"], weights)})
    explorer.head.value = 2
    expected = Picture(heatmap(weights[0, 1], ["a", "b"], title="layer 1, head 2"), "x")
    assert explorer.image.value == expected.png


def test_a_typed_sentence_is_read_and_shown():
    def read(text):
        words = text.split()
        if len(words) > 3:
            raise ValueError("at most 3 <words>")
        return words, causal_weights(words=len(words))

    explorer = AttentionExplorer({"first": (LABELS, causal_weights())}, read=read)
    assert explorer.box.children[:2] == (explorer.typed, explorer.message)
    explorer.typed.value = "one two three"
    assert explorer.sentence.options == ("first", "one two three")
    weights = causal_weights(words=3)[0, 0]
    expected = Picture(heatmap(weights, ["one", "two", "three"], title="layer 1, head 1"), "x")
    assert explorer.image.value == expected.png
    explorer.typed.value = "far too many words"
    assert explorer.message.value == "at most 3 &lt;words&gt;"
    assert explorer.sentence.value == "one two three"  # nothing is lost
    explorer.typed.value = " two  "
    assert (explorer.message.value, explorer.sentence.value) == ("", "two")
    explorer.typed.value = ""
    assert explorer.sentence.value == "two"


def test_the_explorer_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"'s': attention of shape \(2, 4, 3, 3\) for 6 words"):
        AttentionExplorer({"s": (LABELS, causal_weights(words=3))})
    sentences = {"a": (LABELS, causal_weights()), "b": (LABELS, causal_weights(layers=1))}
    message = r"give one or more sentences with the same number of layers and heads: \[\(1, 4\), "
    with pytest.raises(ValueError, match=message):
        AttentionExplorer(sentences)


@pytest.mark.parametrize(
    ("explore", "message"),
    [
        (lambda: AttentionExplorer({}), "^give one or more sentences"),
        (lambda: AttentionExplorer({"s": ([], np.zeros((1, 1, 0, 0)))}), "for 0 words$"),
        (lambda: AttentionExplorer({"s": (["a"], np.zeros((0, 1, 1, 1)))}), r"\(0, 1, 1, 1\)"),
        (lambda: SamplingExplorer(lambda *setting: np.ones(3), {}), r"^words=\[\]: must be"),
    ],
)
def test_nothing_to_explore_is_refused(explore, message):
    with pytest.raises(ValueError, match=message):
        explore()


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
    end = "at temperature 0.5, top-k 5, top-p 0.8: 3 words can still come out"
    assert repr(explorer).endswith(end)
