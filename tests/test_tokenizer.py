"""The tokenizer: ids by rule, text that reads again, the comparison protocol's words exactly."""

import json
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers.tokenizer import SPECIALS, WordTokenizer

STORY = (
    'One day, Mia met Tom. "Where is my red ball?" asked Mia. "I don\'t know," said Tom. '
    "\"It's not in the well-known box (or is it?).\" Tom's dog ran to Mia... "
    '"Look!" Tom said, and I smiled.'
)


def test_ids_go_by_frequency_then_by_word():
    tokenizer = WordTokenizer.train(["b a c", "c b d", "c"], vocab_size=7)
    assert tokenizer.words == ["c", "b", "a"]  # a and d appear once each, a comes first
    assert [tokenizer.word(i) for i in range(4)] == list(SPECIALS)
    assert (tokenizer.pad_id, tokenizer.sos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.encode("a b c d") == [6, 5, 4, 3]
    assert len(tokenizer) == 7


def test_a_written_text_reads_again():
    tokenizer = WordTokenizer.train([STORY])
    assert tokenizer.decode(tokenizer.encode(STORY)) == STORY


def test_marks_contractions_and_possessives():
    tokenizer = WordTokenizer.train([STORY])
    words = tokenizer.split("Tom's dog didn't wait—it's “well-known”...")
    assert words == """tom 's dog didn't wait -- it 's " well-known " ...""".split()


def test_a_possessive_is_one_in_capitals_too():
    assert WordTokenizer([]).split("TOM'S DOG ISN'T MIA'S") == "tom 's dog isn't mia 's".split()


def test_what_looks_the_same_is_the_same_word():
    tokenizer = WordTokenizer.train(["\ufeffnaïve wonderful"])
    assert tokenizer.words == ["naïve", "wonderful"]
    assert tokenizer.encode("nai\u0308ve won\u00adder\u200bful\u2060") == [4, 5]


def test_capitals_are_learned_from_the_middle_of_sentences():
    story = "The cat saw Lily. The dog saw Lily. The cat sat with the dog, and Ben sat too."
    tokenizer = WordTokenizer.train([story])
    assert tokenizer.capitalized == {"lily", "ben"}
    ids = tokenizer.encode("the dog saw lily. ben sat.")
    assert tokenizer.decode(ids) == "The dog saw Lily. Ben sat."


def test_without_punctuation_the_rule_is_the_comparison_protocols():
    tokenizer = WordTokenizer.train(["Hi"], keep_punctuation=False)

    def protocol(text):
        return [word.strip('.,!?;:"()[]') for word in text.lower().split()]

    text = 'He said, "Wait!" - (it\'s "so" late...) ?! [end] \t x:y\n\nmother-in-law “curly”'
    assert tokenizer.split(text) == protocol(text)
    assert "" in tokenizer.split("a ?! b")


INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u202e\u2060\u2069\ufeff\ufe00\ufe0e\ufe0f\U000e0041"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MOM'S mom\u2019s MOM\u2019S", ["mom", "'s"] * 3),
        ("DON'T don\u2019t don\u02bct", ["don't"] * 3),
        ("I'M I\u2019m i'm", ["i'm"] * 3),
        ("I\u0307zmir İzmir", ["izmir"] * 2),
        ("well\u2011known well\u2010known", ["well-known"] * 2),  # hyphens of other kinds
    ],
)
def test_what_looks_alike_is_split_alike(text, words):
    assert WordTokenizer([]).split(text) == words


@pytest.mark.parametrize("keep_punctuation", [True, False])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cafe\u0301 CAFE\u0301", ["café"] * 2),  # an accent of its own, as in files from macOS
        *((f"won{mark}der{mark * 2}ful d{mark}ay", ["wonderful", "day"]) for mark in INVISIBLE),
        (f"{INVISIBLE}nai\u0308ve{INVISIBLE} e{INVISIBLE}\u0301", ["naïve", "é"]),
    ],
)
def test_what_nobody_sees_splits_no_word(text, words, keep_punctuation):
    assert WordTokenizer([], keep_punctuation=keep_punctuation).split(text) == words


def test_an_emoji_sequence_is_read_as_its_emoji_and_no_letters():
    family, heart, doctor = "👩\u200d👩\u200d👧", "\u2764\ufe0f", "👨\u200d\u2695\ufe0f"
    tokenizer = WordTokenizer.train([f"We {heart} the {family}, said the {doctor}."])
    words = ["we", "\u2764", "the", "👩", "👩", "👧", ",", "said", "the", "👨", "\u2695", "."]
    assert tokenizer.split(f"We {heart} the {family}, said the {doctor}.") == words
    assert tokenizer.decode(tokenizer.encode(f"the{family}")) == "The 👩 👩 👧"


