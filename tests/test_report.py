"""Executing notebooks and rendering them, tried on small ones in a folder of their own."""

import json
import re
import shutil
import sys

import jupytext
import numpy as np
import pytest
import typst
from matplotlib import pyplot as plt
from nbformat.v4 import new_output
from support import MARKUP, ROOT, report_script, write_notebook

build = report_script("build")
execute = report_script("execute")

COLAB = "https://colab.research.google.com"
LINK = f"{COLAB}/github/someone/else/blob/main/notebooks/01_first.ipynb"
pytestmark = pytest.mark.slow

FIRST = """# %% [markdown]
# # 01 · First things
#
# BADGE
#
# As in [@vaswani2017attention]: $\\sqrt{d}$. Next: [the second](02_second.ipynb), from
# [a bar](01_first.ipynb#01_bar) and [a part](02_second.ipynb#A-part)
# to [the code](../helpers/plots.py) and [the tasks](exercises/01_first.ipynb).

# %% tags=["parameters"]
CORPUS = "bundled"  # or a path

# %% tags=["setup"]
import sys

REPOSITORY = "https://somewhere.example/else"
sys.path.insert(0, ROOT_OF_THE_PROJECT)
from helpers import plots
from helpers.explorers import AttentionExplorer
from helpers.notebook import FigureFolder, load_numbers, show_source, table

# %%
print(CORPUS.split("/")[-1], "is the corpus")
figure = plots.bars({"one": 1}, x_label="count")
FigureFolder("bundled").save_figure(
    figure, "01_bar", alt="One bar of length one.", caption="What one bar is."
)

# %%
table([["<pad>", 1]], ["word", "id"], caption="One word.")

# %%
show_source(load_numbers)

# %% tags=["hide-input"]
AttentionExplorer({"a sentence": (["a", "b"], [[[[1, 0], [0.5, 0.5]]]])})
""".replace("ROOT_OF_THE_PROJECT", repr(str(ROOT)))
FIRST = FIRST.replace("BADGE", f"[![Open In Colab]({COLAB}/assets/colab-badge.svg)]({LINK})")
SECOND = """# %% [markdown]
# # 02 · Second things
#
# ## A part

# %% cellView="form" tags=["hide-input", "hide-output"]
print(1 + 1)
"""
# A notebook that has yet to show something.
SHORT = f"""# %% [markdown]
# # 01 · First

# %%
import sys

sys.path.insert(0, {str(ROOT)!r})
from helpers.notebook import table
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The notebooks' folder of an empty project, to which the scripts write instead of this one."""
    for name, folder in (("ROOT", ""), ("NOTEBOOKS", "notebooks"), ("BUILD", "build")):
        monkeypatch.setattr(execute, name, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    return tmp_path / "notebooks"


def write_source(project, name, text):
    path = project / "src" / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path


def on_paper(folder):
    """The text of a folder's notebooks for typst."""
    with build.desk(folder) as place:
        return build.typst_text(place, build.in_order(place)).read_text(encoding="utf-8")


def print_book(folder):
    """Its pages as a PDF."""
    build.build_pdf(folder, folder / "book.pdf", build.in_order(folder))
    return (folder / "book.pdf").read_bytes()


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["execute.py", *arguments])
    return execute.main()


