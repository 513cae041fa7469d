"""Make the shipped weights: ``python scripts/train_release.py uad_autoencoder``.

Phantoms, the bundle's own training configs, thresholds from the validation phantoms. What is done is not done again, so
a broken-off run goes on when the command is given again.
"""

from __future__ import annotations

import logging
import subprocess
import sys
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
}


def main(
    bundle: str = "uad_autoencoder",
    output_dir: str = "release",
    extra_data: str | None = None,
    seed: int = 2019,
    amp: bool = True,
) -> None:
    """Train the weights that the bundle ships, and write them and their thresholds into the bundle.

    Args:
        bundle: so far uad_autoencoder.
        output_dir: phantoms (about 2 GB, the same for all bundles) and states of the trainings.
        extra_data: JSON with tissue maps and lesion masks of real people to make the phantoms from; its form is
            described at common.cohort.make_cohort. Without it they are made from the template.
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
    RECIPES[bundle](folder, seed, amp)


def _uad_autoencoder(folder: Path, seed: int, amp: bool) -> None:
    patients = {
        section: [
            case
            for cohort in ("mixed", "plain")
            for case in list_cases(datalist_file=folder / cohort / "datalist.json", section=section)
        ]
        for section in ("training", "validation")
    }
    datalist = write_datalist(folder / "patients.json", patients)
    # half of the patches from anywhere in the brain, so that probabilities mean something outside of lesions too
    unet = {"max_epochs": 110, "val_interval": 10, "volumes_per_epoch": 120, "lesion_patches": 2, "brain_patches": 2}
    autoencoder = {"max_epochs": 12, "val_interval": 2, "gdl_first_epoch": 4, "slice_step": 3}
    options = {"seed": seed, "amp": amp}
    _train("uad_autoencoder", "train", folder / "uad_unet", datalist_file=datalist, **unet, **options)
    _train(
        "uad_autoencoder",
        "train_autoencoder",
        folder / "uad_autoencoder",
        datalist_file=folder / "healthy" / "datalist.json",
        **autoencoder,
        **options,
    )
    for layer in (None, "inference_residual.json", "inference_threshold.json"):
        layers = ["--layers", layer] if layer else []
        _call(
            "scripts/calibrate_threshold.py",
            "uad_autoencoder",
            "--write",
            *layers,
            datalist_file=datalist,
            section="validation",
        )


RECIPES = {"uad_autoencoder": _uad_autoencoder}


def _train(bundle: str, config: str, output_dir: Path, **options: object) -> None:
    """One training of a bundle, unless it is done."""
    done = output_dir / "done"
    if done.is_file():
        return
    logger.info("running %s.json of %s", config, bundle)
    path = ROOT / "bundles" / bundle / "configs" / f"{config}.json"
    _call("-m", "monai.bundle", "run", "--config_file", path, output_dir=output_dir, **options)
    done.touch()


def _call(*arguments: object, **options: object) -> None:
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    subprocess.run([sys.executable, *map(str, arguments), *flags], check=True, cwd=ROOT)


if __name__ == "__main__":
    fire.Fire(main)
