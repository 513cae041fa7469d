"""Results of a bundle under the names of BIDS derivatives."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from os.path import relpath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monai.utils import ensure_tuple

from common.data import list_cases, prefix_of, subject_of, write_datalist
from common.errors import InputError
from common.files import Alone, read_json, write_json, write_text
from common.scans import stem
from common.tables import delimited
from running.workflow import open_configs

from .participants import carry_on, read_tables

logger = logging.getLogger(__name__)

BIDS_VERSION = "1.10.0"
_OF_ALL = ("volumes.tsv", "report.html", "views/**/*.html")  # of the last run
_IGNORED = "volumes.tsv\nreport.html\nviews\n"  # by the validator, which takes views/ for another folder


def write_derivatives(
    bids_dir: str | Path,
    output_dir: str | Path,
    bundle: str | Path,
    participants: Sequence[str] | None = None,
    layers: Sequence[str] = (),
    overwrite: bool = False,
    **options: Any,
) -> list[Path]:
    """Run a bundle on a BIDS data set, and name what it writes as BIDS asks of derivatives.

    ``sub-01/anat/sub-01_space-orig_label-lesion_mask.nii.gz`` for one label, ``..._dseg.nii.gz`` for several, and
    ``..._label-lesion_probseg.nii.gz`` for the map, each with its JSON file; ``dataset_description.json`` and
    ``dseg.tsv``; ``volumes.tsv`` and ``report.html`` of the run. Of the data set's ``participants.tsv`` and
    ``sub-*_sessions.tsv`` the lines come along that have derivatives.

    Args:
        bids_dir: data set, whose scans are skull-stripped or have brain masks.
        output_dir: of the derivatives.
        bundle: its folder.
        participants: without ``sub-``; None for all.
        layers: names of configs on ``inference.json``.
        overwrite: replace derivatives that are there.
        options: entries of the config to replace.

    Returns:
        The images, by case.

    Raises:
        InputError: if there is no such participant or scan, a table of participants is none, or a derivative is there;
            at the end, if a case failed.
    """
    bids_dir, output_dir, bundle = (Path(path).resolve() for path in (bids_dir, output_dir, bundle))
    config = read_json(bundle / "configs" / "inference.json")
    cases = list_cases(bids_dir, sequences=config["sequences"], optional_sequences=config.get("optional_sequences", ()))
    cases = _of_participants(cases, participants, bids_dir)
    tables = read_tables(bids_dir)
    meta = read_json(bundle / "configs" / "metadata.json")
    labels = {int(v): name for v, name in meta["network_data_format"]["outputs"]["pred"]["channel_def"].items()}
    labels.pop(0, None)
    names = _result_names(labels, config)
    places = [_place(case, bids_dir, output_dir, config["sequences"]) for case in cases]
    there = [path for place in places for name in names.values() if (path := Path(f"{place}_{name}.nii.gz")).exists()]
    if there and not overwrite:
        raise InputError(f"{there[0]} is there already, expected --overwrite true to replace it, or another output_dir")
    with Alone(output_dir), TemporaryDirectory(dir=output_dir, prefix=".run-") as folder:
        datalist = write_datalist(Path(folder) / "cases.json", {"cases": cases}, {"sequences": config["sequences"]})
        options |= {"datalist_file": datalist, "output_dir": Path(folder) / "out"}
        workflow = open_configs(bundle, ["inference", *layers], logging_file=None, **options)
        results = [Path(folder) / "out" / case["name"] for case in workflow.parser.get_parsed_content("datalist")]
        try:
            workflow.run()
            workflow.finalize()
        finally:  # the others, where one failed
            made = [
                path
                for result, place, case in zip(results, places, cases, strict=True)
                for path in _take(result, place, names, _sources(case, bids_dir))
            ]
            _move_of_all(Path(folder) / "out", output_dir)
            if made:
                _describe(output_dir, bids_dir, bundle.name, meta["version"], labels)
                carry_on(tables, bids_dir, output_dir)
    logger.info("%d derivatives in %s", len(made), output_dir)
    return made


def _of_participants(cases: list[dict[str, Any]], participants: Sequence[str] | None, source: Path) -> list[dict]:
    wanted = [f"sub-{name.removeprefix('sub-')}" for name in participants or ()]
    known = {subject_of(case) for case in cases}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise InputError(f"{missing[0]} has no scan in {source}, expected some of {', '.join(sorted(known))}")
    return [case for case in cases if not wanted or subject_of(case) in wanted]


def _result_names(labels: Mapping[int, str], config: Mapping[str, Any]) -> dict[str, str]:
    """Postfix of a file that inference writes -> what BIDS calls it."""
    entity = {value: f"label-{re.sub(r'[^A-Za-z0-9]', '', name)}" for value, name in labels.items()}
    mapped = config.get("lesion_class", next(iter(labels)))
    is_probability = config.get("overview", {}).get("probability", True)
    kind = "probseg" if is_probability else "desc-score_probseg"  # BIDS has no other name for a map of a label
    return {"seg": f"{entity[mapped]}_mask" if len(labels) == 1 else "dseg", "prob": f"{entity[mapped]}_{kind}"}


def _place(case: Mapping[str, Any], bids_dir: Path, output_dir: Path, sequences: Sequence[str]) -> Path:
    """Folder of the derivatives of a case, and how their names begin."""
    image = Path(_images(case)[0])
    prefixes = (prefix_of(stem(image), sequence) for sequence in sequences)
    prefix = next((prefix for prefix in prefixes if prefix is not None), f"{stem(image)}_").rstrip("_")
    prefix = re.sub(r"_desc-[A-Za-z0-9]+", "", prefix)
    space = "" if "_space-" in prefix else "_space-orig"
    return output_dir / image.parent.relative_to(bids_dir) / f"{prefix}{space}"


def _take(result: Path, place: Path, names: Mapping[str, str], sources: list[str]) -> list[Path]:
    """Move the files of a case to their place; those that there are."""
    made = []
    for postfix, name in names.items():
        file, target = Path(f"{result}_{postfix}.nii.gz"), Path(f"{place}_{name}.nii.gz")
        if file.exists():
            record = read_json(f"{result}_{postfix}.json")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # never beside the record of another
            write_json(f"{place}_{name}.json", {"Sources": sources, "SpatialReference": sources[0], **record})
            file.replace(target)
            made.append(target)
    return made


def _move_of_all(folder: Path, output_dir: Path) -> None:
    """Take the pages and the table of a run, those that there are."""
    for file in (file for pattern in _OF_ALL for file in folder.glob(pattern)):
        target = output_dir / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def _sources(case: Mapping[str, Any], bids_dir: Path) -> list[str]:
    files = [*_images(case), *ensure_tuple(case.get("brain_mask", ()))]
    return [f"bids:raw:{Path(file).relative_to(bids_dir).as_posix()}" for file in files]


def _images(case: Mapping[str, Any]) -> list[str]:
    return [path for path in ensure_tuple(case["image"]) if path is not None]


def _describe(output_dir: Path, bids_dir: Path, bundle: str, version: str, labels: Mapping[int, str]) -> None:
    """What a data set of derivatives says of itself; of other bundles that wrote there it says so still."""
    file = output_dir / "dataset_description.json"
    before = read_json(file, kind=dict) if file.is_file() else {}
    ours = {"Name": bundle, "Version": version}
    makers = [maker for maker in before.get("GeneratedBy", []) if maker != ours]
    description = {"Name": "Segmentations", "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative"}
    links = {"DatasetLinks": {"raw": Path(relpath(bids_dir, output_dir)).as_posix()}}
    write_json(file, description | before | links | {"GeneratedBy": [*makers, ours]})
    if len(labels) > 1:
        write_text(output_dir / "dseg.tsv", delimited([("index", "name"), *sorted(labels.items())], "\t"))
    write_text(output_dir / ".bidsignore", _IGNORED)
