"""Separable filters as products with banded matrices: on volumes of usual size quicker than convolutions."""

from __future__ import annotations

import torch


def along_axes(volume: torch.Tensor, *matrices: torch.Tensor) -> torch.Tensor:
    """Multiply each of the last three axes of (..., X, Y, Z) by its matrix, N x N.

    It is done in the type of the volume, under autocast too: sums of squares want all their digits.
    """
    x, y, z = matrices
    with torch.autocast(volume.device.type, enabled=False):
        volume = y @ (volume @ z.T)
        return (x @ volume.flatten(-2)).reshape(volume.shape)


def box(volume: torch.Tensor, window: int) -> torch.Tensor:
    """Sums over windows of (..., X, Y, Z), an odd number of voxels along each of the last three axes, 0 outside."""
    return along_axes(volume, *(_distance(n, volume).le(window // 2).to(volume) for n in volume.shape[-3:]))


def gaussian(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Weighted means of (..., X, Y, Z) over the last three axes, sigma in voxels; at the margin of what is inside."""
    matrices = []
    for n in volume.shape[-3:]:
        distance = _distance(n, volume) / sigma
        weights = torch.exp(-(distance**2) / 2) * (distance < 5)  # smaller ones are slow to multiply by
        matrices.append(weights / weights.sum(1, keepdim=True))
    return along_axes(volume, *matrices)


def _distance(size: int, like: torch.Tensor) -> torch.Tensor:
    """Distances of the voxels of an axis from each other, (size, size)."""
    index = torch.arange(size, dtype=like.dtype, device=like.device)
    return (index[:, None] - index).abs()
