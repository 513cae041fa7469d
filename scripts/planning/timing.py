"""Time and memory of two ways to do the same, side by side."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import torch


def print_peak(work: Callable[[], object], device: str) -> None:
    """Print the MiB that some work takes above what is held before it."""
    if device == "cpu":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
    else:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)


def take_turns(work: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each repeat of each work, one after the other in turn, after one to warm up."""
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
