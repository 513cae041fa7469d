"""From a folder or a datalist to checked cases: headers are read, voxels are not."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import commonpath, relpath
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, MetaTensor, list_data_collate
from tqdm import tqdm

from .errors import InputError, find_input_error, is_out_of_memory
from .files import read_json, write_json
from .scans import grid_difference, is_scan_name, open_scan, read_scan, stem

logger = logging.getLogger(__name__)

CASES = "a list of cases or a dict of such lists"
_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".hdr.gz")
# endings of files that are no scan to work on, for a folder whose files do not name their sequence
_DERIVED = ("seg", "dseg", "prob", "mask", "brainmask", "label", "labels", "lesion", "lesions", "tissue", "tissues")
# what files call a sequence, in upper or lower case
_SEQUENCES = {"T1w": r"t1w?|(?:t1w?[-_]?)?mp-?rage", "T2w": "t2w?", "PDw": "pdw?", "FLAIR": r"(?:t2w?[-_]?)?flair"}
_FILES = ("image", "label", "brain_mask")
# what may stand beside `<case>_<sequence>.nii.gz`
_COMPANIONS = {
    "brain_mask": ("brainmask", "brain_mask", "desc-brain_mask"),
    "label": ("lesion", "lesions", "label", "labels", "label-lesion_mask"),
}
_FOLDERS = (".", "sub-*/anat", "sub-*/ses-*/anat")
NOTHING = ("", "n/a")  # what a cell says that has no value, BIDS writes the second
# what the bundles themselves put into a case on its way: a column that a table happens to call so is passed by
_OURS = ("deviation", "entropy", "failure", "pred", "prob", "reconstruction", "soft", "weight")
_CHANNEL = re.compile(r"(.+)_(\d{4})")  # of nnU-Net: <case>_<channel>
# how names tell the visits of a person apart, behind the person: _study2, _ses-01, _baseline, _m12, _20190131
_VISIT = re.compile(
    r"(.+?)[_.-](?:ses-[a-z0-9]+|(?:baseline|bl|pre|post|follow-?up|fu)[_-]?\d{0,2}|(?:19|20)\d\d-?\d\d-?\d\d|"
    r"(?:ses|session|study|visit|scan|exam|run|time|timepoint|tp|wave|day|week|month|year)[_-]?\d{1,2}|[tvmwyd]\d{1,3})",
    re.IGNORECASE,
)
_SEQUENCE_ENDING = re.compile(rf"(.+?)_(?:{'|'.join(_SEQUENCES.values())})", re.IGNORECASE)


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
    taken, and cases that lack one are left out: one datalist for bundles of different sequences. Likewise for trainings
    of different people: a case may say ``"healthy": true``, and is then left out where a label is required and it has
    none, since there is nothing to draw in it.

    Args:
        dataset_dir: folder of scans.
        datalist_file: JSON file. Given together, the JSON is read and must lie in the folder.
        sequences: what the images of a case are, in the order of the channels.
        section: list to take from a JSON dict, as ``training``; without it all are joined.
        require: keys that every case must have.
        mask_key: key of the brain mask in the JSON.
        optional_sequences: those that a case may lack, or of which a JSON may say null in the place of a path; a case
            needs one path at least.
        dataset_name: keep only the cases whose ``dataset`` in the JSON is this.
        healthy: True keeps only the cases that the JSON says are healthy, False leaves these out; all are kept if none
            of its sections says anything about health, and of a folder.
        one_grid: all files of a case have to lie on one grid; False for raw scans.
        lesions: one label at least has to be other than empty; for this alone voxels are read.

    Returns:
        One dict per case, ordered by name for a folder, as in the file for a JSON. ``image``: path, or list of paths
        (None for a missing sequence) if there are several sequences; ``name``: unique stem for output files;
        ``subject``; ``label`` and ``brain_mask`` where given; further text, numbers and booleans of a JSON item as they
        are, its NIfTI paths made absolute.

    Raises:
        InputError: if there is no case, a file is missing or no single 3-D NIfTI volume, the files of a case lie on
            different grids, the number of images is not that of ``sequences``, a sequence is missing, ``healthy`` is
            neither true nor false, nobody is left though the JSON says who is healthy, no label has a lesion though
            ``lesions`` are asked for, or the JSON has another form.
    """
    sequences = _checked_sequences(sequences, "sequences is")
    # a name such as 2025 comes from the command line as a number
    dataset_dir = None if dataset_dir is None else str(dataset_dir)
    if datalist_file is not None:
        source = Path(str(datalist_file))
        if dataset_dir is not None and Path(dataset_dir).resolve() not in source.resolve().parents:
            raise InputError(f"{source} does not lie in dataset_dir {dataset_dir}, expected only one of the two")
        content = read_json(source, CASES)
        cases = _cases_of_datalist(content, source, section, mask_key)
        if healthy is not None:
            cases = _of_health(cases, healthy, content, source, section)
        if isinstance(content, dict) and "sequences" in content:
            cases = _of_sequences(cases, content["sequences"], sequences, optional_sequences, source)
    elif dataset_dir is not None:
        source = Path(dataset_dir)
        cases = _cases_of_folder(source, sequences, optional_sequences)
    else:
        raise InputError("neither dataset_dir nor datalist_file is given, expected one of the two")
    if dataset_name is not None:
        cases = _of_dataset(cases, dataset_name, source)
    if "label" in require:
        cases = _without_healthy_unlabeled(cases, source)
    cases = check_cases(cases, source, sequences, require, optional_sequences, one_grid)
    if lesions:
        check_lesions(cases, f"the {section} section of {source}" if section else f"{source}")
    return cases


