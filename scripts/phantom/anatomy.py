"""Where things are in a synthetic head: template or real tissue maps, deformation, and the class of every voxel.

Source of the template and its tissue maps: ICBM 152 nonlinear 2009, carried by the nilearn package and loaded at run
time (Fonov et al., NeuroImage 2011, doi:10.1016/j.neuroimage.2010.07.033; copyright 1993-2004 Louis Collins, McConnell
Brain Imaging Center, McGill University).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from common.atlas import icbm_maps
from common.geometry import apply_affine, integrate_velocity, rotation_matrix, sample, voxel_grid

from .noise import smooth_noise

STRUCTURES = {
    0: "background",
    1: "CSF",
    2: "ventricles",
    3: "cortical GM",
    4: "caudate",
    5: "putamen",
    6: "thalamus",
    7: "WM",
    8: "cerebellum",
    9: "brain stem",
}
TISSUES = {0: "background", 1: "CSF", 2: "GM", 3: "WM", 4: "lesion"}

# Contrast classes: the structures, with the two tissues of the cerebellum apart.
CSF, VENTRICLE, CORTEX, CAUDATE, PUTAMEN, THALAMUS, WM, CEREBELLAR_GM, CEREBELLAR_WM, BRAIN_STEM = range(1, 11)
STRUCTURE_OF_CLASS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9], dtype=torch.uint8)
TISSUE_OF_CLASS = torch.tensor([0, 1, 1, 2, 2, 2, 2, 3, 2, 3, 3], dtype=torch.uint8)

# Places that are bright on FLAIR in healthy people, by eye: largest gain on white matter = 1, and ellipsoids in the
# template (center and radii in mm, mirrored left to right).
LIMBIC, HORN_CAPS, CHOROID_PLEXUS = 1, 4, 5
ACCENTS = {
    LIMBIC: (0.25, [((27, -20, -16), (9, 20, 9)), ((38, 4, 0), (7, 22, 15)), ((5, 20, 28), (5, 26, 10))]),
    # corticospinal tract
    2: (0.15, [((24, -18, 14), (4, 6, 16))]),
    # septum, fornix, tectum
    3: (0.5, [((0, 8, 10), (2.5, 26, 12)), ((0, -33, 6), (6, 8, 8)), ((0, -30, -8), (4, 6, 8))]),
    HORN_CAPS: (0.5, [((17, 36, 6), (7, 8, 10)), ((28, -66, 8), (6, 10, 8)), ((30, -38, -4), (5, 10, 6))]),
    CHOROID_PLEXUS: (0.0, [((22, -40, 8), (6, 10, 7)), ((4, 2, 10), (3, 6, 4)), ((1, -12, 16), (3, 12, 3))]),
    # temporal stem and pole
    6: (0.25, [((36, -6, -12), (7, 16, 8)), ((40, 8, -28), (9, 10, 10))]),
    # white matter that is myelinated last, behind and above the trigones
    7: (0.15, [((28, -52, 26), (8, 14, 10))]),
}


@dataclass(frozen=True)
class Grid:
    """Voxels of a scan: shape and voxel-to-world matrix (RAS mm, origin at the anterior commissure)."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def axial(cls, spacing: float | tuple[float, float, float] = 2.0, field_of_view_mm=(160.0, 192.0, 160.0)) -> Grid:
        """RAS grid around the brain; at 1 and 2 mm it is 160 x 192 x 160 and 80 x 96 x 80 voxels."""
        steps = np.broadcast_to(np.asarray(spacing, dtype=float), 3)
        shape = tuple(int(np.ceil(length / step - 1e-6)) for length, step in zip(field_of_view_mm, steps, strict=True))
        affine = np.diag([*steps, 1.0])
        affine[:3, 3] = np.array([-80.5, -112.5, -72.5]) + steps / 2
        return cls(shape, affine)

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size along each axis, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def refined(self, factors: tuple[int, int, int]) -> Grid:
        """The same field of view with each voxel split ``factors`` times per axis."""
        inside = np.diag([1 / k for k in factors] + [1.0])
        inside[:3, 3] = [(1 / k - 1) / 2 for k in factors]
        return Grid(tuple(n * k for n, k in zip(self.shape, factors, strict=True)), self.affine @ inside)

    def cropped(self, start: np.ndarray, stop: np.ndarray) -> Grid:
        """The voxels from ``start`` up to, not including, ``stop``."""
        shift = np.eye(4)
        shift[:3, 3] = start
        return Grid(tuple(int(b - a) for a, b in zip(start, stop, strict=True)), self.affine @ shift)


