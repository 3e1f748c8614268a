"""The live page as a reader uses it, in a real browser: by keyboard, and what it shows.

Without Chromium these tests are skipped, and say so; where CI is set they fail. The numbers of the
engine are in test_live.py.
"""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from support import IN_CHROMIUM, open_page, report_script

from helpers.checkpoints import CHECKPOINTS, load_checkpoint
from helpers.decoding import generate
from helpers.grammar import bundled_grammar
from helpers.stories import load_stories

live = report_script("live")
pytestmark = IN_CHROMIUM

SLOW = 4  # how many times as slow as asked a machine may be before a test fails
# Long tasks are noted from the first on, and chance is the same at each run.
BEFORE = """
    window.tasks = [];
    new PerformanceObserver((list) => tasks.push(...list.getEntries().map((e) => e.duration)))
        .observe({ type: "longtask", buffered: true });
    window.lehmer = 1;
    Math.random = () => (lehmer = (lehmer * 48271) % 2147483647) / 2147483647;
"""
BEGINNING = "By the sea lived a small boy named Ben. Next door lived"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "live.html"
    live.build_live(path)
    return path


@pytest.fixture(scope="module")
def course():
    """The model with the page's weights, and its tokenizer."""
    model, tokenizer, _ = load_checkpoint(CHECKPOINTS / "bundled")
    return SimpleNamespace(model=live.dequantised(model).eval(), tokenizer=tokenizer)


@pytest.fixture
def page(browser, path):
    """The page, open from a file, when the model has read its first words."""
    page = open_page(browser, path, BEFORE)
    settle(page)
    yield page
    assert page.errors == []
    assert [url for url in page.asked if not url.startswith(("data:", path.as_uri()))] == []
    page.close()


def settle(page):
    """Wait until the text is read and written."""
    expect(page.locator("#words")).to_have_attribute("aria-busy", "false", timeout=60_000)


def measured(page, without=""):
    """Wait until the loss on all stories is there."""
    words = page.locator("#loss-words")
    expect(words).to_contain_text(f"Without {without}" if without else "all heads", timeout=60_000)
    expect(words).to_have_attribute("aria-busy", "false", timeout=60_000)
    return [float(figure) for figure in re.findall(r": (\d\.\d+)", words.text_content())]


def begin(page, text):
    """Type a beginning."""
    page.locator("#typed").fill(text)
    words = page.evaluate("text => ['start', ...tokenizer.split(text)].slice(0, context)", text)
    expect(page.locator("#words button > span")).to_have_text(words, timeout=60_000)
    settle(page)


def press(page, name, key="Enter"):
    page.locator(f"#{name}").focus()
    page.keyboard.press(key)
    settle(page)


def shown_words(page):
    return page.locator("#words button > span").all_text_contents()


def test_the_page_is_one_small_file(page, path):
    assert path.stat().st_size <= 9_000_000
    assert "{{" not in re.sub(r"<script.*?</script>", "", path.read_text("utf-8"), flags=re.DOTALL)
    for source in live.SOURCES.iterdir():
        assert len(source.read_text("utf-8").splitlines()) <= 300, source.name
    assert re.search(r"by -?0\.\d{5} nats a word", page.locator("#rounding").text_content())


