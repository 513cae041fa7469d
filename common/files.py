"""Files: read as JSON, written whole or not at all, hashed, made once, used by one run at a time, and named."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from .errors import InputError, reason_of

try:
    import fcntl
except ImportError:  # Windows: no locks, and what killed runs leave stays
    fcntl = None

logger = logging.getLogger(__name__)

_PART = ".part-"  # begins the name of every file that is not whole yet
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of network file systems without them
_CHUNK = 2**20
_NOTHING = object()
_MOST_DIFFERENCES = 4  # that a sentence tells


# ---- read


def read_json(path: str | Path, expected: str = "a JSON file", kind: type = object) -> Any:
    """What a JSON file holds, in UTF-8 or UTF-16, with or without a byte order mark.

    Args:
        path: the file.
        expected: what it should be, for the message.
        kind: ``dict`` or ``list``, where nothing else will do.

    Raises:
        InputError: if it cannot be read, is no JSON, has a key twice or is of another kind.
    """
    try:
        content = json.loads(Path(path).read_bytes(), object_pairs_hook=_without_twins)
    except OSError as e:
        raise InputError(f"{path} cannot be read ({reason_of(e)}), expected {expected}") from e
    except RecursionError as e:
        raise InputError(f"{path} is nested too deep, expected {expected}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is no text in UTF-8, expected {expected}") from e
    except ValueError as e:
        raise InputError(f"{path} is no valid JSON ({e}), expected {expected}") from e
    if not isinstance(content, kind):
        raise InputError(f"{path} holds a {type(content).__name__}, expected {expected}")
    return content


def read_text(path: str | Path, expected: str = "text in UTF-8") -> str:
    """What a text file holds, in UTF-8, without its byte order mark.

    Args:
        path: the file.
        expected: what it should be, for the message.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as e:
        raise InputError(f"{path} cannot be read ({reason_of(e)}), expected {expected}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is no text in UTF-8, expected {expected}") from e


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands in one object twice")
    return content


def sha256_of(path: str | Path) -> str:
    """SHA-256 of what is in a file, in hexadecimal digits.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        facts = Path(path).stat()
        return _sha256(str(path), facts.st_size, facts.st_mtime_ns)
    except OSError as e:
        raise InputError(f"{path} cannot be read ({reason_of(e)}), expected a file") from e


@functools.lru_cache(maxsize=10_000)
def _sha256(path: str, _size: int, _changed: int) -> str:
    """The hash of a file that is asked for often, as long as it does not change."""
    state = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


# ---- write


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file under a temporary name beside ``path``, then give it its name.

    The content is on the disk before the file has its name. The temporary name is new and no link, and what runs that
    were killed have left of such files in the folder is removed.

    Args:
        path: file to make or to replace; its folder is made if need be.
        write: called with the temporary path, which ends like ``path``.

    Raises:
        InputError: if the folder cannot be made or written, or is full; ``path`` is then as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        part, descriptor = _new_file(path)
        try:
            write(part)
            _flush(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
            os.close(descriptor)
        _flush(path.parent)
    except OSError as e:
        raise InputError(f"{path} cannot be written ({reason_of(e)}), expected a folder with space and access") from e


def write_text(path: str | Path, text: str) -> None:
    """Write text in UTF-8 by :func:`write_atomically`; lines end as they do in the text."""
    write_atomically(path, lambda part: part.write_bytes(text.encode("utf-8")))


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write what JSON can hold by :func:`write_atomically`.

    Raises:
        ValueError: if a number is nan or infinite, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def _new_file(path: Path) -> tuple[Path, int]:
    """A file of a new name beside ``path``, and its descriptor, whose lock says that somebody is at work on it."""
    ending = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    while True:
        part = path.with_name(f"{_PART}{secrets.token_hex(8)}{ending}")
        with suppress(FileExistsError):
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
            _flock(descriptor, wait=True)
            if os.fstat(descriptor).st_nlink:  # else another run took it for a leftover before it was locked
                return part, descriptor
            os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove files of runs that have died while they wrote; their locks have gone with them."""
    if fcntl is None:
        return
    with os.scandir(folder) as entries:
        parts = [folder / entry.name for entry in entries if entry.name.startswith(_PART)]
    for part in parts:
        with suppress(OSError):  # another run was quicker, or it is somebody else's
            descriptor = os.open(part, os.O_RDWR | os.O_NONBLOCK | _NO_LINK)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode) and _flock(descriptor):
                    part.unlink()
            finally:
                os.close(descriptor)


