"""Adaptive cross entropy (ACE) for labels that leave several classes possible, and the Dice loss that goes with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from common.errors import InputError

from .label_sets import LabelSets

# objective -> options of LabelSetLoss; the naive ones take the background of every data set at its word
OBJECTIVES: dict[str, dict[str, Any]] = {
    "ace_dice": {},
    "ace": {"dice_weight": 0.0},
    "ace_patch": {"dice_weight": 0.0, "scope": "patch"},
    "naive_ce": {"dice_weight": 0.0},
    "naive_dice": {"ce_weight": 0.0, "pooled": True},
}


def label_set_cross_entropy(
    logits: torch.Tensor,
    codes: torch.Tensor,
    allowed: torch.Tensor,
    gamma: float = 0.0,
    code_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross entropy of labels that leave a set S of classes possible: the paper's H_A with any S.

    At a voxel it is ``-log P`` with ``P = sum_{c in S} softmax(z)_c``, never formed from P itself, so no logit is too
    large for it. With one class in S it is the cross entropy, with all of them it is 0.

    Args:
        logits: z, (B, C, *spatial); float16 and bfloat16 are worked on in float32.
        codes: (B, 1, *spatial), numbers of rows of ``allowed``; see :class:`LabelSets`.
        allowed: S of every code, bool, (K, C), or (B, K, C) for a table per sample.
        gamma: exponent of the focal form ``-(1 - P)^gamma log P``; 0, or 1 and above.
        code_weights: (K,), weight of a voxel in the mean; by default 0 where S holds all classes and 1 elsewhere.

    Returns:
        Scalar in nats, the weighted mean over the voxels of the batch; 0 if all weights there are 0.

    Raises:
        ValueError: if shapes do not fit each other, or ``gamma`` lies between 0 and 1, where the gradient is infinite.

    Reference:
        Roulet et al., "Joint Learning of Brain Lesion and Anatomy Segmentation from Heterogeneous Datasets", MIDL 2019.
        The paper divides by all voxels; here those of which nothing is known do not count.
    """
    weights = _code_weights(allowed) if code_weights is None else code_weights
    with torch.autocast(logits.device.type, enabled=False):
        log_p_set, _, counts = _terms(logits, codes, allowed)
        return _cross_entropy(log_p_set, codes, counts, weights, gamma)


def merged_dice(
    logits: torch.Tensor, codes: torch.Tensor, label_sets: LabelSets, pooled: bool = False, epsilon: float = 1e-5
) -> torch.Tensor:
    """Soft Dice loss that merges first: the classes behind one label value are one group.

    Of every group, ``1 - (2 sum PY + epsilon) / (sum P + sum Y + epsilon)``: P is the summed probability of its
    classes, Y whether the voxel is known to be in it. The sums run over the voxels of the batch whose data set has the
    group and whose label decides it; a group without such a voxel is left out. The groups of a data set are what its
    foreground values stand for.

    Args:
        logits: (B, C, *spatial).
        codes: (B, 1, *spatial).
        label_sets: the table.
        pooled: let the voxels of all data sets decide on every group, as if the batch had one source.
        epsilon: in numerator and denominator, as in MONAI.

    Returns:
        Scalar, the mean over the groups.
    """
    with torch.autocast(logits.device.type, enabled=False):
        _, sums, counts = _terms(logits, codes, label_sets.allowed.to(logits.device))
        return _dice(sums, counts, *(table.to(sums) for table in _dice_groups(label_sets, pooled)), epsilon)


