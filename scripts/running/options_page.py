"""The page of all options, from the configs of the bundles and the signatures of the scripts."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

from common.options import VOCABULARY, expectation

from .command_line import ROOT, described

PAGE = ROOT / "docs" / "options.md"
INTRODUCTION = """# Options

Made by `python scripts/render_options.py` from the configs and the scripts; a test compares them.

    python -m monai.bundle run --config_file bundles/NAME/configs/inference.json --dataset_dir a --mirror no
    python scripts/make_datalist.py cases.json --dataset_dir a --sequences T1w,FLAIR

- All options are checked before a scan is read. A wrong one ends the command with one sentence and exit code 1.
- True and false: `true`, `yes`, `1`, or `false`, `no`, `0`, in any case.
- A list is `a,b` or `[a,b]`. One number for `spacing` counts for all three axes.
- Numbers have a decimal point and are finite. `null` stands for nothing, where it is named below.
- A layer, a JSON file after others in `--config_file`, may set the same options; it is checked alike.
- `python scripts/<script>.py --help` prints the options of a script, as `brain-bundles <script> --help` does.
- Every script takes `--threads N`: what each of its processes computes with, one a core without it.
  `OMP_NUM_THREADS=N` before a command does that for `monai.bundle run`.
"""


def page() -> str:
    """What docs/options.md should say."""
    bundles = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
    parts = [INTRODUCTION, "## Options of the bundles\n"]
    rows = ((f"`{name}`", expectation(option.kind), option.meaning) for name, option in VOCABULARY.items())
    parts.append(_table(("option", "value", "meaning"), rows))
    parts.append(
        "## Defaults of the bundles\n\nA value that begins with `$` is computed, mostly from another option.\n"
    )
    for bundle in bundles:
        parts += [f"### {bundle.name}\n", _table(("option", "default", "configs"), _defaults(bundle))]
    parts.append("## Options of the scripts\n")
    for script in sorted((ROOT / "scripts").glob("*.py")):
        if "run_command(main)" in script.read_text(encoding="utf-8"):
            options = described(importlib.import_module(script.stem).main)
            rows = ((f"`{name}`", kind, default, meaning) for name, meaning, kind, default in options)
            parts += [f"### {script.name}\n", _table(("option", "value", "default", "meaning"), rows)]
    return "\n".join(parts)


def _defaults(bundle: Path) -> Iterator[tuple[str, str, str]]:
    """Option, default and the configs that have it, in the order of the vocabulary."""
    configs = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(bundle.glob("configs/*.json"))
    }
    for name in VOCABULARY:
        places: dict[str, list[str]] = {}
        for stem, config in configs.items():
            if name in config and not name.endswith("_source"):
                places.setdefault(json.dumps(config[name]), []).append(stem)
        for default, stems in places.items():
            yield f"`{name}`", f"`{default}`", ", ".join(stems)


def _table(heading: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    cells = ([cell.replace("|", "\\|").replace("``", "`") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"
