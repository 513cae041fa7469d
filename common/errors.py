"""Wrong input is answered by one sentence, not by a traceback of ten screens."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import sys
from collections.abc import Sequence
from types import TracebackType

logger = logging.getLogger(__name__)

# what a printed traceback says of an InputError, whatever package the class lives in
_PRINTED = re.compile(r"^(?:\w+\.)*InputError: (.+)$", re.MULTILINE)
# their engines and transforms log an exception that they catch and raise again
_REPEATING = ("ignite.", "monai.", "DataStats")


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


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, is lack of memory: of a GPU, NumPy, or PyTorch on the CPU."""
    while error is not None:
        # by name, as who only raises an InputError need not wait for PyTorch; of the CPU's it has no class
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def install_error_hook() -> None:
    """Let the process end with ``error: <sentence>`` on stderr and exit code 1 when an InputError is the reason.

    The full traceback is logged at level DEBUG. Any other exception is reported as before. Log records in which MONAI
    and ignite repeat an InputError on its way up, some with all of its traceback, are left out unless the root logger
    is at DEBUG. Calling it again changes nothing. Meant as the first expression of ``run`` in a config: options of the
    command line that no config knows, which MONAI takes in silence, are warned of.
    """
    if sys.argv[0].endswith("bundle/__main__.py") and sys.argv[1:2] == ["run"]:
        warn_of_unknown_options(sys.argv[2:])
    if getattr(sys.excepthook, "input_error", None) is InputError:
        return
    _filter_loggers()
    previous = sys.excepthook

    def hook(kind: type[BaseException], exception: BaseException, trace: TracebackType | None) -> None:
        error = find_input_error(exception)
        if error is None:
            previous(kind, exception, trace)
            return
        logger.debug("the whole traceback:", exc_info=(kind, exception, trace))
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # not logged: a user must see it at any log level

    hook.input_error = InputError
    sys.excepthook = hook


def warn_of_unknown_options(arguments: Sequence[str]) -> None:
    """Log what is neither an entry on top of the config files nor an option of ``monai.bundle run`` itself.

    Args:
        arguments: those of ``python -m monai.bundle run``, ``--config_file`` among them.
    """
    from fire.parser import DefaultParseValue  # not needed by who only raises an InputError
    from monai.bundle import ConfigParser, run

    given: dict[str, str] = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            given[name.replace("-", "_")] = value or following
    files = given.get("config_file", "")
    if not files:
        return
    known = {*ConfigParser.load_config_files(DefaultParseValue(files))}
    known |= {*inspect.signature(run).parameters} - {"override"}
    for name in given:
        entry = re.split("#|::", name.lstrip("+"))[0]
        if entry not in known and not entry.startswith("_"):
            near = difflib.get_close_matches(entry, known, 1)
            hint = f", did you mean {near[0]}?" if near else ""
            logger.warning("--%s is no entry of %s and changes nothing by itself%s", name, files, hint)


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
    """False for an error record in which a library repeats an InputError that is on its way up."""
    repeats = record.levelno >= logging.ERROR and (record.exc_info or record.name.startswith(_REPEATING))
    if not repeats or logging.getLogger().isEnabledFor(logging.DEBUG):
        return True
    return find_input_error(sys.exc_info()[1]) is None
