"""Registration of files: which pairs, the field on the grid of the fixed file, warped images and labels, scores."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple

from common.data import list_cases
from common.engines.events import gather
from common.errors import InputError
from common.files import write_atomically, write_text
from common.geometry import (
    apply_affine,
    fold_share,
    log_jacobian_sd,
    sample,
    to_voxels,
    voxel_grid,
)
from common.scans import grid_difference, on_grid_of, open_scan, read_scan, stem
from common.tables import delimited
from common.transforms.io import file_of

from .fields import inverse_error, sample_labels
from .validation import mean_dice

logger = logging.getLogger(__name__)

ROLES = ("moving", "fixed")


def list_pairs(
    dataset_dir: str | None = None,
    datalist_file: str | None = None,
    section: str | None = None,
    sequences: Sequence[str] = ("T1w",),
    moving_file: str | None = None,
    moving_label_file: str | None = None,
    fixed_file: str | None = None,
    fixed_label_file: str | None = None,
) -> list[dict[str, Any]]:
    """Pairs to register.

    Two files are one pair; one file and a folder or datalist are a pair for each case in it; a folder or datalist
    alone is every case onto every other.

    Args:
        dataset_dir, datalist_file, section, sequences: cases, see :func:`common.data.list_cases`.
        moving_file: skull-stripped scan that is moved.
        moving_label_file: its label map.
        fixed_file: skull-stripped scan onto which it is moved.
        fixed_label_file: its label map.

    Returns:
        Per pair ``moving`` and ``fixed``, cases, and ``name``, ``<fixed>_from-<moving>``.

    Raises:
        InputError: if nothing can be paired, both files are one, or a file is missing or no scan.
    """
    single = {
        "moving": _case_of(moving_file, moving_label_file, "moving"),
        "fixed": _case_of(fixed_file, fixed_label_file, "fixed"),
    }
    cases = []
    if dataset_dir is not None or datalist_file is not None:
        cases = list_cases(dataset_dir, datalist_file, sequences, section)
    if single["moving"] and single["fixed"]:
        if cases:
            raise InputError("moving_file, fixed_file and a folder or datalist are given, expected two of the three")
        if _same_file(single["moving"], single["fixed"]):
            raise InputError(f"{moving_file} is the moving and the fixed scan, expected two different ones")
        pairs = [(single["moving"], single["fixed"])]
    elif cases:
        movers, targets = ([s] if (s := single[role]) else cases for role in ROLES)
        pairs = [(m, f) for f in targets for m in movers if not _same_file(m, f)]
    else:
        raise InputError(
            "nothing to pair is given, expected moving_file and fixed_file, or dataset_dir, or datalist_file"
        )
    if not pairs:
        raise InputError("there is one scan only, expected another one to register it with")
    logger.info("%d pairs to register", len(pairs))
    return [
        {"name": f"{fixed['name']}_from-{Path(moving['name']).name}", "moving": moving, "fixed": fixed}
        for moving, fixed in pairs
    ]


def _case_of(path: str | None, label: str | None, role: str) -> dict[str, Any] | None:
    if path is None:
        if label is not None:
            raise InputError(f"{role}_label_file is {label} without {role}_file, expected both")
        return None
    scan = open_scan(path)
    if label is not None:
        labels = open_scan(label)
        difference = grid_difference(labels.shape[:3], labels.affine, scan.shape[:3], scan.affine)
        if difference:
            raise InputError(f"{label} and {path} have {difference}, expected a label map on the grid of its scan")
    return {"image": path, "name": stem(path)} | ({} if label is None else {"label": label})


def _same_file(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    first, second = (Path(ensure_tuple(case["image"])[0]).resolve() for case in (a, b))
    return first == second


class PreparePair(Transform):
    """Prepare both cases of a pair, each by itself, and the latest ones only once.

    Args:
        transform: of a case of :func:`common.data.list_cases`.
        remember: cases that are kept, for the next pairs.

    Returns:
        ``moving`` and ``fixed`` for the ``image`` of each case, ``moving_label`` and so on for its other items, and the
        ``name`` of the pair.
    """

    def __init__(self, transform: Callable, remember: int = 16) -> None:
        self.transform, self.remember = transform, remember
        self._prepared: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        pair = {"name": data["name"]}
        for role in ROLES:
            for key, value in self._case(data[role]).items():
                pair[role if key == "image" else f"{role}_{key}"] = value
        return pair

    def _case(self, case: Mapping[str, Any]) -> dict[str, Any]:
        key = str(case["image"])
        if key not in self._prepared:
            self._prepared[key] = dict(self.transform(dict(case)))
            if len(self._prepared) > self.remember:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]


def prepare_pair(batchdata: Mapping[str, torch.Tensor], device: Any = None, *_: Any, **__: Any) -> tuple:
    """``prepare_batch``: moving and fixed image as the two channels (B, 2, X, Y, Z) of the network's input."""
    pair = torch.cat([torch.as_tensor(batchdata[key]) for key in ROLES], dim=1)
    return pair.to(device), None


