"use strict";

// The loss on twenty stories that the model has not seen, first with all heads, then with those that
// are on. A story's figure appears as soon as it is there. What the same words cost under the
// grammar is the floor: no model can be below it on average.

class Losses {
    constructor(model, { stories, words }, tokenizer, grammar) {
        Object.assign(this, { model, stories });
        this.tokens = stories.map((ids) => ids.length - 1); // predicted ones
        const costs = stories.map((ids) => grammar.judge(ids.slice(1, -1).map((id) => words[id]), true).nats);
        // Nats per token of each story: under the grammar, with all heads, with those that are on now.
        this.floor = costs.map((nats, i) => nats.reduce((a, b) => a + b, 0) / this.tokens[i]);
        this.whole = [];
        this.now = [];
        this.off = new Set();
        this.sung = stories.map(hasSong);
        this.rows = stories.map((ids, i) => {
            const row = element($("loss-table"), "tr");
            const words = `${tokenizer.decode(ids.slice(0, 12))} …`;
            element(row, "th", { scope: "row" }, `${i + 1} ${this.sung[i] ? "♪ " : ""}${words}`);
            return Array.from({ length: 3 }, () => element(row, "td"));
        });
    }

    // Measure with these heads off; before that with all of them on, if this is not yet known. A later
    // call with other heads ends this one.
    async measure(off) {
        const unchanged = off.size === this.off.size && [...off].every((head) => this.off.has(head));
        if (this.control && unchanged) return;
        this.control?.abort();
        const { signal } = (this.control = new AbortController());
        this.off = new Set(off);
        this.now = [];
        this.show();
        if (this.whole.length < this.stories.length) await this.run(NONE, this.whole, signal);
        if (this.off.size && !signal.aborted) await this.run(this.off, this.now, signal);
    }

    async run(off, found, signal) {
        found.length = 0;
        const onStory = (story, { nats, tokens }) => {
            if (signal.aborted) return;
            found[story] = nats / tokens;
            this.show();
        };
        try {
            await this.model.storyLosses(this.stories, { off, pause, onStory, signal });
        } catch (error) {
            if (!signal.aborted) throw error;
        }
    }

    // Nats per token of the stories with these numbers.
    mean(values, which) {
        const sum = (number) => which.reduce((total, i) => total + number(i), 0);
        return sum((i) => values[i] * this.tokens[i]) / sum((i) => this.tokens[i]);
    }

    // Before all stories are done, beside them stands what the same stories cost otherwise.
    show() {
        const { floor, whole, now, off, sung } = this, all = [...floor.keys()];
        const expected = off.size ? now : whole, some = all.slice(0, expected.length);
        const isDone = some.length === all.length;
        const mean = (values, which) => this.mean(values, which).toFixed(3);
        const parts = [`The grammar: ${mean(floor, all)} nats per word, on average the lowest possible.`];
        if (whole.length === all.length) parts.push(`The model with all heads: ${mean(whole, all)}.`);
        const who = off.size ? `Without ${headsInWords(off)}` : "The model with all heads";
        const [other, name] = off.size && whole.length ? [whole, "all heads"] : [floor, "the grammar"];
        if (off.size && isDone) {
            const [songs, others] = [true, false].map((is) => all.filter((i) => sung[i] === is));
            const change = (which) =>
                (this.mean(now, which) - this.mean(whole, which)).toFixed(3).replace(/^(?!-)/, "+");
            parts.push(`${who}: ${mean(now, all)}; that is ${change(songs)} nats on the ${songs.length} ` +
                `stories with a song (♪), and ${change(others)} on the others.`);
        } else if (some.length && !isDone) {
            parts.push(`${who}, ${some.length} of ${all.length} stories so far: ${mean(expected, some)}; ` +
                `${name} on the same stories: ${mean(other, some)}.`);
        } else if (!isDone) parts.push(`${who}: …`);
        $("loss-words").setAttribute("aria-busy", !isDone);
        $("loss-words").textContent = parts.join(" ");
        $("off-legend").hidden = !off.size;
        this.rows.forEach((cells, i) => {
            [floor, whole, now].forEach((values, k) => {
                cells[k].textContent = values[i]?.toFixed(3) ?? "–";
            });
        });
        this.draw();
    }

    // Bars from the grammar's cost, the line at 0, to the model's.
    draw() {
        const canvas = $("loss-picture"), { clientWidth: width, clientHeight: height } = canvas;
        const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
        Object.assign(canvas, { width: width * ratio, height: height * ratio });
        context.scale(ratio, ratio);
        const style = getComputedStyle(document.documentElement);
        const ink = (name) => { context.fillStyle = style.getPropertyValue(`--${name}`); };
        const above = (values) => values.map((value, i) => value - this.floor[i]);
        const bars = [above(this.whole), above(this.now)];
        const top = Math.max(0.2, ...bars.flat()), bottom = Math.min(-0.05, ...bars.flat());
        const step = [0.1, 0.2, 0.5, 1, 2, 5].find((size) => top / size < 4) ?? 10;
        const left = 36, low = height - 30, pitch = (width - left) / this.floor.length;
        const y = (nats) => 6 + ((top - nats) / (top - bottom)) * (low - 6);
        context.font = '11px system-ui, "Liberation Sans", Arial, sans-serif';
        ink("soft");
        for (let line = 0; line * step <= top; line++) {
            context.fillText(line ? `+${+(line * step).toFixed(1)}` : "0", 4, y(line * step) + 4);
            context.fillRect(left, y(line * step), width - left, 0.5);
        }
        context.textAlign = "center";
        this.floor.forEach((_, i) => {
            const x = left + pitch * i;
            ink("soft");
            if (pitch > 20 || i % 2 === 0) context.fillText(i + 1, x + pitch / 2, height - 16);
            if (this.sung[i]) context.fillText("♪", x + pitch / 2, height - 2);
            bars.forEach((values, k) => {
                ink(k ? "broken" : "model");
                const nats = values[i] ?? 0;
                context.fillRect(x + pitch * (0.12 + 0.4 * k), y(Math.max(nats, 0)), pitch * 0.36, Math.abs(y(0) - y(nats)));
            });
        });
        ink("truth");
        context.fillRect(left, y(0) - 1, width - left, 2);
    }
}

// Whether four words after a quotation mark are said again after another: in these stories, a song.
function hasSong(ids) {
    const quote = tokenizer.encode('"')[0];
    const said = ids.flatMap((id, i) => (id === quote ? [ids.slice(i + 1, i + 1 + SOUNDS).join()] : []));
    return said.some((words, i) => said.indexOf(words) < i);
}
