"""Joint registration and segmentation: terms by hand, who teaches whom, fields of files, trainings end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import OBLIQUE, make_head, parsed, read_json, save_nifti
from monai.data import MetaTensor
from monai.losses import BendingEnergyLoss, DiceLoss, LocalNormalizedCrossCorrelationLoss
from monai.networks.nets import UNet
from monai.transforms import Compose
from scipy.ndimage import map_coordinates
from torch.nn.functional import one_hot

from common.errors import InputError, find_input_error
from common.geometry import compose, fold_share, rotation_matrix, sampling_grid, voxel_grid, warp
from common.scans import stem
from deepatlas_joint.classical import ClassicalRegistration
from deepatlas_joint.filters import box, gaussian
from deepatlas_joint.joint import JointLoss, JointTrainer
from deepatlas_joint.labels import BrainLabelsd
from deepatlas_joint.loss import (
    BendingEnergy,
    GlobalCorrelation,
    LocalCorrelation,
    anatomy_loss,
    dice_loss,
    segmentation_loss,
)
from deepatlas_joint.network import RegistrationNetwork, SegmentationNetwork
from deepatlas_joint.pairs import PairDataset, PairSampler, RingDataset, limit_labels
from deepatlas_joint.pictures import draw_pair
from deepatlas_joint.propagation import LabelPropagation
from deepatlas_joint.refinement import PairRegistration, _field_resized, _moved
from deepatlas_joint.registration import (
    MeasurePaird,
    PreparePair,
    RegisterFilesd,
    SaveFieldd,
    displacement_of_file,
    list_pairs,
)
from deepatlas_joint.validation import PairDice, PairFolds, PairObjective, mean_dice, warped_label
from phantom.cohort import make_cohort
from running.workflow import open_configs, run_configs

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "deepatlas_joint"
SIZE = (8, 16, 8)
TINY = {"spacing": [8.0, 8.0, 8.0], "shape": [24, 24, 24], "correlation_window": 3}

# --- networks --------------------------------------------------------------------------------------------------------


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_in_the_brain_background_does_not_win_unless_it_may():
    # four voxels: outside, a ventricle as dark as air, white matter, the rim
    p = torch.tensor([[0.0, 0.6, 0.1, 0.5], [0, 0.3, 0.2, 0.1], [0, 0.1, 0.7, 0.4]]).reshape(3, 4, 1, 1)
    for background, expected in ((False, [0, 1, 2, 2]), (True, [0, 0, 2, 0])):
        found = BrainLabelsd("pred", background)({"pred": p})["pred"]
        assert found.shape == (1, 4, 1, 1)
        assert found.flatten().tolist() == expected


def test_the_networks_have_as_many_parameters_as_the_authors():
    assert parameters(RegistrationNetwork()) == 253_627
    assert parameters(SegmentationNetwork(out_channels=32)) == 874_864
    assert parameters(SegmentationNetwork(out_channels=14)) == 874_558


@pytest.mark.parametrize("options", [{}, {"integration_steps": 4}, {"normalize": True, "passes": 2}])
def test_registration_begins_with_next_to_nothing_on_a_grid_of_any_size(options):
    field = RegistrationNetwork(**options)(torch.rand(2, 2, 9, 18, 13))
    assert field.shape == (2, 3, 9, 18, 13)
    assert 0 < field.abs().max() < 1e-2


def test_a_second_pass_goes_on_from_the_warped_image():
    once, twice = RegistrationNetwork(normalize=True), RegistrationNetwork(normalize=True, passes=2)
    torch.nn.init.normal_(once.flow.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    twice.load_state_dict(once.state_dict())
    pair = torch.rand(1, 2, 32, 18, 17, generator=torch.Generator().manual_seed(1))
    first = once(pair)
    warped = warp(pair[:, :1], first, padding="zeros")
    second = once(torch.cat([warped, pair[:, 1:]], dim=1))
    inside = (slice(None), slice(None), *[slice(3, -3)] * 3)  # where neither looks outside
    torch.testing.assert_close(twice(pair)[inside], (second + warp(first, second))[inside])
    assert first.abs().max() > 0.1
    assert (twice(pair) - first).abs().max() > 0.05


def test_segmentation_refuses_a_size_that_it_cannot_halve():
    network = SegmentationNetwork(channels=(4, 8, 8))
    assert network(torch.rand(1, 1, 8, 12, 4)).shape == (1, 4, 8, 12, 4)
    with pytest.raises(ValueError, match="a size of the image is 10, expected a multiple of 4"):
        network(torch.rand(1, 1, 8, 10, 4))


# --- losses ----------------------------------------------------------------------------------------------------------


def plain_anatomy_loss(moving, field, fixed, classes):
    """Every class warped at once, as one would write it down."""

    def maps(anatomy):
        whole = anatomy.is_floating_point()
        return anatomy if whole else one_hot(anatomy[:, 0].long(), classes).movedim(-1, 1).float()

    warped = torch.nn.functional.grid_sample(maps(moving), sampling_grid(field), align_corners=True)
    target = maps(fixed)
    axes = (2, 3, 4)
    return dice_loss((warped * target).sum(axes), warped.sum(axes), target.sum(axes))


@pytest.mark.parametrize("fixed_known", [False, True])
@pytest.mark.parametrize("moving_known", [False, True])
def test_anatomy_a_few_classes_at_a_time_is_that_of_all_at_once(moving_known, fixed_known):
    torch.manual_seed(0)
    classes = 6  # more than are taken at once
    field = (torch.rand(2, 3, *SIZE) * 1.5 - 0.6).requires_grad_()
    anatomies = [
        torch.randint(0, classes, (2, 1, *SIZE), dtype=torch.uint8)
        if known
        else torch.rand(2, classes, *SIZE).softmax(1).requires_grad_()
        for known in (moving_known, fixed_known)
    ]
    found, expected = (f(anatomies[0], field, anatomies[1], classes) for f in (anatomy_loss, plain_anatomy_loss))
    torch.testing.assert_close(found, expected)
    inputs = [field, *(a for a in anatomies if a.requires_grad)]
    for a, b in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-3)
        assert b.abs().max() > 1e-6


def test_a_box_is_a_sum_over_its_voxels_and_a_gaussian_a_mean_of_what_is_inside():
    volume = torch.zeros(2, 5, 6, 7)
    volume[0, 2, 0, 3], volume[1] = 3.0, 2.0
    found = box(volume, 3)
    assert found[0, 1:4, :2, 2:5].flatten().tolist() == [3.0] * 18
    assert found[0].sum() == 3 * 18
    assert found[1, 2, 2, 2] == 2 * 27
    assert found[1, 0, 0, 0] == 2 * 8  # nothing outside
    torch.testing.assert_close(gaussian(volume[1], 1.5), volume[1])
    ramp = voxel_grid((31, 4, 4))[0]
    smooth = gaussian(ramp**2, 1.5)
    torch.testing.assert_close(smooth[15, 2, 2] - 15**2, torch.tensor(1.5**2), atol=1e-3, rtol=0)  # its variance


def test_local_correlation_is_that_of_monai_in_value_and_gradient():
    generator = torch.Generator().manual_seed(0)
    smooth = gaussian(torch.rand(2, 2, 1, 16, 12, 20, generator=generator), 1.0)
    smooth[..., :5] = 0  # flat windows
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        images = [image.to(dtype).requires_grad_() for image in smooth]
        ours, theirs = LocalCorrelation(5)(*images), LocalNormalizedCrossCorrelationLoss(3, 5)(*images)
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
        for found, expected in zip(*(torch.autograd.grad(loss, images) for loss in (ours, theirs)), strict=True):
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
            assert expected.abs().max() > 1e-3
    only = torch.autograd.grad(LocalCorrelation(5)(images[0], images[1].detach()), images[0])[0]
    torch.testing.assert_close(only, torch.autograd.grad(LocalCorrelation(5)(*images), images[0])[0])
    with pytest.raises(ValueError, match="window is 4, expected an odd number"):
        LocalCorrelation(4)


def test_the_gradient_of_local_correlation_is_right():
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 1, 6, 5, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(LocalCorrelation(3), images)
    assert LocalCorrelation(3)(images[0], 2 * images[0] + 1).item() > -1  # the margin is not the image
    whole = LocalCorrelation(3)(images[0], images[0])
    torch.testing.assert_close(whole, torch.tensor(-1.0, dtype=torch.float64))


def test_the_gradient_in_nearly_flat_windows_is_right():
    """Their variance counts as the least one, which does not change with the image."""
    generator = torch.Generator().manual_seed(0)
    images = [
        (scale * torch.rand(1, 1, 6, 5, 4, generator=generator, dtype=torch.float64)).requires_grad_()
        for scale in (3e-4, 1.0)
    ]
    assert torch.autograd.gradcheck(LocalCorrelation(3), images)


def test_probabilities_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="expected 4 classes"):
        anatomy_loss(torch.rand(1, 3, *SIZE), torch.zeros(1, 3, *SIZE), torch.rand(1, 4, *SIZE), 4)


def test_the_supervised_loss_is_the_soft_dice_of_monai():
    torch.manual_seed(0)
    logits, label = torch.randn(1, 5, *SIZE), torch.randint(0, 5, (1, 1, *SIZE), dtype=torch.uint8)
    monai = DiceLoss(softmax=True, to_onehot_y=True, smooth_nr=1e-6, smooth_dr=2e-6)
    torch.testing.assert_close(segmentation_loss(logits, label), monai(logits, label))


def test_global_correlation_is_blind_to_brightness_and_contrast():
    x = torch.rand(2, 1, *SIZE)
    loss = GlobalCorrelation()
    assert loss(x, 3 * x + 2).item() == pytest.approx(0, abs=1e-5)
    assert loss(x, -x).item() == pytest.approx(2, abs=1e-5)
    a, b = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1])  # nothing in common
    assert loss(a.reshape(1, 1, 2, 2, 1), b.reshape(1, 1, 2, 2, 1)).item() == pytest.approx(1)


def test_dice_of_two_voxels_by_hand():
    # class 0: intersection 1 of 1 + 2, class 1: intersection 0 of 1 + 0; epsilons away from 2/3 and 0
    found = dice_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]]))
    assert found.item() == pytest.approx(1 - (2 / 3) / 2, abs=1e-5)
    label = torch.tensor([1, 1, 2, 0]).reshape(1, 1, 2, 2)
    assert mean_dice(torch.tensor([1, 2, 2, 3]).reshape(1, 1, 2, 2), label, 4) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert np.isnan(mean_dice(label, 0 * label, 4))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_bending_is_that_of_monai_and_affine_maps_do_not_bend():
    field = torch.randn(2, 3, 6, 7, 5)
    torch.testing.assert_close(BendingEnergy()(field), BendingEnergyLoss()(field))
    straight = torch.einsum("ij,jxyz->ixyz", torch.rand(3, 3), voxel_grid((6, 7, 5)))[None]
    assert BendingEnergy()(straight).item() < 1e-8


# --- who teaches whom ------------------------------------------------------------------------------------------------


@pytest.fixture
def loss() -> JointLoss:
    return JointLoss(3, GlobalCorrelation(), BendingEnergy(), anatomy_weight=2.0, supervised_weight=3.0)


def test_a_training_weighs_a_label_three_times_as_much_as_the_other_network():
    config = parsed([BUNDLE / "configs" / "train.json"])
    loss = config.get_parsed_content("loss")
    assert (loss.smoothness_weight, loss.anatomy_weight, loss.supervised_weight) == (1, 1, 3)
    config = parsed([BUNDLE / "configs" / "train.json"], smoothness_weight=2, anatomy_weight=5, supervised_weight=15)
    loss = config.get_parsed_content("loss")
    assert (loss.smoothness_weight, loss.anatomy_weight, loss.supervised_weight) == (2, 5, 15)


def test_the_table_of_cases(loss):
    """Which terms there are, and whom they teach."""
    torch.manual_seed(0)
    labels = [torch.randint(0, 3, (1, 1, *SIZE), dtype=torch.uint8) for _ in range(2)]
    field = torch.rand(1, 3, *SIZE)

    def gradients(known):
        logits = [
            torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(i), requires_grad=True) for i in (0, 1)
        ]
        given = [label if k else None for label, k in zip(labels, known, strict=True)]
        value = loss.of_segmentation(logits, field, given)
        value.backward()
        probabilities = [logit.detach().softmax(1) for logit in logits]
        return (
            value.item(),
            [logit.grad is not None and bool(logit.grad.any()) for logit in logits],
            probabilities,
            logits,
        )

    value, taught, (_, fixed), logits = gradients((True, False))
    assert taught == [True, True]
    expected = 3 * segmentation_loss(logits[0], labels[0]) + 2 * anatomy_loss(labels[0], field, fixed, 3)
    assert value == pytest.approx(expected.item(), abs=1e-5)

    value, taught, (moving, _), logits = gradients((False, True))
    assert taught == [True, True]
    expected = 3 * segmentation_loss(logits[1], labels[1]) + 2 * anatomy_loss(moving, field, labels[1], 3)
    assert value == pytest.approx(expected.item(), abs=1e-5)

    value, taught, _, logits = gradients((True, True))
    expected = 3 * (segmentation_loss(logits[0], labels[0]) + segmentation_loss(logits[1], labels[1])) / 2
    assert taught == [True, True]
    assert value == pytest.approx(expected.item(), abs=1e-5)


def test_registration_without_any_anatomy_is_equation_1_without_its_last_term(loss):
    torch.manual_seed(0)
    pair, field = torch.rand(1, 2, *SIZE), torch.rand(1, 3, *SIZE)
    labels = torch.randint(0, 3, (1, 1, *SIZE), dtype=torch.uint8)
    alone = loss.of_registration(pair, field, [labels, None])
    whole = loss.of_registration(pair, field, [labels, labels])
    assert (whole - alone).item() == pytest.approx(2 * anatomy_loss(labels, field, labels, 3).item(), abs=1e-5)


class _Cases(torch.utils.data.Dataset):
    """Three images, of which the first one has a label."""

    def __init__(self, labeled=(True, False, False)):
        generator = torch.Generator().manual_seed(0)
        self.items = [{"image": torch.rand(1, *SIZE, generator=generator)} for _ in labeled]
        for item, known in zip(self.items, labeled, strict=True):
            if known:
                item["label"] = torch.randint(0, 3, (1, *SIZE), dtype=torch.uint8, generator=generator)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def trainer_of(loss, registration_steps, segmentation_steps, epochs=1, **options):
    torch.manual_seed(0)
    cases = _Cases()
    sampler = PairSampler(["label" in item for item in cases.items], registration_steps, segmentation_steps)
    registration = RegistrationNetwork((2, 2, 2, 2, 2), (2, 2, 2, 2, 2))
    segmentation = SegmentationNetwork(1, 3, (4, 4))
    trainer = JointTrainer(
        "cpu",
        epochs,
        torch.utils.data.DataLoader(PairDataset(cases), sampler=sampler),
        registration,
        segmentation,
        torch.optim.Adam([*registration.parameters(), *segmentation.parameters()], 1e-3),
        loss,
        registration_steps,
        **options,
    )
    return trainer, registration, segmentation


@pytest.mark.parametrize("learns", ["registration", "segmentation"])
def test_the_network_whose_turn_it_is_not_stays_as_it_is(loss, learns):
    steps = (4, 0) if learns == "registration" else (0, 4)
    trainer, *networks = trainer_of(loss, *steps)
    before = [[p.clone() for p in network.parameters()] for network in networks]
    trainer.run()
    changed = [
        any(not torch.equal(a, b) for a, b in zip(old, network.parameters(), strict=True))
        for old, network in zip(before, networks, strict=True)
    ]
    assert changed == [learns == "registration", learns == "segmentation"]


def test_the_teacher_is_asked_once_per_block_for_each_image_without_a_label(loss):
    trainer, _, segmentation = trainer_of(loss, 12, 0, epochs=2)
    asked = []
    segmentation.register_forward_hook(lambda module, args, out: asked.append(module.training))
    trainer.run()
    assert asked == [False] * 4  # two images, two blocks, never in training mode
    assert sorted(trainer.predictions) == [1, 2]


@pytest.mark.parametrize("alone", [{"teacher": False}, {"anatomy": False}])
def test_without_a_teacher_or_anatomy_each_network_learns_alone(loss, alone):
    steps = (6, 0) if "teacher" in alone else (0, 6)
    trainer, registration, segmentation = trainer_of(loss, *steps, **alone)
    asked = []
    for name, network in (("registration", registration), ("segmentation", segmentation)):
        network.register_forward_hook(lambda *_, name=name: asked.append(name))
    trainer.run()
    assert asked == ["registration" if "teacher" in alone else "segmentation"] * 6


def test_mirrored_pairs_have_mirrored_anatomies(loss, monkeypatch):
    """A network that gives the image back as class 1 must be right on both sides, whichever way it is turned."""
    seen = []
    trainer, *_ = trainer_of(loss, 30, 0, flip=0.5)
    monkeypatch.setattr(
        loss, "of_registration", lambda pair, field, anatomies: seen.append((pair.clone(), anatomies)) or field.sum()
    )
    trainer.run()
    cases = _Cases()
    image, label = cases[0]["image"], cases[0]["label"]
    turned = set()
    for pair, anatomies in seen:
        for i in range(2):
            for mirrored in (False, True):
                if torch.equal(pair[0, i : i + 1], image.flip(1) if mirrored else image):
                    torch.testing.assert_close(anatomies[i][0], label.flip(1) if mirrored else label)
                    turned.add(mirrored)
    assert turned == {False, True}


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_segmentation_steps_have_a_labeled_case_and_no_case_meets_itself():
    sampler = PairSampler([False, True, False, True, False], 40, 40, seed=1)
    pairs = list(sampler)
    assert len(pairs) == len(sampler) == 80
    assert all(a != b for a, b in pairs)
    assert all({a, b} & {1, 3} for a, b in pairs[40:])
    assert {a for a, _ in pairs[:40]} == {b for _, b in pairs[:40]} == set(range(5))
    assert any(b in (1, 3) and a not in (1, 3) for a, b in pairs[40:])  # the labeled one may be either
    assert any(a in (1, 3) and b not in (1, 3) for a, b in pairs[40:])
    assert list(sampler) == pairs
    sampler.set_epoch(1)
    assert list(sampler) != pairs


def test_processes_share_one_draw(monkeypatch):
    alone = list(PairSampler([True] * 7, 6, 4))
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        shares.append(list(PairSampler([True] * 7, 3, 2)))
    assert [pair for both in zip(*shares, strict=True) for pair in both] == alone


@pytest.mark.parametrize(
    ("labeled", "sentence"),
    [
        ([False, False], "none of the 2 training cases has a label, expected one or more"),
        ([True], "there is 1 training case, expected two or more"),
    ],
)
def test_cases_that_make_no_pairs_are_refused(labeled, sentence):
    with pytest.raises(InputError, match=sentence):
        PairSampler(labeled, 1, 1)


def test_registration_alone_needs_no_label():
    assert len(list(PairSampler([False, False], 3, 0))) == 3


def test_a_pair_is_two_channels_and_says_what_is_labeled():
    pair = PairDataset(_Cases(), [(0, 1), (1, 2), (2, 0)])[2]
    cases = _Cases()
    torch.testing.assert_close(pair["image"], torch.cat([cases[2]["image"], cases[0]["image"]]))
    assert pair["labeled"].tolist() == [False, True]
    assert pair["index"].tolist() == [2, 0]
    assert not pair["label"][0].any()
    assert torch.equal(pair["label"][1:], cases[0]["label"])


def test_validation_pairs_are_a_ring():
    ring = RingDataset([{"image": torch.full((1, *SIZE), i)} for i in range(3)], Compose([]))
    assert [pair["index"].tolist() for pair in (ring[i] for i in range(len(ring)))] == [[0, 1], [1, 2], [2, 0]]
    assert ring[2]["image"][:, 0, 0, 0].tolist() == [2, 0]
    with pytest.raises(InputError, match="there is 1 validation case, expected two or more"):
        RingDataset([{}], Compose([]))


def test_scores_are_means_over_the_pairs_that_have_labels():
    output = torch.zeros(2, 3 + 3, *SIZE)
    output[:, 3 + 1] = 1.0  # all is class 1
    truth = torch.rand(2, 4, *SIZE)
    truth[:, 2:] = 0
    truth[0, 2:] = 1
    truth[0, 2:, 4:] = 2  # half of the first pair is class 2; the second has no labels
    found = {}
    for of in ("segmentation", "registration", "both"):
        metric = PairDice(3, of)
        metric.update((output, truth))
        found[of] = metric.compute()
    assert found == pytest.approx({"segmentation": (2 / 3 + 0) / 2, "registration": 1.0, "both": (1 / 3 + 1) / 2})
    metric.reset()
    metric.update((output[1:], truth[1:]))
    with pytest.raises(InputError, match="no validation case has a label"):
        metric.compute()
    with pytest.raises(InputError, match="of is 'all', expected segmentation, registration or both"):
        PairDice(3, "all")


def test_a_training_that_diverges_is_not_left_out_of_the_mean(loss):
    metric = PairObjective(loss)
    output = torch.zeros(1, 3 + 3, *SIZE)
    metric.update((output, torch.rand(1, 4, *SIZE)))
    assert np.isfinite(metric.compute())
    with pytest.raises(InputError, match="the objective of a validation pair is nan, expected a number"):
        metric.update((output * float("nan"), torch.rand(1, 4, *SIZE)))


def test_a_better_registration_has_the_higher_objective(loss):
    """Minus equation 1 without anatomy: the image itself against another one, and the first one bent."""
    metric, pair = PairObjective(loss), torch.rand(2, *SIZE)
    same = torch.cat([pair[:1], pair[:1]])
    fields = torch.zeros(2, 3 + 3, *SIZE)
    fields[1, :3] = torch.rand(3, *SIZE)
    good = metric.score_pair(fields[0], same, pair)
    assert good == pytest.approx(0, abs=1e-5)
    assert metric.score_pair(fields[0], pair, pair) < good
    assert metric.score_pair(fields[1], same, pair) < good


def test_scores_of_a_pair_are_of_the_fixed_image():
    """Moving and fixed differ: all of the fixed label is class 1, and its brain is where the map is a mirror."""
    output = torch.zeros(3 + 3, *SIZE)
    output[3 + 1] = 1.0
    label = torch.stack([torch.full(SIZE, 2.0), torch.full(SIZE, 1.0)])
    assert PairDice(3, "segmentation").score_pair(output, label, label) == 1
    assert PairDice(3, "registration").score_pair(output, label, label) == 0
    output[0, :, :8] = -2 * voxel_grid(SIZE)[0, :, :8]
    image = torch.zeros(2, *SIZE)
    image[0, :, 9:], image[1, :, :7] = 1, 1
    assert PairFolds().score_pair(output, image, label) == 1
    assert PairFolds().score_pair(output, image.flip(0), label) == 0


def test_only_the_first_labels_are_kept():
    cases = [{"image": "a"}, {"image": "b", "label": "x"}, {"image": "c", "label": "y"}]
    assert limit_labels(cases, 1) == [{"image": "a"}, {"image": "b", "label": "x"}, {"image": "c"}]
    assert limit_labels(cases, None) == cases
    with pytest.raises(InputError, match="2 training cases have a label, expected at least labeled_cases = 3"):
        limit_labels(cases, 3)


# --- registration of files -------------------------------------------------------------------------------------------

GRID = np.diag([2.0, 2, 2, 1])


def test_without_a_displacement_the_affine_maps_lead_from_file_to_file():
    fixed_map, moving_map = np.eye(4), np.eye(4)
    fixed_map[:3, :3] = rotation_matrix(np.array([0.2, 0, 0.1]))
    moving_map[:3, :3], moving_map[:3, 3] = np.diag([1.1, 0.9, 1.0]), [3, -2, 5]
    found = displacement_of_file(torch.zeros(3, 10, 10, 10), GRID, ((4, 5, 6), OBLIQUE), fixed_map, moving_map)
    point = (OBLIQUE @ [3, 1, 2, 1])[:3]
    expected = np.linalg.inv(moving_map) @ fixed_map @ [*point, 1]
    np.testing.assert_allclose(found[:, 3, 1, 2], expected[:3] - point, atol=1e-4)


def test_a_voxel_of_the_template_is_its_size_in_millimeters():
    shift = torch.zeros(3, 10, 10, 10)
    shift[1] = 1.0
    found = displacement_of_file(shift, GRID, ((5, 5, 5), OBLIQUE), np.eye(4), np.eye(4))
    expected = torch.tensor([0.0, 2.0, 0.0]).reshape(3, 1, 1, 1).expand(3, 5, 5, 5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_written_field_is_that_of_itk(tmp_path):
    """Five dimensions, intent vector, mm to left and back, on the grid of the fixed file: used as ITK would use it."""
    head = make_head(shape=(12, 14, 10))
    path = save_nifti(tmp_path / "fixed.nii.gz", head.image, head.affine)
    fixed = MetaTensor(torch.from_numpy(head.image)[None], affine=torch.from_numpy(head.affine))
    fixed.meta["filename_or_obj"] = str(path)
    field = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (3, *head.image.shape)).astype(np.float32))
    SaveFieldd("pred", tmp_path)({"name": "a_from-b", "pred": MetaTensor(field), "fixed_native": fixed})

    file = nib.load(tmp_path / "a_from-b_warp.nii.gz")
    assert file.shape == (12, 14, 10, 1, 3)
    assert file.header.get_intent()[0] == "vector"
    assert file.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(file.affine, head.affine, atol=1e-4)
    vectors = np.asarray(file.dataobj)[:, :, :, 0]
    np.testing.assert_allclose(np.moveaxis(vectors, -1, 0), field.numpy() * [[[[-1]]], [[[-1]]], [[[1]]]], atol=1e-5)


def test_two_files_a_file_and_a_folder_or_a_folder_make_pairs(tmp_path):
    for name in ("a", "b", "c"):
        save_nifti(tmp_path / f"{name}_T1w.nii.gz", make_head(shape=(8, 8, 8)).image, np.eye(4))
    save_nifti(tmp_path / "a_label.nii.gz", make_head(shape=(8, 8, 8)).label, np.eye(4))
    a, b = str(tmp_path / "a_T1w.nii.gz"), str(tmp_path / "b_T1w.nii.gz")
    (pair,) = list_pairs(moving_file=a, fixed_file=b, moving_label_file=str(tmp_path / "a_label.nii.gz"))
    assert pair == {
        "name": "b_T1w_from-a_T1w",
        "moving": {"image": a, "name": "a_T1w", "label": str(tmp_path / "a_label.nii.gz")},
        "fixed": {"image": b, "name": "b_T1w"},
    }
    onto_cohort = list_pairs(str(tmp_path), moving_file=a)
    assert [pair["name"] for pair in onto_cohort] == ["b_T1w_from-a_T1w", "c_T1w_from-a_T1w"]
    onto_one = list_pairs(str(tmp_path), fixed_file=b)
    assert [pair["name"] for pair in onto_one] == ["b_T1w_from-a_T1w", "b_T1w_from-c_T1w"]
    assert onto_one[0]["moving"]["label"] == str(tmp_path / "a_label.nii.gz")
    assert len(list_pairs(str(tmp_path))) == 6

    shifted = save_nifti(tmp_path / "shifted.nii.gz", make_head(shape=(8, 8, 8)).label, np.diag([2.0, 1, 1, 1]))
    for options, sentence in (
        (
            {"moving_file": a, "moving_label_file": str(shifted), "fixed_file": b},
            "expected a label map on the grid of its",
        ),
        ({"moving_file": a, "fixed_file": a}, "is the moving and the fixed scan, expected two different ones"),
        ({}, "nothing to pair is given"),
        ({"moving_file": a}, "nothing to pair is given"),
        ({"moving_label_file": a, "fixed_file": b}, "without moving_file, expected both"),
        ({"moving_file": a, "fixed_file": b, "dataset_dir": str(tmp_path)}, "expected two of the three"),
        ({"moving_file": a, "fixed_file": str(tmp_path / "none.nii.gz")}, "does not exist"),
    ):
        with pytest.raises(InputError, match=sentence):
            list_pairs(**options)


def test_a_case_of_several_pairs_is_prepared_once():
    prepared = []
    prepare = PreparePair(
        lambda case: prepared.append(case["image"]) or case | {"native": case["image"] * 2}, remember=2
    )
    cases = [{"image": name, "name": name} for name in "abc"]
    pairs = [{"name": f"{m}{f}", "moving": cases[m], "fixed": cases[f]} for m, f in ((0, 1), (0, 2), (1, 2), (0, 2))]
    first, *_ = [prepare(pair) for pair in pairs]
    assert (first["moving"], first["fixed_native"]) == ("a", "bb")
    assert prepared == ["a", "b", "c", "b", "a"]  # no more than two are kept


def test_propagation_of_the_template_by_no_displacement_is_the_template():
    network = LabelPropagation(RegistrationNetwork(), spacing=(8, 8, 8), shape=(24, 24, 24))
    found = network(torch.rand(1, 1, 24, 24, 24)).argmax(1)
    assert (found[0] != network.maps[0].argmax(0)).float().mean() < 0.01
    assert set(found.unique().tolist()) == {0, 1, 2, 3}
    with pytest.raises(InputError, match="classes is 5, expected 4 as the template has"):
        LabelPropagation(RegistrationNetwork(), classes=5)
    with pytest.raises(InputError, match="expected both or none"):
        LabelPropagation(RegistrationNetwork(), moving_file="a.nii.gz")


def test_each_network_learns_at_its_own_rate():
    rates = {"registration_rate": 0.01, "segmentation_rate": 0.001}
    parser = open_configs(BUNDLE, ["train"], device="cpu", **rates).parser
    groups = parser.get_parsed_content("optimizer").param_groups
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, rate in (("registration", 0.01), ("network", 0.001)):
        assert {found[id(p)] for p in parser.get_parsed_content(name).parameters()} == {rate}


# --- from files to files ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Healthy phantoms of 4 mm with tissue labels and the way to the template; one training case is labeled."""
    datalist = make_cohort(
        tmp_path_factory.mktemp("phantoms") / "cohort",
        {"healthy": (3, 2, 2)},
        spacing=4.0,
        sequences=("T1w",),
        seed=5,
        label="tissues",
        displacement=True,
        num_workers=1,
    )
    content = json.loads(datalist.read_text())
    for case in content["training"][1:]:
        del case["label"]
    datalist.write_text(json.dumps(content))
    return datalist


