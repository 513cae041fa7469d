"""The command line of the preparation."""

from __future__ import annotations

import logging
from typing import Literal

from common.options import types as t
from common.sequences import sequence_name

from . import Settings, prepare_cases, sections_to_prepare

logger = logging.getLogger(__name__)


def prepare_data(
    output_dir: t.Folder,
    dataset_dir: t.ExistingFolder | None = None,
    datalist_file: t.File | None = None,
    dicom_dir: t.ExistingFolder | None = None,
    sequences: t.Names = ("FLAIR",),
    optional_sequences: t.NamesOrNone = (),
    label_keys: t.NamesOrNone = ("label",),
    mask_key: t.Text = "brain_mask",
    space: Literal["own", "template"] = "own",
    spacing: t.Positive = 1.0,
    skull_stripped: t.Flag = False,
    brain_extraction: t.Text = "auto",
    coregister: t.Flag = True,
    bias_correction: t.Flag = True,
    num_workers: t.SmallCount | None = None,
) -> None:
    """Prepare raw scans. Given again, the command goes on where it was; cases that are done are left as they are.

    Args:
        output_dir: gets a folder per case, prepared.json and preparation.html.
        dataset_dir: flat or BIDS-like folder, see common.data.list_cases.
        datalist_file: JSON with cases, instead of a folder.
        dicom_dir: folder of DICOM files, instead of a folder: dcm2niix converts them to OUTPUT_DIR/dicom.
        sequences: what the images of a case are, T1w (or T1, MPRAGE), T2w, PDw, FLAIR (or t2_flair) or other names. The
            first is the reference, on whose grid the others come to lie.
        optional_sequences: those that a case may lack.
        label_keys: keys of label maps that come along, each on the grid of one of the images.
        mask_key: key of the brain mask in the JSON; where a case has one, it is taken instead of a search.
        space: own (the grid of the reference, axes to right, front and top) or template (a grid of ICBM 152).
        spacing: voxel size in the template's space, mm.
        skull_stripped: True for scans without head, which are 0 outside of the brain.
        brain_extraction: deepbet (of the T1w), template, or auto: deepbet where it is installed and there is a T1w.
        coregister: False takes the headers' word for where the sequences of a case lie.
        bias_correction: False leaves out N4.
        num_workers: cases at a time; all cores by default.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = Settings(
        sequences=tuple(map(sequence_name, sequences)),
        space=space,
        spacing=spacing,
        skull_stripped=skull_stripped,
        brain_extraction=brain_extraction,
        coregister=coregister,
        bias_correction=bias_correction,
        label_keys=tuple(label_keys),
    )
    sections = sections_to_prepare(
        dataset_dir, datalist_file, settings, optional_sequences, mask_key, dicom_dir, output_dir
    )
    logger.info("wrote %s", prepare_cases(sections, output_dir, settings, num_workers))
