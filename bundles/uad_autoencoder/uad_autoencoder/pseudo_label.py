"""From the teacher's masks to the student's training set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from common.data import list_cases, write_datalist
from common.errors import InputError

logger = logging.getLogger(__name__)


def write_pseudo_datalist(cases: Sequence[dict[str, Any]], output_dir: str | Path, source: str) -> Path:
    """List the scans with the masks that the teacher wrote for them, as ``datalist.json`` beside the masks.

    Labels that the cases may have had are not carried over: the point of the method is to do without them.

    Args:
        cases: what the teacher was run on.
        output_dir: where it wrote ``<name>_seg.nii.gz``.
        source: how the masks came about; kept in every item.

    Raises:
        InputError: if a mask is missing.
    """
    output_dir = Path(output_dir)
    kept = ("image", "brain_mask", "subject")
    items = []
    for case in cases:
        mask = output_dir / f"{case['name']}_seg.nii.gz"
        if not mask.is_file():
            raise InputError(f"{mask}: no such file, expected the pseudo-label of {case['name']}")
        items.append({**{key: case[key] for key in kept if key in case}, "label": str(mask), "label_source": source})
    path = write_datalist(output_dir / "datalist.json", {"training": items})
    logger.info("%d pseudo-labelled scans in %s", len(items), path)
    return path


def training_cases(
    labelled: Sequence[dict[str, Any]],
    pseudo_datalist_file: str | Path | None = None,
    use_labels: bool = True,
    sequences: Sequence[str] = ("FLAIR",),
    volumes_per_epoch: int | None = None,
) -> list[dict[str, Any]]:
    """The student's training set: labelled scans, pseudo-labelled scans, or both in one pool as in the paper.

    Args:
        labelled: scans with drawn masks.
        pseudo_datalist_file: written by :func:`write_pseudo_datalist`; None for none.
        use_labels: False leaves the drawn masks out (the paper's arm S).
        sequences: as for :func:`common.data.list_cases`.
        volumes_per_epoch: visits of scans in an epoch, so that training sets of any size get equally long epochs; every
            scan in turn, patches drawn anew. None visits each once.

    Raises:
        InputError: if nothing is left to train on, a scan is both labelled and pseudo-labelled, or an epoch is too
            short to visit every scan.
    """
    cases = list(labelled) if use_labels else []
    if pseudo_datalist_file is not None:
        pseudo = list_cases(datalist_file=pseudo_datalist_file, sequences=sequences, require=["label"])
        both = _files(cases) & _files(pseudo)
        if both:
            raise InputError(f"{min(both)} has a drawn and a pseudo-label, expected one of them")
        cases += pseudo
    if not cases:
        raise InputError("use_labels is false and no pseudo_datalist_file is given, expected labels to train on")
    visits = volumes_per_epoch or len(cases)
    if visits < len(cases):
        raise InputError(f"volumes_per_epoch is {visits} with {len(cases)} scans, expected {len(cases)} or more")
    return [cases[i % len(cases)] for i in range(visits)]


def _files(cases: Sequence[dict[str, Any]]) -> set[Path]:
    return {Path(path).resolve() for case in cases for path in ensure_tuple(case["image"])}