class LabelSetLoss(nn.Module):
    """``ce_weight * label_set_cross_entropy + dice_weight * merged_dice``, one softmax for both.

    Args:
        label_sets: the table.
        scope: ``dataset``: the rest of a data set, its value 0, is all classes that it does not annotate. ``patch``:
            the rest is all classes but those that occur in the patch, as the paper's equation 4 has it; a patch of
            the lesion set without a lesion then says nothing. It concerns the cross entropy only.
        ce_weight, dice_weight: of the two terms; the paper has (1, 0).
        gamma: focal exponent of the cross entropy.
        value_weights: data set -> label value -> weight in the cross entropy; 1 for what is not named.
        pooled: of the Dice term, see :func:`merged_dice`.

    Raises:
        InputError: if a value has a weight but is not in the table, or a weight is negative.
        ValueError: if ``scope`` is another one, or both terms have the weight 0.
    """

    def __init__(
        self,
        label_sets: LabelSets,
        scope: str = "dataset",
        ce_weight: float = 1.0,
        dice_weight: float = 1.0,
        gamma: float = 0.0,
        value_weights: Mapping[str, Mapping[Any, float]] | None = None,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        if scope not in ("dataset", "patch"):
            raise ValueError(f"scope is {scope!r}, expected dataset or patch")
        if min(ce_weight, dice_weight) < 0 or ce_weight + dice_weight == 0:
            raise ValueError(f"ce_weight and dice_weight are {ce_weight} and {dice_weight}, expected one above 0")
        self.scope = scope
        self.ce_weight = ce_weight
        self.dice_weight = dice_weight
        self.gamma = gamma
        allowed = label_sets.allowed
        weights = _code_weights(allowed)
        for dataset, by_value in (value_weights or {}).items():
            for value, weight in by_value.items():
                weights[label_sets.code(dataset, value)] *= _weight(weight, dataset, value)
        zero = torch.tensor([value == 0 for value in label_sets.value_of_code])
        tables = {
            "allowed": allowed,
            "code_weights": weights,
            "rest": zero & (allowed.sum(1) > 1),
            "foreground": ~zero & ~allowed.all(1),
        }
        names = ("dice_classes", "dice_targets", "dice_voxels")
        tables |= dict(zip(names, _dice_groups(label_sets, pooled), strict=True))
        for name, table in tables.items():  # they come from the table of label sets, so they stay out of checkpoints
            self.register_buffer(name, table, persistent=False)

    def forward(self, logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits (B, C, *spatial) and codes (B, 1, *spatial)."""
        allowed = self.allowed if self.scope == "dataset" else self._allowed_in_patches(codes)
        groups = (self.dice_classes, self.dice_targets, self.dice_voxels)
        with torch.autocast(logits.device.type, enabled=False):
            log_p_set, sums, counts = _terms(logits, codes, allowed)
            loss = log_p_set.new_zeros(())
            if self.ce_weight:
                loss = loss + self.ce_weight * _cross_entropy(log_p_set, codes, counts, self.code_weights, self.gamma)
            if self.dice_weight:
                loss = loss + self.dice_weight * _dice(sums, counts, *groups)
        return loss

    def _allowed_in_patches(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, K, C): the rest of a data set is open to all classes that do not occur in the patch."""
        numbers = torch.arange(len(self.allowed), device=codes.device)
        occurs = (codes.flatten(1)[:, None] == numbers[:, None]).any(-1) & self.foreground  # (B, K)
        absent = ~(occurs[..., None] & self.allowed).any(1, keepdim=True)  # (B, 1, C)
        return self.allowed | (absent & self.rest[:, None])


def make_loss(objective: str, label_sets: LabelSets, **options: Any) -> LabelSetLoss:
    """The loss of an arm of the experiment; all are means over the same voxels.

    - ``ace_dice``: adaptive cross entropy and merged Dice, the default of this bundle;
    - ``ace``: adaptive cross entropy;
    - ``ace_patch``: the same with the paper's equation 4 to the letter;
    - ``naive_ce``, ``naive_dice``: cross entropy, or mean soft Dice of the foreground classes, as if the background of
      every data set were background. With full labels ``ace`` and ``naive_ce`` are the same.

    Args:
        objective: one of these.
        label_sets: the table.
        options: further arguments of :class:`LabelSetLoss`.

    Raises:
        InputError: if there is no such objective.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"objective is {objective!r}, expected one of {', '.join(OBJECTIVES)}")
    table = label_sets.naive() if objective.startswith("naive") else label_sets
    return LabelSetLoss(table, **OBJECTIVES[objective], **options)


class _LabelSetTerms(torch.autograd.Function):
    """log P of every voxel, and the softmax p summed over the voxels of every code: all that both losses need.

    The gradient is written out: ``d log P / dz = q - p``, where q is p inside S, divided by P, and 0 outside. Nothing
    but the inputs is kept for it, and the voxels pass sample by sample, on a CPU in smaller pieces: temporaries are as
    large as such a piece of the logits, not as the batch.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, codes: torch.Tensor, allowed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, C, N), (B, N) and (B, K, C) give log P (B, N), the sums (K, C) and the number of voxels (K,)."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_p_set = logits.new_empty(codes.shape, dtype=dtype)
        sums = logits.new_zeros(allowed.shape[1:], dtype=dtype)
        counts = logits.new_zeros(len(sums), dtype=dtype)
        numbers = torch.arange(len(sums), device=codes.device, dtype=torch.int32)[:, None]
        for i, piece, z, code, penalty in _pieces(logits, codes, allowed):
            log_p = z.log_softmax(0)
            log_q = (z + penalty).log_softmax(0)
            # log P = log p - log q at any class of S; at the most probable one no digits are lost
            largest, member = log_q.max(0, keepdim=True)
            log_p_set[i, piece] = (log_p.gather(0, member) - largest)[0]
            one_hot = (code == numbers).to(dtype)
            counts += one_hot.sum(1)
            sums += one_hot @ log_p.exp_().T
        ctx.save_for_backward(logits, codes, allowed)
        ctx.mark_non_differentiable(counts)
        return log_p_set, sums, counts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_log_p_set: torch.Tensor, d_sums: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None]:
        logits, codes, allowed = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for i, piece, z, code, penalty in _pieces(logits, codes, allowed):
            p = z.softmax(0)
            q = (z + penalty).softmax(0)
            d_p = d_sums.T.index_select(1, code)
            gradient[i, :, piece] = p * (d_p - (p * d_p).sum(0)) + d_log_p_set[i, piece] * (q - p)
        return gradient, None, None


