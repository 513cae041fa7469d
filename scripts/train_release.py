"""Make the shipped weights: ``python scripts/train_release.py NAME``.

Phantoms, the bundle's own training configs, thresholds from validation phantoms; with ``--extra_data`` also real scans
and the anatomy of real people. What is done is not done again, so a broken-off run goes on when the command is given
again. On a GPU, give it more to do: ``--minutes 25 --effort 4 --num_workers 8``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from release.training import train_release as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
