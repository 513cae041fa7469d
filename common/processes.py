"""Worker processes that end when the main one is stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

# where there is a fork server: PyTorch and MONAI are imported once, by it, and the processes are its forks
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
FORKS = "fork" in multiprocessing.get_all_start_methods()
PRELOADED = ["monai.bundle"]  # nothing of the repository: up to Python 3.12 the server has another import path


@contextmanager
def process_pool(
    workers: int | None = None, prepare: Callable[[], None] | None = None, method: str | None = METHOD
) -> Iterator[ProcessPoolExecutor]:
    """Processes to hand work to, which end with the main one, however that ends.

    Ctrl-C, or any exception in the block, drops what waits and prints no traceback.

    Args:
        workers: so many; all cores by default.
        prepare: called in each of them first.
        method: how they are started. A process that this one forks, the default of Linux, is there at once, but may
            inherit a thread pool that no longer runs: not for work that PyTorch does.
    """
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(prepare,)) as pool:
        if threading.current_thread() is threading.main_thread():
            # a process inherits that Ctrl-C is ignored, and does not die of it, with a traceback, while it imports
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            pool.submit(int)  # starts all of them
            signal.signal(signal.SIGINT, before)
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_forks(
    work: Callable[[Any], Any], items: Sequence[Any], workers: int, prepare: Callable[[], None] | None = None
) -> Iterator[Any]:
    """What a function makes of each item, in their order, in forks of this process: they see all that it has in memory.

    A fork lacks the pool of threads that PyTorch may have here, so work of PyTorch has to be prepared to do without.
    With one worker, or one item, or where a system does not fork, it is done here.

    Args:
        work: of one item; only what it returns is pickled.
        items: one after the other.
        workers: number of processes.
        prepare: called in each of them first.
    """
    global _work
    workers = min(workers, len(items)) if FORKS else 1
    if workers <= 1:
        yield from map(work, items)
        return
    _work = work
    try:
        with process_pool(workers, prepare, "fork") as pool:
            yield from pool.map(_do, items)
    finally:
        _work = None


_work: Callable[[Any], Any] | None = None  # of :func:`in_forks`, which its forks have too


def _do(item: Any) -> Any:
    return _work(item)


def _start(prepare: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends a process at once, without a word
    threading.Thread(target=_end_with_main, daemon=True).start()
    if prepare is not None:
        prepare()


def _end_with_main() -> None:
    """Wait for the main process, and end this one: of one that was killed, workers would wait for work forever."""
    multiprocessing.parent_process().join()
    os._exit(1)
