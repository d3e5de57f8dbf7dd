"""Which pairs make up which batch: a pure function of (seed, step), so resuming is arithmetic.

    epochs   An epoch is a random permutation of the shards. Epoch follows epoch without end.
    streams  This endless list is dealt like cards to S streams: entry e goes to stream e mod S.
    pairs    A stream reads its shards one after the other, each in a random order of its own.
    batch    Every stream gives the same number of pairs to every batch, in order of the streams.

Processes and loader workers share the streams, so their number does not change a batch.

S need not divide the number of shards. If it does not, epochs overlap: some streams begin the next
epoch while others finish the last shards of this one. Call the S shards that the streams read at
the same time a round. A shard may then come twice in a round (or more often, if there are fewer
shards than streams). All its readers use the same order of its pairs, but start at different
places, equally far apart: so a batch contains no pair twice if the shard has enough pairs.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from data.store import Source
from get.errors import InputError

STREAMS = 8  # mixed in a batch, if nothing else decides; each may keep a decoded shard in memory


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a training.

    Attributes:
        source: The data set: a folder, an address, or a store.
        shards: Shards 0 .. shards - 1 are read.
        pairs_per_shard: Pairs per shard.
        seed: Of the permutations.
        streams: Number of streams; it divides `batch_size`.
        batch_size: Pairs per global batch.
    """

    source: Source
    shards: int
    pairs_per_shard: int
    seed: int
    streams: int
    batch_size: int

    def __post_init__(self) -> None:
        """Refuse an empty data set and streams of different sizes."""
        if self.shards < 1:
            raise InputError(
                f"expected training shards in {self.source}, got {self.shards}; "
                "make more pairs or choose a smaller holdout_shards"
            )
        if self.batch_size % self.streams:
            raise InputError(
                f"expected a global batch size that {self.streams} streams divide, got "
                f"{self.batch_size}, which {_divisors_of(self.batch_size)} streams divide"
            )

    def chunk(
        self, stream: int, step: int, damaged: Collection[int] = ()
    ) -> list[tuple[int, Int[np.ndarray, " pairs"]]]:
        """Return (shard, positions inside it) of what a stream gives to a global batch.

        In place of a damaged shard, the same positions are taken of the stream's next shard in
        this epoch, or where it has no other, of the epoch's first readable one.
        """
        size = self.batch_size // self.streams
        position, end = step * size, (step + 1) * size  # of pairs, since the stream's beginning
        pieces = []
        while position < end:
            turn, inside = divmod(position, self.pairs_per_shard)
            shard, order = self._turn(stream, turn, damaged)
            count = min(end - position, self.pairs_per_shard - inside)
            pieces.append((shard, order[inside : inside + count]))
            position += count
        return pieces

    def turn(self, step: int) -> int:
        """Return the number of the shard, 0 the first, that every stream ends a step with."""
        return ((step + 1) * (self.batch_size // self.streams) - 1) // self.pairs_per_shard

    def shard(self, stream: int, turn: int, damaged: Collection[int] = ()) -> int:
        """Return the shard that a stream reads in its nth turn."""
        return self._turn(stream, turn, damaged)[0]

    def _turn(
        self, stream: int, turn: int, damaged: Collection[int]
    ) -> tuple[int, Int[np.ndarray, " pairs"]]:
        """Return the shard a stream reads in its nth turn, and in which order."""
        # The shards of this round: entries `first`, `first` + 1, ... of the list of all epochs.
        first, size = turn * self.streams, self.pairs_per_shard
        epochs = range(first // self.shards, (first + self.streams - 1) // self.shards + 1)
        entries = np.concatenate([_permutation(self.shards, self.seed, epoch) for epoch in epochs])
        entries = entries[first % self.shards :][: self.streams]
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
        pieces = [piece for stream in range(self.streams) for piece in self.chunk(stream, step)]
        return [shard * self.pairs_per_shard + int(at) for shard, places in pieces for at in places]


def choose_streams(shards: int, batch_size: int, readers: int) -> int:
    """Return the number of streams of a training that does not ask for a certain one.

    It divides the batch size and is a multiple of the number of readers. Among these numbers it is
    the largest up to 8 and up to the number of shards, so that a batch mixes many shards and all
    of different ones; if there is none, it is the smallest.

    Readers are the processes, times the loader workers of each if there are any.

    Raises:
        InputError: If the batch cannot be shared among the readers.
    """
    if batch_size % readers:
        raise InputError(
            f"expected processes x dataloader_num_workers to divide the global batch size "
            f"{batch_size}, got {readers}; choose numbers whose product is one of "
            f"{_divisors_of(batch_size)}"
        )
    fitting = [n for n in range(readers, batch_size + 1, readers) if batch_size % n == 0]
    return max((n for n in fitting if n <= min(STREAMS, shards)), default=fitting[0])


def check_readers(streams: int, processes: int, workers: int) -> None:
    """Raise InputError unless the processes and their loader workers can share the streams."""
    if streams % (processes * max(workers, 1)):
        raise InputError(
            f"expected processes x dataloader_num_workers to divide {streams} streams, got "
            f"{processes} x {max(workers, 1)}; choose numbers whose product is one of "
            f"{_divisors_of(streams)}"
        )


def _divisors_of(number: int) -> str:
    """List the numbers that divide another one, for messages."""
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


@lru_cache(maxsize=256)
def _permutation(length: int, seed: int, epoch: int, what: int = 0) -> Int[np.ndarray, " length"]:
    """Return a random permutation: of the shards if `what` is 0, of the pairs of shard what - 1.

    It sorts raw Philox numbers, which are the same in every release of numpy.
    """
    key = np.array([seed, epoch], dtype=np.uint64)  # numpy rounds a list with a large seed
    bits = np.random.Philox(key=key, counter=[0, 0, 0, what])
    return np.argsort(bits.random_raw(length), kind="stable")
