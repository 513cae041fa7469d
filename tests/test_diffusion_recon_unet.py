"""Diffusion and U-Net: noise, networks, anomalies and scores against hand-worked cases, a training, what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import make_head, network, save_nifti, weights
from monai.data import MetaTensor
from monai.networks.schedulers import DDPMScheduler

from common.atlas import icbm_maps
from common.data import BrainSlices
from common.engines import LoadWeights
from common.errors import InputError, find_input_error
from diffusion_recon_unet.anomalies import (
    OPERATIONS,
    AnomalyPainter,
    RandSyntheticAnomalyd,
    SyntheticAnomaliesd,
    perlin_noise,
)
from diffusion_recon_unet.cases import EmptyLabeld, RandSlicesd, anomaly_cases
from diffusion_recon_unet.healthy import AlignToTemplated, DarknessScored, GatherHealthyd, mean_and_sd, read_healthy
from diffusion_recon_unet.inferer import NoisyInferer, VolumeInferer
from diffusion_recon_unet.loss import AnomalyLoss
from diffusion_recon_unet.network import AnomalyNetwork, ConditionedDiffusion, DenoisingAutoencoder, SharedEncoderUNet
from diffusion_recon_unet.noise import FractalNoise
from diffusion_recon_unet.scores import (
    FuseLogitsd,
    FuseScoresd,
    SplitPredictiond,
    StructuralDeviationd,
    structural_deviation,
)
from diffusion_recon_unet.statistics import (
    CheckStatisticsd,
    CheckVolumed,
    SaveStatistics,
    brain_quantiles,
    depth_contrast,
)
from running.workflow import run_configs

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "diffusion_recon_unet"
SMALL_DIFFUSION = {"channels": (8, 8), "norm_num_groups": 4, "num_head_channels": 8, "encoder_channels": (4, 4, 8, 8)}
SMALL_DIFFUSION |= {"condition_channels": 8}


class Run:
    def __init__(self):
        self.state = type("State", (), {"rank": 0})()


@pytest.fixture
def rng():
    return np.random.RandomState(0)


# --- noise -----------------------------------------------------------------------------------------------------------


def test_noise_has_the_deviation_it_is_given_and_fields_differ_in_brightness():
    fields = FractalNoise(standard_deviation=0.7)(300, (64, 64), generator=torch.Generator().manual_seed(0))
    assert fields.std().item() == pytest.approx(0.7, rel=0.1)
    assert fields.mean().item() == pytest.approx(0, abs=0.1)
    assert 0.2 < fields.mean(dim=(1, 2)).std() < 0.6  # the lowest octave spans the image


def test_one_octave_alone_has_the_deviation_it_is_given():
    """Many cells of a lattice leave little to chance: what interpolation takes from the numbers is made up for."""
    fields = FractalNoise(octaves=1, feature_size=4, standard_deviation=0.7)(
        60, (64, 64), generator=torch.Generator().manual_seed(0)
    )
    assert fields.std().item() == pytest.approx(0.7, rel=0.02)


def test_octaves_have_scales_and_amplitudes_in_proportion():
    """One octave of period p is smooth over p pixels; the next one has half the period and 0.8 of the amplitude."""
    noise = FractalNoise(octaves=2, persistence=0.8, feature_size=16)
    assert noise.periods == [16, 8]
    assert noise.amplitudes[1] == pytest.approx(0.8 * noise.amplitudes[0])
    coarse, fine = (FractalNoise(octaves=1, feature_size=size) for size in (32, 4))
    step = [noise(50, (32, 32)).diff(dim=2).abs().mean() for noise in (coarse, fine)]
    assert step[1] > 5 * step[0]


def test_normalized_noise_and_seeds():
    field = FractalNoise(normalize=True)(3, (32, 32))
    torch.testing.assert_close(field.mean(dim=(1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(field.std(dim=(1, 2)), torch.ones(3))
    first, same, other = (FractalNoise()(1, (16, 16), generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.equal(same)
    assert not first.equal(other)


def test_octaves_finer_than_a_pixel_are_refused():
    with pytest.raises(InputError, match="octaves is 6 with feature_size 16"):
        FractalNoise(octaves=6, feature_size=16)


# --- networks --------------------------------------------------------------------------------------------------------


def test_the_slice_is_mixed_with_noise_as_in_the_diffusion_process():
    """MONAI's own scheduler adds the same noise: checked at what reaches the denoiser."""
    diffusion = ConditionedDiffusion(**SMALL_DIFFUSION).eval()
    seen = []
    diffusion.denoiser.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
    image, noise, level = torch.rand(2, 1, 16, 16), torch.randn(2, 1, 16, 16), torch.tensor([[100], [700]])
    diffusion(torch.cat([image, noise], 1), level)
    scheduler = DDPMScheduler(1000, schedule="cosine")
    torch.testing.assert_close(seen[0], scheduler.add_noise(2 * image - 1, noise, level[:, 0]))
    # the shares that the paper's levels leave of the slice
    torch.testing.assert_close(diffusion.kept[diffusion.levels], torch.tensor([0.85, 0.49, 0.14]), atol=0.01, rtol=0)


