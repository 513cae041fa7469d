"""Where the time goes: ``python scripts/benchmark.py inference uad_autoencoder`` or ``training uad_autoencoder``.

``ace_loss`` compares the losses of ``ace_multitask`` with plain cross entropy + Dice, ``sae_field`` the training step
of ``sae_segmentation`` with its Markov random field and without, ``anatomy`` the loss of ``deepatlas_joint`` that warps
every class with the plain way to write it. ``cohort uad_autoencoder`` compares one process with several that share the
scans. ``preparation`` says how good the brain extraction and the registration of ``prepare_data.py`` are, on phantoms.

Machines are noisy: compare the parts of one run with each other, not runs of different days.
"""

from __future__ import annotations

import functools
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

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.options import types as t
from running.command_line import Bundle, run_command


def inference(bundle: Bundle = "uad_autoencoder", shape: t.Counts = (182, 218, 182), amp: bool = False) -> None:
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


def cohort(bundle: Bundle = "uad_autoencoder", subjects: int = 8, processes: int = 2, spacing: float = 1.0) -> None:
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


def preparation(seeds: t.Seeds = (1, 2, 3), scanners: t.Names = ("A", "mixed"), spacing: float = 2.0) -> None:
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


def make_head(bundle: Bundle, folder: str, shape: tuple) -> None:
    """One phantom patient on a 1 mm grid, skull-stripped, with the sequences of the bundle."""
    from phantom import Grid, make_subject
    from phantom.cohort import write_subject

    affine = np.eye(4)
    affine[:3, 3] = [-90, -126, -72]
    subject = make_subject(3, "ms", grid=Grid(tuple(shape), affine), sequences=_sequences(bundle))
    write_subject(subject, folder, "sub-bench")


def _sequences(bundle: Bundle) -> tuple[str, ...]:
    config = ROOT / "bundles" / bundle / "configs" / "inference.json"
    return tuple(json.loads(config.read_text(encoding="utf-8"))["sequences"])


