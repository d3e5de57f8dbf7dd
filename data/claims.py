"""Which shards a writer still has to write, and what killed writers have left behind."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from data.manifest import NAMES, ShardRecord, read_record, tar_path


def finished_shard(folder: Path, shard: int) -> ShardRecord | None:
    """Return the record of a shard whose tar is there in the size that the record says."""
    if (record := read_record(folder, shard)) is None:
        return None
    try:
        size = tar_path(folder, shard).stat().st_size
    except FileNotFoundError:
        return None
    return record if size == record.bytes else None


def missing_shards(folder: Path, shards: Iterable[int]) -> Iterator[int]:
    """Yield those of some shards that are not finished when they are asked for."""
    return (shard for shard in shards if finished_shard(folder, shard) is None)


def tidy(folder: Path) -> None:
    """Delete temporary files of killed writers whose shard, record or manifest exists by now.

    A writer that still works on one of them loses nothing, because its shard exists.
    """
    for path in folder.glob(f".*.{'?' * 32}.tmp"):
        name = path.name[1:].rsplit(".", 2)[0]
        if NAMES.fullmatch(name) and (folder / name).exists():
            path.unlink(missing_ok=True)
