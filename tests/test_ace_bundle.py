"""The bundle of two data sets with different labels: from files to a label map, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import load_script, read_json
from ignite.engine import Engine
from monai.bundle import ConfigWorkflow
from monai.inferers import SimpleInferer
from monai.transforms import RandGaussianNoise

from ace_multitask.evaluation import (
    ExactClassesd,
    LabelSetDice,
    check_sets,
    names_of_datasets,
    reference_sets,
    scored_groups,
    table_of_cases,
)
from ace_multitask.label_sets import LabelSets
from ace_multitask.patches import CodeCentersd, RandDropChanneld, RandEachChanneld
from ace_multitask.pseudo_label import write_pseudo_datalist
from ace_multitask.sequences import ListSequencesd
from ace_multitask.views import TwoViewsInferer
from common.data import list_cases, write_datalist
from common.errors import InputError, find_input_error
from phantom.cohort import make_cohort
from running.workflow import Entry, open_configs

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "ace_multitask"
CLASSES = ["background", "CSF", "GM", "WM", "lesion"]
DATASETS = {
    "tissue": {"labels": {"1": "CSF", "2": "GM", "3": "WM"}, "background_is_complete": True},
    "lesion": {"labels": {"1": "lesion", "9": "ignore"}},
}
HIDDEN = DATASETS | {
    "tissue": {"labels": {"1": "CSF", "2": "GM", "3": ["WM", "lesion"]}, "background_is_complete": True}
}


@pytest.fixture
def table() -> LabelSets:
    return LabelSets(CLASSES, DATASETS)


# --- the table in scores and reports ---------------------------------------------------------------------------------


def test_a_data_set_scores_the_foreground_that_it_labels(table):
    assert scored_groups(table, "tissue") == {"CSF": (1,), "GM": (2,), "WM": (3,)}
    assert scored_groups(table, "lesion") == {"lesion": (4,)}
    assert scored_groups(LabelSets(CLASSES, HIDDEN), "tissue") == {"CSF": (1,), "GM": (2,), "WM + lesion": (3, 4)}


def test_the_report_gets_the_classes_of_every_label_value(table):
    assert reference_sets(table)["lesion"] == {0: (0, 1, 2, 3), 1: (4,), 9: (0, 1, 2, 3, 4)}


def codes_of(table: LabelSets, dataset: str, values: list[int]) -> torch.Tensor:
    return torch.tensor([table.code_of[dataset, value] for value in values], dtype=torch.uint8).reshape(1, -1, 1, 1)


def test_validation_takes_the_mean_over_classes_of_what_each_data_set_knows(table):
    metric = LabelSetDice(table)
    tissue = codes_of(table, "tissue", [0, 1, 1, 2, 2, 3, 3, 3])
    predicted = torch.tensor([0, 1, 2, 2, 2, 3, 3, 4]).reshape(1, -1, 1, 1)  # CSF 2/3, GM 4/5, WM 4/5
    lesion = codes_of(table, "lesion", [0, 0, 0, 0, 1, 1, 9, 9])
    found = torch.tensor([0, 1, 2, 4, 4, 0, 4, 4]).reshape(1, -1, 1, 1)  # one hit of two, one false: 1/2; two unknown
    metric.update(([predicted, found], [tissue, lesion]))
    mean = metric.compute()
    assert mean == pytest.approx((2 / 3 + 4 / 5 + 4 / 5 + 1 / 2) / 4)
    engine = Engine(lambda engine, batch: None)
    metric.completed(engine, "val_dice")
    assert engine.state.metrics["val_dice_lesion_lesion"] == pytest.approx(1 / 2)
    assert engine.state.metrics["val_dice_tissue_CSF"] == pytest.approx(2 / 3)
    assert set(engine.state.metrics) == {
        *("val_dice", "val_dice_tissue_CSF", "val_dice_tissue_GM", "val_dice_tissue_WM", "val_dice_lesion_lesion")
    }


def test_a_class_that_no_validation_case_shows_is_named(table):
    metric = LabelSetDice(table)
    codes = codes_of(table, "tissue", [0, 1, 2])
    metric.update(([codes * 0], [codes]))
    with pytest.raises(InputError, match="validation cases show no WM, expected a case"):
        metric.compute()


def test_codes_to_look_at_are_the_classes_that_are_certain(table):
    item = ExactClassesd("label", table)({"label": codes_of(table, "lesion", [0, 1, 9])})
    assert item["label"].flatten().tolist() == [0, 4, 0]
    item = ExactClassesd("label", table)({"label": codes_of(table, "tissue", [0, 1, 3])})
    assert item["label"].flatten().tolist() == [0, 1, 3]


def test_training_knows_the_data_sets_that_its_cases_are_of(table):
    cases = [{"name": "a", "dataset": "tissue"}, {"name": "b", "dataset": "lesion"}]
    assert table_of_cases(LabelSets(CLASSES, {"joint": HIDDEN["tissue"], **DATASETS}), cases).datasets == table.datasets
    with pytest.raises(InputError, match="no dataset of label_sets annotates lesion"):
        table_of_cases(table, cases[:1])
    with pytest.raises(InputError, match="the case c names 'other' as its dataset, expected one of tissue, lesion"):
        table_of_cases(table, [*cases, {"name": "c", "dataset": "other"}])
    with pytest.raises(InputError, match="the case d names no dataset"):
        names_of_datasets([{"name": "d"}])


def test_a_validation_that_cannot_score_a_class_is_refused(table):
    cases = {name: {"name": name, "dataset": name} for name in ("tissue", "lesion")}
    check_sets(table, training=cases.values(), validation=cases.values())
    with pytest.raises(InputError, match="has cases of tissue only and cannot score lesion, expected"):
        check_sets(table, training=list(cases.values()), validation=[cases["tissue"]])
    hidden = LabelSets(CLASSES, HIDDEN)  # merged with white matter is not scored as lesion, but it is scored
    check_sets(hidden, training=cases.values(), validation=cases.values())


# --- patches ---------------------------------------------------------------------------------------------------------


def test_patches_are_centered_on_voxels_of_the_brain_by_code():
    image = torch.zeros(2, 3, 2, 1)
    image[1, :2] = -1.0  # the mean of a brain is 0, so half of it is below
    label = torch.tensor([[1, 2], [2, 2], [1, 2]]).reshape(1, 3, 2, 1)
    centers = CodeCentersd("label", ratios=[0, 0, 1, 0])({"image": image, "label": label})["label_centers"]
    assert [c.tolist() for c in centers] == [[], [0], [1, 2, 3], []]
    assert (
        len(CodeCentersd("label", ratios=[0, 0, 1, 0], most=2)({"image": image, "label": label})["label_centers"][2])
        == 2
    )
    with pytest.raises(InputError, match="has no labeled voxel in the brain to center a patch on"):
        CodeCentersd("label", ratios=[1, 0, 0, 1])({"image": image, "label": label})


def test_one_channel_at_most_is_left_out_and_never_the_last():
    drop = RandDropChanneld("image", prob=0.5).set_random_state(0)
    image = torch.ones(2, 2, 2, 2)
    kept = [tuple(c.any().item() for c in drop({"image": image})["image"]) for _ in range(400)]
    counts = {k: kept.count(k) for k in set(kept)}
    assert set(counts) == {(True, True), (True, False), (False, True)}
    assert counts[True, True] == pytest.approx(200, abs=50)
    assert counts[True, False] == pytest.approx(100, abs=40)
    assert image.all(), "the cached image stays as it is"
    alone = torch.stack([torch.ones(2, 2, 2), torch.zeros(2, 2, 2)])
    assert all(drop({"image": alone})["image"][0].all() for _ in range(20))


def test_channels_are_left_out_as_often_as_each_of_them_is_to_be():
    drop = RandDropChanneld("image", prob=[0.4, 0.1]).set_random_state(0)
    image = torch.ones(2, 2, 2, 2)
    kept = [tuple(c.any().item() for c in drop({"image": image})["image"]) for _ in range(600)]
    counts = {k: kept.count(k) / 600 for k in set(kept)}
    assert counts[False, True] == pytest.approx(0.4, abs=0.07)
    assert counts[True, False] == pytest.approx(0.1, abs=0.05)
    assert set(counts) == {(True, True), (True, False), (False, True)}
    for wrong in ([0.8, 0.3], [-0.1, 0.2], 1.5):
        with pytest.raises(InputError, match="expected 0 to 1 in all"):
            RandDropChanneld("image", prob=wrong)


def test_every_channel_is_changed_on_its_own():
    noise = RandEachChanneld("image", RandGaussianNoise(prob=0.5, std=1.0)).set_random_state(3)
    image = torch.zeros(2, 4, 4, 4)
    changed = [tuple(c.any().item() for c in noise({"image": image})["image"]) for _ in range(200)]
    for case in ((True, True), (True, False), (False, True), (False, False)):
        assert changed.count(case) / 200 == pytest.approx(0.25, abs=0.12)
    first, again = (noise.set_random_state(5)({"image": image})["image"] for _ in range(2))
    assert first.equal(again)


def test_lesions_of_two_views_are_the_mean_and_tissues_keep_their_proportions():
    def network(image):
        """Logits of three classes: the last one is lesion, which the first channel denies."""
        lesion = torch.where(image[:, 0] > 0, 0.1, 0.7)
        return torch.stack([(1 - lesion) * 0.25, (1 - lesion) * 0.75, lesion], 1).log()

    image = torch.ones(1, 2, 2, 2, 2)
    views = TwoViewsInferer(SimpleInferer(), lesion_class=2)
    seen = views(image, network).softmax(1)[0, :, 0, 0, 0]
    torch.testing.assert_close(seen, torch.tensor([0.15, 0.45, 0.4]))  # lesion (0.1 + 0.7) / 2, the rest 1 : 3
    for alone in (0, 1):  # with one sequence there is one view
        single = image.clone()
        single[:, 1 - alone] = 0
        torch.testing.assert_close(views(single, network), network(single))
    plain = TwoViewsInferer(SimpleInferer(), lesion_class=2, enabled=False)
    torch.testing.assert_close(plain(image, network), network(image))


# --- configs ---------------------------------------------------------------------------------------------------------


def test_the_table_is_the_same_in_every_config_that_has_one():
    tables = [read_json(path).get("label_sets") for path in (BUNDLE / "configs").glob("*.json")]
    tables = [found for found in tables if found]
    assert len(tables) == 4
    assert all(found == tables[0] for found in tables)


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Datalist of healthy phantoms with tissue labels and of patients with lesion labels, at 6 mm."""
    folder = tmp_path_factory.mktemp("cohort")
    sections: dict[str, list] = {"training": [], "validation": [], "test": []}
    sources = {"tissue": ("healthy", "tissues", (2, 1, 0)), "lesion": ("ms", "lesion", (2, 1, 0))}
    sources["joint"] = ("ms", "tissues", (0, 0, 1))
    for seed, (name, (group, label, counts)) in enumerate(sources.items(), start=1):
        options = {"spacing": 6.0, "sequences": ("T1w", "FLAIR"), "num_workers": 1, "fine_mm": 3.0, "seed": seed}
        made = make_cohort(folder / name, {group: counts}, prefix=name[0], label=label, **options)
        for section, count in zip(sections, counts, strict=True):
            for case in list_cases(datalist_file=made, section=section, sequences=["T1w"]) if count else []:
                images = {"image": [case["T1w"], case["FLAIR"]], "dataset": name}
                sections[section].append({k: case[k] for k in ("label", "brain_mask", "subject")} | images)
    return write_datalist(folder / "cases.json", sections)


