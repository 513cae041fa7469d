"""From NIfTI to NIfTI, beside the bare network: the whole command, what it cannot be faster than, and its parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalog import describe
from common.files import write_json, write_text
from common.options import types as t
from running.command_line import Bundle

from .measuring import COMMAND, ROOT, sequences_of

# the floor: a process that imports PyTorch, and runs the traced network once over tensors that are there
FLOOR = """
import json, sys
import torch
torch.set_num_threads(int(sys.argv[2]))
network, inputs = torch.jit.load(sys.argv[1] + "/network.ts"), torch.load(sys.argv[1] + "/inputs.pt", weights_only=True)
with torch.no_grad():
    for tensor in inputs:
        network(tensor)
"""
RUNS = ("floor", "command")


def inference(
    bundles: t.NamesOrNone = (),
    shape: t.Counts = (182, 218, 182),
    repeats: t.Count = 3,
    threads: t.Count = 1,
    amp: t.FlagOrAuto = "auto",
    output_file: t.NewFile | None = None,
) -> None:
    """CPU seconds, wall time and peak memory from NIfTI to NIfTI for one head of 1 mm, beside the bare network.

    Commands and floors of all bundles take turns, so that a busy machine disturbs them alike.

    Args:
        bundles: names of bundles; all by default.
        shape: voxels of the head.
        repeats: turns; the median counts.
        threads: of each process.
        amp: precision of the command; the floor is in float32.
        output_file: JSON to write, and beside it a page of the same name, .md.
    """
    names = list(bundles) or sorted(path.parent.name for path in ROOT.glob("bundles/*/configs"))
    for name in names:
        sequences_of(name)  # refuses an unknown one before anything is started
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in names}
        for name, place in places.items():
            _own_process("make_head", name, place / "scans", json.dumps(shape))
            _own_process("record_floor", name, place)
        runs: dict[str, dict[str, list[list[float]]]] = {name: {run: [] for run in RUNS} for name in names}
        for repeat in range(repeats):
            for name, place in places.items():
                floor = [sys.executable, "-c", FLOOR, str(place), str(threads)]
                for run, command in (("floor", floor), ("command", _command(name, place, amp))):
                    print(f"turn {repeat + 1} of {repeats}: {run} of {name}", file=sys.stderr)
                    runs[name][run].append(_measured(command, threads))
        parts = {name: _own_process("parts", name, place / "scans", str(amp)) for name, place in places.items()}
    found = {name: _figures(runs[name], json.loads(parts[name])) for name in names}
    print(_table(found))
    if output_file is not None:
        _write(Path(output_file), found, shape, threads, repeats, amp)


def make_head(bundle: Bundle, folder: str, shape: t.Counts) -> None:
    """One phantom patient on a 1 mm grid, skull-stripped, with the sequences of the bundle."""
    from phantom import Grid, make_subject
    from phantom.cohort import write_subject

    affine = np.eye(4)
    affine[:3, 3] = [-90, -126, -72]
    subject = make_subject(3, "ms", grid=Grid(tuple(shape), affine), sequences=sequences_of(bundle))
    write_subject(subject, folder, "sub-bench")


def record_floor(bundle: Bundle, folder: str) -> None:
    """Trace the network of a bundle, and keep what it is asked in a single pass over the head in ``scans/``."""
    import torch

    entries = describe(bundle).single_pass | {"amp": False}
    parser, case = _opened(bundle, f"{folder}/scans", f"{folder}/recorded", **entries)
    network, inputs = _network(parser, bundle), []

    def asked(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        inputs.append(tensor.clone())
        return network(tensor, *args, **kwargs)

    for transform in parser.get_parsed_content("preprocessing").transforms:
        case = transform(case)
    image = getattr(case["image"], "as_tensor", lambda: case["image"])()
    with torch.no_grad():
        parser.get_parsed_content("evaluator").inferer(image[None], asked)
        inputs = [getattr(tensor, "as_tensor", lambda tensor=tensor: tensor)() for tensor in inputs]
        traced = torch.jit.freeze(torch.jit.trace(network, inputs[0], check_trace=False))
    traced.save(f"{folder}/network.ts")
    torch.save(inputs, f"{folder}/inputs.pt")


def parts(bundle: Bundle, folder: str, amp: t.FlagOrAuto = "auto") -> None:
    """CPU seconds of each part of inference.json on the head in a folder, by the objects that the evaluator runs."""
    seconds: dict[str, float] = {}
    clock = 0.0  # of a process, from its start

    def lap(part: str) -> None:
        nonlocal clock
        now = time.process_time()
        seconds[part] = seconds.get(part, 0.0) + now - clock
        clock = now

    import torch

    parser, case = _opened(bundle, folder, f"{folder}/parts", amp=amp)
    lap("import")
    network = _network(parser, bundle)
    inferer = parser.get_parsed_content("evaluator").inferer
    preprocessing, postprocessing = (parser.get_parsed_content(name) for name in ("preprocessing", "postprocessing"))
    lap("set up")
    for transform in preprocessing.transforms:
        case = transform(case)
        lap("load" if type(transform).__name__.startswith("Load") else "preprocess")
    with torch.no_grad():
        case["pred"] = inferer(case["image"][None], network)[0]
    lap("network")
    for transform in postprocessing.transforms:
        case = transform(case)
        lap("save" if type(transform).__name__.startswith("Save") else "postprocess")
    print(json.dumps(seconds))


def _opened(bundle: str, dataset_dir: str, output_dir: str, **entries: Any) -> tuple[Any, dict[str, Any]]:
    """The config at work, and its only case."""
    from running.workflow import open_configs

    folders = {"dataset_dir": dataset_dir, "output_dir": output_dir}
    parser = open_configs(ROOT / "bundles" / bundle, "inference", **folders, **entries).parser
    return parser, parser.get_parsed_content("datalist")[0]


def _network(parser: Any, bundle: str) -> Any:
    import torch

    network = parser.get_parsed_content("network").eval()
    weights = ROOT / "bundles" / bundle / "models" / "model.pt"
    network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return network


def _command(bundle: str, place: Path, amp: bool | str) -> list[str]:
    root = ROOT / "bundles" / bundle
    run = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(root / "configs" / "inference.json")]
    options = {"bundle_root": root, "dataset_dir": place / "scans", "output_dir": place / "whole"}
    options |= {"amp": amp, "overwrite": True}
    return run + [word for key, value in options.items() for word in (f"--{key}", str(value))]


def _own_process(*arguments: object) -> str:
    """What a command of ``scripts/benchmark.py`` prints last, in a process that has loaded nothing else."""
    command = [sys.executable, str(COMMAND), *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().rpartition("\n")[2]


def _measured(command: Sequence[str], threads: int) -> list[float]:
    """CPU seconds, wall seconds and peak GiB of a process."""
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return [usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 2**20]


def _figures(runs: dict[str, list[list[float]]], parts: dict[str, float]) -> dict[str, Any]:
    """Medians over the turns; ratios turn by turn."""
    arrays = {run: np.asarray(values) for run, values in runs.items()}
    medians = {run: np.median(values, axis=0).round(2).tolist() for run, values in arrays.items()}
    ratios = np.median(arrays["command"] / arrays["floor"], axis=0).round(2).tolist()
    keys = ("cpu_s", "wall_s", "peak_gib")
    found = {run: dict(zip(keys, values, strict=True)) for run, values in medians.items()}
    return found | {
        "ratio": dict(zip(keys, ratios, strict=True)),
        "parts_cpu_s": {part: round(value, 2) for part, value in parts.items()},
    }


HEADING = ["bundle", "command, CPU s", "floor, CPU s", "ratio", "command, s", "peak, GiB", "of the floor's"]


def _rows(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            f"{figures['command']['cpu_s']:.1f}",
            f"{figures['floor']['cpu_s']:.1f}",
            f"{figures['ratio']['cpu_s']:.2f}",
            f"{figures['command']['wall_s']:.1f}",
            f"{figures['command']['peak_gib']:.2f}",
            f"{figures['ratio']['peak_gib']:.2f}",
        ]
        for name, figures in found.items()
    ]


def _part_rows(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    parts = list(next(iter(found.values()))["parts_cpu_s"])
    return ["bundle", *parts], [
        [name, *(f"{figures['parts_cpu_s'].get(part, 0):.1f}" for part in parts)] for name, figures in found.items()
    ]


def _table(found: dict[str, Any]) -> str:
    lines = [HEADING, *_rows(found), [], *[_part_rows(found)[0], *_part_rows(found)[1]]]
    return "\n".join("  ".join(cell.rjust(14) for cell in line) for line in lines)


def _write(
    file: Path, found: dict[str, Any], shape: Sequence[int], threads: int, repeats: int, amp: bool | str
) -> None:
    from comparison.report import to_markdown
    from running.machine import machine

    size = " x ".join(map(str, shape))
    about = {"machine": machine("cpu"), "shape": list(shape), "threads": threads, "repeats": repeats, "amp": amp}
    write_json(file, about | {"bundles": found})
    page = f"""# How fast

One head of {size} voxels of 1 mm, from NIfTI to NIfTI: the median of {repeats} turns, {threads} thread, amp {amp}.
{about["machine"]}. Measure your own machine by `python scripts/benchmark.py inference`.

The floor is a process that imports PyTorch and runs the traced network in a single pass, in float32, over tensors that
are there. A command also starts Python and MONAI, reads, prepares, looks again (mirror, overlap, sizes), and writes.

{to_markdown(HEADING, _rows(found))}

CPU seconds of each part, in one process:

{to_markdown(*_part_rows(found))}
"""
    write_text(file.with_suffix(".md"), page)
