"""Several methods, one mask: results of bundles with the same target are joined as validation scans say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy.optimize import minimize
from scipy.special import expit
from tqdm import tqdm

from common.data import Datalist
from common.data.names import paths_in
from common.errors import InputError
from common.files import difference, read_json, sha256_of, whole_folder, write_json
from common.intervals import Scaling, logit, origin_of
from common.metrics import best_dice, pooled_dice
from common.options import types as t
from common.scans import grid_difference, json_beside, on_grid_of, read_scan, stem

from .volumes import fit_scaling

RESULTS = t.list_of(t.ExistingFolder, "two or more folders that are there", min_length=2)
METHODS = ("weights", "mean", "staple")
_FOREGROUND = 1e-3  # a map is looked at where one of them is above
_VOXELS = 200_000  # of a case, for a fit


class Case(NamedTuple):
    """One scan with the results of every method."""

    name: str
    image: Path
    results: tuple[Path, ...]  # masks, one per method; maps and origins stand beside them
    label: Path | None

    @property
    def maps(self) -> list[Path]:
        """Files of the maps."""
        return [path.with_name(path.name.replace("_seg.", "_prob.")) for path in self.results]

    def read(self, paths: Sequence[Path]) -> np.ndarray:
        """Voxels of files on the grid of the first, (files, X, Y, Z).

        Raises:
            InputError: if one is on another grid.
        """
        volumes = []
        for path in paths:
            values, image = read_scan(path)
            first = volumes[0] if volumes else (values, image.affine)
            told = grid_difference(values.shape, image.affine, first[0].shape, first[1])
            if told:
                raise InputError(f"{path} and {paths[0]} lie on different grids ({told}), expected one grid")
            volumes.append((values, image.affine))
        return np.stack([values for values, _ in volumes])

    def reference(self) -> np.ndarray:
        """The label, on the grid of the results; bool (X, Y, Z)."""
        return self.read([self.maps[0], self.label])[1] > 0


@dataclass(frozen=True)
class Fusion:
    """What validation scans say of some methods, and of ways to join them.

    Attributes:
        origins: what made the results of each method.
        scalings: of each map, to mean what it says.
        weights: of the logits of the maps, none below 0, and of 1: ``sigmoid(weights . logits + intercept)``.
        thresholds: way -> of its map, by the best pooled Dice.
        dice: way, or name of a method alone -> the pooled Dice that it reached on the validation scans.
        data: where these come from.
    """

    origins: list[Mapping[str, Any]]
    scalings: list[Scaling]
    weights: list[float]
    thresholds: dict[str, float]
    dice: dict[str, float]
    data: str

    @property
    def best(self) -> str:
        """The way, or the method alone, with the best Dice; alone if it is as good."""
        return max(sorted(self.dice, key=lambda way: way in METHODS), key=lambda way: self.dice[way])

    @classmethod
    def read(cls, path: str | Path) -> Fusion:
        """From a file that :func:`fit` was written to.

        Raises:
            InputError: if it is no such file.
        """
        content = read_json(path, "a fusion, as scripts/fit_fusion.py writes it", dict)
        try:
            found = cls(**(content | {"scalings": [Scaling(*map(float, pair)) for pair in content["scalings"]]}))
            sizes = {len(found.origins), len(found.scalings), len(found.weights) - 1}
            numbers = [*found.weights, *found.thresholds.values(), *found.dice.values()]
            right = len(sizes) == 1 and set(found.thresholds) >= set(METHODS) and all(map(math.isfinite, numbers))
        except (KeyError, TypeError, AttributeError, ValueError):
            right = False
        if not right:
            raise InputError(f"{path} holds no fusion, expected a file of scripts/fit_fusion.py")
        return found

    def join(self, case: Case, way: str) -> np.ndarray:
        """The map of a way, float32 (X, Y, Z)."""
        if way == "staple":
            return staple(case.read(case.results) > 0)
        maps = case.read(case.maps)
        if way == "mean":
            return np.mean([s(m) for s, m in zip(self.scalings, maps, strict=True)], axis=0, dtype=np.float32)
        joined = expit(np.tensordot(self.weights[:-1], logit(maps), 1) + self.weights[-1])
        return np.where((maps > 0).any(axis=0), joined, 0).astype(np.float32)

    def doubt(self, case: Case) -> np.ndarray:
        """Standard deviation of the scaled maps, float32 (X, Y, Z): where the methods disagree."""
        maps = case.read(case.maps)
        return np.std([s(m) for s, m in zip(self.scalings, maps, strict=True)], axis=0, dtype=np.float32)


def staple(masks: np.ndarray) -> np.ndarray:
    """Probability of the truth from several masks (Warfield et al. 2004), by SimpleITK.

    Args:
        masks: bool, (methods, X, Y, Z).

    Returns:
        float32, (X, Y, Z); 0 where all masks are empty.
    """
    if not masks.any():
        return np.zeros(masks.shape[1:], np.float32)
    found = sitk.STAPLE([sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks], 1.0)
    return sitk.GetArrayFromImage(found).astype(np.float32)


def cases_of(datalist: Datalist, section: str | None, folders: Sequence[str | Path], labels: bool) -> list[Case]:
    """The scans of a datalist with their results, whichever of its images a method wrote them for.

    Raises:
        InputError: if a folder has no result of a scan, or with ``labels`` a scan has no label.
    """
    cases = []
    for item in datalist.items(section):
        images = [Path(path) for path in paths_in(item.get("image"))]
        found = []
        for folder in map(Path, folders):
            masks = [folder / f"{stem(image)}_seg.nii.gz" for image in images]
            there = [mask for mask in masks if mask.is_file()]
            if not there:
                raise InputError(f"{folder} has no result of {images[0].name}, expected {masks[0].name}")
            found.append(there[0])
        if labels and "label" not in item:
            raise InputError(f"{images[0].name} in {datalist} has no label, expected one for each scan")
        image = next(image for image in images if found[0].name == f"{stem(image)}_seg.nii.gz")
        cases.append(Case(stem(image), image, tuple(found), Path(item["label"]) if "label" in item else None))
    if not cases:
        raise InputError(f"{datalist} has no case in section {section}, expected one or more")
    return cases


def origins_of(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What made the results of each method.

    Raises:
        InputError: if results of one method were made in different ways.
    """
    found = [origin_of(_facts(path)) for path in cases[0].results]
    for case in cases[1:]:
        for path, origin in zip(case.results, found, strict=True):
            told = difference(origin_of(_facts(path)), origin, cases[0].name)
            if told:
                raise InputError(f"{path} was made in another way: {told}, expected one way for all scans")
    return found


