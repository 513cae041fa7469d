"""What a comparison of visits writes: masks of changes, tables, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from common.errors import InputError
from common.evaluation import versions
from common.files import difference, fingerprint_of, read_json, sha256_of, write_atomically, write_json, write_text
from common.scans import json_beside, on_grid_of, open_scan
from common.tables import delimited
from common.volumes import for_json
from preparation.volume import Volume

from .comparing import Comparison, Settings
from .lesions import CHANGES, world_of
from .retest import Retest
from .scans import Visit

TOOL = "compare_visits"


def files_of(output_dir: Path, pair: tuple[Visit, Visit]) -> tuple[Path, Path]:
    """The masks of changes of a pair, on the grids of both visits."""
    folder = output_dir / _plain(pair[0].subject) / f"{_plain(pair[0].visit)}_{_plain(pair[1].visit)}"
    earlier, later = (folder / f"{visit.name}_change.nii.gz" for visit in pair)
    if earlier == later:
        raise InputError(f"{pair[0].image} and {pair[1].image} would be one file {earlier}, expected names that differ")
    return earlier, later


def facts_of(pair: tuple[Visit, Visit], settings: Settings, retest: Retest | None) -> dict[str, Any]:
    """What the masks of a pair are made from; files go by their names and contents, no folder is told."""
    visits = [
        {role: {"name": Path(path).name, "sha256": sha256_of(path)} for role, path in visit.files.items()}
        | {
            "visit": visit.visit,
            "threshold": visit.threshold,
            "lesion_value": visit.lesion_value,
            "is_map": visit.is_map,
        }
        | {"lesions_from": visit.source}
        for visit in pair
    ]
    facts = {"tool": TOOL, "subject": pair[0].subject, "earlier": visits[0], "later": visits[1]}
    return facts | {"settings": fingerprint_of(vars(settings)), "retest": None if retest is None else retest.source}


def refuse_others(output_dir: Path, work: Iterable[tuple[tuple[Visit, Visit], Mapping[str, Any]]]) -> None:
    """Stop before any work if a mask that would be replaced was made in another way, or changed by hand.

    Raises:
        InputError: naming the first such file and what to do.
    """
    for pair, facts in work:
        for file in filter(Path.exists, files_of(output_dir, pair)):
            reason = _reason(file, facts)
            if reason:
                raise InputError(f"{file} {reason}, expected --overwrite true to replace it, or another --output_dir")


def _reason(file: Path, facts: Mapping[str, Any]) -> str:
    known: Any = {}
    with suppress(InputError):
        known = read_json(json_beside(file), kind=dict)
    if known.get("tool") != TOOL:
        return f"is there without {json_beside(file).name}, which would say who made it"
    if known.get("sha256") not in (None, sha256_of(file)):
        return "was changed after it was made"
    told = difference(_flat(facts), _flat({key: known.get(key) for key in facts}), "that file")
    return f"was made in another way: {told}" if told else ""


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{prefix}{key} ") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def write_changes(output_dir: Path, found: Comparison, facts: Mapping[str, Any], retest: Retest | None) -> None:
    """Write the mask of changes on the grid of each visit's own file, and its JSON."""
    content = dict(facts) | {"values": {str(value): name for value, name in CHANGES.items()}}
    numbers = {name: for_json(value) for name, value in found.row(retest).items()}
    content |= {"numbers": numbers, "alignment": found.grid.numbers(), "versions": versions()}
    volume = Volume(found.change, found.grid.affine)
    for number, file in enumerate(files_of(output_dir, found.visits)):
        visit = found.visits[number]
        scan = open_scan(visit.image)
        way = np.linalg.inv(found.grid.ways[number])
        array = volume.labels_on_grid(scan.shape[:3], scan.affine, way).values.astype(np.uint8)
        image = on_grid_of(visit.image, array)
        write_json(json_beside(file), content)
        write_atomically(file, lambda part, image=image: nib.save(image, part))
        write_json(json_beside(file), content | {"sha256": sha256_of(file)})


def write_tables(output_dir: Path, comparisons: Sequence[Comparison], retest: Retest | None) -> None:
    """Write ``visits.tsv``, a line per pair, and ``changes.tsv``, a line per lesion."""
    rows = [found.row(retest) for found in comparisons]
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "warnings")) + ["warnings"]
    write_text(output_dir / "visits.tsv", delimited([columns, *([row.get(c) for c in columns] for row in rows)], "\t"))
    lesions = [lesion_row(found, lesion) for found in comparisons for lesion in found.lesions]
    heading = ["subject", "earlier", "later", "lesion", "fate", "earlier_ml", "later_ml", "change_ml", "low_ml"]
    heading += ["high_ml", "earlier_parts", "later_parts", "z", *(f"{v}_{a}_mm" for v in heading[1:3] for a in "xyz")]
    write_text(output_dir / "changes.tsv", delimited([heading, *lesions], "\t"))


def lesion_row(found: Comparison, lesion: Any) -> list[Any]:
    """The line of ``changes.tsv``: places are in the world of each file, RAS mm."""
    places = [world_of(lesion.center, found.grid.affine, way) for way in found.grid.ways]
    return [
        *(found.visits[0].subject, found.visits[0].visit, found.visits[1].visit, lesion.number, lesion.fate),
        *(lesion.before_ml, lesion.after_ml, lesion.change_ml, lesion.low_ml, lesion.high_ml, *lesion.parts, lesion.z),
        *places[0],
        *places[1],
    ]


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "_"
