"""Atlases: read, refused, aligned to scans of any contrast, appended as a prior."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.atlas import (
    Atlas,
    TemplateSpaced,
    align_atlas,
    atlas_on_grid,
    icbm_atlas,
    template_grid,
)
from common.errors import InputError
from common.geometry import rotation_matrix
from sae_segmentation.mixture import MatchClassMeansd
from sae_segmentation.prior import AtlasPriord, open_atlas


def save(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


@pytest.fixture
def maps() -> np.ndarray:
    """Background and two halves, (4, 4, 4, 3)."""
    out = np.zeros((4, 4, 4, 3), np.float32)
    out[:2, ..., 1], out[2:, ..., 2] = 0.75, 0.5
    out[..., 0] = 1 - out[..., 1:].sum(-1)
    return out


def test_the_default_has_the_tissues_of_the_template():
    atlas = icbm_atlas()
    assert torch.allclose(atlas.probabilities.sum(0), torch.ones(atlas.probabilities.shape[1:]), atol=1e-5)
    csf, gm, wm = (float(p.sum()) / 1000 for p in atlas.probabilities[1:])  # 1 mm voxels
    assert 150 < csf < 500
    assert 800 < gm < 1300
    assert 500 < wm < 800
    # the genu of the corpus callosum, and a place far off
    points = [np.linalg.inv(atlas.affine) @ [*mm, 1] for mm in ((0, 27, 4), (0, -90, -60))]
    genu, outside = (atlas.probabilities[(slice(None), *np.rint(p[:3]).astype(int))] for p in points)
    assert genu[3] > 0.8
    assert outside[0] > 0.99


def test_one_file_and_a_file_per_class_are_the_same_atlas(tmp_path, maps):
    affine = np.diag([2.0, 2, 2, 1])
    whole = open_atlas(save(tmp_path / "atlas.nii.gz", maps, affine), 3)
    files = tuple(save(tmp_path / f"{c}.nii.gz", maps[..., c], affine) for c in range(3))
    parts = open_atlas(files, 3)
    assert whole.probabilities.equal(parts.probabilities)
    np.testing.assert_array_equal(whole.affine, affine)
    assert whole.probabilities[:, 0, 0, 0].tolist() == pytest.approx([0.25, 0.75, 0])


def test_a_label_map_becomes_probabilities(tmp_path):
    labels = np.zeros((15, 15, 15), np.uint8)
    labels[5:10, 5:10, 5:10] = 2
    labels[7, 7, 7] = 1
    sharp = open_atlas(save(tmp_path / "labels.nii.gz", labels), label_sigma_mm=0)
    assert sharp.probabilities.argmax(0).numpy().tolist() == labels.tolist()
    soft = open_atlas(str(tmp_path / "labels.nii.gz"), label_sigma_mm=2.0)
    assert 0 < float(soft.probabilities[1].max()) < 0.1
    assert torch.allclose(soft.probabilities.sum(0), torch.ones(15, 15, 15), atol=1e-5)


def test_what_is_no_atlas_is_named(tmp_path, maps):
    with pytest.raises(InputError, match=r"none\.nii does not exist, expected a NIfTI file"):
        open_atlas(str(tmp_path / "none.nii"))
    with pytest.raises(InputError, match=r"sum over 3 classes differs from 1 by up to 0\.1, expected at most"):
        open_atlas(save(tmp_path / "sum.nii", maps * 0.9))
    with pytest.raises(InputError, match=r"probabilities down to -0\.5, expected 0 or above"):
        open_atlas(save(tmp_path / "negative.nii", maps - 0.5))
    with pytest.raises(InputError, match=r"nan\.nii has 32 NaN or infinite voxels of 192, expected finite values"):
        open_atlas(save(tmp_path / "nan.nii", np.where(maps > 0.7, np.nan, maps)))
    with pytest.raises(InputError, match="has 3 classes with background, expected 4 as the network"):
        open_atlas(save(tmp_path / "three.nii", maps), 4)
    empty = np.concatenate([maps, np.zeros_like(maps[..., :1])], axis=-1)
    with pytest.raises(InputError, match="class 3 is 0 everywhere"):
        open_atlas(save(tmp_path / "empty.nii", empty))
    files = (save(tmp_path / "a.nii", maps[..., :1]), save(tmp_path / "b.nii", maps[..., 1:], np.diag([1, 1, 2.0, 1])))
    with pytest.raises(InputError, match=r"b\.nii and .*a\.nii have affines that differ by up to 3 mm"):
        open_atlas(files)
    with pytest.raises(InputError, match="expected whole numbers in a label map"):
        open_atlas(save(tmp_path / "half.nii", maps[..., 1]), label_sigma_mm=1.0)
    with pytest.raises(InputError, match="atlas_label_sigma_mm is 5 without atlas_files, expected a label map"):
        open_atlas(label_sigma_mm=5.0)


def scan_of(atlas: Atlas, to_atlas: np.ndarray, means: list[float], spacing: float = 3.0) -> tuple:
    """What a scan would look like whose brain is where ``to_atlas`` says, in some contrast; RAS, with noise."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-95, -130, -80]
    p = atlas_on_grid(atlas, to_atlas, (64, 76, 58), affine)
    image = torch.tensor(means)[p[1:].argmax(0)] + 0.03 * torch.randn(p.shape[1:], generator=torch.manual_seed(0))
    return torch.where(p[0] < 0.5, image, 0), affine


