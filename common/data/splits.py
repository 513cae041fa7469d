"""Parts of a data set: nobody in two of them, no prediction taken for the truth; the share of a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from ..errors import InputError
from ..scans import read_scan
from .names import images_of, subject_of


def check_splits(**parts: Sequence[dict[str, Any]]) -> None:
    """Refuse an empty part, a subject or an image file that is in two parts, and pseudo-labels to validate with.

    Args:
        parts: lists of cases by the name of the part, as ``training=..., validation=...``.

    Raises:
        InputError: naming the parts and the subject or file.
    """
    for part, cases in parts.items():
        if part != "training":
            refuse_pseudo_labels(cases, f"the {part} set")
    part_of: dict[tuple[str, str], str] = {}
    for part, cases in parts.items():
        if not cases:
            raise InputError(f"the {part} set is empty, expected at least one case")
        for case in cases:
            found = [("subject", subject_of(case)), *(("file", str(Path(path).resolve())) for path in images_of(case))]
            for item in found:
                other = part_of.setdefault(item, part)
                if other != part:
                    raise InputError(
                        f"{' '.join(item)} is in the {other} and in the {part} set, expected in one of them"
                    )


def check_lesions(cases: Sequence[Mapping[str, Any]], place: str) -> None:
    """Refuse cases none of whose labels has a lesion: nothing can be measured on them, as an epoch later would show.

    Args:
        cases: their labels are read, up to the first that is not empty.
        place: what they are, for the message.

    Raises:
        InputError: if there is no lesion, or a label cannot be read.
    """
    labels = [case["label"] for case in cases if "label" in case]
    if not any(read_scan(path)[0].any() for path in labels):
        raise InputError(f"none of the {len(labels)} labels of {place} has a lesion, expected one to measure by")


def refuse_pseudo_labels(cases: Sequence[Mapping[str, Any]], place: str) -> None:
    """Refuse cases whose label was predicted, which they say by a ``label_source``: it is no reference.

    Args:
        cases: of a part whose labels are taken for the truth.
        place: what that part is, for the message.

    Raises:
        InputError: naming the first such case.
    """
    for case in cases:
        if "label_source" in case:
            raise InputError(
                f"{subject_of(case)} in {place} has a pseudo-label ({case['label_source']}), expected labels that "
                "somebody drew: predictions are no reference"
            )


def share_of_shard(cases: Sequence[dict[str, Any]], shard: str | None) -> list[dict[str, Any]]:
    """The cases of one task of a job array: of ``2/10`` every tenth one, from the second on. All of them for None.

    Raises:
        InputError: if none is left for it.
    """
    if shard is None:
        return list(cases)
    number, shards = map(int, shard.split("/"))
    if len(cases) < number:
        raise InputError(f"shard is {shard} of {len(cases)} cases, expected at most as many shards as cases")
    return list(cases[number - 1 :: shards])


def share_of_process(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases of this process where ``torchrun`` has started several: every so many-th one. All of them otherwise.

    Raises:
        InputError: if there are fewer cases than processes.
    """
    processes = idist.get_world_size()
    if len(cases) < processes:
        raise InputError(f"there are {len(cases)} cases for {processes} processes, expected one or more for each")
    return list(cases[idist.get_rank() :: processes])
