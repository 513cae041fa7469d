"""Pairs of visits compared: aligned, segmented together, matched lesion by lesion, scored against a reference."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from common.errors import InputError
from preparation.registration import require_simpleitk

from .alignment import Halfway, halfway
from .joint import Joint, log_odds, segment
from .lesions import EARLIER, LATER, TOUCHING, Lesion, Score, difference_of_masks, match_lesions, score
from .retest import Retest
from .scans import Loaded, Visit, load

logger = logging.getLogger(__name__)
MIN_OVERLAP = 0.9  # of the smaller brain, that both visits show


@dataclass(frozen=True)
class Settings:
    """What is done to a pair.

    Attributes:
        pairs: ``consecutive`` visits, or ``all`` pairs of a person.
        align: search how the visits lie against each other; False trusts the headers.
        min_change_mm3: smaller changes are none.
        reference: key of the masks of changes; with ``label`` the difference of the drawn masks is the reference.
    """

    pairs: str = "consecutive"
    align: bool = True
    min_change_mm3: float = 10.0
    reference: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What was found between two visits; arrays are on the half-way grid.

    Attributes:
        visits: the earlier and the later one.
        grid: the half-way grid.
        joint: segmentation of both visits.
        lesions: matched, the largest change first.
        change: uint8, values of :data:`visits.lesions.CHANGES`.
        brain: bool, what both visits show.
        baseline_ml: volume of the two independent masks.
        baseline_changes: connected changes of their difference: those of the later, and of the earlier one.
        outside_ml: lesions of either visit where the other shows no brain; they are not compared.
        scores: ``joint`` and ``baseline`` against the reference; empty without one.
        warnings: sentences.
    """

    visits: tuple[Visit, Visit]
    grid: Halfway
    joint: Joint
    lesions: list[Lesion]
    change: np.ndarray
    brain: np.ndarray
    baseline_ml: tuple[float, float]
    baseline_changes: tuple[int, int]
    outside_ml: tuple[float, float]
    scores: Mapping[str, Score]
    warnings: Sequence[str]

    @property
    def name(self) -> str:
        """Subject and visits, for people."""
        return f"{self.visits[0].subject}, {self.visits[0].visit} to {self.visits[1].visit}"

    @property
    def volumes_ml(self) -> tuple[float, float]:
        """Lesions at the earlier and at the later visit."""
        return sum(lesion.before_ml for lesion in self.lesions), sum(lesion.after_ml for lesion in self.lesions)

    def count(self, fate: str) -> int:
        """Lesions of a fate; merged and split ones that changed beyond their interval count as such only."""
        return sum(lesion.fate == fate for lesion in self.lesions)

    def row(self, retest: Retest | None) -> dict[str, Any]:
        """The line of ``visits.tsv``."""
        before, after = self.volumes_ml
        low, high = retest.load_interval(before, after) if retest else (None, None)
        row: dict[str, Any] = {"subject": self.visits[0].subject}
        row |= {"earlier": self.visits[0].visit, "later": self.visits[1].visit}
        row |= {"earlier_ml": before, "later_ml": after, "change_ml": after - before, "low_ml": low, "high_ml": high}
        row |= {f: self.count(f) for f in ("new", "gone", "grown", "shrunk", "stable", "merged", "split")}
        voxel_ml = float(np.prod(self.grid.spacing)) / 1000
        for name, values in {"appeared_ml": LATER, "disappeared_ml": EARLIER}.items():
            row[name] = float(np.isin(self.change, values).sum()) * voxel_ml
        row |= {"baseline_earlier_ml": self.baseline_ml[0], "baseline_later_ml": self.baseline_ml[1]}
        row |= {"baseline_appeared": self.baseline_changes[0], "baseline_disappeared": self.baseline_changes[1]}
        row |= {"not_compared_ml": sum(self.outside_ml), "round_trip_mm": self.grid.round_trip_mm}
        row |= {"contrast": self.joint.contrast, "noise": self.joint.noise, "shading": self.joint.shading}
        for method, found in self.scores.items():
            row |= found.numbers(method)
        return row | {"warnings": "; ".join(self.warnings)}


