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
from bundle_tools import BUNDLES, NOT_COPIED, load_script, parsed, save_nifti

from common.engines import LoadWeights
from common.errors import InputError
from common.phantom import TISSUES

script = load_script("quickstart")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> list[Path]:
    """The bundles with weights at random: what is tested here does not hang on what they learned."""
    folder = tmp_path_factory.mktemp("bundles")
    for bundle in BUNDLES:
        shutil.copytree(bundle, folder / bundle.name, ignore=NOT_COPIED)
        inference = folder / bundle.name / "configs" / "inference.json"
        for layers in ([], *([path] for path in script.layers_of(inference.parents[1]))):
            config = parsed([inference, *layers], bundle_root=str(folder / bundle.name))
            for i in range(len(config["handlers"])):
                torch.manual_seed(0)
                handler = config.get_parsed_content(f"handlers::{i}")
                if isinstance(handler, LoadWeights):
                    torch.save(handler.network.state_dict(), handler.path)
    return [folder / bundle.name for bundle in BUNDLES]


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


def test_layers_on_other_configs_and_layers_whose_weights_do_not_ship_are_left_out(tmp_path):
    configs = tmp_path / "bundle" / "configs"
    configs.mkdir(parents=True)
    (tmp_path / "bundle" / "models").mkdir()
    (tmp_path / "bundle" / "models" / "there.pt").touch()
    there, absent = ({"weights": f"$@bundle_root + '/models/{name}.pt'"} for name in ("there", "absent"))
    (configs / "inference.json").write_text(json.dumps({"bundle_root": "x", **there}))
    layer = {"_desc_": "Layer on inference.json: another way."}
    for name, content in {
        "same": layer,
        "none": {**layer, "weights": None},
        "absent": {**layer, **absent},
        "other": {"_desc_": "Layer on inference_pairs.json: another way to something else."},
        "pairs": {"_desc_": "Pairs.", "bundle_root": "x"},
    }.items():
        (configs / f"inference_{name}.json").write_text(json.dumps(content))
    assert [path.stem for path in script.layers_of(tmp_path / "bundle")] == ["inference_none", "inference_same"]


def test_summary_has_a_line_per_way_to_the_masks(bundles, finished):
    page = (finished / "report.html").read_text()
    for bundle in bundles:
        ways = [bundle.name, *(f"{bundle.name}, {p.stem}" for p in script.layers_of(bundle))]
        for way in ways:
            assert f'<th scope="row">{way}</th>' in page
            folder = finished.joinpath(*way.split(", "))
            assert len(list(folder.glob("*_seg.nii.gz"))) == 2
            assert (folder / "metrics.json").is_file()


def test_summary_averages_the_cases_with_a_lesion_and_pools_all(tmp_path):
    # a: 2 of 2 lesion voxels found and 2 more, Dice 2/3; b: healthy, 1 voxel; pooled 2 * 2 / (2 + 5) = 0.571
    cases = []
    for name, label, found in (("a", [1, 1, 0, 0], [1, 1, 1, 1]), ("b", [0, 0, 0, 0], [1, 0, 0, 0])):
        case = {"name": name, "subject": name}
        for key, values in (("image", [9, 9, 9, 9]), ("label", label), ("seg", found)):
            array = np.zeros((2, 2, 4), np.uint8)
            array[0, 0] = values
            case[key] = str(save_nifti(tmp_path / f"{name}_{key}.nii.gz", array, np.diag([10, 10, 10, 1])))
        cases.append(case)
    row = script.Row("toy", script.Report(cases, tmp_path), 3.4)
    assert script.summary_cells(row) == ["toy", "0.667", "0.571", "–", "1.00", "3"]


def test_bundle_tells_which_labelling_of_the_phantoms_it_makes(bundles, tmp_path):
    configs = tmp_path / "tissue_bundle" / "configs"
    configs.mkdir(parents=True)
    (configs / "inference.json").write_text(json.dumps({"sequences": ["T1w", "FLAIR"]}))
    names = {str(value): name.upper() for value, name in TISSUES.items()}
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": names}}}}
    (configs / "metadata.json").write_text(json.dumps(metadata))
    assert script.read_task(configs.parent)[1:] == (("T1w", "FLAIR"), "tissues", {})
    names.pop("4")  # tissues alone: of a lesion it is open what it is
    (configs / "metadata.json").write_text(json.dumps(metadata))
    overrides = script.read_task(configs.parent).overrides
    assert overrides == {"report#reference_sets": {"joint": {0: [0], 1: [1], 2: [2], 3: [3], 4: [0, 1, 2, 3]}}}

    metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "background", "1": "liver"}
    (configs / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="tissue_bundle makes background, liver of T1w, FLAIR, expected"):
        script.read_task(configs.parent)
