"""Evidence of a bundle: a JSON with the numbers, and the page that is made of nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json, write_json, write_text

from .verdicts import HELD, METHOD, NOT_HELD, WITHIN_NOISE

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("experiment", "real_scans")
FEW_SUBJECTS = 3  # up to so many, a mean is shown with what it is of


def version_of(bundle: str) -> str:
    """Version of a bundle, from its metadata."""
    path = ROOT / "bundles" / bundle / "configs" / "metadata.json"
    return read_json(path)["version"]


def update(evidence_dir: Path, bundle: str, key: str, content: Mapping[str, Any]) -> Path:
    """Put content into ``<bundle>.json``, instead of what was under that key, and render the page again.

    Args:
        evidence_dir: folder of both files; made if need be.
        bundle: its name.
        key: ``experiment``, as of ``scripts/experiments.py``, or ``real_scans``: ``command``, ``machine``, ``version``
            and ``sets``, each of ``name``, ``title``, ``subjects`` (their number), ``note`` and ``rows``, each of
            ``method``, ``baseline``, ``shipped`` (booleans) and ``scores``: heading -> ``mean``, ``interval`` (two
            bounds or None), ``values`` (subject -> number).
        content: what JSON can hold.

    Returns:
        Path of ``<bundle>.md``.

    Raises:
        InputError: if the key is another one.
    """
    if key not in KEYS:
        raise InputError(f"key is {key!r}, expected {' or '.join(KEYS)}")
    evidence = read(evidence_dir, bundle) | {key: content}
    write_json(evidence_dir / f"{bundle}.json", evidence)
    page = evidence_dir / f"{bundle}.md"
    write_text(page, render(evidence))
    return page


def read(evidence_dir: Path, bundle: str) -> dict[str, Any]:
    """Evidence of a bundle, with neither key as long as nothing was measured."""
    path = evidence_dir / f"{bundle}.json"
    return read_json(path) if path.is_file() else {"bundle": bundle}


def render(evidence: Mapping[str, Any]) -> str:
    """Evidence as Markdown."""
    name = evidence["bundle"]
    parts = [f"# Evidence: `{name}`", f"Made by the commands below from [{name}.json]({name}.json); not to be edited."]
    if "experiment" in evidence:
        parts += _experiment(evidence["experiment"])
    if "real_scans" in evidence:
        parts += _real_scans(evidence["real_scans"])
    return "\n\n".join(parts) + "\n"


def _experiment(experiment: Mapping[str, Any]) -> list[str]:
    scores, claims = experiment["scores"], experiment["claims"].items()
    printed = [score for score in scores if any(score in arm["paper"] for arm in experiment["arms"].values())]
    columns = [column for score, text in scores.items() for column in (text, *(["paper"] * (score in printed)))]
    rows = []
    for name, arm in experiment["arms"].items():
        cells = [f"`{name}`", arm["what"]]
        for score in scores:
            cells.append(_range(arm["values"].get(score, ())))
            if score in printed:
                cells.append(_number(arm["paper"].get(score)))
        rows.append(cells)
    return [
        "## The paper's claims, at small scale",
        f"`{experiment['command']}`\n\n{experiment['minutes']:g} minutes. {experiment['machine']}.\n"
        f"Version {experiment['version']} of the bundle, synthetic heads; the settings are in the JSON.",
        METHOD,
        _table(
            ("", "claim", "arms", "score", "gap (interval)", "per seed", "margin", "subjects", "gap of the paper", ""),
            [
                (
                    name,
                    claim["claim"],
                    f"`{claim['better']}`, `{claim['worse']}`",
                    scores[claim["score"]],
                    f"{claim['gap']:+.3f} ({claim['interval'][0]:+.3f} to {claim['interval'][1]:+.3f})",
                    ", ".join(f"{gap:+.3f}" for gap in claim["gaps"]),
                    f"{claim['margin']:g}",
                    str(claim["subjects"]),
                    _paper_gap(claim["paper"]),
                    f"**{claim['verdict']}**",
                )
                for name, claim in claims
            ],
        ),
        "Every arm, mean over the seeds (and their range); beside it the figures of the paper, for scale and not for "
        f"comparison:\n{experiment['paper_note']}.",
        _table(("arm", "what", *columns), rows),
    ]


def _real_scans(real: Mapping[str, Any]) -> list[str]:
    parts = [
        "## On real scans",
        f"`{real['command']}`\n\nVersion {real['version']} of the bundle. {real['machine']}.",
    ]
    for group in real["sets"]:
        headings = list(dict.fromkeys(score for row in group["rows"] for score in row["scores"]))
        rows = []
        for row in group["rows"]:
            kind = "shipped" if row["shipped"] else "baseline" if row["baseline"] else ""
            rows.append((row["method"], kind, *(_score(row["scores"].get(heading)) for heading in headings)))
        parts.append(f"### {group['title']}")
        if group["note"]:
            parts.append(group["note"])
        count = f"{group['subjects']} subject{'s' * (group['subjects'] != 1)}: mean (95 % interval)"
        parts.append(f"{count}, single values where there are at most {FEW_SUBJECTS}.")
        parts.append(_table(("method", "", *headings), rows))
    return parts


def summary_table(evidence: Iterable[Mapping[str, Any]]) -> str:
    """One line per bundle, for the README: claims of its paper by verdict, and the first score on real scans."""
    verdicts = (HELD, WITHIN_NOISE, NOT_HELD)
    rows = []
    for of_bundle in evidence:
        name, experiment, real = of_bundle["bundle"], of_bundle.get("experiment"), of_bundle.get("real_scans")
        cells = [f"[`{name}`](docs/evidence/{name}.md)" if experiment or real else f"`{name}`"]
        if experiment:
            counts = Counter(claim["verdict"] for claim in experiment["claims"].values() if claim["paper"])
            cells.append(" / ".join(str(counts[verdict]) for verdict in verdicts))
        else:
            cells.append("–")
        rows.append((*cells, *(_first_score(real["sets"]) if real and real["sets"] else ("–",) * 3)))
    return _table(
        ("bundle", f"claims of the paper: {' / '.join(verdicts)}", "real scans", "as shipped", "best baseline"), rows
    )


def claims_of_card(evidence: Mapping[str, Any]) -> str:
    """The claims and what became of them, short, for the model card."""
    experiment = evidence.get("experiment")
    if experiment is None:
        return "The experiment has not been run with the present settings."
    rows = [
        (
            claim["claim"],
            f"{claim['gap']:+.3f} ({claim['interval'][0]:+.3f} to {claim['interval'][1]:+.3f})",
            f"{claim['margin']:g}",
            _paper_gap(claim["paper"]),
            f"**{claim['verdict']}**",
        )
        for claim in experiment["claims"].values()
    ]
    return "\n\n".join(
        (
            f"`{experiment['command']}`, version {experiment['version']} of the bundle:",
            _table(("claim", "gap (95 % interval)", "has to be above", "gap of the paper", ""), rows),
        )
    )


def put_between(text: str, table: str, marker: str) -> str:
    """A page with the table instead of what stood between ``<!-- marker -->`` and ``<!-- /marker -->``.

    Raises:
        InputError: if the page has not each of the two once, in this order.
    """
    first, last = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise InputError(f"the page needs {first.strip()} and {last}, each once on a line of its own, in this order")
    return text[: text.index(first)] + f"{first}{table}\n" + text[text.index(last) :]


def _first_score(groups: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """What was measured, by the method as shipped, and by the best baseline, which is named.

    It is the first score of the first set on which a baseline has it too, or else of the first set.
    """

    def cells(group: Mapping[str, Any]) -> tuple[str, str, str]:
        heading = next(iter(group["rows"][0]["scores"]))
        means = [(row, row["scores"].get(heading, {}).get("mean")) for row in group["rows"]]
        shipped = [mean for row, mean in means if row["shipped"] and mean is not None]
        baselines = [(mean, row["method"]) for row, mean in means if row["baseline"] and mean is not None]
        best = max(baselines, default=None)
        return (
            f"{heading}: {group['title']}, {group['subjects']}",
            _number(shipped[0]) if shipped else "–",
            f"{_number(best[0])}, {best[1]}" if best else "–",
        )

    found = [cells(group) for group in groups]
    return next((row for row in found if row[2] != "–"), found[0])


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (columns, ["---"] * len(columns), *rows)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _range(values: Sequence[float]) -> str:
    """Mean, and the range if there are several; a dash for an arm that the score is not about."""
    if not values:
        return "–"
    mean = _number(float(np.mean(values)))
    return f"{mean} ({_number(min(values))} to {_number(max(values))})" if len(values) > 1 else mean


def _paper_gap(figures: Mapping[str, float] | None) -> str:
    if figures is None:
        return "–"
    better, worse = figures["better"], figures["worse"]
    return f"{better - worse:+.3f} ({_number(better)}, {_number(worse)})"


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None or score["mean"] is None:
        return "–"
    notes = [] if score["interval"] is None else [" to ".join(_number(bound) for bound in score["interval"])]
    if 1 < len(score["values"]) <= FEW_SUBJECTS:
        notes.append(", ".join(f"{subject} {_number(value)}" for subject, value in score["values"].items()))
    return _number(score["mean"]) + (f" ({'; '.join(notes)})" if notes else "")


def _number(value: float | None) -> str:
    """Three digits after the point for a share, one for what is in mm or ml; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.1f}"