TINY = {"spacing": [6.0, 6.0, 6.0], "network_def#channels": [4, 8], "device": torch.device("cpu")}
TRAIN = {"patch_size": [24, 24, 24], "volumes_per_epoch": 8, "val_interval": 4, **TINY}


def run(configs: list[str], **overrides) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        [str(BUNDLE / "configs" / name) for name in configs],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(BUNDLE),
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def weights(path: Path, network: str = "@network") -> list[dict]:
    return [{"_target_": "common.engines.LoadWeights", "path": str(path), "network": network}]


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory) -> tuple[Path, list[str]]:
    """Folder of a short training that was broken off and resumed, and its log lines."""
    folder = tmp_path_factory.mktemp("trained")
    lines = []
    for epochs in (4, 12):
        options = {"datalist_file": str(cohort), "output_dir": str(folder), "ckpt_dir": str(folder / "models")}
        workflow = run(["train.json"], max_epochs=epochs, learning_rate=0.01, **options, **TRAIN)
        trainer = workflow.parser.get_parsed_content("train#trainer")
        lines.append(float(trainer.state.output[0]["loss"]))
    return folder, lines


def test_the_loss_falls_and_the_best_weights_are_kept(trained):
    folder, losses = trained
    assert losses[-1] < losses[0] < 2.2  # log 5 + 1 where nothing is known, and a little
    assert (folder / "models" / "model.pt").is_file()
    assert len(list((folder / "pictures").glob("epoch_*.png"))) == 3


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(cohort, tmp_path):
    options = {"datalist_file": str(cohort), "ckpt_dir": str(tmp_path / "models"), "max_epochs": 3, **TRAIN}
    run(["train.json"], output_dir=str(tmp_path / "whole"), **options)
    run(["train.json"], output_dir=str(tmp_path / "parts"), max_minutes=1e-6, **options)  # one epoch
    run(["train.json"], output_dir=str(tmp_path / "parts"), **options)
    whole, parts = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["epoch"] == parts["epoch"] == 3
    for key, value in whole["objects"]["network"].items():
        assert torch.equal(value, parts["objects"]["network"][key]), key


