"use strict";

// What the page says in words and bars: each word with its true cost, the next word's two
// distributions, the lens.

const ROWS = 12; // words of the distribution that are shown
const DEAREST = 4; // nats: the cost at which a word's ground is darkest

const $ = (id) => document.getElementById(id);
const quoted = (word) => (word === '"' ? "the quotation mark" : `“${word}”`);
function percent(p) {
    if (p > 0 && p < 0.0005) return "<0.1%";
    return `${(100 * p).toFixed(p > 0.9995 ? 0 : 1)}%`;
}
const SPELT = { "<sos>": "start", "<eos>": "end", "<unk>": "(unknown)", "<pad>": "(padding)" };
// A word, and where it stands if it stands there more than once.
function placed(words, place) {
    const isOnly = words.indexOf(words[place]) === words.lastIndexOf(words[place]);
    return quoted(words[place]) + (isOnly ? "" : ` (word ${place})`);
}
const shownWord = (word) => SPELT[word] ?? word;

const named = (word) => (word === "<eos>" ? "the end" : quoted(shownWord(word)));

// The model's own probabilities of all ids, in doubles.
const chances = (logits) => softmax(Float64Array.from(logits));

// The places of the largest values, largest first.
function largest(values, count) {
    const ids = [];
    for (let id = 0; id < values.length; id++) {
        if (ids.length === count && values[id] <= values[ids[count - 1]]) continue;
        let place = ids.length;
        while (place > 0 && values[ids[place - 1]] < values[id]) place--;
        ids.splice(place, 0, id);
        if (ids.length > count) ids.pop();
    }
    return ids;
}

// The words that were read, each a button above its true cost. Only what is new or changed is touched.
class WordStrip {
    constructor(place, onChoose) {
        this.place = place;
        const index = (event) => [...place.children].indexOf(event.target.closest("button"));
        place.addEventListener("click", (event) => {
            if (index(event) >= 0) onChoose(index(event), "chosen");
        });
        place.addEventListener("pointerover", (event) => {
            if (event.pointerType === "mouse") onChoose(index(event) < 0 ? null : index(event), "hovered");
        });
        place.addEventListener("pointerleave", () => onChoose(null, "hovered"));
        place.addEventListener("keydown", (event) => {
            const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e3, End: 1e3 }[event.key];
            if (!step) return;
            event.preventDefault();
            const count = place.children.length - 1;
            const to = Math.min(Math.max(index(event) + step, 0), count);
            onChoose(to, "chosen");
            place.children[to].focus();
        });
    }

    // words: [{word, known, written, cost (null: none is known), own (the model's), broken}]; chosen: the place of the
    // word whose next one is shown.
    show(words, chosen) {
        while (this.place.children.length > words.length) this.place.lastChild.remove();
        words.forEach(({ word, known, written, cost, own, broken }, i) => {
            let button = this.place.children[i];
            if (!button) {
                button = element(this.place, "button", { type: "button" });
                element(button, "span");
                element(button, "small", { class: "true" });
                element(button, "small", { class: "own" });
            }
            const labels = [word, broken ? "impossible" : cost?.toFixed(1) ?? (i ? "–" : ""), own?.toFixed(1) ?? ""];
            const kinds = Object.entries({ written, unknown: !known, broken });
            const named = kinds.filter(([, is]) => is).map(([kind]) => kind).join(" ");
            [...button.children].forEach((part, k) => {
                if (part.textContent !== labels[k]) part.textContent = labels[k];
            });
            if (button.className !== named) button.className = named;
            const share = Math.min((cost ?? 0) / DEAREST, 1);
            button.style.setProperty("--share", `${(100 * share).toFixed(0)}%`);
            button.tabIndex = i === chosen ? 0 : -1;
            if (i === chosen) button.setAttribute("aria-current", "true");
            else button.removeAttribute("aria-current");
            if (known) button.removeAttribute("title");
            else button.title = "not in the vocabulary: the model reads “unknown word”";
        });
    }
}

