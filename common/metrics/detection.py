"""How well a map of scores finds lesions: precision and recall, operating points, lesion-wise counts.

A voxel is positive where ``score >= threshold``, everywhere in this module. Functions of scores take one case (two
arrays of one shape) or the cases of a cohort (two sequences of arrays), whose voxels are then pooled. A sequence is
walked through twice with one case in memory at a time, so it may load its items from disk.

To count only voxels of the brain, pass ``scores[brain]`` and ``reference[brain]``. The background matters only if a
lesion voxel scores as low as the background does: finding that voxel then costs the whole background.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import find_objects, generate_binary_structure, label

from ..errors import InputError
from .overlap import as_mask, as_mask_pair

Cases: TypeAlias = np.ndarray | Sequence[np.ndarray]

# scipy's structuring elements by what they are called in 2-D and 3-D
CONNECTIVITY = {4: (2, 1), 8: (2, 2), 6: (3, 1), 18: (3, 2), 26: (3, 3)}


@dataclass(frozen=True)
class PrecisionRecall:
    """The exact precision-recall curve, at every threshold where recall changes.

    Between two of these thresholds a lower one adds false positives only, so the best Dice lies on one of them.

    Args:
        thresholds: distinct scores of the lesion voxels, descending, (K,).
        true_positives, false_positives: voxels with at least that score, (K,).
        positives: lesion voxels.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    positives: int

    @property
    def precision(self) -> np.ndarray:
        """TP / (TP + FP) at each threshold, (K,)."""
        return self.true_positives / (self.true_positives + self.false_positives)

    @property
    def recall(self) -> np.ndarray:
        """TP / (TP + FN) at each threshold, (K,), ascending to 1."""
        return self.true_positives / self.positives

    @property
    def dice(self) -> np.ndarray:
        """2 TP / (2 TP + FP + FN) at each threshold, (K,)."""
        return 2 * self.true_positives / (self.true_positives + self.false_positives + self.positives)

    @property
    def average_precision(self) -> float:
        """Area under the curve as the sum of ``precision * step of recall``; nan without lesion voxels."""
        if self.positives == 0:
            return float("nan")
        return float(np.sum(self.precision * np.diff(self.recall, prepend=0)))

    @property
    def best_dice(self) -> tuple[float, float]:
        """The largest Dice and its threshold, the highest one if several reach it.

        Raises:
            InputError: without lesion voxels, where no threshold is better than another.
        """
        if self.positives == 0:
            raise InputError(
                "the best Dice needs lesion voxels in the reference, found none: "
                "give labeled cases, or take the threshold from healthy scans"
            )
        best = int(np.argmax(self.dice))
        return float(self.dice[best]), float(self.thresholds[best])


def precision_recall(scores: Cases, reference: Cases) -> PrecisionRecall:
    """Exact precision-recall curve of one case, or of the pooled voxels of several.

    Args:
        scores: map of any shape, larger where a lesion is likelier; or a sequence of maps.
        reference: mask of the same shape; or a sequence of as many masks.

    Raises:
        ValueError: if shapes or numbers of cases differ, a score is nan, or a reference is no mask.
    """
    lesion_scores = np.concatenate([values[mask] for values, mask in _pairs(scores, reference)])
    thresholds, counts = np.unique(lesion_scores, return_counts=True)
    false_positives = np.zeros(len(thresholds), dtype=np.int64)
    if len(thresholds):
        for values, mask in _pairs(scores, reference):
            false_positives += _count_at_least(values[~mask], thresholds)
    return PrecisionRecall(
        thresholds[::-1], np.cumsum(counts[::-1]), false_positives[::-1], positives=len(lesion_scores)
    )


def average_precision(scores: Cases, reference: Cases) -> float:
    """Area under the precision-recall curve (AUPRC), as scikit-learn defines it; nan without lesion voxels."""
    return precision_recall(scores, reference).average_precision


def best_dice(scores: Cases, reference: Cases) -> tuple[float, float]:
    """Largest Dice that any threshold reaches, and that threshold.

    On validation data it is the operating point; on test data an upper bound ("oracle") that must be called so.

    Raises:
        InputError: without lesion voxels.
    """
    return precision_recall(scores, reference).best_dice


