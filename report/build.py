"""The executed notebooks as one self-contained page and two PDFs, offline.

    python report/build.py                    notebooks/*.ipynb -> build/
    python report/build.py build/notebooks    those of `make report` -> build/
    python report/build.py build/tinystories  that folder's notebooks -> the same folder

report.html has all of them, the results first; results.pdf the results alone; book.pdf all, in
order; beside the bundled stories' report, live.html runs their model. pandoc and typst come as
Python wheels. cells.lua turns cells into pages for both forms.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import matplotlib
import pypandoc
import typst
from matplotlib.ft2font import FT2Font

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
from helpers.notebook import figures_root  # noqa: E402
from helpers.support.files import make_folder, user_path, write_whole  # noqa: E402
from live import build_live  # noqa: E402

BUILD = ROOT / "build"
TITLE = "A story transformer, from scratch"
RESULTS = "07"  # what a grader reads first
CONTENTS = "--toc", "--toc-depth=2"
# Tables come from Markdown, maths from TeX; a bare [@key] is a citation.
READER = "ipynb+citations+tex_math_dollars+pipe_tables+raw_html"
# What typst's own fonts have no glyph for is set in this one.
FALLBACK = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVuSans[.-]*"))


def in_order(folder: Path) -> list[str]:
    """The notebooks' names. Ends the program if there is none."""
    names = sorted(path.name for path in folder.glob("*.ipynb"))
    if not names:
        raise SystemExit(f"{folder} holds no notebook: execute them first, with `make report`")
    return names


def results_alone(names: list[str]) -> bool:
    return len(names) == 1 and names[0].startswith(RESULTS)


@contextmanager
def desk(folder: Path) -> Iterator[Path]:
    """A scratch folder that links to everything pandoc and typst read, under plain names.

    pandoc decodes `%20` in a path, and in some locales it reads no letters but those of ASCII.
    An explorer's data is that of the run that wrote the notebooks, or else the repository's.
    """
    this_run = figures_root(BUILD / "figures" if folder == BUILD / "notebooks" else None)
    links = {name: folder / name for name in in_order(folder)}
    links |= {"report": HERE, "this_run": this_run, "figures": ROOT / "figures"}
    links |= {f"fonts/{path.name}": path for path in FALLBACK}
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "fonts").mkdir()
        for name, target in links.items():
            Path(scratch, name).symlink_to(target.resolve())
        yield Path(scratch)


def pandoc(place: Path, names: list[str], target: str, *options: str) -> Path:
    """Notebooks on a desk to one file there. Ends the program if pandoc complains: a gap is an
    error.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = {"title": TITLE, "subtitle": project["description"], "lang": "en-GB"}
    if authors := ", ".join(author["name"] for author in project.get("authors", [])):
        metadata["author"] = authors
    if results_alone(names):
        metadata |= {"alone": names[0], "title": f"Results: {TITLE[0].lower()}{TITLE[1:]}"}
        metadata["subtitle"] = "Report on the assignment of ELL881, a graduate course"
    metadata |= {
        "reference-section-title": "References",
        "link-citations": "true",
        "toc-title": "Contents",
        "repository": project["urls"]["Repository"],
    }
    command = [
        pypandoc.get_pandoc_path(),
        *names,  # bare, so that a link from one to another is found
        *("--file-scope", f"--from={READER}", "--ipynb-output=all", f"--output={target}"),
        *("--standalone", *options),
        "--lua-filter=report/cells.lua",
        *("--citeproc", "--bibliography=report/references.bib", "--csl=report/numbers.csl"),
        *(f"--metadata={key}={value}" for key, value in metadata.items()),
        "--fail-if-warnings",
    ]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pandoc: {done.stderr.strip()}")
    return place / target


def build_html(folder: Path, target: Path) -> None:
    """One page that needs nothing beside it, results first: pictures, style and script are inside,
    formulas are MathML.
    """
    with desk(folder) as place:
        script = (HERE / "page.js").read_text(encoding="utf-8")
        (place / "script.html").write_text(f"<script>\n{script}</script>\n", encoding="utf-8")
        options = "--to=html5", "--embed-resources", "--mathml", "--css=report/style.css"
        names = sorted(in_order(folder), key=lambda name: not name.startswith(RESULTS))
        include = "--include-after-body=script.html"
        page = pandoc(place, names, "report.html", *CONTENTS, *options, include)
        write_whole(target, page.read_bytes())


def typst_text(place: Path, names: list[str]) -> Path:
    """Notebooks on a desk as a text for typst, `report.typ`.

    Code that only draws is left out, and the explorer is the picture of one head. A character
    for which the fonts have no glyph is written as its code point.
    """
    known = FT2Font(FALLBACK[0]).get_charmap()
    (place / "glyphs.txt").write_text("\n".join(map(str, known)), encoding="utf-8")
    variables = {
        "papersize": "a4",
        "fontsize": "10pt",
        "mainfont": "Libertinus Serif",
        "page-numbering": "1",
        "margin.x": "24mm",
        "margin.y": "22mm",
    }
    options = [f"--variable={key}={value}" for key, value in variables.items()]
    options += ["--include-in-header=report/page.typ", "--extract-media=media"]
    if results_alone(names):  # no chapter that could begin a page
        options += ["--include-in-header=report/alone.typ"]
    else:
        options += CONTENTS
    text = pandoc(place, names, "report.typ", "--to=typst", *options)
    # pandoc 3.9 writes ⊙ by a name that typst has changed since.
    written = text.read_text(encoding="utf-8").replace("dot.circle", "dot.o")
    text.write_text(written, encoding="utf-8")
    return text


def build_pdf(folder: Path, target: Path, names: list[str]) -> None:
    """Notebooks on paper, in this order."""
    with desk(folder) as place:
        text = typst_text(place, names)
        fonts = {"font_paths": [str(place / "fonts")], "ignore_system_fonts": True}
        write_whole(target, typst.compile(str(text), root=str(place), format="pdf", **fonts))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default=ROOT / "notebooks", help="of notebooks")
    folder = user_path(parser.parse_args().folder).resolve()
    place = BUILD if folder in (ROOT / "notebooks", BUILD / "notebooks") else folder
    names = in_order(folder)
    products = {"report.html": build_html, "book.pdf": partial(build_pdf, names=names)}
    if results := [name for name in names if name.startswith(RESULTS)]:
        products["results.pdf"] = partial(build_pdf, names=results)
    if place == BUILD:
        products["live.html"] = lambda _, target: build_live(target)
    make_folder(place)
    for name, build in products.items():
        begin, target = time.monotonic(), place / name
        build(folder, target)
        shown = target.relative_to(ROOT) if target.is_relative_to(ROOT) else target
        print(f"{shown}: {target.stat().st_size / 1e6:.1f} MB in {time.monotonic() - begin:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
