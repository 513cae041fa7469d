"""Export the network of a bundle as TorchScript and as ONNX, each compared with the network in PyTorch.

Usage, from the root of the repository:

    python scripts/export_bundle.py NAME --output_dir exports

TorchScript is made by script, or by trace where the model card says so; ONNX by the tracing exporter of torch, for any
batch and any size that the network takes. The network of ``inference.json`` is exported, one tensor to one: what comes
before and after it, and windows over a large image, are the caller's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import install_error_hook
from release.exporting import export_bundle


def main(name: str, output_dir: str) -> None:
    """Export the bundle ``name`` into ``output_dir``; prints the paths of the files."""
    install_error_hook()
    for path in export_bundle(name, output_dir):
        print(path)


if __name__ == "__main__":
    fire.Fire(main)
