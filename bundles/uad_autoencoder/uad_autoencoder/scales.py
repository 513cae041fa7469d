"""One network at several scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch.nn import functional as F

from common.errors import InputError


class ZoomedInferer(Inferer):
    """Mean of what a network of neighboring slices says of a scan at several sizes.

    A network knows lesions of the sizes that it was trained with: of a large one seen smaller the inside does not drop
    out, a small one needs all voxels.

    Args:
        inferer: how the network runs over slices, (B, slices, X, Y, Z) -> (B, C, X, Y, Z).
        zooms: sizes, 1 for the scan as it is; 0.7 interpolates it to voxels of 1 / 0.7 of their size, in plane and
            between slices alike.
        multiple: X and Y of a zoomed scan are padded with 0 to a multiple of this.

    Raises:
        InputError: if there is no zoom, or one is not above 0.
    """

    def __init__(self, inferer: Inferer, zooms: Sequence[float] = (1.0,), multiple: int = 16) -> None:
        super().__init__()
        if not zooms or min(zooms) <= 0:
            raise InputError(f"zooms are {list(zooms)}, expected one or more numbers above 0")
        self.inferer = inferer
        self.zooms = tuple(zooms)
        self.multiple = multiple

    @property
    def sw_batch_size(self) -> int | None:
        """Slices per call of the network, of inferers that have it."""
        return getattr(self.inferer, "sw_batch_size", None)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``inputs`` (B, slices, X, Y, Z), each slice with its neighbors as channels -> mean of logits."""
        outputs = [
            self.inferer(inputs, network, *args, **kwargs) if zoom == 1 else self._zoomed(inputs, zoom, network, *args)
            for zoom in self.zooms
        ]
        return sum(outputs) / len(outputs)

    def _zoomed(self, inputs: torch.Tensor, zoom: float, network: Any, *args: Any) -> torch.Tensor:
        slices, shape = inputs.shape[1], inputs.shape[2:]
        size = [max(1, round(n * zoom)) for n in shape]
        middle = slices // 2
        volume = F.interpolate(inputs[:, middle : middle + 1], size=size, mode="trilinear", align_corners=False)
        spare = [math.ceil(n / self.multiple) * self.multiple - n for n in size[:2]]
        volume = F.pad(volume, (middle, middle, 0, spare[1], 0, spare[0]))
        stacked = torch.cat([volume[..., c : c + size[2]] for c in range(slices)], 1)
        outputs = self.inferer(stacked, network, *args)[:, :, : size[0], : size[1]]
        return F.interpolate(outputs.float(), size=shape, mode="trilinear", align_corners=False)
