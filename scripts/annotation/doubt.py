"""How much of a draft is wrong, as far as the methods themselves can tell: by voxel, slice and scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np

from common.errors import InputError
from common.scans import voxel_ml

from .results import Opinion

SMOOTHING_ML = 1.0  # keeps an empty draft with a breath of probability from counting as all wrong
GAP_MM = 6.0  # slices that are nearer to each other show the same
THICK = 1.5  # from this ratio of voxel edges on a scan is drawn along its thick slices
PLANES = ("sagittal", "coronal", "axial")  # by the axis of RAS that runs through the slices


class Doubt(NamedTuple):
    """What is to be expected of one draft.

    Attributes:
        wrong_ml: expected volume of voxels with another label in truth.
        draft_ml, expected_ml: volume of the draft, and expected volume.
        disagreement_ml: volume of voxels where two methods differ; 0 of one method.
        score: 1 - expected Dice, see :func:`soft_dice`.
        by_slice: expected wrong ml of each slice along the drawing plane, in the order of the file.
        axis: of the file that runs through these slices.
        plane: its name.
    """

    wrong_ml: float
    draft_ml: float
    expected_ml: float
    disagreement_ml: float
    score: float
    by_slice: np.ndarray
    axis: int
    plane: str


def right_of(opinion: Opinion, draft: np.ndarray) -> np.ndarray:
    """Probability, as one method has it, that the label in the draft is the right one, by voxel.

    A map of probability says it itself. With an entropy it is what is left of certainty where the method agrees with
    the draft, and a share of the doubt where it does not. A bare mask is sure.

    Args:
        opinion: of the method.
        draft: labels (X, Y, Z).
    """
    same = opinion.mask == draft
    if opinion.probability is not None:
        return np.where(draft > 0, opinion.probability, 1 - opinion.probability)
    if opinion.wrong is not None:
        return np.where(same, 1 - opinion.wrong, opinion.wrong / (opinion.classes - 1))
    return same.astype(np.float32)


def wrong_map(opinions: Sequence[Opinion]) -> np.ndarray:
    """Probability that the draft of the first method is wrong, by voxel: the mean of what each method says."""
    draft = opinions[0].mask
    return 1 - np.mean([right_of(opinion, draft) for opinion in opinions], axis=0)


def soft_dice(right_ml: float, draft_ml: float, expected_ml: float) -> float:
    """Dice that is to be expected of a draft, with a milliliter of agreement added.

    Args:
        right_ml: expected volume of the draft that is right.
        draft_ml, expected_ml: volume of the draft, and expected true volume.
    """
    return (2 * right_ml + SMOOTHING_ML) / (draft_ml + expected_ml + SMOOTHING_ML)


def doubt_of(opinions: Sequence[Opinion], affine: np.ndarray, plane: str = "auto") -> Doubt:
    """What the methods together expect of the draft of the first of them: the mean of what each says.

    Args:
        opinions: of one scan, one a method.
        affine: of the scan, voxel to world in mm.
        plane: that is drawn in, of :data:`PLANES`, or auto: across the longest edge of the voxels where they are no
            cubes, else axial.

    Raises:
        InputError: if there is one mask without a map, which says nothing of its doubt.
    """
    draft = opinions[0].mask
    if len(opinions) == 1 and opinions[0].probability is None and opinions[0].wrong is None:
        raise InputError(
            "the results are one mask a scan without a map of probability or entropy, expected the map, "
            "--save_entropy true where the bundle has it, or the results of a second bundle"
        )
    ml = voxel_ml(affine)
    wrong = wrong_map(opinions)
    masks = np.stack([opinion.mask for opinion in opinions])
    draft_ml = float((draft > 0).sum() * ml)
    volumes = [o.mask > 0 if o.probability is None else o.probability for o in opinions]
    expected_ml = float(np.mean([volume.sum(dtype=float) for volume in volumes]) * ml)
    right_ml = float((1 - wrong)[draft > 0].sum(dtype=float) * ml)
    axis, name = drawing_axis(affine, plane)
    others = tuple(a for a in range(3) if a != axis)
    by_slice = wrong.sum(axis=others, dtype=float) * ml
    return Doubt(
        wrong_ml=float(by_slice.sum()),
        draft_ml=draft_ml,
        expected_ml=expected_ml,
        disagreement_ml=float((masks != masks[0]).any(0).sum() * ml),
        score=1 - soft_dice(right_ml, draft_ml, expected_ml),
        by_slice=by_slice,
        axis=axis,
        plane=name,
    )


def drawing_axis(affine: np.ndarray, plane: str = "auto") -> tuple[int, str]:
    """Axis of the file that runs through the slices to draw on, and the name of their plane; see :func:`doubt_of`."""
    axes = nib.io_orientation(affine)[:, 0].astype(int)  # of the world, by axis of the file
    sizes = nib.affines.voxel_sizes(affine)
    if plane == "auto":
        longest = int(sizes.argmax())
        axis = longest if sizes.max() > THICK * sizes.min() else int(np.flatnonzero(axes == 2)[0])
    else:
        axis = int(np.flatnonzero(axes == PLANES.index(plane))[0])
    return axis, PLANES[axes[axis]]


def slices_worth(by_slice: np.ndarray, spacing_mm: float, count: int) -> list[int]:
    """Indices of the slices with most to correct, none nearer to another than :data:`GAP_MM`, most first.

    Args:
        by_slice: expected wrong ml of each.
        spacing_mm: between them.
        count: at most so many; those without anything wrong are left out.
    """
    left = np.array(by_slice, dtype=float)
    places = np.arange(len(left)) * spacing_mm
    found: list[int] = []
    while len(found) < count and left.max(initial=0) > 0:
        index = int(left.argmax())
        found.append(index)
        left[np.abs(places - places[index]) < GAP_MM] = 0
    return found
