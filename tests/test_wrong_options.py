"""Wrong options of every bundle and of every script: one sentence each, before a scan is read or a file is written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from bundle_tools import BUNDLES, ROOT, SMALL, config_files, load_script, parsed, read_json, save_case, stacks
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ComponentLocator

from common.errors import InputError, find_input_error
from common.files import Alone
from common.options import VOCABULARY, expectation
from common.options import types as t
from running.command_line import arguments, described, help_text
from running.options_page import PAGE, page

SCRIPTS = [path.stem for path in sorted((ROOT / "scripts").glob("*.py")) if "run_command(main)" in path.read_text()]
# what a type says of itself -> texts that are no such value
WRONG = {
    "true or false": ["maybe", "2", "''", "5.5"],
    "true, false or auto": ["maybe", "2", "''", "5.5"],
    "a number above 0": ["abc", "nan", "inf", "0", "-1", "0,4", "True"],
    "a number of 0 or more": ["abc", "nan", "-1", "0,4"],
    "a share from 0 to 1": ["abc", "nan", "-0.1", "1.5", "0,4"],
    "a share of at least 0 and below 1": ["abc", "nan", "-1", "1"],
    "a length from 0 to 1000 mm": ["abc", "-1", "inf", "2mm", "1e300"],
    "a volume of 0 mm3 or more": ["abc", "-1", "nan"],
    "minutes, above 0": ["abc", "0", "-5", "nan"],
    "a whole number of 0 or more": ["abc", "-1", "1.5", "1,2"],
    "a whole number of 1 or more": ["abc", "0", "-1", "1.5", "1e400"],
    "an odd number of 1 or more": ["abc", "4", "0", "-1"],
    "a whole number from 0 to 4294967295": ["abc", "-1", "1.5", "4294967296"],
    "three edges of a voxel, each from 0.05 to 20 mm": ["abc", "0,0,0", "1,1", "1,1,nan", "-1", "1e-300", "40"],
    "a whole number from 1 to 1024": ["abc", "0", "-1", "1.5", "1e9"],
    "a number above 0 and at most 10": ["abc", "nan", "0", "-1", "1e300"],
    "a number from 0 to 10": ["abc", "-1", "inf", "1e300"],
    "a list of whole numbers from 0 to 999": ["abc", "[]", "-1", "1000"],
    "two whole numbers from 0 to 1000, the lower one first": ["abc", "5,1", "5", "0,99999"],
    "a file name without a folder": ["../x.pt", "a/b.pt", "''", ".."],
    "a list of sizes from 0.1 to 10": ["abc", "[]", "0", "-1", "1e9"],
    "two sizes from 0.1 to 10, the lower one first": ["abc", "2,1", "1", "1e-9,1"],
    "a whole number from 1 to 1000000": ["abc", "0", "1.5", "1e12"],
    "a whole number from 0 to 1024": ["abc", "-1", "1.5", "100000"],
    "whole numbers from 1 to 1024, one per axis": ["abc", "0", "16,16,16,16", "16,-16", "[]", "1e9"],
    "a list of different names, such as T1w,FLAIR": ["[]", "5.5", "T1w,T1w", "''"],
    "a device that torch can use here, such as cpu, cuda or cuda:0": ["gpu", "cuda:99", "meta", "5.5", "''"],
    "a file that is there": ["no/such/file", "bundles", "~nobody_of_this_name/a", "''", "a,b"],
    "a folder that is there": ["no/such/folder", "README.md", "''"],
    "a folder to write to": ["''", "README.md", "README.md/out", "study,2", "x" * 300],
    "two numbers, the lower one first": ["abc", "1,0", "1", "1,2,3"],
    "a share of the cases, such as 2/10": ["3", "0/4", "5/4", "1/2/3", "-1/4", "1.5/4", "half"],
}
# their text on a command line may be any
ANY_TEXT = {"5.5", "study,2", "a,b"}
FREE = {"a text", "a text, or none", "a list of different names, or an empty one"}


def as_given(text: str) -> object:
    """The value that ``monai.bundle run`` hands on."""
    return "" if text == "''" else DefaultParseValue(text)


LOCATOR = ComponentLocator()  # of all parsers: to list the components of MONAI takes longer than all else here


def check(files: list, **given: object) -> ConfigParser:
    """Run what a config runs first."""
    workflow = ConfigWorkflow([str(path) for path in files], logging_file=False, workflow_type=None, **given)
    workflow.parser.locator = LOCATOR
    workflow.parser["first"], workflow.run_id = workflow.parser["run"][:1], "first"
    workflow.parser.parse()
    try:
        workflow.run()
    except RuntimeError as e:
        raise find_input_error(e) or e from None
    return workflow.parser


def refusal(work: Callable, *arguments: object, **options: object) -> str | None:
    """The sentence by which something is refused, or None."""
    try:
        work(*arguments, **options)
    except InputError as e:
        return str(e)
    return None


def is_sentence(text: str | None, name: str) -> bool:
    return text is not None and text.startswith(f"{name} is ") and ", expected " in text and "\n" not in text


def complete_configs(bundle) -> list:
    return [path for path in config_files(bundle) if "bundle_root" in read_json(path)]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_wrong_value_of_any_option_of_any_bundle_is_one_sentence(bundle):
    tried = {}
    for number, path in enumerate(complete_configs(bundle)):
        names = [name for name in VOCABULARY if name in read_json(path) and not name.endswith("_source")]
        for place, name in enumerate(names):
            texts = WRONG.get(expectation(VOCABULARY[name].kind).removesuffix(" or null"), [])
            if texts:  # another one in each place
                text = texts[(number + place) % len(texts)]
                tried[path.name, name, text] = refusal(check, [path], **{name: as_given(text)})
    assert {row: said for row, said in tried.items() if not is_sentence(said, row[1])} == {}
    assert len(tried) >= 35


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
@pytest.mark.parametrize("text", ["false", "No", "0", "TRUE", "yes"])
def test_a_truth_value_of_any_bundle_is_what_it_says(bundle, text):
    value = text in ("TRUE", "yes")
    for path in complete_configs(bundle):
        flags = [name for name in read_json(path) if name in VOCABULARY and VOCABULARY[name].kind is t.Flag]
        parser = check([path], **dict.fromkeys(flags, as_given(text)))
        assert {name: parser.get_parsed_content(name) for name in flags} == dict.fromkeys(flags, value)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"datalist_fiel": "cases.json"}, "--datalist_fiel is no option, expected --datalist_file"),
        ({"datalist": "cases.json"}, "--datalist is no option, expected --datalist_file"),
        ({"outptu_dir": "out"}, "--outptu_dir is no option, expected --output_dir"),
        ({"nomirror": True}, "--nomirror is no option"),
        ({"weightz": "a.pt"}, "--weightz is no option, expected --weights"),
        ({"devise": "cpu"}, "--devise is no option, expected --device"),
        ({"learning_rate": 0.1}, "--learning_rate is no option of this config, expected "),
        ({"max_epochs": 1}, "--max_epochs is no option of this config, expected "),
        ({"weights": "own.pt"}, "weights is 'own.pt' (no such file or folder), expected a file that is there"),
        ({"weights": "bundles"}, "weights is 'bundles' (a folder), expected a file that is there"),
        (
            {"bundle_root": "nowhere"},
            "bundle_root is 'nowhere' (no such file or folder), expected a folder",
        ),
        (
            {"output_dir": ("study", 2)},
            "output_dir is ['study', 2]; a comma makes a list, expected a folder",
        ),
        ({"device": "gpu"}, "device is 'gpu' (not on this machine"),
    ],
)
def test_what_a_bundle_does_not_know_or_find_is_refused_before_a_scan_is_read(bundle, given, sentence):
    with pytest.raises(InputError) as caught:
        check([bundle / "configs" / "inference.json"], **given)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_training_that_another_one_is_in_the_way_of_is_refused_before_a_scan_is_read(bundle, monai_bundle, tmp_path):
    trainings = [path for path in complete_configs(bundle) if path.name.startswith("train")]
    assert trainings
    cases = {part: [{"image": f"{part}.nii"}] for part in ("training", "validation")}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    for config in trainings:
        with Alone(tmp_path / "run" / "state.pt", is_file=True):
            done = monai_bundle(
                *("run", "--config_file", config, "--datalist_file", tmp_path / "cases.json"),
                *("--output_dir", tmp_path / "run", "--ckpt_dir", tmp_path / "models"),
            )
        assert done.code != 0
        assert [line.split(" on ")[0] for line in done.errors] == [
            f"error: {tmp_path}/run/state.pt is in use by process {os.getpid()}"
        ]
    assert [path.name for path in tmp_path.iterdir()] == ["cases.json"]


def test_null_takes_an_option_away_that_nothing_reads_and_no_other():
    configs = ROOT / "bundles" / "diffusion_recon_unet" / "configs"
    check([configs / "inference.json", configs / "inference_fused.json"])
    with pytest.raises(InputError, match="beta is None, expected a number of 0 or more"):
        check([configs / "inference.json"], beta=None)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_weights_of_null_stop_every_inference_that_has_a_network(bundle):
    parser = check([bundle / "configs" / "inference.json"], weights=None, device="cpu")
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("handlers")
    assert str(find_input_error(caught.value)).startswith("weights is null, expected the file with those of ")


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_stack_of_configs_passes_its_own_check(bundle):
    """But for weights that no bundle ships."""
    said = [refusal(check, files, device="cpu") for files in stacks(bundle)]
    assert [text for text in said if text and not re.search("weights is .* .no such file or folder.", text)] == []


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_check_is_the_first_that_every_config_runs(bundle):
    for files in stacks(bundle):
        config = parsed(files).get()
        assert config["run"][0] == "$@options_fit()"
        assert "@" not in json.dumps(config.get("initialize", [])).replace("@device", "")


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_option_of_a_bundle_is_in_the_vocabulary(bundle):
    contents = {path: read_json(path) for path in config_files(bundle)}
    parts = {name for content in contents.values() for name, value in content.items() if isinstance(value, dict)}
    for path, content in contents.items():
        for name, value in content.items():
            plain = not isinstance(value, dict) and not name.startswith("_") and "#" not in name
            plain = plain and not (value is None and name in parts)  # a layer takes a part away
            if plain and name not in {"imports", "initialize", "run", "finalize", "handlers", "is_not_rank0"}:
                built = isinstance(value, str) and (".to(" in value or ".single(" in value)
                assert name in VOCABULARY or built, f"{path.name}: {name}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_value_of_any_option_of_a_script_is_one_sentence(script):
    main, tried = load_script(script).main, {}
    for name, _, words, _ in described(main):
        kind = words.removesuffix(" or null")
        choices = [] if kind in (*FREE, "a file to write") else [f"no_{name}"]
        for text in set(WRONG.get(kind, choices)) - ANY_TEXT:
            given = {**needed(main), name: "" if text == "''" else text}
            tried[name, text] = refusal(arguments, main, (), given)
    assert {row: said for row, said in tried.items() if not is_sentence(said, row[0])} == {}


def needed(main) -> dict[str, str]:
    """A value for each option without default."""
    values = {
        "a file that is there": "README.md",
        "a folder that is there": "docs",
        "a file or folder that is there": "docs",
        "two or more folders that are there": "docs,tests",
    }
    values["participant"] = "participant"  # the one choice of a BIDS App
    return {
        name: values.get(words, "uad_autoencoder") for name, _, words, default in described(main) if default == "needed"
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_refuses_what_its_main_does_not_take(script):
    main = load_script(script).main
    name = next(iter(described(main)))[0]
    with pytest.raises(InputError, match=rf"^--{name}x is no option, expected --{name}"):
        arguments(main, (), {**needed(main), f"{name}x": "1"})
    with pytest.raises(InputError, match="'z' stands without a name, expected --name before it"):
        arguments(main, (*["uad_autoencoder"] * len(described(main)), "z"), {})
    with pytest.raises(InputError, match=f"^{name} is given twice, 'a' and 'b', expected one value"):
        arguments(main, ("a",), {name: "b"})
    for missing in needed(main):
        given = {key: value for key, value in needed(main).items() if key != missing}
        with pytest.raises(InputError, match=f"^--{missing} is missing, expected "):
            arguments(main, (), given)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_meaning_type_and_default_of_every_option(script):
    main = load_script(script).main
    text = help_text(main, f"{script}.py")
    for name, meaning, kind, default in described(main):
        assert meaning, name
        assert f"--{name}: {kind}; {'needed' if default == 'needed' else f'default {default}'}" in text
        assert meaning.split()[0] in text


def test_values_have_the_type_of_the_signature():
    main = load_script("make_phantom").main
    given = {
        "healthy": "1,0,0",
        "spacing": "4",
        "sequences": "FLAIR",
        "scalp": "no",
        "prefix": "007",
        "num_workers": "null",
    }
    assert arguments(main, ("2025",), given) == {
        "output_dir": "2025",
        "healthy": [1, 0, 0],
        "spacing": [4.0, 4.0, 4.0],
        "sequences": ["FLAIR"],
        "scalp": False,
        "prefix": "007",
        "num_workers": None,
    }


def test_the_page_of_options_says_what_configs_and_signatures_say():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_a_bundle_ends_at_a_wrong_option_with_one_line_and_writes_nothing(monai_bundle, tmp_path):
    layer = tmp_path / "layer.json"
    layer.write_text('{"threshold": NaN}')
    config = "bundles/uad_autoencoder/configs/inference.json"
    rows = [
        ((config, "--mirrorr", "false"), "error: --mirrorr is no option, expected --mirror"),
        ((config, "--threshold", "50"), "error: threshold is 50, expected a number from 0 to 1"),
        ((config, "--mirror", "maybe"), "error: mirror is 'maybe', expected true or false"),
        ((config, "--datalist", "cases.json"), "error: --datalist is no option, expected --datalist_file"),
        ((f"['{config}','{layer}']",), "error: threshold is nan, expected a number above 0"),
    ]
    for (file, *options), sentence in rows:
        done = monai_bundle("run", "--config_file", file, "--output_dir", tmp_path / "out", *options)
        assert (done.code, done.errors) == (1, [sentence]), done.output
        assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_script_ends_at_an_unknown_option_with_one_line_and_writes_nothing(tmp_path):
    command = [sys.executable, "scripts/package_bundle.py", "uad_autoencoder", "--output_dir", str(tmp_path / "a")]
    done = subprocess.run([*command, "--large", "x"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --large is no option, expected --large_files\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_a_training_and_its_workers_with_one_line(tmp_path):
    bundle = ROOT / "bundles" / "uad_autoencoder"
    for number in range(2):
        save_case(bundle, tmp_path / f"p{number}_FLAIR.nii.gz", seed=number, shape=SMALL)
    cases = [{"image": f"p{i}_FLAIR.nii.gz", "subject": f"p{i}", "healthy": True} for i in range(2)]
    (tmp_path / "cases.json").write_text(json.dumps({"training": cases[:1], "validation": cases[1:]}))
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"{bundle}/configs/train_autoencoder.json"]
    options = {
        "datalist_file": tmp_path / "cases.json",
        "output_dir": tmp_path / "run",
        "ckpt_dir": tmp_path / "models",
    }
    options |= {"device": "cpu", "num_workers": 2, "max_epochs": 10_000, "batch_size": 2}
    command += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    own = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **own)
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "run" / "state.pt").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:  # it must not outlive the test
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped by Ctrl-C"
    assert "Traceback" not in errors


def test_every_script_computes_with_the_threads_that_are_asked_for(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom running.command_line import run_command\n\n"
        "def main(word: str) -> None:\n    print(word, torch.get_num_threads())\n\nrun_command(main)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, str(script), "threads:", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (0, "threads: 1\n"), done.stderr
    done = subprocess.run([*command[:-1], "0"], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert "threads is '0', expected a whole number of 1 or more" in done.stderr
