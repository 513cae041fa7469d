"""What the tests of bundles share: small heads on disk, configs read without building anything, outputs."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
# of the folder of a bundle, where it was used
NOT_COPIED = shutil.ignore_patterns("eval", "runs", "data", "mlruns*", "__pycache__")
SMALL = (30, 34, 24)

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
    """A textured ellipsoid, cut off at one corner, of FLAIR-like values around 100 with a bright ball in it."""
    position = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt(((position / np.array([0.85, 0.9, 0.8]).reshape(3, 1, 1, 1)) ** 2).sum(0))
    brain = (radius < 1) & (np.tensordot([0.5, 0.6, -0.4], position, axes=1) < 0.45)
    texture = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    tissue = 100 + 12 * texture / texture.std() + 20 * (radius > 0.8) - 60 * (radius < 0.25)
    center = np.array([0.35, 0.2, -0.25]).reshape(3, 1, 1, 1)
    lesion = ((position - center) ** 2).sum(0) < 0.2**2
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
    file = ROOT / "scripts" / f"{name}.py"
    known = sys.modules.get(name)
    if known is not None and Path(known.__file__) == file:
        return known  # a second one would not be the module that its functions say they are of
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
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


def read_json(path: Path) -> dict:
    """A JSON file whose keys are all different."""
    assert repeated_keys(path) == [], path.name
    return json.loads(path.read_text(encoding="utf-8"))


def repeated_keys(path: Path) -> list[str]:
    """Keys that stand more than once in one object of a JSON file: the last one wins, without a word."""
    found = []

    def note(pairs: list[tuple[str, object]]) -> dict:
        keys = [key for key, _ in pairs]
        found.extend(key for key in dict(pairs) if keys.count(key) > 1)
        return dict(pairs)

    json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=note)
    return found


def config_files(bundle: Path) -> list[Path]:
    """Configs of a bundle, and those that it shares with the others."""
    own = [path for path in (bundle / "configs").glob("*.json") if path.name != "metadata.json"]
    return sorted([*own, *bundle.parent.glob("*.json")])


def stacks(bundle: Path) -> list[list[Path]]:
    """Every config that is complete, alone, and every layer on the configs that it says it is for.

    A layer has no ``bundle_root``. Its ``_desc_`` begins with "Layer on a.json and b.json", in the order in which they
    are given on the command line; names in parentheses may be left out.
    """
    found = []
    for path in config_files(bundle):
        config = read_json(path)
        said = re.match(r"Layer on ([^:]*)", config.get("_desc_", ""))
        if "bundle_root" in config:
            found.append([path])
            continue
        assert said, f"{path.name} is no complete config, so its _desc_ must begin with 'Layer on <file>.json'"
        for text in {said[1], re.sub(r"\(.*?\)", "", said[1])}:
            found.append([*(bundle / "configs" / name for name in re.findall(r"\w+\.json", text)), path])
    return found


def parsed(files: list[Path], **override: object) -> ConfigParser:
    """Parser of some layers, with every reference made absolute and nothing built."""
    parser = ConfigParser()
    parser.read_config([str(path) for path in files])
    parser.read_meta(str(files[0].with_name("metadata.json")))
    parser.update(override)
    parser.parse(reset=True)
    return parser


def texts(config: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a config with the id it stands under."""
    if isinstance(config, str):
        yield key, config
    elif isinstance(config, (dict, list)):
        for k, v in config.items() if isinstance(config, dict) else enumerate(config):
            yield from texts(v, f"{key}::{k}" if key else str(k))


def described(files: list[Path]) -> str:
    return " + ".join(path.name for path in files)


def nodes(config: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Every value in a config, containers included, with its id."""
    yield key, config
    if isinstance(config, (dict, list)):
        for k, v in config.items() if isinstance(config, dict) else enumerate(config):
            yield from nodes(v, f"{key}::{k}" if key else str(k))


def metadata(bundle: Path) -> dict:
    return read_json(bundle / "configs" / "metadata.json")


def network(bundle: Path) -> torch.nn.Module:
    return parsed([bundle / "configs" / "inference.json"]).get_parsed_content("network_def").eval()


def weights(bundle: Path) -> dict[str, torch.Tensor]:
    return torch.load(bundle / "models" / "model.pt", map_location="cpu", weights_only=True)


def sequences(bundle: Path) -> int:
    """How many images a case has."""
    listed = read_json(bundle / "configs" / "inference.json").get("sequences")
    image = metadata(bundle)["network_data_format"]["inputs"]["image"]
    return len(listed) if isinstance(listed, list) else image["num_channels"]


def datasets(bundle: Path) -> list[str]:
    """Names of the data sets that a training knows, for a bundle whose cases have to say of which they are."""
    return list(read_json(bundle / "configs" / "train.json").get("label_sets", {}).get("datasets", []))


def save_case(
    bundle: Path, path: Path, seed: int = 0, change: Callable = lambda image: image, **head: object
) -> object:
    """Write the images of one case, ``path`` being the first; returns what a datalist names, relative to its folder."""
    made = make_head(seed, **head)
    paths = [path, *(path.with_name(f"{path.name.split('.')[0]}_{i}.nii.gz") for i in range(2, sequences(bundle) + 1))]
    for i, p in enumerate(paths):
        image = change(nib.Nifti1Image(made.image * (1 - 0.1 * i), made.affine))
        save_nifti(p, np.asarray(image.dataobj), image.affine)
    return str(path) if len(paths) == 1 else [str(p) for p in paths]


def save_datalist(folder: Path, images: list) -> Path:
    """A datalist beside the images, with relative paths."""

    def relative(image: object) -> object:
        return [relative(i) for i in image] if isinstance(image, list) else Path(image).relative_to(folder).as_posix()

    path = folder / "cases.json"
    path.write_text(json.dumps([{"image": relative(image)} for image in images]))
    return path


def outputs(folder: Path, name: str) -> dict[str, nib.Nifti1Image]:
    """Label map, and the map of probabilities or scores where the method has one."""
    paths = {kind: folder / f"{name}_{kind}.nii.gz" for kind in ("seg", "prob")}
    return {kind: nib.load(path) for kind, path in paths.items() if kind == "seg" or path.is_file()}
