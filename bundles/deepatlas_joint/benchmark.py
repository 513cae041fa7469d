"""The anatomy loss, and the plain way to write it: ``python scripts/benchmark.py anatomy``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import one_hot

from common.geometry import warp
from deepatlas_joint.loss import anatomy_loss, dice_loss
from planning.timing import print_peak, take_turns

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"  # runs what is listed in COMMANDS


def anatomy(
    shape: tuple = (96, 96, 96), classes: int = 32, known: bool = False, repeats: int = 5, device: str = "cpu"
) -> None:
    """Time and memory of forward and backward of the anatomy loss of deepatlas_joint, and of the plain way.

    The plain way warps all classes at once and gives autograd the rest. Peak memory is that of a process of its own,
    above the arguments.

    Args:
        shape: voxels of the volume.
        classes: background included.
        known: label maps for both images; else the moving one is predicted, as probabilities in float16.
        repeats: of each, after one to warm up.
        device: ``cpu`` or ``cuda``.
    """
    names = ("plain", "ours")
    peak = {}
    for name in names:
        command = [
            sys.executable,
            str(SCRIPT),
            "anatomy_peak",
            name,
            json.dumps(shape),
            str(classes),
            str(known),
            device,
        ]
        peak[name] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    seconds = take_turns({name: _anatomy_step(name, shape, classes, known, device) for name in names}, repeats, device)
    print(f"{'':8s}{'median':>9s}{'ratio':>7s}{'peak':>10s}{'ratio':>7s}")
    for name, values in seconds.items():
        ratio = np.median(np.divide(values, seconds["plain"]))
        median = 1000 * np.median(values)
        print(f"{name:8s}{median:6.0f} ms{ratio:7.2f}{peak[name]:6.0f} MiB{peak[name] / peak['plain']:7.2f}")


def anatomy_peak(name: str, shape: tuple, classes: int, known: bool, device: str) -> None:
    """Print the MiB that one forward and backward takes above its arguments."""
    _anatomy_step(name, (8, 8, 8), classes, known, device)()  # what is loaded at first use
    step = _anatomy_step(name, shape, classes, known, device)
    print_peak(step, device)


def _anatomy_step(name: str, shape: tuple, classes: int, known: bool, device: str) -> Callable[[], None]:
    """Forward and backward to the displacement, on random anatomies, as a function without arguments."""
    import torch

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

    def step() -> None:
        field.grad = None
        (plain() if name == "plain" else anatomy_loss(labels[0], field, labels[1], classes)).backward()

    return step


COMMANDS = (anatomy, anatomy_peak)
