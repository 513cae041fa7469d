"""Anatomy from unlabelled scans and an atlas: arms and claims of Yu et al., MIDL 2020.

Phantoms of 2 mm without lesions, nine structures. Some people make the atlas, others are the scans without labels, yet
others are tested on. The good atlas is the average of eight people, the poor one a single person, blurred, as in the
paper. Every training has the same scans, network, patches and number of steps.
"""

from __future__ import annotations

import json
import logging
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from make_atlas import main as make_atlas

from common.atlas import align_atlas, icbm_atlas
from common.cohort import make_cohort
from common.data import list_cases, write_datalist
from common.metrics import dice, hd95_mm
from common.phantom import STRUCTURES
from common.workflow import run_configs

from .seed import SeedStudy

logger = logging.getLogger("experiments")

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "sae_segmentation"
ARMS = {
    "atlas_poor": "poor atlas alone",
    "atlas_good": "good atlas alone",
    "em_poor": "mixture of Gaussians, poor atlas",
    "em_good": "mixture of Gaussians, good atlas",
    "sae_poor": "SAE, poor atlas, no field",
    "sae_poor_mrf": "SAE, poor atlas",
    "sae_good": "SAE, good atlas, no field",
    "sae_good_mrf": "SAE, good atlas (default)",
    "t2_good_mrf": "default, learned and tested on T2w",
    "t2_of_t1": "default of T1w, tested on T2w",
}
SCORES = {"dice": "Dice of the structures", "hd95": "HD95, mm"}
# claim -> better arm, worse arm, score, smallest gap, what it says; the numbers are those of the specification
CLAIMS = {
    "O1a": ("sae_poor_mrf", "sae_poor", "dice", 0.0, "the field helps, poor atlas"),
    "O1b": ("sae_good_mrf", "sae_good", "dice", 0.0, "the field helps, good atlas"),
    "O2a": ("sae_good", "sae_poor", "dice", 0.03, "the good atlas beats the poor one, no field"),
    "O2b": ("sae_good_mrf", "sae_poor_mrf", "dice", 0.03, "the good atlas beats the poor one"),
    "O3a": ("sae_poor_mrf", "atlas_poor", "dice", 0.05, "SAE beats its atlas, poor atlas"),
    "O3b": ("sae_good_mrf", "atlas_good", "dice", 0.05, "SAE beats its atlas, good atlas"),
    "O4a": ("sae_poor_mrf", "em_poor", "dice", -0.005, "SAE is no worse than the mixture, poor atlas"),
    "O4b": ("sae_good_mrf", "em_good", "dice", -0.005, "SAE is no worse than the mixture, good atlas"),
    "A1": ("t2_good_mrf", "sae_good_mrf", "dice", -0.03, "another contrast is learned as well"),
    "A2": ("t2_good_mrf", "t2_of_t1", "dice", 0.1, "weights of another contrast do not do"),
}
ATLASES = {"good": {"people": 8, "sigma_mm": 1.0}, "poor": {"people": 1, "sigma_mm": 3.0}}
COMMON = {"spacing": [2.0, 2.0, 2.0], "classes": len(STRUCTURES), "prior_floor": 0.005}
TRAINING = {
    "patch_size": [48, 48, 48],
    "batch_size": 2,
    "patches_per_volume": 2,
    "max_epochs": 60,
    "val_interval": 60,
    # small classes on a coarse grid: at the rate of train.json, or with the gradient towards the neighbors, some die
    "learning_rate": 0.005,
    "one_sided": True,
    "warmup": 16,  # the paper's
}
BETA = 0.005


