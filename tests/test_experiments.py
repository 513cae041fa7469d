"""What an experiment makes of its scores."""

from concurrent.futures import Future
from pathlib import Path

import pytest
from bundle_tools import load_script
from study import ace_multitask, deepatlas_joint, diffusion_recon_unet, sae_segmentation, uad_autoencoder
from study.tables import summarize, to_markdown

experiments = load_script("experiments")


def scores(study, value: float) -> dict[str, float]:
    return {score: value / i for i, score in enumerate(study.SCORES, start=1)}


def results(study=uad_autoencoder, **values: list[float]) -> dict[int, dict]:
    """Seed -> arm -> scores; the first score of arms that are not named is 0.5."""
    return {seed: {arm: scores(study, values.get(arm, [0.5] * 3)[seed]) for arm in study.ARMS} for seed in range(3)}


@pytest.mark.parametrize(
    ("student", "held"),
    [
        ([0.6, 0.7, 0.8], True),  # better in all seeds
        ([0.7, 0.7, 0.4], True),  # better on average and in two of three
        ([0.9, 0.4, 0.4], False),  # better on average, but in one seed only
        ([0.51, 0.51, 0.3], False),  # in two seeds, but not on average
        ([0.5, 0.5, 0.5], False),
    ],
)
def test_a_claim_holds_if_the_mean_gap_and_two_of_three_seeds_say_so(student, held):
    claims = summarize(results(A_S=student), uad_autoencoder.CLAIMS)["claims"]
    assert claims["A1"]["held"] is held
    assert claims["A1"]["gaps"] == pytest.approx([round(s - 0.5, 4) for s in student])


def test_the_table_shows_means_and_ranges_of_every_arm():
    summary = summarize(results(UAD=[0.2, 0.3, 0.4]), uad_autoencoder.CLAIMS)
    text = to_markdown(summary, uad_autoencoder.ARMS, uad_autoencoder.SCORES)
    assert "| UAD | auto-encoder's residual | 0.300 (0.200 to 0.400) | 0.150 (0.100 to 0.200) |" in text
    assert all(f"| {arm} |" in text for arm in uad_autoencoder.ARMS)
    assert "| A1 | the student beats its teacher | +0.300, +0.200, +0.100 | 0 | yes |" in text


@pytest.mark.parametrize(
    "study", [uad_autoencoder, ace_multitask, sae_segmentation, deepatlas_joint, diffusion_recon_unet]
)
def test_claims_are_about_arms_and_scores_that_there_are(study):
    for better, worse, score, _, text in study.CLAIMS.values():
        assert {better, worse} <= set(study.ARMS)
        assert score in study.SCORES
        assert text


def test_a_margin_below_zero_allows_a_little_loss():
    losing = results(ace_multitask, ace=[0.48, 0.48, 0.48])
    claims = summarize(losing, ace_multitask.CLAIMS)["claims"]
    assert claims["2a"]["held"]
    assert not claims["1"]["held"]


