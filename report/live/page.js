// The page: what a reader chooses, and what follows from it. One state, one way from the state to the screen.
//
// The text is a function of the beginning, the settings, the heads that are off, one random number for each place, and how many
// words the model may write. So whatever the reader changes, the text is written again, and differs because of that change alone.
"use strict";

const SUNG = 'Nora was a jolly kitten who had a silly ferret called Roly, and they had a playful song, "Oloo nono wicka marra." Nora lost her way in the gloomy marsh. "Oloo nono';
const TOURS = {
    song: {
        text: `${SUNG} wicka marra`,
        chosen: -3,
        words: "A song. Its sounds are drawn at random, so each costs about 2.5 nats when it is sung first. Sung again, it is certain: the true cost is 0.0, and the model is almost as sure. The large head reads the sound that comes next, where it stood the first time.",
    },
    name: {
        text: 'Tom was a busy boy who had a scruffy mole called Nibbs. Nibbs knew a sweet song, "Trum sassa bimba pipi." At the concert, Tom forgot the tune. Then',
        words: "A returning name. The name that comes next is told before, and many heads read it there: dark squares in the last row. Switch one of these heads off. The name stays likely, because the others stand in for it.",
    },
    head: {
        text: SUNG,
        tryEach: true,
        words: "A head that matters. The page switches off each head in turn, and writes below it how likely the next sound is without it. One of them carries the song. Untick it, write on, and see another song and a higher loss in the stories that have one.",
    },
    hot: {
        text: "Once upon a time, there was a little",
        temperature: 1.8,
        count: 40,
        words: "A story that breaks. At temperature 1.8 the model draws words that no story could have. The first is marked, and below the text stands what could have come there. Lower the temperature: with the same random numbers, the story breaks later, or not at all.",
    },
};

const data = JSON.parse($("data").textContent);
const tokenizer = new Tokenizer(data.words, data.capitalized);
const grammar = new Grammar(data.grammar);
const { layers, heads, context } = data.config;
const EXTRAS = { attention: true, lens: true };
const NONE = new Set();

const state = {
    typed: [], // the words of the beginning, those outside the vocabulary too
    beginning: [Tokenizer.SOS], // ids
    count: 0, // words that the model may write
    uniforms: [], // one for each place
    off: new Set(), // layer · heads + head
    head: 0, // the large one
    chosen: null, // the place of a word, null: the last
    hovered: null,
    running: false,
};
let shown = null; // what is on the screen: {ids, places, words, judged, ended, full}
let control = new AbortController(); // of the update in progress
let busy = false;
let model, main, same, plain, losses; // readings: the text; the same words, and the same beginning, with all heads on

const strip = new WordStrip($("words"), (place, how) => { state[how] = place; show(); });
const next = new NextWord($("distribution"), data.words);
const lens = new Lens($("lens"), data.words, layers);
const grid = new HeadGrid($("grid"), data.config, (number) => { state.head = number; show(); }, switchHead);
const large = new LargeHead($("picture"), (row) => { state.hovered = row; show(); });

function settings() {
    return { temperature: Number($("temperature").value), topK: Number($("top-k").value) || null, topP: Number($("top-p").value) };
}
function drawn(logits) {
    if ($("rule").value !== "greedy") return distribution(logits, settings());
    const only = new Float64Array(logits.length);
    only[greedy(logits)] = 1;
    return only;
}
const choose = (logits, uniform) => pick(drawn(logits), uniform);

// From the state to a text: read, write, then the same with all heads on, to compare with.
async function update() {
    control.abort();
    control = new AbortController();
    const { signal } = control, options = { signal, extras: EXTRAS };
    busy = true;
    const ids = await main.write(state.beginning, state.count, state.off, choose, state.uniforms, options);
    if (!ids) return false;
    keep(ids);
    show();
    if (state.off.size) {
        const read = ids.slice(0, shown.places.length);
        if (!await same.follow(read, NONE, { signal })) return false;
        const others = await plain.write(state.beginning, state.count, NONE, choose, state.uniforms, { signal });
        if (!others) return false;
        shown.whole = [...same.places];
        shown.others = others;
        show();
    }
    busy = false;
    return true;
}

function keep(ids) {
    const written = ids.slice(state.beginning.length);
    const ended = ids[ids.length - 1] === Tokenizer.EOS;
    const told = [...state.typed, ...written.filter((id) => id !== Tokenizer.EOS).map((id) => data.words[id])];
    const judged = grammar.judge(told, ended);
    shown = { ids, written, ended, told, judged, places: [...main.places], full: ids.length >= context, whole: null, others: null };
    grid.showTried([]);
    if (state.chosen >= shown.places.length) state.chosen = null;
}