def dice_over_thresholds(scores: Cases, reference: Cases, thresholds: ArrayLike) -> np.ndarray:
    """Dice of each case at each threshold.

    Args:
        scores: map, or a sequence of N maps.
        reference: mask of the same shape, or a sequence of N masks.
        thresholds: (T,), in any order.

    Returns:
        (N, T); nan in the rows of cases with an empty reference.
    """
    thresholds = np.asarray(thresholds)
    rows = [_dice_row(values, mask, thresholds) for values, mask in _pairs(scores, reference)]
    return np.stack(rows)


def threshold_for_false_positive_rate(healthy_scores: Cases, rate: float) -> float:
    """Operating point without labels: at most this share of the brain voxels of healthy scans reaches it.

    Args:
        healthy_scores: scores of the brain voxels of healthy scans, ``map[brain]``; or a sequence of such arrays,
            which are pooled.
        rate: wanted false-positive rate over voxels, between 0 and 1, such as 0.01.

    Returns:
        The smallest score among the voxels whose share is at most ``rate``.

    Raises:
        InputError: if no score satisfies that: too few voxels for the rate, or too many voxels at the largest score.
        ValueError: if the rate is not between 0 and 1, or a score is nan.

    Reference:
        The use of healthy residuals for the operating point: Baur et al., "Autoencoders for Unsupervised Anomaly
        Segmentation in Brain MR Images: A Comparative Study", Medical Image Analysis 2021.
    """
    if not 0 < rate < 1:
        raise ValueError(f"the false-positive rate must lie between 0 and 1, found {rate}")
    values = np.concatenate([_check_scores(case).ravel() for case in _as_cases(healthy_scores)])
    allowed = int(rate * values.size)
    if allowed == 0:
        raise InputError(
            f"a false-positive rate of {rate:g} is less than one of the {values.size} brain voxels given: "
            "raise the rate or add healthy scans"
        )
    last_refused = np.partition(values, -allowed - 1)[-allowed - 1]
    accepted = values[values > last_refused]
    if not accepted.size:
        raise InputError(
            f"{np.mean(values == last_refused):.2%} of the healthy brain voxels share the largest score "
            f"{last_refused:g}, so no threshold gives a false-positive rate of {rate:.2%}"
        )
    return float(accepted.min())


@dataclass(frozen=True)
class LesionDetection:
    """Lesions found and missed; counts add up over cases: ``a + b`` is the pooled result."""

    reference_lesions: int
    detected_lesions: int
    predicted_lesions: int
    true_predictions: int

    def __add__(self, other: "LesionDetection") -> "LesionDetection":
        return LesionDetection(
            self.reference_lesions + other.reference_lesions,
            self.detected_lesions + other.detected_lesions,
            self.predicted_lesions + other.predicted_lesions,
            self.true_predictions + other.true_predictions,
        )

    @property
    def recall(self) -> float:
        """Share of the reference lesions that were detected; nan if there are none."""
        return self.detected_lesions / self.reference_lesions if self.reference_lesions else float("nan")

    @property
    def precision(self) -> float:
        """Share of the predicted lesions that are true; nan if there are none."""
        return self.true_predictions / self.predicted_lesions if self.predicted_lesions else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision; nan without reference lesions, 0 if none of them was detected."""
        if not self.reference_lesions:
            return float("nan")
        if not self.true_predictions or not self.detected_lesions:
            return 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def lesion_detection(
    prediction: ArrayLike, reference: ArrayLike, connectivity: int = 26, min_overlap: float = 0.0
) -> LesionDetection:
    """Compare two masks lesion by lesion; a lesion is a connected component.

    A reference lesion is detected if predicted voxels cover more than nothing and at least ``min_overlap`` of it. A
    predicted lesion is true if reference voxels cover it likewise. Several lesions may be hit by one prediction.

    Args:
        prediction, reference: masks of one shape, 2-D or 3-D.
        connectivity: 6, 18 or 26 neighbors in 3-D, 4 or 8 in 2-D.
        min_overlap: share of a lesion's own volume, 0 to 1; 0 asks for a single voxel, as the WMH challenge does.

    Reference:
        Kuijf et al., "Standardized Assessment of Automatic Segmentation of White Matter Hyperintensities and Results
        of the WMH Segmentation Challenge", IEEE Transactions on Medical Imaging 2019.
    """
    prediction, reference = as_mask_pair(prediction, reference)
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap must lie between 0 and 1, found {min_overlap}")
    box = next(iter(find_objects((prediction | reference).view(np.uint8))), ())
    prediction, reference = prediction[box], reference[box]
    wanted, detected = _count_hit(reference, prediction, connectivity, min_overlap)
    found, true = _count_hit(prediction, reference, connectivity, min_overlap)
    return LesionDetection(wanted, detected, found, true)


def lesion_recall(prediction: ArrayLike, reference: ArrayLike, connectivity: int = 26, min_overlap: float = 0) -> float:
    """Share of the reference lesions that were detected, see :func:`lesion_detection`."""
    return lesion_detection(prediction, reference, connectivity, min_overlap).recall


def lesion_precision(
    prediction: ArrayLike, reference: ArrayLike, connectivity: int = 26, min_overlap: float = 0
) -> float:
    """Share of the predicted lesions that are true, see :func:`lesion_detection`."""
    return lesion_detection(prediction, reference, connectivity, min_overlap).precision


def lesion_f1(prediction: ArrayLike, reference: ArrayLike, connectivity: int = 26, min_overlap: float = 0) -> float:
    """Harmonic mean of lesion-wise recall and precision, see :func:`lesion_detection`."""
    return lesion_detection(prediction, reference, connectivity, min_overlap).f1


def lesion_sizes(
    prediction: ArrayLike, reference: ArrayLike, connectivity: int = 26, min_overlap: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each lesion of the reference, and whether it was detected, (N,) each; see :func:`lesion_detection`."""
    prediction, reference = as_mask_pair(prediction, reference)
    return _hits(reference, prediction, connectivity, min_overlap)


