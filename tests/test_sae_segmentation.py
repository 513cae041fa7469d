"""The segmentation auto-encoder: its terms against hand-worked cases, networks, mixture of Gaussians, a training."""

from __future__ import annotations

import json
from itertools import product
from math import log
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import read_json
from ignite.engine import Engine, Events

from common.atlas import atlas_on_grid, icbm_atlas
from common.data import list_cases
from common.errors import InputError
from phantom.cohort import make_cohort
from running.workflow import Entry, run_configs
from sae_segmentation.augmentation import RandGreyValuesd
from sae_segmentation.em import AtlasMixture, AtlasOnly
from sae_segmentation.loss import (
    EvidenceLowerBound,
    markov_field,
    neighbor_sum,
    neighbor_table,
)
from sae_segmentation.mixture import fit_mixture
from sae_segmentation.network import ImageDecoder, SegmentationAutoencoder, SegmentationEncoder
from sae_segmentation.start import KeepBetter, StartAtClassMeans
from sae_segmentation.validation import MeanEvidence, SplitOutputd

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "sae_segmentation"

# --- Markov random field ---------------------------------------------------------------------------------------------


def neighbors_of(shape, place):
    """The 26 neighbors, those beyond the margin being the voxel of the margin."""
    for step in product((-1, 0, 1), repeat=3):
        if step != (0, 0, 0):
            yield tuple(min(max(p + s, 0), n - 1) for p, s, n in zip(place, step, shape, strict=True))


def test_the_neighbor_sum_leaves_the_voxel_itself_out():
    maps = torch.randn(2, 3, 4, 5, 3)
    found = neighbor_sum(maps)
    for place in product(range(4), range(5), range(3)):
        expected = sum(maps[(..., *other)] for other in neighbors_of((4, 5, 3), place))
        assert torch.allclose(found[(..., *place)], expected, atol=1e-4)


def test_the_table_counts_pairs():
    labels = torch.zeros(4, 3, 3, dtype=torch.int64)
    labels[2:] = 1
    # 18 voxels each. A voxel of class 0 beside class 1 (9 of them) has 9 neighbors there; the margin goes on.
    pairs = {(1, 0): 9 * 9, (0, 0): 18 * 26 - 81}
    table = neighbor_table(labels, 2)
    for (b, a), count in pairs.items():
        assert table[b, a].item() == pytest.approx(log((count + 1) / 20), abs=1e-5)
    assert neighbor_table(labels, 3)[2, 0].item() == pytest.approx(log(1 / 21), abs=1e-5)
    assert neighbor_table(torch.zeros(20, 20, 20, dtype=torch.int64), 2)[1, 0].item() == -7
    with pytest.raises(ValueError, match="labels are 0 to 1, expected 0 to 0"):
        neighbor_table(labels, 1)


def test_the_field_is_the_expected_energy_of_all_pairs():
    q, table = torch.rand(1, 3, 3, 4, 2).softmax(1), torch.randn(3, 3)
    found = markov_field(q, table)
    for place in product(range(3), range(4), range(2)):
        energy = 0.0
        for other in neighbors_of((3, 4, 2), place):
            for a, b in product(range(3), repeat=2):
                energy -= q[(0, a, *place)] * q[(0, b, *other)] * table[b, a]
        assert found[(0, *place)].item() == pytest.approx(energy.item(), abs=1e-4)


@pytest.mark.parametrize("one_sided", [False, True])
def test_the_gradient_of_the_field_is_that_of_its_terms(one_sided):
    """Of the sum written out, neighbors detached or not; weighted, since the loss looks at the brain only."""
    q = torch.rand(2, 3, 4, 3, 5, dtype=torch.float64).softmax(1).requires_grad_()
    table, weight = torch.randn(3, 3, dtype=torch.float64), torch.rand(2, 4, 3, 5, dtype=torch.float64)
    neighbors = neighbor_sum(q.detach() if one_sided else q)
    plain = -(1 + one_sided) * (q * torch.einsum("ba,nbxyz->naxyz", table, neighbors)).sum(1)
    found = markov_field(q, table, one_sided)
    assert torch.allclose(found, plain)
    expected, gradient = (torch.autograd.grad((weight * energy).sum(), q)[0] for energy in (plain, found))
    assert torch.allclose(gradient, expected)


