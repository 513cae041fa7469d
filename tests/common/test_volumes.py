"""What a server is told of a result: volumes by hand, and flags."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from common.transforms import BrainMaskd, LoadScand
from common.volumes import MeasureForServerd
from common.warned import HEARD

AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])  # 0.01 ml a voxel
SHAPE = (1, 60, 70, 50)


@pytest.fixture
def item():
    """One lesion of 10 ml in a brain of 1200 ml, as the server's transforms have it."""
    HEARD.kept.clear()  # what other tests have said of files with this name
    mask, brain = torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.bool)
    brain[:, 5:55, 5:65, 5:45] = True
    mask[:, 10:20, 10:20, 10:20] = 1
    return {"pred": MetaTensor(mask, affine=AFFINE), "brain_mask": brain, "image_path": "scan.nii.gz"}


def test_a_result_has_volumes_and_flags_as_json(item):
    found = MeasureForServerd("pred", {"1": "lesion"})(item)["result"]
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "brain_ml": 1200,
        "lesion_ml": 10,
        "lesion_percent": 0.8333,
        "lesion_count": 1,
        "lesion_median_ml": 10,
        "lesion_largest_ml": 10,
        "flags": [],
        "warnings": [],
    }


def test_what_is_not_known_is_null_and_nothing_found_is_a_flag(item):
    item["pred"][:] = 0
    found = MeasureForServerd("pred", {"1": "lesion"})(item)["result"]
    assert (found["lesion_ml"], found["lesion_count"], found["lesion_median_ml"]) == (0, 0, None)
    assert found["flags"] == ["no lesion"]


def test_several_labels_are_not_counted_and_one_without_a_name_has_its_value(item):
    item["pred"][:, 30:40, 10:20, 10:20] = 7
    found = MeasureForServerd("pred", {"1": "GM", "2": "WM"})(item | {"result": {"kept": 1}})["result"]
    assert (found["kept"], found["GM_ml"], found["WM_ml"], found["label 7_ml"]) == (1, 10, 0, 10)
    assert found["flags"] == ["no WM"]
    assert "GM_count" not in found


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [0, -1])
def test_a_lesion_at_any_border_of_the_volume_is_a_flag(item, axis, side):
    place = [30, 35, 25]
    place[axis] = side
    item["pred"][(0, *place)] = 1
    assert "touches the border" in MeasureForServerd("pred", {"1": "lesion"})(item)["result"]["flags"]


def test_what_was_said_of_the_files_on_the_way_is_told_without_their_folders(tmp_path):
    scan = np.random.default_rng(0).uniform(80, 120, (40, 40, 40)).astype(np.float32)
    scan[0] = 0  # the rest is brain: 39 of 40 slices, 62400 voxels of 0.064 ml
    for name in ("other_FLAIR.nii.gz", "a_FLAIR.nii.gz"):
        nib.save(nib.Nifti1Image(scan, np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / name)
    steps = [LoadScand("image"), BrainMaskd("image"), MeasureForServerd("pred", {"1": "lesion"})]

    def served(name: str, *transforms) -> dict:
        item = {"image": str(tmp_path / name), "image_path": str(tmp_path / name)}
        item = Compose(transforms[:2])(item)
        return Compose(transforms[2:])(item | {"pred": MetaTensor(torch.zeros(1, 40, 40, 40), item["image"].affine)})

    served("other_FLAIR.nii.gz", *steps[:2])  # a request that failed later
    with ThreadPoolExecutor() as pool:
        pool.submit(served, "a_FLAIR.nii.gz", *steps[:2]).result()  # another request
    first, again = (served("a_FLAIR.nii.gz", *steps)["result"] for _ in range(2))
    assert first["warnings"] == again["warnings"]
    assert first["warnings"] == [
        "a_FLAIR.nii.gz: 98 % of the voxels are not 0, expected a skull-stripped image",
        "a_FLAIR.nii.gz: 4.0 l are not 0, expected a brain of up to 2.4 l: strip the skull, or give a brain mask",
    ]
    json.dumps(first, allow_nan=False)


def test_a_scan_that_looks_like_another_sequence_is_told(tmp_path):
    scan = np.zeros((40, 40, 40), np.float32)
    scan[5:35, 5:35, 5:35] = np.linspace(50, 250, 30)  # a percentile of 95 is 1.6 times the median
    nib.save(nib.Nifti1Image(scan, np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "b_FLAIR.nii.gz")
    path = str(tmp_path / "b_FLAIR.nii.gz")

    def warnings_of(sequence: str) -> list[str]:
        HEARD.kept.clear()
        steps = Compose([LoadScand("image"), BrainMaskd("image", sequences=[sequence])])
        item = steps({"image": path, "image_path": path})
        item["pred"] = MetaTensor(torch.zeros(1, 40, 40, 40), item["image"].affine)
        return MeasureForServerd("pred", {"1": "lesion"})(item)["result"]["warnings"]

    said = (
        "b_FLAIR.nii.gz: channel 0 has a contrast unlike FLAIR: percentiles 75 and 95 of the brain are 1.34 and "
        "1.62 times its median, usual are 1.04 to 1.23 and 1.1 to 1.58; is it another sequence?"
    )
    assert warnings_of("FLAIR") == warnings_of("t2_flair") == [said]
    assert warnings_of("T1w") == warnings_of("T2w") == []


def test_without_a_server_nothing_is_measured(item):
    del item["image_path"], item["brain_mask"]
    assert MeasureForServerd("pred", {"1": "lesion"})(item).keys() == {"pred"}


def test_another_grid_is_refused(item):
    item["brain_mask"] = item["brain_mask"][:, 1:]
    with pytest.raises(ValueError, match=r"\(60, 70, 50\) and brain mask \(59, 70, 50\) differ"):
        MeasureForServerd("pred", {"1": "lesion"})(item)
