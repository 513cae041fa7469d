"""A comparison as a section of a page, and as tables for a paper."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from common.data import subject_of
from common.errors import InputError
from common.evaluation import Scans, shown, versions
from common.files import Alone, sha256_of, write_text
from common.metrics import Summary, summarize
from common.page import CaseView, Section, Table, Tile, write_html_report
from common.pictures import Picture
from common.processes import in_forks
from common.report import number
from common.tables import delimited
from common.viewer import write_view

from .comparison import Comparison, Result
from .pictures import box_chart, mean_threshold_chart, method_pictures
from .side_by_side import run_side_by_side
from .statistics import Difference, holm, paired_difference

logger = logging.getLogger(__name__)

BEST = "★"
LEFT_OUT = " (left out)"
SIZES_MM3 = (50.0, 200.0, 1000.0)  # bounds of the classes of lesions

Values = dict[str, float]  # case -> value


class Score(NamedTuple):
    """A column of the summary: its title, how to get a value from rows, and which direction is better."""

    title: str
    digits: int
    value: Callable[[Mapping[str, Any]], float | None]
    sign: int = 1
    statistic: str = "mean"


def _entry(key: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda row: row[key]


def _false_positives(row: Mapping[str, Any]) -> float | None:
    return row["false_positive_ml"] if row["reference_empty"] else None


def _volume_error(row: Mapping[str, Any]) -> float | None:
    return None if row["volume_difference_ml"] is None else abs(row["volume_difference_ml"])


DICE = Score("Dice", 3, _entry("dice"))
HD95 = Score("HD95, mm", 1, _entry("hd95_mm"), -1, "median")
VOLUME = Score("volume error, ml", 2, _volume_error, -1)
LESION_SCORES = (
    DICE,
    Score("AUPRC", 3, _entry("average_precision")),
    Score("lesion F1", 3, _entry("lesion_f1")),
    HD95,
    VOLUME,
    Score("false positive in health, ml", 2, _false_positives, -1),
)


class Digest:
    """The numbers of a comparison: per method and case the mean over seeds and labels, and what follows from that.

    Means are over the cases that every method has, so that all of them are judged on the same ones.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.results: dict[str, list[Result]] = defaultdict(list)
        for result in comparison.results:
            self.results[result.method.title].append(result)
        self.methods = list(self.results)
        cases = [{row["case"] for result in results for row in result.rows} for results in self.results.values()]
        self.common = [case for case in comparison.cases if all(case in found for found in cases)]
        self.subjects = {case: subject_of(item) for case, item in comparison.cases.items()}
        self.scores = LESION_SCORES if comparison.aim.lesions else (DICE, *self._of_labels(), HD95, VOLUME)

    def _of_labels(self) -> list[Score]:
        def dice_of(name: str) -> Callable[[Mapping[str, Any]], float | None]:
            return lambda row: row["dice"] if row["label_name"] == name else None

        return [Score(f"Dice {name}", 3, dice_of(name)) for name in self.comparison.aim.labels.values()]

    def values(self, method: str, score: Score) -> Values:
        """One value per common case, nan where it is undefined."""
        found: dict[str, list[float]] = {case: [] for case in self.common}
        for result in self.results[method]:
            for row in result.rows:
                value = score.value(row)
                if row["case"] in found and value is not None and not math.isnan(value):
                    found[row["case"]].append(value)
        return {case: float(np.mean(values)) if values else float("nan") for case, values in found.items()}

    @cached_property
    def summaries(self) -> dict[str, dict[str, Summary]]:
        """Method -> title of a score -> summary over the common cases; scores that nobody has are left out."""
        subjects = [self.subjects[case] for case in self.common]
        table = {
            method: {score.title: summarize([*self.values(method, score).values()], subjects) for score in self.scores}
            for method in self.methods
        }
        known = {t for part in table.values() for t, summary in part.items() if summary.cases or summary.infinite}
        return {m: {title: summary for title, summary in part.items() if title in known} for m, part in table.items()}

    def number(self, method: str, score: Score) -> float:
        """What the summary shows of a score; nan if undefined."""
        return getattr(self.summaries[method][score.title], score.statistic)

    @property
    def shown_scores(self) -> list[Score]:
        """Scores that some method has."""
        known = next(iter(self.summaries.values()))
        return [score for score in self.scores if score.title in known]

    def best(self, score: Score) -> str | None:
        """The method with the best number; None if there is no choice."""
        numbers = {method: score.sign * self.number(method, score) for method in self.methods}
        finite = {method: number for method, number in numbers.items() if not math.isnan(number)}
        return max(finite, key=finite.get) if len(finite) > 1 else None

    @cached_property
    def differences(self) -> list[tuple[str, str, Difference, float]]:
        """Pairs of methods: first, second, paired difference of Dice, p-value adjusted for the number of pairs."""
        values = {method: self.values(method, DICE) for method in self.methods}
        subjects = [self.subjects[case] for case in self.common]
        order = sorted(self.methods, key=lambda method: -np.nan_to_num(self.number(method, DICE), nan=-1))
        pairs = list(itertools.combinations(order, 2))
        found = [paired_difference([*values[a].values()], [*values[b].values()], subjects) for a, b in pairs]
        adjusted = holm([difference.p for difference in found])
        return [(a, b, d, float(p)) for (a, b), d, p in zip(pairs, found, adjusted, strict=True)]

    def seconds(self, method: str) -> tuple[float, float]:
        """Of a training, mean over folds and seeds, and per scan."""
        results = self.results[method]
        scans = sum(len(result.case_of) for result in results)
        return float(np.mean([r.train_seconds for r in results])), sum(r.test_seconds for r in results) / max(scans, 1)

    def summary_rows(self) -> list[list[str]]:
        """A line of text per method, best Dice first; the best of each score is marked."""
        best = {score.title: self.best(score) for score in self.shown_scores}
        rows = []
        for method in sorted(self.methods, key=lambda m: -np.nan_to_num(self.number(m, DICE), nan=-1)):
            baseline = " (baseline)" if self.results[method][0].method.is_baseline else ""
            row = [method + baseline]
            for score in self.shown_scores:
                mark = f" {BEST}" if best[score.title] == method else ""
                row.append(number(self.number(method, score), score.digits) + mark)
                if score is DICE:
                    summary = self.summaries[method][DICE.title]
                    row.append(_interval(summary.low, summary.high))
            train, test = self.seconds(method)
            rows.append([*row, f"{train / 60:.1f}" if train else "–", f"{test:.1f}"])
        return rows

    def summary_columns(self) -> list[str]:
        """The heading of :meth:`summary_rows`."""
        columns = ["method"]
        for score in self.shown_scores:
            median = ", median" if score.statistic == "median" else ""
            columns += [score.title + median, *(["95 % interval"] if score is DICE else [])]
        return [*columns, "training, min", "s per scan"]


