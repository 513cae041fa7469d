"""Masks that somebody drew, read back: checked, compared with their drafts, kept with who and when."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
from monai.utils import ensure_tuple
from tqdm import tqdm

from common.data import Datalist, write_datalist
from common.errors import InputError
from common.files import Alone, sha256_of, write_atomically, write_json
from common.metrics import dice
from common.options import types as t
from common.scans import is_scan_name, json_beside, on_grid_of, open_scan, stem, voxel_ml, whole_numbers
from datalists.results import names_of_results, read_on_grid
from running.command_line import show_progress

from .doubt import drawing_axis
from .drafts import FINAL, INDEX, ORIGINAL, Draft, read_index
from .pool import Case, first_image, label_names_of

logger = logging.getLogger(__name__)


class Correction(NamedTuple):
    """A mask that somebody drew.

    Attributes:
        case: item of the datalist that it belongs to.
        name: of the scan.
        file: that was drawn.
        mask: (X, Y, Z), whole numbers.
        draft: likewise; None where nothing was drafted.
        facts: what the JSON beside the label says.
    """

    case: Case
    name: str
    file: Path
    mask: np.ndarray
    draft: np.ndarray | None
    facts: dict[str, Any]


def take_corrections(
    datalist_file: t.File,
    output_file: t.NewFile,
    annotator: t.Text,
    corrections: t.ExistingFolder | None = None,
    drafts: t.NamesOrNone = (),
    monai_label: t.ExistingFolder | None = None,
    labels_dir: t.Folder | None = None,
    as_drafted: t.NamesOrNone = (),
    plane: Literal["auto", "axial", "coronal", "sagittal"] = "auto",
    overwrite: t.Flag = False,
) -> None:
    """Write the labels, a JSON beside each that says who drew what, and the datalist for the next training.

    Args:
        datalist_file: JSON of the scans.
        output_file: datalist to write, with the labels; it may be the same file. Beside it <name>_labeled.json has the
            labeled cases alone, to train on.
        annotator: who drew, a name or a sign.
        corrections: folder of the masks, each called as its draft or its scan.
        drafts: folders of the drafts that next_scans.py wrote; without them nothing is compared.
        monai_label: the studies folder of MONAI Label; its labels/final is taken in the place of corrections.
        labels_dir: folder for the labels; beside output_file, in labels, by default.
        as_drafted: names of scans whose draft is right as it is, or in which there is nothing to draw.
        plane: that was drawn in, for the list of changed slices; auto, along thick slices, else axial.
        overwrite: replace labels that cases have.
    """
    show_progress("annotation")
    if (corrections is None) == (monai_label is None):
        raise InputError("expected corrections or monai_label, one of the two, to say where the masks are")
    folder = corrections if monai_label is None else final_labels(monai_label)
    datalist = Datalist(datalist_file)
    found = read_corrections(datalist, folder, annotator, drafts, monai_label, as_drafted, plane, overwrite)
    write_labels(found, datalist, output_file, labels_dir or Path(output_file).absolute().parent / "labels")
    print(f"{told(found)}\nwrote {output_file}, and {labeled_file(output_file)} to train on")


def read_corrections(
    datalist: Datalist,
    folder: str | Path,
    annotator: str,
    drafts: Sequence[str | Path] = (),
    studies: str | Path | None = None,
    as_drafted: Sequence[str] = (),
    plane: str = "auto",
    overwrite: bool = False,
) -> list[Correction]:
    """Read all masks of a folder, and refuse all of them if one cannot be used: nothing is written here.

    A mask is called as its scan or its draft is: ``x_FLAIR.nii.gz``, and ``_draft``, ``_label``, ``_seg`` or
    ``_corrected`` may stand before the ending.

    Args:
        datalist: with the scans.
        folder: of the masks.
        annotator: who drew.
        drafts: folders with ``drafts.json``, of :func:`annotation.drafts.write_drafts`; none where nothing was drafted.
        studies: MONAI Label's, whose drafts serve where ``drafts`` has none.
        as_drafted: scans whose draft was looked at and is right, or which have nothing to draw.
        plane: see :func:`annotation.doubt.drawing_axis`.
        overwrite: take masks of cases that have a label.

    Raises:
        InputError: naming the first mask that is of no scan or of two, lies on another grid, has other values than the
            labels, is empty or as it was drafted without being named in ``as_drafted``, or whose case has a label.
    """
    folder = Path(folder)
    labels, index = _drafted(drafts) if drafts else (label_names_of(datalist), {})
    if not labels:
        raise InputError(
            f'{datalist} has no "labels" and no drafts are given, expected one of them: what may be drawn?'
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file() and is_scan_name(path))
    if not files:
        raise InputError(f"{folder} holds no NIfTI file, expected the masks that were drawn")
    known = _scans_of(datalist)
    found: list[Correction] = []
    failures: list[str] = []
    for file in tqdm(files, desc="reading masks", unit=" mask", disable=None):
        try:
            case, name = _case_of(file, folder, known)
            draft = _draft_of(name, case, index, studies)
            mask, values = _checked(file, case, draft, labels, name in as_drafted, overwrite, datalist)
        except InputError as e:
            failures.append(str(e))
            continue
        entry = index[name][1] if name in index else None
        found.append(
            Correction(
                case, name, file, mask, values, _facts(file, case, mask, values, labels, annotator, entry, plane)
            )
        )
    twice = [c.name for c in found if sum(first_image(o.case) == first_image(c.case) for o in found) > 1]
    failures += [f"{folder} has two masks of {twice[0]}, expected one"] if twice else []
    unused = sorted(set(as_drafted) - {correction.name for correction in found})
    failures += (
        [f"as_drafted names {unused[0]}, expected scans whose masks are in {folder}"] if unused and not failures else []
    )
    if failures:
        more = f"; {len(failures) - 1} other masks cannot be taken either" if len(failures) > 1 else ""
        raise InputError(f"{failures[0]}{more}")
    return found


def write_labels(
    corrections: Sequence[Correction], datalist: Datalist, output_file: str | Path, labels_dir: str | Path
) -> list[Path]:
    """Write each mask as ``<name>_label.nii.gz`` with a JSON of where it is from, and the datalist with these labels.

    The datalist comes last: it names no label that is not there. :func:`labeled_file` beside it has the labeled and the
    healthy cases alone: a training that needs labels takes no case without.

    Args:
        corrections: of :func:`read_corrections`.
        datalist: that they belong to.
        output_file: the datalist to write; it may be the old one.
        labels_dir: folder of the labels.

    Returns:
        The files of the labels.
    """
    labels_dir, output_file = Path(labels_dir), Path(output_file)
    written: dict[str, Path] = {}
    with Alone(labels_dir):
        for correction in corrections:
            path = labels_dir / f"{correction.name}_label.nii.gz"
            image = first_image(correction.case)
            array = correction.mask.astype(np.uint8)
            write_atomically(path, lambda part, array=array, image=image: nib.save(on_grid_of(image, array), part))
            write_json(json_beside(path), correction.facts | {"sha256": sha256_of(path)})
            written[image] = path
            logger.info("took %s as %s", correction.file, path)
        sections = {}
        for section, items in datalist.sections.items():
            sections[section] = [_labeled(item, written, corrections) for item in items]
        drawn = {name: [item for item in items if _is_drawn(item)] for name, items in sections.items()}
        write_datalist(
            labeled_file(output_file), {name: items for name, items in drawn.items() if items}, datalist.header
        )
        write_datalist(output_file, sections, datalist.header)
    return [*written.values()]


def labeled_file(output_file: str | Path) -> Path:
    """Beside the datalist of all scans, as ``cases_2.json``, that of those to train on, ``cases_2_labeled.json``."""
    return Path(output_file).with_name(f"{Path(output_file).stem}_labeled.json")


def _is_drawn(item: Case) -> bool:
    return ("label" in item and "label_source" not in item) or item.get("healthy") is True


def _labeled(item: Case, written: Mapping[str, Path], corrections: Sequence[Correction]) -> Case:
    path = written.get(first_image(item))
    if path is None:
        return item
    annotator = next(c.facts["annotator"] for c in corrections if first_image(c.case) == first_image(item))
    kept = {key: value for key, value in item.items() if key not in ("label_source", "predicted_map")}
    return kept | {"label": str(path.absolute()), "annotator": annotator}


def _drafted(folders: Sequence[str | Path]) -> tuple[dict[int, str], dict[str, tuple[Path, Draft]]]:
    """Labels and, by the name of the scan, folder and entry of each draft; of a scan in two folders the later one's."""
    labels: dict[int, str] = {}
    index: dict[str, tuple[Path, Draft]] = {}
    for folder in map(Path, folders):
        own, drafts = read_index(folder)
        if labels and own != labels:
            raise InputError(f"{folder / INDEX} has the labels {own}, expected {labels} as in {folders[0]}")
        labels = own
        index |= {name: (folder, draft) for name, draft in drafts.items()}
    return labels, index


