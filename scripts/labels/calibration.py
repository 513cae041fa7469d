"""Thresholds found on validation cases or on healthy scans, from the maps of a bundle, and kept in its config."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from catalog import folder_of
from common.data import Case, Datalist, refuse_pseudo_labels, subject_of
from common.errors import InputError
from common.files import read_json, write_atomically
from common.metrics import best_dice, pooled_dice, threshold_for_false_positive_rate
from common.options import types as t
from common.tables import counted
from common.transforms import BrainMaskd, CheckLabeld, LoadScand
from running.workflow import config_files, open_configs, without_page

DIGITS = 4  # significant ones of the threshold that is kept


class Calibration(NamedTuple):
    """A threshold, and the sentence that says where it came from."""

    threshold: float
    source: str


def calibrate_threshold(
    bundle: t.Text,
    datalist_file: t.File | None = None,
    dataset_dir: t.ExistingFolder | None = None,
    section: t.Text | None = None,
    criterion: Literal["best_dice", "false_positive_rate"] = "best_dice",
    rate: t.Share | None = None,
    layers: t.NamesOrNone = (),
    dataset_name: t.Text | None = None,
    label_value: t.Whole | None = None,
    ignore_value: t.Whole | None = None,
    output_dir: t.Folder | None = None,
    overwrite: t.Flag = False,
    device: t.Device | None = None,
    write: t.Flag = False,
) -> None:
    """Calibrate the threshold of a bundle.

    Args:
        bundle: name of a bundle, or its folder.
        datalist_file: JSON of cases; its section ``test`` is never used, nor a subject that is in it.
        dataset_dir: folder of cases in its place.
        section: part of the datalist; needed where it has parts.
        criterion: best_dice (labeled cases) or false_positive_rate (the healthy ones of the cases, or all if nobody is
            said to be healthy).
        rate: share of healthy brain voxels that may reach the threshold, as 0.01.
        layers: further configs on inference.json, as inference_residual.json; the last that has a threshold is meant.
        dataset_name: use only the cases that name this data set, where a datalist joins several.
        label_value: the value in the labels that the map scores, where they hold more than 0 and 1.
        ignore_value: a value in the labels that says nothing, beside label_value; its voxels are left out.
        output_dir: keep the maps there; by default they are removed.
        overwrite: replace maps there that were made in another way.
        device: cpu, cuda:0, ...; by default what the bundle says.
        write: put the threshold and its source into the config.

    Raises:
        InputError: if options do not go together, no config has a threshold, or the scans are not to be used.
    """
    if not (rate is None if criterion == "best_dice" else rate is not None and 0 < rate < 1):
        raise InputError(
            f"criterion is {criterion} and rate {rate}, expected a rate between 0 and 1 for false_positive_rate only"
        )
    if ignore_value is not None and (criterion != "best_dice" or label_value is None):
        raise InputError(f"ignore_value is {ignore_value}, expected it with best_dice and a label_value only")
    folder = folder_of(bundle)
    names = ["inference.json", *layers]
    configs = config_files(folder, names)
    target = next((c for c in reversed(configs) if "threshold" in read_json(c, "a config", dict)), None)
    if target is None:
        raise InputError(f"{configs[-1]} has no threshold, expected one to calibrate")
    datalist = None if datalist_file is None else Datalist(datalist_file)
    _refuse_test_section(section, datalist)
    overrides = {"datalist_file": datalist_file, "dataset_dir": dataset_dir, "device": device}
    overrides |= {"datalist#section": section, "datalist#dataset_name": dataset_name}
    overrides |= {"datalist#require": ["label"]} if criterion == "best_dice" else {"datalist#healthy": True}
    given = {key: value for key, value in overrides.items() if value is not None}
    given |= {"overwrite": overwrite} | without_page(folder, names)
    with tempfile.TemporaryDirectory() if output_dir is None else nullcontext(output_dir) as maps:
        workflow = open_configs(folder, names, logging_file=None, output_dir=str(maps), **given)
        cases = workflow.parser.get_parsed_content("datalist")
        _refuse_test_subjects(cases, datalist)
        check_cases(cases, criterion, label_value)
        workflow.run()
        workflow.finalize()
        title = _title(datalist_file, dataset_dir, dataset_name, section)
        found = calibrate(cases, maps, criterion, rate, title, label_value, ignore_value)
    print(f'"threshold": {found.threshold},\n"threshold_source": {json.dumps(found.source)}')
    if write:
        write_threshold(target, found)
    print(f"{'written to' if write else 'not written; --write puts it into'} {os.path.relpath(target)}")


def check_cases(cases: Sequence[Case], criterion: str, label_value: int | None = None) -> None:
    """Refuse cases that a criterion cannot use, before the network runs on them; arguments as for :func:`calibrate`.

    Raises:
        InputError: if no label has a lesion or one is a pseudo-label, or for ``false_positive_rate`` a case is not
            healthy.
    """
    if criterion == "best_dice":
        refuse_pseudo_labels(cases, "the cases to calibrate with")
        if not any(_label(case, label_value).any() for case in cases):
            raise InputError(
                f"no label of the {counted(len(cases), 'case')} has a lesion, expected one to calibrate with best_dice"
            )
        return
    for case in cases:
        if case.get("healthy") is False or ("label" in case and _label(case, label_value).any()):
            raise InputError(f"{case['name']} has lesions, expected healthy scans to calibrate a false-positive rate")


def calibrate(
    cases: Sequence[Case],
    output_dir: str | Path,
    criterion: str,
    rate: float | None = None,
    data: str = "these cases",
    label_value: int | None = None,
    ignore_value: int | None = None,
) -> Calibration:
    """Find the threshold of maps on disk.

    Args:
        cases: items of :func:`common.data.list_cases`, with labels for ``best_dice``, healthy ones for the rate.
        output_dir: holds ``<name>_prob.nii.gz`` of each case.
        criterion: ``best_dice``, the threshold of the largest Dice over the brain voxels of all cases together; or
            ``false_positive_rate``, the smallest threshold that at most a share ``rate`` of the brain voxels reaches.
        rate: for ``false_positive_rate``, between 0 and 1.
        data: what the data set is called.
        label_value: the value in the labels that the map scores; None for labels of 0 and 1 only.
        ignore_value: voxels with this value in the labels are left out.

    Returns:
        The threshold, rounded to four significant digits, and its source with the value that it reaches.

    Raises:
        InputError: if there is no lesion voxel, or no threshold keeps the rate.
    """
    data = re.sub(r"[$@%\s]+", " ", data).strip()  # it goes into a config, where these signs are followed
    brains = [_brain(case) & _decided(case, ignore_value) for case in cases]
    maps = (_read(Path(output_dir) / f"{case['name']}_prob.nii.gz") for case in cases)
    scores = [values[brain] for values, brain in zip(maps, brains, strict=True)]  # 6 MB of a head at 1 mm
    if criterion == "best_dice":
        labels = [_label(case, label_value)[brain] for case, brain in zip(cases, brains, strict=True)]
        threshold = _rounded(best_dice(scores, labels)[1], up=False)
        reached = pooled_dice([values >= threshold for values in scores], labels)
        where = counted(len(cases), "case")
        return Calibration(threshold, f"best pooled Dice, {reached:.3f}, in the brain of {where} ({data})")
    threshold = _rounded(threshold_for_false_positive_rate(scores, rate), up=True)
    reached = np.concatenate([values >= threshold for values in scores]).mean()
    where = counted(len(cases), "healthy scan")
    sentence = f"false-positive rate {rate:g}, {reached:.3g} reached, in the brain of {where} ({data})"
    return Calibration(threshold, sentence)


def write_threshold(config: Path, calibration: Calibration) -> None:
    """Put a threshold and its source instead of those in a config; every other byte stays, references to them too.

    Raises:
        InputError: if the config does not have both, each once and on a line of its own, at its top.
    """
    old = config.read_bytes().decode()
    new = old
    values = {"threshold": calibration.threshold, "threshold_source": calibration.source}
    for key, value in values.items():
        line = re.compile(rf'^(\s*"{key}":\s*)(?:"(?!@)(?:[^"\\]|\\.)*"|[^",\s]+)(?=,?\s*$)', re.MULTILINE)
        text = json.dumps(value, ensure_ascii=False)
        new, count = line.subn(lambda found, text=text: found[1] + text, new)
        if count != 1:
            raise InputError(f'{config} has {count} lines of the form "{key}": ..., expected one to replace')
    if json.loads(new) != {**json.loads(old), **values}:
        raise InputError(f"{config} has its threshold inside another entry, expected it at the top of the file")
    write_atomically(config, lambda part: part.write_bytes(new.encode()))


def _refuse_test_section(section: str | None, datalist: Datalist | None) -> None:
    """Refuse what a result will be reported on: a threshold chosen there makes the result look better than it is."""
    if section == "test":
        raise InputError("section is 'test', expected another one: a threshold is never chosen on the test set")
    if section is None and datalist is not None and datalist.names:
        parts = ", ".join(name for name in datalist.names if name != "test")
        raise InputError(f"{datalist} has parts and no section is given, expected one of {parts}")


def _refuse_test_subjects(cases: Sequence[Case], datalist: Datalist | None) -> None:
    """Refuse a subject of the datalist's own test section."""
    if datalist is None or "test" not in datalist.names:
        return
    both = sorted({subject_of(item) for item in datalist.items("test")} & {subject_of(case) for case in cases})
    if both:
        raise InputError(f"{both[0]} is also in the test section of {datalist}, expected other subjects")