def compare(
    comparisons: Sequence[Comparison],
    title: str,
    lead: str,
    command: str,
    max_pictures: int = 20,
    max_views: int = 5,
    num_workers: int = 1,
) -> Path:
    """Run comparisons, write ``report.html``, one page for all, and the tables of each, and print the summaries.

    Args:
        comparisons: of one ``output_dir``.
        title: of the page.
        lead: below it.
        command: that made it.
        max_pictures: cases with pictures, those with most doubt.
        max_views: cases of these with a page to scroll through, ``views/<target>/<case>.html``, some MB each.
        num_workers: processes for the bundles, with shipped weights only, and for the cases of the page; 1 runs one
            after the other.

    Returns:
        Path of the page.

    Raises:
        InputError: if a method could not be used at all, or another process works in the folder; at the end, if a
            method or a case failed.
    """
    output_dir = comparisons[0].output_dir
    with Alone(output_dir):
        if num_workers > 1:
            run_side_by_side(comparisons, num_workers)
        for comparison in comparisons:
            comparison.run()
        digests = [Digest(comparison) for comparison in comparisons]
        sections = [_section(digest, command, max_pictures, num_workers) for digest in digests]
        for digest in digests:
            _write_tables(digest)
        sections = [_with_views(*pair, max_views, num_workers) for pair in zip(digests, sections, strict=True)]
        page = write_html_report(output_dir / "report.html", title, sections, lead)
    for digest in digests:
        print(f"\n{digest.comparison.target}\n{_summary_text(digest)}")
    logger.info("report: %s", page)
    failed = {name: text for digest in digests for name, text in _failures(digest) if not name.endswith(LEFT_OUT)}
    if failed:
        name, text = next(iter(failed.items()))
        raise InputError(f"{len(failed)} of the runs or cases failed, see {page}; the first, {name}: {text}")
    return page


