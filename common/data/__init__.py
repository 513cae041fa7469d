"""From a folder or a datalist to checked cases, and to data sets of them: headers are read, voxels are not."""

from .cases import check_cases, name_cases
from .datalist import NOTHING, Datalist, write_datalist
from .datasets import BrainSlices, CachedScans, ScanDataset
from .folder import paths_beside
from .listing import list_cases
from .names import Case, prefix_of, subject_of, visit_of
from .splits import check_lesions, check_splits, refuse_pseudo_labels, share_of_process, share_of_shard

__all__ = [
    "NOTHING",
    "BrainSlices",
    "CachedScans",
    "Case",
    "Datalist",
    "ScanDataset",
    "check_cases",
    "check_lesions",
    "check_splits",
    "list_cases",
    "name_cases",
    "paths_beside",
    "prefix_of",
    "refuse_pseudo_labels",
    "share_of_process",
    "share_of_shard",
    "subject_of",
    "visit_of",
    "write_datalist",
]
