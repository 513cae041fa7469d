"""Visits of one synthetic person: the same head, scanned again, with lesions that are new, gone, larger or smaller.

An ideal scan of 1 mm, without noise and shading, is made with lesions and without; each visit takes of every lesion
what it has at that time, and is then scanned at another place of the scanner, with other noise, shading, blur and gain.
What differs between two visits without changes is therefore what differs between test and retest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F
from tqdm import tqdm

from common.errors import InputError
from common.files import refuse_filled, whole_folder, write_json
from common.geometry import rotation_matrix, sample, voxel_grid
from common.scans import stem

from .anatomy import Grid
from .cohort import SECTIONS, write_arrays, write_nifti
from .contrast import SCANNERS, Scanner
from .noise import smooth_noise
from .subject import make_subject

FATES = {"stable": 0.6, "new": 0.14, "gone": 0.06, "grown": 0.14, "shrunk": 0.06}  # of a lesion, with shares
SHELL_MM = (1.0, 2.0)  # by how much a lesion grows, from this to that
MIN_MM3 = 10.0  # smaller lesions stay as they are
TURN_DEG, SHIFT_MM = 3.0, 4.0  # sd of how a head lies, about each axis and along it
EDGE_MM = 0.4  # of soft border where a lesion has grown to
APPEARED, DISAPPEARED = 1, 2  # values of the change
READER_BLUR_MM, READER_SHIFT, READER_ERROR = 0.7, 0.4, 1.2  # the last two in log odds


@dataclass(frozen=True)
class Visit:
    """One scan of a person, on its grid; all arrays (X, Y, Z).

    Attributes:
        image: float32, white matter about 1, 0 outside of the brain.
        lesion: uint8.
        change: uint8, :data:`APPEARED` where the later visit alone has lesion, :data:`DISAPPEARED` where the earlier
            one alone has; the same places on the grid of either visit.
        brain_mask: uint8.
    """

    image: np.ndarray
    lesion: np.ndarray
    change: np.ndarray
    brain_mask: np.ndarray


@dataclass(frozen=True)
class _Head:
    """The ideal scans, (X, Y, Z) each, on a grid of 1 mm."""

    without: torch.Tensor
    with_lesions: torch.Tensor
    lesions: np.ndarray  # numbered
    brain: np.ndarray
    grid: Grid


def make_visits(
    seed: int | tuple[int, ...],
    scans: int | None = None,
    grid: Grid | None = None,
    scanner: str | Scanner = "A",
    sequence: str = "FLAIR",
    pathology: str = "ms",
    fates: Mapping[str, float] | None = None,
) -> tuple[list[Visit], list[dict[str, Any]]]:
    """Two visits of one person, the earlier one first; or some scans between which nothing changes.

    Args:
        seed: an integer or several; the same seed is the same head, with changes and without.
        scans: so many without changes; None for two visits with changes.
        grid: of both files; axial, 1 mm by default.
        scanner: key of :data:`phantom.SCANNERS`, or a :class:`Scanner`; each visit draws its own noise, shading, blur
            and gamma.
        sequence: one of :data:`phantom.SEQUENCES`.
        pathology: ``ms`` or ``ms_confluent``.
        fates: share of each of :data:`FATES` among lesions of :data:`MIN_MM3` and more.

    Returns:
        The visits, and one dict per lesion that changes: ``fate``, ``before_ml``, ``after_ml``, of the ideal scan.
    """
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    scanner = SCANNERS[scanner] if isinstance(scanner, str) else scanner
    grid = grid or Grid.axial(1.0)
    head = _head(seeds, scanner, sequence, pathology)
    fate_rng, *scan_rngs = map(np.random.default_rng, np.random.SeedSequence((*seeds, 29)).spawn(1 + (scans or 2)))
    shares, told = _shares(head, {"stable": 1.0} if scans else dict(fates or FATES), fate_rng)
    masks = [(head.lesions > 0) & (part >= 0.5) for part in shares]
    visits = []
    for number, rng in enumerate(scan_rngs):
        to_head, later = _motion(rng), min(number, 1)
        image = head.without + torch.from_numpy(shares[later]) * (head.with_lesions - head.without)
        scanned = _scan(image, head, grid, to_head, scanner, rng)
        before, after, brain = (_share(mask, head, grid, to_head) >= 0.5 for mask in (*masks, head.brain))
        change = np.where(after & ~before, APPEARED, np.where(before & ~after, DISAPPEARED, 0)) * brain
        lesion = (before, after)[later] & brain
        visits.append(Visit(scanned * brain, *(a.astype(np.uint8) for a in (lesion, change, brain))))
    return visits, told


def read_lesions(visit: Visit, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Probability of lesion as a simulated reader gives it, who errs anew in every scan; (X, Y, Z) float32.

    The log odds are those of the share of lesion around a voxel, and of how bright it is, both limited; to these come a
    shift of the whole scan, who draws larger or smaller, and an error with a range of millimeters. It stands in for a
    network where many scans are to be compared in little time, and is no better or worse than what is said here.
    """
    share = ndimage.gaussian_filter(visit.lesion.astype(np.float32), READER_BLUR_MM / grid.spacing)
    odds = np.log((share + 0.02) / (1.02 - share))
    brain = visit.brain_mask > 0
    smooth = ndimage.gaussian_filter(visit.image, READER_BLUR_MM / grid.spacing)
    odds += np.clip((smooth / np.median(visit.image[brain]) - 1.2) / 0.1, -1.5, 1.5)
    odds += rng.normal(0, READER_SHIFT) + READER_ERROR * smooth_noise(rng, grid.shape, 2.0 / grid.spacing).numpy()
    return (brain / (1 + np.exp(-odds))).astype(np.float32)


