"""The command ``brain-bundles``: every script is a subcommand, and ``run`` runs the configs of a bundle.

It imports nothing of the repository before a subcommand is chosen, so that ``--help`` is there at once.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import runpy
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = "run"
RUN_MEANING = "Run configs of a bundle: brain-bundles run BUNDLE [CONFIG ...] [--option value ...]"


def main(words: Sequence[str] | None = None) -> None:
    """Do what the words say; those of the command line by default.

    Raises:
        SystemExit: with a sentence, if there is no such subcommand, bundle, config, or no repository around.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not (ROOT / "scripts" / "advise.py").is_file() or not (ROOT / "bundles").is_dir():
        sys.exit(
            "error: brain-bundles was installed without its repository, which has the bundles and their weights, "
            "expected pip install -e . in a clone of it"
        )
    if not words or words[0] in ("--help", "-h", "help"):
        print(listing())
        return
    name, rest = words[0].replace("-", "_"), words[1:]
    if name == RUN:
        run_bundle(rest)
    elif name in subcommands():
        run_script(name, rest)
    else:
        sys.exit(f"error: {words[0]!r} is no subcommand, expected one of {', '.join([RUN, *subcommands()])}")


def subcommands(folder: Path = ROOT / "scripts") -> dict[str, str]:
    """Name -> what it does in one line, of the scripts in a folder, which are read and not imported."""
    return {path.stem: _meaning(path) for path in sorted(folder.glob("*.py"))}


def listing() -> str:
    """All subcommands with a line each."""
    lines = ["brain-bundles SUBCOMMAND [--option value ...]", ""]
    lines += [f"  {name:22}{meaning}" for name, meaning in {RUN: RUN_MEANING, **subcommands()}.items()]
    return "\n".join([*lines, "", "brain-bundles SUBCOMMAND --help prints the options of one."])


def run_script(name: str, words: Sequence[str]) -> None:
    """What ``python scripts/<name>.py`` does with these words."""
    _find_first(ROOT / "scripts")
    sys.argv = [f"brain-bundles {name}", *words]
    script = importlib.import_module(name)
    script.run_command(getattr(script, "main", None) or script.COMMANDS)


def run_bundle(words: Sequence[str]) -> None:
    """What ``python -m monai.bundle run`` does with a bundle's configs, ``inference`` without any, from any folder."""
    if not words or {"--help", "-h"} & set(words):
        print(f"{RUN_MEANING}\n\nBundles and configs:\n{_configs_text()}\n\nTheir options: docs/options.md")
        return
    plain = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    bundle, configs, options = words[0], list(words[1:plain]) or ["inference"], words[plain:]
    known = bundle_configs()
    if plain == 0 or bundle not in known:
        sys.exit(f"error: {bundle!r} is no bundle, expected one of {', '.join(known)}")
    folder = Path(os.path.relpath(ROOT / "bundles" / bundle))
    files = [_config_file(config, folder, known[bundle]) for config in configs]
    given = {word.split("=")[0] for word in options}
    root = [] if given & {"--bundle_root", "--bundle-root"} else ["--bundle_root", str(folder)]
    _find_first(ROOT)
    sys.argv = ["monai.bundle", RUN, "--config_file", files[0] if len(files) == 1 else str(files), *root, *options]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def _config_file(config: str, folder: Path, known: Sequence[str]) -> str:
    """A config of the bundle by its name, or a layer of the user's own by its path."""
    name = config.removesuffix(".json")
    if name in known:
        own = folder / "configs" / f"{name}.json"
        return str(own if own.is_file() else folder.parent / own.name)
    if not Path(config).is_file():
        sys.exit(f"error: {config!r} is no config of {folder.name} and no file, expected some of {', '.join(known)}")
    try:
        json.loads(Path(config).read_text(encoding="utf-8"))
    except ValueError as e:
        sys.exit(f"error: {config} is no JSON ({e}), expected a config")
    return config


def bundle_configs(folder: Path = ROOT / "bundles") -> Mapping[str, list[str]]:
    """Name of a bundle -> names of its configs that can be run, those that all bundles share among them."""
    shared = {path.stem for path in folder.glob("*.json")}
    return {
        path.parents[1].name: sorted(shared | {c.stem for c in path.parent.glob("*.json")} - {path.stem})
        for path in sorted(folder.glob("*/configs/metadata.json"))
    }


def _configs_text() -> str:
    lines = (f"  {bundle:22}{' '.join(configs)}" for bundle, configs in bundle_configs().items())
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 120, subsequent_indent=" " * 24))


def _find_first(folder: Path) -> None:
    """Modules are looked for in this folder first, as Python does with the folder of a script."""
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))


def _meaning(path: Path) -> str:
    """How a script's docstring begins, as far as the first colon or the end of the line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].split(":")[0].rstrip(".")
