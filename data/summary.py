"""Figures of a data set of pairs: how many of each class, how bright, how far noise and image are.

They are computed shard by shard, so a data set of any size can be looked at.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from data.derive import Whole, distances
from data.reader import read_shard

QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


class Moments:
    """Mean, standard deviation, least and largest value of each channel."""

    def __init__(self) -> None:
        """No values yet."""
        self.count, self.sums, self.bounds = 0, list[Tensor](), list[Tensor]()

    def add(self, rows: Tensor) -> None:
        """Take rows of (pairs, channels, height, width)."""
        values = rows.double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.sums.append(torch.stack([values.sum(1), values.square().sum(1)]))
        self.bounds.append(torch.stack([-values.amin(1), values.amax(1)]))

    def figures(self) -> dict[str, list[float]]:
        """Return a list for each figure, an entry per channel."""
        total, square = torch.stack(self.sums).sum(0) / self.count
        low, high = torch.stack(self.bounds).amax(0)
        std = (square - total.square()).clamp_min(0).sqrt()
        figures = {"mean": total, "std": std, "min": -low, "max": high}
        return {name: [round(x, 6) for x in value.tolist()] for name, value in figures.items()}


def summarise(whole: Whole, shards: Iterable[int]) -> dict[str, Any]:
    """Return the figures of some shards, and the bytes of all.

    Raises:
        DamagedShard: If one of them is damaged.
    """
    images, noise, far = Moments(), Moments(), list[Tensor]()
    classes = torch.zeros(whole.manifest.num_classes or 0, dtype=torch.int64)
    for shard in shards:
        pairs = read_shard(whole.store, shard, whole.manifest)
        images.add(pairs.as_floats().images)
        noise.add(pairs.noise)
        far.append(distances(pairs))
        if pairs.labels is not None:
            classes += torch.bincount(pairs.labels, minlength=len(classes))
    distance = torch.cat(far)
    ordered = distance.sort().values  # torch.quantile takes 16 million values at most
    size = sum(record.bytes for record in whole.records)
    return {
        "pairs": len(whole),
        "shards": len(whole.records),
        "bytes": size,
        "bytes_per_pair": size / len(whole),
        "looked_at": len(distance),
        "pairs_per_class": classes.tolist() if len(classes) else None,
        "images": images.figures(),
        "noise": noise.figures(),
        "distance_quantiles": {
            f"{q:g}": round(float(ordered[round(q * (len(ordered) - 1))]), 6) for q in QUANTILES
        },
    }
