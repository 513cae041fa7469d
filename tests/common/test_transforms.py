"""Transforms: reading, intensities, grids, anomaly maps, writing."""

import logging
import os
import resource
import stat

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, get_track_meta, list_data_collate
from monai.transforms import Compose, DivisiblePadd, Invertd, LoadImaged, Orientationd, RandFlipd, SaveImaged
from scipy import ndimage

from common.errors import InputError
from common.transforms import (
    BrainMaskd,
    CheckLabeld,
    EntropyMapd,
    ErodeMaskd,
    LoadScand,
    MaskOutsided,
    MedianFilterd,
    PlainTensorCompose,
    RemoveSmallComponentsd,
    ResampleSpacingd,
    SaveScand,
    ScaleBrainIntensityd,
    entropy,
    erode_mask,
    median_filter,
    piecewise_linear,
    remove_small_components,
    scale_brain_intensity,
)
from common.transforms.anomaly import median_size

# oblique, anisotropic, first axis to the left, origin off zero
TILT, TURN = np.deg2rad(9), np.deg2rad(-6)
ROTATION = np.array([[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]]) @ np.array(
    [[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]]
)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = ROTATION @ np.diag([-1.3, 1.1, 1.6])
OBLIQUE[:3, 3] = [37.0, -22.5, -11.0]


def ramp(shape, affine):
    """World coordinates x + 2 y + 3 z + 1000 at every voxel: linear interpolation reproduces it exactly."""
    world = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return (world @ [1, 2, 3] + 1000).astype(np.float32)


def save(path, array, affine=OBLIQUE, dtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array).astype(dtype or np.asarray(array).dtype), affine), path)
    return str(path)


def meta(array, spacing=(1.0, 1.0, 1.0), file="scan.nii.gz"):
    affine = np.diag([*spacing, 1.0])
    return MetaTensor(torch.as_tensor(array), affine=affine, meta={"filename_or_obj": file})


@pytest.fixture
def scan(tmp_path):
    return save(tmp_path / "scan.nii.gz", ramp((12, 14, 10), OBLIQUE))


@pytest.fixture
def stripped(tmp_path):
    array = ramp((12, 14, 10), OBLIQUE)
    array[0, 0, 0] = 0
    return save(tmp_path / "scan.nii.gz", array)


def uneven(mask):
    """An image that is not constant where a mask is not 0, and 0 elsewhere."""
    mask = torch.as_tensor(mask)
    return mask * torch.linspace(1, 2, mask.numel()).reshape(mask.shape)


# without metadata


def test_plain_transforms_do_what_they_do_with_metadata():
    item, flip = {"image": meta(torch.rand(1, 6, 5))}, RandFlipd("image", prob=0.5, spatial_axis=0)
    plain, tracked = PlainTensorCompose([flip]), Compose([flip])
    plain.set_random_state(3)
    found = [plain(item)["image"] for _ in range(8)]
    tracked.set_random_state(3)
    expected = [tracked(item)["image"] for _ in range(8)]
    assert all(type(image) is torch.Tensor for image in found)
    assert [image.tolist() for image in found] == [image.tolist() for image in expected]
    assert len({str(image.tolist()) for image in found}) == 2  # some are flipped


def test_metadata_is_kept_again_after_plain_transforms_even_if_they_fail():
    def fail(item):
        assert not get_track_meta()
        raise InputError("no such scan")

    with pytest.raises(RuntimeError):
        PlainTensorCompose([fail])({"image": meta(torch.rand(1, 6, 5))})
    assert get_track_meta()


# reading


def test_a_scan_is_one_float_channel_on_the_grid_of_its_file(scan):
    image = LoadScand("image")({"image": scan})["image"]
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), ramp((12, 14, 10), OBLIQUE)[None])
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert image.meta["filename_or_obj"] == scan


def test_several_files_become_channels_in_their_order(tmp_path):
    paths = [save(tmp_path / f"{value}.nii", np.full((3, 4, 5), value, np.int16)) for value in (7, 2)]
    image = LoadScand("image")({"image": paths})["image"]
    assert image.shape == (2, 3, 4, 5)
    assert image[:, 0, 0, 0].tolist() == [7, 2]
    assert image.meta["filename_or_obj"] == paths[0]


def test_a_4d_file_with_one_volume_is_a_3d_scan(tmp_path):
    array = ramp((4, 5, 6), OBLIQUE)
    image = LoadScand("image")({"image": save(tmp_path / "a.nii.gz", array[..., None])})["image"]
    np.testing.assert_array_equal(image.numpy(), array[None])


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f8", ">f4", "u1"])
def test_every_number_type_is_read(tmp_path, dtype):
    array = np.arange(60).reshape(3, 4, 5)
    image = nib.Nifti1Image(
        array.astype(dtype), OBLIQUE, nib.Nifti1Header(endianness=dtype[0] if dtype[0] in "<>" else "<")
    )
    image.set_data_dtype(np.dtype(dtype))
    nib.save(image, tmp_path / "a.nii")
    loaded = LoadScand("image")({"image": str(tmp_path / "a.nii")})["image"]
    np.testing.assert_array_equal(loaded.numpy()[0], array)


