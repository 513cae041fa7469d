"""What the experiments share: one seed's folder with its settings, and scores that are kept."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import difference, fingerprint_of, read_json, write_json
from common.metrics import voxel_overlap
from common.scans import read_scan
from phantom.cohort import make_cohort

# of one arm: "values", score -> value; and "cases", score -> subject -> (numerator, denominator)
Result = dict[str, Any]


def result_of(cases: Mapping[str, Mapping[str, tuple[float, float]]], **values: float) -> Result:
    """The result of an arm, from its scores subject by subject.

    Args:
        cases: score -> test subject -> numerator and denominator; the score is the ratio of their sums. The denominator
            of a mean is 1, or the number of what was averaged; of a pooled Dice it is 2 TP + FP + FN.
        values: further scores, which are not kept subject by subject.
    """
    cases = {
        score: {subject: (float(n), float(d)) for subject, (n, d) in found.items()} for score, found in cases.items()
    }
    return {"values": {score: ratio(found) for score, found in cases.items()} | values, "cases": cases}


def ratio(case_values: Mapping[str, tuple[float, float]]) -> float:
    """Sum of numerators over sum of denominators; 0 if that is 0, as of a precision without a prediction."""
    numerator, denominator = (sum(part) for part in zip(*case_values.values(), strict=True))
    return float(numerator / denominator) if denominator else 0.0


def dice_parts(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Numerator and denominator of the Dice of two masks: 2 TP and 2 TP + FP + FN."""
    overlap = voxel_overlap(prediction, reference)
    return 2.0 * overlap.true_positives, float(overlap.predicted_voxels + overlap.reference_voxels)


class SeedStudy(ABC):
    """All arms of one seed. It goes to the processes that train, so it holds nothing but names and numbers.

    Args:
        folder: everything of this seed.
        seed: of subjects and trainings.
        settings: all that the results depend on, ``BUDGETS[budget]`` of the module.
    """

    def __init__(self, folder: Path, seed: int, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.seed = seed
        self.settings = settings
        self.data = folder / "data"

    @abstractmethod
    def run(self, pool: Executor) -> dict[str, Result]:
        """Arm -> result; arms are trained by the processes of the pool."""

    def keep_settings(self, version: str) -> None:
        """Write the settings beside the scores, or refuse a folder of others: what is in it would not be made again.

        Args:
            version: of the bundle, whose configs have the settings that an experiment leaves as they are.

        Raises:
            InputError: if the folder holds results of other settings or of another version.
        """
        path = self.folder / "settings.json"
        wanted = fingerprint_of({"version": version, "seed": self.seed, **self.settings})
        if not path.is_file():
            write_json(path, wanted)
            return
        changed = difference(wanted, read_json(path, "settings of an experiment", dict), "the folder")
        if changed:
            raise InputError(f"{path}: {changed}; expected the same: remove its folder or give another output_dir")

    def once(self, arm: str, work: Callable[..., Result], *arguments: Any) -> Result:
        """What ``work`` returns, kept in a file with the time it took: an arm that is done is not run again."""
        path = self.folder / arm / "scores.json"
        if not path.is_file():
            began = time.time()
            result = work(*arguments)
            write_json(path, {**result, "began": began, "ended": time.time()})
        return read_json(path)

    def spans(self) -> list[tuple[float, float]]:
        """When work on the arms began and ended, in seconds."""
        kept = [read_json(path) for path in self.folder.glob("*/scores.json")]
        return [(result["began"], result["ended"]) for result in kept]


def voxels(path: str | Path) -> np.ndarray:
    """Of a NIfTI file, (X, Y, Z), float32."""
    return read_scan(path)[0]


def phantoms(folder: Path, groups: Mapping[str, tuple[int, int, int]], **options: Any) -> Path:
    """Datalist of a cohort of :func:`phantom.cohort.make_cohort`, which is made where it is not there yet."""
    if not (folder / "datalist.json").is_file():
        make_cohort(folder, groups, num_workers=1, **options)
    return folder / "datalist.json"
