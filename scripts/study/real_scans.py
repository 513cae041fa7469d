"""Shipped weights and the baselines beside them on real scans: which scans, which methods, what they score."""

from __future__ import annotations

import csv
import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catalog import Row, describe
from common.data import list_cases
from common.evaluation import Evaluation
from common.files import done_once, read_json
from common.metrics import best_dice, summarize
from comparison import TARGETS
from comparison.trial import Split, Trial
from running.machine import machine
from running.workflow import Entry

from . import evidence
from .scan_sets import LESION, Case, RealScans, ScanSet

logger = logging.getLogger(__name__)

BEST_DICE = "best Dice of any threshold, lesion"  # found with the reference: a bound, not what a user gets
TISSUE_DICE = "Dice, mean of tissues"
GAIN = "Dice of the shipped network minus this"  # pair by pair
CALLED_LESION = "called lesion, without a reference, ml"
Scores = dict[str, dict[str, float]]  # score -> subject, or pair of them -> value
FEWEST = 5  # subjects for an interval


@dataclass(frozen=True)
class Scoring:
    """Predictions and scores of the bundles; what is done is not done again.

    Args:
        data: the scans.
        output_dir: masks, maps and adapted weights go to ``output_dir/<set>/<bundle>``.
        bundles: folder of the bundles.
        registration_subjects: pairs are all ordered ones of so many first subjects of a set; None for all subjects.
        options: ``<bundle>/<config>`` -> entries of the config to replace.
        device: cpu, cuda:0, ...; None for what the bundles say.
    """

    data: RealScans
    output_dir: Path
    bundles: Path
    registration_subjects: int | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str | None = None

    def tables(self, bundle: str) -> list[dict[str, Any]]:
        """Those of a bundle: one for each set of scans, and for the pairs of a set that are registered."""
        tables = []
        for scans in self.data.sets_of(bundle):
            listed = self._rows(bundle, scans)
            rows = []
            for number, (row, control) in enumerate(listed, start=1):
                title = f"{row.title} by {control}" if control else row.title
                logger.info("%s on %s, %d of %d: %s", bundle, scans.name, number, len(listed), title)
                rows.append(_row(title, row.is_baseline, row.is_shipped, self._scores(row, control, scans)))
            title = {"name": scans.name, "title": scans.title, "subjects": len(scans.cases), "note": scans.note}
            tables.append(title | {"rows": rows})
            config = describe(bundle, self.bundles).registration
            if config and not scans.shows_lesions and len(scans.cases) > 1:
                tables.append(self._registration(bundle, config, scans))
        return tables

    def metadata(self, bundle: str) -> dict[str, Any]:
        """What ``metadata.json`` of a bundle says."""
        return self._config(bundle, "metadata")

    def _config(self, bundle: str, name: str) -> dict[str, Any]:
        return read_json(self.bundles / bundle / "configs" / f"{name}.json")

    def _trial(self, scans: ScanSet) -> Trial:
        """The folder of a set, where steps are done once."""
        split, target = Split(0, [], [], scans.cases), TARGETS["tissue"]
        folder = self.output_dir / scans.name
        return Trial(folder, split, target, scans.sequences, 0, self.bundles, self.options, self.device)

    # segmentation

    def _rows(self, bundle: str, scans: ScanSet) -> list[tuple[Row, str]]:
        """Those that there are files for, and those that are told a scan also by every control, with its title."""
        further = self.data.further_of(bundle)
        rows = [
            row
            for row in describe(bundle, self.bundles).rows
            if scans.fits(row.bundle)
            and (scans.adapt or not row.adapted_by)
            and (further.labeled_scan or not row.is_told)
        ]
        by_controls = [(row, title) for row in rows if row.is_told for title in further.controls]
        return [(row, "") for row in rows] + by_controls

    def _scores(self, row: Row, control: str, scans: ScanSet) -> Scores:
        """Scores of the files of a row, or those that were computed of the same files before."""
        trial = self._trial(scans)
        inference, bundle = row.inference, row.bundle
        configs = ["inference", *inference.layers]
        options: dict[str, Any] = {}
        parts = []
        if row.adapted_by:
            models = trial.train(bundle, row.adapted_by, {"datalist_file": {"training": scans.cases}})
            options = {inference.weights[0]: models / row.adapted_by.writes}
            parts.append("adapted")
        if row.is_told:
            scan = self.data.further_of(bundle).labeled_scan
            options = dict(zip(inference.told, (scan["T1w"], scan["tissues"]), strict=True))
            parts.append("of_one_scan")
        if control:
            controls = self.data.further_of(bundle).controls
            options[inference.weights[0]] = controls[control]
            parts.append(f"control_{[*controls].index(control) + 1}")
        folder = trial.folder / bundle / "_".join([*configs, *parts])
        datalist = trial.write_cases({"test": scans.cases})
        trial.step(folder, bundle, configs, {"datalist_file": datalist, "output_dir": folder, **options})

        references = [path for paths in scans.references.values() for path in paths.values()]
        files = {"predictions": folder / "done.json", "code": Path(__file__)}
        files |= {path: Path(path) for path in references}

        def score() -> Scores:
            config = self._config(bundle, "inference")
            optional = config.get("optional_sequences", ())
            cases = list_cases(datalist_file=datalist, sequences=config["sequences"], optional_sequences=optional)
            channels = self.metadata(bundle)["network_data_format"]["outputs"]["pred"]["channel_def"]
            return score_files(cases, scans, folder, channels)

        return done_once(folder / "scores.json", files, score)

    # registration

    def _registration(self, bundle: str, config: str, scans: ScanSet) -> dict[str, Any]:
        """Table of every subject onto every other one: affine maps alone, controls, the shipped network, and refined.

        The controls are networks without refinement, so it is the network alone whose gain over them is told.
        """
        trial = self._trial(scans)
        subjects = scans.cases[: self.registration_subjects]
        cases = [case | {"label": scans.references[case["subject"]]["tissues"]} for case in subjects]
        datalist = trial.write_cases({"test": cases})
        unrefined = describe(bundle, self.bundles).registration_alone

        def register(name: str, options: Mapping[str, Any]) -> list[dict[str, str]]:
            return self._register(trial, (bundle, config), name, datalist, options)

        pairs = register("registration", {})
        alone = pair_scores(register("registration_network", unrefined) if unrefined else pairs)

        def baseline(title: str, scores: Scores) -> dict[str, Any]:
            ours, its = alone[TISSUE_DICE], scores[TISSUE_DICE]
            gain = {pair: ours[pair] - its[pair] for pair in ours if pair in its}
            return _row(title, True, False, scores | {GAIN: gain}, _fixed_of)

        rows = [baseline("affine only", pair_scores(pairs, "_affine"))]
        for number, (title, weights) in enumerate(self.data.further_of(bundle).controls.items(), start=1):
            control = register(f"registration_control_{number}", {"weights": weights, **unrefined})
            rows.append(baseline(title, pair_scores(control)))
        title = next(row.title for row in describe(bundle, self.bundles).rows if row.is_shipped)
        rows.append(_row(title, False, not unrefined, alone, _fixed_of))
        if unrefined:
            rows.append(_row(f"{title}, refined", False, True, pair_scores(pairs), _fixed_of))
        return {
            "name": f"{scans.name}_pairs",
            "title": f"{scans.title}: registration",
            "subjects": len(cases),
            "note": f"{len(pairs)} ordered pairs; intervals are over fixed subjects. {scans.note}".strip(),
            "rows": rows,
        }

    def _register(
        self, trial: Trial, registration: tuple[str, str], name: str, datalist: Path, options: Mapping[str, Any]
    ) -> list[dict[str, str]]:
        """Lines of ``registration.csv``, with the subjects of each pair; fields and warped scans are not written."""
        bundle, config = registration
        logger.info("%s: %s of %s", bundle, name, trial.folder.name)
        folder = trial.folder / bundle / name
        postprocessing = self._config(bundle, config)["postprocessing"]
        steps = [step for step in postprocessing["transforms"] if step == "@scores" or not _saves(step)]
        scored_only = {"postprocessing": Entry(postprocessing | {"transforms": steps})}
        given = {"datalist_file": datalist, "output_dir": folder, **scored_only, **options}
        trial.step(folder, bundle, [config], given)
        cases = list_cases(datalist_file=datalist, sequences=self._config(bundle, config)["sequences"])
        subjects = {
            f"{fixed['name']}_from-{Path(moving['name']).name}": f"{fixed['subject']} from {moving['subject']}"
            for fixed in cases
            for moving in cases
        }
        with (folder / "registration.csv").open(newline="", encoding="utf-8") as file:
            return [row | {"subjects": subjects[row["pair"]]} for row in csv.DictReader(file)]


