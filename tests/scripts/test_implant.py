"""Lesions implanted in scans: known where they are, filled where they were suspected, nothing else moved."""

import json

import nibabel as nib
import numpy as np
import pytest

from common.errors import InputError
from phantom import Grid, implant_lesions, make_subject, suspected_lesions
from phantom.cohort import implant_cohort

GRID = Grid.axial((2.0, 2.0, 4.0))


@pytest.fixture(scope="module")
def healthy():
    return make_subject(3, "healthy", grid=GRID, sequences=("FLAIR", "T1w"), fine_mm=2.0)


def implanted(subject, seed=1, **options):
    options = {"contrast": (1.0, 1.0), "gamma": (1.0, 1.0)} | options
    return implant_lesions(subject.images, subject.tissues, GRID, seed, **options)


def test_lesions_are_bright_on_flair_and_dark_on_t1_and_the_rest_stays(healthy):
    images, lesion = implanted(healthy)
    where = lesion > 0
    assert where.sum() > 30
    assert (healthy.tissues[where] > 0).all()
    white = healthy.tissues == 3
    assert images["FLAIR"][where].mean() > 1.2 * images["FLAIR"][white & ~where].mean()
    assert images["T1w"][where].mean() < 0.9 * images["T1w"][white & ~where].mean()
    far = (healthy.tissues > 0) & (np.abs(images["FLAIR"] - implanted(healthy, seed=2)[0]["FLAIR"]) < 1e-6)
    assert far.mean() > 0.5 * (healthy.tissues > 0).mean()
    # but for its unit the image is the one that it was: another scale of the input changes nothing
    scale = images["FLAIR"][far] / healthy.images["FLAIR"][far]
    np.testing.assert_allclose(scale, np.median(scale), rtol=1e-3)
    assert not images["FLAIR"][healthy.tissues == 0].any()


def test_lesions_may_hide_on_t1w_and_are_as_bright_on_flair(healthy):
    hidden, lesion = implanted(healthy, t1w_contrast=(0.0, 0.0))
    marked, same = implanted(healthy, t1w_contrast=(1.0, 1.0))
    np.testing.assert_array_equal(lesion, same)
    np.testing.assert_array_equal(hidden["FLAIR"], marked["FLAIR"])
    level = np.median(hidden["T1w"][(healthy.tissues == 3) & (lesion == 0)])
    assert np.median(hidden["T1w"][lesion > 0]) == pytest.approx(level, rel=0.06)
    assert np.median(marked["T1w"][lesion > 0]) < 0.8 * level


def test_the_same_seed_gives_the_same_scan_in_any_unit(healthy):
    first, lesion = implanted(healthy, contrast=(0.6, 1.2), gamma=(0.8, 1.2))
    scaled = {name: 700 * image for name, image in healthy.images.items()}
    again, same = implant_lesions(scaled, healthy.tissues, GRID, 1, contrast=(0.6, 1.2), gamma=(0.8, 1.2))
    np.testing.assert_array_equal(lesion, same)
    np.testing.assert_allclose(first["FLAIR"], again["FLAIR"], rtol=1e-4, atol=1e-4)


def test_suspected_lesions_are_filled_with_white_matter(healthy):
    patient = make_subject(3, "ms", grid=GRID, sequences=("FLAIR", "T1w"), fine_mm=2.0)  # the same head, with lesions
    own = patient.lesion > 0
    filled, lesion = implant_lesions(patient.images, patient.tissues, GRID, 5, suspected=own, contrast=(1, 1))
    inside = own & (lesion == 0) & (patient.tissues == 4)
    level = np.median(filled["FLAIR"][(patient.tissues == 3) & (lesion == 0)])
    before = patient.images["FLAIR"][inside].mean() / np.median(patient.images["FLAIR"][patient.tissues == 3])
    assert before > 1.25
    assert filled["FLAIR"][inside].mean() == pytest.approx(level, rel=0.1)


def test_a_suspicion_in_fluid_or_gray_matter_is_none():
    tissues = np.full((24, 24, 24), 3, dtype=np.uint8)
    tissues[:12] = 2
    probability = np.zeros(tissues.shape)
    probability[3:5, 8:10, 8:10] = 0.9  # in gray matter
    probability[18:20, 8:10, 8:10] = 0.9  # in white matter
    probability[18, 18, 18] = 0.2  # not sure enough
    found = suspected_lesions(probability, tissues, Grid(tissues.shape, np.eye(4)), 0.5)
    assert found[18:20, 8:10, 8:10].all()
    assert found.sum() == 8 + 24  # and the faces of the cube of 2 x 2 x 2
    assert not found[:12].any()


def test_a_map_without_white_matter_is_refused(healthy):
    with pytest.raises(ValueError, match="0 ml of white matter; expected 100 or more"):
        implant_lesions(healthy.images, np.minimum(healthy.tissues, 2), GRID, 1)


def test_a_cohort_of_scans_keeps_people_apart_and_grids_as_they_are(healthy, tmp_path):
    for name, image in (*healthy.images.items(), ("tissues", healthy.tissues)):
        nib.save(nib.Nifti1Image(image, GRID.affine), tmp_path / f"{name}.nii.gz")
    item = {"FLAIR": str(tmp_path / "FLAIR.nii.gz"), "tissues": str(tmp_path / "tissues.nii.gz")}
    scans = {
        "training": [item | {"subject": "a", "T1w": str(tmp_path / "T1w.nii.gz")}],
        "validation": [item | {"subject": "b"}],
    }
    counts = {"training": 2, "validation": 1}
    datalist = implant_cohort(tmp_path / "cohort", scans, counts, seed=4, prefix="i", num_workers=1)
    content = json.loads(datalist.read_text())
    assert [case["subject"] for case in content["training"]] == ["i-a", "i-a"]
    assert [("T1w" in case) for case in content["training"] + content["validation"]] == [True, True, False]
    masks = [nib.load(datalist.parent / case["label"]) for case in content["training"]]
    assert all(np.allclose(mask.affine, GRID.affine) and mask.shape == GRID.shape for mask in masks)
    first, second = (np.asarray(mask.dataobj) > 0 for mask in masks)
    assert first.any()
    assert (first != second).any()
    tissues = np.asarray(nib.load(datalist.parent / content["training"][0]["tissues"]).dataobj)
    np.testing.assert_array_equal(tissues == 4, first)
    (item,) = scans["training"]
    styles = [{"t1w_contrast": (c, c), "pathology": "ms_confluent"} for c in (0.0, 1.0)]
    datalist = implant_cohort(tmp_path / "styles", {"training": [item]}, counts, styles=styles, num_workers=1)
    darkness = []
    for case in json.loads(datalist.read_text())["training"]:
        assert case["lesion_ml"] > 5
        t1w, tissues = (np.asarray(nib.load(datalist.parent / case[key]).dataobj) for key in ("T1w", "tissues"))
        darkness.append(np.median(t1w[tissues == 4]) / np.median(t1w[tissues == 3]))
    assert darkness[0] > 0.93 > 0.8 > darkness[1]
    del item["FLAIR"]
    datalist = implant_cohort(tmp_path / "t1w", {"training": [item]}, {"training": 1}, sequence="T1w", num_workers=1)
    content = json.loads(datalist.read_text())
    assert content["sequences"] == ["T1w"]
    assert content["training"][0]["image"] == content["training"][0]["T1w"]
    with pytest.raises(InputError, match="no scan to implant"):
        implant_cohort(tmp_path / "none", {"training": []}, counts)
    with pytest.raises(InputError, match="is not empty"):
        implant_cohort(tmp_path / "cohort", scans, counts)
