"""The report, from files on disk to CSV, JSON and one HTML page."""

import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
from bundle_tools import ROOT
from matplotlib.axes import Axes
from matplotlib.text import Text
from monai.bundle import ConfigParser
from PIL import Image

from common import evaluation
from common.errors import InputError
from common.evaluation import Evaluation, Volumes
from common.metrics import average_precision, best_dice, dice, hd95_mm, lesion_detection, pooled_dice, summarize
from common.page import CaseView, Section, Table, Tile
from common.pictures import PREDICTION_COLOR, REFERENCE_COLOR, case_pictures
from common.report import Report, write_html_report
from common.scans import read_scan
from common.tables import delimited

SHAPE = (20, 24, 18)
# 2 x 1.5 x 3 mm, stored as LPS: 9 mm^3 a voxel
AFFINE = np.array([[-2.0, 0, 0, 20], [0, -1.5, 0, 18], [0, 0, 3.0, -27], [0, 0, 0, 1]])


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def boxes(*corners, size=4, value=1):
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for i, j, k in corners:
        mask[i : i + size, j : j + size, k : k + size] = value
    return mask


def add_case(folder, name, prediction, reference=None, scores=None):
    """Write the files of a case, as inference and a user would, and give its item."""
    rng = np.random.default_rng(0)
    brain = np.zeros(SHAPE, dtype=np.float32)
    brain[2:-2, 2:-2, 2:-2] = 100 + rng.normal(0, 5, (16, 20, 14))
    item = {"image": save(folder / "scans" / f"{name}.nii.gz", brain), "name": name}
    if reference is not None:
        item["label"] = save(folder / "scans" / f"{name}_lesion.nii.gz", reference)
    save(folder / "out" / f"{name}_seg.nii.gz", prediction)
    if scores is not None:
        save(folder / "out" / f"{name}_prob.nii.gz", scores.astype(np.float32))
    return item


@pytest.fixture
def cohort(tmp_path):
    """Four cases with maps: good, poor, nothing found, and healthy with a false positive."""
    rng = np.random.default_rng(1)
    masks = {
        "good": (boxes((4, 4, 4), (12, 12, 10)), boxes((4, 4, 4), (12, 13, 10))),
        "poor": (boxes((4, 4, 4)), boxes((6, 6, 5), (12, 12, 10))),
        "missed": (boxes(), boxes((8, 8, 8))),
        "healthy": (boxes((10, 10, 10), size=2), boxes()),
    }
    cases, maps = [], {}
    for name, (prediction, reference) in masks.items():
        maps[name] = np.clip(0.5 * prediction + 0.2 * reference + rng.uniform(0, 0.3, SHAPE), 0, 1).astype(np.float32)
        cases.append(add_case(tmp_path, name, prediction, reference, maps[name]))
    return cases, tmp_path / "out", masks, maps


def page_of(report):
    return report.write().read_text(encoding="utf-8")


def test_rows_are_the_metrics_of_the_files(cohort):
    cases, out, masks, maps = cohort
    rows = {row["name"]: row for row in Evaluation(cases, out).rows}
    spacing = (2, 1.5, 3)
    for name, (prediction, reference) in masks.items():
        row, found = rows[name], lesion_detection(prediction, reference)
        assert row["dice"] == pytest.approx(dice(prediction, reference), nan_ok=True)
        assert row["hd95_mm"] == pytest.approx(hd95_mm(prediction, reference, spacing), nan_ok=True)
        assert row["lesion_f1"] == pytest.approx(found.f1, nan_ok=True)
        assert row["reference_lesions"] == found.reference_lesions
        assert row["average_precision"] == pytest.approx(average_precision(maps[name], reference), nan_ok=True)


def test_a_file_is_read_once_unless_it_has_changed_or_what_is_kept_is_full(cohort, monkeypatch):
    cases, out, *_ = cohort
    seen = []
    monkeypatch.setattr(
        evaluation, "read_scan", lambda path, **options: seen.append(path) or read_scan(path, **options)
    )
    volumes = Volumes()
    Report(cases, out, keep_going=True, volumes=volumes).write()
    assert sorted(seen) == sorted(Path(path) for path in (*out.glob("*.nii.gz"), *out.parent.glob("scans/*.nii.gz")))

    seen.clear()
    save(out / "good_seg.nii.gz", boxes((4, 4, 4)))
    assert Evaluation(cases, out, volumes=volumes).rows[0]["prediction_ml"] == pytest.approx(64 * 0.009)
    assert seen == [out / "good_seg.nii.gz"]

    few = Volumes(max_bytes=2 * boxes().nbytes)
    assert [row["dice"] for row in Evaluation(cases, out, volumes=few).rows] == pytest.approx(
        [row["dice"] for row in Evaluation(cases, out, volumes=volumes).rows], nan_ok=True
    )
    assert sum(volume.values.nbytes for volume in few._kept.values()) == 2 * boxes().nbytes


