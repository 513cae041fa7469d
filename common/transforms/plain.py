"""Images without the metadata of MetaTensor, and with them again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.data.utils import affine_to_spacing
from monai.transforms import Compose


class PlainTensorCompose(Compose):
    """Compose whose transforms give plain tensors, for small random patches that no one inverts.

    Keeping affine and history of a patch takes MONAI longer than flipping it. MONAI's switch is one for the process, so
    no thread beside this one may need metadata meanwhile; worker processes of a data loader have their own.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tracked = get_track_meta()
        set_track_meta(False)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            set_track_meta(tracked)


def plain(image: torch.Tensor) -> torch.Tensor:
    """An image without its metadata."""
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def like(image: torch.Tensor, source: torch.Tensor) -> MetaTensor:
    """``image`` with the affine and the history of ``source``, which Invertd needs."""
    return MetaTensor(image).copy_meta_from(source) if isinstance(source, MetaTensor) else MetaTensor(image)


def _affine(image: torch.Tensor) -> np.ndarray:
    if not isinstance(image, MetaTensor):
        raise ValueError(f"a {type(image).__name__} has no voxel size, expected a MetaTensor")
    return np.asarray(image.affine, dtype=float)


def voxel_volume_mm3(image: torch.Tensor) -> float:
    """Volume of a voxel of an image with metadata."""
    return abs(float(np.linalg.det(_affine(image)[:3, :3])))


def spacing_of(image: torch.Tensor) -> np.ndarray:
    """Voxel size of an image (C, *spatial) with metadata, mm along each axis."""
    return affine_to_spacing(_affine(image), r=image.ndim - 1)
