"""The Frechet distance of a student's images from reference images, as a training loss.

FD-loss (arXiv:2604.28190). A batch is too small to be compared as a distribution, so the moments
of the student's features are averaged over many batches; the gradient goes through the last one.
It needs no pairs and no teacher, only moments of reference images. A network whose features were
trained on can no longer judge the student: measure in others.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from get.equilibrium.vectors import full_precision

SHRUNK = 8  # side of the images whose pixels are compared
SMALLEST = 1e-9  # eigenvalue whose root is differentiated


class Moments(nn.Module):
    """Moments of feature vectors, float64.

    Attributes:
        mean: E[v], of shape (features,).
        second: E[v v^T], not centred, of shape (features, features).
    """

    mean: Tensor
    second: Tensor

    def __init__(self, features: int, device: torch.device | None = None) -> None:
        """Start at zero."""
        super().__init__()
        options = {"dtype": torch.float64, "device": device}
        self.register_buffer("mean", torch.zeros(features, **options))
        self.register_buffer("second", torch.zeros(features, features, **options))


class FrechetLoss:
    """Frechet distance between averaged moments of the student's images and a reference.

    A training step calls it (or `collect`) once a micro-batch, then `update` once.

    Attributes:
        moments: Averaged moments of the student's features.
    """

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        mean: Float[Tensor, " features"],
        covariance: Float[Tensor, "features features"],
    ) -> None:
        """Take the root of the reference's covariance.

        Args:
            features: Maps images in [-1, 1] to feature vectors, differentiably.
            mean: Of the features of the reference images.
            covariance: Of these features.
        """
        self.features, self.reference_mean = features, mean.double()
        self.reference_trace, self.reference_root = _root(covariance.double())
        self.moments = Moments(len(mean), mean.device)
        self._batches: list[tuple[Tensor, Tensor]] = []  # moments of this step's micro-batches

    def __call__(self, images: Float[Tensor, "batch channels side side"]) -> Float[Tensor, ""]:
        """Return the distance at the averaged moments.

        Its gradient is that of the distance by the moments, applied to those of this batch. They
        count as if the averages were theirs, so the gradient's size does not depend on how many
        images are averaged.
        """
        mean, second = self.collect(images)
        with full_precision(images.device), torch.enable_grad():
            at = [x.clone().requires_grad_() for x in (self.moments.mean, self.moments.second)]
            distance = self.distance(*at)
            by_mean, by_second = torch.autograd.grad(distance, at)
        moved = (by_mean * mean).sum() + (by_second * second).sum()
        return distance.detach() + moved - moved.detach()

    def collect(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> tuple[Float[Tensor, " features"], Float[Tensor, "features features"]]:
        """Keep the moments of a micro-batch for the next `update`, and return them."""
        with full_precision(images.device):
            vectors = self.features(images.float()).double()
            mean, second = vectors.mean(0), vectors.T @ vectors / len(vectors)
        self._batches.append((mean.detach(), second.detach()))
        return mean, second

    def distance(
        self, mean: Float[Tensor, " features"], second: Float[Tensor, "features features"]
    ) -> Float[Tensor, ""]:
        """Return the squared Frechet distance of Gaussians (arXiv:1706.08500) from the reference.

        |m - r|^2 + tr(C) + tr(R) - 2 tr((R^1/2 C R^1/2)^1/2), C and R the covariances.

        Args:
            mean: E[v], m above.
            second: E[v v^T], so that C = second - m m^T.
        """
        covariance = second - torch.outer(mean, mean)
        product = self.reference_root @ covariance @ self.reference_root
        roots = torch.linalg.eigvalsh(product).clamp_min(SMALLEST).sqrt()
        shift = (mean - self.reference_mean).square().sum()
        return shift + covariance.trace() + self.reference_trace - 2 * roots.sum()

    def update(self, share: float, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move the averages towards the moments of the batches since the last update.

        Args:
            share: Weight of the new moments; 1 forgets the old ones.
            reduce: Averages a tensor over processes; None leaves it as it is.
        """
        averages = self.moments.mean, self.moments.second
        for average, parts in zip(averages, zip(*self._batches, strict=True), strict=True):
            new = torch.stack(parts).mean(0)
            average.lerp_(new if reduce is None else reduce(new), share)
        self._batches.clear()


def with_pixels(features: Callable[[Tensor], Tensor], scale: float) -> Callable[[Tensor], Tensor]:
    """Return a map of images to their features and their pixels, which no network has chosen.

    A student that is trained on the features of one network comes closer to the reference in those
    of others if it must have the reference's pixels as well (docs/log.md).

    Args:
        features: Maps images in [-1, 1] to feature vectors.
        scale: Of the pixels of images shrunk to 8x8; 0 leaves them out.
    """
    if not scale:
        return features

    def both(images: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(images, min(SHRUNK, images.shape[-1])).flatten(1)
        return torch.cat([features(images), scale * small], 1)

    return both


def _root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the trace and the symmetric root of a covariance matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return covariance.trace(), (vectors * values.clamp_min(0).sqrt()) @ vectors.T
