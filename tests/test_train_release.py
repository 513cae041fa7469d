"""The command that makes the shipped weights: what it runs, how often and for how long. No training is run."""

import json
from pathlib import Path

import pytest
import torch
from bundle_tools import load_script

from common.errors import InputError
from release import training as train_release
from release.training import recipe_of

main = load_script("train_release").main


class Calls:
    """Instead of the processes: keeps their options, and leaves weights and a state behind."""

    def __init__(self, monkeypatch) -> None:
        self.options: list[dict] = []
        self.epochs = 1000  # that time allows
        monkeypatch.setattr(train_release, "_call", self)

    def __call__(self, *arguments, **options) -> None:
        self.options.append(options)
        if "max_epochs" in options:
            options["ckpt_dir"].mkdir(parents=True, exist_ok=True)
            for file in ("model.pt", "autoencoder.pt"):
                (options["ckpt_dir"] / file).write_text(options["output_dir"].name)
            epoch = min(options["max_epochs"], self.epochs)
            torch.save({"epoch": epoch}, options["output_dir"] / "state.pt")

    @property
    def trained(self) -> list[str]:
        return [Path(options["output_dir"]).name for options in self.options if "max_epochs" in options]


def release(tmp_path, bundle="uad_autoencoder", **changes):
    options = {"extra_data": None, "seed": 1, "amp": False, "minutes": None, "effort": 1.0, "num_workers": 0} | changes
    return train_release.Release(bundle, tmp_path, **options)


def train(run) -> None:
    run.train("first", "train", 0.5, 10, val_interval=4, learning_rate=0.1)
    run.train("second", ["train", "layer"], 0.25, 3, ["first"])
    run.train("other", "train", 0.25, 3)


def test_a_training_that_is_done_is_not_run_again(tmp_path, monkeypatch):
    calls = Calls(monkeypatch)
    train(release(tmp_path))
    assert calls.trained == ["uad_autoencoder_first", "uad_autoencoder_second", "uad_autoencoder_other"]
    assert (calls.options[0]["max_epochs"], calls.options[0]["val_interval"], calls.options[0]["seed"]) == (10, 4, 1)
    assert calls.options[1]["val_interval"] == 3  # at its end only
    assert "max_minutes" not in calls.options[0]
    train(release(tmp_path))
    assert len(calls.trained) == 3


def test_time_and_effort_are_shared_out(tmp_path, monkeypatch):
    calls = Calls(monkeypatch)
    train(release(tmp_path, minutes=20, effort=0.2))
    assert [options["max_minutes"] for options in calls.options] == [10, 5, 5]
    assert [options["max_epochs"] for options in calls.options] == [2, 1, 1]
    assert calls.options[0]["val_interval"] == 2  # never above the number of epochs


def test_what_time_has_ended_goes_on_and_what_follows_it_begins_again(tmp_path, monkeypatch):
    calls = Calls(monkeypatch)
    calls.epochs = 4  # of ten for the first one
    train(release(tmp_path, minutes=20))
    state = tmp_path / "uad_autoencoder_first" / "state.pt"
    kept = tmp_path / "uad_autoencoder_second" / "state.pt"
    assert torch.load(state, weights_only=True)["epoch"] == 4
    assert torch.load(kept, weights_only=True)["epoch"] == 3
    calls.epochs = 1000
    seen = []

    def call(*arguments, **options) -> None:
        seen.append((state.exists(), kept.exists()))
        calls(*arguments, **options)

    monkeypatch.setattr(train_release, "_call", call)
    train(release(tmp_path))
    assert calls.trained[3:] == ["uad_autoencoder_first", "uad_autoencoder_second"]
    assert seen == [(True, True), (True, False)]  # the second one has no state to go on from


