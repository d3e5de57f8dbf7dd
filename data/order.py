"""Which pairs make up which batch: a pure function of (seed, step), so resuming is arithmetic.

    epochs   An epoch is a random permutation of the shards. Epoch follows epoch without end.
    streams  This endless list is dealt like cards to S streams: entry e goes to stream e mod S.
    pairs    A stream reads its shards one after the other, each in a random order of its own.
    batch    Every stream gives as many pairs to every batch, in order of the streams. If their
             number does not divide the batch size, a stream gives one pair more now and then.
    fine     With `stagger`, stream s leaves out the first s/S of its first shard, so that streams
             change their shards one after the other, and many of them need little more memory.

Processes and loader workers share the rows of a batch, so their number does not change it.

S need not divide the number of shards. If it does not, epochs overlap: some streams begin the next
epoch while others finish the last shards of this one. Call the S shards that the streams read at
the same time a round. A shard may then come twice in a round (or more often, if there are fewer
shards than streams). All its readers use the same order of its pairs, but start at different
places, equally far apart: so a batch contains no pair twice if the shard has enough pairs.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import gcd

import numpy as np
from jaxtyping import Int

from data.store import Source
from get.errors import InputError

STREAMS = 8  # mixed in a batch, if nothing else decides; each may keep a decoded shard in memory
FINE_STREAMS = 64  # the same where many shards shall be mixed
Piece = tuple[int, Int[np.ndarray, " _"]]
"""A shard and positions inside it."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a training.

    Attributes:
        source: The data set: a folder, an address, or a store.
        shards: Shards 0 .. shards - 1 are read.
        pairs_per_shard: Pairs per shard.
        seed: Of the permutations.
        streams: Number of streams.
        batch_size: Pairs per global batch.
        stagger: Let the streams change their shards one after the other.
    """

    source: Source
    shards: int
    pairs_per_shard: int
    seed: int
    streams: int
    batch_size: int
    stagger: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty data set."""
        if self.shards < 1:
            raise InputError(
                f"expected training shards in {self.source}, got none beside those that are held "
                "out; make more pairs or choose a smaller holdout_shards"
            )

    def begin(self, stream: int, step: int) -> int:
        """Return how many pairs a stream has given, or left out at its start, before a step.

        The sum over the streams grows by `batch_size` in every step (Hermite's identity).
        """
        skipped = stream * self.pairs_per_shard // self.streams if self.stagger else 0
        return skipped + (step * self.batch_size + stream) // self.streams

    def spans(self, step: int, rows: range) -> Iterator[tuple[int, int, int]]:
        """Yield which streams give these rows of a global batch: stream, first and last place + 1.

        Places count the pairs since the stream's beginning.
        """
        row = 0  # the first of this stream
        for stream in range(self.streams):
            begin, end = self.begin(stream, step), self.begin(stream, step + 1)
            low, high = max(rows.start - row, 0), min(rows.stop - row, end - begin)
            if low < high:
                yield stream, begin + low, begin + high
            row += end - begin

    def at_once(self, rows: range) -> int:
        """Return how many streams give these rows of a global batch, at most."""
        if self.batch_size <= self.streams:
            return len(rows)  # a pair of each
        most, streams = 0, np.arange(self.streams)
        for step in range(self.streams // gcd(self.streams, self.batch_size)):  # then as before
            place = step * self.batch_size + streams
            given = (place + self.batch_size) // self.streams - place // self.streams
            first, last = np.searchsorted(given.cumsum(), [rows[0], rows[-1]], side="right")
            most = max(most, int(last - first) + 1)
        return most

    def part(self, step: int, rows: range, damaged: Collection[int] = ()) -> list[Piece]:
        """Return what makes up consecutive rows of a global batch, in their order.

        In place of a damaged shard, the same positions are taken of the stream's next shard in
        this epoch, or where it has no other, of the epoch's first readable one.
        """
        return [
            piece
            for stream, begin, end in self.spans(step, rows)
            for piece in self._pieces(stream, begin, end, damaged)
        ]

    def following(
        self, step: int, rows: range, damaged: Collection[int] = ()
    ) -> list[tuple[float, int]]:
        """Return the shards that come next where these rows are read, and in how many steps."""
        found = []
        for stream, _, end in self.spans(step, rows):
            turn = (end - 1) // self.pairs_per_shard + 1
            left = turn * self.pairs_per_shard - end
            shard = self._turn(stream, turn, damaged)[0]
            found.append((left * self.streams / self.batch_size, shard))
        return found

    def chunk(self, stream: int, step: int, damaged: Collection[int] = ()) -> list[Piece]:
        """Return what a stream gives to a global batch; see `part`."""
        begin, end = self.begin(stream, step), self.begin(stream, step + 1)
        return self._pieces(stream, begin, end, damaged)

    def _pieces(
        self, stream: int, position: int, end: int, damaged: Collection[int]
    ) -> list[Piece]:
        """Return the pairs at places of a stream."""
        pieces = []
        while position < end:
            turn, inside = divmod(position, self.pairs_per_shard)
            shard, order = self._turn(stream, turn, damaged)
            count = min(end - position, self.pairs_per_shard - inside)
            pieces.append((shard, order[inside : inside + count]))
            position += count
        return pieces

    def _turn(self, stream: int, turn: int, damaged: Collection[int]) -> Piece:
        """Return the shard a stream reads in its nth turn, and in which order."""
        first, size = turn * self.streams, self.pairs_per_shard
        entries = _round(self.shards, self.seed, first, self.streams)
        shard = int(entries[stream])
        # Streams that read this shard in this round read it in one order, equal distances apart.
        readers = np.flatnonzero(entries == shard).tolist()
        epoch = (first + readers[0]) // self.shards
        distance = readers.index(stream) * size // len(readers)
        order = np.roll(_permutation(size, self.seed, epoch, shard + 1), -distance)
        if shard in damaged:
            epoch, place = divmod(first + stream, self.shards)
            shards = _permutation(self.shards, self.seed, epoch)
            # The stream's own shards in this epoch are every `streams`-th; begin with this one.
            own = shards[(stream - epoch * self.shards) % self.streams :: self.streams]
            spare = [*np.roll(own, -(place // self.streams)).tolist(), *shards.tolist()]
            shard = next((n for n in spare if n not in damaged), shard)
        return shard, order

    def indices(self, step: int) -> list[int]:
        """Return the index of every pair of a global batch, in its order."""
        pieces = self.part(step, range(self.batch_size))
        return [shard * self.pairs_per_shard + int(at) for shard, places in pieces for at in places]


def choose_streams(shards: int, batch_size: int, readers: int, most: int = STREAMS) -> int:
    """Return the number of streams of a training that does not ask for a certain one.

    It divides the batch size and is a multiple of the number of readers, where that divides the
    batch size too. Among these numbers it is the largest up to `most` and up to the number of
    shards, so that a batch mixes many shards and all of different ones; if there is none, it is the
    smallest.

    Readers are the processes, times the loader workers of each if there are any.
    """
    readers = 1 if batch_size % readers else readers
    fitting = [n for n in range(readers, batch_size + 1, readers) if batch_size % n == 0]
    return max((n for n in fitting if n <= min(most, shards)), default=fitting[0])


def rows_of(batch_size: int, rank: int, processes: int, workers: int = 0) -> list[range]:
    """Return the rows of a global batch that each loader worker of a process reads.

    Raises:
        InputError: If there are not as many rows for every process, or fewer than workers.
    """
    rows, rest = divmod(batch_size, processes)
    workers = max(workers, 1)
    if rest or rows < workers:
        raise InputError(
            f"expected a global batch size that {processes} processes divide, of {workers} pairs "
            f"or more each, a pair for every loader worker, got {batch_size}; change one of them"
        )
    cuts = [rank * rows + rows * worker // workers for worker in range(workers + 1)]
    return [range(first, last) for first, last in pairwise(cuts)]


@lru_cache(maxsize=16)
def _round(shards: int, seed: int, first: int, streams: int) -> Int[np.ndarray, " streams"]:
    """Return the shards of a round: entries `first`, `first` + 1, ... of the list of all epochs."""
    epochs = range(first // shards, (first + streams - 1) // shards + 1)
    entries = np.concatenate([_permutation(shards, seed, epoch) for epoch in epochs])
    return entries[first % shards :][:streams].copy()


@lru_cache(maxsize=1024)
def _permutation(length: int, seed: int, epoch: int, what: int = 0) -> Int[np.ndarray, " length"]:
    """Return a random permutation: of the shards if `what` is 0, of the pairs of shard what - 1.

    It sorts raw Philox numbers, which are the same in every release of numpy.
    """
    key = np.array([seed, epoch], dtype=np.uint64)  # numpy rounds a list with a large seed
    bits = np.random.Philox(key=key, counter=[0, 0, 0, what])
    return np.argsort(bits.random_raw(length), kind="stable")