def test_the_scaling_in_a_header_is_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(60).reshape(3, 4, 5).astype(np.int16), OBLIQUE)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "a.nii")
    expected = np.asarray(nib.load(tmp_path / "a.nii").dataobj)
    loaded = LoadScand("image")({"image": str(tmp_path / "a.nii")})["image"]
    np.testing.assert_allclose(loaded.numpy()[0], expected)


def test_text_of_an_application_beside_the_image_is_left_alone(scan):
    item = {"image": scan, "image_path": scan, "model": "x", "device": "cpu", "label_tag": "final"}
    loaded = LoadScand("image")(item)
    assert {key: loaded[key] for key in item if key != "image"} == {key: item[key] for key in item if key != "image"}


def test_monai_label_takes_a_writer_out_and_leaves_a_loader_as_it_is(tmp_path):
    assert not isinstance(LoadScand("image"), LoadImaged)
    assert isinstance(SaveScand("pred", tmp_path, "seg"), SaveImaged)


def spoil(path, kind):
    array = np.ones((4, 5, 6), np.float32)
    if kind == "missing":
        return str(path)
    if kind == "folder":
        path.mkdir()
        return str(path)
    if kind == "text":
        path.write_text("not an image")
        return str(path)
    if kind == "truncated":
        save(path, np.random.default_rng(0).random((20, 20, 20), np.float32))
        path.write_bytes(path.read_bytes()[:5000])
        return str(path)
    if kind == "damaged":
        save(path, np.random.default_rng(0).random((20, 20, 20), np.float32))
        content = bytearray(path.read_bytes())
        content[2000:3000] = bytes(1000)
        path.write_bytes(content)
        return str(path)
    if kind == "zero":
        array[:] = 0
    if kind == "nan":
        array[0, 0, :2] = np.nan
        array[1, 1, 1] = np.inf
    if kind == "flat":
        array = array[..., 0]
    if kind == "volumes":
        array = np.stack([array, array], -1)
    if kind == "complex":
        array = array.astype(np.complex64)
    return save(path, array)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "does not exist, expected a NIfTI file"),
        ("folder", "is a folder, expected a NIfTI file"),
        ("text", r"cannot be read as NIfTI \("),
        ("truncated", r"cannot be read to its end \(Compressed file ended"),
        ("damaged", r"cannot be read to its end \("),
        ("zero", "is zero everywhere"),
        ("nan", "has 3 NaN or infinite voxels of 120"),
        ("flat", r"has shape \(4, 5\), expected a 3-D image"),
        ("volumes", r"has shape \(4, 5, 6, 2\), so several volumes"),
        ("complex", "has voxels of type complex64"),
    ],
)
def test_a_file_that_is_no_scan_is_refused_by_name(tmp_path, kind, sentence):
    path = spoil(tmp_path / "bad.nii.gz", kind)
    with pytest.raises(InputError, match=rf"^{path} {sentence}"):
        LoadScand("image")({"image": path})


def test_a_label_may_be_zero_everywhere_and_a_brain_mask_may_not(tmp_path):
    path = spoil(tmp_path / "zero.nii.gz", "zero")
    assert not LoadScand("label")({"label": path})["label"].any()
    with pytest.raises(InputError, match="is zero everywhere"):
        LoadScand("brain_mask")({"brain_mask": path})


def test_sequences_on_different_grids_are_refused(tmp_path, scan):
    other = save(tmp_path / "other.nii.gz", np.ones((12, 14, 11), np.float32))
    with pytest.raises(InputError, match=r"other\.nii\.gz and .*scan\.nii\.gz have shape \(12, 14, 11\) against"):
        LoadScand("image")({"image": [scan, other]})


def test_what_is_no_path_is_refused():
    with pytest.raises(InputError, match="a Tensor stands where the path of a NIfTI file is expected"):
        LoadScand("image")({"image": torch.zeros(1, 2, 2, 2)})


def test_unknown_label_values_are_named():
    label = meta(torch.tensor([0, 1, 3, 2.5]).reshape(1, 4, 1, 1), file="lesion.nii.gz")
    with pytest.raises(InputError, match=r"lesion\.nii\.gz has the label values 2\.5, 3, expected only 0, 1$"):
        CheckLabeld("label")({"label": label})
    assert CheckLabeld("label", values=(0, 1, 2.5, 3))({"label": label})["label"] is label


# intensities


def test_voxels_that_are_not_zero_in_any_channel_are_the_brain():
    image = meta(torch.tensor([[0.0, 5, 2, 0, 0], [0, 0, 1, 3, 0]]).reshape(2, 5, 1, 1))
    out = BrainMaskd()({"image": image})
    assert out["brain_mask"].flatten().tolist() == [0, 1, 1, 1, 0]
    assert out["image"].equal(image)
    assert isinstance(out["brain_mask"], MetaTensor)
    np.testing.assert_array_equal(out["brain_mask"].affine, image.affine)


