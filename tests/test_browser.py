"""The rendered report, and the live explorer, in a real browser.

Without Chromium these tests are skipped, and say so; where CI is set they fail.
"""

import json
import os
import socket
import subprocess
import sys
import time
from itertools import pairwise
from urllib.request import urlopen

import ipywidgets
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from nbformat.v4 import new_output
from support import (
    IN_CHROMIUM,
    MARKUP,
    ROOT,
    displayed,
    open_page,
    report_script,
    write_notebook,
)

from helpers.attention_plots import heatmap
from helpers.explorers import AttentionExplorer
from helpers.notebook import FigureFolder, table
from helpers.plots import Picture

build = report_script("build")

pytestmark = IN_CHROMIUM


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The committed notebooks, rendered."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    build.build_html(ROOT / "notebooks", path)
    return path


@pytest.fixture
def page(browser, report):
    """The report, open from a file: (page, addresses it asked for, errors it reported)."""
    page = open_page(browser, report)
    yield page
    page.close()


def test_the_report_is_one_file_that_asks_for_nothing_else(page, report):
    assert report.stat().st_size <= 12_000_000
    assert [url for url in page.asked if not url.startswith(("data:", report.as_uri()))] == []
    assert page.errors == []


def test_every_link_inside_the_report_leads_somewhere(page):
    dead = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => "
        "decodeURIComponent(a.hash.slice(1))).filter(id => id && !document.getElementById(id))"
    )
    assert dead == []
    assert page.locator("#TOC a").count() > 50


def test_every_picture_has_a_text_and_a_caption(page):
    bare = page.evaluate(
        "[...document.querySelectorAll('img')].filter(i => !i.alt.trim() || "
        "!i.closest('figure')?.querySelector('figcaption')?.textContent.match(/^(Figure|Table) "
        "\\d+\\.\\d+\\./)).length"
    )
    assert bare == 0
    assert page.locator("figure img").count() > 20


def test_the_sliders_of_the_report_show_the_right_head(page):
    explorers = page.locator(".explorer")
    assert explorers.count() >= 2
    for number in range(explorers.count()):
        explorer = explorers.nth(number)
        sentences = json.loads(explorer.locator("script").text_content())["sentences"]
        layers, heads = len(sentences[0]["attention"]), len(sentences[0]["attention"][0])
        last = len(sentences) - 1
        choices = (0, 1, 1), (last, layers, heads), (1, 1, heads), (1, layers, 2)
        for sentence, layer, head in choices:
            explorer.locator("select").select_option(str(sentence))
            explorer.locator("input[name=layer]").fill(str(layer))
            explorer.locator("input[name=head]").fill(str(head))
            shown = explorer.locator("rect").evaluate_all(
                "squares => squares.map(s => Number(s.dataset.weight))"
            )
            matrix = np.array(sentences[sentence]["attention"][layer - 1][head - 1])
            assert shown == matrix[np.tril_indices(len(matrix))].tolist()
            assert explorer.locator("output").all_text_contents() == [str(layer), str(head)]
            word = explorer.locator("svg > text").first.text_content()
            assert word == sentences[sentence]["tokens"][0]


def test_a_slider_of_the_report_moves_by_mouse_and_by_key(page):
    slider = page.locator(".explorer input[name=head]").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
    assert slider.input_value() == slider.get_attribute("max")
    before = page.locator(".explorer svg").first.inner_html()
    slider.press("ArrowLeft")
    assert int(slider.input_value()) == int(slider.get_attribute("max")) - 1
    assert page.locator(".explorer svg").first.inner_html() != before


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_headings_are_in_order(page):
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


