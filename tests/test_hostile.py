"""Texts and prompts that mean no good: they work, or are refused in words, in bounded memory."""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import datasets
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import cases, made_model, or_refused, start

from helpers.attention_plots import heatmap
from helpers.decoding import generate
from helpers.evaluation import bleu
from helpers.notebook import FigureFolder
from helpers.stories import load_stories
from helpers.tokenizer import SPECIALS, WordTokenizer
from helpers.training import encode_stories
from helpers.vectors import load_vectors, train_vectors

pytestmark = pytest.mark.torture

# Whatever a str can hold, lone surrogates too; bytes that were read as something else; and old
# acquaintances. İ has two characters in lower case.
ACQUAINTANCES = [*SPECIALS, "\0", "\ufeff", "\ud800", "\u202eright to left\u202c", "שלום עולם"]
ACQUAINTANCES += ["👩‍👩‍👧", "e\u0301\u0301\u0301", "İ", "ǅ", "<|endoftext|>", "</s>", "__label__"]
ACQUAINTANCES += ["<script>alert(1)</script>", "$\\frac{", "%s %n {0}", "../../etc", "'s's--''-'"]
ACQUAINTANCES += ["…" * 30, "w" * 300, "\r\n\x85\u2028"]
ONE = st.sampled_from(ACQUAINTANCES)
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.binary().map(lambda data: data.decode("latin-1")),
    st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.lists(st.one_of(ONE, st.text(max_size=5)), max_size=8).map("".join),
    st.lists(ONE, max_size=8).map(" ".join),
)
BYTES = TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))


@settings(max_examples=cases(150, 50_000))
@given(st.lists(TEXT, max_size=4), TEXT, st.booleans(), st.integers(5, 40))
@example(["<eos> <pad> <sos> <unk>"], "<eos>", False, 9)
@example(["İ", "ß ß"], "ß. ß", True, 9)
def test_any_text_can_be_tokenized(texts, other, keep_punctuation, vocab_size):
    train = partial(WordTokenizer.train, texts, vocab_size, keep_punctuation)
    tokenizer = or_refused(train, "the texts are empty")
    if tokenizer is None:
        split = WordTokenizer([], keep_punctuation=keep_punctuation).split
        assert not any(split(text) for text in texts)
        return
    assert len(tokenizer) <= vocab_size
    for text in [*texts, other]:
        ids = tokenizer.encode(text)
        # No control token, whatever is typed.
        assert all(tokenizer.unk_id <= one < len(tokenizer) for one in ids)
        story = tokenizer.encode_story(text, 12)
        assert story == [1, *ids, 2, *[0] * 12][:12]
        tokenizer.decode(ids)
        if keep_punctuation and tokenizer.unk_id not in ids:
            assert tokenizer.encode(tokenizer.decode(ids)) == ids
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder, "words.json"))
        again = WordTokenizer.load(Path(folder, "words.json"))
    assert (again.words, again.capitalized) == (tokenizer.words, tokenizer.capitalized)


def all_stories(path):
    stories = load_stories(path, validation=1)
    return [*stories.train, *stories.validation]


@settings(max_examples=cases(150, 50_000))
@given(st.one_of(st.binary(max_size=300), BYTES))
@example(b"\xc2\x85<|endoftext|>a<|endoftext|>b")
def test_any_bytes_are_stories_or_are_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stories.txt")
        path.write_bytes(content)
        found = or_refused(lambda: all_stories(path), "stories.txt")
    assert found is None or len(found) >= 2
    for text in found or []:
        assert text.strip()
        assert text.encode()  # UTF-8 can say it


@settings(max_examples=cases(8, 400))
@given(st.lists(TEXT, min_size=1, max_size=5), st.booleans())
@example(["a\ud800b", "c"], True)
@example(["a\ud800b", "c"], False)
@example(["a\0b", "c"], True)
def test_any_table_is_stories_or_is_refused(texts, escaped):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(folder, "cache"))
        path = Path(folder, "stories.jsonl")
        lines = [json.dumps({"text": text}, ensure_ascii=escaped) for text in texts]
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        found = or_refused(lambda: all_stories(path), "stories.jsonl")
    assert found is None or len(found) >= 2
    assert all(text.strip() and text.encode() for text in found or [])


@pytest.fixture(scope="module")
def model():
    sizes = {"embedding_dim": 8, "d_model": 8, "num_layers": 1, "d_ff": 16}
    return made_model(**sizes, context_length=40).eval()


TOKENIZER = WordTokenizer([*"abcdefgh", "<eos>", ">", "<", "eos", "\0", "\ud800", "'s", '"', "."])


@settings(max_examples=cases(20, 1_000))
@given(prompts=st.lists(TEXT, min_size=20, max_size=20))
def test_any_prompt_goes_on_or_is_too_long(model, prompts):
    fits = [prompt for prompt in prompts if len(TOKENIZER.encode(prompt)) < 39]
    if len(fits) < len(prompts):
        with pytest.raises(ValueError, match="leaves no room in a context of 40: shorten it"):
            generate(model, TOKENIZER, prompts, max_new_tokens=2, seed=0)
    for one in generate(model, TOKENIZER, fits, max_new_tokens=2, seed=0):
        assert 1 <= len(one.ids) <= 2
        assert one.text == one.text.strip()
    if fits:
        assert bleu(fits, fits) >= 0


@settings(max_examples=cases(2, 60))
@given(st.lists(TEXT, min_size=1, max_size=6))
@example(["a\0b </s> __label__x \ud800", "w" * 5_000])
def test_any_words_have_vectors(texts):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", folder)
        tokenizer = WordTokenizer.train([*texts, "the the"])
        vectors = train_vectors([*texts, "the the"], tokenizer, dim=4, bucket=20, epochs=1)
        assert vectors.matrix(tokenizer).shape == (len(tokenizer), 4)


@settings(max_examples=cases(3, 150))
@given(st.lists(TEXT, min_size=2, max_size=5))
@example(["\ud800", "$\\frac{", "\0"])
def test_any_words_can_be_shown(words):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIGURES_DIR", folder)
        figure = heatmap(torch.eye(len(words)), words)
        FigureFolder("bundled").save_figure(figure, "words", alt="the words")
        root = ElementTree.parse(Path(folder, "bundled", "words.svg")).getroot()
    assert root.tag.endswith("svg")


SIZE = cases(1, 10)  # megabytes
BIG = {
    "one word": lambda: "w" * SIZE * 10**6,
    "words of one letter": lambda: "a b " * (SIZE * 10**6 // 4),
    "marks": lambda: "!?" * (SIZE * 10**6 // 2),
    "other words each time": lambda: " ".join(f"a{i}b{i * i}" for i in range(SIZE * 10**6 // 18)),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize("name", BIG)
def test_a_huge_story_needs_at_most_a_hundred_times_its_size(tmp_path, name):
    path = tmp_path / "stories.txt"
    path.write_text(f"{BIG[name]()}<|endoftext|>the end")
    done = start("story_memory", path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100 * SIZE


def test_vectors_of_words_that_are_none(tmp_path):
    path = tmp_path / "v.vec"
    path.write_bytes(b"3 2\n\xff\xfe 1 2\n\0 3 4\n</s> 5 6\n")
    vectors = load_vectors(path)
    assert vectors["\0"].tolist() == [3, 4]
    assert vectors["\udcff\udcfe"].tolist() == [1, 2]


def test_encoded_stories_have_a_bound_too():
    ids = encode_stories(TOKENIZER, ["a" * 1_000_000, "", "a b"], 16)
    assert ids.shape == (3, 16)
    assert ids[1].tolist() == [1, 2, *[0] * 14]
