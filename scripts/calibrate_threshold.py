"""Find a bundle's threshold on labeled or on healthy scans: it is kept in the bundle with where it came from.

Usage, from the root of the repository:

    python scripts/calibrate_threshold.py NAME --datalist_file cases.json --section validation
    python scripts/calibrate_threshold.py NAME --datalist_file healthy.json --section validation \
        --criterion false_positive_rate --rate 0.01 --write
    python scripts/calibrate_threshold.py NAME --datalist_file cases.json --section validation --dataset_name lesion

The bundle writes its maps as for a user; the threshold is found on these files, at voxels of the brain, before small
components are removed. Scans that a result is to be reported on must not be among the cases.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.options import types as t
from labels.calibration import Scans, calibrate_bundle, write_threshold
from running.command_line import run_command


def main(
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
    """
    scans = Scans(datalist_file, dataset_dir, section, dataset_name)
    values = (label_value, ignore_value)
    found, config = calibrate_bundle(bundle, layers, scans, criterion, rate, *values, output_dir, device, overwrite)
    print(f'"threshold": {found.threshold},\n"threshold_source": {json.dumps(found.source)}')
    if write:
        write_threshold(config, found)
    print(f"{'written to' if write else 'not written; --write puts it into'} {os.path.relpath(config)}")


if __name__ == "__main__":
    run_command(main)
