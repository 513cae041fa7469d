"""Where training patches are cut, and channels that are left out, or changed one by one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, RandomizableTransform

from common.errors import InputError
from common.transforms.io import file_of


class CodeCentersd(MapTransform):
    """Write candidate centers of patches for MONAI's ``RandCropByLabelClassesd``: voxels in the brain, by code.

    Puts ``<key>_centers`` beside each label in ``keys``: one array of flat indices per code, int64.

    Args:
        keys: code volumes, (1, *spatial).
        ratios: how often patches are centered on each code, see :func:`~.sampler.crop_ratios`.
        image_key: image, 0 outside the brain.
        most: how many voxels of a code are kept; the sample is the same for the same volume.

    Raises:
        InputError: if a volume has no voxel of a code with a ratio above 0.
    """

    def __init__(
        self, keys: KeysCollection, ratios: Sequence[float], image_key: str = "image", most: int = 20000
    ) -> None:
        super().__init__(keys)
        self.ratios = ratios
        self.image_key = image_key
        self.most = most

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        brain = (np.asarray(d[self.image_key]) != 0).any(axis=0)
        for key in self.key_iterator(d):
            volume = np.asarray(d[key])[0]
            centers = [self._sample((volume == code) & brain) for code in range(len(self.ratios))]
            if not any(ratio > 0 and len(found) for ratio, found in zip(self.ratios, centers, strict=True)):
                raise InputError(
                    f"{file_of(d[key])} has no labeled voxel in the brain to center a patch on, expected one; where "
                    "only lesions are labeled, background_patches above 0 will do"
                )
            d[f"{key}_centers"] = centers
        return d

    def _sample(self, mask: np.ndarray) -> np.ndarray:
        indices = np.flatnonzero(mask)
        if len(indices) > self.most:
            indices = np.random.default_rng(0).choice(indices, self.most, replace=False)
        return indices


class RandDropChanneld(RandomizableTransform, MapTransform):
    """Set one channel to 0, at random, so that a network learns to do without a sequence.

    The last channel that is left is never taken away. Keys share the draw.

    Args:
        keys: images, (C, *spatial).
        prob: probability that a channel is left out, any of them alike; or one probability for each channel.

    Raises:
        InputError: if probabilities are below 0, or their sum is above 1.

    Reference:
        Not in the paper, which takes the sequences that all data sets have.
    """

    def __init__(self, keys: KeysCollection, prob: float | Sequence[float] = 0.1) -> None:
        self.shares = None if isinstance(prob, (int, float)) else [float(p) for p in prob]
        total = float(prob) if self.shares is None else sum(self.shares)
        if min(self.shares or [total]) < 0 or total > 1:
            raise InputError(f"the probabilities of a channel to be left out are {prob}, expected 0 to 1 in all")
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, total)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        choice = self.R.random()
        for key in self.key_iterator(d):
            present = [i for i, channel in enumerate(d[key]) if channel.any()]
            if self._do_transform and len(present) > 1:
                index = present[int(choice * len(present))] if self.shares is None else self._drawn(choice)
                d[key] = self._without(d[key], index)
        return d

    def _drawn(self, choice: float) -> int:
        return int(np.searchsorted(np.cumsum(self.shares) / sum(self.shares), choice, side="right"))

    @staticmethod
    def _without(image: torch.Tensor, channel: int) -> torch.Tensor:
        plain = image.as_tensor().clone() if isinstance(image, MetaTensor) else image.clone()
        plain[channel] = 0
        return MetaTensor(plain).copy_meta_from(image) if isinstance(image, MetaTensor) else plain


class RandEachChanneld(Randomizable, MapTransform):
    """Apply a random transform to every channel on its own: sequences of one scan differ in contrast, blur and noise.

    Args:
        keys: images, (C, *spatial).
        transform: of images, (1, *spatial) -> the same shape; drawn for every channel on its own.
    """

    def __init__(self, keys: KeysCollection, transform: RandomizableTransform) -> None:
        super().__init__(keys)
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandEachChanneld:
        """As of MONAI; the transform draws from the same state."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = torch.cat([self.transform(d[key][i : i + 1]) for i in range(len(d[key]))])
        return d
