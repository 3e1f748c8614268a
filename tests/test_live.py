"""The live page's engine, in a real browser: every number that it computes, against Python's.

Without Chromium these tests are skipped, and say so; where CI is set they fail.
"""

import json
import random
import re
import sys
import unicodedata
from collections import Counter
from contextlib import ExitStack, contextmanager
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import IN_CHROMIUM, open_page, report_script
from test_grammar import SMALL

from helpers.checkpoints import CHECKPOINTS, load_checkpoint
from helpers.decoding import filtered_distribution, generate
from helpers.grammar import Grammar, bundled_grammar
from helpers.stories import load_stories

live = report_script("live")

pytestmark = IN_CHROMIUM

# What the engine needs of a page, without the page's own scripts.
BARE = "<!doctype html><meta charset=utf-8>{{data}}{{weights}}{{scripts}}"
START = """async () => {
    window.pause = () => scheduler.yield();
    window.data = JSON.parse(document.getElementById("data").textContent);
    window.model = await Model.load(data, document.getElementById("weights").textContent, pause);
    window.tokenizer = new Tokenizer(data.words, data.capitalized);
    window.grammar = new Grammar(data.grammar);
}"""


@pytest.fixture(scope="module")
def course():
    """The model as stored, the one with rounded weights in float32 and in float64, the page's
    data.
    """
    model, tokenizer, _ = load_checkpoint(CHECKPOINTS / "bundled")
    stories = load_stories("bundled")
    data, weights = live.page_data(model, tokenizer, stories)
    rounded = live.dequantised(model)
    return SimpleNamespace(
        model=model,
        rounded=rounded,
        exact=live.dequantised(model).double(),
        tokenizer=tokenizer,
        stories=stories,
        data=data,
        weights=weights,
    )


@pytest.fixture(scope="module")
def engine(browser, course, tmp_path_factory):
    """A page on which the engine runs, alone."""
    path = tmp_path_factory.mktemp("engine") / "engine.html"
    sources = [live.SOURCES / f"{name}.js" for name in live.ENGINE]
    path.write_text(live.page(BARE, sources, "", course.data, course.weights), encoding="utf-8")
    page = open_page(browser, path)
    page.evaluate(START)
    yield page
    assert page.errors == []
    page.close()


def begin(engine, function, given=None):
    """Call a function in the page, which computes while Python does.

    As JSON: playwright takes seconds to pack many numbers.
    """
    call = f"JSON.stringify(await ({function})(JSON.parse(given)))"
    job = f"(async () => {{ await pause(); return {call}; }})()"
    engine.evaluate(f"(given) => {{ (window.jobs ??= []).push({job}); }}", json.dumps(given))


def results(engine):
    """What the functions that `begin` called return, once all are done."""
    return [json.loads(text) for text in engine.evaluate("Promise.all(jobs.splice(0))")]


def ask(engine, function, given=None):
    """What a function in the page returns."""
    begin(engine, function, given)
    (found,) = results(engine)
    return found


@contextmanager
def heads_off(model, places):
    """Inside, these heads of a model (pairs of layer and head) write nothing."""
    width = model.config.d_model // model.config.num_heads

    def silence(head, module, inputs):
        mixed = inputs[0].clone()  # (B, T, D)
        mixed[..., head * width : (head + 1) * width] = 0
        return (mixed,)

    with ExitStack() as hooks:
        for layer, head in places:
            output = model.blocks[layer].attention.output
            hook = output.register_forward_pre_hook(lambda *given, h=head: silence(h, *given))
            hooks.callback(hook.remove)
        yield


# The page.


def test_the_page_is_one_small_file_that_asks_for_nothing(browser, course, tmp_path):
    path = tmp_path / "live.html"
    path.write_text(live.whole_page(course.data, course.weights), encoding="utf-8")
    assert path.stat().st_size <= 9_000_000
    page = open_page(browser, path)
    page.wait_for_timeout(1000)
    assert page.asked == [path.as_uri()]
    assert page.errors == []
    page.close()


