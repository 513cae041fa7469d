"""Fields on voxel grids: warping, composition, integration of velocities, inversion, folds, millimeters.

Points and displacements are in voxels of the array they index, first array axis first, so ``(3, X, Y, Z)`` holds the
x, y, z components. A displacement is of the pull-back kind: ``warped(p) = image(p + u(p))``. It is MONAI's convention
too, so a field goes through ``monai.networks.blocks.Warp`` with the same result.
"""

from __future__ import annotations

import numpy as np
import torch
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


def sampling_grid(displacement: torch.Tensor) -> torch.Tensor:
    """Where a displacement (B, 3, X, Y, Z) leads, as :func:`torch.nn.functional.grid_sample` wants it.

    Returns:
        (B, X, Y, Z, 3), corners aligned: -1 and 1 are the centers of the outermost voxels, last array axis first.
    """
    grid = []
    for axis in (2, 1, 0):
        size = displacement.shape[2 + axis]
        line = torch.arange(size, dtype=displacement.dtype, device=displacement.device)
        line = line.reshape([-1 if i == axis else 1 for i in range(3)])
        grid.append((displacement[:, axis] + line) * (2 / max(size - 1, 1)) - 1)
    return torch.stack(grid, dim=-1)


def warp(
    image: torch.Tensor, displacement: torch.Tensor, mode: str = "bilinear", padding: str = "border"
) -> torch.Tensor:
    """``image(p + u(p))`` at every voxel p.

    Args:
        image: (B, C, X, Y, Z), float.
        displacement: u, (B, 3, X, Y, Z), voxels.
        mode: ``bilinear`` (trilinear) or ``nearest``.
        padding: ``border`` repeats the outermost voxel, ``zeros`` is 0 outside.

    Raises:
        ValueError: if the grids differ.
    """
    if displacement.shape[1] != 3 or image.shape[2:] != displacement.shape[2:]:
        raise ValueError(
            f"image {tuple(image.shape)} and displacement {tuple(displacement.shape)} differ in their grid"
        )
    grid = sampling_grid(displacement).to(image.dtype)
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)


def compose(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Displacement of ``p -> q = p + first(p) -> q + second(q)``, all (B, 3, X, Y, Z), voxels.

    An image warped by ``second`` and the result warped by ``first`` is the image warped by this.
    """
    return first + warp(second, first)


def integrate_velocity(velocity: torch.Tensor, steps: int = 6) -> torch.Tensor:
    """Displacement at time 1 of a stationary velocity field, by scaling and squaring.

    Args:
        velocity: (B, 3, X, Y, Z) in voxels per unit time.
        steps: number of squarings; the first small step is ``velocity / 2**steps``.

    Returns:
        (B, 3, X, Y, Z) in voxels; the map ``p + u(p)`` is a diffeomorphism as long as the field is smooth on the grid.

    Reference:
        Arsigny et al., "A Log-Euclidean Framework for Statistics on Diffeomorphisms", MICCAI 2006.
    """
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def invert_displacement(displacement: torch.Tensor, iterations: int = 30) -> torch.Tensor:
    """The way back: v with ``v(p) = -u(p + v(p))``, by fixed-point iteration.

    Args:
        displacement: u, (B, 3, X, Y, Z), voxels, without folds.
        iterations: how many; in each the error shrinks by the steepest slope of u, which has to be below 1.

    Returns:
        v, (B, 3, X, Y, Z), voxels: an image warped by u and then by v is the image again, but near the margin.

    Reference:
        Chen et al., "A simple fixed-point approach to invert a deformation field", Medical Physics 2008.
    """
    inverse = -displacement
    for _ in range(iterations):
        inverse = -warp(displacement, inverse)
    return inverse


def halfway(displacement: torch.Tensor, iterations: int = 30) -> torch.Tensor:
    """A displacement seen from the middle of the way: d with ``d(p) = u(p - d(p)) / 2``, by fixed-point iteration.

    A point q and the place ``q + u(q)`` that it leads to are ``p - d(p)`` and ``p + d(p)``, where p is between the two.

    Args:
        displacement: u, (B, 3, X, Y, Z), voxels, without folds.
        iterations: how many; in each the error shrinks by half of the steepest slope of u, which has to be below 2.

    Returns:
        d, (B, 3, X, Y, Z), voxels; -d is that of the inverse of u.
    """
    return -invert_displacement(displacement / 2, iterations)


def jacobian_determinant(displacement: torch.Tensor) -> torch.Tensor:
    """Change of volume by ``p -> p + u(p)``, by central differences, one-sided ones at the margin.

    Args:
        displacement: u, (B, 3, X, Y, Z), voxels.

    Returns:
        (B, X, Y, Z): 1 where nothing changes, below 0 where the map folds.
    """
    rows = torch.stack(torch.gradient(displacement, dim=(2, 3, 4)), dim=2)  # (B, component, axis, X, Y, Z)
    (a, b, c), (d, e, f), (g, h, i) = (
        [rows[:, component, axis] + (component == axis) for axis in range(3)] for component in range(3)
    )
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def fold_share(displacement: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Share of the voxels, 0 to 1, where the determinant of the Jacobian is 0 or below.

    Args:
        displacement: (B, 3, X, Y, Z), voxels.
        mask: (B, 1, X, Y, Z) or (B, X, Y, Z), the voxels that count; all by default.

    Raises:
        ValueError: if the mask is empty.
    """
    return (_inside(jacobian_determinant(displacement), mask) <= 0).double().mean().item()


def log_jacobian_sd(displacement: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Standard deviation of the logarithm of the determinant of the Jacobian: how unevenly volumes change.

    Voxels that fold have none and are left out; :func:`fold_share` counts them.

    Args:
        displacement: (B, 3, X, Y, Z), voxels.
        mask: as in :func:`fold_share`.

    Raises:
        ValueError: if the mask is empty.
    """
    determinant = _inside(jacobian_determinant(displacement), mask)
    return determinant[determinant > 0].double().log().std(correction=0).item()


def _inside(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Values (B, X, Y, Z) of the voxels of a mask, (N,)."""
    if mask is None:
        return values.flatten()
    inside = mask.bool().reshape(values.shape)
    if not inside.any():
        raise ValueError("the mask is empty, expected voxels to measure the field in")
    return values[inside]


def to_millimeters(displacement: torch.Tensor, affine: np.ndarray) -> torch.Tensor:
    """Displacement in voxels of a grid as one in mm along the axes of the world (RAS), both (B, 3, ...).

    Args:
        displacement: voxels.
        affine: of the grid, voxel to world, 4 x 4.
    """
    matrix = torch.as_tensor(np.asarray(affine)[:3, :3], dtype=displacement.dtype, device=displacement.device)
    return torch.einsum("ij,bj...->bi...", matrix, displacement)


def to_voxels(displacement: torch.Tensor, affine: np.ndarray) -> torch.Tensor:
    """The opposite of :func:`to_millimeters`."""
    return to_millimeters(displacement, np.linalg.inv(affine))


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
