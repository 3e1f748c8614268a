"""The licence of each package that constraints.txt pins, as the package itself states it: python
tests/licences.py
"""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def licence(name: str) -> str:
    """An SPDX expression, or a name; empty where the package states none. Raises
    PackageNotFoundError where it is absent.
    """
    package = distribution(name)
    classifiers = [
        text.split(" :: ")[-1]
        for text in package.metadata.get_all("Classifier", [])
        if "License ::" in text
    ]
    stated = package.metadata.get("License-Expression") or ", ".join(
        sorted({*classifiers} - {"OSI Approved"})
    )
    if not stated:
        stated = (package.metadata.get("License") or "").strip().partition("\n")[0]
    texts = [file for file in package.files or [] if re.match("(?i)licen[sc]e|copying", file.name)]
    if not stated and texts:
        stated = texts[0].read_text(encoding="utf-8").strip().partition("\n")[0]
    return stated


def licences() -> dict[str, str]:
    """Of every pinned package that is installed here: some are for other systems. torch is pinned
    by the Makefile.
    """
    found = {}
    for name in [
        "torch",
        *re.findall(r"^([\w.-]+)==", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE),
    ]:
        try:
            found[name] = licence(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    for name, stated in licences().items():
        print(f"{name:30} {stated}")
