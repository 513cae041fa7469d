"""Sampling, warping, composing, integrating and inverting fields."""

import numpy as np
import pytest
import torch
from monai.networks.blocks import DVF2DDF, Warp

from common.geometry import (
    apply_affine,
    compose,
    fold_share,
    halfway,
    integrate_velocity,
    invert_displacement,
    jacobian_determinant,
    log_jacobian_sd,
    rotation_matrix,
    sample,
    to_millimeters,
    to_voxels,
    voxel_grid,
    warp,
)
from deepatlas_joint.fields import from_halfway, inverse_error, sample_labels

INSIDE = (slice(None), slice(None), *(slice(5, 15),) * 3)


def waves(amplitude: float = 1.0, size: int = 20) -> torch.Tensor:
    """A smooth field with different components, (1, 3, size, size, size), voxels."""
    x, y, z = 2 * np.pi * voxel_grid((size,) * 3) / size
    field = torch.stack([torch.sin(y) + 0.5 * torch.cos(z), torch.cos(x), 0.7 * torch.sin(x + y)])
    return amplitude * field[None]


def affine_displacement(matrix: np.ndarray, size: int = 20) -> torch.Tensor:
    """Of a linear map around the middle of the grid."""
    grid = voxel_grid((size,) * 3)
    middle = (size - 1) / 2
    return (torch.einsum("ij,jxyz->ixyz", torch.as_tensor(matrix).float(), grid - middle) + middle - grid)[None]


def test_the_grid_in_millimeters_is_the_affine_of_the_indices():
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


def test_labels_take_the_class_of_most_share_and_never_one_in_between():
    labels = torch.tensor([0, 0, 4, 4, 2]).reshape(1, 5, 1, 1).expand(1, 5, 3, 3)
    points = torch.tensor([[0.9, 1.6, 3.4, 3.6, 9.0], [1.0] * 5, [1.0] * 5])
    assert sample_labels(labels, points, 5).flatten().tolist() == [0, 4, 4, 2, 0]


def test_outside_the_volume_padding_decides():
    volume = torch.full((1, 3, 3, 3), 7.0)
    outside = torch.tensor([[10.0], [1.0], [1.0]])
    assert sample(volume, outside).item() == 7.0
    assert sample(volume, outside, padding="zeros").item() == 0.0


def test_a_displacement_of_one_voxel_brings_the_next_voxel_here():
    image = voxel_grid((5, 6, 7))[None]  # channel i holds the coordinate along axis i
    u = torch.zeros(1, 3, 5, 6, 7)
    u[:, 2] = 1.0
    moved = warp(image, u)
    torch.testing.assert_close(moved[0, 2, :, :, :-1], image[0, 2, :, :, 1:])
    torch.testing.assert_close(moved[0, :2], image[0, :2])
    assert moved[0, 2, 0, 0, -1] == 6  # the margin is repeated


def test_warping_is_that_of_monai():
    image = torch.randn(2, 2, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    field = torch.cat([waves(0.7), waves(-1.3)])
    torch.testing.assert_close(warp(image, field), Warp(padding_mode="border")(image, field), atol=1e-4, rtol=0)


def test_a_field_on_another_grid_is_refused():
    with pytest.raises(ValueError, match="differ in their grid"):
        warp(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 3, 4, 4, 5))


def test_warping_twice_is_warping_by_the_composition():
    # smooth, so that it may be interpolated twice
    image = torch.sin(voxel_grid((20, 20, 20)).sum(0) / 12)[None, None]
    first, second = waves(0.8), affine_displacement(rotation_matrix(np.array([0.1, -0.05, 0.08])))
    twice = warp(warp(image, second), first)
    torch.testing.assert_close(warp(image, compose(first, second))[INSIDE], twice[INSIDE], atol=0.006, rtol=0)
    # the other order is another map
    assert (warp(image, compose(second, first)) - twice)[INSIDE].abs().max() > 0.018