def test_one_sided_is_twice_the_term_without_the_gradient_of_the_neighbors():
    logits, table = torch.randn(1, 3, 4, 4, 4, requires_grad=True), torch.randn(3, 3)
    symmetric = (table + table.T) / 2
    two, one = (
        torch.autograd.grad(markov_field(logits.softmax(1), symmetric, one_sided).sum(), logits)[0]
        for one_sided in (False, True)
    )
    # of a symmetric table both ends give the same gradient, away from the margin, which repeats its voxels
    inside = (..., slice(1, 3), slice(1, 3), slice(1, 3))
    assert torch.allclose(two[inside], one[inside], atol=1e-4)
    q = logits.softmax(1)
    assert markov_field(q, table, True).sum().item() == pytest.approx(2 * markov_field(q, table).sum().item(), rel=1e-5)


# --- evidence lower bound --------------------------------------------------------------------------------------------


def bound_of(loss, q, prior, image, decoded):
    """Loss of one class distribution everywhere."""
    size = (1, 1, 4, 4, 4)
    volume = lambda values: torch.tensor(values).view(1, -1, 1, 1, 1).expand(1, len(values), 4, 4, 4)  # noqa: E731
    output = torch.cat([volume(q).log(), volume(q), torch.full(size, decoded)], 1)
    return loss(output, torch.cat([torch.full(size, image), volume(prior)], 1)).item()


def test_the_bound_by_hand():
    loss = EvidenceLowerBound(3, variance_floor=0.04).eval()
    q, prior = [1e-9, 0.75, 0.25], [0.0, 0.5, 0.5]
    kl = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert bound_of(loss, q, prior, 0.5, 0.5) == pytest.approx(kl + 0.5 * log(0.04), abs=1e-4)
    assert bound_of(loss, q, prior, 0.5, 0.3) == pytest.approx(kl + 0.5 + 0.5 * log(0.04), abs=1e-4)
    table = [[0.0, 0, 0], [0, 1, -2], [0, -2, 1]]
    field = EvidenceLowerBound(3, table, beta=0.01, variance_floor=0.04).eval()
    energy = -26 * (0.75**2 + 0.25**2 - 2 * 2 * 0.75 * 0.25)
    assert bound_of(field, q, prior, 0.5, 0.5) == pytest.approx(kl + 0.5 * log(0.04) + 0.01 * energy, abs=1e-4)
    with pytest.raises(InputError, match="neighbors is a table of 2 rows of 3, expected 3 x 3, a row for every class"):
        EvidenceLowerBound(3, [[0.0] * 3] * 2)


def test_what_lies_outside_the_brain_does_not_count():
    loss = EvidenceLowerBound(2).eval()
    output, scan = torch.randn(1, 5, 4, 4, 4), torch.rand(1, 3, 4, 4, 4)
    scan[:, 1], scan[:, 2] = 0, 1
    scan[:, 1, 2:], scan[:, 2, 2:] = 1, 0  # background
    before = loss(output, scan)
    output[:, :, 2:] += 3
    assert loss(output, scan).item() == pytest.approx(before.item())
    scan[:, 1:, 2:] = 0  # padding
    assert loss(output, scan).item() == pytest.approx(before.item())


