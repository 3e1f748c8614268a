"""The executed notebooks as one self-contained page, build/report.html. Offline: pandoc comes as a Python wheel.

python report/build.py                      notebooks/*.ipynb -> build/report.html
python report/build.py build/tinystories    the notebooks of that folder -> build/tinystories/report.html
"""

import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pypandoc

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TITLE = "A story transformer, from scratch"
# Tables come from Markdown, maths from TeX; a bare [@key] is a citation.
READER = "ipynb+citations+tex_math_dollars+pipe_tables+raw_html"


def build(folder: Path, target: Path) -> None:
    """Write the notebooks of `folder` to one page, `target`.

    Ends the program where there are none, or where pandoc complains.
    """
    notebooks = sorted(folder.glob("*.ipynb"))
    if not notebooks:
        raise SystemExit(f"{folder} holds no notebook: execute them first, with `make report`")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    metadata = {"title": TITLE, "subtitle": project["description"], "lang": "en-GB"}
    metadata |= {"reference-section-title": "References", "link-citations": "true"}
    command = [
        pypandoc.get_pandoc_path(),
        *(path.name for path in notebooks),  # bare names, so that a link from one to another is found
        *("--file-scope", f"--from={READER}", "--ipynb-output=all", "--to=html5", f"--output={partial}"),
        *("--standalone", "--embed-resources", "--toc", "--toc-depth=2", "--number-sections", "--mathml"),
        f"--lua-filter={HERE / 'cells.lua'}",
        *("--citeproc", f"--bibliography={HERE / 'references.bib'}"),
        f"--css={HERE / 'style.css'}",
        *(f"--metadata={key}={value}" for key, value in metadata.items()),
        "--fail-if-warnings",  # a missing reference or picture is an error, not a gap in the page
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise SystemExit(f"pandoc: {done.stderr.strip()}")
    partial.replace(target)


def main() -> int:
    begin = time.monotonic()
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "notebooks"
    target = (ROOT / "build" if folder == ROOT / "notebooks" else folder) / "report.html"
    build(folder, target)
    shown = target.relative_to(ROOT) if target.is_relative_to(ROOT) else target
    print(f"{shown}: {target.stat().st_size / 1e6:.1f} MB in {time.monotonic() - begin:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
