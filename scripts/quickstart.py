"""See every bundle at work: ``python scripts/quickstart.py``.

Makes a few synthetic brains, runs each bundle on them with its shipped weights, and joins the reports to one page. The
picture that the README shows of a bundle is the ``picture.png`` in the bundle's folder of results.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fire
import numpy as np
from monai.bundle import ConfigParser
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.cohort import make_cohort
from common.data import list_cases, write_datalist
from common.errors import InputError, install_error_hook
from common.evaluation import mean_dice
from common.page import Section, Table
from common.phantom import SEQUENCES, STRUCTURES, TISSUES
from common.report import Report, write_html_report
from common.transforms.io import write_atomically
from common.workflow import run_configs

ROOT = Path(__file__).resolve().parents[1]
SEED = 424242  # of no cohort that any weights were trained on
MARKER = ".quickstart"  # tells a folder that this script made from one that it must not touch
LABELLINGS = {
    "lesion": {0: "background", 1: "lesion"},
    "anomaly": {0: "background", 1: "anomaly"},
    "tissues": TISSUES,
    "structures": STRUCTURES,
}
LABEL_KEYS = {"anomaly": "lesion"}  # labelling -> key of a phantom, where it has another name
COLUMNS = ("bundle", "Dice, mean", "Dice, pooled", "AUPRC, pooled", "false positives in health, ml", "seconds")

Case = dict[str, Any]


class Task(NamedTuple):
    """What a bundle asks for: its folder, the images of a case in order, and what its label map shows.

    ``overrides`` are those of its configs: where a reference has a value that the bundle does not know, a lesion among
    tissues, its class is left open and not scored.
    """

    bundle: Path
    sequences: tuple[str, ...]
    labelling: str
    overrides: dict[str, Any]


class Row(NamedTuple):
    """One line of the summary."""

    title: str
    report: Report
    seconds: float


def main(
    output_dir: str = "quickstart",
    ms: int = 3,
    healthy: int = 1,
    spacing: float = 1.0,
    device: str | None = None,
    num_workers: int | None = None,
) -> None:
    """Run every bundle on a small phantom cohort and write OUTPUT_DIR/report.html.

    Args:
        output_dir: new folder, or one of an earlier run, whose results are replaced.
        ms: subjects with white-matter lesions.
        healthy: subjects without.
        spacing: voxel size of the scans, mm.
        device: cpu, cuda:0, ...; by default what the bundles say.
        num_workers: processes that make the subjects; all cores by default.
    """
    bundles = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/inference.json"))
    overrides = {} if device is None else {"device": str(device)}
    groups = {"ms": (0, 0, ms), "healthy": (0, 0, healthy)}
    run(Path(output_dir), bundles, groups, spacing, overrides, num_workers)


def run(
    output_dir: Path,
    bundles: Sequence[Path],
    groups: dict[str, tuple[int, int, int]],
    spacing: float,
    overrides: dict[str, Any],
    num_workers: int | None = None,
) -> Path:
    """Make the cohort, run the bundles on it, write the page and print the summary.

    Args:
        output_dir: see :func:`main`; gets ``cohort/``, a folder per bundle, and ``report.html``.
        bundles: folders of bundles.
        groups: subjects, see :func:`common.cohort.make_cohort`.
        spacing: voxel size in mm.
        overrides: entries of the bundles' configs to replace.
        num_workers: processes that make the subjects.

    Returns:
        Path of the page.

    Raises:
        InputError: if the folder holds anything else, or a bundle wants images or labels that phantoms lack.
    """
    start = time.monotonic()
    tasks = [read_task(bundle) for bundle in bundles]
    clear(output_dir, ["cohort", "report.html", *(task.bundle.name for task in tasks)])
    sequences = tuple(s for s in SEQUENCES if any(s in task.sequences for task in tasks))
    print(f"1. Making {sum(map(sum, groups.values()))} synthetic brains at {spacing:g} mm: {', '.join(sequences)}")
    cohort = make_cohort(output_dir / "cohort", groups, "A", spacing, sequences, SEED, num_workers=num_workers)

    rows, sections, layers = [], [], {}
    for number, task in enumerate(tasks, start=2):
        name = task.bundle.name
        print(f"{number}. Running {name} with its shipped weights")
        cases = write_datalist(output_dir / name / "cases.json", {"test": cases_for(task, cohort)})
        options = {**overrides, **task.overrides}
        rows.append(run_bundle(task.bundle, cases, output_dir / name, **options))
        sections.append(rows[-1].report.section)
        rows[-1].report.write()
        write_picture(rows[-1].report, output_dir / name / "picture.png")
        for layer in layers_of(task.bundle):
            rows.append(run_bundle(task.bundle, cases, output_dir / name / layer.stem, layer.name, **options))
            rows[-1].report.save()
            layers[rows[-1].title] = json.loads(layer.read_text(encoding="utf-8"))["_desc_"].partition(": ")[2]

    page = write_html_report(
        output_dir / "report.html",
        "Quickstart",
        [summary_section(rows, layers), *sections],
        "Synthetic brains made from an average anatomy: they show that everything works, and say little of patients.",
    )
    print(f"\n{summary_text(rows)}\n\nDone in {time.monotonic() - start:.0f} s. Open {page} in a browser.")
    return page


def read_task(bundle: Path) -> Task:
    """What a bundle asks for, from its configs.

    Raises:
        InputError: if phantoms have no such image or labelling.
    """
    config = json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    sequences = tuple(config["sequences"])
    names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    wanted = {int(value): name.lower() for value, name in names.items()}
    fitting = [
        labelling
        for labelling, names in LABELLINGS.items()
        if wanted.items() <= {value: name.lower() for value, name in names.items()}.items()
    ]
    if not fitting or set(sequences) - set(SEQUENCES):
        raise InputError(
            f"{bundle.name} makes {', '.join(wanted.values())} of {', '.join(sequences)}, "
            f"expected images and labels that phantoms have: {', '.join(SEQUENCES)}; {', '.join(LABELLINGS)}"
        )
    known = LABELLINGS[fitting[0]]
    if len(known) == len(wanted):
        return Task(bundle, sequences, fitting[0], {})
    sets = {value: [value] if value in wanted else list(wanted) for value in known}
    return Task(bundle, sequences, fitting[0], {"report#reference_sets": {"joint": sets}})


def layers_of(bundle: Path) -> list[Path]:
    """Configs that are another way to the same masks: layers on ``inference.json`` whose weights are there."""
    paths = sorted(bundle.glob("configs/inference_*.json"))
    texts = {path: json.loads(path.read_text(encoding="utf-8")).get("_desc_", "") for path in paths}
    layers = [path for path, text in texts.items() if text.startswith("Layer on inference.json")]
    return [path for path in layers if has_weights(bundle, path)]


def has_weights(bundle: Path, layer: Path) -> bool:
    """Whether the bundle ships the weights that a layer names, if it names any."""
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / "inference.json"), str(layer)])
    parser["bundle_root"] = str(bundle)
    weights = parser.get_parsed_content("weights") if "weights" in parser else None
    return weights is None or Path(weights).is_file()


def clear(output_dir: Path, names: Sequence[str]) -> None:
    """Make the folder, or remove what an earlier run left in it under these names.

    Raises:
        InputError: if the folder holds something and no earlier run made it.
    """
    marker = output_dir / MARKER
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file, expected a new folder for the results")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not marker.is_file():
        raise InputError(f"{output_dir} holds files of something else, expected a new folder or one of an earlier run")
    write_atomically(marker, lambda part: part.write_text("made by scripts/quickstart.py\n", encoding="utf-8"))
    for path in (output_dir / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def cases_for(task: Task, cohort: Path) -> list[Case]:
    """The subjects of a cohort as a bundle wants them: its images in its order, its labelling."""
    return [
        {
            "image": [case[sequence] for sequence in task.sequences],
            "label": case[LABEL_KEYS.get(task.labelling, task.labelling)],
            "brain_mask": case["brain_mask"],
            "subject": case["subject"],
            "healthy": case["healthy"],
            "dataset": "joint",  # every class is labelled on every subject
        }
        for case in list_cases(datalist_file=cohort, section="test")
    ]


def run_bundle(bundle: Path, datalist: Path, output_dir: Path, layer: str | None = None, **overrides: Any) -> Row:
    """Masks and maps as ``python -m monai.bundle run`` writes them, and the report on them, yet to be written.

    Args:
        bundle: folder of the bundle.
        datalist: labelled cases.
        output_dir: where the masks go.
        layer: config between ``inference.json`` and ``evaluate.json``: another way to the same masks.
        overrides: entries of the configs to replace.
    """
    begin = time.monotonic()
    names = ["inference", *([layer] if layer else []), "evaluate"]
    options = {"datalist_file": datalist, "output_dir": output_dir, "run": ["$@evaluator.run()"], **overrides}
    parser = run_configs(bundle, names, logging_file=None, **options).parser
    title = f"{bundle.name}, {layer.removesuffix('.json')}" if layer else bundle.name
    return Row(title, parser.get_parsed_content("report"), time.monotonic() - begin)


def write_picture(report: Report, path: Path) -> None:
    """The first three panels of the case with the median Dice, side by side, as one PNG."""
    views = {view.name: view for view in report.section.cases}
    scored = [case["name"] for case in report.ranked() if not np.isnan(mean_dice(report.rows_of(case)))]
    panels = [Image.open(io.BytesIO(p.data)).convert("RGB") for p in views[scored[len(scored) // 2]].pictures[:3]]
    strip = Image.new("RGB", (sum(p.width for p in panels), max(p.height for p in panels)))
    for i, panel in enumerate(panels):
        strip.paste(panel, (sum(p.width for p in panels[:i]), 0))
    strip = strip.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    write_atomically(path, lambda part: strip.save(part, optimize=True))


def summary_cells(row: Row) -> list[str]:
    """A line of the table: means over the cases with something to find, pooled voxels, healthy scans."""
    dice = [mean_dice(row.report.rows_of(case)) for case in row.report.cases]
    pooled = list(row.report.pooled.values())
    healthy = [summary.mean for summary in row.report.healthy.values()]
    area = [label["average_precision"] for label in pooled if "average_precision" in label]
    return [
        row.title,
        f"{np.nanmean(dice):.3f}",
        f"{np.mean([label['dice'] for label in pooled]):.3f}",
        f"{area[0]:.3f}" if area else "–",
        f"{sum(healthy):.2f}" if healthy else "–",
        f"{row.seconds:.0f}",
    ]


def summary_section(rows: Sequence[Row], layers: dict[str, str]) -> Section:
    """The table that the page begins with; ``layers`` says what the rows with such a title are."""
    return Section(
        "Summary",
        "Each bundle on subjects that its weights have not seen. Seconds are from files to files, for all subjects.",
        tables=[Table("All bundles", COLUMNS, [summary_cells(row) for row in rows], bars=[1, 2, 3])],
        definitions=list(layers.items()),
    )


def summary_text(rows: Sequence[Row]) -> str:
    """The same table for a terminal."""
    lines = [list(COLUMNS), *(summary_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


if __name__ == "__main__":
    install_error_hook()
    fire.Fire(main)
