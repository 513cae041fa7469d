"""What an experiment makes of its scores, and that all of them run."""

import json
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from bundle_tools import BUNDLES, ROOT

import render_evidence
from common.errors import InputError
from experiments import main
from study import ace_multitask, deepatlas_joint, diffusion_recon_unet, sae_segmentation, uad_autoencoder
from study.evidence import put_between, read, render, summary_table, update
from study.experiment import BUNDLES as WITH_STUDY
from study.experiment import ENVIRONMENT, minutes, run_all
from study.seed import dice_parts, result_of
from study.verdicts import Claim, interval_of_gap, judge, summarize, verdict

STUDIES = (uad_autoencoder, ace_multitask, sae_segmentation, deepatlas_joint, diffusion_recon_unet)
EVIDENCE = ROOT / "docs" / "evidence"


def result(study, value: float) -> dict:
    """Of two subjects, one a little better than the other; the mean of the first score is the value."""
    return result_of(
        {s: {"a": (value / i + 0.01, 1), "b": (value / i - 0.01, 1)} for i, s in enumerate(study.SCORES, 1)}
    )


def results(study=uad_autoencoder, **values: list[float]) -> dict[int, dict]:
    """Seed -> arm -> result; the first score of arms that are not named is 0.5."""
    return {seed: {arm: result(study, values.get(arm, [0.5] * 3)[seed]) for arm in study.ARMS} for seed in range(3)}


@pytest.mark.parametrize(
    ("interval", "margin", "expected"),
    [
        ((0.01, 0.2), 0.0, "held"),
        ((-0.2, -0.01), 0.0, "not held"),
        ((-0.01, 0.2), 0.0, "within noise"),
        ((0.0, 0.2), 0.0, "within noise"),  # a bound on the margin leaves it open
        ((0.01, 0.2), 0.1, "within noise"),  # above 0, which is not asked
        ((-0.04, -0.01), -0.05, "held"),  # a little loss is allowed
        ((0.01, 0.05), 0.08, "not held"),  # better, but by too little
    ],
)
def test_a_claim_is_judged_by_the_place_of_the_interval(interval, margin, expected):
    assert verdict(interval, margin) == expected


def test_without_spread_the_interval_is_the_gap():
    better, worse = {"a": (3, 4), "b": (3, 4)}, {"a": (1, 4), "b": (1, 4)}
    assert interval_of_gap([better] * 3, [worse] * 3) == pytest.approx((0.5, 0.5))


def test_arms_are_compared_subject_by_subject():
    # subjects differ by 0.8, arms by 0.01: unpaired, that would drown
    worse = {"a": (0.1, 1), "b": (0.9, 1)}
    better = {"a": (0.11, 1), "b": (0.91, 1)}
    assert interval_of_gap([better], [worse]) == pytest.approx((0.01, 0.01))


def test_the_interval_of_one_seed_is_over_its_subjects():
    # gaps 0 and 1, two subjects drawn: 0, 1/2 and 1 with the probabilities 1/4, 1/2 and 1/4
    better, worse = {"a": (0, 1), "b": (1, 1)}, {"a": (0, 1), "b": (0, 1)}
    assert interval_of_gap([better], [worse], level=0.6) == (0.0, 1.0)  # a fifth cut off on each side
    assert interval_of_gap([better], [worse], level=0.4) == (0.5, 0.5)  # three tenths


def test_seeds_that_disagree_leave_a_claim_open_although_their_subjects_agree():
    worse = [{"a": (0.5, 1), "b": (0.5, 1)}] * 3
    better = [{"a": (0.5 + gap, 1), "b": (0.5 + gap, 1)} for gap in (0.1, 0.1, -0.05)]
    low, high = interval_of_gap(better, worse)
    # all three draws are the losing seed in 1 of 27 resamples, more than 2.5 %
    assert (low, high) == pytest.approx((-0.05, 0.1))


def test_a_pooled_score_weighs_subjects_by_their_denominator():
    # 2 TP of 2 TP + FP + FN: 0 of 10 and 90 of 90
    assert result_of({"dice": {"a": (0, 10), "b": (90, 90)}})["values"]["dice"] == pytest.approx(0.9)
    assert dice_parts(np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 1], bool)) == (2, 5)