def trained(module: torch.nn.Module) -> torch.nn.Module:
    """Layers that begin as 0 would hide what reaches them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if not parameter.any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def test_levels_are_independent_and_the_code_of_the_slice_is_used():
    diffusion = trained(ConditionedDiffusion(**SMALL_DIFFUSION))
    x = torch.rand(2, 4, 16, 16)
    with torch.no_grad():
        every = diffusion(x)
        for number, level in enumerate((249, 499, 749)):
            alone = diffusion(x[:, [0, number + 1]], torch.full((2, 1), level))
            torch.testing.assert_close(every[:, number], alone[:, 0], atol=1e-5, rtol=1e-4)
        diffusion.encoder.fc.bias += 1
        assert not torch.allclose(diffusion(x), every)


def test_the_denoising_autoencoder_sees_noise_in_training_only():
    light = DenoisingAutoencoder((8, 8, 8, 8, 8, 8))
    x = torch.rand(2, 2, 32, 32)
    other = torch.cat([x[:, :1], torch.rand(2, 1, 32, 32)], 1)
    assert not torch.allclose(light(x), light(other))
    assert torch.equal(light.eval()(x), light(other))


def test_the_unet_sees_image_and_residual():
    unet = SharedEncoderUNet((8, 16)).eval()
    image, reconstructions = torch.rand(2, 1, 8, 8), torch.rand(2, 3, 8, 8)
    found = unet(image, reconstructions)
    assert found.shape == (2, 3, 8, 8)
    torch.testing.assert_close(unet(image, reconstructions[:, 1:2]), found[:, 1:2])
    # the residual enters by its sign too
    assert not torch.allclose(unet(image, 2 * image - reconstructions), found)
    plain = SharedEncoderUNet((8, 16), residual=False).eval()
    assert torch.equal(plain(image, reconstructions), plain(image, 1 - reconstructions))
    assert unet.encoder is not unet.decoder
    with pytest.raises(ValueError, match="expected two levels or more"):
        SharedEncoderUNet((8,))


def test_filters_are_standardized():
    """A filter times a number, plus a number, gives the same."""
    unet = SharedEncoderUNet((8, 16)).eval()
    image, reconstructions = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8)
    before = unet(image, reconstructions)
    unet.encoder[0][0].weight.data.mul_(3).add_(1)
    torch.testing.assert_close(unet(image, reconstructions), before, atol=1e-4, rtol=1e-3)


def test_the_logit_is_that_of_the_mean_probability():
    made = AnomalyNetwork(trained(ConditionedDiffusion(**SMALL_DIFFUSION)), SharedEncoderUNet((8, 16))).eval()
    x = torch.rand(2, 4, 16, 16)
    with torch.no_grad():
        found = made(x)
        reconstructions = made.reconstruction(x)
        logits = made.segmentation(x[:, :1], reconstructions)
    torch.testing.assert_close(found[:, 0], reconstructions.mean(1))
    torch.testing.assert_close(found[:, 1].sigmoid(), logits.sigmoid().mean(1))


def test_stage_1_is_frozen():
    """Its batch normalization too: neither a training step nor train() changes anything in it."""
    made = AnomalyNetwork(ConditionedDiffusion(**SMALL_DIFFUSION), SharedEncoderUNet((8, 16)))
    before = {key: value.clone() for key, value in made.reconstruction.state_dict().items()}
    made.train()
    assert made.segmentation.training
    assert not any(module.training for module in made.reconstruction.modules())
    optimizer = torch.optim.SGD(made.parameters(), lr=1)
    NoisyInferer(FractalNoise())(torch.rand(4, 1, 16, 16), made)[:, 1].mean().backward()
    optimizer.step()
    assert [key for key, value in made.reconstruction.state_dict().items() if not value.equal(before[key])] == []
    assert all(parameter.grad is not None for parameter in made.segmentation.parameters())


def test_the_loss_looks_at_the_logit_and_adds_dice():
    outputs, label = torch.zeros(1, 2, 2, 2, requires_grad=True), torch.tensor([[[[1.0, 0], [0, 0]]]])
    loss = AnomalyLoss(dice_weight=0)(outputs, label)
    assert loss.item() == pytest.approx(np.log(2))
    loss.backward()
    assert not outputs.grad[:, 0].any()
    # half of everything: 1 - 2 * 0.5 / (4 * 0.5 + 1)
    assert AnomalyLoss(dice_weight=2)(outputs, label).item() == pytest.approx(np.log(2) + 2 * (2 / 3), abs=1e-4)
    with pytest.raises(ValueError, match="do not fit"):
        AnomalyLoss()(outputs, label[..., :1])


# --- inference over volumes ------------------------------------------------------------------------------------------


def test_every_slice_with_brain_is_seen_once_whatever_the_batch():
    calls = []

    def two_outputs(x):
        calls.append(len(x))
        return torch.cat([x[:, :1], x[:, 1:].sum(1, keepdim=True)], 1)

    volume = torch.zeros(1, 1, 16, 16, 7)
    volume[..., 1:6] = torch.rand(1, 1, 16, 16, 5)
    found = VolumeInferer(FractalNoise(), sw_batch_size=2)(volume, two_outputs)
    assert calls == [2, 2, 1]
    assert found.shape == (1, 2, 16, 16, 7)
    torch.testing.assert_close(found[:, :1], volume)
    assert found[:, 1, ..., [0, 6]].eq(-20).all()
    assert found.equal(VolumeInferer(FractalNoise(), sw_batch_size=16)(volume, two_outputs))
    assert not found.equal(VolumeInferer(FractalNoise(), seed=1)(volume, two_outputs))
    noise = found[0, 1, ..., 1:6]
    assert not noise[..., 0].allclose(noise[..., 1])  # every slice has noise of its own
    with pytest.raises(ValueError, match="the network has 1 outputs, expected 2"):
        VolumeInferer(FractalNoise())(volume, lambda x: x[:, :1])


def test_noise_levels_are_drawn_from_the_range():
    levels = []

    def note(x, timesteps):
        levels.append(timesteps)
        assert x.shape == (200, 2, 8, 8)
        return x

    NoisyInferer(FractalNoise(octaves=1, feature_size=8), (200, 800))(torch.rand(200, 1, 8, 8), note)
    assert levels[0].shape == (200, 1)
    assert levels[0].min() >= 200
    assert levels[0].max() < 800
    assert len(levels[0].unique()) > 100


# --- synthetic anomalies ---------------------------------------------------------------------------------------------


def test_perlin_noise_is_0_at_the_lattice_and_smooth(rng):
    noise = perlin_noise((65, 65), (4, 4), rng)
    assert noise.shape == (65, 65)
    assert np.abs(noise).max() < 1.1
    assert 0.15 < noise.std() < 0.5
    assert np.abs(np.diff(noise, axis=0)).max() < 0.4
    # at the middle of a pixel that lies on a lattice point: 0.5 / 65 * 4 is not on one, but 32.5 / 65 * 4 = 2 is
    assert noise[32, 32] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_on_gray_values_stay_in_their_range(name, rng):
    image = rng.uniform(size=(8, 8))
    found = OPERATIONS[name](image, rng)
    assert found.shape == image.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert not np.array_equal(found, image)


def disc(size: int = 48) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    return np.where(x**2 + y**2 < 0.8, 0.6, 0.0)


def test_anomalies_lie_in_the_brain_and_change_nothing_else(rng):
    painter, image = AnomalyPainter(), disc()
    for _ in range(20):
        painted, mask = painter(image, rng)
        assert mask.sum() >= 10
        assert (image[mask] != 0).all()
        np.testing.assert_array_equal(painted[~mask], image[~mask])
        assert not np.array_equal(painted, image)
    # opacity 0.5: half of the texture, which lies in [0, 1]
    painted, mask = AnomalyPainter(opacity=(0.5, 0.5))(image, rng)
    assert painted[mask].min() >= 0.3 - 1e-9
    assert painted[mask].max() <= 0.8 + 1e-9


def test_an_anomaly_of_little_opacity_is_mostly_the_slice(rng):
    for _ in range(10):  # 0.8 of 0.6, and a fifth of a texture between 0 and 1
        painted, mask = AnomalyPainter(opacity=(0.2, 0.2))(disc(), rng)
        assert 0.48 - 1e-9 <= painted[mask].min() <= painted[mask].max() <= 0.68 + 1e-9


def test_a_slice_with_too_little_brain_stays_as_it_is(rng):
    image = np.zeros((16, 16))
    image[7:9, 7:9] = 0.5
    painted, mask = AnomalyPainter()(image, rng)
    np.testing.assert_array_equal(painted, image)
    assert not mask.any()


def test_only_healthy_slices_are_painted_and_some_stay_clean():
    item = {"image": torch.tensor(disc()[None]).float(), "label": torch.zeros(1, 48, 48)}
    paint = RandSyntheticAnomalyd(("image", "label"), prob=0.5)
    paint.set_random_state(0)
    always = RandSyntheticAnomalyd(("image", "label"), prob=1.0)
    assert torch.equal(always(item)["image"], item["image"])
    assert torch.equal(always({**item, "healthy": False})["image"], item["image"])
    found = [paint({**item, "healthy": True}) for _ in range(40)]
    painted = [bool(f["label"].any()) for f in found]
    assert 8 < sum(painted) < 32
    for f in found:
        assert f["image"].dtype == torch.float32
        assert (f["image"] != item["image"]).any() == f["label"].any()
        assert not ((f["image"] != item["image"]) & (f["label"] == 0)).any()


def test_volumes_are_painted_alike_in_every_epoch():
    volume = MetaTensor(torch.tensor(disc()[None, ..., None]).float().repeat(1, 1, 1, 12))
    item = {"image": volume, "label": torch.zeros_like(volume), "healthy": True, "name": "a"}
    paint = SyntheticAnomaliesd(("image", "label"))
    first, again, other = paint(item), paint(item), paint({**item, "name": "b"})
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])
    shown = first["label"].any(dim=1).any(dim=1)[0]
    assert 1 <= shown.sum() <= 11
    assert not item["label"].any()
    assert torch.equal(paint({**item, "healthy": False})["image"], volume)


# --- cases -----------------------------------------------------------------------------------------------------------


def test_slices_come_from_where_the_anomaly_is_or_from_the_brain():
    image, label = torch.zeros(1, 8, 8, 10), torch.zeros(1, 8, 8, 10)
    image[..., 2:8] = torch.arange(10.0)[2:8] + 1
    label[0, 3, 3, 4] = 1
    slices = RandSlicesd(num_samples=50, anomaly_probability=0.5)
    slices.set_random_state(0)
    found = slices({"image": image, "label": label, "healthy": False})
    z = [int(item["image"].max()) - 1 for item in found]
    assert set(z) == set(range(2, 8))
    assert 20 < z.count(4) < 45
    assert all(item["label"].any() == (number == 4) for item, number in zip(found, z, strict=True))
    assert found[0]["image"].shape == (1, 8, 8)
    assert found[0]["healthy"] is False
    assert len(slices({"image": image, "label": torch.zeros_like(label)})) == 50


def test_slices_are_all_of_the_anomaly_or_none_is_sought():
    image, label = torch.ones(1, 8, 8, 50), torch.zeros(1, 8, 8, 50)
    label[0, 3, 3, 4] = 1
    for probability, least, most in ((1.0, 40, 40), (0.0, 0, 8)):
        slices = RandSlicesd(num_samples=40, anomaly_probability=probability).set_random_state(0)
        found = sum(bool(item["label"].any()) for item in slices({"image": image, "label": label}))
        assert least <= found <= most


@pytest.fixture
def lists(tmp_path) -> dict[str, Path]:
    """Two labeled cases and two healthy ones, each in a section of its own."""
    found = {}
    for kind in ("patients", "healthy"):
        sections = {}
        for i, section in enumerate(("training", "validation")):
            head = make_head(i, shape=(30, 34, 24))
            case = {"image": f"{kind}{i}_T1w.nii.gz", "label": f"{kind}{i}_label.nii.gz", "subject": f"{kind}{i}"}
            save_nifti(tmp_path / case["image"], head.image, head.affine)
            save_nifti(tmp_path / case["label"], head.label, head.affine)
            sections[section] = [case]
        found[kind] = tmp_path / f"{kind}.json"
        found[kind].write_text(json.dumps(sections))
    return found


def test_labeled_and_healthy_cases_are_joined(lists):
    both = anomaly_cases(None, lists["patients"], lists["healthy"], section="training")
    assert [case["healthy"] for case in both] == [False, True]
    assert "label" in both[0]
    assert "label" not in both[1]
    assert len(anomaly_cases(healthy_datalist_file=lists["healthy"], section="training")) == 1
    assert len(anomaly_cases(datalist_file=lists["patients"], section="validation")) == 1


def test_one_list_that_says_who_is_healthy_serves_for_both(lists):
    content = json.loads(lists["patients"].read_text())
    for section, cases in json.loads(lists["healthy"].read_text()).items():
        content[section] += [{**case, "healthy": True} for case in cases]
    lists["patients"].write_text(json.dumps(content))
    both = anomaly_cases(None, lists["patients"], lists["patients"], section="training")
    assert [(case["subject"], case["healthy"], "label" in case) for case in both] == [
        ("patients0", False, True),
        ("healthy0", True, False),
    ]
    assert len(anomaly_cases(None, lists["patients"], section="training")) == 2  # labeled, be it by an empty mask


def test_a_case_in_both_lists_and_no_list_at_all_are_refused(lists):
    with pytest.raises(InputError, match=r"patients0_T1w\.nii\.gz is listed as labeled and as healthy"):
        anomaly_cases(datalist_file=lists["patients"], healthy_datalist_file=lists["patients"], section="training")
    with pytest.raises(InputError, match="none of dataset_dir, datalist_file and healthy_datalist_file is given"):
        anomaly_cases()


def test_a_missing_label_is_empty():
    image = MetaTensor(torch.rand(1, 4, 4, 4), affine=2 * torch.eye(4))
    found = EmptyLabeld()({"image": image})["label"]
    assert not found.any()
    assert torch.equal(found.affine, image.affine)
    label = torch.ones(1, 4, 4, 4)
    assert EmptyLabeld()({"image": image, "label": label})["label"] is label


# --- scores ----------------------------------------------------------------------------------------------------------


def test_the_deviation_is_0_for_a_perfect_reconstruction_and_only_in_the_brain():
    image = np.zeros((16, 16, 12), dtype=np.float32)
    image[3:13, 3:13, 2:10] = np.random.default_rng(0).uniform(0.2, 1, (10, 10, 8))
    np.testing.assert_allclose(structural_deviation(image, image.copy()), 0, atol=1e-5)
    other = image.copy()
    other[7, 7, 5] = 0
    found = structural_deviation(image, other)
    assert np.unravel_index(found.argmax(), found.shape) == (7, 7, 5)
    assert not found[image == 0].any()
    assert not found[:3].any()


def test_the_deviation_by_hand_far_from_every_border():
    """Two constants: no structure, so what is left is the term of the means."""
    image, reconstruction = np.full((20, 20, 20), 0.5), np.full((20, 20, 20), 0.4)
    image[0, 0, 0], reconstruction[0, 0, 0] = 1, 0  # the larger of the ranges is 0.5
    c1 = (0.01 * 0.5) ** 2
    expected = 1 - (2 * 0.5 * 0.4 + c1) / (0.5**2 + 0.4**2 + c1)
    assert structural_deviation(image, reconstruction)[10, 10, 10] == pytest.approx(expected, rel=1e-4)
    image, reconstruction = np.full((20, 20, 20), 0.02), np.full((20, 20, 20), 0.01)
    image[0, 0, 0], reconstruction[0, 0, 0] = 0.5, 2.01  # now the range of the reconstruction is, 2: c1 is 0.0004
    found = structural_deviation(image, reconstruction)[10, 10, 10]
    assert found == pytest.approx((0.02 - 0.01) ** 2 / (0.02**2 + 0.01**2 + 0.0004), rel=1e-4)


def test_scores_are_split_and_fused():
    pred = MetaTensor(torch.stack([torch.full((12, 12, 12), 0.4), torch.zeros(12, 12, 12)]))
    d = SplitPredictiond()({"pred": pred, "image": MetaTensor(torch.full((1, 12, 12, 12), 0.4))})
    assert d["reconstruction"].eq(0.4).all()
    assert d["pred"].eq(0.5).all()
    d["image"][0, 0] = 0.9
    d = StructuralDeviationd()(d)
    assert d["deviation"].shape == (1, 12, 12, 12)
    fused = FuseScoresd(beta=0.25)(d)["pred"]
    torch.testing.assert_close(fused.as_tensor(), 0.25 * d["deviation"].as_tensor() + 0.75 * 0.5)
    with pytest.raises(InputError, match=r"beta is 1\.5"):
        FuseScoresd(beta=1.5)


def test_logits_are_fused_by_hand():
    """Half and half is a logit of 0, so that two thirds are left: log 2 of the part."""
    d = {"pred": MetaTensor(torch.tensor([0.5, 0.8]).reshape(1, 2, 1, 1)), "part": MetaTensor(torch.ones(1, 2, 1, 1))}
    found = FuseLogitsd("pred", {"part": np.log(2)})(d)["pred"]
    torch.testing.assert_close(found.flatten().as_tensor(), torch.tensor([2 / 3, 8 / 9]))
    assert isinstance(found, MetaTensor)
    alone = FuseLogitsd("pred", {"part": np.log(2)}, unet_weight=0)(d)["pred"]
    torch.testing.assert_close(alone.flatten().as_tensor(), torch.tensor([2 / 3, 2 / 3]))
    unchanged = FuseLogitsd("pred", {"part": 0})(d)["pred"]
    torch.testing.assert_close(unchanged.flatten().as_tensor(), torch.tensor([0.5, 0.8]))
    with pytest.raises(ValueError, match="expected one above 0"):
        FuseLogitsd("pred", {"part": 0}, unet_weight=0)


# --- healthy people --------------------------------------------------------------------------------------------------


def test_mean_and_sd_are_those_of_numpy_and_smoothing_keeps_what_is_uniform():
    people = np.random.default_rng(0).uniform(0.2, 0.8, (7, 4, 5, 6))
    mean, sd = mean_and_sd(7, people.sum(0), (people**2).sum(0), 0)
    np.testing.assert_allclose(mean, people.mean(0))
    np.testing.assert_allclose(sd, people.std(0))
    uniform = np.broadcast_to(people[:, :1, :1, :1], people.shape)
    mean, sd = mean_and_sd(7, uniform.sum(0), (uniform**2).sum(0), 1.5)
    np.testing.assert_allclose(mean, uniform.mean(0))
    np.testing.assert_allclose(sd, uniform.std(0), rtol=1e-5)


def template_head(factor: float = 1.0) -> MetaTensor:
    """Every second voxel of the ICBM template's T1, scaled, in its own space."""
    t1, _, _, affine = icbm_maps()
    image = torch.from_numpy(np.ascontiguousarray(t1[::2, ::2, ::2] * (t1[::2, ::2, ::2] > 0.02)))
    return MetaTensor(factor * image[None] / image.max(), affine=affine @ np.diag([2.0, 2, 2, 1]))


