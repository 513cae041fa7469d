"""Wrong input is answered by one sentence, not by a traceback of ten screens."""

from __future__ import annotations

import logging
import re
import sys
from types import TracebackType

logger = logging.getLogger(__name__)

# what a printed traceback says of an InputError, whatever package the class lives in
_PRINTED = re.compile(r"^(?:\w+\.)*InputError: (.+)$", re.MULTILINE)
# these log a caught exception, often with all of its traceback, before they raise it again
_NOISY = ("ignite", "monai", "DataStats", "StatsHandler")


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
    seen: set[int] = set()
    waiting = [exception]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, InputError):
            return current
        if _printed_sentence(str(current)) is not None:
            return InputError(str(current))
        waiting += [current.__context__, current.__cause__]
    return None


def install_error_hook() -> None:
    """Let the process end with ``error: <sentence>`` on stderr and exit code 1 when an InputError is the reason.

    The full traceback is logged at level DEBUG. Any other exception is reported as before. The log lines in which MONAI
    and ignite repeat such an exception on its way up are left out, unless the root logger is at DEBUG. Calling it
    again changes nothing. Meant as the first expression of ``run`` in a config.
    """
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_news)
    # ignite's loggers may have handlers of their own
    for name, other in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(other, logging.Logger) and name.startswith(_NOISY):
            for handler in other.handlers:
                handler.addFilter(_is_news)
    if getattr(sys.excepthook, "input_error", None) is InputError:
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], exception: BaseException, trace: TracebackType | None) -> None:
        error = find_input_error(exception)
        if error is None:
            previous(kind, exception, trace)
            return
        logger.debug("the whole traceback:", exc_info=(kind, exception, trace))
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # the last line a user sees, with or without logging

    hook.input_error = InputError
    sys.excepthook = hook


def _printed_sentence(text: str) -> str | None:
    """The sentence of the InputError in a printed traceback, the innermost one; None for any other text."""
    if "Traceback (most recent call last)" not in text:
        return None
    match = _PRINTED.search(text)
    return match.group(1).strip() if match else None


def _is_news(record: logging.LogRecord) -> bool:
    """False for an error record in which a library repeats an InputError that is on its way up."""
    if record.levelno < logging.ERROR or logging.getLogger().isEnabledFor(logging.DEBUG):
        return True
    if not (record.exc_info or record.name.startswith(_NOISY)):
        return True
    return find_input_error(sys.exc_info()[1]) is None
