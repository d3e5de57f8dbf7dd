"""Write pairs: shard i is a pure function of (settings, i), so any job may write any shard.

Writing a shard twice gives the same bytes on the same hardware. open_shard.py makes it appear
complete or not at all, so a job may be killed at any time and started again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, pairwise

import torch
from torch import Tensor

from data.claims import tidy
from data.manifest import Manifest, ShardRecord
from data.open_shard import OpenShard
from data.pair_settings import PairSettings
from data.pairs import Pairs
from data.places import Place, open_site
from data.teachers.open import open_teacher
from data.teachers.teacher import Teacher
from get.errors import InputError
from get.noise import draw

AHEAD = 2  # batches that may wait to be encoded


def generate_shard(
    settings: PairSettings, shard: int, device: torch.device | str = "cpu"
) -> ShardRecord:
    """Make one shard, or return its record if it exists: a pure call for any scheduler.

    Shards are numbered from 0. The teacher runs on the device and stays open in this process
    between calls with the same settings; it is opened for a shard that exists too, because its
    weights are part of what is compared.

    Raises:
        InputError: If there is no such teacher, or the folder holds pairs of other settings.
    """
    if shard < 0:
        raise InputError(f"expected shards numbered from 0, got {shard}")
    teacher, manifest = open_pairs(settings, device)
    site = open_site(settings.output_dir)
    if (record := site.finished(shard)) is None:
        (record,) = write_shards(site, [shard], teacher, manifest)
        tidy(site)
    return record


def open_pairs(settings: PairSettings, device: torch.device | str) -> tuple[Teacher, Manifest]:
    """Open the teacher and the data set; arguments as in `generate_shard`."""
    sampler, execution = settings.teacher_settings()
    teacher = _teacher(settings.teacher, sampler, device, execution)
    manifest = describe(teacher, settings)
    open_site(settings.output_dir).open(manifest)
    return teacher, manifest


_teacher = lru_cache(maxsize=1)(open_teacher)


def describe(teacher: Teacher, settings: PairSettings) -> Manifest:
    """Return the manifest of the pairs that this teacher makes with these settings."""
    return Manifest(
        teacher=teacher.fingerprint,
        sampler=teacher.sampler.settings(),
        execution=teacher.execution.settings(),
        vae=teacher.vae_source,
        evaluations=teacher.evaluations,
        seed=settings.seed,
        teacher_batch_size=settings.teacher_batch_size,
        image_shape=teacher.image_shape,
        num_classes=teacher.num_classes,
        image_format=settings.image_format,
        pairs_per_shard=settings.pairs_per_shard,
        pack=settings.pack,
        trajectory=teacher.levels(settings.trajectory_points),
    )


def write_shards(
    place: Place,
    shards: Iterable[int],
    teacher: Teacher,
    manifest: Manifest,
    progress: Callable[[int], object] = lambda count: None,
) -> list[ShardRecord]:
    """Make the pairs of shards and publish one shard after the other.

    The teacher does not wait: one thread draws the noise of the next batch, another one encodes
    and writes the images of earlier batches.

    Args:
        place: The data set, opened with `manifest`.
        shards: Numbers of the shards, from 0.
        teacher: The teacher of `manifest`.
        manifest: The settings.
        progress: Called with the number of pairs after every teacher batch. If it raises, the
            unfinished shard is deleted.

    Raises:
        InputError: If the teacher makes images that are not finite, or the store cannot be reached.
        OSError: If the disk is full or the folder cannot be written to.
    """
    site = open_site(place)
    records: list[ShardRecord] = []
    opened: deque[OpenShard] = deque()
    pending: deque[Future[ShardRecord | None]] = deque()

    def wait(at_most: int) -> None:
        while len(pending) > at_most:
            if (record := pending.popleft().result()) is not None:
                records.append(record)
                opened.popleft().close()

    def publish(tar: OpenShard) -> ShardRecord | None:
        record = tar.publish()
        return record and site.keep(tar.folder, record)

    size = manifest.pairs_per_shard
    with site.workshop() as folder:
        try:
            with ThreadPoolExecutor(1) as background:  # its exit waits for all submitted work
                for indices, noise, labels in _draws(shards, manifest):
                    if indices.start % size == 0:
                        opened.append(OpenShard(folder, indices.start // size, manifest))
                    tar, pairs = opened[-1], let_make(teacher, manifest, noise, labels)
                    pending.append(background.submit(tar.add, indices, pairs))
                    wait(at_most=AHEAD)
                    progress(len(indices))
                    if indices.stop % size == 0:
                        pending.append(background.submit(publish, tar))
                wait(at_most=0)
        finally:
            for tar in opened:
                tar.close()
    return records


def let_make(teacher: Teacher, manifest: Manifest, noise: Tensor, labels: Tensor | None) -> Pairs:
    """Return what the teacher makes of noise and labels, on the CPU."""
    if not manifest.trajectory:
        return Pairs(noise, teacher(noise, labels).cpu(), labels)
    images, states = teacher.with_states(noise, labels, len(manifest.trajectory))
    return Pairs(noise, images.cpu(), labels, states.cpu())


def write_given(
    place: Place, shard: int, manifest: Manifest, pairs: Pairs, origins: str | None = None
) -> ShardRecord:
    """Publish one shard of pairs that already exist, images in [-1, 1]; see `write_shards`.

    `origins` says what they were chosen from (origins.py); None if they were not.
    """
    site = open_site(place)
    with site.workshop() as folder:
        tar = OpenShard(folder, shard, manifest)
        try:
            first = shard * manifest.pairs_per_shard
            tar.add(range(first, first + len(pairs)), pairs)
            record = tar.publish(origins)
            assert record is not None, "as many pairs as a shard has"
            return site.keep(folder, record)
        finally:
            tar.close()


def _draws(
    shards: Iterable[int], manifest: Manifest
) -> Iterator[tuple[range, Tensor, Tensor | None]]:
    """Yield indices, noise and labels of every teacher batch; draw one batch ahead."""
    size, batch = manifest.pairs_per_shard, manifest.teacher_batch_size
    batches = (
        range(start, min(start + batch, (shard + 1) * size))
        for shard in shards
        for start in range(shard * size, (shard + 1) * size, batch)
    )
    seed, shape, num_classes = manifest.seed, manifest.image_shape, manifest.num_classes
    with ThreadPoolExecutor(1) as background:
        drawn = ((at, background.submit(draw, seed, at, shape, num_classes)) for at in batches)
        # `pairwise` asks for the next batch before it gives this one; the last has none after it.
        for (indices, ready), _ in pairwise(chain(drawn, [(range(0), Future())])):
            yield indices, *ready.result()