def _flock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file, whoever opens it by its name meanwhile; whether that was possible."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in (errno.EINVAL, *_NO_LOCKS):  # some network file systems flush no folders
            raise
    finally:
        os.close(descriptor)


# ---- one at a time


class Alone:
    """The right to write into a folder, or to one file, while no other process has it.

    It is held by a lock file, ``.lock`` in the folder or ``.<name>.lock`` beside the file, which tells who has it and
    since when. It is given back by ``close``, at the end of a ``with``, and when the process ends in whatever way: a
    dead process holds nothing. A process may take what it has once more. Folders that were made for the lock alone go
    with it.

    Args:
        path: folder, made if need be; or a file, where ``is_file``.
        is_file: lock one file of a folder, or a folder that is not there yet.

    Raises:
        InputError: if another process has it, or the lock file cannot be written.
    """

    _held: ClassVar[dict[Path, tuple[int, int, int]]] = {}  # lock file -> descriptor, process, how many times

    def __init__(self, path: str | Path, is_file: bool = False) -> None:
        path = Path(path)
        file = folder = path.parent if is_file else path
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder.resolve() / (f".{path.name}.lock" if is_file else ".lock")
            self._take(file, path)
        except OSError as e:
            raise InputError(f"{file} cannot be written ({reason_of(e)}), expected a writable folder") from e
        self.close = weakref.finalize(self, self._give_back, file, [parent.resolve() for parent in made])

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @classmethod
    def _take(cls, file: Path, path: Path) -> None:
        descriptor, process, times = cls._held.get(file, (-1, os.getpid(), 0))
        if times and _is_named(file, descriptor):
            cls._held[file] = descriptor, process, times + 1
            return
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
            if not _lock(descriptor, file):
                holder = _record(descriptor)
                os.close(descriptor)
                raise InputError(
                    f"{path} is in use by {holder}, expected one run at a time: wait for its end, or give another place"
                )
            if _is_named(file, descriptor):
                break
            os.close(descriptor)  # its holder has just removed it
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
        cls._held[file] = descriptor, os.getpid(), 1

    @classmethod
    def _give_back(cls, file: Path, made: Sequence[Path]) -> None:
        descriptor, process, times = cls._held.get(file, (-1, 0, 0))
        if process != os.getpid():  # a copy of the process that has it
            return
        if times > 1:
            cls._held[file] = descriptor, process, times - 1
            return
        del cls._held[file]
        with suppress(OSError):
            if _is_named(file, descriptor):
                file.unlink()
            for folder in made:  # the innermost first, up to one that holds something
                folder.rmdir()
        os.close(descriptor)


