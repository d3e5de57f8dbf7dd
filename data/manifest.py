"""A data set of pairs on disk: the names of its files, its manifest, the records of its shards.

    manifest.json       what made the pairs; written once, compared by every later job
    pairs-000000.tar    `<9-digit index>.latent.npy`, `.image.png` or `.image.npy`, `.cls`;
                        packed: stacks of pairs under the first one's index, labels in `.cls.npy`
    pairs-000000.json   the shard's record, published last: a shard without one does not exist

Any webdataset reader can read the tars. codec.py encodes their members, writer.py writes them,
reader.py reads them. Importing this file is quick: it needs no torch.
"""

import json
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from data.files import check_local, hidden_path, sync
from data.store import Cached, Folder, Source, Store, open_store
from data.teachers.settings import Execution, Sampler, SamplerName
from get.errors import InputError

SCHEMA = 1
NAMES = re.compile(r"manifest\.json|pairs-([0-9]{6}|[1-9][0-9]{6,17})\.(tar|json)")
"""The names of the files of a data set; the number is that of a shard."""
ImageFormat = Literal["png", "npy", "npy32"]


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Everything that decides the bytes of a data set, and where it lies.

    Attributes:
        teacher: A folder or hub id in diffusers format, or an EDM checkpoint.
        output_dir: The data set's folder; the same command writes only what is missing.
        pairs_per_shard: Pairs per tar file.
        teacher_batch_size: Images per call of the teacher; no batch crosses the end of a shard.
        num_inference_steps: Steps of the sampler (Heun: 2 n - 1 network evaluations).
        sampler: "auto" is what the teacher's own scheduler means.
        guidance_scale: Classifier-free guidance, for teachers that know a null label.
        seed: Seed and index decide the noise and label of a pair.
        image_format: "png" (8 bit), "npy" (float16, unquantised) or "npy32".
        pack: Pairs per member of the tar; stacks of hundreds are written and read much faster.
        mixed_precision: Precision of the teacher's network.
        compile: Run the teacher's network through torch.compile.
        memory_format: Layout of the teacher's convolutions.
    """

    teacher: str
    output_dir: Path
    pairs_per_shard: int = 1024
    teacher_batch_size: int = 256
    num_inference_steps: int = 18
    sampler: SamplerName = "auto"
    guidance_scale: float = 1.0
    seed: int = 0
    image_format: ImageFormat = "png"
    pack: int = 1
    mixed_precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"

    def __post_init__(self) -> None:
        """Refuse settings that cannot mean anything."""
        if not isinstance(self.output_dir, Path):
            raise InputError(f"expected output_dir as a Path, got {self.output_dir!r}")
        check_local(self.output_dir)
        for name in ("pairs_per_shard", "teacher_batch_size", "num_inference_steps", "pack"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"expected {name} above 0, got {value}")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"expected seed from 0 to 2^64 - 1, got {self.seed}")
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise InputError(f"expected {name} among {known}, got {getattr(self, name)}")
        if self.pack > 1 and self.teacher_batch_size % self.pack:
            raise InputError(
                f"expected pack to divide teacher_batch_size {self.teacher_batch_size}, "
                f"got {self.pack}; a stack is cut from one teacher batch"
            )

    def teacher_settings(self) -> tuple[Sampler, Execution]:
        """Return how the teacher is run."""
        sampler = Sampler(
            steps=self.num_inference_steps, name=self.sampler, guidance_scale=self.guidance_scale
        )
        execution = Execution(
            mixed_precision=self.mixed_precision,
            compile=self.compile,
            memory_format=self.memory_format,
        )
        return sampler, execution


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What made a data set of pairs. Jobs that differ in any of it cannot share a folder.

    Attributes not listed here are those of `PairSettings`.

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

    def __post_init__(self) -> None:
        """Refuse images that PNG cannot store."""
        if self.image_format == "png" and self.image_shape[0] not in (1, 3):
            raise InputError(
                f"expected 1 or 3 channels for image_format png, got {self.image_shape[0]}; "
                "choose npy or npy32"
            )

    def as_json(self) -> dict[str, Any]:
        """Return what manifest.json holds."""
        return {k: v for k, v in asdict(self).items() if k != "imported" or v}

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
    """

    count: int
    first_index: int
    sha256: str
    bytes: int
    manifest: str | None = None

    def check(self, shard: int, manifest: Manifest) -> None:
        """Raise ValueError if this is the record of another shard or data set."""
        count = manifest.pairs_per_shard
        if (self.first_index, self.count) != (shard * count, count):
            raise ValueError(f"its record says {self.count} pairs from {self.first_index}")
        if self.manifest not in (None, manifest.identity):
            raise ValueError("its record is that of another data set")


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


