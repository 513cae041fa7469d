"""From a reconstruction to an anomaly map, and from the map to lesions; sizes in millimeters."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from scipy import ndimage

from ..errors import InputError
from .io import file_of
from .plain import like, plain, spacing_of, voxel_volume_mm3


def median_size(size_mm: float, spacing: Sequence[float]) -> tuple[int, ...]:
    """The odd number of voxels per axis, at least 1, whose extent comes nearest to ``size_mm``; the smaller of two."""
    return tuple(2 * max(int(np.ceil((size_mm / s - 1) / 2 - 0.5)), 0) + 1 for s in spacing)


def median_filter(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Median over a box around each voxel, of each channel; the image continues with 0.

    Args:
        image: (C, *spatial).
        size: odd number of voxels per spatial axis.

    Returns:
        (C, *spatial), same type.

    Raises:
        ValueError: if ``size`` does not fit or holds an even number.
    """
    if len(size) != image.ndim - 1 or any(n < 1 or n % 2 == 0 for n in size):
        raise ValueError(f"size is {tuple(size)}, expected {image.ndim - 1} odd numbers")
    channels = [_median_filter(channel, tuple(size)) for channel in plain(image).detach().cpu().numpy()]
    return torch.as_tensor(np.stack(channels), device=image.device)


def _median_filter(array: np.ndarray, size: tuple[int, ...], chunk: int = 1 << 15) -> np.ndarray:
    """Same as ``scipy.ndimage.median_filter(array, size, mode="constant")``, several times as fast on a brain."""
    rank = int(np.prod(size)) // 2
    # the median is 0 unless most of the box is positive, or most of it negative
    needed = (_box_count(array > 0, size) > rank) | (_box_count(array < 0, size) > rank)
    padded = np.pad(array, [(n // 2, n // 2) for n in size])
    neighbors = np.ravel_multi_index(np.indices(size).reshape(len(size), -1), padded.shape)
    corners = np.ravel_multi_index(np.nonzero(needed), padded.shape)
    medians = np.empty(len(corners), dtype=array.dtype)
    for start in range(0, len(corners), chunk):
        boxes = padded.ravel()[corners[start : start + chunk, None] + neighbors]
        boxes.partition(rank, axis=1)
        medians[start : start + chunk] = boxes[:, rank]
    out = np.zeros_like(array)
    out[needed] = medians
    return out


def _box_count(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Number of true voxels in the box around each voxel."""
    count = array.astype(np.int32)
    for axis, n in enumerate(size):
        count = ndimage.correlate1d(count, np.ones(n, dtype=np.int32), axis, mode="constant")
    return count


class MedianFilterd(MapTransform):
    """Apply :func:`median_filter` with a box of ``size_mm`` per axis, from the voxel size of each MetaTensor."""

    def __init__(self, keys: str | Sequence[str], size_mm: float = 5.0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.size_mm = size_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = like(median_filter(plain(d[key]), median_size(self.size_mm, spacing_of(d[key]))), d[key])
        return d


def erode_mask(mask: torch.Tensor, radius_mm: float, spacing: Sequence[float]) -> torch.Tensor:
    """Voxels of a mask whose center lies more than ``radius_mm`` from the center of every voxel outside it.

    What lies beyond the border of the array counts as outside.

    Args:
        mask: (1, *spatial), not 0 inside.
        radius_mm: 0 leaves the mask as it is.
        spacing: voxel size in mm per spatial axis.

    Returns:
        (1, *spatial), 0 and 1 in the type of ``mask``.

    Raises:
        ValueError: if ``mask`` has several channels or the radius is negative.
    """
    if len(mask) != 1 or radius_mm < 0:
        raise ValueError(f"mask {tuple(mask.shape)} and radius {radius_mm} mm, expected one channel and 0 mm or more")
    inside = plain(mask)[0].cpu().numpy() != 0
    eroded = np.zeros_like(inside)
    for box in ndimage.find_objects(inside.astype(np.uint8)):  # one box, around all that is inside
        distance = ndimage.distance_transform_edt(np.pad(inside[box], 1), sampling=spacing)
        eroded[box] = distance[(slice(1, -1),) * inside.ndim] > radius_mm
    return torch.as_tensor(eroded[None], device=mask.device).to(mask.dtype)


class ErodeMaskd(MapTransform):
    """Apply :func:`erode_mask`, with the voxel size of each MetaTensor.

    Raises:
        InputError: if nothing of a mask is left; names its file.
    """

    def __init__(self, keys: str | Sequence[str], radius_mm: float, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.radius_mm = radius_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            eroded = erode_mask(plain(d[key]), self.radius_mm, spacing_of(d[key]))
            if not eroded.any():
                size = int(plain(d[key]).count_nonzero())
                raise InputError(
                    f"{key} of {file_of(d[key])} has {size} voxels and none after an erosion of {self.radius_mm} mm, "
                    "expected a brain that is larger than this"
                )
            d[key] = like(eroded, d[key])
        return d


class MaskOutsided(MapTransform):
    """Set the maps (C, *spatial) in ``keys`` to 0 where the item ``mask_key`` (1, *spatial) is 0."""

    def __init__(
        self, keys: str | Sequence[str], mask_key: str = "brain_mask", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        mask = plain(d[self.mask_key]) != 0
        for key in self.key_iterator(d):
            image = plain(d[key])
            if mask.shape[1:] != image.shape[1:] or len(mask) != 1:
                raise ValueError(f"{self.mask_key} {tuple(mask.shape)} does not fit {key} {tuple(image.shape)}")
            d[key] = like(torch.where(mask.to(image.device), image, 0), d[key])
        return d


def remove_small_components(
    label: torch.Tensor, min_volume_mm3: float, voxel_volume_mm3: float, connectivity: int = 26
) -> torch.Tensor:
    """Set connected components smaller than ``min_volume_mm3`` to 0.

    Args:
        label: label map (1, X, Y, Z); neighbors of different values belong to different components.
        min_volume_mm3: components of this volume and more stay.
        voxel_volume_mm3: volume of a voxel.
        connectivity: neighbors of a voxel: 6 (faces), 18 (and edges) or 26 (and corners).

    Returns:
        (1, X, Y, Z), same type.

    Raises:
        ValueError: on another shape or connectivity.
    """
    if label.ndim != 4 or len(label) != 1:
        raise ValueError(f"label has shape {tuple(label.shape)}, expected (1, X, Y, Z)")
    if connectivity not in (6, 18, 26):
        raise ValueError(f"connectivity is {connectivity}, expected 6, 18 or 26")
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    array = plain(label)[0].cpu().numpy()
    out = np.zeros_like(array)
    # 1e-6: three voxels of 0.7 mm3 are 2.1 mm3, also in floating point
    min_voxels = min_volume_mm3 / voxel_volume_mm3 * (1 - 1e-6)
    for value in np.unique(array[array != 0]):
        components, _ = ndimage.label(array == value, structure)
        large = np.bincount(components.ravel()) >= min_voxels
        large[0] = False
        out[large[components]] = value
    return torch.as_tensor(out[None], device=label.device)


class RemoveSmallComponentsd(MapTransform):
    """Apply :func:`remove_small_components`, with the voxel volume of each MetaTensor, whatever its grid."""

    def __init__(
        self,
        keys: str | Sequence[str],
        min_volume_mm3: float,
        connectivity: int = 26,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.min_volume_mm3 = min_volume_mm3
        self.connectivity = connectivity

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            volume = voxel_volume_mm3(d[key])
            cleaned = remove_small_components(plain(d[key]), self.min_volume_mm3, volume, self.connectivity)
            d[key] = like(cleaned, d[key])
        return d
