"use strict";

// From scores to a word, as helpers/decoding.py does it.

const NEVER_OUT = [Tokenizer.PAD, Tokenizer.SOS, Tokenizer.UNK];

/** The id of the largest score, `banned` ones aside; the first of several. */
function greedy(logits, banned = NEVER_OUT) {
    let best = -1;
    for (let id = 0; id < logits.length; id++) {
        if (!banned.includes(id) && (best < 0 || logits[id] > logits[best])) best = id;
    }
    return best;
}

/** Scores (V,) -> the probabilities (V,) that sampling draws from, 0 if filtered out.
 *
 * temperature: above 0; the smaller, the nearer to greedy. topK: keep this many likeliest words.
 * topP: of these, keep the fewest whose probabilities reach this sum. banned: ids that never
 * come out.
 */
function distribution(logits, settings = {}) {
    const { temperature = 1, topK = null, topP = null, banned = NEVER_OUT } = settings;
    const probabilities = new Float64Array(logits.length); // (V,)
    const allowed = [...logits.keys()].filter((id) => !banned.includes(id));
    const ranked = allowed.sort((a, b) => logits[b] - logits[a]).slice(0, topK ?? logits.length);
    const best = logits[ranked[0]];
    let sum = 0;
    for (const id of ranked) sum += probabilities[id] = Math.exp((logits[id] - best) / temperature);
    for (const id of ranked) probabilities[id] /= sum;
    if (topP === null || topP >= 1) return probabilities;
    let before = 0, kept = 0; // probability of the likelier words; of those that stay
    for (const id of ranked) {
        const probability = probabilities[id];
        if (before >= topP) probabilities[id] = 0;
        else kept += probability;
        before += probability;
    }
    for (const id of ranked) probabilities[id] /= kept;
    return probabilities;
}

/** The word on which a uniform number from 0 to 1 falls, if each has its probability's length.
 *
 * The sum is 1 only up to rounding, so the number is stretched to it.
 */
function pick(probabilities, uniform) {
    let sum = 0, total = 0;
    for (const probability of probabilities) total += probability;
    for (let id = 0; id < probabilities.length; id++) {
        sum += probabilities[id];
        if (sum > uniform * total) return id;
    }
    return probabilities.length - 1;
}
