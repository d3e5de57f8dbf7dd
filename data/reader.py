"""Read pairs from shards into batches, in the order that order.py defines.

Shards are decoded completely, ahead of their use (shard_memory.py). There is no state to save: a
resumed run asks for the batch it needs next and nothing before it is opened.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import cache
from itertools import count

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.codec import decode
from data.folder import Store
from data.loader_workers import Part, assemble_ahead, ignore_signals
from data.manifest import (
    DamagedShard,
    Manifest,
    ShardRecord,
    read_manifest,
    read_record,
    tar_name,
)
from data.mixture import Mixture
from data.order import Order, Piece, rows_of
from data.pairs import Pairs
from data.shard_memory import ShardMemory, decoded_bytes, room
from data.store import Source, open_store
from data.tar import samples
from get.errors import InputError


def read_shard(
    source: Source, shard: int, manifest: Manifest | None = None, *, states: bool = False
) -> Pairs:
    """Decode one shard in index order, after comparing it with its record and the manifest.

    Args:
        source: The data set.
        shard: Its number.
        manifest: That of the data set; None reads it.
        states: Whether to return the states of trajectories, if there are some.

    Raises:
        DamagedShard: If it is missing or not what record and manifest say.
        InputError: If the store cannot be reached or the file not read; it may be undamaged.
    """
    store, name = open_store(source), tar_name(shard)
    manifest = manifest or read_manifest(store)
    record = read_record(store, shard)
    expected = f"{manifest.pairs_per_shard} pairs" if record else "a finished shard"
    try:
        return load_shard(store, shard, record, manifest, states=states)
    except InputError:
        raise
    except (FileNotFoundError, ValueError) as error:
        raise DamagedShard(
            f"expected {expected} in {store.place(name)}, got {type(error).__name__}: {error}; "
            f"delete {name} and its .json and run make_pairs.py again, or train with "
            "--skip_damaged_shards"
        ) from error


def load_shard(
    store: Store,
    shard: int,
    record: ShardRecord | None,
    manifest: Manifest,
    *,
    states: bool = False,
) -> Pairs:
    """Do the work of `read_shard`; FileNotFoundError or ValueError says what is wrong in short."""
    if record is None:
        raise FileNotFoundError("no record")
    record.check(shard, manifest)
    data = store.read_whole(tar_name(shard), record.bytes, record.sha256)
    return decode(samples(data), record.first_index, manifest, states=states)


class _Parts(IterableDataset):
    """What one loader process reads: for every step its rows of the batch, in their order.

    Damaged shards are reported as data, with the pairs in their place, because an exception would
    carry a loader worker's traceback. Where they may not be skipped, or the store cannot be
    reached, the last item is the message as a string.
    """

    def __init__(
        self,
        order: Mixture,
        rows: list[range],
        start: int,
        skip: bool,
        limit: int | None,
        states: bool,
    ) -> None:
        self.order, self.rows, self.start, self.limit = order, rows, start, limit
        self.skip, self.states = skip, states
        self.known: set[int] = set()  # shards known to be damaged

    def __iter__(self) -> Iterator[Part | str]:
        worker = get_worker_info()
        rows = self.rows[0 if worker is None else worker.id]
        used, following = set[int](), list[int]()
        try:
            with closing(_Sources(self.order, self.states).memory(rows, self.limit)) as shards:
                now = self.order.part(self.start, rows)
                for step in count(self.start):
                    after = self.order.part(step + 1, rows, self.known)
                    shards.soon = [number for number, _ in (*now, *after)]
                    part, new = self._read(shards, now, step, rows)
                    yield part, new
                    if new:
                        self.known.update(new)
                        after = self.order.part(step + 1, rows, self.known)
                    if new or used != (numbers := {number for number, _ in now}):
                        following = self.order.following(step, rows, self.known)
                        used = set() if new else numbers
                    shards.soon = [number for number, _ in after]
                    shards.expect(following)
                    now = after
        except InputError as error:
            yield str(error)

    def _read(self, shards: ShardMemory, pieces: list[Piece], step: int, rows: range) -> Part:
        """Read the rows of a step around the shards known to be damaged; return others found."""
        new: dict[int, str] = {}
        several = len(self.order.orders) > 1  # which may be stored in different ways
        while True:
            parts = []
            for number, positions in pieces:
                try:
                    part = shards[number].take(positions)
                    parts.append(part.as_floats() if several else part)
                except DamagedShard as error:
                    # A shard known to be damaged comes again only if all of them are.
                    if not self.skip or number in self.known or number in new:
                        raise
                    new[number] = str(error)
                    break  # the order without this shard may differ: begin again
                shards.soon = shards.soon[1:]
            else:
                return Pairs.cat(parts), new
            pieces = self.order.part(step, rows, self.known | new.keys())
            shards.soon = [number for number, _ in pieces]


class _Sources:
    """The data sets of a mixture, opened; a manifest is read when it is needed."""

    def __init__(self, order: Mixture, states: bool) -> None:
        self.order, self.states = order, states
        self.stores = [open_store(part.source) for part in order.orders]
        self.manifest = cache(lambda place: read_manifest(self.stores[place]))

    def read(self, number: int) -> Pairs:
        """Read a training shard, numbered through."""
        place, number = self.order.find(number)
        store, expected = self.stores[place], self.order.orders[place].pairs_per_shard
        shard = read_shard(store, number, self.manifest(place), states=self.states)
        if len(shard) != expected:
            raise DamagedShard(
                f"expected {expected} pairs in {store.place(tar_name(number))}, got "
                f"{len(shard)}; all shards of a data set hold the same number"
            )
        return shard

    def size(self, number: int) -> int:
        """Return the bytes of a decoded shard."""
        return decoded_bytes(self.manifest(self.order.find(number)[0]), self.states)

    def memory(self, rows: range, limit: int | None) -> ShardMemory:
        """Return an empty memory for the shards of these rows of a global batch.

        Raises:
            InputError: If a step needs more than the limit.
        """
        manifests = [self.manifest(place) for place in range(len(self.stores))]
        _, limit = room(self.order, rows, manifests, limit, self.states)
        return ShardMemory(self.read, self.size, limit)


def batches(
    order: Order | Mixture,
    *,
    rank: int = 0,
    processes: int = 1,
    start: int = 0,
    workers: int = 0,
    damaged: Callable[[int, str], object] | None = None,
    limit: int | None = None,
    states: bool = False,
) -> Iterator[Pairs]:
    """Return this process's part of global batches `start`, `start + 1`, ... without end.

    Closing the iterator, or dropping it, ends its loader workers.

    Args:
        order: Which pairs make up which batch.
        rank: Number of this process.
        processes: Number of processes; each gets consecutive rows.
        start: First global batch; nothing before it is opened or decoded.
        workers: Loader processes; 0 reads in this one.
        damaged: Called once per damaged shard that this process finds, with its number (numbered
            through) and a description; other shards are read in its place (see `Order.part`). None
            stops at the first.
        limit: Bytes of decoded shards in this process and its workers together; None is
            `CACHE_BYTES` for each of them, or what it needs.
        states: Whether the pairs come with the states of their trajectories, where all have some.

    Raises:
        InputError: If the processes do not divide the batch; from the iterator, if a shard is
            damaged and may not be skipped, the data set cannot be reached, or the limit is too low.
    """
    mixture = order if isinstance(order, Mixture) else Mixture((order,), order.streams)
    rows = rows_of(mixture.batch_size, rank, processes, workers)
    each = None if limit is None else limit // len(rows)
    loader = DataLoader(
        _Parts(mixture, rows, start, damaged is not None, each, states),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        # Without one, DataLoader draws the seeds of its workers from torch's global generator.
        generator=torch.Generator(),
    )
    return _report(assemble_ahead(loader), damaged or (lambda number, description: None))


def _report(batches: Iterable[Part], damaged: Callable[[int, str], object]) -> Iterator[Pairs]:
    """Yield the batches and report each damaged shard once."""
    reported: set[int] = set()  # several loader workers may find the same shard damaged
    for batch, damage in batches:
        for number, description in damage.items():
            if number not in reported:
                damaged(number, description)
        reported.update(damage)
        yield batch