def write_evidence(scoring: Scoring, bundles: list[str], evidence_dir: Path) -> None:
    """Score bundles one by one and write the figures of each when they are known.

    Raises:
        InputError: before anything is run, if no set fits one of them.
    """
    for bundle in bundles:
        scoring.data.sets_of(bundle)
    for number, bundle in enumerate(bundles, start=1):
        logger.info("%d of %d: %s", number, len(bundles), bundle)
        start = time.monotonic()
        content = {
            "command": _command(bundle, scoring),
            "machine": machine(scoring.device),
            "version": scoring.metadata(bundle)["version"],
            "sets": scoring.tables(bundle),
        }
        evidence.update(evidence_dir, bundle, "real_scans", content)
        logger.info("%s: %s in %.0f s", bundle, evidence_dir / f"{bundle}.json", time.monotonic() - start)


def _command(bundle: str, scoring: Scoring) -> str:
    """What gives the figures again, without the folders of this machine."""
    words = ["python", "scripts/score_release.py", bundle, "--real_data", scoring.data.path.name]
    if describe(bundle, scoring.bundles).registration and scoring.registration_subjects is not None:
        words += ["--registration_subjects", str(scoring.registration_subjects)]
    return shlex.join(words)


def score_files(cases: Sequence[Case], scans: ScanSet, folder: Path, channels: Mapping[str, str]) -> Scores:
    """Scores of the masks and maps in a folder; subjects for whom one is undefined are left out of it.

    Tissues are scored where the set has ``tissues``, lesions where it has ``lesion``, and the masks have the class. A
    mask without a class for lesions says nothing of the voxels that are lesion in the tissue map, and these are left
    open; in one that has it, they are no tissue.

    Args:
        cases: named as their files are.
        scans: what they are of.
        folder: of the masks.
        channels: value in the masks -> class.
    """

    def with_reference(item: str) -> list[Case]:
        return [case | {"label": scans.references[case["subject"]][item], "dataset": "tissue"} for case in cases]

    known = {name.lower() for name in channels.values()}
    scores: Scores = {}
    if "lesion" in scans.items and known & {"lesion", "anomaly"}:
        values = TARGETS["lesion"].mask_values(channels)
        evaluation = Evaluation(with_reference("lesion"), folder, mask_values=values)
        maps = zip(evaluation.cases, *evaluation.maps_on_disk(), strict=True)
        scores = {
            "Dice, lesion": _values(evaluation, "lesion", "dice"),
            "AUPRC, lesion": _values(evaluation, "lesion", "average_precision"),
            BEST_DICE: {case["subject"]: best_dice(m, mask)[0] for case, m, mask in maps if mask.any()},
            "lesion F1": _values(evaluation, "lesion", "lesion_f1"),
        }
    if "tissues" in scans.items and "csf" in known:
        tissues, finds_lesions = TARGETS["tissue"], "lesion" in known
        labels = tissues.labels | ({LESION: "lesion"} if finds_lesions else {})
        sets = None if finds_lesions else tissues.reference_sets
        evaluation = Evaluation(with_reference("tissues"), folder, labels, reference_sets=sets)
        dice = {f"Dice, {name}": _values(evaluation, name, "dice") for name in tissues.labels.values()}
        scores |= {TISSUE_DICE: _means(dice), **dice}
        if finds_lesions and "lesion" not in scans.items:
            scores[CALLED_LESION] = _values(evaluation, "lesion", "prediction_ml")
    return {name: values for name, values in scores.items() if values}


