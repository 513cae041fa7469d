"""DICOM in and out: series become NIfTI files with a datalist, masks become DICOM SEG that refers to its series."""

from __future__ import annotations

import importlib
import logging
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from common.data import write_datalist
from common.errors import InputError
from common.files import read_json, write_atomically, write_json
from common.scans import json_beside, read_scan, whole_numbers

logger = logging.getLogger(__name__)

FOLDER = "dicom"  # of what was converted, in that of the prepared scans
# what a datalist says of a case -> field of the sidecar
FIELDS = {
    "manufacturer": "Manufacturer",
    "scanner": "ManufacturersModelName",
    "field_strength_t": "MagneticFieldStrength",
    "slice_thickness_mm": "SliceThickness",
}
# what names somebody, or says when and where; -ba n writes it, since cases need a person and an order
PRIVATE = re.compile(r"Patient|Name|Birth|Date|Time$|Operator|Physician|Institution|Accession|Station|StudyID")
KEPT = {"SeriesInstanceUID", "RepetitionTime", "EchoTime", "InversionTime", "ManufacturersModelName"}
LONG_INVERSION_S, LONG_ECHO_S, SHORT_ECHO_S = 1.5, 0.06, 0.03
POSITION_TOLERANCE = 0.05  # voxels
MULTI_FRAME = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.4\.[134]\0")  # classes of objects, DICOM PS3.4, B.5


def convert_dicom(dicom_dir: str | Path, output_dir: str | Path, sequences: Sequence[str]) -> Path:
    """Series of a folder as NIfTI files, by dcm2niix, and a datalist of those that are the sequences asked for.

    A case is a study of a person. Of several series of one sequence that with the smallest voxels is taken; localizers,
    derived series, diffusion, and T1w after contrast agent are left out. The log says which series became what.
    Sidecars are kept without what names the person; the names of files have the PatientID.

    Args:
        dicom_dir: DICOM files, in folders of any kind.
        output_dir: gets ``<case>_<sequence>.nii.gz``, a JSON beside each, and ``cases.json``.
        sequences: BIDS' names, as T1w, T2w, FLAIR.

    Returns:
        Path of ``cases.json``, with scanner, field strength (T), slice thickness (mm) and the names of the series.

    Raises:
        InputError: if dcm2niix is missing or finds no series, or no study has the first sequence.
    """
    program = _optional("dcm2niix").bin
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    logger.info("converting the series in %s", dicom_dir)
    with tempfile.TemporaryDirectory(dir=output_dir) as folder:
        code, said = _run_dcm2niix(program, Path(dicom_dir), folder)
        series = [_series(path) for path in sorted(Path(folder).glob("*.nii.gz"))]
        if not series:
            raise InputError(f"{dicom_dir} has no series that dcm2niix converts ({said}), expected DICOM files")
        if code:
            logger.warning("%s: dcm2niix did not convert all of it (%s)", dicom_dir, said)
        items = [_case(name, found, sequences, output_dir) for name, found in _studies(series).items()]
    cases = [item for item in items if item is not None and item["image"][0] is not None]
    if not cases:
        raise InputError(f"{dicom_dir} has no series of {sequences[0]} in {len(items)} studies, see the log")
    return write_datalist(output_dir / "cases.json", {"cases": cases}, {"sequences": list(sequences)})


def _run_dcm2niix(program: str, dicom_dir: Path, output_dir: str) -> tuple[int, str]:
    """Convert one series after the other; the exit code and the last line of what failed, or of the last one.

    Not all in one call: of two multi-frame files dcm2niix 1.0.20260724 gave the second gray values that it does not
    have. Several of one series, which differ in nothing by which a call could name them, are given file by file.

    Raises:
        InputError: if a series has such files beside files of single slices.
    """

    def run(source: Path | str, *options: str) -> subprocess.CompletedProcess:
        command = [program, *options, "-f", "%j", str(source)]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)

    first_files: dict[str, list[str]] = defaultdict(list)  # of what a call with this number would convert
    for number, file in re.findall(r"^\t(\d+)\t.*\n (.+)$", run(dicom_dir, "-n", "-1").stdout, re.MULTILINE):
        first_files[number].append(file)
    calls: list[tuple[Path | str, ...]] = []
    for number, files in first_files.items():
        several = [file for file in files if _is_multi_frame(file)] if len(files) > 1 else []
        singles = [file for file in files if file not in several]
        if several and singles:
            raise InputError(
                f"{several[0]} with many frames and {singles[0]} with one are one series, expected one kind of file"
            )
        calls += [(file, "-s", "y") for file in several] or [(dicom_dir, "-n", number)]
    options = ("-b", "y", "-ba", "n", "-z", "i", "-i", "y", "-d", "9", "-o", output_dir)
    series = tqdm(calls, desc="converting", unit="series", disable=None)
    done = [run(source, *which, *options) for source, *which in series] or [run(dicom_dir, *options)]
    told = next((one for one in done if one.returncode), done[-1])
    return told.returncode, ((told.stderr or told.stdout).strip().splitlines()[-1:] or ["no message"])[0]