def test_a_bundle_without_an_experiment_is_refused(tmp_path):
    with pytest.raises(
        Exception,
        match=r"bundle is 'other', expected uad_autoencoder, .*, diffusion_recon_unet or all",
    ):
        experiments.main("other", output_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


class OneAfterTheOther:
    """An executor that does what it is given at once, and keeps what that was."""

    def __init__(self) -> None:
        self.arms = []

    def submit(self, work, *arguments) -> Future:
        self.arms.append(arguments[0])
        future = Future()
        future.set_result(work(*arguments))
        return future


def test_every_arm_runs_once_and_pseudo_labels_wait_for_the_teacher(tmp_path, monkeypatch):
    seed = uad_autoencoder.Study(tmp_path, 0)
    pseudo = tmp_path / "pseudo_labels" / "datalist.json"

    def teach():
        pseudo.parent.mkdir()
        pseudo.touch()
        return scores(uad_autoencoder, 0.1)

    def learn(arm, options):
        assert pseudo.is_file()
        assert ("pseudo_datalist_file" in options) == arm.endswith("S")
        assert options.get("use_labels", True) == (arm != "A_S")
        return scores(uad_autoencoder, 0.5)

    monkeypatch.setattr(seed, "_make_data", lambda: None)
    monkeypatch.setattr(seed, "_teach", teach)
    monkeypatch.setattr(seed, "_learn", learn)
    monkeypatch.setattr(seed, "_score_threshold", lambda: scores(uad_autoencoder, 0.2))
    pool = OneAfterTheOther()
    first = seed.run(pool)
    assert sorted(pool.arms) == sorted(uad_autoencoder.ARMS)
    assert list(first) == list(uad_autoencoder.ARMS)
    assert first["UAD"] == scores(uad_autoencoder, 0.1)

    def again(*_):
        raise AssertionError("trained a second time")

    for name in ("_teach", "_learn", "_score_threshold"):
        monkeypatch.setattr(seed, name, again)
    assert seed.run(OneAfterTheOther()) == first


def test_weights_of_one_contrast_are_tried_on_another_once_they_are_learned(tmp_path, monkeypatch):
    seed = sae_segmentation.Study(tmp_path, 0)
    learned, applied = [], {}

    def learn(arm, sequence):
        learned.append((arm, sequence))
        return scores(sae_segmentation, 0.5)

    def apply(arm, sequence, atlas, method):
        assert not method.startswith("sae") or (method, "T1w") in learned
        applied[arm] = (sequence, atlas, method)
        return scores(sae_segmentation, 0.2)

    monkeypatch.setattr(sae_segmentation, "_make_data", lambda folder, number: None)
    monkeypatch.setattr(seed, "_learn", learn)
    monkeypatch.setattr(seed, "_apply", apply)
    assert list(seed.run(OneAfterTheOther())) == list(sae_segmentation.ARMS)
    assert applied["t2_of_t1"] == ("T2w", "good", "sae_good_mrf")
    assert applied["em_poor"] == ("T1w", "poor", "inference_em")
    assert ("t2_good_mrf", "T2w") in learned


def test_both_joint_trainings_begin_with_the_networks_that_were_trained_apart(tmp_path, monkeypatch):
    seed = deepatlas_joint.Study(tmp_path, 0)
    trained = []

    def train(arm, configs, **options):
        needed = [str(path) for path in options.values() if str(path).endswith(".pt")]
        assert all(Path(path).parts[-3] in trained for path in needed), f"{arm} needs {needed}"
        trained.append(arm)

    monkeypatch.setattr(deepatlas_joint, "_make_data", lambda folder, number: None)
    monkeypatch.setattr(seed, "_train", train)
    nan = float("nan")
    monkeypatch.setattr(seed, "_means", lambda arm, *columns: {"dice": 0.1, "tre": 6.0})
    monkeypatch.setattr(seed, "_score_registration", lambda arm, weights: {"dice": 0.5, "tre": 5.0, "folds": 1.0})
    monkeypatch.setattr(seed, "_score_segmentation", lambda *_, **__: {"dice": 0.7, "tre": nan, "folds": nan})
    monkeypatch.setattr(seed, "_propagation", lambda: {"dice": 0.4, "tre": nan, "folds": nan})
    found = seed.run(OneAfterTheOther())
    assert list(found) == list(deepatlas_joint.ARMS)
    assert found["unmoved"]["dice"] == 0.1
    assert (found["da1_registration"]["dice"], found["da4_segmentation"]["dice"]) == (0.5, 0.7)
    assert {"da1", "da4", "r0", "s1", "u4"} <= set(trained)


def test_every_unet_of_the_diffusion_bundle_stands_on_the_trained_first_stage(tmp_path, monkeypatch):
    seed = diffusion_recon_unet.Study(tmp_path, 0)
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
    monkeypatch.setattr(diffusion_recon_unet, "_make_data", lambda folder, number: None)
    monkeypatch.setattr(seed, "_similarity", lambda: 0.9)
    monkeypatch.setattr(seed, "_map", lambda arm, case: maps.get(arm, 0.0))
    monkeypatch.setattr(seed, "_score", lambda score_of: dict.fromkeys(diffusion_recon_unet.SCORES, score_of({})))
    found = seed.run(OneAfterTheOther())
    assert list(found) == list(diffusion_recon_unet.ARMS)
    assert found["SADM_res_T"]["dice_T"] == pytest.approx((0.2 + 0.8) / 2)
    assert found["SADM_res_T 0.1"]["dice_K"] == pytest.approx(0.1 * 0.2 + 0.9 * 0.8)
    painted = [options for configs, options in runs if configs == ["train"] and "healthy_datalist_file" in options]
    assert len(painted) == 2
    assert all("datalist_file" not in options for options in painted)
    assert [options["residual"] for options in painted] == [False, True]


def test_an_arm_that_a_score_is_not_about_has_no_number():
    arms = {arm: {"dice": [0.5], "tre": [5.0], "folds": [float("nan")]} for arm in deepatlas_joint.ARMS}
    text = to_markdown({"seeds": [0], "arms": arms, "claims": {}}, deepatlas_joint.ARMS, deepatlas_joint.SCORES)
    assert "| 0.500 (0.500 to 0.500) | 5.000 (5.000 to 5.000) | – |" in text
