"""What a scan looks like, in numbers: intensities by region of the brain, histogram, texture, voxels, size.

No label and no network is needed. A scan is brought to the template by :class:`common.atlas.TemplateSpaced`, so that a
region is the same in everybody; what the scanner gives to noise and sharpness is measured on the scan's own grid.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Orientationd
from nibabel.affines import voxel_sizes
from scipy import ndimage
from tqdm import tqdm

from common.atlas import TemplateSpaced
from common.processes import process_pool
from common.transforms import BrainMaskd, LoadScand

logger = logging.getLogger(__name__)

SPACING_MM, SHAPE = 4.0, (40, 48, 40)  # of the grid in the template's space
BLOCKS = (3, 4, 3)  # regions along right, front, top, of the template's brain
LEAST_VOXELS = 40  # that a region has
PERCENTILES = (2, 10, 25, 75, 90, 98, 99.5)
Groups = dict[str, np.ndarray]


def describe_scan(case: Mapping[str, Any]) -> Groups:
    """Descriptors of one case by group, each (D,), of all its images; intensities are in units of the brain's median.

    ``region mean``, ``region spread`` and ``region bright`` (95th percentile) of every region that has brain, else nan;
    ``histogram`` of the whole brain; ``texture``: difference of neighbors along each axis, a measure of noise and
    sharpness; ``geometry``: logarithms of voxel sizes and of the brain's volume.

    Args:
        case: ``image``, a path or a list of paths, and ``brain_mask`` where there is one.

    Raises:
        InputError: if a file cannot be used.
    """
    scan = _loader()({key: case[key] for key in ("image", "brain_mask") if key in case})
    native, brain = scan["image"].as_tensor().numpy(), scan["brain_mask"].numpy()[0] > 0
    sizes = voxel_sizes(scan["image"].affine.numpy())
    groups: dict[str, list[float]] = {"geometry": [*np.log(sizes), np.log(brain.sum() * np.prod(sizes))]}
    moved = _mover()({"image": scan["image"]})["image"].as_tensor().numpy()
    for image, aligned in zip(native, moved, strict=True):
        median = np.median(image[brain])
        groups.setdefault("histogram", []).extend(np.percentile(image[brain], PERCENTILES) / median)
        groups.setdefault("texture", []).extend(_texture(image / median, brain))
        for name, values in _regions(aligned / median).items():
            groups.setdefault(name, []).extend(values)
    return {name: np.array(values, dtype=float) for name, values in groups.items()}


def describe(cases: Sequence[Mapping[str, Any]], num_workers: int | None = 1) -> list[Groups]:
    """:func:`describe_scan` of every case, with a progress bar."""
    logger.info("what %d scans look like", len(cases))
    bar = functools.partial(tqdm, total=len(cases), desc="looking at scans", unit=" scan", disable=None)
    if num_workers == 1:
        return [*bar(map(describe_scan, cases))]
    with process_pool(num_workers, functools.partial(torch.set_num_threads, 1)) as pool:
        return [*bar(pool.map(describe_scan, cases))]


def points_of(found: Sequence[Groups]) -> np.ndarray:
    """Descriptors of N scans as points (N, D) whose distances mean something.

    Every descriptor gets mean 0 and sd 1 over the scans, and every group the same weight, whatever its number of
    descriptors: the mean square of a point is 1. What is the same in all scans, or nan in one, is left out.
    """
    parts = []
    for name in sorted(found[0]):
        values = np.stack([groups[name] for groups in found])
        values = values[:, np.isfinite(values).all(0)]
        spread = values.std(0)
        kept = spread > 1e-6 * np.abs(values).max(0, initial=1e-12)
        if kept.any():
            scaled = (values[:, kept] - values[:, kept].mean(0)) / spread[kept]
            parts.append(scaled / np.sqrt(kept.sum()))
    return np.concatenate(parts, axis=1) / np.sqrt(len(parts)) if parts else np.zeros((len(found), 1))


@functools.cache
def _loader() -> Compose:
    return Compose(
        [
            LoadScand("image"),
            LoadScand("brain_mask", allow_missing_keys=True),
            BrainMaskd("image", largest_negative_share=None),
            Orientationd(["image", "brain_mask"], axcodes="RAS", labels=None),
        ]
    )


@functools.cache
def _mover() -> TemplateSpaced:
    return TemplateSpaced("image", (SPACING_MM,) * 3, SHAPE)


def _texture(image: np.ndarray, brain: np.ndarray) -> list[float]:
    """Median difference of neighbors in the brain along each axis, and what a median filter takes away."""
    steps = []
    for axis in range(3):
        inside = brain & np.roll(brain, -1, axis)
        steps.append(float(np.median(np.abs(np.roll(image, -1, axis) - image)[inside])))
    rest = np.abs(image - ndimage.median_filter(image, 3))[brain]
    return [*np.log(np.array(steps) + 1e-3), float(np.log(np.median(rest) + 1e-3))]


def _regions(image: np.ndarray) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"region mean": [], "region spread": [], "region bright": []}
    for block in _blocks():
        values = image[block]
        values = values[values != 0]
        if len(values) < LEAST_VOXELS:
            values = np.array([np.nan])
        found["region mean"].append(float(values.mean()))
        found["region spread"].append(float(values.std()))
        found["region bright"].append(float(np.percentile(values, 95)))
    return found


@functools.cache
def _blocks() -> list[tuple[slice, ...]]:
    """Regions that the middle of the grid, where the template's brain is, falls into."""
    edges = [np.linspace(2, n - 2, parts + 1).round().astype(int) for n, parts in zip(SHAPE, BLOCKS, strict=True)]
    return [tuple(slice(e[i], e[i + 1]) for e, i in zip(edges, place, strict=True)) for place in np.ndindex(*BLOCKS)]
