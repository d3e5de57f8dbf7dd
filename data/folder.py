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
LONG = 300  # characters of a name or of somebody else's message that are shown
SECRETS = re.compile(r"""://([^/\s"'\\]+)@|\?([^\s"'\\]+)""")
"""User and password, and the query, of an address."""


@dataclass(frozen=True)
class Store(ABC):
    """A place that files are read from by name; nothing is opened before.

    Attributes:
        source: The user's name for it.
    """

    source: str

    def __str__(self) -> str:
        """Return the user's name for it, without secrets and safe to print."""
        name = printable(without_secrets(self.source))
        return name if len(name) <= LONG else f"{name[: LONG - 50]}...{name[-47:]}"

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

    def told(self, problem: object) -> str:
        """Return what somebody else says of this place: one line, without the secrets of its name.

        Packages show parts of an address, in which a secret is not recognised.
        """
        text = str(problem)
        for user, query in SECRETS.findall(self.source):
            for secret in filter(None, (user, query)):
                text = text.replace(secret, "...")
        return one_line(text)

    def unreachable(self, name: str, problem: object) -> InputError:
        """Return what is raised if a file cannot be read."""
        return InputError(
            f"expected to read {self.place(name)}, got {self.told(problem)}; check address, access "
            "and network, then run the same command again"
        )

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
            raise self.unreachable(name, str(error.strerror)) from error


def without_secrets(text: str) -> str:
    """Return text without the passwords and query strings of the addresses in it."""
    text = re.sub(r"(://[^\s?\"'\\]*\?)[^\s\"'\\]+", r"\1...", text)
    return re.sub(r"(://)[^/\s\"'\\]+@", r"\1...@", text)


def printable(text: str) -> str:
    """Return text in which characters that would control a terminal are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(problem: object) -> str:
    """Return somebody else's message in one line without secrets."""
    return printable(" ".join(without_secrets(str(problem)).split()))[:LONG]
