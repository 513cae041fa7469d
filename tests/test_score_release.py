"""Real scans scored: what a user may list, what is scored how, and the figures of a whole run on small phantoms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_tools import BUNDLES, load_script, make_head, save_nifti

from catalog import describe, descriptions
from common.errors import InputError
from running.machine import machine
from study.real_scans import (
    BEST_DICE,
    CALLED_LESION,
    GAIN,
    Scoring,
    pair_scores,
    score_files,
    summary_of,
    write_evidence,
)
from study.scan_sets import read_real_scans

main = load_script("score_release").main

SHAPE = (24, 28, 20)
AFFINE = np.array([[6.5, 0, 0, -78], [0, 6.5, 0, -109], [0, 0, 6.5, -57], [0, 0, 0, 1]])  # where the template is
COARSE = {"spacing": [6.0, 6.0, 6.0]}
SMALL = {"spacing": [8.0, 8.0, 8.0], "shape": [24, 24, 24], "align": False}  # looking for the template takes its time
OPTIONS = {f"{bundle.name}/inference": COARSE for bundle in BUNDLES} | {
    "sae_segmentation/inference": {**COARSE, "align": False},
    "deepatlas_joint/inference": SMALL,
    "deepatlas_joint/inference_registration": SMALL,
    "sae_segmentation/train": {**COARSE, "align": False, "patch_size": [16, 16, 16]},
    "sae_segmentation/adapt": {"max_epochs": 1, "val_interval": 1},
}


def save_scans(folder: Path) -> Path:
    """Two patients with everything, two healthy subjects with T1w and tissues; paths relative to the JSON."""
    sets = []
    for name, items in {
        "patients": ("T1w", "FLAIR", "brain_mask", "lesion", "tissues"),
        "healthy": ("T1w", "tissues"),
    }.items():
        cases = []
        for i in range(2):
            head = make_head(i, SHAPE, AFFINE)
            lesion = head.label * head.brain
            tissues = np.digitize(head.image, [1, 70, 100]).astype(np.uint8)
            tissues[lesion > 0] = 4 if "lesion" in items else 3
            arrays = {
                "T1w": head.image,
                "FLAIR": head.image,
                "brain_mask": head.brain,
                "lesion": lesion,
                "tissues": tissues,
            }
            for item in items:
                save_nifti(folder / name / f"{i}_{item}.nii.gz", arrays[item], head.affine)
            cases.append({"subject": f"{name}{i}"} | {item: f"{name}/{i}_{item}.nii.gz" for item in items})
        described = {"name": name, "title": f"The {name}", "note": "Two of them.", "adapt": name == "healthy"}
        sets.append(described | {"cases": cases})
    path = folder / "real.json"
    path.write_text(json.dumps({"sets": sets}))
    return path


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Path:
    return save_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture
def rewrite(listed, tmp_path) -> Callable[[Callable[[dict], object]], Path]:
    """Another JSON beside the scans, with a change in it."""

    def write(change: Callable[[dict], object]) -> Path:
        content = json.loads(listed.read_text())
        change(content)
        path = listed.with_name(f"{tmp_path.name}.json")
        path.write_text(json.dumps(content))
        return path

    return write


# what a user may list


def test_scans_are_read_with_what_they_have(listed):
    patients, healthy = read_real_scans(listed).sets
    assert patients.sequences == ["T1w", "FLAIR"]
    assert healthy.sequences == ["T1w"]
    assert (patients.shows_lesions, healthy.shows_lesions) == (True, False)
    assert Path(healthy.references["healthy1"]["tissues"]) == listed.parent / "healthy" / "1_tissues.nii.gz"
    # nothing that a prediction could learn the truth from
    assert set(patients.cases[0]) == {"subject", "image", "brain_mask"}
    fitting = {bundle: [scans.name for scans in read_real_scans(listed).sets_of(bundle)] for bundle in descriptions()}
    assert fitting == {
        "uad_autoencoder": ["patients"],
        "ace_multitask": ["patients", "healthy"],
        "sae_segmentation": ["patients", "healthy"],
        "deepatlas_joint": ["patients", "healthy"],
        "diffusion_recon_unet": ["patients"],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("sets"), "has no sets, expected sets, deepatlas_joint"),
        (lambda c: c.update(sets=[]), "has '\\[\\]', expected a list with one entry or more"),
        (lambda c: c.update(set=[]), "has 'set', expected sets"),
        (lambda c: c["sets"][0].pop("title"), "a set of .* has no title, expected name, title, note, cases"),
        (lambda c: c["sets"][0].update(adapt=1), "adapt of the set patients .* is 1, expected true or false"),
        (lambda c: c["sets"][0].update(name="a/b"), "has the name 'a/b', expected letters"),
        (lambda c: c["sets"][1].update(name="patients"), "has patients twice"),
        (lambda c: c["sets"][0]["cases"][0].pop("subject"), "a case of the set patients .* has no subject"),
        (lambda c: c["sets"][0]["cases"][0].update(Flair="x"), "has 'Flair', expected subject, T1w"),
        (lambda c: c["sets"][0]["cases"][1].pop("lesion"), "one has lesion and another has not"),
        (lambda c: c["sets"][0]["cases"][1].update(subject="patients0"), "has patients0 twice"),
        (lambda c: c["sets"][0]["cases"][1].update(T1w=3), "has 3, expected a path"),
        (lambda c: c["sets"][0]["cases"][1].update(lesion="no.nii.gz"), "no.nii.gz does not exist"),
        (
            lambda c: c["sets"][0]["cases"][1].update(lesion="patients/1_tissues.nii.gz"),
            "has the value 2, expected 0, 1",
        ),
        (
            lambda c: c["sets"][1].update(cases=[{"subject": "a", "tissues": "b"}]),
            "have no image, expected T1w or FLAIR",
        ),
        (
            lambda c: c.update(deepatlas_joint={"controls": {"without labels": "no.pt"}}),
            "no.pt in deepatlas_joint of .* does not exist",
        ),
        (
            lambda c: c.update(deepatlas_joint={"controls": ["no.pt"]}),
            r"controls of deepatlas_joint of .* is \['no.pt'\], expected weights of registrations by their titles",
        ),
        (
            lambda c: c.update(
                deepatlas_joint={
                    "labeled_scan": {"T1w": "patients/0_T1w.nii.gz", "tissues": "patients/0_tissues.nii.gz"}
                }
            ),
            "has the value 4, expected 0, 1, 2, 3 only",
        ),
    ],
)
def test_wrong_list_is_refused_by_one_sentence(rewrite, change, message):
    with pytest.raises(InputError, match=message):
        read_real_scans(rewrite(change))


def test_nothing_is_run_if_no_set_fits_one_of_the_bundles(rewrite, tmp_path, monkeypatch):
    monkeypatch.setattr("comparison.trial.open_configs", None)
    data = read_real_scans(rewrite(lambda content: content["sets"].pop(0)))
    with pytest.raises(InputError, match=r"fits diffusion_recon_unet, expected one whose cases have T1w, lesion"):
        write_evidence(
            Scoring(data, tmp_path / "out", BUNDLES[0].parent), ["ace_multitask", "diffusion_recon_unet"], tmp_path
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bundle": "unet"}, "bundle is 'unet', expected ace_multitask"),
        ({"registration_subjects": 1}, "registration_subjects is 1, expected 2 or more"),
        ({"real_data": "no.json"}, "no.json cannot be read"),
    ],
)
def test_wrong_arguments_are_refused(listed, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        main(**{"bundle": "all", "real_data": str(listed), "output_dir": str(tmp_path), **arguments})


# scores


def test_interval_needs_five_subjects():
    assert summary_of({"a": 0.25, "b": 0.75}) == {"mean": 0.5, "interval": None, "values": {"a": 0.25, "b": 0.75}}
    low, high = summary_of({str(i): i / 10 for i in range(5)})["interval"]
    assert 0 < low < 0.2 < high < 0.4
    pairs = {f"{fixed} from {moving}": 0.5 for fixed in "abcd" for moving in "abcd"}
    assert summary_of(pairs, lambda pair: pair[0])["interval"] is None


def save_masks(listed: Path, folder: Path, lesion_class: int) -> list[dict]:
    """Masks of the patients: their tissue map, with another value for its lesions, and these as a map."""
    cases = []
    for case in read_real_scans(listed).sets[0].cases:
        head = make_head(int(case["subject"][-1]), SHAPE, AFFINE)
        mask = np.digitize(head.image, [1, 70, 100]).astype(np.uint8)
        mask[(head.label > 0) & (head.brain > 0)] = lesion_class
        save_nifti(folder / f"{case['subject']}_seg.nii.gz", mask, AFFINE)
        save_nifti(folder / f"{case['subject']}_prob.nii.gz", (mask == 4).astype(np.float32), AFFINE)
        cases.append({"subject": case["subject"], "image": case["image"], "name": case["subject"]})
    return cases


CLASSES = {"0": "background", "1": "CSF", "2": "GM", "3": "WM"}


def test_lesions_are_left_open_where_masks_have_no_class_for_them(listed, tmp_path):
    cases = save_masks(listed, tmp_path, lesion_class=1)
    scores = score_files(cases, read_real_scans(listed).sets[0], tmp_path, CLASSES)
    assert scores == {
        f"Dice, {name}": {"patients0": 1.0, "patients1": 1.0} for name in ("mean of tissues", "CSF", "GM", "WM")
    }


def test_lesions_count_where_masks_have_a_class_for_them(listed, tmp_path):
    patients = read_real_scans(listed).sets[0]
    scores = score_files(save_masks(listed, tmp_path, lesion_class=4), patients, tmp_path, CLASSES | {"4": "lesion"})
    assert set(scores) == {
        *(f"Dice, {name}" for name in ("lesion", "mean of tissues", "CSF", "GM", "WM")),
        *("AUPRC, lesion", BEST_DICE, "lesion F1"),
    }
    assert all(value == 1 for values in scores.values() for value in values.values())
    scores = score_files(save_masks(listed, tmp_path, lesion_class=1), patients, tmp_path, CLASSES | {"4": "lesion"})
    assert max(scores["Dice, CSF"].values()) < 1  # what is lesion is no fluid
    assert set(scores["Dice, lesion"].values()) == {0.0}


# the whole


def run(listed: Path, bundles: Path, folder: Path, names: list[str]) -> dict[str, dict]:
    scoring = Scoring(read_real_scans(listed), folder / "out", bundles, options=OPTIONS, device="cpu")
    write_evidence(scoring, names, folder / "evidence")
    return {name: json.loads((folder / "evidence" / f"{name}.json").read_text())["real_scans"] for name in names}


def methods_of(table: dict) -> list[str]:
    return [row["method"] for row in table["rows"]]


def test_second_run_predicts_what_has_changed_and_nothing_else(random_bundles, tmp_path, monkeypatch):
    listed = save_scans(tmp_path)
    shutil.copytree(random_bundles / "uad_autoencoder", tmp_path / "bundles" / "uad_autoencoder")
    first = run(listed, tmp_path / "bundles", tmp_path, ["uad_autoencoder"])
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*_seg.nii.gz")}
    assert len(done) == 2 * 4
    with monkeypatch.context() as context:
        context.setattr("comparison.trial.open_configs", None)  # any step would fail
        context.setattr("study.real_scans.score_files", None)
        assert run(listed, tmp_path / "bundles", tmp_path, ["uad_autoencoder"]) == first
    # another layer
    config = tmp_path / "bundles" / "uad_autoencoder" / "configs" / "inference_threshold.json"
    config.write_text(config.read_text().replace('"median_mm": 3.0', '"median_mm": 9.0'))
    run(listed, tmp_path / "bundles", tmp_path, ["uad_autoencoder"])
    again = {path.parent.name for path, time in done.items() if path.stat().st_mtime_ns != time}
    assert again == {"inference_inference_threshold"}
    # a scan that was replaced under its name
    head = make_head(7, SHAPE, AFFINE)
    save_nifti(tmp_path / "patients" / "0_FLAIR.nii.gz", head.image, head.affine)
    run(listed, tmp_path / "bundles", tmp_path, ["uad_autoencoder"])
    assert all(path.stat().st_mtime_ns != time for path, time in done.items())


def test_undefined_score_of_a_pair_is_left_out():
    field = {"folds_percent": "2", "log_jacobian_sd": "0.5", "inverse_error_mm": "0.1"}
    rows = [
        {"subjects": "a from b", "dice": "0.5", "correlation": "", **field},
        {"subjects": "b from a", "dice": "0.7", "correlation": "0.9", **field},
    ]
    scores = pair_scores(rows)
    assert scores["correlation in the brain"] == {"b from a": 0.9}
    assert scores["Dice, mean of tissues"] == {"a from b": 0.5, "b from a": 0.7}
    assert pair_scores(rows[:1])["correlation in the brain"] == {}
    assert scores["inverse error, mm"] == {"a from b": 0.1, "b from a": 0.1}
    affine = [row | {"dice_affine": "0.4", "correlation_affine": "0.3"} for row in rows]
    assert pair_scores(affine, "_affine")["SD of log Jacobian"] == {"a from b": 0.0, "b from a": 0.0}


@pytest.mark.slow
def test_figures_of_all_bundles(random_bundles, listed, tmp_path):
    content = json.loads(listed.read_text())
    weights = random_bundles / "deepatlas_joint" / "models" / "registration.pt"
    scan = {"T1w": "healthy/0_T1w.nii.gz", "tissues": "healthy/0_tissues.nii.gz"}
    other_weights = tmp_path / "other.pt"
    state = torch.load(weights, weights_only=True)
    torch.save({name: value + 0.05 for name, value in state.items()}, other_weights)
    controls = {"a": str(weights), "b": str(other_weights)}
    content["deepatlas_joint"] = {"controls": controls, "labeled_scan": scan}
    path = listed.with_name("all.json")
    path.write_text(json.dumps(content))
    found = run(path, random_bundles, tmp_path, [*descriptions()])

    for bundle, figures in found.items():
        assert figures["command"] == f"python scripts/score_release.py {bundle} --real_data all.json"
        assert figures["machine"] == machine("cpu")
        assert (
            figures["version"] == json.loads((random_bundles / bundle / "configs/metadata.json").read_text())["version"]
        )
        for table in figures["sets"]:
            assert sum(row["shipped"] for row in table["rows"]) == 1
            assert any(row["baseline"] for row in table["rows"]) or (bundle, table["name"]) == (
                "ace_multitask",
                "healthy",
            )
            for row in table["rows"]:
                for score in row["scores"].values():
                    assert score["mean"] == pytest.approx(np.mean([*score["values"].values()]), abs=1e-4)
    assert [table["name"] for table in found["uad_autoencoder"]["sets"]] == ["patients"]
    not_adapted, adapted = (methods_of(table) for table in found["sae_segmentation"]["sets"])
    rows = describe("sae_segmentation").rows
    assert adapted == [row.title for row in rows]
    assert not_adapted == [row.title for row in rows if not row.adapted_by]
    assert [path.parts[-3] for path in (tmp_path / "out").glob("*/sae_segmentation/adapt")] == ["healthy"]
    patients, healthy = found["ace_multitask"]["sets"]
    assert {"Dice, GM", "Dice, lesion", "AUPRC, lesion"} <= set(patients["rows"][0]["scores"])
    plain = [
        row for row in found["uad_autoencoder"]["sets"][0]["rows"] if row["method"] == patients["rows"][1]["method"]
    ]
    assert plain == [patients["rows"][1]]  # one and the same prediction
    assert methods_of(healthy) == ["one network for all classes"]
    assert set(healthy["rows"][0]["scores"]) == {
        *(f"Dice, {name}" for name in ("mean of tissues", "CSF", "GM", "WM")),
        CALLED_LESION,
    }
    _, segmented, paired = found["deepatlas_joint"]["sets"]
    by_controls = [f"labels of one scan, propagated by {title}" for title in controls]
    assert methods_of(segmented) == [row.title for row in describe("deepatlas_joint").rows] + by_controls
    _, _, propagated, by_same, by_other = (row["scores"] for row in segmented["rows"])
    assert by_same == propagated != by_other
    assert paired["name"] == "healthy_pairs"
    assert methods_of(paired) == ["affine only", "a", "b", "joint training", "joint training, refined"]
    affine, control, other, joint, refined = paired["rows"]
    assert refined["scores"] != joint["scores"]
    gains = [row["scores"].pop(GAIN)["values"] for row in (affine, control, other)]
    assert control["scores"] == joint["scores"] != other["scores"]  # the same weights, and others
    assert set(gains[1].values()) == {0.0}
    first = next(iter(gains[2]))
    ours, others = (row["scores"]["Dice, mean of tissues"]["values"][first] for row in (joint, other))
    assert gains[2][first] == pytest.approx(ours - others, abs=2e-5)
    assert set(affine["scores"]["Dice, mean of tissues"]["values"]) == {
        "healthy0 from healthy1",
        "healthy1 from healthy0",
    }
    assert not list((tmp_path / "out").rglob("*_warp*"))
