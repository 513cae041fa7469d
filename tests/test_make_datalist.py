"""Datalists from tables, patterns and folders; what is said of the files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bundle_tools import load_script, save_nifti

from common.data import list_cases
from common.errors import InputError
from datalists.sources import items_of_pattern, items_of_table
from datalists.splits import assign_folds, split
from datalists.survey import describe, duplicates, read_facts, refuse_duplicates, survey

main = load_script("make_datalist").main
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.fixture
def scans(tmp_path) -> Path:
    """Six subjects with T1w, FLAIR (one lacks it) and a lesion mask, a folder each."""
    for number in range(6):
        rng = np.random.default_rng(number)
        folder = tmp_path / "scans" / f"p{number}"
        for sequence in ("T1w", "FLAIR") if number else ("T1w",):
            save_nifti(folder / f"{sequence}.nii.gz", rng.uniform(1, 9, (6, 7, 8)).astype(np.float32), AFFINE)
        save_nifti(folder / "lesion.nii.gz", (rng.uniform(size=(6, 7, 8)) > 0.9).astype(np.uint8), AFFINE)
    return tmp_path / "scans"


def test_a_pattern_gives_cases_by_subject(scans):
    items = items_of_pattern(f"{scans}/{{subject}}/{{sequence}}.nii.gz", ["T1w"], f"{scans}/{{subject}}/lesion.nii.gz")
    assert [item["subject"] for item in items] == [f"p{number}" for number in range(6)]
    assert items[0] == {
        "image": str(scans / "p0" / "T1w.nii.gz"),
        "label": str(scans / "p0" / "lesion.nii.gz"),
        "subject": "p0",
    }


def test_a_field_is_the_same_wherever_it_stands(scans):
    for a, b in (("p1", "p1"), ("p2", "p1")):
        path = scans / a / f"{b}_T2w.nii.gz"
        save_nifti(path, np.ones((3, 3, 3), np.float32), AFFINE)
    found = items_of_pattern(f"{scans}/{{subject}}/{{subject}}_T2w.nii.gz", ["T2w"])
    assert [item["subject"] for item in found] == ["p1"]


def test_files_and_columns_may_have_another_name_of_the_sequence(tmp_path):
    for name in ("a_T1", "a_t2_flair", "a_T1_lesion", "b_T1w", "b_MPRAGE", "b_FLAIR"):
        save_nifti(tmp_path / f"{name}.nii.gz", np.ones((3, 3, 3), np.float32), AFFINE)
    pattern, label = f"{tmp_path}/{{subject}}_{{sequence}}.nii.gz", f"{tmp_path}/{{subject}}_{{sequence}}_lesion.nii.gz"
    a, b = items_of_pattern(pattern, ["T1w", "FLAIR"], label)
    assert [Path(path).name for path in a["image"]] == ["a_T1.nii.gz", "a_t2_flair.nii.gz"]
    assert Path(a["label"]).name == "a_T1_lesion.nii.gz"
    assert [Path(path).name for path in b["image"]] == ["b_T1w.nii.gz", "b_FLAIR.nii.gz"]  # its very name wins
    with pytest.raises(InputError, match=r"b_MPRAGE.nii.gz and .*b_T1w.nii.gz are both T1, expected one of a subject"):
        items_of_pattern(pattern, ["T1", "FLAIR"])
    table = write_table(tmp_path / "cases.csv", "T1,flair,subject", "a_T1.nii.gz,a_t2_flair.nii.gz,a")
    assert items_of_table(table, ["T1w", "FLAIR"]) == [{"image": a["image"], "subject": "a"}]
    table = write_table(tmp_path / "cases.csv", "T1,MPRAGE", "a_T1.nii.gz,a_T1.nii.gz")
    with pytest.raises(InputError, match="has the columns T1 and MPRAGE, expected one for T1w"):
        items_of_table(table, ["T1w"])


def test_sessions_are_cases_of_their_own(tmp_path):
    for session in ("a", "b"):
        save_nifti(tmp_path / "x" / session / "T1w.nii.gz", np.ones((3, 3, 3), np.float32), AFFINE)
    items = items_of_pattern(f"{tmp_path}/{{subject}}/{{session}}/{{sequence}}.nii.gz", ["T1w"])
    assert [(item["subject"], item["session"]) for item in items] == [("x", "a"), ("x", "b")]


def test_a_missing_sequence_is_refused_or_left_empty(scans):
    pattern = f"{scans}/{{subject}}/{{sequence}}.nii.gz"
    with pytest.raises(InputError, match="subject p0 has no FLAIR"):
        items_of_pattern(pattern, ["T1w", "FLAIR"])
    items = items_of_pattern(pattern, ["T1w", "FLAIR"], optional_sequences=["FLAIR"])
    assert items[0]["image"] == [str(scans / "p0" / "T1w.nii.gz"), None]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{patient}/T1w.nii.gz", "no field but subject, sequence, session"),
        ("T1w.nii.gz", "expected {subject} in it"),
        ("{subject}/T9.nii.gz", "no file is called like"),
    ],
)
def test_patterns_that_fit_nothing_are_refused(scans, pattern, message):
    with pytest.raises(InputError, match=message):
        items_of_pattern(f"{scans}/{pattern}", ["T1w"])


def write_table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_gives_cases_with_all_its_columns(scans):
    table = write_table(
        scans / "cases.tsv",
        "subject\tT1w\tFLAIR\tlabel\thealthy\tage",
        "anna\tp0/T1w.nii.gz\t\tp0/lesion.nii.gz\tno\t41",
        "",
        "bert\tp1/T1w.nii.gz\tp1/FLAIR.nii.gz\t\tTRUE\t",
    )
    anna, bert = items_of_table(table, ["T1w", "FLAIR"])
    assert anna == {
        "image": [str(scans / "p0" / "T1w.nii.gz"), None],
        "subject": "anna",
        "label": str(scans / "p0" / "lesion.nii.gz"),
        "healthy": False,
        "age": "41",
    }
    assert bert["healthy"] is True
    assert "label" not in bert
    assert "age" not in bert


@pytest.mark.parametrize(("name", "delimiter"), [("c.csv", ","), ("c.csv", ";"), ("c.tsv", "\t"), ("c.csv", "\t")])
def test_tables_of_spreadsheets_and_of_bids_are_read(scans, name, delimiter):
    lines = [["T1w", "label", "score", "healthy"], ["p0/T1w.nii.gz", "n/a", "3.5", "N/A"]]
    table = scans / name
    table.write_text("".join(delimiter.join(line) + "\r\n" for line in lines), encoding="utf-8-sig")
    assert items_of_table(table, ["T1w"]) == [{"image": str(scans / "p0" / "T1w.nii.gz"), "score": "3.5"}]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["T1w"], "has 1 lines, expected a heading and a line per case"),
        (["T2w", "a.nii"], "lacks T1w"),
        (["T1w,T1w", "a.nii,b.nii"], "names T1w twice"),
        (["T1w,subject", "a.nii"], "line 2 of .* has 1 cells, expected 2"),
        (["T1w,subject", ",b"], "line 2 of .* names no image"),
        (["T1w,healthy", "a.nii,maybe"], "says 'maybe' under healthy"),
    ],
)
def test_tables_that_make_no_sense_are_refused(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        items_of_table(write_table(tmp_path / "cases.csv", *lines), ["T1w"])


def test_folds_keep_subjects_together_and_are_alike_in_size():
    cases = [{"image": f"{number}.nii", "subject": f"s{number // 2}"} for number in range(14)]
    found = assign_folds(cases, 3, seed=1)
    fold_of = {}
    for case in found:
        assert fold_of.setdefault(case["subject"], case["fold"]) == case["fold"]
    assert sorted(list(fold_of.values()).count(fold) for fold in range(3)) == [2, 2, 3]
    assert found == assign_folds(cases, 3, seed=1)
    assert found != assign_folds(cases, 3, seed=2)
    with pytest.raises(InputError, match="folds is 8 for 7 subjects"):
        assign_folds(cases, 8, seed=1)


def test_facts_of_a_file(scans):
    facts = read_facts(scans / "p1" / "lesion.nii.gz", "label")
    assert (facts.shape, facts.spacing, facts.axes, facts.values) == ((6, 7, 8), (1, 1, 2), "RAS", (0, 1))
    image = read_facts(scans / "p1" / "T1w.nii.gz")
    assert image.values is None
    with pytest.raises(InputError, match="expected whole numbers in a label map"):
        read_facts(scans / "p1" / "T1w.nii.gz", "label")
    # the voxels count, not how they are stored
    array = np.arange(27).reshape(3, 3, 3)
    paths = [
        save_nifti(scans / f"{kind.__name__}.nii.gz", array.astype(kind), AFFINE) for kind in (np.int16, np.float32)
    ]
    assert len({read_facts(path).fingerprint for path in paths}) == 1
    assert facts.fingerprint != image.fingerprint


def test_the_same_voxels_under_two_names_are_found(scans):
    (scans / "p3" / "T1w.nii.gz").write_bytes((scans / "p2" / "T1w.nii.gz").read_bytes())
    cases = items_of_pattern(f"{scans}/{{subject}}/{{sequence}}.nii.gz", ["T1w"])
    facts = survey(cases, num_workers=1)
    assert duplicates(cases, facts) == [(cases[2]["image"], cases[3]["image"])]
    with pytest.raises(InputError, match=r"of subject p2 and .* of subject p3 hold the same voxels"):
        refuse_duplicates(cases, duplicates(cases, facts))
    cases[3]["subject"] = "p2"
    refuse_duplicates(cases, duplicates(cases, facts))


def test_the_description_counts_what_there_is(scans):
    cases = items_of_pattern(
        f"{scans}/{{subject}}/{{sequence}}.nii.gz",
        ["T1w", "FLAIR"],
        f"{scans}/{{subject}}/lesion.nii.gz",
        None,
        ["FLAIR"],
    )
    cases[0]["healthy"] = True
    text = describe(cases, ["T1w", "FLAIR"], survey(cases, num_workers=1)).splitlines()
    assert text == [
        "6 cases of 6 subjects: 5 not said to be healthy, 1 healthy",
        "labels: 6, brain masks: 0",
        "T1w: 6 files; 6 6x7x8 of 1x1x2 mm RAS",
        "FLAIR: 5 files; 5 6x7x8 of 1x1x2 mm RAS",
        "label values, and in how many labels: 0 in 6, 1 in 6",
    ]


def test_the_command_writes_a_datalist_that_bundles_read(scans, tmp_path):
    out = tmp_path / "lists" / "cases.json"
    pattern, label = f"{scans}/{{subject}}/{{sequence}}.nii.gz", f"{scans}/{{subject}}/lesion.nii.gz"
    options = {"sequences": ["T1w"], "label": label, "dataset_name": "mine", "num_workers": 1}
    main(str(out), pattern=pattern, test=0.34, folds=2, **options)
    content = json.loads(out.read_text())
    assert content.pop("sequences") == ["T1w"]
    assert {name: len(part) for name, part in content.items()} == {"training": 4, "test": 2}
    assert sorted(case["fold"] for case in content["training"]) == [0, 0, 1, 1]
    assert all(case["image"].startswith("../scans/") for part in content.values() for case in part)
    cases = list_cases(datalist_file=out, sequences=["T1w"], section="test", require=["label"])
    assert {case["dataset"] for case in cases} == {"mine"}
    subjects = [{case["subject"] for case in part} for part in content.values()]
    assert not subjects[0] & subjects[1]


def test_a_bids_folder_is_a_source_too(tmp_path):
    for number in range(3):
        rng = np.random.default_rng(number)
        path = tmp_path / "bids" / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz"
        save_nifti(path, rng.uniform(1, 9, (4, 4, 4)).astype(np.float32), AFFINE)
    main(str(tmp_path / "c.json"), dataset_dir=str(tmp_path / "bids"), sequences=["T1w"], validation=0.3, healthy=True)
    content = json.loads((tmp_path / "c.json").read_text())
    assert content.pop("sequences") == ["T1w"]
    assert {name: len(part) for name, part in content.items()} == {"training": 2, "validation": 1}
    assert all(case["healthy"] for part in content.values() for case in part)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected exactly one of dataset_dir, pattern, table and datalist_file"),
        ({"dataset_dir": "a", "table": "b"}, "expected exactly one of"),
        ({"dataset_dir": "a", "label": "b"}, "expected them with a pattern only"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        main(str(tmp_path / "c.json"), **options)


@pytest.mark.parametrize(
    ("validation", "test", "folds", "message"),
    [(0.6, 0.5, 0, "below 1 in all"), (0.2, 0.0, 3, "expected one of them")],
)
def test_splits_that_make_no_sense_are_refused(validation, test, folds, message):
    with pytest.raises(InputError, match=message):
        split([], validation, test, folds, 0)
