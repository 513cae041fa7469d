"use strict";
const view = JSON.parse(document.getElementById("data").textContent);
const at = view.start.slice();  // voxel that all three planes go through
const strides = [1, view.shape[0], view.shape[0] * view.shape[1]];
const planes = [[2, 0, 1, "RL"], [1, 0, 2, "RL"], [0, 1, 2, "AP"]]
  .map(([axis, column, row, sides]) => ({ axis, column, row, sides }));
const scratch = document.createElement("canvas");
const sliders = [...document.querySelectorAll("input[name=opacity]")];
const [outlines, cross, here] = ["outlines", "cross", "here"].map((id) => document.getElementById(id));
let active = 0, masks = true, asked = false;

async function unpack(layer) {
  const bytes = Uint8Array.from(atob(layer.data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  layer.values = new Uint8Array(await new Response(stream).arrayBuffer());
  for (let i = 1; i < layer.values.length; i++) layer.values[i] += layer.values[i - 1];
}

function colorOf(layer, value) {  // red, green, blue, opacity
  if (layer.kind === "scan") {
    const gray = 255 * (100 * value / layer.steps - layer.black) / Math.max(layer.white - layer.black, 1);
    return [gray, gray, gray, 255];
  }
  if (!value || value > layer.colors.length) return [0, 0, 0, 0];
  const color = parseInt(layer.colors[value - 1].slice(1), 16);
  const alpha = layer.kind === "map" ? Math.min(255, 510 * value / layer.steps) : 255;
  return [color >> 16, (color >> 8) & 255, color & 255, alpha];
}

function sliceOf(plane, layer) {  // from the upper left: up is superior or anterior, left is right or anterior
  const [width, height] = [view.shape[plane.column], view.shape[plane.row]];
  const out = new Uint8Array(width * height), base = at[plane.axis] * strides[plane.axis];
  for (let y = height - 1, i = 0; y >= 0; y--) for (let x = width - 1; x >= 0; x--) {
    out[i++] = layer.values[base + y * strides[plane.row] + x * strides[plane.column]];
  }
  return [out, width, height];
}

function fill(pen, plane, layer) {
  const [values, width, height] = sliceOf(plane, layer);
  const table = Uint8ClampedArray.from(Array.from({ length: 256 }, (_, value) => colorOf(layer, value)).flat());
  const colors = new Uint32Array(table.buffer), pixels = new ImageData(width, height);
  new Uint32Array(pixels.data.buffer).set(Uint32Array.from(values, (value) => colors[value]));
  [scratch.width, scratch.height] = [width, height];
  scratch.getContext("2d").putImageData(pixels, 0, 0);
  pen.imageSmoothingEnabled = layer.kind !== "labels";
  pen.drawImage(scratch, 0, 0, pen.canvas.width, pen.canvas.height);
}

function outline(pen, plane, layer) {  // along the edges of voxels, in the color of the larger label
  const [values, width, height] = sliceOf(plane, layer);
  const [dx, dy] = [pen.canvas.width / width, pen.canvas.height / height];
  const lines = layer.colors.map(() => new Path2D());
  const edge = (a, b, x, y, right, down) => {
    if (a !== b) lines[Math.max(a, b) - 1].rect(x * dx, y * dy, right * dx, down * dy);
  };
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) {
    edge(values[i], x ? values[i - 1] : 0, x, y, 0, 1);
    edge(values[i], y ? values[i - width] : 0, x, y, 1, 0);
  }
  pen.lineWidth = 1.5 * devicePixelRatio;
  lines.forEach((line, i) => { pen.strokeStyle = layer.colors[i]; pen.stroke(line); });
}

function drawPlane(plane, number) {
  const canvas = plane.canvas, pen = canvas.getContext("2d"), unit = devicePixelRatio;
  const [width, height] = [plane.column, plane.row].map((axis) => view.shape[axis] * view.spacing[axis]);
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * unit));
  canvas.height = Math.max(1, Math.round(canvas.width * height / width));
  for (const layer of view.layers) {
    pen.globalAlpha = layer.kind === "scan" ? 1 : masks ? layer.opacity : 0;
    if (pen.globalAlpha) (layer.kind === "labels" && outlines.checked ? outline : fill)(pen, plane, layer);
  }
  pen.globalAlpha = 1;
  pen.fillStyle = "#fff";
  pen.font = `${14 * unit}px sans-serif`;
  [6 * unit, canvas.width - 18 * unit].forEach((x, i) => pen.fillText(plane.sides[i], x, 18 * unit));
  if (cross.checked) {
    const [x, y] = [plane.column, plane.row].map((axis) => 1 - (at[axis] + 0.5) / view.shape[axis]);
    pen.fillStyle = "#7ee08fb0";
    pen.fillRect(0, Math.round(y * canvas.height), canvas.width, unit);
    pen.fillRect(Math.round(x * canvas.width), 0, unit, canvas.height);
  }
  canvas.dataset.slice = at[plane.axis];
  canvas.parentElement.className = number === active ? "active" : "";
  canvas.parentElement.querySelector("output").textContent = `${at[plane.axis] + 1} of ${view.shape[plane.axis]}`;
}