def pairs_of(people: Mapping[str, Sequence[Visit]], pairs: str) -> list[tuple[Visit, Visit]]:
    """The pairs that are compared, an earlier and a later visit each."""
    choose = itertools.pairwise if pairs == "consecutive" else lambda visits: itertools.combinations(visits, 2)
    return [pair for visits in people.values() for pair in choose(visits)]


def compare(pair: tuple[Visit, Visit], settings: Settings, retest: Retest | None) -> Comparison:
    """Compare two visits of a person.

    Raises:
        InputError: if a file cannot be used, or the visits do not show the same brain.
    """
    require_simpleitk()
    logger.info("%s and %s: what has changed", *(visit.image for visit in pair))
    loaded = load(pair[0]), load(pair[1])
    images, brains = ((one, other) for one, other in ((x.image for x in loaded), (x.brain for x in loaded)))
    grid = halfway(images, brains, settings.align)
    masks = [grid.bring(x.image.like(x.brain.astype(np.float32)), i).values >= 0.5 for i, x in enumerate(loaded)]
    brain = masks[0] & masks[1]
    warnings = _warnings(pair, grid, masks, brain)
    shares = [grid.bring(x.lesions, i).values for i, x in enumerate(loaded)]
    evidence = tuple(log_odds(s, v.threshold) for s, v in zip(shares, pair, strict=True))
    gray = tuple(grid.bring(x.image, i).values for i, x in enumerate(loaded))
    joint = segment(gray, evidence, brain, grid.spacing, settings.min_change_mm3)
    if joint.contrast == 0:
        warnings.append("no map shows a lesion, so none can change")
    lesions, change = match_lesions(*joint.masks(), joint.z, grid.spacing, retest)
    voxel_ml = float(np.prod(grid.spacing)) / 1000
    independent = [grid.bring(x.mask, i).values >= 0.5 for i, x in enumerate(loaded)]
    outside = tuple(float((m & ~brain).sum()) * voxel_ml for m in independent)
    independent = [m & brain for m in independent]
    differences = difference_of_masks(independent, grid.spacing, settings.min_change_mm3)
    reference = _reference(loaded, grid, brain, settings)
    scores = {}
    if reference is not None:
        found = {"joint": change > 1, "baseline": differences[0] | differences[1]}
        scores = {k: score(m, reference, grid.spacing, settings.min_change_mm3) for k, m in found.items()}
    return Comparison(
        visits=pair,
        grid=grid,
        joint=joint,
        lesions=lesions,
        change=change,
        brain=brain,
        baseline_ml=tuple(float(m.sum()) * voxel_ml for m in independent),
        baseline_changes=tuple(_count(m) for m in differences),
        outside_ml=outside,
        scores=scores,
        warnings=warnings,
    )


def _warnings(pair: tuple[Visit, Visit], grid: Halfway, brains: Sequence[np.ndarray], both: np.ndarray) -> list[str]:
    """What speaks against a comparison."""
    smaller = min(mask.sum() for mask in brains)
    if not both.any():
        raise InputError(
            f"the brains of {pair[0].image} and {pair[1].image} do not meet, expected two visits of one head"
        )
    found = [f"{pair[1].visit} {grid.doubt}"] if grid.doubt else []
    if both.sum() < MIN_OVERLAP * smaller:
        found.append(f"the brains share {both.sum() / smaller:.0%} of the smaller one only")
    if pair[0].source != pair[1].source:
        found.append(f"lesions are from {pair[0].source} at one visit and from {pair[1].source} at the other")
    for sentence in found:
        logger.warning("%s and %s: %s", pair[0].image, pair[1].image, sentence)
    return found


def _reference(
    loaded: tuple[Loaded, Loaded], grid: Halfway, brain: np.ndarray, settings: Settings
) -> np.ndarray | None:
    """Changes that somebody drew, on the half-way grid; None if nobody did."""
    drawn = [None if x.reference is None else grid.bring(x.reference, i).values >= 0.5 for i, x in enumerate(loaded)]
    if settings.reference == "label":
        if any(mask is None for mask in drawn):
            return None
        both = difference_of_masks([mask & brain for mask in drawn], grid.spacing, settings.min_change_mm3)
        return both[0] | both[1]
    return None if drawn[1] is None else drawn[1] & brain


def _count(mask: np.ndarray) -> int:
    return int(ndimage.label(mask, TOUCHING)[1])
