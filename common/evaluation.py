"""Score the files that inference wrote: a row per case and label, means with intervals, pooled values; CSV and JSON."""

import json
import logging
import math
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from monai.utils import ensure_tuple
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from .data import refuse_pseudo_labels, subject_of
from .errors import InputError
from .files import without_folders, write_text
from .metrics import (
    LesionDetection,
    PrecisionRecall,
    Summary,
    bootstrap_interval,
    false_positive_volume_ml,
    lesion_detection,
    precision_recall,
    summarize,
    surface_distances,
    volume_ml,
    voxel_overlap,
)
from .scans import distinct, grid_difference, open_scan, read_scan, whole_numbers
from .tables import delimited

logger = logging.getLogger(__name__)

NAN = float("nan")


@dataclass(frozen=True)
class Column:
    """A column of the tables: its key in the files, its name on the page, and what it means."""

    key: str
    title: str
    digits: int
    meaning: str = ""


METRICS = (
    Column("dice", "Dice", 3, "2 TP / (2 TP + FP + FN) over voxels; undefined where the reference is empty."),
    Column("precision", "precision", 3, "Share of the predicted voxels that are in the reference."),
    Column("recall", "recall", 3, "Share of the reference voxels that were found."),
    Column("average_precision", "AUPRC", 3, "Area under the precision-recall curve of the map, over voxels."),
    Column(
        "hd95_mm",
        "HD95, mm",
        1,
        "95th percentile of the distances between the surfaces, the larger of both directions. Infinite where nothing "
        "was found: such cases count in the median and are left out of the mean.",
    ),
    Column("assd_mm", "ASSD, mm", 2, "Mean distance between the surfaces, both directions; empty masks as for HD95."),
    Column("lesion_recall", "lesion recall", 3, "Share of the reference lesions that were hit."),
    Column("lesion_precision", "lesion precision", 3, "Share of the predicted lesions that hit a reference lesion."),
    Column("lesion_f1", "lesion F1", 3, "Harmonic mean of lesion-wise recall and precision."),
    Column("reference_ml", "reference, ml", 2, "Volume of the reference."),
    Column("prediction_ml", "prediction, ml", 2, "Volume of the prediction."),
    Column(
        "volume_difference_ml",
        "difference, ml",
        2,
        "Predicted minus reference volume, without the voxels that the reference leaves open.",
    ),
    Column("false_positive_ml", "false positive, ml", 2, "Volume that was predicted outside the reference."),
)
COLUMN = {metric.key: metric for metric in METRICS}
_COUNTS = ("reference_lesions", "detected_lesions", "predicted_lesions", "true_predictions")
_COLUMNS = ("name", "subject", "dataset", "label", "label_name", "reference_empty", *COLUMN, *_COUNTS)


@dataclass(frozen=True)
class Scans:
    """The files of one case, on one grid; ``values`` are those of the reference's file."""

    image: np.ndarray
    affine: np.ndarray
    prediction: np.ndarray
    reference: np.ndarray | None
    scores: np.ndarray | None
    values: np.ndarray | None = None

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm along each axis."""
        return voxel_sizes(self.affine)


class Volume(NamedTuple):
    """Voxels of a file (X, Y, Z), read-only, uint8 where that holds them exactly and else float32; its affine."""

    values: np.ndarray
    affine: np.ndarray


class Volumes:
    """Reads volumes and keeps the first of them: a score, a curve and a picture ask for the same files.

    Args:
        max_bytes: that are kept; what comes later is read each time that it is asked for.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self.max_bytes = max_bytes
        self._kept: dict[tuple[Path, int, int], Volume] = {}

    def read(self, path: str | Path) -> Volume:
        """A NIfTI volume; InputError if it is missing or broken."""
        path = Path(path)
        state = path.stat() if path.is_file() else None
        key = state and (path, state.st_mtime_ns, state.st_size)
        if key in self._kept:
            return self._kept[key]
        values, image = read_scan(path, dtype=None)
        volume = Volume(_compact(values), image.affine)
        if volume.values.nbytes + sum(kept.values.nbytes for kept in self._kept.values()) <= self.max_bytes:
            self._kept[key] = volume
        return volume


def _compact(values: np.ndarray) -> np.ndarray:
    small = values.astype(np.uint8) if values.min() >= 0 and values.max() <= 255 else None
    exact = small is not None and np.array_equal(small, values)
    out = np.ascontiguousarray(small if exact else values.astype(np.float32))
    out.setflags(write=False)
    return out


