"use strict";

// Four things to look at: a beginning, what is chosen there, and what it shows. Every number in the
// sentences is read from what the page has just computed.

const SUNG =
    "Nora was a jolly kitten who had a silly ferret called Roly, and they had a playful song, " +
    '"Oloo nono wicka marra." Nora lost her way in the gloomy marsh. "';
const SOUNDS = 4; // of a song

// chosen: a row, counted from the end of the beginning. place: the section that it is about. words:
// after reading, and again after each head was tried, if `tries`; what `tryEach` found is passed then.
const TOURS = {
    song: {
        text: `${SUNG}Oloo nono wicka marra`,
        chosen: -3, // “nono”
        place: "large",
        words() {
            const end = shown.places.length, { nats } = shown.judged; // nats[i]: of row i + 1
            const again = Array.from({ length: SOUNDS }, (_, i) => end - SOUNDS - 1 + i);
            const first = shown.ids.indexOf(shown.ids[end - SOUNDS]);
            const costs = nats.slice(first - 1, first - 1 + SOUNDS);
            const later = again.map((row) => nats[row]);
            const own = again.map((row) => -Math.log(shown.chanceOf(row, shown.ids[row + 1])));
            const reads = again.map((row) => {
                const weights = weightOnCopies(shown, row, shown.ids[row + 1]);
                const [head] = largest(weights, 1), [from, to] = [row, row + 1].map(soundAt);
                return `at ${from}, head ${headName(head)} puts ${weights[head].toFixed(2)} on ${to}`;
            });
            return `A song. Its sounds are chosen at random: the first time they cost ${range(costs)} ` +
                `nats. When it is sung again they are certain: they cost ${range(later)}, and under the ` +
                `model ${range(own, 3)}. Before each of them, some head reads the same sound in the first ` +
                `singing: ${reads.join("; ")}.`;
        },
    },
    name: {
        text:
            "Tom was a busy boy who had a scruffy mole called Nibbs. Nibbs knew a sweet song, " +
            '"Trum sassa bimba pipi." At the concert, Tom forgot the tune. Then',
        place: "heads",
        tries: true,
        words(rows) {
            const row = shown.places.length - 1, count = readers(row).length;
            const name = named(data.words[wordAfter(row)]);
            const least = rows && percent(Math.min(...rows[row].without));
            return `A returning name. The friend’s name comes back. With all heads on, ${count} ` +
                `of ${layers * heads} put more than half of their weight on earlier copies of ${name}; ` +
                `head ${headName(state.head)} is shown large. ` +
                (rows ? `Without any one head ${name} keeps at least ${least}, because others stand ` +
                    "in. Now switch off all its readers, with the button above the heads." : "");
        },
    },
    head: {
        text: SUNG,
        greedy: true,
        chosen: -1,
        count: SOUNDS,
        place: "heads",
        tries: true,
        words(rows) {
            if (!rows) {
                return "A head that matters. The page switches off each head in turn, and writes " +
                    "below each how likely the next sound is without it.";
            }
            const sung = rows.slice(-SOUNDS - 1, -1).map((one) => {
                const head = needed(one);
                return `${quoted(data.words[one.id])} falls from ${percent(one.now)} to ` +
                    `${percent(one.without[head])} without head ${headName(head)}`;
            });
            return `A head that matters. These are the heads that the song’s sounds need most: ${sung.join("; ")}. ` +
                `Untick head ${headName(state.head)}, and the model writes its words again without ` +
                "it. The loss then shows what that costs on stories with a song (♪) and without.";
        },
    },
    hot: {
        text: "Once upon a time, there was a little",
        temperature: 1.8,
        count: Infinity, // up to the end, or the context
        place: "story",
        words() {
            return "A story that breaks. At temperature 1.8 the model samples unlikely words far more " +
                "often. The first one that no story could have there is framed in red, and below the " +
                "text stands what could have come instead. (If none is framed, choose “New random " +
                "numbers”.) Lower the temperature: with the same random numbers, does the story still " +
                "break, and where?";
        },
    },
};

const soundAt = (row) => quoted(data.words[shown.ids[row]]);

// The smallest and the largest of some costs, “2.4 to 2.8”, or the one number that both round to.
function range(costs, digits = 1) {
    const [low, high] = [Math.min(...costs), Math.max(...costs)].map((cost) => cost.toFixed(digits));
    return low === high ? low : `${low} to ${high}`;
}

async function tour(name, follow = true) {
    const { text, chosen, temperature = 1, count = 0, greedy: isGreedy, place, tries, words } = TOURS[name];
    for (const button of document.querySelectorAll("[data-tour]")) {
        button.setAttribute("aria-pressed", button.dataset.tour === name);
    }
    // In one column the words go to the place that they speak of, and the reader with them.
    const narrow = follow && matchMedia("(max-width: 959px)").matches;
    $(narrow ? place : "top")[narrow ? "prepend" : "append"]($("tour"));
    if (narrow) $("tour").scrollIntoView();
    $("typed").value = text;
    $("beginnings").selectedIndex = 0;
    $("rule").value = isGreedy ? "greedy" : "draw";
    $("top-k").value = "";
    $("top-p").value = 1;
    $("temperature").value = temperature;
    showSettings();
    state.off.clear();
    if (!await begin(text)) return;
    await pause();
    const end = shown.places.length;
    state.count = count;
    if (count && !await update()) return;
    const { brokenAt } = shown.judged;
    state.chosen = chosen === undefined ? (count ? brokenAt : null) : end + chosen;
    const row = chosenRow();
    [state.head] = largest(weightOnCopies(shown, row, wordAfter(row)), 1);
    show();
    announce();
    await pause();
    $("tour").textContent = words(null);
    const rows = tries ? await tryEach() : null;
    if (!rows) return;
    if (isGreedy) state.head = needed(rows[row]);
    show();
    $("tour").textContent = words(rows);
}
