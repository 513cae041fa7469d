"""Which method fits the data: what each can do with a datalist, what is missing, and what it costs on this machine.

Usage, from the root of the repository, with a datalist of ``scripts/make_datalist.py``:

    python scripts/advise.py cases.json
    python scripts/advise.py cases.json --bundles NAME,NAME --output_file advice.json
    python scripts/advise.py cases.json --measure False

Every file is read. Time and memory are measured: a few steps of each training with the first scans, the settings and
the batch of its config, a validation of one scan or two, an inference of one. Nothing is kept of them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planning.report import print_advice as main
from running.command_line import run_command

if __name__ == "__main__":
    run_command(main)
