"""Make the shipped weights: ``python scripts/train_release.py uad_autoencoder``.

Phantoms, the bundle's own training configs, thresholds from validation phantoms; with ``--extra_data`` also real scans
and the anatomy of real people. What is done is not done again, so a broken-off run goes on when the command is given
again. On a GPU, give it more to do: ``--minutes 25 --effort 4 --num_workers 8``.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.data import list_cases, subject_of, write_datalist
from common.errors import InputError
from common.files import Alone, done_once, read_json, write_atomically
from common.options import types as t
from common.scans import on_grid_of
from phantom import Grid, suspected_lesions
from phantom.cohort import implant_cohort, make_cohort, read_extra_data
from running.command_line import run_command

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
T1W_COPIES = {"training": 6, "validation": 4}  # of every T1 scan of a person without lesions
SUSPECTING = {"ace_multitask": ("T1w", "FLAIR"), "uad_autoencoder": ("FLAIR",)}  # bundles that say where lesions are
SUSPECTED = 0.3
SECTIONS = ("training", "validation")
SAE_STEPS = 210
MAX_WEIGHTS_BYTES = 16 * 2**20


def main(
    bundle: t.Text = "uad_autoencoder",
    output_dir: t.Folder = "release",
    extra_data: t.File | None = None,
    seed: t.Seed = 2019,
    amp: t.Flag = True,
    minutes: t.Minutes | None = None,
    effort: t.Positive = 1.0,
    num_workers: t.Whole = 0,
    from_shipped: t.Flag = False,
) -> None:
    """Train the weights that the bundle ships, and write them and their thresholds into the bundle.

    Args:
        bundle: one of those in RECIPES, as uad_autoencoder.
        output_dir: phantoms (about 2 GB, the same for all bundles) and states of the trainings.
        extra_data: JSON with tissue maps and lesion masks of real people to make the phantoms from; its form is
            described at phantom.cohort.make_cohort. Without it they are made from the template. It may also have
            ``"tissue_scans": {"training": [{"T1w": path, "label": path}], "validation": [...]}``, real T1 images with
            tissue maps, for ace_multitask; sae_segmentation takes the images without the maps, deepatlas_joint one map,
            and diffusion_recon_unet implants lesions by the maps. And ``"scans": {"training": [{"FLAIR": path, "T1w":
            path, "brain_mask": path, "world_to_mni": 4 x 4, "subject": name}], "validation": [...]}``, real scans
            without labels, in which uad_autoencoder, ace_multitask and diffusion_recon_unet implant lesions; T1w,
            brain_mask and world_to_mni may be left out. And ``"lesion_scans": {"training": [{"FLAIR": path, "T1w":
            path, "brain_mask": path, "lesion": path, "subject": name}], "validation": [...]}``, scans with drawn
            lesions, for the last stage of uad_autoencoder and ace_multitask. And ``"t1w_scans": {"training": [{"T1w":
            path, "brain_mask": path, "subject": name}], "validation": [...]}``, T1 scans of further scanners without
            labels, for sae_segmentation.
        seed: of phantoms and trainings.
        amp: networks in bfloat16.
        minutes: for all trainings together, each has its share; phantoms and thresholds are not counted. A training
            that time has ended goes on when the command is given again. None for no limit.
        effort: factor on the number of epochs of all trainings.
        num_workers: processes that make training patches; 0 makes them between the steps, which starves a GPU.
        from_shipped: of trainings in several stages run the last one alone, from the weights that the bundle ships;
            for uad_autoencoder and ace_multitask. The weights are kept in output_dir when they are first asked for.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if bundle not in RECIPES:
        raise InputError(f"bundle is {bundle!r}, expected one of {', '.join(RECIPES)}")
    for name, number in (("minutes", minutes), ("effort", effort)):
        if number is not None and not number > 0:
            raise InputError(f"{name} is {number}, expected a number above 0")
    release = Release(bundle, Path(output_dir).resolve(), extra_data, seed, amp, minutes, effort, num_workers)
    if from_shipped and bundle not in ("uad_autoencoder", "ace_multitask"):
        raise InputError(f"from_shipped is true for {bundle}, expected it for uad_autoencoder or ace_multitask")
    release.from_shipped = from_shipped
    with Alone(release.folder):
        RECIPES[bundle](release)


