"""The metrics on sets with known answers: closed forms, worked examples, limits."""

import pytest
import torch
from torch import Tensor

from get.errors import InputError
from get.metrics import features_of, nearest_distance, score

from .problems import normal, seeded


def gauss(count: int, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=seeded(seed), dtype=torch.float64)


def whitened(count: int, seed: int = 0) -> Tensor:
    """Return samples whose mean is exactly 0 and whose covariance is exactly the identity."""
    x = gauss(count, seed=seed)
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T


def test_a_set_equals_itself():
    scores = score(gauss(200), gauss(200))
    assert scores.fid == pytest.approx(0, abs=1e-8)
    assert scores.kid == pytest.approx(0, abs=0.1)
    assert (scores.precision, scores.recall) == (1, 1)
    assert (scores.generated, scores.real) == (200, 200)


def test_fid_of_shifted_and_scaled_gaussians_is_the_closed_form():
    shift = torch.tensor([1.0, -2, 0, 0.5, 0, 0], dtype=torch.float64)
    scale = torch.tensor([1.0, 2, 0.5, 1, 3, 1], dtype=torch.float64)
    fid = score(whitened(150, seed=1) * scale + shift, whitened(100)).fid
    expected = shift.square().sum() + (scale - 1).square().sum()
    assert fid == pytest.approx(float(expected), rel=1e-6)


def test_kid_over_whole_sets_is_the_unbiased_cubic_kernel_distance():
    x, y = gauss(30), gauss(30, seed=1) + 0.5
    k_xx, k_yy, k_xy = (
        (a @ b.T / 6 + 1).pow(3).fill_diagonal_(0) if a is b else (a @ b.T / 6 + 1).pow(3)
        for a, b in ((x, x), (y, y), (x, y))
    )
    expected = (k_xx.sum() + k_yy.sum()) / (30 * 29) - 2 * k_xy.mean()
    kid = score(x, y, kid_subsets=2, kid_subset_size=30).kid
    assert kid == pytest.approx(float(expected), rel=1e-6)


def test_subset_size_is_lowered_to_the_smaller_set():
    lowered = score(gauss(20), gauss(30, seed=1), kid_subset_size=1000)
    assert lowered == score(gauss(20), gauss(30, seed=1), kid_subset_size=20)


def test_kid_depends_on_its_seed_alone():
    x, y = gauss(100), gauss(100, seed=1)
    first, again, other = (score(x, y, kid_subset_size=20, seed=s).kid for s in (3, 3, 4))
    assert first == again != other


def test_distances_grow_with_the_shift():
    near, far = (score(gauss(200) + d, gauss(200, seed=1)) for d in (0.3, 2.0))
    assert near.fid < far.fid
    assert near.kid < far.kid


def test_precision_and_recall_of_a_worked_example():
    # Real points 0 .. 4 on a line, balls reach the third neighbour: radii 3, 2, 2, 2, 3.
    # Generated: -2.5 and 6.5 lie in the balls of 0 and 4, 100 and 101 in none;
    # their own radii are 93.5 and more, so the ball of -2.5 holds every real point.
    real, generated = (
        torch.tensor([[x, 0.0] for x in points], dtype=torch.float64)
        for points in ((0, 1, 2, 3, 4), (-2.5, 6.5, 100, 101))
    )
    scores = score(generated, real)
    assert (scores.precision, scores.recall) == (0.5, 1)


def test_a_subset_of_the_real_images_has_full_precision_and_misses_what_it_leaves_out():
    left, right = gauss(60) - 50, gauss(60, seed=1) + 50
    scores = score(left[:40], torch.cat([left, right]))
    assert scores.precision == 1
    assert scores.recall <= 0.5
    swapped = score(torch.cat([left, right]), left[:40])
    assert swapped.recall == 1
    assert swapped.precision <= 0.5


def test_images_far_from_all_real_ones_have_neither_precision_nor_recall():
    scores = score(gauss(50) + 1000, gauss(50, seed=1))
    assert (scores.precision, scores.recall) == (0, 0)


@pytest.mark.parametrize(("generated", "real"), [(3, 50), (50, 3), (1, 1)])
def test_too_few_images_are_refused(generated, real):
    with pytest.raises(InputError, match="expected at least 4 images"):
        score(gauss(generated), gauss(real))


def test_four_images_are_enough():
    assert score(gauss(4), gauss(4)).precision == 1


def test_features_are_float64_and_independent_of_the_batch_size():
    images = normal(7)
    features = features_of(lambda x: x.mean((2, 3)), images, batch_size=3)
    assert features.dtype == torch.float64
    torch.testing.assert_close(features, images.mean((2, 3)).double())


def test_nearest_distance_is_the_root_mean_square_over_pixels():
    others = torch.stack([torch.full((1, 8, 8), value) for value in (-1.0, 0.0, 1.0)])
    images = torch.stack([torch.full((1, 8, 8), value) for value in (-0.75, 0.1, 3.0, 1.0)])
    images[3, 0, 0, 0] = 0.0  # one of 64 pixels off by 1
    expected = torch.tensor([0.25, 0.1, 2.0, 1 / 8])
    torch.testing.assert_close(nearest_distance(images, others), expected)


def test_a_copy_is_at_distance_zero_however_many_images_are_compared():
    images = normal(100)
    assert nearest_distance(images[40:90], images).tolist() == [0.0] * 50


def test_nearest_distance_does_not_depend_on_order_or_batches():
    images, others = normal(60), normal(70, seed=2)
    distance = nearest_distance(images, others)
    assert torch.equal(nearest_distance(images.flip(0), others.flip(0)).flip(0), distance)
    assert torch.equal(nearest_distance(images, others, batch_size=7), distance)
    assert torch.equal(nearest_distance(images[:1], others), distance[:1])
    by_hand = (images[:, None] - others[None]).square().mean((2, 3, 4)).sqrt().amin(1)
    torch.testing.assert_close(distance, by_hand)
