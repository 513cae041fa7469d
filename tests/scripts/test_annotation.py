"""Which scan next, drafts, corrections read back, and when to stop; everything worked out by hand or by another way."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from bundle_tools import ROOT, load_script, make_head, save_nifti

from annotation.curve import PowerLaw, Scores, advice_of, as_dict, fit_curve, fit_power_law, read_scores
from annotation.doubt import doubt_of, drawing_axis, slices_worth, soft_dice
from annotation.drafts import itk_snap_labels, slicer_colors
from annotation.features import points_of
from annotation.pool import read_pool
from annotation.results import Opinion, wrong_of_entropy
from annotation.selection import distances, in_order, k_center, typical, typicality
from annotation.trainings import command_of, plan
from common.data import Datalist
from common.errors import InputError
from running.command_line import arguments

MILLILITER = np.diag([10.0, 10.0, 10.0, 1.0])


def line(*places: float) -> np.ndarray:
    return np.array(places, dtype=float)[:, None]


def indices(choices) -> list[int]:
    return [choice.index for choice in choices]


# who comes first


def test_coverage_goes_to_the_farthest_and_then_into_the_largest_gap():
    between = distances(line(0, 1, 4, 10, 11))
    found = k_center(between, [0], list("abcde"), 9)
    assert indices(found) == [4, 2, 1, 3]  # 11 from 0; then 4, which is 4 from 0; 1 and 10 are 1 from their neighbors
    assert [choice.distance for choice in found] == pytest.approx([11, 4, 1, 1])


def test_without_a_label_coverage_begins_in_the_middle():
    found = k_center(distances(line(0, 1, 6, 10, 11)), [], list("abcde"), 2)
    assert indices(found) == [2, 0]  # nobody is farther than 6 from the third
    assert np.isnan(found[0].distance)


def test_ten_like_scans_are_not_asked_for_however_doubtful_they_are():
    places = line(0, *np.linspace(9, 9.01, 10), 4)
    doubt = np.array([0, *[0.9] * 10, 0.3])
    found = indices(k_center(distances(places), [0], [str(i) for i in range(12)], 2, doubt))
    assert found[0] in range(1, 11)
    assert found[1] == 11
    without = indices(in_order(doubt, [0], [str(i) for i in range(12)], 2))
    assert without == [1, 2]


def test_typicality_is_one_over_the_mean_distance_to_the_neighbors():
    np.testing.assert_allclose(typicality(distances(line(0, 1, 3))), [1 / 2, 1 / 1.5, 1 / 2.5])
    np.testing.assert_allclose(typicality(distances(line(0, 1, 3)), neighbors=1), [1, 1, 1 / 2])
    assert typicality(np.zeros((1, 1))).tolist() == [0]


def test_the_middle_of_the_largest_group_comes_first_and_a_labeled_group_last():
    places = line(0, 1, 2, 3, 4, 100, 101, 102)
    people = list("abcdefgh")
    assert indices(typical(places, [], people, 2)) == [2, 6]
    # with a label among the large group: three groups, of which one is known
    assert typical(places, [2], people, 1)[0].index == 6


def test_a_person_of_many_visits_counts_once():
    places = line(0, 0.1, 0.2, 0.3, 0.4, 0.5, 50, 51, 52)
    people = ["one"] * 6 + ["a", "b", "c"]
    found = typical(places, [], people, 2)
    assert found[0].index == 7
    assert (found[0].group, found[1].group) == (3, 1)
    assert len({people[i] for i in indices(k_center(distances(places), [], people, 9))}) == 4
    assert indices(in_order(np.arange(9), [], people, 9)) == [8, 7, 6, 5]


def test_a_descriptor_that_never_changes_or_is_missing_does_not_count():
    found = [{"a": np.array([1.0, 5.0, np.nan]), "b": np.array([float(i)])} for i in range(3)]
    points = points_of(found)
    assert points.shape == (3, 1)
    np.testing.assert_allclose((points**2).mean(), 1)


# doubt


def test_what_a_probability_says_of_its_mask():
    probability = np.array([0.9, 0.6, 0.2, 0.0]).reshape(1, 1, 4)
    mask = (probability > 0.5).astype(np.uint8)
    found = doubt_of([Opinion(mask, probability, None, 2)], MILLILITER)
    assert found.wrong_ml == pytest.approx(0.1 + 0.4 + 0.2)
    assert (found.draft_ml, found.expected_ml) == pytest.approx((2, 1.7))
    assert found.expected_ml - found.draft_ml == pytest.approx(-0.3)
    assert found.score == pytest.approx(1 - (2 * 1.5 + 1) / (2 + 1.7 + 1))
    assert found.by_slice == pytest.approx([0.1, 0.4, 0.2, 0])
    assert (found.axis, found.plane, found.disagreement_ml) == (2, "axial", 0)


def test_doubt_is_added_up_over_the_slices_that_are_drawn_on():
    probability = np.array([[0.9, 0.6], [0.2, 0.0], [0.0, 0.0]])[:, :, None]
    opinion = Opinion((probability > 0.5).astype(np.uint8), probability, None, 2)
    assert doubt_of([opinion], MILLILITER, "sagittal").by_slice == pytest.approx([0.1 + 0.4, 0.2, 0])
    assert doubt_of([opinion], MILLILITER, "coronal").by_slice == pytest.approx([0.1 + 0.2, 0.4])


def test_where_two_masks_differ_one_of_them_is_wrong():
    first, second = np.array([1, 1, 0, 0]).reshape(1, 1, 4), np.array([0, 1, 0, 1]).reshape(1, 1, 4)
    found = doubt_of([Opinion(first, None, None, 2), Opinion(second, None, None, 2)], MILLILITER)
    assert (found.wrong_ml, found.disagreement_ml) == pytest.approx((1.0, 2.0))
    assert found.by_slice == pytest.approx([0.5, 0, 0, 0.5])


def test_entropy_is_read_as_a_chance_to_be_wrong():
    assert wrong_of_entropy(np.array([0, np.log(4)]), 4) == pytest.approx([0, 0.75])
    wrong = np.array([0.0, 0.3]).reshape(1, 1, 2)
    first = Opinion(np.array([1, 2]).reshape(1, 1, 2), None, wrong, 4)
    second = Opinion(np.array([1, 3]).reshape(1, 1, 2), None, wrong, 4)
    found = doubt_of([first, second], MILLILITER)
    assert found.by_slice == pytest.approx([0, (0.3 + (1 - 0.3 / 3)) / 2])


def test_one_mask_alone_says_nothing_of_its_doubt():
    with pytest.raises(InputError, match="one mask a scan without a map"):
        doubt_of([Opinion(np.ones((2, 2, 2), np.uint8), None, None, 2)], MILLILITER)


def test_an_empty_draft_of_a_healthy_brain_is_not_all_wrong():
    assert soft_dice(0, 0, 0) == 1
    assert soft_dice(0, 0, 0.01) > 0.98


def test_slices_to_correct_are_apart():
    assert slices_worth(np.array([1, 5, 6, 5, 1, 0, 3.0]), 3.0, 9) == [2, 6, 0, 4]
    assert slices_worth(np.zeros(4), 1.0, 3) == []


def test_a_scan_is_drawn_along_its_thick_slices():
    sagittal_stack = np.array([[0, 0, 6.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    assert drawing_axis(sagittal_stack) == (2, "sagittal")
    assert drawing_axis(sagittal_stack, "axial") == (1, "axial")
    assert drawing_axis(np.diag([-1.0, 1, 1, 1])) == (2, "axial")


# the files of the viewers


def test_labels_have_the_same_names_and_colors_in_both_viewers():
    labels = {1: "csf", 3: 'white "matter"'}
    entry = re.compile(r'^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"([^"]*)"$')
    snap = [entry.match(text) for text in itk_snap_labels(labels).splitlines() if not text.startswith("#")]
    assert [(m[1], m[8]) for m in snap] == [("0", "Clear Label"), ("1", "csf"), ("3", "white  matter ")]
    slicer = [text.split() for text in slicer_colors(labels).splitlines()[1:]]
    assert slicer[0] == ["#", "4", "values"]
    assert [row[0] for row in slicer[1:]] == ["0", "1", "2", "3"]
    assert all(len(row) == 6 for row in slicer[1:])
    assert slicer[-1][2:5] == [snap[-1][i] for i in (2, 3, 4)]


# a round


@pytest.fixture
def round_(tmp_path, monkeypatch):
    """Six scans of five people, one labeled and one healthy, a result of each; the folder is the current one."""
    items = []
    for i, person in enumerate(["p1", "p2", "p3", "p3", "p4", "p5"]):
        head = make_head(i, shape=(24, 28, 20))
        name = f"scan{i}_FLAIR"
        save_nifti(tmp_path / f"{name}.nii.gz", head.image * (1 + i), head.affine)
        save_nifti(tmp_path / "truth" / f"{name}.nii.gz", head.label, head.affine)
        probability = np.where(head.label > 0, 0.8, 0.02 * (i + 1) * (head.brain > 0)).astype(np.float32)
        save_nifti(tmp_path / "results" / f"{name}_prob.nii.gz", probability, head.affine)
        save_nifti(tmp_path / "results" / f"{name}_seg.nii.gz", (probability > 0.5).astype(np.uint8), head.affine)
        beside = {"bundle": "toy", "version": "1.0", "labels": {"0": "background", "1": "anomaly"}}
        (tmp_path / "results" / f"{name}_seg.json").write_text(json.dumps(beside))
        items.append({"image": f"{name}.nii.gz", "subject": person})
    items[0]["label"] = "truth/scan0_FLAIR.nii.gz"
    items[4]["healthy"] = True
    columns = "case\tsubject\tlesion_ml\tlesion_expected_ml\nscan0\ta\t1\t1\n"
    (tmp_path / "results" / "volumes.tsv").write_text(columns)
    content = {"sequences": ["FLAIR"], "labels": {"0": "background", "1": "lesion"}, "training": items[:5]}
    (tmp_path / "cases.json").write_text(json.dumps(content | {"test": items[5:]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(**options):
    load_script("next_scans").main("cases.json", **{"output_dir": "next", **options})


def take(**options):
    options = {"corrections": "drawn", "drafts": ["next/drafts"], "annotator": "jd", **options}
    load_script("take_corrections").main("cases.json", "cases_2.json", **options)


def table(path) -> list[dict[str, str]]:
    heading, *rows = [text.split("\t") for text in path.read_text().splitlines()]
    return [dict(zip(heading, row, strict=True)) for row in rows]


def test_only_unlabeled_patients_outside_of_the_test_are_asked_for(round_):
    pool = read_pool(Datalist("cases.json"))
    assert [case["subject"] for case in pool.unlabeled] == ["p2", "p3", "p3"]
    assert [case["subject"] for case in read_pool(Datalist("cases.json"), healthy=True).unlabeled][-1] == "p4"
    with pytest.raises(InputError, match="section is 'test'"):
        read_pool(Datalist("cases.json"), "test")
    content = json.loads((round_ / "cases.json").read_text())
    content["training"][0]["label_source"] = "toy 1.0"
    (round_ / "cases.json").write_text(json.dumps(content))
    assert len(read_pool(Datalist("cases.json")).labeled) == 0


def test_doubt_asks_first_for_the_scan_whose_draft_is_least_sure_and_writes_all_that_a_drawer_needs(round_):
    ask(results=["results"], diverse=False, slices=2)
    rows = table(round_ / "next" / "next_scans.tsv")
    assert [row["scan"] for row in rows] == ["scan3_FLAIR", "scan1_FLAIR"]  # the other visit of p3 is not asked for
    assert "is expected of its draft" in rows[0]["reason"]
    slices = table(round_ / "next" / "next_slices.tsv")
    assert [row["scan"] for row in slices] == ["scan3_FLAIR"] * 2 + ["scan1_FLAIR"] * 2
    draft = nib.load(round_ / "next" / "drafts" / "scan3_FLAIR.nii.gz")
    truth = nib.load(round_ / "truth" / "scan3_FLAIR.nii.gz")
    np.testing.assert_array_equal(np.asarray(draft.dataobj), np.asarray(truth.dataobj))
    np.testing.assert_allclose(draft.affine, truth.affine, atol=1e-5)
    index = json.loads((round_ / "next" / "drafts" / "drafts.json").read_text())
    assert index["labels"] == {"1": "lesion"}
    assert index["drafts"]["scan3_FLAIR"]["made_by"] == "toy 1.0"
    page = (round_ / "next" / "next_scans.html").read_text()
    assert page.count("<article") == 2
    assert str(round_) not in page + json.dumps(index)


def test_two_equal_runs_give_equal_bytes(round_):
    for folder in ("a", "b"):
        ask(results=["results"], output_dir=folder, strategy="load")
    files = sorted(p.relative_to(round_ / "a") for p in (round_ / "a").rglob("*") if p.is_file())
    assert len(files) == 8
    assert [f for f in files if (round_ / "a" / f).read_bytes() != (round_ / "b" / f).read_bytes()] == []


def test_a_slice_is_named_as_the_viewers_count_it(round_):
    ask(results=["results"], diverse=False, slices=1)
    (row, *_) = table(round_ / "next" / "next_slices.tsv")
    affine = nib.load(round_ / "scan3_FLAIR.nii.gz").affine
    probability = np.asarray(nib.load(round_ / "results" / "scan3_FLAIR_prob.nii.gz").dataobj)
    wrong = np.where(probability > 0.5, 1 - probability, probability).sum((0, 1))
    assert int(row["slice"]) == wrong.argmax() + 1
    middle = affine @ [12, 14, wrong.argmax(), 1]
    assert float(row["position_mm"]) == pytest.approx(middle[2], abs=0.06)


def test_cold_start_asks_for_scans_by_their_looks(round_):
    ask(strategy="auto", count=1, healthy=True)
    (row,) = table(round_ / "next" / "next_scans.tsv")
    assert row["strategy"] == "typical"
    assert not (round_ / "next" / "drafts").exists()
    ask(strategy="coverage", count=3, healthy=True)
    rows = table(round_ / "next" / "next_scans.tsv")
    assert len({row["subject"] for row in rows}) == 3
    assert float(rows[0]["distance"]) > 0  # there is a labeled scan to be far from


@pytest.mark.parametrize(
    ("break_it", "options", "sentence"),
    [
        (lambda f: None, {"strategy": "load"}, "strategy is load, expected --results"),
        (lambda f: None, {"results": ["truth"]}, "scan1_FLAIR_seg.nii.gz: no such file"),
        (lambda f: (f / "results" / "volumes.tsv").unlink(), {"results": ["results"]}, "volumes.tsv does not exist"),
        (lambda f: None, {"results": ["results"], "labels": ["gm"]}, "gm is in the results .lesion. and in the labels"),
        (lambda f: None, {"monai_label": "truth"}, "monai_label is given without results"),
    ],
)
def test_a_round_that_cannot_be_made_stops_with_a_sentence(round_, break_it, options, sentence):
    break_it(round_)
    with pytest.raises(InputError, match=sentence):
        ask(**options)
    assert not list(round_.glob("next/*"))


def test_a_draft_in_which_somebody_has_drawn_is_not_replaced(round_):
    ask(results=["results"], diverse=False)
    ask(results=["results"], diverse=False)  # its own drafts are
    draft = round_ / "next" / "drafts" / "scan3_FLAIR.nii.gz"
    image = nib.load(draft)
    save_nifti(draft, np.zeros(image.shape, np.uint8), image.affine)
    with pytest.raises(InputError, match="was changed since it was drafted"):
        ask(results=["results"], diverse=False)


def draw(folder, name="scan3_FLAIR", change=lambda mask: mask.__setitem__((slice(2, 4), 5, 7), 1), to="drawn"):
    """A copy of a draft with a few voxels more, as a viewer would save it."""
    image = nib.load(folder / "next" / "drafts" / f"{name}.nii.gz")
    mask = np.asarray(image.dataobj).astype(np.float32)
    change(mask)
    file = save_nifti(folder / to / f"{name}.nii.gz", mask, image.affine)
    os.utime(file, (1_700_000_000, 1_700_000_000))
    return file


def test_a_correction_becomes_a_label_with_who_when_and_what(round_):
    ask(results=["results"], diverse=False)
    draw(round_)
    take()
    label = nib.load(round_ / "labels" / "scan3_FLAIR_label.nii.gz")
    assert label.get_data_dtype() == np.uint8
    facts = json.loads((round_ / "labels" / "scan3_FLAIR_label.json").read_text())
    voxel_ml = abs(np.linalg.det(label.affine[:3, :3])) / 1000
    drafted = int(np.asarray(nib.load(round_ / "next" / "drafts" / "scan3_FLAIR.nii.gz").dataobj).sum())
    assert (facts["annotator"], facts["drawn"]) == ("jd", "2023-11-14T22:13:20+00:00")
    assert facts["changed"]["ml"] == pytest.approx(2 * voxel_ml, abs=1e-4)
    assert facts["changed"]["removed_ml"] == {"lesion": 0}
    assert (facts["changed"]["slices"], facts["changed"]["slices_of"]) == ([8], 20)
    assert facts["dice_to_draft"]["lesion"] == pytest.approx(2 * drafted / (2 * drafted + 2), abs=1e-4)
    assert facts["draft"]["made_by"] == "toy 1.0"
    after = Datalist("cases_2.json")
    (case,) = [case for case in after.cases(["FLAIR"], "training") if "annotator" in case]
    assert (case["subject"], case["annotator"]) == ("p3", "jd")
    assert (round_ / "labels" / "scan3_FLAIR_label.nii.gz").samefile(case["label"])
    assert after.header["labels"] == {"0": "background", "1": "lesion"}
    assert [case["subject"] for case in read_pool(after).unlabeled] == ["p2"]  # the next list
    labeled = Datalist("cases_2_labeled.json").cases(["FLAIR"], "training", require=["label"])
    assert [case["subject"] for case in labeled] == ["p1", "p3"]
    assert str(round_) not in json.dumps(facts) + (round_ / "cases_2.json").read_text()


def test_what_was_added_and_what_was_taken_away_are_told_apart(round_):
    def change(mask):
        mask[tuple(np.argwhere(mask)[0])] = 0
        mask[2:4, 5, 7] = 1

    ask(results=["results"], diverse=False)
    draw(round_, change=change)
    take()
    facts = json.loads((round_ / "labels" / "scan3_FLAIR_label.json").read_text())["changed"]
    voxel_ml = facts["ml"] / 3
    assert facts["added_ml"]["lesion"] == pytest.approx(2 * voxel_ml, abs=1e-4)
    assert facts["removed_ml"]["lesion"] == pytest.approx(voxel_ml, abs=1e-4)


def save_on_another_grid(folder):
    file = draw(folder)
    image = nib.load(file)
    save_nifti(file, np.asarray(image.dataobj), image.affine @ np.diag([1, 1, 1.1, 1]))


@pytest.mark.parametrize(
    ("draw_it", "sentence"),
    [
        (save_on_another_grid, "affines that differ"),
        (lambda f: draw(f, change=lambda m: m.__setitem__((3, 3, 3), 2)), "has the value 2, expected 0 and 1 lesion"),
        (lambda f: draw(f, change=lambda m: m.__setitem__((3, 3, 3), 0.5)), "expected whole numbers"),
        (lambda f: draw(f, change=lambda m: None), "is as it was drafted"),
        (lambda f: draw(f, change=lambda m: m.fill(0)), "is empty, expected something drawn"),
        (lambda f: draw(f).rename(f / "drawn" / "other.nii.gz"), "is of no scan of the datalist"),
        (lambda f: draw(f).rename(f / "drawn" / "scan0_FLAIR.nii.gz"), "has a label in|affines that differ"),
        (lambda f: (f / "drawn").mkdir(), "holds no NIfTI file"),
        (
            lambda f: (draw(f), draw(f, to="drawn").rename(f / "drawn" / "scan3_FLAIR_label.nii.gz"), draw(f)),
            "two masks",
        ),
    ],
)
def test_a_mask_that_cannot_be_a_label_stops_all_before_anything_is_written(round_, draw_it, sentence):
    ask(results=["results"], diverse=False)
    draw(round_, "scan1_FLAIR") if draw_it.__code__.co_names[-1:] != ("mkdir",) else None
    draw_it(round_)
    with pytest.raises(InputError, match=sentence):
        take()
    assert not (round_ / "labels").exists()
    assert not (round_ / "cases_2.json").exists()


def test_a_draft_that_is_right_is_taken_when_somebody_says_so(round_):
    ask(results=["results"], diverse=False)
    draw(round_, change=lambda mask: None)
    take(as_drafted=["scan3_FLAIR"])
    facts = json.loads((round_ / "labels" / "scan3_FLAIR_label.json").read_text())
    assert (facts["changed"]["ml"], facts["dice_to_draft"]["lesion"]) == (0, 1)
    with pytest.raises(InputError, match="as_drafted names scan9"):
        take(as_drafted=["scan3_FLAIR", "scan9"])


def test_monai_label_gets_drafts_and_gives_back_what_was_submitted(round_):
    studies = round_ / "studies"
    studies.mkdir()
    with pytest.raises(InputError, match="expected the scan in the studies"):
        ask(results=["results"], diverse=False, monai_label="studies")
    for scan in round_.glob("scan*_FLAIR.nii.gz"):
        (studies / scan.name).write_bytes(scan.read_bytes())
    ask(results=["results"], diverse=False, monai_label="studies")
    original = studies / "labels" / "original" / "scan3_FLAIR.nii.gz"
    assert original.read_bytes() == (round_ / "next" / "drafts" / "scan3_FLAIR.nii.gz").read_bytes()
    draw(round_, to="studies/labels/final")
    take(corrections=None, drafts=(), monai_label="studies")
    facts = json.loads((round_ / "labels" / "scan3_FLAIR_label.json").read_text())
    assert facts["changed"]["slices"] == [8]
    with pytest.raises(InputError, match="is drawn already"):
        ask(results=["results"], diverse=False, monai_label="studies")
    (studies / "labels" / "final" / "scan3_FLAIR.nii.gz").unlink()
    original.write_bytes((round_ / "scan0_FLAIR.nii.gz").read_bytes())
    with pytest.raises(InputError, match="is another draft"):
        ask(results=["results"], diverse=False, monai_label="studies")


# when to stop


def test_an_exact_power_law_is_found_again():
    labels = np.array([1, 2, 4, 8, 16])
    law = fit_power_law(labels, 0.8 - 0.4 * labels**-0.5)
    assert law.at(12) - law.at(8) == pytest.approx(0.4 * (8**-0.5 - 12**-0.5), abs=1e-3)  # 0.026
    assert law == pytest.approx((0.8, 0.4, 0.5), abs=0.01)


def test_scores_that_do_not_grow_promise_nothing():
    assert fit_power_law([1, 2, 4], [0.6, 0.6, 0.6]) == PowerLaw(pytest.approx(0.6), 0.0, 1.0)
    assert fit_power_law([1, 2, 4], [0.7, 0.6, 0.5]).loss == 0


def test_no_score_above_one_is_promised():
    law = fit_power_law([1, 2, 4], [0.2, 0.5, 0.8])  # a straight line in the logarithm, without an end
    assert law.limit <= 1
    assert law.at(1000) <= 1
    # with a limit of 1 the loss is the regression of 1 - score on n ** -exponent through the origin
    x = np.array([1, 2, 4.0]) ** -law.exponent
    assert law.loss == pytest.approx((np.array([0.8, 0.5, 0.2]) @ x) / (x @ x), rel=1e-6)


def scores_of(rows) -> Scores:
    labels, scores, units = zip(*rows, strict=True)
    return Scores(np.array(labels, float), np.array(scores), np.array(units), "subject")


def test_people_who_agree_give_a_narrow_interval_and_others_a_wide_one():
    def curve(spread):
        rows = [(n, 0.7 - 0.3 / n + spread * (p - 3.5), str(p)) for p in range(8) for n in (1, 2, 4, 8)]
        return fit_curve(scores_of(rows), resamples=100)

    gain, low, high = curve(0.0).gain(4)
    assert (low, high) == pytest.approx((gain, gain), abs=1e-6)
    assert gain == pytest.approx(0.3 / 8 - 0.3 / 12, abs=1e-3)
    # everybody's curve is moved up or down as a whole: that is no doubt of the gain
    assert np.ptp(curve(0.02).gain(4)[1:]) < 1e-6
    rows = [(n, 0.5 + (0.02 * p) * (1 - 1 / n), str(p)) for p in range(8) for n in (1, 2, 4, 8)]
    # the height h of the curve is 0.02 p, its mean has a standard error of 0.016, and the gain is h (1 / 8 - 1 / 12)
    width = np.ptp(fit_curve(scores_of(rows), resamples=200).gain(4)[1:])
    assert width == pytest.approx(2 * 1.96 * 0.0162 / 24, rel=0.25)


def test_the_interval_holds_95_of_100_curves():
    rows = [(n, 0.5 + (0.02 * p) * (1 - 1 / n), str(p)) for p in range(8) for n in (1, 2, 4, 8)]
    curve = fit_curve(scores_of(rows), resamples=200)
    gains = np.array([law.at(12) - law.at(8) for law in curve.draws])
    _, low, high = curve.gain(4)
    assert np.mean((low <= gains) & (gains <= high)) == pytest.approx(0.95, abs=0.01)
    assert np.mean(gains < low) == pytest.approx(np.mean(gains > high), abs=0.01)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.0, 0.009, "hardly pay"), (0.0, 0.03, "cannot be told"), (0.01, 0.03, "add 0.01 or more: go on")],
)
def test_the_advice_is_sure_only_where_the_whole_interval_is(low, high, said):
    assert said in advice_of(SimpleNamespace(gain=lambda more: (0.02, low, high)), 4, 0.01)


def test_the_sentence_has_the_gain_and_its_interval():
    rows = [(n, 0.8 - 0.4 * n**-0.5, str(p)) for p in range(4) for n in (1, 2, 4, 8)]
    content = as_dict(fit_curve(scores_of(rows), resamples=20), 4, 0.01)
    assert content["sentence"] == "four more labels: +0.03 (0.03 to 0.03)"
    assert content["advice"] == "4 more are expected to add 0.01 or more: go on."
    json.dumps(content, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("labels,score\n1,0.5\n2,0.6\n2,0.7\n", "scores at 1 and 2 labels, expected at 3 or more"),
        ("labels,dice\n1,0.5\n", "lacks score, expected one column for each of labels, score"),
        ("labels,score\n", "has 1 lines"),
        ("labels;score\n1;0.5\n2;0.6;0.7\n", "line 3 of .* has 3 cells, expected 2"),
        ("labels,score\n1,\xff\n", "is no text in UTF-8, expected a table"),
        ("labels,score\n1,0.5\n2,x\n4,0.6\n", "score in line 3"),
        ("labels,score\n1,0.5\n2,1.5\n4,0.6\n", "'1.5', expected a number from 0 to 1"),
        ("labels,score\n1.5,0.5\n2,0.5\n4,0.6\n", "labels in line 2"),
        ("labels,score,subject\n1,0.5,a\n2,0.5,a\n4,0.6,a\n", "two or more for an interval"),
    ],
)
def test_a_table_through_which_no_curve_goes_is_refused(tmp_path, text, sentence):
    (tmp_path / "scores.csv").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=sentence):
        fit_curve(read_scores(tmp_path / "scores.csv"))


def test_a_curve_is_written_as_json_picture_and_page_and_shown_beside_the_next_scans(round_, capsys):
    rows = [f"{n}\t{0.6 - 0.3 / n + 0.01 * p}\t{p}" for p in range(5) for n in (1, 2, 4, 8)]
    (round_ / "scores.tsv").write_text("\n".join(["labels\tscore\tsubject", *rows]) + "\n")
    main = load_script("learning_curve").main
    for folder in ("curve", "again"):
        main("scores.tsv", folder, resamples=50)
    assert "four more labels: +0.01 (0.01 to 0.01)" in capsys.readouterr().out
    for name in ("learning_curve.json", "learning_curve.png", "learning_curve.html"):
        assert (round_ / "curve" / name).read_bytes() == (round_ / "again" / name).read_bytes()
    assert (round_ / "curve" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    ask(strategy="random", learning_curve="curve/learning_curve.json")
    page = (round_ / "next" / "next_scans.html").read_text()
    assert "When to stop" in page
    assert "Four more labels: +0.01" in page


@pytest.fixture
def nine(tmp_path):
    """Datalist of nine people, all but the last labeled."""
    items = []
    for i in range(9):
        head = make_head(i, shape=(10, 12, 9))
        save_nifti(tmp_path / f"s{i}_FLAIR.nii.gz", head.image, head.affine)
        save_nifti(tmp_path / f"s{i}_lesion.nii.gz", head.label, head.affine)
        items.append({"image": f"s{i}_FLAIR.nii.gz", "subject": f"s{i}", "label": f"s{i}_lesion.nii.gz"})
    del items[8]["label"]
    (tmp_path / "cases.json").write_text(json.dumps({"sequences": ["FLAIR"], "training": items}))
    return tmp_path / "cases.json"


def test_trainings_of_a_curve_are_nested_and_nobody_is_in_two_parts(nine, tmp_path):
    found = plan(Datalist(nine), "lesion", [1, 2], 3, 2, tmp_path / "curve")
    assert len(found) == 2 * 3 * 2
    labeled = {}
    for training in found:
        parts = Datalist(training.datalist).sections
        people = [{case["subject"] for case in part} for part in parts.values()]
        assert len(set.union(*people)) == sum(map(len, people))
        assert "s8" in people[0]
        with_label = {case["subject"] for case in parts["training"] if "label" in case}
        assert len(with_label) == training.labels
        assert labeled.setdefault((training.fold, training.draw), with_label) <= with_label
    assert "--weights train --methods unet --seeds 1" in command_of(found[2], "unet", "lesion")
    with pytest.raises(InputError, match="expected 9 or more, the largest of sizes"):
        plan(Datalist(nine), "lesion", [9], 3, 1, tmp_path / "curve")


@pytest.mark.slow
def test_a_curve_of_trainings_is_run_scored_and_fitted(nine, tmp_path, capsys):
    asked = {"train": "flair_threshold", "datalist_file": str(nine), "folds": 4, "device": "cpu"}
    main = load_script("learning_curve").main
    main(output_dir=str(tmp_path / "curve"), sizes=[1, 2], **asked)
    assert capsys.readouterr().out.count("scripts/compare.py") == 2 * 4
    with pytest.raises(InputError, match="scores at 1 and 2 labels, expected at 3 or more"):
        main(output_dir=str(tmp_path / "curve"), sizes=[1, 2], run=True, **asked)
    assert not (tmp_path / "curve" / "runs").exists()
    main(output_dir=str(tmp_path / "curve"), sizes=[1, 2, 3], run=True, **asked)
    rows = table(tmp_path / "curve" / "scores.tsv")
    assert len(rows) == 3 * 8  # each of the eight people is scored once at each number of labels
    # a threshold learns from nobody but those who validate: more labels change nothing
    scores = {(row["labels"], row["subject"]): row["score"] for row in rows}
    assert [s for s in {row["subject"] for row in rows} if scores["1", s] != scores["3", s]] == []
    assert "four more labels: +0.00 (0.00 to 0.00)" in capsys.readouterr().out


# the walk in the docs


@pytest.fixture
def hospital(tmp_path, monkeypatch):
    """What the commands of docs/annotation.md that take minutes would have made, in small, and no command has yet."""
    for i in range(12):
        head = make_head(i, shape=(24, 28, 20))
        person = f"sub-w{i + 1:03d}"
        anat = tmp_path / "phantom" / "hospital" / person / "anat"
        for name, values in {
            "FLAIR": head.image,
            "desc-brain_mask": head.brain,
            "label-lesion_mask": head.label,
        }.items():
            save_nifti(anat / f"{person}_{name}.nii.gz", values, head.affine)
        for k, folder in enumerate(("unet", "threshold", "unet_2")):
            probability = np.where(head.label > 0, 0.6 + 0.1 * k, 0.01 * (i + 1) * (head.brain > 0)).astype(np.float32)
            mask = np.roll(probability > 0.5, 1, axis=0).astype(np.uint8)  # never what is drawn
            save_nifti(tmp_path / "round" / folder / f"{person}_FLAIR_prob.nii.gz", probability, head.affine)
            save_nifti(tmp_path / "round" / folder / f"{person}_FLAIR_seg.nii.gz", mask, head.affine)
            beside = {"bundle": "uad_autoencoder", "version": "1", "labels": {"0": "background", "1": "lesion"}}
            (tmp_path / "round" / folder / f"{person}_FLAIR_seg.json").write_text(json.dumps(beside))
            columns = ["case", "subject", "lesion_ml", "lesion_expected_ml"][: 3 if folder == "threshold" else 4]
            lines = ["\t".join(columns), "\t".join("1" for _ in columns)]
            (tmp_path / "round" / folder / "volumes.tsv").write_text("\n".join(lines))
    rows = [f"{n}\t{0.6 - 0.3 / n}\t{p}" for p in range(5) for n in (1, 2, 4)]
    (tmp_path / "round" / "scores.tsv").write_text("\n".join(["labels\tscore\tsubject", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_walk_of_the_docs_goes_round(hospital, capsys):
    text = (ROOT / "docs" / "annotation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ran, variables = [], {}
    for block in blocks:
        lines = re.sub(r"^for.*?^done$", in_one_line, block, flags=re.DOTALL | re.MULTILINE)
        for command in re.sub(r"\\\n", " ", lines).splitlines():
            script = Path(command.split()[1]).stem if command.startswith("python ") else ""
            if re.fullmatch(r"\w+=\S+", command):
                variables |= [command.split("=", 1)]
            elif not script:
                subprocess.run(["bash", "-e", "-c", command], check=True)
            elif script in ("make_datalist", "next_scans", "take_corrections", "learning_curve"):
                words = shlex.split(re.sub(r"\$(\w+)", lambda match, known=variables: known[match[1]], command))[2:]
                if "studies" in words and script == "take_corrections":
                    submit(hospital)
                run(script, words)
                ran.append(script)
    assert ran.count("next_scans") == 6
    assert ran.count("take_corrections") == 2
    asked = [table(hospital / "round" / name / "next_scans.tsv") for name in ("first", "judges", "second", "label")]
    assert [len(rows) for rows in asked] == [3, 2, 3, 2]
    drawn = {row["subject"] for rows in asked[:2] for row in rows}
    assert len(drawn) == 5
    assert not drawn & {row["subject"] for rows in asked[2:] for row in rows}
    labeled = Datalist("round/cases_3_labeled.json").sections
    assert {name: len(part) for name, part in labeled.items()} == {"training": 5, "validation": 2}
    assert "four more labels" in capsys.readouterr().out


def in_one_line(loop: re.Match) -> str:
    """A loop of the shell."""
    return "; ".join(line.strip() for line in loop[0].splitlines()).replace("do;", "do")


def run(script: str, words: list[str]) -> None:
    """A command line, without a process of its own."""
    values = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    rest = words[len(values) :]
    main = load_script(script).main
    main(**arguments(main, tuple(values), {k[2:]: v for k, v in zip(rest[::2], rest[1::2], strict=True)}))


def submit(folder: Path) -> None:
    """What MONAI Label does when somebody submits a label."""
    for row in table(folder / "round" / "label" / "next_scans.tsv"):
        truth = folder / "phantom" / "hospital" / row["subject"] / "anat" / f"{row['subject']}_label-lesion_mask.nii.gz"
        final = folder / "studies" / "labels" / "final" / f"{row['scan']}.nii.gz"
        final.parent.mkdir(parents=True, exist_ok=True)
        final.write_bytes(truth.read_bytes())
