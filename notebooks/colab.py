"""The set-up of every notebook: make `helpers` importable; in Colab, install what is missing.

The first cell of each notebook calls `start`. What Colab has stays as it is.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip"]
# A package at a version that pip can read; Debian has others, such as 0.8.4-1build1.
PIN = re.compile(
    r"[\w.-]+==(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(-\d+|\.post\d+)?(\.dev\d+)?(\+[\w.-]+)?"
)


def pins(listed: str) -> str:
    """The lines of `pip list --format=freeze` that pip takes as constraints."""
    return "".join(f"{line}\n" for line in listed.splitlines() if PIN.fullmatch(line))


def install() -> None:
    command = [*PIP, "list", "--format=freeze"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as scratch:
        present = Path(scratch, "present.txt")  # every package at the version that is there
        present.write_text(pins(listed))
        install = [*PIP, "install", "--quiet", "--editable", ROOT, "--constraint", present]
        subprocess.run(install, check=True)


def start() -> None:
    """Install what is missing in Colab; go to notebooks/; and let `helpers`, `checks` be found."""
    if "google.colab" in sys.modules:
        install()
    sys.path[:0] = [str(ROOT), str(ROOT / "notebooks" / "exercises")]
    os.chdir(ROOT / "notebooks")
