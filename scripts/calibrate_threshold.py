"""Find a bundle's threshold on labeled or on healthy scans: it is kept in the bundle with where it came from.

Usage, from the root of the repository:

    python scripts/calibrate_threshold.py NAME --datalist_file cases.json --section validation
    python scripts/calibrate_threshold.py NAME --datalist_file healthy.json --section validation \
        --criterion false_positive_rate --rate 0.01 --write
    python scripts/calibrate_threshold.py NAME --datalist_file cases.json --section validation --dataset_name lesion

The bundle writes its maps as for a user; the threshold is found on these files, at voxels of the brain, before small
components are removed. Scans that a result is to be reported on must not be among the cases.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labels.calibration import calibrate_threshold as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
