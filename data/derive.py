"""Data sets made of others: chosen pairs of one or several, in order, cut into shards anew.

What is written is as whole and as checkable as what a teacher writes: the same manifest, records,
claims and hashes, and the origin of every pair (origins.py). Shard i is a pure function of the
sources and the settings, so the same call continues, and any number of jobs share the work.
`pipeline/curate_pairs.py` is the command.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from data.folder import Store
from data.manifest import (
    DamagedShard,
    Manifest,
    ShardRecord,
    count_shards,
    read_manifest,
    read_record,
    record_name,
)
from data.origins import MOST, Run, cut, joined, origins_text, parse_origins
from data.pairs import Pairs
from data.places import Place
from data.reader import read_shard
from data.store import Source, open_store
from data.writer import write_given
from get.errors import InputError

Chosen = range | Int[np.ndarray, " _"]
"""Pairs of a data set, ascending, counted from its first one."""
MAY_DIFFER = {"seed", "teacher_batch_size", "pairs_per_shard", "pack", "vae", "derived"}


@dataclass(frozen=True)
class Whole:
    """A data set that others are made of.

    Attributes:
        store: Where it lies.
        manifest: Its manifest.
        records: The records of all its shards.
    """

    store: Store
    manifest: Manifest
    records: Sequence[ShardRecord]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.records) * self.manifest.pairs_per_shard

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The data sets of teachers that its pairs come from, as a manifest names them."""
        if self.manifest.derived is not None:
            return self.manifest.derived["sources"]
        manifest = self.manifest
        return [{"manifest": manifest.identity, "seed": manifest.seed}]

    @property
    def operand(self) -> dict[str, Any]:
        """What the history of a data set says of this one."""
        hashes = "".join(record.sha256 for record in self.records)
        return {
            "manifest": self.manifest.identity,
            "shards": len(self.records),
            "records": sha256(hashes.encode()).hexdigest(),
        }

    def pieces(self, chosen: Chosen) -> Iterator[tuple[int, Int[np.ndarray, " _"]]]:
        """Yield the shards that chosen pairs lie in, and their rows there."""
        size = self.manifest.pairs_per_shard
        if isinstance(chosen, range):  # perhaps of a billion
            for shard in range(chosen.start // size, -(-chosen.stop // size)):
                first = shard * size
                yield shard, np.arange(max(chosen.start - first, 0), min(chosen.stop - first, size))
            return
        shards, rows = np.divmod(chosen, size)
        edges = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(chosen)]
        for first, end in pairwise(edges):
            if first < end:
                yield int(shards[first]), rows[first:end]

    def origins(self, chosen: Chosen) -> Iterator[Run]:
        """Yield where chosen pairs come from."""
        for shard, rows in self.pieces(chosen):
            record = self.records[shard]
            whole = [(0, range(record.first_index, record.first_index + record.count))]
            runs = parse_origins(record.origins) if record.origins else whole
            if len(rows) == record.count:
                yield from runs
                continue
            edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
            for first, end in pairwise(edges):
                yield from cut(runs, range(int(rows[first]), int(rows[end - 1]) + 1))


def open_whole(place: Source) -> Whole:
    """Open a data set that is finished; its tars are not looked at.

    Raises:
        InputError: If there is none, or a shard is missing.
    """
    store = open_store(place)
    manifest, records = read_manifest(store), []
    for shard in range(count_shards(store)):
        record = read_record(store, shard)
        try:
            if record is None:
                raise ValueError("no record")
            record.check(shard, manifest)
        except ValueError as error:
            raise DamagedShard(
                f"expected a finished shard in {store.place(record_name(shard))}, got {error}; "
                "run verify_pairs.py"
            ) from error
        records.append(record)
    if not records:
        raise InputError(f"expected shards in {store}, got none; make them with make_pairs.py")
    return Whole(store, manifest, records)


def check_alike(wholes: Sequence[Whole]) -> None:
    """Raise InputError unless these can be one data set: one teacher, and no pair twice."""
    for other in wholes[1:]:
        if different := wholes[0].manifest.differences(other.manifest, MAY_DIFFER):
            raise InputError(
                f"expected data sets of one teacher, shape and format, got {other.store}, in which "
                f"{'; '.join(different)}; train on both: --pairs A B"
            )
    spans = sorted(
        (whole.sources[source]["seed"], at.start, at.stop, n)
        for n, whole in enumerate(wholes)
        for source, at in whole.origins(range(len(whole)))
    )
    for (seed, _, end, n), (other_seed, start, _, other) in pairwise(spans):
        if seed == other_seed and start < end:
            raise InputError(
                f"expected data sets without a pair in common, got {wholes[n].store} and "
                f"{wholes[other].store}, which both have index {start} of seed {seed}; choose "
                "other seeds, or subsets that do not overlap"
            )


