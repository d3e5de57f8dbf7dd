"""A file that only one process can create: whoever has created it is at work on something.

This needs nothing of a file system but exclusive creation; there may be no hard links and no locks
there. A process that dies leaves its file. Others take it over: at once if they see on this machine
that the process is gone, elsewhere once the file has not been renewed for some time. Two that take
over at the same moment may both believe they are alone; both then do the same work.
"""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data.files import hidden_path
from data.folder import Folder

POLL = 0.02  # seconds between attempts at a lock that another process has
BIRTH = 5.0  # seconds after which whoever has created an empty file counts as dead
UNBORN = "nobody"  # the machine of a process that has not written its name yet
FIRST_SPACE = 4026531836  # the namespace of process numbers outside containers, in Linux
CONTENT = re.compile(r"([1-9][0-9]{0,17}) ([\w.:-]{1,255})(?: ([0-9]{1,11}) ?([ -~]*))?")


@dataclass(frozen=True)
class Owner:
    """The process that has created a file.

    Attributes:
        pid: Its number; 0 if the file does not say it.
        machine: The name of its machine, see `machine`; `UNBORN` if the file is still empty.
        since: When it created the file, in seconds since 1970, like all times here.
        renewed: When it last showed that it was alive.
        note: What else it wrote.
    """

    pid: int
    machine: str
    since: float
    renewed: float
    note: str

    def is_gone(self, age: float, now: float) -> bool:
        """Say whether the process is dead or counts as dead, as in `take`."""
        if self.pid and self.machine == machine():
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            except (PermissionError, OverflowError):
                pass
        return now - self.renewed > (min(age, BIRTH) if self.machine == UNBORN else age)

    @property
    def name(self) -> str:
        """Machine and process, for messages."""
        return f"{self.machine}:{self.pid}"

    @property
    def is_self(self) -> bool:
        """Whether it is this process."""
        return (self.pid, self.machine) == (os.getpid(), machine())


def machine() -> str:
    """Return a name for all processes whose numbers this one can look up.

    Containers of one machine may have its name and numbers of their own.
    """
    name = re.sub(r"[^\w.-]", "_", socket.gethostname()) or "unknown"
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        return name
    return name if space == FIRST_SPACE else f"{name}:{space}"


def take(path: Path, age: float, note: str = "") -> bool:
    """Create the file, or return False if a living process has it.

    Args:
        path: The file.
        age: Seconds without renewal after which its process counts as dead.
        note: One line for others to read.
    """
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            owner = read_owner(path)
            if owner is None or not owner.is_gone(age, clock(path)):
                return False
            if read_owner(path) != owner:  # another one has just taken it over
                return False
            with suppress(FileNotFoundError):  # another one was faster
                path.unlink()
        else:
            try:
                with os.fdopen(descriptor, "w") as file:
                    since = os.fstat(descriptor).st_mtime
                    file.write(own_content(since, note))
            except OSError as error:  # a full disk
                path.unlink(missing_ok=True)
                raise OSError(error.errno, error.strerror, str(path)) from error
            return True
    return False


def read_owner(path: Path) -> Owner | None:
    """Return whose file this is; None if there is no such file, or it cannot be read."""
    try:
        content = Folder(str(path.parent)).read(path.name).decode(errors="replace")
        renewed = path.stat().st_mtime
    except (OSError, ValueError):
        return None
    return parse_owner(content, renewed)


def parse_owner(content: str, renewed: float) -> Owner:
    """Return whom the content of a file names that was last renewed then."""
    if (fits := CONTENT.fullmatch(content)) is None:  # it is being written, or is not ours
        return Owner(0, "unknown" if content else UNBORN, renewed, renewed, "")
    return Owner(int(fits[1]), fits[2], float(fits[3] or renewed), renewed, fits[4] or "")


def own_content(since: float, note: str) -> str:
    """Return what this process writes into a file that it creates."""
    return f"{os.getpid()} {machine()} {since:.0f} {note}".strip()


def clock(path: Path) -> float:
    """Return the time of the path's file system, which may have another clock than this machine.

    Where nothing can be written it is the time of this machine.
    """
    probe = hidden_path(path)
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()


def renew(path: Path) -> None:
    """Show that this process is alive, unless others have taken the file over."""
    if (owner := read_owner(path)) is not None and owner.is_self:
        with suppress(OSError):  # whatever is wrong is noticed where shards are written
            os.utime(path)


def release(path: Path) -> None:
    """Delete the file, unless others have taken it over."""
    if (owner := read_owner(path)) is None or owner.is_self:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, age: float = 60.0) -> Iterator[None]:
    """Wait until the file can be created; delete it in the end."""
    while not take(path, age):
        time.sleep(POLL)
    try:
        yield
    finally:
        release(path)
