"""Write pairs: shard i is a pure function of (settings, i), so any job may write any shard.

Restartable, idempotent and atomic: a tar is written under a hidden name, synced, renamed, and
only then gets its record. Writing a shard twice gives the same bytes on the same hardware.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor
from webdataset.writer import TarWriter

from data.codec import encode
from data.files import hidden_path
from data.manifest import (
    ImageFormat,
    Manifest,
    ShardRecord,
    open_data_set,
    publish,
    read_record,
    tar_path,
)
from data.pairs import Pairs
from data.teachers.open import open_teacher
from data.teachers.settings import Execution, Sampler
from data.teachers.teacher import Teacher
from get import noise as noises
from get.errors import InputError

AHEAD = 2  # batches that may wait to be encoded


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """All that decides the bytes of a data set, and where it lies.

    Attributes:
        teacher: As in `data.teachers.open.open_teacher`.
        folder: The data set's folder.
        sampler: The teacher's sampler.
        execution: The teacher's precision and speed.
        seed: With an index it names a pair's noise and label.
        teacher_batch_size: Images made at once, cut inside each shard.
        pairs_per_shard: Pairs a shard.
        image_format: Encoding of the images.
        pack: Pairs a member of a tar.
    """

    teacher: str
    folder: Path
    sampler: Sampler = Sampler()  # noqa: RUF009  frozen
    execution: Execution = Execution()  # noqa: RUF009  frozen
    seed: int = 0
    teacher_batch_size: int = 256
    pairs_per_shard: int = 1024
    image_format: ImageFormat = "png"
    pack: int = 1


def generate_shard(
    settings: PairSettings, shard: int, device: torch.device | str = "cpu"
) -> ShardRecord:
    """Make one shard, or return its record if it is there: one call, pure, for any scheduler.

    The teacher stays open in this process between calls with the same settings.

    Args:
        settings: All that decides the bytes.
        shard: Its number from 0.
        device: Where the teacher runs.

    Raises:
        InputError: If there is no such teacher, or the folder holds pairs of other settings.
    """
    if (record := read_record(settings.folder, shard)) is not None:
        return record
    teacher, manifest = _opened(settings, device)
    return write_shard(settings.folder, shard, teacher, manifest)


def open_pairs(settings: PairSettings, device: torch.device | str) -> tuple[Teacher, Manifest]:
    """Open the teacher, and the data set in its folder; arguments as in `generate_shard`."""
    teacher = open_teacher(settings.teacher, settings.sampler, device, settings.execution)
    manifest = describe(
        teacher,
        seed=settings.seed,
        teacher_batch_size=settings.teacher_batch_size,
        pairs_per_shard=settings.pairs_per_shard,
        image_format=settings.image_format,
        pack=settings.pack,
    )
    open_data_set(settings.folder, manifest)
    return teacher, manifest


_opened = lru_cache(maxsize=1)(open_pairs)


def describe(
    teacher: Teacher,
    *,
    seed: int,
    teacher_batch_size: int,
    pairs_per_shard: int,
    image_format: ImageFormat,
    pack: int = 1,
) -> Manifest:
    """Return the manifest of the pairs this teacher would make with these settings.

    Raises:
        InputError: If the images cannot be stored in that format.
    """
    return Manifest(
        teacher=teacher.fingerprint,
        sampler=teacher.sampler.settings(),
        execution=teacher.execution.settings(),
        vae=teacher.vae_source,
        evaluations=teacher.evaluations,
        seed=seed,
        teacher_batch_size=teacher_batch_size,
        image_shape=teacher.image_shape,
        num_classes=teacher.num_classes,
        image_format=image_format,
        pairs_per_shard=pairs_per_shard,
        pack=pack,
    )


def write_shard(
    folder: Path,
    shard: int,
    teacher: Teacher,
    manifest: Manifest,
    progress: Callable[[int], object] = lambda count: None,
) -> ShardRecord:
    """Make the pairs of one shard and publish it; see `write_shards`."""
    (record,) = write_shards(folder, [shard], teacher, manifest, progress)
    return record


def write_shards(
    folder: Path,
    shards: Iterable[int],
    teacher: Teacher,
    manifest: Manifest,
    progress: Callable[[int], object] = lambda count: None,
) -> list[ShardRecord]:
    """Make the pairs of shards and publish one after the other.

    The teacher never waits: one thread draws the noise of the next batch, another encodes and
    writes what has been made.

    Args:
        folder: The data set, opened with `manifest`.
        shards: Numbers of shards, from 0.
        teacher: The teacher of `manifest`.
        manifest: The settings.
        progress: Called with the number of pairs after every teacher batch; what it raises drops
            the shard in hand and leaves nothing of it behind.

    Raises:
        InputError: If the teacher makes images that are not finite.
        OSError: If the disk is full or the folder cannot be written to.
    """
    records: list[ShardRecord] = []
    opened: deque[_OpenShard] = deque()
    pending: deque[Future[ShardRecord | None]] = deque()

    def wait(at_most: int) -> None:
        while len(pending) > at_most:
            if (record := pending.popleft().result()) is not None:
                records.append(record)
                opened.popleft().close()

    try:
        with ThreadPoolExecutor(1) as background:  # its end waits for what has been handed over
            for shard, indices, noise, labels in _draws(shards, manifest):
                if indices.start == shard * manifest.pairs_per_shard:
                    opened.append(_OpenShard(folder, shard, manifest))
                tar, images = opened[-1], teacher(noise, labels).cpu()
                pending.append(background.submit(tar.add, indices, Pairs(noise, images, labels)))
                wait(at_most=AHEAD)
                progress(len(indices))
                if indices.stop == (shard + 1) * manifest.pairs_per_shard:
                    pending.append(background.submit(tar.publish))
            wait(at_most=0)
    finally:
        for tar in opened:
            tar.close()
    return records


def write_given(
    folder: Path,
    shard: int,
    manifest: Manifest,
    pairs: Pairs,
) -> ShardRecord:
    """Publish one shard of pairs that somebody else has made; see `write_shards`.

    Args:
        folder: The data set.
        shard: Its number from 0.
        manifest: The settings.
        pairs: `pairs_per_shard` of them, images in [-1, 1].

    Raises:
        InputError: If the images are not finite or the number of pairs is another.
        OSError: If the disk is full or the folder cannot be written to.
    """
    tar = _OpenShard(folder, shard, manifest)
    try:
        first = shard * manifest.pairs_per_shard
        tar.add(range(first, first + len(pairs)), pairs)
        if (record := tar.publish()) is not None:
            return record
    finally:
        tar.close()
    raise InputError(f"expected {manifest.pairs_per_shard} pairs, got {len(pairs)}")


def _draws(
    shards: Iterable[int], manifest: Manifest
) -> Iterator[tuple[int, range, Tensor, Tensor | None]]:
    """Yield shard, indices, noise and labels of every teacher batch, one drawn ahead."""
    size, batch = manifest.pairs_per_shard, manifest.teacher_batch_size

    def draw(indices: range) -> tuple[Tensor, Tensor | None]:
        return noises.draw(manifest.seed, indices, manifest.image_shape, manifest.num_classes)

    with ThreadPoolExecutor(1) as background:
        drawn: deque[tuple[int, range, Future[tuple[Tensor, Tensor | None]]]] = deque()
        for shard in shards:
            for start in range(shard * size, (shard + 1) * size, batch):
                indices = range(start, min(start + batch, (shard + 1) * size))
                drawn.append((shard, indices, background.submit(draw, indices)))
                if len(drawn) > 1:
                    number, at, ready = drawn.popleft()
                    yield number, at, *ready.result()
        for number, at, ready in drawn:
            yield number, at, *ready.result()


class _OpenShard:
    """A tar under a hidden name that becomes a shard, or vanishes."""

    def __init__(self, folder: Path, shard: int, manifest: Manifest) -> None:
        self.folder, self.shard, self.manifest = folder, shard, manifest
        self.path = hidden_path(tar_path(folder, shard))
        self.count, self.bytes, self.digest, self.dropped = 0, 0, hashlib.sha256(), False
        with self._named_errors():
            self.file = self.path.open("wb")
        # No clock in the bytes.
        self.tar = TarWriter(cast(BinaryIO, self), mtime=0)

    def close(self) -> None:
        """Remove what has not been published."""
        self.dropped = True
        self.tar.close()
        with suppress(OSError):  # a full disk refuses what is still buffered
            self.file.close()
        self.path.unlink(missing_ok=True)

    def write(self, data: bytes) -> int:
        """Take bytes from the tar writer, whose last ones nobody needs once a shard is dropped."""
        if self.dropped:
            return len(data)
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def add(self, indices: range, pairs: Pairs) -> None:
        """Encode and write the pairs of a teacher batch."""
        if not torch.isfinite(pairs.images).all():
            raise InputError(
                f"expected finite images, got inf or nan among indices {indices[0]} to "
                f"{indices[-1]}; the teacher diverges"
            )
        form, pack = self.manifest.image_format, self.manifest.pack
        with self._named_errors():
            for sample in encode(indices[0], pairs, form, pack):
                self.tar.write(sample)
        self.count += len(indices)

    def publish(self) -> ShardRecord | None:
        """Finish the tar, make it durable and let it exist."""
        if self.count != self.manifest.pairs_per_shard:  # a batch before could not be written
            return None
        with self._named_errors():
            self.tar.close()
            self.file.flush()
            os.fsync(self.file.fileno())
            record = ShardRecord(
                count=self.count,
                first_index=self.shard * self.manifest.pairs_per_shard,
                sha256=self.digest.hexdigest(),
                bytes=self.bytes,
            )
            publish(self.folder, self.shard, self.path, record)
        return record

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise InputError(
                f"expected the folder {self.folder}, got none: it has gone since the start; "
                "bring it back and run the same command again"
            ) from error
        except OSError as error:  # a failed write does not know its file
            path = tar_path(self.folder, self.shard)
            raise OSError(error.errno, error.strerror, str(path)) from error
