"""Second stage: what a label leaves open is filled in by a trained network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from .label_sets import LabelSets


def pseudo_labels(values: torch.Tensor, codes: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """The most probable class among those that the label of a voxel leaves possible.

    It is the hard step of expectation maximization; adaptive cross entropy is the soft one.

    Args:
        values: logits or probabilities, (B, C, *spatial).
        codes: (B, 1, *spatial), see :class:`LabelSets`.
        allowed: possible classes of every code, (K, C), bool.

    Returns:
        Indices of joint classes, (B, 1, *spatial), uint8. Where the label names one class, it is this one.

    Reference:
        Phitidis et al., arXiv 2601.20503, find a training on such labels best among six ways to use partial labels.
    """
    possible = allowed[codes[:, 0].int()].movedim(-1, 1)
    return values.masked_fill(~possible, -torch.inf).argmax(1, keepdim=True).to(torch.uint8)


class PseudoLabelsd(MapTransform):
    """Put :func:`pseudo_labels` in the place of logits or probabilities (C, *spatial).

    Args:
        keys: predictions.
        codes_key: the codes of the case, (1, *spatial), on the grid of the prediction.
        label_sets: the table.
    """

    def __init__(self, keys: KeysCollection, codes_key: str, label_sets: LabelSets) -> None:
        super().__init__(keys)
        self.codes_key = codes_key
        self.allowed = label_sets.allowed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        codes = torch.as_tensor(d[self.codes_key])[None]
        for key in self.key_iterator(d):
            values = torch.as_tensor(d[key])
            label = pseudo_labels(values[None], codes.to(values.device), self.allowed.to(values.device))[0]
            d[key] = convert_to_dst_type(label, d[key], dtype=torch.uint8)[0]
        return d
