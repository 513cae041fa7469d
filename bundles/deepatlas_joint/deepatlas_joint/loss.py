"""Loss terms: similarity of images, smoothness of the field, and the anatomy that both networks have to agree on."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import grid_sample

from common.geometry import sampling_grid

from .filters import box

CLASSES_AT_ONCE = 4
EPSILON = 1e-6
LEAST_VARIANCE = 1e-5  # times the voxels of a window; flat windows have no correlation


class GlobalCorrelation(nn.Module):
    """1 minus the correlation of two images over all their voxels: the paper's similarity.

    The local one, :class:`LocalCorrelation`, takes uneven brightness better.
    """

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Mean over the batch, 0 to 2, of images (B, 1, X, Y, Z)."""
        a, b = (x.float().flatten(1) - x.float().flatten(1).mean(1, keepdim=True) for x in (warped, fixed))
        norm = a.square().sum(1) * b.square().sum(1)
        return (1 - (a * b).sum(1) / norm.clamp(min=EPSILON).sqrt()).mean()


class LocalCorrelation(nn.Module):
    """Minus the squared correlation of two images in windows around every voxel, mean over voxels and batch, -1 to 0.

    It is ``monai.losses.LocalNormalizedCrossCorrelationLoss`` with a rectangular window, at a fraction of its time: the
    gradient is written out, and needs fewer filters than the chain of operations that led to the value.

    Args:
        window: voxels along each axis, odd.

    Raises:
        ValueError: if the window is even.

    Reference:
        Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Medical Image Analysis 2008.
    """

    def __init__(self, window: int = 7) -> None:
        super().__init__()
        if window % 2 != 1:
            raise ValueError(f"window is {window}, expected an odd number of voxels")
        self.window = window

    def forward(self, warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Scalar, of images (B, 1, X, Y, Z)."""
        return _LocalCorrelation.apply(warped, fixed, self.window)


class BendingEnergy(nn.Module):
    """Mean square of the second derivatives of a displacement, per component and voxel, for voxels as unit.

    ``u_xx^2 + u_yy^2 + u_zz^2 + 2 u_xy^2 + 2 u_yz^2 + 2 u_xz^2`` by differences over three voxels, as in
    ``monai.losses.BendingEnergyLoss``, whose way of indexing PyTorch warns about at every training.

    Reference:
        Rueckert et al., "Nonrigid Registration Using Free-Form Deformations", IEEE TMI 1999.
    """

    def forward(self, displacement: torch.Tensor) -> torch.Tensor:
        """Scalar, of (B, 3, X, Y, Z)."""
        u, axes = displacement.float(), (0, 1, 2)

        def at(*moves: tuple[int, int]) -> torch.Tensor:
            """The inner voxels, moved by (axis, -1 or 1)."""
            step = [dict(moves).get(axis, 0) for axis in axes]
            return u[(..., *(slice(1 + k, n - 1 + k) for k, n in zip(step, u.shape[2:], strict=True)))]

        energy = torch.zeros((), device=u.device)
        for i in axes:
            pure = at((i, 1)) - 2 * at() + at((i, -1))
            energy = energy + pure.square().mean()
            for j in axes[i + 1 :]:
                same = at((i, 1), (j, 1)) + at((i, -1), (j, -1))
                other = at((i, 1), (j, -1)) + at((i, -1), (j, 1))
                energy = energy + 2 * ((same - other) / 4).square().mean()
        return energy


def local_correlation(
    first: torch.Tensor, second: torch.Tensor, window: int, wanted: tuple[bool, bool] = (True, True)
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Value of :class:`LocalCorrelation` and its gradients by the two images, None for one that is not ``wanted``.

    With sums B over windows of n voxels, means a' and b', c = B(ab) - n a'b' and variances v = B(aa) - n a'a', w
    likewise, the value is the mean of -cc / vw. Its derivative by a is ``b B(p) + a B(q) - B(p b' + q a')``, with
    ``p = -2c / vw`` and ``q = 2cc / vvw`` over the number of voxels.
    """
    n = window**3
    images = torch.stack([first, second])
    sums = box(torch.cat([images, images.square(), images.prod(0, keepdim=True)]), window)
    means = sums[:2] / n
    variances = sums[2:4].addcmul_(means, sums[:2], value=-1)
    cross = sums[4].addcmul_(means[0], sums[1], value=-1)
    flat = variances < LEAST_VARIANCE
    variances.clamp_(min=LEAST_VARIANCE)
    ratio = cross / variances.prod(0)
    square = ratio * cross
    value = -square.mean()
    chosen = [i for i, is_wanted in enumerate(wanted) if is_wanted]
    gradients: list[torch.Tensor | None] = [None, None]
    if not chosen:
        return value, gradients
    p = ratio.mul_(-2 / cross.numel())
    q = (square * (2 / cross.numel()) / variances).masked_fill_(flat, 0)
    constants = torch.addcmul(p * means.flip(0), q, means)
    to_other, *others = box(torch.stack([p, *(t for i in chosen for t in (q[i], constants[i]))]), window)
    for i, to_self, constant in zip(chosen, others[::2], others[1::2], strict=True):
        gradients[i] = torch.addcmul(images[1 - i] * to_other, images[i], to_self).sub_(constant)
    return value, gradients


class _LocalCorrelation(torch.autograd.Function):
    """Gradients are made with the value, by the sums it has anyway, and only where they are asked for."""

    @staticmethod
    def forward(ctx, warped: torch.Tensor, fixed: torch.Tensor, window: int) -> torch.Tensor:
        value, gradients = local_correlation(warped, fixed, window, ctx.needs_input_grad[:2])
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, of_value: torch.Tensor) -> tuple:
        return *(None if gradient is None else of_value * gradient for gradient in ctx.saved_tensors), None


