"""Small-scale check of methods' claims: ``python scripts/experiments.py NAME``.

Every arm is trained and applied through the bundle's own configs, on phantoms. Thresholds and checkpoints are chosen on
validation subjects; test subjects are only scored. Where a score is said to be of any threshold, it is of the one that
suits them best. An arm that is done is not run again. Networks are this small that one core per training is quicker
than two for one: arms and seeds run side by side.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from catalog import choose
from common.options import types as t
from running.command_line import run_command, show_progress
from study.experiment import BUNDLES, run_all


def main(
    bundle: t.Text = "all",
    budget: Literal["cpu", "gpu"] = "cpu",
    seeds: t.Seeds = (3, 4, 5),
    num_workers: t.SmallCount | None = None,
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
    show_progress("study")
    names = choose(bundle, BUNDLES)
    cores = os.cpu_count() or 1
    workers = num_workers or (min(cores, 4) if torch.cuda.is_available() else cores)
    run_all(names, budget, seeds, workers, Path(output_dir).resolve(), Path(evidence_dir))


if __name__ == "__main__":
    run_command(main)