@dataclass
class Release:
    """What the recipes share: cohorts, trainings that are done once, thresholds. Arguments as of :func:`main`."""

    bundle: str
    folder: Path
    extra_data: str | None
    seed: int
    amp: bool
    minutes: float | None
    effort: float
    num_workers: int
    from_shipped: bool = False
    trained: set[str] = field(default_factory=set)  # by this call: what follows them is trained anew

    @property
    def models(self) -> Path:
        """Where the bundle has its weights."""
        return ROOT / "bundles" / self.bundle / "models"

    @cached_property
    def extra(self) -> dict[str, Any]:
        """The extra data, every path absolute."""
        if self.extra_data is None:
            return {}
        path = Path(self.extra_data)

        def absolute(item: dict) -> dict:
            return {
                key: str((path.parent / value).resolve()) if key != "subject" and isinstance(value, str) else value
                for key, value in item.items()
            }

        return {
            kind: {section: [absolute(item) for item in items] for section, items in sections.items()}
            for kind, sections in read_json(path, "extra data").items()
        }

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
        """Datalist of a cohort that is made once; of other settings than these it is made anew."""
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
        if not self.scans("scans", section):
            return []
        options: dict[str, Any] = {"seed": self.seed, "prefix": "i"}
        if varied:
            options = {"seed": self.seed + 2, "prefix": "iv", "styles": STYLES}
        copies = VARIED_COPIES if varied else COPIES

        def implant(folder: Path) -> Path:
            scans = self._with_tissues({part: self.scans("scans", part) for part in SECTIONS})
            masks = read_extra_data(self.extra_data)["lesions"]
            return implant_cohort(folder, scans, copies, masks, **options)

        made_from = {"extra_data": Path(self.extra_data), "copies": copies, **options}
        datalist = self._cohort_of("implanted_varied" if varied else "implanted", made_from, implant)
        return list_cases(datalist_file=datalist, section=section)

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
        made_from = {f"weights of {b}": ROOT / "bundles" / b / "models" / "model.pt" for b in SUSPECTING}
        for part, items in scans.items():
            for number, item in enumerate(items):
                files = {key: Path(value) for key, value in item.items() if isinstance(value, str) and key != "subject"}
                made_from |= {f"{key} of {part} {number}": file for key, file in files.items()}
        return done_once(self.folder / "suspected" / "scans.json", made_from, lambda: self._find_tissues(scans))

    def _find_tissues(self, scans: dict[str, list[dict]]) -> dict[str, list[dict]]:
        items = [item for section in scans.values() for item in section]
        maps = {}
        for bundle, sequences in SUSPECTING.items():
            folder = self.folder / "suspected" / bundle
            cases = [{"image": [item.get(s) for s in sequences]} for item in items]
            cases = [c | {k: i[k] for k in ("brain_mask",) if k in i} for c, i in zip(cases, items, strict=True)]
            datalist = write_datalist(folder / "cases.json", {"scans": cases}, {"sequences": list(sequences)})
            config = ROOT / "bundles" / bundle / "configs" / "inference.json"
            options = {"datalist_file": datalist, "output_dir": folder, "mirror": False}
            _call("-m", "monai.bundle", "run", "--config_file", config, **options)
            cases = list_cases(datalist_file=datalist, sequences=sequences, optional_sequences=["T1w"])
            maps[bundle] = [folder / case["name"] for case in cases]
        for item, of_ace, of_uad in zip(items, maps["ace_multitask"], maps["uad_autoencoder"], strict=True):
            tissues, probability, other = (
                np.asarray(nib.load(f"{stem}_{kind}.nii.gz").dataobj)
                for stem, kind in ((of_ace, "seg"), (of_ace, "prob"), (of_uad, "prob"))
            )
            grid = Grid(tissues.shape, nib.load(item["FLAIR"]).affine)
            suspected = suspected_lesions(np.maximum(probability, other), tissues, grid, SUSPECTED)
            item["tissues"], item["suspected"] = f"{of_ace}_seg.nii.gz", f"{of_uad}_suspected.nii.gz"
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
            after: names of the trainings whose weights it starts from; if one of them was run, it begins anew.
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


