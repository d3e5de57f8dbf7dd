"""Write pairs: shard i is a pure function of (settings, i), so any job may write any shard.

Writing a shard twice gives the same bytes on the same hardware. open_shard.py makes it appear
complete or not at all, so a job may be killed at any time and started again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from data.manifest import ImageFormat, Manifest, ShardRecord, open_data_set, read_record
from data.open_shard import OpenShard
from data.pairs import Pairs
from data.teachers.open import open_teacher
from data.teachers.settings import Execution, Sampler
from data.teachers.teacher import Teacher
from get import noise as noises
from get.errors import InputError

AHEAD = 2  # batches that may wait to be encoded


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Everything that decides the bytes of a data set, and where it lies.

    Attributes:
        teacher: As in `data.teachers.open.open_teacher`.
        folder: Folder of the data set.
        sampler: The teacher's sampler.
        execution: The teacher's precision and speed.
        seed: Seed and index decide the noise and label of a pair.
        teacher_batch_size: Images per call of the teacher; no batch crosses the end of a shard.
        pairs_per_shard: Pairs per shard.
        image_format: Encoding of the images.
        pack: Pairs per member of a tar.
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
    """Make one shard, or return its record if it exists: a pure call for any scheduler.

    The teacher stays open in this process between calls with the same settings.

    Args:
        settings: Everything that decides the bytes.
        shard: Number of the shard, from 0.
        device: Where the teacher runs.

    Raises:
        InputError: If there is no such teacher, or the folder holds pairs of other settings.
    """
    if (record := read_record(settings.folder, shard)) is not None:
        return record
    teacher, manifest = _opened(settings, device)
    return write_shard(settings.folder, shard, teacher, manifest)


def open_pairs(settings: PairSettings, device: torch.device | str) -> tuple[Teacher, Manifest]:
    """Open the teacher and the data set in its folder; arguments as in `generate_shard`."""
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
    """Return the manifest of the pairs that this teacher makes with these settings.

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
    """Make the pairs of shards and publish one shard after the other.

    The teacher does not wait: one thread draws the noise of the next batch, another one encodes
    and writes the images of earlier batches.

    Args:
        folder: The data set, opened with `manifest`.
        shards: Numbers of the shards, from 0.
        teacher: The teacher of `manifest`.
        manifest: The settings.
        progress: Called with the number of pairs after every teacher batch. If it raises, the
            unfinished shard is deleted.

    Raises:
        InputError: If the teacher makes images that are not finite.
        OSError: If the disk is full or the folder cannot be written to.
    """
    records: list[ShardRecord] = []
    opened: deque[OpenShard] = deque()
    pending: deque[Future[ShardRecord | None]] = deque()

    def wait(at_most: int) -> None:
        while len(pending) > at_most:
            if (record := pending.popleft().result()) is not None:
                records.append(record)
                opened.popleft().close()

    try:
        with ThreadPoolExecutor(1) as background:  # its exit waits for all submitted work
            for shard, indices, noise, labels in _draws(shards, manifest):
                if indices.start == shard * manifest.pairs_per_shard:
                    opened.append(OpenShard(folder, shard, manifest))
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
    """Publish one shard of pairs that already exist; see `write_shards`.

    Args:
        folder: The data set.
        shard: Number of the shard, from 0.
        manifest: The settings.
        pairs: `pairs_per_shard` of them, images in [-1, 1].

    Raises:
        InputError: If images are not finite, or the number of pairs is not `pairs_per_shard`.
        OSError: If the disk is full or the folder cannot be written to.
    """
    tar = OpenShard(folder, shard, manifest)
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
    """Yield shard, indices, noise and labels of every teacher batch; draw one batch ahead."""
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
