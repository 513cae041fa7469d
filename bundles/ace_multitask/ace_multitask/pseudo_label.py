"""Second stage: what a label leaves open is filled in by a trained network."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_data_type, convert_to_dst_type

from common.data import write_datalist
from common.errors import InputError

from .label_sets import LabelSets

logger = logging.getLogger(__name__)

COMPLETED = "completed"


def pseudo_labels(
    probabilities: torch.Tensor,
    codes: torch.Tensor,
    allowed: torch.Tensor,
    index: int,
    threshold: float,
    background: bool = True,
) -> torch.Tensor:
    """The class of each voxel among those that its label leaves possible.

    The lesion class where it is possible and reaches its threshold, as in inference; else the most probable of the
    others. It is the hard step of expectation maximization; adaptive cross entropy is the soft one.

    Args:
        probabilities: (B, C, *spatial).
        codes: (B, 1, *spatial), see :class:`LabelSets`.
        allowed: possible classes of every code, (K, C), bool.
        index: the class that has a threshold.
        threshold: its smallest probability.
        background: False keeps class 0 for where all probabilities are 0 or the label says so.

    Returns:
        Indices of joint classes, (B, 1, *spatial), uint8. Where the label names one class, it is this one.

    Reference:
        Phitidis et al., arXiv 2601.20503, find a training on such labels best among six ways to use partial labels.
    """
    possible = allowed[codes[:, 0].int()].movedim(-1, 1)
    others = possible.clone()
    others[:, index] = False
    if not background:
        others[:, 0] &= (probabilities == 0).all(1) | ~others[:, 1:].any(1)
    best = probabilities.masked_fill(~others, -torch.inf).argmax(1, keepdim=True)
    chosen = (probabilities[:, index] >= threshold) | ~others.any(1)
    return torch.where((possible[:, index] & chosen)[:, None], index, best).to(torch.uint8)


class PseudoLabelsd(MapTransform):
    """Replace probabilities (C, *spatial) by :func:`pseudo_labels`.

    Args:
        keys: predictions.
        codes_key: the codes of the case, (1, *spatial), on the grid of the prediction.
        label_sets: the table.
        index: the class that has a threshold.
        threshold: its smallest probability.
        background: False keeps class 0 for where all probabilities are 0 or the label says so.
    """

    def __init__(
        self,
        keys: KeysCollection,
        codes_key: str,
        label_sets: LabelSets,
        index: int,
        threshold: float,
        background: bool = True,
    ) -> None:
        super().__init__(keys)
        self.codes_key = codes_key
        self.allowed = label_sets.allowed
        self.index = index
        self.threshold = threshold
        self.background = background

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        codes = convert_data_type(d[self.codes_key], torch.Tensor)[0][None]
        for key in self.key_iterator(d):
            p = convert_data_type(d[key], torch.Tensor)[0]
            possible = codes.to(p.device), self.allowed.to(p.device)
            label = pseudo_labels(p[None], *possible, self.index, self.threshold, self.background)[0]
            d[key] = convert_to_dst_type(label, d[key], dtype=torch.uint8)[0]
        return d


def as_observations(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases with their ``label`` under the key ``observed``."""
    return [{"observed" if key == "label" else key: value for key, value in case.items()} for case in cases]


def write_pseudo_datalist(
    cases: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
    output_dir: str | Path,
    label_sets: LabelSets,
) -> Path:
    """List the cases with their filled-in labels, as ``datalist.json`` beside these, for the second stage.

    All are of one data set, ``completed``, whose value i is class i. The validation cases stay as they were, each of
    its own data set.

    Args:
        cases: what the network was run on.
        validation: cases to choose the weights of the second stage by.
        output_dir: where ``<name>_label.nii.gz`` were written.
        label_sets: the table of the first stage.

    Raises:
        InputError: if a label is missing, or the table has a data set of that name.
    """
    output_dir = Path(output_dir)
    if COMPLETED in label_sets.datasets:
        raise InputError(f"label_sets has a dataset {COMPLETED}, expected another name: filled-in labels are called so")
    kept = ("image", "brain_mask", "subject")
    items = []
    for case in cases:
        label = output_dir / f"{case['name']}_label.nii.gz"
        if not label.is_file():
            raise InputError(f"{label}: no such file, expected the filled-in label of {case['name']}")
        items.append({key: case[key] for key in kept if key in case} | {"label": str(label), "dataset": COMPLETED})
        items[-1]["label_source"] = "filled in by the first stage"
    values = {str(value): name for value, name in enumerate(label_sets.classes)}
    datasets = label_sets.tables() | {COMPLETED: {"labels": values}}
    path = write_datalist(
        output_dir / "datalist.json",
        {"training": items, "validation": list(validation)},
        header={"label_sets": {"classes": list(label_sets.classes), "datasets": datasets}},
    )
    logger.info("%d scans with filled-in labels in %s", len(items), path)
    return path
