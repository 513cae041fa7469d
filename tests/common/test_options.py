"""Types of options, and the check of a config before it runs."""

import json
import re

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from common.errors import InputError, find_input_error
from common.options import converted, expectation
from common.options import types as t

CONFIG = {
    "bundle_root": ".",
    "mirror": True,
    "spacing": [1.0, 1.0, 1.0],
    "threshold": 0.5,
    "threshold_source": "a guess",
    "output_dir": "$@bundle_root + '/out'",
    "weights": None,
    "numbers": {"_target_": "builtins.dict", "a": "@mirror", "b": "@spacing", "c": "@threshold", "d": "@output_dir"},
    "options_fit": {"_target_": "common.options.check_options", "_mode_": "callable", "limits": {"threshold": [0, 1]}},
    "run": ["$@options_fit()", "$@numbers"],
}


def checked(config=CONFIG, **given):
    """Parser of the config after its check, the values given as ``monai.bundle run`` takes them from a command line."""
    parser = ConfigParser(json.loads(json.dumps(config)))
    parser.update(given)
    parser.parse()
    try:
        parser.get_parsed_content("run::0")
    except RuntimeError as e:
        raise find_input_error(e) or e from None
    return parser


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        *((t.Flag, text, True) for text in ("true", "True", "YES", "1", "on")),
        *((t.Flag, text, False) for text in ("false", "FALSE", "no", "No", "0", "off")),
        (t.Share, "0.25", 0.25),
        (t.Positive, "1e-3", 0.001),
        (t.Count, "3", 3),
        (t.Count, 3.0, 3),
        (t.Spacing, "2", [2.0, 2.0, 2.0]),
        (t.Spacing, "1,1,2.5", [1.0, 1.0, 2.5]),
        (t.Spacing, "[1, 1, 2.5]", [1.0, 1.0, 2.5]),
        (t.Spacing, (1, 1, 2.5), [1.0, 1.0, 2.5]),
        (t.Names, "FLAIR", ["FLAIR"]),
        (t.Names, "T1w,FLAIR", ["T1w", "FLAIR"]),
        (t.Names, "[T1w, FLAIR]", ["T1w", "FLAIR"]),
        (t.Names, "['T1w', 'FLAIR']", ["T1w", "FLAIR"]),
        (t.Text, 2025, "2025"),
        (t.Minutes | None, "None", None),
        (t.Minutes | None, "null", None),
        (t.Multiple, 16, 16),
        (t.Multiple, "16,16,1", [16, 16, 1]),
    ],
)
def test_a_text_stands_for_the_value_that_a_reader_takes_it_for(kind, text, value):
    assert converted("x", text, kind) == value
    assert type(converted("x", text, kind)) is type(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((t.Flag, value) for value in ("maybe", "", 2, 0.5, None, [True])),
        *((t.Share, value) for value in ("abc", "nan", float("nan"), float("inf"), -0.1, 1.1, (0, 4), True, None)),
        *((t.Positive, value) for value in (0, -1, "inf", "-inf", "1,5", "")),
        *((t.ShareBelowOne, value) for value in (1, -0.1)),
        *((t.Count, value) for value in (0, -1, 1.5, "abc", True, "2.5", None)),
        *((t.OddCount, value) for value in (0, 4, -1)),
        *((t.Seed, value) for value in (-1, "abc", 2**32)),
        *((t.Spacing, value) for value in ([0, 0, 0], [1, 1], [1, 1, 1, 1], -1, 0, "abc", [1, 1, float("nan")])),
        *((t.Names, value) for value in ([], "", 5.5, ["T1w", "T1w"], ["T1w", ""], {"a": 1})),
        *((t.RisingPair, value) for value in ([1, 0], [1, 1], [1], "abc")),
        *((t.Grid, value) for value in ([], 0, [7, -7], [1, 1, 1, 1], "abc")),
        *((t.Text, value) for value in ("", 1.5, True, ["a"])),
        *((t.Device, value) for value in ("gpu", "banana", "meta", "cpu:cpu", "", None)),
    ],
)
def test_a_value_of_another_type_is_refused_by_a_sentence(kind, value):
    with pytest.raises(InputError, match=r"^x is .*, expected .+") as caught:
        converted("x", value, kind)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(expectation(kind))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_refused(device):
    with pytest.raises(InputError, match=f"device is '{device}' .not on this machine"):
        converted("device", device, t.Device)


def test_the_sentence_says_where_a_list_came_from():
    with pytest.raises(InputError, match=r"x is \[0, 4\]; a comma makes a list, expected a share"):
        converted("x", (0, 4), t.Share)


