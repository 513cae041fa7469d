"""What is measured of brain masks and of co-registration: on heads and motions that are known."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from bundle_tools import save_nifti

from benchmarks.brains import Head, brains, heads_of_labels, ways_of
from benchmarks.coregistration import coregistration, with_moved_header
from common.errors import InputError
from phantom import Grid, make_subject
from preparation.volume import Volume

WHITE, CORTEX, FLUID, CORD, BONE, SCALP = 2, 3, 24, 212, 215, 211


@pytest.fixture
def labels() -> np.ndarray:
    """Boxes in each other, 4 voxels thick: white matter, cortex with a fissure, fluid, bone, scalp; and a cord."""
    labels = np.zeros((44, 44, 44), np.uint8)
    for value, edge in ((SCALP, 2), (BONE, 6), (FLUID, 10), (CORTEX, 14), (WHITE, 18)):
        labels[(slice(edge, -edge),) * 3] = value
    labels[21:23, 14:18, 14:30] = FLUID  # open to the fluid outside
    labels[21:23, 21:23, 2:10] = CORD
    return labels


def test_masks_of_a_head_are_what_its_labels_say(labels, tmp_path):
    save_nifti(tmp_path / "a.nii.gz", labels, np.eye(4))
    (head,) = heads_of_labels(str(tmp_path / "*.nii.gz"), seed=1)
    tissue = np.isin(labels, (WHITE, CORTEX))
    assert np.array_equal(head.tissue, tissue)
    assert head.brain[21:23, 16:18, 18:26].all()  # fluid between gyri
    assert not head.brain[labels == BONE].any()
    assert np.array_equal(head.skull_inside, head.brain | (labels == FLUID))
    assert np.array_equal(head.around, head.skull_inside | (labels == CORD))
    t1w, flair = (head.scans[sequence].values for sequence in ("T1w", "FLAIR"))
    inner = (slice(20, 24),) * 3
    middle = (slice(12, 32), slice(12, 32), 15)  # of cortex
    assert t1w[middle][4:-4, 4:-4].mean() < 0.85 * t1w[inner].mean()
    assert flair[middle][4:-4, 4:-4].mean() > 1.02 * flair[inner].mean()
    assert t1w[labels == BONE].mean() < 0.4 * t1w[inner].mean() < 0.8 * t1w[labels == SCALP].mean()


def test_shares_of_a_mask_are_those_counted_by_hand():
    def row(first: int, end: int) -> np.ndarray:
        return (np.arange(20) >= first) & (np.arange(20) < end)

    # brain 5 to 15, fluid to 17, tissue 5 to 13, cord to 18; the mask is 7 to 19
    head = Head("a", {}, row(5, 15), row(5, 17), row(5, 13), row(5, 18))
    assert head.shares(row(7, 19)) == pytest.approx((2 * 8 / 22, 2 * 10 / 24, 100 * 2 / 8, 100 * 1 / 10))


def test_deepbet_is_asked_for_t1w_only(monkeypatch):
    monkeypatch.setattr("preparation.brain.deepbet_is_installed", lambda: True)
    assert ways_of(["T1w", "FLAIR"]) == [("T1w", "template"), ("FLAIR", "template"), ("T1w", "deepbet")]
    assert ways_of(["FLAIR"]) == [("FLAIR", "template")]


def test_what_is_no_head_with_a_known_brain_is_refused(labels, tmp_path):
    with pytest.raises(InputError, match="expected exactly one of the two"):
        brains()
    with pytest.raises(InputError, match="is no file, and no pattern of files, expected label maps"):
        brains(label_maps=str(tmp_path / "*.nii.gz"))
    labels[0, 0, 0] = 99
    save_nifti(tmp_path / "a.nii.gz", labels, np.eye(4))
    with pytest.raises(InputError, match=r"a.nii.gz has label 99, expected those of the training maps of SynthSeg"):
        brains(label_maps=str(tmp_path / "a.nii.gz"))


def test_a_header_moves_by_what_was_asked_about_the_middle_of_the_scan():
    scan = Volume(np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.diag([2.0, 3, 4, 1]))
    moved, motion = with_moved_header(scan, 30, 20, seed=3)
    middle = [2.0, 4.5, 8.0, 1]
    assert np.linalg.norm((motion @ middle - middle)[:3]) == pytest.approx(30)
    assert np.degrees(np.arccos((np.trace(motion[:3, :3]) - 1) / 2)) == pytest.approx(20)
    largest = np.argwhere(moved.values == 23)[0]
    assert np.allclose(nib.affines.apply_affine(moved.affine, largest), (motion @ scan.affine @ [1, 2, 3, 1])[:3])


def test_errors_of_a_coregistration_are_those_of_the_motion(tmp_path, capsys):
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = [-100, -136, -100]
    head = make_subject(3, grid=Grid((50, 56, 50), affine), sequences=("T1w", "FLAIR"), fine_mm=4.0)
    files = [str(save_nifti(tmp_path / f"a_{s}.nii.gz", 100 * head.images[s], affine)) for s in head.images]
    (tmp_path / "pairs.json").write_text(f'[{{"image": {files}}}]'.replace("'", '"'))
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        coregistration(str(tmp_path / "pairs.json"), shifts=(60,), turns=(0,))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    _, row, counts, found, _ = capsys.readouterr().out.splitlines()
    assert row.split()[:4] == ["a_T1w", "60", "0", "60.0"]  # off by the headers as far as was asked
    assert counts == "of 1: 1 right, 0 off and warned of, 0 off and not, 0 right and warned of"
    assert float(found.split()[2]) < 4


def test_a_coregistration_is_of_two_sequences():
    with pytest.raises(InputError, match="sequences are T1w, FLAIR, T2w, expected two, the fixed one first"):
        coregistration(sequences=("T1w", "FLAIR", "T2w"))
