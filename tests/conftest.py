"""Fixtures of several test files, and the import paths of every bundle."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # test files side by side: before PyTorch, here and in commands, is loaded
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from bundle_tools import (
    BUNDLES,
    NOT_COPIED,
    ROOT,
    SMALL,
    Finished,
    datasets,
    make_head,
    parsed,
    save_case,
    save_nifti,
)

sys.path += [str(path) for path in BUNDLES]
os.fsync = lambda descriptor: None  # no test lasts to the next power cut, and each file would wait for the disk


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, files with slow tests come first: no process is left alone with one of them at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A command that runs in this process leaves no handler behind: its stream is closed when the test is over."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    """Folder of one bundle in the repository."""
    return request.param


@pytest.fixture(scope="session")
def monai_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Finished]]:
    """``python -m monai.bundle ...`` from the root of the repository, without importing MONAI each time."""
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("command_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    output = tmp_path_factory.mktemp("commands") / "output.txt"

    def run(*arguments: object, cwd: Path = ROOT, processes: int = 1) -> Finished:
        job = {"arguments": [str(a) for a in arguments], "cwd": str(cwd), "output": str(output)}
        job["environments"] = ranks(processes) if processes > 1 else [{}]
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return Finished(int(server.stdout.readline()), output.read_text(errors="replace"))

    yield run
    server.stdin.close()
    server.wait(timeout=300)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Database of MLflow without an experiment; making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlruns.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """Address of an MLflow store of this test's own."""
    (tmp_path / "tracking").mkdir()
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'tracking')}"


@pytest.fixture
def dead_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address where nobody answers: the parameter "refuses" is a closed port, "hangs" one that lets everyone wait."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if request.param == "refuses":
            server.close()
        yield address


def ranks(processes: int) -> list[dict[str, str]]:
    """What ``torchrun`` tells each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


@pytest.fixture(scope="session")
def random_bundles(tmp_path_factory) -> Path:
    """The bundles with weights at random: what is tested with them does not hang on what they learned."""
    import torch

    from common.engines import LoadWeights
    from comparison import find_methods

    folder = tmp_path_factory.mktemp("bundles")
    for bundle in BUNDLES:
        shutil.copytree(bundle, folder / bundle.name, ignore=NOT_COPIED)
    for method in find_methods().values():
        configs = [
            folder / method.bundle / "configs" / f"{name}.json" for name in ("inference", *method.inference.layers)
        ]
        config = parsed(configs, bundle_root=str(folder / method.bundle))
        for i in range(len(config["handlers"])):
            torch.manual_seed(0)
            handler = config.get_parsed_content(f"handlers::{i}")
            if isinstance(handler, LoadWeights):
                torch.save(handler.network.state_dict(), handler.path)
    return folder


@pytest.fixture(scope="module")
def infer(bundle, monai_bundle) -> Callable[..., Finished]:
    """Runs ``inference.json`` of the bundle, from the root of the repository, on the CPU."""

    def run(output_dir: Path, bundle_root: Path | None = None, **options: object) -> Finished:
        root = bundle_root or bundle.relative_to(ROOT)
        options = {"bundle_root": root, "output_dir": output_dir, "device": "cpu", **options}
        flags = [word for key, value in options.items() for word in (f"--{key}", value)]
        return monai_bundle("run", "--config_file", f"bundles/{bundle.name}/configs/inference.json", *flags)

    return run


@pytest.fixture(scope="module")
def cohort(bundle, tmp_path_factory) -> Path:
    """Datalist of six labeled subjects in three sections."""
    folder = tmp_path_factory.mktemp("cohort")
    cases = []
    for i in range(6):
        made = make_head(i, shape=SMALL)
        image = save_case(bundle, folder / f"sub-{i}_FLAIR.nii.gz", seed=i, shape=SMALL)
        case = {"image": image, "subject": f"sub-{i}"}
        names = datasets(bundle)
        if names:
            case["dataset"] = names[i % len(names)]
        for key in ("label", "brain_mask"):
            array = made.label if key == "label" else made.brain
            case[key] = str(save_nifti(folder / f"sub-{i}_{key}.nii.gz", array, made.affine))
        cases.append(case)
    sections = {"training": cases[:2], "validation": cases[2:4], "test": cases[4:]}
    (folder / "cohort.json").write_text(json.dumps(sections))
    return folder / "cohort.json"
