"""Read pairs in an order that is a pure function of (seed, step): resume is arithmetic.

A run fixes S logical streams. In every epoch the shards are permuted and dealt to the streams;
inside a shard the pairs are permuted. Every global batch takes the same number of pairs from
every stream, in stream order, so neither the number of processes nor of loader workers changes
its content, and no state needs saving. Shards are decoded whole and kept while they fit.
"""

import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from data.pairs import decode, read_record, tar_path
from get.errors import InputError
from get.images import from_uint8

CACHE_BYTES = 2**30  # of decoded shards, a loader process


class Batch(NamedTuple):
    """Pairs ready for a model.

    Attributes:
        noise: Unit normal noise.
        images: The teacher's images in [-1, 1].
        labels: Class indices, or None.
    """

    noise: Float[Tensor, "batch channels height width"]
    images: Float[Tensor, "batch channels height width"]
    labels: Int[Tensor, " batch"] | None

    def to(self, device: torch.device) -> "Batch":
        """Move to a device."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        noise, images = (x.to(device, non_blocking=True) for x in (self.noise, self.images))
        return Batch(noise, images, labels)


class Shard(NamedTuple):
    """Decoded pairs; images as stored (uint8, float16 or float32)."""

    noise: Float[Tensor, "pairs channels height width"]
    images: Shaped[Tensor, "pairs channels height width"]
    labels: Int[Tensor, " pairs"] | None

    def take(self, places: Int[np.ndarray, " chosen"]) -> "Shard":
        """Return the pairs at these places."""
        at = torch.from_numpy(places)
        return Shard(
            self.noise[at], self.images[at], None if self.labels is None else self.labels[at]
        )


def concatenate(parts: list[Shard]) -> Shard:
    """Return the pairs of all parts in order."""
    labels = [part.labels for part in parts if part.labels is not None]
    return Shard(
        torch.cat([part.noise for part in parts]),
        torch.cat([part.images for part in parts]),
        torch.cat(labels) if labels else None,
    )


def read_shard(folder: Path, shard: int) -> Shard:
    """Decode one shard in index order.

    Raises:
        InputError: If it is missing or damaged, naming it.
    """
    record, path = read_record(folder, shard), tar_path(folder, shard)
    pairs = []
    try:
        if record is None:
            raise FileNotFoundError("no record")
        if path.stat().st_size != record.bytes:
            raise ValueError(f"{path.stat().st_size} bytes")
        with path.open("rb") as file:
            members = tar_file_expander([{"url": str(path), "stream": file}])
            pairs = [decode(sample) for sample in group_by_keys(members)]
        # webdataset ends silently at many kinds of damage, so the count has to be looked at.
        found = sum(len(pair[0]) for pair in pairs)
        if found != record.count:
            raise ValueError(f"{found} pairs")
        noise = torch.from_numpy(np.concatenate([pair[0] for pair in pairs]))
        images = torch.from_numpy(np.concatenate([pair[1] for pair in pairs]))
    except (OSError, ValueError, KeyError, tarfile.ReadError) as error:
        expected = f"{record.count} pairs in {record.bytes} bytes" if record else "a finished shard"
        raise InputError(
            f"expected {expected} in {path}, got {type(error).__name__}: {error}; "
            f"delete {path.name} and its .json and run make_pairs.py again"
        ) from error
    labels = [pair[2] for pair in pairs if pair[2] is not None]
    return Shard(noise, images, torch.from_numpy(np.concatenate(labels)) if labels else None)


def as_floats(images: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return stored images as float32 in [-1, 1]."""
    return from_uint8(images) if images.dtype == torch.uint8 else images.float()


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which pairs make up which batch.

    Attributes:
        folder: The data set.
        shards: Shards 0 .. shards - 1 are read.
        pairs_per_shard: Pairs a shard.
        seed: Of the permutations.
        streams: Logical streams; they divide `shards` and `batch_size`.
        batch_size: Pairs a global batch.
    """

    folder: Path
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
                f"in {self.folder}; make more pairs or choose other streams or holdout_shards"
            )
        if self.batch_size % self.streams:
            raise InputError(
                f"expected a global batch size that {self.streams} streams divide, "
                f"got {self.batch_size}"
            )

    def chunk(self, stream: int, step: int) -> list[tuple[int, Int[np.ndarray, " pairs"]]]:
        """Return (shard, positions inside it) of what a stream gives to a global batch."""
        size = self.batch_size // self.streams
        position, end = step * size, (step + 1) * size
        pieces = []
        while position < end:
            turn, inside = divmod(position, self.pairs_per_shard)  # turn: the stream's nth shard
            epoch, place = divmod(turn, self.shards // self.streams)
            shard = int(_permutation(self.shards, self.seed, epoch)[place * self.streams + stream])
            take = min(end - position, self.pairs_per_shard - inside)
            order = _permutation(self.pairs_per_shard, self.seed, epoch, shard + 1)
            pieces.append((shard, order[inside : inside + take]))
            position += take
        return pieces


@lru_cache(maxsize=256)
def _permutation(length: int, seed: int, epoch: int, what: int = 0) -> Int[np.ndarray, " length"]:
    """Permute by sorting raw Philox numbers, which no numpy release changes; 0 means the shards."""
    key = np.array([seed, epoch], dtype=np.uint64)  # numpy rounds a list with a large seed
    bits = np.random.Philox(key=key, counter=[0, 0, 0, what])
    return np.argsort(bits.random_raw(length), kind="stable")


class _Chunks(IterableDataset):
    """What one loader process reads: step after step, its streams in order, a chunk each.

    A damaged shard ends it with the sentence that says so.
    """

    def __init__(self, order: Order, streams: range, start: int) -> None:
        self.order, self.streams, self.start = order, streams, start

    def __iter__(self) -> Iterator[Shard | str]:
        worker = get_worker_info()
        streams = self.streams if worker is None else self.streams[worker.id :: worker.num_workers]
        shards = _Shards(self.order.folder, at_least=len(streams) + 1)
        for step in count(self.start):
            for stream in streams:
                chunk = self.order.chunk(stream, step)
                try:
                    pieces = [shards[n].take(places) for n, places in chunk]
                except InputError as error:  # raised here, it would carry a worker's traceback
                    yield str(error)
                    return
                yield concatenate(pieces)


class _Shards:
    """Decoded shards, the least recently used ones dropped once they take too much memory."""

    def __init__(self, folder: Path, at_least: int) -> None:
        self.folder, self.at_least = folder, at_least
        self.kept: OrderedDict[int, Shard] = OrderedDict()

    def __getitem__(self, number: int) -> Shard:
        if number not in self.kept:
            self.kept[number] = read_shard(self.folder, number)
            each = sum(t.nbytes for t in self.kept[number] if t is not None)
            while len(self.kept) > max(self.at_least, CACHE_BYTES // each):
                self.kept.popitem(last=False)
        self.kept.move_to_end(number)
        return self.kept[number]


def batches(
    order: Order, *, rank: int = 0, processes: int = 1, start: int = 0, workers: int = 0
) -> Iterator[Batch]:
    """Yield this process's part of global batch `start`, `start + 1`, ... for ever.

    Args:
        order: Which pairs make up which batch.
        rank: Number of this process.
        processes: Number of processes; each gets consecutive streams.
        start: First global batch; nothing before it is opened or decoded.
        workers: Loader processes; 0 reads in this one.

    Raises:
        InputError: If processes times loader workers do not divide the streams.
    """
    if order.streams % (processes * max(workers, 1)):
        raise InputError(
            f"expected processes x dataloader_num_workers to divide {order.streams} streams, "
            f"got {processes} x {max(workers, 1)}; choose other numbers"
        )
    each = order.streams // processes
    chunks = _Chunks(order, range(rank * each, (rank + 1) * each), start)
    # Its own generator: the seeds of loader workers would be drawn from the global one.
    generator = torch.Generator()
    loader = iter(DataLoader(chunks, batch_size=None, num_workers=workers, generator=generator))
    while True:
        # Loader workers answer in turn, so their chunks come in stream order.
        part = concatenate([_checked(next(loader)) for _ in range(each)])
        yield Batch(part.noise, as_floats(part.images), part.labels)


def _checked(chunk: Shard | str) -> Shard:
    if isinstance(chunk, str):
        raise InputError(chunk)
    return chunk
