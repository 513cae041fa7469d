"""Baseline: registration without learning, each pair by itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import optional_import
from torch import nn

from common.errors import InputError
from common.geometry import compose, invert_displacement, warp


class ClassicalRegistration(nn.Module):
    """Symmetric diffeomorphic registration (SyN) of one pair after the other, by dipy, on the CPU.

    Args:
        start: network whose displacement is where the search begins, see
            :class:`deepatlas_joint.network.RegistrationNetwork`; None begins without one.
        iterations: at most so many on each level of the pyramid, the coarsest first.
        radius: of the windows of local correlation, voxels.

    Raises:
        InputError: if dipy is not installed.

    Reference:
        Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Medical Image Analysis 2008.
    """

    def __init__(
        self, start: nn.Module | None = None, iterations: Sequence[int] = (100, 100, 25), radius: int = 3
    ) -> None:
        super().__init__()
        self.start, self.iterations, self.radius = start, list(iterations), radius
        self.search, found = optional_import("dipy.align.imwarp", name="SymmetricDiffeomorphicRegistration")
        self.metric, _ = optional_import("dipy.align.metrics", name="CCMetric")
        if not found:
            raise InputError("dipy is not installed, expected it for registration without a network; pip install dipy")
        logging.getLogger("dipy").setLevel(logging.WARNING)  # a line per level and pair

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """Both ways, as :meth:`deepatlas_joint.refinement.PairRegistration.forward` gives them, of (B, 2, X, Y, Z)."""
        moving, fixed = pair[:, :1], pair[:, 1:]
        start = torch.zeros_like(pair[:, :1]).expand(-1, 3, -1, -1, -1) if self.start is None else self.start(pair)
        moving = warp(moving, start, padding="zeros")
        found = [self._register(m[0], f[0]) for m, f in zip(moving, fixed, strict=True)]
        onto_moving, onto_fixed = torch.stack(found).to(pair.device).split(3, dim=1)
        if self.start is None:
            return torch.cat([onto_moving, onto_fixed], dim=1)
        return torch.cat([compose(onto_moving, start), compose(invert_displacement(start), onto_fixed)], dim=1)

    def _register(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """(6, X, Y, Z), both ways, of one pair of images (X, Y, Z)."""
        search = self.search(self.metric(3, radius=self.radius), level_iters=self.iterations)
        found = search.optimize(*(image.detach().cpu().numpy().astype(np.float32) for image in (fixed, moving)))
        ways = np.concatenate([found.get_forward_field(), found.get_backward_field()], axis=-1)
        return torch.from_numpy(np.moveaxis(ways, -1, 0).astype(np.float32))
