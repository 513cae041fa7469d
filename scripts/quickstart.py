"""See every bundle at work: ``python scripts/quickstart.py``.

Makes a few synthetic brains, says what fits them as ``scripts/advise.py`` does, compares all methods on them with the
weights that the bundles ship as ``scripts/compare.py`` does, and keeps two pictures per bundle: that of the README, and
that of the model card, which shows the case that went worst.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from catalog import BUNDLES
from common.options import types as t
from comparison.quickstart import run
from planning.advice import advise
from running.command_line import run_command, show_progress


def main(
    output_dir: t.Folder = "quickstart",
    ms: t.Whole = 3,
    healthy: t.Whole = 1,
    spacing: t.Positive = 1.0,
    device: t.Device | None = None,
    num_workers: t.SmallCount | None = None,
) -> None:
    """Compare all methods on a small phantom cohort and write OUTPUT_DIR/report.html.

    Args:
        output_dir: new folder, or one of an earlier run, whose results are replaced.
        ms: subjects with white-matter lesions.
        healthy: subjects without.
        spacing: voxel size of the scans, mm.
        device: cpu, cuda:0, ...; by default what the bundles say.
        num_workers: processes that make the subjects, and then run the bundles; all cores by default.
    """
    show_progress("comparison")
    groups = {"ms": (0, 0, ms), "healthy": (0, 0, healthy)}
    run(Path(output_dir), BUNDLES, groups, spacing, {}, device, num_workers, announce)


def announce(datalist: Path) -> None:
    """Say what fits the cohort."""
    for item in advise(datalist, measure=False):
        if not item.missing:
            print(f"  {item.bundle}, {item.way}: {item.verdict}; gives {item.gives}")


if __name__ == "__main__":
    run_command(main)
