"""The classical way with the same prior: a Gaussian for every class, by expectation maximization, scan by scan."""

from __future__ import annotations

import torch
from torch import nn

from .mixture import fit_mixture
from .network import PRIOR_FLOOR


class AtlasOnly(nn.Module):
    """Logarithm of the prior: the atlas's own segmentation, without a look at the scan.

    Args:
        classes: of the atlas, background included.
    """

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        """(B, classes, *spatial) of scans (B, images + classes, *spatial)."""
        return torch.log(scan[:, -self.classes :] + PRIOR_FLOOR)


class AtlasMixture(AtlasOnly):
    """Mixture of one Gaussian a class with the atlas as its spatial prior, fitted to each scan: ``fit_mixture``.

    Args:
        classes: of the atlas, background included; background has no Gaussian, it lies outside the brain.
        iterations: of expectation maximization.
        variance_floor: smallest variance of a class.
    """

    def __init__(self, classes: int = 4, iterations: int = 20, variance_floor: float = 1e-4) -> None:
        super().__init__(classes)
        self.iterations, self.variance_floor = iterations, variance_floor

    def forward(self, scan: torch.Tensor) -> torch.Tensor:
        """Logarithms of unnormalized posteriors, (B, classes, *spatial)."""
        out = super().forward(scan)
        images = scan.shape[1] - self.classes
        for volume, result in zip(scan, out, strict=True):
            brain = (volume[images] < 0.5) & (volume[images:].sum(0) > 0.5)
            x = volume[:images, brain].T  # (voxels, images)
            log_prior = torch.log(volume[images + 1 :, brain].T + PRIOR_FLOOR)  # (voxels, classes - 1)
            _, log_p = fit_mixture(x, log_prior, self.iterations, self.variance_floor)
            result[1:, brain] = log_p.T.to(result)
        return out
