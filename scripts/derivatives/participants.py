"""What a BIDS data set says of its participants and sessions goes along into its derivatives."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from common.files import read_text, write_text

logger = logging.getLogger(__name__)

TABLES = {"participants.tsv": "participant_id", "sub-*/sub-*_sessions.tsv": "session_id"}  # and their first columns
DESCRIPTIONS = ("participants.json", "sessions.json", "sub-*/sub-*_sessions.json")


@dataclass(frozen=True)
class Table:
    """Lines of a table as they stand in its file, by their first cells; ``path`` is that in the data set."""

    path: Path
    heading: str
    lines: dict[str, str]


def read_tables(bids_dir: Path) -> list[Table]:
    """The tables of participants and of their sessions that a data set has.

    Raises:
        InputError: if one cannot be read, or its first column is not what BIDS asks for.
    """
    return [
        _read(file, file.relative_to(bids_dir), column)
        for pattern, column in TABLES.items()
        for file in sorted(bids_dir.glob(pattern))
    ]


def carry_on(tables: Sequence[Table], bids_dir: Path, output_dir: Path) -> None:
    """Write of each table the lines whose participants or sessions have derivatives, and what describes the columns.

    Lines of an earlier run on another data set stay. A table of other columns that is there already stays as it is,
    which is said.
    """
    for table in tables:
        target = output_dir / table.path
        folders = {path.name for path in target.parent.glob("s*-*") if path.is_dir()}
        lines = {name: line for name, line in table.lines.items() if name in folders}
        if not lines:
            continue
        if target.is_file():
            before = _read(target, target, table.heading.split("\t")[0])
            if before.heading != table.heading:
                logger.warning("%s has other columns than that of %s: it stays as it is", target, bids_dir)
                continue
            lines |= {name: line for name, line in before.lines.items() if name not in table.lines}
        write_text(target, "".join(f"{line}\n" for line in (table.heading, *lines.values())))
    for file in (file for pattern in DESCRIPTIONS for file in sorted(bids_dir.glob(pattern))):
        target = output_dir / file.relative_to(bids_dir)
        described = (
            [target.with_suffix(".tsv")] if file.name != "sessions.json" else output_dir.glob("*/*_sessions.tsv")
        )
        if any(path.is_file() for path in described):
            write_text(target, read_text(file))


def _read(file: Path, name: Path, column: str) -> Table:
    heading, *lines = read_text(file).splitlines() or [""]
    if heading.split("\t")[0] != column:
        raise InputError(f"{file} begins with {heading[:40]!r}, expected the column {column} and tabs between columns")
    return Table(name, heading, {line.split("\t")[0]: line for line in lines if line.strip()})
