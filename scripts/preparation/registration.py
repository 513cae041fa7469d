"""Where a scan lies against the template, with the head still around the brain, and what registrations share.

Matrices are 4 x 4, of RAS mm. The last step of every registration is SimpleITK's, by mutual information.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.utils import optional_import
from scipy import ndimage
from skimage.filters import threshold_otsu

from common.atlas import icbm_atlas, icbm_maps, template_grid
from common.errors import InputError
from common.geometry import rotation_matrix, sample, voxel_grid

from .volume import Volume

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk, _ = optional_import("SimpleITK")

WORKING_MM = 3.0  # voxels of the copies that are registered
MARGIN_MM = 6.0  # around the template's brain, where the skull is dark in every sequence
BRAIN_CENTER = np.array([0.0, -18.0, 8.0])  # of the template, mm
BRAIN_TOP_MM = 72.0  # from there to the top of the brain
SCALP_MM = 12.0  # from there to the top of the head, about
HEAD_MM = 170.0  # what counts below the top of a head; further down is the neck
USUAL_SIZE = 0.9  # of a brain, the template's being 1
SIZE_WEIGHT = 0.3
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to the LPS of ITK, and back


def require_simpleitk() -> None:
    """Load SimpleITK, for one thread: cases run in parallel, and results do not depend on how many there are.

    Raises:
        InputError: if it is not installed.
    """
    if not optional_import("SimpleITK")[1]:
        raise InputError("SimpleITK is not installed, expected it to prepare scans; pip install SimpleITK")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    sitk.ProcessObject.GlobalWarningDisplayOff()


@functools.lru_cache(maxsize=1)
def template() -> tuple[Volume, Volume]:
    """T1 of the ICBM 152 template, which is brain only, and the share of brain in every voxel."""
    t1, _, _, affine = icbm_maps()
    brain = ndimage.binary_fill_holes(t1 > 0.02)
    shape = (88, 104, 88)
    grid = template_grid([2.0] * 3, shape)
    return Volume(t1, affine).on_grid(shape, grid), Volume(brain, affine).on_grid(shape, grid)


def to_itk(volume: Volume) -> sitk.Image:
    """An image of ITK, float32. The axes of the volume are those of the world, as of :meth:`Volume.isotropic`."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.values.T, dtype=np.float32))
    image.SetSpacing(volume.spacing.tolist())
    image.SetDirection(FLIP[:3, :3].ravel().tolist())
    image.SetOrigin((FLIP @ volume.affine[:, 3])[:3].tolist())
    return image


def itk_affine(matrix: np.ndarray, center: Sequence[float] = (0.0, 0.0, 0.0)) -> sitk.AffineTransform:
    """A matrix as a transform of ITK that turns about a center, given in RAS."""
    lps = FLIP @ matrix @ FLIP
    middle = FLIP[:3, :3] @ np.asarray(center, dtype=float)
    transform = sitk.AffineTransform(3)
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation((lps[:3, :3] @ middle + lps[:3, 3] - middle).tolist())
    return transform


def matrix_of(transform: sitk.Transform) -> np.ndarray:
    """The opposite of :func:`itk_affine`, also for rigid transforms."""
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    center = np.array(transform.GetCenter())
    lps[:3, 3] = np.array(transform.GetTranslation()) + center - lps[:3, :3] @ center
    return FLIP @ lps @ FLIP


def head_mask(scan: Volume) -> np.ndarray:
    """Where a scan is brighter than air: 0.6 of Otsu's threshold, the largest part.

    Raises:
        InputError: if there is no such part.
    """
    smooth = ndimage.gaussian_filter(scan.values.astype(np.float32), 1.0)
    seen = smooth[smooth > 0.01 * smooth.max()]  # the air of some scanners is 0, and would be half of the values
    if not seen.size or seen.min() == seen.max():
        raise InputError("one intensity everywhere, expected a head")
    mask = ndimage.binary_opening(smooth > 0.6 * threshold_otsu(seen.clip(max=np.percentile(seen, 99))))
    labels, count = ndimage.label(mask)
    if count == 0:
        raise InputError("nothing is brighter than its background, expected a head")
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def template_to_scan(scan: Volume) -> np.ndarray:
    """Affine map from the template's world to that of a scan of any contrast, with or without the head.

    The template has no head, so only its brain counts, and a margin of ``MARGIN_MM``, where the skull of the scan is
    dark. A search begins at many places and tilts around the middle of the head and makes the intensities within the
    template's tissues as uniform as it can, as :func:`common.atlas.align_atlas` does; sizes far from the usual cost
    something, or everything would shrink into air. Mutual information with the template's T1 has the last word.

    Args:
        scan: any orientation; shading may be left in.

    Raises:
        InputError: if the scan shows no head.
    """
    copy = scan.isotropic(WORKING_MM)
    head = head_mask(copy)
    copy = copy.like(copy.values.clip(0, np.percentile(copy.values[head], 98)))
    matrix = _search(copy, head)
    fixed, brain = template()
    near = ndimage.distance_transform_edt(brain.values < 0.5, sampling=fixed.spacing) <= MARGIN_MM
    method = registration_method([2, 1], [2.0, 1.0])
    method.SetMetricFixedMask(sitk.Cast(to_itk(fixed.like(near)), sitk.sitkUInt8))
    transform = itk_affine(matrix, BRAIN_CENTER)
    execute(method, fixed, padded(copy), transform)
    return matrix_of(transform)


def execute(method: sitk.ImageRegistrationMethod, fixed: Volume, moving: Volume, transform: sitk.Transform) -> None:
    """Change a transform, from the world of the fixed scan to that of the moving one, until the method is content.

    Raises:
        InputError: if the scans do not meet.
    """
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(to_itk(fixed), to_itk(moving))
    except RuntimeError as e:  # of ITK, many lines
        reason = str(e).strip().splitlines()[-1]
        raise InputError(f"registration failed ({reason}), expected scans that overlap") from e


