"""Annotation in small: phantoms of three scanners, a cheap learner, and the question who should have been drawn.

What a round of annotation costs months of is done here in minutes: labels are known, so every order of drawing can be
tried. The learner is boosted trees on the intensities around a voxel, the atlas there and the histogram of the scan; it
learns nothing but what the chosen scans show.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from tqdm import tqdm

from common.atlas import align_atlas, atlas_on_grid, icbm_atlas
from common.data import Case, Datalist
from common.files import write_json, write_text
from common.metrics import bootstrap_interval, dice
from common.scans import read_scan, voxel_ml
from phantom.cohort import make_cohort

from .doubt import doubt_of
from .features import describe, points_of
from .results import Opinion
from .selection import distances, in_order, k_center, typical

logger = logging.getLogger(__name__)

# scanner -> people to draw from, people to be judged by: most scans are of one scanner, as in a hospital
COHORT = {"A": (24, 6), "B": (10, 6), "varied": (6, 6)}
SPACING_MM = 4.0
STRATEGIES = ("random", "load", "typical", "coverage", "doubt")
COHORT_SEED = 29
POOL = 24  # people that a seed draws from, of all
ENOUGH = 0.95  # of the Dice of all labels
SIZES = (2, 4, 6, 8)  # labels, drawn two at a time
LOTS = 3  # random orders of a seed, whose mean counts
BRIGHT = 1.35  # times the brain's median: the plain threshold whose volume is the predicted load


def make_scans(folder: Path, num_workers: int | None = None) -> tuple[list[Case], list[Case]]:
    """Cases to draw from and cases to be judged by; phantoms that are there are not made again."""
    pool, test = [], []
    for number, (scanner, (drawn, judged)) in enumerate(COHORT.items()):
        place = folder / scanner
        if not (place / "datalist.json").is_file():
            make_cohort(
                place,
                {"ms": (drawn, 0, judged)},
                scanner=scanner,
                spacing=SPACING_MM,
                sequences=("FLAIR",),
                seed=COHORT_SEED + number,
                prefix=scanner.lower()[0],
                fine_mm=2.0,
                num_workers=num_workers,
            )
        datalist = Datalist(place / "datalist.json")
        pool += datalist.cases(["FLAIR"], "training")
        test += datalist.cases(["FLAIR"], "test")
    return pool, test


class Scan(NamedTuple):
    """A scan for the learner.

    Attributes:
        name, scanner: whose, of which.
        values: (voxels of the brain, features).
        truth: (voxels of the brain,), whether there is lesion.
        brain: (X, Y, Z).
        affine: of the scan.
        load_ml: volume of what a plain threshold finds.
    """

    name: str
    scanner: str
    values: np.ndarray
    truth: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    load_ml: float


def read_for_learner(case: Case) -> Scan:
    """Intensity, its neighborhood at two sizes, the aligned atlas and the scan's histogram, at every voxel."""
    image, file = read_scan(case["image"])
    brain, lesion = read_scan(case["brain_mask"])[0] > 0, read_scan(case["label"])[0] > 0
    image = np.where(brain, image / np.median(image[brain]), 0).astype(np.float32)
    atlas = icbm_atlas()
    to_atlas, _ = align_atlas(atlas, torch.from_numpy(image), file.affine)
    tissue = atlas_on_grid(atlas, to_atlas, image.shape, file.affine).numpy()
    inside = ndimage.gaussian_filter(brain.astype(np.float32), 2) + 1e-3
    wide = ndimage.gaussian_filter(image, 2) / inside
    near = ndimage.gaussian_filter(image, 0.7)
    maps = [image, near, image - wide, tissue[1], tissue[2], tissue[3]]
    of_scan = np.percentile(image[brain], (5, 25, 75, 95, 99))  # the same at all its voxels: what kind of scan it is
    maps += [np.full_like(image, value) for value in of_scan]
    load = float((image > BRIGHT).sum() * voxel_ml(file.affine))
    return Scan(
        case["name"], case["scanner"], np.stack([m[brain] for m in maps], 1), lesion[brain], brain, file.affine, load
    )


class Learner:
    """Boosted trees on the voxels of some scans, cut where the Dice of these scans is largest."""

    def __init__(self, scans: Sequence[Scan]) -> None:
        values, truth = (np.concatenate([getattr(scan, key) for scan in scans]) for key in ("values", "truth"))
        self.model = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=15, early_stopping=False, random_state=0
        )
        self.model.fit(values, truth)
        p = self.model.predict_proba(values)[:, 1]
        cuts = np.linspace(0.05, 0.9, 35)
        self.cut = float(cuts[np.argmax([dice(p > cut, truth) for cut in cuts])])

    def opinion(self, scan: Scan) -> Opinion:
        """Mask and probability of a scan."""
        probability = np.zeros(scan.brain.shape, np.float32)
        probability[scan.brain] = self.model.predict_proba(scan.values)[:, 1]
        return Opinion((probability > self.cut).astype(np.uint8), probability, None, 2)

    def score(self, scan: Scan) -> float:
        """Dice of a scan."""
        return dice(self.model.predict_proba(scan.values)[:, 1] > self.cut, scan.truth)


