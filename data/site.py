"""Where a data set is written: a local folder, or an object store (bucket.py).

Jobs need two things of such a place: shards that are finished or do not exist, and small files that
one job alone can create, by which they share the work (claims.py).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from data.data_set import open_data_set
from data.folder import Folder, Store
from data.lock import Owner, clock, read_owner, release, renew, take
from data.manifest import NAMES, Manifest, ShardRecord, finished_shard


class Site(ABC):
    """A place that a data set is written to.

    Files by which jobs share work are created by `take`, as in lock.py.

    Attributes:
        store: The same place, to read from.
    """

    store: Store

    def __str__(self) -> str:
        """Return the user's name for it, without secrets."""
        return str(self.store)

    @property
    @abstractmethod
    def exclusive(self) -> bool:
        """Whether one of several jobs alone can create a file, so that claims are possible."""

    @abstractmethod
    def open(self, manifest: Manifest) -> None:
        """Create the data set, or check that the one there has the same settings.

        Raises:
            InputError: If the settings differ, or nothing can be written there.
        """

    @abstractmethod
    def finished(self, shard: int) -> ShardRecord | None:
        """Return the record of a shard whose tar is there in the size that the record says."""

    @abstractmethod
    def workshop(self) -> AbstractContextManager[Path]:
        """Give the local folder in which shards are made."""

    @abstractmethod
    def keep(self, folder: Path, record: ShardRecord) -> ShardRecord:
        """Publish a shard that is finished in the workshop; return the one that is there then."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files."""

    @abstractmethod
    def finished_times(self) -> dict[int, float]:
        """Return when each shard that has its tar and its record was finished."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file if it is there."""

    @abstractmethod
    def take(self, name: str, age: float, note: str) -> bool:
        """Create a file, or return False if a living process has it."""

    @abstractmethod
    def owner(self, name: str) -> Owner | None:
        """Return whose file this is; None if there is no such file."""

    @abstractmethod
    def renew(self, name: str) -> None:
        """Show that this process is alive, unless others have taken the file over."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Delete the file, unless others have taken it over."""

    @abstractmethod
    def clock(self) -> float:
        """Return the time there, in seconds since 1970."""


class LocalSite(Site):
    """A local folder."""

    def __init__(self, folder: Path) -> None:
        """Touch nothing yet."""
        self.folder, self.store = folder, Folder(str(folder))

    @property
    def exclusive(self) -> bool:
        """File systems can do it."""
        return True

    def open(self, manifest: Manifest) -> None:
        """See `open_data_set`."""
        open_data_set(self.folder, manifest)

    def finished(self, shard: int) -> ShardRecord | None:
        """See `finished_shard`."""
        return finished_shard(self.folder, shard)

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """Give the folder itself: open_shard.py publishes in it."""
        yield self.folder

    def keep(self, folder: Path, record: ShardRecord) -> ShardRecord:
        """Leave the shard where it is."""
        return record

    def names(self) -> list[str]:
        """List the folder."""
        return [path.name for path in self.folder.iterdir()]

    def finished_times(self) -> dict[int, float]:
        """List the folder, with the times of the records."""
        records, tars = {}, set()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if (fits := NAMES.fullmatch(entry.name)) is None or fits[1] is None:
                    continue
                if fits[2] == "tar":
                    tars.add(int(fits[1]))
                else:
                    try:
                        records[int(fits[1])] = entry.stat().st_mtime
                    except FileNotFoundError:  # somebody deletes it
                        continue
        return {shard: time for shard, time in records.items() if shard in tars}

    def remove(self, name: str) -> None:
        """Unlink."""
        (self.folder / name).unlink(missing_ok=True)

    def take(self, name: str, age: float, note: str) -> bool:
        """See lock.py."""
        return take(self.folder / name, age, note)

    def owner(self, name: str) -> Owner | None:
        """See lock.py."""
        return read_owner(self.folder / name)

    def renew(self, name: str) -> None:
        """See lock.py."""
        renew(self.folder / name)

    def release(self, name: str) -> None:
        """See lock.py."""
        release(self.folder / name)

    def clock(self) -> float:
        """See lock.py."""
        return clock(self.folder / "claims")
