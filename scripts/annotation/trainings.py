"""The trainings behind a learning curve: a method learns from few labels, then from more, and is scored on others."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from catalog import BUNDLES
from common.data import Case, Datalist, subject_of, write_datalist
from common.errors import InputError
from common.files import write_text
from common.options import types as t
from common.tables import delimited
from comparison import Comparison
from comparison.command import read_options
from comparison.methods import choose
from comparison.targets import TARGETS
from datalists.splits import assign_folds, parts_by_fold
from running.command_line import show_progress

from .curve import refuse_few, write_curve

logger = logging.getLogger(__name__)


class Training(NamedTuple):
    """One training of one method, on one datalist."""

    labels: int
    fold: int
    draw: int
    datalist: Path
    output_dir: Path


def learning_curve(
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


def plan(
    datalist: Datalist, target: str, sizes: Sequence[int], folds: int, draws: int, output_dir: str | Path
) -> list[Training]:
    """Write the datalists of all trainings: of K folds each is scored once, the next one validates.

    Of the people of the other folds so many keep their labels, in an order that each draw makes by lot; those with few
    are among those with more. The others stay as unlabeled scans, beside those that are. Labels
    for validation are not counted.

    Args:
        datalist: with labeled cases; their ``fold`` counts where they have one.
        target: name of one of :data:`comparison.targets.TARGETS`.
        sizes: numbers of labeled people.
        folds, draws: how many.
        output_dir: the datalists go to ``lists`` in it.

    Raises:
        InputError: if there are too few labeled people.
    """
    sequences = datalist.sequences
    if sequences is None:
        raise InputError(f'{datalist} does not say its sequences, expected "sequences": [...] in it')
    label_of = TARGETS[target].label_of
    cases = [case for case in datalist.cases(sequences, optional_sequences=sequences) if "label_source" not in case]
    labeled = [{k: v for k, v in case.items() if k != "name"} for case in cases if label_of(case) is not None]
    people = {subject_of(case) for case in labeled}
    others = [{k: v for k, v in case.items() if k != "name"} for case in cases if subject_of(case) not in people]
    if len(people) < folds:
        raise InputError(f"{datalist} has {len(people)} labeled people, expected {folds} or more, one for each fold")
    labeled = labeled if all("fold" in case for case in labeled) else assign_folds(labeled, folds, 0)
    found = []
    for fold, (training, validation, test) in enumerate(parts_by_fold(labeled, datalist.path)):
        for draw in range(draws):
            names = sorted({subject_of(case) for case in training})
            if max(sizes) > len(names):
                raise InputError(
                    f"{datalist} has {len(names)} labeled people to train on with {folds} folds, expected {max(sizes)} "
                    "or more, the largest of sizes"
                )
            np.random.default_rng((fold, draw)).shuffle(names)
            for size in sizes:
                name = f"labels{size}_fold{fold}_draw{draw}"
                part = [_kept(case, target, subject_of(case) in names[:size]) for case in training]
                part += others
                sections = {"training": part, "validation": validation, "test": test}
                clean = {s: [{k: v for k, v in c.items() if k != "fold"} for c in cs] for s, cs in sections.items()}
                header = {key: value for key, value in datalist.header.items() if key in ("sequences", "labels")}
                path = write_datalist(Path(output_dir) / "lists" / f"{name}.json", clean, header)
                found.append(Training(size, fold, draw, path, Path(output_dir) / "runs" / name))
    return found


def command_of(training: Training, method: str, target: str, options: str | None = None) -> str:
    """What a user types for a training and its scores, from the root of the repository."""
    words = ["python", "scripts/compare.py", str(training.datalist), "--target", target, "--weights", "train"]
    words += ["--methods", method, "--seeds", str(training.draw), "--output_dir", str(training.output_dir)]
    return shlex.join(words + (["--options", options] if options else []))


def check_method(method: str, target: str) -> None:
    """Refuse a method that no bundle has for a target; see :func:`comparison.methods.choose`."""
    if not choose([method], target, False, BUNDLES):
        raise InputError(f"{method} is no method for {target}, expected one of those in docs/comparison.md")


def run_all(
    trainings: Sequence[Training],
    method: str,
    target: str,
    output_file: str | Path,
    options: Mapping[str, Mapping[str, Any]],
    device: str | None = None,
) -> Path:
    """Train, predict and score, what is done not again, and write the table for :func:`annotation.curve.read_scores`.

    Raises:
        InputError: before all, if there are fewer than three sizes; if a training fails, those that are done stay.
    """
    refuse_few(np.array([training.labels for training in trainings]), "sizes")
    label = next(iter(TARGETS[target].labels.values()))
    rows: list[list[Any]] = [["labels", "score", "subject", "fold", "draw"]]
    for training in tqdm(trainings, desc="trainings", disable=None):
        logger.info("%d labels, fold %d, draw %d", training.labels, training.fold, training.draw)
        datalist = Datalist(training.datalist)
        asked = (target, BUNDLES, [method], "train", (training.draw,), options, device)
        comparison = Comparison(datalist, training.output_dir, *asked)
        comparison.run()
        if comparison.failures:
            what, sentence = next(iter(comparison.failures.items()))
            raise InputError(f"{what} with {training.labels} labels failed: {sentence}")
        scores: dict[str, list[float]] = {}
        for row in comparison.results[0].rows:
            if not math.isnan(row["dice"]):
                scores.setdefault(str(row["subject"]), []).append(float(row["dice"]))
        for subject, values in sorted(scores.items()):
            rows.append([training.labels, float(np.mean(values)), subject, training.fold, training.draw])
    logger.info("Dice of %s, mean over the labels of a person", label if len(TARGETS[target].labels) == 1 else target)
    write_text(output_file, delimited(rows, "\t"))
    return Path(output_file)


def _kept(case: Case, target: str, labeled: bool) -> Case:
    if labeled:
        return case
    return {key: value for key, value in case.items() if key not in ("label", TARGETS[target].key)}
