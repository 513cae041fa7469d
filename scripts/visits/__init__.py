"""What has changed between the visits of a person."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from common.files import Alone

from .comparing import Comparison, Settings, compare, pairs_of
from .page import write_page
from .results import facts_of, refuse_others, write_changes, write_tables
from .retest import SHIPPED, Retest, measure_retest, read_retest
from .scans import Choice, Visit, people, visits_of_files

__all__ = ["Choice", "Settings", "compare_visits", "people", "retest_of", "visits_of_files"]

logger = logging.getLogger(__name__)


def retest_of(file: str | None) -> Retest:
    """The intervals of a file, or with None those that the room has."""
    return read_retest(SHIPPED if file is None else file)


def compare_visits(
    visits: Mapping[str, Sequence[Visit]],
    output_dir: str | Path,
    settings: Settings,
    retest: Retest | None,
    measure: str | Path | None = None,
    overwrite: bool = False,
    max_pictures: int = 12,
) -> list[Comparison]:
    """Compare the visits of people and write what has changed.

    ``<subject>/<earlier>_<later>/<scan>_change.nii.gz`` on the grid of each visit's own file, its values those of
    :data:`visits.lesions.CHANGES`, each with a JSON of where it comes from; ``changes.tsv``, a line per lesion;
    ``visits.tsv``, a line per pair; ``visits.html``.

    Args:
        visits: of :func:`people` or :func:`visits_of_files`.
        output_dir: folder.
        settings: what is done.
        retest: how far volumes move without change; None for no intervals.
        measure: the visits are scans without change: write what :func:`measure_retest` says of them to this JSON.
        overwrite: replace masks that were made in another way.
        max_pictures: of changes per pair.

    Raises:
        InputError: if a file cannot be used, a mask there is of another origin, or another process writes there.
    """
    output_dir = Path(output_dir)
    work = [(pair, facts_of(pair, settings, retest)) for pair in pairs_of(visits, settings.pairs)]
    with Alone(output_dir):
        if not overwrite:
            refuse_others(output_dir, work)
        found = []
        for pair, facts in tqdm(work, desc="comparing visits", unit=" pair", disable=None):
            found.append(compare(pair, settings, retest))
            write_changes(output_dir, found[-1], facts, retest)
        write_tables(output_dir, found, retest)
        page = write_page(output_dir, found, retest, max_pictures)
        if measure is not None:
            write_retest(found, measure, settings.min_change_mm3)
    doubtful = [one.name for one in found if one.warnings]
    if doubtful:
        logger.warning(
            "%d of %d pairs are doubtful, as %s: look at them in %s", len(doubtful), len(found), doubtful[0], page
        )
    logger.info("%s: %d pairs of visits", page, len(found))
    return found


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
    measured = measure_retest([one.volumes_ml for one in found], both, false, source, least_ml=min_change_mm3 / 1000)
    measured.save(path)
    logger.info("wrote %s: half an interval is %.1f %% of the load", path, 100 * measured.share)
    return measured
