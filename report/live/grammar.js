"use strict";

// The grammar of the bundled stories, as helpers/grammar.py reads a text with it. The words so far
// always tell every random choice so far, so the probability of the next word is known exactly.
//
// Python compiles the grammar's file to a table: for each rule, rows of options
// {weight, key, items}. An item is a list of words, or the name of another rule, a slot.

/** Options of which one is drawn, and what each word of their heads costs.
 *
 * A head is the words before an option's first slot. Options may share their first words ("in the
 * tree", "in the barn"): a word's probability is the weight of the options that agree up to it,
 * divided by the weight of those that agree up to the word before.
 */
class Choice {
    constructor(options) {
        this.options = options;
        this.total = options.reduce((sum, option) => sum + option.weight, 0);
        this.nodes = new Map(); // beginning of a head -> {weight, the first option, next words}
        options.forEach((option, index) => {
            option.head.forEach((word, place) => {
                const beginning = option.head.slice(0, place + 1).join(" ");
                const node = this.nodes.get(beginning) ?? { weight: 0, index, next: new Set() };
                this.nodes.set(beginning, node);
                node.weight += option.weight;
                if (place + 1 < option.head.length) node.next.add(option.head[place + 1]);
            });
        });
    }

    /** -log p of each word of an option's head; of an option without a head, of the option. */
    nats({ head, weight }) {
        if (!head.length) return [Math.log(this.total / weight)];
        let before = this.total;
        return head.map((_, place) => {
            const { weight: after } = this.nodes.get(head.slice(0, place + 1).join(" "));
            const nats = Math.log(before / after);
            before = after;
            return nats;
        });
    }

    /** The number of an option that shares the most first words with these; -1 if none does. */
    closest(words) {
        let index = -1;
        for (let end = 1; end <= words.length; end++) {
            const node = this.nodes.get(words.slice(0, end).join(" "));
            if (!node) break;
            index = node.index;
        }
        return index;
    }

    /** The distribution of the word after these, with which at least one head begins. */
    after(words) {
        const beginning = words.join(" "), { weight, next } = this.nodes.get(beginning);
        const chance = (word) => this.nodes.get(`${beginning} ${word}`).weight / weight;
        return new Map([...next].map((word) => [word, chance(word)]));
    }
}

class Grammar {
    static END = "<eos>";

    constructor(table) {
        this.rules = new Map();
        for (const [name, { remembered, keyRule, always, rows }] of Object.entries(table)) {
            const choices = new Map(), every = [];
            for (const [row, options] of Object.entries(rows)) {
                const made = options.map(([weight, key, items]) => {
                    const head = Array.isArray(items[0]) ? items[0] : [];
                    return { weight, key, items, head };
                });
                choices.set(row, new Choice(made));
                every.push(...made);
            }
            if (always) choices.set(null, new Choice(every)); // while keyRule has no value yet
            this.rules.set(name, { remembered, keyRule, choices });
        }
    }

    /** The exact distribution of the word after these, and of `<eos>`: Map word -> probability.
     * Empty if no story begins so. */
    nextWords(words) {
        const { brokenAt, possible } = this.judge(words, false);
        return brokenAt === null ? possible : new Map();
    }

    /** The true -log p of each word, up to the first that no story could have there.
     *
     * ended: whether the text ends after these words. possible: what could stand at `brokenAt`, or
     * else after the last word. complete: whether the words are a whole story.
     */
    judge(words, ended = false) {
        const text = ended ? [...words, Grammar.END] : words, nats = [];
        let possible = new Map();
        const follow = (choice, name, values) => {
            const ahead = text.slice(nats.length);
            let index = choice.closest(ahead);
            if (index < 0 && ahead.length) index = this.ledBy(choice, ahead[0], values);
            if (index < 0) possible = this.first(name, values);
            return index;
        };
        for (const { words: expected, nats: steps, choice } of this.walk(follow)) {
            let same = 0;
            while (same < expected.length && expected[same] === text[nats.length]) {
                nats.push(steps[same]);
                same += 1;
            }
            if (same < expected.length) {
                const read = expected.slice(0, same);
                possible = choice ? choice.after(read) : new Map([[expected[same], 1]]);
                break;
            }
        }
        const brokenAt = nats.length < text.length ? nats.length : null;
        const open = [...possible.keys()].some((word) => word !== Grammar.END);
        const complete = brokenAt === null && !open;
        if (complete && possible.size) nats.push(0); // after the last word the end is certain
        return { nats, brokenAt, possible, complete };
    }

    /** A story piece by piece: its words, their nats, and the choice whose head they are.
     *
     * choose: a choice, its rule's name and the remembered options -> the number of an option, or
     * -1 to stop. Rules wait on a stack, so that what stands first in an option comes first.
     */
    *walk(choose) {
        const values = new Map(), waiting = ["story"];
        let pending = 0; // -log p of the choices made since the last word
        let head = null;
        while (waiting.length) {
            const item = waiting.pop();
            if (typeof item === "string") {
                let option = values.get(item);
                if (!option) {
                    const choice = this.choice(item, values), index = choose(choice, item, values);
                    if (index < 0) return;
                    option = choice.options[index];
                    const nats = choice.nats(option);
                    if (this.rules.get(item).remembered) values.set(item, option);
                    head = option.head.length ? { choice, nats } : null;
                    if (!head) pending += nats[0];
                }
                waiting.push(...option.items.toReversed());
                continue;
            }
            const nats = head ? [...head.nats] : item.map(() => 0);
            nats[0] += pending;
            pending = 0;
            yield { words: item, nats, choice: head?.choice ?? null };
            head = null;
        }
        yield { words: [Grammar.END], nats: [pending], choice: null }; // nothing is drawn any more
    }

    /** The distribution of the first word of a rule. */
    first(name, values) {
        if (values.has(name)) return new Map([[values.get(name).head[0], 1]]);
        const choice = this.choice(name, values), words = new Map();
        for (const { head, items, weight } of choice.options) {
            const inner = head.length ? [[head[0], 1]] : this.first(items[0], values);
            for (const [word, chance] of inner) {
                words.set(word, (words.get(word) ?? 0) + (chance * weight) / choice.total);
            }
        }
        return words;
    }

    /** The number of the option whose first slot can begin with this word, or -1. */
    ledBy(choice, word, values) {
        return choice.options.findIndex(
            ({ head, items }) => !head.length && this.first(items[0], values).has(word),
        );
    }

    /** The row of a rule that is open, given what is remembered. */
    choice(name, values) {
        const { keyRule, choices } = this.rules.get(name);
        return choices.get(values.get(keyRule)?.key ?? null);
    }
}
