"""Stores elsewhere: web servers, whatever fsspec knows, and the output of commands."""

import os
import re
import select
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from http.client import HTTPException, IncompleteRead
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

from data.folder import SMALL, Store
from get.errors import InputError

MANIFEST = "manifest.json"
SILENCE = 120.0  # seconds a command may write nothing
CHUNK = 2**20  # bytes read at once
TIMEOUT = 30.0  # seconds a web server may be silent
DELAYS = (0.5, 2.0, 8.0)  # seconds before each new attempt at a web server
UNQUOTED = "/%:@!$&'()*+,;=~"  # in the path of an address: what it may hold, and what is quoted
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP codes after which to try again
ABSENT = re.compile(  # how common tools say that a file is missing; "no such host" is not that
    r"no such (?!host)|(?<!host )not found|\b404\b|does not exist|matched no|no urls matched", re.I
)


class Web(Store):
    """Files below an http(s) address; a query string, such as a token, is sent every time."""

    def read(self, name: str, at_most: int = SMALL) -> bytes:
        """Download a file; try again after temporary errors (5xx, time-outs, cut connections)."""
        parts = urlsplit(self.source)
        path = quote(f"{parts.path.rstrip('/')}/{name}", UNQUOTED)
        address = parts._replace(path=path).geturl()
        problem = ""
        for delay in (0.0, *DELAYS):
            time.sleep(delay)
            try:
                with urlopen(address, timeout=TIMEOUT) as answer:
                    data = answer.read(at_most + 1)
                    if answer.length and len(data) <= at_most:
                        raise IncompleteRead(data, answer.length)
                    return data
            except HTTPError as error:
                error.close()
                if error.code in (404, 410):
                    raise FileNotFoundError(f"HTTP {error.code}") from None
                # Public buckets whose files may not be listed say 403 of those that are not there.
                if error.code == 403 and _is_open(self, name):
                    raise FileNotFoundError("HTTP 403") from None
                problem = f"HTTP {error.code} {error.reason}"
                if error.code not in TEMPORARY:
                    break
            except (HTTPException, OSError) as error:  # IncompleteRead, URLError, a time-out
                problem = f"{type(error).__name__}: {error}"
        raise self.unreachable(name, problem)

    def read_whole(self, name: str, size: int, digest: str) -> bytes:
        """Download a file that must be this one; try again once, as servers cut answers short."""
        try:
            return super().read_whole(name, size, digest)
        except InputError:
            raise
        except ValueError:
            return super().read_whole(name, size, digest)

    def place(self, name: str) -> str:
        """Return the address without its query, which may be a secret."""
        return f"{str(self).partition('?')[0].rstrip('/')}/{name}"


def _is_open(store: Store, name: str) -> bool:
    """Say whether the manifest can be read, so that access is not why another file cannot."""
    try:
        return name != MANIFEST and bool(store.read(MANIFEST))
    except (FileNotFoundError, InputError):
        return False


class ObjectStore(Store):
    """Any file system of fsspec; see its documentation for credentials."""

    def read(self, name: str, at_most: int = SMALL) -> bytes:
        """Download a file."""
        system, path = self.find()
        try:
            return system.cat_file(f"{path.rstrip('/')}/{name}", start=0, end=at_most + 1)
        except FileNotFoundError:
            raise FileNotFoundError("no such file") from None
        except PermissionError as error:
            if _is_open(self, name):  # as above: S3 says so where files may not be listed
                raise FileNotFoundError("no such file, or no access to it") from None
            raise self.unreachable(name, f"PermissionError: {error}") from error
        except Exception as error:  # of whichever package is behind it: botocore, ftplib, zipfile
            raise self.unreachable(name, f"{type(error).__name__}: {error}") from error

    def find(self) -> tuple[Any, str]:
        """Return the file system and the path in it.

        Not kept: fsspec has one per process, and one made before a fork does not work after it.
        """
        import fsspec  # slow, and few data sets need it

        try:
            return fsspec.url_to_fs(self.source)
        except Exception as error:  # of whichever package is behind it
            raise InputError(
                f"expected a source that fsspec can open, got {self}: {self.told(error)}; "
                "install the package it names, or read through pipe:COMMAND"
            ) from error


class Pipe(Store):
    """The output of a shell command.

    If the command fails, its last line on stderr decides: a missing file if it says so in the words
    of a common tool (cat, curl, aws, gsutil, gcloud, az, rclone, hdfs), otherwise an error. The
    exit code of a pipeline is that of its last command, but incomplete files are noticed anyway.
    """

    def read(self, name: str, at_most: int = SMALL) -> bytes:
        """Run the command."""
        command = self.source.removeprefix("pipe:").replace("{}", shlex.quote(name))
        with TemporaryFile() as errors:
            code, data = _output_of(command, at_most, errors)
            if code == 0 or len(data) > at_most:
                return data
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 10_000))
            last = (errors.read().decode(errors="replace").strip().splitlines() or [""])[-1]
        if code is None:
            raise self.unreachable(name, f"nothing for {SILENCE:.0f} s")
        # With codes 126 and 127 the shell says "not found" of the command. The name is left out
        # of the search: pairs-000404.tar would look like HTTP 404.
        if code not in (126, 127) and ABSENT.search(last.replace(name, "")):
            raise FileNotFoundError(last)
        raise self.unreachable(name, f"exit code {code}: {last}")

    def place(self, name: str) -> str:
        """Return the command with the file's name."""
        return str(self).replace("{}", shlex.quote(name))


def _output_of(command: str, at_most: int, errors: IO[bytes]) -> tuple[int | None, bytes]:
    """Run a shell command; return its exit code and output.

    It is killed, with all that it has started, and the code is None, once it has written more than
    `at_most` bytes or nothing for `SILENCE` seconds.
    """
    data = bytearray()
    process = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,  # a group of its own, to be killed as a whole
    )
    with process:
        assert process.stdout is not None
        try:
            while len(data) <= at_most and select.select([process.stdout], [], [], SILENCE)[0]:
                if not (part := os.read(process.stdout.fileno(), CHUNK)):
                    return process.wait(SILENCE), bytes(data)
                data += part
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return None, bytes(data)
