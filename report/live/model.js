"use strict";

// The transformer that the notebooks train: the forward pass of helpers/model.py, without training.
// layers.js says how matrices lie in memory, and what the letters of the shapes mean.
//
// A pass over a whole story takes longer than a page may keep its reader waiting. So the long work
// is written as generators (`function*`), which yield wherever they may be interrupted: `finish`
// runs one to its end, and `inSlices` lets the page draw and answer keys in between.

const SLICE = 8; // milliseconds of work before the page has its turn
const NOTHING_OFF = new Set();

/** Decode base64 a piece at a time, so that no piece keeps the page waiting. */
async function decodeBase64(text, pause) {
    const characters = text.trim();
    const padding = characters.endsWith("==") ? 2 : characters.endsWith("=") ? 1 : 0;
    const bytes = new Uint8Array((characters.length / 4) * 3 - padding);
    const piece = 1 << 18; // characters; a multiple of 4, so that each piece is whole bytes
    for (let start = 0, end = 0; start < characters.length; start += piece) {
        const decoded = atob(characters.slice(start, start + piece));
        for (let i = 0; i < decoded.length; i++) bytes[end++] = decoded.charCodeAt(i);
        await pause();
    }
    return bytes;
}

/** Whole numbers from -127 to 127 and one scale a row -> the float32 that they stand for. */
function dequantised(buffer, offset, scalesOffset, rows, columns) {
    const numbers = new Int8Array(buffer, offset, rows * columns); // (rows, columns)
    const scales = new Float32Array(buffer, scalesOffset, rows); // (rows,)
    const weights = new Float32Array(rows * columns); // (rows, columns)
    for (let row = 0, i = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++, i++) weights[i] = numbers[i] * scales[row];
    }
    return weights;
}

/** Run a generator to its end at once, and return its value. */
function finish(work) {
    for (;;) {
        const { done, value } = work.next();
        if (done) return value;
    }
}

/** Run a generator to its end in slices, and let the page do other things between them. */
async function inSlices(work, pause, signal) {
    for (;;) {
        signal?.throwIfAborted();
        const end = performance.now() + SLICE;
        do {
            const { done, value } = work.next();
            if (done) return value;
        } while (performance.now() < end);
        await pause();
    }
}

/** Keys and values of the tokens read so far, which no later token changes. To forget the last
 * tokens, make `length` smaller. */
class Cache {
    constructor({ layers, width }, capacity) {
        const one = () => new Float64Array(capacity * width); // (capacity, D)
        this.keys = Array.from({ length: layers }, one);
        this.values = Array.from({ length: layers }, one);
        this.capacity = capacity;
        this.length = 0;
    }
}

class Model {
    /** data: the page's data; base64: the weights; pause: lets the page draw, and returns. */
    static async load({ config, tensors }, base64, pause) {
        const { buffer } = await decodeBase64(base64, pause), loaded = new Map();
        for (const { name, shape, offset, scales } of tensors) {
            const [rows, columns] = shape;
            const isVector = columns === undefined;
            loaded.set(name, isVector ? new Float32Array(buffer, offset, rows) : {
                rows, columns, weights: dequantised(buffer, offset, scales, rows, columns),
            });
            await pause();
        }
        return new Model(config, loaded);
    }

    constructor(config, tensors) {
        const get = (name) => tensors.get(name);
        const layer = (name) => ({ ...get(`${name}.weight`), bias: get(`${name}.bias`) });
        const norm = (name) => ({ gain: get(`${name}.gain`), bias: get(`${name}.bias`) });
        this.config = config;
        this.embedding = get("embedding.weight"); // (V, E)
        this.projection = layer("projection"); // (D, E)
        this.blocks = Array.from({ length: config.layers }, (_, i) => ({
            attentionNorm: norm(`blocks.${i}.attention_norm`),
            qkv: layer(`blocks.${i}.attention.qkv`), // (3 D, D)
            output: layer(`blocks.${i}.attention.output`), // (D, D)
            feedForwardNorm: norm(`blocks.${i}.feed_forward_norm`),
            expand: layer(`blocks.${i}.feed_forward.expand`), // (F, D)
            contract: layer(`blocks.${i}.feed_forward.contract`), // (D, F)
        }));
        this.norm = norm("norm");
        this.output = layer("output"); // (V, D)
        this.streams = new WeakMap(); // story -> the stream that enters each layer, all heads on
    }

    newCache(capacity = this.config.context) {
        return new Cache(this.config, capacity);
    }

    /** Read one token: its scores of every next one, and what the page shows of the way there.
     *
     * off: numbers layer * H + head of the heads whose part is set to zero. attention: whether to
     * return this token's weights on all tokens, one array (S,) for each layer and head. lens:
     * whether to return the scores that the last norm and the output layer would give to the
     * stream as it enters each layer, and as it leaves the last one. RangeError if the cache is
     * full: like `generate` of the course, a text ends with the context.
     */
    step(id, cache, { off = NOTHING_OFF, attention = false, lens = false } = {}) {
        if (cache.length >= cache.capacity) throw new RangeError("the context is full");
        const seen = attention ? [] : null, lenses = [];
        const x = finish(this.embed([id], cache.length)); // (1, D)
        for (let layer = 0; layer < this.config.layers; layer++) {
            if (lens) lenses.push(Float32Array.from(finish(this.score(x, 1)))); // (V,)
            finish(this.block(layer, x, 1, cache, off, seen));
        }
        cache.length += 1;
        const logits = Float32Array.from(finish(this.score(x, 1))); // (V,)
        return { logits, attention: seen, lens: lens ? [...lenses, logits] : null };
    }