def test_the_scripts_are_short_and_share_no_name():
    """All are parts of one page: a second function of a name would replace the first."""
    declared = re.compile(r"^(?:async )?(?:function\*?|class|const|let|var) (\w+)", re.MULTILINE)
    texts = {path.name: path.read_text(encoding="utf-8") for path in live.scripts()}
    assert {name: text.count("\n") for name, text in texts.items() if text.count("\n") > 300} == {}
    names = Counter(name for text in texts.values() for name in declared.findall(text))
    assert [name for name, count in names.items() if count > 1] == []
    assert [name for name, text in texts.items() if "</script" in text] == []


def test_rounding_costs_next_to_nothing(course):
    cost = course.data["rounding"]["int8_nats"] - course.data["rounding"]["bf16_nats"]
    print(f"\nrounding costs {cost:.6f} nats on {course.data['rounding']['stories']} stories")
    assert 0 < abs(cost) <= 0.01
    for name, matrix in course.model.named_parameters():
        numbers = course.rounded.get_parameter(name)
        if matrix.dim() == 2:
            step = matrix.abs().amax(dim=1, keepdim=True) / 127
            assert ((numbers - matrix).abs() <= 0.501 * step).all()
        else:
            assert numbers.equal(matrix)


def test_the_stories_are_the_first_that_fit_and_their_floor_is_the_grammars(course):
    tokenizer, data = course.tokenizer, course.data
    fit = [s for s in course.stories.validation if len(tokenizer.encode(s)) <= 62][:20]
    texts = [tokenizer.decode(ids) for ids in data["stories"]]
    assert texts == [tokenizer.decode(tokenizer.encode(story)) for story in fit]
    nats = np.concatenate([bundled_grammar().judge(story).nats for story in fit])
    assert len(nats) == sum(len(ids) - 1 for ids in data["stories"])
    assert data["floor"] == pytest.approx(nats.mean(), abs=1e-12)


def test_the_beginnings_are_the_grammars_but_for_one_unknown_word(course):
    """With the first word that no story could have, if there is one."""
    split, grammar = course.tokenizer.split, bundled_grammar()
    strange = set()
    for text in map(split, course.data["beginnings"]):
        assert len(text) + 1 < course.model.config.context_length  # with <sos>, room for a word
        if (broken_at := grammar.judge(text).broken_at) is not None:
            strange.add(text[broken_at])
    assert strange == {"zebra"} - set(course.tokenizer.words)


# The model.

LOGITS = """([ids, places]) => {
    const cache = model.newCache(), scores = ids.map((id) => model.step(id, cache).logits);
    return places.map((place) => [...scores[place]]);
}"""


def test_scores_are_those_of_pytorch_in_double_precision(engine, course):
    """200 beginnings: ten places in each of 20 stories, some with an unknown word."""
    choose, worst = random.Random(0), 0.0
    for number in range(20):
        ids = course.tokenizer.encode_story(course.stories.validation[number], 60)
        ids = [i for i in ids if i != course.tokenizer.pad_id]
        if number % 4 == 0:
            ids[7] = course.tokenizer.unk_id
        places = sorted(choose.sample(range(len(ids)), 10))
        with torch.no_grad():
            expected = course.exact(torch.tensor([ids]))[0, places].numpy()  # (10, V)
        found = np.array(ask(engine, LOGITS, [ids[: places[-1] + 1], places]))  # (10, V)
        worst = max(worst, np.abs(found - expected).max())
    print(f"\n200 beginnings: scores differ by {worst:.1e} at most")
    assert worst <= 1e-4


STEPS = """([ids, off]) => {
    const cache = model.newCache(), options = {off: new Set(off), attention: true, lens: true};
    return ids.map((id) => {
        const { logits, attention, lens } = model.step(id, cache, options);
        const lists = attention.map((heads) => heads.map((weights) => [...weights]));
        return { logits: [...logits], attention: lists, lens: lens.map((scores) => [...scores]) };
    });
}"""


