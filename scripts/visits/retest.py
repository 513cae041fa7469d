"""How far volumes move between two visits without change: an interval from test and retest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json, write_json
from common.intervals import conformal_quantile, least_people

SHIPPED = Path(__file__).with_name("retest.json")
LEVEL = 0.9
CLASSES_ML = (0.03, 0.1, 0.3, 1.0, 3.0)  # bounds between sizes of lesions
MIN_LESIONS = 10  # of a size, below which the next smaller sizes are joined with it
FLOOR_ML = 0.5  # loads below are judged as this one


@dataclass(frozen=True)
class Retest:
    """What pairs of visits without change say.

    Attributes:
        level: share of such pairs, and of their lesions, whose change is in the interval.
        pairs: how many there were.
        share: half width of the interval of a load, as a share of the mean of both loads, of one of ``FLOOR_ML`` at
            least.
        lesions: one entry per size of lesion: ``up_to_ml`` (None for the largest), ``half_ml``, ``count``.
        false_changes: mean number of new and gone lesions in a pair.
        source: what the pairs were, in words.
    """

    level: float
    pairs: int
    share: float
    lesions: tuple[dict[str, Any], ...]
    false_changes: float
    source: str

    def load_interval(self, before_ml: float, after_ml: float) -> tuple[float, float]:
        """Interval of the change of the load, ml."""
        half = max(self.share * max((before_ml + after_ml) / 2, FLOOR_ML), self.lesions[0]["half_ml"])
        return after_ml - before_ml - half, after_ml - before_ml + half

    def lesion_interval(self, before_ml: float, after_ml: float) -> tuple[float, float]:
        """Interval of the change of one lesion, ml."""
        mean = (before_ml + after_ml) / 2
        half = next(c["half_ml"] for c in self.lesions if c["up_to_ml"] is None or mean <= c["up_to_ml"])
        return after_ml - before_ml - half, after_ml - before_ml + half

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        write_json(path, vars(self) | {"lesions": list(self.lesions)})


def measure_retest(
    loads: Sequence[tuple[float, float]],
    lesions: Sequence[tuple[float, float]],
    false_changes: Sequence[int],
    source: str,
    level: float = LEVEL,
    least_ml: float = 0.0,
) -> Retest:
    """The interval from pairs of visits without change.

    Half a width is the change that a share ``level`` of the pairs does not exceed, by
    :func:`common.intervals.conformal_quantile`.

    Args:
        loads: volume of all lesions at both visits, ml, a pair of numbers per pair.
        lesions: likewise of each lesion that both visits have.
        false_changes: new and gone lesions of each pair.
        source: what the pairs were, in words.
        level: above 0 and below 1.
        least_ml: the smallest change that was looked for, the least half width of a lesion.

    Raises:
        InputError: if there are too few pairs for the level, or no lesions.

    Reference:
        Lei et al., "Distribution-free predictive inference for regression", JASA 2018.
    """
    needed = least_people(level)
    if len(loads) < needed:
        raise InputError(
            f"there are {len(loads)} pairs of test and retest, expected {needed} or more for an interval of {level:.0%}"
        )
    if not lesions:
        raise InputError("no pair of test and retest has a lesion at both visits, expected pairs with lesions")
    shares = [abs(b - a) / max((a + b) / 2, FLOOR_ML) for a, b in loads]
    return Retest(
        level=level,
        pairs=len(loads),
        share=round(conformal_quantile(shares, level), 4),
        lesions=tuple(_classes(lesions, level, least_ml)),
        false_changes=round(float(np.mean(false_changes)), 3),
        source=source,
    )


def read_retest(path: str | Path) -> Retest:
    """What :meth:`Retest.save` wrote.

    Raises:
        InputError: if the file is of another form.
    """
    content = read_json(path, "what compare_visits.py --measure_retest wrote", dict)
    try:
        found = Retest(**content | {"lesions": tuple(content["lesions"])})
        numbers = [found.share, found.level, found.false_changes, *(c["half_ml"] for c in found.lesions)]
        ordered = all(c["up_to_ml"] is not None for c in found.lesions[:-1]) and found.lesions[-1]["up_to_ml"] is None
        if not ordered or not all(isinstance(n, int | float) and n >= 0 for n in numbers):
            raise ValueError("sizes or numbers are odd")
    except (TypeError, KeyError, ValueError, IndexError) as e:
        raise InputError(f"{path} is not understood ({e}), expected what --measure_retest wrote") from e
    return found


def _classes(lesions: Sequence[tuple[float, float]], level: float, least_ml: float) -> list[dict[str, Any]]:
    """Half widths by the size of a lesion, which do not fall with it. Small classes join the next larger one."""
    means = np.array([(a + b) / 2 for a, b in lesions])
    changes = np.array([abs(b - a) for a, b in lesions])
    found: list[dict[str, Any]] = []
    low, half = 0.0, least_ml
    for up_to in (*CLASSES_ML, None):
        inside = (means > low) & (means <= (np.inf if up_to is None else up_to))
        if inside.sum() >= max(MIN_LESIONS, least_people(level)):
            half = max(half, conformal_quantile(changes[inside], level))
            found.append({"up_to_ml": up_to, "half_ml": round(half, 4), "count": int(inside.sum())})
            low = np.inf if up_to is None else up_to
        elif up_to is None:
            few = changes[inside]
            largest = max(half, float(few.max())) if inside.any() else half
            found.append({"up_to_ml": None, "half_ml": round(largest, 4), "count": int(inside.sum())})
    return found