def _uad_autoencoder(release: Release) -> None:
    """The auto-encoder, and the U-Net in two stages: the second one sees lesions of every size, and drawn ones."""
    if release.from_shipped:
        start = release.shipped()
    else:
        start = _uad_of_plain_lesions(release)
        release.ship("autoencoder", "autoencoder.pt")
    names = {"image": "FLAIR", "label": "lesion", "brain_mask": "brain_mask", "subject": "subject"}
    sections = {
        part: [
            *release.cases((*VARIED, "varied_healthy"), part),
            *release.implanted(part, varied=True),
            *({key: item[name] for key, name in names.items()} for item in release.scans("lesion_scans", part)),
        ]
        for part in SECTIONS
    }
    options = {"datalist_file": write_datalist(release.folder / "uad_varied.json", sections), "initial_weights": start}
    options |= {"lesion_patches": 1, "brain_patches": 2, "zoom": [0.6, 2.0], "graded_labels": True, "gamma": [0.7, 1.4]}
    release.train("varied", "train", 0.4, 60, ["unet"], learning_rate=5e-4, **options)
    release.ship("varied", "model.pt")
    datalist = write_datalist(release.folder / "uad_calibration.json", {"validation": release.calibration()})
    layers = ("inference_scales.json", "inference_residual.json", "inference_threshold.json")
    release.calibrate(datalist, layers=(None, *layers))


def _uad_of_plain_lesions(release: Release) -> Path:
    """The auto-encoder and the first stage of the U-Net; returns the file of the latter's weights."""
    release.train(
        "autoencoder",
        "train_autoencoder",
        0.1,
        datalist_file=release.cohort("healthy"),
        max_epochs=12,
        val_interval=2,
        gdl_first_epoch=4,
        slice_step=3,
    )
    patients = {part: release.cases(cohorts, part) + release.implanted(part) for part, cohorts in PATIENTS.items()}
    datalist = write_datalist(release.folder / "patients.json", patients)
    # mostly patches from anywhere in the brain, so that probabilities mean something outside of lesions too; the last
    # weights: what validates is synthetic or implanted, too little to choose by
    release.train("unet", "train", 0.5, 200, datalist_file=datalist, lesion_patches=1, brain_patches=3)
    return release.weights("unet")


def _ace_multitask(release: Release) -> None:
    """Tissue from healthy phantoms, and from real T1 scans without FLAIR if there are any; lesions from patients.

    The first two stages see lesions that are dark on T1w as they are bright on FLAIR, the last one also lesions that
    T1w hardly shows, larger ones, and drawn ones.
    """
    start = release.shipped() if release.from_shipped else _ace_of_plain_lesions(release)
    cases = {
        part: {
            "lesion": release.cases(VARIED, part),
            "implanted": release.implanted(part, varied=True),
            "drawn": release.scans("lesion_scans", part),
        }
        for part in SECTIONS
    }
    datalist = _ace_datalist(release, "ace_varied.json", ("varied_healthy",), cases)
    options = {"datalist_file": datalist, "initial_weights": start}
    # T1w alone shows few of these lesions, FLAIR alone all of them
    options |= {"channel_dropout": [0.2, 0.05], "channel_changes": 0.2, "background_patches": 0.5}
    options |= {"patch_size": [64, 64, 64], "patches_per_volume": 1, "learning_rate": 5e-4}
    release.train("varied", "train", 0.4, 150, ["finetune"], **options)
    release.ship("varied", "model.pt")
    sections = {"validation": _as_set("lesion", "lesion", release.calibration())}
    release.calibrate(write_datalist(release.folder / "ace_calibration.json", sections))


