"""The one door for scans: NIfTI files are opened, read to their end and compared here, and what is wrong is a sentence.

Three rules are the same wherever a scan is used:

* Two grids are one where no corner of the volume moves by more than :data:`GRID_TOLERANCE` of a voxel's shortest edge.
* A mask has two values, 0 and another one above it; any other is cut at half of its largest: see :func:`as_mask`.
* The background of a skull-stripped image is what is 0, or no more than :data:`BACKGROUND` of its bright voxels: see
  :func:`foreground`.
"""

from __future__ import annotations

import gzip
import itertools
import logging
import os
import re
import sys
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import FileHolder, ImageFileError
from nibabel.spatialimages import HeaderDataError

from .errors import InputError, reason_of

logger = logging.getLogger(__name__)

GRID_TOLERANCE = 0.05  # share of the shortest edge of a voxel
VOXEL_MM = (0.05, 20.0)  # smallest and largest edge that a voxel of a head may have
EXTENT_MM = 1000.0
WHOLE = 1e-3  # how far a label may be from a whole number, and a mask from its two values: 255 / 255 is not quite 1
BACKGROUND = 1e-4  # share of the 99th percentile of an image
TRAILING_BYTES = 2**24  # that may stand behind the voxels in a compressed file
ENDINGS = (".nii", ".nii.gz", ".img", ".img.gz", ".hdr", ".hdr.gz")
UNREADABLE = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError, OverflowError)
# the header fields that say where a voxel lies; others, left behind, may hold names of people and scanners
_GRID_FIELDS = (
    *("xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def stem(path: str | Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``, in upper or lower case."""
    return re.sub(r"(\.nii|\.img|\.hdr)?(\.gz)?$", "", Path(path).name, flags=re.IGNORECASE)


def json_beside(path: str | Path) -> Path:
    """The JSON file of an image, ``x_seg.json`` of ``x_seg.nii.gz``."""
    return Path(path).with_name(f"{stem(path)}.json")


def is_scan_name(path: str | Path) -> bool:
    """Whether a file is called like a NIfTI file: ``.nii``, or a pair of ``.hdr`` and ``.img``, compressed or not."""
    return str(path).lower().endswith(ENDINGS)


def open_scan(path: str | Path, volumes: bool = False) -> nib.Nifti1Pair:
    """Open a NIfTI file (1 or 2, one file or a pair, compressed or not) and check its header; voxels stay on disk.

    Args:
        path: file; of a pair either one.
        volumes: several volumes are fine, as of a field or of an atlas with one for each class.

    Returns:
        nibabel's image; its first three axes are the scan, without ``volumes`` any further axis has length 1.

    Raises:
        InputError: if the file is missing, is no NIfTI, holds no single 3-D volume, or has a broken affine or
            one that is not in millimeters.
    """
    path = Path(path)
    try:
        there, folder = path.is_file(), path.is_dir()
        image = nib.load(path) if there else None
    except UNREADABLE as e:
        raise InputError(f"{path} cannot be read as NIfTI ({reason_of(e)}), expected a .nii or .nii.gz file") from e
    if image is None:
        raise InputError(f"{path} {'is a folder' if folder else 'does not exist'}, expected a NIfTI file")
    if not isinstance(image, nib.Nifti1Pair):  # what the other three NIfTI classes derive from
        raise InputError(f"{path} is a file of type {type(image).__name__}, expected NIfTI")
    shape = image.shape
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise InputError(f"{path} has shape {shape}, expected a 3-D image of at least 2 voxels along each axis")
    if not volumes and any(n != 1 for n in shape[3:]):
        raise InputError(f"{path} has shape {shape}, so several volumes, expected one 3-D volume")
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path} has voxels of type {image.get_data_dtype()}, expected integers or real numbers")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise InputError(
            f"{path} has the affine {image.affine[:3].tolist()}, expected a finite one that can be inverted"
        )
    edges = np.linalg.norm(image.affine[:3, :3], axis=0)
    if not (VOXEL_MM[0] <= edges.min() and edges.max() <= VOXEL_MM[1] and (edges * shape[:3]).max() <= EXTENT_MM):
        sizes = " x ".join(f"{edge:g}" for edge in edges)
        raise InputError(
            f"{path} has {' x '.join(map(str, shape[:3]))} voxels of {sizes} mm, expected a head in millimeters"
        )
    return image


