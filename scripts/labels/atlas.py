"""An atlas of label maps: the probability of every class at every voxel, and which class stands beside which."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.utils import ensure_tuple
from pydantic import Field
from scipy import ndimage
from tqdm import tqdm

from catalog import BUNDLES, descriptions
from common.atlas import Atlas, align_scan, icbm_atlas, read_label_map
from common.data import Datalist
from common.errors import InputError
from common.files import read_json, write_atomically, write_text
from common.options import converted
from common.options import types as t
from common.scans import VOXEL_MM
from common.transforms import BrainMaskd, LoadScand
from datalists.leakage import behind_labels, held_out, refuse_leaks

logger = logging.getLogger(__name__)

STEPS = 60000  # probabilities are stored as whole numbers of this, which sum to 1 within the rounding

CLASSES = Annotated[dict[str, list[t.Whole]], Field(min_length=2), "two names or more with their label values"]
MATRIX = t.list_of(t.list_of(t.Number, "", min_length=4, max_length=4), "4 x 4 numbers", min_length=4, max_length=4)
Groups = dict[str, list[int]]


class Person(NamedTuple):
    """A label map, the matrix from its world to the shared one, and the item that it was listed as."""

    label: str
    to_shared: np.ndarray
    item: dict[str, Any]


def make_atlas(
    output_file: t.NewFile,
    label_files: t.Files | None = None,
    datalist_file: t.File | None = None,
    section: t.Text = "training",
    classes: t.File | None = None,
    sigma_mm: t.Millimeters = 1.0,
    spacing_mm: t.Positive = 1.0,
    align: t.Flag = False,
    keep_out: t.FilesOrNone = (),
) -> None:
    """Write OUTPUT_FILE, 4-D NIfTI with a volume per class, and beside it a JSON of the classes and their neighbors.

    Args:
        output_file: ends in .nii.gz.
        label_files: label maps that lie in one space, one or several.
        datalist_file: instead of them, JSON with a list of ``{"label": path, "world_to_mni": 4 x 4}``: the matrix takes
            the world of a map (RAS mm) to the space that all share; without it the map lies there.
        section: of the datalist.
        classes: file with JSON of name -> values that are joined, background first, such as
            ``{"background": [0], "ventricles": [4, 43]}``; every value of the maps has to be in it. By default every
            value is a class of its own.
        sigma_mm: sd of the Gaussian that smooths the classes; 3 or so for a single person.
        spacing_mm: voxel size of the atlas.
        align: bring everybody to the ICBM 152 template by an affine map that is found on the image of the datalist's
            item, ``{"label": path, "image": path, "brain_mask": path}``, the first of several, instead of the
            matrix.
        keep_out: datalists of those whom the atlas will be judged by; several with commas between them. The datalist
            of the label maps is one of them if it has such sections.

    Raises:
        InputError: if a name, an option or a file cannot be used, or somebody is in it whom it will be judged by.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if not output_file.endswith(".nii.gz"):
        raise InputError(f"output_file is {output_file}, expected a name that ends in .nii.gz")
    people = read_people(label_files, datalist_file, section)
    guard(people, datalist_file, keep_out)
    write_average(output_file, people, read_groups(classes), sigma_mm, spacing_mm, align)


