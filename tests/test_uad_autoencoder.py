"""The anomaly bundle: its parts by hand, and the whole way from healthy scans to a lesion mask."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import nodes, parsed, read_json
from monai.data import MetaTensor
from monai.data.utils import set_rnd
from monai.inferers import SimpleInferer, SliceInferer
from monai.losses import DiceCELoss
from torch.nn.functional import binary_cross_entropy_with_logits

from common.data import list_cases, write_datalist
from common.errors import InputError, find_input_error
from phantom.cohort import make_cohort
from running.workflow import Entry, open_configs, run_configs
from uad_autoencoder.brightness import BrightnessInferer, GradedLabeld, white_matter_level
from uad_autoencoder.loss import GradientDifferenceSchedule, ReconstructionLoss, SegmentationLoss, gradient_difference
from uad_autoencoder.network import SpatialAutoencoder
from uad_autoencoder.patches import PatchCentersd, RandZoomedPatchesd, lesion_centers
from uad_autoencoder.pseudo_label import SoftLabeld, training_cases, write_pseudo_datalist
from uad_autoencoder.residual import KeepBrightd, ResidualMapd, keep_bright, residual_map
from uad_autoencoder.scales import ZoomedInferer
from uad_autoencoder.slices import NeighboringSlicesd

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "uad_autoencoder"


# --- residual ---------------------------------------------------------------------------------------------------------


def test_the_residual_is_0_for_a_perfect_reconstruction_and_outside_the_brain():
    image = torch.tensor([0.0, 0.5, 0.5, 0.5]).reshape(1, 4, 1, 1)
    reconstruction = torch.tensor([0.3, 0.5, 0.2, 0.9]).reshape(1, 4, 1, 1)
    assert not residual_map(image, image).any()
    torch.testing.assert_close(residual_map(image, reconstruction).flatten(), torch.tensor([0, 0, 0.3, 0.4]))
    bright = residual_map(image, reconstruction, bright_only=True)
    torch.testing.assert_close(bright.flatten(), torch.tensor([0, 0, 0.3, 0]))


def test_the_residual_keeps_the_affine_and_the_history_that_invertd_needs():
    image = MetaTensor(torch.rand(1, 4, 4, 4), affine=np.diag([-1.0, 2.0, 3.0, 1.0]), applied_operations=[{"a": 1}])
    residual = ResidualMapd("pred")({"image": image, "pred": image * 0.5})["pred"]
    np.testing.assert_array_equal(residual.affine, image.affine)
    assert residual.applied_operations == image.applied_operations


def test_the_residual_of_several_channels_is_the_largest():
    image, reconstruction = torch.ones(2, 1, 1, 1), torch.tensor([0.9, 0.4]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(residual_map(image, reconstruction), torch.full((1, 1, 1, 1), 0.6))


def test_a_residual_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        residual_map(torch.ones(1, 4, 4, 4), torch.ones(1, 4, 4, 1))


def test_only_the_brightest_of_the_brain_keep_their_residual():
    image = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]).reshape(1, 6, 1, 1)  # the 0 is background
    values = torch.ones(1, 6, 1, 1)
    # the 0.6-quantile of five brain voxels: three lie below 0.4
    assert keep_bright(values, image, 0.6).flatten().tolist() == [0, 0, 0, 0, 1, 1]
    assert keep_bright(values, image, 0.0).flatten().tolist() == [0, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="quantile is 1"):
        keep_bright(values, image, 1)
    item = KeepBrightd("pred", quantile=0.6)({"image": image, "pred": MetaTensor(values)})
    assert isinstance(item["pred"], MetaTensor)
    assert item["pred"].sum() == 2


def test_a_slice_gets_its_neighbors_as_channels():
    volume = MetaTensor(torch.arange(1.0, 5).expand(1, 2, 3, 4).clone(), affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    out = NeighboringSlicesd("image", slices=3)({"image": volume})["image"]
    assert out.shape == (3, 2, 3, 4)
    assert out[:, 0, 0].tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 0]]
    np.testing.assert_array_equal(out.affine, volume.affine)
    assert NeighboringSlicesd("image", slices=1)({"image": volume})["image"].equal(volume)
    with pytest.raises(ValueError, match="slices is 4, expected an odd number"):
        NeighboringSlicesd("image", slices=4)
    with pytest.raises(ValueError, match="image has 3 channels, expected 1"):
        NeighboringSlicesd("image", slices=3)({"image": out})


# --- network ---------------------------------------------------------------------------------------------------------


def test_the_papers_widths_give_the_papers_code_and_size():
    network = SpatialAutoencoder()
    assert network.encoder(torch.zeros(1, 1, 256, 256)).shape == (1, 64, 16, 16)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(9.20e6, rel=0.001)


def test_a_reconstruction_has_the_shape_of_its_image_and_stays_within_one():
    network = SpatialAutoencoder(channels=(4, 8, 8), latent_channels=4)
    image = torch.rand(2, 1, 24, 40)
    reconstruction = network(image)
    assert reconstruction.shape == image.shape
    assert reconstruction.abs().max() <= 1


def test_the_code_has_no_view_of_far_pixels_so_place_is_kept():
    network = SpatialAutoencoder(channels=(4, 8), latent_channels=4).eval()
    image = torch.rand(1, 1, 64, 64)
    changed = image.clone()
    changed[..., :4, :4] += 1
    far = (network(image) - network(changed)).abs()[..., 40:, 40:]
    assert far.max() == 0


def test_one_level_is_refused():
    with pytest.raises(ValueError, match=r"channels is \(8,\); expected the widths of two levels"):
        SpatialAutoencoder(channels=(8,))


# --- loss ------------------------------------------------------------------------------------------------------------


def test_the_gradient_difference_of_a_step_and_a_flat_image():
    image = torch.tensor([[[[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]]])
    flat = torch.zeros_like(image)
    # rows do not differ; along the last axis two of four neighbors differ by 1
    assert gradient_difference(image, flat).item() == pytest.approx(0.5)
    # a gradient of the other sign is as good: magnitudes are compared
    assert gradient_difference(image, 1 - image).item() == 0


def test_the_loss_is_the_sum_of_its_three_terms():
    image = torch.tensor([[[[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]]])
    flat = torch.zeros_like(image)
    # four of six pixels are off by 1: l1 = l2 = 2/3; gradient difference 1/2
    assert ReconstructionLoss()(flat, image).item() == pytest.approx(4 / 3)
    assert ReconstructionLoss(gdl_weight=10)(flat, image).item() == pytest.approx(4 / 3 + 5)
    assert ReconstructionLoss(gdl_weight=10)(image, image).item() == 0


def test_a_reconstruction_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        ReconstructionLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))


def test_the_weight_of_the_gradient_difference_follows_the_epoch():
    from ignite.engine import Engine

    loss, seen = ReconstructionLoss(), []
    engine = Engine(lambda engine, batch: seen.append(loss.gdl_weight))
    GradientDifferenceSchedule(loss, first_epoch=3, weight=7.0).attach(engine)
    engine.run([0], max_epochs=4)
    assert seen == [0, 0, 7.0, 7.0]


def target(label: torch.Tensor, weight: list[float], soft: list[bool]) -> dict[str, torch.Tensor]:
    return {"label": label, "weight": torch.tensor(weight, dtype=torch.float64), "soft": torch.tensor(soft)}


def test_with_all_weights_one_and_no_soft_label_the_loss_is_monais():
    logits, label = torch.randn(4, 1, 9, 7), (torch.rand(4, 1, 9, 7) > 0.7).float()
    ours = SegmentationLoss()(logits, target(label, [1, 1, 1, 1], [False] * 4))
    assert ours.item() == DiceCELoss(sigmoid=True)(logits, label).item()


def test_a_patch_counts_by_its_weight_and_a_soft_one_by_cross_entropy_alone():
    logits, label = torch.randn(3, 1, 9, 7), (torch.rand(3, 1, 9, 7) > 0.7).float()
    label[2] = 0.4
    drawn, pseudo = (DiceCELoss(sigmoid=True)(logits[i : i + 1], label[i : i + 1]) for i in (0, 1))
    soft = binary_cross_entropy_with_logits(logits[2], label[2])
    loss = SegmentationLoss()(logits, target(label, [1, 0.25, 0.5], [False, False, True]))
    assert loss.item() == pytest.approx((drawn + 0.25 * pseudo + 0.5 * soft).item() / 3)


def test_logits_of_another_shape_than_the_label_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        SegmentationLoss()(torch.zeros(1, 1, 4, 4), target(torch.zeros(1, 1, 4, 5), [1], [False]))


# --- patches ---------------------------------------------------------------------------------------------------------


def test_every_component_of_every_slice_has_one_center():
    mask = np.zeros((9, 9, 3), dtype=np.uint8)
    mask[1:4, 2:5, 0] = 1  # center (2, 3), slice 0
    mask[1:4, 2:5, 1] = 1  # the same lesion in the next slice counts again
    mask[7, 7, 1] = 1  # a single voxel counts as much
    centers = np.stack(np.unravel_index(lesion_centers(mask), mask.shape)).T
    assert sorted(map(tuple, centers.tolist())) == [(2, 3, 0), (2, 3, 1), (7, 7, 1)]
    assert lesion_centers(np.zeros((4, 4, 4))).size == 0


def test_background_centers_lie_in_the_brain_outside_lesions():
    image, label = torch.zeros(1, 6, 6, 4), torch.zeros(1, 6, 6, 4)
    image[:, 1:5, 1:5] = 0.5
    label[:, 2, 2, 1] = 1
    item = PatchCentersd("label", background=10)({"image": image, "label": label})
    brain = np.zeros((6, 6, 4), dtype=bool)
    brain[1:5, 1:5] = True
    brain[2, 2, 1] = False
    assert len(item["label_bg_indices"]) == 10
    assert brain.ravel()[item["label_bg_indices"]].all()
    assert np.unravel_index(item["label_fg_indices"], (6, 6, 4)) == (2, 2, 1)


def zoomed(zoom, **changes):
    options = {"patch_size": (4, 4, 3), "lesion_patches": 1, "brain_patches": 0, "num_samples": 1}
    return RandZoomedPatchesd(["image", "label"], "label", **(options | changes), zoom=(zoom, zoom))


def test_patches_are_seen_as_if_voxels_had_another_size():
    # the value says where it is: 100 x + 10 y + z
    x, y, z = (axis.float() for axis in torch.meshgrid(*[torch.arange(12)] * 3, indexing="ij"))
    image, label = (100 * x + 10 * y + z)[None], torch.zeros(1, 12, 12, 12)
    label[:, 6, 5, 4] = 1
    item = PatchCentersd("label")({"image": image, "label": label, "weight": 1.0})
    (plain,) = zoomed(1.0)(dict(item))
    assert set(plain) == {"image", "label", "weight"}
    torch.testing.assert_close(plain["image"], image[:, 4:8, 3:7, 3:6])
    torch.testing.assert_close(plain["label"], label[:, 4:8, 3:7, 3:6])
    (near,) = zoomed(2.0)(dict(item))  # half a voxel from pixel to pixel and from slice to slice
    torch.testing.assert_close(near["image"][0, 2, 2], torch.tensor([653.5, 654.0, 654.5]))
    torch.testing.assert_close(near["image"][0, :, 2, 1], torch.tensor([554.0, 604.0, 654.0, 704.0]))
    (far,) = zoomed(0.5)(dict(item))
    torch.testing.assert_close(far["image"][0, 2, :, 1], torch.tensor([614.0, 634.0, 654.0, 674.0]))
    (outside,) = zoomed(0.25)(dict(item))  # 8 voxels to the left of 6 is nothing
    assert not outside["image"][0, 0].any()


def test_patches_are_as_often_twice_as_large_as_half_as_large():
    ramp, label = torch.arange(12.0).reshape(1, 12, 1, 1).expand(1, 12, 12, 12), torch.zeros(1, 12, 12, 12)
    label[:, 6, 6, 6] = 1
    item = PatchCentersd("label")({"image": ramp, "label": label})
    cut = RandZoomedPatchesd(["image", "label"], "label", (2, 1, 1), 1, 0, num_samples=400, zoom=(0.5, 2.0))
    patches = cut.set_random_state(0)(item)
    zooms = np.array([1 / patch["image"].diff(dim=1).item() for patch in patches])
    assert 0.5 <= zooms.min() < 0.52
    assert 1.9 < zooms.max() <= 2
    assert np.mean(zooms < 1) == pytest.approx(0.5, abs=0.08)


def test_patches_lie_around_lesions_as_often_as_they_are_to():
    image, label = torch.ones(1, 8, 8, 8), torch.zeros(1, 8, 8, 8)
    label[:, 4, 4, 4] = 1
    item = PatchCentersd("label")({"image": image, "label": label})
    options = {"patch_size": (1, 1, 1), "num_samples": 400}
    cut = zoomed(1.0, lesion_patches=1, brain_patches=3, **options).set_random_state(0)
    assert np.mean([patch["label"].item() for patch in cut(dict(item))]) == pytest.approx(0.25, abs=0.07)
    healthy = PatchCentersd("label")({"image": image, "label": 0 * label})
    assert not any(patch["label"].item() for patch in cut(dict(healthy)))


def test_the_training_takes_a_quarter_of_its_patches_from_anywhere_in_the_brain_as_its_card_says():
    config = parsed([BUNDLE / "configs" / "train.json"])
    (place,) = [name for name, node in nodes(config.get()) if str(node).endswith("RandZoomedPatchesd")]
    assert config.get_parsed_content(place.removesuffix("::_target_")).lesion_share == 0.75


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lesion_patches": 0}, "expected one above 0"),
        ({"lesion_patches": 2, "brain_patches": -1}, "expected one above 0"),
    ],
)
def test_patches_that_cannot_be_cut_are_refused(change, match):
    with pytest.raises(InputError, match=match):
        zoomed(1.0, **change)
    with pytest.raises(InputError, match="the lower one first"):
        zoomed(-1.0)


def test_graded_labels_say_how_bright_a_lesion_is():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(1.0, 0.05, (1, 20, 20, 20)).astype(np.float32))
    label = torch.zeros(1, 20, 20, 20)
    label[:, :3, 0, 0] = 1
    image[0, :3, 0, 0] = torch.tensor([1.2, 1.4, 1.6])
    white = white_matter_level(image.numpy())
    assert white == pytest.approx(1.0, abs=0.02)
    graded = GradedLabeld("label")({"image": image, "label": label})["label"]
    expected = [0.5 + 0.5 * (1.2 - white) / (1.4 - white), 1.0, 1.0]  # the median of the three is 1.4
    torch.testing.assert_close(graded[0, :3, 0, 0], torch.tensor(expected))
    assert graded.sum() == pytest.approx(sum(expected))
    none = GradedLabeld("label")({"image": image, "label": 0 * label})["label"]
    assert not none.any()
    with pytest.raises(ValueError, match="no voxel above 0"):
        white_matter_level(np.zeros((2, 2, 2)))


# --- layers of inference --------------------------------------------------------------------------------------------


def test_a_scan_is_seen_at_two_sizes_with_the_neighbors_of_each_size():
    seen = []

    def network(slices):  # (N, 3, X, Y): the slice below
        seen.append(tuple(slices.shape[2:]))
        return slices[:, :1] - slices[:, 1:2]

    ramp = torch.arange(20.0).expand(1, 1, 32, 48, 20)  # along z
    padded = torch.nn.functional.pad(ramp, (1, 1))
    stacked = torch.cat([padded[..., c : c + 20] for c in range(3)], 1)
    inferer = SliceInferer(spatial_dim=2, roi_size=[-1, -1], sw_batch_size=4)
    plain = ZoomedInferer(inferer)(stacked, network)
    assert set(plain[..., 1:].ravel().tolist()) == {-1.0}
    seen.clear()
    half = ZoomedInferer(inferer, zooms=[0.5])(stacked, network)
    assert set(seen) == {(16, 32)}  # 24 padded to 32
    assert half.shape == plain.shape
    torch.testing.assert_close(half[..., 4:-4], torch.full((1, 1, 32, 48, 12), -2.0))  # a neighbor is 2 voxels away
    both = ZoomedInferer(inferer, zooms=[1.0, 0.5])(stacked, network)
    torch.testing.assert_close(both, (plain + half) / 2)
    across = torch.arange(32.0)[:, None, None].expand(1, 3, 32, 48, 20)  # what lies where stays there at another size
    same = ZoomedInferer(inferer, zooms=[0.5])(across, lambda slices: slices[:, 1:2])
    torch.testing.assert_close(same[:, :, 4:-4], across[:, :1, 4:-4])
    with pytest.raises(InputError, match="expected one or more numbers above 0"):
        ZoomedInferer(inferer, zooms=[1.0, 0.0])


def test_the_second_size_of_a_scan_has_voxels_of_1_4_mm_as_the_card_says():
    config = read_json(BUNDLE / "configs" / "inference.json")
    assert [round(mm / zoom, 1) for zoom in config["zooms"] for mm in config["spacing"]] == [1.0] * 3 + [1.4] * 3


def test_brightness_puts_a_halo_below_the_lesion_that_the_network_is_as_sure_of():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(0.5, 0.01, (3, 12, 12, 12)).astype(np.float32))
    image[1, 0, 0, :4] = torch.tensor([0.5, 0.6, 0.7, 0.9])
    logits = torch.full((1, 12, 12, 12), -20.0)
    logits[0, 0, 0, :4] = torch.tensor([-20.0, 20.0, 20.0, 20.0])

    def seen(logits, **options):
        return BrightnessInferer(SimpleInferer(), **options)(image[None], lambda _: logits[None])[0, 0, 0, 0, :4]

    white = white_matter_level(image[1].numpy())
    b = (np.array([0.5, 0.6, 0.7, 0.9]) - white) / (0.7 - white)  # 0.7 is the median of what the network is sure of
    expected = 8 * np.tanh(np.array([-2.5, 2.5, 2.5, 2.5])) + 4 * (np.minimum(b, 1) - 0.65)
    torch.testing.assert_close(seen(logits), torch.tensor(expected).float(), atol=1e-3, rtol=0)
    assert seen(logits, weight=0.0).equal(logits[0, 0, 0, :4])
    usual = seen(torch.full_like(logits, -20.0))[1]
    assert usual.item() == pytest.approx(8 * np.tanh(-2.5) + 4 * ((0.6 / white - 1) / 0.4 - 0.65), abs=1e-3)


# --- pseudo-labels ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Healthy scans and patients at 4 mm, and where each is used."""
    folder = tmp_path_factory.mktemp("cohort")
    options = {"spacing": 4.0, "sequences": ("FLAIR",), "num_workers": 1, "fine_mm": 2.0}
    make_cohort(folder / "healthy", {"healthy": (2, 1, 0)}, prefix="h", seed=1, **options)
    patients = make_cohort(folder / "patients", {"ms": (3, 1, 1)}, prefix="p", seed=2, **options)
    train = list_cases(datalist_file=patients, section="training")
    val, test = (list_cases(datalist_file=patients, section=s) for s in ("validation", "test"))
    write_datalist(folder / "labeled.json", {"training": train[:1], "validation": val, "test": test})
    write_datalist(folder / "unlabeled.json", {"training": train[1:]})
    return folder