def test_a_case_with_both_labels_is_scored_on_all_classes_and_others_on_their_own(trained, cohort, tmp_path):
    folder, _ = trained
    sections = json.loads(cohort.read_text())
    everything = cohort.with_name("everything.json")
    everything.write_text(json.dumps({"test": sections["validation"] + sections["test"]}))
    run(
        ["inference.json", "evaluate.json"],
        datalist_file=str(everything),
        output_dir=str(tmp_path),
        handlers=weights(folder / "models" / "model.pt"),
        window_size=[24, 24, 24],
        **TINY,
    )
    rows = json.loads((tmp_path / "metrics.json").read_text())["cases"]
    scored: dict[str, set] = {}
    for row in rows:
        known = {row["label_name"]} if row["reference_ml"] is not None else set()
        scored[row["dataset"]] = scored.get(row["dataset"], set()) | known
    assert scored == {"tissue": {"CSF", "GM", "WM"}, "lesion": {"lesion"}, "joint": {"CSF", "GM", "WM", "lesion"}}
    page = (tmp_path / "report.html").read_text()
    assert "What each data set says of each class" in page
    assert "Mean Dice by data set" in page


def test_a_missing_sequence_is_left_out_and_the_entropy_is_an_option(trained, cohort, tmp_path):
    folder, _ = trained
    case = list_cases(datalist_file=cohort, section="test", sequences=["T1w", "FLAIR"])[0]
    datalist = tmp_path / "cases.json"
    datalist.write_text(json.dumps([{"image": [None, case["image"][1]], "brain_mask": case["brain_mask"]}]))
    options = {"datalist_file": str(datalist), "window_size": [24, 24, 24], **TINY}
    handlers = weights(folder / "models" / "model.pt")
    run(["inference.json"], output_dir=str(tmp_path / "out"), save_entropy=True, handlers=handlers, **options)
    written = sorted(p.name.rsplit("_", 1)[1] for p in (tmp_path / "out").glob("*.nii.gz"))
    assert written == ["entropy.nii.gz", "prob.nii.gz", "seg.nii.gz"]
    scan = nib.load(case["image"][1])
    maps = {kind.split(".")[0]: nib.load(next((tmp_path / "out").glob(f"*_{kind}"))) for kind in written}
    assert all(m.shape == scan.shape for m in maps.values())
    values = {kind: np.asarray(m.dataobj) for kind, m in maps.items()}
    assert 0 < values["entropy"].max() <= np.log(5) + 1e-4
    np.testing.assert_array_equal(values["seg"] == 4, values["prob"] >= 0.5)

    with refused("has no T1w, expected its path"):
        run(["inference.json"], output_dir=str(tmp_path / "none"), optional_sequences=[], handlers=handlers, **options)
    assert not (tmp_path / "none").exists()


