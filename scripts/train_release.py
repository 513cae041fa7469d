"""Make the shipped weights: ``python scripts/train_release.py NAME``.

Phantoms, the bundle's own training configs, thresholds from validation phantoms; with ``--extra_data`` also real scans
and the anatomy of real people. What is done is not done again, so a broken-off run goes on when the command is given
again. On a GPU, give it more to do: ``--minutes 25 --effort 4 --num_workers 8``.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.errors import InputError
from common.files import Alone
from common.options import types as t
from release.training import Release, recipe_of
from running.command_line import run_command


def main(
    bundle: t.Text,
    output_dir: t.Folder = "release",
    extra_data: t.File | None = None,
    seed: t.Seed = 2019,
    amp: t.FlagOrAuto = "auto",
    minutes: t.Minutes | None = None,
    effort: t.Positive = 1.0,
    num_workers: t.Whole = 0,
    from_shipped: t.Flag = False,
) -> None:
    """Train the weights that the bundle ships, and write them and their thresholds into the bundle.

    Args:
        bundle: name of a bundle with a release.py.
        output_dir: phantoms (about 2 GB, the same for all bundles) and states of the trainings.
        extra_data: JSON with tissue maps and lesion masks of real people to make the phantoms from; its form is
            described at phantom.cohort.make_cohort. Without it they are made from the template. It may also have
            ``"tissue_scans": {"training": [{"T1w": path, "label": path}], "validation": [...]}``, real T1 images with
            tissue maps; a recipe takes the images, one map, or all of them. And ``"scans": {"training": [{"FLAIR":
            path, "T1w": path, "brain_mask": path, "world_to_mni": 4 x 4, "subject": name}], "validation": [...]}``,
            real scans without labels, to implant lesions in; T1w, brain_mask and world_to_mni may be left out. And
            ``"lesion_scans": {"training": [{"FLAIR": path, "T1w": path, "brain_mask": path, "lesion": path, "subject":
            name}], "validation": [...]}``, scans with drawn lesions. And ``"t1w_scans": {"training": [{"T1w": path,
            "brain_mask": path, "subject": name}], "validation": [...]}``, T1 scans of further scanners, no labels.
        seed: of phantoms and trainings.
        amp: networks in bfloat16; auto where the processor computes in it by itself.
        minutes: for all trainings together, each has its share; phantoms and thresholds are not counted. A training
            that time has ended goes on when the command is given again. None for no limit.
        effort: factor on the number of epochs of all trainings.
        num_workers: processes that make training patches; 0 makes them between the steps, which starves a GPU.
        from_shipped: of trainings in several stages run the last one alone, from the weights that the bundle ships, for
            a recipe that can. These weights are kept in output_dir when they are first asked for.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    recipe = recipe_of(bundle)
    if from_shipped and not getattr(recipe, "LAST_STAGE_ALONE", False):
        raise InputError(f"from_shipped is true for {bundle}, expected it for a recipe with a last stage of its own")
    run = Release(bundle, Path(output_dir).resolve(), extra_data, seed, amp, minutes, effort, num_workers, from_shipped)
    _ = run.extra  # its files are looked for before hours of work
    with Alone(run.folder):
        recipe.release(run)


if __name__ == "__main__":
    run_command(main)
