"""What every bundle promises, for each folder in ``bundles/`` that has a ``configs/metadata.json``.

What the model zoo asks of it as well is in ``test_verify_bundle.py``.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import (
    NOT_COPIED,
    ROOT,
    SMALL,
    metadata,
    outputs,
    save_case,
    save_datalist,
)
from monai.bundle import ConfigWorkflow

from release.packaging import package_bundle


def test_the_files_that_the_model_zoo_does_not_ask_for_are_there(bundle):
    needed = ["configs/train.json", "configs/evaluate.json", "configs/multi_gpu_train.json", "configs/logging.conf"]
    needed += [f"{bundle.name}/__init__.py"]
    assert [file for file in needed if not (bundle / file).is_file()] == []


def test_only_model_pt_has_a_name_so_short_that_monai_label_takes_it(bundle):
    names = sorted((path.name for path in (bundle / "models").glob("*.pt")), key=len)
    assert names[0] == "model.pt"
    assert all(len(name) > len("model.pt") for name in names[1:])


def test_metadata_pins_every_package_that_the_code_imports(bundle, tmp_path):
    """In the package, so the shared modules that it carries count as well."""
    package = unpacked(bundle.name, tmp_path)
    imported = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, bundle.name, "monai", "torch", "numpy"}
    required = metadata(bundle)["required_packages_version"]
    pinned = {file.parts[0].removesuffix(".py") for name in required for file in distribution(name).files}
    assert imported - pinned == set()


@pytest.mark.parametrize("part", ["train", "validate"])
def test_paths_of_image_and_label_can_take_the_place_of_the_training_data(bundle, part, cohort, tmp_path):
    """As MONAI Label puts them there: one dataset, whose transform reads the files."""
    kept = ("image", "label", "dataset")  # the last where a bundle learns from several data sets
    cases = [{key: case[key] for key in kept if key in case} for case in json.loads(cohort.read_text())["training"]]
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "train.json"),
        workflow_type="train",
        logging_file=False,
        bundle_root=str(bundle),
        output_dir=str(tmp_path),
        device=torch.device("cpu"),
        **{f"{part}#dataset#data": cases},
    )
    workflow.initialize()
    batch = next(iter(workflow.parser.get_parsed_content(f"{part}#dataloader")))
    assert batch["image"].dtype == torch.float32
    assert "label" not in batch or batch["image"].shape[2:] == batch["label"].shape[2:]  # some learn without any


def reordered(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same head stored with its axes in another order and direction."""
    return image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))


def with_volume_axis(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine)


@pytest.fixture(scope="module")
def predicted(bundle, infer, tmp_path_factory) -> tuple[Path, Path]:
    """Folder of five cases, and folder of what one run of ``inference.json`` alone made of them."""
    folder = tmp_path_factory.mktemp("cases")
    cases = [
        save_case(bundle, folder / "plain.nii.gz"),
        save_case(bundle, folder / "reordered.nii.gz", change=reordered),
        save_case(bundle, folder / "volume.nii.gz", change=with_volume_axis),
        save_case(bundle, folder / "a" / "scan.nii.gz", seed=1, shape=SMALL),
        save_case(bundle, folder / "b" / "scan.nii.gz", seed=2, shape=SMALL),
    ]
    done = infer(folder / "out", datalist_file=save_datalist(folder, cases))
    assert done.code == 0, done.output[-3000:]
    return folder, folder / "out"


def test_inference_json_alone_writes_one_set_of_files_per_case(predicted):
    _, out = predicted
    names = {"plain", "reordered", "volume", "a/scan", "b/scan"}
    written = {p.relative_to(out).as_posix() for p in out.rglob("*.nii*")}
    has_map = "plain_prob.nii.gz" in written
    assert written == {f"{n}_{kind}.nii.gz" for n in names for kind in (["seg", "prob"] if has_map else ["seg"])}


def test_inference_json_alone_ends_with_a_line_and_pictures_of_every_case(predicted):
    _, out = predicted
    heading, *lines = (line.split("\t") for line in (out / "volumes.tsv").read_text().splitlines())
    rows = {row["case"]: row for row in (dict(zip(heading, line, strict=True)) for line in lines)}
    assert list(rows) == ["plain", "reordered", "volume", "a/scan", "b/scan"]
    labels = [name.removesuffix("_percent") for name in heading if name.endswith("_percent")]
    for name, row in rows.items():
        mask = outputs(out, name)["seg"]
        values = np.asarray(mask.dataobj)
        for value, label in enumerate(labels, start=1):
            ml = (values == value).sum() * np.prod(mask.header.get_zooms()) / 1000
            np.testing.assert_allclose(float(row[f"{label}_ml"]), ml, rtol=1e-5)
    page = (out / "report.html").read_text()
    assert all(f"<h4>{name}</h4>" in page for name in rows)
    assert all(f'href="views/{name}.html"' in page for name in rows)
    assert all((out / "views" / f"{name}.html").is_file() for name in rows)


