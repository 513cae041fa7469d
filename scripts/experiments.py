"""Small-scale check of methods' claims: ``python scripts/experiments.py uad_autoencoder``.

Every arm is trained and applied through the bundle's own configs, on phantoms. Thresholds and checkpoints are chosen on
validation subjects; test subjects are only scored. An arm that is done is not run again. Networks are this small that
one core per training is quicker than two for one: arms run side by side.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

import fire
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from study.tables import summarize, to_markdown

from common.errors import InputError, install_error_hook

logger = logging.getLogger("experiments")

BUNDLES = ("uad_autoencoder", "ace_multitask", "sae_segmentation", "deepatlas_joint", "diffusion_recon_unet")
# for the trainings, read when their processes start: one thread, and memory kept from step to step, not given back
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}


def main(
    bundle: str = "all",
    output_dir: str = "experiments",
    seeds: tuple[int, ...] = (3, 4, 5),
    num_workers: int | None = None,
) -> None:
    """Run the experiment of a bundle and write ``results.json`` and ``results.md``.

    Args:
        bundle: whose claims, or all.
        output_dir: everything goes to ``output_dir/<bundle>``.
        seeds: each makes its own subjects and its own trainings; 0 to 2 were seen while the experiments were designed.
        num_workers: trainings at a time, on one core each; as many as cores by default.
    """
    install_error_hook()
    _start_logging()
    if bundle not in (*BUNDLES, "all"):
        raise InputError(f"bundle is {bundle!r}, expected {', '.join(BUNDLES)} or all")
    seeds = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    os.environ.update(ENVIRONMENT)
    # spawn: a forked process may inherit a thread pool that no longer runs
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers or os.cpu_count(), mp_context=context, initializer=_start_worker) as pool:
        for name in BUNDLES if bundle == "all" else (bundle,):
            study = import_module(f"study.{name}")
            folder = Path(output_dir).resolve() / name
            results = {}
            for seed in seeds:
                start = time.monotonic()
                results[seed] = study.Study(folder / f"seed{seed}", seed).run(pool)
                logger.info("%s, seed %d: %.0f s", name, seed, time.monotonic() - start)
            summary = summarize(results, study.CLAIMS)
            text = to_markdown(summary, study.ARMS, study.SCORES)
            (folder / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
            (folder / "results.md").write_text(text)
            logger.info("\n%s", text)


def _start_logging() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)


def _start_worker() -> None:
    install_error_hook()
    _start_logging()
    torch.set_num_threads(1)


if __name__ == "__main__":
    fire.Fire(main)
