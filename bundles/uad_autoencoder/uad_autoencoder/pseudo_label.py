"""From the teacher's masks to the student's training set."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.engines.utils import default_prepare_batch
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from common.data import list_cases, write_datalist
from common.errors import InputError

logger = logging.getLogger(__name__)


def write_pseudo_datalist(cases: Sequence[dict[str, Any]], output_dir: str | Path, source: str) -> Path:
    """List the scans with the masks that the teacher wrote for them, as ``datalist.json`` beside the masks.

    Labels that the cases may have had are not carried over: the point of the method is to do without them.

    Args:
        cases: what the teacher was run on.
        output_dir: where it wrote ``<name>_seg.nii.gz``, and ``<name>_prob.nii.gz``, the map that was cut at the
            threshold. The map, where there is one, is listed as ``predicted_map``; soft labels are made of it.
        source: how the masks came about; kept in every item.

    Raises:
        InputError: if a mask is missing.
    """
    output_dir = Path(output_dir)
    kept = ("image", "brain_mask", "subject")
    items = []
    for case in cases:
        mask = output_dir / f"{case['name']}_seg.nii.gz"
        if not mask.is_file():
            raise InputError(f"{mask}: no such file, expected the pseudo-label of {case['name']}")
        items.append({**{key: case[key] for key in kept if key in case}, "label": str(mask), "label_source": source})
        score = output_dir / f"{case['name']}_prob.nii.gz"
        if score.is_file():
            items[-1]["predicted_map"] = str(score)
    path = write_datalist(output_dir / "datalist.json", {"training": items})
    logger.info("%d pseudo-labeled scans in %s", len(items), path)
    return path


def training_cases(
    labeled: Sequence[dict[str, Any]] | None,
    pseudo_datalist_file: str | Path | None = None,
    use_labels: bool = True,
    sequences: Sequence[str] = ("FLAIR",),
    volumes_per_epoch: int | None = None,
    pseudo_weight: float = 1.0,
    soft_range: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """The student's training set: labeled scans, pseudo-labeled scans, or both in one pool as in the paper.

    Args:
        labeled: scans with drawn masks; not looked at without ``use_labels``.
        pseudo_datalist_file: written by :func:`write_pseudo_datalist`; None for none.
        use_labels: False leaves the drawn masks out (the paper's arm S).
        sequences: as for :func:`common.data.list_cases`.
        volumes_per_epoch: visits of scans in an epoch, so that training sets of any size get equally long epochs; every
            scan in turn, with new patches. None visits each once.
        pseudo_weight: weight of a pseudo-labeled scan in the loss; a scan with a drawn mask has 1.
        soft_range: makes pseudo-labels soft, see :class:`SoftLabeld`; None leaves them masks, as in the paper.

    Returns:
        Cases with ``weight`` and ``soft`` for the loss, those with soft labels with ``predicted_map``.

    Raises:
        InputError: if nothing is left to train on, a scan is both labeled and pseudo-labeled, an epoch is too short
            to visit every scan, a soft label has no score, or ``pseudo_weight`` or ``soft_range`` makes no sense.
    """
    _check_options(pseudo_datalist_file, pseudo_weight, soft_range)
    cases = [{**case, "weight": 1.0, "soft": False} for case in labeled] if use_labels else []
    if pseudo_datalist_file is not None:
        soft = soft_range is not None
        needed = ["label", "predicted_map"] if soft else ["label"]
        pseudo = list_cases(datalist_file=pseudo_datalist_file, sequences=sequences, require=needed)
        pseudo = [{**case, "weight": float(pseudo_weight), "soft": soft} for case in pseudo]
        both = _files(cases) & _files(pseudo)
        if both:
            raise InputError(f"{min(both)} has a drawn and a pseudo-label, expected one of them")
        cases += pseudo
    if not cases:
        raise InputError("use_labels is false and no pseudo_datalist_file is given, expected labels to train on")
    visits = volumes_per_epoch or len(cases)
    if visits < len(cases):
        raise InputError(f"volumes_per_epoch is {visits} with {len(cases)} scans, expected {len(cases)} or more")
    return [cases[i % len(cases)] for i in range(visits)]


class SoftLabeld(MapTransform):
    """Soft labels instead of masks, for items that are ``soft``: ``(score - low) / (high - low)`` cut to [0, 1].

    The paper leaves soft pseudo-labels to later work. A range around the teacher's threshold, as from half to one and a
    half of it, puts 0.5 where its masks end.

    Args:
        keys: masks, (1, *spatial), on the grid of the score.
        score_key: the map that the mask was cut from, (1, *spatial).
        soft_range: low and high, in the unit of the score. None if no item is soft.
    """

    def __init__(
        self, keys: KeysCollection, score_key: str = "predicted_map", soft_range: Sequence[float] | None = None
    ) -> None:
        super().__init__(keys)
        self.score_key = score_key
        self.soft_range = soft_range

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if d.get("soft"):
            low, high = self.soft_range
            for key in self.key_iterator(d):
                d[key] = ((d[self.score_key] - low) / (high - low)).clamp(min=0, max=1)
        return d


def prepare_weighted_batch(
    batchdata: Mapping[str, torch.Tensor],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """``prepare_batch`` of the U-Net's training: the target is what :class:`~.loss.SegmentationLoss` takes.

    Args:
        batchdata: batch with ``image`` and ``label``, (B, C, *spatial), ``weight`` and ``soft``, (B,). Without the last
            two, as MONAI Label gives it, all weights are 1 and no label is soft.
        device: where all of it goes.
        non_blocking: as for ``torch.Tensor.to``, likewise ``kwargs``.
    """
    image, label = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
    weight, soft = (batchdata.get(key, torch.full((len(image),), value)) for key, value in (("weight", 1), ("soft", 0)))
    scan = {"weight": weight, "soft": soft}
    return image, {"label": label, **{k: v.to(device=device, non_blocking=non_blocking) for k, v in scan.items()}}


def _check_options(
    pseudo_datalist_file: str | Path | None, pseudo_weight: float, soft_range: Sequence[float] | None
) -> None:
    if not pseudo_weight > 0:
        raise InputError(f"pseudo_weight is {pseudo_weight}, expected a number above 0")
    if soft_range is not None and not (len(soft_range) == 2 and soft_range[0] < soft_range[1]):
        raise InputError(f"soft_range is {soft_range}, expected two numbers, the lower one first")
    if pseudo_datalist_file is None and (pseudo_weight != 1 or soft_range is not None):
        raise InputError("pseudo_weight or soft_range is given without pseudo_datalist_file, expected pseudo-labels")


def _files(cases: Sequence[dict[str, Any]]) -> set[Path]:
    return {Path(path).resolve() for case in cases for path in ensure_tuple(case["image"])}
