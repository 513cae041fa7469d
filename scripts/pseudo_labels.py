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
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import Datalist
from common.options import types as t
from labels.chain import Lists, write_chain
from labels.pseudo_labels import clean_up_of, predicted_cases, predictor_of
from running.command_line import run_command


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
    min_lesion_mm3: t.CubicMillimeters | None = None,
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
        min_lesion_mm3: smaller lesions are left out; as in the configs by default.
        erosion_mm: what lies this near to the surface of the brain is no lesion.
        uncertain: low and high: from low on a voxel is unsure (value 2, to be ignored), from high on it
            is lesion; instead of the threshold.
        dataset_name: name that the pseudo-labeled cases get, for bundles that learn from several data sets.
        label_sets: JSON with the label_sets of these data sets, where the datalists have none and uncertain needs one.
        merge: datalists with drawn labels that become part of the new one, all their sections.
        keep_out: datalists whose validation and test sections are guarded likewise, but not merged.
        num_workers: processes that read files to compare them; all cores by default.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    predictor = predictor_of(bundle, ["inference.json", *layers], weights)
    clean_up = clean_up_of(predictor, output, threshold, min_lesion_mm3, erosion_mm, uncertain)
    datalist = Datalist(datalist_file)
    cases = predicted_cases(datalist, section, results, predictor.sequences, output)
    lists = Lists(datalist, trained_on, [*map(Datalist, merge)], [*map(Datalist, keep_out)], label_sets)
    write_chain(output_dir, cases, predictor, clean_up, lists, bundle, dataset_name, num_workers)


if __name__ == "__main__":
    run_command(main)
