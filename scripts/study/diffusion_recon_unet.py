"""Any anomaly from healthy scans and labels of one pathology: arms and claims of Behrendt et al., MIDL 2024.

Phantoms of 3 mm with tumours (T) and infarcts (K). Labels there are of tumours only, or none, with painted anomalies
(P) in their place. Checkpoints are chosen on validation subjects; the best possible Dice is, as in the paper, that of
the threshold which suits the test subjects best. The score is linear in both of its maps, so each map is made once and
weights are varied afterwards.
"""

from __future__ import annotations

import logging
import math
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from common.cohort import make_cohort
from common.data import list_cases, write_datalist
from common.metrics import average_precision, best_dice
from common.workflow import run_configs

from .seed import SeedStudy

logger = logging.getLogger("experiments")

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "diffusion_recon_unet"
ARMS = {
    "threshold": "plain T1 threshold, dark",
    "DAE": "denoising auto-encoder, 1 - SSIM",
    "cDDPM": "diffusion, 1 - SSIM",
    "Unet_T": "U-Net on the image, labels of T",
    "Unet_res_T": "U-Net on image and residual, labels of T",
    "SADM_T": "cDDPM + Unet_T",
    "SADM_res_T": "cDDPM + Unet_res_T",
    "SADM_res_T 0.1": "the same, cDDPM with weight 0.1",
    "SADM_res_T 0.8": "the same, cDDPM with weight 0.8",
    "Unet_P": "U-Net on the image, painted anomalies",
    "Unet_res_P": "U-Net on image and residual, painted anomalies",
    "SADM_res_P": "cDDPM + Unet_res_P",
}
SCORES = {
    "auprc_T": "AUPRC, T",
    "dice_T": "best Dice, T",
    "auprc_K": "AUPRC, K",
    "dice_K": "best Dice, K",
    "ssim": "SSIM, healthy",
}
# claim -> better arm, worse arm, score, smallest gap, what it says; B numbers are those of the specification
CLAIMS = {
    "B1a": ("SADM_res_T", "cDDPM", "dice_T", 0.0, "known pathology: both are better than the reconstruction"),
    "B1b": ("SADM_res_T", "Unet_res_T", "dice_T", 0.0, "known pathology: both are better than the U-Net"),
    "B1c": ("Unet_res_T", "Unet_T", "dice_T", 0.0, "known pathology: the residual helps the U-Net"),
    "B2a": ("SADM_res_T", "cDDPM", "dice_K", -0.01, "unknown pathology: as good as the reconstruction"),
    "B2b": ("SADM_res_T", "Unet_res_T", "dice_K", 0.0, "unknown pathology: better than the U-Net with residual"),
    "B2c": ("SADM_res_T", "Unet_T", "dice_K", 0.0, "unknown pathology: better than the plain U-Net"),
    "B4a": ("SADM_res_P", "cDDPM", "dice_T", 0.0, "no labels: better than the reconstruction, T"),
    "B4b": ("SADM_res_P", "cDDPM", "dice_K", 0.0, "no labels: better than the reconstruction, K"),
    "B4c": ("SADM_res_P", "Unet_res_P", "dice_T", 0.0, "no labels: better than the U-Net, T"),
    "B4d": ("SADM_res_P", "Unet_res_P", "dice_K", 0.0, "no labels: better than the U-Net, K"),
    "B4e": ("Unet_res_P", "Unet_P", "dice_T", 0.0, "no labels: the residual helps the U-Net, T"),
    "L": ("cDDPM", "DAE", "dice_T", 0.0, "diffusion is better than a denoising auto-encoder, T"),
}
GRID = {"spacing": [3.0, 3.0, 3.0]}
TRAINING = {**GRID, "slice_size": [64, 64], "amp": True}
DIFFUSION = {"channels": [16, 32, 32], "encoder_channels": [8, 16, 32, 64], "condition_channels": 64}
UNET = {"segmentation_def#channels": [8, 16, 32]}
STAGE1 = {"max_epochs": 40, "val_interval": 10, "learning_rate": 0.002}
STAGE2 = {"max_epochs": 100, "val_interval": 25, "batch_size": 4, "slices_per_volume": 4, "learning_rate": 0.002}
MEDIAN = {"median_mm": 9.0}