@pytest.fixture(scope="module")
def pseudo(cohort, tmp_path_factory):
    """Datalist of the unlabeled scans with pseudo-labels, each of one block, and scores that fall off around it."""
    folder = tmp_path_factory.mktemp("pseudo")
    unlabeled = list_cases(datalist_file=cohort / "unlabeled.json")
    for case in unlabeled:
        scan = nib.load(case["image"])
        score = np.zeros(scan.shape, np.float32)
        score[14:30, 14:30, 14:30] = 0.06
        score[18:26, 18:26, 18:26] = 0.2
        save = {"seg": (score >= 0.1).astype(np.uint8), "prob": score}
        for postfix, array in save.items():
            nib.save(nib.Nifti1Image(array, scan.affine), folder / f"{case['name']}_{postfix}.nii.gz")
    return write_pseudo_datalist(unlabeled, folder, "by hand")


def test_pseudo_labeled_and_labeled_scans_are_one_pool(cohort, pseudo):
    labeled = list_cases(datalist_file=cohort / "labeled.json", section="training")
    unlabeled = list_cases(datalist_file=cohort / "unlabeled.json")
    pool = training_cases(labeled, pseudo, volumes_per_epoch=6)
    assert len(pool) == 6
    assert [Path(c["label"]).parent.name for c in pool[:3]] == ["anat", pseudo.parent.name, pseudo.parent.name]
    assert {(c["weight"], c["soft"]) for c in pool} == {(1.0, False)}
    only = training_cases(labeled, pseudo, use_labels=False)
    assert {c["subject"] for c in only} == {c["subject"] for c in unlabeled}
    assert all("lesion" not in c for c in only)  # drawn labels are not carried over
    weighted = training_cases(labeled, pseudo, pseudo_weight=0.5, soft_range=[0.05, 0.15])
    assert [(c["weight"], c["soft"]) for c in weighted] == [(1.0, False), (0.5, True), (0.5, True)]


