"""Two visits on one grid half-way between them, so that neither is interpolated more than the other.

Matrices are 4 x 4, of RAS mm.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

from preparation.coregistration import RIM_MM, Match, coregister, refined
from preparation.registration import head_mask
from preparation.volume import Volume

FINE_MM = 1.5  # voxels of the copies on which the last millimeter is found
MAX_ROUND_TRIP_MM = 1.0  # there and back again, at the rim of a head
MARGIN_MM = 5.0  # around the brains


@dataclass(frozen=True)
class Halfway:
    """A grid between two visits.

    Attributes:
        shape, affine: of the grid, voxel to a world half-way between those of the visits.
        ways: from that world to the world of the earlier and of the later visit.
        match: how well the visits fit, where that was searched for; None where their headers are trusted.
        round_trip_mm: how far a point at the rim of the head is off after a search from the earlier visit to the later
            one and another one back.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    ways: tuple[np.ndarray, np.ndarray]
    match: Match | None
    round_trip_mm: float

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size, mm."""
        return nib.affines.voxel_sizes(self.affine)

    @property
    def doubt(self) -> str | None:
        """Why the alignment may be wrong, as the end of a sentence; None if nothing speaks for that."""
        if self.match is not None and self.match.doubt:
            return self.match.doubt
        if self.round_trip_mm > MAX_ROUND_TRIP_MM:
            return f"may lie wrong: there and back again a point is {self.round_trip_mm:.1f} mm off"
        return None

    def bring(self, volume: Volume, visit: int) -> Volume:
        """A volume of one of the visits (0 or 1) on the grid, by linear interpolation."""
        return volume.on_grid(self.shape, self.affine, self.ways[visit])

    def numbers(self) -> dict[str, Any]:
        """For a record."""
        found = {} if self.match is None else self.match.numbers()
        return found | {"round_trip_mm": round(self.round_trip_mm, 3), "doubt": self.doubt}


def halfway(scans: tuple[Volume, Volume], brains: tuple[np.ndarray, np.ndarray], search: bool = True) -> Halfway:
    """The grid between two visits of a person.

    The rigid map is that of :func:`preparation.coregistration.coregister`, refined on copies of ``FINE_MM`` in both
    directions, whose mean is taken: exchanging the visits gives the inverse. The grid has half of the way, in turn and
    in shift, between the voxels of both files, so that both are interpolated alike, or neither where they lie on one
    grid.

    Args:
        scans: earlier and later one, in the order right, front, top, 0 outside of the brain.
        brains: (X, Y, Z) bool each.
        search: False trusts the headers.

    Raises:
        InputError: if a scan shows no head, or the brains do not meet.

    Reference:
        Reuter et al., "Within-subject template estimation for unbiased longitudinal image analysis", NeuroImage 2012.
    """
    match, round_trip, way = None, 0.0, np.eye(4)
    if search:
        match = coregister(*scans)
        way, round_trip = _both_directions(scans, match.way)
    frames = [_frame(scan.affine) for scan in scans]
    # in mm along the axes of both files: where a voxel of the earlier one lies in the later one
    between = np.linalg.inv(frames[1]) @ way @ frames[0]
    half = half_of(between)
    world = frames[0] @ np.linalg.inv(half)  # of the grid's mm in the world of the earlier visit; half is symmetrical
    shape, start, spacing = _extent(scans, brains, frames, half)
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = start
    affine = frames[0] @ grid
    to_grid_mm = np.linalg.inv(frames[0])
    return Halfway(shape, affine, (world @ to_grid_mm, frames[1] @ half @ to_grid_mm), match, round_trip)


def half_of(way: np.ndarray) -> np.ndarray:
    """The rigid map that, done twice, is ``way``."""
    turn = Rotation.from_matrix(way[:3, :3])
    half = np.eye(4)
    half[:3, :3] = Rotation.from_rotvec(turn.as_rotvec() / 2).as_matrix()
    half[:3, 3] = np.linalg.solve(np.eye(3) + half[:3, :3], way[:3, 3])
    return half


def _both_directions(scans: tuple[Volume, Volume], start: np.ndarray) -> tuple[np.ndarray, float]:
    """Rigid map between the visits that has no direction, and how far both searches differ at the rim, mm."""
    copies = [scan.isotropic(FINE_MM) for scan in scans]
    heads = [head_mask(copy) for copy in copies]
    centers = [nib.affines.apply_affine(c.affine, np.argwhere(h)).mean(0) for c, h in zip(copies, heads, strict=True)]
    there = refined(copies, heads[0], start, centers[0], (2, 1), (1.5, 0.75))
    back = refined(copies[::-1], heads[1], np.linalg.inv(start), centers[1], (2, 1), (1.5, 0.75))
    back = np.linalg.inv(back)
    rim = centers[0] + RIM_MM * np.r_[np.eye(3), -np.eye(3)]
    off = np.linalg.norm(nib.affines.apply_affine(there, rim) - nib.affines.apply_affine(back, rim), axis=1).max()
    return there @ half_of(np.linalg.inv(there) @ back), float(off)


def _frame(affine: np.ndarray) -> np.ndarray:
    """The rigid part of a voxel-to-world matrix: mm along the axes of the file."""
    u, _, v = np.linalg.svd(affine[:3, :3] / nib.affines.voxel_sizes(affine))
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = u @ v, affine[:3, 3]
    return frame


def _extent(
    scans: tuple[Volume, Volume], brains: tuple[np.ndarray, np.ndarray], frames: list[np.ndarray], half: np.ndarray
) -> tuple[tuple[int, int, int], np.ndarray, np.ndarray]:
    """Shape, first voxel and voxel size of what holds both brains, in mm of the grid; the finer edges of both files."""
    spacing = np.minimum(*(scan.spacing for scan in scans))
    to_grid = (half @ np.linalg.inv(frames[0]), np.linalg.inv(half) @ np.linalg.inv(frames[1]))
    corners = []
    for scan, brain, matrix in zip(scans, brains, to_grid, strict=True):
        where = [np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        box = np.array(list(itertools.product(*((w[0], w[-1]) for w in where))))
        corners.append(nib.affines.apply_affine(matrix @ scan.affine, box))
    low, high = np.concatenate(corners).min(0) - MARGIN_MM, np.concatenate(corners).max(0) + MARGIN_MM
    first = np.floor(low / spacing)  # a whole number: the voxels of files on one grid stay where they are
    shape = np.ceil(high / spacing) - first + 1
    return tuple(int(n) for n in shape), first * spacing, spacing
