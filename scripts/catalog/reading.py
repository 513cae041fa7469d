"""Bundles are found by looking into ``bundles/``; each is described by its own ``description.py``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

from common.errors import InputError

from .description import Description

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def bundle_names(folder: Path = BUNDLES) -> list[str]:
    """Names of the bundles in a folder: of the folders in it that have a ``configs/metadata.json``."""
    return sorted(path.parents[1].name for path in folder.glob("*/configs/metadata.json"))


def refuse_unknown(names: Iterable[str], folder: Path = BUNDLES, option: str = "bundle") -> None:
    """Stop at a name that no bundle has.

    Raises:
        InputError: naming the option, the name, and those that there are.
    """
    known = bundle_names(folder)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"{option} names {unknown[0]!r}, expected some of {', '.join(known)}")


def choose(bundle: str, names: Sequence[str] | None = None) -> list[str]:
    """One bundle, or with ``all`` all of those that there are.

    Args:
        bundle: what was asked for.
        names: those to choose from; all bundles by default.

    Raises:
        InputError: naming those that there are.
    """
    names = list(bundle_names() if names is None else names)
    if bundle not in (*names, "all"):
        raise InputError(f"bundle is {bundle!r}, expected {', '.join(names)} or all")
    return names if bundle == "all" else [bundle]


def folder_of(bundle: str | Path) -> Path:
    """Folder of a bundle that is given by its name, or by the folder itself."""
    return BUNDLES / bundle if (BUNDLES / bundle).is_dir() else Path(bundle)


def descriptions(folder: Path = BUNDLES) -> dict[str, Description]:
    """Name -> description of every bundle in a folder."""
    return {name: describe(name, folder) for name in bundle_names(folder)}


def describe(name: str, folder: Path = BUNDLES) -> Description:
    """What a bundle says of itself: ``DESCRIPTION`` of its ``description.py``, the same object each time.

    Raises:
        InputError: if the bundle has no such file, or the file has no description.
    """
    path = folder / name / "description.py"
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected the description of the bundle {name}")
    return _read(folder.resolve(), name)


def load(name: str, part: str, folder: Path = BUNDLES) -> ModuleType:
    """A file of a bundle that is not packaged, as a module: its ``description``, ``benchmark`` or ``release``."""
    spec = importlib.util.spec_from_file_location(f"{part}_of_{name}", folder / name / f"{part}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _read(folder: Path, name: str) -> Description:
    found = getattr(load(name, "description", folder), "DESCRIPTION", None)
    if not isinstance(found, Description):
        path = folder / name / "description.py"
        raise InputError(f"{path} has no DESCRIPTION, expected a catalog.Description of that name")
    methods = tuple(replace(method, bundle=name) for method in found.methods)
    rows = tuple(replace(row, bundle=row.bundle or name) for row in found.rows)
    return replace(found, name=name, methods=methods, rows=rows)
