"""Transforms without the metadata of MetaTensor."""

from __future__ import annotations

from typing import Any

from monai.data import get_track_meta, set_track_meta
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
