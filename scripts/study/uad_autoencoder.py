"""Lesions from an auto-encoder's residual and pseudo-labels: arms and claims of Baur et al., MIDL 2019.

Phantoms of two scanners. Threshold and checkpoint are chosen on validation subjects of scanner A.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from common.data import list_cases, write_datalist
from common.metrics import average_precision, best_dice, lesion_detection
from running.workflow import run_configs, without_page

from .seed import Result, SeedStudy, dice_parts, phantoms, result_of, voxels
from .verdicts import Claim

logger = logging.getLogger(__name__)

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "uad_autoencoder"
# "A" is the scanner that matters, "B" the foreign one whose scans are labeled
ARMS = {
    "threshold": "plain FLAIR threshold",
    "UAD": "auto-encoder's residual",
    "A_S": "U-Net on pseudo-labels of A",
    "A_YL": "plain U-Net on a few labels of A",
    "A_YL+S": "U-Net on a few labels and pseudo-labels of A",
    "B_YL": "plain U-Net on labels of B",
    "B_YL+S": "U-Net on labels of B and pseudo-labels of A",
    "B_YL+YU": "U-Net on labels of B and true labels of A (upper bound)",
}
SCORES = {"dice_A": "Dice, A", "auprc_A": "AUPRC, A", "lesion_f1_A": "lesion F1, A", "dice_B": "Dice, B"}
CLAIMS = {  # numbers are those of the specification
    "A1": Claim("A_S", "UAD", "dice_A", 0.0, "the student beats its teacher"),
    "A3": Claim("B_YL+S", "B_YL", "dice_A", 0.0, "pseudo-labels repair the change of scanner"),
    "A4": Claim("B_YL+S", "B_YL", "dice_B", 0.0, "pseudo-labels help on the foreign scanner too"),
    "A5": Claim("B_YL+YU", "B_YL+S", "dice_A", 0.0, "true labels still win"),
    "A6a": Claim("A_YL", "A_YL+S", "dice_A", 0.0, "with labels of A, pseudo-labels hurt"),
    "A6b": Claim("A_YL+S", "A_S", "dice_A", 0.0, "labels of A help beside pseudo-labels"),
    "A7": Claim("A_S", "B_YL+S", "dice_A", 0.0, "foreign labels add nothing to pseudo-labels"),
}
LESS_IS_BETTER = ()
# tables 2 to 4; B is the scanner CHB
PAPER = {
    "UAD": {"dice_A": 0.6343, "auprc_A": 0.6157},
    "A_S": {"dice_A": 0.6792, "auprc_A": 0.6964},
    "A_YL": {"dice_A": 0.7259, "auprc_A": 0.7537},
    "A_YL+S": {"dice_A": 0.7057, "auprc_A": 0.7254},
    "B_YL": {"dice_A": 0.3975, "auprc_A": 0.3185, "dice_B": 0.4473},
    "B_YL+S": {"dice_A": 0.6751, "auprc_A": 0.6927, "dice_B": 0.5756},
    "B_YL+YU": {"dice_A": 0.7203, "auprc_A": 0.7597, "dice_B": 0.5590},
}
PAPER_NOTE = "private scans of 10 patients for A, 2 patients of the scanner CHB for B; pooled Dice"
FULL = {
    "subjects": {"A": {"healthy": (16, 4, 0), "ms": (14, 4, 8)}, "B": {"ms": (4, 0, 5)}},
    "few": 4,
    "fine_mm": 1.0,
    "spacing": [2.0, 2.0, 2.0],
    # a code of 3 x 3 places: with a finer one, lesions were reconstructed too (at most 0.42 Dice against 0.50)
    "autoencoder": {"network_def#channels": [16, 32, 64, 64, 64], "network_def#latent_channels": 16},
    "autoencoder_training": {
        "slice_size": [96, 96],
        "learning_rate": 0.002,
        "max_epochs": 8,
        "val_interval": 2,
        "gdl_first_epoch": 3,
    },
    # the rim of the brain is left out and all but the brightest twentieth; the smallest median, three voxels, is 6 mm
    # wide here and takes small lesions away, so there is none
    "residual": {"median_mm": 2.0, "erosion_mm": 6.0, "bright_quantile": 0.95},
    # slices of 2 mm one by one, as in the paper
    "unet": {"network_def#features": [16, 16, 32, 64, 128, 16], "slices": 1},
    "unet_training": {"patch_size": [64, 64], "volumes_per_epoch": 60, "max_epochs": 24, "val_interval": 12},
}
BUDGETS = {
    "gpu": FULL,
    "cpu": {**FULL, "unet_training": {**FULL["unet_training"], "max_epochs": 20, "val_interval": 10}},
    "tiny": {
        **FULL,
        "subjects": {"A": {"healthy": (2, 1, 0), "ms": (3, 1, 2)}, "B": {"ms": (1, 0, 2)}},
        "few": 1,
        "fine_mm": 4.0,
        "spacing": [4.0, 4.0, 4.0],
        "autoencoder_training": {
            "slice_size": [64, 64],
            "max_epochs": 1,
            "val_interval": 1,
            "gdl_first_epoch": 1,
        },
        "residual": {"median_mm": 4.0, "erosion_mm": 4.0, "bright_quantile": 0.95},
        "unet_training": {"patch_size": [32, 32], "volumes_per_epoch": 3, "max_epochs": 1, "val_interval": 1},
    },
}


class Study(SeedStudy):
    """All arms of one seed."""

    def run(self, pool: Executor) -> dict[str, Result]:
        """Arm -> result."""
        pool.submit(self.once, "data", self._make_data).result()
        few = {"datalist_file": self.data / "few.json"}
        foreign = {"datalist_file": self.data / "foreign.json"}
        foreign_and_true = {"datalist_file": self.data / "foreign_and_true.json"}
        pseudo = {"pseudo_datalist_file": self.folder / "pseudo_labels" / "datalist.json"}
        taught = {
            "A_S": {**few, **pseudo, "use_labels": False},
            "A_YL+S": {**few, **pseudo},
            "B_YL+S": {**foreign, **pseudo},
        }
        untaught = {"A_YL": few, "B_YL": foreign, "B_YL+YU": foreign_and_true}
        # the teacher first: three arms wait for it, the others need not
        teacher = pool.submit(self.once, "UAD", self._teach)
        arms = {"threshold": pool.submit(self.once, "threshold", self._score_threshold), "UAD": teacher}
        for arm, options in untaught.items():
            arms[arm] = pool.submit(self.once, arm, self._learn, arm, options)
        teacher.result()
        for arm, options in taught.items():
            arms[arm] = pool.submit(self.once, arm, self._learn, arm, options)
        return {arm: arms[arm].result() for arm in ARMS}

    def _teach(self) -> Result:
        self._train_autoencoder()
        scores = self._predict(
            "UAD", layers=["inference_residual.json"], weights="autoencoder.pt", overrides=self._residual
        )
        self._pseudo_label(scores["values"]["threshold"])
        return scores

    def _learn(self, arm: str, options: dict) -> Result:
        self._train_unet(arm, options)
        return self._predict(arm, overrides=self.settings["unet"])

    def _make_data(self) -> Result:
        """Two cohorts, and the lists of who is used for what. Validation is always on scanner A, as in the paper."""
        for scanner, seed in (("A", 1000 + self.seed), ("B", 2000 + self.seed)):  # other people than those of A
            phantoms(
                self.data / scanner,
                self.settings["subjects"][scanner],
                scanner=scanner,
                spacing=self.settings["spacing"][0],
                sequences=("FLAIR",),
                seed=seed,
                prefix=f"{scanner}{self.seed}",
                fine_mm=self.settings["fine_mm"],
            )

        def cases(scanner: str, section: str, healthy: bool = False) -> list[dict]:
            everyone = list_cases(datalist_file=self.data / scanner / "datalist.json", section=section)
            return [case for case in everyone if case["healthy"] == healthy]

        healthy = {section: cases("A", section, healthy=True) for section in ("training", "validation")}
        write_datalist(self.data / "healthy.json", healthy)
        of_a, validation = cases("A", "training"), cases("A", "validation")
        number = self.settings["few"]
        few, unlabeled = of_a[:number], of_a[number:]
        foreign = cases("B", "training")
        for name, training in (
            ("few", few),
            ("foreign", foreign),
            ("foreign_and_true", foreign + unlabeled),
            ("unlabeled", unlabeled),
        ):
            write_datalist(self.data / f"{name}.json", {"training": training, "validation": validation})
        test = {"validation": validation, "test_A": cases("A", "test"), "test_B": cases("B", "test")}
        for part, members in test.items():
            write_datalist(self.data / f"{part}.json", {"all": members})
        write_datalist(self.data / "evaluation.json", {"all": [c for part in test.values() for c in part]})
        return {}

    def _run(self, configs: list[str], **overrides) -> None:
        run_configs(BUNDLE, configs, spacing=self.settings["spacing"], amp="auto", **overrides)

    def _train_autoencoder(self) -> None:
        logger.info("seed %d: training the auto-encoder", self.seed)
        self._run(
            ["train_autoencoder.json"],
            datalist_file=self.data / "healthy.json",
            output_dir=self.folder / "UAD" / "train",
            ckpt_dir=self.folder / "UAD" / "models",
            seed=self.seed,
            **self.settings["autoencoder_training"],
            **self.settings["autoencoder"],
        )

    def _pseudo_label(self, threshold: float) -> None:
        logger.info("seed %d: pseudo-labels at %.4f", self.seed, threshold)
        output_dir = self.folder / "pseudo_labels"
        self._run(
            ["inference.json", "inference_residual.json", "pseudo_label.json"],
            datalist_file=self.data / "unlabeled.json",
            section="training",
            output_dir=output_dir,
            overwrite=True,
            threshold=threshold,
            threshold_source="best pooled Dice on validation subjects",
            weights=self.folder / "UAD" / "models" / "autoencoder.pt",
            **self._residual,
        )

    def _train_unet(self, arm: str, options: dict) -> None:
        logger.info("seed %d: training %s, %s", self.seed, arm, ARMS[arm])
        self._run(
            ["train.json"],
            output_dir=self.folder / arm / "train",
            ckpt_dir=self.folder / arm / "models",
            seed=self.seed,
            **self.settings["unet_training"],
            **self.settings["unet"],
            **options,
        )

    def _predict(self, arm: str, layers: list[str] = (), weights: str = "model.pt", *, overrides: dict) -> Result:
        """Scores of an arm."""
        output_dir = self.folder / arm / "maps"
        self._run(
            ["inference.json", *layers],
            datalist_file=self.data / "evaluation.json",
            output_dir=output_dir,
            overwrite=True,
            weights=self.folder / arm / "models" / weights,
            mirror=False,  # every scan as it is, as in the paper
            zooms=[1.0],
            brightness=0.0,
            **without_page(BUNDLE, ["inference.json", *layers]),
            **overrides,
        )

        def maps(part: str) -> list[np.ndarray]:
            return [voxels(output_dir / f"{case['name']}_prob.nii.gz") for case in self._cases(part)]

        return self._score(maps)

    def _score_threshold(self) -> Result:
        def maps(part: str) -> list[np.ndarray]:
            scans = [voxels(case["image"]) for case in self._cases(part)]
            return [scan / (2 * np.median(scan[scan > 0])) for scan in scans]

        return self._score(maps)

    def _cases(self, part: str) -> list[dict]:
        return list_cases(datalist_file=self.data / f"{part}.json", require=["label"])

    def _score(self, maps: Callable[[str], list[np.ndarray]]) -> Result:
        """Pooled Dice, AUPRC and lesion F1 on both test sets at the threshold of the validation set."""
        labels = [voxels(case["label"]) > 0 for case in self._cases("validation")]
        _, threshold = best_dice(maps("validation"), labels)
        cases, values = {}, {"threshold": float(threshold)}
        for scanner in ("A", "B"):
            members, found = self._cases(f"test_{scanner}"), maps(f"test_{scanner}")
            truth = [voxels(case["label"]) > 0 for case in members]
            masks = [scan >= threshold for scan in found]
            f1 = [lesion_detection(m, t).f1 for m, t in zip(masks, truth, strict=True)]
            values[f"auprc_{scanner}"] = float(average_precision(found, truth))
            values[f"oracle_dice_{scanner}"] = float(best_dice(found, truth)[0])
            values[f"lesion_f1_{scanner}"] = float(np.nanmean(f1))
            cases[f"dice_{scanner}"] = {
                case["subject"]: dice_parts(m, t) for case, m, t in zip(members, masks, truth, strict=True)
            }
        return result_of(cases, **values)

    @property
    def _residual(self) -> dict[str, Any]:
        return {**self.settings["autoencoder"], **self.settings["residual"]}
