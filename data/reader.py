"""Read pairs from shards into batches, in the order that order.py defines.

Shards are decoded completely and kept in memory up to a limit. There is no state to save: a
resumed run asks for the batch it needs next and nothing before it is opened.
"""

import atexit
import multiprocessing
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from multiprocessing.connection import wait

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.codec import decode
from data.folder import Store
from data.manifest import (
    DamagedShard,
    Manifest,
    ShardRecord,
    read_manifest,
    read_record,
    tar_name,
)
from data.order import Order, check_readers
from data.pairs import Pairs
from data.store import Source, open_store
from data.tar import samples
from get.errors import InputError

CACHE_BYTES = 2**30  # of decoded shards, per process that reads


def read_shard(source: Source, shard: int, manifest: Manifest | None = None) -> Pairs:
    """Decode one shard in index order, after comparing it with its record and the manifest.

    Args:
        source: The data set.
        shard: Its number.
        manifest: That of the data set; None reads it.

    Raises:
        DamagedShard: If it is missing or not what record and manifest say.
        InputError: If the store cannot be reached or the file not read; it may be undamaged.
    """
    store, name = open_store(source), tar_name(shard)
    manifest = manifest or read_manifest(store)
    record = read_record(store, shard)
    expected = f"{manifest.pairs_per_shard} pairs" if record else "a finished shard"
    try:
        return load_shard(store, shard, record, manifest)
    except InputError:
        raise
    except (FileNotFoundError, ValueError) as error:
        raise DamagedShard(
            f"expected {expected} in {store.place(name)}, got {type(error).__name__}: {error}; "
            f"delete {name} and its .json and run make_pairs.py again, or train with "
            "--skip_damaged_shards"
        ) from error


def load_shard(store: Store, shard: int, record: ShardRecord | None, manifest: Manifest) -> Pairs:
    """Do the work of `read_shard`; FileNotFoundError or ValueError says what is wrong in short."""
    if record is None:
        raise FileNotFoundError("no record")
    record.check(shard, manifest)
    data = store.read_whole(tar_name(shard), record.bytes, record.sha256)
    return decode(samples(data), record.first_index, manifest)


_Chunk = tuple[Pairs, dict[int, str]]
"""What a stream gives to a batch, and the errors of the damaged shards first found on the way."""


