"""Which scan to draw next: unlabeled scans in the order in which they are worth it, each with a reason and a picture.

Usage, from the root of the repository; docs/annotation.md goes through a round:

    python scripts/next_scans.py cases.json --output_dir next
    python scripts/next_scans.py cases.json --output_dir next --results results/uad,results/ace --strategy doubt

Without results scans are chosen by what they look like. With the folders of one or more inferences they are chosen by
doubt, drafts are written to draw on, and the slices are named in which a correction pays most.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotation.round import next_scans as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
