"""Which bundle fits the data: every way to use one, whether a datalist allows it, what is missing and what it costs."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from monai.utils import ensure_tuple
from tqdm import tqdm

from common.data import check_splits, list_cases, sections_of, subject_of, write_datalist
from common.errors import InputError, find_input_error
from common.files import read_json
from datalists.survey import FileFacts, survey
from running.workflow import Entry, open_configs

from .cost import InferenceCost, TrainingCost, inference_cost, measured, training_cost

ROOT = Path(__file__).resolve().parents[2]
BRAIN_ML = 2500  # what is not 0 in a scan is more than a brain: the largest ones have about 2 l with all their fluid
THICK_MM, ANISOTROPY = 3.0, 2.0  # slices from which on a scan is called thick
Case = dict[str, Any]
# of whom: cases that say so; everybody is taken for healthy, and for a patient, where the datalist is silent on health
KINDS = {
    "any": "case",
    "healthy": 'case with "healthy": true',
    "patients": 'case without "healthy": true',
    "labelled": "labelled case",
    "drawn": 'labelled case without "healthy": true',
}


class Stage(NamedTuple):
    """One training of a way to use a bundle.

    Args:
        configs: config and the layers on it.
        learns, validates: kind of case, of :data:`KINDS` -> the least number of them in the sections training and
            validation; all cases of these kinds are used.
        paper: kind of case -> subjects of this kind that the paper trained on.
        sections: False for a training that takes all the cases, whatever their section.
        datalists: options that name the datalist.
        makes_labels: the stage learns from labels that are made on the way; it is measured with drawn ones.
        note: what the measured time leaves out.
    """

    configs: tuple[str, ...]
    learns: dict[str, int]
    validates: dict[str, int]
    paper: dict[str, int] = {}
    sections: bool = True
    datalists: tuple[str, ...] = ("datalist_file",)
    makes_labels: bool = False
    note: str = ""


class Route(NamedTuple):
    """A way to use a bundle: no stage is to apply the weights as they are shipped.

    Args:
        bundle: its name.
        way: what is done.
        gives: what comes out.
        stages: trainings, in their order.
        commands: to be run in this order; ``{datalist}`` is the datalist, ``{configs}`` the folder of the configs.
        values: values that a label may have; None for a bundle that has a table of them.
        any_sequence: another sequence may take the place of that of the configs, by ``--sequences``.
    """

    bundle: str
    way: str
    gives: str
    stages: tuple[Stage, ...]
    commands: tuple[str, ...]
    values: tuple[int, ...] | None = None
    any_sequence: bool = False


RUN = "python -m monai.bundle run --config_file "
CALIBRATE = "python scripts/calibrate_threshold.py "
INFERENCE = RUN + "{configs}/inference.json --datalist_file {datalist} --output_dir results"
UNET = RUN + "{configs}/train.json --datalist_file {datalist}"
RATE = " --datalist_file {datalist} --section validation --criterion false_positive_rate --rate 0.01 --write"
BEST = " --datalist_file {datalist} --section validation --write"
HEALTHY = Stage(("train_autoencoder",), {"healthy": 1}, {"healthy": 1}, paper={"healthy": 68})
DIFFUSION = Stage(("train_diffusion",), {"healthy": 1}, {"healthy": 1}, paper={"healthy": 358})
DIFFUSION_COMMAND = RUN + "{configs}/train_diffusion.json --datalist_file {datalist}"
STAGE_1 = " --diffusion_weights bundles/diffusion_recon_unet/models/diffusion.pt"
PAIRS = {"any": 2, "labelled": 2}

# paper: the numbers of scans are those of the papers that the model cards name
ROUTES = (
    Route(
        "ace_multitask", "as shipped", "tissues and lesions from T1w and FLAIR, one may be missing", (), (INFERENCE,)
    ),
    Route(
        "ace_multitask",
        "train on data sets that label one thing each",
        "tissues and lesions, or the classes of your table",
        (Stage(("train",), {"labelled": 1}, {"labelled": 1}, paper={"labelled": 52}),),
        (UNET,),
    ),
    Route("deepatlas_joint", "as shipped", "tissues from T1w", (), (INFERENCE,)),
    Route(
        "deepatlas_joint",
        "train both networks, from one label map up",
        "a segmenter and an inter-subject registration",
        (
            Stage(("train", "train_registration"), {"any": 2}, {"any": 2}, paper={"any": 65}),
            Stage(("train", "train_segmentation"), {"any": 2, "labelled": 1}, PAIRS, paper={"any": 65}),
            Stage(
                ("train",),
                {"any": 2, "labelled": 1},
                PAIRS,
                paper={"any": 65},
                note="the measured steps of train are of registration; one in 21 is of segmentation and takes longer",
            ),
        ),
        (
            RUN + "\"['{configs}/train.json','{configs}/train_registration.json']\" --datalist_file {datalist}",
            RUN + "\"['{configs}/train.json','{configs}/train_segmentation.json']\" --datalist_file {datalist}",
            UNET + " --registration_weights bundles/deepatlas_joint/models/registration.pt"
            " --segmentation_weights bundles/deepatlas_joint/models/model.pt",
        ),
        values=(0, 1, 2, 3),
        any_sequence=True,
    ),
    Route("diffusion_recon_unet", "as shipped", "a score of anomaly from T1w", (), (INFERENCE,)),
    Route(
        "diffusion_recon_unet",
        "train on healthy scans and painted anomalies",
        "a score of anomaly, without a label",
        (
            DIFFUSION,
            Stage(
                ("train",), {"healthy": 1}, {"healthy": 1}, paper={"healthy": 358}, datalists=("healthy_datalist_file",)
            ),
        ),
        (
            DIFFUSION_COMMAND,
            RUN + "{configs}/train.json --healthy_datalist_file {datalist}" + STAGE_1,
            CALIBRATE + "diffusion_recon_unet" + RATE,
        ),
    ),
    Route(
        "diffusion_recon_unet",
        "train on healthy scans and masks of one pathology",
        "a score of any anomaly",
        (
            DIFFUSION,
            Stage(
                ("train",),
                {"healthy": 1, "drawn": 1},
                {"healthy": 1, "drawn": 1},
                paper={"drawn": 90},
                datalists=("datalist_file", "healthy_datalist_file"),
            ),
        ),
        (
            DIFFUSION_COMMAND,
            UNET + " --healthy_datalist_file {datalist}" + STAGE_1,
            CALIBRATE + "diffusion_recon_unet" + BEST,
        ),
        values=(0, 1),
    ),
    Route("sae_segmentation", "as shipped", "tissues from T1w", (), (INFERENCE,)),
    Route(
        "sae_segmentation",
        "fit to these scans (adapt.json)",
        "tissues from scans of any contrast, without a label",
        (Stage(("train", "adapt"), {"any": 1}, {"any": 1}, sections=False),),
        (
            RUN + "\"['{configs}/train.json','{configs}/adapt.json']\" --datalist_file {datalist} --output_dir adapted",
            INFERENCE + " --weights adapted/model.pt",
        ),
        any_sequence=True,
    ),
    Route(
        "sae_segmentation",
        "train on unlabelled scans and the atlas",
        "tissues, without a label",
        (Stage(("train",), {"any": 1}, {"any": 1}, paper={"any": 30}),),
        (UNET,),
        any_sequence=True,
    ),
    Route("uad_autoencoder", "as shipped", "lesions that are bright on FLAIR", (), (INFERENCE,)),
    Route(
        "uad_autoencoder",
        "train on healthy FLAIR and pseudo-labels of patients",
        "lesions that are bright on FLAIR",
        (HEALTHY, Stage(("train",), {"patients": 1}, {"labelled": 1}, paper={"patients": 19}, makes_labels=True)),
        (
            RUN + "{configs}/train_autoencoder.json --datalist_file {datalist}",
            CALIBRATE + "uad_autoencoder --layers inference_residual.json" + RATE,
            RUN + "\"['{configs}/inference.json','{configs}/inference_residual.json','{configs}/pseudo_label.json']\""
            " --datalist_file {datalist} --section training",
            UNET + " --use_labels False"
            " --pseudo_datalist_file bundles/uad_autoencoder/runs/pseudo_labels/datalist.json",
            CALIBRATE + "uad_autoencoder" + BEST,
        ),
        values=(0, 1),
    ),
    Route(
        "uad_autoencoder",
        "train the U-Net on drawn masks",
        "lesions, as the masks show them",
        (Stage(("train",), {"labelled": 1}, {"labelled": 1}, paper={"labelled": 15}),),
        (UNET, CALIBRATE + "uad_autoencoder" + BEST),
        values=(0, 1),
    ),
)


class Data(NamedTuple):
    """A datalist, read: ``sections`` has its cases, the one section ``""`` where it is a plain list.

    ``sequences`` is what it says that its images are, None where it says nothing; ``facts`` are those of
    :func:`datalists.survey.survey`.
    """

    path: Path
    content: Any
    sequences: tuple[str, ...] | None
    sections: dict[str, list[Case]]
    facts: dict[str, FileFacts]

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
                "labelled": sum("label" in case for case in cases),
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
    path = Path(datalist_file)
    content = read_json(path)
    lists = sections_of(content) if isinstance(content, dict) else {"": content} if isinstance(content, list) else {}
    said = content.get("sequences") if isinstance(content, dict) else None
    items = next((items for items in lists.values() if items), [])
    image = items[0].get("image") if items and isinstance(items[0], dict) else None
    names = said or [f"image {number}" for number, _ in enumerate(ensure_tuple(image), 1)]
    options = {"sequences": names, "optional_sequences": names}
    sections = {name: list_cases(datalist_file=path, section=name or None, **options) for name in lists}
    sections = sections or {"": list_cases(datalist_file=path, **options)}  # raises its sentence
    facts = survey([case for cases in sections.values() for case in cases], num_workers)
    return Data(path, content, None if said is None else tuple(said), sections, facts)


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
    names = list(dict.fromkeys(route.bundle for route in ROUTES))
    unknown = [name for name in bundles or () if name not in names]
    if unknown:
        raise InputError(f"bundles names {unknown[0]!r}, expected some of {', '.join(names)}")
    data = data if isinstance(data, Data) else read_data(data)
    found = [_judge(route, data) for route in ROUTES if bundles is None or route.bundle in bundles]
    done: dict[tuple, Any] = {}
    jobs = [
        (route, stage, item, used)
        for route, item, used in found
        if measure and not item.missing
        for stage in route.stages or (None,)
    ]
    for route, stage, item, used in tqdm(jobs, desc="measuring", unit=" config", disable=None):
        name = stage.configs[-1] if stage else "inference"
        item.costs[name] = _measure(route, stage, used, data, steps, overrides, done)
    return [item for _, item, _ in found]


class _Used(NamedTuple):
    """What a route takes of a datalist: sequences, and the cases of each section with those."""

    sequences: tuple[str, ...]
    overrides: dict[str, Any]
    sections: dict[str, list[Case]]


def _judge(route: Route, data: Data) -> tuple[Route, Advice, _Used]:
    """What there is to say of a route without measuring, and what it would use."""
    missing: list[str] = []
    remarks: list[str] = []
    config = _config(route.bundle, route.stages[0].configs if route.stages else ("inference",))
    sequences, optional = tuple(config["sequences"]), config.get("optional_sequences", ())
    changed: dict[str, Any] = {}
    if route.any_sequence and data.sequences and not _has(data.sequences, sequences[0]):
        remarks.append(f"the bundle's own sequence is {sequences[0]}; here it learns {data.sequences[0]}")
        sequences = data.sequences[:1]
        changed = {"sequences": list(sequences)}
    if data.sequences is None:
        remarks.append(f"the datalist does not say what its images are; they are taken for {', '.join(sequences)}")
    wanted = ("training", "validation") if any(stage.sections for stage in route.stages) else (None,)
    sections: dict[str, list[Case]] = {}
    for section in wanted:
        try:
            sections[section or "all"] = list_cases(
                datalist_file=data.path, sequences=sequences, optional_sequences=optional, section=section
            )
        except InputError as e:
            missing.append(_advised(str(e), section, data))
    used = _Used(sequences, changed, sections)
    if not missing:
        for stage in route.stages:
            missing += _lacks(stage, used, data)
            remarks += _doubts(stage, used, data)
        if not missing and route.stages:
            missing += _wrong_labels(route, used, data)
    cases = [case for part in sections.values() for case in part]
    remarks += _doubtful_scans(cases, data.facts)
    if not missing and route.values:
        remarks += _doubtful_labels(route, _label_cases(route, used, data), data)
    learned = f" --sequences {shlex.quote(json.dumps(changed['sequences']))}" if changed else ""
    commands = tuple(
        text.format(configs=f"bundles/{route.bundle}/configs", datalist=_in_command(data.path))
        + (learned if "monai.bundle" in text else "")
        for text in route.commands
    )
    once = tuple(tuple(dict.fromkeys(texts)) for texts in (missing, remarks))
    return route, Advice(route.bundle, route.way, route.gives, *once, commands, {}), used


def _in_command(path: Path) -> str:
    """A path for a shell and for MONAI's command line, where a word that begins with $, @ or % is followed."""
    return shlex.quote(f"./{path}" if str(path).startswith(("$", "@", "%", "-", "~")) else str(path))


