"""Results of inference beside the scans that they are of: by which names, and on which grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from monai.utils import ensure_tuple

from common.data import Datalist, name_cases
from common.errors import InputError
from common.scans import grid_difference, open_scan, read_scan


def names_of_results(datalist: Datalist, section: str | None = None) -> dict[str, list[str]]:
    """Image -> the names that inference may have given to its results.

    They are called by the first image that a bundle reads, which sets it apart from the others of the section, or of
    the whole datalist.
    """
    names: dict[str, list[str]] = {}
    for items in ([datalist.items(section)] if section else []) + [datalist.items()]:
        width = max(len(ensure_tuple(item["image"])) for item in items)
        for place in range(width):
            images = [ensure_tuple(item["image"]) for item in items]
            cases = [{"image": paths[place]} for paths in images if len(paths) > place and paths[place]]
            name_cases(cases)
            for case in cases:
                known = names.setdefault(case["image"], [])
                known += [case["name"]] if case["name"] not in known else []
    return names


def result_in(
    folder: str | Path, images: str | Sequence[str | None], names: Mapping[str, Sequence[str]]
) -> tuple[str, str]:
    """The image of a case that a folder has a mask of, and the name that it has there.

    Args:
        folder: the ``output_dir`` of one inference.
        images: of the case.
        names: of :func:`names_of_results`.

    Raises:
        InputError: if there is none, or one of two images.
    """
    folder = Path(folder)
    tried = [(image, name) for image in ensure_tuple(images) if image for name in names[image]]
    found = [(image, name) for image, name in tried if (folder / f"{name}_seg.nii.gz").is_file()]
    if not found:
        raise InputError(
            f"{folder / tried[0][1]}_seg.nii.gz: no such file, expected the result of every scan that is listed"
        )
    if len(found) > 1:
        raise InputError(
            f"{folder} has {found[0][1]}_seg and {found[1][1]}_seg of one scan, expected a folder for each bundle"
        )
    return found[0]


def read_on_grid(path: str | Path, image: str | Path) -> np.ndarray:
    """Voxels of a file, (X, Y, Z) float32.

    Raises:
        InputError: if it cannot be read, or lies on another grid than the image.
    """
    values, scan = read_scan(path)
    own = open_scan(image)
    difference = grid_difference(values.shape, scan.affine, own.shape[:3], own.affine)
    if difference:
        raise InputError(f"{path} and {image} have {difference}, expected one grid")
    return values
