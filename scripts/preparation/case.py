"""One case: raw scans of one person in, images that the bundles take out, and the way back."""

from __future__ import annotations

import io
import logging
import re
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
from common.scans import grid_difference, stem
from common.sequences import sequence_name
from common.transforms.intensity import fill_holes
from common.transforms.io import LoadScand

from .bias import bias_field
from .brain import Brain, bright_outside, deepbet_brain, deepbet_is_installed, extract_brain
from .coregistration import Match, coregister
from .registration import itk_affine, require_simpleitk, sitk, template_to_scan
from .volume import Volume

TEMPLATE_MM = (160.0, 192.0, 160.0)  # extent of the grid in the template's space
EXTRACTIONS = ("auto", "deepbet", "template")
USUAL_BRAIN_ML = (600.0, 2200.0)
MAX_BRIGHT_OUTSIDE = 0.3
MAX_LABELS = 256

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
        brain_extraction: ``deepbet``, of the T1w of a case; ``template``, of the reference, of any contrast; ``auto``,
            the first where deepbet is installed and a case has a T1w, else the second.
        coregister: bring the other sequences onto the reference; False trusts their headers.
        bias_correction: N4 of every image.
        label_keys: keys of label maps that come along.
    """

    sequences: tuple[str, ...]
    space: str = "own"
    spacing: float = 1.0
    skull_stripped: bool = False
    brain_extraction: str = "auto"
    coregister: bool = True
    bias_correction: bool = True
    label_keys: tuple[str, ...] = ("label",)

    def __post_init__(self) -> None:
        if self.space not in ("own", "template"):
            raise InputError(f"space is {self.space!r}, expected own or template")
        if not self.spacing > 0:
            raise InputError(f"spacing is {self.spacing}, expected mm above 0")
        if self.brain_extraction not in EXTRACTIONS:
            raise InputError(f"brain_extraction is {self.brain_extraction!r}, expected one of {', '.join(EXTRACTIONS)}")
        if self.brain_extraction == "deepbet" and not deepbet_is_installed():
            raise InputError("deepbet is not installed, expected it for brain_extraction deepbet; pip install deepbet")
        if len(set(self.sequences)) < len(self.sequences):
            raise InputError(f"sequences are {', '.join(self.sequences)}, expected each once")
        for name in (*self.sequences, *self.label_keys):
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise InputError(f"{name!r} is no name of a sequence or a label, expected letters, digits, _ and -")

    @property
    def would_take_deepbet(self) -> bool:
        """Whether deepbet would make masks of these sequences, if it were installed."""
        wanted = self.brain_extraction == "auto" and "T1w" in self.sequences and not self.skull_stripped
        return wanted and not deepbet_is_installed()


@dataclass(frozen=True)
class _Scans:
    """What a case consists of, in the order right, front, top.

    Attributes:
        files: role -> path; a role is a sequence, ``brain_mask`` or the key of a label.
        images: sequence -> scan; the first is the reference.
        companions: the others.
        matches: how each other sequence lies on the reference.
        warnings: sentences.
    """

    files: dict[str, str]
    images: dict[str, Volume]
    companions: dict[str, Volume]
    matches: dict[str, Match]
    warnings: list[str]

    @property
    def reference(self) -> Volume:
        return next(iter(self.images.values()))

    def way(self, role: str) -> np.ndarray:
        """From the world of the reference to that of a sequence, or of the one on whose grid a companion lies."""
        if role in self.companions:
            role = _image_of(self.companions[role], self.images, self.files[role])
        return self.matches[role].way if role in self.matches else np.eye(4)


def prepare_case(case: Mapping[str, Any], output_dir: str | Path, settings: Settings) -> Path:
    """Prepare one case, unless that is done already.

    Args:
        case: item of :func:`common.data.list_cases` with a ``name`` that becomes the folder; its brain mask, if it has
            one, takes the place of brain extraction.
        output_dir: gets ``<name>/<name>_<sequence>.nii.gz``, ``_brainmask.nii.gz``, a file per label,
            ``_to_template.tfm`` (as ITK and ANTs resample the reference onto the template), ``_<sequence>_check.png``,
            and at last ``<name>.json``.

    Returns:
        Path of the JSON, see :func:`read_record`.

    Raises:
        InputError: if SimpleITK is missing, or the case cannot be prepared.
    """
    require_simpleitk()
    torch.set_num_threads(1)
    name = case["name"]
    files = _files(case, settings)
    if not name.strip(".") or Path(name).name != name:
        raise InputError(f"{next(iter(files.values()))} makes a case called {name!r}, expected a name for a folder")
    folder = Path(output_dir) / name
    inputs = {role: {"file": Path(path).name, "sha256": sha256_of(path)} for role, path in files.items()}
    record_file = folder / f"{name}.json"
    may_take_deepbet = settings.brain_extraction == "auto" and deepbet_is_installed()
    wanted = fingerprint_of(asdict(settings) | {"may_take_deepbet": may_take_deepbet})
    if _is_done(record_file, inputs, wanted):
        logger.info("%s: done before", name)
        return record_file

    scans = _read_scans(files, settings)
    brain = _brain(scans, settings)
    raw_images = dict(scans.images)
    _check_and_correct(scans, brain, settings.bias_correction)
    to_template, misfit = _way_to_template(scans, brain)
    shape, affine, to_reference = scans.reference.values.shape, scans.reference.affine, np.eye(4)
    if settings.space == "template":
        shape = tuple(round(mm / settings.spacing) for mm in TEMPLATE_MM)
        affine, to_reference = template_grid([settings.spacing] * 3, shape), np.linalg.inv(to_template)
    outputs = _resampled(scans, brain, Volume(np.empty(shape), affine), to_reference)
    outputs = {role: (f"{name}_{role.replace('brain_mask', 'brainmask')}.nii.gz", v) for role, v in outputs.items()}
    for file, values in outputs.values():
        write_atomically(folder / file, lambda part, values=values: nib.save(_nifti(values, affine), part))
    tfm = itk_affine(np.linalg.inv(to_template))
    write_atomically(folder / f"{name}_to_template.tfm", lambda part: sitk.WriteTransform(tfm, str(part)))
    pictures = {role: f"{name}_{role}_check.png" for role in scans.images}
    for role, scan in raw_images.items():
        shown = scan.on_grid(scans.reference.values.shape, scans.reference.affine, scans.way(role))
        picture = _check_picture(shown, brain.mask.values, to_template)
        write_atomically(folder / pictures[role], lambda part, picture=picture: part.write_bytes(picture))

    record = {
        "name": name,
        "settings": wanted,
        "inputs": inputs,
        **_findings(scans, brain),
        "template_misfit": round(misfit, 4),
        "to_template": to_template.tolist(),
        "raw": {
            role: _raw_grid(files[role]) | {"to_prepared": np.linalg.inv(scans.way(role) @ to_reference).tolist()}
            for role in scans.images
        },
        "pictures": pictures,
        "item": _item(case, settings, {role: file for role, (file, _) in outputs.items()}),
    }
    write_json(record_file, record)
    logger.info("%s: prepared", name)
    return record_file


def _findings(scans: _Scans, brain: Brain) -> dict[str, Any]:
    """What a record says of the scans and of the brain in them."""
    packages = ["simpleitk", "nibabel", "numpy", "scipy", "nilearn", *(["deepbet"] if brain.how == "deepbet" else [])]
    return {
        "versions": {package: version(package) for package in packages},
        "reference": next(iter(scans.images)),
        "brain": brain.how,
        "brain_source": brain.source,
        "brain_ml": round(brain.volume_ml, 1),
        "coregistration": {role: match.numbers() for role, match in scans.matches.items()},
        "warnings": scans.warnings,
    }


def _read_scans(files: dict[str, str], settings: Settings) -> _Scans:
    """The files of a case, sequences brought onto the reference if that is wanted."""
    images: dict[str, Volume] = {}
    warnings = []
    for role in (role for role in files if role in settings.sequences):
        scan = _read(files[role], may_be_empty=False)
        if scan.values.min() < 0:
            warnings.append(f"{role} has values below 0, which become 0")
        images[role] = scan.like(scan.values.clip(min=0))
    companions = {role: _read(path, role in settings.label_keys) for role, path in files.items() if role not in images}
    if "brain_mask" in companions:
        companions["brain_mask"], doubt = _two_values(companions["brain_mask"])
        warnings += [f"the brain mask {doubt}"] if doubt else []
    reference, *others = images if settings.coregister else [*images][:1]
    matches = {}
    for role in others:
        try:
            matches[role] = coregister(images[reference], images[role])
        except InputError as e:
            raise InputError(f"{files[role]} does not come onto {files[reference]}: {e}") from e
    warnings += [f"{role} {match.doubt}" for role, match in matches.items() if match.doubt]
    return _Scans(files, images, companions, matches, warnings)


def _two_values(mask: Volume) -> tuple[Volume, str | None]:
    """A brain mask of 0 and 1, and what was wrong with it: a soft or a resampled one is cut at half of its largest."""
    values = np.unique(mask.values)
    if len(values) <= 2 and values[0] >= 0:
        return mask.like(mask.values > 0), None
    kind = "negative values" if values[0] < 0 else f"{len(values)} values"
    half = values[-1] / 2
    return mask.like(
        mask.values > max(half, 0)
    ), f"has {kind}, expected two: it is cut at {half:.3g}, half of its largest"


def _brain(scans: _Scans, settings: Settings) -> Brain:
    """The brain on the grid of the reference; what is odd about it joins the warnings.

    Raises:
        InputError: if there is none.
    """
    reference_role, reference = next(iter(scans.images.items()))
    brain = None
    if "brain_mask" in scans.companions:
        mask = _moved(scans.companions["brain_mask"], reference, scans.way("brain_mask"))
        brain = Brain(reference.like(mask), "given", "brain_mask")
    elif settings.skull_stripped:
        brain = Brain(reference.like(fill_holes(reference.values > 0)), "not 0", reference_role)
    elif settings.brain_extraction == "deepbet" and "T1w" not in scans.images:
        raise InputError(f"{scans.files[reference_role]} has no T1w beside it, expected one for deepbet")
    elif settings.brain_extraction != "template" and "T1w" in scans.images and deepbet_is_installed():
        brain = _brain_by_deepbet(scans, may_fail=settings.brain_extraction == "auto")
    if brain is None:
        to_reference = template_to_scan(reference)
        brain = Brain(extract_brain(reference, to_reference), "template", reference_role, to_reference)
    if not brain.mask.values.any():
        raise InputError(f"{scans.files[reference_role]}: its brain mask is empty, expected a brain")
    if not USUAL_BRAIN_ML[0] <= brain.volume_ml <= USUAL_BRAIN_ML[1]:
        low, high = USUAL_BRAIN_ML
        scans.warnings.append(f"the brain has {brain.volume_ml:.0f} ml, usual are {low:.0f} to {high:.0f}")
    # of other sequences fluid is bright
    outside = bright_outside(reference, brain.mask.values) if reference_role in ("T1w", "FLAIR") else 0.0
    if outside > MAX_BRIGHT_OUTSIDE:
        scans.warnings.append(f"{outside:.0%} of the rim outside of the brain mask is as bright as brain")
    return brain


def _brain_by_deepbet(scans: _Scans, may_fail: bool) -> Brain | None:
    """The brain of the T1w, on the grid of the reference; None and a warning where it is improbable and may fail."""
    try:
        mask = _moved(deepbet_brain(scans.images["T1w"]), scans.reference, scans.way("T1w"))
        brain = Brain(scans.reference.like(mask), "deepbet", "T1w")
        problem = f"deepbet finds {brain.volume_ml:.0f} ml of brain"
        if not may_fail or USUAL_BRAIN_ML[0] <= brain.volume_ml <= USUAL_BRAIN_ML[1]:
            return brain
    except InputError as e:
        if not may_fail:
            raise InputError(f"{scans.files['T1w']}: {e}") from e
        problem = "deepbet finds no brain"
    scans.warnings.append(f"{problem} in the T1w, the mask is made by the template")
    return None


def _check_and_correct(scans: _Scans, brain: Brain, bias_correction: bool) -> None:
    """Refuse a sequence that shows nothing of the brain, and take the shading out of the others."""
    for role, scan in scans.images.items():
        inside = _moved(brain.mask, scan, np.linalg.inv(scans.way(role)))
        if not (scan.values[inside] > 0).any():
            other = next(iter(scans.files.values()))
            raise InputError(f"{scans.files[role]} shows nothing of the brain of {other}, expected one person")
        if bias_correction:
            scans.images[role] = scan.like(scan.values / bias_field(scan, inside).values)


def _way_to_template(scans: _Scans, brain: Brain) -> tuple[np.ndarray, float]:
    """From the world of the reference to the template's, and how badly it fits there."""
    reference = scans.reference
    stripped = torch.from_numpy(reference.values * (brain.mask.values > 0)).float()
    if brain.from_template is None:
        to_template, misfit = align_atlas(icbm_atlas(), stripped, reference.affine)
    else:
        to_template = np.linalg.inv(brain.from_template)
        misfit = misfit_of(icbm_atlas(), stripped, reference.affine, to_template)
    if misfit > MAX_MISFIT:
        scans.warnings.append(f"{misfit:.0%} of the variance lies within the template's tissues, look at its picture")
    return to_template, misfit


