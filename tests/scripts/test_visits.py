"""What has changed between visits: alignment, joint segmentation, matched lesions, intervals, files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_tools import load_script, save_nifti
from scipy import ndimage
from scipy.spatial.transform import Rotation

from common.data import visit_of
from common.errors import InputError
from phantom import Grid
from phantom.visits import APPEARED, DISAPPEARED, make_visits, read_lesions, write_visits
from preparation.volume import Volume
from visits import Choice, people, retest_of, visits_of_files
from visits.alignment import half_of, halfway
from visits.joint import (
    GONE,
    NEW,
    NONE,
    STABLE,
    log_odds,
    match_gray_values,
    noise_of,
    segment,
    states,
    without_small,
)
from visits.lesions import difference_of_masks, match_lesions, score
from visits.retest import SHIPPED, Retest, measure_retest, read_retest
from visits.scans import load

SHAPE, AFFINE = (60, 72, 50), np.array([[2.0, 0, 0, -60], [0, 2, 0, -72], [0, 0, 2, -50], [0, 0, 0, 1]])
MM = np.full(3, 2.0)
RETEST = Retest(0.9, 20, 0.1, ({"up_to_ml": 1.0, "half_ml": 0.02, "count": 9}, {"up_to_ml": None, "half_ml": 0.5,
                "count": 9}), 0.5, "a test")  # fmt: skip


def ball(center: tuple[int, int, int], radius: float) -> np.ndarray:
    return np.square(np.indices(SHAPE) - np.reshape(center, (3, 1, 1, 1))).sum(0) <= radius**2


BRAIN = (np.square((np.indices(SHAPE) - np.reshape((30, 36, 25), (3, 1, 1, 1))) /
                   np.reshape((26, 32, 21), (3, 1, 1, 1))).sum(0) <= 1)  # fmt: skip
OLD, FRESH = ball((20, 40, 25), 3), ball((42, 30, 28), 3)


def scan(lesions: np.ndarray, seed: int, gain: float = 100.0, noise: float = 0.03) -> np.ndarray:
    """FLAIR-like: the same texture of tissue, and noise and shading of its own."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 2)
    tissue = 1 + 0.08 * texture / texture.std() - 0.6 * ball((30, 36, 25), 5) + 0.5 * lesions
    shading = np.exp(0.1 * np.sin(seed + np.linspace(0, 3, SHAPE[0]))).reshape(-1, 1, 1)
    image = tissue * shading + noise * np.random.default_rng(seed + 1).standard_normal(SHAPE)
    return (gain * np.clip(image, 0.01, None) * BRAIN).astype(np.float32)


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    """Two visits of one person on one grid: a lesion stays, a second one is new."""
    items = []
    for number, lesions in enumerate((OLD, OLD | FRESH), start=1):
        image = save_nifti(tmp_path / f"p1_study{number}_FLAIR.nii.gz", scan(lesions, number), AFFINE)
        label = save_nifti(tmp_path / f"p1_study{number}_lesion.nii.gz", lesions.astype(np.uint8), AFFINE)
        change = save_nifti(tmp_path / f"p1_study{number}_change.nii.gz", FRESH.astype(np.uint8), AFFINE)
        items.append({"image": image.name, "label": label.name, "change": change.name, "subject": "p1"})
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"sequences": ["FLAIR"], "test": items}))
    return path


def run(datalist: Path, output_dir: Path, *options: str) -> None:
    script = load_script("compare_visits")
    options = dict(zip(options[::2], options[1::2], strict=True))
    known = {"align": False, "retest_file": None} | options
    if known["retest_file"] is None:
        known["intervals"] = known.get("intervals", False)
    script.main(str(output_dir), str(datalist), **known)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


# half-way


def test_half_of_a_way_done_twice_is_the_way():
    way = np.eye(4)
    way[:3, :3], way[:3, 3] = Rotation.from_euler("xyz", (20, -35, 10), degrees=True).as_matrix(), (3, -8, 5)
    np.testing.assert_allclose(half_of(way) @ half_of(way), way, atol=1e-12)
    np.testing.assert_allclose(half_of(np.linalg.inv(way)), np.linalg.inv(half_of(way)), atol=1e-12)


def test_two_files_on_one_grid_are_not_interpolated():
    image = Volume(scan(OLD, 1), AFFINE)
    grid = halfway((image, image), (BRAIN, BRAIN), search=False)
    start = np.rint(np.linalg.inv(AFFINE) @ grid.affine[:, 3])[:3].astype(int)
    where = np.argwhere(BRAIN)
    values = grid.bring(image, 0).values
    np.testing.assert_array_equal(values[tuple((where - start).T)], image.values[BRAIN])
    np.testing.assert_array_equal(values, grid.bring(image, 1).values)


