"""Decoded shards in memory: those in use, the next ones, and old ones as long as there is room.

A thread reads the next shards ahead, so that nobody waits where streams change their shard. What is
read, and in which order it is used, depends on neither the thread nor the room.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import numpy as np

from data.codec import DTYPES
from data.manifest import Manifest
from data.mixture import Mixture
from data.pairs import Pairs
from get.errors import InputError

CACHE_BYTES = 2**30  # of decoded shards, per process that reads, unless a step needs more
AT_ONCE = 2  # shards given to the thread; a process that ends waits for them


def decoded_bytes(manifest: Manifest, states: bool = False) -> int:
    """Return the memory of a decoded shard, with the states of trajectories or without."""
    each = 4 + np.dtype(DTYPES[manifest.image_format]).itemsize  # noise and image
    each += 2 * len(manifest.trajectory) * states
    labels = 0 if manifest.num_classes is None else 8
    return manifest.pairs_per_shard * (each * prod(manifest.image_shape) + labels)


def room(
    order: Mixture,
    rows: range,
    manifests: Sequence[Manifest | None],
    limit: int | None,
    states: bool = False,
) -> tuple[int, int]:
    """Return how many shards a process has in use at the same time, and the bytes it may keep.

    Args:
        order: Which shards are read.
        rows: Of the global batch: what the process reads.
        manifests: Of the data sets.
        limit: Bytes; None is `CACHE_BYTES`, or what a step needs and one shard more.
        states: Whether the states of trajectories are read.

    Raises:
        InputError: If a step needs more than the limit.
    """
    counts = order.at_once(rows)
    known = zip(counts, manifests, strict=True)
    sizes = [decoded_bytes(m, states) if n and m else 0 for n, m in known]
    need = sum(n * size for n, size in zip(counts, sizes, strict=True))
    if limit is None:
        limit = max(CACHE_BYTES, need + max(sizes))
    if need > limit:
        raise InputError(
            f"expected shard_memory for the {sum(counts)} shards that a process reads for one "
            f"step, {need / 2**30:.3g} GiB, got {limit / 2**30:.3g} for each that reads; raise it, "
            "or choose fewer streams or loader workers"
        )
    return sum(counts), limit


class ShardMemory:
    """Shards by number; those that are not needed soon are dropped, the longest unused first."""

    def __init__(
        self, read: Callable[[int], Pairs], size: Callable[[int], int], limit: int
    ) -> None:
        """Begin with nothing in memory.

        Args:
            read: Reads and decodes a shard; what it raises is raised where the shard is used.
            size: Returns the bytes of a decoded shard.
            limit: Bytes of all shards in memory and on their way to it. It holds what is in use at
                the same time, or else shards would be read again for every batch.
        """
        self.read, self.size, self.limit = read, size, limit
        self.kept: OrderedDict[int, Pairs] = OrderedDict()
        self.ahead: dict[int, Future[Pairs]] = {}
        self.soon: Sequence[int] = ()  # what is used next, in this order
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def __getitem__(self, number: int) -> Pairs:
        """Return a shard; read it now unless it is in memory or on its way."""
        if number not in self.kept:
            future = self.ahead.pop(number, None)
            begun = future is not None and not future.cancel()
            if not begun:
                self._make_room(self.size(number))
            shard = future.result() if future is not None and begun else self.read(number)
            self.kept[number] = shard
        self.kept.move_to_end(number)
        return self.kept[number]

    def expect(self, numbers: Iterable[int]) -> None:
        """Read ahead the shards that come next, in this order, as far as there is room.

        Args:
            numbers: The shards; others are no longer expected.
        """
        expected = list(dict.fromkeys(numbers))
        for number in self.ahead.keys() - expected:
            self.ahead.pop(number).cancel()
        taken = sum(map(self.size, {*self.soon, *self.ahead}))
        for number in expected:
            new = number not in self.ahead and number not in self.soon
            if sum(not future.done() for future in self.ahead.values()) >= AT_ONCE:
                break
            if new and (taken := taken + self.size(number)) > self.limit:
                break
            if number in self.kept:
                self.kept.move_to_end(number)  # or it might be dropped before it is used
            elif new:
                self._make_room(self.size(number))
                self.ahead[number] = self.thread.submit(self.read, number)

    def _make_room(self, size: int) -> None:
        """Drop shards: first the longest unused one that is not needed soon."""
        free = self.limit - size - sum(map(self.size, [*self.kept, *self.ahead]))
        while self.kept and free < 0:
            soon = {number: place for place, number in reversed([*enumerate(self.soon)])}
            number = max(self.kept, key=lambda number: soon.get(number, len(self.soon)))
            free += self.size(number)
            del self.kept[number]

    def close(self) -> None:
        """Stop reading ahead."""
        self.thread.shutdown(wait=False, cancel_futures=True)
