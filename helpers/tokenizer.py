"""Words to ids and back: a word-level tokenizer that reads like text again when decoded."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

from helpers.files import read_json, write_json

SPECIALS = ("<pad>", "<sos>", "<eos>", "<unk>")
FORMAT = 2  # of a saved tokenizer
LONGEST = 100  # characters of a word; what is longer is read as several words

# A word (inner apostrophes and hyphens belong to it, a possessive 's does not), or one punctuation
# mark.
_TOKEN = re.compile(r"'s\b|\w+(?:(?!'s\b)['-]\w+)*|\.\.\.|--|[^\w\s]")
# İ because its lower case is two characters, which would be read as two words.
_STRAIGHT = str.maketrans(
    {"İ": "I", "“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "–": "--", "—": "--"}
)
_STRIPPED = '.,!?;:"()[]'

_ENDS_SENTENCE = {".", "!", "?"}
_NO_SPACE_BEFORE = {".", ",", "!", "?", ";", ":", ")", "]", "...", "'s", "%"}
_NO_SPACE_AFTER = {"(", "[", "$", "#"}


class WordTokenizer:
    """A fixed vocabulary of lower-case words.

    Ids 0 to 3 are `<pad>`, `<sos>`, `<eos>` and `<unk>`; the same strings typed in a text are
    ordinary words. Every other id is a word, most frequent first, ties broken by the word itself,
    so that the same texts always give the same ids.

    keep_punctuation=True splits punctuation off as words of its own, so that generated text reads
    as text. False drops it: lower-case, split on white space, each piece stripped of `.,!?;:"()[]`
    (a piece that was only punctuation stays, as the empty word). A word of more than 100 characters
    is read as several of 100: nobody writes one, but files hold them.
    """

    pad_id, sos_id, eos_id, unk_id = range(4)

    def __init__(
        self, words: Sequence[str], capitalized: Iterable[str] = (), keep_punctuation: bool = True
    ):
        """words: the vocabulary without the special tokens. capitalized: those that `decode` writes
        with a capital.
        """
        if len(set(words)) != len(words):
            raise ValueError(
                "the vocabulary holds the same word twice: build it with WordTokenizer.train(texts)"
            )
        self.words = list(words)
        self.capitalized = frozenset(capitalized)
        self.keep_punctuation = keep_punctuation
        self._id_of = {word: i for i, word in enumerate(self.words, start=len(SPECIALS))}

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 10_000, keep_punctuation: bool = True
    ) -> "WordTokenizer":
        """The `vocab_size - 4` most frequent words of `texts`, read once and lazily.

        Raises ValueError where there is no text, or where vocab_size leaves no room for a word.
        """
        if vocab_size <= len(SPECIALS):
            raise ValueError(
                f"vocab_size={vocab_size} leaves no room for words beside the {len(SPECIALS)} "
                "special tokens"
            )
        counts, mid_sentence, capitals = Counter(), Counter(), Counter()
        for text in texts:
            pieces = list(_pieces(text, keep_punctuation))
            counts.update(piece.lower() for piece in pieces)
            for previous, piece in pairwise(pieces):
                if (
                    previous[-1:].isalnum() or previous == ","
                ):  # after a mark, a capital may only start a sentence
                    mid_sentence[piece.lower()] += 1
                    capitals[piece.lower()] += piece[:1].isupper()
        if not counts:
            raise ValueError("no words to build a vocabulary from: the texts are empty")
        ranked = sorted(counts, key=lambda word: (-counts[word], word))[
            : vocab_size - len(SPECIALS)
        ]
        capitalized = [word for word in ranked if capitals[word] > mid_sentence[word] / 2]
        return cls(ranked, capitalized, keep_punctuation)

    def __len__(self) -> int:
        return len(SPECIALS) + len(self.words)

    def split(self, text: str) -> list[str]:
        """The lower-case words of a text, those outside the vocabulary too."""
        return [piece.lower() for piece in _pieces(text, self.keep_punctuation)]

    def encode(self, text: str) -> list[int]:
        """Ids of the words of a text, without special tokens; unknown words become `<unk>`."""
        return list(self._ids(text))

    def _ids(self, text: str) -> Iterator[int]:
        for piece in _pieces(text, self.keep_punctuation):
            yield self._id_of.get(piece.lower(), self.unk_id)

    def encode_story(self, text: str, length: int) -> list[int]:
        """`<sos>`, the words, `<eos>`, padded with `<pad>` to exactly `length` ids.

        A longer story is cut, and then has no `<eos>`: it did not end there.
        """
        ids = [self.sos_id, *islice(self._ids(text), length), self.eos_id][
            :length
        ]  # of a long text only the beginning
        return ids + [self.pad_id] * (length - len(ids))

    def word(self, token_id: int) -> str:
        """The word or special token behind an id, for axis labels and tables."""
        if not 0 <= token_id < len(self):
            raise ValueError(f"token id {token_id} is outside the vocabulary of {len(self)}")
        return (
            SPECIALS[token_id] if token_id < len(SPECIALS) else self.words[token_id - len(SPECIALS)]
        )

    def decode(self, ids: Iterable[int], after: Iterable[int] = ()) -> str:
        """Readable text: spaces, quotes and capitals are put back; special tokens give nothing,
        except `<unk>`.

        after: ids that stand before these. The text goes on from them, so in mid-sentence it starts
        with a small letter.
        """
        if before := list(after):
            return self.decode([*before, *ids])[len(self.decode(before)) :].lstrip()
        words = [
            self.word(int(i)) for i in ids if int(i) not in (self.pad_id, self.sos_id, self.eos_id)
        ]
        return (
            self._join(words) if self.keep_punctuation else " ".join(word for word in words if word)
        )

    def _join(self, words: list[str]) -> str:
        text, quote_open, capital, glue, previous = "", False, True, True, ""
        for word in words:
            closing_quote = word == '"' and quote_open
            space = "" if glue or closing_quote or word in _NO_SPACE_BEFORE else " "
            glue = word in _NO_SPACE_AFTER or (word == '"' and not quote_open)
            shown = word
            if word[:1].isalpha():
                proper = word in self.capitalized or word == "i" or word.startswith("i'")
                first = word[:1].upper()
                if (capital or proper) and first.lower() == word[
                    :1
                ]:  # not for ß, whose capital would be read as ss
                    shown = first + word[1:]
                capital = False
            if word == '"':
                # Speech starts a sentence. After it, `?" asked Mia` goes on, `." Mia smiled` begins
                # anew.
                capital = not quote_open or previous == "."
                quote_open = not quote_open
            elif word in _ENDS_SENTENCE:
                capital = True
            text += space + shown
            previous = word
        return text

    def save(self, path: str | Path) -> None:
        """Write one JSON file; it appears whole or not at all."""
        state = {
            "keep_punctuation": self.keep_punctuation,
            "capitalized": sorted(self.capitalized),
            "words": self.words,
        }
        write_json(path, state, FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> "WordTokenizer":
        """Read what `save` wrote. Raises ValueError where the file is not such a file, or was
        changed since.
        """
        state = read_json(path, FORMAT)
        try:
            words, capitalized, keep_punctuation = (
                state["words"],
                state["capitalized"],
                state["keep_punctuation"],
            )
        except KeyError as error:
            raise ValueError(
                f"{path} is no saved tokenizer, it has no {error}: save or copy it again"
            ) from error
        if not all(
            isinstance(one, list) and all(isinstance(word, str) for word in one)
            for one in (words, capitalized)
        ):
            raise ValueError(
                f"{path} is no saved tokenizer, its words are no list of words: save or copy it "
                "again"
            )
        return cls(words, capitalized, keep_punctuation)


def _pieces(text: str, keep_punctuation: bool) -> Iterator[str]:
    """The words of a text in their original case, one after the other: a text of megabytes need not
    be split at once.
    """
    found = (
        _TOKEN.finditer(text.translate(_STRAIGHT))
        if keep_punctuation
        else re.finditer(r"\S+", text)
    )
    for match in found:
        word = match[0] if keep_punctuation else match[0].strip(_STRIPPED)
        if len(word) <= LONGEST:
            yield word
        else:
            yield from (word[start : start + LONGEST] for start in range(0, len(word), LONGEST))
