"""Intensities with mean 0 and standard deviation 1 in the brain."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from common.errors import InputError
from common.transforms.intensity import inside_of
from common.transforms.io import file_of
from common.transforms.plain import plain


def normalize_brain_intensity(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shift and scale each channel to mean 0 and standard deviation 1 inside the brain; 0 outside.

    A channel that is 0 everywhere, a missing sequence, stays so: it then looks like the average of any brain.

    Args:
        image: (C, *spatial), any unit.
        mask: (1, *spatial), not 0 inside the brain.

    Returns:
        (C, *spatial), float32.

    Raises:
        InputError: if the mask is empty, or a channel is constant inside it and not 0.
        ValueError: if the shapes differ.
    """
    inside = inside_of(image, mask)
    out = torch.zeros_like(image, dtype=torch.float32)
    for index, channel in enumerate(image):
        values = channel[inside].double()  # float32 sums of millions of voxels lose digits
        if not values.any():
            continue
        if values.min() == values.max():
            raise InputError(f"channel {index} is {values[0].item():g} everywhere in the brain, expected contrast")
        out[index][inside] = ((values - values.mean()) / values.std(correction=0)).float()
    return out


class NormalizeBrainIntensityd(MapTransform):
    """Apply :func:`normalize_brain_intensity` to each image in ``keys``; the brain is where any channel is not 0.

    Args:
        keys: images (C, *spatial), 0 outside the brain.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        InputError: if a channel is constant inside the brain, or the brain is empty; names the file.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            values = plain(image)
            try:
                scaled = normalize_brain_intensity(values, (values != 0).any(dim=0, keepdim=True))
            except InputError as e:
                raise InputError(f"{file_of(image)}: {e}") from e
            d[key] = MetaTensor(scaled).copy_meta_from(image)
        return d