def test_weights_are_shipped_when_they_are_done_and_not_too_large(tmp_path, monkeypatch):
    Calls(monkeypatch)
    run = release(tmp_path)
    monkeypatch.setattr(train_release, "ROOT", tmp_path / "root")
    train(run)
    assert not run.models.exists()
    run.ship("second", "model.pt")
    assert (run.models / "model.pt").read_text() == "uad_autoencoder_second"
    monkeypatch.setattr(train_release, "MAX_WEIGHTS_BYTES", 3)
    with pytest.raises(InputError, match=r"model.pt has .* bytes, expected at most 3"):
        run.ship("first", "model.pt")
    assert (run.models / "model.pt").read_text() == "uad_autoencoder_second"


def write_extra(folder: Path, content: dict) -> Path:
    """``extra.json`` and empty files of all the names in it."""
    for parts in content.values():
        for items in parts.values():
            for value in (value for item in items for value in item.values() if str(value).endswith(".nii.gz")):
                (folder / value).parent.mkdir(parents=True, exist_ok=True)
                (folder / value).touch()
    path = folder / "extra.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"scans": {"training": [{"T1w": "no.nii.gz"}]}}, "no.nii.gz in .*extra.json does not exist, expected a NIfTI"),
        ({"scans": {"training": 5}}, "extra.json is not understood"),
        ({"scans": 5}, "extra.json is not understood"),
        ([1], "extra.json"),
    ],
)
def test_extra_data_that_is_not_there_is_refused_before_anything_is_made(tmp_path, content, sentence):
    (tmp_path / "extra.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=sentence):
        main("sae_segmentation", str(tmp_path / "release"), str(tmp_path / "extra.json"))
    assert not (tmp_path / "release").exists()


def test_paths_of_the_extra_data_are_relative_to_its_file(tmp_path):
    content = {
        "tissue_scans": {"training": [{"T1w": "a.nii.gz", "label": "maps/a.nii.gz"}]},
        "scans": {"training": [{"FLAIR": "b.nii.gz", "subject": "b", "world_to_mni": [[1, 0, 0, 0]]}]},
    }
    write_extra(tmp_path, content)
    run = release(tmp_path, extra_data=str(tmp_path / "extra.json"))
    assert run.scans("tissue_scans", "training") == [
        {"T1w": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / "maps" / "a.nii.gz")}
    ]
    assert run.scans("scans", "training")[0] == {
        "FLAIR": str(tmp_path / "b.nii.gz"),
        "subject": "b",
        "world_to_mni": [[1, 0, 0, 0]],
    }
    assert run.scans("scans", "validation") == []
    assert run.implanted("validation") == []  # nothing is made for the other section


def lesion_recipe(run, monkeypatch, implanted) -> list:
    """Cases instead of files for the recipes of the lesion networks; returns what is shipped."""
    shipped: list[tuple] = []
    monkeypatch.setattr(run, "ship", lambda *names: shipped.append(names))
    monkeypatch.setattr(run, "cohort", lambda name: run.folder / f"{name}.json")
    keys = ("image", "label", "T1w", "FLAIR", "tissues", "lesion", "brain_mask")
    case = {key: f"{key}.nii.gz" for key in keys}
    monkeypatch.setattr(
        run, "cases", lambda cohorts, section: [case | {"subject": f"{section} {name}"} for name in cohorts]
    )

    def found(section, varied=False):
        return [case | {"subject": f"{section} implanted {varied}", "T1w": None}] * 2 if implanted else []

    monkeypatch.setattr(run, "implanted", found)
    run.extra = {"lesion_scans": {part: [case | {"subject": f"{part} drawn"}] for part in ("training", "validation")}}
    return shipped