def test_both_visits_are_interpolated_alike_where_their_grids_are_shifted():
    moved = AFFINE.copy()
    moved[0, 3] += 1.0  # half a voxel
    images = Volume(scan(OLD, 1), AFFINE), Volume(scan(OLD, 1), moved)
    grid = halfway(images, (BRAIN, BRAIN), search=False)
    offsets = [np.linalg.inv(image.affine) @ way @ grid.affine for image, way in zip(images, grid.ways, strict=True)]
    shares = [matrix[0, 3] - np.floor(matrix[0, 3]) for matrix in offsets]
    assert shares == pytest.approx([0.25, 0.75])  # as far from a voxel in either


def test_exchanging_the_visits_gives_the_same_place_for_each():
    turned = AFFINE.copy()
    turned[:3, :3] = Rotation.from_euler("z", 6, degrees=True).as_matrix() @ turned[:3, :3]
    images = Volume(scan(OLD, 1), AFFINE), Volume(scan(OLD, 2), turned)
    there, back = (halfway(pair, (BRAIN, BRAIN), search=False) for pair in (images, images[::-1]))
    point = np.array([10.0, -20, 5, 1])
    in_later = there.ways[1] @ np.linalg.inv(there.ways[0]) @ point
    np.testing.assert_allclose(back.ways[0] @ np.linalg.inv(back.ways[1]) @ point, in_later, atol=1e-9)


# joint segmentation


def test_evidence_is_the_log_odds_above_the_threshold_within_limits():
    np.testing.assert_allclose(log_odds(np.array([0.3, 0.5, 0.0, 1.0]), 0.3), [0, np.log(7 / 3), -3, 3], atol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "z", "contrast", "state"),
    [
        (-3, 3, 0, 4, NONE),  # new 3 - 8 - 3; the maps together say 0, which is no lesion
        (-1, 3, 0, 4, STABLE),  # 2 against 0, and new 3 - 8 - 3
        (-3, 3, 4, 4, NEW),  # 3 + 4 - 3
        (3, -3, -4, 4, GONE),
        (3, -3, 4, 4, NONE),  # the gray values say the opposite
        (3, 3, 9, 4, STABLE),  # 6 against 3 + 4 - 3: brighter, not new
        (-3, -3, 9, 4, NONE),  # -3 + 4 - 3: no map sees a lesion
        (-3, 3, -4, -4, NEW),  # dark lesions
        (-3, 3, 9, 0, NONE),  # gray values that do not show lesions: 3 + 0 - 3
    ],
)
def test_a_voxel_takes_the_state_with_the_highest_score(a, b, z, contrast, state):
    arrays = [np.array([value], dtype=np.float32) for value in (a, b, z, contrast)]
    assert states((arrays[0], arrays[1]), arrays[2], arrays[3]) == [state]


def test_gain_gamma_and_shading_of_a_visit_are_taken_away():
    one = scan(OLD, 1, noise=0.01)
    other = 7 * (scan(OLD, 4, noise=0.01) / 100) ** 0.9
    tissue = BRAIN & ~ndimage.binary_dilation(OLD, iterations=2)
    first, second, shading = match_gray_values((one, other), BRAIN, tissue, MM)
    assert shading > 0.03
    raw = np.abs(other / np.median(other[tissue]) - one / np.median(one[tissue]))[tissue].mean()
    assert np.abs(second - first)[tissue].mean() < 0.03 < raw / 2  # of tissue at 1; noise alone makes 0.011


def test_noise_is_measured_and_not_moved_by_few_changes():
    rng = np.random.default_rng(3)
    difference = 0.05 * rng.standard_normal(SHAPE)
    difference[FRESH] += 1
    noise = noise_of(difference, 1 + 0.01 * rng.standard_normal(SHAPE), BRAIN, MM)
    assert np.median(noise[BRAIN]) == pytest.approx(0.05, rel=0.1)


def test_a_new_lesion_is_found_and_an_edge_drawn_otherwise_is_none():
    wider = ndimage.binary_dilation(OLD)
    images = scan(OLD, 1), scan(OLD | FRESH, 2)
    evidence = tuple(log_odds(mask.astype(np.float32)) for mask in (OLD, wider | FRESH))
    joint = segment(images, evidence, BRAIN, MM, 50.0)
    new = joint.state == NEW
    assert (new & FRESH).sum() > 0.9 * FRESH.sum()
    assert not (new & wider).any()
    assert joint.contrast > 4


