"""The quickstart: the bundles on phantoms, one page, and no folder touched that it did not make."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import BUNDLES, NOT_COPIED, load_script, network, save_nifti

from common.errors import InputError
from common.phantom import TISSUES

script = load_script("quickstart")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> list[Path]:
    """The bundles with weights at random: what is tested here does not hang on what they learned."""
    folder = tmp_path_factory.mktemp("bundles")
    copies = [folder / bundle.name for bundle in BUNDLES]
    for bundle, copy in zip(BUNDLES, copies, strict=True):
        shutil.copytree(bundle, copy, ignore=NOT_COPIED)
        (copy / "models").mkdir(exist_ok=True)
        torch.manual_seed(0)
        torch.save(network(bundle).state_dict(), copy / "models" / "model.pt")
    return copies


@pytest.fixture(scope="module")
def finished(bundles, tmp_path_factory) -> Path:
    """Folder of a run on one patient and one healthy subject."""
    folder = tmp_path_factory.mktemp("run") / "quickstart"
    groups = {"ms": (0, 0, 1), "healthy": (0, 0, 1)}
    script.run(folder, bundles, groups, 6.0, {"device": "cpu", "spacing": [6.0, 6.0, 6.0]}, num_workers=1)
    return folder


def test_one_page_shows_every_bundle_and_every_case(bundles, finished):
    page = (finished / "report.html").read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Summary", *(bundle.name for bundle in bundles)]
    assert page.count("<article") == 2 * len(bundles)
    assert "plain FLAIR threshold" in page
    assert "http" not in page.replace("http://www.w3.org", ""), "nothing is fetched"


def test_masks_and_maps_lie_on_the_grid_of_the_phantoms(bundles, finished):
    for bundle in bundles:
        cases = json.loads((finished / bundle.name / "cases.json").read_text())["test"]
        assert len(cases) == 2
        for case in cases:
            first = finished / bundle.name / case["image"][0]
            mask = nib.load(finished / bundle.name / f"{first.name.removesuffix('.nii.gz')}_seg.nii.gz")
            assert mask.shape == nib.load(first).shape
            np.testing.assert_array_equal(mask.affine, nib.load(first).affine)


def test_picture_of_each_bundle_has_three_panels_side_by_side(bundles, finished):
    for bundle in bundles:
        with script.Image.open(finished / bundle.name / "picture.png") as picture:
            assert picture.width > 2 * picture.height


def test_second_run_replaces_the_results_and_leaves_other_files(tmp_path):
    out = tmp_path / "out"
    script.clear(out, [])
    for name in ("cohort/sub-001/scan.nii.gz", "report.html", "notes.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("of the first run, or of the user")
    script.clear(out, ["cohort", "report.html", "never_made"])
    assert [path.name for path in out.iterdir() if path.name != script.MARKER] == ["notes.txt"]


def test_folder_of_something_else_is_refused_and_left_as_it_is(bundles, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "cohort").mkdir()
    with pytest.raises(InputError, match="holds files of something else"):
        script.run(tmp_path, bundles, {"ms": (0, 0, 1)}, 6.0, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort", "thesis.tex"]


def test_link_in_an_own_folder_is_removed_and_not_followed(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data.txt").write_text("precious")
    script.clear(out, [])
    (out / "cohort").symlink_to(elsewhere)
    script.clear(out, ["cohort"])
    assert not (out / "cohort").exists()
    assert (elsewhere / "data.txt").read_text() == "precious"


def test_baseline_takes_the_threshold_that_is_best_for_the_cases(tmp_path):
    # Brain 1 to 5, median 3. In the order of brightness, lesion L: 5 L, 4 -, 3 L, 2 -, 1 -. Dice at 5: 2/3, at 3: 4/5.
    image, label = np.zeros((2, 2, 4), np.float32), np.zeros((2, 2, 4), np.uint8)
    image[0, 0], image[1, 1, 0] = [5, 4, 3, 2], 1
    label[0, 0] = [1, 0, 1, 0]
    case = {"name": "a", "image": str(save_nifti(tmp_path / "a.nii.gz", image, np.eye(4)))}
    case |= {"label": str(save_nifti(tmp_path / "label.nii.gz", label, np.eye(4))), "subject": "a"}
    row = script.plain_threshold([case], tmp_path / "out")
    assert row.evaluation.threshold == 1
    assert row.evaluation.rows[0]["dice"] == pytest.approx(4 / 5)
    assert script.summary_cells(row)[1:3] == ["0.800", "0.800"]


def test_bundle_tells_which_labelling_of_the_phantoms_it_makes(bundles, tmp_path):
    configs = tmp_path / "tissue_bundle" / "configs"
    configs.mkdir(parents=True)
    (configs / "inference.json").write_text(json.dumps({"sequences": ["T1w", "FLAIR"]}))
    names = {str(value): name.upper() for value, name in TISSUES.items()}
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": names}}}}
    (configs / "metadata.json").write_text(json.dumps(metadata))
    assert script.read_task(configs.parent)[1:] == (("T1w", "FLAIR"), "tissues")

    metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "background", "1": "liver"}
    (configs / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="tissue_bundle makes background, liver of T1w, FLAIR, expected"):
        script.read_task(configs.parent)
