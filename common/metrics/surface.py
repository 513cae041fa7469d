"""Distances between the surfaces of two binary masks, in millimeters.

The surface of a mask are its voxels with a face neighbor outside; voxels on the border of the image are surface too.
Distances run between voxel centers, so two masks that differ by one layer of voxels are one voxel size apart.

Empty masks: nan where the reference is empty (nothing to measure), inf where only the prediction is (nothing found; a
nan would drop out of the mean and make a miss look better than a poor outline).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import cKDTree

from .overlap import as_mask, as_mask_pair, check_spacing


def surface_points_mm(mask: ArrayLike, spacing: Sequence[float]) -> np.ndarray:
    """Centers of the surface voxels of a mask in mm from the first voxel, (N, number of axes)."""
    mask = as_mask(mask)
    spacing = check_spacing(spacing, mask.ndim)
    box = next(iter(find_objects(mask.view(np.uint8))), None)
    if box is None:
        return np.empty((0, mask.ndim))
    inside = mask[box]
    surface = inside & ~binary_erosion(inside)
    return (np.argwhere(surface) + [s.start for s in box]) * spacing


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance in mm of each surface voxel to the nearest one of the other mask; an empty mask has none."""

    to_reference: np.ndarray
    to_prediction: np.ndarray

    @property
    def hd95(self) -> float:
        """95th percentile Hausdorff distance in mm: the larger of the two directed percentiles, as in MONAI."""
        return self._summary(lambda forward, backward: max(np.percentile(forward, 95), np.percentile(backward, 95)))

    @property
    def assd(self) -> float:
        """Average symmetric surface distance in mm: the mean over the surface voxels of both masks."""
        return self._summary(lambda forward, backward: np.concatenate([forward, backward]).mean())

    def _summary(self, function: Callable[[np.ndarray, np.ndarray], float]) -> float:
        if not len(self.to_prediction):
            return float("nan")
        return float(function(self.to_reference, self.to_prediction)) if len(self.to_reference) else float("inf")


def surface_distances(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> SurfaceDistances:
    """Measure all surface distances of two masks of one shape; ``spacing`` is the voxel size in mm along each axis."""
    prediction, reference = as_mask_pair(prediction, reference)
    found, wanted = surface_points_mm(prediction, spacing), surface_points_mm(reference, spacing)
    return SurfaceDistances(_nearest(wanted, found), _nearest(found, wanted))


def _nearest(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Distance of each place to the nearest of the points; inf where there are none."""
    # points of a grid need no balance, which takes longer than it saves
    return cKDTree(points, leafsize=32, balanced_tree=False).query(places)[0]


def hd95_mm(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> float:
    """95th percentile Hausdorff distance of two masks in mm, see :attr:`SurfaceDistances.hd95`."""
    return surface_distances(prediction, reference, spacing).hd95


def assd_mm(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> float:
    """Average symmetric surface distance of two masks in mm, see :attr:`SurfaceDistances.assd`."""
    return surface_distances(prediction, reference, spacing).assd
