"""The two networks: registration after VoxelMorph (CVPR 2018), segmentation by a light U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import instance_norm, interpolate, leaky_relu

from common.geometry import compose, integrate_velocity, warp


class RegistrationNetwork(nn.Module):
    """Displacement that brings a moving image onto a fixed one, both of one size: ``warped(p) = moving(p + u(p))``.

    Convolutions of 3 x 3 x 3 with ReLU. Four of stride 2 lead down; on the way back nearest upsampling and the features
    of the same size, but for the second finest size, where the features are joined before the upsampling as at the
    coarser ones. It begins with next to no displacement.

    Args:
        channels: features of the five levels, the finest first.
        decoder_channels: features of the five convolutions on the way back.
        integration_steps: 0 gives displacements as in the paper. Above 0 the network gives a stationary velocity,
            integrated by as many squarings, so that the map does not fold; 7 is usual.
        normalize: instance normalization and leaky ReLU instead of ReLU.
        passes: how often the network is applied: from the second time on to the moving image as it has been warped so
            far, and the displacements are composed.

    Raises:
        ValueError: if there are not five numbers of features each.

    Reference:
        Balakrishnan et al., "An Unsupervised Learning Model for Deformable Medical Image Registration", CVPR 2018.
        Passes: Zhao et al., "Recursive Cascaded Networks for Unsupervised Medical Image Registration", ICCV 2019, whose
        cascades share no weights.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 32, 32, 32),
        decoder_channels: Sequence[int] = (32, 32, 32, 8, 8),
        integration_steps: int = 0,
        normalize: bool = False,
        passes: int = 1,
    ) -> None:
        super().__init__()
        if len(channels) != 5 or len(decoder_channels) != 5:
            raise ValueError(f"channels are {channels} and {decoder_channels}, expected five numbers each")
        self.integration_steps, self.normalize, self.passes = integration_steps, normalize, passes
        c, d = list(channels), list(decoder_channels)
        self.down = nn.ModuleList(
            nn.Conv3d(i, o, 3, stride=1 if level == 0 else 2, padding=1)
            for level, (i, o) in enumerate(pairwise([2, *c]))
        )
        inputs = [c[4], d[0] + c[3], d[1] + c[2], d[2] + c[1], d[3]]
        self.up = nn.ModuleList(nn.Conv3d(i, o, 3, padding=1) for i, o in zip(inputs, d, strict=True))
        self.flow = nn.Conv3d(d[4] + c[0], 3, 3, padding=1)
        nn.init.normal_(self.flow.weight, std=1e-5)
        nn.init.zeros_(self.flow.bias)

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """Displacement (B, 3, X, Y, Z) in voxels, its components along the axes of the array.

        Args:
            pair: (B, 2, X, Y, Z), moving and fixed image, of any size.
        """
        displacement = self._once(pair)
        for _ in range(self.passes - 1):
            warped = warp(pair[:, :1], displacement, padding="zeros")
            displacement = compose(self._once(torch.cat([warped, pair[:, 1:]], 1)), displacement)
        return displacement

    def _once(self, pair: torch.Tensor) -> torch.Tensor:
        features: list[torch.Tensor] = []
        x = pair
        for layer in self.down:
            x = self._activated(layer(x))
            features.append(x)
        full, half, quarter, eighth, x = features
        x = self._activated(self.up[0](self._like(x, eighth)))
        x = self._activated(self.up[1](self._like(torch.cat([x, eighth], 1), quarter)))
        x = self._activated(self.up[2](self._like(torch.cat([x, quarter], 1), half)))
        x = self._activated(self.up[3](torch.cat([x, half], 1)))
        x = self._activated(self.up[4](self._like(x, full)))
        field = self.flow(torch.cat([x, full], 1)).float()
        return integrate_velocity(field, self.integration_steps) if self.integration_steps else field

    def _activated(self, x: torch.Tensor) -> torch.Tensor:
        return leaky_relu(instance_norm(x), 0.2) if self.normalize else torch.relu(x)

    @staticmethod
    def _like(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return interpolate(x, size=other.shape[2:])


class _Block(nn.Sequential):
    """Convolution, instance normalization and leaky ReLU, twice."""

    def __init__(self, in_channels: int, middle: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for i, o in ((in_channels, middle), (middle, out_channels)):
            layers += [nn.Conv3d(i, o, 3, padding=1), nn.InstanceNorm3d(o, affine=True), nn.LeakyReLU(0.01)]
        super().__init__(*layers)


class SegmentationNetwork(nn.Module):
    """Light U-Net, image to logits of the classes.

    As the authors' code has it, with instance normalization instead of batch normalization, since a batch is one
    pair.

    Args:
        in_channels: of the image.
        out_channels: classes, background included.
        channels: features of each level, the finest first; (16, 32, 64, 64) in the authors' code.

    Raises:
        ValueError: if ``channels`` has fewer than two levels.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 4, channels: Sequence[int] = (16, 32, 64, 64)) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"channels is {tuple(channels)}, expected the widths of two levels or more")
        self.factor = 2 ** (len(channels) - 1)
        *upper, last = channels
        self.down = nn.ModuleList(_Block(i, o // 2, o) for i, o in pairwise([in_channels, *upper]))
        self.bottom = _Block(upper[-1], last, last)
        self.pool = nn.MaxPool3d(2)
        below = [last, *upper[:0:-1]]
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(i, i, 2, stride=2), nn.InstanceNorm3d(i, affine=True), nn.LeakyReLU(0.01))
            for i in below
        )
        self.join = nn.ModuleList(_Block(i + o, o, o) for i, o in zip(below, upper[::-1], strict=True))
        self.output = nn.Conv3d(channels[0], out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, X, Y, Z).

        Args:
            image: (B, in_channels, X, Y, Z).

        Raises:
            ValueError: if a size is no multiple of ``factor``.
        """
        for size in image.shape[2:]:
            if size % self.factor != 0:
                raise ValueError(f"a size of the image is {size}, expected a multiple of {self.factor}")
        x = image
        skips: list[torch.Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, join in zip(self.up, self.join):  # noqa: B905 - TorchScript knows no strict
            x = join(torch.cat([up(x), skips.pop()], dim=1))
        return self.output(x)


class JointNetwork(nn.Module):
    """Both networks on a pair, for validation.

    Args:
        registration: see :class:`RegistrationNetwork`.
        segmentation: see :class:`SegmentationNetwork`.
    """

    def __init__(self, registration: nn.Module, segmentation: nn.Module) -> None:
        super().__init__()
        self.registration, self.segmentation = registration, segmentation

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """(B, 3 + classes, X, Y, Z): displacement in voxels, logits of the fixed image; see the networks."""
        return torch.cat([self.registration(pair), self.segmentation(pair[:, 1:]).float()], dim=1)