def _config(bundle: str, configs: Sequence[str]) -> dict[str, Any]:
    """The entries at the top of a config and the layers on it."""
    files = [ROOT / "bundles" / bundle / "configs" / f"{name}.json" for name in configs]
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
        "healthy": lambda case: case.get("healthy") is True or not data.speaks_of_health,
        "patients": lambda case: case.get("healthy") is not True,
        "labelled": lambda case: "label" in case,
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
    if "any" in want:
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
                found.append(f"{section} has {there or 'no'} {KINDS[kind]}, expected {least} or more")
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
            what = {"healthy": "healthy subject", "any": "subject", "patients": "subject"}.get(kind, "labelled subject")
            found.append(f"{stage.configs[-1]} learns from {_counted(subjects, what)}, in the paper from {paper}")
    if "healthy" in stage.learns and not data.speaks_of_health:
        found.append('nobody is said to be healthy: everybody is taken for it; mark patients with "healthy": false')
    for section, (want, cases) in parts.items():
        refused = [case for case in cases if "label" not in case and not case.get("healthy")]
        if want.keys() & {"labelled", "drawn"} and "any" not in want and refused:
            found.append(
                f"{_counted(len(refused), 'case')} of {section} without label must go into another datalist: "
                f"{stage.configs[0]}.json refuses such cases unless they are healthy"
            )
    if stage.note:
        found.append(stage.note)
    if any("fold" in case for case in data.cases):
        found.append("cases have folds, which scripts/compare.py reads; the commands below take all of them")
    return found


