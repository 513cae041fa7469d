"""The configs of a bundle from Python, as ``python -m monai.bundle run`` has them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from common.errors import InputError


def open_configs(
    bundle: str | Path, configs: str | Sequence[str], logging_file: str | bool | None = False, **overrides: Any
) -> ConfigWorkflow:
    """A workflow, initialized but not run: its parts are got by ``workflow.parser.get_parsed_content(id)``.

    Args:
        bundle: folder of the bundle; it joins the import path.
        configs: names of files in its ``configs/``, a complete one and the layers on it, without or with ``.json``.
        logging_file: False leaves logging as it is; None takes the bundle's ``logging.conf``.
        overrides: entries of the configs to replace, by id; paths become text.

    Raises:
        InputError: if a config does not exist.
    """
    root = Path(bundle).resolve()
    names = [configs] if isinstance(configs, str) else configs
    files = [root / "configs" / f"{name.removesuffix('.json')}.json" for name in names]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]} does not exist, expected a config of the bundle {root.name}")
    if str(root) not in sys.path:
        sys.path.insert(1, str(root))
    with _quiet() if logging_file is False else nullcontext():
        workflow = ConfigWorkflow(
            [str(path) for path in files],
            logging_file=logging_file,
            workflow_type="train" if names[0].startswith("train") else "inference",
            bundle_root=str(root),
            **{key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()},
        )
    workflow.initialize()
    return workflow


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