def train(names, datalist, folder, **options):
    options = {"datalist_file": datalist, "ckpt_dir": folder, "max_epochs": 1, "val_interval": 1, **TINY, **options}
    return run_configs(BUNDLE, names, device="cpu", **options)


def test_pretraining_joint_training_and_registration_of_phantoms(phantoms, tmp_path):
    models = tmp_path / "models"
    layers = {"train_registration": {"registration_steps": 30}, "train_segmentation": {"segmentation_steps": 6}}
    for layer, steps in layers.items():
        train(["train", layer], phantoms, models, output_dir=tmp_path / layer, max_epochs=2, **steps)
    assert {path.name for path in models.iterdir()} == {"registration.pt", "model.pt"}
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    workflow = train(
        "train",
        phantoms,
        models,
        output_dir=tmp_path / "train",
        registration_weights=str(models / "registration.pt"),
        segmentation_weights=str(models / "model.pt"),
        registration_steps=4,
        segmentation_steps=2,
    )
    assert all((models / name).read_bytes() != content for name, content in before.items())
    metrics = workflow.parser.get_parsed_content("validate#evaluator").state.metrics
    assert set(metrics) == {"val_dice", "val_dice_segmentation", "val_dice_registration", "val_folds"}
    parts = metrics["val_dice_segmentation"], metrics["val_dice_registration"]
    assert metrics["val_dice"] == pytest.approx(sum(parts) / 2)
    assert len(list((tmp_path / "train" / "pictures").glob("*/*.png"))) == 2

    run_configs(
        BUNDLE,
        "inference_registration",
        datalist_file=phantoms,
        section="test",
        weights=str(models / "registration.pt"),
        output_dir=tmp_path / "out",
        device="cpu",
        classes=5,  # phantoms know lesions
        **{key: TINY[key] for key in ("spacing", "shape")},
    )
    rows = list(csv.DictReader((tmp_path / "out" / "registration.csv").open()))
    assert len(rows) == 2
    for row in rows:
        assert float(row["correlation"]) > float(row["correlation_affine"])
        assert float(row["tre_mm_affine"]) > 1
        assert 0.2 < float(row["dice_affine"]) < 1
        assert float(row["folds_percent"]) == 0
        for kind in ("warp", "warped", "warpedseg"):
            assert (tmp_path / "out" / f"{row['pair']}_{kind}.nii.gz").is_file()
        assert (tmp_path / "out" / f"{row['pair']}_check.png").stat().st_size > 10_000


