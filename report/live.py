"""The model, live, in one page: its weights, its vocabulary, the grammar and the scripts, offline.

    python report/live.py [build/live.html]

The page runs the model that the repository carries, in plain JavaScript (report/live/). Each matrix
is rounded to whole numbers from -127 to 127 with one scale a row; what that costs is measured here,
and stands on the page.
"""

import base64
import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
from helpers.checkpoints import CHECKPOINTS, load_checkpoint  # noqa: E402
from helpers.grammar import bundled_grammar  # noqa: E402
from helpers.loss import mean_loss  # noqa: E402
from helpers.model import Decoder  # noqa: E402
from helpers.stories import Stories, load_stories  # noqa: E402
from helpers.support.files import make_folder, user_path, write_whole  # noqa: E402
from helpers.tokenizer import SPECIALS, WordTokenizer  # noqa: E402
from helpers.training import encode_stories  # noqa: E402

SOURCES = HERE / "live"
ENGINE = "layers", "model", "tokenizer", "grammar", "decoding"  # each may use those before it
SHOWN = 20  # held-out stories whose loss the page measures
MEASURED = 200  # held-out stories on which the cost of rounding is measured

# Beginnings in the grammar's manner: the song is to come, or to come again; a name is to return; a
# free choice; a word that the model does not know; and nothing at all.
BEGINNINGS = (
    "Once upon a time, there was a little girl named Mia who had a wise owl named Pip, and they "
    'had a merry song, "',
    "Nora was a shy girl whose old mother knew a sweet song, "
    '"Zim tala pom dum." Her baby brother cried all night. Nora leaned over the cradle and '
    'hummed "',
    "By the sea lived a small boy named Ben. Next door lived a lazy cat named Ziggy who told "
    "jokes. One day, they played hide-and-seek, and",
    "Long ago there lived a shy",
    "Tom was a little boy who had a wise zebra named",
    "",
)


def quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (rows, columns) as int8 of the same shape, and the scale (rows,) of each row.

    The scale makes a row's largest number 127. A row is what one unit of a layer reads, or the
    vector of a word.
    """
    scales = matrix.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127  # (rows,)
    return (matrix / scales[:, None]).round().to(torch.int8), scales


@torch.no_grad()
def dequantised(model: Decoder) -> Decoder:
    """A copy of a float32 model, with the matrices that the page computes with."""
    rounded = copy.deepcopy(model)
    for matrix in rounded.parameters():
        if matrix.dim() == 2:
            numbers, scales = quantised(matrix)  # (rows, columns), (rows,)
            matrix.copy_(numbers * scales[:, None])
    return rounded


def packed(model: Decoder) -> tuple[list[dict], bytes]:
    """All weights in a row, little-endian, and where each one starts.

    A matrix has `offset`, of its int8, and `scales`, of its float32 scales; a vector is float32.
    """
    tensors, parts, size = [], [], 0

    def add(values: np.ndarray) -> int:
        nonlocal size
        start, data = size, values.tobytes()
        parts.append(data + bytes(-len(data) % 4))  # JavaScript reads float32 at multiples of 4
        size += len(parts[-1])
        return start

    for name, tensor in model.state_dict().items():
        entry = {"name": name, "shape": list(tensor.shape)}
        if tensor.dim() == 2:
            numbers, scales = quantised(tensor)
            entry |= {"offset": add(numbers.numpy()), "scales": add(scales.numpy().astype("<f4"))}
        else:
            entry |= {"offset": add(tensor.numpy().astype("<f4"))}
        tensors.append(entry)
    return tensors, b"".join(parts)


def shown_stories(tokenizer: WordTokenizer, stories: Stories, context: int) -> list[int]:
    """The numbers of the first held-out stories that fit into the context whole."""
    lengths = (len(tokenizer.encode(story)) + 2 for story in stories.validation)  # <sos>, <eos>
    return [number for number, length in enumerate(lengths) if length <= context][:SHOWN]


def page_data(model: Decoder, tokenizer: WordTokenizer, stories: Stories) -> tuple[dict, bytes]:
    """What the page knows, as JSON can hold it, and the weights."""
    config, grammar = model.config, bundled_grammar()
    tensors, weights = packed(model)
    numbers = shown_stories(tokenizer, stories, config.context_length)
    ids = [
        [tokenizer.sos_id, *tokenizer.encode(stories.validation[number]), tokenizer.eos_id]
        for number in numbers
    ]
    nats = np.concatenate([stories.validation_nats[number] for number in numbers])
    texts = stories.validation[:MEASURED]
    held_out = encode_stories(tokenizer, texts, config.context_length)  # (N, T)
    losses = [mean_loss(m, held_out, precision="fp32") for m in (model, dequantised(model))]
    data = {
        "config": {
            "vocab": config.vocab_size,
            "context": config.context_length,
            "layers": config.num_layers,
            "heads": config.num_heads,
            "width": config.d_model,
            "parameters": model.num_parameters(),
        },
        "tensors": tensors,
        "words": [*SPECIALS, *tokenizer.words],
        "capitalized": sorted(tokenizer.capitalized),
        "grammar": grammar.table(),
        "stories": ids,
        "beginnings": BEGINNINGS,
        "rounding": {"stories": len(held_out), "bf16_nats": losses[0], "int8_nats": losses[1]},
        "floor": float(nats.mean()),
    }
    return data, weights


def scripts() -> list[Path]:
    """What the report draws with, the engine, the page's parts, and last page.js, which starts."""
    engine = [SOURCES / f"{name}.js" for name in ENGINE]
    rest = {*SOURCES.glob("*.js")} - {*engine}
    drawing = HERE / "page.js"
    return [drawing, *engine, *sorted(rest, key=lambda path: (path.name == "page.js", path.name))]


def page(template: str, sources: Sequence[Path], style: str, data: dict, weights: bytes) -> str:
    """The template with style, scripts, data and weights in their places."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "style": f"<style>\n{style}</style>",
        "scripts": "\n".join(
            f"<script>\n{source.read_text(encoding='utf-8')}</script>" for source in sources
        ),
        "data": f'<script type="application/json" id="data">{text}</script>',
        "weights": '<script type="text/plain" id="weights">'
        f"{base64.b64encode(weights).decode()}</script>",
    }
    for name, part in parts.items():
        template = template.replace(f"{{{{{name}}}}}", part)
    return template


def whole_page(data: dict, weights: bytes) -> str:
    """The page as readers get it."""
    template = (SOURCES / "live.html").read_text(encoding="utf-8")
    styles = HERE / "style.css", SOURCES / "live.css"
    style = "\n".join(path.read_text(encoding="utf-8") for path in styles)
    return page(template, scripts(), style, data, weights)


def build_live(target: Path) -> None:
    """Write the page of the model that the repository carries."""
    model, tokenizer, _ = load_checkpoint(CHECKPOINTS / "bundled")
    write_whole(target, whole_page(*page_data(model, tokenizer, load_stories("bundled"))))


def main() -> int:
    target = user_path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "live.html"
    make_folder(target.parent)
    begin = time.monotonic()
    build_live(target)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB in {time.monotonic() - begin:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
