"""What a command line says of a comparison: entries of configs to replace, and the words for the page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Annotated, Any

from catalog import BUNDLES
from common.errors import InputError
from common.files import read_json
from common.options import converted


def command_of(arguments: Sequence[str]) -> str:
    """The command line for the page."""
    return shlex.join(["python", "scripts/compare.py", *map(shown, arguments)])


def shown(argument: str) -> str:
    """An argument of the command line for the page: files by their names, without the folders of this computer."""
    folders = r"(^|[=,\[('\"])(?:[A-Za-z]:)?[/\\](?:[^,'\"\])]*[/\\])?"
    return re.sub(folders, r"\1", argument.rstrip("/\\"))


def read_options(path: str | None) -> dict[str, dict[str, Any]]:
    """Entries of configs to replace, from a JSON file.

    Raises:
        InputError: if it cannot be read, or names a config that no bundle has.
    """
    if path is None:
        return {}
    options = read_json(path, "options, by <bundle>/<config>", dict)
    for name in converted(path, options, Annotated[dict[str, dict[str, Any]], "{<bundle>/<config>: {entry: value}}"]):
        bundle, _, config = name.partition("/")
        if not (BUNDLES / bundle / "configs" / f"{config}.json").is_file():
            raise InputError(f"{path} has {name!r}, expected <bundle>/<config> of a config in bundles/")
    return options
