"""Comparing methods: folds, statistics and tables by hand, then the whole on small phantoms, as shipped and trained."""

from __future__ import annotations

import csv
import json
import re
import shutil
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import BUNDLES, ROOT, make_head, save_nifti
from scipy.stats import wilcoxon

from common.data import Datalist
from common.errors import InputError
from common.evaluation import Scans
from common.metrics import lesion_sizes
from comparison import TARGETS, Comparison, compare, find_methods, holm, paired_difference
from comparison.command import read_options, shown
from comparison.comparison import _lesions, read_splits, uncertain_ml
from comparison.outputs import Outputs, SharedInferer, network_settings
from comparison.report import HD95, VOLUME, Digest, disagreement, to_latex, to_markdown
from comparison.trial import Split, Trial, Unfit
from phantom.cohort import make_cohort
from running.workflow import open_configs

METHODS = find_methods()
QUICK = ["flair_threshold", "unet", "em", "atlas"]
COARSE = {"spacing": [6.0, 6.0, 6.0]}
OPTIONS = {f"{bundle.name}/inference": COARSE for bundle in BUNDLES} | {
    "uad_autoencoder/train_autoencoder": {**COARSE, "slice_size": [32, 32], "max_epochs": 2, "val_interval": 1},
    "uad_autoencoder/train": {**COARSE, "patch_size": [32, 32], "max_epochs": 2, "val_interval": 1},
}
ONE_EPOCH = {"max_epochs": 1, "val_interval": 1}
SMALL = {"spacing": [8.0, 8.0, 8.0], "shape": [24, 24, 24]}
OPTIONS |= {
    "ace_multitask/train": {**COARSE, **ONE_EPOCH, "patch_size": [16, 16, 16], "volumes_per_epoch": 4},
    "deepatlas_joint/inference": SMALL,
    "deepatlas_joint/train": {
        **SMALL,
        **ONE_EPOCH,
        "correlation_window": 3,
        "registration_steps": 2,
        "segmentation_steps": 2,
    },
    "diffusion_recon_unet/train_diffusion": {**COARSE, **ONE_EPOCH, "slice_size": [32, 32]},
    "diffusion_recon_unet/train": {**COARSE, **ONE_EPOCH, "slice_size": [32, 32]},
    "sae_segmentation/train": {**COARSE, **ONE_EPOCH, "patch_size": [16, 16, 16]},
}


# statistics


def test_holm_by_hand():
    # 0.01 * 3, then 0.02 * 2 = 0.04, then 0.2; an undefined one is of no family
    np.testing.assert_allclose(holm([0.02, np.nan, 0.01, 0.2]), [0.04, np.nan, 0.03, 0.2])
    np.testing.assert_allclose(holm([0.03, 0.02]), [0.04, 0.04])  # never below a smaller one
    np.testing.assert_allclose(holm([0.6, 0.9]), [1, 1])


def test_paired_difference_counts_subjects_and_not_scans():
    first, second = [0.5, 0.7, 0.9, np.nan], [0.4, 0.6, 0.5, 0.1]
    found = paired_difference(first, second, ["a", "a", "b", "c"])
    assert found.subjects == 2
    assert found.mean == pytest.approx(0.2)  # over the three scans that both have
    assert found.p == pytest.approx(wilcoxon([0.1, 0.4]).pvalue)


def test_methods_that_do_the_same_do_not_differ():
    found = paired_difference([0.5, 0.7], [0.5, 0.7], ["a", "b"])
    assert (found.mean, found.p) == (0, 1)
    assert np.isnan(paired_difference([np.nan], [0.5], ["a"]).p)


def test_disagreement_is_one_minus_the_mean_dice_of_pairs():
    a, b, empty = np.array([1, 1, 0, 0]), np.array([0, 1, 0, 0]), np.zeros(4, int)
    assert disagreement([a, b]) == pytest.approx(1 - 2 / 3)
    assert disagreement([a, b, empty]) == pytest.approx(1 - (2 / 3 + 0 + 0) / 3)
    assert disagreement([empty, empty]) == 0
    assert disagreement([np.array([1, 2, 2, 0]), np.array([1, 2, 0, 0])]) == pytest.approx(1 - (1 + 2 / 3) / 2)


