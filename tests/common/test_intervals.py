"""Intervals of volumes and scaled probabilities, against what one works out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from common.errors import InputError
from common.intervals import (
    Scaling,
    VolumeIntervals,
    conformal_quantile,
    least_people,
    relative_errors,
)

ORIGIN = {"bundle": "b", "version": "1", "weights": [], "options": {"threshold": 0.5}, "config": "c"}


def intervals(rows, level=0.9, **options):
    return VolumeIntervals(level, ORIGIN, "scans", {"lesion": rows}, {}, **options)


def test_the_next_of_nineteen_errors_is_at_most_the_18th_with_90_percent():
    assert conformal_quantile(range(19, 0, -1), 0.9) == 18
    assert conformal_quantile(range(1, 10), 0.9) == 9  # nine are just enough
    assert conformal_quantile(range(1, 9), 0.9) == math.inf
    assert (least_people(0.9), least_people(0.8), least_people(0.95)) == (9, 4, 19)


def test_scans_of_the_same_kind_are_covered_as_often_as_promised():
    rng = np.random.default_rng(0)
    errors = rng.exponential(size=(4000, 30))
    covered = [row[-1] <= conformal_quantile(row[:-1], 0.9) for row in errors]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.015)  # 27 of 30 places


def test_a_large_load_may_be_off_by_more_than_a_small_one():
    assert relative_errors(9, 4) == pytest.approx(math.log(2))  # with the floor 10 and 5
    assert relative_errors([0, 1], [1, 0]) == pytest.approx(math.log(2))
    rows = [(person, 9.0, 4.0) for person in range(9)]
    assert intervals(rows).of("lesion", 19) == pytest.approx((9, 39))
    assert intervals(rows).of("lesion", 0.5) == pytest.approx((0, 2))  # not below 0


def test_a_person_counts_once_with_the_worst_scan():
    rows = [(person, 9.0, 4.0) for person in range(8)]
    assert all(map(math.isnan, intervals([*rows, (7, 9.0, 4.0)]).of("lesion", 5)))
    assert "No interval of lesion (8): too few people with references, expected 9 or more" in intervals(rows).note()
    both = intervals([*rows, (8, 9.0, 4.0), (8, 9.0, 1.5)])
    assert both.of("lesion", 9)[1] == pytest.approx(39)  # 10 times 4, less the floor
    assert all(map(math.isnan, both.of("another", 5)))


def test_zero_stays_zero():
    assert Scaling(0.5, 2.0)(np.array([0.0, 0.5]))[0] == 0


def test_a_file_says_again_what_was_written(tmp_path):
    written = VolumeIntervals(0.8, ORIGIN, "scans", {"GM": [(0, 600.0, 620.0)]}, {"GM": Scaling(2.0, -1.0)})
    path = tmp_path / "intervals.json"
    path.write_text(json.dumps(written.as_dict()))
    assert VolumeIntervals.read(path) == written


@pytest.mark.parametrize(
    "change",
    [
        {"volumes": {"lesion": [[0, 1]]}},
        {"volumes": []},
        {"level": 1},
        {"level": "nan"},
        {"volumes": {"lesion": [[0, -1, 2]]}},
        {"scalings": {"lesion": [1]}},
        {"scalings": {"lesion": ["$1", 2]}},
        {"origin": 3},
    ],
)
def test_a_file_of_another_kind_is_one_sentence(tmp_path, change):
    path = tmp_path / "intervals.json"
    path.write_text(json.dumps(intervals([(0, 1.0, 2.0)]).as_dict() | change))
    with pytest.raises(InputError, match=r"intervals\.json.*expected"):
        VolumeIntervals.read(path)


def test_results_of_another_threshold_have_no_interval():
    found = intervals([(0, 1.0, 2.0)])
    found.check_origin(ORIGIN | {"sha256": "of the file"})
    with pytest.raises(InputError, match=r"in another way: threshold is 0\.4, the intervals' file has 0.5"):
        found.check_origin(ORIGIN | {"options": {"threshold": 0.4}})