def test_volumes_by_hand(cohort):
    cases, out, *_ = cohort
    rows = {row["name"]: row for row in Evaluation(cases, out).rows}
    voxel_ml = 0.009
    assert rows["good"]["reference_ml"] == pytest.approx(128 * voxel_ml)
    assert rows["good"]["false_positive_ml"] == pytest.approx(16 * voxel_ml)  # one layer of the shifted box
    assert rows["missed"]["volume_difference_ml"] == pytest.approx(-64 * voxel_ml)
    assert rows["healthy"]["false_positive_ml"] == pytest.approx(8 * voxel_ml)
    assert [rows[name]["reference_empty"] for name in ("good", "healthy")] == [False, True]


def test_means_leave_out_what_is_undefined_and_count_it(cohort):
    cases, out, masks, _ = cohort
    evaluation = Evaluation(cases, out)
    expected = summarize([dice(*masks[name]) for name in ("good", "poor", "missed")])
    summary = evaluation.summary["lesion"]
    assert summary["dice"].mean == pytest.approx(expected.mean)
    assert (summary["dice"].low, summary["dice"].high) == pytest.approx((expected.low, expected.high))
    assert summary["hd95_mm"].cases == 2
    assert summary["hd95_mm"].infinite == 1
    assert evaluation.healthy["lesion"].mean == pytest.approx(8 * 0.009)
    assert evaluation.healthy["lesion"].cases == 1


def test_pooled_values_count_healthy_cases_too(cohort):
    cases, out, masks, maps = cohort
    pooled = Evaluation(cases, out).pooled["lesion"]
    predictions, references = zip(*masks.values(), strict=True)
    assert pooled["dice"] == pytest.approx(pooled_dice(predictions, references))
    assert pooled["dice_low"] <= pooled["dice"] <= pooled["dice_high"]
    assert pooled["average_precision"] == pytest.approx(average_precision(list(maps.values()), references))
    value, threshold = best_dice(list(maps.values()), references)
    assert pooled["best_dice_any_threshold"] == pytest.approx(value)
    assert pooled["best_threshold_on_these_cases"] == pytest.approx(threshold)
    # lesions: 2 + 2 + 1 wanted; both of "good" and one of "poor" hit; predicted 2 + 1 + 0 + 1, of which 3 are true
    assert pooled["lesion_recall"] == pytest.approx(3 / 5)
    assert pooled["lesion_precision"] == pytest.approx(3 / 4)


def test_scans_of_one_subject_are_drawn_together(cohort):
    cases, out, *_ = cohort
    same = [case | {"subject": "sub-01"} for case in cases]
    assert np.isnan(Evaluation(same, out).summary["lesion"]["dice"].low)


def test_csv_and_json_hold_the_same_rows(cohort):
    cases, out, *_ = cohort
    Report(
        cases, out, title="lesions", threshold=0.5, max_pictures=0, settings={"threshold_source": "validation"}
    ).write()
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == [row["name"] for row in content["cases"]] == [c["name"] for c in cases]
    for text, row in zip(rows, content["cases"], strict=True):
        if row["dice"] is None:
            assert text["dice"] == ""
        else:
            assert float(text["dice"]) == pytest.approx(row["dice"], rel=1e-5)
    assert rows[2]["hd95_mm"] == "inf"
    assert content["cases"][2]["hd95_mm"] is None
    assert content["settings"]["threshold"] == 0.5
    assert content["settings"]["threshold_source"] == "validation"
    assert {"python", "monai", "torch", "numpy"} <= set(content["versions"])
    assert content["summary"]["lesion"]["dice"]["cases"] == 3


