"""Volumes of labels, and what looks wrong in a result of which nothing is known but itself."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple
from nibabel.affines import voxel_sizes

from .metrics import lesion_sizes, volume_ml
from .warned import HEARD, listen

BRAIN_ML = (800.0, 2200.0)  # of an adult, with its fluid
TINY_ML = 0.03
MANY_TINY = 100
_NAN = float("nan")
_SIZES = {"median": np.median, "largest": np.max}


def measure(
    mask: np.ndarray,
    brain: np.ndarray,
    spacing: np.ndarray,
    label_names: Mapping[int, str],
    lesion_labels: Sequence[int],
    connectivity: int = 26,
    expected_ml: Mapping[int, float] | None = None,
) -> dict[str, Any]:
    """Volumes in ml by name, as ``lesion_ml``, and under ``flags`` what looks wrong.

    Args:
        mask: labels, (X, Y, Z), 0 is background.
        brain: bool, same shape.
        spacing: voxel size in mm.
        label_names: value -> name.
        lesion_labels: values that are counted part by part.
        connectivity: neighbors that join voxels to one part.
        expected_ml: value -> sum of its probabilities, where that is known.
    """
    brain_ml = volume_ml(brain, spacing)
    row: dict[str, Any] = {"brain_ml": brain_ml}
    flags = [] if BRAIN_ML[0] <= brain_ml <= BRAIN_ML[1] else ["brain volume improbable"]
    flags += ["touches the border"] if _touches_border(mask > 0) else []
    for value, name in label_names.items():
        part = mask == value
        ml = volume_ml(part, spacing)
        row |= {f"{name}_ml": ml, f"{name}_percent": 100 * ml / brain_ml if brain_ml else _NAN}
        flags += [] if ml else [f"no {name}"]
        if value in lesion_labels:
            sizes = lesion_sizes(part, part, connectivity)[0] * np.prod(spacing) / 1000
            row |= {f"{name}_count": len(sizes)}
            row |= {f"{name}_{what}_ml": float(f(sizes)) if len(sizes) else _NAN for what, f in _SIZES.items()}
            tiny = int((sizes < TINY_ML).sum())
            flags += ["many tiny components"] if tiny >= MANY_TINY and 2 * tiny > len(sizes) else []
        if value in (expected_ml or {}):
            row[f"{name}_expected_ml"] = expected_ml[value]
    return row | {"flags": flags}


def _touches_border(mask: np.ndarray) -> bool:
    return any(mask.take(index, axis).any() for axis in range(mask.ndim) for index in (0, -1))


class MeasureForServerd(MapTransform):
    """For MONAI Label: put :func:`measure` of a label map under ``result``, which the server answers as ``params``.

    Under ``warnings`` stands what was said of the item's files on the way, as that a scan looks as if it had its skull.
    Elsewhere, where nobody reads it, it does nothing: only the server's items have ``server_key``.

    Args:
        keys: key of the label map, (1, X, Y, Z), on the grid of the file.
        label_names: value -> name; JSON keys may be text. A label without a name is called by its value.
        lesion_labels: values that are counted part by part. None: the only label, or none of several.
        mask_key: key of the brain mask, on the same grid.
        server_key: key that only items of MONAI Label have.

    Raises:
        ValueError: if label map and brain mask differ in shape.
    """

    def __init__(
        self,
        keys: str,
        label_names: Mapping[int | str, str],
        lesion_labels: Sequence[int] | None = None,
        mask_key: str = "brain_mask",
        server_key: str = "image_path",
    ) -> None:
        super().__init__(keys)
        self.label_names = {int(value): name for value, name in label_names.items()}
        only = tuple(self.label_names) if len(self.label_names) == 1 else ()
        self.lesion_labels = only if lesion_labels is None else ensure_tuple(lesion_labels)
        self.mask_key = mask_key
        self.server_key = server_key
        listen()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.server_key not in d:
            return d
        for key in self.key_iterator(d):
            mask, brain = (torch.as_tensor(d[k]).cpu().numpy()[0] for k in (key, self.mask_key))
            if mask.shape != brain.shape:
                raise ValueError(f"label map {mask.shape} and brain mask {brain.shape} differ in shape")
            found = sorted({int(value) for value in np.unique(mask)} - {0, *self.label_names})
            names = self.label_names | {value: f"label {value}" for value in found}
            row = measure(mask, brain > 0, voxel_sizes(np.asarray(d[key].affine)), names, self.lesion_labels)
            d["result"] = d.get("result", {}) | {name: for_json(value) for name, value in row.items()}
        d.setdefault("result", {})["warnings"] = HEARD.take(self._files(d))
        return d

    def _files(self, data: Mapping[Hashable, Any]) -> list[str]:
        """Those that an item was read from."""
        read = [v.meta.get("filename_or_obj", ()) for v in data.values() if isinstance(v, MetaTensor)]
        return [str(file) for files in (data[self.server_key], *read) for file in ensure_tuple(files)]


def for_json(value: Any) -> Any:
    """JSON has no nan; four digits are more than a volume is known to."""
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 4)
    return value