def _pieces(logits: torch.Tensor, codes: torch.Tensor, allowed: torch.Tensor) -> Iterator[tuple[Any, ...]]:
    """Sample, slice, logits (C, n), codes (n,) and what makes impossible classes impossible: minus infinity, else 0."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    penalties = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, -torch.inf).mT.contiguous()
    size = 2**14 if logits.device.type == "cpu" else logits.shape[2]  # of a few such pieces, a CPU's cache holds all
    for i in range(len(logits)):
        for start in range(0, logits.shape[2], size):
            piece = slice(start, start + size)
            code = codes[i, piece].int()
            yield i, piece, logits[i, :, piece].to(dtype), code, penalties[i].index_select(1, code)


def _terms(logits: torch.Tensor, codes: torch.Tensor, allowed: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if codes.shape != (len(logits), 1, *logits.shape[2:]):
        raise ValueError(f"codes {tuple(codes.shape)} do not fit the logits {tuple(logits.shape)}")
    if allowed.shape[-1] != logits.shape[1]:
        raise ValueError(f"the logits have {logits.shape[1]} classes, expected {allowed.shape[-1]} as the label sets")
    return _LabelSetTerms.apply(logits.flatten(2), codes.flatten(1), allowed.expand(len(logits), -1, -1))


def _cross_entropy(
    log_p_set: torch.Tensor, codes: torch.Tensor, counts: torch.Tensor, code_weights: torch.Tensor, gamma: float
) -> torch.Tensor:
    if gamma < 0 or 0 < gamma < 1:
        raise ValueError(f"gamma is {gamma}, expected 0, or 1 and above")
    code_weights = code_weights.to(log_p_set)
    nll = -log_p_set
    if gamma:
        nll = nll * (-torch.expm1(log_p_set)).clamp(min=0) ** gamma  # 1 - P, exact where P is nearly 1
    weights = code_weights.index_select(0, codes.flatten().int())
    total = code_weights @ counts
    return weights @ nll.flatten() / torch.where(total > 0, total, 1)


def _code_weights(allowed: torch.Tensor) -> torch.Tensor:
    """(K,): 0 for codes of which nothing is known, in whatever sample, and 1 for all others."""
    return (~allowed.all(-1)).view(-1, allowed.shape[-2]).any(0).float()


def _dice_groups(label_sets: LabelSets, pooled: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of G groups: their classes (G, C), the codes that lie in them (G, K), the codes that decide on them (G, K)."""
    allowed = label_sets.allowed
    source = label_sets.dataset_of_code
    first: dict[tuple[Any, ...], int] = {}  # values of one data set may stand for the same classes
    for code, value in enumerate(label_sets.value_of_code):
        if value and not allowed[code].all():
            first.setdefault((not pooled and source[code], *allowed[code].tolist()), code)
    rows = list(first.values())
    group = allowed[rows]
    inside = ~(allowed & ~group[:, None]).any(-1)
    outside = ~(allowed & group[:, None]).any(-1)
    asked = [[name is not None and (pooled or name == source[row]) for name in source] for row in rows]
    return group.float(), (inside & torch.tensor(asked)).float(), ((inside | outside) & torch.tensor(asked)).float()


def _dice(
    sums: torch.Tensor,
    counts: torch.Tensor,
    classes: torch.Tensor,
    targets: torch.Tensor,
    voxels: torch.Tensor,
    epsilon: float = 1e-5,
) -> torch.Tensor:
    classes, targets, voxels = (table.to(sums) for table in (classes, targets, voxels))
    p = classes @ sums.T  # (G, K): probability of each group, summed over the voxels of each code
    dice = (2 * (p * targets).sum(1) + epsilon) / ((p * voxels).sum(1) + targets @ counts + epsilon)
    present = (voxels @ counts > 0).to(sums)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def _weight(weight: float, dataset: str, value: Any) -> float:
    if not weight >= 0:
        raise InputError(f"the weight of value {value} of dataset {dataset} is {weight}, expected 0 or above")
    return weight
