"""An object store: jobs write pairs to it and trainings read them, whatever happens to it."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from data.bucket import PART, Bucket, checksums, told_checksums
from data.places import open_site
from data.writer import write_shards
from get.errors import InputError
from tests.problems import Softsign
from tests.processes import At, Script, completed
from tests.shards import manifest_of, write_pairs

from .conftest import (
    FEW,
    PAIRS,
    engine,
    free_port,
    one_line,
    same,
    shards,
    stopped_at_a_step,
    until,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]
S3 = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{(S3_PORT := free_port())}",
    **{"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"},
}


def upload(folder: Path, bucket: str) -> str:
    """Put a data set into a new bucket."""
    import fsspec

    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir(bucket)
    for path in folder.glob("[!.]*"):
        system.put_file(str(path), f"{bucket}/pairs/{path.name}")
    return f"s3://{bucket}/pairs"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """Start an object store, which ends when the stack is closed."""
    pytest.importorskip("s3fs")
    for name, value in S3.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        stack.enter_context(engine("s3.sh", S3_PORT))
        yield stack


def objects(place: str) -> dict[str, bytes]:
    """Return the files of a data set in the store, hidden ones too."""
    import fsspec

    system = fsspec.filesystem("s3", skip_instance_cache=True)
    found = {}
    for path in system.find(place.removeprefix("s3://")):
        with suppress(FileNotFoundError):  # a job has just deleted it
            found[path.rpartition("/")[2]] = system.cat_file(path)
    return found


def empty(bucket: str) -> str:
    """Create a bucket; the address of a folder in it."""
    import fsspec

    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/pairs"


def test_three_writers_fill_an_object_store_with_the_bytes_of_a_folder(
    s3, script: Script, smoke_pairs: Path
) -> None:
    place = empty("written")
    command = "pipeline.make_pairs", "smoke", "--output_dir", place
    alone = "--task_index", 0, "--num_tasks", 1  # each believes that it is the only one
    result = script(*command, *alone, processes=3, **S3)
    assert result.codes == [0, 0, 0], result.err
    assert sum(map(int, re.findall(r"wrote (\d+) shards", result.err))) == 5
    assert objects(place) == shards(smoke_pairs)
    again = completed(script(*command, **S3))
    assert "nothing to do" in again.out
    assert (
        "5 of 5 shards are written" in completed(script("pipeline.pairs_status", place, **S3)).out
    )


def test_the_shard_of_a_writer_that_is_killed_is_made_by_the_next(
    s3, script: Script, smoke_pairs: Path
) -> None:
    place = empty("killed")
    command = "pipeline.make_pairs", "smoke", "--output_dir", place
    third = At("open", "*/.pairs-000002.tar.*.tmp")
    assert script(*command, at=third, **S3).code == -signal.SIGKILL
    left = objects(place)
    assert "pairs-000000.json" in left
    assert ".claim-pairs-000002.tar" in left
    assert "pairs-000002.json" not in left
    completed(script(*command, **S3))
    assert objects(place) == shards(smoke_pairs)


def test_a_writer_whose_object_store_dies_ends_in_one_line_and_the_next_one_continues(
    s3, script: Script, alone: Path
) -> None:
    place = empty("away")
    command = *PAIRS, "--output_dir", place
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(script, *command, **S3)
        until(lambda: "pairs-000000.json" in objects(place), what="the first shard")
        s3.close()
        line = one_line(result.result())
    assert f"{place}/" in line
    s3.enter_context(engine("s3.sh", S3_PORT))
    empty("away")  # moto forgets everything
    completed(script(*command, **S3))
    assert objects(place) == shards(alone)


def test_a_tar_that_arrives_with_another_byte_has_no_record_and_is_written_again(
    s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    manifest, site = manifest_of(Softsign(), "png"), open_site(empty("corrupted"))
    system = fsspec.get_filesystem_class("s3")
    uploads, reads = system._put_file, list[str]()

    async def corrupted(self: object, path: str, *arguments: object, **options: object) -> None:
        data = bytearray(Path(path).read_bytes())
        data[700] ^= 1
        (tmp_path / "other").write_bytes(data)
        await uploads(self, str(tmp_path / "other"), *arguments, **options)

    site.open(manifest)
    with monkeypatch.context() as during:
        during.setattr(system, "_put_file", corrupted)
        system.clear_instance_cache()  # instances keep their methods
        with pytest.raises(InputError, match=r"pairs-000000\.tar after its upload, got others"):
            write_shards(site, [0], Softsign(), manifest)
    system.clear_instance_cache()
    assert sorted(objects(str(site))) == ["manifest.json", "pairs-000000.tar"]
    monkeypatch.setattr(Bucket, "_holds", lambda *_: reads.append("a tar"))
    write_shards(site, [0], Softsign(), manifest)
    local = write_pairs(tmp_path / "pairs", 1, "png")
    assert objects(str(site)) == shards(local)
    assert reads == []  # the store's checksum was enough


def test_the_store_tells_the_checksums_of_files_that_are_uploaded_in_one_and_in_parts(
    s3, tmp_path: Path
) -> None:
    import fsspec

    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("sums")
    for size in (5, 2 * PART + 3):
        (path := tmp_path / str(size)).write_bytes(b"12345")
        os.truncate(path, size)
        system.put_file(str(path), f"sums/{size}")
        told = told_checksums(system.info(f"sums/{size}"))
        assert len(told & checksums(path)) == 1
    assert next(iter(told)).endswith("-3")


def test_derived_pairs_are_written_to_an_object_store(
    s3, many: Path, script: Script, tmp_path: Path
) -> None:
    place, layout = empty("derived"), ("--pairs_per_shard", 30, "--pack", 4)
    command = "pipeline.curate_pairs", "reshard", many, *layout, "--output_dir"
    result = script(*command, place, processes=2, **S3)
    assert result.codes == [0, 0], result.err
    completed(script(*command, tmp_path / "folder"))
    assert objects(place) == shards(tmp_path / "folder")


def test_three_readers_verify_an_object_store(s3, many: Path, script: Script) -> None:
    place = upload(many, "verify")
    result = script("pipeline.verify_pairs", place, processes=3, **S3)
    assert result.codes == [0, 0, 0], result.err


def test_a_training_with_a_cache_needs_the_tars_of_an_object_store_once(
    s3, many: Path, local: Path, train: Script, tmp_path: Path
) -> None:
    import fsspec

    command = ("--pairs", upload(many, "cache"), "--pairs_cache", tmp_path / "cache", *FEW)
    completed(train(tmp_path / "first", *command, **S3))
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    for path in many.glob("*.tar"):
        system.rm_file(f"cache/pairs/{path.name}")
    completed(train(tmp_path / "second", *command, **S3))
    assert same(tmp_path / "first", local)
    assert same(tmp_path / "second", local)


def test_a_training_ends_in_one_line_when_its_object_store_dies_and_continues_with_it(
    s3, many: Path, local: Path, train: Script, tmp_path: Path
) -> None:
    run, place = tmp_path / "run", upload(many, "dies")
    start = lambda: train(run, "--pairs", place, *FEW, **S3)  # noqa: E731
    line = one_line(stopped_at_a_step(run, s3.close, start))
    assert f"expected to read {place}/pairs-" in line
    s3.enter_context(engine("s3.sh", S3_PORT))
    upload(many, "dies")
    completed(start())
    assert same(run, local)
