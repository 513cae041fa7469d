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
from scipy.special import expit
from tqdm import tqdm

from common.data import Datalist
from common.errors import InputError
from common.files import difference, read_json, sha256_of, whole_folder, write_json
from common.intervals import Scaling, limited_logit, origin_of
from common.metrics import best_dice, pooled_dice
from common.options import types as t
from common.scans import json_beside, on_grid_of
from datalists.results import names_of_results, read_on_grid, result_in

from .volumes import fit_weights

RESULTS = t.list_of(t.ExistingFolder, "two or more folders that are there", min_length=2)
METHODS = ("weights", "mean", "staple")


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

    def read_masks(self) -> np.ndarray:
        """Bool, (methods, X, Y, Z), on the grid of the image; InputError if one is on another."""
        return np.stack([read_on_grid(path, self.image) > 0 for path in self.results])

    def read_maps(self) -> np.ndarray:
        """Likewise, float32."""
        return np.stack([read_on_grid(path, self.image) for path in self.maps])

    def reference(self) -> np.ndarray:
        """The label, bool (X, Y, Z)."""
        return read_on_grid(self.label, self.image) > 0


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

    def join(self, way: str, masks: np.ndarray, maps: np.ndarray) -> np.ndarray:
        """The map of a way, float32 (X, Y, Z), from those of all methods, (methods, X, Y, Z)."""
        if way == "staple":
            return staple(masks)
        if way == "mean":
            return self.scaled(maps).mean(axis=0, dtype=np.float32)
        joined = expit(np.tensordot(self.weights[:-1], limited_logit(maps), 1) + self.weights[-1])
        return np.where((maps > 0).any(axis=0), joined, 0).astype(np.float32)

    def scaled(self, maps: np.ndarray) -> np.ndarray:
        """The maps of all methods, each by its scaling; their standard deviation says where the methods disagree."""
        return np.stack([scale(values) for scale, values in zip(self.scalings, maps, strict=True)])


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
        InputError: if a folder has no result of a scan, or two, or with ``labels`` a scan has no label.
    """
    cases, names = [], names_of_results(datalist, section)
    for item in datalist.items(section):
        found = [(folder, *result_in(folder, item["image"], names)) for folder in folders]
        _, image, name = found[0]
        if labels and "label" not in item:
            raise InputError(f"{image} in {datalist} has no label, expected one for each scan")
        masks = tuple(Path(folder) / f"{own}_seg.nii.gz" for folder, _, own in found)
        cases.append(Case(name, Path(image), masks, Path(item["label"]) if "label" in item else None))
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
    bar = tqdm(cases, desc="reading", unit="case", disable=None)
    masks, maps, truths = zip(*((case.read_masks(), case.read_maps(), case.reference()) for case in bar), strict=True)
    names = _names(cases[0])
    scalings = [Scaling(*fit_weights([values[i : i + 1] for values in maps], truths)) for i in range(len(names))]
    fusion = Fusion(origins_of(cases), scalings, fit_weights(maps, truths), {}, {}, data)
    for i, name in enumerate(names):
        fusion.dice[name] = pooled_dice([one[i] for one in masks], truths)
    for way in METHODS:
        joined = [fusion.join(way, *arrays) for arrays in zip(masks, maps, strict=True)]
        fusion.thresholds[way] = 0.5 if way == "staple" else float(best_dice(joined, truths)[1])
        fusion.dice[way] = pooled_dice([values >= fusion.thresholds[way] for values in joined], truths)
    return fusion


def _names(case: Case) -> list[str]:
    """A name for each method: the folder of its results."""
    names = [path.parent.name for path in case.results]
    if len(set(names)) < len(names):
        raise InputError(f"the folders of the results are called {', '.join(names)}, expected different names")
    return names


def apply(fusion: Fusion, cases: Sequence[Case], way: str, output_dir: str | Path) -> None:
    """Write ``<name>_seg``, ``_prob`` and ``_doubt`` of each case, on the grid of the image of its first results.

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
            maps = case.read_maps()
            joined = fusion.join(way, case.read_masks(), maps)
            arrays = {"seg": (joined >= fusion.thresholds[way]).astype(np.uint8), "prob": joined}
            for kind, array in (arrays | {"doubt": fusion.scaled(maps).std(axis=0, dtype=np.float32)}).items():
                nib.save(on_grid_of(case.image, array), folder / f"{case.name}_{kind}.nii.gz")
            mask = folder / f"{case.name}_seg.nii.gz"
            made = {"tool": "fuse_results", "way": way, "threshold": fusion.thresholds[way], "fusion": fusion.data}
            made["inputs"] = [{"name": p.name, "sha256": sha256_of(p)} for p in (*case.results, *case.maps)]
            write_json(json_beside(mask), made | {"sha256": sha256_of(mask)})


def as_dict(fusion: Fusion) -> dict[str, Any]:
    """What :meth:`Fusion.read` reads."""
    return asdict(fusion) | {"scalings": [list(scaling) for scaling in fusion.scalings]}