def _label_cases(route: Route, used: _Used, data: Data) -> list[Case]:
    """Cases whose labels a route reads."""
    wants = [part for stage in route.stages for part in _parts(stage, used).values()]
    found = [
        c for want, cases in wants for kind in want.keys() & {"labelled", "drawn"} for c in _of_kind(kind, cases, data)
    ]
    return list({case["name"]: case for case in found}.values())


def _wrong_labels(route: Route, used: _Used, data: Data) -> list[str]:
    """Labels with values that the route does not know."""
    labelled = _label_cases(route, used, data)
    if not labelled:
        return []
    if route.values is None:
        return _unfit_for_table(route, used, data)
    values = sorted({value for case in labelled for value in data.facts[case["label"]].values})
    unknown = [value for value in values if value not in route.values]
    if unknown:
        first = next(case["label"] for case in labelled if set(unknown) & set(data.facts[case["label"]].values))
        more = f"; --classes {max(values) + 1} takes 0 to {max(values)}" if len(route.values) > 2 else ""
        return [f"{first} has the label values {_listed(unknown)}, expected only {_listed(route.values)}{more}"]
    if not any(any(data.facts[case["label"]].values) for case in labelled):
        return ["all labels are empty, expected a value above 0 in one of them"]
    return []


def _unfit_for_table(route: Route, used: _Used, data: Data) -> list[str]:
    """What the bundle's own table says of data sets and values."""
    parts = {section: _of_kind("labelled", cases, data) for section, cases in used.sections.items()}
    with tempfile.TemporaryDirectory() as folder:
        # as in the training, which also looks at the voxels
        uncached = {
            f"{part}#dataset": Entry({"_target_": "Dataset", "data": f"@{part}#data"}) for part in ("train", "validate")
        }
        datalist = _write(Path(folder) / "cases.json", parts, data)
        try:
            parser = open_configs(ROOT / "bundles" / route.bundle, "train", datalist_file=datalist, **uncached).parser
            table = parser.get_parsed_content("table")
            parser.get_parsed_content("sets_fit")()
        except Exception as e:
            error = find_input_error(e)
            if error is None:
                raise
            return [str(error).replace(f"{datalist}", str(data.path))]
    for case in (case for cases in parts.values() for case in cases):
        unknown = [v for v in data.facts[case["label"]].values if v not in table.values(case["dataset"])]
        if unknown:
            return [
                f"{case['label']} has the label values {_listed(unknown)}, which label_sets does not explain for the "
                f"data set {case['dataset']}, expected only {_listed(table.values(case['dataset']))}"
            ]
    return []