def test_two_rotations_compose_to_their_product():
    a, b = rotation_matrix(np.array([0.1, 0.0, 0.2])), rotation_matrix(np.array([0.0, -0.15, 0.1]))
    found = compose(affine_displacement(a), affine_displacement(b))
    torch.testing.assert_close(found[INSIDE], affine_displacement(b @ a)[INSIDE], atol=1e-4, rtol=0)


def test_a_constant_velocity_moves_by_itself():
    velocity = torch.zeros(1, 3, 8, 8, 8)
    velocity[:, 0] = 1.5
    torch.testing.assert_close(integrate_velocity(velocity), velocity)


def test_a_linear_velocity_integrates_to_the_exponential():
    # dx/dt = a (x - 8) moves x to 8 + exp(a) (x - 8)
    a, center = 0.2, 8.0
    velocity = torch.zeros(1, 3, 17, 17, 17)
    velocity[0, 1] = a * (voxel_grid((17, 17, 17))[1] - center)
    displacement = integrate_velocity(velocity, steps=8)[0]
    x = torch.arange(4.0, 13.0)
    torch.testing.assert_close(displacement[1, 8, 4:13, 8], (np.exp(a) - 1) * (x - center), atol=2e-3, rtol=0)
    assert displacement[0].abs().max() == 0


def test_velocities_integrate_as_in_monai():
    # MONAI repeats nothing at the margin, so only the inside is compared
    torch.testing.assert_close(
        integrate_velocity(waves(), 7)[INSIDE], DVF2DDF(num_steps=7)(waves())[INSIDE], atol=1e-3, rtol=0
    )


def test_the_opposite_velocity_gives_the_inverse():
    forward, backward = integrate_velocity(waves(), 7), integrate_velocity(-waves(), 7)
    assert forward[INSIDE].abs().mean() > 0.3  # something moved
    assert compose(backward, forward)[INSIDE].abs().max() < 0.05


def test_the_inverse_leads_back_from_either_side():
    field = waves(0.9)
    inverse = invert_displacement(field)
    assert compose(field, inverse)[INSIDE].abs().max() < 0.05
    assert compose(inverse, field)[INSIDE].abs().max() < 0.01
    assert field[INSIDE].abs().mean() > 0.3


@pytest.mark.parametrize("matrix", [np.diag([1.2, 0.9, 1.0]), np.array([[1, 0.3, 0], [0, 1.1, 0.2], [-0.1, 0, 0.8]])])
def test_the_jacobian_of_a_linear_map_is_its_determinant_everywhere(matrix):
    found = jacobian_determinant(affine_displacement(matrix))
    torch.testing.assert_close(found, torch.full_like(found, np.linalg.det(matrix)), atol=1e-4, rtol=0)


def test_halfway_both_images_are_at_the_same_distance():
    field = waves(0.9)
    half = halfway(field)
    onto_moving = warp(field, -half)  # what the field says where the fixed image is
    torch.testing.assert_close(onto_moving[INSIDE], 2 * half[INSIDE], atol=1e-3, rtol=0)
    torch.testing.assert_close(from_halfway(half)[INSIDE], field[INSIDE], atol=0.05, rtol=0)
    assert half[INSIDE].abs().mean() > 0.15


def test_halfway_a_scaling_is_its_cayley_transform():
    """x -> f x is split into x -> (1 + a) x and x -> (1 - a) x, of which the ratio is f."""
    field = affine_displacement(np.diag([1.5, 1.0, 0.8]))
    half = halfway(field)
    expected = affine_displacement(np.diag([1 + 0.5 / 2.5, 1.0, 1 - 0.2 / 1.8]))
    torch.testing.assert_close(half[INSIDE], expected[INSIDE], atol=1e-3, rtol=0)
    torch.testing.assert_close(from_halfway(half)[INSIDE], field[INSIDE], atol=5e-3, rtol=0)