def test_a_coin_toss_is_one_bit_per_voxel():
    scores = np.array([0.5, 0.5, 0.0, 1.0]).reshape(1, 1, 4)
    scans = Scans(scores, np.diag([10, 10, 10, 1]), scores > 0.4, None, scores)
    assert uncertain_ml(scans) == pytest.approx(2.0, abs=1e-6)


def test_sizes_of_lesions_and_which_were_hit():
    reference, prediction = np.zeros((8, 3, 3), bool), np.zeros((8, 3, 3), bool)
    reference[0:2], reference[4] = True, True
    prediction[4, 1, 1] = True
    sizes, hit = lesion_sizes(prediction, reference)
    assert sizes.tolist() == [18, 9]
    assert hit.tolist() == [False, True]


def test_lesions_of_a_comparison_are_in_cubic_millimeters():
    reference, prediction = np.zeros((8, 3, 3), int), np.zeros((8, 3, 3), int)
    reference[0:2], reference[4], prediction[4, 1, 1] = 1, 1, 1
    scans = Scans(reference, np.diag([2, 1, 3, 1]), prediction, reference, None)
    assert _lesions(scans) == [(18 * 6, False), (9 * 6, True)]


# tables


def test_marked_cells_are_bold_and_text_is_escaped():
    columns, rows = ["method", "Dice"], [["a_b & c", "0.5 ★"], ["d|e", "–"]]
    assert to_markdown(columns, rows).splitlines()[2:] == ["| a_b & c | **0.5** |", "| d\\|e | – |"]
    latex = to_latex(columns, rows)
    assert r"a\_b \& c & \textbf{0.5} \\" in latex
    assert r"d|e & -- \\" in latex


# cases, folds, targets


def save_datalist(folder: Path, sections: dict, sequences: list | None = None) -> Path:
    for part in sections.values():
        for case in part:
            made = make_head(int(case["subject"]), shape=(12, 14, 10))
            case["image"] = str(save_nifti(folder / f"{case['subject']}_FLAIR.nii.gz", made.image, made.affine))
            if not case.get("healthy"):
                case["label"] = str(save_nifti(folder / f"{case['subject']}_lesion.nii.gz", made.label, made.affine))
    header = {"sequences": sequences or ["FLAIR"]}
    (folder / "cases.json").write_text(json.dumps(header | sections))
    return folder / "cases.json"


def subjects(cases: list[dict]) -> list[str]:
    return [case["subject"] for case in cases]


def test_each_fold_is_tested_once_and_the_one_after_it_validates(tmp_path):
    cases = [{"subject": str(i), "fold": i % 3} for i in range(6)]
    sequences, splits = read_splits(Datalist(save_datalist(tmp_path, {"training": cases})), train=True)
    assert sequences == ("FLAIR",)
    assert [subjects(s.test) for s in splits] == [["0", "3"], ["1", "4"], ["2", "5"]]
    assert [subjects(s.validation) for s in splits] == [["1", "4"], ["2", "5"], ["0", "3"]]
    assert [subjects(s.training) for s in splits] == [["2", "5"], ["0", "3"], ["1", "4"]]


def test_sections_are_one_fold_and_shipped_weights_need_the_test_only(tmp_path):
    parts = {name: [{"subject": str(i)}] for i, name in enumerate(("training", "validation", "test"))}
    datalist = save_datalist(tmp_path, parts)
    (split,) = read_splits(Datalist(datalist), train=True)[1]
    assert [subjects(part) for part in split[1:]] == [["0"], ["1"], ["2"]]
    (split,) = read_splits(Datalist(datalist), train=False)[1]
    assert [subjects(part) for part in split[1:]] == [[], [], ["2"]]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": [{"subject": "0"}]}, "has no section validation and no folds"),
        ({"training": [{"subject": str(i), "fold": i} for i in range(2)]}, "has 2 folds, expected 3 or more"),
        (
            {"training": [{"subject": "0"}], "validation": [{"subject": "1"}], "test": [{"subject": "0"}]},
            "is in the training and in the test set",
        ),
    ],
)
def test_datalist_that_cannot_be_trained_on_is_refused(tmp_path, sections, message):
    with pytest.raises(InputError, match=message):
        read_splits(Datalist(save_datalist(tmp_path, sections)), train=True)


