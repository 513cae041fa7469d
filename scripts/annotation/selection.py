"""Orders of points: covering all of them, or beginning with the most typical of each group.

A point is a scan in a space in which like scans are near each other. Points of one person never follow each other: with
the first of them the person is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans

NEIGHBORS = 20  # of the paper's typicality


class Choice(NamedTuple):
    """A point that was chosen.

    Attributes:
        index: of the point.
        distance: to the nearest point that was known or chosen before; nan if there was none.
        group: number of people in its group; 0 where there are no groups.
        score: what it was chosen by.
    """

    index: int
    distance: float
    group: int
    score: float


def distances(points: np.ndarray) -> np.ndarray:
    """Euclidean distances of points (N, D), (N, N)."""
    squares = (points**2).sum(1)
    return np.sqrt((squares[:, None] + squares - 2 * points @ points.T).clip(min=0))


def k_center(
    between: np.ndarray, known: Sequence[int], people: Sequence[str], count: int, weights: np.ndarray | None = None
) -> list[Choice]:
    """Farthest first: each choice is the point that lies farthest from all that are known or chosen.

    Without a known point the first is the one whose farthest point is nearest. With weights, the distance counts as
    many times as the weight says: what is doubtful and unlike what is known comes first, and of ten like points one.

    Args:
        between: distances, (N, N).
        known: indices of labeled points, which are not chosen.
        people: (N,), whom each point belongs to.
        count: at most so many choices.
        weights: (N,), not negative.

    Reference:
        Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018, the
        greedy algorithm. The weights are ours.
    """
    weights = np.ones(len(between)) if weights is None else np.asarray(weights, dtype=float)
    free = _free(known, people)
    nearest = between[:, list(known)].min(1) if len(known) else np.full(len(between), np.nan)
    chosen: list[Choice] = []
    while free.any() and len(chosen) < count:
        if np.isnan(nearest).any():
            score = weights if np.ptp(weights) > 0 else -between[:, free].max(1)
        else:
            score = weights * nearest
        index = int(np.where(free, score, -np.inf).argmax())
        chosen.append(Choice(index, float(nearest[index]), 0, float(score[index])))
        free &= np.array([person != people[index] for person in people])
        nearest = between[:, index].copy() if np.isnan(nearest).any() else np.minimum(nearest, between[:, index])
    return chosen


def typical(points: np.ndarray, known: Sequence[int], people: Sequence[str], count: int, seed: int = 0) -> list[Choice]:
    """The most typical point of each group, the largest group first, of those with fewest labels.

    There are as many groups, of k-means, as known people and choices. Typicality is the inverse of the mean distance to
    the nearest points of the group. A person counts once, however many points are theirs.

    Args:
        points: (N, D).
        known, people, count: as of :func:`k_center`.
        seed: of k-means.

    Reference:
        Hacohen, Dekel and Weinshall, "Active learning on a budget: opposite strategies suit high and low budgets", ICML
        2022 (TypiClust). They cap the number of groups at 500 and leave out groups of fewer than 5 points, of thousands
        of images; here there are tens of scans, and no group is left out.
    """
    visits = {person: list(people).count(person) for person in people}
    share = np.array([1 / visits[person] for person in people])
    everybody = len(visits)
    labeled = {people[index] for index in known}
    count = min(count, everybody - len(labeled))
    groups = min(len(labeled) + count, len(np.unique(points, axis=0)))
    member = KMeans(groups, n_init=10, random_state=seed).fit(points, sample_weight=share).labels_
    between, free = distances(points), _free(known, people)
    drawn = np.bincount(member[list(known)], weights=share[list(known)], minlength=groups) if len(known) else None
    drawn = np.zeros(groups) if drawn is None else drawn
    size = np.bincount(member, weights=share, minlength=groups)
    chosen: list[Choice] = []
    taken = list(known)
    while free.any() and len(chosen) < count:
        open_ = [group for group in range(groups) if free[member == group].any()]
        group = min(open_, key=lambda g: (round(drawn[g], 6), -round(size[g], 6), g))
        inside = np.flatnonzero(member == group)
        score = typicality(between[np.ix_(inside, inside)])
        index = int(inside[np.where(free[inside], score, -np.inf).argmax()])
        distance = float(between[index, taken].min()) if taken else float("nan")
        members = len({people[i] for i in inside})
        chosen.append(Choice(index, distance, members, float(score[inside == index][0])))
        taken.append(index)
        drawn[group] += 1
        free &= np.array([person != people[index] for person in people])
    return chosen


def typicality(between: np.ndarray, neighbors: int = NEIGHBORS) -> np.ndarray:
    """1 / mean distance to the nearest other points, (N,), of distances (N, N); 0 for a point that is alone."""
    count = min(neighbors, len(between) - 1)
    if count == 0:
        return np.zeros(len(between))
    nearest = np.sort(between, axis=1)[:, 1 : count + 1]  # the first is the point itself
    return 1 / nearest.mean(1).clip(min=1e-12)


def in_order(scores: np.ndarray, known: Sequence[int], people: Sequence[str], count: int) -> list[Choice]:
    """The points with the largest scores (N,), one of each person."""
    free = _free(known, people)
    chosen: list[Choice] = []
    for index in np.argsort(-np.asarray(scores, dtype=float), kind="stable"):
        if free[index] and len(chosen) < count:
            chosen.append(Choice(int(index), float("nan"), 0, float(scores[index])))
            free &= np.array([person != people[index] for person in people])
    return chosen


def _free(known: Sequence[int], people: Sequence[str]) -> np.ndarray:
    taken = {people[index] for index in known}
    return np.array([person not in taken for person in people])
