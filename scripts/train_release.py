"""Make the shipped weights: ``python scripts/train_release.py uad_autoencoder``.

Phantoms, the bundle's own training configs, thresholds from the validation phantoms. What is done is not done again, so
a broken-off run goes on when the command is given again.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import fire

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.cohort import make_cohort
from common.data import list_cases, write_datalist
from common.errors import InputError, install_error_hook

logger = logging.getLogger(__name__)

# cohort -> scanner, pathology, subjects for training and validation
COHORTS = {
    "mixed": ("mixed", "ms", 40, 5),
    "plain": ("A", "ms", 24, 3),
    "healthy": ("mixed", "healthy", 20, 4),
    "further": ("mixed", "ms", 60, 0),
}
PATIENTS = {"training": ("mixed", "plain", "further"), "validation": ("mixed", "plain")}


def main(
    bundle: str = "uad_autoencoder",
    output_dir: str = "release",
    extra_data: str | None = None,
    seed: int = 2019,
    amp: bool = True,
) -> None:
    """Train the weights that the bundle ships, and write them and their thresholds into the bundle.

    Args:
        bundle: one of those in RECIPES, as uad_autoencoder.
        output_dir: phantoms (about 2 GB, the same for all bundles) and states of the trainings.
        extra_data: JSON with tissue maps and lesion masks of real people to make the phantoms from; its form is
            described at common.cohort.make_cohort. Without it they are made from the template. It may also have
            ``"tissue_scans": {"training": [{"T1w": path, "label": path}], "validation": [...]}``, real T1 images with
            tissue maps, for ace_multitask; sae_segmentation and diffusion_recon_unet take the images without the maps,
            deepatlas_joint one map.
        seed: of phantoms and trainings.
        amp: networks in bfloat16.
    """
    install_error_hook()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if bundle not in RECIPES:
        raise InputError(f"bundle is {bundle!r}, expected one of {', '.join(RECIPES)}")
    folder = Path(output_dir).resolve()
    for number, (name, (scanner, pathology, training, validation)) in enumerate(COHORTS.items()):
        if not (folder / name / "datalist.json").is_file():
            logger.info("making the cohort %s", name)
            make_cohort(
                folder / name,
                {pathology: (training, validation, 0)},
                scanner=scanner,
                spacing=1.0,
                sequences=("FLAIR", "T1w"),
                seed=seed + number,
                prefix=name[0],
                extra_data=extra_data,
            )
    RECIPES[bundle](folder, extra_data, seed, amp)


def _uad_autoencoder(folder: Path, extra_data: str | None, seed: int, amp: bool) -> None:
    patients = {section: _cases(folder, cohorts, section) for section, cohorts in PATIENTS.items()}
    datalist = write_datalist(folder / "patients.json", patients)
    unet = {"max_epochs": 160, "val_interval": 20, "volumes_per_epoch": 128, "lesion_patches": 2, "brain_patches": 2}
    # then mostly patches from anywhere in the brain, so that probabilities mean something outside of lesions too
    tuning = {"max_epochs": 40, "val_interval": 10, "lesion_patches": 1, "brain_patches": 3, "learning_rate": 5e-4}
    autoencoder = {"max_epochs": 12, "val_interval": 2, "gdl_first_epoch": 4, "slice_step": 3}
    options = {"seed": seed, "amp": amp}
    _train("uad_autoencoder", "train", folder / "uad_unet", datalist_file=datalist, **unet, **options)
    _train(
        "uad_autoencoder",
        "train",
        folder / "uad_tuning",
        datalist_file=datalist,
        initial_weights=ROOT / "bundles" / "uad_autoencoder" / "models" / "model.pt",
        **{**unet, **tuning},
        **options,
    )
    _train(
        "uad_autoencoder",
        "train_autoencoder",
        folder / "uad_autoencoder",
        datalist_file=folder / "healthy" / "datalist.json",
        **autoencoder,
        **options,
    )
    for layer in (None, "inference_residual.json", "inference_threshold.json"):
        # of the two cohorts of patients, the one whose contrast is the measured one
        plain = folder / "plain" / "datalist.json"
        _calibrate("uad_autoencoder", plain, *(["--layers", layer] if layer else []))


def _ace_multitask(folder: Path, extra_data: str | None, seed: int, amp: bool) -> None:
    """Tissue from healthy phantoms, and from real T1 scans without FLAIR if there are any; lesions from patients."""
    sections = {}
    for section, patients in PATIENTS.items():
        every = slice(None) if section == "training" else slice(None, None, 2)  # whole volumes take their time
        sections[section] = [
            *_as_set("tissue", "tissues", _cases(folder, ("healthy",), section)[every]),
            *_as_set("lesion", "lesion", _cases(folder, patients, section)[every]),
        ]
    for section, items in _tissue_scans(extra_data).items():
        sections[section] += [
            {"image": [item["T1w"], None], "label": item["label"], "dataset": "tissue"} for item in items
        ]
    datalist = write_datalist(folder / "ace.json", sections)
    _train(
        "ace_multitask",
        "train",
        folder / "ace",
        datalist_file=datalist,
        max_epochs=320,
        # the last weights, not the best ones on phantoms of odd contrasts, which are a matter of luck
        val_interval=320,
        channel_dropout=0.15,
        seed=seed,
        amp=amp,
    )
    # as above: patients whose contrast is the measured one
    plain = _as_set("lesion", "lesion", _cases(folder, ("plain",), "validation"))
    _calibrate("ace_multitask", write_datalist(folder / "ace_calibration.json", {"validation": plain}))


def _sae_segmentation(folder: Path, extra_data: str | None, seed: int, amp: bool) -> None:
    """T1 scans without labels: real ones, or, where there are none, healthy phantoms."""
    sections = {
        section: [{"image": item["T1w"]} for item in items] for section, items in _tissue_scans(extra_data).items()
    }
    if not sections:
        keys = ("brain_mask", "subject")
        sections = {
            section: [
                {"image": case["T1w"]} | {k: case[k] for k in keys} for case in _cases(folder, ("healthy",), section)
            ]
            for section in PATIENTS
        }
    _train(
        "sae_segmentation",
        "train",
        folder / "sae",
        datalist_file=write_datalist(folder / "sae.json", sections),
        max_epochs=30,
        # the last weights; longer, the evidence goes on rising, but the Dice on labelled scans does not
        val_interval=30,
        seed=seed,
        amp=amp,
    )


def _deepatlas_joint(folder: Path, extra_data: str | None, seed: int, amp: bool) -> None:
    """T1 scans, of which the first one is labelled: real ones, or, where there are none, healthy phantoms."""
    sections = {
        section: [{"image": item["T1w"], "label": item["label"]} for item in items]
        for section, items in _tissue_scans(extra_data).items()
    }
    if not sections:
        keys = ("brain_mask", "subject")
        sections = {
            section: [
                {"image": case["T1w"], "label": case["tissues"]} | {k: case[k] for k in keys}
                for case in _cases(folder, ("healthy",), section)
            ]
            for section in PATIENTS
        }
    options = {
        "datalist_file": write_datalist(folder / "deepatlas.json", sections),
        "labelled_cases": 1,
        "seed": seed,
        "amp": amp,
    }
    models = ROOT / "bundles" / "deepatlas_joint" / "models"
    start = {"registration_weights": models / "registration.pt", "segmentation_weights": models / "model.pt"}
    for name, steps in (
        ("train_registration", {"max_epochs": 12, "val_interval": 2}),
        ("train_segmentation", {"max_epochs": 10, "val_interval": 2}),
        ("train", {"max_epochs": 5, **start}),
    ):
        layers = ["train"] if name == "train" else ["train", name]
        _train("deepatlas_joint", layers, folder / f"deepatlas_{name}", **options, **steps)


def _diffusion_recon_unet(folder: Path, extra_data: str | None, seed: int, amp: bool) -> None:
    """Stage 1 from healthy phantoms, and from real T1 scans if there are any; stage 2 from patients, and painted."""
    real = {section: [{"image": item["T1w"]} for item in items] for section, items in _tissue_scans(extra_data).items()}

    def t1w(cohorts: Sequence[str], section: str) -> list[dict]:
        return [
            {
                "image": case["T1w"],
                "label": case["lesion"],
                "brain_mask": case["brain_mask"],
                "subject": case["subject"],
            }
            for case in _cases(folder, cohorts, section)
        ]

    sections = {section: real.get(section, []) + t1w(("healthy",), section) for section in PATIENTS}
    healthy = write_datalist(folder / "diffusion_healthy.json", sections)
    sections = {section: t1w(cohorts, section) for section, cohorts in PATIENTS.items()}
    patients = write_datalist(folder / "diffusion_patients.json", sections)
    options = {"seed": seed, "amp": amp}
    diffusion = {"max_epochs": 24, "val_interval": 4, "slice_step": 2, "learning_rate": 8e-4}
    # the last weights: whole volumes take their time
    unet = {"max_epochs": 40, "val_interval": 40, "learning_rate": 2e-3}
    weights = ROOT / "bundles" / "diffusion_recon_unet" / "models" / "diffusion.pt"
    _train(
        "diffusion_recon_unet",
        "train_diffusion",
        folder / "diffusion_stage1",
        datalist_file=healthy,
        **diffusion,
        **options,
    )
    _train(
        "diffusion_recon_unet",
        "train",
        folder / "diffusion_stage2",
        datalist_file=patients,
        healthy_datalist_file=healthy,
        diffusion_weights=weights,
        **unet,
        **options,
    )
    weights.unlink(missing_ok=True)  # model.pt holds it
    # what is called anomaly in people who are healthy: patients of other pathologies than the synthetic ones may come
    people = real.get("validation") or t1w(("healthy",), "validation")
    people = write_datalist(
        folder / "diffusion_calibration.json", {"validation": [case | {"healthy": True} for case in people]}
    )
    rate = ("--criterion", "false_positive_rate", "--rate", 0.01)
    for layer in (None, "inference_reconstruction.json", "inference_unet.json"):
        _calibrate("diffusion_recon_unet", people, *rate, *(["--layers", layer] if layer else []))


def _tissue_scans(extra_data: str | None) -> dict[str, list[dict[str, str]]]:
    """Section -> real scans with tissue maps, their paths made absolute."""
    if extra_data is None:
        return {}
    path = Path(extra_data)
    scans = json.loads(path.read_text()).get("tissue_scans", {})
    return {
        section: [{key: str(path.parent / item[key]) for key in ("T1w", "label")} for item in items]
        for section, items in scans.items()
    }


def _as_set(dataset: str, label: str, cases: Sequence[dict]) -> list[dict]:
    """Cases of ace_multitask: both sequences, one of the label maps, and what data set it is of."""
    return [
        {"image": [case["T1w"], case["FLAIR"]], "label": case[label], "dataset": dataset}
        | {key: case[key] for key in ("brain_mask", "subject")}
        for case in cases
    ]


def _cases(folder: Path, cohorts: Sequence[str], section: str) -> list[dict]:
    return [
        case for name in cohorts for case in list_cases(datalist_file=folder / name / "datalist.json", section=section)
    ]


RECIPES = {
    "uad_autoencoder": _uad_autoencoder,
    "ace_multitask": _ace_multitask,
    "sae_segmentation": _sae_segmentation,
    "deepatlas_joint": _deepatlas_joint,
    "diffusion_recon_unet": _diffusion_recon_unet,
}


def _train(bundle: str, configs: str | Sequence[str], output_dir: Path, **options: object) -> None:
    """One training of a bundle, by a config or by one and layers on it, unless it is done."""
    done = output_dir / "done"
    if done.is_file():
        return
    names = [configs] if isinstance(configs, str) else configs
    logger.info("running %s.json of %s", names[-1], bundle)
    paths = [str(ROOT / "bundles" / bundle / "configs" / f"{name}.json") for name in names]
    _call("-m", "monai.bundle", "run", "--config_file", paths, output_dir=output_dir, **options)
    done.touch()


def _calibrate(bundle: str, datalist: Path, *options: object) -> None:
    _call("scripts/calibrate_threshold.py", bundle, "--write", *options, datalist_file=datalist, section="validation")


def _call(*arguments: object, **options: object) -> None:
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    subprocess.run([sys.executable, *map(str, arguments), *flags], check=True, cwd=ROOT)


if __name__ == "__main__":
    fire.Fire(main)
