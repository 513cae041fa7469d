"""The methods of comparisons in processes side by side, a bundle in each: what they find is on disk, to be read."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace

import torch
from tqdm import tqdm

from common.errors import InputError
from common.processes import process_pool
from running.command_line import show_progress

from .comparison import Comparison

logger = logging.getLogger(__name__)


def run_side_by_side(comparisons: Sequence[Comparison], num_workers: int) -> None:
    """Run comparisons with shipped weights, but keep nothing of them: a run of each afterwards reads what is on disk.

    That run also says what went wrong, and does what is missing if a process was stopped.

    Args:
        comparisons: of one ``output_dir``.
        num_workers: processes, at most one a bundle; the cores are shared out among them.
    """
    start = time.monotonic()
    bundles = list(dict.fromkeys(method.bundle for comparison in comparisons for method in comparison.chosen))
    workers = min(num_workers, len(bundles))
    threads = max((os.cpu_count() or 1) // workers, 1)
    with process_pool(workers, functools.partial(_prepare, threads)) as pool, suppress(BrokenProcessPool):
        running = [pool.submit(_run, [*_of_bundle(comparisons, bundle)]) for bundle in bundles]
        _show(running, comparisons, start)
        for future in running:
            future.result()
    for comparison in comparisons:
        comparison.seconds = time.monotonic() - start


def _prepare(threads: int) -> None:
    show_progress()
    torch.set_num_threads(threads)


def _of_bundle(comparisons: Sequence[Comparison], bundle: str) -> Iterator[Comparison]:
    for comparison in comparisons:
        methods = [method.name for method in comparison.chosen if method.bundle == bundle]
        if methods:
            yield replace(comparison, methods=methods)


def _run(comparisons: Sequence[Comparison]) -> None:
    for comparison in comparisons:
        with suppress(InputError):
            comparison.run()


def _show(running: Sequence[Future], comparisons: Sequence[Comparison], start: float) -> None:
    """A bar of the masks on disk until all is done; a line for the first of them, and one for each bundle."""
    methods = {(method.bundle, *method.inference.layers) for comparison in comparisons for method in comparison.chosen}
    total = len(methods) * len(comparisons[0].cases)
    folder = comparisons[0].output_dir / "runs" / "shipped" / "masks"
    waiting, known = set(running), 0
    with tqdm(total=total, desc="masks", unit="mask", disable=None) as bar:
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            masks, seconds = sorted(folder.glob("*/*_seg.nii.gz")), time.monotonic() - start
            if masks and not known:
                logger.info("the first mask is there, after %.0f s: %s", seconds, masks[0])
            bar.update(len(masks) - known)
            known = len(masks)
            if done and waiting and masks:
                left = seconds / len(masks) * (total - len(masks))
                logger.info("%d of %d masks, about %.0f s left", len(masks), total, left)