def read_manifest(folder: Source) -> Manifest:
    """Read and check the manifest of a data set in any store.

    Raises:
        InputError: If there is none, or it has another schema.
    """
    try:
        fields = json.loads(open_store(folder).read("manifest.json"))
        if (schema := fields.get("schema")) == SCHEMA:
            return Manifest(**fields | {"image_shape": tuple(fields["image_shape"])})
    except (OSError, UnicodeError, JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"expected pairs in {folder}, got no readable manifest.json; "
            "make them with pipeline/make_pairs.py"
        ) from error
    raise InputError(f"expected schema {SCHEMA} in {folder}, got {schema}")


def open_data_set(folder: Path, manifest: Manifest) -> None:
    """Create a data set, or check that the one in `folder` was made with the same settings.

    Any number of writers may call this at the same time: the first one creates the manifest, the
    others compare theirs with it.

    Raises:
        InputError: If the settings differ; the message lists the differences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    temporary = hidden_path(path)
    temporary.write_text(json.dumps(manifest.as_json(), indent=2) + "\n")
    try:
        sync(temporary)
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):  # the latter: another writer has tidied up
        old, new = asdict(read_manifest(folder)), asdict(manifest)
        different = [
            f"{k} was {old[k]!r}, is {new[k]!r}"
            for k in new
            if old[k] != new[k] and k != "vae"  # a teacher may move: its fingerprint is compared
        ]
        if different:
            raise InputError(
                f"expected the settings of the pairs in {folder}, got: {'; '.join(different)}; "
                "choose another output_dir"
            ) from None
    finally:
        temporary.unlink(missing_ok=True)


def read_record(folder: Source, shard: int) -> ShardRecord | None:
    """Return the record of a shard, or None if the shard does not exist (yet).

    Raises:
        DamagedShard: If the record cannot be read.
    """
    store = open_store(folder)
    try:
        return ShardRecord(**json.loads(store.read(record_name(shard))))
    except FileNotFoundError:
        return None
    except (UnicodeError, JSONDecodeError, TypeError) as error:
        raise DamagedShard(
            f"expected a shard record in {store.place(record_name(shard))}, got "
            f"{type(error).__name__}; delete it and run make_pairs.py again"
        ) from error


def missing_shards(folder: Path, shards: Iterable[int]) -> Iterator[int]:
    """Yield those of some shards that do not exist when they are asked for."""
    return (shard for shard in shards if read_record(folder, shard) is None)


def tidy(folder: Path) -> None:
    """Delete temporary files of killed writers whose shard, record or manifest exists by now.

    A writer that still works on one of them loses nothing, because its shard exists.
    """
    for path in folder.glob(f".*.{'?' * 32}.tmp"):
        name = path.name[1:].rsplit(".", 2)[0]
        if NAMES.fullmatch(name) and (folder / name).exists():
            path.unlink(missing_ok=True)


def count_shards(folder: Source) -> int:
    """Return the number of finished shards.

    A local folder is listed. Elsewhere records are looked up by doubling and bisection, which
    cannot notice a missing shard among others (reading it will).

    Raises:
        InputError: If a shard is missing although a later one is finished.
    """
    store = open_store(folder)
    store = store.store if isinstance(store, Cached) else store
    if not isinstance(store, Folder):
        return _count_unlisted(store)
    shards = list_shards(store.path)
    for expected, shard in enumerate(shards):
        if shard != expected:
            raise InputError(
                f"expected shard {expected} in {folder}, got none although shard {shard} is "
                "finished; run make_pairs.py to its end"
            )
    return len(shards)


def list_shards(folder: Path) -> list[int]:
    """Return the numbers of the finished shards of a local folder, in order."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [NAMES.fullmatch(entry.name) for entry in entries]
    return sorted(int(name[1]) for name in names if name and name[2] == "json")


def _count_unlisted(store: Store) -> int:
    """Return a number n such that shard n - 1 exists and shard n does not."""

    def absent(shard: int) -> bool:
        return read_record(store, shard) is None

    end = 1
    while not absent(end - 1):
        end *= 2
    return bisect_left(range(end), True, end // 2, end - 1, key=absent)
