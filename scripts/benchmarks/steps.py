"""Steps of a bundle beside the plain way to do the same: what ``bundles/<name>/benchmark.py`` offers."""

from __future__ import annotations

import json
import sys
from types import ModuleType

from pydantic import Json

from catalog import load
from common.errors import InputError
from common.options import types as t
from running.command_line import Bundle

from .measuring import ROOT, in_own_process, peak_mib, table, take_turns


def step(bundle: Bundle, repeats: t.Count = 9, device: t.Device = "cpu", **options: object) -> None:
    """Time and memory of the steps of a bundle, which take turns, so that other work on the machine hits all of them.

    Peak memory is that of a process of its own, above what it holds before the step.

    Args:
        bundle: name of a bundle with a ``benchmark.py``.
        repeats: of each step, after one to warm up.
        device: ``cpu`` or ``cuda``.
        options: of the bundle's ``step``, as the shape of a patch.
    """
    module = steps_of(bundle)
    text = json.dumps(options)
    peak = {name: float(in_own_process("step_peak", bundle, name, device, text)) for name in module.NAMES}
    works = {name: module.step(name, device=device, **options) for name in module.NAMES}
    print(table(take_turns(works, repeats, device), peak))


def step_peak(bundle: Bundle, name: str, device: t.Device, options: Json[dict]) -> None:
    """Print the MiB that two steps take above their arguments."""
    module = steps_of(bundle)
    module.step(name, device=device, **{**options, "shape": (16, 16, 16)})()  # what is loaded at first use
    work = module.step(name, device=device, **options)
    print(peak_mib(lambda: [work(), work()], device))


def steps_of(bundle: str) -> ModuleType:
    """``benchmark.py`` of a bundle.

    Raises:
        InputError: if the bundle has none.
    """
    file = ROOT / "bundles" / bundle / "benchmark.py"
    if not file.is_file():
        known = ", ".join(sorted(path.parent.name for path in ROOT.glob("bundles/*/benchmark.py")))
        raise InputError(f"{bundle} has no steps to compare, expected one of {known}")
    sys.path.insert(0, str(file.parent))
    return load(bundle, "benchmark")
