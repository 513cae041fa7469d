"""Chains: what one bundle predicts teaches another, and nobody who judges has taught, at any link."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import ROOT, Finished, load_script, save_nifti
from monai.data import MetaTensor
from test_several_processes import TRAININGS

from ace_multitask.label_sets import load_label_sets
from common.data import check_splits, list_cases
from common.errors import InputError
from common.evaluation import Evaluation
from labels.calibration import check_cases
from labels.pseudo_labels import CleanUp, label_of_map
from phantom.cohort import make_cohort

pseudo_labels, make_atlas = (load_script(name).main for name in ("pseudo_labels", "make_atlas"))
UAD = ROOT / "bundles" / "uad_autoencoder"
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (10, 12, 8)


# --- from a map to a label -------------------------------------------------------------------------------------------


def values_of(*boxes: tuple[tuple[slice, slice, slice], float]) -> MetaTensor:
    """A map of voxels of 2 mm, (1, 10, 12, 8), of 0.1 with boxes of other values in it."""
    values = torch.full((1, *SHAPE), 0.1)
    for box, value in boxes:
        values[(0, *box)] = value
    return MetaTensor(values, affine=torch.from_numpy(AFFINE))


SINGLE = (slice(2, 3), slice(2, 3), slice(2, 3))  # 8 mm3
PAIR = (slice(5, 7), slice(5, 6), slice(4, 5))  # 16 mm3
EVERYWHERE = MetaTensor(torch.ones(1, *SHAPE), affine=torch.from_numpy(AFFINE))


@pytest.mark.parametrize(
    ("clean_up", "single", "pair"),
    [
        (CleanUp(0.5), 1, 1),
        (CleanUp(0.6), 0, 1),
        (CleanUp(0.5, min_lesion_mm3=9.0), 0, 1),
        (CleanUp(0.5, min_lesion_mm3=17.0), 0, 0),
        (CleanUp(0.5, uncertain=(0.4, 0.7)), 2, 1),
        (CleanUp(0.5, min_lesion_mm3=17.0, uncertain=(0.4, 0.7)), 2, 2),
        (CleanUp(0.5, erosion_mm=4.0), 1, 1),  # the third voxel from the edge is 6 mm from outside
        (CleanUp(0.5, erosion_mm=6.0), 0, 1),
    ],
)
def test_a_map_is_cut_and_cleaned(clean_up, single, pair):
    label = label_of_map(values_of((SINGLE, 0.5), (PAIR, 0.8)), EVERYWHERE, clean_up)
    expected = torch.zeros(SHAPE)
    expected[SINGLE], expected[PAIR] = single, pair
    torch.testing.assert_close(label[0].as_tensor().float(), expected)


def test_outside_the_brain_is_no_lesion():
    brain = EVERYWHERE.clone()
    brain[(0, *PAIR)] = 0
    assert label_of_map(values_of((SINGLE, 0.8), (PAIR, 0.8)), brain, CleanUp(0.5)).sum() == 1


# --- datalists -------------------------------------------------------------------------------------------------------


def scan_of(folder: Path, subject: str, sequence: str = "FLAIR", copy_of: str | None = None) -> str:
    """An image of noise with a corner outside of the brain, or that of somebody else."""
    noise = np.random.default_rng(crc32(f"{copy_of or subject} {sequence}".encode()))
    values = noise.uniform(1, 9, SHAPE).astype(np.float32)
    values[-1, -1, -1] = 0
    return str(save_nifti(folder / f"{subject}_{sequence}.nii.gz", values, AFFINE))


def drawn(folder: Path, subject: str, **more: object) -> dict:
    label = save_nifti(folder / f"{subject}_drawn.nii.gz", np.ones(SHAPE, np.uint8), AFFINE)
    return {"image": scan_of(folder, subject), "subject": subject, "label": str(label), **more}


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def chain(tmp_path) -> Callable[..., Path]:
    """Runs the script on two scans of u1 and u2 with the maps of a residual; returns the datalist."""
    (tmp_path / "results").mkdir()
    for subject in ("u1", "u2"):
        values = np.full(SHAPE, 0.01, np.float32)
        values[2:5, 2:5, 2:5] = 0.2
        save_nifti(tmp_path / "results" / f"{subject}_FLAIR_prob.nii.gz", values, AFFINE)
        save_nifti(tmp_path / "results" / f"{subject}_FLAIR_seg.nii.gz", (values > 0.1).astype(np.uint8), AFFINE)
    items = [{"image": scan_of(tmp_path, subject), "subject": subject} for subject in ("u1", "u2")]
    write(tmp_path / "scans.json", {"sequences": ["FLAIR"], "training": items})
    write(tmp_path / "healthy.json", {"training": [{"image": scan_of(tmp_path, "h1"), "subject": "h1"}]})

    def run(**options: object) -> Path:
        given = {
            "datalist_file": str(tmp_path / "scans.json"),
            "section": "training",
            "results": str(tmp_path / "results"),
            "bundle": "uad_autoencoder",
            "layers": ["inference_residual.json"],
            "trained_on": [str(tmp_path / "healthy.json")],
            "num_workers": 1,
        }
        pseudo_labels(str(tmp_path / "chain"), **{**given, **options})
        return tmp_path / "chain" / "datalist.json"

    return run


def test_predictions_become_labels_that_say_where_they_are_from(chain, tmp_path):
    cases = list_cases(datalist_file=chain(), section="training", require=["label", "predicted_map"])
    assert [case["subject"] for case in cases] == ["u1", "u2"]
    assert cases[0]["label_source"].startswith("uad_autoencoder ")
    label = nib.load(cases[0]["label"])
    np.testing.assert_allclose(label.affine, AFFINE)
    found = np.asarray(label.dataobj)
    assert found.sum() == found[2:5, 2:5, 2:5].sum() == 27

    said = json.loads((tmp_path / "chain" / "u1_FLAIR_label.json").read_text())
    weights = hashlib.sha256((UAD / "models" / "autoencoder.pt").read_bytes()).hexdigest()
    assert said["predictor"]["weights"] == {"autoencoder.pt": weights}
    config = json.loads((UAD / "configs" / "inference_residual.json").read_text())
    assert said["predictor"]["threshold"] == said["clean_up"]["threshold"] == config["threshold"]
    assert said["trained_on"] == [f"{tmp_path.name}/healthy.json"]
    assert said["volumes_ml"] == {"1": 27 * 0.008}


def test_two_data_sets_become_one_datalist(chain, tmp_path):
    tissues = [
        drawn(tmp_path, name, dataset="tissue", image=scan_of(tmp_path, name, "T1w")) for name in ("t1", "t2", "t3")
    ]
    content = {"sequences": ["T1w"], "training": tissues[:1], "validation": tissues[1:2], "test": tissues[2:]}
    path = chain(dataset_name="lesion", merge=[write(tmp_path / "tissues.json", content)])
    both = {"sequences": ["T1w", "FLAIR"], "optional_sequences": ["T1w", "FLAIR"], "require": ["label", "dataset"]}
    cases = list_cases(datalist_file=path, section="training", **both)
    assert [(case["subject"], case["dataset"]) for case in cases] == [
        ("u1", "lesion"),
        ("u2", "lesion"),
        ("t1", "tissue"),
    ]
    assert [image is None for case in cases for image in case["image"]] == [True, False, True, False, False, True]
    for section, subject in (("validation", "t2"), ("test", "t3")):
        (case,) = list_cases(datalist_file=path, section=section, **both)
        assert case["subject"] == subject
        assert "label_source" not in case


def test_unsure_voxels_are_ignored_by_the_table(chain):
    table = ROOT / "bundles" / "ace_multitask" / "configs" / "train.json"
    path = chain(uncertain=(0.005, 0.1), dataset_name="lesion", label_sets=str(table))
    sets = load_label_sets(json.loads(table.read_text())["label_sets"], path)
    assert sets.allowed[sets.code_of["lesion", 2]].all()
    assert sets.allowed[sets.code_of["lesion", 1]].sum() == 1
    (label, _) = [np.asarray(nib.load(case["label"]).dataobj) for case in list_cases(datalist_file=path)]
    assert sorted(np.unique(label[label != 0])) == [1, 2]
    assert (label == 0).sum() == 1  # outside of the brain


def test_the_rest_of_a_datalist_can_stay_in_it(chain, tmp_path):
    content = json.loads((tmp_path / "scans.json").read_text())
    content["validation"] = [drawn(tmp_path, "v1")]
    path = chain(merge=[write(tmp_path / "scans.json", content)])
    content = json.loads(path.read_text())
    assert [[case["subject"] for case in content[part]] for part in ("training", "validation")] == [
        ["u1", "u2"],
        ["v1"],
    ]


# --- the guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["merge", "keep_out"])
@pytest.mark.parametrize("section", ["validation", "test"])
@pytest.mark.parametrize(
    ("who", "sentence"),
    [
        ("pseudo-labeled", r"subject u2 is in the pseudo-labeled cases and in the {} section of .*real.json"),
        ("same voxels", r"u1_FLAIR.nii.gz in the pseudo-labeled cases and .*other_FLAIR.nii.gz .* the same voxels"),
        ("teacher", r"subject h1 is in the training of the predictor .*healthy.json\) and in the {} section"),
        ("BIDS teacher", r"subject h1 is in the training of the predictor"),
        ("voxels of teacher", r"h1_FLAIR.nii.gz in the training of the predictor .*the same voxels"),
        ("teacher's teacher", r"subject g1 is in the training of the network behind the labels of .*healthy.json"),
        ("pseudo-label", r"p1 in the {} section of .* has a pseudo-label \(a network\)"),
    ],
)
def test_nobody_who_judges_has_taught(chain, tmp_path, how, section, who, sentence):
    judge = drawn(tmp_path, {"pseudo-labeled": "u2", "teacher": "h1", "teacher's teacher": "g1"}.get(who, "other"))
    if who == "same voxels":
        judge["image"] = scan_of(tmp_path, "other", copy_of="u1")
    elif who == "BIDS teacher":
        judge["subject"] = "sub-h1"
    elif who == "voxels of teacher":
        judge["image"] = scan_of(tmp_path, "other", copy_of="h1")
    elif who == "pseudo-label":
        judge |= {"subject": "p1", "label_source": "a network"}
    real = {"sequences": ["FLAIR"], "training": [drawn(tmp_path, "d1")], section: [judge]}
    content = json.loads((tmp_path / "healthy.json").read_text())
    write(tmp_path / "healthy.json", {**content, "seen_by_predictor": ["g1"]})
    with pytest.raises(InputError, match=sentence.format(section)):
        chain(**{how: [write(tmp_path / "real.json", real)]})
    assert not (tmp_path / "chain").exists()


def test_merged_datalists_do_not_leak_into_each_other(chain, tmp_path):
    one = {"sequences": ["FLAIR"], "training": [drawn(tmp_path, "d1")], "seen_by_predictor": ["g1"]}
    both = [write(tmp_path / "one.json", one), str(tmp_path / "two.json")]
    for subject, place in (("d1", "the training section of .*one.json"), ("g1", "the network behind .*one.json")):
        judge = {"image": scan_of(tmp_path, "second"), "subject": subject}
        write(tmp_path / "two.json", {"sequences": ["FLAIR"], "test": [judge]})
        with pytest.raises(
            InputError, match=f"subject {subject} is in .*{place} and in the test section of .*two.json"
        ):
            chain(merge=both)
    write(tmp_path / "two.json", {"sequences": ["FLAIR"], "test": [drawn(tmp_path, "e1")]})
    assert json.loads(chain(merge=both).read_text())["seen_by_predictor"] == ["g1", "h1"]


def test_the_datalist_that_was_predicted_is_guarded_too(chain, tmp_path):
    content = json.loads((tmp_path / "scans.json").read_text())
    write(tmp_path / "scans.json", {**content, "test": [{"image": scan_of(tmp_path, "second"), "subject": "u1"}]})
    with pytest.raises(InputError, match="subject u1 is in the pseudo-labeled cases and in the test section"):
        chain()


def test_the_test_section_of_the_predictors_datalist_has_taught_nobody(chain, tmp_path):
    write(tmp_path / "healthy.json", {"training": [drawn(tmp_path, "h1")], "test": [drawn(tmp_path, "d1")]})
    path = chain(keep_out=[write(tmp_path / "real.json", {"test": [drawn(tmp_path, "d1")]})])
    assert json.loads(path.read_text())["seen_by_predictor"] == ["h1"]


def test_what_cannot_be_used_is_named(chain, tmp_path):
    real = {"sequences": ["FLAIR"], "training": [drawn(tmp_path, "d1", dataset="lesion")]}
    no_sequences = write(tmp_path / "plain.json", {"training": real["training"]})
    again = {**real, "training": [drawn(tmp_path, "u1", dataset="lesion")]}
    cases = [
        ({"section": "test"}, "section is 'test', expected another one"),
        ({"section": None, "datalist_file": write(tmp_path / "parts.json", {"a": real["training"]})}, "has sections"),
        ({"output": "seg", "threshold": 0.3}, "threshold is given with output seg"),
        ({"uncertain": [0.3, 0.1]}, "expected two numbers, the lower one first"),
        ({"uncertain": [0.01, 0.1]}, "the data set None has no table in label_sets"),
        ({"trained_on": [str(tmp_path / "none.json")]}, "none.json cannot be read"),
        ({"weights": str(tmp_path / "none.pt")}, r"none.pt cannot be read \(No such file"),
        ({"layers": ["inference_threshold.json"]}, "u1_FLAIR_seg.nii.gz is not what uad_autoencoder makes of"),
        ({"merge": [no_sequences], "dataset_name": "lesion"}, "plain.json does not say its sequences"),
        (
            {"merge": [write(tmp_path / "real.json", real)]},
            "d1 of .*real.json has lesion and the pseudo-labels have None",
        ),
        (
            {"merge": [write(tmp_path / "again.json", again)], "dataset_name": "lesion"},
            "u1_FLAIR.* expected one label for it",
        ),
        ({"threshold": 0.3}, r"all 2 labels in .* are empty, map >= 0.3, expected something"),
        ({"results": str(tmp_path)}, "u1_FLAIR_prob.nii.gz: no such file"),
    ]
    for options, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            chain(**options)
    assert not (tmp_path / "chain" / "datalist.json").exists()


def test_predictions_are_no_reference(tmp_path):
    case = {**drawn(tmp_path, "p1", label_source="a network"), "name": "p1"}
    with pytest.raises(InputError, match="p1 in the validation set has a pseudo-label"):
        check_splits(training=[drawn(tmp_path, "d1")], validation=[case])
    with pytest.raises(InputError, match="p1 in an evaluation has a pseudo-label"):
        Evaluation([case], tmp_path)
    with pytest.raises(InputError, match="p1 in the cases to calibrate with has a pseudo-label"):
        check_cases([case], "best_dice")
    check_splits(training=[case], validation=[drawn(tmp_path, "d1")])


def test_nobody_who_judges_is_in_the_atlas(tmp_path):
    people = [drawn(tmp_path, subject) for subject in ("a1", "a2")]
    datalist = write(tmp_path / "people.json", {"training": people})
    write(tmp_path / "real.json", {"training": people, "test": [{"image": scan_of(tmp_path, "b1"), "subject": "b1"}]})
    out = str(tmp_path / "atlas.nii.gz")
    make_atlas(out, datalist_file=datalist, keep_out=[str(tmp_path / "real.json")], sigma_mm=0)
    for judge in ({"image": scan_of(tmp_path, "b1"), "subject": "a2"}, {"image": people[1]["image"], "subject": "b1"}):
        write(tmp_path / "real.json", {"test": [judge]})
        with pytest.raises(InputError, match=r"a2.* in the people of the atlas and "):
            make_atlas(out, datalist_file=datalist, keep_out=[str(tmp_path / "real.json")])
    write(tmp_path / "seen.json", {"training": people, "seen_by_predictor": ["b1"]})
    with pytest.raises(
        InputError, match=r"subject b1 is in the training of the network behind the labels of .* and in the test"
    ):
        make_atlas(out, datalist_file=str(tmp_path / "seen.json"), keep_out=[str(tmp_path / "real.json")])
    with pytest.raises(InputError, match="subject a1 is in the people of the atlas and in the test section"):
        make_atlas(out, datalist_file=write(tmp_path / "people.json", {"test": people}), section="test")
    with pytest.raises(InputError, match=r"a1_drawn.nii.gz has no subject"):
        make_atlas(out, label_files=[people[0]["label"]], keep_out=[str(tmp_path / "real.json")])
    with pytest.raises(InputError, match=r"a1_drawn.nii.gz has no image"):
        make_atlas(out, label_files=[people[0]["label"]], align=True)


# --- end to end ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Folder with datalists of phantoms of 4 mm: ``scans``, ``lesions`` and ``tissues``, with T1w and FLAIR."""
    folder = tmp_path_factory.mktemp("people")
    cohort = make_cohort(
        folder / "cohort",
        {"ms": (5, 0, 0), "healthy": (3, 0, 0)},
        spacing=4.0,
        sequences=("T1w", "FLAIR"),
        fine_mm=2.0,
        num_workers=1,
    )
    cases = []
    for case in json.loads(cohort.read_text())["training"]:
        paths = {key: str(cohort.parent / case[key]) for key in ("T1w", "FLAIR", "lesion", "tissues", "brain_mask")}
        cases.append({**paths, "subject": case["subject"]})

    def listed(some: list[dict], label: str | None, dataset: str | None) -> list[dict]:
        keys = {"image": None, "brain_mask": None, "subject": None} | ({"label": label} if label else {})
        items = [case | {"image": [case["T1w"], case["FLAIR"]], "label": case.get(label)} for case in some]
        more = {"dataset": dataset} if dataset else {}
        return [{key: item[key] for key in keys} | more for item in items]

    sections = {
        "scans": {"training": listed(cases[:3], None, None)},
        "lesions": {
            "training": listed(cases[3:4], "lesion", "lesion"),
            "validation": listed(cases[4:5], "lesion", "lesion"),
        },
        "tissues": {
            "training": listed(cases[5:7], "tissues", "tissue"),
            "validation": listed(cases[7:], "tissues", "tissue"),
        },
    }
    for name, parts in sections.items():
        write(folder / f"{name}.json", {"sequences": ["T1w", "FLAIR"], **parts})
    return folder


