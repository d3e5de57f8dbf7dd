"""Read pairs in an order that is a pure function of (seed, step): resume is arithmetic.

A run fixes S logical streams. In every epoch the shards are permuted and dealt to the streams;
inside a shard the pairs are permuted. Every global batch takes the same number of pairs from
every stream, in stream order, so neither the number of processes nor of loader workers changes
its content, and no state needs saving. Shards are decoded whole and kept while they fit.
"""

import signal
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.codec import decode
from data.manifest import DamagedShard, read_record, tar_name
from data.pairs import Pairs
from data.store import Source, open_store
from data.tar import samples
from get.errors import InputError

CACHE_BYTES = 2**30  # of decoded shards, a loader process


def read_shard(source: Source, shard: int) -> Pairs:
    """Decode one shard in index order, after comparing it with its record.

    Raises:
        DamagedShard: If it is missing or not what its record says, naming it.
        InputError: If the place where it lies does not answer.
    """
    store = open_store(source)
    record, name = read_record(store, shard), tar_name(shard)
    expected = f"{record.count} pairs in {record.bytes} bytes" if record else "a finished shard"
    try:
        if record is None:
            raise FileNotFoundError("no record")
        data = store.read_whole(name, record.bytes, record.sha256)
        return decode(samples(data), record.count)
    except InputError:  # the store does not answer; nothing is known about the shard
        raise
    except (OSError, ValueError, KeyError) as error:
        raise DamagedShard(
            f"expected {expected} in {store.place(name)}, got {type(error).__name__}: {error}; "
            f"delete {name} and its .json and run make_pairs.py again, or train with "
            "--skip_damaged_shards"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which pairs make up which batch.

    Attributes:
        source: The data set: a folder, an address, or a store.
        shards: Shards 0 .. shards - 1 are read.
        pairs_per_shard: Pairs a shard.
        seed: Of the permutations.
        streams: Logical streams; they divide `shards` and `batch_size`.
        batch_size: Pairs a global batch.
    """

    source: Source
    shards: int
    pairs_per_shard: int
    seed: int
    streams: int
    batch_size: int

    def __post_init__(self) -> None:
        """Refuse numbers that do not divide."""
        if self.shards < 1 or self.shards % self.streams:
            raise InputError(
                f"expected training shards that {self.streams} streams divide, got {self.shards} "
                f"in {self.source}; make more pairs or choose other streams or holdout_shards"
            )
        if self.batch_size % self.streams:
            raise InputError(
                f"expected a global batch size that {self.streams} streams divide, "
                f"got {self.batch_size}"
            )

    def chunk(
        self, stream: int, step: int, damaged: Collection[int] = ()
    ) -> list[tuple[int, Int[np.ndarray, " pairs"]]]:
        """Return (shard, positions inside it) of what a stream gives to a global batch.

        In place of a damaged shard the same positions are taken of the shard that is the stream's
        next in this epoch, or where all of those are damaged, of the epoch's first that is not.
        """
        size = self.batch_size // self.streams
        position, end = step * size, (step + 1) * size
        pieces = []
        while position < end:
            turn, inside = divmod(position, self.pairs_per_shard)  # turn: the stream's nth shard
            epoch, place = divmod(turn, self.shards // self.streams)
            shards = _permutation(self.shards, self.seed, epoch)
            shard = int(shards[place * self.streams + stream])
            take = min(end - position, self.pairs_per_shard - inside)
            order = _permutation(self.pairs_per_shard, self.seed, epoch, shard + 1)
            if shard in damaged:
                spare = [
                    *np.roll(shards[stream :: self.streams], -place).tolist(),
                    *shards.tolist(),
                ]
                shard = next((n for n in spare if n not in damaged), shard)
            pieces.append((shard, order[inside : inside + take]))
            position += take
        return pieces

    def indices(self, step: int) -> list[int]:
        """Return the index of every pair of a global batch, in its order."""
        pieces = [piece for stream in range(self.streams) for piece in self.chunk(stream, step)]
        return [shard * self.pairs_per_shard + int(at) for shard, places in pieces for at in places]


@lru_cache(maxsize=256)
def _permutation(length: int, seed: int, epoch: int, what: int = 0) -> Int[np.ndarray, " length"]:
    """Permute by sorting raw Philox numbers, which no numpy release changes; 0 means the shards."""
    key = np.array([seed, epoch], dtype=np.uint64)  # numpy rounds a list with a large seed
    bits = np.random.Philox(key=key, counter=[0, 0, 0, what])
    return np.argsort(bits.random_raw(length), kind="stable")


class _Chunk(NamedTuple):
    """What a stream gives to a batch, and the damaged shards that were met for the first time."""

    pairs: Pairs
    damaged: dict[int, str]


class _Chunks(IterableDataset):
    """What one loader process reads: step after step, its streams in order, a chunk each.

    A damaged shard is told with the chunk it was needed for; an exception would carry a worker's
    traceback. Without `skip` it ends the stream, as does a store that does not answer.
    """

    def __init__(self, order: Order, streams: range, start: int, skip: bool) -> None:
        self.order, self.streams, self.start, self.skip = order, streams, start, skip

    def __iter__(self) -> Iterator[_Chunk | str]:
        worker = get_worker_info()
        streams = self.streams if worker is None else self.streams[worker.id :: worker.num_workers]
        shards = _Shards(self.order, at_least=len(streams) + 1)
        known: set[int] = set()
        for step in count(self.start):
            for stream in streams:
                try:
                    chunk = self._chunk(shards, stream, step, known)
                except InputError as error:
                    yield str(error)
                    return
                known.update(chunk.damaged)
                yield chunk

    def _chunk(self, shards: "_Shards", stream: int, step: int, known: set[int]) -> _Chunk:
        """Read a chunk, around the damaged shards that are known and those it meets."""
        met: dict[int, str] = {}
        while True:
            pieces = []
            for number, places in self.order.chunk(stream, step, known | met.keys()):
                try:
                    pieces.append(shards[number].take(places))
                except DamagedShard as error:
                    if not self.skip or number in known or number in met:  # or there is no other
                        raise
                    met[number] = str(error)
                    break
            else:
                return _Chunk(Pairs.cat(pieces), met)


class _Shards:
    """Decoded shards, the least recently used ones dropped once they take too much memory."""

    def __init__(self, order: Order, at_least: int) -> None:
        self.store, self.at_least = open_store(order.source), at_least
        self.pairs = order.pairs_per_shard
        self.kept: OrderedDict[int, Pairs] = OrderedDict()

    def __getitem__(self, number: int) -> Pairs:
        if number not in self.kept:
            shard = read_shard(self.store, number)
            if len(shard) != self.pairs:
                place = self.store.place(tar_name(number))
                raise DamagedShard(
                    f"expected {self.pairs} pairs in {place}, got {len(shard)}; "
                    "shards of one data set are of one length"
                )
            self.kept[number] = shard
            each = sum(t.nbytes for t in vars(shard).values() if t is not None)
            while len(self.kept) > max(self.at_least, CACHE_BYTES // each):
                self.kept.popitem(last=False)
        self.kept.move_to_end(number)
        return self.kept[number]


def _ignore_signals(worker: int) -> None:
    """Leave signals to the training process: it needs batches until it has saved its state."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def batches(
    order: Order,
    *,
    rank: int = 0,
    processes: int = 1,
    start: int = 0,
    workers: int = 0,
    damaged: Callable[[int, str], object] | None = None,
) -> Iterator[Pairs]:
    """Return this process's part of global batch `start`, `start + 1`, ... for ever.

    Args:
        order: Which pairs make up which batch.
        rank: Number of this process.
        processes: Number of processes; each gets consecutive streams.
        start: First global batch; nothing before it is opened or decoded.
        workers: Loader processes; 0 reads in this one.
        damaged: Called once with number and description of each damaged shard that this process
            meets; others are read in its place (see `Order.chunk`). None stops at the first.

    Raises:
        InputError: If processes times loader workers do not divide the streams; from the iterator,
            if a shard is damaged and may not be skipped or the data set cannot be reached.
    """
    if order.streams % (processes * max(workers, 1)):
        raise InputError(
            f"expected processes x dataloader_num_workers to divide {order.streams} streams, "
            f"got {processes} x {max(workers, 1)}; choose other numbers"
        )
    each = order.streams // processes
    streams = range(rank * each, (rank + 1) * each)
    chunks = _Chunks(order, streams, start, skip=damaged is not None)
    # Its own generator: the seeds of loader workers would be drawn from the global one.
    generator = torch.Generator()

    def assemble() -> Iterator[Pairs]:
        loader = iter(
            DataLoader(
                chunks,
                batch_size=None,
                num_workers=workers,
                worker_init_fn=_ignore_signals,
                generator=generator,
            )
        )
        told: set[int] = set()  # loader workers do not know of each other's
        while True:
            parts = []
            for _ in streams:  # loader workers answer in turn, so chunks come in stream order
                chunk = next(loader)
                if isinstance(chunk, str):
                    raise InputError(chunk)
                parts.append(chunk.pairs)
                for number, description in chunk.damaged.items():
                    if damaged is not None and number not in told:
                        told.add(number)
                        damaged(number, description)
            yield Pairs.cat(parts).as_floats()

    return assemble()
