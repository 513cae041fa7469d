"""How bright a place is, compared with white matter and with the lesions of the same scan."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform
from scipy import ndimage

BINS = 256
SURE, LEAST = 2.0, 1.05  # logit, and brightness, of what counts as a lesion of the scan


def white_matter_level(image: np.ndarray) -> float:
    """The most frequent intensity of a skull-stripped FLAIR, which is that of white matter or a little above.

    The peak of the histogram of what is not 0, between the 1st and the 99.5th percentile, smoothed.

    Args:
        image: any shape, 0 outside the brain.

    Raises:
        ValueError: if nothing is above 0.
    """
    values = image[image > 0]
    if values.size == 0:
        raise ValueError("the image has no voxel above 0")
    counts, edges = np.histogram(values, BINS, np.percentile(values, (1, 99.5)))
    peak = int(np.argmax(ndimage.gaussian_filter1d(counts.astype(float), 5)))
    return float(edges[peak : peak + 2].mean())


class GradedLabeld(MapTransform):
    """Lesion masks that say how bright a lesion is: 0.5 where it is like white matter, 1 from its own median upwards.

    The median is that of all lesions of the scan, so a faint halo is less of a lesion than what it surrounds, in faint
    and in bright scans alike.

    Args:
        keys: masks, (1, *spatial), 0 and 1.
        image_key: skull-stripped FLAIR, (1, *spatial).
    """

    def __init__(self, keys: KeysCollection, image_key: str = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = torch.as_tensor(d[self.image_key]).float()
        for key in self.key_iterator(d):
            lesion = torch.as_tensor(d[key]) > 0
            if lesion.any():
                white = white_matter_level(image.numpy())
                contrast = max(float(image[lesion].median()) - white, 1e-3)
                grade = 0.5 + 0.5 * ((image - white) / contrast).clamp(0, 1)
                d[key] = d[key] * torch.where(lesion, grade, torch.ones_like(grade))
        return d


class BrightnessInferer(Inferer):
    """Logits that say how bright a place is too: a halo, of which the network is as sure as of its lesion, comes below.

    ``limit * tanh(logit / limit) + weight * (b - 0.65)``, where ``b`` is 0 at white matter and 1, its largest value, at
    the median of what the network is sure of in the same scan (a logit above 2), at ``usual`` times white matter if
    that is nothing; -1 is its lowest. What is brighter than lesions, as vessels and rests of skull are, gains nothing.

    Args:
        inferer: (B, C, *spatial) -> logits, (B, 1, *spatial), of skull-stripped FLAIR, which is the middle channel.
        weight: of the brightness; 0 leaves the logits as they are.
        limit: of the logits, so that brightness has a say where the network is sure.
        usual: brightness of a lesion, white matter = 1.
    """

    def __init__(self, inferer: Inferer, weight: float = 4.0, limit: float = 8.0, usual: float = 1.4) -> None:
        super().__init__()
        self.inferer = inferer
        self.weight = weight
        self.limit = limit
        self.usual = usual

    @property
    def sw_batch_size(self) -> int | None:
        """Slices per call of the network, of inferers that have it."""
        return getattr(self.inferer, "sw_batch_size", None)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``inputs`` (B, C, *spatial) -> logits, (B, 1, *spatial)."""
        logits = self.inferer(inputs, network, *args, **kwargs)
        if not self.weight:
            return logits
        brightness = torch.stack([self._brightness(*scan) for scan in zip(inputs, logits, strict=True)])
        return self.limit * torch.tanh(logits / self.limit) + self.weight * (brightness - 0.65)

    def _brightness(self, image: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        flair = image[len(image) // 2].float()
        ratio = flair / white_matter_level(flair.numpy(force=True))
        sure = ratio[(logits[0] > SURE) & (ratio > LEAST)]
        typical = float(sure.median()) if len(sure) else self.usual
        return ((ratio - 1) / (typical - 1)).clamp(-1, 1)[None]
