"""From the results of a bundle to labels, each with where it is from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.utils import ensure_tuple
from tqdm import tqdm

from catalog import Inference, describe, folder_of
from common.data import Case, Datalist
from common.errors import InputError
from common.files import read_json, sha256_of, write_json
from common.scans import grid_difference, voxel_ml
from common.transforms import BrainMaskd, ErodeMaskd, LoadScand, MaskOutsided, RemoveSmallComponentsd, SaveScand
from common.transforms.io import file_of
from running.workflow import config_files

logger = logging.getLogger(__name__)

UNCERTAIN = 2  # label value of voxels that are neither surely lesion nor surely none


@dataclass(frozen=True)
class Predictor:
    """What made some predictions, as its configs say.

    Attributes:
        bundle, version: name of its folder, and the version in its metadata.
        configs: file names.
        weights: file -> SHA-256; empty for a method without a network.
        sequences: what it looks at.
        threshold: where it cuts its map; None if it has none.
        threshold_source: how that was found.
        min_lesion_mm3: the smallest lesion that it leaves.
    """

    bundle: str
    version: str
    configs: tuple[str, ...]
    weights: dict[str, str]
    sequences: tuple[str, ...]
    threshold: float | None
    threshold_source: str | None
    min_lesion_mm3: float


@dataclass(frozen=True)
class CleanUp:
    """How a map becomes a label.

    Attributes:
        threshold: lesion is what reaches it.
        min_lesion_mm3: smaller lesions are left out. Baur et al., Medical Image Analysis 2021, drop those of up to 7
            voxels, which at 1 mm leaves 8 mm3 and more; Baur et al., MIDL 2019, and Behrendt et al., MIDL 2024, keep
            them all.
        erosion_mm: nothing is lesion this near to the surface of the brain, where a reconstruction is least to be
            trusted. The code of the same 2021 study erodes, by voxels of 2-D slices.
        uncertain: low and high in the unit of the map. Lesion is then what reaches high, and voxels from low on that
            are no lesion are :data:`UNCERTAIN`; takes the place of the threshold.
    """

    threshold: float
    min_lesion_mm3: float = 0.0
    erosion_mm: float = 0.0
    uncertain: tuple[float, float] | None = None


def predictor_of(bundle: str | Path, configs: Sequence[str], weights: str | Path | None = None) -> Predictor:
    """Read who made predictions from the configs that they were made with.

    Args:
        bundle: its name or folder.
        configs: ``inference.json`` and the layers on it.
        weights: file that took the place of the configs' weights.

    Raises:
        InputError: if a config or the weights do not exist.
    """
    root = folder_of(bundle).resolve()
    files = config_files(root, [*configs, "metadata.json"])
    parser = ConfigParser()
    parser.read_config([str(path) for path in files[:-1]])
    parser["bundle_root"] = str(root)
    inference = _inference_of(root, configs)
    named = [parser.get_parsed_content(entry) for entry in inference.weights] if weights is None else [weights]
    volume = parser.get_parsed_content(inference.least_volume) if inference.least_volume else 0.0
    metadata = read_json(files[-1], "metadata of a bundle", dict)
    return Predictor(
        bundle=root.name,
        version=metadata["version"],
        configs=tuple(configs),
        weights={Path(path).name: sha256_of(path) for path in named},
        sequences=tuple(parser.get_parsed_content("sequences")),
        threshold=parser.get_parsed_content("threshold") if "threshold" in parser.get() else None,
        threshold_source=parser.get("threshold_source"),
        min_lesion_mm3=float(volume),
    )


def clean_up_of(
    predictor: Predictor,
    output: str,
    threshold: float | None,
    min_lesion_mm3: float | None,
    erosion_mm: float,
    uncertain: Sequence[float] | None,
) -> CleanUp | None:
    """How the map becomes a label; None for a label map.

    Raises:
        InputError: if the options do not fit, or nobody says a threshold.
    """
    given = {"threshold": threshold, "min_lesion_mm3": min_lesion_mm3, "uncertain": uncertain}
    given |= {"erosion_mm": erosion_mm or None}
    if output == "seg":
        used = [name for name, value in given.items() if value is not None]
        if used:
            raise InputError(f"{used[0]} is given with output seg, expected it with output prob: a label map is kept")
        return None
    if uncertain is not None and not (len(uncertain) == 2 and uncertain[0] < uncertain[1] and threshold is None):
        raise InputError(f"uncertain is {uncertain}, expected two numbers, the lower one first, and no threshold")
    cut = predictor.threshold if threshold is None else threshold
    if cut is None:
        raise InputError(f"{predictor.bundle} has no threshold, expected output seg, or a threshold for its map")
    volume = predictor.min_lesion_mm3 if min_lesion_mm3 is None else min_lesion_mm3
    return CleanUp(float(cut), float(volume), float(erosion_mm), tuple(uncertain) if uncertain else None)


def _inference_of(root: Path, configs: Sequence[str]) -> Inference:
    """What the bundle's description says of the masks of some configs."""
    layers = tuple(name.removesuffix(".json") for name in configs[1:])
    inferences = describe(root.name, root.parent).inferences
    found = [inference for inference in inferences if inference.layers == layers]
    if not found:
        known = "; ".join(", ".join(inference.layers) or "none" for inference in inferences)
        raise InputError(f"layers are {', '.join(layers) or 'none'}, expected one of those of {root.name}: {known}")
    return found[0]


