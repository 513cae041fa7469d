"""Refinement of each pair, by itself and without labels: one field, of which both ways follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import interpolate

from common.errors import InputError
from common.geometry import halfway, warp

from .fields import from_halfway
from .filters import gaussian
from .loss import local_correlation

FIRST_DECAY, SECOND_DECAY, TINY = 0.9, 0.999, 1e-12  # of Adam


class PairRegistration(nn.Module):
    """Both ways between two images: those of the network, or, refined, one field and its inverse.

    The two images meet halfway. At every point p of the space in between, ``d(p)`` is half of the way: p shows the
    moving image at ``p + d(p)`` and the fixed one at ``p - d(p)``, so that d belongs to both in the same way, and the
    way back is that of -d. It begins as half of what the network says, mean of both directions. In each step the
    gradient of the local correlation of the two shown images is taken by the images' own gradients, its scale evened
    out by Adam and its direction smoothed; the largest step is ``rate`` voxels, and after it the whole field is
    smoothed. Exchange the images, and the result is exchanged.

    Args:
        network: pair to displacement, see :class:`deepatlas_joint.network.RegistrationNetwork`.
        refine: False, or "false" from a command line, gives what the network says of the pair, and of the pair
            exchanged.
        steps: on grids of 1/2, 1, or of 1/4, 1/2, 1, ... of the size.
        window: of the local correlation, voxels, odd.
        rate: length of the largest step, voxels of its grid.
        step_sigma: of the Gaussian that smooths a step, voxels of its grid.
        field_sigma: of the Gaussian that smooths the field after each step, likewise: how rough it may become.

    Raises:
        InputError: if ``refine`` is neither True nor False.

    Reference:
        Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Medical Image Analysis 2008;
        there the ways of the two images to the middle are two fields.
    """

    def __init__(
        self,
        network: nn.Module,
        refine: bool | str = True,
        steps: Sequence[int] = (40, 12),
        window: int = 7,
        rate: float = 0.5,
        step_sigma: float = 1.0,
        field_sigma: float = 0.65,
    ) -> None:
        super().__init__()
        if str(refine).lower() not in ("true", "false"):
            raise InputError(f"refine is {refine!r}, expected True or False")
        self.network, self.refine = network, str(refine).lower() == "true"
        self.steps, self.window = list(steps), window
        self.rate, self.step_sigma, self.field_sigma = rate, step_sigma, field_sigma

    @torch.no_grad()
    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """(B, 6, X, Y, Z) in voxels: displacement of the fixed onto the moving image, and of the moving onto the fixed.

        Args:
            pair: (B, 2, X, Y, Z), moving and fixed image.
        """
        pair = pair.as_subclass(torch.Tensor)  # what is known of the file slows every operation
        ways = [self.network(images).float() for images in (pair, pair.flip(1))]
        if self.refine:
            half = self._refined(ways, pair.float())
            ways = [from_halfway(half), from_halfway(-half)]
        return torch.cat(ways, dim=1)

    def _refined(self, ways: Sequence[torch.Tensor], pair: torch.Tensor) -> torch.Tensor:
        """The field of half of the way, (B, 3, X, Y, Z)."""
        half = None
        for level, steps in enumerate(self.steps):
            factor = 2 ** (len(self.steps) - 1 - level)
            shape = [-(-n // factor) for n in pair.shape[2:]]
            images = pair if factor == 1 else _resized(gaussian(pair, factor / 3), shape)
            if half is None:
                there, back = (halfway(_field_resized(way, shape)) for way in ways)
                half = (there - back) / 2
            half = self._searched(_field_resized(half, shape), images, steps)
        return half

    def _searched(self, half: torch.Tensor, images: torch.Tensor, steps: int) -> torch.Tensor:
        """The field after some steps on one grid, (B, 3, X, Y, Z)."""
        first, second = torch.zeros_like(half), torch.zeros_like(half)
        for step in range(1, steps + 1):
            gradient = self._gradient(half, images)
            first.lerp_(gradient, 1 - FIRST_DECAY)
            second.lerp_(gradient.square(), 1 - SECOND_DECAY)
            scale = (second / (1 - SECOND_DECAY**step)).sqrt() + TINY
            move = gaussian(first / (1 - FIRST_DECAY**step) / scale, self.step_sigma)
            longest = move.square().sum(1).amax((1, 2, 3)).sqrt().clamp(min=TINY)
            move = move * (-self.rate / longest).reshape(-1, 1, 1, 1, 1)
            half = gaussian(_moved(half, move), self.field_sigma)
        return half

    def _gradient(self, half: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Of the local correlation, by a displacement of the moving image against the fixed one, (B, 3, X, Y, Z)."""
        shown = [warp(images[:, i : i + 1], way, padding="zeros") for i, way in enumerate((half, -half))]
        _, by_image = local_correlation(*shown, self.window)
        slopes = (torch.cat(torch.gradient(image, dim=(2, 3, 4)), dim=1) for image in shown)
        moving, fixed = (slope * by for slope, by in zip(slopes, by_image, strict=True))
        return moving - fixed


def _moved(half: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The field of half of the way after a step s of the moving image and its opposite of the fixed one.

    The images are now shown at ``p + s + d(p + s)`` and ``p - s - d(p - s)``: halfway between the two is no longer p
    but ``p + D s``, with the derivative D of d, and there half of the way is ``d + s``. So at p it is
    ``d + s - D D s``, to first order in s. Where ``d + s`` alone would fold, this does not: in one dimension the slope
    a, which has to be below 1, grows by ``(1 - aa) b`` and not by b.
    """
    slopes = torch.gradient(half, dim=(2, 3, 4))
    change = step
    for _ in range(2):
        change = sum(slope * change[:, axis : axis + 1] for axis, slope in enumerate(slopes))
    return half + step - change


def _resized(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """On another number of voxels over the same space, from the center of the first to that of the last one."""
    return interpolate(volume, size=list(shape), mode="trilinear", align_corners=True)


def _field_resized(field: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A displacement likewise, in voxels of the new grid."""
    if list(field.shape[2:]) == list(shape):
        return field
    scale = [(new - 1) / max(old - 1, 1) for new, old in zip(shape, field.shape[2:], strict=True)]
    return _resized(field, shape) * field.new_tensor(scale).reshape(1, 3, 1, 1, 1)