def _summary_text(digest: Digest) -> str:
    """The summary of a comparison, for a terminal."""
    lines = [digest.summary_columns(), *digest.summary_rows()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def _section(digest: Digest, command: str, max_pictures: int, workers: int) -> Section:
    comparison = digest.comparison
    doubts = _doubts(digest, workers)
    return Section(
        title=comparison.target.capitalize(),
        lead=_lead(digest),
        failures=_failures(digest),
        tiles=_tiles(digest),
        summary=[Table("Summary, best marked", digest.summary_columns(), digest.summary_rows(), bars=[1])],
        charts=_charts(digest),
        tables=_tables(digest, doubts),
        cases=_case_views(digest, doubts, max_pictures, workers),
        cases_note="Most disagreement between the methods first. R and L are the patient's sides.",
        details=_provenance(comparison, command),
        definitions=_definitions(comparison),
    )


def _write_tables(digest: Digest) -> None:
    """Every case as CSV and TSV, the summary as CSV, Markdown and LaTeX, and the pairs as CSV, named by the target."""
    comparison = digest.comparison
    folder, target = comparison.output_dir, comparison.target
    rows = [
        {"method": result.method.title, "fold": result.fold, "seed": result.seed} | _without(row, "name", "dataset")
        for result in comparison.results
        for row in result.rows
    ]
    columns, summary = digest.summary_columns(), digest.summary_rows()
    plain = [[cell.replace(f" {BEST}", "") for cell in row] for row in summary]
    pairs = [
        [a, b, *(f"{n:.6g}" for n in (d.mean, d.low, d.high, d.p, p)), d.subjects] for a, b, d, p in digest.differences
    ]
    heading = ["first", "second", "difference of Dice", "low", "high", "p", "p, Holm", "subjects"]
    texts = {
        f"{target}_cases.csv": delimited([[*rows[0]], *(row.values() for row in rows)]),
        f"{target}_cases.tsv": delimited([[*rows[0]], *(row.values() for row in rows)], "\t"),
        f"{target}_summary.csv": delimited([columns, *plain]),
        f"{target}_summary.md": to_markdown(columns, summary),
        f"{target}_summary.tex": to_latex(columns, summary),
        f"{target}_pairs.csv": delimited([heading, *pairs]),
    }
    for name, text in texts.items():
        write_text(folder / name, text)


def to_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose marked cells are bold."""

    def cell(text: str) -> str:
        text = text.replace("|", "\\|")
        return f"**{text.removesuffix(f' {BEST}')}**" if text.endswith(BEST) else text

    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *([cell(text) for text in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_latex(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A ``tabular`` with the rules of booktabs, whose marked cells are bold."""
    special = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "–": "--", "{": r"\{", "}": r"\}"}

    def cell(text: str) -> str:
        plain = "".join(special.get(letter, letter) for letter in text.removesuffix(f" {BEST}").replace("\\", "/"))
        return rf"\textbf{{{plain}}}" if text.endswith(BEST) else plain

    body = [" & ".join(cell(text) for text in row) + r" \\" for row in (columns, *rows)]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule", body[0], r"\midrule", *body[1:]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


# what stands on the page