@pytest.mark.parametrize("implanted", [False, True])
def test_the_last_stage_of_ace_sees_lesions_that_t1w_hides_and_drawn_ones(tmp_path, monkeypatch, implanted):
    calls, run = Calls(monkeypatch), release(tmp_path, "ace_multitask")
    shipped = lesion_recipe(run, monkeypatch, implanted)
    recipe_of("ace_multitask").release(run)
    assert calls.trained == [f"ace_multitask_{name}" for name in ("train", "finetune", "varied")]
    for number, before in ((1, "train"), (2, "finetune")):
        start = calls.options[number]["initial_weights"]
        assert start == tmp_path / f"ace_multitask_{before}" / "models" / "model.pt"
    assert calls.options[1]["background_patches"] > 0.5
    t1w, flair = calls.options[2]["channel_dropout"]
    assert 0.25 >= t1w >= 0.15 > flair
    assert shipped == [("varied", "model.pt")]
    calibration = json.loads((tmp_path / "ace_calibration.json").read_text())["validation"]
    implants = ["validation implanted True"] * 2 * implanted
    assert [item["subject"] for item in calibration] == ["validation measured", *implants, "validation drawn"]
    for file, kinds in (("ace", {"False"}), ("ace_varied", {"True"})):
        datalist = json.loads((tmp_path / f"{file}.json").read_text())
        sets = datalist["label_sets"]["datasets"]
        for part in ("training", "validation"):
            assert {item["dataset"] for item in datalist[part]} <= set(sets)
        found = [item for item in datalist["training"] if item["dataset"] == "implanted"]
        assert len(found) == 2 * implanted
        assert {item["subject"].split()[-1] for item in found} == (kinds if implanted else set())
        assert {item["image"][0] for item in found} <= {None}
        assert sets["implanted"] == {"labels": {"1": "lesion"}}
        drawn = [item["subject"] for item in datalist["training"] if item["dataset"] == "drawn"]
        assert drawn == ["training drawn"] * (file == "ace_varied")


@pytest.mark.parametrize("implanted", [False, True])
def test_the_last_stage_of_the_u_net_sees_lesions_of_all_sizes_and_drawn_ones(tmp_path, monkeypatch, implanted):
    calls, run = Calls(monkeypatch), release(tmp_path)
    shipped = lesion_recipe(run, monkeypatch, implanted)
    recipe_of("uad_autoencoder").release(run)
    assert calls.trained == [f"uad_autoencoder_{name}" for name in ("autoencoder", "unet", "varied")]
    assert shipped == [("autoencoder", "autoencoder.pt"), ("varied", "model.pt")]
    last = calls.options[2]
    assert last["initial_weights"] == tmp_path / "uad_autoencoder_unet" / "models" / "model.pt"
    assert (last["zoom"], last["graded_labels"]) == ([0.6, 2.0], True)
    subjects = [item["subject"] for item in json.loads((tmp_path / "uad_varied.json").read_text())["training"]]
    assert {"training confluent", "training varied_healthy", "training drawn"} <= set(subjects)
    assert subjects.count("training implanted True") == 2 * implanted
    patients = json.loads((tmp_path / "patients.json").read_text())["training"]
    assert "training drawn" not in {item["subject"] for item in patients}


@pytest.mark.parametrize(("bundle", "last"), [("ace_multitask", "varied"), ("uad_autoencoder", "varied")])
def test_the_last_stage_alone_starts_from_what_was_shipped_when_it_began(tmp_path, monkeypatch, bundle, last):
    calls, run = Calls(monkeypatch), release(tmp_path / "release", bundle, from_shipped=True)
    shipped = lesion_recipe(run, monkeypatch, True)
    monkeypatch.setattr(train_release, "ROOT", tmp_path / "root")
    configs = tmp_path / "root" / "bundles" / bundle / "configs"
    configs.mkdir(parents=True)
    (configs / "train.json").write_text('{"label_sets": {"datasets": {"lesion": {"labels": {"1": "lesion"}}}}}')
    run.models.mkdir()
    (run.models / "model.pt").write_text("shipped")
    recipe_of(bundle).release(run)
    assert calls.trained == [f"{bundle}_{last}"]
    assert shipped == [(last, "model.pt")]
    start = calls.options[0]["initial_weights"]
    (run.models / "model.pt").write_text("new")  # as shipping does
    assert run.shipped() == start
    assert start.read_text() == "shipped"


