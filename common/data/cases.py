"""Cases, each checked by the headers of its files; voxels are not read."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import commonpath
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..scans import grid_difference, open_scan, stem
from .names import bids_subject, entries_of, images_of, named_otherwise, paths_in, prefix_and_channel, subject_of

logger = logging.getLogger(__name__)


def check_cases(
    cases: Sequence[dict[str, Any]],
    source: str | Path,
    sequences: Sequence[str],
    require: Sequence[str] = (),
    optional_sequences: Sequence[str] = (),
    one_grid: bool = True,
    passed: dict[str, set[str]] | None = None,
) -> list[dict[str, Any]]:
    """Items with absolute paths, checked by the headers of their files, as cases; see :func:`list_cases`.

    Args:
        cases: items as they stand in a datalist.
        source: where they are from, for messages.
        sequences, require, optional_sequences, one_grid: as for :func:`list_cases`.
        passed: file -> those that are known to be whole and on its grid, which are not opened again; it is added to.
    """
    cases = [dict(case) for case in cases]
    _refuse_split_channels(cases, source)
    for case in cases:
        _check_keys(case, source, tuple(sequences), require, optional_sequences)
    _warn_of_numbered_subjects(cases, source)
    passed = {} if passed is None else passed
    with ThreadPoolExecutor(8) as pool:  # most of it is waiting for the disk
        failures = [e for e in pool.map(lambda case: _failure(case, require, one_grid, passed), cases) if e]
    if failures:
        first, *others = map(str, failures)
        more = f"; {len(others)} other cases cannot be used either: {' | '.join(others)}" if others else ""
        raise InputError(f"{first}{more}")
    name_cases(cases)
    logger.info("%s: %d cases of %s", source, len(cases), ", ".join(sequences))
    return cases


def name_cases(cases: list[dict[str, Any]]) -> None:
    """Give each case a ``name`` that no other has, so that no output overwrites another."""
    # the folder is resolved, not the file: that may be a link into a store of another layout
    paths = [Path(images_of(case)[0]).parent.resolve() / Path(images_of(case)[0]).name for case in cases]
    count = Counter(stem(path) for path in paths)
    repeated = [path for path in paths if count[stem(path)] > 1]
    root = commonpath([path.parent for path in repeated]) if repeated else ""
    names = [
        path.relative_to(root).with_name(stem(path)).as_posix() if count[stem(path)] > 1 else stem(path)
        for path in paths
    ]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise InputError(f"{paths[names.index(twice[0])]} is listed twice, or as .nii and .nii.gz, expected once")
    if repeated:
        example = names[paths.index(repeated[0])]
        logger.info("%d images share their name, so outputs go to sub-folders, as %s", len(repeated), example)
    for case, name in zip(cases, names, strict=True):
        case["name"] = name


def _refuse_split_channels(cases: Sequence[Mapping[str, Any]], source: str | Path) -> None:
    """Two channels of nnU-Net are not two people, unless the datalist says so."""
    channels: dict[str, dict[str, str]] = {}
    for case in cases:
        images = [path for path in images_of(case) if isinstance(path, str)]
        if images and "subject" not in case:
            prefix, channel = prefix_and_channel(Path(images[0]))
            channels.setdefault(f"{Path(images[0]).parent}/{prefix}", {})[channel] = images[0]
    for found in channels.values():
        if "0000" in found and len(found) > 1:
            first, second = [found[channel] for channel in sorted(found)][:2]
            raise InputError(
                f"{source} has {first} and {second} as two cases, by their names channels of one, expected them in one "
                '"image": [...] with "sequences" to say what they are, or a "subject" for each'
            )


def _warn_of_numbered_subjects(cases: Sequence[Mapping[str, Any]], source: str | Path) -> None:
    """p01_01 and p01_02, or p01a and p01b, may be two visits of one or two people: nobody can tell by the names."""
    alike: dict[str, set[str]] = {}
    for case in cases:
        match = re.fullmatch(r"(.*\d.*?)(?:[_-]\d{1,2}|[_-]?[a-z])", subject_of(case), re.IGNORECASE)
        if match and not bids_subject(images_of(case)[0]):
            alike.setdefault(match[1], set()).add(subject_of(case))
    found = [", ".join(sorted(names)) for names in alike.values() if len(names) > 1]
    if found:
        logger.warning(
            '%s: %s are taken for people of their own, expected a "subject" in a datalist if they are visits of one%s',
            source,
            found[0],
            f"; {len(found) - 1} others likewise" if found[1:] else "",
        )


def _check_keys(
    case: dict[str, Any],
    source: str | Path,
    sequences: tuple[str, ...],
    require: Sequence[str],
    optional: Sequence[str],
) -> None:
    images, entries = images_of(case), entries_of(case)
    if not images or not all(isinstance(path, str) for path in images):
        raise InputError(f"{source} has an image {str(case['image'])[:80]}, expected a path or a list of paths")
    if len(entries) != len(sequences):
        raise InputError(
            f"the case of {images[0]} has {len(entries)} images, expected {len(sequences)} ({', '.join(sequences)})"
        )
    for sequence, path in zip(sequences, entries, strict=True):
        if path is None and sequence not in optional:
            allowed = f" (only {', '.join(optional)} may be null)" if optional else ""
            raise InputError(f"the case of {images[0]} in {source} has no {sequence}, expected its path{allowed}")
        other = named_otherwise(path, sequence) if path is not None else None
        if other is not None:
            logger.warning("%s is named as %s, but stands where %s belongs", path, other, sequence)
    case["image"] = entries[0] if len(entries) == 1 else entries
    for key in require:
        if key not in case:
            raise InputError(f"the case of {images[0]} in {source} has no {key}, expected one")
    case["subject"] = subject_of(case)


def _failure(
    case: dict[str, Any], require: Sequence[str], one_grid: bool, passed: dict[str, set[str]]
) -> InputError | None:
    keys = dict.fromkeys(("label", "brain_mask", *require))
    files = [*images_of(case), *(path for key in keys if key != "image" for path in paths_in(case.get(key)))]
    if set(files) <= passed.get(files[0], set()):
        return None
    try:
        _check_grids(files, len(images_of(case)), one_grid)
    except InputError as e:
        return e
    if one_grid:
        for path in files:
            passed.setdefault(path, set()).update(files)
    return None


def _check_grids(files: Sequence[str], images: int, one_grid: bool) -> None:
    """Open the files of a case, of which the first ``images`` are its sequences."""
    first = open_scan(files[0])
    if first.header["qform_code"] == 0 and first.header["sform_code"] == 0:
        logger.warning("%s does not say how it is oriented (qform and sform code are 0)", files[0])
    for number, path in enumerate(files[1:], start=1):
        other = open_scan(path)
        difference = grid_difference(other.shape[:3], other.affine, first.shape[:3], first.affine)
        if difference and one_grid:
            hint = "; scripts/prepare_data.py brings the sequences of a case onto one" if number < images else ""
            raise InputError(
                f"{path} and {files[0]} have {difference}, expected one grid for all files of a case{hint}"
            )