def write_average(
    output_file: str | Path,
    people: Sequence[Person],
    groups: Groups | None = None,
    sigma_mm: float = 1.0,
    spacing_mm: float = 1.0,
    align: bool = False,
) -> None:
    """Write the atlas of some people's label maps, and beside it a JSON of the classes and their neighbors.

    Args:
        output_file: ends in ``.nii.gz``; 4-D NIfTI with a volume per class.
        people: of :func:`read_people`.
        groups: class -> values that are joined, background first; None for every value as a class of its own.
        sigma_mm: sd of the Gaussian that smooths the classes.
        spacing_mm: voxel size of the atlas.
        align: bring everybody to the ICBM 152 template by their image, instead of their matrix.

    Raises:
        InputError: if a map cannot be read, or has a value of no class, or there is no image to align it by.
    """
    neighbor_table = find_neighbor_table()
    maps, tables = [], []
    for path, to_shared, item in tqdm(people, desc="label maps", unit="map", disable=None):
        values, affine = read_label_map(path)
        groups = groups or {str(value): [value] for value in range(values.max() + 1)}
        labels = join_values(path, values, groups)
        tables.append(neighbor_table(torch.from_numpy(labels), len(groups)))
        maps.append((labels.astype(np.uint8), (to_template(item) if align else to_shared) @ affine))
    atlas = average_of_label_maps(maps, len(groups), sigma_mm, spacing_mm)
    # the mean of frequencies, not of logarithms: one person without such a pair does not forbid it
    table = torch.stack(tables).exp().mean(0).log()
    write_atlas(Path(output_file), atlas, list(groups), table, [person.label for person in people])
    for name, share in zip(groups, atlas.probabilities.mean((1, 2, 3)).tolist(), strict=True):
        logger.info("%-24s %8.1f ml", name, share * atlas.probabilities[0].numel() * spacing_mm**3 / 1000)
    logger.info("wrote %s", output_file)


def average_of_label_maps(
    maps: Sequence[tuple[np.ndarray, np.ndarray]], classes: int, sigma_mm: float, spacing_mm: float = 1.0
) -> Atlas:
    """Share of the people that have a class at a place, smoothed, on axes along those of the world, cut to the brain.

    Args:
        maps: label map (X, Y, Z) of 0, 1, ..., ``classes`` - 1, and its affine, of every person, in one world.
        classes: how many, background included.
        sigma_mm: sd of the Gaussian that smooths the classes.
        spacing_mm: voxel size.

    Raises:
        InputError: if a map is empty, or the numbers make no sense.
    """
    if not sigma_mm >= 0 or not VOXEL_MM[0] <= spacing_mm <= VOXEL_MM[1]:
        raise InputError(
            f"sigma_mm is {sigma_mm:g} and spacing_mm {spacing_mm:g}, expected 0 or more and {VOXEL_MM[0]:g} to "
            f"{VOXEL_MM[1]:g}"
        )
    corners = [nib.affines.apply_affine(affine, _corners_of_brain(labels)) for labels, affine in maps]
    margin = 4 * sigma_mm + 2 * spacing_mm
    low = np.min([c.min(0) for c in corners], axis=0) - margin
    shape = np.ceil((np.max([c.max(0) for c in corners], axis=0) + margin - low) / spacing_mm).astype(int) + 1
    grid = np.diag([spacing_mm] * 3 + [1.0])
    grid[:3, 3] = low
    counts = torch.zeros(classes, *shape)
    for labels, affine in maps:
        matrix = np.linalg.inv(affine) @ grid
        values = ndimage.affine_transform(labels, matrix[:3, :3], matrix[:3, 3], tuple(shape), order=0)
        counts.scatter_add_(0, torch.from_numpy(values).long()[None], torch.ones(1, *shape))
    box = ndimage.find_objects((counts[0] < len(maps)).numpy().astype(np.uint8))[0]
    cells = int(np.ceil(margin / spacing_mm))
    box = tuple(slice(max(s.start - cells, 0), s.stop + cells) for s in box)
    start = np.eye(4)
    start[:3, 3] = [s.start for s in box]
    return Atlas(counts[(slice(None), *box)] / len(maps), grid @ start).smoothed(sigma_mm)


def _corners_of_brain(labels: np.ndarray) -> np.ndarray:
    """Corners of the box around what is not 0, (8, 3), voxels."""
    box = next(iter(ndimage.find_objects((labels > 0).astype(np.uint8))), None)
    if box is None:
        raise InputError("a label map is 0 everywhere, expected other labels in it")
    return np.array(list(itertools.product(*((s.start, s.stop - 1) for s in box))), dtype=float)


