"""Recipe of the shipped weights: ``python scripts/train_release.py diffusion_recon_unet``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.data import write_datalist
from release.training import PATIENTS, SECTIONS, VARIED, Release

LAST_STAGE_ALONE = True  # the networks for FLAIR
ONE_OF = 5  # of the copies of four to a person: each person with another one


def release(run: Release) -> None:
    """The weights for T1w, and from their stage 1 those for FLAIR, not shipped: see the card."""
    if run.from_shipped:
        start = run.shipped()
    else:
        _t1w(run)
        start = run.weights("stage1", "diffusion.pt")
    _flair(run, start)


def _labeled(sequence: str, cases: Sequence[dict]) -> list[dict]:
    """Cases that have the sequence, with it as image and the lesions as label."""
    keys = ("brain_mask", "subject")
    return [
        {"image": case[sequence], "label": case["lesion"]} | {key: case[key] for key in keys}
        for case in cases
        if sequence in case
    ]


def _flair(run: Release, start: Path) -> None:
    """Stage 1, from that of T1w, sees healthy phantoms, and scans whose lesions are filled; stage 2 as for T1w."""
    flair = partial(_labeled, "FLAIR")
    healthy = write_datalist(
        run.folder / "diffusion_flair_healthy.json",
        {part: flair(run.cases(("healthy", "varied_healthy"), part) + run.filled(part)) for part in SECTIONS},
    )
    patients = {
        part: flair(run.cases(VARIED, part) + run.implanted(part, varied=True) + run.scans("lesion_scans", part))
        for part in SECTIONS
    }
    run.train(
        "flair_stage1",
        ("train_diffusion", "train_diffusion_flair"),
        0.1,
        datalist_file=healthy,
        initial_weights=start,
        max_epochs=9,
        val_interval=3,
        slice_step=4,
        learning_rate=8e-4,
    )
    run.train(
        "flair_stage2",
        ("train", "train_flair"),
        0.2,
        datalist_file=write_datalist(run.folder / "diffusion_flair_patients.json", patients),
        healthy_datalist_file=healthy,
        diffusion_weights=run.weights("flair_stage1", "diffusion_flair.pt"),
        max_epochs=30,
        after=["flair_stage1"],
        learning_rate=2e-3,
    )


def _t1w(run: Release) -> None:
    """Stage 1 from healthy phantoms, and from real T1 scans if there are any; stage 2 from lesions, and painted."""
    real = {part: [{"image": item["T1w"]} for item in run.scans("tissue_scans", part)] for part in SECTIONS}
    t1w = partial(_labeled, "T1w")
    healthy = write_datalist(
        run.folder / "diffusion_healthy.json",
        {part: real[part] + t1w(run.cases(("healthy",), part)) for part in SECTIONS},
    )
    implanted = {part: t1w(run.implanted(part) + run.implanted_t1w(part)) for part in SECTIONS}
    patients = write_datalist(
        run.folder / "diffusion_patients.json",
        {part: t1w(run.cases(cohorts, part)) + implanted[part] for part, cohorts in PATIENTS.items()},
    )
    run.train(
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
    run.train(
        "stage2",
        "train",
        0.4,
        datalist_file=patients,
        healthy_datalist_file=healthy,
        diffusion_weights=run.weights("stage1", "diffusion.pt"),
        max_epochs=80,
        after=["stage1"],
        learning_rate=2e-3,
    )
    run.ship("stage1", "statistics.json")
    run.ship("stage2", "model.pt")  # holds stage 1 too
    everybody = write_datalist(
        run.folder / "diffusion_people.json",
        {"training": real["training"] or t1w(run.cases(("healthy",), "training"))},
    )
    run.apply("healthy_maps", "healthy_maps", everybody)
    run.ship("healthy_maps", "healthy_t1w.pt")
    cases = t1w(run.cases(("plain",), "validation")) + implanted["validation"]
    datalist = write_datalist(run.folder / "diffusion_calibration.json", {"validation": cases})
    run.calibrate(datalist, layers=(None, "inference_unet.json"))
    # healthy people say nothing of synthetic heads, whose white matter is as their scanner was drawn
    people = t1w(run.implanted_t1w("validation"))[::ONE_OF] or cases
    datalist = write_datalist(run.folder / "diffusion_implanted.json", {"validation": people})
    run.calibrate(datalist, layers=("inference_fused.json", "inference_threshold.json,inference_healthy.json"))
    # on all cases its best threshold is one that takes nearly the whole brain
    run.calibrate(run.cohort("plain"), layers=("inference_threshold.json",))
    # knows no label: what it calls anomaly in people who are healthy
    people = [case | {"healthy": True} for case in real["validation"] or t1w(run.cases(("healthy",), "validation"))]
    run.calibrate(
        write_datalist(run.folder / "diffusion_healthy_calibration.json", {"validation": people}),
        *("--criterion", "false_positive_rate", "--rate", 0.01),
        layers=("inference_reconstruction.json",),
    )
