"""A training step with the Markov random field and without: ``python scripts/benchmark.py sae_field``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from planning.timing import print_peak, take_turns
from sae_segmentation.loss import EvidenceLowerBound
from sae_segmentation.network import ImageDecoder, SegmentationAutoencoder, SegmentationEncoder

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"  # runs what is listed in COMMANDS


def sae_field(
    shape: tuple = (64, 64, 64), batch: int = 2, classes: int = 4, repeats: int = 9, device: str = "cpu"
) -> None:
    """Time and memory of a training step of sae_segmentation with the Markov random field and without.

    The two take turns, so that other work on the machine hits both. Peak memory is that of a process of its own, above
    what it holds before the step.

    Args:
        shape: voxels of a patch.
        batch: patches.
        classes: background included.
        repeats: of each, after one to warm up.
        device: ``cpu`` or ``cuda``.
    """
    betas = {"without field": 0.0, "with field": 0.005}
    peak = {}
    for name, beta in betas.items():
        command = [
            sys.executable,
            str(SCRIPT),
            "sae_peak",
            json.dumps(shape),
            str(batch),
            str(classes),
            str(beta),
            device,
        ]
        peak[name] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    steps = {name: _sae_step(shape, batch, classes, beta, device) for name, beta in betas.items()}
    seconds = take_turns(steps, repeats, device)
    plain = next(iter(betas))
    print(f"{'':14s}{'median':>9s}{'least':>9s}{'ratio':>7s}{'peak':>10s}{'ratio':>7s}")
    for name, values in seconds.items():
        ratio = np.median(np.divide(values, seconds[plain]))
        print(
            f"{name:14s}{np.median(values) * 1000:6.0f} ms{min(values) * 1000:6.0f} ms{ratio:7.2f}"
            f"{peak[name]:6.0f} MiB{peak[name] / peak[plain]:7.2f}"
        )


def sae_peak(shape: tuple, batch: int, classes: int, beta: float, device: str) -> None:
    """Print the MiB that two training steps take above their network and input."""
    _sae_step((16, 16, 16), batch, classes, beta, device)()  # what is loaded at first use
    step = _sae_step(shape, batch, classes, beta, device)
    print_peak(lambda: [step(), step()], device)


def _sae_step(shape: tuple, batch: int, classes: int, beta: float, device: str) -> Callable[[], None]:
    """One step of sae_segmentation on random scans, past the warm-up, as a function without arguments."""
    torch.manual_seed(0)
    prior = torch.rand(batch, classes, *shape).softmax(1)
    scan = torch.cat([torch.rand(batch, 1, *shape), prior], 1).to(device)
    network = SegmentationAutoencoder(SegmentationEncoder(classes), ImageDecoder(classes)).to(device)
    table = torch.randn(classes, classes).tolist() if beta > 0 else None
    loss = EvidenceLowerBound(classes, table, beta, warmup=0).to(device)  # as in train.json
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(network(scan), scan).backward()
        optimizer.step()

    return step


COMMANDS = (sae_field, sae_peak)
