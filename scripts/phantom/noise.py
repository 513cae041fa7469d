"""Smooth noise, of which anatomies, contrasts and lesions are made."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float | np.ndarray) -> torch.Tensor:
    """Gaussian noise of unit sd, smoothed over the last three axes; sigma in voxels.

    Wide kernels are drawn on a coarser grid and interpolated, which looks the same and costs nothing.
    """
    sigma = np.broadcast_to(np.asarray(sigma, dtype=float), 3)
    steps = np.maximum(1, np.floor(sigma / 1.2)).astype(int)
    lead, spatial = shape[:-3], shape[-3:]
    coarse = tuple(int(np.ceil(n / k)) + 1 for n, k in zip(spatial, steps, strict=True))
    noise = rng.standard_normal((*lead, *coarse), dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0,) * len(lead) + tuple(sigma / steps), mode="wrap", truncate=3.0)
    noise = torch.from_numpy(noise / noise.std())
    if tuple(steps) == (1, 1, 1):
        return noise[(..., *(slice(n) for n in spatial))]
    size = tuple(int(n * k) for n, k in zip(coarse, steps, strict=True))
    noise = F.interpolate(noise.reshape(1, -1, *coarse), size=size, mode="trilinear", align_corners=False)
    return noise.reshape(*lead, *size)[(..., *(slice(n) for n in spatial))]
