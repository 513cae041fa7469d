"""Where two scans of one person lie against each other: a search from many starts, and how far its end can be trusted.

Matrices are 4 x 4, of RAS mm.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import torch
from monai.utils import optional_import
from scipy import ndimage
from scipy.spatial.transform import Rotation

from common.errors import InputError
from common.geometry import sample

from .registration import FLIP, WORKING_MM, execute, head_mask, matrix_of, padded, registration_method, to_itk
from .volume import Volume

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk, _ = optional_import("SimpleITK")

COARSE_MM = 9.0  # of the copies on which starts are compared and followed up
TURNS_DEG = (-44.0, -22.0, 0.0, 22.0, 44.0)  # of starts, about each axis
PROMISING = 5  # starts that are followed up, the headers' besides
BINS = 24  # of intensities, the first for air
RIM_MM = 70.0  # from the middle of a head to where a motion is measured
# right places of real scans have an overlap above 0.95, rivals below 0.5, a blur of 0.2 to 0.35; places 5 mm off,
# and scans of two people, a blur above 0.45
MIN_OVERLAP, MAX_RIVAL, MAX_BLUR = 0.85, 0.7, 0.45
MARGIN_MM = 6.0  # around the head of the fixed scan, where intensities are compared too


@dataclass(frozen=True)
class Match:
    """How one scan lies on another.

    Attributes:
        way: from the world of the fixed scan to that of the moving one.
        information: mutual information of both in the head of the fixed scan, bits per voxel.
        information_of_headers: the same where the headers say that they lie.
        overlap: Dice of both heads, of what lies in both fields of view.
        shift_mm: how far the middle of the head moves against the headers.
        turn_deg: how far it turns.
        rival: largest mutual information of a search that ended elsewhere, as a share of ``information``.
        blur: mean mutual information a few millimeters off, as a share of ``information``.
    """

    way: np.ndarray
    information: float
    information_of_headers: float
    overlap: float
    shift_mm: float
    turn_deg: float
    rival: float
    blur: float

    @property
    def doubt(self) -> str | None:
        """Why it may lie wrong, as the end of a sentence that begins with its name; None if nothing speaks for that."""
        if self.overlap < MIN_OVERLAP:
            return f"may lie wrong: the heads overlap by a Dice of {self.overlap:.2f} only"
        if self.rival > MAX_RIVAL:
            return f"may lie wrong: another place fits {self.rival:.0%} as well"
        if self.blur > MAX_BLUR:
            return f"may lie wrong: {COARSE_MM:g} mm off it fits {self.blur:.0%} as well"
        return None

    def numbers(self) -> dict[str, Any]:
        """For a record: information and that of the headers, overlap, shift_mm, turn_deg, rival, blur, doubt."""
        fields = {name: round(value, 4) for name, value in vars(self).items() if name != "way"}
        return fields | {"doubt": self.doubt}


def coregister(fixed: Volume, moving: Volume) -> Match:
    """Rigid map from the world of one scan of a person to that of another, by mutual information of both heads.

    The search begins where the headers say that both lie, and at many turns about the middle of the heads, among them
    those that bring their main axes together. The most promising are followed up on coarse copies, the best is refined;
    the headers stay if nothing is better at full sampling.

    Raises:
        InputError: if a scan shows no head.
    """
    copies = [scan.isotropic(WORKING_MM) for scan in (fixed, moving)]
    heads = [head_mask(copy) for copy in copies]
    coarse = [copy.isotropic(COARSE_MM) for copy in copies]
    coarse_heads = [
        copy.like(head.astype(np.float32)).isotropic(COARSE_MM).values > 0.5
        for copy, head in zip(copies, heads, strict=True)
    ]
    center, starts = _starts(copies, heads)
    quick, full = _Comparison(coarse, coarse_heads), _Comparison(copies, heads)
    ends = [refined(coarse, coarse_heads[0], start, center) for start in _promising(starts, quick, center)]
    ends.sort(key=full.information, reverse=True)
    best = refined(copies, heads[0], ends[0], center, shrink=(2, 1), sigmas_mm=(3.0, 1.5))
    best = max((np.eye(4), best, ends[0]), key=full.information)

    information = max(full.information(best), 1e-6)
    elsewhere = [full.information(end) for end in ends if _distance(end, best, center) > 2 * COARSE_MM]
    shifts = COARSE_MM * np.r_[np.eye(3), -np.eye(3)]
    near = [full.information(best + np.pad(shift[:, None], ((0, 1), (3, 0)))) for shift in shifts]
    return Match(
        way=best,
        information=information,
        information_of_headers=full.information(np.eye(4)),
        overlap=full.overlap(best),
        shift_mm=float(np.linalg.norm(nib.affines.apply_affine(best, center) - center)),
        turn_deg=float(np.degrees(Rotation.from_matrix(best[:3, :3]).magnitude())),
        rival=max(elsewhere, default=0.0) / information,
        blur=float(np.mean(near)) / information,
    )


class _Comparison:
    """How well two scans fit, of maps between their worlds."""

    def __init__(self, scans: Sequence[Volume], heads: Sequence[np.ndarray]) -> None:
        fixed, moving = scans
        around = ndimage.distance_transform_edt(~np.pad(heads[0], 4), sampling=fixed.spacing) <= MARGIN_MM
        voxels = np.argwhere(around).T - 4
        levels = [_levels(scan.values, head) for scan, head in zip(scans, heads, strict=True)]
        self.fixed = torch.from_numpy(np.pad(levels[0], 4)[around])
        self.moving = torch.from_numpy(levels[1])[None]
        self.head = torch.from_numpy(heads[1].astype(np.float32))[None]
        self.world = np.r_[fixed.affine[:3, :3] @ voxels + fixed.affine[:3, 3:], np.ones((1, voxels.shape[1]))]
        self.to_moving = np.linalg.inv(moving.affine)

    def information(self, way: np.ndarray) -> float:
        """Mutual information in and around the head of the fixed scan, bits per voxel."""
        moved = sample(self.moving, self._points(way), padding="zeros")[0]
        index = self.fixed.round().long() * BINS + moved.round().long()
        joint = torch.bincount(index, minlength=BINS * BINS).double().reshape(BINS, BINS) / len(index)
        entropy = [-(p[p > 0] * p[p > 0].log2()).sum().item() for p in (joint.sum(0), joint.sum(1), joint)]
        return entropy[0] + entropy[1] - entropy[2]

    def overlap(self, way: np.ndarray) -> float:
        """Dice of both heads, of the voxels around that of the fixed scan that lie in both fields of view."""
        points = self._points(way)
        seen = ((points >= 0) & (points <= torch.tensor(self.moving.shape[1:])[:, None] - 1)).all(0)
        moved = (sample(self.head, points, padding="zeros")[0] > 0.5) & seen
        fixed = (self.fixed > 0) & seen
        return (2 * (fixed & moved).sum() / (fixed.sum() + moved.sum()).clamp(min=1)).item()

    def _points(self, way: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(((self.to_moving @ way)[:3] @ self.world).astype(np.float32))


def _levels(values: np.ndarray, head: np.ndarray) -> np.ndarray:
    """0 for air, 1 to ``BINS`` - 1 for what is in the head, float32."""
    low, high = np.percentile(values[head], [1, 99])
    level = 1 + (BINS - 2) * ((values - low) / max(high - low, 1e-9)).clip(0, 1)
    return np.where(head, level, 0).astype(np.float32)


def _starts(scans: Sequence[Volume], heads: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Middle of the head of the fixed scan, and the maps where a search may begin.

    Each turn comes with the map that brings the middles of both heads together, and with that of the intensities.
    """
    points = [nib.affines.apply_affine(s.affine, np.argwhere(h)) for s, h in zip(scans, heads, strict=True)]
    middles = [p.mean(0) for p in points]
    masses = [np.average(p, axis=0, weights=s.values[h]) for s, h, p in zip(scans, heads, points, strict=True)]
    turns = [*Rotation.from_euler("xyz", list(itertools.product(TURNS_DEG, repeat=3)), degrees=True).as_matrix()]
    axes = [np.linalg.eigh(np.cov(p.T))[1] for p in points]
    for signs in itertools.product((1.0, -1.0), repeat=3):
        turn = axes[1] @ np.diag(signs) @ axes[0].T
        if np.linalg.det(turn) > 0:
            turns.append(turn)
    starts = [np.eye(4)]
    for turn, (center, target) in itertools.product(turns, (middles, masses)):
        start = np.eye(4)
        start[:3, :3], start[:3, 3] = turn, target - turn @ center
        starts.append(start)
    return middles[0], starts