def test_small_changes_become_what_both_maps_say_together():
    images = scan(OLD, 1), scan(OLD | FRESH, 2)
    evidence = tuple(log_odds(mask.astype(np.float32)) for mask in (OLD, OLD | FRESH))
    assert (segment(images, evidence, BRAIN, MM, 50.0).state == NEW).any()
    assert not (segment(images, evidence, BRAIN, MM, 5000.0).state == NEW).any()


@pytest.mark.parametrize(("earlier", "later", "together"), [(-1.0, 3.0, STABLE), (-3.0, 2.0, NONE)])
def test_a_change_that_is_too_small_is_a_lesion_if_the_maps_together_say_so(earlier, later, together):
    state, evidence = np.full(SHAPE, NONE, np.uint8), [np.full(SHAPE, -3.0), np.full(SHAPE, -3.0)]
    for part in (FRESH, OLD):
        state[part] = NEW
    state[OLD | ball((20, 43, 25), 3)] = NEW  # larger than the other
    evidence[0][FRESH], evidence[1][FRESH] = earlier, later
    found = without_small(state, evidence, FRESH.sum() * 8.0 + 1, MM)
    assert set(found[FRESH]) == {together}
    assert set(found[OLD]) == {NEW}


# lesions


def cube(*corner: int, edge: int = 4) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(c, c + edge) for c in corner)] = True
    return mask


def test_lesions_are_matched_by_what_touches():
    stable, gone, new = cube(2, 2, 2), cube(12, 2, 2), cube(22, 2, 2)
    small, large = cube(32, 2, 2, edge=2), cube(32, 2, 2)
    halves = cube(42, 2, 2) & ~cube(44, 2, 2, edge=1)
    halves[43:45] = False
    whole = halves.copy()
    whole[42:46, 2:6, 2:6] = True
    before = stable | gone | small | halves
    after = stable | new | large | whole
    assert ndimage.label(halves)[1] == 2
    lesions, change = match_lesions(before, after, np.ones(SHAPE), MM, RETEST)
    assert sorted(lesion.fate for lesion in lesions) == ["gone", "grown", "merged", "new", "stable"]
    grown = next(lesion for lesion in lesions if lesion.fate == "grown")
    assert (grown.before_ml, grown.after_ml) == pytest.approx((0.064, 0.512))
    assert (grown.low_ml, grown.high_ml) == pytest.approx((0.428, 0.468))  # 0.448 and 0.02
    assert [set(np.unique(change[mask])) for mask in (stable, gone, new)] == [{1}, {4}, {2}]
    assert (change[large & ~small] == 3).all()
    assert lesions[-1].fate == "stable"  # what has not changed comes last


def test_a_lesion_within_its_interval_is_stable():
    before, after = cube(2, 2, 2), cube(2, 2, 2)
    after[6, 2:4, 2] = True  # 16 mm3 more, of an interval of 20
    lesions, change = match_lesions(before, after, np.ones(SHAPE), MM, RETEST)
    assert [lesion.fate for lesion in lesions] == ["stable"]
    assert set(np.unique(change)) == {0, 1, 3}  # the map still shows the part
    assert [lesion.fate for lesion in match_lesions(before, after, np.ones(SHAPE), MM, None)[0]] == ["grown"]


def test_lesions_that_come_apart_are_split():
    whole = cube(10, 10, 10)
    halves = whole.copy()
    halves[11:13] = False
    lesions, _ = match_lesions(whole, halves, np.ones(SHAPE), MM, RETEST)
    assert [(lesion.fate, lesion.parts) for lesion in lesions] == [("split", (1, 2))]


def test_the_simple_way_is_the_difference_of_masks_of_a_size():
    appeared, disappeared = difference_of_masks((OLD, OLD | FRESH | cube(50, 60, 10, edge=1)), MM, 20.0)
    np.testing.assert_array_equal(appeared, FRESH)
    assert not disappeared.any()


def test_changes_are_scored_one_by_one():
    reference = cube(2, 2, 2) | cube(12, 2, 2) | cube(22, 2, 2, edge=1)
    found = cube(2, 2, 2, edge=2) | cube(40, 2, 2, edge=2)
    scored = score(found, reference, MM, 10.0)
    assert (scored.changes, scored.found, scored.false) == (2, 1, 1)
    assert scored.false_ml == pytest.approx(0.064)
    assert scored.dice == pytest.approx(2 * 8 / (16 + 129))


