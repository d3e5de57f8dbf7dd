"""Which shards a job writes, and what killed jobs have left behind.

Any number of jobs share a data set without knowing each other: before it makes a shard, a job
claims it by a small file, `.claim-pairs-000000.tar`. Claims only save work. Where two jobs write
the same shard all the same, open_shard.py publishes one of the two.
"""

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from threading import Event, Thread

from data.lock import Owner
from data.manifest import NAMES, tar_name
from data.places import Place, open_site
from data.site import Site
from get.errors import InputError

AGE = 120.0  # seconds without renewal after which a claim counts as that of a dead job
RENEWAL = 15.0  # seconds between renewals
PREFIX = ".claim-"
LEFTOVER = re.compile(r"\.{1,2}(lock-|claim-)?(.+?)(\.[0-9a-f]{32}\.tmp)?")
PROBE = re.compile(r"\.probe-[0-9a-f]{32}|\.claims\.[0-9a-f]{32}\.tmp")
"""Files that tell the time of a place, or whether one job alone can create a file there."""
NOTE = re.compile(r"([0-9]{1,11}) ([0-9]{1,18}) ([0-9]{1,18})")


class Claims:
    """The shards that this job has claimed; a context that releases all of them in the end.

    A thread renews the claims, however long the teacher takes for a batch.

    Attributes:
        others: Shards, of those that were asked for, that other jobs have claimed or finished.
    """

    def __init__(self, place: Place, shards: int) -> None:
        """Claim nothing yet in a data set that shall have so many shards."""
        self.site, self.shards = open_site(place), shards
        self.others: set[int] = set()
        self._held: dict[int, str] = {}
        self._written, self._started = 0, self.site.clock()
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
        for name in self._held.values():
            self.site.release(name)

    def missing(self, shards: Iterable[int]) -> Iterator[int]:
        """Claim and yield those shards that nobody has finished or claimed; wait for nobody."""
        for shard in shards:
            self._release_finished()
            if self.site.finished(shard) is None and self._take(shard):
                if self.site.finished(shard) is None:  # not between the two steps either
                    self.others.discard(shard)
                    yield shard
                    continue
                self.site.release(self._held.pop(shard))
            self.others.add(shard)

    def _take(self, shard: int) -> bool:
        if shard in self._held:
            return False
        name = f"{PREFIX}{tar_name(shard)}"
        if (owner := self.site.owner(name)) is not None and owner.is_self:
            self.site.remove(name)  # an earlier process had our number, in a container say
        try:
            taken = self.site.take(name, AGE, f"{int(self._started)} {self._written} {self.shards}")
        except FileNotFoundError as error:
            raise InputError(
                f"expected the folder {self.site}, got none: it has gone since the start; "
                "bring it back and run the same command again"
            ) from error
        if taken:
            self._held[shard] = name
        return taken

    def _release_finished(self) -> None:
        for shard in list(self._held):
            if self.site.finished(shard) is not None:
                self.site.release(self._held.pop(shard))
                self._written += 1

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            for name in list(self._held.values()):
                self.site.renew(name)


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


def read_claims(place: Place) -> list[Claim]:
    """Return all claims in a data set on which jobs may be at work, by shard."""
    site = open_site(place)
    found, now = [], site.clock()
    for name in site.names():
        fits = NAMES.fullmatch(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        if fits is None or fits[2] != "tar" or (owner := site.owner(name)) is None:
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


def missing_shards(place: Place, shards: Iterable[int]) -> Iterator[int]:
    """Yield those of some shards that are not finished when they are asked for."""
    site = open_site(place)
    return (shard for shard in shards if site.finished(shard) is None)


def tidy(place: Place) -> None:
    """Delete files of killed writers whose shard, record or manifest exists by now.

    These are temporary files, locks and claims. A writer that still works on one of them loses
    nothing, because its shard exists. Probes of killed jobs go too.
    """
    site = open_site(place)
    names = set(site.names())
    for name in names:
        ours = LEFTOVER.fullmatch(name)
        if ours and (ours[1] or ours[3]) and _is_finished(site, ours[2], names):
            site.remove(name)
    if probes := [name for name in names if PROBE.fullmatch(name)]:
        now = site.clock()
        for name in probes:
            if (owner := site.owner(name)) is not None and owner.is_gone(AGE, now):
                site.remove(name)


def _is_finished(site: Site, name: str, names: Container[str]) -> bool:
    """Say whether nobody needs to write this file of a data set any more."""
    if (fits := NAMES.fullmatch(name)) is None:
        return False
    try:
        shard = fits[1]
        return name in names if shard is None else bool(site.finished(int(shard)))
    except InputError:  # a damaged record
        return False