def test_one_sequence_with_its_skull_is_refused():
    image = torch.zeros(3, 8, 8, 8)  # the last one is missing
    image[0, 2:6, 2:6, 2:6] = 1
    image[1, 1:7, 1:7, 1:7] = 1
    sentence = r"scan\.nii\.gz: channel 1 is not 0 in 3\.4 times as many voxels as channel 0, expected all sequences"
    mask = meta(image[:1].clone())
    image = uneven(image)
    with pytest.raises(InputError, match=sentence):
        BrainMaskd()({"image": meta(image)})
    assert BrainMaskd()({"image": meta(image), "brain_mask": mask})["image"][1].count_nonzero() == 4**3


def test_fluid_that_is_zero_inside_the_brain_is_brain():
    image = torch.zeros(1, 7, 7, 7)
    image[0, :6, 1:6, 1:6] = 1  # one side lies at the margin of the image
    image[0, 2, 2, 2] = image[0, 3:5, 3, 3] = 0  # enclosed
    image[0, 0, 5, 5] = 0  # at the margin: outside
    mask = BrainMaskd()({"image": meta(uneven(image))})["brain_mask"][0]
    assert mask[2, 2, 2] == 1
    assert mask[3:5, 3, 3].all()
    assert mask[0, 5, 5] == 0
    assert mask.sum() == 6 * 5 * 5 - 1


def test_a_given_mask_wins_over_the_voxels():
    mask = meta(torch.tensor([255.0, 0, 255, 0]).reshape(1, 4, 1, 1))
    out = BrainMaskd()({"image": meta(torch.arange(1.0, 5).reshape(1, 4, 1, 1)), "brain_mask": mask})
    assert out["brain_mask"].flatten().tolist() == [1, 0, 1, 0]
    assert out["image"].flatten().tolist() == [1, 0, 3, 0]


SOFT = ndimage.gaussian_filter(np.pad(np.ones((4, 4, 4), dtype=np.float32), 2), 1)[None]


@pytest.mark.parametrize(
    "mask",
    [SOFT, SOFT - 0.01, 2 * (SOFT > 0.5) - 1.0, (SOFT > 0.5) + 1e-2 * (SOFT <= 0.5)],
    ids=["soft", "spline", "-1 outside", "0.01 outside"],
)
def test_a_mask_of_other_than_two_values_is_cut_at_half_of_its_largest(mask, caplog):
    image, inside = meta(uneven(torch.ones(1, 8, 8, 8))), mask > mask.max() / 2
    out = BrainMaskd()({"image": image, "brain_mask": meta(mask.astype(np.float32))})
    np.testing.assert_array_equal(np.asarray(out["brain_mask"]), inside)
    assert 0.05 < inside.mean() < 0.2  # 4 x 4 x 4 of 8 x 8 x 8 were smoothed; not 0 is everything
    assert "the brain mask scan.nii.gz of scan.nii.gz has" in caplog.text


def test_rounding_is_no_third_value_of_a_mask(caplog):
    inside = (SOFT > 0.5) * np.float32(200)
    image = meta(uneven(torch.ones(1, 8, 8, 8)))
    out = BrainMaskd()({"image": image, "brain_mask": meta(inside + np.float32(1e-6))})
    np.testing.assert_array_equal(np.asarray(out["brain_mask"]), inside > 0)
    assert not caplog.text


def test_a_mask_that_lies_beside_the_brain_is_told(caplog):
    image = torch.zeros(1, 20, 20, 20)
    image[0, 5:15, 5:15, 5:15] = 1 + torch.rand(10, 10, 10)
    image[0, 8, 8, 8] = 0  # fluid may be 0
    for shift, said in (
        (0, ""),
        (1, ""),
        (3, "scan.nii.gz: in 30 % of the brain mask the scan is 0, expected less than 20 %"),
    ):
        caplog.clear()
        mask = torch.zeros(1, 20, 20, 20)
        mask[0, 5 + shift : 15 + shift, 5:15, 5:15] = 1
        BrainMaskd()({"image": meta(image), "brain_mask": meta(mask)})
        assert (said in caplog.text) if said else not caplog.text


def test_a_given_mask_is_looked_at_as_the_image_would_be(caplog):
    caplog.set_level(logging.WARNING)
    image = torch.zeros(1, 20, 20, 20)
    image[0, 2:12, 2:12, 2:12] = 1
    brain, image = meta(image, spacing=(14.0, 14, 14)), meta(uneven(torch.ones_like(image)), spacing=(14.0, 14, 14))
    BrainMaskd()({"image": image, "brain_mask": brain})
    assert "scan.nii.gz: 2.7 l are in the brain mask, expected a brain of up to 2.4 l" in caplog.text
    BrainMaskd()({"image": image, "brain_mask": meta(torch.ones(1, 20, 20, 20), spacing=(14.0, 14, 14))})
    assert "100 % of the voxels are in the brain mask" in caplog.text


def test_a_background_of_almost_0_is_0_and_one_of_another_value_is_refused():
    brain = np.zeros((1, 9, 9, 9), dtype=np.float32)
    brain[0, 2:7, 2:7, 2:7] = 1
    image = np.asarray(uneven(torch.from_numpy(brain)))
    almost = np.where(brain > 0, image, np.float32(1e-5))
    out = BrainMaskd()({"image": meta(almost)})
    np.testing.assert_array_equal(np.asarray(out["brain_mask"]), brain)
    np.testing.assert_array_equal(np.asarray(out["image"]), image)
    other = np.where(brain > 0, image, np.float32(-1000))
    other[0, 0, 4, 4] = 0  # elsewhere "no voxel is 0" says it
    with pytest.raises(
        InputError, match=r"scan\.nii\.gz: 83 % of the voxels are -1000, corners among them, expected 0"
    ):
        BrainMaskd()({"image": meta(other)})


