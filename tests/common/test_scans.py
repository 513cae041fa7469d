"""Files are opened, read and compared in one way."""

import gzip
import itertools
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from common import scans
from common.data import ScanDataset
from common.errors import InputError
from common.scans import (
    as_mask,
    check_memory,
    foreground,
    grid_difference,
    on_grid_of,
    open_scan,
    read_scan,
    stem,
    whole_numbers,
)
from common.transforms import LoadScand, ResampleSpacingd

AFFINE = np.array([[-1.5, 0, 0, 30], [0, -1.0, 0, 40], [0, 0, 2.0, -25], [0, 0, 0, 1]])
VALUES = np.arange(120, dtype=np.int16).reshape(4, 5, 6)

few = settings(max_examples=40, deadline=None, derandomize=True)
numbers = st.floats(-1, 1)


def save(path, values=VALUES, affine=AFFINE, kind=nib.Nifti1Image):
    nib.save(kind(values, affine), path)
    return path


# kinds of files


@pytest.mark.parametrize(
    ("name", "kind", "written"),
    [
        ("a.nii", nib.Nifti1Image, nib.Nifti1Image),
        ("a.nii.gz", nib.Nifti2Image, nib.Nifti2Image),
        ("a.hdr", nib.Nifti1Pair, nib.Nifti1Image),
        ("a.img", nib.Nifti2Pair, nib.Nifti2Image),
        ("a.img.gz", nib.Nifti1Pair, nib.Nifti1Image),
    ],
)
def test_every_kind_of_nifti_is_read(tmp_path, name, kind, written):
    path = save(tmp_path / name, kind=kind)
    values, image = read_scan(path)
    np.testing.assert_array_equal(values, VALUES)
    np.testing.assert_allclose(image.affine, AFFINE)
    np.testing.assert_array_equal(np.asarray(LoadScand("image")({"image": path})["image"])[0], VALUES)
    made = on_grid_of(path, np.ones((4, 5, 6), dtype=np.uint8))
    assert type(made) is written
    nib.save(made, tmp_path / "made.nii")
    np.testing.assert_allclose(open_scan(tmp_path / "made.nii").affine, AFFINE)


def test_endings_may_be_in_upper_case(tmp_path):
    path = save(tmp_path / "a.nii.gz").rename(tmp_path / "a_FLAIR.NII.GZ")
    assert stem(path) == "a_FLAIR"
    np.testing.assert_array_equal(read_scan(path)[0], VALUES)
    assert [stem(name) for name in ("x/a.nii", "a.b.nii.gz", "a.img", "a.Hdr.gz")] == ["a", "a.b", "a", "a"]


def test_a_file_of_another_kind_is_refused(tmp_path):
    nib.save(nib.Spm99AnalyzeImage(VALUES, AFFINE), tmp_path / "old.img")
    with pytest.raises(InputError, match=r"old\.img is a file of type .*Analyze.*, expected NIfTI"):
        open_scan(tmp_path / "old.img")
    with pytest.raises(InputError, match=r"cannot be read as NIfTI \(File name too long\), expected"):
        open_scan(tmp_path / ("x" * 300 + ".nii.gz"))
    with pytest.raises(InputError, match=r"expected a NIfTI file|expected a \.nii"):
        open_scan("a\0b.nii.gz")


@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_was_cut_short_is_one_sentence(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 2**15, (20, 20, 20)).astype(np.int16)
    path = save(tmp_path / name, noise)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=rf"{name} cannot be read .*, expected a"):
        read_scan(path)


def test_several_volumes_are_read_where_they_are_meant(tmp_path):
    path = save(tmp_path / "maps.nii.gz", np.stack([VALUES, VALUES], axis=3))
    assert read_scan(path, volumes=True)[0].shape == (4, 5, 6, 2)
    with pytest.raises(InputError, match="so several volumes"):
        read_scan(path)


# grids


