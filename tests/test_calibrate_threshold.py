"""Calibration of a threshold: from maps that a bundle wrote to two lines of its config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bundle_tools import load_script, save_nifti

from common.errors import InputError, find_input_error
from common.metrics import voxel_overlap
from labels.calibration import Calibration, calibrate, write_threshold

script = load_script("calibrate_threshold")

AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])
# a bundle whose map is the image itself, so that what it scores stands in the tests
INFERENCE = """{
    "bundle_root": "bundles/toy",
    "dataset_dir": null,
    "datalist_file": null,
    "output_dir": null,
    "threshold": 0.5,
    "threshold_source": "not calibrated",
    "datalist": {
        "_target_": "common.data.list_cases",
        "dataset_dir": "@dataset_dir",
        "datalist_file": "@datalist_file"
    },
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "common.transforms.LoadScand", "keys": "image"}]
    },
    "dataset": {"_target_": "common.data.ScanDataset", "data": "@datalist", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "network_def": {"_target_": "torch.nn.Identity"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {
                "_target_": "common.transforms.SaveScand",
                "keys": "pred",
                "output_dir": "@output_dir",
                "postfix": "prob",
                "dtype": "float32"
            }
        ]
    },
    "evaluator": {
        "_target_": "common.engines.ScanEvaluator",
        "device": "cpu",
        "val_data_loader": "@dataloader",
        "network": "@network_def",
        "postprocessing": "@postprocessing"
    },
    "run": ["$@evaluator.run()"]
}
"""


@pytest.fixture
def bundle(tmp_path) -> Path:
    folder = tmp_path / "toy"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(INFERENCE)
    (folder / "configs" / "metadata.json").write_text("{}")
    return folder


def save_scan(path: Path, values: list[float]) -> str:
    """A scan of 3 x 2 x 4 voxels: some of the brain, given, and 0 around it."""
    array = np.zeros(24, dtype=np.float32)
    array[: len(values)] = values
    save_nifti(path, array.reshape(3, 2, 4), AFFINE)
    return path.name


def save_cases(folder: Path, cases: dict[str, tuple[list[float], list[float]]], section: str = "validation") -> Path:
    """Datalist of subject -> (scores in the brain, label there)."""
    items = [
        {
            "image": save_scan(folder / f"{subject}_FLAIR.nii.gz", scores),
            "label": save_scan(folder / f"{subject}_label.nii.gz", label),
            "subject": subject,
        }
        for subject, (scores, label) in cases.items()
    ]
    path = folder / "cases.json"
    path.write_text(json.dumps({"name": "Toy scans", section: items, "test": []}))
    return path


@contextmanager
def refused(sentence: str) -> Iterator[None]:
    """What a config raises is an InputError that MONAI has wrapped; the command line prints its sentence."""
    with pytest.raises((InputError, RuntimeError)) as error:
        yield
    assert sentence in str(find_input_error(error.value))


# Sorted by score: 0.9 L, 0.8 L, 0.7 -, 0.6 L, 0.2 -, 0.1 L, 0.05 -. With 4 lesion voxels the Dice at 0.9, 0.8, 0.6, 0.1
# is 2/5, 4/6, 6/8, 8/10: the best threshold is 0.1.
LOW = {"a": ([0.9, 0.7, 0.6, 0.2], [1, 0, 1, 0]), "b": ([0.8, 0.1, 0.05], [1, 1, 0])}
# Without the lesion voxel at 0.1: 2/4, 4/5, 6/7, so 0.6.
HIGH = {"a": ([0.9, 0.7, 0.6, 0.2], [1, 0, 1, 0]), "b": ([0.8, 0.1, 0.05], [1, 0, 0])}


@pytest.mark.parametrize(("cases", "threshold", "dice"), [(LOW, 0.1, "0.800"), (HIGH, 0.6, "0.857")])
def test_threshold_is_that_of_the_largest_dice_over_all_brain_voxels(bundle, tmp_path, capsys, cases, threshold, dice):
    datalist = save_cases(tmp_path / "data", cases)
    script.main(str(bundle), datalist_file=str(datalist), section="validation", write=True)
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    assert config["threshold"] == threshold
    assert config["threshold_source"] == (f"best pooled Dice, {dice}, in the brain of 2 cases (Toy scans, validation)")
    assert config["threshold_source"] in capsys.readouterr().out


def test_voxels_whose_label_says_nothing_are_left_out(bundle, tmp_path):
    # as LOW, but nobody knows whether the voxel at 0.1 is lesion, nor those at 0.7 and 0.2
    cases = {"a": ([0.9, 0.7, 0.6, 0.2], [1, 9, 1, 9]), "b": ([0.8, 0.1, 0.05], [1, 9, 0])}
    options = {"datalist_file": str(save_cases(tmp_path / "data", cases)), "section": "validation", "write": True}
    script.main(str(bundle), label_value=1, ignore_value=9, **options)
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    assert config["threshold"] == 0.6
    assert config["threshold_source"].startswith("best pooled Dice, 1.000")
    with refused("ignore_value is 9, expected it with best_dice and a label_value only"):
        script.main(str(bundle), ignore_value=9, **options)


def test_cases_of_one_data_set_and_one_value_of_their_labels_are_used(bundle, tmp_path):
    low, high = LOW["a"], ([0.8, 0.1, 0.05], [2, 1, 3])
    datalist = save_cases(tmp_path / "data", {"a": low, "b": high})
    content = json.loads(datalist.read_text())
    for item, name in zip(content["validation"], ("lesion", "joint"), strict=True):
        item["dataset"] = name
    datalist.write_text(json.dumps(content))
    options = {"datalist_file": str(datalist), "section": "validation", "write": True}
    # value 2 is at 0.8 only; 1 and 3 are other classes
    script.main(str(bundle), dataset_name="joint", label_value=2, **options)
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    assert config["threshold"] == 0.8
    assert config["threshold_source"] == (
        "best pooled Dice, 1.000, in the brain of 1 case (Toy scans, joint, validation)"
    )
    script.main(str(bundle), dataset_name="lesion", **options)
    assert json.loads((bundle / "configs" / "inference.json").read_text())["threshold"] == 0.6
    with refused("b_label.nii.gz has the label values 2, 3, expected only 0, 1"):
        script.main(str(bundle), dataset_name="joint", **options)


def test_threshold_keeps_the_rate_on_healthy_scans(bundle, tmp_path):
    # 20 brain voxels with scores 0.01 to 0.20: two of them, a tenth, reach 0.19
    scores = [0.01 * i for i in range(1, 21)]
    datalist = save_cases(tmp_path / "data", {"a": (scores[::2], [0]), "b": (scores[1::2], [0])}, "training")
    options = {"criterion": "false_positive_rate", "rate": 0.1, "section": "training", "write": True}
    script.main(str(bundle), datalist_file=str(datalist), **options)
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    assert config["threshold"] == 0.19
    assert config["threshold_source"] == (
        "false-positive rate 0.1, 0.1 reached, in the brain of 2 healthy scans (Toy scans, training)"
    )


def test_of_people_who_are_said_to_be_healthy_or_not_the_healthy_ones_give_the_rate(bundle, tmp_path):
    scores = [0.01 * i for i in range(1, 11)]
    datalist = save_cases(tmp_path / "data", {"a": (scores, [0]), "b": ([5 * s for s in scores], [0])}, "training")
    content = json.loads(datalist.read_text())
    content["training"][0]["healthy"], content["training"][1]["healthy"] = True, False
    datalist.write_text(json.dumps(content))
    options = {"criterion": "false_positive_rate", "rate": 0.1, "section": "training", "write": True}
    script.main(str(bundle), datalist_file=str(datalist), **options)
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    assert config["threshold"] == 0.1  # 0.5 if b counted as healthy: one voxel of ten, the brightest
    assert "in the brain of 1 healthy scan (" in config["threshold_source"]


def test_only_the_two_lines_of_the_threshold_change(bundle, tmp_path):
    datalist = save_cases(tmp_path / "data", LOW)
    config = bundle / "configs" / "inference.json"
    config.write_bytes(INFERENCE.replace("\n", "\r\n").encode())
    script.main(str(bundle), datalist_file=str(datalist), section="validation")
    assert config.read_bytes() == INFERENCE.replace("\n", "\r\n").encode(), "nothing is written without being asked"

    script.main(str(bundle), datalist_file=str(datalist), section="validation", write=True)
    before, after = INFERENCE.split("\n"), config.read_bytes().decode().split("\r\n")
    changed = [new.strip() for old, new in zip(before, after, strict=True) if old != new]
    assert changed[0] == '"threshold": 0.1,'
    assert [line.split(":")[0] for line in changed] == ['"threshold"', '"threshold_source"']


def test_layer_with_a_threshold_of_its_own_is_the_one_calibrated(bundle, tmp_path):
    datalist = save_cases(tmp_path / "data", LOW)
    layer = bundle / "configs" / "layer.json"
    layer.write_text('{\n    "threshold": 7,\n    "threshold_source": "none \\"yet\\""\n}\n')
    script.main(str(bundle), datalist_file=str(datalist), section="validation", layers=["layer.json"], write=True)
    assert json.loads(layer.read_text())["threshold"] == 0.1
    assert (bundle / "configs" / "inference.json").read_text() == INFERENCE


def test_threshold_inside_another_entry_is_not_replaced(tmp_path):
    config = tmp_path / "layer.json"
    text = '{\n    "inner": {\n        "threshold": 1,\n        "threshold_source": "x"\n    }\n}\n'
    config.write_text(text)
    with pytest.raises(InputError, match="inside another entry"):
        write_threshold(config, Calibration(0.5, "y"))
    assert config.read_text() == text


def test_kept_threshold_reaches_what_its_source_says(tmp_path):
    rng = np.random.default_rng(0)
    label = rng.random((3, 2, 4)) < 0.4
    scores = (0.3 * label + rng.random(label.shape)).astype(np.float32)
    case = {key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "label", "brain_mask")} | {"name": "a"}
    brain = np.ones_like(scores)
    files = ((case["image"], scores + 1), (case["label"], label), (case["brain_mask"], brain))
    for path, array in (*files, (tmp_path / "a_prob.nii.gz", scores)):
        save_nifti(Path(path), array.astype(np.float32), AFFINE)
    found = calibrate([case], tmp_path, "best_dice")
    dice = voxel_overlap(scores >= found.threshold, label).dice
    assert found.source.startswith(f"best pooled Dice, {dice:.3f}, ")
    # rounding is down, so that the lesion voxel on the threshold stays in; none of the others lies in between
    assert dice == max(voxel_overlap(scores >= t, label).dice for t in np.unique(scores))


def test_a_rounded_threshold_keeps_the_rate(tmp_path):
    """Two voxels of 24 may reach it: rounding is up, or the third would come in."""
    scores = np.linspace(0.01, 0.1, 24, dtype=np.float32)
    scores[:3] = 0.56789, 0.56788, 0.56781
    files = {"image": scores + 1, "brain_mask": np.ones_like(scores), "a_prob": scores}
    for name, values in files.items():
        save_nifti(tmp_path / f"{name}.nii.gz", values.reshape(3, 2, 4), AFFINE)
    case = {key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "brain_mask")} | {"name": "a"}
    found = calibrate([case], tmp_path, "false_positive_rate", rate=2.5 / 24)
    assert found.threshold == 0.5679


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"section": "test"}, "never chosen on the test set"),
        ({"section": None}, "has parts and no section is given, expected one of validation"),
        ({"section": "training"}, "training"),
        ({"rate": 0.1}, "expected a rate between 0 and 1"),
        ({"criterion": "false_positive_rate"}, "expected a rate between 0 and 1"),
        ({"criterion": "false_positive_rate", "rate": 0}, "expected a rate between 0 and 1"),
        ({"criterion": "false_positive_rate", "rate": 2}, "expected a rate between 0 and 1"),
        ({"criterion": "false_positive_rate", "rate": 0.1}, "a_FLAIR has lesions, expected healthy scans"),
        ({"layers": ["none.json"]}, "none.json does not exist"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused_in_a_sentence(bundle, tmp_path, changes, sentence):
    datalist = save_cases(tmp_path / "data", LOW)
    options = {"datalist_file": str(datalist), "section": "validation", "write": True, **changes}
    with refused(sentence):
        script.main(str(bundle), **options)
    assert (bundle / "configs" / "inference.json").read_text() == INFERENCE


def test_cases_without_a_lesion_are_refused_before_the_network_runs(bundle, tmp_path):
    datalist = save_cases(tmp_path / "data", {"a": ([0.9, 0.1], [0, 0])})
    with pytest.raises(InputError, match="no label of the 1 case has a lesion"):
        script.main(str(bundle), str(datalist), section="validation", output_dir=str(tmp_path / "maps"))
    assert not (tmp_path / "maps").exists()


def test_empty_section_is_refused(bundle, tmp_path):
    datalist = save_cases(tmp_path / "data", LOW)
    datalist.write_text(json.dumps({**json.loads(datalist.read_text()), "validation": []}))
    with refused("lists no case under validation"):
        script.main(str(bundle), str(datalist), section="validation", output_dir=str(tmp_path / "maps"))
    assert not (tmp_path / "maps").exists()


def test_subject_of_the_test_section_is_refused(bundle, tmp_path):
    datalist = save_cases(tmp_path / "data", LOW)
    content = json.loads(datalist.read_text())
    content["test"] = [{"image": "elsewhere.nii.gz", "subject": "b"}]
    datalist.write_text(json.dumps(content))
    with pytest.raises(InputError, match="b is also in the test section"):
        script.main(str(bundle), str(datalist), section="validation")


def test_a_reference_to_the_threshold_is_no_threshold(tmp_path):
    config = tmp_path / "config.json"
    step = '    "step": {\n        "threshold": "@threshold"\n    }\n}\n'
    config.write_text('{\n    "threshold": 0.1,\n    "threshold_source": "x",\n' + step)
    write_threshold(config, Calibration(0.5, "y"))
    assert config.read_text() == '{\n    "threshold": 0.5,\n    "threshold_source": "y",\n' + step
