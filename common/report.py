"""The report: what :mod:`common.evaluation` measured, as an HTML page with pictures beside CSV and JSON."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ignite.distributed as idist
import numpy as np
from tqdm import tqdm

from .evaluation import COLUMN, METRICS, Column, Evaluation, mean_dice, shown, versions
from .files import Alone
from .metrics import Summary, dice_over_thresholds, summarize
from .page import CaseView, Section, Table, Tile, write_html_report
from .pictures import (
    Picture,
    case_pictures,
    label_chart,
    load_chart,
    precision_recall_chart,
    threshold_chart,
    volume_chart,
)
from .tables import counted
from .viewer import write_view

__all__ = ["Report", "write_html_report"]

logger = logging.getLogger(__name__)

_INTERVAL_NOTES = (
    (
        "95 % interval",
        "Bootstrap over subjects (5000 draws, percentiles) of the mean or of the pooled value: how far it would move "
        "with other subjects like these. Too narrow for fewer than about ten.",
    ),
    (
        "pooled",
        "Computed from the volumes, voxels or lesions of all cases together, healthy ones included, so that large "
        "loads weigh more.",
    ),
    ("empty references", "Leave Dice, recall and distances undefined; such cases are judged by false positives."),
)


class Report(Evaluation):
    """An evaluation that writes itself down as a page.

    Several go on one page by ``write_html_report(path, title, [report.section for report in reports])``.

    Args:
        cases, output_dir: see :class:`common.evaluation.Evaluation`; the report goes to ``output_dir``.
        max_pictures: number of cases with pictures, worst first.
        max_views: number of those with a page of their own to scroll through, ``views/<name>.html``; None for all.
        tables: further tables, each with ``caption``, ``columns`` and ``rows`` of text.
        keep_going: leave out cases whose files cannot be scored, and report the others.
        kwargs: further arguments of Evaluation.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        *,
        max_pictures: int = 40,
        max_views: int | None = None,
        tables: Sequence[Mapping[str, Any]] = (),
        keep_going: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(cases, output_dir, **kwargs)
        self.max_pictures = max_pictures
        self.max_views = max_views
        self.tables = [Table(**table) for table in tables]
        self.keep_going = keep_going

    def write(self, failures: dict[str, str] | None = None) -> Path:
        """Write ``metrics.csv``, ``metrics.json``, ``report.html`` and the views; return the path of the page.

        Under ``torchrun`` the first process writes, for all of them; evaluation has waited for the others.

        Args:
            failures: of inference, for :meth:`leave_out`. With ``keep_going`` those of scoring are added to them, so
                that who keeps them can end by an error.

        Raises:
            InputError: if a file is missing, unreadable or on another grid than its image, or cannot be written, or if
                another process writes into the folder.
        """
        path = self.output_dir / "report.html"
        if idist.get_rank() > 0:
            return path
        failures = {} if failures is None else failures
        self.leave_out(failures)
        with Alone(self.output_dir):  # from the first mask that is read to the page
            if self.keep_going:
                failures |= self.leave_out_unreadable()
            section = self.section  # all is computed before the first file is written
            self.save()
            views = self._write_views(section.cases)
            write_html_report(path, self.title, [replace(section, cases=views)])
        logger.info("report: %s", path)
        return path

    @property
    def files(self) -> list[Path]:
        """What :meth:`write` writes, beside the views."""
        return [self.output_dir / name for name in ("report.html", "metrics.csv", "metrics.json")]

    @cached_property
    def section(self) -> Section:
        """The report as a section of a page, for :func:`write_html_report`."""
        return Section(
            title=self.title,
            lead=self._lead(),
            failures=list(self.failures.items()),
            tiles=self._tiles(),
            charts=self._charts(),
            tables=[*self._summary_tables(), *self._dataset_tables(), *self.tables, self._case_table()],
            cases=self._case_views(),
            cases_note="Lowest Dice first. R and L are the patient's sides, A and P front and back.",
            details=[(name, shown(value)) for name, value in (self.all_settings() | versions()).items()],
            definitions=[(metric.title, metric.meaning) for metric in self._used_metrics()] + [*_INTERVAL_NOTES],
        )

    @property
    def _only_label(self) -> str | None:
        """Name of the label if there is one; with several, numbers are given for each of them."""
        return next(iter(self.label_names.values())) if len(self.label_names) == 1 else None

    def _used_metrics(self) -> list[Column]:
        return [metric for metric in METRICS if any(row[metric.key] is not None for row in self.rows)]

    def _lead(self) -> str:
        subjects = len({row["subject"] for row in self.rows})
        empty = [self._reference_empty(case) for case in self.cases]
        counts = {"without a reference, of which only volumes are known": empty.count(None)}
        if self._only_label:
            found = {f"with {self._only_label}": empty.count(False), f"without {self._only_label}": empty.count(True)}
        else:
            found = {"with a reference": len(empty) - empty.count(None)}
        parts = ", ".join(f"{count} {what}" for what, count in (found | counts).items() if count)
        sentence = f"{counted(len(self.cases), 'case')} of {counted(subjects, 'subject')}: {parts}."
        failed = counted(len(self.failures), "further case")
        return f"{sentence} Without {failed} that failed." if self.failures else sentence

    def _reference_empty(self, case: Mapping[str, Any]) -> bool | None:
        """Whether nothing is in the reference of a case; None without a reference."""
        known = [row["reference_empty"] for row in self.rows_of(case) if row["reference_empty"] is not None]
        return all(known) if known else None

    def _tiles(self) -> list[Tile]:
        tiles = [self._dice_tile()] if self.summary else []
        if self._only_label in self.summary:
            tiles += self._overlap_tiles(self.summary[self._only_label], self.pooled[self._only_label])
        if self.curve is not None:
            pooled = self.pooled[self.label_names[self.map_label]]
            tiles.append(Tile("AUPRC, pooled", number(pooled["average_precision"], 3), "of the map, over voxels"))
            note = f"of the map at {pooled['best_threshold_on_these_cases']:.4g}: chosen on these cases, an upper bound"
            tiles.append(Tile("Best Dice", number(pooled["best_dice_any_threshold"], 3), note))
        for name in (self.label_names[label] for label in self.lesion_labels):
            tiles += self._lesion_tiles(name)
        if not tiles:
            tiles = [self._volume_tile(name) for name in self.label_names.values()]
        return tiles

    def _overlap_tiles(self, summary: Mapping[str, Summary], pooled: Mapping[str, float]) -> list[Tile]:
        note = f"all voxels together, {_interval(pooled['dice_low'], pooled['dice_high'], 2)}"
        missed = summary["hd95_mm"].infinite
        found = f"{counted(missed, 'case')} with nothing found" if missed else "every case has a prediction"
        return [
            Tile("Dice, pooled", number(pooled["dice"], 3), note),
            Tile("HD95, median", f"{number(summary['hd95_mm'].median, 1)} mm", found),
        ]

    def _lesion_tiles(self, name: str) -> list[Tile]:
        tiles = []
        if name in self.summary:
            recall, precision = (number(self.pooled[name][key], 2) for key in ("lesion_recall", "lesion_precision"))
            note = f"mean; recall {recall}, precision {precision} of all lesions together"
            tiles.append(Tile("Lesion-wise F1", number(self.summary[name]["lesion_f1"].mean, 3), note))
        if name in self.healthy:
            healthy = self.healthy[name]
            note = f"{counted(healthy.cases, 'scan')} without {name}, {_interval(healthy.low, healthy.high, 2)}"
            tiles.append(Tile("False positives", f"{number(healthy.mean, 2)} ml", note))
        return tiles

    def _volume_tile(self, name: str) -> Tile:
        volume = self._summarize([row for row in self.rows if row["label_name"] == name], "prediction_ml")
        note = f"mean volume per case, {_interval(volume.low, volume.high, 2)}"
        return Tile(f"Predicted {name}", f"{number(volume.mean, 2)} ml", note)

    def _dice_tile(self) -> Tile:
        """Mean over cases; with several labels the mean over the labels of each case comes first."""
        means = {case["name"]: mean_dice(self.rows_of(case)) for case in self.cases}
        subjects = {row["name"]: row["subject"] for row in self.rows}
        overall = summarize(list(means.values()), [subjects[name] for name in means])
        labeled = {len(self.scored_targets(case)) for case in self.cases if self.has_reference(case)}
        labels = counted(*labeled, "label") if len(labeled) == 1 else "what each case labels"
        what = "Dice, mean" if self._only_label else f"Dice, mean of {labels}"
        note = f"{counted(overall.cases, 'case')}, {_interval(overall.low, overall.high, 2)}"
        return Tile(what, number(overall.mean, 3), note)

    def _charts(self) -> list[Picture]:
        charts: list[Picture] = []
        rows = [row for row in self.rows if row["reference_empty"] is not None]
        present = [row for row in rows if not row["reference_empty"]]
        if self.curve is not None:
            top = max(self._score_max, min(1.2 * self.curve.best_dice[1], self.curve.thresholds[0]))
            thresholds = np.linspace(0, top, 101)
            cases = dice_over_thresholds(*self.maps_on_disk(), thresholds)
            charts += [
                threshold_chart(thresholds, cases, self.curve, self.threshold),
                precision_recall_chart(self.curve, self.threshold),
            ]
        if not self._only_label and present:
            by_label = self.rows_by_label(reference_empty=False)
            charts.append(label_chart({n: np.array([row["dice"] for row in r]) for n, r in by_label.items()}))
        elif len(present) > 1:
            charts.append(load_chart(*(np.array([row[key] for row in present]) for key in ("reference_ml", "dice"))))
        if rows:
            reference, difference = (
                np.array([row[key] for row in rows]) for key in ("reference_ml", "volume_difference_ml")
            )
            charts.append(volume_chart(reference, reference + difference))
        return charts

    def _summary_tables(self) -> list[Table]:
        columns = ["mean", "95 % interval", "sd", "median", "cases"]
        if self._only_label:
            entries = [
                (COLUMN[key].title, COLUMN[key], summary)
                for metrics in self.summary.values()
                for key, summary in metrics.items()
            ]
            caption = f"Over the cases with {self._only_label}"
            return [Table(caption, ["metric", *columns], [_summary_row(*e) for e in entries])] if entries else []
        tables = []
        for key in ("dice", "hd95_mm"):
            metric = COLUMN[key]
            rows = [_summary_row(name, metric, metrics[key]) for name, metrics in self.summary.items()]
            bars = [1] if key == "dice" else []
            if rows:
                tables.append(Table(f"{metric.title} by label", ["label", *columns], rows, bars))
        return tables

    def _dataset_tables(self) -> list[Table]:
        """Mean Dice of each data set on what it labels, where data sets differ in that."""
        if self.reference_sets is None or not self.summary:
            return []
        datasets = list(dict.fromkeys(row["dataset"] for row in self.rows if row["dataset"] is not None))
        names = [name for name in self.targets if name in self.summary]
        rows = []
        for dataset in datasets:
            known = [r for r in self.rows if r["dataset"] == dataset and r["dice"] is not None]
            values = {n: summarize([row["dice"] for row in known if row["label_name"] == n]) for n in names}
            rows.append([dataset, *(number(summary.mean, 3) for summary in values.values())])
        rows.append(["all", *(number(self.summary[name]["dice"].mean, 3) for name in names)])
        return [Table("Mean Dice by data set, each on what it labels", ["data set", *names], rows)]

    def _case_table(self) -> Table:
        several = self._only_label is None
        metrics = self._used_metrics()
        columns = ["case", *(["label"] if several else []), *(metric.title for metric in metrics)]
        rows = [
            [
                row["name"],
                *([row["label_name"]] if several else []),
                *(number(row[metric.key], metric.digits) for metric in metrics),
            ]
            for case in self.ranked()
            for row in self._rows_to_show(case)
        ]
        bars = [i for i, title in enumerate(columns) if title == "Dice"]
        return Table("Every case, lowest Dice first", columns, rows, bars)

    def _rows_to_show(self, case: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Of what a reference says nothing about, only the files tell the volume."""
        rows = self.rows_of(case)
        return [row for row in rows if row["reference_empty"] is not None] or rows

    def _case_views(self) -> list[CaseView]:
        worst = self.ranked()[: self.max_pictures]
        return [
            self._view(case)
            for case in tqdm(worst, desc="drawing", unit="case", disable=True if len(worst) < 2 else None)
        ]

    def _view(self, case: Mapping[str, Any]) -> CaseView:
        return CaseView(case["name"], self._facts(case), self._pictures(case))

    def _write_views(self, cases: Sequence[CaseView]) -> list[CaseView]:
        """The cases of the page, with the addresses of their views, which are written."""
        last = min(len(cases), len(cases) if self.max_views is None else self.max_views)
        by_name = {case["name"]: case for case in self.cases}
        files = [f"views/{case.name}.html" for case in cases[:last]]
        for i, (case, file) in enumerate(zip(cases[:last], files, strict=True)):
            up = "../" * file.count("/")
            near = {"all cases": "report.html"}
            near |= {"previous": files[i - 1]} if i else {}
            near |= {"next": files[i + 1]} if i + 1 < last else {}
            scans = self.load(by_name[case.name])
            arrays = (scans.image, scans.affine, scans.prediction, scans.reference, scans.scores)
            links = [(text, up + quote(target)) for text, target in near.items()]
            facts = [*case.facts, *(("look at", flag) for flag in case.flags)]
            write_view(self.output_dir / file, case.name, arrays, self.label_names, self._score_max, facts, links)
        addresses = [*map(quote, files), *[""] * (len(cases) - last)]
        return [replace(case, view=address) for case, address in zip(cases, addresses, strict=True)]

    def _pictures(self, case: Mapping[str, Any]) -> list[Picture]:
        scans = self.load(case)
        names = None if self._only_label else self.label_names
        arrays = (scans.image, scans.affine, scans.prediction, scans.reference, scans.scores)
        focus = self.map_label if self.label_names.get(self.map_label) in self.scored_targets(case) else None
        return case_pictures(*arrays, self._score_max, names, focus)

    def _facts(self, case: Mapping[str, Any]) -> list[tuple[str, str]]:
        rows = self.rows_of(case)
        if len(rows) > 1:
            return [(row["label_name"], number(row["dice"], 3)) for row in rows if row["dice"] is not None]
        row = rows[0]
        if row["reference_empty"]:
            return [("no", f"{row['label_name']} in the reference"), _fact(row, "false_positive_ml")]
        facts = [_fact(row, key) for key in ("dice", "lesion_f1", "hd95_mm") if row[key] is not None]
        return [*facts, *(_fact(row, key) for key in ("reference_ml", "prediction_ml") if row[key] is not None)]

    @property
    def _score_max(self) -> float:
        """End of the scale of scores: the threshold is in its middle, whatever the unit of the map."""
        if self.threshold is not None and self.threshold > 0:
            return 2 * self.threshold if self.threshold > 1 else min(2 * self.threshold, 1.0)  # probabilities end at 1
        highest = 0.0 if self.curve is None else float(self.curve.thresholds[0])
        return highest if highest > 0 else 1.0


def number(value: float | None, digits: int) -> str:
    """A number as a page shows it; a dash where it is undefined."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{digits}f}".replace("-", "−")


def _interval(low: float, high: float, digits: int) -> str:
    if math.isnan(low):
        return "no interval"
    return f"95 % interval {number(low, digits)} to {number(high, digits)}"


def _summary_row(name: str, metric: Column, summary: Summary) -> list[str]:
    low, high = number(summary.low, metric.digits), number(summary.high, metric.digits)
    return [
        name,
        number(summary.mean, metric.digits),
        "–" if math.isnan(summary.low) else f"{low} to {high}",
        number(summary.sd, metric.digits),
        number(summary.median, metric.digits),
        str(summary.cases) + (f" + {summary.infinite} infinite" if summary.infinite else ""),
    ]


def _fact(row: Mapping[str, Any], key: str) -> tuple[str, str]:
    return COLUMN[key].title, number(row[key], COLUMN[key].digits)
