"""What all tests share: few threads (two workers run side by side) and no network."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_company() -> None:
    """Seed torch before each test: what a test draws must not depend on those before it."""
    torch.manual_seed(0)