@dataclass(frozen=True)
class Anatomy:
    """The template, cropped to the brain, 1 mm.

    Attributes:
        tissue: (3, X, Y, Z) probabilities of CSF, GM, WM; all 0 outside the brain.
        regions: (1, X, Y, Z); 0 none, 1 cerebrum, 2 cerebellum, 3 brain stem, 4 ventricles, 5 caudate, 6 putamen,
            7 thalamus.
        accents: (1, X, Y, Z) places that look a little like lesions in healthy people, see :data:`ACCENTS`; else 0.
        ventricle_distance: (1, X, Y, Z) mm to the ventricles.
        affine: voxel to world.
        open_sulci: log of the factor on CSF before the largest tissue is taken. The average anatomy of the template has
            lost its sulci and gets them back; that of one person has them.
    """

    tissue: torch.Tensor
    regions: torch.Tensor
    accents: torch.Tensor
    ventricle_distance: torch.Tensor
    affine: np.ndarray
    open_sulci: float = 0.8


@functools.lru_cache(maxsize=1)
def load_anatomy() -> Anatomy:
    """Read the template that nilearn carries: tissue maps as they are, regions by place."""
    t1, gm, wm, affine = icbm_maps()
    brain = ndimage.binary_fill_holes(t1 > 0.02)
    return _with_regions((1 - gm - wm).clip(0, 1) * brain, gm, wm, brain, t1, affine)


def anatomy_of_labels(labels: np.ndarray, affine: np.ndarray, to_template: np.ndarray | None = None) -> Anatomy:
    """Somebody's tissue map instead of the template's.

    Args:
        labels: (X, Y, Z) integers: 0 background, 1 CSF, 2 GM, 3 WM, 4 lesion (taken as WM).
        affine: voxel to world, RAS mm.
        to_template: 4 x 4 from that world to the template's; without it the two are taken to be one.

    Raises:
        ValueError: if the map holds other values, or less than 100 ml of gray or white matter.
    """
    if not np.isin(labels, range(5)).all():
        raise ValueError(f"tissue map has values {np.unique(labels)[:9].tolist()}; expected 0 to 4")
    csf, gm, wm = (
        ndimage.gaussian_filter(_to_template_grid(mask, affine, to_template), 0.5)
        for mask in (labels == 1, labels == 2, labels >= 3)
    )
    for name, part in (("gray", gm), ("white", wm)):
        if part.sum() < 1e5:
            raise ValueError(
                f"tissue map has {part.sum() / 1000:.0f} ml of {name} matter on the template; expected 100 or more"
            )
    brain = ndimage.binary_fill_holes(csf + gm + wm > 0.3)
    t1 = 0.25 * csf + 0.7 * gm + 0.95 * wm
    anatomy = _with_regions((1 - gm - wm).clip(0, 1) * brain, gm, wm, brain, t1, load_anatomy().affine)
    return replace(anatomy, open_sulci=0.0)


def lesion_map_of_mask(mask: np.ndarray, affine: np.ndarray, to_template: np.ndarray | None = None) -> torch.Tensor:
    """Share of lesion in every voxel of the template, (1, X, Y, Z); arguments as of :func:`anatomy_of_labels`."""
    return torch.from_numpy(ndimage.gaussian_filter(_to_template_grid(mask, affine, to_template), 0.5))[None]