@pytest.fixture(scope="module")
def healthy_file(tmp_path_factory):
    """Of three heads with 0.9, 1 and 1.1 of one brightness: the sd is a tenth of the mean times the root of 2/3."""
    gather = GatherHealthyd("image", tmp_path_factory.mktemp("healthy") / "healthy_t1w.pt", sigma_mm=0.0)
    for factor in (0.9, 1.0, 1.1):
        gather({"image": template_head(factor), "to_template": torch.eye(4, dtype=torch.float64)})
    gather.write()
    return gather.path


def test_a_lesion_is_as_dark_as_it_was_made_and_gray_matter_says_nothing(healthy_file):
    image = template_head()
    _, gm, wm, _ = icbm_maps()
    white = tuple(np.argwhere(wm[::2, ::2, ::2] == wm[::2, ::2, ::2].max())[0])
    gray = tuple(np.argwhere(gm[::2, ::2, ::2] > 0.99)[0])
    for place in (white, gray):
        image[0][place] *= 0.7
    d = {"image": image, "to_template": torch.eye(4, dtype=torch.float64)}
    score = DarknessScored("image", healthy_file, "darkness", smallest_sd=0)(d)["darkness"]
    assert score.shape == image.shape
    # 0.3 of the mean is 0.3 / (0.1 sqrt(2/3)) of its sd
    assert score[0][white].item() == pytest.approx(3 / np.sqrt(2 / 3), rel=0.15)
    assert abs(score[0][gray].item()) < 0.2
    assert not score[image.as_tensor() == 0].any()


