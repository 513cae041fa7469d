"""From a table or a pattern of paths to cases, folds, and what there is to know about the files."""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.utils import ensure_tuple
from tqdm import tqdm

from common.data import NOTHING, subject_of
from common.errors import InputError
from common.scans import as_mask, foreground, read_scan, whole_numbers
from running.processes import process_pool

logger = logging.getLogger(__name__)

FIELDS = ("subject", "sequence", "session")  # what a pattern may name
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
_PATHS = ("label", "brain_mask")


def _is_pattern(text: str) -> bool:
    """Whether a text has ``{subject}`` and no other braces than those of the fields, as they are."""
    try:
        fields = [rest for _, *rest in Formatter().parse(text) if rest[0] is not None]
    except ValueError:  # a brace is missing
        return False
    plain = all(field in FIELDS and not form and conversion is None for field, form, conversion in fields)
    return plain and "subject" in [field for field, _, _ in fields]


def items_of_table(path: str | Path, sequences: Sequence[str]) -> list[dict[str, Any]]:
    """Cases of a table with a heading, separated by commas, semicolons or tabs, whichever its heading has most of.

    Columns: one per sequence, called like it (or ``image`` where there is one sequence); ``label``, ``brain_mask``,
    ``subject``, ``healthy`` (true or false) and any others, which are kept as text. Paths are absolute or relative to
    the table; an empty cell and ``n/a`` say that there is no such file or value.

    Args:
        path: ``.csv``, or ``.tsv``.
        sequences: what the images of a case are, in the order of the channels.

    Returns:
        Items as in a datalist, with absolute paths.

    Raises:
        InputError: if the table cannot be read, a column is missing or named twice, or a cell makes no sense.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max("\t,;" if path.suffix == ".tsv" else ",;\t", key=text.partition("\n")[0].count)
        rows = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path} cannot be read ({e}), expected a table as .csv or .tsv") from e
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise InputError(f"{path} has {len(rows)} lines, expected a heading and a line per case")
    heading = [name.strip() for name in rows[0]]
    wanted = ["image"] if len(sequences) == 1 and "image" in heading else list(sequences)
    twice = [name for name, n in Counter(heading).items() if n > 1]
    missing = [name for name in wanted if name not in heading]
    if twice or missing:
        problem = f"names {', '.join(twice)} twice" if twice else f"lacks {', '.join(missing)}"
        raise InputError(f"the heading of {path} {problem}, expected one column for each of {', '.join(wanted)}")
    return [_item_of_row(row, heading, wanted, path, number) for number, row in enumerate(rows[1:], start=2)]


def _item_of_row(row: list[str], heading: list[str], wanted: list[str], path: Path, number: int) -> dict[str, Any]:
    if len(row) != len(heading):
        raise InputError(f"line {number} of {path} has {len(row)} cells, expected {len(heading)} as the heading")
    cells = {name: cell.strip() for name, cell in zip(heading, row, strict=True) if cell.strip().lower() not in NOTHING}
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
        sequences: what the images of a case are, in the order of the channels.
        label, brain_mask: likewise, the path of the label and of the brain mask; taken where the file is there.
        optional_sequences: those that a case may lack.

    Returns:
        Items as in a datalist, with absolute paths, ordered by subject and session.

    Raises:
        InputError: if a pattern names another field, nothing fits, or a case lacks a sequence.
    """
    patterns = {"pattern": pattern, "label": label, "brain_mask": brain_mask}
    for name, text in patterns.items():
        if text and not _is_pattern(text):
            raise InputError(f"{name} is {text}, expected {{subject}} in it, and no field but {', '.join(FIELDS)}")
    if "{sequence}" not in pattern and len(sequences) > 1:
        raise InputError(f"pattern is {pattern}, expected {{sequence}} in it: there are {len(sequences)} sequences")
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for path, fields in _matches(pattern):
        sequence = fields.get("sequence", sequences[0])
        if sequence in sequences:
            found[fields["subject"], fields.get("session", "")][sequence] = path
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
                path = Path(patterns[key].format(subject=subject, session=session, sequence=sequences[0]))
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


def assign_folds(cases: Sequence[dict[str, Any]], folds: int, seed: int) -> list[dict[str, Any]]:
    """The cases with ``fold`` from 0 to ``folds - 1``; all of a subject in one, folds of like numbers of subjects.

    Raises:
        InputError: if there are fewer subjects than folds, or fewer than two folds.
    """
    subjects = sorted({subject_of(case) for case in cases})
    if not 2 <= folds <= len(subjects):
        raise InputError(f"folds is {folds} for {len(subjects)} subjects, expected 2 to {len(subjects)}")
    np.random.default_rng(seed).shuffle(subjects)
    fold_of = {subject: number % folds for number, subject in enumerate(subjects)}
    return [{**case, "fold": fold_of[subject_of(case)]} for case in cases]