@few
@given(matrix=st.lists(numbers, min_size=9, max_size=9), shift=st.lists(st.floats(-200, 200), min_size=3, max_size=3))
def test_a_grid_survives_its_file(tmp_path_factory, matrix, shift):
    """Also oblique, sheared and left-handed ones: what is written on the grid of a file lies on it."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1.1, -0.9, 2.0]) + 0.4 * np.reshape(matrix, (3, 3))
    affine[:3, 3] = shift
    folder = tmp_path_factory.mktemp("grid")
    path = save(folder / "a.nii.gz", affine=affine)
    nib.save(on_grid_of(path, VALUES.astype(np.float32)), folder / "made.nii")
    made = open_scan(folder / "made.nii")
    np.testing.assert_array_equal(made.affine, open_scan(path).affine)
    assert grid_difference(VALUES.shape, made.affine, VALUES.shape, affine) is None


@few
@given(numbers=st.lists(numbers, min_size=12, max_size=12), size=st.floats(1e-4, 0.3))
def test_two_grids_are_one_where_no_voxel_is_further_off_than_a_twentieth_of_its_edge(numbers, size):
    shape, affine = (9, 12, 7), np.diag([0.8, 1.0, 3.0, 1.0])
    other = affine.copy()
    other[:3] += size * np.reshape(numbers, (3, 4)) * [0.1, 0.1, 0.1, 1]
    every = np.array([[*place, 1] for place in itertools.product(*map(range, shape))])  # by hand: all voxels
    furthest = np.linalg.norm(every @ (affine - other)[:3].T, axis=1).max()
    edge = min(0.8, np.linalg.norm(other[:3, :3], axis=0).min())
    assert (grid_difference(shape, affine, shape, other) is None) == (furthest <= 0.05 * edge)


def test_a_small_shear_moves_the_far_corner():
    """0.005 mm for each of 127 voxels: 0.635 mm, though no element of the matrix differs by more than 0.005."""
    sheared = np.eye(4)
    sheared[0, 1] = 0.005
    said = grid_difference((128, 128, 128), np.eye(4), (128, 128, 128), sheared)
    assert said == "affines that differ by up to 0.635 mm at a corner"


def test_small_voxels_add_up_and_a_rounded_origin_does_not():
    fine = np.diag([0.5, 0.5, 0.5, 1.0])
    stretched = np.diag([0.5009, 0.5009, 0.5009, 1.0])  # 0.0009 * 511 * sqrt(3)
    assert "0.797 mm" in grid_difference((512,) * 3, fine, (512,) * 3, stretched)
    rounded = fine.copy()
    rounded[:3, 3] = 0.002
    assert grid_difference((512,) * 3, fine, (512,) * 3, rounded) is None


# values


def test_a_label_that_is_stored_as_255_is_1(tmp_path):
    image = nib.Nifti1Image(np.array([0, 255] * 60, dtype=np.uint8).reshape(4, 5, 6), AFFINE)
    image.header.set_slope_inter(1 / 255, 0)
    nib.save(image, tmp_path / "label.nii.gz")
    values, _ = read_scan(tmp_path / "label.nii.gz", dtype=None)
    assert values.max() != 1  # 255 times the float32 nearest to 1 / 255
    assert np.unique(whole_numbers(values, "label")).tolist() == [0, 1]
    assert whole_numbers(torch.tensor([0.0, 2.9995]), "label").tolist() == [0, 3]
    with pytest.raises(InputError, match=r"label has the value 0\.998, expected whole numbers"):
        whole_numbers(np.array([0, 0.998, 1.9995]), "label")


def test_masks_and_backgrounds_have_a_rule(caplog):
    assert as_mask(np.array([0, 255, 0]), "m").tolist() == [False, True, False]
    assert as_mask(torch.tensor([0.0, 0.9999, 1.0]), "m").tolist() == [False, True, True]
    assert as_mask(np.zeros(3), "m").tolist() == [False] * 3
    assert as_mask(np.ones(3), "m").tolist() == [True] * 3
    assert not caplog.text
    for values in ([0, 0.5, 1], [-1, 0, 1], [0.01, 0.01, 1], [-0.1, 0.4, 1]):
        caplog.clear()
        assert as_mask(np.array(values, dtype=float), "m").tolist() == [False, False, True]
        assert "expected 0 outside and one value inside: it is cut at 0.5, half of its largest" in caplog.text
    with pytest.raises(InputError, match="m has values from -1 to -1, expected 0 outside and one value above 0 inside"):
        as_mask(-np.ones(3), "m")
    # the 99th percentile is 100, so 0.01 is the limit
    found = foreground(np.array([0, 0.009, -0.009, 0.011, -0.011] + [100.0] * 95))
    assert found[:5].tolist() == [False, False, False, True, True]


# memory


def test_what_stands_behind_the_voxels_is_not_unpacked(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz")
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole + bytes(1000)))
    np.testing.assert_array_equal(read_scan(path)[0], VALUES)  # some tools pad
    monkeypatch.setattr(scans, "TRAILING_BYTES", 2**20)
    path.write_bytes(gzip.compress(whole + bytes(2**20)))
    np.testing.assert_array_equal(read_scan(path)[0], VALUES)
    path.write_bytes(gzip.compress(whole + bytes(2**20 + 1)))
    with pytest.raises(InputError, match=r"a\.nii\.gz goes on for more than 1 MiB behind its voxels"):
        read_scan(path)


def test_more_than_the_limit_is_refused_with_the_numbers(tmp_path):
    """120 voxels: 2 bytes on disk and 12 in memory each, and 352 of the header."""
    path = save(tmp_path / "a.nii.gz")
    enough = (120 * 14 + 352) / 2**30
    assert LoadScand("image", max_memory_gib=enough)({"image": path})["image"].shape == (1, 4, 5, 6)
    with pytest.raises(
        InputError, match=r"a\.nii\.gz: 4 x 5 x 6 voxels need about 0\.0 GiB to be read, expected no more"
    ):
        LoadScand("image", max_memory_gib=0.99 * enough)({"image": path})
    with pytest.raises(
        InputError, match=r"s: 9 x 9 x 9 voxels need about 1048576\.0 GiB to be read, .* \d+\.\d GiB free"
    ):
        check_memory("s", (9, 9, 9), 2**50, "to be read")


def test_a_volume_that_resampling_would_blow_up_is_refused_before_it_is_made():
    image = MetaTensor(torch.zeros(1, 48, 48, 48), affine=np.diag([20.0, 20, 20, 1]), meta={"filename_or_obj": "h.nii"})
    sentence = "h.nii: 960 x 960 x 960 voxels need about 62.6 GiB to be resampled from 20x20x20 to 1x1x1 mm"
    with pytest.raises(InputError, match=sentence):
        ResampleSpacingd("image", pixdim=[1.0, 1.0, 1.0], mode="bilinear", max_memory_gib=60)({"image": image})


def test_lack_of_memory_in_one_case_is_a_failure_of_that_case(tmp_path):
    def hungry(item):
        if item["name"] == "b":
            raise RuntimeError("applying transform") from MemoryError()
        return item

    cases = [{"image": f"{name}.nii.gz", "name": name} for name in "abc"]
    found = list(ScanDataset(cases, hungry, keep_going=True))
    assert [item.get("failure") for item in found] == [
        None,
        "b.nii.gz does not fit into the memory, expected a smaller image",
        None,
    ]
    with pytest.raises(InputError, match=re.escape("b.nii.gz does not fit into the memory")):
        list(ScanDataset(cases, hungry))
