"""The command that writes pairs, as a user starts it: what it refuses and what it reports."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from data import SHIPPED
from data.manifest import read_manifest, tar_path
from data.pair_settings import PairSettings
from data.verify import find_damage
from data.writer import generate_shard

from .processes import Result, completed
from .shards import contents


@pytest.mark.parametrize(
    "address",
    [
        *("https://host/x", "file:///x", "sftp://host/x", "pipe:cat > {}", "nothing://x"),
        "simplecache::s3://bucket/x",
    ],
)
def test_an_address_whose_files_may_be_seen_half_is_refused_and_no_folder_of_that_name_appears(
    tmp_path: Path, monkeypatch, here, address
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = here("make_pairs", "smoke", "--output_dir", address)
    assert refused.code == 2
    assert "expected a local folder or an object store" in refused.err
    assert here("convert", "edm", "x.pkl", address).code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def make(tmp_path: Path, here) -> Callable[..., Result]:
    """Write eight small shards."""
    few = "--num_pairs", 64, "--pairs_per_shard", 8, "--teacher_batch_size", 8
    return partial(here, "make_pairs", "smoke", *few, "--output_dir", tmp_path)


def test_a_shard_whose_tar_was_deleted_or_cut_is_written_again(tmp_path: Path, make) -> None:
    completed(make())
    before = contents(tmp_path)
    tar_path(tmp_path, 2).unlink()
    tar_path(tmp_path, 5).write_bytes(b"cut")
    again = completed(make())
    assert "wrote 2 shards" in again.err
    assert contents(tmp_path) == before
    assert "8 of 8 shards are written" in completed(make()).out


def test_making_one_shard_repairs_one_whose_tar_is_gone(tmp_path: Path) -> None:
    settings = PairSettings(
        teacher=str(SHIPPED / "digits-teacher"),
        output_dir=tmp_path,
        num_inference_steps=2,
        teacher_batch_size=8,
        pairs_per_shard=8,
    )
    record = generate_shard(settings, 0)
    tar_path(tmp_path, 0).unlink()
    assert generate_shard(settings, 0) == record
    assert find_damage(tmp_path, 0, read_manifest(tmp_path)) is None