def test_one_list_of_healthy_people_and_unlabeled_patients_serves_all_stages(cohort, pseudo, tmp_path):
    sections = {}
    for section in ("training", "validation"):
        healthy = list_cases(datalist_file=cohort / "healthy" / "datalist.json", section=section)
        patients = list_cases(datalist_file=cohort / "patients" / "datalist.json", section=section)
        if section == "training":
            healthy, patients = ([{k: v for k, v in c.items() if k != "label"} for c in p] for p in (healthy, patients))
        sections[section] = healthy + patients
    everybody = write_datalist(tmp_path / "everybody.json", sections)

    def cases(configs: list[str], part: str, **options: object) -> list[str]:
        parser = open_configs(BUNDLE, configs, datalist_file=everybody, **options).parser
        return [case.get("pathology", "pseudo") for case in parser.get_parsed_content(part)]

    assert cases(["train_autoencoder"], "train#data") == ["healthy"] * 2
    assert cases(["train_autoencoder"], "validate#data") == ["healthy"]
    teacher = ["inference", "inference_residual", "pseudo_label"]
    assert cases(teacher, "datalist", section="training") == ["ms"] * 3
    only = {"pseudo_datalist_file": pseudo, "use_labels": False}
    assert cases(["train"], "train#data", **only) == ["pseudo"] * 2
    with pytest.raises(RuntimeError) as error:
        cases(["train"], "train#data", pseudo_datalist_file=pseudo)
    assert "has no label, expected one" in str(find_input_error(error.value))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labeled": "unlabeled"}, "has a drawn and a pseudo-label"),
        ({"volumes_per_epoch": 2}, "volumes_per_epoch is 2 with 3 scans"),
        ({"pseudo_datalist_file": None, "use_labels": False}, "expected labels to train on"),
        ({"pseudo_weight": 0}, "pseudo_weight is 0, expected a number above 0"),
        ({"soft_range": [0.2, 0.1]}, "soft_range is .0.2, 0.1., expected two numbers, the lower one first"),
        ({"pseudo_datalist_file": None, "pseudo_weight": 0.5}, "without pseudo_datalist_file"),
    ],
)
def test_training_sets_that_make_no_sense_are_refused(cohort, pseudo, options, match):
    options = {"labeled": "labeled", "pseudo_datalist_file": pseudo, **options}
    labeled = list_cases(datalist_file=cohort / f"{options.pop('labeled')}.json", section="training")
    with pytest.raises(InputError, match=match):
        training_cases(labeled, **options)