@contextmanager
def refused(sentence: str) -> Iterator[None]:
    """What a config raises is an InputError that MONAI has wrapped; the command line prints its sentence."""
    with pytest.raises((InputError, RuntimeError)) as error:
        yield
    assert re.search(sentence, str(find_input_error(error.value)))


def changed(cohort: Path, folder: Path, change) -> str:
    sections = {
        s: list_cases(datalist_file=cohort, section=s, sequences=["T1w", "FLAIR"]) for s in ("training", "validation")
    }
    change(sections)
    return str(write_datalist(folder / "cases.json", sections))


def of_another_set(sections):
    sections["training"][0]["dataset"] = "tissues"


def of_no_set(sections):
    del sections["validation"][0]["dataset"]


def one_lesion_subject(sections):
    sections["validation"] = [case for case in sections["validation"] if case["dataset"] == "tissue"]


def tissues_only(sections):
    for part, cases in sections.items():
        sections[part] = [case for case in cases if case["dataset"] == "tissue"]


def lesion_map_as_tissues(sections):
    """A tissue label where the table of the lesion set knows 0 and 1."""
    lesion = next(case for case in sections["training"] if case["dataset"] == "lesion")
    lesion["label"] = lesion["label"].replace("lesion_mask", "tissues_dseg")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (of_another_set, "sub-t001_T1w names 'tissues' as its dataset, expected one of tissue, lesion, joint"),
        (of_no_set, "has no dataset, expected one"),
        (one_lesion_subject, "validation set has cases of tissue only and cannot score lesion"),
        (tissues_only, "no dataset of label_sets annotates lesion"),
        (lesion_map_as_tissues, r"tissues_dseg.nii.gz has the label values 2, 3, 4, expected only 0, 1"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_it_begins(cohort, tmp_path, change, sentence):
    options = {"output_dir": str(tmp_path / "run"), "ckpt_dir": str(tmp_path / "models")}
    with refused(sentence):
        run(["train.json"], datalist_file=changed(cohort, tmp_path, change), max_epochs=1, **options, **TRAIN)
    assert not list(tmp_path.rglob("*.pt"))  # but for the locks, which go with the workflow


def test_the_table_of_a_datalist_takes_the_place_of_the_configs(cohort, tmp_path):
    content = json.loads(cohort.read_text())
    content["label_sets"] = {"classes": ["background", "CSF", "GM", "WM"], "datasets": {"tissue": DATASETS["tissue"]}}
    datalist = cohort.with_name("own_table.json")
    datalist.write_text(json.dumps(content))
    with refused("sub-l001_T1w names 'lesion' as its dataset, expected one of tissue"):
        run(
            ["train.json"], datalist_file=str(datalist), output_dir=str(tmp_path), ckpt_dir=str(tmp_path / "m"), **TRAIN
        )
    assert not list(tmp_path.rglob("*.pt"))


def test_labels_are_filled_in_and_a_second_stage_learns_from_them(trained, cohort, tmp_path):
    folder, _ = trained
    run(
        ["inference.json", "pseudo_label.json"],
        datalist_file=str(cohort),
        output_dir=str(tmp_path / "pseudo"),
        window_size=[24, 24, 24],
        handlers=weights(folder / "models" / "model.pt"),
        **TINY,
    )
    made = tmp_path / "pseudo" / "datalist.json"
    options = {"sequences": ["T1w", "FLAIR"]}
    before = list_cases(datalist_file=cohort, section="training", **options)
    after = list_cases(datalist_file=made, section="training", **options)
    assert [case["name"] for case in after] == [case["name"] for case in before]
    assert {case["dataset"] for case in after} == {"completed"}
    validation = [list_cases(datalist_file=path, section="validation", **options) for path in (cohort, made)]
    assert [Path(c["label"]).resolve() for c in validation[0]] == [Path(c["label"]).resolve() for c in validation[1]]
    for old, new in zip(before, after, strict=True):
        drawn, filled = (np.asarray(nib.load(case["label"]).dataobj) for case in (old, new))
        brain = np.asarray(nib.load(old["brain_mask"]).dataobj) > 0
        assert drawn.shape == filled.shape
        assert not filled[~brain].any()
        if old["dataset"] == "tissue":
            np.testing.assert_array_equal(filled[brain], drawn[brain])
        else:  # lesions as drawn, and the rest no longer left open
            np.testing.assert_array_equal(filled[brain] == 4, drawn[brain] == 1)
            assert {1, 2, 3} & set(np.unique(filled).tolist())
    models = tmp_path / "models"
    run(
        ["train.json"],
        datalist_file=str(made),
        output_dir=str(tmp_path / "second"),
        ckpt_dir=str(models),
        max_epochs=1,
        **TRAIN,
    )
    assert (models / "model.pt").is_file()

    case = after[0]
    Path(case["label"]).unlink()
    with pytest.raises(InputError, match="expected the filled-in label of"):
        write_pseudo_datalist([case], [], made.parent, LabelSets(CLASSES, DATASETS))
    with pytest.raises(InputError, match="label_sets has a dataset completed, expected another name"):
        write_pseudo_datalist(
            [], [], made.parent, LabelSets(CLASSES, {**DATASETS, "completed": {"labels": {"4": "lesion"}}})
        )


@pytest.mark.slow
def test_two_networks_learn_one_data_set_each_and_are_used_as_one(cohort, tmp_path):
    for name in ("tissue", "lesion"):
        options = {"output_dir": str(tmp_path / name), "ckpt_dir": str(tmp_path / "models")}
        options |= {"datalist_file": str(cohort), "dataset_name": name, "max_epochs": 4}
        run(["train.json", "train_single.json"], **options, **TRAIN)
    tiny = {key: value for key, value in TINY.items() if not key.startswith("network_def")}
    tiny |= {"network_def#base#channels": [4, 8], "network_def#overlay#channels": [4, 8]}
    run(
        ["inference.json", "two_networks.json", "evaluate.json"],
        datalist_file=str(cohort),
        section="test",
        output_dir=str(tmp_path / "out"),
        window_size=[24, 24, 24],
        tissue_weights=str(tmp_path / "models" / "tissue_network.pt"),
        lesion_weights=str(tmp_path / "models" / "lesion_network.pt"),
        **tiny,
    )
    assert (tmp_path / "out" / "report.html").is_file()
    (seg,) = (tmp_path / "out").glob("*_seg.nii.gz")
    assert {1, 2, 3} & set(np.unique(np.asarray(nib.load(seg).dataobj)).tolist())


def test_the_threshold_comes_from_the_cases_of_the_lesion_set(trained, cohort, capsys, monkeypatch):
    folder, _ = trained

    def tiny(*arguments, **options):
        handlers = weights(folder / "models" / "model.pt")
        return open_configs(*arguments, **options, handlers=Entry(handlers), window_size=[24, 24, 24], **TINY)

    monkeypatch.setattr("labels.calibration.open_configs", tiny)
    load_script("calibrate_threshold").main(
        "ace_multitask", datalist_file=str(cohort), section="validation", dataset_name="lesion"
    )
    assert "of 1 case (cases.json, lesion, validation)" in capsys.readouterr().out


# --- one file for a case, as MONAI Label has it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "expected"),
    [("a_FLAIR.nii.gz", ["a_T1.nii.gz", "a_FLAIR.nii.gz"]), ("b_FLAIR.nii.gz", [None, "b_FLAIR.nii.gz"])],
)
def test_the_name_of_a_file_says_its_sequence_and_the_others_are_taken_from_beside_it(tmp_path, file, expected):
    for name in ("a_T1", "a_FLAIR", "b_FLAIR"):
        (tmp_path / f"{name}.nii.gz").touch()
    listed = ListSequencesd("image", ("T1w", "FLAIR"))({"image": str(tmp_path / file)})["image"]
    assert listed == [name and str(tmp_path / name) for name in expected]


