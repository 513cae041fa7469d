"""Which bundle fits the data: every way to use one, whether a datalist allows it, what is missing and what it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from monai.utils import ensure_tuple
from tqdm import tqdm

from catalog import BUNDLES, Stage, Use, bundle_names, describe, refuse_unknown
from common.data import Case, Datalist, check_splits, subject_of, write_datalist
from common.errors import InputError, find_input_error
from common.files import read_json
from common.tables import counted
from datalists.survey import FileFacts, survey
from running.workflow import Entry, open_configs

from .commands import command_of
from .cost import InferenceCost, TrainingCost, inference_cost, measured, training_cost

BRAIN_ML = 2500  # what is not 0 in a scan is more than a brain: the largest ones have about 2 l with all their fluid
THICK_MM, ANISOTROPY = 3.0, 2.0  # slices from which on a scan is called thick
# kind of case of a training -> what it is called; everybody is taken for healthy, and for a patient, where the datalist
# is silent on health
NAMES = {
    "any": "case",
    "unlabeled": "case",
    "healthy": 'case with "healthy": true',
    "patients": 'case without "healthy": true',
    "labeled": "labeled case",
    "drawn": 'labeled case without "healthy": true',
}


class Data(NamedTuple):
    """A datalist with the cases of each section, the one section ``""`` where it is a plain list, and the facts of all
    their files, of :func:`datalists.survey.survey`.
    """

    datalist: Datalist
    sections: dict[str, list[Case]]
    facts: dict[str, FileFacts]

    @property
    def sequences(self) -> tuple[str, ...] | None:
        return self.datalist.sequences

    @property
    def cases(self) -> list[Case]:
        return [case for cases in self.sections.values() for case in cases]

    @property
    def speaks_of_health(self) -> bool:
        return any("healthy" in case for case in self.cases)

    def counts(self) -> dict[str, dict[str, int]]:
        """Section -> numbers of subjects, cases and cases of a kind."""
        return {
            name or "all": {
                "subjects": len({subject_of(case) for case in cases}),
                "cases": len(cases),
                "labeled": sum("label" in case for case in cases),
                "healthy": sum(case.get("healthy") is True for case in cases),
                "patients": sum(case.get("healthy") is False for case in cases),
                "brain masks": sum("brain_mask" in case for case in cases),
            }
            for name, cases in self.sections.items()
        }


class Advice(NamedTuple):
    """What a datalist allows of one way to use a bundle.

    ``missing`` is empty where it can run; ``costs`` has, by the name of the config, what was measured, or the sentence
    that says why it could not be.
    """

    bundle: str
    way: str
    gives: str
    missing: tuple[str, ...]
    remarks: tuple[str, ...]
    commands: tuple[str, ...]
    costs: dict[str, TrainingCost | InferenceCost | str]

    @property
    def verdict(self) -> str:
        """In three words or fewer."""
        return "cannot run" if self.missing else "can run, see remarks" if self.remarks else "can run"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a cost that could not be measured is ``{"failure": sentence}``."""
        costs = {k: {"failure": v} if isinstance(v, str) else v._asdict() for k, v in self.costs.items()}
        return {"bundle": self.bundle, "way": self.way, "verdict": self.verdict} | self._asdict() | {"costs": costs}


def read_data(datalist_file: str | Path, num_workers: int | None = None) -> Data:
    """Read a datalist and every file in it.

    Args:
        datalist_file: JSON, as :func:`common.data.list_cases` takes it.
        num_workers: processes; as many as cores by default.

    Raises:
        InputError: if the datalist or a file cannot be used by any bundle.
    """
    datalist = Datalist(datalist_file)
    images = ensure_tuple(datalist.items()[0]["image"])
    names = datalist.sequences or [f"image {number}" for number, _ in enumerate(images, 1)]
    parts = datalist.names or (None,)
    sections = {part or "": datalist.cases(names, part, optional_sequences=names) for part in parts}
    return Data(datalist, sections, survey([case for cases in sections.values() for case in cases], num_workers))


def advise(
    data: str | Path | Data,
    bundles: Sequence[str] | None = None,
    measure: bool = True,
    steps: int = 3,
    **overrides: Any,
) -> list[Advice]:
    """Say of every way to use the bundles whether a datalist allows it, and measure those that can run.

    Args:
        data: the datalist, or what :func:`read_data` made of it.
        bundles: names of those to look at; all by default.
        measure: time some steps of each training, and an inference, in processes of their own.
        steps: to measure, after two to warm up.
        overrides: entries of all the configs that are measured, as ``device``.

    Raises:
        InputError: if the datalist cannot be read, or a bundle is not known.
    """
    refuse_unknown(bundles or (), option="bundles")
    names = [name for name in bundle_names() if bundles is None or name in bundles]
    data = data if isinstance(data, Data) else read_data(data)
    found = [(use, *_judge(name, use, data)) for name in names for use in describe(name).uses]
    done: dict[tuple, Any] = {}
    jobs = [
        (stage, item, used)
        for use, item, used in found
        if measure and not item.missing
        for stage in use.stages or (None,)
    ]
    for stage, item, used in tqdm(jobs, desc="measuring", unit=" config", disable=None):
        name = stage.configs[-1] if stage else "inference"
        item.costs[name] = _measure(item.bundle, stage, used, data, steps, overrides, done)
    return [item for _, item, _ in found]


