"""From a folder or a datalist to checked cases."""

import json
import logging
import threading
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, Identity, RandGaussianNoise, RandomizableTransform, Transform

from common.data import (
    BrainSlices,
    CachedScans,
    Datalist,
    ScanDataset,
    check_splits,
    list_cases,
    paths_beside,
    share_of_process,
    subject_of,
    write_datalist,
)
from common.errors import InputError, find_input_error
from common.scans import open_scan
from common.transforms import LoadScand
from datalists.splits import split_by_subject

AFFINE = np.array([[-1.5, 0, 0, 30], [0, -1.0, 0, 40], [0, 0, 2.0, -25], [0, 0, 0, 1]])


def save(path, shape=(4, 5, 6), affine=AFFINE, value=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full(shape, value, dtype=np.float32), affine), path)
    return path


def save_json(path, content):
    path.write_text(json.dumps(content))
    return path


def names(cases):
    return [case["name"] for case in cases]


# folders


def test_files_of_the_sequence_are_taken_whatever_their_case_and_others_left(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for file in ("a_FLAIR.nii.gz", "b_flair.nii", "b_T1.nii.gz", "b_FLAIR_seg.nii.gz", ".a_FLAIR.nii.gz"):
        save(tmp_path / file)
    cases = list_cases(tmp_path)
    assert cases == [
        {"image": str(tmp_path / "a_FLAIR.nii.gz"), "subject": "a", "name": "a_FLAIR"},
        {"image": str(tmp_path / "b_flair.nii"), "subject": "b", "name": "b_flair"},
    ]
    assert "2 other NIfTI files left alone: b_FLAIR_seg.nii.gz, b_T1.nii.gz" in caplog.text


def test_without_a_named_sequence_every_image_but_masks_and_maps_is_taken(tmp_path):
    for file in ("x.nii.gz", "y.nii", "x_seg.nii.gz", "x_prob.nii.gz", "y_brainmask.nii", "y_lesion.nii", "y_dseg.nii"):
        save(tmp_path / file)
    assert names(list_cases(tmp_path)) == ["x", "y"]


def test_a_folder_of_another_sequence_is_refused_and_a_datalist_of_one_warned_of(tmp_path, caplog):
    other = save(tmp_path / "scans" / "sub-01_T1w.nii.gz")
    with pytest.raises(InputError, match=r"sub-01_T1w\.nii\.gz is named as T1w, expected FLAIR"):
        list_cases(tmp_path / "scans")
    assert names(list_cases(tmp_path / "scans", sequences="T1")) == ["sub-01_T1w"]
    registered = save(tmp_path / "FLAIR_on_T1.nii.gz")
    datalist = save_json(tmp_path / "cases.json", [{"image": str(registered)}, {"image": str(other)}])
    assert names(list_cases(datalist_file=datalist)) == ["FLAIR_on_T1", "sub-01_T1w"]
    assert caplog.text.count("is named as") == 1
    assert f"{other} is named as T1w, but stands where FLAIR belongs" in caplog.text


def test_a_folder_that_the_command_line_took_for_a_number_is_found(tmp_path, monkeypatch):
    save(tmp_path / "2025" / "x.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert names(list_cases(2025)) == ["x"]


def test_all_unusable_files_of_a_list_are_named_at_once(tmp_path):
    good, flat = save(tmp_path / "good.nii.gz"), save(tmp_path / "flat.nii.gz", shape=(4, 5, 1))
    (tmp_path / "x.mgz").write_bytes(b"")
    items = [{"image": str(good)}, {"image": "no.nii.gz"}, {"image": flat.name}, {"image": "x.mgz"}]
    with pytest.raises(InputError) as error:
        list_cases(datalist_file=save_json(tmp_path / "cases.json", items))
    sentence = str(error.value)
    assert sentence.startswith(f"{tmp_path / 'no.nii.gz'} does not exist, expected a NIfTI file; 2 other cases cannot")
    assert f"{flat} has shape (4, 5, 1)" in sentence
    assert f"{tmp_path / 'x.mgz'} cannot be read as NIfTI" in sentence
    with pytest.raises(InputError, match=r"no\.nii\.gz does not exist, expected a NIfTI file$"):
        list_cases(datalist_file=save_json(tmp_path / "one.json", items[:2]))


@pytest.mark.parametrize("factor", [0.001, 10.0, 1000.0])
def test_a_grid_that_is_not_in_millimeters_is_refused(tmp_path, factor):
    affine = AFFINE.copy()
    affine[:3] *= factor
    save(tmp_path / "x.nii.gz", shape=(4, 5, 60), affine=affine)
    with pytest.raises(InputError, match=r"x\.nii\.gz has 4 x 5 x 60 voxels of .* mm, expected a head in millimeters"):
        list_cases(tmp_path)


def test_mask_and_label_beside_an_image_belong_to_its_case(tmp_path):
    for file in ("p1_FLAIR.nii.gz", "p1_brainmask.nii.gz", "p1_lesion.nii.gz", "p2_FLAIR.nii.gz"):
        save(tmp_path / file)
    first, second = list_cases(tmp_path)
    assert first["brain_mask"] == str(tmp_path / "p1_brainmask.nii.gz")
    assert first["label"] == str(tmp_path / "p1_lesion.nii.gz")
    assert second.keys() == {"image", "subject", "name"}


def test_a_bids_tree_gives_sessions_masks_and_subjects(tmp_path):
    first = tmp_path / "sub-01" / "anat"
    second = tmp_path / "sub-02" / "ses-1" / "anat"
    save(first / "sub-01_FLAIR.nii.gz")
    save(first / "sub-01_desc-brain_mask.nii.gz")
    save(first / "sub-01_label-lesion_mask.nii.gz")
    save(second / "sub-02_ses-1_FLAIR.nii.gz")
    save(tmp_path / "derivatives" / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz")
    cases = list_cases(tmp_path)
    assert names(cases) == ["sub-01_FLAIR", "sub-02_ses-1_FLAIR"]
    assert [case["subject"] for case in cases] == ["sub-01", "sub-02"]
    assert cases[0]["brain_mask"] == str(first / "sub-01_desc-brain_mask.nii.gz")
    assert cases[0]["label"] == str(first / "sub-01_label-lesion_mask.nii.gz")


def test_several_sequences_come_in_the_order_asked_for_and_t1w_is_t1(tmp_path):
    save(tmp_path / "s_FLAIR.nii.gz")
    save(tmp_path / "s_T1w.nii.gz")
    (case,) = list_cases(tmp_path, sequences=("T1", "FLAIR"))
    assert case["image"] == [str(tmp_path / "s_T1w.nii.gz"), str(tmp_path / "s_FLAIR.nii.gz")]
    assert case["name"] == "s_T1w"


def test_a_missing_sequence_of_one_case_is_named(tmp_path):
    for file in ("s_FLAIR.nii.gz", "s_T1w.nii.gz", "r_FLAIR.nii.gz"):
        save(tmp_path / file)
    with pytest.raises(InputError, match=r"r_T1\.nii\.gz does not exist, expected FLAIR, T1 of every case"):
        list_cases(tmp_path, sequences=("FLAIR", "T1"))


def test_two_files_of_one_sequence_and_case_are_refused(tmp_path):
    save(tmp_path / "s_T1.nii.gz")
    save(tmp_path / "s_T1w.nii.gz")
    with pytest.raises(InputError, match=r"s_T1w\.nii\.gz and .*s_T1\.nii\.gz are both T1 of one case"):
        list_cases(tmp_path, sequences="T1")


def test_the_other_sequences_of_a_file_are_found_beside_it(tmp_path):
    t1, flair, lonely, nameless = (save(tmp_path / f"{name}.nii.gz") for name in ("a_T1", "a_FLAIR", "b_FLAIR", "c"))
    assert paths_beside(t1, ("T1w", "FLAIR")) == [str(t1), str(flair)]
    assert paths_beside(str(flair), ("T1w", "FLAIR")) == [str(t1), str(flair)]
    assert paths_beside(lonely, ("T1w", "FLAIR")) == [None, str(lonely)]
    assert paths_beside(nameless, ("T1w", "FLAIR")) == [None, None]


def test_a_folder_without_nifti_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds no \.nii or \.nii\.gz file"):
        list_cases(tmp_path)


def test_a_folder_with_other_nifti_only_is_refused(tmp_path):
    save(tmp_path / "a_seg.nii.gz")
    with pytest.raises(InputError, match=r"holds no image among its 1 NIfTI files, expected names that end in _FLAIR"):
        list_cases(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere is no folder"):
        list_cases(tmp_path / "nowhere")


def test_one_source_is_needed_and_two_must_agree(tmp_path):
    with pytest.raises(InputError, match="neither dataset_dir nor datalist_file is given"):
        list_cases()
    save(tmp_path / "in" / "a.nii.gz")
    file = save_json(tmp_path / "in" / "datalist.json", [{"image": "a.nii.gz"}])
    assert names(list_cases(tmp_path / "in", file)) == ["a"]
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="does not lie in dataset_dir"):
        list_cases(tmp_path / "other", file)


# names


def test_images_of_one_name_get_the_path_below_their_common_folder_as_name(tmp_path):
    items = []
    for folder in ("a/x", "b/x"):
        items.append({"image": str(save(tmp_path / folder / "FLAIR.nii.gz"))})
    items.append({"image": str(save(tmp_path / "a/x/other.nii.gz"))})
    cases = list_cases(datalist_file=save_json(tmp_path / "cases.json", items))
    assert names(cases) == ["a/x/FLAIR", "b/x/FLAIR", "other"]


def test_links_into_a_store_keep_their_own_names(tmp_path):
    store = save(tmp_path / "store" / "MD5E-123.nii.gz")
    for subject in ("sub-1", "sub-2"):
        (tmp_path / "bids" / subject / "anat").mkdir(parents=True)
        (tmp_path / "bids" / subject / "anat" / "FLAIR.nii.gz").symlink_to(store)
    assert names(list_cases(tmp_path / "bids")) == ["sub-1/anat/FLAIR", "sub-2/anat/FLAIR"]


def test_a_case_listed_twice_is_refused(tmp_path):
    save(tmp_path / "a.nii.gz")
    file = save_json(tmp_path / "cases.json", [{"image": "a.nii.gz"}, {"image": "./a.nii.gz"}])
    with pytest.raises(InputError, match=r"a\.nii\.gz is listed twice"):
        list_cases(datalist_file=file)


# datalists


@pytest.fixture
def datalist(tmp_path):
    for number in range(4):
        save(tmp_path / "scans" / f"s{number}_FLAIR.nii.gz")
        save(tmp_path / "scans" / f"s{number}_mask.nii.gz")
    items = [
        {"image": f"scans/s{i}_FLAIR.nii.gz", "mask": f"scans/s{i}_mask.nii.gz", "subject": f"s{i // 2}", "age": 20 + i}
        for i in range(4)
    ]
    content = {
        "name": "toy",
        "notes": [{"text": "not a case"}],
        "training": items[:2],
        "validation": [],
        "test": items[2:],
    }
    return save_json(tmp_path / "datalist.json", content)


def test_a_section_of_a_datalist_is_read_with_paths_relative_to_it(datalist):
    cases = list_cases(datalist_file=datalist, section="training", mask_key="mask")
    assert cases[1] == {
        "image": str(datalist.parent / "scans" / "s1_FLAIR.nii.gz"),
        "brain_mask": str(datalist.parent / "scans" / "s1_mask.nii.gz"),
        "subject": "s0",
        "age": 21,
        "name": "s1_FLAIR",
    }


def test_without_a_section_all_are_joined(datalist):
    assert names(list_cases(datalist_file=datalist)) == ["s0_FLAIR", "s1_FLAIR", "s2_FLAIR", "s3_FLAIR"]


def test_paths_of_a_datalist_do_not_depend_on_the_current_folder(datalist, monkeypatch):
    monkeypatch.chdir(datalist.parent / "scans")
    (case, *_) = list_cases(datalist_file="../datalist.json")
    monkeypatch.chdir("/")
    assert nib.load(case["image"]).shape == (4, 5, 6)


def test_an_empty_or_unknown_section_is_refused(datalist):
    with pytest.raises(InputError, match="lists no case under validation"):
        list_cases(datalist_file=datalist, section="validation")
    with pytest.raises(InputError, match="has no list 'train', expected one of training, test"):
        list_cases(datalist_file=datalist, section="train")


def test_bare_paths_in_a_datalist_are_images(tmp_path):
    save(tmp_path / "a.nii.gz")
    file = save_json(tmp_path / "list.json", {"test": ["a.nii.gz"]})
    assert names(list_cases(datalist_file=file)) == ["a"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "is no valid JSON"),
        ('"a.nii"', "holds str, expected a list of cases"),
        ("[]", "lists no case"),
        ("[{}]", r"item 0 of .* is \{\}, expected"),
        ('[{"image": 3}]', "has an image 3, expected a path"),
        ('[{"image": "gone.nii"}]', r"gone\.nii does not exist"),
    ],
)
def test_a_malformed_datalist_is_refused(tmp_path, text, sentence):
    file = tmp_path / "cases.json"
    file.write_text(text)
    with pytest.raises(InputError, match=sentence):
        list_cases(datalist_file=file)


def test_a_missing_datalist_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cases\.json cannot be read \(No such file"):
        list_cases(datalist_file=tmp_path / "cases.json")


def test_a_required_key_that_is_missing_is_named(datalist):
    with pytest.raises(InputError, match=r"the case of .*s0_FLAIR\.nii\.gz in .* has no label"):
        list_cases(datalist_file=datalist, require=("label",))


def test_a_wrong_number_of_images_is_refused(tmp_path):
    save(tmp_path / "a_FLAIR.nii.gz")
    save(tmp_path / "a_T1.nii.gz")
    file = save_json(tmp_path / "cases.json", [{"image": ["a_FLAIR.nii.gz", "a_T1.nii.gz"]}])
    with pytest.raises(InputError, match=r"a_FLAIR\.nii\.gz has 2 images, expected 1 \(FLAIR\)"):
        list_cases(datalist_file=file)
    assert len(list_cases(datalist_file=file, sequences=("FLAIR", "T1"))[0]["image"]) == 2


# healthy


@pytest.fixture
def people(tmp_path):
    """Writes a datalist: section -> what each of its cases says of health, "unsaid" for nothing."""

    def make(**sections):
        content = {}
        for section, said in sections.items():
            content[section] = []
            for number, healthy in enumerate(said):
                image = save(tmp_path / f"{section}{number}_FLAIR.nii.gz")
                content[section].append({"image": image.name} | ({} if healthy == "unsaid" else {"healthy": healthy}))
        return save_json(tmp_path / "people.json", content)

    return make


def test_only_cases_that_are_said_to_be_healthy_are_taken(people, caplog):
    caplog.set_level(logging.INFO)
    file = people(training=[True, False, "unsaid", None, True])
    cases = list_cases(datalist_file=file, section="training", healthy=True)
    assert names(cases) == ["training0_FLAIR", "training4_FLAIR"]
    assert "3 of 5 cases left out, not said to be healthy" in caplog.text
    others = list_cases(datalist_file=file, section="training", healthy=False)
    assert names(others) == ["training1_FLAIR", "training2_FLAIR", "training3_FLAIR"]
    assert len(list_cases(datalist_file=file, section="training")) == 5


def test_where_nobody_is_said_to_be_healthy_all_are_taken_and_that_is_said(people, caplog):
    caplog.set_level(logging.INFO)
    cases = list_cases(datalist_file=people(training=["unsaid", None]), section="training", healthy=True)
    assert len(cases) == 2
    assert "says of nobody whether they are healthy: all 2 cases are taken" in caplog.text


@pytest.mark.parametrize("said", [{"training": [False, "unsaid"]}, {"training": ["unsaid"], "validation": [True]}])
def test_a_section_without_a_healthy_case_is_refused_where_the_file_speaks_of_health(people, said):
    with pytest.raises(InputError, match=r'people\.json has no case with "healthy": true among its \d under training'):
        list_cases(datalist_file=people(**said), section="training", healthy=True)
    with pytest.raises(InputError, match='no case without "healthy": true among its 1, expected one'):
        list_cases(datalist_file=people(training=[True]), healthy=False)


@pytest.mark.parametrize("said", ["false", "true", 1, 0, [True]])
def test_healthy_is_true_or_false_and_no_text(people, said):
    with pytest.raises(InputError, match=r"item 1 of .*people\.json has healthy .*, expected true or false"):
        list_cases(datalist_file=people(training=[True, said]))


def test_a_healthy_case_needs_no_label_where_the_others_need_one(people, caplog):
    caplog.set_level(logging.INFO)
    file = people(training=[True, False, True])
    content = json.loads(file.read_text())
    for case in content["training"][1:]:
        case["label"] = case["image"]
    save_json(file, content)
    cases = list_cases(datalist_file=file, section="training", require=["label"])
    assert names(cases) == ["training1_FLAIR", "training2_FLAIR"]
    assert "1 healthy cases without label left out" in caplog.text
    with pytest.raises(InputError, match="has no label for any of its 2 cases, all healthy"):
        list_cases(datalist_file=people(training=[True, True]), require=["label"])


# headers


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((8, 9), r"has shape \(8, 9\), expected a 3-D image"),
        ((8, 9, 1), r"has shape \(8, 9, 1\), expected a 3-D image"),
        ((4, 5, 6, 3), r"has shape \(4, 5, 6, 3\), so several volumes"),
    ],
)
def test_what_is_no_single_volume_is_refused(tmp_path, shape, sentence):
    save(tmp_path / "a.nii.gz", shape)
    with pytest.raises(InputError, match=sentence):
        list_cases(tmp_path)


