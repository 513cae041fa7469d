"""Weights in and out of files, and the state that lets a training go on after a kill."""

from __future__ import annotations

import io
import logging
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from ..errors import InputError
from ..files import Alone, difference, write_atomically
from .events import rank, run_last, words
from .settings import config_at_work, let_tracking_fail, settings_of_training

logger = logging.getLogger(__name__)

# keys of a saved training
_STATE = {"epoch", "max_epochs", "epoch_length", "processes", "objects", "settings", "weights"}


class LoadWeights:
    """Load the weights of a network when the run starts, or stop the run.

    Takes a flat state dict of tensors, ``torch.save(network.state_dict())``. Nothing but tensors is unpickled.

    Args:
        path: file of the weights.
        network: the network, bare or wrapped in ``DistributedDataParallel``.
        strict: every key of the network and of the file must have its partner; else the others are logged and left.
            Shapes have to agree in either case.
        part: where the network stands in a larger one. A file that has keys of this part holds the larger network, and
            only the part is taken.

    Raises:
        InputError: if there is no path; at the start of the run, if the file is missing, no such state dict, or of
            another network.
    """

    def __init__(self, path: str | Path, network: nn.Module, strict: bool = True, part: str | None = None) -> None:
        if path is None:
            raise InputError(f"weights is null, expected the file with those of {type(bare(network)).__name__}")
        self.path = Path(path)
        self.network = network
        self.strict = strict
        self.part = part

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        network = bare(self.network)
        kind = type(network).__name__
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file, expected the weights of {kind}")
        weights = read_tensors(self.path)
        if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
            found = words([*weights][:3]) if isinstance(weights, Mapping) else type(weights).__name__
            raise InputError(f"{self.path}: found {found}, expected a flat state dict with the tensors of {kind}")
        prefix = f"{self.part}."
        if self.part and any(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        mismatch = first_mismatch(network, weights, self.strict)
        if mismatch:
            raise InputError(f"{self.path}: does not fit {kind}, {mismatch}")
        left = network.load_state_dict(weights, strict=self.strict)
        if left.missing_keys or left.unexpected_keys:
            missing, unexpected = len(left.missing_keys), len(left.unexpected_keys)
            logger.warning("%s: lacks %d parameters of %s, has %d others", self.path, missing, kind, unexpected)
        logger.info("weights of %s from %s", kind, self.path)


class TrainingState:
    """Save all that a training needs to go on, at its start and after every epoch, and go on from it when it starts.

    With :class:`EpochSeed` the resumed training equals an uninterrupted one, on CPU bit for bit. What is saved: the
    epoch, the state of each object, the gradient scaler of mixed precision, the best metric of trainer and validator,
    and the best weights, which are written again when the training goes on: they may have to go elsewhere. An epoch
    that was broken off is run again from its start. The file is replaced in one step, so a kill while saving leaves the
    one before.

    In a config it also saves what the training is made from: the settings, and hashes of the files of its cases (see
    :func:`settings_of_training`, also for what may change). A training of others is not gone on with. While it runs no
    other process may write the state or the weights.

    A file that holds a finished training is not resumed unless ``max_epochs`` was raised: the run starts over, with a
    warning, as a second training request in MONAI Label has to. With more epochs the objects go on as they were saved,
    a learning-rate schedule with its old length. Place this handler behind those that load weights.
    Under ``torchrun`` it must be there on every rank: all restore, rank 0 saves. It may go on in another number of
    processes than it stopped in; its epochs then have another length.

    Args:
        path: the file, for instance ``training_state.pt`` in the output folder.
        objects: name to object with ``state_dict`` and ``load_state_dict``: network, optimizer, lr_scheduler ...
        validator: the evaluator of the training; it then remembers its best metric.
        resume: False starts over and overwrites the file.

    Raises:
        InputError: when the training starts, if the file is unreadable or cannot be written, belongs to another
            network, optimizer, data set, number of epochs or other settings, or if another process writes it or the
            weights; at the end, if no validation gave weights.
    """

    def __init__(
        self, path: str | Path, objects: Mapping[str, Any], validator: Engine | None = None, resume: bool = True
    ) -> None:
        self.path = Path(path)
        self.objects = {
            name: bare(target) if isinstance(target, nn.Module) else target for name, target in objects.items()
        }
        self.validator = validator
        self.resume = resume
        self._config = config_at_work()
        self._settings: dict[str, Any] = {}
        self._alone: list[Alone] = []
        self._read_back = False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.restore)
        run_last(engine, self.save)
        run_last(engine, self.finish, Events.COMPLETED)  # behind a last validation

    def restore(self, engine: Engine) -> None:
        """Put engine and objects where the file says, unless there is none or it holds a finished training."""
        if rank(engine) == 0:
            written = [keeper.path for keeper in self._keepers()]
            self._alone = [Alone(path, is_file=True) for path in (self.path, *written)]
            self._settings = settings_of_training(self._config, written)
        saved = self._read(engine) if self.resume and self.path.exists() else None
        idist.barrier()  # nobody writes before all have read
        for keeper in self._keepers():
            keeper.kept = None
        if saved is None:
            self.save(engine)  # a kill in the first epoch may come after its weights were written
        else:
            self._go_on(engine, saved)

    def finish(self, engine: Engine) -> None:
        """Let other processes write, and refuse to end without weights."""
        for alone in self._alone:
            alone.close()
        missing = [keeper.path for keeper in self._keepers() if keeper.kept is None]
        if missing and rank(engine) == 0:
            raise InputError(f"{missing[0]} was not written, expected a validation whose metric is a number")

    def _go_on(self, engine: Engine, saved: Mapping[str, Any]) -> None:
        for name, target in self.objects.items():
            self._load(name, target, saved["objects"][name])
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and saved["scaler"]:
            scaler.load_state_dict(saved["scaler"])
        for role, other in self._engines(engine).items():
            other.state.best_metric, other.state.best_metric_epoch = saved["best"][role]
        if saved["processes"] == idist.get_world_size():
            engine.state.epoch_length = saved["epoch_length"]
        engine.state.epoch = saved["epoch"]
        engine.state.iteration = saved["epoch"] * engine.state.epoch_length
        if rank(engine) > 0:
            return
        for keeper in self._keepers():
            keeper.keep(saved["weights"].get(keeper.path.name))
        logger.info("resuming after epoch %d of %d from %s", saved["epoch"], engine.state.max_epochs, self.path)

    def save(self, engine: Engine) -> None:
        """Write the state after the epoch that the engine has just completed."""
        if rank(engine) > 0:
            return
        scaler = getattr(engine, "scaler", None)
        state = {
            "epoch": engine.state.epoch,
            "max_epochs": engine.state.max_epochs,
            "epoch_length": engine.state.epoch_length,
            "processes": idist.get_world_size(),
            "settings": self._settings,
            "objects": {name: _plain(target.state_dict()) for name, target in self.objects.items()},
            "best": {
                role: [float(other.state.best_metric), int(other.state.best_metric_epoch)]
                for role, other in self._engines(engine).items()
            },
            "weights": {keeper.path.name: keeper.kept for keeper in self._keepers() if keeper.kept is not None},
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        # read the first one back: what cannot be loaded again should be known now, not after the crash
        save_tensors(state, self.path, read_back=not self._read_back)
        self._read_back = True

    def _keepers(self) -> list[BestWeights]:
        """Those who keep the best weights of this training."""
        entries = () if self.validator is None else self.validator._event_handlers[Events.EPOCH_COMPLETED]
        return [handler for handler, *_ in entries if isinstance(handler, BestWeights)]

    def _engines(self, engine: Engine) -> dict[str, Engine]:
        engines = {"trainer": engine, "validator": self.validator}
        return {role: other for role, other in engines.items() if hasattr(getattr(other, "state", None), "best_metric")}

    def _read(self, engine: Engine) -> dict[str, Any] | None:
        """What the file holds, if it is an unfinished training like this one; None if it is a finished one."""
        saved = read_tensors(self.path)
        if not isinstance(saved, dict) or not saved.keys() >= _STATE:
            raise InputError(f"{self.path}: found no training state, expected a file that TrainingState wrote")
        if saved["epoch"] < engine.state.max_epochs:
            self._check(saved, engine)
            return saved
        if saved["epoch"] < saved["max_epochs"]:
            raise InputError(
                f"{self.path}: found a training stopped after epoch {saved['epoch']} of {saved['max_epochs']}, "
                f"expected max_epochs above that, not {engine.state.max_epochs} (or --resume False to start over)"
            )
        logger.warning("%s holds a finished training of %d epochs: starting over", self.path, saved["epoch"])
        return None

    def _check(self, saved: Mapping[str, Any], engine: Engine) -> None:
        changed = difference(self._settings, saved["settings"], "the state") if rank(engine) == 0 else ""
        if changed:
            raise InputError(f"{self.path}: {changed}; expected the same to go on (or --resume False to start over)")
        expected = {
            "objects": sorted(self.objects),
            "engines with a best metric": sorted(self._engines(engine)),
        }
        found = {
            "objects": sorted(saved["objects"]),
            "engines with a best metric": sorted(saved["best"]),
        }
        if saved["processes"] == idist.get_world_size():
            expected["iterations per epoch"] = engine.state.epoch_length
            found["iterations per epoch"] = saved["epoch_length"]
        for what, value in expected.items():
            if value is not None and found[what] != value:
                raise InputError(
                    f"{self.path}: found the state of another training, {what} {words(found[what])}, "
                    f"expected {words(value)} (or --resume False to start over)"
                )

    def _load(self, name: str, target: Any, state: Any) -> None:
        mismatch = first_mismatch(target, state) if isinstance(target, nn.Module) else ""
        if mismatch:
            raise InputError(
                f"{self.path}: the state of {name} is of another training, {mismatch} (or --resume False to start over)"
            )
        try:
            target.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path}: found a state of {name} that does not fit, expected one of a {type(target).__name__} "
                "configured as here (or --resume False to start over)"
            ) from error


