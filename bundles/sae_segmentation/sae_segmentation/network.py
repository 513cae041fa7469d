"""Encoder, which segments, and decoder, which makes the scan of the segmentation again: the paper's figure 1."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import gumbel_softmax, interpolate, max_pool3d

from common.errors import InputError

PRIOR_FLOOR = 1e-30  # of a class that the atlas rules out, so that its logarithm is a number
SKIP_SCALE = 100.0  # of the intensities: Adam moves all weights alike, and those of this skip have a long way to go


class SegmentationEncoder(nn.Module):
    """q(s | x), the paper's U-Net on top of the prior: ``logits = f(x) + log prior``.

    f has one convolution a level with ReLU, max-pooling, nearest upsampling and concatenated skips, and no
    normalization, as in the paper's code; and beside it, per voxel, a quadratic function of x, which is the
    form of a Gaussian log-likelihood. Both begin as 0, so the training begins at the atlas; the code needs a
    pretrained encoder instead, and a mask of the atlas's support.

    Args:
        classes: of the atlas, background included.
        images: sequences of a scan.
        channels: width of each level, the first at full resolution. The paper's are (4, 8, 16, 32, 32).

    Raises:
        ValueError: if ``channels`` has fewer than two levels.

    Reference:
        Yu et al., "An Auto-Encoder Strategy for Adaptive Image Segmentation", MIDL 2020.
    """

    def __init__(self, classes: int = 4, images: int = 1, channels: Sequence[int] = (4, 8, 16, 32, 32)) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"channels is {tuple(channels)}, expected the widths of two levels or more")
        self.classes, self.images = classes, images
        self.skip_scale, self.prior_floor = SKIP_SCALE, PRIOR_FLOOR  # TorchScript knows no globals
        self.factor = 2 ** (len(channels) - 1)
        self.down = nn.ModuleList(nn.Conv3d(i, o, 3, padding=1) for i, o in pairwise([images, *channels]))
        ups = [*channels[-2::-1]]
        inputs = [channels[-1], *ups[:-1]]
        self.up = nn.ModuleList(nn.Conv3d(i + o, o, 3, padding=1) for i, o in zip(inputs, ups, strict=True))
        self.output = nn.Conv3d(channels[0], classes, 3, padding=1)
        # of a class: constant; then slope and curve of every image
        self.intensity = nn.Parameter(torch.zeros(classes, 1 + 2 * images))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, *spatial).

        Args:
            scan: (B, images + classes, *spatial): intensities, about 0 to 1, then the prior probabilities.

        Raises:
            ValueError: if the channels are others.
            InputError: if a spatial size is no multiple of ``factor``.
        """
        if scan.shape[1] != self.images + self.classes:
            raise ValueError(f"the scan has {scan.shape[1]} channels, expected {self.images + self.classes}")
        for size in scan.shape[2:]:
            if size % self.factor != 0:
                raise InputError(f"a size of the scan is {size}, expected a multiple of {self.factor}")
        image, prior = scan[:, : self.images], scan[:, self.images :]
        x = image
        skips: list[torch.Tensor] = []
        for layer in self.down:
            if len(skips) > 0:
                x = max_pool3d(x, 2)
            x = torch.relu(layer(x))
            skips.append(x)
        x = skips.pop()
        for layer in self.up:
            x = torch.relu(layer(torch.cat([interpolate(x, scale_factor=2.0), skips.pop()], dim=1)))
        return self.output(x) + self._likelihood(image.float()) + torch.log(prior.float() + self.prior_floor)

    def _likelihood(self, image: torch.Tensor) -> torch.Tensor:
        """Quadratic function of the intensities, (B, classes, *spatial), voxel by voxel in full precision."""
        weight = self.skip_scale * self.intensity[:, :, None, None, None].float()
        out = weight[:, 0]
        for i in range(self.images):
            c = 4 * (image[:, i : i + 1] - 0.5)  # so that c and c^2 are not alike
            out = out + c * (weight[:, 1 + i] + c * weight[:, 1 + self.images + i])
        return out

    @torch.no_grad()
    def start_at(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Make the skip of the intensities the logarithm of a Gaussian for every class.

        Args:
            mean: of the classes' intensities, (classes, images).
            variance: likewise.
        """
        curve = -1 / (32 * variance)  # the logarithm is curve (c - offset)^2 - log(variance) / 2, c = 4 (x - 0.5)
        offset = 4 * mean - 2
        constant = (curve * offset.square() - 0.5 * variance.log()).sum(1, keepdim=True)
        self.intensity.copy_(torch.cat([constant, -2 * curve * offset, curve], dim=1) / self.skip_scale)


class ImageDecoder(nn.Sequential):
    """p(x | s): one convolution, then a sigmoid; the mean of the image given the classes around a voxel.

    Args:
        classes: of the segmentation.
        images: sequences of a scan.
    """

    def __init__(self, classes: int = 4, images: int = 1) -> None:
        super().__init__(nn.Conv3d(classes, images, 3, padding=1), nn.Sigmoid())

    @torch.no_grad()
    def start_at(self, mean: torch.Tensor) -> None:
        """Make the image of every class its mean, (classes, images), without a look at the neighbors."""
        convolution = self[0]
        convolution.weight.zero_()
        convolution.bias.zero_()
        convolution.weight[:, :, 1, 1, 1] = torch.logit(mean.T, eps=0.02)


class SegmentationAutoencoder(nn.Module):
    """Encoder, one sample of the segmentation, decoder.

    In training the sample is a straight-through Gumbel softmax: one class at every voxel, the gradient of the softmax.
    In evaluation mode its noise is always the same. Probabilities are not decoded: they hide the doubt that a sample
    shows, and a segmentation that has not decided yet would seem to be good evidence.

    Args:
        encoder: scan to logits.
        decoder: segmentation to image.
        temperature: of the Gumbel softmax; the paper's is 2/3.
    """

    def __init__(self, encoder: SegmentationEncoder, decoder: ImageDecoder, temperature: float = 2 / 3) -> None:
        super().__init__()
        self.encoder, self.decoder, self.temperature = encoder, decoder, temperature

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        """(B, classes + classes + images, *spatial): logits, the segmentation, the image that is made of it.

        Args:
            scan: as for the encoder.
        """
        logits = self.encoder(scan).float()
        if self.training:
            segmentation = gumbel_softmax(logits, tau=self.temperature, hard=True, dim=1)
        else:
            generator = torch.Generator(logits.device).manual_seed(0)
            noise = torch.empty_like(logits).exponential_(generator=generator).log()
            drawn = (logits - noise).argmax(1, keepdim=True)
            segmentation = torch.zeros_like(logits).scatter_(1, drawn, 1)
        return torch.cat([logits, segmentation, self.decoder(segmentation)], dim=1)
