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


@pytest.fixture(scope="module")
def job() -> Iterator[Callable]:
    """Trainings in processes that can be killed."""
    from .processes import template

    with template() as job:
        yield job


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small shards to train on and one to hold out."""
    from .processes import make_pairs

    return make_pairs(tmp_path_factory.mktemp("pairs"))