def test_a_4d_file_with_one_volume_is_taken(tmp_path):
    save(tmp_path / "a.nii.gz", (4, 5, 6, 1))
    assert names(list_cases(tmp_path)) == ["a"]


def test_text_and_nothing_named_nii_gz_are_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_text("hello")
    with pytest.raises(InputError, match=r"a\.nii\.gz cannot be read as NIfTI"):
        list_cases(tmp_path)
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.nii\.gz cannot be read as NIfTI"):
        list_cases(tmp_path)


def test_an_affine_without_inverse_is_refused(tmp_path):
    image = nib.Nifti1Image(np.ones((4, 5, 6), dtype=np.float32), None)
    image.header.set_sform(np.diag([1.0, 0, 1, 1]), code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="expected a finite one that can be inverted"):
        list_cases(tmp_path)


def test_a_file_without_orientation_is_warned_of(tmp_path, caplog):
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), dtype=np.float32), None), tmp_path / "a.nii.gz")
    list_cases(tmp_path)
    assert "does not say how it is oriented" in caplog.text


@pytest.mark.parametrize("companion", ["a_brainmask.nii.gz", "a_lesion.nii.gz"])
def test_image_and_mask_on_different_grids_are_refused(tmp_path, companion):
    save(tmp_path / "a_FLAIR.nii.gz")
    save(tmp_path / companion, shape=(4, 5, 7))
    with pytest.raises(InputError, match=r"have shape \(4, 5, 7\) against \(4, 5, 6\), expected one grid"):
        list_cases(tmp_path)
    shifted = AFFINE.copy()
    shifted[0, 3] += 2
    save(tmp_path / companion, affine=shifted)
    with pytest.raises(InputError, match="have affines that differ by up to 2 mm"):
        list_cases(tmp_path)


