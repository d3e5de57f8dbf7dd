"""Shards: the same bytes from any number of writers, killed or not; nothing half written."""

import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.data_set import open_data_set
from data.manifest import count_shards, read_record, record_path
from data.writer import write_shards
from get.noise import draw

from .problems import Softsign
from .shards import contents, manifest_of

MANIFEST = manifest_of(Softsign())


class Diverging(Softsign):
    """A teacher that fails on one image of the second batch."""

    def __call__(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        images = super().__call__(noise, labels)
        return torch.where(noise == draw(0, [5], self.image_shape)[0], torch.nan, images)


def write(folder: Path, shards: list[int]) -> dict[str, bytes]:
    """Write shards in this order and return what the folder then holds."""
    open_data_set(folder, MANIFEST)
    write_shards(folder, shards, Softsign(), MANIFEST)
    return contents(folder)


def test_shards_do_not_depend_on_order_or_number_of_writers_or_repetition(tmp_path: Path) -> None:
    forward = write(tmp_path / "forward", [0, 1, 2])
    assert write(tmp_path / "shuffled", [2, 0, 1, 0, 2]) == forward
    with ThreadPoolExecutor(6) as pool:  # two writers of every shard at the same time
        jobs = [pool.submit(write, tmp_path / "many", [shard]) for shard in (0, 0, 1, 1, 2, 2)]
    assert all(job.exception() is None for job in jobs)
    assert contents(tmp_path / "many") == forward


def test_a_data_set_grows_and_a_tar_without_a_record_is_no_shard(tmp_path: Path) -> None:
    small = write(tmp_path, [0, 1])
    assert count_shards(tmp_path) == 2
    record_path(tmp_path, 1).unlink()
    assert count_shards(tmp_path) == 1
    assert read_record(tmp_path, 1) is None
    assert write(tmp_path, [1]) == small
    large = write(tmp_path, [2, 3])
    assert count_shards(tmp_path) == 4
    assert {name: large[name] for name in small} == small


def test_images_that_are_not_finite_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    teacher = Diverging(num_classes=None)
    with pytest.raises(ValueError, match=r"expected finite images, .* among indices 4 to 5"):
        write_shards(tmp_path, [0], teacher, manifest_of(teacher))
    assert contents(tmp_path) == {}


def test_progress_is_reported_every_batch_and_may_drop_the_shard(tmp_path: Path) -> None:
    shown = []

    def stop(count: int) -> None:
        shown.append(count)
        if shown == [4, 2, 4]:
            raise KeyboardInterrupt

    write_shards(tmp_path, [0], Softsign(), MANIFEST, stop)
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, [1], Softsign(), MANIFEST, stop)
    assert contents(tmp_path) == before


def write_and_die(folder: Path, event: str, nth: int) -> None:
    """Write shards 0 and 1; kill this process at the nth such event of shard 1."""
    write(folder, [0])

    def hook(name: str, arguments: tuple) -> None:
        nonlocal nth
        if name == event and ".pairs-000001." in str(arguments[0]):
            nth -= 1
            if nth < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)  # Python tells of every file opened and renamed
    write_shards(folder, [1], Softsign(), MANIFEST, lambda _: sys.audit("batch", ".pairs-000001."))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("event", "nth"),
    [("batch", 0), ("batch", 1), ("open", 0), ("os.rename", 0), ("open", 1), ("os.rename", 1)],
    ids=["first batch", "last batch", "tar opened", "tar renamed", "record opened", "published"],
)
def test_a_killed_writer_leaves_no_shard_and_the_next_one_writes_the_same_bytes(
    tmp_path: Path, event: str, nth: int
) -> None:
    fork = multiprocessing.get_context("fork")
    writer = fork.Process(target=write_and_die, args=(tmp_path / "torn", event, nth))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert count_shards(tmp_path / "torn") == 1
    assert read_record(tmp_path / "torn", 1) is None
    again = write(tmp_path / "torn", [1])
    visible = {name: data for name, data in again.items() if not name.startswith(".")}
    assert visible == write(tmp_path / "whole", [0, 1])
