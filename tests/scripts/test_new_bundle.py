"""A sixth bundle, made in a copy of the repository, keeps what all bundles promise, unchanged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_tools import ROOT

from catalog.new_bundle import new_bundle
from common.errors import InputError
from phantom.cohort import make_cohort

NAME = "tissue_unet"
COPIED = ("common", "scripts", "tests", "docs", "pyproject.toml", "README.md", "LICENSE")
PROMISES = (
    f"tests/test_{NAME}.py",
    "tests/test_bundles.py",
    "tests/test_bundle_configs.py",
    "tests/test_verify_bundle.py::test_every_package_passes_every_check",
    "tests/test_verify_bundle.py::test_torchscript_and_onnx_equal_the_eager_network_at_other_sizes",
    "tests/test_several_processes.py::test_two_processes_train_and_stop_and_one_goes_on",
    "tests/scripts/test_catalog.py::test_every_config_and_entry_that_a_description_names_exists",
    "tests/scripts/test_catalog.py::test_every_bundle_can_be_used_compared_and_scored",
    "tests/scripts/test_catalog.py::test_what_a_comparison_trains_is_what_is_advised",
    "tests/test_readme.py::test_every_bundle_has_a_heading_and_the_planned_ones_have_none",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Copy of the repository without its bundles, but with a new one, and the generated parts of its README."""
    root = tmp_path_factory.mktemp("copy") / "repository"
    (root / "bundles").mkdir(parents=True)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(
            ROOT / name,
            root / name,
            **({"ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}),
        )
    run(root, "scripts/new_bundle.py", NAME)
    run(root, "scripts/render_evidence.py")
    return root


def run(root: Path, *words: object) -> str:
    """What a Python command prints in the copy, which is the only one that it sees."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHONPATH"))}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


@pytest.mark.slow
def test_the_new_bundle_keeps_what_all_bundles_promise(tree):
    printed = run(tree, "-m", "pytest", "-p", "no:cacheprovider", "-q", *PROMISES)
    assert "passed" in printed
    assert "skipped" not in printed


@pytest.mark.slow
def test_the_new_bundle_is_advised_trained_and_compared(tree, tmp_path):
    groups = {"healthy": (2, 1, 1)}
    cohort = make_cohort(tmp_path / "cohort", groups, spacing=6.0, sequences=("T1w",), fine_mm=3.0, num_workers=1)
    content = json.loads(cohort.read_text())
    for section in ("training", "validation", "test"):
        for case in content[section]:
            case["label"] = case["tissues"]
    cohort.write_text(json.dumps(content))
    advice = run(tree, "scripts/advise.py", cohort, "--measure", "False")
    assert f"--config_file bundles/{NAME}/configs/train.json --datalist_file" in advice
    assert "cannot run" not in advice

    small = {"network_def#channels": [4, 4, 8, 8], "patch_size": [16, 16, 16], "spacing": [6.0, 6.0, 6.0]}
    options = {f"{NAME}/train": small | {"max_epochs": 1, "val_interval": 1}, f"{NAME}/inference": small}
    (tmp_path / "options.json").write_text(json.dumps(options))
    flags = ["--target", "tissue", "--weights", "train", "--options", tmp_path / "options.json", "--device", "cpu"]
    run(tree, "scripts/compare.py", cohort, "--output_dir", tmp_path / "out", *flags)
    assert len((tmp_path / "out" / "tissue_cases.csv").read_text().splitlines()) == 1 + 3  # a case, three tissues
    assert list((tmp_path / "out").rglob("models/model.pt"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Tissue-Unet", "expected small letters, digits and _"),
        ("class", "expected small letters, digits and _"),
        ("common", "which another module has"),
        ("torch", "which another module has"),
        ("../x", "expected small letters, digits and _"),
    ],
)
def test_a_name_that_does_not_do_is_refused(name, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        new_bundle(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bundle_or_a_test_that_exists_is_left_as_it_is(tmp_path):
    (tmp_path / "bundles").mkdir()
    test = tmp_path / "tests" / f"test_{NAME}.py"
    test.parent.mkdir()
    test.write_text("mine")
    with pytest.raises(InputError, match=f"test_{NAME}.py exists, expected the name of a bundle that there is not yet"):
        new_bundle(NAME, tmp_path)
    assert test.read_text() == "mine"
    assert not list((tmp_path / "bundles").iterdir())
