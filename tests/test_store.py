"""Where a data set may lie: the same pairs from folders, web servers, object stores, commands."""

import json
import shlex
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from data.folder import Store
from data.manifest import count_shards, read_manifest, read_record
from data.reader import read_shard
from data.store import Source, open_store
from get.errors import InputError

from .shards import IN_PROCESSES, SHARDS, Quiet, order, read, same, serving, write_pairs
from .shards import folder as folder

pytestmark = IN_PROCESSES


@pytest.fixture(params=["folder", "text", "web", "memory", "pipe", "cached", "cached folder"])
def source(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Source]:
    """The same data set, wherever it may lie."""
    match request.param:
        case "folder":
            yield folder
        case "text":
            yield str(folder)
        case "web":
            with serving(partial(Quiet, directory=folder)) as address:
                yield address
        case "memory":
            system = fsspec.filesystem("memory")
            system.put(f"{folder}/", "/bucket/pairs/", recursive=True)
            yield "memory://bucket/pairs/"
            system.rm("/bucket", recursive=True)
        case "pipe":
            yield f"pipe:cat {shlex.quote(str(folder))}/{{}}"
        case "cached":
            with serving(partial(Quiet, directory=folder)) as address:
                yield open_store(address, tmp_path / "cache")
        case "cached folder":
            yield open_store(folder, tmp_path / "cache")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_is_the_same_wherever_it_lies(source, folder, workers):
    assert read_manifest(source) == read_manifest(folder)
    assert count_shards(source) == SHARDS
    assert read_record(source, 3) == read_record(folder, 3)
    assert read_record(source, SHARDS) is None
    assert same(read(order(source), 5, workers=workers), read(order(folder), 5))


def test_an_absent_file_is_not_a_silent_store(source: Source) -> None:
    store = open_store(source)
    with pytest.raises(FileNotFoundError):
        store.read("pairs-000099.tar")
    assert store.place("pairs-000099.tar").endswith(("pairs-000099.tar", "pairs-000099.tar'"))
    with pytest.raises(InputError, match=r"expected a finished shard in .*pairs-000099"):
        read_shard(source, 99)
    assert type(ForkingPickler.loads(ForkingPickler.dumps(store))) is type(store)


class Asked(Store):
    """Has the records of some shards."""

    present: Container[int]
    asked: list[str]

    def read(self, name: str, at_most: int = 0) -> bytes:
        self.asked.append(name)
        if int(name[6:12]) not in self.present:
            raise FileNotFoundError
        return json.dumps({"count": 1, "first_index": 0, "sha256": "", "bytes": 0}).encode()


@pytest.fixture
def having() -> Callable[[Container[int]], Asked]:
    """Return a function that makes a store of shards with these numbers."""
    return lambda shards: type("Having", (Asked,), {"present": shards, "asked": []})("a store")


@pytest.mark.parametrize("present", range(18))
def test_shards_that_cannot_be_listed_are_counted_in_few_questions(having, present):
    store = having(range(present))
    assert count_shards(store) == present
    assert len(store.asked) == len(set(store.asked)) <= 2 * present.bit_length() + 5


@pytest.mark.parametrize("missing", [{0}, {1}, {0, 1, 2}, set(range(3, 11)), {15, 16}, {6}])
def test_a_missing_shard_among_those_that_cannot_be_listed_is_not_taken_for_the_end(
    having, missing
):
    shown = f"expected shard {min(missing)} in a store, got none although shard"
    with pytest.raises(InputError, match=shown) if missing != {6} else nullcontext():
        assert count_shards(having({*range(20)} - missing)) == 20  # reading shard 6 notices it


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("no-such-command-here {}", "exit code 127"),
        ("echo permission denied >&2; false {}", "exit code 1: permission denied"),
        ("false {}", "exit code 1"),
        ("echo cat: {}: Permission denied >&2; false", "exit code 1: cat: 404: Permission denied"),
        ("echo dial tcp: lookup x: no such host {} >&2; false", "no such host"),
    ],
)
def test_a_command_that_fails_otherwise_is_reported(command: str, shown: str) -> None:
    with pytest.raises(InputError, match=shown):
        open_store(f"pipe:{command}").read("404")


@pytest.mark.parametrize(
    "words",
    [
        "cat: x: No such file or directory",
        "fatal error: An error occurred (404) when calling the HeadObject operation: Not Found",
        "curl: (22) The requested URL returned error: 404",
        "CommandException: No URLs matched: gs://b/x",
        "ERROR: (gcloud.storage.cat) The following URLs matched no objects or files: gs://b/x",
        "The specified blob does not exist.",
    ],
)
def test_a_command_that_says_the_file_is_absent_is_believed(words: str) -> None:
    with pytest.raises(FileNotFoundError):
        open_store(f"pipe:echo {shlex.quote(words)} >&2; false {{}}").read("pairs-000000.tar")


def test_a_name_reaches_the_command_as_one_word() -> None:
    assert open_store("pipe:printf %s {}").read("a b'; echo c") == b"a b'; echo c"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("pipe:cat x", "expected a command with {}"),
        ("s3://bucket/pairs", "s3fs"),
        ("nowhere://bucket/pairs", "nowhere"),
    ],
)
def test_a_source_that_cannot_be_opened_is_reported_at_once(source: str, shown: str) -> None:
    with pytest.raises(InputError, match=shown) as raised:
        open_store(source)
    assert "\n" not in str(raised.value)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("command", "shown"),
    [("sleep 100; echo", "nothing for 0 s"), ("sleep 100 & echo x; wait; echo", "nothing for 0 s")],
)
def test_a_command_that_hangs_is_killed_with_what_it_started(monkeypatch, command, shown):
    monkeypatch.setattr("data.remote.SILENCE", 0.3)
    with pytest.raises(InputError, match=shown):
        open_store(f"pipe:{command} {{}}").read("x")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("source", ["pipe:yes {}", "web", "folder"])
def test_no_store_reads_more_of_a_file_than_it_should_have(source, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(10**6))
    with ExitStack() as stack:
        if source == "web":
            source = stack.enter_context(serving(partial(Quiet, directory=tmp_path)))
        store = open_store(str(tmp_path) if source == "folder" else source)
        assert 1000 < len(store.read("x", 1000)) <= 1000 + 2**20
        with pytest.raises(ValueError, match="more bytes instead of 1000"):
            store.read_whole("x", 1000, "")


@pytest.mark.parametrize(
    "source", ["ftp://127.0.0.1:9/x", "zip://x::file:///no-such.zip", "hf://datasets/a/b"]
)
def test_errors_of_any_package_behind_fsspec_are_one_line(source: str) -> None:
    with pytest.raises(InputError, match="expected") as raised:
        open_store(source).read("x")
    assert "\n" not in str(raised.value)


def test_an_object_store_that_refuses_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match=r"expected to read file://.*/x, got IsADirectoryError"):
        open_store(f"file://{tmp_path}").read("x")


def test_an_object_store_that_may_not_be_listed_refuses_what_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As S3 answers who may read, but not list; `file://` stands for it."""

    def cat_file(system: LocalFileSystem, path: str, **part: int) -> bytes | str:
        if not Path(path).exists():
            raise PermissionError("Forbidden")
        return cat(system, path, **part)

    cat = LocalFileSystem.cat_file
    monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)
    write_pairs(tmp_path, 1)
    assert count_shards(f"file://{tmp_path}") == 1
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match="PermissionError: Forbidden"):
        read_record(f"file://{tmp_path}", 5)