def _count_hit(lesions: np.ndarray, others: np.ndarray, connectivity: int, min_overlap: float) -> tuple[int, int]:
    """Number of connected components of ``lesions``, and of those that ``others`` covers enough."""
    size, hit = _hits(lesions, others, connectivity, min_overlap)
    return len(size), int(np.count_nonzero(hit))


def _hits(
    lesions: np.ndarray, others: np.ndarray, connectivity: int, min_overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Size of each connected component of ``lesions``, and whether ``others`` covers it enough."""
    if CONNECTIVITY.get(connectivity, (0, 0))[0] != lesions.ndim:
        choices = [name for name, (ndim, _) in CONNECTIVITY.items() if ndim == lesions.ndim]
        raise ValueError(f"connectivity of {lesions.ndim}-D masks must be one of {choices}, found {connectivity}")
    components, count = label(lesions, generate_binary_structure(*CONNECTIVITY[connectivity]))
    size = np.bincount(components.ravel(), minlength=count + 1)[1:]
    covered = np.bincount(components[others], minlength=count + 1)[1:]
    return size, (covered > 0) & (covered >= min_overlap * size)


def _as_cases(values: Cases) -> Iterable[np.ndarray]:
    return [values] if isinstance(values, np.ndarray) else values


def _check_scores(scores: ArrayLike) -> np.ndarray:
    scores = np.asarray(scores)
    if np.isnan(scores).any():
        raise ValueError(f"{np.count_nonzero(np.isnan(scores))} of {scores.size} scores are nan")
    return scores


def _pairs(scores: Cases, reference: Cases) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Flat scores and flat masks, case by case."""
    for values, mask in zip(_as_cases(scores), _as_cases(reference), strict=True):
        values, mask = _check_scores(values), as_mask(mask)
        if values.shape != mask.shape:
            raise ValueError(f"scores {values.shape} and reference {mask.shape} differ in shape")
        yield values.ravel(), mask.ravel()


def _count_at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Number of values at or above each of the ascending thresholds."""
    # most voxels lie below any threshold of interest; sorting the rest is what takes time
    candidates = np.sort(values[values >= thresholds[0]])
    return candidates.size - np.searchsorted(candidates, thresholds, side="left")


def _dice_row(values: np.ndarray, mask: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    if not mask.any():
        return np.full(thresholds.shape, np.nan)
    order = np.argsort(thresholds)
    out = np.empty(thresholds.shape)
    true_positives = _count_at_least(values[mask], thresholds[order])
    predicted = true_positives + _count_at_least(values[~mask], thresholds[order])
    out[order] = 2 * true_positives / (predicted + np.count_nonzero(mask))
    return out
