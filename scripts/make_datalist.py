"""Describe the data once: a folder, a pattern of paths or a table becomes a datalist that every bundle takes.

Usage, from the root of the repository:

    python scripts/make_datalist.py cases.json --dataset_dir bids --sequences T1w,FLAIR --validation 0.2 --test 0.2
    python scripts/make_datalist.py cases.json --pattern 'scans/{subject}/{sequence}.nii.gz' \
        --label 'scans/{subject}/lesion.nii.gz' --sequences FLAIR --folds 5
    python scripts/make_datalist.py cases.json --table cases.tsv --sequences T1w --validation 0.2
    python scripts/make_datalist.py cases.json --datalist_file prepared/prepared.json --sequences FLAIR --validation 0.2

Every file is read: grids, spacings, label values and files with the same voxels are reported.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import write_datalist
from common.options import types as t
from datalists.sources import Source, read_cases
from datalists.splits import split
from datalists.survey import describe, duplicates, refuse_duplicates, survey
from running.command_line import run_command

logger = logging.getLogger("make_datalist")


def main(
    output_file: t.NewFile,
    dataset_dir: t.ExistingFolder | None = None,
    pattern: t.Text | None = None,
    table: t.File | None = None,
    datalist_file: t.File | None = None,
    sequences: t.Names = ("FLAIR",),
    optional_sequences: t.NamesOrNone = (),
    label: t.Text | None = None,
    brain_mask: t.Text | None = None,
    dataset_name: t.Text | None = None,
    healthy: t.Flag | None = None,
    one_grid: t.Flag = True,
    validation: t.ShareBelowOne = 0.0,
    test: t.ShareBelowOne = 0.0,
    folds: t.Whole = 0,
    seed: t.Seed = 0,
    num_workers: t.Count | None = None,
) -> None:
    """Write a datalist and report what is in it.

    Args:
        output_file: JSON to write; its paths are relative to it.
        dataset_dir: flat or BIDS-like folder, see common.data.list_cases.
        pattern: path of an image with {subject}, {sequence} and {session}, as in the examples.
        table: CSV or TSV with a heading: a column per sequence, label, brain_mask, subject, healthy, and any others.
        datalist_file: JSON with cases, as prepare_data.py writes it; its sections are joined, and split anew.
        sequences: what the images of a case are, in the order of the channels.
        optional_sequences: those that a case may lack, in a pattern or a table.
        label: with a pattern, the path of the label.
        brain_mask: with a pattern, the path of the brain mask.
        dataset_name: name that every case gets, for bundles that learn from several data sets.
        healthy: what every case gets: True for people without pathology.
        one_grid: False lets the files of a case lie on different grids, as raw scans do before prepare_data.py.
        validation: share of the subjects for validation.
        test: share of the subjects for the test.
        folds: number of folds for the subjects that are not for the test, instead of a validation set.
        seed: of the split.
        num_workers: processes that read files; all cores by default.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source = Source(dataset_dir, pattern, table, datalist_file, label, brain_mask)
    cases = read_cases(source, sequences, optional_sequences, one_grid)
    more = {key: value for key, value in (("dataset", dataset_name), ("healthy", healthy)) if value is not None}
    cases = [{key: value for key, value in case.items() if key != "name"} | more for case in cases]
    facts = survey(cases, num_workers)
    refuse_duplicates(cases, duplicates(cases, facts))
    sections = split(cases, validation, test, folds, seed)
    write_datalist(output_file, sections, {"sequences": list(sequences)})
    logger.info("%s", describe(cases, sequences, facts))
    logger.info("wrote %s: %s", output_file, ", ".join(f"{len(part)} {name}" for name, part in sections.items()))


if __name__ == "__main__":
    run_command(main)
