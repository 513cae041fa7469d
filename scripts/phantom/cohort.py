"""A cohort of phantoms on disk: a BIDS-like tree of NIfTI, and the datalist that describes it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from common.errors import InputError
from common.files import read_json, refuse_filled, whole_folder, write_json
from common.options import types as t
from common.processes import process_pool
from common.scans import read_scan, whole_numbers

from . import (
    PATHOLOGIES,
    SCANNERS,
    SEQUENCES,
    STRUCTURES,
    TISSUES,
    Anatomy,
    Grid,
    Subject,
    anatomy_of_labels,
    implant_lesions,
    lesion_map_of_mask,
    make_subject,
)

logger = logging.getLogger(__name__)

SECTIONS = ("training", "validation", "test")
LABEL_FILES = {
    "lesion": "label-lesion_mask",
    "change": "label-change_mask",
    "tissues": "label-tissues_dseg",
    "structures": "label-structures_dseg",
    "brain_mask": "desc-brain_mask",
}
LABEL_NAMES = {"lesion": {0: "background", 1: "lesion"}, "tissues": TISSUES, "structures": STRUCTURES}
SOME_SEQUENCES = t.list_of(Literal[SEQUENCES], f"some of {', '.join(SEQUENCES)}", min_length=1)


def make_phantom(
    output_dir: t.Folder,
    healthy: t.Sizes = (0, 0, 0),
    ms: t.Sizes = (0, 0, 0),
    tumour: t.Sizes = (0, 0, 0),
    infarct: t.Sizes = (0, 0, 0),
    scanner: Literal[tuple(SCANNERS)] = "A",
    spacing: t.Spacing = (2.0, 2.0, 2.0),
    sequences: SOME_SEQUENCES = SEQUENCES,
    seed: t.Seed = 0,
    prefix: t.TextOrEmpty = "",
    label: Literal[tuple(LABEL_NAMES)] = "lesion",
    scalp: t.Flag = False,
    displacement: t.Flag = False,
    extra_data: t.File | None = None,
    num_workers: t.SmallCount | None = None,
) -> None:
    """Make a phantom cohort.

    Args:
        output_dir: new folder for the BIDS-like tree and its datalist.json.
        healthy: numbers of subjects for training, validation, test without pathology.
        ms: likewise with white-matter lesions.
        tumour: likewise with a tumour-like mass.
        infarct: likewise with an old infarct.
        scanner: A, B (another site), mixed (every subject its own contrast, noise and blur), or varied (mixed, with
            lesions that T1w shows or does not, whatever FLAIR says, and thicker slices).
        spacing: voxel size in mm, one number or three.
        sequences: some of T1w,T2w,FLAIR.
        seed: makes the cohort again, bit by bit.
        prefix: before the subjects' numbers, to join cohorts.
        label: what "label" in the datalist is: lesion, tissues or structures.
        scalp: leave skull and scalp on.
        displacement: write each subject's displacement to the template as well.
        extra_data: JSON with tissue maps and lesion masks of real people to make the subjects from, as described
            at phantom.cohort.make_cohort.
        num_workers: processes; all cores by default.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    groups = {"healthy": healthy, "ms": ms, "tumour": tumour, "infarct": infarct}
    if extra_data is not None and not any(read_extra_data(extra_data).values()):
        raise InputError(f"{extra_data} lists neither tissues nor lesions, expected one of them")
    datalist = make_cohort(
        output_dir,
        {name: tuple(counts) for name, counts in groups.items() if any(counts)},
        scanner=scanner,
        spacing=spacing,
        sequences=tuple(sequences),
        seed=seed,
        prefix=prefix,
        label=label,
        scalp=scalp,
        displacement=displacement,
        extra_data=extra_data,
        num_workers=num_workers,
    )
    logger.info("wrote %s", datalist)


