"""Cases of one evaluator in processes side by side, which share the weights that it has loaded."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import ignite.distributed as idist
import torch

from ..errors import InputError, find_input_error
from ..processes import process_pool

if TYPE_CHECKING:
    from .evaluator import ScanEvaluator

_at_work: SideBySide | None = None  # of the process that forks, and so of its forks: nothing has to be pickled


class Outcome(NamedTuple):
    """What became of a case in another process: its names, why it failed (empty if it did not), and its seconds."""

    names: list[str]
    failure: str
    seconds: float


class SideBySide:
    """Batches of an evaluator that are done already: an :class:`Outcome` each, in the order in which they end.

    Processes are forks of this one, made when the first batch is asked for: by then the weights are loaded, and all of
    them share one copy. Each computes with one thread, so there is no pool of threads that a fork could lack.

    Args:
        evaluator: prepares, infers and writes each case, in the forks.
        workers: number of processes.

    Raises:
        InputError: when iterated, what a case raises; or if a process was stopped.
    """

    def __init__(self, evaluator: ScanEvaluator, workers: int) -> None:
        self.evaluator = evaluator
        self.loader = evaluator.data_loader
        self.workers = workers

    def __len__(self) -> int:
        return len(self.loader.dataset)

    def __iter__(self) -> Iterator[Outcome]:
        global _at_work
        _at_work = self
        try:
            with process_pool(min(self.workers, len(self)), partial(torch.set_num_threads, 1), "fork") as pool:
                futures = [pool.submit(_run_case, index) for index in range(len(self))]
                for future in as_completed(futures):
                    yield future.result()
        except BrokenProcessPool as e:
            raise InputError(
                f"one of {self.workers} processes was stopped, maybe by a lack of memory; expected fewer workers"
            ) from e
        finally:
            _at_work = None


def refuse_side_by_side(workers: int, device: torch.device) -> None:
    """Raise InputError if cases cannot be run in so many processes."""
    if idist.get_world_size() > 1:
        raise InputError(f"workers is {workers} under torchrun, expected 1: its processes share the cases already")
    if device.type != "cpu":
        raise InputError(f"workers is {workers} on {device}, expected 1, or device cpu; torchrun takes several GPUs")
    if "fork" not in multiprocessing.get_all_start_methods():
        raise InputError(f"workers is {workers}, expected 1: this system does not fork processes")


def _run_case(index: int) -> Outcome:
    try:
        return _at_work.evaluator.run_case(index, _at_work.loader)
    except Exception as e:
        known = find_input_error(e)
        if known is None:
            raise
        raise InputError(str(known)) from e  # what an error was raised from does not come to another process
