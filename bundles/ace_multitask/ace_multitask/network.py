"""The paper's 3-D U-Net, whose skip connections add."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from torch import nn


class AddUNet(nn.Module):
    """U-Net with two convolutions a level, max-pooling, transposed convolutions, and skips that are added.

    Each convolution is 3 wide and followed by normalization and ReLU; dropout stands at the bottom. The paper has batch
    normalization, which mixes the statistics of the data sets in a batch; the default here is instance normalization.

    Args:
        in_channels: number of sequences.
        out_channels: number of joint classes.
        channels: width of each level, the first at full resolution.
        dropout: probability at the bottom.
        norm: ``INSTANCE`` or ``BATCH``.
        spatial_dims: 3 for volumes.

    Raises:
        ValueError: if ``channels`` has fewer than two levels.

    Reference:
        Roulet et al., "Joint Learning of Brain Lesion and Anatomy Segmentation from Heterogeneous Datasets", MIDL 2019;
        the dropout is of the first author's code.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 5,
        channels: Sequence[int] = (32, 64, 128, 256),
        dropout: float = 0.3,
        norm: str = "INSTANCE",
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"channels is {tuple(channels)}, expected the widths of two levels or more")

        def level(inputs: int, outputs: int) -> nn.Sequential:
            options = {"kernel_size": 3, "act": "RELU", "norm": norm, "adn_ordering": "NA"}
            return nn.Sequential(
                Convolution(spatial_dims, inputs, outputs, **options),
                Convolution(spatial_dims, outputs, outputs, **options),
            )

        self.factor = 2 ** (len(channels) - 1)
        self.pool = Pool[Pool.MAX, spatial_dims](2)
        self.encoder = nn.ModuleList(level(i, o) for i, o in pairwise([in_channels, *channels[:-1]]))
        self.bottom = nn.Sequential(nn.Dropout(dropout), level(channels[-2], channels[-1]))
        self.up = nn.ModuleList(
            Conv[Conv.CONVTRANS, spatial_dims](i, o, kernel_size=2, stride=2) for i, o in pairwise(channels[::-1])
        )
        self.decoder = nn.ModuleList(level(o, o) for o in channels[-2::-1])
        self.output = Conv[Conv.CONV, spatial_dims](channels[0], out_channels, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, *spatial) of images (B, in_channels, *spatial).

        Raises:
            ValueError: if a spatial size is no multiple of ``factor``.
        """
        for size in image.shape[2:]:
            if size % self.factor != 0:
                raise ValueError(f"a size of the image is {size}, expected a multiple of {self.factor}")
        x = image
        skips: list[torch.Tensor] = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, level in zip(self.up, self.decoder):  # noqa: B905 - TorchScript knows no strict
            x = level(up(x) + skips.pop())
        return self.output(x)
