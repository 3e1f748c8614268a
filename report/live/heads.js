"use strict";

// Every head as a small picture, and one large with words. Rows read, columns are read; nothing looks
// ahead.

const SMALL = 96; // pixels of a small picture's side
const FRAME = "#d55e00"; // around the row of the chosen word, as in the figures
// A weight's colour in 256 steps, packed as a picture's memory holds it: 0xAABBGGRR.
const PAINT = Uint32Array.from({ length: 256 }, (_, i) => {
    const [red, green, blue] = shade(i / 255).match(/\d+/g);
    return (255 << 24) | (blue << 16) | (green << 8) | red;
});
const scratch = document.createElement("canvas");

// One head's weights, a pixel each, on the scratch canvas. What would be the future stays transparent.
function paint(places, layer, head) {
    const side = places.length;
    scratch.width = scratch.height = side;
    const context = scratch.getContext("2d");
    const image = context.createImageData(side, side);
    const memory = new Uint32Array(image.data.buffer);
    for (let t = 0; t < side; t++) {
        const weights = places[t].attention[layer][head];
        for (let s = 0; s <= t; s++) {
            memory[t * side + s] = PAINT[Math.round(255 * Math.min(weights[s], 1))];
        }
    }
    context.putImageData(image, 0, 0);
}

// The scratch canvas, enlarged without blur.
function enlarge(context, place, size) {
    context.imageSmoothingEnabled = false;
    context.drawImage(scratch, place, place, size, size);
}

// The grid: a picture and a tick box for each head. One picture and one box are in the tab order;
// arrow keys go from head to head.
class HeadGrid {
    constructor(place, { layers, heads }, onChoose, onSwitch) {
        this.size = { layers, heads };
        this.cells = [];
        for (let layer = 0; layer < layers; layer++) {
            const label = `layer ${layer + 1}`;
            const group = element(place, "div", { class: "layer", role: "group" });
            group.setAttribute("aria-label", label);
            element(group, "span", { class: "layer-name", "aria-hidden": "true" }, label);
            for (let head = 0; head < heads; head++) {
                const number = layer * heads + head, parts = this.cell(group, `${layer + 1}.${head + 1}`);
                parts.button.addEventListener("click", () => onChoose(number));
                parts.box.addEventListener("change", () => onSwitch(number, parts.box.checked));
                this.cells.push(parts);
            }
        }
        place.addEventListener("keydown", (event) => {
            const { target } = event;
            const from = this.cells.findIndex(({ button, box }) => target === button || target === box);
            const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: heads, ArrowUp: -heads };
            const step = steps[event.key], to = this.cells[from + step];
            if (from < 0 || !to) return;
            event.preventDefault();
            onChoose(from + step);
            to[target === this.cells[from].box ? "box" : "button"].focus();
        });
    }

    cell(group, name) {
        const cell = element(group, "div", { class: "head" });
        const shows = { type: "button", "aria-label": `show head ${name}`, "aria-pressed": "false" };
        const button = element(cell, "button", shows);
        const canvas = element(button, "canvas", { width: SMALL, height: SMALL });
        const label = element(cell, "label");
        const switches = { type: "checkbox", "aria-label": `head ${name} on`, checked: "" };
        const box = element(label, "input", switches);
        element(label, "span", {}, name);
        return { cell, button, canvas, box, tried: element(label, "span", { class: "tried" }) };
    }

    show(places, row, chosen, off) {
        this.cells.forEach(({ cell, button, canvas, box }, number) => {
            const context = canvas.getContext("2d");
            context.clearRect(0, 0, SMALL, SMALL);
            paint(places, Math.floor(number / this.size.heads), number % this.size.heads);
            enlarge(context, 0, SMALL);
            const pitch = SMALL / places.length;
            context.fillStyle = FRAME;
            const from = Math.min((row + 1) * pitch, SMALL - 12); // in the future's place
            context.fillRect(from, (row + 0.5) * pitch - 2, SMALL, 3);
            cell.classList.toggle("off", off.has(number));
            box.checked = !off.has(number);
            button.setAttribute("aria-pressed", number === chosen);
            button.tabIndex = box.tabIndex = number === chosen ? 0 : -1;
        });
    }

    // Below each head what the chosen word's probability is without it; [] clears them.
    showTried(values) {
        const least = values.length === this.cells.length ? values.indexOf(Math.min(...values)) : -1;
        this.cells.forEach(({ tried }, number) => {
            tried.textContent = values[number] === undefined ? "" : percent(values[number]);
            tried.classList.toggle("worst", number === least);
        });
    }
}

