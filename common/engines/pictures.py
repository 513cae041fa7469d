"""Pictures of validation cases, on disk and in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import decollate_batch

from ..errors import InputError
from ..files import write_atomically
from .events import rank, words
from .tracking import mlflow_handlers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# apart for every color vision, on gray images too (palette of Okabe and Ito)
REFERENCE_COLOR, PREDICTION_COLOR = "#56B4E9", "#E69F00"


class ValidationPictures:
    """Draw some cases of each validation into one PNG, and log it to MLflow where an MLFlowHandler is attached.

    For the handlers of the evaluator. The cases are spread over the validation, and the same ones each time; where they
    are the slices of a few volumes, one after the other, these are seen at several heights. A volume is shown in the
    axial slice (the last axis) with most of the reference in it, or of the prediction, or of the image;
    anterior is up if it is in RAS.

    Args:
        output_dir: folder of the pictures, ``epoch_0001.png`` and so on.
        max_cases: number of cases in a picture.
        image_key: image, (C, *spatial) with two or three spatial dimensions.
        label_key: reference labels, (1, *spatial), or a channel per class, background first; may be missing.
        pred_key: prediction, likewise, or a map such as a probability.
        contours: True draws label and prediction as contours on the image. False puts the prediction below the image,
            on the same gray scale: for reconstructions.
        threshold: where the contour of a prediction that is no label map is drawn, in its unit.
        channel: which channel of the image is shown.

    Raises:
        InputError: if the items have no image or prediction, or the picture cannot be written.
    """

    def __init__(
        self,
        output_dir: str | Path,
        max_cases: int = 4,
        image_key: str = "image",
        label_key: str = "label",
        pred_key: str = "pred",
        contours: bool = True,
        threshold: float = 0.5,
        channel: int = 0,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.max_cases = max_cases
        self.image_key = image_key
        self.label_key = label_key
        self.pred_key = pred_key
        self.contours = contours
        self.threshold = threshold
        self.channel = channel
        self._slices: list[dict[str, np.ndarray]] = []

    def attach(self, engine: Engine) -> None:
        if rank(engine) > 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _forget(self, engine: Engine) -> None:
        self._slices = []

    def _collect(self, engine: Engine) -> None:
        # the whole number is a batch, the rest a place in it
        places = [position * (engine.state.epoch_length or 1) for position in spread_positions(self.max_cases)]
        shares = [place % 1 for place in places if int(place) == engine.state.iteration - 1]
        if not shares:
            return
        outputs = engine.state.output if isinstance(engine.state.output, list) else decollate_batch(engine.state.output)
        for index in sorted({int(share * len(outputs)) for share in shares}):
            item = outputs[index]
            lacking = {self.image_key, self.pred_key} - item.keys()
            if lacking:
                raise InputError(f"ValidationPictures: no {words(sorted(lacking))} in the output of the evaluator")
            keys = {"image": self.image_key, "label": self.label_key, "pred": self.pred_key}
            masks = ("label", "pred") if self.contours else ("label",)
            item = item | {self.image_key: item[self.image_key][self.channel : self.channel + 1]}
            maps = {role: _array(item[key], role in masks) for role, key in keys.items() if item.get(key) is not None}
            self._slices.append(fullest_slice(maps, masks))

    def _draw(self, engine: Engine) -> None:
        if not self._slices:
            return
        from matplotlib.figure import Figure  # slow to import, and inference does not need it
        from matplotlib.lines import Line2D

        rows, columns = 1 if self.contours else 2, len(self._slices)
        figure = Figure(figsize=(3 * columns, 3 * rows + 0.7), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for column, maps in enumerate(self._slices):
            scale = {"cmap": "gray", "vmin": float(maps["image"].min()), "vmax": float(maps["image"].max())}
            axes[0, column].imshow(maps["image"], **scale)
            if self.contours:
                for role, color in (("label", REFERENCE_COLOR), ("pred", PREDICTION_COLOR)):
                    if role in maps:
                        _contour(axes[0, column], maps[role], self.threshold, color)
            else:
                axes[1, column].imshow(maps["pred"], **scale)
        for axis in axes.flat:
            axis.set_axis_off()
        if self.contours:
            names = {"reference": REFERENCE_COLOR, "prediction": PREDICTION_COLOR}
            lines = [Line2D([], [], color=color, label=name) for name, color in names.items()]
            figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        figure.suptitle(f"epoch {engine.state.epoch}", fontsize=10)
        path = self.output_dir / f"epoch_{engine.state.epoch:04d}.png"
        write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=100))
        for handler in mlflow_handlers(engine):
            handler.client.log_artifact(handler.cur_run.info.run_id, str(path), "validation")


def spread_positions(number: int) -> list[float]:
    """Positions in [0, 1), one in each of ``number`` equal parts, from 30 % of the first to 70 % of the last.

    The middles would be at one height in each of as many volumes; the ends of volumes show hardly any brain.
    """
    return [(i + 0.3 + 0.4 * (i / (number - 1) if number > 1 else 0.5)) / number for i in range(number)]


def fullest_slice(maps: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Cut the slice along the last axis with most of the first map that is not empty, ``labels`` before ``image``.

    Args:
        maps: "image" and others, all (H, W) or (H, W, D) of one shape.
        labels: names of the maps to look at first; those that are missing are passed over.

    Returns:
        each map as (W, H), rotated so that the second axis points up.
    """
    if maps["image"].ndim == 3:
        wanted = next((maps[name] for name in labels if name in maps and maps[name].any()), maps["image"])
        index = int(np.abs(wanted).sum(axis=(0, 1)).argmax())
        maps = {name: values[..., index] for name, values in maps.items()}
    return {name: np.rot90(values) for name, values in maps.items()}


def _array(tensor: torch.Tensor, mask: bool) -> np.ndarray:
    """(C, *spatial) -> (*spatial): the first channel; of a mask with several channels the index of the largest."""
    values = tensor.detach().cpu().float().numpy()
    return values.argmax(axis=0) if mask and len(values) > 1 else values[0]


def _contour(axis: Axes, values: np.ndarray, threshold: float, color: str) -> None:
    """Outline each label of a label map, or the region of any other map that reaches the threshold."""
    is_labels = np.array_equal(values, np.round(values))
    masks = [values == label for label in np.unique(values) if label != 0] if is_labels else [values >= threshold]
    for mask in masks:
        if mask.any() and not mask.all():
            axis.contour(mask, levels=[0.5], colors=color, linewidths=1)
