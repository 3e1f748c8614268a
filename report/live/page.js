"use strict";

// The page: what a reader chooses, and what follows from it.
//
// The text is a function of the beginning, the settings, the heads that are off, one random number
// for each place, and how many words the model may write. So whatever the reader changes, the text
// is written again, and differs because of that change alone.

const data = JSON.parse($("data").textContent);
const tokenizer = new Tokenizer(data.words, data.capitalized);
const { layers, heads, context } = data.config;
const NONE = new Set();

const state = {
    typed: [], // the words of the beginning, those outside the vocabulary too
    beginning: [Tokenizer.SOS], // their ids
    count: 0, // words that the model may write
    uniforms: [], // a random number for each place
    off: new Set(), // layer · heads + head
    head: 0, // the large one
    chosen: null, // the place of a word; null: the last
    hovered: null,
    running: false,
    trying: false,
};
let shown = null; // the text on the screen, and what was computed of it: see `keep`
let control = new AbortController(); // of the update in progress
let model, grammar, losses;
let main, same, plain; // readings: the text; the same words, and the same beginning, with all heads on

const strip = new WordStrip($("words"), (place, how) => {
    state[how] = place;
    show();
});
const next = new NextWord($("distribution"), data.words);
const lens = new Lens($("lens"), data.words, layers);
const grid = new HeadGrid($("grid"), data.config, (number) => {
    state.head = number;
    show();
}, switchHead);
const large = new LargeHead($("picture"), (row) => {
    state.hovered = row;
    show();
});

// The probabilities that the next word is drawn from, and the word on which a number falls.
function drawn(logits) {
    if ($("rule").value !== "greedy") {
        return distribution(logits, {
            temperature: Number($("temperature").value),
            topK: Number($("top-k").value) || null,
            topP: Number($("top-p").value),
        });
    }
    const only = new Float64Array(logits.length);
    only[greedy(logits)] = 1;
    return only;
}
const choose = (logits, uniform) => pick(drawn(logits), uniform);

// From the state to a text: read, write, then the same with all heads on, to compare with. False if
// the reader asked for something else before it was done.
async function update() {
    control.abort();
    control = new AbortController();
    const { signal } = control, extras = { attention: true, lens: true };
    $("words").setAttribute("aria-busy", "true");
    const write = (reading, off, options) =>
        reading.write(state.beginning, state.count, off, choose, state.uniforms, { signal, ...options });
    const ids = await write(main, state.off, { extras });
    await pause();
    if (!ids || signal.aborted) return false;
    keep(ids);
    show();
    losses.measure(state.off); // goes on beside what follows
    if (state.off.size) {
        const read = ids.slice(0, shown.places.length);
        if (!await same.follow(read, NONE, { signal })) return false;
        const others = await write(plain, NONE);
        if (!others) return false;
        shown.whole = same.places.slice(0, read.length);
        shown.others = others.slice(state.beginning.length);
        show();
    }
    $("words").setAttribute("aria-busy", "false");
    return true;
}

function keep(ids) {
    const written = ids.slice(state.beginning.length), ended = ids.at(-1) === Tokenizer.EOS;
    const words = written.filter((id) => id !== Tokenizer.EOS).map((id) => data.words[id]);
    const told = [...state.typed, ...words];
    const places = main.places.slice(0, ids.length - ended); // <eos> is not read
    const kept = places.map(() => null); // probabilities, once they are asked for
    shown = {
        ids, places, written, told, ended,
        judged: grammar.judge(told, ended),
        full: ids.length >= context,
        whole: null, // the same places with all heads on, if some are off
        others: null, // what the model writes with all heads on
        chanceOf: (place, id) => (kept[place] ??= chances(places[place].logits))[id],
    };
    if (state.chosen >= places.length) state.chosen = null;
    forgetTrial();
}

// What a reader can do.

const randomNumbers = () => Array.from({ length: context }, Math.random);

async function begin(text) {
    Object.assign(state, { running: false, count: 0, chosen: null, hovered: null });
    state.typed = tokenizer.split(text).slice(0, context - 1);
    state.beginning = [Tokenizer.SOS, ...tokenizer.encode(text).slice(0, context - 1)];
    state.uniforms = randomNumbers();
    return update();
}

async function writeOne() {
    state.count = shown.written.length + 1;
    state.chosen = null;
    return update();
}

async function run() {
    state.running = true;
    while (state.running && !shown.ended && !shown.full) {
        await writeOne(); // or whatever the reader has asked for meanwhile
        await sleep(60);
    }
    state.running = false;
    show();
    announce();
}

async function switchHead(number, on) {
    if (on) state.off.delete(number);
    else state.off.add(number);
    state.head = number;
    if (await update()) announce();
}

async function allOn() {
    state.off.clear();
    if (await update()) announce();
}

// The heads that read the word to come, all at once.
async function readersOff() {
    for (const head of readers(chosenRow())) state.off.add(head);
    if (await update()) announce();
}

async function again() {
    state.uniforms = randomNumbers();
    if (await update()) announce();
}

function listen() {
    const on = (id, event, act) => $(id).addEventListener(event, act);
    const press = (id, act) => on(id, "click", () => { if (isEnabled(id)) act(); });
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
    press("step", async () => { if (await writeOne()) announce(); });
    press("run", run);
    press("stop", () => { state.running = false; });
    press("back", () => begin($("typed").value));
    press("all-on", allOn);
    press("try-each", async () => {
        const row = chosenRow(), rows = await tryEach();
        if (!rows) return;
        state.head = needed(rows[row]);
        show();
    });
    press("readers-off", readersOff);
    press("again", again);
    for (const id of ["rule", "temperature", "top-k", "top-p"]) {
        on(id, "input", showSettings);
        on(id, "change", async () => { if (await update()) announce(); });
    }
    for (const button of document.querySelectorAll("[data-tour]")) {
        button.addEventListener("click", () => tour(button.dataset.tour));
    }
    addEventListener("resize", () => { show(); losses.show(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => losses.show());
}

async function open() {
    const { stories, bf16_nats: before, int8_nats: after } = data.rounding;
    $("rounding").textContent = "The weights are stored as whole numbers of 8 bits, with one scale for " +
        `each row of a matrix. On ${stories} held-out stories, the twenty above among them, that changes the loss by ` +
        `${(after.toFixed(5) - before.toFixed(5)).toFixed(5)} nats a word, from ${before.toFixed(5)} to ${after.toFixed(5)}.`;
    $("size").textContent = `with all its ${data.config.parameters.toLocaleString("en-GB")} weights`;
    for (const text of data.beginnings) {
        element($("beginnings"), "option", {}, text || "(nothing: the model begins by itself)");
    }
    showSettings();
    await pause();
    grammar = new Grammar(data.grammar);
    model = await Model.load(data, $("weights").textContent, pause);
    [main, same, plain] = [new Reading(model), new Reading(model), new Reading(model)];
    await pause();
    losses = new Losses(model, data, tokenizer, grammar);
    listen();
    await pause();
    await tour("song", false);
}

open();
