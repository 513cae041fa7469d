"""What inference wrote of each scan: masks, maps of probability or entropy, and what their values are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import InputError
from common.files import read_json
from common.scans import json_beside, whole_numbers
from datalists.results import read_on_grid, result_in
from datalists.sources import read_table

from .pool import Case, Pool

SAME = {"anomaly": "lesion"}  # two names of one thing in the bundles


class Result(NamedTuple):
    """Files of one scan in one folder of results; None for a map that there is not.

    Attributes:
        name: that the inference gave to the scan.
        mask, probability, entropy: paths.
        map_label: name of the label that the probability is of.
        names: value in the mask -> name, without background.
        maker: bundle and version, from the JSON beside the mask; empty if there is none.
    """

    name: str
    mask: Path
    probability: Path | None
    entropy: Path | None
    map_label: str
    names: dict[int, str]
    maker: str


class Opinion(NamedTuple):
    """What one method says of a scan, on the scan's grid.

    Attributes:
        mask: (X, Y, Z), values of the wanted labels, 0 for all else.
        probability: of the wanted label, where there is one only and its map is a probability; else None.
        wrong: probability that the mask's class is another, from the entropy; else None.
        classes: of the mask that the entropy is of, background included.
    """

    mask: np.ndarray
    probability: np.ndarray | None
    wrong: np.ndarray | None
    classes: int


def find_results(folders: Sequence[str | Path], pool: Pool) -> list[list[Result]]:
    """Results of every scan of the pool that may be drawn, in the order of the folders.

    Args:
        folders: each the ``output_dir`` of one inference.
        pool: the scans.

    Raises:
        InputError: if a scan has no result in a folder, two of them, or nobody says what the labels are.
    """
    return [[_result(Path(folder), case, pool) for folder in folders] for case in pool.unlabeled]


def wanted_labels(results: Sequence[Sequence[Result]], pool: Pool, labels: Sequence[str] | None) -> dict[int, str]:
    """Value in drawn labels -> name, of the labels that all folders have.

    The values are those of the datalist's ``labels``, and without these those of the first folder.

    Args:
        results: of :func:`find_results`.
        pool: the scans.
        labels: names of some of them; None for all.

    Raises:
        InputError: if the folders have no label in common, or lack one that was asked for.
    """
    first = results[0][0].names
    common = [name for name in first.values() if all(name in r.names.values() for scan in results for r in scan)]
    if not common:
        shown = " and ".join(", ".join(result.names.values()) for result in results[0])
        raise InputError(f"the results have the labels {shown}, expected folders with masks of the same things")
    values = {_plain(name): value for value, name in (pool.label_names or first).items()}
    names = [_plain(name) for name in labels] if labels else [name for name in common if name in values]
    missing = [name for name in names if name not in common or name not in values]
    if missing or not names:
        raise InputError(
            f"{missing[0] if missing else 'no label'} is in the results ({', '.join(common)}) and in the labels of the "
            f"datalist ({', '.join(values)}), expected it in both"
        )
    return {values[name]: name for name in names}


def opinion_of(result: Result, labels: Mapping[int, str], image: str) -> Opinion:
    """Read what a method says of a scan.

    Args:
        result: its files.
        labels: value -> name, of :func:`wanted_labels`.
        image: file whose grid all of them must have.

    Raises:
        InputError: if a file cannot be read or lies on another grid.
    """
    raw = whole_numbers(read_on_grid(result.mask, image), result.mask)
    value_of = {name: value for value, name in labels.items()}
    mask = np.zeros(raw.shape, np.uint8)
    for value, name in result.names.items():
        if name in value_of:
            mask[raw == value] = value_of[name]
    probability = wrong = None
    if result.probability is not None and list(labels.values()) == [result.map_label]:
        probability = read_on_grid(result.probability, image).clip(0, 1)
    classes = len(result.names) + 1
    if probability is None and result.entropy is not None:
        wrong = wrong_of_entropy(read_on_grid(result.entropy, image), classes)
    return Opinion(mask, probability, wrong, classes)


def wrong_of_entropy(entropy: np.ndarray, classes: int) -> np.ndarray:
    """About the probability that the most likely of some classes is not the right one: 0 without doubt, 1 - 1 / classes
    where all are alike, and in proportion to the entropy between.

    Args:
        entropy: in nats.
        classes: background included.
    """
    return (entropy / np.log(classes)).clip(0, 1) * (1 - 1 / classes)


def _result(folder: Path, case: Case, pool: Pool) -> Result:
    _, name = result_in(folder, case["image"], pool.result_names)
    mask = folder / f"{name}_seg.nii.gz"
    beside = (
        read_json(json_beside(mask), "what the inference says of a mask", dict) if json_beside(mask).is_file() else {}
    )
    labels = beside.get("labels") or pool.label_names
    label_names = {int(value): _plain(name) for value, name in labels.items() if int(value)}
    if not label_names:
        raise InputError(
            f'{mask} comes without {json_beside(mask).name}, expected that, or "labels" in the datalist, to say what '
            "its values are"
        )
    maps = [folder / f"{name}_{kind}.nii.gz" for kind in ("prob", "entropy")]
    probability, entropy = (path if path.is_file() else None for path in maps)
    map_label = _map_label(folder, tuple(label_names.values()))
    maker = f"{beside['bundle']} {beside['version']}" if {"bundle", "version"} <= beside.keys() else ""
    return Result(name, mask, probability if map_label else None, entropy, map_label, label_names, maker)


def _map_label(folder: Path, names: Sequence[str]) -> str:
    """Name of the label whose expected volume ``volumes.tsv`` has; empty where the map is no probability."""
    table = folder / "volumes.tsv"
    if not table.is_file():
        raise InputError(f"{table} does not exist, expected the folder of an inference without evaluate.json")
    columns = read_table(table)[0][1]
    expected = [_plain(column.removesuffix("_expected_ml")) for column in columns if column.endswith("_expected_ml")]
    return next((name for name in expected if name in names), "")


def _plain(name: Any) -> str:
    return SAME.get(str(name).lower(), str(name).lower())
