"""How much darker than in healthy people a scan is at a place: a z-score without a model, not in the paper."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from common.atlas import align_scan, atlas_on_grid, icbm_atlas, template_grid
from common.engines.checkpoints import read_tensors, save_tensors
from common.errors import InputError
from common.geometry import sample, voxel_grid

WHITE_MATTER = 3  # class of the atlas
NAMES = ("affine", "mean", "sd")


class AlignToTemplated(MapTransform):
    """Find the affine map of a scan to the ICBM template, whatever its contrast, and keep it beside the scan.

    Args:
        keys: scans as they go into the network, MetaTensors (1, X, Y, Z), 0 outside the brain.
        matrix_key: where the map goes, 4 x 4, from the world of the scan to that of the template.
        align: False takes scans as being in the template's space already.
    """

    def __init__(self, keys: KeysCollection = "image", matrix_key: str = "to_template", align: bool = True) -> None:
        super().__init__(keys)
        self.matrix_key = matrix_key
        self.align = align

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            scan = MetaTensor(d[key].as_tensor().cpu(), meta=d[key].meta)
            d[self.matrix_key] = torch.from_numpy(align_scan(icbm_atlas(), scan) if self.align else np.eye(4))
        return d


def mean_and_sd(people: int, total: np.ndarray, squares: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed mean and sd over people at every voxel.

    The variance is that around the smoothed mean, and smoothed as well, so that a voxel also speaks for its neighbors.

    Args:
        people: how many.
        total, squares: sums of their values and of the squares of these, (X, Y, Z).
        sigma: of the Gaussian, voxels; 0 smooths nothing.

    Returns:
        Mean and sd, (X, Y, Z) each, in the unit of the values.
    """
    mean = ndimage.gaussian_filter(total / people, sigma)
    variance = squares / people - 2 * mean * total / people + mean**2
    return mean, np.sqrt(ndimage.gaussian_filter(variance, sigma).clip(min=0))


class GatherHealthyd(MapTransform):
    """Gather maps of healthy people in the space of the template; :meth:`write` writes their mean and sd.

    The file is a state dict: ``affine``, voxel to world of the template, (4, 4); ``mean`` and ``sd``, (X, Y, Z)
    float16, in the unit of the maps.

    Args:
        keys: maps, MetaTensors (1, X, Y, Z) on the grid of the scan, 0 outside the brain.
        path: file to write.
        sigma_mm: sd of the Gaussian that smooths mean and variance.
        spacing: voxel size of the file, mm.
        shape: its number of voxels along each axis.
        matrix_key: map of the scan to the template, see :class:`AlignToTemplated`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        path: str | Path,
        sigma_mm: float = 1.0,
        spacing: Sequence[float] = (2.0, 2.0, 2.0),
        shape: Sequence[int] = (74, 92, 76),
        matrix_key: str = "to_template",
    ) -> None:
        super().__init__(keys)
        self.path = Path(path)
        self.sigma = [sigma_mm / mm for mm in spacing]
        self.shape = tuple(shape)
        self.affine = template_grid(spacing, shape)
        self.matrix_key = matrix_key
        self.people = 0
        self.total, self.squares = np.zeros((2, *shape))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            to_scan = np.linalg.inv(d[self.matrix_key].numpy(force=True) @ d[key].affine.numpy(force=True))
            voxels = voxel_grid(self.shape, to_scan @ self.affine)
            values = sample(d[key].as_tensor().float().cpu(), voxels, padding="zeros")[0].double().numpy()
            self.total += values
            self.squares += values**2
            self.people += 1
        return d

    def write(self) -> None:
        """Write the file; InputError if there were less than two people."""
        if self.people < 2:
            raise InputError(f"{self.path} is to be made from {self.people} scans, expected two or more")
        found = mean_and_sd(self.people, self.total, self.squares, self.sigma)
        mean, sd = (torch.from_numpy(values).half() for values in found)
        content = {"affine": torch.from_numpy(self.affine), "mean": mean, "sd": sd}
        save_tensors(content, self.path)


class DarknessScored(MapTransform):
    """How many sd darker than healthy people a map is at a place, times the atlas's probability of white matter.

    ``P(WM) (mean - map) / sd``: lesions of white matter are dark on T1. Gray matter and fluid are dark in everybody, at
    places that an affine map does not bring together, so they are left out.

    Args:
        keys: maps, MetaTensors (1, X, Y, Z) on the grid of the scan.
        path: file of :class:`GatherHealthyd`, of the same kind of map.
        score_key: where the score goes, (1, X, Y, Z), without unit.
        image_key: 0 outside the brain, where the score is 0.
        smallest_sd: in the unit of the map; below it people were too alike.
        matrix_key: map of the scan to the template, see :class:`AlignToTemplated`.

    Raises:
        InputError: if the file is missing or holds something else.
    """

    def __init__(
        self,
        keys: KeysCollection,
        path: str | Path,
        score_key: str,
        image_key: str = "image",
        smallest_sd: float = 0.03,
        matrix_key: str = "to_template",
    ) -> None:
        super().__init__(keys)
        self.score_key, self.image_key, self.matrix_key = score_key, image_key, matrix_key
        self.smallest_sd = smallest_sd
        self.affine, self.maps = read_healthy(path)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            found, brain = d[key].as_tensor()[0].float().cpu(), d[self.image_key].as_tensor()[0].cpu() != 0
            to_template, affine = d[self.matrix_key].numpy(force=True), d[key].affine.numpy(force=True)
            voxels = voxel_grid(tuple(found.shape), np.linalg.inv(self.affine) @ to_template @ affine)
            mean, sd = sample(self.maps, voxels)
            white = atlas_on_grid(icbm_atlas(), to_template, found.shape, affine)[WHITE_MATTER]
            z = (mean - found) / sd.clamp(min=self.smallest_sd)
            score = torch.where(brain, white * z, 0)
            d[self.score_key] = MetaTensor(score[None]).copy_meta_from(d[key])
        return d


def read_healthy(path: str | Path) -> tuple[np.ndarray, torch.Tensor]:
    """Affine, (4, 4), and mean and sd, (2, X, Y, Z), of a file of :class:`GatherHealthyd`.

    Raises:
        InputError: if there is no such file, or it holds something else.
    """
    content = read_tensors(Path(path))
    if not isinstance(content, dict) or not all(isinstance(content.get(name), torch.Tensor) for name in NAMES):
        raise InputError(f"{path} holds no {', '.join(NAMES)} of healthy people, expected a file of healthy_maps.json")
    return content["affine"].numpy(), torch.stack([content["mean"], content["sd"]]).float()
