"""Where the brain is, and MR intensities made comparable inside it."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from ..errors import InputError
from ..scans import as_mask, foreground, grid_difference, voxel_ml
from ..sequences import contrast_difference
from .io import file_of
from .plain import plain

logger = logging.getLogger(__name__)


class BrainMaskd(MapTransform):
    """Set images to 0 outside the brain and keep the mask under ``mask_key``.

    The brain is what the item ``mask_key`` (1, *spatial) says, a mask of 0 and one other value, or cut at half of its
    largest, see :func:`common.scans.as_mask`. Without that item it is where any channel of the image is not background,
    see :func:`common.scans.foreground`, with the holes inside: fluid may be 0 in a skull-stripped image. The mask
    becomes a MetaTensor (1, *spatial), float32, of 0 and 1.

    Args:
        keys: images (C, *spatial) on one grid; without a mask item the first one defines it.
        mask_key: item of the mask.
        skull_stripped_share: warn if the brain takes more than this share of the voxels.
        largest_ratio: without a mask item, of the voxels that are not 0 in one sequence to those in another.
        largest_brain_ml: warn if the brain is larger than this.
        largest_negative_share: of the voxels of the brain that may be below 0, by interpolation, where what follows
            takes 0 for dark; None for what takes any intensities, z-scored ones too.
        largest_empty_share: warn if more than this share of a mask item lies where all channels are 0.
        sequences: of the channels; warn if one looks like another, see :func:`common.sequences.contrast_difference`.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        InputError: if the mask is empty or lies on another grid than the image, or a channel is 0 or
            constant inside it, or too much of it below 0; without a mask item, if no voxel is 0, a background has
            another value, or sequences differ in what is not 0, so that not all of them are skull-stripped.
    """

    def __init__(
        self,
        keys: str | Sequence[str] = "image",
        mask_key: str = "brain_mask",
        skull_stripped_share: float = 0.95,
        largest_ratio: float = 1.5,
        largest_brain_ml: float = 2400.0,
        largest_negative_share: float | None = 0.01,
        largest_empty_share: float = 0.2,
        sequences: Sequence[str] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.largest_empty_share = largest_empty_share
        self.sequences = sequences
        self.mask_key = mask_key
        self.skull_stripped_share = skull_stripped_share
        self.largest_ratio = largest_ratio
        self.largest_brain_ml = largest_brain_ml
        self.largest_negative_share = largest_negative_share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        made = self.mask_key not in d
        for number, key in enumerate(self.key_iterator(d)):
            image = d[key]
            d[self.mask_key] = self._checked(self._nonzero(image) if made and number == 0 else d[self.mask_key], image)
            if number == 0:
                self._check_size(d[self.mask_key], image, "are not 0" if made else "are in the brain mask")
            if not made:
                self._check_place(d[self.mask_key], image)
            d[key] = image * d[self.mask_key].as_tensor()
            self._check_inside(image, d[key])
            self._check_contrast(image, d[self.mask_key])
        return d

    def _check_inside(self, image: MetaTensor, masked: MetaTensor) -> None:
        """An image that the mask empties would pass for a missing sequence; interpolation would hide a constant."""
        for index, (whole, inside) in enumerate(zip(image.as_tensor(), masked.as_tensor(), strict=True)):
            if not whole.any():
                continue
            values = inside[inside != 0]
            if not len(values) or values.min() == values.max():
                value = f"{values[0].item():g}" if len(values) else "0"
                raise InputError(
                    f"{file_of(image)}: channel {index} is {value} everywhere in the brain, expected contrast"
                )
            negative = (values < 0).float().mean().item()
            if self.largest_negative_share is not None and negative > self.largest_negative_share:
                raise InputError(
                    f"{file_of(image)}: channel {index} is below 0 in {100 * negative:.0f} % of the brain, expected "
                    "intensities from 0 up, not z-scored ones"
                )

    def _check_contrast(self, image: MetaTensor, mask: MetaTensor) -> None:
        channels, brain = (tensor.as_tensor().numpy(force=True) for tensor in (image, mask))
        for index, (channel, sequence) in enumerate(zip(channels, self.sequences, strict=False)):
            found = contrast_difference(channel, brain[0] > 0, sequence)
            if found:
                logger.warning("%s: channel %d has %s; is it another sequence?", file_of(image), index, found)

    def _nonzero(self, image: MetaTensor) -> MetaTensor:
        channels = image.as_tensor().numpy(force=True)
        nonzero = np.stack([foreground(channel) for channel in channels])
        self._check_background(channels, nonzero, image)
        self._check_extents(nonzero, image)
        if nonzero.any(0).all():
            raise InputError(
                f"{file_of(image)}: no voxel is 0, expected a skull-stripped image, 0 outside the brain, or a brain "
                "mask"
            )
        return MetaTensor(torch.from_numpy(fill_holes(nonzero.any(0))[None]).to(image.device), meta=image.meta)

    def _check_size(self, mask: MetaTensor, image: MetaTensor, what: str) -> None:
        """More than a brain is no brain, whoever says so."""
        share = mask.mean().item()
        if share > self.skull_stripped_share:
            logger.warning(
                "%s: %.0f %% of the voxels %s, expected a skull-stripped image", file_of(image), 100 * share, what
            )
        brain_ml = share * mask.numel() * voxel_ml(image.affine)
        if brain_ml > self.largest_brain_ml:
            logger.warning(
                "%s: %.1f l %s, expected a brain of up to %.1f l: strip the skull, or give a brain mask",
                file_of(image),
                brain_ml / 1000,
                what,
                self.largest_brain_ml / 1000,
            )

    def _check_place(self, mask: MetaTensor, image: MetaTensor) -> None:
        """A mask of another person, or moved, reaches into the air around a skull-stripped head."""
        brain = mask.as_tensor() > 0
        empty = (~image.as_tensor().any(0, keepdim=True) & brain).sum() / brain.sum()
        if empty > self.largest_empty_share:
            logger.warning(
                "%s: in %.0f %% of the brain mask the scan is 0, expected less than %.0f %%; is it its mask?",
                file_of(image),
                100 * empty,
                100 * self.largest_empty_share,
            )

    def _check_background(self, channels: np.ndarray, nonzero: np.ndarray, image: MetaTensor) -> None:
        """A corner whose value, not 0, a quarter of the voxels have, is a background that would pass for brain."""
        for channel, inside in zip(channels, nonzero, strict=True):
            ends = np.ix_(*((0, -1),) * channel.ndim)
            for value in np.unique(channel[ends][inside[ends]]):
                share = np.mean(channel == value)
                if share > 0.25 and not inside.all():
                    raise InputError(
                        f"{file_of(image)}: {100 * share:.0f} % of the voxels are {value:g}, corners among them, "
                        "expected 0 outside the brain"
                    )

    def _check_extents(self, nonzero: np.ndarray, image: MetaTensor) -> None:
        """One sequence with its skull among others without would make a head of the brain."""
        counts = {index: int(np.count_nonzero(channel)) for index, channel in enumerate(nonzero) if channel.any()}
        if counts and max(counts.values()) > self.largest_ratio * min(counts.values()):
            most, least = max(counts, key=counts.get), min(counts, key=counts.get)
            raise InputError(
                f"{file_of(image)}: channel {most} is not 0 in {counts[most] / counts[least]:.1f} times as many voxels "
                f"as channel {least}, expected all sequences skull-stripped, or a brain mask"
            )

    def _checked(self, mask: MetaTensor, image: MetaTensor) -> MetaTensor:
        for name, item in ((self.mask_key, mask), ("image", image)):
            if not isinstance(item, MetaTensor):
                raise ValueError(f"{name} is a {type(item).__name__}, expected a MetaTensor: load it before BrainMaskd")
        if len(mask) != 1:
            raise InputError(f"the brain mask of {file_of(image)} has {len(mask)} channels, expected 1")
        difference = grid_difference(mask.shape[1:], mask.affine, image.shape[1:], image.affine)
        if difference:
            raise InputError(
                f"{file_of(image)} and {file_of(mask)} have {difference}, expected image and mask on one grid"
            )
        mask = as_mask(mask.float(), f"the brain mask {file_of(mask)} of {file_of(image)}").float()
        if not mask.any():
            raise InputError(f"the brain mask of {file_of(image)} is empty, expected a voxel that is not 0")
        return mask


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """The mask and what it encloses: all that no path along faces of voxels outside it joins to the margin.

    Args:
        mask: (X, Y, Z), bool.
    """
    box = next(iter(ndimage.find_objects(mask.view(np.uint8))), None)
    if box is None:
        return mask
    outside, _ = ndimage.label(np.pad(~mask[box], 1, constant_values=True))
    filled = mask.copy()
    filled[box] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled


def scale_brain_intensity(
    image: torch.Tensor,
    mask: torch.Tensor,
    percentile_upper: float = 99.8,
    value: float = 1.0,
    lower: float | None = None,
    clip: float | None = 1.0,
) -> torch.Tensor:
    """Scale each channel so that a high percentile inside the brain gets a fixed value.

    ``x -> value * (x - low) / (high - low)`` inside the mask, limited to [0, clip]; 0 outside.

    Args:
        image: (C, *spatial), any unit.
        mask: (1, *spatial), not 0 inside the brain.
        percentile_upper: ``high`` is this percentile of the brain voxels of the channel.
        value: what ``high`` becomes.
        lower: ``low`` is this percentile; without it ``low`` is 0.
        clip: largest value kept; None keeps all.

    Returns:
        (C, *spatial), float32.

    Raises:
        InputError: if the mask is empty, or a channel is constant inside it or has no voxel above ``low``.
        ValueError: if the shapes differ.
    """
    inside = inside_of(image, mask)
    out = torch.zeros_like(image, dtype=torch.float32)
    for index, channel in enumerate(image):
        values = channel[inside].float()
        # numpy: torch.quantile sorts all values, and takes no more than 16 million
        low = 0.0 if lower is None else float(np.percentile(values.cpu().numpy(), lower))
        high = float(np.percentile(values.cpu().numpy(), percentile_upper))
        if values.min() == values.max():
            raise InputError(f"channel {index} is {values[0].item():g} everywhere in the brain, expected contrast")
        if high <= low:
            raise InputError(
                f"channel {index} has the upper percentile {high:g} in the brain, expected more than the lower {low:g}"
            )
        out[index][inside] = (value * (values - low) / (high - low)).clamp(min=0, max=clip)
    return out


class ScaleBrainIntensityd(MapTransform):
    """Apply :func:`scale_brain_intensity` to each image in ``keys``.

    Args:
        keys: images (C, *spatial).
        mask_key: item of the brain mask (1, *spatial); without it the brain is where any channel is not 0.
        percentile: see ``percentile_upper`` of the function.
        value: what that percentile becomes.
        lower: percentile that becomes 0; without it 0 stays 0.
        clip: largest value kept; None keeps all.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        InputError: if the image is constant inside the brain, or the brain is empty; names the file.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        mask_key: str | None = None,
        percentile: float = 99.8,
        value: float = 1.0,
        lower: float | None = None,
        clip: float | None = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.settings = {"percentile_upper": percentile, "value": value, "lower": lower, "clip": clip}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            values = plain(image)
            mask = (
                (values != 0).any(dim=0, keepdim=True) if self.mask_key is None else torch.as_tensor(d[self.mask_key])
            )
            try:
                scaled = scale_brain_intensity(values, mask, **self.settings)
            except InputError as e:
                raise InputError(f"{file_of(image)}: {e}") from e
            d[key] = MetaTensor(scaled).copy_meta_from(image)
        return d


def piecewise_linear(values: torch.Tensor, knots: Sequence[float], targets: Sequence[float]) -> torch.Tensor:
    """Values on the lines through (knot, target); the first and the last line go on beyond them.

    Args:
        values: any shape, floating point.
        knots: two or more, rising.
        targets: what they become.

    Raises:
        ValueError: if there are fewer than two knots, not as many targets, or the knots do not rise.
    """
    x, y = (torch.as_tensor(list(numbers), dtype=values.dtype, device=values.device) for numbers in (knots, targets))
    if len(x) < 2 or len(x) != len(y) or (x.diff() <= 0).any():
        raise ValueError(f"knots are {list(knots)} and targets {list(targets)}, expected as many, two or more, rising")
    line = torch.bucketize(values, x[1:-1])
    return y[line] + (values - x[line]) * (y.diff() / x.diff())[line]


def inside_of(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Where a mask (1, *spatial) that has to fit an image (C, *spatial) is not 0: (*spatial), bool."""
    if mask.shape[0] != 1 or mask.shape[1:] != image.shape[1:]:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit image {tuple(image.shape)}, expected one channel")
    inside = mask[0] != 0
    if not inside.any():
        raise InputError("the brain mask is empty, expected a voxel that is not 0")
    return inside
