"""Voxel overlap and volumes of binary masks.

A mask is an array of any number of axes with values 0 and 1 (or bool). Where the reference is empty there is nothing to
overlap with and Dice and recall are nan, as in MONAI's ``DiceMetric``: a mean over cases then never depends on how many
healthy scans there are, which are scored by their false-positive volume instead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


def as_mask(mask: ArrayLike) -> np.ndarray:
    """The mask as bool; ValueError if it holds anything but 0 and 1."""
    array = np.asarray(mask)
    if array.dtype == bool:
        return array
    out = array.astype(bool)
    if not np.array_equal(out, array):
        raise ValueError(f"a mask must hold 0 and 1 only, found values from {array.min()} to {array.max()}")
    return out


def as_mask_pair(prediction: ArrayLike, reference: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both masks as bool; ValueError if their shapes differ: nothing is broadcast or resampled here."""
    prediction, reference = as_mask(prediction), as_mask(reference)
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    return prediction, reference


@dataclass(frozen=True)
class Overlap:
    """Numbers of voxels that agree and differ; they add up over cases: ``overlap_a + overlap_b`` is the pooled one."""

    true_positives: int
    false_positives: int
    false_negatives: int

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def reference_voxels(self) -> int:
        return self.true_positives + self.false_negatives

    @property
    def predicted_voxels(self) -> int:
        return self.true_positives + self.false_positives

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); nan if the reference is empty, 0 if only the prediction is."""
        if self.reference_voxels == 0:
            return float("nan")
        return 2 * self.true_positives / (self.reference_voxels + self.predicted_voxels)

    @property
    def recall(self) -> float:
        """TP / (TP + FN), also called sensitivity; nan if the reference is empty."""
        return self.true_positives / self.reference_voxels if self.reference_voxels else float("nan")

    @property
    def precision(self) -> float:
        """TP / (TP + FP), also called positive predictive value; nan if the prediction is empty."""
        return self.true_positives / self.predicted_voxels if self.predicted_voxels else float("nan")


def voxel_overlap(prediction: ArrayLike, reference: ArrayLike) -> Overlap:
    """Count the voxels of two masks of one shape."""
    prediction, reference = as_mask_pair(prediction, reference)
    true_positives = np.count_nonzero(prediction & reference)
    return Overlap(
        int(true_positives),
        int(np.count_nonzero(prediction) - true_positives),
        int(np.count_nonzero(reference) - true_positives),
    )


def dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Dice coefficient of two masks of one shape, see :attr:`Overlap.dice`."""
    return voxel_overlap(prediction, reference).dice


def pooled_dice(predictions: Iterable[ArrayLike], references: Iterable[ArrayLike]) -> float:
    """Dice over the voxels of all cases together, so a large lesion load weighs more than a small one.

    Args:
        predictions: one mask per case; generators are fine, one case is in memory at a time.
        references: the same number of masks; those of healthy scans, empty, count as well.

    Returns:
        nan if every reference is empty.

    Raises:
        ValueError: if the numbers of cases or the shapes of a case differ.
    """
    total = Overlap(0, 0, 0)
    for prediction, reference in zip(predictions, references, strict=True):
        total += voxel_overlap(prediction, reference)
    return total.dice


def volume_ml(mask: ArrayLike, spacing: Sequence[float]) -> float:
    """Volume of a mask in millilitres; ``spacing`` is the voxel size in mm along each axis."""
    mask = as_mask(mask)
    return float(np.count_nonzero(mask) * np.prod(check_spacing(spacing, mask.ndim)) / 1000)


def volume_difference_ml(prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float]) -> float:
    """Predicted minus reference volume in millilitres: positive where too much was found."""
    prediction, reference = as_mask_pair(prediction, reference)
    return volume_ml(prediction, spacing) - volume_ml(reference, spacing)


def false_positive_volume_ml(
    prediction: ArrayLike, spacing: Sequence[float], reference: ArrayLike | None = None
) -> float:
    """Volume in millilitres that was predicted outside the reference.

    Args:
        prediction: mask.
        spacing: voxel size in mm along each axis.
        reference: mask of the same shape; None for a healthy scan, where nothing is to be found.
    """
    if reference is None:
        return volume_ml(prediction, spacing)
    prediction, reference = as_mask_pair(prediction, reference)
    return volume_ml(prediction & ~reference, spacing)


def check_spacing(spacing: Sequence[float], ndim: int) -> np.ndarray:
    """The spacing as an array; ValueError unless it holds one positive number for each of ``ndim`` axes."""
    out = np.asarray(spacing, dtype=float)
    if out.shape != (ndim,) or not (np.isfinite(out).all() and (out > 0).all()):
        raise ValueError(f"spacing must be {ndim} positive numbers in mm, found {spacing}")
    return out
