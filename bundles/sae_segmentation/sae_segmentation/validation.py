"""What a validation without labels has: the evidence, and pictures of segmentation and reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from math import isfinite
from typing import Any

import torch
from monai.config import KeysCollection
from monai.handlers import from_engine
from monai.transforms import MapTransform

from common.errors import InputError
from common.metrics import CaseScores

from .loss import EvidenceLowerBound

_ITEMS = from_engine(["pred", "image"])


class SplitOutputd(MapTransform):
    """Take the logits and the reconstruction out of the output of the auto-encoder.

    Args:
        keys: output, (classes + classes + images, *spatial); ``segmentation``, (classes, *spatial), and
            ``reconstruction``, (images, *spatial), are put beside it.
        classes: background included.
    """

    def __init__(self, keys: KeysCollection, classes: int) -> None:
        super().__init__(keys)
        self.classes = classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d["segmentation"], d["reconstruction"] = d[key][: self.classes], d[key][2 * self.classes :]
        return d


class MeanEvidence(CaseScores):
    """Mean evidence lower bound of the validation scans, up to constants: minus the loss, so the highest is best.

    Args:
        loss: of the training; its s^2 is used as it stands.
        output_transform: engine output -> two items per scan: the auto-encoder's output and its input.
        device: as for :class:`common.metrics.CaseScores`.
    """

    def __init__(
        self, loss: EvidenceLowerBound, output_transform: Callable = _ITEMS, device: str | torch.device = "cpu"
    ) -> None:
        self.loss = loss
        super().__init__(output_transform, device)

    def score(self, prediction: torch.Tensor, reference: torch.Tensor) -> float:
        """Nats per voxel of one scan.

        Raises:
            InputError: if it is not finite; left out of the mean, a training that diverges would look well.
        """
        was_training = self.loss.training
        self.loss.eval()
        evidence = -float(self.loss(prediction[None], reference[None]))
        self.loss.train(was_training)
        if not isfinite(evidence):
            raise InputError(
                f"the evidence of a validation scan is {evidence}, expected a number; try a lower learning_rate"
            )
        return evidence
