"""What was warned of on the way of a scan, for a server that tells it to its client."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from .files import without_folders


class Heard(logging.Handler):
    """The last warnings of a package, each with the thread that said it: the server has one for each request."""

    def __init__(self, most: int = 200) -> None:
        super().__init__(logging.WARNING)
        self.kept: deque[tuple[int, str]] = deque(maxlen=most)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.kept.append((threading.get_ident(), record.getMessage()))

    def take(self, files: Iterable[str]) -> list[str]:
        """What this thread said of files, without their folders, each once; all that it said is forgotten."""
        with self.lock:
            said = [text for thread, text in self.kept if thread == threading.get_ident()]
            others = [one for one in self.kept if one[0] != threading.get_ident()]
            self.kept.clear()
            self.kept.extend(others)
        names = {Path(file).name for file in files}
        return [*dict.fromkeys(without_folders(text) for text in said if any(name in text for name in names))]


HEARD = Heard()


def listen() -> None:
    """Keep what is warned of from now on, in the package that carries this file: the bundle's own are among them."""
    logging.getLogger(__name__.partition(".")[0]).addHandler(HEARD)  # once, however often it is asked
