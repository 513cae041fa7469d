"""Handlers of a training: its random state, its time limit, its progress."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines import Evaluator
from monai.handlers import ValidationHandler
from monai.utils import ensure_tuple
from tqdm import tqdm

from ..errors import InputError
from .events import progress_bar, rank, run_last, words

logger = logging.getLogger(__name__)


class EpochSeed:
    """Make all randomness of an epoch a function of seed, epoch and rank.

    At the start of every epoch it seeds PyTorch, NumPy, Python and every ``Randomizable`` in the dataset, tells the
    sampler the epoch (``set_epoch``, where it has it), and opens the data loader again, so that shuffling and worker
    processes follow. What an epoch draws then depends on nothing before
    it: resumed by :class:`TrainingState`, a training goes on as if it had never stopped. This holds for any
    ``num_workers`` and for MONAI's ``ThreadDataLoader``, if the transforms draw from ``self.R``: with
    ``num_workers=0`` that loader runs them beside the training step, which draws from PyTorch's global generator.

    Args:
        seed: any nonnegative integer.

    Raises:
        InputError: if an epoch has no step, because the loader leaves out a batch that is not full: nothing would be
            learned; when the training starts, if the loader keeps its workers over epochs (``persistent_workers``) or
            makes them of threads (``use_thread_workers``): neither can be seeded per epoch.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        if engine.state.epoch_length == 0:  # MONAI passes such a training over
            loader = getattr(engine, "data_loader", None)
            items, batch = len(getattr(loader, "dataset", ())), getattr(loader, "batch_size", None)
            raise InputError(f"batch_size is {batch} with {items} items in an epoch, expected {items} or less")
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        loader = engine.state.dataloader
        _check_workers(loader)
        # the loader of the last epoch may still draw in its thread: end it before seeding, open the next one after
        engine.set_data(())
        entropy = np.random.SeedSequence([self.seed, engine.state.epoch, rank(engine)])
        python_seed, numpy_seed, torch_seed, loader_seed, transform_seed = entropy.generate_state(5).tolist()
        random.seed(python_seed)
        np.random.seed(numpy_seed)  # noqa: NPY002 - for code that draws from the global state
        torch.manual_seed(torch_seed)
        for generator in _generators(loader):
            generator.manual_seed(loader_seed)
        set_rnd(getattr(loader, "dataset", None), transform_seed)
        if hasattr(getattr(loader, "sampler", None), "set_epoch"):
            loader.sampler.set_epoch(engine.state.epoch)
        engine.set_data(loader)


class EpochValidation(ValidationHandler):
    """Validate after every so many epochs, and after the last one.

    MONAI's ValidationHandler leaves out a last epoch that its interval does not divide, so that a training shorter than
    the interval ends without weights; so would one that a time limit ends before its first validation, which is then
    made up for.

    Args:
        validator: the evaluator of the training.
        interval: epochs from one validation to the next.

    Raises:
        InputError: if ``interval`` is below 1.
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        if interval < 1:
            raise InputError(f"val_interval is {interval}, expected 1 or more")
        super().__init__(interval, validator)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._due), self)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _due(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs

    def _completed(self, engine: Engine) -> None:
        if self.validator.state.best_metric_epoch < 1:
            self(engine)


class TimeLimit:
    """End the training after the last epoch that fits into a time limit.

    It stops where :class:`TrainingState` can go on exactly: no epoch is broken off, and none is begun that would end
    after the limit if it takes as long as the longest so far (validation included). One epoch is run in any case.

    Args:
        max_minutes: minutes from the start of the training; None for no limit.

    Raises:
        InputError: if ``max_minutes`` is not above 0.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        if max_minutes is not None and not max_minutes > 0:
            raise InputError(f"max_minutes is {max_minutes}, expected a number above 0, or None for no limit")
        self.max_minutes = max_minutes
        self._start = self._epoch_start = self._longest = 0.0

    def attach(self, engine: Engine) -> None:
        if self.max_minutes is not None:
            engine.add_event_handler(Events.STARTED, self._started)
            run_last(engine, self._epoch_completed)

    def _started(self, engine: Engine) -> None:
        self._start = self._epoch_start = time.monotonic()
        self._longest = 0.0

    def _epoch_completed(self, engine: Engine) -> None:
        now = time.monotonic()
        self._longest = max(self._longest, now - self._epoch_start)
        self._epoch_start = now
        stop = now - self._start + self._longest > 60 * self.max_minutes
        if idist.get_world_size() > 1:
            # clocks differ, and a rank that stops alone leaves the others waiting for ever
            stop = bool(idist.broadcast(float(stop), src=0))
        if stop and engine.state.epoch < engine.state.max_epochs:
            if rank(engine) == 0:
                epoch, planned = engine.state.epoch, engine.state.max_epochs
                logger.info("time limit of %g min: stopping after epoch %d of %d", self.max_minutes, epoch, planned)
            engine.terminate()


