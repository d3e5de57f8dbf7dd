"""A data set that is written to an object store: shards are made here, then uploaded.

An object appears whole, with one request, or not at all; its record follows. Files that one job
alone can create are asked for by fsspec's `mode="create"` (S3's If-None-Match, Google's
generation 0). Not every package and server knows that, so it is tried out.
"""

import base64
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property, partial
from hashlib import md5
from pathlib import Path
from typing import Any

from data.data_set import check_same
from data.lock import Owner, machine, own_content, parse_owner
from data.manifest import NAMES, Manifest, ShardRecord, read_record, record_name, tar_name
from data.remote import MANIFEST, ObjectStore
from data.site import Site
from get.errors import InputError

STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "memory")
"""Systems of fsspec whose files appear whole or not at all."""
TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
"""What systems of fsspec call the time at which an object was written."""
CHECKSUMS = ("ETag", "etag", "md5Hash")
"""What they call a checksum of its bytes, if it is one."""
PART = 50 * 2**20  # bytes of the parts in which s3fs uploads large files
WORKSHOP = re.compile(r"pairs-([\w.:-]+)-([0-9]{1,18})-\w{8}")
"""Temporary folders in which shards are made: machine and process, and what `tempfile` adds."""


class Bucket(Site):
    """A folder in an object store."""

    def __init__(self, source: str) -> None:
        """Look at the name alone; its package is imported when it is needed."""
        self.store = self._objects = ObjectStore(source)
        if source.partition("://")[0].lower() not in STORES:
            raise InputError(
                f"expected a local folder or an object store ({', '.join(STORES[:-1])}), to which "
                f"jobs write, got {self.store}; write to a local folder and copy it there"
            )
        if "//" in source.partition("://")[2].rstrip("/"):  # packages list another folder then
            raise InputError(f"expected an address with single slashes, got {self.store}")

    @cached_property
    def exclusive(self) -> bool:
        """Create an object twice, to see whether the second time fails."""
        name, data = f".probe-{uuid.uuid4().hex}", own_content(time.time(), "").encode()
        try:
            return [self._create(name, data, exclusive=True) for _ in range(2)] == [True, False]
        except InputError as error:
            if isinstance(error.__cause__, (TypeError, NotImplementedError)):  # unknown `mode`
                return False
            raise
        finally:
            self.remove(name)

    # ---------------------------------------------------------------- the data set

    def open(self, manifest: Manifest) -> None:
        """Create the manifest unless there is one, then compare."""
        try:
            self.store.read(MANIFEST)
        except FileNotFoundError:
            data = json.dumps(manifest.as_json(), indent=2) + "\n"
            self._create(MANIFEST, data.encode())
        check_same(self.store, manifest)

    def finished(self, shard: int) -> ShardRecord | None:
        """Compare the sizes of object and record."""
        record = read_record(self.store, shard)
        return record if record and self._size(tar_name(shard)) == record.bytes else None

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """Give a temporary folder; the variable TMPDIR says where. Delete those of dead jobs."""
        now = time.time()
        for left in Path(tempfile.gettempdir()).glob("pairs-*"):
            if (fits := WORKSHOP.fullmatch(left.name)) is None:
                continue
            if Owner(int(fits[2]), fits[1], now, now, "").is_gone(1.0, now):
                shutil.rmtree(left, ignore_errors=True)  # unless it is another user's
        with tempfile.TemporaryDirectory(prefix=f"pairs-{machine()}-{os.getpid()}-") as folder:
            yield Path(folder)

    def keep(self, folder: Path, record: ShardRecord) -> ShardRecord:
        """Upload the tar and see that it has arrived, then create the record; delete both here.

        If another job has published the shard meanwhile, tar and record of one of the two stay.
        """
        shard = record.first_index // record.count
        tar, text = folder / tar_name(shard), (folder / record_name(shard)).read_bytes()
        if (published := self.finished(shard)) is None:
            self._upload(tar, record)
            if not self._create(record_name(shard), text):
                published = read_record(self.store, shard)
                # That of a tar that is gone, or of another job: the tar in its place decides.
                if published != record and self._holds(tar.name, record):
                    self._write(record_name(shard), text)
                    published = record
        tar.unlink()
        (folder / record_name(shard)).unlink()
        return published or record

    def names(self) -> list[str]:
        """List the folder."""
        return [name for name, _ in self._list()]

    def finished_times(self) -> dict[int, float]:
        """List the folder, with the times of the records; 0 where the store does not say them."""
        found = {NAMES.fullmatch(name): about for name, about in self._list()}
        tars = {int(fits[1]) for fits in found if fits and fits[2] == "tar"}
        return {
            int(fits[1]): _time(about) or 0.0
            for fits, about in found.items()
            if fits and fits[2] == "json" and int(fits[1]) in tars
        }

    # ---------------------------------------------------------------- files of one job alone

    def take(self, name: str, age: float, note: str) -> bool:
        """Create an object, or one in the place of that of a dead job."""
        for _ in range(2):
            content = own_content(time.time(), note).encode()
            if self._create(name, content, exclusive=True):
                return True
            owner = self.owner(name)
            if owner is None or not (owner.is_self or owner.is_gone(age, self.clock())):
                return False
            self.remove(name)
        return False

    def owner(self, name: str) -> Owner | None:
        """Read it and ask for its time."""
        try:
            content = self.store.read(name).decode(errors="replace")
        except FileNotFoundError:
            return None
        about = self._about(name)
        return None if about is None else parse_owner(content, _time(about) or time.time())

    def renew(self, name: str) -> None:
        """Write it again: objects have no time that can be set."""
        with suppress(InputError):  # whatever is wrong is noticed where shards are uploaded
            if (owner := self.owner(name)) is not None and owner.is_self:
                self._write(name, own_content(owner.since, owner.note).encode())

    def release(self, name: str) -> None:
        """Delete it."""
        with suppress(InputError):
            if (owner := self.owner(name)) is not None and owner.is_self:
                self.remove(name)

    def clock(self) -> float:
        """Return the time of an object that is written now; else that of this machine."""
        name = f".probe-{uuid.uuid4().hex}"
        with suppress(InputError):  # who may only read asks for the status too
            self._write(name, own_content(time.time(), "").encode())
            about = self._about(name)
            self.remove(name)
            return _time(about or {}) or time.time()
        return time.time()

    # ---------------------------------------------------------------- objects

    @contextmanager
    def _named(self, name: str) -> Iterator[tuple[Any, str]]:
        """Give the file system and the path of an object; name it in errors."""
        system, folder = self._objects.find()
        try:
            yield system, f"{folder.rstrip('/')}/{name}"
        except (FileExistsError, InputError):
            raise
        except Exception as error:  # of whichever package is behind it
            problem = self.store.told(f"{type(error).__name__}: {error}")
            raise InputError(
                f"expected to write {self.store.place(name)}, got {problem}; check address, access "
                "and network, then run the same command again"
            ) from error

    def _upload(self, tar: Path, record: ShardRecord) -> None:
        """Upload a tar; compare its size and checksum, or read it if the store tells no checksum.

        An ETag may be something else, of encrypted objects for instance.
        """
        with self._named(tar.name) as (system, path):
            system.put_file(str(tar), path)
        about = self._about(tar.name) or {}
        problem = None
        if (size := about.get("size")) != record.bytes:
            problem = f"{size} of them"
        elif checksums(tar).isdisjoint(told_checksums(about)) and not self._holds(tar.name, record):
            problem = "others"
        if problem is not None:
            raise InputError(
                f"expected the {record.bytes} bytes of {self.store.place(tar.name)} after its "
                f"upload, got {problem}; run the same command again"
            )

    def _write(self, name: str, data: bytes) -> None:
        with self._named(name) as (system, path):
            system.pipe_file(path, data)

    def _create(self, name: str, data: bytes, *, exclusive: bool | None = None) -> bool:
        """Write an object unless it exists; without `exclusive` two jobs may both do it."""
        if exclusive is None:
            exclusive = self.exclusive
        try:
            if not exclusive and self._about(name) is not None:
                return False
            with self._named(name) as (system, path):
                system.pipe_file(path, data, **({"mode": "create"} if exclusive else {}))
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Delete an object if it is there."""
        with self._named(name) as (system, path), suppress(FileNotFoundError):
            system.rm_file(path)

    def _about(self, name: str) -> dict[str, Any] | None:
        """Return what the store says of an object; None if there is none."""
        with self._named(name) as (system, path):
            system.invalidate_cache()
            try:
                return system.info(path)
            except FileNotFoundError:
                return None

    def _size(self, name: str) -> int | None:
        return (self._about(name) or {}).get("size")

    def _holds(self, name: str, record: ShardRecord) -> bool:
        try:
            return bool(self.store.read_whole(name, record.bytes, record.sha256))
        except (FileNotFoundError, ValueError):
            return False

    def _list(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._named("") as (system, path):
            system.invalidate_cache()
            with suppress(FileNotFoundError):
                for about in system.ls(path, detail=True):
                    yield about["name"].rstrip("/").rpartition("/")[2], about


def checksums(path: Path) -> set[str]:
    """Return the MD5 of a file as stores tell it: in hexadecimal, in base64, and that of parts.

    S3 tells the last one of files of two parts and more: the MD5 of their MD5s, and their number.
    """
    whole, parts = md5(usedforsecurity=False), list[bytes]()
    with path.open("rb") as file:
        for part in iter(partial(file.read, PART), b""):
            whole.update(part)
            parts.append(md5(part, usedforsecurity=False).digest())
    of_parts = md5(b"".join(parts), usedforsecurity=False).hexdigest()
    in_base64 = base64.b64encode(whole.digest()).decode()
    return {whole.hexdigest(), in_base64, f"{of_parts}-{len(parts)}"}


def told_checksums(about: dict[str, Any]) -> set[str]:
    """Return what a store calls checksums of an object; hexadecimal ones in small letters too."""
    told = [str(about[name]).strip('"') for name in CHECKSUMS if about.get(name)]
    return {*told, *map(str.lower, told)}


def _time(about: dict[str, Any]) -> float | None:
    """Return when an object was written, in seconds since 1970."""
    value = next((about[name] for name in TIMES if about.get(name)), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else value