def test_arms_that_were_tested_on_different_people_are_not_compared():
    with pytest.raises(ValueError, match="differ"):
        interval_of_gap([{"a": (1, 1)}], [{"b": (1, 1)}])


def test_a_claim_keeps_gaps_interval_and_the_figures_of_the_paper():
    claim = summarize(results(A_S=[0.6, 0.7, 0.8]), uad_autoencoder)["claims"]["A1"]
    assert claim["gaps"] == pytest.approx([0.1, 0.2, 0.3])
    assert claim["gap"] == pytest.approx(0.2)
    assert claim["interval"] == pytest.approx([0.1, 0.3])  # all draws are the same seed in 1 of 27 resamples
    assert claim["verdict"] == "held"
    assert claim["subjects"] == 6
    assert claim["paper"] == {"better": 0.6792, "worse": 0.6343}


def test_nearer_is_better():
    outcome = summarize(results(deepatlas_joint, da1_registration=[0.4] * 3), deepatlas_joint)["claims"]
    assert outcome["T1"]["gaps"] == [0.05] * 3  # tre is the second score: half the first
    assert outcome["T1"]["verdict"] == "held"
    assert outcome["O1"]["verdict"] == "not held"


def test_the_paper_may_have_tested_a_claim_with_other_arms():
    claim = Claim("x", "y", "dice", 0.0, "text", paper=("p", "q"))
    arms = {arm: result_of({"dice": {"a": (0.5, 1)}}) for arm in "xy"}
    assert judge(claim, {1: arms}, {"p": {"dice": 0.9}, "q": {"dice": 0.7}})["paper"] == {"better": 0.9, "worse": 0.7}
    assert judge(claim, {1: arms}, {"p": {"dice": 0.9}})["paper"] is None


@pytest.mark.parametrize("study", STUDIES)
def test_claims_are_about_arms_and_scores_that_there_are(study):
    for claim in study.CLAIMS.values():
        assert {claim.better, claim.worse, *(claim.paper or ())} <= set(study.ARMS)
        assert claim.score in study.SCORES
        assert claim.text
    assert set(study.PAPER) <= set(study.ARMS)
    assert {score for figures in study.PAPER.values() for score in figures} <= set(study.SCORES)
    assert set(study.BUDGETS) == {"cpu", "gpu", "tiny"}


def test_a_claim_on_an_arm_that_was_left_out_is_left_out():
    found = results(ace_multitask)
    for arms in found.values():
        del arms["ace_patch"]
    assert set(ace_multitask.CLAIMS) - set(summarize(found, ace_multitask)["claims"]) == {"7"}


def test_a_bundle_without_a_study_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"bundle is 'other', expected ace_multitask, .*, uad_autoencoder or all"):
        main("other", output_dir=str(tmp_path / "a"), evidence_dir=str(tmp_path / "b"))
    assert not list(tmp_path.iterdir())


def test_scores_of_other_settings_are_not_taken_for_new_ones(tmp_path):
    def study(**changed):
        return uad_autoencoder.Study(tmp_path, 3, {**uad_autoencoder.BUDGETS["cpu"], **changed})

    study().keep_settings("0.1.0")
    study().keep_settings("0.1.0")
    with pytest.raises(InputError, match=r"settings\.json: few is 5, the folder has .*; expected the same"):
        study(few=5).keep_settings("0.1.0")
    with pytest.raises(InputError, match=r"version is 0\.2\.0, the folder has 0\.1\.0"):
        study().keep_settings("0.2.0")


def test_minutes_of_trainings_side_by_side_count_once_and_pauses_do_not():
    # 0 to 100 s, of which 40 to 60 twice; then a pause; then 200 to 220
    assert minutes([[(0, 60), (200, 220)], [(40, 100)]]) == pytest.approx(2.0)


class OneAfterTheOther:
    """An executor that does what it is given at once, and keeps what that was."""

    def __init__(self) -> None:
        self.arms = []

    def submit(self, work, arm, *arguments) -> Future:
        self.arms.append(arm)
        future = Future()
        future.set_result(work(arm, *arguments))
        return future


