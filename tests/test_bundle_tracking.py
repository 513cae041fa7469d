"""Trainings and evaluations of every bundle under MONAI's tracking: what MLflow has afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from bundle_tools import BUNDLES, ROOT, config_files, parsed, read_json
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from catalog import descriptions
from common.data import write_datalist
from phantom.cohort import make_cohort
from running.workflow import run_configs

SETTINGS = ROOT / "docs" / "tracking_server.json"
COARSE = {"spacing": [4.0, 4.0, 4.0]}
AUTOENCODER = {"slice_size": [48, 48], "network_def#channels": [4, 8], "network_def#latent_channels": 4, **COARSE}
UNET = {"patch_size": [32, 32], "network_def#features": [4, 4, 8, 8, 8, 4], **COARSE}
SLICES = {"slice_size": [32, 32], **COARSE}
PAIRS = {"spacing": [8.0, 8.0, 8.0], "shape": [24, 24, 24], "correlation_window": 3}
ACE = {"spacing": [6.0, 6.0, 6.0], "network_def#channels": [4, 8], "patch_size": [24, 24, 24], "volumes_per_epoch": 2}
PATCHES = {"patch_size": [32, 32, 32], "patches_per_volume": 1, **COARSE}
# bundle and configs, as on a command line -> cases, and options that make a small training of it
TRAININGS = {
    "uad_autoencoder train_autoencoder": ("healthy", AUTOENCODER),
    "uad_autoencoder train": ("lesions", UNET),
    "diffusion_recon_unet train_diffusion": ("healthy", SLICES),
    "diffusion_recon_unet train_diffusion train_diffusion_light": ("healthy", SLICES),
    "diffusion_recon_unet train_diffusion train_diffusion_flair": ("healthy", SLICES),
    "diffusion_recon_unet train": ("lesions", {"noise_levels": [249], **SLICES}),
    "diffusion_recon_unet train train_light": ("lesions", SLICES),
    "diffusion_recon_unet train train_flair": (
        "lesions",
        {"noise_levels": [249], "diffusion_weights": f"{ROOT}/bundles/diffusion_recon_unet/models/model.pt", **SLICES},
    ),
    "diffusion_recon_unet train train_without_residual": ("lesions", {"noise_levels": [249], **SLICES}),
    "deepatlas_joint train": ("healthy", {"registration_steps": 2, "segmentation_steps": 1, **PAIRS}),
    "deepatlas_joint train train_registration": ("healthy", {"registration_steps": 2, **PAIRS}),
    "deepatlas_joint train train_segmentation": (
        "healthy",
        {
            "segmentation_steps": 1,
            "registration_weights": f"{ROOT}/bundles/deepatlas_joint/models/registration.pt",
            **PAIRS,
        },
    ),
    "deepatlas_joint train train_segmentation train_fine": (
        "healthy",
        {
            "segmentation_steps": 1,
            "segmentation_weights": f"{ROOT}/bundles/deepatlas_joint/models/model.pt",
            **PAIRS,
        },
    ),
    "ace_multitask train": ("both", ACE),
    "ace_multitask train train_single": ("both", ACE),
    "sae_segmentation train": ("healthy", PATCHES),
    "sae_segmentation train adapt": ("healthy", PATCHES),
}
EVALUATIONS = {
    "uad_autoencoder inference evaluate": ("lesions", COARSE),
    "diffusion_recon_unet inference evaluate": ("lesions", {"noise_levels": [249], **COARSE}),
    "deepatlas_joint inference evaluate": ("healthy", {"spacing": [4.0, 4.0, 4.0], "shape": [48, 48, 48]}),
    "ace_multitask inference evaluate": ("both", COARSE),
    "sae_segmentation inference evaluate": ("healthy", COARSE),
}
for name, description in descriptions().items():  # of bundles that nobody has written a line for here
    kind = {"tissue": "healthy", "lesion": "lesions"}[description.methods[0].target]
    for config, options in description.small.items():
        TRAININGS.setdefault(f"{name} {config}", (kind, COARSE | options))
    EVALUATIONS.setdefault(f"{name} inference evaluate", (kind, COARSE))
SEQUENCES = {path.name: read_json(path / "configs" / "inference.json")["sequences"] for path in BUNDLES}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Folder of healthy phantoms and of patients, at 4 mm, and of weights that train_light.json begins with."""
    folder = tmp_path_factory.mktemp("phantoms")
    options = {"spacing": 4.0, "sequences": ("T1w", "FLAIR"), "num_workers": 1, "fine_mm": 2.0}
    make_cohort(folder / "healthy", {"healthy": (2, 2, 1)}, prefix="h", **options)
    make_cohort(folder / "lesions", {"ms": (1, 1, 1)}, prefix="p", **options)
    configs = ROOT / "bundles" / "diffusion_recon_unet" / "configs"
    stage1 = parsed([configs / "train_diffusion.json", configs / "train_diffusion_light.json"])
    torch.save(stage1.get_parsed_content("network_def").state_dict(), folder / "denoising.pt")
    return folder


