"""Any anomaly from healthy scans and labels of one pathology: arms and claims of Behrendt et al., MIDL 2024.

Phantoms with tumours (T) and infarcts (K). Labels there are of tumours only, or none, with painted anomalies
(P) in their place. Checkpoints are chosen on validation subjects; the best possible Dice is, as in the paper, that of
the threshold which suits the test subjects best. The score is linear in both of its maps, so each map is made once and
weights are varied afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from common.data import list_cases, write_datalist
from common.metrics import average_precision, best_dice
from running.workflow import run_configs, without_page

from .seed import Result, SeedStudy, dice_parts, phantoms, result_of, voxels
from .verdicts import Claim

logger = logging.getLogger(__name__)

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
    "dice_T": "best Dice of any threshold, T",
    "auprc_K": "AUPRC, K",
    "dice_K": "best Dice of any threshold, K",
    "ssim": "SSIM, healthy",
}
CLAIMS = {  # B numbers are those of the specification
    "B1a": Claim("SADM_res_T", "cDDPM", "dice_T", 0.0, "known pathology: both are better than the reconstruction"),
    "B1b": Claim("SADM_res_T", "Unet_res_T", "dice_T", 0.0, "known pathology: both are better than the U-Net"),
    "B1c": Claim("Unet_res_T", "Unet_T", "dice_T", 0.0, "known pathology: the residual helps the U-Net"),
    "B2a": Claim("SADM_res_T", "cDDPM", "dice_K", -0.01, "unknown pathology: as good as the reconstruction"),
    "B2b": Claim("SADM_res_T", "Unet_res_T", "dice_K", 0.0, "unknown pathology: better than the U-Net with residual"),
    "B2c": Claim("SADM_res_T", "Unet_T", "dice_K", 0.0, "unknown pathology: better than the plain U-Net"),
    "B4a": Claim("SADM_res_P", "cDDPM", "dice_T", 0.0, "no labels: better than the reconstruction, T"),
    "B4b": Claim("SADM_res_P", "cDDPM", "dice_K", 0.0, "no labels: better than the reconstruction, K"),
    "B4c": Claim("SADM_res_P", "Unet_res_P", "dice_T", 0.0, "no labels: better than the U-Net, T"),
    "B4d": Claim("SADM_res_P", "Unet_res_P", "dice_K", 0.0, "no labels: better than the U-Net, K"),
    "B4e": Claim("Unet_res_P", "Unet_P", "dice_T", 0.0, "no labels: the residual helps the U-Net, T"),
    "L": Claim("cDDPM", "DAE", "dice_T", 0.0, "diffusion is better than a denoising auto-encoder, T"),
}
LESS_IS_BETTER = ()


def _figures(*columns: float) -> Result:
    """A line of table 1: best Dice and AUPRC in percent, on tumors and on strokes."""
    return dict(zip(("dice_T", "auprc_T", "dice_K", "auprc_K"), (value / 100 for value in columns), strict=True))


PAPER = {
    "DAE": _figures(55.93, 56.42, 19.95, 18.18),
    "cDDPM": _figures(58.55, 59.09, 24.74, 21.76),
    "Unet_T": _figures(64.81, 69.24, 11.82, 10.32),
    "Unet_res_T": _figures(67.01, 71.80, 17.33, 15.55),
    "SADM_T": _figures(69.01, 72.62, 25.25, 21.03),
    "SADM_res_T": _figures(69.68, 73.34, 26.77, 23.22),
    "Unet_P": _figures(40.75, 37.64, 16.91, 15.25),
    "Unet_res_P": _figures(45.80, 44.05, 18.44, 16.81),
    "SADM_res_P": _figures(60.53, 60.27, 27.78, 24.57),
}
PAPER_NOTE = "tumors of BraTS for T, strokes of ATLAS for K, anomalies of DRAEM for P; healthy scans of IXI"
FULL = {
    "groups": {"healthy": (30, 4, 4), "tumour": (24, 4, 8), "infarct": (0, 0, 8)},
    "fine_mm": 1.0,
    "grid": {"spacing": [3.0, 3.0, 3.0]},
    "slice_size": [64, 64],
    "median_mm": 9.0,
    "diffusion": {"channels": [16, 32, 32], "encoder_channels": [8, 16, 32, 64], "condition_channels": 64},
    "unet": {"segmentation_def#channels": [8, 16, 32]},
    "stage1": {"max_epochs": 40, "val_interval": 10, "learning_rate": 0.002},
    "stage2": {
        "max_epochs": 100,
        "val_interval": 25,
        "batch_size": 4,
        "slices_per_volume": 4,
        "learning_rate": 0.002,
    },
}
BUDGETS = {
    "gpu": FULL,
    "cpu": {
        **FULL,
        "grid": {"spacing": [4.0, 4.0, 4.0]},
        "slice_size": [48, 48],
        "median_mm": 12.0,  # of three voxels, as in the full size
        "stage1": {**FULL["stage1"], "max_epochs": 20, "val_interval": 5},
        "stage2": {**FULL["stage2"], "max_epochs": 40, "val_interval": 20},
    },
    "tiny": {
        **FULL,
        "groups": {"healthy": (2, 1, 1), "tumour": (2, 1, 2), "infarct": (0, 0, 2)},
        "fine_mm": 6.0,
        "grid": {"spacing": [6.0, 6.0, 6.0]},
        "slice_size": [32, 32],
        "median_mm": 6.0,
        "stage1": {"max_epochs": 1, "val_interval": 1},
        "stage2": {"max_epochs": 1, "val_interval": 1, "slices_per_volume": 1},
    },
}


class Study(SeedStudy):
    """All arms of one seed."""

    def run(self, pool: Executor) -> dict[str, Result]:
        """Arm -> result."""
        pool.submit(self.once, "data", _make_data, self.data, self.seed, self.settings).result()
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
        found |= {arm: future.result() for arm, future in trained.items()}
        found |= {"DAE": light.result(), "threshold": threshold.result()}
        for arm, unet, beta in (
            ("SADM_T", "Unet_T", 0.5),
            ("SADM_res_T", "Unet_res_T", 0.5),
            ("SADM_res_T 0.1", "Unet_res_T", 0.1),
            ("SADM_res_T 0.8", "Unet_res_T", 0.8),
            ("SADM_res_P", "Unet_res_P", 0.5),
        ):
            trained[arm] = pool.submit(self.once, arm, self._fused, unet, beta)
        found |= {arm: future.result() for arm, future in trained.items()}
        return {arm: found[arm] for arm in ARMS}

    def _diffusion(self) -> Result:
        self._train(
            "cDDPM", ["train_diffusion"], "healthy", **self.settings["stage1"], **self._diffusion_parts("network_def")
        )
        # a U-Net is part of the network: one that was never trained, and is not asked
        self._train("cDDPM", ["train"], "patients", "untrained", max_epochs=1, residual=False)
        return self._predict("cDDPM", ["inference_reconstruction"], "untrained", ssim=self._similarity())

    def _light(self) -> Result:
        self._train("DAE", ["train_diffusion", "train_diffusion_light"], "healthy", **self.settings["stage1"])
        self._train("DAE", ["train", "train_light"], "patients", "untrained", max_epochs=1, residual=False)
        return self._predict("DAE", ["inference_light"], "untrained", beta=1.0)

    def _unet(self, arm: str, cases: str, residual: bool) -> Result:
        weights = {"diffusion_weights": self.folder / "cDDPM" / "models" / "diffusion.pt"}
        self._train(arm, ["train"], cases, residual=residual, **self.settings["stage2"], **weights)
        return self._predict(arm, ["inference_unet"], residual=residual)

    def _threshold(self) -> Result:
        self._run("threshold", ["inference_threshold"], "test", median_mm=self._one_voxel)
        return self._score(lambda case: self._map("threshold", case))

    def _fused(self, unet: str, beta: float) -> Result:
        def score(case: dict[str, Any]) -> np.ndarray:
            return beta * self._map("cDDPM", case) + (1 - beta) * self._map(unet, case)

        return self._score(score)

    def _train(self, arm: str, configs: list[str], cases: str, name: str | None = None, **options: Any) -> None:
        """Train; the weights are ``<name>.pt``, or what the config calls them."""
        logger.info("seed %d: training %s, %s", self.seed, arm, ", ".join(configs))
        models = self.folder / arm / "models"
        if configs[0] == "train":
            key = "healthy_datalist_file" if cases == "painted" else "datalist_file"
            options = {key: self.data / f"{cases}.json", "beta": 0.0, **self.settings["unet"], **options}
            if configs == ["train"]:
                options |= self._diffusion_parts("reconstruction_def")
                options.setdefault("diffusion_weights", models / "diffusion.pt")
        else:
            options = {"datalist_file": self.data / f"{cases}.json", **options}
        if name is not None:
            options["weights_name"] = f"{name}.pt"
        folder = self.folder / arm / "-".join(configs)
        options |= {"slice_size": self.settings["slice_size"], "amp": "auto", **self.settings["grid"]}
        run_configs(BUNDLE, configs, output_dir=folder, ckpt_dir=models, seed=self.seed, **options)

    def _predict(
        self, arm: str, layers: list[str], name: str = "model", ssim: float | None = None, **options: Any
    ) -> Result:
        """Scores of the maps that an arm writes."""
        options = {"residual": name != "untrained", **self.settings["unet"], **options}
        options["median_mm"] = self.settings["median_mm"]
        if "inference_light" not in layers:
            options |= self._diffusion_parts("reconstruction_def")
        options["weights"] = self.folder / arm / "models" / f"{name}.pt"
        options["statistics_file"] = self.folder / ("DAE" if arm == "DAE" else "cDDPM") / "models" / "statistics.json"
        self._run(arm, ["inference", *layers], "test", **options)
        return self._score(lambda case: self._map(arm, case), **({} if ssim is None else {"ssim": ssim}))

    def _similarity(self) -> float:
        """Mean SSIM of healthy test subjects and their reconstructions, in the brain."""
        folder = self.folder / "cDDPM"
        self._run(
            "cDDPM",
            ["inference", "inference_reconstruction"],
            "healthy_test",
            folder=folder / "healthy",
            residual=False,
            median_mm=self._one_voxel,
            weights=folder / "models" / "untrained.pt",
            statistics_file=folder / "models" / "statistics.json",
            **self._diffusion_parts("reconstruction_def"),
            **self.settings["unet"],
        )
        found = []
        for case in self._cases("healthy_test"):
            brain = voxels(case["brain_mask"]) > 0
            found.append(1 - voxels(folder / "healthy" / f"{case['name']}_prob.nii.gz")[brain].mean())
        return float(np.mean(found))

    def _run(self, arm: str, configs: list[str], cases: str, folder: Path | None = None, **options: Any) -> None:
        folder = folder or self.folder / arm / "maps"
        run_configs(
            BUNDLE,
            configs,
            datalist_file=self.data / f"{cases}.json",
            output_dir=folder,
            overwrite=True,
            **without_page(BUNDLE, configs),
            **self.settings["grid"],
            **options,
        )

    def _cases(self, name: str) -> list[dict[str, Any]]:
        return list_cases(datalist_file=self.data / f"{name}.json", sequences=["T1w"])

    def _map(self, arm: str, case: dict[str, Any]) -> np.ndarray:
        return voxels(self.folder / arm / "maps" / f"{case['name']}_prob.nii.gz")

    def _score(self, score_of: Callable[[dict[str, Any]], np.ndarray], **more: float) -> Result:
        """AUPRC and best Dice of pooled voxels, the latter subject by subject at the threshold that suits all best."""
        cases, values = {}, {}
        for letter, pathology in (("T", "tumour"), ("K", "infarct")):
            members = [case for case in self._cases("test") if case["pathology"] == pathology]
            brains = [voxels(case["brain_mask"]) > 0 for case in members]
            maps = [score_of(case)[brain] for case, brain in zip(members, brains, strict=True)]
            truth = [voxels(case["label"])[brain] > 0 for case, brain in zip(members, brains, strict=True)]
            values[f"auprc_{letter}"] = float(average_precision(maps, truth))
            _, threshold = best_dice(maps, truth)
            cases[f"dice_{letter}"] = {
                case["subject"]: dice_parts(scores >= threshold, lesion)
                for case, scores, lesion in zip(members, maps, truth, strict=True)
            }
        return result_of(cases, **values, **more)

    def _diffusion_parts(self, name: str) -> dict[str, Any]:
        return {f"{name}#{key}": value for key, value in self.settings["diffusion"].items()}

    @property
    def _one_voxel(self) -> float:
        """Width in mm of a median that changes nothing."""
        return self.settings["grid"]["spacing"][0]


def _make_data(folder: Path, seed: int, settings: Mapping[str, Any]) -> Result:
    """The cohort, and the lists of who is used for what."""
    datalist = phantoms(
        folder / "scans",
        settings["groups"],
        spacing=settings["grid"]["spacing"][0],
        sequences=("T1w",),
        seed=6000 + seed,
        prefix=f"d{seed}",
        fine_mm=settings["fine_mm"],
    )

    def cases(section: str, *pathologies: str) -> list[dict[str, Any]]:
        every = list_cases(datalist_file=datalist, sequences=["T1w"], section=section)
        return [case for case in every if case["pathology"] in pathologies]

    for name, pathology in (("healthy", "healthy"), ("patients", "tumour")):
        sections = {section: cases(section, pathology) for section in ("training", "validation")}
        write_datalist(folder / f"{name}.json", sections)
    # as many volumes as there are patients, so that trainings are equally long
    patients = settings["groups"]["tumour"][0]
    painted = {"training": cases("training", "healthy")[:patients], "validation": cases("validation", "healthy")}
    write_datalist(folder / "painted.json", painted)
    write_datalist(folder / "healthy_test.json", {"test": cases("test", "healthy")})
    write_datalist(folder / "test.json", {"test": cases("test", "tumour", "infarct")})
    return {}