@pytest.mark.parametrize("name", ["plain", "reordered", "volume", "a/scan"])
def test_outputs_lie_on_the_grid_of_the_input(predicted, name):
    """Oblique, anisotropic, flipped, shifted."""
    folder, out = predicted
    source = nib.load(folder / f"{name}.nii.gz")
    for image in outputs(out, name).values():
        assert image.shape == source.shape[:3]
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-4)
        np.testing.assert_allclose(image.header.get_zooms(), source.header.get_zooms()[:3], atol=1e-4)
        assert image.header.get_xyzt_units()[0] == "mm"
        for form in ("qform", "sform"):
            affine, code = getattr(image, f"get_{form}")(coded=True)
            assert code == 1
            np.testing.assert_allclose(affine, source.affine, atol=1e-4)


def test_labels_are_those_of_the_metadata_and_maps_are_finite(bundle, predicted):
    known = {int(k) for k in metadata(bundle)["network_data_format"]["outputs"]["pred"]["channel_def"]}
    for name in ("plain", "a/scan", "b/scan"):
        images = outputs(predicted[1], name)
        assert images["seg"].get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(images["seg"].dataobj)).tolist()) <= known
        if "prob" in images:
            assert images["prob"].get_data_dtype() == np.float32
            assert np.isfinite(np.asarray(images["prob"].dataobj)).all()


def test_outputs_follow_the_head_when_it_is_stored_in_another_order_of_axes(predicted):
    _, out = predicted
    plain, other = outputs(out, "plain"), outputs(out, "reordered")
    for kind, image in plain.items():
        expected, found = (np.asarray(i.dataobj).astype(float) for i in (reordered(image), other[kind]))
        if kind == "seg":
            assert (found != expected).mean() < 1e-3
        else:
            np.testing.assert_allclose(found, expected, atol=2e-3 * np.ptp(expected))
    # the comparison means something only where a flip would show
    shown = np.asarray(plain.get("prob", plain["seg"]).dataobj).astype(float)
    assert np.ptp(shown) > 0
    assert all(np.abs(shown - np.flip(shown, axis)).max() > 0.1 * np.ptp(shown) for axis in range(3))


def test_one_volume_in_four_dimensions_gives_what_the_3d_file_gives(predicted):
    _, out = predicted
    volume = outputs(out, "volume")
    for kind, image in outputs(out, "plain").items():
        np.testing.assert_array_equal(np.asarray(volume[kind].dataobj), np.asarray(image.dataobj))


def test_files_of_one_name_in_two_folders_do_not_overwrite_each_other(predicted):
    _, out = predicted
    for a, b in zip(outputs(out, "a/scan").items(), outputs(out, "b/scan").items(), strict=True):
        if a[0] == "prob":
            assert not np.array_equal(np.asarray(a[1].dataobj), np.asarray(b[1].dataobj))


def test_evaluate_json_scores_the_written_files(bundle, monai_bundle, cohort, tmp_path):
    sections = json.loads(cohort.read_text())
    datalist = cohort.with_name("labeled.json")
    datalist.write_text(json.dumps({"test": sections["test"]}))
    configs = [f"bundles/{bundle.name}/configs/{name}.json" for name in ("inference", "evaluate")]
    options = {"bundle_root": bundle, "datalist_file": datalist, "output_dir": tmp_path / "out", "device": "cpu"}
    flags = [word for key, value in options.items() for word in (f"--{key}", value)]
    done = monai_bundle("run", "--config_file", str(configs), *flags)
    assert done.code == 0, done.output[-3000:]
    rows = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert all(any(case["subject"] in row for row in rows) for case in sections["test"])
    json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (tmp_path / "out" / "report.html").stat().st_size > 0