function draw() {
  asked = false;
  planes.forEach(drawPlane);
  const index = at.reduce((sum, voxel, axis) => sum + voxel * strides[axis], 0);
  const place = view.affine.map((row) => (row[0] * at[0] + row[1] * at[1] + row[2] * at[2] + row[3]).toFixed(1));
  const values = view.layers.map((layer) => {
    const value = layer.values[index];
    if (layer.names) return `${layer.name} ${value ? layer.names[value - 1] : "none"}`;
    return `${layer.name} ${value === layer.steps ? "from " : ""}${+(layer.low + value * layer.step).toPrecision(3)}`;
  });
  here.textContent = [`x, y, z: ${place.join(", ")} mm`, ...values].join(" \u00b7 ");
}

function redraw() {  // once a frame, however many events there are
  if (!asked) requestAnimationFrame(draw);
  asked = true;
}

function go(axis, voxel) {
  at[axis] = Math.min(Math.max(Math.floor(voxel), 0), view.shape[axis] - 1);
  redraw();
}

function point(plane, event) {
  const box = plane.canvas.getBoundingClientRect();
  go(plane.column, view.shape[plane.column] * (1 - (event.clientX - box.left) / box.width));
  go(plane.row, view.shape[plane.row] * (1 - (event.clientY - box.top) / box.height));
}

function listen(plane, number) {
  const on = (name, act) => plane.canvas.addEventListener(name, act, { passive: false });
  let turned = 0;  // of a touchpad there are many small events
  on("wheel", (event) => {
    event.preventDefault();
    turned += event.deltaMode ? 40 * event.deltaY : event.deltaY;
    if (Math.abs(turned) < 40) return;
    go(plane.axis, at[plane.axis] - Math.sign(turned));
    turned = 0;
  });
  on("focus", () => { active = number; redraw(); });
  on("pointerdown", (event) => { plane.canvas.setPointerCapture(event.pointerId); point(plane, event); });
  on("pointermove", (event) => { if (event.buttons) point(plane, event); });
}

function flip(slider) {  // a layer off, or on as it was
  const now = +slider.value;
  slider.value = now ? 0 : slider.dataset.before || 100;
  if (now) slider.dataset.before = now;
  slider.dispatchEvent(new Event("input"));
}

function press(event) {
  if (event.target.type === "range" || event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
  const turn = { ArrowLeft: 2, ArrowRight: 1 }[event.key];
  if (steps) go(planes[active].axis, at[planes[active].axis] + steps);
  else if (turn) planes[(active + turn) % 3].canvas.focus();
  else if (sliders[event.key - 1]) flip(sliders[event.key - 1]);
  else if (event.key === "m") masks = !masks;
  else if (event.key === "o") outlines.checked = !outlines.checked;
  else return;
  event.preventDefault();
  redraw();
}

async function start() {
  await Promise.all(view.layers.map(unpack));
  for (const input of document.querySelectorAll("input")) {
    const layer = view.layers[input.dataset.layer];
    const set = () => { if (layer) layer[input.name] = +input.value / (input.name === "opacity" ? 100 : 1); redraw(); };
    input.addEventListener("input", set);
    set();
  }
  document.querySelectorAll("canvas").forEach((canvas, number) => {
    planes[number].canvas = canvas;
    const axis = planes[number].column;  // all planes in one scale
    canvas.parentElement.style.flex = `${view.shape[axis] * view.spacing[axis]} 1 0`;
    listen(planes[number], number);
  });
  document.addEventListener("keydown", press);
  addEventListener("resize", redraw);
  draw();
}

start().catch((error) => { here.textContent = `This browser cannot show it: ${error}`; });
