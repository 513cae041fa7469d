"""What an experiment makes of its scores."""

from concurrent.futures import Future

import pytest
from bundle_tools import load_script

experiments = load_script("experiments")


def scores(dice: float) -> dict:
    found = {"dice": dice, "auprc": dice / 2, "oracle_dice": dice + 0.01, "lesion_f1": dice / 4}
    return {"A": found, "B": found}


def results(**dice: list[float]) -> dict[int, dict]:
    """Seed -> arm -> scores; arms that are not named have Dice 0.5."""
    return {seed: {arm: scores(dice.get(arm, [0.5] * 3)[seed]) for arm in experiments.ARMS} for seed in range(3)}


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
    claims = experiments.summarize(results(A_S=student))["claims"]
    assert claims["A1"]["held"] is held
    assert claims["A1"]["gap_dice"] == pytest.approx([round(s - 0.5, 4) for s in student])


def test_the_table_shows_means_and_ranges_of_every_arm():
    summary = experiments.summarize(results(UAD=[0.2, 0.3, 0.4]))
    text = experiments.to_markdown(summary)
    assert "| UAD | auto-encoder's residual | 0.300 (0.200 to 0.400) | 0.150 (0.100 to 0.200) |" in text
    assert all(f"| {arm} |" in text for arm in experiments.ARMS)
    assert "| A1 | the student beats its teacher | +0.300, +0.200, +0.100 | yes |" in text


def test_a_bundle_without_an_experiment_is_refused(tmp_path):
    with pytest.raises(Exception, match="bundle is 'other', expected uad_autoencoder"):
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
    seed = experiments._Seed(tmp_path, 0)
    pseudo = tmp_path / "pseudo_labels" / "datalist.json"

    def teach():
        pseudo.parent.mkdir()
        pseudo.touch()
        return scores(0.1)

    def learn(arm, options):
        assert pseudo.is_file()
        assert ("pseudo_datalist_file" in options) == arm.endswith("S")
        assert options.get("use_labels", True) == (arm != "A_S")
        return scores(0.5)

    monkeypatch.setattr(seed, "_make_data", lambda: None)
    monkeypatch.setattr(seed, "_teach", teach)
    monkeypatch.setattr(seed, "_learn", learn)
    monkeypatch.setattr(seed, "_score_threshold", lambda: scores(0.2))
    pool = OneAfterTheOther()
    first = seed.run(pool)
    assert sorted(pool.arms) == sorted(experiments.ARMS)
    assert list(first) == list(experiments.ARMS)
    assert first["UAD"] == scores(0.1)

    def again(*_):
        raise AssertionError("trained a second time")

    for name in ("_teach", "_learn", "_score_threshold"):
        monkeypatch.setattr(seed, name, again)
    assert seed.run(OneAfterTheOther()) == first
