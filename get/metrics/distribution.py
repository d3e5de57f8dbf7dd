"""FID, KID, precision and recall of two sets of feature vectors, by torch-fidelity's own code."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from get.errors import InputError

LARGE = 10_000  # vectors beyond which the matrix of all distances is not kept


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Distances of generated from real images; only ratios mean anything across features.

    Attributes:
        fid: Frechet distance of two Gaussians fitted to the features (arXiv:1706.08500).
        kid: Kernel distance, polynomial kernel, mean over subsets (arXiv:1801.01401).
        precision: Share of generated images inside the real ones' 3-nearest-neighbour balls.
        recall: Share of real images inside the generated ones' balls (arXiv:1904.06991).
        generated: Number of generated images.
        real: Number of real images.
    """

    fid: float
    kid: float
    precision: float
    recall: float
    generated: int
    real: int


@torch.no_grad()
def features_of(
    features: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
    batch_size: int = 256,
) -> Float[Tensor, "batch features"]:
    """Return float64 feature vectors on the CPU.

    Args:
        features: Maps a batch of images to vectors.
        images: In the range `features` wants.
        batch_size: Images at once.
    """
    parts = [features(part).cpu().double() for part in images.split(batch_size)]
    return torch.cat(parts)


def frechet_distance(
    generated: Float[Tensor, "generated features"], real: Float[Tensor, "real features"]
) -> float:
    """Return the Frechet distance of two Gaussians fitted to feature vectors (FID)."""
    statistics = [fid_features_to_statistics(features) for features in (generated, real)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def kernel_distance(
    generated: Float[Tensor, "generated features"],
    real: Float[Tensor, "real features"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> float:
    """Return KID of feature vectors; the defaults are torch-fidelity's.

    Args:
        generated: Feature vectors of generated images.
        real: Feature vectors of real images.
        subsets: Random subsets that it is averaged over.
        subset_size: Images a subset; lowered to the smaller set where that is smaller.
        seed: Of the subsets.
    """
    kid = kid_features_to_metric(
        generated,
        real,
        kid_subsets=subsets,
        kid_subset_size=min(subset_size, len(generated), len(real)),
        rng_seed=seed,
        verbose=False,
    )
    return kid["kernel_inception_distance_mean"]


def precision_recall(
    generated: Float[Tensor, "generated features"], real: Float[Tensor, "real features"]
) -> tuple[float, float]:
    """Return precision and recall of feature vectors; see `Scores`."""
    large = max(len(generated), len(real)) > LARGE
    prc = prc_features_to_metric(generated, real, save_cpu_ram=large, verbose=False)
    return float(prc["precision"]), float(prc["recall"])


def score(
    generated: Float[Tensor, "generated features"],
    real: Float[Tensor, "real features"],
    *,
    kid_subsets: int = 100,
    kid_subset_size: int = 200,
    seed: int = 0,
) -> Scores:
    """Compare feature vectors of generated and real images.

    Args:
        generated: Feature vectors of generated images.
        real: Feature vectors of real images.
        kid_subsets: Random subsets KID is averaged over.
        kid_subset_size: Images a subset; lowered to the smaller set where that is smaller.
        seed: Of the subsets.

    Raises:
        InputError: If a set has fewer than 4 vectors (precision needs 3 neighbours).
    """
    fewest = min(len(generated), len(real))
    if fewest < 4:
        raise InputError(f"expected at least 4 images on either side, got {fewest}")
    kid = kernel_distance(
        generated, real, subsets=kid_subsets, subset_size=kid_subset_size, seed=seed
    )
    precision, recall = precision_recall(generated, real)
    return Scores(
        fid=frechet_distance(generated, real),
        kid=kid,
        precision=precision,
        recall=recall,
        generated=len(generated),
        real=len(real),
    )