def test_the_written_field_moves_the_file_as_the_written_image_shows(phantoms, tmp_path):
    """Read back with nothing of ours: SciPy, the moving file, and the convention of ITK."""
    content = json.loads(phantoms.read_text())["test"]
    fixed, moving = (str(phantoms.parent / case["image"]) for case in content)
    network = RegistrationNetwork()
    torch.nn.init.normal_(network.flow.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), tmp_path / "registration.pt")
    run_configs(
        BUNDLE,
        "inference_registration",
        moving_file=moving,
        fixed_file=fixed,
        weights=str(tmp_path / "registration.pt"),
        refine=False,
        output_dir=tmp_path / "out",
        device="cpu",
        **{key: TINY[key] for key in ("spacing", "shape")},
    )
    (field,), (warped,) = (
        [nib.load(p) for p in (tmp_path / "out").glob(f"*_{kind}.nii.gz")] for kind in ("warp", "warped")
    )
    vectors = np.asarray(field.dataobj)[:, :, :, 0] * [-1, -1, 1]  # to right, front and top
    positions = nib.affines.apply_affine(field.affine, np.moveaxis(np.indices(field.shape[:3]), 0, -1)) + vectors
    source = nib.load(moving)
    voxels = nib.affines.apply_affine(np.linalg.inv(source.affine), positions)
    expected = map_coordinates(source.get_fdata(), np.moveaxis(voxels, -1, 0), order=1, mode="constant")
    found = np.asarray(warped.dataobj)
    inside = np.all([(voxels[..., i] > 1) & (voxels[..., i] < source.shape[i] - 2) for i in range(3)], axis=0)
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.5)
    assert np.abs(vectors).max() > 2
    assert found.std() > 100


