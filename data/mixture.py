"""Several data sets in one training: every batch has a fixed part of each, in the order of each.

The batch size is divided by weights, to whole pairs. Rows of the first data set come first. Each
data set has its own order (order.py) with its own streams, so what is a function of (seed, step)
there is one here. A single data set is a mixture of one.

Shards are numbered through: those of the second data set follow those of the first.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from data.order import Order, Piece
from get.errors import InputError


@dataclass(frozen=True)
class Mixture:
    """The order of a training on one data set or several.

    Attributes:
        orders: The order of each data set; its `batch_size` is its part of a global batch.
        streams: Streams asked for, which the data sets share.
    """

    orders: tuple[Order, ...]
    streams: int

    @property
    def batch_size(self) -> int:
        """Pairs per global batch."""
        return sum(order.batch_size for order in self.orders)

    @property
    def shards(self) -> int:
        """Training shards of all data sets."""
        return sum(order.shards for order in self.orders)

    @property
    def pairs(self) -> int:
        """Training pairs of all data sets."""
        return sum(order.shards * order.pairs_per_shard for order in self.orders)

    def find(self, number: int) -> tuple[int, int]:
        """Return data set and shard of a shard that is numbered through."""
        firsts = self._firsts()
        place = bisect_right(firsts, number) - 1
        return place, number - firsts[place]

    def part(self, step: int, rows: range, damaged: Collection[int] = ()) -> list[Piece]:
        """Return what makes up consecutive rows of a global batch; see `Order.part`."""
        return [
            (first + shard, positions)
            for order, first, own, bad in self._parts(rows, damaged)
            for shard, positions in order.part(step, own, bad)
        ]

    def following(self, step: int, rows: range, damaged: Collection[int] = ()) -> list[int]:
        """Return the shards that come next where these rows are read, the soonest first."""
        found = [
            (steps, first + shard)
            for order, first, own, bad in self._parts(rows, damaged)
            for steps, shard in order.following(step, own, bad)
        ]
        return [shard for _, shard in sorted(found, key=lambda following: following[0])]

    def at_once(self, rows: range) -> list[int]:
        """Return how many shards of each data set are in use where these rows are read, at most."""
        most = [0] * len(self.orders)
        for order, first, own, _ in self._parts(rows, ()):
            most[self.find(first)[0]] = min(order.at_once(own), order.shards)
        return most

    def indices(self, step: int) -> list[int]:
        """Return the index of every pair of a global batch; each data set counts from 0."""
        return [index for order in self.orders for index in order.indices(step)]

    def _firsts(self) -> list[int]:
        """Return the number of the first shard of each data set."""
        return [0, *accumulate(order.shards for order in self.orders[:-1])]

    def _parts(
        self, rows: range, damaged: Collection[int]
    ) -> Iterator[tuple[Order, int, range, set[int]]]:
        """Yield each order that has some of the rows, its first shard, its rows, its damage."""
        row = 0
        for order, first in zip(self.orders, self._firsts(), strict=True):
            low, high = max(rows.start - row, 0), min(rows.stop - row, order.batch_size)
            if low < high:
                bad = {n - first for n in damaged if first <= n < first + order.shards}
                yield order, first, range(low, high), bad
            row += order.batch_size


def divide(batch_size: int, weights: Sequence[float]) -> list[int]:
    """Divide a batch by weights, to whole pairs: the largest remainders are rounded up.

    Raises:
        InputError: If a weight is not above 0, or too small for one pair.
    """
    if all(0 < weight < float("inf") for weight in weights):
        total = sum(map(Fraction, weights))
        exact = [batch_size * Fraction(weight) / total for weight in weights]
        sizes = [int(part) for part in exact]
        largest = sorted(range(len(exact)), key=lambda i: sizes[i] - exact[i])
        for i in largest[: batch_size - sum(sizes)]:
            sizes[i] += 1
        if all(sizes):
            return sizes
    raise InputError(
        f"expected weights that give every data set a pair of a global batch of {batch_size}, got "
        f"{', '.join(f'{weight:g}' for weight in weights)}; choose others, or a larger batch"
    )
