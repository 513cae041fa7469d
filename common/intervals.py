"""How far a volume can be trusted: intervals by split conformal prediction, and maps that are scaled to probabilities.

Both come from scans whose references are known and that no weight or threshold was chosen on. Scans like those are
covered as often as promised, whatever the method is (Vovk et al. 2005; Lei et al. 2018,
doi:10.1080/01621459.2017.1307116).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from .errors import InputError
from .files import difference, read_json

FLOOR_ML = 1.0  # volumes are compared as their logarithm, less than this much hardly counts
LARGEST_LOGIT = 20.0
_ORIGIN = ("bundle", "version", "weights", "options", "config")


def relative_errors(reference_ml: ArrayLike, found_ml: ArrayLike) -> np.ndarray:
    """``abs(log((reference + floor) / (found + floor)))``: a large load may be off by more than a small one."""
    reference, found = (np.asarray(volume, float) + FLOOR_ML for volume in (reference_ml, found_ml))
    return np.abs(np.log(reference / found))


def conformal_quantile(errors: ArrayLike, level: float) -> float:
    """The ``ceil((n + 1) level)``-th smallest of n errors: the next one is at most this with probability ``level``.

    Infinite where n is too small for the level: fewer than nine for 90 %.
    """
    errors = np.sort(np.asarray(errors, float))
    rank = math.ceil(round((len(errors) + 1) * level, 9))
    return float(errors[rank - 1]) if rank <= len(errors) else math.inf


def least_people(level: float) -> int:
    """How many errors a finite quantile needs."""
    return math.ceil(round(level / (1 - level), 9))


class Scaling(NamedTuple):
    """``sigmoid(slope * logit(p) + intercept)`` (Platt 1999)."""

    slope: float
    intercept: float

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities of any shape, scaled; 0 stays 0."""
        return np.where(probabilities > 0, expit(self.slope * limited_logit(probabilities) + self.intercept), 0.0)


def limited_logit(probabilities: ArrayLike) -> np.ndarray:
    """``log(p / (1 - p))``, at most 20 from 0."""
    return np.clip(logit(np.asarray(probabilities, float)), -LARGEST_LOGIT, LARGEST_LOGIT)


def origin_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What made a result, but for the scan: bundle and version, weights, options, config.

    Args:
        facts: what inference writes into the JSON beside a result.
    """
    return {name: facts.get(name) for name in _ORIGIN}


def read_intervals(path: str | Path | None) -> VolumeIntervals | None:
    """For configs: intervals of a file, or none without one."""
    return None if path is None else VolumeIntervals.read(path)


@dataclass(frozen=True)
class VolumeIntervals:
    """Volumes that a bundle found and those of the references, and what follows from them for the next scan.

    Attributes:
        level: share of the scans whose volume lies in its interval.
        origin: what made the results, see :func:`origin_of`; intervals hold for results of the same origin only.
        data: where the references are from.
        volumes: label -> ``(person, reference, found)`` of each scan, volumes in ml; persons as numbers.
        scalings: label -> of its map.
    """

    level: float
    origin: Mapping[str, Any]
    data: str
    volumes: Mapping[str, Sequence[tuple[int, float, float]]]
    scalings: Mapping[str, Scaling]

    @classmethod
    def read(cls, path: str | Path) -> VolumeIntervals:
        """From a file that ``scripts/calibrate_volumes.py`` wrote.

        Raises:
            InputError: if it is no such file.
        """
        content = read_json(path, "intervals, as scripts/calibrate_volumes.py writes them", dict)
        try:
            volumes = {
                str(label): [(int(person), float(reference), float(found)) for person, reference, found in rows]
                for label, rows in content["volumes"].items()
            }
            scalings = {str(label): Scaling(*map(float, pair)) for label, pair in content["scalings"].items()}
            found = cls(float(content["level"]), dict(content["origin"]), str(content["data"]), volumes, scalings)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise InputError(f"{path} holds no intervals, expected a file of scripts/calibrate_volumes.py") from e
        numbers = [number for rows in volumes.values() for row in rows for number in row[1:]]
        if not (0 < found.level < 1 and all(math.isfinite(number) and number >= 0 for number in numbers)):
            raise InputError(
                f"{path}: level is {found.level} or a volume is below 0, expected 0 to 1 and volumes in ml"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """What :meth:`read` reads."""
        return {
            "level": self.level,
            "data": self.data,
            "origin": dict(self.origin),
            "volumes": {label: [list(row) for row in rows] for label, rows in self.volumes.items()},
            "scalings": {label: list(scaling) for label, scaling in self.scalings.items()},
        }

    @cached_property
    def _quantiles(self) -> dict[str, float]:
        return {label: conformal_quantile(_of_people(rows), self.level) for label, rows in self.volumes.items()}

    def of(self, label: str, found_ml: float) -> tuple[float, float]:
        """Lowest and highest volume in ml; nan without enough people, or without this label."""
        quantile = self._quantiles.get(label, math.inf)
        if not math.isfinite(quantile):
            return math.nan, math.nan
        low, high = ((found_ml + FLOOR_ML) * math.exp(sign * quantile) - FLOOR_ML for sign in (-1, 1))
        return max(0.0, low), high

    def note(self) -> str:
        """One sentence for the page: what the intervals are, or why there are none."""
        people = {label: len({person for person, *_ in rows}) for label, rows in self.volumes.items()}
        needed = least_people(self.level)
        few = [f"{label} ({count})" for label, count in people.items() if count < needed]
        if few:
            return (
                f"No interval of {', '.join(few)}: too few people with references, expected {needed} or more for "
                f"{self.level:.0%}."
            )
        return (
            f"An interval holds the volume of the reference in {self.level:.0%} of the scans that are like those it "
            f"comes from ({self.data}). Scans of another scanner may be covered less often."
        )

    def check_origin(self, facts: Mapping[str, Any]) -> None:
        """Refuse to say anything on results that are made in another way than those that the intervals come from.

        Args:
            facts: see :func:`origin_of`.

        Raises:
            InputError: naming the difference.
        """
        reason = difference(_flat(origin_of(facts)), _flat(self.origin), "the intervals' file")
        if reason:
            raise InputError(f"the intervals are of results that were made in another way: {reason}")


def _of_people(rows: Sequence[tuple[int, float, float]]) -> list[float]:
    """The largest error of each person: scans of one person are no two samples."""
    worst: dict[int, float] = {}
    for person, reference, found in rows:
        worst[person] = max(worst.get(person, 0.0), float(relative_errors(reference, found)))
    return list(worst.values())


def _flat(origin: Mapping[str, Any]) -> dict[str, str]:
    """Options by their names beside the rest, as text, for a sentence that names the one that differs."""
    rest = {name: value for name, value in origin.items() if name != "options"}
    return {name: json.dumps(value, default=str) for name, value in (rest | dict(origin.get("options") or {})).items()}
