"""An atlas of label maps: ``python scripts/make_atlas.py --label_files a.nii.gz --output_file atlas.nii.gz``.

Label maps of one person or of several become the probability of every class at every voxel, and a table of which class
stands beside which: what a bundle learns from in the place of labeled scans. It takes them by
``--atlas_files atlas.nii.gz --classes N --neighbors_file atlas.json``.

Nobody whom ``--keep_out cases.json`` lists for validation or test may be in the atlas: it would know the answer.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import InputError
from common.options import types as t
from labels.atlas import guard, make_atlas, read_groups, read_people
from running.command_line import run_command


def main(
    output_file: t.NewFile,
    label_files: t.Files | None = None,
    datalist_file: t.File | None = None,
    section: t.Text = "training",
    classes: t.File | None = None,
    sigma_mm: t.Millimeters = 1.0,
    spacing_mm: t.Positive = 1.0,
    align: t.Flag = False,
    keep_out: t.FilesOrNone = (),
) -> None:
    """Write OUTPUT_FILE, 4-D NIfTI with a volume per class, and beside it a JSON of the classes and their neighbors.

    Args:
        output_file: ends in .nii.gz.
        label_files: label maps that lie in one space, one or several.
        datalist_file: in their place, JSON with a list of ``{"label": path, "world_to_mni": 4 x 4}``: the matrix takes
            the world of a map (RAS mm) to the space that all share; without it the map lies there.
        section: of the datalist.
        classes: file with JSON of name -> values that are joined, background first, such as
            ``{"background": [0], "ventricles": [4, 43]}``; every value of the maps has to be in it. By default every
            value is a class of its own.
        sigma_mm: sd of the Gaussian that smooths the classes; 3 or so for a single person.
        spacing_mm: voxel size of the atlas.
        align: bring everybody to the ICBM 152 template by an affine map that is found on the image of the datalist's
            item, ``{"label": path, "image": path, "brain_mask": path}``, the first of several, in the place of the
            matrix.
        keep_out: datalists of those whom the atlas will be judged by; several with commas between them. The datalist
            of the label maps is one of them if it has such sections.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if not output_file.endswith(".nii.gz"):
        raise InputError(f"output_file is {output_file}, expected a name that ends in .nii.gz")
    people = read_people(label_files, datalist_file, section)
    guard(people, datalist_file, keep_out)
    make_atlas(output_file, people, read_groups(classes), sigma_mm, spacing_mm, align)


if __name__ == "__main__":
    run_command(main)
