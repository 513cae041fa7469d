"""Say what has changed between two or more visits of a person: lesions that are new, gone, grown, shrunk.

Usage, from the root of the repository, after an inference of both visits:

    python scripts/compare_visits.py changes --datalist_file cases.json --results results
    python scripts/compare_visits.py changes --scans v1_FLAIR.nii.gz,v2_FLAIR.nii.gz --masks v1_les.nii.gz,v2_les.nii.gz

The folder ``changes`` gets ``visits.html`` with a picture of each change, ``visits.tsv``, ``changes.tsv``, and a mask
of changes on the grid of each visit's own file. docs/visits.md says how to read them.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.options import types as t
from running.command_line import run_command
from visits import Choice, Settings, compare_visits, people, retest_of, visits_of_files


def main(
    output_dir: t.Folder,
    datalist_file: t.File | None = None,
    dataset_dir: t.ExistingFolder | None = None,
    section: t.Text | None = None,
    sequence: t.Text = "FLAIR",
    results: t.ExistingFolder | None = None,
    evidence: Literal["auto", "maps", "masks"] = "auto",
    threshold: t.ShareAboveZero | None = None,
    lesion_value: t.Count | None = None,
    scans: t.FilesOrNone = (),
    masks: t.FilesOrNone = (),
    maps: t.FilesOrNone = (),
    brain_masks: t.FilesOrNone = (),
    pairs: Literal["consecutive", "all"] = "consecutive",
    align: t.Flag = True,
    min_change_mm3: t.CubicMillimeters = 10.0,
    intervals: t.Flag = True,
    retest_file: t.File | None = None,
    measure_retest: t.NewFile | None = None,
    reference: t.Text | None = None,
    max_pictures: t.Whole = 12,
    overwrite: t.Flag = False,
) -> None:
    """Compare the visits of people.

    Args:
        output_dir: folder for masks of changes, tables and page.
        datalist_file: JSON of cases that say "subject" and "visit".
        dataset_dir: folder or BIDS tree of scans in its place, as p1_study1_FLAIR and p1_study2_FLAIR.
        section: of the datalist; all by default.
        sequence: the image whose gray values are compared, of a datalist or a folder.
        results: folder of an inference of these scans; without it the drawn "label" of each is taken.
        evidence: of the results; auto takes maps where all visits of a person have one.
        threshold: of the maps; that of the inference by default.
        lesion_value: of lesions in masks with several labels; by default what the inference says.
        scans: images of one person instead of a datalist, the earliest first.
        masks: lesions of each of the scans.
        maps: probabilities of lesion of each of the scans.
        brain_masks: of each of the scans, where they are not 0 outside of the brain.
        pairs: consecutive visits, or all pairs of a person.
        align: false trusts the headers, of scans that are registered already.
        min_change_mm3: smaller changes are none.
        intervals: false gives volumes without an interval.
        retest_file: JSON of measure_retest that the intervals are from; by default that of the repository.
        measure_retest: JSON to write; the scans are then pairs without change.
        reference: key of a drawn mask of changes in the datalist to score against; label compares the drawn masks.
        max_pictures: of changes per pair, the largest first.
        overwrite: replace masks of changes that were made in another way.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    choice = Choice(results, evidence, threshold, lesion_value, reference)
    found = visits_of_files(scans, masks, maps, brain_masks, choice) if scans else people(
        dataset_dir, datalist_file, section, sequence, choice
    )  # fmt: skip
    retest = retest_of(retest_file) if intervals and not measure_retest else None
    settings = Settings(pairs, align, min_change_mm3, reference)
    compare_visits(found, output_dir, settings, retest, measure_retest, overwrite, max_pictures)


if __name__ == "__main__":
    run_command(main)
