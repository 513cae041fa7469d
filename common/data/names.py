"""What the names of files say: sequence, subject, visit, channel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..scans import is_scan_name, stem
from ..sequences import SEQUENCES, sequence_name

Case = dict[str, Any]  # item of a datalist, or what became of it

_CHANNEL = re.compile(r"(.+)_(\d{4})")  # of nnU-Net: <case>_<channel>
# how names tell the visits of a person apart, behind the person: _study2, _ses-01, _baseline, _m12, _20190131, 01v2
_VISIT = re.compile(
    r"(.+?)(?:(?<=\d)v\d{1,2}|[_.-](?:ses-[a-z0-9]+|(?:baseline|bl|pre|post|follow-?up|fu)[_-]?\d{0,2}|(?:19|20)\d\d-?\d\d-?\d\d|"
    r"(?:ses|session|study|visit|scan|exam|run|time|timepoint|tp|wave|day|week|month|year)[_-]?\d{1,2}|[tvmwyd]\d{1,3}))",
    re.IGNORECASE,
)
_SEQUENCE_ENDING = re.compile(rf"(.+?)_(?:{'|'.join(SEQUENCES.values())})", re.IGNORECASE)


def prefix_of(name: str, sequence: str) -> str | None:
    """What stands in the name of a file before its sequence, as ``sub-1_`` in ``sub-1_T1w``.

    Args:
        name: without ``.nii.gz``.
        sequence: any of its names.

    Returns:
        None if the name does not end in the sequence.
    """
    names = SEQUENCES.get(sequence_name(sequence), re.escape(sequence.removesuffix("w")) + "w?")
    match = re.fullmatch(rf"(.*?_)?(?:{names})", name, re.IGNORECASE)
    return None if match is None else match[1] or ""


def subject_of(case: Mapping[str, Any]) -> str:
    """Subject of a case: its ``subject``, else ``sub-...`` in the path of its image, else the image's file name.

    Of the name a sequence at its end is left out, and then what only tells visits apart: ``p1_study2_FLAIR.nii.gz`` is
    of ``p1``. A file that is called by its sequence alone, as in ``07/FLAIR.nii.gz``, is of the subject that its folder
    names, or the folder above one that is called as a visit, as in ``07/visit2/FLAIR.nii.gz``.
    """
    if "subject" in case:
        return str(case["subject"])
    path = Path(images_of(case)[0])
    if bids := bids_subject(path):
        return bids
    if sequence_name(stem(path)) in SEQUENCES:
        folder = path.parent
        is_visit = without_visit(f"a_{folder.name}") == "a"
        return folder.parent.name if is_visit else without_visit(folder.name)
    prefixes = {prefix_and_channel(Path(image))[0] for image in images_of(case)}
    if len(images_of(case)) > 1 and len(prefixes) == 1:
        return without_visit(prefixes.pop())
    named = _SEQUENCE_ENDING.fullmatch(stem(path))
    return without_visit(named[1] if named else stem(path))


def visit_of(case: Mapping[str, Any]) -> str:
    """What tells a visit of a person from the others: ``visit``, ``session`` or ``study`` of an item, else by its name.

    ``p1_study2_FLAIR`` and ``p1/study2/FLAIR.nii.gz`` are ``study2``, ``sub-1/ses-02/...`` is ``ses-02``; empty where
    nothing says it.
    """
    named = next((case[key] for key in ("visit", "session", "study") if case.get(key) not in (None, "")), None)
    if named is not None:
        return str(named)
    path = Path(images_of(case)[0])
    if bids := re.findall(r"(?:^|[/_])(ses-[a-zA-Z0-9]+)", path.as_posix()):
        return bids[-1]
    if sequence_name(stem(path)) in SEQUENCES:
        return path.parent.name if without_visit(f"a_{path.parent.name}") == "a" else _visit_in(path.parent.name)
    name = prefix_and_channel(path)[0]
    ending = _SEQUENCE_ENDING.fullmatch(name)
    return _visit_in(ending[1] if ending else name)


def _visit_in(name: str) -> str:
    return name[len(without_visit(name)) :].lstrip("_.-")


def named_otherwise(path: str | Path, sequence: str) -> str | None:
    """The sequence in a file's name, if there is one and none is the expected one."""
    name = re.sub(SEQUENCES["FLAIR"], "FLAIR", stem(path), flags=re.IGNORECASE)  # t2_flair is no T2
    named = [word for word in re.split(r"[^A-Za-z0-9]+", name) if sequence_name(word) in SEQUENCES]
    return named[-1] if named and short_name(sequence) not in map(short_name, named) else None


def prefix_and_channel(path: Path) -> tuple[str, str]:
    """``("p1", "0000")`` of ``p1_0000.nii.gz``, as nnU-Net names channels; the channel is empty for another name."""
    match = _CHANNEL.fullmatch(stem(path))
    return (match[1], match[2]) if match else (stem(path), "")


def without_visit(name: str) -> str:
    """A name without what tells the visits of one person apart."""
    while match := _VISIT.fullmatch(name):
        name = match[1]
    return name


def short_name(name: str) -> str:
    """The name of a sequence as it is compared: BIDS writes T1w and FLAIR, others T1, MPRAGE, t2_flair."""
    return sequence_name(name).lower().removesuffix("w")


def checked_sequences(names: Any, where: str) -> tuple[str, ...]:
    """Names of sequences, one or more, each once."""
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise InputError(f"{where} {str(names)[:80]}, expected a list of names such as T1w")
    odd = [name for name in names if re.search(r"[^\w .+-]", name) or not name.isprintable()]
    if odd:
        raise InputError(f"{where} {str(odd)[:80]}, expected names of letters and digits such as T1w")
    twice = [name for name, count in Counter(map(short_name, names)).items() if count > 1]
    if twice:
        named = next(name for name in names if short_name(name) == twice[0])
        raise InputError(f"{where} {', '.join(names)}, expected {named} once: its place says which image is meant")
    return tuple(names)


def bids_subject(path: str) -> str | None:
    """The ``sub-...`` that is nearest to the end of a path, as in ``sub-01/anat/sub-01_FLAIR.nii.gz``."""
    found = re.findall(r"(?:^|/)(sub-[^_/.]+)", Path(path).as_posix())
    return found[-1] if found else None


def entries_of(case: Mapping[str, Any]) -> list[str | None]:
    """One per sequence, None for a missing one."""
    return list(case["image"]) if isinstance(case["image"], list | tuple) else [case["image"]]


def images_of(case: Mapping[str, Any]) -> list[str]:
    return [path for path in entries_of(case) if path is not None]


def paths_in(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, str) and is_scan_name(v)]
