"""When to stop drawing: a learning curve of your own scores, and what further labels would add.

Usage, from the root of the repository; docs/annotation.md goes through a round:

    python scripts/learning_curve.py --scores scores.tsv --output_dir curve
    python scripts/learning_curve.py --train unet --datalist_file cases.json --sizes 1,2,4,8 --output_dir curve
    python scripts/learning_curve.py --train unet --datalist_file cases.json --output_dir curve --run true

The first fits a table of scores. The second prints the trainings that give such a table, the third runs them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from annotation.curve import write_curve
from annotation.trainings import check_method, command_of, plan, run_all
from common.data import Datalist
from common.errors import InputError
from common.options import types as t
from comparison.command import read_options
from running.command_line import run_command, show_progress


def main(
    scores: t.File | None = None,
    output_dir: t.Folder = "learning_curve",
    more: t.Count = 4,
    labels_now: t.Count | None = None,
    worthwhile: t.Positive = 0.01,
    resamples: t.Count = 1000,
    seed: t.Seed = 0,
    train: t.Text | None = None,
    datalist_file: t.File | None = None,
    target: Literal["lesion", "tissue"] = "lesion",
    sizes: t.Counts = (1, 2, 4, 8),
    folds: t.Count = 3,
    draws: t.Count = 1,
    run: t.Flag = False,
    options: t.File | None = None,
    device: t.Device | None = None,
) -> None:
    """Write learning_curve.json, .png and .html, of a table of scores or of the trainings of a method.

    Args:
        scores: table with the columns labels and score, from 0 to 1, and subject, or fold and draw, to say what goes
            together.
        output_dir: folder to write to.
        more: labels that one thinks of drawing.
        labels_now: labels that there are; by default the largest number with a score.
        worthwhile: gain of the score that is worth drawing them.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        train: name of a method of docs/comparison.md, to be trained on growing numbers of labels.
        datalist_file: JSON of labeled scans to train and score on.
        target: of the method.
        sizes: numbers of labeled people to train on.
        folds: of the people; each is scored once, the next one validates.
        draws: random orders of the labeled people, a training for each.
        run: true runs the trainings, false prints them.
        options: JSON of {"<bundle>/<config>": {entry: value}}, entries of configs to replace.
        device: cpu, cuda:0, ...; by default what the bundles say.
    """
    show_progress("annotation")
    if (scores is None) == (train is None):
        raise InputError("expected scores or train, one of the two, to say where the scores are from")
    if train is not None:
        if datalist_file is None:
            raise InputError("train is given without datalist_file, expected the labeled scans to train on")
        check_method(train, target)
        trainings = plan(Datalist(datalist_file), target, sorted(set(sizes)), folds, draws, output_dir)
        if not run:
            print("\n".join(command_of(training, train, target, options) for training in trainings))
            return
        table = Path(output_dir) / "scores.tsv"
        scores = str(run_all(trainings, train, target, table, read_options(options), device))
    print(write_curve(scores, output_dir, more, labels_now, worthwhile, resamples, seed))


if __name__ == "__main__":
    run_command(main)
