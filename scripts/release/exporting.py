"""The network of a bundle as TorchScript and as ONNX, each compared with the network in PyTorch."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from catalog import describe
from common.errors import InputError
from common.files import read_json, write_atomically

from .packaging import ROOT, package_bundle
from .verification import run_in_own_process, unpack

FILES = {"torchscript": "model.ts", "onnx": "model.onnx"}


def export_bundle(name: str, output_dir: str | Path, root: Path = ROOT) -> list[Path]:
    """Write ``<name>_v<version>.ts`` and ``.onnx``, and return their paths; neither is written if one fails.

    Args:
        name: folder below ``bundles/``.
        output_dir: where the files go; created if it is missing.
        root: the repository, which holds ``bundles/`` and ``common/``.

    Raises:
        InputError: if the bundle cannot be packed, the network cannot be exported, or an output differs from that of
            the network in PyTorch by more than the tolerance in ``bundle_process.py``.
    """
    output_dir = Path(output_dir)
    with tempfile.TemporaryDirectory() as folder:
        package = unpack(package_bundle(name, folder, root=root), Path(folder))
        use_trace = describe(name, root / "bundles").exporter == "trace"
        results = run_in_own_process(package, {"torchscript": {"use_trace": use_trace}, "onnx": {}}, Path(folder))
        failures = [f"{result.check}: {failure}" for result in results for failure in result.failures]
        if failures:
            raise InputError(f"bundle {name} cannot be exported: {'; '.join(failures)}")
        version = read_json(package / "configs" / "metadata.json")["version"]
        paths = [output_dir / f"{name}_v{version}{Path(file).suffix}" for file in FILES.values()]
        for file, path in zip(FILES.values(), paths, strict=True):
            write_atomically(path, lambda part, file=file: shutil.copyfile(Path(folder) / file, part))
    return paths
