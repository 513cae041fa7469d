"""Thresholds found on validation cases or on healthy scans, from the maps that a bundle wrote."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.data import refuse_pseudo_labels
from common.errors import InputError
from common.metrics import best_dice, pooled_dice, threshold_for_false_positive_rate
from common.transforms import BrainMaskd, CheckLabeld, LoadScand

DIGITS = 4  # significant ones of the threshold that is kept

Case = dict[str, Any]


class Calibration(NamedTuple):
    """A threshold, and the sentence that says where it came from."""

    threshold: float
    source: str


def check_cases(cases: Sequence[Case], criterion: str, label_value: int | None = None) -> None:
    """Refuse cases that a criterion cannot use, before the network runs on them; arguments as for :func:`calibrate`.

    Raises:
        InputError: if no label has a lesion or one is a pseudo-label, or for ``false_positive_rate`` a case is not
            healthy.
    """
    if criterion == "best_dice":
        refuse_pseudo_labels(cases, "the cases to calibrate with")
        if not any(_label(case, label_value).any() for case in cases):
            raise InputError(
                f"no label of the {_counted(cases)} has a lesion, expected one to calibrate with best_dice"
            )
        return
    for case in cases:
        if case.get("healthy") is False or ("label" in case and _label(case, label_value).any()):
            raise InputError(f"{case['name']} has lesions, expected healthy scans to calibrate a false-positive rate")


def calibrate(
    cases: Sequence[Case],
    output_dir: str | Path,
    criterion: str,
    rate: float | None = None,
    data: str = "these cases",
    label_value: int | None = None,
    ignore_value: int | None = None,
) -> Calibration:
    """Find the threshold of maps on disk.

    Args:
        cases: items of :func:`common.data.list_cases`, with labels for ``best_dice``, healthy ones for the rate.
        output_dir: holds ``<name>_prob.nii.gz`` of each case.
        criterion: ``best_dice``, the threshold of the largest Dice over the brain voxels of all cases together; or
            ``false_positive_rate``, the smallest threshold that at most a share ``rate`` of the brain voxels reaches.
        rate: for ``false_positive_rate``, between 0 and 1.
        data: what the data set is called.
        label_value: the value in the labels that the map scores; None for labels of 0 and 1 only.
        ignore_value: voxels with this value in the labels are left out.

    Returns:
        The threshold, rounded to four significant digits, and its source with the value that it reaches.

    Raises:
        InputError: if there is no lesion voxel, or no threshold keeps the rate.
    """
    data = re.sub(r"[$@%\s]+", " ", data).strip()  # it goes into a config, where these signs are followed
    brains = [_brain(case) & _decided(case, ignore_value) for case in cases]
    maps = (_read(Path(output_dir) / f"{case['name']}_prob.nii.gz") for case in cases)
    scores = [values[brain] for values, brain in zip(maps, brains, strict=True)]  # 6 MB of a head at 1 mm
    if criterion == "best_dice":
        labels = [_label(case, label_value)[brain] for case, brain in zip(cases, brains, strict=True)]
        threshold = _rounded(best_dice(scores, labels)[1], up=False)
        reached = pooled_dice([values >= threshold for values in scores], labels)
        return Calibration(threshold, f"best pooled Dice, {reached:.3f}, in the brain of {_counted(cases)} ({data})")
    threshold = _rounded(threshold_for_false_positive_rate(scores, rate), up=True)
    reached = np.concatenate([values >= threshold for values in scores]).mean()
    sentence = f"false-positive rate {rate:g}, {reached:.3g} reached, in the brain of {_counted(cases, 'healthy scan')}"
    return Calibration(threshold, f"{sentence} ({data})")


def _read(path: str | Path) -> np.ndarray:
    """Voxels of a map or mask, (X, Y, Z); all of them may be zero."""
    return LoadScand("scan", may_be_empty="scan")({"scan": path})["scan"][0].numpy()


def _label(case: Case, label_value: int | None = None) -> np.ndarray:
    """Mask of the reference: where the label has this value, or is 1 where there is nothing but 0 and 1."""
    label = LoadScand("label")(case)
    if label_value is not None:
        return label["label"][0].numpy() == label_value
    return CheckLabeld("label")(label)["label"][0].numpy() > 0


def _decided(case: Case, ignore_value: int | None) -> np.ndarray | bool:
    """Where the label does not have the value that says nothing."""
    return True if ignore_value is None else LoadScand("label")(case)["label"][0].numpy() != ignore_value


def _brain(case: Case) -> np.ndarray:
    """Where the bundle looks: the brain mask of the case, else where its first image is not 0."""
    loaded = LoadScand("brain_mask", allow_missing_keys=True)(LoadScand("image")(case))
    return BrainMaskd("image", largest_negative_share=None)(loaded)["brain_mask"][0].numpy() > 0


def _rounded(value: float, up: bool) -> float:
    """Four significant digits, not below the value with ``up``, else not above it, as a float32 map is compared."""
    if value == 0:
        return 0.0
    places = DIGITS - 1 - math.floor(math.log10(abs(value)))
    rounded = round(float(value), places)
    beyond = np.float32(rounded) < np.float32(value) if up else np.float32(rounded) > np.float32(value)
    return round(rounded + (1 if up else -1) * 10.0**-places, places) if beyond else rounded


def _counted(cases: Sequence[Case], what: str = "case") -> str:
    return f"{len(cases)} {what}" + "s" * (len(cases) > 1)