def _scans_of(datalist: Datalist) -> dict[str, list[Case]]:
    """Name -> items that may be meant by it: of any image of an item, alone or with the folders that set it apart."""
    names = names_of_results(datalist)
    known: dict[str, list[Case]] = {}
    for item in datalist.items():
        for name in {name for image in ensure_tuple(item["image"]) if image for name in names[image]}:
            known.setdefault(name, []).append(item)
    return known


def _case_of(file: Path, folder: Path, known: Mapping[str, Sequence[Case]]) -> tuple[Case, str]:
    name = file.relative_to(folder).with_name(stem(file)).as_posix()
    tried = [name, *(name.removesuffix(f"_{ending}") for ending in ("draft", "label", "seg", "corrected"))]
    for candidate in tried:
        if candidate in known:
            cases = known[candidate]
            if len(cases) > 1:
                raise InputError(f"{file} may be of {len(cases)} scans called {candidate}, expected a name of one")
            return cases[0], candidate
    raise InputError(
        f"{file} is of no scan of the datalist, expected it to be called as one, as {next(iter(known))}.nii.gz"
    )


def _draft_of(
    name: str, case: Case, index: Mapping[str, tuple[Path, Draft]], studies: str | Path | None
) -> Path | None:
    if name in index:
        folder, entry = index[name]
        path = folder / entry.file
        if not path.is_file() or sha256_of(path) != entry.sha256:
            raise InputError(f"{path} is not the draft that {INDEX} tells of, expected it as it was: draw in a copy")
        return path
    original = Path(studies) / ORIGINAL / Path(first_image(case)).name if studies is not None else None
    return original if original is not None and original.is_file() else None


