"""Make a phantom cohort: ``python scripts/make_phantom.py --output_dir phantom --ms 4,1,1 --healthy 4,1,1``."""

import logging
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.options import types as t
from phantom import SCANNERS, SEQUENCES
from phantom.cohort import LABEL_NAMES, make_cohort
from running.command_line import run_command

SOME_SEQUENCES = t.list_of(Literal[SEQUENCES], f"some of {', '.join(SEQUENCES)}", min_length=1)


def main(
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
    num_workers: t.Count | None = None,
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
    sequences = (sequences,) if isinstance(sequences, str) else tuple(sequences)
    groups = {"healthy": healthy, "ms": ms, "tumour": tumour, "infarct": infarct}
    datalist = make_cohort(
        output_dir,
        {name: tuple(counts) for name, counts in groups.items() if any(counts)},
        scanner=scanner,
        spacing=spacing,
        sequences=sequences,
        seed=seed,
        prefix=str(prefix),
        label=label,
        scalp=scalp,
        displacement=displacement,
        extra_data=extra_data,
        num_workers=num_workers,
    )
    logging.getLogger(__name__).info("wrote %s", datalist)


if __name__ == "__main__":
    run_command(main)