class BestWeights:
    """Keep the weights of the best validation as a flat state dict of plain tensors on the CPU.

    For the handlers of the evaluator. Best is what the evaluator says: its first metric in ``key_val_metric``, compared
    by its ``metric_cmp_fn``, the highest by default. A metric that is no number is never the best.

    Args:
        path: file of the weights, ``models/model.pt`` of the bundle.
        network: the network, bare or wrapped in ``DistributedDataParallel``.

    Raises:
        InputError: at the first validation, if the evaluator has no key metric; if the file cannot be written.
    """

    def __init__(self, path: str | Path, network: nn.Module) -> None:
        self.path = Path(path)
        self.network = network
        self.kept: dict[str, torch.Tensor] | None = None  # what is in the file
        let_tracking_fail()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def keep(self, weights: dict[str, torch.Tensor] | None) -> None:
        """Write weights, unless there are none, and remember them."""
        self.kept = weights
        if weights is not None:
            save_tensors(weights, self.path)

    def __call__(self, engine: Engine) -> None:
        state = engine.state
        if state.key_metric_name is None:
            raise InputError(f"{self.path}: the evaluator has no key_val_metric, expected one to tell the best weights")
        if state.best_metric_epoch != state.epoch:
            return
        if math.isnan(float(state.best_metric)):
            # nothing compares greater than it, so it would stay the best for ever
            state.best_metric, state.best_metric_epoch = -1, -1
            logger.warning("%s is no number at epoch %d: weights not kept", state.key_metric_name, state.epoch)
        elif rank(engine) == 0:
            weights = bare(self.network).state_dict()
            self.keep({key: value.detach().cpu().clone() for key, value in weights.items()})
            logger.debug("%s %g at epoch %d: %s", state.key_metric_name, state.best_metric, state.epoch, self.path)


