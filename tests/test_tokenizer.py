"""The tokenizer: ids by rule, text that reads again, the comparison protocol's words exactly."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers.support.files import write_json
from helpers.tokenizer import FORMAT, SPECIALS, WordTokenizer

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MOM'S", ["mom", "'s"]),  # as mom's
        ("cafe\u0301", ["café"]),  # an accent of its own, as in files from macOS
        ("I\u0307zmir", ["izmir"]),  # as İzmir
        ("won\u00adder\u200bful\u2060 d\ufeffay", ["wonderful", "day"]),
    ],
)
def test_what_looks_alike_is_split_alike(text, words):
    assert WordTokenizer([]).split(text) == words


@given(st.text(max_size=60))
def test_without_punctuation_any_text_follows_the_protocol(text):
    tokenizer = WordTokenizer(["a"], keep_punctuation=False)
    assert tokenizer.split(text) == [piece.strip('.,!?;:"()[]').lower() for piece in text.split()]


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
def test_saved_and_loaded_it_is_the_same(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer.json")
    assert same(WordTokenizer.load(tmp_path / "tokenizer.json"), tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


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
    "content",
    [
        *("", "[]", "{}", "\x00", '{"format": 1}'),
        '{"format": 9, "words": [], "capitalized": [], "keep_punctuation": true}',
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not what was saved"):
        WordTokenizer.load(path)


@pytest.mark.parametrize("words", ["abc", ["a", 1], [["a"]], None, {"a": 1}])
def test_words_that_are_no_list_of_words_are_refused(tmp_path, words):
    path, told = tmp_path / "tokenizer.json", "no saved tokenizer: its words are no list of words"
    for both in ({"words": words, "capitalized": []}, {"words": ["a"], "capitalized": words}):
        state = both | {"keep_punctuation": True}
        with pytest.raises(ValueError, match=told):
            WordTokenizer.from_state(state)
        write_json(path, state, FORMAT)
        with pytest.raises(ValueError, match=told):
            WordTokenizer.load(path)


def test_a_vocabulary_with_a_word_twice_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    write_json(path, {"words": ["a", "a"], "capitalized": [], "keep_punctuation": True}, FORMAT)
    with pytest.raises(ValueError, match="same word twice"):
        WordTokenizer.load(path)


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
    with pytest.raises(ValueError, match="texts is one string: give a list of texts"):
        WordTokenizer.train("Mia saw a fox.")
    with pytest.raises(ValueError, match="vocab_size=4 leaves no room"):
        WordTokenizer.train(["a"], vocab_size=4)
