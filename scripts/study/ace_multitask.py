"""Joint learning from two data sets that each label only one thing: arms and claims of Roulet et al., MIDL 2019.

Phantoms of 2 mm: healthy ones with tissue labels, patients with lesion labels, other patients with both to be tested
on. Every arm has the same subjects, network, patches and number of steps; only what the loss makes of the labels
differs.
"""

from __future__ import annotations

import logging
from concurrent.futures import Executor
from pathlib import Path

import nibabel as nib
import numpy as np

from common.cohort import make_cohort
from common.data import list_cases, write_datalist
from common.metrics import best_dice, dice
from common.workflow import run_configs

from .seed import SeedStudy

logger = logging.getLogger("experiments")

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "ace_multitask"
ARMS = {
    "naive_ce": "cross entropy, 0 taken for background",
    "naive_dice": "soft Dice, 0 taken for background",
    "ace": "adaptive cross entropy",
    "ace_patch": "adaptive cross entropy, classes of the patch (the paper's letter)",
    "ace_dice": "adaptive cross entropy and merged Dice (default)",
    "two": "two networks, lesion written over tissue",
    "oracle": "as the default, all subjects with all labels",
}
SCORES = {
    "tissue": "tissue Dice",
    "lesion": "lesion Dice",
    "lesion_calibrated": "lesion Dice, threshold of validation",
    "precision": "lesion precision",
}
# claim -> better arm, worse arm, score, smallest gap, what it says; the numbers are those of the specification
CLAIMS = {
    "1": ("ace", "naive_ce", "tissue", 0.08, "naive cross entropy loses the tissue, ACE keeps it"),
    "2a": ("ace", "naive_dice", "tissue", -0.05, "ACE is no worse than naive Dice on tissue"),
    "2b": ("ace", "naive_dice", "lesion", 0.2, "naive Dice loses the lesion, ACE keeps it"),
    "3": (
        "ace_dice",
        "naive_ce",
        "lesion",
        0.0,
        "with the Dice term lesions are no worse than with naive CE",
    ),
    "4": ("ace_dice", "two", "tissue", -0.08, "one network is about as good as two on tissue"),
    "5": ("ace_dice", "two", "lesion", -0.1, "and on lesions"),
    "6a": ("ace_dice", "oracle", "tissue", -0.05, "little is lost against full labels, tissue"),
    "6b": ("ace_dice", "oracle", "lesion", -0.05, "little is lost against full labels, lesion"),
    "7": ("ace", "ace_patch", "precision", 0.0, "sets of the data set find fewer false lesions than sets of the patch"),
    "8": ("ace_dice", "ace", "lesion", 0.0, "the Dice term helps small lesions"),
}
NETWORK = {"network_def#channels": [16, 32, 64], "network_def#dropout": 0.0}
SINGLE = {
    "network_def#base#channels": [16, 32, 64],
    "network_def#overlay#channels": [16, 32, 64],
    "network_def#base#dropout": 0.0,
    "network_def#overlay#dropout": 0.0,
}
COMMON = {"spacing": [2.0, 2.0, 2.0], "amp": True}
TRAINING = {
    "patch_size": [32, 32, 32],
    "batch_size": 2,
    "patches_per_volume": 2,
    "volumes_per_epoch": 40,
    "max_epochs": 16,
    "val_interval": 16,
    "learning_rate": 0.003,
    "channel_dropout": 0.0,
}


class Study(SeedStudy):
    """All arms of one seed."""

    def run(self, pool: Executor) -> dict[str, dict[str, float]]:
        """Arm -> scores, means over the test subjects."""
        _make_data(self.data, self.seed)
        arms = {arm: pool.submit(self.once, arm, self._learn, arm) for arm in ARMS}
        return {arm: found.result() for arm, found in arms.items()}

    def _learn(self, arm: str) -> dict[str, float]:
        logger.info("seed %d: training %s, %s", self.seed, arm, ARMS[arm])
        folder = self.folder / arm
        options = {**COMMON, **TRAINING, **NETWORK, "ckpt_dir": folder / "models", "seed": self.seed}
        if arm == "two":
            for dataset in ("tissue", "lesion"):
                run_configs(
                    BUNDLE,
                    ["train", "train_single"],
                    datalist_file=self.data / "disjoint.json",
                    dataset_name=dataset,
                    output_dir=folder / dataset,
                    **options,
                )
        else:
            run_configs(
                BUNDLE,
                "train",
                datalist_file=self.data / ("joint.json" if arm == "oracle" else "disjoint.json"),
                objective="ace_dice" if arm == "oracle" else arm,
                output_dir=folder / "train",
                **options,
            )
        return _score(arm, folder / "maps", folder / "models", self.data)


