"""The check that every config of a bundle runs first: options that are unknown or wrong stop it in one sentence."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from monai.bundle import ConfigItem, ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ConfigComponent

from ..errors import InputError, install_error_hook
from ..files import Alone
from .types import converted
from .vocabulary import UNUSED, VOCABULARY

# entries that MONAI itself reads, and those of its tracking
_OF_MONAI = {"imports", "initialize", "run", "finalize", "displayable_configs", "tracking_uri", "experiment_name"}
_OF_MONAI |= {"run_name", "save_execute_config"}
_THRESHOLD = ("threshold", "threshold_source")
# options that count voxels of the network's grid, which metadata.json describes
_GRIDS = ("patch_size", "slice_size", "window_size", "shape", "pad_multiple")


def check_options(limits: Mapping[str, Sequence[float]] | None = None) -> None:
    """Check the options of the config that is running, and put the values in place that their text stands for.

    Meant as the first expression of ``run``: nothing is read or written yet. It looks at all entries on top of the
    merged config, whether they come from a file, a layer, the command line, or Python:

    - an entry that nothing refers to is refused, unless the bundle has it so: it would change nothing; and so is a text
      instead of a part of the config, as ``datalist``;
    - a value has to be what :data:`VOCABULARY` says of its name, ``--mirror no`` is False and ``--spacing 1,1,2`` a
      list; a grid has to fit ``network_data_format`` of ``metadata.json``;
    - files that are read have to be there;
    - a threshold that is not the bundle's has not the bundle's source;
    - what a training will write is this run's alone, from before its data are read until the workflow is gone;
    - epochs and names of the tracking are no expressions, whoever gave them.

    An entry that is no option, such as a network, is left as it is. From now on, an :class:`InputError` ends the
    process by its sentence, see :func:`install_error_hook`.

    Args:
        limits: name of an option -> the lowest and the highest value that this config takes.

    Raises:
        InputError: naming option, value, and what is expected; or who else trains into the same place.
        RuntimeError: if no config is running.
    """
    install_error_hook()
    parser, workflow = _running()
    config = parser.get()
    run_ids = {workflow.init_id, workflow.run_id, workflow.final_id} if workflow else set()
    read = {*references(config)}
    known = {*read, *_OF_MONAI, *UNUSED, *run_ids}
    shipped = shipped_configs(Path(workflow.config_root_path)) if workflow else []
    parts = {name for content in shipped for name, value in content.items() if isinstance(value, dict)}
    replaced = [name for name, value in config.items() if name in parts - VOCABULARY.keys() and _is_plain(value)]
    idle = [n for n, value in config.items() if n not in known and not n.startswith("_") and value is not None]
    # a layer may leave what the config below it has without use
    idle = [name for name in idle if not any(content.get(name) == config[name] for content in shipped)]
    if replaced or idle:
        raise InputError(_unknown([*replaced, *idle][0], config.keys()))
    _refuse_requested_code(parser)
    # null, where nothing reads it, takes away what a layer leaves without use
    given = [name for name in VOCABULARY if name in config and (config[name] is not None or name in read)]
    for name in sorted(given, key=lambda name: _is_reference(config[name])):  # expressions last: they refer to others
        value = converted(name, _value(parser, name), VOCABULARY[name].kind)
        if name in (limits or {}):
            _check_limits(name, value, limits[name])
        if name in _GRIDS:
            value = _fitting_grid(name, value, parser.get("_meta_", {}))
        _put(parser, name, value)
    pair = [config.get(name) for name in _THRESHOLD]
    pairs = [[content.get(name) for name in _THRESHOLD] for content in shipped]
    if pair not in pairs and pair[1] in [source for _, source in pairs if source is not None]:
        _put(parser, _THRESHOLD[1], "given with the run")  # who gives another number has another reason
    if workflow is not None and idist.get_rank() == 0:
        vars(workflow)["claims"] = [Alone(path, is_file=True) for path in _written_by_training(parser)]


def _written_by_training(parser: ConfigParser) -> Iterator[str]:
    """Files of the state of a training and of its weights, as the config names them."""
    for name, item in [*parser.ref_resolver.items.items()]:
        target = str(item.get_config().get("_target_")) if isinstance(item, ConfigComponent) else ""
        if target.endswith((".TrainingState", ".BestWeights")):
            yield parser.get_parsed_content(f"{name}::path")


def _refuse_requested_code(parser: ConfigParser) -> None:
    """What a training request of MONAI Label puts into a config as text is data, never an expression.

    Raises:
        InputError: for epochs that are no number, and names of the tracking that begin like an expression.
    """
    name = "train::trainer::max_epochs"
    epochs = parser.get(name, "@max_epochs")
    if epochs != "@max_epochs":
        value = converted("max_epochs", epochs, VOCABULARY["max_epochs"].kind)
        parser.get("train::trainer")["max_epochs"] = value
        parser.ref_resolver.items[name] = ConfigItem(value, name)
    for name in ("tracking_uri", "experiment_name", "run_name"):
        if str(parser.get(name, "")).startswith(("$", "@", "%")):
            raise InputError(f"{name} is {parser.get(name)!r}, expected a text that does not begin with $, @ or %")


def _running() -> tuple[ConfigParser, ConfigWorkflow | None]:
    """Parser of the config whose expression is being evaluated, and its workflow if it has one.

    MONAI hands an expression neither, so they are looked for among the callers.
    """
    frame, parser = inspect.currentframe(), None
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigWorkflow):
            return caller.parser, caller
        parser = caller if isinstance(caller, ConfigParser) else parser
        frame = frame.f_back
    if parser is None:
        raise RuntimeError("check_options is called by no config")
    return parser, None


def shipped_configs(folder: Path) -> list[dict[str, Any]]:
    """What stands in the configs of a bundle, by their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def references(config: Any, skip: Collection[str] = ("_desc_",)) -> Iterator[str]:
    """Names on top of a config that something in it refers to.

    Args:
        config: the whole, or a part.
        skip: keys whose values are not looked at.
    """
    if isinstance(config, str):
        yield from re.findall(r"@(\w+)", config)
    elif isinstance(config, (Mapping, list)):
        for key, value in config.items() if isinstance(config, Mapping) else enumerate(config):
            if key not in skip:
                yield from references(value, skip)


