// The words that the model has read, with what it computed at each: scores, attention and lens. A change at one word leaves what
// stands before it valid, because no word looks ahead: only the rest is read again. Between two words the page may breathe, and
// whoever asks for something else in the meantime (signal) ends the reading there.
"use strict";

// Let the browser draw and answer, then go on: a message to oneself comes back sooner than a timer.
const channel = new MessageChannel();
const waiting = [];
channel.port1.onmessage = () => waiting.shift()();
function pause() {
    return new Promise((resolve) => {
        waiting.push(resolve);
        channel.port2.postMessage(null);
    });
}

class Reading {
    constructor(model) {
        this.model = model;
        this.off = "";
        this.forget(0);
    }

    // Keep what was computed at the first `length` words.
    forget(length) {
        if (length === 0) {
            this.ids = [];
            this.places = []; // of each word: {logits, attention: [layer][head] weights on all words so far, lens}
            this.cache = this.model.newCache();
        } else if (length < this.ids.length) {
            this.ids.length = this.places.length = this.cache.length = length;
        }
    }

    get last() { return this.places[this.places.length - 1]; }

    // Read these ids with these heads switched off (a Set of layer · heads + head). Returns false if the signal came first.
    async follow(ids, off, { signal, onWord = () => {}, extras = {} } = {}) {
        const key = [...off].sort((a, b) => a - b).join();
        let same = 0;
        while (key === this.off && same < ids.length && ids[same] === this.ids[same]) same++;
        this.forget(same);
        this.off = key;
        for (const id of ids.slice(same)) {
            await pause();
            if (signal?.aborted) return false;
            this.read(id, off, extras);
            onWord();
        }
        return true;
    }

    read(id, off, extras) {
        this.places.push(this.model.step(id, this.cache, { off, ...extras }));
        this.ids.push(id);
    }

    // Read a beginning and write `count` words after it, one uniform number for each place: what changes is due to heads and
    // settings, not to chance. Returns the ids, <eos> among them if the story ends, or null if the signal came first.
    async write(beginning, count, off, choose, uniforms, options = {}) {
        const ids = [...beginning];
        if (!await this.follow(ids, off, options)) return null;
        while (ids.length < beginning.length + count && ids.length < this.model.config.context && ids[ids.length - 1] !== Tokenizer.EOS) {
            const id = choose(this.places[ids.length - 1].logits, uniforms[ids.length]);
            ids.push(id);
            if (id !== Tokenizer.EOS && !await this.follow(ids, off, options)) return null;
        }
        this.forget(ids[ids.length - 1] === Tokenizer.EOS ? ids.length - 1 : ids.length);
        return ids;
    }
}
