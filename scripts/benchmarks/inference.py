"""One head from NIfTI to NIfTI, whole and part by part."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from common.options import types as t
from running.command_line import Bundle

from .measuring import COMMAND, ROOT, sequences_of


def inference(bundle: Bundle, shape: t.Counts = (182, 218, 182), amp: t.Flag = False) -> None:
    """Seconds and peak memory from NIfTI to NIfTI for one 1 mm head, in a process of its own.

    Args:
        bundle: name of the bundle; its shipped weights are used.
        shape: voxels of the head.
        amp: network under autocast.
    """
    sequences_of(bundle)  # refuses an unknown one before anything is started
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(COMMAND), "make_head", bundle, folder, json.dumps(shape)], check=True)
        command = [sys.executable, str(COMMAND), "parts", bundle, folder, str(amp)]
        subprocess.run(command, check=True)
        start = time.perf_counter()
        root = ROOT / "bundles" / bundle
        run = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(root / "configs" / "inference.json")]
        options = ["--bundle_root", str(root), "--dataset_dir", folder, "--output_dir", f"{folder}/whole"]
        subprocess.run([*run, *options, "--amp", str(amp)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        print(f"whole command   {time.perf_counter() - start:6.2f} s")


def make_head(bundle: Bundle, folder: str, shape: t.Counts) -> None:
    """One phantom patient on a 1 mm grid, skull-stripped, with the sequences of the bundle."""
    from phantom import Grid, make_subject
    from phantom.cohort import write_subject

    affine = np.eye(4)
    affine[:3, 3] = [-90, -126, -72]
    subject = make_subject(3, "ms", grid=Grid(tuple(shape), affine), sequences=sequences_of(bundle))
    write_subject(subject, folder, "sub-bench")


def parts(bundle: Bundle, folder: str, amp: t.Flag = False) -> None:
    """Time each part of inference.json on the one head in a folder; the same objects that the evaluator runs."""
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[part] = seconds.get(part, 0.0) + now - clock
        clock = now

    import torch

    from running.workflow import open_configs

    lap("import")
    root = ROOT / "bundles" / bundle
    parser = open_configs(root, "inference", dataset_dir=folder, output_dir=f"{folder}/parts", amp=amp).parser
    case = parser.get_parsed_content("datalist")[0]
    network = parser.get_parsed_content("network").eval()
    inferer = parser.get_parsed_content("evaluator").inferer
    preprocessing, postprocessing = (parser.get_parsed_content(name) for name in ("preprocessing", "postprocessing"))
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True, map_location="cpu"))
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
    for part, value in seconds.items():
        print(f"{part:15s} {value:6.2f} s")
    around = sum(seconds[part] for part in ("load", "preprocess", "postprocess", "save"))
    print(f"around the network: {around / seconds['network']:.0%} of its time")
    print(f"peak memory     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:6.2f} GiB")
