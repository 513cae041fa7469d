"""Synthetic anomalies: pieces of strange texture with irregular borders, painted into healthy slices."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from scipy import ndimage


def perlin_noise(size: tuple[int, int], cells: tuple[int, int], rng: np.random.RandomState) -> np.ndarray:
    """Gradient noise, about in [-1, 1].

    Args:
        size: H and W in pixels.
        cells: how many cells the lattice of gradients has along each axis.
        rng: random numbers.

    Returns:
        (H, W).

    Reference:
        Perlin, "An image synthesizer", SIGGRAPH 1985; "Improving noise", SIGGRAPH 2002 (the blending polynomial).
    """
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    position = [(np.arange(n) + 0.5) / n * c for n, c in zip(size, cells, strict=True)]
    whole = [np.floor(p).astype(int) for p in position]
    (y, x), (i, j) = [p - w for p, w in zip(position, whole, strict=True)], whole
    blend_y, blend_x = (6 * t**5 - 15 * t**4 + 10 * t**3 for t in (y, x))

    def corner(dy: int, dx: int) -> np.ndarray:
        angle = angles[np.ix_(i + dy, j + dx)]
        return np.cos(angle) * (y - dy)[:, None] + np.sin(angle) * (x - dx)

    above = corner(0, 0) + blend_x * (corner(0, 1) - corner(0, 0))
    below = corner(1, 0) + blend_x * (corner(1, 1) - corner(1, 0))
    return np.sqrt(2) * (above + blend_y[:, None] * (below - above))


def _equalize(image: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Every gray value becomes its rank."""
    values, ranks = np.unique(image, return_inverse=True)
    return (ranks / max(len(values) - 1, 1)).reshape(image.shape)


def _posterize(image: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    steps = 2 ** rng.randint(2, 5) - 1
    return np.round(image * steps) / steps


# on gray values in [0, 1]
OPERATIONS = {
    "gamma": lambda image, rng: image ** np.exp(rng.uniform(np.log(0.5), np.log(2))),
    "invert": lambda image, rng: 1 - image,
    "posterize": _posterize,
    "solarize": lambda image, rng: np.where(image > rng.uniform(0.3, 0.9), 1 - image, image),
    "equalize": _equalize,
    "shift": lambda image, rng: np.clip(image + rng.uniform(-0.15, 0.15), 0, 1),
}


class AnomalyPainter:
    """Paints a synthetic anomaly into a healthy slice.

    A field of Perlin noise, turned, gives mask (where it is high) and texture (itself after three random operations on
    gray values). The texture is blended into the slice: ``(1 - opacity) * slice + opacity * texture`` in the mask.

    Args:
        threshold: the mask is where the noise is above a number drawn from this range.
        opacity: drawn from this range.
        min_pixels: smaller masks are drawn again.
        attempts: as often as this; a slice with too little brain for a mask stays as it is.

    Reference:
        Zavrtanik et al., "DRAEM", ICCV 2021; Behrendt et al., MIDL 2024, appendix C. Other than there, the threshold is
        drawn, and masks lie in the brain.
    """

    def __init__(
        self,
        threshold: tuple[float, float] = (0.35, 0.6),
        opacity: tuple[float, float] = (0.2, 1.0),
        min_pixels: int = 10,
        attempts: int = 10,
    ) -> None:
        self.threshold = threshold
        self.opacity = opacity
        self.min_pixels = min_pixels
        self.attempts = attempts

    def __call__(self, image: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Slice with an anomaly, and its mask (bool), both (H, W).

        Args:
            image: (H, W) in [0, 1], 0 outside the brain.
            rng: random numbers.
        """
        brain = ndimage.binary_erosion(image != 0)
        side = int(np.ceil(np.hypot(*brain.shape)))  # covers the slice at any angle
        top, left = ((side - n) // 2 for n in brain.shape)
        for _ in range(self.attempts):
            noise = perlin_noise((side, side), tuple(2 ** rng.randint(0, 7, 2)), rng)
            noise = ndimage.rotate(noise, rng.uniform(-90, 90), reshape=False, order=1, mode="reflect")
            noise = noise[top : top + brain.shape[0], left : left + brain.shape[1]]
            mask = (noise > rng.uniform(*self.threshold)) & brain
            if mask.sum() >= self.min_pixels:
                texture = (noise - noise.min()) / np.ptp(noise)
                for name in rng.choice(list(OPERATIONS), 3, replace=False):
                    texture = OPERATIONS[name](texture, rng)
                opacity = rng.uniform(*self.opacity)
                return np.where(mask, (1 - opacity) * image + opacity * texture, image), mask
        return image, np.zeros_like(brain)


class RandSyntheticAnomalyd(RandomizableTransform, MapTransform):
    """Paint into healthy slices by :class:`AnomalyPainter`, and the mask into their label.

    Args:
        keys: slice (1, H, W) in [0, 1], 0 outside the brain, and label (1, H, W), in this order.
        prob: probability of an anomaly in a slice of an item that says ``healthy``; the others stay as they are.
    """

    def __init__(self, keys: KeysCollection = ("image", "label"), prob: float = 0.8) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.painter = AnomalyPainter()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if d.get("healthy"):
            self.randomize(None)
            if self._do_transform:
                image_key, label_key = self.keys
                image, mask = self.painter(np.asarray(d[image_key][0]), self.R)
                d[image_key] = torch.as_tensor(image[None]).to(d[image_key])
                d[label_key] = torch.as_tensor(mask[None]).to(d[label_key])
        return d


class SyntheticAnomaliesd(MapTransform):
    """Paint into the axial slices of healthy volumes by :class:`AnomalyPainter`, always the same for a case.

    Args:
        keys: image (1, X, Y, Z) in [0, 1], 0 outside the brain, and label (1, X, Y, Z), in this order.
        prob: share of the slices with an anomaly, in an item that says ``healthy``; its ``name`` tells cases apart.
    """

    def __init__(self, keys: KeysCollection = ("image", "label"), prob: float = 0.5) -> None:
        super().__init__(keys)
        self.prob = prob
        self.painter = AnomalyPainter()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if d.get("healthy"):
            rng = np.random.RandomState(zlib.crc32(str(d.get("name")).encode()))
            image_key, label_key = self.keys
            image, label = (d[key].clone() for key in self.keys)
            for z in np.flatnonzero(rng.uniform(size=image.shape[-1]) < self.prob):
                painted, mask = self.painter(image[0, ..., z].numpy(force=True), rng)
                image[0, ..., z] = torch.as_tensor(painted).to(image)
                label[0, ..., z] = torch.as_tensor(mask).to(label)
            d[image_key], d[label_key] = image, label
        return d
