"""Recipe of the shipped weights: ``python scripts/train_release.py deepatlas_joint``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.data import write_datalist
from release.training import Release

LAST_STAGE_ALONE = True


def release(run: Release) -> None:
    """T1 scans, of which the first one is labeled: real ones, or, where there are none, healthy phantoms."""
    options = {
        "datalist_file": write_datalist(run.folder / "deepatlas.json", run.t1w(labels=True)),
        "labeled_cases": 1,
    }
    if run.from_shipped:
        start = run.shipped()
    else:
        _joint(run, options)
        start = run.weights("joint")
    fine = ["train", "train_segmentation", "train_fine"]
    run.train("fine", fine, 0.2, 8, ["joint"], val_interval=2, segmentation_weights=start, **options)
    run.ship("fine", "model.pt")


def _joint(run: Release, options: Mapping[str, Any]) -> None:
    """Both networks, and the controls beside them."""
    run.train("registration", ["train", "train_registration"], 0.3, 12, val_interval=2, **options)
    start = {"registration_weights": run.weights("registration", "registration.pt")}
    segmentation = ["train", "train_segmentation"]
    run.train("segmentation", segmentation, 0.2, 10, ["registration"], val_interval=2, **options, **start)
    # registration follows anatomy rather than images, smoother than alone, or it folds
    start |= {"registration_steps": 200, "registration_rate": 1e-3, "smoothness_weight": 1.5, "val_interval": 1}
    taught = {"segmentation_weights": run.weights("segmentation"), "anatomy_weight": 5, "supervised_weight": 15}
    run.train("joint", "train", 0.1, 8, ["registration", "segmentation"], **options, **start, **taught)
    # not shipped: registration for as many steps without a teacher, to see what the teacher is worth; it need not be
    # smoother than alone, since it does not fold
    control = ["train", "train_registration"]
    run.train("control", control, 0.1, 8, ["registration"], **options, **start)
    start |= {"smoothness_weight": 1}
    run.train("control_smoothness_1", control, 0.1, 8, ["registration"], **options, **start)
    run.ship("joint", "registration.pt")
