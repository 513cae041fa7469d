"""Works that take turns, and the memory that one takes in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import read_json

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "scripts" / "benchmark.py"


def sequences_of(bundle: str) -> tuple[str, ...]:
    """What ``inference.json`` of a bundle takes.

    Raises:
        InputError: if there is no such bundle.
    """
    config = ROOT / "bundles" / bundle / "configs" / "inference.json"
    if not config.is_file():
        raise InputError(f"{bundle} is no bundle, expected a folder in bundles/")
    return tuple(read_json(config)["sequences"])


def in_own_process(*arguments: object) -> str:
    """What a command of ``scripts/benchmark.py`` prints, in a process that has loaded nothing else."""
    command = [sys.executable, str(COMMAND), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def take_turns(work: Mapping[str, Callable[[], None]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each repeat of each work, one after the other in turn, after one to warm up."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_mib(work: Callable[[], object], device: str) -> float:
    """MiB that some work takes above what is held before it."""
    import torch

    if device == "cpu":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def table(seconds: Mapping[str, list[float]], peak: Mapping[str, float]) -> str:
    """A line for each work; ratios are to the first one, those of time repeat by repeat."""
    plain = next(iter(seconds))
    lines = [f"{'':16s}{'median':>9s}{'least':>9s}{'ratio':>7s}{'peak':>10s}{'ratio':>7s}"]
    for name, values in seconds.items():
        ratio = np.median(np.divide(values, seconds[plain]))
        lines.append(
            f"{name:16s}{np.median(values) * 1000:6.0f} ms{min(values) * 1000:6.0f} ms{ratio:7.2f}"
            f"{peak[name]:6.0f} MiB{peak[name] / peak[plain]:7.2f}"
        )
    return "\n".join(lines)