def test_every_arm_runs_once_and_pseudo_labels_wait_for_the_teacher(tmp_path, monkeypatch):
    seed = uad_autoencoder.Study(tmp_path, 0, uad_autoencoder.BUDGETS["cpu"])
    pseudo = tmp_path / "pseudo_labels" / "datalist.json"

    def teach():
        pseudo.parent.mkdir()
        pseudo.touch()
        return result(uad_autoencoder, 0.1)

    def learn(arm, options):
        assert pseudo.is_file()
        assert ("pseudo_datalist_file" in options) == arm.endswith("S")
        assert options.get("use_labels", True) == (arm != "A_S")
        return result(uad_autoencoder, 0.5)

    monkeypatch.setattr(seed, "_make_data", dict)
    monkeypatch.setattr(seed, "_teach", teach)
    monkeypatch.setattr(seed, "_learn", learn)
    monkeypatch.setattr(seed, "_score_threshold", lambda: result(uad_autoencoder, 0.2))
    pool = OneAfterTheOther()
    first = seed.run(pool)
    assert sorted(pool.arms) == sorted(["data", *uad_autoencoder.ARMS])
    assert list(first) == list(uad_autoencoder.ARMS)
    assert first["UAD"]["values"] == result(uad_autoencoder, 0.1)["values"]

    def again(*_):
        raise AssertionError("trained a second time")

    for name in ("_make_data", "_teach", "_learn", "_score_threshold"):
        monkeypatch.setattr(seed, name, again)
    assert seed.run(OneAfterTheOther()) == first


def test_weights_of_one_contrast_are_tried_on_another_once_they_are_learned(tmp_path, monkeypatch):
    seed = sae_segmentation.Study(tmp_path, 0, sae_segmentation.BUDGETS["cpu"])
    learned, applied = [], {}

    def learn(arm, sequence):
        learned.append((arm, sequence))
        return result(sae_segmentation, 0.5)

    def apply(arm, sequence, atlas, method):
        assert not method.startswith("sae") or (method, "T1w") in learned
        applied[arm] = (sequence, atlas, method)
        return result(sae_segmentation, 0.2)

    monkeypatch.setattr(sae_segmentation, "_make_data", lambda *_: {})
    monkeypatch.setattr(seed, "_learn", learn)
    monkeypatch.setattr(seed, "_apply", apply)
    assert list(seed.run(OneAfterTheOther())) == list(sae_segmentation.ARMS)
    assert applied["t2_of_t1"] == ("T2w", "good", "sae_good_mrf")
    assert applied["em_poor"] == ("T1w", "poor", "inference_em")
    assert ("t2_good_mrf", "T2w") in learned


def test_both_joint_trainings_begin_with_the_networks_that_were_trained_apart(tmp_path, monkeypatch):
    seed = deepatlas_joint.Study(tmp_path, 0, deepatlas_joint.BUDGETS["cpu"])
    trained = []

    def train(arm, configs, **options):
        needed = [str(path) for path in options.values() if str(path).endswith(".pt")]
        assert all(Path(path).parts[-3] in trained for path in needed), f"{arm} needs {needed}"
        trained.append(arm)

    monkeypatch.setattr(deepatlas_joint, "_make_data", lambda *_: {})
    monkeypatch.setattr(seed, "_train", train)
    score = {"registration": 0.5, "segmentation": 0.7, "pairs": 0.1}
    for name, value in score.items():
        method = "_pairs" if name == "pairs" else f"_score_{name}"
        monkeypatch.setattr(seed, method, lambda *_, value=value, **__: result_of({"dice": {"a": (value, 1)}}))
    monkeypatch.setattr(seed, "_propagation", lambda: result_of({"dice": {"a": (0.4, 1)}}))
    found = seed.run(OneAfterTheOther())
    assert list(found) == list(deepatlas_joint.ARMS)
    dice = {arm: part["values"]["dice"] for arm, part in found.items()}
    assert (dice["unmoved"], dice["da1_registration"], dice["da4_segmentation"]) == (0.1, 0.5, 0.7)
    assert {"da1", "da4", "r0", "s1", "u4"} <= set(trained)