def test_the_variance_is_that_of_the_latest_steps_and_counts_after_the_warmup():
    loss = EvidenceLowerBound(2, warmup=3, memory=3, variance_floor=1e-6).train()
    q = prior = [1e-9, 1.0]
    early = [bound_of(loss, q, prior, 0.5, 0.5 + e) for e in (0.1, 0.2, 0.3)]
    assert early == pytest.approx([0, 0, 0], abs=1e-4)
    assert loss.variance[1].item() == pytest.approx((0.01 + 0.04 + 0.09) / 3, rel=1e-4)
    late = bound_of(loss, q, prior, 0.5, 0.6)
    variance = 0.75 * 0.14 / 3 + 0.25 * 0.01
    assert loss.variance[1].item() == pytest.approx(variance, rel=1e-4)
    assert late == pytest.approx(0.01 / (2 * variance) + 0.5 * log(variance), rel=1e-3)
    loss.eval()
    bound_of(loss, q, prior, 0.5, 0.9)
    assert loss.variance[1].item() == pytest.approx(variance, rel=1e-4)
    assert set(loss.state_dict()) == {"errors", "voxels", "steps"}  # a resumed training goes on with them


@pytest.mark.parametrize(("class_variance", "expected"), [(True, [0.01, 0.16]), (False, [0.06, 0.06])])
def test_every_class_has_its_own_variance_or_all_have_one(class_variance, expected):
    loss = EvidenceLowerBound(2, class_variance=class_variance, warmup=1).train()
    sample = torch.zeros(1, 2, 3, 1, 1)
    sample[0, 0, :2], sample[0, 1, 2:] = 1, 1  # two voxels of the first class, one of the second
    error = torch.tensor([0.1, 0.1, 0.4]).view(1, 1, 3, 1, 1)
    scan = torch.cat([error, torch.full((1, 2, 3, 1, 1), 0.5)], 1)  # decoded is 0
    loss(torch.cat([torch.zeros(1, 2, 3, 1, 1), sample, 0 * error], 1), scan)
    assert loss.variance.tolist() == pytest.approx(expected, rel=1e-4)
    found = loss.eval()(torch.cat([torch.zeros(1, 2, 3, 1, 1), sample, 0 * error], 1), scan).item()
    terms = [0.5 * (e**2 / v + log(v)) for e, v in zip((0.1, 0.1, 0.4), (expected[0], *expected), strict=True)]
    assert found == pytest.approx(sum(terms) / 3, abs=1e-4)  # q is the prior


def test_two_images_of_a_scan_share_a_variance_and_count_twice():
    """One class, off by 0.2 in one image and by nothing in the other."""
    loss = EvidenceLowerBound(2, warmup=0).train()
    volume = lambda *values: torch.tensor(values).view(1, -1, 1, 1, 1).expand(1, len(values), 3, 3, 3)  # noqa: E731
    found = loss(volume(-20.0, 0.0, 0.0, 1.0, 0.5, 0.7), volume(0.5, 0.5, 0.0, 1.0))
    assert loss.variance[1].item() == pytest.approx(0.04 / 2)
    assert found.item() == pytest.approx(0.5 * (0.04 / 0.02 + 2 * log(0.02)), abs=1e-4)


def test_the_config_saves_the_variances_with_a_training():
    handlers = read_json(BUNDLE / "configs" / "train.json")["train"]["handlers"]
    (state,) = (handler for handler in handlers if handler["_target_"].endswith("TrainingState"))
    assert state["objects"]["loss"] == "@loss"


