"""Label maps carried along a field, the field of a half-way one, and how far a way there and back misses."""

from __future__ import annotations

import numpy as np
import torch

from common.geometry import compose, sample, to_millimeters, voxel_grid


def sample_labels(labels: torch.Tensor, points: torch.Tensor, classes: int) -> torch.Tensor:
    """Class of the largest probability at points of a label map, after trilinear interpolation of each class.

    Args:
        labels: (1, X, Y, Z), whole numbers.
        points: (3, *shape) in voxels of the label map; outside of it is class 0.
        classes: background included.

    Returns:
        (1, *shape), uint8.
    """
    best = torch.zeros(points.shape[1:], device=labels.device)
    found = torch.zeros(points.shape[1:], dtype=torch.uint8, device=labels.device)
    for value in range(classes):  # one class in memory at a time
        share = sample((labels == value).float(), points, padding="zeros")[0]
        better = share > best
        best, found = torch.where(better, share, best), torch.where(better, value, found).to(torch.uint8)
    return found[None]


def from_halfway(half: torch.Tensor, iterations: int = 60, tolerance: float = 1e-3) -> torch.Tensor:
    """The opposite of ``common.geometry.halfway``: u with ``u(p - d(p)) = 2 d(p)``; the slope of d has to be below 1.

    That of -d is the inverse of that of d. Only the few voxels in steep places are iterated on for long.

    Args:
        half: d, (B, 3, X, Y, Z), voxels.
        iterations: at most so many.
        tolerance: voxels; a place is done when half of its displacement changes by less.

    Returns:
        u, (B, 3, X, Y, Z), voxels.
    """
    found = []
    start = voxel_grid(tuple(half.shape[2:])).to(half).flatten(1)
    for field in half:
        way = field.flatten(1).clone()
        open_ = torch.arange(way.shape[1], device=half.device)
        for _ in range(iterations):
            before = way[:, open_]
            now = sample(field, start[:, open_] + before)
            way[:, open_] = now
            open_ = open_[(now - before).abs().amax(0) > tolerance]
            if len(open_) == 0:
                break
        found.append(2 * way.reshape(field.shape))
    return torch.stack(found)


def inverse_error(displacement: torch.Tensor, inverse: torch.Tensor, affine: np.ndarray) -> torch.Tensor:
    """How far from its start a point is that goes to ``q = p + u(p)`` and back to ``q + v(q)``.

    Args:
        displacement: u, (B, 3, X, Y, Z), voxels.
        inverse: v, likewise.
        affine: of the grid, voxel to world, 4 x 4.

    Returns:
        (B, X, Y, Z), mm.
    """
    return to_millimeters(compose(displacement, inverse), affine).square().sum(1).sqrt()
