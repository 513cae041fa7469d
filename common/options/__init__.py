"""Options of bundles and scripts: their names, their types, and the check of a config that runs."""

from .check import check_options
from .types import converted, expectation
from .vocabulary import VOCABULARY, Option

__all__ = ["VOCABULARY", "Option", "check_options", "converted", "expectation"]
