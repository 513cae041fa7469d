"""Engines: an evaluator for folders of scans, mixed precision on any device, and batches for reconstruction."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import default_prepare_batch
from monai.inferers import Inferer, SimpleInferer
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..errors import InputError, find_input_error, is_out_of_memory
from ..files import Alone
from .events import gather, progress_bar, words
from .memory import keep_freed_memory
from .provenance import Provenance
from .side_by_side import Outcome, SideBySide, refuse_side_by_side

logger = logging.getLogger(__name__)


class ScanEvaluator(SupervisedEvaluator):
    """MONAI's SupervisedEvaluator for a folder of scans: progress, one log line per case, failures in one sentence.

    Running out of memory becomes an InputError that names the case and the setting to change. With ``keep_going`` a
    case that fails by its data is logged and left out, the others are finished, and the run then still ends by an
    error, so that a script sees it. With ``defer_failures`` too, that error waits for :meth:`raise_failures`, so that
    something can be done with the other cases before.

    Gradients are off, by ``torch.no_grad`` as in MONAI. ``torch.inference_mode`` was no faster on whole volumes, and
    what a network caches in it cannot be trained with afterwards.

    Under ``torchrun`` every process has its own batches; failures are those of all of them, and the first process draws
    the bar.

    With ``provenance`` nothing begins if a file that would be replaced was made in another way, and each result gets a
    JSON file that says where it comes from.

    One is made before anything runs, in a training too, so it is what calls :func:`keep_freed_memory`.

    While it runs no other process may write to the folders that the postprocessing writes to (its steps with an
    ``output_dir``): the files of two runs would be mixed.

    Args:
        device: where the network runs.
        val_data_loader: batches of cases; ``name`` in a batch is what the case is called. A batch with ``failure``, a
            sentence from a dataset that keeps going, is a case that could not be loaded.
        network: the network; one tensor in, one tensor out.
        inferer: how the network runs over an image; the plain call by default.
        keep_going: finish the other cases when one fails by an InputError or by its size. Not with metrics: they would
            describe other cases than the ones that were asked for. Nor with several cases in a batch: one that failed
            has nothing to be put beside the others.
        workers: cases at a time, each in a process of one thread (:class:`SideBySide`), for a cohort on a processor of
            several cores. Above 1 not with metrics, nor with several cases in a batch.
        defer_failures: leave the error at the end of the run to :meth:`raise_failures`, unless every case failed.
        progress: draw a bar with the time left (terminals only) and log each case. False inside a training.
        amp: run the network, and nothing else, under autocast, on any device; ``auto`` where :func:`has_bfloat16`.
        amp_kwargs: ``{"dtype": ...}``; the default of the device without it, bfloat16 on CPU, float16 on CUDA.
        provenance: keeps where the results come from, of a loader of a MONAI dataset; None keeps nothing, and
            overwrites what is there.
        kwargs: all else that SupervisedEvaluator takes.

    Raises:
        InputError: if ``keep_going`` meets metrics or batches of several; when run, if another process writes to its
            folders, if ``provenance`` refuses the run, or at the first case that fails, with ``keep_going`` at the end,
            naming all that failed.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable,
        network: nn.Module,
        *,
        inferer: Inferer | None = None,
        keep_going: bool = False,
        workers: int = 1,
        defer_failures: bool = False,
        progress: bool = True,
        amp: bool | Literal["auto"] = False,
        amp_kwargs: Mapping[str, Any] | None = None,
        provenance: Provenance | None = None,
        **kwargs: Any,
    ) -> None:
        batch_size = getattr(val_data_loader, "batch_size", None) or 1
        has_metrics = kwargs.get("key_val_metric") or kwargs.get("additional_metrics")
        for option, value, usual in (("keep_going", keep_going, False), ("workers", workers, 1)):
            if value != usual and has_metrics:
                raise InputError(f"{option} is {value} with metrics, expected {usual}: they need every case here")
            if value != usual and batch_size > 1:
                raise InputError(f"{option} is {value} with batch_size {batch_size}, expected batch_size 1")
        if workers > 1:
            refuse_side_by_side(workers, torch.device(device))
        keep_freed_memory()
        inferer = SimpleInferer() if inferer is None else inferer
        amp = has_bfloat16(torch.device(device)) if amp == "auto" else amp
        if amp:
            inferer = AutocastInferer(inferer, **(amp_kwargs or {}))
        super().__init__(device, val_data_loader, network, inferer=inferer, **kwargs)
        dtype = (amp_kwargs or {}).get("dtype") or torch.get_autocast_dtype(self.state.device.type)
        self._precision = str(dtype if amp else torch.float32).removeprefix("torch.")
        self.provenance = provenance
        self.keep_going = keep_going
        self.workers = workers
        self.defer_failures = defer_failures
        self.progress = progress
        self.failures: dict[str, str] = {}  # name of a case -> sentence
        self._steps = getattr(kwargs.get("postprocessing"), "transforms", ())
        self._output_dirs = {Path(step.output_dir) for step in self._steps if hasattr(step, "output_dir")}
        self._cases = 0  # of the last run
        self._failed = False
        self._names: list[str] = []
        self._case_start = 0.0
        self._bar: tqdm | None = None
        self.add_event_handler(Events.ITERATION_COMPLETED, self._case_completed)

    def run(self, global_epoch: int = 1) -> None:
        """Run over the cases that are not done; raises InputError if one failed, with ``defer_failures`` if all did."""
        self.failures = {}
        self._case_start = time.monotonic()
        # closed on errors too, so that the message stands below the bar
        options = {} if self.progress and idist.get_rank() == 0 else {"disable": True}
        with ExitStack() as stack:
            for folder in self._output_dirs if idist.get_rank() == 0 else ():
                stack.enter_context(Alone(folder))
            if self.provenance is not None:
                self.provenance.check(self.data_loader.dataset.data, self._steps, self.state.device, self._precision)
                stack.enter_context(self._without_done())
            self._bar = stack.enter_context(
                progress_bar(desc="cases", unit=" case", total=self.state.epoch_length, **options)
            )
            if self.state.epoch_length:
                stack.enter_context(self._side_by_side())
                super().run(global_epoch)
        if self.keep_going:
            self.failures = {name: text for part in gather(self.failures) for name, text in part.items()}
        self._cases = sum(gather(self.state.iteration))  # waits for the other processes
        if not self.defer_failures or len(self.failures) == self._cases:
            self.raise_failures()

    @contextmanager
    def _without_done(self) -> Iterator[None]:
        """Leave out the cases that have their results, as long as this lasts."""
        dataset = self.data_loader.dataset
        everybody = dataset.data
        dataset.data = self.provenance.left_to_do(everybody)
        self.state.epoch_length, self.state.iteration = len(self.data_loader), 0
        done = len(everybody) - len(dataset.data)
        if done:
            logger.info("%d of %d cases are done; --overwrite true makes them again", done, len(everybody))
        try:
            yield
        finally:
            dataset.data = everybody

    @contextmanager
    def _side_by_side(self) -> Iterator[None]:
        """With workers, take batches that other processes have done, as long as this lasts."""
        loader = self.data_loader
        if self.workers > 1:
            self.data_loader = SideBySide(self, self.workers)
        try:
            yield
        finally:
            self.data_loader = loader

    def run_case(self, index: int, loader: DataLoader) -> Outcome:
        """One case from its files to its results, with no handler called: in a process of :class:`SideBySide`."""
        start = self._case_start = time.monotonic()
        self.state.batch = loader.collate_fn([loader.dataset[index]])
        self._iteration(self, self.state.batch)
        return Outcome(self._names, self.failures.get(", ".join(self._names), ""), time.monotonic() - start)

    def raise_failures(self) -> None:
        """Raise InputError naming the cases of the last run that failed; nothing if none did.

        Under ``torchrun`` the first process raises, for all: a launcher ends the others as soon as one of them fails,
        so the first has to have written its report by then.
        """
        if self.failures and idist.get_rank() == 0:
            listed = "; ".join(name_in_sentence(*failure) for failure in self.failures.items())
            raise InputError(f"{len(self.failures)} of {self._cases} cases failed: {listed}")

    def _iteration(self, engine: Engine, batchdata: Any) -> Any:
        if isinstance(batchdata, Outcome):
            self._names, failure, seconds = batchdata
            self._case_start = time.monotonic() - seconds
            return self._without_result(engine, failure)
        self._names = case_names(batchdata) or [f"case {engine.state.iteration}"]
        self._failed = False
        try:
            if isinstance(batchdata, Mapping) and "failure" in batchdata:
                raise InputError(words(batchdata["failure"]))
            with ExitStack() as stack:
                for name in self._names if self.provenance is not None else ():
                    stack.enter_context(self.provenance.of_case(name, self._case_start))
                return super()._iteration(engine, batchdata)
        except Exception as error:
            known = find_input_error(error)
            failure = known or self._out_of_memory(error, batchdata)
            if failure is None or (known and not self.keep_going):
                raise
            if not self.keep_going:
                raise failure from error
            return self._without_result(engine, str(failure))

    def _without_result(self, engine: Engine, failure: str) -> list[Any]:
        """Leave handlers nothing to look at, of a case that failed, or was done elsewhere."""
        self._failed = bool(failure)
        if failure:
            self.failures[", ".join(self._names)] = failure
        engine.state.batch = []
        return []

    def _out_of_memory(self, error: Exception, batchdata: Any) -> InputError | None:
        """What to tell the user if lack of memory is the reason of an error; else None."""
        if not is_out_of_memory(error):
            return None
        size = "x".join(map(str, batchdata["image"].shape[1:])) if isinstance(batchdata, Mapping) else "unknown"
        windows = getattr(self.inferer, "sw_batch_size", None)
        setting = f"the inferer's sw_batch_size below {windows}" if windows else "a smaller image or crop"
        where = "a computer with more memory" if self.state.device.type == "cpu" else "--device cpu"
        return InputError(
            f"{', '.join(self._names)}: image of size {size} does not fit into the memory of {self.state.device}, "
            f"expected {setting}, or {where}"
        )

    def _case_completed(self, engine: Engine) -> None:
        seconds, self._case_start = time.monotonic() - self._case_start, time.monotonic()
        number, total = engine.state.iteration, engine.state.epoch_length
        if self._failed:
            name = ", ".join(self._names)
            logger.error("case %s of %s failed: %s", number, total, name_in_sentence(name, self.failures[name]))
        elif self.progress:
            logger.info("case %s of %s done in %.1f s: %s", number, total, seconds, ", ".join(self._names))
        self._bar.update()


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself. One that only imitates it may take fifty times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