def test_page_names_worst_cases_first_and_needs_no_network(cohort):
    cases, out, *_ = cohort
    page = page_of(Report(cases, out, title="lesions", threshold=0.5))
    assert re.findall(r"<h4>(.*?)</h4>", page) == ["missed", "poor", "good", "healthy"]
    views = [f"views/{name}.html" for name in ("missed", "poor", "good", "healthy")]
    assert re.findall(r'(?:src|href)="(?!data:)([^"]*)"', page) == views
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert "viewport" in page
    assert page.count('<img decoding="async" src="data:image/png;base64,') >= 4 * 5
    assert page.count('src="data:image/svg+xml;base64,') == 4
    assert "the threshold in use, 0.5" in page


def test_the_same_evaluation_twice_gives_the_same_bytes_but_for_the_time(cohort):
    cases, folder, *_ = cohort
    found = []
    for _ in range(2):
        Report(cases, folder).write()
        numbers = json.loads((folder / "metrics.json").read_text())
        numbers.pop("created")
        found.append(
            [numbers, *((folder / name).read_bytes() for name in ("report.html", "metrics.csv", "views/poor.html"))]
        )
    assert found[0] == found[1]


def test_while_another_process_writes_into_the_folder_there_is_no_report(cohort):
    cases, folder, *_ = cohort
    code = "import sys, time; from common.files import Alone; a = Alone(sys.argv[1]); print(1, flush=1); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, folder], cwd=ROOT, stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        with pytest.raises(InputError, match=f"is in use by process {other.pid} on "):
            Report(cases, folder).write()
        assert not (folder / "report.html").exists()
    finally:
        other.kill()
        other.wait()


def test_user_text_is_escaped(tmp_path):
    name = "<script>alert('x')<" + '"&'
    item = add_case(tmp_path, name, boxes((4, 4, 4)), boxes((4, 4, 5)))
    report = Report(
        [item], tmp_path / "out", title="<b>title</b>", label_names={1: "<i>"}, settings={"<u>key": "<u>value"}
    )
    page = page_of(report)
    for tag in ("<script", "<b>title", "<i>", "<u>"):
        assert tag not in page
    assert html.escape(name).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert "&lt;u&gt;value" in page


def test_no_path_of_this_machine_gets_out(cohort):
    cases, out, *_ = cohort
    settings = {"weights": str(out / "models" / "model.pt"), "data": out, "text": "a sentence"}
    Report(cases, out, settings=settings).write()
    for name in ("metrics.csv", "metrics.json", "report.html"):
        assert str(out.parent) not in (out / name).read_text(encoding="utf-8")
    settings = json.loads((out / "metrics.json").read_text())["settings"]
    assert (settings["weights"], settings["text"]) == ("model.pt", "a sentence")


def test_cases_that_failed_are_listed_and_in_no_number(cohort):
    cases, out, masks, _ = cohort
    (out / "missed_seg.nii.gz").unlink()
    report = Report(cases, out)
    page = report.write({"missed": "/home/ann/scans/missed.nii.gz has 3 NaN voxels, expected <none>"})
    text = page.read_text(encoding="utf-8")
    assert "missed.nii.gz has 3 NaN voxels, expected &lt;none&gt;" in text
    assert "Without 1 further case that failed." in text
    saved = json.loads((out / "metrics.json").read_text())
    assert saved["failures"] == {"missed": "missed.nii.gz has 3 NaN voxels, expected <none>"}
    assert [row["name"] for row in saved["cases"]] == ["good", "poor", "healthy"]
    assert saved["summary"]["lesion"]["dice"]["mean"] == pytest.approx(
        np.mean([dice(*masks[n]) for n in ("good", "poor")])
    )


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("/data/Ann Lee/1.nii.gz has 3 NaN voxels", "1.nii.gz has 3 NaN voxels"),
        ("/Ann Lee/1.nii and /b c/d/2.nii.gz have shapes 1/2", "1.nii and 2.nii.gz have shapes 1/2"),
        (r"C:\Ann Lee\1.nii does not exist", "1.nii does not exist"),
        ("/home/ann/1.mgz cannot be read, expected .nii", "1.mgz cannot be read, expected .nii"),
        ("the file '/home/ann/model.pt' is missing", "the file 'model.pt' is missing"),
    ],
)
def test_no_folder_of_this_machine_is_in_a_failure(cohort, sentence, shown):
    cases, out, *_ = cohort
    evaluation = Evaluation(cases, out)
    evaluation.leave_out({"good": sentence})
    assert evaluation.failures == {"good": shown}


def test_names_may_have_folders(tmp_path):
    item = add_case(tmp_path, "sub-01/anat/FLAIR", boxes((4, 4, 4)), boxes((4, 4, 4)))
    assert Evaluation([item], tmp_path / "out").rows[0]["dice"] == 1