def test_pairs_are_drawn_by_their_fixed_subject(tmp_path):
    folder = tmp_path / "r0" / "pairs"
    folder.mkdir(parents=True)
    (folder / "registration.csv").write_text("pair,tre_mm\na_from-b,1\na_from-c,2\nb_from-a,6\n")
    found = deepatlas_joint.Study(tmp_path, 0, {})._pairs("r0", tre="tre_mm")
    assert found == {"values": {"tre": 3.0}, "cases": {"tre": {"a": (3.0, 2.0), "b": (6.0, 1.0)}}}


def test_every_unet_of_the_diffusion_bundle_stands_on_the_trained_first_stage(tmp_path, monkeypatch):
    seed = diffusion_recon_unet.Study(tmp_path, 0, diffusion_recon_unet.BUDGETS["cpu"])
    runs = []

    def run(bundle, configs, **options):
        runs.append((configs, options))
        for path in (options.get("diffusion_weights"), options.get("weights"), options.get("statistics_file")):
            assert path is None or path.is_file(), f"{configs} needs {path}"
        if configs[0].startswith("train"):
            light = len(configs) > 1
            name = {"train_diffusion": "denoising" if light else "diffusion", "train": "model"}[configs[0]]
            for file in (options.get("weights_name", f"{name}.pt"), "statistics.json"):
                options["ckpt_dir"].mkdir(parents=True, exist_ok=True)
                (options["ckpt_dir"] / file).touch()

    maps = {"cDDPM": 0.2, "Unet_T": 0.4, "Unet_res_T": 0.8}
    monkeypatch.setattr(diffusion_recon_unet, "run_configs", run)
    monkeypatch.setattr(diffusion_recon_unet, "_make_data", lambda *_: {})
    monkeypatch.setattr(seed, "_similarity", lambda: 0.9)
    monkeypatch.setattr(seed, "_map", lambda arm, case: maps.get(arm, 0.0))
    monkeypatch.setattr(seed, "_score", lambda score_of, **_: result_of({"dice_T": {"a": (score_of({}), 1)}}))
    found = seed.run(OneAfterTheOther())
    assert list(found) == list(diffusion_recon_unet.ARMS)
    assert found["SADM_res_T"]["values"]["dice_T"] == pytest.approx((0.2 + 0.8) / 2)
    assert found["SADM_res_T 0.1"]["values"]["dice_T"] == pytest.approx(0.1 * 0.2 + 0.9 * 0.8)
    painted = [options for configs, options in runs if configs == ["train"] and "healthy_datalist_file" in options]
    assert len(painted) == 2
    assert all("datalist_file" not in options for options in painted)
    assert [options["residual"] for options in painted] == [False, True]


def experiment() -> dict:
    """What scripts/experiments.py makes of scores that need no training."""
    found = results(deepatlas_joint, da1_registration=[0.6, 0.7, 0.8])
    for arms in found.values():
        for score in ("tre", "folds"):
            del arms["u1"]["values"][score]
    return {
        "command": "python scripts/experiments.py deepatlas_joint",
        "budget": "cpu",
        "version": "0.1.0",
        "minutes": 9.5,
        "settings": {},
        "paper_note": "31 regions",
        "machine": "Linux, 2 cores",
        **summarize(found, deepatlas_joint),
    }


def real_scans(**changed) -> dict:
    def row(method, mean, **kind):
        values = {"p07": mean - 0.1, "p19": mean + 0.1}
        scores = {"Dice": {"mean": mean, "interval": None, "values": values}}
        return {"method": method, "baseline": False, "shipped": False, "scores": scores} | kind

    rows = [
        row("network", 0.5, shipped=True),
        row("threshold", 0.3, baseline=True),
        row("mixture", 0.4, baseline=True),
        row("another way", 0.9),
    ]
    return {
        "command": "python scripts/real.py",
        "machine": "Linux, 2 cores",
        "version": "0.1.0",
        "sets": [{"name": "ms", "title": "MS patients", "subjects": 2, "note": "Public.", "rows": rows} | changed],
    }


