"""Cases of a folder, a table, a pattern of paths, or a datalist."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from common.data import NOTHING, check_cases, list_cases, write_datalist
from common.data.names import short_name
from common.errors import InputError
from common.files import read_text
from common.options import types as t

from .splits import split
from .survey import describe, duplicates, refuse_duplicates, survey

logger = logging.getLogger(__name__)

FIELDS = ("subject", "sequence", "session")  # what a pattern may name
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
_PATHS = ("label", "brain_mask")


def make_datalist(
    output_file: t.NewFile,
    dataset_dir: t.ExistingFolder | None = None,
    pattern: t.Text | None = None,
    table: t.File | None = None,
    datalist_file: t.File | None = None,
    sequences: t.Names = ("FLAIR",),
    optional_sequences: t.NamesOrNone = (),
    label: t.Text | None = None,
    brain_mask: t.Text | None = None,
    dataset_name: t.Text | None = None,
    healthy: t.Flag | None = None,
    one_grid: t.Flag = True,
    validation: t.ShareBelowOne = 0.0,
    test: t.ShareBelowOne = 0.0,
    folds: t.Whole = 0,
    seed: t.Seed = 0,
    num_workers: t.SmallCount | None = None,
) -> None:
    """Write a datalist and report what is in it.

    Args:
        output_file: JSON to write; its paths are relative to it.
        dataset_dir: flat or BIDS-like folder, see common.data.list_cases.
        pattern: path of an image with {subject}, {sequence} and {session}, as in the examples.
        table: CSV or TSV with a heading: a column per sequence, label, brain_mask, subject, healthy, and any others.
        datalist_file: JSON with cases, as prepare_data.py writes it; its sections are joined, and split again.
        sequences: what the images of a case are, in the order of the channels.
        optional_sequences: those that a case may lack, in a pattern or a table.
        label: with a pattern, the path of the label.
        brain_mask: with a pattern, the path of the brain mask.
        dataset_name: name that every case gets, for bundles that learn from several data sets.
        healthy: what every case gets: True for people without pathology.
        one_grid: False lets the files of a case lie on different grids, as raw scans do before prepare_data.py.
        validation: share of the subjects for validation.
        test: share of the subjects for the test.
        folds: number of folds for the subjects that are not for the test, instead of a validation set.
        seed: of the split.
        num_workers: processes that read files; all cores by default.

    Raises:
        InputError: if there is not exactly one source, or a case cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    places = (dataset_dir, pattern, table, datalist_file, label, brain_mask)
    cases = _read_cases(*places, sequences, optional_sequences=optional_sequences, one_grid=one_grid)
    more = {key: value for key, value in (("dataset", dataset_name), ("healthy", healthy)) if value is not None}
    cases = [{key: value for key, value in case.items() if key != "name"} | more for case in cases]
    facts = survey(cases, num_workers)
    refuse_duplicates(cases, duplicates(cases, facts))
    sections = split(cases, validation, test, folds, seed)
    write_datalist(output_file, sections, {"sequences": list(sequences)})
    logger.info("%s", describe(cases, sequences, facts))
    logger.info("wrote %s: %s", output_file, ", ".join(f"{len(part)} {name}" for name, part in sections.items()))


def _read_cases(
    dataset_dir: str | None,
    pattern: str | None,
    table: str | None,
    datalist_file: str | None,
    label: str | None,
    brain_mask: str | None,
    sequences: Sequence[str],
    **given: Any,
) -> list[dict[str, Any]]:
    """Cases of one of the four sources, each checked by the headers of its files."""
    places = (dataset_dir, pattern, table, datalist_file)
    if sum(place is not None for place in places) != 1:
        raise InputError("expected exactly one of dataset_dir, pattern, table and datalist_file")
    if pattern is None and (label or brain_mask):
        raise InputError("label or brain_mask is given without pattern, expected them with a pattern only")
    if pattern is not None:
        items = items_of_pattern(pattern, sequences, label, brain_mask, given["optional_sequences"])
        return check_cases(items, pattern, sequences, **given)
    if table is not None:
        return check_cases(items_of_table(table, sequences), table, sequences, **given)
    return list_cases(dataset_dir, datalist_file, sequences, **given)


