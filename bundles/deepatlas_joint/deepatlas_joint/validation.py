"""Scores of both networks on validation pairs, and what pictures show of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.engines.utils import default_prepare_batch
from monai.handlers import from_engine
from monai.transforms import MapTransform
from torch.nn.functional import one_hot

from common.errors import InputError
from common.geometry import fold_share, voxel_grid, warp
from common.metrics import CaseScores

from .fields import sample_labels
from .joint import JointLoss

_ITEMS = from_engine(["pred", "truth"])


def prepare_pairs(
    batchdata: Mapping[str, torch.Tensor],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``prepare_batch`` of pairs: images and labels, (B, 2, X, Y, Z) each; arguments as for MONAI's."""
    pairs = {"image": batchdata["image"], "label": batchdata["label"]}
    return default_prepare_batch(pairs, device, non_blocking, **kwargs)


def warped_label(label: torch.Tensor, displacement: torch.Tensor, classes: int) -> torch.Tensor:
    """A label map (1, X, Y, Z) warped by a displacement (3, X, Y, Z) in voxels, uint8."""
    points = voxel_grid(tuple(label.shape[1:])).to(displacement.device) + displacement.float()
    return sample_labels(torch.as_tensor(label), points, classes)


class SplitPaird(MapTransform):
    """Take what :class:`deepatlas_joint.network.JointNetwork` found on a pair apart, for pictures and metrics.

    Args:
        keys: its output, (3 + classes, X, Y, Z); beside it come ``segmentation``, (classes, ...), of the fixed image,
            ``fixed`` and ``warped``, images (1, ...), ``fixed_label`` and ``warped_label``, (classes, ...), and
            ``truth``, (4, ...), both images and both labels, for metrics, which take two items.
        classes: background included.
    """

    def __init__(self, keys: KeysCollection, classes: int) -> None:
        super().__init__(keys)
        self.classes = classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            displacement, d["segmentation"] = d[key][:3], d[key][3:]
            d["fixed"], label = d["image"][1:], d["label"]
            d["truth"] = torch.cat([torch.as_tensor(d["image"]).float(), torch.as_tensor(label).float()])
            d["warped"] = warp(d["image"][None, :1].float(), displacement[None].float(), padding="zeros")[0]
            labels = {
                "fixed_label": label[1:],
                "warped_label": warped_label(label[:1], displacement, self.classes),
            }
            for name, values in labels.items():
                d[name] = one_hot(values[0].long(), self.classes).movedim(-1, 0).float()
        return d


class PairScores(CaseScores):
    """Base of means over pairs.

    Args:
        output_transform: engine output -> two items per pair: what the joint network gave, and ``truth``.
        device: as for :class:`common.metrics.CaseScores`.
    """

    def __init__(self, output_transform: Callable = _ITEMS, device: str | torch.device = "cpu") -> None:
        super().__init__(output_transform, device)

    def score(self, prediction: torch.Tensor, reference: torch.Tensor) -> float:
        """Of one pair: (3 + C, X, Y, Z), (4, X, Y, Z)."""
        return self.score_pair(prediction, reference[:2], reference[2:])

    @abstractmethod
    def score_pair(self, output: torch.Tensor, image: torch.Tensor, label: torch.Tensor) -> float:
        """Of one pair: (3 + C, X, Y, Z), (2, X, Y, Z), (2, X, Y, Z); nan leaves it out."""

    def compute(self) -> float:
        """The mean.

        Raises:
            InputError: if no pair could be scored.
        """
        mean = super().compute()
        if np.isnan(mean):
            raise InputError("no validation case has a label, expected some to choose the best weights by")
        return mean


class PairDice(PairScores):
    """Mean Dice over the classes but background: of the segmentation, of the warped labels, or the mean of the two.

    Args:
        classes: background included.
        of: ``segmentation``, ``registration`` or ``both``.
        kwargs: of :class:`PairScores`.

    Raises:
        InputError: if ``of`` is something else.
    """

    def __init__(self, classes: int, of: str = "both", **kwargs: Any) -> None:
        if of not in ("segmentation", "registration", "both"):
            raise InputError(f"of is {of!r}, expected segmentation, registration or both")
        self.classes, self.of = classes, of
        super().__init__(**kwargs)

    def score_pair(self, output: torch.Tensor, image: torch.Tensor, label: torch.Tensor) -> float:
        """Mean over the classes that the fixed image has; nan without labels."""
        found = []
        if self.of != "registration":
            found.append(output[3:].argmax(0, keepdim=True))
        if self.of != "segmentation":
            if not label[0].any():
                return float("nan")
            found.append(warped_label(label[:1], output[:3], self.classes))
        return sum(mean_dice(prediction, label[1:], self.classes) for prediction in found) / len(found)


class PairObjective(PairScores):
    """Minus the unsupervised objective of registration, so the highest is best: similarity and smoothness.

    Args:
        loss: of the training.
        kwargs: of :class:`PairScores`.
    """

    def __init__(self, loss: JointLoss, **kwargs: Any) -> None:
        self.loss = loss
        super().__init__(**kwargs)

    def score_pair(self, output: torch.Tensor, image: torch.Tensor, label: torch.Tensor) -> float:
        """Of one pair."""
        objective = -float(self.loss.of_registration(image[None].float(), output[None, :3].float(), (None, None)))
        if not np.isfinite(objective):  # left out of the mean, a training that diverges would look well
            raise InputError(f"the objective of a validation pair is {objective}, expected a number; try a lower rate")
        return objective


class PairFolds(PairScores):
    """Share of the brain of the fixed image where the map folds, 0 to 1."""

    def score_pair(self, output: torch.Tensor, image: torch.Tensor, label: torch.Tensor) -> float:
        """Of one pair."""
        return fold_share(output[None, :3].float(), image[None, 1:] != 0)


def mean_dice(prediction: torch.Tensor, label: torch.Tensor, classes: int) -> float:
    """Mean over the classes but background that the label map has; nan if it has none.

    Args:
        prediction: labels, (1, X, Y, Z).
        label: likewise.
        classes: background included.
    """
    a, b = (torch.as_tensor(x).flatten().long() for x in (prediction, label))
    both = torch.bincount(a[a == b], minlength=classes)[1:classes].double()
    found, true = (torch.bincount(x, minlength=classes)[1:classes].double() for x in (a, b))
    present = true > 0
    return (2 * both / (found + true))[present].mean().item()
