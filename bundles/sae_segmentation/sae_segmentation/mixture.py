"""A mixture of Gaussians with an atlas as its prior: means of the classes without labels, gray values made alike."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from common.errors import InputError
from common.transforms import piecewise_linear
from common.transforms.io import file_of

logger = logging.getLogger(__name__)


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
        Means, (classes, images), and logarithms of unnormalized posteriors, (voxels, classes), both in float64.

    Reference:
        Van Leemput et al., "Automated model-based tissue classification of MR images of the brain", IEEE TMI 1999,
        without its bias field.
    """
    # in float32 sums over a million voxels lose digits, other ones with every number of threads
    values, log_prior = values.double(), log_prior.double()
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
    mean, _ = fit_mixture(image[every][brain][:, None], log_prior)
    return mean[:, 0].tolist()


class MatchClassMeansd(MapTransform):
    """Map gray values piecewise linearly, so that the classes have the same mean intensities in every scan.

    Scanners differ in how bright gray matter is beside white matter, which no percentile evens out. The classes' means
    are those of a mixture of Gaussians with the atlas as prior (:func:`fit_mixture`), so no label is needed; it looks
    at every second millimeter. Each mean becomes its reference, lines are drawn between them and go on beyond the
    darkest and the brightest one, and what comes below 0 or above 1 becomes 0 or 1.

    Args:
        keys: scans with the probabilities of an aligned atlas, (M + classes, X, Y, Z), as of ``AtlasPriord``.
        sequences: names of the M images.
        means: sequence -> reference means of the classes but background, rising in the order of ``order``; sequences
            that are not named keep their gray values.
        spacing_mm: about the distance of the voxels that the mixture looks at.
        smallest_step: least difference of two neighboring means, of the scan's largest intensity.

    A scan whose means do not rise with the references keeps its gray values, and a warning says so.

    Raises:
        InputError: if there is not one reference for every class, or references do not rise.
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
        for sequence, reference in self.means.items():
            if any(high <= low for low, high in itertools.pairwise(reference)):
                raise InputError(f"class_means of {sequence} are {list(reference)}, expected means that rise")
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
