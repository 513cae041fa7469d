"""Raw scans become what the bundles take: one grid, no shading, brain only, each with the way to the template and back.

Usage, from the root of the repository:

    python scripts/prepare_data.py --dataset_dir raw --sequences T1w,FLAIR --output_dir prepared
    python scripts/prepare_data.py --datalist_file raw.json --sequences FLAIR --output_dir prepared --num_workers 4

Look at prepared/preparation.html, then give prepared/prepared.json to any bundle. scripts/restore_data.py brings
results back to the raw scans. Needs SimpleITK: pip install SimpleITK
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from preparation.command import prepare_data as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