def test_two_executions_give_the_same_bytes_and_one_page(project, monkeypatch):
    write_source(project, "01_first", FIRST)
    write_source(project, "02_second", SECOND)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # so that two share the cores
    assert command(monkeypatch, "--jobs", "2") == 0
    first = (project / "01_first.ipynb").read_bytes()
    assert command(monkeypatch, "01") == 0
    assert (project / "01_first.ipynb").read_bytes() == first
    assert execute.WIDGET_VIEW.encode() not in first
    assert execute.out_of_step() == []

    build.build_html(project, project / "page.html")
    page = (project / "page.html").read_text(encoding="utf-8")
    fetched = r'(?:src|href)="(?:https?:)?//[^"]*\.(?:svg|png|js|css)'
    assert not re.search(fetched, page)
    assert "colab" not in page
    assert re.search(r'<img[^>]+src="data:image/svg[^>]+alt="One bar of length one\."', page)
    assert re.search(r"<td[^>]*>&lt;pad&gt;</td>", page)
    begins = re.findall(r"<tr>\s*<t[hd][^>]*>([^<]*)<", page)
    assert begins == ["word", "&lt;pad&gt;"]  # a header, one row
    assert "<msqrt>" in page
    assert re.search(r"Attention is all\s+you need", page)
    assert "REPOSITORY" not in page  # the setup cell is not repeated in each chapter
    caption = "<strong>Figure 1.1.</strong> What one bar is."
    assert caption in " ".join(page.split())
    assert re.search(r"<caption><strong>Table 1\.1\.</strong>\s+One word\.", page)
    folded = r'<details class="code"><summary>Code</summary>(.*?)</details>'
    # The table, the listing, the explorer, the sum; the figure is saved in a cell that does more.
    assert len(re.findall(folded, page, flags=re.DOTALL)) == 4
    heading = r'<h1[^>]*><span class="header-section-number">1</span>\s+First\s+things'
    assert re.search(heading, page)
    answer = r'<details class="answer"><summary>What comes out</summary>\s*<div class="output">'
    assert re.search(answer, page)
    cell = json.loads((project / "02_second.ipynb").read_text(encoding="utf-8"))["cells"][1]
    assert cell["metadata"]["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
    assert cell["metadata"]["collapsed"] is True
    assert "<em>What one bar is.</em>" not in page  # a caption, with its number, and no text too
    contents = r"Second\s+things</a>\s*<ul>\s*<li>[^\n]*A part"
    assert re.search(contents, page)  # nested
    for name in (r"the\s+second", r"a\s+bar\s+\(Figure\s+1\.1\)", r"a\s+part"):
        target = re.search(rf'<a\s+href="#([^"]+)">{name}</a>', page)[1]
        assert f'id="{target}"' in page
    code = rf'<a\s+href="{execute.repository()}/blob/main/helpers/plots\.py">the\s+code</a>'
    assert re.search(code, page)
    tasks = rf'<a\s+href="{execute.repository()}/blob/main/notebooks/exercises/01_first\.ipynb">'
    assert re.search(tasks, page)


SAVED = f"""{SHORT}
from helpers.explorers import AttentionExplorer
from helpers.notebook import FigureFolder

explorer = AttentionExplorer({{"of this run": (["a", "b"], [[[[1, 0], [0.5, 0.5]]]])}})
FigureFolder("bundled").save_explorer(explorer, "02_attention")
"""


def test_a_run_into_build_leaves_the_rest_alone_and_shows_its_own_figures(project, monkeypatch):
    monkeypatch.delenv("FIGURES_DIR")
    monkeypatch.setattr(build, "BUILD", execute.BUILD)
    write_source(project, "01_first", SAVED)
    left = [execute.BUILD / name for name in ("notebooks/09_gone.ipynb", "figures/bundled/09.json")]
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    assert command(monkeypatch, "--build") == 0
    executed, saved = execute.BUILD / "notebooks", execute.BUILD / "figures"
    assert [path.name for path in executed.iterdir()] == ["01_first.ipynb"]
    assert [path.name for path in saved.rglob("*.json")] == ["02_attention.json"]
    assert [path.name for path in project.iterdir()] == ["src"]
    assert command(monkeypatch, "--build", "01") == 0

    shutil.copy(executed / "01_first.ipynb", project)
    for folder, own in ((executed, True), (project, False)):  # else that of the repository
        build.build_html(folder, folder / "page.html")
        assert ('"of this run"' in (folder / "page.html").read_text(encoding="utf-8")) is own


def test_figures_go_where_the_user_says(project, monkeypatch, tmp_path):
    monkeypatch.setenv("FIGURES_DIR", "somewhere else")
    monkeypatch.chdir(tmp_path)
    write_source(project, "01_first", SAVED)
    assert command(monkeypatch, "--build") == 0
    assert (tmp_path / "somewhere else" / "bundled" / "02_attention.json").is_file()
    assert not (execute.BUILD / "figures").exists()


def test_the_results_come_first_and_chapters_keep_their_numbers(project, monkeypatch):
    for name in ("01_first", "07_results"):
        write_source(project, name, f"# %% [markdown]\n# # {name[:2]} · {name[3:]}\n\n# %%\n1")
    assert command(monkeypatch) == 0
    build.build_html(project, project / "page.html")
    page = (project / "page.html").read_text(encoding="utf-8")
    chapter = r'<h1 id="[^"]*"><span class="header-section-number">(\d)</span>'
    assert re.findall(chapter, page) == ["7", "1"]
    assert re.findall(r"^= (\d) ", on_paper(project), re.MULTILINE) == ["1", "7"]


RESULTS = """# %% [markdown]
# # 07 · Results
#
# ## A part
#
# See [the bar](07_results.ipynb#07_bar), [this part](07_results.ipynb#A-part), and
# [the first](01_first.ipynb#A-part).

# %% tags=["hide-input"]
import sys

sys.path.insert(0, ROOT_OF_THE_PROJECT)
from helpers import plots
from helpers.notebook import FigureFolder

FigureFolder("bundled").save_figure(plots.bars({"one": 1}, x_label="n"), "07_bar", alt="A bar.")
""".replace("ROOT_OF_THE_PROJECT", repr(str(ROOT)))


def test_the_results_alone_are_numbered_from_one_and_link_to_the_chapters(project, monkeypatch):
    write_source(project, "01_first", "# %% [markdown]\n# # 01 · First\n#\n# ## A part\n\n# %%\n1")
    write_source(project, "07_results", RESULTS)
    assert command(monkeypatch) == 0
    with build.desk(project) as place:
        text = build.typst_text(place, ["07_results.ipynb"]).read_text(encoding="utf-8")
    assert "== 1 A part" in text
    assert "Figure 1." in text
    assert f'#link("{execute.repository()}/blob/main/notebooks/01_first.ipynb#A-part")' in text
    assert "#link(<07_bar>)" in text
    assert "#link(<a-part>)" in text
    assert "save_figure" not in text  # results show no code that draws


def test_the_pdf_leaves_out_what_only_draws(project, monkeypatch):
    write_source(project, "01_first", FIRST)
    write_source(project, "02_second", SECOND)
    assert command(monkeypatch) == 0
    written = on_paper(project)
    assert "table([[" not in written
    assert "AttentionExplorer" not in written
    assert "CORPUS.split" in written
    assert "#table(" in written
    assert written.count('image("media/') == 2  # the bar, and one head for the explorer
    assert print_book(project).startswith(b"%PDF")
    assert not list(project.glob("*.partial"))


def test_words_that_are_markup_are_text_on_paper(project, monkeypatch):
    rows, lines = [[word] for word in MARKUP], "\n".join(MARKUP)
    caption = f"\n# head\n{lines}"
    shown = f"\n# %%\ntable({rows!r}, ['= h'], caption={caption!r})\n\n# %%\nprint({lines!r})\n"
    write_source(project, "01_first", SHORT + shown)
    assert command(monkeypatch) == 0
    with build.desk(project) as place:
        text = build.typst_text(place, build.in_order(place))
        headings = json.loads(typst.query(str(text), "heading", field="level", root=str(place)))
        cells = re.findall(r"^    \[(.*)\],$", text.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [1, 1]  # the contents, and the chapter
    assert len(cells) == len(MARKUP)
    # No word holds what typst would obey: its marks are escaped, and none of them comes first.
    for cell in cells:
        inside = cell.removeprefix("#[]")
        assert inside != cell
        assert not re.search(r"(?<!\\)[#$@<`*_\[\]]", re.sub(r"\\\\", "", inside)), cell
    print_book(project)


# What a notebook prints, and what is on paper: Libertinus has the accents, DejaVu Sans has Arabic
# and a grin, and neither has a fox.
LETTERS = {
    "na\u0131\u0308ve e\u0301 Ω ≈ → ✓": "na\u0131\u0308ve e\u0301 Ω ≈ → ✓",
    "مرحبا": "مرحبا",
    "\U0001f600": "\U0001f600",
    "a\U0001f98a!": "aU+1F98A!",
    "中文 字": "U+4E2D U+6587 U+5B57",
    "\x1b[1m": "U+001B[1m",
}


def test_a_character_without_a_glyph_is_its_code_point_on_paper(project):
    printed = new_output("stream", name="stdout", text="\n".join(LETTERS))
    words = "\n\n".join(word for word in LETTERS if word.isprintable())
    path = project / "01_one.ipynb"
    write_notebook(path, f"# 01 · 中\n\n{words}\n\n$中$", ("'中文'", [printed]))
    written = on_paper(project)
    assert "\n".join(LETTERS.values()) in written
    for text in ("= 1 `U+4E2D`", "a`U+1F98A`!", "`U+4E2D U+6587` `U+5B57`", "'U+4E2D U+6587'"):
        assert text in written
    assert re.findall("[\U0001f98a中文字\x1b]", written) == ["中"]  # a formula stays as it is
    paper = print_book(project)
    fonts = set(re.findall(rb"/FontName/\w+\+([\w-]+)", paper))
    assert b"DejaVuSans" in fonts, fonts


def test_a_picture_taller_than_the_page_is_not_cut_on_paper(tmp_path):
    rows = np.zeros((1200, 400, 3))
    rows[:40], rows[-40:] = (1, 0, 0), (0, 0, 1)  # red above, blue below
    plt.imsave(tmp_path / "tall.png", rows)
    page = (ROOT / "report" / "page.typ").read_text(encoding="utf-8")
    picture = '#figure(image("tall.png", width: 100%), caption: [Tall.])'
    text = tmp_path / "tall.typ"
    text.write_text(f"#set page(width: 10cm, height: 12cm)\n{page}\n{picture}", encoding="utf-8")
    typst.compile(str(text), output=str(tmp_path / "page.png"), ppi=72, ignore_system_fonts=True)
    pixels = plt.imread(tmp_path / "page.png")[..., :3].reshape(-1, 3)
    for color in ((1, 0, 0), (0, 0, 1)):
        assert (np.abs(pixels - color).max(axis=-1) < 0.05).any(), color


def test_no_column_on_paper_is_narrower_than_its_words(project, monkeypatch):
    rows = [
        ["sampling", 1595.0, "8 to 14", "a long tale " * 30],
        ["10 beams", 545.0, "9 to 13", "another " * 40],
    ]
    columns = ["rule", "tokens per second", "interval", "text"]
    write_source(project, "01_first", f"{SHORT}\n# %%\ntable({rows!r}, {columns!r})\n")
    assert command(monkeypatch) == 0
    widths = re.search(r"columns: \(([^)]*%[^)]*)\)", on_paper(project))[1]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", widths)]
    # About 104 characters fit across a page; the longest words: "sampling", "second", "interval".
    assert len(shares) == 4
    assert all(share * 1.04 > 9 for share in shares[:3])
    assert shares[3] > 50


def test_a_link_that_leads_nowhere_ends_the_build(project, monkeypatch):
    write_source(project, "01_first", FIRST)
    dead = "# %% [markdown]\n# [nothing](02_second.ipynb#No-such-part)\n"
    write_source(project, "02_second", f"{SECOND}\n{dead}")
    assert command(monkeypatch) == 0
    with pytest.raises(SystemExit, match="a link leads nowhere: #02_secondipynb__No-such-part"):
        build.build_html(project, project / "page.html")
    assert not (project / "page.html").exists()


def test_an_edited_cell_loses_its_output_and_the_others_keep_theirs(project, monkeypatch):
    path = write_source(project, "02_second", SECOND + "\n# %%\nprint(2 + 2)\n")
    assert command(monkeypatch) == 0
    path.write_text(path.read_text(encoding="utf-8").replace("1 + 1", "1 + 3"), encoding="utf-8")
    assert execute.out_of_step() == ["02_second"]
    assert command(monkeypatch, "--sync") == 0
    assert execute.out_of_step() == []
    _, edited, kept = jupytext.read(project / "02_second.ipynb").cells
    assert (edited.outputs, edited.execution_count) == ([], None)
    assert (kept.outputs[0].text, kept.execution_count) == ("4\n", 2)


def test_sync_writes_the_address_of_the_repository_and_keeps_outputs(project, monkeypatch):
    path = write_source(project, "01_first", FIRST)
    assert command(monkeypatch) == 0
    assert command(monkeypatch, "--sync") == 0
    text = path.read_text(encoding="utf-8")
    owner, name = execute.repository().split("/")[-2:]
    assert f"/github/{owner}/{name}/blob/main/notebooks/01_first.ipynb" in text
    assert f'REPOSITORY = "{execute.repository()}"' in text
    cells = jupytext.read(project / "01_first.ipynb").cells
    counts = [cell.execution_count for cell in cells if cell.cell_type == "code"]
    assert counts == [1, 2, 3, 4, 5, 6]


WARN = "import warnings; warnings.warn_explicit({!r}, FutureWarning, {!r}, 3)"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import warnings; warnings.warn('careful')", "warns: UserWarning: careful"),
        (WARN.format("old", str(ROOT / "helpers" / "plots.py")), "warns: FutureWarning: old"),
        ("from pathlib import Path; print(Path.cwd())", "a path of this machine"),
    ],
)
def test_a_notebook_that_goes_wrong_is_named_and_not_written(
    project, monkeypatch, capsys, line, message
):
    write_source(project, "02_second", f"{SECOND}\n# %%\n{line}\n")
    (project / "02_second.ipynb").write_text("as it was")
    assert command(monkeypatch) == 1
    problem = capsys.readouterr().err
    assert "02_second: cell 3" in problem
    assert line[:30] in problem
    assert message in problem
    assert (project / "02_second.ipynb").read_text() == "as it was"
    assert (execute.BUILD / "failed" / "02_second.ipynb").exists()


