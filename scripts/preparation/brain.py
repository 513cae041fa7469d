"""Brain extraction: by deepbet where it is installed, or without weights.

Without weights the template's brain is brought there by an affine map, and its surface moves to the edge of the scan's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from monai.utils import optional_import
from scipy import ndimage

from common.errors import InputError

from .registration import template
from .volume import Volume

REACH_MM = 7  # how far the surface may move, in or out
EDGE_MM = 2.0  # on both sides of an edge, where intensities are compared
SMOOTH_MM = 9.0  # sd of the neighborhood that moves together
STIFFNESS = 0.15  # cost of moving by REACH_MM, in drops of intensity from brain to nothing
OUTWARD_MM = 1.0  # from the steepest drop to the edge of the mask: sulci and the fluid around the brain belong to it
RIM_MM = (1.0, 5.0)  # outside of a mask, where tissue should have ended
AS_BRIGHT = 0.7  # of the median in the brain


@dataclass(frozen=True)
class Brain:
    """A brain mask, and where it is from.

    Attributes:
        mask: on the grid of the reference, not 0 in the brain.
        how: ``given``, ``not 0``, ``deepbet`` or ``template``.
        source: the sequence or the file that it was made from.
        from_template: 4 x 4, from the template's world to that of the mask, where it was found on the way.
    """

    mask: Volume
    how: str
    source: str
    from_template: np.ndarray | None = None

    @property
    def volume_ml(self) -> float:
        """Of the mask."""
        return float(np.count_nonzero(self.mask.values) * np.prod(self.mask.spacing) / 1000)


def deepbet_is_installed() -> bool:
    """Whether the package is there; it carries its weights."""
    return optional_import("deepbet")[1]


def deepbet_brain(scan: Volume) -> Volume:
    """Mask of the brain in a T1w with the head around it, by the network of deepbet, on the CPU.

    Args:
        scan: T1w, its axes in the order right, front, top.

    Returns:
        uint8, on the grid of the scan.

    Raises:
        InputError: if deepbet finds nothing.

    Reference:
        Fisch et al., "deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks", Computers
        in Biology and Medicine 2024.
    """
    try:
        _, mask, _ = _deepbet().run(nib.Nifti1Image(scan.values.astype(np.float32), scan.affine))
    except (AssertionError, ValueError) as e:  # of an image in which its first network sees no brain
        raise InputError(f"deepbet finds no brain ({e}), expected a T1w with the whole head") from e
    return scan.like((np.asarray(mask.dataobj) > 0).astype(np.uint8))


@functools.lru_cache(maxsize=1)
def _deepbet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its weights are TorchScript
        return optional_import("deepbet", name="BrainExtraction")[0](no_gpu=True)


def bright_outside(scan: Volume, mask: np.ndarray) -> float:
    """Share of the rim outside of a brain mask that is as bright as brain: much of it has cut tissue off.

    Fluid and skull are dark in T1w and FLAIR; of T2w, where fluid is bright, this says nothing.
    """
    copy = scan.isotropic(2.0)
    inside = scan.like(mask.astype(np.float32)).on_grid(copy.values.shape, copy.affine).values > 0.5
    distance = ndimage.distance_transform_edt(~inside, sampling=copy.spacing)
    rim = (distance > RIM_MM[0]) & (distance <= RIM_MM[1])
    if not (rim.any() and inside.any()):
        return 0.0
    return float((copy.values[rim] > AS_BRIGHT * np.median(copy.values[inside])).mean())


def extract_brain(scan: Volume, to_scan: np.ndarray) -> Volume:
    """Mask of the brain with the fluid in and around it.

    In the template's space, at every point of its brain's surface, the intensity is read along the normal; out of the
    brain it falls, into the skull, in every sequence. The falls of a neighborhood are averaged, the surface moves to
    the steepest, and moving far costs something.

    Args:
        scan: any contrast, with the head around the brain.
        to_scan: 4 x 4, from the template's world to that of the scan.

    Returns:
        uint8, on the grid of the scan.
    """
    _, brain = template()
    edge = brain_edge(scan, to_scan)
    signed = brain.like((edge - _signed_distance(brain)).clip(-20, 20) + 20)  # outside of the grid is 0
    on_scan = signed.on_grid(scan.values.shape, scan.affine, np.linalg.inv(to_scan))
    mask = on_scan.values > 20
    labels, count = ndimage.label(mask)
    if count > 1:
        mask = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return scan.like(ndimage.binary_fill_holes(mask).astype(np.uint8))


def brain_edge(scan: Volume, to_scan: np.ndarray) -> np.ndarray:
    """How far outside of the template's surface the brain of a scan ends, mm, on the grid of the template."""
    _, brain = template()
    distance = _signed_distance(brain)
    normal = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.5)))
    normal /= np.linalg.norm(normal, axis=0).clip(min=1e-6)
    copy = scan.on_grid(brain.values.shape, brain.affine, to_scan).values
    copy = copy / np.median(copy[distance < -4])
    copy = ndimage.gaussian_filter(copy.clip(0, 2), 0.5)

    surface = np.argwhere(np.abs(distance) <= brain.spacing.mean() / 2 + 0.01)
    direction = normal[(slice(None), *surface.T)].T
    rest = distance[tuple(surface.T)]
    offsets = np.arange(-REACH_MM, REACH_MM + 1)

    def intensity(mm: float) -> np.ndarray:
        points = surface + direction * ((mm - rest) / brain.spacing[0])[:, None]
        return ndimage.map_coordinates(copy, points.T, order=1)

    rise = [intensity(mm + EDGE_MM) - intensity(mm - EDGE_MM) for mm in offsets]
    cost = np.stack([_around(brain, surface, values) for values in rise])
    cost += STIFFNESS * (offsets[:, None, None, None] / REACH_MM) ** 2
    edge = offsets[cost.argmin(0)].astype(float)
    return _around(brain, surface, edge[tuple(surface.T)]) + OUTWARD_MM


def _signed_distance(brain: Volume) -> np.ndarray:
    """From the surface, mm, negative inside."""
    inside = brain.values > 0.5
    outer, inner = (ndimage.distance_transform_edt(part, sampling=brain.spacing) for part in (~inside, inside))
    half = brain.spacing.mean() / 2  # the surface lies between voxels
    return np.where(inside, half - inner, outer - half)


def _around(brain: Volume, points: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Means of what is known at some voxels, (N, 3) and (N,), weighted by a Gaussian of the distance to them."""
    sums, counts = (np.zeros(brain.values.shape) for _ in range(2))
    sums[tuple(points.T)], counts[tuple(points.T)] = values, 1
    sigma = SMOOTH_MM / brain.spacing
    return ndimage.gaussian_filter(sums, sigma) / (ndimage.gaussian_filter(counts, sigma) + 1e-9)
