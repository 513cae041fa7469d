"""One round: the order, the tables, the drafts and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.data import Datalist
from common.errors import InputError
from common.files import Alone, read_json

from .curve import section_of
from .drafts import refuse_changed, write_drafts
from .pool import read_pool
from .ranking import doubts_of, rank
from .report import write_page, write_tables
from .results import find_results, wanted_labels


class Wishes(NamedTuple):
    """What a user asks for; see ``scripts/next_scans.py``."""

    strategy: str = "auto"
    count: int = 10
    labels: Sequence[str] | None = None
    diverse: bool = True
    plane: str = "auto"
    slices: int = 5
    seed: int = 0
    max_pictures: int = 20
    num_workers: int = 1


def next_round(
    datalist: Datalist,
    output_dir: str | Path,
    wishes: Wishes,
    pool_of: tuple[str | None, Sequence[str] | None, bool] = (None, None, False),
    results: Sequence[str] = (),
    studies: str | None = None,
    learning_curve: str | None = None,
) -> str:
    """Choose scans and write all about them.

    Args:
        datalist: the scans.
        output_dir: folder; gets ``next_scans.tsv``, ``next_scans.html``, with results ``next_slices.tsv``, ``drafts/``.
        wishes: of the user.
        pool_of: section, sequences and healthy of :func:`annotation.pool.read_pool`.
        results: folders of inferences.
        studies: of MONAI Label.
        learning_curve: JSON of ``scripts/learning_curve.py``.

    Returns:
        The order as text for the terminal.

    Raises:
        InputError: see :mod:`annotation.pool`, :mod:`annotation.results`, :mod:`annotation.drafts`.
    """
    if studies is not None and not results:
        raise InputError("monai_label is given without results, expected --results to have drafts to put there")
    others = [_curve(learning_curve)] if learning_curve is not None else []
    strategy = wishes.strategy if wishes.strategy != "auto" else "doubt" if results else "typical"
    pool = read_pool(datalist, *pool_of)
    with Alone(output_dir):
        found = find_results(results, pool) if results else []
        labels = wanted_labels(found, pool, wishes.labels) if found else {}
        doubts = doubts_of(pool, found, labels, wishes.plane) if found else []
        picks = rank(pool, strategy, wishes.count, wishes.seed, found, doubts, wishes.diverse, wishes.num_workers)
        if found:
            refuse_changed(Path(output_dir) / "drafts", picks)
            write_drafts(Path(output_dir) / "drafts", picks, labels, studies)
        rows = write_tables(output_dir, picks, strategy, wishes.slices)
        facts = {
            "strategy": strategy + ("" if strategy != "doubt" or wishes.diverse else ", without diversity"),
            "datalist": datalist.path.name,
            "scans without / with a label": f"{len(pool.unlabeled)} / {len(pool.labeled)}",
            "sequences": ", ".join(pool.sequences),
            "results": ", ".join(dict.fromkeys(result.maker or "unknown" for scan in found for result in scan))
            or "none",
            "labels": ", ".join(f"{value} {name}" for value, name in labels.items()) or "none",
            "seed": wishes.seed,
        }
        page = write_page(output_dir, picks, rows, labels, facts, wishes.max_pictures, others)
    lines = [f"{place:3d}  {pick.name}: {pick.reason}" for place, pick in enumerate(picks, 1)]
    return "\n".join([*lines, f"wrote {page}"])


def _curve(path: str):
    content = read_json(path, "the JSON of scripts/learning_curve.py", dict)
    try:
        return section_of(content)
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise InputError(
            f"{path} is not understood ({e}), expected learning_curve.json of scripts/learning_curve.py"
        ) from e
