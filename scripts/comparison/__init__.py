"""Several methods on one datalist: trained on the same folds, scored alike, compared on one page."""

from .comparison import Comparison, Result
from .methods import find_methods
from .report import compare
from .statistics import holm, paired_difference
from .targets import TARGETS, Target

__all__ = [
    "TARGETS",
    "Comparison",
    "Result",
    "Target",
    "compare",
    "find_methods",
    "holm",
    "paired_difference",
]
