"""Types of options: what a value may be, in words, and the value that the text of a command line stands for.

Each type is an ``Annotated`` for pydantic whose last part is the sentence's end: "expected <a number above 0>".
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from ..errors import InputError
from ..scans import EXTENT_MM, VOXEL_MM


def converted(name: str, value: Any, kind: Any) -> Any:
    """The value of an option as its type has it: ``"no"`` becomes False, ``"1,1,2"`` a list of numbers.

    Args:
        name: of the option.
        value: what was given, a text of the command line or any value of JSON.
        kind: one of the types of this module, a ``Literal``, or a union of them with None.

    Raises:
        InputError: if it is no such value; the sentence names option, value and what is expected.
    """
    adapter = TypeAdapter(kind)
    if isinstance(value, str) and value.lower() in ("none", "null") and NoneType in get_args(kind):
        value = None
    try:
        return adapter.validate_python(value)
    except ValidationError as e:
        # what a check of ours found; pydantic's own words are those of a programmer
        found = next((f" ({error['ctx']['error']})" for error in e.errors() if "error" in error.get("ctx", {})), "")
        raise InputError(f"{name} is {_shown(value)}{found}, expected {expectation(kind)}") from e


def expectation(kind: Any) -> str:
    """What a type takes, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("null" if part is NoneType else expectation(part) for part in parts)
    if origin is Literal:
        return _any_of([str(part) for part in parts])
    if origin is Annotated:
        return next((part for part in reversed(parts[1:]) if isinstance(part, str)), expectation(parts[0]))
    return getattr(kind, "__name__", str(kind))


def _shown(value: Any) -> str:
    hint = "; a comma makes a list" if isinstance(value, tuple) else ""
    return f"{list(value) if isinstance(value, tuple) else value!r}{hint}"


def _any_of(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a truth value")
    return value


def _text(value: Any) -> Any:
    """A name may consist of digits, which the command line of MONAI takes for a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _path(value: Any) -> Any:
    value = _text(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("empty")
        return os.path.expanduser(value)  # noqa: PTH111  # Path's one fails for a user who is not there
    return value


def _listed(value: Any) -> Any:
    """A list in any of its forms: ``[a, b]`` or ``a,b``, quoted or not, or one entry alone."""
    if isinstance(value, str):
        try:
            literal = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            literal = [part.strip(" '\"") for part in value.strip("[]() ").split(",")]
        value = literal if isinstance(literal, (list, tuple)) else [value]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _three(value: Any) -> list:
    values = _listed(value)
    return values * 3 if len(values) == 1 else values


def _different(values: list) -> list:
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ValueError(f"{twice[0]} twice")
    return values


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("even")
    return value


def _shard(text: str) -> str:
    number, _, shards = text.partition("/")
    if not (number.isascii() and shards.isascii() and number.isdigit() and shards.isdigit()):
        raise ValueError("no two numbers")
    if not 1 <= int(number) <= int(shards):
        raise ValueError("no such share")
    return text


def _rising(values: list) -> list:
    if not all(low < high for low, high in pairwise(values)):
        raise ValueError("not rising")
    return values


def _not_falling(values: list) -> list:
    if sorted(values) != values:
        raise ValueError("falling")
    return values


def _file_name(text: str) -> str:
    if not text.strip(" .") or not set(text).isdisjoint("/\\\0"):
        raise ValueError("no name" if not text.strip(" .") else "a folder in it")
    return text


def _usable(device: Any) -> Any:
    """Put a number there and get it back: no other question is answered alike by all kinds of devices."""
    try:
        torch.zeros(1, device=torch.device(device)).cpu()
    except Exception as e:  # torch raises what it likes, an AssertionError without CUDA
        raise ValueError(f"not on this machine: {str(e).splitlines()[0].split(', ')[0]}") from e
    return device


def _status(path: str) -> os.stat_result:
    try:
        return Path(path).stat()
    except FileNotFoundError as e:
        raise ValueError("no such file or folder") from e
    except OSError as e:
        raise ValueError(os.strerror(e.errno).lower()) from e


def _existing(path: str) -> str:
    _status(path)
    return path


def _file(path: str) -> str:
    _status(path)
    if not Path(path).is_file():
        raise ValueError("a folder")
    return path


def _existing_folder(path: str) -> str:
    _status(path)
    if not Path(path).is_dir():
        raise ValueError("a file")
    return path


def _folder(path: str) -> str:
    """A folder that is there, or whose first existing parent one may write to."""
    for place in _with_parents(Path(path)):
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            raise ValueError(os.strerror(e.errno).lower()) from e
        if not place.is_dir():
            raise ValueError("a file" if place == Path(path) else f"{place} is no folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ValueError("not writable" if place == Path(path) else f"{place} is not writable")
        break
    return path


def _with_parents(path: Path) -> Iterator[Path]:
    path = path.absolute()
    return iter((path, *path.parents))


def _no_folder(path: str) -> str:
    if Path(path).is_dir():
        raise ValueError("a folder")
    _folder(str(Path(path).absolute().parent))
    return path


def amount(words: str, **limits: float) -> Any:
    """A finite number, within the limits of pydantic's ``Field``."""
    return Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False, **limits), words]