class Study(SeedStudy):
    """All arms of one seed."""

    def run(self, pool: Executor) -> dict[str, dict[str, float]]:
        """Arm -> scores, means over the test subjects."""
        pool.submit(_make_data, self.data, self.seed).result()
        learned = {}
        for arm, sequence in (
            ("sae_good_mrf", "T1w"),
            ("t2_good_mrf", "T2w"),
            ("sae_good", "T1w"),
            ("sae_poor_mrf", "T1w"),
            ("sae_poor", "T1w"),
        ):
            learned[arm] = pool.submit(self.once, arm, self._learn, arm, sequence)
        for atlas in ATLASES:
            for method in ("atlas", "em"):
                arm = f"{method}_{atlas}"
                learned[arm] = pool.submit(self.once, arm, self._apply, arm, "T1w", atlas, f"inference_{method}")
        learned["sae_good_mrf"].result()
        learned["t2_of_t1"] = pool.submit(self.once, "t2_of_t1", self._apply, "t2_of_t1", "T2w", "good", "sae_good_mrf")
        return {arm: learned[arm].result() for arm in ARMS}

    def _learn(self, arm: str, sequence: str) -> dict[str, float]:
        logger.info("seed %d: training %s, %s", self.seed, arm, ARMS[arm])
        _, atlas, *field = arm.split("_")
        run_configs(
            BUNDLE,
            "train",
            **self._options(sequence, atlas),
            **TRAINING,
            beta=BETA if field else 0.0,
            neighbors=f"%{self.data / atlas}.json::neighbors",
            output_dir=self.folder / arm / "train",
            ckpt_dir=self.folder / arm / "models",
            seed=self.seed,
        )
        return self._apply(arm, sequence, atlas, arm)

    def _apply(self, arm: str, sequence: str, atlas: str, method: str) -> dict[str, float]:
        """Scores of a layer on inference.json, or of the weights that an arm has learned."""
        layer = [method] if method.startswith("inference") else []
        weights = {} if layer else {"weights": str(self.folder / method / "models" / "model.pt")}
        output_dir = self.folder / arm / "maps"
        options = self._options(sequence, atlas)
        run_configs(
            BUNDLE, ["inference", *layer], output_dir=output_dir, **{"datalist#section": "test"}, **options, **weights
        )
        return _score(options["datalist_file"], output_dir)

    def _options(self, sequence: str, atlas: str) -> dict[str, Any]:
        return {
            "datalist_file": self.data / f"{sequence}.json",
            "sequences": [sequence],
            "atlas_files": str(self.data / f"{atlas}.nii.gz"),
            **COMMON,
        }


def _make_data(folder: Path, seed: int) -> None:
    """Eight scans to learn from, one to validate, six to test; atlases of other people, with neighbors in a JSON."""
    if (folder / "poor.json").is_file():
        return
    for number, (name, counts, sequences) in enumerate(
        (("people", (0, 0, max(a["people"] for a in ATLASES.values())), ("T1w",)), ("scans", (8, 1, 6), ("T1w", "T2w")))
    ):
        if not (folder / name / "datalist.json").is_file():
            make_cohort(
                folder / name,
                {"healthy": counts},
                spacing=2.0,
                sequences=sequences,
                seed=3000 + 10 * seed + number,
                prefix=f"{name}{seed}",
                label="structures",
            )
    scans = folder / "scans" / "datalist.json"
    for sequence in ("T1w", "T2w"):
        sections = {
            section: [
                {key: case[key] for key in ("image", "label", "brain_mask", "subject")}
                for case in list_cases(datalist_file=scans, sequences=[sequence], section=section)
            ]
            for section in ("training", "validation", "test")
        }
        write_datalist(folder / f"{sequence}.json", sections)
    people = list_cases(datalist_file=folder / "people" / "datalist.json", sequences=["T1w"])
    for name, recipe in ATLASES.items():
        items = [{"label": p["label"], "world_to_mni": _to_template(p["image"])} for p in people[: recipe["people"]]]
        (folder / f"{name}_people.json").write_text(json.dumps({"training": items}))
        make_atlas(
            str(folder / f"{name}.nii.gz"),
            datalist_file=str(folder / f"{name}_people.json"),
            classes={text: [value] for value, text in STRUCTURES.items()},
            sigma_mm=recipe["sigma_mm"],
        )


def _to_template(path: str) -> list[list[float]]:
    """Affine map from the world of a scan to that of the template, so that people can be averaged."""
    scan = nib.load(path)
    image = torch.from_numpy(np.asarray(scan.dataobj, dtype=np.float32))
    to_template, _ = align_atlas(icbm_atlas(), image, scan.affine)
    return to_template.tolist()


def _score(datalist: Path, output_dir: Path) -> dict[str, float]:
    """Means over the test subjects, of all structures and of each."""
    found: dict[str, list[list[float]]] = {"dice": [], "hd95": []}
    for case in list_cases(datalist_file=datalist, section="test", require=["label"]):
        scan = nib.load(output_dir / f"{case['name']}_seg.nii.gz")
        mask, truth = np.asarray(scan.dataobj), np.asarray(nib.load(case["label"]).dataobj)
        values = [value for value in STRUCTURES if value]
        found["dice"].append([dice(mask == v, truth == v) for v in values])
        found["hd95"].append([hd95_mm(mask == v, truth == v, scan.header.get_zooms()) for v in values])
    names = [name for value, name in STRUCTURES.items() if value]
    scores = {score: float(np.mean(values)) for score, values in found.items()}
    return scores | dict(zip(names, np.mean(found["dice"], axis=0).tolist(), strict=True))
