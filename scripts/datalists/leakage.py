"""Nobody by whom a result is judged may have taught it, however long the chain of trainings is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from common.data import Datalist, refuse_pseudo_labels, subject_of
from common.errors import InputError

from .survey import survey

logger = logging.getLogger(__name__)

HELD_OUT = ("validation", "test")  # sections by which a training is judged
SEEN = "seen_by_predictor"  # in a datalist with pseudo-labels: the subjects behind those

Parts = Mapping[str, Sequence[Mapping[str, Any]]]


def held_out(datalists: Sequence[Datalist]) -> dict[str, list[dict[str, Any]]]:
    """Cases that trainings with these datalists will be judged by, their validation and test sections.

    Returns:
        Words for the section -> its cases; empty if no datalist has such a section.

    Raises:
        InputError: if an item has another form, or such a case has a pseudo-label.
    """
    parts = {}
    for datalist in datalists:
        for section in HELD_OUT:
            if section in datalist.names:
                place = f"the {section} section of {datalist}"
                parts[place] = datalist.items(section)
                refuse_pseudo_labels(parts[place], place)
    return parts


def taught_by(datalists: Sequence[Datalist]) -> dict[str, list[dict[str, Any]]]:
    """Cases that a network has learned from, was chosen by or calibrated on: all but those of test sections.

    Where a datalist holds pseudo-labels, :func:`behind_labels` is among the parts.

    Args:
        datalists: those of the trainings and of the calibration.

    Returns:
        Words for the part -> its cases.

    Raises:
        InputError: if an item has another form.
    """
    parts = {}
    for datalist in datalists:
        cases = [case for section, cases in datalist.sections.items() if section != "test" for case in cases]
        parts[f"the training of the predictor ({datalist})"] = cases
        parts |= behind_labels(datalist.header, datalist.path)
    return parts


def behind_labels(header: Mapping[str, Any], path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Who taught the networks that made the pseudo-labels of a datalist, by their subject alone.

    Args:
        header: of the datalist.
        path: where it is, for messages.

    Returns:
        Words for the part -> ``{"subject": ...}``; empty where there are none.
    """
    seen = [{"subject": subject} for subject in header.get(SEEN, [])]
    return {f"the training of the network behind the labels of {path}": seen} if seen else {}


def learned_from(datalists: Sequence[Datalist]) -> dict[str, list[dict[str, Any]]]:
    """Cases that a training with these datalists learns from, and those behind their labels; as :func:`held_out`."""
    parts = {}
    for datalist in datalists:
        kept = {name: items for name, items in datalist.sections.items() if name not in HELD_OUT}
        parts |= {f"the {section} section of {datalist}": items for section, items in kept.items()}
        parts |= behind_labels(datalist.header, datalist.path)
    return parts


def refuse_leaks(used: Parts, judges: Parts, num_workers: int | None = None) -> None:
    """Refuse a person on both sides: one subject, or one image under two names.

    ``sub-01`` and ``01`` are one subject. Images that are not there are compared by subject alone, with a warning.

    Args:
        used: words for a part -> its cases, whom something learns from or has learned from.
        judges: likewise, those that it will be judged by, as of :func:`held_out`.
        num_workers: processes that read images; as many as cores by default.

    Raises:
        InputError: naming the subject and the two parts, or the two files with the same voxels.
    """
    place_of = {_person(case): place for place, cases in judges.items() for case in cases}
    for part, cases in used.items():
        for case in cases:
            place = place_of.get(_person(case))
            if place is not None:
                raise InputError(
                    f"subject {subject_of(case)} is in {part} and in {place}, expected in one of them (or under "
                    "another name, if it is somebody else)"
                )
    images_used, images_held = _images(used), _images(judges)
    if not images_used or not images_held:
        return
    facts = survey([{"image": path} for path in {**images_used, **images_held}], num_workers)
    held = {facts[path].fingerprint: path for path in images_held}
    for path, part in images_used.items():
        other = held.get(facts[path].fingerprint)
        if other is not None:
            raise InputError(
                f"{path} in {part} and {other} in {images_held[other]} hold the same voxels, expected one of them: it "
                "is one person under two names"
            )


def _person(case: Mapping[str, Any]) -> str:
    return subject_of(case).removeprefix("sub-")


def _images(parts: Parts) -> dict[str, str]:
    """Image file -> words for the part that it is in."""
    found = {
        path: part
        for part, cases in parts.items()
        for case in cases
        for path in ensure_tuple(case.get("image"))
        if path is not None
    }
    there = {path: part for path, part in found.items() if Path(path).is_file()}
    if len(there) < len(found):
        missing = next(path for path in found if path not in there)
        logger.warning("%d images are not there and compared by subject only: %s", len(found) - len(there), missing)
    return there
