"""The losses of ``ace_multitask`` beside MONAI's DiceCELoss: ``python scripts/benchmark.py ace_loss``."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss

from ace_multitask.label_sets import LabelSets
from ace_multitask.loss import OBJECTIVES, make_loss
from planning.timing import print_peak, take_turns

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"  # runs what is listed in COMMANDS


def ace_loss(shape: tuple = (96, 96, 96), batch: int = 2, repeats: int = 9, device: str = "cpu") -> None:
    """Time and memory, forward and backward, of the losses of ace_multitask beside MONAI's DiceCELoss.

    The losses take turns, so that other work on the machine hits all of them. Peak memory is that of a process of its
    own, above what it holds with logits and labels.

    Args:
        shape: voxels of a patch; five classes.
        batch: patches.
        repeats: of each loss, after one to warm up.
        device: ``cpu`` or ``cuda``.
    """
    losses = _losses()
    peak = {}
    for name in losses:  # before this process grows: a child counts from its parent's size
        command = [sys.executable, str(SCRIPT), "loss_peak", name, json.dumps(shape), str(batch), device]
        peak[name] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    arguments = {name: _loss_arguments(name, shape, batch, device) for name in losses}

    def forward_and_backward(name: str) -> None:
        logits, labels = arguments[name]
        logits.grad = None
        losses[name].to(device)(logits, labels).backward()

    seconds = take_turns({name: functools.partial(forward_and_backward, name) for name in losses}, repeats, device)
    kept = {name: _kept_for_backward(loss, *arguments[name]) for name, loss in losses.items()}
    plain = next(iter(losses))
    print(f"{'':12s}{'median':>9s}{'least':>9s}{'ratio':>7s}{'kept':>10s}{'ratio':>7s}{'peak':>10s}{'ratio':>7s}")
    for name, values in seconds.items():
        ratio = np.median(np.divide(values, seconds[plain]))
        print(
            f"{name:12s}{np.median(values) * 1000:6.0f} ms{min(values) * 1000:6.0f} ms{ratio:7.2f}"
            f"{kept[name]:6.0f} MiB{kept[name] / kept[plain]:7.2f}{peak[name]:6.0f} MiB{peak[name] / peak[plain]:7.2f}"
        )


def loss_peak(name: str, shape: tuple, batch: int, device: str) -> None:
    """Print the MiB that one forward and backward of a loss takes above its arguments."""
    loss = _losses()[name].to(device)
    loss(*_loss_arguments(name, (8, 8, 8), batch, device)).backward()  # what is loaded at first use
    logits, labels = _loss_arguments(name, shape, batch, device)
    print_peak(lambda: loss(logits, labels).backward(), device)


def _losses() -> dict:
    """The plain loss and those of ace_multitask, for five classes of two data sets."""
    tissue = {"labels": {"1": "CSF", "2": "GM", "3": "WM"}, "background_is_complete": True}
    datasets = {"tissue": tissue, "lesion": {"labels": {"1": "lesion"}}}
    table = LabelSets(["background", "CSF", "GM", "WM", "lesion"], datasets)
    plain = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    return {"DiceCELoss": plain, **{objective: make_loss(objective, table) for objective in OBJECTIVES}}


def _loss_arguments(name: str, shape: tuple, batch: int, device: str) -> tuple:
    """Random logits; random labels, of full tables for the plain loss, else in turn of the two data sets."""
    torch.manual_seed(0)
    logits = torch.randn(batch, 5, *shape, device=device, requires_grad=True)
    if name == "DiceCELoss":
        return logits, torch.randint(0, 5, (batch, 1, *shape), device=device)
    codes = [torch.randint(*((1, 5) if i % 2 == 0 else (5, 7)), (1, 1, *shape), device=device) for i in range(batch)]
    return logits, torch.cat(codes).to(torch.uint8)


def _kept_for_backward(loss, logits, labels) -> float:
    """MiB of all tensors that autograd keeps between forward and backward, each counted once."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss(logits, labels)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(sizes.values()) / 2**20


COMMANDS = (ace_loss, loss_peak)
