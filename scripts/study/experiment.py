"""Experiments of bundles: arms and seeds side by side, each in a process of one core; what is done is read."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from catalog import bundle_names
from common.files import Alone
from running.command_line import show_progress
from running.machine import machine

from .evidence import update, version_of
from .verdicts import summarize

logger = logging.getLogger(__name__)

# those with a study
BUNDLES = tuple(name for name in bundle_names() if Path(__file__).with_name(f"{name}.py").is_file())
# for the trainings, read when their processes start: one thread, and memory kept from step to step, not given back
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}


def run_all(
    bundles: Sequence[str], budget: str, seeds: Sequence[int], workers: int, output_dir: Path, evidence_dir: Path
) -> None:
    """Run the experiments of bundles one after the other and write their evidence, as ``experiments.py`` says."""
    with start_pool(workers) as pool:
        for name in bundles:
            content = run(name, budget, seeds, output_dir, pool)
            content["machine"] = f"{machine()}; trainings at a time: {workers}"
            page = update(evidence_dir, name, "experiment", content)
            logger.info("%s: %.0f minutes, %s", name, content["minutes"], page)


def run(bundle: str, budget: str, seeds: Sequence[int], output_dir: Path, pool: Executor) -> dict[str, Any]:
    """The experiment of a bundle, for the evidence; what is done already is read.

    Raises:
        InputError: if ``output_dir`` has results of other settings, or another process works in it.
    """
    study = import_module(f"study.{bundle}")
    settings = study.BUDGETS[budget]
    studies = {seed: study.Study(output_dir / bundle / budget / f"seed{seed}", seed, settings) for seed in seeds}
    with ExitStack() as alone:
        for one in studies.values():
            alone.enter_context(Alone(one.folder))
            one.keep_settings(version_of(bundle))
        results = _results(studies, pool)
    return {
        "command": f"python scripts/experiments.py {bundle} --budget {budget} --seeds {','.join(map(str, studies))}",
        "budget": budget,
        "version": version_of(bundle),
        "minutes": round(minutes(one.spans() for one in studies.values()), 1),
        "settings": settings,
        "paper_note": study.PAPER_NOTE,
        **summarize(results, study),
    }


def _results(studies: Mapping[int, Any], pool: Executor) -> dict[int, dict[str, Any]]:
    """Seed -> results of its arms."""
    # seeds beside each other: one that waits for a teacher leaves its core to another
    with ThreadPoolExecutor(len(studies)) as threads:
        running = {seed: threads.submit(one.run, pool) for seed, one in studies.items()}
        done, waiting = wait(running.values(), return_when=FIRST_EXCEPTION)
        if waiting:  # one has failed: what has not begun need not begin
            pool.shutdown(wait=False, cancel_futures=True)
        for future in done:
            future.result()
    return {seed: future.result() for seed, future in running.items()}


def minutes(spans: Iterable[Iterable[tuple[float, float]]]) -> float:
    """How long work went on, in minutes: spans of it in seconds, by seed; those at the same time count once."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted(span for of_seed in spans for span in of_seed):
        total += max(ended - max(began, until), 0.0)
        until = max(until, ended)
    return total / 60


def start_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that train, on one core each."""
    os.environ.update(ENVIRONMENT)
    # spawn: a forked process may inherit a thread pool that no longer runs
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    show_progress("study")
    torch.set_num_threads(1)
