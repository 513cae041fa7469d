"""Engines and ignite handlers of the configs, made by ``_target_`` and registered by ``attach(engine)``.

The handlers know about ranks: under ``torchrun`` only rank 0 writes files and log lines, so none needs ``_disabled_``.
All but :class:`TrainingState` and :class:`TimeLimit`, which every rank takes part in, accept being disabled elsewhere.
"""

from .checkpoints import BestWeights, LoadWeights, TrainingState
from .evaluator import AutocastInferer, MirroredInferer, ScanEvaluator, prepare_reconstruction
from .events import leave_group
from .pictures import ValidationPictures
from .provenance import Provenance
from .tracking import Tracker
from .training import EpochSeed, EpochValidation, TimeLimit, TrainingProgress

__all__ = [
    "AutocastInferer",
    "BestWeights",
    "EpochSeed",
    "EpochValidation",
    "LoadWeights",
    "MirroredInferer",
    "Provenance",
    "ScanEvaluator",
    "TimeLimit",
    "Tracker",
    "TrainingProgress",
    "TrainingState",
    "ValidationPictures",
    "leave_group",
    "prepare_reconstruction",
]