def test_datalist_that_names_no_sequences_is_refused(tmp_path):
    (tmp_path / "cases.json").write_text('[{"image": "a.nii.gz"}]')
    with pytest.raises(InputError, match=r"cases.json does not say of which sequences"):
        read_splits(Datalist(tmp_path / "cases.json"), train=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "spleen"}, "target is 'spleen', expected lesion or tissue"),
        ({"weights": "best"}, "weights is 'best', expected shipped or train"),
        ({"methods": ["unet", "magic"]}, "methods has magic, expected some of"),
        ({"methods": ["uad_pseudo"]}, "ship no weights for uad_pseudo, expected --weights train"),
    ],
)
def test_wrong_arguments_are_refused_early(tmp_path, arguments, message):
    datalist = save_datalist(tmp_path, {"test": [{"subject": "0"}]})
    with pytest.raises(InputError, match=message):
        Comparison(
            Datalist(datalist), tmp_path / "out", **({"target": "lesion", "bundles": BUNDLES[0].parent} | arguments)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("/home/me/my scans/cases.json", "cases.json"),
        ("--output_dir=/home/me/out/", "--output_dir=out"),
        ("['/home/me/a.json','/home/me/b.json']", "['a.json','b.json']"),
        ("cases/all.json", "cases/all.json"),
        ("--seeds=1,2", "--seeds=1,2"),
    ],
)
def test_the_command_on_the_page_names_files_and_not_folders(argument, expected):
    assert shown(argument) == expected


def test_a_step_goes_on_with_the_options_it_was_begun_with_and_starts_over_with_others(tmp_path, monkeypatch):
    image, found = tmp_path / "a.nii.gz", []
    image.write_bytes(b"an image")
    split = Split(0, [], [], [])

    def step(stop=False, **options):
        trial = Trial(tmp_path / "runs", split, TARGETS["lesion"], ["FLAIR"], 0, ROOT / "bundles", {})
        folder = tmp_path / "runs" / "training"

        def run():
            found.append((folder / "state").exists())
            (folder / "state").write_text("begun")
            if stop:
                raise KeyboardInterrupt

        workflow = SimpleNamespace(run=run, finalize=lambda: None)
        monkeypatch.setattr("comparison.trial.open_configs", lambda *args, **kwargs: workflow)
        datalist = trial.write_cases({"training": [{"image": [str(image)], "case": "a"}]})
        trial.step(folder, "uad_autoencoder", ["train"], {"datalist_file": datalist, **options})

    with pytest.raises(KeyboardInterrupt):
        step(stop=True, learning_rate=0.1)
    step(learning_rate=0.1)
    step(learning_rate=0.1)
    assert found == [False, True]  # gone on with, and then done
    step(learning_rate=0.2)
    assert found == [False, True, False]
    image.write_bytes(b"another image")
    step(learning_rate=0.2)
    assert found == [False, True, False, False]


def test_options_of_unknown_configs_are_refused(tmp_path):
    (tmp_path / "options.json").write_text('{"uad_autoencoder/trainn": {}}')
    with pytest.raises(InputError, match="has 'uad_autoencoder/trainn', expected <bundle>/<config>"):
        read_options(str(tmp_path / "options.json"))


def test_masks_are_matched_by_the_names_of_their_classes():
    channels = {"0": "background", "1": "CSF", "2": "GM", "3": "WM", "4": "lesion"}
    assert TARGETS["lesion"].mask_values(channels) == {1: 0, 2: 0, 3: 0, 4: 1}
    assert TARGETS["tissue"].mask_values(channels) == {1: 1, 2: 2, 3: 3, 4: 0}
    assert TARGETS["lesion"].mask_values({"0": "background", "1": "anomaly"}) == {1: 1}
    with pytest.raises(InputError, match="masks have csf, expected lesion among them"):
        TARGETS["lesion"].mask_values({"0": "background", "1": "CSF"})


def test_label_of_another_data_set_is_not_taken_for_the_target():
    assert TARGETS["lesion"].label_of({"label": "a", "dataset": "tissue"}) is None
    assert TARGETS["tissue"].label_of({"label": "a", "dataset": "tissue"}) == "a"
    assert TARGETS["tissue"].label_of({"label": "a", "tissues": "b"}) == "b"


