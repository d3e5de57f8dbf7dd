"""The cache of a remote data set: whole or not there, whoever fills it."""

import json
import multiprocessing
import os
import resource
import shlex
import signal
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from data.manifest import count_shards, record_path, tar_path
from data.reader import read_shard
from data.store import Cached, open_store
from get.errors import InputError

from .shards import IN_PROCESSES, PAIRS, SHARDS, Quiet, order, read, same, serving
from .shards import folder as folder

pytestmark = IN_PROCESSES


def kept(cache: Path, pattern: str = "*") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in cache.rglob(pattern) if p.is_file()}


def test_a_cached_shard_is_fetched_once(folder: Path, tmp_path: Path) -> None:
    asked = []

    class Counting(Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    with serving(partial(Counting, directory=folder)) as address:
        for _ in range(2):
            assert same(read(order(open_store(address, tmp_path)), 5), read(order(folder), 5))
    fetched = [path for path in asked if path.endswith(".tar")]
    assert len(fetched) == len(set(fetched)) == len(kept(tmp_path))
    assert kept(tmp_path).items() <= kept(folder, "*.tar").items()


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_a_kept_file_that_was_damaged_is_fetched_again(folder, tmp_path, damage):
    store = open_store(folder, tmp_path)
    before = read_shard(store, 0)
    (path,) = (p for p in tmp_path.rglob("*.tar"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x" if damage is None else damage)
    assert torch.equal(read_shard(store, 0).noise, before.noise)
    assert path.read_bytes() == whole


def test_a_gap_in_a_local_folder_is_seen_through_a_cache(folder: Path, tmp_path: Path) -> None:
    store = open_store(folder, tmp_path / "cache")
    assert count_shards(store) == SHARDS
    torn = tmp_path / "torn"
    torn.mkdir()
    for shard in (0, 2):
        record_path(torn, shard).symlink_to(record_path(folder, shard))
    with pytest.raises(InputError, match="expected shard 1 in"):
        count_shards(open_store(torn, tmp_path / "cache"))


def test_a_damaged_shard_is_not_kept(folder: Path, tmp_path: Path) -> None:
    torn, cache = tmp_path / "torn", tmp_path / "cache"
    torn.mkdir()
    (torn / "manifest.json").symlink_to(folder / "manifest.json")
    for path in (tar_path, record_path):
        path(torn, 0).write_bytes(path(folder, 0).read_bytes())
    whole = tar_path(torn, 0).read_bytes()
    tar_path(torn, 0).write_bytes(b"x" + whole[1:])
    with pytest.raises(InputError, match="another sha256"):
        read_shard(open_store(torn, cache), 0)
    assert kept(cache) == {}


def test_data_sets_do_not_share_what_is_kept(folder: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for place in (one, other):
        place.mkdir()
        (place / "manifest.json").write_text("{}")
    stores = [open_store(place, tmp_path / "cache") for place in (one, other)]
    (one / "manifest.json").write_text("{ }")  # made anew in the same place
    stores.append(open_store(one, tmp_path / "cache"))
    folders = [store.folder for store in stores if isinstance(store, Cached)]
    assert len(set(folders)) == 3


def test_a_cache_that_cannot_be_written_is_reported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"expected to write the cache .*Not a directory"):
        read_shard(open_store(folder, tmp_path / "file"), 0)


def fill(folder: Path, cache: Path, barrier: object) -> None:
    """Read every shard through the cache, in step with another process."""
    store = open_store(f"pipe:cat {shlex.quote(str(folder))}/{{}}", cache)
    for shard in range(SHARDS):
        barrier.wait()  # pyrefly: ignore[missing-attribute]
        assert len(read_shard(store, shard).noise) == PAIRS


def test_two_processes_fill_one_cache_at_once(folder: Path, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    workers = [fork.Process(target=fill, args=(folder, tmp_path, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert kept(tmp_path) == kept(folder, "*.tar")  # and no temporary file


def fetch_and_die(folder: Path, cache: Path, half: bool) -> None:
    if half:  # the kernel kills whoever writes more than this into a file
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    def hook(name: str, arguments: tuple) -> None:
        if name == "os.rename" and ".tmp" in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    read_shard(open_store(folder, cache), 0)


@pytest.mark.parametrize(("half", "death"), [(True, signal.SIGXFSZ), (False, signal.SIGKILL)])
def test_a_killed_download_leaves_nothing_that_is_taken_for_whole(folder, tmp_path, half, death):
    fork = multiprocessing.get_context("fork")
    reader = fork.Process(target=fetch_and_die, args=(folder, tmp_path, half))
    reader.start()
    reader.join()
    assert reader.exitcode == -death
    left = [len(data) for data in kept(tmp_path).values()]
    assert left == [5000 if half else tar_path(folder, 0).stat().st_size]
    assert not list(tmp_path.rglob("*.tar"))
    assert len(read_shard(open_store(folder, tmp_path), 0).noise) == PAIRS
    whole = tar_path(folder, 0).read_bytes()
    (path,) = tmp_path.rglob("*.tar")
    assert path.read_bytes() == whole
    assert sha256(whole).hexdigest() == json.loads(record_path(folder, 0).read_text())["sha256"]
