"""Make visits of synthetic people: lesions that change in a known way, or the same head scanned again.

Usage, from the root of the repository:

    python scripts/make_visits.py --output_dir phantom/visits --subjects 4
    python scripts/make_visits.py --output_dir phantom/retest --subjects 4 --scans 3 --seed 1 --prefix r

The first has two visits a person, with new, gone, grown and shrunk lesions. The second has three scans of each head
between which nothing changes but place, noise, shading, blur and gain: what ``compare_visits.py --measure_retest``
takes.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.options import types as t
from phantom import SCANNERS, SEQUENCES
from phantom.visits import write_visits
from running.command_line import run_command


def main(
    output_dir: t.Folder,
    subjects: t.Count = 4,
    scans: t.Count | None = None,
    scanner: Literal[tuple(SCANNERS)] = "A",
    spacing: t.Spacing = (1.0, 1.0, 1.0),
    sequence: Literal[SEQUENCES] = "FLAIR",
    seed: t.Seed = 0,
    prefix: t.TextOrEmpty = "",
    reader: t.Flag = False,
) -> None:
    """Make visits of synthetic people with lesions of multiple sclerosis.

    Args:
        output_dir: new folder for a BIDS-like tree with sessions, and its datalist.json.
        subjects: number of people.
        scans: of each head, between which nothing changes; by default two visits between which lesions do.
        scanner: A, B (another site), mixed (every person another contrast) or varied, as for make_phantom.py.
        spacing: voxel size in mm, one number or three.
        sequence: FLAIR, T1w or T2w.
        seed: makes the same people again, bit by bit.
        prefix: before the numbers of the people, to join datalists.
        reader: also write what a simulated reader says of each scan, in the folder reader, as an inference would.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    path = write_visits(output_dir, subjects, scans, tuple(spacing), scanner, sequence, seed, prefix, reader)
    logging.getLogger(__name__).info("wrote %s", path)


if __name__ == "__main__":
    run_command(main)