def test_the_loss_of_a_segmentation_is_that_with_the_best_decoder():
    """Two classes of two voxels each, one wrong: means and variances by hand; nothing of a decoder, nothing outside."""
    loss = EvidenceLowerBound(3, variance_floor=1e-6)
    image = torch.tensor([0.1, 0.3, 0.6, 0.8, 9.0]).view(1, 1, 5, 1, 1)
    prior = torch.tensor([[0.0, 0.5, 0.5]] * 4 + [[1.0, 0.0, 0.0]]).T.view(1, 3, 5, 1, 1)
    scan = torch.cat([image, prior], 1)

    def found(*labels):
        q = torch.nn.functional.one_hot(torch.tensor(labels), 3).T.view(1, 3, 5, 1, 1).float()
        return loss.of_segmentation(100 * q, scan).item()

    # sure of one class of two: log 2; then half of 1 + the mean logarithm of both variances
    right = log(2) + 0.5 + 0.5 * log(0.01)
    assert found(1, 1, 2, 2, 0) == pytest.approx(right, abs=1e-4)
    assert found(2, 2, 1, 1, 2) == pytest.approx(right, abs=1e-4)  # intensities have no names
    assert found(1, 2, 1, 2, 0) == pytest.approx(log(2) + 0.5 + 0.5 * log(0.0625), abs=1e-4)
    assert found(1, 1, 1, 1, 0) == pytest.approx(log(2) + 0.5 + 0.5 * log(0.0725), abs=1e-4)  # a class is lost


def test_validation_reports_the_mean_evidence_and_changes_nothing():
    loss = EvidenceLowerBound(2).train()
    metric = MeanEvidence(loss)
    pairs = [(torch.randn(5, 4, 4, 4), torch.rand(3, 4, 4, 4)) for _ in range(3)]
    for output, scan in pairs:
        metric.update(([output], [scan]))
    assert loss.training
    assert loss.steps == 0
    loss.eval()
    assert metric.compute() == pytest.approx(-np.mean([loss(o[None], s[None]).item() for o, s in pairs]), rel=1e-5)


def test_a_training_that_diverges_is_not_left_out_of_the_mean():
    metric = MeanEvidence(EvidenceLowerBound(2))
    with pytest.raises(InputError, match="the evidence of a validation scan is nan, expected a number"):
        metric.update(([torch.full((5, 4, 4, 4), float("nan"))], [torch.rand(3, 4, 4, 4)]))


def test_the_output_is_split_for_the_pictures():
    output = torch.arange(9.0)[:, None, None, None].expand(9, 2, 2, 2)
    parts = SplitOutputd("pred", classes=4)({"pred": output})
    assert parts["segmentation"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert parts["reconstruction"][:, 0, 0, 0].tolist() == [8]
    assert parts["pred"] is output


# --- other scanners --------------------------------------------------------------------------------------------------


def test_drawn_gray_values_rise_with_those_of_the_scan_and_leave_the_prior_alone():
    scan = torch.rand(5, 12, 10, 8, generator=torch.manual_seed(0))
    scan[0, :3] = 0  # outside of the brain
    vary = RandGreyValuesd("image", bias=0.0).set_random_state(seed=1)
    for _ in range(5):
        found = vary({"image": scan})["image"]
        assert torch.equal(found[1:], scan[1:])
        assert torch.equal(found[0] == 0, scan[0] == 0)
        order = scan[0].flatten().argsort()
        assert (found[0].flatten()[order].diff() >= 0).all()
        assert 0.01 < (found[0] - scan[0]).abs().max() < 0.25
        assert found.max() <= 1
    smooth = RandGreyValuesd("image", curve=0.0, gain=0.0, bias=0.1).set_random_state(seed=1)
    flat = torch.full((1, 9, 9, 9), 0.5)
    field = smooth({"image": flat})["image"][0] / 0.5
    assert field[4, 4, 4].item() == pytest.approx(1, abs=1e-5)  # of the middle of the patch
    assert field.std() > 0.02
    assert (field.log().diff(n=3, dim=0).abs() < 1e-4).all()  # a parabola
    assert RandGreyValuesd("image", prob=0.0)({"image": scan})["image"] is scan


# --- networks --------------------------------------------------------------------------------------------------------


def scan_with_prior(seed=0, images=1, classes=4):
    generator = torch.manual_seed(seed)
    prior = torch.rand(2, classes, 16, 16, 16, generator=generator).softmax(1)
    return torch.cat([torch.rand(2, images, 16, 16, 16, generator=generator), prior], 1)


def test_the_training_begins_at_the_atlas():
    scan = scan_with_prior()
    assert torch.allclose(SegmentationEncoder()(scan).softmax(1), scan[:, 1:], atol=1e-4)


def test_sizes_and_channels_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="the scan has 4 channels, expected 5"):
        SegmentationEncoder()(torch.zeros(1, 4, 16, 16, 16))
    with pytest.raises(InputError, match="a size of the scan is 24, expected a multiple of 16"):
        SegmentationEncoder()(torch.zeros(1, 5, 16, 24, 16))


