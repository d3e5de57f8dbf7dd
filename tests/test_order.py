"""The order of the pairs: golden, complete in every epoch, the same whoever reads it."""

import json
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import choose_streams, rows_of
from get.errors import InputError

from .shards import PAIRS, order

ORDERS = st.fixed_dictionaries(
    {
        "shards": st.integers(1, 12),
        "streams": st.integers(1, 12),
        "pairs_per_shard": st.integers(1, 7),
        "seed": st.integers(0, 2**64 - 1),
    }
)
# Shards, pairs per shard, seed, streams, pairs per stream and batch. The first hash is of three
# epochs, the second one too, with three shards damaged.
GOLDEN = {
    (4, 6, 0, 1, 5): ("aa9e54aeace91df4", "c5933a35ea8ab1c3"),
    (8, 6, 0, 8, 2): ("2a07abda060f13fa", "d38f562aa1136c28"),
    (12, 7, 3, 4, 13): ("acfe1a8b668ad592", "914bade36c400544"),
    (24, 7, 2**63 + 5, 8, 5): ("acb5bd001c9eeefe", "afa90d64c50e043d"),
}


@pytest.mark.parametrize(("numbers", "hashes"), GOLDEN.items())
def test_the_order_of_a_seed_is_the_golden_one_so_that_old_runs_resume(numbers, hashes):
    shards, pairs, seed, streams, size = numbers
    chosen = order(
        Path(),
        shards=shards,
        pairs_per_shard=pairs,
        seed=seed,
        streams=streams,
        batch_size=streams * size,
    )
    steps = range(3 * shards * pairs // (streams * size) + 2)
    around = [
        [
            (shard, places.tolist())
            for stream in range(streams)
            for shard, places in chosen.chunk(stream, step, {1, 2, shards - 1})
        ]
        for step in steps
    ]
    whole = [chosen.indices(step) for step in steps]
    found = (sha256(json.dumps(part).encode()).hexdigest()[:16] for part in (whole, around))
    assert tuple(found) == hashes


@settings(deadline=None)
@given(numbers=ORDERS, size=st.integers(1, 20))
def test_every_pair_comes_once_before_any_comes_twice_but_for_what_streams_read_at_one_time(
    numbers: dict[str, int], size: int
) -> None:
    """After every round, in which each stream reads one shard, the counts differ by one at most."""
    shards, streams, pairs = (numbers[k] for k in ("shards", "streams", "pairs_per_shard"))
    chosen = order(Path(), batch_size=streams * size, **numbers)
    rounds = 2 * shards + 1
    read: list[list[tuple[int, int]]] = []
    for stream in range(streams):
        steps = range(-(-rounds * pairs // size))
        chunks = [chosen.chunk(stream, step) for step in steps]
        assert all(sum(len(places) for _, places in chunk) == size for chunk in chunks)
        read.append([(n, int(i)) for chunk in chunks for n, places in chunk for i in places])
    everything = [(shard, i) for shard in range(shards) for i in range(pairs)]
    counts = Counter(dict.fromkeys(everything, 0))
    for turn in range(rounds):
        for taken in read:
            counts.update(taken[turn * pairs : (turn + 1) * pairs])
        assert set(counts) == set(everything)
        epochs, rest = divmod((turn + 1) * streams, shards)
        assert set(counts.values()) == ({epochs, epochs + 1} if rest else {epochs})


@settings(deadline=None)
@given(numbers=ORDERS, size=st.integers(1, 4), chunks=st.integers(1, 4))
def test_no_batch_has_a_pair_twice_where_there_are_enough(numbers, size, chunks):
    shards, streams = numbers["shards"], numbers["streams"]
    readings = (streams - 2) // shards + 2  # of one shard by all streams at one time, at most
    pairs = size * chunks * max(readings, 1)
    chosen = order(Path(), batch_size=streams * size, **numbers | {"pairs_per_shard": pairs})
    for step in range(2 * shards * pairs // size):
        taken = chosen.indices(step)
        assert len(set(taken)) == len(taken)


@settings(deadline=None)
@given(
    damaged=st.sets(st.integers(0, 11), max_size=11),
    streams=st.sampled_from([1, 2, 3, 4, 6, 12]),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_damaged_shard_is_replaced_inside_its_stream_where_that_can_be(damaged, streams, seed):
    chosen = order(Path(), shards=12, seed=seed, streams=streams, batch_size=streams)
    steps = range(12 // streams * PAIRS)  # an epoch, a pair a step
    for stream in range(streams):
        whole = [chosen.chunk(stream, step)[0] for step in steps]
        around = [chosen.chunk(stream, step, damaged)[0] for step in steps]
        own = [shard for shard, _ in whole[::PAIRS]]
        for (shard, places), (other, same_places) in zip(whole, around, strict=True):
            assert int(places[0]) == int(same_places[0])
            assert other not in damaged
            at = own.index(shard)
            readable = [n for n in own[at:] + own[:at] if n not in damaged]
            assert other == readable[0] if readable else other not in own


@settings(deadline=None)
@given(numbers=ORDERS, damaged=st.sets(st.integers(0, 11)))
def test_damaged_shards_are_replaced_by_readable_ones_whatever_the_numbers(numbers, damaged):
    shards, streams = numbers["shards"], numbers["streams"]
    chosen = order(Path(), batch_size=streams, **numbers)
    readable = set(range(shards)) - damaged
    for step in range(2 * shards * numbers["pairs_per_shard"]):
        for stream in range(streams):
            (shard, places), (other, same_places) = (
                chosen.chunk(stream, step, without)[0] for without in (set[int](), damaged)
            )
            assert places.tolist() == same_places.tolist()
            assert other == shard if shard not in damaged or not readable else other in readable


@settings(deadline=None)
@given(streams=st.integers(1, 30), size=st.integers(1, 60), rows=st.data())
def test_streams_that_give_some_rows_are_counted_without_looking_at_every_step(streams, size, rows):
    chosen = order(Path(), streams=streams, batch_size=size)
    first = rows.draw(st.integers(0, size - 1))
    part = range(first, rows.draw(st.integers(first + 1, size)))
    counts = [len([*chosen.spans(step, part)]) for step in range(streams)]
    assert chosen.at_once(part) == max(counts)


def test_a_strange_number_of_streams_is_no_reason_to_hang():
    assert order(Path(), streams=10**6, batch_size=16).at_once(range(4)) == 4
    assert order(Path(), streams=4095, batch_size=4096).at_once(range(4096)) == 4095


ONE_STREAM = {"streams": 1, "batch_size": 4}
REFUSED: dict[str, Callable[[], object]] = {
    "training shards in x, got none": lambda: order("x", shards=0, **ONE_STREAM),
    "x, got none beside those that are held out": lambda: order("x", shards=-2, **ONE_STREAM),
    "that 3 processes divide, of 1 pairs or more each, .* got 8": lambda: rows_of(8, 0, 3),
    "that 4 processes divide, of 3 pairs or more each, .* got 8": lambda: rows_of(8, 0, 4, 3),
}


@pytest.mark.parametrize(("shown", "make"), REFUSED.items())
def test_numbers_that_do_not_fit_are_refused_with_those_that_do(shown, make):
    with pytest.raises(InputError, match=shown):
        make()


@pytest.mark.parametrize(
    ("shards", "batch_size", "readers", "streams"),
    [
        (8, 16, 1, 8),  # 8 wherever that was possible before it was chosen
        (2928, 512, 8, 8),
        (97, 512, 1, 8),  # does not divide the shards
        (5, 64, 1, 4),
        (5, 60, 1, 5),
        (1, 64, 1, 1),
        (97, 60, 1, 6),
        (97, 60, 4, 4),
        (5, 64, 8, 8),  # more processes than shards
        (97, 512, 32, 32),
        (97, 128, 24, 8),  # readers that do not divide the batch share streams
        (3, 7, 1, 1),
        (0, 16, 2, 2),  # refused by Order
    ],
)
def test_the_number_of_streams_fits_batch_shards_and_readers(shards, batch_size, readers, streams):
    assert choose_streams(shards, batch_size, readers) == streams