// The next word: the model's probabilities, the truth, and what the settings leave to draw from.
class NextWord {
    constructor(place, words) {
        this.words = words;
        this.rows = Array.from({ length: ROWS + 1 }, (_, i) => {
            const row = element(place, "tr", i === ROWS ? { class: "rest" } : {});
            const word = element(row, "th", { scope: "row" });
            const bars = element(row, "td", { class: "bars" });
            const [model, truth] = ["model", "truth"].map((kind) => {
                const bar = element(bars, "div", { class: `bar ${kind}` });
                return element(bar, "i");
            });
            const mark = element(model.parentElement, "b", { hidden: "" });
            const numbers = Array.from({ length: 3 }, () => element(row, "td"));
            return { row, word, model, truth, mark, numbers };
        });
    }

    // model, drawn, whole: probabilities of all ids; whole, with all heads on, is null if they are.
    // truth: Map of words, empty if there is none. came: the id that stands next in the text, if any.
    show({ model, drawn, whole, truth, came }) {
        const ids = new Map(this.words.map((word, id) => [word, id]));
        const judged = truth.size > 0;
        const real = new Float64Array(model.length);
        for (const [word, p] of truth) if (ids.has(word)) real[ids.get(word)] += p;
        const weight = model.map((p, id) => p + real[id] + (id === came ? 3 : 0));
        const byBoth = (a, b) => model[b] + real[b] - model[a] - real[a];
        const shown = largest(weight, ROWS).sort(byBoth), all = whole ?? model;
        const rest = (values) => Math.max(0, 1 - shown.reduce((sum, id) => sum + values[id], 0));
        this.rows.forEach(({ row, word, model: bar, truth: trueBar, mark, numbers }, i) => {
            const id = shown[i], of = (values) => (i < ROWS ? values[id] : rest(values));
            word.textContent = i < ROWS ? shownWord(this.words[id]) : `${(model.length - ROWS).toLocaleString("en-GB")} others`;
            if (id !== undefined && id === came) word.textContent = `→ ${word.textContent}`;
            word.title = id === came ? "the word that stands next in the text" : "";
            bar.style.width = `${100 * of(model)}%`;
            trueBar.style.width = judged ? `${100 * of(real)}%` : "0";
            mark.hidden = !whole || of(all) < 0.005;
            mark.style.left = `calc(${100 * of(all)}% - 1px)`;
            row.title = whole ? `with all heads on: ${percent(of(all))}` : "";
            numbers[0].textContent = percent(of(model));
            numbers[1].textContent = judged ? percent(of(real)) : "–";
            numbers[2].textContent = percent(of(drawn));
        });
    }
}

// The logit lens: the likeliest words after each layer, and the rank of one word among all.
class Lens {
    constructor(place, words, layers) {
        this.words = words;
        this.rows = Array.from({ length: layers + 1 }, (_, i) => {
            const row = element(place, "tr");
            element(row, "th", { scope: "row" }, i ? `layer ${i}` : "embedding");
            return { likeliest: element(row, "td"), rank: element(row, "td") };
        });
    }

    // lens: [layer + 1] logits; id: the word whose rank is told.
    show(lens, id) {
        const name = quoted(shownWord(this.words[id]));
        const above = (logits) => logits.reduce((count, score) => count + (score > logits[id]), 0);
        const ranks = lens.map((logits) => 1 + above(logits));
        lens.forEach((logits, i) => {
            const p = chances(logits);
            const { likeliest, rank } = this.rows[i];
            likeliest.replaceChildren();
            for (const other of largest(p, 4)) {
                const kind = other === id ? { class: "first" } : {};
                const part = element(likeliest, "span", kind, `${shownWord(this.words[other])} `);
                element(part, "small", {}, percent(p[other]));
                likeliest.append(" ");
            }
            rank.textContent = ranks[i].toLocaleString("en-GB");
        });
        $("lens-word").textContent = `rank of ${name}`;
        let first = ranks.length;
        while (first > 0 && ranks[first - 1] === 1) first--;
        const where = first ? `layer ${first}` : "the embedding";
        $("enters").textContent = first === ranks.length
            ? `${name} is not the model's first choice, even after the last layer.`
            : `${name} comes first after ${where}${first + 1 < ranks.length ? ", and stays there" : ""}.`;
    }
}
