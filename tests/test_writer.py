"""Writers that are killed, meet a full disk or lose their folder; one pure call per shard."""

import multiprocessing
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data import SHIPPED
from data.claims import missing_shards, tidy
from data.data_set import open_data_set
from data.files import hidden_path
from data.manifest import count_shards, read_record
from data.open_shard import OpenShard
from data.pair_settings import PairSettings
from data.writer import generate_shard, write_shards
from get.errors import InputError

from .problems import Softsign
from .shards import contents, manifest_of, write_pairs

ROOT = Path(__file__).parents[1]
SHARDS = 12
MANIFEST = manifest_of(Softsign(), "png", teacher_batch_size=8, pairs_per_shard=20)


class Slow(Softsign):
    """A teacher that takes its time, so that a signal finds it at work."""

    def __call__(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        time.sleep(0.005)
        return super().__call__(noise, labels)


def work(folder: Path, task: int) -> None:
    """What one of three tasks does: write what is missing of its share, then tidy up."""
    torch.set_num_threads(1)
    open_data_set(folder, MANIFEST)
    mine = [i for i in range(task, SHARDS, 3) if read_record(folder, i) is None]
    write_shards(folder, mine, Slow(), MANIFEST)
    tidy(folder)


def test_twenty_kills_over_three_writers_leave_the_bytes_of_an_undisturbed_run(tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for task in range(3):
        work(whole, task)
    fork, chance, kills = multiprocessing.get_context("fork"), random.Random(0), 0
    while kills < 20:
        writers = [fork.Process(target=work, args=(torn, task)) for task in range(3)]
        for process in writers:
            process.start()
        time.sleep(chance.uniform(0.001, 0.12))
        for process in writers:
            if process.is_alive():
                process.kill()
                kills += 1
            process.join()
        if len(list(torn.glob("pairs-*.json"))) == SHARDS:
            for name in contents(torn):  # all done before the last kill: begin again
                (torn / name).unlink()
    for task in range(3):
        work(torn, task)
    assert contents(torn) == contents(whole)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_of_the_command_leave_the_bytes_of_an_undisturbed_run(tmp_path):
    def command(folder: Path, task: int) -> list[str]:
        small = ["--num_pairs", "384", "--pairs_per_shard", "32", "--teacher_batch_size", "32"]
        share = f"--task_index {task} --num_tasks 3 --num_inference_steps 3".split()
        given = ["--output_dir", str(folder), *small, *share]
        return [sys.executable, "-m", "pipeline.make_pairs", "smoke", *given]

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for task in range(3):
        subprocess.run(command(whole, task), check=True, **quiet)
    chance, kills = random.Random(0), 0
    while kills < 20:
        writers = [subprocess.Popen(command(torn, task), **quiet) for task in range(3)]
        while not (torn / "manifest.json").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 6))
        for process in writers:
            if process.poll() is None:
                process.kill()
                kills += 1
            process.wait()
        for path in torn.glob(f"pairs-*{chance.randrange(10)}.json"):
            path.unlink()  # or there would soon be nothing left to write
    for task in range(3):
        subprocess.run(command(torn, task), check=True, **quiet)
    assert contents(torn) == contents(whole)


def test_tidying_removes_leftovers_of_what_exists_and_nothing_else(tmp_path):
    work(tmp_path, 0)
    before = contents(tmp_path)
    for leftover in ("pairs-000000.tar", "pairs-000000.json", "manifest.json"):
        hidden_path(tmp_path / leftover).touch()
    kept = {
        hidden_path(tmp_path / "pairs-000001.tar").name,  # another task is at work on it
        *(".manifest.json.swp.tmp", ".pairs-000000.tar.rsync1.tmp"),  # somebody else's
    }
    for name in kept:
        (tmp_path / name).touch()
    tidy(tmp_path)
    assert contents(tmp_path) == before | dict.fromkeys(kept, b"")


def test_a_shard_that_another_job_wrote_meanwhile_is_not_written_again(tmp_path):
    work(tmp_path, 0)  # shards 0, 3, 6, 9
    missing = missing_shards(tmp_path, range(4))
    assert next(missing) == 1
    write_shards(tmp_path, [2], Softsign(), MANIFEST)
    assert list(missing) == []