def make_cohort(
    output_dir: str | Path,
    groups: dict[str, tuple[int, int, int]],
    scanner: str = "A",
    spacing: float | tuple[float, float, float] = 2.0,
    sequences: tuple[str, ...] = SEQUENCES,
    seed: int = 0,
    prefix: str = "",
    label: str = "lesion",
    scalp: bool = False,
    displacement: bool = False,
    affine: bool = True,
    grid: Grid | None = None,
    fine_mm: float = 1.0,
    extra_data: str | Path | None = None,
    num_workers: int | None = None,
) -> Path:
    """Make subjects in parallel processes and write them.

    Args:
        output_dir: new or empty folder; gets ``sub-*/anat/*.nii.gz``, ``dataset_description.json``, ``datalist.json``.
            It appears when the cohort is complete; until then the files are in a hidden folder beside it.
        groups: pathology -> number of subjects for training, validation and test.
        scanner: key of :data:`phantom.SCANNERS`.
        spacing: voxel size in mm of the axial grid, one or three numbers.
        sequences: contrasts to write, the ``sequences`` of the datalist.
        seed: subject number ``i`` is made from ``(seed, i)``.
        prefix: put before the subject's number, so that two cohorts can be joined: ``sub-<prefix>001``.
        label: what ``label`` in the datalist points to: ``lesion``, ``tissues`` or ``structures``.
        scalp: leave skull and scalp on the images.
        displacement: also write the displacement to the template (mm, RAS, vector intent).
        grid: where all scans lie; None for the axial grid of ``spacing``.
        affine, fine_mm: see :func:`phantom.make_subject`; ``fine_mm`` 2 is quicker and coarser.
        extra_data: JSON with label maps of real people to take the place of the template and of invented lesions:
            ``{"tissues": {"training": [item, ...], ...}, "lesions": {...}}``, an item being ``{"label": path,
            "world_to_mni": 4 x 4}`` with the path relative to the JSON and the matrix left out where the map lies in
            the template's space. Tissue maps are of 0 background, 1 CSF, 2 GM, 3 WM, 4 lesion (taken as WM). Every
            subject of a section that has tissue maps is made from one of them, every other patient of a section that
            has lesion masks gets the lesions of one. What a section lacks comes from the template.
        num_workers: processes; as many as cores by default.

    Returns:
        Path of ``datalist.json``, in MONAI's decathlon form.

    Raises:
        InputError: if the folder holds something or is being made, or a name or number is not understood.
    """
    refuse_filled(output_dir := Path(output_dir))
    _refuse_unknown(groups, scanner, label, prefix)
    jobs = _jobs(groups, read_extra_data(extra_data))
    settings = {
        "scanner": scanner,
        "grid": grid or Grid.axial(spacing),
        "sequences": tuple(sequences),
        "seed": seed,
        "prefix": prefix,
        "scalp": scalp,
        "displacement": displacement,
        "affine": affine,
        "fine_mm": fine_mm,
    }
    with whole_folder(output_dir) as partial:
        work = functools.partial(_make_and_write, output_dir=partial, settings=settings)
        made = _map(work, jobs, num_workers)
        cases = list(tqdm(made, total=len(jobs), desc="phantom subjects", unit="subject", disable=None))
        sections = _sections(jobs, cases, sequences, label)
        name = f"Phantom cohort, scanner {scanner}, seed {seed}"
        write_json(partial / "dataset_description.json", {"Name": name, "BIDSVersion": "1.10.0"})
        write_json(partial / "datalist.json", _header(name, label, sequences, extra_data, sections) | sections)
    return output_dir / "datalist.json"


def _sections(
    jobs: Sequence[_Job], cases: Sequence[dict], sequences: Sequence[str], label: str
) -> dict[str, list[dict]]:
    sections: dict[str, list[dict]] = {name: [] for name in SECTIONS}
    for job, case in zip(jobs, cases, strict=True):
        images = [case[sequence] for sequence in sequences]
        image = images[0] if len(images) == 1 else images
        sections[job.section].append({"image": image, "label": case[label], **case})
    return sections


