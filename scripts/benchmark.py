"""Where the time goes: ``python scripts/benchmark.py inference uad_autoencoder`` or ``training uad_autoencoder``.

Machines are noisy: compare the parts of one run with each other, not runs of different days.
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fire
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.errors import InputError, install_error_hook


def inference(bundle: str = "uad_autoencoder", shape: tuple = (182, 218, 182), amp: bool = False) -> None:
    """Seconds and peak memory from NIfTI to NIfTI for one 1 mm head, in a process of its own.

    Args:
        bundle: name of the bundle; its shipped weights are used.
        shape: voxels of the head.
        amp: network under autocast.
    """
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "make_head", folder, json.dumps(shape)], check=True)
        command = [sys.executable, __file__, "parts", bundle, folder, str(amp)]
        subprocess.run(command, check=True)
        start = time.perf_counter()
        root = ROOT / "bundles" / bundle
        run = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(root / "configs" / "inference.json")]
        options = ["--bundle_root", str(root), "--dataset_dir", folder, "--output_dir", f"{folder}/whole"]
        subprocess.run([*run, *options, "--amp", str(amp)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        print(f"whole command   {time.perf_counter() - start:6.2f} s")


def make_head(folder: str, shape: tuple) -> None:
    """One phantom patient on a 1 mm grid, skull-stripped FLAIR."""
    from common.cohort import write_subject
    from common.phantom import Grid, make_subject

    affine = np.eye(4)
    affine[:3, 3] = [-90, -126, -72]
    subject = make_subject(3, "ms", grid=Grid(tuple(shape), affine), sequences=("FLAIR",))
    write_subject(subject, folder, "sub-bench")


def parts(bundle: str, folder: str, amp: bool = False) -> None:
    """Time each part of inference.json on the one head in a folder; the same objects that the evaluator runs."""
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[part] = seconds.get(part, 0.0) + now - clock
        clock = now

    import torch

    from common.workflow import open_configs

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


def training(
    bundle: str = "uad_autoencoder", steps: int = 40, subjects: int = 6, amp: bool = False, num_workers: int = 0
) -> None:
    """Share of a training step that the data loader makes the network wait, on 1 mm phantoms.

    Args:
        bundle: name of the bundle; its train.json as it is.
        steps: measured steps, after five to warm up.
        subjects: phantoms in the training set.
        amp: network under autocast.
        num_workers: of the data loader.
    """
    import torch

    from common.cohort import make_cohort
    from common.workflow import open_configs

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        datalist = make_cohort(Path(folder) / "cohort", {"ms": (subjects, 1, 0)}, spacing=1.0, sequences=("FLAIR",))
        options = {"output_dir": f"{folder}/out", "ckpt_dir": f"{folder}/models", "num_workers": num_workers}
        workflow = open_configs(ROOT / "bundles" / bundle, "train", datalist_file=datalist, amp=amp, **options)
        trainer, loader, network, optimizer, loss = (
            workflow.parser.get_parsed_content(name)
            for name in ("train#trainer", "train#dataloader", "network", "optimizer", "loss")
        )
        network.train()
        waited, worked, done = 0.0, 0.0, -5
        while done < steps:
            batches = iter(loader)
            while done < steps:
                start = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    break
                middle = time.perf_counter()
                image, target = trainer.prepare_batch(batch, trainer.state.device)
                prediction = trainer.inferer(image.to(memory_format=torch.channels_last), network)
                optimizer.zero_grad()
                loss(prediction, target).backward()
                optimizer.step()
                if done >= 0:
                    waited += middle - start
                    worked += time.perf_counter() - middle
                done += 1
    print(f"step {worked / steps * 1000:.0f} ms, waiting for data {waited / steps * 1000:.0f} ms")
    print(f"waiting is {waited / (waited + worked):.1%} of the time")


if __name__ == "__main__":
    install_error_hook()
    if len(sys.argv) > 2 and not (ROOT / "bundles" / sys.argv[2]).is_dir() and sys.argv[1] in ("inference", "training"):
        raise InputError(f"{sys.argv[2]} is no bundle, expected a folder in bundles/")
    fire.Fire({"inference": inference, "training": training, "make_head": make_head, "parts": parts})
