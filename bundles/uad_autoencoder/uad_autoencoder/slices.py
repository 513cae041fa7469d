"""What a network in two dimensions sees of the third: neighboring slices as channels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from torch.nn.functional import pad

from common.transforms.plain import plain


class NeighboringSlicesd(MapTransform):
    """Give each axial slice its neighbors as further channels: what a 2-D network sees of the third dimension.

    Slices beyond the first and the last one are 0.

    Args:
        keys: volumes (1, X, Y, Z), axial slices along the last axis.
        slices: how many each slice becomes, itself in the middle; odd. 1 changes nothing.
        allow_missing_keys: do not raise if a key is missing.

    Returns:
        Under each key (slices, X, Y, Z); channel c of slice z is slice ``z + c - slices // 2``.

    Raises:
        ValueError: if ``slices`` is not odd, or a volume has more than one channel.
    """

    def __init__(self, keys: KeysCollection, slices: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if slices < 1 or slices % 2 == 0:
            raise ValueError(f"slices is {slices}, expected an odd number")
        self.slices = slices

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            volume = plain(d[key])
            if len(volume) != 1:
                raise ValueError(f"{key} has {len(volume)} channels, expected 1")
            padded = pad(volume[0], (self.slices // 2,) * 2)
            depth = volume.shape[-1]
            stacked = torch.stack([padded[..., c : c + depth] for c in range(self.slices)])
            d[key] = convert_to_dst_type(stacked, d[key])[0]
        return d
