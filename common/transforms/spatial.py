"""Spatial transforms that MONAI lacks or that need a cure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Spacingd
from nibabel.affines import voxel_sizes

from ..scans import check_memory
from .io import file_of

# of MONAI's resampling, in double precision: the points twice, with 4 and 3 coordinates; a channel before and after
_BYTES_OF_POINT, _BYTES_OF_VALUE = 7 * 8, 2 * 8 + 4


class ResampleSpacingd(Spacingd):
    """Spacingd that leaves alone what is no metadata, and begins nothing that does not fit into the memory.

    MONAI 1.6 updates every item whose name begins with ``<key>_`` after resampling, and fails on ``image_path`` and the
    like, which MONAI Label and our own lists put there as text. ``Invertd`` undoes it as it undoes Spacingd.

    A header with voxels of 20 mm, a wrong unit mostly, makes a volume of many gigabytes out of a small file. So the
    memory that resampling takes is estimated before: voxels of the new grid, times its points and its channels.

    Args:
        args, kwargs: as of Spacingd.
        max_memory_gib: the most that one image may take; None for what the machine has free.

    Raises:
        InputError: if an image takes more; names the file and the numbers.
    """

    def __init__(self, *args: Any, max_memory_gib: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_memory_gib = max_memory_gib

    def _check_memory(self, image: MetaTensor) -> None:
        old = voxel_sizes(image.affine.numpy(force=True))
        new = np.broadcast_to(np.asarray(self.spacing_transform.pixdim, dtype=float), 3)
        new = np.where(new > 0, new, old)
        if np.allclose(old, new, rtol=1e-3):
            return
        shape = np.ceil(np.array(image.shape[1:]) * old / new).astype(int)
        needed = float(np.prod(shape, dtype=float)) * (_BYTES_OF_POINT + _BYTES_OF_VALUE * len(image))
        sizes = ["x".join(f"{size:.3g}" for size in sizes) for sizes in (old, new)]
        check_memory(
            file_of(image), shape, needed, f"to be resampled from {sizes[0]} to {sizes[1]} mm", self.max_memory_gib
        )

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            if isinstance(data[key], MetaTensor) and data[key].ndim == 4:
                self._check_memory(data[key])
        prefixes = tuple(f"{key}_" for key in self.keys)
        kept = {
            name: item
            for name, item in data.items()
            if name not in self.keys and str(name).startswith(prefixes) and not isinstance(item, dict)
        }
        rest = {name: item for name, item in data.items() if name not in kept}
        return {**super().__call__(rest, lazy=lazy), **kept}