def _resampled(scans: _Scans, brain: Brain, grid: Volume, to_reference: np.ndarray) -> dict[str, np.ndarray]:
    """Role -> what is written: brain mask, stripped sequences, labels. ``to_reference`` leads from the grid's world."""
    shape, affine = grid.values.shape, grid.affine
    mask = _moved(brain.mask, grid, to_reference)
    outputs = {"brain_mask": mask.astype(np.uint8)}
    for role, scan in scans.images.items():
        outputs[role] = (scan.on_grid(shape, affine, scans.way(role) @ to_reference).values * mask).astype(np.float32)
    for role, label in scans.companions.items():
        if role != "brain_mask":
            outputs[role] = label.labels_on_grid(shape, affine, scans.way(role) @ to_reference).values
    return outputs


def read_record(path: str | Path) -> dict[str, Any]:
    """What was done to a case.

    Returns:
        ``name``, ``settings``, ``inputs`` (file names and hashes), ``versions``, ``reference``, ``brain`` (how it was
        found) and ``brain_source`` (in what), ``brain_ml``, ``template_misfit`` (see
        :func:`common.atlas.align_atlas`), ``coregistration`` (see :meth:`Match.numbers`) of each sequence but the
        reference, ``warnings``, ``to_template`` (4 x 4, from the world of the raw reference, RAS mm), ``raw`` (of each
        sequence shape and affine, and ``to_prepared`` from its world to that of the prepared images), ``pictures`` by
        sequence, ``item`` for the datalist, paths relative to the folder.

    Raises:
        InputError: if the file is no such record.
    """
    record = read_json(path, "<name>.json of a prepared case", dict)
    missing = {"raw", "item", "inputs", "settings", "pictures"} - set(record)
    if missing:
        raise InputError(f"{path} has no {min(missing)}, expected <name>.json of a prepared case")
    return record


