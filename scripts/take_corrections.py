"""Take what was drawn: masks are checked, compared with their drafts, and become labels of a datalist.

Usage, from the root of the repository; docs/annotation.md goes through a round:

    python scripts/take_corrections.py cases.json cases_2.json --corrections drawn --drafts next/drafts --annotator jd
    python scripts/take_corrections.py cases.json cases_2.json --monai_label studies --annotator jd

A mask that lies on another grid, has an unknown value, is of no scan, or in which nothing was drawn stops the command
before anything is written.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotation.corrections import take_corrections as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