# a process that fails as soon as it opens or lists anything of the repository; an environment in it is no part of it
ISOLATED = """
import os, sys
def outside(event, args):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], (str, bytes, os.PathLike)):
        path = os.path.join(os.path.abspath(os.fsdecode(args[0])), "")
        if path.startswith({root!r}) and not path.startswith(os.path.join(sys.prefix, "")):
            raise PermissionError("this process must not see " + path)
sys.addaudithook(outside)
"""
RUN_ONE = """
import runpy
sys.argv = ["monai.bundle"] + {arguments!r}
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
assert "common" not in sys.modules
"""
RUN_TWO = """
import json
from monai.bundle import ConfigWorkflow
for package, output in {packages!r}:
    workflow = ConfigWorkflow(
        package + "/configs/inference.json", workflow_type="inference", bundle_root=package,
        datalist_file={datalist!r}, output_dir=output, device="cpu",
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
assert "common" not in sys.modules
releases = {{}}
for package, _ in {packages!r}:
    module = sys.modules[os.path.basename(package) + ".common"]
    assert module.__file__.startswith(package)
    releases[os.path.basename(package)] = getattr(module, "RELEASE", None)
print(json.dumps(releases))
"""


def run_isolated(code: str, cwd: Path, **values: object) -> subprocess.CompletedProcess:
    """Run Python in a folder that has nothing to do with the repository, without seeing the repository."""
    code = ISOLATED.format(root=f"{ROOT}/") + code.format(**values)
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def unpacked(name: str, folder: Path, root: Path = ROOT) -> Path:
    """Pack a bundle and unpack the zip; returns the folder of the package."""
    with zipfile.ZipFile(package_bundle(name, folder / "zips", root=root)) as archive:
        archive.extractall(folder)
    return folder / name


def test_the_package_runs_alone_from_an_unrelated_folder_with_the_same_result(bundle, predicted, tmp_path):
    package = unpacked(bundle.name, tmp_path / "packages")
    _folder, out = predicted
    (tmp_path / "scans").mkdir()
    scan = save_case(bundle, tmp_path / "scans" / "scan.nii.gz", seed=1, shape=SMALL)
    cases = {"dataset_dir": tmp_path / "scans"}
    if isinstance(scan, list):
        cases = {"datalist_file": save_datalist(tmp_path / "scans", [scan])}
    options = {"config_file": package / "configs" / "inference.json", "bundle_root": package, "device": "cpu", **cases}
    arguments = [word for k, v in options.items() for word in (f"--{k}", str(v))]
    (tmp_path / "elsewhere").mkdir()
    done = run_isolated(RUN_ONE, tmp_path / "elsewhere", arguments=["run", *arguments, "--output_dir", "out"])
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, image in outputs(out, "a/scan").items():
        found = nib.load(tmp_path / "elsewhere" / "out" / f"scan_{kind}.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(image.dataobj))


@pytest.fixture
def next_release(bundle, tmp_path) -> Path:
    """Repository with a later release of the bundle, under a name of its own, and of ``common/``."""
    root, name = tmp_path / "repository", f"{bundle.name}_next"
    shutil.copytree(ROOT / "common", root / "common", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", root / "LICENSE")
    with (root / "common" / "__init__.py").open("a") as file:
        file.write("\nRELEASE = 2\n")
    copy = root / "bundles" / name
    shutil.copytree(bundle, copy, ignore=NOT_COPIED)
    (copy / bundle.name).rename(copy / name)
    for path in (*copy.rglob("*.py"), *copy.rglob("*.json")):
        text = re.sub(rf"\b{bundle.name}\b", name, path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
    meta = metadata(copy) | {"version": "9.0.0", "changelog": {"9.0.0": "a later release"}}
    (copy / "configs" / "metadata.json").write_text(json.dumps(meta))
    return root


def test_two_packages_of_different_releases_run_in_one_process(bundle, next_release, tmp_path):
    packages = [
        unpacked(bundle.name, tmp_path / "packages"),
        unpacked(f"{bundle.name}_next", tmp_path / "packages", root=next_release),
    ]
    scan = save_case(bundle, tmp_path / "scan.nii.gz", shape=SMALL)
    datalist = save_datalist(tmp_path, [scan])
    runs = [(str(p), str(tmp_path / f"out_{p.name}")) for p in packages]
    done = run_isolated(RUN_TWO, tmp_path, packages=runs, datalist=str(datalist))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {bundle.name: None, f"{bundle.name}_next": 2}
    first, second = (outputs(tmp_path / f"out_{p.name}", "scan") for p in packages)
    for kind, image in first.items():
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(second[kind].dataobj))
