"""Damage is reported with the shard's name; where it may be skipped, order stays a function."""

import json
import tarfile
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from hashlib import sha256
from itertools import count
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.manifest import DamagedShard, read_manifest, read_record, record_path, tar_path
from data.order import Order
from data.pairs import Pairs
from data.reader import batches, read_shard
from data.verify import find_damage
from get.errors import InputError

from .shards import IN_PROCESSES, PAIRS, SHARDS, WORLDS, order, read, same, write_pairs
from .shards import folder as folder

pytestmark = IN_PROCESSES


Place = Callable[[list[tarfile.TarInfo]], int]
# Three members a pair (cls, image.npy, latent.npy): member 6 begins the third pair.
CUTS: dict[str, Place] = {
    "inside data": lambda members: members[7].offset_data + 100,
    "inside a header": lambda members: members[7].offset + 100,
    "between members": lambda members: members[7].offset,
    "between samples": lambda members: members[6].offset,
    "at the start": lambda members: 0,
}


def refused(tmp_path: Path, torn: bytes, fitting: bool = False) -> None:
    """Check that reading and verifying name a shard of these bytes, even if its record fits."""
    tar_path(tmp_path, 1).write_bytes(torn)
    if fitting:
        record = read_record(tmp_path, 1)
        assert record is not None
        record = replace(record, sha256=sha256(torn).hexdigest(), bytes=len(torn))
        record_path(tmp_path, 1).write_text(json.dumps(asdict(record)))
    with pytest.raises(DamagedShard, match=r"expected 6 pairs .*pairs-000001\.tar, got"):
        read_shard(tmp_path, 1)
    whole, other = (find_damage(tmp_path, n, read_manifest(tmp_path)) for n in (0, 1))
    assert whole is None
    assert other is not None


@pytest.mark.parametrize("fitting", [False, True], ids=["", "fitting record"])
@pytest.mark.parametrize("filled", [False, True], ids=["shorter", "zeros to the old size"])
@pytest.mark.parametrize("place", CUTS.values(), ids=CUTS)
def test_a_cut_shard_is_named(tmp_path: Path, place: Place, filled: bool, fitting: bool) -> None:
    with tarfile.open(tar_path(write_pairs(tmp_path, 2), 1)) as tar:
        at = place(tar.getmembers())
    whole = tar_path(tmp_path, 1).read_bytes()
    refused(tmp_path, whole[:at].ljust(len(whole) if filled else at, b"\0"), fitting)


def test_a_shard_with_a_flipped_bit_anywhere_is_named(tmp_path: Path) -> None:
    whole = tar_path(write_pairs(tmp_path, 2), 1).read_bytes()
    for at in (*range(0, len(whole), 509), len(whole) - 1):
        refused(tmp_path, whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])


@pytest.mark.parametrize("fitting", [False, True], ids=["", "fitting record"])
def test_a_shard_with_a_bad_header_anywhere_is_named(tmp_path: Path, fitting: bool) -> None:
    with tarfile.open(tar_path(write_pairs(tmp_path, 2), 1)) as tar:
        starts = [member.offset for member in tar.getmembers()]
    whole = tar_path(tmp_path, 1).read_bytes()
    assert len(starts) == 3 * PAIRS
    for at in starts:
        torn = whole[:at] + b"X" + whole[at + 1 :]  # its checksum no longer fits
        refused(tmp_path, torn, fitting)


@pytest.mark.parametrize("missing", ["cls", "image.npy", "latent.npy"])
def test_a_shard_that_lacks_a_member_is_named_even_if_its_record_fits(tmp_path, missing):
    whole, path = write_pairs(tmp_path, 2), tmp_path / "less.tar"
    with tarfile.open(tar_path(whole, 1)) as old, tarfile.open(path, "w") as new:
        for member in old.getmembers():
            if member.name != f"000000008.{missing}":
                new.addfile(member, old.extractfile(member))
    refused(tmp_path, path.read_bytes(), fitting=True)