def _head(seeds: tuple[int, ...], scanner: Scanner, sequence: str, pathology: str) -> _Head:
    ideal = replace(scanner, blur_mm=(0.0, 0.0), slice_blur_mm=(0.0, 0.0), noise=(0.0, 0.0), bias=(0.0, 0.0))
    ideal = replace(ideal, gamma=(1.0, 1.0))
    options = {"scanner": ideal, "grid": Grid.axial(1.0), "sequences": (sequence,)}
    healthy = make_subject(seeds, "healthy", **options)
    ill = make_subject(seeds, pathology, **options)
    lesions, _ = ndimage.label(ill.lesion, np.ones((3, 3, 3)))
    images = (torch.from_numpy(subject.images[sequence]) for subject in (healthy, ill))
    return _Head(*images, lesions, ill.brain_mask > 0, ill.grid)


def _shares(
    head: _Head, fates: Mapping[str, float], rng: np.random.Generator
) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """How much of the lesions each visit has at every voxel, 0 to 1, and what became of each that changes."""
    names, weights = list(fates), np.array(list(fates.values())) / sum(fates.values())
    inside = ndimage.distance_transform_edt(head.lesions > 0)
    outside, nearest = ndimage.distance_transform_edt(head.lesions == 0, return_indices=True)
    near = head.lesions[tuple(nearest)]  # the soft border of a lesion belongs to it
    depth = np.where(inside > 0, inside - 0.5, 0.5 - outside)  # mm from its surface, voxels being 1 mm
    shares = [np.ones(near.shape, np.float32), np.ones(near.shape, np.float32)]
    told = []
    for number, box in enumerate(ndimage.find_objects(head.lesions), start=1):
        fate = names[rng.choice(len(names), p=weights)]
        shell = rng.uniform(*SHELL_MM)
        size = int((head.lesions[box] == number).sum())
        deepest = depth[box][head.lesions[box] == number].max()
        if fate == "stable" or size < MIN_MM3:
            continue
        if fate in ("grown", "shrunk") and deepest < shell + 0.5:
            continue
        share = shares[0] if fate in ("new", "grown") else shares[1]  # the visit that has less of it
        wide = tuple(slice(max(s.start - 6, 0), s.stop + 6) for s in box)
        own = near[wide] == number
        less = 0.0 if fate in ("new", "gone") else 1 / (1 + np.exp(-(depth[wide] - shell) / (EDGE_MM / 2)))
        share[wide] = np.where(own, less, share[wide])
        sizes = [float(((head.lesions == number) & (part >= 0.5))[wide].sum()) / 1000 for part in shares]
        told.append({"fate": fate, "before_ml": sizes[0], "after_ml": sizes[1]})
    return shares, told