def test_a_required_map_is_checked_too(tmp_path):
    save(tmp_path / "a.nii.gz")
    save(tmp_path / "t.nii.gz", shape=(3, 3, 3))
    file = save_json(tmp_path / "cases.json", [{"image": "a.nii.gz", "tissues": "t.nii.gz"}])
    assert len(list_cases(datalist_file=file)) == 1
    with pytest.raises(InputError, match=r"t\.nii\.gz and .* expected one grid"):
        list_cases(datalist_file=file, require=("tissues",))


# splits


def scans(subjects, per_subject=2):
    return [{"image": f"/d/{s}_{i}.nii.gz", "subject": s} for s in subjects for i in range(per_subject)]


def test_a_datalist_is_read_once_and_so_are_the_headers_of_its_files(tmp_path, monkeypatch):
    items = [{"image": [f"{name}_T1w.nii", f"{name}_FLAIR.nii"], "label": f"{name}_lesion.nii"} for name in "abc"]
    for path in (path for item in items for path in (*item["image"], item["label"])):
        save(tmp_path / path)
    content = {"sequences": ["T1w", "FLAIR"], "note": ["by hand"], "training": items[:2], "test": items[2:]}
    datalist = Datalist(save_json(tmp_path / "cases.json", content))
    assert datalist.names == ("training", "test")
    assert datalist.header == {"sequences": ["T1w", "FLAIR"], "note": ["by hand"]}
    opened = []
    monkeypatch.setattr("common.data.cases.open_scan", lambda path: opened.append(path) or open_scan(path))
    assert [case["name"] for case in datalist.cases(["T1w", "FLAIR"], "training")] == ["a_T1w", "b_T1w"]
    assert len(opened) == len(set(opened)) == 6
    (tmp_path / "cases.json").unlink()
    assert [case["name"] for case in datalist.cases(["FLAIR"], "training")] == ["a_FLAIR", "b_FLAIR"]
    assert len(opened) == 6
    assert len(datalist.cases(["FLAIR"])) == 3
    assert len(opened) == 8  # FLAIR and label of the third


