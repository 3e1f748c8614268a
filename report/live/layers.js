"use strict";

// What the layers of a transformer compute, in plain JavaScript.
//
// Shape comments name the sizes, as in helpers/model.py: T tokens read at once, S tokens in the
// cache, E embedding width, D model width, H heads, d = D / H, F feed-forward width, V vocabulary.
// A matrix (T, D) is one long Float64Array, row after row: element (t, i) is at t * D + i.
//
// Everything is computed in doubles, the only floating-point numbers that JavaScript computes with;
// the weights lie in memory as float32.

/** y = x Wᵀ + b: (T, columns) -> (T, rows). A generator, which yields where the work may pause. */
function* linear({ weights, bias, rows, columns }, x, T) {
    const y = new Float64Array(T * rows); // (T, rows)
    if (T < 4) {
        for (let t = 0; t < T; t++) {
            const token = x.subarray(t * columns, (t + 1) * columns); // (columns,)
            oneToken(weights, bias, rows, columns, token, y.subarray(t * rows, (t + 1) * rows));
        }
        return y;
    }
    const block = 2 * Math.ceil(5e5 / (T * columns)); // rows: a million products, less than 1 ms
    for (let from = 0; from < rows; from += block) {
        const to = Math.min(from + block, rows);
        manyTokens(weights, bias, from, to, rows, columns, x, T, y);
        yield;
    }
    return y;
}

// Almost all time is spent in these two loops, and there most of it goes into loading numbers. So
// each number that is loaded is used several times: four rows of weights share the numbers of one
// token, and two rows share those of four tokens. There are as many running sums as a processor can
// keep at hand. The last group of rows or tokens may overlap the one before: it is not smaller.

/** y (rows,) of one token x (columns,). */
function oneToken(weights, bias, rows, columns, x, y) {
    for (let from = 0; from < rows; from += 4) {
        const row = Math.min(from, rows - 4);
        const w0 = row * columns, w1 = w0 + columns, w2 = w1 + columns, w3 = w2 + columns;
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (let i = 0; i < columns; i++) {
            const value = x[i];
            s0 += weights[w0 + i] * value;
            s1 += weights[w1 + i] * value;
            s2 += weights[w2 + i] * value;
            s3 += weights[w3 + i] * value;
        }
        y[row] = s0 + bias[row];
        y[row + 1] = s1 + bias[row + 1];
        y[row + 2] = s2 + bias[row + 2];
        y[row + 3] = s3 + bias[row + 3];
    }
}

/** Rows `from` to `to` of y (T, rows), for all T tokens of x (T, columns). */
function manyTokens(weights, bias, from, to, rows, columns, x, T, y) {
    for (let pair = from; pair < to; pair += 2) {
        const row = Math.min(pair, rows - 2), w0 = row * columns, w1 = w0 + columns;
        const a = bias[row], b = bias[row + 1];
        for (let four = 0; four < T; four += 4) {
            const t = Math.min(four, T - 4);
            const x0 = t * columns, x1 = x0 + columns, x2 = x1 + columns, x3 = x2 + columns;
            let a0 = a, a1 = a, a2 = a, a3 = a, b0 = b, b1 = b, b2 = b, b3 = b;
            for (let i = 0; i < columns; i++) {
                const u = weights[w0 + i], v = weights[w1 + i];
                const p = x[x0 + i], q = x[x1 + i], r = x[x2 + i], s = x[x3 + i];
                a0 += u * p; a1 += u * q; a2 += u * r; a3 += u * s;
                b0 += v * p; b1 += v * q; b2 += v * r; b3 += v * s;
            }
            const y0 = t * rows + row, y1 = y0 + rows, y2 = y1 + rows, y3 = y2 + rows;
            y[y0] = a0; y[y1] = a1; y[y2] = a2; y[y3] = a3;
            y[y0 + 1] = b0; y[y1 + 1] = b1; y[y2 + 1] = b2; y[y3 + 1] = b3;
        }
    }
}

/** Each token's vector with mean 0 and variance 1, times gain, plus bias: (T, D) -> (T, D). */
function layerNorm(x, T, { gain, bias }) {
    const D = gain.length, y = new Float64Array(T * D); // (T, D)
    for (let t = 0; t < T; t++) {
        const row = x.subarray(t * D, (t + 1) * D); // (D,)
        let mean = 0, variance = 0;
        for (let i = 0; i < D; i++) mean += row[i] / D;
        for (let i = 0; i < D; i++) variance += (row[i] - mean) ** 2 / D;
        const scale = 1 / Math.sqrt(variance + 1e-5);
        for (let i = 0; i < D; i++) y[t * D + i] = (row[i] - mean) * scale * gain[i] + bias[i];
    }
    return y;
}

/** The error function, by a series whose terms are all positive, so that none cancels another:
 * erf(x) = 2/√π · exp(-x²) · (x + x³·2/3 + x⁵·2²/(3·5) + x⁷·2³/(3·5·7) + …).
 */
function erf(x) {
    const size = Math.abs(x), square = x * x;
    if (size > 6) return Math.sign(x); // 1 - erf(6) is less than 1e-16
    let term = size, sum = size;
    for (let n = 1.5; term > 1e-12 * sum; n++) {
        term *= square / n;
        sum += term;
    }
    return Math.sign(x) * (2 / Math.sqrt(Math.PI)) * Math.exp(-square) * sum;
}

/** x times the probability that a standard normal number is smaller than x. */
function gelu(x) {
    return (x / 2) * (1 + erf(x * Math.SQRT1_2));
}

/** Scores to weights that sum to 1. The largest is taken off first, so that exp cannot overflow. */
function softmax(scores) {
    let largest = -Infinity, sum = 0;
    for (const score of scores) largest = Math.max(largest, score);
    for (let s = 0; s < scores.length; s++) sum += scores[s] = Math.exp(scores[s] - largest);
    for (let s = 0; s < scores.length; s++) scores[s] /= sum;
    return scores;
}

/** x += y. */
function add(x, y) {
    for (let i = 0; i < x.length; i++) x[i] += y[i];
}
