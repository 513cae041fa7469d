"""What becomes of a reconstruction: the residual, where the image is bright."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform

from common.transforms.plain import like, plain


def residual_map(image: torch.Tensor, reconstruction: torch.Tensor, bright_only: bool = False) -> torch.Tensor:
    """Difference of an image and its reconstruction, inside the brain.

    Args:
        image: network input, (C, *spatial), exactly 0 outside the brain.
        reconstruction: network output, same shape and unit.
        bright_only: keep only what is brighter than expected, as lesions are on FLAIR; else the magnitude.

    Returns:
        (1, *spatial), in the unit of the image, the largest over channels; 0 outside the brain.

    Raises:
        ValueError: if the shapes differ; broadcasting would hide a wrong slice or channel.

    Reference:
        Baur et al., "Fusing Unsupervised and Supervised Deep Learning for White Matter Lesion Segmentation", MIDL 2019.
    """
    if image.shape != reconstruction.shape:
        raise ValueError(f"image {tuple(image.shape)} and reconstruction {tuple(reconstruction.shape)} differ in shape")
    difference = image - reconstruction
    residual = difference.clamp(min=0) if bright_only else difference.abs()
    brain = (image != 0).any(dim=0, keepdim=True)
    return residual.amax(dim=0, keepdim=True) * brain


class ResidualMapd(MapTransform):
    """Replace each reconstruction in ``keys`` by :func:`residual_map`."""

    def __init__(self, keys: str | Sequence[str], image_key: str = "image", bright_only: bool = False) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.bright_only = bright_only

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            residual = residual_map(plain(d[self.image_key]), plain(d[key]), self.bright_only)
            d[key] = like(residual, d[key])
        return d


def keep_bright(values: torch.Tensor, image: torch.Tensor, quantile: float) -> torch.Tensor:
    """A map where the image is among the brightest of the brain, 0 elsewhere.

    Lesions are hyperintense on FLAIR, but a blurred reconstruction also leaves residual on ordinary cortex beside dark
    sulci. This prior takes the second away.

    Args:
        values: map of (1, *spatial).
        image: (C, *spatial), exactly 0 outside the brain; its first channel decides.
        quantile: of the brain's voxels, in [0, 1); 0 keeps the whole map.

    Raises:
        ValueError: if the quantile is outside of [0, 1).

    Reference:
        Baur et al., "Autoencoders for unsupervised anomaly segmentation in brain MR images: A comparative study",
        Medical Image Analysis 2021; their quantile is of the whole volume, so it changes with the field of view.
    """
    if not 0 <= quantile < 1:
        raise ValueError(f"quantile is {quantile}, expected one in [0, 1)")
    brain = image[0][image[0] != 0]
    rank = int(quantile * brain.numel()) + 1
    return values * (image[:1] >= brain.kthvalue(min(rank, brain.numel())).values)


class KeepBrightd(MapTransform):
    """Apply :func:`keep_bright` to each map in ``keys``."""

    def __init__(self, keys: str | Sequence[str], image_key: str = "image", quantile: float = 0.9) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.quantile = quantile

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = like(keep_bright(plain(d[key]), plain(d[self.image_key]), self.quantile), d[key])
        return d