def _refuse_unknown(groups: Iterable[str], scanner: str, label: str, prefix: str) -> None:
    unknown = set(groups) - set(PATHOLOGIES)
    if unknown:
        raise InputError(f"groups name {', '.join(sorted(unknown))}; expected some of {', '.join(PATHOLOGIES)}")
    if scanner not in SCANNERS:
        raise InputError(f"scanner is {scanner!r}; expected one of {', '.join(SCANNERS)}")
    if label not in LABEL_NAMES:
        raise InputError(f"label is {label!r}; expected lesion, tissues or structures")
    if not prefix.isalnum() and prefix:
        raise InputError(f"prefix is {prefix!r}; expected letters and digits only")


def _jobs(groups: dict[str, tuple[int, int, int]], extra: dict[str, dict[str, list[tuple]]]) -> list[_Job]:
    """A job for each subject; those of one tissue map beside each other, since it takes seconds to prepare."""
    jobs: list[_Job] = []
    for pathology, counts in groups.items():
        for section, count in zip(SECTIONS, counts, strict=True):
            tissues, lesions = (extra.get(kind, {}).get(section, []) for kind in ("tissues", "lesions"))
            for i in range(count):
                tissue = tissues[i * len(tissues) // count] if tissues else None
                lesion = lesions[i // 2 % len(lesions)] if lesions and pathology == "ms" and i % 2 else None
                jobs.append(_Job(len(jobs), section, pathology, tissue, lesion))
    if not jobs:
        raise InputError("no subject was asked for; expected at least one in groups")
    return jobs


def _header(
    name: str,
    label: str,
    sequences: Sequence[str],
    extra_data: str | Path | None,
    sections: dict[str, list[dict]],
) -> dict[str, Any]:
    """What a datalist says before its cases, in MONAI's decathlon form."""
    source = "the ICBM152 2009 template" if extra_data is None else f"the label maps in {Path(extra_data).name}"
    return {
        "name": name,
        "description": f"Synthetic images; anatomy and lesions from {source}.",
        "modality": {str(i): name for i, name in enumerate(sequences)},
        "labels": {str(value): name for value, name in LABEL_NAMES[label].items()},
        "sequences": list(sequences),
        "numTraining": len(sections["training"]),
        "numTest": len(sections["test"]),
    }


def implant_cohort(
    output_dir: str | Path,
    scans: dict[str, list[dict]],
    copies: dict[str, int],
    lesions: dict[str, list[tuple]] | None = None,
    sequence: str = "FLAIR",
    seed: int = 0,
    prefix: str = "",
    styles: Sequence[dict[str, Any]] = ({},),
    num_workers: int | None = None,
) -> Path:
    """Real scans with implanted lesions, several copies of each with other lesions; files as of :func:`make_cohort`.

    Args:
        output_dir: new or empty folder; it appears when the cohort is complete.
        scans: section -> items ``{"FLAIR": path, "T1w": path, "tissues": path, "suspected": path, "world_to_mni": 4 x
            4, "subject": name}``, all on one grid; one sequence is enough, and ``suspected`` and ``world_to_mni`` are
            there where there are any (see :func:`phantom.implant_lesions`).
        copies: section -> number of copies of each scan.
        lesions: section -> lesion masks as :func:`read_extra_data` gives them, for every other copy.
        sequence: that all scans have, the ``image`` of the datalist.
        seed: copy number ``i`` is made from ``(seed, i)``.
        prefix: as for :func:`make_cohort`.
        styles: options of :func:`phantom.implant_lesions`; the copies of a scan take them in turn.
        num_workers: processes; as many as cores by default.

    Returns:
        Path of ``datalist.json``.

    Raises:
        InputError: if the folder holds something, or there is no scan.
    """
    output_dir = Path(output_dir)
    refuse_filled(output_dir)
    jobs: list[tuple] = []
    for section, items in scans.items():
        masks = (lesions or {}).get(section, [])
        for item in items:
            for copy in range(copies[section]):
                mask = masks[len(jobs) // 2 % len(masks)] if masks and copy % 2 else None
                jobs.append((len(jobs), section, item, mask, styles[copy % len(styles)]))
    if not jobs:
        raise InputError("no scan to implant lesions in; expected at least one")
    with whole_folder(output_dir) as partial:
        sections: dict[str, list[dict]] = {name: [] for name in SECTIONS}
        work = functools.partial(_implant_and_write, output_dir=partial, sequence=sequence, seed=seed, prefix=prefix)
        cases = tqdm(
            _map(work, jobs, num_workers), total=len(jobs), desc="implanted lesions", unit="scan", disable=None
        )
        for (_, section, *_), case in zip(jobs, cases, strict=True):
            sections[section].append(case)
        name = f"Lesions implanted in real scans, seed {seed}"
        write_json(partial / "datalist.json", {"name": name, "sequences": [sequence], **sections})
    return output_dir / "datalist.json"


def _implant_and_write(job: tuple, output_dir: Path, sequence: str, seed: int, prefix: str) -> dict:
    number, _, item, mask, style = job
    voxels, tissues = read_scan(item["tissues"], dtype=None)
    voxels = whole_numbers(voxels, item["tissues"]).astype(np.uint8)
    grid = Grid(voxels.shape, tissues.affine)
    images = {s: read_scan(item[s])[0] for s in SEQUENCES if s in item}
    images = {name: np.where(voxels > 0, image.clip(0), 0) for name, image in images.items()}
    suspected = item.get("suspected") and read_scan(item["suspected"])[0] > 0
    to_template = np.asarray(item["world_to_mni"]) if "world_to_mni" in item else None
    try:
        images, lesion = implant_lesions(
            images,
            voxels,
            grid,
            (seed, number),
            to_template,
            suspected,
            _lesion_map(mask) if mask else None,
            **style,
        )
    except ValueError as e:
        raise InputError(f"{item['tissues']}: {e}") from e
    name = f"sub-{prefix}{number + 1:03d}"
    voxels[voxels == 4] = 3
    arrays = {key: np.round(image * 1000).clip(0, 32767).astype(np.int16) for key, image in images.items()}
    arrays |= {"lesion": lesion, "tissues": np.where(lesion, 4, voxels).astype(np.uint8)}
    arrays["brain_mask"] = (voxels > 0).astype(np.uint8)
    files = write_arrays(output_dir, name, arrays, grid)
    volume = round(float(lesion.sum() * np.prod(grid.spacing) / 1000), 3)
    return {
        "image": files[sequence],
        "label": files["lesion"],
        **files,
        "subject": f"{prefix}-{item['subject']}",
        "healthy": False,
        "lesion_ml": volume,
    }


class _Job(NamedTuple):
    """One subject to make; the items are paths of label maps with their matrices, or None."""

    number: int
    section: str
    pathology: str
    tissue: tuple | None
    lesion: tuple | None


def read_extra_data(path: str | Path | None) -> dict[str, dict[str, list[tuple]]]:
    """Kind -> section -> (file, world_to_mni as a flat tuple or None)."""
    if path is None:
        return {}
    path = Path(path)
    content = read_json(path, "extra data: tissues and lesions", dict)
    try:
        sections = [name for kind in ("tissues", "lesions") for name in content.get(kind, {}) if name not in SECTIONS]
        if sections:
            raise InputError(f"{path} has the section {sections[0]!r}, expected {', '.join(SECTIONS)}")
        return {
            kind: {
                section: [
                    (str(path.parent / item["label"]), _flat(item["world_to_mni"]) if "world_to_mni" in item else None)
                    for item in items
                ]
                for section, items in content.get(kind, {}).items()
            }
            for kind in ("tissues", "lesions")
        }
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(
            f"{path} is not understood ({e}), expected tissues and lesions, dicts of sections with lists of labels"
        ) from e


def _flat(matrix: list[list[float]]) -> tuple[float, ...]:
    return tuple(np.asarray(matrix, dtype=float).reshape(16))


@functools.lru_cache(maxsize=2)
def _anatomy(file: str, to_template: tuple[float, ...] | None) -> Anatomy:
    labels, scan = read_scan(file, dtype=None)
    try:
        return anatomy_of_labels(whole_numbers(labels, file), scan.affine, _square(to_template))
    except ValueError as e:
        raise InputError(f"{file}: {e}") from e


def _lesion_map(item: tuple) -> torch.Tensor:
    mask, scan = read_scan(item[0])
    return lesion_map_of_mask(mask > 0, scan.affine, _square(item[1]))


def _square(flat: tuple[float, ...] | None) -> np.ndarray | None:
    return None if flat is None else np.reshape(flat, (4, 4))


def _map(work: Callable[[Any], dict], jobs: list, num_workers: int | None) -> Iterator[dict]:
    workers = min(num_workers or os.cpu_count() or 1, len(jobs))
    if workers == 1:
        yield from map(work, jobs)
        return
    with process_pool(workers, functools.partial(torch.set_num_threads, 1)) as pool:
        yield from pool.map(work, jobs)


def _make_and_write(job: _Job, output_dir: Path, settings: dict) -> dict:
    subject = make_subject(
        (settings["seed"], job.number),
        pathology=job.pathology,
        scanner=settings["scanner"],
        grid=settings["grid"],
        sequences=settings["sequences"],
        scalp=settings["scalp"],
        fine_mm=settings["fine_mm"],
        anatomy=_anatomy(*job.tissue) if job.tissue else None,
        lesion_map=_lesion_map(job.lesion) if job.lesion else None,
        affine=settings["affine"],
    )
    name = f"sub-{settings['prefix']}{job.number + 1:03d}"
    files = write_subject(subject, output_dir, name, settings["displacement"])
    return {
        **files,
        "subject": name,
        "healthy": job.pathology == "healthy",
        "scanner": settings["scanner"],
        **subject.info,
    }


def write_subject(subject: Subject, output_dir: str | Path, name: str, displacement: bool = False) -> dict[str, str]:
    """Write one subject below ``output_dir``; returns key -> path relative to it.

    Images are ``int16`` with white matter at about 1000, labels ``uint8``.
    """
    arrays = {
        sequence: np.round(image * 1000).clip(0, 32767).astype(np.int16) for sequence, image in subject.images.items()
    }
    arrays |= {key: getattr(subject, key) for key in ("lesion", "tissues", "structures", "brain_mask")}
    files = write_arrays(output_dir, name, arrays, subject.grid)
    if displacement:
        file = f"{name}_to-template_displacement.nii.gz"
        write_nifti(
            Path(output_dir) / name / "anat" / file,
            subject.displacement[:, :, :, None, :],
            subject.grid.affine,
            vector=True,
        )
        files["displacement"] = f"{name}/anat/{file}"
    return files


def write_arrays(
    output_dir: str | Path, name: str, arrays: dict[str, np.ndarray], grid: Grid, session: int | None = None
) -> dict[str, str]:
    """Write images and labels of one subject, or of one of its sessions; key -> path relative to the folder."""
    place = f"{name}/anat" if session is None else f"{name}/ses-{session}/anat"
    folder = Path(output_dir) / place
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for key, array in arrays.items():
        visit = "" if session is None else f"_ses-{session}"
        file = f"{name}{visit}_{LABEL_FILES.get(key, key)}.nii.gz"
        write_nifti(folder / file, array, grid.affine)
        files[key] = f"{place}/{file}"
    return files


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, vector: bool = False) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    if vector:
        image.header.set_intent("vector")
    nib.save(image, path)