def _title(datalist_file: str | None, dataset_dir: str | None, *parts: str | None) -> str:
    """What a data set calls itself, else its file or folder, without the folders above: they say who ran it."""
    description = Path(dataset_dir or Path(datalist_file or ".").parent) / "dataset_description.json"
    contents = [_content(datalist_file), _content(str(description))]
    named = [content.get("name") or content.get("Name") for content in contents if isinstance(content, dict)]
    path = Path(datalist_file or dataset_dir or "")
    name = next((name for name in named if name), path.resolve().name)
    return ", ".join(part for part in (name, *parts) if part)


def _content(path: str | Path | None) -> Any:
    """What a JSON file holds; None where there is none, or where others will say what is wrong with it."""
    try:
        return read_json(path) if path else None
    except InputError:
        return None


def _read(path: str | Path) -> np.ndarray:
    """Voxels of a map or mask, (X, Y, Z); all of them may be zero."""
    return LoadScand("scan", may_be_empty="scan")({"scan": path})["scan"][0].numpy()


def _label(case: Case, label_value: int | None = None) -> np.ndarray:
    """Mask of the reference: where the label has this value, or is 1 where there is nothing but 0 and 1."""
    label = LoadScand("label")(case)
    if label_value is not None:
        return label["label"][0].numpy() == label_value
    return CheckLabeld("label")(label)["label"][0].numpy() > 0


def _decided(case: Case, ignore_value: int | None) -> np.ndarray | bool:
    """Where the label does not have the value that says nothing."""
    return True if ignore_value is None else LoadScand("label")(case)["label"][0].numpy() != ignore_value


def _brain(case: Case) -> np.ndarray:
    """Where the bundle looks: the brain mask of the case, else where its first image is not 0."""
    loaded = LoadScand("brain_mask", allow_missing_keys=True)(LoadScand("image")(case))
    return BrainMaskd("image", largest_negative_share=None)(loaded)["brain_mask"][0].numpy() > 0


def _rounded(value: float, up: bool) -> float:
    """Four significant digits, not below the value with ``up``, else not above it, as a float32 map is compared."""
    if value == 0:
        return 0.0
    places = DIGITS - 1 - math.floor(math.log10(abs(value)))
    rounded = round(float(value), places)
    beyond = np.float32(rounded) < np.float32(value) if up else np.float32(rounded) > np.float32(value)
    return round(rounded + (1 if up else -1) * 10.0**-places, places) if beyond else rounded