@pytest.mark.parametrize("means", [[0.2, 0.6, 1.0], [1.0, 0.6, 0.4], [0.3, 0.9, 0.7]], ids=["T1", "T2", "FLAIR"])
def test_the_alignment_finds_a_known_affine_in_any_contrast(means):
    truth = np.eye(4)
    truth[:3, :3] = rotation_matrix([0.1, -0.06, 0.08]) @ np.diag([1.15, 1.05, 1.1])
    truth[:3, 3] = [6.0, -9.0, 12.0]
    image, affine = scan_of(icbm_atlas(), truth, means)
    found, misfit = align_atlas(icbm_atlas(), image, affine)
    corners = np.array([[x, y, z, 1] for x in (-60, 60) for y in (-90, 60) for z in (-40, 60)]).T
    assert np.abs((found - truth) @ corners).max() < 3.0
    assert misfit < 0.24


def test_the_prior_follows_the_channels_of_the_scan():
    image, affine = scan_of(icbm_atlas(), np.eye(4), [0.2, 0.6, 1.0])
    scan = MetaTensor(image[None], affine=torch.from_numpy(affine))
    out = AtlasPriord("image", classes=4, floor=0.05)({"image": scan})["image"]
    assert out.shape == (5, *image.shape)
    assert out[0].as_tensor().equal(image)
    prior, brain = out[1:].as_tensor(), image != 0
    assert torch.allclose(prior.sum(0), torch.ones(image.shape), atol=1e-5)
    assert (prior[0][~brain] > 0.99).float().mean() > 0.999  # but for what the brain encloses
    assert prior[0][brain].max() == 0
    assert prior[1:, brain].min() > 0.01
    agree = (prior[1:].argmax(0) == torch.bucketize(image, torch.tensor([0.4, 0.8])))[brain]
    assert agree.float().mean() > 0.9
    np.testing.assert_allclose(out.affine, affine)


