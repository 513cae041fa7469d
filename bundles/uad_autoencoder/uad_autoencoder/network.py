"""The spatial auto-encoder of the paper's figure 2."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution
from torch import nn


class SpatialAutoencoder(nn.Module):
    """Convolutional auto-encoder whose code keeps its place: no dense layer, no skip connection.

    Every downsampling is a strided convolution, every upsampling a strided transposed one, each with batch
    normalization and ReLU; kernels are 5 wide, 3 at the code. The output is a hyperbolic tangent: images lie in [0, 1].
    With the paper's widths a slice of 256 x 256 becomes 64 x 16 x 16 numbers, a quarter of its pixels.

    Args:
        spatial_dims: 2 for slices.
        in_channels: channels of image and reconstruction.
        channels: width of each level, the first at full resolution. The paper's are (64, 128, 256, 512).
        latent_channels: width of the code.

    Raises:
        ValueError: if ``channels`` has fewer than two levels.

    Reference:
        Baur et al., "Fusing Unsupervised and Supervised Deep Learning for White Matter Lesion Segmentation", MIDL 2019.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channels: Sequence[int] = (64, 128, 256, 512),
        latent_channels: int = 64,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"channels is {tuple(channels)}; expected the widths of two levels or more")
        self.spatial_dims = spatial_dims
        widths = [*channels, latent_channels]
        encoder = [self._layer(in_channels, widths[0], stride=1)]
        for level, (narrow, wide) in enumerate(pairwise(widths)):
            encoder.append(self._layer(narrow, wide, kernel_size=3 if level == len(channels) - 1 else 5))
        decoder = []
        for level, (wide, narrow) in enumerate(pairwise(widths[::-1])):
            decoder.append(self._layer(wide, narrow, kernel_size=3 if level == 0 else 5, transposed=True))
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)
        self.output = Convolution(spatial_dims, widths[0], in_channels, kernel_size=5, conv_only=True)
        self.factor = 2 ** len(channels)

    def _layer(
        self, inputs: int, outputs: int, stride: int = 2, kernel_size: int = 5, transposed: bool = False
    ) -> nn.Module:
        return Convolution(
            self.spatial_dims,
            inputs,
            outputs,
            strides=stride,
            kernel_size=kernel_size,
            act="RELU",
            norm="BATCH",
            adn_ordering="NA",
            is_transposed=transposed,
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Reconstruction of images (B, C, *spatial) in [0, 1]; same shape, sizes divisible by ``factor``."""
        return torch.tanh(self.output(self.decoder(self.encoder(image))))
