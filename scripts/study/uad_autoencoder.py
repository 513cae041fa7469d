"""Lesions from an auto-encoder's residual and pseudo-labels: arms and claims of Baur et al., MIDL 2019.

Phantoms of 2 mm and two scanners. Threshold and checkpoint are chosen on validation subjects of scanner A.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import nibabel as nib
import numpy as np

from common.cohort import make_cohort
from common.data import list_cases, write_datalist
from common.metrics import average_precision, best_dice, lesion_detection, pooled_dice
from common.workflow import run_configs

from .seed import SeedStudy

logger = logging.getLogger("experiments")

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "uad_autoencoder"
# "A" is the scanner that matters, "B" the foreign one whose scans are labelled
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
# claim -> better arm, worse arm, score, smallest gap, what it says
CLAIMS = {
    "A1": ("A_S", "UAD", "dice_A", 0.0, "the student beats its teacher"),
    "A3": ("B_YL+S", "B_YL", "dice_A", 0.0, "pseudo-labels repair the change of scanner"),
    "A4": ("B_YL+S", "B_YL", "dice_B", 0.0, "pseudo-labels help on the foreign scanner too"),
    "A5": ("B_YL+YU", "B_YL+S", "dice_A", 0.0, "true labels still win"),
    "A6a": ("A_YL", "A_YL+S", "dice_A", 0.0, "with labels of A, pseudo-labels hurt"),
    "A6b": ("A_YL+S", "A_S", "dice_A", 0.0, "labels of A help beside pseudo-labels"),
    "A7": ("B_YL+S", "A_S", "dice_A", 0.0, "foreign labels add something to pseudo-labels (not so in the paper)"),
}
SPACING = [2.0, 2.0, 2.0]
# a code of 3 x 3 places: with a finer one, lesions were reconstructed too (at most 0.42 Dice against 0.50)
AUTOENCODER = {"network_def#channels": [16, 32, 64, 64, 64], "network_def#latent_channels": 16}
# the rim of the brain is left out and all but the brightest twentieth; the smallest median, three voxels, is 6 mm wide
# here and takes small lesions away, so there is none
RESIDUAL = {**AUTOENCODER, "median_mm": 2.0, "erosion_mm": 6.0, "bright_quantile": 0.95}
# slices of 2 mm one by one, as in the paper
UNET = {"network_def#features": [16, 16, 32, 64, 128, 16], "slices": 1}


class Study(SeedStudy):
    """All arms of one seed."""

    def run(self, pool: Executor) -> dict[str, dict]:
        """Arm -> scores."""
        self._make_data()
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

    def _teach(self) -> dict:
        self._train_autoencoder()
        scores = self._predict("UAD", layers=["inference_residual.json"], weights="autoencoder.pt", overrides=RESIDUAL)
        self._pseudo_label(scores["threshold"])
        return scores

    def _learn(self, arm: str, options: dict) -> dict:
        self._train_unet(arm, options)
        return self._predict(arm, overrides=UNET)

    def _make_data(self) -> None:
        """Two cohorts, and the lists of who is used for what. Validation is always on scanner A, as in the paper."""
        if (self.data / "evaluation.json").is_file():
            return
        for scanner, seed, groups in (
            ("A", 1000 + self.seed, {"healthy": (16, 4, 0), "ms": (14, 4, 8)}),
            ("B", 2000 + self.seed, {"ms": (4, 0, 5)}),  # other people than those of A
        ):
            if not (self.data / scanner / "datalist.json").is_file():
                options = {"scanner": scanner, "spacing": 2.0, "sequences": ("FLAIR",), "seed": seed}
                make_cohort(self.data / scanner, groups, prefix=f"{scanner}{self.seed}", **options)

        def cases(scanner: str, section: str, healthy: bool = False) -> list[dict]:
            everyone = list_cases(datalist_file=self.data / scanner / "datalist.json", section=section)
            return [case for case in everyone if case["healthy"] == healthy]

        healthy = {section: cases("A", section, healthy=True) for section in ("training", "validation")}
        write_datalist(self.data / "healthy.json", healthy)
        of_a, validation = cases("A", "training"), cases("A", "validation")
        few, unlabelled = of_a[:4], of_a[4:]
        foreign = cases("B", "training")
        for name, training in (
            ("few", few),
            ("foreign", foreign),
            ("foreign_and_true", foreign + unlabelled),
            ("unlabelled", unlabelled),
        ):
            write_datalist(self.data / f"{name}.json", {"training": training, "validation": validation})
        test = {"validation": validation, "test_A": cases("A", "test"), "test_B": cases("B", "test")}
        for part, members in test.items():
            write_datalist(self.data / f"{part}.json", {"all": members})
        write_datalist(self.data / "evaluation.json", {"all": [c for part in test.values() for c in part]})

    def _run(self, configs: list[str], **overrides) -> None:
        run_configs(BUNDLE, configs, spacing=SPACING, amp=True, **overrides)

    def _train_autoencoder(self) -> None:
        logger.info("seed %d: training the auto-encoder", self.seed)
        self._run(
            ["train_autoencoder.json"],
            datalist_file=self.data / "healthy.json",
            output_dir=self.folder / "UAD" / "train",
            ckpt_dir=self.folder / "UAD" / "models",
            seed=self.seed,
            slice_size=[96, 96],
            learning_rate=0.002,
            max_epochs=8,
            val_interval=2,
            gdl_first_epoch=3,
            **AUTOENCODER,
        )

    def _pseudo_label(self, threshold: float) -> None:
        logger.info("seed %d: pseudo-labels at %.4f", self.seed, threshold)
        output_dir = self.folder / "pseudo_labels"
        self._run(
            ["inference.json", "inference_residual.json", "pseudo_label.json"],
            datalist_file=self.data / "unlabelled.json",
            section="training",
            output_dir=output_dir,
            threshold=threshold,
            threshold_source="best pooled Dice on 4 validation subjects",
            weights=self.folder / "UAD" / "models" / "autoencoder.pt",
            **RESIDUAL,
        )

    def _train_unet(self, arm: str, options: dict) -> None:
        logger.info("seed %d: training %s, %s", self.seed, arm, ARMS[arm])
        self._run(
            ["train.json"],
            output_dir=self.folder / arm / "train",
            ckpt_dir=self.folder / arm / "models",
            seed=self.seed,
            patch_size=[64, 64],
            volumes_per_epoch=60,
            max_epochs=24,
            val_interval=12,
            **UNET,
            **options,
        )

    def _predict(self, arm: str, layers: list[str] = (), weights: str = "model.pt", *, overrides: dict) -> dict:
        """Scores of an arm."""
        output_dir = self.folder / arm / "maps"
        self._run(
            ["inference.json", *layers],
            datalist_file=self.data / "evaluation.json",
            output_dir=output_dir,
            weights=self.folder / arm / "models" / weights,
            **overrides,
        )

        def maps(part: str) -> list[np.ndarray]:
            return [_read(output_dir / f"{case['name']}_prob.nii.gz") for case in self._cases(part)]

        return self._score(maps)

    def _score_threshold(self) -> dict:
        def maps(part: str) -> list[np.ndarray]:
            scans = [_read(case["image"]) for case in self._cases(part)]
            return [scan / (2 * np.median(scan[scan > 0])) for scan in scans]

        return self._score(maps)

    def _cases(self, part: str) -> list[dict]:
        return list_cases(datalist_file=self.data / f"{part}.json", require=["label"])

    def _score(self, maps: Callable[[str], list[np.ndarray]]) -> dict:
        """Pooled Dice, AUPRC and lesion F1 on both test sets at the threshold of the validation set."""
        truth = {
            part: [_read(case["label"]) > 0 for case in self._cases(part)]
            for part in ("validation", "test_A", "test_B")
        }
        _, threshold = best_dice(maps("validation"), truth["validation"])
        scores = {"threshold": float(threshold)}
        for part in ("test_A", "test_B"):
            found = maps(part)
            masks = [scan >= threshold for scan in found]
            f1 = [lesion_detection(m, t).f1 for m, t in zip(masks, truth[part], strict=True)]
            for name, value in (
                ("dice", pooled_dice(masks, truth[part])),
                ("auprc", average_precision(found, truth[part])),
                ("oracle_dice", best_dice(found, truth[part])[0]),
                ("lesion_f1", np.nanmean(f1)),
            ):
                scores[f"{name}_{part[-1]}"] = float(value)
        return scores


def _read(path: str | Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)
