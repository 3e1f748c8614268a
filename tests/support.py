"""What the tests share: small models and stories, programs to start, how many cases, a small disk.

`make test` tries a few cases of everything; `make torture` sets TORTURE=1, and the same tests try
many.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter

from helpers.model import Decoder, ModelConfig
from helpers.stories import Stories
from helpers.tokenizer import WordTokenizer
from helpers.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "tests" / "programs"

WORDS = [f"w{i}" for i in range(30)]
TOKENIZER = WordTokenizer(WORDS)
SIZES = {
    "embedding_dim": 12,
    "d_model": 16,
    "num_layers": 2,
    "num_heads": 2,
    "d_ff": 32,
    "context_length": 12,
}
QUICK = TrainingConfig(
    batch_size=8, epochs=2, warmup_steps=4, precision="fp32", device="cpu", validate_every=5
)


def made_stories(n=70):
    """Each story counts upwards from a start of its own: easy to learn, of unequal lengths."""
    texts = [" ".join(WORDS[(i + k) % 30] for k in range(4 + i % 11)) for i in range(n)]
    return Stories("made", texts[10:], texts[:10])


def made_model(seed=0, **changes):
    """A small model, 40 rows of vocabulary, whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    return Decoder(ModelConfig(**({"vocab_size": 40} | SIZES | changes)))


def relative_error(ours, reference):
    """The largest difference of two tensors, as a part of the reference's largest number."""
    return ((ours - reference).abs().max() / reference.abs().max().clamp_min(1e-300)).item()


def start(program, *arguments, environment=None, launcher=(sys.executable,), timeout=300):
    """Run tests/programs/<program>.py from the repository, which it can import."""
    environment = dict(os.environ if environment is None else environment)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [*launcher, str(PROGRAMS / f"{program}.py"), *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


# Words that are markup somewhere: in HTML, Markdown, TeX or typst.
MARKUP = [
    *(
        "<script>alert(1)</script>",
        "<b>bold</b>",
        "&copy; &lt;",
        "<eos>",
        "javascript:alert(1)",
        "{{x}}",
    ),
    *(
        "[a](javascript:alert(1))",
        "![a](b.png)",
        "@eve",
        "~~a~~ a~b~c a^b^c",
        "a -- b... 'c' \"d\"",
        "`code`{=html}",
    ),
    *(
        "a | b",
        "*b* _i_ **c**",
        "\\",
        "\\*",
        "[^1]",
        "^[note]",
        ":smile:",
        "https://a.b",
        "$\\frac$ $x$",
        "$",
    ),
    *("= A title", "== x", "- x", "+ x", "/ a: b", "1. x", "-", "~", "// no", "/* no */"),
    *('#read("/etc/passwd")', "#[x]"),
]
MANY = os.environ.get("TORTURE") == "1"


def cases(few: int, many: int) -> int:
    return many if MANY else few


@cache
def _namespaces() -> list[str]:
    """What gives the command behind it mounts of its own; empty if the system does not allow it."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    command = ["unshare", "--mount", *([] if root else ["--map-root-user"])]
    mount = [*command, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/tmp"]
    works = shutil.which("unshare") and subprocess.run(mount, capture_output=True).returncode == 0
    return command if works else []


def or_refused(load, *words: str):
    """What `load()` gives; None where it raises a ValueError, whose text must hold one of the
    words.
    """
    try:
        return load()
    except ValueError as error:
        refusal = str(error)
    assert any(word in refusal for word in words), refusal
    return None


def on_a_small_disk(kilobytes, folder, program, *arguments, environment=None):
    """`start` a program that sees a disk of its own at `folder`.

    The test is skipped if the system does not allow mounts.
    """
    if not _namespaces():
        pytest.skip("nobody may mount a small disk here: Linux's `unshare --mount` is needed")
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$0" && exec "$@"'
    launcher = [*_namespaces(), "sh", "-c", mount, str(folder), sys.executable]
    return start(program, *arguments, environment=environment, launcher=launcher)


# Pictures and notebooks.

LABELS = ["<sos>", "one", "$", "day", "$", "lily"]


def causal_weights(layers=2, heads=4, words=6, seed=0):
    """Attention that reads no later word, and whose rows add up to one: (L, H, T, T)."""
    weights = np.tri(words) * np.random.default_rng(seed).random((layers, heads, words, words))
    return weights / weights.sum(-1, keepdims=True)


def displayed(value):
    """What a notebook shows if a cell ends with this value: {kind: data}, {kind: metadata}."""
    return DisplayFormatter().format(value)


def write_notebook(path, *cells):
    """Write a notebook that was executed. Each cell is Markdown, or a pair of code and a list of
    its outputs.
    """
    new = nbformat.v4
    cells = [
        new.new_markdown_cell(cell, id=f"cell-{number}")
        if isinstance(cell, str)
        else new.new_code_cell(cell[0], outputs=cell[1], execution_count=1, id=f"cell-{number}")
        for number, cell in enumerate(cells)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def report_script(name):
    """A script of report/ as a module."""
    if (folder := str(ROOT / "report")) not in sys.path:
        sys.path.insert(0, folder)
    return import_module(name)


# Pages, in a real browser.

NAMES = "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = "no Chromium on this machine: install Debian's `chromium`"
HERE = CHROMIUM or os.environ.get("CI")  # a machine that checks every change must have it
IN_CHROMIUM = [pytest.mark.slow, pytest.mark.skipif(not HERE, reason=MISSING)]


def open_page(browser, path, script=""):
    """A page, open from a file, with the addresses it `asked` for, and the `errors` it reported.

    script: runs before the page's own.
    """
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.add_init_script(script)
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    note = lambda message: page.errors.append(message.text) if message.type == "error" else None
    page.on("console", note)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(path.as_uri())
    return page
