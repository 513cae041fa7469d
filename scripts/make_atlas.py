"""An atlas of label maps: ``python scripts/make_atlas.py --label_files a.nii.gz --output_file atlas.nii.gz``.

Label maps of one person or of several become the probability of every class at every voxel, and a table of which class
stands beside which: what a bundle learns from instead of labeled scans. It takes them by
``--atlas_files atlas.nii.gz --classes N --neighbors_file atlas.json``.

Nobody whom ``--keep_out cases.json`` lists for validation or test may be in the atlas: it would know the answer.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labels.atlas import make_atlas as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