@pytest.mark.parametrize("off", [[], [3, 9, 23]])
def test_a_step_shows_attention_and_every_layers_scores(engine, course, off):
    model, heads = course.exact, course.exact.config.num_heads
    ids, streams = course.data["stories"][0][:12], []
    hooks = [
        block.register_forward_pre_hook(lambda _, given: streams.append(given[0]))
        for block in model.blocks
    ]
    with torch.no_grad(), heads_off(model, [divmod(place, heads) for place in off]):
        logits, attention = model(torch.tensor([ids]), return_attention=True)
        lens = [model.output(model.norm(x))[0] for x in streams] + [logits[0]]  # (T, V) each
    for hook in hooks:
        hook.remove()
    steps = ask(engine, STEPS, [ids, off])
    for t, step in enumerate(steps):
        assert np.abs(np.array(step["logits"]) - logits[0, t].numpy()).max() <= 1e-4
        found = np.array(step["attention"])  # (L, H, S)
        assert np.abs(found - attention[:, 0, :, t, : t + 1].numpy()).max() <= 1e-6
        expected = torch.stack([scores[t] for scores in lens]).numpy()  # (L + 1, V)
        assert np.abs(np.array(step["lens"]) - expected).max() <= 1e-4


def test_a_full_context_refuses_a_token_and_a_shorter_cache_forgets(engine, course):
    ids = course.data["stories"][1]
    read = """ids => {
        const cache = model.newCache(3), read = (id) => [...model.step(id, cache).logits];
        read(ids[0]); read(ids[5]); read(ids[6]);
        let refusal = null;
        try { read(ids[3]) } catch (error) { refusal = error.name }
        cache.length = 1;
        return [refusal, cache.length, read(ids[1])];
    }"""
    refusal, length, found = ask(engine, read, ids)
    assert (refusal, length) == ("RangeError", 1)
    assert found == ask(engine, LOGITS, [ids[:2], [1]])[0]


LOSSES = """async (off) => {
    const begin = performance.now(), seconds = [];
    const onStory = () => seconds.push((performance.now() - begin) / 1000);
    const options = { off: new Set(off), pause, onStory };
    return [await model.storyLosses(data.stories, options), seconds];
}"""
EACH = f"""async (choices) => {{
    const found = [], losses = {LOSSES};
    for (const off of choices) found.push(await losses(off));
    return found;
}}"""


def test_losses_without_each_head_are_pytorchs(engine, course):
    """The whole model, each head switched off alone, and two of them at once."""
    stories, model = course.data["stories"], course.rounded
    config = model.config
    ids = torch.zeros(len(stories), config.context_length, dtype=torch.long)  # (20, T)
    for row, story in zip(ids, stories, strict=True):
        row[: len(story)] = torch.tensor(story)
    heads = list(product(range(config.num_layers), range(config.num_heads)))
    choices = [[], *([head] for head in heads), [heads[-1], heads[-9]]]
    numbers = [[layer * config.num_heads + head for layer, head in off] for off in choices]
    begin(engine, EACH, numbers)
    expected = []
    for off in choices:
        with torch.no_grad(), heads_off(model, off):
            logits = model(ids[:, :-1]).transpose(1, 2)  # (20, V, T-1)
        nats = F.cross_entropy(logits, ids[:, 1:], ignore_index=0, reduction="none")  # (20, T-1)
        expected.append(nats.double().sum(dim=1).numpy())  # (20,)
    worst, first, last = 0.0, 0.0, 0.0
    for (found, seconds), nats in zip(*results(engine), expected, strict=True):
        tokens = [loss["tokens"] for loss in found]
        assert tokens == [len(story) - 1 for story in stories]
        difference = np.abs(np.array([loss["nats"] for loss in found]) - nats)
        worst = max(worst, (difference / tokens).max())
        first, last = max(first, seconds[0]), max(last, seconds[-1])
    print(f"\nstories' losses differ by {worst:.1e} nats a token at most")
    print(f"the first story's came within {first:.2f} s, all twenty within {last:.1f} s")
    assert worst <= 1e-4
    assert first <= 10
    assert last <= 80