def test_refined_fields_and_their_inverses_are_written_and_lead_back(phantoms, tmp_path):
    torch.save(RegistrationNetwork().state_dict(), tmp_path / "registration.pt")
    run_configs(
        BUNDLE,
        "inference_registration",
        datalist_file=phantoms,
        section="test",
        output_dir=tmp_path,
        device="cpu",
        weights=str(tmp_path / "registration.pt"),
        classes=5,
        pictures=False,
        save_inverse=True,
        spacing=[4.0, 4.0, 4.0],
        shape=[40, 48, 40],
    )
    rows = list(csv.DictReader((tmp_path / "registration.csv").open()))
    assert len(rows) == 2
    for row in rows:
        assert float(row["dice"]) > float(row["dice_affine"]) + 0.05
        assert float(row["tre_mm"]) < float(row["tre_mm_affine"]) - 1
        assert float(row["folds_percent"]) == 0
        assert 0.05 < float(row["log_jacobian_sd"]) < 0.55
        assert float(row["inverse_error_mm"]) < 0.5
        there, back = (nib.load(tmp_path / f"{row['pair']}_{kind}.nii.gz") for kind in ("warp", "inversewarp"))
        fields = [np.asarray(file.dataobj)[:, :, :, 0] * [-1, -1, 1] for file in (there, back)]
        starts = nib.affines.apply_affine(there.affine, np.moveaxis(np.indices(there.shape[:3]), 0, -1))
        voxels = nib.affines.apply_affine(np.linalg.inv(back.affine), starts + fields[0])
        ways = [map_coordinates(fields[1][..., i], np.moveaxis(voxels, -1, 0), order=1) for i in range(3)]
        left = np.linalg.norm(fields[0] + np.stack(ways, axis=-1), axis=-1)
        brain = np.asarray(nib.load(tmp_path / f"{row['pair']}_warped.nii.gz").dataobj) > 0
        assert left[brain].mean() < 0.6
        assert np.linalg.norm(fields[0], axis=-1)[brain].mean() > 2