def test_soft_labels_need_the_scores_that_they_are_made_of(cohort, pseudo, tmp_path):
    items = [{k: v for k, v in case.items() if k != "predicted_map"} for case in list_cases(datalist_file=pseudo)]
    masks_only = write_datalist(tmp_path / "masks.json", {"training": items})
    assert len(training_cases([], masks_only)) == 2
    with pytest.raises(InputError, match="has no predicted_map"):
        training_cases([], masks_only, soft_range=[0.05, 0.15])


def test_a_soft_label_rises_from_zero_to_one_over_its_range():
    score = torch.tensor([[[0.0, 0.05, 0.075, 0.1, 0.15, 0.3]]])
    item = {"label": torch.ones_like(score), "predicted_map": score, "soft": True}
    soften = SoftLabeld("label", soft_range=(0.05, 0.15))
    assert soften(item)["label"].flatten().tolist() == pytest.approx([0, 0, 0.25, 0.5, 1, 1])
    assert soften({**item, "soft": False})["label"].min() == 1


def test_a_missing_pseudo_label_is_named(cohort, tmp_path):
    unlabeled = list_cases(datalist_file=cohort / "unlabeled.json")
    with pytest.raises(InputError, match=f"{unlabeled[0]['name']}_seg.nii.gz: no such file"):
        write_pseudo_datalist(unlabeled, tmp_path, "by hand")
    assert not list(tmp_path.iterdir())


