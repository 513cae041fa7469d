"""Recipe of the shipped weights: ``python scripts/train_release.py uad_autoencoder``."""

from __future__ import annotations

from pathlib import Path

from common.data import write_datalist
from release.training import PATIENTS, SECTIONS, VARIED, Release

LAST_STAGE_ALONE = True


def release(run: Release) -> None:
    """The auto-encoder, and the U-Net in two stages: the second one sees lesions of every size, and drawn ones."""
    if run.from_shipped:
        start = run.shipped()
    else:
        start = _plain_lesions(run)
        run.ship("autoencoder", "autoencoder.pt")
    names = {"image": "FLAIR", "label": "lesion", "brain_mask": "brain_mask", "subject": "subject"}
    drawn = {
        part: [{key: item[name] for key, name in names.items()} for item in run.scans("lesion_scans", part)]
        for part in SECTIONS
    }
    sections = {
        part: [*run.cases((*VARIED, "varied_healthy"), part), *run.implanted(part, varied=True), *drawn[part]]
        for part in SECTIONS
    }
    options = {"datalist_file": write_datalist(run.folder / "uad_varied.json", sections), "initial_weights": start}
    options |= {"lesion_patches": 1, "brain_patches": 2, "zoom": [0.6, 2.0], "graded_labels": True, "gamma": [0.7, 1.4]}
    run.train("varied", "train", 0.4, 60, ["unet"], learning_rate=5e-4, **options)
    run.ship("varied", "model.pt")
    datalist = write_datalist(
        run.folder / "uad_calibration.json", {"validation": [*run.calibration(), *drawn["validation"]]}
    )
    layers = ("inference_mirror.json", "inference_residual.json", "inference_threshold.json")
    run.calibrate(datalist, layers=(None, *layers))


def _plain_lesions(run: Release) -> Path:
    """The auto-encoder and the first stage of the U-Net; returns the file of the latter's weights."""
    run.train(
        "autoencoder",
        "train_autoencoder",
        0.1,
        datalist_file=run.cohort("healthy"),
        max_epochs=12,
        val_interval=2,
        gdl_first_epoch=4,
        slice_step=3,
    )
    patients = {part: run.cases(cohorts, part) + run.implanted(part) for part, cohorts in PATIENTS.items()}
    datalist = write_datalist(run.folder / "patients.json", patients)
    # mostly patches from anywhere in the brain, so that probabilities mean something outside of lesions too; the last
    # weights: what validates is synthetic or implanted, too little to choose by
    run.train("unet", "train", 0.5, 200, datalist_file=datalist, lesion_patches=1, brain_patches=3)
    return run.weights("unet")
