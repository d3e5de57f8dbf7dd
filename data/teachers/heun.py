"""Deterministic ODE samplers that diffusers lacks: EDM's Heun with a float64 state."""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy images, sigma as a 0-d tensor) -> denoised images."""


def karras_sigmas(
    steps: int, sigma_min: float, sigma_max: float, rho: float
) -> Float[Tensor, " steps_plus_one"]:
    """Return EDM's float64 noise levels, falling, 0 appended (Eq. 5, arXiv:2206.00364)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


@torch.no_grad()
def heun(
    denoise: Denoise,
    noise: Float[Tensor, "batch channels height width"],
    sigmas: Float[Tensor, " levels"],
) -> Float[Tensor, "batch channels height width"]:
    """Integrate the probability-flow ODE by Heun's method (Alg. 1, arXiv:2206.00364).

    Args:
        denoise: The denoiser D(x, sigma), called 2 * steps - 1 times.
        noise: Unit normal noise, scaled by the first sigma here.
        sigmas: Falling noise levels that end in 0.

    Returns:
        Float64 images, not clipped.
    """
    sigmas = sigmas.to(noise.device)
    x = noise.to(torch.float64) * sigmas[0]
    for now, following in pairwise(sigmas):
        slope = (x - denoise(x, now)) / now
        euler = x + (following - now) * slope
        if following > 0:
            slope = (slope + (euler - denoise(euler, following)) / following) / 2
        x = x + (following - now) * slope
    return x
