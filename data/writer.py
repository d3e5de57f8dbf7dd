"""Write pairs: shard i is a pure function of (settings, i), so any job may write any shard.

Restartable, idempotent and atomic: a tar is written under a hidden name, synced, renamed, and
only then gets its record. Writing a shard twice gives the same bytes on the same hardware.
"""

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from webdataset.writer import TarWriter

from data.pairs import (
    ImageFormat,
    Manifest,
    ShardRecord,
    encode,
    hidden_path,
    publish,
    tar_path,
)
from data.teachers import Sampler
from get import noise as noises
from get.errors import InputError


@runtime_checkable  # the tests check annotations
class Teacher(Protocol):
    """What the writer needs of a teacher; see `data/teachers`."""

    image_shape: tuple[int, int, int]
    num_classes: int | None
    evaluations: int
    fingerprint: str
    sampler: Sampler

    def __call__(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Return float32 images of unit normal noise."""
        ...


def describe(
    teacher: Teacher,
    *,
    seed: int,
    teacher_batch_size: int,
    pairs_per_shard: int,
    image_format: ImageFormat,
) -> Manifest:
    """Return the manifest of the pairs this teacher would make with these settings.

    Raises:
        InputError: If the images cannot be stored in that format.
    """
    if image_format == "png" and teacher.image_shape[0] not in (1, 3):
        raise InputError(
            f"expected 1 or 3 channels for image_format png, got {teacher.image_shape[0]}; "
            "choose npy or npy32"
        )
    return Manifest(
        teacher=teacher.fingerprint,
        sampler=asdict(teacher.sampler),
        evaluations=teacher.evaluations,
        seed=seed,
        teacher_batch_size=teacher_batch_size,
        image_shape=teacher.image_shape,
        num_classes=teacher.num_classes,
        image_format=image_format,
        pairs_per_shard=pairs_per_shard,
    )


def write_shard(
    folder: Path,
    shard: int,
    teacher: Teacher,
    manifest: Manifest,
    progress: Callable[[int], object] = lambda count: None,
) -> ShardRecord:
    """Make the pairs of one shard and publish it.

    Args:
        folder: The data set, opened with `manifest`.
        shard: Number of the shard from 0.
        teacher: The teacher of `manifest`.
        manifest: The settings.
        progress: Called with the number of pairs after every teacher batch; what it raises drops
            the shard and leaves nothing behind.
    """
    first = shard * manifest.pairs_per_shard
    buffer = io.BytesIO()
    with TarWriter(buffer, mtime=0) as tar:  # no clock in the bytes
        for start in range(0, manifest.pairs_per_shard, manifest.teacher_batch_size):
            count = min(manifest.teacher_batch_size, manifest.pairs_per_shard - start)
            indices = range(first + start, first + start + count)
            noise, labels = noises.draw(
                manifest.seed, indices, manifest.image_shape, manifest.num_classes
            )
            images = teacher(noise, labels).cpu()
            if not torch.isfinite(images).all():
                raise InputError(
                    f"expected finite images, got inf or nan among indices {indices[0]} to "
                    f"{indices[-1]}; the teacher diverges"
                )
            for sample in encode(
                indices[0], noise, images, labels, manifest.image_format, manifest.pack
            ):
                tar.write(sample)
            progress(count)
    data = buffer.getvalue()
    record = ShardRecord(
        count=manifest.pairs_per_shard,
        first_index=first,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
    )
    temporary = hidden_path(tar_path(folder, shard))
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(folder, shard, temporary, record)
    finally:
        temporary.unlink(missing_ok=True)
    return record
