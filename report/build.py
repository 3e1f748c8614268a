"""The executed notebooks as one self-contained page and one PDF, offline.

    python report/build.py                    notebooks/*.ipynb -> build/report.html, .pdf
    python report/build.py build/tinystories  that folder's notebooks -> report.html, .pdf in it

pandoc and typst come as Python wheels. The results come first, then the chapters in order.
cells.lua turns cells into pages for both forms.
"""

import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import pypandoc
import typst

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
from helpers.support.files import make_folder, write_whole  # noqa: E402

FIGURES = ROOT / "figures"
TITLE = "A story transformer, from scratch"
FIRST = "07"  # what a grader reads first
# Tables come from Markdown, maths from TeX; a bare [@key] is a citation.
READER = "ipynb+citations+tex_math_dollars+pipe_tables+raw_html"


def in_order(folder: Path) -> list[str]:
    """The notebooks' names, results first. Ends the program if there is none."""
    names = sorted(
        (path.name for path in folder.glob("*.ipynb")),
        key=lambda name: (not name.startswith(FIRST), name),
    )
    if not names:
        raise SystemExit(f"{folder} holds no notebook: execute them first, with `make report`")
    return names


def pandoc(folder: Path, target: Path, *options: str) -> None:
    """The notebooks of `folder` to one file. Ends the program if pandoc complains: a gap is an
    error.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = {"title": TITLE, "subtitle": project["description"], "lang": "en-GB"}
    metadata |= {
        "reference-section-title": "References",
        "link-citations": "true",
        "toc-title": "Contents",
    }
    metadata |= {"repository": project["urls"]["Repository"], "figures": str(FIGURES)}
    command = [
        pypandoc.get_pandoc_path(),
        *in_order(folder),  # bare names, so that a link from one to another is found
        *("--file-scope", f"--from={READER}", "--ipynb-output=all", f"--output={target}"),
        *("--standalone", "--toc", "--toc-depth=2", *options),
        f"--lua-filter={HERE / 'cells.lua'}",
        *(
            "--citeproc",
            f"--bibliography={HERE / 'references.bib'}",
            f"--csl={HERE / 'numbers.csl'}",
        ),
        *(f"--metadata={key}={value}" for key, value in metadata.items()),
        "--fail-if-warnings",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pandoc: {done.stderr.strip()}")


def build_html(folder: Path, target: Path) -> None:
    """One page that needs nothing beside it: pictures, style and script are inside, formulas are
    MathML.
    """
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch, "script.html")
        script.write_text(
            f"<script>\n{(HERE / 'page.js').read_text(encoding='utf-8')}</script>\n",
            encoding="utf-8",
        )
        page = Path(scratch, "report.html")
        options = "--to=html5", "--embed-resources", "--mathml", f"--css={HERE / 'style.css'}"
        pandoc(folder, page, *options, f"--include-after-body={script}")
        write_whole(target, page.read_bytes())


def build_pdf(folder: Path, target: Path) -> None:
    """The same text for paper. Code that only draws is left out, and the explorer is the picture of
    one head.
    """
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch, "report.typ")
        variables = {
            "papersize": "a4",
            "fontsize": "10pt",
            "mainfont": "Libertinus Serif",
            "page-numbering": "1",
        }
        variables |= {"margin.x": "24mm", "margin.y": "26mm"}
        options = [f"--variable={key}={value}" for key, value in variables.items()]
        pandoc(
            folder,
            text,
            "--to=typst",
            f"--include-in-header={HERE / 'page.typ'}",
            f"--extract-media={scratch}",
            *options,
        )
        # pandoc 3.9 writes ⊙ by a name that typst has changed since.
        text.write_text(
            text.read_text(encoding="utf-8").replace("dot.circle", "dot.o"), encoding="utf-8"
        )
        write_whole(
            target, typst.compile(str(text), root="/", format="pdf", ignore_system_fonts=True)
        )


def main() -> int:
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "notebooks"
    place = ROOT / "build" if folder == ROOT / "notebooks" else folder
    for target, build in ((place / "report.html", build_html), (place / "report.pdf", build_pdf)):
        begin = time.monotonic()
        make_folder(target.parent)
        build(folder, target)
        shown = target.relative_to(ROOT) if target.is_relative_to(ROOT) else target
        print(f"{shown}: {target.stat().st_size / 1e6:.1f} MB in {time.monotonic() - begin:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
