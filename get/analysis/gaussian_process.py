"""Exact Gaussian-process regression with a given kernel matrix, over its eigenvalues.

One factorisation serves every noise level. Classes are regressed as one-hot targets, as is usual
for these kernels (arXiv:1711.00165): the posterior is then exact, which that of a softmax is not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from get.errors import InputError


@dataclass(frozen=True)
class Posterior:
    """What is known of the targets at new points.

    Attributes:
        mean: Of each target.
        variance: Of each point, noise included; the same for all targets.
    """

    mean: Float[Tensor, "points targets"]
    variance: Float[Tensor, " points"]

    def log_density(self, targets: Float[Tensor, "points targets"]) -> Float[Tensor, " points"]:
        """Return the log density of observed targets, in nats, summed over the targets."""
        variance = self.variance[:, None]
        each = -0.5 * ((targets - self.mean) ** 2 / variance + (2 * math.pi * variance).log())
        return each.sum(1)


class Regression:
    """Regression on observed points; scale and noise are those of greatest marginal likelihood.

    The covariance of the targets is scale * (K + ratio * I). For each ratio the best scale has a
    closed form: the mean over points and targets of y (K + ratio I)^-1 y.

    Attributes:
        ratio: Noise variance over scale.
        scale: What the kernel is multiplied by.
        log_likelihood: Log marginal likelihood of all targets, in nats.
        smallest_eigenvalue: Of the kernel, without noise.
    """

    def __init__(
        self,
        kernel: Float[Tensor, "points points"],
        targets: Float[Tensor, "rows targets"],
        ratios: Sequence[float] = tuple(10.0**k for k in range(-8, 1)),
    ) -> None:
        """Factorise the kernel and choose the ratio.

        Args:
            kernel: Symmetric, in float64.
            targets: What was observed.
            ratios: Those that are tried, each positive.

        Raises:
            InputError: If shapes do not fit or a ratio is not positive.
        """
        if kernel.shape != (len(targets),) * 2 or targets.dim() != 2:
            raise InputError(
                "expected a square kernel and a row of targets for each of its points, got shapes "
                f"{tuple(kernel.shape)} and {tuple(targets.shape)}"
            )
        if not ratios or min(ratios) <= 0:
            raise InputError(f"expected positive ratios, got {tuple(ratios)}")
        self._values, self._vectors = torch.linalg.eigh(kernel)
        self._rotated = self._vectors.T @ targets
        self.smallest_eigenvalue = float(self._values[0])
        fits = [(*self._fit(ratio), ratio) for ratio in ratios]
        self.log_likelihood, self.scale, self.ratio = max(fits)

    def _fit(self, ratio: float) -> tuple[float, float]:
        """Return log marginal likelihood and best scale at this ratio."""
        count = self._rotated.numel()
        values = self._values.clamp_min(0) + ratio
        scale = float((self._rotated**2 / values[:, None]).sum()) / count
        log_determinant = float(values.log().sum()) * self._rotated.shape[1]
        likelihood = -0.5 * (count * (1 + math.log(2 * math.pi * scale)) + log_determinant)
        return likelihood, scale

    def __call__(
        self, cross: Float[Tensor, "new points"], variance: Float[Tensor, " new"]
    ) -> Posterior:
        """Return the posterior at new points.

        Args:
            cross: Kernel between new and observed points.
            variance: Kernel of each new point with itself.
        """
        inverse = 1 / (self._values.clamp_min(0) + self.ratio)
        rotated = cross @ self._vectors
        explained = (rotated**2 * inverse).sum(1)
        return Posterior(
            rotated @ (inverse[:, None] * self._rotated),
            self.scale * ((variance - explained).clamp_min(0) + self.ratio),
        )