def test_the_page_has_every_arm_and_every_claim_beside_the_paper(tmp_path):
    page = update(tmp_path, "deepatlas_joint", "experiment", experiment()).read_text()
    assert all(f"| `{arm}` |" in page for arm in deepatlas_joint.ARMS)
    assert "| 0.700 (0.600 to 0.800) | 0.565 |" in page  # da1_registration, 0.5654 in the paper
    assert "| `u1` | segmentation network, 1 labeled | 0.500 (0.500 to 0.500) | – | – | – |" in page
    line = next(line for line in page.splitlines() if line.startswith("| O1 |"))
    assert "+0.200 (+0.100 to +0.300) | +0.100, +0.200, +0.300 | 0 | 6 | +0.018 (0.565, 0.547) | **held** |" in line


def test_the_page_has_single_values_of_few_subjects_and_intervals_of_many(tmp_path):
    page = update(tmp_path, "deepatlas_joint", "real_scans", real_scans()).read_text()
    assert "| network | shipped | 0.500 (p07 0.400, p19 0.600) |" in page
    many = {f"p{i}": 0.5 for i in range(4)}
    row = {"method": "network", "baseline": False, "shipped": True}
    row["scores"] = {"Dice": {"mean": 0.5, "interval": [0.4, 0.6], "values": many}}
    page = update(tmp_path, "deepatlas_joint", "real_scans", real_scans(subjects=4, rows=[row])).read_text()
    assert "| network | shipped | 0.500 (0.400 to 0.600) |" in page


def test_an_update_leaves_the_other_part_alone(tmp_path):
    update(tmp_path, "deepatlas_joint", "real_scans", real_scans())
    update(tmp_path, "deepatlas_joint", "experiment", experiment())
    assert read(tmp_path, "deepatlas_joint")["real_scans"] == real_scans()
    with pytest.raises(InputError, match="key is 'other', expected experiment or real_scans"):
        update(tmp_path, "deepatlas_joint", "other", {})
    with pytest.raises(ValueError, match="JSON"):
        update(tmp_path, "deepatlas_joint", "experiment", {"minutes": float("nan")})
    assert read(tmp_path, "deepatlas_joint")["experiment"] == json.loads(json.dumps(experiment()))


def test_the_summary_counts_claims_of_the_paper_and_names_the_best_baseline():
    lines = summary_table(
        [{"bundle": "x", "experiment": experiment(), "real_scans": real_scans()}, {"bundle": "y"}]
    ).splitlines()
    # one arm is better by 0.1 to 0.3: O1 holds, O6 fails, O5 holds by its margin, O2a, O3, O4 are ties
    assert lines[2] == "| [`x`](docs/evidence/x.md) | 2 / 3 / 1 | Dice: MS patients, 2 | 0.500 | 0.400, mixture |"
    assert lines[3] == "| `y` | – | – | – | – |"


def test_the_summary_stands_between_its_marks(tmp_path):
    page = "a\n<!-- evidence -->\nold\n<!-- /evidence -->\nb\n"
    assert put_between(page, "new", "evidence") == page.replace("old", "new")
    with pytest.raises(InputError, match="each once"):
        put_between("a\n<!-- evidence -->\n", "new", "evidence")


