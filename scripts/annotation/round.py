"""One round: the order, the tables, the drafts and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from common.data import Datalist
from common.errors import InputError
from common.files import Alone, read_json
from common.options import types as t
from running.command_line import show_progress

from .curve import section_of
from .drafts import refuse_changed, write_drafts
from .pool import read_pool
from .ranking import STRATEGIES, doubts_of, rank
from .report import write_page, write_tables
from .results import find_results, wanted_labels


def next_scans(
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
    num_workers: t.SmallCount = 1,
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

    Raises:
        InputError: see :mod:`annotation.pool`, :mod:`annotation.results`, :mod:`annotation.drafts`.
    """
    show_progress("annotation")
    if monai_label is not None and not results:
        raise InputError("monai_label is given without results, expected --results to have drafts to put there")
    others = [_curve(learning_curve)] if learning_curve is not None else []
    strategy = ("doubt" if results else "typical") if strategy == "auto" else strategy
    datalist = Datalist(datalist_file)
    pool = read_pool(datalist, section, sequences, healthy)
    with Alone(output_dir):
        found = find_results(results, pool) if results else []
        names = wanted_labels(found, pool, labels) if found else {}
        doubts = doubts_of(pool, found, names, plane) if found else []
        picks = rank(pool, strategy, count, seed, found, doubts, diverse, num_workers)
        if found:
            refuse_changed(Path(output_dir) / "drafts", picks)
            write_drafts(Path(output_dir) / "drafts", picks, names, monai_label)
        rows = write_tables(output_dir, picks, strategy, slices)
        facts = {
            "strategy": strategy + ("" if strategy != "doubt" or diverse else ", without diversity"),
            "datalist": datalist.path.name,
            "scans without / with a label": f"{len(pool.unlabeled)} / {len(pool.labeled)}",
            "sequences": ", ".join(pool.sequences),
            "results": ", ".join(dict.fromkeys(result.maker or "unknown" for scan in found for result in scan))
            or "none",
            "labels": ", ".join(f"{value} {name}" for value, name in names.items()) or "none",
            "seed": seed,
        }
        page = write_page(output_dir, picks, rows, names, facts, max_pictures, others)
    lines = [f"{place:3d}  {pick.name}: {pick.reason}" for place, pick in enumerate(picks, 1)]
    print("\n".join([*lines, f"wrote {page}"]))


def _curve(path: str):
    content = read_json(path, "the JSON of scripts/learning_curve.py", dict)
    try:
        return section_of(content)
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise InputError(
            f"{path} is not understood ({e}), expected learning_curve.json of scripts/learning_curve.py"
        ) from e