class Study(SeedStudy):
    """All arms of one seed."""

    def run(self, pool: Executor) -> dict[str, dict[str, float]]:
        """Arm -> scores."""
        pool.submit(_make_data, self.data, self.seed).result()
        stage1 = pool.submit(self.once, "cDDPM", self._diffusion)
        light = pool.submit(self.once, "DAE", self._light)
        threshold = pool.submit(self.once, "threshold", self._threshold)
        found = {"cDDPM": stage1.result()}
        nets = {
            "Unet_T": ("patients", False),
            "Unet_res_T": ("patients", True),
            "Unet_P": ("painted", False),
            "Unet_res_P": ("painted", True),
        }
        trained = {arm: pool.submit(self.once, arm, self._unet, arm, *options) for arm, options in nets.items()}
        found |= {"DAE": light.result(), "threshold": threshold.result()}
        found |= {arm: future.result() for arm, future in trained.items()}
        for arm, unet, beta in (
            ("SADM_T", "Unet_T", 0.5),
            ("SADM_res_T", "Unet_res_T", 0.5),
            ("SADM_res_T 0.1", "Unet_res_T", 0.1),
            ("SADM_res_T 0.8", "Unet_res_T", 0.8),
            ("SADM_res_P", "Unet_res_P", 0.5),
        ):
            found[arm] = self.once(arm, self._fused, unet, beta)
        return {arm: {"ssim": math.nan, **found[arm]} for arm in ARMS}

    def _diffusion(self) -> dict[str, float]:
        self._train("cDDPM", ["train_diffusion"], "healthy", **STAGE1, **_parts("network_def", DIFFUSION))
        # a U-Net is part of the network: one that was never trained, and is not asked
        self._train("cDDPM", ["train"], "patients", "untrained", max_epochs=1, residual=False)
        ssim = self._similarity()
        return self._predict("cDDPM", ["inference_reconstruction"], "untrained") | {"ssim": ssim}

    def _light(self) -> dict[str, float]:
        stage1 = {**STAGE1, "max_epochs": 20}
        self._train("DAE", ["train_diffusion", "train_diffusion_light"], "healthy", **stage1)
        self._train("DAE", ["train", "train_light"], "patients", "untrained", max_epochs=1, residual=False)
        return self._predict("DAE", ["inference_light"], "untrained", beta=1.0)

    def _unet(self, arm: str, cases: str, residual: bool) -> dict[str, float]:
        weights = {"diffusion_weights": self.folder / "cDDPM" / "models" / "diffusion.pt"}
        self._train(arm, ["train"], cases, residual=residual, **STAGE2, **weights)
        return self._predict(arm, ["inference_unet"], residual=residual)

    def _threshold(self) -> dict[str, float]:
        self._run("threshold", ["inference_threshold"], "test", median_mm=3.0)
        return self._score(lambda case: self._map("threshold", case))

    def _fused(self, unet: str, beta: float) -> dict[str, float]:
        def score(case: dict[str, Any]) -> np.ndarray:
            return beta * self._map("cDDPM", case) + (1 - beta) * self._map(unet, case)

        return self._score(score)

    def _train(self, arm: str, configs: list[str], cases: str, name: str | None = None, **options: Any) -> None:
        """Train; the weights are ``<name>.pt``, or what the config calls them."""
        logger.info("seed %d: training %s, %s", self.seed, arm, ", ".join(configs))
        models = self.folder / arm / "models"
        if configs[0] == "train":
            key = "healthy_datalist_file" if cases == "painted" else "datalist_file"
            options = {key: self.data / f"{cases}.json", "beta": 0.0, **UNET, **options}
            if configs == ["train"]:
                options |= _parts("reconstruction_def", DIFFUSION)
                options.setdefault("diffusion_weights", models / "diffusion.pt")
        else:
            options = {"datalist_file": self.data / f"{cases}.json", **options}
        if name is not None:
            options["weights_name"] = f"{name}.pt"
        folder = self.folder / arm / "-".join(configs)
        run_configs(BUNDLE, configs, output_dir=folder, ckpt_dir=models, seed=self.seed, **TRAINING, **options)

    def _predict(self, arm: str, layers: list[str], name: str = "model", **options: Any) -> dict[str, float]:
        """Scores of the maps that an arm writes."""
        options = {"residual": name != "untrained", **UNET, **MEDIAN, **options}
        if "inference_light" not in layers:
            options |= _parts("reconstruction_def", DIFFUSION)
        options["weights"] = self.folder / arm / "models" / f"{name}.pt"
        options["statistics_file"] = self.folder / ("DAE" if arm == "DAE" else "cDDPM") / "models" / "statistics.json"
        self._run(arm, ["inference", *layers], "test", **options)
        return self._score(lambda case: self._map(arm, case))

    def _similarity(self) -> float:
        """Mean SSIM of healthy validation subjects and their reconstructions, in the brain."""
        folder = self.folder / "cDDPM"
        self._run(
            "cDDPM",
            ["inference", "inference_reconstruction"],
            "healthy_test",
            folder=folder / "healthy",
            residual=False,
            median_mm=3.0,  # one voxel: no median
            weights=folder / "models" / "untrained.pt",
            statistics_file=folder / "models" / "statistics.json",
            **_parts("reconstruction_def", DIFFUSION),
            **UNET,
        )
        found = []
        for case in self._cases("healthy_test"):
            brain = _read(case["brain_mask"]) > 0
            found.append(1 - _read(folder / "healthy" / f"{case['name']}_prob.nii.gz")[brain].mean())
        return float(np.mean(found))

    def _run(self, arm: str, configs: list[str], cases: str, folder: Path | None = None, **options: Any) -> None:
        folder = folder or self.folder / arm / "maps"
        run_configs(BUNDLE, configs, datalist_file=self.data / f"{cases}.json", output_dir=folder, **GRID, **options)

    def _cases(self, name: str) -> list[dict[str, Any]]:
        return list_cases(datalist_file=self.data / f"{name}.json", sequences=["T1w"])

    def _map(self, arm: str, case: dict[str, Any]) -> np.ndarray:
        return _read(self.folder / arm / "maps" / f"{case['name']}_prob.nii.gz")

    def _score(self, score_of: Any) -> dict[str, float]:
        scores = {}
        for letter, pathology in (("T", "tumour"), ("K", "infarct")):
            cases = [case for case in self._cases("test") if case["pathology"] == pathology]
            brains = [_read(case["brain_mask"]) > 0 for case in cases]
            maps = [score_of(case)[brain] for case, brain in zip(cases, brains, strict=True)]
            truth = [_read(case["label"])[brain] > 0 for case, brain in zip(cases, brains, strict=True)]
            scores[f"auprc_{letter}"] = float(average_precision(maps, truth))
            scores[f"dice_{letter}"] = float(best_dice(maps, truth)[0])
        return scores


