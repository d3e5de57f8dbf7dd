"""The three ways that EDM wraps a raw network F into a denoiser D (arXiv:2206.00364, table 1).

sigma is the noise level, c_skip, c_out, c_in and c_noise are the paper's. edm_checkpoint.py chooses
among them by the name of a checkpoint's wrapper.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from get.errors import InputError


class Scalings(NamedTuple):
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) (Eq. 7, arXiv:2206.00364)."""

    c_skip: Float[Tensor, "*levels"]
    c_out: Float[Tensor, "*levels"]
    c_in: Float[Tensor, "*levels"]
    c_noise: Float[Tensor, "*levels"]


@dataclass(frozen=True, kw_only=True)
class EdmPrecond:
    """EDM's own preconditioning (table 1); also that of the main release's VP and VE networks."""

    sigma_min: float = 0.0
    sigma_max: float = math.inf
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        """Refuse data without spread."""
        if not 0 < self.sigma_data < math.inf:
            raise InputError(f"expected sigma_data above 0, got {self.sigma_data}")

    def scalings(self, sigma: Float[Tensor, "*levels"]) -> Scalings:
        """Return the scalings at these noise levels."""
        total = sigma**2 + self.sigma_data**2
        c_out = sigma * self.sigma_data / total.sqrt()
        return Scalings(self.sigma_data**2 / total, c_out, 1 / total.sqrt(), sigma.log() / 4)


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
        """Return sigma(t) in float32, rounding and all, as EDM does."""
        time = torch.tensor(t, dtype=torch.float32)
        return float(((self.beta_d * time**2 / 2 + self.beta_min * time).exp() - 1).sqrt())

    def scalings(self, sigma: Float[Tensor, "*levels"]) -> Scalings:
        """Return the scalings at these noise levels."""
        root = (self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt()
        t = (root - self.beta_min) / self.beta_d
        c_in = 1 / (sigma**2 + 1).sqrt()
        return Scalings(torch.ones_like(sigma), -sigma, c_in, (self.M - 1) * t)


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