def test_all_classes_but_background_have_their_part_of_the_floor_everywhere_in_the_brain(tmp_path):
    probabilities = np.zeros((10, 10, 10, 4), np.float32)
    probabilities[..., 0] = 1
    probabilities[2:8, 2:8, 2:8] = [0, 1, 0, 0]
    probabilities[5:8, 2:8, 2:8] = [0, 0, 0.5, 0.5]
    nib.save(nib.Nifti1Image(probabilities, np.eye(4)), tmp_path / "atlas.nii.gz")
    scan = MetaTensor(torch.from_numpy(1 - probabilities[None, ..., 0]), affine=torch.eye(4))
    prior = AtlasPriord("image", files=str(tmp_path / "atlas.nii.gz"), floor=0.3, align=False)({"image": scan})["image"]
    # 0.7 of the atlas and 0.3 in three parts
    torch.testing.assert_close(prior[1:, 3, 4, 4].as_tensor(), torch.tensor([0, 0.8, 0.1, 0.1]))
    torch.testing.assert_close(prior[1:, 6, 4, 4].as_tensor(), torch.tensor([0, 0.1, 0.45, 0.45]))
    torch.testing.assert_close(prior[1:, 0, 4, 4].as_tensor(), torch.tensor([1.0, 0, 0, 0]))


@pytest.mark.parametrize("means", [[0.1, 0.5, 1.0], [0.3, 0.5, 0.6]])
def test_every_scan_gets_the_same_class_means(means):
    image, affine = scan_of(icbm_atlas(), np.eye(4), means)
    scan = MetaTensor(torch.stack([image, image]), affine=torch.from_numpy(affine))
    with_prior = AtlasPriord("image")({"image": scan})["image"]
    match = MatchClassMeansd("image", ["T1w", "other"], {"T1w": [0.3, 0.6, 0.9]})
    out = match({"image": with_prior})["image"].as_tensor()
    assert torch.equal(out[1:], with_prior.as_tensor()[1:])  # no reference for the other sequence
    assert torch.equal(out[0] != 0, image != 0)
    labels = atlas_on_grid(icbm_atlas(), np.eye(4), image.shape, affine)[1:].argmax(0)[image != 0]
    found = [out[0][image != 0][labels == k].mean().item() for k in range(3)]
    # noise of 0.03 is up to 0.09 after the map, and the mixture mistakes a few voxels of the margins
    assert found == pytest.approx([0.3, 0.6, 0.9], abs=0.02)
    high, low = (torch.quantile(image[image != 0], q) for q in (0.7, 0.3))  # monotone
    assert out[0][image > high].min() > out[0][(image < low) & (image != 0)].max()


def test_a_scan_of_another_contrast_than_the_reference_keeps_its_gray_values_and_is_warned_of(caplog):
    for means, found in (([1.0, 0.6, 0.3], "1, 0.6, 0.3"), ([0.2, 0.8, 0.6], "0.2, 0.8, 0.6")):
        caplog.clear()
        image, affine = scan_of(icbm_atlas(), np.eye(4), means)
        scan = AtlasPriord("image")({"image": MetaTensor(image[None], affine=torch.from_numpy(affine))})
        matched = MatchClassMeansd("image", ["T1w"], {"T1w": [0.3, 0.6, 0.9]})(scan)
        assert torch.equal(matched["image"].as_tensor(), scan["image"].as_tensor())
        (message,) = [text for text in caplog.messages if "mean intensities" in text]
        seen = re.search("mean intensities (.*) in its", message)[1].split(", ")
        assert [float(m) for m in seen] == pytest.approx([float(m) for m in found.split(", ")], abs=0.05)
    with pytest.raises(InputError, match=r"class_means of T1w are \[0\.9, 0\.6, 0\.3\], expected means that rise"):
        MatchClassMeansd("image", ["T1w"], {"T1w": [0.9, 0.6, 0.3]})


def test_a_header_that_says_another_orientation_is_suspected(caplog):
    image, affine = scan_of(icbm_atlas(), np.eye(4), [0.2, 0.6, 1.0])
    for scan in (image, image.flip(2)):
        AtlasPriord("image")({"image": MetaTensor(scan[None], affine=torch.from_numpy(affine))})
    assert len(caplog.messages) == 1
    assert "is the orientation in its header right?" in caplog.messages[0]