def test_a_split_keeps_subjects_together_and_follows_the_fractions():
    cases = scans([f"s{i:02d}" for i in range(10)], per_subject=3)
    parts = split_by_subject(cases, {"training": 0.7, "validation": 0.2, "test": 0.1}, seed=0)
    assert {part: len(items) for part, items in parts.items()} == {"training": 21, "validation": 6, "test": 3}
    check_splits(**parts)
    assert sorted(case["image"] for items in parts.values() for case in items) == [case["image"] for case in cases]


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_the_cases():
    cases = scans([f"s{i:02d}" for i in range(10)])
    parts = split_by_subject(cases, {"a": 0.5, "b": 0.5}, seed=3)
    again = split_by_subject(cases[::-1], {"a": 0.5, "b": 0.5}, seed=3)
    assert {subject_of(c) for c in parts["a"]} == {subject_of(c) for c in again["a"]}
    assert parts != split_by_subject(cases, {"a": 0.5, "b": 0.5}, seed=4)


def test_every_part_of_a_split_gets_a_subject_if_there_are_enough():
    # 0.9, 0.05 and 0.05 of 3 subjects: one each
    parts = split_by_subject(scans("abc"), {"training": 0.9, "validation": 0.05, "test": 0.05}, seed=0)
    assert [len(items) for items in parts.values()] == [2, 2, 2]
    with pytest.raises(InputError, match="2 subjects cannot fill training, validation, test"):
        split_by_subject(scans("ab"), {"training": 0.9, "validation": 0.05, "test": 0.05}, seed=0)


