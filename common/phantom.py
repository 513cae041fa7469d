"""A synthetic brain from average anatomy: contrasts, lesions, labels and the deformation that made it.

A subject is the ICBM152 template under a random affine map and a smooth diffeomorphic warp. Tissue is decided on a grid
of about 1 mm in the frame of the requested scan, with the subject's own cortical thickness and ventricle size;
intensities follow measured statistics of multiple-sclerosis patients; averaging down to the requested voxels gives
partial volume. Every draw comes from one seed, so a subject can be made again bit by bit.

Sources:
    Template and tissue maps: ICBM 152 nonlinear 2009, carried by the nilearn package and loaded at run time
    (Fonov et al., NeuroImage 2011, doi:10.1016/j.neuroimage.2010.07.033; copyright 1993-2004 Louis Collins,
    McConnell Brain Imaging Centre, McGill University).
    Intensities and lesion load: measured on the MS patients of Lesjak et al., Neuroinformatics 2018,
    doi:10.1007/s12021-017-9348-7 (30 masks, 3 patients with images), white-matter median = 1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from .geometry import apply_affine, integrate_velocity, sample, voxel_grid

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
SEQUENCES = ("T1w", "T2w", "FLAIR")
PATHOLOGIES = ("healthy", "ms", "tumour", "infarct")

# Contrast classes: the structures, with the two tissues of the cerebellum apart.
CSF, VENTRICLE, CORTEX, CAUDATE, PUTAMEN, THALAMUS, WM, CEREBELLAR_GM, CEREBELLAR_WM, BRAIN_STEM = range(1, 11)
STRUCTURE_OF_CLASS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9], dtype=torch.uint8)
TISSUE_OF_CLASS = torch.tensor([0, 1, 1, 2, 2, 2, 2, 3, 2, 3, 3], dtype=torch.uint8)

# Mean intensity per class, white-matter median = 1 (the module's sources; structures within grey matter by eye).
CONTRAST = {
    "T1w": [0.0, 0.21, 0.13, 0.72, 0.74, 0.78, 0.85, 1.00, 0.70, 0.97, 0.93],
    "T2w": [0.0, 2.20, 2.60, 1.34, 1.25, 1.18, 1.20, 1.00, 1.32, 1.02, 1.10],
    "FLAIR": [0.0, 0.42, 0.33, 1.15, 1.10, 1.06, 1.05, 1.00, 1.12, 1.03, 1.06],
}
# Relative sd of the texture within a class: patches of millimetres, and voxel to voxel.
PATCHES = {
    "T1w": [0.0, 0.35, 0.25, 0.05, 0.03, 0.03, 0.03, 0.02, 0.05, 0.03, 0.03],
    "T2w": [0.0, 0.22, 0.12, 0.07, 0.04, 0.04, 0.04, 0.04, 0.06, 0.04, 0.04],
    "FLAIR": [0.0, 0.45, 0.40, 0.055, 0.04, 0.04, 0.04, 0.03, 0.05, 0.04, 0.04],
}
GRAIN = {"T1w": 0.03, "T2w": 0.05, "FLAIR": 0.045}
# Healthy structures that are bright on FLAIR, by eye: largest gain on white matter = 1, and ellipsoids in the template
# (centre and radii in mm, mirrored left to right).
CHOROID_PLEXUS = 5
ACCENTS = {
    1: (0.25, [((27, -20, -16), (9, 20, 9)), ((38, 4, 0), (7, 22, 15)), ((5, 20, 28), (5, 26, 10))]),  # limbic cortex
    2: (0.15, [((24, -18, 14), (4, 6, 16))]),  # corticospinal tract
    3: (
        0.45,
        [((0, 8, 10), (2.5, 26, 12)), ((0, -33, 6), (6, 8, 8)), ((0, -30, -8), (4, 6, 8))],
    ),  # septum, fornix, tectum
    4: (
        0.40,
        [((17, 36, 6), (7, 8, 10)), ((28, -66, 8), (6, 10, 8)), ((30, -38, -4), (5, 10, 6))],
    ),  # caps of the horns
    CHOROID_PLEXUS: (0.0, [((22, -40, 8), (6, 10, 7)), ((4, 2, 10), (3, 6, 4)), ((1, -12, 16), (3, 12, 3))]),
}
# Lesion intensity from the mildest to the most severe: small lesions are faint, large ones marked.
LESION_RANGE = {"T1w": (0.90, 0.58), "T2w": (1.28, 2.15), "FLAIR": (1.26, 1.53)}


@dataclass(frozen=True)
class Scanner:
    """How a scanner and protocol change the ideal contrast. Pairs are ranges a subject draws from.

    Attributes:
        gamma: exponent on intensities, white matter staying at 1.
        contrast_jitter: relative sd of each class's mean between subjects.
        csf: factor on CSF and ventricles.
        lesion: factor on the contrast between lesion and white matter.
        blur_mm: sd of the point-spread function.
        noise: sd of the Rician noise, white matter = 1.
        bias: sd of the log of the residual bias field.
        texture: factor on the texture within tissues.
    """

    gamma: tuple[float, float] = (0.95, 1.05)
    contrast_jitter: float = 0.025
    csf: tuple[float, float] = (0.7, 1.3)
    lesion: tuple[float, float] = (0.9, 1.1)
    blur_mm: tuple[float, float] = (0.4, 0.7)
    noise: tuple[float, float] = (0.025, 0.05)
    bias: tuple[float, float] = (0.02, 0.05)
    texture: tuple[float, float] = (0.8, 1.2)


SCANNERS = {
    "A": Scanner(),
    # a second site: much softer, noisier, another response, stronger shading
    "B": Scanner(
        gamma=(1.25, 1.35),
        csf=(1.6, 2.2),
        lesion=(0.8, 1.0),
        blur_mm=(1.7, 2.2),
        noise=(0.10, 0.13),
        bias=(0.15, 0.25),
    ),
    # no scanner in particular: for networks that must carry over to scans nobody has seen
    "mixed": Scanner(
        gamma=(0.75, 1.35),
        contrast_jitter=0.05,
        csf=(0.5, 2.0),
        lesion=(0.6, 1.25),
        blur_mm=(0.2, 1.1),
        noise=(0.01, 0.08),
        bias=(0.02, 0.15),
        texture=(0.6, 2.0),
    ),
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
class Subject:
    """One synthetic subject on its grid.

    Attributes:
        images: sequence -> (X, Y, Z) float32, white matter about 1, 0 outside the brain unless made with a scalp.
        tissues: uint8, see :data:`TISSUES`.
        structures: uint8, see :data:`STRUCTURES`; anatomy under a lesion stays labelled.
        lesion: uint8 mask; empty in a healthy subject.
        brain_mask: uint8.
        displacement: (X, Y, Z, 3) float32 in mm, RAS: the template point that lies at voxel p is
            ``affine @ p + displacement[p]``.
        grid: where the arrays live.
        info: pathology, scanner, number of lesions, volume in ml, centres in mm.
    """

    images: dict[str, np.ndarray]
    tissues: np.ndarray
    structures: np.ndarray
    lesion: np.ndarray
    brain_mask: np.ndarray
    displacement: np.ndarray
    grid: Grid
    info: dict = field(default_factory=dict)


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
    """

    tissue: torch.Tensor
    regions: torch.Tensor
    accents: torch.Tensor
    ventricle_distance: torch.Tensor
    affine: np.ndarray