class _WrappedInferer(Inferer):
    """An inferer around another one.

    Args:
        inferer: any inferer that calls the network on tensors.
        enabled: False runs the inferer as it is, so that a config can switch by a value.
    """

    def __init__(self, inferer: Inferer, enabled: bool | Literal["auto"]) -> None:
        super().__init__()
        self.inferer = inferer
        self.enabled = enabled

    @property
    def sw_batch_size(self) -> int | None:
        """Windows per call of the network, of inferers that have it."""
        return getattr(self.inferer, "sw_batch_size", None)


class AutocastInferer(_WrappedInferer):
    """Run the network under autocast, on the device of its input, and give its output back as float32.

    MONAI's ``amp`` knows CUDA only. The inferer around the network, blending of windows for instance, stays in float32.

    Args:
        inferer: any inferer that calls the network on tensors.
        dtype: the default of the device if None: bfloat16 on CPU, float16 on CUDA. In a training take bfloat16, which
            needs no gradient scaler.
        enabled: False runs the inferer as it is, so that a config can switch by a value; ``auto`` does so where the
            device of the input does not compute in bfloat16 by itself.
    """

    def __init__(
        self, inferer: Inferer, dtype: torch.dtype | None = None, enabled: bool | Literal["auto"] = True
    ) -> None:
        super().__init__(inferer, enabled)
        self.dtype = dtype

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        enabled = has_bfloat16(inputs.device) if self.enabled == "auto" else self.enabled
        forward = partial(self._forward, network) if enabled else network
        return self.inferer(inputs, forward, *args, **kwargs)

    def _forward(self, network: Any, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.autocast(inputs.device.type, dtype=self.dtype):
            outputs = network(inputs, *args, **kwargs)
        return outputs.float()


class MirroredInferer(_WrappedInferer):
    """Mean of what a network says of an image and of its mirror image, turned back.

    Left and right are the same to a network that was trained with flips, but for its noise, which the mean lowers.

    Args:
        inferer: any inferer whose output has the grid of its input.
        axis: spatial axis to flip; 0 is left to right in images in RAS.
        enabled: False runs the inferer as it is, at half the time.
    """

    def __init__(self, inferer: Inferer, axis: int = 0, enabled: bool = True) -> None:
        super().__init__(inferer, enabled)
        self.axis = axis

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        outputs = self.inferer(inputs, network, *args, **kwargs)
        if not self.enabled:
            return outputs
        dim = self.axis + 2  # behind batch and channel
        mirrored = self.inferer(inputs.flip(dim), network, *args, **kwargs)
        return (outputs + mirrored.flip(dim)) / 2


def prepare_reconstruction(
    batchdata: Mapping[str, torch.Tensor],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``prepare_batch`` of an auto-encoder: the image is the input and the target.

    Args:
        batchdata: batch with "image", (B, C, *spatial).
        device: where the image goes.
        non_blocking: as for ``torch.Tensor.to``, likewise ``kwargs``.
    """
    image, _ = default_prepare_batch({"image": batchdata["image"]}, device, non_blocking, **kwargs)
    return image, image


def case_names(batchdata: Any) -> list[str]:
    """What the cases of a batch are called: their ``name``, else the files of their images, else nothing."""
    if not isinstance(batchdata, Mapping):
        return []
    names = batchdata.get("name")
    if names is None:
        names = getattr(batchdata.get("image"), "meta", {}).get("filename_or_obj", [])
    return [names] if isinstance(names, str) else [str(name) for name in names]


def name_in_sentence(name: str, sentence: str) -> str:
    """A sentence that tells which case it is about."""
    return sentence if name in sentence else f"{name}: {sentence}"
