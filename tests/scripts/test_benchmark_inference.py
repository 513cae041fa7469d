"""The table of the benchmark: medians, ratios turn by turn, a page that says what its JSON says."""

import json
import sys

import pytest

from benchmarks import inference

RUNS = {  # CPU s, wall s, GiB of three turns, on a machine that was busy in the second
    "floor": [[2.0, 3.0, 0.5], [8.0, 9.0, 0.5], [4.0, 4.0, 0.5]],
    "command": [[6.0, 6.0, 1.0], [16.0, 20.0, 1.5], [8.0, 9.0, 1.0]],
}


def test_a_ratio_is_that_of_one_turn_so_that_a_busy_machine_does_not_change_it():
    found = inference._figures(RUNS, {"import": 1.234, "network": 2.0})
    assert found["command"] == {"cpu_s": 8.0, "wall_s": 9.0, "peak_gib": 1.0}
    assert found["floor"]["cpu_s"] == 4.0
    assert found["ratio"] == {"cpu_s": 2.0, "wall_s": 2.22, "peak_gib": 2.0}  # of 3, 2, 2; of 2, 20/9, 9/4; of 2, 3, 2
    assert found["parts_cpu_s"] == {"import": 1.23, "network": 2.0}


def test_the_page_of_a_benchmark_is_made_of_its_json(tmp_path):
    found = {"some_bundle": inference._figures(RUNS, {"import": 1.0, "network": 2.5})}
    inference._write(tmp_path / "performance.json", found, (10, 20, 30), 1, 3, "auto")
    assert json.loads((tmp_path / "performance.json").read_text())["bundles"] == found
    page = (tmp_path / "performance.md").read_text()
    assert "One head of 10 x 20 x 30 voxels" in page
    line = next(line for line in page.splitlines() if "some_bundle" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "some_bundle",
        "8.0",
        "4.0",
        "2.00",
        "9.0",
        "1.00",
        "2.00",
    ]


def test_cpu_seconds_are_those_of_the_process_and_its_failure_is_none():
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    cpu, wall, peak = inference._measured([sys.executable, "-c", busy], 1)
    assert 0.5 <= cpu < 0.5 + wall
    assert peak > 0.001  # a fork begins with what its parent has, here a process of tests
    with pytest.raises(Exception, match="non-zero exit status 3"):
        inference._measured([sys.executable, "-c", "raise SystemExit(3)"], 1)
