"""Which scan to draw next: unlabeled scans in the order in which they are worth it, each with a reason and a picture.

Usage, from the root of the repository; docs/annotation.md goes through a round:

    python scripts/next_scans.py cases.json --output_dir next
    python scripts/next_scans.py cases.json --output_dir next --results results/uad,results/ace --strategy doubt

Without results scans are chosen by what they look like. With the folders of one or more inferences they are chosen by
doubt, drafts are written to draw on, and the slices are named in which a correction pays most.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotation.ranking import STRATEGIES
from annotation.round import Wishes, next_round
from common.data import Datalist
from common.options import types as t
from running.command_line import run_command, show_progress


def main(
    datalist_file: t.File,
    output_dir: t.Folder = "next",
    count: t.Count = 10,
    strategy: Literal[("auto", *STRATEGIES)] = "auto",
    results: t.NamesOrNone = (),
    labels: t.Names | None = None,
    section: t.Text | None = None,
    sequences: t.Names | None = None,
    healthy: t.Flag = False,
    diverse: t.Flag = True,
    plane: Literal["auto", "axial", "coronal", "sagittal"] = "auto",
    slices: t.Whole = 5,
    monai_label: t.ExistingFolder | None = None,
    learning_curve: t.File | None = None,
    max_pictures: t.Whole = 20,
    seed: t.Seed = 0,
    num_workers: t.Count = 1,
) -> None:
    """Write next_scans.tsv, next_scans.html, and with results next_slices.tsv and drafts/.

    Args:
        datalist_file: JSON of scans, as make_datalist.py writes it; those with a label have been drawn.
        output_dir: folder to write to.
        count: so many scans at most, one of each person.
        strategy: typical, the most typical scan of each group that looks alike; coverage, the one farthest from all
            that are labeled or chosen; doubt, where the draft is likely most wrong; load, the largest draft; random;
            auto, doubt with results and typical without.
        results: folders of inferences of different bundles or ways, each with masks of all scans that may be drawn; the
            first one's masks are the drafts.
        labels: names of those to draw; all that the results have in common by default.
        section: of the datalist; training by default, never test.
        sequences: that scans are compared by; all of the datalist by default.
        healthy: choose from people who are said to be healthy too, as for tissues.
        diverse: doubt counts less where a scan is like one that is labeled or chosen.
        plane: that is drawn in; auto, along thick slices, else axial.
        slices: to name of each scan, at most.
        monai_label: the studies folder of MONAI Label, which holds the scans; drafts go to labels/original in it.
        learning_curve: learning_curve.json of learning_curve.py, for a section of the page.
        max_pictures: scans with pictures, the first ones.
        seed: of random and of the groups of typical.
        num_workers: processes that look at scans.
    """
    show_progress("annotation")
    wishes = Wishes(strategy, count, labels, diverse, plane, slices, seed, max_pictures, num_workers)
    pool = (section, sequences, healthy)
    print(next_round(Datalist(datalist_file), output_dir, wishes, pool, results, monai_label, learning_curve))


if __name__ == "__main__":
    run_command(main)
