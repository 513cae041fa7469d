"""An atlas of label maps: ``python scripts/make_atlas.py --label_files a.nii.gz --output_file atlas.nii.gz``.

Label maps of one person or of several become the probability of every class at every voxel, and a table of which class
stands beside which: what ``sae_segmentation`` learns from in the place of labelled scans. It takes them by
``--atlas_files atlas.nii.gz --classes N --neighbors "%atlas.json::neighbors"``.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bundles" / "sae_segmentation")]

from common.atlas import Atlas, average_of_label_maps, read_label_map
from common.errors import InputError, install_error_hook
from common.transforms.io import write_atomically
from sae_segmentation.loss import neighbor_table

STEPS = 60000  # probabilities are stored as whole numbers of this, which sum to 1 within the rounding

logger = logging.getLogger(__name__)

Groups = dict[str, list[int]]


def main(
    output_file: str,
    label_files: str | Sequence[str] | None = None,
    datalist_file: str | None = None,
    section: str = "training",
    classes: str | Mapping[str, Sequence[int]] | None = None,
    sigma_mm: float = 1.0,
    spacing_mm: float = 1.0,
) -> None:
    """Write OUTPUT_FILE, 4-D NIfTI with a volume per class, and beside it a JSON of the classes and their neighbors.

    Args:
        output_file: ends in .nii.gz.
        label_files: label maps that lie in one space, one or several.
        datalist_file: in their place, JSON with a list of ``{"label": path, "world_to_mni": 4 x 4}``: the matrix takes
            the world of a map (RAS mm) to the space that all share; without it the map lies there.
        section: of the datalist.
        classes: file with JSON of name -> values that are joined, background first, such as
            ``{"background": [0], "ventricles": [4, 43]}``; every value of the maps has to be in it. By default every
            value is a class of its own.
        sigma_mm: sd of the Gaussian that smooths the classes; 3 or so for a single person.
        spacing_mm: voxel size of the atlas.
    """
    install_error_hook()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if not str(output_file).endswith(".nii.gz"):
        raise InputError(f"output_file is {output_file}, expected a name that ends in .nii.gz")
    items = read_items(label_files, datalist_file, section)
    groups = read_groups(classes)
    maps, tables = [], []
    for path, to_shared in tqdm(items, desc="label maps", unit="map", disable=None):
        values, affine = read_label_map(path)
        groups = groups or {str(value): [value] for value in range(values.max() + 1)}
        labels = join_values(path, values, groups)
        tables.append(neighbor_table(torch.from_numpy(labels), len(groups)))
        maps.append((labels.astype(np.uint8), to_shared @ affine))
    atlas = average_of_label_maps(maps, len(groups), sigma_mm, spacing_mm)
    # the mean of frequencies, not of logarithms: one person without such a pair does not forbid it
    table = torch.stack(tables).exp().mean(0).log()
    write_atlas(Path(output_file), atlas, list(groups), table, [path for path, _ in items])
    for name, share in zip(groups, atlas.probabilities.mean((1, 2, 3)).tolist(), strict=True):
        logger.info("%-24s %8.1f ml", name, share * atlas.probabilities[0].numel() * spacing_mm**3 / 1000)
    logger.info("wrote %s", output_file)


def read_items(
    label_files: str | Sequence[str] | None, datalist_file: str | None, section: str
) -> list[tuple[str, np.ndarray]]:
    """Paths of label maps, and the matrix from the world of each to the shared one.

    Raises:
        InputError: if neither or both are given, or an item has no label or a matrix that is not 4 x 4.
    """
    if (label_files is None) == (datalist_file is None):
        raise InputError("expected either label_files or datalist_file, to make the atlas of")
    if label_files is not None:
        files = [label_files] if isinstance(label_files, str) else list(label_files)
        return [(str(path), np.eye(4)) for path in files]
    path = Path(datalist_file)
    content = read_json(path, "label maps")
    found = []
    for number, item in enumerate(content.get(section, []) if isinstance(content, dict) else content):
        matrix = np.array(item.get("world_to_mni", np.eye(4).tolist()), dtype=float)
        if "label" not in item or matrix.shape != (4, 4):
            raise InputError(f"item {number} of {path} is {str(item)[:80]}, expected a label, and a matrix of 4 x 4")
        found.append((str(path.parent / item["label"]), matrix))
    if not found:
        raise InputError(f"{path} has no label map under {section}, expected at least one")
    return found


def read_groups(classes: str | Mapping[str, Sequence[int]] | None) -> Groups | None:
    """Class -> values.

    Raises:
        InputError: if it is something else, or a value is in two classes.
    """
    if classes is None:
        return None
    content = read_json(Path(classes), "classes") if isinstance(classes, str) else classes
    if not isinstance(content, Mapping) or len(content) < 2:
        raise InputError(f"classes is {str(content)[:80]}, expected two names or more with their label values")
    values = [value for group in content.values() for value in group]
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise InputError(f"classes has the value {twice[0]} in two classes, expected it in one")
    return {name: list(group) for name, group in content.items()}


def read_json(path: Path, what: str) -> Any:
    """Content of a file.

    Raises:
        InputError: if there is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror}), expected a JSON file of {what}") from e
    except ValueError as e:
        raise InputError(f"{path} is no valid JSON ({e}), expected {what}") from e


def join_values(path: str, values: np.ndarray, groups: Groups) -> np.ndarray:
    """Number of the class at every voxel.

    Raises:
        InputError: if the map has a value of no class.
    """
    lookup = np.full(max(values.max(), *(v for group in groups.values() for v in group)) + 1, -1)
    for number, group in enumerate(groups.values()):
        lookup[group] = number
    labels = lookup[values]
    if (labels < 0).any():
        unknown = ", ".join(map(str, np.unique(values[labels < 0])))
        raise InputError(f"{path} has the values {unknown}, which are in no class, expected all of them in classes")
    return labels


def write_atlas(output_file: Path, atlas: Atlas, names: list[str], table: torch.Tensor, sources: list[str]) -> None:
    """The maps, and ``<name>.json`` with what the numbers mean."""
    counts = np.round(atlas.probabilities.numpy() * STEPS).astype(np.uint16)
    image = nib.Nifti1Image(np.moveaxis(counts, 0, 3), atlas.affine)
    image.header.set_slope_inter(1 / STEPS, 0)
    image.header.set_xyzt_units("mm")
    output_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output_file, lambda part: nib.save(image, part))
    rows = ",\n".join(f"        {json.dumps([round(value, 3) for value in row])}" for row in table.tolist())
    sources = [Path(source).name for source in sources]
    text = (
        f'{{\n    "classes": {json.dumps(names)},\n    "label_maps": {json.dumps(sources)},\n'
        f'    "neighbors": [\n{rows}\n    ]\n}}\n'
    )
    side = output_file.with_name(output_file.name.removesuffix(".nii.gz") + ".json")
    write_atomically(side, lambda part: part.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    fire.Fire(main)
