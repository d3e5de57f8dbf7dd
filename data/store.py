"""Where a data set lies: a folder, a web server, an object store, or behind a command.

    runs/pairs/digits                         a local folder
    https://host/pairs                        files below an address; a query string is kept
    s3://bucket/pairs, gs://..., memory://    anything fsspec knows, once its package is installed
    pipe:aws s3 cp s3://bucket/pairs/{} -     a command; {} is the file's name, stdout its content

Files of a data set are read by their names, which are known, so stores need not list files.
A cache keeps shards on a local disk. Nothing is deleted from it, so it needs as much space as the
data set. Stores hold no connections and can be sent to other processes. manifest.py says what the
files are.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from data.files import new_file
from data.folder import SMALL, Folder, Store
from data.remote import ObjectStore, Pipe, Web
from get.errors import InputError


@dataclass(frozen=True)
class Cached(Store):
    """A store whose large files are kept in a local folder.

    Any number of processes may fill it: a file appears under its name once it is complete and its
    sha256 is right, and the sha256 is checked again whenever it is read.
    """

    store: Store
    folder: Path

    def read(self, name: str, at_most: int = SMALL) -> bytes:
        """Read from the store: small files may change and are not cached."""
        return self.store.read(name, at_most)

    def place(self, name: str) -> str:
        """Return the place of a file in the store."""
        return self.store.place(name)

    def read_whole(self, name: str, size: int, digest: str) -> bytes:
        """Return the cached file if it is undamaged, else that of the store, and cache it."""
        path = self.folder / name
        try:
            return Folder(str(self.folder)).read_whole(name, size, digest)
        except (FileNotFoundError, ValueError):  # not in the cache, or damaged there
            data = self.store.read_whole(name, size, digest)
        try:
            with new_file(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise InputError(
                f"expected to write the cache {path}, got {error.strerror}; "
                "make room or choose another --pairs_cache"
            ) from error
        return data


def is_address(text: str) -> bool:
    """Say whether text names a system of files, not a folder; fsspec chains systems with `::`."""
    return "://" in text or re.match(r"[a-zA-Z][\w+.-]*::", text) is not None


Source = str | Path | Store


def open_store(source: Source, cache: Path | None = None) -> Store:
    """Return the store that a path or address names; a store is returned as it is.

    A cache is a local folder that keeps shards; every data set has a folder of its own in it.

    Raises:
        InputError: If the source cannot be opened, or, with a cache, does not answer.
    """
    store = source if isinstance(source, Store) else _named(source)
    if cache is None or isinstance(store, Cached):
        return store
    try:
        manifest = store.read("manifest.json")
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        manifest = b""  # `read_manifest` reports it
    name = sha256(store.source.encode() + b"\0" + manifest).hexdigest()[:16]
    return Cached(store.source, store, cache / name)


def _named(source: str | Path) -> Store:
    if isinstance(source, Path):
        return Folder(str(source))
    if source.startswith("pipe:"):
        if "{}" not in source:
            raise InputError(
                f"expected a command with {{}} for the file's name, got {Pipe(source)}; "
                "write for instance 'pipe:cat /data/pairs/{}'"
            )
        return Pipe(source)
    if source.lower().startswith(("http://", "https://")):
        try:
            parts = urlsplit(source)
            _ = parts.port
        except ValueError as error:
            raise InputError(
                f"expected a web address, got {Web(source)}: {Web(source).told(error)}"
            ) from error
        if "@" in parts.netloc:
            raise InputError(
                f"expected an address without user and password, got {Web(source)}; "
                "read through pipe:curl --user USER:PASSWORD --fail --silent ADDRESS/{}"
            )
        return Web(source)
    if is_address(source):
        store = ObjectStore(source)
        store.find()  # reports an unknown system now
        return store
    return Folder(source)
