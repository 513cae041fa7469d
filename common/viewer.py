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
from .page import style_of, text_of
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
    script = text_of("view.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")  # ends no element
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    several = any(len(layer.get("names", ())) > 1 for layer in content["layers"])
    return environment.from_string(text_of("view.html")).render(
        name=name,
        layers=content["layers"],
        facts=facts,
        links=links,
        outlines=not several,
        digest=digest,
        **{key: Markup(text) for key, text in {"style": style_of("view.css"), "script": script, "data": data}.items()},
    )
