"""What bundles there are, and what each says of itself: its stages, ways of use, methods and needs."""

from .description import (
    Calibration,
    Description,
    Inference,
    Method,
    Prediction,
    Row,
    Stage,
    Step,
    Use,
)
from .reading import BUNDLES, bundle_names, choose, describe, descriptions, folder_of, load, refuse_unknown

__all__ = [
    "BUNDLES",
    "Calibration",
    "Description",
    "Inference",
    "Method",
    "Prediction",
    "Row",
    "Stage",
    "Step",
    "Use",
    "bundle_names",
    "choose",
    "describe",
    "descriptions",
    "folder_of",
    "load",
    "refuse_unknown",
]
