"""Anatomy from unlabeled scans and an atlas: arms and claims of Yu et al., MIDL 2020.

Phantoms without lesions, nine structures. Some people make the atlas, others are the scans without labels, yet
others are tested on. The good atlas is the average of eight people, the poor one a single person, blurred, as in the
paper. Every training has the same scans, network, patches and number of steps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.atlas import align_atlas, icbm_atlas
from common.data import list_cases, write_datalist
from common.files import write_json
from common.metrics import dice, hd95_mm
from common.scans import read_scan
from labels.atlas import read_people, write_average
from phantom import STRUCTURES
from running.workflow import run_configs, without_page

from .seed import Result, SeedStudy, phantoms, result_of
from .verdicts import Claim

logger = logging.getLogger(__name__)

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "sae_segmentation"
ARMS = {
    "atlas_poor": "poor atlas alone",
    "atlas_good": "good atlas alone",
    "em_poor": "mixture of Gaussians, poor atlas",
    "em_good": "mixture of Gaussians, good atlas",
    "sae_poor": "SAE, poor atlas, no field",
    "sae_poor_mrf": "SAE, poor atlas",
    "sae_good": "SAE, good atlas, no field",
    "sae_good_mrf": "SAE, good atlas",
    "t2_good_mrf": "the same, learned and tested on T2w",
    "t2_of_t1": "SAE, good atlas, learned on T1w, tested on T2w",
}
SCORES = {"dice": "Dice of the structures", "hd95": "HD95, mm"}
CLAIMS = {  # numbers are those of the specification
    "O1a": Claim("sae_poor_mrf", "sae_poor", "dice", 0.0, "the field helps, poor atlas"),
    "O1b": Claim("sae_good_mrf", "sae_good", "dice", 0.0, "the field helps, good atlas"),
    "O2a": Claim("sae_good", "sae_poor", "dice", 0.03, "the good atlas beats the poor one, no field"),
    "O2b": Claim("sae_good_mrf", "sae_poor_mrf", "dice", 0.03, "the good atlas beats the poor one"),
    "O3a": Claim("sae_poor_mrf", "atlas_poor", "dice", 0.05, "SAE beats its atlas, poor atlas"),
    "O3b": Claim("sae_good_mrf", "atlas_good", "dice", 0.05, "SAE beats its atlas, good atlas"),
    "O4a": Claim("sae_poor_mrf", "em_poor", "dice", -0.005, "SAE is no worse than the mixture, poor atlas"),
    "O4b": Claim("sae_good_mrf", "em_good", "dice", -0.005, "SAE is no worse than the mixture, good atlas"),
    "A1": Claim("t2_good_mrf", "sae_good_mrf", "dice", -0.03, "another contrast is learned as well"),
    "A2": Claim("t2_good_mrf", "t2_of_t1", "dice", 0.1, "weights of another contrast do not do"),
}
LESS_IS_BETTER = ("hd95",)
# table 1
PAPER = {
    "atlas_poor": {"dice": 0.6282, "hd95": 4.11},
    "atlas_good": {"dice": 0.7145, "hd95": 3.50},
    "em_poor": {"dice": 0.7124, "hd95": 4.25},
    "em_good": {"dice": 0.7970, "hd95": 2.65},
    "sae_poor": {"dice": 0.7464, "hd95": 3.88},
    "sae_poor_mrf": {"dice": 0.7536, "hd95": 3.81},
    "sae_good": {"dice": 0.7994, "hd95": 2.73},
    "sae_good_mrf": {"dice": 0.8054, "hd95": 2.68},
}
PAPER_NOTE = "T1w of 38 people, twelve structures, 1 mm; a single person made the poor atlas"
FULL = {
    "atlases": {"good": {"people": 8, "sigma_mm": 1.0}, "poor": {"people": 1, "sigma_mm": 3.0}},
    "scans": (8, 1, 6),
    "fine_mm": 1.0,
    "common": {"spacing": [2.0, 2.0, 2.0], "classes": len(STRUCTURES), "prior_floor": 0.005},
    "training": {
        "patch_size": [48, 48, 48],
        "batch_size": 2,
        "patches_per_volume": 2,
        "max_epochs": 60,
        "val_interval": 60,
        # at the rate of train.json, or with the gradient towards the neighbors, some small classes die
        "learning_rate": 0.005,
        "one_sided": True,
        "warmup": 16,  # the paper's
    },
    "beta": 0.005,
}
COARSE = {**FULL["common"], "spacing": [3.0, 3.0, 3.0]}
BUDGETS = {
    "gpu": FULL,
    # patches of the same extent in mm
    "cpu": {
        **FULL,
        "common": COARSE,
        "training": {**FULL["training"], "patch_size": [32, 32, 32], "max_epochs": 28, "val_interval": 28},
    },
    "tiny": {
        **FULL,
        "atlases": {"good": {"people": 2, "sigma_mm": 1.0}, "poor": {"people": 1, "sigma_mm": 3.0}},
        "scans": (2, 1, 2),
        "fine_mm": 4.0,
        "common": {**COARSE, "spacing": [4.0, 4.0, 4.0]},
        "training": {**FULL["training"], "patch_size": [16, 16, 16], "max_epochs": 1, "val_interval": 1, "warmup": 0},
    },
}


class Study(SeedStudy):
    """All arms of one seed."""

    def run(self, pool: Executor) -> dict[str, Result]:
        """Arm -> result, means over the test subjects."""
        pool.submit(self.once, "data", _make_data, self.data, self.seed, self.settings).result()
        learned = {}
        for arm, sequence in (
            ("sae_good_mrf", "T1w"),
            ("t2_good_mrf", "T2w"),
            ("sae_good", "T1w"),
            ("sae_poor_mrf", "T1w"),
            ("sae_poor", "T1w"),
        ):
            learned[arm] = pool.submit(self.once, arm, self._learn, arm, sequence)
        for atlas in self.settings["atlases"]:
            for method in ("atlas", "em"):
                arm = f"{method}_{atlas}"
                learned[arm] = pool.submit(self.once, arm, self._apply, arm, "T1w", atlas, f"inference_{method}")
        learned["sae_good_mrf"].result()
        learned["t2_of_t1"] = pool.submit(self.once, "t2_of_t1", self._apply, "t2_of_t1", "T2w", "good", "sae_good_mrf")
        return {arm: learned[arm].result() for arm in ARMS}

    def _learn(self, arm: str, sequence: str) -> Result:
        logger.info("seed %d: training %s, %s", self.seed, arm, ARMS[arm])
        _, atlas, *field = arm.split("_")
        run_configs(
            BUNDLE,
            "train",
            **self._options(sequence, atlas),
            **self.settings["training"],
            beta=self.settings["beta"] if field else 0.0,
            neighbors_file=self.data / f"{atlas}.json",
            output_dir=self.folder / arm / "train",
            ckpt_dir=self.folder / arm / "models",
            seed=self.seed,
        )
        return self._apply(arm, sequence, atlas, arm)

    def _apply(self, arm: str, sequence: str, atlas: str, method: str) -> Result:
        """Scores of a layer on inference.json, or of the weights that an arm has learned."""
        layer = [method] if method.startswith("inference") else []
        weights = {} if layer else {"weights": str(self.folder / method / "models" / "model.pt")}
        output_dir = self.folder / arm / "maps"
        options = self._options(sequence, atlas)
        options |= {"output_dir": output_dir, "overwrite": True, "datalist#section": "test"}
        options |= without_page(BUNDLE, ["inference", *layer])
        run_configs(BUNDLE, ["inference", *layer], **options, **weights)
        return _score(options["datalist_file"], output_dir)

    def _options(self, sequence: str, atlas: str) -> dict[str, Any]:
        return {
            "datalist_file": self.data / f"{sequence}.json",
            "sequences": [sequence],
            "atlas_files": str(self.data / f"{atlas}.nii.gz"),
            **self.settings["common"],
        }


def _make_data(folder: Path, seed: int, settings: Mapping[str, Any]) -> Result:
    """Scans to learn from, to validate and to test; atlases of other people, with neighbors in a JSON."""
    people = max(recipe["people"] for recipe in settings["atlases"].values())
    for number, (name, counts, sequences) in enumerate(
        (("people", (0, 0, people), ("T1w",)), ("scans", settings["scans"], ("T1w", "T2w")))
    ):
        phantoms(
            folder / name,
            {"healthy": counts},
            spacing=settings["common"]["spacing"][0],
            sequences=sequences,
            seed=3000 + 10 * seed + number,
            prefix=f"{name}{seed}",
            label="structures",
            fine_mm=settings["fine_mm"],
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
    for name, recipe in settings["atlases"].items():
        items = [{"label": p["label"], "world_to_mni": _to_template(p["image"])} for p in people[: recipe["people"]]]
        write_json(folder / f"{name}_people.json", {"training": items})
        listed = read_people(None, str(folder / f"{name}_people.json"), "training")
        groups = {text: [value] for value, text in STRUCTURES.items()}
        write_average(folder / f"{name}.nii.gz", listed, groups, recipe["sigma_mm"])
    return {}


def _to_template(path: str) -> list[list[float]]:
    """Affine map from the world of a scan to that of the template, so that people can be averaged."""
    image, scan = read_scan(path)
    to_template, _ = align_atlas(icbm_atlas(), torch.from_numpy(image), scan.affine)
    return to_template.tolist()


def _score(datalist: Path, output_dir: Path) -> Result:
    """Means over the structures of every test subject, and the Dice of each structure."""
    values = {value: name for value, name in STRUCTURES.items() if value}
    cases: dict[str, dict[str, tuple[float, float]]] = {"dice": {}, "hd95": {}}
    found = []
    for case in list_cases(datalist_file=datalist, section="test", require=["label"]):
        mask, scan = read_scan(output_dir / f"{case['name']}_seg.nii.gz")
        truth, _ = read_scan(case["label"])
        distances = [hd95_mm(mask == v, truth == v, scan.header.get_zooms()) for v in values]
        found.append([dice(mask == v, truth == v) for v in values])
        cases["dice"][case["subject"]] = sum(found[-1]), len(values)
        cases["hd95"][case["subject"]] = sum(distances), len(values)
    return result_of(cases, **dict(zip(values.values(), np.mean(found, axis=0).tolist(), strict=True)))
