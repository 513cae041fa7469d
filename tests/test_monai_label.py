"""The packages of all bundles in one real MONAI Label server with its own environment, as in docs/monai_label.md."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import nibabel as nib
import numpy as np
import pytest
from bundle_tools import BUNDLES, Finished, make_head, metadata, read_json, save_nifti

from catalog import descriptions
from release.packaging import package_bundle

if "MONAI_LABEL_PYTHON" not in os.environ:
    reason = "MONAI_LABEL_PYTHON is not set, expected the Python of an environment with requirements-label.txt"
    pytest.skip(reason, allow_module_level=True)

pytestmark = [pytest.mark.label, pytest.mark.slow]
OPENER = build_opener(ProxyHandler({}))
TRAINED = [name for name, description in descriptions().items() if description.trains_in_label]


class Server:
    """A running server: its folders, and what can be asked of it."""

    def __init__(self, folder: Path) -> None:
        self.models = folder / "monaibundle" / "model"
        self.studies = folder / "studies"
        self.log = folder / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def ask(self, path: str, data: bytes | None = None, kind: str = "application/json") -> bytes:
        """Body of the answer; POST if there are data."""
        request = Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": kind} if data else {})
        try:
            return OPENER.open(request, timeout=120).read()
        except HTTPError as e:
            raise AssertionError(f"{path} answers {e.code}\n{self.last_lines()}") from e

    def last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def infer(self, model: str, image: str, path: Path) -> nib.Nifti1Image:
        """The mask of an image of the studies, written to ``path``."""
        path.write_bytes(self.result(model, image, "image"))
        return nib.load(path)

    def result(self, model: str, image: str, output: str) -> bytes:
        """What the server makes of an image: ``image`` for the mask, ``json`` for what it says of it."""
        params = json.dumps({"device": "cpu", "result_dtype": "uint8"})
        body = urlencode({"params": params}).encode()
        return self.ask(f"/infer/{model}?image={image}&output={output}", body, "application/x-www-form-urlencoded")

    def train(self, model: str, timeout: float = 300, **params: object) -> dict[str, Any]:
        """The task of a training, ended."""
        self.ask(f"/train/{model}", json.dumps(params).encode())
        end = time.monotonic() + timeout
        while True:
            task = json.loads(self.ask("/train/"))
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            assert time.monotonic() < end, f"no end of the training after {timeout} s\n{self.last_lines()}"
            time.sleep(0.5)


def start(server: Server, folder: Path) -> subprocess.Popen:
    """Start the server by the commands of the document, with every way to the network closed."""
    nowhere = "http://127.0.0.1:9"
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment |= {"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": "127.0.0.1"}
    environment |= {"PYTHONPATH": str(Path(__file__).with_name("label_environment")), "CUDA_VISIBLE_DEVICES": ""}
    label = [os.environ["MONAI_LABEL_PYTHON"], "-m", "monailabel.main"]
    app = [*label, "apps", "--download", "--name", "monaibundle", "--output", str(folder)]
    subprocess.run(app, env=environment, check=True, capture_output=True)
    server.models.mkdir()
    for bundle in BUNDLES:
        with zipfile.ZipFile(package_bundle(bundle.name, folder / "packages")) as archive:
            archive.extractall(server.models)
        config = server.models / bundle.name / "configs" / "inference.json"
        content = read_json(config)
        if "threshold" in content:  # low, so that there is a mask whatever the shipped weights see in a ball
            config.write_text(json.dumps(content | {"threshold": 0.01}))
    command = [*label, "start_server", "--app", "monaibundle", "--studies", "studies", "--conf", "models"]
    command += [",".join(bundle.name for bundle in BUNDLES), "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    command += ["--host", "127.0.0.1", "--port", str(server.port)]
    with server.log.open("wb") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all bundles, with two subjects: T1w and FLAIR of ``a``, FLAIR of ``b``, both labeled."""
    folder = tmp_path_factory.mktemp("label")
    server = Server(folder)
    for seed, names in enumerate((("a_T1w", "a_FLAIR"), ("b_FLAIR",))):
        head = make_head(seed)
        for channel, name in enumerate(names):
            save_nifti(server.studies / f"{name}.nii.gz", head.image * (1 - 0.1 * channel), head.affine)
        save_nifti(server.studies / "labels" / "final" / f"{names[-1]}.nii.gz", head.label, head.affine)
    process = start(server, folder)
    try:
        end = time.monotonic() + 120
        while True:
            with suppress(URLError):
                server.ask("/info/")
                break
            assert process.poll() is None, f"the server has ended\n{server.last_lines()}"
            assert time.monotonic() < end, f"no answer after 120 s\n{server.last_lines()}"
            time.sleep(0.5)
        yield server
    finally:
        with suppress(ProcessLookupError):  # the group: a training is a process of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def run_package(server: Server, monai_bundle: Callable[..., Finished]) -> Callable[[str, Path], nib.Nifti1Image]:
    """The mask of subject ``a`` by ``monai.bundle run`` of the package that is served, in the tests' environment."""

    def run(model: str, folder: Path) -> nib.Nifti1Image:
        images = [f"a_{sequence}" for sequence in sequences(server.models / model)]
        paths = [str(server.studies / f"{image}.nii.gz") for image in images]
        cases = folder / "cases.json"
        cases.write_text(json.dumps([{"image": paths if len(paths) > 1 else paths[0]}]))
        # MONAI Label calls the network without autocast
        options = {"device": "cpu", "amp": False, "datalist_file": cases, "output_dir": folder}
        flags = [word for key, value in options.items() for word in (f"--{key}", value)]
        done = monai_bundle("run", "--config_file", "configs/inference.json", *flags, cwd=server.models / model)
        assert done.code == 0, done.output[-3000:]
        return nib.load(folder / f"{images[0]}_seg.nii.gz")

    return run