def sequence_of(map_file: str | Path, record: Mapping[str, Any]) -> str:
    """The sequence in the name of a result, as FLAIR in ``sub-1_FLAIR_seg.nii.gz``; the reference if there is none."""
    rest = stem(map_file).removeprefix(record["name"])
    named = [word for word in re.split(r"[_.]", rest) if word in record["raw"]]
    return named[0] if named else record["reference"]


def restore(map_file: str | Path, record_file: str | Path, sequence: str | None = None) -> nib.Nifti1Image:
    """A map on the grid of prepared images, brought back to the grid of a raw scan.

    Up to ``MAX_LABELS`` whole numbers are labels, of which the one with the largest share of a voxel wins; others come
    by linear interpolation. In the own space the reference's voxels only go back into their old order: nothing is
    interpolated.

    Args:
        map_file: NIfTI on the grid of the prepared images.
        record_file: ``<name>.json`` of the case.
        sequence: whose grid; by default that of :func:`sequence_of`.

    Raises:
        InputError: if the map lies on another grid, or the case has no such sequence.
    """
    record = read_record(record_file)
    sequence = sequence_of(map_file, record) if sequence is None else sequence_name(sequence)
    if sequence not in record["raw"]:
        raise InputError(f"{record_file} has no sequence {sequence}, expected one of {', '.join(record['raw'])}")
    raw = record["raw"][sequence]
    made = nib.load(Path(record_file).parent / record["item"]["brain_mask"])
    volume = _read(map_file, may_be_empty=True, ras=False)
    difference = grid_difference(volume.values.shape, volume.affine, made.shape, made.affine)
    if difference:
        raise InputError(
            f"{map_file} and the images prepared for {record['name']} have {difference}, expected one grid"
        )
    affine, way = np.array(raw["affine"]), np.array(raw["to_prepared"])
    kind = nib.load(map_file).get_data_dtype()
    whole = kind.kind in "iu"
    if whole and len(np.unique(volume.values)) <= MAX_LABELS:
        back = volume.labels_on_grid(raw["shape"], affine, way)
    else:
        back = volume.on_grid(raw["shape"], affine, way)
    return _nifti(np.round(back.values).astype(kind) if whole else back.values, affine)


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
