"""A cohort by one process, and by several that share the scans."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from common.options import types as t
from running.command_line import Bundle

from .measuring import ROOT, sequences_of


def cohort(bundle: Bundle, subjects: t.Count = 8, processes: t.Count = 2, spacing: t.Positive = 1.0) -> None:
    """Seconds for a cohort of phantoms, from the command to its end: one process, then several that share the scans.

    Args:
        bundle: name of the bundle; its shipped weights are used.
        subjects: of the cohort.
        processes: of ``torchrun``; the cores of the machine are divided among them.
        spacing: of the scans, mm.
    """
    from phantom.cohort import make_cohort

    cores = len(os.sched_getaffinity(0))
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        datalist = make_cohort(
            f"{folder}/cohort", {"ms": (subjects, 0, 0)}, spacing=spacing, sequences=sequences_of(bundle)
        )
        for number in (1, processes):
            layers = ["inference.json", *(["multi_gpu_inference.json"] if number > 1 else [])]
            configs = str([f"bundles/{bundle}/configs/{name}" for name in layers])
            launcher = (
                ["torch.distributed.run", "--standalone", f"--nproc_per_node={number}", "-m"] if number > 1 else []
            )
            command = [sys.executable, "-m", *launcher, "monai.bundle", "run", "--config_file", configs]
            command += ["--datalist_file", str(datalist), "--output_dir", f"{folder}/{number}"]
            threads = os.environ | {"OMP_NUM_THREADS": str(max(cores // number, 1))}
            start = time.perf_counter()
            subprocess.run(command, check=True, cwd=ROOT, env=threads, stdout=subprocess.DEVNULL)
            seconds[number] = time.perf_counter() - start
            each = f"{number} process(es) of {threads['OMP_NUM_THREADS']} thread(s)"
            print(f"{each}: {seconds[number]:.1f} s for {subjects} scans")
    print(f"{seconds[1] / seconds[processes]:.2f} times as fast")
