"""Make a phantom cohort: ``python scripts/make_phantom.py --output_dir phantom --ms 4,1,1 --healthy 4,1,1``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom.cohort import make_phantom as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