def test_encoding_overlaps_the_next_teacher_batch(tmp_path, monkeypatch):
    """The teacher is asked for its third batch before the first one's last pair is encoded."""
    asked, encoded = threading.Semaphore(0), threading.Event()

    class Asked(Softsign):
        def __call__(self, noise: Tensor, labels: Tensor | None) -> Tensor:
            asked.release()
            return super().__call__(noise, labels)

    def slow_encode(*arguments):
        if not encoded.is_set():
            for _ in range(3):
                assert asked.acquire(timeout=30)
            encoded.set()
        return iter(())

    monkeypatch.setattr("data.open_shard.encode", slow_encode)
    write_pairs(tmp_path, 1, teacher=Asked(), teacher_batch_size=8, pairs_per_shard=24)
    assert encoded.is_set()


def test_a_full_disk_ends_with_the_name_of_the_shard_and_leaves_nothing(tmp_path, monkeypatch):
    write_shards(tmp_path, [0], Softsign(), MANIFEST)
    before, write = contents(tmp_path), OpenShard.write

    def full(shard: OpenShard, data: bytes) -> int:
        if shard.bytes + len(data) > 2000 and not shard.dropped:
            raise OSError(28, "No space left on device")
        return write(shard, data)

    monkeypatch.setattr(OpenShard, "write", full)
    with pytest.raises(OSError, match=r"No space left on device.*pairs-000001\.tar"):
        write_shards(tmp_path, [1, 2], Softsign(), MANIFEST)
    assert contents(tmp_path) == before


def test_a_folder_that_vanishes_ends_with_a_sentence(tmp_path):
    class Vanishing(Softsign):
        def __call__(self, noise: Tensor, labels: Tensor | None) -> Tensor:
            shutil.rmtree(tmp_path / "mount", ignore_errors=True)
            return super().__call__(noise, labels)

    with pytest.raises(InputError, match=r"expected the folder .* it has gone since the start"):
        write_pairs(tmp_path / "mount", teacher=Vanishing())


@pytest.mark.parametrize("pack", [1, 8])
def test_generate_shard_is_one_pure_call(tmp_path, pack):
    settings = PairSettings(
        teacher=str(SHIPPED / "digits-teacher"),
        output_dir=tmp_path / "one",
        num_inference_steps=2,
        teacher_batch_size=8,
        pairs_per_shard=16,
        pack=pack,
    )
    record = generate_shard(settings, 2)
    assert (record.first_index, record.count) == (32, 16)
    assert generate_shard(settings, 2) == record  # it is there
    again = replace(settings, output_dir=tmp_path / "two")
    assert [generate_shard(again, i).sha256 for i in (0, 2)][1] == record.sha256
    generate_shard(settings, 0)
    generate_shard(settings, 1)
    assert count_shards(settings.output_dir) == 3
    for shard in (2, 3):  # the first of them is there
        with pytest.raises(InputError, match="seed was 0, is 1"):
            generate_shard(replace(settings, seed=1), shard)
        with pytest.raises(InputError, match="no-such"):
            generate_shard(replace(settings, teacher=str(tmp_path / "no-such")), shard)
    with pytest.raises(InputError, match="numbered from 0, got -1"):
        generate_shard(settings, -1)
    leftover = hidden_path(Path(settings.output_dir) / "pairs-000003.tar")
    leftover.touch()  # of a worker that was killed
    generate_shard(settings, 3)
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"image_format": "jpg"}, "image_format among png, npy, npy32, got jpg"),
        ({"mixed_precision": "fp8"}, "mixed_precision among no, bf16"),
        ({"pack": 3, "teacher_batch_size": 16}, "pack to divide teacher_batch_size 16, got 3"),
        ({"pairs_per_shard": 0}, "pairs_per_shard above 0, got 0"),
        ({"teacher_batch_size": -1}, "teacher_batch_size above 0"),
        ({"seed": 2**64}, r"seed from 0 to 2\^64 - 1"),
        ({"output_dir": 7}, "output_dir as a path or address, got 7"),
        ({"output_dir": "https://host/pairs"}, "a local folder or an object store"),
        ({"output_dir": Path("s3://bucket")}, "a local path for output_dir, got the address"),
    ],
)
def test_settings_of_pairs_that_mean_nothing_are_refused_where_they_are_made(changes, shown):
    settings = PairSettings(teacher="x", output_dir=Path("x"))
    vars(settings).update(changes)  # the plugin that checks types would refuse some before
    with pytest.raises(InputError, match=shown):
        settings.__post_init__()
