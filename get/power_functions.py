"""Averages of weights by power functions, and others made of stored ones after the training.

An average at step t with exponent gamma weighs the weights of step s by the profile
p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on [0, t]. Averages are linear in their profiles: a sum
of stored averages is an average too, with the sum of their profiles. `fit` chooses the sum whose
profile is closest to a wanted one, in least squares. Karras et al. 2023, "Analyzing and improving
the training dynamics of diffusion models", sections 3.1 and 3.2, arXiv:2312.02696.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from get.errors import InputError

WIDEST = 12**-0.5  # relative width of the plain mean, exponent 0


class Profile(NamedTuple):
    """The weights of an average over time.

    Attributes:
        step: The average was taken up to this step.
        sigma_rel: Standard deviation of the profile as a share of `step`.
    """

    step: int
    sigma_rel: float


class Fit(NamedTuple):
    """A sum of stored averages.

    Attributes:
        coefficients: One for each stored average; their sum is 1.
        error: Distance of the profile of the sum from the wanted one, relative to its norm.
    """

    coefficients: list[float]
    error: float


@cache
def exponent(sigma_rel: float) -> float:
    """Return the exponent gamma >= 0 of a relative width.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), so gamma is the largest root of the
    cubic (gamma + 2)^2 (gamma + 3) - (gamma + 1) / sigma_rel^2.

    Raises:
        InputError: If the width is not above 0 and at most 12^-0.5, where gamma is 0.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise InputError(f"expected sigma_rel above 0 and at most {WIDEST:.4f}, got {sigma_rel}")
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(float(roots.real.max()), 0.0)


def inner_product(a: Profile, b: Profile) -> float:
    """Return the integral of the product of two profiles over time."""
    if a.step < b.step:
        a, b = b, a
    later, earlier = exponent(a.sigma_rel), exponent(b.sigma_rel)
    size = (later + 1) * (earlier + 1) / (later + earlier + 1)
    return size * (b.step / a.step) ** later / a.step


def fit(stored: Sequence[Profile], wanted: Profile) -> Fit:
    """Return the sum of stored averages that is closest to a wanted one.

    The coefficients sum to 1, so that weights that do not move stay what they are.

    Args:
        stored: Profiles of the stored averages, at least one.
        wanted: Profile of the average that is to be approximated.
    """
    norm = inner_product(wanted, wanted)
    products = np.array([[inner_product(a, b) for b in stored] for a in stored]) / norm
    target = np.array([inner_product(a, wanted) for a in stored]) / norm
    # The minimum of x A x - 2 x b where the sum of x is 1, with a Lagrange multiplier.
    count = len(stored)
    system = np.ones((count + 1, count + 1))
    system[:count, :count], system[count, count] = products, 0.0
    x = np.linalg.lstsq(system, np.append(target, 1.0))[0][:count]
    square = x @ products @ x - 2 * x @ target + 1
    return Fit(x.tolist(), float(max(square, 0.0) ** 0.5))
