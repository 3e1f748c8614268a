// What a rendered report does by itself: the attention explorer (a sentence, a layer and a head, chosen with sliders, no
// server behind them), contents that follow the reader, and scrolling by keyboard. Words reach the page as text only, never as markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const SIDE = 22; // of one square, in units of the drawing
// The figures' colours, mako from light to dark: dark is much, and reads without colour too.
const MAKO = [[222, 245, 229], [120, 214, 174], [63, 177, 173], [52, 138, 166], [55, 101, 157], [64, 60, 117], [46, 30, 60], [11, 4, 5]];
function shade(weight) {
  const place = Math.min(Math.max(weight, 0), 0.9999) * (MAKO.length - 1);
  const [low, high] = [MAKO[Math.floor(place)], MAKO[Math.floor(place) + 1]];
  return `rgb(${low.map((value, i) => Math.round(value + (high[i] - value) * (place % 1))).join(" ")})`;
}

function element(parent, name, attributes = {}, text = "") {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return parent.appendChild(made);
}

function heatmap(tokens, weights, name) {
  const longest = Math.max(...tokens.map((token) => token.length));
  const margin = 34 + 8 * longest;
  const side = SIDE * tokens.length;
  const size = margin + side + 4;
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${size} ${size + 40}`);
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", name);
  drawing.style.maxWidth = `${Math.min(size * 1.25, 620)}px`;
  const causal = weights.every((row, i) => row.slice(i + 1).every((weight) => weight === 0));
  tokens.forEach((token, i) => {
    const middle = margin + SIDE * (i + 0.5);
    element(drawing, "svg:text", { x: margin - 6, y: middle + 4, "text-anchor": "end" }, token);
    element(drawing, "svg:text", { transform: `translate(${middle + 4} ${margin - 6}) rotate(-90)` }, token);
    weights[i].slice(0, causal ? i + 1 : undefined).forEach((weight, j) => {
      const place = { x: margin + SIDE * j, y: margin + SIDE * i, width: SIDE - 1, height: SIDE - 1 };
      const square = element(drawing, "svg:rect", { ...place, fill: shade(weight), "data-weight": weight });
      element(square, "svg:title", {}, `“${token}” reads “${tokens[j]}”: ${weight.toFixed(2)}`);
    });
  });
  const middle = margin + side / 2;
  element(drawing, "svg:text", { x: middle, y: 14, "text-anchor": "middle", class: "axis" }, "is read");
  element(drawing, "svg:text", { transform: `translate(14 ${middle}) rotate(-90)`, "text-anchor": "middle", class: "axis" }, "reads");
  const scale = { x: margin, step: Math.min(side, 200) / 20 }; // weights from 0 to 1, below the squares
  for (let i = 0; i < 20; i++) {
    element(drawing, "svg:path", { d: `M${scale.x + i * scale.step} ${size + 6}h${scale.step + 0.5}v10h-${scale.step + 0.5}z`, fill: shade((i + 0.5) / 20) });
  }
  element(drawing, "svg:text", { x: scale.x, y: size + 32 }, "0");
  element(drawing, "svg:text", { x: scale.x + 20 * scale.step, y: size + 32, "text-anchor": "end" }, "1, attention weight");
  return drawing;
}

// What a head that nobody has a name for does here, in a line: its largest weight after the first word.
function strongest(tokens, weights) {
  let best = { weight: -1 };
  weights.slice(1).forEach((row, i) => row.forEach((weight, j) => {
    if (weight > best.weight) best = { weight, reads: tokens[i + 1], read: tokens[j] };
  }));
  return best.weight < 0 ? "" : `Its largest weight here: “${best.reads}” reads “${best.read}”, ${best.weight.toFixed(2)}.`;
}

function slider(parent, label, count, value, redraw) {
  const row = element(parent, "label", {}, `${label} `);
  const input = element(row, "input", { type: "range", min: 1, max: count, value, name: label });
  const shown = element(row, "output", {}, value);
  input.addEventListener("input", () => {
    shown.textContent = input.value;
    redraw();
  });
  return input;
}

for (const figure of document.querySelectorAll(".explorer")) {
  const { sentences, notes, start } = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  const still = figure.querySelector(".still");
  const live = document.createElement("div");
  live.className = "live";
  still.replaceWith(live);
  const controls = element(live, "div", { class: "controls" });
  const row = element(controls, "label", {}, "sentence ");
  const choice = element(row, "select", { name: "sentence" });
  sentences.forEach(({ title }, i) => element(choice, "option", { value: i }, title));
  choice.value = start.sentence;
  const canvas = element(live, "div", { class: "heatmap" });
  const redraw = () => {
    const { tokens, attention, title } = sentences[choice.value];
    const name = `layer ${layer.value}, head ${head.value}: attention of “${title}”`;
    const matrix = attention[layer.value - 1][head.value - 1];
    canvas.replaceChildren(heatmap(tokens, matrix, name));
    element(canvas, "p", {}, notes[`${layer.value},${head.value}`] ?? strongest(tokens, matrix));
  };
  choice.addEventListener("change", redraw);
  const layer = slider(controls, "layer", sentences[0].attention.length, start.layer, redraw);
  const head = slider(controls, "head", sentences[0].attention[0].length, start.head, redraw);
  redraw();
}

// What is wider than the screen scrolls, by keyboard too.
for (const wide of document.querySelectorAll(".picture, .wide, math[display='block']")) {
  if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
}

// Contents that follow the reader: the section on the screen is marked. On a narrow screen they are folded.
const contents = document.querySelector("#TOC");
if (contents) {
  const fold = document.createElement("details");
  contents.before(fold);
  element(fold, "summary", {}, "Contents");
  fold.id = "contents";
  fold.append(contents);
  const wide = matchMedia("(min-width: 1180px)");
  const unfold = () => { fold.open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();
  contents.addEventListener("click", () => { fold.open = wide.matches; });
  const entries = new Map([...contents.querySelectorAll("a")].map((entry) => [decodeURIComponent(entry.hash.slice(1)), entry]));
  const headings = [...entries.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  const follow = () => {
    const here = headings.findLast((heading) => heading.getBoundingClientRect().top < innerHeight / 4);
    for (const entry of contents.querySelectorAll("[aria-current]")) entry.removeAttribute("aria-current");
    const entry = here && entries.get(here.id);
    if (!entry) return;
    entry.setAttribute("aria-current", "true");
    if (wide.matches) contents.scrollTop = entry.offsetTop - contents.clientHeight / 3;
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; follow(); });
  }, { passive: true });
  follow();
}