def test_an_image_with_a_skull_is_warned_of(caplog):
    caplog.set_level(logging.WARNING)
    image = torch.ones(1, 10, 10, 10)
    image[0, 0, :5] = 0  # 5 % are 0: just the limit
    BrainMaskd()({"image": meta(uneven(image))})
    assert not caplog.text
    image[0, 0, 0] = 1
    BrainMaskd()({"image": meta(uneven(image))})
    assert "scan.nii.gz: 96 % of the voxels are not 0, expected a skull-stripped image" in caplog.text
    with pytest.raises(InputError, match=r"scan\.nii\.gz: no voxel is 0, expected a skull-stripped image"):
        BrainMaskd()({"image": meta(uneven(torch.ones_like(image)))})


def test_a_head_in_place_of_a_brain_is_warned_of(caplog):
    caplog.set_level(logging.WARNING)
    image = torch.zeros(1, 20, 20, 20)
    image[0, 2:12, 2:12, 2:12] = 1
    BrainMaskd()({"image": meta(uneven(image), spacing=(13.0, 13, 13))})  # 2.2 l
    assert not caplog.text
    BrainMaskd()({"image": meta(uneven(image), spacing=(14.0, 14, 14))})
    assert "scan.nii.gz: 2.7 l are not 0, expected a brain of up to 2.4 l: strip the skull" in caplog.text


def test_an_image_without_contrast_or_below_0_is_refused():
    brain = torch.zeros(1, 8, 8, 8)
    brain[0, 2:7, 2:7, 2:7] = 1
    with pytest.raises(InputError, match=r"scan\.nii\.gz: channel 0 is 7 everywhere in the brain, expected contrast"):
        BrainMaskd()({"image": meta(7 * brain)})
    with pytest.raises(InputError, match=r"channel 0 is 7 everywhere in the brain"):
        BrainMaskd()({"image": meta(torch.full_like(brain, 7)), "brain_mask": meta(brain)})
    scored = uneven(brain) - 1.5 * brain
    with pytest.raises(InputError, match=r"scan\.nii\.gz: channel 0 is below 0 in \d\d % of the brain, expected inten"):
        BrainMaskd()({"image": meta(scored)})
    assert BrainMaskd(largest_negative_share=None)({"image": meta(scored)})["brain_mask"].equal(brain)
    interpolated = uneven(brain)
    interpolated[0, 2, 2, 2] = -0.1  # one of 125
    BrainMaskd()({"image": meta(interpolated)})


def test_an_empty_mask_and_a_mask_of_another_grid_are_refused():
    image = meta(torch.ones(1, 4, 4, 4))
    with pytest.raises(InputError, match=r"the brain mask of scan\.nii\.gz is empty"):
        BrainMaskd()({"image": image, "brain_mask": meta(torch.zeros(1, 4, 4, 4))})
    with pytest.raises(InputError, match="have affines that differ by up to 3 mm at a corner, expected image and mask"):
        BrainMaskd()({"image": image, "brain_mask": meta(torch.ones(1, 4, 4, 4), spacing=(1, 2, 1))})
    with pytest.raises(InputError, match="has 2 channels, expected 1"):
        BrainMaskd()({"image": image, "brain_mask": meta(torch.ones(2, 4, 4, 4))})


def test_a_mask_that_was_not_loaded_is_an_error_of_the_config():
    with pytest.raises(ValueError, match="brain_mask is a str, expected a MetaTensor"):
        BrainMaskd()({"image": meta(torch.ones(1, 4, 4, 4)), "brain_mask": "mask.nii.gz"})


def test_the_percentile_inside_the_mask_becomes_the_value():
    # inside the mask 0..100, so the 90th percentile is 90 and the 10th is 10; the voxel outside is far brighter
    image = torch.cat([torch.arange(101.0), torch.tensor([5000.0])]).reshape(1, 102, 1, 1)
    mask = torch.ones_like(image)
    mask[0, -1] = 0
    scaled = scale_brain_intensity(image, mask, percentile_upper=90, value=2.0, clip=None)
    torch.testing.assert_close(scaled[0, :101, 0, 0], torch.arange(101.0) / 45)
    assert scaled[0, 101, 0, 0] == 0
    scaled = scale_brain_intensity(image, mask, percentile_upper=90, lower=10, clip=1.0)
    torch.testing.assert_close(scaled[0, :101, 0, 0], ((torch.arange(101.0) - 10) / 80).clamp(0, 1))


def test_channels_are_scaled_on_their_own():
    image = torch.stack([torch.arange(1.0, 9), 100 * torch.arange(1.0, 9)]).reshape(2, 2, 2, 2)
    scaled = scale_brain_intensity(image, torch.ones(1, 2, 2, 2), percentile_upper=100)
    torch.testing.assert_close(scaled[0], scaled[1])
    assert scaled.amax() == 1


