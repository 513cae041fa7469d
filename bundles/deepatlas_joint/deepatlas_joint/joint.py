"""Alternating training: registration against a frozen segmentation network, then the other way round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.engines.trainer import Trainer
from monai.inferers import Inferer, SimpleInferer
from torch import nn
from torch.utils.data import DataLoader

from common.engines.checkpoints import bare
from common.geometry import warp

from .loss import anatomy_loss, segmentation_loss

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class JointLoss(nn.Module):
    """Both objectives of the paper, with their weights.

    registration: ``L_i(I_m o Phi, I_t) + lambda_r L_r(u) + lambda_a L_a(S_m o Phi, S_t)``, equation 1.
    segmentation: ``lambda_a L_a + lambda_sp L_sp``, by the table of cases in :meth:`of_segmentation`.

    Args:
        classes: background included.
        similarity: L_i of warped and fixed image.
        smoothness: L_r of the displacement in voxels.
        smoothness_weight: lambda_r.
        anatomy_weight: lambda_a.
        supervised_weight: lambda_sp.
    """

    def __init__(
        self,
        classes: int,
        similarity: Loss,
        smoothness: Callable[[torch.Tensor], torch.Tensor],
        smoothness_weight: float = 1.0,
        anatomy_weight: float = 1.0,
        supervised_weight: float = 3.0,
    ) -> None:
        super().__init__()
        self.classes, self.similarity, self.smoothness = classes, similarity, smoothness
        self.smoothness_weight, self.anatomy_weight = smoothness_weight, anatomy_weight
        self.supervised_weight = supervised_weight

    def of_registration(
        self, pair: torch.Tensor, displacement: torch.Tensor, anatomies: Sequence[torch.Tensor | None]
    ) -> torch.Tensor:
        """Equation 1, scalar.

        Args:
            pair: moving and fixed image, (1, 2, X, Y, Z).
            displacement: (1, 3, X, Y, Z), voxels.
            anatomies: of moving and fixed image, labels (1, 1, ...) or probabilities (1, C, ...) of the other network;
                None where neither is known, which leaves the term out.
        """
        loss = self.similarity(warp(pair[:, :1], displacement, padding="zeros"), pair[:, 1:])
        loss = loss + self.smoothness_weight * self.smoothness(displacement)
        moving, fixed = anatomies
        if moving is not None and fixed is not None and self.anatomy_weight > 0:
            loss = loss + self.anatomy_weight * anatomy_loss(moving, displacement, fixed, self.classes)
        return loss

    def of_segmentation(
        self,
        logits: Sequence[torch.Tensor],
        displacement: torch.Tensor | None,
        labels: Sequence[torch.Tensor | None],
    ) -> torch.Tensor:
        """Segmentation objective, scalar.

        | labeled | L_a | L_sp |
        | --- | --- | --- |
        | moving | warped label against predicted fixed | moving |
        | fixed | warped prediction of moving against label | fixed |
        | both | none: it would not depend on the predictions | both, in the paper the moving one |

        Args:
            logits: of moving and fixed image, (1, C, X, Y, Z) each.
            displacement: (1, 3, X, Y, Z), voxels; None leaves L_a out.
            labels: (1, 1, X, Y, Z) or None of each, one at least.
        """
        supervised = [
            segmentation_loss(logit, label) for logit, label in zip(logits, labels, strict=True) if label is not None
        ]
        loss = self.supervised_weight * torch.stack(supervised).mean()
        if displacement is None or len(supervised) == 2:
            return loss
        moving, fixed = (
            logit.float().softmax(1) if label is None else label for logit, label in zip(logits, labels, strict=True)
        )
        return loss + self.anatomy_weight * anatomy_loss(moving, displacement, fixed, self.classes)


class JointTrainer(Trainer):
    """One epoch is a block: steps of the registration network, then steps of the segmentation network.

    The network that does not learn is in evaluation mode and gets no gradient. As teacher of registration the
    segmentation network is asked once per block for each image without a label, since it changes only at the end of
    the block; its probabilities are kept as float16.

    Args:
        device: where the networks run.
        max_epochs: number of blocks.
        train_data_loader: pairs of :class:`deepatlas_joint.pairs.PairDataset`, one a batch, in the order of
            :class:`deepatlas_joint.pairs.PairSampler`.
        registration: pair to displacement.
        segmentation: image to logits.
        optimizer: of both networks; one without gradients is left as it is.
        loss: see :class:`JointLoss`.
        registration_steps: per epoch.
        teacher: let the segmentation network's predictions guide registration where labels are missing. False is for
            networks trained apart: registration then learns from labels of both images, if there are any.
        anatomy: let the registration network teach segmentation. False gives a plain supervised network.
        inferer: how a network is called; the plain call by default.
        flip: probability that a pair is mirrored left to right.
        train_handlers: handlers.

    The output of a step is ``[{"loss": scalar}]``, as decollated, which is what MONAI's tracking reads.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        registration: nn.Module,
        segmentation: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: JointLoss,
        registration_steps: int,
        teacher: bool = True,
        anatomy: bool = True,
        inferer: Inferer | None = None,
        flip: float = 0.5,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(device, max_epochs, train_data_loader, handlers=train_handlers, decollate=False)
        self.registration, self.segmentation = registration, segmentation
        self.optimizer, self.loss = optimizer, loss
        self.registration_steps, self.teacher, self.anatomy = registration_steps, teacher, anatomy
        self.inferer, self.flip = inferer or SimpleInferer(), flip
        self.predictions: dict[int, torch.Tensor] = {}
        self.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.predictions.clear())

    def _iteration(self, engine: JointTrainer, batch: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        pair = batch["image"].to(self.state.device)
        labels = [
            batch["label"][:, i : i + 1].to(self.state.device) if batch["labeled"][0, i] else None for i in range(2)
        ]
        mirrored = torch.rand(()) < self.flip
        step = (engine.state.iteration - 1) % engine.state.epoch_length
        self.optimizer.zero_grad(set_to_none=True)
        if step < self.registration_steps:
            anatomies = [
                self._predicted(int(index), pair[:, i : i + 1]) if label is None and self.teacher else label
                for i, (index, label) in enumerate(zip(batch["index"][0], labels, strict=True))
            ]
            loss = self._registration_step(*_mirrored(mirrored, pair, anatomies))
        else:
            loss = self._segmentation_step(*_mirrored(mirrored, pair, labels))
        loss.backward()
        self.optimizer.step()
        return [{"loss": loss.detach()}]

    def _registration_step(self, pair: torch.Tensor, anatomies: list[torch.Tensor | None]) -> torch.Tensor:
        self.registration.train()
        return self.loss.of_registration(pair, self.inferer(pair, self.registration), anatomies)

    def _segmentation_step(self, pair: torch.Tensor, labels: list[torch.Tensor | None]) -> torch.Tensor:
        displacement = None
        unlabeled = [label is None for label in labels]
        if self.anatomy and any(unlabeled):
            teacher = bare(self.registration).eval()
            with torch.no_grad():
                displacement = self.inferer(pair, teacher)
        self.segmentation.train()
        if displacement is None:  # what has no label has no say
            wanted = [i for i in range(2) if not unlabeled[i]]
        else:
            wanted = [0, 1]
        logits = self.inferer(torch.cat([pair[:, i : i + 1] for i in wanted]), self.segmentation)
        logits = dict(zip(wanted, logits.split(1), strict=True))
        return self.loss.of_segmentation([logits[i] for i in wanted], displacement, [labels[i] for i in wanted])

    @torch.no_grad()
    def _predicted(self, index: int, image: torch.Tensor) -> torch.Tensor:
        """Probabilities (1, C, X, Y, Z) of a training image, from the network as it was when the block began."""
        if index not in self.predictions:
            teacher = bare(self.segmentation).eval()
            self.predictions[index] = self.inferer(image, teacher).float().softmax(1).half()
        return self.predictions[index]


def _mirrored(
    mirrored: bool, pair: torch.Tensor, anatomies: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """A pair and its anatomies, left and right exchanged or not; the first spatial axis runs to the right."""
    if not mirrored:
        return pair, list(anatomies)
    return pair.flip(2), [None if anatomy is None else anatomy.flip(2) for anatomy in anatomies]
