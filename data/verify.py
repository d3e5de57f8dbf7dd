"""Check a data set: every shard against its record, and pairs against the teacher.

`pipeline/verify_pairs.py` is the command.
"""

import torch
from torch import Tensor

from data.manifest import DamagedShard, Manifest, ShardRecord, read_record
from data.origins import cut, parse_origins
from data.pairs import Pairs
from data.reader import load_shard, read_shard
from data.store import Source, open_store
from data.teachers.teacher import Teacher
from data.writer import let_make
from get.errors import InputError
from get.noise import draw


def find_damage(source: Source, shard: int, manifest: Manifest) -> str | None:
    """Return what is wrong with a finished shard, or None if nothing is.

    Its bytes are compared with size and hash in the record; names, types, shapes, noise and labels
    with the manifest, whose seed they are drawn from.

    Raises:
        InputError: If the store cannot be reached or a file not read; it may be undamaged.
    """
    store, record = open_store(source), None
    try:
        record = read_record(store, shard)
        pairs = load_shard(store, shard, record, manifest, states=True)
        assert record is not None, "or it would not have been loaded"
        return None if manifest.imported else _other_draws(pairs, record, manifest)
    except DamagedShard:
        return "a record that cannot be read"
    except InputError:
        raise
    except FileNotFoundError:
        return "the record is there, the tar is not" if record else "no record"
    except ValueError as error:
        return str(error)


def _draw(record: ShardRecord, manifest: Manifest, rows: range) -> tuple[Tensor, Tensor | None]:
    """Draw noise and labels of some rows of a shard from the seeds and indices they are of."""
    first, shape, num_classes = record.first_index, manifest.image_shape, manifest.num_classes
    if manifest.derived is None:
        indices = range(first + rows.start, first + rows.stop)
        return draw(manifest.seed, indices, shape, num_classes)
    seeds = [source["seed"] for source in manifest.derived["sources"]]
    runs = cut(parse_origins(record.origins or ""), rows)
    noise, labels = zip(*(draw(seeds[n], at, shape, num_classes) for n, at in runs), strict=True)
    return torch.cat(noise), None if num_classes is None else torch.cat(labels)


def _other_draws(pairs: Pairs, record: ShardRecord, manifest: Manifest) -> str | None:
    """Say which pairs of a shard are not those of the seed and their index."""
    noise, labels = _draw(record, manifest, range(len(pairs)))
    # Mathematical functions of other machines may round differently.
    same = ((noise - pairs.noise).abs() <= 1e-5).flatten(1).all(1)
    if labels is not None and pairs.labels is not None:
        same &= labels == pairs.labels
    if same.all():
        return None
    whose = f"seed {manifest.seed}" if manifest.derived is None else "their origins"
    first = record.first_index
    others = (~same).nonzero().flatten().tolist()
    return f"{len(others)} pairs, {first + others[0]} the first, that are not those of {whose}"


def compare_with_teacher(
    source: Source, shard: int, batch: int, teacher: Teacher, manifest: Manifest
) -> tuple[bool, float, float]:
    """Make one teacher batch of a shard again and compare.

    It is the same batch as in writing, so on the same hardware and versions the difference is 0;
    elsewhere, and for a derived data set, a deterministic sampler differs by about one level.

    Returns:
        Whether noise and labels are bitwise those of their indices, the largest difference of a
        pixel in 8-bit levels, and the fraction of the pixels that differ by more than one level.
        The states of trajectories count as pixels.
    """
    size, total = manifest.teacher_batch_size, manifest.pairs_per_shard
    rows = range(batch * size, min((batch + 1) * size, total))
    at = slice(rows.start, rows.stop)
    stored = read_shard(source, shard, manifest, states=True).take(at).as_floats()
    record = read_record(source, shard)
    assert record is not None, "or it would not have been read"
    noise, labels = _draw(record, manifest, rows)
    same = torch.equal(noise, stored.noise)
    if labels is not None and stored.labels is not None:
        same = same and torch.equal(labels, stored.labels)
    made = let_make(teacher, manifest, noise, labels)
    images, rounding = made.images, 0.0  # in levels
    if manifest.image_format == "png":
        images, rounding = images.clamp(-1, 1), 0.5
    levels = ((images - stored.images).abs() * 127.5 - rounding).clamp_min(0)
    if made.states is not None and stored.states is not None:
        states = (made.states.float() - stored.states).abs() * 127.5
        levels = torch.cat([levels.flatten(), states.flatten()])
    return same, float(levels.max()), float((levels > 1).double().mean())


def distance_to_finer(
    source: Source, shard: int, batch: int, finer: Teacher, manifest: Manifest
) -> tuple[float, float]:
    """Compare one teacher batch with what a finer sampler makes of the same noise.

    Both solve the same ODE, so the distance is what the coarser steps cost.

    Returns:
        The root mean square difference, and that of the images from their mean image, in the units
        of the images ([-1, 1], or those of the latents).
    """
    size = manifest.teacher_batch_size
    stored = read_shard(source, shard, manifest).take(slice(batch * size, (batch + 1) * size))
    stored = stored.as_floats()
    made = finer(stored.noise, stored.labels).cpu()
    if manifest.image_format == "png":
        made = made.clamp(-1, 1)
    spread = stored.images - stored.images.mean(0)
    difference = made - stored.images
    return float(difference.square().mean().sqrt()), float(spread.square().mean().sqrt())
