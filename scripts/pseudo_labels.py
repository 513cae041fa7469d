"""Hand what one bundle predicts to the training of another: a chain of methods, with a guard against leakage.

Usage, from the root of the repository; docs/chains.md goes through every chain:

    python scripts/pseudo_labels.py chain --datalist_file scans.json --section training --results results \
        --bundle NAME --layers inference_residual.json --trained_on healthy.json \
        --dataset_name lesion --merge tissues.json,lesions.json

The folder ``chain`` gets a label for every case, beside it a JSON that says where it is from, and ``datalist.json``.
Nobody whom the datalists keep for validation or test may be among those with pseudo-labels, nor among those who taught
or calibrated the network that made them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labels.chain import pseudo_labels as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