def test_what_libraries_say_on_stderr_is_left_out(project, monkeypatch):
    lines = "import sys; print('building a cache', file=sys.stderr)\nprint('shown')"
    warning = WARN.format("theirs", f"{sys.prefix}/lib/library.py")
    write_source(project, "02_second", f"{SECOND}\n# %%\n{lines}\n\n# %%\n{warning}\n")
    assert command(monkeypatch) == 0
    cells = jupytext.read(project / "02_second.ipynb").cells
    assert [output.text for output in cells[2].outputs] == ["shown\n"]
    assert cells[3].outputs == []


def test_another_corpus_leaves_the_notebooks_alone(project, monkeypatch, capsys):
    write_source(project, "01_first", FIRST)
    stories = project.parent / "elsewhere" / "mine.txt"
    stories.parent.mkdir()
    stories.write_text("one story")
    monkeypatch.chdir(stories.parent)
    assert command(monkeypatch, "--corpus", "mine.txt") == 0
    assert list(project.glob("*.ipynb")) == []
    text = (execute.BUILD / "mine" / "01_first.ipynb").read_text(encoding="utf-8")
    assert "mine.txt is the corpus" in text
    assert str(stories.parent) not in text
    with pytest.raises(SystemExit, match="no such file"):
        command(monkeypatch, "--corpus", "absent.txt")
    stories.rename("figures.txt")
    with pytest.raises(SystemExit, match="build/figures/ has another use; rename it"):
        command(monkeypatch, "--corpus", "figures.txt")


def test_an_unknown_name_says_which_there_are(project, monkeypatch):
    write_source(project, "02_second", SECOND)
    with pytest.raises(SystemExit, match="choose from 02_second"):
        command(monkeypatch, "07")
