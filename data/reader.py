"""Read pairs from shards into batches, in the order that order.py defines.

Shards are decoded completely, ahead of their use (shard_memory.py). There is no state to save: a
resumed run asks for the batch it needs next and nothing before it is opened.
"""

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
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
from data.shard_memory import ShardMemory
from data.store import Source, open_store
from data.tar import samples
from get.errors import InputError


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


_Part = tuple[Pairs, dict[int, str]]
"""What a loader process gives to a batch, and the errors of the damaged shards it found first."""


class _Parts(IterableDataset):
    """What one loader process reads: for every step what its streams give, in their order.

    Damaged shards are reported as data, with the pairs in their place, because an exception would
    carry a loader worker's traceback. Where they may not be skipped, or the store cannot be
    reached, the last item is the message as a string.
    """

    def __init__(self, order: Order, streams: range, start: int, skip: bool) -> None:
        self.order, self.streams, self.start, self.skip = order, streams, start, skip

    def __iter__(self) -> Iterator[_Part | str]:
        worker = get_worker_info()
        streams = self.streams if worker is None else self.streams[worker.id :: worker.num_workers]
        shards = ShardMemory(_reader(self.order), at_least=len(streams) + 1)
        known, expected, following = set[int](), (-1, 0), list[int]()
        try:
            for step in count(self.start):
                new: dict[int, str] = {}
                parts = [self._chunk(shards, stream, step, known, new) for stream in streams]
                yield Pairs.cat(parts), new
                known.update(new)
                if expected != (now := (self.order.turn(step), len(known))):
                    following = [self.order.shard(s, now[0] + 1, known) for s in streams]
                    expected = now
                shards.expect(following, in_use=len(streams))
        except InputError as error:
            yield str(error)
        finally:
            shards.close()

    def _chunk(
        self, shards: ShardMemory, stream: int, step: int, known: set[int], new: dict[int, str]
    ) -> Pairs:
        """Read a chunk without the shards known to be damaged; add those it finds to `new`."""
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
                return Pairs.cat(pieces)


def _reader(order: Order) -> Callable[[int], Pairs]:
    """Return a function that reads a training shard; the manifest is read with the first one."""
    store = open_store(order.source)
    manifest = cache(lambda: read_manifest(store))

    def read(number: int) -> Pairs:
        shard = read_shard(store, number, manifest())
        if len(shard) != order.pairs_per_shard:
            raise DamagedShard(
                f"expected {order.pairs_per_shard} pairs in {store.place(tar_name(number))}, got "
                f"{len(shard)}; all shards of a data set hold the same number"
            )
        return shard

    return read


def _ignore_signals(worker: int) -> None:
    """Let a loader worker survive signals: training needs batches until its state is saved."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    """Kill the loader workers that are left when Python ends, after a crash for instance.

    Python itself would send them SIGTERM, which they ignore, and wait for them for ever.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _ignore_deaths() -> None:
    """Keep torch from raising, wherever this process is, as soon as a loader worker dies.

    It is noticed where the next batch is needed.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _named_deaths(chunks: Iterable[_Part | str], workers: int) -> Iterator[_Part | str]:
    """Pass chunks on; say so in one line if a loader worker has died."""
    try:
        yield from chunks
    except (RuntimeError, OSError, EOFError) as error:  # whichever DataLoader meets first
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
        _Parts(order, streams, start, skip=damaged is not None),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        # Without one, DataLoader draws the seeds of its workers from torch's global generator.
        generator=torch.Generator(),
    )
    ahead = _assemble_ahead(loader, workers, order.batch_size // order.streams)
    return _report(ahead, damaged or (lambda number, description: None))


def _assemble_ahead(loader: DataLoader, workers: int, size: int) -> Iterator[_Part]:
    """Yield whole batches; with loader workers, a thread puts the next one together meanwhile.

    Args:
        loader: Gives parts of readers 0, 1, ..., then again.
        workers: Loader processes.
        size: Pairs that a stream gives to a batch.
    """
    items = iter(loader)  # starts the workers
    _ignore_deaths()
    batches = _assemble(_named_deaths(items, workers), max(workers, 1), size)
    if not workers:
        yield from batches
        return
    thread = ThreadPoolExecutor(1, thread_name_prefix="assemble")
    try:
        following = thread.submit(next, batches)
        while True:
            batch = following.result()
            following = thread.submit(next, batches)
            yield batch
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def _assemble(items: Iterable[_Part | str], readers: int, size: int) -> Iterator[_Part]:
    """Put the parts of every batch together."""
    parts: list[Pairs] = []
    damage: dict[int, str] = {}
    for item in items:  # DataLoader asks its workers in turn
        if isinstance(item, str):
            raise InputError(item)
        parts.append(item[0])
        damage |= item[1]
        if len(parts) == readers:
            yield Pairs.interleave(parts, size).as_floats(), damage
            parts, damage = [], {}


def _report(batches: Iterable[_Part], damaged: Callable[[int, str], object]) -> Iterator[Pairs]:
    """Yield the batches and report each damaged shard once."""
    reported: set[int] = set()  # several loader workers may find the same shard damaged
    for batch, damage in batches:
        for number, description in damage.items():
            if number not in reported:
                damaged(number, description)
        reported.update(damage)
        yield batch