def test_a_file_whose_name_says_no_sequence_is_taken_for_the_first_with_a_warning(tmp_path, caplog):
    path = str(tmp_path / "scan.nii.gz")
    assert ListSequencesd("image", ("T1w", "FLAIR"))({"image": path})["image"] == [path, None]
    assert f"the name of {path} ends in none of T1w, FLAIR: taken for T1w" in caplog.text


def test_a_list_of_sequences_stays_as_it_is():
    item = {"image": [None, "scan.nii.gz"]}
    assert ListSequencesd("image", ("T1w", "FLAIR"))(item) == item


@pytest.mark.parametrize(("config", "part"), [("inference", "overview"), ("evaluate", "report")])
def test_pictures_show_the_sequence_on_which_lesions_are_bright(config, part):
    sequences = read_json(BUNDLE / "configs" / "inference.json")["sequences"]
    assert sequences[read_json(BUNDLE / "configs" / f"{config}.json")[part]["image_index"]] == "FLAIR"


def test_the_map_is_scored_as_what_it_is_of():
    steps = read_json(BUNDLE / "configs" / "inference.json")["postprocessing"]["transforms"]
    (channel,) = (step for step in steps if step["_target_"].endswith("ChannelMapd"))
    assert read_json(BUNDLE / "configs" / "evaluate.json")["report"]["map_label"] == channel["index"] == "@lesion_class"
