"""Registration and segmentation that teach each other: arms and claims of Xu and Niethammer, MICCAI 2019.

Phantoms in the template's space, nine structures. Twenty scans to learn from, of which one, four or all are labeled,
two to validate, six to test: six segmentations, or thirty ordered pairs. Joint training is compared with the
same number of further steps without it, which the paper does not show.
"""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from common.atlas import template_grid
from common.data import list_cases
from common.metrics import dice
from common.scans import read_scan
from phantom import STRUCTURES, Grid
from running.workflow import run_configs, without_page

from .seed import Result, SeedStudy, phantoms, result_of
from .verdicts import Claim

logger = logging.getLogger(__name__)

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "deepatlas_joint"
ARMS = {
    "unmoved": "no registration: all lie in the template's space",
    "r0": "registration without labels",
    "r0_more": "the same, as many steps more as the joint training has",
    "r4": "registration, 4 labeled",
    "r20": "registration, all labeled",
    "da1_registration": "registration of the joint training, 1 labeled",
    "da4_registration": "registration of the joint training, 4 labeled",
    "propagation": "segmentation by registration without labels, from the labeled scan",
    "u1": "segmentation network, 1 labeled",
    "u4": "segmentation network, 4 labeled",
    "s1": "segmentation taught by registration, 1 labeled",
    "da1_segmentation": "segmentation of the joint training, 1 labeled",
    "da4_segmentation": "segmentation of the joint training, 4 labeled",
}
SCORES = {"dice": "Dice of the structures", "tre": "distance to the truth, mm", "folds": "folds, % of the brain"}
CLAIMS = {  # O numbers are those of the specification
    "O1": Claim(
        "da1_registration",
        "r0_more",
        "dice",
        0.0,
        "joint training helps registration, 1 labeled",
        ("da1_registration", "r0"),
    ),
    "O2a": Claim("s1", "propagation", "dice", 0.0, "taught segmentation beats propagated labels"),
    "O2b": Claim("s1", "u1", "dice", 0.0, "registration helps segmentation, 1 labeled"),
    "O3": Claim("da4_registration", "r4", "dice", 0.0, "joint training helps registration, 4 labeled"),
    "O4": Claim("da4_segmentation", "u4", "dice", 0.0, "joint training helps segmentation, 4 labeled"),
    "O5": Claim("da1_segmentation", "s1", "dice", -0.01, "segmentation loses nothing in joint training"),
    "O6": Claim("r20", "da1_registration", "dice", 0.0, "all labels are better than one with a teacher"),
    "T1": Claim("da1_registration", "r0_more", "tre", 0.0, "joint training brings registration nearer to the truth"),
}
LESS_IS_BETTER = ("tre", "folds")
# brain, of 65 training images 0, 1, 21 or all labeled
PAPER = {
    "r0": {"dice": 0.5475},
    "r4": {"dice": 0.5947},
    "r20": {"dice": 0.6325},
    "da1_registration": {"dice": 0.5654},
    "da4_registration": {"dice": 0.6292},
    "propagation": {"dice": 0.5475},
    "u4": {"dice": 0.7348},
    "s1": {"dice": 0.6119},
    "da1_segmentation": {"dice": 0.6122},
    "da4_segmentation": {"dice": 0.7606},
}
PAPER_NOTE = "31 cortical regions, 65 training images; where 4 are labeled here, 21 are in the paper"
FULL = {
    "scans": (20, 2, 6),
    "fine_mm": 1.0,
    "common": {"spacing": [4.0, 4.0, 4.0], "shape": [40, 48, 40], "classes": len(STRUCTURES), "align": False},
    "network": {"normalize": True, "passes": 2},  # the plain one hardly moves anything in as few steps
    # the authors'; half of it takes too long to learn small classes
    "width": {"network_def#channels": [16, 32, 64, 64]},
    "training": {"correlation_window": 5, "smoothness_weight": 0.3, "amp": "auto"},
    "registration": {"registration_steps": 80, "max_epochs": 4, "val_interval": 4},
    "further": {"registration_steps": 40, "max_epochs": 4, "val_interval": 4, "registration_rate": 7e-4},
    "segmentation": {"segmentation_steps": 75, "max_epochs": 4, "val_interval": 4, "segmentation_rate": 0.006},
    "joint": {"segmentation_steps": 2},
}
BUDGETS = {
    "gpu": FULL,
    # half as many voxels
    "cpu": {**FULL, "common": {**FULL["common"], "spacing": [5.0, 5.0, 5.0], "shape": [32, 40, 32]}},
    "tiny": {
        **FULL,
        "scans": (5, 2, 2),
        "fine_mm": 4.0,
        "common": {**FULL["common"], "spacing": [8.0, 8.0, 8.0], "shape": [24, 24, 24]},
        "registration": {"registration_steps": 2, "max_epochs": 1, "val_interval": 1},
        "further": {"registration_steps": 2, "max_epochs": 1, "val_interval": 1},
        "segmentation": {"segmentation_steps": 2, "max_epochs": 1, "val_interval": 1},
        "joint": {"segmentation_steps": 1},
    },
}


