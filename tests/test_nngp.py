"""Wide networks as Gaussian processes: kernels with known values, finite draws, regression."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from get.analysis import (
    ERF,
    RELU,
    TANH,
    Activation,
    Regression,
    WideNetwork,
    degenerate_pairs,
    gaussian_to_uniform,
    kolmogorov_smirnov,
    mixture_kurtosis,
    normal_to_uniform,
    quadrature,
)
from get.equilibrium import Outcome
from get.errors import InputError

from .problems import seeded

ACTIVATIONS = pytest.mark.parametrize("activation", [RELU, ERF, TANH], ids=lambda a: a.name)


def sphere(points: int, inputs: int = 10, seed: int = 0) -> Tensor:
    """Return points of length sqrt(inputs)."""
    x = torch.randn(points, inputs, generator=seeded(seed), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True) * inputs**0.5


def smallest(network: WideNetwork, x: Tensor) -> float:
    return float(torch.linalg.eigvalsh(network.kernel(x))[0])


# ---------------------------------------------------------------- moments


def test_relu_moments_of_independent_equal_and_opposite_numbers_are_known():
    for correlation, expected in ((0.0, 1 / math.pi), (1.0, 1.0), (-1.0, 0.0)):
        s = torch.tensor([[2.0, 2 * correlation], [2 * correlation, 2.0]]).double()
        moment = RELU.moment(s)
        torch.testing.assert_close(moment[0, 1], torch.tensor(expected).double())
        torch.testing.assert_close(moment[0, 0], torch.tensor(1.0).double())


def test_quadrature_gives_the_closed_form_of_erf():
    s = sphere(6) @ sphere(6).T / 10
    torch.testing.assert_close(quadrature(torch.erf, s), ERF.moment(s), rtol=1e-9, atol=1e-9)


def test_quadrature_of_tanh_is_as_accurate_as_it_says():
    g = torch.arange(-10, 10, 0.05, dtype=torch.float64)  # the trapezoidal rule has no error here
    w = (-g.square() / 2).exp()
    w = w / w.sum()
    for variance, error in ((1.0, 1e-11), (3.0, 1e-11), (5.0, 1e-8), (10.0, 1e-6), (30.0, 3e-4)):
        a, b = variance**0.5 * g[:, None], 0.9 * (0.8 * g[:, None] - 0.6 * g[None])
        s = torch.tensor([[variance, 0.72 * variance**0.5], [0, 0.81]], dtype=torch.float64)
        moment = TANH.moment(s + s.triu(1).T)
        exact = (w[:, None] * w * a.tanh() * b.tanh()).sum()
        torch.testing.assert_close(moment[0, 1], exact, rtol=0, atol=error)
        exact = (w * a[:, 0].tanh() ** 2).sum()
        torch.testing.assert_close(moment[0, 0], exact, rtol=0, atol=error)


@ACTIVATIONS
def test_moments_are_means_over_gaussian_pairs(activation: Activation):
    s = sphere(3, seed=4) @ sphere(3, seed=4).T / 10
    g = torch.randn(200_000, 3, generator=seeded(1), dtype=torch.float64)
    values = activation.phi(g @ torch.linalg.cholesky(s).T)
    product = values[:, :, None] * values[:, None, :]
    error = product.mean(0) - activation.moment(s)
    assert (error.abs() < 5 * product.std(0) / 200_000**0.5).all()


# ---------------------------------------------------------------- kernels


def test_the_limit_of_relu_has_the_known_diagonal():
    x = sphere(5) * torch.linspace(0.5, 2, 5).double()[:, None]
    for s_w in (0.4, 1.2):
        network = WideNetwork(weight_std=s_w, input_std=1.5, output_std=0.7)
        expected = 0.7**2 / 2 * 1.5**2 * x.square().mean(1) / (1 - s_w**2 / 2)
        torch.testing.assert_close(network.kernel(x).diagonal(), expected)


def test_the_limits_have_the_diagonals_that_were_measured_before():
    x = sphere(2)
    for activation, expected in ((RELU, 0.543478), (TANH, 0.405748)):
        kernel = WideNetwork(activation=activation).kernel(x)
        assert float(kernel[0, 0]) == pytest.approx(expected, abs=1e-6)


def test_the_kernel_of_relu_approaches_its_limit_at_the_rate_of_half_the_weights_variance():
    network, x = WideNetwork(weight_std=0.8), sphere(1)
    errors = [float(network.kernel(x, depth) - network.kernel(x)) for depth in (1, 2, 3, 4)]
    assert np.divide(errors[1:], errors[:-1]) == pytest.approx(0.8**2 / 2)


@ACTIVATIONS
def test_the_limit_is_reached_from_finite_depths(activation: Activation):
    network, x = WideNetwork(activation=activation), sphere(6)
    limit = network.kernel(x)
    errors = [float((network.kernel(x, depth) - limit).norm()) for depth in (1, 2, 4, 8, 20)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12


def test_an_ordinary_deep_network_forgets_its_input():
    network, x = WideNetwork(weight_std=2**0.5, injected=False), sphere(3)
    kernel = network.kernel(x, 2000)
    torch.testing.assert_close(kernel, kernel[0, 0].expand(3, 3), rtol=1e-3, atol=0)


def test_only_bounds_below_a_half_contract_almost_surely():
    assert WideNetwork(weight_std=0.49).contracts
    assert not WideNetwork(weight_std=0.5).contracts
    assert not WideNetwork(activation=ERF, weight_std=0.45).contracts  # its slope is 1.13


@ACTIVATIONS
def test_kernels_of_points_of_one_length_without_antipodes_are_positive_definite(activation):
    for seed in range(5):
        x = sphere(12, seed=seed)
        assert smallest(WideNetwork(activation=activation), x) > 1e-4
        assert degenerate_pairs(x, activation) == []


def test_the_degenerate_pairs_are_named_and_have_a_singular_kernel():
    x = sphere(3)
    cases = [
        (TANH, torch.cat([x, -x[1:2]]), [(1, 3, "opposite")]),
        (ERF, torch.cat([x, -x[1:2]]), [(1, 3, "opposite")]),
        (RELU, torch.cat([x, 2 * x[:1]]), [(0, 3, "parallel")]),
        (RELU, torch.cat([x, x[2:]]), [(2, 3, "equal")]),
        (TANH, torch.cat([x, 0 * x[:1]]), [(3, 3, "zero")]),
        (RELU, torch.cat([x, -x[1:2]]), []),
        (TANH, torch.cat([x, 2 * x[:1]]), []),
    ]
    for activation, points, expected in cases:
        assert degenerate_pairs(points, activation) == expected
        value = smallest(WideNetwork(activation=activation), points)
        assert (abs(value) < 1e-12) if expected else (value > 1e-3)


# ---------------------------------------------------------------- finite networks


@ACTIVATIONS
def test_wide_equilibria_have_the_covariance_of_the_limit(activation: Activation):
    network, x, width = WideNetwork(activation=activation, output_std=1.5), sphere(3), 200
    drawn = network.draw(x, width, 60, seeded(0))
    assert (drawn.outcome == Outcome.CONVERGED).all()
    each = 1.5**2 * drawn.hidden @ drawn.hidden.mT / width
    error = each.mean(0) - network.kernel(x)
    assert (error.abs() < 5 * each.std(0) / 60**0.5).all()


def test_tied_and_untied_weights_of_finite_depth_have_the_same_kernel():
    x, width = sphere(2), 100
    for injected in (True, False):
        network = WideNetwork(activation=TANH, weight_std=0.8, injected=injected)
        for tied in (True, False):
            hidden = network.draw(x, width, 100, seeded(1), depth=3, tied=tied).hidden
            each = hidden @ hidden.mT / width
            error = each.mean(0) - network.kernel(x, 3)
            assert (error.abs() < 5 * each.std(0) / 100**0.5 + 0.5 / width).all()


def test_one_layer_is_the_activation_of_the_inputs_alone():
    x = sphere(3)
    one, many = (
        WideNetwork(activation=TANH).draw(x, 50, 2, seeded(0), depth=depth).hidden
        for depth in (1, 60)
    )
    equilibrium = WideNetwork(activation=TANH).draw(x, 50, 2, seeded(0), tol=1e-12)
    first = torch.randn(2, 10, 50, generator=seeded(0), dtype=torch.float64) / 10**0.5
    torch.testing.assert_close(one, torch.tanh(x @ first))
    torch.testing.assert_close(many, equilibrium.hidden)


def test_the_equilibrium_at_zero_of_a_zero_input_needs_the_absolute_tolerance():
    network, x = WideNetwork(activation=TANH), torch.zeros(2, 5, dtype=torch.float64)
    start = torch.randn(3, 2, 40, generator=seeded(2), dtype=torch.float64)
    found = network.draw(x, 40, 3, seeded(0), start=start, max_steps=60)
    assert (found.outcome == Outcome.CONVERGED).all()
    assert float(found.hidden.abs().max()) < 1e-8
    without = network.draw(x, 40, 3, seeded(0), start=start, max_steps=60, atol=0.0)
    assert (without.outcome != Outcome.CONVERGED).all()


def test_what_has_no_limit_or_no_equilibrium_is_refused():
    x = sphere(2)
    with pytest.raises(InputError, match=r"kernel of relu has a limit, got 1\.5 .* smaller one"):
        WideNetwork(weight_std=1.5).kernel(x, max_steps=50)
    with pytest.raises(InputError, match="depth of at least 1, got 0"):
        WideNetwork().kernel(x, 0)
    with pytest.raises(InputError, match="positive standard deviations"):
        WideNetwork(weight_std=0.0)
    with pytest.raises(InputError, match="finite floating-point inputs"):
        WideNetwork().kernel(x * torch.nan)
    with pytest.raises(InputError, match="at least 1, got width 0"):
        WideNetwork().draw(x, 0, 1, seeded(0))
    with pytest.raises(InputError, match="only a tied and injected layer has an equilibrium"):
        WideNetwork(injected=False).draw(x, 4, 1, seeded(0))


# ---------------------------------------------------------------- regression


def test_regression_is_the_textbook_formula():
    x, y = sphere(12), torch.randn(12, 3, generator=seeded(5), dtype=torch.float64)
    kernel = WideNetwork().kernel(x)
    seen, new = slice(0, 9), slice(9, 12)
    regression = Regression(kernel[seen, seen], y[seen], ratios=(0.1,))
    covariance = kernel[seen, seen] + 0.1 * torch.eye(9).double()
    solved = torch.linalg.solve(covariance, y[seen])
    posterior = regression(kernel[new, seen], kernel.diagonal()[new])
    torch.testing.assert_close(posterior.mean, kernel[new, seen] @ solved)

    scale = float((y[seen] * solved).mean())
    explained = torch.linalg.solve(covariance, kernel[seen, new])
    variance = (kernel[new, new] - kernel[new, seen] @ explained).diagonal() + 0.1
    torch.testing.assert_close(posterior.variance, scale * variance)
    normal = torch.distributions.MultivariateNormal(torch.zeros(9).double(), scale * covariance)
    assert regression.scale == pytest.approx(scale)
    assert regression.log_likelihood == pytest.approx(float(normal.log_prob(y[seen].T).sum()))

    each = torch.distributions.Normal(posterior.mean, posterior.variance.sqrt()[:, None])
    torch.testing.assert_close(posterior.log_density(y[new]), each.log_prob(y[new]).sum(1))


def test_the_noise_level_is_the_one_the_targets_have():
    x = sphere(150, inputs=4)
    kernel = WideNetwork(activation=ERF).kernel(x)
    root = torch.linalg.cholesky(kernel + 1e-10 * torch.eye(150))
    clean = root @ torch.randn(150, 4, generator=seeded(0), dtype=torch.float64)
    noise = torch.randn(clean.shape, generator=seeded(1), dtype=torch.float64)
    regression = Regression(kernel, 3 * (clean + 0.1 * noise), ratios=(1e-6, 1e-4, 1e-2, 1.0))
    assert regression.ratio == 1e-2
    assert regression.scale == pytest.approx(9, rel=0.3)


def test_targets_that_do_not_fit_are_refused():
    kernel = WideNetwork().kernel(sphere(3))
    with pytest.raises(InputError, match=r"row of targets .* got shapes \(3, 3\) and \(4, 1\)"):
        Regression(kernel, torch.zeros(4, 1).double())
    with pytest.raises(InputError, match="positive ratios"):
        Regression(kernel, torch.zeros(3, 1).double(), ratios=(0.0,))
    assert replace(WideNetwork(), output_std=2.0).kernel(sphere(3)).equal(4 * kernel)


# ---------------------------------------------------------------- normality


def test_kolmogorov_smirnov_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for count, power in ((50, 1.0), (400, 1.1), (400, 1.4)):
        uniform = torch.rand(count, generator=seeded(count)).double() ** power
        distance, p = kolmogorov_smirnov(uniform)
        expected = stats.kstest(uniform.numpy(), "uniform")
        assert distance == pytest.approx(expected.statistic)
        assert p == pytest.approx(expected.pvalue, rel=0.05, abs=0.005)


def test_normal_vectors_pass_and_vectors_of_random_scale_are_found_out():
    x = sphere(4)
    kernel = WideNetwork().kernel(x)
    root = torch.linalg.cholesky(kernel)
    normal = torch.randn(4000, 4, generator=seeded(1), dtype=torch.float64) @ root.T
    scale = 1 + 0.5 * torch.rand(4000, generator=seeded(2), dtype=torch.float64)
    for vectors, passes in ((normal, True), (normal * scale[:, None], False)):
        for uniform in (
            gaussian_to_uniform(vectors, kernel),
            normal_to_uniform(vectors[:, 0], float(kernel[0, 0])),
        ):
            assert (kolmogorov_smirnov(uniform)[1] > 0.01) == passes


def test_the_kurtosis_of_a_deep_ordinary_relu_network_is_the_known_one():
    network, width, depth = WideNetwork(weight_std=2**0.5, injected=False), 64, 8
    hidden = network.draw(sphere(1), width, 400, seeded(0), depth=depth, tied=False).hidden
    found, error = mixture_kurtosis(hidden.square().mean(2).flatten())
    expected = 3 * ((1 + 5 / width) ** depth - 1)  # q grows by mean of 2 relu(g)^2 in every layer
    assert abs(found - expected) < 4 * error