@given(st.text(max_size=60))
def test_without_punctuation_any_text_follows_the_protocol(text):
    """Composed, and without what nobody sees."""
    tokenizer = WordTokenizer(["a"], keep_punctuation=False)
    seen = unicodedata.normalize("NFC", "".join(c for c in text if c not in INVISIBLE))
    assert tokenizer.split(text) == [piece.strip('.,!?;:"()[]').lower() for piece in seen.split()]


TYPED = [*SPECIALS, "cat", "<", ">", "eos"]


@given(st.lists(st.sampled_from(TYPED), max_size=8), st.booleans())
def test_control_words_typed_in_a_text_are_ordinary_words(words, keep_punctuation):
    tokenizer = WordTokenizer.train([" ".join(TYPED)], keep_punctuation=keep_punctuation)
    assert all(i > 3 for i in tokenizer.encode(" ".join(words)))


KNOWN = ["mia", "said", ",", ".", "!", '"', "i", "'s", "(", ")", "don't"]


@given(st.lists(st.sampled_from(KNOWN), max_size=12))
def test_what_is_decoded_encodes_to_the_same_ids(words):
    tokenizer = WordTokenizer(KNOWN)
    # «i's», and «'s» after a word, would read as one word or another.
    words = [word for word in words if word not in ("i", "'s")]
    assume("..." not in "".join(words))  # three full stops in a row read as an ellipsis
    ids = [tokenizer.encode(word)[0] for word in words]
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_a_story_is_framed_padded_and_cut():
    tokenizer = WordTokenizer(["a", "b"])
    assert tokenizer.encode_story("a b", 6) == [1, 4, 5, 2, 0, 0]
    assert tokenizer.encode_story("a b", 4) == [1, 4, 5, 2]
    assert tokenizer.encode_story("a b", 3) == [1, 4, 5]  # cut: it did not end here
    assert tokenizer.encode_story("", 3) == [1, 2, 0]


def test_special_tokens_decode_to_nothing_except_unknown():
    tokenizer = WordTokenizer(["a"])
    assert tokenizer.decode([1, 4, 3, 2, 0]) == "A <unk>"
    with pytest.raises(ValueError, match="outside the vocabulary of 5"):
        tokenizer.decode([5])


def test_a_text_that_goes_on_has_the_capitals_and_spaces_of_its_place():
    tokenizer = WordTokenizer.train([STORY])
    ids = tokenizer.encode(STORY)
    for cut in range(1, len(ids)):
        before, after = tokenizer.decode(ids[:cut]), tokenizer.decode(ids[cut:], after=ids[:cut])
        assert STORY in (before + after, f"{before} {after}")


def test_ids_that_stand_for_no_word_are_excluded():
    tokenizer = WordTokenizer(["a", "b"])
    assert tokenizer.excluded_ids(6) == [0, 1, 3]  # what remains is `<eos>` and the words
    assert tokenizer.excluded_ids(9) == [0, 1, 3, 6, 7, 8]
    assert tokenizer.excluded_ids(4) == [0, 1, 3]


ODD = WordTokenizer.train([STORY, "naïve 東京 <eos> \ud800"])
PLAIN = WordTokenizer.train([STORY], 20, keep_punctuation=False)


def same(one, other):
    parts = ("words", "capitalized", "keep_punctuation")
    texts = (STORY, "", "a \ud800 東京")
    return all(getattr(one, name) == getattr(other, name) for name in parts) and all(
        one.encode(text) == other.encode(text) for text in texts
    )


@pytest.mark.parametrize("tokenizer", [ODD, PLAIN])
def test_saved_and_loaded_it_is_the_same(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tokenizer.save("~/tokenizer.json")
    for path in ("~/tokenizer.json", tmp_path / "tokenizer.json"):
        assert same(WordTokenizer.load(path), tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="ascii"))
    assert saved == tokenizer.state() | {"sha256": tokenizer.digest}
    with pytest.raises(FileNotFoundError):
        WordTokenizer.load(tmp_path / "other.json")


@pytest.mark.parametrize("tokenizer", [ODD, PLAIN])
def test_its_state_is_json_that_makes_the_same(tokenizer):
    state = tokenizer.state()
    assert state.keys() == {"words", "capitalized", "keep_punctuation"}
    assert state["capitalized"] == sorted(tokenizer.capitalized)  # the same on every run
    again = WordTokenizer.from_state(json.loads(json.dumps(state)))
    assert same(again, tokenizer)
    assert again.state() == state


