"""Shipped weights and the baselines beside them on real scans: which scans, which methods, what they score."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.comparison import TARGETS
from common.comparison.trial import Split, Trial
from common.data import check_cases, list_cases, read_json
from common.datalist import read_facts
from common.errors import InputError
from common.evaluation import Evaluation
from common.metrics import best_dice, summarize
from common.transforms.io import write_atomically

logger = logging.getLogger(__name__)

Case = dict[str, Any]
SEQUENCES = ("T1w", "FLAIR")
LABELS = {"lesion": range(2), "tissues": range(5)}  # item of a case -> values that its file may have
LESION = 4  # in a tissue map
FEWEST = 5  # subjects for an interval
MEANINGS = {
    "best Dice, lesion": "Dice at the threshold that suits the very subject best, found with its reference: a bound, "
    "not what a user gets",
    "called lesion, ml": "volume that is called lesion; no reference of lesions is known",
    "Dice, mean of classes": "of the moving subject's labels, warped, and the fixed one's; intervals are over fixed "
    "subjects",
}


@dataclass(frozen=True)
class Method:
    """A row of the tables: masks that a bundle writes with the weights and thresholds that it ships.

    Args:
        title: in the tables.
        bundle: whose configs it runs; it may be another one than that of the table.
        layers: configs on ``inference.json``.
        baseline: whether it is what the bundle has to beat.
        adapt: whether ``adapt.json`` fits weights to the scans of the set first, without their labels.
    """

    title: str
    bundle: str
    layers: tuple[str, ...] = ()
    baseline: bool = False
    adapt: bool = False

    @property
    def shipped(self) -> bool:
        """Whether it is what ``inference.json`` does, as it is."""
        return not (self.layers or self.adapt)


FLAIR_THRESHOLD = Method("plain FLAIR threshold", "uad_autoencoder", ("inference_threshold",), baseline=True)
PROPAGATION = Method("labels of the template, propagated", "deepatlas_joint", ("inference_propagation",), baseline=True)
METHODS = {
    "uad_autoencoder": (
        Method("U-Net", "uad_autoencoder"),
        Method("residual of the auto-encoder", "uad_autoencoder", ("inference_residual",)),
        FLAIR_THRESHOLD,
    ),
    "ace_multitask": (Method("one network for all classes", "ace_multitask"), FLAIR_THRESHOLD),
    "sae_segmentation": (
        Method("segmentation auto-encoder", "sae_segmentation"),
        Method("segmentation auto-encoder, after adapt.json", "sae_segmentation", adapt=True),
        Method("mixture of Gaussians", "sae_segmentation", ("inference_em",), baseline=True),
        Method("atlas alone", "sae_segmentation", ("inference_atlas",), baseline=True),
    ),
    "deepatlas_joint": (Method("joint training", "deepatlas_joint"), PROPAGATION),
    "diffusion_recon_unet": (
        Method("sum of both", "diffusion_recon_unet"),
        Method("U-Net alone", "diffusion_recon_unet", ("inference_unet",)),
        Method("reconstruction alone", "diffusion_recon_unet", ("inference_reconstruction",)),
        Method("plain T1w threshold", "diffusion_recon_unet", ("inference_threshold",), baseline=True),
    ),
}
# bundle -> what the cases of a set must have, in one of these ways
NEEDS = {
    "uad_autoencoder": ({"FLAIR", "lesion"},),
    "ace_multitask": ({"T1w", "tissues"}, {"T1w", "FLAIR", "lesion"}),
    "sae_segmentation": ({"T1w", "tissues"},),
    "deepatlas_joint": ({"T1w", "tissues"},),
    "diffusion_recon_unet": ({"T1w", "lesion"},),
}


# the scans


@dataclass(frozen=True)
class ScanSet:
    """Scans of one origin, all with the same items.

    Args:
        name: of its folder.
        title, note: in the tables.
        items: what the cases have, of T1w, FLAIR, brain_mask, lesion and tissues.
        cases: ``subject``, ``image``, ``brain_mask``, and ``content``, which tells scans from others of the same name.
        references: subject -> item -> path of the reference.
        shows_lesions: whether a tissue map has lesions.
    """

    name: str
    title: str
    note: str
    items: frozenset[str]
    cases: list[Case]
    references: dict[str, dict[str, str]]
    shows_lesions: bool

    @property
    def sequences(self) -> list[str]:
        """What the images of a case are."""
        return [sequence for sequence in SEQUENCES if sequence in self.items]

    def fits(self, bundle: str) -> bool:
        """Whether the cases have what a bundle needs."""
        return any(needed <= self.items for needed in NEEDS[bundle])


@dataclass(frozen=True)
class RealScans:
    """What a user's JSON lists, see :func:`read_real_scans`.

    Args:
        path: of the JSON.
        sets: the scans.
        control_weights: of a registration that learned without labels for as many steps as the shipped one.
        labelled_scan: ``T1w`` and ``tissues`` of a subject of no set, whose labels are propagated.
    """

    path: Path
    sets: list[ScanSet]
    control_weights: Path | None = None
    labelled_scan: dict[str, Path] | None = None

    def sets_of(self, bundle: str) -> list[ScanSet]:
        """The sets that a bundle is scored on; InputError if there is none."""
        found = [scans for scans in self.sets if scans.fits(bundle)]
        if not found:
            wanted = " or ".join(" and ".join(sorted(needed)) for needed in NEEDS[bundle])
            raise InputError(f"no set of {self.path} fits {bundle}, expected one whose cases have {wanted}")
        return found


def read_real_scans(path: str | Path) -> RealScans:
    """Sets of real scans, every file checked, also the values of the references.

    ``{"sets": [{"name", "title", "note", "cases": [{"subject", "T1w", "FLAIR", "brain_mask", "lesion", "tissues"}]}],
    "deepatlas_joint": {"control_registration_weights": path, "labelled_scan": {"T1w", "tissues"}}}``: a case has a
    subject, one sequence or both, and what else there is, all cases of a set the same; the second entry and each part
    of it may be left out. ``lesion`` is 1 where there is one, ``tissues`` 1 CSF, 2 GM, 3 WM, 4 lesion. Paths are
    absolute or relative to the JSON.

    Raises:
        InputError: if something is missing, unknown, named twice or of another form, or a file cannot be used.
    """
    path = Path(path)
    content = _checked(read_json(path, "sets of real scans"), str(path), ("sets",), ("deepatlas_joint",))
    sets = [_read_set(item, path) for item in _filled(content["sets"], f"sets of {path}")]
    _refuse_twice([scans.name for scans in sets], f"sets of {path}")
    where = f"deepatlas_joint of {path}"
    further = _checked(content.get("deepatlas_joint", {}), where, (), ("control_registration_weights", "labelled_scan"))
    control = labelled = None
    if "control_registration_weights" in further:
        control = _path(further["control_registration_weights"], where, path)
        if not control.is_file():
            raise InputError(f"{control} in {where} does not exist, expected weights of a registration")
    if "labelled_scan" in further:
        item = _checked(further["labelled_scan"], f"labelled_scan of {where}", ("T1w", "tissues"))
        labelled = {key: _path(value, where, path) for key, value in item.items()}
        case = {"image": str(labelled["T1w"]), "label": str(labelled["tissues"])}
        check_cases([case], path, ["T1w"])
        _check_values(case["label"], range(LESION))
    return RealScans(path, sets, control, labelled)


def _read_set(item: Any, path: Path) -> ScanSet:
    item = _checked(item, f"a set of {path}", ("name", "title", "note", "cases"))
    if not isinstance(item["name"], str) or not re.fullmatch(r"[\w-]+", item["name"]):
        raise InputError(f"a set of {path} has the name {item['name']!r}, expected letters, digits, - and _")
    where = f"the set {item['name']} of {path}"
    optional = (*SEQUENCES, "brain_mask", *LABELS)
    cases = [_checked(case, f"a case of {where}", ("subject",), optional) for case in _filled(item["cases"], where)]
    items = frozenset(cases[0]) - {"subject"}
    for case in cases:
        differing = sorted(items ^ (set(case) - {"subject"}))
        if differing:
            raise InputError(
                f"{case['subject']} in {where} differs from the first case in {differing[0]}, expected "
                "the same items in all cases of a set"
            )
    if not items & set(SEQUENCES):
        raise InputError(f"the cases of {where} have no image, expected {' or '.join(SEQUENCES)}")
    _refuse_twice([str(case["subject"]) for case in cases], where)
    paths = [{key: str(_path(case[key], where, path)) for key in optional if key in case} for case in cases]
    sequences = [sequence for sequence in SEQUENCES if sequence in items]
    files = [
        {"subject": str(case["subject"]), "image": [found[sequence] for sequence in sequences]}
        | {key: value for key, value in found.items() if key not in sequences}
        for case, found in zip(cases, paths, strict=True)
    ]
    labels = [key for key in LABELS if key in items]
    checked = check_cases(files, path, sequences, [key for key in items if key not in sequences])
    values = {_check_values(case[key], LABELS[key]) for case in checked for key in labels if key == "tissues"}
    for case in checked:
        if "lesion" in case:
            _check_values(case["lesion"], LABELS["lesion"])
    return ScanSet(
        item["name"],
        str(item["title"]),
        str(item["note"]),
        items,
        [_to_predict(case) for case in checked],
        {case["subject"]: {key: case[key] for key in labels} for case in checked},
        any(LESION in found for found in values),
    )


def _to_predict(case: Case) -> Case:
    kept = {key: case[key] for key in ("subject", "image", "brain_mask") if key in case}
    images = case["image"] if isinstance(case["image"], list) else [case["image"]]
    files = [*images, *([case["brain_mask"]] if "brain_mask" in case else [])]
    return kept | {"content": _hash_of(files)}


def _checked(item: Any, where: str, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """A dict with the keys that are needed and none but these and the optional ones."""
    expected = ", ".join([*needed, *(f"{key} (optional)" for key in optional)])
    if not isinstance(item, dict):
        raise InputError(f"{where} is {str(item)[:60]!r}, expected a dict with {expected}")
    wrong = [f"no {key}" for key in needed if key not in item]
    wrong += [repr(key) for key in item if key not in (*needed, *optional)]
    if wrong:
        raise InputError(f"{where} has {wrong[0]}, expected {expected}")
    return item


def _filled(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} has {str(value)[:60]!r} where a list is expected with one entry or more")
    return value


def _refuse_twice(names: Sequence[str], where: str) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{where} has {twice[0]} twice, expected each once")


def _path(value: Any, where: str, source: Path) -> Path:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where} has {value!r} where a path is expected")
    return (source.parent / Path(value).expanduser()).absolute()


def _check_values(path: str, known: Sequence[int]) -> tuple[int, ...]:
    values = read_facts(path, label=True).values
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"{path} has the value {unknown[0]}, expected {', '.join(map(str, known))} only")
    return values


def _hash_of(paths: Sequence[str | Path]) -> str:
    state = hashlib.sha256()
    for path in paths:
        state.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return state.hexdigest()


# the figures


@dataclass(frozen=True)
class Scoring:
    """Predictions and scores of the bundles; what is done is not done again.

    Args:
        data: the scans.
        output_dir: masks, maps and adapted weights go to ``output_dir/<set>/<bundle>``.
        bundles: folder of the bundles.
        adapt: whether ``sae_segmentation`` is also fitted to the scans, which takes minutes a scan.
        registration_subjects: pairs are all ordered ones of so many first subjects of a set; None for all subjects.
        options: ``<bundle>/<config>`` -> entries of the config to replace.
        device: cpu, cuda:0, ...; None for what the bundles say.
    """

    data: RealScans
    output_dir: Path
    bundles: Path
    adapt: bool = True
    registration_subjects: int | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str | None = None

    def sets(self, bundle: str) -> list[dict[str, Any]]:
        """The tables of a bundle: a set of scans each, and of ``deepatlas_joint`` its pairs."""
        tables = []
        for scans in self.data.sets_of(bundle):
            logger.info("%s: %d subjects of %s", bundle, len(scans.cases), scans.name)
            tables.append(
                _table(scans, scans.name, scans.title, len(scans.cases), scans.note, [*self._rows(bundle, scans)])
            )
            if bundle == "deepatlas_joint" and not scans.shows_lesions and len(self._to_pair(scans)) > 1:
                tables.append(self._registration(scans))
        return tables

    def _rows(self, bundle: str, scans: ScanSet) -> Iterator[dict[str, Any]]:
        """Methods that a set fits, each with its scores."""
        for method in METHODS[bundle]:
            if not scans.fits(method.bundle) or (method.adapt and not self.adapt):
                continue
            options: dict[str, Any] = {}
            if method.adapt:
                sections = {"training": scans.cases}
                weights = self._trial(scans).train(method.bundle, ["train", "adapt"], sections, scans.name)
                options = {"weights": weights / "model.pt"}
            yield self._row(
                method, scans, "adapted" if method.adapt else "_".join(["inference", *method.layers]), options
            )
        if bundle == "deepatlas_joint" and self.data.labelled_scan is not None:
            files = self.data.labelled_scan
            method = Method("labels of one scan, propagated", bundle, PROPAGATION.layers, baseline=True)
            options = {"moving_file": files["T1w"], "moving_label_file": files["tissues"]}
            yield self._row(method, scans, "propagation_of_a_scan", options)

    def _row(self, method: Method, scans: ScanSet, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        logger.info("%s, %s: %s", method.bundle, scans.name, method.title)
        trial = self._trial(scans)
        folder = trial.folder / method.bundle / name
        datalist = trial.write_cases({"test": scans.cases})
        given = {"datalist_file": datalist, "output_dir": folder, **options}
        trial.step(folder, method.bundle, ["inference", *method.layers], given)
        scores = self._scores(method.bundle, scans, datalist, folder)
        return _row(method.title, method.baseline, method.shipped, scores)

    def _trial(self, scans: ScanSet) -> Trial:
        return Trial(
            self.output_dir / scans.name,
            Split(0, [], [], scans.cases),
            TARGETS["tissue"],
            scans.sequences,
            0,
            self.bundles,
            self.options,
            self.device,
        )

    # segmentation

    def _scores(self, bundle: str, scans: ScanSet, datalist: Path, folder: Path) -> dict[str, dict[str, float]]:
        """Score -> subject -> value, of the files in a folder, or as they were computed before."""
        references = [path for files in scans.references.values() for path in files.values()]
        key = _hash_of([folder / "done.json", *references])
        file = folder / "scores.json"
        known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        if known.get("key") != key:
            config = json.loads((self.bundles / bundle / "configs" / "inference.json").read_text("utf-8"))
            cases = list_cases(
                datalist_file=datalist,
                sequences=config["sequences"],
                optional_sequences=config.get("optional_sequences", ()),
            )
            channels = self._metadata(bundle)["network_data_format"]["outputs"]["pred"]["channel_def"]
            known = {"key": key, "scores": score_files(cases, scans, folder, channels)}
            text = json.dumps(known)
            write_atomically(file, lambda part: part.write_text(text, encoding="utf-8"))
        return known["scores"]

    def _metadata(self, bundle: str) -> dict[str, Any]:
        return json.loads((self.bundles / bundle / "configs" / "metadata.json").read_text("utf-8"))

    def version(self, bundle: str) -> str:
        """Of the bundle, by its metadata."""
        return self._metadata(bundle)["version"]

    # registration

    def _to_pair(self, scans: ScanSet) -> list[Case]:
        return scans.cases[: self.registration_subjects]

    def _registration(self, scans: ScanSet) -> dict[str, Any]:
        """Every subject onto every other one: their affine maps alone, the shipped network, and the control."""
        trial = self._trial(scans)
        cases = [case | {"label": scans.references[case["subject"]]["tissues"]} for case in self._to_pair(scans)]
        content = {"labels": _hash_of([case["label"] for case in cases])}
        datalist = trial.write_cases({"test": [case | content for case in cases]})
        shipped = self._pairs(trial, "registration", datalist, {})
        rows = [
            _row("affine only", True, False, _of_pairs(shipped, "_affine"), _fixed),
            _row("joint training", False, True, _of_pairs(shipped), _fixed),
        ]
        if self.data.control_weights is not None:
            control = self._pairs(trial, "registration_control", datalist, {"weights": self.data.control_weights})
            title = "training without labels, as many steps"
            rows.insert(1, _row(title, True, False, _of_pairs(control), _fixed))
        note = f"{len(shipped)} ordered pairs of {len(cases)} subjects. {scans.note}".strip()
        title = f"{scans.title}: registration of pairs"
        return _table(scans, f"{scans.name}_pairs", title, len(cases), note, rows)

    def _pairs(self, trial: Trial, name: str, datalist: Path, options: Mapping[str, Any]) -> list[dict[str, str]]:
        """Lines of ``registration.csv``, with the subjects of each pair; fields and warped scans are not kept."""
        bundle = "deepatlas_joint"
        logger.info("%s, %s: %s", bundle, trial.folder.name, name)
        folder = trial.folder / bundle / name
        config = json.loads((self.bundles / bundle / "configs" / "inference_registration.json").read_text("utf-8"))
        steps = config["postprocessing"]["transforms"]
        kept = [step for step in steps if step == "@scores" or step["_target_"].endswith("RegisterFilesd")]
        scored_only = {"pictures": False, "postprocessing": config["postprocessing"] | {"transforms": kept}}
        given = {"datalist_file": datalist, "output_dir": folder, **scored_only, **options}
        trial.step(folder, bundle, ["inference_registration"], given)
        cases = list_cases(datalist_file=datalist, sequences=config["sequences"])
        pair_of = {
            f"{fixed['name']}_from-{Path(moving['name']).name}": f"{fixed['subject']} from {moving['subject']}"
            for fixed in cases
            for moving in cases
        }
        with (folder / "registration.csv").open(newline="", encoding="utf-8") as file:
            return [row | {"subjects": pair_of[row["pair"]]} for row in csv.DictReader(file)]


def score_files(
    cases: Sequence[Case], scans: ScanSet, folder: Path, channels: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Score -> subject -> value of the masks and maps in a folder; subjects for whom it is undefined are left out.

    Lesions are scored where the set has ``lesion``, tissues where it has ``tissues``, and the masks have the class. A
    mask without a class for lesions says nothing about the voxels that are lesion in the tissue map; in one that has
    it, they are no tissue.

    Args:
        cases: named as their files are.
        scans: what they are of.
        folder: of the masks.
        channels: value in the masks -> class.
    """
    names = {name.lower() for name in channels.values()}
    scores: dict[str, dict[str, float]] = {}
    if "lesion" in scans.items and names & {"lesion", "anomaly"}:
        scores |= _lesion_scores(_with_reference(cases, scans, "lesion"), folder, channels)
    if "tissues" in scans.items and "csf" in names:
        tissues = TARGETS["tissue"]
        knows_lesions = "lesion" in names
        evaluation = Evaluation(
            _with_reference(cases, scans, "tissues"),
            folder,
            tissues.labels | ({LESION: "lesion"} if knows_lesions else {}),
            reference_sets=None if knows_lesions else tissues.reference_sets,
        )
        scores |= {f"Dice, {name}": _values(evaluation, name, "dice") for name in tissues.labels.values()}
        if knows_lesions and "lesion" not in scans.items:
            scores["called lesion, ml"] = _values(evaluation, "lesion", "prediction_ml")
    return {name: values for name, values in scores.items() if values}