class _Used(NamedTuple):
    """What a way of use takes of a datalist: sequences, and the cases of each section with those."""

    sequences: tuple[str, ...]
    overrides: dict[str, Any]
    sections: dict[str, list[Case]]


def _judge(bundle: str, use: Use, data: Data) -> tuple[Advice, _Used]:
    """What there is to say of a way of use without measuring, and what it would use."""
    missing: list[str] = []
    remarks: list[str] = []
    config = _config(bundle, use.stages[0].configs if use.stages else ("inference",))
    sequences, optional = tuple(config["sequences"]), config.get("optional_sequences", ())
    changed: dict[str, Any] = {}
    if use.any_sequence and data.sequences and not _has(data.sequences, sequences[0]):
        remarks.append(f"the bundle's own sequence is {sequences[0]}; here it learns {data.sequences[0]}")
        sequences = data.sequences[:1]
        changed = {"sequences": list(sequences)}
    if data.sequences is None:
        remarks.append(f"the datalist does not say what its images are; they are taken for {', '.join(sequences)}")
    wanted = ("training", "validation") if any(stage.sections for stage in use.stages) else (None,)
    sections: dict[str, list[Case]] = {}
    for section in wanted:
        try:
            sections[section or "all"] = data.datalist.cases(sequences, section, optional_sequences=optional)
        except InputError as e:
            missing.append(_advised(str(e), section, data))
    used = _Used(sequences, changed, sections)
    if not missing:
        for stage in use.stages:
            missing += _lacks(stage, used, data)
            remarks += _doubts(stage, used, data)
        if not missing and use.stages:
            missing += _wrong_labels(bundle, use, used, data)
    cases = [case for part in sections.values() for case in part]
    remarks += _doubtful_scans(cases, data.facts)
    if not missing and use.values:
        remarks += _doubtful_labels(use, _label_cases(use, used, data), data)
    commands = tuple(command_of(bundle, step, data.datalist.path, changed.get("sequences")) for step in use.steps)
    once = tuple(tuple(dict.fromkeys(texts)) for texts in (missing, remarks))
    return Advice(bundle, use.way, use.gives, *once, commands, {}), used


def _config(bundle: str, configs: Sequence[str]) -> dict[str, Any]:
    """The entries at the top of a config and the layers on it."""
    files = [BUNDLES / bundle / "configs" / f"{name}.json" for name in configs]
    return {key: value for file in files for key, value in read_json(file).items()}


def _has(sequences: Sequence[str], name: str) -> bool:
    return name.lower().removesuffix("w") in [other.lower().removesuffix("w") for other in sequences]


def _advised(sentence: str, section: str | None, data: Data) -> str:
    """What list_cases says, with the way out where it is always the same one."""
    if section is not None and section not in data.sections:
        folds = "compare.py --weights train trains on the folds, " if any("fold" in c for c in data.cases) else ""
        return f"there is no {section} section; {folds}make_datalist.py makes one with --validation 0.2"
    return sentence


def _of_kind(kind: str, cases: Sequence[Case], data: Data) -> list[Case]:
    chosen = {
        "any": lambda case: True,
        "unlabeled": lambda case: True,
        "healthy": lambda case: case.get("healthy") is True or not data.speaks_of_health,
        "patients": lambda case: case.get("healthy") is not True,
        "labeled": lambda case: "label" in case,
        "drawn": lambda case: "label" in case and case.get("healthy") is not True,
    }
    return [case for case in cases if chosen[kind](case)]


def _parts(stage: Stage, used: _Used) -> dict[str, tuple[dict[str, int], list[Case]]]:
    """Section -> what a stage wants of it, and its cases."""
    names = ("training", "validation") if stage.sections else ("all", "all")
    wants = zip(("training", "validation"), (stage.learns, stage.validates), names, strict=True)
    return {part: (want, used.sections[name]) for part, want, name in wants}


def _taken(want: Mapping[str, int], cases: Sequence[Case], data: Data) -> list[Case]:
    """The cases of a section that a stage takes, in their order."""
    if want.keys() & {"any", "unlabeled"}:
        return list(cases)
    names = {case["name"] for kind in want for case in _of_kind(kind, cases, data)}
    return [case for case in cases if case["name"] in names]


