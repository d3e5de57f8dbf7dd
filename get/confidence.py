"""Bounds that hold with a stated probability: of proportions, and of a rate seen through an audit.

`get/robustness.py` turns them into certified radii. Each of them fails with probability alpha at
most. `stated_bound` and `audited_bound` are for votes of a fast classifier, of which some were
audited, that is compared with those of the classifier that is certified.
"""

from functools import lru_cache
from math import exp, lgamma, log, log1p
from statistics import NormalDist

import numpy as np

from get.errors import InputError

STEPS = 60  # halvings of [0, 1]


@lru_cache(maxsize=65_536)
def lower_bound(successes: int, trials: int, alpha: float) -> float:
    """Return the p at which so many successes or more have probability alpha (Clopper-Pearson).

    Args:
        successes: Of independent trials with the same probability.
        trials: Their number.
        alpha: Probability that the true one lies below what is returned, at most.

    Raises:
        InputError: If the numbers cannot be.
    """
    if not 0 <= successes <= trials or not 0 < alpha < 1:
        raise InputError(
            f"expected 0 <= successes <= trials and alpha in (0, 1), got {successes} of {trials} "
            f"and {alpha}"
        )
    if successes == 0:
        return 0.0
    if successes == trials:
        return alpha ** (1 / trials)
    k = np.arange(successes, trials + 1)
    choose = _log_choose(trials, k)
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        p = (low + high) / 2
        tail = _sum_of_exp(choose + k * log(p) + (trials - k) * log1p(-p))
        low, high = (p, high) if tail <= alpha else (low, p)
    return low


def upper_bound(successes: int, trials: int, alpha: float) -> float:
    """Return the upper bound that mirrors `lower_bound`; 1 without trials."""
    return 1 - lower_bound(trials - successes, trials, alpha) if trials else 1.0


@lru_cache(maxsize=65_536)
def most_marked(found: int, drawn: int, population: int, alpha: float) -> int:
    """Return an upper bound of the marked items of a population, from a sample without return.

    It is the largest number with which `found` marked items or fewer have a probability above
    alpha (the hypergeometric distribution).

    Args:
        found: Marked items in the sample.
        drawn: Size of the sample, drawn at random.
        population: All items.
        alpha: Probability that there are more than what is returned, at most.

    Raises:
        InputError: If the numbers cannot be.
    """
    if not 0 <= found <= drawn <= population or not 0 < alpha < 1:
        raise InputError(
            f"expected 0 <= found <= drawn <= population and alpha in (0, 1), got {found}, "
            f"{drawn}, {population} and {alpha}"
        )
    i, all_samples = np.arange(found + 1), _log_choose(population, np.array([drawn]))
    low, high = found, population - (drawn - found)
    while low < high:
        marked = (low + high + 1) // 2
        some = i[(i <= marked) & (drawn - i <= population - marked)]
        terms = _log_choose(marked, some) + _log_choose(population - marked, drawn - some)
        tail = _sum_of_exp(terms - all_samples) if len(some) else 0.0
        low, high = (marked, high) if tail > alpha else (low, marked - 1)
    return low


def stated_bound(votes: int, trials: int, disagreeing: int, audited: int, alpha: float) -> float:
    """Return the lower bound of Serialized Random Smoothing, as stated (NeurIPS 2024).

    p_m, the probability that the certified classifier disagrees with a vote, has an upper bound
    from the audit; votes (1 - p_m) of the trials then count, each bound at alpha / 2. The votes
    count as independent, and the audited ones must be drawn at random. (The published code also
    multiplies the trials by 1 - p_m, which is no bound.)

    Args:
        votes: Fast labels that name the class.
        trials: All fast labels.
        disagreeing: Audited votes for the class to which the certified classifier gives another.
        audited: Audited votes for the class.
        alpha: Probability that the bound is wrong.
    """
    missing = upper_bound(disagreeing, audited, alpha / 2)
    return lower_bound(int(votes * (1 - missing)), trials, alpha / 2)


def audited_bound(votes: int, trials: int, disagreeing: int, audited: int, alpha: float) -> float:
    """Return a lower bound that holds whatever the fast labels depend on.

    The noisy images are independent, so the certified classifier's labels are, however the fast
    ones came about. Its count among the trials is at least the votes minus those to which it gives
    another label. The audited votes are drawn from all votes at random, without return, so
    `most_marked` bounds the number of these at alpha / 2; Clopper-Pearson has the other half.

    Args: see `stated_bound`.
    """
    wrong = most_marked(disagreeing, audited, votes, alpha / 2)
    return lower_bound(votes - wrong, trials, alpha / 2)


def certified_radius(p: float, sigma: float) -> float:
    """Return sigma Phi^-1(p): how far an image may move, in the L2 norm; 0 for p <= 1/2.

    Theorem 1 of arXiv:1902.02918, with 1 - p for the second class.
    """
    return sigma * NormalDist().inv_cdf(p) if p > 0.5 else 0.0


def _log_choose(n: int, k: np.ndarray) -> np.ndarray:
    """Return the logarithms of n over k."""
    table = _log_factorials(max(n, 1).bit_length())
    return table[n] - table[k] - table[n - k]


@lru_cache(maxsize=4)
def _log_factorials(bits: int) -> np.ndarray:
    """Return ln(i!) for i below 2^bits."""
    return np.array([lgamma(i + 1) for i in range(1 << bits)])


def _sum_of_exp(x: np.ndarray) -> float:
    top = float(x.max())
    return exp(top) * float(np.exp(x - top).sum())
