"""Thousands of addresses, most of them wrong: pairs, or one line without secrets.

A case is decided by its number. Nothing leaves this machine: hosts are this one, ports are closed.
"""

import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data.bucket import Bucket
from data.manifest import read_manifest
from data.places import open_site
from data.store import open_store
from data.writer import write_shards
from get.errors import InputError
from pipeline import verify_pairs
from pipeline.pairs_status import look

from .problems import Softsign
from .problems import as_users_run_it as as_users_run_it
from .shards import manifest_of
from .test_fuzz import plain

# fsspec's own, of a server that does not answer
FTP = "ignore:.*FTPFileSystem.__del__:pytest.PytestUnraisableExceptionWarning"
pytestmark = pytest.mark.filterwarnings(FTP)
SECONDS = 20.0
SYSTEMS = (
    *("http", "https", "HTTP", "Https", "memory", "memory", "memory", "file", "local", "s3", "S3"),
    *("sftp", "ftp", "FTP", "ftp::memory", "simplecache::ftp"),
    *("zip", "tar", "dir", "simplecache", "filecache", "blockcache", "reference", "generic"),
    *("data", "nothing", "", "h ttp", "http+unix", "a" * 300, "\x1b[2J", "simplecache::memory"),
    *("zip://x::memory", "::memory", "memory::", "simplecache::nothing", "async_wrapper"),
)
USERS = ("", "", "", "user:SECRET@", "SECRET@", ":SECRET@", "a@SECRET@", "u:%00SECRET@", "@")
HOSTS = (
    *("", "127.0.0.1:1", "localhost:1", "127.0.0.1:99999", "127.0.0.1:x", "127.0.0.1:-1", "[::1"),
    *("fuzz", "fuzz", "fuzz", " ", "\x1b[2J", "127.0.0.1:1:1", "127.0.0.1 :1"),
)
PATHS = (
    *("", "/", "/pairs", "/pairs", "/pairs/", "//pairs//", "/pairs/..", "/../../..", "/a b"),
    *("/pairs\n", "/\0", "/x" * 2000, "/{}", "/%zz", "/%00", "/\u202e", "/pairs/manifest.json"),
    *("/pairs?token=SECRET", "/pairs?", "?SECRET", "#fragment", "/pairs;x=1", "/*", "/[", "/**"),
)
COMMANDS = (
    *("cat {}", "false {}", "{}", "exit 3 # {}", "kill -9 $$ # {}", "' {}", "echo SECRET", ""),
    *("printf '\\377\\033[2J' >&2; false {}", "yes {}", "printf '\\n\\n\\n' >&2; exit 1 # {}"),
    *("echo https://u:SECRET@host/{}?SECRET >&2; false", "head -c 9999999 /dev/zero # {}"),
)


def address(rng: random.Random) -> str:
    """Return an address of a case."""
    if rng.random() < 0.1:
        return "pipe:" + rng.choice(COMMANDS)
    between = rng.choice(["://"] * 6 + [":/", ":", "::", ":///", "//"])
    text = "".join([rng.choice(part) for part in (SYSTEMS, [between], USERS, HOSTS, PATHS)])
    if rng.random() < 0.2:  # one character more, less or other
        at = rng.randrange(len(text) + 1)
        text = (
            text[:at] + rng.choice(["", "/", ":", "@", "?", "\t", "%", "\\", "'"]) + text[at + 1 :]
        )
    return text


@pytest.fixture(scope="module")
def pairs() -> None:
    """A data set in memory."""
    manifest = manifest_of(Softsign(), "png")
    site = open_site("memory://fuzz/pairs")
    site.open(manifest)
    write_shards(site, range(2), Softsign(), manifest)


HIDDEN = re.compile(r"""://(?:(?!::)[^/\s"'\\])+@|(?<=\?)[^\s"'\\]+""")
"""Where an address has secrets: before an @, and in its query."""
BLANK = re.compile(r"""[\s"'\\]""")
"""What ends an address, as in a command of a shell."""


def secretless(shown: object, text: str) -> None:
    """Check that a message is one line without what an address hides."""
    _, between, rest = text.partition("://")
    if between and "SECRET" not in HIDDEN.sub("", between + rest) and not BLANK.search(text):
        assert "SECRET" not in str(shown)
    if isinstance(shown, InputError):
        plain(shown)


def check(seed: int) -> str:
    """Read from an address, ask how far it is, open it for writing; return what became of it."""
    text = address(random.Random(seed))
    try:
        return judged(text)
    except BaseException as error:
        error.add_note(f"case {seed}: {text!r}")
        raise


def judged(text: str) -> str:
    """Return whether there are pairs at an address."""
    outcome = "refused"
    try:
        read_manifest(open_store(text))
        outcome = "read"
        verify_pairs.main(verify_pairs.VerifyConfig(pairs=text))
    except InputError as error:
        secretless(error, text)
    try:
        assert look(text).done in (0, 2)  # or what another case has written
    except InputError as error:
        secretless(error, text)
    try:
        site = open_site(text)
    except InputError as error:
        secretless(error, text)
    else:
        secretless(site, text)
        if isinstance(site, Bucket):
            written(site, text)
    return outcome


def written(site: Bucket, text: str) -> None:
    """Create another data set in a store, or see a line."""
    try:
        site.open(manifest_of(Softsign(), "png", pairs_per_shard=8))
        assert site.exclusive
        assert site.finished(0) is None
    except InputError as error:
        secretless(error, text)


def run(cases: range) -> Counter[str]:
    """Check cases within a bound of time; return how often what became of them."""
    found: Counter[str] = Counter()
    for seed in cases:
        began = time.perf_counter()
        found[check(seed)] += 1
        assert time.perf_counter() - began < SECONDS, seed
    return found


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in; web servers are tried once, and Amazon is this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data.remote.DELAYS", ())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    return tmp_path


@pytest.mark.usefixtures("as_users_run_it", "pairs")
def test_no_address_ends_in_a_traceback_or_shows_a_secret(alone):
    before = dict(MemoryFileSystem.store)
    assert run(range(500)).keys() == {"refused", "read"}
    assert list(alone.iterdir()) == []
    assert {k: MemoryFileSystem.store[k] for k in before} == before


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("as_users_run_it", "pairs")
def test_no_address_of_thousands_ends_in_a_traceback_or_shows_a_secret(alone):
    run(range(500, 11_000))
    assert list(alone.iterdir()) == []
