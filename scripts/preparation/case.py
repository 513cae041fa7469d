"""One case: raw scans of one person in, images that the bundles take out, and the way back."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from common.atlas import MAX_MISFIT, align_atlas, atlas_on_grid, icbm_atlas, misfit_of, template_grid
from common.errors import InputError
from common.files import fingerprint_of, read_json, sha256_of, write_atomically, write_json
from common.pictures import Picture, case_pictures
from common.scans import grid_difference
from common.transforms.intensity import fill_holes
from common.transforms.io import LoadScand

from .bias import bias_field
from .brain import extract_brain
from .registration import itk_affine, require_simpleitk, scan_to_scan, sitk, template_to_scan
from .volume import Volume

TEMPLATE_MM = (160.0, 192.0, 160.0)  # extent of the grid in the template's space

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is done to every case.

    Attributes:
        sequences: what the images of a case are; the first that a case has is its reference.
        space: ``own``, the grid of the reference in the order right, front, top; or ``template``, a grid of the ICBM
            template.
        spacing: voxel size of the template's grid, mm.
        skull_stripped: the scans have no head; the brain is where the reference is not 0.
        coregister: bring the other sequences onto the reference; False trusts their headers.
        bias_correction: N4 of every image.
        label_keys: keys of label maps that come along.
    """

    sequences: tuple[str, ...]
    space: str = "own"
    spacing: float = 1.0
    skull_stripped: bool = False
    coregister: bool = True
    bias_correction: bool = True
    label_keys: tuple[str, ...] = ("label",)

    def __post_init__(self) -> None:
        if self.space not in ("own", "template"):
            raise InputError(f"space is {self.space!r}, expected own or template")
        if not self.spacing > 0:
            raise InputError(f"spacing is {self.spacing}, expected mm above 0")


