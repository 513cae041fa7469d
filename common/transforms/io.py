"""NIfTI in and out: read with checks, written on the grid of the file that was read."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor, NibabelReader
from monai.transforms import LoadImage, MapTransform, SaveImaged
from monai.utils import ensure_tuple, ensure_tuple_rep
from numpy.typing import DTypeLike

from ..errors import InputError
from ..files import write_atomically
from ..scans import (
    UNREADABLE,
    WHOLE,
    check_finite,
    grid_difference,
    on_grid_of,
    open_scan,
    open_whole,
    stem,
    unreadable,
)
from ..warned import listen

logger = logging.getLogger(__name__)


class _ScanReader(NibabelReader):
    """MONAI's NIfTI reader, which refuses what is no scan and keeps the affine of the file as it is."""

    def __init__(self, max_memory_gib: float | None) -> None:
        super().__init__()
        self.max_memory_gib = max_memory_gib

    def read(self, data: Sequence[str] | str, **kwargs: Any) -> nib.Nifti1Pair:
        self.filenames = ensure_tuple(data)
        return open_whole(self.filenames[0], max_memory_gib=self.max_memory_gib)


@contextmanager
def _without_word_of_dicom() -> Iterator[None]:
    """MONAI's loader makes all readers that it has, and where pydicom is installed, one warns that it lacks a GPU."""
    plugin = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = plugin.level
    plugin.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
            yield
    finally:
        plugin.setLevel(level)


