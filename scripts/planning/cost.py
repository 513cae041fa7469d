"""What a training or an inference costs on this machine: measured on a few scans, in a process of its own."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from common.data import BrainSlices
from common.errors import find_input_error
from running.workflow import open_configs

WARMUP = 2  # steps before those that are measured: what is loaded at first use is no step of a training


class StepTime(NamedTuple):
    """Mean seconds of a training step: of the network, and of waiting for its batch."""

    working: float
    waiting: float


class TrainingCost(NamedTuple):
    """A training: what was measured, on how much, and what follows for all of it.

    ``step_seconds`` (waiting for data included), ``loading_seconds`` per scan, ``validation_seconds`` per scan and
    ``peak_memory_gib`` are measured; ``epoch_steps``, ``epochs`` and ``validations`` are those of the config with all
    the scans; ``hours`` and ``memory_gib`` are calculated from these.
    """

    step_seconds: float
    measured_steps: int
    measured_scans: int
    loading_seconds: float
    validation_seconds: float
    epoch_steps: int
    epochs: int
    validations: int
    hours: float
    peak_memory_gib: float
    memory_gib: float
    gpu_memory_gib: float | None
    device: str
    threads: int


class InferenceCost(NamedTuple):
    """An inference: seconds from NIfTI to NIfTI of one scan, without the start of the program, and peak memory."""

    scan_seconds: float
    peak_memory_gib: float
    gpu_memory_gib: float | None
    device: str
    threads: int


def time_steps(trainer: Any, loader: DataLoader, steps: int, warmup: int = WARMUP) -> StepTime:
    """Run training steps by hand, without the handlers, and time them; the weights change.

    Args:
        trainer: of a config, not run yet.
        loader: its batches; begun again where they end.
        steps: measured ones.
        warmup: steps before these, which are not measured.
    """
    trainer.state.iteration, trainer.state.epoch_length = 0, len(loader)
    working, waiting, done = 0.0, 0.0, -warmup
    while done < steps:
        before = done
        batches = iter(loader)
        while done < steps:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            middle = time.perf_counter()
            trainer.state.iteration += 1
            trainer._iteration(trainer, batch)
            if trainer.state.device.type == "cuda":
                torch.cuda.synchronize()
            if done >= 0:
                waiting += middle - start
                working += time.perf_counter() - middle
            done += 1
        if done == before:
            raise ValueError("the data loader gives no batch, expected one or more")
    return StepTime(working / steps, waiting / steps)


def training_cost(
    bundle: str | Path,
    configs: Sequence[str],
    datalist_file: str | Path,
    scans: Mapping[str, int],
    steps: int = 3,
    datalists: Sequence[str] = ("datalist_file",),
    **overrides: Any,
) -> TrainingCost:
    """Prepare the scans of a datalist as a training does, make some of its steps and one validation, and time them.

    Nothing is written, no weights are loaded: networks begin at random, which costs the same. To be called in a process
    of its own, by :func:`measured`, as the peak memory is that of the process.

    Args:
        bundle: its folder.
        configs: names of the config and the layers on it.
        datalist_file: a few scans, for training as many as fill a batch.
        scans: section -> number of scans of the whole training, for what is calculated.
        steps: to measure.
        datalists: entries of the config that name the datalist.
        overrides: further entries of the configs.
    """
    with tempfile.TemporaryDirectory() as folder:
        # metrics may refuse so few scans, and need no time beside the networks
        silent = {"validate#handlers": [], "validate#key_metric": None, "validate#additional_metrics": None}
        paths = {"output_dir": f"{folder}/out", "ckpt_dir": f"{folder}/models"} | dict.fromkeys(
            datalists, datalist_file
        )
        parser = open_configs(bundle, configs, **{**silent, **paths, **overrides}).parser
        start = time.perf_counter()
        parser.get_parsed_content("train#dataset")
        loading = time.perf_counter() - start
        trainer, loader = (parser.get_parsed_content(f"train#{name}") for name in ("trainer", "dataloader"))
        parser.get_parsed_content("network").train()
        evaluator = parser.get_parsed_content("validate#evaluator")
        step = sum(time_steps(trainer, loader, steps))
        start = time.perf_counter()
        evaluator.run()
        validation = time.perf_counter() - start
    here = {section: len(parser.get_parsed_content(f"{part}#data")) for section, part in _PARTS.items()}
    epoch_steps = _epoch_steps(loader, scans["training"] / here["training"])
    epochs = trainer.state.max_epochs
    validations = epochs // parser.get_parsed_content("val_interval")
    loading, validation = loading / here["training"], validation / here["validation"]
    seconds = epochs * epoch_steps * step + validations * scans["validation"] * validation
    seconds += sum(scans.values()) * loading
    peak = peak_memory_gib()
    further = sum(
        _cached_bytes(parser.get_parsed_content(f"{part}#dataset"))
        / here[section]
        * max(scans[section] - here[section], 0)
        for section, part in _PARTS.items()
    )
    return TrainingCost(
        step,
        steps,
        here["training"],
        loading,
        validation,
        epoch_steps,
        epochs,
        validations,
        seconds / 3600,
        peak,
        peak + further / 2**30,
        *_machine(trainer.state.device),
    )


def inference_cost(
    bundle: str | Path, configs: Sequence[str], datalist_file: str | Path, **overrides: Any
) -> InferenceCost:
    """Run an inference twice on the scans of a datalist, and time the second run.

    Args:
        bundle: its folder, with weights.
        configs: names of the config and the layers on it.
        datalist_file: one scan or a few.
        overrides: further entries of the configs.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {"output_dir": folder, "datalist_file": datalist_file}
        parser = open_configs(bundle, configs, **paths, **overrides).parser
        evaluator = parser.get_parsed_content("evaluator")
        evaluator.run()
        start = time.perf_counter()
        evaluator.run()
        seconds = time.perf_counter() - start
    scans = len(parser.get_parsed_content("datalist"))
    return InferenceCost(seconds / scans, peak_memory_gib(), *_machine(evaluator.state.device))


