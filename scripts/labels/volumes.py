"""Intervals of volumes and scaled probabilities, from results on scans with references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from monai.utils import ensure_tuple
from scipy.optimize import minimize
from scipy.special import expit

from common.data import Datalist
from common.errors import InputError
from common.files import difference, read_json, write_atomically, write_json
from common.intervals import Scaling, VolumeIntervals, least_people, limited_logit, origin_of, relative_errors
from common.metrics import volume_ml
from common.options import types as t
from common.scans import json_beside, read_scan
from datalists.results import names_of_results, read_on_grid

FOREGROUND = 0.01  # a map is looked at where it is above: nearly all of a brain is 0, and right
VOXELS = 200_000  # of a case, for a fit


def calibrate_volumes(
    results_dir: t.ExistingFolder,
    output_file: t.NewFile = "intervals.json",
    level: t.ShareBelowOne = 0.9,
    datalist_file: t.File | None = None,
    section: t.Text | None = None,
    check_dir: t.ExistingFolder | None = None,
    check_section: t.Text | None = None,
) -> None:
    """Write intervals of the volumes that a bundle finds, and print how often they hold elsewhere.

    Args:
        results_dir: what inference with evaluate.json wrote for scans with references, a person in ten or more.
        output_file: JSON for --intervals_file; with a datalist a picture beside it, <name>_reliability.png.
        level: share of the scans whose volume lies in its interval.
        datalist_file: JSON of the cases, for their labels: the map is scaled to mean what it says.
        section: its part with the cases of results_dir.
        check_dir: results of other scans, made in the same way, to count how often the intervals hold there.
        check_section: part of the datalist with the cases of check_dir.
    """
    datalist = None if datalist_file is None else Datalist(datalist_file)
    results, others = read_results(results_dir), None if check_dir is None else read_results(check_dir)
    references = {} if datalist is None else references_of(results, datalist, section)
    elsewhere = {} if datalist is None or others is None else references_of(others, datalist, check_section)
    intervals = calibrate(results, level, references)
    checked = [] if others is None else coverage(intervals, others, elsewhere)
    write_json(output_file, intervals.as_dict())
    print(f"{output_file}: {intervals.data}")
    for label, scaling in intervals.scalings.items():
        before, after = reliabilities(results, references, scaling)
        write_picture(Path(output_file).with_name(f"{Path(output_file).stem}_reliability.png"), before, after)
        print(f"{label}: calibration error of the map {before.error:.4f}, scaled {after.error:.4f}")
    for found in checked:
        print(found.sentence(level))


class Results(NamedTuple):
    """What inference with ``evaluate.json`` wrote into a folder, of cases with references."""

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    origin: Mapping[str, Any]

    @property
    def labels(self) -> list[str]:
        """Names of the labels, in their order."""
        return list(dict.fromkeys(row["label_name"] for row in self.rows))

    def of(self, label: str) -> list[Mapping[str, Any]]:
        """The rows of a label."""
        return [row for row in self.rows if row["label_name"] == label]


def read_results(folder: str | Path) -> Results:
    """Read ``metrics.json`` and the origins of the masks.

    Raises:
        InputError: if there is no table, no reference, or the masks were made in different ways.
    """
    folder = Path(folder)
    table = folder / "metrics.json"
    content = read_json(table, "the table that inference with evaluate.json writes", dict)
    rows = [row for row in content.get("cases", ()) if row.get("reference_ml") is not None]
    if not rows:
        raise InputError(f"{table} has no case with a reference, expected scans with labels")
    origins = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        mask = folder / f"{name}_seg.nii.gz"
        origins[name] = origin_of(read_json(json_beside(mask), "the origin of a result", dict))
    first, origin = next(iter(origins.items()))
    for name, other in origins.items():
        reason = difference(other, origin, first)
        if reason:
            raise InputError(f"{folder}: {name} and {first} were made in different ways: {reason}, expected one way")
    return Results(folder, rows, origin)


def references_of(results: Results, datalist: Datalist, section: str | None = None) -> dict[str, Path]:
    """Name of a case in the results -> file of its label.

    Raises:
        InputError: if a case of the results has none in the datalist, or there are several labels, of which a map can
            only score one.
    """
    if len(results.labels) > 1:
        raise InputError(f"{results.folder} has the labels {', '.join(results.labels)}, expected one to scale a map by")
    own = names_of_results(datalist, section)
    labels = {
        name: item["label"]
        for item in datalist.items(section)
        if "label" in item
        for image in ensure_tuple(item["image"])
        if image
        for name in own[image]
    }
    names = [row["name"] for row in results.rows]
    missing = [name for name in names if name not in labels]
    if missing:
        raise InputError(f"{datalist} has no label of {missing[0]}, expected one for each case of {results.folder}")
    return {name: Path(labels[name]) for name in names}


def calibrate(results: Results, level: float, references: Mapping[str, Path]) -> VolumeIntervals:
    """Volumes of all scans, and the scaling of the map where there is one.

    Args:
        results: on scans that nothing was chosen on, one or more of each person.
        level: share of the volumes that an interval holds.
        references: name of a case -> its label, for the map of the only label; none without a map.

    Raises:
        InputError: if there are fewer people than the level needs, or the map says nothing.
    """
    if not 0.5 <= level < 1:
        raise InputError(f"level is {level:g}, expected a share from 0.5 to below 1, as 0.9")
    people: dict[str, int] = {}
    for row in results.rows:
        people.setdefault(row["subject"], len(people))
    most = max(len({row["subject"] for row in results.of(label)}) for label in results.labels)
    if most < least_people(level):
        raise InputError(
            f"{results.folder} has references of {most} people, expected {least_people(level)} or more for "
            f"intervals of {level:.0%}"
        )
    volumes = {
        label: [(people[row["subject"]], row["reference_ml"], row["prediction_ml"]) for row in results.of(label)]
        for label in results.labels
    }
    scalings = {}
    if references:
        (label,) = results.labels
        maps, truths = _maps(results.folder, references)
        scalings[label] = Scaling(*fit_weights([values[None] for values in maps], truths))
    scans = len({row["name"] for row in results.rows})
    data = f"{scans} scans of {len(people)} people, {results.folder.name}"
    return VolumeIntervals(level, results.origin, data, volumes, scalings)


def fit_weights(maps: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> list[float]:
    """Weights of the logits of maps, none below 0, and the intercept, of the largest likelihood.

    ``sigmoid(weights . logits + intercept)`` is the probability of the reference: of one map its :class:`Scaling`.
    Voxels count where a map is above :data:`FOREGROUND`, of a case :data:`VOXELS` by lot at most.

    Args:
        maps: of each case, (methods, X, Y, Z).
        truths: bool, (X, Y, Z).

    Raises:
        InputError: if the voxels are all of one kind.
    """
    rng = np.random.default_rng(0)
    columns, kinds = [], []
    for values, truth in zip(maps, truths, strict=True):
        voxels = np.flatnonzero((values > FOREGROUND).any(axis=0))
        voxels = voxels if voxels.size <= VOXELS else rng.choice(voxels, VOXELS, replace=False)
        columns.append(limited_logit(values.reshape(len(values), -1)[:, voxels]))
        kinds.append(truth.ravel()[voxels])
    x, y = np.concatenate(columns, axis=1), np.concatenate(kinds).astype(float)
    if y.size == 0 or y.min() == y.max():
        raise InputError(f"the references are of one kind where a map is above {FOREGROUND:g}, expected both")
    x = np.concatenate([x, np.ones((1, y.size))])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        z = weights @ x
        return np.mean(np.logaddexp(0, z) - y * z), x @ (expit(z) - y) / y.size

    start = np.append(np.full(len(x) - 1, 1 / (len(x) - 1)), 0.0)
    bounds = [(0, None)] * (len(x) - 1) + [(None, None)]
    return [float(w) for w in minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x]


class Reliability(NamedTuple):
    """Per bin of the map, (bins,): its mean, the share of the reference, and the number of voxels."""

    mean: np.ndarray
    share: np.ndarray
    voxels: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: how far mean and share are apart, weighted by voxels."""
        filled = self.voxels > 0
        return float((np.abs(self.mean - self.share)[filled] * self.voxels[filled]).sum() / self.voxels.sum())


