"""Unlabeled scans in the order in which they are worth drawing, each with a reason."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from common.data import subject_of
from common.errors import InputError
from common.scans import open_scan

from .doubt import Doubt, doubt_of
from .features import describe, points_of
from .pool import Case, Pool, first_image
from .results import Result, opinion_of
from .selection import Choice, distances, in_order, k_center, typical

logger = logging.getLogger(__name__)

STRATEGIES = ("typical", "coverage", "doubt", "load", "random")
NEEDS_RESULTS = ("doubt", "load")


class Pick(NamedTuple):
    """A scan to draw.

    Attributes:
        case: of the datalist.
        name: by which files and pages call it.
        reason: one sentence.
        numbers: what the sentence is made of, for the table.
        doubt: of its draft; None without results.
        results: files of the methods; empty without.
    """

    case: Case
    name: str
    reason: str
    numbers: dict[str, float]
    doubt: Doubt | None
    results: Sequence[Result]


def doubts_of(pool: Pool, results: Sequence[Sequence[Result]], labels: dict[int, str], plane: str) -> list[Doubt]:
    """Doubt of the draft of every scan that may be drawn; see :func:`annotation.doubt.doubt_of`."""
    found = []
    pairs = [*zip(pool.unlabeled, results, strict=True)]
    for case, scan in tqdm(pairs, desc="reading results", unit=" scan", disable=None):
        image = first_image(case)
        opinions = [opinion_of(result, labels, image) for result in scan]
        found.append(doubt_of(opinions, open_scan(image).affine, plane))
    return found


def rank(
    pool: Pool,
    strategy: str,
    count: int,
    seed: int = 0,
    results: Sequence[Sequence[Result]] = (),
    doubts: Sequence[Doubt] = (),
    diverse: bool = True,
    num_workers: int | None = 1,
) -> list[Pick]:
    """The first ``count`` scans to draw.

    Args:
        pool: the scans.
        strategy: one of :data:`STRATEGIES`.
        count: at most so many, one of each person.
        seed: of ``random`` and of the groups of ``typical``.
        results, doubts: of the scans that may be drawn, in their order; ``doubt`` and ``load`` need them.
        diverse: ``doubt`` weighs by the distance to what is labeled or chosen.
        num_workers: processes that look at the scans.

    Raises:
        InputError: if the strategy needs results and there are none.
    """
    if strategy in NEEDS_RESULTS and not doubts:
        raise InputError(f"strategy is {strategy}, expected --results with the folder of an inference for it")
    cases = [*pool.unlabeled, *pool.labeled]
    people = [subject_of(case) for case in cases]
    known = list(range(len(pool.unlabeled), len(cases)))
    if strategy == "random":
        choices = in_order(np.random.default_rng(seed).random(len(cases)), known, people, count)
    elif strategy == "load":
        choices = in_order([d.draft_ml for d in doubts] + [0.0] * len(known), known, people, count)
    elif strategy == "doubt" and not diverse:
        choices = in_order([d.score for d in doubts] + [0.0] * len(known), known, people, count)
    else:
        points = points_of(describe(cases, num_workers))
        between = distances(points)
        if strategy == "typical":
            choices = typical(points, known, people, count, seed)
        else:
            weights = np.array([d.score for d in doubts] + [0.0] * len(known)) if strategy == "doubt" else None
            choices = k_center(between, known, people, count, weights)
    logger.info("%d of %d scans to draw, by %s", len(choices), len(pool.unlabeled), strategy)
    return [_pick(pool, strategy, choice, number, results, doubts) for number, choice in enumerate(choices)]


def _pick(
    pool: Pool,
    strategy: str,
    choice: Choice,
    number: int,
    results: Sequence[Sequence[Result]],
    doubts: Sequence[Doubt],
) -> Pick:
    case = pool.unlabeled[choice.index]
    doubt = doubts[choice.index] if doubts else None
    scan = results[choice.index] if results else ()
    numbers: dict[str, Any] = {"distance": choice.distance, "group": choice.group or None}
    if doubt is not None:
        numbers |= {
            "draft_ml": doubt.draft_ml,
            "expected_ml": doubt.expected_ml,
            "wrong_ml": doubt.wrong_ml,
            "disagreement_ml": doubt.disagreement_ml,
            "expected_dice": 1 - doubt.score,
        }
    name = scan[0].name if scan else case["name"]
    return Pick(case, name, _reason(strategy, choice, number, doubt, len(scan)), numbers, doubt, scan)


def _reason(strategy: str, choice: Choice, number: int, doubt: Doubt | None, methods: int) -> str:
    """Why a scan was chosen, in one sentence."""
    far = "" if np.isnan(choice.distance) else f"{choice.distance:.2f} from the nearest scan that is labeled or above"
    if strategy == "random":
        return "Drawn by lot."
    if strategy == "load":
        return (
            f"Its draft has {doubt.draft_ml:.1f} ml, {'the most of all' if number == 0 else 'the most of those left'}."
        )
    if strategy == "typical":
        if choice.group == 1:
            return "It is the only one of its kind." + (f" It lies {far}." if far else "")
        return f"It is the most typical of a group of {choice.group} people that look alike" + (
            f", {far}." if far else "."
        )
    if strategy == "coverage":
        return f"It lies {far}, farther than all others." if far else "It is in the middle: no scan is far from it."
    parts = f"A Dice of {1 - doubt.score:.2f} is expected of its draft, {doubt.wrong_ml:.1f} ml are likely wrong"
    if methods > 1:
        parts += f", the {methods} methods differ in {doubt.disagreement_ml:.1f} ml"
    return parts + (f"; it lies {far}." if far else ".")
