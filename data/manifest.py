"""A data set of pairs on disk: the names of its files, its manifest, the records of its shards.

    manifest.json       what made the pairs; written once, compared by every later job
    pairs-000000.tar    `<9-digit index>.latent.npy`, `.image.png` or `.npy`, `.cls`, `.states.npy`;
                        packed: stacks of pairs under the first one's index, labels in `.cls.npy`
    pairs-000000.json   the shard's record, published last: a shard without one does not exist

Any webdataset reader can read the tars; codec.py encodes their members. This file needs no torch.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from data.folder import Folder, Store
from data.origins import is_derived, is_origins, last_step, parse_origins
from data.store import Cached, Source, open_store
from data.strict import Rule, integer, list_of, optional, parse, settings_of, text
from data.teachers.settings import Execution, Sampler
from get.errors import InputError

SCHEMA = 1
NAMES = re.compile(r"manifest\.json|pairs-([0-9]{6}|[1-9][0-9]{6,17})\.(tar|json)")
"""The names of the files of a data set; the number is that of a shard."""
ImageFormat = Literal["png", "npy", "npy32"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What made a data set of pairs. Jobs that differ in any of it cannot share a folder.

    Attributes not listed here are those of `PairSettings` (pair_settings.py).

    Attributes:
        schema: Version of this format.
        teacher: The teacher's fingerprint (weights, configuration, sampler settings).
        sampler: The sampler's settings.
        evaluations: Network evaluations per image.
        image_shape: Channels, height, width of noise and image.
        num_classes: Number of classes; None if unlabelled.
        execution: Settings of the teacher's precision and speed that are not the default.
        vae: Folder or hub id whose `vae/` decodes the pairs if they are latents; None for images.
        imported: Whether noise and labels come from elsewhere, not from `seed` and index.
        trajectory: Noise levels of the states kept with a pair, falling (teachers/points.py).
        derived: What the pairs were chosen from and how (origins.py); None if a teacher wrote them
            here. Then `seed` and `teacher_batch_size` are those of the first source.
    """

    schema: int = SCHEMA
    teacher: str
    sampler: dict[str, Any]
    evaluations: int
    seed: int
    teacher_batch_size: int
    image_shape: tuple[int, int, int]
    num_classes: int | None
    image_format: ImageFormat
    pairs_per_shard: int
    pack: int = 1
    execution: dict[str, Any] = field(default_factory=dict)
    vae: str | None = None
    imported: bool = False
    trajectory: tuple[float, ...] = ()
    derived: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse images that PNG cannot store."""
        if self.image_format == "png" and self.image_shape[0] not in (1, 3):
            raise InputError(
                f"expected 1 or 3 channels for image_format png, got {self.image_shape[0]}; "
                "choose npy or npy32"
            )

    def as_json(self) -> dict[str, Any]:
        """Return what manifest.json holds."""
        unsaid = ("imported", "trajectory", "derived")
        return {k: v for k, v in asdict(self).items() if v or k not in unsaid}

    def differences(self, other: "Manifest", ignored: Container[str] = ("vae",)) -> list[str]:
        """Say in what another manifest differs; a teacher may move, and its VAE with it."""
        old, new = (
            {k: last_step(v) if k == "derived" else v for k, v in asdict(manifest).items()}
            for manifest in (self, other)
        )
        names = [k for k in new if old[k] != new[k] and k not in ignored]
        return [f"{k} was {old[k]!r}, is {new[k]!r}"[:500] for k in names]

    @property
    def identity(self) -> str:
        """A hash of what decides the pairs; every record has it.

        Defaults are left out, so it does not change when a field is added; a teacher may move, so
        the place of its VAE is left out too.
        """
        defaults = {field.name: field.default for field in fields(self)} | {"execution": {}}
        own = {k: v for k, v in asdict(self).items() if v != defaults[k] and k != "vae"}
        return sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One finished shard.

    Attributes:
        count: Pairs in it.
        first_index: Index of its first pair; the others follow.
        sha256: Hash of the tar.
        bytes: Size of the tar.
        manifest: `identity` of the data set it belongs to; None in older records.
        origins: Which pairs of which sources these are, if the data set is derived.
    """

    count: int
    first_index: int
    sha256: str
    bytes: int
    manifest: str | None = None
    origins: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what the file of the record holds."""
        return {k: v for k, v in asdict(self).items() if v is not None or k != "origins"}

    def check(self, shard: int, manifest: Manifest) -> None:
        """Raise ValueError if this is the record of another shard or data set."""
        count = manifest.pairs_per_shard
        if (self.first_index, self.count) != (shard * count, count):
            raise ValueError(f"its record says {self.count} pairs from {self.first_index}")
        if self.manifest not in (None, manifest.identity):
            raise ValueError("its record is that of another data set")
        runs = parse_origins(self.origins) if self.origins else []
        sources = manifest.derived["sources"] if manifest.derived else []
        right = sum(len(at) for _, at in runs) == (count if sources else 0)
        if not right or any(source >= len(sources) for source, _ in runs):
            raise ValueError("its record has other origins than those of its pairs")


MANIFEST_RULES: dict[str, Rule] = {
    "schema": integer(SCHEMA, SCHEMA),
    "teacher": text,
    "sampler": settings_of(Sampler),
    "evaluations": integer(0, 2**31),
    "seed": integer(0, 2**64 - 1),
    "teacher_batch_size": integer(1, 2**31),
    "image_shape": list_of(integer(1, 2**16), 3, 3),
    "num_classes": optional(integer(1, 2**31)),
    "image_format": lambda form: isinstance(form, str) and form in get_args(ImageFormat),
    "pairs_per_shard": integer(1, 2**31),
    "pack": integer(1, 2**31),
    "execution": settings_of(Execution),
    "vae": optional(text),
    "imported": lambda value: isinstance(value, bool),
    "trajectory": list_of(lambda level: type(level) is float and 0 < level < 1e9, 0, 1000),
    "derived": optional(is_derived),
}
RECORD_RULES: dict[str, Rule] = {
    "count": integer(1, 2**31),
    "first_index": integer(0, 2**63),
    "sha256": text,
    "bytes": integer(0, 2**40),
    "manifest": optional(text),
    "origins": optional(is_origins),
}


class DamagedShard(InputError):
    """A shard that is missing or not what its record says, in a store that answers."""


def tar_name(shard: int) -> str:
    """Return the file name of a shard's tar."""
    return f"pairs-{shard:06d}.tar"


