"""Where the time goes: ``python scripts/benchmark.py inference NAME`` or ``training NAME``.

``cohort NAME`` compares one process with several that share the scans. ``preparation`` says how good the brain
extraction and the registration of ``prepare_data.py`` are, on phantoms. Bundles add what they compare in their
``benchmark.py``; without arguments all of it is listed.

Machines are noisy: compare the parts of one run with each other, not runs of different days.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fire
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from catalog import BUNDLES, bundle_names, load, refuse_unknown
from common.errors import install_error_hook


def inference(bundle: str, shape: tuple = (182, 218, 182), amp: bool = False) -> None:
    """Seconds and peak memory from NIfTI to NIfTI for one 1 mm head, in a process of its own.

    Args:
        bundle: name of the bundle; its shipped weights are used.
        shape: voxels of the head.
        amp: network under autocast.
    """
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "make_head", bundle, folder, json.dumps(shape)], check=True)
        command = [sys.executable, __file__, "parts", bundle, folder, str(amp)]
        subprocess.run(command, check=True)
        start = time.perf_counter()
        root = ROOT / "bundles" / bundle
        run = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(root / "configs" / "inference.json")]
        options = ["--bundle_root", str(root), "--dataset_dir", folder, "--output_dir", f"{folder}/whole"]
        subprocess.run([*run, *options, "--amp", str(amp)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        print(f"whole command   {time.perf_counter() - start:6.2f} s")


def cohort(bundle: str, subjects: int = 8, processes: int = 2, spacing: float = 1.0) -> None:
    """Seconds for a cohort of phantoms, from the command to its end: one process, then several that share the scans.

    Args:
        bundle: name of the bundle; its shipped weights are used.
        subjects: of the cohort.
        processes: of ``torchrun``; the cores of the machine are divided among them.
        spacing: of the scans, mm.
    """
    from phantom.cohort import make_cohort

    cores = len(os.sched_getaffinity(0))
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        datalist = make_cohort(
            f"{folder}/cohort", {"ms": (subjects, 0, 0)}, spacing=spacing, sequences=_sequences(bundle)
        )
        for number in (1, processes):
            layers = ["inference.json", *(["multi_gpu_inference.json"] if number > 1 else [])]
            configs = str([f"bundles/{bundle}/configs/{name}" for name in layers])
            launcher = (
                ["torch.distributed.run", "--standalone", f"--nproc_per_node={number}", "-m"] if number > 1 else []
            )
            command = [sys.executable, "-m", *launcher, "monai.bundle", "run", "--config_file", configs]
            command += ["--datalist_file", str(datalist), "--output_dir", f"{folder}/{number}"]
            threads = os.environ | {"OMP_NUM_THREADS": str(max(cores // number, 1))}
            start = time.perf_counter()
            subprocess.run(command, check=True, cwd=ROOT, env=threads, stdout=subprocess.DEVNULL)
            seconds[number] = time.perf_counter() - start
            each = f"{number} process(es) of {threads['OMP_NUM_THREADS']} thread(s)"
            print(f"{each}: {seconds[number]:.1f} s for {subjects} scans")
    print(f"{seconds[1] / seconds[processes]:.2f} times as fast")


def preparation(seeds: tuple = (1, 2, 3), scanners: tuple = ("A", "mixed"), spacing: float = 2.0) -> None:
    """How well brains are found in phantom heads with scalp, each sequence alone, and how long it takes.

    Dice with the true mask of the template's brain after the affine map, and of the mask that is written; mean distance
    in the brain of the affine map to the template from the one nearest to the true, bent one.

    Args:
        seeds: of the phantoms.
        scanners: of them.
        spacing: voxel size of the heads, mm.
    """
    import nibabel as nib

    from phantom import SEQUENCES, Grid, make_subject
    from preparation import Settings, prepare_case, read_record
    from preparation.registration import require_simpleitk, template, template_to_scan
    from preparation.volume import Volume

    require_simpleitk()
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = [-100, -140, -110]
    grid = Grid(tuple(int(mm / spacing) for mm in (200, 240, 220)), affine)
    print("scanner seed sequence  Dice affine  Dice mask  map, mm  seconds")
    for scanner, seed in ((scanner, seed) for scanner in scanners for seed in seeds):
        head = make_subject(seed, scanner=scanner, grid=grid, scalp=True, fine_mm=spacing)
        inside = np.argwhere(head.brain_mask)
        world = np.c_[nib.affines.apply_affine(affine, inside), np.ones(len(inside))]
        bent = world[:, :3] + head.displacement[tuple(inside.T)]
        true = world @ np.linalg.lstsq(world, bent, rcond=None)[0]
        for sequence in SEQUENCES:
            scan = Volume(1000 * head.images[sequence], affine)
            to_template = np.linalg.inv(template_to_scan(scan))
            plain = template()[1].on_grid(grid.shape, affine, to_template).values > 0.5
            with tempfile.TemporaryDirectory() as folder:
                nib.save(nib.Nifti1Image(scan.values.astype(np.float32), affine), f"{folder}/raw.nii.gz")
                start = time.perf_counter()
                path = prepare_case({"image": f"{folder}/raw.nii.gz", "name": "x"}, folder, Settings((sequence,)))
                seconds = time.perf_counter() - start
                record = read_record(path)
                mask = np.asarray(nib.load(path.parent / record["item"]["brain_mask"]).dataobj) > 0
            dice = [2 * (m & (head.brain_mask > 0)).sum() / (m.sum() + len(inside)) for m in (plain, mask)]
            off = np.linalg.norm(world @ np.array(record["to_template"])[:3].T - true, axis=1).mean()
            print(
                f"{scanner:7s} {seed:4d} {sequence:8s}  {dice[0]:11.3f}  {dice[1]:9.3f}  {off:7.2f}  {seconds:7.0f}",
                flush=True,
            )


def make_head(bundle: str, folder: str, shape: tuple) -> None:
    """One phantom patient on a 1 mm grid, skull-stripped, with the sequences of the bundle."""
    from phantom import Grid, make_subject
    from phantom.cohort import write_subject

    affine = np.eye(4)
    affine[:3, 3] = [-90, -126, -72]
    subject = make_subject(3, "ms", grid=Grid(tuple(shape), affine), sequences=_sequences(bundle))
    write_subject(subject, folder, "sub-bench")


def _sequences(bundle: str) -> tuple[str, ...]:
    config = ROOT / "bundles" / bundle / "configs" / "inference.json"
    return tuple(json.loads(config.read_text(encoding="utf-8"))["sequences"])


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


def training(
    bundle: str,
    steps: int = 40,
    subjects: int = 6,
    amp: bool = False,
    num_workers: int = 0,
    **overrides: object,
) -> None:
    """Time of a training step, the share of it that the data loader makes the network wait, and peak memory.

    On 1 mm phantoms, cached. The first steps of an epoch are measured.

    Args:
        bundle: name of the bundle; its train.json as it is.
        steps: measured steps, after five to warm up.
        subjects: phantoms in the training set.
        amp: network under autocast.
        num_workers: of the data loader.
        overrides: further entries of train.json to replace.
    """
    from common.data import list_cases, write_datalist
    from phantom.cohort import make_cohort
    from planning.cost import peak_memory_gib, time_steps
    from running.workflow import open_configs

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        groups = {"ms": (subjects, 2, 0)}
        sequences = _sequences(bundle)
        cohort = make_cohort(Path(folder) / "cohort", groups, spacing=1.0, sequences=sequences)
        config = (ROOT / "bundles" / bundle / "configs" / "train.json").read_text(encoding="utf-8")
        labels = "tissues" if "label_sets" in json.loads(config) else "label"
        sections = {
            section: [
                {"image": [case[sequence] for sequence in sequences], "label": case[labels], "dataset": "joint"}
                | {key: case[key] for key in ("brain_mask", "subject")}
                for case in list_cases(datalist_file=cohort, sequences=sequences[:1], section=section)
            ]
            for section in ("training", "validation")
        }
        datalist = write_datalist(Path(folder) / "cases.json", sections)
        options = {
            "output_dir": f"{folder}/out",
            "ckpt_dir": f"{folder}/models",
            "num_workers": num_workers,
            "amp": amp,
        }
        options |= {"datalist_file": datalist, **overrides}
        workflow = open_configs(ROOT / "bundles" / bundle, "train", **options)
        trainer, loader = (workflow.parser.get_parsed_content(f"train#{name}") for name in ("trainer", "dataloader"))
        workflow.parser.get_parsed_content("network").train()
        step = time_steps(trainer, loader, steps, warmup=5)
    print(f"step {step.working * 1000:.0f} ms, waiting for data {step.waiting * 1000:.0f} ms")
    print(f"waiting is {step.waiting / sum(step):.1%} of the time")
    print(f"peak memory {peak_memory_gib():.2f} GiB")


def of_bundles() -> list[Callable[..., None]]:
    """What bundles bring themselves: ``COMMANDS`` of their ``benchmark.py``."""
    found = []
    for name in bundle_names():
        if (BUNDLES / name / "benchmark.py").is_file():
            sys.path.insert(1, str(BUNDLES / name))
            found += load(name, "benchmark").COMMANDS
    return found


if __name__ == "__main__":
    install_error_hook()
    if len(sys.argv) > 2 and sys.argv[1] in ("inference", "training", "cohort"):
        refuse_unknown([sys.argv[2]])
    commands = {command.__name__: command for command in (inference, cohort, preparation, training, make_head, parts)}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        commands |= {command.__name__: command for command in of_bundles()}
    fire.Fire(commands)