def test_what_is_decoded_is_a_sample_of_one_class_and_the_same_one_in_every_validation():
    class Sum(torch.nn.Module):
        def forward(self, segmentation):
            self.seen = segmentation
            return segmentation.sum(1, keepdim=True)

    decoder = Sum()
    network = SegmentationAutoencoder(SegmentationEncoder(), decoder)
    scan = scan_with_prior()
    seen = []
    for mode in (network.train, network.train, network.eval, network.eval):
        out = mode()(scan)
        assert out.shape == (2, 9, 16, 16, 16)
        assert torch.equal(out[:, 4:8], decoder.seen)
        assert set(decoder.seen.unique().tolist()) <= {0.0, 1.0}
        assert (decoder.seen.sum(1) == 1).all()
        shares = decoder.seen.mean((0, 2, 3, 4))
        assert torch.allclose(shares, scan[:, 1:].mean((0, 2, 3, 4)), atol=0.03)  # drawn from q, here the atlas
        seen.append(decoder.seen)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    network.train()(scan).sum().backward()
    assert network.encoder.output.weight.grad is not None


def test_a_class_is_drawn_as_often_as_it_is_probable():
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1]).view(1, 4, 1, 1, 1).expand(1, 4, 16, 16, 16)
    network = SegmentationAutoencoder(SegmentationEncoder(), ImageDecoder())
    for mode in (network.train, network.eval):
        drawn = mode()(torch.cat([torch.zeros(1, 1, 16, 16, 16), prior], 1))[:, 4:8]
        torch.testing.assert_close(drawn.mean((0, 2, 3, 4)), prior[0, :, 0, 0, 0], atol=0.03, rtol=0)


def test_the_decoder_gives_a_uniform_region_one_value_between_0_and_1():
    image = ImageDecoder(3)(torch.eye(3)[:1].view(1, 3, 1, 1, 1).expand(1, 3, 6, 6, 6))
    inside = image[..., 1:-1, 1:-1, 1:-1]
    assert inside.max() - inside.min() < 1e-6
    assert 0 < inside.mean() < 1


def test_the_start_is_the_expectation_step_of_a_mixture(tmp_path):
    """Class means and variances under the atlas; then the encoder is Bayes' rule and the decoder gives the means."""
    scan = scan_with_prior()
    network = SegmentationAutoencoder(SegmentationEncoder(), ImageDecoder())
    StartAtClassMeans(network, [{"image": scan[:1]}, {"image": scan[1:]}])(Engine(lambda engine, batch: None))
    image, prior = scan[:, 0].flatten(), scan[:, 1:].movedim(1, 0).flatten(1)
    mean = (prior @ image) / prior.sum(1)
    variance = (prior @ image.square()) / prior.sum(1) - mean.square()
    likelihood = torch.exp(-0.5 * (image - mean[:, None]) ** 2 / variance[:, None]) / variance[:, None].sqrt()
    expected = prior * likelihood / (prior * likelihood).sum(0)
    found = network.encoder(scan).softmax(1).movedim(1, 0).flatten(1)
    assert torch.allclose(found, expected, atol=1e-4)
    uniform = torch.eye(4)[:, :, None, None, None].expand(4, 4, 5, 5, 5)
    assert torch.allclose(network.decoder(uniform)[:, 0, 2, 2, 2], mean, atol=1e-4)
    before = network.encoder.intensity.clone()
    StartAtClassMeans(network, [{"image": scan + 0.1}], encoder_too=False)(Engine(lambda engine, batch: None))
    assert torch.equal(network.encoder.intensity, before)
    assert (network.decoder(uniform)[:, 0, 2, 2, 2] > mean + 0.05).all()


