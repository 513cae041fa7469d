"""What MONAI lacks for brain MRI; configs name these as ``common.transforms.<Class>``."""

from .anomaly import (
    ErodeMaskd,
    MaskOutsided,
    MedianFilterd,
    RemoveSmallComponentsd,
    erode_mask,
    median_filter,
    remove_small_components,
)
from .classes import (
    EntropyMapd,
    entropy,
)
from .intensity import (
    BrainMaskd,
    ScaleBrainIntensityd,
    piecewise_linear,
    scale_brain_intensity,
)
from .io import CheckLabeld, LoadScand, SaveScand
from .plain import PlainTensorCompose
from .spatial import ResampleSpacingd

__all__ = [
    "BrainMaskd",
    "CheckLabeld",
    "EntropyMapd",
    "ErodeMaskd",
    "LoadScand",
    "MaskOutsided",
    "MedianFilterd",
    "PlainTensorCompose",
    "RemoveSmallComponentsd",
    "ResampleSpacingd",
    "SaveScand",
    "ScaleBrainIntensityd",
    "entropy",
    "erode_mask",
    "median_filter",
    "piecewise_linear",
    "remove_small_components",
    "scale_brain_intensity",
]
