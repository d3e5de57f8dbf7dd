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

import os
import re
import shlex
import stat
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from data.files import new_file
from get.errors import InputError

TIMEOUT = 30.0  # seconds a web server may be silent
DELAYS = (0.5, 2.0, 8.0)  # seconds before each new attempt at a web server
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP codes after which to try again
ABSENT = re.compile(  # how common tools say that a file is missing; "no such host" is not that
    r"no such (?!host)|(?<!host )not found|\b404\b|does not exist|matched no|no urls matched", re.I
)


@dataclass(frozen=True)
class Store(ABC):
    """A place that files are read from by name; nothing is opened before.

    Attributes:
        source: The user's name for it.
    """

    source: str

    def __str__(self) -> str:
        """Return the user's name for it, without secrets."""
        return without_secrets(self.source)

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: If the store answers that there is no such file.
            ValueError: If it is no file.
            InputError: If the store does not answer or refuses; the file may exist and be whole.
        """

    def place(self, name: str) -> str:
        """Return the place of a file, for messages."""
        return f"{str(self).rstrip('/')}/{name}"

    def read_whole(self, name: str, size: int, digest: str) -> bytes:
        """Return the content of a file that must have this size and sha256.

        Raises:
            ValueError: If it does not.
        """
        data = self.read(name)
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes instead of {size}")
        if sha256(data).hexdigest() != digest:
            raise ValueError("another sha256")
        return data


class Folder(Store):
    """A local folder."""

    @property
    def path(self) -> Path:
        """Its path."""
        return Path(self.source)

    def read(self, name: str) -> bytes:
        """Read a regular file."""
        path = self.path / name
        try:
            # Not blocking: a FIFO would wait for a writer.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ValueError("no regular file")
                return file.read()
        except IsADirectoryError:
            raise ValueError("a folder") from None
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(str(error.strerror)) from None
        except OSError as error:  # no permission, a disk or a mount that fails
            raise _unreachable(str(path), str(error.strerror)) from error


class Web(Store):
    """Files below an http(s) address; a query string, such as a token, is sent every time."""

    def read(self, name: str) -> bytes:
        """Download a file; try again after temporary errors (5xx, time-outs, cut connections)."""
        parts = urlsplit(self.source)
        address = parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()
        problem = ""
        for delay in (0.0, *DELAYS):
            time.sleep(delay)
            try:
                with urlopen(address, timeout=TIMEOUT) as answer:
                    return answer.read()
            except HTTPError as error:
                error.close()
                if error.code in (404, 410):
                    raise FileNotFoundError(f"HTTP {error.code}") from None
                problem = f"HTTP {error.code} {error.reason}"
                if error.code not in TEMPORARY:
                    break
            except (HTTPException, OSError) as error:  # IncompleteRead, URLError, a time-out
                problem = f"{type(error).__name__}: {error}"
        raise _unreachable(self.place(name), problem)

    def place(self, name: str) -> str:
        """Return the address without its query, which may be a secret."""
        return f"{str(self).partition('?')[0].rstrip('/')}/{name}"


class ObjectStore(Store):
    """Any file system of fsspec; see its documentation for credentials."""

    def read(self, name: str) -> bytes:
        """Download a file."""
        system, path = self.find()
        try:
            return system.cat_file(f"{path.rstrip('/')}/{name}")
        except FileNotFoundError:
            raise FileNotFoundError("no such file") from None
        except OSError as error:
            raise _unreachable(self.place(name), f"{type(error).__name__}: {error}") from error

    def find(self) -> tuple[Any, str]:
        """Return the file system and the path in it.

        Not kept: fsspec has one per process, and one made before a fork does not work after it.
        """
        import fsspec  # slow, and few data sets need it

        try:
            return fsspec.url_to_fs(self.source)
        except (ImportError, ValueError) as error:
            problem = without_secrets(str(error))
            raise InputError(
                f"expected a source that fsspec can open, got {self}: {problem}; "
                "install the package it names, or read through pipe:COMMAND"
            ) from error


class Pipe(Store):
    """The output of a shell command.

    If the command fails, its last line on stderr decides: a missing file if it says so in the words
    of a common tool (cat, curl, aws, gsutil, gcloud, az, rclone, hdfs), otherwise an error. The
    exit code of a pipeline is that of its last command, but incomplete files are noticed anyway.
    """

    def read(self, name: str) -> bytes:
        """Run the command."""
        command = self.source.removeprefix("pipe:").replace("{}", shlex.quote(name))
        done = subprocess.run(command, shell=True, capture_output=True, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            return done.stdout
        message = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
        # With codes 126 and 127 the shell says "not found" of the command. The name is left out
        # of the search: pairs-000404.tar would look like HTTP 404.
        if done.returncode not in (126, 127) and ABSENT.search(message.replace(name, "")):
            raise FileNotFoundError(message)
        raise _unreachable(self.place(name), f"exit code {done.returncode}: {message}")

    def place(self, name: str) -> str:
        """Return the command with the file's name."""
        return str(self).replace("{}", shlex.quote(name))


@dataclass(frozen=True)
class Cached(Store):
    """A store whose large files are kept in a local folder.

    Any number of processes may fill it: a file appears under its name once it is complete and its
    sha256 is right, and the sha256 is checked again whenever it is read.
    """

    store: Store
    folder: Path

    def read(self, name: str) -> bytes:
        """Read from the store: small files may change and are not cached."""
        return self.store.read(name)

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
                f"expected a command with {{}} for the file's name, got {without_secrets(source)}; "
                "write for instance 'pipe:cat /data/pairs/{}'"
            )
        return Pipe(source)
    if source.lower().startswith(("http://", "https://")):
        if "@" in urlsplit(source).netloc:
            raise InputError(
                f"expected an address without user and password, got {without_secrets(source)}; "
                "read through pipe:curl --user USER:PASSWORD --fail --silent ADDRESS/{}"
            )
        return Web(source)
    if re.match(r"[a-zA-Z][\w+.-]*:(:|//)", source):  # fsspec chains systems with "::"
        store = ObjectStore(source)
        store.find()  # reports an unknown system now
        return store
    return Folder(source)


def without_secrets(text: str) -> str:
    """Return text without the passwords and query strings of the addresses in it."""
    text = re.sub(r"(://[^\s?\"'\\]*\?)[^\s\"'\\]+", r"\1...", text)
    return re.sub(r"(://)[^/@\s\"'\\]+@", r"\1...@", text)


def _unreachable(place: str, problem: str) -> InputError:
    return InputError(
        f"expected to read {place}, got {without_secrets(problem)}; check address, access and "
        "network, then run the same command again"
    )
