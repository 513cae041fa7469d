"""Join the results of several methods to one mask, as scripts/fit_fusion.py has learned.

Usage, from the root of the repository:

    python scripts/fuse_results.py --datalist_file cases.json --section test --results results/uad,results/ace \\
        --output_dir results/fused

It takes the way that was the best on the validation scans, and stops where one method alone was.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import Datalist
from common.errors import InputError
from common.options import types as t
from common.report import Report
from labels.fusion import METHODS, RESULTS, Fusion, apply, cases_of
from running.command_line import run_command


def main(
    datalist_file: t.File,
    results: RESULTS,
    output_dir: t.Folder,
    section: t.Text | None = None,
    fusion_file: t.File = "fusion.json",
    way: Literal["best", "weights", "mean", "staple"] = "best",
) -> None:
    """Write one mask, map and map of doubt for each scan; with labels a report, too.

    Args:
        datalist_file: JSON of the cases.
        results: the folders of the same methods, in the same order.
        output_dir: new folder.
        section: part of the datalist.
        fusion_file: what fit_fusion.py has written.
        way: how to join; best is that of the validation scans.
    """
    fusion = Fusion.read(fusion_file)
    cases = cases_of(Datalist(datalist_file), section, results, labels=False)
    chosen = fusion.best if way == "best" else way
    if chosen not in METHODS:
        raise InputError(
            f"{chosen} alone is the best on {fusion.data}, expected --way to join the methods all the same"
        )
    apply(fusion, cases, chosen, output_dir)
    print(f"{output_dir}: {len(cases)} scans by {chosen}")
    if all(case.label for case in cases):
        items = [{"name": case.name, "image": str(case.image), "label": str(case.label)} for case in cases]
        Report(items, output_dir, title=f"{chosen} of several methods", threshold=fusion.thresholds[chosen]).write()


if __name__ == "__main__":
    run_command(main)
