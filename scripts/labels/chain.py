"""A chain of methods: what one bundle predicts becomes the training data of another, with a guard against leakage."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from monai.utils import ensure_tuple

from catalog import folder_of
from common.data import Datalist, subject_of, write_datalist
from common.errors import InputError
from common.files import Alone, read_json
from common.options import types as t
from datalists.leakage import SEEN, behind_labels, held_out, learned_from, refuse_leaks, taught_by

from .pseudo_labels import UNCERTAIN, Case, clean_up_of, predicted_cases, predictor_of, write_labels

logger = logging.getLogger(__name__)

SHIPPED = "shipped"


def pseudo_labels(
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
    num_workers: t.SmallCount | None = None,
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

    Raises:
        InputError: if somebody who judges has taught, or datalists and labels do not go together; nothing is written.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    predictor = predictor_of(bundle, ["inference.json", *layers], weights)
    clean_up = clean_up_of(predictor, output, threshold, min_lesion_mm3, erosion_mm, uncertain)
    datalist = Datalist(datalist_file)
    cases = predicted_cases(datalist, section, results, predictor.sequences, output)
    merged, kept_out = [*map(Datalist, merge)], [*map(Datalist, keep_out)]
    files = [*([label_sets] if label_sets else []), *(other.path for other in merged)]
    tables = joined_label_sets(files, dataset_name, clean_up is not None and clean_up.uncertain is not None)
    check_datasets(merged, dataset_name)
    teachers: dict[str, list[Case]] = {}
    if list(trained_on) == [SHIPPED]:
        card = folder_of(bundle) / "docs" / "README.md"
        logger.warning("taken on trust that the weights are the shipped ones: %s", card)
    else:
        teachers = taught_by([*map(Datalist, trained_on)])
    judges = held_out([datalist, *merged, *kept_out])
    refuse_leaks({"the pseudo-labeled cases": cases, **teachers, **learned_from(merged)}, judges, num_workers)

    notes = {"trained_on": ["/".join(Path(name).parts[-2:]) for name in trained_on]}
    with Alone(output_dir):
        items = write_labels(cases, output_dir, predictor, clean_up, dataset_name, notes)
        header, sections = joined(items, datalist, merged)
        header |= {"label_sets": tables} if tables else {}
        behind = [part for other in merged for part in behind_labels(other.header, other.path).values()]
        header[SEEN] = sorted({subject_of(case) for part in (*teachers.values(), *behind) for case in part})
        path = write_datalist(Path(output_dir) / "datalist.json", sections, header)
    logger.info("wrote %s: %s", path, ", ".join(f"{len(part)} {name}" for name, part in sections.items()))


def check_datasets(merge: Sequence[Datalist], dataset_name: str | None) -> None:
    """Refuse datalists of which some cases say their data set and others do not.

    Raises:
        InputError: naming the datalist.
    """
    for datalist in merge:
        for case in datalist.items():
            if ("dataset" in case) != (dataset_name is not None):
                found = case.get("dataset", "no dataset")
                raise InputError(
                    f"subject {subject_of(case)} of {datalist} has {found} and the pseudo-labels have {dataset_name}, "
                    "expected a dataset for all cases or for none"
                )


def joined(
    items: Sequence[Case], predicted: Datalist, merge: Sequence[Datalist]
) -> tuple[dict[str, Any], dict[str, list[Case]]]:
    """One datalist of pseudo-labeled cases, for training, and of all sections of others.

    Args:
        items: of :func:`write_labels`.
        predicted: where they are from.
        merge: datalists with other labels, each of which says the ``sequences`` of its images. ``predicted`` may be
            one of them: its other cases then stay in it.

    Returns:
        Header and sections for :func:`common.data.write_datalist`. The images are of all sequences of all datalists,
        null where a case lacks one.

    Raises:
        InputError: if an image has two labels, or a datalist does not say its sequences.
    """
    labels_of = {str(item["image"]) for item in items}
    parts = [(predicted, {"training": list(items)}), *((datalist, datalist.sections) for datalist in merge)]
    for datalist, _ in parts:
        if merge and datalist.sequences is None:
            raise InputError(
                f'{datalist} does not say its sequences, expected "sequences": ["T1w", ...] in it to merge'
            )
    every = list(dict.fromkeys(name for datalist, _ in parts for name in datalist.sequences or ()))
    sections: dict[str, list[Case]] = {}
    labeled: dict[str, Datalist] = {}
    for number, (datalist, content) in enumerate(parts):
        for section, cases in content.items():
            for case in cases:
                if number > 0 and datalist.path == predicted.path and str(case["image"]) in labels_of:
                    continue
                images = [image for image in ensure_tuple(case["image"]) if image is not None]
                twice = next((image for image in images if image in labeled), None)
                if twice is not None:
                    raise InputError(f"{twice} is in {labeled[twice]} and in {datalist}, expected one label for it")
                labeled |= dict.fromkeys(images, datalist)
                if every:
                    case = case | {"image": _of_every(case["image"], datalist.sequences, every, datalist.path)}
                sections.setdefault(section, []).append(case)
    return ({"sequences": every} if every else {}), sections


def _of_every(images: Any, names: Sequence[str], every: Sequence[str], path: str | Path) -> Any:
    """Images of the sequences ``names`` in the places of ``every``, None for those that there are not."""
    images = ensure_tuple(images)
    if len(images) != len(names):
        raise InputError(f"{path} has a case of {', '.join(map(str, images))}, expected {', '.join(names)}")
    of_name = dict(zip(names, images, strict=True))
    found = [of_name.get(name) for name in every]
    return found if len(found) > 1 else found[0]


def joined_label_sets(files: Sequence[str | Path], dataset_name: str | None, uncertain: bool) -> dict[str, Any]:
    """What the label values of all data sets mean, from the ``label_sets`` of datalists and configs.

    Args:
        files: JSON files, which may have ``label_sets`` with ``classes`` and ``datasets``.
        dataset_name: of the pseudo-labels.
        uncertain: they have the value :data:`UNCERTAIN`, which is added to the table of their data set as ``ignore``.

    Returns:
        ``label_sets``; empty if no file has any.

    Raises:
        InputError: if two files contradict each other, or the data set has no table where one is needed.
    """
    result: dict[str, Any] = {}
    for path in files:
        content = read_json(path)
        own = content.get("label_sets", {}) if isinstance(content, dict) else {}
        if own.get("classes", result.get("classes")) != result.get("classes", own.get("classes")):
            raise InputError(f"{path} has the classes {own['classes']}, expected {result['classes']} as the others")
        for name, table in own.get("datasets", {}).items():
            if result.get("datasets", {}).get(name, table) != table:
                raise InputError(f"{path} has another table for the data set {name} than the others, expected one")
        result |= {key: value for key, value in own.items() if key != "datasets"}
        if "datasets" in own:
            result["datasets"] = {**result.get("datasets", {}), **own["datasets"]}
    known = result.get("datasets", {})
    if (uncertain or known) and dataset_name not in known:
        raise InputError(
            f"the data set {dataset_name} has no table in label_sets, expected a file with one (train.json of a bundle "
            "that joins data sets, for instance), and dataset_name to name it"
        )
    if uncertain:
        labels = known[dataset_name]["labels"]
        if labels.get(str(UNCERTAIN), "ignore") != "ignore":
            raise InputError(
                f"the value {UNCERTAIN} of the data set {dataset_name} has a meaning, expected it free for unsure"
            )
        known[dataset_name] = {**known[dataset_name], "labels": {**labels, str(UNCERTAIN): "ignore"}}
    return result
