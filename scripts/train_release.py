"""Make the shipped weights: ``python scripts/train_release.py uad_autoencoder``.

Phantoms of many contrasts, the bundle's own training configs, thresholds from the validation phantoms. What is done is
not done again, so a broken-off run goes on when the command is given again.
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
from common.errors import InputError, install_error_hook

logger = logging.getLogger(__name__)


def main(bundle: str = "uad_autoencoder", output_dir: str = "release", seed: int = 2019, amp: bool = True) -> None:
    """Train the weights that the bundle ships, and write them and their thresholds into the bundle.

    Args:
        bundle: so far uad_autoencoder.
        output_dir: phantoms (about 1 GB) and states of the trainings.
        seed: of phantoms and trainings.
        amp: networks in bfloat16.
    """
    install_error_hook()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if bundle != "uad_autoencoder":
        raise InputError(f"bundle is {bundle!r}, expected uad_autoencoder")
    folder = Path(output_dir).resolve()
    options = {"scanner": "mixed", "spacing": 1.0, "sequences": ("FLAIR",), "seed": seed}
    cohorts = {"healthy": {"healthy": (24, 6, 4)}, "patients": {"ms": (60, 6, 10)}}
    for name, groups in cohorts.items():
        if not (folder / name / "datalist.json").is_file():
            logger.info("making the cohort %s", name)
            make_cohort(folder / name, groups, prefix=name[0], **options)

    root = ROOT / "bundles" / bundle
    unet = {"max_epochs": 60, "val_interval": 10, "volumes_per_epoch": 120}
    # mostly patches from anywhere in the brain, so that probabilities mean something outside of lesions too
    tuning = {"max_epochs": 16, "val_interval": 4, "learning_rate": 5e-4, "lesion_patches": 1, "brain_patches": 3}
    for stage, config, cohort, settings in (
        ("unet", "train", "patients", unet),
        ("tuning", "train", "patients", {**unet, **tuning, "initial_weights": root / "models" / "model.pt"}),
        (
            "autoencoder",
            "train_autoencoder",
            "healthy",
            {"max_epochs": 12, "val_interval": 2, "gdl_first_epoch": 4, "slice_step": 3},
        ),
    ):
        if (folder / f"{stage}.done").is_file():
            continue
        logger.info("stage %s: running %s.json", stage, config)
        settings = {**settings, "datalist_file": folder / cohort / "datalist.json", "output_dir": folder / stage}
        _call(
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            root / "configs" / f"{config}.json",
            seed=seed,
            amp=amp,
            **settings,
        )
        (folder / f"{stage}.done").touch()

    for layer in (None, "inference_residual.json", "inference_threshold.json"):
        layers = ["--layers", layer] if layer else []
        patients = {"datalist_file": folder / "patients" / "datalist.json", "section": "validation"}
        _call("scripts/calibrate_threshold.py", bundle, "--write", *layers, **patients)


def _call(*arguments: object, **options: object) -> None:
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    subprocess.run([sys.executable, *map(str, arguments), *flags], check=True, cwd=ROOT)


if __name__ == "__main__":
    fire.Fire(main)