def datalist(phantoms: Path, bundle: str, kind: str, folder: Path) -> Path:
    """Datalist of a bundle: patients with lesions, healthy ones with tissues, or both with their data set."""
    sections: dict[str, list] = {}
    for name, label, dataset in (("healthy", "tissues", "tissue"), ("lesions", "lesion", "lesion")):
        content = json.loads((phantoms / name / "datalist.json").read_text()) if kind in (name, "both") else {}
        for section in ("training", "validation", "test"):
            for case in content.get(section, []):
                images = [str(phantoms / name / case[s]) for s in SEQUENCES[bundle]]
                item = {"image": images if len(images) > 1 else images[0], "subject": case["subject"]}
                item |= {
                    key: str(phantoms / name / case[file]) for key, file in (("label", label), ("brain_mask",) * 2)
                }
                sections.setdefault(section, []).append(item | ({"dataset": dataset} if kind == "both" else {}))
    folder.mkdir(parents=True, exist_ok=True)
    return write_datalist(folder / "cases.json", sections)


def run_tracked(what: str, runs: dict, phantoms: Path, folder: Path, **tracking) -> None:
    """Run configs of a bundle with small options, under tracking."""
    bundle, *configs = what.split()
    kind, options = runs[what]
    cases = datalist(phantoms, bundle, kind, folder)
    options = options | {"datalist_file": str(cases), "output_dir": str(folder / "out"), "device": "cpu"}
    if "train_light" in configs:
        options["diffusion_weights"] = str(phantoms / "denoising.pt")
    run_configs(ROOT / "bundles" / bundle, configs, **options, **tracking)


