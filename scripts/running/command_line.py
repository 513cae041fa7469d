"""Command lines: what a script's ``main`` takes is read from its signature, and checked before anything runs.

A type of :mod:`common.options.types` in the signature says what an option may be; the docstring says what it is.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_type_hints

import fire

from common.errors import InputError, install_error_hook
from common.options import converted, expectation
from common.options import types as t

ROOT = Path(__file__).resolve().parents[2]
Bundle = Literal[tuple(sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json")))]


def show_progress(*loggers: str) -> None:
    """Print warnings, and what these loggers say on the way, with the time of day."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for name in loggers:
        logging.getLogger(name).setLevel(logging.INFO)


def run_command(command: Callable | Mapping[str, Callable]) -> None:
    """Call a function with what the command line says, and end the process by a sentence if that is wrong.

    Values have the forms ``--name value`` and ``--name=value``; those without a name go to the parameters in their
    order. A list is ``a,b`` or ``[a,b]``; a name without a value is true. ``--help`` prints all options. Every command
    takes ``--threads``, see :func:`use_threads`.

    Args:
        command: the function, or several by their names, of which the first word of the command line chooses one.
    """
    install_error_hook()
    words = sys.argv[1:]
    script = Path(sys.argv[0]).name
    if isinstance(command, Mapping):
        if not words or words[0] not in command:
            raise InputError(f"{script} is called with {words[:1] or 'nothing'}, expected one of {', '.join(command)}")
        command, words = command[words[0]], words[1:]
    if {"--help", "-h"} & set(words):
        print(help_text(command, script))
        return

    @fire.decorators.SetParseFn(str)
    def call(*values: str, **options: str) -> Any:
        if "threads" in options and "threads" not in inspect.signature(command).parameters:
            use_threads(converted("threads", options.pop("threads"), t.Count))
        return command(**arguments(command, values, options))

    fire.Fire(call, words, script)


def use_threads(threads: int) -> None:
    """Begin this command again with so many threads, for itself and every process that it starts.

    Libraries read the number when they are loaded, and by now they are. Without it they take one thread a core.
    """
    wanted = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    if wanted.items() <= os.environ.items():
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


def arguments(command: Callable, values: tuple[str, ...], options: Mapping[str, str]) -> dict[str, Any]:
    """What to call a function with, by name, of the types in its signature.

    Raises:
        InputError: if a value has no parameter, a parameter no value, or a value is none of its type.
    """
    parameters = dict(inspect.signature(command).parameters)
    others = next((name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    parameters.pop(others, None)
    if len(values) > len(parameters):
        raise InputError(f"{values[len(parameters)]!r} stands without a name, expected --name before it")
    given = dict(zip(parameters, values, strict=False))
    for name, value in options.items():
        if name not in parameters and others is None:
            near = difflib.get_close_matches(name, parameters, 1)
            options_there = f"--{near[0]}" if near else "one of " + ", ".join(f"--{known}" for known in parameters)
            raise InputError(f"--{name} is no option, expected {options_there}")
        if name in given:
            raise InputError(f"{name} is given twice, {given[name]!r} and {value!r}, expected one value")
        given[name] = value
    kinds = get_type_hints(command, include_extras=True)
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    if missing:
        raise InputError(f"--{missing[0]} is missing, expected {expectation(kinds[missing[0]])}")
    return {
        name: converted(name, value, kinds[name]) if name in parameters else fire.parser.DefaultParseValue(value)
        for name, value in given.items()
    }


def help_text(command: Callable, script: str) -> str:
    """What a function does, and for each option what it is, what it may be, and its default."""
    needed = [name for name, p in inspect.signature(command).parameters.items() if p.default is p.empty]
    called = f"python scripts/{script}" if script.endswith(".py") else script  # brain-bundles advise
    lines = [f"{called} {' '.join(name.upper() for name in needed)} [--option value ...]", ""]
    lines += [re.split(r"\n\s*\n", inspect.getdoc(command) or "")[0], ""]
    for name, meaning, kind, default in described(command):
        lines.append(f"  --{name}: {kind}; {default if default == 'needed' else f'default {default}'}")
        lines += textwrap.wrap(meaning, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines += [
        f"  --threads: {expectation(t.Count)}; default one a core",
        "      threads that each process computes with.",
    ]
    return "\n".join(lines)


def described(command: Callable) -> list[tuple[str, str, str, str]]:
    """Name, meaning, type in words, and default of every option of a function, the meaning from its docstring."""
    kinds = get_type_hints(command, include_extras=True)
    meanings = _meanings(inspect.getdoc(command) or "")
    rows = []
    for name, parameter in inspect.signature(command).parameters.items():
        default = "needed" if parameter.default is parameter.empty else _written(parameter.default)
        rows.append((name, meanings.get(name, ""), expectation(kinds[name]), default))
    return rows


def _meanings(doc: str) -> dict[str, str]:
    """Parameter -> its text in the section ``Args:``."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in entries}


def _written(value: Any) -> str:
    """A default as one would write it on the command line, from the root of the repository."""
    if isinstance(value, str) and Path(value).is_relative_to(ROOT):
        return str(Path(value).relative_to(ROOT))
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