def test_processes_share_out_the_cases_and_leave_none(monkeypatch):
    monkeypatch.setattr("common.data.splits.idist.get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("common.data.splits.idist.get_rank", lambda rank=rank: rank)
        shares.append([case["name"] for case in share_of_process([{"name": name} for name in "abcde"])])
    assert shares == [["a", "c", "e"], ["b", "d"]]


def test_fractions_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="sum 1"):
        split_by_subject(scans("ab"), {"training": 0.7, "validation": 0.2}, seed=0)


def test_a_subject_in_two_parts_is_refused():
    with pytest.raises(InputError, match="subject b is in the training and in the test set"):
        check_splits(training=scans("ab"), test=scans("bc"))


def test_one_file_under_two_subjects_in_two_parts_is_refused(tmp_path):
    file = save(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to(file)
    training = [{"image": str(file), "subject": "a"}]
    test = [{"image": str(tmp_path / "b.nii.gz"), "subject": "b"}]
    with pytest.raises(InputError, match=r"file .*a\.nii\.gz is in the training and in the test set"):
        check_splits(training=training, test=test)


def test_an_empty_validation_set_is_refused():
    with pytest.raises(InputError, match="the validation set is empty"):
        check_splits(training=scans("ab"), validation=[])


def test_a_written_datalist_is_read_back_and_may_be_moved_with_its_scans(tmp_path):
    for name in "abcd":
        save(tmp_path / "study" / "scans" / f"{name}_FLAIR.nii.gz")
        save(tmp_path / "study" / "scans" / f"{name}_lesion.nii.gz")
    cases = list_cases(tmp_path / "study" / "scans")
    write_datalist(tmp_path / "study" / "splits.json", {"training": cases[:3], "validation": cases[3:]})
    assert list_cases(datalist_file=tmp_path / "study" / "splits.json", section="training") == cases[:3]
    (tmp_path / "study").rename(tmp_path / "moved")
    (case,) = list_cases(datalist_file=tmp_path / "moved" / "splits.json", section="validation")
    assert case["label"] == str(tmp_path / "moved" / "scans" / "d_lesion.nii.gz")
    assert not list((tmp_path / "moved").glob(".*"))  # the temporary file is gone


# datasets


@pytest.fixture
def good_and_bad(tmp_path):
    save(tmp_path / "good.nii.gz")
    save(tmp_path / "zero.nii.gz", value=0)
    return [{"image": str(tmp_path / f"{name}.nii.gz"), "name": name} for name in ("zero", "good")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_with_keep_going_a_failure_takes_the_place_of_its_case(good_and_bad, num_workers):
    dataset = ScanDataset(good_and_bad, Compose([LoadScand("image")]), keep_going=True)
    first, second = DataLoader(dataset, batch_size=1, num_workers=num_workers)
    assert first == {
        "failure": [f"{good_and_bad[0]['image']} is zero everywhere, expected a voxel of another value"],
        "name": ["zero"],
    }
    assert second["image"].shape == (1, 1, 4, 5, 6)
    assert second["name"] == ["good"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_keep_going_the_sentence_is_raised(good_and_bad, num_workers):
    dataset = ScanDataset(good_and_bad, Compose([LoadScand("image")]))
    with pytest.raises(InputError) as caught:
        list(DataLoader(dataset, batch_size=1, num_workers=num_workers))
    assert str(caught.value) == f"{good_and_bad[0]['image']} is zero everywhere, expected a voxel of another value"


def test_keep_going_does_not_hide_an_error_of_the_program(good_and_bad):
    dataset = ScanDataset(good_and_bad, lambda item: item["no such key"], keep_going=True)
    with pytest.raises(RuntimeError) as caught:
        dataset[0]
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_file_called_by_its_sequence_alone_is_of_the_subject_that_its_folder_names():
    images = ("/data/07/FLAIR.nii.gz", "/data/08/flair.nii", "/data/x/07_FLAIR.nii")
    assert [subject_of({"image": image}) for image in images] == ["07", "08", "07"]


# several sequences, several data sets


def test_null_stands_for_a_sequence_that_may_be_missing(tmp_path):
    for file in ("a_T1.nii.gz", "b_FLAIR.nii.gz"):
        save(tmp_path / file)
    cases = save_json(tmp_path / "cases.json", [{"image": ["a_T1.nii.gz", None]}, {"image": [None, "b_FLAIR.nii.gz"]}])
    first, second = list_cases(datalist_file=cases, sequences=["T1w", "FLAIR"], optional_sequences=["T1w", "FLAIR"])
    assert first["image"] == [str(tmp_path / "a_T1.nii.gz"), None]
    assert (second["name"], second["subject"]) == ("b_FLAIR", "b")  # of the image that is there
    write_datalist(tmp_path / "again.json", {"test": [first, second]})
    again = json.loads((tmp_path / "again.json").read_text())["test"]
    assert [case["image"] for case in again] == [["a_T1.nii.gz", None], [None, "b_FLAIR.nii.gz"]]


@pytest.mark.parametrize(
    ("image", "optional", "sentence"),
    [
        (["a.nii.gz", None], [], r"a.nii.gz in .*cases.json has no FLAIR, expected its path$"),
        (["a.nii.gz", None], ["T1w"], r"has no FLAIR, expected its path \(only T1w may be null\)"),
        ([None, None], ["T1w", "FLAIR"], r"has an image \[None, None\], expected a path or a list of paths"),
        (["a.nii.gz"], ["T1w", "FLAIR"], r"has 1 images, expected 2 \(T1w, FLAIR\)"),
    ],
)
def test_a_sequence_that_is_needed_and_missing_is_named(tmp_path, image, optional, sentence):
    save(tmp_path / "a.nii.gz")
    cases = save_json(tmp_path / "cases.json", [{"image": image}])
    with pytest.raises(InputError, match=sentence):
        list_cases(datalist_file=cases, sequences=["T1w", "FLAIR"], optional_sequences=optional)


def test_of_the_sequences_that_a_datalist_names_the_wanted_ones_are_taken(tmp_path, caplog):
    for file in ("a_T1.nii.gz", "a_FLAIR.nii.gz", "b_T1.nii.gz", "c_FLAIR.nii.gz"):
        save(tmp_path / file)
    images = [["a_T1.nii.gz", "a_FLAIR.nii.gz"], ["b_T1.nii.gz", None], [None, "c_FLAIR.nii.gz"]]
    content = {"sequences": ["T1w", "FLAIR"], "training": [{"image": image} for image in images]}
    cases = save_json(tmp_path / "cases.json", content)

    def taken(*sequences, **options):
        found = list_cases(datalist_file=cases, sequences=sequences, **options)
        return [[p and p.rpartition("/")[2] for p in np.atleast_1d(case["image"])] for case in found]

    caplog.set_level("INFO")
    assert taken("FLAIR") == [["a_FLAIR.nii.gz"], ["c_FLAIR.nii.gz"]]
    assert "1 cases without FLAIR left out" in caplog.text
    assert taken("T1") == [["a_T1.nii.gz"], ["b_T1.nii.gz"]]
    assert taken("FLAIR", "T1w") == [["a_FLAIR.nii.gz", "a_T1.nii.gz"]]
    assert len(taken("T1w", "FLAIR", optional_sequences=["T1w", "FLAIR"])) == 3
    assert taken("T2w", "FLAIR", optional_sequences=["T2w"])[0] == [None, "a_FLAIR.nii.gz"]
    with pytest.raises(InputError, match="lists images of T1w, FLAIR, expected T2w among them"):
        taken("T2w")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"sequences": "T1w", "test": [{"image": "a.nii.gz"}]}, "has sequences T1w, expected a list of names"),
        ({"sequences": ["T1w"], "test": [{"image": ["a.nii.gz", "b.nii.gz"]}]}, r"expected 1 images \(T1w\)"),
        (
            {"sequences": ["T1w", "FLAIR"], "test": [{"image": ["a.nii.gz", None]}]},
            "has no case with FLAIR among its 1",
        ),
    ],
)
def test_sequences_of_a_datalist_that_make_no_sense_are_refused(tmp_path, content, sentence):
    cases = save_json(tmp_path / "cases.json", content)
    with pytest.raises(InputError, match=sentence):
        list_cases(datalist_file=cases, sequences=["FLAIR" if len(content["sequences"]) == 2 else "T1w"])