@functools.lru_cache(maxsize=1)
def load_anatomy() -> Anatomy:
    """Read the template that nilearn carries and label it: tissue maps as they are, regions by place.

    nilearn has no parcellation on board. Cerebellum, brain stem and cerebrum are parted by a watershed along the dark
    clefts between them, ventricles and deep nuclei cut out of the tissue maps by ellipsoids at their place in the
    template (mm, mirrored left to right).
    """
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
    from skimage.segmentation import watershed

    template = load_mni152_template(resolution=1)
    t1, gm, wm = (
        np.asarray(image.dataobj, dtype=np.float32)
        for image in (template, load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1))
    )
    brain = ndimage.binary_fill_holes(t1 > 0.02)
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    box = tuple(slice(max(s.start - 4, 0), s.stop + 4) for s in box)
    t1, gm, wm, brain = (a[box] for a in (t1, gm, wm, brain))
    affine = template.affine @ np.array(
        [[1, 0, 0, box[0].start], [0, 1, 0, box[1].start], [0, 0, 1, box[2].start], [0, 0, 0, 1]]
    )

    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in t1.shape), indexing="ij", sparse=True)
    x, y, z = np.abs(x + affine[0, 3]), y + affine[1, 3], z + affine[2, 3]  # the brain is taken as symmetric

    def ellipsoid(center: tuple, radii: tuple) -> np.ndarray:
        c, r = center, radii
        return ((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 + ((z - c[2]) / r[2]) ** 2 < 1

    csf = (1 - gm - wm).clip(0, 1) * brain
    lateral = ellipsoid((12, 8, 16), (17, 36, 17)) | ellipsoid((22, -42, 10), (17, 36, 19))
    third = (x < 5) & (y > -26) & (y < 8) & (z > -14) & (z < 14)
    fissure = (x < 3.5) & (y < -20) & (z > 14)
    pieces, _ = ndimage.label((csf > 0.5) & (lateral | third) & ~fissure)
    ventricles = np.isin(pieces, np.flatnonzero(np.bincount(pieces.ravel())[1:] > 300) + 1)
    thalamus = ellipsoid((11, -18, 7), (11, 15, 11)) & (gm > 0.3) & ~ventricles
    head_or_body = ellipsoid((12, 13, 6), (8, 12, 13)) | ellipsoid((15, -3, 19), (7, 17, 8))
    caudate = head_or_body & (gm > 0.4) & ~ventricles & ~thalamus
    putamen = ellipsoid((26, 2, 1), (8.5, 21, 13)) & (gm > 0.4) & (x < 32.5) & ~caudate

    accents = np.zeros(t1.shape, dtype=np.float32)
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
    parts = parts.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(slice(n) for n in t1.shape)]

    regions = (parts * brain).astype(np.float32)
    for value, mask in ((4, ventricles), (5, caudate), (6, putamen), (7, thalamus)):
        regions[mask] = value
    distance = ndimage.distance_transform_edt(~ventricles).astype(np.float32)
    # the maps show a rim of "grey matter" where white matter and ventricle share voxels
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


def make_subject(
    seed: int | tuple[int, ...],
    pathology: str = "ms",
    scanner: str | Scanner = "A",
    grid: Grid | None = None,
    sequences: tuple[str, ...] = SEQUENCES,
    scalp: bool = False,
    fine_mm: float = 1.0,
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

    Raises:
        ValueError: if the pathology, the scanner or a sequence is unknown, or no brain lies on the grid.
    """
    if pathology not in PATHOLOGIES:
        raise ValueError(f"pathology is {pathology!r}; expected one of {', '.join(PATHOLOGIES)}")
    if isinstance(scanner, str):
        if scanner not in SCANNERS:
            raise ValueError(f"scanner is {scanner!r}; expected one of {', '.join(SCANNERS)}")
        scanner = SCANNERS[scanner]
    unknown = set(sequences) - set(SEQUENCES)
    if unknown:
        raise ValueError(f"sequences name {', '.join(sorted(unknown))}; expected some of {', '.join(SEQUENCES)}")
    grid = grid or Grid.axial(2.0)
    anatomy = load_anatomy()
    # one stream each: a lesion more does not change the head, another contrast not the lesions
    shape_rng, tissue_rng, lesion_rng, scan_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)
    )

    deformation = _Deformation.draw(anatomy, shape_rng)
    box = _brain_box(anatomy, deformation, grid, margin_mm=14.0 if scalp else 4.0)
    factors = tuple(int(k) for k in np.maximum(1, np.round(grid.spacing / fine_mm)))
    coarse = grid.cropped(*box)
    fine = coarse.refined(factors)
    world = voxel_grid(fine.shape, fine.affine)
    # the field is smooth: its values between the voxels of the scan are interpolated
    shift = deformation.displacement_mm(voxel_grid(coarse.shape, coarse.affine))
    points = world + F.interpolate(shift[None], size=fine.shape, mode="trilinear", align_corners=False)[0]

    classes, brain, distance, accents = _decide_tissue(anatomy, points, fine, tissue_rng)
    lesions = _Lesions.draw(pathology, classes, distance, world, fine, lesion_rng)

    def to_scan(array: torch.Tensor) -> torch.Tensor:  # mean over the fine voxels of a voxel: partial volume
        return array if factors == (1, 1, 1) else F.avg_pool3d(array[None, None], factors)[0, 0]

    head = _scalp(brain, fine) if scalp else None
    bright = _bright_structures(classes, accents, distance, fine, tissue_rng)
    images = _contrast(classes, brain, bright, lesions, head, scanner, sequences, fine, coarse, to_scan, scan_rng)
    mask = to_scan(brain.float()) >= 0.5
    lesion = (to_scan(lesions.membership) >= 0.5) & mask
    nearest = tuple(slice(k // 2, None, k) for k in factors)
    scan_classes = torch.where(mask, classes[nearest], 0).long()
    # voxels whose centre lies just outside although half of them is brain
    scan_classes[(scan_classes == 0) & mask] = CSF
    tissues = TISSUE_OF_CLASS[scan_classes]
    tissues[lesion] = 4

    def whole(array: torch.Tensor | np.ndarray, dtype: type) -> np.ndarray:
        out = np.zeros(grid.shape + tuple(array.shape[3:]), dtype=dtype)
        out[tuple(slice(a, b) for a, b in zip(*box, strict=True))] = np.asarray(array)
        return out

    displacement = deformation.displacement_mm(voxel_grid(grid.shape, grid.affine)).movedim(0, -1).numpy()
    return Subject(
        images={name: whole(image, np.float32) for name, image in images.items()},
        tissues=whole(tissues, np.uint8),
        structures=whole(STRUCTURE_OF_CLASS[scan_classes], np.uint8),
        lesion=whole(lesion, np.uint8),
        brain_mask=whole(mask, np.uint8),
        displacement=displacement,
        grid=grid,
        info={
            "pathology": pathology,
            "lesion_ml": round(float(lesion.sum() * np.prod(grid.spacing) / 1000), 3),
            "lesion_count": len(lesions.centers_mm),
            "lesion_centers_mm": lesions.centers_mm,
        },
    )


# --- anatomy ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Deformation:
    """Subject to template, mm: an affine map, then a diffeomorphic displacement given on a coarse template grid."""

    matrix: np.ndarray
    displacement: torch.Tensor  # (3, X, Y, Z), mm
    grid_affine: np.ndarray

    @classmethod
    def draw(cls, anatomy: Anatomy, rng: np.random.Generator, step_mm: float = 4.0) -> _Deformation:
        angles = np.deg2rad(rng.normal(0, 3, 3))
        scale = np.diag(1 / rng.uniform(0.91, 1.0, 3))
        center = np.array([0, -18, 10])
        matrix = np.eye(4)
        matrix[:3, :3] = _rotation(angles) @ (scale + np.triu(rng.normal(0, 0.012, (3, 3)), 1))
        matrix[:3, 3] = center - matrix[:3, :3] @ center + rng.normal(0, 1.0, 3)

        shape = tuple(int(np.ceil(n / step_mm)) + 1 for n in anatomy.regions.shape[1:])
        affine = anatomy.affine @ np.diag([step_mm, step_mm, step_mm, 1])
        velocity = 0
        for sigma_mm, amplitude_mm in ((25.0, 3.5), (9.0, 1.6)):
            velocity = velocity + amplitude_mm * _smooth_noise(rng, (3, *shape), sigma_mm / step_mm)
        # wider or narrower ventricles: points near their wall are pulled from further in, or further out
        distance = sample(anatomy.ventricle_distance, voxel_grid(shape) * step_mm)[0]
        outward = torch.stack(torch.gradient(distance))
        wall = torch.exp(-distance / 10.0)
        velocity = velocity - float(rng.normal(0.7, 1.3)) * wall * outward / outward.norm(dim=0).clamp(min=0.5)
        return cls(matrix, step_mm * integrate_velocity(velocity / step_mm), affine)

    def displacement_mm(self, world: torch.Tensor) -> torch.Tensor:
        """What to add to subject points (3, ...) to get the template points they show; mm."""
        moved = apply_affine(self.matrix, world)
        return (
            moved
            - world
            + sample(self.displacement, apply_affine(np.linalg.inv(self.grid_affine) @ self.matrix, world))
        )


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation about x, then y, then z; radians."""
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float | np.ndarray) -> torch.Tensor:
    """Gaussian noise of unit sd, smoothed over the last three axes; sigma in voxels.

    Wide kernels are drawn on a coarser grid and interpolated, which looks the same and costs nothing.
    """
    sigma = np.broadcast_to(np.asarray(sigma, dtype=float), 3)
    steps = np.maximum(1, np.floor(sigma / 1.5)).astype(int)
    lead, spatial = shape[:-3], shape[-3:]
    coarse = tuple(int(np.ceil(n / k)) + 1 for n, k in zip(spatial, steps, strict=True))
    noise = rng.standard_normal((*lead, *coarse), dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0,) * len(lead) + tuple(sigma / steps), mode="wrap")
    noise = torch.from_numpy(noise / noise.std())
    if tuple(steps) == (1, 1, 1):
        return noise[(..., *(slice(n) for n in spatial))]
    size = tuple(int(n * k) for n, k in zip(coarse, steps, strict=True))
    noise = F.interpolate(noise.reshape(1, -1, *coarse), size=size, mode="trilinear", align_corners=False)
    return noise.reshape(*lead, *size)[(..., *(slice(n) for n in spatial))]