class Study(SeedStudy):
    """All arms of one seed."""

    def run(self, pool: Executor) -> dict[str, Result]:
        """Arm -> result, means over the test subjects or their pairs."""
        pool.submit(self.once, "data", _make_data, self.data, self.seed, self.settings).result()
        found = {"u4": pool.submit(self.once, "u4", self._segmentation, "u4", 4, False)}
        found["r0"] = pool.submit(self.once, "r0", self._registration, "r0", 0, None)
        found["u1"] = pool.submit(self.once, "u1", self._segmentation, "u1", 1, False)
        found["r0"].result()
        found["unmoved"] = pool.submit(self.once, "unmoved", self._unmoved)
        found["propagation"] = pool.submit(self.once, "propagation", self._propagation)
        found["s1"] = pool.submit(self.once, "s1", self._segmentation, "s1", 1, True)
        for arm, labeled in (("r0_more", 0), ("r4", 4), ("r20", self.settings["scans"][0])):
            found[arm] = pool.submit(self.once, arm, self._registration, arm, labeled, "r0")
        joint = {}
        for labeled, teacher in ((4, "u4"), (1, "s1")):
            found[teacher].result()
            joint[labeled] = pool.submit(self.once, f"da{labeled}", self._joint, labeled, teacher)
        results = {arm: future.result() for arm, future in found.items()}
        for labeled, future in joint.items():
            for network in ("registration", "segmentation"):
                results[f"da{labeled}_{network}"] = future.result()[network]
        return {arm: results[arm] for arm in ARMS}

    def _registration(self, arm: str, labeled: int, start: str | None) -> Result:
        """Train the registration network, from the weights of another arm if there is one, and score it."""
        steps = self.settings["registration"]
        if start is not None:
            steps = {**self.settings["further"], "registration_weights": self._weights(start)}
        self._train(arm, ["train", "train_registration"], labeled_cases=labeled, **steps)
        return self._score_registration(arm, self._weights(arm))

    def _segmentation(self, arm: str, labeled: int, anatomy: bool) -> Result:
        """Train the segmentation network, with the registration network of r0 as teacher or alone, and score it."""
        weights = {"registration_weights": self._weights("r0") if anatomy else None}
        layers = ["train", "train_segmentation"]
        self._train(arm, layers, labeled_cases=labeled, anatomy=anatomy, **weights, **self.settings["segmentation"])
        return self._score_segmentation(arm, [], self._weights(arm, "model"))

    def _joint(self, labeled: int, teacher: str) -> Result:
        """Train both, and score both."""
        arm = f"da{labeled}"
        weights = {"registration_weights": self._weights("r0"), "segmentation_weights": self._weights(teacher, "model")}
        steps = {**self.settings["further"], **self.settings["joint"]}
        self._train(arm, ["train"], labeled_cases=labeled, **weights, **steps)
        return {
            "registration": self._score_registration(arm, self._weights(arm)),
            "segmentation": self._score_segmentation(arm, [], self._weights(arm, "model")),
        }

    def _unmoved(self) -> Result:
        return self._pairs("r0", dice="dice_affine", tre="tre_mm_affine")

    def _propagation(self) -> Result:
        source = list_cases(datalist_file=self._datalist, sequences=["T1w"], section="training")[0]
        files = {"moving_file": source["image"], "moving_label_file": source["label"], "refine": False}
        return self._score_segmentation("propagation", ["inference_propagation"], self._weights("r0"), **files)

    def _train(self, arm: str, configs: list[str], **options: Any) -> None:
        logger.info("seed %d: training %s", self.seed, arm)
        folder = self.folder / arm
        run_configs(
            BUNDLE,
            configs,
            datalist_file=self._datalist,
            output_dir=folder / "train",
            ckpt_dir=folder / "models",
            seed=self.seed,
            **self.settings["training"],
            **self.settings["common"],
            **self.settings["network"],
            **self.settings["width"],
            **options,
        )

    def _score_registration(self, arm: str, weights: str) -> Result:
        """Means over the ordered pairs of test subjects."""
        folder = self.folder / arm / "pairs"
        run_configs(
            BUNDLE,
            "inference_registration",
            overwrite=True,
            pictures=False,
            datalist_file=self._datalist,
            section="test",
            weights=weights,
            refine=False,  # what a training is worth would be hidden by it
            output_dir=folder,
            **self.settings["common"],
            **self.settings["network"],
        )
        return self._pairs(arm, dice="dice", tre="tre_mm", folds="folds_percent")

    def _score_segmentation(self, arm: str, layers: list[str], weights: str, **options: Any) -> Result:
        """Means over the test subjects."""
        folder = self.folder / arm / "maps"
        run_configs(
            BUNDLE,
            ["inference", *layers],
            output_dir=folder,
            overwrite=True,
            weights=weights,
            **{"datalist#section": "test", "datalist_file": self._datalist},
            **without_page(BUNDLE, ["inference", *layers]),
            **(options | self.settings["network"] if layers else self.settings["width"]),
            **self.settings["common"],
        )
        found = {}
        for case in list_cases(datalist_file=self._datalist, sequences=["T1w"], section="test", require=["label"]):
            files = folder / f"{case['name']}_seg.nii.gz", case["label"]
            mask, truth = (read_scan(file)[0] for file in files)
            found[case["subject"]] = (
                np.nanmean([dice(mask == value, truth == value) for value in STRUCTURES if value]),
                1,
            )
        return result_of({"dice": found})

    def _pairs(self, arm: str, **columns: str) -> Result:
        """Scores from columns of the table of pairs, a case for all pairs of one fixed subject."""
        with (self.folder / arm / "pairs" / "registration.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        pairs = defaultdict(list)
        for row in rows:
            pairs[row["pair"].split("_from-")[0]].append(row)
        return result_of(
            {
                score: {fixed: (sum(float(row[column]) for row in of), len(of)) for fixed, of in pairs.items()}
                for score, column in columns.items()
            }
        )

    def _weights(self, arm: str, network: str = "registration") -> str:
        return str(self.folder / arm / "models" / f"{network}.pt")

    @property
    def _datalist(self) -> Path:
        return self.data / "scans" / "datalist.json"


def _make_data(folder: Path, seed: int, settings: Mapping[str, Any]) -> Result:
    shape, spacing = (tuple(settings["common"][key]) for key in ("shape", "spacing"))
    phantoms(
        folder / "scans",
        {"healthy": settings["scans"]},
        grid=Grid(shape, template_grid(spacing, shape)),  # that of the networks: nothing is interpolated
        sequences=("T1w",),
        seed=5000 + seed,
        prefix=f"s{seed}",
        label="structures",
        displacement=True,
        affine=False,
        fine_mm=settings["fine_mm"],
    )
    return {}
