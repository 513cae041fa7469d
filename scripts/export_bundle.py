"""Export the network of a bundle as TorchScript and ONNX: each is compared with the network in PyTorch.

Usage, from the root of the repository:

    python scripts/export_bundle.py NAME --output_dir exports

TorchScript is made by script, or by trace where the model card says so; ONNX by the tracing exporter of torch, for any
batch and any size that the network takes. The network of ``inference.json`` is exported, one tensor to one: what comes
before and after it, and windows over a large image, are the caller's.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.options import types as t
from release.exporting import export_bundle
from running.command_line import Bundle, run_command


def main(bundle: Bundle, output_dir: t.Folder) -> None:
    """Export a bundle; prints the paths of the files.

    Args:
        bundle: its name.
        output_dir: of the files.
    """
    for path in export_bundle(bundle, output_dir):
        print(path)


if __name__ == "__main__":
    run_command(main)
