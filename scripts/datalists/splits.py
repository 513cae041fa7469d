"""Which subjects are for training, validation and test, or in which fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data import subject_of
from common.errors import InputError


def split(
    cases: Sequence[dict[str, Any]], validation: float, test: float, folds: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Sections of the datalist; the subjects of the test do not depend on folds.

    Raises:
        InputError: if shares and folds make no sense.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise InputError(f"validation is {validation} and test {test}, expected shares of subjects, below 1 in all")
    if folds and validation:
        raise InputError(f"folds is {folds} and validation {validation}, expected one of them")
    shares = {"training": 1 - validation - test, "validation": validation, "test": test}
    shares = {name: share for name, share in shares.items() if share > 0}
    sections = split_by_subject(cases, shares, seed) if len(shares) > 1 else {"training": list(cases)}
    if folds:
        sections["training"] = assign_folds(sections["training"], folds, seed)
    return sections


def split_by_subject(
    cases: Sequence[dict[str, Any]], fractions: dict[str, float], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Split cases at random so that all scans of a subject stay together.

    Args:
        cases: items of :func:`common.data.list_cases`.
        fractions: part -> share of the subjects, 1 in all. A part gets at least one subject.
        seed: the same seed, cases and fractions give the same split, in whatever order the cases come.

    Returns:
        part -> cases, in the order given.

    Raises:
        InputError: if there are fewer subjects than parts, or the seed is below 0.
        ValueError: if a fraction is not positive or their sum is not 1.
    """
    if any(share <= 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions are {fractions}, expected positive numbers with the sum 1")
    subjects = sorted({subject_of(case) for case in cases})
    if len(subjects) < len(fractions):
        raise InputError(
            f"{len(subjects)} subjects cannot fill {', '.join(fractions)}, expected {len(fractions)} or more"
        )
    if seed < 0:
        raise InputError(f"seed is {seed}, expected 0 or more")
    np.random.default_rng(seed).shuffle(subjects)
    part_of: dict[str, str] = {}
    for part, count in _shares(len(subjects), fractions).items():
        for _ in range(count):
            part_of[subjects.pop()] = part
    return {part: [case for case in cases if part_of[subject_of(case)] == part] for part in fractions}


def assign_folds(cases: Sequence[dict[str, Any]], folds: int, seed: int) -> list[dict[str, Any]]:
    """The cases with ``fold`` from 0 to ``folds - 1``; all of a subject in one, folds of like numbers of subjects.

    Raises:
        InputError: if there are fewer subjects than folds, or fewer than two folds.
    """
    subjects = sorted({subject_of(case) for case in cases})
    if not 2 <= folds <= len(subjects):
        raise InputError(f"folds is {folds} for {len(subjects)} subjects, expected 2 to {len(subjects)}")
    np.random.default_rng(seed).shuffle(subjects)
    fold_of = {subject: number % folds for number, subject in enumerate(subjects)}
    return [{**case, "fold": fold_of[subject_of(case)]} for case in cases]


def parts_by_fold(cases: Sequence[dict[str, Any]], source: str | Path) -> list[tuple[list, list, list]]:
    """Training, validation and test of each fold.

    Every fold is the test once; the one after it is for validation, the others are for training.

    Args:
        cases: all with ``fold``.
        source: where they are from, for messages.

    Raises:
        InputError: if there are less than three folds.
    """
    folds = sorted({case["fold"] for case in cases})
    if len(folds) < 3:
        raise InputError(f"{source} has {len(folds)} folds, expected 3 or more: test, validation, training")
    of_fold = {fold: [case for case in cases if case["fold"] == fold] for fold in folds}
    parts = []
    for number, fold in enumerate(folds):
        following = folds[(number + 1) % len(folds)]
        training = [case for other in folds if other not in (fold, following) for case in of_fold[other]]
        parts.append((training, of_fold[following], of_fold[fold]))
    return parts


def _shares(total: int, fractions: dict[str, float]) -> dict[str, int]:
    """Whole numbers, none below 1, with the sum ``total`` and nearest to the proportion of ``fractions``."""
    exact = {part: share * total for part, share in fractions.items()}
    counts = {part: max(int(value), 1) for part, value in exact.items()}
    while sum(counts.values()) < total:
        part = max(exact, key=lambda p: exact[p] - counts[p])
        counts[part] += 1
    while sum(counts.values()) > total:
        part = max((p for p in exact if counts[p] > 1), key=lambda p: counts[p] - exact[p])
        counts[part] -= 1
    return counts