def _is_multi_frame(file: str) -> bool:
    """Whether the head of a file says that it is an enhanced MR object, one that was converted, or one in color."""
    with Path(file).open("rb") as content:
        return MULTI_FRAME.search(content.read(1024)) is not None


def sequence_of_series(sidecar: Mapping[str, Any]) -> str | None:
    """The sequence of a series by its names, or, where they say nothing, by its times.

    Args:
        sidecar: as dcm2niix writes it; times in seconds.

    Returns:
        FLAIR, T1w, T2w, PDw; None for what is none of them, or T1w after contrast agent.
    """
    text = " ".join(str(sidecar.get(key, "")) for key in ("SeriesDescription", "ProtocolName")).lower()
    inversion, echo = (float(sidecar.get(key) or 0) for key in ("InversionTime", "EchoTime"))
    repetition = float(sidecar.get("RepetitionTime") or 0)
    if "ContrastBolusAgent" in sidecar or re.search(r"(?<![a-z])(gd|gad\w*|post|contrast|km|ce)(?![a-z])|\+c\b", text):
        return None
    if re.search(r"(?<![a-z])(dwi|diff\w*|dti|adc|swi|bold|fmri|asl|perf\w*|tof|angio|loc\w*|scout)(?![a-z])", text):
        return None
    if re.search("flair|dark.?fluid", text) and not re.search("t1", text):
        return "FLAIR"
    if re.search("t1|mprage|spgr|bravo|(?<![a-z])tfe|(?<![a-z])tfl", text):
        return "T1w"
    if re.search("t2", text):
        return "FLAIR" if inversion > LONG_INVERSION_S else "T2w"
    if re.search("(?<![a-z])pd(?![a-z])|proton", text):
        return "PDw"
    if echo > LONG_ECHO_S:
        return "FLAIR" if inversion > LONG_INVERSION_S else "T2w"
    return "T1w" if 0 < echo < SHORT_ECHO_S and 0 < repetition < 3 else None


