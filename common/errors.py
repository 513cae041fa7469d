"""Wrong input is answered by one sentence, not by a traceback of ten screens."""

from __future__ import annotations

import logging
import re
import signal
import sys
from _thread import interrupt_main
from collections.abc import Iterator
from threading import Timer, current_thread, main_thread
from types import FrameType, TracebackType

logger = logging.getLogger(__name__)

# what a printed traceback says of an InputError, whatever package the class lives in
_PRINTED = re.compile(r"^(?:\w+\.)*InputError: (.+)$", re.MULTILINE)
# their engines and transforms log an exception that they catch and raise again
_REPEATING = ("ignite.", "monai.", "DataStats")
_interrupts: list[int] = []  # signals of Ctrl-C that came


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one sentence: the file, the value found, the value expected.

    A worker process of a DataLoader hands an exception over as the text of its traceback. Of that text the sentence is
    kept as the message, and the whole as ``worker_traceback``.
    """

    worker_traceback: str | None = None

    def __init__(self, message: str) -> None:
        sentence = _printed_sentence(message)
        if sentence is not None:
            self.worker_traceback = message
        super().__init__((sentence or message).replace("\n", " "))


def find_input_error(exception: BaseException | None) -> InputError | None:
    """The InputError that an exception comes from, or None.

    Looks through causes and contexts, and into the text of an exception that was raised in another process, so that it
    finds the reason behind MONAI's ``applying transform ...`` and torch's ``Caught ... in DataLoader worker process``.
    """
    for current in _chain(exception):
        if isinstance(current, InputError):
            return current
        if _printed_sentence(str(current)) is not None:
            return InputError(str(current))
    return None


def _is_interrupt(exception: BaseException | None) -> bool:
    """Whether it is Ctrl-C, an exception raised while one was on its way, or the end of workers that it stopped too."""
    return any(
        isinstance(current, KeyboardInterrupt) or (_interrupts and "DataLoader worker" in str(current))
        for current in _chain(exception)
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise it, but not in a hook of a fork, which passes over exceptions: right after it then."""
    _interrupts.append(number)
    caller = frame.f_back if frame else None
    if caller is not None and caller.f_code.co_filename.endswith("popen_fork.py"):
        Timer(0.1, interrupt_main).start()
    else:
        raise KeyboardInterrupt


def _chain(exception: BaseException | None) -> Iterator[BaseException]:
    """An exception, its causes and contexts."""
    seen: set[int] = set()
    waiting = [exception]
    while waiting:
        current = waiting.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            yield current
            waiting += [current.__context__, current.__cause__]


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, is lack of memory: of a GPU, NumPy, or PyTorch on the CPU."""
    # by name, as who only raises an InputError need not wait for PyTorch; of the CPU's it has no class
    return any(
        isinstance(current, MemoryError)
        or type(current).__name__ == "OutOfMemoryError"
        or (isinstance(current, RuntimeError) and "DefaultCPUAllocator" in str(current))
        for current in _chain(error)
    )


def install_error_hook() -> None:
    """Let the process end with ``error: <sentence>`` on stderr and exit code 1 when an InputError is the reason.

    Ctrl-C ends it with a sentence too, and exit code 130. The full traceback is logged at level DEBUG. Any other
    exception is reported as before. Log records in which MONAI and ignite repeat either on its way up, some with all of
    its traceback, are left out unless the root logger is at DEBUG. Calling it again changes nothing.
    """
    if getattr(sys.excepthook, "input_error", None) is InputError:
        return
    _filter_loggers()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and current_thread() is main_thread():
        signal.signal(signal.SIGINT, _interrupt)
    previous = sys.excepthook

    def hook(kind: type[BaseException], exception: BaseException, trace: TracebackType | None) -> None:
        stopped, error = _is_interrupt(exception), find_input_error(exception)
        if not stopped and error is None:
            previous(kind, exception, trace)
            return
        logger.debug("the whole traceback:", exc_info=(kind, exception, trace))
        # not logged: a user must see it at any log level
        print("stopped by Ctrl-C" if stopped else f"error: {error}", file=sys.stderr)  # noqa: T201
        if stopped:
            raise SystemExit(130)

    hook.input_error = InputError
    sys.excepthook = hook


def _filter_loggers() -> None:
    """Put :func:`_is_news` on every logger, also on those made later: engines and handlers make theirs when built."""

    class FilteredLogger(logging.getLoggerClass()):
        def __init__(self, name: str, level: int = logging.NOTSET) -> None:
            super().__init__(name, level)
            self.addFilter(_is_news)

    logging.setLoggerClass(FilteredLogger)
    for item in (logging.getLogger(), *logging.Logger.manager.loggerDict.values()):
        if isinstance(item, logging.Logger):
            item.addFilter(_is_news)


def _printed_sentence(text: str) -> str | None:
    """The sentence of the InputError in a printed traceback, the innermost one; None for any other text."""
    if "Traceback (most recent call last)" not in text:
        return None
    match = _PRINTED.search(text)
    return match.group(1).strip() if match else None


def _is_news(record: logging.LogRecord) -> bool:
    """False for an error record in which a library repeats an InputError or Ctrl-C that is on its way up."""
    repeats = record.levelno >= logging.ERROR and (record.exc_info or record.name.startswith(_REPEATING))
    if not repeats or logging.getLogger().isEnabledFor(logging.DEBUG):
        return True
    exception = sys.exc_info()[1]
    return find_input_error(exception) is None and not _is_interrupt(exception)


def reason_of(error: Exception) -> str:
    """First line of an error, without the path that the sentence around it names already."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.splitlines()[0] if text else type(error).__name__
