"""Checks and exports that run a bundle's code: the process of :mod:`release.verification` and :mod:`release.exporting`.

Not a command for users. It is started with ``python -I``, so that the folder of the package, which it adds, is the only
one on the import path beside the installed packages: code that is missing in the package is missing here. A job comes
as JSON on the standard input, ``{"package": folder, "output_dir": folder, "checks": {name: arguments}}``; each finding
goes as a line of JSON to the standard output, which nothing else is written to.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.bundle.scripts import _get_fake_spatial_shape

RTOL = 1e-4
_DESCRIBING = ("metadata", "inference")
ATOL = {"torchscript": 1e-5, "onnx": 2e-4}  # logits of the networks are between 1 and 1000


def inference_properties(package: Path, output_dir: Path) -> None:
    """Refuse an ``inference.json`` without what MONAI and its applications ask it for; needs no data."""
    _check_properties(package, output_dir, "inference", **{"dataset#data": []})


def train_properties(package: Path, output_dir: Path, datalist_file: str) -> None:
    """The same for ``train.json``, made with the cases ``training`` and ``validation`` of a datalist."""
    _check_properties(package, output_dir, "train", datalist_file=datalist_file)


def _check_properties(package: Path, output_dir: Path, kind: str, **override: object) -> None:
    workflow = ConfigWorkflow(
        str(package / "configs" / f"{kind}.json"),
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(package),
        output_dir=str(output_dir / kind),
        device=torch.device("cpu"),
        **override,
    )
    workflow.initialize()
    missing = workflow.check_properties()
    if missing:
        raise ValueError(f"{kind}.json lacks, or names otherwise than MONAI: {', '.join(missing)}")


def shapes(package: Path, output_dir: Path) -> None:
    """Refuse a network whose output has not the channels and the type of the metadata, at two sizes of input."""
    for n in (1, 2):
        verify_net_in_out("network_def", **_config_files(package), device="cpu", n=n, p=1, any=32)


def weights(package: Path, output_dir: Path) -> None:
    """Refuse weights that are more than finite tensors by name, or do not fit ``network_def`` exactly."""
    state = _weights(package)
    strange = [key for key, value in state.items() if type(value) is not torch.Tensor or key.startswith("module.")]
    if strange or not state:
        raise ValueError(f"expected a flat dict of tensors, found {', '.join(strange) or 'nothing'}")
    infinite = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if infinite:
        raise ValueError(f"not finite: {', '.join(infinite)}")
    _network(package)


def torchscript(package: Path, output_dir: Path, use_trace: bool = False) -> None:
    """Write ``model.ts``, by script or by trace, and compare with eager; a ``models/model.ts`` is compared too."""
    ckpt_export(
        net_id="network_def",
        filepath=str(output_dir / "model.ts"),
        ckpt_file=str(package / "models" / "model.pt"),
        **_config_files(package),
        key_in_ckpt="",
        use_trace=use_trace,
        input_shape=list(_input(package, 2).shape) if use_trace else None,
    )
    for file in (output_dir / "model.ts", package / "models" / "model.ts"):
        if file.is_file():
            _compare("torchscript", _network(package), torch.jit.load(file).eval(), package)


def onnx(package: Path, output_dir: Path) -> None:
    """Write ``model.onnx``, for any batch and any size that the network takes, and compare onnxruntime with eager.

    By the older of torch's exporters, which traces: the newer one fixes the batch of MONAI's attention at 1. The file
    says which bundle it is of and what its channels are, in its metadata.
    """
    import onnxruntime
    from onnx import helper, load, save

    file, x, network = output_dir / "model.onnx", _input(package, 2), _network(package)
    axes = {0: "batch", **{i: f"size_{i - 1}" for i in range(2, x.dim())}}
    torch.onnx.export(
        network,
        (x,),
        str(file),
        dynamo=False,
        input_names=["image"],
        output_names=["pred"],
        dynamic_axes={"image": axes, "pred": axes},
    )
    model = load(file)
    helper.set_model_props(model, _properties(package))
    save(model, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    _compare("onnx", network, lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), package)


def _properties(package: Path) -> dict[str, str]:
    """What an exported network says of itself; a text each."""
    metadata, config = (json.loads((package / "configs" / f"{name}.json").read_text()) for name in _DESCRIBING)
    output = metadata["network_data_format"]["outputs"]["pred"]
    said = {key: str(metadata.get(key, "")) for key in ("name", "version", "description")}
    said |= {"labels": json.dumps(output.get("channel_def", {})), "sequences": json.dumps(config.get("sequences"))}
    return said | {"metadata.json": json.dumps(metadata)}


def _compare(kind: str, network: torch.nn.Module, exported: Callable, package: Path) -> None:
    """Refuse an exported network that differs from the eager one, or an output that would not show it."""
    for x in (_input(package, 2), torch.cat([_input(package, 3)] * 2)):
        with torch.inference_mode():
            expected, found = network(x), exported(x)
        if not isinstance(expected, torch.Tensor):
            raise TypeError(f"the network gives a {type(expected).__name__}, expected one tensor")
        if not expected.std() > 0:
            raise ValueError("the network gives the same value everywhere, so nothing can be compared")
        torch.testing.assert_close(found, expected, rtol=RTOL, atol=ATOL[kind])


def _config_files(package: Path) -> dict[str, str]:
    return {
        "config_file": str(package / "configs" / "inference.json"),
        "meta_file": str(package / "configs" / "metadata.json"),
        "bundle_root": str(package),
    }


def _weights(package: Path) -> dict[str, torch.Tensor]:
    return torch.load(package / "models" / "model.pt", map_location="cpu", weights_only=True)


def _network(package: Path) -> torch.nn.Module:
    """``network_def`` of inference.json with the weights of the package, ready to be used."""
    parser = ConfigParser()
    parser.read_config(str(package / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(_weights(package), strict=True)
    return network


def _input(package: Path, n: int) -> torch.Tensor:
    """A random input as the metadata describes it, the same each time."""
    metadata = json.loads((package / "configs" / "metadata.json").read_text(encoding="utf-8"))
    image = metadata["network_data_format"]["inputs"]["image"]
    shape = [1, image["num_channels"], *_get_fake_spatial_shape(image["spatial_shape"], p=1, n=n, any=16 * n)]
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _reason(exception: BaseException) -> str:
    """The first exception of a chain, which MONAI's later ones only repeat, as one line."""
    while exception.__cause__ or exception.__context__:
        exception = exception.__cause__ or exception.__context__
    return f"{type(exception).__name__}: {' '.join(str(exception).split())}"


CHECKS = {f.__name__: f for f in (inference_properties, train_properties, shapes, weights, torchscript, onnx)}


def main() -> None:
    """Make the checks of the job in their order, whatever becomes of those before."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the bundle prints is no result
    job = json.load(sys.stdin)
    sys.path.insert(0, job["package"])
    for name, arguments in job["checks"].items():
        try:
            CHECKS[name](Path(job["package"]), Path(job["output_dir"]), **arguments)
            failure = None
        except Exception as e:  # whatever a bundle raises is what its author has to be told
            failure = _reason(e)
        results.write(json.dumps({"check": name, "failure": failure}) + "\n")
        results.flush()


if __name__ == "__main__":
    main()
