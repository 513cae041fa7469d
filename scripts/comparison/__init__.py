"""Several methods on one datalist: trained on the same folds, scored alike, compared on one page."""

from .comparison import Comparison, Result
from .methods import METHODS, Method
from .report import compare, summary_text
from .statistics import holm, paired_difference
from .targets import TARGETS, Target

__all__ = [
    "METHODS",
    "TARGETS",
    "Comparison",
    "Method",
    "Result",
    "Target",
    "compare",
    "holm",
    "paired_difference",
    "summary_text",
]