def test_several_sequences_show_the_first(cohort):
    cases, out, *_ = cohort
    several = [case | {"image": [case["image"], case["image"]]} for case in cases]
    assert page_of(Report(several[:1], out)).count("<h4>") == 1


def test_without_references_only_volumes_are_reported(cohort):
    cases, out, *_ = cohort
    report = Report([{k: v for k, v in case.items() if k != "label"} for case in cases], out, max_pictures=1)
    assert [row["dice"] for row in report.rows] == [None] * 4
    assert report.summary == report.healthy == {}
    page = page_of(report)
    assert "Predicted lesion" in page
    assert "of which only volumes are known" in page
    assert "Dice, mean" not in page


def test_volumes_of_one_subject_have_no_interval(cohort):
    cases, out, *_ = cohort
    unlabeled = [{"image": case["image"], "name": case["name"], "subject": "sub-01"} for case in cases]
    assert "mean volume per case, no interval" in page_of(Report(unlabeled, out, max_pictures=0))


def test_healthy_cases_need_no_reference(cohort):
    cases, out, *_ = cohort
    healthy = [{"image": cases[0]["image"], "name": "good", "healthy": True}]
    report = Report(healthy, out)
    assert report.rows[0]["false_positive_ml"] == pytest.approx(128 * 0.009)
    assert report.curve is None
    assert "1 without lesion" in page_of(report)


@pytest.mark.parametrize("found", [boxes(), boxes((10, 10, 10), size=2)])
def test_healthy_cases_alone_have_no_pooled_dice(tmp_path, found):
    cases = [add_case(tmp_path, name, found) | {"healthy": True} for name in ("a", "b")]
    report = Report(cases, tmp_path / "out", max_pictures=0)
    assert "2 without lesion" in page_of(report)
    assert np.isnan([report.pooled["lesion"][key] for key in ("dice", "dice_low", "dice_high")]).all()


def test_mixed_cases_are_ranked_lesions_then_healthy_then_unknown(cohort):
    cases, out, *_ = cohort
    cases[0].pop("label")
    assert [case["name"] for case in Evaluation(cases, out).ranked()] == ["missed", "poor", "healthy", "good"]


def test_the_healthy_case_with_most_false_positives_is_ranked_first(tmp_path):
    found = {"few": boxes((10, 10, 10), size=2), "none": boxes(), "many": boxes((4, 4, 4))}
    cases = [add_case(tmp_path, name, mask) | {"healthy": True} for name, mask in found.items()]
    assert [case["name"] for case in Evaluation(cases, tmp_path / "out").ranked()] == ["many", "few", "none"]


def test_pictures_are_drawn_of_the_worst_cases_only(cohort):
    cases, out, *_ = cohort
    assert re.findall(r"<h4>(.*?)</h4>", page_of(Report(cases, out, max_pictures=2))) == ["missed", "poor"]


def test_several_labels_have_a_row_each_and_no_lesion_counts(tmp_path):
    reference = boxes((3, 3, 3), value=1) + boxes((12, 12, 10), value=4)
    prediction = boxes((3, 3, 3), value=1) + boxes((12, 12, 11), value=4)
    item = add_case(tmp_path, "tissues", prediction, reference, np.zeros(SHAPE))
    report = Report([item], tmp_path / "out", label_names={"0": "background", "1": "GM", "4": "lesion"})
    assert [(row["label_name"], row["dice"]) for row in report.rows] == [("GM", 1.0), ("lesion", 0.75)]
    assert all(row["lesion_f1"] is None and row["average_precision"] is None for row in report.rows)
    assert "Dice, mean of 2 labels" in page_of(report)
    counted = Evaluation([item], tmp_path / "out", label_names={1: "GM", 4: "lesion"}, lesion_labels=[4], map_label=4)
    assert [row["lesion_f1"] for row in counted.rows] == [None, 1.0]
    assert [row["average_precision"] for row in counted.rows] == [None, pytest.approx(64 / reference.size)]


def test_a_missing_prediction_is_one_sentence(cohort):
    cases, out, *_ = cohort
    (out / "poor_seg.nii.gz").unlink()
    with pytest.raises(InputError, match=r"poor_seg\.nii\.gz does not exist"):
        Report(cases, out).write()
    assert sorted(p.name for p in out.iterdir() if not p.name.endswith(".nii.gz")) == []


