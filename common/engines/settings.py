"""The config that a handler is part of: what a training is made from, and tracking that may fail."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser

from ..data import subject_of
from ..files import fingerprint_of

# what a training that goes on may have otherwise: how long and where it runs, and where it writes; cases are known by
# what is in their files
MAY_CHANGE = {
    *("max_epochs", "max_minutes", "resume", "progress"),
    *("device", "device_ids", "shuffle", "num_workers", "workers", "cache_rate", "pin_memory", "copy_cache"),
    *("is_not_rank0", "bundle_root", "output_dir", "ckpt_dir", "dataset_dir", "datalist_file", "handlers"),
    *("tracking_uri", "experiment_name", "run_name", "save_execute_config", "run", "finalize"),
}
_TOLERANT = f"{__package__}.tracking.TolerantMLFlowHandler"


def config_at_work() -> ConfigParser | None:
    """The config whose part is being made, None elsewhere.

    MONAI hands it to none of the parts, so it is looked for among those who are at work.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    return None


def let_tracking_fail() -> None:
    """Have every MLFlowHandler that the config at work still has to make be one that stops no run.

    MONAI's ``--tracking`` puts them behind all others, and the one of a validator is made before the :class:`Tracker`
    of the trainer is.
    """
    config = config_at_work()
    for item in [] if config is None else config.ref_resolver.items.values():
        if isinstance(item, ConfigComponent) and str(item.get_config()["_target_"]).endswith("MLFlowHandler"):
            item.update_config({**item.get_config(), "_target_": _TOLERANT})


def settings_of_training(config: ConfigParser | None, written: Collection[Path] = ()) -> dict[str, Any]:
    """Version of the bundle, plain values of a config by their ids, and hashes of the files of all cases in its lists.

    All that is in a config counts but for :data:`MAY_CHANGE`, references and expressions. A file counts by its content,
    wherever it lies.

    Args:
        config: of the training, whose lists of cases are made; None for a training without one, which has no settings.
        written: files that the training writes, whose content does not count.
    """
    if config is None:
        return {}
    own = {path.resolve() for path in written}
    found: dict[str, Any] = {"version": config.get("_meta_", {}).get("version")}
    for name, value in leaves_of(config.get(), MAY_CHANGE):
        found[name] = value if not is_file(value) or Path(value).resolve() in own else Path(value)
    known: list[dict[str, Any]] = []
    for name, cases in [*config.ref_resolver.resolved_content.items()]:
        if isinstance(cases, list) and cases and all(map(_is_on_disk, cases)):
            facts = _facts(cases)
            if facts not in known:  # a list may go by several ids
                known.append(facts)
                found |= {f"{what} in {name.replace('::', '#')}": value for what, value in facts.items()}
    return fingerprint_of(found)


def leaves_of(config: Any, left_out: Collection[str], name: str = "") -> Iterator[tuple[str, Any]]:
    """Ids and values of all that is neither a dict, a reference nor an expression, without some keys."""
    if isinstance(config, Mapping):
        if "Distributed" in str(config.get("_target_")):  # a training may go on in another number of processes
            return
        for key, value in config.items():
            is_note = str(key).startswith("_") and key != "_target_"
            if not is_note and key not in left_out:
                yield from leaves_of(value, left_out, f"{name}#{key}" if name else str(key))
    elif isinstance(config, (list, tuple)) and any(isinstance(item, (Mapping, str)) for item in config):
        for number, item in enumerate(config):
            yield from leaves_of(item, left_out, f"{name}#{number}")
    elif not (isinstance(config, str) and config.startswith(("@", "$", "%"))):
        yield name, config


def _is_on_disk(case: Any) -> bool:
    """Whether something is a case whose images are files."""
    images = case.get("image") if isinstance(case, dict) else None
    return any(isinstance(image, (str, Path)) for image in (images if isinstance(images, (list, tuple)) else [images]))


def _facts(cases: list[dict[str, Any]]) -> dict[str, Any]:
    facts = {}
    for number, case in enumerate(cases, start=1):
        for key, value in case.items():
            if key != "name":
                facts[f"{key} of case {number} ({subject_of(case)})"] = _with_content(value)
    return facts


def _with_content(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_with_content(item) for item in value]
    return Path(value) if is_file(value) else value


def is_file(value: Any) -> bool:
    """Whether a value is the path of a file."""
    return isinstance(value, (str, Path)) and os.path.isfile(value)  # noqa: PTH113  # of any text, also a long one
