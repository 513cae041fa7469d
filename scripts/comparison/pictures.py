"""Charts and pictures with several methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import nibabel as nib
import numpy as np

from common.pictures import (
    CHART,
    MUTED,
    PREDICTION_COLOR,
    Picture,
    chart,
    dots,
    fullest_slice,
    panel,
    svg,
    to_ras,
)

METHOD_PIXELS = 330  # longest side, where there is a panel per method


def box_chart(values: Mapping[str, np.ndarray], what: str, caption: str) -> Picture:
    """Values of each case by method: box of the quartiles, median, and every case as a dot.

    Args:
        values: method -> one value per case; nan is left out.
        what: name of the axis.
        caption: below the chart.
    """
    figure, axes = chart("", what)
    rng = np.random.default_rng(0)
    finite = [np.asarray(v)[np.isfinite(v)] for v in values.values()]
    axes.boxplot(
        finite,
        positions=range(len(finite)),
        widths=0.6,
        showfliers=False,
        medianprops={"color": PREDICTION_COLOR, "linewidth": 2.5},
        boxprops={"color": MUTED},
        whiskerprops={"color": MUTED},
        capprops={"color": MUTED},
    )
    for position, found in enumerate(finite):
        dots(axes, position + rng.uniform(-0.12, 0.12, found.size), found)
    axes.set_xticks(range(len(finite)), list(values), rotation=40, ha="right")
    axes.set(xlim=(-0.6, len(finite) - 0.4), ylim=(-0.03, 1.03))
    return Picture(svg(figure), caption, f"{what} of each case by method")


def mean_threshold_chart(curves: Sequence[tuple[np.ndarray, np.ndarray]], used: Sequence[float], title: str) -> Picture:
    """Dice over threshold, cases thin, their mean bold, and the thresholds in use.

    Args:
        curves: one per fold and seed: thresholds, (T,), and Dice of its cases there, (N, T).
        used: thresholds in use.
        title: of the method.
    """
    figure, axes = chart("threshold", "Dice")
    for thresholds, cases in curves:
        axes.plot(thresholds, cases.T, color=MUTED, linewidth=0.7, alpha=0.45)
        axes.plot(thresholds, cases.mean(axis=0), color=CHART, linewidth=2.2)
    for threshold in used:
        axes.axvline(threshold, color=PREDICTION_COLOR, linewidth=2, linestyle=(0, (4, 2)))
    axes.set(xlim=(0, max(thresholds[-1] for thresholds, _ in curves)), ylim=(0, 1))
    dashed = ", ".join(f"{threshold:.4g}" for threshold in used)
    caption = f"{title}: Dice of each case with lesions (thin) and their mean (bold). Dashed: in use, {dashed}."
    return Picture(svg(figure), caption, f"Curve of Dice over threshold, {title}")


def method_pictures(
    image: np.ndarray,
    affine: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    reference: np.ndarray | None = None,
    label_names: Mapping[int, str] | None = None,
) -> list[Picture]:
    """One axial slice of one case, plain and with the contours of each method, in radiological convention.

    The slice is the one with most of the reference, or where that is empty or unknown, of what two methods have.

    Args:
        image: background, (X, Y, Z).
        affine: voxel to RAS mm, (4, 4).
        predictions: method -> labels, same shape, 0 is background.
        reference: labels, same shape; None if unknown.
        label_names: value -> name, where there are several labels, which are then shown as fills.
    """
    first = to_ras(image, affine, next(iter(predictions.values())), reference, None)
    orientation = nib.io_orientation(affine)
    volumes = {
        name: replace(first, prediction=nib.apply_orientation(mask, orientation)) for name, mask in predictions.items()
    }
    found = np.sum([v.prediction > 0 for v in volumes.values()], axis=0, dtype=np.int32)
    shown = found > 1 if (found > 1).any() else found > 0
    if reference is not None and reference.any():
        shown = first.reference > 0
    index = fullest_slice(shown, 2, first.box)
    plain = panel(first, 2, index, "image", contours=False, pixels=METHOD_PIXELS)
    panels = [Picture(plain.data, "image", plain.alt)]
    if label_names and reference is not None:
        options = {"fill": first.reference, "label_names": label_names, "pixels": METHOD_PIXELS}
        drawn = panel(first, 2, index, "reference labels", contours=False, **options)
        panels.append(Picture(drawn.data, "reference", drawn.alt))
    for name, v in volumes.items():
        options = {"fill": v.prediction, "label_names": label_names} if label_names else {}
        drawn = panel(v, 2, index, f"masks of {name}", not label_names, pixels=METHOD_PIXELS, **options)
        panels.append(Picture(drawn.data, name, drawn.alt))
    return panels