def order(strategy: str, scans: Sequence[Scan], points: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Indices of the scans to draw, as many as the largest of :data:`SIZES`."""
    people, count = [scan.name for scan in scans], SIZES[-1]
    between = distances(points)
    if strategy == "random":
        return [int(i) for i in rng.permutation(len(scans))[:count]]
    if strategy == "load":
        return [c.index for c in in_order([scan.load_ml for scan in scans], [], people, count)]
    if strategy == "coverage":
        return [c.index for c in k_center(between, [], people, count)]
    step = SIZES[0]
    known: list[int] = []
    while len(known) < count:
        if strategy == "typical" or not known:
            known += [c.index for c in typical(points, known, people, step)]
            continue
        learner = Learner([scans[i] for i in known])
        doubts = [doubt_of([learner.opinion(scan)], scan.affine).score for scan in scans]
        known += [c.index for c in k_center(between, known, people, step, np.array(doubts))]
    return known


def run_seed(seed: int, scans: Sequence[Scan], points: np.ndarray, test: Sequence[Scan]) -> list[dict[str, Any]]:
    """Scores of every strategy on the people that this seed draws the pool from."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(scans))[:POOL])
    pool, places = [scans[i] for i in chosen], points[chosen]
    rows = []
    for strategy in STRATEGIES:
        for _ in range(LOTS if strategy == "random" else 1):
            known = order(strategy, pool, places, rng)
            for size in SIZES:
                drawn = known[:size]
                learner = Learner([pool[i] for i in drawn])
                found = {scanner: [learner.score(s) for s in test if s.scanner == scanner] for scanner in COHORT}
                rows.append(
                    {
                        "seed": seed,
                        "strategy": strategy,
                        "labels": size,
                        "dice": float(np.mean([value for values in found.values() for value in values])),
                        "scanners": len({pool[i].scanner for i in drawn}),
                        "cover": float(distances(places)[:, drawn].min(1).mean()),
                        **{f"dice_{scanner}": float(np.mean(values)) for scanner, values in found.items()},
                    }
                )
    return rows


def simulate(folder: Path, seeds: Sequence[int], num_workers: int | None = None) -> dict[str, Any]:
    """All seeds; phantoms go to ``folder``. Gives rows, and a summary by strategy and number of labels."""
    cases, judged = make_scans(folder, num_workers)
    scans = [read_for_learner(case) for case in tqdm(cases, desc="scans to draw from", disable=None)]
    test = [read_for_learner(case) for case in tqdm(judged, desc="scans to judge by", disable=None)]
    points = points_of(describe(cases))
    bar = tqdm(seeds, desc="seeds", disable=None)
    rows = [row for seed in bar for row in run_seed(seed, scans, points, test)]
    everything = Learner(scans)
    best = float(np.mean([everything.score(scan) for scan in test]))
    return {
        "cohort": COHORT,
        "pool": POOL,
        "all_labels": {"labels": len(scans), "dice": best},
        "rows": rows,
        "summary": summary(rows),
    }


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, and the difference to random of the same seeds with its bootstrap interval over seeds."""
    found = []
    for strategy in STRATEGIES:
        for size in SIZES:
            mean = {
                key: _by_seed(rows, strategy, size, key)
                for key in ("dice", "scanners", "cover", *(f"dice_{s}" for s in COHORT))
            }
            difference = mean["dice"] - _by_seed(rows, "random", size, "dice")
            worst = [row["dice"] for row in rows if (row["strategy"], row["labels"]) == (strategy, size)]
            low, high = bootstrap_interval(difference, np.ones(len(difference)))
            line: dict[str, Any] = {"strategy": strategy, "labels": size}
            line |= {key: round(float(values.mean()), 4) for key, values in mean.items()}
            line |= {"worst": round(min(worst), 4), "to_random": round(float(difference.mean()), 4)}
            found.append(line | {"low": round(low, 4), "high": round(high, 4)})
    return found


def _by_seed(rows: Sequence[dict[str, Any]], strategy: str, size: int, key: str) -> np.ndarray:
    part = [row for row in rows if (row["strategy"], row["labels"]) == (strategy, size)]
    return np.array(
        [np.mean([r[key] for r in part if r["seed"] == seed]) for seed in sorted({r["seed"] for r in part})]
    )


def write_evidence(found: dict[str, Any], evidence_dir: str | Path, seeds: Sequence[int]) -> Path:
    """Write ``annotation.json`` and ``annotation.md``; gives the page."""
    folder = Path(evidence_dir)
    write_json(folder / "annotation.json", {"seeds": list(seeds)} | found)
    write_text(folder / "annotation.md", page_of(found, seeds))
    return folder / "annotation.md"


def page_of(found: dict[str, Any], seeds: Sequence[int]) -> str:
    """The evidence as Markdown: what was done, the table, and what came out, computed from it."""
    people = ", ".join(f"{drawn} of {scanner}" for scanner, (drawn, _) in found["cohort"].items())
    judged = ", ".join(f"{test} of {scanner}" for scanner, (_, test) in found["cohort"].items())
    heads = [
        "strategy",
        "labels",
        "Dice",
        "less random's",
        "95 % interval",
        "worst order",
        "scanners seen",
        "mean distance",
    ]
    rows = [
        [
            *(line["strategy"], str(line["labels"]), f"{line['dice']:.3f}", f"{line['to_random']:+.3f}"),
            "–" if line["strategy"] == "random" else f"{line['low']:+.3f} to {line['high']:+.3f}",
            *(f"{line['worst']:.3f}", f"{line['scanners']:.1f}", f"{line['cover']:.2f}"),
        ]
        for line in found["summary"]
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])
    every = found["all_labels"]
    given = ",".join(map(str, seeds))
    return f"""# Which scan next: random against the rest

Made by `python scripts/simulate_annotation.py --seeds {given}`.

- **Scans**: phantoms, FLAIR, {SPACING_MM:g} mm, of three scanners. To draw from: {people}, of whom each seed has
  {found["pool"]} by lot. To be judged by: {judged}.
- **Learner**: small, boosted trees on the intensities around a voxel. With the labels of all
  {every["labels"]} people it has a Dice of {every["dice"]:.3f}.
- **Random** is the mean of {LOTS} orders a seed. The interval is of a bootstrap over {len(seeds)} seeds, so it
  is too narrow. The worst order is of {LOTS * len(seeds)} orders of random and of {len(seeds)} of the others: of more
  orders the worst is lower by itself. Sixteen comparisons are made, and the intervals are not widened for that.
- **Changed once**: the first learner, a logistic regression, was no better with more labels in a trial of seed 100
  (random 0.280 to 0.311). Boosted trees took its place, whose curve on the people to judge by was looked at, before
  the seeds of this table were run.
- **doubt** begins with two by `typical`; labels are drawn two at a time.
- **mean distance** is that of a scan of the pool to the nearest drawn one, in the space that `typical`, `coverage` and
  `doubt` choose in: they have an advantage in it.

{table}

{verdict_of(found)}

{enough_of(found)}
"""


def verdict_of(found: dict[str, Any]) -> str:
    """What beat random, and what did not, in plain words: by the intervals of the differences."""
    sentences = []
    for strategy in STRATEGIES[1:]:
        lines = [line for line in found["summary"] if line["strategy"] == strategy]
        better, worse = ([str(n["labels"]) for n in lines if test(n)] for test in (_is_better, _is_worse))
        mean = float(np.mean([line["to_random"] for line in lines]))
        text = f"`{strategy}`: {mean:+.3f} to random on average;"
        text += f" better at {', '.join(better)} labels" if better else " better at no number of labels"
        sentences.append(f"- {text}" + (f", worse at {', '.join(worse)}." if worse else "."))
    return "What differs from random by more than its interval:\n\n" + "\n".join(sentences)


def labels_for(wanted: float, rows: Sequence[dict[str, Any]], strategy: str) -> list[float]:
    """The least number of labels whose Dice is as wanted, in every seed; infinite where none of :data:`SIZES` is."""
    curves = np.stack([_by_seed(rows, strategy, size, "dice") for size in SIZES], 1)
    return [
        next((float(n) for n, score in zip(SIZES, curve, strict=True) if score >= wanted), np.inf) for curve in curves
    ]


def enough_of(found: dict[str, Any]) -> str:
    """How many labels are nearly as good as all of them, by every strategy, in Markdown."""
    every = found["all_labels"]
    wanted = ENOUGH * every["dice"]
    lines = ["| strategy | labels, by seed | median |", "| --- | --- | --- |"]
    for strategy in STRATEGIES:
        numbers = labels_for(wanted, found["rows"], strategy)
        shown = ["more" if np.isinf(n) else f"{n:g}" for n in (*numbers, np.median(numbers))]
        lines.append(f"| {strategy} | {', '.join(shown[:-1])} | {shown[-1]} |")
    return (
        f"Labels for {ENOUGH:.0%} of the Dice of all {every['labels']} labels, so for {wanted:.3f}; more than "
        f"{SIZES[-1]} were not tried:\n\n" + "\n".join(lines)
    )


def _is_better(line: dict[str, Any]) -> bool:
    return line["low"] > 0


def _is_worse(line: dict[str, Any]) -> bool:
    return line["high"] < 0