def _lead(digest: Digest) -> str:
    comparison = digest.comparison
    scored = [case for case in comparison.cases.values() if comparison.is_scored(case)]
    subjects = len({digest.subjects[case] for case in digest.common})
    how = "with the weights that the bundles ship"
    if comparison.weights == "train":
        folds, seeds = len(comparison.splits), len(comparison.seeds)
        how = f"trained on {folds} {'fold' if folds == 1 else 'folds'} with {seeds} {'seed' if seeds == 1 else 'seeds'}"
    text = f"{len(digest.methods)} methods, {how}, on {len(digest.common)} cases of {subjects} subjects."
    if len(digest.common) < len(scored):
        text += f" {len(scored) - len(digest.common)} cases are left out, because some method has no result for them."
    return text


def _failures(digest: Digest) -> list[tuple[str, str]]:
    comparison = digest.comparison
    cases = [
        (f"{result.method.title}, {case}", sentence)
        for result in comparison.results
        for case, sentence in result.failures.items()
    ]
    unfit = [(f"{title}{LEFT_OUT}", sentence) for title, sentence in comparison.unfit.items()]
    return [*comparison.failures.items(), *cases, *unfit]


def _tiles(digest: Digest) -> list[Tile]:
    best = digest.best(DICE)
    if best is None:
        return []
    summary = digest.summaries[best][DICE.title]
    tiles = [Tile("Highest mean Dice", number(summary.mean, 3), f"{best}, {_interval(summary.low, summary.high)}")]
    baselines = [m for m in digest.methods if digest.results[m][0].method.is_baseline]
    if baselines:
        top = max(baselines, key=lambda method: np.nan_to_num(digest.number(method, DICE), nan=-1))
        low, high = (getattr(digest.summaries[top][DICE.title], name) for name in ("low", "high"))
        tiles.append(Tile("Best baseline", number(digest.number(top, DICE), 3), f"{top}, {_interval(low, high)}"))
    significant = sum(p < 0.05 for *_, p in digest.differences)
    tiles.append(Tile("Pairs that differ", f"{significant} of {len(digest.differences)}", "p < 0.05 after Holm"))
    return tiles


def _charts(digest: Digest) -> list[Picture]:
    charts = []
    for score in digest.shown_scores:
        if score.title.startswith("Dice") and not (score is DICE and len(digest.comparison.aim.labels) > 1):
            values = {m: np.array([*digest.values(m, score).values()]) for m in digest.methods}
            charts.append(box_chart(values, score.title, f"{score.title} of each case: quartiles, median."))
    for method, results in digest.results.items():
        with_maps = [r for r in results if r.curve]
        if with_maps:
            curves = [(np.array(r.thresholds), np.array(r.curve)) for r in with_maps]
            used = sorted({r.threshold for r in with_maps})
            charts.append(mean_threshold_chart(curves, used, method))
    return charts


def _tables(digest: Digest, doubts: Mapping[str, float]) -> list[Table]:
    tables = []
    if digest.differences:
        rows = [
            [f"{a} − {b}", f"{d.mean:+.3f}", _interval(d.low, d.high), _p(d.p), _p(p), str(d.subjects)]
            for a, b, d, p in digest.differences
        ]
        heading = ["pair", "difference of Dice", "95 % interval", "p", "p, Holm", "subjects"]
        tables.append(Table("Paired differences of Dice", heading, rows))
    if digest.comparison.aim.lesions:
        tables.append(_size_table(digest))
    tables.append(_case_table(digest, doubts))
    return [table for table in tables if table.rows]