def _doubtful_labels(route: Route, labelled: Sequence[Case], data: Data) -> list[str]:
    found = []
    names = sorted({str(case["dataset"]) for case in labelled if "dataset" in case})
    if len(names) > 1:
        found.append(f"labels of the data sets {_listed(names)} are taken for one: give those that mean the same")
    values = {value for case in labelled for value in data.facts[case["label"]].values}
    if labelled and len(route.values) > 2 and values <= {0, 1}:
        found.append("labels hold 0 and 1 only: a mask of lesions is no anatomy that a registration can follow")
    return found


def _doubtful_scans(cases: Sequence[Case], facts: Mapping[str, FileFacts]) -> list[str]:
    found = []
    images = {case["name"]: [facts[path] for path in ensure_tuple(case["image"]) if path] for case in cases}
    heads = [case for case in cases if "brain_mask" not in case and _foreground(images[case["name"]]) > BRAIN_ML]
    if heads:
        litres = max(_foreground(images[case["name"]]) for case in heads) / 1000
        found.append(
            f"no brain mask, and up to {litres:.1f} l that are not 0, in {len(heads)} of {_counted(len(cases), 'case')}"
            ": skull-strip them, or give brain masks"
        )
    spacings = [image.spacing for files in images.values() for image in files]
    thick = [max(s) for s in spacings if max(s) >= THICK_MM or max(s) > ANISOTROPY * min(s)]
    if thick:
        found.append(
            f"voxels of up to {max(thick):g} mm in {len(thick)} of {_counted(len(spacings), 'image')}: they are "
            "interpolated, and what is smaller is not seen"
        )
    return found


