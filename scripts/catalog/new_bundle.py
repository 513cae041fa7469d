"""A new bundle from the files in ``scripts/templates/bundle``, with its name where ``the_bundle`` stands."""

from __future__ import annotations

import importlib.util
import keyword
import re
import tempfile
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from common.errors import InputError

from .reading import TAKEN_NAMES

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "scripts" / "templates" / "bundle"
PLACEHOLDER = "the_bundle"


def new_bundle(name: str, root: Path = ROOT) -> list[Path]:
    """Write the bundle and its test file, whole or not at all; returns both.

    Args:
        name: of the folder, and of the Python package in it.
        root: the repository.

    Raises:
        InputError: if the name does not do, or there is such a bundle or test.
    """
    check_name(name)
    bundle, test = root / "bundles" / name, root / "tests" / f"test_{name}.py"
    for path in (bundle, test):
        if path.exists():
            raise InputError(f"{path} exists, expected the name of a bundle that there is not yet")
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        made = Path(folder) / name
        for source in sorted(
            path for path in TEMPLATE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ):
            target = made / source.relative_to(TEMPLATE).as_posix().replace(PLACEHOLDER, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(filled(source.read_text(encoding="utf-8"), name), encoding="utf-8")
        write_weights(made)
        (made / test.name).replace(test)
        made.rename(bundle)
    return [bundle, test]


def check_name(name: str) -> None:
    """Refuse what is no name of a package, or that of another one: the first one imported would win."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise InputError(f"name is {name!r}, expected small letters, digits and _, such as tissue_unet")
    if name in TAKEN_NAMES or name == PLACEHOLDER or importlib.util.find_spec(name) is not None:
        raise InputError(f"name is {name!r}, which another module has, expected one of its own")


def filled(text: str, name: str) -> str:
    """A file of the template with the name in it, and its title in words."""
    return text.replace(PLACEHOLDER, name).replace("The Bundle", name.replace("_", " ").capitalize())


def write_weights(bundle: Path) -> None:
    """Random weights, the same each time, for ``network_def`` of ``inference.json``."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = parser.get_parsed_content("network_def")
    (bundle / "models").mkdir()
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
