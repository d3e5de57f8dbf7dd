"""The three ways to wrap a raw network F into a denoiser D (arXiv:2206.00364, table 1).

The letters are the paper's: sigma is the noise level, c_skip, c_out, c_in and c_noise scale the
image, the network's output, its input and its time. diffusers' EDM schedulers mean `EdmPrecond`;
an NVlabs checkpoint names one of the three.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from get.errors import InputError

Predict = Callable[[Tensor, Tensor], Tensor]
"""(network input, time of every sample) -> raw output, both in the network's convention."""


class Scalings(NamedTuple):
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) (Eq. 7, arXiv:2206.00364).

    `spread` is 1 / c_in: a division rounds once, a product with c_in twice.
    """

    c_skip: Float[Tensor, "*levels"]
    c_out: Float[Tensor, "*levels"]
    spread: Float[Tensor, "*levels"]
    c_noise: Float[Tensor, "*levels"]


@dataclass(frozen=True, kw_only=True)
class EdmPrecond:
    """EDM's own preconditioning, also that of the VP and VE networks that NVlabs trained anew.

    Attributes:
        sigma_min: Lowest noise level that the network was made for.
        sigma_max: Highest one.
        sigma_data: Standard deviation of the data in [-1, 1].
    """

    sigma_min: float = 0.0
    sigma_max: float = math.inf
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        """Refuse data without spread."""
        if not 0 < self.sigma_data < math.inf:
            raise InputError(f"expected sigma_data above 0, got {self.sigma_data}")

    def scalings(self, sigma: Float[Tensor, "*levels"]) -> Scalings:
        """Return the scalings at these noise levels."""
        spread = (sigma**2 + self.sigma_data**2).sqrt()
        c_out = sigma * self.sigma_data / spread
        return Scalings((self.sigma_data / spread) ** 2, c_out, spread, sigma.log() / 4)


@dataclass(frozen=True, kw_only=True)
class VpPrecond:
    """Preconditioning of variance-preserving diffusion (table 1, column VP).

    The networks of the files in EDM's `baseline/` folder were trained so.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    epsilon_t: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse a schedule that does not rise."""
        if not (0 < self.beta_d < math.inf and 0 <= self.beta_min < math.inf):
            raise InputError(f"expected beta_d, beta_min above 0, got {self.beta_d, self.beta_min}")

    @property
    def sigma_min(self) -> float:
        """Noise level at time epsilon_t."""
        return self._sigma(self.epsilon_t)

    @property
    def sigma_max(self) -> float:
        """Noise level at time 1."""
        return self._sigma(1.0)

    def _sigma(self, t: float) -> float:
        """Return sigma(t), rounded to float32 in between as EDM's code does."""
        time = torch.tensor(t, dtype=torch.float32)
        return float(((self.beta_d * time**2 / 2 + self.beta_min * time).exp() - 1).sqrt())

    def scalings(self, sigma: Float[Tensor, "*levels"]) -> Scalings:
        """Return the scalings at these noise levels."""
        root = (self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt()
        t = (root - self.beta_min) / self.beta_d
        return Scalings(torch.ones_like(sigma), -sigma, (sigma**2 + 1).sqrt(), (self.M - 1) * t)


@dataclass(frozen=True, kw_only=True)
class VePrecond:
    """Preconditioning of variance-exploding diffusion (table 1, column VE)."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def scalings(self, sigma: Float[Tensor, "*levels"]) -> Scalings:
        """Return the scalings at these noise levels."""
        one = torch.ones_like(sigma)
        return Scalings(one, sigma, one, (sigma / 2).log())


Precond = EdmPrecond | VpPrecond | VePrecond


def denoise(
    precond: Precond,
    predict: Predict,
    x: Float[Tensor, "batch channels height width"],
    sigma: Float[Tensor, "*levels"],
) -> Float[Tensor, "batch channels height width"]:
    """Return the denoised images D(x, sigma); one noise level for all (0-d) or one per sample."""
    c = precond.scalings(sigma.expand(len(x)).view(-1, 1, 1, 1))
    return c.c_skip * x + c.c_out * predict(x / c.spread, c.c_noise.flatten())
