"""Moments of feature vectors and the Inception Score, from batches that come one after another.

No process needs to hold all images or all their features. Values are those of torch-fidelity, which
holds everything: the same formulas in float64.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from get.errors import InputError

SEED, SPLITS = 2020, 10  # of torch-fidelity's Inception Score


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The Gaussian that is fitted to feature vectors.

    Attributes:
        mean: Their mean.
        covariance: Their unbiased covariance.
        count: Of how many vectors; None if a file does not say it.
    """

    mean: Float[Tensor, " features"]
    covariance: Float[Tensor, "features features"]
    count: int | None

    def distance(self, other: "Gaussian") -> float:
        """Return the Frechet distance (FID, arXiv:1706.08500), by torch-fidelity's formula.

        Raises:
            InputError: If the vectors have other lengths.
        """
        if self.mean.shape != other.mean.shape:
            raise InputError(
                f"expected statistics of {len(self.mean)} features, got {len(other.mean)}; "
                "they were made with another feature network"
            )
        both = [
            {"mu": g.mean.double().numpy(), "sigma": g.covariance.double().numpy()}
            for g in (self, other)
        ]
        return fid_statistics_to_metric(*both, verbose=False)[KEY_METRIC_FID]


class Moments:
    """Collects mean and scatter in float64; parts are merged as by Chan, Golub and LeVeque."""

    def __init__(self) -> None:
        """Collect nothing yet."""
        self.count, self.mean, self.scatter = 0, torch.zeros(()), torch.zeros(())

    def add(self, features: Float[Tensor, "batch features"]) -> None:
        """Take the vectors of some more images."""
        x, n = features.double(), len(features)
        mean = x.mean(0)
        centred = x - mean
        shift, total = mean - self.mean, self.count + n
        self.scatter = self.scatter + centred.T @ centred
        self.scatter += torch.outer(shift, shift) * (self.count * n / total)
        self.mean = self.mean + shift * (n / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Return the Gaussian of all vectors so far.

        Raises:
            InputError: If there are fewer than 2.
        """
        if self.count < 2:
            raise InputError(f"expected at least 2 images, got {self.count}")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


class InceptionScore:
    """The Inception Score (arXiv:1606.03498) of a known number of images.

    Images are divided at random into ten parts, as torch-fidelity does; an image's part depends on
    its place and the number of images.
    """

    def __init__(self, count: int) -> None:
        """Divide `count` images into parts."""
        order = np.random.RandomState(SEED).permutation(count)
        edges = [i * count // SPLITS for i in range(SPLITS + 1)]
        self._part = torch.empty(count, dtype=torch.int64)
        self._part[order] = torch.bucketize(
            torch.arange(count), torch.tensor(edges[1:-1]), right=True
        )
        self._sizes = torch.bincount(self._part, minlength=SPLITS)
        self._entropy = torch.zeros(SPLITS, dtype=torch.float64)
        self._classes: Tensor | None = None
        self._at = 0

    def add(self, logits: Float[Tensor, "batch classes"]) -> None:
        """Take the logits of the next images."""
        logits = logits.double()
        p, log_p = logits.softmax(1), logits.log_softmax(1)
        part = self._part[self._at : self._at + len(p)]
        self._at += len(p)
        if self._classes is None:
            self._classes = p.new_zeros(SPLITS, p.shape[1])
        self._classes.index_add_(0, part, p)
        self._entropy.index_add_(0, part, (p * log_p).sum(1))

    def value(self) -> tuple[float, float] | None:
        """Return mean and standard deviation over the parts; None for fewer than 10 images."""
        if self._classes is None or not self._sizes.all():
            return None
        sizes = self._sizes.double()
        marginal = self._classes / sizes[:, None]
        scores = (self._entropy / sizes - torch.special.xlogy(marginal, marginal).sum(1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))
