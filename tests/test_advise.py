"""What is said of a datalist, method by method: verdicts, what is missing, measured costs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bundle_tools import load_script, make_head, save_nifti
from monai.transforms import Compose
from torch.utils.data import DataLoader

from catalog import bundle_names
from common.data import BrainSlices, CachedScans
from common.errors import InputError
from planning import report
from planning.advice import Advice, advise, read_data
from planning.cost import (
    WARMUP,
    InferenceCost,
    TrainingCost,
    _cached_bytes,
    _epoch_steps,
    measured,
    peak_memory_gib,
    time_steps,
)

main = load_script("advise").main
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
MASKS, PSEUDO = "train the U-Net on drawn masks", "train on healthy FLAIR and pseudo-labels of patients"
PAINTED, PATHOLOGY = "train on healthy scans and painted anomalies", "train on healthy scans and masks of one pathology"
JOINT, ACE = "train both networks, from one label map up", "train on data sets that label one thing each"


@pytest.fixture
def datalist(tmp_path):
    """Writes a datalist: section -> cases, each what it has beside images of the sequences, a number for its label."""

    def make(sections, sequences=("FLAIR",), label=None, affine=AFFINE, header=None):
        content = {"sequences": list(sequences)} | (header or {})
        for section, cases in sections.items():
            content[section] = []
            for number, case in enumerate(cases):
                name = f"{section}{number}"
                head = make_head(len(name) + number, shape=(30, 34, 24))
                images = [f"{name}_{sequence}.nii.gz" for sequence in sequences]
                for image in images:
                    save_nifti(tmp_path / image, head.image, affine)
                item = {"image": images, "subject": name, **case}
                if "label" in case:
                    item["label"] = f"{name}_label.nii.gz"
                    save_nifti(tmp_path / item["label"], head.label * np.uint8(case["label"]), affine)
                content[section].append(item)
        path = tmp_path / "cases.json"
        path.write_text(json.dumps(content))
        return path

    return make


def of(path: Path, bundle: str, way: str = "as shipped") -> Advice:
    (found,) = [item for item in advise(path, [bundle], measure=False) if item.way == way]
    return found


def test_without_labels_what_learns_from_masks_cannot_run_and_painting_can(datalist):
    healthy, patient = {"healthy": True}, {"healthy": False}
    path = datalist({"training": [healthy, patient], "validation": [healthy]}, ["T1w", "FLAIR"])
    assert of(path, "uad_autoencoder", MASKS).missing == (
        "training has no labeled case, expected 1 or more",
        "validation has no labeled case, expected 1 or more",
    )
    assert of(path, "uad_autoencoder", PSEUDO).missing == ("validation has no labeled case, expected 1 or more",)
    assert of(path, "diffusion_recon_unet", PAINTED).missing == ()
    assert of(path, "sae_segmentation", "train on unlabeled scans and the atlas").missing == ()
    assert of(path, "deepatlas_joint", JOINT).missing[0] == "validation has 1 case, expected 2 or more"
    assert {of(path, bundle).verdict for bundle in bundle_names()} == {"can run, see remarks"}


def test_one_label_is_enough_for_joint_training_if_validation_has_two(datalist):
    sections = {"training": [{"label": 3}, {}], "validation": [{"label": 3}, {"label": 3}]}
    found = of(datalist(sections, ["T1w"]), "deepatlas_joint", JOINT)
    assert found.missing == ()
    assert "train learns from 2 subjects, in the paper from 65" in found.remarks
    assert len(found.commands) == 4


def test_masks_in_both_sections_are_enough_for_the_unet(datalist):
    found = of(datalist({"training": [{"label": 1}], "validation": [{"label": 1}]}), "uad_autoencoder", MASKS)
    assert found.missing == ()
    assert "train learns from 1 labeled subject, in the paper from 15" in found.remarks


def test_cases_that_a_training_on_labels_refuses_are_counted(datalist):
    cases = {"training": [{"label": 1}, {}, {"healthy": True}], "validation": [{"label": 1}]}
    remarks = of(datalist(cases), "uad_autoencoder", MASKS).remarks
    assert any(
        remark.startswith("1 case of training without label must go into another datalist") for remark in remarks
    )


def test_without_a_healthy_person_stage_1_cannot_run(datalist):
    sick = {"healthy": False, "label": 1}
    path = datalist({"training": [sick], "validation": [sick]}, ["T1w", "FLAIR"])
    sentence = 'training has no case with "healthy": true, expected 1 or more'
    for bundle, way in (("uad_autoencoder", PSEUDO), ("diffusion_recon_unet", PAINTED)):
        assert sentence in of(path, bundle, way).missing


def test_where_health_is_not_spoken_of_everybody_counts_as_healthy(datalist):
    path = datalist({"training": [{"label": 1}], "validation": [{"label": 1}]}, ["T1w", "FLAIR"])
    found = of(path, "uad_autoencoder", PSEUDO)
    assert found.missing == ()
    assert any(remark.startswith("nobody is said to be healthy: everybody is taken for it") for remark in found.remarks)
    (missing,) = of(path, "diffusion_recon_unet", PATHOLOGY).missing
    assert missing.startswith("nobody is said to be healthy or not")


def test_a_missing_sequence_is_named_and_learned_where_any_will_do(datalist):
    path = datalist({"training": [{}], "validation": [{}]}, ["FLAIR"])
    (missing,) = set(of(path, "diffusion_recon_unet", PAINTED).missing)
    assert missing.endswith("lists images of FLAIR, expected T1w among them")
    assert of(path, "sae_segmentation").missing  # the shipped weights know T1w only
    found = of(path, "sae_segmentation", "fit to these scans (adapt.json)")
    assert found.missing == ()
    assert "the bundle's own sequence is T1w; here it learns FLAIR" in found.remarks
    assert all(command.endswith("--sequences '[\"FLAIR\"]'") for command in found.commands)
    assert of(path, "ace_multitask").missing == ()  # takes one of its two


def test_without_validation_there_is_no_training_but_all_can_be_applied(datalist):
    path = datalist({"training": [{"label": 1}]})
    assert of(path, "uad_autoencoder", MASKS).missing == (
        "there is no validation section; make_datalist.py makes one with --validation 0.2",
    )
    assert of(path, "uad_autoencoder").missing == ()
    path.write_text(
        json.dumps([{**case, "image": case["image"][0]} for case in json.loads(path.read_text())["training"]])
    )
    assert len(of(path, "uad_autoencoder", MASKS).missing) == 2
    (remark, *_) = of(path, "uad_autoencoder").remarks
    assert remark == "the datalist does not say what its images are; they are taken for FLAIR"


def test_a_subject_in_two_sections_is_refused(datalist):
    case = {"label": 1, "subject": "a"}
    found = of(datalist({"training": [case], "validation": [case]}), "uad_autoencoder", MASKS)
    assert found.missing == ("subject a is in the training and in the validation set, expected in one of them",)


@pytest.mark.parametrize(
    ("value", "bundle", "way", "sentence"),
    [
        (2, "uad_autoencoder", MASKS, "has the label values 2, expected only 0, 1"),
        (0, "uad_autoencoder", MASKS, "all labels are empty"),
        (5, "deepatlas_joint", JOINT, "has the label values 5, expected only 0, 1, 2, 3; --classes 6 takes 0 to 5"),
    ],
)
def test_label_values_that_a_method_does_not_know_are_named(datalist, value, bundle, way, sentence):
    case = {"label": value}
    found = of(datalist({"training": [case] * 2, "validation": [case] * 2}, ["T1w", "FLAIR"]), bundle, way)
    assert len(found.missing) == 1
    assert sentence in found.missing[0]


def test_a_mask_of_lesions_is_no_anatomy(datalist):
    cases = [{"label": 1}, {"label": 1}]
    found = of(datalist({"training": cases, "validation": cases}, ["T1w"]), "deepatlas_joint", JOINT)
    assert "labels hold 0 and 1 only: a mask of lesions is no anatomy that a registration can follow" in found.remarks


def test_labels_that_are_not_read_are_not_judged(datalist):
    healthy, patient = {"healthy": True, "label": 3}, {"healthy": False, "label": 1}
    path = datalist({"training": [healthy, patient], "validation": [healthy, patient]}, ["T1w", "FLAIR"])
    assert of(path, "diffusion_recon_unet", PATHOLOGY).missing == ()
    assert "has the label values 3, expected only 0, 1" in of(path, "uad_autoencoder", MASKS).missing[0]
    assert "training0_label.nii.gz has the label values 3" in of(path, "uad_autoencoder", MASKS).missing[0]


def test_labels_of_two_data_sets_are_remarked_where_a_method_takes_them_for_one(datalist):
    cases = [{"label": 3, "dataset": "tissue"}, {"label": 1, "dataset": "lesion"}]
    remarks = of(datalist({"training": cases, "validation": cases}, ["T1w"]), "deepatlas_joint", JOINT).remarks
    assert "labels of the data sets lesion, tissue are taken for one: give those that mean the same" in remarks


LABEL_SETS = {
    "classes": ["rest", "lesion"],
    "datasets": {"a": {"labels": {"1": "lesion"}, "background_is_complete": True}},
}


@pytest.mark.parametrize(
    ("case", "header", "sentence"),
    [
        ({"label": 1}, {}, "has no dataset, expected one"),
        ({"label": 1, "dataset": "lesion"}, {}, "no dataset of label_sets annotates CSF, GM, WM"),
        ({"label": 2, "dataset": "a"}, {"label_sets": LABEL_SETS}, "label values 2, which label_sets does not explain"),
        ({"label": 1, "dataset": "a"}, {"label_sets": LABEL_SETS}, None),
    ],
)
def test_the_table_of_label_sets_is_asked(datalist, case, header, sentence):
    path = datalist({"training": [case], "validation": [case]}, ["T1w", "FLAIR"], header=header)
    missing = of(path, "ace_multitask", ACE).missing
    assert len(missing) == (sentence is not None)
    assert sentence is None or sentence in missing[0]


def test_thick_slices_and_heads_with_skull_are_remarked(datalist, tmp_path):
    thick = of(datalist({"test": [{}]}, affine=np.diag([1, 1, 5.5, 1.0])), "uad_autoencoder").remarks
    assert thick == ("voxels of up to 5.5 mm in 1 of 1 image: they are interpolated, and what is smaller is not seen",)
    head = make_head(0, shape=(30, 34, 24))
    path = datalist({"test": [{}]}, affine=np.diag([8, 8, 8, 1.0]))
    liters = np.count_nonzero(head.image) * 8**3 / 1e6
    assert liters > 2.5
    sentence = (
        f"no brain mask, and up to {liters:.1f} l that are not 0, in 1 of 1 case: skull-strip them, or give brain masks"
    )
    assert sentence in of(path, "uad_autoencoder").remarks
    save_nifti(tmp_path / "brain.nii.gz", head.brain, np.diag([8, 8, 8, 1.0]))
    path = datalist({"test": [{"brain_mask": "brain.nii.gz"}]}, affine=np.diag([8, 8, 8, 1.0]))
    assert not any("brain mask" in remark for remark in of(path, "uad_autoencoder").remarks)


def test_sections_are_counted_by_subject(datalist):
    cases = [{"subject": "a", "label": 1, "healthy": False}, {"subject": "a"}, {"healthy": True}]
    counts = read_data(datalist({"training": cases, "test": [{}]})).counts()
    assert counts["training"] == {
        "subjects": 2,
        "cases": 3,
        "labeled": 1,
        "healthy": 1,
        "patients": 1,
        "brain masks": 0,
    }
    assert counts["test"]["cases"] == 1


def test_what_cannot_be_read_and_an_unknown_bundle_are_refused(tmp_path, datalist):
    (tmp_path / "broken.json").write_text("3")
    with pytest.raises(InputError, match="holds int, expected a list of cases"):
        advise(tmp_path / "broken.json", measure=False)
    with pytest.raises(InputError, match="bundles names 'unet', expected some of ace_multitask"):
        advise(datalist({"test": [{}]}), ["unet"], measure=False)


def test_the_command_prints_a_table_and_writes_json(datalist, tmp_path, capsys):
    path = datalist({"training": [{"label": 1}]})
    main(str(path), bundles=["uad_autoencoder"], measure=False, output_file=str(tmp_path / "advice.json"))
    printed = capsys.readouterr().out
    assert "training: 1 subjects, 1 cases, 1 labeled, 0 healthy" in printed
    assert "missing: there is no validation section" in printed
    written = json.loads((tmp_path / "advice.json").read_text())
    assert [item["verdict"] for item in written["advice"]] == ["can run, see remarks", "cannot run", "cannot run"]
    assert written["sections"]["training"]["labeled"] == 1


def test_a_failure_of_measuring_is_a_sentence_and_shown():
    sentence = measured(int, "three")
    assert sentence == "ValueError: invalid literal for int() with base 10: 'three'"
    advice = Advice("b", "way", "it", (), (), (), {"train": sentence})
    assert advice.as_dict()["costs"]["train"] == {"failure": sentence}
    assert report._cost(sentence) == f"could not be measured: {sentence}"
    assert report._summary(advice) == ("-", "-", "-")


class SlowStart:
    """A trainer whose first steps take longer, as what is loaded at first use does."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(device=torch.device("cpu"))

    def _iteration(self, engine: SlowStart, batch: torch.Tensor) -> None:
        time.sleep(0.2 if self.state.iteration <= WARMUP else 0.02)


