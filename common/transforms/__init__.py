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
from .intensity import BrainMaskd, ScaleBrainIntensityd, scale_brain_intensity
from .io import CheckLabeld, LoadScand, SaveScand
from .plain import PlainTensorCompose
from .spatial import ResampleSpacingd

__all__ = [
    "BrainMaskd",
    "CheckLabeld",
    "ErodeMaskd",
    "KeepBrightd",
    "LoadScand",
    "MaskOutsided",
    "MedianFilterd",
    "PlainTensorCompose",
    "RemoveSmallComponentsd",
    "ResampleSpacingd",
    "ResidualMapd",
    "SaveScand",
    "ScaleBrainIntensityd",
    "erode_mask",
    "keep_bright",
    "median_filter",
    "remove_small_components",
    "residual_map",
    "scale_brain_intensity",
]
