"""Results on prepared scans go back to the grid of the raw ones.

Usage, from the root of the repository, after scripts/prepare_data.py and a bundle:

    python scripts/restore_data.py --maps 'results/*_seg.nii.gz' --prepared_dir prepared --output_dir raw_results
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.options import types as t
from preparation.restoring import restore_files
from running.command_line import run_command


def main(
    maps: t.Text,
    prepared_dir: t.ExistingFolder,
    output_dir: t.Folder,
    sequence: t.Text | None = None,
    dicom_seg: t.ExistingFolder | None = None,
) -> None:
    """Bring masks and maps back.

    Args:
        maps: NIfTI file, or a pattern of several; each begins with the name of its case, as bundles call their results.
        prepared_dir: output of prepare_data.py.
        output_dir: gets files of the same names.
        sequence: on whose raw grid; by default that of the sequence in the name of each map, as FLAIR in
            sub-1_FLAIR_seg.nii.gz, or else of the reference.
        dicom_seg: the folder of DICOM files that was prepared: each mask is also written as DICOM SEG that refers to
            its series, NAME_seg.dcm.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    restore_files(maps, prepared_dir, output_dir, sequence, dicom_seg)


if __name__ == "__main__":
    run_command(main)
