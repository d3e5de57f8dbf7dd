"""A shard while it is being written: it appears complete, with its record, or not at all.

The tar is written under a temporary name, synced and renamed; only then the record follows. A
shard without a record does not exist, so a job that is killed leaves no damaged shard.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

import torch
from webdataset.writer import TarWriter

from data.codec import encode
from data.files import hidden_path, sync, write_json
from data.lock import locked
from data.manifest import (
    Manifest,
    ShardRecord,
    finished_shard,
    lock_path,
    record_path,
    tar_path,
)
from data.pairs import Pairs
from get.errors import InputError


class OpenShard:
    """A tar under a temporary name that becomes a shard or is deleted."""

    def __init__(self, folder: Path, shard: int, manifest: Manifest) -> None:
        """Create the file of a shard, numbered from 0, of the data set in a folder."""
        self.folder, self.shard, self.manifest = folder, shard, manifest
        self.target = tar_path(folder, shard)
        self.path = hidden_path(self.target)
        self.count, self.bytes, self.digest, self.dropped = 0, 0, hashlib.sha256(), False
        with self._named_errors():
            self.file = self.path.open("wb")
        self.tar = TarWriter(cast(BinaryIO, self), mtime=0)  # the time must not change the bytes

    def close(self) -> None:
        """Delete the file unless it has been published."""
        self.dropped = True
        self.tar.close()
        with suppress(OSError):  # on a full disk buffered bytes cannot be written
            self.file.close()
        self.path.unlink(missing_ok=True)

    def write(self, data: bytes) -> int:
        """Take bytes from the tar writer; while a dropped shard is closed they are discarded."""
        if self.dropped:
            return len(data)
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def add(self, indices: range, pairs: Pairs) -> None:
        """Encode and write the pairs of a teacher batch; refuse images that are not finite."""
        made = (pairs.images, pairs.states)
        if not all(torch.isfinite(x).all() for x in made if x is not None):
            raise InputError(
                f"expected finite images, got inf or nan among indices {indices[0]} to "
                f"{indices[-1]}; the teacher diverges"
            )
        with self._named_errors():
            for sample in encode(indices[0], pairs, self.manifest.image_format, self.manifest.pack):
                self.tar.write(sample)
        self.count += len(indices)

    def publish(self, origins: str | None = None) -> ShardRecord | None:
        """Complete the tar and publish it with its record; None if pairs are missing."""
        if self.count != self.manifest.pairs_per_shard:  # an earlier batch could not be written
            return None
        with self._named_errors():
            self.tar.close()
            self.file.flush()
            os.fsync(self.file.fileno())
            record = ShardRecord(
                count=self.count,
                first_index=self.shard * self.count,
                sha256=self.digest.hexdigest(),
                bytes=self.bytes,
                manifest=self.manifest.identity,
                origins=origins,
            )
            return self._rename(record)

    def _rename(self, record: ShardRecord) -> ShardRecord:
        """Publish tar and record; if another writer has published this shard, keep that."""
        with locked(lock_path(self.folder, self.target.name)):
            if (published := finished_shard(self.folder, self.shard)) is not None:
                return published
            self.path.replace(self.target)
            sync(self.folder)  # a power cut must not keep the record and lose the tar
            write_json(record_path(self.folder, self.shard), record.as_json())
            sync(self.folder)
        return record

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise InputError(
                f"expected the folder {self.folder}, got none: it has gone since the start; "
                "bring it back and run the same command again"
            ) from error
        except OSError as error:  # a failed write does not name its file
            raise OSError(error.errno, error.strerror, str(self.target)) from error
