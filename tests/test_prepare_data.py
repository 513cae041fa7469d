"""Raw scans prepared and results brought back: geometry, bias field, brain extraction, resuming, failures."""

from __future__ import annotations

import json
import logging
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

import preparation
from common.data import list_cases
from common.errors import InputError
from common.geometry import rotation_matrix
from phantom import Grid, make_subject
from preparation import Settings, prepare_cases, read_record, restore
from preparation.bias import bias_field
from preparation.brain import extract_brain
from preparation.registration import itk_affine, matrix_of, require_simpleitk, scan_to_scan, template_to_scan
from preparation.volume import Volume

main = load_script("prepare_data").main
restore_main = load_script("restore_data").main

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
def prepared(raw, tmp_path_factory) -> Path:
    """The case prepared in its own space, its brain found by the template."""
    scans = tmp_path_factory.mktemp("scans")
    for file in ("T1w", "FLAIR", "label"):
        shutil.copy(raw / f"sub-1_{file}.nii.gz", scans)
    output = tmp_path_factory.mktemp("prepared")
    main(str(output), dataset_dir=str(scans), sequences=("T1w", "FLAIR"), num_workers=1)
    return output


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


def test_the_way_between_two_scans_is_found_to_a_millimetre(head, moved):
    t1w, flair = (Volume(100 * head.images[s], RAW) for s in ("T1w", "FLAIR"))
    other = flair.on_grid(SHAPE, RAW, moved)  # what lies at p in it lies at moved(p) in the T1w
    points = nib.affines.apply_affine(RAW, np.argwhere(head.brain_mask))
    found = nib.affines.apply_affine(moved @ scan_to_scan(t1w, other), points)
    assert np.linalg.norm(found - points, axis=1).mean() < 1.0


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


def test_what_is_done_is_done_once(prepared, raw, caplog):
    scans = Path(read_record(prepared / "sub-1" / "sub-1.json")["inputs"]["T1w"]["file"]).parent
    files = {path: path.stat().st_mtime_ns for path in (prepared / "sub-1").iterdir()}
    with caplog.at_level(logging.INFO):
        main(str(prepared), dataset_dir=str(scans), sequences=("T1w", "FLAIR"), num_workers=1)
    assert "sub-1: done before" in caplog.text
    assert files == {path: path.stat().st_mtime_ns for path in (prepared / "sub-1").iterdir()}


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
            sequences="T1w",
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
        main(str(tmp_path / "out"), dataset_dir=str(noise.parent), sequences="T1w", num_workers=1)
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
