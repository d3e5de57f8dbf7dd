"""The data sets of a training: what they are, and the order in which they are read together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data.manifest import DamagedShard, Manifest, count_shards, read_manifest, read_record
from data.mixture import Mixture, divide
from data.order import FINE_STREAMS, STREAMS, Order, choose_streams, rows_of
from data.store import Source, open_store
from get.errors import InputError
from pipeline.jobs.run_json import recorded
from pipeline.recipes.settings_train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set of a training.

    Attributes:
        source: Where it lies.
        manifest: What made it.
        shards: Shards to train on; those that are held out follow.
    """

    source: Source
    manifest: Manifest
    shards: int


def open_data_sets(config: TrainConfig) -> list[DataSet]:
    """Read what the data sets are and how many shards they have.

    Raises:
        InputError: If one is missing or there twice, or they are not for the same student.
    """
    found = []
    for source in config.sources:
        store = open_store(source, config.pairs_cache)
        shards = count_shards(store) - config.holdout_shards
        found.append(DataSet(source=store, manifest=read_manifest(store), shards=shards))
    check_alike(found, config.vae)
    if len(found) > 1:
        check_different(found)
    return found


def check_alike(sets: Sequence[DataSet], vae: str | None) -> None:
    """Raise InputError unless a student can learn from all of these, and one VAE decode them."""
    first = sets[0]
    for other in sets[1:]:
        if (ours := _images(first.manifest)) != (theirs := _images(other.manifest)):
            raise InputError(
                f"expected pairs like those of {first.source} ({ours}), got {theirs} in "
                f"{other.source}; images and classes must be the same"
            )
        if vae is None and first.manifest.vae != other.manifest.vae:
            raise InputError(
                f"expected --vae, because {first.source} and {other.source} name different ones, "
                "got none; give it if their latents are of the same"
            )


def check_different(sets: Sequence[DataSet]) -> None:
    """Raise InputError if two of them begin with the same shard: a batch would repeat pairs."""
    known: dict[str, DataSet] = {}
    for one in sets:
        try:
            record = read_record(one.source, 0)
        except DamagedShard:  # noticed where it is read, or skipped there
            continue
        if record is not None and (other := known.setdefault(record.sha256, one)) is not one:
            raise InputError(
                f"expected different data sets, got {other.source} and {one.source}, whose first "
                "shards are the same; name each once, and --pairs_weights for its part of a batch"
            )


def _images(manifest: Manifest) -> str:
    """Say what a student must fit."""
    shape = "x".join(map(str, manifest.image_shape))
    return (
        f"{'images' if manifest.vae is None else 'latents'} {shape}, {manifest.num_classes} classes"
    )


def record(sets: Sequence[DataSet], order: Mixture) -> dict[str, Any]:
    """Return what run.json keeps of the data: of several sets under 1, 2, ..., with their part."""
    each = [{**asdict(one.manifest), "shards": one.shards} for one in sets]
    if len(each) == 1:
        return each[0]
    parts = [
        {**one, "batch": part.batch_size} for one, part in zip(each, order.orders, strict=True)
    ]
    return {str(number): one for number, one in enumerate(parts, 1)}


def build_order(config: TrainConfig, sets: Sequence[DataSet], processes: int) -> Mixture:
    """Return the order in which the training shards are read.

    A run that is continued keeps its number of streams, and with it its order.

    Raises:
        InputError: If there are no shards, or numbers do not divide.
    """
    batch, workers = config.global_batch_size, config.dataloader_num_workers
    fine = config.shuffle == "fine"
    rows_of(batch, 0, processes, workers)
    streams = config.streams or recorded(config, "streams")
    if streams is None:
        shards, readers = sum(one.shards for one in sets), processes * max(workers, 1)
        streams = choose_streams(shards, batch, readers, FINE_STREAMS if fine else STREAMS)
    weights = config.pairs_weights or [1.0] * len(sets)
    orders = [
        Order(
            source=one.source,
            shards=one.shards,
            pairs_per_shard=one.manifest.pairs_per_shard,
            seed=(config.seed + place) % 2**64,  # two teachers' pairs of a noise do not meet
            streams=max(1, round(streams * part / batch)),
            batch_size=part,
            stagger=fine,
        )
        for place, (one, part) in enumerate(zip(sets, divide(batch, weights), strict=True))
    ]
    return Mixture(tuple(orders), streams)