def _to_template_grid(mask: np.ndarray, affine: np.ndarray, to_template: np.ndarray | None) -> np.ndarray:
    template = load_anatomy()
    matrix = np.linalg.inv(affine) @ np.linalg.inv(np.eye(4) if to_template is None else to_template) @ template.affine
    return ndimage.affine_transform(
        mask.astype(np.float32), matrix[:3, :3], matrix[:3, 3], output_shape=template.regions.shape[1:], order=1
    )


def _with_regions(csf, gm, wm, brain, t1, affine) -> Anatomy:
    """Label tissue maps on the template's grid by place.

    There is no parcellation on board. Cerebellum, brain stem and cerebrum are parted by a watershed along the dark
    clefts between them, ventricles and deep nuclei cut out of the tissue maps by ellipsoids at their place in the
    template (mm, mirrored left to right).
    """
    from skimage.segmentation import watershed

    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in brain.shape), indexing="ij", sparse=True)
    x, y, z = np.abs(x + affine[0, 3]), y + affine[1, 3], z + affine[2, 3]  # the brain is taken as symmetric

    def ellipsoid(center: tuple, radii: tuple) -> np.ndarray:
        parts = [((axis - c) / r) ** 2 for axis, c, r in zip((x, y, z), center, radii, strict=True)]
        near = [np.flatnonzero(part.ravel() < 1) for part in parts]
        box = tuple(slice(indices[0], indices[-1] + 1) for indices in near)
        inside = np.zeros(brain.shape, dtype=bool)
        inside[box] = parts[0][box[0]] + parts[1][:, box[1]] + parts[2][:, :, box[2]] < 1
        return inside

    lateral = ellipsoid((12, 8, 16), (17, 36, 17)) | ellipsoid((22, -42, 10), (17, 36, 19))
    third = (x < 5) & (y > -26) & (y < 8) & (z > -14) & (z < 14)
    fissure = (x < 3.5) & (y < -20) & (z > 14)
    pieces, _ = ndimage.label((csf > 0.5) & (lateral | third) & ~fissure)
    ventricles = np.isin(pieces, np.flatnonzero(np.bincount(pieces.ravel())[1:] > 300) + 1)
    thalamus = ellipsoid((11, -18, 7), (11, 15, 11)) & (gm > 0.3) & ~ventricles
    head_or_body = ellipsoid((12, 13, 6), (8, 12, 13)) | ellipsoid((15, -3, 19), (7, 17, 8))
    caudate = head_or_body & (gm > 0.4) & ~ventricles & ~thalamus
    putamen = ellipsoid((26, 2, 1), (8.5, 21, 13)) & (gm > 0.4) & (x < 32.5) & ~caudate

    accents = np.zeros(brain.shape, dtype=np.float32)
    for value, (_, places) in ACCENTS.items():
        for center, radii in places:
            accents[ellipsoid(center, radii) & brain] = value

    half = (slice(None, None, 2),) * 3  # 2 mm is enough for the clefts
    x2, y2, z2 = x[half], y[half], z[half]
    tissue2 = (gm + wm)[half]
    seeds = np.zeros(tissue2.shape, dtype=np.int32)
    seeds[(x2 > 8) & (x2 < 42) & (y2 > -78) & (y2 < -48) & (z2 > -50) & (z2 < -30)] = 2
    seeds[(x2 < 4) & (y2 > -72) & (y2 < -54) & (z2 > -40) & (z2 < -14)] = 2
    seeds[(x2 < 7) & (y2 > -36) & (y2 < -22) & (z2 > -60) & (z2 < -12) & (tissue2 > 0.7)] = 3
    above = (z2 > 8) | ((y2 > -20) & (z2 > -12)) | ((y2 > -32) & (x2 > 24))
    seeds[above | ((y2 < -40) & (x2 > 46) & (z2 > -18)) | ((y2 < -86) & (z2 > -8))] = 1
    parts = watershed(ndimage.gaussian_filter(1 - t1, 1.0)[half], seeds, mask=brain[half])
    parts = parts.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(slice(n) for n in brain.shape)]

    regions = (parts * brain).astype(np.float32)
    for value, mask in ((4, ventricles), (5, caudate), (6, putamen), (7, thalamus)):
        regions[mask] = value
    distance = ndimage.distance_transform_edt(~ventricles).astype(np.float32)
    # the maps show a rim of "gray matter" where white matter and ventricle share voxels
    rim = (distance < 3.5) & (regions == 1)
    gm, wm = np.where(rim, 0, gm), np.where(rim, gm + wm, wm)

    to_tensor = torch.from_numpy
    return Anatomy(
        tissue=to_tensor(np.stack([csf, gm * brain, wm * brain]).astype(np.float32)),
        regions=to_tensor(regions)[None],
        accents=to_tensor(accents)[None],
        ventricle_distance=to_tensor(distance)[None],
        affine=affine,
    )


