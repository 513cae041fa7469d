"""What an experiment makes of its scores."""

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
