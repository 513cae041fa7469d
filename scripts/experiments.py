"""Small-scale check of methods' claims: ``python scripts/experiments.py NAME``.

Every arm is trained and applied through the bundle's own configs, on phantoms. Thresholds and checkpoints are chosen on
validation subjects; test subjects are only scored. Where a score is said to be of any threshold, it is of the one that
suits them best. An arm that is done is not run again. Networks are this small that one core per training is quicker
than two for one: arms and seeds run side by side.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from catalog import bundle_names
from common.errors import InputError
from common.files import Alone
from common.options import types as t
from running.command_line import run_command
from study.evidence import machine, update, version_of
from study.verdicts import summarize

logger = logging.getLogger("experiments")

# those with a study
BUNDLES = tuple(name for name in bundle_names() if (ROOT / "scripts" / "study" / f"{name}.py").is_file())
# for the trainings, read when their processes start: one thread, and memory kept from step to step, not given back
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}


BUDGETS = ("cpu", "gpu")  # the studies have "tiny" besides, for a test


def main(
    bundle: t.Text = "all",
    budget: Literal["cpu", "gpu"] = "cpu",
    seeds: t.Seeds = (3, 4, 5),
    num_workers: t.Count | None = None,
    output_dir: t.Folder = "experiments",
    evidence_dir: t.Folder = str(ROOT / "docs" / "evidence"),
) -> None:
    """Run the experiment of a bundle and write ``<bundle>.json`` and ``<bundle>.md``.

    Args:
        bundle: whose claims, or all.
        budget: cpu, all bundles in an hour on two cores; or gpu, longer trainings and more arms, hours without a GPU.
        seeds: each makes its own subjects and its own trainings; 0 to 2 and 11 were seen while the experiments were
            designed.
        num_workers: trainings at a time; by default as many as cores, on a GPU no more than four.
        output_dir: subjects, weights and scores go to ``output_dir/<bundle>/<budget>/seed<seed>``.
        evidence_dir: folder of the JSON and the page.
    """
    _start_logging()
    if bundle not in (*BUNDLES, "all"):
        raise InputError(f"bundle is {bundle!r}, expected {', '.join(BUNDLES)} or all")
    if budget not in BUDGETS:
        raise InputError(f"budget is {budget!r}, expected {' or '.join(BUDGETS)}")
    seeds = seeds if isinstance(seeds, tuple | list) else (seeds,)
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) for seed in seeds):
        raise InputError(f"seeds are {seeds!r}, expected different whole numbers, such as 3,4,5")
    cores = os.cpu_count() or 1
    workers = num_workers or (min(cores, 4) if torch.cuda.is_available() else cores)
    names = BUNDLES if bundle == "all" else (bundle,)
    run_all(names, budget, seeds, workers, Path(output_dir).resolve(), Path(evidence_dir))


def run_all(
    bundles: Sequence[str], budget: str, seeds: Sequence[int], workers: int, output_dir: Path, evidence_dir: Path
) -> None:
    """Run the experiments of bundles one after the other and write their evidence; arguments as of :func:`main`."""
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


def _start_logging() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)


def _start_worker() -> None:
    _start_logging()
    torch.set_num_threads(1)


if __name__ == "__main__":
    run_command(main)
