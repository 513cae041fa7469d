"""Advice as text for the terminal, and as JSON."""

from __future__ import annotations

import logging
import os
import textwrap
from collections.abc import Sequence
from typing import Any

from monai.utils import ensure_tuple

from common.files import write_json
from common.options import types as t
from datalists.survey import describe

from .advice import Advice, Data, advise, read_data
from .cost import InferenceCost, TrainingCost

WIDTH = 110


def print_advice(
    datalist_file: t.File,
    bundles: t.Names | None = None,
    measure: t.Flag = True,
    steps: t.Count = 3,
    device: t.Device | None = None,
    output_file: t.NewFile | None = None,
    num_workers: t.SmallCount | None = None,
) -> None:
    """Say method by method whether it can run on a datalist, what is missing, and what it costs on this machine.

    Args:
        datalist_file: JSON of cases, as make_datalist.py writes it.
        bundles: names of those to look at; all by default.
        measure: false leaves time and memory out, which takes minutes for all bundles.
        steps: training steps to measure, after two to warm up.
        device: cpu, cuda:0, ...; by default what the configs say.
        output_file: JSON to write all of it to.
        num_workers: processes that read files; all cores by default.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns that it leaves logging alone
    data = read_data(datalist_file, num_workers)
    overrides = {} if device is None else {"device": device}
    if measure:
        print(f"{os.cpu_count()} cores with a load of {os.getloadavg()[0]:.1f}: other programs make times longer")
    advice = advise(data, bundles, measure, steps, **overrides)
    print(text_of(data, advice))
    if output_file is not None:
        write_json(output_file, as_dict(data, advice))
        print(f"wrote {output_file}")


def as_dict(data: Data, advice: Sequence[Advice]) -> dict[str, Any]:
    """All of it, for JSON."""
    return {
        "datalist": str(data.datalist),
        "sequences": data.sequences,
        "sections": data.counts(),
        "advice": [item.as_dict() for item in advice],
    }


def text_of(data: Data, advice: Sequence[Advice]) -> str:
    """The data, a line per method, and then each method in full."""
    lines = [f"{data.datalist}", *_counts(data), describe(data.cases, *_images(data), data.facts), ""]
    rows = [("bundle", "what", "verdict", "training", "memory", "a scan")]
    rows += [(item.bundle, item.way, item.verdict, *_summary(item)) for item in advice]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for item in advice:
        lines += ["", f"{item.bundle}: {item.way}", f"  {item.verdict}; gives {item.gives}"]
        lines += [line for text in item.missing for line in _wrapped("missing: ", text)]
        lines += [line for text in item.remarks for line in _wrapped("remark: ", text)]
        lines += [line for name, cost in item.costs.items() for line in _wrapped(f"{name}: ", _cost(cost))]
        if not item.missing:
            lines += [f"  $ {command}" for command in item.commands]
    return "\n".join(lines)


def _counts(data: Data) -> list[str]:
    return [
        f"{section}: " + ", ".join(f"{number} {what}" for what, number in counts.items())
        for section, counts in data.counts().items()
    ]


def _images(data: Data) -> list[Sequence[str]]:
    images = ensure_tuple(data.cases[0]["image"])
    return [data.sequences or [f"image {number}" for number, _ in enumerate(images, 1)]]


def _wrapped(title: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {title}", subsequent_indent="    ", break_long_words=False)


def _summary(item: Advice) -> tuple[str, str, str]:
    """Training time, memory and time of a scan, empty where there is nothing, a dash where measuring failed."""
    costs = list(item.costs.values())
    if any(isinstance(cost, str) for cost in costs):
        return ("-",) * 3
    trainings = [cost for cost in costs if isinstance(cost, TrainingCost)]
    scans = [cost for cost in costs if isinstance(cost, InferenceCost)]
    memory = max([cost.memory_gib for cost in trainings] + [cost.peak_memory_gib for cost in scans], default=None)
    return (
        _duration(sum(cost.hours for cost in trainings)) if trainings else "",
        "" if memory is None else f"{memory:.1f} GiB",
        f"{scans[0].scan_seconds:.1f} s" if scans else "",
    )


def _cost(cost: TrainingCost | InferenceCost | str) -> str:
    if isinstance(cost, str):
        return f"could not be measured: {cost}"
    machine = f"on {cost.device}, {cost.threads} thread(s)"
    gpu = "" if cost.gpu_memory_gib is None else f", {cost.gpu_memory_gib:.1f} GiB of the GPU"
    if isinstance(cost, InferenceCost):
        return (
            f"measured {machine}: {cost.scan_seconds:.1f} s a scan, the program already loaded, "
            f"{cost.peak_memory_gib:.1f} GiB of memory{gpu}"
        )
    return (
        f"measured {machine}, {cost.measured_steps} steps on {cost.measured_scans} scans: {cost.step_seconds:.2f} s a "
        f"step, {cost.loading_seconds:.1f} s to load a scan, {cost.validation_seconds:.1f} s to validate one, "
        f"{cost.peak_memory_gib:.1f} GiB of memory{gpu}. So all of it, {cost.epochs} epochs of {cost.epoch_steps} "
        f"steps and {cost.validations} validations, takes about {_duration(cost.hours)} and {cost.memory_gib:.1f} GiB."
    )


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