def _lacks(stage: Stage, used: _Used, data: Data) -> list[str]:
    """What keeps a stage from running."""
    found = []
    parts = _parts(stage, used)
    for section, (want, cases) in parts.items():
        for kind, least in want.items():
            there = len(_of_kind(kind, cases, data))
            if there < least:
                found.append(f"{section} has {there or 'no'} {NAMES[kind]}, expected {least} or more")
    if {"healthy", "drawn"} <= stage.learns.keys() and not data.speaks_of_health:
        found.append('nobody is said to be healthy or not; mark every case with "healthy": true or false')
    if not found and stage.sections:
        try:
            check_splits(**{section: _taken(*part, data) for section, part in parts.items()})
        except InputError as e:
            found.append(str(e))
    return found


def _doubts(stage: Stage, used: _Used, data: Data) -> list[str]:
    """What a user should know of a stage that can run."""
    found = []
    parts = _parts(stage, used)
    for kind, paper in stage.paper.items():
        subjects = len({subject_of(case) for case in _of_kind(kind, parts["training"][1], data)})
        if 0 < subjects < paper:
            names = {"healthy": "healthy subject", "labeled": "labeled subject", "drawn": "labeled subject"}
            what = names.get(kind, "subject")
            found.append(f"{stage.configs[-1]} learns from {counted(subjects, what)}, in the paper from {paper}")
    if "healthy" in stage.learns and not data.speaks_of_health:
        found.append('nobody is said to be healthy: everybody is taken for it; mark patients with "healthy": false')
    for section, (want, cases) in parts.items():
        refused = [case for case in cases if "label" not in case and not case.get("healthy")]
        if want.keys() & {"labeled", "drawn"} and "any" not in want and refused:
            found.append(
                f"{counted(len(refused), 'case')} of {section} without label must go into another datalist: "
                f"{stage.configs[0]}.json refuses such cases unless they are healthy"
            )
    if stage.note:
        found.append(stage.note)
    if any("fold" in case for case in data.cases):
        found.append("cases have folds, which scripts/compare.py reads; the commands below take all of them")
    return found


def _label_cases(use: Use, used: _Used, data: Data) -> list[Case]:
    """Cases whose labels a way of use reads."""
    wants = [part for stage in use.stages for part in _parts(stage, used).values()]
    found = [
        c for want, cases in wants for kind in want.keys() & {"labeled", "drawn"} for c in _of_kind(kind, cases, data)
    ]
    return list({case["name"]: case for case in found}.values())


def _wrong_labels(bundle: str, use: Use, used: _Used, data: Data) -> list[str]:
    """Labels with values that the way of use does not know."""
    labeled = _label_cases(use, used, data)
    if not labeled:
        return []
    if use.values is None:
        return _unfit_for_table(bundle, used, data)
    values = sorted({value for case in labeled for value in data.facts[case["label"]].values})
    unknown = [value for value in values if value not in use.values]
    if unknown:
        first = next(case["label"] for case in labeled if set(unknown) & set(data.facts[case["label"]].values))
        more = f"; --classes {max(values) + 1} takes 0 to {max(values)}" if len(use.values) > 2 else ""
        return [f"{first} has the label values {_listed(unknown)}, expected only {_listed(use.values)}{more}"]
    if not any(any(data.facts[case["label"]].values) for case in labeled):
        return ["all labels are empty, expected a value above 0 in one of them"]
    return []


def _unfit_for_table(bundle: str, used: _Used, data: Data) -> list[str]:
    """What the bundle's own table says of data sets and values."""
    parts = {section: _of_kind("labeled", cases, data) for section, cases in used.sections.items()}
    with tempfile.TemporaryDirectory() as folder:
        # as in the training, which also looks at the voxels
        uncached = {
            f"{part}#dataset": Entry({"_target_": "Dataset", "data": f"@{part}#data"}) for part in ("train", "validate")
        }
        datalist = _write(Path(folder) / "cases.json", parts, data)
        try:
            parser = open_configs(BUNDLES / bundle, "train", datalist_file=datalist, **uncached).parser
            table = parser.get_parsed_content("table")
            parser.get_parsed_content("sets_fit")()
        except Exception as e:
            error = find_input_error(e)
            if error is None:
                raise
            return [str(error).replace(f"{datalist}", str(data.datalist.path))]
    for case in (case for cases in parts.values() for case in cases):
        unknown = [v for v in data.facts[case["label"]].values if v not in table.values(case["dataset"])]
        if unknown:
            return [
                f"{case['label']} has the label values {_listed(unknown)}, which label_sets does not explain for the "
                f"data set {case['dataset']}, expected only {_listed(table.values(case['dataset']))}"
            ]
    return []