def bare(network: nn.Module) -> nn.Module:
    """The network inside the wrappers of data parallelism and of ``torch.compile``."""
    while True:
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        elif hasattr(network, "_orig_mod"):
            network = network._orig_mod
        else:
            return network


def first_mismatch(network: nn.Module, weights: Mapping[str, torch.Tensor], strict: bool = True) -> str:
    """The first parameter in which a state dict does not fit a network, in words; empty if there is none."""
    expected = network.state_dict()
    for key, value in expected.items():
        if key not in weights and strict:
            return f"found no {key}, expected one of shape {tuple(value.shape)}"
        if key in weights and weights[key].shape != value.shape:
            return f"found {key} of shape {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
    unexpected = next((key for key in weights if key not in expected), None)
    return f"found {unexpected}, expected no such parameter" if unexpected is not None and strict else ""


def save_tensors(data: Any, path: Path, read_back: bool = False) -> None:
    """``torch.save`` that never leaves half a file.

    Args:
        data: tensors and plain Python objects, nested.
        path: the file.
        read_back: prove first that ``torch.load(weights_only=True)`` will read it.

    Raises:
        InputError: if it cannot be written.
        TypeError: if it cannot be read back.
    """
    packed = io.BytesIO()  # torch.save into a file hides why the disk refused it
    torch.save(data, packed)
    if read_back:
        packed.seek(0)
        try:
            torch.load(packed, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise TypeError(f"{path}: a state_dict holds more than tensors and plain Python objects") from error
    write_atomically(path, lambda part: part.write_bytes(packed.getbuffer()))


def read_tensors(path: Path) -> Any:
    """What :func:`save_tensors` wrote, on the CPU; nothing but tensors and plain Python objects is unpickled.

    Raises:
        InputError: if the file cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: cannot be read, expected tensors saved by torch.save") from error


def _plain(state: Any) -> Any:
    """NumPy scalars as Python numbers: some schedules keep one, and nothing but tensors and plain objects is loaded."""
    if isinstance(state, np.generic):
        return state.item()
    if type(state) in (list, tuple):
        return type(state)(_plain(value) for value in state)
    if type(state) is dict:
        return {key: _plain(value) for key, value in state.items()}
    return state