def test_a_shard_of_another_size_is_named_even_if_all_its_pairs_are_there(tmp_path: Path) -> None:
    refused(tmp_path, tar_path(write_pairs(tmp_path, 2), 1).read_bytes() + bytes(512))


@pytest.mark.parametrize("missing", [tar_path, record_path])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_tar_or_record_is_reported_in_one_line(tmp_path, missing, workers):
    missing(write_pairs(tmp_path, 2), 1).unlink()
    shown = refusal(order(tmp_path, streams=1, batch_size=2 * PAIRS, shards=2), workers)
    assert "pairs-000001.tar, got FileNotFoundError" in shown
    assert "\n" not in shown


def refusal(order: Order, workers: int) -> str:
    """Return the message; pytest.raises would keep the loader alive in a reference cycle."""
    try:
        next(batches(order, workers=workers))
    except InputError as error:
        return str(error)
    return "nothing"


def test_a_shard_of_another_length_than_the_manifest_says_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"expected 5 pairs in .*pairs-00000\d\.tar, got 6"):
        next(batches(replace(order(folder), pairs_per_shard=PAIRS - 1)))


numbers = count()


def without(folder: Path, damaged: Collection[int]) -> Path:
    """Return a data set whose damaged shards are missing (even) or cut (odd)."""
    torn = folder / f"torn-{next(numbers)}"
    torn.mkdir()
    (torn / "manifest.json").symlink_to(folder / "manifest.json")
    for shard in range(SHARDS):
        for path in (tar_path, record_path):
            if shard not in damaged:
                path(torn, shard).symlink_to(path(folder, shard))
            elif shard % 2:
                path(torn, shard).write_bytes(path(folder, shard).read_bytes()[:5000])
    return torn


@settings(deadline=None, max_examples=25)
@given(
    world=st.sampled_from(WORLDS[:4]),
    damaged=st.sets(st.integers(0, SHARDS - 1), min_size=1, max_size=SHARDS - 1),
    streams=st.sampled_from([2, 4, 8]),
    shards=st.sampled_from([5, SHARDS]),
    start=st.integers(0, 6),
)
def test_around_damaged_shards_a_batch_depends_on_their_set_alone(
    folder: Path, world: tuple[int, int], damaged: set[int], streams: int, shards: int, start: int
) -> None:
    assume(not damaged.issuperset(range(shards)))
    processes, workers = world
    processes, workers = min(processes, streams), min(workers, 1)
    shown: dict[int, str] = {}

    def note(shard: int, description: str) -> None:
        shown[shard] = description

    torn = order(without(folder, damaged), streams=streams, shards=shards)
    found = read(torn, 4, processes=processes, workers=workers, start=start, damaged=note)
    expected = []
    for step in range(start, start + 4):
        chunks = [torn.chunk(stream, step, damaged) for stream in range(streams)]
        pieces = [piece for chunk in chunks for piece in chunk]
        parts = [read_shard(folder, n).take(places) for n, places in pieces]
        expected.append(Pairs.cat(parts).as_floats())
    assert same(found, expected)
    assert shown.keys() <= damaged
    assert all(f"pairs-{shard:06d}.tar" in shown[shard] for shard in shown)


def test_each_damaged_shard_is_reported_once_per_process(folder: Path) -> None:
    shown = []
    torn = order(without(folder, {1, 2, 5}), batch_size=8)
    read(torn, 3 * PAIRS, workers=2, damaged=lambda shard, _: shown.append(shard))
    assert sorted(shown) == [1, 2, 5]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_to_skip_to_stops_all_the_same(folder: Path, workers: int) -> None:
    torn = order(without(folder, range(SHARDS)))
    with pytest.raises(InputError, match=r"pairs-00000\d\.tar, got "):
        read(torn, 1, workers=workers, damaged=lambda shard, description: None)


def test_a_damaged_shard_stops_by_its_name_unless_it_may_be_skipped(folder: Path) -> None:
    with pytest.raises(InputError, match=r"pairs-00000[13]\.tar, got .*--skip_damaged_shards"):
        read(order(without(folder, {1, 3})), 1)