class _Chunks(IterableDataset):
    """What one loader process reads: for every step a chunk of each of its streams, in order.

    Damaged shards are reported as data, in the chunk that needed them, because an exception would
    carry a loader worker's traceback. Where they may not be skipped, or the store cannot be
    reached, the last item is the message as a string.
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
                known.update(chunk[1])
                yield chunk

    def _chunk(self, shards: "_Shards", stream: int, step: int, known: set[int]) -> _Chunk:
        """Read a chunk without the shards known to be damaged, and any that it finds to be."""
        new: dict[int, str] = {}
        while True:
            pieces = []
            for number, positions in self.order.chunk(stream, step, known | new.keys()):
                try:
                    pieces.append(shards[number].take(positions))
                except DamagedShard as error:
                    # A shard known to be damaged comes again only if all of them are.
                    if not self.skip or number in known or number in new:
                        raise
                    new[number] = str(error)
                    break  # the order without this shard may differ: begin the chunk again
            else:
                return Pairs.cat(pieces), new


class _Shards:
    """A cache of decoded shards that drops the least recently used ones."""

    def __init__(self, order: Order, at_least: int) -> None:
        # A process reads one shard per stream at the same time: with fewer in memory it would
        # decode each of them again for every batch.
        self.store, self.at_least = open_store(order.source), at_least
        self.manifest: Manifest | None = None  # read with the first shard, in this process
        self.pairs_per_shard = order.pairs_per_shard
        self.kept: OrderedDict[int, Pairs] = OrderedDict()

    def __getitem__(self, number: int) -> Pairs:
        if number not in self.kept:
            self.manifest = self.manifest or read_manifest(self.store)
            shard = read_shard(self.store, number, self.manifest)
            if len(shard) != self.pairs_per_shard:
                place = self.store.place(tar_name(number))
                raise DamagedShard(
                    f"expected {self.pairs_per_shard} pairs in {place}, got {len(shard)}; "
                    "all shards of a data set hold the same number"
                )
            self.kept[number] = shard
            size = sum(rows.nbytes for rows in vars(shard).values() if rows is not None)
            while len(self.kept) > max(self.at_least, CACHE_BYTES // size):
                self.kept.popitem(last=False)
        self.kept.move_to_end(number)
        return self.kept[number]


def _ignore_signals(worker: int) -> None:
    """Let a loader worker survive signals: training needs batches until its state is saved."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    """Kill the loader workers that are left when Python ends, after a crash for instance.

    Python itself would send them SIGTERM, which they ignore, and wait for them for ever.
    """
    _ignore_deaths()
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _ignore_deaths() -> None:
    """Let torch raise nothing more, wherever Python is, because a loader worker has died."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _named_deaths(chunks: Iterable[_Chunk | str], workers: int) -> Iterator[_Chunk | str]:
    """Pass chunks on; say so in one line if a loader worker has died."""
    try:
        yield from chunks
    except (RuntimeError, OSError, EOFError) as error:  # whichever DataLoader meets first
        _ignore_deaths()
        left = [process for process in multiprocessing.active_children() if process.daemon]
        # Its connections close before it is dead.
        if len(left) == workers and not wait([process.sentinel for process in left], timeout=1):
            raise
        raise InputError(
            f"expected {workers} loader workers, got one that was killed, perhaps for lack of "
            "memory; choose a smaller --dataloader_num_workers"
        ) from error


def batches(
    order: Order,
    *,
    rank: int = 0,
    processes: int = 1,
    start: int = 0,
    workers: int = 0,
    damaged: Callable[[int, str], object] | None = None,
) -> Iterator[Pairs]:
    """Return this process's part of global batches `start`, `start + 1`, ... without end.

    Args:
        order: Which pairs make up which batch.
        rank: Number of this process.
        processes: Number of processes; each gets consecutive streams.
        start: First global batch; nothing before it is opened or decoded.
        workers: Loader processes; 0 reads in this one.
        damaged: Called once per damaged shard that this process finds, with its number and a
            description; other shards are read in its place (see `Order.chunk`). None stops at the
            first.

    Raises:
        InputError: If processes times loader workers do not divide the streams; from the iterator,
            if a shard is damaged and may not be skipped or the data set cannot be reached.
    """
    check_readers(order.streams, processes, workers)
    if workers:
        atexit.unregister(_kill_workers)  # once is enough
        atexit.register(_kill_workers)  # runs before Python waits for its children
    per_process = order.streams // processes
    streams = range(rank * per_process, (rank + 1) * per_process)
    loader = DataLoader(
        _Chunks(order, streams, start, skip=damaged is not None),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        # Without one, DataLoader draws the seeds of its workers from torch's global generator.
        generator=torch.Generator(),
    )
    chunks = _named_deaths(loader, workers)
    return _assemble(chunks, per_process, damaged or (lambda number, description: None))


def _assemble(
    chunks: Iterable[_Chunk | str], streams: int, damaged: Callable[[int, str], object]
) -> Iterator[Pairs]:
    """Put the chunks of every batch together and report each damaged shard once."""
    reported: set[int] = set()  # several loader workers may find the same shard damaged
    parts: list[Pairs] = []
    for chunk in chunks:  # DataLoader asks its workers in turn, so they come in stream order
        if isinstance(chunk, str):
            raise InputError(chunk)
        pairs, new = chunk
        for number, description in new.items():
            if number not in reported:
                damaged(number, description)
        reported.update(new)
        parts.append(pairs)
        if len(parts) == streams:
            yield Pairs.cat(parts).as_floats()
            parts = []
