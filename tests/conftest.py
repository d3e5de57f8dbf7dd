"""What all tests share: few threads (two workers run side by side) and no network."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _alike() -> None:
    """One thread, and the same random numbers whatever ran before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