def _foreground(files: Sequence[FileFacts]) -> float:
    return min(image.foreground_ml for image in files)


def _write(path: Path, sections: Mapping[str, Sequence[Case]], data: Data) -> Path:
    """A datalist of some of the cases, whose images are those that a bundle takes."""
    header = {"label_sets": data.content["label_sets"]} if "label_sets" in data.content else {}
    parts = {
        name: [{key: value for key, value in case.items() if key != "name"} for case in cases]
        for name, cases in sections.items()
    }
    return write_datalist(path, parts, header)


def _measure(
    route: Route,
    stage: Stage | None,
    used: _Used,
    data: Data,
    steps: int,
    overrides: Mapping[str, Any],
    done: dict[tuple, Any],
) -> TrainingCost | InferenceCost | str:
    """What a stage costs, or inference where it is None; once for stages that routes share."""
    bundle = ROOT / "bundles" / route.bundle
    if stage is None:
        return _run_measured(
            inference_cost, bundle, ("inference",), {"test": used.sections["all"][:1]}, data, overrides
        )
    taken = {section: _taken(*part, data) for section, part in _parts(stage, used).items()}
    scans = {section: len(cases) for section, cases in taken.items()}
    key = (route.bundle, stage.configs, stage.datalists, *stage.learns, *scans.values())
    if key not in done:
        batch = _batch(route.bundle, stage.configs)
        source = "validation" if stage.makes_labels else "training"
        few = {"training": _few(taken[source], batch)}
        if stage.sections:
            few["validation"] = _few(taken["validation"], 2)
        more = {"scans": scans, "steps": steps, "datalists": stage.datalists}
        repeated = {"volumes_per_epoch": max(batch, len(few["training"]))} if stage.makes_labels else {}
        changed = {**used.overrides, **repeated, **overrides}
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


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _listed(items: Sequence[Any], most: int = 8) -> str:
    return ", ".join(map(str, items[:most])) + ", ..." * (len(items) > most)
