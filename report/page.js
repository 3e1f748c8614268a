// What a rendered report does by itself: the attention explorer (a sentence, a layer and a head, chosen with sliders, no
// server behind them), and scrolling by keyboard. Words reach the page as text only, never as markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const SIDE = 22; // of one square, in units of the drawing
// Dark is much: the lightness falls evenly, so it reads without colour too.
const shade = (weight) => `hsl(${205 + 25 * weight} ${35 + 15 * weight}% ${97 - 77 * weight}%)`;

function element(parent, name, attributes = {}, text = "") {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return parent.appendChild(made);
}

function heatmap(tokens, weights, name) {
  const longest = Math.max(...tokens.map((token) => token.length));
  const margin = 10 + 8 * longest;
  const size = margin + SIDE * tokens.length + 4;
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${size} ${size}`);
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
  return drawing;
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
    canvas.replaceChildren(heatmap(tokens, attention[layer.value - 1][head.value - 1], name));
    element(canvas, "p", {}, notes[`${layer.value},${head.value}`] ?? "");
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
