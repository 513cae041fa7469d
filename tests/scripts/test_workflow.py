"""Running a bundle's configs from Python."""

import json

import pytest

from common.errors import InputError
from running.workflow import Entry, as_data, open_configs, run_configs

CONFIG = {
    "imports": ["$import pathlib"],
    "bundle_root": None,
    "output_dir": None,
    "number": 1,
    "sum": "$@number + 1",
    "initialize": ["$pathlib.Path(@output_dir).mkdir()"],
    "run": ["$pathlib.Path(@output_dir, str(@sum)).touch()"],
    "finalize": ["$pathlib.Path(@output_dir, 'end').touch()"],
}


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "toy"
    (folder / "configs").mkdir(parents=True)
    for name, content in {"inference": CONFIG, "layer": {"number": 5}, "metadata": {"version": "1"}}.items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_run_goes_through_all_three_steps_with_layers_and_overrides(bundle, tmp_path):
    workflow = run_configs(bundle, ["inference", "layer.json"], output_dir=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["6", "end"]
    assert workflow.parser.get_parsed_content("bundle_root") == str(bundle)
    run_configs(bundle, "inference", output_dir=tmp_path / "other", number=2)
    assert (tmp_path / "other" / "3").is_file()


def test_an_opened_bundle_is_initialized_and_not_run(bundle, tmp_path):
    workflow = open_configs(bundle, "inference", output_dir=tmp_path / "out")
    assert workflow.parser.get_parsed_content("sum") == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_a_config_that_is_not_there_is_named(bundle, tmp_path):
    with pytest.raises(InputError, match=r"train.json does not exist, expected a config of the bundle toy"):
        open_configs(bundle, "train", output_dir=tmp_path)


NASTY = [
    "$open('marker', 'w')",
    "@number",
    "%{config}::number",
    "x@##y",
    "@_meta_#version",
    "$'\\'",
    ["T1w", ["$1 + 1"], {"a": "@number"}],
    {"_target_": "builtins.open", "file": "marker", "mode": "w"},
    {"plain": {"_target_": "pathlib.Path", "x": [float("inf"), None, True, "é\n"]}},
    {"$1": 2},
]


@pytest.mark.parametrize("value", NASTY, ids=str)
def test_data_in_an_override_is_given_back_as_it_is_and_runs_nothing(bundle, tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    parser = open_configs(bundle, "inference", output_dir=tmp_path / "out", other=value).parser
    assert parser.get_parsed_content("other") == value
    assert not (tmp_path / "marker").exists()


def test_a_folder_whose_name_looks_like_an_expression_is_a_folder(bundle, tmp_path):
    folder = tmp_path / "$out" / "@number" / "100%"
    folder.parent.mkdir(parents=True)
    run_configs(bundle, "inference", output_dir=folder)
    assert (folder / "2").is_file()


def test_a_piece_of_a_config_is_marked_and_counts(bundle, tmp_path):
    parser = open_configs(bundle, "inference", output_dir=tmp_path / "out", other=Entry("$@number + 7")).parser
    assert parser.get_parsed_content("other") == 8


def test_plain_values_stay_readable():
    for value in ("cases.json", 3, None, True, ["T1w", "FLAIR"], {"a": 1}, "a#b"):
        assert as_data(value) == value