class Evaluation:
    """Compare ``<name>_seg.nii.gz`` and ``<name>_prob.nii.gz`` in a folder with the references of the cases.

    Everything is read from disk when it is first asked for, so what is scored is what a user gets.

    Args:
        cases: items with ``image`` and ``name``, as from ``common.data.list_cases``. Those with a ``label`` are scored;
            those with ``healthy`` true and no reference have an empty one; the others get volumes only.
        output_dir: where inference wrote.
        label_names: value in the masks -> name; JSON keys may be text. A mask with another value but 0 is refused.
        title: of what is evaluated.
        threshold: operating point of the map; None if the mask comes from no threshold.
        image_key: item that holds the path of the image, or those of several.
        image_index: of several images the one that pictures show; the first that there is, where a case lacks it.
        lesion_labels: labels that are counted lesion by lesion. None: the only label, or none of several.
        map_label: label that the map scores. None: the only label; with several, a map is then left alone.
        connectivity: neighbors that join voxels to one lesion.
        min_overlap: share of a lesion that must be covered, see :func:`common.metrics.lesion_detection`.
        settings: further settings to state in the files, such as the source of the threshold.
        reference_sets: for cases of several data sets, named by their ``dataset``, that do not all label the same: data
            set -> value in its references -> labels that this value may stand for. A data set is then scored on what
            it labels: a label that a value stands for alone, or several that it merges, none of them 0. Voxels whose
            value leaves open whether they belong do not count. None: references hold the labels themselves.
        mask_values: value in the masks -> label, where they know other classes than those that are scored; 0 for
            background. None: masks hold the labels themselves.
        volumes: reads the files. Several evaluations that have some in common may share it.

    Attributes:
        targets: name -> labels that are scored together; one per label, then those that a data set merges.

    Raises:
        ValueError: if there is no case, or a label in ``lesion_labels`` or ``map_label`` has no name.
        InputError: if a case has a pseudo-label as its reference, or is of no data set in ``reference_sets``; by any
            property, if a file is missing, unreadable or on another grid than its image.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        label_names: Mapping[int | str, str] | None = None,
        title: str = "Evaluation",
        threshold: float | None = None,
        image_key: str = "image",
        image_index: int = 0,
        lesion_labels: Sequence[int] | None = None,
        map_label: int | None = None,
        connectivity: int = 26,
        min_overlap: float = 0.0,
        settings: Mapping[str, Any] | None = None,
        reference_sets: Mapping[str, Mapping[int | str, Collection[int]]] | None = None,
        mask_values: Mapping[int, int] | None = None,
        volumes: Volumes | None = None,
    ) -> None:
        self.volumes = Volumes() if volumes is None else volumes
        self.cases = list(cases)
        self.output_dir = Path(output_dir)
        names = {1: "lesion"} if label_names is None else label_names
        self.label_names = {int(value): str(name) for value, name in names.items() if int(value) != 0}
        self.title = title
        self.threshold = threshold
        self.image_key = image_key
        self.image_index = image_index
        only = list(self.label_names) if len(self.label_names) == 1 else []
        self.lesion_labels = only if lesion_labels is None else list(lesion_labels)
        self.map_label = only[0] if map_label is None and only else map_label
        self.connectivity = connectivity
        self.min_overlap = min_overlap
        self.settings = dict(settings or {})
        self.mask_values = {v: v for v in self.label_names} if mask_values is None else dict(mask_values)
        self.failures: dict[str, str] = {}
        if not self.cases:
            raise ValueError("there is no case to evaluate")
        refuse_pseudo_labels([case for case in self.cases if "label" in case], "an evaluation")
        unnamed = {*self.lesion_labels, self.map_label} - {*self.label_names, None}
        if unnamed or not self.label_names:
            raise ValueError(f"labels {sorted(unnamed)} have no name, expected one of {list(self.label_names)}")
        self.reference_sets = _frozen(reference_sets)
        self.targets = {name: frozenset({value}) for value, name in self.label_names.items()}
        for sets in (self.reference_sets or {}).values():
            merged = [labels for labels in sets.values() if 0 not in labels and len(labels) > 1]
            self.targets |= {" + ".join(self.label_names[v] for v in sorted(labels)): labels for labels in merged}
        for case in self.cases:
            if self.reference_sets is not None and self.has_reference(case):
                self._check_dataset(case)

    def _check_dataset(self, case: Mapping[str, Any]) -> None:
        if case.get("dataset") not in self.reference_sets:
            known = ", ".join(self.reference_sets)
            found = f"the dataset {case['dataset']!r}" if "dataset" in case else "no dataset"
            raise InputError(f"the case {case['name']} has {found}, expected one of {known}")

    def leave_out(self, failures: Mapping[str, str]) -> None:
        """Leave out cases that inference failed on, and list them in what is written. To be called before all else.

        Args:
            failures: name of a case -> what is wrong with it, as ``ScanEvaluator.failures``.
        """
        self.failures |= {name: without_folders(sentence) for name, sentence in failures.items()}
        self.cases = [case for case in self.cases if case["name"] not in failures]

    def leave_out_unreadable(self) -> dict[str, str]:
        """Leave out, likewise, the cases whose files cannot be scored, as where one label is broken.

        Returns:
            Name of such a case -> what is wrong with it; empty if all can be scored.

        Raises:
            InputError: if that leaves no case.
        """
        found = {}
        for case in tqdm(self.cases, desc="reading", unit="case", disable=True if len(self.cases) < 2 else None):
            try:
                self.load(case)
            except InputError as e:
                found[case["name"]] = str(e)
                logger.error("%s cannot be scored: %s", case["name"], e)
        if len(found) == len(self.cases):
            raise InputError(f"none of the {len(found)} cases can be scored: {'; '.join(found.values())}")
        self.leave_out(found)
        return found

    def save(self) -> None:
        """Write ``metrics.csv`` and ``metrics.json`` to ``output_dir``; InputError if that cannot be done."""
        text = json.dumps(_for_json(self.as_dict()), indent=2, allow_nan=False) + "\n"  # computed before any writing
        table = delimited([_COLUMNS, *([row[key] for key in _COLUMNS] for row in self.rows)])
        write_text(self.output_dir / "metrics.csv", table)
        write_text(self.output_dir / "metrics.json", text)
        for name, metrics in self.summary.items():
            dice = metrics["dice"]
            logger.info("Dice of %s: %.3f, mean of %d cases", name, dice.mean, dice.cases)

    def as_dict(self) -> dict[str, Any]:
        """Everything that is written, as ``metrics.json`` has it; nan and inf become null there."""
        return {
            "title": self.title,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "settings": self.all_settings(),
            "versions": versions(),
            "summary": {
                label: {key: summary.as_dict() for key, summary in metrics.items()}
                for label, metrics in self.summary.items()
            },
            "healthy": {label: summary.as_dict() for label, summary in self.healthy.items()},
            "pooled": self.pooled,
            "cases": self.rows,
            "failures": self.failures,
        }

    @property
    def numbers(self) -> dict[str, float]:
        """Means and pooled values by name, "mean/lesion/dice" and so on, for tracking; without undefined ones."""
        means = {
            f"mean/{name}/{key}": summary.mean
            for name, metrics in self.summary.items()
            for key, summary in metrics.items()
        }
        healthy = {f"healthy/{name}/false_positive_ml": summary.mean for name, summary in self.healthy.items()}
        pooled = {f"pooled/{name}/{key}": value for name, part in self.pooled.items() for key, value in part.items()}
        return {name: value for name, value in (means | healthy | pooled).items() if math.isfinite(value)}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dict per case and label, in the order of the cases."""
        return [
            row
            for case in tqdm(self.cases, desc="scoring", unit="case", disable=True if len(self.cases) < 2 else None)
            for row in self._score(case)
        ]

    @cached_property
    def summary(self) -> dict[str, dict[str, Summary]]:
        """Label name -> metric -> mean and interval over the cases whose reference is not empty."""
        return {
            name: {key: self._summarize(rows, key) for key in COLUMN if any(row[key] is not None for row in rows)}
            for name, rows in self.rows_by_label(reference_empty=False).items()
            if rows
        }

    @cached_property
    def healthy(self) -> dict[str, Summary]:
        """Label name -> false-positive volume in ml over the cases whose reference is empty."""
        return {
            name: self._summarize(rows, "false_positive_ml")
            for name, rows in self.rows_by_label(reference_empty=True).items()
            if rows
        }

    @cached_property
    def pooled(self) -> dict[str, dict[str, float]]:
        """Label name -> metrics over the voxels, or lesions, of all cases with a reference, healthy ones included."""
        out = {name: self._pool(rows) for name, rows in self.rows_by_label().items()}
        if self.curve is not None:
            best, threshold = self.curve.best_dice
            out[self.label_names[self.map_label]] |= {
                "average_precision": self.curve.average_precision,
                "best_dice_any_threshold": best,
                "best_threshold_on_these_cases": threshold,
            }
        return out

    @cached_property
    def curve(self) -> PrecisionRecall | None:
        """Pooled precision-recall curve of the maps; None without maps, references or lesions."""
        maps, references = self.maps_on_disk()
        curve = precision_recall(maps, references) if len(maps) else None
        return curve if curve is not None and curve.positives else None

    # one case

    def _path(self, case: Mapping[str, Any], postfix: str) -> Path:
        return self.output_dir / f"{case['name']}_{postfix}.nii.gz"

    def has_reference(self, case: Mapping[str, Any]) -> bool:
        """Whether the truth of a case is known, be it that it is healthy, where references have one labeling."""
        is_empty = bool(case.get("healthy")) and self.reference_sets is None
        return case.get("label") is not None or is_empty

    @cached_property
    def _has_maps(self) -> bool:
        missing = [case["name"] for case in self.cases if not self._path(case, "prob").is_file()]
        if self.map_label is None or len(missing) == len(self.cases):
            return False
        if missing:
            raise InputError(
                f"{missing[0]}_prob.nii.gz does not exist in {self.output_dir}, expected a map of every case or of none"
            )
        return True

    def load(self, case: Mapping[str, Any]) -> Scans:
        """Read the files of a case, checked to lie on one grid."""
        images = ensure_tuple(case[self.image_key])
        image = images[self.image_index] or next(path for path in images if path is not None)
        paths = {"image": image, "prediction": self._path(case, "seg")}
        if case.get("label") is not None:
            paths["reference"] = case["label"]
        if self._has_maps:
            paths["scores"] = self._path(case, "prob")
        scans = {key: self.volumes.read(path) for key, path in paths.items()}
        for key, scan in scans.items():
            _check_grid(scan, paths[key], scans["image"], paths["image"])
        arrays = {key: scan.values for key, scan in scans.items()}
        for key in arrays.keys() & {"image", "scores"}:
            arrays[key] = arrays[key].astype(np.float32, copy=False)
        arrays["prediction"] = self._labels_of_mask(arrays["prediction"], paths["prediction"])
        values = None
        if "reference" in arrays:
            values = _as_labels(arrays["reference"], paths["reference"], self._sets_of(case))
        elif self.has_reference(case):
            values = np.zeros_like(arrays["prediction"])
        reference = None if values is None else self._to_look_at(values, case)
        affine = scans["image"].affine
        return Scans(arrays["image"], affine, arrays["prediction"], reference, arrays.get("scores"), values)

    def _labels_of_mask(self, mask: np.ndarray, path: Path) -> np.ndarray:
        known = {0: 0} | self.mask_values
        values = _as_labels(mask, path, known)
        if all(value == label for value, label in known.items()):
            return values
        table = np.zeros(max(known) + 1, dtype=np.uint8 if max(known.values()) < 256 else np.int32)
        table[list(known)] = list(known.values())
        return table[values]

    def _sets_of(self, case: Mapping[str, Any]) -> Mapping[int, frozenset[int]]:
        """Value in the reference of a case -> labels that it may stand for."""
        if self.reference_sets is None or case.get("dataset") not in self.reference_sets:
            return {value: frozenset({value}) for value in (0, *self.label_names)}
        return self.reference_sets[case["dataset"]]

    def _to_look_at(self, values: np.ndarray, case: Mapping[str, Any]) -> np.ndarray:
        """The labels that values stand for: the first of several, and 0 where they may be background."""
        labels = np.zeros_like(values)
        for value, possible in self._sets_of(case).items():
            if 0 not in possible:
                labels[values == value] = min(possible)
        return labels

    def scored_targets(self, case: Mapping[str, Any]) -> list[str]:
        """Names of :attr:`targets` that the reference of a case speaks of; none without a reference."""
        known = set(self._sets_of(case).values()) if self.has_reference(case) else set()
        return [name for name, labels in self.targets.items() if labels in known]

    def _known_masks(self, case: Mapping[str, Any], name: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mask of a target in the reference, and of the voxels where the reference does not leave it open."""
        labels = self.targets[name]
        sets = self._sets_of(case).items()
        inside = [value for value, possible in sets if possible <= labels]
        outside = [value for value, possible in sets if not possible & labels]
        reference = _is_one_of(values, inside)
        return reference, reference | _is_one_of(values, outside)

    def _score(self, case: Mapping[str, Any]) -> list[dict[str, Any]]:
        scans = self.load(case)
        rows = []
        scored = self.scored_targets(case)
        for name, labels in self.targets.items():
            if len(labels) > 1 and name not in scored:
                continue
            row: dict[str, Any] = dict.fromkeys(_COLUMNS)
            row |= {"name": case["name"], "subject": subject_of(dict(case)), "dataset": case.get("dataset")}
            value = next(iter(labels)) if len(labels) == 1 else "+".join(map(str, sorted(labels)))
            row |= {"label": value, "label_name": name}
            row["prediction_ml"] = volume_ml(_is_one_of(scans.prediction, labels), scans.spacing)
            if name in scored:
                row |= self._compare(case, scans, name)
            rows.append(row)
        return rows

    def _compare(self, case: Mapping[str, Any], scans: Scans, name: str) -> dict[str, Any]:
        reference, decided = self._known_masks(case, name, scans.values)
        prediction = _is_one_of(scans.prediction, self.targets[name]) & decided
        overlap = voxel_overlap(prediction, reference)
        surfaces = surface_distances(prediction, reference, scans.spacing)
        reference_ml = volume_ml(reference, scans.spacing)
        out: dict[str, Any] = {
            "reference_empty": not bool(reference.any()),
            "dice": overlap.dice,
            "precision": overlap.precision,
            "recall": overlap.recall,
            "hd95_mm": surfaces.hd95,
            "assd_mm": surfaces.assd,
            "reference_ml": reference_ml,
            "volume_difference_ml": volume_ml(prediction, scans.spacing) - reference_ml,
            "false_positive_ml": false_positive_volume_ml(prediction, scans.spacing, reference),
        }
        if self.targets[name] <= set(self.lesion_labels):
            found = lesion_detection(prediction, reference, self.connectivity, self.min_overlap)
            out |= {key: getattr(found, key) for key in _COUNTS}
            out |= {"lesion_recall": found.recall, "lesion_precision": found.precision, "lesion_f1": found.f1}
        if self.targets[name] == {self.map_label} and scans.scores is not None:
            out["average_precision"] = precision_recall(scans.scores[decided], reference[decided]).average_precision
        return out

    # all cases

    def rows_by_label(self, reference_empty: bool | None = None) -> dict[str, list[dict[str, Any]]]:
        """Rows with a reference, by label name; only those with, or without, an empty one."""
        return {
            name: [
                row
                for row in self.rows
                if row["label_name"] == name
                and row["reference_empty"] is not None
                and reference_empty in (None, row["reference_empty"])
            ]
            for name in self.targets
        }

    def _summarize(self, rows: Sequence[Mapping[str, Any]], key: str) -> Summary:
        return summarize([NAN if row[key] is None else row[key] for row in rows], [row["subject"] for row in rows])

    def _pool(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        if not rows:
            return {}
        keys = ("reference_ml", "volume_difference_ml", "false_positive_ml")
        reference, difference, false = (np.array([row[key] for row in rows]) for key in keys)
        prediction = reference + difference  # prediction_ml has the voxels that the reference leaves open too
        agreed, both = 2 * (prediction - false), reference + prediction
        out = {"cases": len(rows), "dice": NAN, "dice_low": NAN, "dice_high": NAN}
        if reference.any():
            low, high = bootstrap_interval(agreed, both, [row["subject"] for row in rows])
            out |= {"dice": float(agreed.sum() / both.sum()), "dice_low": low, "dice_high": high}
        if rows[0]["reference_lesions"] is not None:
            found = LesionDetection(*(sum(row[key] for row in rows) for key in _COUNTS))
            out |= {"lesion_recall": found.recall, "lesion_precision": found.precision, "lesion_f1": found.f1}
        return out

    def maps_on_disk(self) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
        """Maps, and masks of what they score, of the cases that have a reference; each is made when it is asked for.

        Of a reference that leaves voxels open both have the others only, in one row.
        """
        name = self.label_names.get(self.map_label)
        cases = [case for case in self.cases if self._has_maps and name in self.scored_targets(case)]
        return _FromDisk(cases, self._scored_map), _FromDisk(cases, self._scored_mask)

    def _scored_map(self, case: Mapping[str, Any]) -> np.ndarray:
        scores = self.volumes.read(self._path(case, "prob")).values.astype(np.float32, copy=False)
        return scores[self._masks_on_disk(case)[1]] if self._leaves_open(case) else scores

    def _scored_mask(self, case: Mapping[str, Any]) -> np.ndarray:
        if case.get("label") is None:  # healthy
            return np.zeros(open_scan(self._path(case, "prob")).shape[:3], dtype=bool)
        reference, decided = self._masks_on_disk(case)
        return reference[decided] if self._leaves_open(case) else reference

    def _leaves_open(self, case: Mapping[str, Any]) -> bool:
        """Whether a value in the reference of a case may stand for the label of the map and for others."""
        return any(self.map_label in possible and len(possible) > 1 for possible in self._sets_of(case).values())

    def _masks_on_disk(self, case: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        path = case["label"]
        values = _as_labels(self.volumes.read(path).values, path, self._sets_of(case))
        return self._known_masks(case, self.label_names[self.map_label], values)

    def all_settings(self) -> dict[str, Any]:
        """How the cases were scored, and the settings that were handed over."""
        own = {
            "labels": ", ".join(f"{value} {name}" for value, name in self.label_names.items()),
            "threshold": self.threshold,
            "connectivity of lesions": self.connectivity,
            "least overlap of a detected lesion": self.min_overlap,
        }
        return own | {name: shown(value) for name, value in self.settings.items()}

    def rows_of(self, case: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of one case, one per label."""
        return self._rows_by_case[case["name"]]

    @cached_property
    def _rows_by_case(self) -> dict[str, list[dict[str, Any]]]:
        out: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            out.setdefault(row["name"], []).append(row)
        return out

    def ranked(self) -> list[Mapping[str, Any]]:
        """Lowest Dice first, then healthy cases with most false positives first, then cases without reference."""

        def rank(case: Mapping[str, Any]) -> tuple[int, float, str]:
            rows = self.rows_of(case)
            dice = mean_dice(rows)
            if not math.isnan(dice):
                return 0, dice, case["name"]
            if all(row["reference_empty"] is None for row in rows):
                return 2, 0.0, case["name"]
            return 1, -sum(row["false_positive_ml"] or 0.0 for row in rows), case["name"]

        return sorted(self.cases, key=rank)


class _FromDisk(Sequence):
    """Arrays that are made each time they are asked for, one case at a time."""

    def __init__(self, cases: Sequence[Any], read: Callable[[Any], np.ndarray]) -> None:
        self.cases, self.read = cases, read

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.read(self.cases[index])


def _frozen(
    sets: Mapping[str, Mapping[int | str, Collection[int]]] | None,
) -> dict[str, dict[int, frozenset[int]]] | None:
    if sets is None:
        return None
    return {name: {int(value): frozenset(labels) for value, labels in table.items()} for name, table in sets.items()}


def _is_one_of(values: np.ndarray, labels: Iterable[int]) -> np.ndarray:
    """Where an array has one of a few values; numpy's isin takes ten times as long for them."""
    found = np.zeros(values.shape, dtype=bool)
    for label in labels:
        found |= values == label
    return found


def _as_labels(array: np.ndarray, path: str | Path, known: Collection[int]) -> np.ndarray:
    rounded = array if array.dtype == np.uint8 else whole_numbers(array, path)
    if rounded.dtype == np.uint8 and rounded.size and {*range(int(rounded.max()) + 1)} <= {*known}:
        return rounded
    unknown = set(distinct(rounded)) - set(known)
    if unknown:
        found = ", ".join(f"{value:g}" for value in sorted(unknown)[:5])
        raise InputError(f"{path} has the values {found}, expected {', '.join(map(str, sorted(known)))} only")
    return rounded if rounded.dtype == np.uint8 else rounded.astype(np.int32)


def _check_grid(scan: Volume, path: str | Path, other: Volume, other_path: str | Path) -> None:
    difference = grid_difference(scan.values.shape, scan.affine, other.values.shape, other.affine)
    if difference:
        raise InputError(f"{path} and {other_path} have {difference}, expected one grid")


def mean_dice(rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean over the rows of a case where it is defined; nan if nowhere."""
    values = [row["dice"] for row in rows if row["dice"] is not None and not math.isnan(row["dice"])]
    return sum(values) / len(values) if values else NAN


def _for_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _for_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(value: Any) -> Any:
    """What a page may show: of an absolute path the last part only, it tells nothing of people and machines."""
    if isinstance(value, PurePath) or (isinstance(value, str) and PurePath(value).is_absolute()):
        return PurePath(value).name
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    packages = ("monai", "torch", "numpy", "scipy", "nibabel")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
