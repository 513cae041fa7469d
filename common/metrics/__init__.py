"""What is measured, on numpy arrays of one grid: overlap, surfaces, detection; and the same for engines."""

from .detection import (
    LesionDetection,
    PrecisionRecall,
    average_precision,
    best_dice,
    dice_over_thresholds,
    lesion_detection,
    lesion_f1,
    lesion_precision,
    lesion_recall,
    lesion_sizes,
    precision_recall,
    threshold_for_false_positive_rate,
)
from .handlers import BestDice, CaseMean, CaseScores, VoxelAveragePrecision
from .overlap import (
    Overlap,
    dice,
    false_positive_volume_ml,
    pooled_dice,
    volume_difference_ml,
    volume_ml,
    voxel_overlap,
)
from .summary import Summary, bootstrap_interval, summarize
from .surface import SurfaceDistances, assd_mm, hd95_mm, surface_distances

__all__ = [
    "BestDice",
    "CaseMean",
    "CaseScores",
    "LesionDetection",
    "Overlap",
    "PrecisionRecall",
    "Summary",
    "SurfaceDistances",
    "VoxelAveragePrecision",
    "assd_mm",
    "average_precision",
    "best_dice",
    "bootstrap_interval",
    "dice",
    "dice_over_thresholds",
    "false_positive_volume_ml",
    "hd95_mm",
    "lesion_detection",
    "lesion_f1",
    "lesion_precision",
    "lesion_recall",
    "lesion_sizes",
    "pooled_dice",
    "precision_recall",
    "summarize",
    "surface_distances",
    "threshold_for_false_positive_rate",
    "volume_difference_ml",
    "volume_ml",
    "voxel_overlap",
]