def _parts(name: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}#{key}": value for key, value in values.items()}


def _make_data(folder: Path, seed: int) -> None:
    """The cohort, and the lists of who is used for what."""
    if (folder / "test.json").is_file():
        return
    if not (folder / "scans" / "datalist.json").is_file():
        groups = {"healthy": (30, 4, 4), "tumour": (24, 4, 8), "infarct": (0, 0, 8)}
        options = {"spacing": 3.0, "sequences": ("T1w",), "seed": 6000 + seed, "prefix": f"d{seed}", "num_workers": 1}
        make_cohort(folder / "scans", groups, **options)

    def cases(section: str, *pathologies: str) -> list[dict[str, Any]]:
        every = list_cases(datalist_file=folder / "scans" / "datalist.json", sequences=["T1w"], section=section)
        return [case for case in every if case["pathology"] in pathologies]

    for name, pathology in (("healthy", "healthy"), ("patients", "tumour")):
        sections = {section: cases(section, pathology) for section in ("training", "validation")}
        write_datalist(folder / f"{name}.json", sections)
    # as many volumes as there are patients, so that trainings are equally long
    painted = {"training": cases("training", "healthy")[:24], "validation": cases("validation", "healthy")}
    write_datalist(folder / "painted.json", painted)
    write_datalist(folder / "healthy_test.json", {"test": cases("test", "healthy")})
    write_datalist(folder / "test.json", {"test": cases("test", "tumour", "infarct")})


def _read(path: str | Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)
