"""What all tests share: few threads (two workers run side by side) and no network."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _alike() -> None:
    """One thread, and the same random numbers whatever ran before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


# Imports of ours wait until the plugin that checks their types is there.


@pytest.fixture(scope="session")
def script() -> Iterator[Callable]:
    """Run `python -m module arguments` in processes that can be killed."""
    from .processes import template

    with template() as script:
        yield script


@pytest.fixture(scope="session")
def train(script: Callable) -> Callable:
    """Run a small training in such processes."""
    from .runs import SMALL

    def train(run: Path, *arguments: object, **options) -> object:
        command = "pipeline.train", "smoke", *SMALL, "--output_dir", run, *arguments
        return script(*command, **options)

    return train


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small shards to train on and one to hold out."""
    from .shards import write_pairs

    return write_pairs(tmp_path_factory.mktemp("pairs"), 5, "png")