def check_cases(
    cases: Sequence[dict[str, Any]],
    source: str | Path,
    sequences: Sequence[str],
    require: Sequence[str] = (),
    optional_sequences: Sequence[str] = (),
    one_grid: bool = True,
) -> list[dict[str, Any]]:
    """Items with absolute paths, checked by the headers of their files, as cases; see :func:`list_cases`.

    Args:
        cases: items as they stand in a datalist.
        source: where they are from, for messages.
        sequences, require, optional_sequences, one_grid: as for :func:`list_cases`.
    """
    cases = [dict(case) for case in cases]
    _refuse_split_channels(cases, source)
    for case in cases:
        _check_keys(case, source, tuple(sequences), require, optional_sequences)
    _warn_of_numbered_subjects(cases, source)
    with ThreadPoolExecutor(8) as pool:  # most of it is waiting for the disk
        failures = [error for error in pool.map(lambda case: _failure(case, require, one_grid), cases) if error]
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
    paths = [Path(_images(case)[0]).parent.resolve() / Path(_images(case)[0]).name for case in cases]
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


def sequence_name(name: str) -> str:
    """BIDS' name of a sequence, as T1w for T1 or MPRAGE, FLAIR for t2_flair; any other name as it is."""
    return next((known for known, names in _SEQUENCES.items() if re.fullmatch(names, name, re.IGNORECASE)), name)


def prefix_of(name: str, sequence: str) -> str | None:
    """What stands in the name of a file before its sequence, as ``sub-1_`` in ``sub-1_T1w``.

    Args:
        name: without ``.nii.gz``.
        sequence: any of its names.

    Returns:
        None if the name does not end in the sequence.
    """
    names = _SEQUENCES.get(sequence_name(sequence), re.escape(sequence.removesuffix("w")) + "w?")
    match = re.fullmatch(rf"(.*?_)?(?:{names})", name, re.IGNORECASE)
    return None if match is None else match[1] or ""


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


