"""Every damage a shard can suffer is found and named; the teacher's own pairs are recognised."""

import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from data import SHIPPED
from data.manifest import (
    DamagedShard,
    ImageFormat,
    Manifest,
    read_manifest,
    record_path,
    tar_path,
)
from data.pair_settings import PairSettings
from data.pairs import Pairs
from data.reader import read_shard
from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from data.verify import distance_to_finer, find_damage
from data.writer import generate_shard, write_given
from get.errors import InputError

from .processes import completed
from .shards import Quiet, serving, write_pairs


def data_set(folder: Path, form: ImageFormat = "npy32", pack: int = 1) -> Manifest:
    write_pairs(folder, 3, form, teacher_batch_size=8, pairs_per_shard=16, pack=pack)
    return read_manifest(folder)


@pytest.mark.parametrize("form", ["png", "npy", "npy32"])
@pytest.mark.parametrize("pack", [1, 8])
def test_a_whole_data_set_has_no_damage(tmp_path, form, pack):
    manifest = data_set(tmp_path, form, pack)
    assert [find_damage(tmp_path, shard, manifest) for shard in range(3)] == [None] * 3


def test_a_missing_tar_a_missing_record_and_a_lying_one_are_found(tmp_path):
    manifest = data_set(tmp_path)
    tar_path(tmp_path, 0).unlink()
    record_path(tmp_path, 1).unlink()
    shutil.copy(record_path(tmp_path, 2), record_path(tmp_path, 3))
    shutil.copy(tar_path(tmp_path, 2), tar_path(tmp_path, 3))
    found = [find_damage(tmp_path, shard, manifest) for shard in range(4)]
    assert found[0] == "the record is there, the tar is not"
    assert found[1] == "no record"
    assert found[2] is None
    assert found[3] == "its record says 16 pairs from 32"


def test_the_command_names_the_damaged_shard_and_says_what_to_do(tmp_path, here):
    data_set(tmp_path)
    assert completed(here("verify_pairs", tmp_path)).out == "3 of 3 shards are whole: 48 pairs\n"
    tar_path(tmp_path, 1).write_bytes(b"")
    failed = here("verify_pairs", tmp_path)
    assert failed.code == 1
    assert "2 of 3 shards are whole" in failed.out
    assert "pairs-000001.tar: 0 bytes instead of" in failed.out
    assert (
        "delete pairs-000001.json there and run the same command of make_pairs.py again"
        in failed.err
    )


def test_a_data_set_behind_an_address_is_verified_and_tasks_share_the_shards(tmp_path, here):
    data_set(tmp_path)
    tar_path(tmp_path, 1).write_bytes(b"")
    with serving(partial(Quiet, directory=tmp_path)) as address:
        failed = here("verify_pairs", address)
        share = "--num_tasks", 2, "--task_index"
        whole = completed(here("verify_pairs", address, *share, 0))
        part = here("verify_pairs", address, *share, 1)
    assert failed.code == part.code == 1
    assert "2 of 3 shards are whole" in failed.out
    assert whole.out == "2 of 2 shards are whole: 32 pairs\n"
    assert "0 of 1 shards are whole" in part.out


@pytest.mark.slow  # each of them imports torch
def test_several_processes_find_the_same_damage_in_the_same_order(tmp_path, script):
    data_set(tmp_path)
    for shard in (0, 2):
        tar_path(tmp_path, shard).write_bytes(b"")
    alone, together = (script("pipeline.verify_pairs", tmp_path, "--jobs", n) for n in (1, 2))
    assert alone.code == together.code == 1
    assert alone.out == together.out
    assert together.out.startswith("1 of 3 shards are whole: 16 pairs\npairs-000000.tar: 0 bytes")
    assert "pairs-000002.json there" in together.err


def test_a_file_that_cannot_be_read_is_not_called_damage(tmp_path, here):
    manifest = data_set(tmp_path)
    tar_path(tmp_path, 1).unlink()
    tar_path(tmp_path, 1).symlink_to(tar_path(tmp_path, 1))  # a loop; root may read mode 000
    for read in (read_shard, find_damage):
        with pytest.raises(InputError, match="got Too many levels of symbolic links") as raised:
            read(tmp_path, 1, manifest)
        assert not isinstance(raised.value, DamagedShard)
    failed = here("verify_pairs", tmp_path)
    assert failed.code == 2
    assert "delete" not in failed.err


def test_a_gap_is_reported_once_however_large(tmp_path, here):
    data_set(tmp_path)
    shutil.copy(record_path(tmp_path, 2), tmp_path / "pairs-99999999.json")
    for stray in ("pairs-000001 (1).json", "pairs-backup.json", "pairs-00000a.json"):
        shutil.copy(record_path(tmp_path, 2), tmp_path / stray)
    failed = here("verify_pairs", tmp_path)
    assert failed.code == 1
    assert "pairs-000003.tar to pairs-99999998.tar: no record" in failed.out
    assert "3 of 100000000 shards are whole" in failed.out


def test_deep_verification_knows_the_teachers_pairs_from_others(tmp_path, here):
    settings = PairSettings(
        teacher=str(SHIPPED / "digits-teacher"),
        output_dir=tmp_path,
        num_inference_steps=3,
        teacher_batch_size=8,
        pairs_per_shard=16,
    )
    for shard in range(2):
        generate_shard(settings, shard)
    deep = "verify_pairs", tmp_path, "--deep"
    whole = completed(here(*deep, "--teacher", settings.teacher))
    assert "noise and labels the same; pixels differ by up to 0.0" in whole.out
    assert here(*deep).code == 2  # who made them?

    # The same ODE in 6 steps instead of 3.
    judged = completed(here("verify_pairs", tmp_path, "--quality", "--teacher", settings.teacher))
    found = re.search(r"solved in 6 steps instead of 3: images differ by (0\.\d+)", judged.out)
    assert found is not None
    manifest = read_manifest(tmp_path)
    finer = [
        open_teacher(settings.teacher, Sampler(steps=steps), torch.device("cpu"))
        for steps in (3, 12, 24)
    ]
    same, far, farther = (distance_to_finer(tmp_path, 0, 0, t, manifest)[0] for t in finer)
    assert same < 0.005  # 8-bit rounding
    assert same < far
    assert farther == pytest.approx(far, rel=0.2)  # both are close to the solution

    # Images of other noise.
    manifest = read_manifest(tmp_path)
    pairs = read_shard(tmp_path, 1).as_floats()
    record_path(tmp_path, 1).unlink()
    write_given(tmp_path, 1, manifest, Pairs(pairs.noise, pairs.images.flip(0), pairs.labels))
    completed(here("verify_pairs", tmp_path))
    failed = here(*deep, "--teacher", settings.teacher)
    assert failed.code == 1
    assert "noise and labels the same; pixels differ by up to " in failed.out
    assert "expected the pairs" in failed.err