def test_the_map_to_the_template_takes_a_stretch_out_again():
    image = template_head()
    stretched = MetaTensor(image.as_tensor(), affine=np.diag([1.04, 0.97, 1.0, 1]) @ image.affine.numpy())
    found = AlignToTemplated()({"image": stretched})["to_template"].numpy()
    np.testing.assert_allclose(found[:3, :3], np.diag([1 / 1.04, 1 / 0.97, 1]), atol=0.03)


def test_files_of_healthy_people_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="made from 0 scans, expected two or more"):
        GatherHealthyd("image", tmp_path / "none.pt").write()
    torch.save({"mean": torch.zeros(2, 2, 2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"none\.pt: cannot be read"):
        read_healthy(tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"other\.pt holds no affine, mean, sd of healthy people"):
        read_healthy(tmp_path / "other.pt")


# --- other images than the training's --------------------------------------------------------------------------------


def test_quantiles_are_of_the_brain():
    image = torch.zeros(1, 20, 20)
    image[0, :10] = torch.arange(1.0, 201).reshape(10, 20)
    found = brain_quantiles(image)
    assert found.shape == (19,)
    assert found[9].item() == pytest.approx(100, abs=1)
    with pytest.raises(InputError, match="0 everywhere"):
        brain_quantiles(torch.zeros(3))


def layered(inner: float, outer: float, scale: float = 1.0) -> torch.Tensor:
    """A ball of 2-D discs with an inner and an outer value, (1, 64, 64, 5)."""
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    radius = (x**2 + y**2).sqrt()
    image = torch.where(radius < 24, inner, outer) * (radius < 30) + 0.01 * torch.sin(x)
    return (scale * image * (radius < 30))[None, ..., None].repeat(1, 1, 1, 5)


def test_the_contrast_is_that_of_inner_to_outer_brain_without_fluid():
    image = layered(0.8, 0.6)
    assert depth_contrast(image[0].movedim(-1, 0)) == pytest.approx(0.8 / 0.6, rel=0.02)
    assert depth_contrast(layered(0.5, 0.6)[0].movedim(-1, 0)) == pytest.approx(0.5 / 0.6, rel=0.02)
    image[0, 28:36, 28:36] = 0.1  # a ventricle
    assert depth_contrast(image[0].movedim(-1, 0)) == pytest.approx(0.8 / 0.6, rel=0.02)
    assert depth_contrast(torch.ones(2, 4, 4)) == 1


def test_an_image_unlike_the_training_is_warned_of(tmp_path, caplog):
    training = [{"image": layered(0.8, 0.6, scale)} for scale in (0.95, 1.0, 1.05)]
    SaveStatistics(BrainSlices(training), tmp_path / "statistics.json")(Run())
    content = json.loads((tmp_path / "statistics.json").read_text())
    assert content["volumes"] == 3
    assert content["distance"] == pytest.approx(0.05 * 0.73, abs=0.005)
    assert content["contrast"] == pytest.approx([4 / 3, 4 / 3], rel=0.02)
    check = CheckStatisticsd("image", tmp_path / "statistics.json")
    with caplog.at_level(logging.WARNING):
        check({"image": MetaTensor(layered(0.8, 0.6, 1.08))})
        check({"image": MetaTensor(layered(0.8, 0.57))})
        assert not caplog.records
        check({"image": MetaTensor(layered(0.8, 0.6, 1.2))})
        assert "gray values 4" in caplog.records[-1].getMessage()
        check({"image": MetaTensor(layered(0.65, 0.75))})
        assert "inner to outer brain 0.87 (training 1.33 to 1.33)" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("{}", "holds no quantiles, distance and contrast")]
)
def test_statistics_that_are_none_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "statistics.json").write_text(content)
    with pytest.raises(InputError, match=message):
        CheckStatisticsd("image", tmp_path / "statistics.json")


