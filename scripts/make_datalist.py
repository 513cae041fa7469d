"""Describe the data once: a folder, a pattern of paths or a table becomes a datalist that every bundle takes.

Usage, from the root of the repository:

    python scripts/make_datalist.py cases.json --dataset_dir bids --sequences T1w,FLAIR --validation 0.2 --test 0.2
    python scripts/make_datalist.py cases.json --pattern 'scans/{subject}/{sequence}.nii.gz' \
        --label 'scans/{subject}/lesion.nii.gz' --sequences FLAIR --folds 5
    python scripts/make_datalist.py cases.json --table cases.tsv --sequences T1w --validation 0.2
    python scripts/make_datalist.py cases.json --datalist_file prepared/prepared.json --sequences FLAIR --validation 0.2

Every file is read: grids, spacings, label values and files with the same voxels are reported.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datalists.sources import make_datalist as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
