"""Methods side by side on your own cases: the same folds, the same scores, one page.

Usage, from the root of the repository:

    python scripts/compare.py cases.json --target lesion --output_dir comparison
    python scripts/compare.py cases.json --weights train --methods unet,uad_pseudo,flair_threshold --seeds 0,1,2
    python scripts/compare.py cases.json --target lesion,tissue --output_dir comparison

The first applies the bundles as they are shipped. The second trains them on the folds of the datalist, or on its
sections training, validation and test. Started again, it goes on where it was stopped.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from monai.utils import ensure_tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import InputError
from common.evaluation import Volumes
from common.files import read_json
from common.options import converted
from common.options import types as t
from comparison import Comparison, compare
from running.command_line import run_command

ROOT = Path(__file__).resolve().parents[1]

TARGETS = t.list_of(Literal["lesion", "tissue"], "lesion, tissue or both of them", min_length=1)


def main(
    datalist_file: t.File,
    output_dir: t.Folder = "comparison",
    target: TARGETS = ("lesion",),
    methods: t.Names | None = None,
    weights: Literal["shipped", "train"] = "shipped",
    seeds: t.Seeds = (0,),
    options: t.File | None = None,
    device: t.Device | None = None,
    max_pictures: t.Whole = 20,
) -> None:
    """Compare methods and write OUTPUT_DIR/report.html, and tables beside it.

    Args:
        datalist_file: JSON of scripts/make_datalist.py, with labels.
        output_dir: of the page, the tables, and runs/, which holds trainings and masks.
        target: lesion, tissue, or both.
        methods: some of those that the descriptions of the bundles list; by default all that fit.
        weights: shipped, or train.
        seeds: of the trainings.
        options: JSON of {"<bundle>/<config>": {entry: value}}, entries of configs to replace.
        device: cpu, cuda:0, ...; by default what the bundles say.
        max_pictures: cases with pictures, those with most doubt.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("comparison").setLevel(logging.INFO)
    names = None if methods is None else list(ensure_tuple(methods))
    replaced = read_options(options)
    common = (ROOT / "bundles", names, weights, ensure_tuple(seeds), replaced, device, Volumes())
    comparisons = [Comparison(datalist_file, output_dir, kind, *common) for kind in ensure_tuple(target)]
    command = shlex.join(["python", "scripts/compare.py", *map(shown, sys.argv[1:])])
    compare(comparisons, "Comparison of methods", "", command, max_pictures)


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
        if not (ROOT / "bundles" / bundle / "configs" / f"{config}.json").is_file():
            raise InputError(f"{path} has {name!r}, expected <bundle>/<config> of a config in bundles/")
    return options


if __name__ == "__main__":
    run_command(main)
