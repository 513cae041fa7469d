"""The configs of a bundle from Python, as ``python -m monai.bundle run`` has them."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigWorkflow

from common.errors import InputError
from common.files import read_json


class Entry(NamedTuple):
    """An override that is a piece of a config: references and expressions in it count, ``_target_`` makes an object.

    For what a tool or its user wrote, never for what came out of a datalist, a header or the name of a file.
    """

    value: Any


def config_files(bundle: str | Path, names: Sequence[str]) -> list[Path]:
    """Files in ``configs/`` of a bundle's folder, or beside that folder, of names without or with ``.json``.

    Raises:
        InputError: if one does not exist.
    """
    root = Path(bundle).resolve()
    files = []
    for name in names:
        own = root / "configs" / f"{name.removesuffix('.json')}.json"
        shared = root.parent / own.name
        files.append(shared if shared.is_file() and not own.is_file() else own)
    missing = next((path for path in files if not path.is_file()), None)
    if missing:
        raise InputError(f"{missing} does not exist, expected a config of the bundle {root.name}")
    return files


def open_configs(
    bundle: str | Path, configs: str | Sequence[str], logging_file: str | bool | None = False, **overrides: Any
) -> ConfigWorkflow:
    """A workflow, initialized but not run: its parts are got by ``workflow.parser.get_parsed_content(id)``.

    Args:
        bundle: folder of the bundle; it joins the import path.
        configs: names of files in its ``configs/``, a complete one and the layers on it, without or with ``.json``.
        logging_file: False leaves logging as it is; None takes the bundle's ``logging.conf``.
        overrides: entries of the configs to replace, by id; paths become text. They are data, see :func:`as_data`: what
            looks like an expression is text. A piece of a config is given as :class:`Entry`.

    Raises:
        InputError: if a config does not exist.
    """
    root = Path(bundle).resolve()
    names = [configs] if isinstance(configs, str) else configs
    files = config_files(root, names)
    if str(root) not in sys.path:
        sys.path.insert(1, str(root))
    with _quiet() if logging_file is False else nullcontext():
        workflow = ConfigWorkflow(
            [str(path) for path in files],
            logging_file=logging_file,
            workflow_type="train" if names[0].startswith("train") else "inference",
            bundle_root=as_data(root),
            **{key: value.value if isinstance(value, Entry) else as_data(value) for key, value in overrides.items()},
        )
    workflow.initialize()
    return workflow


def without_page(bundle: str | Path, configs: Sequence[str], failing: bool = True) -> dict[str, Any]:
    """Overrides that leave out the page on the results of an inference, which draws every case.

    Args:
        bundle, configs: as for :func:`open_configs`.
        failing: end with an error where some cases failed.
    """
    contents = [read_json(Path(bundle) / "configs" / f"{name.removesuffix('.json')}.json") for name in configs]
    steps = next(content["run"] for content in reversed(contents) if "run" in content)
    left_out = ("overview",) if failing else ("overview", "raise_failures")
    return {"overview": None, "run": Entry([step for step in steps if not any(name in step for name in left_out)])}


def as_data(value: Any) -> Any:
    """What a config has to hold for its parser to give back this value, whatever text is in it.

    MONAI's parser runs text that begins with ``$``, follows ``@`` and ``%``, and makes an object of a dict with
    ``_target_``. A value with such a thing in it becomes one expression, its own literal, in which none of these
    characters is left; any other value stays as it is. Paths become text.

    Args:
        value: text, number, boolean, None or path, or lists, tuples and dicts of them; other objects stay as they are.
    """
    value = str(value) if isinstance(value, Path) else value
    return f"${_literal(value)}" if _looks_like_config(value) else value


def _looks_like_config(value: Any) -> bool:
    if isinstance(value, str | Path):
        return any(sign in str(value) for sign in "$@%")
    if isinstance(value, Mapping):
        return any(str(key).startswith("_") or _looks_like_config([key, item]) for key, item in value.items())
    return isinstance(value, list | tuple) and any(map(_looks_like_config, value))


def _literal(value: Any) -> str:
    """A Python literal without a character that means something to MONAI's parser."""
    if isinstance(value, str | Path):
        signs = (c if c.isascii() and (c.isalnum() or c in " .,/-") else f"\\U{ord(c):08x}" for c in str(value))
        return f"'{''.join(signs)}'"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, bool | int | float | None):
        return repr(value)
    raise TypeError(f"a {type(value).__name__} stands beside text that looks like an expression, expected plain data")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MONAI's warning that it leaves logging alone, as it was asked to."""
    logger = logging.getLogger("monai.bundle.workflows")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def run_configs(
    bundle: str | Path, configs: str | Sequence[str], logging_file: str | bool | None = False, **overrides: Any
) -> ConfigWorkflow:
    """Run the configs to their end; arguments and errors are those of :func:`open_configs`, and what the run raises."""
    workflow = open_configs(bundle, configs, logging_file, **overrides)
    workflow.run()
    workflow.finalize()
    return workflow
