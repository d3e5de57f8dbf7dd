"""The damaged shards that a training reads around, counted over all its processes."""

import sys

import torch
from accelerate import Accelerator
from tqdm import tqdm

from data.mixture import Mixture


class Skipped:
    """The damaged shards this process has met since it started."""

    def __init__(self) -> None:
        """None yet."""
        self.shards: set[int] = set()

    def __call__(self, shard: int, description: str) -> None:
        """Note a shard and say so; every process speaks for itself."""
        if shard not in self.shards:
            self.shards.add(shard)
            tqdm.write(f"skipped: {description}", file=sys.stderr)

    def count(self, order: Mixture, accelerator: Accelerator) -> int:
        """Return how many all processes have met together."""
        # The held-out shard of each data set follows all training shards; see validation.py.
        flags = torch.zeros(order.shards + len(order.orders), device=accelerator.device)
        flags[list(self.shards)] = 1
        return int((accelerator.reduce(flags, "sum") > 0).sum())