# test and retest


def test_the_interval_of_a_load_is_the_change_that_few_pairs_exceed():
    loads = [(10.0, 10.0 + change) for change in np.arange(1, 20) / 10]  # 19 pairs: rank 18 of 0.1 to 1.9
    found = measure_retest(loads, [(0.05, 0.06)] * 12 + [(0.5, 0.4)] * 12, [0, 1] * 9 + [1], "a test", level=0.9)
    assert found.share == pytest.approx(1.8 / 10.9, abs=1e-4)
    assert [(c["up_to_ml"], c["half_ml"], c["count"]) for c in found.lesions] == [
        (0.1, 0.01, 12),
        (1.0, 0.1, 12),
        (None, 0.1, 0),
    ]
    assert found.load_interval(10, 12) == pytest.approx((2 - 11 * found.share, 2 + 11 * found.share))
    floored = measure_retest(loads, [(0.05, 0.05)] * 12, [0], "a test", least_ml=0.02)
    assert floored.lesion_interval(0.05, 0.06) == pytest.approx((-0.01, 0.03))
    assert found.false_changes == pytest.approx(10 / 19, abs=1e-3)


def test_a_small_load_is_judged_as_one_of_half_a_milliliter():
    found = measure_retest([(0.0, 0.1)] * 9, [(0.05, 0.05)] * 12, [0] * 9, "a test")
    assert found.share == pytest.approx(0.1 / 0.5)


def test_too_few_pairs_give_no_interval():
    with pytest.raises(InputError, match=r"there are 8 pairs of test and retest, expected 9 or more"):
        measure_retest([(1.0, 1.0)] * 8, [(1.0, 1.0)] * 8, [0] * 8, "a test", level=0.9)


def test_an_interval_is_read_as_it_was_written(tmp_path):
    RETEST.save(tmp_path / "retest.json")
    assert read_retest(tmp_path / "retest.json") == RETEST
    (tmp_path / "odd.json").write_text('{"level": 0.9}')
    with pytest.raises(InputError, match=r"odd\.json is not understood"):
        read_retest(tmp_path / "odd.json")


def test_the_repository_has_an_interval_and_says_what_it_is_from():
    shipped = retest_of(None)
    assert shipped.pairs >= 9
    assert "pairs of scans" in shipped.source
    assert SHIPPED.parent.name == "visits"


# who came when


@pytest.mark.parametrize(
    ("path", "visit"),
    [
        ("p1_study2_FLAIR.nii.gz", "study2"),
        ("p1/visit2/FLAIR.nii.gz", "visit2"),
        ("sub-1/ses-02/anat/sub-1_ses-02_FLAIR.nii.gz", "ses-02"),
        ("P14_T1_FLAIR.nii.gz", "T1"),
        ("p1_FLAIR.nii.gz", ""),
    ],
)
def test_the_visit_is_read_off_the_name(path, visit):
    assert visit_of({"image": path}) == visit
    assert visit_of({"image": path, "visit": 3}) == "3"


def listed(tmp_path: Path, visits: list[str]) -> Path:
    items = []
    for number, visit in enumerate(visits):
        image = save_nifti(tmp_path / f"scan{number}x.nii.gz", np.ones((4, 4, 4), np.float32), AFFINE)
        items.append({"image": image.name, "label": image.name, "subject": "p", "visit": visit})
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(items))
    return path


def test_visits_come_in_the_order_of_their_numbers_the_baseline_first(tmp_path):
    found = people(None, str(listed(tmp_path, ["month12", "month2", "baseline"])), None, "FLAIR", Choice())
    assert [visit.visit for visit in found["p"]] == ["baseline", "month2", "month12"]


@pytest.mark.parametrize(
    ("visits", "sentence"),
    [(["1", "1"], r"are of the visit '1', expected a name for each visit"), (["1"], "nobody has two visits")],
)
def test_visits_that_cannot_be_told_apart_are_refused(tmp_path, visits, sentence):
    with pytest.raises(InputError, match=sentence):
        people(None, str(listed(tmp_path, visits)), None, "FLAIR", Choice())


# all of it