def _size_table(digest: Digest) -> Table:
    """Share of the lesions that each method found, by their volume."""
    bounds = [0.0, *SIZES_MM3, math.inf]
    names = [f"up to {SIZES_MM3[0]:g}", *(f"{a:g} to {b:g}" for a, b in itertools.pairwise(SIZES_MM3))]
    names.append(f"over {SIZES_MM3[-1]:g}")
    rows, counts = [], [0] * len(names)
    for method, results in digest.results.items():
        lesions = [lesion for result in results for lesion in result.lesions if lesion[0] in set(digest.common)]
        sizes, hit = np.array([size for _, size, _ in lesions]), np.array([found for *_, found in lesions], dtype=bool)
        inside = [(sizes > low) & (sizes <= high) for low, high in itertools.pairwise(bounds)]
        counts = [int(np.count_nonzero(part)) // max(len({r.seed for r in results}), 1) for part in inside]
        rows.append([method, *(f"{hit[part].mean():.2f}" if part.any() else "–" for part in inside)])
    columns = [f"{name} mm³ ({count})" for name, count in zip(names, counts, strict=True)]
    return Table("Share of the lesions found, by volume (number of lesions)", ["method", *columns], rows)


def _case_table(digest: Digest, doubts: Mapping[str, float]) -> Table:
    values = {method: digest.values(method, DICE) for method in digest.methods}
    rows = [
        [case, f"{doubt:.2f}", *(number(values[method][case], 3) for method in digest.methods)]
        for case, doubt in doubts.items()
    ]
    return Table("Dice of every case, most doubt first", ["case", "disagreement", *digest.methods], rows)


def _first_results(digest: Digest, case: str) -> dict[str, Result]:
    """Method -> its result with the first seed that has a case."""
    found = {m: [r for r in results if case in r.case_of.values()] for m, results in digest.results.items()}
    return {method: min(results, key=lambda r: r.seed) for method, results in found.items() if results}


def _scans(result: Result, case: str) -> Scans:
    name = next(name for name, known in result.case_of.items() if known == case)
    return result.evaluation.load(next(item for item in result.evaluation.cases if item["name"] == name))


def disagreement(masks: Sequence[np.ndarray]) -> float:
    """One minus the mean Dice of all pairs of label maps, each the mean over labels that either has; 0 for one map."""
    somewhere = np.any([mask != 0 for mask in masks], axis=0)
    labels = [mask[somewhere] for mask in masks]
    count = 1 + max((int(mask.max()) for mask in labels if mask.size), default=0)
    values = []
    for a, b in itertools.combinations(labels, 2):
        together = np.bincount(a.astype(np.intp) * count + b, minlength=count**2).reshape(count, count)
        sizes = (together.sum(0) + together.sum(1))[1:]
        found = 2 * np.diagonal(together)[1:][sizes > 0] / sizes[sizes > 0]
        values.append(float(found.mean()) if len(found) else 1.0)
    return 1 - float(np.mean(values)) if values else 0.0


def _doubts(digest: Digest, workers: int) -> Values:
    """Case -> disagreement of the methods, largest first."""

    def doubt(case: str) -> float:
        return disagreement([_scans(result, case).prediction for result in _first_results(digest, case).values()])

    found = tqdm(in_forks(doubt, digest.common, workers), "comparing masks", len(digest.common), disable=None)
    doubts = dict(zip(digest.common, found, strict=True))
    return dict(sorted(doubts.items(), key=lambda item: -item[1]))


def _case_views(digest: Digest, doubts: Mapping[str, float], max_pictures: int, workers: int) -> list[CaseView]:
    values = {method: digest.values(method, DICE) for method in digest.methods}

    def view(case: str) -> CaseView:
        results = _first_results(digest, case)
        scans = {method: _scans(result, case) for method, result in results.items()}
        first = next(iter(scans.values()))
        names = dict(digest.comparison.aim.labels)
        pictures = method_pictures(
            first.image,
            first.affine,
            {method: scan.prediction for method, scan in scans.items()},
            first.reference,
            names if len(names) > 1 else None,
        )
        facts = [("disagreement", f"{doubts[case]:.2f}")]
        facts += [
            (f"uncertain, {method}", f"{result.uncertain_ml[case]:.1f} ml")
            for method, result in results.items()
            if case in result.uncertain_ml
        ]
        if first.reference is not None and not first.reference.any():
            facts.append(("no", "label in the reference"))
        else:
            facts += [(method, number(values[method][case], 3)) for method in scans]
        return CaseView(case, facts, pictures)

    cases = [*doubts][:max_pictures]
    return list(tqdm(in_forks(view, cases, workers), "drawing", len(cases), disable=None))


def _with_views(digest: Digest, section: Section, max_views: int, workers: int) -> Section:
    """The section with the addresses of its first cases' pages to scroll through, which are written; no others stay."""
    output_dir, target = digest.comparison.output_dir, digest.comparison.target
    files: dict[str, str] = {}
    for case in section.cases[:max_views]:
        file = f"views/{target}/{re.sub(r'[^A-Za-z0-9._-]+', '_', case.name)}"
        files[case.name] = f"{file}_{len(files)}.html" if f"{file}.html" in files.values() else f"{file}.html"
    for old in (output_dir / "views" / target).glob("*.html"):
        old.unlink()

    def write(case: CaseView) -> None:
        scans = {method: _scans(result, case.name) for method, result in _first_results(digest, case.name).items()}
        first = next(iter(scans.values()))
        masks = {method: scan.prediction for method, scan in scans.items()}
        arrays = (first.image, first.affine, masks, first.reference, None)
        links = [("all cases", "../../report.html")]
        write_view(output_dir / files[case.name], case.name, arrays, digest.comparison.aim.labels, 1, case.facts, links)

    list(tqdm(in_forks(write, section.cases[: len(files)], workers), "writing views", len(files), disable=None))
    return replace(section, cases=[replace(case, view=quote(files.get(case.name, ""))) for case in section.cases])


def _definitions(comparison: Comparison) -> list[tuple[str, str]]:
    notes = [
        ("Dice", "Mean over cases with something to find; of several labels the mean of each case, over seeds too."),
        ("95 % interval", "Bootstrap over subjects, 5000 draws. Too narrow for fewer than about ten subjects."),
        ("p, Holm", "Wilcoxon's signed-rank test on subjects, two-sided, adjusted for all pairs of methods by Holm."),
        ("disagreement", "One minus the mean Dice between the masks of all pairs of methods; needs no reference."),
        ("s per scan", "From files to files, reading and writing included."),
    ]
    if comparison.aim.lesions:
        notes += [
            ("uncertain", "Entropy of the probability map in bits, times the volume of its voxels."),
            ("found", "A lesion is found if a voxel of it is predicted; lesions are connected over 26 neighbors."),
        ]
    return notes


def _provenance(comparison: Comparison, command: str) -> list[tuple[str, str]]:
    thresholds = {
        f"threshold of {r.method.title}, fold {r.fold}, seed {r.seed}": f"{r.threshold:.4g}: {r.threshold_source}"
        for r in comparison.results
        if r.threshold is not None
    }
    weights = {
        f"weights of {name}": sha256_of(path)[:16]
        for name in dict.fromkeys(r.method.bundle for r in comparison.results)
        if comparison.weights == "shipped" and (path := comparison.bundles / name / "models" / "model.pt").is_file()
    }
    parts = {f"fold {s.number}": _sizes(s.training, s.validation, s.test) for s in comparison.splits}
    facts = {
        "command": command,
        "datalist": comparison.datalist.path.name,
        "datalist, SHA-256": sha256_of(comparison.datalist.path)[:16],
        "images and labels, SHA-256": data_hash(comparison),
        "seeds": ", ".join(map(str, comparison.seeds)) if comparison.weights == "train" else "none",
        "seconds of this run": f"{comparison.seconds:.0f}",
    }
    return [(name, str(shown(value))) for name, value in (facts | parts | weights | thresholds | versions()).items()]


def data_hash(comparison: Comparison) -> str:
    """Hash of the images and labels of all test cases, in their order."""
    state = hashlib.sha256()
    for case in comparison.cases.values():
        for path in [*case["image"], comparison.aim.label_of(case)]:
            if path is not None:
                state.update(sha256_of(path).encode())
    return state.hexdigest()[:16]


def _sizes(training: Sequence[Any], validation: Sequence[Any], test: Sequence[Any]) -> str:
    return f"{len(training)} cases for training, {len(validation)} for validation, {len(test)} for the test"


def _without(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    first = {"case": row["case"]}
    return first | {key: value for key, value in row.items() if key not in keys}


def _interval(low: float, high: float) -> str:
    return "–" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