def _ace_of_plain_lesions(release: Release) -> Path:
    """The first two stages; returns the file of their weights."""
    cases = {
        part: {"lesion": release.cases(patients, part), "implanted": release.implanted(part)}
        for part, patients in PATIENTS.items()
    }
    # the last weights, not the best ones on phantoms of odd contrasts, which are a matter of luck
    options = {"datalist_file": _ace_datalist(release, "ace.json", ("healthy",), cases), "channel_dropout": 0.15}
    release.train("train", "train", 0.4, 400, **options)
    # then mostly patches from anywhere in the brain, so that probabilities mean something outside of lesions too
    options |= {"background_patches": 0.75, "initial_weights": release.weights("train")}
    release.train("finetune", "train", 0.2, 300, ["train"], **options)
    return release.weights("finetune")


def _ace_datalist(release: Release, file: str, healthy: Sequence[str], cases: dict[str, dict[str, list[dict]]]) -> Path:
    """Datalist of the cases with lesion masks, section -> data set -> cases, and of the tissue set.

    A data set of its own is drawn as often as each of the others.
    """
    tables = read_json(ROOT / "bundles" / "ace_multitask" / "configs" / "train.json")["label_sets"]
    sections = {}
    for section, sets in cases.items():
        every = slice(None) if section == "training" else slice(None, None, 2)  # whole volumes take their time
        sections[section] = [
            *_as_set("tissue", "tissues", release.cases(healthy, section)[every]),
            *(case for name, found in sets.items() for case in _as_set(name, "lesion", found[every])),
            *(
                {"image": [item["T1w"], None], "label": item["label"], "dataset": "tissue"}
                for item in release.scans("tissue_scans", section)
            ),
        ]
        for name in sets:
            tables["datasets"].setdefault(name, tables["datasets"]["lesion"])
    return write_datalist(release.folder / file, sections, {"label_sets": tables})


def _sae_segmentation(release: Release) -> None:
    """T1 scans without labels: real ones, of further scanners too, or, where there are none, healthy phantoms."""
    sections = _t1w(release, labels=False)
    for section, cases in sections.items():
        for item in release.scans("t1w_scans", section):
            cases.append({"image": item["T1w"]} | {key: item[key] for key in ("brain_mask", "subject") if key in item})
    # the last weights; longer, the evidence goes on rising, but the Dice on labelled scans does not
    datalist = write_datalist(release.folder / "sae.json", sections)
    steps = (len(sections["training"]) + 1) // 2  # of an epoch, two scans each
    release.train("train", "train", 1.0, datalist_file=datalist, max_epochs=round(SAE_STEPS / steps))
    release.ship("train", "model.pt")


def _deepatlas_joint(release: Release) -> None:
    """T1 scans, of which the first one is labelled: real ones, or, where there are none, healthy phantoms."""
    options = {
        "datalist_file": write_datalist(release.folder / "deepatlas.json", _t1w(release, labels=True)),
        "labelled_cases": 1,
    }
    release.train("registration", ["train", "train_registration"], 0.3, 12, val_interval=2, **options)
    start = {"registration_weights": release.weights("registration", "registration.pt")}
    segmentation = ["train", "train_segmentation"]
    release.train("segmentation", segmentation, 0.3, 10, ["registration"], val_interval=2, **options, **start)
    # registration follows anatomy rather than images, smoother than alone, or it folds
    start |= {"registration_steps": 200, "registration_rate": 1e-3, "smoothness_weight": 1.5, "val_interval": 1}
    taught = {"segmentation_weights": release.weights("segmentation"), "anatomy_weight": 5, "supervised_weight": 15}
    release.train("joint", "train", 0.2, 8, ["registration", "segmentation"], **options, **start, **taught)
    # not shipped: registration for as many steps without a teacher, to see what the teacher is worth; it need not be
    # smoother than alone, since it does not fold
    control = ["train", "train_registration"]
    release.train("control", control, 0.1, 8, ["registration"], **options, **start)
    start |= {"smoothness_weight": 1}
    release.train("control_smoothness_1", control, 0.1, 8, ["registration"], **options, **start)
    release.ship("joint", "registration.pt", "model.pt")


