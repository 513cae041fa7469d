"""From probabilities to a label map."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform

from common.transforms.plain import like, plain


class BrainLabelsd(MapTransform):
    """Replace each map of probabilities (C, *spatial) in ``keys`` by the most probable label, (1, *spatial), float32.

    Outside of the brain, where all probabilities are 0, it is 0. Inside, background does not win: what lies in the
    brain is known. Wide ventricles would become holes, since fluid is as dark as what lies around the brain.

    Args:
        keys: of the maps; background is the first class.
        background: True lets it win, for classes that leave parts of the brain out.
    """

    def __init__(self, keys: str | Sequence[str], background: bool = False) -> None:
        super().__init__(keys)
        self.background = background

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            p = plain(d[key])
            labels = p.argmax(0) if self.background else torch.where(p.any(0), p[1:].argmax(0) + 1, 0)
            d[key] = like(labels[None].float(), d[key])
        return d
