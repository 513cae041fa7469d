"""Lesions of two visits matched: new, gone, grown, shrunk, stable, merged, split, and what the masks of changes say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from .retest import Retest

TOUCHING = np.ones((3, 3, 3))
# values of <file>_change.nii.gz
CHANGES = {1: "stable lesion", 2: "new lesion", 3: "growth", 4: "gone lesion", 5: "shrinkage"}
LATER, EARLIER = (2, 3), (4, 5)  # what only the later, and only the earlier visit has


@dataclass(frozen=True)
class Lesion:
    """What is connected at either visit, one lesion or several that have merged or split.

    Attributes:
        number: from 1 on, the largest change first.
        fate: new, gone, grown, shrunk, stable, merged or split.
        before_ml, after_ml: volume at the earlier and at the later visit.
        low_ml, high_ml: interval of the change, see :class:`visits.retest.Retest`; None where nobody measured it.
        parts: connected parts at either visit.
        center: voxel of the grid in the middle of what changed, or of the lesion where nothing did.
        z: mean difference of gray values there, in units of noise.
    """

    number: int
    fate: str
    before_ml: float
    after_ml: float
    low_ml: float | None
    high_ml: float | None
    parts: tuple[int, int]
    center: tuple[int, int, int]
    z: float

    @property
    def change_ml(self) -> float:
        """Volume at the later visit less that at the earlier one."""
        return self.after_ml - self.before_ml

    @property
    def changed(self) -> bool:
        """Whether it is other than stable; merged and split ones where their volume changed beyond its interval."""
        if self.fate in ("merged", "split"):
            return _beyond(self.before_ml, self.after_ml, self.low_ml, self.high_ml)
        return self.fate != "stable"


def match_lesions(
    before: np.ndarray, after: np.ndarray, z: np.ndarray, spacing: np.ndarray, retest: Retest | None
) -> tuple[list[Lesion], np.ndarray]:
    """Lesions of two visits, and what has changed where.

    What touches, of either visit, is one line: a part at one visit only is new or gone; one part at each is grown or
    shrunk where its change is beyond the interval of test and retest, else stable; several at the one and fewer at the
    other are split or merged. Without an interval any change of volume counts as growth or shrinkage.

    The interval is of a whole lesion. The map shows where a part of it came or went, also where its volume as a whole
    stays within the interval: volumes before and after differ by what the map shows.

    Args:
        before, after: lesions at both visits, (X, Y, Z) bool, on one grid.
        z: difference of gray values in units of noise.
        spacing: voxel size, mm.
        retest: how far volumes move without change; None if nobody measured that.

    Returns:
        Lesions, the largest change first; and a map (X, Y, Z) uint8 of :data:`CHANGES`.
    """
    numbered, count = ndimage.label(before | after, TOUCHING)
    voxel_ml = float(np.prod(spacing)) / 1000
    sizes = [np.bincount(numbered[mask], minlength=count + 1) * voxel_ml for mask in (before, after)]
    parts = [_parts(mask, numbered, count) for mask in (before, after)]
    change = np.zeros(before.shape, np.uint8)
    lesions = []
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        own = numbered[box] == number
        volumes = float(sizes[0][number]), float(sizes[1][number])
        many = int(parts[0][number]), int(parts[1][number])
        low, high = retest.lesion_interval(*volumes) if retest else (None, None)
        fate = _fate(volumes, many, low, high)
        found = Lesion(number, fate, *volumes, low, high, many, (0, 0, 0), 0.0)
        one, other = own & before[box], own & after[box]
        differs = one ^ other
        change[box][own] = 1
        change[box][other & ~one] = 2 if fate == "new" else 3
        change[box][one & ~other] = 4 if fate == "gone" else 5
        differs = differs if found.changed else own
        middle = np.argwhere(differs)
        at = middle[np.square(middle - middle.mean(0)).sum(1).argmin()] + [part.start for part in box]
        lesions.append((found, tuple(int(v) for v in at), float(z[box][differs].mean())))
    lesions.sort(key=lambda item: (not item[0].changed, -abs(item[0].change_ml), item[0].number))
    fields = [
        (vars(lesion) | {"number": n, "center": at, "z": mean}) for n, (lesion, at, mean) in enumerate(lesions, 1)
    ]
    return [Lesion(**values) for values in fields], change


def _fate(volumes: tuple[float, float], parts: tuple[int, int], low: float | None, high: float | None) -> str:
    if not volumes[0] or not volumes[1]:
        return "gone" if volumes[0] else "new"
    if parts[0] != parts[1]:
        return "merged" if parts[0] > parts[1] else "split"
    if not _beyond(*volumes, low, high):
        return "stable"
    return "grown" if volumes[1] > volumes[0] else "shrunk"


def _beyond(before_ml: float, after_ml: float, low: float | None, high: float | None) -> bool:
    return before_ml != after_ml if low is None else not low <= 0 <= high


def _parts(mask: np.ndarray, numbered: np.ndarray, count: int) -> np.ndarray:
    """Connected parts of a mask in each of the numbered groups."""
    labels, found = ndimage.label(mask, TOUCHING)
    if not found:
        return np.zeros(count + 1, int)
    group = ndimage.maximum(numbered, labels, np.arange(1, found + 1))
    return np.bincount(np.asarray(group, int), minlength=count + 1)


def difference_of_masks(
    masks: Sequence[np.ndarray], spacing: np.ndarray, min_change_mm3: float
) -> tuple[np.ndarray, np.ndarray]:
    """The baseline: what only the later, and what only the earlier of two independent masks has, of a size, bool."""
    found = []
    for one, other in ((masks[1], masks[0]), (masks[0], masks[1])):
        parts, _ = ndimage.label(one & ~other, TOUCHING)
        large = np.bincount(parts.ravel()) * np.prod(spacing) >= min_change_mm3
        large[0] = False
        found.append(large[parts])
    return found[0], found[1]


def world_of(center: Sequence[int], affine: np.ndarray, way: np.ndarray) -> list[float]:
    """A voxel of the half-way grid in the world of a visit, RAS mm."""
    return [round(float(v), 1) for v in nib.affines.apply_affine(way @ affine, center)]


@dataclass(frozen=True)
class Score:
    """Changes found against a reference.

    Attributes:
        changes: connected changes of the reference, of the least size.
        found: of these, those that a found change touches.
        false: found changes that touch none of the reference.
        false_ml: their volume.
        dice: of the voxels; nan where neither has any.
    """

    changes: int
    found: int
    false: int
    false_ml: float
    dice: float

    def numbers(self, prefix: str) -> dict[str, Any]:
        """For a table."""
        return {f"{prefix}_{name}": value for name, value in vars(self).items()}


def score(found: np.ndarray, reference: np.ndarray, spacing: np.ndarray, min_change_mm3: float) -> Score:
    """How many changes of a reference are found, and how many are false; changes are connected by 26 neighbors.

    Args:
        found, reference: (X, Y, Z) bool.
        spacing: voxel size, mm.
        min_change_mm3: smaller changes of the reference are neither missed nor found; they make none false either.
    """
    voxel_mm3 = float(np.prod(spacing))
    wanted, count = ndimage.label(reference, TOUCHING)
    sizes = np.bincount(wanted.ravel(), minlength=count + 1) * voxel_mm3
    large = np.flatnonzero(sizes[1:] >= min_change_mm3) + 1
    parts, number = ndimage.label(found, TOUCHING)
    right = np.setdiff1d(np.unique(parts[reference]), [0])
    wrong = found & ~np.isin(parts, right)
    both = int(found.sum()) + int(reference.sum())
    return Score(
        changes=len(large),
        found=int(np.isin(large, np.unique(wanted[found])).sum()),
        false=number - len(right),
        false_ml=float(wrong.sum()) * voxel_mm3 / 1000,
        dice=2 * int((found & reference).sum()) / both if both else float("nan"),
    )
