"""From the outputs of the network to the anomaly score: the paper's section 3.3."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from skimage.metrics import structural_similarity

from common.errors import InputError
from common.transforms.intensity import fill_holes


class SplitPredictiond(MapTransform):
    """Take the two channels of the network apart: reconstruction, and probability of anomaly.

    Args:
        keys: outputs of the network, (2, X, Y, Z); each becomes the probability, (1, X, Y, Z).
        reconstruction_key: where the reconstruction goes, (1, X, Y, Z).
    """

    def __init__(self, keys: KeysCollection = "pred", reconstruction_key: str = "reconstruction") -> None:
        super().__init__(keys)
        self.reconstruction_key = reconstruction_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.reconstruction_key] = d[key][:1]
            d[key] = d[key][1:].sigmoid()
        return d


def structural_deviation(image: np.ndarray, reconstruction: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """1 - SSIM of two volumes around each voxel, inside the brain.

    SSIM has a Gaussian window, 9 voxels wide at ``sigma`` 1, constants 0.01 and 0.03, and the larger of the two ranges
    of values as its data range; the volumes continue as in a mirror.

    Args:
        image: (X, Y, Z), 0 outside the brain.
        reconstruction: (X, Y, Z).
        sigma: in voxels.

    Returns:
        (X, Y, Z), in [0, 2], float32; 0 outside the brain.

    Raises:
        ValueError: if the shapes differ, or a side is shorter than the window.

    Reference:
        Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004.
    """
    data_range = float(max(np.ptp(image), np.ptp(reconstruction)))
    _, similarity = structural_similarity(
        image,
        reconstruction,
        data_range=data_range,
        gaussian_weights=True,
        sigma=sigma,
        use_sample_covariance=False,
        full=True,
    )
    return np.where(fill_holes(image != 0), 1 - similarity, 0).astype(np.float32)


class StructuralDeviationd(MapTransform):
    """Put :func:`structural_deviation` of image and reconstruction beside each reconstruction.

    Args:
        keys: reconstructions, (1, X, Y, Z).
        image_key: the volume that went into the network, (1, X, Y, Z).
        deviation_key: where the map goes, (1, X, Y, Z).
        sigma: in voxels.
    """

    def __init__(
        self,
        keys: KeysCollection = "reconstruction",
        image_key: str = "image",
        deviation_key: str = "deviation",
        sigma: float = 1.0,
    ) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.deviation_key = deviation_key
        self.sigma = sigma

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image, reconstruction = (d[k][0].float().numpy(force=True) for k in (self.image_key, key))
            deviation = structural_deviation(image, reconstruction, self.sigma)
            d[self.deviation_key] = MetaTensor(torch.from_numpy(deviation[None])).copy_meta_from(d[key])
        return d


class FuseScoresd(MapTransform):
    """Score of anomaly: ``beta * deviation + (1 - beta) * probability``, the paper's equation 4.

    With ``beta`` 0.5 it is half of the paper's plain sum (equation 3), with 1 the reconstruction alone decides, with 0
    the U-Net alone.

    Args:
        keys: probabilities, (1, X, Y, Z); each becomes the score.
        deviation_key: map of the reconstruction, (1, X, Y, Z), 0 outside the brain.
        beta: weight of the reconstruction, in [0, 1].

    Raises:
        InputError: if ``beta`` is outside of [0, 1].
    """

    def __init__(self, keys: KeysCollection = "pred", deviation_key: str = "deviation", beta: float = 0.5) -> None:
        super().__init__(keys)
        if not 0 <= beta <= 1:
            raise InputError(f"beta is {beta}, expected a number in [0, 1]")
        self.deviation_key = deviation_key
        self.beta = beta

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            deviation = d[self.deviation_key].as_tensor().to(d[key].device)
            d[key] = d[key] * (1 - self.beta) + self.beta * deviation
        return d


class FuseLogitsd(MapTransform):
    """Score of anomaly from parts: ``sigmoid(unet_weight * logit + sum of weight * part)``. Not the paper's sum.

    Parts are added where evidence adds up, in logits, so that a part that is high where there is no lesion does not
    drown a sure network; and the score is in [0, 1].

    Args:
        keys: probabilities of the U-Net, (1, X, Y, Z); each becomes the score.
        weights: key of a part, a map without unit such as a z-score, (1, X, Y, Z) -> its weight.
        unet_weight: of the U-Net's logit; 0 leaves it out.

    Raises:
        ValueError: if no weight is above 0.
    """

    def __init__(self, keys: KeysCollection, weights: Mapping[str, float], unet_weight: float = 1.0) -> None:
        super().__init__(keys)
        if max(unet_weight, *weights.values()) <= 0:
            raise ValueError(f"weights are {unet_weight} and {dict(weights)}, expected one above 0")
        self.weights = dict(weights)
        self.unet_weight = unet_weight

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            total = self.unet_weight * d[key].double().logit(eps=1e-12)  # 1 in float32 is no infinite one
            for part, weight in self.weights.items():
                total = total + d[part].as_tensor().to(total.device) * float(weight)
            d[key] = total.sigmoid().float()
        return d
