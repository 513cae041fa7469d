"""Where a result comes from: a JSON file beside each, and no result of another origin is overwritten."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

from ..errors import InputError
from ..evaluation import shown, versions
from ..files import difference, read_json, sha256_of, write_json
from ..intervals import VolumeIntervals
from ..options import VOCABULARY
from ..options.check import references, shipped_configs
from ..scans import is_scan_name, json_beside, open_scan, stem
from .checkpoints import LoadWeights
from .events import gather
from .settings import MAY_CHANGE, config_at_work, is_file, leaves_of

# what a result may have otherwise and still be the same: where it runs, what else is written; cases are known by files
_IDLE = MAY_CHANGE | {"keep_going", "overwrite", "pictures", "save_entropy", "save_inverse", "save_reconstruction"}
_IDLE |= {"data", "val_handlers", "defer_failures", "provenance"}
_DIGITS = 16  # of a hash, in a sentence


class Provenance:
    """Write beside each result where it comes from, and refuse to overwrite one that comes from elsewhere.

    For the ``provenance`` of :class:`common.engines.ScanEvaluator`. ``<file>.json`` stands beside ``<file>.nii.gz``:
    bundle and version; SHA-256 of the weights and of each input; options, and which of them are not as the bundle has
    them; threshold and its source; labels; precision, device, seconds, versions. Files go by their names, no folder is
    told. It is there before the result is, so that a run that was killed is gone on with, and gets the result's own
    SHA-256 then: what somebody has corrected by hand is of another origin.

    Two results are of one origin if bundle, version, weights, inputs, options and the parts of the config that the
    evaluator is made of are the same. Where and on how many devices it ran, and what was written besides, do not count.

    Args:
        bundle: its name.
        inputs: keys of the cases whose files are read.
        overwrite: results of another origin are replaced.
        resume: results that are there, and were made in the same way, are not made again; False where something is
            computed beside them.
        intervals: of volumes, which hold for results of their own origin only.
    """

    def __init__(
        self,
        bundle: str,
        inputs: Sequence[str] = ("image", "brain_mask"),
        overwrite: bool = False,
        resume: bool = True,
        intervals: VolumeIntervals | None = None,
    ) -> None:
        self.bundle = bundle
        self.inputs = list(inputs)
        self.overwrite = overwrite
        self.resume = resume and not overwrite
        self.intervals = intervals
        self._config = config_at_work() or ConfigParser()
        self._cases: dict[str, Mapping[str, Any]] = {}
        self._writers: list[Any] = []
        self._made_from: dict[str, Any] = {}

    def check(
        self, cases: Sequence[Mapping[str, Any]], steps: Sequence[Any], device: torch.device, precision: str
    ) -> None:
        """Refuse the run if a file that it would replace is of another origin. All processes have to call it.

        Args:
            cases: all that the run is about.
            steps: of the postprocessing; those with ``output_dir`` and ``postfix`` write files.
            device: where the network will run.
            precision: in which it will.

        Raises:
            InputError: naming the first such file, who made it, and what to do; or if the intervals are of results of
                another origin.
        """
        self._cases = {case_name(case): case for case in cases}
        self._writers = [step for step in steps if hasattr(step, "output_dir") and hasattr(step, "postfix")]
        self._made_from = self._facts() | {"precision": precision, "device": _device_name(device)}
        if self.intervals is not None:
            self.intervals.check_origin(self._made_from)
        refused = [] if self.overwrite else [*self._refused()] or [*self._of_other_bundles()]
        found = [sentence for part in gather(refused) for sentence in part]
        if found:
            more = f" ({len(found) - 1} other files likewise)" if len(found) > 1 else ""
            raise InputError(f"{found[0]}{more}, expected --overwrite true to replace it, or another --output_dir")

    def left_to_do(self, cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the checked cases that lack a result; one that a killed run may have left half made is none."""
        return [case for case in cases if not (self.resume and self._is_done(case))]

    def _is_done(self, case: Mapping[str, Any]) -> bool:
        files = self._files(case_name(case))
        if not files or not all(map(Path.exists, files)):
            return False
        content = self._made_from | self._inputs_of(case)
        return not any("sha256" not in _record_of(file) or self._difference(file, content) for file in files)

    @contextmanager
    def of_case(self, name: str, start: float) -> Iterator[None]:
        """Write the JSON files of a case before its results, and again, with its time, when they are there.

        Args:
            name: of the case, or the file of its image.
            start: of the work on it, of ``time.monotonic``.
        """
        name = name if name in self._cases else stem(name)
        files, content = self._files(name), self._made_from | self._inputs_of(self._cases[name])
        for file in files:
            if file.exists() and self._difference(file, content):
                file.unlink()  # else a run that is killed now leaves it under a wrong name
            write_json(json_beside(file), content)
        try:
            yield
        finally:
            content["seconds"] = round(time.monotonic() - start, 1)
            for file in files:
                if file.exists():
                    write_json(json_beside(file), content | {"sha256": sha256_of(file)})
                else:
                    json_beside(file).unlink(missing_ok=True)

    def _refused(self) -> Iterator[str]:
        for name, case in self._cases.items():
            for file in filter(Path.exists, self._files(name)):
                reason = self._difference(file, self._made_from | self._inputs_of(case))
                if reason:
                    yield f"{file} {reason}"

    def _of_other_bundles(self) -> Iterator[str]:
        """The first result of another bundle that lies where this run would replace the table and the page."""
        for folder in dict.fromkeys(step.output_dir for step in self._writers):
            for file in sorted(Path(folder).glob("*.nii.gz")):
                known = _record_of(file)
                if known.get("bundle", self.bundle) != self.bundle:
                    yield f"{file} and the page beside it were made by {known['bundle']} {known.get('version')}"
                    return

    def _files(self, name: str) -> list[Path]:
        postfixes = [(step.output_dir, postfix) for step in self._writers for postfix in ensure_tuple(step.postfix)]
        return [Path(folder) / f"{name}_{postfix}.nii.gz" for folder, postfix in postfixes]

    def _difference(self, file: Path, content: Mapping[str, Any]) -> str:
        """Who made a file and how, in words; empty if it was made as it would be now."""
        known = _record_of(file)
        if "bundle" not in known:
            return f"is there without {json_beside(file).name}, which would say who made it"
        maker, now = (f"{facts['bundle']} {facts.get('version')}" for facts in (known, content))
        if maker != now:
            return f"was made by {maker}"
        if known.get("sha256") not in (None, sha256_of(file)):  # there is none where a run was killed
            return f"was changed after {maker} made it"
        reason = difference(_identity(content), _identity(known), "that file")
        return f"was made by {maker} in another way: {reason}" if reason else ""

    # what results are made from

    def _facts(self) -> dict[str, Any]:
        config = self._config
        meta = config.get("_meta_", {})
        entries = sorted(_reached(config.get(), "evaluator")) if "evaluator" in config else []
        options = {name: config.get_parsed_content(name) for name in entries if name in VOCABULARY}
        shipped = self._shipped()
        given = [name for name in options if not any(config[name] == content.get(name) for content in shipped)]
        facts = {
            "bundle": self.bundle,
            "version": meta.get("version"),
            "weights": [_file_facts(path) for path in self._weights()],
            "options": {name: _public(value) for name, value in options.items()},
            "overrides": given if shipped else [],
        }
        if options.get("threshold") is not None:
            source = config.get_parsed_content("threshold_source") if "threshold_source" in config else None
            facts["threshold"] = {"value": options["threshold"], "source": shown(source or "given with the run")}
        labels = meta.get("network_data_format", {}).get("outputs", {}).get("pred", {}).get("channel_def", {})
        if options.get("classes", len(labels)) == len(labels):
            facts["labels"] = labels
        facts["config"] = self._digest([name for name in entries if name not in VOCABULARY])
        return facts | {"versions": versions()}

    def _weights(self) -> list[Path]:
        """The files that the handlers load; one that is missing is their matter."""
        handlers = self._config.get_parsed_content("handlers") if "handlers" in self._config else []
        return [h.path for h in handlers or [] if isinstance(h, LoadWeights) and h.path.is_file()]

    def _shipped(self) -> list[dict[str, Any]]:
        """What stands in the configs of the bundle."""
        root = self._config.get_parsed_content("bundle_root") if "bundle_root" in self._config else None
        return [] if root is None else shipped_configs(Path(root) / "configs")

    def _digest(self, entries: Sequence[str]) -> str:
        """One hash of all values in parts of the config, in the repository and in a package alike."""
        leaves = dict(leaves_of({name: self._config[name] for name in entries}, _IDLE))
        own = f"{self.bundle}."
        plain = {name: v.removeprefix(own) if isinstance(v, str) else v for name, v in leaves.items()}
        return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()

    def _inputs_of(self, case: Mapping[str, Any]) -> dict[str, Any]:
        return {"inputs": {key: _input_facts(case[key]) for key in self.inputs if case.get(key) is not None}}


