"""The page of a comparison of visits: numbers of each pair, and a picture of each change."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.evaluation import versions
from common.page import CaseView, Section, Table, Tile, write_html_report
from common.pictures import PREDICTION_COLOR, REFERENCE_COLOR, Picture, png

from .comparing import Comparison
from .lesions import Lesion
from .results import files_of
from .retest import Retest

logger = logging.getLogger(__name__)
HALF_MM = 26.0  # of the part of a slice around a change
Z_SHOWN = 8.0  # difference at the ends of the scale, in units of noise
PIXELS = 330
DEFINITIONS = (
    ("change", "Volume of lesions at the later visit less that at the earlier one, after the joint segmentation."),
    ("interval", "By how far volumes move between scans without change. Without 0 in it, scanning again makes no such "
     "change; how large a real change is, it does not say."),
    ("new, gone", "A lesion that one visit has and the other has not, and that touches none which both have."),
    ("grown, shrunk", "A lesion of both visits whose volume changed by more than its interval."),
    ("merged, split", "Several at the one visit, fewer at the other, which touch. Changed where the interval says so."),
    ("difference of masks", "The simple way: parts that one of two independent masks has, of the same least size."),
    ("difference", f"Gray values of the later visit less those of the earlier one, matched, in units of noise: blue "
     f"-{Z_SHOWN:g}, red {Z_SHOWN:g}."),
    ("contrast", "Of lesions beside the tissue around them, in units of that noise. Below 2 gray values say little."),
    ("there and back", "How far a point at the rim of the head is off after a search from visit to visit and back."),
    ("not compared", "Lesions where the other visit shows no brain."),
)  # fmt: skip


def write_page(output_dir: Path, comparisons: Sequence[Comparison], retest: Retest | None, max_pictures: int) -> Path:
    """Write ``visits.html``: a section per pair.

    Args:
        output_dir: folder.
        comparisons: what was found.
        retest: what the intervals are from; None where there are none.
        max_pictures: of changes per pair, the largest first.

    Raises:
        InputError: if the file cannot be written.
    """
    source = (
        "Nobody measured test and retest for these masks: volumes have no interval, and any change of a volume counts."
        if retest is None
        else f"Intervals of {retest.level:.0%} are from {retest.source}. There, a pair had {retest.false_changes:g} "
        "new or gone lesions on average although nothing had changed."
    )
    others = [] if retest is None else sorted({v.source for f in comparisons for v in f.visits})
    others = [name for name in others if name not in retest.source]
    if others:
        source += f" They were not measured with {', '.join(others)}: docs/visits.md says how to measure your own."
        logger.warning("intervals are from %s, not from %s", retest.source, ", ".join(others))
    sections = [_section(output_dir, found, retest, max_pictures) for found in comparisons]
    return write_html_report(output_dir / "visits.html", "What has changed", sections, source)


def _section(output_dir: Path, found: Comparison, retest: Retest | None, max_pictures: int) -> Section:
    row = found.row(retest)
    changed = [lesion for lesion in found.lesions if lesion.changed]
    shown = changed[:max_pictures]
    interval = "" if retest is None else f"{retest.level:.0%} interval {row['low_ml']:+.2f} to {row['high_ml']:+.2f} ml"
    tiles = [
        Tile("lesions, earlier", f"{row['earlier_ml']:.2f} ml", f"mask alone {found.baseline_ml[0]:.2f} ml"),
        Tile("lesions, later", f"{row['later_ml']:.2f} ml", f"mask alone {found.baseline_ml[1]:.2f} ml"),
        Tile("change", f"{row['change_ml']:+.2f} ml", interval),
        *(Tile(fate, str(row[fate])) for fate in ("new", "gone", "grown", "shrunk")),
    ]
    compared = [["joint", *_counts(row["appeared_ml"], row["disappeared_ml"]), *_scores(found, "joint")]]
    masks = (f"{found.baseline_changes[0]} parts", f"{found.baseline_changes[1]} parts")
    compared.append(["difference of masks", *masks, *_scores(found, "baseline")])
    columns = ["way", "appeared", "disappeared", *(("changes found", "false", "Dice") if found.scores else ())]
    left = len(changed) - len(shown)
    return Section(
        title=found.name,
        lead=" ".join(f"Look first: {sentence}." for sentence in found.warnings),
        tiles=tiles,
        tables=[Table("Changes and the simple way", columns, compared), _lesion_table(changed)],
        cases=[_view(found, lesion) for lesion in shown],
        cases_note="Each picture: the axial slice of the later visit with a frame, then inside of it the earlier and "
        "the later visit, and their difference."
        + (f" {left} smaller changes are in changes.tsv only." if left else ""),
        keys=("lesion at the earlier visit", "lesion at the later visit"),
        details=[
            *((f"lesions, {visit.visit}", f"{visit.source}: {Path(visit.lesions).name}") for visit in found.visits),
            *((f"masks of changes, {visit.visit}", file.name)
              for visit, file in zip(found.visits, files_of(output_dir, found.visits), strict=True)),
            *((name, str(value)) for name, value in found.grid.numbers().items()),
            ("contrast of lesions", f"{found.joint.contrast:.1f}"),
            ("noise", f"{found.joint.noise:.1%} of tissue"),
            ("not compared", f"{sum(found.outside_ml):.3f} ml"),
            *versions().items(),
        ],
        definitions=DEFINITIONS,
    )  # fmt: skip


def _counts(appeared_ml: float, disappeared_ml: float) -> tuple[str, str]:
    return f"{appeared_ml:.3f} ml", f"{disappeared_ml:.3f} ml"


def _scores(found: Comparison, method: str) -> list[str]:
    if method not in found.scores:
        return []
    s = found.scores[method]
    return [f"{s.found} of {s.changes}", f"{s.false} ({s.false_ml:.2f} ml)", f"{s.dice:.3f}"]


def _lesion_table(changed: Sequence[Lesion]) -> Table:
    rows = [
        [f"{lesion.number} {lesion.fate}", f"{lesion.before_ml:.3f}", f"{lesion.after_ml:.3f}"]
        + [f"{lesion.change_ml:+.3f}", _interval(lesion), f"{lesion.z:+.1f}"]
        for lesion in changed
    ]
    columns = ("lesion", "earlier, ml", "later, ml", "change, ml", "interval, ml", "difference")
    return Table("Changed lesions" if rows else "No lesion has changed", columns, rows)


def _interval(lesion: Lesion) -> str:
    return "" if lesion.low_ml is None else f"{lesion.low_ml:+.3f} to {lesion.high_ml:+.3f}"


def _view(found: Comparison, lesion: Lesion) -> CaseView:
    facts = [("earlier", f"{lesion.before_ml:.3f} ml"), ("later", f"{lesion.after_ml:.3f} ml")]
    facts += [("change", f"{lesion.change_ml:+.3f} ml"), ("difference", f"{lesion.z:+.1f} times its noise")]
    facts += [("interval", _interval(lesion))] if lesion.low_ml is not None else []
    return CaseView(f"{lesion.number}: {lesion.fate}", facts, [change_picture(found, lesion)], wide=True)


def change_picture(found: Comparison, lesion: Lesion) -> Picture:
    """One strip: the axial slice of the later visit with a frame around the change; the earlier and the later visit in
    the frame, with contours of both; their difference. In radiological convention.

    Args:
        found: the pair.
        lesion: one of its lesions.
    """
    spacing, index = found.grid.spacing, lesion.center[2]
    images = found.joint.images
    top = float(np.percentile(images[1][found.brain], 99.8))
    half = np.maximum(np.round(HALF_MM / spacing[:2]).astype(int), 1)
    frame = tuple(slice(max(c - h, 0), c + h + 1) for c, h in zip(lesion.center[:2], half, strict=True))
    whole = (slice(None), slice(None))
    figure = Figure(figsize=(4 * PIXELS / 100, PIXELS / 100), dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    masks = [mask[..., index] for mask in found.joint.masks()]
    panels = ((images[1], whole), (images[0], frame), (images[1], frame), (found.joint.z, frame))
    for number, (volume, part) in enumerate(panels):
        axes = figure.add_axes((number / 4, 0, 0.246, 1))
        axes.set_axis_off()
        scale = (-Z_SHOWN, Z_SHOWN, "RdBu_r") if number == 3 else (0, top, "gray")
        _show(axes, volume[..., index][part], spacing, scale)
        if number == 0:
            _frame(axes, frame, volume.shape, spacing)
            continue
        for mask, color, width in zip(masks, (REFERENCE_COLOR, PREDICTION_COLOR), (2.6, 1.4), strict=True):
            _contour(axes, mask[part], spacing, color, width)
    caption = f"axial slice of the later visit; the frame at the earlier and the later visit; difference, blue to red -{Z_SHOWN:g} to {Z_SHOWN:g}"  # noqa: E501
    return Picture(png(figure), caption, f"lesion {lesion.number}, {lesion.fate}, at both visits")


def _show(axes: Axes, plane: np.ndarray, spacing: np.ndarray, scale: tuple[float, float, str]) -> None:
    """A plane (X, Y) with anterior up and the patient's right on the left."""
    width, height = plane.shape[0] * spacing[0], plane.shape[1] * spacing[1]
    low, high, colors = scale
    extent = (0, width, height, 0)
    axes.imshow(plane.T[::-1, ::-1], cmap=colors, vmin=low, vmax=high, extent=extent, interpolation="bilinear")


def _contour(axes: Axes, plane: np.ndarray, spacing: np.ndarray, color: str, width: float) -> None:
    if not plane.any():
        return
    turned = np.pad(plane.T[::-1, ::-1], 1).astype(float)
    x = (np.arange(-1, plane.shape[0] + 1) + 0.5) * spacing[0]
    y = (np.arange(-1, plane.shape[1] + 1) + 0.5) * spacing[1]
    axes.contour(x, y, turned, levels=[0.5], colors=color, linewidths=width)


def _frame(axes: Axes, part: tuple[slice, ...], shape: Sequence[int], spacing: np.ndarray) -> None:
    right, left = (shape[0] - np.array([part[0].start, min(part[0].stop, shape[0])])) * spacing[0]
    low, high = (shape[1] - np.array([part[1].start, min(part[1].stop, shape[1])])) * spacing[1]
    axes.plot([left, right, right, left, left], [high, high, low, low, high], color="white", linewidth=1.2)
