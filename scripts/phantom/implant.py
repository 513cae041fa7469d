"""Lesions implanted in real scans: the texture and the bright places of real people, with lesions that are known.

What a network takes for lesions in a real scan, and has never seen in a synthetic one, is in the image and not in the
label. Lesions that the scan has itself are unknown; where they are suspected, they are filled with white matter first,
as lesion filling does before volumetry. Severity, size and place are those of :mod:`phantom.pathology`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from common.geometry import apply_affine, sample, voxel_grid

from .anatomy import BRAIN_STEM, CEREBELLAR_GM, CEREBELLAR_WM, CORTEX, CSF, WM, Grid, load_anatomy
from .contrast import Scanner, lesion_contrasts
from .noise import smooth_noise
from .pathology import Lesions

CLASS_OF_TISSUE = torch.tensor([0, CSF, CORTEX, WM, WM])
TEXTURE = 0.065  # relative sd of patches, and of grain, in a lesion; with it the sd in lesions is 0.15 of white matter
LEVEL_MM = 8.0  # sd of the neighborhood that says how bright white matter is at a place


def suspected_lesions(probability: np.ndarray, tissues: np.ndarray, grid: Grid, threshold: float) -> np.ndarray:
    """Where a scan may have lesions of its own: what a network found, grown by a voxel, in white matter.

    A network is sure of choroid plexus and limbic cortex too: a piece that has more fluid and gray matter around it
    than white matter is none, and stays in the image for others to learn from.

    Args:
        probability: (X, Y, Z) of lesion.
        tissues: (X, Y, Z), 3 white matter, 4 lesion.
        grid: of both.
        threshold: probability above which a voxel is suspected.

    Returns:
        (X, Y, Z) bool.
    """
    suspected = probability >= threshold
    white = ndimage.gaussian_filter((tissues == 3).astype(np.float32), 2.0 / grid.spacing)
    certain = ndimage.gaussian_filter(((tissues == 1) | (tissues == 2)).astype(np.float32), 2.0 / grid.spacing)
    labels, count = ndimage.label(suspected, structure=np.ones((3, 3, 3)))
    pieces = np.arange(1, count + 1)
    inside = ndimage.mean(white, labels, pieces) > ndimage.mean(certain, labels, pieces)
    kept = np.isin(labels, pieces[np.asarray(inside, dtype=bool)])
    return ndimage.binary_dilation(kept, ndimage.generate_binary_structure(3, 1))


def implant_lesions(
    images: Mapping[str, np.ndarray],
    tissues: np.ndarray,
    grid: Grid,
    seed: int | tuple[int, ...],
    to_template: np.ndarray | None = None,
    suspected: np.ndarray | None = None,
    lesion_map: torch.Tensor | None = None,
    contrast: tuple[float, float] = (0.6, 1.2),
    gamma: tuple[float, float] = (0.85, 1.2),
    t1w_contrast: tuple[float, float] | None = None,
    variation: float = 0.0,
    pathology: str = "ms",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A scan with lesions of multiple sclerosis in its white matter.

    Args:
        images: sequence -> (X, Y, Z), 0 outside the brain; in any unit.
        tissues: (X, Y, Z) uint8: 0 background, 1 CSF, 2 GM, 3 WM, 4 lesion (taken as WM).
        grid: of all arrays.
        seed: the same seed gives the same lesions.
        to_template: 4 x 4 from the scan's world to the template's; without it the two are taken to be one.
        suspected: (X, Y, Z) bool, filled with white matter first.
        lesion_map: see :func:`phantom.make_subject`.
        contrast: factor on the contrast of lesions, drawn from this range.
        gamma: exponent on the image relative to white matter, drawn from this range.
        t1w_contrast, variation: ``lesion_t1w`` and ``lesion_variation`` of :class:`phantom.Scanner`.
        pathology: ``ms`` or ``ms_confluent``.

    Returns:
        Sequence -> (X, Y, Z) float32, white matter about 1; and the lesion mask, (X, Y, Z) uint8.

    Raises:
        ValueError: if the map has less than 100 ml of white matter.
    """
    white = _white_matter(tissues, grid)
    box = ndimage.find_objects((tissues > 0).astype(np.uint8))[0]
    start, stop = ([getattr(part, end) for part in box] for end in ("start", "stop"))
    brain_grid = grid.cropped(np.array(start), np.array(stop))
    if suspected is None:
        suspected = np.zeros(grid.shape, dtype=bool)

    rng = np.random.default_rng(seed)
    to_template = np.eye(4) if to_template is None else to_template
    share, severity = _draw_lesions(tissues[box], brain_grid, to_template, lesion_map, pathology, rng)
    factor, exponent, blur_mm = (float(rng.uniform(*r)) for r in (contrast, gamma, (0.2, 0.7)))
    grain, patches = (smooth_noise(rng, brain_grid.shape, mm / brain_grid.spacing).numpy() for mm in (0.8, 3.0))
    blurred = ndimage.gaussian_filter(share, blur_mm / brain_grid.spacing)
    style = Scanner(lesion_t1w=t1w_contrast, lesion_variation=variation)
    contrasts = lesion_contrasts(factor, style, list(images), brain_grid, rng.spawn(1)[0])
    found = {}
    for name, scan in images.items():
        scan = scan[box]
        brain = scan > 0
        sure = white[box] & ~suspected[box] & brain
        level = _neighborhood_mean(scan, sure, brain_grid)
        image = scan / np.maximum(level, 1e-6)
        filled = (suspected[box] & brain).astype(np.float32)
        filled = np.maximum(ndimage.gaussian_filter(filled, 0.7 / brain_grid.spacing), filled)
        image += filled * (1 + 0.7 * float(np.std(image[sure])) * (grain + patches) - image)
        value = contrasts[name].tone(name, torch.from_numpy(severity)).numpy()
        image += blurred * (value * (1 + TEXTURE * (grain + patches)) - image)
        shading = level / np.median(level[sure])  # what the level took away comes back
        found[name] = np.zeros(grid.shape, dtype=np.float32)
        found[name][box] = np.maximum(image, 0) ** exponent * shading * brain
    lesion = np.zeros(grid.shape, dtype=np.uint8)
    lesion[box] = (share >= 0.5) & (tissues[box] > 0)
    return found, lesion


