"""Bring an atlas onto a scan."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..atlas import Atlas, align_atlas, atlas_on_grid, open_atlas
from ..errors import InputError
from .intensity import fill_holes
from .io import file_of


class AtlasPriord(MapTransform):
    """Append an atlas to a skull-stripped scan, as a channel per class: the prior of a segmentation.

    The atlas is aligned to the scan by an affine map, whatever its contrast (:func:`common.atlas.align_atlas`), and
    sampled at its voxels. Inside the brain of the scan background is ruled out and a little of every other class is
    allowed; outside of it is background.

    Args:
        keys: scans (M, X, Y, Z), MetaTensors in RAS mm, exactly 0 outside the brain; the first channel is aligned.
        files: NIfTI file or files of the atlas, see :func:`common.atlas.open_atlas`; None for the ICBM template's.
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
        to_atlas = align_atlas(self._atlas, image[0], affine) if self.align else np.eye(4)
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
