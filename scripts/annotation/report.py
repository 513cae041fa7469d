"""The order as a table and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from tqdm import tqdm

from common.data import subject_of
from common.files import write_text
from common.page import CaseView, Section, Table, write_html_report
from common.pictures import Picture, case_pictures
from common.report import number
from common.scans import open_scan, read_scan
from common.tables import delimited

from .doubt import slices_worth, wrong_map
from .pool import first_image
from .ranking import Pick
from .results import opinion_of

COLUMNS = ("distance", "group", "draft_ml", "expected_ml", "wrong_ml", "disagreement_ml", "expected_dice")
DEFINITIONS = (
    (
        "distance",
        "How unlike two scans are, by intensities in the regions of the brain, histogram, texture, voxels and size; "
        "two scans of a cohort are about 1.4 apart.",
    ),
    ("group", "People in the group of scans that look alike, of k-means; the first of a group is its most typical."),
    ("draft, expected, ml", "Volume of the draft, and the volume that is expected by the maps, mean of the methods."),
    ("wrong, ml", "Volume of voxels that have another label in truth, as far as the methods themselves can tell."),
    ("methods differ, ml", "Volume of voxels where two methods differ."),
    ("expected Dice", "Of the draft with the truth, by the maps; a milliliter of agreement is added."),
    (
        "slice",
        "Counted from 1 along the file's axis, as the cursor of ITK-SNAP; the position is that of Slicer, in mm.",
    ),
)
_TITLES = {
    "distance": "distance",
    "group": "group",
    "draft_ml": "draft, ml",
    "expected_ml": "expected, ml",
    "wrong_ml": "wrong, ml",
    "disagreement_ml": "methods differ, ml",
    "expected_dice": "expected Dice",
}


def write_tables(output_dir: str | Path, picks: Sequence[Pick], strategy: str, slices: int) -> list[dict[str, object]]:
    """Write ``next_scans.tsv`` and, with results, ``next_slices.tsv``; gives the rows of the second."""
    folder = Path(output_dir)
    shown = [name for name in COLUMNS if any(pick.numbers.get(name) is not None for pick in picks)]
    rows: list[list[object]] = [["place", "scan", "subject", "strategy", "reason", *shown]]
    for place, pick in enumerate(picks, 1):
        numbers = [pick.numbers.get(name) for name in shown]
        rows.append([place, pick.name, subject_of(pick.case), strategy, pick.reason, *numbers])
    write_text(folder / "next_scans.tsv", delimited(rows, "\t"))
    found = [row for pick in picks if pick.doubt is not None for row in slice_rows(pick, slices)]
    if found:
        write_text(folder / "next_slices.tsv", delimited([list(found[0]), *(list(r.values()) for r in found)], "\t"))
    return found


def slice_rows(pick: Pick, count: int) -> list[dict[str, object]]:
    """The slices of a scan in which a correction pays most."""
    doubt, affine = pick.doubt, open_scan(first_image(pick.case)).affine
    spacing = float(voxel_sizes(affine)[doubt.axis])
    along = int(np.abs(affine[:3, doubt.axis]).argmax())  # axis of the world
    middle = np.array([n / 2 for n in open_scan(first_image(pick.case)).shape[:3]])
    rows = []
    for index in slices_worth(doubt.by_slice, spacing, count):
        middle[doubt.axis] = index
        rows.append(
            {
                "scan": pick.name,
                "plane": doubt.plane,
                "slice": index + 1,
                "position_mm": round(float(apply_affine(affine, middle)[along]), 1),
                "wrong_ml": float(doubt.by_slice[index]),
                "share": float(doubt.by_slice[index] / doubt.wrong_ml),
            }
        )
    return rows


def write_page(
    output_dir: str | Path,
    picks: Sequence[Pick],
    slices: Sequence[Mapping[str, object]],
    labels: Mapping[int, str],
    facts: Mapping[str, object],
    max_pictures: int,
    others: Sequence[Section] = (),
) -> Path:
    """Write ``next_scans.html``: the order, the slices, and a picture of each scan.

    Args:
        output_dir: folder.
        picks: in their order.
        slices: rows of :func:`write_tables`.
        labels: value -> name of the drafts; empty without results.
        facts: settings, for the end of the page.
        max_pictures: scans with pictures, the first ones.
        others: further sections, as the learning curve.
    """
    shown = [name for name in COLUMNS if any(pick.numbers.get(name) is not None for pick in picks)]
    rows = [[p.name, *(_shown(name, p.numbers.get(name)) for name in shown)] for p in picks]
    tables = [Table("In this order", ["scan", *(_TITLES[name] for name in shown)], rows)]
    if slices:
        heads = ["scan", "plane", "slice", "position, mm", "wrong, ml", "share of the scan's"]
        cells = [
            [
                str(r["scan"]),
                str(r["plane"]),
                str(r["slice"]),
                f"{r['position_mm']}",
                number(r["wrong_ml"], 2),
                number(r["share"], 2),
            ]
            for r in slices
        ]
        tables.append(Table("Slices in which a correction pays most", heads, cells, bars=[5]))
    bar = tqdm(picks[:max_pictures], desc="pictures", unit=" scan", disable=None)
    section = Section(
        title="Which scan next",
        lead=f"{len(picks)} scans, the one first that is most worth drawing. One scan of each person.",
        summary=tables,
        cases=[_view(place, pick, labels) for place, pick in enumerate(bar, 1)],
        cases_note="in the order of the table",
        reference=False,
        keys=("", "draft" if labels else ""),
        definitions=DEFINITIONS,
        details=[(name, str(value)) for name, value in facts.items()],
    )
    return write_html_report(Path(output_dir) / "next_scans.html", "Which scan next", [section, *others])


def _view(place: int, pick: Pick, labels: Mapping[int, str]) -> CaseView:
    facts = [("", pick.reason), ("subject", subject_of(pick.case))]
    return CaseView(f"{place}. {pick.name}", facts, pictures_of(pick, labels))


def pictures_of(pick: Pick, labels: Mapping[int, str]) -> list[Picture]:
    """Slices of a scan in three planes; with results its draft as contours, and where it is in doubt."""
    path = first_image(pick.case)
    image, scan = read_scan(path)
    if not pick.results:
        axial, _, coronal, sagittal = case_pictures(image, scan.affine, np.zeros(image.shape, np.uint8))
        planes = {"axial": axial, "coronal": coronal, "sagittal": sagittal}
        return [replace(picture, caption=plane, alt=f"{plane} slice") for plane, picture in planes.items()]
    opinions = [opinion_of(result, labels, path) for result in pick.results]
    names = {0: "background", **labels} if len(labels) > 1 else None
    pictures = case_pictures(
        image, scan.affine, opinions[0].mask, scores=wrong_map(opinions), score_max=0.5, label_names=names
    )
    words = ("score, black 0 to white 0.5", "chance that the draft is wrong, black 0 to white 0.5")
    return [replace(p, caption=p.caption.replace(*words), alt=p.alt.replace(*words)) for p in pictures]


def _shown(name: str, value: float | None) -> str:
    if value is None or np.isnan(value):
        return "–"
    return str(int(value)) if name == "group" else number(float(value), 2)
