"""Are two methods different on the same subjects?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import wilcoxon

from common.metrics import bootstrap_interval


class Difference(NamedTuple):
    """Mean of paired differences over cases, its bootstrap interval over subjects, and a p-value; nan if undefined."""

    mean: float
    low: float
    high: float
    p: float
    subjects: int


def paired_difference(first: ArrayLike, second: ArrayLike, subjects: Sequence[Hashable]) -> Difference:
    """First minus second, on the cases where both are finite.

    The p-value is that of Wilcoxon's signed-rank test, two-sided, on one mean difference per subject; 1 if nothing
    differs at all.

    Args:
        first, second: (N,), one value per case, in the same order.
        subjects: (N,), whom each case belongs to.

    Reference:
        Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1945. On its use for segmentations:
        Maier-Hein et al., "Why rankings of biomedical image analysis competitions should be interpreted with care",
        Nature Communications 2018.
    """
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    kept = np.isfinite(difference)
    difference, names = difference[kept], np.asarray([str(subject) for subject in subjects])[kept]
    if not difference.size:
        return Difference(*[float("nan")] * 4, 0)
    _, index = np.unique(names, return_inverse=True)
    means = np.bincount(index, difference) / np.bincount(index)
    low, high = bootstrap_interval(difference, np.ones(difference.size), names)
    p = float(wilcoxon(means).pvalue) if means.any() else 1.0
    return Difference(float(difference.mean()), low, high, p, len(means))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjusted p-values of a family of tests; nan stays nan and is of no family.

    Args:
        p_values: (N,).

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    p_values = np.asarray(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known])]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted = np.full(p_values.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