def _values(evaluation: Evaluation, label: str, key: str) -> dict[str, float]:
    found = {row["subject"]: row[key] for row in evaluation.rows if row["label_name"] == label}
    return {subject: float(value) for subject, value in found.items() if value is not None and np.isfinite(value)}


def _means(scores: Scores) -> dict[str, float]:
    """Mean over scores of the subjects that have all of them."""
    subjects = [s for s in next(iter(scores.values())) if all(s in values for values in scores.values())]
    return {subject: float(np.mean([values[subject] for values in scores.values()])) for subject in subjects}


def pair_scores(pairs: Sequence[Mapping[str, str]], before: str = "") -> Scores:
    """Scores of registered pairs; with ``before`` those of their affine maps alone, which bend and fold nothing.

    Pairs for which a score is undefined, such as the correlation with an image moved out of sight, are left out of it.
    """

    def values(column: str) -> dict[str, float]:
        return {row["subjects"]: float(row[column] or "nan") for row in pairs}

    scores = {
        TISSUE_DICE: values(f"dice{before}"),
        "correlation in the brain": values(f"correlation{before}"),
    }
    of_fields = {
        "folds, %": "folds_percent",
        "SD of log Jacobian": "log_jacobian_sd",
        "inverse error, mm": "inverse_error_mm",
    }
    for name, column in of_fields.items():
        scores[name] = {row["subjects"]: 0.0 for row in pairs} if before else values(column)
    return {name: {pair: x for pair, x in values.items() if np.isfinite(x)} for name, values in scores.items()}


def _saves(step: Mapping[str, Any]) -> bool:
    return step["_target_"].rpartition(".")[2].startswith("Save")


def _fixed_of(pair: str) -> str:
    return pair.split(" from ")[0]


def _row(
    title: str, baseline: bool, shipped: bool, scores: Scores, subject_of: Callable[[str], str] = str
) -> dict[str, Any]:
    found = {name: summary_of(values, subject_of) for name, values in scores.items() if values}
    logger.info("%s: %s", title, ", ".join(f"{name} {score['mean']:.3f}" for name, score in found.items()))
    return {"method": title, "baseline": baseline, "shipped": shipped, "scores": found}


def summary_of(values: Mapping[str, float], subject_of: Callable[[str], str] = str) -> dict[str, Any]:
    """Mean, bootstrap interval over subjects (None for less than five of them) and the values.

    Args:
        values: subject, or pair of subjects -> value.
        subject_of: whom a value belongs to.
    """
    subjects = [subject_of(name) for name in values]
    summary = summarize([*values.values()], subjects)
    enough = len(set(subjects)) >= FEWEST
    return {
        "mean": round(summary.mean, 5),
        "interval": [round(summary.low, 5), round(summary.high, 5)] if enough else None,
        "values": {name: round(value, 5) for name, value in values.items()},
    }
