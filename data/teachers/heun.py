"""EDM's own sampler, which diffusers lacks: Heun's method with a float64 state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.teachers.edm.precondition import EdmPrecond, Precond, Predict, denoise
from data.teachers.points import Point


def karras_sigmas(
    steps: int, sigma_min: float, sigma_max: float, rho: float
) -> Float[Tensor, " steps_plus_one"]:
    """Return EDM's float64 noise levels, falling, 0 appended (Eq. 5, arXiv:2206.00364)."""
    # not linspace, whose last bits are others than EDM's
    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def heun(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    noise: Float[Tensor, "batch channels height width"],
    sigmas: Float[Tensor, " levels"],
) -> Float[Tensor, "batch channels height width"]:
    """Integrate the probability-flow ODE by Heun's method (Alg. 1, arXiv:2206.00364).

    Args:
        denoiser: (noisy images, noise level as a 0-d tensor) -> denoised images; called
            2 * steps - 1 times.
        noise: Unit normal noise, scaled by the first noise level here.
        sigmas: Falling noise levels that end in 0.

    Returns:
        Float64 images, not clipped.
    """
    sigmas = sigmas.to(noise.device)
    x = noise.to(torch.float64) * sigmas[0]
    for now, following in pairwise(sigmas):
        slope = (x - denoiser(x, now)) / now
        euler = x + (following - now) * slope
        if following > 0:  # the slope has no value at 0, so the last step is Euler's
            slope = (slope + (euler - denoiser(euler, following)) / following) / 2
        x = x + (following - now) * slope
    return x


@dataclass(frozen=True, kw_only=True)
class EdmHeun:
    """EDM's own sampler: Heun's method with a float64 state, the network in float32."""

    precond: Precond
    steps: int
    sigma_min: float
    sigma_max: float
    rho: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any], steps: int) -> "EdmHeun":
        """Make the sampler from the settings of an `EDMEulerScheduler`, or ValueError.

        A `precond` may stand in for its `prediction_type` and `sigma_data`.
        """
        precond, levels = config.get("precond"), ("sigma_min", "sigma_max", "rho")
        if config.get("prediction_type") == "epsilon" and "sigma_data" in config:
            precond = EdmPrecond(sigma_data=config["sigma_data"])
        if not isinstance(precond, Precond) or not set(levels) <= config.keys():
            raise ValueError(
                f"{dict(config)} without prediction_type epsilon, sigma_data, {', '.join(levels)}"
            )
        return cls(precond=precond, steps=steps, **{name: config[name] for name in levels})

    @property
    def sigmas(self) -> Float[Tensor, " steps_plus_one"]:
        """Noise levels."""
        return karras_sigmas(self.steps, self.sigma_min, self.sigma_max, self.rho)

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return 2 * self.steps - 1

    @property
    def points(self) -> tuple[Point, ...]:
        """States between noise and image."""
        sigmas = self.sigmas[1:-1]
        scales = self.precond.scalings(sigmas).spread / (1 + sigmas**2).sqrt()
        levels = zip(sigmas.tolist(), scales.tolist(), strict=True)
        return tuple(Point(2 * i, *level) for i, level in enumerate(levels, 1))

    def __call__(
        self, predict: Predict, noise: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return float32 images of unit normal noise."""

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            return denoise(self.precond, predict, x.float(), sigma.float()).to(torch.float64)

        return heun(denoiser, noise, self.sigmas).float()
