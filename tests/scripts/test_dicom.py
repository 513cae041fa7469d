"""Series of DICOM become cases, and masks become DICOM SEG: there and back on a phantom head."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_tools import load_script

from common.data import list_cases
from common.errors import InputError
from phantom import Grid, make_subject
from preparation.dicom import convert_dicom, sequence_of_series, write_segmentation
from preparation.registration import require_simpleitk

prepare, restore = load_script("prepare_data").main, load_script("restore_data").main
pydicom = pytest.importorskip("pydicom")
pytest.importorskip("dcm2niix")
pytest.importorskip("highdicom")

# 4 mm, tilted by 10 degrees about the axis from left to right
COS, SIN = 4 * np.cos(np.radians(10)), 4 * np.sin(np.radians(10))
TILTED = np.array([[4.0, 0, 0, -96], [0, COS, -SIN, -104], [0, SIN, COS, -86], [0, 0, 0, 1]])
SHAPE = (48, 56, 46)


def write_series(folder: Path, volume: np.ndarray, affine: np.ndarray, number: int, **fields) -> str:
    """A file per slice along the third axis, as a scanner writes them; returns the UID of the series."""
    folder.mkdir(parents=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    uid = pydicom.uid.generate_uid(entropy_srcs=[str(folder)])
    study = pydicom.uid.generate_uid(entropy_srcs=[fields.get("PatientID", "p"), fields.get("StudyID", "1")])
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    for k in range(volume.shape[2]):
        header = pydicom.dataset.FileMetaDataset()
        header.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        header.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[uid, str(k)])
        one = pydicom.dataset.Dataset()
        one.file_meta = header
        one.SOPClassUID, one.SOPInstanceUID = header.MediaStorageSOPClassUID, header.MediaStorageSOPInstanceUID
        one.Modality, one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex = "MR", "p 1", "A^B", "", "O"
        one.StudyInstanceUID, one.SeriesInstanceUID = study, uid
        one.FrameOfReferenceUID = pydicom.uid.generate_uid(entropy_srcs=[study])
        one.StudyDate = one.SeriesDate = one.AcquisitionDate = "20260101"
        one.StudyTime = one.SeriesTime = one.AcquisitionTime = "101010"
        one.AccessionNumber, one.StudyID, one.ReferringPhysicianName, one.PositionReferenceIndicator = "", "1", "", ""
        one.Manufacturer, one.ManufacturerModelName, one.MagneticFieldStrength = "Siemens", "Phantom", "3"
        one.ImageType = ["ORIGINAL", "PRIMARY", "M", "NORM"]
        one.ScanningSequence, one.SequenceVariant, one.ScanOptions, one.MRAcquisitionType = "GR", "SP", "", "3D"
        one.SeriesNumber, one.InstanceNumber, one.AcquisitionNumber = number, k + 1, 1
        one.RepetitionTime, one.EchoTime, one.FlipAngle, one.PatientPosition = "2000", "3", "9", "HFS"
        one.ImageOrientationPatient = [*(lps[:3, 0] / mm[0]).tolist(), *(lps[:3, 1] / mm[1]).tolist()]
        one.ImagePositionPatient = (lps @ [0, 0, k, 1])[:3].tolist()
        one.PixelSpacing, one.SliceThickness, one.SpacingBetweenSlices = [float(mm[1]), float(mm[0])], mm[2], mm[2]
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.Rows, one.Columns = 15, volume.shape[1], volume.shape[0]
        one.PixelData = np.ascontiguousarray(volume[:, :, k].T).astype("<u2").tobytes()
        for name, value in fields.items():
            setattr(one, name, value)
        one.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
    return uid


def write_multi_frame(file: Path, volume: np.ndarray, affine: np.ndarray, order: np.ndarray, **fields) -> str:
    """An enhanced MR object, all slices in one file, in any order of frames; returns the UID of the series."""
    uid = write_series(file.parent / "slices", volume, affine, fields.pop("SeriesNumber", 1), **fields)
    files = sorted((file.parent / "slices").glob("*.dcm"))
    slices = [pydicom.dcmread(path) for path in files]
    one = pydicom.dcmread(files[0])
    for path in files:
        path.unlink()
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    mm, thickness = [float(value) for value in one.PixelSpacing], float(one.SliceThickness)
    measures, plane, timing, echo, modifier, frame, values = (pydicom.dataset.Dataset() for _ in range(7))
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = mm, thickness, thickness
    plane.ImageOrientationPatient = one.ImageOrientationPatient
    timing.RepetitionTime, timing.FlipAngle, timing.EchoTrainLength = one.RepetitionTime, one.FlipAngle, 1
    echo.EffectiveEchoTime = float(one.EchoTime)
    modifier.InversionRecovery = "YES" if "InversionTime" in one else "NO"
    if "InversionTime" in one:
        modifier.InversionTimes = float(one.InversionTime)
    frame.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared = pydicom.dataset.Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.MRTimingAndRelatedParametersSequence, shared.MREchoSequence = [timing], [echo]
    shared.MRModifierSequence, shared.MRImageFrameTypeSequence = [modifier], [frame]
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = 0, 1, "US"
    one.SharedFunctionalGroupsSequence = [shared]
    one.PerFrameFunctionalGroupsSequence = []
    for k in order:
        content, place, group = (pydicom.dataset.Dataset() for _ in range(3))
        content.StackID, content.InStackPositionNumber = "1", int(k) + 1
        content.DimensionIndexValues = [1, int(k) + 1]
        content.FrameAcquisitionDateTime = "20260101101010"
        place.ImagePositionPatient = slices[k].ImagePositionPatient
        group.FrameContentSequence, group.PlanePositionSequence = [content], [place]
        group.PixelValueTransformationSequence = [values]
        one.PerFrameFunctionalGroupsSequence.append(group)
    organization = pydicom.uid.generate_uid(entropy_srcs=[uid, "dimensions"])
    organized = pydicom.dataset.Dataset()
    organized.DimensionOrganizationUID = organization
    one.DimensionOrganizationSequence, one.DimensionIndexSequence = [organized], []
    for name in ("StackID", "InStackPositionNumber"):
        index = pydicom.dataset.Dataset()
        index.DimensionOrganizationUID = organization
        index.DimensionIndexPointer = pydicom.tag.Tag(name)
        index.FunctionalGroupPointer = pydicom.tag.Tag("FrameContentSequence")
        one.DimensionIndexSequence.append(index)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(one, name)
    for name in ("SpacingBetweenSlices", "RepetitionTime", "EchoTime", "FlipAngle", "InversionTime"):
        one.pop(name, None)
    one.NumberOfFrames, one.InstanceNumber = len(slices), 1
    one.PixelData = b"".join(slices[k].PixelData for k in order)
    one.save_as(file, enforce_file_format=True)
    return uid


@pytest.fixture(scope="module")
def head():
    return make_subject(3, scalp=True, grid=Grid(SHAPE, TILTED), sequences=("T1w", "FLAIR"), fine_mm=4.0)


@pytest.fixture(scope="module")
def series(head, tmp_path_factory) -> Path:
    """T1w, the same with voxels twice as thick, one after contrast agent, and a FLAIR, of one person."""
    folder = tmp_path_factory.mktemp("dicom")
    t1w, flair = (np.rint(500 * head.images[name]).astype(np.uint16) for name in ("T1w", "FLAIR"))
    write_series(folder / "a", t1w, TILTED, 1, SeriesDescription="t1_mprage_sag")
    write_series(folder / "b", t1w[:, :, ::2], TILTED @ np.diag([1, 1, 2, 1.0]), 2, SeriesDescription="t1_se_tra")
    write_series(folder / "c", t1w, TILTED, 3, SeriesDescription="t1_mprage post gd")
    times = {"RepetitionTime": "9000", "EchoTime": "120", "InversionTime": "2500"}
    write_series(folder / "d", flair, TILTED, 4, SeriesDescription="t2_spc_da-fl", **times)
    (folder / "notes.txt").write_text("no DICOM")
    return folder


@pytest.fixture(scope="module")
def converted(series, tmp_path_factory) -> Path:
    return convert_dicom(series, tmp_path_factory.mktemp("converted"), ("T1w", "FLAIR"))


def test_series_become_a_case_with_the_voxels_where_they_were(converted, head):
    (case,) = list_cases(datalist_file=converted, sequences=("T1w", "FLAIR"), one_grid=False)
    assert case["subject"] == "p-1"
    assert (case["scanner"], case["field_strength_t"]) == ("Phantom", 3)
    assert case["series"] == "T1w: t1_mprage_sag; FLAIR: t2_spc_da-fl"
    for path, name in zip(case["image"], ("T1w", "FLAIR"), strict=True):
        assert Path(path).name == f"p-1_{name}.nii.gz"
        found = nib.as_closest_canonical(nib.load(path))
        assert np.allclose(found.affine, TILTED, atol=1e-3)
        assert np.array_equal(np.asarray(found.dataobj), np.rint(500 * head.images[name]))


def test_the_log_says_which_series_became_what_and_no_file_names_the_person(series, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        convert_dicom(series, tmp_path, ("T1w", "FLAIR"))
    assert "p-1: T1w is the series t1_mprage_sag, which has smaller voxels than t1_se_tra" in caplog.text
    assert "p-1: left out are t1_mprage post gd" in caplog.text
    sidecars = [json.loads(path.read_text()) for path in tmp_path.glob("p-1_*.json")]
    assert len(sidecars) == 2
    for sidecar in sidecars:
        assert not [key for key in sidecar if re.match("Patient|Institution|Acquisition(Date|Time)", key)]
    assert {path.name for path in tmp_path.iterdir()} == {
        "cases.json", *(f"p-1_{name}.{end}" for name in ("T1w", "FLAIR") for end in ("nii.gz", "json"))
    }  # fmt: skip


def test_two_people_are_never_one_and_nobody_without_an_id_is_the_same_person_twice(tmp_path):
    volume = np.full((8, 8, 6), 100, np.uint16)
    t1w = {"SeriesDescription": "t1_mprage"}
    for number, person in enumerate(("", "", "p 1"), start=1):
        folder = tmp_path / "a" / str(number)
        write_series(folder, volume, TILTED, number, PatientID=person, StudyID=str(number), **t1w)
    cases = list_cases(datalist_file=convert_dicom(tmp_path / "a", tmp_path / "out", ("T1w",)), sequences=("T1w",))
    assert len({case["subject"] for case in cases}) == len(cases) == 3
    write_series(tmp_path / "a" / "4", volume, TILTED, 4, PatientID="p-1", StudyID="4", **t1w)
    with pytest.raises(InputError, match="the PatientIDs 'p 1' and 'p-1' both become 'p-1'"):
        convert_dicom(tmp_path / "a", tmp_path / "out", ("T1w",))


@pytest.mark.parametrize(
    ("sidecar", "sequence"),
    [
        ({"SeriesDescription": "Sag T2 FLAIR CUBE"}, "FLAIR"),
        ({"SeriesDescription": "t2_tirm_tra_dark-fluid"}, "FLAIR"),
        ({"SeriesDescription": "AX T1 FLAIR"}, "T1w"),
        ({"ProtocolName": "3D MPRAGE"}, "T1w"),
        ({"SeriesDescription": "t2_tse_tra"}, "T2w"),
        ({"SeriesDescription": "Ax PD"}, "PDw"),
        ({"SeriesDescription": "AX T1 +C"}, None),
        ({"SeriesDescription": "t1_mprage", "ContrastBolusAgent": "Gadovist"}, None),
        ({"SeriesDescription": "DTI 64"}, None),
        ({"SeriesDescription": "brain", "EchoTime": 0.12, "InversionTime": 2.4}, "FLAIR"),
        ({"SeriesDescription": "brain", "EchoTime": 0.12}, "T2w"),
        ({"SeriesDescription": "brain", "EchoTime": 0.003, "RepetitionTime": 2.0}, "T1w"),
        ({}, None),
    ],
)
def test_a_series_is_known_by_its_names_or_its_times(sidecar, sequence):
    assert sequence_of_series(sidecar) == sequence


def test_a_mask_becomes_segments_at_the_places_of_the_series(converted, series, head, tmp_path):
    scan = nib.load(converted.parent / "p-1_FLAIR.nii.gz")
    to_scan = nib.orientations.ornt_transform(nib.io_orientation(TILTED), nib.io_orientation(scan.affine))
    mask = nib.orientations.apply_orientation(head.tissues.astype(np.uint8), to_scan)
    nib.save(nib.Nifti1Image(mask, scan.affine), tmp_path / "p-1_FLAIR_seg.nii.gz")
    labels = {"1": "CSF", "2": "GM", "3": "WM", "4": "lesion"}
    said = {"bundle": "any_bundle", "version": "1.2.3", "labels": labels}
    (tmp_path / "p-1_FLAIR_seg.json").write_text(json.dumps(said))
    sidecar = converted.parent / "p-1_FLAIR.json"
    path = write_segmentation(tmp_path / "p-1_FLAIR_seg.nii.gz", sidecar, series, tmp_path / "seg.dcm")

    found = pydicom.dcmread(path)
    segments = {segment.SegmentNumber: segment.SegmentLabel for segment in found.SegmentSequence}
    assert [*segments.values()] == ["CSF", "GM", "WM", "lesion"]
    uid = json.loads(sidecar.read_text())["SeriesInstanceUID"]
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    assert (found.ManufacturerModelName, found.PatientID) == ("any_bundle", "p 1")
    value_of = {name: int(value) for value, name in labels.items()}
    back = np.zeros(SHAPE, np.uint8)
    for frame, pixels in zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array, strict=True):
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float) * [-1, -1, 1]
        k = round(nib.affines.apply_affine(np.linalg.inv(TILTED), place)[2])
        segment = segments[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        back[:, :, k][pixels.T > 0] = value_of[segment]
    assert np.array_equal(back, head.tissues)


def test_multi_frame_files_go_there_and_back_in_whatever_order_their_frames_are(head, tmp_path):
    volumes = {name: np.rint(500 * head.images[name]).astype(np.uint16) for name in ("T1w", "FLAIR")}
    times = {"RepetitionTime": "9000", "EchoTime": "120", "InversionTime": "2500"}
    for number, (name, fields) in enumerate((("T1w", {}), ("FLAIR", times))):
        order = np.random.default_rng(number).permutation(SHAPE[2])
        file = tmp_path / "dicom" / name / "all.dcm"
        write_multi_frame(file, volumes[name], TILTED, order, SeriesNumber=number + 1, **fields)
    cases = convert_dicom(tmp_path / "dicom", tmp_path / "out", ("T1w", "FLAIR"))
    (case,) = list_cases(datalist_file=cases, sequences=("T1w", "FLAIR"), one_grid=False)
    for path, volume in zip(case["image"], volumes.values(), strict=True):
        found = nib.as_closest_canonical(nib.load(path))
        assert np.allclose(found.affine, TILTED, atol=1e-3)
        assert np.array_equal(np.asarray(found.dataobj), volume)

    nib.save(nib.Nifti1Image(head.tissues.astype(np.uint8), TILTED), tmp_path / "p-1_FLAIR_seg.nii.gz")
    sidecar = tmp_path / "out" / "p-1_FLAIR.json"
    path = write_segmentation(tmp_path / "p-1_FLAIR_seg.nii.gz", sidecar, tmp_path / "dicom", tmp_path / "seg.dcm")
    segmentation = pydicom.dcmread(path)
    back = np.zeros(SHAPE, np.uint8)
    for frame, pixels in zip(segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True):
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float) * [-1, -1, 1]
        k = round(nib.affines.apply_affine(np.linalg.inv(TILTED), place)[2])
        back[:, :, k][pixels.T > 0] = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    assert np.array_equal(back, head.tissues)
    uid = json.loads(sidecar.read_text())["SeriesInstanceUID"]
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == uid


@pytest.mark.parametrize("of_one_series", [False, True])
def test_two_multi_frame_files_of_one_number_in_one_folder_keep_their_gray_values(head, tmp_path, of_one_series):
    volumes, files = {}, {}
    times = {"RepetitionTime": "9000", "EchoTime": "120", "InversionTime": "2500", "SeriesDescription": "t2_flair"}
    for seed, (name, fields) in enumerate((("T1w", {"SeriesDescription": "t1_mprage"}), ("FLAIR", times))):
        volumes[name] = np.rint(500 * head.images[name]).astype(np.uint16)
        order = np.random.default_rng(seed).permutation(SHAPE[2])
        made = tmp_path / name / "all.dcm"
        write_multi_frame(made, volumes[name], TILTED, order, SeriesNumber=5, **fields)
        files[name] = tmp_path / "dicom" / f"{name}.dcm"
        files[name].parent.mkdir(exist_ok=True)
        made.rename(files[name])
    if of_one_series:
        second = pydicom.dcmread(files["FLAIR"])
        second.SeriesInstanceUID = pydicom.dcmread(files["T1w"]).SeriesInstanceUID
        second.save_as(files["FLAIR"])
    cases = convert_dicom(tmp_path / "dicom", tmp_path / "out", ("T1w", "FLAIR"))
    (case,) = list_cases(datalist_file=cases, sequences=("T1w", "FLAIR"), one_grid=False)
    assert case["series"] == "T1w: t1_mprage; FLAIR: t2_flair"
    for path, volume in zip(case["image"], volumes.values(), strict=True):
        assert np.array_equal(np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj), volume)

    nib.save(nib.Nifti1Image(head.tissues.astype(np.uint8), TILTED), tmp_path / "seg.nii.gz")
    told = (tmp_path / "seg.nii.gz", tmp_path / "out" / "p-1_FLAIR.json", tmp_path / "dicom", tmp_path / "seg.dcm")
    if not of_one_series:
        assert write_segmentation(*told).is_file()
        return
    with pytest.raises(InputError, match=r"FLAIR\.dcm and .*T1w\.dcm are one series, expected a file per slice or one"):
        write_segmentation(*told)


def test_a_series_of_files_with_many_frames_and_with_one_is_refused(head, tmp_path):
    volume = np.rint(500 * head.images["T1w"]).astype(np.uint16)
    uid = write_series(tmp_path / "dicom", volume, TILTED, 5, SeriesDescription="t1_mprage")
    many = tmp_path / "dicom" / "many" / "all.dcm"
    write_multi_frame(many, volume, TILTED, np.arange(SHAPE[2]), SeriesNumber=5, SeriesDescription="t1_mprage")
    both = pydicom.dcmread(many)
    both.SeriesInstanceUID = uid
    both.save_as(many)
    sentence = r"all\.dcm with many frames and .*\d{3}\.dcm with one are one series, expected one kind of file"
    with pytest.raises(InputError, match=sentence):
        convert_dicom(tmp_path / "dicom", tmp_path / "out", ("T1w",))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda mask, affine: (mask[1:], affine), "lies on another grid than its DICOM series"),
        (lambda mask, affine: (mask, affine + np.eye(4)[:, [3, 0, 1, 2]] * 0.4), "lies on another grid"),
        (lambda mask, affine: (0 * mask, affine), "is empty, expected a label"),
        (lambda mask, affine: (0.5 * mask, affine), "expected whole numbers"),
    ],
)
def test_a_mask_that_does_not_fit_its_series_is_refused(converted, series, tmp_path, change, sentence):
    scan = nib.load(converted.parent / "p-1_FLAIR.nii.gz")
    mask, affine = change(np.ones(scan.shape, np.float32), scan.affine)
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "m.nii.gz")
    with pytest.raises(InputError, match=sentence):
        write_segmentation(tmp_path / "m.nii.gz", converted.parent / "p-1_FLAIR.json", series, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_what_is_no_dicom_or_lacks_the_reference_is_refused(series, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no series that dcm2niix converts"):
        convert_dicom(tmp_path / "empty", tmp_path / "out", ("T1w",))
    with pytest.raises(InputError, match="has no series of T2w in 1 studies"):
        convert_dicom(series, tmp_path / "out", ("T2w",))


@pytest.mark.slow
def test_a_folder_of_dicom_is_prepared_and_its_mask_comes_back_as_dicom_seg(series, head, tmp_path):
    require_simpleitk()
    options = {"dicom_dir": str(series), "sequences": ("T1w", "FLAIR"), "num_workers": 1, "bias_correction": False}
    prepare(str(tmp_path / "prepared"), brain_extraction="template", **options)
    record = tmp_path / "prepared" / "p-1" / "p-1.json"
    before = record.stat().st_mtime_ns
    prepare(str(tmp_path / "prepared"), brain_extraction="template", **options)
    assert record.stat().st_mtime_ns == before  # the same series: nothing is done again
    brain = nib.load(record.parent / "p-1_brainmask.nii.gz")
    results = tmp_path / "results"
    results.mkdir()
    nib.save(brain, results / "p-1_FLAIR_seg.nii.gz")
    (results / "p-1_FLAIR_seg.json").write_text(json.dumps({"labels": {"1": "brain"}, "bundle": "b", "version": "1"}))
    restore(str(results / "*_seg.nii.gz"), str(record.parents[1]), str(tmp_path / "raw"), dicom_seg=str(series))
    found = pydicom.dcmread(tmp_path / "raw" / "p-1_FLAIR_seg.dcm")
    assert found.SegmentSequence[0].SegmentLabel == "brain"
    assert found.pixel_array.sum() == pytest.approx((head.brain_mask > 0).sum(), rel=0.15)
    assert json.loads((tmp_path / "raw" / "p-1_FLAIR_seg.json").read_text())["bundle"] == "b"
    with pytest.raises(InputError, match="dicom_dir is given beside dataset_dir or datalist_file"):
        prepare(str(tmp_path / "other"), dataset_dir=str(series), **options)
