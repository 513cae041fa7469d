"""A picture of a registration: what was moved, what became of it, what it should be, and how space was bent."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.config import KeysCollection
from monai.transforms import MapTransform

from common.files import write_atomically
from common.geometry import voxel_grid, warp

LINE_COLOR = "#56B4E9"
LINE_EVERY = 3  # voxels
VIEWS = {2: "axial", 1: "coronal", 0: "sagittal"}  # by the axis that runs through the slices


class SavePairPictured(MapTransform):
    """Write ``OUT/<name>_check.png``: a row per view through the middle of the brain, in the template's space.

    Columns: the moving image after the affine map, warped, the fixed image, and the fixed image with the places in the
    moving image that lines of its grid lead to. The patient's right is on the left.

    Args:
        keys: displacement in the first three channels of (C, X, Y, Z), voxels; ``moving`` and ``fixed`` lie on its
            grid, in RAS.
        output_dir: folder, made if need be.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            moving, fixed, field = (torch.as_tensor(d[k]).float().cpu() for k in ("moving", "fixed", key))
            figure = draw_pair(moving, fixed, field[:3])
            path = self.output_dir / f"{d['name']}_check.png"
            write_atomically(path, lambda part, figure=figure: FigureCanvasAgg(figure).print_png(part))
        return d


def draw_pair(moving: torch.Tensor, fixed: torch.Tensor, displacement: torch.Tensor) -> Figure:
    """The picture of :class:`SavePairPictured`.

    Args:
        moving: (1, X, Y, Z), RAS.
        fixed: likewise, on the same grid.
        displacement: (3, X, Y, Z), voxels.
    """
    warped = warp(moving[None], displacement[None], padding="zeros")[0]
    places = (voxel_grid(tuple(fixed.shape[1:])) + displacement).numpy()
    volumes = {"moving, affine only": moving, "moving, warped": warped, "fixed": fixed, "grid": fixed}
    figure = Figure(figsize=(2.6 * len(volumes), 2.9 * len(VIEWS)), dpi=100, facecolor="black", layout="tight")
    axes = figure.subplots(len(VIEWS), len(volumes))
    middle = [round(where.float().mean().item()) for where in (fixed[0] != 0).nonzero(as_tuple=True)]
    top = float(fixed.max()) or 1.0
    for row, (axis, view) in zip(axes, VIEWS.items(), strict=True):
        for panel, (title, volume) in zip(row, volumes.items(), strict=True):
            _show(panel, volume[0].numpy().take(middle[axis], axis), axis, top)
            panel.set_title(f"{title}, {view}", color="white", fontsize=8)
        _lines(row[-1], np.delete(places, axis, 0).take(middle[axis], axis + 1), fixed.shape[1], axis)
    return figure


def _show(panel: Axes, plane: np.ndarray, axis: int, top: float) -> None:
    """A slice with the second axis up; the patient's right on the left where it runs across."""
    panel.imshow((plane if axis == 0 else plane[::-1]).T, cmap="gray", origin="lower", vmin=0, vmax=top)
    panel.set(xlim=(-0.5, plane.shape[0] - 0.5), ylim=(-0.5, plane.shape[1] - 0.5))
    panel.set_autoscale_on(False)  # lines may lead out of the slice
    panel.axis("off")
    if axis > 0:
        panel.text(0.02, 0.98, "R", color="white", fontsize=8, va="top", transform=panel.transAxes)


def _lines(panel: Axes, places: np.ndarray, width: int, axis: int) -> None:
    """Every third line of the grid where it leads to, (2, A, B), within the slice."""
    across = places[0] if axis == 0 else width - 1 - places[0]
    for i in range(0, across.shape[0], LINE_EVERY):
        panel.plot(across[i], places[1][i], color=LINE_COLOR, linewidth=0.5)
    for j in range(0, across.shape[1], LINE_EVERY):
        panel.plot(across[:, j], places[1][:, j], color=LINE_COLOR, linewidth=0.5)
