"""One segmentation of two visits: a lesion has changed where maps and gray values both speak for it.

For each voxel four things may be so: no lesion, a lesion at both visits, a new one, or one that is gone. Each has a
score, and the highest wins. With ``a`` the evidence of a map, the log odds of lesion above its threshold, and ``z`` the
difference of the matched gray values in units of its noise, towards lesion:

    no lesion    0
    stable       a_1 + a_2
    new          a_2 + g(z) - RARITY
    gone         a_1 + g(-z) - RARITY

``g(z) = m z - m^2 / 2`` is the log likelihood ratio of a difference of the contrast of a lesion, ``m``, against none.
Where the gray values agree, the mean of both maps decides for both visits at once. All terms have a limit, so that
neither a network that is too sure nor a vessel has the last word.

The sources of its parts:

- subtraction of registered visits: Battaglini et al., "Automated identification of brain new lesions in multiple
  sclerosis using subtraction images", Journal of Magnetic Resonance Imaging 2014;
- one model of all visits: Elliott et al., "Temporally consistent probabilistic detection of new multiple sclerosis
  lesions in brain MRI", IEEE Transactions on Medical Imaging 2013;
- the test of a difference against that of tissue without change: Schmidt et al., "Automated segmentation of changes in
  FLAIR-hyperintense white matter lesions in multiple sclerosis on serial magnetic resonance imaging", NeuroImage:
  Clinical 2019;
- latent variables that visits share: Cerri et al., "An open-source tool for longitudinal whole-brain and white matter
  lesion segmentation", NeuroImage: Clinical 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.special import logit

from common.errors import InputError
from common.transforms.intensity import piecewise_linear

LIMIT = 3.0  # of the evidence of a map, in log odds
GRAY_LIMIT = 4.0  # of the evidence of the gray values
MAX_CONTRAST = 4.0  # of a lesion, in units of noise
RARITY = 3.0  # log odds against change
SMOOTH_MM = 0.8  # sd of the blur of the difference
SHADING_MM = 20.0  # sd of the blur by which shading is told from change
QUANTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)  # of tissue, by which gray values are matched
NEAR_MM = 3.0  # around lesions: neither tissue that tells the noise, nor that beside which they are bright
STEEPNESS = 12  # classes of gradient, in each of which noise is measured
MIN_TISSUE_ML = 100.0
NONE, STABLE, NEW, GONE = range(4)


@dataclass(frozen=True)
class Joint:
    """What two visits say together; arrays (X, Y, Z).

    Attributes:
        state: uint8, one of NONE, STABLE, NEW, GONE.
        z: difference of the matched gray values, the later less the earlier, in units of its noise, float32.
        images: of both visits, matched, float32.
        contrast: of lesions beside the tissue around them, in units of the median noise; below 0 for dark ones, 0 where
            no map shows a lesion.
        shading: sd of the log ratio of the shading of both visits.
        noise: median noise of the difference, as a share of the median of tissue.
    """

    state: np.ndarray
    z: np.ndarray
    images: tuple[np.ndarray, np.ndarray]
    contrast: float
    shading: float
    noise: float

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Lesions at the earlier and at the later visit, bool."""
        stable = self.state == STABLE
        return stable | (self.state == GONE), stable | (self.state == NEW)


