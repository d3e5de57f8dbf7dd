"""Preconditioning: the formulas of EDM's table 1, diffusers' own, and a noise level per sample."""

import pytest
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from torch import Tensor

from data.teachers.edm.precondition import EdmPrecond, Precond, VePrecond, VpPrecond, denoise

from .diffusers_files import tiny_unet

SIGMA = torch.tensor([0.002, 0.02, 0.5, 1.0, 20.0, 80.0], dtype=torch.float64)


def test_edm_scalings_keep_input_and_target_at_unit_variance() -> None:
    c = EdmPrecond(sigma_data=0.7).scalings(SIGMA)
    total = SIGMA**2 + 0.49
    torch.testing.assert_close(c.spread**-2 * total, torch.ones_like(SIGMA))
    target = ((1 - c.c_skip) * 0.7) ** 2 + (c.c_skip * SIGMA) ** 2
    torch.testing.assert_close(c.c_out**2, target)
    torch.testing.assert_close(c.c_noise, SIGMA.log() / 4)


def test_vp_scalings_invert_the_noise_schedule() -> None:
    precond = VpPrecond()
    t = torch.tensor([0.01, 0.3, 1.0], dtype=torch.float64)
    sigma = ((19.9 * t**2 / 2 + 0.1 * t).exp() - 1).sqrt()
    c = precond.scalings(sigma)
    torch.testing.assert_close(c.c_noise, 999 * t)
    torch.testing.assert_close(1 / c.spread, (sigma**2 + 1) ** -0.5)
    assert torch.equal(c.c_out, -sigma)
    assert torch.equal(c.c_skip, torch.ones(3, dtype=torch.float64))
    assert (precond.sigma_min, precond.sigma_max) == (0.0009765625, 152.16697692871094)


def test_ve_scalings() -> None:
    c = VePrecond().scalings(SIGMA)
    one = torch.ones_like(SIGMA)
    assert torch.equal(c.c_skip, one)
    assert torch.equal(c.spread, one)
    assert torch.equal(c.c_out, SIGMA)
    torch.testing.assert_close(c.c_noise, (SIGMA / 2).log())
    assert (VePrecond().sigma_min, VePrecond().sigma_max) == (0.02, 100.0)


@pytest.mark.parametrize("precond", [EdmPrecond(), VpPrecond(), VePrecond()])
def test_a_denoiser_is_c_skip_x_plus_c_out_of_the_network(precond: Precond) -> None:
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.3, 7.0])

    def network(x: Tensor, time: Tensor) -> Tensor:
        return x.sin() + time.view(-1, 1, 1, 1)

    c_skip, c_out, spread, c_noise = (part.view(2, 1, 1, 1) for part in precond.scalings(sigma))
    expected = c_skip * x + c_out * network(x / spread, c_noise.flatten())
    torch.testing.assert_close(denoise(precond, network, x, sigma), expected)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.75, 80.0])
@pytest.mark.parametrize("sigma_data", [0.5, 0.75])
def test_preconditioning_is_that_of_diffusers_own_scheduler(sigma, sigma_data):
    unet, level = tiny_unet(None).double().eval(), torch.tensor(sigma, dtype=torch.float64)
    theirs = EDMEulerScheduler(sigma_data=sigma_data)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64) * sigma
    with torch.no_grad():
        scaled, time = theirs.precondition_inputs(x, level), theirs.precondition_noise(level)
        expected = theirs.precondition_outputs(x, unet(scaled, time).sample, level)
        ours = denoise(
            EdmPrecond(sigma_data=sigma_data), lambda x, time: unet(x, time).sample, x, level
        )
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
