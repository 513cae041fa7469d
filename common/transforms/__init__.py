"""What MONAI lacks for brain MRI; configs name these as ``common.transforms.<Class>``."""

from .anomaly import (
    ErodeMaskd,
    KeepBrightd,
    MaskOutsided,
    MedianFilterd,
    RemoveSmallComponentsd,
    ResidualMapd,
    erode_mask,
    keep_bright,
    median_filter,
    remove_small_components,
    residual_map,
)
from .classes import (
    ChannelMapd,
    EntropyMapd,
    ThresholdedArgmaxd,
    WithoutSmallComponentsd,
    entropy,
    thresholded_argmax,
    without_small_components,
)
from .intensity import (
    BrainMaskd,
    NormalizeBrainIntensityd,
    ScaleBrainIntensityd,
    normalize_brain_intensity,
    piecewise_linear,
    scale_brain_intensity,
)
from .io import CheckLabeld, LoadScand, SaveScand
from .plain import PlainTensorCompose
from .spatial import NeighboringSlicesd, ResampleSpacingd

__all__ = [
    "BrainMaskd",
    "ChannelMapd",
    "CheckLabeld",
    "EntropyMapd",
    "ErodeMaskd",
    "KeepBrightd",
    "LoadScand",
    "MaskOutsided",
    "MedianFilterd",
    "NeighboringSlicesd",
    "NormalizeBrainIntensityd",
    "PlainTensorCompose",
    "RemoveSmallComponentsd",
    "ResampleSpacingd",
    "ResidualMapd",
    "SaveScand",
    "ScaleBrainIntensityd",
    "ThresholdedArgmaxd",
    "WithoutSmallComponentsd",
    "entropy",
    "erode_mask",
    "keep_bright",
    "median_filter",
    "normalize_brain_intensity",
    "piecewise_linear",
    "remove_small_components",
    "residual_map",
    "scale_brain_intensity",
    "thresholded_argmax",
    "without_small_components",
]
