"""Words to ids and back: a word-level tokenizer that reads like text again when decoded."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

from helpers.support.checks import check, require
from helpers.support.files import kind_of_file, user_path, write_whole

SPECIALS = ("<pad>", "<sos>", "<eos>", "<unk>")
SPLITTING = 3  # raise it when texts are split otherwise: cached word vectors depend on it
LONGEST = 100  # characters of a word; what is longer is read as several words

# A word (inner apostrophes and hyphens belong to it, a possessive 's does not), or one mark.
# A letter keeps its combining marks, U+0300 to U+036F, which have no composed form with it.
_TOKEN = re.compile(
    r"'[sS]\b|\w[\w\u0300-\u036f]*(?:(?!'[sS]\b)['-]\w[\w\u0300-\u036f]*)*|\.\.\.|--|[^\w\s]"
)
# Soft hyphens, zero-width spaces and joiners, marks of direction, byte-order marks, variation
# selectors: none of them splits a word, and emoji that a joiner makes one are read one by one.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_STRAIGHT = str.maketrans(
    {"“": '"', "”": '"', "‐": "-", "‑": "-", "–": "--", "—": "--"}
    | dict.fromkeys("‘’ʼ´`", "'")
    # The lower case of İ is two characters, which would be read as two words.
    | {"…": "...", "İ": "I"}
)
_ENDS_SENTENCE = {".", "!", "?"}
_NO_SPACE_BEFORE = {".", ",", "!", "?", ";", ":", ")", "]", "...", "'s", "%"}
_NO_SPACE_AFTER = {"(", "[", "$", "#"}


class WordTokenizer:
    """A fixed vocabulary of lower-case words.

    Ids 0 to 3 are `<pad>`, `<sos>`, `<eos>` and `<unk>`; the same strings typed in a text are
    ordinary words. Every other id is a word, the most frequent first and ties in alphabetical
    order, so the same texts always give the same ids. A word of more than 100 characters is read
    as several of 100: nobody writes one, but files hold them.

    Unicode is composed (NFC) first, and loses what nobody sees, such as soft hyphens. With
    keep_punctuation=True each mark is a word of its own, so that generated text reads as text.
    False drops punctuation: the text is split on white space, and each piece stripped of
    `.,!?;:"()[]` (a piece of punctuation alone stays, as the empty word).

    Every method that reads a text raises ValueError if it is not a str.
    """

    pad_id, sos_id, eos_id, unk_id = range(4)

    def __init__(
        self, words: Sequence[str], capitalized: Iterable[str] = (), keep_punctuation: bool = True
    ):
        """words: the vocabulary without the special tokens. capitalized: names, for `decode`.

        Raises ValueError unless both hold strings, and each word is there once.
        """
        self.words, names = list(words), list(capitalized)
        require(
            not isinstance(words, str)
            and not isinstance(capitalized, str)
            and all(isinstance(word, str) for word in self.words + names)
            and len(set(self.words)) == len(self.words),
            "the vocabulary is no list of different words: make it with WordTokenizer.train(texts)",
        )
        self.capitalized = frozenset(names)
        self.keep_punctuation = keep_punctuation
        self._id_of = {word: i for i, word in enumerate(self.words, start=len(SPECIALS))}

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 10_000, keep_punctuation: bool = True
    ) -> "WordTokenizer":
        """The `vocab_size - 4` most frequent words of `texts`, which are read once and lazily.

        Raises ValueError if there is no word, if `texts` is one string or holds anything but
        strings, or if vocab_size leaves no room for a word.
        """
        check(
            locals(),
            {
                "texts": (
                    "a list of texts",
                    lambda texts: (
                        not isinstance(texts, str | bytes | Mapping) and isinstance(texts, Iterable)
                    ),
                ),
                "vocab_size": (
                    "a whole number, more than the 4 special tokens",
                    lambda size: isinstance(size, int) and size > 4,
                ),
            },
        )
        counts, mid_sentence, capitals = Counter(), Counter(), Counter()
        for text in texts:
            pieces = list(_pieces(text, keep_punctuation))
            counts.update(piece.lower() for piece in pieces)
            # After other marks, a capital may only mean that a sentence starts.
            after = [b for a, b in pairwise(pieces) if a[-1:].isalnum() or a == ","]
            mid_sentence.update(piece.lower() for piece in after)
            capitals.update(piece.lower() for piece in after if piece[:1].isupper())
        require(counts, "no words to build a vocabulary from: the texts are empty")
        words = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - len(SPECIALS)]
        capitalized = [word for word in words if capitals[word] > mid_sentence[word] / 2]
        return cls(words, capitalized, keep_punctuation)

    def __len__(self) -> int:
        return len(SPECIALS) + len(self.words)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of its state: equal tokenizers have equal ones."""
        return hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode()).hexdigest()

    def split(self, text: str) -> list[str]:
        """The lower-case words of a text, those outside the vocabulary too."""
        return [piece.lower() for piece in _pieces(text, self.keep_punctuation)]

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of the words of a text, or of its first `limit` words, without special tokens.

        Unknown words become `<unk>`.
        """
        return [
            self._id_of.get(piece.lower(), self.unk_id)
            for piece in islice(_pieces(text, self.keep_punctuation), limit)
        ]

    def encode_story(self, text: str, length: int) -> list[int]:
        """`<sos>`, the words, `<eos>`, padded with `<pad>` to exactly `length` ids.

        A longer story is cut, and then has no `<eos>`: it did not end there.
        """
        ids = [self.sos_id, *self.encode(text, length), self.eos_id][:length]
        return ids + [self.pad_id] * (length - len(ids))

    def word(self, token_id: int) -> str:
        """The word or special token behind an id, for axis labels and tables."""
        require(
            0 <= token_id < len(self),
            f"token id {token_id} is outside the vocabulary of {len(self)}",
        )
        return (
            SPECIALS[token_id] if token_id < len(SPECIALS) else self.words[token_id - len(SPECIALS)]
        )

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
        text, gap, previous, quote_open, capital = "", "", "", False, True
        for word in words:
            proper = word in self.capitalized or word == "i" or word.startswith("i'")
            first = word[:1].upper() if capital or proper else word[:1]
            # Not for ß, whose capital would be read as ss.
            shown = first + word[1:] if first.lower() == word[:1] else word
            glued = word in _NO_SPACE_BEFORE or (word == '"' and quote_open)
            text += shown if glued else gap + shown
            if word == '"':
                # Speech starts a sentence. After it, `?" asked Mia` goes on; `." Mia` starts one.
                capital = not quote_open or previous == "."
                quote_open = not quote_open
            elif word[:1].isalpha() or word in _ENDS_SENTENCE:
                capital = word in _ENDS_SENTENCE
            gap = "" if word in _NO_SPACE_AFTER or (word == '"' and quote_open) else " "
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
        kinds = {"words": list, "capitalized": list, "keep_punctuation": bool}
        require(
            all(isinstance(state.get(name), kind) for name, kind in kinds.items()),
            f"this is no saved tokenizer, which holds {', '.join(kinds)}",
        )
        return cls(**{name: state[name] for name in kinds})

    def save(self, path: str | Path) -> None:
        """Write one JSON file; it appears whole or not at all."""
        saved = {"sha256": self.digest} | self.state()
        write_whole(user_path(path), json.dumps(saved, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "WordTokenizer":
        """Read what `save` wrote.

        Raises ValueError if the file is another, or was changed, FileNotFoundError if there is
        none.
        """
        try:
            state = json.loads(user_path(path).read_bytes())
            tokenizer = cls.from_state(state)
            require(state["sha256"] == tokenizer.digest, "it was changed since it was saved")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} is not what was saved ({kind_of_file(user_path(path)) or error!r}): save "
                "it again, copy it again, or update the code"
            ) from error
        return tokenizer


def _pieces(text: str, keep_punctuation: bool) -> Iterator[str]:
    """The words of a text in their original case, lazily: a text may have megabytes."""
    require(isinstance(text, str), f"texts must be strings: one is a {type(text).__name__}")
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    text = text.translate(_STRAIGHT) if keep_punctuation else text
    for match in (_TOKEN if keep_punctuation else re.compile(r"\S+")).finditer(text):
        word = match[0] if keep_punctuation else match[0].strip('.,!?;:"()[]')
        yield from (word[start : start + LONGEST] for start in range(0, len(word) or 1, LONGEST))