def record_name(shard: int) -> str:
    """Return the file name of a shard's record."""
    return f"pairs-{shard:06d}.json"


def tar_path(folder: Path, shard: int) -> Path:
    """Return where a shard's tar lies in a local folder."""
    return folder / tar_name(shard)


def record_path(folder: Path, shard: int) -> Path:
    """Return where a shard's record lies in a local folder."""
    return folder / record_name(shard)


def lock_path(folder: Path, name: str) -> Path:
    """Return the file that exists while another one is put into its place."""
    return folder / f".lock-{name}"


def read_manifest(folder: Source) -> Manifest:
    """Read and check the manifest of a data set in any store.

    Raises:
        InputError: If there is none, or it has another schema.
    """
    store = open_store(folder)
    try:
        data = store.read("manifest.json")
        if (schema := parse(data, {}, unknown=True).get("schema")) == SCHEMA:
            added = ("pack", "execution", "vae", "imported", "trajectory", "derived")
            found = parse(data, MANIFEST_RULES, added)
            found.update({k: tuple(v) for k, v in found.items() if isinstance(v, list)})
            return Manifest(**found)
    except InputError:
        raise
    except (FileNotFoundError, ValueError) as error:
        raise InputError(
            f"expected pairs in {store}, got no readable manifest.json ({error}); "
            "make them with pipeline/make_pairs.py"
        ) from error
    raise InputError(f"expected schema {SCHEMA} in {store}, got {ascii(schema)[:50]}")


def read_record(folder: Source, shard: int) -> ShardRecord | None:
    """Return the record of a shard, or None if the shard does not exist (yet).

    Raises:
        DamagedShard: If the record cannot be read.
    """
    store = open_store(folder)
    try:
        data = store.read(record_name(shard))
        return ShardRecord(**parse(data, RECORD_RULES, ("manifest", "origins")))
    except FileNotFoundError:
        return None
    except InputError:
        raise
    except ValueError as error:
        raise DamagedShard(
            f"expected a shard record in {store.place(record_name(shard))}, got "
            f"{error}; delete it and run make_pairs.py again"
        ) from error


def finished_shard(folder: Path, shard: int) -> ShardRecord | None:
    """Return the record of a shard whose tar is there in the size that the record says."""
    if (record := read_record(folder, shard)) is None:
        return None
    try:
        size = tar_path(folder, shard).stat().st_size
    except FileNotFoundError:
        return None
    return record if size == record.bytes else None


def count_shards(folder: Source) -> int:
    """Return the number of finished shards.

    A local folder is listed. Elsewhere records are looked up by doubling and bisection, which
    notices one to eight missing shards before many others (reading notices every one).

    Raises:
        InputError: If a shard is missing although a later one is finished.
    """
    store = open_store(folder)
    store = store.store if isinstance(store, Cached) else store
    shards = list_shards(store.path) if isinstance(store, Folder) else _look_up(store)
    for expected, shard in enumerate(shards):
        if shard != expected:
            raise InputError(
                f"expected shard {expected} in {store}, got none although shard {shard} is "
                "finished; run make_pairs.py to its end"
            )
    return len(shards)


def list_shards(folder: Path) -> list[int]:
    """Return the numbers of the finished shards of a local folder, in order."""
    return record_numbers(path.name for path in folder.iterdir()) if folder.is_dir() else []


def record_numbers(names: Iterable[str]) -> list[int]:
    """Return the numbers of the shards whose records are among the names of files, in order."""
    found = [NAMES.fullmatch(name) for name in names]
    return sorted(int(name[1]) for name in found if name and name[2] == "json")


def _look_up(store: Store) -> list[int]:
    """Return the numbers of the first shards, without a gap, and of some behind the first gap."""

    @cache
    def absent(shard: int) -> bool:
        return read_record(store, shard) is None

    end = 1
    while not absent(end - 1):
        end *= 2
    count = bisect_left(range(end), True, end // 2, end - 1, key=absent)
    return [*range(count), *(count + n for n in (1, 2, 4, 8) if not absent(count + n))]
