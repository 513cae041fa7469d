"""From results on prepared scans to results on raw ones."""

from __future__ import annotations

import glob
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from common.errors import InputError
from common.files import write_atomically
from common.scans import json_beside, stem
from common.sequences import sequence_name

from .case import read_record, restore, sequence_of
from .dicom import FOLDER, write_segmentation

logger = logging.getLogger(__name__)


def restore_files(
    maps: str, prepared_dir: str, output_dir: str, sequence: str | None = None, dicom_dir: str | None = None
) -> None:
    """Bring masks and maps back; each gets a file of the same name, and the JSON that says who made it comes along.

    Args:
        maps: NIfTI file, or a pattern of several, which begin with the names of their cases.
        prepared_dir: output of :func:`preparation.prepare_cases`.
        output_dir: folder of the results.
        sequence: on whose raw grid; by default that of :func:`preparation.case.sequence_of`.
        dicom_dir: the DICOM files that were prepared; masks, ``*_seg``, are then written as DICOM SEG besides.

    Raises:
        InputError: if there is no map, one is of no case, or it would be replaced; and as :func:`preparation.restore`.
    """
    files = sorted(glob.glob(str(maps)))  # noqa: PTH207  # a pattern may be absolute
    if not files:
        raise InputError(f"{maps} is no file, and no pattern of files, expected NIfTI maps")
    for file in tqdm(files, desc="restoring", unit=" map", disable=None):
        target = Path(output_dir) / Path(file).name
        if target.resolve() == Path(file).resolve():
            raise InputError(f"{target} would replace the map itself, expected another output_dir")
        record_file = record_of(file, prepared_dir)
        image = restore(file, record_file, sequence)
        write_atomically(target, lambda part, image=image: nib.save(image, part))
        record = read_record(record_file)
        matched = sequence_of(file, record) if sequence is None else sequence_name(sequence)
        logger.info("wrote %s, on the grid of %s", target, record["inputs"][matched]["file"])
        sidecar = json_beside(file)
        if sidecar.is_file():
            write_atomically(json_beside(target), lambda part, sidecar=sidecar: shutil.copyfile(sidecar, part))
        if dicom_dir is not None and stem(target).endswith("_seg"):
            _write_dicom(target, Path(prepared_dir) / FOLDER / f"{record['name']}_{matched}.json", dicom_dir)


def _write_dicom(mask_file: Path, sidecar: Path, dicom_dir: str) -> None:
    if not np.any(nib.load(mask_file).dataobj):
        logger.warning("%s is empty: there is no DICOM SEG of it", mask_file)
        return
    logger.info(
        "wrote %s", write_segmentation(mask_file, sidecar, dicom_dir, mask_file.parent / f"{stem(mask_file)}.dcm")
    )


def record_of(file: str, prepared_dir: str) -> Path:
    """The record of the case whose name a file's begins with, the longest one.

    Raises:
        InputError: if there is none.
    """
    records = sorted(Path(prepared_dir).glob("*/*.json"), key=lambda path: len(path.stem))
    records = [path for path in records if path.stem == path.parent.name]
    fitting = [path for path in records if Path(file).name.startswith((f"{path.stem}_", f"{path.stem}."))]
    if not fitting:
        raise InputError(f"{file} begins with the name of none of the {len(records)} cases in {prepared_dir}")
    return fitting[-1]