def test_a_new_lesion_of_a_datalist_is_told_drawn_and_scored(datalist, tmp_path):
    run(datalist, tmp_path / "out", "reference", "change")
    (row,) = table(tmp_path / "out" / "visits.tsv")
    assert (row["new"], row["gone"], row["stable"]) == ("1", "0", "1")
    assert (row["joint_found"], row["joint_changes"], row["joint_false"]) == ("1", "1", "0")
    assert float(row["appeared_ml"]) == pytest.approx(FRESH.sum() * 0.008, rel=0.15)
    fates = {line["fate"]: line for line in table(tmp_path / "out" / "changes.tsv")}
    assert float(fates["new"]["later_x_mm"]) == pytest.approx(42 * 2 - 60, abs=2)
    for number in (1, 2):
        file = tmp_path / "out" / "p1" / "study1_study2" / f"p1_study{number}_FLAIR_change.nii.gz"
        image = nib.load(file)
        np.testing.assert_array_equal(image.affine, AFFINE)
        values = np.asarray(image.dataobj)
        assert (values[FRESH] == 2).mean() > 0.85
        assert (values[OLD] == 1).mean() > 0.9
    page = (tmp_path / "out" / "visits.html").read_text()
    assert "data:image/png" in page
    assert str(tmp_path) not in page + file.with_name(file.name.replace(".nii.gz", ".json")).read_text()


def test_changes_are_written_where_they_are_in_either_file(datalist, tmp_path):
    """The second file begins four voxels further to the right: the grid lies two voxels from either."""
    moved = AFFINE.copy()
    moved[0, 3] += 4 * 2.0
    for kind, array in {"FLAIR": scan(OLD | FRESH, 2), "lesion": (OLD | FRESH).astype(np.uint8)}.items():
        save_nifti(tmp_path / f"p1_study2_{kind}.nii.gz", np.roll(array, -4, axis=0), moved)
    run(datalist, tmp_path / "out")
    for number, shift in ((1, 0), (2, -4)):
        file = tmp_path / "out" / "p1" / "study1_study2" / f"p1_study{number}_FLAIR_change.nii.gz"
        values = np.asarray(nib.load(file).dataobj)
        assert (values[np.roll(FRESH, shift, axis=0)] == 2).mean() > 0.85
        assert (values[np.roll(OLD, shift, axis=0)] == 1).mean() > 0.9


def test_the_same_run_gives_the_same_bytes_and_another_one_is_refused(datalist, tmp_path):
    out = tmp_path / "out"
    run(datalist, out)
    files = sorted(path for path in out.rglob("*.*") if path.is_file())
    before = [path.read_bytes() for path in files]
    run(datalist, out)
    assert [path.read_bytes() for path in files] == before
    with pytest.raises(InputError, match=r"was made in another way: settings min_change_mm3 is 80\.0"):
        run(datalist, out, "min_change_mm3", 80.0)
    run(datalist, out, "min_change_mm3", 80.0, "overwrite", True)
    mask = next(out.rglob("*_change.nii.gz"))
    save_nifti(mask, np.zeros(SHAPE, np.uint8), AFFINE)
    with pytest.raises(InputError, match="was changed after it was made"):
        run(datalist, out, "min_change_mm3", 80.0)


def test_results_of_an_inference_are_taken_with_their_threshold(datalist, tmp_path):
    results = tmp_path / "results"
    for number, lesions in enumerate((OLD, OLD | FRESH), start=1):
        for kind, array in {"prob": 0.35 * lesions, "seg": lesions}.items():
            name = f"p1_study{number}_FLAIR_{kind}"
            save_nifti(results / f"{name}.nii.gz", array.astype(np.float32 if kind == "prob" else np.uint8), AFFINE)
            record = {"bundle": "b", "version": "1", "threshold": {"value": 0.1}, "labels": {"1": "lesion"}}
            (results / f"{name}.json").write_text(json.dumps(record))
    found = people(None, str(datalist), None, "FLAIR", Choice(str(results)))["p1"]
    assert [(visit.is_map, visit.threshold, visit.source) for visit in found] == [(True, 0.1, "b 1")] * 2
    run(datalist, tmp_path / "out", "results", str(results))
    assert table(tmp_path / "out" / "visits.tsv")[0]["new"] == "1"
    masks = people(None, str(datalist), None, "FLAIR", Choice(str(results), "masks"))["p1"]
    assert not masks[0].is_map
    (results / "p1_study1_FLAIR_prob.json").unlink()
    with pytest.raises(InputError, match="tells no threshold of the map beside it"):
        people(None, str(datalist), None, "FLAIR", Choice(str(results)))


