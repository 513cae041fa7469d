"""Trainings and cohorts under ``torchrun``: what several processes do together is what one does alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import BUNDLES, ROOT, Finished, read_json, save_nifti
from test_bundle_input import truncated

from catalog import describe, descriptions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(bundle, monai_bundle) -> Callable[..., Finished]:
    """Runs configs of the bundle, or files, on the CPU, in one process or more."""

    def run_configs(*configs: str | Path, processes: int = 1, **options: object) -> Finished:
        options = {"bundle_root": f"bundles/{bundle.name}", "device": "cpu", **options}
        flags = [word for key, value in options.items() for word in (f"--{key}", value)]
        return monai_bundle("run", "--config_file", str(paths(bundle, *configs)), *flags, processes=processes)

    return run_configs


def paths(bundle: Path, *configs: str | Path) -> list[str]:
    shared = [path.stem for path in bundle.parent.glob("*.json")]
    folders = {name: "bundles" if name in shared else f"bundles/{bundle.name}/configs" for name in configs}
    return [str(name) if isinstance(name, Path) else f"{folders[name]}/{name}.json" for name in configs]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def three_cases(cohort: Path) -> dict[str, list]:
    sections = json.loads(cohort.read_text())
    return {"test": [*sections["test"], sections["validation"][0]]}


def test_a_cohort_is_shared_by_two_processes_and_has_one_report(run, cohort, tmp_path):
    datalist = cohort.with_name("three.json")
    datalist.write_text(json.dumps(three_cases(cohort)))
    alone, both = tmp_path / "alone", tmp_path / "both"
    done = run("inference", "evaluate", datalist_file=datalist, output_dir=alone)
    assert done.code == 0, done.output[-3000:]
    configs = ("inference", "evaluate", "multi_gpu_inference")
    done = run(*configs, datalist_file=datalist, output_dir=both, processes=2)
    assert done.code == 0, done.output[-3000:]

    # disjoint shares of two and one, one report
    for line in ("case 1 of 2 done", "case 2 of 2 done", "case 1 of 1 done", "report: "):
        assert done.output.count(line) == 1, done.output[-3000:]
    assert files(both) == files(alone)
    for name in files(alone):
        if name.endswith(".nii.gz"):
            expected, found = (np.asarray(nib.load(folder / name).dataobj) for folder in (alone, both))
            np.testing.assert_array_equal(found, expected)
    assert (both / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b.name == "uad_autoencoder"], indirect=True)
def test_results_without_labels_have_one_table_and_one_page(run, cohort, tmp_path):
    datalist = tmp_path / "cases.json"
    datalist.write_text(json.dumps(three_cases(cohort)))
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert run("inference", datalist_file=datalist, output_dir=alone).code == 0
    for _ in range(2):  # what is there is of the same origin, whichever process looks
        done = run("inference", "multi_gpu_inference", datalist_file=datalist, output_dir=both, processes=2)
        assert done.code == 0, done.output[-3000:]
    assert files(both) == files(alone)
    for name in ("volumes.tsv", "report.html"):
        assert (both / name).read_bytes() == (alone / name).read_bytes()
    done = run(*("inference", "multi_gpu_inference"), datalist_file=datalist, output_dir=both, processes=2, spacing=3.5)
    assert done.code != 0
    assert len({line for line in done.errors if "in another way: spacing is [3.5, 3.5, 3.5]" in line}) == 1


def test_a_case_that_fails_in_one_process_is_in_the_report_of_all(run, cohort, tmp_path):
    cases = three_cases(cohort)
    broken = tmp_path / "broken.nii.gz"
    images = np.atleast_1d(cases["test"][1]["image"]).tolist()
    broken.write_bytes(Path(images[0]).read_bytes())
    truncated(broken)
    cases["test"][1]["image"] = [str(broken), *images[1:]] if len(images) > 1 else str(broken)
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = run(
        *("inference", "evaluate", "multi_gpu_inference"),
        processes=2,
        datalist_file=tmp_path / "cases.json",
        output_dir=tmp_path / "out",
        keep_going=True,
    )
    assert done.code != 0
    assert {line.startswith("error: 1 of 3 cases failed: ") for line in done.errors} == {True}, done.output[-3000:]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len({row["name"] for row in metrics["cases"]}) == 2
    assert list(metrics["failures"]) == ["broken"]


def test_more_processes_than_cases_are_refused(run, cohort, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"test": three_cases(cohort)["test"][:1]}))
    done = run(
        "inference", "multi_gpu_inference", processes=2, datalist_file=tmp_path / "one.json", output_dir=tmp_path
    )
    assert done.code != 0
    assert "there are 1 cases for 2 processes, expected one or more for each" in done.errors[0]


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b.name == "deepatlas_joint"], indirect=True)
def test_pairs_to_register_are_shared_and_have_one_table(run, cohort, tmp_path):
    cases = three_cases(cohort)["test"]
    moving = json.loads(cohort.read_text())["training"][0]["image"]
    (tmp_path / "cases.json").write_text(json.dumps([{"image": case["image"]} for case in cases]))
    options = {"datalist_file": tmp_path / "cases.json", "moving_file": moving, "pictures": False}
    tables = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        layers = ["multi_gpu_inference"][: processes - 1]
        done = run("inference_registration", *layers, processes=processes, output_dir=out, **options)
        assert done.code == 0, done.output[-3000:]
        tables.append((out / "registration.csv").read_text().splitlines())
    assert len(tables[0]) == 1 + len(cases)
    assert tables[1] == tables[0]


# every training of a complete config, with settings small enough for a test
TRAININGS = {
    (name, config): {"spacing": [2.0, 2.0, 2.0], **options}
    for name, description in descriptions().items()
    for config, options in description.small.items()
}


def test_every_bundle_is_trained_here():
    assert {name for name, _ in TRAININGS} == {path.name for path in BUNDLES}


@pytest.fixture(scope="module")
def four_and_two(bundle, cohort) -> Path:
    """Datalist of four cases to train on and two to validate with."""
    sections = json.loads(cohort.read_text())
    training, validation = sections["training"] + sections["validation"], sections["test"]
    only_tissues = {method.target for method in describe(bundle.name).methods} == {"tissue"}
    for i, case in enumerate(training + validation):
        if "dataset" in case:  # one with three tissues, then one with lesions, and so on
            case["dataset"] = ("tissue", "lesion")[i % 2]
        if only_tissues or case.get("dataset") == "tissue":
            case["label"] = str(layers_of(Path(case["brain_mask"])))
    path = cohort.with_name("four_and_two.json")
    path.write_text(json.dumps({"training": training, "validation": validation}))
    return path


def layers_of(brain_mask: Path) -> Path:
    """A label map of three tissues in a brain: layers along the first axis."""
    image = nib.load(brain_mask)
    brain = np.asarray(image.dataobj)
    tissues = brain * (1 + np.arange(len(brain)) // 3 % 3)[:, None, None]
    return save_nifti(brain_mask.with_name(f"tissues_{brain_mask.name}"), tissues.astype(np.uint8), image.affine)


@pytest.mark.parametrize(
    ("bundle", "config"),
    [(path, config) for path in BUNDLES for name, config in TRAININGS if name == path.name],
    indirect=["bundle"],
    ids=lambda value: getattr(value, "name", value),
)
def test_two_processes_train_and_stop_and_one_goes_on(bundle, config, run, four_and_two, tmp_path):
    options = {
        **TRAININGS[bundle.name, config],
        "datalist_file": four_and_two,
        "ckpt_dir": tmp_path / "models",
        "output_dir": tmp_path / "run",
        "max_epochs": 2,
        "val_interval": 1,
    }
    done = run(config, "multi_gpu_train", processes=2, max_minutes=1e-6, **options)
    assert done.code == 0, done.output[-3000:]
    assert done.output.count("epoch 1 of 2: loss") == 1, done.output[-3000:]  # one process reports
    assert "stopping after epoch 1" in done.output
    assert list((tmp_path / "models").glob("*.pt"))
    done = run(config, **options)
    assert done.code == 0, done.output[-3000:]
    assert "epoch 1 of 2:" not in done.output
    assert done.output.count("epoch 2 of 2: loss") == 1, done.output[-3000:]


def without_chance(node: object) -> object:
    """Transforms of a config less the random ones; crops at random are cut from the center."""
    if isinstance(node, list):
        return [without_chance(child) for child in node if not is_random(child)]
    if isinstance(node, dict):
        if is_crop(node):
            keys, size = node["keys"], node.get("spatial_size", node.get("patch_size"))
            steps = [
                {"_target_": "ResizeWithPadOrCropd", "keys": keys, "spatial_size": size},
                {"_target_": "SelectItemsd", "keys": keys},
                {"_target_": "CastToTyped", "keys": keys, "dtype": "$torch.float32"},
            ]
            return {"_target_": "Compose", "transforms": steps}
        return {key: without_chance(child) for key, child in node.items()}
    return node


def is_random(node: object) -> bool:
    return isinstance(node, dict) and name_of(node).startswith("Rand") and not is_crop(node)


def is_crop(node: dict) -> bool:
    return name_of(node).startswith(("RandCrop", "RandZoomed"))


def name_of(node: dict) -> str:
    return str(node.get("_target_")).rpartition(".")[2]


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b.name == "uad_autoencoder"], indirect=True)
def test_two_processes_learn_what_one_learns_from_both_batches(bundle, run, four_and_two, tmp_path):
    """In the same order of cases, with nothing drawn, and without batch normalization, which sees one process only."""
    transforms = read_json(bundle / "configs" / "train.json")["train"]["preprocessing"]["transforms"]
    certain = tmp_path / "certain.json"
    certain.write_text(json.dumps({"train#preprocessing#transforms": without_chance(transforms)}))
    options = {
        **TRAININGS[bundle.name, "train"],
        "network_def#norm": "INSTANCE",
        "amp": False,
        "max_epochs": 3,
        "datalist_file": four_and_two,
    }
    states = []
    for processes, part in enumerate(("dataloader", "sampler"), start=1):
        folder = tmp_path / str(processes)
        done = run(
            *["train", "multi_gpu_train"][:processes],
            certain,
            processes=processes,
            output_dir=folder,
            ckpt_dir=folder / "models",
            batch_size=2 // processes,
            **{f"train#{part}#shuffle": False, **options},
        )
        assert done.code == 0, done.output[-3000:]
        states.append(torch.load(folder / "state.pt", weights_only=True))

    alone, both = states
    for key, expected in alone["objects"]["network"].items():
        if key.endswith("weight"):  # a bias before a normalization has no gradient but rounding errors
            assert (both["objects"]["network"][key] - expected).norm() < 1e-4 * expected.norm(), key
    # the metric is one of both validation cases, of which each process has one
    assert both["best"]["validator"] == pytest.approx(alone["best"]["validator"], rel=0.01)


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b.name == "uad_autoencoder"], indirect=True)
def test_a_killed_process_ends_the_training_with_an_error(bundle, four_and_two, tmp_path):
    """With ``torchrun`` itself: without it the other process would wait for ever."""
    options = {
        **TRAININGS[bundle.name, "train"],
        "bundle_root": f"bundles/{bundle.name}",
        "device": "cpu",
        "datalist_file": four_and_two,
        "output_dir": tmp_path,
        "ckpt_dir": tmp_path,
        "max_epochs": 100_000,
        "val_interval": 100_000,
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "monai.bundle",
    ]
    command += ["run", "--config_file", str(paths(bundle, "train", "multi_gpu_train"))]
    command += [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    log = tmp_path / "log.txt"
    with log.open("w") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as launcher:
        try:
            wait_for(lambda: "epoch 1 of" in log.read_text() or launcher.poll() is not None)
            workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            assert len(workers) == 2, log.read_text()[-3000:]
            os.kill(int(workers[1]), signal.SIGKILL)
            assert launcher.wait(60) != 0
        finally:
            launcher.terminate()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.2)


# pairs of processes that train one step and end, with Python's lock given up by nobody who is not asked to wait
PAIRS = """
import os, sys, torch, torch.distributed as dist
from common.engines import leave_group

def train(rank, store):
    sys.setswitchinterval(10)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    network(torch.ones(2, 4)).sum().backward()
    dist.all_reduce(torch.ones(1000))
    leave_group()
    return network  # kept, as by a config

for i in range(4):
    processes = [os.fork(), 0]
    if processes[0]:
        processes[1] = os.fork()
    if 0 in processes:
        network = train(processes.index(0), sys.argv[1] + str(i))
        sys.exit()
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    assert codes == [0, 0], codes
"""


def test_processes_end_without_an_abort(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", PAIRS, tmp_path / "store"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
