"""Small-scale check of a method's claims: ``python scripts/experiments.py uad_autoencoder``.

Every arm is trained and applied through the bundle's own configs, on phantoms of two scanners. Threshold and
checkpoint are chosen on validation subjects; test subjects are only scored. An arm that is done is not run again.
Networks are this small that one core per training is quicker than two for one: arms run side by side.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.cohort import make_cohort
from common.data import list_cases, write_datalist
from common.errors import InputError, install_error_hook
from common.metrics import average_precision, best_dice, dice, lesion_detection, pooled_dice

logger = logging.getLogger("experiments")

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
CLAIMS = {
    "A1": ("A_S", "UAD", "A", "the student beats its teacher"),
    "A3": ("B_YL+S", "B_YL", "A", "pseudo-labels repair the change of scanner"),
    "A4": ("B_YL+S", "B_YL", "B", "pseudo-labels help on the foreign scanner too"),
    "A5": ("B_YL+YU", "B_YL+S", "A", "true labels still win"),
    "A6a": ("A_YL", "A_YL+S", "A", "with labels of A, pseudo-labels hurt"),
    "A6b": ("A_YL+S", "A_S", "A", "labels of A help beside pseudo-labels"),
    "A7": ("B_YL+S", "A_S", "A", "foreign labels add something to pseudo-labels (not so in the paper)"),
}
SPACING = [2.0, 2.0, 2.0]
# a code of 3 x 3 places: with a finer one, lesions were reconstructed too (at most 0.42 Dice against 0.50)
AUTOENCODER = {"network_def#channels": [16, 32, 64, 64, 64], "network_def#latent_channels": 16}
# the rim of the brain is left out and all but the brightest twentieth; the smallest median, three voxels, is 6 mm wide
# here and takes small lesions away, so there is none
RESIDUAL = {**AUTOENCODER, "median_mm": 2.0, "erosion_mm": 6.0, "bright_quantile": 0.95}
UNET = {"network_def#features": [16, 16, 32, 64, 128, 16]}
# for the trainings, read when their processes start: one thread, and memory kept from step to step, not given back
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}


def main(
    bundle: str = "uad_autoencoder",
    output_dir: str = "experiments",
    seeds: tuple[int, ...] = (0, 1, 2),
    num_workers: int | None = None,
) -> None:
    """Run the experiment and write ``results.json`` and ``results.md``.

    Args:
        bundle: whose claims; so far uad_autoencoder.
        output_dir: everything goes to ``output_dir/bundle``.
        seeds: each makes its own subjects and its own trainings.
        num_workers: trainings at a time, on one core each; as many as cores by default.
    """
    install_error_hook()
    _start_logging()
    if bundle != "uad_autoencoder":
        raise InputError(f"bundle is {bundle!r}, expected uad_autoencoder")
    folder = Path(output_dir) / bundle
    seeds = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    os.environ.update(ENVIRONMENT)
    # spawn: a forked process may inherit a thread pool that no longer runs
    context = multiprocessing.get_context("spawn")
    results = {}
    with ProcessPoolExecutor(num_workers or os.cpu_count(), mp_context=context, initializer=_start_worker) as pool:
        for seed in seeds:
            start = time.monotonic()
            results[seed] = _Seed(folder / f"seed{seed}", seed).run(pool)
            logger.info("seed %d took %.0f s", seed, time.monotonic() - start)
    summary = summarize(results)
    (folder / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "results.md").write_text(to_markdown(summary))
    logger.info("\n%s", to_markdown(summary))


def _start_logging() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)


def _start_worker() -> None:
    install_error_hook()
    _start_logging()
    torch.set_num_threads(1)


class _Seed:
    """All arms of one seed. Goes to the processes that train, so it holds nothing but names."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.data = folder / "data"

    def run(self, pool: Executor) -> dict[str, dict]:
        """Arm -> scores."""
        self._make_data()
        few = {"datalist_file": str(self.data / "few.json")}
        foreign = {"datalist_file": str(self.data / "foreign.json")}
        foreign_and_true = {"datalist_file": str(self.data / "foreign_and_true.json")}
        pseudo = {"pseudo_datalist_file": str(self.folder / "pseudo_labels" / "datalist.json")}
        taught = {
            "A_S": {**few, **pseudo, "use_labels": False},
            "A_YL+S": {**few, **pseudo},
            "B_YL+S": {**foreign, **pseudo},
        }
        untaught = {"A_YL": few, "B_YL": foreign, "B_YL+YU": foreign_and_true}
        # the teacher first: three arms wait for it, the others need not
        teacher = pool.submit(self._once, "UAD", self._teach)
        arms = {"threshold": pool.submit(self._once, "threshold", self._score_threshold), "UAD": teacher}
        for arm, options in untaught.items():
            arms[arm] = pool.submit(self._once, arm, self._learn, arm, options)
        teacher.result()
        for arm, options in taught.items():
            arms[arm] = pool.submit(self._once, arm, self._learn, arm, options)
        return {arm: arms[arm].result() for arm in ARMS}

    def _once(self, arm: str, work: Callable[..., dict], *arguments) -> dict:
        """What ``work`` returns, kept in a file."""
        path = self.folder / arm / "scores.json"
        if path.is_file():
            return json.loads(path.read_text())
        scores = work(*arguments)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_text(json.dumps(scores, indent=2) + "\n")
        partial.replace(path)
        return scores

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
        from monai.bundle import ConfigWorkflow

        bundle = ROOT / "bundles" / "uad_autoencoder"
        files = [str(bundle / "configs" / name) for name in configs]
        workflow = ConfigWorkflow(
            files,
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=False,
            bundle_root=str(bundle),
            spacing=SPACING,
            amp=True,
            **overrides,
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()

    def _train_autoencoder(self) -> None:
        logger.info("seed %d: training the auto-encoder", self.seed)
        self._run(
            ["train_autoencoder.json"],
            datalist_file=str(self.data / "healthy.json"),
            output_dir=str(self.folder / "UAD" / "train"),
            ckpt_dir=str(self.folder / "UAD" / "models"),
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
            datalist_file=str(self.data / "unlabelled.json"),
            section="training",
            output_dir=str(output_dir),
            threshold=threshold,
            threshold_source="best pooled Dice on 4 validation subjects",
            **{"handlers": self._weights("UAD", "autoencoder.pt"), **RESIDUAL},
        )

    def _weights(self, arm: str, file: str) -> list[dict]:
        path = str(self.folder / arm / "models" / file)
        return [{"_target_": "common.engines.LoadWeights", "path": path, "network": "@network"}]

    def _train_unet(self, arm: str, options: dict) -> None:
        logger.info("seed %d: training %s, %s", self.seed, arm, ARMS[arm])
        self._run(
            ["train.json"],
            output_dir=str(self.folder / arm / "train"),
            ckpt_dir=str(self.folder / arm / "models"),
            seed=self.seed,
            patch_size=[64, 64],
            volumes_per_epoch=60,
            max_epochs=16,
            val_interval=8,
            **UNET,
            **options,
        )

    def _predict(self, arm: str, layers: list[str] = (), weights: str = "model.pt", *, overrides: dict) -> dict:
        """Scores of an arm."""
        output_dir = self.folder / arm / "maps"
        self._run(
            ["inference.json", *layers],
            datalist_file=str(self.data / "evaluation.json"),
            output_dir=str(output_dir),
            **{"handlers": self._weights(arm, weights), **overrides},
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
        """Pooled and mean Dice, AUPRC and lesion F1 on both test sets at the threshold of the validation set."""
        truth = {
            part: [_read(case["label"]) > 0 for case in self._cases(part)]
            for part in ("validation", "test_A", "test_B")
        }
        _, threshold = best_dice(maps("validation"), truth["validation"])
        scores = {"threshold": float(threshold)}
        for part in ("test_A", "test_B"):
            found = maps(part)
            masks = [scan >= threshold for scan in found]
            scores[part[-1]] = {
                "dice": float(pooled_dice(masks, truth[part])),
                "dice_per_subject": [float(dice(m, t)) for m, t in zip(masks, truth[part], strict=True)],
                "auprc": float(average_precision(found, truth[part])),
                "oracle_dice": float(best_dice(found, truth[part])[0]),
                "lesion_f1": float(
                    np.nanmean([lesion_detection(m, t).f1 for m, t in zip(masks, truth[part], strict=True)])
                ),
            }
        return scores


def _read(path: str | Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)


def summarize(results: dict[int, dict]) -> dict:
    """Means and ranges over seeds, and what became of each claim."""
    seeds = list(results)

    def values(arm: str, scanner: str, score: str) -> list[float]:
        return [results[seed][arm][scanner][score] for seed in seeds]

    arms = {
        arm: {
            scanner: {score: values(arm, scanner, score) for score in ("dice", "auprc", "oracle_dice", "lesion_f1")}
            for scanner in "AB"
        }
        for arm in ARMS
    }
    claims = {}
    for name, (better, worse, scanner, text) in CLAIMS.items():
        gaps = np.subtract(values(better, scanner, "dice"), values(worse, scanner, "dice"))
        area = np.subtract(values(better, scanner, "auprc"), values(worse, scanner, "auprc"))
        held = bool(gaps.mean() > 0 and (gaps > 0).sum() * 3 >= 2 * len(gaps))
        claims[name] = {
            "claim": text,
            "gap_dice": gaps.round(4).tolist(),
            "gap_auprc": area.round(4).tolist(),
            "held": held,
        }
    return {"seeds": seeds, "arms": arms, "claims": claims}


def to_markdown(summary: dict) -> str:
    """The two tables, means over seeds with the range in brackets."""

    def cell(numbers: list[float]) -> str:
        return f"{np.mean(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"

    lines = [
        f"Seeds {', '.join(map(str, summary['seeds']))}: mean (range). Pooled Dice at the threshold that was best on",
        "four validation subjects of scanner A.",
        "",
        "| arm | what | Dice, A | AUPRC, A | lesion F1, A | Dice, B |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm, scores in summary["arms"].items():
        a, b = scores["A"], scores["B"]
        cells = [cell(a["dice"]), cell(a["auprc"]), cell(a["lesion_f1"]), cell(b["dice"])]
        lines.append(f"| {arm} | {ARMS[arm]} | {' | '.join(cells)} |")
    lines += ["", "| claim | | gap in Dice per seed | held |", "| --- | --- | --- | --- |"]
    for name, claim in summary["claims"].items():
        gaps = ", ".join(f"{gap:+.3f}" for gap in claim["gap_dice"])
        lines.append(f"| {name} | {claim['claim']} | {gaps} | {'yes' if claim['held'] else 'no'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    fire.Fire(main)
