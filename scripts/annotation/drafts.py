"""Drafts where the drawer works: NIfTI on the scan's grid, names and colors of the labels, MONAI Label's studies."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from matplotlib.colors import to_rgb

from common.errors import InputError
from common.files import read_json, sha256_of, write_atomically, write_json, write_text
from common.pictures import LABEL_COLORS
from common.scans import on_grid_of

from .pool import first_image
from .ranking import Pick
from .results import opinion_of

logger = logging.getLogger(__name__)

INDEX = "drafts.json"
ITK_SNAP, SLICER = "labels_itksnap.txt", "labels_slicer.ctbl"
ORIGINAL, FINAL = Path("labels") / "original", Path("labels") / "final"  # of MONAI Label's studies, by its tags


class Draft(NamedTuple):
    """One entry of ``drafts.json``: the file, beside it, its hash, the scan's file name and hash, and who made it."""

    file: str
    sha256: str
    image: str
    image_sha256: str
    made_by: str


def write_drafts(
    folder: str | Path, picks: Sequence[Pick], labels: Mapping[int, str], studies: str | Path | None = None
) -> list[Path]:
    """Write a draft of every scan that was chosen, and what the viewers need to call its labels by their names.

    ``<name>.nii.gz`` for each, ``labels_itksnap.txt`` (ITK-SNAP: Segmentation, Import Label Descriptions),
    ``labels_slicer.ctbl`` (3D Slicer: a color table to load a segmentation with), ``drafts.json``, by which
    :func:`annotation.corrections.read_corrections` knows what was drafted. With ``studies`` each goes to
    ``labels/original/<image>.nii.gz`` there too. All is checked before anything is written.

    Args:
        folder: of the drafts.
        picks: with results.
        labels: value -> name.
        studies: MONAI Label's folder, which holds the scans already.

    Raises:
        InputError: if a draft was changed since, or the studies lack a scan or hold another draft of it.
    """
    folder = Path(folder)
    refuse_changed(folder, picks)
    before = read_index(folder)[1] if (folder / INDEX).is_file() else {}
    places = [_in_studies(Path(studies), pick, before) for pick in picks] if studies is not None else []
    entries, files = {}, []
    for number, pick in enumerate(picks):
        image = first_image(pick.case)
        mask = opinion_of(pick.results[0], labels, image).mask
        file = folder / f"{pick.name}.nii.gz"
        files += [file, *places[number : number + 1]]
        for path in files[-2:] if places else files[-1:]:
            _save(path, image, mask)
            logger.info("wrote the draft %s", path)
        image_facts = (Path(image).name, sha256_of(image))
        entries[pick.name] = Draft(
            file.relative_to(folder).as_posix(), sha256_of(file), *image_facts, pick.results[0].maker
        )
    write_text(folder / ITK_SNAP, itk_snap_labels(labels))
    write_text(folder / SLICER, slicer_colors(labels))
    content = {name: draft._asdict() for name, draft in (before | entries).items()}
    write_json(folder / INDEX, {"labels": {str(v): name for v, name in labels.items()}, "drafts": content})
    return files


def read_index(folder: str | Path) -> tuple[dict[int, str], dict[str, Draft]]:
    """Labels and drafts of ``drafts.json``.

    Raises:
        InputError: if there is none, or it has another form.
    """
    path = Path(folder) / INDEX
    content = read_json(path, "the drafts of scripts/next_scans.py", dict)
    try:
        labels = {int(value): str(name) for value, name in content["labels"].items()}
        return labels, {name: Draft(**entry) for name, entry in content["drafts"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise InputError(f"{path} is not understood ({e}), expected it as scripts/next_scans.py wrote it") from e


def refuse_changed(folder: Path, picks: Sequence[Pick]) -> None:
    """Refuse to write over a draft that somebody has drawn in.

    Raises:
        InputError: naming the file.
    """
    known = read_index(folder)[1] if (folder / INDEX).is_file() else {}
    for pick in picks:
        file = folder / f"{pick.name}.nii.gz"
        if file.is_file() and (pick.name not in known or sha256_of(file) != known[pick.name].sha256):
            raise InputError(
                f"{file} was changed since it was drafted, expected it as it was: move what was drawn to the folder of "
                "corrections, or give another --output_dir"
            )


def itk_snap_labels(labels: Mapping[int, str]) -> str:
    """ITK-SNAP's label description file: index, red, green, blue, opacity, whether it is shown, its mesh too, name."""
    lines = ["################################################", "# ITK-SnAP Label Description File"]
    lines += ["# File format:", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
    lines += ["################################################", _itk_snap_line(0, (0, 0, 0), 0, "Clear Label")]
    lines += [_itk_snap_line(value, color, 1, name) for value, name, color in _colored(labels)]
    return "\n".join(lines) + "\n"


def slicer_colors(labels: Mapping[int, str]) -> str:
    """3D Slicer's color table: a line for each value from 0 on, name without blanks, red, green, blue, opacity."""
    known = {value: (name, color) for value, name, color in _colored(labels)}
    lines = ["# Color table file labels", f"# {max(known) + 1} values", "0 background 0 0 0 0"]
    for value in range(1, max(known) + 1):
        name, color = known.get(value, (f"unused_{value}", (0, 0, 0)))
        lines.append(f"{value} {re.sub(r'[^A-Za-z0-9_.-]', '_', name)} {' '.join(map(str, color))} 255")
    return "\n".join(lines) + "\n"


def _itk_snap_line(value: int, color: Sequence[int], shown: int, name: str) -> str:
    red, green, blue = color
    text = re.sub(r'["\r\n\t]', " ", name)
    return f'{value:5d} {red:5d} {green:4d} {blue:4d} {shown:8d} {shown:3d} {shown:3d}    "{text}"'


def _colored(labels: Mapping[int, str]) -> list[tuple[int, str, tuple[int, ...]]]:
    """Values with names and the colors that the pages have."""
    colors = (LABEL_COLORS * len(labels))[: len(labels)] if len(labels) > 1 else ("#E69F00",)
    rgb = [tuple(round(255 * part) for part in to_rgb(color)) for color in colors]
    return [(value, labels[value], color) for value, color in zip(sorted(labels), rgb, strict=True)]


def _in_studies(studies: Path, pick: Pick, known: Mapping[str, Draft]) -> Path:
    """Where the draft goes in MONAI Label's studies; refused where that would be of no use, or another draft is."""
    name = Path(first_image(pick.case)).name
    scan = studies / name
    if not scan.is_file():
        raise InputError(f"{scan} does not exist, expected the scan in the studies of MONAI Label: copy it there first")
    if sha256_of(scan) != sha256_of(first_image(pick.case)):
        raise InputError(f"{scan} is another file than {first_image(pick.case)}, expected the same scan under one name")
    if (studies / FINAL / name).is_file():
        raise InputError(f"{studies / FINAL / name} is drawn already, expected scripts/take_corrections.py to take it")
    place = studies / ORIGINAL / name
    if place.is_file() and (pick.name not in known or sha256_of(place) != known[pick.name].sha256):
        raise InputError(
            f"{place} is another draft, of MONAI Label or somebody else, expected none there: move it away"
        )
    return place


def _save(path: Path, image: str, mask: np.ndarray) -> None:
    write_atomically(path, lambda part: nib.save(on_grid_of(image, mask), part))