def _diffusion_recon_unet(release: Release) -> None:
    """Stage 1 from healthy phantoms, and from real T1 scans if there are any; stage 2 from lesions, and painted."""
    real = {part: [{"image": item["T1w"]} for item in release.scans("tissue_scans", part)] for part in SECTIONS}

    def t1w(cases: Sequence[dict]) -> list[dict]:
        keys = ("brain_mask", "subject")
        return [
            {"image": case["T1w"], "label": case["lesion"]} | {key: case[key] for key in keys}
            for case in cases
            if "T1w" in case
        ]

    healthy = write_datalist(
        release.folder / "diffusion_healthy.json",
        {part: real[part] + t1w(release.cases(("healthy",), part)) for part in SECTIONS},
    )
    implanted = {part: t1w(release.implanted(part) + release.implanted_t1w(part)) for part in SECTIONS}
    patients = write_datalist(
        release.folder / "diffusion_patients.json",
        {part: t1w(release.cases(cohorts, part)) + implanted[part] for part, cohorts in PATIENTS.items()},
    )
    release.train(
        "stage1",
        "train_diffusion",
        0.6,
        datalist_file=healthy,
        max_epochs=24,
        val_interval=4,
        slice_step=2,
        learning_rate=8e-4,
    )
    # the last weights: whole volumes take their time
    release.train(
        "stage2",
        "train",
        0.4,
        datalist_file=patients,
        healthy_datalist_file=healthy,
        diffusion_weights=release.weights("stage1", "diffusion.pt"),
        max_epochs=80,
        after=["stage1"],
        learning_rate=2e-3,
    )
    release.ship("stage1", "statistics.json")
    release.ship("stage2", "model.pt")  # holds stage 1 too
    cases = t1w(release.cases(("plain",), "validation")) + implanted["validation"]
    datalist = write_datalist(release.folder / "diffusion_calibration.json", {"validation": cases})
    release.calibrate(datalist, layers=(None, "inference_unet.json"))
    # on all cases its best threshold is one that takes nearly the whole brain
    release.calibrate(release.cohort("plain"), layers=("inference_threshold.json",))
    # knows no label: what it calls anomaly in people who are healthy
    people = [case | {"healthy": True} for case in real["validation"] or t1w(release.cases(("healthy",), "validation"))]
    release.calibrate(
        write_datalist(release.folder / "diffusion_healthy_calibration.json", {"validation": people}),
        *("--criterion", "false_positive_rate", "--rate", 0.01),
        layers=("inference_reconstruction.json",),
    )


def _t1w(release: Release, labels: bool) -> dict[str, list[dict]]:
    """Section -> real T1 scans, or, where there are none, healthy phantoms; with tissue maps or without."""
    found = {}
    for section in SECTIONS:
        real = release.scans("tissue_scans", section)
        cases = [{"image": item["T1w"], "label": item["label"]} for item in real] or [
            {"image": case["T1w"], "label": case["tissues"]} | {key: case[key] for key in ("brain_mask", "subject")}
            for case in release.cases(("healthy",), section)
        ]
        found[section] = [{key: case[key] for key in case if labels or key != "label"} for case in cases]
    return found


def _as_set(dataset: str, label: str, cases: Sequence[dict]) -> list[dict]:
    """Cases of ace_multitask: both sequences, one of the label maps, and what data set it is of."""
    return [
        {"image": [case.get("T1w"), case["FLAIR"]], "label": case[label], "dataset": dataset}
        | {key: case[key] for key in ("brain_mask", "subject")}
        for case in cases
    ]


RECIPES: dict[str, Callable[[Release], None]] = {
    "uad_autoencoder": _uad_autoencoder,
    "ace_multitask": _ace_multitask,
    "sae_segmentation": _sae_segmentation,
    "deepatlas_joint": _deepatlas_joint,
    "diffusion_recon_unet": _diffusion_recon_unet,
}


def _finished(state: Path, epochs: int) -> bool:
    """Whether a training has come to its last epoch; a time limit may have ended it before."""
    return state.is_file() and torch.load(state, weights_only=True)["epoch"] >= epochs


def _call(*arguments: object, **options: object) -> None:
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    subprocess.run([sys.executable, *map(str, arguments), *flags], check=True, cwd=ROOT)


if __name__ == "__main__":
    run_command(main)
