"""From raw scans to what the bundles take, many cases at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from common.data import Datalist, list_cases, name_cases, prefix_of, write_datalist
from common.errors import InputError
from common.files import Alone
from common.page import CaseView, Section, Table, Tile, write_html_report
from common.pictures import Picture
from common.processes import process_pool
from common.sequences import sequence_name

from .case import Settings, prepare_case, read_record, restore
from .dicom import FOLDER, convert_dicom
from .registration import require_simpleitk

__all__ = ["Settings", "prepare_case", "prepare_cases", "read_record", "restore", "sections_to_prepare"]

logger = logging.getLogger(__name__)


def sections_to_prepare(
    dataset_dir: str | None,
    datalist_file: str | None,
    settings: Settings,
    optional_sequences: Sequence[str] = (),
    mask_key: str = "brain_mask",
    dicom_dir: str | None = None,
    output_dir: str | Path = ".",
) -> dict[str, list[dict[str, Any]]]:
    """Section -> cases of a folder or a datalist; ``cases`` where there are no sections.

    Arguments and errors are those of :func:`common.data.list_cases`. The files of a case may lie on different grids.
    Of a folder of DICOM files, ``dicom_dir``, the series are converted to ``output_dir/dicom`` first.
    """
    if dicom_dir is not None:
        if (dataset_dir, datalist_file) != (None, None):
            raise InputError("dicom_dir is given beside dataset_dir or datalist_file, expected one of them")
        datalist_file = str(convert_dicom(dicom_dir, Path(output_dir) / FOLDER, settings.sequences))
    checks = {"optional_sequences": tuple(map(sequence_name, optional_sequences)), "one_grid": False}
    if datalist_file is None:
        return {"cases": list_cases(dataset_dir, sequences=settings.sequences, **checks)}
    datalist = Datalist(datalist_file, mask_key)
    if dataset_dir is not None:
        datalist.check_inside(dataset_dir)
    return {part or "cases": datalist.cases(settings.sequences, part, **checks) for part in datalist.names or (None,)}


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
    if settings.would_take_deepbet and not all("brain_mask" in case for case in cases):
        logger.warning(
            "deepbet is not installed, so the template makes brain masks, of T1w less well; pip install deepbet"
        )
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
    everything = [record for part in records.values() for record in part]
    _write_page(output_dir, everything, failures)
    doubtful = [record for record in everything if record["warnings"]]
    for record in doubtful:
        logger.warning("%s: %s", record["name"], "; ".join(record["warnings"]))
    if doubtful:
        page = output_dir / "preparation.html"
        logger.warning("%d of %d cases are doubtful, look at them in %s", len(doubtful), len(cases), page)
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
    whole = [case["name"].replace("/", "_") for case in cases]
    before = [[prefix_of(name, sequence) for sequence in sequences] for name in whole]
    short = [next((p for p in some if p), name).rstrip("_") for some, name in zip(before, whole, strict=True)]
    if len(set(short)) < len(cases) or not all(name.strip(".") for name in short):
        short = whole
    return [case | {"name": name} for case, name in zip(cases, short, strict=True)]


def _absolute(item: dict[str, Any], folder: Path) -> dict[str, Any]:
    def path(value: Any) -> Any:
        if isinstance(value, list):
            return [path(v) for v in value]
        return str(folder.absolute() / value) if isinstance(value, str) and value.endswith(".nii.gz") else value

    return {key: path(value) for key, value in item.items()}


def _write_page(output_dir: Path, records: Sequence[dict[str, Any]], failures: dict[str, str]) -> None:
    doubtful = [record for record in records if record["warnings"]]
    tiles = [("prepared", records), ("doubtful", doubtful), ("failed", failures)]
    section = Section(
        title="Prepared scans",
        failures=sorted(failures.items()),
        tiles=[Tile(name, str(len(some))) for name, some in tiles],
        tables=[Table("Sequences", COLUMNS, [row for record in records for row in _rows(record)])],
        cases=[_view(output_dir / record["name"], record) for record in sorted(records, key=_is_sound)],
        cases_note="Reference is the template's brain and white matter, prediction the brain mask. The one should "
        "follow the brain to some millimeters, the other to its edge, in every sequence.",
        definitions=DEFINITIONS,
    )
    write_html_report(output_dir / "preparation.html", "Prepared scans", [section])


COLUMNS = (
    "case",
    "sequence",
    "voxels",
    "information",
    "by headers",
    "overlap",
    "moved, mm",
    "turned, degrees",
    "warning",
)
DEFINITIONS = (
    ("brain", "volume of the mask, and how it was found: by the template, by deepbet, given, or where a scan is not 0"),
    (
        "misfit to the template",
        "share of the variance of intensities within the tissues of the aligned template; usual are 0.13 to 0.23",
    ),
    (
        "information, by headers",
        "mutual information of a sequence and the reference in the head, bits per voxel: where the sequence was "
        "brought, and where the headers say that it lies",
    ),
    ("overlap", "Dice of the heads of both there; 1 is all"),
    ("moved, turned", "the motion that was found against the headers, of the middle of the head"),
)


def _is_sound(record: dict[str, Any]) -> bool:
    return not record["warnings"]


def _rows(record: dict[str, Any]) -> list[list[str]]:
    """A row of the table for each sequence of a case; what is said of none of them stands at the reference."""
    doubts = [f"{sequence} {found['doubt']}" for sequence, found in record["coregistration"].items()]
    others = [sentence for sentence in record["warnings"] if sentence not in doubts]
    rows = []
    for sequence, raw in record["raw"].items():
        sizes = nib.affines.voxel_sizes(np.array(raw["affine"]))
        voxels = f"{' x '.join(map(str, raw['shape']))} of {' x '.join(f'{size:.3g}' for size in sizes)} mm"
        found = record["coregistration"].get(sequence)
        cells = ["reference" if sequence == record["reference"] else "as the headers say"] + [""] * 4
        warning = "; ".join(others) if sequence == record["reference"] else ""
        if found is not None:
            cells = [f"{found['information']:.2f}", f"{found['information_of_headers']:.2f}", f"{found['overlap']:.3f}"]
            cells += [f"{found['shift_mm']:.1f}", f"{found['turn_deg']:.1f}"]
            warning = found["doubt"] or ""
        rows.append([record["name"], sequence, voxels, *cells, warning])
    return rows


def _view(folder: Path, record: dict[str, Any]) -> CaseView:
    source = f" of {record['brain_source']}" if record["brain"] == "deepbet" else ""
    facts = [
        ("reference", record["reference"]),
        ("brain", f"{record['brain_ml']:.0f} ml, {record['brain']}{source}"),
        ("misfit to the template", f"{record['template_misfit']:.3f}"),
        *(("warning", sentence) for sentence in record["warnings"]),
    ]
    pictures = []
    for sequence, file in record["pictures"].items():
        found = record["coregistration"].get(sequence)
        how = f", moved {found['shift_mm']:.1f} mm and {found['turn_deg']:.1f} degrees" if found else ""
        caption = f"{sequence}{how}: axial, coronal and sagittal slice on the grid of {record['reference']}"
        pictures.append(Picture((folder / file).read_bytes(), caption, f"three slices of {sequence} with contours"))
    return CaseView(record["name"], facts, pictures, wide=True)
