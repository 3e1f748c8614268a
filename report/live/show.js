"use strict";

// From what was computed to the screen. `shown` is the text as it was read last, `state` what the
// reader chose; nothing here changes either.

const headName = (number) => `${Math.floor(number / heads) + 1}.${(number % heads) + 1}`;

// A button that can do nothing now stays in the tab order, so that nobody loses their place.
const enable = (id, can) => { $(id).setAttribute("aria-disabled", !can); };
const isEnabled = (id) => $(id).getAttribute("aria-disabled") !== "true";

// First the words, and in a task of its own, so that no task is long, the heads.
let headsWait = false;
function show() {
    if (!shown) return;
    const names = ["start", ...shown.told], row = chosenRow();
    strip.show(wordsWithCosts(names), row);
    showNext(row, names);
    showVerdict();
    enable("all-on", state.off.size > 0);
    enable("step", !state.running && !shown.ended && !shown.full);
    enable("run", !state.running && !shown.ended && !shown.full);
    enable("stop", state.running);
    enable("back", state.count > 0);
    enable("again", state.count > 0 && $("rule").value === "draw");
    enable("try-each", !state.trying);
    const reading = readers(row), name = named(data.words[wordAfter(row)]);
    enable("readers-off", reading.some((head) => !state.off.has(head)));
    $("readers-off").textContent = `Switch off all that read ${name} (${reading.length})`;
    if (headsWait) return;
    headsWait = true;
    pause().then(() => {
        headsWait = false;
        showHeads();
    });
}

// The word under the pointer, or the chosen one, or the last that was read.
function chosenRow() {
    const last = shown.places.length - 1;
    return Math.min(state.hovered ?? state.chosen ?? last, last);
}

function showHeads() {
    const { places, told } = shown, names = ["start", ...told], row = chosenRow();
    const layer = Math.floor(state.head / heads), head = state.head % heads;
    grid.show(places, row, state.head, state.off);
    large.show(places, names.slice(0, places.length), row, layer, head);
    const off = state.off.has(state.head) ? " (switched off)" : "";
    $("large-title").textContent = `Head ${headName(state.head)}${off}`;
    $("reads").textContent = rowInWords(places, names, row, layer, head);
    $("strongest").textContent = strongestPairs(places, names, layer, head);
}

// What the word at a place costs under the model.
const ownCost = (place) => -Math.log(shown.chanceOf(place - 1, shown.ids[place]));

function wordsWithCosts(names) {
    const { judged, told, ended } = shown;
    const words = names.map((word, i) => ({
        word,
        known: i === 0 || i >= state.beginning.length || tokenizer.isKnown(word),
        written: i >= state.beginning.length,
        cost: i > 0 ? judged.nats[i - 1] ?? null : null,
        own: i > 0 ? ownCost(i) : null,
        broken: i > 0 && judged.brokenAt === i - 1,
    }));
    if (ended) {
        const cost = judged.nats[told.length] ?? null, broken = judged.brokenAt === told.length;
        words.push({ word: "end", known: true, written: true, cost, own: ownCost(told.length + 1), broken });
    }
    return words;
}

// The word that stands next in the text; after its end the one that the truth, or else the model,
// holds for the likeliest.
function wordAfter(row) {
    if (row + 1 < shown.ids.length) return shown.ids[row + 1];
    const truth = [...grammar.nextWords(shown.told.slice(0, row))];
    const id = data.words.indexOf(truth.sort((a, b) => b[1] - a[1])[0]?.[0]);
    return id < 0 ? greedy(shown.places[row].logits) : id;
}

function showNext(row, names) {
    const { ids, places, told, whole } = shown;
    const { logits, lens: lenses } = places[row];
    const truth = grammar.nextWords(told.slice(0, row));
    next.show({
        model: chances(logits),
        drawn: drawn(logits),
        whole: whole && chances(whole[row].logits),
        truth,
        came: ids[row + 1],
    });
    const before = names.slice(Math.max(0, row - 4), row + 1).join(" ");
    $("after").textContent = `After ${row > 4 ? "… " : ""}${before}`;
    $("tick").hidden = !whole;
    $("no-truth").textContent = truth.size ? "" : "The text has already left the grammar, so there is no truth here.";
    lens.show(lenses, wordAfter(row));
}

function showVerdict() {
    const { told, judged, ended, full } = shown, parts = [];
    if (judged.brokenAt !== null) {
        const word = named(told[judged.brokenAt] ?? "<eos>");
        const could = [...judged.possible].sort((a, b) => b[1] - a[1]);
        const list = could.slice(0, 5).map(([other, p]) => `${named(other)} ${percent(p)}`).join(", ");
        parts.push(`No story can have ${word} there. What could stand there: ${list}` +
            `${could.length > 5 ? `, and ${could.length - 5} others` : ""}.`);
    } else {
        const own = shown.ids.slice(1).reduce((sum, _, i) => sum + ownCost(i + 1), 0);
        const cost = judged.nats.slice(0, shown.ids.length - 1).reduce((a, b) => a + b, 0);
        parts.push(ended ? "This is a whole story of the grammar." : "So far the grammar could tell this.");
        parts.push(`Total cost${ended ? "" : " so far"}: ` +
            `${cost.toFixed(1)} nats under the grammar, ${own.toFixed(1)} under the model.`);
        if (own < cost) parts.push("On one text a model can be below the grammar, but not on average.");
    }
    const unknown = state.typed.filter((word) => !tokenizer.isKnown(word));
    if (unknown.length) parts.push(`Not in the vocabulary: ${unknown.map(quoted).join(", ")}.`);
    if (full && !ended) parts.push(`The model reads at most ${context} tokens, so this text ends here.`);
    $("verdict").textContent = parts.join(" ");
    showOther();
}

// What the model would write with all heads on.
function showOther() {
    const { written, others } = shown;
    const text = (ids) => tokenizer.decode(ids, state.beginning);
    let words = "";
    if (state.off.size && written.length) {
        words = others === null ? "…"
            : text(others) === text(written) ? "With all heads on, the model writes the same."
            : `With all heads on${$("rule").value === "greedy" ? "" : ", and the same random numbers"}: ` +
                `“${text(others)}${others.at(-1) === Tokenizer.EOS ? "" : " …"}”`;
    }
    $("other").textContent = words;
}

// For who cannot see it: what the model wrote, and what the grammar says.
function announce() {
    const text = tokenizer.decode(shown.written, state.beginning);
    $("written").textContent = `${text}${shown.ended ? " The end." : ""} ${$("verdict").textContent}`;
}

function showSettings() {
    for (const output of document.querySelectorAll("output")) {
        const input = $(output.getAttribute("for"));
        output.textContent = Number(input.value).toFixed(input.step === "0.1" ? 1 : 2);
    }
    for (const id of ["temperature", "top-k", "top-p"]) $(id).disabled = $("rule").value === "greedy";
}
