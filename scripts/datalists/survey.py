"""What there is to know about the files of cases: grids, values, and which are the same."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.utils import ensure_tuple
from tqdm import tqdm

from common.data import subject_of
from common.errors import InputError
from common.processes import process_pool
from common.scans import as_mask, foreground, read_scan, voxel_ml, whole_numbers

logger = logging.getLogger(__name__)


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
    foreground_ml = np.count_nonzero(foreground(voxels)) * voxel_ml(image.affine)
    return FileFacts(str(path), image.shape[:3], spacing, axes, fingerprint, foreground_ml, values)


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


def refuse_duplicates(cases: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]) -> None:
    """Warn of files with the same voxels.

    Raises:
        InputError: if two of them are of two subjects, who might end up on both sides of a split.
    """
    subjects = {path: subject_of(case) for case in cases for path in ensure_tuple(case["image"]) if path is not None}
    for first, second in pairs:
        if subjects[first] != subjects[second]:
            raise InputError(
                f"{first} of subject {subjects[first]} and {second} of subject {subjects[second]} hold the same "
                "voxels, expected one of them, or one subject"
            )
        logger.warning("%s and %s hold the same voxels", first, second)


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
