"""Files and folders that appear complete under their name, by rename, or not at all."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from data.folder import printable, without_secrets
from get.errors import InputError

UNKNOWN = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
"""What file systems answer that know no fsync of folders: mounts of buckets, some network ones."""


def hidden_path(path: Path) -> Path:
    """Return a temporary name next to `path`: `.<name>.<32 hexadecimal digits>.tmp`.

    Every writer gets a name of its own; process ids repeat across threads and machines.
    """
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")


def check_local(path: Path, name: str) -> None:
    """Refuse an address for the setting of this name; `Path` makes `s3:/x` of `s3://x`."""
    if re.match(r"[a-zA-Z][\w+.-]+:[/:]|pipe:", text := str(path)):
        address = without_secrets(re.sub(":/+", "://", text, count=1))
        raise InputError(
            f"expected a local path for {name}, got the address {printable(address)}; "
            "use a local one, and copy it from there or to there"
        )


def delete_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder in which nobody else writes."""
    for path in sorted(folder.rglob(f".*.{'?' * 32}.tmp")):  # a folder before what is in it
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def empty_folder(folder: Path, but: str, last: str) -> None:
    """Delete all that is in a folder but the file of one name; links are not followed.

    Args:
        folder: Where.
        but: Name of the file that stays.
        last: Name of what says whose folder it is, even if this is killed in the middle.
    """
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == last):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != but:
            entry.unlink()


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut, as far as that is possible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let a write that fails, of Python or of safetensors, raise an OSError that names `path`."""
    from safetensors import SafetensorError  # here: launch.sh runs this file before it installs

    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that appears under its name, by rename, once it is complete.

    One process at a time: it deletes what killed ones left.
    """
    for leftover in path.parent.glob(f".{escape(path.name)}.{'?' * 32}.tmp"):
        shutil.rmtree(leftover)
    temporary = hidden_path(path)
    temporary.mkdir(parents=True)
    try:
        with named(path):
            yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for entry in (*temporary.rglob("*"), temporary):
        sync(entry)
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
    sync(path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file appears under its name, by rename, once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden_path(path)
    try:
        with named(path):
            yield temporary
            sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; InputError if the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"expected JSON in {path}, got {type(error).__name__}") from error
