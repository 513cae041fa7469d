"""Who should have been drawn: simulated annotation on phantoms of three scanners, random against the rest.

Usage, from the root of the repository; about ten minutes of one core:

    python scripts/simulate_annotation.py --seeds 0,1,2,3,4
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from annotation.simulated import simulate, write_evidence
from common.options import types as t
from running.command_line import run_command, show_progress


def main(
    seeds: t.Seeds = (0, 1, 2, 3, 4),
    output_dir: t.Folder = "experiments/annotation",
    evidence_dir: t.Folder = str(ROOT / "docs" / "evidence"),
    num_workers: t.SmallCount | None = None,
) -> None:
    """Choose scans by every strategy, learn from them, score, and write annotation.json and annotation.md.

    Args:
        seeds: each draws its own pool of people; 100 was seen while this was designed.
        output_dir: the phantoms, which are not made again.
        evidence_dir: folder of the JSON and the page.
        num_workers: processes that make phantoms; all cores by default.
    """
    show_progress("annotation")
    found = simulate(Path(output_dir), seeds, num_workers)
    print(f"wrote {write_evidence(found, evidence_dir, seeds)}")


if __name__ == "__main__":
    run_command(main)
