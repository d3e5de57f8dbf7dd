"""Training on pairs that lie elsewhere, and around damaged ones, as a user starts it."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from data.manifest import read_manifest, record_path, tar_path
from data.reader import read_shard
from pipeline import cli, train
from pipeline.evaluate import read_held_out
from pipeline.recipes import EVALUATIONS, STUDENTS

from .shards import PAIRS, Quiet, serving, write_pairs

WEIGHTS = "model/diffusion_pytorch_model.safetensors"
SHARDS = 5  # one is held out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that tests only read."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), SHARDS)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that trains four steps and returns the exit code."""

    def run(*arguments: object) -> int:
        few = "--max_train_steps", 4, "--validation_steps", 2, "--checkpointing_steps", 2
        monkeypatch.setattr(sys, "argv", ["train.py", "smoke", *map(str, (*few, *arguments))])
        try:
            cli.run(train.main, STUDENTS)
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


def test_training_from_a_web_server_through_a_cache_gives_the_same_bits(
    folder: Path, tmp_path: Path, run: Callable
) -> None:
    assert run("--pairs", folder, "--output_dir", tmp_path / "near") == 0
    cache = tmp_path / "cache"
    with serving(partial(Quiet, directory=folder)) as address:
        flags = "--pairs", address, "--pairs_cache", cache
        assert run(*flags, "--output_dir", tmp_path / "far") == 0
    assert (tmp_path / "far" / WEIGHTS).read_bytes() == (tmp_path / "near" / WEIGHTS).read_bytes()
    assert len(list(cache.rglob("*.tar"))) == SHARDS


def test_training_stops_at_a_damaged_shard_and_goes_on_around_it_when_told(
    folder: Path, tmp_path: Path, run: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    torn, output = tmp_path / "torn", tmp_path / "run"
    torn.mkdir()
    for path in folder.iterdir():
        (torn / path.name).write_bytes(path.read_bytes())
    for shard in (2, SHARDS - 1):  # the latter is held out
        tar_path(torn, shard).write_bytes(b"")
    flags = "--pairs", torn, "--output_dir", output
    assert run(*flags) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "pairs-000002.tar, got ValueError: 0 bytes" in told
    assert run(*flags, "--skip_damaged_shards") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "skipped: " in line]
    assert len(told) == 2
    assert "pairs-000002.tar" in told[0]
    assert "pairs-000004.tar" in told[1]
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [x["damaged_shards"] for x in metrics if "damaged_shards" in x] == [2, 2]
    assert not any("validation_l1" in x for x in metrics)


def test_a_damaged_held_out_shard_stops_training(
    folder: Path, tmp_path: Path, run: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = tmp_path / "torn"
    torn.mkdir()
    for path in folder.iterdir():
        (torn / path.name).symlink_to(path)
    record_path(torn, SHARDS - 1).unlink()
    record_path(torn, SHARDS - 1).write_text("{}")
    assert run("--pairs", torn, "--output_dir", tmp_path / "run") == 2
    assert "pairs-000004.json" in capsys.readouterr().err.splitlines()[-1]


def test_evaluation_reads_held_out_pairs_from_anywhere(folder: Path) -> None:
    with serving(partial(Quiet, directory=folder)) as address:
        config = replace(EVALUATIONS["smoke"], pairs=address, holdout_shards=2, num_images=PAIRS)
        held_out, first = read_held_out(config, read_manifest(address))
    assert first == 3 * PAIRS
    assert torch.equal(held_out.noise, read_shard(folder, 3).noise)
