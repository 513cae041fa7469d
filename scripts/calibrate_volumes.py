"""Say how far volumes can be trusted: intervals from scans with references, for inference to write.

Usage, from the root of the repository, after inference with evaluate.json on scans that nothing was chosen on:

    python scripts/calibrate_volumes.py RESULTS --output_file intervals.json
    python scripts/calibrate_volumes.py RESULTS --output_file intervals.json --datalist_file cases.json \\
        --section validation --check_dir OTHER_RESULTS --check_section test

Inference takes the file as ``--intervals_file intervals.json`` and writes the ends of the intervals into volumes.tsv
and its page. They hold for the same weights, threshold and options only; others are refused.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labels.volumes import calibrate_volumes as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