def prepare_case(case: Mapping[str, Any], output_dir: str | Path, settings: Settings) -> Path:
    """Prepare one case, unless that is done already.

    Args:
        case: item of :func:`common.data.list_cases` with a ``name`` that becomes the folder; its brain mask, if it has
            one, takes the place of brain extraction.
        output_dir: gets ``<name>/<name>_<sequence>.nii.gz``, ``_brainmask.nii.gz``, a file per label,
            ``_to_template.tfm`` (as ITK and ANTs resample the reference onto the template), ``_check.png``, and at last
            ``<name>.json``.

    Returns:
        Path of the JSON, see :func:`read_record`.

    Raises:
        InputError: if SimpleITK is missing, or the case cannot be prepared.
    """
    require_simpleitk()
    torch.set_num_threads(1)
    name = case["name"]
    folder = Path(output_dir) / name
    files = _files(case, settings)
    inputs = {role: {"file": Path(path).name, "sha256": sha256_of(path)} for role, path in files.items()}
    record_file = folder / f"{name}.json"
    wanted = fingerprint_of(asdict(settings))
    if _is_done(record_file, inputs, wanted):
        logger.info("%s: done before", name)
        return record_file

    scans = {role: _read(path, role in settings.label_keys) for role, path in files.items()}
    images = {role: scan for role, scan in scans.items() if role in settings.sequences}
    for role, scan in images.items():
        if scan.values.min() < 0:
            logger.warning("%s: %s has values below 0, which become 0", name, role)
        images[role] = scan.like(scan.values.clip(min=0))
    reference_role, reference = next(iter(images.items()))
    ways = {role: np.eye(4) for role in images}  # from the world of the reference to that of the others
    if settings.coregister:
        for role in list(images)[1:]:
            ways[role] = scan_to_scan(reference, images[role])

    if "brain_mask" in scans:
        source = _image_of(scans["brain_mask"], images, files["brain_mask"])
        mask = _moved(scans["brain_mask"].like(scans["brain_mask"].values != 0), reference, ways[source])
        how = "given"
    elif settings.skull_stripped:
        mask, how = fill_holes(reference.values > 0), "not 0"
    else:
        template_to_reference = template_to_scan(reference)
        mask, how = extract_brain(reference, template_to_reference).values > 0, "template"
    if not mask.any():
        raise InputError(f"{files[reference_role]}: its brain mask is empty, expected a brain")
    brain = reference.like(mask)

    for role, scan in images.items():
        inside = _moved(brain, scan, np.linalg.inv(ways[role]))
        if not (scan.values[inside] > 0).any():
            raise InputError(
                f"{files[role]} shows nothing of the brain of {files[reference_role]}, expected one person"
            )
        if settings.bias_correction:
            images[role] = _without_bias(scan, inside)
    stripped = torch.from_numpy(images[reference_role].values * mask).float()
    if how == "template":
        to_template = np.linalg.inv(template_to_reference)
        misfit = misfit_of(icbm_atlas(), stripped, reference.affine, to_template)
    else:
        to_template, misfit = align_atlas(icbm_atlas(), stripped, reference.affine)
    if misfit > MAX_MISFIT:
        logger.warning(
            "%s: %.0f %% of the variance within the template's tissues, look at its picture", name, 100 * misfit
        )

    own = settings.space == "own"
    shape, affine, to_reference = reference.values.shape, reference.affine, np.eye(4)
    if not own:
        shape = tuple(round(mm / settings.spacing) for mm in TEMPLATE_MM)
        affine, to_reference = template_grid([settings.spacing] * 3, shape), np.linalg.inv(to_template)
    out_mask = _moved(brain, Volume(np.empty(shape), affine), to_reference)
    outputs = {"brain_mask": (f"{name}_brainmask.nii.gz", out_mask.astype(np.uint8))}
    for role, scan in images.items():
        values = scan.on_grid(shape, affine, ways[role] @ to_reference).values * out_mask
        outputs[role] = (f"{name}_{role}.nii.gz", values.astype(np.float32))
    for key in settings.label_keys:
        if key in scans:
            label = scans[key]
            way = ways[_image_of(label, images, files[key])] @ to_reference
            outputs[key] = (f"{name}_{key}.nii.gz", label.on_grid(shape, affine, way, order=0).values)
    for file, values in outputs.values():
        write_atomically(folder / file, lambda part, values=values: nib.save(_nifti(values, affine), part))
    tfm = itk_affine(np.linalg.inv(to_template))
    write_atomically(folder / f"{name}_to_template.tfm", lambda part: sitk.WriteTransform(tfm, str(part)))
    picture = _check_picture(reference, mask, to_template)
    write_atomically(folder / f"{name}_check.png", lambda part: part.write_bytes(picture))

    record = {
        "name": name,
        "settings": wanted,
        "inputs": inputs,
        "versions": {package: version(package) for package in ("simpleitk", "nibabel", "numpy", "scipy", "nilearn")},
        "reference": reference_role,
        "brain": how,
        "brain_ml": round(float(mask.sum() * np.prod(reference.spacing) / 1000), 1),
        "template_misfit": round(misfit, 4),
        "to_template": to_template.tolist(),
        "raw": {
            role: _raw_grid(files[role]) | {"to_prepared": np.linalg.inv(ways[role] @ to_reference).tolist()}
            for role in images
        },
        "item": _item(case, settings, {key: file for key, (file, _) in outputs.items()}),
    }
    write_json(record_file, record)
    logger.info("%s: prepared", name)
    return record_file


def read_record(path: str | Path) -> dict[str, Any]:
    """What was done to a case.

    Returns:
        ``name``, ``settings``, ``inputs`` (file names and hashes), ``versions``, ``reference``, ``brain`` (how it
        was found), ``brain_ml``, ``template_misfit`` (see :func:`common.atlas.align_atlas`), ``to_template`` (4 x 4,
        from the world of the raw reference, RAS mm), ``raw`` (of each sequence shape and affine, and ``to_prepared``
        from its world to that of the prepared images), ``item`` for the datalist, paths relative to the folder.

    Raises:
        InputError: if the file is no such record.
    """
    record = read_json(path, "<name>.json of a prepared case", dict)
    missing = {"raw", "item", "inputs", "settings"} - set(record)
    if missing:
        raise InputError(f"{path} has no {min(missing)}, expected <name>.json of a prepared case")
    return record


def restore(map_file: str | Path, record_file: str | Path, sequence: str | None = None) -> nib.Nifti1Image:
    """A map on the grid of prepared images, brought back to the grid of a raw scan.

    Whole numbers come by the nearest voxel, others by linear interpolation. In the own space the reference's
    voxels only go back into their old order: nothing is interpolated.

    Args:
        map_file: NIfTI on the grid of the prepared images.
        record_file: ``<name>.json`` of the case.
        sequence: whose grid; the reference's by default.

    Raises:
        InputError: if the map lies on another grid, or the case has no such sequence.
    """
    record = read_record(record_file)
    sequence = sequence or record["reference"]
    if sequence not in record["raw"]:
        raise InputError(f"{record_file} has no sequence {sequence}, expected one of {', '.join(record['raw'])}")
    raw = record["raw"][sequence]
    made = nib.load(Path(record_file).parent / record["item"]["brain_mask"])
    whole = nib.load(map_file).get_data_dtype().kind in "iu"
    volume = _read(map_file, may_be_empty=True, ras=False)
    difference = grid_difference(volume.values.shape, volume.affine, made.shape, made.affine)
    if difference:
        raise InputError(
            f"{map_file} and the images prepared for {record['name']} have {difference}, expected one grid"
        )
    back = volume.on_grid(raw["shape"], np.array(raw["affine"]), np.array(raw["to_prepared"]), order=0 if whole else 1)
    values = back.values
    if whole:
        values = np.round(values).astype(nib.load(map_file).get_data_dtype())
    return _nifti(values, np.array(raw["affine"]))


