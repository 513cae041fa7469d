"""The command line of a comparison: its options, entries of configs to replace, and the words for the page."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from catalog import BUNDLES
from common.data import Datalist
from common.errors import InputError
from common.evaluation import Volumes
from common.files import read_json
from common.options import converted
from common.options import types as t
from running.command_line import show_progress

from .comparison import Comparison
from .report import compare

TARGETS = t.list_of(Literal["lesion", "tissue"], "lesion, tissue or both of them", min_length=1)


def compare_methods(
    datalist_file: t.File,
    output_dir: t.Folder = "comparison",
    target: TARGETS = ("lesion",),
    methods: t.Names | None = None,
    weights: Literal["shipped", "train"] = "shipped",
    seeds: t.Seeds = (0,),
    options: t.File | None = None,
    device: t.Device | None = None,
    max_pictures: t.Whole = 20,
    max_views: t.Whole = 5,
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
        max_views: cases of these with a page to scroll through, 1 to 3 MB each.
    """
    show_progress("comparison")
    replaced = read_options(options)
    shared = (BUNDLES, methods, weights, seeds, replaced, device, Volumes())
    datalist = Datalist(datalist_file)
    comparisons = [Comparison(datalist, output_dir, kind, *shared) for kind in target]
    compare(comparisons, "Comparison of methods", "", command_of(sys.argv[1:]), max_pictures, max_views)


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
