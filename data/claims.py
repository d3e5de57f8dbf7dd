"""Which shards a writer still has to write, and what killed writers have left behind."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from data.manifest import NAMES, finished_shard
from get.errors import InputError


def missing_shards(folder: Path, shards: Iterable[int]) -> Iterator[int]:
    """Yield those of some shards that are not finished when they are asked for."""
    return (shard for shard in shards if finished_shard(folder, shard) is None)


def tidy(folder: Path) -> None:
    """Delete temporary files of killed writers whose shard, record or manifest exists by now.

    A writer that still works on one of them loses nothing, because its shard exists.
    """
    for path in folder.glob(f".*.{'?' * 32}.tmp"):
        if _is_finished(folder, path.name[1:].rsplit(".", 2)[0]):
            path.unlink(missing_ok=True)
    for path in folder.glob(".lock-*"):
        if _is_finished(folder, path.name.removeprefix(".lock-")):
            path.unlink(missing_ok=True)


def _is_finished(folder: Path, name: str) -> bool:
    """Say whether nobody needs to write this file of a data set any more."""
    if (fits := NAMES.fullmatch(name)) is None:
        return False
    try:
        shard = fits[1]
        return (
            (folder / name).exists() if shard is None else bool(finished_shard(folder, int(shard)))
        )
    except InputError:  # a damaged record
        return False
