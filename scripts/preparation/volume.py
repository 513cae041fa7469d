"""Scans as arrays with a matrix, resampled once by the product of all matrices on their way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Volume:
    """Values at voxels, and where these lie.

    Attributes:
        values: (X, Y, Z).
        affine: voxel to world (RAS mm), 4 x 4.
    """

    values: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size along each axis, mm."""
        return nib.affines.voxel_sizes(self.affine)

    def like(self, values: np.ndarray) -> Volume:
        """Other values at the same voxels."""
        return Volume(values, self.affine)

    def to_ras(self) -> Volume:
        """The same voxels in the order right, front, top, along the axes nearest to these; none is interpolated."""
        orientation = nib.io_orientation(self.affine)
        values = nib.apply_orientation(self.values, orientation)
        return Volume(values, self.affine @ nib.orientations.inv_ornt_aff(orientation, self.values.shape))

    def on_grid(
        self, shape: Sequence[int], affine: np.ndarray, way: np.ndarray | None = None, order: int = 1
    ) -> Volume:
        """The values at the voxels of another grid; 0 where that lies outside.

        Args:
            shape: of the grid.
            affine: of the grid, voxel to world.
            way: 4 x 4, from the world of the grid to that of this volume; None where they are one.
            order: 0 for the nearest voxel, 1 for linear interpolation. Where the voxels of the grid are the larger
                ones, linear interpolation comes after a Gaussian blur of the difference.
        """
        matrix = np.linalg.inv(self.affine) @ (np.eye(4) if way is None else way) @ affine
        values = self.values
        if order:
            steps = np.linalg.norm(matrix[:3, :3], axis=1)  # size of a voxel of the grid, in voxels of this volume
            values = values.astype(np.float32)
            if (steps > 1.05).any():  # full width at half maximum of a voxel: 0.42 is the sd for that
                values = ndimage.gaussian_filter(values, 0.42 * np.sqrt(np.maximum(steps**2 - 1, 0)), mode="nearest")
        # the last bits of a matrix would put voxels on the margin outside of it
        matrix = np.round(matrix, 6)
        out = ndimage.affine_transform(
            values, matrix[:3, :3], matrix[:3, 3], tuple(shape), order=order, mode="constant"
        )
        return Volume(out, affine)

    def labels_on_grid(self, shape: Sequence[int], affine: np.ndarray, way: np.ndarray | None = None) -> Volume:
        """Labels at the voxels of another grid: of each label its share there, as of a map, and the largest wins.

        Where the grids are one but for the order of the voxels, every voxel keeps its label.

        Args:
            shape, affine, way: as of :meth:`on_grid`.
        """
        best = Volume(self.values == 0, self.affine).on_grid(shape, affine, way).values
        found = np.zeros(tuple(shape), self.values.dtype)
        for value in np.unique(self.values[self.values != 0]):
            share = Volume(self.values == value, self.affine).on_grid(shape, affine, way).values
            better = share > best
            best[better], found[better] = share[better], value
        return Volume(found, affine)

    def isotropic(self, spacing_mm: float) -> Volume:
        """All of the volume on a grid along the axes of the world, of voxels of one size."""
        corners = np.array(list(itertools.product(*((0, n - 1) for n in self.values.shape))))
        corners = nib.affines.apply_affine(self.affine, corners)
        affine = np.diag([spacing_mm] * 3 + [1.0])
        affine[:3, 3] = corners.min(0)
        shape = np.ceil(np.ptp(corners, axis=0) / spacing_mm - 1e-6).astype(int) + 1
        return self.on_grid(shape, affine)