@pytest.mark.parametrize("weights", [None, "registration.pt"])
def test_registration_without_a_network_or_after_one_goes_through_the_same_files(phantoms, tmp_path, weights):
    torch.save(RegistrationNetwork().state_dict(), tmp_path / "registration.pt")
    run_configs(
        BUNDLE,
        ["inference_registration", "inference_registration_classical"],
        datalist_file=phantoms,
        section="test",
        output_dir=tmp_path,
        device="cpu",
        start_weights=weights and str(tmp_path / weights),
        classes=5,
        pictures=False,
        spacing=[4.0, 4.0, 4.0],
        shape=[40, 48, 40],
        iterations=[20, 20, 10],
        radius=2,
    )
    rows = list(csv.DictReader((tmp_path / "registration.csv").open()))
    assert len(rows) == 2
    for row in rows:
        assert float(row["dice"]) > float(row["dice_affine"]) + 0.05
        assert float(row["tre_mm"]) < float(row["tre_mm_affine"]) - 1
        assert float(row["folds_percent"]) == 0
        assert (tmp_path / f"{row['pair']}_warp.nii.gz").is_file()
    assert not list(tmp_path.glob("*.png"))


@pytest.fixture
def blobs() -> tuple[torch.Tensor, float]:
    """Two images of the same blobs, the moving one shifted by one voxel along the first axis, and the shift."""
    x, y, z = np.indices((24, 24, 24)) - 12.0

    def image(shift: float) -> torch.Tensor:
        ball = np.exp(-((x - shift) ** 2 + y**2 + z**2) / 40)
        return torch.from_numpy(ball * (1 + 0.3 * np.sin(x - shift) * np.cos(y) * np.sin(z))).float()

    return torch.stack([image(1), image(0)])[None], 1.0