def parts(bundle: Bundle, folder: str, amp: bool = False) -> None:
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
    bundle: Bundle = "uad_autoencoder",
    steps: int = 40,
    subjects: int = 6,
    amp: bool = False,
    num_workers: int = 0,
    **overrides: object,
) -> None:
    """Time of a training step, the share of it that the data loader makes the network wait, and peak memory.

    On 1 mm phantoms, cached. The first steps of an epoch are measured: those of registration in ``deepatlas_joint``,
    with ``--registration_steps 0`` those of segmentation.

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


def ace_loss(shape: t.Counts = (96, 96, 96), batch: int = 2, repeats: int = 9, device: str = "cpu") -> None:
    """Time and memory, forward and backward, of the losses of ace_multitask beside MONAI's DiceCELoss.

    The losses take turns, so that other work on the machine hits all of them. Peak memory is that of a process of its
    own, above what it holds with logits and labels.

    Args:
        shape: voxels of a patch; five classes.
        batch: patches.
        repeats: of each loss, after one to warm up.
        device: ``cpu`` or ``cuda``.
    """

    losses = _losses()
    peak = {}
    for name in losses:  # before this process grows: a child counts from its parent's size
        command = [sys.executable, __file__, "loss_peak", name, json.dumps(shape), str(batch), device]
        peak[name] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    arguments = {name: _loss_arguments(name, shape, batch, device) for name in losses}

    def forward_and_backward(name: str) -> None:
        logits, labels = arguments[name]
        logits.grad = None
        losses[name].to(device)(logits, labels).backward()

    seconds = _take_turns({name: functools.partial(forward_and_backward, name) for name in losses}, repeats, device)
    kept = {name: _kept_for_backward(loss, *arguments[name]) for name, loss in losses.items()}
    plain = next(iter(losses))
    print(f"{'':12s}{'median':>9s}{'least':>9s}{'ratio':>7s}{'kept':>10s}{'ratio':>7s}{'peak':>10s}{'ratio':>7s}")
    for name, values in seconds.items():
        ratio = np.median(np.divide(values, seconds[plain]))
        print(
            f"{name:12s}{np.median(values) * 1000:6.0f} ms{min(values) * 1000:6.0f} ms{ratio:7.2f}"
            f"{kept[name]:6.0f} MiB{kept[name] / kept[plain]:7.2f}{peak[name]:6.0f} MiB{peak[name] / peak[plain]:7.2f}"
        )


def loss_peak(name: str, shape: t.Counts, batch: int, device: str) -> None:
    """Print the MiB that one forward and backward of a loss takes above its arguments."""

    loss = _losses()[name].to(device)
    loss(*_loss_arguments(name, (8, 8, 8), batch, device)).backward()  # what is loaded at first use
    logits, labels = _loss_arguments(name, shape, batch, device)
    _print_peak(lambda: loss(logits, labels).backward(), device)


def sae_field(
    shape: t.Counts = (64, 64, 64), batch: int = 2, classes: int = 4, repeats: int = 9, device: str = "cpu"
) -> None:
    """Time and memory of a training step of sae_segmentation with the Markov random field and without.

    The two take turns, so that other work on the machine hits both. Peak memory is that of a process of its own, above
    what it holds before the step.

    Args:
        shape: voxels of a patch.
        batch: patches.
        classes: background included.
        repeats: of each, after one to warm up.
        device: ``cpu`` or ``cuda``.
    """

    betas = {"without field": 0.0, "with field": 0.005}
    peak = {}
    for name, beta in betas.items():
        command = [sys.executable, __file__, "sae_peak", json.dumps(shape), str(batch), str(classes), str(beta), device]
        peak[name] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    steps = {name: _sae_step(shape, batch, classes, beta, device) for name, beta in betas.items()}
    seconds = _take_turns(steps, repeats, device)
    plain = next(iter(betas))
    print(f"{'':14s}{'median':>9s}{'least':>9s}{'ratio':>7s}{'peak':>10s}{'ratio':>7s}")
    for name, values in seconds.items():
        ratio = np.median(np.divide(values, seconds[plain]))
        print(
            f"{name:14s}{np.median(values) * 1000:6.0f} ms{min(values) * 1000:6.0f} ms{ratio:7.2f}"
            f"{peak[name]:6.0f} MiB{peak[name] / peak[plain]:7.2f}"
        )


def sae_peak(shape: t.Counts, batch: int, classes: int, beta: float, device: str) -> None:
    """Print the MiB that two training steps take above their network and input."""

    _sae_step((16, 16, 16), batch, classes, beta, device)()  # what is loaded at first use
    step = _sae_step(shape, batch, classes, beta, device)
    _print_peak(lambda: [step(), step()], device)


def _sae_step(shape: t.Counts, batch: int, classes: int, beta: float, device: str) -> Callable[[], None]:
    """One step of sae_segmentation on random scans, past the warm-up, as a function without arguments."""
    sys.path.insert(0, str(ROOT / "bundles" / "sae_segmentation"))
    import torch

    from sae_segmentation.loss import EvidenceLowerBound
    from sae_segmentation.network import ImageDecoder, SegmentationAutoencoder, SegmentationEncoder

    torch.manual_seed(0)
    prior = torch.rand(batch, classes, *shape).softmax(1)
    scan = torch.cat([torch.rand(batch, 1, *shape), prior], 1).to(device)
    network = SegmentationAutoencoder(SegmentationEncoder(classes), ImageDecoder(classes)).to(device)
    table = torch.randn(classes, classes).tolist() if beta > 0 else None
    loss = EvidenceLowerBound(classes, table, beta, warmup=0).to(device)  # as in train.json
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss(network(scan), scan).backward()
        optimizer.step()

    return step


def anatomy(
    shape: t.Counts = (96, 96, 96), classes: int = 32, known: bool = False, repeats: int = 5, device: str = "cpu"
) -> None:
    """Time and memory of forward and backward of the anatomy loss of deepatlas_joint, and of the plain way.

    The plain way warps all classes at once and gives autograd the rest. Peak memory is that of a process of its own,
    above the arguments.

    Args:
        shape: voxels of the volume.
        classes: background included.
        known: label maps for both images; else the moving one is predicted, as probabilities in float16.
        repeats: of each, after one to warm up.
        device: ``cpu`` or ``cuda``.
    """
    names = ("plain", "ours")
    peak = {}
    for name in names:
        command = [sys.executable, __file__, "anatomy_peak", name, json.dumps(shape), str(classes), str(known), device]
        peak[name] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    seconds = _take_turns({name: _anatomy_step(name, shape, classes, known, device) for name in names}, repeats, device)
    print(f"{'':8s}{'median':>9s}{'ratio':>7s}{'peak':>10s}{'ratio':>7s}")
    for name, values in seconds.items():
        ratio = np.median(np.divide(values, seconds["plain"]))
        median = 1000 * np.median(values)
        print(f"{name:8s}{median:6.0f} ms{ratio:7.2f}{peak[name]:6.0f} MiB{peak[name] / peak['plain']:7.2f}")


def anatomy_peak(name: str, shape: t.Counts, classes: int, known: bool, device: str) -> None:
    """Print the MiB that one forward and backward takes above its arguments."""

    _anatomy_step(name, (8, 8, 8), classes, known, device)()  # what is loaded at first use
    step = _anatomy_step(name, shape, classes, known, device)
    _print_peak(step, device)


def _anatomy_step(name: str, shape: t.Counts, classes: int, known: bool, device: str) -> Callable[[], None]:
    """Forward and backward to the displacement, on random anatomies, as a function without arguments."""
    sys.path.insert(0, str(ROOT / "bundles" / "deepatlas_joint"))
    import torch
    from torch.nn.functional import one_hot

    from common.geometry import warp
    from deepatlas_joint.loss import anatomy_loss, dice_loss

    torch.manual_seed(0)
    labels = [torch.randint(0, classes, (1, 1, *shape), dtype=torch.uint8, device=device) for _ in range(2)]
    if not known:
        labels[0] = torch.cat([torch.rand(1, 1, *shape, device=device).half() for _ in range(classes)], dim=1)
    field = torch.rand(1, 3, *shape, device=device).requires_grad_()

    def plain() -> torch.Tensor:
        moving, fixed = (
            x.float() if x.is_floating_point() else one_hot(x[:, 0].long(), classes).movedim(-1, 1).float()
            for x in labels
        )
        warped, axes = warp(moving, field, padding="zeros"), (2, 3, 4)
        return dice_loss((warped * fixed).sum(axes), warped.sum(axes), fixed.sum(axes))

    def step() -> None:
        field.grad = None
        (plain() if name == "plain" else anatomy_loss(labels[0], field, labels[1], classes)).backward()

    return step


def _print_peak(work: Callable[[], object], device: str) -> None:
    """Print the MiB that some work takes above what is held before it."""
    import torch

    if device == "cpu":
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
    else:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)


def _take_turns(work: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each repeat of each work, one after the other in turn, after one to warm up."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _losses() -> dict:
    """The plain loss and those of ace_multitask, for five classes of two data sets."""
    sys.path.insert(0, str(ROOT / "bundles" / "ace_multitask"))
    from monai.losses import DiceCELoss

    from ace_multitask.label_sets import LabelSets
    from ace_multitask.loss import OBJECTIVES, make_loss

    tissue = {"labels": {"1": "CSF", "2": "GM", "3": "WM"}, "background_is_complete": True}
    datasets = {"tissue": tissue, "lesion": {"labels": {"1": "lesion"}}}
    table = LabelSets(["background", "CSF", "GM", "WM", "lesion"], datasets)
    plain = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    return {"DiceCELoss": plain, **{objective: make_loss(objective, table) for objective in OBJECTIVES}}


def _loss_arguments(name: str, shape: t.Counts, batch: int, device: str) -> tuple:
    """Random logits; random labels, of full tables for the plain loss, else in turn of the two data sets."""
    import torch

    torch.manual_seed(0)
    logits = torch.randn(batch, 5, *shape, device=device, requires_grad=True)
    if name == "DiceCELoss":
        return logits, torch.randint(0, 5, (batch, 1, *shape), device=device)
    codes = [torch.randint(*((1, 5) if i % 2 == 0 else (5, 7)), (1, 1, *shape), device=device) for i in range(batch)]
    return logits, torch.cat(codes).to(torch.uint8)


def _kept_for_backward(loss, logits, labels) -> float:
    """MiB of all tensors that autograd keeps between forward and backward, each counted once."""
    import torch

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss(logits, labels)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(sizes.values()) / 2**20


if __name__ == "__main__":
    commands = (
        inference,
        cohort,
        preparation,
        training,
        ace_loss,
        sae_field,
        anatomy,
        make_head,
        parts,
        loss_peak,
        sae_peak,
        anatomy_peak,
    )
    run_command({command.__name__: command for command in commands})