def test_the_way_back_of_a_halfway_field_is_that_of_its_opposite():
    half = halfway(waves(0.9))
    there, back = from_halfway(half), from_halfway(-half)
    error = inverse_error(there, back, np.diag([2.0, 2.0, 2.0, 1.0]))[0][INSIDE[2:]]
    assert error.max() < 0.1
    assert there[INSIDE].abs().mean() > 0.3


def test_the_way_back_of_a_shift_is_measured_in_millimeters():
    """One voxel of 2 mm there, three quarters back: half a millimeter is left."""
    there, back = torch.zeros(2, 1, 3, 8, 8, 8)
    there[:, 1], back[:, 1] = 1.0, -0.75
    affine = np.array([[0, 2.0, 0, 7], [-3.0, 0, 0, 1], [0, 0, 1.0, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(inverse_error(there, back, affine), torch.full((1, 8, 8, 8), 0.5))
    torch.testing.assert_close(inverse_error(there, -there, affine), torch.zeros(1, 8, 8, 8))


def test_the_logarithm_of_volume_changes_varies_by_what_two_scalings_differ():
    """Half of the voxels grow to 1.21 of their length, half to 1 / 1.21: logarithms of +c and -c have the sd c."""
    x = torch.arange(40.0)
    grows = torch.where(x < 20, 0.21 * (x - 20), (1 / 1.21 - 1) * (x - 20))
    field = torch.zeros(1, 3, 40, 6, 6)
    field[0, 0] = grows[:, None, None]
    mask = torch.ones(1, 40, 6, 6)
    mask[:, 19:22] = 0  # differences reach over the edge
    mask[:, :2] = 0
    assert log_jacobian_sd(field, mask) == pytest.approx(np.log(1.21) * np.sqrt(1 - (1 / 35) ** 2), abs=1e-4)
    assert log_jacobian_sd(affine_displacement(np.diag([1.3, 0.9, 1.0]))) == pytest.approx(0, abs=1e-5)
    folded = affine_displacement(np.diag([1.3, 0.9, 1.0]))
    folded[0, 0, :3] *= -10  # has no logarithm
    assert np.isfinite(log_jacobian_sd(folded))


def test_a_mirror_folds_everywhere_and_a_rotation_nowhere():
    assert fold_share(affine_displacement(np.diag([-1.0, 1, 1]))) == 1
    assert fold_share(affine_displacement(rotation_matrix(np.array([0.3, 0.2, -0.4])))) == 0


def test_folds_are_counted_within_the_mask():
    field = torch.zeros(1, 3, 10, 10, 10)
    field[0, 0, 5:] = -3.0  # between x = 4 and x = 5 the map runs backwards: (-3) / 2 + 1 < 0 at both
    assert fold_share(field) == pytest.approx(0.2)
    mask = torch.zeros(1, 1, 10, 10, 10)
    mask[:, :, 4:8] = 1
    assert fold_share(field, mask) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="mask is empty"):
        fold_share(field, 0 * mask)


def test_millimeters_are_those_of_the_affine_and_come_back():
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    u = torch.tensor([1.0, 2.0, -1.0]).reshape(1, 3, 1, 1, 1)
    mm = to_millimeters(u, affine)
    torch.testing.assert_close(mm.flatten(), torch.tensor([-4.0, 1.5, -3.0]))
    torch.testing.assert_close(to_voxels(mm, affine), u)


def test_gradients_of_warping_and_integrating_are_right():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 2, 4, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    # between voxels: at them the slope of the interpolation jumps
    field = (torch.rand(1, 3, 4, 5, 3, generator=generator, dtype=torch.float64) * 0.6 + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(warp, (image, field))
    assert torch.autograd.gradcheck(lambda v: integrate_velocity(v, 2), (field,))
    assert torch.autograd.gradcheck(jacobian_determinant, (field,))