# --- the whole way ---------------------------------------------------------------------------------------------------

SPACING = {"spacing": [4.0, 4.0, 4.0], "device": torch.device("cpu")}
AUTOENCODER = {"network_def#channels": [4, 8], "network_def#latent_channels": 4}
UNET = {"network_def#features": [4, 4, 8, 8, 8, 4]}


def run(configs: list[str], **overrides) -> None:
    run_configs(BUNDLE, configs, **SPACING, **overrides)


def load(path: Path) -> list[dict]:
    return [{"_target_": "common.engines.LoadWeights", "path": str(path), "network": "@network"}]


def training_batches(cohort: Path, pseudo: Path, **options) -> list[dict]:
    options |= {"datalist_file": cohort / "labeled.json", "pseudo_datalist_file": pseudo}
    workflow = open_configs(BUNDLE, "train", patch_size=[32, 32], batch_size=1, **SPACING, **options)
    return list(workflow.parser.get_parsed_content("train#dataloader"))


def test_weights_and_soft_labels_reach_the_patches(cohort, pseudo):
    batches = training_batches(cohort, pseudo, pseudo_weight=0.5, soft_range=[0.05, 0.15])
    assert sorted(batch["weight"].tolist() for batch in batches) == [[0.5] * 4] * 2 + [[1.0] * 4]
    for batch in batches:
        found = set(batch["label"].unique().tolist())
        if not batch["soft"].any():
            assert found == {0.0, 1.0}
        else:  # the score of 0.06 lies a tenth above the lower end
            assert sorted(found) == pytest.approx([0, 0.1, 1], abs=1e-3)
    for batch in training_batches(cohort, pseudo):
        assert set(batch["label"].unique().tolist()) <= {0.0, 1.0}
        assert batch["weight"].tolist() == [1.0] * 4