def log_odds(probability: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Evidence of a map: log odds of lesion, 0 at the threshold, within plus and minus :data:`LIMIT`.

    Args:
        probability: 0 to 1; of a mask its share of a voxel.
        threshold: above 0 and below 1.
    """
    return np.clip(logit(np.clip(probability, 0, 1)) - logit(threshold), -LIMIT, LIMIT).astype(np.float32)


def segment(
    images: tuple[np.ndarray, np.ndarray],
    evidence: tuple[np.ndarray, np.ndarray],
    brain: np.ndarray,
    spacing: np.ndarray,
    min_change_mm3: float,
) -> Joint:
    """The joint segmentation of two visits on one grid.

    Args:
        images: gray values of the earlier and the later visit, (X, Y, Z), in any unit, 0 outside of the brain.
        evidence: of :func:`log_odds`.
        brain: bool, what both visits show.
        spacing: voxel size, mm.
        min_change_mm3: connected changes that are smaller are none.

    Raises:
        InputError: if there is too little tissue to match the gray values by.
    """
    likely = (evidence[0] > 0) | (evidence[1] > 0)
    away = ndimage.distance_transform_edt(~likely, sampling=spacing) if likely.any() else np.full(brain.shape, np.inf)
    tissue = brain & (away > NEAR_MM)
    first, second, shading = match_gray_values(images, brain, tissue, spacing)
    blurred = [ndimage.gaussian_filter(image, SMOOTH_MM / spacing) for image in (first, second)]
    difference = blurred[1] - blurred[0]
    noise = noise_of(difference, (blurred[0] + blurred[1]) / 2, tissue, spacing)
    z = np.where(brain, difference / noise, 0).astype(np.float32)
    contrast = _contrast(first, second, evidence, brain, away)
    state = states(evidence, z, contrast / noise)
    state[~brain] = NONE
    state = without_small(state, evidence, min_change_mm3, spacing)
    usual = float(np.median(noise[tissue]))
    share = usual / float(np.median(first[tissue]))
    return Joint(state, z, (first, second), contrast / usual, shading, noise=share)


def states(evidence: tuple[np.ndarray, np.ndarray], z: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """The state of each voxel with the highest score, uint8; see the module.

    Args:
        evidence: of both maps, within :data:`LIMIT`.
        z: difference of the gray values in units of noise.
        contrast: of a lesion in units of noise, of either sign.
    """
    towards = np.sign(contrast) * z
    m = np.minimum(np.abs(contrast), MAX_CONTRAST)
    new, gone = (np.clip(m * d - m**2 / 2, None, GRAY_LIMIT) for d in (towards, -towards))
    a, b = evidence
    scores = np.stack([np.zeros_like(a), a + b, b + new - RARITY, a + gone - RARITY])
    return scores.argmax(0).astype(np.uint8)


def match_gray_values(
    images: tuple[np.ndarray, np.ndarray], brain: np.ndarray, tissue: np.ndarray, spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both visits with the shading and the gray values of their mean.

    Shading is the log ratio of both, blurred over the tissue; half of it is taken from either. Gray values are matched
    by the quantiles of the tissue; above and below these the outermost lines go on.

    Args:
        images: (X, Y, Z) each.
        brain: bool.
        tissue: bool, the part of it without lesions.
        spacing: voxel size, mm.

    Returns:
        Both, 0 outside of the brain, in units of the mean of their medians; and the sd of the log ratio of the shading.

    Raises:
        InputError: if there is less than :data:`MIN_TISSUE_ML` of tissue, or a visit has one gray value in most of it.
    """
    volume_ml = tissue.sum() * np.prod(spacing) / 1000
    if volume_ml < MIN_TISSUE_ML:
        raise InputError(
            f"both visits share {volume_ml:.0f} ml of brain without lesions, expected {MIN_TISSUE_ML:g} ml or more"
        )
    scaled = [image / max(float(np.median(image[tissue])), 1e-9) for image in images]
    even = tissue & (scaled[0] > 0.4) & (scaled[1] > 0.4)  # dark fluid has no ratio
    ratio = np.zeros(brain.shape, np.float32)
    ratio[even] = np.clip(np.log(scaled[1][even] / scaled[0][even]), -0.5, 0.5)
    ratio[even] -= np.median(ratio[even])
    sigma = SHADING_MM / spacing
    weight = ndimage.gaussian_filter(even.astype(np.float32), sigma)
    shading = ndimage.gaussian_filter(ratio, sigma) / np.maximum(weight, 1e-3)
    scaled = [scaled[0] * np.exp(shading / 2), scaled[1] * np.exp(-shading / 2)]
    quantiles = [np.percentile(image[tissue], QUANTILES) for image in scaled]
    if any((np.diff(q) <= 0).any() for q in quantiles):
        raise InputError("a visit has few gray values in the brain, expected an image with contrast")
    targets = (quantiles[0] + quantiles[1]) / 2
    first, second = (
        piecewise_linear(torch.from_numpy(np.ascontiguousarray(image, np.float32)), q, targets).numpy() * brain
        for image, q in zip(scaled, quantiles, strict=True)
    )
    return first, second, float(shading[even].std())


def noise_of(difference: np.ndarray, mean: np.ndarray, tissue: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Sd of the difference of two visits without change, at every voxel.

    Where gray values are steep, a small error of the alignment makes a large difference. So the noise is measured in
    classes of the gradient, by the median of the absolute difference, which few changed voxels do not move, and read
    off between them. It does not fall with the gradient.

    Args:
        difference: (X, Y, Z).
        mean: of both visits, whose gradient counts.
        tissue: bool, where noise is measured.
        spacing: voxel size, mm.
    """
    gradient = np.sqrt(sum(np.square(g) for g in np.gradient(mean, *spacing)))
    edges = np.percentile(gradient[tissue], np.linspace(0, 100, STEEPNESS + 1))
    classes = np.clip(np.searchsorted(edges, gradient[tissue], side="right") - 1, 0, STEEPNESS - 1)
    inside = np.abs(difference[tissue])
    sd = 1.4826 * np.array([np.median(inside[classes == k]) for k in range(STEEPNESS)])
    at = [np.median(gradient[tissue][classes == k]) for k in range(STEEPNESS)]
    sd = np.maximum.accumulate(np.maximum(sd, 1e-3 * np.abs(mean[tissue]).mean()))
    return np.interp(gradient, at, sd).astype(np.float32)


def without_small(
    state: np.ndarray, evidence: tuple[np.ndarray, np.ndarray], min_change_mm3: float, spacing: np.ndarray
) -> np.ndarray:
    """States whose connected changes have a size; smaller ones become what both maps say together."""
    out = state.copy()
    together = np.where(evidence[0] + evidence[1] > 0, STABLE, NONE)
    for change in (NEW, GONE):
        parts, count = ndimage.label(state == change, np.ones((3, 3, 3)))
        if count:
            small = np.bincount(parts.ravel()) * np.prod(spacing) < min_change_mm3
            small[0] = False
            out[small[parts]] = together[small[parts]]
    return out


def _contrast(
    first: np.ndarray, second: np.ndarray, evidence: tuple[np.ndarray, np.ndarray], brain: np.ndarray, away: np.ndarray
) -> float:
    """Median of lesions less that of the tissue near them, in the unit of the images; 0 without lesions."""
    lesions = [(e > 0) & brain for e in evidence]
    beside = brain & (away > NEAR_MM) & (away <= 2 * NEAR_MM)
    if not any(mask.any() for mask in lesions) or not beside.any():
        return 0.0
    inside = np.concatenate([image[mask] for image, mask in zip((first, second), lesions, strict=True)])
    around = np.concatenate([image[beside] for image in (first, second)])
    return float(np.median(inside) - np.median(around))