def _files(case: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """Role -> path: sequences first, in their order."""
    paths = case["image"] if isinstance(case["image"], list | tuple) else [case["image"]]
    files = {role: path for role, path in zip(settings.sequences, paths, strict=True) if path is not None}
    return files | {key: case[key] for key in ("brain_mask", *settings.label_keys) if key in case}


def _is_done(record_file: Path, inputs: dict[str, dict[str, str]], settings: dict[str, Any]) -> bool:
    try:
        record = read_record(record_file)
    except InputError:
        return False
    known = {role: item["sha256"] for role, item in record["inputs"].items()}
    made = [path for path in _paths_of(record["item"]) if not (record_file.parent / path).is_file()]
    return (
        known == {role: item["sha256"] for role, item in inputs.items()} and record["settings"] == settings and not made
    )


def _paths_of(item: Mapping[str, Any]) -> list[str]:
    values = [v for value in item.values() for v in (value if isinstance(value, list) else [value])]
    return [v for v in values if isinstance(v, str) and v.endswith(".nii.gz")]


def _read(path: str | Path, may_be_empty: bool, ras: bool = True) -> Volume:
    scan = LoadScand("image", may_be_empty=("image",) if may_be_empty else ())({"image": str(path)})["image"]
    volume = Volume(scan.numpy()[0], scan.affine.numpy().astype(float))
    return volume.to_ras() if ras else volume


def _without_bias(scan: Volume, mask: np.ndarray) -> Volume:
    return scan.like(scan.values / bias_field(scan, mask).values)


def _moved(mask: Volume, grid: Volume, way: np.ndarray) -> np.ndarray:
    """A mask on another grid; ``way`` leads from its world to that of the mask."""
    return mask.on_grid(grid.values.shape, grid.affine, way).values > 0.5


def _image_of(companion: Volume, images: Mapping[str, Volume], path: str) -> str:
    """The sequence on whose grid a mask or label lies.

    Raises:
        InputError: if there is none.
    """
    for role, scan in images.items():
        if not grid_difference(companion.values.shape, companion.affine, scan.values.shape, scan.affine):
            return role
    raise InputError(f"{path} lies on the grid of none of {', '.join(images)}, expected one of theirs")


def _raw_grid(path: str) -> dict[str, Any]:
    scan = nib.load(path)
    return {"shape": [int(n) for n in scan.shape[:3]], "affine": scan.affine.tolist()}


def _nifti(values: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(values, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def _item(case: Mapping[str, Any], settings: Settings, files: Mapping[str, str]) -> dict[str, Any]:
    images = [files.get(role) for role in settings.sequences]
    further = {
        key: value
        for key, value in case.items()
        if key not in ("image", "name", *files) and not str(value).endswith((".nii", ".nii.gz"))
    }
    companions = {key: file for key, file in files.items() if key not in settings.sequences}
    return {"image": images[0] if len(images) == 1 else images, **companions, **further}


def _check_picture(scan: Volume, mask: np.ndarray, to_template: np.ndarray) -> bytes:
    """Three planes of the reference: contour of the brain mask, and those of the template's brain and white matter."""
    tissue = atlas_on_grid(icbm_atlas(), to_template, mask.shape, scan.affine)
    labels = np.where(tissue[0].numpy() < 0.5, 1 + (tissue[3].numpy() > 0.5), 0)
    panels = case_pictures(scan.values, scan.affine, mask.astype(np.uint8), labels)[1:4]
    return _side_by_side(panels)


def _side_by_side(panels: Sequence[Picture]) -> bytes:
    pictures = [Image.open(io.BytesIO(panel.data)).convert("RGB") for panel in panels]
    page = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        page.paste(picture, (left, (page.height - picture.height) // 2))
        left += picture.width
    out = io.BytesIO()
    page.save(out, format="png", optimize=True)
    return out.getvalue()