def logged(uri: str, what: str, folder: Path) -> tuple:
    """The one run of the experiment ``what``, and the files of its artifacts."""
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(what).experiment_id])
    folder = Path(download_artifacts(run_id=run.info.run_id, tracking_uri=uri, dst_path=str(folder / "logged")))
    return run, {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def database(empty_store, tmp_path_factory) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('tracking'))}"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """Address of an MLflow server."""
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlruns.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with suppress(OSError), urlopen(f"{address}/health", timeout=5):
                break
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def check_training(run, files: dict[str, Path], models: Path) -> None:
    assert run.info.status == "FINISHED"
    assert {"seed", "max_epochs", "sequences", "datalist_file"} <= run.data.params.keys()
    assert run.data.params["max_epochs"] == "1"
    assert {"train_loss", "lr_group_0"} <= run.data.metrics.keys()
    assert [name for name in run.data.metrics if name.startswith("val_")] != []
    assert [name for name in files if name.startswith("config_")] != []
    assert [name for name in files if name.startswith("validation/") and name.endswith("epoch_0001.png")] != []
    assert "README.md" in files
    weights = {path.name: path.read_bytes() for path in models.glob("*.pt") if path.name != "state.pt"}
    assert {Path(name).name: path.read_bytes() for name, path in files.items() if "weights/" in name} == weights != {}


def check_evaluation(run, files: dict[str, Path], out: Path) -> None:
    assert run.info.status == "FINISHED"
    assert {"datalist_file", "sequences"} <= run.data.params.keys()
    report = json.loads((out / "metrics.json").read_text())
    means = {f"mean/{name}/{key}": m["mean"] for name, part in report["summary"].items() for key, m in part.items()}
    pooled = {f"pooled/{name}/{key}": value for name, part in report["pooled"].items() for key, value in part.items()}
    expected = {name: value for name, value in (means | pooled).items() if value is not None}
    assert {name: run.data.metrics[name] for name in expected} == pytest.approx(expected)
    assert len(expected) > 10
    assert {"README.md", "report.html", "metrics.csv", "metrics.json"} <= files.keys()
    assert files["report.html"].read_bytes() == (out / "report.html").read_bytes()
    assert [name for name in files if name.startswith("config_")] != []


def test_every_config_that_trains_or_evaluates_is_run_here():
    names = {f"{bundle.name} {path.stem}" for bundle in BUNDLES for path in config_files(bundle)}
    wanted = {name for name in names if name.split()[1].startswith(("train", "adapt", "evaluate"))}
    run = {f"{what.split()[0]} {config}" for what in [*TRAININGS, *EVALUATIONS] for config in what.split()[1:]}
    assert wanted - run == set()


@pytest.mark.parametrize("what", [*TRAININGS, *EVALUATIONS])
def test_a_run_is_tracked_in_a_local_store(what, phantoms, database, tmp_path):
    options = {"tracking": "mlflow", "tracking_uri": database, "experiment_name": what, "run_name": "first"}
    run_and_check(what, phantoms, tmp_path, database, options)


@pytest.mark.slow
@pytest.mark.parametrize("what", [*TRAININGS, *EVALUATIONS])
def test_a_run_is_tracked_on_a_server_by_a_settings_file(what, phantoms, server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # on a busy machine nothing is quick
    settings = tmp_path / "settings.json"
    text = SETTINGS.read_text(encoding="utf-8")
    for old, new in {"http://127.0.0.1:5000": server, '"lesions"': json.dumps(what)}.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    settings.write_text(text)
    run_and_check(what, phantoms, tmp_path, server, {"tracking": str(settings), "run_name": "first"})


def run_and_check(what: str, phantoms: Path, folder: Path, uri: str, options: dict) -> None:
    if what in TRAININGS:
        run_tracked(what, TRAININGS, phantoms, folder, ckpt_dir=str(folder / "models"), max_epochs=1, **options)
        check_training(*logged(uri, what, folder), folder / "models")
    else:
        run_tracked(what, EVALUATIONS, phantoms, folder, section="test", **options)
        check_evaluation(*logged(uri, what, folder), folder / "out")


@pytest.mark.parametrize("dead_server", ["refuses", "hangs"], indirect=True)
@pytest.mark.parametrize("settings", ["mlflow", str(SETTINGS)], ids=["mlflow", "file"])
def test_a_dead_server_costs_a_run_a_warning(settings, dead_server, phantoms, tmp_path, caplog):
    options = {"tracking": settings, "tracking_uri": dead_server}
    run_tracked("uad_autoencoder train", TRAININGS, phantoms, tmp_path, ckpt_dir=str(tmp_path), max_epochs=2, **options)
    assert (tmp_path / "model.pt").is_file()
    assert caplog.text.count("is given up") == 1
    run_tracked("uad_autoencoder inference evaluate", EVALUATIONS, phantoms, tmp_path, section="test", **options)
    assert (tmp_path / "out" / "report.html").is_file()
    assert caplog.text.count(f"tracking at {dead_server} is given up") == 2