def _lesion_scores(cases: Sequence[Case], folder: Path, channels: Mapping[str, str]) -> dict[str, dict[str, float]]:
    evaluation = Evaluation(cases, folder, mask_values=TARGETS["lesion"].mask_values(channels))
    pairs = zip(evaluation.cases, *evaluation.maps_on_disk(), strict=True)
    return {
        "Dice, lesion": _values(evaluation, "lesion", "dice"),
        "AUPRC, lesion": _values(evaluation, "lesion", "average_precision"),
        "best Dice, lesion": {c["subject"]: best_dice(scores, mask)[0] for c, scores, mask in pairs if mask.any()},
        "lesion F1": _values(evaluation, "lesion", "lesion_f1"),
    }


def _with_reference(cases: Sequence[Case], scans: ScanSet, item: str) -> list[Case]:
    return [case | {"label": scans.references[case["subject"]][item], "dataset": "tissue"} for case in cases]


def _values(evaluation: Evaluation, label: str, key: str) -> dict[str, float]:
    rows = [row for row in evaluation.rows if row["label_name"] == label]
    return {row["subject"]: float(row[key]) for row in rows if row[key] is not None and row[key] == row[key]}


def _of_pairs(rows: Sequence[Mapping[str, str]], before: str = "") -> dict[str, dict[str, float]]:
    """Scores of registered pairs; with ``before`` those of their affine maps alone, which fold nothing."""
    return {
        "Dice, mean of classes": {row["subjects"]: float(row[f"dice{before}"]) for row in rows},
        "correlation in the brain": {row["subjects"]: float(row[f"correlation{before}"]) for row in rows},
        "folds, %": {row["subjects"]: 0.0 if before else float(row["folds_percent"]) for row in rows},
    }


def _fixed(pair: str) -> str:
    return pair.split(" from ")[0]


def _row(
    title: str, baseline: bool, shipped: bool, scores: Mapping[str, Mapping[str, float]], subject_of: Any = str
) -> dict[str, Any]:
    found = {name: summary_of(values, subject_of) for name, values in scores.items()}
    shown = ", ".join(f"{name} {score['mean']:.3f}" for name, score in found.items())
    logger.info("  %s: %s", title, shown)
    return {"method": title, "baseline": baseline, "shipped": shipped, "scores": found}


def summary_of(values: Mapping[str, float], subject_of: Any = str) -> dict[str, Any]:
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


def _table(
    scans: ScanSet, name: str, title: str, subjects: int, note: str, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    return {"name": name, "title": title, "subjects": subjects, "note": note, "rows": rows}
