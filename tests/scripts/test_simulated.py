"""Annotation in small: what the table of the evidence says of its scores."""

import numpy as np
import pytest

from annotation.simulated import ENOUGH, SIZES, STRATEGIES, enough_of, labels_for, summary, verdict_of


def rows_of(gains: dict[str, list[float]], seeds: int = 5) -> list[dict]:
    """Rows in which random has 0.5 and a strategy ``gains`` more at the numbers of labels; a seed adds a hundredth."""
    return [
        {
            "seed": seed,
            "strategy": strategy,
            "labels": size,
            "scanners": 1,
            "cover": 1.0,
            **dict.fromkeys(("dice", "dice_A", "dice_B", "dice_varied"), 0.5 + 0.01 * seed + gain),
        }
        for strategy in STRATEGIES
        for size, gain in zip(SIZES, gains.get(strategy, [0.0] * len(SIZES)), strict=True)
        for seed in range(seeds)
    ]


def test_a_strategy_is_compared_with_random_of_the_same_seed():
    rows = rows_of({"coverage": [0.1, 0.1, 0.0, 0.0], "load": [0.0, 0.0, 0.0, -0.2]})
    found = {(line["strategy"], line["labels"]): line for line in summary(rows)}
    assert found["coverage", SIZES[0]]["to_random"] == pytest.approx(0.1)
    # a seed moves both alike, so there is no doubt of the difference
    assert found["coverage", SIZES[0]]["low"] == pytest.approx(0.1)
    assert found["random", SIZES[0]]["dice"] == pytest.approx(0.52)
    assert found["random", SIZES[0]]["worst"] == pytest.approx(0.5)
    said = verdict_of({"summary": list(found.values())})
    assert f"`coverage`: +0.050 to random on average; better at {SIZES[0]}, {SIZES[1]} labels." in said
    assert f"`load`: -0.050 to random on average; better at no number of labels, worse at {SIZES[3]}." in said


def test_enough_is_the_least_number_of_labels_that_reaches_the_share_in_each_seed():
    rows = rows_of({"coverage": [0.1, 0.2, 0.3, 0.3], "doubt": [0.0, 0.0, 0.0, 0.175]}, seeds=3)
    assert labels_for(0.7, rows, "coverage") == [SIZES[1]] * 3
    assert labels_for(0.7, rows, "doubt") == [np.inf, np.inf, np.inf]
    assert labels_for(0.69, rows, "doubt") == [np.inf, np.inf, SIZES[3]]
    said = enough_of({"rows": rows, "all_labels": {"labels": 40, "dice": 0.7 / ENOUGH}})
    assert "95% of the Dice of all 40 labels, so for 0.700" in said
    assert f"| coverage | {SIZES[1]}, {SIZES[1]}, {SIZES[1]} | {SIZES[1]} |" in said
    assert "| random | more, more, more | more |" in said
