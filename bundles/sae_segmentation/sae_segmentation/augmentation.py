"""Scanners that the training has not seen: other gray values of the same anatomy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from common.transforms import piecewise_linear

KNOTS = np.linspace(0, 1, 6)
SMALLEST_STEP = 0.02  # of the curve between two knots, so that it rises


class RandGreyValuesd(RandomizableTransform, MapTransform):
    """Draw a rising curve of the gray values, a gain and a smooth bias field for every image of a scan.

    The curve goes through 0 and through five knots at 0.2, 0.4, ..., 1, each moved by a normal number. The logarithm of
    the field is a quadratic polynomial of the place in the patch. What is 0 stays 0, and nothing comes above 1.

    Args:
        keys: scans (images + classes, *spatial), plain tensors, intensities of 0 to 1, 0 outside the brain.
        images: how many channels are images; the others, the prior, stay as they are.
        curve: sd of the knots.
        gain: largest change of all intensities, a share.
        bias: sd of the coefficients of the field.
        prob: share of the patches that are changed.
    """

    def __init__(
        self,
        keys: KeysCollection,
        images: int = 1,
        curve: float = 0.04,
        gain: float = 0.05,
        bias: float = 0.03,
        prob: float = 1.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.images, self.curve, self.gain, self.bias = images, curve, gain, bias

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            self.randomize(None)
            if not self._do_transform:
                continue
            scan = d[key].clone()
            for image in scan[: self.images]:
                image.copy_(self._changed(image))
            d[key] = scan
        return d

    def _changed(self, image: torch.Tensor) -> torch.Tensor:
        """One image (*spatial) with numbers drawn for it."""
        curve = np.append(0, KNOTS[1:] + self.curve * self.R.standard_normal(len(KNOTS) - 1))
        steps = np.diff(curve).clip(min=SMALLEST_STEP)
        changed = piecewise_linear(image, KNOTS, np.append(0, steps.cumsum()))
        changed = changed * float(1 + self.gain * self.R.uniform(-1, 1)) * self._field(image.shape)
        return torch.where(image != 0, changed.clamp(0, 1), image)

    def _field(self, shape: torch.Size) -> torch.Tensor:
        axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
        terms = [*axes, *(a * b for a, b in combinations_with_replacement(axes, 2))]
        weights = self.bias * self.R.standard_normal(len(terms))
        return torch.exp(sum(float(w) * term for w, term in zip(weights, terms, strict=True)))
