"""Several data sets in one training, and batches that mix many shards: exact, resumed anywhere."""

import json
import multiprocessing
import shutil
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data.reader
from data.manifest import read_manifest
from data.mixture import Mixture, divide
from data.pairs import Pairs
from data.reader import batches, read_shard
from data.shard_memory import decoded_bytes
from get.errors import InputError

from .problems import Softsign
from .processes import Script, completed
from .runs import assert_same, checkpoints, writing
from .shards import IN_PROCESSES, SHARDS, order, read, same, write_pairs
from .shards import folder as folder
from .test_loader_workers import alive

pytestmark = IN_PROCESSES


# ---------------------------------------------------------------- many shards in a batch


@settings(deadline=None)
@given(
    numbers=st.fixed_dictionaries(
        {
            "shards": st.integers(1, 12),
            "streams": st.integers(1, 24),
            "pairs_per_shard": st.integers(1, 7),
            "batch_size": st.integers(1, 30),
        }
    ),
    stagger=st.booleans(),
    cut=st.integers(0, 30),
)
def test_a_batch_is_full_whatever_the_numbers_and_its_rows_can_be_cut_anywhere(
    numbers, stagger, cut
):
    chosen = order(Path(), stagger=stagger, **numbers)
    size = chosen.batch_size
    for step in (0, 1, 2, 10**6):
        whole = chosen.indices(step)
        assert len(whole) == size
        cuts = [range(min(cut, size)), range(min(cut, size), size)]
        pieces = [piece for rows in cuts for piece in chosen.part(step, rows)]
        assert [n * chosen.pairs_per_shard + int(i) for n, at in pieces for i in at] == whole
        chunks = [x for stream in range(chosen.streams) for x in chosen.chunk(stream, step)]
        assert [n * chosen.pairs_per_shard + int(i) for n, at in chunks for i in at] == whole


def test_streams_that_change_in_turn_read_every_shard_whole_but_part_of_their_first():
    pairs, streams = 12, 6
    chosen = order(
        Path(), shards=6, pairs_per_shard=pairs, streams=streams, batch_size=6, stagger=True
    )
    for stream in range(streams):
        first = pairs - stream * pairs // streams  # what is left of the first shard
        taken = [chosen.chunk(stream, step)[0] for step in range(first + 3 * pairs)]
        for begin in range(first, first + 3 * pairs, pairs):
            turn = taken[begin : begin + pairs]
            assert len({shard for shard, _ in turn}) == 1
            assert sorted(int(at[0]) for _, at in turn) == list(range(pairs))


def test_fine_batches_mix_more_shards_and_change_them_one_by_one(folder: Path) -> None:
    many = {"shards": 640, "pairs_per_shard": 64}
    coarse = order(folder, batch_size=64, **many)
    fine = order(folder, batch_size=64, streams=64, stagger=True, **many)
    shards = [{n for n, _ in one.part(9, range(64))} for one in (coarse, fine)]
    assert [len(x) for x in shards] == [8, 64]
    after = [{n for n, _ in fine.part(step, range(64))} for step in range(100)]
    assert {len(now - before) for before, now in pairwise(after)} == {1}


def test_fine_batches_are_the_same_for_any_number_of_processes_and_resumed_anywhere(folder):
    fine = order(folder, batch_size=16, streams=16, stagger=True)
    expected = read(fine, 8)
    assert same(read(fine, 4, start=4), expected[4:])
    assert same(read(fine, 4, start=4, processes=4), expected[4:])
    assert same(read(fine, 2, start=4, processes=2, workers=3), expected[4:6])


# ---------------------------------------------------------------- memory


def test_the_least_memory_gives_the_same_batches_and_less_is_refused_in_one_line(
    folder: Path,
) -> None:
    size = decoded_bytes(read_manifest(folder))
    chosen = order(folder, batch_size=40)  # ends inside of shards
    expected = read(chosen, 8)
    assert same(read(chosen, 8, limit=8 * size), expected)
    assert same(read(chosen, 2, limit=8 * size, workers=4, start=3), expected[3:5])
    with pytest.raises(InputError, match="expected shard_memory for the 8 shards") as error:
        read(chosen, 1, limit=8 * size - 1)
    assert "\n" not in str(error.value)


def test_the_least_memory_reads_no_shard_twice_in_a_turn(folder, monkeypatch):
    size, asked = decoded_bytes(read_manifest(folder)), Counter()

    def noted(*arguments: Any, **options: Any) -> Pairs:
        asked.update([arguments[1]])
        return read_shard(*arguments, **options)

    monkeypatch.setattr(data.reader, "read_shard", noted)
    # Each of two streams takes 20 shards; a step needs two, and the end of one and the beginning of
    # the next come in one step.
    read(order(folder, streams=2, batch_size=10), 24, limit=2 * size)
    assert 20 < sum(asked.values()) <= 40


