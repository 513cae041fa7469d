"""Results on prepared scans go back to the grid of the raw ones.

Usage, from the root of the repository, after scripts/prepare_data.py and a bundle:

    python scripts/restore_data.py --maps 'results/*_seg.nii.gz' --prepared_dir prepared --output_dir raw_results
"""

from __future__ import annotations

import glob
import logging
import sys
from pathlib import Path

import nibabel as nib
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import sequence_name
from common.errors import InputError
from common.files import write_atomically
from common.options import types as t
from preparation import read_record, restore, sequence_of
from running.command_line import run_command

logger = logging.getLogger("restore_data")


def main(maps: t.Text, prepared_dir: t.ExistingFolder, output_dir: t.Folder, sequence: t.Text | None = None) -> None:
    """Bring masks and maps back.

    Args:
        maps: NIfTI file, or a pattern of several; each begins with the name of its case, as bundles call their results.
        prepared_dir: output of prepare_data.py.
        output_dir: gets files of the same names.
        sequence: on whose raw grid; by default that of the sequence in the name of each map, as FLAIR in
            sub-1_FLAIR_seg.nii.gz, or else of the reference.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
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


if __name__ == "__main__":
    run_command(main)