def _doubtful_labels(use: Use, labeled: Sequence[Case], data: Data) -> list[str]:
    found = []
    names = sorted({str(case["dataset"]) for case in labeled if "dataset" in case})
    if len(names) > 1:
        found.append(f"labels of the data sets {_listed(names)} are taken for one: give those that mean the same")
    values = {value for case in labeled for value in data.facts[case["label"]].values}
    if labeled and len(use.values) > 2 and values <= {0, 1}:
        found.append("labels hold 0 and 1 only: a mask of lesions is no anatomy that a registration can follow")
    return found


def _doubtful_scans(cases: Sequence[Case], facts: Mapping[str, FileFacts]) -> list[str]:
    found = []
    images = {case["name"]: [facts[path] for path in ensure_tuple(case["image"]) if path] for case in cases}
    heads = [case for case in cases if "brain_mask" not in case and _foreground(images[case["name"]]) > BRAIN_ML]
    if heads:
        liters = max(_foreground(images[case["name"]]) for case in heads) / 1000
        found.append(
            f"no brain mask, and up to {liters:.1f} l that are not 0, in {len(heads)} of {counted(len(cases), 'case')}"
            ": skull-strip them, or give brain masks"
        )
    spacings = [image.spacing for files in images.values() for image in files]
    thick = [max(s) for s in spacings if max(s) >= THICK_MM or max(s) > ANISOTROPY * min(s)]
    if thick:
        found.append(
            f"voxels of up to {max(thick):g} mm in {len(thick)} of {counted(len(spacings), 'image')}: they are "
            "interpolated, and what is smaller is not seen"
        )
    return found


def _foreground(files: Sequence[FileFacts]) -> float:
    return min(image.foreground_ml for image in files)


def _write(path: Path, sections: Mapping[str, Sequence[Case]], data: Data) -> Path:
    """A datalist of some of the cases, whose images are those that a bundle takes."""
    header = {key: value for key, value in data.datalist.header.items() if key == "label_sets"}
    parts = {
        name: [{key: value for key, value in case.items() if key != "name"} for case in cases]
        for name, cases in sections.items()
    }
    return write_datalist(path, parts, header)


def _measure(
    name: str,
    stage: Stage | None,
    used: _Used,
    data: Data,
    steps: int,
    overrides: Mapping[str, Any],
    done: dict[tuple, Any],
) -> TrainingCost | InferenceCost | str:
    """What a stage costs, or inference where it is None; once for stages that ways of use share."""
    bundle = BUNDLES / name
    if stage is None:
        return _run_measured(
            inference_cost, bundle, ("inference",), {"test": used.sections["all"][:1]}, data, overrides
        )
    taken = {section: _taken(*part, data) for section, part in _parts(stage, used).items()}
    scans = {section: len(cases) for section, cases in taken.items()}
    key = (stage, *scans.values())
    if key not in done:
        batch = _batch(name, stage.configs)
        if stage.learns_from_predictions:  # labels made on the way are not there yet: it is measured with drawn ones
            few = {"training": _few(taken["validation"], batch)}
            changed = {"volumes_per_epoch": max(batch, len(few["training"]))}
        else:
            few = {"training": _few(taken["training"], batch)}
            changed = dict(stage.options)
        if stage.sections:
            few["validation"] = _few(taken["validation"], 2)
        more = {"scans": scans, "steps": steps, "datalists": tuple(stage.datalists)}
        changed |= {**used.overrides, **overrides}
        done[key] = _run_measured(training_cost, bundle, stage.configs, few, data, changed, **more)
    return done[key]


def _run_measured(
    function: Any,
    bundle: Path,
    configs: tuple[str, ...],
    few: Mapping[str, Sequence[Case]],
    data: Data,
    overrides: Mapping[str, Any],
    **options: Any,
) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        datalist = _write(Path(folder) / "cases.json", few, data)
        return measured(function, bundle, configs, datalist, **options, **overrides)


def _few(cases: Sequence[Case], number: int) -> list[Case]:
    """As many cases, of every data set, with and without label, healthy and not, in turn."""
    groups: dict[tuple, list[Case]] = {}
    for case in cases:
        groups.setdefault((case.get("dataset"), "label" in case, case.get("healthy")), []).append(case)
    turns = [case for turn in zip_longest(*groups.values()) for case in turn if case is not None]
    return turns[: max(number, len(groups))]


def _batch(bundle: str, configs: Sequence[str]) -> int:
    """Scans that fill a batch, two at least; slices of two scans fill any."""
    slices = "BrainSlices" in _config(bundle, configs)["train"]["dataset"]["_target_"]
    return 2 if slices else max(_config(bundle, configs).get("batch_size", 1), 2)


def _listed(items: Sequence[Any], most: int = 8) -> str:
    return ", ".join(map(str, items[:most])) + ", ..." * (len(items) > most)