@pytest.mark.parametrize("spoiled", [False, True])
def test_weights_that_a_training_has_spoiled_are_replaced_by_those_of_before(tmp_path, spoiled):
    scan = scan_with_prior()
    scan[:, 0] = scan[:, 1:].argmax(1) * 0.25
    network = SegmentationAutoencoder(SegmentationEncoder(), ImageDecoder())
    paths = tmp_path / "model.pt", tmp_path / "decoder.pt"
    guard = KeepBetter(network, EvidenceLowerBound(4), [{"image": scan}], *paths)
    trainer = Engine(lambda engine, batch: None)
    StartAtClassMeans(network, [{"image": scan}]).attach(trainer)
    guard.attach(trainer)
    states = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def train(engine):
        states.append({key: value.clone() for key, value in network.state_dict().items()})
        with torch.no_grad():
            if spoiled:
                network.encoder.output.bias[3] = -40  # the class vanishes
            else:
                StartAtClassMeans(network, [{"image": scan}])(engine)  # one more step of the mixture
        states.append({key: value.clone() for key, value in network.state_dict().items()})
        for path, part in zip(paths, (network.encoder, network.decoder), strict=True):
            torch.save(part.state_dict(), path)

    trainer.run([0])
    expected = states[0] if spoiled else states[1]
    found = {f"encoder.{key}": value for key, value in torch.load(paths[0], weights_only=True).items()}
    found |= {f"decoder.{key}": value for key, value in torch.load(paths[1], weights_only=True).items()}
    assert any(not torch.equal(states[0][key], states[1][key]) for key in expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value)
        assert torch.equal(network.state_dict()[key], value)


