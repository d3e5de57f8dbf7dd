"""Any number of shards trains: the streams of a run are chosen to fit, recorded, and kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.manifest import read_manifest
from pipeline.recipes import RECIPES
from pipeline.training.data_sets import DataSet, build_order

from .processes import Script, completed
from .runs import assert_same, checkpoints, metrics, writing
from .shards import PAIRS, write_pairs

SMOKE = replace(RECIPES["smoke"].students["smoke"], streams=None)
CHOSEN = "--streams", None  # the recipe says 4


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards to train on and one to hold out."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), 6)


def recorded(run: Path) -> int:
    return json.loads((run / "run.json").read_text())["config"]["streams"]


def test_five_shards_train_and_resume_with_the_same_bits(train, pairs, tmp_path):
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    completed(train(undisturbed, "--pairs", pairs, *CHOSEN))
    train(run, "--pairs", pairs, *CHOSEN, at=writing(8))
    assert checkpoints(run) == [4]
    completed(train(run, "--pairs", pairs, *CHOSEN))
    assert recorded(run) == recorded(undisturbed) == 4
    assert_same(run, undisturbed)


def test_a_run_keeps_its_streams_on_another_number_of_processes(train, pairs, tmp_path):
    alone, run = tmp_path / "alone", tmp_path / "run"
    command = run, "--pairs", pairs, "--global_batch_size", 20, *CHOSEN
    completed(train(alone, *command[1:]))
    train(*command, at=writing(8))
    assert recorded(run) == 5
    completed(train(*command, processes=2))  # alone they would have chosen 4
    assert recorded(run) == 5
    losses = ([line["loss"] for line in metrics(path) if "loss" in line] for path in (run, alone))
    assert next(losses) == pytest.approx(next(losses), rel=1e-3)


def test_the_readmes_102_shards_with_5_held_out_train(train: Script, tmp_path: Path) -> None:
    pairs, run = write_pairs(tmp_path / "pairs", 102, "png"), tmp_path / "run"
    result = completed(train(run, "--pairs", pairs, "--holdout_shards", 5, *CHOSEN))
    assert f"pairs: {97 * PAIRS} of" in result.out
    assert recorded(run) == 8


def test_more_processes_and_workers_than_shards_train(train: Script, tmp_path: Path) -> None:
    pairs, run = write_pairs(tmp_path / "pairs", 2), tmp_path / "run"
    command = run, "--pairs", pairs, "--dataloader_num_workers", 2, *CHOSEN
    completed(train(*command, processes=2))
    assert recorded(run) == 4


@pytest.mark.parametrize(
    ("settings", "written", "streams"),
    [
        ({}, None, 4),
        ({}, {"streams": 8}, 8),  # a run of a version that always took 8
        ({"overwrite_output_dir": True}, {"streams": 8}, 4),
        ({"streams": 2}, {"streams": 8}, 2),  # refused or allowed when run.json is compared
        ({"streams": 16}, None, 16),  # more than shards
        ({"dataloader_num_workers": 8}, None, 8),
    ],
)
def test_an_explicit_number_comes_first_then_the_recorded_one(
    settings, written, streams, tmp_path, pairs
):
    if written is not None:
        (tmp_path / "run.json").write_text(json.dumps({"config": written}))
    config = replace(SMOKE, output_dir=tmp_path, **settings)
    sets = [DataSet(source=pairs, manifest=read_manifest(pairs), shards=5)]
    assert build_order(config, sets, processes=1).streams == streams
