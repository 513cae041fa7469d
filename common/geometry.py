"""Fields on voxel grids: sampling, integration of velocities, smooth random fields, grids in millimetres.

Points and displacements are in voxels of the array they index, first array axis first, so ``(3, X, Y, Z)`` holds the
x, y, z components. A displacement is of the pull-back kind: ``warped(p) = image(p + u(p))``.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F


def voxel_grid(shape: tuple[int, ...], affine: np.ndarray | None = None) -> torch.Tensor:
    """Coordinates of every voxel.

    Args:
        shape: number of voxels along each of the three axes.
        affine: voxel to world, 4 x 4; without it the coordinates are the voxel indices.

    Returns:
        (3, *shape), float32, in voxels, or in the unit of the affine.
    """
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    if affine is None:
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))
    matrix = torch.as_tensor(np.asarray(affine), dtype=torch.float32)
    terms = [axis.reshape([-1 if i == j else 1 for j in range(3)]) for i, axis in enumerate(axes)]
    return torch.stack([sum(matrix[row, i] * terms[i] for i in range(3)) + matrix[row, 3] for row in range(3)])


def apply_affine(affine: np.ndarray, points: torch.Tensor) -> torch.Tensor:
    """Move points (3, ...) by a 4 x 4 matrix."""
    matrix = torch.as_tensor(np.asarray(affine), dtype=points.dtype)
    moved = matrix[:3, :3] @ points.reshape(3, -1) + matrix[:3, 3:]
    return moved.reshape(points.shape)


def sample(volume: torch.Tensor, points: torch.Tensor, mode: str = "bilinear", padding: str = "border") -> torch.Tensor:
    """Values of a volume at points.

    Args:
        volume: (C, X, Y, Z), float.
        points: (3, *shape) in voxels of the volume.
        mode: ``bilinear`` (trilinear) or ``nearest``.
        padding: ``border`` repeats the outermost voxel, ``zeros`` is 0 outside.

    Returns:
        (C, *shape).
    """
    # to [-1, 1] with corners aligned; grid_sample wants the last axis first
    unit = [points[i].reshape(-1) * (2 / (volume.shape[1 + i] - 1)) - 1 for i in (2, 1, 0)]
    grid = torch.stack(unit, dim=-1).reshape(1, 1, 1, -1, 3)
    values = F.grid_sample(volume.unsqueeze(0), grid, mode=mode, padding_mode=padding, align_corners=True)
    return values.reshape(volume.shape[0], *points.shape[1:])


def integrate_velocity(velocity: torch.Tensor, steps: int = 6) -> torch.Tensor:
    """Displacement at time 1 of a stationary velocity field, by scaling and squaring.

    Args:
        velocity: (3, X, Y, Z) in voxels per unit time.
        steps: number of squarings; the first small step is ``velocity / 2**steps``.

    Returns:
        (3, X, Y, Z) in voxels; the map ``p + u(p)`` is a diffeomorphism as long as the field is smooth on the grid.

    Reference:
        Arsigny et al., "A Log-Euclidean Framework for Statistics on Diffeomorphisms", MICCAI 2006.
    """
    identity = voxel_grid(tuple(velocity.shape[1:]))
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = displacement + sample(displacement, identity + displacement)
    return displacement


def rotation_matrix(angles: np.ndarray) -> np.ndarray:
    """3 x 3 rotation about x, then y, then z; radians."""
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


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