def predicted_cases(
    datalist: Datalist, section: str | None, results: str | Path, sequences: Sequence[str], postfix: str
) -> list[Case]:
    """Cases of a datalist with the file that an inference wrote for each.

    Args:
        datalist: what was predicted.
        section: of the datalist; None if it is a list without sections.
        results: folder of the inference.
        sequences: what it looked at.
        postfix: ``prob`` or ``seg``.

    Returns:
        Cases as of :func:`common.data.list_cases`, with ``prediction``, and with all images of the datalist under
        ``listed``.

    Raises:
        InputError: if a result is missing, the section is one to be judged by, or is not named though there are some.
    """
    sections = datalist.sections
    if section is None and list(sections) != ["training"]:
        raise InputError(f"{datalist} has sections and none is given, expected section as training")
    if section in ("validation", "test"):
        raise InputError(f"section is {section!r}, expected another one: its people are to be judged by drawn labels")
    section = section or "training"
    listed = {path: item["image"] for item in sections.get(section, []) for path in ensure_tuple(item["image"])}
    everyone = datalist.cases(sequences)  # as inference.json names its outputs
    name_of_all = {str(case["image"]): case["name"] for case in everyone}
    only = section if list(sections) != ["training"] else None
    cases = datalist.cases(sequences, only)
    for case in cases:
        names = (name_of_all[str(case["image"])], case["name"])
        files = [Path(results) / f"{name}_{postfix}.nii.gz" for name in names]
        found = next((path for path in files if path.is_file()), None)
        if found is None:
            raise InputError(f"{files[0]}: no such file, expected the prediction for {names[0]}")
        first = next(path for path in ensure_tuple(case["image"]) if path is not None)
        case |= {"prediction": str(found), "listed": listed[first]}
    return cases


def label_of_map(values: MetaTensor, brain: MetaTensor, clean_up: CleanUp) -> MetaTensor:
    """A lesion label from a map.

    Args:
        values: (1, X, Y, Z), higher where a lesion is more likely.
        brain: (1, X, Y, Z), not 0 inside, on the same grid.
        clean_up: how.

    Returns:
        (1, X, Y, Z), uint8: 1 for lesion, :data:`UNCERTAIN` where the map does not say, 0 elsewhere.
    """
    item = {"map": values, "brain": brain}
    item = ErodeMaskd("brain", clean_up.erosion_mm)(item)
    values = MaskOutsided("map", mask_key="brain")(item)["map"]
    low, high = clean_up.uncertain or (clean_up.threshold, clean_up.threshold)
    label = (values >= high).to(torch.uint8)
    label = RemoveSmallComponentsd("label", clean_up.min_lesion_mm3)({"label": label})["label"]
    if clean_up.uncertain:
        label[(values >= low) & (label == 0)] = UNCERTAIN
    return label