// From what was computed to the screen.
function show() {
    if (!shown) return;
    const { ids, places, told, judged, ended } = shown;
    const row = Math.min(state.hovered ?? state.chosen ?? places.length - 1, places.length - 1);
    const names = ["start", ...told];
    const words = names.map((word, i) => ({
        word,
        known: i === 0 || i >= state.beginning.length || tokenizer.isKnown(word),
        written: i >= state.beginning.length,
        cost: i > 0 && i <= judged.nats.length ? judged.nats[i - 1] : null,
        broken: i > 0 && judged.brokenAt === i - 1,
    }));
    if (ended) {
        const broken = judged.brokenAt === told.length;
        words.push({ word: "end", known: true, written: true, cost: broken ? null : judged.nats[told.length] ?? null, broken });
    }
    strip.show(words, row);
    showNext(row, names);
    const layer = Math.floor(state.head / heads), head = state.head % heads;
    grid.show(places, row, state.head, state.off);
    large.show(places, names.slice(0, places.length), row, layer, head);
    $("large-title").textContent = `Head ${layer + 1}.${head + 1}${state.off.has(state.head) ? " (switched off)" : ""}`;
    $("reads").textContent = rowInWords(places, names, row, layer, head);
    $("strongest").textContent = strongestPairs(places, names, layer, head);
    $("all-on").disabled = !state.off.size;
    $("step").disabled = $("run").disabled = state.running || ended || shown.full;
    $("stop").disabled = !state.running;
    $("back").disabled = !state.count && !state.running;
    showVerdict(ids);
}

function showNext(row, names) {
    const { ids, places, told, whole } = shown;
    const { logits, lens: lenses } = places[row];
    const truth = grammar.nextWords(told.slice(0, row)), p = chances(logits), came = ids[row + 1];
    next.show({ model: p, drawn: drawn(logits), whole: whole?.[row] ? chances(whole[row].logits) : null, truth, came });
    $("after").textContent = `After ${row > 4 ? "… " : ""}${names.slice(Math.max(0, row - 4), row + 1).join(" ")}`;
    $("tick").hidden = !whole;
    $("no-truth").textContent = truth.size ? "" : "No story of the grammar begins so, so there is no truth to compare with.";
    const likeliest = [...truth].reduce((best, pair) => (pair[1] > best[1] ? pair : best), ["", 0])[0];
    const id = data.words.indexOf(likeliest);
    lens.show(lenses, id < 0 ? greedy(logits) : id);
}

function showVerdict(ids) {
    const { told, judged, ended, full, others, written } = shown;
    const unknown = state.typed.filter((word) => !tokenizer.isKnown(word)), parts = [];
    if (judged.brokenAt !== null) {
        const word = named(told[judged.brokenAt] ?? data.words[Tokenizer.EOS]);
        const could = [...judged.possible].sort((a, b) => b[1] - a[1]);
        const list = could.slice(0, 5).map(([other, p]) => `${named(other)} ${percent(p)}`).join(", ");
        parts.push(`No story can have ${word} there. What could stand there: ${list}${could.length > 5 ? ", …" : ""}.`);
    } else {
        const predicted = ids.slice(1);
        const own = predicted.reduce((sum, id, i) => sum - Math.log(chances(shown.places[i].logits)[id]), 0);
        const cost = judged.nats.slice(0, predicted.length).reduce((a, b) => a + b, 0);
        const state_ = ended ? "This is a whole story of the grammar." : "So far this could be a story.";
        parts.push(`${state_} Its words cost ${cost.toFixed(1)} nats in truth, and ${own.toFixed(1)} under the model.`);
    }
    if (unknown.length) parts.push(`Not in the vocabulary: ${unknown.map(quoted).join(", ")}.`);
    if (full && !ended) parts.push(`The model reads no more than ${context} tokens, and these are as many.`);
    $("verdict").textContent = parts.join(" ");
    const mine = tokenizer.decode(written, state.beginning), theirs = others && tokenizer.decode(others.slice(state.beginning.length), state.beginning);
    $("other").textContent = !state.off.size || !written.length ? "" : theirs === null ? "…"
        : theirs === mine ? "With all heads on, the model writes the same." : `With all heads on, and the same random numbers: “${theirs}”`;
}

// What a reader can do.
async function begin(text) {
    state.running = false;
    state.typed = tokenizer.split(text).slice(0, context - 1);
    state.beginning = [Tokenizer.SOS, ...tokenizer.encode(text).slice(0, context - 1)];
    state.count = 0;
    state.chosen = state.hovered = null;
    state.uniforms = Array.from({ length: context }, Math.random);
    return update();
}

const announce = () => { $("written").textContent = tokenizer.decode(shown.written, state.beginning) + (shown.ended ? " The end." : ""); };

async function writeOne() {
    state.count = shown.written.length + 1;
    state.chosen = null;
    return update();
}

async function run() {
    state.running = true;
    while (state.running && !shown.ended && !shown.full) {
        if (!await writeOne()) break;
        await new Promise((resolve) => { setTimeout(resolve, 60); });
    }
    state.running = false;
    show();
    announce();
}

async function switchHead(number, on) {
    if (on) state.off.delete(number);
    else state.off.add(number);
    state.head = number;
    losses.measure(new Set(state.off));
    await update();
}

async function allOn() {
    state.off.clear();
    losses.measure(new Set());
    await update();
}

