"""Shards to batches: the same batches on any number of processes, resumed anywhere."""

import time
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data.reader
import data.shard_memory
from data.manifest import DamagedShard, ImageFormat, record_path, tar_path
from data.pairs import Pairs
from data.reader import batches, read_shard
from data.shard_memory import ShardMemory
from get.errors import InputError

from .problems import Softsign
from .shards import IN_PROCESSES, PAIRS, SHARDS, WORLDS, indices, order, read, same, write_pairs
from .shards import folder as folder

pytestmark = IN_PROCESSES
GOLDEN = [4, 2, 12, 15, 11, 7, 34, 35, 25, 28, 23, 22, 38, 41, 44, 46]  # the first batch of seed 0


def differ(first: list[int], second: list[int]) -> bool:
    """Say whether the shards come in different order, and the pairs of shard 0 too."""
    ours, theirs = (
        [[i // PAIRS for i in part], [i for i in part if i < PAIRS]] for part in (first, second)
    )
    return all(a != b for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("streams", "batch_size"), [(1, 4), (2, 12), (4, 8), (8, 16)])
def test_every_pair_comes_once_an_epoch(folder: Path, streams: int, batch_size: int) -> None:
    steps = SHARDS * PAIRS // batch_size
    found = indices(read(order(folder, streams=streams, batch_size=batch_size), 2 * steps))
    first, second = found[: SHARDS * PAIRS], found[SHARDS * PAIRS :]
    assert sorted(first) == sorted(second) == list(range(SHARDS * PAIRS))
    assert differ(first, second)


@pytest.mark.parametrize("shards", [1, 3, 5, 7])
def test_any_number_of_shards_is_read_alike_by_any_number_of_processes(folder, shards):
    chosen = order(folder, shards=shards)
    expected = read(chosen, 6)
    assert same(read(chosen, 4, processes=4, workers=2, start=2), expected[2:])
    epochs, rest = divmod(8, shards)  # a shard per stream takes three batches
    counts = Counter(indices(expected[:3]))
    assert set(counts.values()) == ({epochs, epochs + 1} if rest else {epochs})
    assert len(counts) == shards * PAIRS


@pytest.mark.parametrize("start", [0, 3, 100])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_workers_and_resuming_do_not_change_a_global_batch(
    folder: Path, processes: int, workers: int, start: int
) -> None:
    chosen = order(folder, batch_size=40)  # 5 of a shard's 6 pairs a stream and step
    expected = read(chosen, start + 3)[start:]  # over the end of an epoch
    assert same(read(chosen, 3, processes=processes, workers=workers, start=start), expected)


@settings(deadline=None, max_examples=25)
@given(world=st.sampled_from(WORLDS), size=st.integers(1, 8), start=st.integers(0, 14))
def test_any_world_resumed_anywhere_gets_every_pair_once_an_epoch_in_the_one_order(
    folder: Path, world: tuple[int, int], size: int, start: int
) -> None:
    chosen = order(folder, batch_size=8 * size)  # a stream's epoch is one shard of 6 pairs
    processes, workers = world
    steps = -(-2 * PAIRS // size)  # two epochs, cut anywhere
    first = min(start, steps)
    alone = read(chosen, steps)
    resumed = read(chosen, steps - first, processes=processes, workers=workers, start=first)
    assert same([*alone[:first], *resumed], alone)
    taken = indices([*alone[:first], *resumed])
    streams = [[taken[i] for i in range(len(taken)) if i // size % 8 == s] for s in range(8)]
    for epoch in (slice(0, PAIRS), slice(PAIRS, 2 * PAIRS)):
        assert sorted(i for stream in streams for i in stream[epoch]) == list(range(SHARDS * PAIRS))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_opens_no_skipped_shard(tmp_path: Path, workers: int) -> None:
    chosen = order(write_pairs(tmp_path), streams=2, batch_size=12)  # a shard a stream and step
    expected = read(chosen, 4)[2:]
    for step in (0, 1):
        for stream in (0, 1):
            ((shard, _),) = chosen.chunk(stream, step)
            tar_path(tmp_path, shard).unlink()
            record_path(tmp_path, shard).unlink()
    assert same(read(chosen, 2, start=2, workers=workers), expected)


@pytest.mark.parametrize("seeds", [(0, 1), (2**64 - 2, 2**64 - 1)])
def test_seeds_give_different_orders_of_shards_and_of_pairs(folder, seeds):
    first, second = (indices(read(order(folder, seed=seed), 3)) for seed in seeds)
    assert sorted(first) == sorted(second)
    assert differ(first, second)


def test_the_order_of_a_seed_is_the_golden_one_so_that_old_runs_resume(folder: Path) -> None:
    assert indices(read(order(folder), 1)) == GOLDEN


def test_reading_draws_nothing_from_the_global_generator(folder: Path) -> None:
    before = torch.get_rng_state()
    read(order(folder), 1, workers=1)
    read(order(folder), 1, workers=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("processes", "workers"), [(16, 0), (12, 2), (4, 3), (3, 0), (3, 5)])
def test_more_readers_than_streams_and_numbers_that_do_not_divide_them_change_no_batch(
    folder: Path, processes: int, workers: int
) -> None:
    chosen = order(folder, batch_size=48)
    expected = read(chosen, 3)
    assert same(read(chosen, 2, processes=processes, workers=workers, start=1), expected[1:])


@pytest.mark.parametrize(("processes", "workers"), [(3, 0), (5, 1), (1, 17), (8, 3)])
def test_processes_that_do_not_divide_the_batch_and_workers_without_work_are_refused(
    folder: Path, processes: int, workers: int
) -> None:
    with pytest.raises(InputError, match="expected a global batch size that"):
        batches(order(folder), processes=processes, workers=workers)  # before the first batch


@pytest.mark.parametrize("num_classes", [None, 10])
@pytest.mark.parametrize(
    ("form", "tolerance"), [("png", 0.5 / 127.5 + 1e-6), ("npy", 2**-11), ("npy32", 0.0)]
)
def test_images_of_every_format_arrive_as_float32_in_the_range(
    tmp_path: Path, form: ImageFormat, tolerance: float, num_classes: int | None
) -> None:
    pairs = write_pairs(tmp_path, 2, form, Softsign(num_classes=num_classes))
    chosen = order(pairs, streams=2, batch_size=12, shards=2)
    batch = next(batches(chosen))
    assert batch.noise.dtype == batch.images.dtype == torch.float32
    assert batch.images.abs().max() <= 1
    exact = Softsign()(batch.noise, batch.labels)
    torch.testing.assert_close(batch.images, exact, rtol=0, atol=tolerance)
    assert (batch.labels is None) == (num_classes is None)


@pytest.mark.parametrize("limit", [1, 2**20])
def test_shards_are_kept_in_memory_up_to_the_limit(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(data.shard_memory, "CACHE_BYTES", limit)
    loader = batches(order(write_pairs(tmp_path, 4), streams=1, batch_size=PAIRS, shards=4))
    first = list(islice(loader, 4))
    for shard in range(4):
        tar_path(tmp_path, shard).unlink()
    if limit > 1:
        second = list(islice(loader, 4))
        assert sorted(indices(second)) == sorted(indices(first))
    else:
        with pytest.raises(InputError, match="FileNotFoundError"):
            list(islice(loader, 4))


def test_decoded_shards_in_memory_do_not_grow_with_the_data_set(tmp_path):
    pairs = write_pairs(tmp_path)
    shards = ShardMemory(partial(read_shard, pairs), lambda number: 100, limit=350)
    for number in range(SHARDS):
        shards.soon = [number, (number + 1) % SHARDS]
        assert len(shards[number]) == PAIRS
        shards.expect((number + n) % SHARDS for n in (1, 2, 3))
        assert len(shards.kept) + len(shards.ahead) <= 3
    shards.close()


@pytest.mark.parametrize("streams", [1, 8])
def test_only_the_first_shards_are_waited_for(tmp_path, monkeypatch, streams):
    """All streams change their shard at once; the next ones have been read by a thread by then."""
    here = []

    def noted(*arguments: Any, **options: Any) -> Pairs:
        here.append(current_thread() is main_thread())
        return read_shard(*arguments, **options)

    monkeypatch.setattr(data.reader, "read_shard", noted)
    chosen = order(write_pairs(tmp_path, 16), shards=16, streams=streams, batch_size=streams)
    loader = batches(chosen)
    for _ in range(2 * PAIRS):
        next(loader)
        time.sleep(0.02)  # training
    assert sum(here) == streams
    assert len(here) > streams


def test_a_shard_that_was_expected_and_is_damaged_is_noticed_where_it_is_used(tmp_path) -> None:
    pairs = write_pairs(tmp_path, 2)
    shards = ShardMemory(partial(read_shard, pairs), lambda number: 100, limit=300)
    assert len(shards[0]) == PAIRS
    tar_path(pairs, 1).unlink()
    shards.expect([1])
    with pytest.raises(DamagedShard):
        shards[1]
    shards.close()
