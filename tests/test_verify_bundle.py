"""Verification and export of packages, on every bundle and on packages that are broken in one way each."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from bundle_tools import ROOT, metadata, network, weights

from common.errors import InputError
from release import bundle_process as process
from release import verification as verifier
from release.exporting import export_bundle
from release.packaging import package_bundle

CODE_CHECKS = ["inference_properties", "shapes", "train_properties", "weights", "torchscript"]
CHECKS = ["files", "sizes", "license", "version", "metadata", "card", "release", *CODE_CHECKS]


def test_every_package_passes_every_check(bundle, cohort, tmp_path):
    path = package_bundle(bundle.name, tmp_path)
    (tmp_path / "model_info.json").write_text(json.dumps({f"{bundle.name}_v0.0.1": {}}))
    results = verifier.verify_bundle(path, cohort, tmp_path / "model_info.json")
    assert [str(result) for result in results] == [f"ok      {name}" for name in CHECKS]


@pytest.fixture(scope="module")
def exports(bundle, tmp_path_factory) -> dict[str, Path]:
    paths = export_bundle(bundle.name, tmp_path_factory.mktemp("exports"))
    return {path.suffix: path for path in paths}


@pytest.fixture(scope="module")
def eager(bundle) -> torch.nn.Module:
    net = network(bundle)
    net.load_state_dict(weights(bundle), strict=True)
    return net.requires_grad_(False)


@pytest.mark.parametrize(("batch", "size"), [(1, 48), (3, 32)])
def test_torchscript_and_onnx_equal_the_eager_network_at_other_sizes(bundle, exports, eager, batch, size):
    image = metadata(bundle)["network_data_format"]["inputs"]["image"]
    shape = [batch, image["num_channels"], *[size] * (len(image["spatial_shape"]) - 1), 32]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(7)).clamp(min=0)
    expected = eager(x)
    assert expected.std() > 0
    torch.testing.assert_close(torch.jit.load(exports[".ts"]).eval()(x), expected, rtol=1e-4, atol=1e-4)
    session = onnxruntime.InferenceSession(str(exports[".onnx"]), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert (said["name"], json.loads(said["metadata.json"])) == (metadata(bundle)["name"], metadata(bundle))
    (found,) = session.run(["pred"], {"image": x.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=5e-4)


def test_exports_are_named_by_bundle_and_version_and_nothing_else_is_left(bundle, exports):
    version = metadata(bundle)["version"]
    names = {f"{bundle.name}_v{version}.ts", f"{bundle.name}_v{version}.onnx"}
    assert {path.name for path in exports[".ts"].parent.iterdir()} == names


NETWORK = """
import torch
from torch import nn

class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)
"""
DESCRIPTION = """
from catalog import Description

DESCRIPTION = Description(summary="It doubles.", inferences=(), uses=(), methods=(), rows=(), needs=())
"""
CARD = """# Toy

It doubles.

## Authors and tags

## Intended use

## Data

## Performance

## System

## Limitations

## License and citation
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Folder of a package that passes: a network of one layer, and the least of everything else."""
    package = tmp_path_factory.mktemp("packages") / "toy_net"
    meta = metadata(ROOT / "bundles" / "uad_autoencoder")
    tensor = {"type": "image", "format": "x", "num_channels": 1, "spatial_shape": ["8*n", "8*n"], "dtype": "float32"}
    tensor |= {"value_range": []}
    pred = {**tensor, "num_channels": 2, "channel_def": {"0": "background", "1": "lesion"}}
    meta |= {"version": "0.2.0", "changelog": {"0.2.0": "second"}}
    meta["network_data_format"] = {"inputs": {"image": tensor}, "outputs": {"pred": pred}}
    inference = {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "dataset_dir": None,
        "network_def": {"_target_": "toy_net.network.Doubling"},
        "dataset": {"_target_": "Dataset", "data": []},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset"},
        "inferer": {"_target_": "SimpleInferer"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
        },
    }
    files = {"configs/metadata.json": json.dumps(meta), "configs/inference.json": json.dumps(inference)}
    files |= {"toy_net/network.py": NETWORK, "docs/README.md": CARD, "docs/data_license.txt": "none\n"}
    files |= {"LICENSE": (ROOT / "LICENSE").read_text()}
    for name, text in files.items():
        write(package / name, text)
    (package / "models").mkdir()
    state = {"conv.weight": torch.ones(2, 1, 1, 1), "conv.bias": torch.zeros(2)}
    torch.save(state, package / "models" / "model.pt")
    return package


@pytest.fixture
def toy(whole, tmp_path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(whole, tmp_path / "packages" / "toy_net"))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def failures(package: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Check -> what it says, of those that fail; without the checks that run code."""
    monkeypatch.setattr(verifier, "_code_results", lambda *_: [])
    info = package.parent / "model_info.json"
    info.write_text(json.dumps({"toy_net_v0.1.0": {}}))
    results = verifier.verify_bundle(package, model_info=info)
    return {result.check: "; ".join(result.failures) for result in results if result.failures}


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda package: change(package / name, old, new)