def _checked(
    file: Path,
    case: Case,
    draft: Path | None,
    labels: Mapping[int, str],
    as_drafted: bool,
    overwrite: bool,
    datalist: Datalist,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Voxels of the mask and of its draft."""
    image = first_image(case)
    mask = _labels_in(file, image)
    odd = sorted({int(value) for value in np.unique(mask)} - {0, *labels})
    if odd:
        known = ", ".join(f"{value} {name}" for value, name in sorted(labels.items()))
        raise InputError(f"{file} has the value {odd[0]}, expected 0 and {known}")
    if "label" in case and "label_source" not in case and not overwrite:
        raise InputError(f"{file} is of a scan that has a label in {datalist}, expected --overwrite true to replace it")
    values = None if draft is None else _labels_in(draft, image)
    if not as_drafted and values is not None and np.array_equal(mask, values):
        raise InputError(f"{file} is as it was drafted, expected something drawn, or its name in --as_drafted")
    if not as_drafted and not mask.any():
        raise InputError(f"{file} is empty, expected something drawn, or its name in --as_drafted if there is nothing")
    return mask, values


def _labels_in(path: Path, image: str) -> np.ndarray:
    return whole_numbers(read_on_grid(path, image), path).astype(np.int64)


def _facts(
    file: Path,
    case: Case,
    mask: np.ndarray,
    draft: np.ndarray | None,
    labels: Mapping[int, str],
    annotator: str,
    entry: Draft | None,
    plane: str,
) -> dict[str, Any]:
    image = first_image(case)
    affine = open_scan(image).affine
    ml = voxel_ml(affine)
    drawn = datetime.fromtimestamp(int(file.stat().st_mtime), timezone.utc)
    facts: dict[str, Any] = {
        "annotator": annotator,
        "drawn": drawn.isoformat(),
        "file": file.name,
        "file_sha256": sha256_of(file),
        "image": {"name": Path(image).name, "sha256": sha256_of(image)},
        "labels": {str(value): name for value, name in labels.items()},
        "volumes_ml": {name: round(float((mask == value).sum() * ml), 4) for value, name in labels.items()},
    }
    if draft is None:
        return facts | {"draft": None}
    axis, name = drawing_axis(affine, plane)
    changed = mask != draft
    slices = np.flatnonzero(changed.any(tuple(a for a in range(3) if a != axis))) + 1
    facts["draft"] = {"sha256": entry.sha256, "made_by": entry.made_by} if entry else {"from": "labels/original"}
    facts["changed"] = {
        "ml": round(float(changed.sum() * ml), 4),
        "added_ml": {n: round(float(((mask == v) & (draft != v)).sum() * ml), 4) for v, n in labels.items()},
        "removed_ml": {n: round(float(((mask != v) & (draft == v)).sum() * ml), 4) for v, n in labels.items()},
        "plane": name,
        "slices": [int(index) for index in slices],
        "slices_of": int(mask.shape[axis]),
    }
    scores = {n: dice(draft == v, mask == v) for v, n in labels.items()}
    facts["dice_to_draft"] = {n: None if np.isnan(score) else round(score, 4) for n, score in scores.items()}
    return facts


def final_labels(studies: str | Path) -> Path:
    """Folder of MONAI Label's studies that submitted labels are in.

    Raises:
        InputError: if there is none.
    """
    folder = Path(studies) / FINAL
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist, expected the labels that were submitted to MONAI Label")
    return folder


def told(corrections: Sequence[Correction]) -> str:
    """What was changed, a line for each mask."""
    lines = []
    for correction in corrections:
        changed = correction.facts.get("changed")
        volumes = ", ".join(f"{name} {ml:.2f} ml" for name, ml in correction.facts["volumes_ml"].items())
        if changed is None:
            lines.append(f"{correction.name}: {volumes}; there was no draft")
            continue
        scores = [s for s in correction.facts["dice_to_draft"].values() if s is not None]
        similar = f", Dice to the draft {np.mean(scores):.3f}" if scores else ""
        lines.append(
            f"{correction.name}: {volumes}; {changed['ml']:.2f} ml changed in {len(changed['slices'])} of "
            f"{changed['slices_of']} {changed['plane']} slices{similar}"
        )
    return "\n".join(lines)
