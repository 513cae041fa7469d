"""What the images of the training looked like, to notice others."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage

from common.data import BrainSlices
from common.engines.events import rank
from common.errors import InputError
from common.files import read_json, write_json
from common.transforms.io import file_of

logger = logging.getLogger(__name__)

_LEVELS = torch.arange(1, 20) / 20
_SMALLEST_DISTANCE = 0.02  # scans differ by this much, however few were seen


def brain_quantiles(image: torch.Tensor) -> torch.Tensor:
    """Quantiles 0.05, 0.10 ... 0.95 of the voxels that are not 0: (19,), in the unit of the image.

    Args:
        image: any shape, 0 outside the brain.

    Raises:
        InputError: if it is 0 everywhere.
    """
    values = image[image != 0].float().sort().values
    if not len(values):
        raise InputError("the image is 0 everywhere, expected a brain")
    return values[(_LEVELS.to(values.device) * (len(values) - 1)).round().long()]


def depth_contrast(slices: torch.Tensor) -> float:
    """How much brighter the inner brain is than its outer part, fluid left out.

    Above 1 where white matter is brighter than gray matter, as on T1, about 1 or below on FLAIR and T2. It is the
    ratio of two medians over the pixels above half of the brain's median: those more than 11 pixels (22 mm) from the
    border of the brain in their slice, and those within 1.5 to 4 pixels of it.

    Args:
        slices: axial slices of a volume, (N, H, W), 0 outside the brain; pixels of about 2 mm.

    Returns:
        The ratio; 1 if the brain is too small to have both.
    """
    values = slices.float().numpy(force=True)
    depth = np.stack([ndimage.distance_transform_edt(ndimage.binary_fill_holes(image)) for image in values != 0])
    tissue = values > 0.5 * np.median(values[values != 0])
    inner, outer = values[tissue & (depth > 11)], values[tissue & (depth > 1.5) & (depth < 4)]
    return float(np.median(inner) / np.median(outer)) if len(inner) and len(outer) else 1.0


class SaveStatistics:
    """Write what the training images look like beside the weights, when a training starts.

    The file holds the mean of :func:`brain_quantiles` over the volumes; ``distance``, the largest mean absolute
    difference of a volume from it, 0.02 or more; and ``contrast``, the smallest and largest :func:`depth_contrast`.

    Args:
        slices: the training set.
        path: JSON file.
    """

    def __init__(self, slices: BrainSlices, path: str | Path) -> None:
        self.slices = slices
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if rank(engine) > 0:
            return
        volumes = [self.slices.slices[self.slices.volumes == n, 0] for n in self.slices.volumes.unique()]
        quantiles = torch.stack([brain_quantiles(volume) for volume in volumes])
        contrasts = [depth_contrast(volume) for volume in volumes]
        mean = quantiles.mean(0)
        content = {
            "volumes": len(volumes),
            "quantiles": [round(float(value), 4) for value in mean],
            "distance": round(max(float((quantiles - mean).abs().mean(1).max()), _SMALLEST_DISTANCE), 4),
            "contrast": [round(min(contrasts), 4), round(max(contrasts), 4)],
        }
        write_json(self.path, content)


class CheckStatisticsd(MapTransform):
    """Warn where an image looks unlike those of the training: another sequence, or a skull.

    It does if its quantiles are ``ratio`` times as far from their mean as those of the strangest training image, or its
    :func:`depth_contrast` lies outside of theirs by more than a tenth.

    Args:
        keys: images as they go into the network, (1, X, Y, Z), 0 outside the brain.
        path: file of :class:`SaveStatistics`.
        ratio: how much stranger than the strangest training image.

    Raises:
        InputError: if the file is missing or holds something else.
    """

    def __init__(self, keys: KeysCollection, path: str | Path, ratio: float = 2.0) -> None:
        super().__init__(keys)
        self.path = Path(path)
        self.ratio = ratio
        content = read_json(self.path, "statistics of the training")
        try:
            self.mean, self.distance = torch.tensor(content["quantiles"]), float(content["distance"])
            self.lowest, self.highest = map(float, content["contrast"])
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(
                f"{self.path} holds no quantiles, distance and contrast of a training, expected them"
            ) from e

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            distance = float((brain_quantiles(d[key]).cpu() - self.mean).abs().mean()) / self.distance
            contrast = depth_contrast(d[key][0].movedim(-1, 0))
            if distance > self.ratio or not self.lowest / 1.1 < contrast < self.highest * 1.1:
                logger.warning(
                    "%s looks unlike the training images, expected a skull-stripped image of the sequence that the "
                    "network was trained on: inner to outer brain %.2f (training %.2f to %.2f), gray values %.1f times "
                    "as far from the mean as the strangest training image",
                    file_of(d[key]),
                    contrast,
                    self.lowest,
                    self.highest,
                    distance,
                )
        return d


class CheckVolumed(MapTransform):
    """Refuse volumes that the method cannot work on.

    Args:
        keys: images as they go into the network, (1, X, Y, Z).
        min_slices: smallest number of slices along the last axis, which the window of the similarity needs.

    Raises:
        InputError: if there are fewer slices, or values outside of [0, 1]; names the file.
    """

    def __init__(self, keys: KeysCollection, min_slices: int = 9) -> None:
        super().__init__(keys)
        self.min_slices = min_slices

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if image.shape[-1] < self.min_slices:
                raise InputError(
                    f"{file_of(image)} has {image.shape[-1]} axial slices with brain on the grid of the network, "
                    f"expected {self.min_slices} or more"
                )
            low, high = float(image.min()), float(image.max())
            if low < 0 or high > 1:
                raise InputError(f"{file_of(image)} has values from {low:g} to {high:g}, expected [0, 1] after scaling")
        return d