def _is_pattern(text: str) -> bool:
    """Whether a text has ``{subject}`` and no other braces than those of the fields, as they are."""
    try:
        fields = [rest for _, *rest in Formatter().parse(text) if rest[0] is not None]
    except ValueError:  # a brace is missing
        return False
    plain = all(field in FIELDS and not form and conversion is None for field, form, conversion in fields)
    return plain and "subject" in [field for field, _, _ in fields]


def read_table(path: str | Path) -> list[tuple[int, dict[str, str]]]:
    """Lines of a table with a heading, separated by commas, semicolons or tabs, whichever its heading has most of.

    Args:
        path: ``.csv``, or ``.tsv``.

    Returns:
        Number of each line that is not empty, and its cells by their column, without spaces around them.

    Raises:
        InputError: if the table cannot be read, has no line, names a column twice, or a line is longer or shorter than
            the heading.
    """
    path = Path(path)
    text = read_text(path, "a table as .csv or .tsv")
    delimiter = max("\t,;" if path.suffix == ".tsv" else ",;\t", key=text.partition("\n")[0].count)
    try:
        rows = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter))
    except csv.Error as e:
        raise InputError(f"{path} cannot be read ({e}), expected a table as .csv or .tsv") from e
    rows = [[cell.strip() for cell in row] for row in rows]
    lines = [(number, row) for number, row in enumerate(rows, start=1) if any(row)]
    if len(lines) < 2:
        raise InputError(f"{path} has {len(lines)} lines, expected a heading and a line per case")
    (_, heading), *lines = lines
    twice = [name for name, n in Counter(heading).items() if n > 1]
    if twice:
        raise InputError(f"the heading of {path} names {', '.join(twice)} twice, expected every column once")
    for number, row in lines:
        if len(row) != len(heading):
            raise InputError(f"line {number} of {path} has {len(row)} cells, expected {len(heading)} as the heading")
    return [(number, dict(zip(heading, row, strict=True))) for number, row in lines]


def refuse_without(columns: Sequence[str], lines: Sequence[tuple[int, dict[str, str]]], path: str | Path) -> None:
    """Raise InputError if what :func:`read_table` has read lacks a column."""
    missing = [name for name in columns if name not in lines[0][1]]
    if missing:
        raise InputError(
            f"the heading of {path} lacks {', '.join(missing)}, expected one column for each of {', '.join(columns)}"
        )


def items_of_table(path: str | Path, sequences: Sequence[str]) -> list[dict[str, Any]]:
    """Cases of a table, see :func:`read_table`.

    Columns: one per sequence, called by one of its names (or ``image`` where there is one sequence); ``label``,
    ``brain_mask``, ``subject``, ``healthy`` (true or false) and any others, which are kept as text. Paths are absolute
    or relative to the table; an empty cell and ``n/a`` say that there is no such file or value.

    Args:
        path: ``.csv``, or ``.tsv``.
        sequences: what the images of a case are, in the order of the channels.

    Returns:
        Items as in a datalist, with absolute paths.

    Raises:
        InputError: as there, or if a cell makes no sense.
    """
    lines = read_table(path)
    heading = lines[0][1]
    wanted = ["image"] if len(sequences) == 1 and "image" in heading else [_column(n, heading, path) for n in sequences]
    refuse_without(wanted, lines, path)
    return [_item_of_line(cells, wanted, Path(path), number) for number, cells in lines]


def _column(sequence: str, heading: Iterable[str], path: str | Path) -> str:
    """The column of a sequence, which may have another of its names, as T1 for T1w."""
    fitting = [name for name in heading if short_name(name) == short_name(sequence)]
    if len(fitting) > 1 and sequence not in fitting:
        raise InputError(f"{path} has the columns {' and '.join(fitting)}, expected one for {sequence}")
    return sequence if sequence in fitting or not fitting else fitting[0]


