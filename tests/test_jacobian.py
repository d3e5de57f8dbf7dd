"""The Jacobian of the iterated map: its penalty and its spectral radius against exact values."""

import pytest
import torch

from get.equilibrium import jacobian_penalty, spectral_radius

from .problems import contraction, seeded, tanh_layer


def test_the_penalty_estimates_the_squared_frobenius_norm_per_dimension():
    w = contraction(5, 0.8)
    z = torch.randn(3, 5, generator=seeded(2)).double()

    def f(z, x):
        return tanh_layer(z, x, w)

    x = torch.zeros_like(z)
    many = jacobian_penalty(  # 20,000 draws: 10 for each of 2,000 copies
        f, z.repeat(2000, 1), inputs=(x.repeat(2000, 1),), draws=10, generator=seeded(3)
    )
    penalty = many.view(2000, 3).mean(0)
    slope = 1 - f(z, x) ** 2
    exact = torch.stack([(s[:, None] * w).square().sum() / 5 for s in slope])
    torch.testing.assert_close(penalty, exact, rtol=0.05, atol=0)


def test_the_penalty_reaches_parameters_and_injections_but_not_the_state():
    w = contraction(5, 0.8).requires_grad_()
    z = torch.randn(3, 5, generator=seeded(2)).double().requires_grad_()
    x = torch.zeros(3, 5).double().requires_grad_()
    penalty = jacobian_penalty(
        lambda z, x: tanh_layer(z, x, w), z, inputs=(x,), generator=seeded(3)
    ).mean()
    by_w, by_x, by_z = torch.autograd.grad(penalty, (w, x, z), allow_unused=True)
    assert by_w.abs().sum() > 0
    assert by_x.abs().sum() > 0
    assert by_z is None
    with torch.no_grad():
        number = jacobian_penalty(
            lambda z, x: tanh_layer(z, x, w), z, inputs=(x,), generator=seeded(3)
        )
    assert not number.requires_grad
    assert number.mean() == penalty
    with pytest.raises(ValueError, match="at least 1 draw"):
        jacobian_penalty(lambda z: z, z, draws=0)


@pytest.mark.parametrize("grad", [True, False])
def test_a_map_that_does_not_depend_on_z_has_the_jacobian_zero(grad):
    z = torch.ones(2, 3)
    with torch.set_grad_enabled(grad):
        for f in (torch.ones_like, lambda z: 0 * z + 1, lambda z: z.detach().requires_grad_()):
            assert jacobian_penalty(f, z).tolist() == spectral_radius(f, z).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    z = torch.ones(2, 64, dtype=dtype)
    radii = spectral_radius(lambda z: 512 * z, z)
    torch.testing.assert_close(radii, torch.full((2,), 512.0), rtol=1e-2, atol=0)
    penalty = jacobian_penalty(lambda z: 512 * z, z, draws=500)  # beyond the range of float16
    torch.testing.assert_close(penalty, torch.full((2,), 512.0**2), rtol=0.05, atol=0)


@pytest.mark.parametrize("radius", [0.3, 0.9, 1.7])
def test_the_spectral_radius_of_a_rotation_is_its_scale(radius):
    angle = torch.tensor(0.7).double()
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    z = torch.randn(4, 2, generator=seeded(0)).double()
    radii = spectral_radius(lambda z: radius * z @ rotation.T, z, generator=seeded(1))
    torch.testing.assert_close(radii, torch.full((4,), radius).double())


def test_the_spectral_radius_of_a_matrix_is_that_of_its_eigenvalues_sample_by_sample():
    a = torch.randn(3, 20, 20, generator=seeded(0)).double() / 20**0.5
    z = torch.randn(3, 20, generator=seeded(1)).double()
    exact = torch.linalg.eigvals(a).abs().amax(1)

    def f(z, a):
        return (a @ z[:, :, None])[:, :, 0]

    radii = spectral_radius(f, z, inputs=(a,), steps=20, generator=seeded(2))
    torch.testing.assert_close(radii, exact, rtol=1e-6, atol=0)
    assert spectral_radius(lambda z: z * 0 + 1, z, generator=seeded(2)).abs().max() == 0
