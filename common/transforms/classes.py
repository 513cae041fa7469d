"""From class probabilities to one label map and the maps beside it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform

from .plain import like, plain


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Shannon entropy over the classes at each voxel, in nats: 0 where one class is certain, log C where none is.

    Args:
        probabilities: (C, *spatial), each in [0, 1].

    Returns:
        (1, *spatial); 0 where all probabilities are 0.
    """
    return torch.special.entr(probabilities).sum(dim=0, keepdim=True)


class EntropyMapd(MapTransform):
    """Put :func:`entropy` of the probabilities in ``keys`` under ``names``."""

    def __init__(self, keys: str | Sequence[str], names: str = "entropy") -> None:
        super().__init__(keys)
        self.names = names

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.names] = like(entropy(plain(d[key])), d[key])
        return d