def listed(**entry: str) -> Callable[[Path], None]:
    return lambda package: write(package / "large_files.yml", json.dumps({"large_files": [entry]}))


META, README = "configs/metadata.json", "docs/README.md"
WEIGHTS = {"path": "models/model.pt", "url": "https://example.org/model.pt"}
BROKEN = {
    "no license": (lambda p: (p / "LICENSE").unlink(), "files", "LICENSE is missing"),
    "no terms of the data": (lambda p: (p / "docs/data_license.txt").unlink(), "files", "data_license.txt is missing"),
    "no weights": (lambda p: (p / "models/model.pt").unlink(), "files", "models/model.pt is missing"),
    "a link": (lambda p: (p / "models/a.bin").symlink_to(p / "LICENSE"), "files", "models/a.bin is a symbolic link"),
    "a personal path": (edited(README, "doubles", "doubles /home/jane/x"), "files", "personal path '/home/jane"),
    "a large file": (lambda p: write(p / "a.txt", "x" * (25 * 1000**2 + 1)), "sizes", "a.txt has 25 MB, above 25 MB"),
    "another file than the one listed": (
        listed(**WEIGHTS, hash_type="sha256", hash_val="0" * 64),
        "sizes",
        "models/model.pt is not the file that large_files names: its sha256 differs",
    ),
    "a listed file without hash": (listed(**WEIGHTS), "sizes", "models/model.pt of large_files needs a hash_val"),
    "a listed file without address": (listed(path="models/model.pt"), "sizes", "needs a path and a url"),
    "a listed file outside": (
        listed(**{**WEIGHTS, "path": "../model.pt"}, hash_type="md5", hash_val="0"),
        "sizes",
        "'../model.pt' of large_files leads out of the bundle",
    ),
    "a list that is none": (lambda p: write(p / "large_files.yml", "- models/model.pt"), "sizes", "TypeError"),
    "a license by name only": (lambda p: write(p / "LICENSE", "Apache License, Version 2.0"), "license", "whole text"),
    "a version without changelog": (edited(META, '"version": "0.2.0"', '"version": "0.3.0"'), "version", "is no key"),
    "a released version": (edited(META, "0.2.0", "0.1.0"), "release", "toy_net_v0.1.0 was released before"),
    "metadata that are no JSON": (lambda p: write(p / META, "{"), "metadata", "no valid JSON"),
    "a number for a text": (edited(META, '"image", "format": "x"', '"image", "format": 1'), "metadata", "format: 1"),
    "a second network without outputs": (
        edited(META, '"network_data_format"', '"prior_data_format": {"inputs": {}}, "network_data_format"'),
        "metadata",
        "prior_data_format: 'outputs' is a required property",
    ),
    "an image of four axes": (edited(META, '["8*n", "8*n"]', '["8*n", 8, 8, 8]'), "metadata", "image.spatial_shape: "),
    "no schema": (edited(META, '"schema"', '"scheme"'), "metadata", "'schema' is a required property"),
    "pred without names of labels": (edited(META, "channel_def", "channels"), "metadata", "'channel_def' is a"),
    "a background without its name": (edited(META, '"background"', '"air"'), "metadata", "must name 0 the background"),
    "another tensor first": (edited(META, '{"image": {', '{"atlas": 1, "image": {'), "metadata", "must be 'image'"),
    "a deprecated key": (
        edited(META, '"required_packages_version"', '"optional_packages_version": {}, "required_packages_version"'),
        "metadata",
        "optional_packages_version is deprecated",
    ),
    "a card without a section": (edited(README, "## Limitations\n", ""), "card", "the words: Limitations"),
    "a section within a code block": (edited(README, "## System", "```\n## System\n```"), "card", "words: System"),
    "a card with a header of its own": (edited(README, "# Toy", "---\n---\n# Toy"), "card", "expected a title"),
    "a card without description": (edited(README, "It doubles.\n", ""), "card", "then the description"),
    "a link within the repository": (edited(README, "doubles", "[doubles](../x.md)"), "card", "the link to '../x.md'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_each_way_of_being_broken_is_found_by_the_check_it_belongs_to(toy, what, monkeypatch):
    damage, check, sentence = BROKEN[what]
    damage(toy)
    found = failures(toy, monkeypatch)
    assert sentence in found[check]
    assert "\n" not in found[check]


def test_a_failure_hides_no_other(toy, monkeypatch):
    (toy / "LICENSE").unlink()
    write(toy / META, "{")
    change(toy / README, "# Toy", "")
    assert list(failures(toy, monkeypatch)) == ["files", "license", "version", "metadata", "card", "release"]


def test_the_form_for_a_pull_request_passes_with_its_weights_listed_and_left_out(toy, monkeypatch):
    value = hashlib.sha256((toy / "models/model.pt").read_bytes()).hexdigest()
    listed(**WEIGHTS, hash_type="sha256", hash_val=value)(toy)
    assert failures(toy, monkeypatch) == {}
    (toy / "models/model.pt").unlink()
    assert failures(toy, monkeypatch) == {}


def test_the_command_lists_every_failure_of_the_code_and_ends_with_an_error(toy):
    change(toy / "configs/inference.json", '"inferer": {', '"inferrer": {')
    change(toy / "configs/inference.json", '"inferer": "@inferer"', '"inferer": "@inferrer"')
    change(toy / META, '"num_channels": 2', '"num_channels": 3')
    torch.save({"conv.weight": torch.ones(2, 1, 1, 1)}, toy / "models/model.pt")
    before = sorted(toy.rglob("*"))
    command = [sys.executable, "scripts/verify_bundle.py", toy]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert sorted(toy.rglob("*")) == before
    assert done.returncode == 1, done.stderr
    lines = dict(line[8:].split(": ", 1) for line in done.stdout.splitlines() if line.startswith("FAILED"))
    assert "inferer" in lines.pop("inference_properties")
    assert "output channel number `2` doesn't match: `3`" in lines.pop("shapes")
    assert 'Missing key(s) in state_dict: "conv.bias"' in lines.pop("weights")
    assert list(lines) == ["torchscript"]


def test_the_code_runs_without_the_repository_and_a_crash_is_told(toy, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    crash = "try:\n    import common\nexcept ImportError:\n    __import__('os')._exit(3)\n"
    change(toy / "toy_net/network.py", "import torch\n", f"{crash}import torch\n")
    results = verifier.run_in_own_process(toy, {"shapes": {}, "weights": {}}, toy.parent)
    expected = "the process ended before with exit code 3"
    assert [(result.check, result.failures[0][: len(expected)]) for result in results] == [
        ("shapes", expected),
        ("weights", expected),
    ]


@pytest.fixture
def toy_code(toy, monkeypatch) -> Path:
    """The same, with its code on the import path of the tests."""
    monkeypatch.syspath_prepend(str(toy))
    for name in ("toy_net", "toy_net.network"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return toy


@pytest.mark.parametrize(
    ("check", "exporting"),
    [("torchscript", "torch.jit.is_scripting()"), ("onnx", "torch.onnx.is_in_onnx_export()")],
)
def test_an_exported_network_that_differs_from_the_eager_one_is_found(toy_code, check, exporting, tmp_path):
    process.CHECKS[check](toy_code, tmp_path)
    change(toy_code / "toy_net/network.py", "self.conv(x)\n", f"self.conv(x) + int({exporting})\n")
    for name in ("toy_net", "toy_net.network"):
        del sys.modules[name]
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        process.CHECKS[check](toy_code, tmp_path)


def test_a_network_that_cannot_be_scripted_is_traced_where_its_description_says_so(toy_code, tmp_path):
    change(toy_code / "toy_net/network.py", "self.conv(x)\n", "self.conv(x) + int(torch.jit.is_scripting())\n")
    process.torchscript(toy_code, tmp_path, use_trace=True)
    results = verifier.verify_bundle(toy_code, use_trace=True)
    assert [str(result) for result in results if result.check == "torchscript"] == ["ok      torchscript"]
    (result,) = (result for result in verifier.verify_bundle(toy_code) if result.check == "torchscript")
    assert "Tensor-likes are not close" in result.failures[0]


def test_the_model_ts_of_a_package_is_compared_too(toy_code, tmp_path):
    process.torchscript(toy_code, tmp_path)
    shutil.copy(tmp_path / "model.ts", toy_code / "models/model.ts")
    process.torchscript(toy_code, tmp_path)
    torch.save({"conv.weight": torch.ones(2, 1, 1, 1), "conv.bias": torch.ones(2)}, toy_code / "models/model.pt")
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        process.torchscript(toy_code, tmp_path)


STATES = {
    "a nested dict": ({"model": {}, "epoch": 3}, ValueError, "expected a flat dict of tensors, found model, epoch"),
    "nothing": ({}, ValueError, "found nothing"),
    "an object": ({"path": Path()}, pickle.UnpicklingError, "Weights only load failed"),
    "a number that is none": ({"conv.bias": torch.tensor([0, torch.nan])}, ValueError, r"not finite: conv\.bias"),
    "those of another network": ({"linear.bias": torch.ones(2)}, RuntimeError, "Unexpected key"),
}


@pytest.mark.parametrize("what", STATES)
def test_weights_that_are_not_those_of_the_network_are_refused(toy_code, what, tmp_path):
    process.weights(toy_code, tmp_path)
    state, error, sentence = STATES[what]
    torch.save(state, toy_code / "models/model.pt")
    with pytest.raises(error, match=sentence):
        process.weights(toy_code, tmp_path)


def zipped(path: Path, *entries: zipfile.ZipInfo | str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            archive.writestr(entry, "x")
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


UNSAFE = {
    "an absolute path": (["toy/a", "/etc/a"], "an entry '/etc/a', which would land outside"),
    "a way up": (["toy/a", "toy/../../a"], r"an entry 'toy/../../a', which"),
    "a way up on Windows": (["toy/a", "toy\\..\\a"], "an entry 'toy"),
    "a drive": (["C:/a"], "an entry 'C:/a'"),
    "a link": ([link("toy/a")], "a symbolic link 'toy/a'"),
    "two folders": (["toy/a", "other/a"], "has other, toy at its top, expected one folder"),
    "a file at the top": (["toy"], "has toy at its top, expected one folder"),
    "a name twice": (["toy/a", "toy/a"], "has two entries of the same name"),
    "nothing": ([], "has nothing at its top"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", UNSAFE)
def test_an_unsafe_zip_is_refused_before_anything_is_written(what, tmp_path):
    entries, sentence = UNSAFE[what]
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=sentence):
        verifier.unpack(zipped(tmp_path / "a.zip", *entries), tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_zip_that_unpacks_to_too_much_or_is_damaged_is_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", "toy/a", "toy/b")
    damaged = path.read_bytes().replace(b"x", b"y", 1)
    monkeypatch.setattr(verifier, "MAX_UNPACKED", 1)
    with pytest.raises(InputError, match=r"^a\.zip unpacks to 2 bytes, expected at most 1"):
        verifier.unpack(path, tmp_path)
    monkeypatch.undo()
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"^cannot unpack .*Bad CRC-32"):
        verifier.unpack(path, tmp_path / "folder")
    path.write_text("no zip")
    with pytest.raises(InputError, match=r"^cannot unpack .*not a zip"):
        verifier.unpack(path, tmp_path)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("no_such.zip", "cannot unpack .*No such file"), (ROOT / "bundles/uad_autoencoder", "a bundle in the repository")],
)
def test_what_is_no_package_is_refused(path, sentence):
    with pytest.raises(InputError, match=sentence):
        verifier.verify_bundle(path)


def test_a_network_that_cannot_be_exported_leaves_no_file(toy, tmp_path):
    change(toy / "toy_net/network.py", "return self.conv(x)", "return {'pred': self.conv(x)}")
    bundle = tmp_path / "repository/bundles/toy_net"
    shutil.copytree(toy, bundle)
    with pytest.raises(InputError, match=r"description.py does not exist, expected the description of the bundle toy_"):
        export_bundle("toy_net", tmp_path / "exports", root=tmp_path / "repository")
    (bundle / "description.py").write_text(DESCRIPTION)
    with pytest.raises(InputError, match=r"^bundle toy_net cannot be exported: torchscript: .*; onnx: TypeError: "):
        export_bundle("toy_net", tmp_path / "exports", root=tmp_path / "repository")
    assert not (tmp_path / "exports").exists()
