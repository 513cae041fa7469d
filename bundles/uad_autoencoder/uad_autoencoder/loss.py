"""Reconstruction loss of the auto-encoder."""

import torch
from ignite.engine import Engine, Events
from torch import nn


def gradient_difference(image: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """How much the edges of two images differ: the paper's equation 2.

    At every pixel and along every axis it is ``| |difference to the neighbour in image| - |the same in the
    reconstruction| |``; mean over batch, channels and neighbours, summed over the axes.

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
