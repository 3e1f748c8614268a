"use strict";

// Four things to look at: a beginning, what is chosen there, and what it shows.

const SUNG =
    "Nora was a jolly kitten who had a silly ferret called Roly, and they had a playful song, " +
    '"Oloo nono wicka marra." Nora lost her way in the gloomy marsh. "Oloo nono';

const TOURS = {
    song: {
        text: `${SUNG} wicka marra`,
        chosen: -3, // counted from the end: “nono”
        words:
            "A song. Its sounds are drawn at random, so each costs about 2.5 nats when it is sung first. " +
            "Sung again, it is certain: the true cost is 0.0, and the model is almost as sure. The large " +
            "head reads the sound that comes next, where it stood the first time.",
    },
    name: {
        text:
            "Tom was a busy boy who had a scruffy mole called Nibbs. Nibbs knew a sweet song, " +
            '"Trum sassa bimba pipi." At the concert, Tom forgot the tune. Then',
        words:
            "A returning name. The friend's name comes back, and many heads read it where it stood: the " +
            "strong squares of the last row. Switch one of these heads off. The name stays likely, " +
            "because the others stand in for it.",
    },
    head: {
        text: SUNG,
        tryEach: true,
        words:
            "A head that matters. The page switches off each head in turn, and writes below it how likely " +
            "the next sound is without it. One of them carries the song. Untick it, write on, and see " +
            "another song, and a higher loss on the stories that have one.",
    },
    hot: {
        text: "Once upon a time, there was a little",
        temperature: 1.8,
        count: 40,
        words:
            "A story that breaks. At temperature 1.8 the model draws words that no story could have. The " +
            "first is marked, and below the text stands what could have come there. Lower the " +
            "temperature, and see with the same random numbers where it breaks, or whether it does.",
    },
};

// The head that looks most at earlier copies of the word that is likeliest to come after a row.
function headThatReads({ ids, places }, row) {
    const { attention, logits } = places[row];
    const id = greedy(logits);
    const onCopies = (weights) => weights.reduce((sum, w, s) => sum + (ids[s] === id ? w : 0), 0);
    return largest(attention.flat().map(onCopies), 1)[0];
}

async function tour(name) {
    const { text, chosen, temperature = 1, count = 0, tryEach: each, words } = TOURS[name];
    for (const button of document.querySelectorAll("[data-tour]")) {
        button.setAttribute("aria-pressed", button.dataset.tour === name);
    }
    $("tour").textContent = words;
    $("typed").value = text;
    $("beginnings").selectedIndex = 0;
    $("rule").value = "draw";
    $("top-k").value = "";
    $("top-p").value = 1;
    $("temperature").value = temperature;
    showSettings();
    state.off.clear();
    if (!await begin(text)) return;
    await pause();
    const row = shown.places.length + (chosen ?? -1);
    state.chosen = chosen === undefined ? null : row;
    state.head = headThatReads(shown, row);
    state.count = count;
    if (count && !await update()) return;
    show();
    announce();
    if (each) await tryEach();
}
