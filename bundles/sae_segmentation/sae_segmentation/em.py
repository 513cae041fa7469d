"""The classical way with the same prior: a Gaussian for every class, by expectation maximization, scan by scan."""

from __future__ import annotations

import torch
from torch import nn

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
    """Mixture of one Gaussian a class with the atlas as its spatial prior, fitted to each scan.

    Args:
        classes: of the atlas, background included; background has no Gaussian, it lies outside the brain.
        iterations: of expectation maximization.
        variance_floor: smallest variance of a class.

    Reference:
        Van Leemput et al., "Automated model-based tissue classification of MR images of the brain", IEEE TMI 1999,
        without its bias field.
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
            prior = volume[images + 1 :, brain].T  # (voxels, classes - 1)
            posterior = prior
            for _ in range(self.iterations):
                mass = posterior.sum(0) + 1e-6
                mean = (posterior.T @ x) / mass[:, None]
                variance = (posterior.T @ x.square()) / mass[:, None] - mean.square()
                precision = 1 / variance.clamp(min=self.variance_floor)
                distance = x.square() @ precision.T - 2 * x @ (mean * precision).T + (mean.square() * precision).sum(1)
                log_p = torch.log(prior + PRIOR_FLOOR) - 0.5 * distance + 0.5 * precision.log().sum(1)
                posterior = log_p.softmax(1)
            result[1:, brain] = log_p.T
        return out
