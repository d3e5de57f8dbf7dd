"""Check a data set: every shard against its record, and pairs against the teacher.

`pipeline/verify_pairs.py` is the command.
"""

from pathlib import Path

import torch

from data.codec import decode
from data.manifest import Manifest, read_record, tar_path
from data.reader import read_shard
from data.store import open_store
from data.tar import members, samples
from data.teachers.teacher import Teacher
from get.noise import draw


def find_damage(folder: Path, shard: int, manifest: Manifest) -> str | None:
    """Return what is wrong with a finished shard, or None if nothing is.

    Its bytes are compared with size and hash in the record, names and shapes with the manifest.
    """
    path = tar_path(folder, shard)
    try:
        record = read_record(folder, shard)
        if record is None:
            return "no record"
        if not path.exists():
            return "the record is there, the tar is not"
        if (size := path.stat().st_size) != record.bytes:
            return f"{size} bytes instead of {record.bytes}"
        first = shard * manifest.pairs_per_shard
        if (record.first_index, record.count) != (first, manifest.pairs_per_shard):
            return f"its record says {record.count} pairs from {record.first_index}"
        data = open_store(folder).read_whole(path.name, record.bytes, record.sha256)
        if [name for name, _ in members(data)] != names(first, record.count, manifest):
            return "other names in the tar than the manifest asks for"
        pairs = decode(samples(data), record.count)
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    if (shape := tuple(pairs.noise.shape[1:])) != manifest.image_shape:
        return f"images of {shape} instead of {manifest.image_shape}"
    if not torch.isfinite(pairs.noise).all() or not torch.isfinite(pairs.images.float()).all():
        return "numbers that are not finite"
    labels = pairs.labels
    if (labels is None) != (manifest.num_classes is None):
        return "labels where none should be, or none where some should"
    if labels is not None and not set(labels.tolist()) <= set(range(manifest.num_classes or 0)):
        return f"labels outside 0 to {manifest.num_classes}"
    return None


def names(first: int, count: int, manifest: Manifest) -> list[str]:
    """Return the names of all members of a shard in order."""
    packed = manifest.pack > 1
    members = [] if manifest.num_classes is None else ["cls.npy" if packed else "cls"]
    members.append("image.png" if manifest.image_format == "png" and not packed else "image.npy")
    members.append("latent.npy")
    return [
        f"{index:09d}.{member}"
        for index in range(first, first + count, manifest.pack)
        for member in members
    ]


def compare_with_teacher(
    folder: Path, shard: int, batch: int, teacher: Teacher, manifest: Manifest
) -> tuple[bool, float, float]:
    """Make one teacher batch of a shard again and compare.

    It is the same batch as in writing, so on the same hardware and versions the difference is 0;
    elsewhere a deterministic sampler differs by about one level.

    Returns:
        Whether noise and labels are bitwise those of their indices, the largest difference of a
        pixel in 8-bit levels, and the fraction of the pixels that differ by more than one level.
    """
    size, total = manifest.teacher_batch_size, manifest.pairs_per_shard
    at = slice(batch * size, min((batch + 1) * size, total))
    indices = range(shard * total + at.start, shard * total + at.stop)
    stored = read_shard(folder, shard).take(at).as_floats()
    noise, labels = draw(manifest.seed, indices, manifest.image_shape, manifest.num_classes)
    same = torch.equal(noise, stored.noise)
    if labels is not None and stored.labels is not None:
        same = same and torch.equal(labels, stored.labels)
    images, rounding = teacher(noise, labels).cpu(), 0.0  # in levels
    if manifest.image_format == "png":
        images, rounding = images.clamp(-1, 1), 0.5
    levels = ((images - stored.images).abs() * 127.5 - rounding).clamp_min(0)
    return same, float(levels.max()), float((levels > 1).double().mean())
