"""The tokenizer: ids by rule, text that reads again, the comparison protocol's words exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.files import write_json
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
    assert tokenizer.split("Tom's dog didn't wait—it's “well-known”...") == [
        "tom",
        "'s",
        "dog",
        "didn't",
        "wait",
        "--",
        "it",
        "'s",
        '"',
        "well-known",
        '"',
        "...",
    ]


def test_capitals_are_learned_from_the_middle_of_sentences():
    tokenizer = WordTokenizer.train(
        ["The cat saw Lily. The dog saw Lily. The cat sat with the dog, and Ben sat too."]
    )
    assert tokenizer.capitalized == {"lily", "ben"}
    assert (
        tokenizer.decode(tokenizer.encode("the dog saw lily. ben sat."))
        == "The dog saw Lily. Ben sat."
    )


def test_without_punctuation_the_rule_is_the_comparison_protocols():
    tokenizer = WordTokenizer.train(["Hi"], keep_punctuation=False)

    def protocol(text):
        return [word.strip('.,!?;:"()[]') for word in text.lower().split()]

    text = 'He said, "Wait!" - (it\'s "so" late...) ?! [end] \t x:y\n\nmother-in-law “curly”'
    assert tokenizer.split(text) == protocol(text)
    assert "" in tokenizer.split("a ?! b")


@given(st.text(max_size=60))
def test_without_punctuation_any_text_follows_the_protocol(text):
    tokenizer = WordTokenizer(["a"], keep_punctuation=False)
    assert tokenizer.split(text) == [piece.strip('.,!?;:"()[]').lower() for piece in text.split()]


@given(
    st.lists(
        st.sampled_from(["<eos>", "<pad>", "<sos>", "<unk>", "cat", "<", ">", "eos"]), max_size=8
    ),
    st.booleans(),
)
def test_control_words_typed_in_a_text_are_ordinary_words(words, keep_punctuation):
    tokenizer = WordTokenizer.train(
        ["<eos> <pad> <sos> <unk> cat < > eos"], keep_punctuation=keep_punctuation
    )
    assert all(i > 3 for i in tokenizer.encode(" ".join(words)))


@given(
    st.lists(
        st.sampled_from(["mia", "said", ",", ".", "!", '"', "i", "'s", "(", ")", "don't"]),
        max_size=12,
    )
)
def test_what_is_decoded_encodes_to_the_same_ids(words):
    tokenizer = WordTokenizer(["mia", "said", ",", ".", "!", '"', "i", "'s", "(", ")", "don't"])
    ids = [tokenizer.encode(word)[0] for word in words]
    if (
        "i" in words or "'s" in words
    ):  # «i's» and a word before «'s» would read as one word or another
        ids = [i for i in ids if tokenizer.word(i) not in ("i", "'s")]
    if ["." for word in words if word == "."] and "..." in "".join(words):
        return  # three full stops in a row read as an ellipsis
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


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tokenizer = WordTokenizer.train([STORY, "naïve 東京 <eos>"], keep_punctuation=True)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = WordTokenizer.load(tmp_path / "tokenizer.json")
    assert (again.words, again.capitalized, again.keep_punctuation) == (
        tokenizer.words,
        tokenizer.capitalized,
        tokenizer.keep_punctuation,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 1}',
        "\x00",
        '{"format": 9, "words": [], "capitalized": [], "keep_punctuation": true}',
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        WordTokenizer.load(path)


@pytest.mark.parametrize("words", ["abc", ["a", 1], [["a"]], None, {"a": 1}])
def test_words_that_are_no_list_of_words_are_refused(tmp_path, words):
    path = tmp_path / "tokenizer.json"
    for both in ({"words": words, "capitalized": []}, {"words": ["a"], "capitalized": words}):
        write_json(path, both | {"keep_punctuation": True}, FORMAT)
        with pytest.raises(ValueError, match="its words are no list of words"):
            WordTokenizer.load(path)


def test_a_vocabulary_with_a_word_twice_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    write_json(path, {"words": ["a", "a"], "capitalized": [], "keep_punctuation": True}, FORMAT)
    with pytest.raises(ValueError, match="same word twice"):
        WordTokenizer.load(path)


def test_no_words_and_no_room_are_refused():
    with pytest.raises(ValueError, match="the texts are empty"):
        WordTokenizer.train([])
    with pytest.raises(ValueError, match="leaves no room"):
        WordTokenizer.train(["a"], vocab_size=4)
