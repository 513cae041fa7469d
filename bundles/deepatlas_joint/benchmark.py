"""The anatomy loss, one class after the other, beside all at once: ``scripts/benchmark.py step deepatlas_joint``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import one_hot

from common.geometry import warp
from deepatlas_joint.loss import anatomy_loss, dice_loss

NAMES = ("plain", "ours")


def step(
    name: str, shape: Sequence[int] = (96, 96, 96), classes: int = 32, known: bool = False, device: str = "cpu"
) -> Callable[[], None]:
    """Forward and backward to the displacement, on random anatomies, as a function without arguments.

    Args:
        name: plain, all classes warped at once and the rest left to autograd; or ours.
        shape: voxels of the volume.
        classes: background included.
        known: label maps for both images; else the moving one is predicted, as probabilities in float16.
        device: ``cpu`` or ``cuda``.
    """
    torch.manual_seed(0)
    labels = [torch.randint(0, classes, (1, 1, *shape), dtype=torch.uint8, device=device) for _ in range(2)]
    if not known:
        labels[0] = torch.cat([torch.rand(1, 1, *shape, device=device).half() for _ in range(classes)], dim=1)
    field = torch.rand(1, 3, *shape, device=device).requires_grad_()

    def plain() -> torch.Tensor:
        moving, fixed = (
            x.float() if x.is_floating_point() else one_hot(x[:, 0].long(), classes).movedim(-1, 1).float()
            for x in labels
        )
        warped, axes = warp(moving, field, padding="zeros"), (2, 3, 4)
        return dice_loss((warped * fixed).sum(axes), warped.sum(axes), fixed.sum(axes))

    def work() -> None:
        field.grad = None
        (plain() if name == "plain" else anatomy_loss(labels[0], field, labels[1], classes)).backward()

    return work
