"""Sampling and integrating fields."""

import numpy as np
import torch

from common.geometry import apply_affine, integrate_velocity, sample, voxel_grid


def test_the_grid_in_millimetres_is_the_affine_of_the_indices():
    affine = np.array([[2.0, 0.5, 0, -7], [0, -1.0, 0, 4], [0, 0, 3.0, 1], [0, 0, 0, 1]])
    grid = voxel_grid((4, 3, 2), affine)
    np.testing.assert_allclose(grid[:, 3, 2, 1], (affine @ [3, 2, 1, 1])[:3])
    torch.testing.assert_close(apply_affine(affine, voxel_grid((4, 3, 2))), grid)


def test_sampling_at_the_voxels_gives_the_volume_back():
    volume = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample(volume, voxel_grid((5, 4, 3))), volume)


def test_sampling_between_voxels_of_a_ramp_is_exact_and_axes_are_not_mixed_up():
    ramp = voxel_grid((6, 5, 4))  # channel i holds the coordinate along axis i
    points = torch.tensor([[1.25], [2.5], [0.75]])
    torch.testing.assert_close(sample(ramp, points), points)


def test_outside_the_volume_padding_decides():
    volume = torch.full((1, 3, 3, 3), 7.0)
    outside = torch.tensor([[10.0], [1.0], [1.0]])
    assert sample(volume, outside).item() == 7.0
    assert sample(volume, outside, padding="zeros").item() == 0.0


def test_a_constant_velocity_moves_by_itself():
    velocity = torch.zeros(3, 8, 8, 8)
    velocity[0] = 1.5
    torch.testing.assert_close(integrate_velocity(velocity), velocity)


def test_a_linear_velocity_integrates_to_the_exponential():
    # dx/dt = a (x - 8) moves x to 8 + exp(a) (x - 8)
    a, center = 0.2, 8.0
    velocity = torch.zeros(3, 17, 17, 17)
    velocity[1] = a * (voxel_grid((17, 17, 17))[1] - center)
    displacement = integrate_velocity(velocity, steps=8)
    x = torch.arange(4.0, 13.0)
    torch.testing.assert_close(displacement[1, 8, 4:13, 8], (np.exp(a) - 1) * (x - center), atol=2e-3, rtol=0)
    assert displacement[0].abs().max() == 0


def test_the_opposite_velocity_gives_the_inverse():
    x, y, z = 2 * np.pi * voxel_grid((20, 20, 20)) / 20
    velocity = torch.stack([torch.sin(y) + 0.5 * torch.cos(z), torch.cos(x), 0.7 * torch.sin(x + y)])
    forward, backward = integrate_velocity(velocity, 7), integrate_velocity(-velocity, 7)
    grid = voxel_grid((20, 20, 20))
    round_trip = backward + sample(forward, grid + backward)
    inside = (slice(None), *(slice(5, 15),) * 3)
    assert forward[inside].abs().mean() > 0.3  # something moved
    assert round_trip[inside].abs().max() < 0.05
