"""Neural collapse: how close class means are to a simplex, and features to the mean of their class.

At the end of a training that has no errors left, the features of a class gather at their mean
(NC1), the means form a simplex equiangular tight frame about their centre (NC2), and the rows of
the classifier point where the means do (NC3; arXiv:2008.08186). Every class counts alike here,
whatever its number of images: the centre is the mean of the class means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from get.errors import InputError

Vectors = Float[Tensor, "classes width"]


@dataclass(frozen=True)
class Collapse:
    """How far a classifier is from neural collapse; all but `cosine` are 0 at its end.

    Attributes:
        nc1: Variation within classes, tr(S_W S_B^+) / classes. Where two means coincide, as in
            minority collapse, S_B is nearly singular and this grows without bound.
        spread: tr(S_W) / tr(S_B), which does not.
        nc2: Distance of the Gram matrix of the centred means from that of a simplex.
        nc2_classifier: The same of the classifier's rows.
        nc3: Distance of their products, rows with centred means, from it: self-duality.
        cosine: Mean cosine between centred means of different classes; -1 / (classes - 1) in a
            simplex.
    """

    nc1: float
    spread: float
    nc2: float
    nc2_classifier: float
    nc3: float
    cosine: float


def simplex(classes: int) -> Float[Tensor, "classes classes"]:
    """Return the Gram matrix (I - 1 1^T / K) / sqrt(K - 1) of a simplex, of Frobenius norm 1."""
    identity = torch.eye(classes, dtype=torch.float64)
    return (identity - 1 / classes) / (classes - 1) ** 0.5


def class_means(
    features: Float[Tensor, "batch width"], labels: Int[Tensor, " batch"], classes: int
) -> tuple[Vectors, Float[Tensor, "width width"]]:
    """Return the mean of each class, and the covariance within classes, in float64.

    The covariance is the mean over classes of each class's own.

    Raises:
        InputError: If there are fewer than two classes, others, or one has no features.
    """
    counts = labels.bincount(minlength=classes)
    if not 2 <= classes == len(counts) or not bool((counts > 0).all()):
        raise InputError(
            f"expected features of each of {classes} classes, at least two, got those of "
            f"{labels.unique().tolist()}; give the number of classes that there are"
        )
    features = features.detach().double()
    means = torch.stack([features[labels == c].mean(0) for c in range(classes)])
    rest = (features - means[labels]) / (classes * counts[labels, None]).sqrt()
    return means, rest.T @ rest


def neural_collapse(
    features: Float[Tensor, "batch width"], labels: Int[Tensor, " batch"], classifier: Vectors
) -> Collapse:
    """Measure the collapse of a trained classifier.

    Args:
        features: What the last layer sees, of training images.
        labels: Their classes; every class occurs.
        classifier: The weight of the last layer, a row a class.
    """
    classes = len(classifier)
    means, within = class_means(features, labels, classes)
    centred = means - means.mean(0)
    between = centred.T @ centred / classes
    rows = classifier.detach().double()
    inverse = torch.linalg.pinv(between, rtol=1e-10, hermitian=True)
    return Collapse(
        nc1=float((within @ inverse).trace()) / classes,
        spread=float(within.trace() / between.trace()),
        nc2=_from_simplex(centred @ centred.T),
        nc2_classifier=_from_simplex(rows @ rows.T),
        nc3=_from_simplex(rows @ centred.T),
        cosine=mean_cosine(centred, range(classes)),
    )


def _from_simplex(products: Float[Tensor, "classes classes"]) -> float:
    """Return the Frobenius distance of a matrix, scaled to norm 1, from that of a simplex."""
    return float((products / products.norm() - simplex(len(products))).norm())


def mean_cosine(vectors: Vectors, classes: Sequence[int]) -> float:
    """Return the mean cosine between the vectors of different classes among these.

    Of the classifier's rows of minority classes it tends to 1 in minority collapse
    (arXiv:2101.12699).

    Raises:
        InputError: If there are fewer than two classes.
    """
    if len(classes) < 2:
        raise InputError(f"expected at least two classes, got {list(classes)}")
    unit = torch.nn.functional.normalize(vectors.detach().double(), dim=1)
    pairs = torch.tensor(list(combinations(classes, 2)))
    return float((unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1).mean())
