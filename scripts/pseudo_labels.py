"""Hand what one bundle predicts to the training of another: a chain of methods, with a guard against leakage.

Usage, from the root of the repository; docs/chains.md goes through every chain:

    python scripts/pseudo_labels.py chain --datalist_file scans.json --section training --results results \
        --bundle NAME --layers inference_residual.json --trained_on healthy.json \
        --dataset_name lesion --merge tissues.json,lesions.json

The folder ``chain`` gets a label for every case, beside it a JSON that says where it is from, and ``datalist.json``.
Nobody whom the datalists keep for validation or test may be among those with pseudo-labels, nor among those who taught
or calibrated the network that made them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import read_sections, subject_of, write_datalist
from common.errors import InputError
from common.files import Alone
from common.options import types as t
from datalists.leakage import SEEN, behind_labels, held_out, learned_from, refuse_leaks, taught_by
from labels.pseudo_labels import (
    Case,
    CleanUp,
    Predictor,
    joined,
    joined_label_sets,
    predicted_cases,
    predictor_of,
    write_labels,
)
from running.command_line import run_command

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = "shipped"
OUTPUTS = ("prob", "seg")

logger = logging.getLogger("pseudo_labels")


def main(
    output_dir: t.Folder,
    datalist_file: t.File,
    results: t.ExistingFolder,
    bundle: t.Text,
    trained_on: t.Names,
    layers: t.NamesOrNone = (),
    section: t.Text | None = None,
    output: Literal["prob", "seg"] = "prob",
    weights: t.File | None = None,
    threshold: t.Positive | None = None,
    min_volume_mm3: t.CubicMillimeters | None = None,
    erosion_mm: t.Millimeters = 0.0,
    uncertain: t.RisingPair | None = None,
    dataset_name: t.Text | None = None,
    label_sets: t.File | None = None,
    merge: t.FilesOrNone = (),
    keep_out: t.FilesOrNone = (),
    num_workers: t.Count | None = None,
) -> None:
    """Write labels made of predictions, and a datalist to train on.

    Args:
        output_dir: folder for the labels and their datalist.json.
        datalist_file: JSON of the cases that were predicted.
        results: folder where the inference wrote.
        bundle: name of the bundle that predicted, or its folder.
        trained_on: the datalists that its weights were trained with and its threshold calibrated with, several with
            commas between them; shipped for the weights of this repository, whose card says whom they have seen.
        layers: configs on inference.json that the inference was run with.
        section: of the datalist, if it has sections; never validation or test.
        output: prob, the map, which is cut at the threshold, or seg, the label map as it is.
        weights: file of the weights, if the inference was given another than its configs say.
        threshold: of the map; that of the configs by default.
        min_volume_mm3: smaller lesions are left out; as in the configs by default.
        erosion_mm: what lies this near to the surface of the brain is no lesion.
        uncertain: low and high: from low on a voxel is unsure (value 2, to be ignored), from high on it
            is lesion; in the place of the threshold.
        dataset_name: name that the pseudo-labeled cases get, for bundles that learn from several data sets.
        label_sets: JSON with the label_sets of these data sets, where the datalists have none and uncertain needs one.
        merge: datalists with drawn labels that become part of the new one, all their sections.
        keep_out: datalists whose validation and test sections are guarded likewise, but not merged.
        num_workers: processes that read files to compare them; all cores by default.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    merge, keep_out, layers = names_of(merge), names_of(keep_out), names_of(layers)
    if output not in OUTPUTS:
        raise InputError(f"output is {output!r}, expected one of {', '.join(OUTPUTS)}")
    folder = ROOT / "bundles" / bundle if (ROOT / "bundles" / bundle).is_dir() else Path(bundle)
    predictor = predictor_of(folder, ["inference.json", *layers], weights)
    clean_up = clean_up_of(predictor, output, threshold, min_volume_mm3, erosion_mm, uncertain)
    cases = predicted_cases(datalist_file, section, results, predictor.sequences, output)
    tables = joined_label_sets([*([label_sets] if label_sets else []), *merge], dataset_name, uncertain is not None)
    check_datasets(merge, dataset_name)

    sources = names_of(trained_on)
    if not sources:
        raise InputError("trained_on is empty, expected the datalists that the predictor was trained with, or shipped")
    shipped = sources == [SHIPPED]
    if shipped:
        logger.warning("taken on trust that the weights are the shipped ones: %s", folder / "docs" / "README.md")
    teachers = {} if shipped else taught_by(sources)
    judges = held_out(dict.fromkeys([datalist_file, *merge, *keep_out]))
    refuse_leaks({"the pseudo-labeled cases": cases, **teachers, **learned_from(merge)}, judges, num_workers)

    notes = {"trained_on": ["/".join(Path(name).parts[-2:]) for name in sources]}
    with Alone(output_dir):
        items = write_labels(cases, output_dir, predictor, clean_up, dataset_name, notes)
        _write_list(items, output_dir, datalist_file, merge, tables, teachers)