def test_registration_without_a_network_goes_on_where_one_ends(blobs):
    def start(pair):  # two voxels too far
        return torch.tensor([3.0, 0, 0]).reshape(1, 3, 1, 1, 1).expand(len(pair), 3, *pair.shape[2:])

    pair, shift = blobs
    for network in (None, start):
        ways = ClassicalRegistration(network, iterations=(30, 30), radius=2)(pair)
        assert ways.dtype == torch.float32
        for field, expected, image in zip(ways.split(3, dim=1), (shift, -shift), (1, 0), strict=True):
            assert fold_share(field) == 0
            brain = pair[0, image] > 0.3
            torch.testing.assert_close(field[0, 0][brain].mean(), torch.tensor(expected), atol=0.2, rtol=0)


class _Shift(torch.nn.Module):
    """A network that is so many voxels wrong."""

    def __init__(self, by: float = 0.0) -> None:
        super().__init__()
        self.by = by

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        return torch.tensor([self.by, 0, 0]).reshape(1, 3, 1, 1, 1).expand(len(pair), 3, *pair.shape[2:])


def test_refinement_finds_the_shift_and_both_ways_are_one(blobs):
    pair, shift = blobs
    refined = PairRegistration(_Shift())
    both = torch.cat([pair, pair.flip(1)])
    ways, exchanged = refined(both)[:, None]
    there, back = ways.split(3, dim=1)
    torch.testing.assert_close(exchanged, torch.cat([back, there], dim=1), atol=0.1, rtol=0)  # Adam enlarges rounding
    assert torch.equal(refined(both)[:, None][0], ways)  # the same bits again
    brain = pair[0, 1] > 0.3
    torch.testing.assert_close(there[0, 0][brain].mean(), torch.tensor(shift), atol=0.1, rtol=0)
    left = compose(there, back)[0, :, brain].abs()
    assert left.mean() < 0.02  # of one voxel of shift
    assert left.max() < 0.3
    assert fold_share(there) == fold_share(back) == 0


