"""From a folder or a datalist to checked cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .cases import check_cases
from .datalist import Datalist
from .folder import cases_of_folder
from .names import checked_sequences
from .splits import check_lesions, share_of_shard


def list_cases(
    dataset_dir: str | Path | None = None,
    datalist_file: str | Path | None = None,
    sequences: Sequence[str] = ("FLAIR",),
    section: str | None = None,
    require: Sequence[str] = (),
    mask_key: str = "brain_mask",
    optional_sequences: Sequence[str] = (),
    dataset_name: str | None = None,
    healthy: bool | None = None,
    one_grid: bool = True,
    lesions: bool = False,
    shard: str | None = None,
) -> list[dict[str, Any]]:
    """Cases to work on, each checked by the headers of its files.

    From a folder, flat or BIDS-like (``sub-*/[ses-*/]anat``): the files that end in ``_<sequence>.nii[.gz]``, where
    upper and lower case are the same, and so are T1w, T1 and MPRAGE, FLAIR and T2_FLAIR; beside them a brain mask
    (``_brainmask``, ``_desc-brain_mask``) and a label (``_lesion``, ``_label``, ``_label-lesion_mask``) if they are
    there. If no file names its sequence and one sequence is asked for: every NIfTI file directly in the folder but
    masks and maps. A folder of nnU-Net, of files ``<case>_<channel>`` as ``p1_0000.nii.gz``, is read by the
    ``dataset.json`` in it or above it, which says what the channels are. Names that differ in a visit only, as
    ``p1_study1`` and ``p1_study2``, are of one subject.

    From a JSON file: a list of items, or MONAI's dict of such lists; paths are absolute or relative to the JSON. Where
    the dict says what the images of its cases are, as ``"sequences": ["T1w", "FLAIR"]``, those that are asked for are
    taken, and cases that lack one are left out. A case that says ``"healthy": true`` is left out where a label is
    required and it has none, since there is nothing to draw in it.

    Args:
        dataset_dir: folder of scans.
        datalist_file: JSON file. Given together, the JSON is read and must lie in the folder.
        sequences: what the images of a case are, in the order of the channels.
        section: list to take from a JSON dict, as ``training``; without it all are joined.
        require: keys that every case must have.
        mask_key: key of the brain mask in the JSON.
        optional_sequences: those that a case may lack; in a JSON, null stands for the path. One path is needed.
        dataset_name: keep only the cases whose ``dataset`` in the JSON is this.
        healthy: True keeps the cases that the JSON says are healthy, False the others; all if it says it of nobody.
        one_grid: all files of a case have to lie on one grid; False for raw scans.
        lesions: one label at least has to be other than empty; for this alone voxels are read.
        shard: ``2/10`` for the second of ten shares, see :func:`common.data.share_of_shard`; None for all.

    Returns:
        One dict per case, ordered by name for a folder, as in the file for a JSON. ``image``: path, or list of paths
        (None for a missing sequence) if there are several sequences; ``name``: unique stem for output files;
        ``subject``; ``label`` and ``brain_mask`` where given; further text, numbers and booleans of a JSON item as they
        are, its NIfTI paths made absolute.

    Raises:
        InputError: if there is no case, one cannot be used as asked for, or the JSON has another form.
    """
    dataset_dir = None if dataset_dir is None else str(dataset_dir)  # a name such as 2025 comes as a number
    checks = {"require": require, "optional_sequences": optional_sequences, "one_grid": one_grid}
    if datalist_file is not None:
        datalist = Datalist(datalist_file, mask_key)
        if dataset_dir is not None:
            datalist.check_inside(dataset_dir)
        filters = {"dataset_name": dataset_name, "healthy": healthy, "lesions": lesions}
        return share_of_shard(datalist.cases(sequences, section, **checks, **filters), shard)
    if dataset_dir is None:
        raise InputError("neither dataset_dir nor datalist_file is given, expected one of the two")
    if dataset_name is not None:
        raise InputError(f"dataset_name is {dataset_name!r} with a folder, expected it with a datalist alone")
    sequences = checked_sequences(sequences, "sequences is")
    cases = cases_of_folder(Path(dataset_dir), sequences, optional_sequences)
    cases = check_cases(cases, dataset_dir, sequences, **checks)
    if lesions:
        check_lesions(cases, dataset_dir)
    return share_of_shard(cases, shard)