def test_maps_of_some_cases_only_are_refused(cohort):
    cases, out, *_ = cohort
    (out / "poor_prob.nii.gz").unlink()
    with pytest.raises(InputError, match=r"poor_prob\.nii\.gz does not exist.*every case or of none"):
        Report(cases, out).write()


def test_without_maps_there_is_no_curve(cohort):
    cases, out, *_ = cohort
    for case in cases:
        (out / f"{case['name']}_prob.nii.gz").unlink()
    report = Report(cases, out, max_pictures=0)
    assert report.curve is None
    assert "AUPRC" not in page_of(report)


@pytest.mark.parametrize("postfix", ["seg", "prob"])
def test_another_grid_is_refused(cohort, postfix):
    cases, out, masks, _ = cohort
    shifted = AFFINE.copy()
    shifted[0, 3] += 1
    save(out / f"good_{postfix}.nii.gz", masks["good"][0], shifted)
    with pytest.raises(InputError, match=rf"good_{postfix}\.nii\.gz and .*good\.nii\.gz have affines"):
        Evaluation(cases, out).rows  # noqa: B018


def test_a_reference_on_another_grid_is_refused(cohort):
    cases, out, *_ = cohort
    shutil.copy(save(out.parent / "other.nii.gz", np.zeros((20, 24, 19), np.uint8)), cases[1]["label"])
    with pytest.raises(InputError, match=r"poor_lesion\.nii\.gz and .*shape \(20, 24, 19\) against \(20, 24, 18\)"):
        Evaluation(cases, out).rows  # noqa: B018


@pytest.mark.parametrize("which", ["prediction", "reference"])
def test_unknown_label_values_are_refused(cohort, which):
    cases, out, masks, _ = cohort
    path = out / "good_seg.nii.gz" if which == "prediction" else out.parent / "scans" / "good_lesion.nii.gz"
    save(path, masks["good"][0] * 255)
    with pytest.raises(InputError, match=rf"{path.name} has the values 255, expected 0, 1 only"):
        Evaluation(cases, out).rows  # noqa: B018


def test_no_cases_and_nameless_labels_are_refused(cohort):
    cases, out, *_ = cohort
    with pytest.raises(ValueError, match="no case"):
        Evaluation([], out)
    with pytest.raises(ValueError, match=r"labels \[2\] have no name, expected one of \[1\]"):
        Evaluation(cases, out, lesion_labels=[2])


def test_a_folder_that_cannot_be_written_is_one_sentence(cohort):
    cases, out, *_ = cohort
    (out / "report.html").mkdir()
    (out / "report.html" / "something").touch()
    with pytest.raises(InputError, match=r"report\.html cannot be written"):
        Report(cases, out).write()
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_a_second_report_replaces_the_first(cohort):
    cases, out, *_ = cohort
    assert "<h1>before</h1>" in page_of(Report(cases, out, title="before", max_pictures=0))
    assert "before" not in page_of(Report(cases[:1], out, title="after", max_pictures=0))


def test_report_is_named_in_json(cohort):
    cases, out, *_ = cohort
    parser = ConfigParser(
        {
            "report": {
                "_target_": "common.report.Report",
                "cases": cases,
                "output_dir": str(out),
                "label_names": {"1": "lesion"},
                "threshold": 0.5,
                "max_pictures": 0,
            },
            "run": ["$@report.write()"],
        }
    )
    parser.parse()
    parser.get_parsed_content("run")
    assert (out / "report.html").is_file()


def test_several_reports_go_on_one_page(cohort, tmp_path):
    cases, out, *_ = cohort
    sections = [Report(cases, out, title=title, max_pictures=0).section for title in ("first", "second")]
    page = write_html_report(tmp_path / "all.html", "Both <&>", sections, lead="Of phantoms.").read_text()
    assert re.findall(r'<a href="(#section-\d)">(\w+)</a>', page) == [("#section-1", "first"), ("#section-2", "second")]
    assert page.count('<section id="section-') == 2
    assert "Both &lt;&amp;&gt;" in page
    assert "Of phantoms." in page


def test_a_page_takes_plain_parts(tmp_path):
    section = Section(
        "part",
        tiles=[Tile("time", "3 s")],
        tables=[Table("rows", ["name", "Dice"], [["a", "0.25"], ["b", "–"]], bars=[1])],
        cases=[CaseView("a", [("Dice", "0.25")])],
    )
    page = write_html_report(tmp_path / "page.html", "page", [section]).read_text()
    assert '<td class="bar" style="--w:25%">0.25</td>' in page
    assert '<td class="bar" style="--w:0%">–</td>' in page
    assert "<h2>part</h2>" in page


