"""A training step, and what it waits for."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from common.options import types as t
from running.command_line import Bundle

from .measuring import ROOT, sequences_of


def training(
    bundle: Bundle,
    steps: t.Count = 40,
    subjects: t.Count = 6,
    amp: t.Flag = False,
    num_workers: t.SmallWhole = 0,
    **overrides: object,
) -> None:
    """Time of a training step, the share of it that the data loader makes the network wait, and peak memory.

    On 1 mm phantoms, cached. The first steps of an epoch are measured.

    Args:
        bundle: name of the bundle; its train.json as it is.
        steps: measured steps, after five to warm up.
        subjects: phantoms in the training set.
        amp: network under autocast.
        num_workers: of the data loader.
        overrides: further entries of train.json to replace.
    """
    from common.data import list_cases, write_datalist
    from common.files import read_json
    from phantom.cohort import make_cohort
    from planning.cost import peak_memory_gib, time_steps
    from running.workflow import open_configs

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        groups = {"ms": (subjects, 2, 0)}
        sequences = sequences_of(bundle)
        cohort = make_cohort(Path(folder) / "cohort", groups, spacing=1.0, sequences=sequences)
        config = read_json(ROOT / "bundles" / bundle / "configs" / "train.json")
        labels = "tissues" if "label_sets" in config else "label"
        sections = {
            section: [
                {"image": [case[sequence] for sequence in sequences], "label": case[labels], "dataset": "joint"}
                | {key: case[key] for key in ("brain_mask", "subject")}
                for case in list_cases(datalist_file=cohort, sequences=sequences[:1], section=section)
            ]
            for section in ("training", "validation")
        }
        datalist = write_datalist(Path(folder) / "cases.json", sections)
        options = {
            "output_dir": f"{folder}/out",
            "ckpt_dir": f"{folder}/models",
            "num_workers": num_workers,
            "amp": amp,
        }
        options |= {"datalist_file": datalist, **overrides}
        workflow = open_configs(ROOT / "bundles" / bundle, "train", **options)
        trainer, loader = (workflow.parser.get_parsed_content(f"train#{name}") for name in ("trainer", "dataloader"))
        workflow.parser.get_parsed_content("network").train()
        step = time_steps(trainer, loader, steps, warmup=5)
    print(f"step {step.working * 1000:.0f} ms, waiting for data {step.waiting * 1000:.0f} ms")
    print(f"waiting is {step.waiting / sum(step):.1%} of the time")
    print(f"peak memory {peak_memory_gib():.2f} GiB")