def choose(
    whole: Whole,
    *,
    within: Chosen | None = None,
    classes: Sequence[int] = (),
    drop_curved: float = 0.0,
    progress: Callable[[], object] = lambda: None,
) -> Chosen:
    """Choose pairs of a data set; every condition that is given must hold.

    Args:
        whole: The data set.
        within: Pairs to choose among; None is all.
        classes: Labels to keep; none keeps all.
        drop_curved: Share of the pairs so chosen to drop: those whose image is farthest from its
            noise, |x - z| in the Euclidean norm.
        progress: Called after each shard that had to be read.

    Raises:
        InputError: If there are no such pairs or classes.
    """
    chosen = range(len(whole)) if within is None else within
    if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < len(whole):
        raise InputError(
            f"expected pairs 0 to {len(whole) - 1} of {whole.store}, got {chosen[-1]}; "
            "choose among those"
        )
    num_classes = whole.manifest.num_classes
    if classes and (num_classes is None or not all(0 <= c < num_classes for c in classes)):
        known = "no classes" if num_classes is None else f"classes 0 to {num_classes - 1}"
        raise InputError(f"expected some of the {known} of {whole.store}, got {list(classes)}")
    if not classes and not drop_curved:
        return chosen
    kept, far = [np.zeros(0, np.int64)], [np.zeros(0)]
    for shard, rows in whole.pieces(chosen):
        pairs = read_shard(whole.store, shard, whole.manifest).take(rows)
        if classes and pairs.labels is not None:
            right = np.isin(pairs.labels.numpy(), classes)
            pairs, rows = pairs.take(np.flatnonzero(right)), rows[right]
        kept.append(shard * whole.manifest.pairs_per_shard + rows)
        far.append(distances(pairs).numpy())
        progress()
    indices, distance = np.concatenate(kept), np.concatenate(far)
    stay = len(indices) - round(drop_curved * len(indices))
    return np.sort(indices[np.argsort(distance, kind="stable")[:stay]])


def distances(pairs: Pairs) -> Float[Tensor, " pairs"]:
    """Return |x - z| of every pair, in float64."""
    return (pairs.as_floats().images.double() - pairs.noise).flatten(1).norm(dim=1)


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A data set that is made of others.

    Attributes:
        verb: What is done, for the history in its manifest.
        settings: With what settings.
        wholes: The sources; their pairs follow each other.
        chosen: Which pairs of each.
        pairs_per_shard: Pairs per shard; None is that of the first source, as for all below.
        pack: Pairs per member of a tar.
    """

    verb: str
    settings: dict[str, Any] = field(default_factory=dict)
    wholes: Sequence[Whole]
    chosen: Sequence[Chosen]
    pairs_per_shard: int | None = None
    pack: int | None = None

    def __post_init__(self) -> None:
        """Refuse what leaves nothing."""
        if not self.shards:
            raise InputError(
                f"expected pairs for a shard of {self.manifest.pairs_per_shard}, got "
                f"{self.count}; choose more pairs or a smaller pairs_per_shard"
            )

    @property
    def count(self) -> int:
        """Number of chosen pairs."""
        return sum(map(len, self.chosen))

    @property
    def shards(self) -> int:
        """Number of shards; pairs at the end that do not fill one are left out."""
        return self.count // self.manifest.pairs_per_shard

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest: that of the first source, and where its pairs come from."""
        before = [w.manifest.derived["history"] for w in self.wholes if w.manifest.derived]
        digest = sha256()
        for chosen in self.chosen:
            digest.update(f"{len(chosen)} {chosen[0] if len(chosen) else 0};".encode())
            if not isinstance(chosen, range):
                digest.update(chosen.astype("<i8").tobytes())
        step = {
            "verb": self.verb,
            "settings": self.settings,
            "of": [whole.operand for whole in self.wholes],
            "selection": digest.hexdigest(),
        }
        history = [*(step for history in before for step in history), step]
        names = ("pairs_per_shard", "pack")
        changes = {n: value for n in names if (value := getattr(self, n)) is not None}
        derived = {"sources": self._sources, "history": history}
        return replace(self.wholes[0].manifest, derived=derived, **changes)

    @cached_property
    def _sources(self) -> list[dict[str, Any]]:
        """The data sets of teachers that the pairs come from, each once."""
        found: list[dict[str, Any]] = []
        for source in (source for whole in self.wholes for source in whole.sources):
            if source not in found:
                found.append(source)
        return found

    def write(self, place: Place, shard: int) -> ShardRecord:
        """Publish a shard."""
        size, parts, runs = self.manifest.pairs_per_shard, list[Pairs](), list[Run]()
        first, end = shard * size, (shard + 1) * size
        for whole, chosen in zip(self.wholes, self.chosen, strict=True):
            own = chosen[max(first, 0) : max(end, 0)]
            first, end = first - len(chosen), end - len(chosen)
            if not len(own):
                continue
            number = [self._sources.index(source) for source in whole.sources]
            runs += [(number[source], at) for source, at in whole.origins(own)]
            parts += [
                read_shard(whole.store, at, whole.manifest, states=True).take(rows).as_floats()
                for at, rows in whole.pieces(own)
            ]
        if len(origins := origins_text(joined(runs))) > MOST:
            raise InputError(
                f"expected origins of at most {MOST} characters in the record of shard {shard}, "
                f"got {len(origins)}; choose a smaller pairs_per_shard"
            )
        return write_given(place, shard, self.manifest, Pairs.cat(parts), origins)
