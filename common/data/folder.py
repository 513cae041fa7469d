"""Cases of a folder of scans: flat, BIDS-like, or of nnU-Net."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json
from ..scans import is_scan_name, stem
from .names import (
    bids_subject,
    named_otherwise,
    paths_in,
    prefix_and_channel,
    prefix_of,
    short_name,
    without_visit,
)

logger = logging.getLogger(__name__)

_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".hdr.gz")
# endings of files that are no scan to work on, for a folder whose files do not name their sequence
_DERIVED = ("seg", "dseg", "prob", "mask", "brainmask", "label", "labels", "lesion", "lesions", "tissue", "tissues")
# what may stand beside `<case>_<sequence>.nii.gz`
_COMPANIONS = {
    "brain_mask": ("brainmask", "brain_mask", "desc-brain_mask"),
    "label": ("lesion", "lesions", "label", "labels", "label-lesion_mask"),
}
_FOLDERS = (".", "sub-*/anat", "sub-*/ses-*/anat")


def cases_of_folder(folder: Path, sequences: tuple[str, ...], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder, expected one with NIfTI files")
    files = sorted(p for pattern in _FOLDERS for p in _nifti_files(folder, pattern))
    if not files:
        raise InputError(
            f"{folder} holds no .nii or .nii.gz file, expected some in it or in {' or '.join(_FOLDERS[1:])}"
        )
    found = [_files_by_prefix(files, sequence) for sequence in sequences]
    if any(found):
        beside = {str(path).lower(): str(path) for path in files}
        prefixes = sorted(set().union(*found))
        cases = [_case_of_prefix(prefix, sequences, optional, found, beside) for prefix in prefixes]
    elif any(channel for _, channel in map(prefix_and_channel, files) if channel == "0000"):
        cases = _cases_of_channels(folder, files, sequences)
    elif len(sequences) == 1:
        plain = [p for p in files if p.parent == folder and stem(p).rpartition("_")[2].lower() not in _DERIVED]
        for path in plain:
            other = named_otherwise(path, sequences[0])
            if other is not None:
                raise InputError(f"{path} is named as {other}, expected {sequences[0]}, or another name")
        cases = [{"image": str(p)} for p in plain]
    else:
        cases = []
    if not cases:
        endings = " or ".join(f"_{sequence}.nii.gz" for sequence in sequences)
        raise InputError(
            f"{folder} holds no image among its {len(files)} NIfTI files, expected names that end in {endings}"
        )
    taken = {path for case in cases for value in case.values() for path in paths_in(value)}
    left = [str(p.relative_to(folder)) for p in files if str(p) not in taken]
    if left:
        logger.info(
            "%s: %d other NIfTI files left alone: %s",
            folder,
            len(left),
            ", ".join(left[:5]) + ", ..." * (len(left) > 5),
        )
    return cases


def paths_beside(path: str | Path, sequences: Sequence[str]) -> list[str | None]:
    """The images of the case that a file belongs to, by the names in its folder, read as :func:`list_cases` does.

    Args:
        path: NIfTI file.
        sequences: what the images of a case are, in the order of the channels.

    Returns:
        One path per sequence, None for a missing one; None for all if the file's name ends in no sequence.

    Raises:
        InputError: if two files of the folder are the same sequence of one case.
    """
    path = Path(path)
    found = [_files_by_prefix(_nifti_files(path.parent, "."), sequence) for sequence in sequences]
    prefix = next((prefix for files in found for prefix, file in files.items() if file == str(path)), None)
    return [files.get(prefix) for files in found]


def _nifti_files(folder: Path, pattern: str) -> list[Path]:
    folders = [folder] if pattern == "." else folder.glob(pattern)
    # of a pair of files the header stands for both
    names = (p for f in folders for p in f.iterdir() if is_scan_name(p) and ".img" not in p.name.lower()[-7:])
    return [p for p in names if not p.name.startswith(".")]


def _files_by_prefix(files: Sequence[Path], sequence: str) -> dict[str, str]:
    """Path up to where the sequence begins -> file."""
    found: dict[str, str] = {}
    for path in files:
        before = prefix_of(stem(path), sequence)
        if before is None:
            continue
        prefix = f"{path.parent}/{before}"
        if prefix in found:
            raise InputError(f"{path} and {found[prefix]} are both {sequence} of one case, expected one of them")
        found[prefix] = str(path)
    return found


def _case_of_prefix(
    prefix: str,
    sequences: tuple[str, ...],
    optional: Sequence[str],
    found: list[dict[str, str]],
    beside: Mapping[str, str],
) -> dict[str, Any]:
    for sequence, files in zip(sequences, found, strict=True):
        if prefix not in files and sequence not in optional:
            raise InputError(f"{prefix}{sequence}.nii.gz does not exist, expected {', '.join(sequences)} of every case")
    images = [files.get(prefix) for files in found]
    first = next(path for path in images if path)
    subject = bids_subject(first) or without_visit(Path(prefix).name.rstrip("_"))
    case: dict[str, Any] = {"image": images, "subject": subject}
    # fMRIPrep writes sub-01_desc-preproc_T1w, and beside it sub-01_desc-brain_mask
    beginnings = dict.fromkeys([prefix, re.sub(r"(?<=[_/])desc-[^_/]+_(?=[^/]*$)", "", prefix)])
    for key, endings in _COMPANIONS.items():
        names = [f"{start}{ending}{suffix}" for start in beginnings for ending in endings for suffix in _SUFFIXES]
        there = [beside[name.lower()] for name in names if name.lower() in beside]
        path = next((path for path in there if path.startswith(tuple(beginnings))), None)
        if path:
            case[key] = path
    return case


def _cases_of_channels(folder: Path, files: Sequence[Path], sequences: tuple[str, ...]) -> list[dict[str, Any]]:
    """Cases of a folder of nnU-Net, whose ``dataset.json`` says what the channels are; labels lie in ``labelsTr``."""
    described = next((p / "dataset.json" for p in (folder, folder.parent) if (p / "dataset.json").is_file()), None)
    content = read_json(described, "nnU-Net's description of a data set") if described else {}
    names = content.get("channel_names") or content.get("modality") if isinstance(content, dict) else None
    channels: dict[str, dict[str, str]] = {}
    for path in files:
        prefix, channel = prefix_and_channel(path)
        if channel:
            channels.setdefault(prefix, {})[channel] = str(path)
    if not isinstance(names, dict):
        if len(sequences) > 1 or any(len(found) > 1 for found in channels.values()):
            first, second = sorted(next((f for f in channels.values() if len(f) > 1), {"0000": "", "0001": ""}))[:2]
            raise InputError(
                f"{folder} has files that end in _{first} and _{second}, the channels of nnU-Net, expected a "
                "dataset.json beside them with channel_names, which says what they are, or a datalist with sequences"
            )
        names = {0: sequences[0]}
    place = {short_name(str(name)): f"{int(number):04d}" for number, name in names.items() if str(number).isdigit()}
    missing = [name for name in sequences if short_name(name) not in place]
    if missing:
        raise InputError(f"{described} has the channels {', '.join(map(str, names.values()))}, expected {missing[0]}")
    cases = []
    for prefix, found in sorted(channels.items()):
        absent = [name for name in sequences if place[short_name(name)] not in found]
        if absent:
            raise InputError(
                f"{folder / prefix}_{place[short_name(absent[0])]} does not exist, expected {absent[0]} there"
            )
        case = {"image": [found[place[short_name(name)]] for name in sequences], "subject": without_visit(prefix)}
        label = folder.parent / folder.name.replace("images", "labels") / f"{prefix}.nii.gz"
        cases.append(case | ({"label": str(label)} if label.parent != folder and label.is_file() else {}))
    return cases
