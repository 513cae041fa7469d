"""What the recipes of the shipped weights share: cohorts, trainings that are done once, thresholds."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import torch

from catalog import BUNDLES, describe, descriptions, load, refuse_unknown
from common.data import list_cases, subject_of, write_datalist
from common.errors import InputError
from common.files import Alone, done_once, read_json, write_atomically
from common.options import types as t
from common.scans import on_grid_of, open_scan, read_scan
from phantom import Grid, suspected_lesions
from phantom.cohort import implant_cohort, make_cohort, read_extra_data

ROOT = Path(__file__).resolve().parents[2]

logger = logging.getLogger(__name__)

# cohort -> scanner, pathology, subjects for training and validation; seeds are counted from the release's in this order
COHORTS = {
    "mixed": ("mixed", "ms", 40, 5),
    "plain": ("A", "ms", 24, 3),
    "healthy": ("mixed", "healthy", 20, 4),
    "further": ("mixed", "ms", 60, 0),
    "varied": ("varied", "ms", 8, 1),
    "confluent": ("varied", "ms_confluent", 8, 1),
    "varied_healthy": ("varied", "healthy", 4, 1),
    "measured": ("A", "ms", 0, 2),
}
PATIENTS = {"training": ("mixed", "plain", "further"), "validation": ("mixed", "plain")}
# copies of every real scan with other implanted lesions, and how sure networks are of a lesion that it has itself
COPIES = {"training": 12, "validation": 4}
# what the last stage of the lesion networks learns from: lesions that T1w shows as much as it likes, many of them large
VARIED = ("varied", "confluent")
STYLES = (
    {"t1w_contrast": (0.0, 0.2), "variation": 0.25},
    {"t1w_contrast": (0.2, 1.15), "variation": 0.25},
    {"t1w_contrast": (0.0, 1.15), "variation": 0.25, "pathology": "ms_confluent"},
)
VARIED_COPIES = {"training": 6, "validation": 3}
# copies of every real scan without lesions: suspected ones filled, and none implanted
FILLED = ({"pathology": "healthy"},)
FILLED_COPIES = {"training": 2, "validation": 1}
T1W_COPIES = {"training": 6, "validation": 4}  # of every T1 scan of a person without lesions
SUSPECTED = 0.3
SECTIONS = ("training", "validation")
MAX_WEIGHTS_BYTES = 16 * 2**20


def train_release(
    bundle: t.Text,
    output_dir: t.Folder = "release",
    extra_data: t.File | None = None,
    seed: t.Seed = 2019,
    amp: t.FlagOrAuto = "auto",
    minutes: t.Minutes | None = None,
    effort: t.Positive = 1.0,
    num_workers: t.SmallWhole = 0,
    from_shipped: t.Flag = False,
) -> None:
    """Train the weights that the bundle ships, and write them and their thresholds into the bundle.

    Args:
        bundle: name of a bundle with a release.py.
        output_dir: phantoms (about 2 GB, the same for all bundles) and states of the trainings.
        extra_data: JSON with tissue maps and lesion masks of real people to make the phantoms from; its form is
            described at phantom.cohort.make_cohort. Without it they are made from the template. It may also have
            ``"tissue_scans": {"training": [{"T1w": path, "label": path}], "validation": [...]}``, real T1 images with
            tissue maps; a recipe takes the images, one map, or all of them. And ``"scans": {"training": [{"FLAIR":
            path, "T1w": path, "brain_mask": path, "world_to_mni": 4 x 4, "subject": name}], "validation": [...]}``,
            real scans without labels, to implant lesions in; T1w, brain_mask and world_to_mni may be left out. And
            ``"lesion_scans": {"training": [{"FLAIR": path, "T1w": path, "brain_mask": path, "lesion": path, "subject":
            name}], "validation": [...]}``, scans with drawn lesions. And ``"t1w_scans": {"training": [{"T1w": path,
            "brain_mask": path, "subject": name}], "validation": [...]}``, T1 scans of further scanners, no labels.
        seed: of phantoms and trainings.
        amp: networks in bfloat16; auto where the processor computes in it by itself.
        minutes: for all trainings together, each has its share; phantoms and thresholds are not counted. A training
            that time has ended goes on when the command is given again. None for no limit.
        effort: factor on the number of epochs of all trainings.
        num_workers: processes that make training patches; 0 makes them between the steps, which starves a GPU.
        from_shipped: of trainings in several stages run the last one alone, from the weights that the bundle ships, for
            a recipe that can. These weights are kept in output_dir when they are first asked for.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    recipe = recipe_of(bundle)
    if from_shipped and not getattr(recipe, "LAST_STAGE_ALONE", False):
        raise InputError(f"from_shipped is true for {bundle}, expected it for a recipe with a last stage of its own")
    run = Release(bundle, Path(output_dir).resolve(), extra_data, seed, amp, minutes, effort, num_workers, from_shipped)
    _ = run.extra  # its files are looked for before hours of work
    with Alone(run.folder):
        recipe.release(run)


