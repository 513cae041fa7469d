"""Removal of the shading that coils leave, by N4 of SimpleITK."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from monai.utils import optional_import

from .registration import to_itk
from .volume import Volume

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk, _ = optional_import("SimpleITK")

WORKING_MM = 4.0  # the field is smooth: it is found on a coarse copy
ITERATIONS = (50, 50, 50)


def bias_field(scan: Volume, mask: np.ndarray) -> Volume:
    """Field that the scan has to be divided by, its geometric mean in the mask being 1.

    Args:
        scan: values 0 or above.
        mask: same shape, where intensities are looked at; beyond it the field goes on smoothly.

    Reference:
        Tustison et al., "N4ITK: Improved N3 Bias Correction", IEEE TMI 2010.
    """
    copy = scan.isotropic(WORKING_MM)
    inside = scan.like(mask.astype(np.float32)).on_grid(copy.values.shape, copy.affine).values > 0.5
    inside &= copy.values > 0
    image = to_itk(copy)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(list(ITERATIONS))
    n4.Execute(image, sitk.Cast(to_itk(copy.like(inside)), sitk.sitkUInt8))
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    log_field = copy.like(log_field - log_field[inside].mean())
    return scan.like(np.exp(log_field.on_grid(scan.values.shape, scan.affine).values))
