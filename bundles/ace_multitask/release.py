"""Recipe of the shipped weights: ``python scripts/train_release.py ace_multitask``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.data import write_datalist
from common.files import read_json
from release.training import PATIENTS, SECTIONS, VARIED, Release

LAST_STAGE_ALONE = True


def release(run: Release) -> None:
    """Tissue from healthy phantoms, and from real T1 scans without FLAIR if there are any; lesions from patients.

    The first two stages see lesions that are dark on T1w as they are bright on FLAIR, the last one also lesions that
    T1w hardly shows, larger ones, and drawn ones.
    """
    start = run.shipped() if run.from_shipped else _plain_lesions(run)
    cases = {
        part: {
            "lesion": run.cases(VARIED, part),
            "implanted": run.implanted(part, varied=True),
            "drawn": run.scans("lesion_scans", part),
        }
        for part in SECTIONS
    }
    datalist = _datalist(run, "ace_varied.json", ("varied_healthy",), cases)
    options = {"datalist_file": datalist, "initial_weights": start}
    # T1w alone shows few of these lesions, FLAIR alone all of them
    options |= {"channel_dropout": [0.2, 0.05], "channel_changes": 0.2, "background_patches": 0.5}
    options |= {"patch_size": [64, 64, 64], "patches_per_volume": 1, "learning_rate": 5e-4}
    run.train("varied", "train", 0.4, 150, ["finetune"], **options)
    run.ship("varied", "model.pt")
    drawn = cases["validation"]["drawn"]
    sections = {"validation": _as_set("lesion", "lesion", [*run.calibration(), *drawn])}
    run.calibrate(write_datalist(run.folder / "ace_calibration.json", sections))


def _plain_lesions(run: Release) -> Path:
    """The first two stages; returns the file of their weights."""
    cases = {
        part: {"lesion": run.cases(patients, part), "implanted": run.implanted(part)}
        for part, patients in PATIENTS.items()
    }
    # the last weights, not the best ones on phantoms of odd contrasts, which are a matter of luck
    options = {"datalist_file": _datalist(run, "ace.json", ("healthy",), cases), "channel_dropout": 0.15}
    run.train("train", "train", 0.4, 400, **options)
    # then mostly patches from anywhere in the brain, so that probabilities mean something outside of lesions too
    options |= {"background_patches": 0.75, "initial_weights": run.weights("train")}
    run.train("finetune", "train", 0.2, 300, ["train"], **options)
    return run.weights("finetune")


def _datalist(run: Release, file: str, healthy: Sequence[str], cases: dict[str, dict[str, list[dict]]]) -> Path:
    """Datalist of the cases with lesion masks, section -> data set -> cases, and of the tissue set.

    A data set of its own is drawn as often as each of the others.
    """
    tables = read_json(run.models.parent / "configs" / "train.json")["label_sets"]
    sections = {}
    for section, sets in cases.items():
        every = slice(None) if section == "training" else slice(None, None, 2)  # whole volumes take their time
        sections[section] = [
            *_as_set("tissue", "tissues", run.cases(healthy, section)[every]),
            *(case for name, found in sets.items() for case in _as_set(name, "lesion", found[every])),
            *(
                {"image": [item["T1w"], None], "label": item["label"], "dataset": "tissue"}
                for item in run.scans("tissue_scans", section)
            ),
        ]
        for name in sets:
            tables["datasets"].setdefault(name, tables["datasets"]["lesion"])
    return write_datalist(run.folder / file, sections, {"label_sets": tables})


def _as_set(dataset: str, label: str, cases: Sequence[dict]) -> list[dict]:
    """Cases: both sequences, one of the label maps, and what data set it is of."""
    return [
        {"image": [case.get("T1w"), case["FLAIR"]], "label": case[label], "dataset": dataset}
        | {key: case[key] for key in ("brain_mask", "subject")}
        for case in cases
    ]
