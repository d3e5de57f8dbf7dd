"""Whoever has created a file works alone; the dead are replaced, whatever the file system lacks."""

import errno
import multiprocessing
import os
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from multiprocessing.queues import Queue
from pathlib import Path
from resource import RLIMIT_FSIZE, setrlimit

import pytest
from torch import Tensor

import data.open_shard
from data.claims import tidy
from data.data_set import open_data_set
from data.files import sync
from data.lock import locked, read_owner, take
from data.manifest import count_shards, read_record, tar_path
from data.writer import write_shards

from .problems import Softsign
from .shards import contents, manifest_of, write_pairs

MANIFEST = manifest_of(Softsign())


class Inexact(Softsign):
    """A teacher whose images differ from one object to the next, as on other hardware."""

    def __call__(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        return super().__call__(noise, labels) * (1 + id(self) % 1000 * 1e-4)


def test_of_two_writers_whose_bytes_differ_one_publishes_both_tar_and_record(tmp_path, monkeypatch):
    def slow_sync(path: Path) -> None:  # between the tar's name and its record
        time.sleep(0.005)
        sync(path)

    monkeypatch.setattr(data.open_shard, "sync", slow_sync)
    teachers = [Inexact() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(write_shards, tmp_path, range(12), t, MANIFEST) for t in teachers]
    records = [job.result() for job in jobs]
    for shard in range(12):
        record = read_record(tmp_path, shard)
        assert record is not None
        assert record.sha256 == sha256(tar_path(tmp_path, shard).read_bytes()).hexdigest()
        assert all(written[shard] == record for written in records)
    tidy(tmp_path)
    assert not [name for name in contents(tmp_path) if name.startswith(".")]


def test_only_one_of_many_has_a_file_at_any_time(tmp_path: Path) -> None:
    inside, seen = [], []

    def work(_: int) -> None:
        with locked(tmp_path / "lock"):
            inside.append(1)
            time.sleep(0.001)
            seen.append(len(inside))
            inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert seen == [1] * 24
    assert list(tmp_path.iterdir()) == []


def hold(path: Path) -> None:
    assert take(path, age=1e9)
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_file_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    owner = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "lock",))
    owner.start()
    owner.join()
    assert (tmp_path / "lock").exists()
    assert take(tmp_path / "lock", age=1e9)


def test_the_file_of_another_machine_is_taken_over_when_it_is_old(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("1 another-machine")
    assert not take(lock, age=60.0)
    os.utime(lock, (time.time() - 61,) * 2)
    owner = read_owner(lock)
    assert owner is not None
    assert owner.is_gone(60.0, time.time())
    assert take(lock, age=60.0)
    assert not take(lock, age=60.0)  # now it is ours
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_of_whoever_was_killed_before_it_wrote_its_name_a_file_is_taken_over_soon(tmp_path):
    path = tmp_path / ".lock"
    path.touch()
    assert not take(path, 60.0)  # its creator may be about to write
    os.utime(path, (time.time() - 6,) * 2)
    assert take(path, 60.0)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_data_set_is_written_where_there_are_no_hard_links(tmp_path, monkeypatch, number):
    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    assert count_shards(write_pairs(tmp_path, 2)) == 2


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_data_set_is_written_where_folders_cannot_be_synced(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    assert count_shards(write_pairs(tmp_path, 2)) == 2


def open_where_files_are_short(folder: Path, names: Queue) -> None:
    """Open a data set where files may have 100 bytes; report the one that cannot be written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    setrlimit(RLIMIT_FSIZE, (100, 100))
    try:
        open_data_set(folder, MANIFEST)
    except OSError as error:
        names.put(error.filename)


def test_a_manifest_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    forks = multiprocessing.get_context("fork")
    names = forks.Queue()
    process = forks.Process(target=open_where_files_are_short, args=(tmp_path, names))
    process.start()
    assert names.get(timeout=60) == str(tmp_path / "manifest.json")
    process.join()
    assert list(tmp_path.iterdir()) == []