def _motion(rng: np.random.Generator) -> np.ndarray:
    """4 x 4, RAS mm, from the world of a file to that of the head."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(np.deg2rad(rng.normal(0, TURN_DEG, 3)))
    center = np.array([0.0, -18.0, 8.0])
    matrix[:3, 3] = center - matrix[:3, :3] @ center + rng.normal(0, SHIFT_MM, 3)
    return matrix


def _scan(
    image: torch.Tensor, head: _Head, grid: Grid, to_head: np.ndarray, scanner: Scanner, rng: np.random.Generator
) -> np.ndarray:
    noise, bias, gamma, blur = (rng.uniform(*r) for r in (scanner.noise, scanner.bias, scanner.gamma, scanner.blur_mm))
    scan = _resampled(image, head, grid, to_head).clamp(min=0) ** gamma
    scan = torch.from_numpy(ndimage.gaussian_filter(scan.numpy(), blur / grid.spacing))
    scan = scan * torch.exp(bias * smooth_noise(rng, grid.shape, 45.0 / grid.spacing)) * rng.uniform(0.8, 1.25)
    real, imaginary = (torch.from_numpy(rng.standard_normal(grid.shape, dtype=np.float32)) for _ in range(2))
    return torch.hypot(scan + noise * real, noise * imaginary).numpy()


def _share(mask: np.ndarray, head: _Head, grid: Grid, to_head: np.ndarray) -> np.ndarray:
    return _resampled(torch.from_numpy(mask.astype(np.float32)), head, grid, to_head).numpy()


def _resampled(image: torch.Tensor, head: _Head, grid: Grid, to_head: np.ndarray) -> torch.Tensor:
    """Mean over the voxels of a grid, in parts of about 1 mm."""
    factors = tuple(int(k) for k in np.maximum(1, np.round(grid.spacing)))
    fine = grid.refined(factors)
    points = voxel_grid(fine.shape, np.linalg.inv(head.grid.affine) @ to_head @ fine.affine)
    values = sample(image[None], points, padding="zeros")
    return F.avg_pool3d(values, factors)[0] if max(factors) > 1 else values[0]


def write_visits(
    output_dir: str | Path,
    subjects: int,
    scans: int | None = None,
    spacing: Sequence[float] | float = 1.0,
    scanner: str = "A",
    sequence: str = "FLAIR",
    seed: int = 0,
    prefix: str = "",
    reader: bool = False,
) -> Path:
    """Write the visits of some people: ``sub-*/anat/*.nii.gz`` and ``datalist.json``, all in its section ``test``.

    Args:
        output_dir: new or empty folder, which appears when it is complete.
        subjects: number of people; number ``i`` is made from ``(seed, i)``.
        scans, scanner, sequence: as for :func:`make_visits`.
        spacing: voxel size of the axial grid, mm.
        prefix: put before the number of a person.
        reader: also write ``reader/<scan>_prob.nii.gz`` and ``_seg.nii.gz`` of :func:`read_lesions`, as an inference
            would.

    Returns:
        Path of the datalist; its items have ``image``, ``label``, ``change``, ``brain_mask``, ``subject``, ``visit``.

    Raises:
        InputError: if the folder holds something, or the prefix is not of letters and digits.
    """
    refuse_filled(Path(output_dir))
    if prefix and not prefix.isalnum():
        raise InputError(f"prefix is {prefix!r}, expected letters and digits only")
    grid = Grid.axial(tuple(spacing) if isinstance(spacing, list | tuple) else spacing)
    items = []
    with whole_folder(output_dir) as partial:
        for number in tqdm(range(subjects), desc="phantom visits", unit=" person", disable=None):
            name = f"sub-{prefix}{number + 1:03d}"
            visits, changes = make_visits((seed, number), scans, grid, scanner, sequence)
            for session, visit in enumerate(visits, start=1):
                arrays = {key: getattr(visit, key) for key in ("lesion", "change", "brain_mask")}
                arrays |= {sequence: np.round(visit.image * 1000).clip(0, 32767).astype(np.int16)}
                files = write_arrays(partial, name, arrays, grid, session)
                if reader:
                    rng = np.random.default_rng((seed, number, session, 31))
                    _write_reading(partial / "reader", stem(files[sequence]), read_lesions(visit, grid, rng), grid)
                lesion_ml = float(visit.lesion.sum() * np.prod(grid.spacing)) / 1000
                item = {"image": files[sequence], "label": files["lesion"], "subject": name, "visit": str(session)}
                item |= {key: files[key] for key in ("change", "brain_mask")}
                items.append(item | {"lesion_ml": round(lesion_ml, 3), "changes": changes})
        sections = {section: items if section == "test" else [] for section in SECTIONS}
        what = "nothing changes" if scans else "lesions change"
        title = f"Phantom visits ({what}), scanner {scanner}, seed {seed}"
        write_json(partial / "datalist.json", {"name": title, "sequences": [sequence], **sections})
    return Path(output_dir) / "datalist.json"


def _write_reading(folder: Path, name: str, probability: np.ndarray, grid: Grid) -> None:
    folder.mkdir(exist_ok=True)
    for kind, array in {"prob": probability, "seg": (probability >= 0.5).astype(np.uint8)}.items():
        write_nifti(folder / f"{name}_{kind}.nii.gz", array, grid.affine)
        record = {"bundle": "simulated reader", "version": "1", "labels": {"0": "background", "1": "lesion"}}
        write_json(folder / f"{name}_{kind}.json", record | {"threshold": {"value": 0.5, "source": "by definition"}})