# axe is slow: it sees only the blocks with an element of a kind that no block before them has.
ONE_OF_EACH_KIND = """() => {
    const seen = new Set(), kind = e => e.tagName + '.' + e.getAttribute('class');
    for (const block of [...document.body.children]) {
        const all = [block, ...block.querySelectorAll('*')];
        const kinds = all.map(e => kind(e.parentElement) + ' ' + kind(e));
        if (kinds.every(k => seen.has(k))) block.remove();
        else kinds.forEach(k => seen.add(k));
    }
    document.querySelectorAll('details').forEach(d => d.open = true);
    return seen.size;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_accessible(page, scheme):
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate(ONE_OF_EACH_KIND) > 50
    serious = {
        rule["id"]: rule["nodes"][0]["html"][:200]
        for rule in Axe().run(page).response["violations"]
        if rule["impact"] in ("serious", "critical")
    }
    assert serious == {}


def output(value):
    """The output that a notebook on disk holds of a value: without the view of a live widget."""
    data, metadata = displayed(value)
    data.pop("application/vnd.jupyter.widget-view+json", None)
    return new_output("display_data", data=data, metadata=metadata)


HOSTILE = "<script>document.title = 'hacked'</script><b>bold</b>"


def test_words_are_shown_as_text(browser, tmp_path, monkeypatch):
    """A word that is markup, in explorer, caption, table and output: nothing of it runs."""
    explorer = AttentionExplorer({HOSTILE: ([HOSTILE, "b"], [[[[1, 0], [0.5, 0.5]]]])})
    monkeypatch.setenv("FIGURES_DIR", str(tmp_path / "figures"))
    FigureFolder("mine").save_explorer(explorer, "01_attention")
    rows = table([[HOSTILE]], [HOSTILE], caption=HOSTILE)
    printed = new_output("stream", name="stdout", text=HOSTILE)
    cells = [(HOSTILE, [shown]) for shown in (output(explorer), output(rows), printed)]
    write_notebook(tmp_path / "notebooks" / "01_one.ipynb", "# 01 · One", *cells)
    build.build_html(tmp_path / "notebooks", tmp_path / "report.html")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.title() != "hacked"
    assert page.locator("b").count() == 0
    assert HOSTILE in page.locator(".explorer svg > text").first.text_content()
    places = page.locator("figcaption, caption, td, th, pre")
    assert places.filter(has_text="<b>bold</b>").count() >= 6
    page.close()


def test_words_that_are_markup_are_shown_as_they_are(browser, tmp_path):
    words = table([[word] for word in MARKUP], ["= h"], caption="\n\n# head ".join(MARKUP))
    path = tmp_path / "notebooks" / "01_one.ipynb"
    write_notebook(path, "# 01 · One", ("1", [output(words)]))
    build.build_html(tmp_path / "notebooks", tmp_path / "report.html")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("tbody td").all_text_contents() == MARKUP
    assert page.locator("thead th").all_text_contents() == ["= h"]
    (caption,) = page.locator("caption").all_text_contents()
    assert caption.split() == ["Table", "1.1.", *" # head ".join(MARKUP).split()]
    assert page.locator("h1").count() == 2  # the report's title and the chapter
    page.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """An explorer that Voilà serves from a notebook: its address, and the same one in here."""
    folder = tmp_path_factory.mktemp("live")
    weights = np.tril(np.random.default_rng(0).random((2, 2, 3, 4, 4)))  # (sentences, L, H, T, T)
    np.save(folder / "weights.npy", weights)
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from helpers.explorers import AttentionExplorer
one, two = np.load("weights.npy")
def read(text):
    words = [word if word < "m" else word + " (unknown)" for word in text.split()]
    return words, np.tril(np.ones((2, 3, len(words), len(words))) / 2)
sentences = {{"one": (list("abcd"), one), {HOSTILE!r}: ([{HOSTILE!r}, *"fgh"], two)}}
AttentionExplorer(sentences, read=read)
"""
    write_notebook(folder / "live.ipynb", (code, []))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--port={port} --no-browser --Voila.ip=127.0.0.1".split()
    command = [sys.executable, "-m", "voila", "live.ipynb", *options]
    with (folder / "log").open("w") as log:
        home = os.environ | {"HOME": str(folder)}  # the user's may be locked
        server = subprocess.Popen(command, cwd=folder, env=home, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(150):
            try:
                urlopen(f"{address}voila/static/voila.js", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        sentences = {"one": (list("abcd"), weights[0]), HOSTILE: ([HOSTILE, *"fgh"], weights[1])}
        yield address, AttentionExplorer(sentences)
    finally:
        server.terminate()
        server.wait(10)


OLD = int(ipywidgets.__version__.split(".")[0]) < 8


@pytest.mark.skipif(OLD, reason="this Voilà shows the widgets of ipywidgets 8, not of 7")
def test_the_live_sliders_show_the_right_head(browser, live):
    address, expected = live
    page = browser.new_page()
    page.goto(address)
    page.locator(".widget-slider").first.wait_for(timeout=30_000)

    def shown():
        """The bytes of the picture on the page; none while the page exchanges it."""
        read = """async s => {
            try { return [...new Uint8Array(await (await fetch(s)).arrayBuffer())] }
            catch { return [] }
        }"""
        return bytes(page.evaluate(read, page.locator(".widget-image").get_attribute("src")))

    def wait_for(picture):
        for _ in range(50):
            if shown() == picture:
                return True
            page.wait_for_timeout(100)
        return False

    assert wait_for(expected.image.value)
    for number, control in enumerate((expected.layer, expected.head)):
        page.locator(".widget-slider .noUi-handle").nth(number).focus()
        before = expected.image.value
        page.keyboard.press("ArrowRight")
        control.value += 1
        assert expected.image.value != before
        assert wait_for(expected.image.value)
    page.locator(".widget-dropdown select").select_option(HOSTILE)
    expected.sentence.value = HOSTILE
    assert wait_for(expected.image.value)
    assert page.title() != "hacked"  # a sentence and a word that are markup are shown as text
    assert page.locator("b").count() == 0
    page.locator(".widget-text input").fill("a zebra")  # typed: read, and the unknown word named
    page.keyboard.press("Enter")
    layer, head = expected.layer.value, expected.head.value
    title, words = f"layer {layer}, head {head}", ["a", "zebra (unknown)"]
    assert wait_for(Picture(heatmap(np.tril(np.ones((2, 2)) / 2), words, title=title), "x").png)
    page.close()