def _lock(descriptor: int, file: Path) -> bool:
    """Lock a file for this process, not for those that it starts; whether nobody else has it."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in _NO_LOCKS:
            logger.warning("%s knows no locks: nothing keeps two runs from writing there at once", file.parent)
            return True
        if e.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


def _record(descriptor: int) -> str:
    """Who holds a lock, as the lock file says; it says so a moment after it is locked."""
    for _ in range(20):
        os.lseek(descriptor, 0, os.SEEK_SET)
        if text := os.read(descriptor, 200).decode(errors="replace").strip():
            return text
        time.sleep(0.05)
    return "another process"


def _is_named(file: Path, descriptor: int) -> bool:
    """Whether an open file still has its name."""
    try:
        named, opened = file.lstat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder beside ``folder`` to fill, which takes its name at the end, or is removed if something fails.

    Args:
        folder: that is not there yet, or empty.

    Raises:
        InputError: if another process is making it, if it holds something, or cannot be written.
    """
    folder = Path(folder)
    with Alone(folder, is_file=True):
        refuse_filled(folder)
        beginning = f".{folder.name}{_PART}"
        for left in folder.parent.iterdir():  # of runs that were killed: who makes the folder now is alone
            if left.name.startswith(beginning) and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        partial = folder.with_name(f"{beginning}{secrets.token_hex(8)}")
        try:
            partial.mkdir()
            yield partial
            for file in partial.rglob("*"):
                _flush(file)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
            _flush(folder.parent)
        except OSError as e:
            raise InputError(f"{folder} cannot be written ({reason_of(e)}), expected one with space and access") from e
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def refuse_filled(folder: Path) -> None:
    """Raise InputError if a folder holds something, or is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is {'not empty' if folder.is_dir() else 'a file'}, expected a new folder")


# ---- once


def fingerprint_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are kept in JSON; a Path of a file becomes the hash of its content, wherever it lies."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, Path):
            return f"SHA-256 {sha256_of(value)[:16]}" if value.is_file() else str(value)
        return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)

    return plain(settings)


def difference(now: Mapping[str, Any], before: Mapping[str, Any], owner: str = "the one before") -> str:
    """How two fingerprints differ: "seed is 2, the state has 1"; empty if they do not."""
    names = [name for name in {**before, **now} if now.get(name, _NOTHING) != before.get(name, _NOTHING)]
    found = [f"{name} is {_short(now, name)}, {owner} has {_short(before, name)}" for name in names]
    more = len(found) - _MOST_DIFFERENCES
    return "; ".join(found[:_MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _short(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "nothing"
    text = str(settings[name])
    return text if len(text) <= 60 else text[:57] + "..."


def done_once(
    file: str | Path,
    made_from: Mapping[str, Any],
    work: Callable[[], Any],
    begin: Callable[[], Any] = lambda: None,
) -> Any:
    """What ``work`` returns, kept in a JSON file with what it was made from; not made again while that is the same.

    The file is written before the work begins too: what was begun from other settings is no more gone on with than
    what was done from them.

    Args:
        file: of the result.
        made_from: all that the result depends on, see :func:`fingerprint_of`.
        work: gives what JSON can hold; numbers of NumPy, nan and infinite ones may be in it.
        begin: called before the work if the file is of other settings, to remove what was made from them.
    """
    file, wanted = Path(file), fingerprint_of(made_from)
    known = _kept(file)
    if known.get("made_from") != wanted:
        if "made_from" in known:
            logger.warning("%s is made again: %s", file.parent, difference(wanted, known["made_from"]))
        if file.exists():
            begin()
        known = {"made_from": wanted}
        write_text(file, json.dumps(known, indent=2) + "\n")
    if "result" not in known:
        text = json.dumps(known | {"result": work()}, indent=2, default=lambda value: value.item())
        write_text(file, text + "\n")
        known = json.loads(text)
    return known["result"]


def _kept(file: Path) -> dict[str, Any]:
    """What :func:`done_once` has kept; nothing if there is no such file, or another one."""
    if not file.is_file():
        return {}
    with suppress(InputError):
        content = read_json(file)
        if isinstance(content, dict) and isinstance(content.get("made_from"), dict):
            return content
    return {}


# ---- tell


def without_folders(sentence: str) -> str:
    """A sentence with the names of files in it but not their folders, which tell of people and machines."""
    # a folder may have spaces in its name: up to the name of a known kind of file all of it goes, elsewhere to a space
    known = r"\.(?:nii|json|csv|tsv|pt|html|png|tfm)\b"
    folders = rf"(?:(?:(?!{known}).)*[/\\](?=[^/\\]*{known})|\S*[/\\])"
    return re.sub(rf"(?<![^\s'\"(=,\[])(?:[A-Za-z]:)?[/\\](?=\S){folders}", "", sentence)