@torch.no_grad()
def test_what_the_page_shows_is_what_python_computes(page, course):
    begin(page, BEGINNING)
    words = course.tokenizer.split(BEGINNING)
    costs = [f"{cost:.1f}" for cost in bundled_grammar().judge(BEGINNING).nats]
    assert true_costs(page) == ["", *costs]

    ids = torch.tensor([[course.tokenizer.sos_id, *course.tokenizer.encode(BEGINNING)]])
    streams = []
    for block in course.model.blocks:
        block.register_forward_hook(lambda _, __, output: streams.append(first_of(output)))
    logits, attention = course.model(ids, return_attention=True)
    own = -logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]  # (T - 1,)
    shown = page.locator("#words .own").all_text_contents()
    assert list(map(float, shown[1:])) == pytest.approx(own.tolist(), abs=0.051)
    model, truth = logits[0, -1].softmax(-1), bundled_grammar().next_words(words)  # (V,)
    number = lambda text: 0.0 if text == "<0.1%" else float(text.rstrip("%"))
    rows = page.locator("#distribution tr").all()[:-1]
    assert len(rows) >= 10
    for row in rows:
        word = row.locator("th").text_content()
        (i,) = course.tokenizer.encode(word)
        ours, true, _ = map(number, row.locator("td:not(.bars)").all_text_contents())
        assert ours == pytest.approx(100 * model[i].item(), abs=0.11), word
        assert true == pytest.approx(100 * truth.get(word, 0.0), abs=0.11), word

    likeliest = max(truth, key=truth.get)
    (target,) = course.tokenizer.encode(likeliest)
    assert likeliest in page.locator("#lens-word").text_content()
    lens = [course.model.output(course.model.norm(stream[0, -1])) for stream in streams]
    places = [f"{1 + int((scores > scores[target]).sum()):,}" for scores in lens]
    assert page.locator("#lens td:last-child").all_text_contents()[1:] == places

    heads, names = course.model.config.num_heads, ["start", *words]
    placed = lambda i: f"“{names[i]}”" + (f" (word {i})" if names.count(names[i]) > 1 else "")
    for head in (0, heads, 3 * heads - 1):
        page.locator(".head button").nth(head).click()
        weights = attention[head // heads][0, head % heads, -1]  # (T,)
        best = weights.argmax()
        read = f"{placed(best)} {weights[best]:.2f}"
        expect(page.locator("#reads")).to_contain_text(f"{placed(len(words))} reads {read}")


def true_costs(page):
    return page.locator("#words .true").all_text_contents()


def first_of(output):
    """A block's stream, with or without attention beside it."""
    return output[0] if isinstance(output, tuple) else output


def test_greedy_text_is_pythons(page, course):
    begin(page, BEGINNING)
    page.locator("#rule").select_option("greedy")
    press(page, "run")
    expect(page.locator("#stop")).to_have_attribute("aria-disabled", "true", timeout=60_000)
    expected = generate(
        course.model, course.tokenizer, [BEGINNING], max_new_tokens=64, strategy="greedy"
    )[0]
    assert page.locator("#written").text_content().startswith(expected.text)
    assert shown_words(page)[-1] == "end"


def test_every_control_is_reached_and_works_by_keyboard(page):
    reached, active = [], "[document.activeElement.id || document.activeElement.ariaLabel]"
    page.evaluate("document.activeElement.blur()")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached += page.evaluate(active)
    controls = page.locator("select, textarea, input[type=range], .buttons button").all()
    assert {one.get_attribute("id") for one in controls} <= set(reached)
    assert sum(str(name).startswith("show head") for name in reached) >= 1
    assert sum(str(name).endswith(" on") for name in reached) >= 1

    page.locator("#beginnings").focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    expect(page.locator("#typed")).not_to_have_value(re.compile("^Nora was a jolly"))
    settle(page)
    before = len(shown_words(page))
    press(page, "step")
    assert len(shown_words(page)) == before + 1
    assert page.evaluate("document.activeElement.id") == "step"
    press(page, "run")
    press(page, "stop", "Space")
    expect(page.locator("#stop")).to_have_attribute("aria-disabled", "true")
    settle(page)
    assert len(shown_words(page)) > before + 1
    press(page, "back")
    assert len(shown_words(page)) == before

    page.locator("#words [aria-current]").focus()
    page.keyboard.press("Home")
    expect(page.locator("#after")).to_have_text("After start")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#after")).to_have_text(f"After start {shown_words(page)[1]}")

    page.locator(".head button[aria-pressed=true]").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    name = page.evaluate("document.activeElement.ariaLabel").removeprefix("show head ")
    expect(page.locator("#large-title")).to_have_text(f"Head {name}")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#large-title")).to_have_text(f"Head {name} (switched off)")
    figures = measured(page, f"head {name}")
    assert len(figures) == 3
    assert figures[0] < min(figures[1:])  # no model is below the grammar
    press(page, "all-on")
    expect(page.locator("#large-title")).to_have_text(f"Head {name}")
    press(page, "temperature", "ArrowRight")
    expect(page.locator("output[for=temperature]")).to_have_text("1.1")


SUNG = (
    "Nora was a jolly kitten who had a silly ferret called Roly, and they had a playful song, "
    '"Oloo nono wicka marra." Nora lost her way in the gloomy marsh. "Oloo nono wicka marra'
)
SOUNDS = SUNG.lower().split()[-4:]
SOUNDS[0] = SOUNDS[0].strip('"')


def ids_of(course, text):
    return torch.tensor([[course.tokenizer.sos_id, *course.tokenizer.encode(text)]])  # (1, T)


def without_head(model, number):
    """A copy whose head adds nothing."""
    layer, head = divmod(number, model.config.num_heads)
    size = model.config.d_model // model.config.num_heads
    model = copy.deepcopy(model)
    model.blocks[layer].attention.output.weight[:, head * size : (head + 1) * size] = 0
    return model


def name_of(model, number):
    layer, head = divmod(number, model.config.num_heads)
    return f"{layer + 1}.{head + 1}"


@torch.no_grad()
def test_a_head_off_changes_the_text_and_on_again_restores_it(page, course):
    page.locator("[data-tour=head]").click()
    tour = page.locator("#tour")
    expect(tour).to_contain_text("need most", timeout=60_000)
    ids = ids_of(course, SUNG)
    chances = lambda model: model(ids)[0].softmax(-1)[-5:-1].gather(1, ids[0, -4:, None])  # (4, 1)
    whole = chances(course.model)[:, 0]  # (4,)
    all_heads = range(len(course.model.blocks) * course.model.config.num_heads)
    trials = torch.cat([chances(without_head(course.model, number)) for number in all_heads], 1)
    said = re.findall(
        r"“(\w+)” falls from ([\d.]+)% to ([\d.]+)% without head ([\d.]+\d)", tour.text_content()
    )
    assert [word for word, *_ in said] == SOUNDS
    for (_, before, after, head), now, tried in zip(said, whole, trials, strict=True):
        worst = int(tried.argmin())
        assert head == name_of(course.model, worst)
        assert float(before) == pytest.approx(100 * now.item(), abs=0.11)
        assert float(after) == pytest.approx(100 * tried[worst].item(), abs=0.11)
        assert after < before
    assert f"Untick head {said[0][3]}," in tour.text_content()

    tried = page.locator("#tried")
    figures = re.findall(r"([\d.]+)%", tried.text_content())
    assert float(figures[1]) < 50 < 90 < float(figures[2])
    before, written = shown_words(page), tried.text_content()
    assert before[-4:] == SOUNDS
    box = page.locator(".head button[aria-pressed=true] + label input")
    box.uncheck()
    settle(page)
    assert shown_words(page) != before
    expect(page.locator("#other")).to_contain_text("With all heads on: “Oloo nono wicka marra …”")
    expect(page.locator("#verdict")).to_contain_text("What could stand there: “oloo” 100%")
    assert tried.text_content() == written  # what was tried stays
    assert len(page.locator(".tried").all_text_contents()) == len(all_heads)
    page.locator("#all-on").click()
    settle(page)
    assert shown_words(page) == before
    assert page.locator("#other").text_content() == ""
    begin(page, BEGINNING)
    assert page.locator("#needs").is_hidden()


@torch.no_grad()
def test_what_the_song_is_said_to_show(page, course):
    page.locator("[data-tour=song]").click()
    tour = page.locator("#tour")
    expect(tour).to_contain_text("puts")
    settle(page)
    words, costs = shown_words(page), true_costs(page)
    first, again = (i for i, word in enumerate(words) if word == "oloo")
    sung = sorted(costs[first : first + 4], key=float)
    assert f"the first time they cost {sung[0]} to {sung[-1]} nats" in tour.text_content()
    assert costs[again : again + 4] == ["0.0"] * 4
    own = page.locator("#words .own").all_text_contents()[again : again + 4]
    assert max(map(float, own)) < 0.1
    _, attention = course.model(ids_of(course, SUNG), return_attention=True)
    heads = torch.cat(list(attention), 1)[0]  # (all heads, T, T)
    said = re.findall(
        r"at (\S+|the quotation mark), head (\S+) puts (\S+) on “(\w+)”", tour.text_content()
    )
    assert [word for *_, word in said] == SOUNDS
    for k, (_, head, weight, _) in enumerate(said):
        on_sound = heads[:, again + k - 1, first + k]  # (all heads,)
        assert float(weight) == pytest.approx(on_sound.max().item(), abs=0.006)
        layer, number = map(int, head.split("."))
        place = (layer - 1) * course.model.config.num_heads + number - 1
        assert on_sound[place].item() == pytest.approx(on_sound.max().item(), abs=1e-4)
        assert float(weight) > 0.5


def test_what_the_name_is_said_to_show(page):
    page.locator("[data-tour=name]").click()
    tour = page.locator("#tour")
    expect(tour).to_contain_text("Without any one head", timeout=60_000)
    settle(page)
    on_name = page.evaluate(
        "shown.places.at(-1).attention.flat().map(w => w.reduce((sum, p, s) => "
        "sum + (shown.told[s - 1] === 'nibbs' ? p : 0), 0))"
    )
    count = sum(mass > 0.5 for mass in on_name)
    assert count >= 3
    assert f"{count} of {len(on_name)} put more than half" in tour.text_content()
    tried = [float(text.rstrip("%")) for text in page.locator(".tried").all_text_contents()]
    assert f"keeps at least {min(tried):.1f}%" in tour.text_content()
    assert min(tried) > 90
    button = page.locator("#readers-off")
    expect(button).to_have_text(f"Switch off all that read “nibbs” ({count})")
    press(page, "readers-off")
    off = page.locator(".head input:not(:checked)")
    expect(off).to_have_count(count)
    row = page.locator("#distribution tr", has=page.get_by_text("nibbs", exact=True))
    assert float(row.locator("td").nth(1).text_content().rstrip("%")) < 10


def test_the_loss_is_compared_over_the_same_stories(page, course):
    whole = measured(page)
    page.evaluate("losses.off = new Set([0]); losses.now = losses.whole.slice(0, 3); losses.show()")
    said = page.locator("#loss-words").text_content()
    found = re.search(
        r"3 of 20 stories so far: (\S+); all heads on the same stories: (\S+)\.", said
    )
    assert found[1] == found[2]
    assert whole[0] < whole[1]
    context = course.model.config.context_length
    stories = load_stories("bundled")
    numbers = live.shown_stories(course.tokenizer, stories, context)
    assert max(numbers) < live.MEASURED  # the page says that they are among the measured ones
    songs = ['song, "' in stories.validation[number] for number in numbers]
    assert page.evaluate("losses.sung") == songs


def test_on_a_phone_a_tour_leads_to_what_it_speaks_of(page):
    page.set_viewport_size({"width": 400, "height": 800})
    page.locator("[data-tour=hot]").click()
    expect(page.locator("#story #tour")).to_be_in_viewport()
    page.locator("[data-tour=head]").click()
    expect(page.locator("#heads #tour")).to_be_in_viewport()


def test_the_first_impossible_word_is_marked_and_explained(page):
    page.locator("[data-tour=hot]").click()
    expect(page.locator("#words .broken")).to_have_count(1, timeout=60_000)
    settle(page)
    words = shown_words(page)
    costs = true_costs(page)
    broken = costs.index("impossible")
    possible = bundled_grammar().next_words(words[1:broken])
    assert possible
    assert words[broken] not in possible
    expect(page.locator("#verdict")).to_contain_text(f"“{words[broken]}” there. What could stand")
    assert all(cost == "–" for cost in costs[broken + 1 :])
    expect(page.locator("#after")).to_have_text(re.compile(f" {re.escape(words[broken - 1])}$"))
    assert f"→ {words[broken]}" in page.locator("#distribution th").all_text_contents()
    press(page, "again")
    assert shown_words(page) != words


HOSTILE = "<script>document.title = 'hacked'</script><b>bold</b>"


def test_unknown_words_are_marked_and_markup_is_text(page):
    begin(page, f"There was a brave zebra {HOSTILE}")
    assert "zebra" in page.locator("#words .unknown > span").all_text_contents()
    expect(page.locator("#verdict")).to_contain_text("Not in the vocabulary: “zebra”")
    expect(page.locator("#no-truth")).to_contain_text("no truth")
    assert page.title() != "hacked"
    assert page.locator("#words b").count() == 0
    begin(page, "a " * 80)  # longer than the context
    expect(page.locator("#verdict")).to_contain_text("at most 64 tokens")
    assert page.locator("#run").get_attribute("aria-disabled") == "true"


@pytest.mark.parametrize(
    ("scheme", "widths"), [("light", (400, 1400)), ("dark", (1400, 400))], ids=["light", "dark"]
)
def test_the_page_is_accessible_and_no_wider_than_the_screen(page, scheme, widths):
    page.emulate_media(color_scheme=scheme)
    page.locator("[data-tour=hot]").click()
    expect(page.locator("#words .broken")).to_have_count(1, timeout=60_000)
    page.locator(".head input").first.uncheck()
    for summary in page.locator("summary").all():
        summary.click()
    settle(page)
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#weights, #data").evaluate_all("all => all.forEach(one => one.remove())")
    serious = {
        rule["id"]: rule["nodes"][0]["html"][:200]
        for rule in Axe().run(page).response["violations"]
        if rule["impact"] in ("serious", "critical")
    }
    assert serious == {}


def test_the_page_answers_soon_and_in_small_steps(page):
    opened = page.evaluate("performance.now()")
    measured(page)
    page.evaluate("tasks.length = 0")
    word = page.evaluate(
        """async () => {
            const begin = performance.now();
            await writeOne();
            await new Promise(requestAnimationFrame);
            return performance.now() - begin;
        }"""
    )
    page.evaluate(
        """() => {
            window.figures = [];
            const begin = performance.now(), show = losses.show.bind(losses);
            losses.show = () => {
                show();
                figures[losses.now.length] ??= performance.now() - begin;
            };
        }"""
    )
    page.locator(".head input").first.uncheck()
    measured(page, "head 1.1")
    first, last = page.evaluate("[figures[1], figures[20]]")
    longest = max(page.evaluate("tasks"), default=0)
    print(
        f"opened {opened:.0f} ms, a word {word:.0f} ms, loss after a switch: first {first:.0f} ms, "
        f"all twenty {last:.0f} ms; longest task {longest:.0f} ms"
    )
    assert opened < 2000 * SLOW
    assert word < 100 * SLOW
    assert first < 1000 * SLOW
    assert last < 8000 * SLOW
    assert longest < 50 * SLOW
