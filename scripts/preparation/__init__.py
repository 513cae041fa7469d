"""From raw scans to what the bundles take, many cases at once."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.data import name_cases, write_datalist
from common.errors import InputError
from common.files import Alone
from common.page import CaseView, Section, Tile, write_html_report
from common.pictures import Picture
from running.processes import process_pool

from .case import Settings, prepare_case, read_record, restore
from .registration import require_simpleitk

__all__ = ["Settings", "prepare_case", "prepare_cases", "read_record", "restore"]

logger = logging.getLogger(__name__)


def prepare_cases(
    sections: dict[str, Sequence[dict[str, Any]]],
    output_dir: str | Path,
    settings: Settings,
    num_workers: int | None = None,
) -> Path:
    """Prepare all cases in parallel processes; those that are done already are left as they are.

    Args:
        sections: name -> cases of :func:`common.data.list_cases`.
        output_dir: gets a folder per case, see :func:`prepare_case`, ``prepared.json`` and ``preparation.html``.
        settings: what is done.
        num_workers: processes; as many as cores by default.

    Returns:
        Path of ``prepared.json``: the cases that are prepared, in their sections.

    Raises:
        InputError: at the end, naming the cases that could not be prepared; or at once, if SimpleITK is missing, or
            another process prepares into the folder.
    """
    require_simpleitk()
    with Alone(output_dir):
        return _prepare(sections, Path(output_dir), settings, num_workers)


def _prepare(
    sections: dict[str, Sequence[dict[str, Any]]], output_dir: Path, settings: Settings, num_workers: int | None
) -> Path:
    cases = _named([dict(case) for part in sections.values() for case in part], settings.sequences)
    done: dict[str, Path] = {}
    failures: dict[str, str] = {}
    outcomes = tqdm(
        _run(cases, output_dir, settings, num_workers), total=len(cases), desc="preparing", unit=" case", disable=None
    )
    for name, outcome in outcomes:
        if isinstance(outcome, Path):
            done[name] = outcome
        else:
            failures[name] = outcome
            logger.error("%s failed: %s", name, outcome)
    names = iter([case["name"] for case in cases])
    records = {
        section: [read_record(done[name]) for name in [next(names) for _ in part] if name in done]
        for section, part in sections.items()
    }
    items = {section: [_absolute(r["item"], output_dir / r["name"]) for r in part] for section, part in records.items()}
    path = write_datalist(output_dir / "prepared.json", items, {"sequences": list(settings.sequences)})
    _write_page(output_dir, [record for part in records.values() for record in part], failures)
    if failures:
        raise InputError(
            f"{len(failures)} of {len(cases)} cases could not be prepared: "
            + "; ".join(f"{name} ({reason})" for name, reason in sorted(failures.items()))
        )
    return path


def _run(
    cases: Sequence[dict[str, Any]], output_dir: Path, settings: Settings, num_workers: int | None
) -> Iterator[tuple[str, Path | str]]:
    workers = min(num_workers or os.cpu_count() or 1, len(cases))
    if workers == 1:
        for case in cases:
            yield case["name"], _outcome(case, output_dir, settings)
        return
    with process_pool(workers) as pool:
        waiting = {pool.submit(_outcome, case, output_dir, settings): case["name"] for case in cases}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def _outcome(case: dict[str, Any], output_dir: Path, settings: Settings) -> Path | str:
    """The record of a case, or why there is none: whatever goes wrong with one, the others go on."""
    try:
        return prepare_case(case, output_dir, settings)
    except InputError as e:
        return str(e)
    except Exception as e:
        logger.debug("%s", case["name"], exc_info=True)
        return f"{type(e).__name__}: {str(e).strip().splitlines()[-1] if str(e).strip() else 'no message'}"


def _named(cases: list[dict[str, Any]], sequences: Sequence[str]) -> list[dict[str, Any]]:
    """Cases whose ``name`` is good for a folder: that of the image without the sequence, if this tells them apart."""
    name_cases(cases)
    ends = "|".join(re.escape(sequence.removesuffix("w")) + "w?" for sequence in sequences)
    short = [re.sub(rf"[_/]?({ends})$", "", case["name"], flags=re.IGNORECASE).replace("/", "_") for case in cases]
    if len(set(short)) < len(cases) or not all(short):
        short = [case["name"].replace("/", "_") for case in cases]
    return [case | {"name": name} for case, name in zip(cases, short, strict=True)]


def _absolute(item: dict[str, Any], folder: Path) -> dict[str, Any]:
    def path(value: Any) -> Any:
        if isinstance(value, list):
            return [path(v) for v in value]
        return str(folder.absolute() / value) if isinstance(value, str) and value.endswith(".nii.gz") else value

    return {key: path(value) for key, value in item.items()}


def _write_page(output_dir: Path, records: Sequence[dict[str, Any]], failures: dict[str, str]) -> None:
    views = []
    for record in records:
        picture = (output_dir / record["name"] / f"{record['name']}_check.png").read_bytes()
        facts = [
            ("reference", record["reference"]),
            ("brain", f"{record['brain_ml']:.0f} ml, {record['brain']}"),
            ("misfit to the template", f"{record['template_misfit']:.3f}"),
        ]
        caption = "axial, coronal and sagittal slice of the reference"
        views.append(CaseView(record["name"], facts, [Picture(picture, caption, "three slices with contours")]))
    section = Section(
        title="Prepared scans",
        failures=sorted(failures.items()),
        tiles=[Tile("prepared", str(len(records))), Tile("failed", str(len(failures)))],
        cases=views,
        cases_note="Reference is the template's brain and white matter, prediction the brain mask of the scan. The one "
        "should follow the brain to some millimetres, the other to its edge.",
        definitions=[
            ("brain", "volume of the mask, and how it was found: by the template, given, or where the scan is not 0"),
            (
                "misfit to the template",
                "share of the variance of intensities that is within the tissues of the aligned template; usual are "
                "0.13 to 0.23",
            ),
        ],
    )
    write_html_report(output_dir / "preparation.html", "Prepared scans", [section])
