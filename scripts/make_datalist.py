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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import check_cases, list_cases, split_by_subject, subject_of, write_datalist
from common.errors import InputError
from common.options import types as t
from datalists.survey import assign_folds, describe, duplicates, items_of_pattern, items_of_table, survey
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
    sequences, optional = ensure_tuple(sequences), ensure_tuple(optional_sequences)
    if sum(source is not None for source in (dataset_dir, pattern, table, datalist_file)) != 1:
        raise InputError("expected exactly one of dataset_dir, pattern, table and datalist_file")
    if pattern is None and (label or brain_mask):
        raise InputError("label or brain_mask is given without pattern, expected them with a pattern only")
    if dataset_dir is not None or datalist_file is not None:
        cases = list_cases(
            dataset_dir, datalist_file, sequences=sequences, optional_sequences=optional, one_grid=one_grid
        )
    else:
        source = pattern or table
        items = (
            items_of_table(table, sequences)
            if pattern is None
            else items_of_pattern(pattern, sequences, label, brain_mask, optional)
        )
        cases = check_cases(items, source, sequences, optional_sequences=optional, one_grid=one_grid)
    more = {key: value for key, value in (("dataset", dataset_name), ("healthy", healthy)) if value is not None}
    cases = [{key: value for key, value in case.items() if key != "name"} | more for case in cases]

    facts = survey(cases, num_workers)
    refuse_leaks(cases, duplicates(cases, facts))
    sections = split(cases, validation, test, folds, seed)
    write_datalist(output_file, sections, {"sequences": list(sequences)})
    logger.info("%s", describe(cases, sequences, facts))
    logger.info("wrote %s: %s", output_file, ", ".join(f"{len(part)} {name}" for name, part in sections.items()))


def refuse_leaks(cases: Sequence[dict[str, Any]], pairs: Sequence[tuple[str, str]]) -> None:
    """Warn of files with the same voxels.

    Raises:
        InputError: if two of them are of two subjects, who might end up on both sides of a split.
    """
    subjects = {path: subject_of(case) for case in cases for path in ensure_tuple(case["image"]) if path is not None}
    for first, second in pairs:
        if subjects[first] != subjects[second]:
            raise InputError(
                f"{first} of subject {subjects[first]} and {second} of subject {subjects[second]} hold the same "
                "voxels, expected one of them, or one subject"
            )
        logger.warning("%s and %s hold the same voxels", first, second)


def split(
    cases: Sequence[dict[str, Any]], validation: float, test: float, folds: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Sections of the datalist; the subjects of the test do not depend on folds.

    Raises:
        InputError: if shares and folds make no sense.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise InputError(f"validation is {validation} and test {test}, expected shares of subjects, below 1 in all")
    if folds and validation:
        raise InputError(f"folds is {folds} and validation {validation}, expected one of them")
    shares = {"training": 1 - validation - test, "validation": validation, "test": test}
    shares = {name: share for name, share in shares.items() if share > 0}
    sections = split_by_subject(cases, shares, seed) if len(shares) > 1 else {"training": list(cases)}
    if folds:
        sections["training"] = assign_folds(sections["training"], folds, seed)
    return sections


if __name__ == "__main__":
    run_command(main)