def _write_list(
    items: Sequence[Case],
    output_dir: str,
    datalist_file: str,
    merge: Sequence[str],
    tables: Mapping[str, Any],
    teachers: Mapping[str, Sequence[Case]],
) -> None:
    """The pseudo-labeled cases and those that they are joined with, and whom the predictor has seen."""
    header, sections = joined(items, datalist_file, merge)
    header |= {"label_sets": tables} if tables else {}
    seen = [
        *teachers.values(),
        *(part for name in merge for part in behind_labels(read_sections(name)[0], name).values()),
    ]
    header[SEEN] = sorted({subject_of(case) for part in seen for case in part})
    path = write_datalist(Path(output_dir) / "datalist.json", sections, header)
    logger.info("wrote %s: %s", path, ", ".join(f"{len(part)} {name}" for name, part in sections.items()))


def names_of(value: str | Sequence[str]) -> list[str]:
    """Names of a command line, with commas between them."""
    return [name for name in value.split(",") if name] if isinstance(value, str) else [str(name) for name in value]


def clean_up_of(
    predictor: Predictor,
    output: str,
    threshold: float | None,
    min_volume_mm3: float | None,
    erosion_mm: float,
    uncertain: Sequence[float] | None,
) -> CleanUp | None:
    """How the map becomes a label; None for a label map.

    Raises:
        InputError: if the options do not fit, or nobody says a threshold.
    """
    given = {"threshold": threshold, "min_volume_mm3": min_volume_mm3, "uncertain": uncertain}
    given |= {"erosion_mm": erosion_mm or None}
    if output == "seg":
        used = [name for name, value in given.items() if value is not None]
        if used:
            raise InputError(f"{used[0]} is given with output seg, expected it with output prob: a label map is kept")
        return None
    if uncertain is not None and not (len(uncertain) == 2 and uncertain[0] < uncertain[1] and threshold is None):
        raise InputError(f"uncertain is {uncertain}, expected two numbers, the lower one first, and no threshold")
    cut = predictor.threshold if threshold is None else threshold
    if cut is None:
        raise InputError(f"{predictor.bundle} has no threshold, expected output seg, or a threshold for its map")
    volume = predictor.min_volume_mm3 if min_volume_mm3 is None else min_volume_mm3
    return CleanUp(float(cut), float(volume), float(erosion_mm), tuple(uncertain) if uncertain else None)


def check_datasets(merge: Sequence[str], dataset_name: str | None) -> None:
    """Refuse datalists of which some cases say their data set and others do not.

    Raises:
        InputError: naming the datalist.
    """
    for path in merge:
        for case in (case for cases in read_sections(path)[1].values() for case in cases):
            if ("dataset" in case) != (dataset_name is not None):
                found = case.get("dataset", "no dataset")
                raise InputError(
                    f"subject {subject_of(case)} of {path} has {found} and the pseudo-labels have {dataset_name}, "
                    "expected a dataset for all cases or for none"
                )


if __name__ == "__main__":
    run_command(main)