def test_volumes_that_the_method_cannot_work_on_are_refused():
    check = CheckVolumed("image")
    check({"image": MetaTensor(torch.rand(1, 8, 8, 9))})
    with pytest.raises(InputError, match="has 8 axial slices with brain"):
        check({"image": MetaTensor(torch.rand(1, 8, 8, 8))})
    with pytest.raises(InputError, match=r"values from 0 to 1.5, expected \[0, 1\]"):
        check({"image": MetaTensor(torch.linspace(0, 1.5, 8 * 8 * 9).reshape(1, 8, 8, 9))})


# --- weights, configs ------------------------------------------------------------------------------------------------


def test_a_part_is_taken_out_of_the_weights_of_the_whole(tmp_path):
    whole = AnomalyNetwork(ConditionedDiffusion(**SMALL_DIFFUSION), SharedEncoderUNet((8, 16)))
    part = ConditionedDiffusion(**SMALL_DIFFUSION)
    for name, state in (("whole.pt", whole.state_dict()), ("part.pt", whole.reconstruction.state_dict())):
        torch.save(state, tmp_path / name)
        part.encoder.fc.bias.data.zero_()
        LoadWeights(tmp_path / name, part, part="reconstruction")(Run())
        assert part.encoder.fc.bias.equal(whole.reconstruction.encoder.fc.bias)
    with pytest.raises(InputError, match="does not fit"):
        LoadWeights(tmp_path / "whole.pt", part)(Run())


