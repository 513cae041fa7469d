"""Pictures of the report: slices with contours as PNG, charts as SVG, both as bytes."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from PIL import Image
from scipy.ndimage import find_objects

from .metrics import PrecisionRecall
from .tables import counted

# apart for every color vision, on gray images too (palette of Okabe and Ito)
REFERENCE_COLOR, PREDICTION_COLOR = "#56B4E9", "#E69F00"
INK, MUTED, GRID = "#1c2733", "#5a6878", "#dfe4ea"
CHART = "#00547a"

# fills of label maps, in the order of the labels; the last of them, often lesions, stand out
LABEL_COLORS = ("#0072B2", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00", "#999999", "#FFFFFF")
FILL_ALPHA = 0.65

PANEL_PIXELS = 440  # longest side
FURTHER_MM = 8.0  # what is nearer to the first axial slice shows the same lesions
VIEWS = ("sagittal", "coronal", "axial")  # by the axis that runs through the slices, of volumes in RAS
SIDES = {"sagittal": "AP", "coronal": "RL", "axial": "RL"}  # left and right margin of the picture


@dataclass(frozen=True)
class Picture:
    """An image file in memory, PNG or SVG, with what a page says about it."""

    data: bytes
    caption: str
    alt: str

    @property
    def mime(self) -> str:
        return "image/png" if self.data.startswith(b"\x89PNG") else "image/svg+xml"


@dataclass(frozen=True)
class RasVolumes:
    """What one case is drawn from, in RAS.

    ``box`` holds what is not dark in the image, with a margin; ``gray`` are the intensities of black and white.
    """

    image: np.ndarray
    prediction: np.ndarray
    reference: np.ndarray | None
    scores: np.ndarray | None
    spacing: np.ndarray
    box: tuple[slice, ...]
    gray: tuple[float, float]


def case_pictures(
    image: np.ndarray,
    affine: np.ndarray,
    prediction: np.ndarray,
    reference: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    score_max: float = 1.0,
    label_names: Mapping[int, str] | None = None,
    focus: int | None = None,
) -> list[Picture]:
    """Slices of one case through the largest load of lesions, in radiological convention.

    The axial slice with most of both masks, plain, with contours and as a map of scores; the coronal and the sagittal
    one; and the axial one, away from the first, where the masks disagree most. Oblique volumes are shown along
    the nearest axes. With ``label_names`` the labels of prediction and reference are shown as fills besides.

    Args:
        image: background, (X, Y, Z).
        affine: voxel to RAS mm, (4, 4).
        prediction: labels, same shape, 0 is background.
        reference: labels, same shape; None if unknown.
        scores: map, same shape; None if there is none.
        score_max: score at the bright end of the scale, which begins at 0.
        label_names: value -> name, where there are several labels.
        focus: of several labels the one whose contours are drawn and which chooses the slices; None for all.
    """
    filled = to_ras(image, affine, prediction, reference, scores)
    if label_names and focus is not None:
        prediction, reference = ((v == focus) * focus if v is not None else None for v in (prediction, reference))
    volumes = to_ras(image, affine, prediction, reference, scores)
    reference_mask = np.zeros_like(volumes.prediction) if volumes.reference is None else volumes.reference
    either = (volumes.prediction > 0) | (reference_mask > 0)
    axial = fullest_slice(either, 2, volumes.box)
    panels = [
        panel(volumes, 2, axial, "image", contours=False),
        panel(volumes, 2, axial, "contours"),
    ]
    if label_names:
        panels.insert(1, panel(filled, 2, axial, "predicted labels", False, None, filled.prediction, label_names))
    if scores is not None:
        panels.insert(2, panel(volumes, 2, axial, f"score, black 0 to white {score_max:.3g}", score_max=score_max))
    if label_names and filled.reference is not None:
        panels.append(panel(filled, 2, axial, "reference labels", False, None, filled.reference, label_names))
    panels += [panel(volumes, axis, fullest_slice(either, axis, volumes.box), "contours") for axis in (1, 0)]
    if reference is not None:
        differs = volumes.prediction != reference_mask
        near = round(FURTHER_MM / volumes.spacing[2])
        differs[..., max(axial - near, 0) : axial + near + 1] = False
        if differs.any():
            further = fullest_slice(differs, 2, volumes.box)
            panels.append(panel(volumes, 2, further, "largest disagreement further off"))
    return panels


def threshold_chart(
    thresholds: np.ndarray, cases: np.ndarray, pooled: PrecisionRecall, threshold: float | None
) -> Picture:
    """Dice over threshold: each case thin, the pooled voxels bold, the threshold in use marked.

    Args:
        thresholds: of the cases, ascending, (T,); they span the axis.
        cases: (N, T); rows of nan, cases without lesion, are left out.
        pooled: curve of all voxels.
        threshold: in use; None if unknown.
    """
    figure, axes = chart("threshold", "Dice")
    cases = cases[~np.isnan(cases).all(axis=1)]
    axes.plot(thresholds, cases.T, color=MUTED, linewidth=0.7, alpha=0.45)
    some = _thinned(len(pooled.thresholds))
    axes.plot(pooled.thresholds[some], pooled.dice[some], color=CHART, linewidth=2.2)
    axes.set(xlim=(thresholds[0], thresholds[-1]), ylim=(0, 1))
    caption = f"Dice of the thresholded map: {counted(len(cases), 'case')} with lesions (thin), pooled voxels (bold)."
    if threshold is not None:
        axes.axvline(threshold, color=PREDICTION_COLOR, linewidth=2, linestyle=(0, (4, 2)))
        caption += f" Dashed: the threshold in use, {threshold:.4g}."
    return Picture(svg(figure), caption, "Curve of Dice over threshold")


def precision_recall_chart(curve: PrecisionRecall, threshold: float | None) -> Picture:
    """Precision over recall of the pooled voxels, with the point of the threshold in use."""
    figure, axes = chart("recall of voxels", "precision of voxels")
    recall, precision = curve.recall, curve.precision
    some = _thinned(len(recall))
    axes.plot(recall[some], precision[some], color=CHART, linewidth=2.2)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    caption = f"Precision and recall of the pooled voxels; area {curve.average_precision:.3f}."
    used = None if threshold is None else np.flatnonzero(curve.thresholds >= threshold)
    if used is not None and used.size:
        point = recall[used[-1]], precision[used[-1]]
        axes.plot(*point, "o", color=PREDICTION_COLOR, markeredgecolor=INK, markersize=9)
        caption += f" Point: threshold {threshold:.4g}."
    return Picture(svg(figure), caption, "Precision-recall curve")


def volume_chart(reference_ml: np.ndarray, prediction_ml: np.ndarray) -> Picture:
    """Predicted over reference volume of each case, on logarithmic axes, with the line of equality."""
    figure, axes = chart("reference volume, ml", "predicted volume, ml")
    values = np.concatenate([reference_ml, prediction_ml])
    floor = values[values > 0].min() / 2 if (values > 0).any() else 0.1
    top = max(values.max() * 1.6, floor * 4)
    axes.plot([floor / 1.5, top], [floor / 1.5, top], color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
    dots(axes, np.maximum(reference_ml, floor), np.maximum(prediction_ml, floor))
    _log_ticks(axes, floor / 1.5, top, "xy")
    caption = "Volume of each case; dashed: equality."
    if (values == 0).any():
        caption += " Empty masks lie on the lower or left margin."
    return Picture(svg(figure), caption, "Predicted over reference volume")


def load_chart(reference_ml: np.ndarray, dice: np.ndarray) -> Picture:
    """Dice of each case over its reference volume: small loads are harder."""
    figure, axes = chart("reference volume, ml", "Dice")
    dots(axes, reference_ml, dice)
    _log_ticks(axes, reference_ml.min() / 1.6, reference_ml.max() * 1.6, "x")
    axes.set_ylim(-0.03, 1.03)
    return Picture(svg(figure), "Dice of each case over its lesion load.", "Dice over reference volume")


def label_chart(values: dict[str, np.ndarray]) -> Picture:
    """Dice of each case by label, with the mean."""
    figure, axes = chart("", "Dice")
    rng = np.random.default_rng(0)
    for position, dice in enumerate(values.values()):
        dice = dice[np.isfinite(dice)]
        dots(axes, position + rng.uniform(-0.12, 0.12, dice.size), dice)
        if dice.size:
            axes.plot([position - 0.3, position + 0.3], [dice.mean()] * 2, color=PREDICTION_COLOR, linewidth=2.5)
    axes.set_xticks(range(len(values)), list(values), rotation=40, ha="right")
    axes.set(xlim=(-0.6, len(values) - 0.4), ylim=(-0.03, 1.03))
    return Picture(svg(figure), "Dice of each case by label; bar: mean.", "Dice by label")


def to_ras(
    image: np.ndarray,
    affine: np.ndarray,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    scores: np.ndarray | None,
) -> RasVolumes:
    """The volumes of a case along the axes of RAS that are nearest to theirs; see :func:`case_pictures`."""
    orientation = nib.io_orientation(affine)
    ras = [None if v is None else nib.apply_orientation(v, orientation) for v in (image, prediction, reference, scores)]
    order = np.argsort(orientation[:, 0])
    bright = ras[0][ras[0] > 0]
    low, high = (0.0, float(np.percentile(bright, 99.7))) if bright.size else (float(image.min()), float(image.max()))
    head = ras[0] > low + 0.05 * (high - low)
    box = next(iter(find_objects(head.view(np.uint8))), tuple(slice(0, n) for n in head.shape))
    spacing = nib.affines.voxel_sizes(affine)[order]
    margin = np.ceil(4 / spacing).astype(int)  # mm
    box = tuple(slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in zip(box, margin, head.shape, strict=True))
    return RasVolumes(*ras, spacing=spacing, box=box, gray=(low, max(high, low + 1e-6)))


def fullest_slice(mask: np.ndarray, axis: int, box: tuple[slice, ...]) -> int:
    """Index of the slice with most of the mask, or the largest sum; the middle of the head if there is none."""
    load = np.sum(mask, axis=tuple(a for a in range(3) if a != axis), dtype=np.int64)
    return int(load.argmax()) if load.any() else (box[axis].start + box[axis].stop) // 2


def panel(
    volumes: RasVolumes,
    axis: int,
    index: int,
    what: str,
    contours: bool = True,
    score_max: float | None = None,
    fill: np.ndarray | None = None,
    label_names: Mapping[int, str] | None = None,
    pixels: int = PANEL_PIXELS,
) -> Picture:
    view = VIEWS[axis]
    rows, columns = {0: (2, 1), 1: (2, 0), 2: (1, 0)}[axis]
    plane = tuple(index if a == axis else volumes.box[a] for a in range(3))

    def cut(volume: np.ndarray) -> np.ndarray:
        # up is superior or anterior, left is the patient's right or front
        return volume[plane].T[::-1, ::-1]

    height, width = (volumes.spacing[a] * (volumes.box[a].stop - volumes.box[a].start) for a in (rows, columns))
    scale = pixels / max(height, width)
    figure = Figure(figsize=(width * scale / 100, height * scale / 100), dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    extent = (0, width, height, 0)
    shown, limits, colors = (volumes.image, volumes.gray, "gray")
    if score_max is not None:
        shown, limits, colors = volumes.scores, (0, score_max), "inferno"
    axes.imshow(cut(shown), cmap=colors, vmin=limits[0], vmax=limits[1], extent=extent, interpolation="bilinear")
    if fill is not None:
        _fills(axes, cut(fill), extent, label_names)
    if contours and volumes.reference is not None:
        _contours(axes, cut(volumes.reference), extent, REFERENCE_COLOR, 2.6, halo=True)
    if contours and score_max is None:
        _contours(axes, cut(volumes.prediction), extent, PREDICTION_COLOR, 1.3)
    for x, side in zip((0.02, 0.98), SIDES[view], strict=True):
        text = axes.text(x, 0.98, side, transform=axes.transAxes, color="white", fontsize=12, va="top")
        text.set(ha="left" if x < 0.5 else "right", path_effects=[withStroke(linewidth=2, foreground="black")])
    return Picture(png(figure), f"{view}, {what}", f"{view} slice, {what}")


def _fills(axes: Axes, labels: np.ndarray, extent: tuple[float, ...], label_names: Mapping[int, str]) -> None:
    """Each label in a color of its own, and a legend of them at the lower margin."""
    values = [value for value in sorted(label_names) if value != 0]
    colors = dict(zip(values, (LABEL_COLORS * len(values))[: len(values)], strict=True))
    picture = np.zeros((*labels.shape, 4))
    for value, color in colors.items():
        picture[labels == value] = to_rgba(color, FILL_ALPHA)
    axes.imshow(picture, extent=extent, interpolation="nearest")
    # as the fill looks on medium gray
    shades = {v: FILL_ALPHA * np.array(to_rgb(color)) + (1 - FILL_ALPHA) * 0.5 for v, color in colors.items()}
    axes.legend(
        handles=[Patch(facecolor=shade, label=label_names[value]) for value, shade in shades.items()],
        loc="lower left",
        frameon=False,
        labelcolor="white",
        fontsize=10,
        handlelength=1,
        handleheight=1,
        borderaxespad=0.2,
    )


def _contours(
    axes: Axes, labels: np.ndarray, extent: tuple[float, ...], color: str, width: float, halo: bool = False
) -> None:
    """Outline of each label, closed at the margin of the picture."""
    rows, columns = labels.shape
    x = (np.arange(-1, columns + 1) + 0.5) * extent[1] / columns
    y = (np.arange(-1, rows + 1) + 0.5) * extent[2] / rows
    for value in np.unique(labels[labels > 0]):
        lines = axes.contour(x, y, np.pad(labels == value, 1).astype(float), levels=[0.5], colors=color)
        lines.set(linewidth=width, path_effects=[withStroke(linewidth=width + 1, foreground="#00000090")] * halo)


def _log_ticks(axes: Axes, low: float, high: float, which: str) -> None:
    """Logarithmic axes with plain numbers."""
    steps = [1, 2, 5] if high < 30 * low else [1, 3] if high < 300 * low else [1]
    ticks = np.outer(10.0 ** np.arange(-4, 5), steps).ravel()
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    for name in which:
        axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)


def _thinned(count: int) -> np.ndarray:
    """Indices of at most 600 of ``count`` points, the first and the last among them: no more can be seen."""
    return np.unique(np.linspace(0, count - 1, 600).round().astype(int))


def dots(axes: Axes, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> None:
    axes.plot(x, y, "o", color=CHART, markersize=6, alpha=0.75, markeredgecolor="white", markeredgewidth=0.6)


def chart(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.1, 2.6), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.set_xlabel(x, color=INK, fontsize=10)
    axes.set_ylabel(y, color=INK, fontsize=10)
    axes.tick_params(colors=MUTED, labelsize=9, length=3)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    return figure, axes


def svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "equal pictures have equal names in them"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def png(figure: Figure) -> bytes:
    """A palette looks the same here and takes half the space."""
    figure.canvas.draw()
    out = io.BytesIO()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, format="png")
    return out.getvalue()