@pytest.mark.parametrize("workers", [1, 2])
def test_the_workers_of_an_iterator_that_is_closed_or_dropped_end(folder, workers):
    before = set(multiprocessing.active_children())
    for end in ("closed", "dropped"):
        loader = batches(order(folder), workers=workers)
        next(loader)
        started = set(multiprocessing.active_children()) - before
        assert len(started) == workers
        if end == "closed":
            loader.close()  # pyrefly: ignore[missing-attribute]
        del loader
        deadline = time.monotonic() + 20
        while any(alive(process.pid or 0) for process in started):
            assert time.monotonic() < deadline
            time.sleep(0.02)


# ---------------------------------------------------------------- several data sets


def test_a_batch_is_divided_by_weights_to_whole_pairs():
    assert divide(128, [3.0, 1.0]) == [96, 32]
    assert divide(128, [1.0, 1.0, 1.0]) == [43, 43, 42]
    assert divide(10, [0.1, 0.9]) == [1, 9]
    assert divide(7, [5.0]) == [7]
    for weights in ([1.0, 0.0], [1.0, -1.0], [1.0, float("inf")], [float("nan")], [1e3, 1.0]):
        with pytest.raises(InputError, match="expected weights that give every data set a pair"):
            divide(32, weights)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of another seed, in shards of another length and format."""
    folder = tmp_path_factory.mktemp("the other pairs")
    return write_pairs(folder, 4, "npy", pairs_per_shard=4, seed=5)


def mixture(folder: Path, other: Path, parts: tuple[int, int]) -> Mixture:
    first = order(folder, batch_size=parts[0], streams=4)
    second = order(other, batch_size=parts[1], streams=3, shards=4, pairs_per_shard=4, seed=1)
    return Mixture((first, second), 8)


@pytest.mark.parametrize("parts", [(12, 4), (11, 5)])
def test_every_data_set_comes_in_its_own_order_on_any_number_of_processes(folder, other, parts):
    mixed = mixture(folder, other, parts)
    expected = read(mixed, 5)
    alone = [read(part, 5) for part in mixed.orders]
    for batch, first, second in zip(expected, *alone, strict=True):
        assert torch.equal(batch.noise, torch.cat([first.noise, second.noise]))
        assert torch.equal(batch.images, torch.cat([first.images, second.images]))
    for processes, workers in ((2, 0), (16, 0), (2, 3), (1, 2)):
        assert same(read(mixed, 2, processes=processes, workers=workers, start=3), expected[3:])


def test_a_damaged_shard_of_the_second_data_set_is_skipped_there(folder, tmp_path):
    torn = write_pairs(tmp_path, 4, pairs_per_shard=4, seed=5)
    (torn / "pairs-000002.tar").write_bytes(b"")
    mixed, found = mixture(folder, torn, (12, 4)), []
    made = read(mixed, 6, damaged=lambda number, text: found.append((number, text)))
    assert [number for number, _ in found] == [SHARDS + 2]
    assert "pairs-000002.tar" in found[0][1]
    own = read(mixed.orders[1], 6, damaged=lambda number, text: None)
    assert all(torch.equal(a.noise[12:], b.noise) for a, b in zip(made, own, strict=True))


def test_two_data_sets_train_resume_with_the_same_bits_and_are_recorded(
    train: Script, tmp_path: Path
) -> None:
    one = write_pairs(tmp_path / "one", 5, "png")
    two = write_pairs(tmp_path / "two", 3, "png", seed=9)
    given = "--pairs", one, two, "--pairs_weights", 3, 1, "--shuffle", "fine"
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    completed(train(undisturbed, *given))
    train(run, *given, at=writing(8))
    assert checkpoints(run) == [4]
    completed(train(run, *given))
    assert_same(run, undisturbed)
    written = json.loads((run / "run.json").read_text())["config"]
    assert [written["data"][n]["seed"] for n in "12"] == [0, 9]
    assert [written["data"][n]["batch"] for n in "12"] == [12, 4]
    assert written["shuffle"] == "fine"
    refused = train(run, *given, "--pairs_weights", 1, 1)
    assert refused.code == 2
    assert "pairs_weights was [3.0, 1.0], is [1.0, 1.0]" in refused.err
    shutil.copytree(one, tmp_path / "copy")
    refused = train(tmp_path / "new", "--pairs", one, two, tmp_path / "copy")
    assert refused.code == 2
    assert f"got {one} and {tmp_path / 'copy'}, whose first shards are the same" in refused.err
    labelled = write_pairs(tmp_path / "labelled", 2, "png", Softsign(num_classes=4))
    refused = train(tmp_path / "new", "--pairs", one, labelled)
    assert refused.code == 2
    assert "(images 1x4x4, 10 classes), got images 1x4x4, 4 classes" in refused.err
