"""The command lines of the steps of a way of use: what is advised is what a comparison runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catalog import Calibration, Prediction, Stage, Step


def command_of(bundle: str, step: Step, datalist: str | Path, sequences: Sequence[str] | None = None) -> str:
    """What a user types for a step, from the root of the repository.

    Args:
        bundle: its name.
        step: of one of its ways of use.
        datalist: file of the cases.
        sequences: that take the place of those of the configs; None leaves these.
    """
    file = _word(str(datalist))
    if isinstance(step, Calibration):
        return _calibration(bundle, step, file)
    changed = {} if sequences is None else {"sequences": shlex.quote(json.dumps(list(sequences)))}
    if isinstance(step, Prediction):
        configs: Sequence[str] = ("inference", *step.inference.layers, *step.layers)
        folder = f"{step.output_dir}/{bundle}" if step.output_dir else ""
        options = {"datalist_file": file, "section": step.section, "output_dir": folder}
        if step.by is not None and step.by.output_dir:
            options["weights"] = _result_of(bundle, step.by)
    else:
        configs = step.configs
        options = dict.fromkeys(step.datalists, file) | {"output_dir": step.output_dir} | dict(step.options)
        options |= {option: _result_of(bundle, source) for option, source in step.given.items()}
    return f"python -m monai.bundle run --config_file {_files(bundle, configs)}{_flags(options | changed)}"


def _word(path: str) -> str:
    """A path for a shell and for MONAI's command line, where a word that begins with $, @ or % is followed."""
    return shlex.quote(f"./{path}" if path.startswith(("$", "@", "%", "-", "~")) else path)


def _calibration(bundle: str, step: Calibration, file: str) -> str:
    options: dict[str, Any] = {"layers": ",".join(f"{layer}.json" for layer in step.inference.layers)}
    options |= {"datalist_file": file, "section": "validation"}
    if step.rate is not None:
        options |= {"criterion": "false_positive_rate", "rate": step.rate}
    return f"python scripts/calibrate_threshold.py {bundle}{_flags(options)} --write"


def _files(bundle: str, configs: Sequence[str]) -> str:
    paths = [f"bundles/{bundle}/configs/{config}.json" for config in configs]
    return paths[0] if len(paths) == 1 else '"[' + ",".join(f"'{path}'" for path in paths) + ']"'


def _result_of(bundle: str, step: Stage | Prediction) -> str:
    """Where a step leaves what a later one takes."""
    if isinstance(step, Prediction):
        return f"bundles/{bundle}/{step.writes}"
    return f"{step.output_dir or f'bundles/{bundle}/models'}/{step.writes}"


def _flags(options: dict[str, Any]) -> str:
    return "".join(f" --{name} {value}" for name, value in options.items() if value != "")
