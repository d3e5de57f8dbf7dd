"""EDM's Heun sampler against closed forms and the noise levels of EDM's own code."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data.teachers.heun import heun, karras_sigmas

S, LOW, HIGH = 0.75, 0.002, 80.0  # standard deviation of the data, lowest and highest noise level


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Denoise data distributed as N(0, S^2): the posterior mean."""
    return x * S**2 / (S**2 + sigma**2)


def noise(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_n_steps_cost_2n_minus_1_calls_at_the_golden_noise_levels_of_edm() -> None:
    golden = load_file(Path(__file__).parent / "golden" / "edm_sigmas.safetensors")["heun18_sigmas"]
    called: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        called.append(sigma)
        return gaussian(x, sigma)

    for steps in (2, 5, 18):
        called.clear()
        heun(denoise, noise(), karras_sigmas(steps, LOW, HIGH, 7.0))
        assert len(called) == 2 * steps - 1
    assert torch.equal(torch.stack(called), golden)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_the_noise_levels_fall_from_sigma_max_to_sigma_min_and_then_zero(rho: float) -> None:
    sigmas = karras_sigmas(10, LOW, HIGH, rho)
    assert (sigmas.diff() < 0).all()
    assert sigmas[[0, -2, -1]].tolist() == pytest.approx([HIGH, LOW, 0])
    assert sigmas.dtype == torch.float64


def test_a_data_set_of_one_image_is_sampled_exactly_in_any_number_of_steps() -> None:
    image = noise(1).double()
    for steps in (2, 7):
        x = heun(lambda x, sigma: image.expand_as(x), noise(), karras_sigmas(steps, LOW, HIGH, 7.0))
        torch.testing.assert_close(x, image.expand_as(x), rtol=0, atol=1e-13)


def test_gaussian_data_are_sampled_by_scaling_the_noise() -> None:
    """dx/dsigma = x sigma / (S^2 + sigma^2), so x is proportional to sqrt(S^2 + sigma^2)."""
    x = heun(gaussian, noise(), karras_sigmas(1000, LOW, HIGH, 7.0))
    exact = noise().double() * HIGH * S / math.hypot(S, HIGH)
    torch.testing.assert_close(x, exact, rtol=1e-4, atol=0)


def test_the_order_of_convergence_is_two():
    scale = HIGH * math.hypot(S, LOW) / math.hypot(S, HIGH) * S**2 / (S**2 + LOW**2)
    steps = [64, 128, 256, 512]
    exact = noise().double() * scale
    errors = [
        float((heun(gaussian, noise(), karras_sigmas(n, LOW, HIGH, 7.0)) - exact).norm())
        for n in steps
    ]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order == pytest.approx(2, abs=0.05)


def test_the_state_is_float64_and_a_sample_does_not_depend_on_its_batch() -> None:
    sigmas = karras_sigmas(8, LOW, HIGH, 7.0)
    together = heun(gaussian, noise(), sigmas)
    assert together.dtype == torch.float64
    alone = torch.cat([heun(gaussian, row[None], sigmas) for row in noise()])
    assert torch.equal(together, alone)
