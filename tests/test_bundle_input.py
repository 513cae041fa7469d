"""Bad input on the command line of every bundle: one sentence, an exit code, and no file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import (
    NOT_COPIED,
    OBLIQUE,
    SMALL,
    Finished,
    make_head,
    save_case,
    save_datalist,
    save_nifti,
    sequences,
    weights,
)


def assert_refused(done: Finished, output_dir: Path, *mentioned: str) -> None:
    """One sentence that mentions the given words, an exit code, and no file."""
    assert done.code != 0, done.output[-3000:]
    assert len(done.errors) == 1, done.output[-3000:]
    assert "Traceback" not in done.output, done.output[-6000:]
    assert done.output.rstrip().splitlines()[-1] == done.errors[0]
    assert [word for word in mentioned if word not in done.errors[0]] == [], done.errors[0]
    assert [p for p in output_dir.rglob("*") if p.is_file()] == []


@pytest.fixture
def root_with(bundle, tmp_path) -> Callable[[dict | None], Path]:
    """A copy of the bundle with other weights, or with none."""

    def copy(state: dict | None) -> Path:
        root = tmp_path / "root"
        shutil.copytree(bundle, root, ignore=NOT_COPIED)
        (root / "models" / "model.pt").unlink(missing_ok=True)
        if state is not None:
            torch.save(state, root / "models" / "model.pt")
        return root

    return copy


@pytest.fixture(scope="module")
def scans(bundle, tmp_path_factory) -> Path:
    """Datalist of one good case."""
    folder = tmp_path_factory.mktemp("scans")
    return save_datalist(folder, [save_case(bundle, folder / "scan.nii.gz", shape=SMALL)])


def test_missing_weights_stop_the_run(infer, root_with, scans, tmp_path):
    done = infer(tmp_path / "out", bundle_root=root_with(None), datalist_file=scans)
    assert_refused(done, tmp_path / "out", "model.pt")


def test_weights_of_another_shape_stop_the_run(bundle, infer, root_with, scans, tmp_path):
    state = weights(bundle)
    key = next(k for k, v in state.items() if v.ndim > 1)
    done = infer(tmp_path / "out", bundle_root=root_with({**state, key: state[key][:, :0]}), datalist_file=scans)
    assert_refused(done, tmp_path / "out", "model.pt", key)


def test_weights_of_another_network_stop_the_run(infer, root_with, scans, tmp_path):
    done = infer(tmp_path / "out", bundle_root=root_with({"other.weight": torch.ones(3)}), datalist_file=scans)
    assert_refused(done, tmp_path / "out", "model.pt")


def test_weights_that_are_no_tensors_stop_the_run(infer, root_with, scans, tmp_path):
    root = root_with({})
    (root / "models" / "model.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    done = infer(tmp_path / "out", bundle_root=root, datalist_file=scans)
    assert_refused(done, tmp_path / "out", "model.pt")


@pytest.mark.parametrize("content", [[], ["notes.txt"]])
def test_a_folder_without_nifti_is_named(infer, tmp_path, content):
    (tmp_path / "empty").mkdir()
    for name in content:
        (tmp_path / "empty" / name).write_text("no image")
    assert_refused(infer(tmp_path / "out", dataset_dir=tmp_path / "empty"), tmp_path / "out", str(tmp_path / "empty"))


def test_a_missing_folder_and_a_missing_datalist_are_named(infer, tmp_path):
    assert_refused(infer(tmp_path / "out", dataset_dir=tmp_path / "nowhere"), tmp_path / "out", "nowhere")
    assert_refused(infer(tmp_path / "out", datalist_file=tmp_path / "nothing.json"), tmp_path / "out", "nothing.json")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewritten(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Changes the voxels of a file."""

    def rewrite(path: Path) -> None:
        image = nib.load(path)
        save_nifti(path, change(np.asarray(image.dataobj).copy()), image.affine)

    return rewrite


def with_nan(array: np.ndarray) -> np.ndarray:
    array[10:12, 10, 10] = np.nan
    return array


