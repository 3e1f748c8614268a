// The loss on twenty stories that the model has not seen, first with all heads, then with those that are on: a story's figure
// appears as soon as it is there. The grammar's own cost of the same words is the floor: no model can be below it on average.
"use strict";

class Losses {
    // stories: ids from <sos> to <eos>; costs: the grammar's nats for each whole story.
    constructor(model, stories, costs, texts, isBusy) {
        Object.assign(this, { model, stories, costs, isBusy });
        this.whole = [];
        this.now = [];
        this.canvas = $("loss-picture");
        this.rows = texts.map((text) => {
            const row = element($("loss-table"), "tr");
            element(row, "th", { scope: "row" }, text);
            return Array.from({ length: 3 }, () => element(row, "td"));
        });
        this.tokens = stories.map((ids) => ids.length - 1); // predicted ones
    }

    // Measure with these heads switched off, all of them on before that if this is not yet known. A later call ends this one.
    async measure(off) {
        this.control?.abort();
        const { signal } = (this.control = new AbortController());
        this.off = off;
        this.now = [];
        this.show();
        if (this.whole.length < this.stories.length) await this.run(new Set(), this.whole, signal);
        if (off.size && !signal.aborted) await this.run(off, this.now, signal);
    }

    async run(off, found, signal) {
        found.length = 0;
        const breathe = async () => { // what the reader asked for goes first
            await pause();
            while (this.isBusy() && !signal.aborted) await new Promise((resolve) => { setTimeout(resolve, 10); });
        };
        const onStory = (story, result) => {
            if (signal.aborted) return;
            found[story] = result.nats / result.tokens;
            this.show();
        };
        try {
            await this.model.storyLosses(this.stories, { off, pause: breathe, onStory, signal });
        } catch (error) {
            if (!signal.aborted) throw error;
        }
    }

    mean(values) {
        const done = values.length;
        const sum = (of) => of.slice(0, done).reduce((a, b) => a + b, 0);
        return sum(values.map((value, i) => value * this.tokens[i])) / sum(this.tokens);
    }

    show() {
        const all = this.stories.length, floor = this.costs.map((cost, i) => cost / this.tokens[i]);
        const figure = (values) => `${this.mean(values).toFixed(3)}${values.length < all ? ` (${values.length} of ${all} stories)` : ""}`;
        const parts = [`The grammar: ${this.mean(floor).toFixed(3)} nats per word, the lowest possible.`];
        if (this.whole.length) parts.push(`All heads: ${figure(this.whole)}.`);
        if (this.off.size) {
            const heads = this.off.size === 1 ? "1 head" : `${this.off.size} heads`;
            parts.push(this.now.length ? `Without ${heads}: ${figure(this.now)}.` : `Without ${heads}: …`);
        }
        $("loss-words").textContent = parts.join(" ");
        this.rows.forEach((cells, i) => {
            [floor, this.whole, this.now].forEach((values, k) => { cells[k].textContent = values[i]?.toFixed(3) ?? "–"; });
        });
        this.draw(floor);
    }

    draw(floor) {
        const { clientWidth: width, clientHeight: height } = this.canvas, ratio = window.devicePixelRatio || 1;
        const context = this.canvas.getContext("2d");
        Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
        context.scale(ratio, ratio);
        const style = getComputedStyle(document.documentElement), ink = (name) => style.getPropertyValue(`--${name}`);
        const top = Math.max(1.3, ...this.whole, ...this.now), left = 28, low = height - 16;
        const y = (nats) => low - (nats / top) * (low - 6), pitch = (width - left) / floor.length;
        context.font = '11px system-ui, "Liberation Sans", Arial, sans-serif';
        context.fillStyle = context.strokeStyle = ink("soft");
        const step = top < 2 ? 0.5 : Math.ceil(top / 3);
        for (let nats = 0; nats <= top; nats += step) {
            context.fillText(nats, 4, y(nats) + 4);
            context.fillRect(left, y(nats), width - left, 0.5);
        }
        floor.forEach((cost, i) => {
            const x = left + pitch * i;
            context.fillStyle = ink("soft");
            if (pitch > 16 || i % 2 === 0) context.fillText(i + 1, x + pitch / 2 - 4, height - 2);
            if (this.now[i] !== undefined) {
                context.fillStyle = ink("broken");
                context.fillRect(x + pitch * 0.2, y(this.now[i]), pitch * 0.6, low - y(this.now[i]));
            }
            if (this.whole[i] !== undefined) {
                context.fillStyle = ink("model");
                context.fillRect(x + pitch * 0.2, y(this.whole[i]), pitch * 0.6, low - y(this.whole[i]));
            }
            context.fillStyle = ink("truth");
            context.fillRect(x + pitch * 0.08, y(cost) - 1, pitch * 0.84, 2);
        });
    }
}