def _promising(starts: Sequence[np.ndarray], quick: _Comparison, center: np.ndarray) -> list[np.ndarray]:
    """The headers' start, which is the first, and the best of the others that are not near a better one."""
    chosen = [starts[0]]
    for start in sorted(starts[1:], key=quick.information, reverse=True):
        if len(chosen) <= PROMISING and all(_distance(start, other, center) > 2 * COARSE_MM for other in chosen):
            chosen.append(start)
    return chosen


def _distance(one: np.ndarray, other: np.ndarray, center: np.ndarray) -> float:
    """How far two maps are apart at the rim of a head, at most, mm."""
    rim = center + RIM_MM * np.r_[np.eye(3), -np.eye(3)]
    return np.linalg.norm(nib.affines.apply_affine(one, rim) - nib.affines.apply_affine(other, rim), axis=1).max()


def refined(
    scans: Sequence[Volume],
    head: np.ndarray,
    start: np.ndarray,
    center: np.ndarray,
    shrink: Sequence[int] = (1,),
    sigmas_mm: Sequence[float] = (0.0,),
) -> np.ndarray:
    """Where a search by SimpleITK ends; the start itself if there the scans do not meet."""
    lps, middle = FLIP @ start @ FLIP, FLIP[:3, :3] @ center
    transform = sitk.Euler3DTransform()
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(lps[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation((lps[:3, :3] @ middle + lps[:3, 3] - middle).tolist())
    method = registration_method(shrink, sigmas_mm)
    around = ndimage.binary_dilation(head, iterations=max(1, round(MARGIN_MM / scans[0].spacing[0])))
    method.SetMetricFixedMask(sitk.Cast(to_itk(scans[0].like(around)), sitk.sitkUInt8))
    try:
        execute(method, scans[0], padded(scans[1]), transform)
    except InputError:
        return start
    return matrix_of(transform)
