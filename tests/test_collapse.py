"""Neural collapse: exact frames score 0, random features do not; turns and scales do not matter."""

import pytest
import torch
from torch import Tensor

from get.analysis import mean_cosine, neural_collapse, simplex
from get.errors import InputError

from .problems import seeded


def frame(classes: int, width: int) -> Tensor:
    """Return the vertices of a simplex in a random subspace."""
    basis, _ = torch.linalg.qr(torch.randn(width, classes, generator=seeded(1)).double())
    return (torch.eye(classes).double() - 1 / classes) @ basis.T


def cloud(vertices: Tensor, counts: list[int], noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return features around the vertices, so many of each class, whose means are exact."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    shape = (len(labels), vertices.shape[1])
    around = torch.randn(shape, generator=seeded(2), dtype=torch.float64)
    for c in range(len(counts)):
        around[labels == c] -= around[labels == c].mean(0)
    return vertices[labels] + noise * around, labels


def test_an_exact_frame_is_collapsed_whatever_its_turn_scale_centre_and_class_sizes():
    for classes, width in ((4, 7), (10, 10)):
        vertices = frame(classes, width)
        counts = [2 + 5 * (c % 3) for c in range(classes)]
        features, labels = cloud(3 * vertices + 11, counts)
        found = neural_collapse(features, labels, 0.2 * vertices)
        for value in (found.nc1, found.spread, found.nc2, found.nc2_classifier, found.nc3):
            assert abs(value) < 1e-9
        assert found.cosine == pytest.approx(-1 / (classes - 1))
        assert mean_cosine(vertices, range(classes)) == pytest.approx(-1 / (classes - 1))


def test_random_features_and_classifiers_are_not_collapsed():
    features = torch.randn(600, 20, generator=seeded(0))
    labels = torch.arange(600) % 10
    found = neural_collapse(features, labels, torch.randn(10, 20, generator=seeded(3)))
    assert found.nc1 > 5
    assert found.spread > 5
    assert min(found.nc2, found.nc2_classifier, found.nc3) > 0.3


def test_turning_and_scaling_changes_nothing():
    features, labels = cloud(frame(5, 12), [9, 9, 9, 2, 2], noise=0.05)
    rows = frame(5, 12) + 0.1 * torch.randn(5, 12, generator=seeded(4), dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(12, 12, generator=seeded(5), dtype=torch.float64))
    one = neural_collapse(features, labels, rows)
    other = neural_collapse(7 * features @ turn - 3, labels, 0.1 * rows @ turn)
    for name, value in vars(one).items():
        assert getattr(other, name) == pytest.approx(value, rel=1e-6), name


def test_variation_within_classes_is_the_trace_of_its_quotient_by_that_between():
    vertices, noise = frame(3, 4), 0.1
    features, labels = cloud(vertices, [50, 50, 50], noise)
    centred = features - vertices[labels]
    within = centred.T @ centred / 150
    between = vertices.T @ vertices / 3
    found = neural_collapse(features, labels, vertices)
    assert found.nc1 == pytest.approx(float((within @ torch.linalg.pinv(between)).trace()) / 3)
    assert found.spread == pytest.approx(float(within.trace() / between.trace()))


def test_features_of_one_number_are_measured_too():
    features = torch.tensor([[1.0], [3.0], [-2.0], [-4.0]])
    found = neural_collapse(features, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0], [-1.0]]))
    assert (found.nc1, found.spread) == pytest.approx((1 / 2 / 6.25, 1 / 6.25))  # means 2 and -3
    assert (found.nc2, found.nc3, found.cosine) == pytest.approx((0, 0, -1))


def test_every_class_counts_alike():
    """The centre of three points and one far away is the mean of the class means."""
    vertices = frame(3, 4)
    many, _ = cloud(vertices, [300, 3, 3], noise=0.2)
    labels = torch.arange(3).repeat_interleave(torch.tensor([300, 3, 3]))
    assert neural_collapse(many, labels, vertices).nc2 < 1e-9  # the sample mean as centre gives 0.8


def test_the_gram_matrix_of_a_simplex_has_norm_one_and_rows_that_sum_to_zero():
    gram = simplex(6)
    assert float(gram.norm()) == pytest.approx(1)
    assert float(gram.sum(0).abs().max()) < 1e-12


@pytest.mark.parametrize(("ratio", "low", "high"), [(1, -0.34, -0.32), (1000, 0.99, 1.01)])
def test_free_features_make_a_simplex_if_balanced_and_merge_minorities_if_not(ratio, low, high):
    """The layer-peeled model: cross entropy over features and classifier of bounded size."""
    counts = torch.tensor([ratio, ratio, 1, 1], dtype=torch.float64)
    h, w = (torch.randn(4, 8, generator=seeded(s), dtype=torch.float64) for s in (6, 7))
    for x in (h, w):
        x.requires_grad_()
    optimizer = torch.optim.Adam([h, w], 0.05)
    labels = torch.arange(4)
    for _ in range(1200):
        optimizer.zero_grad()
        # Mean squares of the rows are 1, and of the features 5.
        rows = w / w.square().sum(1).mean().sqrt()
        features = 5**0.5 * h / h.square().sum(1).mean().sqrt()
        each = torch.nn.functional.cross_entropy(features @ rows.T, labels, reduction="none")
        (each * counts / counts.sum()).sum().backward()
        optimizer.step()
    assert low < mean_cosine(rows.detach(), [2, 3]) < high
    found = neural_collapse(features.detach(), labels, rows.detach())
    assert (found.nc2 < 0.02 and found.nc3 < 0.02) == (ratio == 1)


def test_a_class_without_features_is_refused():
    with pytest.raises(InputError, match=r"each of 3 classes, .* got those of \[0, 2\]"):
        neural_collapse(torch.zeros(2, 4), torch.tensor([0, 2]), torch.zeros(3, 4))
    with pytest.raises(InputError, match=r"each of 2 classes, .* got those of \[0, 1, 2\]"):
        neural_collapse(torch.zeros(3, 4), torch.arange(3), torch.zeros(2, 4))
    with pytest.raises(InputError, match=r"at least two classes, got \[1\]"):
        mean_cosine(torch.ones(3, 2), [1])