def test_a_scan_that_the_atlas_does_not_fit_is_refused():
    image, affine = scan_of(icbm_atlas(), np.eye(4), [0.2, 0.6, 1.0])
    away = affine.copy()
    away[:3, 3] += 120
    moved = MetaTensor(image[None], affine=torch.from_numpy(away))
    with pytest.raises(InputError, match=r"its brain and the atlas have a Dice of 0\.\d\d, expected 0\.7 or more"):
        AtlasPriord("image", align=False)({"image": moved})
    AtlasPriord("image")({"image": moved})  # alignment brings it back
    with pytest.raises(InputError, match="is 0 everywhere, expected a brain"):
        AtlasPriord("image")({"image": MetaTensor(torch.zeros(1, 8, 8, 8))})


def template_scan(image: torch.Tensor, affine: np.ndarray, **others: torch.Tensor) -> dict[str, MetaTensor]:
    return {
        key: MetaTensor(array[None], affine=torch.from_numpy(affine))
        for key, array in {"image": image, **others}.items()
    }


def test_a_scan_and_its_labels_go_to_the_template_and_probabilities_come_back():
    truth = np.eye(4)
    truth[:3, :3] = rotation_matrix([0.1, -0.06, 0.08]) @ np.diag([1.15, 1.05, 1.1])
    truth[:3, 3] = [6.0, -9.0, 12.0]
    image, affine = scan_of(icbm_atlas(), truth, [0.2, 0.6, 1.0])
    labels = atlas_on_grid(icbm_atlas(), truth, image.shape, affine).argmax(0).float()
    to_template = TemplateSpaced(["image", "label"], (4, 4, 4), (40, 48, 40), ["bilinear", "nearest"])
    there = to_template(template_scan(image, affine, label=labels))
    # in the template's space the labels are those of the template, but for the few voxels that the alignment is off
    grid = template_grid((4, 4, 4), (40, 48, 40))
    expected = atlas_on_grid(icbm_atlas(), np.eye(4), (40, 48, 40), grid).argmax(0)
    assert there["label"].shape == (1, 40, 48, 40)
    np.testing.assert_allclose(there["label"].affine, grid, atol=1e-6)
    assert (there["label"][0] == expected).float().mean() > 0.9
    corners = np.array([[x, y, z, 1] for x in (-60, 60) for y in (-90, 60) for z in (-40, 60)]).T
    assert np.abs((there["image"].meta["to_template"].numpy() - truth) @ corners).max() < 3.0
    # and back on the grid of the scan
    back = to_template.inverse(there)
    for key, original in (("image", image), ("label", labels)):
        assert back[key].shape == (1, *original.shape)
        np.testing.assert_allclose(back[key].affine, affine, atol=1e-6)
    smooth, again = (
        torch.nn.functional.avg_pool3d(x[None, None], 3)[0, 0] for x in (image, back["image"][0].as_tensor())
    )
    assert torch.corrcoef(torch.stack([smooth.flatten(), again.flatten()]))[0, 1] > 0.95


def test_the_grid_of_the_template_has_its_brain_in_the_middle():
    grid = template_grid((2, 2, 2), (80, 96, 80))
    brain = (atlas_on_grid(icbm_atlas(), np.eye(4), (80, 96, 80), grid)[0] < 0.5).nonzero()
    margins = brain.amin(0), torch.tensor([79, 95, 79]) - brain.amax(0)
    assert (margins[0] - margins[1]).abs().max() <= 1
    assert min(margins[0].min(), margins[1].min()) >= 0


def test_a_scan_that_misses_the_template_or_has_no_brain_is_refused():
    image, affine = scan_of(icbm_atlas(), np.eye(4), [0.2, 0.6, 1.0])
    far = affine.copy()
    far[:3, 3] += 500
    with pytest.raises(InputError, match="its brain lies outside of the template's space"):
        TemplateSpaced("image", align=False)(template_scan(image, far))
    with pytest.raises(InputError, match="is 0 everywhere, expected a brain"):
        TemplateSpaced("image")(template_scan(0 * image, affine))
    with pytest.raises(InputError, match="is 1 everywhere in the brain, expected different intensities"):
        TemplateSpaced("image")(template_scan((image > 0).float(), affine))
