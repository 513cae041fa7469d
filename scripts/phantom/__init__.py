"""A synthetic brain: contrasts, lesions, labels and the deformation that made it.

A subject is the ICBM152 template, or somebody's tissue map brought to it, under a random affine map and a smooth
diffeomorphic warp. Tissue is decided on a grid of about 1 mm in the frame of the requested scan, with the subject's own
cortical thickness and ventricle size; intensities follow measured statistics of multiple-sclerosis patients; averaging
down to the requested voxels gives partial volume. Every draw comes from one seed, so a subject can be made again bit
by bit. The sources are named in the modules.
"""

from .anatomy import STRUCTURES, TISSUES, Anatomy, Grid, anatomy_of_labels, lesion_map_of_mask, load_anatomy
from .contrast import SCANNERS, SEQUENCES, Scanner
from .implant import implant_lesions, suspected_lesions
from .pathology import ms_lesion_volumes
from .subject import PATHOLOGIES, Subject, make_subject

__all__ = [
    "PATHOLOGIES",
    "SCANNERS",
    "SEQUENCES",
    "STRUCTURES",
    "TISSUES",
    "Anatomy",
    "Grid",
    "Scanner",
    "Subject",
    "anatomy_of_labels",
    "implant_lesions",
    "lesion_map_of_mask",
    "load_anatomy",
    "make_subject",
    "ms_lesion_volumes",
    "suspected_lesions",
]