class TrainingProgress:
    """One progress bar over all epochs, and one log line per epoch, both with the time left.

    The bar is drawn on a terminal only, and log lines pass above it. The time left counts validation too.

    Args:
        validator: the evaluator of the training, for its metrics of the epoch and its best one.
        keys: scalars in the output of the training step to show, as their means over the epoch.

    Raises:
        InputError: at the first iteration, if a key is not in the output.
    """

    def __init__(self, validator: Engine | None = None, keys: str | Sequence[str] = "loss") -> None:
        self.validator = validator
        self.keys = ensure_tuple(keys)
        self._open = ExitStack()
        self._bar: tqdm | None = None
        self._sums: dict[str, Any] = {}
        self._first_epoch = self._iterations = 0
        self._start = self._epoch_start = self._shown = 0.0

    def attach(self, engine: Engine) -> None:
        if rank(engine) > 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        run_last(engine, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._exception_raised)

    def _epoch_started(self, engine: Engine) -> None:
        self._sums, self._iterations = dict.fromkeys(self.keys, 0.0), 0
        self._epoch_start = time.monotonic()
        if self._bar is None:
            self._first_epoch, self._start = engine.state.epoch, self._epoch_start
            length = engine.state.epoch_length
            self._bar = self._open.enter_context(
                progress_bar(
                    desc="training",
                    unit=" step",
                    total=None if length is None else length * engine.state.max_epochs,
                    initial=engine.state.iteration,
                    smoothing=0,  # mean speed since the start: validation comes in bursts
                )
            )

    def _iteration_completed(self, engine: Engine) -> None:
        for key, value in _scalars(engine.state.output, self.keys).items():
            self._sums[key] = self._sums[key] + value
        self._iterations += 1
        self._bar.update()
        if not self._bar.disable and time.monotonic() - self._shown > 1:  # reading a loss waits for the GPU
            self._shown = time.monotonic()
            self._bar.set_postfix_str(self._summary(engine), refresh=False)

    def _epoch_completed(self, engine: Engine) -> None:
        now, epoch, planned = time.monotonic(), engine.state.epoch, engine.state.max_epochs
        taken = _duration(now - self._epoch_start)
        left = _duration((now - self._start) / (epoch - self._first_epoch + 1) * (planned - epoch))
        logger.info("epoch %d of %d: %s; took %s, %s left", epoch, planned, self._summary(engine), taken, left)

    def _summary(self, engine: Engine) -> str:
        parts = [f"{key} {float(value) / self._iterations:.4g}" for key, value in self._sums.items()]
        state = getattr(self.validator, "state", None)
        if state is not None and state.best_metric_epoch > 0:
            metrics = {name: value for name, value in state.metrics.items() if np.size(value) == 1}
            if state.epoch == engine.state.epoch:
                parts += [f"{name} {float(value):.4g}" for name, value in metrics.items()]
            parts.append(
                f"best {state.key_metric_name} {float(state.best_metric):.4g} (epoch {state.best_metric_epoch})"
            )
        return ", ".join(parts)

    def _completed(self, engine: Engine) -> None:
        self._open.close()
        self._bar = None

    def _exception_raised(self, engine: Engine, error: BaseException) -> None:
        self._completed(engine)
        raise error


def _check_workers(loader: Any) -> None:
    if getattr(loader, "persistent_workers", False):
        raise InputError("persistent_workers of the data loader is True, expected False: EpochSeed seeds new workers")
    if getattr(getattr(loader, "multiprocessing_context", None), "_name", None) == "processthread":
        raise InputError("use_thread_workers of the data loader is True, expected False: threads share random states")


def _generators(loader: Any) -> set[torch.Generator]:
    samplers = [getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    owners = [loader, *samplers] if isinstance(loader, torch.utils.data.DataLoader) else []
    found = (getattr(owner, "generator", None) for owner in owners)
    return {generator for generator in found if isinstance(generator, torch.Generator)}


def _scalars(output: Any, keys: Sequence[str]) -> dict[str, Any]:
    item = output[0] if isinstance(output, (list, tuple)) and output else output
    if not isinstance(item, Mapping) or not set(keys) <= item.keys():
        found = words(sorted(item)) if isinstance(item, Mapping) else type(item).__name__
        raise InputError(f"TrainingProgress: found {found} in the output of the training step, expected {words(keys)}")
    values = {key: item[key] for key in keys}
    return {key: value.detach().mean() if torch.is_tensor(value) else value for key, value in values.items()}


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else tqdm.format_interval(seconds)
