"""The evidence lower bound: Kullback-Leibler divergence from the atlas, Markov random field, reconstruction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from common.errors import InputError
from common.files import read_json

from .network import PRIOR_FLOOR

TABLE_FLOOR = -7.0


def neighbor_sum(maps: torch.Tensor) -> torch.Tensor:
    """Sum over the 26 neighbors of every voxel, (B, C, X, Y, Z); the volume goes on beyond its margin as it ends."""
    box = maps
    for axis in (2, 3, 4):  # one after the other: a fifth of the time of a pooling
        last = box.shape[axis] - 1
        total = box.clone()
        total.narrow(axis, 1, last).add_(box.narrow(axis, 0, last))
        total.narrow(axis, 0, last).add_(box.narrow(axis, 1, last))
        for margin in (0, last):
            total.narrow(axis, margin, 1).add_(box.narrow(axis, margin, 1))
        box = total
    return box.sub_(maps)


def neighbor_table(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """``V[b, a] = log(pairs of a voxel of class a with a neighbor of class b / voxels of class a)``, equation 9.

    Args:
        labels: (X, Y, Z), integers, of any people; sharp, since small classes have no largest probability in a blurred
            atlas.
        classes: how many there are.

    Returns:
        (classes, classes), float32. One pair is added to every count, and nothing is below -7.

    Raises:
        ValueError: if a label is not in 0 to ``classes`` - 1.
    """
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels are {int(labels.min())} to {int(labels.max())}, expected 0 to {classes - 1}")
    flat = labels.long().flatten()
    # counts beyond 2 ** 24, which float32 cannot add up: what it gave depended on the processor
    pairs = torch.stack(
        [
            torch.bincount(flat, neighbor_sum((labels == b)[None, None].float()).flatten().double(), classes)
            for b in range(classes)
        ]
    )
    voxels = torch.bincount(flat, minlength=classes).double()
    return torch.log((pairs + 1) / (voxels + classes)).clamp(min=TABLE_FLOOR).float()


def markov_field(q: torch.Tensor, table: torch.Tensor, one_sided: bool = False) -> torch.Tensor:
    """Expected energy of the neighborhoods at every voxel: ``-q_j(a) V(b, a) sum_k q_k(b)``, summed over a and b.

    Args:
        q: probabilities, (B, C, X, Y, Z).
        table: V of :func:`neighbor_table`, (C, C).
        one_sided: no gradient through the neighbors, and the term doubled for it: better on coarse grids, where the
            gradient towards the neighbors punishes small classes.

    Returns:
        (B, X, Y, Z).
    """
    return _MarkovField.apply(q, table, one_sided)


class _MarkovField(torch.autograd.Function):
    """The energy with its gradient by hand, in half the time: the sum over neighbors is its own adjoint."""

    @staticmethod
    def forward(ctx, q: torch.Tensor, table: torch.Tensor, one_sided: bool) -> torch.Tensor:
        field = torch.einsum("ba,nbxyz->naxyz", table, neighbor_sum(q))
        ctx.save_for_backward(q, table, field)
        ctx.one_sided = one_sided
        return -(1 + one_sided) * torch.einsum("naxyz,naxyz->nxyz", q, field)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        q, table, field = ctx.saved_tensors
        grad = grad[:, None]
        if ctx.one_sided:
            return -2 * grad * field, None, None
        towards_neighbors = neighbor_sum(torch.einsum("ba,naxyz->nbxyz", table, q * grad))
        return -grad * field - towards_neighbors, None, None


def read_neighbors(
    file: str | Path | None, table: Sequence[Sequence[float]] | None = None
) -> Sequence[Sequence[float]] | None:
    """The table of neighbors of an atlas, read as data: nothing in it is an expression.

    Args:
        file: JSON with ``neighbors``, as ``scripts/make_atlas.py`` writes it beside an atlas.
        table: what is taken without a file.

    Raises:
        InputError: if it cannot be read, or holds no square of finite numbers.
    """
    if file is None:
        return table
    content = read_json(Path(str(file)), "an atlas's table of neighbors")
    rows = content.get("neighbors") if isinstance(content, dict) else None
    is_table = isinstance(rows, list) and rows and all(isinstance(row, list) and len(row) == len(rows) for row in rows)
    numbers = [value for row in rows for value in row] if is_table else [None]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
        raise InputError(f"{file} has the neighbors {str(rows)[:80]}, expected a square table of numbers")
    return rows


class EvidenceLowerBound(nn.Module):
    """Equation 5 with the prior of equation 8, as a mean over the voxels of the brain, with its sign turned: a loss.

    ``KL(q || atlas) + beta * field + (x - decoded)^2 / (2 s^2) + log(s^2) / 2``: q are the probabilities of the logits.
    In the first steps of a training the reconstruction does not count (s^2 is infinite there in the paper). After them
    s^2 is the mean of the squared errors of the latest steps, in the paper over all voxels, here over those that were
    sampled as one class, a number for each: CSF, which comes in part volumes, is not as uniform as white matter.

    The paper sums over the voxels and gives the field the weight 1; its code has 0.01, and rounds s^2 to a power of
    ten. Here s^2 is not rounded; ``variance_floor`` is the largest weight of the code, 500.

    Args:
        classes: of the segmentation, background included.
        table: V of :func:`neighbor_table`, as rows; None for no field.
        beta: weight of the field.
        one_sided: see :func:`markov_field`.
        class_variance: s^2 of every class; False for the paper's one number.
        warmup: training steps without reconstruction; 0 where the encoder has learned already.
        memory: training steps that s^2 remembers.
        variance_floor: smallest s^2.

    Raises:
        InputError: if the table does not fit the classes.
    """

    def __init__(
        self,
        classes: int,
        table: Sequence[Sequence[float]] | None = None,
        beta: float = 0.01,
        one_sided: bool = False,
        class_variance: bool = True,
        warmup: int = 16,
        memory: int = 16,
        variance_floor: float = 1e-3,
    ) -> None:
        super().__init__()
        if table is not None and (len(table) != classes or any(len(row) != classes for row in table)):
            sizes = f"{len(table)} rows of {', '.join(sorted({str(len(row)) for row in table}))}"
            raise InputError(f"neighbors is a table of {sizes}, expected {classes} x {classes}, a row for every class")
        self.classes, self.beta, self.one_sided = classes, beta, one_sided
        self.class_variance, self.variance_floor = class_variance, variance_floor
        self.warmup, self.memory = warmup, memory
        self.register_buffer("table", None if table is None else torch.tensor(table), persistent=False)
        self.register_buffer("errors", torch.zeros(classes))  # squared, of the latest steps, voxels by their class
        self.register_buffer("voxels", torch.zeros(classes))
        self.register_buffer("steps", torch.tensor(0))

    @property
    def variance(self) -> torch.Tensor:
        """s^2 of every class, (classes,)."""
        errors, voxels = self.errors, self.voxels
        if not self.class_variance:
            errors, voxels = errors.sum(0, keepdim=True), voxels.sum(0, keepdim=True)
        return (errors / voxels.clamp(min=1e-6)).clamp(min=self.variance_floor).expand(self.classes)

    def forward(self, output: torch.Tensor, scan: torch.Tensor) -> torch.Tensor:
        """Scalar loss, nats per voxel.

        Args:
            output: of the auto-encoder, (B, classes + classes + images, *spatial).
            scan: its input, (B, images + classes, *spatial).
        """
        images = scan.shape[1] - self.classes
        logits, sample, decoded = output.float().split([self.classes, self.classes, images], dim=1)
        image, prior = scan.float().split([images, self.classes], dim=1)
        weight = _brain(prior)
        loss = self._against_atlas(logits, prior, weight)
        error = (image - decoded).square().sum(1)
        if self.training:
            self._remember(sample.detach() * (weight > 0)[:, None], error.detach() / images)
        if self.training and self.steps <= self.warmup:
            return loss + 0 * error.sum()
        variance = self.variance
        precision, log_variance = torch.einsum("bkxyz,nk->nbxyz", sample, torch.stack([1 / variance, variance.log()]))
        return loss + 0.5 * (weight * (error * precision + images * log_variance)).sum()

    def of_segmentation(self, logits: torch.Tensor, scan: torch.Tensor) -> torch.Tensor:
        """The loss with the best reconstruction that gives a class one intensity, each class with its own s^2.

        Means and variances are those of the very scans, so no decoder counts, nor what it has learned: what remains is
        how good a segmentation is, and those of different weights compare.

        Args:
            logits: of the encoder, (B, classes, *spatial).
            scan: its input, (B, images + classes, *spatial).

        Returns:
            A number, nats per voxel.
        """
        image, prior = scan.float().split([scan.shape[1] - self.classes, self.classes], dim=1)
        weight = _brain(prior)
        q = weight[:, None] * logits.float().softmax(1)
        share = q.sum((0, 2, 3, 4)).clamp(min=1e-6)
        mean, square = (torch.einsum("bkxyz,bmxyz->km", q, x) / share[:, None] for x in (image, image.square()))
        variance = (square - mean.square()).clamp(min=self.variance_floor)
        return self._against_atlas(logits.float(), prior, weight) + 0.5 * (share @ (1 + variance.log())).sum()

    def _against_atlas(self, logits: torch.Tensor, prior: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Divergence from the atlas and field, a number; ``weight`` (B, *spatial) makes means of sums."""
        log_q = logits.log_softmax(1)
        q = log_q.exp()
        loss = (weight * (q * (log_q - torch.log(prior + PRIOR_FLOOR))).sum(1)).sum()
        if self.table is not None and self.beta > 0:
            loss = loss + self.beta * (weight * markov_field(q, self.table, self.one_sided)).sum()
        return loss

    def _remember(self, sample: torch.Tensor, error: torch.Tensor) -> None:
        """Take a step's squared errors (B, *spatial) into account, of the voxels of each class in the sample."""
        self.steps += 1
        share = 1 / torch.clamp(self.steps, max=self.memory + 1)
        self.errors.lerp_(torch.einsum("bkxyz,bxyz->k", sample, error), share)
        self.voxels.lerp_(sample.sum((0, 2, 3, 4)), share)


def _brain(prior: torch.Tensor) -> torch.Tensor:
    """Weights (B, *spatial) that are the same in the whole brain, 0 outside of it, with the sum 1."""
    brain = (prior[:, 0] < 0.99) & (prior.sum(1) > 0.5)  # padding has no prior
    return brain / brain.sum().clamp(min=1)
