"""Metrics for MONAI and ignite engines, named in JSON as ``key_metric`` or ``additional_metrics``.

They take what MONAI's own do: ``output_transform`` gives predictions and references, as batch-first tensors or as lists
of channel-first ones (``monai.handlers.from_engine(['pred', 'label'])``). Over several processes the counts add up.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.utils import convert_to_tensor

from ..errors import InputError


class ScoreHistogramMetric(Metric):
    """Base of metrics on the pooled scores of a whole run, in memory that does not grow with it.

    Scores are counted in equal bins, apart for lesion and other voxels. With a range of length 1 and 65536 bins the
    edges are exact in float32, so what is found at an edge is exact too; thresholds between edges are not looked at.

    Args:
        output_transform: engine output -> (scores, reference), of one shape; the reference holds 0 and 1.
        score_range: smallest and largest score; one outside is an error.
        bins: number of bins.
        device: where the counts are kept.
    """

    def __init__(
        self,
        output_transform: Callable = lambda output: output,
        score_range: Sequence[float] = (0.0, 1.0),
        bins: int = 65536,
        device: str | torch.device = "cpu",
    ) -> None:
        self.low, self.high = (float(bound) for bound in score_range)
        if self.low >= self.high or bins < 1:
            raise ValueError(f"score_range must ascend and bins be positive, found {list(score_range)} and {bins}")
        self.bins = bins
        super().__init__(output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all counts; ignite calls it when an epoch starts."""
        self._positives = torch.zeros(self.bins, dtype=torch.int64, device=self._device)
        self._negatives = torch.zeros(self.bins, dtype=torch.int64, device=self._device)

    @reinit__is_reduced
    def update(self, output: Sequence[torch.Tensor | Sequence[torch.Tensor]]) -> None:
        """Count the scores of one iteration: (scores, reference)."""
        for scores, reference in _pairs(output):
            bins = self._bin(scores)
            lesion = _as_bool(reference)
            self._positives += torch.bincount(bins[lesion], minlength=self.bins).to(self._device)
            self._negatives += torch.bincount(bins[~lesion], minlength=self.bins).to(self._device)

    def _bin(self, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        low, high = float(scores.min()), float(scores.max())
        if not (self.low <= low and high <= self.high):  # nan fails as well
            raise InputError(
                f"scores must lie between {self.low:g} and {self.high:g}, found {low:g} to {high:g}: "
                "apply the sigmoid first, or give the metric the right score_range"
            )
        bins = ((scores - self.low) * (self.bins / (self.high - self.low))).long()
        return bins.clamp_(max=self.bins - 1)  # the largest score belongs to the last bin

    def _counts(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """True and false positives at each bin's lower edge, edges descending, and the number of lesion voxels."""
        positives = int(self._positives.sum())
        if positives == 0:
            raise InputError(f"{type(self).__name__} needs lesion voxels in the reference, found none in this run")
        return self._positives.flip(0).cumsum(0).double(), self._negatives.flip(0).cumsum(0).double(), positives


class VoxelAveragePrecision(ScoreHistogramMetric):
    """Area under the precision-recall curve over the pooled voxels of a run, at the bins' edges.

    Compare :func:`common.metrics.average_precision`, which is exact: scores within one bin count as equal here.
    """

    @sync_all_reduce("_positives", "_negatives")
    def compute(self) -> float:
        """The area; InputError if the run had no lesion voxel."""
        true, false, positives = self._counts()
        precision = true / (true + false).clamp(min=1)
        return float((precision * true.diff(prepend=true.new_zeros(1))).sum() / positives)


class BestDice(ScoreHistogramMetric):
    """Largest Dice over the pooled voxels of a run that a threshold at a bin's edge reaches.

    The threshold goes to ``engine.state.metrics["<name>_threshold"]``. Compare :func:`common.metrics.best_dice`, which
    is exact and never smaller.
    """

    threshold: float = float("nan")

    @sync_all_reduce("_positives", "_negatives")
    def compute(self) -> float:
        """The Dice; InputError if the run had no lesion voxel."""
        true, false, positives = self._counts()
        dice = 2 * true / (true + false + positives)
        best = int(dice.argmax())
        self.threshold = self.low + (self.bins - 1 - best) * (self.high - self.low) / self.bins
        return float(dice[best])

    def completed(self, engine: Engine, name: str) -> None:
        """Publish the Dice under ``name``, and the threshold beside it."""
        super().completed(engine, name)
        engine.state.metrics[f"{name}_threshold"] = self.threshold


class CaseScores(Metric):
    """Base of means over cases of a number for each; a case whose number is not finite is left out.

    The mean is nan if that leaves none. As ``key_metric`` take a number that is defined for every case.

    Args:
        output_transform: engine output -> two items per case, for :meth:`score`.
        device: where the sum is kept.
    """

    def __init__(self, output_transform: Callable = lambda output: output, device: str | torch.device = "cpu") -> None:
        super().__init__(output_transform, device=device)

    @abstractmethod
    def score(self, prediction: torch.Tensor, reference: torch.Tensor) -> float:
        """The number of one case, of two tensors (C, *spatial)."""

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all cases; ignite calls it when an epoch starts."""
        self._sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._cases = torch.zeros((), dtype=torch.int64, device=self._device)

    @reinit__is_reduced
    def update(self, output: Sequence[torch.Tensor | Sequence[torch.Tensor]]) -> None:
        """Score the cases of one iteration."""
        for items in zip(*output, strict=True):
            value = self.score(*(convert_to_tensor(item).detach() for item in items))
            if np.isfinite(value):
                self._sum += value
                self._cases += 1

    @sync_all_reduce("_sum", "_cases")
    def compute(self) -> float:
        """The mean over the cases where it is defined."""
        return float(self._sum / self._cases)


class CaseMean(CaseScores):
    """Mean over cases of any function of two masks from :mod:`common.metrics`, for instance::

        {
            "_target_": "common.metrics.CaseMean",
            "metric": {"_target_": "common.metrics.lesion_f1", "_mode_": "callable", "connectivity": 18},
            "output_transform": "$monai.handlers.from_engine(['pred', 'label'])"
        }

    Args:
        metric: (prediction, reference) -> number, of arrays without channel axis; nan where it is undefined.
        output_transform: engine output -> (prediction, reference), masks with one channel.
        device: where the sum is kept.

    The mean is over the finite values, as in the report, and nan if there are none. As ``key_metric`` take a function
    that is defined for every case with lesions, such as Dice or F1.
    """

    def __init__(
        self,
        metric: Callable[[np.ndarray, np.ndarray], float],
        output_transform: Callable = lambda output: output,
        device: str | torch.device = "cpu",
    ) -> None:
        self.metric = metric
        super().__init__(output_transform, device=device)

    def score(self, prediction: torch.Tensor, reference: torch.Tensor) -> float:
        """Of one case: (prediction, reference)."""
        if prediction.shape != reference.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and reference {tuple(reference.shape)} differ")
        if len(prediction) != 1:
            raise ValueError(f"a mask must have one channel, found {len(prediction)}")
        return self.metric(prediction[0].cpu().numpy(), reference[0].cpu().numpy())


def _pairs(output: Sequence[torch.Tensor | Sequence[torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(C, *spatial) pairs of one iteration as plain tensors."""
    predictions, references = output
    pairs = [
        (convert_to_tensor(prediction).detach(), convert_to_tensor(reference).detach())
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    for prediction, reference in pairs:
        if prediction.shape != reference.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and reference {tuple(reference.shape)} differ")
    return pairs


def _as_bool(reference: torch.Tensor) -> torch.Tensor:
    mask = reference.bool()
    if not torch.equal(mask.to(reference.dtype), reference):
        raise InputError(f"the reference must hold 0 and 1 only, found up to {float(reference.max()):g}")
    return mask
