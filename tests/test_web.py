"""Data sets on web servers: what is asked again, what is absent, what is an error."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256

import pytest

import data.remote
from data.manifest import DamagedShard, count_shards, read_record
from data.reader import batches, read_shard
from data.store import open_store
from get.errors import InputError

from .problems import Softsign
from .shards import Quiet, manifest_of, order, serving


class Moody(Quiet):
    """Answers from a list, one entry a request: a status, or bytes (cut ones too)."""

    answers: list
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


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[str, list[str]]]]:
    """Return a function that starts a server with these answers; its address, what is asked."""
    monkeypatch.setattr(data.remote, "DELAYS", (0.01, 0.01, 0.01))

    def start(*answers: int | bytes | tuple[int, bytes]) -> tuple[str, list[str]]:
        asked: list[str] = []
        handler = type("Handler", (Moody,), {"answers": list(answers), "asked": asked})
        return servers.enter_context(serving(handler)), asked

    with ExitStack() as servers:
        yield start


def test_what_passes_is_asked_again(moody: Callable) -> None:
    address, asked = moody(503, (9, b"cut"), 429, b"whole")
    assert open_store(address).read("x") == b"whole"
    assert len(asked) == 4


def test_what_does_not_pass_is_reported_in_one_line(moody: Callable) -> None:
    address, asked = moody(500, 502, 503, 504)
    with pytest.raises(InputError, match=f"expected to read {address}/x, got HTTP 504") as raised:
        open_store(address).read("x")
    assert len(asked) == 4
    assert "\n" not in str(raised.value)


NEVER = [(404, FileNotFoundError), (410, FileNotFoundError), (401, InputError)]


@pytest.mark.parametrize(("status", "kind"), NEVER)
def test_absence_and_refusal_are_not_asked_again(moody: Callable, status: int, kind: type) -> None:
    address, asked = moody(status)
    with pytest.raises(kind, match=f"HTTP {status}"):
        open_store(address).read("x")
    assert len(asked) == 1


def test_a_file_that_the_server_cut_short_is_asked_for_again(moody: Callable) -> None:
    whole = b"whole"
    address, asked = moody(b"who", whole)
    assert open_store(address).read_whole("x", 5, sha256(whole).hexdigest()) == whole
    assert len(asked) == 2


def test_403_is_absence_where_the_manifest_can_be_read(moody: Callable) -> None:
    """As public buckets answer that let nobody list their files."""
    absent = 403, MANIFEST
    address, _ = moody(*absent, RECORD, *5 * absent)
    assert read_record(address, 1) is None
    assert count_shards(address) == 1
    address, _ = moody(403, 403)
    with pytest.raises(InputError, match="HTTP 403"):
        read_record(address, 1)


def test_the_scheme_of_an_address_may_be_in_capitals(moody: Callable) -> None:
    address, _ = moody(b"whole")
    assert open_store(address.replace("http", "HTTP")).read("x") == b"whole"


@pytest.mark.parametrize("folder", ["my pairs/ünï", "my%20pairs/%C3%BCn%C3%AF"])
def test_an_address_with_spaces_is_asked_for_as_a_browser_does(moody: Callable, folder) -> None:
    address, asked = moody(b"whole")
    assert open_store(f"{address}/{folder}/").read("x") == b"whole"
    assert asked == ["/my%20pairs/%C3%BCn%C3%AF/x"]


def test_a_query_is_sent_but_not_shown(moody: Callable) -> None:
    address, asked = moody(b"whole", 403)
    store = open_store(f"{address}/pairs/?token=secret")
    assert store.read("x") == b"whole"
    assert asked == ["/pairs/x?token=secret"]
    with pytest.raises(InputError) as raised:
        store.read("x")
    assert "secret" not in str(raised.value)


def test_a_server_that_is_not_there_is_reported(moody: Callable) -> None:
    with pytest.raises(InputError, match=r"expected to read http://127.0.0.1:9/x, got URLError"):
        open_store("http://127.0.0.1:9").read("x")


MANIFEST = json.dumps(manifest_of(Softsign(), pairs_per_shard=4).as_json()).encode()
RECORD = json.dumps({"count": 4, "first_index": 0, "sha256": "", "bytes": 9}).encode()


@pytest.mark.parametrize("first", [[], [RECORD]], ids=["record", "tar"])
def test_a_silent_store_is_no_damaged_shard_to_skip(moody: Callable, first: list[bytes]) -> None:
    asked = MANIFEST, *first, *[500] * 4
    address, _ = moody(*asked, *asked)
    with pytest.raises(InputError, match="HTTP 500") as raised:
        read_shard(address, 0)
    assert not isinstance(raised.value, DamagedShard)
    few = order(address, shards=2, pairs_per_shard=4, streams=1, batch_size=4)
    shown = []
    with pytest.raises(InputError, match="HTTP 500"):
        next(batches(few, damaged=lambda shard, description: shown.append(shard)))
    assert shown == []
