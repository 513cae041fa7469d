"""One fold and one seed: trainings and predictions in one folder, none of them done twice."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.utils import ensure_tuple

from catalog import Inference, Prediction, Stage
from common.data import Case, Datalist, write_datalist
from common.errors import InputError
from common.files import done_once, read_json, write_json
from datalists.survey import read_facts
from labels.calibration import calibrate, check_cases
from running.workflow import Entry, open_configs, without_page

from .outputs import Outputs
from .targets import TARGETS, Target

logger = logging.getLogger(__name__)

Sections = Mapping[str, Sequence[Case]]

# what a training or an inference may know of a case beside its images
_KEPT = ("image", "brain_mask", "subject", "session", "healthy", "case")


class Split(NamedTuple):
    """Cases of one fold; each of them names itself by ``case``."""

    number: int
    training: list[Case]
    validation: list[Case]
    test: list[Case]


class Unfit(InputError):
    """The cases lack something that a method needs."""


class Trial:
    """What methods share on one fold with one seed.

    Args:
        folder: where all of it goes.
        split: the cases.
        target: what is compared.
        sequences: what the images of a case are, in the order of the channels.
        seed: of the trainings.
        bundles: folder of the bundles.
        options: ``<bundle>/<config>`` -> entries of the configs to replace, wherever this config runs.
        device: cpu, cuda:0, ...; None for what the bundles say.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        target: Target,
        sequences: Sequence[str],
        seed: int,
        bundles: Path,
        options: Mapping[str, Mapping[str, Any]],
        device: str | None = None,
    ) -> None:
        self.folder = folder
        self.split = split
        self.target = target
        self.sequences = tuple(sequences)
        self.seed = seed
        self.bundles = bundles
        self.options = options
        self.device = {} if device is None else {"device": device}
        self.seconds: dict[str, float] = {}  # of what the method at work has asked for, by folder
        self.outputs = Outputs()

    # the cases of a training

    def healthy(self) -> Sections:
        """People said to be healthy; if none of them is in the validation part, the last of training."""
        training, validation = (
            [_plain(case) for case in part if case.get("healthy") is True]
            for part in (self.split.training, self.split.validation)
        )
        if not validation:
            training, validation = training[:-1], training[-1:]
        if not training:
            raise Unfit("there are less than two healthy subjects to train on, expected cases with healthy: true")
        return {"training": training, "validation": validation}

    def labeled(self, some: bool = False) -> Sections:
        """Cases with a label of the target; with ``some`` training also has those without.

        Labels with values that the target leaves open, such as lesions among tissues, are not taken.
        """
        training, validation = (
            [self._with_label(case, self.target) for case in part if self._is_complete(case)]
            for part in (self.split.training, self.split.validation)
        )
        for name, part in (("training", training), ("validation", validation)):
            if not part:
                raise Unfit(f"no case for {name} has a label of {self.target.name}, expected one or more")
        if some:
            known = {case["case"] for case in training}
            training += [_plain(case) for case in self.split.training if case["case"] not in known]
        return {"training": training, "validation": validation}

    def _is_complete(self, case: Case) -> bool:
        label = self.target.label_of(case)
        if label is None or not self.target.left_open:
            return label is not None
        return not set(read_facts(label, "label").values) & set(self.target.left_open)

    def patients(self) -> list[Case]:
        """Cases for training that are not said to be healthy, without their labels."""
        cases = [_plain(case) for case in self.split.training if case.get("healthy") is not True]
        if not cases:
            raise Unfit("every subject to train on is healthy, expected patients for pseudo-labels")
        return cases

    def unlabeled(self) -> Sections:
        """All cases without their labels."""
        return {
            "training": [_plain(case) for case in self.split.training],
            "validation": [_plain(case) for case in self.split.validation],
        }

    def by_dataset(self) -> Sections:
        """Cases of the data sets ``tissue`` and ``lesion``, each with one label.

        A case with labels of both kinds is taken for its tissues if it is healthy, and else for its lesions.
        """
        sections = {}
        for name, part in (("training", self.split.training), ("validation", self.split.validation)):
            sections[name] = []
            for case in part:
                first = ("tissue", "lesion") if case.get("healthy") is True else ("lesion", "tissue")
                dataset = case.get("dataset") or next((n for n in first if TARGETS[n].key in case), None)
                if dataset in TARGETS and TARGETS[dataset].label_of(case):
                    sections[name].append(self._with_label(case, TARGETS[dataset]) | {"dataset": dataset})
        missing = {"tissue", "lesion"} - {case["dataset"] for case in sections["training"]}
        if missing or not sections["validation"]:
            what = f"the data set {missing.pop()}" if missing else "these data sets to validate with"
            raise Unfit(f"there are no cases of {what}, expected labeled ones of the data sets tissue and lesion")
        return sections

    @staticmethod
    def _with_label(case: Case, target: Target) -> Case:
        return _plain(case) | {"label": target.label_of(case)}

    def images_of(self, case: Case, bundle: str) -> list[str | None]:
        """The images of a case that a bundle wants, in its order; None for one that it can do without.

        Raises:
            Unfit: if the datalist has no such sequence.
        """
        config = read_json(self.bundles / bundle / "configs" / "inference.json")
        image_of = dict(zip(self.sequences, case["image"], strict=True))
        missing = [s for s in config["sequences"] if s not in {*image_of, *config.get("optional_sequences", ())}]
        if missing:
            raise Unfit(f"there is no {missing[0]} among the images, which are {', '.join(self.sequences)}")
        return [image_of.get(sequence) for sequence in config["sequences"]]

    def write_cases(self, sections: Sections) -> Path:
        """A datalist of some cases, named by what is in it."""
        name = hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:12]
        path = self.folder / "datalists" / f"{name}.json"
        return write_datalist(path, dict(sections), {"sequences": list(self.sequences)})

    def cases_of(self, kind: str) -> Sections:
        """Cases of a kind that a stage names, of :data:`catalog.description.KINDS`."""
        if kind == "any":
            return self.labeled(some=True)
        chosen = {
            "unlabeled": self.unlabeled,
            "healthy": self.healthy,
            "labeled": self.labeled,
            "drawn": self.labeled,
            "data sets": self.by_dataset,
        }
        return chosen[kind]()

    # steps

    def prepare(self, bundle: str, inference: Inference, stage: Stage | None) -> dict[str, Any]:
        """Options of an inference with weights of this trial, for which what is needed is trained."""
        if stage is None:
            return {}
        options: dict[str, Any] = {inference.weights[0]: self.result_of(bundle, stage)}
        if inference.told:
            source = self.labeled()["training"][0]
            scan = (self.images_of(source, bundle)[0], source["label"])
            options |= dict(zip(inference.told, scan, strict=True))
        return options

    def result_of(self, bundle: str, step: Stage | Prediction) -> Path:
        """The file that a step writes for a later one; what it needs itself comes first, and nothing is done twice."""
        if isinstance(step, Prediction):
            layers = step.inference.layers
            options = self.prepare(bundle, step.inference, step.by)
            options |= self.calibrate(bundle, layers, options)
            masks = self.predict(bundle, [*layers, *step.layers], {step.section: self.patients()}, **options)
            return masks / Path(step.writes).name
        given = {option: self.result_of(bundle, source) for option, source in step.given.items()}
        lists = {option: self.cases_of(kind) for option, kind in step.datalists.items()}
        return self.train(bundle, step, lists, **step.options, **given) / step.writes

    def train(self, bundle: str, stage: Stage, datalists: Mapping[str, Sections], **options: Any) -> Path:
        """Train, unless that is done; return the folder of the weights.

        Args:
            bundle: name of the bundle.
            stage: its configs and name.
            datalists: option -> the cases that it lists.
            options: entries of the configs to replace.
        """
        folder = self.folder / bundle / "_".join([stage.configs[-1], *([stage.name] if stage.name else [])])
        options = {option: self.write_cases(cases) for option, cases in datalists.items()} | options
        options |= {"seed": self.seed, "ckpt_dir": folder / "models", "output_dir": folder / "run"}
        self.step(folder, bundle, stage.configs, options)
        return folder / "models"

    def predict(
        self, bundle: str, layers: Sequence[str], cases: Sections, folder: Path | None = None, **options: Any
    ) -> Path:
        """Masks, and maps where the method has them, unless they are there; return their folder.

        ``cases.json`` in it says what the files of a case are called, and which cases failed.
        """
        section = next(iter(cases))
        folder = folder or self.folder / bundle / "_".join([*layers, section])
        options = {"datalist_file": self.write_cases({section: cases[section]}), "output_dir": folder, **options}
        options |= {"keep_going": True} | without_page(self.bundles / bundle, ["inference", *layers], failing=False)

        def keep(workflow: Any) -> None:
            parser = workflow.parser
            content = {
                "names": {case["case"]: case["name"] for case in parser.get_parsed_content("datalist")},
                "failures": parser.get_parsed_content("evaluator").failures,
                "threshold": parser.get_parsed_content("threshold") if "threshold" in parser else None,
                "threshold_source": (
                    parser.get_parsed_content("threshold_source") if "threshold_source" in parser else None
                ),
            }
            write_json(folder / "cases.json", content)

        self.step(folder, bundle, ["inference", *layers], options, keep)
        return folder

    def calibrate(self, bundle: str, layers: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
        """Threshold of the largest Dice on the validation cases, as options of inference; none without a threshold."""
        configs = [self.bundles / bundle / "configs" / f"{name}.json" for name in ("inference", *layers)]
        has_threshold = any("threshold" in read_json(config) for config in configs)
        if not has_threshold or not self.target.lesions:
            return {}
        validation = {"validation": self.labeled()["validation"]}
        folder = self.predict(bundle, layers, validation, **options)

        def find() -> dict[str, Any]:
            config = read_json(configs[0])
            optional = config.get("optional_sequences", ())
            cases = Datalist(self.write_cases(validation)).cases(config["sequences"], optional_sequences=optional)
            failed = read_json(folder / "cases.json")["failures"]
            cases = [case for case in cases if case["name"] not in failed]
            check_cases(cases, "best_dice")
            found = calibrate(cases, folder, "best_dice", data=f"validation of fold {self.split.number}")
            return {"threshold": found.threshold, "threshold_source": found.source}

        made_from = {f"label of {case['case']}": Path(case["label"]) for case in validation["validation"]}
        return done_once(folder / "threshold.json", {"predictions": folder / "done.json", **made_from}, find)

    def step(
        self,
        folder: Path,
        bundle: str,
        configs: Sequence[str],
        options: dict[str, Any],
        keep: Callable[[Any], None] = lambda workflow: None,
    ) -> None:
        """Run configs whose outputs go to a folder, unless ``done.json`` there says that just this was done.

        What was begun with other settings is removed, what was begun with these is gone on with.

        Args:
            folder: of the outputs; what is in it is removed if something else was done there.
            bundle: name of the bundle.
            configs: a complete config and the layers on it.
            options: entries of the configs to replace.
            keep: called with the workflow after its run.
        """
        extra = [self.options.get(f"{bundle}/{config}", {}) for config in configs]
        given = {key: value for part in extra for key, value in part.items()}
        entries = options | self.device | {key: Entry(value) for key, value in given.items()}

        def run() -> dict[str, float]:
            logger.info("%s: %s", bundle, ", ".join(configs))
            start = time.monotonic()
            workflow = open_configs(self.bundles / bundle, list(configs), logging_file=False, **entries)
            shared = None if configs[0].startswith("train") else self.outputs.share(workflow)
            workflow.run()
            workflow.finalize()
            keep(workflow)
            saved = shared.saved_seconds if shared else 0.0
            return {"seconds": round(time.monotonic() - start + saved, 1)}

        made_from = self._made_from(bundle, configs, options | self.device | given)
        done = done_once(folder / "done.json", made_from, run, lambda: shutil.rmtree(folder))
        self.seconds[str(folder)] = done["seconds"]

    def _made_from(self, bundle: str, configs: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
        """The configs and options, and the files that they name: of the cases, and of weights."""
        root = self.bundles / bundle
        made_from = {name: value for name, value in options.items() if name not in ("ckpt_dir", "output_dir")}
        made_from |= {f"{name}.json": root / "configs" / f"{name}.json" for name in ("metadata", *configs)}
        if not configs[0].startswith("train") and not any("weights" in name or "handlers" in name for name in options):
            made_from |= {path.name: path for path in sorted((root / "models").glob("*.pt"))}
        for name, value in options.items():
            if name.endswith("datalist_file") and isinstance(value, Path):
                made_from |= {f"{name}: {place}": file for place, file in _listed_files(value).items()}
        return made_from


def _listed_files(datalist: Path) -> dict[str, Path]:
    """The files that a datalist names, by their places in it."""
    found = {}
    for section, cases in read_json(datalist, kind=dict).items():
        for number, case in enumerate(case for case in cases if isinstance(case, dict)):
            for key, value in case.items():
                paths = [datalist.parent / path for path in ensure_tuple(value) if isinstance(path, str)]
                found |= {f"{section} {number}, {key} {f.name}": f for f in paths if f.is_file()}
    return found


def _plain(case: Case) -> Case:
    """A case without its labels."""
    return {key: case[key] for key in _KEPT if key in case}
