"use strict";

// Words to ids and back, as helpers/tokenizer.py does it: text that both read must give the same
// words. Python's \w, \s and \b know all of Unicode; JavaScript's know ASCII, or other spaces. So
// the three are written out here.

const WORD = "\\p{L}\\p{N}_"; // what Python's \w matches
const SPACE =
    "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const LETTERS = `[${WORD}][${WORD}\\u0300-\\u036f]*`; // a letter keeps its combining marks
const POSSESSIVE = `'[sS](?![${WORD}])`; // Mia's is two words
// A word (inner apostrophes and hyphens belong to it, a possessive 's does not), or one mark.
const TOKEN = new RegExp(
    `${POSSESSIVE}|${LETTERS}(?:(?!${POSSESSIVE})['-]${LETTERS})*|\\.\\.\\.|--|[^${WORD}${SPACE}]`,
    "gu",
);
// Soft hyphens, zero-width spaces and joiners, marks of direction, variation selectors.
const INVISIBLE = new RegExp(
    "[\\u00ad\\u034f\\u061c\\u180e\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u206f\\ufe00-\\ufe0f" +
    "\\ufeff\\ufff9-\\ufffb\\u{e0000}-\\u{e0fff}]",
    "gu",
);
const STRAIGHT = new Map([
    ["“", '"'], ["”", '"'], ["‐", "-"], ["‑", "-"], ["–", "--"], ["—", "--"], ["…", "..."],
    ["İ", "I"], // whose lower case is two characters
    ...[..."‘’ʼ´`"].map((mark) => [mark, "'"]),
]);
const LONGEST = 100; // characters of a word; what is longer is read as several words
const ENDS_SENTENCE = new Set([".", "!", "?"]);
const NO_SPACE_BEFORE = new Set([".", ",", "!", "?", ";", ":", ")", "]", "...", "'s", "%"]);
const NO_SPACE_AFTER = new Set(["(", "[", "$", "#"]);

class Tokenizer {
    static PAD = 0;
    static SOS = 1;
    static EOS = 2;
    static UNK = 3;

    /** words: all of them in the order of their ids, the four special tokens first. capitalized:
     * those that are names, for `decode`. */
    constructor(words, capitalized = []) {
        this.words = words;
        this.capitalized = new Set(capitalized);
        // A special token's spelling, typed in a text, is no special token.
        this.ids = new Map(words.map((word, id) => [word, id]).slice(Tokenizer.UNK + 1));
    }

    /** The lower-case words of a text, those outside the vocabulary too. */
    split(text) {
        const composed = text.replace(INVISIBLE, "").normalize("NFC");
        const straight = composed.replace(/[“”‐‑–—…İ‘’ʼ´`]/gu, (mark) => STRAIGHT.get(mark));
        const words = [];
        for (const [word] of straight.matchAll(TOKEN)) {
            if (word.length <= LONGEST) {
                words.push(word.toLowerCase());
                continue;
            }
            const characters = [...word]; // a character outside the first 65,536 is one, not two
            for (let start = 0; start < characters.length; start += LONGEST) {
                words.push(characters.slice(start, start + LONGEST).join("").toLowerCase());
            }
        }
        return words;
    }

    isKnown(word) {
        return this.ids.has(word);
    }

    /** The ids of a text's words, without special tokens; unknown words become `<unk>`. */
    encode(text) {
        return this.split(text).map((word) => this.ids.get(word) ?? Tokenizer.UNK);
    }

    /** Readable text, with spaces, quotes and capitals put back. after: ids that stand before. */
    decode(ids, after = []) {
        if (after.length) {
            return this.decode([...after, ...ids]).slice(this.decode(after).length).trimStart();
        }
        return this.join(ids.filter((id) => id >= Tokenizer.UNK).map((id) => this.words[id]));
    }

    join(words) {
        let text = "", gap = "", previous = "", quoteOpen = false, capital = true;
        for (const word of words) {
            const [initial = ""] = word, rest = word.slice(initial.length);
            const proper = this.capitalized.has(word) || word === "i" || word.startsWith("i'");
            const upper = capital || proper ? initial.toUpperCase() : initial;
            // Not for ß, whose capital would be read as ss.
            const shown = upper.toLowerCase() === initial ? upper + rest : word;
            const glued = NO_SPACE_BEFORE.has(word) || (word === '"' && quoteOpen);
            text += glued ? shown : gap + shown;
            if (word === '"') {
                // Speech starts a sentence. After it, `?" asked Mia` goes on; `." Mia` starts one.
                capital = !quoteOpen || previous === ".";
                quoteOpen = !quoteOpen;
            } else if (/^\p{L}/u.test(word) || ENDS_SENTENCE.has(word)) {
                capital = ENDS_SENTENCE.has(word);
            }
            gap = NO_SPACE_AFTER.has(word) || (word === '"' && quoteOpen) ? "" : " ";
            previous = word;
        }
        return text;
    }
}
