"""The methods that can be compared: those of all bundles, as their descriptions list them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from catalog import BUNDLES, Method, descriptions
from common.errors import InputError


def find_methods(bundles: Path = BUNDLES) -> dict[str, Method]:
    """Name -> method, of all bundles in a folder.

    Raises:
        InputError: if two methods have one name.
    """
    found: dict[str, Method] = {}
    for description in descriptions(bundles).values():
        for method in description.methods:
            if method.name in found:
                both = f"{found[method.name].bundle} and {method.bundle}"
                raise InputError(f"{both} have a method {method.name}, expected another name in one of them")
            found[method.name] = method
    return found


def choose(names: Sequence[str] | None, target: str, shipped: bool, bundles: Path = BUNDLES) -> list[Method]:
    """Methods for a target, by name, or all of them.

    Raises:
        InputError: if there is no such method, or the bundle ships no weights for it and none are to be trained.
    """
    methods = find_methods(bundles)
    fitting = {name: method for name, method in methods.items() if method.target == target}
    if names is None:
        return [method for method in fitting.values() if method.is_shipped or not shipped]
    unknown = [name for name in names if name not in methods]
    if unknown:
        raise InputError(f"methods has {unknown[0]}, expected some of {', '.join(methods)}")
    chosen = [fitting[name] for name in names if name in fitting]
    without = [method.name for method in chosen if shipped and not method.is_shipped]
    if without:
        raise InputError(f"the bundles ship no weights for {', '.join(without)}, expected --weights train for these")
    return chosen
