"""Install what the notebooks need and Colab lacks; the first cell of each runs this. What Colab has
stays as it is.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip"]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        present = Path(scratch, "present.txt")  # every package at the version that is there
        present.write_bytes(
            subprocess.run(
                [*PIP, "list", "--format=freeze"], stdout=subprocess.PIPE, check=True
            ).stdout
        )
        subprocess.run(
            [*PIP, "install", "--quiet", "--editable", ROOT, "--constraint", present], check=True
        )


if __name__ == "__main__":
    main()
