"""Probabilistic atlases: where they come from, what they must be, and how they get onto a scan.

World coordinates are RAS mm. The default atlas is made of the tissue maps of the ICBM 152 template, nonlinear 2009,
that the nilearn package carries (Fonov et al., NeuroImage 2011, doi:10.1016/j.neuroimage.2010.07.033; copyright
1993-2004 Louis Collins, McConnell Brain Imaging Center, McGill University).
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, SpatialResample
from monai.utils import ensure_tuple_rep
from scipy import ndimage

from .errors import InputError
from .geometry import apply_affine, sample, voxel_grid
from .scans import VOXEL_MM, grid_difference, read_scan, whole_numbers
from .transforms.intensity import fill_holes, piecewise_linear
from .transforms.io import file_of

MAX_MISFIT = 0.24  # between aligned brains and brains of a wrong orientation, see align_atlas

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Atlas:
    """Probability of every class at every voxel.

    Attributes:
        probabilities: (C, X, Y, Z), float32, background first, the sum over C is 1.
        affine: voxel to world, 4 x 4.
    """

    probabilities: torch.Tensor
    affine: np.ndarray

    def smoothed(self, sigma_mm: float) -> Atlas:
        """Each class smoothed by a Gaussian; beyond the margin is background."""
        sigma = sigma_mm / nib.affines.voxel_sizes(self.affine)
        maps = np.stack([ndimage.gaussian_filter(p, sigma, mode="constant") for p in self.probabilities[1:].numpy()])
        background = (1 - maps.sum(0, keepdims=True)).clip(min=0)
        return Atlas(torch.from_numpy(np.concatenate([background, maps])), self.affine)

    def coarser(self, factor: int) -> Atlas:
        """Means of blocks of ``factor`` voxels along each axis; what does not fill a block is left out."""
        shift = np.diag([factor, factor, factor, 1.0])
        shift[:3, 3] = (factor - 1) / 2
        return Atlas(torch.nn.functional.avg_pool3d(self.probabilities, factor), self.affine @ shift)

    @functools.cached_property
    def brain_moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and sd of the brain along each axis of the world, (3,) each, mm."""
        weight = 1 - self.probabilities[0].double()
        places = apply_affine(self.affine, voxel_grid(tuple(weight.shape)).double())
        return _moments(places.flatten(1), weight.flatten())

    @functools.cached_property
    def blurred(self) -> dict[float, Atlas]:
        """By the sd of the Gaussian in mm, what a scan is aligned to, in order; on a grid of half as many voxels."""
        coarse = self.coarser(2)
        return {sigma_mm: coarse.smoothed(sigma_mm) for sigma_mm in (4.0, 2.0)}


