"""The first run: a few synthetic brains, all methods on them, one page, and two pictures per bundle."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.data import Datalist
from common.errors import InputError
from common.evaluation import Evaluation, Volumes, mean_dice
from common.files import Alone, write_atomically, write_text
from common.pictures import Picture, case_pictures
from common.processes import in_forks
from phantom import TISSUES
from phantom.cohort import make_cohort

from .comparison import Comparison, Result
from .report import compare

SEED = 424242  # of no cohort that any weights were trained on
MARKER = ".quickstart"  # tells a folder that this made from one that it must not touch
SEQUENCES = ("T1w", "FLAIR")
TARGETS = ("lesion", "tissue")


def run(
    output_dir: Path,
    bundles: Path,
    groups: dict[str, tuple[int, int, int]],
    spacing: float,
    options: Mapping[str, Mapping[str, Any]],
    device: str | None = None,
    num_workers: int | None = None,
    announce: Callable[[Path], None] = lambda datalist: None,
) -> list[Comparison]:
    """Make the cohort, compare the methods on it and print the summaries.

    Args:
        output_dir: new folder, or one of an earlier run, whose results are replaced; gets ``cohort/``, ``report.html``
            and the tables, ``runs/`` and ``pictures/``.
        bundles: folder of the bundles.
        groups: subjects, see :func:`phantom.cohort.make_cohort`.
        spacing: voxel size in mm.
        options: entries of configs to replace, see :class:`comparison.Comparison`.
        device: cpu, cuda:0, ...; None for what the bundles say.
        num_workers: processes that make the subjects, and then run the bundles; all cores by default.
        announce: called with the datalist of the cohort before anything is compared.

    Raises:
        InputError: if the folder holds anything else, or another process works in it.
    """
    with Alone(output_dir, is_file=True):
        start = time.monotonic()
        workers = num_workers or os.cpu_count() or 1
        clear(output_dir)
        print(f"Making {sum(map(sum, groups.values()))} synthetic brains at {spacing:g} mm: {', '.join(SEQUENCES)}")
        datalist = make_cohort(output_dir / "cohort", groups, "A", spacing, SEQUENCES, SEED, num_workers=num_workers)
        announce(datalist)
        cohort = Datalist(datalist)
        volumes = Volumes()
        comparisons = [
            Comparison(cohort, output_dir, target, bundles, options=options, device=device, volumes=volumes)
            for target in TARGETS
        ]
        page = compare(
            comparisons,
            "Quickstart",
            "Synthetic brains made from an average anatomy: they show that it works, and say little of patients.",
            "python scripts/quickstart.py",
            num_workers=workers,
        )
        write_pictures(comparisons, output_dir / "pictures", workers)
        print(f"\nDone in {time.monotonic() - start:.0f} s. Open {page} in a browser.")
        return comparisons


def clear(output_dir: Path) -> None:
    """Make the folder, or remove what an earlier run left in it.

    Raises:
        InputError: if the folder holds something and no earlier run made it.
    """
    marker = output_dir / MARKER
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file, expected a new folder for the results")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not marker.is_file():
        raise InputError(f"{output_dir} holds files of something else, expected a new folder or one of an earlier run")
    write_text(marker, "made by scripts/quickstart.py\n")
    tables = [path.name for target in TARGETS for path in output_dir.glob(f"{target}_*")]
    for path in (output_dir / name for name in ("cohort", "runs", "pictures", "views", "report.html", *tables)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_pictures(comparisons: Sequence[Comparison], folder: Path, workers: int = 1) -> None:
    """For each bundle, of the cases with its median and its lowest Dice, three panels side by side as one PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [result for comparison in comparisons for result in comparison.results]

    def write(bundle: str) -> None:
        result = next(r for r in results if r.method.bundle == bundle and not r.method.inference.layers)
        cases = {case["name"]: case for case in result.evaluation.cases}
        dice = {name: mean_dice([row for row in result.rows if row["name"] == name]) for name in sorted(cases)}
        scored = [cases[name] for name in sorted(dice, key=dice.get) if not np.isnan(dice[name])]
        for name, case in ((bundle, scored[len(scored) // 2]), (f"{bundle}_worst", scored[0])):
            panels = [Image.open(io.BytesIO(p.data)).convert("RGB") for p in _pictures(result, case)[:3]]
            strip = Image.new("RGB", (sum(p.width for p in panels), max(p.height for p in panels)))
            for i, panel in enumerate(panels):
                strip.paste(panel, (sum(p.width for p in panels[:i]), 0))
            strip = strip.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            file = folder / f"{name}.png"
            write_atomically(file, lambda part, strip=strip: strip.save(part, format="png", optimize=True))

    bundles = list(dict.fromkeys(result.method.bundle for result in results))
    list(tqdm(in_forks(write, bundles, workers), "drawing", len(bundles), disable=None))


def _pictures(result: Result, case: Mapping[str, Any]) -> list[Picture]:
    """Of a case, with all labels of a bundle that knows more than those that were compared."""
    evaluation = result.evaluation
    if len(evaluation.mask_values) > len(evaluation.label_names):
        focus = next(value for value, label in evaluation.mask_values.items() if label)
        items = [{**case, "label": case["tissues"]}]
        evaluation = Evaluation(
            items,
            evaluation.output_dir,
            TISSUES,
            threshold=evaluation.threshold,
            image_index=len(case["image"]) - 1,
            map_label=focus,
            volumes=evaluation.volumes,
        )
        case = items[0]
    scans = evaluation.load(case)
    names = evaluation.label_names if len(evaluation.label_names) > 1 else None
    top = 1.0 if evaluation.threshold is None else min(2 * evaluation.threshold, 1.0)
    arrays = (scans.image, scans.affine, scans.prediction, scans.reference, scans.scores)
    return case_pictures(*arrays, top, names, evaluation.map_label if names else None)
