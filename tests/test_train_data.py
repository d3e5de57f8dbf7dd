"""Training on pairs that lie elsewhere, and around damaged ones, as a user starts it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from data.manifest import read_manifest, record_path, tar_path
from data.reader import read_shard
from pipeline.evaluate import read_held_out
from pipeline.recipes import RECIPES

from .processes import Script, completed
from .runs import WEIGHTS
from .shards import PAIRS, Quiet, serving

SHARDS = 5  # of the fixture `pairs`; one is held out
FEW = "--max_train_steps", 4, "--validation_steps", 2, "--checkpointing_steps", 2


def test_training_from_a_web_server_through_a_cache_gives_the_same_bits(
    pairs: Path, tmp_path: Path, train: Script
) -> None:
    near, far, cache = (tmp_path / name for name in ("near", "far", "cache"))
    completed(train(near, "--pairs", pairs, *FEW))
    with serving(partial(Quiet, directory=pairs)) as address:
        completed(train(far, "--pairs", address, "--pairs_cache", cache, *FEW))
    assert (far / WEIGHTS).read_bytes() == (near / WEIGHTS).read_bytes()
    assert len(list(cache.rglob("*.tar"))) == SHARDS


def test_training_stops_at_a_damaged_shard_and_goes_on_around_it_when_allowed(
    pairs: Path, tmp_path: Path, train: Script
) -> None:
    torn, run = tmp_path / "torn", tmp_path / "run"
    torn.mkdir()
    for path in pairs.iterdir():
        (torn / path.name).write_bytes(path.read_bytes())
    for shard in (2, SHARDS - 1):  # the latter is held out
        tar_path(torn, shard).write_bytes(b"")
    stopped = train(run, "--pairs", torn, *FEW)
    assert stopped.code == 2
    assert "pairs-000002.tar, got ValueError: 0 bytes" in stopped.err.splitlines()[-1]
    result = completed(train(run, "--pairs", torn, *FEW, "--skip_damaged_shards"))
    shown = [line for line in result.err.splitlines() if "skipped: " in line]
    assert len(shown) == 2
    assert "pairs-000002.tar" in shown[0]
    assert "pairs-000004.tar" in shown[1]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [x["damaged_shards"] for x in metrics if "damaged_shards" in x] == [2, 2]
    assert not any("validation_l1" in x for x in metrics)


def test_a_damaged_held_out_shard_stops_training(
    pairs: Path, tmp_path: Path, train: Script
) -> None:
    torn = tmp_path / "torn"
    torn.mkdir()
    for path in pairs.iterdir():
        (torn / path.name).symlink_to(path)
    record_path(torn, SHARDS - 1).unlink()
    record_path(torn, SHARDS - 1).write_text("{}")
    stopped = train(tmp_path / "run", "--pairs", torn, *FEW)
    assert stopped.code == 2
    assert "pairs-000004.json" in stopped.err.splitlines()[-1]


def test_evaluation_reads_held_out_pairs_from_anywhere(pairs: Path) -> None:
    evaluation = RECIPES["smoke"].evaluate
    assert evaluation is not None
    with serving(partial(Quiet, directory=pairs)) as address:
        config = replace(evaluation, pairs=address, holdout_shards=2, num_images=PAIRS)
        held_out, first = read_held_out(config, read_manifest(address))
    assert first == 3 * PAIRS
    assert torch.equal(held_out.noise, read_shard(pairs, 3).noise)
