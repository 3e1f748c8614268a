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
        this.rows = stories.map((ids) => {
            const row = element($("loss-table"), "tr");
            element(row, "th", { scope: "row" }, `${tokenizer.decode(ids.slice(0, 12))} …`);
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

    // Nats per token of the stories that are done.
    mean(values) {
        const tokens = this.tokens.slice(0, values.length);
        const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
        return sum(tokens.map((count, i) => count * values[i])) / sum(tokens);
    }

    show() {
        const all = this.stories.length, expected = this.off.size ? this.now : this.whole;
        const figure = (values) => (values.length === 0 ? "…" : this.mean(values).toFixed(3) +
            (values.length < all ? ` (${values.length} of ${all} stories)` : ""));
        const parts = [`The grammar: ${figure(this.floor)} nats per word, the lowest possible.`];
        parts.push(`The model with all heads: ${figure(this.whole)}.`);
        if (this.off.size) {
            const [first] = this.off, several = `${this.off.size} heads`;
            const which = this.off.size === 1 ? `head ${headName(first)}` : several;
            parts.push(`Without ${which}: ${figure(this.now)}.`);
        }
        $("loss-words").setAttribute("aria-busy", expected.length < all);
        $("loss-words").textContent = parts.join(" ");
        this.rows.forEach((cells, i) => {
            [this.floor, this.whole, this.now].forEach((values, k) => {
                cells[k].textContent = values[i]?.toFixed(3) ?? "–";
            });
        });
        this.draw();
    }

    draw() {
        const canvas = $("loss-picture"), { clientWidth: width, clientHeight: height } = canvas;
        const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
        Object.assign(canvas, { width: width * ratio, height: height * ratio });
        context.scale(ratio, ratio);
        const style = getComputedStyle(document.documentElement);
        const ink = (name) => { context.fillStyle = style.getPropertyValue(`--${name}`); };
        const top = Math.max(1.3, ...this.whole, ...this.now), step = top < 2 ? 0.5 : Math.ceil(top / 3);
        const left = 28, low = height - 16, pitch = (width - left) / this.floor.length;
        const y = (nats) => low - (nats / top) * (low - 6);
        context.font = '11px system-ui, "Liberation Sans", Arial, sans-serif';
        ink("soft");
        for (let nats = 0; nats <= top; nats += step) {
            context.fillText(nats, 4, y(nats) + 4);
            context.fillRect(left, y(nats), width - left, 0.5);
        }
        this.floor.forEach((cost, i) => {
            const x = left + pitch * i;
            ink("soft");
            if (pitch > 20 || i % 2 === 0) context.fillText(i + 1, x + pitch / 2 - 4, height - 2);
            const bar = (nats = 0, from) => {
                context.fillRect(x + pitch * from, y(nats), pitch * 0.36, low - y(nats));
            };
            ink("model");
            bar(this.whole[i], 0.12);
            ink("broken");
            bar(this.now[i], 0.52);
            ink("truth");
            context.fillRect(x + pitch * 0.04, y(cost) - 1, pitch * 0.92, 2);
        });
    }
}
