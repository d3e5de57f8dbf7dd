"""Which shards a job writes, and what killed jobs have left behind.

Any number of jobs share a data set without knowing each other: before it makes a shard, a job
claims it by a small file, `.claim-pairs-000000.tar`. Claims only save work. Where two jobs write
the same shard all the same, open_shard.py publishes one of the two.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from data.lock import Owner, clock, read_owner, release, renew, take
from data.manifest import NAMES, finished_shard, tar_name
from get.errors import InputError

AGE = 120.0  # seconds without renewal after which a claim counts as that of a dead job
RENEWAL = 15.0  # seconds between renewals
PREFIX = ".claim-"
LEFTOVER = re.compile(r"\.{1,2}(lock-|claim-)?(.+?)(\.[0-9a-f]{32}\.tmp)?")
NOTE = re.compile(r"([0-9]{1,11}) ([0-9]{1,18}) ([0-9]{1,18})")


class Claims:
    """The shards that this job has claimed; a context that releases all of them in the end.

    A thread renews the claims, however long the teacher takes for a batch.

    Attributes:
        others: Shards, of those that were asked for, that other jobs have claimed or finished.
    """

    def __init__(self, folder: Path, shards: int) -> None:
        """Claim nothing yet in the folder of a data set that shall have so many shards."""
        self.folder, self.shards = folder, shards
        self.others: set[int] = set()
        self._held: dict[int, Path] = {}
        self._written, self._started = 0, clock(folder / "claims")
        self._ended = Event()
        self._renewal = Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Claims":
        """Begin to renew claims."""
        self._renewal.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Release what is held, finished or not."""
        self._ended.set()
        self._renewal.join()
        for path in self._held.values():
            release(path)

    def missing(self, shards: Iterable[int]) -> Iterator[int]:
        """Claim and yield those shards that nobody has finished or claimed; wait for nobody."""
        for shard in shards:
            self._release_finished()
            if finished_shard(self.folder, shard) is None and self._take(shard):
                if finished_shard(self.folder, shard) is None:  # not between the two steps either
                    self.others.discard(shard)
                    yield shard
                    continue
                release(self._held.pop(shard))
            self.others.add(shard)

    def _take(self, shard: int) -> bool:
        if shard in self._held:
            return False
        path = self.folder / f"{PREFIX}{tar_name(shard)}"
        if (owner := read_owner(path)) is not None and owner.is_self:
            path.unlink(missing_ok=True)  # an earlier process had our number, in a container say
        try:
            taken = take(path, AGE, f"{int(self._started)} {self._written} {self.shards}")
        except FileNotFoundError as error:
            raise InputError(
                f"expected the folder {self.folder}, got none: it has gone since the start; "
                "bring it back and run the same command again"
            ) from error
        if taken:
            self._held[shard] = path
        return taken

    def _release_finished(self) -> None:
        for shard in list(self._held):
            if finished_shard(self.folder, shard) is not None:
                release(self._held.pop(shard))
                self._written += 1

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            for path in list(self._held.values()):
                renew(path)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim as others see it.

    Attributes:
        shard: The shard.
        owner: The job, and since when it has the shard.
        stale: Whether the job is dead, or has not renewed the claim for `AGE` seconds.
        started: When the job began, in seconds since 1970; None if the claim does not say it.
        written: Shards that the job had written when it took this one.
        shards: Shards that the data set shall have.
    """

    shard: int
    owner: Owner
    stale: bool
    started: float | None
    written: int
    shards: int


def read_claims(folder: Path) -> list[Claim]:
    """Return all claims in a folder in which jobs may be at work, by shard."""
    found, now = [], clock(folder / "claims")
    for name in [path.name for path in folder.iterdir()]:
        fits = NAMES.fullmatch(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        if fits is None or fits[2] != "tar" or (owner := read_owner(folder / name)) is None:
            continue
        note = NOTE.fullmatch(owner.note)
        found.append(
            Claim(
                shard=int(fits[1]),
                owner=owner,
                stale=owner.is_gone(AGE, now),
                started=float(note[1]) if note else None,
                written=int(note[2]) if note else 0,
                shards=int(note[3]) if note else 0,
            )
        )
    return sorted(found, key=lambda claim: claim.shard)


def missing_shards(folder: Path, shards: Iterable[int]) -> Iterator[int]:
    """Yield those of some shards that are not finished when they are asked for."""
    return (shard for shard in shards if finished_shard(folder, shard) is None)


def tidy(folder: Path) -> None:
    """Delete files of killed writers whose shard, record or manifest exists by now.

    These are temporary files, locks and claims. A writer that still works on one of them loses
    nothing, because its shard exists.
    """
    for path in folder.glob(".*"):
        ours = LEFTOVER.fullmatch(path.name)
        if ours and (ours[1] or ours[3]) and _is_finished(folder, ours[2]):
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
