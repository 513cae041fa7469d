"""Recipe of the shipped weights: ``python scripts/train_release.py sae_segmentation``."""

from __future__ import annotations

from common.data import write_datalist
from release.training import Release

STEPS = 210


def release(run: Release) -> None:
    """T1 scans without labels: real ones, of further scanners too, or, where there are none, healthy phantoms."""
    sections = run.t1w(labels=False)
    for section, cases in sections.items():
        for item in run.scans("t1w_scans", section):
            cases.append({"image": item["T1w"]} | {key: item[key] for key in ("brain_mask", "subject") if key in item})
    # the last weights; longer, the evidence goes on rising, but the Dice on labeled scans does not
    datalist = write_datalist(run.folder / "sae.json", sections)
    steps = (len(sections["training"]) + 1) // 2  # of an epoch, two scans each
    run.train("train", "train", 1.0, datalist_file=datalist, max_epochs=round(STEPS / steps))
    run.ship("train", "model.pt")