class TestPictures:
    def pixels(self, picture):
        return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")).astype(int)

    def color(self, picture, color):
        """Pixels that nearly have a color."""
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        return np.abs(self.pixels(picture) - wanted).max(axis=-1) < 40

    def head(self, affine):
        """A gray head with a bright spot at the patient's right, front and top, on the given grid."""
        ras = np.zeros((40, 50, 30), dtype=np.float32)  # 1 mm
        ras[2:-2, 2:-2, 2:-2] = 50
        ras[30:36, 40:46, 20:26] = 100
        lesion = (ras == 100).astype(np.int32)
        orientation = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.io_orientation(affine))
        return [nib.apply_orientation(array, orientation) for array in (ras, lesion)]

    @pytest.mark.parametrize(
        "signs", [(0, 1, 2, 1, 1, 1), (0, 1, 2, -1, -1, 1), (2, 0, 1, 1, 1, -1), (1, 2, 0, -1, 1, 1)]
    )
    def test_convention_is_radiological_whatever_the_axes_on_disk(self, signs):
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for axis in range(3):
            affine[signs[axis], axis] = signs[3 + axis]
        image, lesion = self.head(affine)
        _, axial, coronal, sagittal = case_pictures(image, affine, lesion)
        contours = dict(zip(("axial", "coronal", "sagittal"), (axial, coronal, sagittal), strict=True))
        for view, picture in contours.items():
            outline = self.color(picture, PREDICTION_COLOR)
            rows, columns = np.nonzero(outline)
            assert picture.alt.startswith(view)
            assert columns.mean() < outline.shape[1] / 2  # right is left, and front is left
            assert rows.mean() < outline.shape[0] / 2  # front and top are up

    def test_the_margins_say_which_side_is_which(self):
        image, lesion = self.head(np.eye(4))
        drawn = []
        with mock.patch.object(Axes, "text", lambda axes, x, y, text, **_: drawn.append((x, text)) or Text()):
            case_pictures(image, np.eye(4), lesion)
        for near, far in ("RL", "AP"):
            assert {x < 0.5 for x, text in drawn if text == near} == {True}
            assert {x > 0.5 for x, text in drawn if text == far} == {True}

    def test_both_outlines_are_drawn(self):
        image, lesion = self.head(np.eye(4))
        shifted = np.roll(lesion, -3, axis=1)
        contours = case_pictures(image, np.eye(4), lesion, shifted)[1]
        assert self.color(contours, REFERENCE_COLOR).sum() > 50
        assert self.color(contours, PREDICTION_COLOR).sum() > 50

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
    def test_slices_have_the_proportions_of_the_head_in_mm(self, order):
        affine = np.diag([1.0, 2.0, 1.0, 1.0])[:, [*order, 3]]  # 2 mm from back to front, whichever axis that is
        image, lesion = self.head(affine)
        axial = self.pixels(case_pictures(image, affine, lesion)[0])
        # 36 x 46 voxels of head with a margin of 4 mm: (36 + 4) x 2 * (46 + 4) mm, cut at the border of the image
        assert axial.shape[0] / axial.shape[1] == pytest.approx(100 / 40, rel=0.02)

    def test_empty_masks_show_the_middle_of_the_head(self):
        image, lesion = self.head(np.eye(4))
        pictures = case_pictures(image, np.eye(4), lesion * 0, lesion * 0, image / 100)
        assert len(pictures) == 5
        assert "score" in pictures[2].caption

    def test_an_image_of_one_value_is_drawn(self):
        flat = np.ones(SHAPE, dtype=np.float32)
        assert case_pictures(flat, np.eye(4), flat.astype(int) * 0)[0].mime == "image/png"


# data sets that label different classes


SETS = {"tissue": {0: [0], 1: [1], 2: [2, 3]}, "lesion": {0: [0, 1, 2], 1: [3], 9: [0, 1, 2, 3]}}
NAMES = {1: "GM", 2: "WM", 3: "lesion"}