@pytest.fixture
def run(monai_bundle) -> Callable[..., Finished]:
    def run_configs(bundle: str, *configs: str, **options: object) -> Finished:
        paths = [f"bundles/{bundle}/configs/{name}.json" for name in configs]
        given = {"bundle_root": f"bundles/{bundle}", "device": "cpu", **options}
        flags = [word for key, value in given.items() for word in (f"--{key}", value)]
        done = monai_bundle("run", "--config_file", str(paths), *flags)
        assert done.code == 0, done.output[-3000:]
        return done

    return run_configs


def losses(done: Finished) -> list[float]:
    return [float(value) for value in re.findall(r"epoch \d+ of \d+: loss ([-\d.e]+)", done.output)]


# bundle, layer, options of the inference, and a threshold for the labels that finds something at 4 mm
PREDICTORS = {
    "residual": ("uad_autoencoder", "inference_residual", {"spacing": [2.0, 2.0, 2.0]}, None),
    "diffusion": ("diffusion_recon_unet", "inference_reconstruction", {"noise_levels": [249], "amp": False}, 0.3),
}


@pytest.mark.slow
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_an_anomaly_map_teaches_ace_and_the_unet(run, people, tmp_path, predictor):
    bundle, layer, options, threshold = PREDICTORS[predictor]
    scans, lesions, tissues = (str(people / f"{name}.json") for name in ("scans", "lesions", "tissues"))
    run(bundle, "inference", layer, datalist_file=scans, output_dir=tmp_path / "results", **options)
    common = {
        "datalist_file": scans,
        "section": "training",
        "results": str(tmp_path / "results"),
        "bundle": bundle,
        "layers": [f"{layer}.json"],
        "threshold": threshold,
        "trained_on": ["shipped"],
        "num_workers": 1,
    }

    pseudo_labels(str(tmp_path / "joint"), dataset_name="lesion", merge=[tissues, lesions], **common)
    sidecars = [json.loads(path.read_text()) for path in (tmp_path / "joint").glob("*_label.json")]
    assert len(sidecars) == 3
    assert any(said["volumes_ml"] for said in sidecars)
    training = {"max_epochs": 3, "val_interval": 1, "ckpt_dir": tmp_path / "ace", "output_dir": tmp_path / "ace"}
    done = run(
        "ace_multitask",
        "train",
        datalist_file=tmp_path / "joint" / "datalist.json",
        **{**TRAININGS["ace_multitask", "train"], "volumes_per_epoch": 8, "spacing": [4.0, 4.0, 4.0]},
        **training,
    )
    first, *_, last = losses(done)
    assert last < first
    assert (tmp_path / "ace" / "model.pt").is_file()

    pseudo_labels(str(tmp_path / "pseudo"), keep_out=[lesions], **common)
    done = run(
        "uad_autoencoder",
        "train",
        datalist_file=lesions,
        pseudo_datalist_file=tmp_path / "pseudo" / "datalist.json",
        pseudo_weight=0.5,
        volumes_per_epoch=16,
        **{**TRAININGS["uad_autoencoder", "train"], "spacing": [4.0, 4.0, 4.0]},
        **{**training, "ckpt_dir": tmp_path / "unet", "output_dir": tmp_path / "unet"},
    )
    first, *_, last = losses(done)
    assert last < first
    assert (tmp_path / "unet" / "model.pt").is_file()


