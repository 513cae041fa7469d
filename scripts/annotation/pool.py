"""The scans of a datalist that may be drawn, and those that have been."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from monai.utils import ensure_tuple

from common.data import Case, Datalist, subject_of
from common.errors import InputError
from datalists.results import names_of_results

logger = logging.getLogger(__name__)


class Pool(NamedTuple):
    """Scans of one datalist.

    Attributes:
        unlabeled: cases that may be drawn: of people of whom no scan has a label.
        labeled: cases with a label that somebody drew.
        sequences: what the images of a case are.
        label_names: value -> name, as the datalist has it under ``labels``, without background; empty if it does not.
        result_names: image -> the names that an inference may have given to its results.
    """

    unlabeled: list[Case]
    labeled: list[Case]
    sequences: tuple[str, ...]
    label_names: dict[int, str]
    result_names: dict[str, list[str]]


def read_pool(
    datalist: Datalist, section: str | None = None, sequences: Sequence[str] | None = None, healthy: bool = False
) -> Pool:
    """Scans to choose from: a person who has a drawn scan counts as drawn, and a predicted label as none.

    Args:
        datalist: the scans.
        section: part to choose from; by default ``training`` where there are parts. Those to be judged by are not
            chosen from: who chose them would choose the score.
        sequences: of the images; by default all that the datalist lists.
        healthy: take people who are said to be healthy too, as for tissues; in them there is no lesion to draw.

    Raises:
        InputError: if there is nobody to choose, or the datalist does not say its sequences.
    """
    names = tuple(sequences or datalist.sequences or ())
    if not names:
        raise InputError(f'{datalist} does not say its sequences, expected "sequences": [...] in it, or --sequences')
    if section == "test":
        raise InputError(f"section is {section!r}, expected another one: the people of the test are not to be chosen")
    if section is None and datalist.names:
        section = "training"
    cases = datalist.cases(names, section)
    labeled = [case for case in cases if "label" in case and "label_source" not in case]
    known = {subject_of(case) for case in labeled}
    left = [case for case in cases if subject_of(case) not in known]
    chosen = [case for case in left if healthy or case.get("healthy") is not True]
    if len(chosen) < len(left):
        logger.info(
            "%s: %d scans of healthy people left out, --healthy true takes them", datalist, len(left) - len(chosen)
        )
    if not chosen:
        raise InputError(
            f"{datalist} has nobody left to draw among its {len(cases)} cases, expected a person without a label"
        )
    return Pool(chosen, labeled, names, label_names_of(datalist), names_of_results(datalist, section))


def label_names_of(datalist: Datalist) -> dict[int, str]:
    """Value -> name of the datalist's ``labels``, without background; empty where it has none.

    Raises:
        InputError: if they have another form.
    """
    listed = datalist.header.get("labels", {})
    try:
        return {int(value): str(name) for value, name in listed.items() if int(value) != 0}
    except (AttributeError, TypeError, ValueError) as e:
        raise InputError(f'{datalist} has labels {str(listed)[:80]}, expected {{"1": "lesion", ...}}') from e


def first_image(case: Mapping[str, Any]) -> str:
    """The image whose grid the label lies on."""
    return next(path for path in ensure_tuple(case["image"]) if path is not None)