def test_an_epoch_is_a_function_of_its_seed_and_leaves_the_cached_volumes_alone(cohort, pseudo):
    options = {"datalist_file": cohort / "labeled.json", "pseudo_datalist_file": pseudo, "patch_size": [32, 32]}
    dataset = open_configs(BUNDLE, "train", **SPACING, **options).parser.get_parsed_content("train#dataset")
    cached = [item["image"].clone() for item in dataset._cache]

    def patches(seed: int) -> torch.Tensor:
        set_rnd(dataset, seed)  # as EpochSeed does
        return torch.stack([patch["image"] for patch in dataset[0]])

    assert type(patches(1)) is torch.Tensor
    assert patches(1).equal(patches(1))
    assert not patches(1).equal(patches(2))
    assert all(before.equal(item["image"]) for before, item in zip(cached, dataset._cache, strict=True))


@pytest.mark.slow
def test_healthy_scans_become_a_teacher_a_student_and_a_report(cohort, tmp_path):
    run(
        ["train_autoencoder.json"],
        datalist_file=str(cohort / "healthy" / "datalist.json"),
        output_dir=str(tmp_path / "autoencoder"),
        ckpt_dir=str(tmp_path / "models"),
        slice_size=[48, 48],
        max_epochs=2,
        val_interval=1,
        **AUTOENCODER,
    )
    teacher = {"handlers": Entry(load(tmp_path / "models" / "autoencoder.pt")), **AUTOENCODER}
    run(
        ["inference.json", "inference_residual.json", "pseudo_label.json"],
        datalist_file=str(cohort / "unlabeled.json"),
        output_dir=str(tmp_path / "pseudo"),
        min_lesion_mm3=64.0,
        **teacher,
    )
    pseudo = tmp_path / "pseudo" / "datalist.json"
    assert len(json.loads(pseudo.read_text())["training"]) == 2
    run(
        ["train.json"],
        datalist_file=str(cohort / "labeled.json"),
        pseudo_datalist_file=str(pseudo),
        pseudo_weight=0.5,
        soft_range=[0.02, 0.2],
        output_dir=str(tmp_path / "unet"),
        ckpt_dir=str(tmp_path / "models"),
        patch_size=[32, 32],
        max_epochs=2,
        val_interval=1,
        **UNET,
    )
    output = tmp_path / "eval"
    run(
        ["inference.json", "evaluate.json"],
        datalist_file=str(cohort / "labeled.json"),
        section="test",
        output_dir=str(output),
        handlers=Entry(load(tmp_path / "models" / "model.pt")),
        **UNET,
    )
    assert (output / "report.html").is_file()
    (case,) = list_cases(datalist_file=cohort / "labeled.json", section="test")
    scan, mask, map_ = (
        nib.load(path)
        for path in (case["image"], output / f"{case['name']}_seg.nii.gz", output / f"{case['name']}_prob.nii.gz")
    )
    assert mask.shape == map_.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine)
    values = np.asarray(map_.dataobj)
    assert 0 <= values.min() <= values.max() <= 1
    assert not values[np.asarray(scan.dataobj) == 0].any()


