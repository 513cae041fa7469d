"""Losses of the auto-encoder and of the U-Net."""

from collections.abc import Mapping

import torch
from ignite.engine import Engine, Events
from monai.losses import DiceLoss
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits


def gradient_difference(image: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """How much the edges of two images differ: the paper's equation 2.

    At every pixel and along every axis it is ``| |difference to the neighbor in image| - |the same in the
    reconstruction| |``; mean over batch, channels and neighbors, summed over the axes.

    Args:
        image, reconstruction: (B, C, *spatial).

    Returns:
        Scalar, in the unit of the image.

    Reference:
        Mathieu et al., "Deep multi-scale video prediction beyond mean square error", ICLR 2016.
    """
    total = image.new_zeros(())
    for axis in range(2, image.ndim):
        total = total + (image.diff(dim=axis).abs() - reconstruction.diff(dim=axis).abs()).abs().mean()
    return total


class ReconstructionLoss(nn.Module):
    """l1 + l2 + lambda * gradient difference, the paper's equation 1.

    The paper does not say whether sums or means are taken; here all three are means, l2 the mean squared error, so
    only their ratio is the paper's.

    Args:
        gdl_weight: the paper's lambda; :class:`GradientDifferenceSchedule` sets it during a training.

    Reference:
        Baur et al., MIDL 2019.
    """

    def __init__(self, gdl_weight: float = 0.0) -> None:
        super().__init__()
        self.gdl_weight = gdl_weight

    def forward(self, reconstruction: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Scalar loss of a reconstruction and the image it is of, both (B, C, *spatial).

        Raises:
            ValueError: if the shapes differ.
        """
        if image.shape != reconstruction.shape:
            raise ValueError(
                f"image {tuple(image.shape)} and reconstruction {tuple(reconstruction.shape)} differ in shape"
            )
        difference = reconstruction - image
        loss = difference.abs().mean() + difference.square().mean()
        if self.gdl_weight:
            loss = loss + self.gdl_weight * gradient_difference(image, reconstruction)
        return loss


class GradientDifferenceSchedule:
    """Switch the gradient difference on after the first epochs, as the paper does (30 of 150 without it).

    Args:
        loss: whose ``gdl_weight`` is set.
        first_epoch: from this epoch on, counted from 1, the weight holds.
        weight: the paper's lambda.
    """

    def __init__(self, loss: ReconstructionLoss, first_epoch: int = 31, weight: float = 100.0) -> None:
        self.loss = loss
        self.first_epoch = first_epoch
        self.weight = weight

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the weight of the epoch that begins; a function of its number, so a resumed training is right."""
        self.loss.gdl_weight = self.weight if engine.state.epoch >= self.first_epoch else 0.0


class SegmentationLoss(nn.Module):
    """Dice and cross-entropy of each patch, times the weight of the scan that it is from; the mean over the patches.

    A soft label says how sure the teacher is, voxel by voxel, which Dice does not ask for: there cross-entropy stands
    alone. With all weights 1 and no soft label this is MONAI's ``DiceCELoss(sigmoid=True)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, reduction="none")

    def forward(self, logits: torch.Tensor, target: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scalar loss.

        Args:
            logits: (B, 1, *spatial).
            target: ``label`` (B, 1, *spatial) in [0, 1]; ``weight`` (B,); ``soft`` (B,), true where the label is soft.

        Raises:
            ValueError: if the shapes of logits and label differ.
        """
        label = target["label"]
        if logits.shape != label.shape:
            raise ValueError(f"logits {tuple(logits.shape)} and label {tuple(label.shape)} differ in shape")
        weight, soft = (
            target[key].to(logits.dtype).reshape(-1, *[1] * (logits.ndim - 1)) for key in ("weight", "soft")
        )
        dice = weight * (1 - soft) * self.dice(logits, label)
        cross_entropy = weight * binary_cross_entropy_with_logits(logits, label, reduction="none")
        return dice.mean() + cross_entropy.mean()
