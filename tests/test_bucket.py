"""Pairs written straight to an object store: the bytes of a folder, shared, whole or refused."""

import json
import os
import signal
import time
from collections.abc import Iterator
from itertools import count

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data.bucket import Bucket
from data.claims import AGE, Claims, read_claims, tidy
from data.lock import machine
from data.manifest import count_shards, record_name, tar_name
from data.pair_settings import PairSettings
from data.places import open_site
from data.writer import write_shards
from get.errors import InputError
from pipeline.pairs_status import look

from .problems import Softsign
from .processes import At, completed
from .shards import contents, manifest_of, order, read, write_pairs

MANIFEST = manifest_of(Softsign())
numbers = count()


class Known(MemoryFileSystem):
    """The store in memory under the name of another system."""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix(f"{cls.protocol}://"))


class Careless(Known):
    """A store that lets anyone create what exists, as older servers of S3's protocol do."""

    protocol = "oss"

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value, mode="overwrite", **kwargs)


class Closed(Known):
    """A store that may only be read."""

    protocol = "gs"

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        raise PermissionError("token=hidden is not allowed\nto write")


for kind in (Careless, Closed):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


@pytest.fixture
def place() -> Iterator[str]:
    """An empty folder in a store in memory."""
    yield f"bucket/{next(numbers)}"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def files(place: str) -> dict[str, bytes]:
    """Return all objects in a folder of the store."""
    system = MemoryFileSystem()
    return {path.rpartition("/")[2]: system.cat_file(path) for path in system.find(place)}


def test_an_object_store_gets_the_files_of_a_folder_and_nothing_else(place, tmp_path):
    bucket, folder = open_site(f"memory://{place}"), write_pairs(tmp_path / "pairs", 3)
    bucket.open(MANIFEST)
    with Claims(bucket, 3) as claims:
        records = write_shards(bucket, claims.missing(range(3)), Softsign(), MANIFEST)
    assert len(records) == 3
    assert files(place) == contents(folder)
    assert count_shards(bucket.store) == 3
    status = look(f"memory://{place}")
    assert (status.done, status.in_work, status.missing) == (3, [], [])


def test_make_pairs_writes_to_an_address_and_does_nothing_there_again(place, tmp_path, here):
    few = "--num_pairs", 16, "--pairs_per_shard", 8, "--num_inference_steps", 2
    command = "make_pairs", "smoke", *few, "--output_dir"
    completed(here(*command, tmp_path / "pairs"))
    assert "wrote 2 shards" in completed(here(*command, f"memory://{place}/x")).err
    assert files(f"{place}/x") == contents(tmp_path / "pairs")
    assert "nothing to do" in completed(here(*command, f"memory://{place}/x")).out
    assert "2 of 2 shards are whole" in completed(here("verify_pairs", f"memory://{place}/x")).out
    shown = completed(here("pairs_status", f"memory://{place}/x")).out
    assert shown.startswith(f"2 of 2 shards are written to memory://{place}/x")
    other = here(*command, f"memory://{place}/x", "--seed", 1)
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "seed was 0, is 1" in other.err


def test_a_claim_in_a_store_is_left_alone_until_it_is_old(place, monkeypatch):
    bucket = open_site(f"memory://{place}")
    bucket.open(MANIFEST)
    system, name = MemoryFileSystem(), f"/{place}/.claim-{tar_name(1)}"
    system.pipe_file(name, b"7 far-away 1700000000 1700000000 2 3")
    with Claims(bucket, 3) as claims:
        write_shards(bucket, claims.missing(range(3)), Softsign(), MANIFEST)
        assert claims.others == {1}
        names = {claim.shard: claim.owner.name for claim in read_claims(bucket)}
        assert names[1] == "far-away:7"
        late = time.time() + AGE + 1
        monkeypatch.setattr(Bucket, "clock", lambda self: late)
        assert {claim.shard: claim.stale for claim in read_claims(bucket)}[1]
        write_shards(bucket, claims.missing([1]), Softsign(), MANIFEST)
    tidy(bucket)
    assert sorted(files(place)) == sorted(
        ["manifest.json", *(f(n) for n in range(3) for f in (record_name, tar_name))]
    )


def test_one_of_two_jobs_gets_a_claim_in_a_store(place):
    first, second = (open_site(f"memory://{place}") for _ in range(2))
    assert first.exclusive
    MemoryFileSystem().pipe_file(f"/{place}/x", b"7 far-away")
    assert not first.take("x", AGE, "")
    second.release("x")
    assert (left := first.owner("x"))
    assert left.name == "far-away:7"
    assert first.take("y", AGE, "note")
    before = first.owner("y")
    first.renew("y")
    assert before
    assert (after := first.owner("y"))
    assert (after.since, after.note) == (before.since, "note")
    second.release("y")
    assert first.owner("y") is None