@pytest.mark.parametrize("implanted", [False, True])
def test_the_anomaly_network_learns_from_lesions_implanted_in_t1_scans(tmp_path, monkeypatch, implanted):
    calls, shipped, calibrated = Calls(monkeypatch), [], []
    run = release(tmp_path, "diffusion_recon_unet")
    monkeypatch.setattr(run, "cohort", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(run, "ship", lambda *names: shipped.append(names))
    monkeypatch.setattr(run, "calibrate", lambda *arguments, layers: calibrated.append((arguments, layers)))
    files = {"T1w": "t.nii.gz", "FLAIR": "f.nii.gz", "lesion": "l.nii.gz", "brain_mask": "b.nii.gz"}
    monkeypatch.setattr(run, "cases", lambda cohorts, part: [files | {"subject": part + name} for name in cohorts])
    monkeypatch.setattr(run, "filled", lambda part: [files | {"subject": part + "filled"}])
    flair = {"FLAIR": "f.nii.gz", "lesion": "l.nii.gz", "brain_mask": "b.nii.gz", "subject": "no T1w"}
    for way in ("implanted", "implanted_t1w"):
        real = [files | {"subject": way}, flair]
        monkeypatch.setattr(run, way, lambda part, real=real, **style: real if implanted else [])
    recipe_of("diffusion_recon_unet").release(run)
    stages = ("stage1", "stage2", "flair_stage1", "flair_stage2")
    assert calls.trained == [f"diffusion_recon_unet_{stage}" for stage in stages]
    stage1, stage2 = calls.options[-2:]
    assert stage1["initial_weights"] == run.weights("stage1", "diffusion.pt")
    assert stage2["diffusion_weights"] == run.weights("flair_stage1", "diffusion_flair.pt")
    healthy = json.loads((tmp_path / "diffusion_flair_healthy.json").read_text())
    assert [case["subject"] for case in healthy["training"]] == [
        f"training{name}" for name in ("healthy", "varied_healthy", "filled")
    ]
    patients = json.loads((tmp_path / "diffusion_flair_patients.json").read_text())["validation"]
    names = [f"validation{name}" for name in train_release.VARIED] + ["implanted", "no T1w"] * implanted
    assert [case["subject"] for case in patients] == names
    assert {Path(case["image"]).name for case in patients} == {"f.nii.gz"}
    maps = ("healthy_maps", "healthy_t1w.pt")
    assert shipped == [("stage1", "statistics.json"), ("stage2", "model.pt"), maps]
    people = json.loads((tmp_path / "diffusion_people.json").read_text())
    assert [case["subject"] for case in people["training"]] == ["traininghealthy"]
    patients = json.loads((tmp_path / "diffusion_patients.json").read_text())
    both = ["implanted", "implanted_t1w"] * implanted
    for part, cohorts in train_release.PATIENTS.items():
        assert [case["subject"] for case in patients[part]] == [part + name for name in cohorts] + both
    healthy = json.loads((tmp_path / "diffusion_healthy.json").read_text())
    assert [case["subject"] for case in healthy["training"]] == ["traininghealthy"]
    ((with_labels, both_networks), (lesions, by_people), (phantoms, baseline), (healthy, reconstruction)) = calibrated
    cases = json.loads(lesions[0].read_text())["validation"]
    assert [case["subject"] for case in cases] == (["implanted_t1w"] if implanted else ["validationplain"])
    assert by_people == ("inference_fused.json", "inference_threshold.json,inference_healthy.json")
    cases = json.loads(with_labels[0].read_text())["validation"]
    assert [case["subject"] for case in cases] == ["validationplain", *both]
    assert both_networks == (None, "inference_unet.json")
    assert (phantoms, baseline) == ((tmp_path / "plain.json",), ("inference_threshold.json",))
    assert [case["healthy"] for case in json.loads(healthy[0].read_text())["validation"]] == [True]
    assert "false_positive_rate" in healthy
    assert reconstruction == ("inference_reconstruction.json",)


def test_lesions_are_implanted_by_the_tissue_maps_of_people_without_lesions(tmp_path, monkeypatch):
    part = {"T1w": "sub-01_T1w.nii.gz", "label": "sub-01_tissue.nii.gz"}
    content = {"tissue_scans": {"training": [part]}, "lesions": {"training": [{"label": "lesion.nii.gz"}]}}
    write_extra(tmp_path, content)
    run = release(tmp_path / "release", "diffusion_recon_unet", extra_data=str(tmp_path / "extra.json"))
    asked = []

    def implant_cohort(folder, scans, copies, lesions, **options):
        asked.append((scans, lesions, options))
        folder.mkdir(parents=True)
        case = {"image": "image.nii.gz", "label": "label.nii.gz", "subject": "t-sub-01"}
        cases = {"sequences": ["T1w"], "training": [case] * copies["training"]}
        (folder / "datalist.json").write_text(json.dumps(cases))

    monkeypatch.setattr(train_release, "implant_cohort", implant_cohort)
    monkeypatch.setattr(train_release, "list_cases", lambda **options: json.loads(options["datalist_file"].read_text()))
    assert run.implanted_t1w("validation") == []
    assert not asked
    assert len(run.implanted_t1w("training")["training"]) == train_release.T1W_COPIES["training"]
    ((scans, lesions, options),) = asked
    item = {"T1w": str(tmp_path / part["T1w"]), "tissues": str(tmp_path / part["label"]), "subject": "sub-01"}
    assert scans == {"training": [item], "validation": []}
    assert lesions == {"training": [(str(tmp_path / "lesion.nii.gz"), None)]}
    assert options["sequence"] == "T1w"


def test_the_auto_encoder_learns_from_scanners_without_labels_for_as_many_steps_as_before(tmp_path, monkeypatch):
    calls, shipped = Calls(monkeypatch), []
    people = [{"T1w": f"sub-{n:02d}.nii.gz", "label": "tissues.nii.gz"} for n in range(5)]
    further = [{"T1w": f"far-{n}.nii.gz", "brain_mask": "mask.nii.gz", "subject": f"far {n}"} for n in range(2)]
    content = {
        "tissue_scans": {"training": people[:4], "validation": people[4:]},
        "t1w_scans": {"training": further},
    }
    write_extra(tmp_path, content)
    run = release(tmp_path, "sae_segmentation", extra_data=str(tmp_path / "extra.json"))
    monkeypatch.setattr(run, "ship", lambda *names: shipped.append(names))
    recipe_of("sae_segmentation").release(run)
    datalist = json.loads((tmp_path / "sae.json").read_text())
    assert [Path(case["image"]).name for case in datalist["training"]] == [
        *(item["T1w"] for item in [*people[:4], *further])
    ]
    assert [case.get("subject") for case in datalist["training"]] == [None] * 4 + ["far 0", "far 1"]
    assert Path(datalist["training"][4]["brain_mask"]).name == "mask.nii.gz"
    assert len(datalist["validation"]) == 1
    assert not any("label" in case for cases in datalist.values() for case in cases)
    assert calls.options[0]["max_epochs"] == recipe_of("sae_segmentation").STEPS // 3  # six scans, two a step
    assert shipped == [("train", "model.pt")]


def test_wrong_options_are_refused(tmp_path):
    with pytest.raises(InputError, match="bundle names 'other', expected some of ace_multitask"):
        main("other", output_dir=str(tmp_path))
    with pytest.raises(InputError, match="from_shipped is true for sae_segmentation, expected it for a recipe with"):
        main("sae_segmentation", output_dir=str(tmp_path), from_shipped=True)
    assert not list(tmp_path.iterdir())
