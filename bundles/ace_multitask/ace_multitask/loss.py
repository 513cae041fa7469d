"""Adaptive cross entropy (ACE) for labels that name a set of classes, and its Dice counterpart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .label_sets import LabelSets, restrict

OBJECTIVES = ("ace_dice", "ace", "ace_patch", "naive_ce", "naive_dice")


def label_set_cross_entropy(
    logits: torch.Tensor,
    codes: torch.Tensor,
    allowed: torch.Tensor,
    gamma: float = 0.0,
    code_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Negative log of the probability that softmax gives to the set of possible classes S.

    At a voxel ``-log sum_{c in S} p_c = logsumexp(z) - logsumexp(z over S)``, the paper's equations 2 and 3. If S holds
    one class this is the cross entropy, if it holds all classes it is 0.

    Args:
        logits: z, (B, C, *spatial).
        codes: (B, 1, *spatial), see :class:`LabelSets`.
        allowed: (codes, C), or (B, codes, C) for a table per sample; bool.
        gamma: of the focal form ``(1 - P)^gamma``, P the summed probability; 0, or 1 and above.
        code_weights: (codes,), weight of voxels in the mean; None for 1, and 0 where all classes are possible.

    Returns:
        Scalar in nats: weighted mean over the voxels of the batch.
    """
    return _cross_entropy(logits.log_softmax(1), codes, allowed, gamma, code_weights)


def _cross_entropy(
    log_p: torch.Tensor,
    codes: torch.Tensor,
    allowed: torch.Tensor,
    gamma: float,
    code_weights: torch.Tensor | None,
) -> torch.Tensor:
    full = allowed.all(-1)
    weights = (~full if code_weights is None else code_weights).to(log_p).expand(len(log_p), -1)
    index = codes.flatten(1).long()
    voxel_weights = (weights * ~full).gather(1, index)
    nll = -restrict(log_p, codes, allowed).logsumexp(1).flatten(1)
    if gamma:
        nll = nll * (-torch.expm1(-nll)).clamp(min=0) ** gamma
    return (nll * voxel_weights).sum() / weights.gather(1, index).sum().clamp(min=1e-8)


def merged_dice(
    probabilities: torch.Tensor, codes: torch.Tensor, groups: DiceGroups, epsilon: float = 1e-5
) -> torch.Tensor:
    """Mean soft Dice loss of the groups."""
    one_hot = torch.nn.functional.one_hot(codes.flatten(1).long(), groups.target.shape[1]).to(probabilities)
    sums = torch.einsum("bcn,bnk->kc", probabilities.flatten(2), one_hot)
    counts = one_hot.sum((0, 1))
    return groups.dice(sums, counts, epsilon)


class DiceGroups:
    """Which codes and classes make up each Dice term."""

    def __init__(self, label_sets: LabelSets, pooled: bool = False) -> None:
        a = label_sets.allowed
        rows = [i for i, v in enumerate(label_sets.value_of_code) if v not in (None, 0) and not a[i].all()]
        self.classes = a[rows]
        inside = ~(a[None] & ~self.classes[:, None]).any(-1)
        apart = ~(a[None] & self.classes[:, None]).any(-1)
        names = label_sets.dataset_of_code
        same = torch.tensor([[(pooled and n is not None) or n == names[r] for n in names] for r in rows])
        self.target = inside & same
        self.domain = (inside | apart) & same
        if pooled:
            keep = [i for i, row in enumerate(self.classes.tolist()) if row not in self.classes[:i].tolist()]
            self.classes, self.target, self.domain = self.classes[keep], self.target[keep], self.domain[keep]

    def dice(self, sums: torch.Tensor, counts: torch.Tensor, epsilon: float) -> torch.Tensor:
        classes, target, domain = (t.to(sums) for t in (self.classes, self.target, self.domain))
        group_sums = classes @ sums.T
        intersection = (group_sums * target).sum(1)
        total = (group_sums * domain).sum(1) + target @ counts
        present = (domain @ counts > 0).to(sums)
        loss = 1 - (2 * intersection + epsilon) / (total + epsilon)
        return (loss * present).sum() / present.sum().clamp(min=1)


class LabelSetLoss(nn.Module):
    """Adaptive cross entropy and merged Dice."""

    def __init__(
        self,
        label_sets: LabelSets,
        scope: str = "dataset",
        ce_weight: float = 1.0,
        dice_weight: float = 1.0,
        gamma: float = 0.0,
        value_weights: Mapping[str, Mapping[str, float]] | None = None,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.scope, self.ce_weight, self.dice_weight, self.gamma = scope, ce_weight, dice_weight, gamma
        self.register_buffer("allowed", label_sets.allowed, persistent=False)
        self.groups = DiceGroups(label_sets, pooled)
        self.register_buffer("code_weights", (~label_sets.allowed.all(1)).float(), persistent=False)
        self.register_buffer(
            "rest",
            torch.tensor([v == 0 for v in label_sets.value_of_code]) & (label_sets.allowed.sum(1) > 1),
            persistent=False,
        )

    def forward(self, logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits (B, C, *spatial) and codes (B, 1, *spatial)."""
        with torch.autocast(logits.device.type, enabled=False):
            log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(1)
            loss = log_p.new_zeros(())
            if self.ce_weight:
                loss = loss + self.ce_weight * _cross_entropy(log_p, codes, self.allowed, self.gamma, self.code_weights)
            if self.dice_weight:
                loss = loss + self.dice_weight * merged_dice(log_p.exp(), codes, self.groups)
        return loss


def make_loss(objective: str, label_sets: LabelSets, **options: object) -> LabelSetLoss:
    """The loss of an experiment's arm by its name."""
    kinds = {
        "ace_dice": lambda: LabelSetLoss(label_sets, **options),
        "ace": lambda: LabelSetLoss(label_sets, dice_weight=0.0, **options),
        "ace_patch": lambda: LabelSetLoss(label_sets, scope="patch", dice_weight=0.0, **options),
        "naive_ce": lambda: LabelSetLoss(label_sets.naive(), dice_weight=0.0, **options),
        "naive_dice": lambda: LabelSetLoss(label_sets.naive(), ce_weight=0.0, pooled=True, **options),
    }
    return kinds[objective]()