// The probability of the next word without each head, one at a time.
async function tryEach() {
    const row = state.chosen ?? shown.places.length - 1, read = shown.ids.slice(0, row + 1), { signal } = control;
    const truth = [...grammar.nextWords(shown.told.slice(0, row))].sort((a, b) => b[1] - a[1])[0]?.[0];
    const id = Math.max(data.words.indexOf(truth), -1) < 0 ? greedy(shown.places[row].logits) : data.words.indexOf(truth);
    const name = named(data.words[id]), whole = chances(shown.places[row].logits)[id], values = [];
    const trial = new Reading(model);
    $("try-each").disabled = true;
    for (let number = 0; number < layers * heads && !signal.aborted; number++) {
        if (!await trial.follow(read, new Set([...state.off, number]), { signal })) break;
        values.push(chances(trial.last.logits)[id]);
        grid.showTried(values);
        $("tried").textContent = `${name} has ${percent(whole)}. Without each head, so far: ${values.length} of ${layers * heads}.`;
    }
    $("try-each").disabled = false;
    if (signal.aborted) return;
    const order = largest(values.map((value) => -value), 2), worst = order[0];
    $("tried").textContent = `${name} has ${percent(whole)}; without head ${Math.floor(worst / heads) + 1}.${worst % heads + 1} it has ${percent(values[worst])}, without any other at least ${percent(values[order[1]])}.`;
    state.head = worst;
    show();
}

// The head that looks most at earlier copies of what is likely to come.
function headThatReads(row) {
    const { attention, logits } = shown.places[row], id = greedy(logits);
    const sums = attention.flat().map((weights) => weights.reduce((sum, weight, s) => sum + (shown.ids[s] === id ? weight : 0), 0));
    return largest(sums, 1)[0];
}

async function tour(name) {
    const { text, chosen, temperature = 1, count = 0, tryEach: each, words } = TOURS[name];
    for (const button of document.querySelectorAll("[data-tour]")) button.setAttribute("aria-pressed", button.dataset.tour === name);
    $("tour").textContent = words;
    $("typed").value = text;
    $("beginnings").selectedIndex = 0;
    $("rule").value = "draw";
    $("top-k").value = "";
    $("top-p").value = 1;
    $("temperature").value = temperature;
    showSettings();
    if (state.off.size) {
        state.off.clear();
        losses.measure(new Set());
    }
    if (!await begin(text)) return;
    state.chosen = chosen ? shown.places.length + chosen : null;
    state.head = headThatReads(state.chosen ?? shown.places.length - 1);
    state.count = count;
    if (count && !await update()) return;
    show();
    announce();
    if (each) await tryEach();
}

function showSettings() {
    for (const output of document.querySelectorAll("output")) {
        const input = $(output.getAttribute("for"));
        output.textContent = Number(input.value).toFixed(input.step === "0.1" ? 1 : 2);
    }
    for (const id of ["temperature", "top-k", "top-p"]) $(id).disabled = $("rule").value === "greedy";
}

function listen() {
    const on = (id, event, act) => $(id).addEventListener(event, act);
    let timer;
    on("typed", "input", () => {
        clearTimeout(timer);
        timer = setTimeout(() => begin($("typed").value), 200);
        $("beginnings").selectedIndex = 0;
    });
    on("beginnings", "change", () => {
        $("typed").value = data.beginnings[$("beginnings").selectedIndex - 1] ?? "";
        begin($("typed").value);
    });
    on("step", "click", async () => { if (await writeOne()) announce(); });
    on("run", "click", run);
    on("stop", "click", () => { state.running = false; });
    on("back", "click", () => begin($("typed").value));
    on("all-on", "click", allOn);
    on("try-each", "click", tryEach);
    for (const id of ["rule", "temperature", "top-k", "top-p"]) {
        on(id, "input", showSettings);
        on(id, "change", update);
    }
    for (const button of document.querySelectorAll("[data-tour]")) button.addEventListener("click", () => tour(button.dataset.tour));
    addEventListener("resize", show);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { show(); losses.show(); });
}

async function open() {
    const { stories, bf16_nats: before, int8_nats: after } = data.rounding;
    $("rounding").textContent = `The weights are stored as whole numbers of 8 bits, with one scale for each row of a matrix. That costs ${(after - before).toPrecision(2)} nats a word on ${stories.toLocaleString("en-GB")} held-out stories: ${before.toFixed(5)} before, ${after.toFixed(5)} after.`;
    $("size").textContent = `with all its ${data.config.parameters.toLocaleString("en-GB")} weights`;
    for (const text of data.beginnings) element($("beginnings"), "option", {}, text || "(nothing: the model begins by itself)");
    showSettings();
    model = await Model.load(data, $("weights").textContent, pause);
    [main, same, plain] = [new Reading(model), new Reading(model), new Reading(model)];
    const texts = data.stories.map((ids) => `${tokenizer.decode(ids.slice(0, 12))} …`);
    const costs = data.stories.map((ids) => grammar.judge(ids.slice(1, -1).map((id) => data.words[id]), true).nats.reduce((a, b) => a + b, 0));
    losses = new Losses(model, data.stories, costs, texts, () => busy || state.running);
    listen();
    await tour("song");
    losses.measure(new Set());
}

open();