class LoadScand(MapTransform):
    """Read 3-D NIfTI files, one path or a list of paths (one per channel) under each key.

    None in a list is a missing sequence: its channel is 0 everywhere.

    Gives a MetaTensor (C, X, Y, Z), float32, on the grid of the file. A 4-D file with one volume counts as 3-D. Items
    under other keys, such as the text that MONAI Label adds, are left alone. It is no LoadImaged, of which MONAI Label
    makes a loader that knows no missing key.

    Args:
        keys: keys of the paths.
        may_be_empty: those of them that may be zero everywhere, as the label of a healthy subject is.
        allow_missing_keys: do not raise if a key is missing.
        max_memory_gib: refuse a file whose voxels need more; None for what the machine has free.

    Raises:
        InputError: if a file is missing, unreadable, truncated, not one 3-D volume, has NaN or infinite voxels or is
            zero everywhere, does not fit into the memory, or if the files of one key lie on different grids.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        may_be_empty: str | Sequence[str] = ("label",),
        allow_missing_keys: bool = False,
        max_memory_gib: float | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.may_be_empty = ensure_tuple(may_be_empty)
        self.max_memory_gib = max_memory_gib
        listen()  # from the first step of a scan's way on
        with _without_word_of_dicom():
            self._loader = LoadImage(reader="NibabelReader", image_only=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._load_channels(d[key], allow_empty=key in self.may_be_empty)
        return d

    def _load_channels(self, paths: str | Path | Sequence[str | Path], allow_empty: bool) -> MetaTensor:
        scans = {i: self._load(p, allow_empty) for i, p in enumerate(ensure_tuple(paths)) if p is not None}
        if not scans:
            raise InputError(f"{paths} stands where the path of a NIfTI file is expected")
        first, *others = scans.values()
        for other in others:
            difference = grid_difference(other.shape[1:], other.affine, first.shape[1:], first.affine)
            if difference:
                raise InputError(
                    f"{file_of(other)} and {file_of(first)} have {difference}, expected one grid for all sequences"
                )
        missing = torch.zeros_like(first.as_tensor())
        channels = [scans[i].as_tensor() if i in scans else missing for i in range(len(ensure_tuple(paths)))]
        return MetaTensor(torch.cat(channels), meta=first.meta)

    def _load(self, path: str | Path, allow_empty: bool) -> MetaTensor:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"a {type(path).__name__} stands where the path of a NIfTI file is expected")
        try:
            scan = self._loader(path, reader=_ScanReader(self.max_memory_gib))
        except InputError:
            raise
        except UNREADABLE as e:
            raise unreadable(path, e) from e
        scan = scan.reshape(1, *scan.shape[:3])
        scan.meta["original_channel_dim"] = 0
        check_finite(scan.numpy(), path)
        if not allow_empty and not scan.any():
            raise InputError(f"{path} is zero everywhere, expected a voxel of another value")
        return scan


class CheckLabeld(MapTransform):
    """Refuse label maps with a value that is not in ``values``; one that is within 1e-3 of it becomes it.

    A label that a file stores as 255 with a slope of 1/255 is then exactly 1.

    Args:
        keys: keys of label maps (1, *spatial).
        values: the values that may occur.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        InputError: naming the file and the unknown values.
    """

    def __init__(
        self, keys: str | Sequence[str], values: Sequence[int] = (0, 1), allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = tuple(values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            found = torch.unique(torch.as_tensor(d[key])).tolist()
            nearest = {value: min(self.values, key=lambda known, value=value: abs(known - value)) for value in found}
            unknown = [value for value, known in nearest.items() if abs(value - known) > WHOLE]
            if unknown:
                raise InputError(
                    f"{file_of(d[key])} has the label values {_listed(unknown)}, expected only {_listed(self.values)}"
                )
            for value, known in nearest.items():
                if value != known:
                    d[key] = torch.where(d[key] == value, known, d[key])
        return d


class SaveScand(SaveImaged):
    """Write ``OUT/<name>_<postfix>.nii.gz`` on the grid of the image file that the item came from.

    Geometry (affine, qform and sform with their codes, voxel size, units) is that of the file's header; nothing else
    is taken from it. The file appears whole or not at all. It is a SaveImaged, so MONAI Label, which writes by itself,
    leaves it out.

    Args:
        keys: maps to write, MetaTensors (1, X, Y, Z) already brought back to the file's grid.
        output_dir: folder, made if need be.
        postfix: one per key, as ``seg``; the keys themselves by default.
        dtype: type on disk; an integer type takes whole numbers only, nothing is rounded.
        image_key: item whose file gives the grid; the first one if it was read from several.
        allow_missing_keys: do not raise if a key is missing.

    The name is the item's ``name``, else the image's file name; the path written goes to the item ``<postfix>_path``.

    Raises:
        InputError: if the map is not on the file's grid, has NaN or infinite values, or cannot be written.
        ValueError: if a map does not fit the type or is no MetaTensor of one channel.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        output_dir: str | Path,
        postfix: str | Sequence[str] | None = None,
        dtype: DTypeLike = np.float32,
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        postfix = keys if postfix is None else postfix
        super().__init__(
            keys,
            output_dir=output_dir,
            output_postfix=ensure_tuple(postfix)[0],
            output_dtype=dtype,
            separate_folder=False,
            print_log=False,
            allow_missing_keys=allow_missing_keys,
        )
        self.output_dir = Path(str(output_dir))  # a name such as 2025 comes from the command line as a number
        self.postfix = ensure_tuple_rep(postfix, len(self.keys))
        if len(set(self.postfix)) < len(self.keys):
            raise ValueError(f"postfix is {postfix!r} for the keys {self.keys}, expected another one for each key")
        self.dtype = np.dtype(dtype)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        source = file_of(d[self.image_key])
        for key, postfix in self.key_iterator(d, self.postfix):
            path = self.output_dir / f"{d.get('name', stem(source))}_{postfix}.nii.gz"
            array = self._checked_array(d[key], key, source)
            write_atomically(path, lambda part, array=array, source=source: nib.save(on_grid_of(source, array), part))
            logger.debug("wrote %s", path)
            d[f"{postfix}_path"] = str(path)
        return d

    def _checked_array(self, scan: MetaTensor, key: Hashable, source: str) -> np.ndarray:
        if not isinstance(scan, MetaTensor) or scan.ndim != 4 or len(scan) != 1:
            raise ValueError(
                f"{key} is a {type(scan).__name__} {tuple(scan.shape)}, expected a MetaTensor (1, X, Y, Z)"
            )
        image = open_scan(source)
        difference = grid_difference(scan.shape[1:], scan.affine, image.shape[:3], image.affine)
        if difference:
            raise InputError(f"{key} and {source} have {difference}, expected the map on the grid of the file")
        tensor = scan.as_tensor().detach().cpu()[0]
        values = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
        if not np.isfinite(values).all():
            raise InputError(f"{key} of {source} has NaN or infinite values, expected finite ones only")
        array = values.astype(self.dtype)
        if self.dtype.kind in "iu" and not np.array_equal(array, values):
            raise ValueError(f"{key} has values from {values.min()} to {values.max()} that {self.dtype} cannot hold")
        return array


def file_of(scan: Any) -> str:
    """Path of the file that a MetaTensor was read from, the first of several; ``image`` if it came from no file."""
    path = scan.meta.get("filename_or_obj") if isinstance(scan, MetaTensor) else None
    return str(ensure_tuple(path)[0]) if path else "image"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:10]) + (", ..." if len(values) > 10 else "")