def split_by_subject(
    cases: Sequence[dict[str, Any]], fractions: dict[str, float], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Split cases at random so that all scans of a subject stay together.

    Args:
        cases: items of :func:`list_cases`.
        fractions: part -> share of the subjects, 1 in all. A part gets at least one subject.
        seed: the same seed, cases and fractions give the same split, in whatever order the cases come.

    Returns:
        part -> cases, in the order given.

    Raises:
        InputError: if there are fewer subjects than parts, or the seed is below 0.
        ValueError: if a fraction is not positive or their sum is not 1.
    """
    if any(share <= 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions are {fractions}, expected positive numbers with the sum 1")
    subjects = sorted({subject_of(case) for case in cases})
    if len(subjects) < len(fractions):
        raise InputError(
            f"{len(subjects)} subjects cannot fill {', '.join(fractions)}, expected {len(fractions)} or more"
        )
    if seed < 0:
        raise InputError(f"seed is {seed}, expected 0 or more")
    np.random.default_rng(seed).shuffle(subjects)
    part_of: dict[str, str] = {}
    for part, count in _shares(len(subjects), fractions).items():
        for _ in range(count):
            part_of[subjects.pop()] = part
    return {part: [case for case in cases if part_of[subject_of(case)] == part] for part in fractions}


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
            found = [("subject", subject_of(case)), *(("file", str(Path(path).resolve())) for path in _images(case))]
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


def share_of_process(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases of this process where ``torchrun`` has started several: every so many-th one. All of them otherwise.

    Raises:
        InputError: if there are fewer cases than processes.
    """
    processes = idist.get_world_size()
    if len(cases) < processes:
        raise InputError(f"there are {len(cases)} cases for {processes} processes, expected one or more for each")
    return list(cases[idist.get_rank() :: processes])


def subject_of(case: Mapping[str, Any]) -> str:
    """Subject of a case: its ``subject``, else ``sub-...`` in the path of its image, else the image's file name.

    Of the name a sequence at its end is left out, and then what only tells visits apart: ``p1_study2_FLAIR.nii.gz`` is
    of ``p1``. A file that is called by its sequence alone, as in ``07/FLAIR.nii.gz``, is of the subject that its folder
    names, or the folder above one that is called as a visit, as in ``07/visit2/FLAIR.nii.gz``.
    """
    if "subject" in case:
        return str(case["subject"])
    path = Path(_images(case)[0])
    if bids := _bids_subject(path):
        return bids
    if sequence_name(stem(path)) in _SEQUENCES:
        folder = path.parent
        is_visit = _without_visit(f"a_{folder.name}") == "a"
        return folder.parent.name if is_visit else _without_visit(folder.name)
    prefixes = {_prefix_and_channel(Path(image))[0] for image in _images(case)}
    if len(_images(case)) > 1 and len(prefixes) == 1:
        return _without_visit(prefixes.pop())
    named = _SEQUENCE_ENDING.fullmatch(stem(path))
    return _without_visit(named[1] if named else stem(path))


def write_datalist(
    path: str | Path, sections: dict[str, Sequence[dict[str, Any]]], header: dict[str, Any] | None = None
) -> Path:
    """Write cases as MONAI's dict of lists, with paths relative to the file; it appears whole or not at all.

    Args:
        path: JSON file to write.
        sections: name -> cases, as :func:`split_by_subject` gives them; ``list_cases(section=...)`` reads them again.
        header: what else stands in the file, before the lists.

    Raises:
        InputError: if the file cannot be written.
    """
    path = Path(path)
    content = (header or {}) | {
        section: [
            {key: _map_paths(value, lambda p: _relative(p, path.parent)) for key, value in case.items()}
            for case in cases
        ]
        for section, cases in sections.items()
    }
    write_json(path, content)
    return path


def sections_of(content: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The lists of cases in a datalist; others there hold notes, or labels without an image."""
    return {
        name: value
        for name, value in content.items()
        if isinstance(value, list)
        and any("image" in item if isinstance(item, dict) else bool(_paths(item)) for item in value)
    }


def read_sections(path: str | Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """What stands in a datalist, with absolute paths; no file is looked at.

    Args:
        path: JSON file, as for :func:`list_cases`. A list without sections counts as ``training``.

    Returns:
        What stands beside the sections, and section -> items; sections without a case are left out.

    Raises:
        InputError: if the file cannot be read, has another form, or lists no case.
    """
    path = Path(path)
    content = read_json(path, CASES)
    content = {"training": content} if isinstance(content, list) else content
    _items_of(content, None, path)  # refuses what is no dict
    names = [*sections_of(content)]
    if not names:
        raise InputError(f"{path} lists no case, expected at least one")
    sections = {name: _cases_of_datalist(content, path, name, "brain_mask") for name in names}
    return {name: value for name, value in content.items() if name not in names}, sections


class ScanDataset(Dataset):
    """MONAI's Dataset whose InputError stays one sentence on its way through transforms and worker processes.

    Args:
        data: cases.
        transform: what is applied to a case.
        keep_going: a case that raises InputError becomes ``{"failure": sentence, "name": name}`` and stops nothing.

    Raises:
        InputError: on access to a case that cannot be used, or does not fit into the memory, if ``keep_going`` is
            False.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Callable | None = None, keep_going: bool = False
    ) -> None:
        super().__init__(data, transform)
        self.keep_going = keep_going

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as e:
            case = self.data[index]
            error = find_input_error(e)
            if error is None and is_out_of_memory(e):
                error = InputError(f"{_images(case)[0]} does not fit into the memory, expected a smaller image")
            if error is None:
                raise
            if self.keep_going:
                return {"failure": str(error), "name": case.get("name") or stem(_images(case)[0])}
            raise InputError(str(error)) from e


class CachedScans(CacheDataset):
    """MONAI's CacheDataset whose threads have ended when it fails.

    MONAI's own go on in the background, and if the program ends while one of them aligns an atlas, it ends by a crash.
    """

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        indices = range(self.cache_num) if indices is None else indices
        pool = ThreadPoolExecutor(self.num_workers or 1)
        try:
            loaded = pool.map(self._load_cache_item, indices)
            return list(tqdm(loaded, desc="loading", unit=" case", total=len(indices), disable=None))
        finally:
            pool.shutdown(cancel_futures=True)


class BrainSlices(torch.utils.data.Dataset):
    """All axial slices of some volumes that show brain, in memory at half precision.

    Args:
        dataset: items with ``image`` (C, X, Y, Z), all of one in-plane size, 0 outside the brain.
        min_area: smallest share of brain pixels in a slice that is kept.
        every: keep one of so many neighboring slices; they differ little at 1 mm.
        transform: applied to the item of a slice, ``{"image": (C, X, Y)}``.

    Attributes:
        slices: (N, C, X, Y), float16.
        volumes: (N,), position in ``dataset`` of the volume that each slice is from.

    Raises:
        ValueError: if no slice is left.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset,
        min_area: float = 0.01,
        every: int = 1,
        transform: Callable | None = None,
    ) -> None:
        self.transform = transform
        slices, volumes = [], []
        for number, item in enumerate(tqdm(dataset, desc="reading volumes", unit=" volume", disable=None)):
            image = item["image"].as_tensor() if isinstance(item["image"], MetaTensor) else item["image"]
            keep = (image != 0).any(dim=0).float().mean(dim=(0, 1)) > min_area
            slices.append(image[..., keep][..., ::every].movedim(-1, 0).half())
            volumes.append(torch.full((len(slices[-1]),), number))
        self.slices = torch.cat(slices) if slices else torch.zeros(0)
        self.volumes = torch.cat(volumes) if volumes else torch.zeros(0, dtype=torch.long)
        if len(self.slices) == 0:
            raise ValueError(f"no slice with more than {min_area:.0%} brain in {len(slices)} volumes; expected some")

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict:
        item = {"image": self.slices[index].float()}
        return self.transform(item) if self.transform is not None else item


def collate_cases(batch: Sequence[dict[str, Any]]) -> Any:
    """MONAI's collate, which also takes a failure of :class:`ScanDataset` if it is alone in its batch.

    Raises:
        ValueError: if a batch holds a failure and something else; use ``batch_size`` 1 with ``keep_going``.
    """
    if len(batch) > 1 and any("failure" in item for item in batch):
        raise ValueError(f"a batch of {len(batch)} holds a case that failed, expected batch_size 1 with keep_going")
    return list_data_collate(batch)


def _cases_of_folder(folder: Path, sequences: tuple[str, ...], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
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
    elif any(channel for _, channel in map(_prefix_and_channel, files) if channel == "0000"):
        cases = _cases_of_channels(folder, files, sequences)
    elif len(sequences) == 1:
        plain = [p for p in files if p.parent == folder and stem(p).rpartition("_")[2].lower() not in _DERIVED]
        for path in plain:
            other = _named_otherwise(path, sequences[0])
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
    taken = {path for case in cases for value in case.values() for path in _paths(value)}
    left = [str(p.relative_to(folder)) for p in files if str(p) not in taken]
    if left:
        logger.info(
            "%s: %d other NIfTI files left alone: %s",
            folder,
            len(left),
            ", ".join(left[:5]) + ", ..." * (len(left) > 5),
        )
    return cases


def _named_otherwise(path: str | Path, sequence: str) -> str | None:
    """The sequence in a file's name, if there is one and none is the expected one."""
    name = re.sub(_SEQUENCES["FLAIR"], "FLAIR", stem(path), flags=re.IGNORECASE)  # t2_flair is no T2
    named = [word for word in re.split(r"[^A-Za-z0-9]+", name) if sequence_name(word) in _SEQUENCES]
    return named[-1] if named and _short(sequence) not in map(_short, named) else None


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
    subject = _bids_subject(first) or _without_visit(Path(prefix).name.rstrip("_"))
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


def _prefix_and_channel(path: Path) -> tuple[str, str]:
    """``("p1", "0000")`` of ``p1_0000.nii.gz``, as nnU-Net names channels; the channel is empty for another name."""
    match = _CHANNEL.fullmatch(stem(path))
    return (match[1], match[2]) if match else (stem(path), "")


def _cases_of_channels(folder: Path, files: Sequence[Path], sequences: tuple[str, ...]) -> list[dict[str, Any]]:
    """Cases of a folder of nnU-Net, whose ``dataset.json`` says what the channels are; labels lie in ``labelsTr``."""
    described = next((p / "dataset.json" for p in (folder, folder.parent) if (p / "dataset.json").is_file()), None)
    content = read_json(described, "nnU-Net's description of a data set") if described else {}
    names = content.get("channel_names") or content.get("modality") if isinstance(content, dict) else None
    channels: dict[str, dict[str, str]] = {}
    for path in files:
        prefix, channel = _prefix_and_channel(path)
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
    place = {_short(str(name)): f"{int(number):04d}" for number, name in names.items() if str(number).isdigit()}
    missing = [name for name in sequences if _short(name) not in place]
    if missing:
        raise InputError(f"{described} has the channels {', '.join(map(str, names.values()))}, expected {missing[0]}")
    cases = []
    for prefix, found in sorted(channels.items()):
        absent = [name for name in sequences if place[_short(name)] not in found]
        if absent:
            raise InputError(f"{folder / prefix}_{place[_short(absent[0])]} does not exist, expected {absent[0]} there")
        case = {"image": [found[place[_short(name)]] for name in sequences], "subject": _without_visit(prefix)}
        label = folder.parent / folder.name.replace("images", "labels") / f"{prefix}.nii.gz"
        cases.append(case | ({"label": str(label)} if label.parent != folder and label.is_file() else {}))
    return cases


def _refuse_split_channels(cases: Sequence[Mapping[str, Any]], source: str | Path) -> None:
    """Two channels of nnU-Net are not two people, unless the datalist says so."""
    channels: dict[str, dict[str, str]] = {}
    for case in cases:
        images = [path for path in _images(case) if isinstance(path, str)]
        if images and "subject" not in case:
            prefix, channel = _prefix_and_channel(Path(images[0]))
            channels.setdefault(f"{Path(images[0]).parent}/{prefix}", {})[channel] = images[0]
    for found in channels.values():
        if "0000" in found and len(found) > 1:
            first, second = [found[channel] for channel in sorted(found)][:2]
            raise InputError(
                f"{source} has {first} and {second} as two cases, by their names channels of one, expected them in one "
                '"image": [...] with "sequences" to say what they are, or a "subject" for each'
            )


def _without_visit(name: str) -> str:
    """A name without what tells the visits of one person apart."""
    while match := _VISIT.fullmatch(name):
        name = match[1]
    return name


def _warn_of_numbered_subjects(cases: Sequence[Mapping[str, Any]], source: str | Path) -> None:
    """p01_01 and p01_02 may be two visits of one or two people: nobody can tell by the names."""
    alike: dict[str, set[str]] = {}
    for case in cases:
        match = re.fullmatch(r"(.*\d.*)[_-]\d{1,2}", subject_of(case))
        if match and not _bids_subject(_images(case)[0]):
            alike.setdefault(match[1], set()).add(subject_of(case))
    found = [", ".join(sorted(names)) for names in alike.values() if len(names) > 1]
    if found:
        logger.warning(
            '%s: %s are taken for people of their own, expected a "subject" in a datalist if they are visits of one%s',
            source,
            found[0],
            f"; {len(found) - 1} others likewise" if found[1:] else "",
        )


def _cases_of_datalist(content: Any, path: Path, section: str | None, mask_key: str) -> list[dict[str, Any]]:
    items = _items_of(content, section, path)
    if not items:
        raise InputError(f"{path} lists no case{f' under {section}' if section else ''}, expected at least one")
    cases = []
    for number, item in enumerate(items):
        if isinstance(item, str):  # MONAI's lists for testing may be of bare paths
            item = {"image": item}
        if not isinstance(item, dict) or not item.get("image"):
            raise InputError(f'item {number} of {path} is {str(item)[:80]}, expected {{"image": path, ...}}')
        if not isinstance(item.get("healthy"), bool | None):
            raise InputError(f"item {number} of {path} has healthy {item['healthy']!r}, expected true or false")
        given = {
            key: _checked_value(key, value, f"item {number} of {path}", key in (*_FILES, mask_key))
            for key, value in item.items()
            if key not in _OURS
        }
        case = {
            key: _map_paths(value, lambda p: _absolute(p, path.parent), every=key in (*_FILES, mask_key))
            for key, value in given.items()
            if value is not None
        }
        if mask_key in case:
            case["brain_mask"] = case.pop(mask_key)
        cases.append(case)
    return cases


def _items_of(content: Any, section: str | None, path: Path) -> list[Any]:
    if isinstance(content, list) and section is None:
        return content
    if isinstance(content, dict):
        lists = sections_of(content)
        if section is None:
            return [item for value in lists.values() for item in value]
        if isinstance(content.get(section), list):
            return content[section]
        raise InputError(
            f"{path} has no list {section!r}, expected one of {', '.join(lists) or 'training, validation, test'}"
        )
    found = (
        f"a list without sections, though {section!r} is asked for"
        if isinstance(content, list)
        else type(content).__name__
    )
    raise InputError(
        f"{path} holds {found}, expected {'a dict of lists' if section else 'a list of cases or a dict of lists'}"
    )


def _of_sequences(
    cases: list[dict[str, Any]], listed: Any, wanted: tuple[str, ...], optional: Sequence[str], source: Path
) -> list[dict[str, Any]]:
    """Of the images of each case those that are wanted; cases that lack one are left out."""
    if not isinstance(listed, list):
        raise InputError(f"{source} has sequences {str(listed)[:80]}, expected a list of names such as T1w")
    listed = _checked_sequences(listed, f"{source} has sequences")
    places = {_short(name): place for place, name in enumerate(listed)}
    missing = [name for name in wanted if _short(name) not in places and name not in optional]
    if missing:
        raise InputError(f"{source} lists images of {', '.join(listed)}, expected {', '.join(missing)} among them")
    chosen = []
    for case in cases:
        entries = _entries(case)
        if len(entries) != len(listed):
            shown = ", ".join(map(str, entries))
            raise InputError(f"{source} has a case of {shown}, expected {len(listed)} images ({', '.join(listed)})")
        images = [entries[places[_short(name)]] if _short(name) in places else None for name in wanted]
        if any(images) and all(path or name in optional for path, name in zip(images, wanted, strict=True)):
            chosen.append(case | {"image": images if len(images) > 1 else images[0]})
    if not chosen:
        raise InputError(f"{source} has no case with {' and '.join(wanted)} among its {len(cases)}, expected one")
    if len(chosen) < len(cases):
        logger.info("%s: %d cases without %s left out", source, len(cases) - len(chosen), " and ".join(wanted))
    return chosen


def _of_dataset(cases: list[dict[str, Any]], dataset_name: str, source: Path) -> list[dict[str, Any]]:
    kept = [case for case in cases if case.get("dataset") == dataset_name]
    if not kept:
        found = ", ".join(sorted({str(case["dataset"]) for case in cases if "dataset" in case})) or "none named"
        raise InputError(f"{source} has no case of the data set {dataset_name!r} among its {len(cases)}, found {found}")
    return kept


def _of_health(
    cases: list[dict[str, Any]], healthy: bool, content: Any, source: Path, section: str | None
) -> list[dict[str, Any]]:
    """The cases that are said to be healthy, or the others; all of them if nothing is said of anybody in the file."""
    everybody = _items_of(content, None, source)
    if not any(isinstance(item, dict) and item.get("healthy") is not None for item in everybody):
        logger.info("%s says of nobody whether they are healthy: all %d cases are taken", source, len(cases))
        return cases
    kept = [case for case in cases if bool(case.get("healthy")) == healthy]
    if not kept:
        wanted = f'case {"with" if healthy else "without"} "healthy": true'
        raise InputError(
            f"{source} has no {wanted} among its {len(cases)}{f' under {section}' if section else ''}, expected one"
        )
    if len(kept) < len(cases):
        which = "not said to be healthy" if healthy else "healthy"
        logger.info("%s: %d of %d cases left out, %s", source, len(cases) - len(kept), len(cases), which)
    return kept


def _without_healthy_unlabeled(cases: list[dict[str, Any]], source: Path) -> list[dict[str, Any]]:
    kept = [case for case in cases if "label" in case or not case.get("healthy")]
    if cases and not kept:
        raise InputError(f"{source} has no label for any of its {len(cases)} cases, all healthy, expected one")
    if len(kept) < len(cases):
        logger.info("%s: %d healthy cases without label left out", source, len(cases) - len(kept))
    return kept


def _short(name: str) -> str:
    """The name of a sequence as it is compared: BIDS writes T1w and FLAIR, others T1, MPRAGE, t2_flair."""
    return sequence_name(name).lower().removesuffix("w")


def _checked_sequences(names: Any, where: str) -> tuple[str, ...]:
    """Names of sequences, one or more, each once."""
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise InputError(f"{where} {str(names)[:80]}, expected a list of names such as T1w")
    odd = [name for name in names if re.search(r"[^\w .+-]", name) or not name.isprintable()]
    if odd:
        raise InputError(f"{where} {str(odd)[:80]}, expected names of letters and digits such as T1w")
    twice = [name for name, count in Counter(map(_short, names)).items() if count > 1]
    if twice:
        named = next(name for name in names if _short(name) == twice[0])
        raise InputError(f"{where} {', '.join(names)}, expected {named} once: its place says which image is meant")
    return tuple(names)


def _checked_value(key: str, value: Any, where: str, is_file: bool) -> Any:
    """A value of an item, None for nothing; of what is no file only text, numbers and booleans are kept."""
    if key == "image":
        return [None if _is_nothing(v) else v for v in value] if isinstance(value, list) else value
    if is_file and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or _is_nothing(value):
        return None
    expected = str if is_file else str | int | float
    if (is_file or key in ("subject", "dataset")) and (not isinstance(value, expected) or isinstance(value, bool)):
        raise InputError(f"{where} has {key} {str(value)[:80]}, expected {'one path' if is_file else 'a name'}")
    return value if isinstance(value, str | int | float | bool) else None


def _is_nothing(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in NOTHING


def _check_keys(
    case: dict[str, Any],
    source: str | Path,
    sequences: tuple[str, ...],
    require: Sequence[str],
    optional: Sequence[str],
) -> None:
    images, entries = _images(case), _entries(case)
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
        other = _named_otherwise(path, sequence) if path is not None else None
        if other is not None:
            logger.warning("%s is named as %s, but stands in the place of %s", path, other, sequence)
    case["image"] = entries[0] if len(entries) == 1 else entries
    for key in require:
        if key not in case:
            raise InputError(f"the case of {images[0]} in {source} has no {key}, expected one")
    case["subject"] = subject_of(case)


def _failure(case: dict[str, Any], require: Sequence[str], one_grid: bool) -> InputError | None:
    try:
        _check_grids(case, require, one_grid)
    except InputError as e:
        return e
    return None


def _check_grids(case: dict[str, Any], require: Sequence[str], one_grid: bool) -> None:
    keys = dict.fromkeys(("label", "brain_mask", *require))
    files = [*_images(case), *(path for key in keys if key != "image" for path in _paths(case.get(key)))]
    first = open_scan(files[0])
    if first.header["qform_code"] == 0 and first.header["sform_code"] == 0:
        logger.warning("%s does not say how it is oriented (qform and sform code are 0)", files[0])
    for path in files[1:]:
        other = open_scan(path)
        difference = grid_difference(other.shape[:3], other.affine, first.shape[:3], first.affine)
        if difference and one_grid:
            hint = "; scripts/prepare_data.py brings the sequences of a case onto one" if path in _images(case) else ""
            raise InputError(
                f"{path} and {files[0]} have {difference}, expected one grid for all files of a case{hint}"
            )


def _shares(total: int, fractions: dict[str, float]) -> dict[str, int]:
    """Whole numbers, none below 1, with the sum ``total`` and nearest to the proportion of ``fractions``."""
    exact = {part: share * total for part, share in fractions.items()}
    counts = {part: max(int(value), 1) for part, value in exact.items()}
    while sum(counts.values()) < total:
        part = max(exact, key=lambda p: exact[p] - counts[p])
        counts[part] += 1
    while sum(counts.values()) > total:
        part = max((p for p in exact if counts[p] > 1), key=lambda p: counts[p] - exact[p])
        counts[part] -= 1
    return counts


def _bids_subject(path: str) -> str | None:
    """The ``sub-...`` that is nearest to the end of a path, as in ``sub-01/anat/sub-01_FLAIR.nii.gz``."""
    found = re.findall(r"(?:^|/)(sub-[^_/.]+)", Path(path).as_posix())
    return found[-1] if found else None


def _entries(case: Mapping[str, Any]) -> list[str | None]:
    """One per sequence, None for a missing one."""
    return list(case["image"]) if isinstance(case["image"], list | tuple) else [case["image"]]


def _images(case: Mapping[str, Any]) -> list[str]:
    return [path for path in _entries(case) if path is not None]


def _paths(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, str) and is_scan_name(v)]


def _map_paths(value: Any, change: Callable[[str], str], every: bool = False) -> Any:
    """Paths of NIfTI files changed, or every text."""
    if isinstance(value, list | tuple):
        return [_map_paths(v, change, every) for v in value]
    return change(value) if _paths(value) or (every and isinstance(value, str)) else value


def _absolute(path: str, folder: Path) -> str:
    try:
        return str((folder / Path(path).expanduser()).absolute())
    except RuntimeError as e:  # ~somebody
        raise InputError(f"{path} names a user who is not there, expected the path of a file") from e


def _relative(path: str, folder: Path) -> str:
    return Path(relpath(path, folder)).as_posix()
