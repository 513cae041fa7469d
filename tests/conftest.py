"""What several test files use: the bundles' import paths, a small head on disk, scripts as modules, command lines."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
for _bundle in BUNDLES:
    sys.path.append(str(_bundle))

# 8 degrees about the first axis and -6 about the third, 1.3 x 1.1 x 1.6 mm, first axis to the left, origin off zero
_TILT = np.array([[1, 0, 0], [0, np.cos(0.14), -np.sin(0.14)], [0, np.sin(0.14), np.cos(0.14)]])
_TURN = np.array([[np.cos(0.1), np.sin(0.1), 0], [-np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = _TURN @ _TILT @ np.diag([-1.3, 1.1, 1.6])
OBLIQUE[:3, 3] = [37.0, -22.5, -11.0]


class Head(NamedTuple):
    """A skull-stripped head without symmetry: image float32, lesions and brain uint8, of one shape; affine in mm."""

    image: np.ndarray
    label: np.ndarray
    brain: np.ndarray
    affine: np.ndarray


def make_head(seed: int = 0, shape: tuple[int, int, int] = (48, 56, 40), affine: np.ndarray = OBLIQUE) -> Head:
    """A textured ellipsoid of FLAIR-like values around 100 with a bright ball off its centre."""
    position = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt(((position / np.array([0.85, 0.9, 0.8]).reshape(3, 1, 1, 1)) ** 2).sum(0))
    brain = radius < 1
    texture = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    tissue = 100 + 12 * texture / texture.std() + 20 * (radius > 0.8) - 60 * (radius < 0.25)
    centre = np.array([0.35, 0.2, -0.25]).reshape(3, 1, 1, 1)
    lesion = ((position - centre) ** 2).sum(0) < 0.2**2
    image = np.where(brain, np.clip(tissue + 70 * lesion, 1, None), 0)
    return Head(image.astype(np.float32), lesion.astype(np.uint8), brain.astype(np.uint8), affine)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write a NIfTI file, with its folder, whose qform and sform agree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def load_script(name: str) -> ModuleType:
    """``scripts/<name>.py`` as a module: the folder is no package, so that no bundle can find it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Finished(NamedTuple):
    """A command that ended: its exit code, and all that it printed."""

    code: int
    output: str

    @property
    def errors(self) -> list[str]:
        """Lines that tell a user what is wrong."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="session")
def monai_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Finished]]:
    """``python -m monai.bundle ...`` from the root of the repository, without importing MONAI each time."""
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("command_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    output = tmp_path_factory.mktemp("commands") / "output.txt"

    def run(*arguments: object, cwd: Path = ROOT) -> Finished:
        job = {"arguments": [str(a) for a in arguments], "cwd": str(cwd), "output": str(output)}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return Finished(int(server.stdout.readline()), output.read_text(errors="replace"))

    yield run
    server.stdin.close()
    server.wait(timeout=30)
