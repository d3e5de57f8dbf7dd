"""How far numbers are from a distribution that is fully known: Kolmogorov-Smirnov, kurtosis."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

TERMS = 100  # of Kolmogorov's series


def kolmogorov_smirnov(uniform: Float[Tensor, " draws"]) -> tuple[float, float]:
    """Compare numbers that should be uniform on [0, 1] with that distribution.

    Args:
        uniform: Values of the supposed distribution function at independent draws.

    Returns:
        The largest distance of the distribution functions, and its p-value: Kolmogorov's limit
        law with Stephens' correction for finite samples (JRSS B 32, 1970).
    """
    count = len(uniform)
    ordered = uniform.sort().values.double()
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    distance = float(torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max())
    root = count**0.5
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # the series converges slowly there, and is 1 to 12 digits
        return distance, 1.0
    series = sum(
        (-1) ** (j - 1) * math.exp(-2 * j * j * scaled * scaled) for j in range(1, TERMS + 1)
    )
    return distance, min(max(2 * series, 0.0), 1.0)


def normal_to_uniform(values: Float[Tensor, " draws"], variance: float) -> Float[Tensor, " draws"]:
    """Return the distribution function of N(0, variance) at these values."""
    return torch.special.ndtr(values.double() / variance**0.5)


def gaussian_to_uniform(
    vectors: Float[Tensor, "draws points"], covariance: Float[Tensor, "points points"]
) -> Float[Tensor, " draws"]:
    """Return the distribution function of chi^2 at f . K^-1 f, which follows it if f is N(0, K)."""
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, vectors.double().T, upper=False)
    half = torch.tensor(vectors.shape[1] / 2, dtype=torch.float64)
    return torch.special.gammainc(half, white.square().sum(0) / 2)


def mixture_kurtosis(variances: Float[Tensor, " draws"]) -> tuple[float, float]:
    """Return the excess kurtosis of N(0, q) with random q, and its standard error.

    It is 3 Var(q) / E[q]^2, so the normal numbers themselves need not be drawn. The error is that
    of the delta method.
    """
    q = variances.double() / variances.double().mean()
    # For r = m2 / m1^2 with m1 = 1: dr = (q^2 - m2) - 2 m2 (q - 1).
    second = float(q.square().mean())
    slope = q.square() - second - 2 * second * (q - 1)
    return 3 * (second - 1), 3 * float(slope.std()) / len(q) ** 0.5
