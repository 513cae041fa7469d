"""What stage 2 learns from: patients with drawn masks, healthy people with painted anomalies, or both."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, MultiSampleTrait, Randomizable

from common.data import check_lesions, list_cases
from common.errors import InputError


def anomaly_cases(
    dataset_dir: str | Path | None = None,
    datalist_file: str | Path | None = None,
    healthy_datalist_file: str | Path | None = None,
    sequences: Sequence[str] = ("T1w",),
    section: str | None = None,
) -> list[dict[str, Any]]:
    """Cases with drawn masks, then healthy ones, into which anomalies are painted.

    Args:
        dataset_dir, datalist_file: labeled cases, see :func:`common.data.list_cases`; None for none.
        healthy_datalist_file: healthy cases, whose labels are not used; None for none. Of a list that says who is
            healthy, those; it may be the same list as ``datalist_file``, whose healthy cases are then left to this one.
        sequences, section: as for :func:`common.data.list_cases`.

    Returns:
        Cases with ``healthy``; those where it is false have ``label``.

    Raises:
        InputError: if there is no case at all, one is both labeled and healthy, or nobody is healthy and no label has
            a lesion.
    """
    cases = []
    if dataset_dir is not None or datalist_file is not None:
        labeled = list_cases(dataset_dir, datalist_file, sequences, section, require=["label"])
        patients = [case for case in labeled if healthy_datalist_file is None or not case.get("healthy")]
        cases += [{**case, "healthy": False} for case in patients]
    if healthy_datalist_file is not None:
        options = {"sequences": sequences, "section": section, "healthy": True}
        healthy = list_cases(datalist_file=healthy_datalist_file, **options)
        both = {case["image"] for case in cases} & {case["image"] for case in healthy}
        if both:
            raise InputError(f"{min(both)} is listed as labeled and as healthy, expected one of the two")
        cases += [{key: value for key, value in case.items() if key != "label"} | {"healthy": True} for case in healthy]
    if not cases:
        raise InputError(
            "none of dataset_dir, datalist_file and healthy_datalist_file is given, expected labeled or healthy cases"
        )
    if not any(case["healthy"] for case in cases):
        check_lesions(cases, f"the {section} section of {datalist_file or dataset_dir}")
    return cases


class EmptyLabeld(MapTransform):
    """An empty label for cases without one.

    Args:
        keys: labels to make where they are missing, as large as the image.
        image_key: image, MetaTensor (1, X, Y, Z).
    """

    def __init__(self, keys: KeysCollection = "label", image_key: str = "image") -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.keys:
            if key not in d:
                d[key] = torch.zeros_like(d[self.image_key])
        return d


class RandSlicesd(Randomizable, MapTransform, MultiSampleTrait):
    """Some axial slices of a volume, with an anomaly or from anywhere in the brain.

    Args:
        keys: volumes (C, X, Y, Z).
        num_samples: how many slices; a slice may come twice.
        anomaly_probability: of a slice to be drawn from those with an anomaly, if there are any.
        image_key: tells where the brain is: not 0.
        label_key: tells where anomalies are: not 0.

    Returns:
        A list of items with slices (C, X, Y) under ``keys``, all else as it was.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        num_samples: int = 2,
        anomaly_probability: float = 0.5,
        image_key: str = "image",
        label_key: str = "label",
    ) -> None:
        super().__init__(keys)
        self.num_samples = num_samples
        self.anomaly_probability = anomaly_probability
        self.image_key = image_key
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        brain, anomaly = ((data[key] != 0).sum(dim=(0, 1, 2)) for key in (self.image_key, self.label_key))
        # a slice with a few pixels of brain has nothing to learn from, unless an anomaly is in it
        brain, anomaly = (brain > 0.1 * brain.max()).nonzero()[:, 0], anomaly.nonzero()[:, 0]
        items = []
        for _ in range(self.num_samples):
            chosen = anomaly if len(anomaly) and self.R.uniform() < self.anomaly_probability else brain
            z = int(chosen[self.R.randint(len(chosen))])
            items.append({**data, **{key: data[key][..., z] for key in self.keys}})
        return items
