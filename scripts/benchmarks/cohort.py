"""A cohort by one process, and by several workers that share its weights."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from common.options import types as t
from running.command_line import Bundle

from .measuring import ROOT, sequences_of


def cohort(bundle: Bundle, subjects: t.Count = 8, workers: t.SmallCount = 2, spacing: t.Positive = 1.0) -> None:
    """Seconds for a cohort of phantoms, from the command to its end: one process of one thread, then several.

    Args:
        bundle: name of the bundle; its shipped weights are used.
        subjects: of the cohort.
        workers: processes of one thread each.
        spacing: of the scans, mm.
    """
    from phantom.cohort import make_cohort

    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        datalist = make_cohort(
            f"{folder}/cohort", {"ms": (subjects, 0, 0)}, spacing=spacing, sequences=sequences_of(bundle)
        )
        for number in (1, workers):
            command = [sys.executable, "-m", "monai.bundle", "run"]
            command += ["--config_file", f"bundles/{bundle}/configs/inference.json", "--datalist_file", str(datalist)]
            command += ["--output_dir", f"{folder}/{number}", "--workers", str(number)]
            start = time.perf_counter()
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
            seconds[number] = time.perf_counter() - start
            print(f"{number} worker(s): {seconds[number]:.1f} s for {subjects} scans")
    gain = seconds[1] / seconds[workers]
    print(f"{gain:.2f} times as fast, {gain / workers:.2f} of {workers}")