    /** The stream that enters the first layer: word vectors, projected, and positions. (T, D) */
    *embed(ids, start) {
        const { width: D } = this.config, T = ids.length;
        const { weights, columns: E } = this.embedding;
        const vectors = new Float64Array(T * E); // (T, E)
        ids.forEach((id, t) => vectors.set(weights.subarray(id * E, (id + 1) * E), t * E));
        const x = yield* linear(this.projection, vectors, T); // (T, D)
        for (let t = 0; t < T; t++) {
            for (let i = 0; i < D; i++) {
                const angle = (start + t) * 10000 ** (-(i - (i % 2)) / D);
                x[t * D + i] *= Math.sqrt(D);
                x[t * D + i] += i % 2 ? Math.cos(angle) : Math.sin(angle);
            }
        }
        return x;
    }

    /** One block: x (T, D) is changed in place. It adds T keys and values to its layer's cache. */
    *block(layer, x, T, cache, off, seen) {
        const { width: D, heads: H } = this.config, d = D / H, start = cache.length;
        const parts = this.blocks[layer], keys = cache.keys[layer], values = cache.values[layer];
        const qkv = yield* linear(parts.qkv, layerNorm(x, T, parts.attentionNorm), T); // (T, 3 D)
        for (let t = 0; t < T; t++) {
            const row = qkv.subarray(t * 3 * D, (t + 1) * 3 * D); // (3 D,): query, key, value
            keys.set(row.subarray(D, 2 * D), (start + t) * D);
            values.set(row.subarray(2 * D), (start + t) * D);
        }
        const mixed = new Float64Array(T * D); // (T, D), the heads side by side
        if (seen) seen[layer] = [];
        for (let head = 0; head < H; head++) {
            for (let t = 0; t < T; t++) {
                const weights = new Float64Array(start + t + 1); // (S,): no later token is seen
                for (let s = 0; s < weights.length; s++) {
                    let product = 0;
                    const q = t * 3 * D + head * d, k = s * D + head * d;
                    for (let i = 0; i < d; i++) product += qkv[q + i] * keys[k + i];
                    weights[s] = product / Math.sqrt(d);
                }
                softmax(weights);
                if (seen) seen[layer][head] = Float32Array.from(weights); // the last token's stay
                if (off.has(layer * H + head)) continue; // its columns of `mixed` stay zero
                for (let s = 0; s < weights.length; s++) {
                    const to = t * D + head * d, v = s * D + head * d;
                    for (let i = 0; i < d; i++) mixed[to + i] += weights[s] * values[v + i];
                }
            }
            yield;
        }
        add(x, yield* linear(parts.output, mixed, T)); // (T, D)
        const hidden = layerNorm(x, T, parts.feedForwardNorm); // (T, D)
        const inner = yield* linear(parts.expand, hidden, T); // (T, F)
        for (let i = 0; i < inner.length; i++) inner[i] = gelu(inner[i]);
        yield;
        add(x, yield* linear(parts.contract, inner, T)); // (T, D)
    }

    /** The stream (T, D) -> scores (T, V) of the word after each token. */
    *score(x, T) {
        return yield* linear(this.output, layerNorm(x, T, this.norm), T);
    }

    /** The loss on each story: [{nats, tokens}], summed over all tokens that are predicted.
     *
     * It works in slices and awaits `pause` between them. onStory(index, {nats, tokens}) is called
     * after each story; an aborted signal ends the work with the signal's reason.
     */
    async storyLosses(stories, { off = NOTHING_OFF, pause, onStory, signal } = {}) {
        const losses = [];
        for (const [index, story] of stories.entries()) {
            losses.push(await inSlices(this.storyLoss(story, off), pause, signal));
            onStory?.(index, losses[index]);
        }
        return losses;
    }

    /** A head changes nothing before its own layer, so the streams up to there are kept. */
    *storyLoss(story, off) {
        const { layers, heads, vocab: V } = this.config;
        const T = story.length - 1; // the last token is not read
        const lowest = Math.min(layers, ...[...off].map((place) => Math.floor(place / heads)));
        const streams = this.streams.get(story) ?? [yield* this.embed(story.slice(0, T), 0)];
        const first = Math.min(lowest, streams.length - 1);
        const x = streams[first].slice(), cache = this.newCache(T); // (T, D)
        for (let layer = first; layer < layers; layer++) {
            yield* this.block(layer, x, T, cache, off, null);
            if (layer < lowest) streams[layer + 1] = x.slice(); // (T, D)
        }
        this.streams.set(story, streams);
        const logits = yield* this.score(x, T); // (T, V)
        let nats = 0;
        for (let t = 0; t < T; t++) {
            const row = logits.subarray(t * V, (t + 1) * V); // (V,)
            const target = row[story[t + 1]];
            let largest = -Infinity, sum = 0;
            for (let id = 0; id < V; id++) largest = Math.max(largest, row[id]);
            for (let id = 0; id < V; id++) sum += Math.exp(row[id] - largest);
            nats += largest + Math.log(sum) - target; // cross-entropy: -log softmax(row)[target]
            yield;
        }
        return { nats, tokens: T };
    }
}
