"""Bounds against scipy, known limits, and how often they fail in ten thousand trials."""

import numpy as np
import pytest
from scipy.stats import beta, binomtest, hypergeom

from get.confidence import (
    audited_bound,
    certified_radius,
    lower_bound,
    most_marked,
    stated_bound,
    upper_bound,
)
from get.errors import InputError

TRIALS, ALPHA = 10_000, 0.05


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.4])
@pytest.mark.parametrize(
    ("k", "n"), [(0, 3), (1, 5), (5, 10), (990, 1000), (1000, 1000), (52_000, 100_000)]
)
def test_proportions_are_bounded_as_by_scipy(k: int, n: int, alpha: float):
    expected = beta.ppf(alpha, k, n - k + 1) if k else 0.0
    assert lower_bound(k, n, alpha) == pytest.approx(expected, rel=1e-9)
    assert upper_bound(k, n, alpha) == pytest.approx(1 - lower_bound(n - k, n, alpha), rel=1e-12)
    interval = binomtest(k, n).proportion_ci(1 - 2 * alpha, "exact") if alpha < 0.4 else None
    if interval is not None:
        assert lower_bound(k, n, alpha) == pytest.approx(interval.low, rel=1e-9)
        assert upper_bound(k, n, alpha) == pytest.approx(interval.high, rel=1e-9)


@pytest.mark.parametrize(
    ("found", "drawn", "population"),
    [(0, 10, 50), (3, 20, 100), (20, 20, 100), (0, 0, 7), (2, 9, 9)],
)
def test_the_most_marked_items_are_the_last_number_that_the_hypergeometric_tail_allows(
    found: int, drawn: int, population: int
):
    most = most_marked(found, drawn, population, ALPHA)
    assert hypergeom.cdf(found, population, most, drawn) > ALPHA
    if most < population - (drawn - found):
        assert hypergeom.cdf(found, population, most + 1, drawn) <= ALPHA


def test_without_a_sample_all_may_be_marked_and_with_all_it_is_known():
    assert most_marked(0, 0, 30, ALPHA) == 30
    assert most_marked(4, 30, 30, ALPHA) == 4
    assert upper_bound(0, 0, ALPHA) == 1
    assert audited_bound(30, 30, 0, 0, ALPHA) == stated_bound(30, 30, 0, 0, ALPHA) == 0


# Where every label agrees: sigma 0.5; from the facts on the paper, which no short audit gets past.
MAXIMUM = [
    (10_000, 400, 0.001, 0.991),
    (10_000, 2000, 0.001, 1.248),
    (10_000, 10_000, 0.001, 1.427),
    (100_000, 400, 0.001, 1.024),
    (100_000, 10_000, 0.001, 1.532),
    (10_000, 400, 0.01, 1.067),
]


@pytest.mark.parametrize(("n", "k", "alpha", "radius"), MAXIMUM)
def test_perfect_agreement_certifies_the_known_maximum_and_no_more(n, k, alpha, radius):
    stated = certified_radius(stated_bound(n, n, 0, k, alpha), 0.5)
    assert radius - 0.006 < stated < radius + 0.001  # votes are rounded down
    plain = certified_radius(lower_bound(n, n, alpha), 0.5)
    audited = certified_radius(audited_bound(n, n, 0, k, alpha), 0.5)
    assert stated < audited < plain


@pytest.mark.parametrize("votes", [60, 90, 100])
def test_the_audited_bound_is_not_below_the_stated_one(votes: int):
    for audited in (5, 30, votes):
        for disagreeing in {0, 1, audited // 4}:
            numbers = votes, 100, disagreeing, audited, ALPHA
            assert audited_bound(*numbers) >= stated_bound(*numbers) - 1e-12


def test_a_radius_is_sigma_times_the_normal_quantile_and_0_without_a_majority():
    assert certified_radius(0.8413447460685429, 0.25) == pytest.approx(0.25)
    assert certified_radius(0.5, 1.0) == certified_radius(0.2, 1.0) == 0


@pytest.mark.parametrize("numbers", [(3, 2, 0.1), (-1, 2, 0.1), (1, 2, 0.0), (1, 2, 1.0)])
def test_numbers_that_cannot_be_are_refused(numbers):
    with pytest.raises(InputError, match="expected 0 <= successes"):
        lower_bound(*numbers)
    with pytest.raises(InputError, match="expected 0 <= found"):
        most_marked(*numbers[:2], 1, numbers[2])


# ---------------------------------------------------------------- coverage


def rescaled(votes: int, trials: int, disagreeing: int, audited: int, alpha: float) -> float:
    """Return what the published code computes: the trials shrink with the votes."""
    kept = 1 - upper_bound(disagreeing, audited, alpha / 2)
    return lower_bound(int(votes * kept), max(int(trials * kept), 1), alpha / 2)


def failures(bound, agree: float, wrong: float, missed: float = 0.0, sticky: float = 0.0) -> float:
    """Return how often a bound lies above the true probability of the class.

    A copy is a vote for the class with probability `agree` + `wrong`; the certified classifier
    gives the class to the first kind, and with probability `missed` to copies without a vote.
    With probability `sticky` all copies of an image are votes: their chain remembers the image.
    """
    draws, n, k = np.random.default_rng(0), 100, 40
    agreeing, others, extra, _ = draws.multinomial(
        n, [agree, wrong, missed, 1 - agree - wrong - missed], TRIALS
    ).T
    stuck = draws.random(TRIALS) < sticky
    votes = np.where(stuck, n, agreeing + others)
    certified = np.where(stuck, agreeing + extra, agreeing)
    if bound is audited_bound:
        audited = np.minimum(votes, k)
    else:
        audited = draws.hypergeometric(votes, n - votes, k)
    found = draws.hypergeometric(votes - certified, certified, audited)
    bounds = [
        bound(int(v), n, int(f), int(a), ALPHA)
        for v, f, a in zip(votes, found, audited, strict=True)
    ]
    return float((np.array(bounds) > agree + missed).mean())


WORLDS = [
    {"agree": 0.7, "wrong": 0.1},
    {"agree": 0.9, "wrong": 0.0, "missed": 0.05},
    {"agree": 0.8, "wrong": 0.0, "sticky": 0.5},
]


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: str(sorted(world.items())))
@pytest.mark.parametrize("bound", [stated_bound, audited_bound])
def test_the_bounds_fail_no_more_often_than_they_say(bound, world):
    assert failures(bound, **world) <= ALPHA


def test_the_published_rescaling_fails_where_disagreement_hits_the_class():
    assert failures(rescaled, agree=0.7, wrong=0.1) > 2 * ALPHA
