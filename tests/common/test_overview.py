"""Numbers and page of results without references."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from bundle_tools import save_nifti

from common.errors import InputError
from common.overview import Overview

AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])  # 0.01 ml a voxel
SHAPE = (60, 70, 50)
BRAIN = (slice(5, 55), slice(5, 65), slice(5, 45))  # 120 000 voxels, 1200 ml


@pytest.fixture
def make(tmp_path):
    """An overview of cases that are given by where their lesions are."""

    def overview(masks, scores=None, brain=BRAIN, name="case{}", **options):
        cases = []
        for number, boxes in enumerate(masks):
            case = name.format(number)
            image, mask = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
            image[brain] = np.random.default_rng(number).uniform(50, 100, image[brain].shape)
            for value, *box in boxes:
                mask[tuple(box)] = value
            path = save_nifti(tmp_path / "in" / f"{case}.nii.gz", image, AFFINE)
            save_nifti(tmp_path / "out" / f"{case}_seg.nii.gz", mask, AFFINE)
            if scores is not None:
                save_nifti(tmp_path / "out" / f"{case}_prob.nii.gz", scores[number].astype(np.float32), AFFINE)
            cases.append({"image": str(path), "name": case, "subject": f"s{number}"})
        return Overview(cases, tmp_path / "out", **({"label_names": {"1": "lesion"}, "title": "page"} | options))

    return overview


def table(folder):
    with (folder / "volumes.tsv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_volumes_of_lesions_are_those_that_one_counts_by_hand(make, tmp_path):
    large = (1, slice(10, 20), slice(10, 20), slice(10, 20))  # 1000 voxels, 10 ml
    small = [(1, slice(x, x + 2), slice(40, 41), slice(30, 31)) for x in (10, 20)]  # 0.02 ml each
    scores = np.zeros(SHAPE)
    scores[BRAIN] = 0.25
    make([[large, *small]], [scores]).write()
    (row,) = table(tmp_path / "out")
    assert row == {
        "case": "case0",
        "subject": "s0",
        "brain_ml": "1200",
        "lesion_ml": "10.04",
        "lesion_percent": "0.836667",
        "lesion_count": "3",
        "lesion_median_ml": "0.02",
        "lesion_largest_ml": "10",
        "lesion_expected_ml": "300",
        "flags": "",
    }


@pytest.mark.parametrize(
    ("bright", "sequence", "flags"),
    [
        (1.4, "t2_flair", ""),  # the name is understood
        (2.2, "FLAIR", "contrast unlike FLAIR"),  # as the fluid of a T2w
        (1.02, "FLAIR", "contrast unlike FLAIR"),  # nothing stands out
        (1.4, "T1", ""),
        (2.2, "T1", "contrast unlike T1w"),
        (2.2, "T2w", ""),
    ],
)
def test_a_scan_that_is_no_such_sequence_is_flagged(make, tmp_path, bright, sequence, flags):
    overview = make([[(1, 10, 10, 10)]], sequences=[sequence])
    path = Path(overview.cases[0]["image"])
    image = np.zeros(SHAPE, np.float32)
    image[BRAIN] = np.random.default_rng(0).choice(
        [0.4, 1, 1 + (bright - 1) / 3, bright], (50, 60, 40), p=[0.2, 0.4, 0.3, 0.1]
    )
    save_nifti(path, 100 * image, AFFINE)
    overview.write()
    assert table(tmp_path / "out")[0]["flags"] == flags
    save_nifti(path, 100 * (image - 1) * (image > 0), AFFINE)  # z-scores, of which nothing is said
    make_again = Overview(overview.cases, tmp_path / "out", {"1": "lesion"}, title="page", sequences=[sequence])
    assert not any("contrast" in flag for flag in make_again.rows[0]["flags"])


def test_the_sum_of_a_map_is_no_volume_where_it_holds_no_probabilities(make, tmp_path):
    make([[(1, 10, 10, 10)]], [np.full(SHAPE, 3.0)], probability=False).write()
    assert not any("expected" in column for column in table(tmp_path / "out")[0])


def test_tissues_have_volumes_and_no_lesions(make, tmp_path):
    gray, white = (1, slice(5, 15), *BRAIN[1:]), (2, slice(15, 55), *BRAIN[1:])
    make([[gray, white]], label_names={"1": "GM", "2": "WM"}, classes=4).write()
    (row,) = table(tmp_path / "out")
    assert (row["GM_ml"], row["GM_percent"], row["WM_percent"], row["label 3_ml"]) == ("240", "20", "80", "0")
    assert row["flags"] == "no label 3"
    assert not any("count" in column for column in row)


@pytest.mark.parametrize(
    ("boxes", "brain", "flag"),
    [
        ([], BRAIN, "no lesion"),
        ([(1, 59, 30, 20)], BRAIN, "touches the border"),
        ([(1, 30, 30, 0)], BRAIN, "touches the border"),
        ([(1, 30, 30, 20)], (slice(5, 30), *BRAIN[1:]), "brain volume improbable"),  # 600 ml
        ([(1, x, y, 20) for x in range(10, 50, 4) for y in range(10, 50, 4)], BRAIN, "many tiny components"),
    ],
)
def test_what_looks_wrong_is_flagged(make, tmp_path, boxes, brain, flag):
    make([boxes], brain=brain).write()
    assert [row["flags"] for row in table(tmp_path / "out")] == [flag]


def test_99_tiny_components_are_not_many_nor_are_100_among_as_many_others(make, tmp_path):
    tiny = [(1, x, y, 20) for x in range(10, 50, 4) for y in range(10, 50, 4)]
    others = [(1, x, slice(y, y + 3), 30) for x in range(10, 50, 4) for y in range(10, 50, 4)]  # 0.03 ml each
    assert len(tiny) == len(others) == 100
    make([tiny[:99], tiny + others]).write()
    assert [row["flags"] for row in table(tmp_path / "out")] == ["", ""]


def test_the_page_shows_cases_with_flags_first_and_no_reference(make, tmp_path):
    page = make([[(1, 30, 30, 20)], [], [(1, 0, 30, 20)]]).write().read_text()
    assert re.findall(r"<h4>(.*?)</h4>", page) == ["case1", "case2", "case0"]
    assert '<p class="flags">no lesion</p>' in page
    assert "2 of 3" in page
    assert "</i>reference" not in page
    assert page.count("<img") >= 3 * 3


def test_equal_results_give_equal_files_without_folders_and_code(make, tmp_path):
    masks = [[(1, 30, 30, 20)], []]
    options = {"name": "<u>{}", "title": "<script>", "settings": {"weights": "/home/somebody/model.pt"}}
    files = [make(masks, **options).write().parent / name for name in ("report.html", "volumes.tsv")]
    files += [files[0].parent / "views" / f"<u>{number}.html" for number in range(2)]
    before = [file.read_bytes() for file in files]
    make(masks, **options).write()
    assert [file.read_bytes() for file in files] == before
    text = files[0].read_text()
    assert not re.search(r"<script|<u>|/home|" + re.escape(str(tmp_path)), text)
    assert "&lt;script&gt;" in text
    assert "<u>" not in files[-1].read_text()


def test_labels_of_the_cases_are_not_looked_at(make):
    overview = make([[(1, 30, 30, 20)]])
    with_label = [case | {"label": "nowhere.nii.gz", "healthy": True, "label_source": "x"} for case in overview.cases]
    assert Overview(with_label, overview.output_dir, {"1": "lesion"}, title="page").rows == overview.rows


def test_a_case_that_failed_is_named_and_one_without_mask_stops_the_page(make, tmp_path):
    overview = make([[(1, 30, 30, 20)], []])
    page = overview.write({"case1": "/data/case1.nii.gz is zero everywhere"}).read_text()
    assert "case1.nii.gz is zero everywhere" in page
    assert "/data" not in page
    assert [row["case"] for row in table(tmp_path / "out")] == ["case0"]
    (tmp_path / "out" / "case1_seg.nii.gz").unlink()
    lacking = Overview([overview.cases[0] | {"name": "case1"}], tmp_path / "out", {"1": "lesion"})
    with pytest.raises(InputError, match=r"case1_seg\.nii\.gz does not exist"):
        lacking.write()
