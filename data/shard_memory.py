"""Decoded shards in memory: those in use, the next ones, and old ones as long as there is room.

A thread reads the next shards ahead, so that nobody waits where all streams change their shard in
the same step. What is read, and in which order it is used, does not depend on it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from data.pairs import Pairs

CACHE_BYTES = 2**30  # of decoded shards, per process that reads
AT_ONCE = 2  # shards given to the thread; a process that ends waits for them


class ShardMemory:
    """Shards by number; the least recently used ones are dropped."""

    def __init__(self, read: Callable[[int], Pairs], at_least: int) -> None:
        """Begin with nothing in memory.

        Args:
            read: Reads and decodes a shard; what it raises is raised where the shard is used.
            at_least: Shards that are kept even if they are larger than `CACHE_BYTES`. With fewer
                than are used at the same time, each of them would be read again for every batch.
        """
        self.read, self.at_least = read, at_least
        self.kept: OrderedDict[int, Pairs] = OrderedDict()
        self.ahead: dict[int, Future[Pairs]] = {}
        self.room = at_least  # in shards, as soon as the size of one is known
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def __getitem__(self, number: int) -> Pairs:
        """Return a shard; read it now unless it is in memory or on its way."""
        if number not in self.kept:
            future = self.ahead.pop(number, None)
            begun = future is not None and not future.cancel()
            shard = future.result() if future is not None and begun else self.read(number)
            self.kept[number] = shard
            size = sum(rows.nbytes for rows in vars(shard).values() if rows is not None)
            self.room = max(self.at_least, CACHE_BYTES // size)
            self._make_room(0)
        self.kept.move_to_end(number)
        return self.kept[number]

    def expect(self, numbers: Iterable[int], in_use: int) -> None:
        """Read ahead the shards that come next, in this order, as far as there is room.

        Args:
            numbers: The shards; others are no longer expected.
            in_use: How many shards are in use.
        """
        expected = list(dict.fromkeys(numbers))
        for number in self.ahead.keys() - expected:
            self.ahead.pop(number).cancel()
        for number in expected:
            busy = sum(not future.done() for future in self.ahead.values())
            if busy >= AT_ONCE or len(self.ahead) + in_use >= self.room:
                break
            if number in self.kept:
                self.kept.move_to_end(number)  # or it might be dropped before it is used
            elif number not in self.ahead:
                self._make_room(1)
                self.ahead[number] = self.thread.submit(self.read, number)

    def _make_room(self, count: int) -> None:
        while self.kept and len(self.kept) + len(self.ahead) + count > self.room:
            self.kept.popitem(last=False)

    def close(self) -> None:
        """Stop reading ahead."""
        self.thread.shutdown(wait=False, cancel_futures=True)
