"""All methods on all folds and seeds: what each found, scored alike, kept on disk."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catalog import Method
from common.data import Case, Datalist, check_splits
from common.errors import InputError, find_input_error
from common.evaluation import Evaluation, Scans, Volumes
from common.files import done_once, read_json
from common.metrics import dice_over_thresholds, lesion_sizes
from datalists.splits import parts_by_fold

from .methods import choose
from .targets import TARGETS
from .trial import Split, Trial, Unfit

logger = logging.getLogger(__name__)

POINTS = 61  # thresholds of a curve


@dataclass
class Result:
    """What one method found on the test cases of one fold with one seed.

    Args:
        method: the method.
        fold, seed: of the trial.
        rows: one per case and label, as of :attr:`common.evaluation.Evaluation.rows`, with ``case``.
        lesions: for each lesion of the references: case, volume in mm^3, whether it was found.
        thresholds: of ``curve``, (T,); empty without a map.
        curve: Dice of each case with lesions at each threshold, (N, T).
        uncertain_ml: case -> entropy of the map in bits, summed over voxels, times their volume in ml.
        threshold: of the map; None if the mask comes from none.
        threshold_source: where it is from.
        failures: case -> sentence.
        train_seconds, test_seconds: of all trainings that the method needs; of its predictions.
        evaluation: of the files, for pictures.
        case_of: name of the files -> case.
    """

    method: Method
    fold: int
    seed: int
    rows: list[dict[str, Any]]
    lesions: list[tuple[str, float, bool]]
    thresholds: list[float]
    curve: list[list[float]]
    uncertain_ml: dict[str, float]
    threshold: float | None
    threshold_source: str | None
    failures: dict[str, str]
    train_seconds: float
    test_seconds: float
    evaluation: Evaluation
    case_of: dict[str, str]


@dataclass
class Comparison:
    """Methods on the cases of one datalist.

    With ``weights="train"`` all of them are trained on the same folds: the numbers under ``fold`` of the cases, or the
    sections ``training``, ``validation`` and ``test``. Of K folds each is the test part once, the one after it is for
    validation, the others are for training. A threshold is chosen on validation cases. With ``weights="shipped"``
    nothing is trained: bundles are applied as they are, to the section ``test``, or to all cases where there is none.

    What is done is not done again: every training and prediction is known by its options and the files it read.

    Args:
        datalist: one with ``sequences``, as ``scripts/make_datalist.py`` writes it.
        output_dir: everything goes there.
        target: name of one of :data:`TARGETS`.
        bundles: folder of the bundles.
        methods: names of methods; None for all that fit.
        weights: ``shipped`` or ``train``.
        seeds: of the trainings.
        options: ``<bundle>/<config>`` -> entries of this config to replace.
        device: cpu, cuda:0, ...; None for what the bundles say.
        volumes: reads the files that are scored and shown; comparisons on one page may share it.

    Attributes:
        results: by method, fold and seed, after :meth:`run`.
        failures: what did not work, and why.
        unfit: title of a method -> what the cases lack for it.
        seconds: that it has run.

    Raises:
        InputError: if the datalist or an argument makes no sense.
    """

    datalist: Datalist
    output_dir: str | Path
    target: str
    bundles: Path
    methods: list[str] | None = None
    weights: str = "shipped"
    seeds: Sequence[int] = (0,)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str | None = None
    volumes: Volumes = field(default_factory=Volumes)

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"target is {self.target!r}, expected {' or '.join(TARGETS)}")
        if self.weights not in ("shipped", "train"):
            raise InputError(f"weights is {self.weights!r}, expected shipped or train")
        self.aim = TARGETS[self.target]
        self.chosen = choose(self.methods, self.target, self.weights == "shipped", self.bundles)
        self.output_dir = Path(self.output_dir)
        self.sequences, self.splits = read_splits(self.datalist, self.weights == "train")
        self.cases = {case["case"]: case for split in self.splits for case in split.test}
        if not any(self.aim.label_of(case) for case in self.cases.values()):
            raise InputError(f"no test case of {self.datalist} has a label of {self.target}, expected one or more")
        empty = [split.number for split in self.splits if not any(map(self.is_scored, split.test))]
        if empty:
            raise InputError(f"fold {empty[0]} of {self.datalist} has no labeled case, expected one or more")
        self.results: list[Result] = []
        self.failures: dict[str, str] = {}
        self.unfit: dict[str, str] = {}
        self.seconds = 0.0

    def run(self) -> None:
        """Train, predict and score; a method that fails is noted and does not stop the others."""
        start = time.monotonic()
        seeds = self.seeds if self.weights == "train" else (0,)
        jobs = list(itertools.product(self.splits, seeds, self.chosen))
        trials = {
            (split.number, seed): self._trial(split, seed) for split, seed in itertools.product(self.splits, seeds)
        }
        for number, (split, seed, method) in enumerate(jobs, start=1):
            if method.title in self.unfit:
                continue
            what = f"{method.title}, fold {split.number}, seed {seed}" if self.weights == "train" else method.title
            spent = time.monotonic() - start
            left = f", about {spent / (number - 1) * (len(jobs) - number + 1) / 60:.0f} min left" if number > 1 else ""
            logger.info("%d of %d: %s%s", number, len(jobs), what, left)
            try:
                self.results.append(self._result(trials[split.number, seed], method))
            except Unfit as e:
                logger.warning("%s: left out, %s", method.title, e)
                self.unfit[method.title] = str(e)
                # with some folds only, it would take the cases of the others from all methods
                self.results = [result for result in self.results if result.method is not method]
            except Exception as e:
                error = find_input_error(e)
                if error is None:
                    raise
                logger.error("%s: %s", what, error)
                self.failures[what] = str(error)
        self.seconds += time.monotonic() - start
        if not self.results:
            raise InputError(f"no method could be used on {self.datalist}: {self._reasons()}")

    def is_scored(self, case: Case) -> bool:
        """Whether the truth of a case is known: by a label, or because it is healthy where lesions are looked for."""
        return self.aim.label_of(case) is not None or (self.aim.lesions and case.get("healthy") is True)

    def _reasons(self) -> str:
        return "; ".join(f"{name}: {text}" for name, text in {**self.unfit, **self.failures}.items())

    def _trial(self, split: Split, seed: int) -> Trial:
        folder = self.output_dir / "runs"
        if self.weights == "train":
            folder = folder / f"fold-{split.number}" / f"seed-{seed}"
        else:
            folder = folder / "shipped"
        return Trial(folder, split, self.aim, self.sequences, seed, self.bundles, self.options, self.device)

    def _result(self, trial: Trial, method: Method) -> Result:
        for case in trial.split.test:
            trial.images_of(case, method.bundle)
        trial.seconds = {}
        options = {}
        if self.weights == "train":
            options = trial.prepare(method.bundle, method.inference, method.trained_by)
            options |= trial.calibrate(method.bundle, method.inference.layers, options)
        train_seconds = sum(trial.seconds.values())
        trial.seconds = {}
        # as shipped, methods of both targets may be one
        name = method.name if self.weights == "train" else "_".join([method.bundle, *method.inference.layers])
        folder = trial.folder / "masks" / name
        trial.predict(method.bundle, method.inference.layers, {"test": trial.split.test}, folder, **options)
        known = read_json(folder / "cases.json")
        case_of = {name: case for case, name in known["names"].items() if name not in known["failures"]}
        evaluation = self._evaluation(trial, method, folder, known, case_of)
        return Result(
            method,
            trial.split.number,
            trial.seed,
            **self._scores(folder, method, evaluation, case_of, known["threshold"]),
            threshold=known["threshold"],
            threshold_source=known["threshold_source"],
            failures={case: known["failures"][n] for case, n in known["names"].items() if n in known["failures"]},
            train_seconds=train_seconds,
            test_seconds=sum(trial.seconds.values()),
            evaluation=evaluation,
            case_of=case_of,
        )

    def _evaluation(
        self, trial: Trial, method: Method, folder: Path, known: Mapping[str, Any], case_of: Mapping[str, str]
    ) -> Evaluation:
        metadata = read_json(self.bundles / method.bundle / "configs" / "metadata.json")
        channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        cases = []
        for name, case_id in case_of.items():
            case = self.cases[case_id]
            if not self.is_scored(case):
                continue
            images = trial.images_of(case, method.bundle)
            cases.append({**case, "name": name, "image": images, "label": self.aim.label_of(case)})
            cases[-1]["dataset"] = self.target
            if cases[-1]["label"] is None:
                del cases[-1]["label"]
        return Evaluation(
            cases,
            folder,
            label_names=self.aim.labels,
            title=method.title,
            threshold=known["threshold"],
            lesion_labels=list(self.aim.labels) if self.aim.lesions else [],
            map_label=next(iter(self.aim.labels)) if self.aim.lesions else None,
            reference_sets=self.aim.reference_sets,
            mask_values=self.aim.mask_values(channels),
            volumes=self.volumes,
        )

    def _scores(
        self, folder: Path, method: Method, evaluation: Evaluation, case_of: Mapping[str, str], threshold: float | None
    ) -> dict[str, Any]:
        """Rows, lesions, curve and uncertain volumes, from the files or as they were computed before."""

        def score() -> dict[str, Any]:
            found = {"rows": [row | {"case": case_of[row["name"]]} for row in evaluation.rows]}
            found |= {"lesions": [], "uncertain_ml": {}, "thresholds": [], "curve": []}
            if not self.aim.lesions:
                return found
            for case in evaluation.cases:
                scans = evaluation.load(case)
                found["lesions"] += [[case_of[case["name"]], *lesion] for lesion in _lesions(scans)]
                if method.inference.is_probability and scans.scores is not None:
                    found["uncertain_ml"][case_of[case["name"]]] = uncertain_ml(scans)
            maps, masks = evaluation.maps_on_disk()
            if len(maps) and threshold is not None:
                thresholds = np.linspace(0, 2 * threshold if threshold > 0.5 else min(1, 2 * threshold), POINTS)
                curve = dice_over_thresholds(maps, masks, thresholds)
                found["thresholds"] = thresholds.tolist()
                found["curve"] = curve[~np.isnan(curve).all(axis=1)].tolist()
            return found

        made_from: dict[str, Any] = {"predictions": folder / "done.json"}
        for case in evaluation.cases:
            made_from[f"reference of {case['name']}"] = Path(case["label"]) if "label" in case else None
        return done_once(folder / f"scores_{self.target}.json", made_from, score)


def read_splits(datalist: Datalist, train: bool) -> tuple[tuple[str, ...], list[Split]]:
    """The sequences of a datalist and its folds; see :class:`Comparison`.

    Raises:
        InputError: if it names no sequences, or has neither folds nor the sections to train on.
    """
    sequences = datalist.sequences
    if sequences is None:
        raise InputError(
            f'{datalist} does not say of which sequences its images are, expected "sequences": [...], as '
            "scripts/make_datalist.py writes it"
        )
    sections = {name: datalist.cases(sequences, name, optional_sequences=sequences) for name in datalist.names}
    everyone = [case for part in sections.values() for case in part]
    splits = _splits(sections, everyone, datalist) if train else [Split(0, [], [], sections.get("test", everyone))]
    for split in splits if train else ():
        check_splits(training=split.training, validation=split.validation, test=split.test)
    _identify(everyone, len(sequences))
    return sequences, splits


def _splits(sections: Mapping[str, list[Case]], everyone: list[Case], datalist: Datalist) -> list[Split]:
    in_folds = [case for case in everyone if "fold" in case]
    if in_folds:
        return [Split(number, *parts) for number, parts in enumerate(parts_by_fold(in_folds, datalist.path))]
    missing = [name for name in ("training", "validation", "test") if name not in sections]
    if missing:
        raise InputError(f"{datalist} has no section {missing[0]} and no folds, expected one of both")
    return [Split(0, sections["training"], sections["validation"], sections["test"])]


def _identify(cases: list[Case], images: int) -> None:
    """Give every case a name of its own, the same for all methods, and its images as a list."""
    names = ["_".join(str(case[key]) for key in ("subject", "session") if key in case) for case in cases]
    for case, name in zip(cases, names, strict=True):
        case["case"] = name if name and names.count(name) == 1 else case["name"]
        case["image"] = [case["image"]] if images == 1 else case["image"]
        case.pop("name")
    twice = {case["case"] for case in cases if sum(other["case"] == case["case"] for other in cases) > 1}
    if twice:
        raise InputError(f"several cases are called {min(twice)}, expected a subject and session of its own for each")


def _lesions(scans: Scans) -> list[tuple[float, bool]]:
    """Volume in mm^3 of each lesion of the reference, and whether it was hit."""
    if scans.reference is None:
        return []
    sizes, hit = lesion_sizes(scans.prediction > 0, scans.reference > 0)
    return list(zip((sizes * np.prod(scans.spacing)).tolist(), hit.tolist(), strict=True))


def uncertain_ml(scans: Scans) -> float:
    """Binary entropy of a probability map, in bits, integrated over the scan: ml of voxels that are a coin toss."""
    p = np.clip(scans.scores.astype(np.float64), 1e-12, 1 - 1e-12)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return float(entropy.sum() * np.prod(scans.spacing) / 1000)