def test_its_digest_changes_with_whatever_decides_about_ids():
    parts = {"words": ["a", "b"], "capitalized": ["b"], "keep_punctuation": True}
    digest = WordTokenizer(**parts).digest
    assert digest == WordTokenizer(**parts).digest
    changes = {"words": ["b", "a"], "keep_punctuation": False}
    others = [WordTokenizer(**parts | {name: value}).digest for name, value in changes.items()]
    assert len({digest, *others}) == 3


@pytest.mark.parametrize(
    "content", [*("", "[]", "null", "3", "{}", "\x00", "[" * 100_000, '{"sha256": 3}'), b"\xff"]
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = r"tokenizer\.json is not what was saved \(.*\): save it again, copy it again, or update"
    with pytest.raises(ValueError, match=told):
        WordTokenizer.load(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"words": ["b", "a"]}, "it was changed since it was saved"),
        ({"capitalized": []}, "it was changed since it was saved"),
        ({"keep_punctuation": False}, "it was changed since it was saved"),
        ({"sha256": "0" * 64}, "it was changed since it was saved"),
    ],
)
def test_a_change_of_a_saved_tokenizer_is_noticed(tmp_path, changes, reason):
    path = tmp_path / "tokenizer.json"
    WordTokenizer(["a", "b"], ["b"]).save(path)
    saved = json.loads(path.read_bytes())
    path.write_text(json.dumps(saved))  # other spaces: the same content
    assert WordTokenizer.load(path).words == ["a", "b"]
    path.write_text(json.dumps(saved | changes))
    with pytest.raises(ValueError, match=reason):
        WordTokenizer.load(path)


@pytest.mark.parametrize("words", ["abc", b"abc", ["a", 1], [["a"]], None, {"a": 1}, ["b", None]])
def test_words_that_are_no_list_of_words_are_refused(words):
    told = "this is no saved tokenizer|the vocabulary is no list of different words"
    for both in ({"words": words, "capitalized": []}, {"words": ["a"], "capitalized": words}):
        with pytest.raises(ValueError, match=told):
            WordTokenizer.from_state(both | {"keep_punctuation": True})
    if words and not isinstance(words, dict):
        with pytest.raises(ValueError, match="the vocabulary is no list of different words: make"):
            WordTokenizer(words)


def test_a_vocabulary_with_a_word_twice_is_refused():
    with pytest.raises(ValueError, match="no list of different words"):
        WordTokenizer(["a", "a"])


def test_a_word_of_more_than_a_hundred_characters_is_read_as_several():
    text = f"{'a' * 250} b"
    expected = ["a" * 100, "a" * 100, "a" * 50, "b"]
    for keep_punctuation in (True, False):
        tokenizer = WordTokenizer.train([text], keep_punctuation=keep_punctuation)
        assert tokenizer.split(text) == expected
        assert tokenizer.encode(text) == [4, 4, 5, 6]


def test_no_words_and_no_room_are_refused():
    with pytest.raises(ValueError, match="the texts are empty"):
        WordTokenizer.train([])
    for text in ("Mia saw a fox.", b"Mia saw a fox."):
        with pytest.raises(ValueError, match=r"texts=.*: must be a list of texts"):
            WordTokenizer.train(text)
    with pytest.raises(
        ValueError, match="vocab_size=4: must be a whole number, more than the 4 special tokens"
    ):
        WordTokenizer.train(["a"], vocab_size=4)


@pytest.mark.parametrize("wrong", [None, 3, b"Mia", ["Mia"]])
def test_a_text_that_is_no_string_is_refused(wrong):
    told = f"texts must be strings: one is a {type(wrong).__name__}"
    tokenizer = WordTokenizer(["a"])
    for read in (tokenizer.encode, tokenizer.split, lambda text: tokenizer.encode_story(text, 4)):
        with pytest.raises(ValueError, match=told):
            read(wrong)
    with pytest.raises(ValueError, match=told):
        WordTokenizer.train(["Mia saw", wrong])


def test_the_first_words_alone_can_be_encoded():
    tokenizer = WordTokenizer(["a", "b"])
    assert tokenizer.encode("a b a", 2) == [4, 5]
    assert tokenizer.encode("a b a", 9) == tokenizer.encode("a b a") == [4, 5, 4]


def test_a_letter_keeps_a_mark_that_has_no_composed_form_with_it():
    assert WordTokenizer([]).split("e\u0301\u0301n, e\u0323\u0300n-q\u0308") == [
        "\u00e9\u0301n",
        ",",
        "\u1eb9\u0300n-q\u0308",
    ]


def test_every_typed_apostrophe_is_one():
    for mark in "'’‘ʼ´`":
        assert WordTokenizer([]).split(f"MOM{mark}S don{mark}t") == ["mom", "'s", "don't"]
