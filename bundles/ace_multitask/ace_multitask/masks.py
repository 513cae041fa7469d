"""From class probabilities to a label map in which one class has a threshold."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform

from common.transforms import remove_small_components
from common.transforms.plain import like, plain, voxel_volume_mm3


def thresholded_argmax(
    probabilities: torch.Tensor, index: int, threshold: float, background: bool = True
) -> torch.Tensor:
    """Label map in which one class is decided by a threshold and the others by the largest probability.

    A rare class seldom is the most probable one where it is uncertain; its operating point is chosen apart.

    Args:
        probabilities: (C, *spatial), each in [0, 1].
        index: the class with a threshold; it takes every voxel where its probability reaches the threshold.
        threshold: above 0, so that nothing is labeled where all probabilities are 0.
        background: False keeps class 0 for where all probabilities are 0, as outside of a brain mask.

    Returns:
        (1, *spatial), uint8; 0 where all probabilities are 0.

    Raises:
        ValueError: if there is no such class, another one besides, or the threshold is not in (0, 1].
    """
    if not 0 <= index < len(probabilities) or len(probabilities) < 2:
        raise ValueError(f"index is {index} with {len(probabilities)} classes, expected one of two classes or more")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, expected a probability above 0")
    others = probabilities.clone()
    others[index] = -1  # below every probability
    if not background:
        others[0] = -1
    label = others.argmax(dim=0)
    if not background:
        label[(probabilities == 0).all(dim=0)] = 0
    label[probabilities[index] >= threshold] = index
    return label[None].to(torch.uint8)


class ThresholdedArgmaxd(MapTransform):
    """Replace each map of probabilities in ``keys`` by :func:`thresholded_argmax`."""

    def __init__(self, keys: str | Sequence[str], index: int, threshold: float, background: bool = True) -> None:
        super().__init__(keys)
        self.index = index
        self.threshold = threshold
        self.background = background

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = like(thresholded_argmax(plain(d[key]), self.index, self.threshold, self.background), d[key])
        return d


def without_small_components(
    probabilities: torch.Tensor, index: int, threshold: float, min_volume_mm3: float, voxel_volume_mm3: float
) -> torch.Tensor:
    """The probabilities, that of one class 0 where it reaches its threshold in a small component only.

    Args:
        probabilities: (C, X, Y, Z), each in [0, 1].
        index: the class.
        threshold: its smallest probability.
        min_volume_mm3: components (26 neighbors) of this volume and more stay.
        voxel_volume_mm3: volume of a voxel.
    """
    found = probabilities[index][None] >= threshold
    kept = remove_small_components(found, min_volume_mm3, voxel_volume_mm3)
    cleaned = probabilities.clone()
    cleaned[index][(found & ~kept)[0]] = 0
    return cleaned


class WithoutSmallComponentsd(MapTransform):
    """Replace each map of probabilities in ``keys`` by :func:`without_small_components`."""

    def __init__(self, keys: str | Sequence[str], index: int, threshold: float, min_volume_mm3: float) -> None:
        super().__init__(keys)
        self.index = index
        self.threshold = threshold
        self.min_volume_mm3 = min_volume_mm3

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            volume = voxel_volume_mm3(d[key])
            cleaned = without_small_components(plain(d[key]), self.index, self.threshold, self.min_volume_mm3, volume)
            d[key] = like(cleaned, d[key])
        return d


class ChannelMapd(MapTransform):
    """Put one channel, (1, *spatial), of the maps in ``keys`` under ``names``."""

    def __init__(self, keys: str | Sequence[str], names: str, index: int) -> None:
        super().__init__(keys)
        self.names = names
        self.index = index

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if not 0 <= self.index < len(d[key]):
                raise ValueError(f"{key} has {len(d[key])} channels, expected one with the index {self.index}")
            d[self.names] = like(plain(d[key])[self.index][None].clone(), d[key])
        return d
