"""A chain of methods: what one bundle predicts becomes the training data of another, with a guard against leakage."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.utils import ensure_tuple

from catalog import folder_of
from common.data import Datalist, subject_of, write_datalist
from common.errors import InputError
from common.files import Alone, read_json
from datalists.leakage import SEEN, behind_labels, held_out, learned_from, refuse_leaks, taught_by

from .pseudo_labels import UNCERTAIN, Case, CleanUp, Predictor, write_labels

logger = logging.getLogger(__name__)

SHIPPED = "shipped"


class Lists(NamedTuple):
    """The datalists of a chain.

    Attributes:
        predicted: of the cases that were predicted.
        trained_on: files of those that the predictor was trained and calibrated with, or :data:`SHIPPED` alone.
        merge: with drawn labels, which become part of the new one.
        keep_out: whose validation and test sections are guarded likewise.
        label_sets: JSON with the ``label_sets`` of the data sets; None if the datalists have them.
    """

    predicted: Datalist
    trained_on: Sequence[str]
    merge: Sequence[Datalist] = ()
    keep_out: Sequence[Datalist] = ()
    label_sets: str | None = None


def write_chain(
    output_dir: str | Path,
    cases: Sequence[Case],
    predictor: Predictor,
    clean_up: CleanUp | None,
    lists: Lists,
    bundle: str | Path,
    dataset_name: str | None = None,
    num_workers: int | None = None,
) -> Path:
    """Write a label for every case, and the datalist of all of them and of those that they are joined with.

    Args:
        output_dir: folder.
        cases: of :func:`labels.pseudo_labels.predicted_cases`.
        predictor, clean_up: see :func:`labels.pseudo_labels.write_labels`.
        lists: where cases, teachers and judges stand.
        bundle: name or folder of the predictor, whose card says whom the shipped weights have seen.
        dataset_name: that the cases get.
        num_workers: processes that read files to compare them; all cores by default.

    Returns:
        Path of ``datalist.json``.

    Raises:
        InputError: if somebody who judges has taught, or datalists and labels do not go together; nothing is written.
    """
    files = [*([lists.label_sets] if lists.label_sets else []), *(datalist.path for datalist in lists.merge)]
    tables = joined_label_sets(files, dataset_name, clean_up is not None and clean_up.uncertain is not None)
    check_datasets(lists.merge, dataset_name)
    teachers: dict[str, list[Case]] = {}
    if list(lists.trained_on) == [SHIPPED]:
        card = folder_of(bundle) / "docs" / "README.md"
        logger.warning("taken on trust that the weights are the shipped ones: %s", card)
    else:
        teachers = taught_by([*map(Datalist, lists.trained_on)])
    judges = held_out([lists.predicted, *lists.merge, *lists.keep_out])
    refuse_leaks({"the pseudo-labeled cases": cases, **teachers, **learned_from(lists.merge)}, judges, num_workers)

    notes = {"trained_on": ["/".join(Path(name).parts[-2:]) for name in lists.trained_on]}
    with Alone(output_dir):
        items = write_labels(cases, output_dir, predictor, clean_up, dataset_name, notes)
        header, sections = joined(items, lists.predicted, lists.merge)
        header |= {"label_sets": tables} if tables else {}
        behind = [part for other in lists.merge for part in behind_labels(other.header, other.path).values()]
        header[SEEN] = sorted({subject_of(case) for part in (*teachers.values(), *behind) for case in part})
        path = write_datalist(Path(output_dir) / "datalist.json", sections, header)
    logger.info("wrote %s: %s", path, ", ".join(f"{len(part)} {name}" for name, part in sections.items()))
    return path


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