def test_the_teacher_finds_a_bright_spot_that_its_reconstruction_lacks(cohort, tmp_path):
    # a network that returns a constant gray: all that is brighter is residual
    (case,) = list_cases(datalist_file=cohort / "healthy" / "datalist.json", section="validation")
    scan = nib.load(case["image"])
    data = np.asarray(scan.dataobj).astype(np.float32)
    spot = np.zeros(data.shape, dtype=bool)
    spot[18:21, 24:27, 20:23] = True
    data[spot] = 1.8 * np.median(data[data > 0])
    nib.save(nib.Nifti1Image(data, scan.affine), tmp_path / "spot.nii.gz")
    run(
        ["inference.json", "inference_residual.json"],
        dataset_dir=str(tmp_path),
        output_dir=str(tmp_path / "out"),
        threshold=0.25,
        median_mm=4.0,
        bright_quantile=0.99,
        handlers=[],
        network_def=Entry({"_target_": "MedianFilter", "spatial_dims": 2, "radius": 4}),
    )
    found = np.asarray(nib.load(tmp_path / "out" / "spot_seg.nii.gz").dataobj) > 0
    assert found[spot].mean() > 0.7
    assert (found & ~spot).sum() < 0.005 * (data > 0).sum()


@pytest.mark.parametrize(
    ("validation", "match"),
    [
        ([], "cases.json lists no case under validation"),
        ("the training cases", "training.*validation|validation.*training"),
    ],
)
def test_splits_are_checked_before_training(cohort, tmp_path, validation, match):
    train = list_cases(datalist_file=cohort / "labeled.json", section="training")
    datalist = write_datalist(tmp_path / "cases.json", {"training": train, "validation": train if validation else []})
    with pytest.raises((RuntimeError, InputError)) as caught:
        run(["train.json"], datalist_file=str(datalist), output_dir=str(tmp_path / "o"), ckpt_dir=str(tmp_path / "m"))
    assert re.search(match, str(find_input_error(caught.value)))
    assert not list(tmp_path.rglob("*.pt"))