def test_a_store_without_exclusive_creation_is_written_to_by_numbered_jobs_only(place, here):
    address = f"oss://{place}"
    few = "--num_pairs", 16, "--pairs_per_shard", 8, "--num_inference_steps", 2
    command = "make_pairs", "smoke", *few, "--output_dir", address
    refused = here(*command)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "expected --task_index and --num_tasks" in refused.err
    for task in range(2):
        written = completed(here(*command, "--task_index", task, "--num_tasks", 2))
        assert "wrote 1 shards" in written.err
    assert len(files(place)) == 5


def test_a_temporary_folder_of_a_killed_job_is_deleted_by_the_next(place, tmp_path, script):
    few = "--num_pairs", 16, "--pairs_per_shard", 8, "--num_inference_steps", 2
    command = "pipeline.make_pairs", "smoke", *few, "--output_dir", f"memory://{place}"
    mine = {"TMPDIR": str(tmp_path)}
    (tmp_path / "pairs-of-somebody").mkdir()
    (tmp_path / f"pairs-{machine()}-{os.getpid()}-abcdefgh").mkdir()  # a job that works
    (tmp_path / "pairs-far-away-7-abcdefgh").mkdir()
    others = sorted(path.name for path in tmp_path.iterdir())
    killed = script(*command, at=At("open", "*/.pairs-000000.tar.*.tmp"), **mine)
    assert killed.code == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 4
    completed(script(*command, **mine))
    assert sorted(path.name for path in tmp_path.iterdir()) == others


def test_derived_pairs_are_written_to_a_store_as_to_a_folder(place, tmp_path, here):
    write_pairs(tmp_path / "pairs", 3)
    command = "curate_pairs", "reshard", tmp_path / "pairs", "--pairs_per_shard", 4, "--output_dir"
    completed(here(*command, tmp_path / "out"))
    assert "4 of them written now" in completed(here(*command, f"memory://{place}/x")).err
    assert files(f"{place}/x") == contents(tmp_path / "out")
    MemoryFileSystem().rm_file(f"/{place}/x/{record_name(2)}")
    assert "1 of them written now" in completed(here(*command, f"memory://{place}/x")).err
    assert files(f"{place}/x") == contents(tmp_path / "out")
    assert "4 of 4 shards are whole" in completed(here("verify_pairs", f"memory://{place}/x")).out
    again = "curate_pairs", "merge", f"memory://{place}/x", "--output_dir", f"memory://{place}/y"
    completed(here(*again))
    refused = here(*command, f"oss://{place}/z")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "in which jobs can claim shards, got oss://" in refused.err


def test_a_store_that_cannot_be_written_to_is_named_in_one_line_without_secrets(place, here):
    refused = here("make_pairs", "smoke", "--output_dir", f"gs://{place}")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"expected to write gs://{place}/.probe" in refused.err


def test_of_two_jobs_with_different_bytes_tar_and_record_of_one_stay(place, tmp_path):
    """One has uploaded its tar and its record between the tar and the record of the other."""
    other = Softsign()
    bucket = open_site(f"memory://{place}")
    bucket.open(MANIFEST)
    write_pairs(tmp_path / "a", 1)
    rival = json.loads((tmp_path / "a" / record_name(0)).read_text())
    system = MemoryFileSystem()
    # its record alone: the tar is gone, or has been replaced
    system.pipe_file(f"/{place}/{record_name(0)}", json.dumps(rival | {"sha256": "0"}).encode())
    write_shards(bucket, [0], other, MANIFEST)
    assert (record := bucket.finished(0))
    assert record.sha256 == rival["sha256"]
    assert len(read(order(f"memory://{place}", shards=1, streams=1, batch_size=6), 1)) == 1


def test_generate_shard_and_settings_take_an_address(place):
    settings = PairSettings(teacher="x", output_dir=f"memory://{place}")
    assert isinstance(open_site(settings.output_dir), Bucket)
    with pytest.raises(InputError, match="an object store"):
        PairSettings(teacher="x", output_dir="ftp://host/pairs")
    with pytest.raises(InputError, match="single slashes, got s3://bucket//pairs"):
        PairSettings(teacher="x", output_dir="s3://bucket//pairs")