def parts_by_fold(cases: Sequence[dict[str, Any]], source: str | Path) -> list[tuple[list, list, list]]:
    """Training, validation and test of each fold.

    Every fold is the test once; the one after it is for validation, the others are for training.

    Args:
        cases: all with ``fold``.
        source: where they are from, for messages.

    Raises:
        InputError: if there are less than three folds.
    """
    folds = sorted({case["fold"] for case in cases})
    if len(folds) < 3:
        raise InputError(f"{source} has {len(folds)} folds, expected 3 or more: test, validation, training")
    of_fold = {fold: [case for case in cases if case["fold"] == fold] for fold in folds}
    parts = []
    for number, fold in enumerate(folds):
        following = folds[(number + 1) % len(folds)]
        training = [case for other in folds if other not in (fold, following) for case in of_fold[other]]
        parts.append((training, of_fold[following], of_fold[fold]))
    return parts


class FileFacts(NamedTuple):
    """What a file is: its grid, a fingerprint of its voxels, the volume of its foreground, the values of a label.

    ``values`` is None for an image.
    """

    path: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    axes: str
    fingerprint: str
    foreground_ml: float
    values: tuple[int, ...] | None


def read_facts(path: str, kind: str = "image") -> FileFacts:
    """Read a file whole.

    Args:
        path: NIfTI.
        kind: ``image``, ``label`` to collect its values too, or ``mask``.

    Raises:
        InputError: if it cannot be read, a label has other than whole numbers or more than 1000 of them, or a mask has
            nothing above 0.
    """
    voxels, image = read_scan(path, dtype=None)
    values = None
    if kind == "mask":
        as_mask(voxels, path)
    if kind == "label":
        found = np.unique(whole_numbers(voxels, path))
        if len(found) > 1000:
            raise InputError(f"{path} has {len(found)} values up to {found[-1]:g}, expected no more than 1000 labels")
        values = tuple(int(value) for value in found)
    fingerprint = hashlib.sha256(np.ascontiguousarray(voxels, dtype="<f4").tobytes()).hexdigest()
    spacing = tuple(round(float(size), 3) for size in image.header.get_zooms()[:3])
    axes = "".join(nib.aff2axcodes(image.affine))
    foreground_ml = np.count_nonzero(foreground(voxels)) * abs(np.linalg.det(image.affine[:3, :3])) / 1000
    return FileFacts(str(path), image.shape[:3], spacing, axes, fingerprint, float(foreground_ml), values)


def survey(cases: Sequence[Mapping[str, Any]], num_workers: int | None = None) -> dict[str, FileFacts]:
    """Facts about every image, label and brain mask of some cases, read in parallel.

    Args:
        cases: as of :func:`common.data.list_cases`.
        num_workers: processes; as many as cores by default.

    Returns:
        path -> facts.

    Raises:
        InputError: of the first file that cannot be used.
    """
    jobs = {path: "image" for case in cases for path in ensure_tuple(case["image"]) if path is not None}
    jobs |= {case["brain_mask"]: "mask" for case in cases if "brain_mask" in case}
    jobs |= {case["label"]: "label" for case in cases if "label" in case}
    with process_pool(num_workers, method=None) as pool:
        found = [pool.submit(partial(read_facts, path, kind)) for path, kind in jobs.items()]
        bar = tqdm(found, desc="reading files", unit=" file", disable=None)
        return {path: future.result() for path, future in zip(jobs, bar, strict=True)}


def duplicates(cases: Sequence[Mapping[str, Any]], facts: Mapping[str, FileFacts]) -> list[tuple[str, str]]:
    """Pairs of images of the same sequence with the same voxels under two names, sorted."""
    seen: dict[tuple[int, str], str] = {}
    found = []
    for case in cases:
        for channel, path in enumerate(ensure_tuple(case["image"])):
            if path is not None:
                other = seen.setdefault((channel, facts[path].fingerprint), path)
                if other != path:
                    found.append((other, path))
    return sorted(found)


def describe(cases: Sequence[Mapping[str, Any]], sequences: Sequence[str], facts: Mapping[str, FileFacts]) -> str:
    """What a user should know about the cases, as lines of text."""
    subjects = {subject_of(case) for case in cases}
    counted = Counter("healthy" if case.get("healthy") is True else "not said to be healthy" for case in cases)
    lines = [
        f"{len(cases)} cases of {len(subjects)} subjects: {_counts(counted)}",
        f"labels: {sum('label' in case for case in cases)}, brain masks: {sum('brain_mask' in case for case in cases)}",
    ]
    if any("dataset" in case for case in cases):
        lines.append(f"data sets: {_counts(Counter(str(case.get('dataset', 'none')) for case in cases))}")
    for channel, sequence in enumerate(sequences):
        of_cases = [ensure_tuple(case["image"])[channel] for case in cases]
        grids = Counter(_grid(facts[path]) for path in of_cases if path is not None)
        lines.append(f"{sequence}: {sum(grids.values())} files; {_counts(grids)}")
    values = Counter(value for case in cases if "label" in case for value in facts[case["label"]].values)
    if values:
        shown = ", ".join(f"{value} in {count}" for value, count in sorted(values.items()))
        lines.append(f"label values, and in how many labels: {shown}")
    return "\n".join(lines)


def _grid(facts: FileFacts) -> str:
    size, spacing = ("x".join(f"{n:g}" for n in numbers) for numbers in (facts.shape, facts.spacing))
    return f"{size} of {spacing} mm {facts.axes}"


def _counts(counter: Counter[str], most: int = 5) -> str:
    shown = ", ".join(f"{count} {name}" for name, count in counter.most_common(most))
    return shown + (f", {len(counter) - most} others" if len(counter) > most else "")