def test_the_first_steps_are_left_out_and_the_loader_is_begun_again():
    trainer = SlowStart()
    step = time_steps(trainer, DataLoader(torch.zeros(3, 1)), 5)
    assert trainer.state.iteration == WARMUP + 5
    assert 0.02 <= step.working < 0.1
    assert step.waiting < 0.05
    with pytest.raises(ValueError, match="no batch"):
        time_steps(SlowStart(), DataLoader(torch.zeros(3, 1), batch_size=4, drop_last=True), 1)


def test_steps_of_an_epoch_follow_the_number_of_scans_unless_a_sampler_decides():
    four = torch.zeros(4, 1)
    # 4 scans measured, 10 in all: 10 / 4 batches
    assert _epoch_steps(DataLoader(four, batch_size=4), 2.5) == 3
    assert _epoch_steps(DataLoader(four, batch_size=4, drop_last=True), 2.5) == 2
    assert _epoch_steps(DataLoader(four, batch_size=4, sampler=[0, 1] * 8), 2.5) == 4


def test_what_a_dataset_keeps_is_counted_in_bytes():
    item = {
        "image": torch.zeros(1, 4, 4, 4, dtype=torch.float16),
        "more": [np.zeros(8, np.uint8), "a"],
    }  # 64 of 2 bytes
    scans = CachedScans([item, item], Compose([]), progress=False)
    assert _cached_bytes(scans) == 2 * (128 + 8)
    assert _cached_bytes(SimpleNamespace(cases=scans)) == 272
    volume = torch.zeros(1, 5, 5, 6)
    volume[..., :3] = 1  # three slices of 25 pixels
    assert _cached_bytes(BrainSlices([{"image": volume}])) == 3 * 25 * 2