def _unknown(name: str, entries: Iterable[str]) -> str:
    options = sorted(VOCABULARY.keys() & set(entries) - {name})
    near = difflib.get_close_matches(name, options, 1)
    reason = "is no option of this config" if name in VOCABULARY else "is no option"
    return f"--{name} {reason}, expected {f'--{near[0]}' if near else 'one of ' + ', '.join(options)}"


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not _is_reference(value)


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("$", "@"))


def _value(parser: ConfigParser, name: str) -> Any:
    """The value of an entry, evaluated if it is an expression."""
    try:
        return parser.get_parsed_content(name)
    except Exception as e:  # whatever the expression does
        raise InputError(f"{name} is {parser[name]!r}, which cannot be evaluated ({e.__cause__ or e})") from e


def _put(parser: ConfigParser, name: str, value: Any) -> None:
    """Let a name stand for a value, without building again what is built already."""
    if not _is_reference(parser[name]):
        parser.get()[name] = value
    parser.ref_resolver.items[name] = ConfigItem(value, name)
    parser.ref_resolver.remove_resolved_content(name)


def _check_limits(name: str, value: float | None, limits: Sequence[float]) -> None:
    if value is not None and not limits[0] <= value <= limits[1]:
        raise InputError(f"{name} is {value:g}, expected a number from {limits[0]:g} to {limits[1]:g}")


def _fitting_grid(name: str, value: int | list[int], metadata: Mapping) -> int | list[int]:
    """A grid of the network's dimension, of which one number stands for all axes, that its levels can halve.

    Half of what the metadata promise to whoever runs the bare network is enough here.

    Raises:
        InputError: if it is none; ``pad_multiple`` has three axes for a network of slices too.
    """
    described = metadata.get("network_data_format", {}).get("inputs", {}).get("image", {}).get("spatial_shape", [])
    factors = [
        max(1, int(text.partition("*")[0]) // 2) for text in map(str, described) if re.fullmatch(r"\d+\*n", text)
    ]
    if not factors:
        return value
    sizes = value if isinstance(value, list) else [value]
    axes = 3 if name == "pad_multiple" else len(factors)  # the volume is padded, not the slice
    sizes = sizes * axes if len(sizes) == 1 else sizes
    least = 1 if name == "pad_multiple" else 2  # times the factor: what is halved to one voxel cannot be normalized
    pairs = zip(sizes, factors, strict=False)
    if len(sizes) != axes or any(size % factor or size < least * factor for size, factor in pairs):
        expected = f"{len(factors)} multiples of {', '.join(map(str, dict.fromkeys(factors)))}"
        expected += f", {least * max(factors)} or more" if least > 1 else ""
        more = " and a third number" if axes > len(factors) else ""
        raise InputError(f"{name} is {value}, expected {expected}{more}")
    return sizes if isinstance(value, list) else value
