"""Means over cases with the uncertainty that comes from having few subjects."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Summary:
    """One metric over a cohort.

    Args:
        mean, sd: over the cases with a finite value; the sd is that of a sample (n - 1).
        low, high: bootstrap interval of the mean.
        median: over all defined values, infinite ones included.
        cases: values that went into the mean.
        infinite: values left out of it because they are infinite, such as the HD95 of an empty prediction.
    """

    mean: float
    sd: float
    low: float
    high: float
    median: float
    cases: int
    infinite: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def summarize(values: ArrayLike, subjects: Sequence[Hashable] | None = None) -> Summary:
    """Mean, spread and bootstrap 95 % interval of one value per case; nan values are left out.

    Args:
        values: (N,).
        subjects: whom each case belongs to; cases of one subject are drawn together. None: each case is a subject.
    """
    values = np.asarray(values, dtype=float)
    subjects = np.arange(values.size) if subjects is None else np.asarray([str(subject) for subject in subjects])
    finite = np.isfinite(values)
    kept = values[finite]
    low, high = bootstrap_interval(kept, np.ones(kept.size), subjects[finite])
    return Summary(
        mean=float(kept.mean()) if kept.size else float("nan"),
        sd=float(kept.std(ddof=1)) if kept.size > 1 else float("nan"),
        low=low,
        high=high,
        median=float(np.median(values[~np.isnan(values)])) if (~np.isnan(values)).any() else float("nan"),
        cases=int(kept.size),
        infinite=int(np.isinf(values).sum()),
    )


def bootstrap_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    subjects: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``sum(numerators) / sum(denominators)`` over subjects.

    With denominators of 1 the ratio is a mean; with 2 TP over 2 TP + FP + FN it is the pooled Dice. Subjects are drawn
    with replacement, with all their cases. With fewer than about ten subjects such an interval is too narrow.

    Args:
        numerators, denominators: (N,), one value per case.
        subjects: whom each case belongs to; None: each case is a subject.
        level: share of the resampled ratios inside the interval.
        resamples: number of draws.
        seed: of the draws; the same input gives the same interval.

    Returns:
        The bounds; nan with fewer than two subjects, or if all denominators are 0.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    numerators, denominators = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    members = np.arange(numerators.size) if subjects is None else np.asarray([str(subject) for subject in subjects])
    names, index = np.unique(members, return_inverse=True)
    if len(names) < 2 or not denominators.any():
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    over, under = (np.bincount(index, weights)[draws].sum(axis=1) for weights in (numerators, denominators))
    # a draw may hold healthy subjects only, whose ratio is undefined
    low, high = np.quantile(over[under > 0] / under[under > 0], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