def test_thick_slices_are_refused_by_name(infer_diffusion, tmp_path):
    head = make_head(shape=(30, 34, 3))
    path = save_nifti(tmp_path / "thick_T1w.nii.gz", head.image, np.diag([3.0, 3.0, 3.0, 1.0]))
    with pytest.raises(RuntimeError) as raised:
        infer_diffusion(tmp_path / "out", dataset_dir=path.parent)
    error = str(find_input_error(raised.value))
    assert "thick_T1w.nii.gz has" in error
    assert "axial slices with brain on the grid of the network, expected 9 or more" in error
    assert [p for p in tmp_path.rglob("*_seg*") if p.is_file()] == []


@pytest.fixture
def infer_diffusion():
    def run(output_dir: Path, layers: tuple[str, ...] = (), **options: object) -> None:
        run_configs(BUNDLE, ["inference", *layers], output_dir=output_dir, device="cpu", **options)

    return run


def test_the_seed_decides_the_score_and_beta_its_parts(infer_diffusion, tmp_path):
    head = make_head(shape=(30, 34, 24))
    save_nifti(tmp_path / "scans" / "a_T1w.nii.gz", head.image, head.affine)
    runs = {
        "first": {},
        "again": {},
        "other": {"seed": 1},
        "reconstruction": {"layers": ("inference_reconstruction",), "save_reconstruction": True},
        "unet": {"layers": ("inference_unet",)},
        "fused": {"layers": ("inference_fused",)},
        "healthy": {"layers": ("inference_threshold", "inference_healthy")},
    }
    found = {}
    for name, options in runs.items():
        infer_diffusion(tmp_path / name, dataset_dir=tmp_path / "scans", **options)
        found[name] = np.asarray(nib.load(tmp_path / name / "a_T1w_prob.nii.gz").dataobj)
    np.testing.assert_array_equal(found["first"], found["again"])
    assert np.abs(found["first"] - found["other"]).max() > 1e-4
    assert np.abs(found["reconstruction"] - found["unet"]).max() > 0.1
    np.testing.assert_allclose(found["first"], (found["reconstruction"] + found["unet"]) / 2, atol=1e-4)
    assert np.abs(found["fused"] - found["unet"]).max() > 1e-4
    assert np.ptp(found["healthy"][head.brain > 0]) > 0.1
    image = nib.load(tmp_path / "reconstruction" / "a_T1w_reconstruction.nii.gz")
    assert image.shape == head.image.shape
    assert 0 < np.asarray(image.dataobj)[head.brain > 0].mean() < 1
    assert not (tmp_path / "first" / "a_T1w_reconstruction.nii.gz").exists()


