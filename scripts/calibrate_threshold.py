"""Find a bundle's threshold on labeled or on healthy scans, and keep it in the bundle with where it came from.

Usage, from the root of the repository:

    python scripts/calibrate_threshold.py NAME --datalist_file cases.json --section validation
    python scripts/calibrate_threshold.py NAME --datalist_file healthy.json --section validation \
        --criterion false_positive_rate --rate 0.01 --write
    python scripts/calibrate_threshold.py NAME --datalist_file cases.json --section validation --dataset lesion

The bundle writes its maps as for a user; the threshold is found on these files, at voxels of the brain, before small
components are removed. Scans that a result is to be reported on must not be among the cases.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import subject_of
from common.errors import InputError
from common.files import read_json, write_atomically
from common.options import types as t
from labels.calibration import Calibration, calibrate, check_cases
from running.command_line import run_command
from running.workflow import open_configs

ROOT = Path(__file__).resolve().parents[1]
CRITERIA = ("best_dice", "false_positive_rate")

Case = dict[str, Any]


def write_threshold(config: Path, calibration: Calibration) -> None:
    """Put a threshold and its source in the place of those in a config; every other byte stays, references to them too.

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


def main(
    bundle: t.Text,
    datalist_file: t.File | None = None,
    dataset_dir: t.ExistingFolder | None = None,
    section: t.Text | None = None,
    criterion: Literal["best_dice", "false_positive_rate"] = "best_dice",
    rate: t.Share | None = None,
    layers: t.NamesOrNone = (),
    dataset: t.Text | None = None,
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
        dataset: use only the cases that name this data set, where a datalist joins several.
        label_value: the value in the labels that the map scores, where they hold more than 0 and 1.
        ignore_value: a value in the labels that says nothing, beside label_value; its voxels are left out.
        output_dir: keep the maps there; by default they are removed.
        overwrite: replace maps there that were made in another way.
        device: cpu, cuda:0, ...; by default what the bundle says.
        write: put the threshold and its source into the config.
    """
    if criterion not in CRITERIA:
        raise InputError(f"criterion is {criterion!r}, expected one of {', '.join(CRITERIA)}")
    fits = rate is None if criterion == "best_dice" else rate is not None and 0 < rate < 1
    if not fits:
        raise InputError(
            f"criterion is {criterion} and rate {rate}, expected a rate between 0 and 1 for false_positive_rate only"
        )
    configs = config_files(bundle, layers)
    target = next((c for c in reversed(configs) if "threshold" in read_json(c, "a config", dict)), None)
    if target is None:
        raise InputError(f"{configs[-1]} has no threshold, expected one to calibrate")
    _refuse_test_section(datalist_file, section)
    overrides = {"datalist_file": datalist_file, "dataset_dir": dataset_dir, "device": device}
    overrides |= {"datalist#section": section, "datalist#dataset": dataset, "overwrite": overwrite or None}
    overrides |= {"datalist#require": ["label"]} if criterion == "best_dice" else {"datalist#healthy": True}
    with tempfile.TemporaryDirectory() if output_dir is None else nullcontext(output_dir) as folder:
        given = {key: value for key, value in overrides.items() if value is not None}
        names = [path.name for path in configs]
        workflow = open_configs(configs[0].parents[1], names, logging_file=None, output_dir=str(folder), **given)
        cases = workflow.parser.get_parsed_content("datalist")
        _refuse_test_subjects(cases, datalist_file)
        if ignore_value is not None and (criterion != "best_dice" or label_value is None):
            raise InputError(f"ignore_value is {ignore_value}, expected it with best_dice and a label_value only")
        check_cases(cases, criterion, label_value)
        workflow.run()
        workflow.finalize()
        data = _data_name(datalist_file, dataset_dir, section, dataset)
        calibration = calibrate(cases, folder, criterion, rate, data, label_value, ignore_value)
    print(f'"threshold": {calibration.threshold},\n"threshold_source": {json.dumps(calibration.source)}')
    if write:
        write_threshold(target, calibration)
    print(f"{'written to' if write else 'not written; --write puts it into'} {os.path.relpath(target)}")


def config_files(bundle: str | Path, layers: str | Sequence[str] = ()) -> list[Path]:
    """``inference.json`` of a bundle, given by name or folder, and the layers on it."""
    folder = ROOT / "bundles" / bundle if (ROOT / "bundles" / bundle).is_dir() else Path(bundle)
    names = ["inference.json", *(layers.split(",") if isinstance(layers, str) else layers)]
    paths = [folder.resolve() / "configs" / name for name in names]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} does not exist, expected a config of the bundle {folder.name}")
    return paths


def _refuse_test_section(datalist_file: str | None, section: str | None) -> None:
    """Refuse what a result will be reported on: a threshold chosen there makes the result look better than it is."""
    if section == "test":
        raise InputError("section is 'test', expected another one: a threshold is never chosen on the test set")
    content = _content(datalist_file)
    if isinstance(content, dict) and section is None:
        parts = [key for key, value in content.items() if key != "test" and isinstance(value, list) and value]
        raise InputError(f"{datalist_file} has parts and no section is given, expected one of {', '.join(parts)}")


def _refuse_test_subjects(cases: Sequence[Case], datalist_file: str | None) -> None:
    """Refuse a subject of the datalist's own test section."""
    content = _content(datalist_file)
    items = content.get("test", []) if isinstance(content, dict) else []
    tested = {subject_of(item if isinstance(item, dict) else {"image": item}) for item in items}
    both = sorted(tested & {subject_of(case) for case in cases})
    if both:
        raise InputError(f"{both[0]} is also in the test section of {datalist_file}, expected other subjects")


def _content(datalist_file: str | None) -> Any:
    """What a datalist holds; None where :func:`common.data.list_cases` will say what is wrong with it."""
    try:
        return read_json(datalist_file) if datalist_file else None
    except InputError:
        return None


def _data_name(
    datalist_file: str | None, dataset_dir: str | None, section: str | None, dataset: str | None = None
) -> str:
    """What a data set calls itself, else its file or folder, without the folders above: they say who ran it."""
    content = _content(datalist_file)
    description = Path(dataset_dir or Path(datalist_file or ".").parent) / "dataset_description.json"
    named = [c.get("name") or c.get("Name") for c in (content, _content(str(description))) if isinstance(c, dict)]
    name = next((name for name in named if name), Path(datalist_file or dataset_dir or "").resolve().name)
    return ", ".join(part for part in (name, dataset, section) if part)


if __name__ == "__main__":
    run_command(main)