def _facts(mask: Path) -> dict[str, Any]:
    return read_json(json_beside(mask), "the origin of a result, as inference writes it", dict)


def fit(cases: Sequence[Case], data: str) -> Fusion:
    """Scalings, weights and thresholds from validation scans, and how good each way is there.

    Args:
        cases: with labels, of people that nothing else was chosen on.
        data: what they are called.
    """
    names = _names(cases[0])
    maps, truths = [], []
    for case in tqdm(cases, desc="reading", unit="case", disable=None):
        maps.append(case.read(case.maps))
        truths.append(case.reference())
    scalings = [fit_scaling([m[i] for m in maps], truths) for i in range(len(names))]
    fusion = Fusion(origins_of(cases), scalings, fit_weights(maps, truths), {}, {}, data)
    for i, name in enumerate(names):
        masks = [case.read(case.results)[i] > 0 for case in cases]
        fusion.dice[name] = pooled_dice(masks, truths)
    for way in METHODS:
        joined = [fusion.join(case, way) for case in cases]
        dice, threshold = (0.0, 0.5) if way == "staple" else best_dice(joined, truths)
        fusion.thresholds[way] = float(threshold)
        fusion.dice[way] = dice or pooled_dice([m >= threshold for m in joined], truths)
    return fusion


def fit_weights(maps: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> list[float]:
    """Weights of the logits, none below 0, and the intercept, of the largest likelihood.

    Args:
        maps: of each case, (methods, X, Y, Z).
        truths: bool, (X, Y, Z).
    """
    rng = np.random.default_rng(0)
    columns, kinds = [], []
    for values, truth in zip(maps, truths, strict=True):
        voxels = np.flatnonzero((values > _FOREGROUND).any(axis=0))
        voxels = voxels if voxels.size <= _VOXELS else rng.choice(voxels, _VOXELS, replace=False)
        columns.append(logit(values.reshape(len(values), -1)[:, voxels]))
        kinds.append(truth.ravel()[voxels])
    x, y = np.concatenate(columns, axis=1), np.concatenate(kinds).astype(float)
    x = np.concatenate([x, np.ones((1, y.size))])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        z = weights @ x
        return np.mean(np.logaddexp(0, z) - y * z), x @ (expit(z) - y) / y.size

    start = np.append(np.full(len(x) - 1, 1 / (len(x) - 1)), 0.0)
    bounds = [(0, None)] * (len(x) - 1) + [(None, None)]
    return [float(w) for w in minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x]


def _names(case: Case) -> list[str]:
    """A name for each method: the folder of its results."""
    names = [path.parent.name for path in case.results]
    if len(set(names)) < len(names):
        raise InputError(f"the folders of the results are called {', '.join(names)}, expected different names")
    return names


def apply(fusion: Fusion, cases: Sequence[Case], way: str, output_dir: str | Path) -> None:
    """Write ``<name>_seg``, ``_prob`` and ``_doubt`` of each case, on the grid of its first results.

    Args:
        fusion: of the same methods, in the same order.
        cases: see :func:`cases_of`.
        way: one of :data:`METHODS`.
        output_dir: a new folder.

    Raises:
        InputError: if results were made in another way than those of the fusion, or the folder is there.
    """
    names = _names(cases[0])
    if len(names) != len(fusion.origins):
        raise InputError(f"there are results of {len(names)} methods, expected {len(fusion.origins)} as in the fusion")
    for origin, known, name in zip(origins_of(cases), fusion.origins, names, strict=True):
        told = difference(origin, known, "the fusion's")
        if told:
            raise InputError(f"{name} holds results that were made in another way: {told}")
    with whole_folder(output_dir) as folder:
        for case in tqdm(cases, desc="joining", unit="case", disable=None):
            joined = fusion.join(case, way)
            arrays = {"seg": (joined >= fusion.thresholds[way]).astype(np.uint8), "prob": joined}
            for kind, array in (arrays | {"doubt": fusion.doubt(case)}).items():
                nib.save(on_grid_of(case.results[0], array), folder / f"{case.name}_{kind}.nii.gz")
            mask = folder / f"{case.name}_seg.nii.gz"
            made = {"tool": "fuse_results", "way": way, "threshold": fusion.thresholds[way], "fusion": fusion.data}
            made["inputs"] = [{"name": p.name, "sha256": sha256_of(p)} for p in (*case.results, *case.maps)]
            write_json(json_beside(mask), made | {"sha256": sha256_of(mask)})


def as_dict(fusion: Fusion) -> dict[str, Any]:
    """What :meth:`Fusion.read` reads."""
    return asdict(fusion) | {"scalings": [list(scaling) for scaling in fusion.scalings]}