def write_segmentation(
    mask_file: str | Path, sidecar_file: str | Path, dicom_dir: str | Path, output_file: str | Path
) -> Path:
    """A mask as DICOM SEG, a segment per label, that refers to the series its scan was converted from.

    Args:
        mask_file: NIfTI of whole numbers on the grid of that scan.
        sidecar_file: JSON beside that scan, see :func:`convert_dicom`.
        dicom_dir: where the series is.
        output_file: of the SEG.

    Raises:
        InputError: if highdicom is missing, the series is not there, or the mask lies on another grid.
    """
    highdicom = _optional("highdicom", "pydicom")
    uid = read_json(Path(sidecar_file), "the sidecar of a converted series", dict)["SeriesInstanceUID"]
    slices = _slices(Path(dicom_dir), uid)
    mask, scan = read_scan(mask_file, dtype=None)
    frames = _frames(whole_numbers(mask, mask_file).astype(np.uint8), scan.affine, slices, str(mask_file))
    values = [int(value) for value in np.unique(frames) if value]
    if not values:
        raise InputError(f"{mask_file} is empty, expected a label: a SEG without a segment is none")
    made = _made_by(mask_file)
    numbered = np.searchsorted([0, *values], frames).astype(np.uint8)
    segmentation = highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=numbered,
        segmentation_type="BINARY",
        segment_descriptions=[_segment(highdicom, n, made, value) for n, value in enumerate(values, start=1)],
        series_instance_uid=highdicom.UID(),
        series_number=int(slices[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="brain MRI bundles",
        manufacturer_model_name=made["bundle"],
        software_versions=made["version"],
        device_serial_number="none",
    )
    path = Path(output_file)
    write_atomically(path, segmentation.save_as)
    return path


def _optional(name: str, *needs: str) -> ModuleType:
    try:
        for module in needs:
            importlib.import_module(module)
        return importlib.import_module(name)
    except ImportError as e:
        raise InputError(f"DICOM needs {name}, which is not installed: pip install {name}") from e


def _series(path: Path) -> dict[str, Any]:
    sidecar = json_beside(path)
    content = read_json(sidecar, "the sidecar of a series", dict) if sidecar.is_file() else {}
    image = nib.load(path)
    is_diffusion = sidecar.with_suffix(".bval").is_file() or len(image.shape) > 3
    sequence = None if is_diffusion else sequence_of_series(content)
    size = float(np.prod(image.header.get_zooms()[:3]))
    return {"file": path, "sidecar": content, "sequence": sequence, "voxel_mm3": size}


def _studies(series: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Name of a case -> its series; several studies of a person are sessions, in the order of their dates.

    Who has no PatientID is somebody else in every study.

    Raises:
        InputError: if two people would have one name.
    """
    people: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for one in series:
        study = str(one["sidecar"].get("StudyInstanceUID", ""))
        people[str(one["sidecar"].get("PatientID") or f"study {study}")][study].append(one)
    cases, whose = {}, {}
    for person, studies in sorted(people.items()):
        name = re.sub(r"[^A-Za-z0-9]+", "-", person).strip("-")
        if name in whose:
            raise InputError(f"the PatientIDs {whose[name]!r} and {person!r} both become {name!r}, expected others")
        whose[name] = person
        dated = sorted(studies.values(), key=lambda found: str(found[0]["sidecar"].get("AcquisitionDateTime", "")))
        for number, found in enumerate(dated, start=1):
            cases[f"{name}_ses-{number}" if len(dated) > 1 else name] = found
    return cases


def _case(
    name: str, series: Sequence[Mapping[str, Any]], sequences: Sequence[str], output_dir: Path
) -> dict[str, Any] | None:
    """The item of a datalist; its files are put in place."""
    images: list[str | None] = []
    item: dict[str, Any] = {"image": images, "subject": name.split("_ses-")[0]}
    for sequence in sequences:
        fitting = sorted((one for one in series if one["sequence"] == sequence), key=lambda one: one["voxel_mm3"])
        images.append(str(output_dir.absolute() / f"{name}_{sequence}.nii.gz") if fitting else None)
        if not fitting:
            logger.warning("%s: no series of %s", name, sequence)
            continue
        chosen = fitting[0]
        shutil.move(chosen["file"], images[-1])
        write_json(output_dir / f"{name}_{sequence}.json", _without_person(chosen["sidecar"]))
        item.setdefault("series", {})[sequence] = _title(chosen)
        for key, field in FIELDS.items():
            if field in chosen["sidecar"]:
                item.setdefault(key, chosen["sidecar"][field])
        passed = [_title(one) for one in fitting[1:]]
        instead = f", which has smaller voxels than {', '.join(passed)}" if passed else ""
        logger.info("%s: %s is the series %s%s", name, sequence, _title(chosen), instead)
    unused = [_title(one) for one in series if one["sequence"] not in sequences]
    if unused:
        logger.info("%s: left out are %s", name, ", ".join(unused))
    item["series"] = "; ".join(f"{sequence}: {title}" for sequence, title in item.get("series", {}).items())
    return item if any(images) else None


def _title(series: Mapping[str, Any]) -> str:
    sidecar = series["sidecar"]
    return f"{sidecar.get('SeriesDescription') or sidecar.get('ProtocolName') or 'without a name'}"


def _without_person(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sidecar.items() if key in KEPT or not PRIVATE.search(key)}


def _slices(folder: Path, uid: str) -> list[Any]:
    """The files of a series, headers and voxels, in the order of their places, or its one multi-frame file."""
    pydicom = _optional("pydicom")
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        except pydicom.errors.InvalidDicomError:
            continue
        if header.get("SeriesInstanceUID") == uid:
            found.append((path, pydicom.dcmread(path)))
    if not found:
        raise InputError(f"{folder} has no file of the series {uid}, expected the DICOM files that were converted")
    frames = [path for path, one in found if "PerFrameFunctionalGroupsSequence" in one]
    if frames and len(found) > 1:
        raise InputError(
            f"{found[0][0]} and {found[1][0]} are one series, expected a file per slice or one multi-frame file"
        )
    slices = [one for _, one in found]
    if frames:
        return slices
    if any("ImagePositionPatient" not in one for one in slices):
        raise InputError(f"{found[0][0]} and its series {uid} do not say where their slices lie, expected a position")
    normal = np.cross(*np.reshape(np.array(slices[0].ImageOrientationPatient, float), (2, 3)))
    return sorted(slices, key=lambda one: float(normal @ np.array(one.ImagePositionPatient, float)))


def _places(slices: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Position (3,), orientation (2, 3) and spacing (2,), rows first, of each frame, in mm, as DICOM counts."""
    if "PerFrameFunctionalGroupsSequence" not in slices[0]:
        found = [(one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing) for one in slices]
    else:
        shared, *frames = (*slices[0].SharedFunctionalGroupsSequence, *slices[0].PerFrameFunctionalGroupsSequence)
        names = {
            "PlanePositionSequence": "ImagePositionPatient",
            "PlaneOrientationSequence": "ImageOrientationPatient",
            "PixelMeasuresSequence": "PixelSpacing",
        }
        found = [[(f if g in f else shared)[g][0][name].value for g, name in names.items()] for f in frames]
    return [(np.array(p, float), np.array(o, float).reshape(2, 3), np.array(mm, float)) for p, o, mm in found]


def _frames(mask: np.ndarray, affine: np.ndarray, slices: Sequence[Any], file: str) -> np.ndarray:
    """The mask as the frames of the series have their pixels, (frames, rows, columns)."""
    rows, columns = int(slices[0].Rows), int(slices[0].Columns)
    places = _places(slices)
    frames = np.zeros((len(places), rows, columns), mask.dtype)
    to_voxels = np.linalg.inv(affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts to the left and to the back
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    for number, (start, (across, down), (row_mm, column_mm)) in enumerate(places):
        place = start + column[..., None] * column_mm * across + row[..., None] * row_mm * down
        voxels = nib.affines.apply_affine(to_voxels, place)
        near = np.rint(voxels).astype(int)
        if np.abs(voxels - near).max() > POSITION_TOLERANCE or (near < 0).any() or (near >= mask.shape).any():
            raise InputError(
                f"{file} lies on another grid than its DICOM series, expected a mask on the raw scan's grid"
            )
        frames[number] = mask[tuple(np.moveaxis(near, -1, 0))]
    return frames


def _made_by(mask_file: str | Path) -> dict[str, Any]:
    """Who made a mask, and what its labels are called: as the JSON beside it says, if there is one."""
    sidecar = json_beside(mask_file)
    found = read_json(sidecar, "what is known of a mask", dict) if sidecar.is_file() else {}
    labels = {str(value): str(name) for value, name in (found.get("labels") or {}).items()}
    return {"bundle": str(found.get("bundle", "unknown")), "version": str(found.get("version", "0")), "labels": labels}


def _segment(highdicom: ModuleType, number: int, made: Mapping[str, Any], value: int) -> Any:
    codes = importlib.import_module("pydicom.sr.codedict").codes
    name = made["labels"].get(str(value), f"label {value}")
    lesion = (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion)
    category, kind = {
        "csf": (codes.SCT.BodySubstance, codes.SCT.CerebrospinalFluid),
        "gm": (codes.SCT.Tissue, codes.SCT.GrayMatter),
        "wm": (codes.SCT.Tissue, codes.SCT.WhiteMatter),
        "lesion": lesion,
        "anomaly": lesion,
    }.get(name.lower(), (codes.SCT.AnatomicalStructure, codes.SCT.Brain))
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=made["bundle"], family=codes.DCM.ArtificialIntelligence, version=made["version"]
    )
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