def test_scaling_does_not_depend_on_the_unit_of_the_image():
    image = meta(torch.rand(1, 6, 6, 6, generator=torch.Generator().manual_seed(0)))
    scaling = ScaleBrainIntensityd("image")
    torch.testing.assert_close(scaling({"image": image})["image"], scaling({"image": image * 750})["image"])


def test_a_constant_image_is_refused_by_name():
    image = torch.zeros(1, 4, 4, 4)
    image[0, 1:3] = 7
    with pytest.raises(InputError, match=r"scan\.nii\.gz: channel 0 is 7 everywhere in the brain, expected contrast"):
        ScaleBrainIntensityd("image")({"image": meta(image)})


def test_an_image_without_brain_or_of_negative_values_is_refused():
    with pytest.raises(InputError, match="the brain mask is empty"):
        ScaleBrainIntensityd("image", mask_key="m")(
            {"image": meta(torch.ones(1, 2, 2, 2)), "m": torch.zeros(1, 2, 2, 2)}
        )
    with pytest.raises(InputError, match="has the upper percentile -1"):
        scale_brain_intensity(-torch.arange(1.0, 9).reshape(1, 2, 2, 2), torch.ones(1, 2, 2, 2), percentile_upper=100)
    with pytest.raises(ValueError, match="does not fit image"):
        scale_brain_intensity(torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 3))


# grids


