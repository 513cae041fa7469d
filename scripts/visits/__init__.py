"""What has changed between the visits of a person."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from common.files import Alone
from common.options import types as t

from . import retest as retests
from .comparing import Comparison, Settings, compare, pairs_of
from .page import write_page
from .results import facts_of, refuse_others, write_changes, write_tables
from .retest import SHIPPED, Retest, read_retest
from .scans import Choice, people, visits_of_files

__all__ = ["Choice", "Settings", "compare_visits", "people", "retest_of", "visits_of_files"]

logger = logging.getLogger(__name__)


def compare_visits(
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

    Masks of changes, ``<subject>/<earlier>_<later>/<scan>_change.nii.gz``, lie on the grid of each visit's own file.
    Their values are those of :data:`visits.lesions.CHANGES`, and a JSON beside each says where it is from.

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

    Raises:
        InputError: if a file cannot be used, a mask there is of another origin, or another process writes there.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    choice = Choice(results, evidence, threshold, lesion_value, reference)
    if scans:
        found = visits_of_files(scans, masks, maps, brain_masks, choice)
    else:
        found = people(dataset_dir, datalist_file, section, sequence, choice)
    retest = retest_of(retest_file) if intervals and not measure_retest else None
    settings = Settings(pairs, align, min_change_mm3, reference)
    output_dir = Path(output_dir)
    work = [(pair, facts_of(pair, settings, retest)) for pair in pairs_of(found, pairs)]
    with Alone(output_dir):
        if not overwrite:
            refuse_others(output_dir, work)
        compared = []
        for pair, facts in tqdm(work, desc="comparing visits", unit=" pair", disable=None):
            compared.append(compare(pair, settings, retest))
            write_changes(output_dir, compared[-1], facts, retest)
        write_tables(output_dir, compared, retest)
        page = write_page(output_dir, compared, retest, max_pictures)
        if measure_retest is not None:
            write_retest(compared, measure_retest, min_change_mm3)
    doubtful = [one.name for one in compared if one.warnings]
    if doubtful:
        logger.warning(
            "%d of %d pairs are doubtful, as %s: look at them in %s", len(doubtful), len(compared), doubtful[0], page
        )
    logger.info("%s: %d pairs of visits", page, len(compared))


def retest_of(file: str | None) -> Retest:
    """The intervals of a file, or with None those that the room has."""
    return read_retest(SHIPPED if file is None else file)


def write_retest(found: Sequence[Comparison], path: str | Path, min_change_mm3: float) -> Retest:
    """Keep how far volumes moved in pairs without change, and say what the pairs were."""
    spacings = {" x ".join(f"{edge:g}" for edge in one.grid.spacing.round(2)) for one in found}
    makers = sorted({visit.source for one in found for visit in one.visits})
    heads = len({one.visits[0].subject for one in found})
    kinds = "maps" if all(visit.is_map for one in found for visit in one.visits) else "masks"
    source = (
        f"{len(found)} pairs of scans of {heads} heads without change, {', '.join(sorted(spacings))} mm, {kinds} of "
        f"{', '.join(makers)}"
    )
    both = [
        (lesion.before_ml, lesion.after_ml)
        for one in found
        for lesion in one.lesions
        if lesion.before_ml and lesion.after_ml
    ]
    false = [one.count("new") + one.count("gone") for one in found]
    measured = retests.measure_retest(
        [one.volumes_ml for one in found], both, false, source, least_ml=min_change_mm3 / 1000
    )
    measured.save(path)
    logger.info("wrote %s: half an interval is %.1f %% of the load", path, 100 * measured.share)
    return measured