def sequences(bundle: Path) -> list[str]:
    return read_json(bundle / "configs" / "inference.json")["sequences"]


def test_the_server_offers_the_bundle_with_the_names_of_its_labels(bundle, server):
    info = json.loads(server.ask("/info/"))
    names = metadata(bundle)["network_data_format"]["outputs"]["pred"]["channel_def"]
    labels = {name.lower(): int(value) for value, name in names.items() if name != "background"}
    assert len(labels) == len(names) - 1
    assert info["models"][bundle.name]["labels"] == labels
    assert info["models"][bundle.name]["version"] == metadata(bundle)["version"]
    assert bundle.name in info["trainers"]


def test_a_mask_of_the_server_is_that_of_the_bundle_on_the_grid_of_the_file(bundle, server, run_package, tmp_path):
    """For several sequences the server is asked for the last one, and finds the others beside it."""
    image = f"a_{sequences(bundle)[-1]}"
    found = server.infer(bundle.name, image, tmp_path / "mask.nii.gz")
    expected = run_package(bundle.name, tmp_path)
    np.testing.assert_allclose(found.affine, nib.load(server.studies / f"{image}.nii.gz").affine, atol=1e-5)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    assert np.asarray(found.dataobj).any()


def test_the_answer_has_the_volumes_of_the_mask_and_flags(bundle, server, tmp_path):
    image = f"a_{sequences(bundle)[-1]}"
    answer = json.loads(server.result(bundle.name, image, "json"))
    said = answer.get("params", answer)
    mask = server.infer(bundle.name, image, tmp_path / "mask.nii.gz")
    voxel_ml = np.prod(mask.header.get_zooms()) / 1000
    names = metadata(bundle)["network_data_format"]["outputs"]["pred"]["channel_def"]
    for value, name in names.items():
        if name != "background":
            volume = (np.asarray(mask.dataobj) == int(value)).sum() * voxel_ml
            assert said[f"{name}_ml"] == pytest.approx(volume, abs=1e-3)
    assert said["brain_ml"] > 0
    assert "brain volume improbable" in said["flags"]  # a ball of some centimeters
    # the scan is two gray values: some bundles wonder at it, and say which file they mean, without its folder
    assert all(sentence.startswith(f"{image}.nii.gz") for sentence in said["warnings"])
    assert bool(said["warnings"]) == (bundle.name in ("diffusion_recon_unet", "sae_segmentation"))


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_over_rest_gives_weights_that_the_next_mask_is_made_with(name, server, run_package, tmp_path):
    weights = server.models / name / "models" / "model.pt"
    image = f"a_{sequences(server.models / name)[-1]}"
    before = weights.read_bytes(), np.asarray(server.infer(name, image, tmp_path / "before.nii.gz").dataobj)
    task = server.train(name, max_epochs=10, val_split=0.5, device="cpu")
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert weights.read_bytes() != before[0]
    mask = np.asarray(server.infer(name, image, tmp_path / "after.nii.gz").dataobj)
    assert (mask != before[1]).any()
    np.testing.assert_array_equal(mask, np.asarray(run_package(name, tmp_path).dataobj))