def case_name(case: Mapping[str, Any]) -> str:
    """What the results of a case are called."""
    return case.get("name") or stem(next(path for path in ensure_tuple(case["image"]) if path is not None))


def _record_of(file: Path) -> dict[str, Any]:
    """What stands beside a result; nothing if it cannot be read."""
    with suppress(InputError):
        return read_json(json_beside(file), kind=dict)
    return {}


def _identity(content: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same, by names that a sentence can tell."""
    found = dict(content.get("options", {}))
    for part in ("weights", "inputs"):
        for number, fact in enumerate(_file_leaves(content.get(part)), start=1):
            name = part.rstrip("s") if part == "inputs" else part
            found[f"{name} {number}"] = None if fact is None else f"{fact['name']} ({fact['sha256'][:_DIGITS]})"
    return found | {"the rest of the config": str(content.get("config"))[:_DIGITS]}


def _file_leaves(facts: Any) -> Iterator[dict[str, str] | None]:
    """Facts of files, wherever they stand."""
    if isinstance(facts, Mapping) and "sha256" not in facts:
        facts = list(facts.values())
    if isinstance(facts, list):
        for fact in facts:
            yield from _file_leaves(fact)
    else:
        yield facts


def _input_facts(value: Any) -> Any:
    """Name and hash of a scan, of each in a list, and of all that a case has, where one stands for another."""
    if isinstance(value, Mapping):
        paths = {key: item for key, item in value.items() if any(map(is_scan_name, map(str, ensure_tuple(item))))}
        return {key: _input_facts(item) for key, item in paths.items()}
    if isinstance(value, list | tuple):
        return [None if path is None else _input_facts(path) for path in value]
    files = sorted({Path(holder.filename) for holder in open_scan(value, volumes=True).file_map.values()})
    facts = [_file_facts(file) for file in files]  # two of a pair
    return facts[0] if len(facts) == 1 else facts


def _file_facts(path: str | Path) -> dict[str, str]:
    return {"name": Path(path).name, "sha256": sha256_of(path)}


def _public(value: Any) -> Any:
    """An option as it may be told: a file by its name and hash."""
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _public(item) for key, item in value.items()}
    return _file_facts(value) if is_file(value) else shown(value)


def _reached(config: Mapping[str, Any], name: str) -> set[str]:
    """Entries on top of a config that one of them is made of, itself included."""
    found, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in found and name in config and name not in _IDLE:
            found.add(name)
            waiting += references(config[name], {"_desc_", *_IDLE})
    return found


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