// One head with its words. The word under the pointer is chosen while it is there.
class LargeHead {
    constructor(canvas, onHover) {
        this.canvas = canvas;
        this.count = 0;
        canvas.addEventListener("pointermove", (event) => {
            const [row, column] = [event.offsetY, event.offsetX].map((at) => Math.floor((at - this.margin) / this.pitch));
            const isIn = row >= 0 && row < this.count;
            canvas.title = isIn && column >= 0 && column <= row ? this.told(row, column) : "";
            onHover(isIn ? row : null);
        });
        canvas.addEventListener("pointerleave", () => onHover(null));
    }

    show(places, words, row, layer, head) {
        const width = this.canvas.clientWidth, ratio = window.devicePixelRatio || 1, count = words.length;
        const longest = Math.max(...words.map((word) => word.length));
        this.count = count;
        this.told = (t, s) => `${placed(words, t)} reads ${placed(words, s)} ` +
            places[t].attention[layer][head][s].toFixed(2);
        this.margin = Math.min(width * 0.22, 12 + 6 * longest);
        this.pitch = (width - this.margin - 2) / count;
        const side = Math.round(width * ratio);
        if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
        const context = this.canvas.getContext("2d");
        context.setTransform(ratio, 0, 0, ratio, 0, 0);
        context.clearRect(0, 0, width, width);
        paint(places, layer, head);
        enlarge(context, this.margin, this.pitch * count);
        context.strokeStyle = FRAME;
        context.lineWidth = 2;
        const reach = (row + 1) * this.pitch;
        context.strokeRect(this.margin, this.margin + row * this.pitch, reach, this.pitch);
        this.label(context, words, row, places[row].attention[layer][head]);
    }

    // The words of rows and columns. If there is no room for all, as many as keep apart, and first of
    // all the chosen row and what it reads most.
    label(context, words, row, weights) {
        const step = Math.ceil(9 / this.pitch), size = Math.min(13, Math.max(this.pitch * step * 0.95, 9));
        const end = this.margin - 5, order = largest(weights, words.length);
        const read = order.filter((s) => weights[s] >= 0.1);
        const apart = (first) => [...first, ...words.keys()].reduce(
            (kept, i) => (kept.every((k) => Math.abs(k - i) >= step) ? [...kept, i] : kept), []);
        const write = (i, bold, angle) => {
            const middle = this.margin + this.pitch * (i + 0.5);
            context.save();
            context.font = `${bold ? "bold " : ""}${size}px system-ui, "Liberation Sans", Arial, sans-serif`;
            context.translate(angle ? middle : end, angle ? end : middle);
            context.rotate(angle);
            context.textAlign = angle ? "left" : "right";
            context.fillText(words[i], 0, 0, this.margin - 6);
            context.restore();
        };
        context.fillStyle = "#1f2328";
        context.textBaseline = "middle";
        for (const i of apart([row])) write(i, i === row, 0);
        for (const i of apart(read)) write(i, read.includes(i), -Math.PI / 2);
    }
}

// What a head does, in words: what one row reads, and its strongest pairs after the start.
function rowInWords(places, words, row, layer, head) {
    const weights = places[row].attention[layer][head];
    const read = largest(weights, 4).filter((s) => weights[s] >= 0.01);
    const parts = read.map((s) => `${placed(words, s)} ${weights[s].toFixed(2)}`);
    return `${placed(words, row)} reads ${parts.join(", ")}.`;
}

function strongestPairs(places, words, layer, head) {
    const pairs = [];
    places.forEach(({ attention }, t) => attention[layer][head].forEach((weight, s) => {
        if (t > 0 && s > 0) pairs.push({ weight, t, s });
    }));
    if (!pairs.length) return "";
    const best = largest(pairs.map(({ weight }) => weight), 4).map((place) => {
        const { weight, t, s } = pairs[place];
        return `${placed(words, t)} reads ${placed(words, s)} ${weight.toFixed(2)}`;
    });
    return `Its largest weights on words, not on the start: ${best.join("; ")}.`;
}
