"""The licence of each package that constraints.txt pins, as the package itself states it.

python tests/licences.py
"""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def licence(name: str) -> str:
    """An SPDX expression, or a name; empty if the package states none.

    Raises PackageNotFoundError if the package is not installed.
    """
    package = distribution(name)
    about = package.metadata
    classifiers = [c for c in about.get_all("Classifier", []) if "License ::" in c]
    classes = {text.split(" :: ")[-1] for text in classifiers} - {"OSI Approved"}
    stated = about.get("License-Expression") or ", ".join(sorted(classes))
    if not stated:
        stated = (about.get("License") or "").strip().partition("\n")[0]
    texts = [file for file in package.files or [] if re.match("(?i)licen[sc]e|copying", file.name)]
    if not stated and texts:
        stated = texts[0].read_text(encoding="utf-8").strip().partition("\n")[0]
    return stated


def licences() -> dict[str, str]:
    """Of every pinned package that is installed here: some are for other systems.

    The Makefile pins torch.
    """
    pinned, found = CONSTRAINTS.read_text(encoding="utf-8"), {}
    for name in ["torch", *re.findall(r"^([\w.-]+)==", pinned, re.MULTILINE)]:
        try:
            found[name] = licence(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    for name, stated in licences().items():
        print(f"{name:30} {stated}")
