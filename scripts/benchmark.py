"""Where the time goes: ``python scripts/benchmark.py inference``, or ``training NAME``.

``step NAME`` compares steps of a bundle with the plain way, as its ``benchmark.py`` offers them. ``cohort
NAME`` compares one process with several that share the scans. ``preparation`` says how good the brain
extraction and the registration of ``prepare_data.py`` are, on phantoms, and ``brains`` how good brain masks are
on heads of real people.

Machines are noisy: compare the parts of one run with each other, not runs of different days.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.brains import brains
from benchmarks.cohort import cohort
from benchmarks.contrast import contrast
from benchmarks.coregistration import coregistration
from benchmarks.inference import inference, make_head, parts, record_floor
from benchmarks.preparation import preparation
from benchmarks.steps import step, step_peak
from benchmarks.training import training
from running.command_line import run_command

OWN_PROCESSES = (make_head, parts, record_floor, step_peak)  # of the commands beside them
COMMANDS = {
    command.__name__: command
    for command in (inference, training, step, cohort, preparation, brains, coregistration, contrast, *OWN_PROCESSES)
}

if __name__ == "__main__":
    run_command(COMMANDS)