def test_losses_stop_when_asked_and_never_keep_the_page_waiting(engine):
    """The reader's next choice ends the work; and no piece of it is longer than a blink."""
    stopped = """async () => {
        const stop = new AbortController(), stories = data.stories.map((ids) => [...ids]);
        let longest = 0, last = performance.now(), told = 0;
        const pause = async () => {
            longest = Math.max(longest, performance.now() - last);
            await scheduler.yield();
            last = performance.now();
        };
        const onStory = () => { if (++told === 3) stop.abort(); };
        const options = { pause, onStory, signal: stop.signal };
        const ending = await model.storyLosses(stories, options).catch((error) => error.name);
        return [ending, told, longest];
    }"""
    ending, told, longest = ask(engine, stopped)
    print(f"\nthe longest slice took {longest:.0f} ms")
    assert (ending, told) == ("AbortError", 3)
    assert longest <= 500


# Decoding.

CONTINUE = """async ([rows, uniforms, settings]) => {
    const told = [];
    for (const [row, ids] of rows.entries()) {
        const cache = model.newCache(), found = [];
        let logits, id;
        for (const id of ids) ({ logits } = model.step(id, cache));
        for (;;) {
            const number = uniforms?.[row][found.length];
            id = uniforms ? pick(distribution(logits, settings), number) : greedy(logits);
            found.push(id);
            if (id === Tokenizer.EOS || ids.length + found.length === model.config.context) break;
            ({ logits } = model.step(id, cache));
        }
        told.push(found);
        await pause();
    }
    return told;
}"""


def prompts(course, count):
    """The first words of held-out stories, 3 to 22 of them; every tenth has an unknown word."""
    words = [
        course.tokenizer.split(story) for story in course.stories.validation[100 : 100 + count]
    ]
    cut = [" ".join(story[: 3 + number % 20]) for number, story in enumerate(words)]
    return [f"{text} zebra" if number % 10 == 9 else text for number, text in enumerate(cut)]


def rows_of(course, texts):
    return [[course.tokenizer.sos_id, *course.tokenizer.encode(text)] for text in texts]


def nearly_tied(course, text, ours, theirs):
    """Whether the two best scores are nearer than 1e-4 where two continuations part."""
    parted = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    ids = [course.tokenizer.sos_id, *course.tokenizer.encode(text), *theirs[:parted]]
    with torch.no_grad():
        best = course.exact(torch.tensor([ids]), last_only=True)[0].topk(2).values
    return bool(best[0] - best[1] < 1e-4)


def test_greedy_continuations_are_the_same(engine, course):
    texts = prompts(course, 50)
    begin(engine, CONTINUE, [rows_of(course, texts), None, None])
    told = generate(course.exact, course.tokenizer, texts, max_new_tokens=64, strategy="greedy")
    (found,) = results(engine)
    apart = [i for i in range(50) if found[i] != told[i].ids]
    tied = [i for i in apart if nearly_tied(course, texts[i], found[i], told[i].ids)]
    print(
        f"\n{50 - len(apart)} of 50 greedy continuations are identical, {len(tied)} part at a tie"
    )
    assert apart == tied


SETTINGS = (
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 1.5, "top_p": 0.9},
    {"temperature": 0.5, "top_k": 5, "top_p": 0.5},
    {"temperature": 1.2, "top_k": 100, "top_p": 0.97},
)


