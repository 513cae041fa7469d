"""What the handlers share: order of calls, processes that work together, progress bars."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ignite.distributed as idist
import torch.distributed as dist
from ignite.engine import Engine, Events
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


def run_last(engine: Engine, handler: Callable[[Engine], None], event: Events = Events.EPOCH_COMPLETED) -> None:
    """Call a handler at the end of an epoch, or at another event, behind all others: validation, schedules, trackers.

    Ignite calls handlers in the order of registration, so it is registered only when the run starts.
    """

    def register(engine: Engine) -> None:
        if not engine.has_event_handler(handler, event):
            engine.add_event_handler(event, handler)

    engine.add_event_handler(Events.STARTED, register)


def rank(engine: Engine) -> int:
    """The rank of this process among those that train together; 0 alone."""
    return getattr(engine.state, "rank", 0)


def gather(value: Any) -> list[Any]:
    """The value that each process has, by rank; it is alone if this process is. All of them have to call it."""
    if idist.get_world_size() < 2:
        return [value]
    values = [None] * idist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def leave_group() -> None:
    """Destroy the process group, and give its threads time to let go of what they hold of Python.

    ``DistributedDataParallel`` keeps the group, and so its threads. One that still waits for Python's lock, to release
    the tensor of the last exchange, when Python ends makes the process abort ("terminate called without an active
    exception") after all its work is done.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.1)


@contextmanager
def progress_bar(**options: Any) -> Iterator[tqdm]:
    """A tqdm bar with time left, on terminals only; log lines are written above it. Options are those of tqdm."""
    bar = tqdm(**{"disable": None, "dynamic_ncols": True, **options})
    with bar, nullcontext() if bar.disable else logging_redirect_tqdm():
        yield bar


def words(value: Any) -> str:
    """A value in a sentence: lists without brackets and quotes."""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
