"""Fractal noise: what the diffusion model learns to remove."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import grid_sample

from common.errors import InputError

# mean square of what bicubic interpolation makes of independent normal numbers, along one axis (its kernel, a = -0.75)
_BICUBIC_VARIANCE = 0.8571


class FractalNoise:
    """Sums of smooth noise whose scale halves from octave to octave, one field for every image.

    Each octave interpolates a lattice of normal numbers, turned and shifted at random. The lowest octaves span the
    image, so a field also brightens or darkens it as a whole, as the simplex noise of the paper does: neither mean 0
    nor variance 1 of a single field is meant, unless ``normalize`` asks for it.

    Args:
        octaves: how many.
        persistence: amplitude of an octave relative to the one before, which is twice as coarse.
        feature_size: pixels from one lattice point to the next in the first octave.
        standard_deviation: of a pixel over all fields. The paper's noise has about 0.7: 0.5 inside of a field, and as
            much between the fields.
        normalize: give every field mean 0 and standard deviation 1.

    Raises:
        InputError: if there is no octave, or the last one is finer than a pixel.

    Reference:
        Wyatt et al., "AnoDDPM: Anomaly detection with denoising diffusion probabilistic models using simplex noise",
        CVPR Workshops 2022; Behrendt et al., MIDL 2024.
    """

    def __init__(
        self,
        octaves: int = 6,
        persistence: float = 0.8,
        feature_size: float = 64.0,
        standard_deviation: float = 0.7,
        normalize: bool = False,
    ) -> None:
        if octaves < 1 or feature_size < 2 ** (octaves - 1):
            raise InputError(
                f"octaves is {octaves} with feature_size {feature_size}, expected 1 or more octaves, the last of 1 "
                "pixel or more"
            )
        self.periods = [feature_size / 2**k for k in range(octaves)]
        amplitudes = [persistence**k for k in range(octaves)]
        scale = standard_deviation / math.sqrt(sum(a**2 for a in amplitudes)) / _BICUBIC_VARIANCE
        self.amplitudes = [scale * a for a in amplitudes]
        self.normalize = normalize

    def __call__(
        self,
        count: int,
        size: tuple[int, int],
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Independent fields.

        Args:
            count: how many.
            size: H and W in pixels.
            device: where the fields are made. The numbers are drawn on the CPU, so they do not depend on it.
            generator: of the CPU; PyTorch's own by default.

        Returns:
            (count, H, W), float32.
        """
        ys, xs = (torch.arange(n, device=device) - (n - 1) / 2 for n in size)
        fields = torch.zeros(count, *size, device=device)
        for period, amplitude in zip(self.periods, self.amplitudes, strict=True):
            points = math.ceil(math.hypot(*size) / period) + 4  # enough at any angle, with a margin for bicubic
            lattice = torch.randn(count, 1, points, points, generator=generator).to(device)
            angle, shift_y, shift_x = torch.rand(3, count, 1, 1, generator=generator).to(device)
            cos, sin = (2 * math.pi * angle).cos(), (2 * math.pi * angle).sin()
            y, x = ys[:, None] / period, xs / period
            position = torch.stack([cos * x - sin * y + shift_x - 0.5, sin * x + cos * y + shift_y - 0.5], dim=-1)
            sampled = grid_sample(lattice, position * 2 / (points - 1), mode="bicubic", align_corners=True)
            fields += amplitude * sampled[:, 0]
        if self.normalize:
            fields -= fields.mean(dim=(1, 2), keepdim=True)
            fields /= fields.std(dim=(1, 2), keepdim=True)
        return fields