@pytest.mark.slow
def test_memory_is_that_of_the_process_alone():
    here = np.ones(2**26)  # 0.5 GiB that a child of this process does not have
    before, after = measured(_peaks_around, 2**27)
    assert peak_memory_gib() > before
    assert 0.9 < after - before < 1.1
    assert here[0] == 1


def _peaks_around(numbers: int) -> tuple[float, float]:
    before = peak_memory_gib()
    array = np.ones(numbers)
    return before, peak_memory_gib() + 0 * array.sum()


@pytest.mark.slow
def test_a_training_and_an_inference_are_measured(datalist):
    sick = {"label": 1, "healthy": False}
    path = datalist({"training": [sick] * 5, "validation": [sick]})
    options = {"device": "cpu", "spacing": [4.0, 4.0, 4.0], "patch_size": [32, 32]}
    found = {item.way: item for item in advise(path, ["uad_autoencoder"], steps=2, **options)}
    assert found[PSEUDO].costs == {}  # stage 1 has nobody
    training, inference = found[MASKS].costs["train"], found["as shipped"].costs["inference"]
    assert isinstance(training, TrainingCost), training
    assert isinstance(inference, InferenceCost), inference
    # 5 scans in batches of 4; the config has 50 epochs, and a validation after every second one
    assert (training.measured_steps, training.measured_scans, training.epoch_steps) == (2, 4, 2)
    assert (training.epochs, training.validations) == (50, 25)
    seconds = 100 * training.step_seconds + 25 * training.validation_seconds + 6 * training.loading_seconds
    assert training.hours == pytest.approx(seconds / 3600)
    assert 0.2 < training.peak_memory_gib <= training.memory_gib < 4
    assert training.gpu_memory_gib is None
    assert (training.device, inference.device) == ("CPU", "CPU")
    text = report.text_of(read_data(path), list(found.values()))
    assert "measured on CPU, " in text
    assert "2 steps on 4 scans" in text