def _white_matter(tissues: np.ndarray, grid: Grid) -> np.ndarray:
    """Where a tissue map has white matter that touches no fluid."""
    white = (tissues >= 3) & ~ndimage.binary_dilation(tissues == 1)
    volume_ml = white.sum() * np.prod(grid.spacing) / 1000
    if volume_ml < 100:
        raise ValueError(f"the tissue map has {volume_ml:.0f} ml of white matter; expected 100 or more")
    return white


def _draw_lesions(
    tissues: np.ndarray,
    grid: Grid,
    to_template: np.ndarray,
    lesion_map: torch.Tensor | None,
    pathology: str,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Share of lesion in every voxel, and severity of that, both in [0, 1]; drawn in voxels of about 1 mm."""
    factors = tuple(int(k) for k in np.maximum(1, np.round(grid.spacing)))
    fine = grid.refined(factors)
    world = voxel_grid(fine.shape, fine.affine)
    anatomy = load_anatomy()
    to_voxels = np.linalg.inv(anatomy.affine)
    mirrored = torch.tensor([rng.choice([-1.0, 1.0]), 1, 1]).float().reshape(3, 1, 1, 1)
    in_template = apply_affine(to_template, world)
    points = apply_affine(to_voxels, in_template)
    distance = sample(anatomy.ventricle_distance, points)[0]
    region = sample(anatomy.regions, points, mode="nearest", padding="zeros")[0]
    classes = CLASS_OF_TISSUE[torch.from_numpy(tissues.astype(np.int64))]
    classes = F.interpolate(classes[None, None].float(), scale_factor=factors, mode="nearest")[0, 0].long()
    classes[(region == 2) & (classes == WM)] = CEREBELLAR_WM
    classes[(region == 2) & (classes == CORTEX)] = CEREBELLAR_GM
    classes[(region == 3) & (classes == WM)] = BRAIN_STEM
    drawn = None
    if lesion_map is not None:
        drawn = sample(lesion_map, apply_affine(to_voxels, in_template * mirrored), padding="zeros")[0]
    lesions = Lesions.draw(pathology, classes, distance, world, fine, rng, drawn)
    share, weighted = (
        F.avg_pool3d(array[None, None], factors)[0, 0].numpy()
        for array in (lesions.membership, lesions.membership * lesions.severity)
    )
    return share, weighted / np.maximum(share, 1e-6)


def _neighborhood_mean(image: np.ndarray, mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Mean of the masked voxels around each voxel; the mean of all of them, where none is near."""
    sigma = LEVEL_MM / grid.spacing
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(mask, image, 0).astype(np.float32), sigma)
    prior = 1e-2  # so that a few voxels far away do not speak for a place
    return (total + prior * image[mask].mean()) / (weight + prior)
