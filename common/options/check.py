"""The check that every config of a bundle runs first: options that are unknown or wrong stop it in one sentence."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigItem, ConfigParser, ConfigWorkflow

from ..errors import InputError, install_error_hook
from .types import converted
from .vocabulary import UNUSED, VOCABULARY

# entries that MONAI itself reads, and those of its tracking
_OF_MONAI = {"imports", "initialize", "run", "finalize", "displayable_configs", "tracking_uri", "experiment_name"}
_OF_MONAI |= {"run_name", "save_execute_config"}
# options that count voxels of the network's grid, which metadata.json describes
_GRIDS = ("patch_size", "slice_size", "window_size", "shape", "pad_multiple")


def check_options(limits: Mapping[str, Sequence[float]] | None = None) -> None:
    """Check the options of the config that is running, and put the values in place that their text stands for.

    Meant as the first expression of ``run``: nothing is read or written yet. It looks at all entries on top of the
    merged config, whether they come from a file, a layer, the command line, or Python:

    - an entry that nothing refers to is refused: it would change nothing;
    - a value has to be what :data:`VOCABULARY` says of its name, ``--mirror no`` is False and ``--spacing 1,1,2`` a
      list; a grid has to fit ``network_data_format`` of ``metadata.json``;
    - files that are read have to be there.

    An entry that is no option, such as a network, is left as it is. From now on, an :class:`InputError` ends the
    process by its sentence, see :func:`install_error_hook`.

    Args:
        limits: name of an option -> the lowest and the highest value that this config takes.

    Raises:
        InputError: naming option, value, and what is expected.
        RuntimeError: if no config is running.
    """
    install_error_hook()
    parser, run_ids = _running()
    config = parser.get()
    known = {*_references(config), *_OF_MONAI, *UNUSED, *run_ids}
    for name, value in config.items():
        if name not in known and not name.startswith("_") and value is not None:
            raise InputError(_unknown(name, known))
    given = [name for name in VOCABULARY if name in config and not (name in UNUSED and name not in known)]
    for name in sorted(given, key=lambda name: _is_reference(config[name])):  # expressions last: they refer to others
        value = converted(name, _value(parser, name), VOCABULARY[name].kind)
        if name in (limits or {}):
            _check_limits(name, value, limits[name])
        if name in _GRIDS:
            _check_grid(name, value, parser.get("_meta_", {}))
        _put(parser, name, value)


def _running() -> tuple[ConfigParser, set[str]]:
    """Parser of the config whose expression is being evaluated, and the ids that its workflow runs.

    MONAI hands an expression no parser, so it is looked for among the callers.
    """
    frame, parser = inspect.currentframe(), None
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigWorkflow):
            return caller.parser, {caller.init_id, caller.run_id, caller.final_id}
        parser = caller if isinstance(caller, ConfigParser) else parser
        frame = frame.f_back
    if parser is None:
        raise RuntimeError("check_options is called by no config")
    return parser, set()


def _references(config: Any) -> Iterator[str]:
    """Names on top of a config that something in it refers to."""
    if isinstance(config, str):
        yield from re.findall(r"@(\w+)", config)
    elif isinstance(config, (Mapping, list)):
        for key, value in config.items() if isinstance(config, Mapping) else enumerate(config):
            if key != "_desc_":
                yield from _references(value)


def _unknown(name: str, known: set[str]) -> str:
    options = sorted(known & VOCABULARY.keys())
    near = difflib.get_close_matches(name, options, 1)
    reason = "is no option of this config" if name in VOCABULARY else "is no option"
    return f"--{name} {reason}, expected {f'--{near[0]}' if near else 'one of ' + ', '.join(options)}"


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("$", "@"))


def _value(parser: ConfigParser, name: str) -> Any:
    """The value of an entry, evaluated if it is an expression."""
    try:
        return parser.get_parsed_content(name)
    except Exception as e:  # whatever the expression does
        raise InputError(f"{name} is {parser[name]!r}, which cannot be evaluated ({e.__cause__ or e})") from e


def _put(parser: ConfigParser, name: str, value: Any) -> None:
    """Let a name stand for a value, without building anew what is built already."""
    if not _is_reference(parser[name]):
        parser.get()[name] = value
    parser.ref_resolver.items[name] = ConfigItem(value, name)
    parser.ref_resolver.remove_resolved_content(name)


def _check_limits(name: str, value: float | None, limits: Sequence[float]) -> None:
    if value is not None and not limits[0] <= value <= limits[1]:
        raise InputError(f"{name} is {value:g}, expected a number from {limits[0]:g} to {limits[1]:g}")


def _check_grid(name: str, value: int | list[int], metadata: Mapping) -> None:
    """Refuse a grid of another dimension than the network's, or one that its levels cannot halve."""
    described = metadata.get("network_data_format", {}).get("inputs", {}).get("image", {}).get("spatial_shape", [])
    factors = [int(text.partition("*")[0]) for text in map(str, described) if re.fullmatch(r"\d+\*n", text)]
    if not factors:
        return
    sizes = [value] * len(factors) if isinstance(value, int) else value
    if name == "pad_multiple":
        sizes = sizes[: len(factors)] if len(sizes) == 3 else sizes
    if len(sizes) != len(factors) or any(size % factor for size, factor in zip(sizes, factors, strict=True)):
        expected = f"{len(factors)} multiples of {', '.join(map(str, dict.fromkeys(factors)))}"
        raise InputError(f"{name} is {value}, expected {expected}")
