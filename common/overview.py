"""Results without references: volumes of every case, what looks wrong in it, and one page of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import ensure_tuple
from scipy.ndimage import binary_fill_holes

from .data import subject_of
from .evaluation import Scans, shown, versions
from .files import write_text
from .intervals import VolumeIntervals
from .page import CaseView, Section, Table, Tile
from .report import Report, number
from .scans import as_mask, foreground, read_scan
from .sequences import contrast_difference, sequence_name
from .tables import delimited
from .volumes import BRAIN_ML, MANY_TINY, TINY_ML, measure

_DEFINITIONS = (
    ("brain, ml", "Volume of the brain mask; without one, of what is not 0 in the scan."),
    ("%", "Volume of the label, in percent of the brain."),
    ("count, median, largest", "Parts of the mask that do not touch each other, and their volumes."),
    ("expected, ml", "Sum of the probabilities. Far from the volume of the mask, much of it hangs on the threshold."),
    ("touches the border", "The mask reaches the first or last slice of an axis: the scan may end too early."),
    (
        "brain volume improbable",
        f"Not from {BRAIN_ML[0]:g} to {BRAIN_ML[1]:g} ml: look at the brain mask and voxel size.",
    ),
    (
        "many tiny components",
        f"{MANY_TINY} or more, and more than half, are smaller than {TINY_ML:g} ml: often noise, or another contrast.",
    ),
    ("contrast unlike ...", "Tissue is brighter or fainter than in usual scans of this sequence: is it one?"),
    ("no ...", "Nothing has this label."),
)


class Overview(Report):
    """What inference wrote, in numbers and pictures, where nothing is compared: labels of the cases are not looked at.

    :meth:`write` writes ``volumes.tsv``, a line per case, ``report.html``, the cases with most flags first, and the
    views that it links to.

    Args:
        cases, output_dir: see :class:`common.evaluation.Evaluation`.
        label_names: value in the masks -> name; those that have none are called by their value.
        classes: background included, where there may be more than have a name.
        probability: the map holds probabilities, whose sum is the expected volume.
        mask_key: item with the path of the brain mask.
        sequences: what the images of a case are, whose contrast is looked at.
        intervals: of the volumes; they come with the scaling that makes the expected volume one.
        kwargs: further arguments of :class:`common.report.Report`.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        label_names: Mapping[int | str, str],
        *,
        classes: int | None = None,
        probability: bool = True,
        mask_key: str = "brain_mask",
        sequences: Sequence[str] = (),
        intervals: VolumeIntervals | None = None,
        **kwargs: Any,
    ) -> None:
        names = {int(value): name for value, name in label_names.items()}
        if classes is not None:
            names = {value: names.get(value, f"label {value}") for value in range(1, classes)}
        cases = [{key: value for key, value in case.items() if key not in ("label", "healthy")} for case in cases]
        super().__init__(cases, output_dir, label_names=names, **kwargs)
        self.probability = probability
        self.mask_key = mask_key
        self.sequences = sequences
        self.intervals = intervals

    def save(self) -> None:
        """Write ``volumes.tsv``; InputError if that cannot be done."""
        rows = [row | {"flags": "; ".join(row["flags"])} for row in self.rows]
        columns = list(rows[0])
        write_text(self.output_dir / "volumes.tsv", delimited([columns, *([*row.values()] for row in rows)], "\t"))

    @property
    def files(self) -> list[Path]:
        """What :meth:`write` writes, beside the views."""
        return [self.output_dir / name for name in ("report.html", "volumes.tsv")]

    @property
    def numbers(self) -> dict[str, float]:
        """Mean volumes by name, "mean/lesion/ml" and so on, for tracking."""
        return {f"mean/{name}/ml": float(np.mean(self._column(name))) for name in self.label_names.values()}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dict per case, in the order of the cases; volumes in ml."""
        return [self._measure(case) for case in self.cases]

    def ranked(self) -> list[Mapping[str, Any]]:
        """Cases with most flags first, else in their order."""
        flags = {row["case"]: len(row["flags"]) for row in self.rows}
        return sorted(self.cases, key=lambda case: -flags[case["name"]])

    def _measure(self, case: Mapping[str, Any]) -> dict[str, Any]:
        scans = self.load(case)
        expected = {}
        if scans.scores is not None and self.probability:
            scaling = self.intervals and self.intervals.scalings.get(self.label_names[self.map_label])
            scores = scaling(scans.scores) if scaling else scans.scores
            expected[self.map_label] = float(scores.sum(dtype=float) * np.prod(scans.spacing) / 1000)
        brain, known = self._brain(case, scans), (self.label_names, self.lesion_labels, self.connectivity)
        row = measure(scans.prediction, brain, scans.spacing, *known, expected)
        for name in self.label_names.values() if self.intervals else ():
            row[f"{name}_low_ml"], row[f"{name}_high_ml"] = self.intervals.of(name, row[f"{name}_ml"])
        flags = row["flags"] + self._contrasts(case, brain)
        return {"case": case["name"], "subject": subject_of(dict(case))} | row | {"flags": flags}

    def _contrasts(self, case: Mapping[str, Any], brain: np.ndarray) -> list[str]:
        images = zip(ensure_tuple(case[self.image_key]), self.sequences, strict=False)  # () where they are not told
        named = [(path, sequence_name(sequence)) for path, sequence in images if path is not None]
        found = [name for path, name in named if contrast_difference(self.volumes.read(path).values, brain, name)]
        return [f"contrast unlike {name}" for name in found]

    def _brain(self, case: Mapping[str, Any], scans: Scans) -> np.ndarray:
        path = case.get(self.mask_key)
        return binary_fill_holes(foreground(scans.image)) if path is None else as_mask(read_scan(path)[0], path)

    def _column(self, name: str) -> list[float]:
        return [row[f"{name}_ml"] for row in self.rows]

    # the page

    @cached_property
    def section(self) -> Section:
        """The overview as a section of a page."""
        flagged = sum(bool(row["flags"]) for row in self.rows)
        failed = f" {len(self.failures)} more failed." if self.failures else ""
        settings = {"labels": ", ".join(f"{value} {name}" for value, name in self.label_names.items())}
        settings |= {"threshold": self.threshold} if self.threshold is not None else {}
        return Section(
            title=self.title,
            lead=f"{len(self.cases)} cases, without references: nothing here says how good the masks are.{failed}",
            failures=list(self.failures.items()),
            tiles=[
                Tile("To look at first", f"{flagged} of {len(self.cases)}", "cases with a flag"),
                *(self._tile(name) for name in self.label_names.values()),
            ],
            tables=[*self.tables, self._case_table()],
            cases=self._case_views(),
            cases_note="Most flags first. R and L are the patient's sides, A and P front and back.",
            reference=False,
            details=[(name, shown(value)) for name, value in (settings | self.settings | versions()).items()],
            definitions=_DEFINITIONS + ((("low, high, ml", self.intervals.note()),) if self.intervals else ()),
        )

    def _tile(self, name: str) -> Tile:
        volumes = self._column(name)
        note = f"median volume, {number(min(volumes), 2)} to {number(max(volumes), 2)} ml"
        return Tile(name, f"{number(float(np.median(volumes)), 2)} ml", note)

    @property
    def _keys(self) -> list[str]:
        """The columns of numbers."""
        return [key for key in self.rows[0] if key not in ("case", "subject", "flags")]

    def _case_table(self) -> Table:
        by_name = {row["case"]: row for row in self.rows}
        rows = [
            [case["name"], "; ".join(row["flags"]) or "–", *(_shown_number(key, row[key]) for key in self._keys)]
            for case in self.ranked()
            for row in [by_name[case["name"]]]
        ]
        return Table("Every case, most flags first", ["case", "flags", *map(_heading, self._keys)], rows)

    def _view(self, case: Mapping[str, Any]) -> CaseView:
        row = next(row for row in self.rows if row["case"] == case["name"])
        facts = [
            (_heading(key), _shown_number(key, row[key])) for key in row if key not in ("case", "subject", "flags")
        ]
        return CaseView(case["name"], facts, self._pictures(case), flags=row["flags"])

    def has_reference(self, case: Mapping[str, Any]) -> bool:
        """Of no case."""
        return False


def _heading(key: str) -> str:
    """``lesion_largest_ml`` as "lesion largest, ml"."""
    for ending, unit in {"_ml": ", ml", "_percent": ", %"}.items():
        if key.endswith(ending):
            return key.removesuffix(ending).replace("_", " ") + unit
    return key.replace("_", " ")


def _shown_number(key: str, value: float) -> str:
    digits = 0 if key == "brain_ml" else 3 if key.endswith("_median_ml") else 2
    return str(value) if key.endswith("_count") else number(value, digits)
