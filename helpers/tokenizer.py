"""Words to ids and back: a word-level tokenizer that reads like text again when decoded."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

from helpers.support.checks import require
from helpers.support.files import read_json, write_json

SPECIALS = ("<pad>", "<sos>", "<eos>", "<unk>")
FORMAT = 2  # of a saved tokenizer
SPLITTING = 2  # raise it when texts are split otherwise: cached word vectors depend on it
LONGEST = 100  # characters of a word; what is longer is read as several words

# A word (inner apostrophes and hyphens belong to it, a possessive 's does not), or one mark.
_TOKEN = re.compile(r"'[sS]\b|\w+(?:(?!'[sS]\b)['-]\w+)*|\.\.\.|--|[^\w\s]")
# None is for what splits no word: soft hyphens, zero-width spaces, word joiners, byte-order marks.
_STRAIGHT = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "–": "--", "—": "--"}
    | dict.fromkeys("\u00ad\u200b\u2060\ufeff")
)
_STRIPPED = '.,!?;:"()[]'

_ENDS_SENTENCE = {".", "!", "?"}
_NO_SPACE_BEFORE = {".", ",", "!", "?", ";", ":", ")", "]", "...", "'s", "%"}
_NO_SPACE_AFTER = {"(", "[", "$", "#"}


class WordTokenizer:
    """A fixed vocabulary of lower-case words.

    Ids 0 to 3 are `<pad>`, `<sos>`, `<eos>` and `<unk>`; the same strings typed in a text are
    ordinary words. Every other id is a word, the most frequent first and ties in alphabetical
    order, so the same texts always give the same ids. A word of more than 100 characters is read
    as several of 100: nobody writes one, but files hold them.

    With keep_punctuation=True each mark is a word of its own, so that generated text reads as
    text; Unicode is composed (NFC) first. False drops punctuation: the text is split on white
    space, and each piece stripped of `.,!?;:"()[]` (a piece of punctuation alone stays, as the
    empty word).
    """

    pad_id, sos_id, eos_id, unk_id = range(4)

    def __init__(
        self, words: Sequence[str], capitalized: Iterable[str] = (), keep_punctuation: bool = True
    ):
        """words: the vocabulary without the special tokens. capitalized: names, for `decode`."""
        require(
            len(set(words)) == len(words),
            "the vocabulary holds the same word twice: build it with WordTokenizer.train(texts)",
        )
        self.words = list(words)
        self.capitalized = frozenset(capitalized)
        self.keep_punctuation = keep_punctuation
        self._id_of = {word: i for i, word in enumerate(self.words, start=len(SPECIALS))}

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 10_000, keep_punctuation: bool = True
    ) -> "WordTokenizer":
        """The `vocab_size - 4` most frequent words of `texts`, which are read once and lazily.

        Raises ValueError if there is no text, or if vocab_size leaves no room for a word.
        """
        require(
            vocab_size > len(SPECIALS),
            f"vocab_size={vocab_size} leaves no room for words beside the {len(SPECIALS)} "
            "special tokens",
        )
        require(not isinstance(texts, str), "texts is one string: give a list of texts")
        counts, mid_sentence, capitals = Counter(), Counter(), Counter()
        for text in texts:
            pieces = list(_pieces(text, keep_punctuation))
            counts.update(piece.lower() for piece in pieces)
            for previous, piece in pairwise(pieces):
                # After other marks, a capital may only mean that a sentence starts.
                if previous[-1:].isalnum() or previous == ",":
                    mid_sentence[piece.lower()] += 1
                    capitals[piece.lower()] += piece[:1].isupper()
        require(counts, "no words to build a vocabulary from: the texts are empty")
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        ranked = ranked[: vocab_size - len(SPECIALS)]
        capitalized = [word for word in ranked if capitals[word] > mid_sentence[word] / 2]
        return cls(ranked, capitalized, keep_punctuation)

    def __len__(self) -> int:
        return len(SPECIALS) + len(self.words)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of its state: equal tokenizers have equal ones."""
        return hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode()).hexdigest()

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
        ids = [self.sos_id, *islice(self._ids(text), length), self.eos_id][:length]
        return ids + [self.pad_id] * (length - len(ids))

    def word(self, token_id: int) -> str:
        """The word or special token behind an id, for axis labels and tables."""
        require(
            0 <= token_id < len(self),
            f"token id {token_id} is outside the vocabulary of {len(self)}",
        )
        after = token_id - len(SPECIALS)
        return self.words[after] if after >= 0 else SPECIALS[token_id]

    def excluded_ids(self, vocab_size: int) -> list[int]:
        """Ids that never come out of a model with `vocab_size` rows, however it decodes.

        They are `<pad>`, `<sos>` and `<unk>`, and the rows that stand for no word.
        """
        return [self.pad_id, self.sos_id, self.unk_id, *range(len(self), vocab_size)]

    def decode(self, ids: Iterable[int], after: Iterable[int] = ()) -> str:
        """Readable text, with spaces, quotes and capitals put back.

        Special tokens other than `<unk>` leave no trace.

        after: ids that stand before these. The text continues them, so in mid-sentence it starts
        with a small letter.
        """
        if before := list(after):
            return self.decode([*before, *ids])[len(self.decode(before)) :].lstrip()
        words = [self.word(i) for i in map(int, ids) if i not in range(self.unk_id)]
        return self._join(words) if self.keep_punctuation else " ".join(filter(None, words))

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
                # Not for ß, whose capital would be read as ss.
                if (capital or proper) and first.lower() == word[:1]:
                    shown = first + word[1:]
                capital = False
            if word == '"':
                # Speech starts a sentence. After it, `?" asked Mia` goes on; `." Mia` starts one.
                capital = not quote_open or previous == "."
                quote_open = not quote_open
            elif word in _ENDS_SENTENCE:
                capital = True
            text += space + shown
            previous = word
        return text

    def state(self) -> dict:
        """What `from_state` makes the same tokenizer of: lists of words, which JSON can hold."""
        return {
            "keep_punctuation": self.keep_punctuation,
            "capitalized": sorted(self.capitalized),
            "words": self.words,
        }

    @classmethod
    def from_state(cls, state: dict) -> "WordTokenizer":
        """Raises ValueError if the state is not that of a tokenizer."""
        lists = [state.get("words"), state.get("capitalized")]
        require(
            all(isinstance(x, list) and all(isinstance(w, str) for w in x) for x in lists)
            and isinstance(state.get("keep_punctuation"), bool),
            "this is no saved tokenizer: its words are no list of words",
        )
        return cls(*lists, state["keep_punctuation"])

    def save(self, path: str | Path) -> None:
        """Write one JSON file; it appears whole or not at all."""
        write_json(path, self.state(), FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> "WordTokenizer":
        """Read what `save` wrote. Raises ValueError if the file is another, or was changed."""
        return cls.from_state(read_json(path, FORMAT))


def _pieces(text: str, keep_punctuation: bool) -> Iterator[str]:
    """The words of a text in their original case, lazily: a text may have megabytes."""
    if keep_punctuation:
        # The lower case of İ is two characters, which would be read as two words.
        text = unicodedata.normalize("NFC", text.translate(_STRAIGHT)).replace("İ", "I")
    for match in (_TOKEN if keep_punctuation else re.compile(r"\S+")).finditer(text):
        word = match[0] if keep_punctuation else match[0].strip(_STRIPPED)
        if len(word) <= LONGEST:
            yield word
        else:
            yield from (word[start : start + LONGEST] for start in range(0, len(word), LONGEST))