def test_the_shipped_weights_hold_both_stages():
    state = weights(BUNDLE)
    assert {key.split(".")[0] for key in state} == {"reconstruction", "segmentation"}
    network(BUNDLE).load_state_dict(state)


@pytest.mark.parametrize("light", [False, True])
def test_both_stages_are_trained_from_the_configs(lists, tmp_path, light):
    """One epoch on small heads: files, frozen stage 1, and a map from the weights that were just made."""
    small = {"slice_size": [32, 32], "max_epochs": 1, "ckpt_dir": tmp_path / "models"}
    stage1 = ["train_diffusion", *(["train_diffusion_light"] if light else [])]
    run_configs(BUNDLE, stage1, datalist_file=lists["healthy"], output_dir=tmp_path / "stage1", batch_size=4, **small)
    stage1_file = tmp_path / "models" / ("denoising.pt" if light else "diffusion.pt")
    run_configs(
        BUNDLE,
        ["train", *(["train_light"] if light else [])],
        datalist_file=lists["patients"],
        healthy_datalist_file=lists["healthy"],
        diffusion_weights=stage1_file,
        output_dir=tmp_path / "stage2",
        **small,
    )
    file = tmp_path / "models" / ("model_light.pt" if light else "model.pt")
    first, both = (torch.load(path, weights_only=True) for path in (stage1_file, file))
    assert all(both[f"reconstruction.{key}"].equal(value) for key, value in first.items())
    run_configs(
        BUNDLE,
        ["inference", *(["inference_light"] if light else [])],
        datalist_file=lists["patients"],
        output_dir=tmp_path / "maps",
        weights=file,
        statistics_file=tmp_path / "models" / "statistics.json",
    )
    maps = sorted((tmp_path / "maps").glob("*_prob.nii.gz"))
    assert len(maps) == 2
    assert all(np.asarray(nib.load(path).dataobj).std() > 0 for path in maps)