def icbm_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """T1, gray and white matter of the template at 1 mm, cropped to the brain, each (X, Y, Z), and the affine."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    template = load_mni152_template(resolution=1)
    t1, gm, wm = (
        np.asarray(image.dataobj, dtype=np.float32)
        for image in (template, load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1))
    )
    box = ndimage.find_objects((t1 > 0.02).astype(np.uint8))[0]
    box = tuple(slice(max(s.start - 4, 0), s.stop + 4) for s in box)
    shift = np.eye(4)
    shift[:3, 3] = [s.start for s in box]
    return t1[box], gm[box], wm[box], template.affine @ shift


@functools.lru_cache(maxsize=1)
def icbm_atlas() -> Atlas:
    """Background, CSF, GM and WM of the template; CSF is what its brain has besides the two."""
    t1, gm, wm, affine = icbm_maps()
    brain = ndimage.gaussian_filter(ndimage.binary_fill_holes(t1 > 0.02).astype(np.float32), 0.7)
    tissue = np.stack([(brain - gm - wm).clip(0, 1), gm * brain, wm * brain])
    background = (1 - tissue.sum(0, keepdims=True)).clip(0, 1)
    maps = np.concatenate([background, tissue])
    return Atlas(torch.from_numpy(maps / maps.sum(0)), affine)


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


@functools.lru_cache(maxsize=4)
def open_atlas(
    files: str | tuple[str, ...] | None = None, classes: int | None = None, label_sigma_mm: float | None = None
) -> Atlas:
    """An atlas of any source.

    Args:
        files: None for :func:`icbm_atlas`; one 4-D NIfTI file with a volume per class, background first; a 3-D file per
            class; or, with ``label_sigma_mm``, one label map of 0, 1, ..., C - 1.
        classes: how many classes there have to be, background included; None for any number.
        label_sigma_mm: sd of the Gaussian that makes probabilities of a label map.

    Raises:
        InputError: if a file cannot be read, files lie on different grids, a probability is negative, a class is empty,
            a sum over classes is not 1, or the number of classes is not ``classes``.
    """
    if files is None:
        atlas, source = icbm_atlas(), "the atlas of the ICBM template"
    else:
        paths = [files] if isinstance(files, str) else list(files)
        source = ", ".join(paths)
        atlas = _atlas_of_label_map(paths, label_sigma_mm) if label_sigma_mm is not None else _read_maps(paths)
    found = len(atlas.probabilities)
    if classes is not None and found != classes:
        raise InputError(f"{source} has {found} classes with background, expected {classes} as the network")
    empty = [c for c, p in enumerate(atlas.probabilities) if not p.any()]
    if empty:
        raise InputError(f"{source}: class {empty[0]} is 0 everywhere, expected a probability above 0 somewhere")
    return atlas


def _read_maps(paths: Sequence[str]) -> Atlas:
    scans = [read_scan(path, volumes=True) for path in paths]
    affine = scans[0][1].affine
    for path, (values, scan) in zip(paths, scans, strict=True):
        difference = grid_difference(values.shape[:3], scan.affine, scans[0][0].shape[:3], affine)
        if difference:
            raise InputError(f"{path} and {paths[0]} have {difference}, expected one grid for all classes")
    maps = np.moveaxis(np.concatenate([v.reshape(*v.shape[:3], -1) for v, _ in scans], axis=3), 3, 0)
    if maps.min() < 0:
        raise InputError(f"{', '.join(paths)} has probabilities down to {maps.min():g}, expected 0 or above")
    total = maps.sum(0)
    off = float(np.abs(total - 1).max())
    if len(maps) < 2 or off > 0.02:
        raise InputError(
            f"{', '.join(paths)}: the sum over {len(maps)} classes differs from 1 by up to {off:.3g}, expected at most "
            "0.02; background is the first class"
        )
    return Atlas(torch.from_numpy(maps / total), affine)


def _atlas_of_label_map(paths: Sequence[str], sigma_mm: float) -> Atlas:
    if len(paths) != 1 or not (isinstance(sigma_mm, int | float) and sigma_mm >= 0):
        raise InputError(f"label_sigma_mm is {sigma_mm} for {len(paths)} files, expected 0 or above and one label map")
    labels, affine = read_label_map(paths[0])
    classes = torch.nn.functional.one_hot(torch.from_numpy(labels).long()).movedim(-1, 0).float()
    return Atlas(classes, affine).smoothed(sigma_mm)


def read_label_map(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (X, Y, Z), int, and affine of a file that holds whole numbers from 0 on.

    Raises:
        InputError: if it holds something else.
    """
    values, scan = read_scan(path, dtype=None)
    values = whole_numbers(values, path)
    if values.min() < 0 or values.max() > 255:
        raise InputError(f"{path} has values from {values.min():g} to {values.max():g}, expected labels 0, 1, ... 255")
    return values.astype(np.int64), scan.affine


def atlas_on_grid(atlas: Atlas, to_atlas: np.ndarray, shape: Sequence[int], affine: np.ndarray) -> torch.Tensor:
    """The atlas sampled at the voxels of a scan, (C, *shape); outside of it is background.

    Args:
        atlas: what is sampled.
        to_atlas: 4 x 4, from the world of the scan to that of the atlas.
        shape: of the scan, three numbers.
        affine: of the scan, voxel to world.
    """
    voxels = voxel_grid(tuple(shape), np.linalg.inv(atlas.affine) @ to_atlas @ affine)
    values = sample(atlas.probabilities[1:], voxels, padding="zeros")
    return torch.cat([(1 - values.sum(0, keepdim=True)).clamp(min=0), values])


