"""Training patches, around lesions and anywhere in the brain, at one scale or several."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from scipy import ndimage
from torch.nn import functional as F

from common.errors import InputError


def lesion_centers(mask: np.ndarray) -> np.ndarray:
    """Centres of the 2-D components of every axial slice, so that a small lesion counts as much as a large one.

    Args:
        mask: (X, Y, Z), axial slices along the last axis.

    Returns:
        Flat indices into the mask, int64, one per component and slice; the component's voxel nearest to its centroid's
        rounded position, which for bent components may lie outside of them.
    """
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[:, :, 1] = True  # voxels of neighbouring slices are not connected
    labels, count = ndimage.label(mask, structure=in_plane)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    centers = np.rint(ndimage.center_of_mass(mask, labels, np.arange(1, count + 1))).astype(np.int64)
    return np.ravel_multi_index(tuple(centers.T), mask.shape)


class PatchCentersd(MapTransform):
    """Write candidate centres of patches for MONAI's ``RandCropByPosNegLabeld``.

    Puts ``<key>_fg_indices`` (:func:`lesion_centers`) and ``<key>_bg_indices`` (a sample of brain voxels outside
    lesions) beside each label in ``keys``, as flat indices.

    Args:
        keys: lesion masks, (1, X, Y, Z); of soft ones what is at least 0.5 counts.
        image_key: skull-stripped image, 0 outside the brain.
        background: how many brain voxels are kept; the sample is the same for the same image.
    """

    def __init__(self, keys: KeysCollection, image_key: str = "image", background: int = 20000) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.background = background

    def __call__(self, data: dict) -> dict:
        d = dict(data)
        brain = np.asarray(d[self.image_key][0]) > 0
        for key in self.key_iterator(d):
            mask = np.asarray(d[key][0]) >= 0.5
            elsewhere = np.flatnonzero(brain & ~mask)
            if len(elsewhere) > self.background:
                elsewhere = np.random.default_rng(0).choice(elsewhere, self.background, replace=False)
            d[f"{key}_fg_indices"] = lesion_centers(mask)
            d[f"{key}_bg_indices"] = elsewhere
        return d


class RandZoomedPatchesd(Randomizable, MapTransform):
    """Patches of a few axial slices, each as if the scan had voxels of another size.

    A patch is centered on one of the candidates that :class:`PatchCentersd` has written. The image is interpolated, in
    plane and between slices alike, the label is that of the nearest voxel; outside of the volume both are 0.

    Args:
        keys: image and label, (1, X, Y, Z) each.
        label_key: the label, whose candidates are taken.
        patch_size: voxels of a patch, the last number being its slices.
        lesion_patches, brain_patches: patches are around lesions and elsewhere in this proportion; elsewhere only,
            where there is no lesion.
        num_samples: patches of a volume.
        zoom: smallest and largest; 2 makes lesions twice as large. Drawn evenly on a logarithmic scale.

    Returns:
        List of items with image and label (1, *patch_size), and what else the item has.

    Raises:
        InputError: if the zoom or the numbers of patches make no sense.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        patch_size: Sequence[int],
        lesion_patches: float,
        brain_patches: float,
        num_samples: int,
        zoom: Sequence[float] = (1.0, 1.0),
    ) -> None:
        super().__init__(keys)
        if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1]:
            raise InputError(f"zoom is {zoom}, expected two numbers above 0, the lower one first")
        if min(lesion_patches, brain_patches) < 0 or lesion_patches + brain_patches <= 0:
            raise InputError(
                f"lesion_patches and brain_patches are {lesion_patches} and {brain_patches}, expected one above 0"
            )
        self.label_key = label_key
        self.patch_size = tuple(patch_size)
        self.lesion_share = lesion_patches / (lesion_patches + brain_patches)
        self.num_samples = num_samples
        self.zoom = tuple(zoom)

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        d = dict(data)
        candidates = [d.pop(f"{self.label_key}_{kind}_indices") for kind in ("fg", "bg")]
        items = []
        for _ in range(self.num_samples):
            lesion = self.R.random() < self.lesion_share
            around, elsewhere = candidates
            found = around if (lesion and len(around)) or not len(elsewhere) else elsewhere
            center = np.unravel_index(found[self.R.randint(len(found))], d[self.label_key].shape[1:])
            zoom = float(np.exp(self.R.uniform(*np.log(self.zoom))))
            patches = {key: self._cut(d[key], center, zoom, key == self.label_key) for key in self.key_iterator(d)}
            items.append(d | patches)
        return items

    def _cut(self, volume: torch.Tensor, center: Sequence[int], zoom: float, label: bool) -> torch.Tensor:
        """(1, X, Y, Z) -> (1, *patch_size)."""
        axes, box = [], []
        for size, at, extent in zip(self.patch_size, center, volume.shape[1:], strict=True):
            voxels = at + (torch.arange(size) - size // 2) / zoom
            start, stop = max(0, math.floor(voxels[0])), min(extent, math.ceil(voxels[-1]) + 1)
            axes.append((2 * (voxels - start) + 1) / (stop - start) - 1)  # as grid_sample counts, from edge to edge
            box.append(slice(start, stop))
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flip(-1)[None]
        part = torch.as_tensor(volume)[(slice(None), *box)][None].float()
        return F.grid_sample(part, points, "nearest" if label else "bilinear", "zeros", align_corners=False)[0]