def reliability(probabilities: Sequence[np.ndarray], references: Sequence[np.ndarray], bins: int = 15) -> Reliability:
    """How often the reference is there, over what the map says; in bins of equal width from 0 to 1.

    Args:
        probabilities: of each case, any shape.
        references: bool, same shapes.
        bins: number of bins.
    """
    sums = np.zeros((3, bins))
    for values, reference in zip(probabilities, references, strict=True):
        index = np.minimum((np.ravel(values) * bins).astype(int), bins - 1)
        for row, weights in enumerate((np.ravel(values), np.ravel(reference), np.ones(index.size))):
            sums[row] += np.bincount(index, weights, bins)
    with np.errstate(invalid="ignore"):
        return Reliability(sums[0] / sums[2], sums[1] / sums[2], sums[2])


class Coverage(NamedTuple):
    """How often volumes of other scans lie in their intervals."""

    label: str
    scans: int
    covered: float
    width: float  # median of upper over lower end, both with the floor
    naive: float | None
    naive_width: float | None

    def sentence(self, level: float) -> str:
        """For the command line."""
        counted = f"{self.label}: {self.covered:.0%} of {self.scans} volumes lie in their intervals of {level:.0%}"
        ratio = f" (upper over lower end, median {self.width:.2f})"
        if self.naive is None:
            return counted + ratio
        return f"{counted}{ratio}; of independent voxels {self.naive:.0%} ({self.naive_width:.2f})"


