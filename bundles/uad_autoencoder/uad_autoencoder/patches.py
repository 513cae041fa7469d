"""Where training patches are cut: around lesions, and anywhere in the brain."""

from __future__ import annotations

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage


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