def test_a_map_of_scores_and_a_mask_of_another_grid_are_refused(tmp_path):
    image = str(save_nifti(tmp_path / "a_FLAIR.nii.gz", scan(OLD, 1), AFFINE))
    scores = str(save_nifti(tmp_path / "a_map.nii.gz", (5 * OLD).astype(np.float32), AFFINE))
    other = str(save_nifti(tmp_path / "a_mask.nii.gz", OLD.astype(np.uint8), np.diag([3.0, 3, 3, 1])))
    maps = visits_of_files([image] * 2, [], [scores] * 2, [], Choice(threshold=0.5))["a"]
    with pytest.raises(InputError, match="values from 0 to 5, expected probabilities"):
        load(maps[0])
    masks = visits_of_files([image] * 2, [other] * 2, [], [], Choice())["a"]
    with pytest.raises(InputError, match="expected one grid"):
        load(masks[0])
    with pytest.raises(InputError, match="masks has 1 files, expected 2"):
        visits_of_files([image] * 2, [other], [], [], Choice())


def test_scans_without_change_give_the_interval(datalist, tmp_path):
    items = []
    for number in range(1, 6):  # 10 pairs
        image = save_nifti(tmp_path / f"r_scan{number}_FLAIR.nii.gz", scan(OLD, number), AFFINE)
        label = save_nifti(tmp_path / f"r_scan{number}_lesion.nii.gz", OLD.astype(np.uint8), AFFINE)
        items.append({"image": image.name, "label": label.name, "subject": "r"})
    retest = tmp_path / "retest_cases.json"
    retest.write_text(json.dumps(items))
    run(retest, tmp_path / "r", "measure_retest", str(tmp_path / "retest.json"), "pairs", "all")
    measured = read_retest(tmp_path / "retest.json")
    assert (measured.pairs, measured.false_changes) == (10, 0)
    assert measured.share < 0.05
    assert measured.source.startswith("10 pairs of scans of 1 heads without change, 2 x 2 x 2 mm, masks of")
    run(datalist, tmp_path / "out", "retest_file", str(tmp_path / "retest.json"))
    assert float(table(tmp_path / "out" / "visits.tsv")[0]["low_ml"]) > 0
    assert "They were not measured with" not in (tmp_path / "out" / "visits.html").read_text()
    run(datalist, tmp_path / "shipped", "retest_file", str(SHIPPED))
    assert "They were not measured with masks without a record" in (tmp_path / "shipped" / "visits.html").read_text()


# phantoms


@pytest.fixture(scope="module")
def phantom():
    return make_visits(5, grid=Grid.axial(2.0))


@pytest.mark.slow
def test_changes_of_phantoms_are_where_the_lesions_of_both_visits_differ(phantom):
    visits, told = phantom
    assert {change["fate"] for change in told} <= {"new", "gone", "grown", "shrunk"}
    assert all((c["after_ml"] > c["before_ml"]) == (c["fate"] in ("new", "grown")) for c in told)
    earlier, later = visits
    assert not (earlier.lesion.astype(bool) & (earlier.change == APPEARED)).any()
    assert (earlier.lesion[earlier.change == DISAPPEARED] == 1).all()
    assert (later.lesion[later.change == APPEARED] == 1).all()
    grown_ml = sum(c["after_ml"] - c["before_ml"] for c in told)
    assert (later.lesion.sum() - earlier.lesion.sum()) * 0.008 == pytest.approx(grown_ml, abs=0.3)
    assert (earlier.image != later.image).any()


@pytest.mark.slow
def test_a_simulated_reader_finds_most_of_the_lesions_and_errs_anew(phantom):
    visit = phantom[0][0]
    masks = [read_lesions(visit, Grid.axial(2.0), np.random.default_rng(seed)) >= 0.5 for seed in (1, 2)]
    truth = visit.lesion > 0
    assert (masks[0] != masks[1]).any()
    for mask in masks:
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.6


@pytest.mark.slow
def test_visits_of_a_phantom_are_aligned_and_their_changes_found(tmp_path):
    path = write_visits(tmp_path / "phantom", 1, spacing=2.0, seed=3, reader=True)
    reader = str(tmp_path / "phantom" / "reader")
    run(path, tmp_path / "out", "align", True, "results", reader, "reference", "change")
    (row,) = table(tmp_path / "out" / "visits.tsv")
    assert float(row["round_trip_mm"]) < 0.5
    assert int(row["joint_found"]) >= 0.5 * int(row["joint_changes"]) > 0
    assert int(row["joint_false"]) < int(row["baseline_false"])
