"use strict";

// The words that the model has read, with what it computed at each: scores, attention and lens. What
// stands before a change stays valid, because no word looks ahead: only the rest is read again.
// Between two words the page may breathe; whoever asks for something else ends the reading there.

// Let the browser draw and answer, then go on. A message to oneself comes back sooner than a timer.
const channel = new MessageChannel();
const waiting = [];
channel.port1.onmessage = () => waiting.shift()();
function pause() {
    return new Promise((resolve) => {
        waiting.push(resolve);
        channel.port2.postMessage(null);
    });
}

const sleep = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

class Reading {
    constructor(model) {
        this.model = model;
        this.cache = model.newCache();
        this.ids = [];
        this.places = []; // of each word what `Model.step` returned
        this.off = ""; // the heads that were off
    }

    get last() {
        return this.places.at(-1);
    }

    forget(length) {
        this.ids.length = this.places.length = this.cache.length = length;
    }

    // Read these ids with these heads off, a Set of layer · heads + head. extras: what each step is to
    // return beside the scores. Returns false if the signal came first.
    async follow(ids, off, { signal, extras = {} }) {
        const key = [...off].sort((a, b) => a - b).join();
        let same = 0;
        while (key === this.off && same < ids.length && ids[same] === this.ids[same]) same++;
        if (same === ids.length) return true; // what was read after them stays: it may come again
        this.forget(same);
        this.off = key;
        for (const id of ids.slice(same)) {
            await pause();
            if (signal.aborted) return false;
            this.places.push(this.model.step(id, this.cache, { off, ...extras }));
            this.ids.push(id);
        }
        return true;
    }

    // Read a beginning and write up to `count` words after it. choose: scores and the place's uniform
    // number -> id. Returns all ids, <eos> the last if the story ends; null if the signal came first.
    async write(beginning, count, off, choose, uniforms, options) {
        const ids = [...beginning], end = Math.min(beginning.length + count, this.model.config.context);
        if (!await this.follow(ids, off, options)) return null;
        while (ids.length < end) {
            const id = choose(this.places[ids.length - 1].logits, uniforms[ids.length]);
            ids.push(id);
            if (id === Tokenizer.EOS) break;
            if (!await this.follow(ids, off, options)) return null;
        }
        return ids;
    }
}