def test_sampled_continuations_are_the_same(engine, course, monkeypatch):
    """With the uniform numbers that Python drew, ten prompts for each of five settings."""
    drawn, rand = {}, torch.rand

    def recorded(*size, generator, **options):
        number = rand(*size, generator=generator, **options)
        drawn.setdefault(generator, []).append(number.item())  # rows draw in their order
        return number

    monkeypatch.setattr(torch, "rand", recorded)
    texts, expected = prompts(course, 50), []
    for place, settings in enumerate(SETTINGS):
        drawn.clear()
        group = texts[10 * place : 10 * place + 10]
        told = generate(
            course.exact, course.tokenizer, group, max_new_tokens=64, seed=7, **settings
        )
        expected.append([generation.ids for generation in told])
        names = {"top_k": "topK", "top_p": "topP"}
        given = {names.get(name, name): value for name, value in settings.items()}
        begin(engine, CONTINUE, [rows_of(course, group), [*drawn.values()], given])
    assert results(engine) == expected


def test_filters_keep_the_same_words(engine, course):
    logits = 4 * torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[[0, 1, 3]] = -torch.inf
    for temperature, k, p in product((0.01, 0.7, 3.0), (None, 1, 7, 100), (None, 1e-9, 0.6, 1.0)):
        expected = filtered_distribution(logits, temperature, k, p)
        given = [logits.nan_to_num(neginf=0).tolist(), temperature, k, p]
        found = ask(
            engine,
            "([logits, temperature, topK, topP]) =>"
            " [...distribution(logits, { temperature, topK, topP })]",
            given,
        )
        assert np.abs(np.array(found) - expected.numpy()).max() <= 1e-12


# Words.

ODD = [
    *(
        "Once upon a time",
        "the dog's",
        "Mia's",
        "DON'T",
        "rock'n'roll",
        "well-known",
        "'SS",
        "'s-x",
    ),
    *("café", "cafe\u0301", "Ångström", "A\u030angstrom", "naïve", "İstanbul", "ΣΊΣΥΦΟΣ", "ΑΣ'Σ"),
    *("ß", "STRASSE", "ﬁn", "Ǆungla", "हिन्दी", "ไทย", "中文字", "한국어", "العربية", "ўзбек"),
    *("“quoted”", "‘single’", "`tick´", "it‘s", "…", "....", "---", "–", "—", "non‑breaking"),
    *(
        "👍🏽",
        "👩‍👩‍👧",
        "🇬🇧",
        "☃️",
        "a\u200db",
        "soft\u00adhyphen",
        "\ufeffbom",
        "x\u202ey",
        "\U000e0041",
    ),
    *(
        "\x00",
        "\x1c",
        "\x1f",
        "\x85",
        "\x0b",
        "\u2028",
        "\u3000",
        "\u180e",
        "\xa0",
        "\t\r\n",
        "\x7f",
    ),
    *("²", "½", "Ⅻ", "٣٤", "①", "3.14", "1,000", "50%", "#tag", "$5", "snake_case", "__", "_'s"),
    *("<eos>", "<unk>", "</script>", "<!--", "&lt;", "{{data}}", "\\n", "'", "-", "''s", "'-'"),
    *("x" * 250, "𝒳" * 130, "a" * 99 + "'s", "e\u0301" * 80, "\u0301", "\u0345", "a\u0300\u0301b"),
]


def split_by_engine(engine, texts):
    return ask(engine, "texts => texts.map((text) => tokenizer.split(text))", texts)


def test_a_thousand_odd_texts_are_split_as_in_python(engine, course):
    choose = random.Random(0)
    texts = [
        "".join(
            choose.choice(ODD) + choose.choice(["", " ", " ", "'", "-", ".", "\u0301", "s "])
            for _ in range(choose.randrange(1, 12))
        )
        for _ in range(1000 - len(ODD))
    ] + ODD
    found = split_by_engine(engine, texts)
    assert len(texts) == 1000
    for text, words in zip(texts, found, strict=True):
        assert words == course.tokenizer.split(text), ascii(text)


def test_every_character_is_read_as_in_python(engine, course):
    """Those that this Python knows, but for surrogates, which no text holds."""
    known = filter(
        lambda c: unicodedata.category(c) not in ("Cn", "Cs", "Co"), map(chr, range(sys.maxunicode))
    )
    texts = [f"a{character}B {character} {character}'S" for character in known]
    blocks = ["\n".join(texts[start : start + 2000]) for start in range(0, len(texts), 2000)]
    found = split_by_engine(engine, blocks)
    wrong = [
        block
        for block, words in zip(blocks, found, strict=True)
        if words != course.tokenizer.split(block)
    ]
    assert len(texts) > 140_000
    assert wrong == []


