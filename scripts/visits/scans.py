"""The visits that are compared: what a datalist, a folder or single files say of them, and their voxels."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data import Datalist, list_cases, subject_of, visit_of
from common.errors import InputError
from common.files import read_json
from common.scans import as_mask, foreground, grid_difference, json_beside, read_scan, stem, whole_numbers
from preparation.volume import Volume

logger = logging.getLogger(__name__)

FIRST = re.compile(r"(?:baseline|bl|pre)\b.*", re.IGNORECASE)  # visits that come before the others


@dataclass(frozen=True)
class Visit:
    """One scan of a person, and what says where its lesions are.

    Attributes:
        name: of the scan, as inference calls its results.
        subject, visit: whom it shows, and when.
        image: path.
        lesions: path of a map of probabilities, or of a mask.
        is_map: whether it is a map.
        mask: path of the mask that the baseline compares.
        brain_mask: path; None where the image is 0 outside of the brain.
        reference: path of a mask of changes against the visit before; None where there is none.
        threshold: of the map.
        lesion_value: the value of lesions in the mask; None for a mask of two values.
        source: who made map or mask, in words.
    """

    name: str
    subject: str
    visit: str
    image: str
    lesions: str
    is_map: bool
    mask: str
    brain_mask: str | None
    reference: str | None
    threshold: float
    lesion_value: int | None
    source: str

    @property
    def files(self) -> dict[str, str]:
        """Role -> path, of all that a comparison reads."""
        roles = ("image", "lesions", "mask", "brain_mask", "reference")
        return {role: getattr(self, role) for role in roles if getattr(self, role) is not None}


@dataclass(frozen=True)
class Loaded:
    """Voxels of a visit, in the order right, front, top; lesions are probabilities, or 0 and 1."""

    image: Volume
    brain: np.ndarray
    lesions: Volume
    mask: Volume
    reference: Volume | None


@dataclass(frozen=True)
class Choice:
    """Where the lesions of a visit are looked for.

    Attributes:
        results: folder of an inference; None for drawn labels.
        evidence: ``auto`` (maps where all visits of a person have one), ``maps`` or ``masks``.
        threshold: of the maps; None for that of the inference.
        lesion_value: of lesions in masks; None for what the inference says, or for masks of two values.
        reference: key of the cases with a mask of changes; None for none.
    """

    results: str | None = None
    evidence: str = "auto"
    threshold: float | None = None
    lesion_value: int | None = None
    reference: str | None = None


def people(
    dataset_dir: str | None, datalist_file: str | None, section: str | None, sequence: str, choice: Choice
) -> dict[str, list[Visit]]:
    """Subject -> visits, in their order, of those who have two or more.

    Visits are ordered by what they are called: numbers as numbers, and baseline, bl and pre before all others.

    Raises:
        InputError: as :func:`common.data.list_cases`; and if nobody has two visits, visits of a person have one name,
            or a result, a label or a threshold is missing.
    """
    cases = list_cases(dataset_dir, datalist_file, (sequence,))
    if section is not None:
        if datalist_file is None:
            raise InputError(f"section is {section!r} without a datalist, expected datalist_file")
        # names are those of an inference of the whole list
        there = {str(case["image"]) for case in Datalist(datalist_file).cases((sequence,), section)}
        cases = [case for case in cases if str(case["image"]) in there]
    found: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        found.setdefault(subject_of(case), []).append(case)
    single = [subject for subject, some in found.items() if len(some) == 1]
    if single:
        logger.info("%d people have one visit and are left out, as %s", len(single), single[0])
    several = {subject: _ordered(some) for subject, some in found.items() if len(some) > 1}
    if not several:
        raise InputError(
            f"{datalist_file or dataset_dir} has {len(cases)} scans of {len(found)} people and nobody has two visits, "
            'expected two of one person: say "subject" and "visit" in a datalist'
        )
    return {subject: _visits(some, choice) for subject, some in several.items()}


def visits_of_files(
    scans: Sequence[str], masks: Sequence[str], maps: Sequence[str], brain_masks: Sequence[str], choice: Choice
) -> dict[str, list[Visit]]:
    """The same of single files, in their order, the earliest first.

    Raises:
        InputError: if there are not as many of each, or fewer than two scans.
    """
    for name, files in {"masks": masks, "maps": maps, "brain_masks": brain_masks}.items():
        if files and len(files) != len(scans):
            raise InputError(f"{name} has {len(files)} files, expected {len(scans)}, one for each of scans")
    if len(scans) < 2 or not (masks or maps):
        raise InputError(
            f"scans has {len(scans)} and masks {len(masks)} files, expected two or more, with masks or maps"
        )
    names = [stem(path) for path in scans]
    if len(set(names)) < len(names):
        names = [f"{Path(path).parent.name}_{name}" for path, name in zip(scans, names, strict=True)]
    visits = []
    for number, (name, path) in enumerate(zip(names, scans, strict=True)):
        lesions = (maps or masks)[number]
        case = {"name": name, "subject": subject_of({"image": scans[0]}), "visit": str(number + 1), "image": path}
        case |= {"brain_mask": brain_masks[number]} if brain_masks else {}
        visits.append(_visit(case, lesions, bool(maps), masks[number] if masks else lesions, choice))
    return {visits[0].subject: visits}


def load(visit: Visit) -> Loaded:
    """Voxels of a visit.

    Raises:
        InputError: if a file cannot be read, lies on another grid than the image, or holds no probabilities where they
            are expected.
    """
    values, image = read_scan(visit.image)
    arrays = {role: read_scan(path) for role, path in visit.files.items() if role != "image"}
    for role, (array, other) in arrays.items():
        difference = grid_difference(array.shape, other.affine, values.shape, image.affine)
        if difference:
            raise InputError(f"{visit.files[role]} and {visit.image} have {difference}, expected one grid")
    brain = as_mask(arrays["brain_mask"][0], visit.brain_mask) if visit.brain_mask else foreground(values)
    if not brain.any():
        raise InputError(f"{visit.brain_mask or visit.image} has no brain, expected voxels above 0")
    mask = _lesion_mask(arrays["mask"][0], visit, visit.mask)
    lesions = arrays["lesions"][0] if visit.is_map else mask.astype(np.float32)
    if visit.is_map and (lesions.min() < 0 or lesions.max() > 1 + 1e-4):
        raise InputError(
            f"{visit.lesions} has values from {lesions.min():g} to {lesions.max():g}, expected probabilities: "
            "--evidence masks compares the masks"
        )

    def ras(array: np.ndarray) -> Volume:
        return Volume(array, image.affine).to_ras()

    reference = None
    if visit.reference:
        reference = ras((whole_numbers(arrays["reference"][0], visit.reference) > 0).astype(np.float32))
    image_only = ras(np.where(brain, values, 0).astype(np.float32))
    return Loaded(image_only, ras(brain).values, ras(lesions), ras(mask.astype(np.float32)), reference)


def _lesion_mask(array: np.ndarray, visit: Visit, path: str) -> np.ndarray:
    if visit.is_map and path == visit.lesions:
        return array >= visit.threshold
    if visit.lesion_value is None:
        return as_mask(array, path)
    return whole_numbers(array, path) == visit.lesion_value


def _ordered(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    named = [dict(case) | {"visit": visit_of(case)} for case in cases]
    for case in named:
        twins = [str(other["image"]) for other in named if other["visit"] == case["visit"]]
        if len(twins) > 1 or not case["visit"]:
            raise InputError(
                f"{' and '.join(twins)} of {case['subject']} are of the visit {case['visit']!r}, expected a name for "
                'each visit of a person: say "visit" in a datalist'
            )
    return sorted(named, key=lambda case: _rank(case["visit"]))


def _rank(visit: str) -> tuple[Any, ...]:
    parts = re.split(r"(\d+)", visit.lower())
    return (not FIRST.fullmatch(visit), [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts])


def _visits(cases: Sequence[dict[str, Any]], choice: Choice) -> list[Visit]:
    if choice.results is None:
        if choice.evidence == "maps":
            raise InputError("evidence is maps without results, expected the folder of an inference in results")
        for case in cases:
            if "label" not in case:
                raise InputError(
                    f"{case['image']} has no label and no results are given, expected one: results of an inference, or "
                    '"label" in the datalist'
                )
        return [_visit(case, case["label"], False, case["label"], choice) for case in cases]
    files = {
        kind: [Path(choice.results) / f"{case['name']}_{kind}.nii.gz" for case in cases] for kind in ("seg", "prob")
    }
    maps = choice.evidence == "maps" or (choice.evidence == "auto" and all(p.is_file() for p in files["prob"]))
    for path in (*files["seg"], *(files["prob"] if maps else ())):
        if not path.is_file():
            raise InputError(f"{path} does not exist, expected the result of an inference of that scan")
    chosen = files["prob"] if maps else files["seg"]
    return [
        _visit(case, str(path), maps, str(mask), choice)
        for case, path, mask in zip(cases, chosen, files["seg"], strict=True)
    ]


def _visit(case: Mapping[str, Any], lesions: str, is_map: bool, mask: str, choice: Choice) -> Visit:
    record = json_beside(lesions)
    made = read_json(record, "what inference wrote beside its result", dict) if record.is_file() else {}
    threshold = choice.threshold
    if is_map and threshold is None:
        threshold = made.get("threshold", {}).get("value")
        if threshold is None:
            raise InputError(f"{record} tells no threshold of the map beside it, expected one: --threshold 0.5")
    if is_map and not 0 < threshold < 1:
        raise InputError(f"the threshold of {lesions} is {threshold}, expected one above 0 and below 1")
    named = {name: int(value) for value, name in made.get("labels", {}).items()}
    value = choice.lesion_value if choice.lesion_value is not None else named.get("lesion")
    reference = case.get(choice.reference) if choice.reference else None
    return Visit(
        name=case["name"].replace("/", "_"),
        subject=str(case["subject"]),
        visit=str(case["visit"]),
        image=str(case["image"]),
        lesions=str(lesions),
        is_map=is_map,
        mask=str(mask),
        brain_mask=case.get("brain_mask"),
        reference=reference,
        threshold=0.5 if threshold is None else float(threshold),
        lesion_value=value,
        source=f"{made['bundle']} {made.get('version')}" if "bundle" in made else "masks without a record",
    )
