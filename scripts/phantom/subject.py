"""One synthetic subject: anatomy, lesions and images from one seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from common.geometry import apply_affine, sample, voxel_grid

from .anatomy import (
    CSF,
    STRUCTURE_OF_CLASS,
    TISSUE_OF_CLASS,
    Anatomy,
    Deformation,
    Grid,
    brain_box,
    decide_tissue,
    load_anatomy,
)
from .contrast import SCANNERS, SEQUENCES, Scanner, bright_structures, render, scalp_of
from .pathology import MS, Lesions

PATHOLOGIES = ("healthy", *MS, "tumour", "infarct")


@dataclass(frozen=True)
class Subject:
    """One synthetic subject on its grid.

    Attributes:
        images: sequence -> (X, Y, Z) float32, white matter about 1, 0 outside the brain unless made with a scalp.
        tissues: uint8, see :data:`TISSUES`.
        structures: uint8, see :data:`STRUCTURES`; anatomy under a lesion stays labeled.
        lesion: uint8 mask; empty in a healthy subject.
        brain_mask: uint8.
        displacement: (X, Y, Z, 3) float32 in mm, RAS: the template point that lies at voxel p is
            ``affine @ p + displacement[p]``.
        grid: where the arrays live.
        info: pathology, scanner, number of lesions, volume in ml, centers in mm.
    """

    images: dict[str, np.ndarray]
    tissues: np.ndarray
    structures: np.ndarray
    lesion: np.ndarray
    brain_mask: np.ndarray
    displacement: np.ndarray
    grid: Grid
    info: dict = field(default_factory=dict)


def make_subject(
    seed: int | tuple[int, ...],
    pathology: str = "ms",
    scanner: str | Scanner = "A",
    grid: Grid | None = None,
    sequences: tuple[str, ...] = SEQUENCES,
    scalp: bool = False,
    fine_mm: float = 1.0,
    anatomy: Anatomy | None = None,
    lesion_map: torch.Tensor | None = None,
    affine: bool = True,
) -> Subject:
    """One synthetic subject.

    Args:
        seed: an integer or several; the same seed gives the same subject, whatever the pathology's lesions.
        pathology: one of :data:`PATHOLOGIES`.
        scanner: a key of :data:`SCANNERS`, or a :class:`Scanner`.
        grid: where the scan lies; 2 mm axial RAS by default. Any orientation, obliqueness and anisotropy.
        sequences: which of :data:`SEQUENCES` to make.
        scalp: leave skull and scalp on the images.
        fine_mm: voxels are split until they are no larger than about this before tissue is decided.
        anatomy: instead of the template; see :func:`phantom.anatomy_of_labels`.
        lesion_map: (1, X, Y, Z) share of lesion on the template's grid, instead of invented MS lesions; it comes
            mirrored left to right in every other subject, and a part of its lesions is left out.
        affine: give the head a size, a place and a tilt of its own; False leaves it where the template is.

    Raises:
        ValueError: if the pathology, the scanner or a sequence is unknown, or no brain lies on the grid.
    """
    _refuse_unknown(pathology, scanner, sequences)
    scanner = SCANNERS[scanner] if isinstance(scanner, str) else scanner
    grid = grid or Grid.axial(2.0)
    anatomy = anatomy or load_anatomy()
    # one stream each: a lesion more does not change the head, another contrast not the lesions
    shape_rng, tissue_rng, lesion_rng, scan_rng = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(4))
    deformation = Deformation.draw(anatomy, shape_rng, affine=affine)
    box = brain_box(anatomy, deformation, grid, margin_mm=14.0 if scalp else 4.0)
    factors = tuple(int(k) for k in np.maximum(1, np.round(grid.spacing / fine_mm)))
    coarse = grid.cropped(*box)
    fine = coarse.refined(factors)
    world = voxel_grid(fine.shape, fine.affine)
    # the field is smooth: its values between the voxels of the scan are interpolated
    shift = deformation.displacement_mm(voxel_grid(coarse.shape, coarse.affine))
    points = world + F.interpolate(shift[None], size=fine.shape, mode="trilinear", align_corners=False)[0]
    classes, brain, distance, accents = decide_tissue(anatomy, points, fine, tissue_rng)
    drawn = None if lesion_map is None else _mirrored_or_not(lesion_map, anatomy, points, lesion_rng)
    lesions = Lesions.draw(pathology, classes, distance, world, fine, lesion_rng, drawn)

    def to_scan(array: torch.Tensor) -> torch.Tensor:  # mean over the fine voxels of a voxel: partial volume
        return array if factors == (1, 1, 1) else F.avg_pool3d(array[None, None], factors)[0, 0]

    head = scalp_of(brain, fine) if scalp else None
    bright = bright_structures(classes, accents, distance, fine, tissue_rng)
    images = render(classes, brain, bright, lesions, head, scanner, sequences, fine, coarse, to_scan, scan_rng)
    nearest = classes[tuple(slice(k // 2, None, k) for k in factors)]
    labels = _label_maps(nearest, to_scan(brain.float()), to_scan(lesions.membership))

    return Subject(
        images={name: _whole(image, box, grid, np.float32) for name, image in images.items()},
        **{name: _whole(labels[name], box, grid, np.uint8) for name in labels},
        displacement=deformation.displacement_mm(voxel_grid(grid.shape, grid.affine)).movedim(0, -1).numpy(),
        grid=grid,
        info={
            "pathology": pathology,
            "lesion_ml": round(float(labels["lesion"].sum() * np.prod(grid.spacing) / 1000), 3),
            "lesion_count": len(lesions.centers_mm),
            "lesion_centers_mm": lesions.centers_mm,
        },
    )


def _whole(array: torch.Tensor, box: tuple[np.ndarray, np.ndarray], grid: Grid, dtype: type) -> np.ndarray:
    """An array of the box on the whole grid, 0 outside."""
    out = np.zeros(grid.shape, dtype=dtype)
    out[tuple(slice(a, b) for a, b in zip(*box, strict=True))] = np.asarray(array)
    return out


def _label_maps(classes: torch.Tensor, brain: torch.Tensor, lesion: torch.Tensor) -> dict[str, torch.Tensor]:
    """Label maps of the scan, from the classes at the centers of its voxels and the shares of brain and lesion."""
    mask = brain >= 0.5
    found = (lesion >= 0.5) & mask
    classes = torch.where(mask, classes, 0).long()
    # voxels whose center lies just outside although half of them is brain
    classes[(classes == 0) & mask] = CSF
    tissues = TISSUE_OF_CLASS[classes]
    tissues[found] = 4
    return {"tissues": tissues, "structures": STRUCTURE_OF_CLASS[classes], "lesion": found, "brain_mask": mask}


def _refuse_unknown(pathology: str, scanner: str | Scanner, sequences: tuple[str, ...]) -> None:
    if pathology not in PATHOLOGIES:
        raise ValueError(f"pathology is {pathology!r}; expected one of {', '.join(PATHOLOGIES)}")
    if isinstance(scanner, str) and scanner not in SCANNERS:
        raise ValueError(f"scanner is {scanner!r}; expected one of {', '.join(SCANNERS)}")
    unknown = set(sequences) - set(SEQUENCES)
    if unknown:
        raise ValueError(f"sequences name {', '.join(sorted(unknown))}; expected some of {', '.join(SEQUENCES)}")


def _mirrored_or_not(
    lesion_map: torch.Tensor, anatomy: Anatomy, points: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """Share of lesion (X, Y, Z) at points of the template, (3, X, Y, Z) in mm; of every other subject left to right."""
    mirrored = points * torch.tensor([rng.choice([-1.0, 1.0]), 1, 1]).float().reshape(3, 1, 1, 1)
    return sample(lesion_map, apply_affine(np.linalg.inv(anatomy.affine), mirrored), padding="zeros")[0]