@pytest.fixture
def two_sets(tmp_path):
    """A tissue case whose white matter includes lesions, and a lesion case with a voxel layer of which nobody knows."""
    gm, wm, lesion = boxes((2, 2, 2)), boxes((8, 8, 8), value=2), boxes((12, 12, 10), value=3)
    unsure = boxes((6, 16, 4), value=9)
    found = gm + wm + lesion
    tissue = add_case(tmp_path, "t", found, gm + wm + boxes((12, 12, 10), value=2))
    lesions = add_case(tmp_path, "l", found + boxes((6, 16, 4), value=3), boxes((12, 12, 10)) + unsure)
    return [tissue | {"dataset": "tissue"}, lesions | {"dataset": "lesion"}], tmp_path / "out"


def test_each_data_set_is_scored_on_what_it_labels_and_on_nothing_else(two_sets):
    cases, out = two_sets
    report = Report(cases, out, label_names=NAMES, reference_sets=SETS, lesion_labels=[3], map_label=3)
    scored = {(row["dataset"], row["label_name"]): row["dice"] for row in report.rows if row["dice"] is not None}
    # merged, white matter with lesions is found whole; what a label leaves open is no false positive
    assert scored == {("tissue", "GM"): 1, ("tissue", "WM + lesion"): 1, ("lesion", "lesion"): 1}
    assert report.pooled["lesion"]["cases"] == 1
    assert [pooled.get("dice") for pooled in report.pooled.values()] == [1, None, 1, 1]
    assert {row["label"] for row in report.rows} == {1, 2, 3, "2+3"}
    volumes = [row["prediction_ml"] for row in report.rows if (row["name"], row["label_name"]) == ("l", "GM")]
    assert volumes == [pytest.approx(64 * 0.009)]  # known from the file alone


def test_a_map_is_scored_where_the_reference_decides(two_sets):
    cases, out = two_sets
    lesion, unsure, wrong = boxes((12, 12, 10)), boxes((6, 16, 4)), boxes((2, 2, 2))
    for case in cases:
        save(out / f"{case['name']}_prob.nii.gz", (0.5 * lesion + 0.9 * unsure + 0.7 * wrong).astype(np.float32))
    report = Report(cases, out, label_names=NAMES, reference_sets=SETS, map_label=3)
    # 64 voxels of lesion, found together with 64 wrong ones; nobody knows whether the 64 of the largest score are wrong
    (row,) = [row for row in report.rows if row["average_precision"] is not None]
    pooled = report.pooled["lesion"]
    assert (row["name"], row["average_precision"]) == ("l", 0.5)
    assert (pooled["average_precision"], pooled["best_dice_any_threshold"]) == (0.5, pytest.approx(2 / 3))


def test_volumes_are_compared_where_the_reference_decides(two_sets, monkeypatch):
    cases, out = two_sets
    shown = []
    monkeypatch.setattr("common.report.volume_chart", lambda *volumes: shown.extend(volumes))
    _ = Report(cases, out, label_names=NAMES, reference_sets=SETS)._charts()
    np.testing.assert_allclose(shown[0], 0.009 * np.array([64, 128, 64]))  # GM and WM + lesion of t, lesion of l
    np.testing.assert_allclose(shown[1], shown[0])


def test_a_voxel_outside_of_all_that_a_label_allows_counts_against(two_sets):
    cases, out = two_sets
    wrong = boxes((2, 2, 2), value=3) + boxes((12, 12, 10), value=3)
    save(out / "l_seg.nii.gz", wrong)
    rows = Evaluation(cases, out, NAMES, reference_sets=SETS).rows
    (row,) = [row for row in rows if row["name"] == "l" and row["dice"] is not None]
    assert (row["dice"], row["precision"]) == (pytest.approx(2 / 3), 0.5)


def test_the_page_has_the_scores_by_data_set_and_further_tables(two_sets):
    cases, out = two_sets
    table = {"caption": "What is labeled", "columns": ["data set", "GM"], "rows": [["tissue", "exact"]]}
    page = page_of(Report(cases, out, label_names=NAMES, reference_sets=SETS, map_label=3, tables=[table]))
    text = html.unescape(page)
    by_set = text[text.index("<h3>Mean Dice by data set") :]
    rows = re.findall(r'<th scope="row">(tissue|lesion|all)</th>(.*?)</tr>', by_set)
    cells = {name: re.findall(r">([^<>]+)</td>", row) for name, row in reversed(rows)}
    assert cells["all"] == ["1.000", "1.000", "1.000"]
    assert cells["lesion"] == ["–", "1.000", "–"]
    assert "What is labeled" in text
    assert ">exact</td>" in text


