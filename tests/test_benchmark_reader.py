"""The reader's benchmark measures what it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.manifest import tar_path
from data.reader import read_shard
from get.errors import InputError
from pipeline.benchmarks import reader
from pipeline.benchmarks.reader import (
    ENCODINGS,
    ReaderConfig,
    read_ours,
    read_webdataset,
    write,
)

from .shards import IN_PROCESSES

pytestmark = [
    *IN_PROCESSES,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # webdataset's
]


def test_every_way_reads_all_pairs_and_the_ratios_are_written(tmp_path: Path) -> None:
    config = ReaderConfig(
        output_dir=tmp_path, num_pairs=128, batch_size=16, repeats=1, step_seconds=0.01
    )
    order = write(tmp_path / "pairs", "png", config)
    assert read_ours(order, 8) == read_webdataset(order, 16) == 128
    reader.main(config)
    result = json.loads((tmp_path / "reader.json").read_text())
    assert result["over_webdataset"].keys() == ENCODINGS.keys()
    rates = result["pairs_per_second"]
    for name, ratio in result["over_webdataset"].items():
        assert ratio == pytest.approx(rates[name] / rates["webdataset"])
    assert result["pairs_per_second_with_workers"].keys() == ENCODINGS.keys()
    assert all(0 < found["share"] < 1 for found in result["waiting"].values())
    assert {"versions", "commit", "hardware"} <= result.keys()


def test_the_encodings_hold_the_same_pairs(tmp_path: Path) -> None:
    config = ReaderConfig(output_dir=tmp_path, num_pairs=64, batch_size=16)
    read = {}
    for name in ENCODINGS:
        assert write(tmp_path / name, name, config).shards == 8
        assert tar_path(tmp_path / name, 7).exists()
        read[name] = read_shard(tmp_path / name, 0)
        assert torch.equal(read[name].noise, read["png"].noise)
        difference = read[name].as_floats().images - read["png"].as_floats().images
        assert np.abs(difference.numpy()).max() < 0.005


def test_numbers_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected batch_size a multiple of 8"):
        ReaderConfig(output_dir=tmp_path, num_pairs=100, batch_size=16)