def find_neighbor_table() -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The function that makes the table, of the bundle whose description names one."""
    name, function = next((n, d.neighbor_table) for n, d in descriptions().items() if d.neighbor_table)
    sys.path.insert(1, str(BUNDLES / name))
    module, _, attribute = function.rpartition(".")
    return getattr(import_module(module), attribute)


def read_people(label_files: Sequence[str] | None, datalist_file: str | None, section: str) -> list[Person]:
    """Whose label maps become the atlas.

    Raises:
        InputError: if neither or both are given, or an item has no label or a matrix that is not 4 x 4.
    """
    if (label_files is None) == (datalist_file is None):
        raise InputError("expected either label_files or datalist_file, to make the atlas of")
    if label_files is not None:
        return [Person(str(path), np.eye(4), {"label": str(path)}) for path in label_files]
    path = Path(datalist_file)
    content = read_json(path, "label maps")
    found = []
    listed = content.get(section, []) if isinstance(content, dict) else content
    for number, item in enumerate(converted(f"{section} of {path}", listed, Annotated[list, "a list of label maps"])):
        named = f"item {number} of {path}"
        item = converted(named, item, Annotated[dict[str, Any], "an object with the path of a label"])
        label = converted(f"the label of {named}", item.get("label"), Annotated[str, "a path"])
        square = converted(f"world_to_mni of {named}", item.get("world_to_mni", np.eye(4).tolist()), MATRIX)
        images = [str(path.parent / image) for image in ensure_tuple(item.get("image")) if image is not None]
        masks = {key: str(path.parent / item[key]) for key in ("brain_mask",) if key in item}
        found.append(Person(str(path.parent / label), np.array(square), {**item, "image": images, **masks}))
    if not found:
        raise InputError(f"{path} has no label map under {section}, expected at least one")
    return found


def guard(people: Sequence[Person], datalist_file: str | None, keep_out: Sequence[str]) -> None:
    """Refuse people whom the atlas will be judged by, also those who taught the network that made its label maps.

    Raises:
        InputError: naming the subject, or a label map whose subject nobody says.
    """
    own = [] if datalist_file is None else [Datalist(datalist_file)]
    judges = held_out([*own, *map(Datalist, keep_out)])
    nameless = [person.label for person in people if "subject" not in person.item and not person.item.get("image")]
    if judges and nameless:
        raise InputError(f"{nameless[0]} has no subject, expected a datalist_file that says whose label map it is")
    if judges:
        teachers = {
            part: cases for datalist in own for part, cases in behind_labels(datalist.header, datalist.path).items()
        }
        refuse_leaks({"the people of the atlas": [person.item for person in people], **teachers}, judges)


def to_template(item: Mapping[str, Any]) -> np.ndarray:
    """Affine map from the world of an image to that of the ICBM 152 template, 4 x 4.

    Raises:
        InputError: if there is no image.
    """
    if not item.get("image"):
        raise InputError(f"{item['label']} has no image, expected one in a datalist_file to align it by")
    scan = {"image": item["image"][0]} | {key: item[key] for key in ("brain_mask",) if key in item}
    scan = LoadScand(["image", "brain_mask"], allow_missing_keys=True)(scan)
    return align_scan(icbm_atlas(), BrainMaskd("image")(scan)["image"])


def read_groups(classes: str | Path | None) -> Groups | None:
    """Class -> values, from a JSON file.

    Raises:
        InputError: if it is something else, or a value is in two classes.
    """
    if classes is None:
        return None
    content = converted("classes", read_json(Path(classes), "classes"), CLASSES)
    values = [value for group in content.values() for value in group]
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise InputError(f"classes has the value {twice[0]} in two classes, expected it in one")
    return content


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
    write_atomically(output_file, lambda part: nib.save(image, part))
    rows = ",\n".join(f"        {json.dumps([round(value, 3) for value in row])}" for row in table.tolist())
    sources = [Path(source).name for source in sources]
    text = (
        f'{{\n    "classes": {json.dumps(names)},\n    "label_maps": {json.dumps(sources)},\n'
        f'    "neighbors": [\n{rows}\n    ]\n}}\n'
    )
    side = output_file.with_name(output_file.name.removesuffix(".nii.gz") + ".json")
    write_text(side, text)