# --- mixture of Gaussians --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("means", [(0.2, 0.5, 0.8), (0.9, 0.2, 0.55)])
def test_the_mixture_finds_classes_whose_intensities_it_was_never_told(means):
    generator = torch.manual_seed(0)
    truth = torch.randint(0, 3, (1, 20, 20, 20), generator=generator)
    truth[:, :10] = 1
    image = torch.tensor(means)[truth] + 0.05 * torch.randn(truth.shape, generator=generator)
    prior = torch.nn.functional.one_hot(truth, 3).movedim(-1, 1).float() * 0.4 + 0.2  # right, but not sure
    scan = torch.cat([image[None].movedim(0, 1), torch.zeros(1, 1, 20, 20, 20), prior], 1)
    scan[..., 0] = torch.tensor([0.0, 1, 0, 0, 0]).view(1, 5, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = AtlasMixture(4)(scan)[..., 1:]
    found = AtlasMixture(4)(scan)[..., 1:]
    assert torch.equal(found, rough)
    assert (found.argmax(1) == truth[..., 1:] + 1).float().mean() > 0.98
    assert AtlasMixture(4)(scan)[..., 0].argmax(1).max() == 0
    assert AtlasOnly(4)(scan).softmax(1).allclose(scan[:, 1:], atol=1e-4)


def test_the_mixture_of_a_large_scan_has_the_means_and_variances_of_its_classes():
    truth = torch.arange(1_500_000) % 2
    noise = torch.randn(len(truth), generator=torch.Generator().manual_seed(1))
    values = torch.where(truth == 1, 0.9, 0.6) + 0.04 * noise
    sure = torch.log(torch.nn.functional.one_hot(truth).float() + 1e-30)
    mean, posterior = fit_mixture(values[:, None], sure)
    classes = [values[truth == k].numpy().astype(np.float64) for k in (0, 1)]
    assert mean[:, 0].tolist() == pytest.approx([x.mean() for x in classes], rel=1e-7)
    # of the most probable value only the variance remains
    peaks = [posterior[truth == k, k].max().item() for k in (0, 1)]
    assert peaks == pytest.approx([-0.5 * np.log(x.var()) for x in classes], abs=1e-5)


# --- the bundle ------------------------------------------------------------------------------------------------------


def test_the_table_in_the_config_is_the_one_it_says():
    config = read_json(BUNDLE / "configs" / "train.json")
    found = neighbor_table(icbm_atlas().probabilities.argmax(0), 4)
    assert torch.allclose(found, torch.tensor(config["neighbors"]), atol=2e-3)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Healthy phantoms of 4 mm, of three contrasts, with tissues as labels."""
    folder = tmp_path_factory.mktemp("cohort")
    make_cohort(folder, {"healthy": (4, 1, 1)}, spacing=4.0, sequences=("T1w", "T2w", "FLAIR"), seed=5, label="tissues")
    return folder / "datalist.json"


TINY = {"spacing": [4.0, 4.0, 4.0], "device": "cpu"}


@pytest.fixture(scope="module")
def brain(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """Folder of one small T1w of the template, scan.nii.gz, and the atlas on its grid, (X, Y, Z, 4)."""
    folder = tmp_path_factory.mktemp("brain")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-84, -120, -76)
    prior = atlas_on_grid(icbm_atlas(), np.eye(4), (42, 52, 44), affine)
    image = torch.where(prior[0] < 0.5, torch.tensor([0.2, 0.6, 1.0])[prior[1:].argmax(0)], 0)
    nib.save(nib.Nifti1Image(image.numpy(), affine), folder / "scan.nii.gz")
    return folder, np.moveaxis(prior.numpy(), 0, -1)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("class empty", "atlas.nii.gz: class 2 is 0 everywhere, expected a probability above 0 somewhere"),
        ("sums", "atlas.nii.gz: the sum over 4 classes differs from 1 by up to 0.5"),
        ("classes of the atlas", "atlas.nii.gz has 3 classes with background, expected 4 as the network"),
        ("classes of the weights", "does not fit SegmentationEncoder"),
        ("far away", "scan.nii.gz: its brain and the atlas have a Dice of 0.00, expected 0.7 or more"),
        ("constant", "constant.nii.gz: channel 0 is 1 everywhere in the brain, expected contrast"),
    ],
)
def test_input_that_cannot_be_used_is_named(monai_bundle, brain, tmp_path, what, sentence):
    folder, prior = brain
    scan = nib.load(folder / "scan.nii.gz")
    maps, affine, options, image = prior.copy(), scan.affine.copy(), {}, "scan.nii.gz"
    if what == "class empty":
        maps[..., 3], maps[..., 2] = maps[..., 3] + maps[..., 2], 0
    elif what == "sums":
        maps *= 0.5
    elif what == "classes of the atlas":
        maps = np.stack([maps[..., 0], maps[..., 1], maps[..., 2] + maps[..., 3]], axis=-1)
    elif what == "classes of the weights":
        maps = np.concatenate([maps[..., :3], maps[..., 3:] / 2, maps[..., 3:] / 2], axis=-1)
        options["classes"] = 5
    elif what == "far away":
        affine[:3, 3] += 300
        options["align"] = False
    elif what == "constant":
        image = "constant.nii.gz"
        nib.save(nib.Nifti1Image((np.asarray(scan.dataobj) > 0).astype(np.float32), scan.affine), folder / image)
    nib.save(nib.Nifti1Image(maps, affine), tmp_path / "atlas.nii.gz")
    (tmp_path / "cases.json").write_text(json.dumps([{"image": str(folder / image)}]))
    options |= {"datalist_file": tmp_path / "cases.json", "atlas_files": tmp_path / "atlas.nii.gz"}
    options |= {"output_dir": tmp_path / "out", "spacing": [4, 4, 4], "device": "cpu"}
    flags = [word for key, value in options.items() for word in (f"--{key}", value)]
    done = monai_bundle("run", "--config_file", "bundles/sae_segmentation/configs/inference.json", *flags)
    assert done.code != 0, done.output[-3000:]
    assert len(done.errors) == 1, done.output[-3000:]
    assert sentence in done.errors[0]
    assert not any((tmp_path / "out").glob("*"))


def dice_of(datalist: Path, output: Path, sequence: str) -> list[float]:
    (case,) = list_cases(datalist_file=datalist, section="test", sequences=[sequence], require=["label"])
    seg, truth = (np.asarray(nib.load(path).dataobj) for path in (output / f"{case['name']}_seg.nii.gz", case["label"]))
    return [2 * ((seg == k) & (truth == k)).sum() / ((seg == k).sum() + (truth == k).sum()) for k in (2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("sequence", ["T1w", "T2w", "FLAIR"])
def test_scans_of_any_contrast_teach_more_than_the_atlas_knows(cohort, tmp_path, sequence):
    options = {"datalist_file": cohort, "sequences": [sequence], **TINY}
    run_configs(
        BUNDLE,
        "train",
        output_dir=tmp_path / "train",
        ckpt_dir=tmp_path / "models",
        patch_size=[32, 32, 32],
        patches_per_volume=1,
        max_epochs=40,
        val_interval=40,
        **options,
    )
    assert (tmp_path / "models" / "decoder.pt").is_file()
    assert len(list((tmp_path / "train" / "pictures").glob("*/*.png"))) == 2
    weights = {
        "_target_": "common.engines.LoadWeights",
        "path": str(tmp_path / "models" / "model.pt"),
        "network": "@network",
    }
    run_configs(
        BUNDLE,
        ["inference", "evaluate"],
        section="test",
        handlers=Entry([weights]),
        save_entropy=True,
        output_dir=tmp_path / "sae",
        **options,
    )
    assert (tmp_path / "sae" / "report.html").is_file()
    for layer in ("inference_atlas", "inference_em"):
        run_configs(
            BUNDLE, ["inference", layer], output_dir=tmp_path / layer, **{"datalist#section": "test"}, **options
        )
    atlas, em, sae = (
        np.mean(dice_of(cohort, tmp_path / name, sequence)) for name in ("inference_atlas", "inference_em", "sae")
    )
    assert sae > atlas + 0.02
    assert em > atlas


@pytest.mark.slow
def test_white_matter_stays_where_gray_values_are_others_before_and_after_a_fit(cohort, tmp_path):
    """A head with the gray values of no scanner: the shipped weights know its tissues, and adapt.json leaves them."""
    (case,) = list_cases(datalist_file=cohort, section="test", sequences=["T1w"], require=["label"])
    scan = nib.load(case["image"])
    values = np.asarray(scan.dataobj, dtype=np.float32)
    changed = tmp_path / "changed.nii.gz"
    nib.save(nib.Nifti1Image(values.max() * (values / values.max()) ** 0.4, scan.affine), changed)
    files = {"image": str(changed), "label": case["label"], "brain_mask": case["brain_mask"]}
    datalist = tmp_path / "cases.json"
    datalist.write_text(json.dumps({"test": [files]}))
    options = {"datalist_file": datalist, **TINY}
    adapted = tmp_path / "adapted"
    training = {"patch_size": [32, 32, 32], "patches_per_volume": 1, "max_epochs": 10, "val_interval": 10}
    shipped = BUNDLE / "models" / "model.pt"
    run_configs(BUNDLE, ["train", "adapt"], output_dir=adapted, initial_weights=shipped, **training, **options)
    scores = {}
    for name, weights in (("shipped", shipped), ("adapted", adapted / "model.pt")):
        run_configs(BUNDLE, "inference", output_dir=tmp_path / name, weights=weights, **options)
        scores[name] = dice_of(datalist, tmp_path / name, "T1w")
    assert min(scores["shipped"]) > 0.7
    assert min(scores["adapted"]) > min(scores["shipped"]) - 0.03