def test_a_lesion_in_a_map_of_tissues_says_nothing_of_the_tissue():
    assert TARGETS["tissue"].reference_sets == {
        "tissue": {0: [0], 1: [1], 2: [2], 3: [3], 4: [0, 1, 2, 3]},
    }
    assert TARGETS["lesion"].reference_sets is None


# the whole


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Two patients for each part, and one or two healthy subjects."""
    groups = {"ms": (2, 2, 2), "healthy": (2, 2, 1)}
    folder = tmp_path_factory.mktemp("phantoms") / "cohort"
    return make_cohort(folder, groups, spacing=6.0, sequences=("T1w", "FLAIR"), seed=5, fine_mm=2.0, num_workers=1)


@pytest.fixture(scope="module")
def shipped(random_bundles, cohort, tmp_path_factory) -> list[Comparison]:
    folder = tmp_path_factory.mktemp("shipped")
    comparisons = [
        Comparison(Datalist(cohort), folder, target, random_bundles, QUICK, options=OPTIONS, device="cpu")
        for target in TARGETS
    ]
    compare(comparisons, "A <page>", "", "the command")
    return comparisons


@pytest.mark.slow
def test_page_holds_every_method_and_case_and_fetches_nothing(shipped):
    page = (shipped[0].output_dir / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Lesion", "Tissue"]
    assert "<title>A &lt;page&gt;</title>" in page
    for name in QUICK:
        assert f">{METHODS[name].title}" in page
    assert page.count("<article") == 3 + 3
    assert not re.search(r"https?:", page.replace("http://www.w3.org", ""))
    assert "default-src 'none'" in page


@pytest.mark.slow
def test_cases_have_pages_to_scroll_through_with_the_masks_of_all_methods(shipped):
    folder = shipped[0].output_dir
    page = (folder / "report.html").read_text()
    links = re.findall(r'<a class="look" href="(.*?)"', page)
    assert len(links) == 3 + 3
    assert {f"views/{path.relative_to(folder / 'views').as_posix()}" for path in folder.glob("views/*/*")} == {*links}
    for comparison in shipped:
        titles = [method.title for method in comparison.chosen]
        view = (folder / next(link for link in links if f"/{comparison.target}/" in link)).read_text()
        layers = json.loads(re.search(r'id="data">(.*?)</script>', view, re.DOTALL)[1])["layers"]
        assert [layer["name"] for layer in layers] == ["scan", "reference", *titles]
        assert '<a href="../../report.html">all cases</a>' in view
        assert str(folder) not in view


@pytest.mark.slow
def test_tables_have_every_method_case_and_label(shipped):
    for comparison in shipped:
        folder, target = comparison.output_dir, comparison.target
        with (folder / f"{target}_cases.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        found = {(row["method"], row["case"], row["label_name"]) for row in rows}
        titles = [method.title for method in comparison.chosen]
        assert len(rows) == len(found) == len(titles) * 3 * len(comparison.aim.labels)
        assert (folder / f"{target}_cases.tsv").read_text().count("\n") == len(rows) + 1
        summary = (folder / f"{target}_summary.csv").read_text()
        assert all(title in summary for title in titles)
        pairs = len(titles) * (len(titles) - 1) // 2
        assert (folder / f"{target}_pairs.csv").read_text().count("\n") == pairs + 1


@pytest.mark.slow
def test_lesions_of_the_comparison_are_those_of_its_rows(shipped):
    for result in shipped[0].results:
        counts = {key: sum(row[key] for row in result.rows) for key in ("reference_lesions", "detected_lesions")}
        hit = [was_hit for _, _, was_hit in result.lesions]
        assert (len(hit), sum(hit)) == (counts["reference_lesions"], counts["detected_lesions"])
        volumes = sum(row["reference_ml"] for row in result.rows)
        assert sum(mm3 for _, mm3, _ in result.lesions) / 1000 == pytest.approx(volumes)


@pytest.mark.slow
def test_second_run_does_nothing_again(shipped, monkeypatch):
    monkeypatch.setattr("comparison.trial.open_configs", None)  # any step would fail
    first = shipped[0]
    again = Comparison(
        first.datalist, first.output_dir, first.target, first.bundles, QUICK, options=OPTIONS, device="cpu"
    )
    compare([again], "Again", "", "the command", max_views=1)
    rows, expected = ([r.rows for r in c.results] for c in (again, first))
    assert json.dumps(rows, default=str) == json.dumps(expected, default=str)
    (view,) = first.output_dir.glob("views/lesion/*")  # the pages of the first run are gone
    assert f'href="views/lesion/{view.name}"' in (first.output_dir / "report.html").read_text()


def test_label_that_was_corrected_is_scored_again(random_bundles, tmp_path):
    datalist = save_datalist(tmp_path, {"test": [{"subject": "0"}]})

    def volume() -> float:
        options = {"uad_autoencoder/inference": {"spacing": [2.0, 2.0, 2.0]}}
        comparison = Comparison(
            Datalist(datalist),
            tmp_path / "out",
            "lesion",
            random_bundles,
            ["flair_threshold"],
            options=options,
            device="cpu",
        )
        comparison.run()
        return comparison.results[0].rows[0]["reference_ml"]

    before = volume()
    made = make_head(0, shape=(12, 14, 10))
    save_nifti(tmp_path / "0_lesion.nii.gz", made.brain, made.affine)
    assert volume() > before


def test_method_that_one_fold_does_not_fit_has_no_results_at_all(tmp_path, monkeypatch):
    cases = [{"subject": str(i), "fold": i} for i in range(3)]
    datalist = save_datalist(tmp_path, {"training": cases})
    methods = ["flair_threshold", "unet"]
    comparison = Comparison(Datalist(datalist), tmp_path / "out", "lesion", BUNDLES[0].parent, methods, "train")

    def result(trial, method) -> SimpleNamespace:
        if method.name == "unet" and trial.split.number == 1:
            raise Unfit("it lacks something")
        return SimpleNamespace(method=method, fold=trial.split.number)

    monkeypatch.setattr(comparison, "_result", result)
    comparison.run()
    assert [(r.method.name, r.fold) for r in comparison.results] == [("flair_threshold", fold) for fold in range(3)]
    assert comparison.unfit == {"U-Net, labels": "it lacks something"}


@pytest.mark.slow
def test_prediction_that_two_targets_share_is_made_once(random_bundles, cohort, tmp_path):
    for target in TARGETS:
        methods = [f"ace_{target}"]
        Comparison(
            Datalist(cohort), tmp_path / "out", target, random_bundles, methods, options=OPTIONS, device="cpu"
        ).run()
    (folder,) = (tmp_path / "out" / "runs" / "shipped" / "masks").iterdir()
    assert {path.name for path in folder.glob("scores_*.json")} == {"scores_lesion.json", "scores_tissue.json"}


DIFFUSION = BUNDLES[0].parent / "diffusion_recon_unet"


def settings_of(*layers: str, **overrides: object) -> str:
    return network_settings(open_configs(DIFFUSION, ["inference", *layers], **overrides).parser)


def test_only_configs_that_read_the_same_output_share_it():
    assert settings_of("inference_reconstruction") == settings_of() == settings_of("inference_unet", threshold=0.1)
    others = [settings_of("inference_light"), settings_of(seed=1), settings_of(spacing=[6.0, 6.0, 6.0])]
    others += [settings_of(weights="other.pt"), settings_of(datalist_file="other.json"), settings_of(amp=True)]
    assert len({settings_of(), *others}) == 1 + len(others)


def test_an_output_is_taken_for_the_same_image_and_counts_what_it_took():
    outputs, calls = Outputs(max_bytes=2 * 8 * 4), []

    def double(image, network):
        calls.append(image.clone())
        return 2 * image

    images = [torch.full((1, 1, 2, 4), float(i)) for i in range(3)]
    first, second = (SharedInferer(double, outputs) for _ in range(2))
    for image in images:
        first(image, None).zero_()  # what follows may change its own copy
    outputs._kept = {name: (output, 7.0) for name, (output, _) in outputs._kept.items()}
    found = [second(image, None) for image in images]
    assert all(torch.equal(output, 2 * image) for output, image in zip(found, images, strict=True))
    assert [float(image.max()) for image in calls] == [0, 1, 2, 2]  # there was no room for the third
    assert (first.saved_seconds, second.saved_seconds) == (0, 14)


@pytest.mark.slow
def test_two_methods_that_read_one_network_run_it_once_and_find_what_each_finds_alone(
    random_bundles, cohort, tmp_path, monkeypatch
):
    from diffusion_recon_unet.inferer import VolumeInferer

    calls, infer = [], VolumeInferer.__call__

    def counted(self, inputs, network):
        calls.append(inputs)
        return infer(self, inputs, network)

    monkeypatch.setattr(VolumeInferer, "__call__", counted)

    def masks(folder: str, *methods: str) -> dict[str, bytes]:
        datalist, options = Datalist(cohort), {"options": OPTIONS, "device": "cpu"}
        Comparison(datalist, tmp_path / folder, "lesion", random_bundles, [*methods], **options).run()
        found = tmp_path.glob(f"{folder}/runs/shipped/masks/*/*.nii.gz")
        return {f"{path.parent.name}/{path.name}": nib.load(path).get_fdata().tobytes() for path in found}

    together = masks("both", "diffusion_reconstruction", "diffusion")
    assert len(calls) == 3  # cases
    assert len(together) == 2 * 2 * 3
    assert together == masks("one", "diffusion_reconstruction") | masks("other", "diffusion")


def test_what_a_stopped_process_leaves_undone_is_done_afterwards(random_bundles, tmp_path, monkeypatch):
    datalist = save_datalist(tmp_path, {"test": [{"subject": "0"}]})
    options = {"uad_autoencoder/inference": {"spacing": [2.0, 2.0, 2.0]}}
    arguments = ("lesion", random_bundles, ["flair_threshold"])
    comparison = Comparison(Datalist(datalist), tmp_path / "out", *arguments, options=options, device="cpu")

    class Stopped:
        def submit(self, work, *arguments):
            future = Future()
            future.set_exception(BrokenProcessPool("stopped"))
            return future

    monkeypatch.setattr("comparison.side_by_side.process_pool", lambda *arguments: nullcontext(Stopped()))
    compare([comparison], "A page", "", "the command", num_workers=2)
    assert [result.method.name for result in comparison.results] == ["flair_threshold"]


@pytest.mark.slow
def test_methods_are_trained_on_the_sections_and_thresholds_chosen_on_validation(random_bundles, cohort, tmp_path):
    methods = ["flair_threshold", "uad_residual", "uad_pseudo", "unet", "ace_lesion"]
    broken = {**OPTIONS, "ace_multitask/train": {"objective": "nonsense"}}  # a mistake that a user may make
    comparison = Comparison(
        Datalist(cohort),
        tmp_path / "out",
        "lesion",
        random_bundles,
        methods,
        "train",
        seeds=[0],
        options=broken,
        device="cpu",
    )
    with pytest.raises(InputError, match=r"1 of the runs or cases failed, see .*; the first, ACE, fold 0, seed 0: "):
        compare([comparison], "Trained", "", "the command")
    assert [r.method.name for r in comparison.results] == methods[:-1]
    for result in comparison.results:
        assert result.threshold_source.startswith("best pooled Dice")
        assert "validation of fold 0" in result.threshold_source
    page = (tmp_path / "out" / "report.html").read_text()
    assert "ACE, fold 0, seed 0" in page
    # teacher and student share one auto-encoder, and nobody trained on a test subject
    assert len(list((tmp_path / "out").rglob("autoencoder.pt"))) == 1
    tested = set(comparison.cases)
    for path in (tmp_path / "out").rglob("datalists/*.json"):
        content = json.loads(path.read_text())
        for part in ("training", "validation"):
            assert not tested & {case["case"] for case in content.get(part, [])}
    assert Digest(comparison).methods == [METHODS[name].title for name in methods[:-1]]


def test_the_star_is_at_the_highest_dice_and_at_the_lowest_distance_and_error():
    def result(title, dice, hd95_mm, volume_ml):
        row = {"case": "a", "label_name": "lesion", "dice": dice, "average_precision": dice, "lesion_f1": dice}
        row |= {"hd95_mm": hd95_mm, "volume_difference_ml": volume_ml - 10, "reference_empty": False}
        return SimpleNamespace(method=SimpleNamespace(title=title), rows=[row])

    results = [result("good", 0.8, 2.0, 11.0), result("bad", 0.4, 9.0, 30.0)]
    aim = SimpleNamespace(lesions=True, labels={1: "lesion"})
    digest = Digest(SimpleNamespace(results=results, cases={"a": {"subject": "a"}}, aim=aim))
    assert {score.title for score in digest.shown_scores} >= {"Dice", "HD95, mm", "volume error, ml"}
    assert {digest.best(score) for score in digest.shown_scores} == {"good"}


def digest_of(**methods):
    """Of one row per method and case, with a distance of surfaces and nothing else."""
    empty = dict.fromkeys(("dice", "average_precision", "lesion_f1", "volume_difference_ml"))
    results = [
        SimpleNamespace(
            method=SimpleNamespace(title=title),
            rows=[{"case": case, "label_name": "lesion", "reference_empty": False} | empty | {"hd95_mm": mm}
                  for case, mm in distances.items()],
        )
        for title, distances in methods.items()
    ]  # fmt: skip
    aim = SimpleNamespace(lesions=True, labels={1: "lesion"})
    return Digest(SimpleNamespace(results=results, cases={c: {"subject": c} for c in "abc"}, aim=aim))


def test_who_finds_nothing_in_most_cases_has_not_the_smallest_distance():
    digest = digest_of(misses={"a": 1.0, "b": np.inf, "c": np.inf}, finds={"a": 5.0, "b": 6.0, "c": 7.0})
    assert (digest.number("misses", HD95), digest.number("finds", HD95)) == (np.inf, 6.0)
    assert digest.best(HD95) == "finds"


def test_methods_are_judged_on_the_cases_that_all_of_them_have():
    digest = digest_of(all={"a": 1.0, "b": 2.0, "c": 9.0}, some={"b": 4.0, "a": 3.0})
    assert digest.common == ["a", "b"]
    assert digest.number("all", HD95) == 1.5


def test_too_small_a_volume_is_as_wrong_as_too_large_a_one():
    assert [VOLUME.value({"volume_difference_ml": ml}) for ml in (-3.0, 3.0, None)] == [3.0, 3.0, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "methods"),
    [
        ("lesion", ["diffusion", "diffusion_reconstruction", "ace_lesion"]),
        ("tissue", ["ace_tissue", "sae", "deepatlas", "propagation", "unet_tissue"]),
    ],
)
def test_every_way_of_training_runs(target, methods, random_bundles, cohort, tmp_path):
    comparison = Comparison(
        Datalist(cohort), tmp_path / "out", target, random_bundles, methods, "train", options=OPTIONS, device="cpu"
    )
    compare([comparison], "Trained", "", "the command")
    assert [result.method.name for result in comparison.results] == methods
    for result in comparison.results:
        assert len(result.case_of) == 3
    assert list((tmp_path / "out").rglob("models/*.pt"))


@pytest.mark.slow
def test_case_that_fails_is_named_and_left_out_for_all(random_bundles, cohort, tmp_path):
    shutil.copytree(cohort.parent, tmp_path / "cohort")
    content = json.loads((tmp_path / "cohort" / "datalist.json").read_text())
    scan = tmp_path / "cohort" / content["test"][0]["image"][1]
    scan.write_bytes(scan.read_bytes()[:-2000])
    methods = ["flair_threshold", "t1w_threshold"]
    comparison = Comparison(
        Datalist(tmp_path / "cohort" / "datalist.json"),
        tmp_path / "out",
        "lesion",
        random_bundles,
        methods,
        options=OPTIONS,
    )
    with pytest.raises(InputError, match="1 of the runs or cases failed"):
        compare([comparison], "One is broken", "", "the command")
    digest = Digest(comparison)
    assert len(digest.common) == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"FLAIR threshold, {content['test'][0]['subject']}" in page


@pytest.mark.slow
def test_method_that_the_cases_do_not_fit_is_left_out_with_the_reason(random_bundles, tmp_path):
    parts = {"training": [{"subject": "0"}], "validation": [{"subject": "1"}], "test": [{"subject": "2"}]}
    comparison = Comparison(
        Datalist(save_datalist(tmp_path, parts)),
        tmp_path / "out",
        "lesion",
        random_bundles,
        ["flair_threshold", "uad_residual", "diffusion"],
        "train",
        options={"uad_autoencoder/inference": {"spacing": [2.0, 2.0, 2.0]}},
        device="cpu",
    )
    compare([comparison], "Little data", "", "the command")
    assert comparison.unfit == {
        "UAD residual": "there are less than two healthy subjects to train on, expected cases with healthy: true",
        "cDDPM + U-Net": "there is no T1w among the images, which are FLAIR",
    }
