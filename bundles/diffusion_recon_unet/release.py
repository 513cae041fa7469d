"""Recipe of the shipped weights: ``python scripts/train_release.py diffusion_recon_unet``."""

from __future__ import annotations

from collections.abc import Sequence

from common.data import write_datalist
from release.training import PATIENTS, SECTIONS, Release

ONE_OF = 5  # of the copies of four to a person: each person with another one


def release(run: Release) -> None:
    """Stage 1 from healthy phantoms, and from real T1 scans if there are any; stage 2 from lesions, and painted."""
    real = {part: [{"image": item["T1w"]} for item in run.scans("tissue_scans", part)] for part in SECTIONS}

    def t1w(cases: Sequence[dict]) -> list[dict]:
        keys = ("brain_mask", "subject")
        return [
            {"image": case["T1w"], "label": case["lesion"]} | {key: case[key] for key in keys}
            for case in cases
            if "T1w" in case
        ]

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
