"""Methods side by side on your own cases: the same folds, the same scores, one page.

Usage, from the root of the repository:

    python scripts/compare.py cases.json --target lesion --output_dir comparison
    python scripts/compare.py cases.json --weights train --methods unet,uad_pseudo,flair_threshold --seeds 0,1,2
    python scripts/compare.py cases.json --target lesion,tissue --output_dir comparison

The first applies the bundles as they are shipped. The second trains them on the folds of the datalist, or on its
sections training, validation and test. Started again, it goes on where it was stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison.command import compare_methods as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
