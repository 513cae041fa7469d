"""What a validation without labels has: the evidence, and pictures of segmentation and reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.config import KeysCollection
from monai.transforms import MapTransform

from .loss import EvidenceLowerBound


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


class MeanEvidence(Metric):
    """Mean evidence lower bound of the validation scans, up to constants: minus the loss, so the highest is best.

    Args:
        loss: of the training; its s^2 is used as it stands.
        output_transform: engine output -> (outputs of the auto-encoder, scans), lists of volumes.
        device: where the sum is kept.
    """

    def __init__(
        self, loss: EvidenceLowerBound, output_transform: Callable = lambda output: output, device: str = "cpu"
    ) -> None:
        self.loss = loss
        super().__init__(output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all scans; ignite calls it when an epoch starts."""
        self._sum = torch.tensor(0.0, dtype=torch.float64, device=self._device)
        self._count = torch.tensor(0, device=self._device)

    @reinit__is_reduced
    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """Score the scans of one iteration."""
        was_training = self.loss.training
        self.loss.eval()
        for decoded, scan in zip(*output, strict=True):
            self._sum -= float(self.loss(decoded[None], scan[None]))
            self._count += 1
        self.loss.train(was_training)

    @sync_all_reduce("_sum", "_count")
    def compute(self) -> float:
        """Nats per voxel."""
        return float(self._sum / self._count)
