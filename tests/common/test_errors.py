"""Wrong input ends in one sentence, from wherever it is raised."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from common.errors import InputError, find_input_error, install_error_hook

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "imports": ["$import torch"],
    "dataset_dir": ".",
    "output_dir": ".",
    "num_workers": 0,
    "datalist": {"_target_": "common.data.list_cases", "dataset_dir": "@dataset_dir"},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "common.transforms.LoadScand", "keys": "image"},
            {"_target_": "common.transforms.ScaleBrainIntensityd", "keys": "image"},
        ],
    },
    "dataset": {"_target_": "common.data.ScanDataset", "data": "@datalist", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "num_workers": "@num_workers"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "common.transforms.SaveScand", "keys": "image", "output_dir": "@output_dir", "postfix": "prob"}
        ],
    },
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "$torch.device('cpu')",
        "val_data_loader": "@dataloader",
        "network": "$torch.nn.Identity()",
        "postprocessing": "@postprocessing",
        "val_handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    },
    "options_fit": {"_target_": "common.options.check_options", "_mode_": "callable"},
    "run": ["$@options_fit()", "$@evaluator.run()"],
}


def refuse(item):
    raise InputError(f"scan {item} is blank, expected a brain")


def break_down(item):
    raise RuntimeError("out of luck")


@pytest.fixture
def excepthook():
    """Undoes what install_error_hook does to the process."""
    hook, logger_class, handler = sys.excepthook, logging.getLoggerClass(), signal.getsignal(signal.SIGINT)
    yield
    sys.excepthook = hook
    signal.signal(signal.SIGINT, handler)
    logging.setLoggerClass(logger_class)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_sentence_is_found_behind_transforms_and_worker_processes(num_workers):
    loader = DataLoader(Dataset([7], Compose([refuse])), num_workers=num_workers)
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    assert str(find_input_error(caught.value)) == "scan 7 is blank, expected a brain"


def test_no_sentence_is_found_behind_another_error():
    loader = DataLoader(Dataset([7], Compose([break_down])), num_workers=1)
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    assert find_input_error(caught.value) is None
    assert find_input_error(None) is None


def test_an_error_that_only_quotes_the_class_has_no_sentence():
    assert find_input_error(RuntimeError("InputError: is a nice class")) is None


def test_a_circle_of_causes_ends():
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert find_input_error(first) is None


def test_an_input_error_from_a_worker_keeps_its_sentence_and_the_traceback():
    printed = (
        "Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in y\nuad.common.errors.InputError: a.nii is flat, expected 3-D\n'
        "\nThe above exception was the direct cause of ...\nRuntimeError: applying transform"
    )
    error = InputError(printed)
    assert str(error) == "a.nii is flat, expected 3-D"
    assert error.worker_traceback == printed


def test_the_message_is_one_line():
    assert str(InputError("a\nb")) == "a b"


def test_the_hook_prints_the_sentence_and_logs_the_traceback_at_debug(excepthook, capsys, caplog):
    install_error_hook()
    caplog.set_level(logging.DEBUG, "common.errors")
    try:
        Compose([refuse])(7)
    except RuntimeError as e:
        sys.excepthook(type(e), e, e.__traceback__)
    assert capsys.readouterr().err == "error: scan 7 is blank, expected a brain\n"
    assert "in refuse" in caplog.text


def test_the_hook_leaves_other_errors_to_the_hook_before(excepthook):
    seen = []
    sys.excepthook = lambda *arguments: seen.append(arguments)
    install_error_hook()
    error = KeyError("x")
    sys.excepthook(KeyError, error, None)
    assert seen == [(KeyError, error, None)]


def test_installing_twice_is_installing_once(excepthook):
    install_error_hook()
    hook = sys.excepthook
    install_error_hook()
    assert sys.excepthook is hook


def test_a_process_ends_with_exit_code_1_and_one_line():
    code = "from common.errors import *; install_error_hook(); raise RuntimeError from InputError('a is b, expected c')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "error: a is b, expected c\n")


@pytest.fixture
def config(tmp_path):
    """A config with a network that gives its input back, and a folder with one scan whose second half is missing."""
    path = tmp_path / "configs" / "inference.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    scan = np.random.default_rng(0).random((12, 12, 12), dtype=np.float32)
    for folder in ("whole", "truncated"):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / folder / "a.nii.gz")
    file = tmp_path / "truncated" / "a.nii.gz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bundle_ends_with_the_sentence_of_a_transform(config, monai_bundle, num_workers):
    folder = config.parents[1] / "truncated"
    options = ("--dataset_dir", folder, "--output_dir", config.parents[1] / "out", "--num_workers", num_workers)
    code, output = monai_bundle("run", "--config_file", config, *options)
    assert code == 1
    assert output.splitlines()[-1].startswith(f"error: {folder / 'a.nii.gz'} cannot be read to its end (")
    assert "Traceback" not in output
    assert "terminating due to exception" not in output
    assert not (config.parents[1] / "out").exists()


def test_a_bundle_ends_with_the_sentence_of_the_datalist(config, monai_bundle):
    folder = config.parents[1] / "empty"
    folder.mkdir()
    code, output = monai_bundle("run", "--config_file", config, "--dataset_dir", folder)
    assert code == 1
    assert output.splitlines()[-1].startswith(f"error: {folder} holds no .nii or .nii.gz file")
    assert "Traceback" not in output


def test_a_bundle_whose_input_is_right_writes_its_output(config, monai_bundle):
    root = config.parents[1]
    options = ("--dataset_dir", root / "whole", "--output_dir", root / "out", "--num_workers", 2)
    code, output = monai_bundle("run", "--config_file", config, *options)
    assert code == 0, output
    assert [path.name for path in (root / "out").iterdir()] == ["a_prob.nii.gz"]


@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "RuntimeError('in a handler') from KeyboardInterrupt()"])
def test_ctrl_c_ends_a_process_with_one_line_and_its_own_exit_code(raised):
    code = f"from common.errors import *; install_error_hook(); raise {raised}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "stopped by Ctrl-C\n")


def test_workers_that_ctrl_c_ends_before_the_main_process_are_no_error_of_their_own():
    stop = "import signal\ntry: signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt: pass\n"
    heard = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & lets it be ignored
    )
    begin = f"{heard}from common.errors import *; install_error_hook()\n"
    code = f"{begin}{stop}raise RuntimeError('DataLoader worker (pid 7)')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "stopped by Ctrl-C\n")


def test_libraries_do_not_repeat_ctrl_c_in_the_log(excepthook, capsys, caplog):
    install_error_hook()
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        logging.getLogger("ignite.engine.engine").error("Engine run is terminating due to exception")
    assert not caplog.text
