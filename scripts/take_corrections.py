"""Take what was drawn: masks are checked, compared with their drafts, and become labels of a datalist.

Usage, from the root of the repository; docs/annotation.md goes through a round:

    python scripts/take_corrections.py cases.json cases_2.json --corrections drawn --drafts next/drafts --annotator jd
    python scripts/take_corrections.py cases.json cases_2.json --monai_label studies --annotator jd

A mask that lies on another grid, has an unknown value, is of no scan, or in which nothing was drawn stops the command
before anything is written.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotation.corrections import final_labels, labeled_file, read_corrections, told, write_labels
from common.data import Datalist
from common.errors import InputError
from common.options import types as t
from running.command_line import run_command, show_progress


def main(
    datalist_file: t.File,
    output_file: t.NewFile,
    annotator: t.Text,
    corrections: t.ExistingFolder | None = None,
    drafts: t.NamesOrNone = (),
    monai_label: t.ExistingFolder | None = None,
    labels_dir: t.Folder | None = None,
    as_drafted: t.NamesOrNone = (),
    plane: Literal["auto", "axial", "coronal", "sagittal"] = "auto",
    overwrite: t.Flag = False,
) -> None:
    """Write the labels, a JSON beside each that says who drew what, and the datalist for the next training.

    Args:
        datalist_file: JSON of the scans.
        output_file: datalist to write, with the labels; it may be the same file. Beside it <name>_labeled.json has the
            labeled cases alone, to train on.
        annotator: who drew, a name or a sign.
        corrections: folder of the masks, each called as its draft or its scan.
        drafts: folders of the drafts that next_scans.py wrote; without them nothing is compared.
        monai_label: the studies folder of MONAI Label; its labels/final is taken in the place of corrections.
        labels_dir: folder for the labels; beside output_file, in labels, by default.
        as_drafted: names of scans whose draft is right as it is, or in which there is nothing to draw.
        plane: that was drawn in, for the list of changed slices; auto, along thick slices, else axial.
        overwrite: replace labels that cases have.
    """
    show_progress("annotation")
    if (corrections is None) == (monai_label is None):
        raise InputError("expected corrections or monai_label, one of the two, to say where the masks are")
    folder = corrections if monai_label is None else final_labels(monai_label)
    datalist = Datalist(datalist_file)
    found = read_corrections(datalist, folder, annotator, drafts, monai_label, as_drafted, plane, overwrite)
    write_labels(found, datalist, output_file, labels_dir or Path(output_file).absolute().parent / "labels")
    print(f"{told(found)}\nwrote {output_file}, and {labeled_file(output_file)} to train on")


if __name__ == "__main__":
    run_command(main)
