"""Say what has changed between two or more visits of a person: lesions that are new, gone, grown, shrunk.

Usage, from the root of the repository, after an inference of both visits:

    python scripts/compare_visits.py changes --datalist_file cases.json --results results
    python scripts/compare_visits.py changes --scans v1_FLAIR.nii.gz,v2_FLAIR.nii.gz --masks v1_les.nii.gz,v2_les.nii.gz

The folder ``changes`` gets ``visits.html`` with a picture of each change, ``visits.tsv``, ``changes.tsv``, and a mask
of changes on the grid of each visit's own file. docs/visits.md says how to read them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from running.command_line import run_command
from visits import compare_visits as main

if __name__ == "__main__":
    run_command(main)
