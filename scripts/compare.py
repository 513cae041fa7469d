"""Methods side by side on your own cases: the same folds, the same scores, one page.

Usage, from the root of the repository:

    python scripts/compare.py cases.json --target lesion --output_dir comparison
    python scripts/compare.py cases.json --weights train --methods unet,uad_pseudo,flair_threshold --seeds 0,1,2
    python scripts/compare.py cases.json --target lesion,tissue --output_dir comparison

The first applies the bundles as they are shipped. The second trains them on the folds of the datalist, or on its
sections training, validation and test. Started again, it goes on where it was stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from catalog import BUNDLES
from common.data import Datalist
from common.evaluation import Volumes
from common.options import types as t
from comparison import Comparison, compare
from comparison.command import command_of, read_options
from running.command_line import run_command, show_progress

TARGETS = t.list_of(Literal["lesion", "tissue"], "lesion, tissue or both of them", min_length=1)


def main(
    datalist_file: t.File,
    output_dir: t.Folder = "comparison",
    target: TARGETS = ("lesion",),
    methods: t.Names | None = None,
    weights: Literal["shipped", "train"] = "shipped",
    seeds: t.Seeds = (0,),
    options: t.File | None = None,
    device: t.Device | None = None,
    max_pictures: t.Whole = 20,
    max_views: t.Whole = 5,
) -> None:
    """Compare methods and write OUTPUT_DIR/report.html, and tables beside it.

    Args:
        datalist_file: JSON of scripts/make_datalist.py, with labels.
        output_dir: of the page, the tables, and runs/, which holds trainings and masks.
        target: lesion, tissue, or both.
        methods: some of those that the descriptions of the bundles list; by default all that fit.
        weights: shipped, or train.
        seeds: of the trainings.
        options: JSON of {"<bundle>/<config>": {entry: value}}, entries of configs to replace.
        device: cpu, cuda:0, ...; by default what the bundles say.
        max_pictures: cases with pictures, those with most doubt.
        max_views: cases of these with a page to scroll through, 1 to 3 MB each.
    """
    show_progress("comparison")
    replaced = read_options(options)
    shared = (BUNDLES, methods, weights, seeds, replaced, device, Volumes())
    datalist = Datalist(datalist_file)
    comparisons = [Comparison(datalist, output_dir, kind, *shared) for kind in target]
    compare(comparisons, "Comparison of methods", "", command_of(sys.argv[1:]), max_pictures, max_views)


if __name__ == "__main__":
    run_command(main)