def displacement_of_file(
    displacement: torch.Tensor,
    grid: np.ndarray,
    fixed: tuple[Sequence[int], np.ndarray],
    fixed_to_template: np.ndarray,
    moving_to_template: np.ndarray,
) -> torch.Tensor:
    """Field in mm on the voxels of the fixed file: where in the moving file's world the same anatomy is.

    Fixed world, by its affine map to the template, by the network's field there, by the inverse of the moving file's
    map, to the moving world.

    Args:
        displacement: of the network, (3, X, Y, Z), voxels of the template's grid; it goes on beyond its margin.
        grid: affine of the template's grid.
        fixed: shape and affine of the fixed file.
        fixed_to_template: 4 x 4, RAS mm.
        moving_to_template: likewise.

    Returns:
        (3, *shape), mm, RAS: to be added to the position of a fixed voxel.
    """
    shape, affine = fixed
    world = voxel_grid(tuple(shape), affine)
    voxels = apply_affine(np.linalg.inv(grid) @ fixed_to_template, world)
    voxels = voxels + sample(displacement, voxels)
    return apply_affine(np.linalg.inv(moving_to_template) @ grid, voxels) - world


class RegisterFilesd(MapTransform):
    """From the fields of the registration to those of the files, and what they do to the moving image and its labels.

    Args:
        keys: both ways, (6, X, Y, Z), voxels of the grid on which ``moving`` and ``fixed`` lie, see
            :class:`deepatlas_joint.refinement.PairRegistration`. In their place comes the field on the grid of the
            fixed file, (3, X, Y, Z), mm, RAS.
        classes: background included.
        inverse: write ``inverse``, too, the field on the grid of the moving file, likewise.

    Reads ``moving_native``, ``fixed_native`` and, where it is there, ``moving_label``, on the grids of their files;
    writes ``warped``, (1, X, Y, Z), ``warped_label``, uint8, the class of the largest probability after trilinear
    interpolation, and ``inverse_error_mm``, mean over the brain of the fixed image, in the millimeters of its file.
    """

    def __init__(self, keys: KeysCollection, classes: int, inverse: bool = False) -> None:
        super().__init__(keys)
        self.classes, self.inverse = classes, inverse

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        moving, fixed = d["moving_native"], d["fixed_native"]
        grid = d["fixed"].affine.numpy()
        of_moving, of_fixed = (np.asarray(d[role].meta["to_template"]) for role in ROLES)
        for key in self.key_iterator(d):
            onto_moving, onto_fixed = torch.as_tensor(d[key]).float().cpu().split(3)
            brain = d["fixed"].as_tensor()[0].cpu() != 0
            error = inverse_error(onto_moving[None], onto_fixed[None], np.linalg.inv(of_fixed) @ grid)
            d["inverse_error_mm"] = error[0][brain].mean().item()
            affine = fixed.affine.numpy()
            field = displacement_of_file(onto_moving, grid, (fixed.shape[1:], affine), of_fixed, of_moving)
            if self.inverse:
                back = (moving.shape[1:], moving.affine.numpy())
                inverse = displacement_of_file(onto_fixed, grid, back, of_moving, of_fixed)
                d["inverse"] = MetaTensor(inverse, meta=moving.meta)
            world = voxel_grid(tuple(fixed.shape[1:]), affine) + field
            d[key] = MetaTensor(field, meta=fixed.meta)
            places = apply_affine(np.linalg.inv(moving.affine.numpy()), world)
            warped = sample(moving.as_tensor().float(), places, padding="zeros")
            d["warped"] = MetaTensor(warped, meta=fixed.meta)
            if "moving_label" in d:
                label = sample_labels(d["moving_label"].as_tensor(), places, self.classes)
                d["warped_label"] = MetaTensor(label, meta=fixed.meta)
        return d


def _true_position(world: torch.Tensor, fixed_way: str, moving_way: str, iterations: int = 30) -> torch.Tensor:
    """Where points of the fixed world lie in the moving one, (3, ...), mm, by the ways of both to one template.

    Args:
        world: points, (3, ...).
        fixed_way, moving_way: NIfTI files of the ways, mm, RAS, (X, Y, Z, 1, 3).
    """
    template = world + _field_at(fixed_way, world)
    place = template
    for _ in range(iterations):
        place = template - _field_at(moving_way, place)
    return place


def _field_at(path: str, world: torch.Tensor) -> torch.Tensor:
    field, scan = read_scan(path, volumes=True)
    values = torch.from_numpy(field[:, :, :, 0]).movedim(-1, 0)
    return sample(values, apply_affine(np.linalg.inv(scan.affine), world))