def test_pages_that_say_something_else_than_the_evidence_are_found_and_mended(tmp_path):
    card = tmp_path / "bundles" / "deepatlas_joint" / "docs" / "README.md"
    for path, text in (
        (tmp_path / "README.md", "<!-- evidence -->\n<!-- /evidence -->\n<!-- bundles -->\n<!-- /bundles -->\n"),
        (card, "<!-- claims -->\n<!-- /claims -->\n"),
        (card.parents[1] / "configs" / "metadata.json", "{}"),
        (card.parents[1] / "description.py", (BUNDLES[0].parent / "deepatlas_joint" / "description.py").read_text()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    page = update(tmp_path / "docs" / "evidence", "deepatlas_joint", "experiment", experiment())
    with pytest.raises(InputError, match=r"README.md differs from the evidence"):
        render_evidence.main(check=True, root=str(tmp_path))
    render_evidence.main(root=str(tmp_path))
    render_evidence.main(check=True, root=str(tmp_path))
    readme = (tmp_path / "README.md").read_text()
    assert "2 / 3 / 1" in readme
    assert "\n### `deepatlas_joint`\n\nRegistration and segmentation networks that teach each other." in readme
    assert "| joint training helps registration, 1 labeled | +0.200 (+0.100 to +0.300) | 0 |" in card.read_text()
    page.write_text("edited")
    with pytest.raises(InputError, match=r"deepatlas_joint.md differs"):
        render_evidence.main(check=True, root=str(tmp_path))


def test_the_summary_takes_a_set_that_a_baseline_is_scored_on():
    healthy = real_scans(title="healthy")["sets"][0]
    alone = healthy | {"rows": [row for row in healthy["rows"] if not row["baseline"]]}
    both = {"sets": [alone, real_scans()["sets"][0]]}
    assert "Dice: MS patients, 2 | 0.500 | 0.400, mixture |" in summary_table([{"bundle": "x", "real_scans": both}])
    assert "Dice: healthy, 2 | 0.500 | – |" in summary_table([{"bundle": "x", "real_scans": {"sets": [alone]}}])


def test_readme_cards_and_pages_say_what_the_evidence_says():
    render_evidence.main(check=True)


def test_every_evidence_page_is_that_of_its_json():
    files = [path for path in EVIDENCE.glob("*.json") if path.stem in {bundle.name for bundle in BUNDLES}]
    assert len(files) == len(BUNDLES)
    of_tools = {"annotation", "volumes"}
    assert {path.stem for path in EVIDENCE.glob("*.md")} == {path.stem for path in files} | of_tools
    assert {path.stem for path in EVIDENCE.glob("*.json")} <= {path.stem for path in files} | of_tools
    for path in files:
        assert path.with_suffix(".md").read_text(encoding="utf-8") == render(read(EVIDENCE, path.stem)), path.stem


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__.split(".")[-1])
def test_the_evidence_is_of_the_arms_claims_and_settings_of_today(study):
    found = read(EVIDENCE, study.__name__.split(".")[-1])["experiment"]
    assert found["settings"] == json.loads(json.dumps(study.BUDGETS[found["budget"]]))
    assert found["scores"] == study.SCORES
    assert {name: arm["what"] for name, arm in found["arms"].items()} == {
        name: study.ARMS[name] for name in found["arms"]
    }
    for name, claim in found["claims"].items():
        assert (claim["claim"], claim["margin"]) == (study.CLAIMS[name].text, study.CLAIMS[name].margin)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_metadata_quotes_what_the_shipped_version_scores(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    real = read(EVIDENCE, bundle.name).get("real_scans", {"version": metadata["version"], "sets": []})
    assert real["version"] == metadata["version"]
    scores = [
        score for table in real["sets"] for row in table["rows"] if row["shipped"] for score in row["scores"].values()
    ]
    known = {round(value, 3) for score in scores for value in (score["mean"], *score["values"].values())}
    assert set(metadata["eval_metrics"].values()) <= known


@pytest.mark.slow
def test_every_experiment_trains_and_scores_all_its_arms_and_is_not_run_twice(tmp_path, monkeypatch):
    output, evidence = tmp_path / "experiments", tmp_path / "evidence"
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that what is set for the trainings ends with this test

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}

    run_all(WITH_STUDY, "tiny", (1,), 2, output, evidence)
    for study in STUDIES:
        name = study.BUNDLE.name
        found = read(evidence, name)["experiment"]
        assert list(found["arms"]) == list(study.ARMS)
        assert list(found["claims"]) == list(study.CLAIMS)
        assert all(np.isfinite(claim["interval"]).all() for claim in found["claims"].values())
        assert (evidence / f"{name}.md").read_text(encoding="utf-8") == render(read(evidence, name))
    before, pages = files(), {name: read(evidence, name) for name in WITH_STUDY}
    run_all(WITH_STUDY, "tiny", (1,), 1, output, evidence)
    assert files() == before
    for name, page in pages.items():
        assert {**read(evidence, name)["experiment"], "machine": ""} == {**page["experiment"], "machine": ""}
