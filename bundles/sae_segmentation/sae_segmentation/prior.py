"""The prior of a segmentation: an atlas of any source, aligned to a scan and appended to it."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from common.atlas import Atlas, align_scan, atlas_on_grid, icbm_atlas, read_label_map
from common.errors import InputError
from common.scans import grid_difference, read_scan
from common.transforms.intensity import fill_holes
from common.transforms.io import file_of


@functools.lru_cache(maxsize=4)
def open_atlas(
    files: str | tuple[str, ...] | None = None, classes: int | None = None, label_sigma_mm: float | None = None
) -> Atlas:
    """An atlas of any source.

    Args:
        files: None for :func:`common.atlas.icbm_atlas`; one 4-D NIfTI file with a volume per class, background first; a
            3-D file per class; or, with ``label_sigma_mm``, one label map of 0, 1, ..., C - 1.
        classes: how many classes there have to be, background included; None for any number.
        label_sigma_mm: sd of the Gaussian that makes probabilities of a label map.

    Raises:
        InputError: if a file cannot be read, files lie on different grids, a probability is negative, a class is empty,
            a sum over classes is not 1, or the number of classes is not ``classes``.
    """
    if files is None and label_sigma_mm is not None:
        raise InputError(f"atlas_label_sigma_mm is {label_sigma_mm:g} without atlas_files, expected a label map")
    if files is None:
        atlas, source = icbm_atlas(), "the atlas of the ICBM template"
    else:
        paths = [files] if isinstance(files, str) else list(files)
        source = ", ".join(paths)
        atlas = _atlas_of_label_map(paths, label_sigma_mm) if label_sigma_mm is not None else _read_maps(paths)
    found = len(atlas.probabilities)
    if classes is not None and found != classes:
        raise InputError(f"{source} has {found} classes with background, expected {classes} as the network")
    empty = [c for c, p in enumerate(atlas.probabilities) if not p.any()]
    if empty:
        raise InputError(f"{source}: class {empty[0]} is 0 everywhere, expected a probability above 0 somewhere")
    return atlas


def _read_maps(paths: Sequence[str]) -> Atlas:
    scans = [read_scan(path, volumes=True) for path in paths]
    affine = scans[0][1].affine
    for path, (values, scan) in zip(paths, scans, strict=True):
        difference = grid_difference(values.shape[:3], scan.affine, scans[0][0].shape[:3], affine)
        if difference:
            raise InputError(f"{path} and {paths[0]} have {difference}, expected one grid for all classes")
    maps = np.moveaxis(np.concatenate([v.reshape(*v.shape[:3], -1) for v, _ in scans], axis=3), 3, 0)
    if maps.min() < 0:
        raise InputError(f"{', '.join(paths)} has probabilities down to {maps.min():g}, expected 0 or above")
    total = maps.sum(0)
    off = float(np.abs(total - 1).max())
    if len(maps) < 2 or off > 0.02:
        raise InputError(
            f"{', '.join(paths)}: the sum over {len(maps)} classes differs from 1 by up to {off:.3g}, expected at most "
            "0.02; background is the first class"
        )
    return Atlas(torch.from_numpy(maps / total), affine)


def _atlas_of_label_map(paths: Sequence[str], sigma_mm: float) -> Atlas:
    if len(paths) != 1 or not (isinstance(sigma_mm, int | float) and sigma_mm >= 0):
        raise InputError(f"label_sigma_mm is {sigma_mm} for {len(paths)} files, expected 0 or above and one label map")
    labels, affine = read_label_map(paths[0])
    classes = torch.nn.functional.one_hot(torch.from_numpy(labels).long()).movedim(-1, 0).float()
    return Atlas(classes, affine).smoothed(sigma_mm)


class AtlasPriord(MapTransform):
    """Append an atlas to a skull-stripped scan, as a channel per class: the prior of a segmentation.

    The atlas is aligned to the scan by an affine map, whatever its contrast (:func:`common.atlas.align_atlas`), and
    sampled at its voxels. Inside the brain of the scan background is ruled out and a little of every other class is
    allowed; outside of it is background.

    Args:
        keys: scans (M, X, Y, Z), MetaTensors in RAS mm, exactly 0 outside the brain; the first channel is aligned.
        files: NIfTI file or files of the atlas, see :func:`open_atlas`; None for the ICBM template's.
        classes: how many the network has, background included.
        label_sigma_mm: if the file is one label map, the sd of the Gaussian that makes probabilities of it.
        blur_mm: the probabilities are smoothed by this.
        floor: share of the prior that all classes but background have everywhere in the brain, together.
        align: False if scan and atlas are in one space already.
        min_overlap: smallest Dice of the scan's brain and the aligned atlas's.

    Raises:
        InputError: as ``open_atlas``; if scan and atlas overlap less than ``min_overlap``.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        files: str | Sequence[str] | None = None,
        classes: int | None = None,
        label_sigma_mm: float | None = None,
        blur_mm: float = 0.0,
        floor: float = 0.05,
        align: bool = True,
        min_overlap: float = 0.7,
    ) -> None:
        super().__init__(keys)
        self.source = (files if files is None or isinstance(files, str) else tuple(files), classes, label_sigma_mm)
        self.blur_mm, self.floor, self.align, self.min_overlap = blur_mm, floor, align, min_overlap
        self._atlas: Atlas | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self._atlas is None:
            atlas = open_atlas(*self.source)
            self._atlas = atlas.smoothed(self.blur_mm) if self.blur_mm else atlas
        for key in self.key_iterator(d):
            d[key] = self._append(d[key])
        return d

    def _append(self, scan: MetaTensor) -> MetaTensor:
        image, affine = scan.as_tensor().float(), scan.affine.numpy()
        brain = torch.from_numpy(fill_holes((image != 0).numpy(force=True).any(0)))
        if not brain.any():
            raise InputError(f"{file_of(scan)} is 0 everywhere, expected a brain to align the atlas to")
        to_atlas = align_scan(self._atlas, scan) if self.align else np.eye(4)
        prior = atlas_on_grid(self._atlas, to_atlas, brain.shape, affine)
        covered = prior[0] < 0.5
        overlap = 2 * (brain & covered).sum().item() / (brain.sum() + covered.sum()).item()
        if overlap < self.min_overlap:
            raise InputError(
                f"{file_of(scan)}: its brain and the atlas have a Dice of {overlap:.2f}, expected {self.min_overlap:g} "
                "or more; is it skull-stripped, and is the orientation in its header right?"
            )
        tissue = prior[1:]
        tissue = (1 - self.floor) * tissue / tissue.sum(0).clamp(min=1e-3) + self.floor / len(tissue)
        prior = torch.cat([torch.zeros_like(prior[:1]), tissue / tissue.sum(0)])
        prior = torch.where(brain, prior, torch.eye(len(prior))[0][:, None, None, None])
        return MetaTensor(torch.cat([image, prior]), meta=scan.meta, applied_operations=scan.applied_operations)