def coverage(intervals: VolumeIntervals, results: Results, references: Mapping[str, Path]) -> list[Coverage]:
    """Coverage of each label, beside the interval of voxels that err independently.

    The naive one is the expected volume, with the standard deviation of independent voxels, ``sqrt(sum(p (1 - p)))``,
    p the map as it is.

    Raises:
        InputError: if the results were made in another way than those of the intervals.
    """
    intervals.check_origin(results.origin)
    found = []
    for label in results.labels:
        rows = results.of(label)
        ends = np.array([intervals.of(label, row["prediction_ml"]) for row in rows])
        truth = np.array([row["reference_ml"] for row in rows])
        naive = naive_width = None
        if references:
            naive_ends = np.array([_naive(results.folder, row["name"], intervals.level) for row in rows])
            naive, naive_width = _share_inside(truth, naive_ends), _width(naive_ends)
        found.append(Coverage(label, len(rows), _share_inside(truth, ends), _width(ends), naive, naive_width))
    return found


def _share_inside(truth: np.ndarray, ends: np.ndarray) -> float:
    return float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())


def _width(ends: np.ndarray) -> float:
    return float(np.median(np.exp(relative_errors(ends[:, 1], ends[:, 0]))))


def _naive(folder: Path, name: str, level: float) -> tuple[float, float]:
    values, image = read_scan(folder / f"{name}_prob.nii.gz")
    voxel = volume_ml(np.ones((1, 1, 1), bool), image.header.get_zooms()[:3])
    expected = values.sum(dtype=float) * voxel
    half = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt((values * (1 - values)).sum(dtype=float)) * voxel
    return max(0.0, expected - half), expected + half


def reliabilities(
    results: Results, references: Mapping[str, Path], scaling: Scaling
) -> tuple[Reliability, Reliability]:
    """Of the map as it is and scaled, over the voxels where it is above 0.01."""
    maps, truths = _maps(results.folder, references)
    chosen = [values > FOREGROUND for values in maps]
    maps = [values[voxels] for values, voxels in zip(maps, chosen, strict=True)]
    truths = [truth[voxels] for truth, voxels in zip(truths, chosen, strict=True)]
    return reliability(maps, truths), reliability([scaling(values) for values in maps], truths)


def _maps(folder: Path, references: Mapping[str, Path]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    files = {folder / f"{name}_prob.nii.gz": label for name, label in references.items()}
    return [read_scan(file)[0] for file in files], [read_on_grid(label, file) > 0 for file, label in files.items()]


def write_picture(path: Path, before: Reliability, after: Reliability) -> None:
    """Share of the reference over what the map says, before and after scaling."""
    figure = Figure(figsize=(4.6, 4.4), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=(0, (4, 2)), linewidth=1)
    for found, name in ((before, "as it is"), (after, "scaled")):
        axes.plot(found.mean, found.share, "o-", label=f"{name}, error {found.error:.3f}")
    axes.set(xlabel="map", ylabel="share of the reference", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(frameon=False)
    write_atomically(path, lambda part: figure.savefig(part, format="png", metadata={"Software": None}))