def _item_of_line(line: dict[str, str], wanted: list[str], path: Path, number: int) -> dict[str, Any]:
    cells = {name: cell for name, cell in line.items() if cell.lower() not in NOTHING}
    images = [str((path.parent / cells[name]).absolute()) if name in cells else None for name in wanted]
    if not any(images):
        raise InputError(f"line {number} of {path} names no image, expected one under {' or '.join(wanted)}")
    item: dict[str, Any] = {"image": images[0] if len(images) == 1 else images}
    for name, cell in cells.items():
        if name in wanted:
            continue
        if name == "healthy":
            if cell.lower() not in _TRUE + _FALSE:
                raise InputError(f"line {number} of {path} says {cell!r} under healthy, expected true or false")
            item[name] = cell.lower() in _TRUE
        else:
            item[name] = str((path.parent / cell).absolute()) if name in _PATHS else cell
    return item


def items_of_pattern(
    pattern: str,
    sequences: Sequence[str],
    label: str | None = None,
    brain_mask: str | None = None,
    optional_sequences: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Cases whose files follow a pattern.

    Args:
        pattern: path of an image with ``{subject}``, and with ``{sequence}`` where there are several, as
            ``scans/{subject}/{session}/{sequence}.nii.gz``; a field is the same wherever it stands.
        sequences: what the images of a case are, in the order of the channels; files may have another of their names.
        label, brain_mask: likewise, the path of the label and of the brain mask; taken where the file is there.
        optional_sequences: those that a case may lack.

    Returns:
        Items as in a datalist, with absolute paths, ordered by subject and session.

    Raises:
        InputError: if a pattern names another field, nothing fits, or a case lacks a sequence or has it twice.
    """
    patterns = {"pattern": pattern, "label": label, "brain_mask": brain_mask}
    for name, text in patterns.items():
        if text and not _is_pattern(text):
            raise InputError(f"{name} is {text}, expected {{subject}} in it, and no field but {', '.join(FIELDS)}")
    if "{sequence}" not in pattern and len(sequences) > 1:
        raise InputError(f"pattern is {pattern}, expected {{sequence}} in it: there are {len(sequences)} sequences")
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    written: dict[str, str] = {}  # path -> its own name of the sequence
    asked = {short_name(sequence): sequence for sequence in sequences}
    for path, fields in _matches(pattern):
        written[path] = fields.get("sequence", sequences[0])
        sequence = asked.get(short_name(written[path]))
        if sequence is None:
            continue
        files = found[fields["subject"], fields.get("session", "")]
        others = [
            name for name in (written.get(files.get(sequence, "")), written[path]) if name not in (None, sequence)
        ]
        if len(others) > 1:
            raise InputError(f"{files[sequence]} and {path} are both {sequence}, expected one of a subject and session")
        if sequence not in files or written[path] == sequence:
            files[sequence] = path
    if not found:
        raise InputError(f"no file is called like {pattern} with {', '.join(sequences)}, expected one case or more")
    items = []
    for (subject, session), files in sorted(found.items()):
        for sequence in sequences:
            if sequence not in files and sequence not in optional_sequences:
                raise InputError(
                    f"subject {subject} {session}".strip() + f" has no {sequence}, expected one: {pattern}"
                )
        images = [files.get(sequence) for sequence in sequences]
        item: dict[str, Any] = {"image": images[0] if len(images) == 1 else images, "subject": subject}
        if session:
            item["session"] = session
        for key in _PATHS:
            if patterns[key]:
                first = written[next(path for path in images if path is not None)]
                path = Path(patterns[key].format(subject=subject, session=session, sequence=first))
                if path.is_file():
                    item[key] = str(path.absolute())
        items.append(item)
    return items


def _matches(pattern: str) -> list[tuple[str, dict[str, str]]]:
    """Files that fit a pattern, and what its fields are there."""
    expression, wildcard, seen = "", "", set()
    for text, field, _, _ in Formatter().parse(str(Path(pattern).absolute())):
        expression += re.escape(text)
        wildcard += re.sub(r"([*?[])", r"[\1]", text)
        if field is not None:
            expression += f"(?P={field})" if field in seen else f"(?P<{field}>[^/]+?)"
            wildcard += "*"
            seen.add(field)
    root = Path(wildcard.partition("*")[0].rpartition("/")[0] or "/")
    paths = root.glob(wildcard[len(str(root)) :].lstrip("/"))
    matches = ((path, re.fullmatch(expression, path.as_posix())) for path in sorted(paths) if path.is_file())
    return [(str(path), match.groupdict()) for path, match in matches if match]
