"""The synthetic head: anatomy, contrast, lesions, grids, and cohorts on disk."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from common.errors import InputError
from common.geometry import apply_affine, sample, voxel_grid
from phantom import (
    STRUCTURES,
    Grid,
    anatomy_of_labels,
    lesion_map_of_mask,
    load_anatomy,
    make_subject,
    ms_lesion_volumes,
)
from phantom.anatomy import CORTEX, Deformation
from phantom.cohort import make_cohort, make_phantom
from phantom.contrast import CONTRAST, LESION_RANGE, SCANNERS, Scanner, lesion_contrasts

COARSE = Grid.axial(3.0)
PINNED = {"T1w": 35941.34, "T2w": 69465.37, "FLAIR": 49996.59}  # sums of the patient below


@pytest.fixture(scope="module")
def healthy():
    return make_subject(1, "healthy", grid=COARSE)


@pytest.fixture(scope="module")
def patient():
    return make_subject(1, "ms", grid=COARSE)


def test_the_default_grids_are_the_usual_ones():
    assert Grid.axial(1.0).shape == (160, 192, 160)
    assert Grid.axial(2.0).shape == (80, 96, 80)
    # both cover the same millimeters: outer corner of the first voxel
    for spacing in (1.0, 2.0):
        np.testing.assert_allclose(Grid.axial(spacing).affine @ [-0.5, -0.5, -0.5, 1], [-80.5, -112.5, -72.5, 1])


def test_every_structure_has_a_plausible_volume(healthy):
    ml = np.bincount(healthy.structures.ravel(), minlength=10) * np.prod(COARSE.spacing) / 1000
    ranges = {
        1: (60, 500),
        2: (5, 80),
        3: (350, 800),
        4: (4, 16),
        5: (5, 18),
        6: (6, 20),
        7: (250, 650),
        8: (90, 220),
        9: (10, 35),
    }
    assert set(ranges) == set(STRUCTURES) - {0}
    for structure, (low, high) in ranges.items():
        assert low < ml[structure] < high, f"{STRUCTURES[structure]}: {ml[structure]:.0f} ml"


def test_labels_and_images_agree_on_where_the_brain_is(patient):
    mask = patient.brain_mask > 0
    assert ((patient.tissues > 0) == mask).all()
    assert ((patient.structures > 0) == mask).all()
    assert not patient.images["T1w"][~mask].any()
    assert (patient.tissues[patient.lesion > 0] == 4).all()


@pytest.mark.parametrize(
    ("sequence", "order"),
    [("T1w", ["CSF", "GM", "WM"]), ("T2w", ["WM", "GM", "CSF"]), ("FLAIR", ["CSF", "WM", "GM"])],
)
def test_tissues_have_the_order_of_the_contrast(healthy, sequence, order):
    means = {
        name: np.median(healthy.images[sequence][healthy.tissues == t])
        for t, name in ((1, "CSF"), (2, "GM"), (3, "WM"))
    }
    assert sorted(means, key=means.get) == order
    assert means["WM"] == pytest.approx(1.0, abs=0.12)


def test_lesions_are_bright_on_flair_dark_on_t1_and_mostly_in_white_matter(patient, healthy):
    lesion = patient.lesion > 0
    flair = patient.images["FLAIR"]
    assert np.median(flair[lesion]) > 1.2 * np.median(flair[patient.tissues == 3])
    assert np.median(patient.images["T1w"][lesion]) < 0.95 * np.median(patient.images["T1w"][patient.tissues == 3])
    assert np.isin(healthy.tissues[lesion], [3]).mean() > 0.7  # what the same head shows there without lesions


def test_a_pathology_changes_nothing_but_the_lesions(patient, healthy):
    np.testing.assert_array_equal(patient.structures, healthy.structures)
    away = np.asarray(patient.lesion == 0) & (np.abs(patient.images["FLAIR"] - healthy.images["FLAIR"]) > 1e-6)
    assert away.mean() < 0.05  # only partial volume around lesions
    assert not healthy.lesion.any()


@pytest.mark.parametrize("pathology", ["tumour", "infarct"])
def test_focal_pathologies_lie_around_their_known_place(pathology):
    subject = make_subject(5, pathology, grid=COARSE, sequences=("FLAIR",))
    (center,) = subject.info["lesion_centers_mm"]
    voxels = np.argwhere(subject.lesion)
    distance = np.linalg.norm(nib.affines.apply_affine(COARSE.affine, voxels) - center, axis=1)
    assert np.median(distance) < 30
    assert subject.info["lesion_ml"] == pytest.approx(len(voxels) * 27 / 1000, abs=1e-3)
    assert subject.info["lesion_ml"] > 1


def test_the_same_seed_gives_the_same_subject_and_another_seed_another(patient):
    again, other = (make_subject(seed, "ms", grid=COARSE, sequences=("FLAIR",)) for seed in (1, 2))
    np.testing.assert_array_equal(again.lesion, patient.lesion)
    np.testing.assert_array_equal(again.structures, patient.structures)
    assert (other.structures != patient.structures).mean() > 0.02


def test_the_saved_displacement_leads_back_to_the_template(healthy):
    anatomy = load_anatomy()
    world = voxel_grid(COARSE.shape, COARSE.affine)
    points = world + torch.from_numpy(healthy.displacement).movedim(-1, 0)
    region = sample(anatomy.regions, apply_affine(np.linalg.inv(anatomy.affine), points), "nearest", "zeros")[0].numpy()
    for structure, value in ((4, 5), (5, 6), (6, 7)):  # the nuclei are not touched by individual tissue
        same = (region == value) & (healthy.structures == structure)
        assert same.sum() > 0.75 * (healthy.structures == structure).sum()


def test_an_oblique_flipped_anisotropic_grid_shows_the_same_head(healthy):
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-2.0, 3.0, 5.0])
    affine[:3, 3] = -affine[:3, :3] @ np.array([55, 45, 20]) + [0, -18, 5]
    grid = Grid((110, 90, 40), affine)
    tilted = make_subject(1, "healthy", grid=grid, sequences=("T1w",))
    # volumes do not depend on the grid
    for structure in (3, 7, 8):
        ml = (tilted.structures == structure).sum() * 30 / 1000
        assert ml == pytest.approx((healthy.structures == structure).sum() * 27 / 1000, rel=0.12)
    # and places neither: center of the cerebellum in mm
    centers = [
        nib.affines.apply_affine(s.grid.affine, np.argwhere(s.structures == 8).mean(0)) for s in (tilted, healthy)
    ]
    np.testing.assert_allclose(*centers, atol=1.5)


def test_scalp_lies_around_the_brain_only():
    head = make_subject(3, "healthy", grid=COARSE, sequences=("T1w",), scalp=True)
    bare = make_subject(3, "healthy", grid=COARSE, sequences=("T1w",))
    np.testing.assert_array_equal(head.brain_mask, bare.brain_mask)
    outside = (head.brain_mask == 0) & (head.images["T1w"] > 0.6)
    assert outside.sum() > 0.1 * head.brain_mask.sum()


def test_lesion_loads_are_those_of_the_measured_patients():
    rng = np.random.default_rng(0)
    patients = [ms_lesion_volumes(rng) for _ in range(400)]
    load = np.array([v.sum() / 1000 for v in patients])
    # measured: median 13.9 ml (0.7 to 49.4), median number 69 (17 to 283), median lesion 21 mm3
    assert 5 < np.median(load) < 20
    assert np.quantile(load, 0.05) < 1.5
    assert 40 < np.quantile(load, 0.95) < 80
    assert 40 < np.median([len(v) for v in patients]) < 110
    assert 12 < np.median(np.concatenate(patients)) < 35


def test_confluent_lesions_hold_most_of_a_large_load():
    rng = np.random.default_rng(0)
    for _ in range(50):
        volumes = ms_lesion_volumes(rng, confluent=True)
        load = volumes.sum()
        assert 9_999 < load < 60_001
        assert volumes[-5:].sum() / load > 0.59
        assert volumes[-2:].sum() > 0.2 * load
        assert len(volumes) > 20


def test_the_contrast_of_lesions_on_t1w_is_drawn_apart_from_flair_and_from_severity():
    rng, severity = np.random.default_rng(0), torch.tensor([0.0, 1.0])
    style = Scanner(lesion_t1w=(0.0, 1.15))
    drawn = [lesion_contrasts(0.8, style, ["FLAIR", "T1w"], Grid((2, 2, 2), np.eye(4)), rng) for _ in range(400)]
    factors = np.array([contrasts["T1w"].factor for contrasts in drawn])
    assert 0.1 < np.mean(factors < 0.2) < 0.25  # of 0 to 1.15 evenly: 0.174
    assert 0.08 < np.mean(factors > 1) < 0.2
    mild, severe = LESION_RANGE["FLAIR"]
    first = drawn[0]
    np.testing.assert_allclose(
        first["FLAIR"].tone("FLAIR", severity), [1 + 0.8 * (mild - 1), 1 + 0.8 * (severe - 1)], rtol=1e-6
    )
    expected = 1 + factors[0] * (LESION_RANGE["T1w"][1] - 1)
    np.testing.assert_allclose(first["T1w"].tone("T1w", severity), [expected, expected], rtol=1e-6)
    plain = lesion_contrasts(0.8, Scanner(), ["T1w"], Grid((2, 2, 2), np.eye(4)), rng)["T1w"]
    assert (plain.factor, plain.severity, plain.uneven) == (0.8, None, None)


def test_lesions_vary_inside_in_each_sequence_on_its_own():
    grid = Grid((40, 40, 40), np.eye(4))
    contrasts = lesion_contrasts(1.0, Scanner(lesion_variation=0.25), ["FLAIR", "T1w"], grid, np.random.default_rng(1))
    uneven = [contrasts[name].uneven for name in ("FLAIR", "T1w")]
    assert all(0.2 < float(u.std()) < 0.3 and float(u.mean()) == pytest.approx(1, abs=0.1) for u in uneven)
    assert abs(np.corrcoef(*(u.ravel() for u in uneven))[0, 1]) < 0.5


def test_lesions_that_t1w_does_not_show_are_as_bright_on_flair(patient):
    def subject(contrast):
        scanner = Scanner(lesion_t1w=(contrast, contrast))
        return make_subject(1, "ms", scanner, COARSE, sequences=("FLAIR", "T1w"))

    hidden, marked = subject(0.0), subject(1.0)
    np.testing.assert_array_equal(hidden.images["FLAIR"], marked.images["FLAIR"])
    lesion, white = hidden.lesion > 0, hidden.tissues == 3
    level = np.median(hidden.images["T1w"][white])
    assert np.median(hidden.images["T1w"][lesion]) > 0.93 * level
    assert np.median(marked.images["T1w"][lesion]) < 0.85 * level
    np.testing.assert_array_equal(hidden.lesion, patient.lesion)


def test_a_scanner_without_options_makes_the_scans_that_it_always_made(patient):
    sums = {name: float(image.sum(dtype=np.float64)) for name, image in patient.images.items()}
    assert sums == pytest.approx(PINNED, rel=1e-4)
    assert {SCANNERS[name].lesion_t1w for name in ("A", "B", "mixed")} == {None}


def test_noise_and_bias_are_as_strong_as_the_scanner_says(healthy):
    def image(**changes):
        scanner = replace(SCANNERS["A"], **({"noise": (0.0, 0.0), "bias": (0.0, 0.0)} | changes))
        return make_subject(1, "healthy", scanner, COARSE, sequences=("T1w",)).images["T1w"]

    white = healthy.tissues == 3
    plain = image()
    level = np.median(plain[white])
    noise = (image(noise=(0.05, 0.05)) - plain)[white] / level
    assert np.std(noise) == pytest.approx(0.05, rel=0.1)
    shading = np.log(image(bias=(0.2, 0.2)) / np.where(white, plain, 1), where=white, out=np.zeros(white.shape))
    assert 0.1 < np.std(shading[white]) < 0.3
    core = ndimage.binary_erosion(white)
    steps = np.abs(np.diff(shading, axis=0))[core[1:] & core[:-1]]
    assert 0 < steps.max() < 0.1  # smooth


def test_noise_in_air_is_that_of_a_magnitude():
    """Of two Gaussian parts: never below 0, with the mean of a Rayleigh distribution, 1.25 sd of each."""
    scanner = replace(SCANNERS["A"], noise=(0.05, 0.05), bias=(0.0, 0.0))
    image = make_subject(1, "healthy", scanner, COARSE, sequences=("T1w",), scalp=True).images["T1w"]
    air = image[:4, :4]  # a corner, beyond the scalp
    assert air.min() > 0
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.1)


def test_csf_of_t2_does_not_vary_from_person_to_person():
    """On T1w and FLAIR it does: both draw a factor, T2w of free fluid has none."""
    plain, bright = (replace(SCANNERS["A"], csf=(factor, factor)) for factor in (0.8, 1.2))
    found = {}
    for name, scanner in (("plain", plain), ("bright", bright)):
        subject = make_subject(1, "healthy", scanner, COARSE, sequences=("T1w", "T2w"))
        fluid = ndimage.binary_erosion(subject.tissues == 1)
        found[name] = {sequence: np.median(image[fluid]) for sequence, image in subject.images.items()}
    assert found["bright"]["T2w"] == pytest.approx(found["plain"]["T2w"], rel=0.01)
    assert found["bright"]["T1w"] > 1.2 * found["plain"]["T1w"]


def test_the_second_scanner_is_flatter_softer_noisier_and_more_shaded():
    first, second = SCANNERS["A"], SCANNERS["B"]
    assert second.gamma[1] < first.gamma[0] < 1
    for name in ("blur_mm", "noise", "bias"):
        assert getattr(second, name)[0] > 1.5 * getattr(first, name)[1], name
    # its faint lesions stand out from white matter as much as gray matter does on the first one
    gamma, factor = np.mean(second.gamma), np.mean(second.lesion)
    faint = (1 + factor * (LESION_RANGE["FLAIR"][0] - 1)) ** gamma
    assert faint == pytest.approx(CONTRAST["FLAIR"][CORTEX], abs=0.03)


def test_a_tissue_map_takes_the_place_of_the_template(healthy):
    anatomy = anatomy_of_labels(healthy.tissues, COARSE.affine)
    points = apply_affine(np.linalg.inv(anatomy.affine), voxel_grid(COARSE.shape, COARSE.affine))
    _, gm, wm = sample(anatomy.tissue, points, padding="zeros").numpy()
    for value, share in ((2, gm), (3, wm)):
        there = (share > 0.5) == (healthy.tissues == value)
        assert there[healthy.brain_mask > 0].mean() > 0.93
    subject = make_subject(4, "healthy", grid=COARSE, sequences=("T1w",), anatomy=anatomy)
    ml = [(subject.tissues == value).sum() * 27 / 1000 for value in (2, 3)]
    expected = [(healthy.tissues == value).sum() * 27 / 1000 for value in (2, 3)]
    assert ml == pytest.approx(expected, rel=0.35)  # another head of the same person's folds
    assert np.median(subject.images["T1w"][subject.tissues == 3]) == pytest.approx(1.0, abs=0.12)


def test_a_tissue_map_of_another_space_is_brought_to_the_template(healthy):
    moved = np.eye(4)
    moved[:3, 3] = [30, -20, 10]
    away = anatomy_of_labels(healthy.tissues, moved @ COARSE.affine, to_template=np.linalg.inv(moved))
    here = anatomy_of_labels(healthy.tissues, COARSE.affine)
    torch.testing.assert_close(away.tissue, here.tissue, atol=1e-3, rtol=0)


def test_drawn_lesions_lie_where_they_were_drawn_or_mirrored():
    mask = np.zeros(COARSE.shape, dtype=bool)
    inside = np.rint(np.linalg.inv(COARSE.affine) @ [26, -12, 30, 1])[:3].astype(int)
    mask[tuple(slice(i - 3, i + 4) for i in inside)] = True
    sides = set()
    for seed in range(6):
        subject = make_subject(
            seed, grid=COARSE, sequences=("FLAIR",), lesion_map=lesion_map_of_mask(mask, COARSE.affine)
        )
        if not subject.lesion.any():  # left out: the only lesion of the mask may be
            assert subject.info["lesion_count"] == 0
            continue
        centers = nib.affines.apply_affine(COARSE.affine, np.argwhere(subject.lesion)).mean(0)
        assert np.abs(np.abs(centers) - [26, 12, 30]).max() < 14
        sides.add(np.sign(centers[0]))
    assert sides == {-1.0, 1.0}


@pytest.mark.parametrize(
    ("labels", "match"),
    [(np.full((9, 9, 9), 7), "has values .7.; expected 0 to 4"), (np.zeros((9, 9, 9), int), "0 ml of gray matter")],
)
def test_what_is_no_tissue_map_is_refused(labels, match):
    with pytest.raises(ValueError, match=match):
        anatomy_of_labels(labels, np.eye(4))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"pathology": "cold"}, "pathology is 'cold'; expected one of healthy"),
        ({"scanner": "C"}, "scanner is 'C'; expected one of A, B, mixed"),
        ({"sequences": ("PD",)}, "sequences name PD"),
        ({"grid": Grid((10, 10, 10), np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 500)}, "no brain lies on the grid"),
    ],
)
def test_what_a_subject_cannot_be_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        make_subject(0, **arguments)


def test_a_head_may_lie_where_the_template_does():
    anatomy = load_anatomy()
    with_affine, without = (
        Deformation.draw(anatomy, np.random.default_rng(3), step_mm=8.0, affine=affine) for affine in (True, False)
    )
    assert np.abs(with_affine.matrix - np.eye(4)).max() > 0.05
    np.testing.assert_array_equal(without.matrix, np.eye(4))
    assert torch.equal(without.displacement, with_affine.displacement)


def test_a_cohort_is_a_bids_tree_with_a_datalist_and_can_be_made_again(tmp_path):
    groups = {"healthy": (1, 0, 0), "ms": (0, 1, 0)}
    options = {"spacing": 4.0, "fine_mm": 4.0, "sequences": ("FLAIR",), "seed": 7, "prefix": "a", "displacement": True}
    datalist = make_cohort(tmp_path / "one", groups, num_workers=1, **options)
    make_cohort(tmp_path / "two", groups, num_workers=2, **options)

    content = json.loads(datalist.read_text())
    (train,), (val,) = content["training"], content["validation"]
    assert (train["subject"], train["healthy"], val["subject"], val["healthy"]) == ("sub-a001", True, "sub-a002", False)
    assert val["image"] == "sub-a002/anat/sub-a002_FLAIR.nii.gz"
    for case in (train, val):
        for key in ("image", "label", "brain_mask", "tissues", "structures"):
            one, two = (nib.load(tmp_path / cohort / case[key]) for cohort in ("one", "two"))
            np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
            assert one.shape == (40, 48, 40)
    field = nib.load(tmp_path / "one" / train["displacement"])
    assert field.shape == (40, 48, 40, 1, 3)
    assert field.header.get_intent()[0] == "vector"


def test_a_cohort_lies_on_the_grid_that_is_given(tmp_path):
    grid = Grid((20, 24, 20), np.diag([8.0, 8.0, 8.0, 1.0]))
    grid.affine[:3, 3] = -76, -109, -71
    options = {"fine_mm": 4.0, "sequences": ("T1w",), "num_workers": 1}
    datalist = make_cohort(tmp_path / "one", {"healthy": (1, 0, 0)}, grid=grid, **options)
    scan = nib.load(datalist.parent / json.loads(datalist.read_text())["training"][0]["image"])
    assert scan.shape == grid.shape
    np.testing.assert_array_equal(scan.affine, grid.affine)


def test_a_cohort_is_made_from_label_maps_of_real_people(tmp_path, healthy, patient):
    for name, array in (("tissue", healthy.tissues), ("lesion", patient.lesion)):
        nib.save(nib.Nifti1Image(array, COARSE.affine), tmp_path / f"{name}.nii.gz")
    extra = {
        "tissues": {"training": [{"label": "tissue.nii.gz"}]},
        "lesions": {"training": [{"label": "lesion.nii.gz"}]},
    }
    (tmp_path / "extra.json").write_text(json.dumps(extra))
    options = {"spacing": 4.0, "fine_mm": 4.0, "sequences": ("FLAIR",), "num_workers": 1}
    groups = {"ms": (2, 1, 0)}
    plain, real = (
        json.loads(make_cohort(tmp_path / name, groups, extra_data=file, **options).read_text())
        for name, file in (("plain", None), ("real", tmp_path / "extra.json"))
    )

    def same(section, number, key):
        one, two = (
            np.asarray(nib.load(tmp_path / name / content[section][number][key]).dataobj)
            for name, content in (("plain", plain), ("real", real))
        )
        return (one == two).all()

    assert same("validation", 0, "tissues")  # a section without label maps is made from the template
    assert not same("training", 0, "tissues")
    counts = [content["training"][0]["lesion_count"] for content in (plain, real)]
    assert counts[0] == counts[1]  # invented in every other patient
    assert plain["training"][1]["lesion_count"] != real["training"][1]["lesion_count"]
    assert "label maps in extra.json" in real["description"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "cannot be read"),
        ("[", "is no valid JSON"),
        ('{"tissues": {"training": [{"image": "x.nii.gz"}]}}', "is not understood"),
        ('{"tissues": {"training": [{"label": "none.nii.gz"}]}}', "none.nii.gz"),
        ('{"lesions": {"learning": [{"label": "a.nii.gz"}]}}', "the section 'learning', expected training, validation"),
    ],
)
def test_extra_data_that_cannot_be_used_is_refused(tmp_path, content, match):
    if content is not None:
        (tmp_path / "extra.json").write_text(content)
    with pytest.raises(InputError, match=match):
        make_cohort(tmp_path / "new", {"ms": (1, 0, 0)}, extra_data=tmp_path / "extra.json", num_workers=1)
    assert not (tmp_path / "new").exists()


def test_extra_data_of_another_kind_is_refused_and_not_passed_over(tmp_path):
    (tmp_path / "extra.json").write_text('{"tisues": {"training": [{"label": "a.nii.gz"}]}}')
    with pytest.raises(InputError, match="lists neither tissues nor lesions, expected one of them"):
        make_phantom(str(tmp_path / "new"), ms=[1, 0, 0], extra_data=str(tmp_path / "extra.json"), num_workers=1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"groups": {"flu": (1, 0, 0)}}, "groups name flu"),
        ({"groups": {"ms": (0, 0, 0)}}, "no subject was asked for"),
        ({"scanner": "C"}, "scanner is 'C'"),
        ({"label": "bones"}, "label is 'bones'"),
        ({"prefix": "../x"}, "letters and digits"),
    ],
)
def test_what_a_cohort_cannot_be_is_refused(tmp_path, change, match):
    with pytest.raises(InputError, match=match):
        make_cohort(**{"output_dir": tmp_path / "new", "groups": {"ms": (1, 0, 0)}, **change})
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        make_cohort(tmp_path, {"ms": (1, 0, 0)})
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_cohort_that_breaks_off_leaves_nothing_and_a_killed_one_is_made_again(tmp_path, monkeypatch):
    made = []

    def one_then_full_disk(*arguments, **options):
        if made:
            raise OSError("no space left on device")
        made.append(make_subject(*arguments, **options))
        return made[0]

    options = {
        "groups": {"healthy": (2, 0, 0)},
        "spacing": 4.0,
        "fine_mm": 4.0,
        "sequences": ("FLAIR",),
        "num_workers": 1,
    }
    monkeypatch.setattr("phantom.cohort.make_subject", one_then_full_disk)
    with pytest.raises(InputError, match=r"new cannot be written \(no space left on device\)"):
        make_cohort(tmp_path / "new", **options)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / ".new.part-0123" / "sub-001").mkdir(parents=True)  # what a killed run leaves behind
    make_cohort(tmp_path / "new", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