BAD_FILES = {
    "a file that is missing": (Path.unlink, []),
    "a truncated file": (truncated, []),
    "a text file with the name of an image": (lambda path: path.write_text("not an image"), []),
    "a 2-D image": (rewritten(lambda a: a[..., 0]), []),
    "several volumes in one file": (rewritten(lambda a: np.stack([a, a], -1)), ["2"]),
    "nothing but zeros": (rewritten(np.zeros_like), []),
    "NaN": (rewritten(with_nan), ["2"]),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_named_and_nothing_is_written(bundle, infer, tmp_path, what):
    damage, mentioned = BAD_FILES[what]
    case = save_case(bundle, tmp_path / "bad.nii.gz", shape=SMALL)
    datalist = save_datalist(tmp_path, [case])
    damage(tmp_path / "bad.nii.gz")
    assert_refused(infer(tmp_path / "out", datalist_file=datalist), tmp_path / "out", "bad.nii.gz", *mentioned)


def test_a_case_with_one_image_too_many_is_refused(bundle, infer, tmp_path):
    case = save_case(bundle, tmp_path / "scan.nii.gz", shape=SMALL)
    extra = save_nifti(tmp_path / "extra.nii.gz", make_head(5, shape=SMALL).image, OBLIQUE)
    datalist = save_datalist(tmp_path, [[*(case if isinstance(case, list) else [case]), str(extra)]])
    n = sequences(bundle)
    assert_refused(infer(tmp_path / "out", datalist_file=datalist), tmp_path / "out", "scan.nii.gz", str(n), str(n + 1))


def test_a_brain_mask_on_another_grid_is_refused(bundle, infer, tmp_path):
    case = save_case(bundle, tmp_path / "scan.nii.gz", shape=SMALL)
    datalist = save_datalist(tmp_path, [case])
    save_nifti(tmp_path / "mask.nii.gz", make_head(shape=SMALL).brain, OBLIQUE @ np.diag([1.0, 1.0, 1.1, 1.0]))
    datalist.write_text(json.dumps([item | {"brain_mask": "mask.nii.gz"} for item in json.loads(datalist.read_text())]))
    assert_refused(infer(tmp_path / "out", datalist_file=datalist), tmp_path / "out", "mask.nii.gz")


def test_an_output_folder_that_cannot_be_made_is_named(infer, scans, tmp_path):
    (tmp_path / "taken").write_text("a file, no folder")
    done = infer(tmp_path / "taken", datalist_file=scans)
    assert_refused(done, tmp_path / "nothing", "taken")


def test_keep_going_reports_on_the_other_cases_and_still_fails(bundle, cohort, monai_bundle, tmp_path):
    folder = tmp_path / "cohort"
    shutil.copytree(cohort.parent, folder)
    (folder / "cohort.json").write_text(cohort.read_text().replace(str(cohort.parent), str(folder)))
    truncated(folder / "sub-4_FLAIR.nii.gz")
    configs = [f"bundles/{bundle.name}/configs/{name}.json" for name in ("inference", "evaluate")]
    options = {"datalist_file": folder / "cohort.json", "section": "test", "output_dir": tmp_path / "out"}
    options |= {"device": "cpu", "keep_going": True}
    done = monai_bundle("run", "--config_file", str(configs), *(w for k, v in options.items() for w in (f"--{k}", v)))
    assert done.code != 0
    assert len(done.errors) == 1, done.output[-3000:]
    assert "1 of 2 cases failed" in done.errors[0]
    assert "Traceback" not in done.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["name"] for row in metrics["cases"]] == ["sub-5_FLAIR"] * len({r["label"] for r in metrics["cases"]})
    assert list(metrics["failures"]) == ["sub-4_FLAIR"]
    assert "sub-4_FLAIR.nii.gz cannot be read" in (tmp_path / "out" / "report.html").read_text()


def test_keep_going_finishes_the_other_cases_and_still_fails(bundle, infer, tmp_path):
    names = ["first", "bad", "last"]
    cases = [save_case(bundle, tmp_path / f"{name}.nii.gz", seed=i, shape=SMALL) for i, name in enumerate(names)]
    datalist = save_datalist(tmp_path, cases)
    truncated(tmp_path / "bad.nii.gz")
    done = infer(tmp_path / "out", datalist_file=datalist, keep_going=True)
    assert done.code != 0
    assert len(done.errors) == 1, done.output[-3000:]
    assert "Traceback" not in done.output
    assert "1 of 3" in done.errors[0]
    assert "bad.nii.gz" in done.errors[0]
    assert {p.name.rsplit("_", 1)[0] for p in (tmp_path / "out").rglob("*.nii.gz")} == {"first", "last"}
    assert all(nib.load(p).shape == SMALL for p in (tmp_path / "out").rglob("*.nii.gz"))