def align_atlas(
    atlas: Atlas, image: torch.Tensor, affine: np.ndarray, spacing_mm: float = 4.0
) -> tuple[np.ndarray, float]:
    """Affine map from the world of a skull-stripped scan to that of the atlas, whatever the contrast of the scan.

    It begins with the centers and the extents of brain and atlas along the axes of the world, and then makes the
    intensities within the classes as uniform as it can: the least within-class share of the variance, which is the
    correlation ratio with the classes as bins, background being one of them. Coarse to fine, by L-BFGS.

    Args:
        atlas: its class 0 is outside of the brain.
        image: (X, Y, Z), 0 outside the brain.
        affine: voxel to world.
        spacing_mm: about the distance of the voxels that are looked at.

    Returns:
        The map, 4 x 4, and what it minimizes: the share of the variance within classes. It was 0.13 to 0.16 for real
        T1w and FLAIR, 0.20 and 0.23 for T2w, and 0.20 to 0.33 for the same brains upside down, back to front, or with
        two axes exchanged.

    Raises:
        InputError: if the image has no brain.

    Reference:
        Roche et al., "The correlation ratio as a new similarity measure for multimodal image registration", MICCAI
        1998; Ashburner and Friston, "Unified segmentation", NeuroImage 2005, align tissue maps by mixture likelihoods.
    """
    if not (image != 0).any():
        raise InputError("the scan is 0 everywhere, expected a brain to align the atlas to")
    affine = np.round(affine, 4)  # the last bits of a header may send a search elsewhere; they hold nothing
    points, values = _sparse_points(image, affine, spacing_mm)
    center, spread = atlas.brain_moments
    own_center, own_spread = _moments(points, (values > 0.1 * values.max()).double())
    unit = 60.0  # mm; matrix and shift, changed by the same number, then move the rim of the brain alike
    matrix = torch.diag(spread / own_spread).requires_grad_()
    offset = (center / unit).requires_grad_()
    misfit = 1.0
    for maps, every in zip(atlas.blurred.values(), (8, 1), strict=True):
        some, seen = points[:, ::every] - own_center[:, None], values[::every]
        misfit = _minimize(
            lambda maps=maps, some=some, seen=seen: _within_class_variance(
                maps, matrix @ some + unit * offset[:, None], seen
            ),
            [matrix, offset],
        )
    to_atlas = np.eye(4)
    to_atlas[:3, :3] = matrix.detach().numpy()
    to_atlas[:3, 3] = (unit * offset - matrix @ own_center).detach().numpy()
    return to_atlas, misfit


def misfit_of(
    atlas: Atlas, image: torch.Tensor, affine: np.ndarray, to_atlas: np.ndarray, spacing_mm: float = 4.0
) -> float:
    """What :func:`align_atlas` minimizes, of a map that was found otherwise; arguments as there."""
    points, values = _sparse_points(image, np.round(affine, 4), spacing_mm)
    matrix, offset = torch.from_numpy(to_atlas[:3, :3]), torch.from_numpy(to_atlas[:3, 3:])
    return _within_class_variance(atlas.blurred[2.0], matrix @ points + offset, values).item()