def registration_method(shrink: Sequence[int], sigmas_mm: Sequence[float]) -> sitk.ImageRegistrationMethod:
    """Descent on mutual information, on copies shrunk by and smoothed by so much, one after the other."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(40)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.4, 1)  # with a seed: otherwise it is the time
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel(list(sigmas_mm))
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 0.02, 60, 0.6, 1e-5)
    method.SetOptimizerScalesFromPhysicalShift()
    return method


def padded(scan: Volume, voxels: int = 10) -> Volume:
    """With air around it: ITK leaves out what lies outside."""
    affine = scan.affine.copy()
    affine[:3, 3] -= voxels * scan.spacing
    return Volume(np.pad(scan.values, voxels), affine)


def _search(scan: Volume, head: np.ndarray) -> np.ndarray:
    """The map of :func:`template_to_scan`, to some millimeters."""
    points = np.argwhere(head) * scan.spacing + scan.affine[:3, 3]
    top = np.percentile(points[:, 2], 99.8)
    middle = points[points[:, 2] > top - HEAD_MM].mean(0)
    middle[2] = top - SCALP_MM - USUAL_SIZE * BRAIN_TOP_MM
    starts = [
        np.c_[size * rotation_matrix(np.array([tilt, 0, 0])), middle + [0, forward, up]]
        for forward, up, tilt, size in itertools.product(
            (-24, -12, 0, 12), (-20, -10, 0, 10), (-0.5, -0.25, 0, 0.25, 0.5), (0.85, 1.0)
        )
    ]
    maps = torch.tensor(np.array(starts), dtype=torch.float32)
    places, shares = _tissues(8.0)
    smooth = _smoothed(scan, 4.0)
    with torch.no_grad():
        misfit = torch.cat([_misfit(smooth, places, shares, some) for some in maps.split(16)])
    maps = _minimize(smooth, places, shares, maps[misfit.argsort()[:10]])
    best = _minimize(_smoothed(scan, 2.0), *_tissues(5.0), maps[:1])[0].double().numpy()
    matrix = np.eye(4)
    matrix[:3] = best
    matrix[:3, 3] -= best[:, :3] @ BRAIN_CENTER
    return matrix


@functools.lru_cache(maxsize=2)
def _tissues(spacing_mm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (3, N) in and around the template's brain, from its center, and the share of each class there (C, N)."""
    atlas = icbm_atlas().coarser(2).smoothed(spacing_mm / 2)
    grid = np.diag([spacing_mm] * 3 + [1.0])
    shape = tuple(np.ceil(np.array([180, 216, 190]) / spacing_mm).astype(int))
    grid[:3, 3] = BRAIN_CENTER - spacing_mm * (np.array(shape) - 1) / 2
    tissue = sample(atlas.probabilities[1:], voxel_grid(shape, np.linalg.inv(atlas.affine) @ grid), padding="zeros")
    outside = ndimage.distance_transform_edt(tissue.sum(0).numpy() < 0.5, sampling=spacing_mm)
    near = torch.from_numpy(outside <= MARGIN_MM + spacing_mm / 2)
    shares = torch.cat([(1 - tissue.sum(0, keepdim=True)).clamp(min=0), tissue])[:, near]
    return voxel_grid(shape, grid)[:, near] - torch.from_numpy(BRAIN_CENTER).float()[:, None], shares


def _smoothed(scan: Volume, sigma_mm: float) -> Volume:
    return scan.like(ndimage.gaussian_filter(scan.values.astype(np.float32), sigma_mm / scan.spacing))


def _misfit(scan: Volume, places: torch.Tensor, shares: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Share of the variance that is within the classes, and what an unusual size costs, (B,), of maps (B, 3, 4)."""
    inverse = torch.from_numpy(np.linalg.inv(scan.affine)).float()
    world = maps[:, :, :3] @ places + maps[:, :, 3:]
    voxels = inverse[:3, :3] @ world + inverse[:3, 3:]
    intensities = torch.from_numpy(scan.values)
    values = sample(intensities[None], voxels.movedim(1, 0), padding="zeros")[0]
    total = (values - values.mean(1, keepdim=True)).square().sum(1)
    within = values.square().sum(1) - ((values @ shares.T) ** 2 / (shares.sum(1) + 1e-6)).sum(1)
    square = maps[:, :, :3].mT @ maps[:, :, :3] - USUAL_SIZE**2 * torch.eye(3)
    floor = 0.02 * places.shape[1] * intensities.square().mean()  # air alone is uniform, but no brain
    return (within + floor) / (total + floor) + SIZE_WEIGHT * square.square().sum((1, 2))


def _minimize(scan: Volume, places: torch.Tensor, shares: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """The maps (B, 3, 4) improved, the best first."""
    unit = torch.tensor([1.0, 1.0, 1.0, 60.0])  # mm; a number more then moves the rim of the brain alike
    found = []
    for start in maps:
        x = (start[None] / unit).requires_grad_()
        optimizer = torch.optim.LBFGS([x], max_iter=30, tolerance_change=1e-6, line_search_fn="strong_wolfe")

        def step(x: torch.Tensor = x, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = _misfit(scan, places, shares, x * unit).sum()
            loss.backward()
            return loss

        optimizer.step(step)
        with torch.no_grad():
            found.append((_misfit(scan, places, shares, x * unit).item(), (x * unit).detach()[0]))
    return torch.stack([matrix for _, matrix in sorted(found, key=lambda item: item[0])])
