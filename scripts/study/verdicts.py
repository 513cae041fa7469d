"""Claims, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .seed import Result, ratio

HELD, NOT_HELD, WITHIN_NOISE = "held", "not held", "within noise"
# what a page says of its marks: the definition of interval_of_gap and verdict
METHOD = """\
A gap is by how much the first arm is better than the second, mean over seeds. Its interval, 95 %, is from 5000
resamples: seeds are drawn with replacement, then test subjects of each, the same for both arms (pairs of subjects by
the fixed one); with three seeds it is about as wide as the seeds are apart. **Held**: the interval is above the margin.
**Not held**: it is below. **Within noise**: neither. Claims without a figure of the paper are ours."""


class Claim(NamedTuple):
    """An ordering of two arms: the score of ``better`` is above that of ``worse`` by more than ``margin``.

    ``paper`` names the arms whose figures in the paper stand beside ours, where these are not the same two.
    """

    better: str
    worse: str
    score: str
    margin: float
    text: str
    paper: tuple[str, str] | None = None


def interval_of_gap(
    better: list[Mapping[str, tuple[float, float]]],
    worse: list[Mapping[str, tuple[float, float]]],
    level: float = 0.95,
    resamples: int = 5000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean gap, over seeds and the subjects of each.

    Both were drawn at random, so both are resampled: an interval over the subjects alone would take for certain what
    one training happened to learn.

    Args:
        better, worse: per seed, subject -> numerator and denominator, the same subjects in both.
        level: share of the resampled gaps inside the interval.
        resamples: number of draws.

    Raises:
        ValueError: if the two arms of a seed were tested on different subjects.

    Reference:
        Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
    """
    generator = np.random.default_rng(0)
    gaps = []  # per seed: (resamples,)
    for b, w in zip(better, worse, strict=True):
        if b.keys() != w.keys():
            raise ValueError(f"subjects {sorted(b)} and {sorted(w)} differ")
        draws = generator.integers(len(b), size=(resamples, len(b)))
        sums = [np.array([arm[subject] for subject in b])[draws].sum(axis=1) for arm in (b, w)]
        ratios = [np.divide(n, d, out=np.zeros(resamples), where=d > 0) for n, d in (s.T for s in sums)]
        gaps.append(ratios[0] - ratios[1])
    # the order is shuffled, so that a seed which is drawn twice has other subjects the second time
    drawn = [
        np.stack(gaps)[generator.integers(len(gaps), size=resamples), generator.permutation(resamples)] for _ in gaps
    ]
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verdict(interval: tuple[float, float], margin: float) -> str:
    """Held, not held or within noise; a bound that equals the margin leaves it open."""
    low, high = interval
    return HELD if low > margin else NOT_HELD if high < margin else WITHIN_NOISE


def judge(
    claim: Claim, results: Mapping[int, Mapping[str, Result]], paper: Mapping[str, Mapping[str, float]], sign: int = 1
) -> dict[str, Any]:
    """What became of a claim, for the evidence.

    Args:
        claim: about arms of the results.
        results: seed -> arm -> result.
        paper: arm -> score -> figure of the paper.
        sign: -1 for a score of which less is better.
    """
    arms = claim.better, claim.worse
    better, worse = ([result[arm]["cases"][claim.score] for result in results.values()] for arm in arms)
    gaps = [sign * (ratio(b) - ratio(w)) for b, w in zip(better, worse, strict=True)]
    interval = sorted(sign * bound for bound in interval_of_gap(better, worse))
    figures = [paper.get(arm, {}).get(claim.score) for arm in claim.paper or arms]
    return {
        "claim": claim.text,
        "better": claim.better,
        "worse": claim.worse,
        "score": claim.score,
        "margin": claim.margin,
        "gaps": [round(gap, 4) for gap in gaps],
        "gap": round(float(np.mean(gaps)), 4),
        "interval": [round(bound, 4) for bound in interval],
        "subjects": sum(map(len, better)),
        "verdict": verdict(tuple(interval), claim.margin),
        "paper": None if None in figures else {"better": figures[0], "worse": figures[1]},
    }


def summarize(results: Mapping[int, Mapping[str, Result]], study: ModuleType) -> dict[str, Any]:
    """Values of every arm in the order of the seeds, and every claim on arms that were run.

    Args:
        results: seed -> arm -> result.
        study: has ``ARMS`` and ``SCORES``, name -> what it is; ``LESS_IS_BETTER``, names of scores; ``CLAIMS``, name ->
            claim; ``PAPER``, arm -> score -> figure of the paper.
    """
    first = next(iter(results.values()))
    return {
        "seeds": list(results),
        "scores": study.SCORES,
        "arms": {
            arm: {
                "what": study.ARMS[arm],
                "values": {
                    score: [round(result[arm]["values"][score], 4) for result in results.values()]
                    for score in study.SCORES
                    if score in first[arm]["values"]  # not every score is about every arm
                },
                "paper": study.PAPER.get(arm, {}),
            }
            for arm in first
        },
        "claims": {
            name: judge(claim, results, study.PAPER, -1 if claim.score in study.LESS_IS_BETTER else 1)
            for name, claim in study.CLAIMS.items()
            if {claim.better, claim.worse} <= first.keys()
        },
    }
