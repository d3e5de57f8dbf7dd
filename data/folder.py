"""What a store of files is, and the simplest one: a local folder. Others: remote.py, store.py."""

import os
import re
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from get.errors import InputError

SMALL = 2**20  # bytes of the largest manifest or record


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
    def read(self, name: str, at_most: int = SMALL) -> bytes:
        """Return the content of a file, or more than `at_most` bytes of a larger one.

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
        data = self.read(name, size)
        if len(data) != size:
            found = f"{len(data)} bytes" if len(data) < size else "more bytes"
            raise ValueError(f"{found} instead of {size}")
        if sha256(data).hexdigest() != digest:
            raise ValueError("another sha256")
        return data


class Folder(Store):
    """A local folder."""

    @property
    def path(self) -> Path:
        """Its path."""
        return Path(self.source)

    def read(self, name: str, at_most: int = SMALL) -> bytes:
        """Read a regular file."""
        path = self.path / name
        try:
            # Not blocking: a FIFO would wait for a writer.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ValueError("no regular file")
                # Python reserves what it is asked for, and a record may ask for a terabyte.
                return file.read(min(at_most, status.st_size) + 1)
        except IsADirectoryError:
            raise ValueError("a folder") from None
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(str(error.strerror)) from None
        except OSError as error:  # no permission, a disk or a mount that fails
            raise unreachable(str(path), str(error.strerror)) from error


def without_secrets(text: str) -> str:
    """Return text without the passwords and query strings of the addresses in it."""
    text = re.sub(r"(://[^\s?\"'\\]*\?)[^\s\"'\\]+", r"\1...", text)
    return re.sub(r"(://)[^/@\s\"'\\]+@", r"\1...@", text)


def unreachable(place: str, problem: str) -> InputError:
    """Return what is raised if a file cannot be read, in one line without secrets."""
    line = " ".join(without_secrets(problem).split())[:300]
    return InputError(
        f"expected to read {place}, got {line}; check address, access and network, "
        "then run the same command again"
    )