def _sparse_points(image: torch.Tensor, affine: np.ndarray, spacing_mm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (3, N) in the world, around the brain and in it, and the smoothed image there, (N,), with unit sd."""
    steps = np.maximum(1, np.round(spacing_mm / nib.affines.voxel_sizes(affine))).astype(int)
    box = ndimage.find_objects((image != 0).numpy().astype(np.uint8))[0]
    lattice = np.diag([*steps, 1.0])
    lattice[:3, 3] = [s.start - 2 * k for s, k in zip(box, steps, strict=True)]
    shape = tuple(int(np.ceil((s.stop - s.start) / k)) + 4 for s, k in zip(box, steps, strict=True))
    smooth = torch.from_numpy(ndimage.gaussian_filter(image.numpy(), steps / 2.5))
    values = sample(smooth[None], voxel_grid(shape, lattice), padding="zeros").flatten().double()
    return voxel_grid(shape, affine @ lattice).flatten(1).double(), values / values.std()


def _moments(points: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean and sd along each axis, (3,), of points (3, N)."""
    mean = points @ weight / weight.sum()
    return mean, ((points - mean[:, None]).square() @ weight / weight.sum()).sqrt()


def _within_class_variance(atlas: Atlas, points: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Mean square of the values less the mean of their class, each point being in the classes by its probabilities."""
    inverse = torch.from_numpy(np.linalg.inv(atlas.affine))
    voxels = inverse[:3, :3] @ points + inverse[:3, 3:]
    p = sample(atlas.probabilities[1:], voxels.float(), padding="zeros").double()
    p = torch.cat([(1 - p.sum(0, keepdim=True)).clamp(min=0), p])
    return (p @ values.square() - (p @ values) ** 2 / (p.sum(1) + 1e-6)).sum() / values.numel()


def _minimize(loss_of: Callable[[], torch.Tensor], parameters: list[torch.Tensor]) -> float:
    """Change the parameters, and return the loss that they have then."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=30, tolerance_change=1e-5, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    optimizer.step(step)
    return loss_of().item()


class AtlasPriord(MapTransform):
    """Append an atlas to a skull-stripped scan, as a channel per class: the prior of a segmentation.

    The atlas is aligned to the scan by an affine map, whatever its contrast (:func:`align_atlas`), and
    sampled at its voxels. Inside the brain of the scan background is ruled out and a little of every other class is
    allowed; outside of it is background.

    Args:
        keys: scans (M, X, Y, Z), MetaTensors in RAS mm, exactly 0 outside the brain; the first channel is aligned.
        files: NIfTI file or files of the atlas, see :func:`open_atlas`; None for the ICBM template's.
        classes: how many the network has, background included.
        label_sigma_mm: if the file is one label map, the sd of the Gaussian that makes probabilities of it.
        blur_mm: the probabilities are smoothed by this.
        floor: share of the prior that all classes but background have everywhere in the brain, together.
        align: False if scan and atlas are in one space already.
        min_overlap: smallest Dice of the scan's brain and the aligned atlas's.

    Raises:
        InputError: as ``open_atlas``; if scan and atlas overlap less than ``min_overlap``.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        files: str | Sequence[str] | None = None,
        classes: int | None = None,
        label_sigma_mm: float | None = None,
        blur_mm: float = 0.0,
        floor: float = 0.05,
        align: bool = True,
        min_overlap: float = 0.7,
    ) -> None:
        super().__init__(keys)
        self.source = (files if files is None or isinstance(files, str) else tuple(files), classes, label_sigma_mm)
        self.blur_mm, self.floor, self.align, self.min_overlap = blur_mm, floor, align, min_overlap
        self._atlas: Atlas | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self._atlas is None:
            atlas = open_atlas(*self.source)
            self._atlas = atlas.smoothed(self.blur_mm) if self.blur_mm else atlas
        for key in self.key_iterator(d):
            d[key] = self._append(d[key])
        return d

    def _append(self, scan: MetaTensor) -> MetaTensor:
        image, affine = scan.as_tensor().float(), scan.affine.numpy()
        brain = torch.from_numpy(fill_holes((image != 0).numpy(force=True).any(0)))
        if not brain.any():
            raise InputError(f"{file_of(scan)} is 0 everywhere, expected a brain to align the atlas to")
        to_atlas = align_scan(self._atlas, scan) if self.align else np.eye(4)
        prior = atlas_on_grid(self._atlas, to_atlas, brain.shape, affine)
        covered = prior[0] < 0.5
        overlap = 2 * (brain & covered).sum().item() / (brain.sum() + covered.sum()).item()
        if overlap < self.min_overlap:
            raise InputError(
                f"{file_of(scan)}: its brain and the atlas have a Dice of {overlap:.2f}, expected {self.min_overlap:g} "
                "or more; is it skull-stripped, and is the orientation in its header right?"
            )
        tissue = prior[1:]
        tissue = (1 - self.floor) * tissue / tissue.sum(0).clamp(min=1e-3) + self.floor / len(tissue)
        prior = torch.cat([torch.zeros_like(prior[:1]), tissue / tissue.sum(0)])
        prior = torch.where(brain, prior, torch.eye(len(prior))[0][:, None, None, None])
        return MetaTensor(torch.cat([image, prior]), meta=scan.meta, applied_operations=scan.applied_operations)


def fit_mixture(
    values: torch.Tensor, log_prior: torch.Tensor, iterations: int = 20, variance_floor: float = 1e-4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit one Gaussian a class, with the prior of every voxel as its weights, by expectation maximization.

    Args:
        values: intensities, (voxels, images).
        log_prior: logarithm of the classes' prior probabilities, (voxels, classes).
        iterations: of expectation maximization, at least 1.
        variance_floor: smallest variance of a class.

    Returns:
        Means, (classes, images), and logarithms of unnormalized posteriors, (voxels, classes).

    Reference:
        Van Leemput et al., "Automated model-based tissue classification of MR images of the brain", IEEE TMI 1999,
        without its bias field.
    """
    # sums over a million voxels want all their digits, under autocast too
    with torch.autocast(values.device.type, enabled=False):
        posterior = log_prior.exp()
        for _ in range(iterations):
            mass = posterior.sum(0) + 1e-6
            mean = (posterior.T @ values) / mass[:, None]
            variance = (posterior.T @ values.square()) / mass[:, None] - mean.square()
            precision = 1 / variance.clamp(min=variance_floor)
            distance = values.square() @ precision.T - 2 * values @ (mean * precision).T
            distance = distance + (mean.square() * precision).sum(1)
            log_posterior = log_prior - 0.5 * distance + 0.5 * precision.log().sum(1)
            posterior = log_posterior.softmax(1)
    return mean, log_posterior


class MatchClassMeansd(MapTransform):
    """Map gray values piecewise linearly, so that the classes have the same mean intensities in every scan.

    Scanners differ in how bright gray matter is beside white matter, which no percentile evens out. The classes' means
    are those of a mixture of Gaussians with the atlas as prior (:func:`fit_mixture`), so no label is needed; it looks
    at every second millimeter. Each mean becomes its reference, lines are drawn between them and go on beyond the
    darkest and the brightest one, and what comes below 0 or above 1 becomes 0 or 1.

    Args:
        keys: scans with the probabilities of an aligned atlas, (M + classes, X, Y, Z), as of :class:`AtlasPriord`.
        sequences: names of the M images.
        means: sequence -> reference means of the classes but background, rising in the order of ``order``; sequences
            that are not named keep their gray values.
        spacing_mm: about the distance of the voxels that the mixture looks at.
        smallest_step: least difference of two neighboring means, of the scan's largest intensity.

    A scan whose means do not rise with the references keeps its gray values, and a warning says so.

    Raises:
        InputError: if there is not one reference for every class.
    """

    def __init__(
        self,
        keys: KeysCollection,
        sequences: Sequence[str],
        means: Mapping[str, Sequence[float]],
        spacing_mm: float = 2.0,
        smallest_step: float = 0.02,
    ) -> None:
        super().__init__(keys)
        self.sequences, self.means = list(sequences), dict(means)
        self.spacing_mm, self.smallest_step = spacing_mm, smallest_step

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            scan = d[key]
            matched = scan.as_tensor().clone()
            for index, sequence in enumerate(self.sequences):
                if sequence in self.means:
                    self._match(matched, index, self.means[sequence], scan)
            d[key] = MetaTensor(matched, meta=scan.meta, applied_operations=scan.applied_operations)
        return d

    def _match(self, matched: torch.Tensor, index: int, reference: Sequence[float], scan: MetaTensor) -> None:
        """Change one image of the scan in place."""
        prior = matched[len(self.sequences) :]
        brain = prior[0] < 0.5
        found = class_means(matched[index], prior, scan.affine.numpy(), self.spacing_mm)
        steps = [high - low for low, high in itertools.pairwise(found)]
        if len(found) != len(reference):
            raise InputError(f"class_means are {list(reference)}, expected one for each of {len(found)} classes")
        if min(steps) < self.smallest_step * float(matched[index].max()):
            logger.warning(
                "%s: the atlas finds the mean intensities %s in its classes as %s, expected some that rise, as in %s; "
                "its gray values stay as they are; is it another sequence? Name it (--sequences)",
                file_of(scan),
                ", ".join(f"{mean:.3g}" for mean in found),
                self.sequences[index],
                list(reference),
            )
            return
        matched[index][brain] = piecewise_linear(matched[index][brain], found, reference).clamp(0, 1)


def class_means(image: torch.Tensor, prior: torch.Tensor, affine: np.ndarray, spacing_mm: float = 2.0) -> list[float]:
    """Mean intensity of every class but background, of a mixture with the prior, without labels.

    Args:
        image: (X, Y, Z).
        prior: probabilities of the classes, (classes, X, Y, Z), background first.
        affine: voxel to world.
        spacing_mm: about the distance of the voxels that are looked at.
    """
    steps = np.maximum(1, np.round(spacing_mm / nib.affines.voxel_sizes(affine))).astype(int)
    every = tuple(slice(None, None, step) for step in steps)
    brain = prior[0][every] < 0.5
    log_prior = torch.log(prior[1:][(slice(None), *every)][:, brain].T.double() + 1e-30)
    mean, _ = fit_mixture(image[every][brain].double()[:, None], log_prior)
    return mean[:, 0].tolist()


class TemplateSpaced(MapTransform, InvertibleTransform):
    """Bring a skull-stripped scan, and what lies on its grid, to the space of the ICBM template, on a fixed grid.

    The scan is aligned by an affine map, whatever its contrast (:func:`align_atlas`); the others follow by the same
    map. The grid has axes to right, front and top, and the template's brain in its middle. The map from the world of
    the scan to that of the template stays in ``.meta["to_template"]``. ``Invertd`` leads back to the file's grid.

    Args:
        keys: the scan first, a MetaTensor (1, X, Y, Z) in RAS mm, exactly 0 outside the brain; then label maps and
            masks on its grid.
        spacing: voxel size of the grid, mm.
        shape: its number of voxels along each axis.
        mode: interpolation of each key.
        align: False takes scans as being in the template's space already.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        InputError: if the scan has no brain, or the same intensity all over it, or none of it comes to lie on the grid.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float] = (2.0, 2.0, 2.0),
        shape: Sequence[int] = (80, 96, 80),
        mode: str | Sequence[str] = "bilinear",
        align: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.align = align
        self.shape = tuple(int(n) for n in shape)
        self.spacing = tuple(float(mm) for mm in spacing)
        self.resample = SpatialResample(padding_mode="zeros", align_corners=True, dtype=torch.float32)
        self._affine: np.ndarray | None = None

    @property
    def affine(self) -> np.ndarray:
        """Voxel to world of the template, 4 x 4."""
        if self._affine is None:
            self._affine = template_grid(self.spacing, self.shape)
        return self._affine

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        scan = d[self.first_key(d)]
        brain = scan.as_tensor()[scan.as_tensor() != 0]
        if len(brain) == 0:
            raise InputError(f"{file_of(scan)} is 0 everywhere, expected a brain to bring to the template")
        if brain.min() == brain.max():  # interpolation would hide it from what comes after
            raise InputError(
                f"{file_of(scan)} is {brain.max():g} everywhere in the brain, expected different intensities"
            )
        to_template = align_scan(icbm_atlas(), scan) if self.align else np.eye(4)
        for key, mode in self.key_iterator(d, self.mode):
            original = d[key].affine.numpy()
            moved = MetaTensor(d[key].as_tensor(), meta=d[key].meta, applied_operations=d[key].applied_operations)
            moved.affine = torch.from_numpy(to_template @ original)
            self.push_transform(moved, extra_info={"affine": original.tolist()})
            d[key] = self.resample(moved, dst_affine=self.affine, spatial_size=self.shape, mode=mode)
            d[key].meta["to_template"] = torch.from_numpy(to_template)
        if not d[self.first_key(d)].any():
            where = "after the affine alignment" if self.align else "with align False"
            raise InputError(
                f"{file_of(scan)}: its brain lies outside of the template's space, expected it there {where}"
            )
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            back = self.resample.inverse(d[key])
            info = self.pop_transform(back)["extra_info"]
            back.affine = torch.tensor(info["affine"], dtype=torch.float64)
            d[key] = back
        return d


def template_grid(spacing: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Affine of a grid (right, front, top) with the brain of the ICBM template in its middle.

    Args:
        spacing: voxel size, mm.
        shape: number of voxels along each axis.
    """
    atlas = icbm_atlas()
    box = ndimage.find_objects((atlas.probabilities[0] < 0.5).numpy().astype(np.uint8))[0]
    middle = nib.affines.apply_affine(atlas.affine, [(s.start + s.stop - 1) / 2 for s in box])
    grid = np.diag([*spacing, 1.0])
    grid[:3, 3] = np.round(middle) - np.asarray(spacing) * (np.asarray(shape) - 1) / 2
    return grid


def align_scan(atlas: Atlas, scan: MetaTensor) -> np.ndarray:
    """Map from the world of a skull-stripped scan (C, X, Y, Z) to that of the atlas; a warning if they do not fit."""
    to_atlas, misfit = align_atlas(atlas, scan.as_tensor()[0].float(), scan.affine.numpy())
    if misfit > MAX_MISFIT:
        logger.warning(
            "%s: %.0f %% of the variance is within the classes of the aligned atlas, expected at most %.0f; is the "
            "orientation in its header right?",
            file_of(scan),
            100 * misfit,
            100 * MAX_MISFIT,
        )
    return to_atlas