@dataclass(frozen=True)
class Deformation:
    """Subject to template, mm: an affine map, then a diffeomorphic displacement given on a coarse template grid."""

    matrix: np.ndarray
    displacement: torch.Tensor  # (3, X, Y, Z), mm
    grid_affine: np.ndarray

    @classmethod
    def draw(cls, anatomy: Anatomy, rng: np.random.Generator, step_mm: float = 4.0, affine: bool = True) -> Deformation:
        """Draw one at random; without ``affine`` the head is as large as the template and lies as it does."""
        angles = np.deg2rad(rng.normal(0, 3, 3))
        # the template is 1.16 times as long and wide as a brain of usual size
        scale = np.diag(1 / (np.clip(rng.normal(0.87, 0.04), 0.77, 0.97) * rng.uniform(0.96, 1.04, 3)))
        center = np.array([0, -18, 10])
        matrix = np.eye(4)
        matrix[:3, :3] = rotation_matrix(angles) @ (scale + np.triu(rng.normal(0, 0.012, (3, 3)), 1))
        matrix[:3, 3] = center - matrix[:3, :3] @ center + rng.normal(0, 1.0, 3)
        if not affine:  # what is drawn after it stays the same
            matrix = np.eye(4)

        shape = tuple(int(np.ceil(n / step_mm)) + 1 for n in anatomy.regions.shape[1:])
        grid_affine = anatomy.affine @ np.diag([step_mm, step_mm, step_mm, 1])
        velocity = 0
        for sigma_mm, amplitude_mm in ((25.0, 3.5), (9.0, 1.6)):
            velocity = velocity + amplitude_mm * smooth_noise(rng, (3, *shape), sigma_mm / step_mm)
        # wider or narrower ventricles: points near their wall are pulled from further in, or further out
        distance = sample(anatomy.ventricle_distance, voxel_grid(shape) * step_mm)[0]
        outward = torch.stack(torch.gradient(distance))
        wall = torch.exp(-distance / 10.0)
        velocity = velocity - float(rng.normal(0.7, 1.3)) * wall * outward / outward.square().sum(0).sqrt().clamp(
            min=0.5
        )
        return cls(matrix, step_mm * integrate_velocity(velocity[None] / step_mm)[0], grid_affine)

    def displacement_mm(self, world: torch.Tensor) -> torch.Tensor:
        """What to add to subject points (3, ...) to get the template points they show; mm."""
        moved = apply_affine(self.matrix, world)
        return (
            moved
            - world
            + sample(self.displacement, apply_affine(np.linalg.inv(self.grid_affine) @ self.matrix, world))
        )