def _brain_box(
    anatomy: Anatomy, deformation: _Deformation, grid: Grid, margin_mm: float
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


def _decide_tissue(
    anatomy: Anatomy, points: torch.Tensor, fine: Grid, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Contrast class, brain mask, distance to the ventricles (mm) and accent of every fine voxel.

    The tissue maps are tipped, patch by patch, towards CSF or towards grey matter before the largest is taken: sulci
    open and close, and the cortex is thicker here and thinner there.
    """
    voxels = apply_affine(np.linalg.inv(anatomy.affine), points)
    maps = sample(torch.cat([anatomy.tissue, anatomy.ventricle_distance]), voxels, padding="zeros")
    places = torch.cat([anatomy.regions, anatomy.accents])
    region, accents = sample(places, voxels, mode="nearest", padding="zeros")
    tissue, distance = maps[:3], maps[3]
    brain = tissue.sum(0) > float(rng.uniform(0.5, 0.85))
    tip = _smooth_noise(rng, (2, *fine.shape), 3.5 / fine.spacing)
    atrophy, thickness = float(rng.normal(0.8, 0.3)), float(rng.normal(0, 0.12))
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


def _scalp(brain: torch.Tensor, fine: Grid) -> torch.Tensor:
    """Simple head around the brain: 0 air, 1 CSF gap and skull (dark), 2 scalp (bright)."""
    distance = torch.from_numpy(ndimage.distance_transform_edt(~brain.numpy(), sampling=fine.spacing))
    return ((distance > 0) & (distance <= 12)).int() + ((distance > 6.5) & (distance <= 12)).int()


# --- pathology --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lesions:
    """What is painted over the anatomy, per fine voxel.

    membership and severity lie in [0, 1]; kind is 1 white-matter lesion, 2 solid mass, 3 its dead core, 4 oedema,
    5 defect (severity 1) and its border (severity 0).
    """

    membership: torch.Tensor
    severity: torch.Tensor
    kind: torch.Tensor
    centers_mm: list[list[float]]

    @classmethod
    def draw(cls, pathology, classes, distance, world, fine, rng) -> _Lesions:
        empty = torch.zeros(fine.shape)
        lesions = cls(empty, empty.clone(), torch.zeros(fine.shape, dtype=torch.uint8), [])
        if pathology == "ms":
            lesions._add_ms(classes, distance, world, fine, rng)
        elif pathology == "tumour":
            lesions._add_mass(classes, distance, world, fine, rng)
        elif pathology == "infarct":
            lesions._add_defect(classes, world, fine, rng)
        return lesions

    def _add_ms(self, classes, distance, world, fine, rng) -> None:
        """White-matter lesions; load, number, size and shape as measured (see the module's sources)."""
        white = (classes == WM) | (classes == CEREBELLAR_WM) | (classes == BRAIN_STEM)
        support = torch.from_numpy(ndimage.gaussian_filter(white.float().numpy(), 0.8 / fine.spacing)) > 0.4
        support &= classes != 0
        volumes = ms_lesion_volumes(rng)
        cerebral = torch.nonzero(classes == WM)
        below = torch.nonzero((classes == BRAIN_STEM) | (classes == CEREBELLAR_WM))
        near = torch.exp(-distance[tuple(cerebral.T)] / 8.0).double().numpy()
        near = (near / near.sum()).cumsum()
        for volume in volumes:
            place = rng.random()
            if place < 0.75:
                center = cerebral[min(np.searchsorted(near, rng.random()), len(near) - 1)]
            elif place < 0.95 or len(below) == 0:
                center = cerebral[rng.integers(len(cerebral))]
            else:
                center = below[rng.integers(len(below))]
            severity = np.clip(0.2 + 0.3 * np.log10(volume / 10) + rng.normal(0, 0.15), 0, 1)
            at = world[(slice(None), *center)].numpy()
            # a large lesion is confluent: pieces that follow the ventricles' wall around its centre
            pieces = max(1, int(volume / 600))
            reach = 1.3 * (3 * volume / (4 * np.pi)) ** (1 / 3)
            for piece in range(pieces):
                if piece:
                    others = cerebral[np.searchsorted(near, rng.random(40)).clip(max=len(near) - 1)]
                    away = np.linalg.norm(world[(slice(None), *others.T)].numpy().T - at, axis=1)
                    weight = np.exp(-0.5 * (away / reach) ** 2) + 1e-9
                    center = others[rng.choice(len(others), p=weight / weight.sum())]
                self._add_ellipsoid(
                    world[(slice(None), *center)].numpy(), 1.6 * volume / pieces, severity, support, world, fine, rng
                )
            self.centers_mm.append([round(float(v), 1) for v in at])

    def _add_ellipsoid(self, center_mm, volume, severity, support, world, fine, rng) -> None:
        """A ragged ellipsoid of about ``volume`` mm3, cut to where lesions can be."""
        middle, short = np.clip(rng.normal(0.61, 0.17), 0.3, 1), np.clip(rng.normal(0.45, 0.15), 0.25, 1)
        short = min(short, middle)
        longest = (3 * volume / (4 * np.pi * middle * short)) ** (1 / 3)
        radii = longest * np.array([1, middle, short])
        axes = _rotation(rng.uniform(0, np.pi, 3)) / radii[:, None]
        box = _box_around(center_mm, 1.4 * longest + 1, fine)
        if box is None:
            return
        offset = world[(slice(None), *box)] - torch.as_tensor(center_mm, dtype=torch.float32).reshape(3, 1, 1, 1)
        radius = (
            (torch.as_tensor(axes, dtype=torch.float32) @ offset.reshape(3, -1)).norm(dim=0).reshape(offset.shape[1:])
        )
        ragged = _smooth_noise(rng, radius.shape, max(0.3 * longest, 1.0) / fine.spacing)
        edge = 0.4 / radii.mean()  # mm of soft border, relative
        member = torch.sigmoid((1 - radius + 0.13 * ragged) / edge) * support[box]
        grown = member > self.membership[box]
        self.severity[box][grown] = float(severity)
        self.membership[box][grown] = member[grown]
        self.kind[box][member > 0.02] = 1

    def _add_mass(self, classes, distance, world, fine, rng) -> None:
        """A tumour-like mass: dead core, solid rim, oedema in the white matter around it."""
        inner = torch.nonzero((classes == WM) & (distance > 8))
        center = inner[rng.integers(len(inner))]
        at = world[(slice(None), *center)].numpy()
        radius_mm = rng.uniform(8, 20)
        radius = self._ragged_radius(at, radius_mm * rng.uniform(0.8, 1.25, 3), world, fine, rng)
        brain = classes != 0
        fluid = (classes == VENTRICLE) | (classes == CSF)
        white = classes == WM
        for kind, mask in (
            (4, white & (radius < rng.uniform(1.3, 1.8))),
            (2, brain & (radius < 1)),
            (3, brain & (radius < rng.uniform(0.4, 0.65))),
        ):
            mask = mask & ~(fluid & (radius > 0.9))
            self.kind[mask] = kind
            self.membership[mask] = 1.0
            self.severity[mask] = float(rng.uniform(0.6, 1.0))
        self.centers_mm.append([round(float(v), 1) for v in at])

    def _add_defect(self, classes, world, fine, rng) -> None:
        """An old infarct: a cortical defect filled with fluid, a gliotic border of severity 0."""
        cortex = torch.nonzero(classes == CORTEX)
        at = world[(slice(None), *cortex[rng.integers(len(cortex))])].numpy()
        radius = self._ragged_radius(at, rng.uniform(10, 26) * rng.uniform(0.7, 1.3, 3), world, fine, rng)
        mask = (classes != 0) & (classes != VENTRICLE) & (radius < 1)
        self.kind[mask] = 5
        self.membership[mask] = 1.0
        self.severity[mask & (radius < 0.8)] = 1.0
        self.centers_mm.append([round(float(v), 1) for v in at])

    @staticmethod
    def _ragged_radius(center_mm, radii_mm, world, fine, rng) -> torch.Tensor:
        offset = (world - torch.as_tensor(center_mm, dtype=torch.float32).reshape(3, 1, 1, 1)) / torch.as_tensor(
            radii_mm, dtype=torch.float32
        ).reshape(3, 1, 1, 1)
        return offset.norm(dim=0) + 0.12 * _smooth_noise(rng, fine.shape, 5.0 / fine.spacing)


def ms_lesion_volumes(rng: np.random.Generator) -> np.ndarray:
    """Volumes in mm3 of one patient's white-matter lesions, largest last.

    Total load is log-normal (log-mean 2.11, log-sd 1.5, in ml), the number of lesions follows from it
    (log count = 3.15 + 0.46 log load, residual sd 0.61), single lesions are log-normal (log-mean 3.2, log-sd 1.42) and
    the largest ones make up the load, as in the masks named at the top of this module.
    """
    load_mm3 = 1000 * np.exp(np.clip(rng.normal(2.11, 1.3), -0.4, 3.9))
    count = int(np.clip(np.exp(3.15 + 0.46 * np.log(load_mm3 / 1000) + rng.normal(0, 0.5)), 5, 300))
    volumes = np.sort(np.exp(rng.normal(3.2, 1.42, count)).clip(4, 25000))
    missing = load_mm3 - volumes.sum()
    if missing > 0:  # the rest sits in the few largest
        few = min(count, 1 + int(load_mm3 / 12000))
        volumes[-few:] += missing * rng.dirichlet(np.full(few, 2.0))
    else:
        volumes *= max(load_mm3 / volumes.sum(), 0.3)
    return np.sort(volumes.clip(3, None))


def _box_around(center_mm: np.ndarray, reach_mm: float, fine: Grid) -> tuple[slice, ...] | None:
    center = (np.linalg.inv(fine.affine) @ [*center_mm, 1])[:3]
    half = reach_mm / fine.spacing
    start = np.maximum(np.floor(center - half), 0).astype(int)
    stop = np.minimum(np.ceil(center + half) + 1, fine.shape).astype(int)
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True)) if (stop > start).all() else None


# --- contrast ---------------------------------------------------------------------------------------------------------

# T1w, T2w, FLAIR of: solid mass, dead core, oedema, fluid-filled defect, its gliotic border
_FOCAL = {
    2: {"T1w": 0.70, "T2w": 1.65, "FLAIR": 1.38},
    3: {"T1w": 0.42, "T2w": 2.40, "FLAIR": 0.85},
    4: {"T1w": 0.82, "T2w": 1.80, "FLAIR": 1.45},
    5: {"T1w": 0.30, "T2w": 2.60, "FLAIR": 0.50},
}
_GLIOSIS = {"T1w": 0.70, "T2w": 1.80, "FLAIR": 1.42}


def _bright_structures(classes, accents, distance, fine, rng) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain on FLAIR and mask of choroid plexus: what is bright in healthy people, more in some than in others.

    The ependyma lines the ventricles, and caps sit on their horns; both are what a network takes for periventricular
    lesions if it has never seen them.
    """
    uneven = (0.6 + 0.5 * _smooth_noise(rng, fine.shape, 4.0 / fine.spacing)).clamp(0, 1.5)
    solid = (classes != 0) & (classes != CSF) & (classes != VENTRICLE)
    gain = torch.zeros(fine.shape)
    for value, (largest, _) in ACCENTS.items():
        gain[accents == value] = float(largest * rng.uniform(0, 1))
    gain[(accents == 4) & (distance > rng.uniform(2.5, 5))] = 0
    gain[(accents == 1) & (classes != CORTEX)] = 0
    lining = (distance > 0) & (distance < rng.uniform(0.8, 2.4))
    gain[lining] = gain[lining].clamp(min=float(rng.uniform(0, 0.45)))
    plexus = (accents == CHOROID_PLEXUS) & (classes == VENTRICLE) & (uneven > rng.uniform(0.3, 0.8))
    return gain * uneven * solid, plexus


def _contrast(
    classes, brain, bright, lesions, head, scanner, sequences, fine, coarse, to_scan, rng
) -> dict[str, torch.Tensor]:
    """Images on the grid of the scan from classes and lesions on the fine grid."""
    # the same in every sequence: where tissue is a little different, and what brain extraction left at the surface
    patches = _smooth_noise(rng, fine.shape, 2.8 / fine.spacing)
    grain = _smooth_noise(rng, fine.shape, 0.8 / fine.spacing)
    residue = _surface_residue(brain, fine, rng)
    shading = _smooth_noise(rng, coarse.shape, 45.0 / coarse.spacing)
    blur = rng.uniform(*scanner.blur_mm) / coarse.spacing
    noise_sd, bias_sd, gamma = (rng.uniform(*r) for r in (scanner.noise, scanner.bias, scanner.gamma))
    texture = rng.uniform(*scanner.texture)
    csf, lesion_contrast = rng.uniform(*scanner.csf), rng.uniform(*scanner.lesion)
    mask = to_scan(brain.float()) >= 0.5
    gain, plexus = bright
    plexus_tone = {"T1w": 0.6, "T2w": 1.7, "FLAIR": float(rng.uniform(0.8, 1.5))}

    images = {}
    for name in sequences:
        means = torch.tensor(CONTRAST[name])
        jitter = torch.from_numpy(rng.normal(1, scanner.contrast_jitter, len(means)).astype(np.float32))
        means = means * jitter / jitter[WM]
        means[[CSF, VENTRICLE]] *= csf if name != "T2w" else 1.0
        patch_sd = torch.tensor(PATCHES[name])
        image = means[classes] * (1 + texture * (patch_sd[classes] * patches + GRAIN[name] * grain)).clamp(min=0)
        image = image * (1 + gain * {"T1w": 0.0, "T2w": 0.5, "FLAIR": 1.0}[name])
        image = torch.where(plexus, plexus_tone[name] * (1 + 0.2 * patches), image)
        _paint(image, name, lesions, lesion_contrast, grain)
        if residue is not None:
            image = torch.where(residue > 0, residue * (0.6 if name == "T1w" else 1.0), image)
        if head is not None:
            scalp_tone = torch.tensor([0.0, 0.12, 1.2 if name == "T1w" else 0.9])
            image = torch.where(brain, image, scalp_tone[head] * (1 + 0.15 * patches))
        image = to_scan(image).clamp(min=0) ** gamma
        image = torch.from_numpy(ndimage.gaussian_filter(image.numpy(), blur))
        image = image * torch.exp(bias_sd * shading)
        real, imaginary = (torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32)) for _ in range(2))
        image = torch.hypot(image + noise_sd * real, noise_sd * imaginary)
        images[name] = image if head is not None else image * mask
    return images


def _paint(image: torch.Tensor, name: str, lesions: _Lesions, contrast: float, grain: torch.Tensor) -> None:
    """Blend lesions into an image, in place."""
    where = lesions.membership > 0
    member, severity, kind = (a[where] for a in (lesions.membership, lesions.severity, lesions.kind))
    mild, severe = LESION_RANGE[name]
    value = mild + (severe - mild) * severity
    for number, tones in _FOCAL.items():
        value[kind == number] = tones[name]
    value[(kind == 5) & (severity == 0)] = _GLIOSIS[name]
    value = (1 + contrast * (value - 1)) * (1 + 0.08 * grain[where])
    image[where] += member * (value - image[where])


def _surface_residue(brain: torch.Tensor, fine: Grid, rng: np.random.Generator) -> torch.Tensor | None:
    """Bright remnants of dura and vessels at the surface, in some subjects: what brain extraction leaves behind."""
    if rng.random() < 0.4:
        return None
    inside = torch.from_numpy(ndimage.gaussian_filter(brain.float().numpy(), 2.0 / fine.spacing))
    spots = _smooth_noise(rng, fine.shape, 6.0 / fine.spacing) > rng.uniform(1.5, 2.5)
    return (brain & (inside < rng.uniform(0.6, 0.75)) & spots) * float(rng.uniform(0.9, 1.7))