def test_sequences_on_different_grids_are_refused(tmp_path):
    save(tmp_path / "a_T1.nii.gz")
    save(tmp_path / "a_FLAIR.nii.gz", affine=AFFINE @ np.diag([1, 1, 1.1, 1]))
    with pytest.raises(InputError, match=r"a_FLAIR.nii.gz and .*a_T1.nii.gz have affines that differ"):
        list_cases(tmp_path, sequences=["T1w", "FLAIR"])


def test_cases_of_one_data_set_are_kept(tmp_path):
    for file in "abc":
        save(tmp_path / f"{file}.nii.gz")
    items = [{"image": f"{file}.nii.gz", "dataset": of} for file, of in (("a", "one"), ("b", "two"))]
    cases = save_json(tmp_path / "cases.json", [*items, {"image": "c.nii.gz"}])
    assert names(list_cases(datalist_file=cases, dataset_name="two")) == ["b"]
    with pytest.raises(InputError, match="no case of the data set 'three' among its 3, found one, two"):
        list_cases(datalist_file=cases, dataset_name="three")


class Slow(Transform):
    """Ten times a number, after a while; 0 is broken."""

    def __call__(self, data: int) -> int:
        if data == 0:
            raise InputError("the first one is broken")
        time.sleep(0.2)
        return 10 * data


def test_no_thread_of_a_cache_outlives_its_failure():
    """Else the end of the program may find one in the middle of something, and crash."""
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError) as error:
        CachedScans(list(range(6)), Slow(), num_workers=2)
    assert "the first one is broken" in str(find_input_error(error.value))
    started = set(threading.enumerate()) - before
    assert [thread.name for thread in started if thread.name.startswith(("ThreadPool", "Thread-"))] == []


def test_a_cache_has_the_cases_in_their_order():
    assert list(CachedScans([3, 1, 2], Slow(), num_workers=2)) == [30, 10, 20]


