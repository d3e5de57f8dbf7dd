"""Where a data set may lie: folders, web servers, object stores, commands; and its cache."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from threading import Thread

import fsspec
import pytest
import torch

import data.store
from data.manifest import (
    DamagedShard,
    count_shards,
    open_data_set,
    read_manifest,
    read_record,
)
from data.pairs import Pairs
from data.reader import Order, batches, read_shard
from data.store import Store, open_store
from data.writer import write_shard
from get.errors import InputError

from .test_pairs import PAIRS, Softsign, manifest_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on one core
]
SHARDS = 6


def write_pairs(folder: Path, shards: int = SHARDS) -> Path:
    manifest = manifest_of(teacher := Softsign())
    open_data_set(folder, manifest)
    for shard in range(shards):
        write_shard(folder, shard, teacher, manifest)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that tests only read."""
    return write_pairs(tmp_path_factory.mktemp("the pairs"))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving(handler: Callable) -> Iterator[str]:
    """Serve with a handler on a free port; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable], str]]:
    """Serve with any number of handlers as long as a test lasts."""
    with ExitStack() as stack:
        yield lambda handler: stack.enter_context(serving(handler))


@pytest.fixture(params=["folder", "text", "web", "memory", "pipe", "cached", "cached folder"])
def source(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path, serve: Callable
) -> Iterator[str | Path | Store]:
    """The same data set, wherever it may lie."""
    match request.param:
        case "folder":
            yield folder
        case "text":
            yield str(folder)
        case "web":
            yield serve(partial(Quiet, directory=folder))
        case "memory":
            system = fsspec.filesystem("memory")
            system.put(f"{folder}/", "/bucket/pairs/", recursive=True)
            yield "memory://bucket/pairs/"
            system.rm("/bucket", recursive=True)
        case "pipe":
            yield f"pipe:cat {shlex.quote(str(folder))}/{{}}"
        case "cached":
            yield open_store(serve(partial(Quiet, directory=folder)), tmp_path / "cache")
        case "cached folder":
            yield open_store(folder, tmp_path / "cache")


def first_batches(source: str | Path | Store, workers: int = 0) -> list[Pairs]:
    order = Order(
        source=source, shards=SHARDS, pairs_per_shard=PAIRS, seed=0, streams=2, batch_size=8
    )
    return list(islice(batches(order, workers=workers), 5))


def same(first: list[Pairs], second: list[Pairs]) -> bool:
    return all(
        a is not None and b is not None and torch.equal(a, b)
        for ours, theirs in zip(first, second, strict=True)
        for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_is_the_same_wherever_it_lies(
    source: str | Path | Store, folder: Path, workers: int
) -> None:
    assert read_manifest(source) == read_manifest(folder)
    assert count_shards(source) == SHARDS
    assert read_record(source, 3) == read_record(folder, 3)
    assert read_record(source, SHARDS) is None
    assert same(first_batches(source, workers), first_batches(folder))


def test_an_absent_file_is_told_from_a_silent_store(source: str | Path | Store) -> None:
    store = open_store(source)
    with pytest.raises(FileNotFoundError):
        store.read("pairs-000099.tar")
    assert store.place("pairs-000099.tar").endswith(("pairs-000099.tar", "pairs-000099.tar'"))
    with pytest.raises(InputError, match=r"expected a finished shard in .*pairs-000099"):
        read_shard(source, 99)
    assert type(ForkingPickler.loads(ForkingPickler.dumps(store))) is type(store)


@pytest.mark.parametrize("text", ["[1]", "\xff", ""])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin1")
    with pytest.raises(InputError, match=f"expected pairs in {tmp_path}, got no readable"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("present", range(18))
def test_shards_that_cannot_be_listed_are_counted_in_few_questions(present: int) -> None:
    asked = []

    class Asked(Store):
        def read(self, name: str) -> bytes:
            asked.append(name)
            if int(name[6:12]) >= present:
                raise FileNotFoundError
            return json.dumps({"count": 1, "first_index": 0, "sha256": "", "bytes": 0}).encode()

        def place(self, name: str) -> str:
            return name

    assert count_shards(Asked("asked")) == present
    assert len(asked) == len(set(asked)) <= 2 * present.bit_length() + 1


# ------------------------------------------------------------------ http


class Moody(BaseHTTPRequestHandler):
    """Answers from a list, one entry a request: a status, or bytes (cut ones too)."""

    answers: list[int | bytes | tuple[int, bytes]]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            self.send_error(answer)
            return
        length, content = (len(answer), answer) if isinstance(answer, bytes) else answer
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def moody(serve: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, list[str]]]:
    monkeypatch.setattr(data.store, "DELAYS", (0.01, 0.01, 0.01))

    def start(*answers: int | bytes | tuple[int, bytes]) -> tuple[str, list[str]]:
        asked: list[str] = []
        handler = type("Handler", (Moody,), {"answers": list(answers), "asked": asked})
        return serve(handler), asked

    return start


def test_what_passes_is_asked_again(moody: Callable) -> None:
    address, asked = moody(503, (9, b"cut"), 429, b"whole")
    assert open_store(address).read("x") == b"whole"
    assert len(asked) == 4


def test_what_does_not_pass_is_told_in_one_line(moody: Callable) -> None:
    address, asked = moody(500, 502, 503, 504)
    with pytest.raises(InputError, match=f"expected to read {address}/x, got HTTP 504") as told:
        open_store(address).read("x")
    assert len(asked) == 4
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("status", "kind"), [(404, FileNotFoundError), (410, FileNotFoundError)])
def test_absence_is_not_asked_again(moody: Callable, status: int, kind: type) -> None:
    address, asked = moody(status)
    with pytest.raises(kind):
        open_store(address).read("x")
    assert len(asked) == 1


def test_a_refusal_is_no_absence_and_not_asked_again(moody: Callable) -> None:
    address, asked = moody(403)
    with pytest.raises(InputError, match="HTTP 403"):
        open_store(address).read("x")
    assert len(asked) == 1


def test_a_query_is_sent_but_not_told(moody: Callable) -> None:
    address, asked = moody(b"whole", 403)
    store = open_store(f"{address}/pairs/?token=secret")
    assert store.read("x") == b"whole"
    assert asked == ["/pairs/x?token=secret"]
    with pytest.raises(InputError) as told:
        store.read("x")
    assert "secret" not in str(told.value)


def test_a_server_that_is_not_there_is_told(serve: Callable, moody: Callable) -> None:
    with pytest.raises(InputError, match=r"expected to read http://127.0.0.1:9/x, got URLError"):
        open_store("http://127.0.0.1:9").read("x")


RECORD = json.dumps({"count": 4, "first_index": 0, "sha256": "", "bytes": 9}).encode()


@pytest.mark.parametrize("first", [[], [RECORD]], ids=["record", "tar"])
def test_a_silent_store_is_no_damaged_shard_to_skip(moody: Callable, first: list[bytes]) -> None:
    address, _ = moody(*first, *[500] * 4, *first, *[500] * 4)
    with pytest.raises(InputError, match="HTTP 500") as raised:
        read_shard(address, 0)
    assert not isinstance(raised.value, DamagedShard)
    order = Order(source=address, shards=2, pairs_per_shard=4, seed=0, streams=1, batch_size=4)
    told = []
    with pytest.raises(InputError, match="HTTP 500"):
        next(batches(order, damaged=lambda shard, description: told.append(shard)))
    assert told == []


# ------------------------------------------------------------------ commands and object stores


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("no-such-command-here {}", "exit code 127"),
        ("echo permission denied >&2; false {}", "exit code 1: permission denied"),
        ("false {}", "exit code 1"),
        ("echo cat: {}: Permission denied >&2; false", "exit code 1: cat: 404: Permission denied"),
        ("echo dial tcp: lookup x: no such host {} >&2; false", "no such host"),
    ],
)
def test_a_command_that_fails_otherwise_is_told(command: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
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
    ("source", "told"),
    [
        ("pipe:cat x", "expected a command with {}"),
        ("s3://bucket/pairs", "s3fs"),
        ("nowhere://bucket/pairs", "nowhere"),
    ],
)
def test_a_source_that_cannot_be_opened_is_told_at_once(source: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        open_store(source)
    assert "\n" not in str(raised.value)


def test_an_object_store_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match=r"expected to read file://.*/x, got IsADirectoryError"):
        open_store(f"file://{tmp_path}").read("x")