def count(words: str, *checks: Callable, **limits: int) -> Any:
    """A whole number, within limits, that passes further checks."""
    return Annotated[(int, BeforeValidator(_number), Field(**limits), *map(AfterValidator, checks), words)]


def list_of(kind: Any, words: str, *checks: Callable, before: Callable = _listed, **limits: int) -> Any:
    """A list, in any form that ``before`` understands, of limited length, that passes further checks."""
    return Annotated[(list[kind], BeforeValidator(before), Field(**limits), *map(AfterValidator, checks), words)]


Flag = Annotated[bool, "true or false"]
FlagOrAuto = Annotated[bool | Literal["auto"], "true, false or auto"]
Number = amount("a number")
Positive = amount("a number above 0", gt=0)
NotNegative = amount("a number of 0 or more", ge=0)
Rate = amount("a number above 0 and at most 10", gt=0, le=10)
Decay = amount("a number from 0 to 10", ge=0, le=10)
Share = amount("a share from 0 to 1", ge=0, le=1)
ShareBelowOne = amount("a share of at least 0 and below 1", ge=0, lt=1)
ShareAboveZero = amount("a share above 0 and at most 1", gt=0, le=1)
Millimeters = amount("a length from 0 to 1000 mm", ge=0, le=EXTENT_MM)
CubicMillimeters = amount("a volume of 0 mm3 or more", ge=0)
_Edge = amount("an edge from 0.05 to 20 mm", ge=VOXEL_MM[0], le=VOXEL_MM[1])
_Zoom = amount("a size from 0.1 to 10", ge=0.1, le=10)
Minutes = amount("minutes, above 0", gt=0)

Whole = count("a whole number of 0 or more", ge=0)
Count = count("a whole number of 1 or more", ge=1)
OddCount = count("an odd number of 1 or more", _odd, ge=1)
# voxels of an edge, processes, patches of a volume: more bring a machine down
SmallCount = count("a whole number from 1 to 1024", ge=1, le=1024)
SmallWhole = count("a whole number from 0 to 1024", ge=0, le=1024)
LargeCount = count("a whole number from 1 to 1000000", ge=1, le=10**6)
_Level = count("a whole number from 0 to 999", ge=0, le=999)  # steps of a diffusion
_LevelBound = count("a whole number from 0 to 1000", ge=0, le=1000)
Seed = count("a whole number from 0 to 4294967295", ge=0, le=2**32 - 1)

Text = Annotated[str, BeforeValidator(_text), Field(min_length=1), "a text"]
FileName = Annotated[str, BeforeValidator(_text), AfterValidator(_file_name), "a file name without a folder"]
TextOrEmpty = Annotated[str, BeforeValidator(_text), "a text, or none"]
Shard = Annotated[str, BeforeValidator(_text), AfterValidator(_shard), "a share of the cases, such as 2/10"]
Device = Annotated[Any, AfterValidator(_usable), "a device that torch can use here, such as cpu, cuda or cuda:0"]
File = Annotated[str, BeforeValidator(_path), AfterValidator(_file), "a file that is there"]
Existing = Annotated[str, BeforeValidator(_path), AfterValidator(_existing), "a file or folder that is there"]
NewFile = Annotated[str, BeforeValidator(_path), AfterValidator(_no_folder), "a file to write"]
ExistingFolder = Annotated[str, BeforeValidator(_path), AfterValidator(_existing_folder), "a folder that is there"]
Folder = Annotated[str, BeforeValidator(_path), AfterValidator(_folder), "a folder to write to"]

Names = list_of(Text, "a list of different names, such as T1w,FLAIR", _different, min_length=1)
NamesOrNone = list_of(Text, "a list of different names, or an empty one", _different)
Files = list_of(File, "a file that is there, or a list of them", min_length=1)
Shares = list_of(Share, "a list of shares from 0 to 1", min_length=1)
Zooms = list_of(_Zoom, "a list of sizes from 0.1 to 10", min_length=1)
FilesOrNone = list_of(File, "files that are there, or an empty list")
Spacing = list_of(_Edge, "three edges of a voxel, each from 0.05 to 20 mm", before=_three, min_length=3, max_length=3)
Grid = list_of(SmallCount, "whole numbers from 1 to 1024, one per axis", min_length=1, max_length=3)
Multiple = SmallCount | Grid
Levels = list_of(_Level, "a list of whole numbers from 0 to 999", min_length=1)
Seeds = list_of(Seed, "a list of different whole numbers of 0 or more", _different, min_length=1)
Sizes = list_of(Whole, "three whole numbers of 0 or more: training, validation, test", min_length=3, max_length=3)
Counts = list_of(Count, "a list of whole numbers of 1 or more", min_length=1)
ZoomPair = list_of(_Zoom, "two sizes from 0.1 to 10, the lower one first", _not_falling, min_length=2, max_length=2)
PositivePair = list_of(Positive, "two numbers above 0, the lower one first", _not_falling, min_length=2, max_length=2)
LevelPair = list_of(
    _LevelBound, "two whole numbers from 0 to 1000, the lower one first", _rising, min_length=2, max_length=2
)
RisingPair = list_of(Number, "two numbers, the lower one first", _rising, min_length=2, max_length=2)
Means = Annotated[dict[str, list[Number]], "sequences with the means of their classes, or {}"]
Matrix = list_of(list[Number], "a list of rows of numbers", min_length=1)