class Drawn(Slow, RandomizableTransform):
    """As slow, and random."""


def test_steps_that_are_shared_are_cached_as_the_others_are():
    """MONAI caches nothing of a Compose within another."""
    shared = Compose([Slow(), Slow()])
    cached = CachedScans([1], Compose([shared, Slow(), Drawn(), Slow()]))
    assert cached._cache == [1000]
    assert cached[0] == 100_000


def test_steps_that_are_shared_change_nothing_of_what_is_drawn():
    alone, shared = (
        CachedScans([torch.zeros(1, 4, 4)], Compose([first, RandGaussianNoise(1)])).transform.set_random_state(0)
        for first in (Identity(), Compose([Identity()]))
    )
    assert torch.equal(alone(torch.zeros(1, 4, 4)), shared(torch.zeros(1, 4, 4)))


def test_slices_with_little_brain_are_left_out():
    volume = torch.zeros(1, 10, 10, 5)
    volume[:, 2:8, 2:8, 1:4] = 0.5
    volume[:, 0, 0, 4] = 0.5  # one pixel of a hundred is not more than 1 %
    slices = BrainSlices([{"image": volume}], min_area=0.01)
    assert len(slices) == 3
    assert slices[0]["image"].shape == (1, 10, 10)
    assert len(BrainSlices([{"image": volume}], every=2)) == 2
    assert BrainSlices([{"image": volume}, {"image": volume}], every=2).volumes.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="no slice with more than 1% brain in 1 volumes"):
        BrainSlices([{"image": torch.zeros(1, 4, 4, 2)}])


# names as other tools give them


def test_visits_of_one_person_are_one_subject(tmp_path, caplog):
    for name in ("patient01_study1", "patient01_study2", "patient02_ses-a", "patient02_baseline", "patient02_20190131"):
        save(tmp_path / f"{name}_FLAIR.nii.gz")
    cases = list_cases(tmp_path)
    assert [case["subject"] for case in cases] == ["patient01"] * 2 + ["patient02"] * 3
    assert len({case["name"] for case in cases}) == 5
    assert not caplog.text


def test_subjects_do_not_depend_on_sequence_and_visit_in_a_file_name():
    images = {
        "a/P14_T1_FLAIR.nii.gz": "P14",  # a visit called T1
        "a/p1_v2_T1w.nii.gz": "p1",
        "a/MS01v2_FLAIR.nii.gz": "MS01",
        "a/07/visit2/FLAIR.nii.gz": "07",
        "a/07_m12/T1.nii": "07",
        "a/scan_0001.nii.gz": "scan_0001",
        "a/study1_FLAIR.nii.gz": "study1",  # nothing is left without it
        "a/IXI002-Guys-0828-T1.nii.gz": "IXI002-Guys-0828",
        "bids/sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz": "sub-01",
    }
    assert {image: subject_of({"image": image}) for image in images} == images
    assert subject_of({"image": ["a/p_1_0000.nii.gz", "a/p_1_0001.nii.gz"]}) == "p_1"


def test_numbered_names_that_may_be_visits_are_warned_of(tmp_path, caplog):
    for name in ("training01_01", "training01_02", "training02_01", "patient_1", "patient_2", "MS3a", "MS3b"):
        save(tmp_path / f"{name}_flair.nii.gz")
    assert len({case["subject"] for case in list_cases(tmp_path)}) == 7
    assert "MS3a, MS3b are taken for people of their own" in caplog.text
    assert "; 1 others likewise" in caplog.text  # training01_01 and _02
    assert "patient_1" not in caplog.text


def test_a_folder_of_nnunet_is_read_by_its_description_or_refused(tmp_path):
    folder = tmp_path / "imagesTr"
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        save(folder / f"{name}.nii.gz")
    save(tmp_path / "labelsTr" / "a.nii.gz")
    with pytest.raises(InputError, match="files that end in _0000 and _0001, the channels of nnU-Net, expected"):
        list_cases(folder)
    save_json(tmp_path / "dataset.json", {"channel_names": {"0": "T1", "1": "FLAIR"}})
    first, second = list_cases(folder)
    assert (first["image"], first["subject"]) == (str(folder / "a_0001.nii.gz"), "a")
    assert first["label"] == str(tmp_path / "labelsTr" / "a.nii.gz")
    assert second == {"image": str(folder / "b_0001.nii.gz"), "subject": "b", "name": "b_0001"}
    both = list_cases(folder, sequences=["FLAIR", "T1w"])
    assert both[0]["image"] == [str(folder / "a_0001.nii.gz"), str(folder / "a_0000.nii.gz")]
    with pytest.raises(InputError, match=r"dataset\.json has the channels T1, FLAIR, expected T2w"):
        list_cases(folder, sequences=["T2w"])
    (folder / "b_0001.nii.gz").unlink()
    with pytest.raises(InputError, match="b_0001 does not exist, expected FLAIR there"):
        list_cases(folder)


def test_channels_are_not_people_in_a_datalist_either(tmp_path):
    images = [str(save(tmp_path / f"a_000{channel}.nii.gz")) for channel in (0, 1)]
    with pytest.raises(InputError, match=r"a_0000\.nii\.gz and .*a_0001\.nii\.gz as two cases, by their names"):
        list_cases(datalist_file=save_json(tmp_path / "c.json", [{"image": image} for image in images]))
    told = {"sequences": ["T1w", "FLAIR"], "test": [{"image": images}]}
    (case,) = list_cases(datalist_file=save_json(tmp_path / "c.json", told))
    assert case["image"] == images[1]
    named = [{"image": image, "subject": image} for image in images]
    assert len(list_cases(datalist_file=save_json(tmp_path / "c.json", named))) == 2