def dice_loss(intersection: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """1 minus the soft Dice coefficient, mean over classes and batch; background is a class like the others.

    Args:
        intersection: sum over the voxels of the product of two probabilities, (B, C).
        first: sum of the one, (B, C).
        second: sum of the other, (B, C).
    """
    return 1 - ((2 * intersection + EPSILON) / (first + second + 2 * EPSILON)).mean()


def anatomy_loss(moving: torch.Tensor, displacement: torch.Tensor, fixed: torch.Tensor, classes: int) -> torch.Tensor:
    """L_a: one minus the Dice of warped and fixed anatomy, the coupling of the two networks.

    Each anatomy is a label map (B, 1, X, Y, Z) of integers, or probabilities (B, classes, X, Y, Z). Probabilities, of
    labels too, are warped by trilinear interpolation, a few classes at a time, and of them only their sums are
    kept, so that memory does not grow with the number of classes. Gradients reach the displacement and probabilities.

    Args:
        moving: anatomy of the moving image.
        displacement: (B, 3, X, Y, Z), voxels.
        fixed: anatomy of the fixed image.
        classes: how many, background included.

    Returns:
        Scalar, 0 to 1.

    Raises:
        ValueError: if probabilities are not of ``classes`` classes.
    """
    for anatomy in (moving, fixed):
        if anatomy.is_floating_point() and anatomy.shape[1] != classes:
            raise ValueError(f"probabilities are {tuple(anatomy.shape)}, expected {classes} classes")
    return dice_loss(*_WarpedOverlap.apply(moving, displacement, fixed, classes))


def segmentation_loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """L_sp: one minus the soft Dice of a segmentation and a manual label map.

    Args:
        logits: (B, C, X, Y, Z).
        label: (B, 1, X, Y, Z), integers.
    """
    p = logits.float().softmax(1)
    flat, index = p.flatten(2), label.long().flatten(2)
    counts = torch.zeros(p.shape[:2], device=p.device)
    # the probability of the label at each voxel, added up by label: no one-hot map
    intersection = counts.scatter_add(1, index[:, 0], flat.gather(1, index)[:, 0])
    return dice_loss(intersection, flat.sum(2), counts.scatter_add(1, index[:, 0], torch.ones_like(flat[:, 0])))


def _maps(anatomy: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Probabilities of the classes from low up to, not including, high, float32."""
    if anatomy.is_floating_point():
        return anatomy[:, low:high].float()
    classes = torch.arange(low, high, device=anatomy.device, dtype=anatomy.dtype)
    return (anatomy == classes.reshape(1, -1, 1, 1, 1)).float()


class _WarpedOverlap(torch.autograd.Function):
    """Sums over the voxels: warped times fixed, warped, fixed, each (B, classes); a few classes in memory at a time."""

    @staticmethod
    def forward(
        ctx, moving: torch.Tensor, displacement: torch.Tensor, fixed: torch.Tensor, classes: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(moving, displacement, fixed)
        ctx.classes = classes
        grid = sampling_grid(displacement)
        sums = []
        for low in range(0, classes, CLASSES_AT_ONCE):
            high = min(low + CLASSES_AT_ONCE, classes)
            warped = _warped(_maps(moving, low, high), grid)
            target = _maps(fixed, low, high)
            both = torch.einsum("bcxyz,bcxyz->bc", warped, target)
            sums.append(torch.stack([both, warped.sum((2, 3, 4)), target.sum((2, 3, 4))]))
        return tuple(torch.cat(sums, dim=2))

    @staticmethod
    def backward(ctx, of_both: torch.Tensor, of_warped: torch.Tensor, of_fixed: torch.Tensor) -> tuple:
        moving, displacement, fixed = ctx.saved_tensors
        needs_moving, needs_field, needs_fixed, _ = ctx.needs_input_grad
        grid = sampling_grid(displacement)
        grad_moving = torch.empty_like(moving, dtype=torch.float32) if needs_moving else None
        grad_fixed = torch.empty_like(fixed, dtype=torch.float32) if needs_fixed else None
        grad_grid = torch.zeros_like(grid) if needs_field else None
        for low in range(0, ctx.classes, CLASSES_AT_ONCE):
            part = slice(low, min(low + CLASSES_AT_ONCE, ctx.classes))
            both, warped, target = (g[:, part, None, None, None] for g in (of_both, of_warped, of_fixed))
            maps = _maps(moving, part.start, part.stop)
            if needs_fixed:
                grad_fixed[:, part] = both * _warped(maps, grid) + target
            if needs_moving or needs_field:
                of_sample = both * _maps(fixed, part.start, part.stop) + warped
                to_maps, to_grid = torch.ops.aten.grid_sampler_3d_backward(
                    of_sample, maps, grid, 0, 0, True, [needs_moving, needs_field]
                )  # trilinear, zeros outside, corners aligned: as in _warped
                if needs_moving:
                    grad_moving[:, part] = to_maps
                if needs_field:
                    grad_grid += to_grid
        grad_field = None
        if needs_field:
            size = torch.tensor(displacement.shape[2:], device=grid.device) - 1
            grad_field = grad_grid.flip(-1).movedim(-1, 1) * (2 / size.clamp(min=1)).reshape(1, 3, 1, 1, 1)
        return grad_moving, grad_field, grad_fixed, None


def _warped(maps: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