class SaveFieldd(MapTransform):
    """Write ``OUT/<name>_<postfix>.nii.gz``: a displacement field as ITK and ANTs read it.

    NIfTI of five dimensions, intent ``vector`` (1007), on the grid of a file, the fixed one: at each voxel the vector
    in mm, in the axes of ITK (to left, back and top: the first two components are those of RAS with another sign),
    from the voxel's position to that in the moving image. ``antsApplyTransforms -t`` and SimpleITK's
    ``DisplacementFieldTransform`` resample the moving image with it. That of the inverse has the roles exchanged. The
    file appears whole or not at all.

    Args:
        keys: fields (3, X, Y, Z), mm, RAS.
        output_dir: folder, made if need be.
        fixed_key: item whose file gives the grid.
        postfix: of the file's name.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        fixed_key: str = "fixed_native",
        postfix: str = "warp",
    ) -> None:
        super().__init__(keys)
        self.output_dir, self.fixed_key, self.postfix = Path(output_dir), fixed_key, postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            field = d[key].as_tensor().movedim(0, -1).numpy() * np.array([-1, -1, 1], dtype=np.float32)
            image = on_grid_of(file_of(d[self.fixed_key]), field[:, :, :, None].astype(np.float32))
            image.header.set_intent("vector")
            path = self.output_dir / f"{d['name']}_{self.postfix}.nii.gz"
            write_atomically(path, lambda part, image=image: nib.save(image, part))
        return d


class MeasurePaird(MapTransform):
    """Score each registration, keep the scores, and log them.

    Columns: ``correlation_affine`` and ``correlation``, of the two images in the brain of the fixed one, before and
    after the registration; ``displacement_mm``, mean length of the field beyond the affine map; ``folds_percent`` of
    that brain, ``log_jacobian_sd`` in it, and ``inverse_error_mm``, the mean distance of a point from its start when it
    has gone there and back; ``dice``, mean over the classes, if both have labels; ``dice_affine``, the same before the
    registration; ``tre_mm``, mean distance to the true position in the moving brain, if both have ``displacement``, a
    file with the way to one template in mm, RAS, as phantoms have. Rough fields that do not lead back reach a high
    Dice, so it says little by itself.

    Args:
        keys: field, (3, X, Y, Z), mm, RAS, on the grid of the fixed file; with it comes ``inverse_error_mm``.
        classes: background included.
        output_dir: folder of ``registration.csv``.
    """

    def __init__(self, keys: KeysCollection, classes: int, output_dir: str | Path) -> None:
        super().__init__(keys)
        self.classes, self.output_dir = classes, Path(output_dir)
        self.rows: list[dict[str, Any]] = []

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            row = {"pair": d["name"], **self._scores(d, d[key].as_tensor())}
            self.rows.append(row)
            text = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "pair")
            logger.info("%s: %s", d["name"], text)
        return d

    def _scores(self, d: Mapping[Hashable, Any], field: torch.Tensor) -> dict[str, float]:
        fixed, moving = d["fixed_native"], d["moving_native"]
        affine, shape = fixed.affine.numpy(), tuple(fixed.shape[1:])
        brain = fixed.as_tensor()[0] != 0
        world = voxel_grid(shape, affine)
        to_template = {role: np.asarray(d[role].meta["to_template"]) for role in reversed(ROLES)}
        straight = np.linalg.inv(to_template["moving"]) @ to_template["fixed"]  # fixed world to moving world
        points = {"_affine": apply_affine(straight, world), "": world + field}
        truth = None
        if "moving_displacement" in d and "fixed_displacement" in d:
            truth = _true_position(world, d["fixed_displacement"], d["moving_displacement"])
        scores: dict[str, float] = {}
        for name, place in points.items():
            voxels = apply_affine(np.linalg.inv(moving.affine.numpy()), place)
            warped = sample(moving.as_tensor().float(), voxels, padding="zeros")[0]
            scores[f"correlation{name}"] = torch.corrcoef(torch.stack([warped[brain], fixed[0][brain]]))[0, 1].item()
            if "moving_label" in d and "fixed_label" in d:
                label = sample_labels(d["moving_label"].as_tensor(), voxels, self.classes)
                scores[f"dice{name}"] = mean_dice(label, d["fixed_label"].as_tensor(), self.classes)
            if truth is not None:
                scores[f"tre_mm{name}"] = (place - truth).square().sum(0).sqrt()[brain].mean().item()
        scores["displacement_mm"] = (points[""] - points["_affine"]).square().sum(0).sqrt()[brain].mean().item()
        in_voxels = to_voxels(field[None], affine)
        scores["folds_percent"] = 100 * fold_share(in_voxels, brain[None])
        scores["log_jacobian_sd"] = log_jacobian_sd(in_voxels, brain[None])
        scores["inverse_error_mm"] = d["inverse_error_mm"]
        return scores

    def write(self) -> Path:
        """Write ``registration.csv``, a line per pair; under ``torchrun`` those of all processes, by the first one."""
        path = self.output_dir / "registration.csv"
        rows = [row for turn in zip_longest(*gather(self.rows)) for row in turn if row is not None]
        if idist.get_rank() > 0:
            return path
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = delimited([columns, *([row.get(name) for name in columns] for row in rows)])
        write_text(path, table)
        return path