def test_the_mask_beside_a_scan_of_fmriprep_is_its_mask(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    for space in ("", "space-MNI_"):
        save(anat / f"sub-01_{space}desc-preproc_T1w.nii.gz")
        save(anat / f"sub-01_{space}desc-brain_mask.nii.gz")
    native, template = list_cases(tmp_path, sequences=["T1w"])
    assert native["brain_mask"] == str(anat / "sub-01_desc-brain_mask.nii.gz")
    assert template["brain_mask"] == str(anat / "sub-01_space-MNI_desc-brain_mask.nii.gz")
    assert native["subject"] == template["subject"] == "sub-01"


def test_endings_in_upper_case_and_pairs_of_files_are_found(tmp_path):
    save(tmp_path / "a.nii.gz").rename(tmp_path / "a_FLAIR.NII.GZ")
    save(tmp_path / "a.nii.gz").rename(tmp_path / "a_BrainMask.NII.GZ")
    nib.save(nib.Nifti1Pair(np.ones((4, 5, 6), dtype=np.float32), AFFINE), tmp_path / "b_FLAIR.img")
    first, second = list_cases(tmp_path)
    assert first["brain_mask"] == str(tmp_path / "a_BrainMask.NII.GZ")
    assert second["image"] == str(tmp_path / "b_FLAIR.hdr")


# values of a datalist


def test_a_mask_in_a_list_is_a_mask_and_two_are_refused(tmp_path):
    image, mask = str(save(tmp_path / "a.nii.gz")), str(save(tmp_path / "m.nii.gz"))
    (case,) = list_cases(datalist_file=save_json(tmp_path / "c.json", [{"image": image, "brain_mask": ["m.nii.gz"]}]))
    assert case["brain_mask"] == mask
    for wrong in (["m.nii.gz", "m.nii.gz"], 5, True, {"a": 1}):
        for key in ("brain_mask", "label"):
            with pytest.raises(InputError, match=rf"item 0 of .*c\.json has {key} .*, expected one path"):
                list_cases(datalist_file=save_json(tmp_path / "c.json", [{"image": image, key: wrong}]))


@pytest.mark.parametrize("nothing", [None, "n/a", "N/A", ""])
def test_what_is_not_there_may_be_said_in_a_datalist(tmp_path, nothing):
    image = str(save(tmp_path / "a.nii.gz"))
    item = {"image": image, "label": nothing, "brain_mask": nothing}
    (case,) = list_cases(datalist_file=save_json(tmp_path / "c.json", [item]))
    assert set(case) == {"image", "subject", "name"}


def test_a_datalist_may_begin_with_a_byte_order_mark(tmp_path):
    save(tmp_path / "a.nii.gz")
    (tmp_path / "c.json").write_text(json.dumps([{"image": "a.nii.gz"}]), encoding="utf-8-sig")
    assert len(list_cases(datalist_file=tmp_path / "c.json")) == 1


def test_columns_that_no_bundle_asks_for_do_no_harm(tmp_path):
    save(tmp_path / "a.nii.gz")
    item = {"image": "a.nii.gz", "score": "3.5", "age": 41, "pred": 5, "prob": "x", "failure": "x", "weight": 70}
    (case,) = list_cases(datalist_file=save_json(tmp_path / "c.json", [item]))
    assert set(case) == {"image", "subject", "name", "score", "age"}


@pytest.mark.parametrize("names", [["FLAIR", "flair"], ["T1w", "FLAIR", "T1"]])
def test_a_sequence_that_is_named_twice_is_refused(tmp_path, names):
    save(tmp_path / "a.nii.gz")
    content = {"sequences": names, "test": [{"image": ["a.nii.gz"] * len(names)}]}
    with pytest.raises(InputError, match=r"c\.json has sequences .*, expected (FLAIR|T1w) once"):
        list_cases(datalist_file=save_json(tmp_path / "c.json", content))
    with pytest.raises(InputError, match=r"sequences is .*, expected (FLAIR|T1w) once"):
        list_cases(tmp_path, sequences=names)


@pytest.mark.parametrize("names", [5, [], ["", "T1w"], [5]])
def test_sequences_that_are_no_names_are_refused(tmp_path, names):
    with pytest.raises(InputError, match=r"sequences is .*, expected a list of names"):
        list_cases(tmp_path, sequences=names)


@pytest.mark.parametrize("image", ["~nobody-here/a.nii.gz", "a\0b.nii.gz", "x" * 300 + ".nii.gz", 5, {"a": 1}, [], [5]])
def test_images_that_cannot_be_files_are_one_sentence(tmp_path, image):
    with pytest.raises(InputError):
        list_cases(datalist_file=save_json(tmp_path / "c.json", [{"image": image}]))


def test_a_section_without_a_lesion_is_refused_before_anything_is_learned(tmp_path):
    empty, full = str(save(tmp_path / "e.nii.gz", value=0)), str(save(tmp_path / "f.nii.gz"))
    items = [{"image": full, "label": empty}, {"image": str(save(tmp_path / "g.nii.gz"))}]
    path = save_json(tmp_path / "c.json", {"validation": items})
    with pytest.raises(InputError, match=r"none of the 1 labels of the validation section of .*c\.json has a lesion"):
        list_cases(datalist_file=path, section="validation", lesions=True)
    assert len(list_cases(datalist_file=path, section="validation")) == 2
    items[1]["label"] = full
    assert len(list_cases(datalist_file=save_json(path, {"validation": items}), lesions=True)) == 2
