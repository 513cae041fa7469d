"""Joint learning from two data sets that each label only one thing: arms and claims of Roulet et al., MIDL 2019.

Phantoms: healthy ones with tissue labels, patients with lesion labels, other patients with both to be tested
on. Every arm has the same subjects, network, patches and number of steps; only what the loss makes of the labels
differs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from common.data import list_cases, write_datalist
from common.metrics import best_dice, dice
from running.workflow import run_configs, without_page

from .seed import Result, SeedStudy, phantoms, result_of, voxels
from .verdicts import Claim

logger = logging.getLogger(__name__)

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
CLAIMS = {  # numbers are those of the specification
    "1": Claim("ace", "naive_ce", "tissue", 0.08, "naive cross entropy loses the tissue, ACE keeps it"),
    "2a": Claim("ace", "naive_dice", "tissue", -0.05, "ACE is no worse than naive Dice on tissue"),
    "2b": Claim("ace", "naive_dice", "lesion", 0.2, "naive Dice loses the lesion, ACE keeps it"),
    "3": Claim(
        "ace_dice",
        "naive_ce",
        "lesion",
        0.0,
        "with the Dice term lesions are no worse than with naive CE",
        ("ace", "naive_ce"),
    ),
    "4": Claim("ace_dice", "two", "tissue", -0.08, "one network is about as good as two on tissue", ("ace", "two")),
    "5": Claim("ace_dice", "two", "lesion", -0.1, "one network is about as good as two on lesions", ("ace", "two")),
    "6a": Claim("ace_dice", "oracle", "tissue", -0.05, "little is lost against full labels, tissue"),
    "6b": Claim("ace_dice", "oracle", "lesion", -0.05, "little is lost against full labels, lesion"),
    "7": Claim(
        "ace", "ace_patch", "precision", 0.0, "sets of the data set find fewer false lesions than sets of the patch"
    ),
    "8": Claim("ace_dice", "ace", "lesion", 0.0, "the Dice term helps lesions"),
}
LESS_IS_BETTER = ()
# table 1, white-matter hyperintensities; tissue is the mean of CSF, GM and WM
PAPER = {
    "naive_ce": {"tissue": 0.062, "lesion": 0.411},
    "naive_dice": {"tissue": 0.751, "lesion": 0.508},
    "ace": {"tissue": 0.786, "lesion": 0.540},
    "two": {"tissue": 0.740, "lesion": 0.516},
}
PAPER_NOTE = "MRBrainS18, white-matter hyperintensities; the paper's loss is ours without the Dice term"
FULL = {
    "arms": list(ARMS),
    "subjects": {"healthy": (6, 2, 0), "ms": (6, 2, 6)},
    "fine_mm": 1.0,
    "common": {"spacing": [2.0, 2.0, 2.0], "amp": "auto"},
    "network": {"channels": [16, 32, 64], "dropout": 0.0},
    "training": {
        "patch_size": [32, 32, 32],
        "batch_size": 2,
        "patches_per_volume": 2,
        "volumes_per_epoch": 40,
        "max_epochs": 16,
        "val_interval": 16,
        "learning_rate": 0.003,
        "channel_dropout": 0.0,
    },
}
BUDGETS = {
    "gpu": FULL,
    "cpu": {
        **FULL,
        "arms": [arm for arm in ARMS if arm != "ace_patch"],  # where every patch of a patient shows a lesion, it is ace
        "training": {**FULL["training"], "max_epochs": 12, "val_interval": 12},
    },
    "tiny": {
        **FULL,
        "subjects": {"healthy": (2, 1, 0), "ms": (2, 1, 2)},
        "fine_mm": 4.0,
        "common": {"spacing": [4.0, 4.0, 4.0], "amp": "auto"},
        "training": {
            **FULL["training"],
            "patch_size": [16, 16, 16],
            "volumes_per_epoch": 2,
            "max_epochs": 1,
            "val_interval": 1,
        },
    },
}


class Study(SeedStudy):
    """All arms of one seed."""

    def run(self, pool: Executor) -> dict[str, Result]:
        """Arm -> result, means over the test subjects."""
        pool.submit(self.once, "data", _make_data, self.data, self.seed, self.settings).result()
        arms = {arm: pool.submit(self.once, arm, self._learn, arm) for arm in self.settings["arms"]}
        return {arm: found.result() for arm, found in arms.items()}

    def _learn(self, arm: str) -> Result:
        logger.info("seed %d: training %s, %s", self.seed, arm, ARMS[arm])
        folder = self.folder / arm
        options = {**self.settings["common"], **self.settings["training"], **self._network("network_def")}
        options |= {"ckpt_dir": folder / "models", "seed": self.seed}
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
        return self._score(arm)

    def _score(self, arm: str) -> Result:
        """Lesion where it is more probable than not, tissue by the largest probability; and a calibrated threshold."""
        output_dir, models, data = self.folder / arm / "maps", self.folder / arm / "models", self.data
        files = {"weights": "model.pt"}
        if arm == "two":
            files = {"tissue_weights": "tissue_network.pt", "lesion_weights": "lesion_network.pt"}
        parts = [f"network_def#{part}" for part in ("base", "overlay")] if arm == "two" else ["network_def"]
        network = {key: value for part in parts for key, value in self._network(part).items()}
        found = {}
        configs = ["inference", "two_networks"] if arm == "two" else ["inference"]
        for part in ("calibration", "test"):
            run_configs(
                BUNDLE,
                configs,
                datalist_file=data / f"{part}.json",
                output_dir=output_dir / part,
                overwrite=True,
                threshold=0.5,
                mirror=False,  # every scan as it is, as in the paper
                background_in_brain=True,  # what naive cross entropy makes of tissue
                **{option: models / file for option, file in files.items()},
                **self.settings["common"],
                **network,
                **without_page(BUNDLE, configs),
            )
            cases = list_cases(
                datalist_file=data / f"{part}.json", sequences=("T1w", "FLAIR"), require=["label", "dataset"]
            )
            found[part] = (
                [voxels(output_dir / part / f"{case['name']}_seg.nii.gz") for case in cases],
                [voxels(output_dir / part / f"{case['name']}_prob.nii.gz") for case in cases],
                [voxels(case["label"]) for case in cases],
                [case["subject"] for case in cases],
            )
        _, maps, labels, _ = found["calibration"]
        _, threshold = best_dice(maps, [label == 1 for label in labels])
        cases: dict[str, dict[str, tuple[float, float]]] = {
            score: {} for score in ("tissue", "CSF", "GM", "WM", *SCORES)
        }
        for mask, probability, label, subject in zip(*found["test"], strict=True):
            overlaps = [dice(mask == value, label == value) for value in (1, 2, 3, 4)]
            hits, called = np.sum((mask == 4) & (label == 4)), np.sum(mask == 4)
            for score, parts in {
                **{name: (overlap, 1) for name, overlap in zip(("CSF", "GM", "WM", "lesion"), overlaps, strict=True)},
                "tissue": (sum(overlaps[:3]), 3),
                "lesion_calibrated": (dice(probability >= threshold, label == 4), 1),
                "precision": (hits, called),
            }.items():
                cases[score][subject] = parts
        return result_of(cases, threshold=float(threshold))

    def _network(self, name: str) -> dict[str, Any]:
        return {f"{name}#{key}": value for key, value in self.settings["network"].items()}


def _make_data(folder: Path, seed: int, settings: Mapping[str, Any]) -> Result:
    """Cohorts, and who is used for what."""
    options = {
        "spacing": settings["common"]["spacing"][0],
        "sequences": ("T1w", "FLAIR"),
        "fine_mm": settings["fine_mm"],
    }
    for number, (name, pathology) in enumerate((("healthy", "healthy"), ("patients", "ms"))):
        groups = {pathology: settings["subjects"][pathology]}
        phantoms(folder / name, groups, prefix=f"{name}{seed}", seed=2000 + 10 * seed + number, **options)

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
    return {}
