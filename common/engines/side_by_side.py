"""Cases of one evaluator in processes side by side, which share the weights that it has loaded."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import ignite.distributed as idist
import torch

from ..errors import InputError, find_input_error
from ..processes import FORKS, in_forks

if TYPE_CHECKING:
    from .evaluator import ScanEvaluator


class Outcome(NamedTuple):
    """What became of a case in another process: its names, why it failed (empty if it did not), and its seconds."""

    names: list[str]
    failure: str
    seconds: float


class SideBySide:
    """Batches of an evaluator that are done already: an :class:`Outcome` each, in their order.

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
        try:
            yield from in_forks(self._run, range(len(self)), self.workers, partial(torch.set_num_threads, 1))
        except BrokenProcessPool as e:
            raise InputError(
                f"one of {self.workers} processes was stopped, maybe by a lack of memory; expected fewer workers"
            ) from e

    def _run(self, index: int) -> Outcome:
        try:
            return self.evaluator.run_case(index, self.loader)
        except Exception as e:
            known = find_input_error(e)
            if known is None:
                raise
            raise InputError(str(known)) from e  # what an error was raised from does not come to another process


def refuse_side_by_side(workers: int, device: torch.device) -> None:
    """Raise InputError if cases cannot be run in so many processes."""
    if idist.get_world_size() > 1:
        raise InputError(f"workers is {workers} under torchrun, expected 1: its processes share the cases already")
    if device.type != "cpu":
        raise InputError(f"workers is {workers} on {device}, expected 1, or device cpu; torchrun takes several GPUs")
    if not FORKS:
        raise InputError(f"workers is {workers}, expected 1: this system does not fork processes")
