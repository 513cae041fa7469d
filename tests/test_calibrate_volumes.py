"""Intervals of volumes: from results with references to a file, and from the file into the next results."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from bundle_tools import BUNDLES, load_script, save_nifti

from common.errors import InputError
from common.intervals import Scaling, VolumeIntervals
from common.scans import json_beside
from labels.volumes import fit_weights, reliability

script = load_script("calibrate_volumes")

AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])  # 1 ml a voxel
PEOPLE = 9


@pytest.fixture
def results(tmp_path):
    """Results whose mask is a voxel short of the reference of 9, and whose map is too sure."""

    def write(folder="validation", threshold=0.5, people=PEOPLE, found_ml=8.0):
        rows, cases = [], []
        truth = np.zeros((4, 4, 4), np.uint8)
        truth.flat[:9] = 1
        scores = np.where(truth, 0.9, 0.2).astype(np.float32)
        scores.flat[[0, 60]] = 0.2, 0.9  # one wrong of nine, and of those that are not
        for i in range(people):
            path = tmp_path / folder / f"{folder}{i}_seg.nii.gz"
            image = save_nifti(tmp_path / "in" / f"{folder}{i}.nii.gz", scores + 1, AFFINE)
            label = save_nifti(tmp_path / "in" / f"{folder}{i}_label.nii.gz", truth, AFFINE)
            save_nifti(tmp_path / folder / f"{folder}{i}_prob.nii.gz", scores, AFFINE)
            json_beside(path).write_text(json.dumps({"bundle": "b", "options": {"threshold": threshold}}))
            rows.append(
                {
                    "name": f"{folder}{i}",
                    "subject": f"person {i}",
                    "label_name": "lesion",
                    "reference_ml": 9.0,
                    "prediction_ml": found_ml,
                }
            )
            cases.append({"image": str(image), "label": str(label)})
        (tmp_path / folder / "metrics.json").write_text(json.dumps({"cases": rows}))
        path = tmp_path / "cases.json"
        sections = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(sections | {folder: cases}))
        return tmp_path / folder

    return write


def test_intervals_and_coverage_are_those_that_one_works_out(results, tmp_path, capsys):
    file = tmp_path / "intervals.json"
    inside, outside = results("test", found_ml=9.5), results("elsewhere", found_ml=4.0)
    script.main(str(results()), str(file), check_dir=str(inside))
    found = VolumeIntervals.read(file)
    assert found.of("lesion", 8) == pytest.approx((7.1, 9))  # 9 times 9/10 less 1, and 9 times 10/9 less 1
    said = capsys.readouterr().out
    assert "9 scans of 9 people, validation" in said
    assert "lesion: 100% of 9 volumes lie in their intervals of 90%" in said
    script.main(str(tmp_path / "validation"), str(file), check_dir=str(outside))
    assert "lesion: 0% of 9 volumes lie" in capsys.readouterr().out
    assert str(tmp_path) not in file.read_text()


def test_a_volume_below_its_interval_is_not_covered(results, tmp_path, capsys):
    above = results("above", found_ml=20.0)  # 21 times 9/10 less 1 is more than the 9 ml of the reference
    script.main(str(results()), str(tmp_path / "intervals.json"), check_dir=str(above))
    assert "lesion: 0% of 9 volumes lie" in capsys.readouterr().out


def test_a_map_is_scaled_to_what_it_means_and_that_is_drawn(results, tmp_path, capsys):
    file = tmp_path / "intervals.json"
    folder = results()
    others = results("test")
    options = {"datalist_file": str(tmp_path / "cases.json"), "section": "validation"}
    script.main(str(folder), str(file), **options, check_dir=str(others), check_section="test")
    scaling = VolumeIntervals.read(file).scalings["lesion"]
    np.testing.assert_allclose(scaling(np.array([0.9, 0.2])), [8 / 9, 1 / 55], atol=1e-3)
    said = capsys.readouterr().out
    assert "calibration error of the map 0.1578, scaled 0.000" in said  # (9 * 0.0111 + 55 * 0.1818) / 64
    assert "of independent voxels" in said
    assert (tmp_path / "intervals_reliability.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"people": 8}, "has references of 8 people, expected 9 or more for intervals of 90%"),
        ({"level": 0.3}, "level is 0.3, expected a share from 0.5"),
        ({"other": 0.4}, "test was made in another way|made in another way: threshold is 0.4"),
        ({"section": "elsewhere"}, "has no label of validation0"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_writes_nothing(results, tmp_path, change, expected):
    folder, file = results(people=change.get("people", PEOPLE)), tmp_path / "intervals.json"
    options = {"level": change["level"]} if "level" in change else {}
    if "other" in change:
        options["check_dir"] = str(results("test", threshold=change["other"]))
    if "section" in change:
        results(change["section"])
        options |= {"datalist_file": str(tmp_path / "cases.json"), "section": change["section"]}
    with pytest.raises(InputError, match=expected):
        script.main(str(folder), str(file), **options)
    assert not file.exists()


def test_results_that_were_made_in_two_ways_are_refused(results, tmp_path):
    folder = results()
    json_beside(folder / "validation3_seg.nii.gz").write_text(json.dumps({"bundle": "b", "version": "2"}))
    with pytest.raises(InputError, match="validation3 and validation0 were made in different ways: version is 2"):
        script.main(str(folder), str(tmp_path / "intervals.json"))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name, indirect=True)
def test_inference_writes_the_intervals_of_its_own_results_only(bundle, monai_bundle, cohort, tmp_path):
    def run(*configs, **options):
        paths = [f"bundles/{bundle.name}/configs/{name}.json" for name in configs]
        options = {"bundle_root": f"bundles/{bundle.name}", "device": "cpu", **options}
        options["datalist_file"] = tmp_path / "two.json"
        flags = [word for key, value in options.items() for word in (f"--{key}", value)]
        return monai_bundle("run", "--config_file", str(paths), *flags)

    (tmp_path / "two.json").write_text(json.dumps(json.loads(cohort.read_text())["test"]))
    file, once, again = (tmp_path / name for name in ("intervals.json", "once", "again"))
    done = run("inference", "evaluate", output_dir=once)
    assert done.code == 0, done.output[-3000:]
    script.main(str(once), str(file), level=0.6)
    done = run("inference", output_dir=again, intervals_file=file)
    assert done.code == 0, done.output[-3000:]
    with (again / "volumes.tsv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    intervals = VolumeIntervals.read(file)
    assert len(rows) == 2
    for label in intervals.volumes:
        for row in rows:
            ends = intervals.of(label, float(row[f"{label}_ml"]))
            written = [float(row[f"{label}_{end}_ml"] or "nan") for end in ("low", "high")]
            assert written == pytest.approx(ends, 1e-4, 1e-4, nan_ok=True)
    page = (again / "report.html").read_text()
    assert ("holds the volume of the reference in 60% of the scans" in page) != ("No interval of" in page)

    done = run("inference", output_dir=tmp_path / "other", intervals_file=file, spacing=[3, 3, 3])
    assert done.code != 0
    assert "made in another way: spacing is [3.0, 3.0, 3.0]" in done.errors[0]
    assert not (tmp_path / "other").exists()


def test_probabilities_are_scaled_back_to_what_they_were():
    rng = np.random.default_rng(1)
    true = rng.uniform(0.02, 0.98, 200_000)
    reference = rng.uniform(size=true.size) < true
    bold = 1 / (1 + np.exp(-3 * np.log(true / (1 - true)) - 1))  # too sure, and too high
    scaling = Scaling(
        *fit_weights([bold[None, :70_000], bold[None, 70_000:]], [reference[:70_000], reference[70_000:]])
    )
    assert scaling == pytest.approx((1 / 3, -1 / 3), abs=0.01)
    np.testing.assert_allclose(scaling(bold), true, atol=0.01)
    before, after = (reliability([values], [reference]).error for values in (bold, scaling(bold)))
    assert before > 0.1 > 0.01 > after


def test_calibration_error_by_hand():
    found = reliability([np.array([0.1, 0.1, 0.9, 0.9])], [np.array([0, 1, 1, 1])], bins=2)
    np.testing.assert_allclose(found.share, [0.5, 1])
    assert found.error == pytest.approx((0.4 * 2 + 0.1 * 2) / 4)
