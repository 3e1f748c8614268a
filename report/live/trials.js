"use strict";

// Which heads matter here: what the text's words lose without each head, and which heads read the
// word that is to come.

const READS = 0.5; // the share of its weight that a head puts on a word which it is said to read

// Of each head the weight of a row on all copies of a word.
function weightOnCopies({ ids, places }, row, id) {
    const onCopies = (weights) => weights.reduce((sum, w, s) => sum + (ids[s] === id ? w : 0), 0);
    return places[row].attention.flat().map(onCopies);
}

// The heads that read earlier copies of the word that comes after a row.
function readers(row) {
    const weights = weightOnCopies(shown, row, wordAfter(row));
    return weights.flatMap((weight, head) => (weight > READS ? [head] : []));
}

// Switch off each head in turn and read the text again. Of each row and the word after it the
// probability as it is, and without each head: [{row, id, now, without}]; null if the reader asks for
// something else meanwhile. The chosen row's are written below the heads.
async function tryEach() {
    const { signal } = control, { ids, places } = shown, chosen = chosenRow();
    const rows = places.map((_, row) => {
        const id = wordAfter(row);
        return { row, id, now: shown.chanceOf(row, id), without: [] };
    });
    const trial = new Reading(model), all = layers * heads, { id, now, without } = rows[chosen];
    const before = state.off.size ? `With ${headsInWords(state.off)} off` : "With all heads on";
    const start = `${before}, ${named(data.words[id])} had ${percent(now)}`;
    tried = ids.slice(0, chosen + 1);
    state.trying = true;
    $("tried").setAttribute("aria-busy", "true");
    const read = (head) =>
        trial.follow(ids.slice(0, places.length), new Set([...state.off, head]), { signal });
    for (let head = 0; head < all && await read(head); head++) {
        for (const one of rows) one.without.push(chances(trial.places[one.row].logits)[one.id]);
        grid.showTried(without);
        $("tried").textContent = `${start}. Tried: ${without.length} of ${all} heads.`;
    }
    state.trying = false;
    $("tried").setAttribute("aria-busy", "false");
    show();
    if (without.length < all || signal.aborted) return null;
    const [worst, second] = largest(without.map((value) => -value), 2);
    $("tried").textContent = `${start}; without head ${headName(worst)} it had ` +
        `${percent(without[worst])}, without any other at least ${percent(without[second])}.`;
    showNeeds(rows);
    return rows;
}

// What was tried stays on the page as long as the words stand there after which it was tried.
let tried = [];
function forgetTrial() {
    if (tried.length && tried.every((id, i) => id === shown.ids[i])) return;
    grid.showTried([]);
    $("tried").textContent = "How likely is the next word without each head, one at a time?";
    $("needs").hidden = true;
}

const headsInWords = (off) => (off.size === 1 ? `head ${headName([...off][0])}` : `${off.size} heads`);

// The head without which a word has least.
const needed = ({ without }) => without.indexOf(Math.min(...without));

// The five words that lose most without one head.
function showNeeds(rows) {
    $("needs").hidden = false;
    const words = ["start", ...shown.told];
    $("needy").replaceChildren();
    const lost = rows.map((one) => one.now - one.without[needed(one)]);
    for (const i of largest(lost, 5).sort((a, b) => a - b)) {
        const { row, id, now, without } = rows[i], head = needed(rows[i]);
        const line = element($("needy"), "tr");
        const came = row + 1 < words.length && shown.ids[row + 1] === id;
        const word = came ? placed(words, row + 1) : named(data.words[id]);
        element(line, "th", { scope: "row" }, word);
        for (const text of [percent(now), headName(head), percent(without[head])]) element(line, "td", {}, text);
    }
}
