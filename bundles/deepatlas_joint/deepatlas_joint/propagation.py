"""Baseline: labels of one brain, propagated by the registration network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms import Compose
from torch import nn
from torch.nn.functional import one_hot

from common.atlas import TemplateSpaced, atlas_on_grid, icbm_atlas, icbm_maps, template_grid
from common.errors import InputError
from common.geometry import sample, voxel_grid, warp
from common.transforms import BrainMaskd, CheckLabeld, LoadScand, ScaleBrainIntensityd


class LabelPropagation(nn.Module):
    """Segment an image by moving a labelled one onto it: image to logarithms of the warped label probabilities.

    Args:
        registration: see :class:`deepatlas_joint.refinement.PairRegistration`, whose way back is of no use here, or
            :class:`deepatlas_joint.network.RegistrationNetwork`.
        classes: background included.
        moving_file: skull-stripped labelled scan; None for the ICBM 152 template, whose labels are 1 CSF, 2 GM, 3 WM.
        moving_label_file: its label map.
        spacing, shape, align: grid in the template's space, see :class:`common.atlas.TemplateSpaced`.

    Raises:
        InputError: if one of the two files is missing, or the classes are not those of the template.
    """

    def __init__(
        self,
        registration: nn.Module,
        classes: int = 4,
        moving_file: str | None = None,
        moving_label_file: str | None = None,
        spacing: Sequence[float] = (2.0, 2.0, 2.0),
        shape: Sequence[int] = (80, 96, 80),
        align: bool = True,
    ) -> None:
        super().__init__()
        self.registration = registration
        if (moving_file is None) != (moving_label_file is None):
            raise InputError(
                f"moving_file is {moving_file}, moving_label_file {moving_label_file}, expected both or none"
            )
        if moving_file is None:
            moving, label = _template(classes, spacing, shape)
        else:
            prepare = Compose(
                [
                    LoadScand(keys=["image", "label"]),
                    BrainMaskd(keys="image"),
                    CheckLabeld(keys="label", values=list(range(classes))),
                    TemplateSpaced(["image", "label"], spacing, shape, ["bilinear", "nearest"], align),
                    ScaleBrainIntensityd(keys="image", percentile=99.8, value=1.0),
                ]
            )
            case = prepare({"image": moving_file, "label": moving_label_file})
            moving, label = (case[key].as_tensor() for key in ("image", "label"))
        maps = one_hot(label[0].long(), classes).movedim(-1, 0).float()
        self.register_buffer("moving", moving[None], persistent=False)
        self.register_buffer("maps", maps[None], persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, classes, X, Y, Z) of images (B, 1, X, Y, Z) on the grid."""
        count = len(image)
        displacement = self.registration(torch.cat([self.moving.expand(count, -1, -1, -1, -1), image], dim=1))[:, :3]
        warped = warp(self.maps.expand(count, -1, -1, -1, -1), displacement, padding="border")
        return torch.log(warped + 1e-6)


def _template(classes: int, spacing: Sequence[float], shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """T1 image of the ICBM template, (1, *shape), scaled as scans are, and the most probable class, (1, *shape)."""
    if classes != 4:
        raise InputError(f"classes is {classes}, expected 4 as the template has, or moving_file and moving_label_file")
    grid = template_grid(spacing, shape)
    t1, _, _, affine = icbm_maps()
    image = sample(torch.from_numpy(t1)[None], voxel_grid(tuple(shape), np.linalg.inv(affine) @ grid), padding="zeros")
    image = ScaleBrainIntensityd(keys="image", percentile=99.8, value=1.0)({"image": image})["image"].as_tensor()
    label = atlas_on_grid(icbm_atlas(), np.eye(4), shape, grid).argmax(0, keepdim=True)
    return image, label
