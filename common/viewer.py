"""A case to look through: scan, masks and map in three planes, in one HTML file that asks for nothing else.

Why a viewer of our own: NiiVue comes as 5 MB of JavaScript in each file, and nilearn's draws one overlay without
opacity. Here the volumes are all that is large, and the script is short enough to be read.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex

from .files import write_text
from .page import COLORS
from .pictures import LABEL_COLORS, PREDICTION_COLOR, REFERENCE_COLOR, RasVolumes, fullest_slice, to_ras

MOST_VOXELS = 4_500_000  # of a layer; a brain at 1 mm has fewer
MOST_CHARACTERS = 2_000_000  # of the scan, in base64; a noisy one gets fewer shades
SCORE_STEPS = 31  # shades of a map
# of several methods, far from the reference's; an eighth has the first again
METHOD_COLORS = (PREDICTION_COLOR, "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#FFFFFF", "#B07CFF")

Masks = np.ndarray | Mapping[str, np.ndarray]


def write_view(
    path: str | Path,
    name: str,
    volumes: tuple[np.ndarray, np.ndarray, Masks, np.ndarray | None, np.ndarray | None],
    label_names: Mapping[int, str],
    score_max: float = 1.0,
    facts: Sequence[tuple[str, str]] = (),
    links: Sequence[tuple[str, str]] = (),
) -> None:
    """Write one page on which a case can be scrolled through; equal input gives equal bytes.

    The volumes are cut to the head, the scan has at most 256 shades, and where a layer has more than ``MOST_VOXELS``
    blocks of voxels become one: the mean of the scan, the largest label or score of the others, so that nothing small
    is lost. Oblique volumes are shown along the nearest axes, in radiological convention.

    Args:
        path: HTML file.
        name: of the case.
        volumes: image, affine, prediction, reference and scores, as :func:`common.pictures.case_pictures` takes them.
            The prediction may be several, by the names of the methods.
        label_names: value -> name.
        score_max: score at the bright end of the scale, which begins at 0.
        facts: names and values to say of the case.
        links: text and address of other pages.

    Raises:
        InputError: if the file cannot be written.
    """
    image, affine, predictions, reference, scores = volumes
    predictions = predictions if isinstance(predictions, Mapping) else {"prediction": predictions}
    ras = to_ras(image, affine, next(iter(predictions.values())), reference, scores)
    masks = {name: nib.apply_orientation(mask, nib.io_orientation(affine)) for name, mask in predictions.items()}
    affine = affine @ nib.orientations.inv_ornt_aff(nib.io_orientation(affine), image.shape)
    factors = _factors([s.stop - s.start for s in ras.box], ras.spacing)
    corner = [s.start + (f - 1) / 2 for s, f in zip(ras.box, factors, strict=True)]  # middle of the first block
    affine = affine @ nib.affines.from_matvec(np.diag(factors).astype(float), corner)
    known = [] if ras.reference is None else [ras.reference > 0]
    of_one = [*known, ras.prediction > 0]
    # one of several that finds much too much does not choose the place
    either = known[0] if len(masks) > 1 and known and known[0].any() else np.any(of_one, axis=0)
    middle = [fullest_slice(either, axis, ras.box) for axis in range(3)]
    content = {
        "spacing": np.round(ras.spacing * factors, 4).tolist(),
        "affine": np.round(affine[:3], 4).tolist(),
        "start": [int(m - s.start) // f for m, s, f in zip(middle, ras.box, factors, strict=True)],
        "layers": _layers(ras, masks, factors, label_names, score_max),
    }
    content["shape"] = [-(-int(s.stop - s.start) // f) for s, f in zip(ras.box, factors, strict=True)]
    write_text(path, _rendered(name, content, facts, links))


def _factors(shape: Sequence[int], spacing: np.ndarray) -> list[int]:
    """How many voxels of each axis become one, the smallest first."""
    factors = np.ones(3, dtype=int)
    while np.prod(-(-np.array(shape) // factors)) > MOST_VOXELS:
        factors[np.argmin(spacing * factors)] += 1
    return factors.tolist()


def _layers(
    ras: RasVolumes,
    predictions: Mapping[str, np.ndarray],
    factors: Sequence[int],
    label_names: Mapping[int, str],
    score_max: float,
) -> list[dict[str, Any]]:
    low, top = ras.gray
    scan = _blocks(ras.image[ras.box], factors, np.mean)
    high = max(float(np.percentile(scan, 99.99)), top)  # so that there is something to see in what pictures show white
    shades = 255
    while 8 * len(_packed(_steps(scan[..., ::8], low, high, shades))) > MOST_CHARACTERS and shades > 31:
        shades //= 2
    layers = [_scale("scan", _steps(scan, low, high, shades), low, high, shades)]
    layers[0] |= {"white": round(100 * (top - low) / (high - low))}
    if ras.scores is not None:
        steps = _steps(_blocks(ras.scores[ras.box], factors, np.max), 0, score_max, SCORE_STEPS)
        colors = [to_hex(colormaps["inferno"](step / SCORE_STEPS)) for step in range(1, SCORE_STEPS + 1)]
        layers.append(_scale("map", steps, 0, score_max, SCORE_STEPS) | {"colors": colors, "opacity": 0})
    shown = [] if ras.reference is None else [("reference", ras.reference, REFERENCE_COLOR, 0.0)]
    for number, (name, mask) in enumerate(predictions.items()):
        shown.append((name, mask, METHOD_COLORS[number % len(METHOD_COLORS)], 0.0 if number else 0.5))
    values = sorted(value for value in label_names if value != 0)
    table = np.zeros(max(values) + 1, dtype=np.uint8)
    table[values] = np.arange(1, len(values) + 1)
    several = [LABEL_COLORS[i % len(LABEL_COLORS)] for i in range(len(values))] if len(values) > 1 else None
    for what, mask, color, opacity in shown:
        layer = {"name": what, "kind": "labels", "data": _packed(_blocks(table[mask[ras.box]], factors, np.max))}
        layer |= {"colors": several or [color], "names": [label_names[value] for value in values]}
        layers.append(layer | {"opacity": opacity if several else 1.0})  # of several, areas; of one, the outline
    return layers


def _scale(name: str, values: np.ndarray, low: float, high: float, steps: int) -> dict[str, Any]:
    """A layer of shades; its name is its kind."""
    return {
        "name": name,
        "kind": name,
        "low": low,
        "step": (high - low) / steps,
        "steps": steps,
        "data": _packed(values),
    }


def _blocks(volume: np.ndarray, factors: Sequence[int], join: Callable) -> np.ndarray:
    """One voxel for each block, which may reach over the end."""
    if list(factors) == [1, 1, 1]:
        return volume
    padding = [(0, -n % f) for n, f in zip(volume.shape, factors, strict=True)]
    padded = np.pad(volume, padding, mode="edge")
    split = padded.reshape([n for size, f in zip(padded.shape, factors, strict=True) for n in (size // f, f)])
    return join(split, axis=(1, 3, 5))


def _steps(values: np.ndarray, low: float, high: float, steps: int) -> np.ndarray:
    """Whole numbers from 0 at ``low`` to ``steps`` at ``high``."""
    scaled = (values.astype(np.float32) - low) * (steps / (high - low))
    return np.clip(np.round(scaled), 0, steps).astype(np.uint8)


def _packed(values: np.ndarray) -> str:
    """Differences of neighbors along x, compressed, as text."""
    steps = np.diff(values.ravel(order="F"), prepend=np.uint8(0))
    deflate = zlib.compressobj(6, strategy=zlib.Z_RLE)  # noise repeats nothing: as small, in a fifth of the time
    return base64.b64encode(deflate.compress(steps.tobytes()) + deflate.flush()).decode("ascii")


def _rendered(
    name: str, content: dict[str, Any], facts: Sequence[tuple[str, str]], links: Sequence[tuple[str, str]]
) -> str:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")  # ends no element
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    several = any(len(layer.get("names", ())) > 1 for layer in content["layers"])
    return environment.from_string(TEMPLATE).render(
        name=name,
        layers=content["layers"],
        facts=facts,
        links=links,
        outlines=not several,
        digest=digest,
        **{key: Markup(text) for key, text in {"style": STYLE, "script": SCRIPT, "data": data}.items()},
    )


STYLE = f"""
{COLORS}
* {{ box-sizing:border-box; }}
body {{ margin:0 auto; padding:14px 20px 24px; max-width:1900px; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; overflow-wrap:anywhere; }}
header {{ display:flex; flex-wrap:wrap; gap:4px 22px; align-items:baseline; }}
h1 {{ margin:0; font-size:1.25rem; }}
a {{ color:var(--link); }}
nav {{ display:flex; flex-wrap:wrap; gap:4px 16px; }}
.facts, .labels {{ display:flex; flex-wrap:wrap; gap:2px 20px; margin:4px 0 10px; font-variant-numeric:tabular-nums; }}
.facts span, figcaption, .keys {{ color:var(--muted); }}
#planes {{ display:flex; gap:8px; align-items:flex-start; }}
figure {{ margin:0; min-width:0; }}
canvas {{ display:block; width:100%; background:#000; border-radius:6px; touch-action:none; cursor:crosshair; }}
canvas:focus {{ outline:none; }}
.active canvas {{ box-shadow:0 0 0 2px var(--link); }}
figcaption, #here {{ font-variant-numeric:tabular-nums; font-size:.92rem; }}
#here {{ margin:8px 0; min-height:1.5em; }}
.controls {{ display:flex; flex-wrap:wrap; gap:8px 26px; padding:10px 14px; background:var(--card);
  border:1px solid var(--line); border-radius:10px; }}
.controls label {{ display:flex; align-items:center; gap:8px; }}
input {{ accent-color:var(--link); }}
.labels {{ margin:10px 0 0; }}
.labels i {{ display:inline-block; width:12px; height:12px; margin-right:6px; border-radius:3px;
  border:1px solid #00000055; }}
kbd {{ border:1px solid var(--line); border-radius:4px; padding:0 5px; background:var(--card); font:inherit; }}
@media (max-width:700px) {{ body {{ padding:10px; }} #planes {{ flex-direction:column; }}
  figure {{ flex:none !important; width:100%; }} }}
@media print {{ .controls, .keys, nav {{ display:none; }}
  canvas, i {{ print-color-adjust:exact; -webkit-print-color-adjust:exact; }} }}
"""

SCRIPT = """"use strict";
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
  here.textContent = [`x, y, z: ${place.join(", ")} mm`, ...values].join(" \\u00b7 ");
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
"""

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
 script-src 'sha256-{{ digest }}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ name }}</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
</head>
<body>
<header><h1>{{ name }}</h1>
{% if links %}
<nav>
{% for text, address in links %}
<a href="{{ address }}">{{ text }}</a>
{% endfor %}
</nav>
{% endif %}
</header>
<p class="facts">
{% for fact, value in facts %}
<span>{{ fact }}: <b>{{ value }}</b></span>
{% endfor %}
</p>
<div id="planes">
{% for plane in ("axial", "coronal", "sagittal") %}
<figure><canvas tabindex="0" role="img" aria-label="{{ plane }} slice"></canvas>
<figcaption>{{ plane }} <output></output></figcaption></figure>
{% endfor %}
</div>
<p id="here" role="status">Without JavaScript there is nothing to see here.</p>
<div class="controls">
<label>black <input type="range" name="black" data-layer="0" min="0" max="100" value="0" autocomplete="off"></label>
<label>white <input type="range" name="white" data-layer="0" min="0" max="100" value="{{ layers[0].white }}"
 autocomplete="off"></label>
{% for layer in layers[1:] %}
<label><kbd>{{ loop.index }}</kbd> {{ layer.name }}
 <input type="range" name="opacity" data-layer="{{ loop.index }}" min="0" max="100"
 value="{{ (100 * layer.opacity) | int }}" autocomplete="off"></label>
{% endfor %}
<label><input type="checkbox" id="outlines"{% if outlines %} checked{% endif %} autocomplete="off"> outlines</label>
<label><input type="checkbox" id="cross" checked autocomplete="off"> cross</label>
</div>
{% set shown = layers[-1] %}
<p class="labels">
{% if shown.names | length > 1 %}
{% for color in shown.colors %}
<span><i style="background:{{ color }}"></i>{{ shown.names[loop.index0] }}</span>
{% endfor %}
{% else %}
{% for layer in layers if layer.kind == "labels" %}
<span><i style="background:{{ layer.colors[0] }}"></i>{{ layer.name }}: {{ layer.names[0] }}</span>
{% endfor %}
{% endif %}
</p>
<p class="keys">Wheel or <kbd>↑</kbd> <kbd>↓</kbd>: next slice, <kbd>Page ↑</kbd> <kbd>Page ↓</kbd>: ten;
<kbd>←</kbd> <kbd>→</kbd>: next plane; click or drag: go there; <kbd>1</kbd> to <kbd>9</kbd>: a layer
on and off; <kbd>m</kbd>: all of them;
<kbd>o</kbd>: outlines or areas. R and L are the patient's sides, A and P front and back.</p>
<script type="application/json" id="data">{{ data }}</script>
<script>{{ script }}</script>
</body>
</html>
"""