@dataclass
class Release:
    """What recipes share: cohorts, trainings that are done once, thresholds; arguments as of ``train_release.py``."""

    bundle: str
    folder: Path
    extra_data: str | None
    seed: int
    amp: bool | str
    minutes: float | None
    effort: float
    num_workers: int
    from_shipped: bool = False
    trained: set[str] = field(default_factory=set)  # by this call: what follows them is trained again

    @property
    def models(self) -> Path:
        """Where the bundle has its weights."""
        return ROOT / "bundles" / self.bundle / "models"

    @cached_property
    def extra(self) -> dict[str, Any]:
        """The extra data, every path absolute.

        Raises:
            InputError: if the JSON has another form, or a file that it names does not exist.
        """
        if self.extra_data is None:
            return {}
        path = Path(self.extra_data)

        def absolute(key: str, value: Any) -> Any:
            if key == "subject" or not isinstance(value, str):
                return value
            file = (path.parent / value).resolve()
            if not file.is_file():
                raise InputError(f"{file} in {path} does not exist, expected a NIfTI file")
            return str(file)

        try:
            return {
                kind: {
                    part: [{key: absolute(key, value) for key, value in item.items()} for item in items]
                    for part, items in parts.items()
                }
                for kind, parts in read_json(path, "extra data", dict).items()
            }
        except (AttributeError, TypeError) as e:
            raise InputError(f"{path} is not understood ({e}), expected kinds of data, each with lists of cases") from e

    def cases(self, cohorts: Sequence[str], section: str) -> list[dict]:
        """Cases of cohorts, which are made when they are first asked for."""
        return [case for name in cohorts for case in list_cases(datalist_file=self.cohort(name), section=section)]

    def scans(self, kind: str, section: str) -> list[dict]:
        return self.extra.get(kind, {}).get(section, [])

    def cohort(self, name: str) -> Path:
        """Datalist of a cohort."""
        scanner, pathology, training, validation = COHORTS[name]
        options = {
            "groups": {pathology: (training, validation, 0)},
            "scanner": scanner,
            "spacing": 1.0,
            "sequences": ("FLAIR", "T1w"),
            "seed": self.seed + list(COHORTS).index(name),
            "prefix": name.replace("_", ""),
            "extra_data": None if self.extra_data is None else Path(self.extra_data),
        }
        return self._cohort_of(name, options, lambda folder: make_cohort(folder, **options))

    def _cohort_of(self, name: str, made_from: Mapping[str, Any], make: Callable[[Path], Path]) -> Path:
        """Datalist of a cohort that is made once; of other settings than these it is made again."""
        folder, record = self.folder / name, self.folder / f"{name}.json"
        if not (folder / "datalist.json").is_file():
            record.unlink(missing_ok=True)

        def work() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            logger.info("making the cohort %s", name)
            make(folder)

        done_once(record, made_from, work)
        return folder / "datalist.json"

    def implanted(self, section: str, varied: bool = False) -> list[dict]:
        """Real scans with implanted lesions, of STYLES if varied; shipped weights say where they have some already."""
        if varied:
            return self._implanted("implanted_varied", section, VARIED_COPIES, self.seed + 2, "iv", styles=STYLES)
        return self._implanted("implanted", section, COPIES, self.seed, "i")

    def filled(self, section: str) -> list[dict]:
        """Real scans whose suspected lesions are filled with white matter, as scans of healthy people."""
        return self._implanted("filled", section, FILLED_COPIES, self.seed + 3, "f", styles=FILLED)

    def _implanted(
        self, name: str, section: str, copies: Mapping[str, int], seed: int, prefix: str, **styles: Any
    ) -> list[dict]:
        if not self.scans("scans", section):
            return []
        options = {"seed": seed, "prefix": prefix, **styles}

        def implant(folder: Path) -> Path:
            scans = self._with_tissues({part: self.scans("scans", part) for part in SECTIONS})
            masks = read_extra_data(self.extra_data)["lesions"]
            return implant_cohort(folder, scans, copies, masks, **options)

        made_from = {"extra_data": Path(self.extra_data), "copies": copies, **options}
        return list_cases(datalist_file=self._cohort_of(name, made_from, implant), section=section)

    def implanted_t1w(self, section: str) -> list[dict]:
        """T1 scans of people without lesions, by their tissue maps, with implanted lesions."""
        if not self.scans("tissue_scans", section):
            return []

        def implant(folder: Path) -> Path:
            scans = {
                part: [
                    {"T1w": item["T1w"], "tissues": item["label"], "subject": subject_of({"image": item["T1w"]})}
                    for item in self.scans("tissue_scans", part)
                ]
                for part in SECTIONS
            }
            masks, options = read_extra_data(self.extra_data)["lesions"], {"seed": self.seed + 1, "prefix": "t"}
            return implant_cohort(folder, scans, T1W_COPIES, masks, sequence="T1w", **options)

        made_from = {"extra_data": Path(self.extra_data), "seed": self.seed, "copies": T1W_COPIES}
        datalist = self._cohort_of("implanted_t1w", made_from, implant)
        return list_cases(datalist_file=datalist, sequences=("T1w",), section=section)

    def calibration(self) -> list[dict]:
        """Cases for thresholds of lesions: phantoms of the measured contrast, and real scans with implanted lesions."""
        return self.cases(("measured",), "validation") + self.implanted("validation", varied=True)

    def _with_tissues(self, scans: dict[str, list[dict]]) -> dict[str, list[dict]]:
        """The scans with files of their tissues and of their suspected lesions."""
        made_from = {f"weights of {b}": ROOT / "bundles" / b / "models" / "model.pt" for b in _suspecting()}
        for part, items in scans.items():
            for number, item in enumerate(items):
                files = {key: Path(value) for key, value in item.items() if isinstance(value, str) and key != "subject"}
                made_from |= {f"{key} of {part} {number}": file for key, file in files.items()}
        return done_once(self.folder / "suspected" / "scans.json", made_from, lambda: self._find_tissues(scans))

    def _find_tissues(self, scans: dict[str, list[dict]]) -> dict[str, list[dict]]:
        items = [item for section in scans.values() for item in section]
        maps = {}
        for bundle, sequences in _suspecting().items():
            folder = self.folder / "suspected" / bundle
            cases = [{"image": [item.get(s) for s in sequences]} for item in items]
            cases = [c | {k: i[k] for k in ("brain_mask",) if k in i} for c, i in zip(cases, items, strict=True)]
            datalist = write_datalist(folder / "cases.json", {"scans": cases}, {"sequences": list(sequences)})
            config = ROOT / "bundles" / bundle / "configs" / "inference.json"
            options = {"datalist_file": datalist, "output_dir": folder, "overwrite": True, "mirror": False}
            _call("-m", "monai.bundle", "run", "--config_file", config, **options)
            cases = list_cases(datalist_file=datalist, sequences=sequences, optional_sequences=["T1w"])
            maps[bundle] = [folder / case["name"] for case in cases]
        of_tissues = next(maps[name] for name in maps if any(m.target == "tissue" for m in describe(name).methods))
        for number, item in enumerate(items):
            tissues = read_scan(f"{of_tissues[number]}_seg.nii.gz", dtype=None)[0]
            probability = np.max([read_scan(f"{stems[number]}_prob.nii.gz")[0] for stems in maps.values()], axis=0)
            grid = Grid(tissues.shape, open_scan(item["FLAIR"]).affine)
            suspected = suspected_lesions(probability, tissues, grid, SUSPECTED)
            item["tissues"] = f"{of_tissues[number]}_seg.nii.gz"
            item["suspected"] = str(self.folder / "suspected" / f"{number}_suspected.nii.gz")
            image = on_grid_of(item["FLAIR"], suspected.astype(np.uint8))
            write_atomically(item["suspected"], lambda part, image=image: nib.save(image, part))
        return scans

    def train(
        self,
        name: str,
        configs: str | Sequence[str],
        share: float,
        max_epochs: int,
        after: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """One training, unless it is done.

        Args:
            name: of its folder.
            configs: a config, or one and layers on it.
            share: of the minutes, which is its own.
            max_epochs: before the effort is counted in.
            after: names of the trainings whose weights it starts from; if one of them was run, it starts over.
            options: entries of the config to replace.
        """
        folder = self._folder_of(name)
        epochs = max(1, round(max_epochs * self.effort))
        if self.trained & set(after):
            shutil.rmtree(folder, ignore_errors=True)
        if _finished(folder / "state.pt", epochs):
            return
        self.trained.add(name)
        names = [configs] if isinstance(configs, str) else configs
        logger.info("running %s.json of %s", names[-1], self.bundle)
        paths = [str(ROOT / "bundles" / self.bundle / "configs" / f"{config}.json") for config in names]
        options |= {"output_dir": folder, "ckpt_dir": folder / "models", "max_epochs": epochs}
        options |= {"seed": self.seed, "amp": self.amp, "num_workers": self.num_workers}
        options["val_interval"] = min(options.get("val_interval", epochs), epochs)
        if self.minutes is not None:
            options["max_minutes"] = self.minutes * share
        _call("-m", "monai.bundle", "run", "--config_file", paths, **options)

    def apply(self, name: str, config: str, datalist_file: Path) -> None:
        """Run a config that writes a file beside the weights and trains nothing, once; ``name`` is of its folder."""
        folder = self._folder_of(name)
        path = ROOT / "bundles" / self.bundle / "configs" / f"{config}.json"
        options = {"datalist_file": datalist_file, "ckpt_dir": folder / "models"}

        def work() -> None:
            logger.info("running %s.json of %s", config, self.bundle)
            _call("-m", "monai.bundle", "run", "--config_file", path, **options)

        done_once(folder / "done.json", {"datalist_file": datalist_file, "config": path}, work)

    def weights(self, name: str, file: str = "model.pt") -> Path:
        """What a training has written, in its own folder until it is shipped."""
        return self._folder_of(name) / "models" / file

    def shipped(self, file: str = "model.pt") -> Path:
        """What the bundle ships, a copy that stays when other weights are put there."""
        copy = self._folder_of("shipped") / file
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(copy, lambda part: shutil.copyfile(self.models / file, part))
        return copy

    def ship(self, name: str, *files: str) -> None:
        """Put files of a training into the bundle.

        Raises:
            InputError: if one is larger than may be shipped.
        """
        for file in files:
            source = self.weights(name, file)
            size = source.stat().st_size
            if size > MAX_WEIGHTS_BYTES:
                raise InputError(f"{source} has {size} bytes, expected at most {MAX_WEIGHTS_BYTES} for a shipped file")
            write_atomically(self.models / file, lambda part, source=source: shutil.copyfile(source, part))

    def _folder_of(self, name: str) -> Path:
        return self.folder / f"{self.bundle}_{name}"

    def calibrate(self, datalist: Path, *options: object, layers: Sequence[str | None] = (None,)) -> None:
        """Write the thresholds of the configs, from the validation cases of the list."""
        for layer in layers:
            flags = ["--layers", layer] if layer else []
            arguments = (self.bundle, "--write", *options, *flags)
            _call("scripts/calibrate_threshold.py", *arguments, datalist_file=datalist, section="validation")

    def t1w(self, labels: bool) -> dict[str, list[dict]]:
        """Section -> real T1 scans, or, where there are none, healthy phantoms; with tissue maps or without."""
        found = {}
        for section in SECTIONS:
            real = self.scans("tissue_scans", section)
            cases = [{"image": item["T1w"], "label": item["label"]} for item in real] or [
                {"image": case["T1w"], "label": case["tissues"]} | {key: case[key] for key in ("brain_mask", "subject")}
                for case in self.cases(("healthy",), section)
            ]
            found[section] = [{key: case[key] for key in case if labels or key != "label"} for case in cases]
        return found


def recipe_of(bundle: str) -> ModuleType:
    """``release.py`` of a bundle, whose ``release`` takes a :class:`Release`.

    Raises:
        InputError: if there is no such bundle, or it has no recipe.
    """
    refuse_unknown([bundle])
    if not (BUNDLES / bundle / "release.py").is_file():
        raise InputError(f"{bundle} has no release.py, expected the recipe of its weights there")
    return load(bundle, "release")


def _suspecting() -> dict[str, tuple[str, ...]]:
    """Bundles whose shipped weights say where a scan has lesions already -> sequences that they look at."""
    return {name: described.suspects_in for name, described in descriptions().items() if described.suspects_in}


def _finished(state: Path, epochs: int) -> bool:
    """Whether a training has come to its last epoch; a time limit may have ended it before."""
    return state.is_file() and torch.load(state, weights_only=True)["epoch"] >= epochs


def _call(*arguments: object, **options: object) -> None:
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    subprocess.run([sys.executable, *map(str, arguments), *flags], check=True, cwd=ROOT)