def test_ids_become_the_same_text(engine, course):
    choose, tokenizer = random.Random(0), course.tokenizer
    rows = [choose.choices(range(len(tokenizer)), k=30) for _ in range(300)]
    rows += [tokenizer.encode(story) for story in course.stories.validation[:200]]
    given = [[ids, ids[: choose.randrange(12)]] for ids in rows]
    found = ask(
        engine,
        "rows => rows.map(([ids, before]) => [tokenizer.decode(ids),"
        " tokenizer.decode(ids.slice(before.length), before)])",
        given,
    )
    expected = [
        [tokenizer.decode(ids), tokenizer.decode(ids[len(before) :], after=before)]
        for ids, before in given
    ]
    assert found == expected
    texts = [*course.stories.validation[200:300], "Zebra mia’s <eos> ½"]
    ids = ask(engine, "texts => texts.map((text) => tokenizer.encode(text))", texts)
    assert ids == [tokenizer.encode(text) for text in texts]
    known = ask(engine, "words => words.map((w) => tokenizer.isKnown(w))", ["mia", "<eos>", "Mia"])
    assert known == [word in tokenizer.words for word in ("mia", "<eos>", "Mia")]


# The grammar.


def prefixes(course):
    """2,000 beginnings: stories cut anywhere, whole ones, and ones with a wrong word somewhere."""
    choose, words = random.Random(0), course.tokenizer.words
    split = [course.tokenizer.split(story) for story in course.stories.validation[:500]]
    for number in range(2000):
        story = split[number % 500]
        cut = story[: choose.randrange(len(story) + 1)] if number % 10 else list(story)
        if cut and number % 3 == 0:
            place = choose.randrange(len(cut))
            if number % 2:
                cut[place] = choose.choice(words)
            else:
                cut[place:place] = [choose.choice(story)]
        yield cut


JUDGE = """([table, cases]) => {
    const rules = new Grammar(table);
    return cases.map((words, number) => {
        const { nats, brokenAt, possible, complete } = rules.judge(words, number % 4 === 0);
        return [[...rules.nextWords(words)], [...possible], nats, brokenAt, complete];
    });
}"""


def judge_all(engine, grammar, cases):
    """Compare both grammars on beginnings of stories, of which every fourth is to end there.

    Returns how many are broken.
    """
    broken = 0
    found = ask(engine, JUDGE, [grammar.table(), cases])
    for number, (words, (following, possible, nats, broken_at, complete)) in enumerate(
        zip(cases, found, strict=True)
    ):
        judged = grammar.judge([*words, "<eos>"] if number % 4 == 0 else words)
        assert (broken_at, complete) == (judged.broken_at, judged.complete)
        assert nats == pytest.approx(judged.nats.tolist(), abs=1e-9)
        assert dict(possible) == pytest.approx(judged.possible, abs=1e-9)
        assert dict(following) == pytest.approx(grammar.next_words(words), abs=1e-9)
        broken += judged.broken_at is not None
    return broken


def test_the_next_words_probabilities_are_pythons(engine, course):
    assert 500 < judge_all(engine, bundled_grammar(), list(prefixes(course))) < 1500


def test_every_construct_of_a_grammar_is_read_as_in_python(engine, course):
    """A grammar that has them all: each beginning of 200 stories, and a wrong word after it."""
    grammar, split = Grammar(**SMALL), course.tokenizer.split
    stories = {tuple(split(grammar.story(f"{seed}")[0])) for seed in range(200)}
    beginnings = {story[:end] for story in stories for end in range(len(story) + 1)}
    cases = sorted(beginnings | {(*words, "the") for words in beginnings})
    assert judge_all(engine, grammar, cases) > 100
