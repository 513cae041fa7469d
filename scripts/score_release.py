"""What the shipped weights, and the baselines beside them, score on real scans: ``python scripts/score_release.py``.

    python scripts/score_release.py NAME --real_data real.json
    python scripts/score_release.py all --real_data real.json --registration_subjects 4

Figures go to docs/evidence, one file per bundle. Started again, it goes on where it was; docs/real_scans.md says more.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from catalog import BUNDLES, choose
from common.errors import InputError
from common.files import Alone
from common.options import types as t
from running.command_line import run_command, show_progress
from study.real_scans import Scoring, write_evidence
from study.scan_sets import read_real_scans


def main(
    bundle: t.Text,
    real_data: t.File,
    output_dir: t.Folder = "real_scans",
    evidence_dir: t.Folder = "docs/evidence",
    registration_subjects: t.Count | None = None,
    device: t.Device | None = None,
) -> None:
    """Predict, score the files that were written, and write EVIDENCE_DIR/<bundle>.json.

    Args:
        bundle: name of a bundle, or all.
        real_data: JSON of sets of scans, see docs/real_scans.md.
        output_dir: masks, maps and adapted weights, to go on with.
        evidence_dir: of the figures.
        registration_subjects: register the ordered pairs of so many first subjects of a set; all by default.
        device: cpu, cuda:0, ...; by default what the bundles say.
    """
    show_progress("study", "common.engines")
    chosen = choose(bundle)
    if registration_subjects == 1:
        raise InputError("registration_subjects is 1, expected 2 or more")
    scans, folder = read_real_scans(real_data), Path(output_dir).resolve()
    scoring = Scoring(scans, folder, BUNDLES, registration_subjects, device=device)
    with Alone(output_dir):
        write_evidence(scoring, chosen, Path(evidence_dir))


if __name__ == "__main__":
    run_command(main)