def write_labels(
    cases: Sequence[Case],
    output_dir: str | Path,
    predictor: Predictor,
    clean_up: CleanUp | None,
    dataset_name: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> list[Case]:
    """Write ``<name>_label.nii.gz`` for every case, and beside it ``<name>_label.json``, which says where it is from.

    Labels that the cases may have had are not carried over.

    Args:
        cases: of :func:`predicted_cases`.
        output_dir: folder.
        predictor: who made the predictions.
        clean_up: how a map becomes a label; None if the predictions are label maps, which are kept as they are.
        dataset_name: name that every case gets.
        notes: what else the JSON beside a label says.

    Returns:
        Items of a datalist, with ``label_source``, and the map as ``predicted_map`` if there was one.

    Raises:
        InputError: if a prediction lies on another grid than its image, or is not what the configs would have made, or
            if nothing is in any label.
    """
    items = []
    empty = 0
    for case in tqdm(cases, desc="pseudo-labels", unit=" case", disable=None):
        scan = _load(case)
        if clean_up is None:
            label = MaskOutsided("prediction")(scan)["prediction"]
        else:
            _check_configs(case, scan["prediction"], predictor, clean_up)
            label = label_of_map(scan["prediction"], scan["brain_mask"], clean_up)
        scan |= {"label": label, "name": case["name"]}
        path = SaveScand("label", output_dir, "label", dtype="uint8")(scan)["label_path"]
        volumes = {int(v): round(int((label == v).sum()) * voxel_ml(label.affine), 3) for v in label.unique() if v != 0}
        empty += not volumes
        _write_sidecar(Path(path), case, predictor, clean_up, {"volumes_ml": volumes, **(notes or {})})
        item = {"image": case["listed"], "subject": case["subject"], "label": path}
        item |= {key: case[key] for key in ("brain_mask",) if key in case}
        item |= {"dataset": dataset_name} if dataset_name is not None else {}
        item["label_source"] = f"{predictor.bundle} {predictor.version}" + _words(clean_up)
        items.append(item | ({"predicted_map": case["prediction"]} if clean_up is not None else {}))
    if empty == len(items):
        raise InputError(
            f"all {empty} labels in {output_dir} are empty{_words(clean_up)}, expected something to learn in one of "
            "them: perhaps a lower threshold, see scripts/calibrate_threshold.py"
        )
    logger.info("%d pseudo-labels in %s, %d of them empty", len(items), output_dir, empty)
    return items


def _words(clean_up: CleanUp | None) -> str:
    if clean_up is None:
        return ", label map"
    if clean_up.uncertain:
        return f", map >= {clean_up.uncertain[1]:g}, unsure from {clean_up.uncertain[0]:g} on"
    return f", map >= {clean_up.threshold:g}"


def _load(case: Case) -> Case:
    scan = {key: case[key] for key in ("image", "brain_mask", "prediction") if key in case}
    scan = LoadScand("image")(scan)
    scan = LoadScand(["brain_mask", "prediction"], may_be_empty="prediction", allow_missing_keys=True)(scan)
    image, prediction = scan["image"], scan["prediction"]
    difference = grid_difference(prediction.shape[1:], prediction.affine, image.shape[1:], image.affine)
    if difference:
        raise InputError(f"{case['prediction']} and {file_of(image)} have {difference}, expected one grid")
    return BrainMaskd("image", largest_negative_share=None)(scan)


def _check_configs(case: Case, values: MetaTensor, predictor: Predictor, clean_up: CleanUp) -> None:
    """Refuse a map whose mask, written beside it, was cut otherwise than the configs or the command say."""
    path = Path(case["prediction"].replace("_prob.nii.gz", "_seg.nii.gz"))
    if not path.is_file():
        return
    mask = LoadScand("mask", may_be_empty="mask")({"mask": str(path)})["mask"]
    if mask.max() > 1:  # a label map of several classes, of which the map is one
        return
    everywhere = torch.ones_like(values)
    cuts = [(predictor.threshold, predictor.min_lesion_mm3), (clean_up.threshold, clean_up.min_lesion_mm3)]
    for threshold, volume in cuts:
        if threshold is not None and torch.equal(label_of_map(values, everywhere, CleanUp(threshold, volume)), mask):
            return
    raise InputError(
        f"{path} is not what {predictor.bundle} makes of {Path(case['prediction']).name} by "
        f"{', '.join(predictor.configs)} (threshold {predictor.threshold}, lesions of {predictor.min_lesion_mm3:g} mm3 "
        "or more), expected the configs of that inference, and its threshold and min_lesion_mm3 if it was given some"
    )


def _write_sidecar(
    label: Path, case: Case, predictor: Predictor, clean_up: CleanUp | None, notes: Mapping[str, Any]
) -> None:
    made = {
        "subject": case["subject"],
        "image": [Path(path).name for path in ensure_tuple(case["image"]) if path is not None],
        "prediction": Path(case["prediction"]).name,
        "predictor": asdict(predictor),
        "clean_up": None if clean_up is None else asdict(clean_up),
        **notes,
    }
    path = label.with_name(label.name.removesuffix(".nii.gz") + ".json")
    write_json(path, made)
