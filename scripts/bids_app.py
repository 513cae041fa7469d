"""Run a bundle on a BIDS data set, with the arguments of a BIDS App, and get BIDS derivatives.

Usage, from the root of the repository:

    python scripts/bids_app.py bids derivatives participant --bundle NAME
    python scripts/bids_app.py bids derivatives participant --participant_label 01,02 --bundle NAME
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.options import types as t
from derivatives import write_derivatives
from running.command_line import ROOT, Bundle, run_command


def main(
    bids_dir: t.ExistingFolder,
    output_dir: t.Folder,
    analysis_level: Literal["participant"],
    bundle: Bundle,
    participant_label: t.NamesOrNone = (),
    layers: t.NamesOrNone = (),
    overwrite: t.Flag = False,
    keep_going: t.Flag = False,
    device: t.Device | None = None,
) -> None:
    """Segment the scans of a BIDS data set, and write derivatives.

    Args:
        bids_dir: data set whose scans are skull-stripped or have brain masks.
        output_dir: of the derivatives.
        analysis_level: participants one by one.
        bundle: name of a bundle.
        participant_label: participants, without sub-; all by default.
        layers: further configs on inference.json, as inference_residual.
        overwrite: replace derivatives that are there.
        keep_going: go on with the next case if one fails.
        device: cpu, cuda:0, ...; by default what the bundle says.
    """
    options = {} if device is None else {"device": device}
    folder = ROOT / "bundles" / bundle
    write_derivatives(
        bids_dir, output_dir, folder, participant_label, layers, overwrite, keep_going=keep_going, **options
    )


if __name__ == "__main__":
    run_command(main)