@pytest.fixture
def preprocessing():
    return Compose(
        [
            LoadScand("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            BrainMaskd("image"),
            ResampleSpacingd("image", pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
            DivisiblePadd("image", k=8),
            ScaleBrainIntensityd("image", percentile=100, value=1.0),
        ]
    )


def test_a_resampled_scan_shows_every_point_where_it_was(scan):
    chain = Compose(
        [LoadScand("image"), Orientationd("image", axcodes="RAS", labels=None), ResampleSpacingd("image", pixdim=1.0)]
    )
    image = chain({"image": scan})["image"]
    assert nib.aff2axcodes(image.affine.numpy()) == ("R", "A", "S")
    np.testing.assert_allclose(image.pixdim, 1.0, atol=1e-5)
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(image.numpy()[0][inner], ramp(image.shape[1:], image.affine.numpy())[inner], atol=0.01)


@pytest.mark.parametrize("batched", [False, True])
def test_a_map_comes_back_to_the_grid_of_the_file_by_invertd(tmp_path, stripped, preprocessing, batched):
    item = preprocessing(
        {"image": stripped, "image_path": stripped, "image_note": "kept", "model": "x", "name": "case"}
    )
    assert item["image_path"] == stripped
    assert item["image_note"] == "kept"
    world = ramp(item["image"].shape[1:], item["image"].affine.numpy())
    item["pred"] = MetaTensor(torch.as_tensor(world[None])).copy_meta_from(item["image"])
    if batched:
        (item,) = decollate_batch(list_data_collate([item]))
    inverse = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
    saved = SaveScand("pred", tmp_path / "out", "prob")(inverse(item))
    assert saved["prob_path"] == str(tmp_path / "out" / "case_prob.nii.gz")
    file = nib.load(saved["prob_path"])
    np.testing.assert_allclose(file.affine, OBLIQUE, atol=1e-5)
    inner = (slice(1, -1),) * 3  # the grid of 1 mm may end up to 1 mm before the field of view does
    np.testing.assert_allclose(file.get_fdata()[inner], ramp((12, 14, 10), OBLIQUE)[inner], rtol=1e-5)


def test_resampling_leaves_text_beside_the_image_and_works_for_all_keys():
    item = {"image": meta(torch.ones(1, 4, 4, 4), (2, 2, 2)), "label": meta(torch.ones(1, 4, 4, 4), (2, 2, 2))}
    item |= {"image_path": "a.nii.gz", "label_tag": "final"}
    out = ResampleSpacingd(["image", "label"], pixdim=(1, 1, 1), mode=["bilinear", "nearest"])(item)
    assert out["image"].shape == out["label"].shape == (1, 7, 7, 7)  # from first to last center: 3 x 2 mm
    assert (out["image_path"], out["label_tag"]) == ("a.nii.gz", "final")


# anomaly maps


@pytest.mark.parametrize(
    ("size_mm", "spacing", "size"),
    [(5, (1, 1, 1), (5, 5, 5)), (5, (2, 2, 3), (3, 3, 1)), (5, (0.9, 1.2, 5), (5, 5, 1)), (3, (1, 0.5, 10), (3, 5, 1))],
)
def test_the_median_box_is_the_odd_number_of_voxels_nearest_to_its_size(size_mm, spacing, size):
    # e.g. 5 mm at 0.9 mm: 5 voxels are 4.5 mm and 7 are 6.3 mm; 3 mm at 0.5 mm: 5 and 7 voxels are equally near
    assert median_size(size_mm, spacing) == size


def test_the_median_removes_a_point_and_keeps_a_block():
    image = torch.zeros(1, 12, 12, 12)
    image[0, 2, 2, 2] = 5
    image[0, 5:10, 5:10, 5:10] = 3
    filtered = median_filter(image, (3, 3, 3))
    assert filtered[0, 2, 2, 2] == 0
    assert (filtered[0, 6:9, 6:9, 6:9] == 3).all()


def test_the_median_box_follows_the_voxels_of_the_scan():
    image = torch.rand(1, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    found = MedianFilterd("pred", size_mm=5)({"pred": meta(image, (1, 2, 5))})["pred"]
    torch.testing.assert_close(found.as_tensor(), median_filter(image, (5, 3, 1)))


@pytest.mark.parametrize("size", [(3, 5, 1), (5, 5, 5)])
def test_the_median_agrees_with_a_sorted_box(size):
    image = torch.rand(2, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    image[0, :4] = 0
    image[1] -= 0.5  # both signs
    padded = np.pad(image.numpy(), [(0, 0)] + [(n // 2, n // 2) for n in size])
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2, 3))
    np.testing.assert_array_equal(median_filter(image, size).numpy(), np.median(windows, axis=(-3, -2, -1)))


def test_the_median_of_nothing_is_nothing_and_an_even_box_is_refused():
    assert not median_filter(torch.zeros(1, 4, 4, 4), (3, 3, 3)).any()
    with pytest.raises(ValueError, match=r"size is \(2, 3, 3\), expected 3 odd numbers"):
        median_filter(torch.zeros(1, 4, 4, 4), (2, 3, 3))


def test_erosion_is_in_millimeters_along_each_axis():
    mask = torch.ones(1, 9, 9, 9)  # beyond the border is outside
    eroded = erode_mask(mask, 2.0, (1.0, 2.0, 4.0))
    # the first voxel lies one voxel size from the outside: removed are 2 voxels of 1 mm, 1 of 2 mm, none of 4 mm
    expected = torch.zeros_like(mask)
    expected[0, 2:-2, 1:-1, :] = 1
    torch.testing.assert_close(eroded, expected)
    torch.testing.assert_close(erode_mask(mask, 0.0, (1, 1, 1)), mask)


def test_an_erosion_that_leaves_nothing_is_refused():
    with pytest.raises(
        InputError, match=r"brain_mask of scan\.nii\.gz has 64 voxels and none after an erosion of 5 mm"
    ):
        ErodeMaskd("brain_mask", radius_mm=5)({"brain_mask": meta(torch.ones(1, 4, 4, 4))})


def test_maps_are_cut_to_a_mask():
    item = {
        "pred": meta(torch.arange(4.0).reshape(1, 4, 1, 1)),
        "m": meta(torch.tensor([1.0, 0, 0, 2]).reshape(1, 4, 1, 1)),
    }
    assert MaskOutsided("pred", mask_key="m")(item)["pred"].flatten().tolist() == [0, 0, 0, 3]
    with pytest.raises(ValueError, match="does not fit"):
        MaskOutsided("pred", mask_key="m")({**item, "m": meta(torch.ones(1, 3, 1, 1))})


def blobs():
    label = torch.zeros(1, 10, 10, 10, dtype=torch.uint8)
    label[0, 0, 0, 0] = 1
    label[0, 1, 1, 1] = 1  # joined by a corner only
    label[0, 5:7, 5, 5] = 1  # 2 voxels
    label[0, 8, 8, 7:10] = 1  # 3 voxels
    return label


@pytest.mark.parametrize(
    ("connectivity", "min_volume_mm3", "left"),
    [(26, 2, 7), (26, 3, 3), (6, 2, 5), (26, 2.5, 3), (26, 4, 0), (26, 0, 7)],
)
def test_components_below_the_volume_go(connectivity, min_volume_mm3, left):
    assert remove_small_components(blobs(), min_volume_mm3, 1.0, connectivity).sum() == left


def test_the_volume_counts_and_not_the_voxels():
    # 3 voxels of 1 x 1 x 3 mm are 9 mm3, of 0.7 mm3 they are 2.1 mm3
    out = RemoveSmallComponentsd("pred", min_volume_mm3=9)({"pred": meta(blobs(), (1, 1, 3))})["pred"]
    assert out.sum() == 3
    assert out.dtype == torch.uint8
    assert remove_small_components(blobs(), 2.1, 0.7).sum() == 3  # 2.1 / 0.7 is more than 3 in floating point


def test_the_volume_of_a_voxel_does_not_depend_on_how_the_axes_lie():
    image = meta(blobs(), (1, 1, 3))
    image.affine = torch.tensor([[0, 0, -3.0, 9], [1, 0, 0, 0], [0, -1, 0, 5], [0, 0, 0, 1]])
    for least, left in ((9, 3), (9.1, 0)):
        assert RemoveSmallComponentsd("pred", min_volume_mm3=least)({"pred": image})["pred"].sum() == left


def test_components_of_different_labels_are_apart():
    label = torch.tensor([1, 1, 2, 0, 2, 2, 2]).reshape(1, 7, 1, 1)
    assert remove_small_components(label, 2, 1.0).flatten().tolist() == [1, 1, 0, 0, 2, 2, 2]


def test_connectivity_counts_neighbors():
    with pytest.raises(ValueError, match="connectivity is 3, expected 6, 18 or 26"):
        remove_small_components(blobs(), 2, 1.0, connectivity=3)


@pytest.mark.parametrize(
    "transform",
    [
        MedianFilterd("pred", size_mm=3),
        ErodeMaskd("pred", radius_mm=1),
        MaskOutsided("pred", mask_key="image"),
        RemoveSmallComponentsd("pred", min_volume_mm3=2),
        ScaleBrainIntensityd("pred"),
        BrainMaskd("pred", mask_key="pred_mask"),
    ],
)
def test_every_transform_keeps_the_affine_and_the_history_that_invertd_needs(stripped, preprocessing, transform):
    item = preprocessing({"image": stripped})
    item["pred"] = item["image"] * torch.linspace(0.5, 1, item["image"].shape[1])[None, :, None, None]
    pred = transform(item)["pred"]
    assert isinstance(pred, MetaTensor)
    assert len(pred.applied_operations) == len(item["image"].applied_operations) == 3
    np.testing.assert_array_equal(pred.affine, item["image"].affine)
    assert pred.meta["filename_or_obj"] == stripped


# writing


def test_a_file_has_the_geometry_of_its_source_and_nothing_else_of_it(tmp_path):
    array = ramp((5, 6, 7), OBLIQUE)
    source = nib.Nifti1Image(array[..., None], None)
    source.set_sform(OBLIQUE, code=4)
    other = OBLIQUE.copy()
    other[:3, 3] += 5
    source.set_qform(other, code=1)
    source.header.set_xyzt_units("mm", "sec")
    source.header["descrip"] = b"name of a person"
    nib.save(source, tmp_path / "x.nii")
    item = LoadScand("image")({"image": str(tmp_path / "x.nii")})
    path = SaveScand("image", tmp_path, "seg", dtype=np.int16)({"image": item["image"].round()})["seg_path"]
    file = nib.load(path)
    assert file.shape == (5, 6, 7)
    assert file.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(file.dataobj), array.round())
    np.testing.assert_allclose(file.get_sform(coded=True)[0], OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(file.get_qform(coded=True)[0], other, atol=1e-4)
    assert (file.get_sform(coded=True)[1], file.get_qform(coded=True)[1]) == (4, 1)
    assert file.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(file.header.get_zooms(), (1.3, 1.1, 1.6), rtol=1e-5)
    assert file.header["descrip"] == b""


def test_the_name_is_that_of_the_item_or_of_the_first_image(tmp_path, scan):
    item = LoadScand("image")({"image": [scan, scan]})
    item["pred"] = item["image"][:1]
    saver = SaveScand("pred", tmp_path / "out", "prob")
    assert saver(item)["prob_path"] == str(tmp_path / "out" / "scan_prob.nii.gz")
    assert saver({**item, "name": "sub-1/anat/FLAIR"})["prob_path"].endswith("out/sub-1/anat/FLAIR_prob.nii.gz")
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.*")) == ["FLAIR_prob.nii.gz", "scan_prob.nii.gz"]


def test_several_maps_have_several_names_by_default_those_of_their_keys(tmp_path, scan):
    item = LoadScand("image")({"image": scan})
    item |= {"seg": (item["image"] > 1000).float(), "prob": item["image"]}
    saved = SaveScand(["seg", "prob"], tmp_path, ["a", "b"])(item)
    assert nib.load(saved["a_path"]).get_fdata().max() == 1
    assert nib.load(saved["b_path"]).get_fdata().max() > 1
    by_key = SaveScand(["seg", "prob"], tmp_path)(item)
    assert by_key["seg_path"] == str(tmp_path / "scan_seg.nii.gz")
    assert by_key["prob_path"] == str(tmp_path / "scan_prob.nii.gz")
    with pytest.raises(ValueError, match="expected another one for each key"):
        SaveScand(["seg", "prob"], tmp_path, "a")


def test_a_map_on_another_grid_than_its_file_is_refused(tmp_path, scan):
    turned = Compose([LoadScand("image"), Orientationd("image", axcodes="RAS", labels=None)])({"image": scan})
    with pytest.raises(
        InputError, match=r"have affines that differ by up to .* expected the map on the grid of the file"
    ):
        SaveScand("image", tmp_path / "out", "seg")(turned)
    item = LoadScand("image")({"image": scan})
    with pytest.raises(InputError, match=r"have shape \(12, 14, 9\) against \(12, 14, 10\)"):
        SaveScand("pred", tmp_path / "out", "seg")({**item, "pred": item["image"][..., :-1]})
    assert not (tmp_path / "out").exists()


def test_values_that_the_type_cannot_hold_are_refused(tmp_path, scan):
    item = LoadScand("image")({"image": scan})
    with pytest.raises(ValueError, match="that uint8 cannot hold"):
        SaveScand("image", tmp_path / "out", "seg", dtype=np.uint8)(item)
    broken = item["image"].clone()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="has NaN or infinite values"):
        SaveScand("pred", tmp_path / "out", "prob")({**item, "pred": broken})
    with pytest.raises(ValueError, match=r"expected a MetaTensor \(1, X, Y, Z\)"):
        SaveScand("pred", tmp_path / "out", "prob")({**item, "pred": item["image"].as_tensor()})


def test_a_map_of_half_the_precision_is_written_too(tmp_path, scan):
    item = LoadScand("image")({"image": scan})
    saved = SaveScand("pred", tmp_path, "prob")({**item, "pred": (item["image"] > 1000).to(torch.bfloat16)})
    np.testing.assert_array_equal(nib.load(saved["prob_path"]).get_fdata(), ramp((12, 14, 10), OBLIQUE) > 1000)


def test_a_folder_that_cannot_be_made_is_named(tmp_path, scan):
    (tmp_path / "file").write_text("in the way")
    item = LoadScand("image")({"image": scan})
    with pytest.raises(InputError, match=r"file/out/scan_seg\.nii\.gz cannot be written \("):
        SaveScand("image", tmp_path / "file" / "out", "seg")(item)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path, scan):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(stat.S_IRUSR | stat.S_IXUSR)
    item = LoadScand("image")({"image": scan})
    with pytest.raises(InputError, match=r"scan_seg\.nii\.gz cannot be written \(Permission denied"):
        SaveScand("image", tmp_path / "out", "seg")(item)


def test_a_full_folder_leaves_no_part_of_a_file_and_the_old_one_in_place(tmp_path):
    noise = np.random.default_rng(0).random((40, 40, 40), np.float32)  # about 0.25 MB also when compressed
    item = LoadScand("image")({"image": save(tmp_path / "x.nii.gz", noise)})
    out = tmp_path / "out"
    out.mkdir()
    (out / "x_prob.nii.gz").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # files end at 50 kB, as on a full disk
    try:
        with pytest.raises(InputError, match=r"x_prob\.nii\.gz cannot be written \(File too large\)"):
            SaveScand("image", out, "prob")(item)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in out.iterdir()] == ["x_prob.nii.gz"]
    assert (out / "x_prob.nii.gz").read_text() == "old"


def test_the_components_agree_with_scipy_on_noise():
    label = torch.as_tensor((np.random.default_rng(1).random((1, 16, 16, 16)) > 0.8).astype(np.uint8))
    components, count = ndimage.label(label[0], np.ones((3, 3, 3)))
    expected = sum((components == i) for i in range(1, count + 1) if (components == i).sum() >= 4)
    np.testing.assert_array_equal(remove_small_components(label, 4, 1.0)[0].numpy(), expected)


# several sequences, several classes


def test_a_missing_sequence_is_a_channel_of_zeros_in_its_place(scan):
    item = LoadScand("image")({"image": [None, scan]})["image"]
    assert not item[0].any()
    torch.testing.assert_close(item[1:].as_tensor(), LoadScand("image")({"image": scan})["image"].as_tensor())
    np.testing.assert_allclose(item.affine, OBLIQUE, atol=1e-5)
    with pytest.raises(InputError, match=r"\[None, None\] stands where the path"):
        LoadScand("image")({"image": [None, None]})


def test_the_brain_is_that_of_the_first_sequence_that_is_there():
    image = np.zeros((2, 4, 4, 4), dtype=np.float32)
    image[1, 1:3] = 5
    image[1, 1, 1, 1] = 6
    mask = BrainMaskd("image")({"image": meta(image)})["brain_mask"]
    np.testing.assert_array_equal(np.asarray(mask)[0], image[1] > 0)


def test_a_sequence_that_the_brain_mask_empties_does_not_pass_for_a_missing_one():
    image = np.zeros((2, 4, 4, 4), dtype=np.float32)
    image[0] = uneven(np.ones((4, 4, 4)))
    image[1, 0] = 5
    mask = np.zeros((1, 4, 4, 4), dtype=np.float32)
    mask[:, 2:] = 1
    with pytest.raises(InputError, match=r"scan.nii.gz: channel 1 is 0 everywhere in the brain"):
        BrainMaskd("image")({"image": meta(image), "brain_mask": meta(mask)})


def test_lines_go_through_the_knots_and_on_beyond_them():
    values = torch.tensor([[0.0, 1.0, 2.0], [3.0, 5.0, 7.0]])
    expected = torch.tensor([[-2.0, 0.0, 2.0], [2.5, 3.5, 4.5]])  # through (1, 0), (2, 2), (4, 3)
    assert torch.equal(piecewise_linear(values, [1, 2, 4], [0, 2, 3]), expected)
    assert torch.equal(piecewise_linear(values, [0, 1], [1, 0]), 1 - values)
    for knots, targets in (([1, 1], [0, 1]), ([1], [1]), ([1, 2], [1, 2, 3])):
        with pytest.raises(ValueError, match="expected as many, two or more, rising"):
            piecewise_linear(values, knots, targets)


def test_the_entropy_is_0_where_one_class_is_certain_and_log_c_where_none_is():
    p = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0] * 4]).T.reshape(4, 4, 1, 1)
    expected = torch.tensor([0, 4, 2, 0]).float()
    torch.testing.assert_close(entropy(p).exp().flatten(), expected.clamp(min=1))
    assert EntropyMapd("pred")({"pred": meta(p)})["entropy"].shape == (1, 4, 1, 1)