def test_refinement_starts_where_the_network_leads(blobs):
    pair, _ = blobs
    shifts = iter([1.5, -1.5])  # there and back

    class Network(torch.nn.Module):
        def forward(self, pair):
            return _Shift(next(shifts))(pair)

    there, back = PairRegistration(Network(), steps=(0, 0))(pair).split(3, dim=1)
    inside = (slice(None), 0, *3 * (slice(4, -4),))
    torch.testing.assert_close(there[inside], torch.full_like(there[inside], 1.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(back[inside], torch.full_like(back[inside], -1.5), atol=1e-3, rtol=0)


def test_refinement_begins_at_the_mean_of_both_directions(blobs):
    pair, _ = blobs
    shifts = iter([1.5, -0.5])  # there and back: the network does not agree with itself

    class Network(torch.nn.Module):
        def forward(self, pair):
            return _Shift(next(shifts))(pair)

    ways = PairRegistration(Network(), steps=(0,))(pair)[(slice(None), slice(None), *3 * (slice(4, -4),))]
    torch.testing.assert_close(ways[:, 0], torch.ones_like(ways[:, 0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(ways[:, 3], -torch.ones_like(ways[:, 3]), atol=1e-3, rtol=0)


def test_a_field_on_another_grid_leads_to_the_same_places():
    """Of a map to twice the distance from the first voxel: on any grid the last voxel goes as far as the grid is."""
    field = voxel_grid((9, 5, 7))[None]
    for shape in ((17, 9, 13), (5, 3, 4), (12, 6, 8)):
        torch.testing.assert_close(_field_resized(field, shape), voxel_grid(shape)[None], atol=1e-5, rtol=0)


def test_most_steps_of_a_refinement_are_taken_on_the_coarsest_grid():
    steps = read_json(BUNDLE / "configs" / "inference_registration.json")["pair_def"]["steps"]
    assert len(steps) > 1
    assert steps == sorted(steps, reverse=True)


def test_without_refinement_both_ways_are_what_the_network_says(blobs):
    pair, _ = blobs
    network = RegistrationNetwork()
    torch.nn.init.normal_(network.flow.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    for refine in (False, "false", "False"):
        with torch.no_grad():
            expected = torch.cat([network(pair), network(pair.flip(1))], dim=1)
        assert torch.equal(PairRegistration(network, refine)(pair), expected)
    with pytest.raises(InputError, match="refine is 'no', expected True or False"):
        PairRegistration(network, "no")


def test_where_steps_alone_would_fold_they_do_not():
    """Slopes a of the field and b of the step: a + b would be 1.1, at which the half of the way folds."""
    x = voxel_grid((21, 5, 5))[None, :1] - 10
    none = torch.zeros_like(x)
    half, step = (torch.cat([slope * x, none, none], 1) for slope in (0.8, 0.3))
    found = _moved(half, step)
    torch.testing.assert_close(found[0, 0, :, 2, 2], (0.8 + (1 - 0.8**2) * 0.3) * x[0, 0, :, 2, 2])


def test_the_table_says_how_far_from_its_start_a_point_comes_back():
    """One voxel of 2 mm there, three quarters back, in a template in which the fixed brain is twice as large."""
    image = MetaTensor(torch.rand(1, 8, 8, 8) + 1, affine=torch.from_numpy(GRID))
    ways = torch.zeros(6, 8, 8, 8)
    ways[1], ways[4] = 1.0, -0.75
    d = {"name": "a_from-b", "pred": ways} | {f"{role}_native": image for role in ("moving", "fixed")}
    for role, scale in (("moving", 1.0), ("fixed", 2.0)):
        d[role] = MetaTensor(image.as_tensor(), affine=image.affine)
        d[role].meta["to_template"] = np.diag([scale, scale, scale, 1])
    measured = MeasurePaird("pred", 4, "out")
    measured(RegisterFilesd("pred", 4)(d))
    (row,) = measured.rows
    assert row["inverse_error_mm"] == pytest.approx(0.25, abs=1e-5)
    assert row["log_jacobian_sd"] == pytest.approx(0, abs=1e-4)  # a shift, and twice the size everywhere
    assert row["folds_percent"] == 0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("deepatlas_joint.classical.optional_import", lambda *_, **__: (None, False))
    with pytest.raises(InputError, match=r"dipy is not installed, .*pip install dipy"):
        ClassicalRegistration()


def test_a_broken_scan_of_a_cohort_is_left_out_of_the_table_and_reported(phantoms, tmp_path):
    content = json.loads(phantoms.read_text())
    cases = [{"image": str(phantoms.parent / case["image"])} for case in content["test"] + content["validation"][:1]]
    scan = nib.load(cases[2]["image"])
    cases[2]["image"] = str(tmp_path / "constant.nii.gz")
    nib.save(nib.Nifti1Image((scan.get_fdata() > 0).astype(np.float32), scan.affine), cases[2]["image"])
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    torch.save(RegistrationNetwork().state_dict(), tmp_path / "registration.pt")
    with pytest.raises(RuntimeError) as error:
        run_configs(
            BUNDLE,
            "inference_registration",
            datalist_file=tmp_path / "cases.json",
            moving_file=cases[0]["image"],
            weights=str(tmp_path / "registration.pt"),
            output_dir=tmp_path / "out",
            keep_going=True,
            device="cpu",
            **{key: TINY[key] for key in ("spacing", "shape")},
        )

    assert "constant" in str(find_input_error(error.value))
    assert "1 of 2 cases failed" in str(find_input_error(error.value))
    rows = list(csv.DictReader((tmp_path / "out" / "registration.csv").open()))
    assert [row["pair"] for row in rows] == [f"{stem(cases[1]['image'])}_from-{stem(cases[0]['image'])}"]


def test_lines_of_the_picture_lead_where_the_field_does():
    fixed = torch.zeros(1, 8, 10, 6)
    fixed[:, 2:6, 2:8, 1:5] = 1
    shift = torch.zeros(3, 8, 10, 6)
    shift[0], shift[1] = 1.0, -0.5  # to the right, which is the left of the picture, and back
    axial = draw_pair(fixed, fixed, shift).axes[3]
    first = axial.lines[0]
    np.testing.assert_allclose(first.get_xdata(), 7 - 1.0)
    np.testing.assert_allclose(first.get_ydata(), np.arange(10) - 0.5)


def test_labels_warped_by_a_voxel_move_by_a_voxel():
    label = torch.zeros(1, 5, 5, 5, dtype=torch.uint8)
    label[0, 3, 2, 2] = 2
    shift = torch.zeros(3, 5, 5, 5)
    shift[0] = 1.0
    assert warped_label(label, shift, 3)[0].nonzero().tolist() == [[2, 2, 2]]


def test_a_label_map_of_other_classes_is_refused(phantoms, tmp_path):
    content = json.loads(phantoms.read_text())
    content["training"][0]["label"] = content["training"][0]["structures"]
    for section in ("training", "validation"):
        for case in content[section]:
            for key in ("image", "label", "brain_mask"):
                if key in case:
                    case[key] = str(phantoms.parent / case[key])
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(RuntimeError) as error:
        train("train", tmp_path / "other.json", tmp_path, output_dir=tmp_path / "out")
    sentences = []
    cause: BaseException | None = error.value
    while cause is not None:
        sentences.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    assert any("structures" in s and "expected only 0, 1, 2, 3" in s for s in sentences)
    assert not (tmp_path / "model.pt").exists()


def test_any_network_of_monai_can_take_the_place_of_the_segmenter(loss):
    """The trainer asks for nothing but image to logits."""
    trainer, *_ = trainer_of(loss, 1, 2)
    trainer.segmentation = UNet(3, 1, 3, (4, 8), (2,))
    trainer.optimizer = torch.optim.Adam(trainer.segmentation.parameters(), 1e-3)
    before = [p.clone() for p in trainer.segmentation.parameters()]
    trainer.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.segmentation.parameters(), strict=True))


def test_the_grid_of_the_field_is_voxels_first_axis_first():
    """A velocity along the first axis integrates to a displacement along it."""
    network = RegistrationNetwork(integration_steps=3)
    torch.nn.init.zeros_(network.flow.weight)
    with torch.no_grad():
        network.flow.bias.copy_(torch.tensor([0.5, 0.0, 0.0]))
    field = network(torch.rand(1, 2, *SIZE))
    expected = torch.zeros_like(field)
    expected[:, 0] = 0.5
    torch.testing.assert_close(field, expected)
    moved = voxel_grid(SIZE) + field[0]
    assert moved[0, 3, 0, 0].item() == pytest.approx(3.5)
