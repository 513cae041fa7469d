"""Raw scans prepared and results brought back: geometry, bias field, brain extraction, resuming, failures."""

from __future__ import annotations

import itertools
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from bundle_tools import ROOT, load_script, save_nifti
from scipy import ndimage
from scipy.spatial.transform import Rotation

import preparation
from common.data import list_cases, prefix_of
from common.errors import InputError
from common.geometry import rotation_matrix
from common.sequences import sequence_name
from phantom import Grid, make_subject
from preparation import Settings, prepare_cases, read_record, restore, sections_to_prepare
from preparation.bias import bias_field
from preparation.brain import Brain, bright_outside, deepbet_brain, extract_brain
from preparation.case import _resampled, _Scans
from preparation.coregistration import Match, coregister
from preparation.registration import itk_affine, matrix_of, require_simpleitk, template_to_scan
from preparation.volume import Volume

main = load_script("prepare_data").main
restore_main = load_script("restore_data").main
make_datalist = load_script("make_datalist").main

# 3 mm, first axis to the left, third to the front: a raw order unlike right, front, top
RAW = np.array([[-3.0, 0, 0, 99], [0, 0, 3.0, -132], [0, 3.0, 0, -99], [0, 0, 0, 1]])
SHAPE = (66, 66, 72)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a > 0, b > 0
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def array_of(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def head():
    """Phantom with scalp, its own size, place and tilt, and lesions."""
    require_simpleitk()
    return make_subject(3, scalp=True, grid=Grid(SHAPE, RAW), sequences=("T1w", "FLAIR"), fine_mm=3.0)


@pytest.fixture(scope="module")
def moved() -> np.ndarray:
    """A rigid motion: 4 and 6 degrees, (5, -4, 3) mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(np.radians([4.0, 0.0, 6.0]))
    matrix[:3, 3] = [5.0, -4.0, 3.0]
    return matrix


@pytest.fixture(scope="module")
def raw(head, moved, tmp_path_factory) -> Path:
    """T1w and a FLAIR of another day: on a grid of thick slices that has moved against the head."""
    folder = tmp_path_factory.mktemp("raw")
    save_nifti(folder / "sub-1_T1w.nii.gz", 100 * head.images["T1w"], RAW)
    save_nifti(folder / "sub-1_label.nii.gz", head.lesion, RAW)
    thick = RAW @ np.diag([1, 2, 1, 1.0])
    flair = Volume(100 * head.images["FLAIR"], RAW).on_grid((66, 33, 72), thick, moved)
    save_nifti(folder / "sub-1_FLAIR.nii.gz", flair.values, thick)
    save_nifti(folder / "sub-1_brainmask.nii.gz", head.brain_mask, RAW)
    return folder


@pytest.fixture(scope="module")
def without_mask(raw, tmp_path_factory) -> Path:
    """The same scans, of which nobody has drawn the brain."""
    scans = tmp_path_factory.mktemp("scans")
    for file in ("T1w", "FLAIR", "label"):
        shutil.copy(raw / f"sub-1_{file}.nii.gz", scans)
    return scans


@pytest.fixture(scope="module")
def prepared(without_mask, tmp_path_factory) -> Path:
    """The case prepared in its own space, its brain found by the template."""
    output = tmp_path_factory.mktemp("prepared")
    options = {"sequences": ("T1w", "FLAIR"), "brain_extraction": "template", "num_workers": 1}
    main(str(output), dataset_dir=str(without_mask), **options)
    return output


def test_the_sections_of_a_datalist_stay_whether_its_folder_is_named_or_not(tmp_path):
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / f"{name}_T1w.nii")
    sections = {"training": [{"image": "a_T1w.nii"}], "test": [{"image": "b_T1w.nii"}]}
    (tmp_path / "cases.json").write_text(json.dumps(sections))
    for folder in (None, str(tmp_path)):
        found = sections_to_prepare(folder, str(tmp_path / "cases.json"), Settings(sequences=("T1w",)))
        assert {part: [case["name"] for case in cases] for part, cases in found.items()} == {
            "training": ["a_T1w"],
            "test": ["b_T1w"],
        }
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"cases\.json does not lie in dataset_dir .*other"):
        sections_to_prepare(str(tmp_path / "other"), str(tmp_path / "cases.json"), Settings(sequences=("T1w",)))


def test_the_axes_become_right_front_top_and_each_voxel_keeps_its_place():
    values = np.zeros(SHAPE)
    values[10, 20, 30] = 1
    turned = Volume(values, RAW).to_ras()
    assert nib.aff2axcodes(turned.affine) == ("R", "A", "S")
    place = nib.affines.apply_affine(turned.affine, np.argwhere(turned.values)[0])
    assert place.tolist() == [99 - 30, 90 - 132, 60 - 99]


def test_a_coarser_grid_gets_means_and_a_finer_one_interpolation():
    stripes = np.tile(np.array([0.0, 2.0]), 20)[:, None, None] * np.ones((1, 8, 8))
    coarse = Volume(stripes, np.eye(4)).on_grid((6, 8, 8), np.diag([6.0, 1, 1, 1]))
    assert np.allclose(coarse.values[1:-1], 1, atol=0.05)
    fine = Volume(np.arange(8.0)[:, None, None] * np.ones((1, 3, 3)), np.eye(4)).on_grid(
        (15, 3, 3), np.diag([0.5, 1, 1, 1])
    )
    assert np.allclose(fine.values[:, 1, 1], np.arange(15) / 2)


def test_a_matrix_in_ras_is_the_same_map_in_itk(moved):
    transform = itk_affine(moved, center=(3.0, 4.0, 5.0))
    there = np.array(transform.TransformPoint((-10.0, -20.0, 30.0)))  # LPS of (10, 20, 30) in RAS
    assert np.allclose(there * [-1, -1, 1], nib.affines.apply_affine(moved, [10, 20, 30]))
    assert np.allclose(matrix_of(transform), moved)


def test_n4_finds_a_known_field(head):
    position = np.moveaxis(np.indices(SHAPE), 0, -1) / np.array(SHAPE) - 0.5
    field = np.exp(0.8 * position[..., 0] - 0.6 * position[..., 1] + 1.2 * position[..., 2] ** 2)
    brain = head.brain_mask > 0
    scan = Volume(100 * head.images["T1w"], RAW)
    before = bias_field(scan, brain).values[brain]
    found = bias_field(scan.like(scan.values * field), brain).values[brain]
    assert np.corrcoef(np.log(found / before), np.log(field[brain]))[0, 1] > 0.97
    assert np.std(np.log(field[brain] / found * before)) < 0.3 * np.std(np.log(field[brain]))
    assert np.log(found).mean() == pytest.approx(0, abs=0.01)  # what is left is as bright as the scan was


def moved_header(scan: Volume, shift_mm: float, turn_deg: float, seed: int) -> tuple[Volume, np.ndarray]:
    """A scan whose header has moved, its voxels in the order of the new axes, and the motion, about its middle."""
    rng = np.random.default_rng(seed)
    shift, axis = rng.standard_normal((2, 3))
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(np.radians(turn_deg) * axis / np.linalg.norm(axis)).as_matrix()
    middle = nib.affines.apply_affine(scan.affine, np.array(scan.values.shape) / 2)
    motion[:3, 3] = middle - motion[:3, :3] @ middle + shift_mm * shift / np.linalg.norm(shift)
    return Volume(scan.values, motion @ scan.affine).to_ras(), motion


def error_mm(match: Match, motion: np.ndarray, brain: np.ndarray) -> float:
    """Mean distance in the brain from where the fixed scan's points lie in the moved one."""
    points = nib.affines.apply_affine(RAW, np.argwhere(brain)[::17])
    found, true = (nib.affines.apply_affine(way, points) for way in (match.way, motion))
    return float(np.linalg.norm(found - true, axis=1).mean())


def pair(head, stripped: bool, thickness: int) -> tuple[Volume, Volume]:
    """T1w, and the FLAIR on slices of so many voxels."""
    inside = head.brain_mask if stripped else np.ones(SHAPE)
    t1w, flair = (Volume(100 * head.images[s] * inside, RAW).to_ras() for s in ("T1w", "FLAIR"))
    thick = flair.affine @ np.diag([1, 1, thickness, 1.0])
    shape = (*flair.values.shape[:2], flair.values.shape[2] // thickness)
    return t1w, flair.on_grid(shape, thick)


@pytest.mark.parametrize(("shift", "turn"), [(0, 0), (60, 0), (80, 40)])
def test_scans_come_together_whose_headers_disagree(head, shift, turn):
    t1w, flair = pair(head, stripped=False, thickness=2)
    other, motion = moved_header(flair, shift, turn, seed=5)
    match = coregister(t1w, other)
    assert error_mm(match, motion, head.brain_mask) < 1.5  # half a voxel
    assert match.doubt is None
    assert match.information >= match.information_of_headers
    middle = nib.affines.apply_affine(RAW, np.array(SHAPE) / 2)
    assert match.shift_mm == pytest.approx(np.linalg.norm(nib.affines.apply_affine(motion, middle) - middle), abs=15)
    assert match.turn_deg == pytest.approx(turn, abs=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("stripped", [False, True])
@pytest.mark.parametrize("thickness", [1, 3])
def test_scans_come_together_from_80_mm_and_40_degrees_or_it_is_said(head, stripped, thickness):
    t1w, flair = pair(head, stripped, thickness)
    for seed, (shift, turn) in enumerate(itertools.product((0, 25, 50, 80), (0, 20, 40))):
        other, motion = moved_header(flair, shift, turn, seed)
        match = coregister(t1w, other)
        assert error_mm(match, motion, head.brain_mask) < 3 or match.doubt, (shift, turn)


def test_a_search_that_ends_elsewhere_is_doubted(head, monkeypatch):
    monkeypatch.setattr(preparation.coregistration, "_promising", lambda starts, *_: starts[:1])  # the headers' alone
    t1w, flair = pair(head, stripped=True, thickness=1)
    other, motion = moved_header(flair, 80, 20, seed=1)
    match = coregister(t1w, other)
    assert error_mm(match, motion, head.brain_mask) > 20
    assert "may lie wrong" in match.doubt


def test_a_doubt_reaches_the_record_the_page_and_the_last_message(head, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(preparation.coregistration, "MIN_OVERLAP", 1.01)  # more than any
    for sequence, scan in zip(("T1w", "FLAIR"), pair(head, stripped=True, thickness=2), strict=True):
        save_nifti(tmp_path / "raw" / f"one_{sequence}.nii.gz", scan.values, scan.affine)
    options = {"skull_stripped": True, "bias_correction": False, "num_workers": 1}
    main(str(tmp_path / "out"), dataset_dir=str(tmp_path / "raw"), sequences=["T1", "flair"], **options)
    record = read_record(tmp_path / "out" / "one" / "one.json")
    doubt = "may lie wrong: the heads overlap by a Dice of"
    assert doubt in record["coregistration"]["FLAIR"]["doubt"]
    assert record["coregistration"]["FLAIR"]["shift_mm"] < 1.5
    page = (tmp_path / "out" / "preparation.html").read_text()
    cells = re.findall(r"<td>(.*?)</td>", page)
    assert [doubt in cell for cell in cells].count(True) == 1
    assert page.count("data:image/png") == 2  # each sequence
    assert f"one: FLAIR {doubt}" in caplog.text
    assert "1 of 1 cases are doubtful" in caplog.text


@pytest.mark.parametrize("sequence", ["T1w", "FLAIR"])
def test_the_brain_of_a_whole_head_is_found(head, sequence):
    scan = Volume(100 * head.images[sequence], RAW)
    to_scan = template_to_scan(scan)
    mask = extract_brain(scan, to_scan)
    assert dice(mask.values, head.brain_mask) > 0.94
    inside = np.argwhere(head.brain_mask)
    world = nib.affines.apply_affine(RAW, inside)
    homogeneous = np.c_[world, np.ones(len(world))]
    truth = world + head.displacement[tuple(inside.T)]
    best = homogeneous @ np.linalg.lstsq(homogeneous, truth, rcond=None)[0]  # this head has bends, too
    found = nib.affines.apply_affine(np.linalg.inv(to_scan), world)
    assert np.linalg.norm(found - best, axis=1).mean() < 4


def test_an_affine_change_of_the_head_changes_the_way_by_as_much(head, moved):
    scan = Volume(100 * head.images["T1w"], RAW)
    change = moved @ np.diag([1.05, 0.95, 1.0, 1.0])
    points = nib.affines.apply_affine(RAW, np.argwhere(head.brain_mask)[::7])
    first = nib.affines.apply_affine(np.linalg.inv(template_to_scan(scan)), points)
    second = np.linalg.inv(template_to_scan(Volume(scan.values, change @ RAW)))
    again = nib.affines.apply_affine(second @ change, points)
    assert np.linalg.norm(first - again, axis=1).mean() < 2.5


def test_a_prepared_case_is_on_one_grid_and_every_bundle_reads_it(prepared, head):
    (case,) = list_cases(datalist_file=prepared / "prepared.json", sequences=("T1w", "FLAIR"))
    assert case["subject"] == "sub-1"
    t1w, flair = (nib.load(path) for path in case["image"])
    assert nib.aff2axcodes(t1w.affine) == ("R", "A", "S")
    assert t1w.shape == flair.shape == (66, 72, 66)
    mask = array_of(case["brain_mask"]) > 0
    assert not np.asarray(t1w.dataobj)[~mask].any()
    truth = Volume(head.brain_mask, RAW).to_ras()
    assert dice(mask, truth.values) > 0.94
    assert np.array_equal(array_of(case["label"]), Volume(head.lesion, RAW).to_ras().values)  # left stays left
    other = Volume(head.images["FLAIR"], RAW).to_ras().values
    core = ndimage.binary_erosion(truth.values, iterations=2)
    assert np.corrcoef(np.asarray(flair.dataobj)[core], other[core])[0, 1] > 0.6
    page = (prepared / "preparation.html").read_text()
    assert "sub-1" in page
    assert "data:image/png" in page


def test_a_map_returns_to_the_raw_grids(prepared, raw, head, moved, tmp_path):
    record = prepared / "sub-1" / "sub-1.json"
    brain = head.brain_mask.astype(np.uint8)
    made = Volume(brain, RAW).to_ras()
    file = save_nifti(tmp_path / "maps" / "sub-1_T1w_seg.nii.gz", made.values, made.affine)
    back = restore(file, record)
    assert np.array_equal(np.asarray(back.dataobj), brain)
    assert np.allclose(back.affine, RAW)
    restore_main(str(tmp_path / "maps" / "*_seg.nii.gz"), str(prepared), str(tmp_path / "back"), sequence="FLAIR")
    flair = nib.load(tmp_path / "back" / "sub-1_T1w_seg.nii.gz")
    assert np.allclose(flair.affine, nib.load(raw / "sub-1_FLAIR.nii.gz").affine)
    truth = Volume(brain, RAW).on_grid(flair.shape, flair.affine, moved, order=0)
    assert dice(np.asarray(flair.dataobj), truth.values) > 0.95


def test_the_written_transform_leads_from_the_template_to_the_scan(prepared):
    record = read_record(prepared / "sub-1" / "sub-1.json")
    transform = sitk.ReadTransform(str(prepared / "sub-1" / "sub-1_to_template.tfm"))
    matrix = matrix_of(sitk.AffineTransform(transform))
    assert np.allclose(matrix @ np.array(record["to_template"]), np.eye(4), atol=1e-6)


def test_what_is_done_is_done_once(prepared, without_mask, caplog):
    files = {path: path.stat().st_mtime_ns for path in (prepared / "sub-1").iterdir()}
    with caplog.at_level(logging.INFO):
        main(
            str(prepared),
            dataset_dir=str(without_mask),
            sequences=("T1w", "FLAIR"),
            brain_extraction="template",
            num_workers=1,
        )
    assert "sub-1: done before" in caplog.text
    assert files == {path: path.stat().st_mtime_ns for path in (prepared / "sub-1").iterdir()}


def test_a_result_returns_to_the_grid_of_the_sequence_in_its_name(prepared, raw, tmp_path, caplog):
    mask = prepared / "sub-1" / "sub-1_brainmask.nii.gz"
    for name in ("sub-1_FLAIR_seg.nii.gz", "sub-1_seg.nii.gz"):
        (tmp_path / "maps").mkdir(exist_ok=True)
        shutil.copy(mask, tmp_path / "maps" / name)
    with caplog.at_level(logging.INFO):
        restore_main(str(tmp_path / "maps" / "*"), str(prepared), str(tmp_path / "back"))
    for name, sequence in (("sub-1_FLAIR_seg.nii.gz", "FLAIR"), ("sub-1_seg.nii.gz", "T1w")):
        back, scan = nib.load(tmp_path / "back" / name), nib.load(raw / f"sub-1_{sequence}.nii.gz")
        assert back.shape == scan.shape
        assert np.allclose(back.affine, scan.affine)
    assert re.search(r"sub-1_FLAIR_seg.nii.gz, on the grid of sub-1_FLAIR.nii.gz", caplog.text)


def test_of_labels_the_one_with_the_largest_share_wins_and_none_is_invented():
    labels = np.zeros((8, 4, 4), np.uint8)
    labels[2:6], labels[4:6] = 1, 7
    shifted = np.eye(4)
    shifted[0, 3] = 0.25  # a voxel at i has 3/4 of i and 1/4 of i + 1
    found = Volume(labels, np.eye(4)).labels_on_grid((7, 4, 4), shifted)
    assert found.values[:, 0, 0].tolist() == [0, 0, 1, 1, 7, 7, 0]
    coarse = Volume(labels, np.eye(4)).labels_on_grid((4, 4, 4), np.diag([2.0, 1, 1, 1]))
    assert set(np.unique(coarse.values)) <= {0, 1, 7}  # no 4 between 1 and 7


def test_labels_of_a_case_are_prepared_as_labels_and_its_images_as_maps():
    """On a grid 0.4 voxels off; linear interpolation would make 2.8 of 0 and 7."""
    labels = np.zeros((8, 6, 6), np.uint8)
    labels[2:6] = 7
    image, label = Volume(10 + labels.astype(np.float32), np.eye(4)), Volume(labels, np.eye(4))
    scans = _Scans({"T1w": "t1w.nii.gz", "label": "label.nii.gz"}, {"T1w": image}, {"label": label}, {}, [])
    brain, off = Brain(image.like(np.ones(labels.shape)), "given", "brain_mask"), np.eye(4)
    off[0, 3] = 0.4
    found = _resampled(scans, brain, Volume(np.empty((7, 6, 6)), off), np.eye(4))
    assert found["label"][:, 2, 2].tolist() == [0, 0, 7, 7, 7, 7, 0]
    np.testing.assert_allclose(found["T1w"][:, 2, 2], [10, 12.8, 17, 17, 17, 14.2, 10], rtol=1e-5)


@pytest.mark.parametrize("name", [".._T1w.nii.gz", "..T1w.nii.gz"])
def test_no_name_of_a_scan_leads_out_of_the_output_folder(head, tmp_path, name):
    file = save_nifti(tmp_path / "raw" / name, 100 * head.images["T1w"] * head.brain_mask, RAW)
    (tmp_path / "raw" / "cases.json").write_text(json.dumps([{"image": name}]))
    output = tmp_path / "place" / "out"
    options = {"skull_stripped": True, "bias_correction": False, "num_workers": 1}
    main(str(output), datalist_file=str(tmp_path / "raw" / "cases.json"), sequences=["T1w"], **options)
    files = [path for path in (tmp_path / "place").rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) == 7  # scan, mask, record, transform and picture of the case, the list and the page
    assert all(output in path.parents for path in files)
    with pytest.raises(InputError, match=r"makes a case called '\.\.', expected a name for a folder"):
        preparation.prepare_case({"image": str(file), "name": ".."}, output, Settings(("T1w",)))


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ""])
def test_no_option_leads_out_of_the_output_folder(name):
    with pytest.raises(InputError, match="is no name of a sequence or a label"):
        Settings(("T1w",), label_keys=(name,))
    with pytest.raises(InputError, match="is no name of a sequence or a label"):
        Settings((name,))


@pytest.mark.parametrize(
    ("kind", "said"),
    [("soft", "values, expected two"), ("negative", "has negative values"), ("two values", None)],
)
def test_a_brain_mask_is_where_it_is_above_half_of_its_largest_value(head, tmp_path, kind, said):
    brain = head.brain_mask > 0
    mask = {
        "soft": ndimage.gaussian_filter(255.0 * brain, 1.0),
        "negative": np.where(brain, 1.0, -1.0),
        "two values": 200.0 * brain,
    }[kind]
    save_nifti(tmp_path / "raw" / "a_T1w.nii.gz", 100 * head.images["T1w"], RAW)
    save_nifti(tmp_path / "raw" / "a_brainmask.nii.gz", mask.astype(np.float32), RAW)
    options = {"bias_correction": False, "num_workers": 1}
    main(str(tmp_path / "out"), dataset_dir=str(tmp_path / "raw"), sequences=["T1w"], **options)
    record = read_record(tmp_path / "out" / "a" / "a.json")
    assert dice(array_of(tmp_path / "out" / "a" / "a_brainmask.nii.gz"), Volume(brain, RAW).to_ras().values) > 0.98
    assert [w for w in record["warnings"] if "the brain mask has" in w] == [
        w for w in record["warnings"] if said and said in w
    ]
    assert bool(record["warnings"]) == bool(said)


def test_a_field_over_a_scan_is_taken_out(head, tmp_path):
    brain = ndimage.binary_erosion(head.tissues == 3)
    field = np.exp(np.linspace(-0.5, 0.5, SHAPE[0]))[:, None, None]
    save_nifti(tmp_path / "raw" / "a_T1w.nii.gz", 100 * head.images["T1w"] * field, RAW)
    save_nifti(tmp_path / "raw" / "a_brainmask.nii.gz", head.brain_mask, RAW)
    main(str(tmp_path / "out"), dataset_dir=str(tmp_path / "raw"), sequences=["T1w"], num_workers=1)
    found = array_of(tmp_path / "out" / "a" / "a_T1w.nii.gz")
    white, truth = (Volume(array, RAW).to_ras().values for array in (brain, head.images["T1w"]))
    left = np.log(found / np.maximum(truth, 1e-3), where=white > 0, out=np.zeros(found.shape))[white > 0]
    put_in = np.log(field * np.ones(SHAPE))[brain]
    assert np.std(left) < 0.35 * np.std(put_in)


def test_a_mask_that_cuts_the_brain_leaves_a_bright_rim(head):
    brain = head.brain_mask > 0
    for sequence in ("T1w", "FLAIR"):
        scan = Volume(100 * head.images[sequence], RAW)
        assert bright_outside(scan, brain) < 0.1
        assert bright_outside(scan, ndimage.binary_erosion(brain, iterations=2)) > 0.3


def test_without_a_brain_for_deepbet_the_template_makes_the_mask_and_it_is_said(head, tmp_path, monkeypatch):
    def nothing(scan: Volume) -> Volume:
        raise InputError("deepbet finds no brain")

    monkeypatch.setattr(preparation.case, "deepbet_is_installed", lambda: True)
    monkeypatch.setattr(preparation.case, "deepbet_brain", nothing)
    case = {"image": str(save_nifti(tmp_path / "a_T1w.nii.gz", 100 * head.images["T1w"], RAW)), "name": "a"}
    settings = Settings(("T1w",), bias_correction=False)
    record = read_record(preparation.prepare_case(case, tmp_path, settings))
    assert record["brain"] == "template"
    assert record["warnings"] == ["deepbet finds no brain in the T1w, the mask is made by the template"]
    with pytest.raises(InputError, match=r"a_T1w.nii.gz: deepbet finds no brain"):
        preparation.prepare_case(case, tmp_path, Settings(("T1w",), brain_extraction="deepbet"))


def test_the_mask_of_deepbet_comes_from_the_t1w_and_goes_to_the_reference(head, moved, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation.case, "deepbet_is_installed", lambda: True)
    truth = Volume(head.brain_mask, RAW).to_ras()
    monkeypatch.setattr(preparation.case, "deepbet_brain", lambda scan: truth)
    flair = Volume(100 * head.images["FLAIR"], RAW).on_grid(SHAPE, RAW, moved)
    files = [
        save_nifti(tmp_path / f"a_{s}.nii.gz", v, RAW)
        for s, v in (("FLAIR", flair.values), ("T1w", 100 * head.images["T1w"]))
    ]
    case = {"image": [str(file) for file in files], "name": "a"}
    record = read_record(preparation.prepare_case(case, tmp_path, Settings(("FLAIR", "T1w"), bias_correction=False)))
    assert (record["brain"], record["brain_source"], record["reference"]) == ("deepbet", "T1w", "FLAIR")
    expected = Volume(head.brain_mask, RAW).on_grid(SHAPE, RAW, moved).values > 0.5
    found = array_of(tmp_path / "a" / "a_brainmask.nii.gz")
    assert dice(found, Volume(expected, RAW).to_ras().values) > 0.97


def test_without_deepbet_it_is_said_how_to_get_it_and_once_it_is_there_its_mask_is_made(
    head, tmp_path, monkeypatch, caplog
):
    save_nifti(tmp_path / "raw" / "a_T1w.nii.gz", 100 * head.images["T1w"], RAW)
    options = {"dataset_dir": str(tmp_path / "raw"), "sequences": ("T1w",), "bias_correction": False, "num_workers": 1}
    truth = Volume(head.brain_mask, RAW).to_ras()
    monkeypatch.setattr(preparation.case, "deepbet_brain", lambda scan: truth)
    for installed, brain in ((False, "template"), (True, "deepbet")):
        caplog.clear()
        monkeypatch.setattr(preparation.case, "deepbet_is_installed", lambda installed=installed: installed)
        main(str(tmp_path / "out"), **options)
        assert read_record(tmp_path / "out" / "a" / "a.json")["brain"] == brain
        assert ("pip install deepbet" in caplog.text) is not installed
    monkeypatch.setattr(preparation.case, "deepbet_is_installed", lambda: False)
    caplog.clear()
    save_nifti(tmp_path / "raw" / "a_brainmask.nii.gz", head.brain_mask, RAW)
    main(str(tmp_path / "out"), **options)
    assert "deepbet" not in caplog.text


@pytest.mark.slow
def test_deepbet_finds_the_brain_of_a_t1w_without_any_download(head):
    pytest.importorskip("deepbet")
    mask = deepbet_brain(Volume(100 * head.images["T1w"], RAW).to_ras())
    assert dice(mask.values, Volume(head.brain_mask, RAW).to_ras().values) > 0.95


@pytest.mark.parametrize(
    ("name", "sequence"),
    [("T1", "T1w"), ("T1w", "T1w"), ("MPRAGE", "T1w"), ("flair", "FLAIR"), ("t2_flair", "FLAIR"), ("T2", "T2w")],
)
def test_a_sequence_has_several_names(name, sequence):
    assert sequence_name(name) == sequence
    assert prefix_of(f"sub-1_{name}", sequence) == "sub-1_"
    others = {"T1w", "T2w", "FLAIR"} - {sequence}
    assert [prefix_of(f"sub-1_{name}", other) for other in others] == [None, None]


def test_files_of_other_names_become_the_sequences_that_were_asked_for(head, tmp_path):
    t1w, flair = pair(head, stripped=True, thickness=2)
    save_nifti(tmp_path / "raw" / "kim_MPRAGE.nii.gz", t1w.values, t1w.affine)
    save_nifti(tmp_path / "raw" / "kim_t2_flair.nii.gz", flair.values, flair.affine)
    with pytest.raises(InputError, match=r"scripts/prepare_data.py brings the sequences of a case onto one"):
        list_cases(tmp_path / "raw", sequences=("T1w", "FLAIR"))
    options = {"skull_stripped": True, "bias_correction": False, "num_workers": 1}
    main(str(tmp_path / "out"), dataset_dir=str(tmp_path / "raw"), sequences=["FLAIR", "T1"], **options)
    names = {p.name for p in (tmp_path / "out" / "kim").iterdir()}
    assert {"kim_T1w.nii.gz", "kim_FLAIR.nii.gz", "kim_brainmask.nii.gz", "kim.json"} <= names
    assert read_record(tmp_path / "out" / "kim" / "kim.json")["reference"] == "FLAIR"
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["sequences"] == ["FLAIR", "T1w"]
    datalist = tmp_path / "out" / "split.json"
    prepared = tmp_path / "out" / "prepared.json"
    make_datalist(str(datalist), datalist_file=str(prepared), sequences=["t2_flair"], num_workers=1)
    (case,) = list_cases(datalist_file=datalist, sequences=("FLAIR",), section="training")
    assert case["image"] == str(tmp_path / "out" / "kim" / "kim_FLAIR.nii.gz")


def test_a_scan_cut_short_is_named_in_one_sentence(tmp_path):
    noise = np.random.default_rng(0).integers(1, 9999, SHAPE).astype(np.int16)
    file = save_nifti(tmp_path / "raw" / "a_T1w.nii.gz", noise, RAW)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=r"a_T1w.nii.gz cannot be read to its end"):
        main(str(tmp_path / "out"), dataset_dir=str(file.parent), sequences=["T1w"], skull_stripped=True, num_workers=1)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_while_another_process_prepares_into_a_folder_nothing_is_done_there(tmp_path):
    code = "import sys, time; from common.files import Alone; a = Alone(sys.argv[1]); print(1, flush=1); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        with pytest.raises(InputError, match=f"is in use by process {other.pid} on "):
            prepare_cases({"cases": []}, tmp_path, Settings(("FLAIR",)))
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
def test_a_mask_of_the_user_is_taken_and_a_failing_case_stops_no_other(raw, tmp_path):
    cases = [
        {"image": str(raw / "sub-1_T1w.nii.gz"), "brain_mask": str(raw / "sub-1_brainmask.nii.gz"), "subject": "1"},
        {"image": str(save_nifti(tmp_path / "empty.nii.gz", np.zeros((9, 9, 9), np.float32), RAW)), "subject": "2"},
    ]
    (tmp_path / "raw.json").write_text(json.dumps({"training": cases[:1], "test": cases[1:]}))
    with pytest.raises(InputError, match=r"1 of 2 cases could not be prepared: empty .*zero everywhere"):
        main(
            str(tmp_path / "out"),
            datalist_file=str(tmp_path / "raw.json"),
            sequences=["T1w"],
            space="template",
            spacing=4.0,
            bias_correction=False,
            num_workers=2,
        )
    (case,) = list_cases(datalist_file=tmp_path / "out" / "prepared.json", sequences=("T1w",))
    record = read_record(tmp_path / "out" / "sub-1" / "sub-1.json")
    assert record["brain"] == "given"
    assert nib.load(case["image"]).shape == (40, 48, 40)
    back = restore(case["brain_mask"], tmp_path / "out" / "sub-1" / "sub-1.json")
    assert dice(np.asarray(back.dataobj), array_of(raw / "sub-1_brainmask.nii.gz")) > 0.93


def test_bad_input_is_answered_by_one_sentence(raw, prepared, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="space is 'mni', expected own or template"):
        Settings(("T1w",), space="mni")
    noise = save_nifti(tmp_path / "x_T1w.nii.gz", np.full((20, 20, 20), 7, np.float32), RAW)
    with pytest.raises(InputError, match="one intensity everywhere, expected a head"):
        main(str(tmp_path / "out"), dataset_dir=str(noise.parent), sequences=["T1w"], num_workers=1)
    record = prepared / "sub-1" / "sub-1.json"
    with pytest.raises(InputError, match="expected one grid"):
        restore(raw / "sub-1_label.nii.gz", record)
    with pytest.raises(InputError, match="has no sequence T2w, expected one of T1w, FLAIR"):
        restore(prepared / "sub-1" / "sub-1_brainmask.nii.gz", record, "T2w")
    with pytest.raises(InputError, match="begins with the name of none of the 1 cases"):
        restore_main(str(noise), str(prepared), str(tmp_path / "back"))
    monkeypatch.setattr(preparation.registration, "optional_import", lambda name: (None, False))
    with pytest.raises(InputError, match="SimpleITK is not installed"):
        require_simpleitk()