def open_whole(path: str | Path, volumes: bool = False, max_memory_gib: float | None = None) -> nib.Nifti1Pair:
    """:func:`open_scan` of a file that is to be read at once: a compressed one is unpacked, to the checksum at its end.

    What stands behind the voxels is not kept, and no more of it is read than :data:`TRAILING_BYTES`.

    Args:
        path, volumes: as for :func:`open_scan`.
        max_memory_gib: as for :func:`check_memory`.

    Raises:
        InputError: also if the file ends too early or holds too much, or its voxels do not fit into the memory.
    """
    image = open_scan(path, volumes)
    voxels = int(np.prod(image.shape, dtype=float))
    offset = max(int(image.dataobj.offset), 0)
    size = voxels * image.get_data_dtype().itemsize
    check_memory(str(path), image.shape[:3], offset + size + 12 * voxels, "to be read", max_memory_gib)
    files = {name: holder.filename for name, holder in image.file_map.items()}
    if not any(str(file).lower().endswith(".gz") for file in files.values()):
        return image
    most = {name: (size if name == "image" else 2**20) + offset for name in files}
    contents = {name: _unpacked(file, most[name]) for name, file in files.items()}
    return type(image).from_file_map({name: FileHolder(fileobj=BytesIO(text)) for name, text in contents.items()})


def read_scan(
    path: str | Path, dtype: Any = np.float32, volumes: bool = False, max_memory_gib: float | None = None
) -> tuple[np.ndarray, nib.Nifti1Pair]:
    """Voxels of a NIfTI file, read to its end.

    Args:
        path, volumes, max_memory_gib: as for :func:`open_whole`.
        dtype: of the voxels; None for what file and slope give.

    Returns:
        (X, Y, Z), or with ``volumes`` all axes that the file has, and nibabel's image with header and affine.

    Raises:
        InputError: as :func:`open_whole`, and if a voxel is NaN or infinite.
    """
    try:
        image = open_whole(path, volumes, max_memory_gib)
        values = np.asarray(image.dataobj, dtype=dtype)
    except InputError:
        raise
    except UNREADABLE as e:
        raise unreadable(path, e) from e
    check_finite(values, path)
    return (values if volumes else values.reshape(values.shape[:3])), image


def unreadable(path: str | Path, error: Exception) -> InputError:
    """What to say of a file that cannot be read to its end."""
    return InputError(f"{path} cannot be read to its end ({reason_of(error)}), expected a whole NIfTI file")


def check_finite(values: np.ndarray, path: str | Path) -> None:
    """Refuse NaN and infinite voxels.

    Raises:
        InputError: naming the file and how many there are.
    """
    broken = values.size - int(np.count_nonzero(np.isfinite(values)))
    if broken:
        raise InputError(
            f"{path} has {broken} NaN or infinite voxels of {values.size}, expected finite values only: "
            "set those outside the brain to 0"
        )


def check_memory(
    path: str, shape: Sequence[int], needed: float, purpose: str, max_memory_gib: float | None = None
) -> None:
    """Refuse what does not fit into the memory, before it is asked for.

    Args:
        path: of the scan, for the message.
        shape: of the grid that needs it.
        needed: bytes, an estimate.
        purpose: what for.
        max_memory_gib: the most that may be asked for; None for what the machine has free.

    Raises:
        InputError: with the numbers.
    """
    free = max_memory_gib * 2**30 if max_memory_gib is not None else free_memory()
    if free is not None and needed > free:
        limit = f"the limit of {max_memory_gib:g} GiB" if max_memory_gib is not None else f"{free / 2**30:.1f} GiB free"
        raise InputError(
            f"{path}: {' x '.join(str(int(n)) for n in shape)} voxels need about {needed / 2**30:.1f} GiB {purpose}, "
            f"expected no more than {limit}: is the voxel size in its header right?"
        )


