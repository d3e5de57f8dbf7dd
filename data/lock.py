"""A file that only one process can create: whoever has created it is at work on something.

This needs nothing of a file system but exclusive creation; there may be no hard links and no locks
there. A process that dies leaves its file. Others take it over: at once if they see on this machine
that the process is gone, elsewhere once the file has not been renewed for some time. Two that take
over at the same moment may both believe they are alone; both then do the same work.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.files import hidden_path

POLL = 0.02  # seconds between attempts at a lock that another process has


def take(path: Path, age: float) -> bool:
    """Create the file, or return False if a living process has it.

    Args:
        path: The file.
        age: Seconds without renewal after which its process counts as dead.
    """
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if not is_dead(path, age):
                return False
            with suppress(FileNotFoundError):  # another one was faster
                path.unlink()
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{os.getpid()} {socket.gethostname()}")
            return True
    return False


def is_dead(path: Path, age: float) -> bool:
    """Say whether the process that created the file is gone; False if the file is."""
    try:
        number, _, machine = path.read_text().partition(" ")
        written = path.stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return False
    if machine == socket.gethostname() and number.isdecimal():
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
    return _now(path.parent) - written > age


def _now(folder: Path) -> float:
    """Return the time of the file system, which may have another clock than this machine."""
    probe = hidden_path(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def renew(path: Path) -> None:
    """Show that this process is alive."""
    with suppress(FileNotFoundError):
        os.utime(path)


@contextmanager
def locked(path: Path, age: float = 60.0) -> Iterator[None]:
    """Wait until the file can be created; delete it in the end."""
    while not take(path, age):
        time.sleep(POLL)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