def measured(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function returns in a new process, whose memory is its own; a sentence as text if it fails there.

    What the process prints is dropped.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_be_silent) as pool:
        try:
            return pool.submit(_sentence_or_result, function, args, kwargs).result()
        except BrokenProcessPool:
            return "the process was ended from outside, as happens where memory is short"


def peak_memory_gib() -> float:
    """The most memory that this process has held so far, in GiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count a child from its parent's size
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


_PARTS = {"training": "train", "validation": "validate"}


def _epoch_steps(loader: DataLoader, factor: float) -> int:
    """Steps of an epoch if there were so many times as many scans; samplers of their own decide for themselves."""
    if not isinstance(loader.sampler, RandomSampler | SequentialSampler):
        return len(loader)
    batches = len(loader.dataset) * factor / loader.batch_size
    return max(math.floor(batches) if loader.drop_last else math.ceil(batches), 1)


def _cached_bytes(item: Any) -> int:
    """Bytes of the tensors that a dataset keeps."""
    if isinstance(item, BrainSlices):
        return item.slices.nbytes
    if isinstance(item, Mapping):
        return sum(map(_cached_bytes, item.values()))
    if isinstance(item, list | tuple):
        return sum(map(_cached_bytes, item))
    inside = getattr(item, "_cache", None) or getattr(item, "cases", None)  # of CachedScans, of pairs of them
    return getattr(item, "nbytes", 0) if inside is None else _cached_bytes(inside)


def _machine(device: torch.device) -> tuple[float | None, str, int]:
    on_gpu = device.type == "cuda"
    used = torch.cuda.max_memory_reserved(device) / 2**30 if on_gpu else None
    return used, torch.cuda.get_device_name(device) if on_gpu else "CPU", torch.get_num_threads()


def _be_silent() -> None:
    logging.disable(logging.CRITICAL)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _sentence_or_result(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as e:  # whatever a training raises is what the user has to be told
        error = find_input_error(e)
        while error is None and e.__cause__ is not None:  # MONAI wraps what a config raises
            e = e.__cause__
        return str(error or f"{type(e).__name__}: {e}").splitlines()[0]