def free_memory() -> int | None:
    """Bytes that this process can still get: of the machine, of its container, of its limit; None if nobody says."""
    group = Path("/sys/fs/cgroup")
    limit, taken = _number_in(group / "memory.max"), _number_in(group / "memory.current")
    cached = re.search(r"^inactive_file (\d+)", _text_of(group / "memory.stat"), re.MULTILINE)
    found = [] if limit is None or taken is None else [limit - taken + (int(cached[1]) if cached else 0)]
    available = re.search(r"MemAvailable:\s*(\d+) kB", _text_of(Path("/proc/meminfo")))
    found += [int(available[1]) * 1024] if available else []
    if sys.platform == "darwin" and hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        size = re.search(r"VmSize:\s*(\d+) kB", _text_of(Path("/proc/self/status")))
        found += [limit - int(size[1]) * 1024] if limit != resource.RLIM_INFINITY and size else []
    return max(min(found), 0) if found else None


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of a voxel in ml, by the affine of its file, 4 x 4, mm."""
    return float(abs(np.linalg.det(np.asarray(affine)[:3, :3]))) / 1000


def grid_difference(
    shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray
) -> str | None:
    """How two voxel grids differ, in words; None if they are one.

    They are if their shapes are equal and no voxel lies further from its double than :data:`GRID_TOLERANCE` of the
    shortest edge of a voxel: rounded origins differ by less, and what they hold is the same. The distance is largest
    at a corner of the volume, since both maps are affine.

    Args:
        shape, other_shape: numbers of voxels along the three axes.
        affine, other_affine: voxel to world in mm, 4 x 4.
    """
    if tuple(shape) != tuple(other_shape):
        return f"shape {tuple(int(n) for n in shape)} against {tuple(int(n) for n in other_shape)}"
    first, second = (np.asarray(matrix, dtype=float) for matrix in (affine, other_affine))
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in shape))])
    distance = np.linalg.norm(corners @ (first - second)[:3].T, axis=1).max()
    edge = min(np.linalg.norm(matrix[:3, :3], axis=0).min() for matrix in (first, second))
    if distance > GRID_TOLERANCE * edge:
        return f"affines that differ by up to {distance:.3g} mm at a corner"
    return None


def whole_numbers(values: Any, path: str | Path) -> Any:
    """Labels as whole numbers: what is within :data:`WHOLE` of one is taken for it, as 255 times 1/255 is.

    Args:
        values: array or tensor.
        path: of the file, for the message.

    Returns:
        The same, rounded.

    Raises:
        InputError: if a value is no whole number.
    """
    rounded = values.round()
    if values.size if isinstance(values, np.ndarray) else values.numel():
        furthest = abs(values - rounded).max()
        if furthest > WHOLE:
            odd = values.flatten()[abs(values - rounded).flatten().argmax()]
            raise InputError(f"{path} has the value {float(odd):g}, expected whole numbers in a label map")
    return rounded


def distinct(values: np.ndarray) -> list[float]:
    """The values of an array, sorted; small whole numbers are counted, in a fraction of the time of sorting."""
    if values.dtype == np.uint8:
        return np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
    return np.unique(values).tolist()


def as_mask(values: Any, path: str | Path) -> Any:
    """Where a mask is set.

    A mask has two values: 0, and another one above it, be it 1 or 255. One with more values or with negative ones, as a
    soft mask, one that was resampled by splines and one with -1 outside, is cut at half of its largest value, and a
    warning says so: "not 0" would be far too much.

    Args:
        values: array or tensor.
        path: of the file, for the messages.

    Returns:
        The same shape, bool; all of it False for a mask that is 0 everywhere.

    Raises:
        InputError: if nothing is above 0 and something below.
    """
    low, high = float(values.min()), float(values.max())
    if low < 0 and high <= 0:
        raise InputError(f"{path} has values from {low:g} to {high:g}, expected 0 outside and one value above 0 inside")
    tolerance = WHOLE * (high - low)
    two = bool(((abs(values - low) <= tolerance) | (abs(values - high) <= tolerance)).all())
    if not two or low < -tolerance or tolerance < low < high:
        logger.warning(
            "%s has %s from %g to %g, expected 0 outside and one value inside: it is cut at %g, half of its largest",
            path,
            "two values" if two else "more than two values",
            low,
            high,
            high / 2,
        )
    return values > high / 2


def foreground(image: np.ndarray) -> np.ndarray:
    """Where an image is not background: above :data:`BACKGROUND` of its 99th percentile, in magnitude.

    Tools leave 1e-5 or the like where they mean 0.

    Args:
        image: (X, Y, Z).
    """
    magnitude = np.abs(image)
    return magnitude > BACKGROUND * float(np.percentile(magnitude, 99))


def on_grid_of(path: str | Path, array: np.ndarray) -> nib.Nifti1Image:
    """A NIfTI image of ``array`` (X, Y, Z) with the geometry of the file ``path``, and no other part of its header."""
    source = open_scan(path)
    kind = nib.Nifti2Image if source.header["sizeof_hdr"] == 540 else nib.Nifti1Image
    header = kind.header_class()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    for field in _GRID_FIELDS:
        header[field] = source.header[field]
    header["pixdim"][:4] = source.header["pixdim"][:4]  # element 0 is the handedness of the qform
    return kind(array, None, header)


def _unpacked(file: str | Path, size: int) -> bytes:
    """The first bytes of a file, unpacked, after a look at its checksum, which stands at its end."""
    if not str(file).lower().endswith(".gz"):
        return Path(file).read_bytes()
    with gzip.open(file) as stream:
        content = stream.read(size)
        left = TRAILING_BYTES
        while left > 0 and (more := len(stream.read(min(left, 2**20)))):
            left -= more
        if left <= 0 and stream.read(1):
            raise InputError(
                f"{file} goes on for more than {TRAILING_BYTES >> 20} MiB behind its voxels, expected its end there"
            )
    return content


def _number_in(file: Path) -> int | None:
    text = _text_of(file).strip()
    return int(text) if text.isdigit() else None


def _text_of(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