def test_paths_are_checked_as_far_as_it_can_be_known(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("x")
    assert converted("x", str(file), t.File) == str(file)
    assert converted("x", 2025, t.Folder) == "2025"
    assert converted("x", str(tmp_path / "new" / "folder"), t.Folder) == str(tmp_path / "new" / "folder")
    assert converted("x", f"{file},{file}", t.Files) == [str(file)] * 2
    wrong = [
        (t.File, tmp_path / "none", "no such file or folder"),
        (t.File, tmp_path, "a folder"),
        (t.File, "", "empty"),
        (t.File, "~nobody_of_this_name/a", "no such file or folder"),
        (t.File, tmp_path / ("x" * 300), "file name too long"),
        (t.ExistingFolder, file, "a file"),
        (t.Folder, file, "a file"),
        (t.Folder, file / "below", f"{file} is no folder"),
        (t.Folder, " ", "empty"),
        (t.Folder, tmp_path / ("x" * 300), "file name too long"),
        (t.NewFile, tmp_path, "a folder"),
    ]
    for kind, value, found in wrong:
        with pytest.raises(InputError, match="expected a f") as caught:
            converted("x", str(value), kind)
        assert f"({found})" in str(caught.value)
    with pytest.raises(InputError, match="a comma makes a list"):
        converted("x", ("study", 2), t.Folder)


def test_a_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert converted("x", "~/results", t.Folder) == f"{tmp_path}/results"


def test_the_run_gets_the_values_that_texts_stand_for(tmp_path):
    parser = checked(mirror="no", spacing="1,1,2", output_dir=tmp_path.as_posix())
    assert parser.get_parsed_content("numbers") == {
        "a": False,
        "b": [1.0, 1.0, 2.0],
        "c": 0.5,
        "d": tmp_path.as_posix(),
    }
    assert checked().get_parsed_content("numbers")["d"] == "./out"


def test_what_was_built_before_the_run_is_not_built_again():
    parser = ConfigParser({**CONFIG, "thing": {"_target_": "builtins.object"}, "run": [*CONFIG["run"], "@thing"]})
    parser.parse()
    thing = parser.get_parsed_content("thing")
    parser.get_parsed_content("run::0")
    assert parser.get_parsed_content("thing") is thing


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mirrorr": "false"}, "--mirrorr is no option, expected --mirror"),
        (
            {"max_epochs": 3},
            "--max_epochs is no option of this config, expected one of bundle_root, mirror, ",
        ),
        ({"extra": {"a": 1}}, "--extra is no option, expected one of"),
        ({"threshold": "abc"}, "threshold is 'abc', expected a number above 0"),
        ({"threshold": float("nan")}, "threshold is nan, expected a number above 0"),
        ({"threshold": 50}, "threshold is 50, expected a number from 0 to 1"),
        ({"spacing": [0, 0, 0]}, "spacing is [0, 0, 0], expected three edges of a voxel, each from 0.05 to 20 mm"),
        ({"output_dir": "$1 + 'a'"}, "output_dir is \"$1 + 'a'\", which cannot be evaluated (unsupported operand"),
        ({"output_dir": ""}, "output_dir is '' (empty), expected a folder to write to"),
        ({"bundle_root": "none_of_this_name"}, "bundle_root is 'none_of_this_name' (no such file or folder)"),
        # as a training request of MONAI Label puts them in
        ({"experiment_name": "$exit()"}, "experiment_name is '$exit()', expected a text that does not begin with $, @"),
        ({"run_name": "@mirror"}, "run_name is '@mirror', expected a text that does not begin with $, @"),
    ],
)
def test_a_wrong_entry_stops_the_run_at_its_first_expression(given, sentence):
    with pytest.raises(InputError) as caught:
        checked(**given)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("epochs", ["$exit()", "@mirror", 0, "ten"])
def test_epochs_of_a_training_request_are_a_number_or_refused(epochs):
    config = CONFIG | {"train": {"trainer": {"max_epochs": 7}}, "run": [*CONFIG["run"], "$@train"]}
    checked(config)
    with pytest.raises(InputError, match=f"max_epochs is {re.escape(repr(epochs))}, expected a whole number of 1"):
        checked(config, **{"train#trainer#max_epochs": epochs})
    given = checked(config, **{"train#trainer#max_epochs": "3"})
    assert given.get_parsed_content("train#trainer#max_epochs") == 3


def test_an_entry_of_a_layer_is_checked_like_an_option(tmp_path):
    (tmp_path / "configs").mkdir()
    files = [tmp_path / "configs" / name for name in ("inference.json", "layer.json")]
    files[0].write_text(json.dumps({**CONFIG, "bundle_root": str(tmp_path)}))
    files[1].write_text('{"threshold": NaN}')
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    workflow = ConfigWorkflow([str(f) for f in files], logging_file=False, workflow_type=None)
    workflow.initialize()
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert str(find_input_error(caught.value)) == "threshold is nan, expected a number above 0"


@pytest.mark.parametrize(
    ("name", "value", "grid"),
    [
        ("patch_size", "32,48", [32, 48]),
        ("patch_size", 16, [16, 16]),
        ("pad_multiple", 32, 32),
        ("pad_multiple", "16,16,1", [16, 16, 1]),
        ("pad_multiple", "[16]", [16, 16, 16]),
    ],
)
def test_a_grid_that_fits_the_network_is_taken(name, value, grid):
    assert checked(grid_config(name, value)).get_parsed_content("numbers")["e"] == grid


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", "7,7"),
        ("patch_size", "32,32,32"),
        ("slice_size", "16,4"),
        ("patch_size", "8,8"),
        ("pad_multiple", 3),
        ("pad_multiple", "16,16"),
        ("pad_multiple", "16,3,1"),
    ],
)
def test_a_grid_that_the_network_cannot_halve_is_refused(name, value):
    with pytest.raises(InputError, match=rf"{name} is .*, expected 2 multiples of 8"):
        checked(grid_config(name, value))


def grid_config(name, value):
    """A config of a network of slices, with one more option."""
    metadata = {"network_data_format": {"inputs": {"image": {"spatial_shape": ["16*n", "16*n"]}}}}
    return {**CONFIG, "_meta_": metadata, name: value, "numbers": {**CONFIG["numbers"], "e": f"@{name}"}}