def _make_data(folder: Path, seed: int) -> Path:
    """Cohorts, and who is used for what: 6 + 6 subjects to learn from, 2 + 2 to calibrate, 6 to test."""
    if (folder / "joint.json").is_file():
        return folder
    options = {"spacing": 2.0, "sequences": ("T1w", "FLAIR")}
    for number, (name, groups) in enumerate(
        (("healthy", {"healthy": (6, 2, 0)}), ("patients", {"ms": (6, 2, 6)})),
    ):
        if not (folder / name / "datalist.json").is_file():
            make_cohort(folder / name, groups, prefix=f"{name}{seed}", seed=2000 + 10 * seed + number, **options)

    def cases(cohort: str, section: str, dataset: str) -> list[dict]:
        key = "lesion" if dataset == "lesion" else "tissues"
        return [
            {"image": [case["T1w"], case["FLAIR"]], "label": case[key], "dataset": dataset}
            | {key: case[key] for key in ("brain_mask", "subject")}
            for case in list_cases(datalist_file=folder / cohort / "datalist.json", section=section)
        ]

    sections = ("training", "validation")
    disjoint = {s: cases("healthy", s, "tissue") + cases("patients", s, "lesion") for s in sections}
    joint = {s: cases("healthy", s, "joint") + cases("patients", s, "joint") for s in sections}
    write_datalist(folder / "disjoint.json", disjoint)
    write_datalist(folder / "test.json", {"all": cases("patients", "test", "joint")})
    write_datalist(folder / "calibration.json", {"all": cases("patients", "validation", "lesion")})
    write_datalist(folder / "joint.json", joint)
    return folder


def _score(arm: str, output_dir: Path, models: Path, data: Path) -> dict[str, float]:
    """Label map by the largest probability, lesion where it is more probable than not; and a calibrated threshold."""
    names = {"base": "tissue_network.pt", "overlay": "lesion_network.pt"} if arm == "two" else {"": "model.pt"}
    handlers = [
        {
            "_target_": "common.engines.LoadWeights",
            "path": str(models / file),
            "network": f"$@network.{part}" if part else "@network",
        }
        for part, file in names.items()
    ]
    found = {}
    for part in ("calibration", "test"):
        run_configs(
            BUNDLE,
            ["inference", "two_networks"] if arm == "two" else "inference",
            datalist_file=data / f"{part}.json",
            output_dir=output_dir / part,
            threshold=0.5,
            background_in_brain=True,  # what naive cross entropy makes of tissue
            handlers=handlers,
            **COMMON,
            **(SINGLE if arm == "two" else NETWORK),
        )
        cases = list_cases(
            datalist_file=data / f"{part}.json", sequences=("T1w", "FLAIR"), require=["label", "dataset"]
        )
        found[part] = (
            [_read(output_dir / part / f"{case['name']}_seg.nii.gz") for case in cases],
            [_read(output_dir / part / f"{case['name']}_prob.nii.gz") for case in cases],
            [_read(case["label"]) for case in cases],
        )
    _, maps, labels = found["calibration"]
    _, threshold = best_dice(maps, [label == 1 for label in labels])
    masks, maps, labels = found["test"]

    def mean_dice(value: int) -> float:
        return float(np.mean([dice(m == value, t == value) for m, t in zip(masks, labels, strict=True)]))

    lesion = sum(((m == 4).sum() for m in masks), start=0)
    right = sum(((m == 4) & (t == 4)).sum() for m, t in zip(masks, labels, strict=True))
    return {
        "tissue": float(np.mean([mean_dice(value) for value in (1, 2, 3)])),
        **{name: mean_dice(value) for name, value in (("CSF", 1), ("GM", 2), ("WM", 3), ("lesion", 4))},
        "lesion_calibrated": float(np.mean([dice(p >= threshold, t == 4) for p, t in zip(maps, labels, strict=True)])),
        "precision": float(right / lesion) if lesion else 0.0,
        "threshold": float(threshold),
    }


def _read(path: str | Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)