@pytest.mark.slow
def test_predicted_tissues_become_an_atlas_that_teaches_sae(run, people, tmp_path):
    tissues, lesions = str(people / "tissues.json"), str(people / "lesions.json")
    run("deepatlas_joint", "inference", datalist_file=tissues, output_dir=tmp_path / "results")
    options = {"datalist_file": tissues, "section": "training", "results": str(tmp_path / "results")}
    options |= {"bundle": "deepatlas_joint", "output": "seg", "trained_on": ["shipped"], "num_workers": 1}
    pseudo_labels(str(tmp_path / "labels"), keep_out=[lesions], **options)
    labels = str(tmp_path / "labels" / "datalist.json")
    classes = write(tmp_path / "classes.json", {"background": [0], "CSF": [1], "GM": [2], "WM": [3]})
    atlas = tmp_path / "atlas.nii.gz"
    make_atlas(str(atlas), datalist_file=labels, classes=classes, align=True, keep_out=[lesions], spacing_mm=2.0)

    given = {"datalist_file": lesions, "atlas_files": atlas, "spacing": [4.0, 4.0, 4.0]}
    training = {"max_epochs": 3, "val_interval": 1, "ckpt_dir": tmp_path / "sae", "output_dir": tmp_path / "sae"}
    training |= {"neighbors_file": tmp_path / "atlas.json", "patch_size": [32, 32, 32]}
    done = run("sae_segmentation", "train", **given, **training)
    assert len(losses(done)) == 3
    run("sae_segmentation", "inference", weights=tmp_path / "sae" / "model.pt", output_dir=tmp_path / "seg", **given)
    cohort = {
        case["subject"]: case for case in json.loads((people / "cohort" / "datalist.json").read_text())["training"]
    }
    for case in list_cases(datalist_file=lesions, sequences=["T1w"]):
        seg = np.asarray(nib.load(tmp_path / "seg" / f"{case['name']}_seg.nii.gz").dataobj)
        truth = np.asarray(nib.load(people / "cohort" / cohort[case["subject"]]["tissues"]).dataobj)
        for k in (2, 3):
            assert 2 * ((seg == k) & (truth == k)).sum() / ((seg == k).sum() + (truth == k).sum()) > 0.5
