"use strict";

// What the layers of a transformer compute, in plain JavaScript.
//
// Shape comments name the sizes, as in helpers/model.py: T tokens read at once, S tokens in the
// cache, E embedding width, D model width, H heads, d = D / H, F feed-forward width, V vocabulary.
// A matrix (T, D) is one long Float64Array, row after row: element (t, i) is at t * D + i.
//
// Everything is computed in doubles, the only floating-point numbers that JavaScript has. The
// weights are whole numbers from -127 to 127 with one scale a row, and stay so: the sum over a row
// is multiplied by the row's scale once, which loses nothing and reads an eighth of the memory.

/** y = x Wᵀ + b: (T, columns) -> (T, rows). A generator: it yields where the work may pause.
 *
 * Almost all time is spent here. Loading a number takes as long as multiplying it, so each one that
 * is loaded is used several times: two rows of weights meet four tokens, in eight running sums. A
 * single token has no neighbours to share with; there, four rows share the token's numbers.
 */
function* linear({ weights, scales, bias, rows, columns }, x, T) {
    if (T === 1) return oneToken(weights, scales, bias, rows, columns, x);
    const y = new Float64Array(T * rows); // (T, rows)
    const block = Math.max(2, 2 * Math.floor(1e6 / (T * columns) / 2)); // a million products: 1 ms
    for (let from = 0; from < rows; from += block) {
        manyTokens(weights, scales, bias, from, Math.min(from + block, rows), rows, columns, x, T, y);
        yield;
    }
    return y;
}

function oneToken(weights, scales, bias, rows, columns, x) {
    const y = new Float64Array(rows); // (1, rows)
    for (let row = 0; row < rows; row += 4) {
        const w0 = row * columns;
        const w1 = Math.min(row + 1, rows - 1) * columns; // the last rows may be computed twice
        const w2 = Math.min(row + 2, rows - 1) * columns;
        const w3 = Math.min(row + 3, rows - 1) * columns;
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (let i = 0; i < columns; i++) {
            const v = x[i];
            s0 += weights[w0 + i] * v;
            s1 += weights[w1 + i] * v;
            s2 += weights[w2 + i] * v;
            s3 += weights[w3 + i] * v;
        }
        y[row] = s0 * scales[row] + bias[row];
        if (row + 1 < rows) y[row + 1] = s1 * scales[row + 1] + bias[row + 1];
        if (row + 2 < rows) y[row + 2] = s2 * scales[row + 2] + bias[row + 2];
        if (row + 3 < rows) y[row + 3] = s3 * scales[row + 3] + bias[row + 3];
    }
    return y;
}

/** Rows `from` to `to` of y, for all tokens. The last group of four tokens overlaps the one before. */
function manyTokens(weights, scales, bias, from, to, rows, columns, x, T, y) {
    for (let row = from; row < to; row += 2) {
        const other = Math.min(row + 1, rows - 1);
        const w0 = row * columns, w1 = other * columns;
        for (let t = 0; t < T; t += 4) {
            const t1 = Math.min(t + 1, T - 1), t2 = Math.min(t + 2, T - 1), t3 = Math.min(t + 3, T - 1);
            const x0 = t * columns, x1 = t1 * columns, x2 = t2 * columns, x3 = t3 * columns;
            let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
            for (let i = 0; i < columns; i++) {
                const a = weights[w0 + i], b = weights[w1 + i];
                const v0 = x[x0 + i], v1 = x[x1 + i], v2 = x[x2 + i], v3 = x[x3 + i];
                a0 += a * v0; a1 += a * v1; a2 += a * v2; a3 += a * v3;
                b0 += b * v0; b1 += b * v1; b2 += b * v2; b3 += b * v3;
            }
            const s = scales[row], z = bias[row];
            y[t * rows + row] = a0 * s + z;
            y[t1 * rows + row] = a1 * s + z;
            y[t2 * rows + row] = a2 * s + z;
            y[t3 * rows + row] = a3 * s + z;
            const s1 = scales[other], z1 = bias[other];
            y[t * rows + other] = b0 * s1 + z1;
            y[t1 * rows + other] = b1 * s1 + z1;
            y[t2 * rows + other] = b2 * s1 + z1;
            y[t3 * rows + other] = b3 * s1 + z1;
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