def test_without_references_there_is_no_table_of_data_sets(two_sets):
    cases, out = two_sets
    unlabeled = [{key: value for key, value in case.items() if key != "label"} for case in cases]
    page = page_of(Report(unlabeled, out, label_names=NAMES, reference_sets=SETS, max_pictures=0))
    assert "Mean Dice by data set" not in page


@pytest.mark.parametrize(
    ("which", "labels"), [((0, 1), "what each case labels"), ((0,), "2 labels"), ((1,), "1 label")]
)
def test_the_first_tile_says_how_many_labels_the_mean_is_of(two_sets, which, labels):
    cases, out = two_sets
    report = Report([cases[i] for i in which], out, label_names=NAMES, reference_sets=SETS, max_pictures=0)
    assert f"<span>Dice, mean of {labels}</span>" in page_of(report)


def test_a_case_of_no_known_data_set_is_named(two_sets):
    cases, out = two_sets
    with pytest.raises(InputError, match="the case t has the dataset 'tissues', expected one of tissue, lesion"):
        Evaluation([cases[0] | {"dataset": "tissues"}], out, NAMES, reference_sets=SETS)
    nameless = {key: value for key, value in cases[0].items() if key != "dataset"}
    with pytest.raises(InputError, match="the case t has no dataset"):
        Evaluation([nameless], out, NAMES, reference_sets=SETS)


def test_a_reference_value_outside_the_table_of_its_data_set_is_named(two_sets):
    cases, out = two_sets
    with pytest.raises(InputError, match=r"l_lesion.nii.gz has the values 9, expected 0, 1 only"):
        _ = Evaluation(cases, out, NAMES, reference_sets=SETS | {"lesion": {0: [0, 1, 2], 1: [3]}}).rows


def test_labels_are_filled_in_colors_of_their_own_and_named():
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32) + 1
    labels = boxes((4, 4, 4), size=8) + boxes((4, 14, 4), size=6, value=2)
    plain, filled, *_ = case_pictures(image, AFFINE, labels, labels, None, 1.0, {1: "GM", 2: "WM"})
    assert "predicted labels" in filled.caption
    first, second = (np.asarray(Image.open(io.BytesIO(p.data)).convert("RGB")).astype(int) for p in (plain, filled))
    assert (np.ptp(first, axis=2) < 12).mean() > 0.95  # gray
    colored = second[np.ptp(second, axis=2) > 60]
    blue, green = (colored[:, c] == colored.max(axis=1) for c in (2, 1))
    assert blue.sum() > 1000
    assert green.sum() > 500


def test_one_case_that_cannot_be_scored_does_not_cost_the_report_of_the_others(cohort):
    cases, out, *_ = cohort
    label = cases[1]["label"]
    Path(label).write_bytes(Path(label).read_bytes()[:200])
    with pytest.raises(InputError, match=r"poor_lesion\.nii\.gz cannot be read"):
        Report(cases, out).write()
    assert not (out / "report.html").exists()
    failures = {"missed": "no image"}
    report = Report(cases, out, keep_going=True)
    report.write(failures)
    assert list(failures) == ["missed", "poor"]  # so that the run ends by an error
    assert {row["name"] for row in report.rows} == {"good", "healthy"}
    page = (out / "report.html").read_text()
    assert "poor_lesion.nii.gz cannot be read" in page
    assert "no image" in page
    with pytest.raises(InputError, match=r"none of the 1 cases can be scored: .*poor_lesion"):
        Report([cases[1]], out, keep_going=True).write()


def test_a_reference_that_is_stored_by_a_slope_is_the_same_reference(cohort):
    cases, out, masks, _ = cohort
    image = nib.Nifti1Image(masks["good"][1] * 255, AFFINE)
    image.header.set_slope_inter(1 / 255, 0)
    expected = Evaluation(cases[:1], out).rows
    nib.save(image, cases[0]["label"])
    assert Evaluation(cases[:1], out).rows == expected
    assert Evaluation(cases[:1], out).pooled["lesion"]["best_dice_any_threshold"] > 0


def test_no_cell_of_a_table_is_a_formula():
    values = ["=1+1", "@SUM(A1)", "+1+cmd", "-2+3", "\t=1", "\r=1"]
    numbers = ["-2.5", "+1e3", -2.5, 3, True, None, float("nan"), "a"]
    assert delimited([numbers]) == "-2.5,+1e3,-2.5,3,true,,,a\n"
    assert delimited([values], "\t") == "'=1+1\t'@SUM(A1)\t'+1+cmd\t'-2+3\t'=1\t'=1\n"
