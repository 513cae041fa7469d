"""Which method fits the data: what each can do with a datalist, what is missing, and what it costs on this machine.

Usage, from the root of the repository, with a datalist of ``scripts/make_datalist.py``:

    python scripts/advise.py cases.json
    python scripts/advise.py cases.json --bundles NAME,NAME --output_file advice.json
    python scripts/advise.py cases.json --measure False

Every file is read. Time and memory are measured: a few steps of each training with the first scans, the settings and
the batch of its config, a validation of one scan or two, an inference of one. Nothing is kept of them.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.files import write_json
from common.options import types as t
from planning.advice import advise, read_data
from planning.report import as_dict, text_of
from running.command_line import run_command


def main(
    datalist_file: t.File,
    bundles: t.Names | None = None,
    measure: t.Flag = True,
    steps: t.Count = 3,
    device: t.Device | None = None,
    output_file: t.NewFile | None = None,
    num_workers: t.Count | None = None,
) -> None:
    """Say method by method whether it can run on a datalist, what is missing, and what it costs on this machine.

    Args:
        datalist_file: JSON of cases, as make_datalist.py writes it.
        bundles: names of those to look at; all by default.
        measure: false leaves time and memory out, which takes minutes for all bundles.
        steps: training steps to measure, after two to warm up.
        device: cpu, cuda:0, ...; by default what the configs say.
        output_file: JSON to write all of it to.
        num_workers: processes that read files; all cores by default.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns that it leaves logging alone
    data = read_data(datalist_file, num_workers)
    overrides = {} if device is None else {"device": device}
    if measure:
        print(f"{os.cpu_count()} cores with a load of {os.getloadavg()[0]:.1f}: other programs make times longer")
    advice = advise(data, bundles, measure, steps, **overrides)
    print(text_of(data, advice))
    if output_file is not None:
        write_json(output_file, as_dict(data, advice))
        print(f"wrote {output_file}")


if __name__ == "__main__":
    run_command(main)