def brain_box(
    anatomy: Anatomy, deformation: Deformation, grid: Grid, margin_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """First and last-plus-one voxel of the brain on the grid, along each axis."""
    strides = np.maximum(1, np.floor(4.0 / grid.spacing)).astype(int)
    coarse = Grid(
        tuple(int(np.ceil(n / k)) for n, k in zip(grid.shape, strides, strict=True)),
        grid.affine @ np.diag([*strides, 1.0]),
    )
    points = voxel_grid(coarse.shape, coarse.affine)
    points = points + deformation.displacement_mm(points)
    inside = sample(
        anatomy.tissue.sum(0, keepdim=True), apply_affine(np.linalg.inv(anatomy.affine), points), padding="zeros"
    )
    where = np.argwhere(inside[0].numpy() > 0.3)
    if len(where) == 0:
        raise ValueError(f"no brain lies on the grid of shape {grid.shape}; expected one around the world's origin")
    margin = np.ceil(margin_mm / grid.spacing).astype(int) + strides
    start = np.maximum(where.min(0) * strides - margin, 0)
    return start, np.minimum((where.max(0) + 1) * strides + margin, grid.shape)


def decide_tissue(
    anatomy: Anatomy, points: torch.Tensor, fine: Grid, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Contrast class, brain mask, distance to the ventricles (mm) and accent of every fine voxel.

    The tissue maps are tipped, patch by patch, towards CSF or towards gray matter before the largest is taken: sulci
    open and close, and the cortex is thicker here and thinner there.
    """
    voxels = apply_affine(np.linalg.inv(anatomy.affine), points)
    inside = _near_brain(anatomy, voxels)
    near = voxels.reshape(3, -1)[:, inside]
    volumes = torch.zeros(6, points[0].numel())
    volumes[:4, inside] = sample(torch.cat([anatomy.tissue, anatomy.ventricle_distance]), near, padding="zeros")
    volumes[4:, inside] = sample(torch.cat([anatomy.regions, anatomy.accents]), near, mode="nearest", padding="zeros")
    volumes = volumes.reshape(6, *fine.shape)
    tissue, distance, region, accents = volumes[:3], volumes[3], volumes[4], volumes[5]
    brain = tissue.sum(0) > float(rng.uniform(0.5, 0.85))
    tip = smooth_noise(rng, (2, *fine.shape), 3.5 / fine.spacing)
    atrophy, thickness = float(rng.normal(anatomy.open_sulci, 0.3)), float(rng.normal(0, 0.12))
    tissue[0] *= torch.exp(atrophy + 0.45 * tip[0])
    tissue[1] *= torch.exp(thickness + 0.35 * tip[1])
    fluid = tissue[0] > torch.maximum(tissue[1], tissue[2])
    gray = tissue[1] > tissue[2]

    classes = torch.where(gray, CORTEX, WM)
    classes[region == 2] = torch.where(gray, CEREBELLAR_GM, CEREBELLAR_WM)[region == 2]
    classes[region == 3] = BRAIN_STEM
    for value, nucleus in ((5, CAUDATE), (6, PUTAMEN), (7, THALAMUS)):
        classes[region == value] = nucleus
    classes[fluid] = torch.where(region == 4, VENTRICLE, CSF)[fluid]
    classes[~brain] = 0
    return classes, brain, distance, accents


def _near_brain(anatomy: Anatomy, voxels: torch.Tensor) -> torch.Tensor:
    """Flat indices of the points that may show brain: a third to a half of a box around it, the rest need no look."""
    every_other = sample(anatomy.tissue.sum(0, keepdim=True), voxels[:, ::2, ::2, ::2], padding="zeros") > 0
    grown = F.max_pool3d(every_other[None].float(), 3, stride=1, padding=1)
    whole = F.interpolate(grown, scale_factor=2)[0, 0, : voxels.shape[1], : voxels.shape[2], : voxels.shape[3]]
    return torch.nonzero(whole.reshape(-1) > 0)[:, 0]
