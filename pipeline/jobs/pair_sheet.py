"""What a contact sheet of pairs shows: images of each class, and those nearest and farthest."""

import torch
from PIL import Image

from data.derive import distances
from data.pairs import Pairs
from get.images import grid, to_uint8

CLASSES = 20  # that are shown
COLUMNS = 16  # pairs of each


def strips(pairs: Pairs) -> list[tuple[str, Image.Image]]:
    """Return the first pairs of each class, and those with the least and the largest |x - z|."""
    order = distances(pairs).argsort()
    found = [("least |x - z|", order[:COLUMNS]), ("largest |x - z|", order[-COLUMNS:])]
    if pairs.labels is None:
        found.append(("the first", torch.arange(min(len(pairs), 4 * COLUMNS))))
    else:
        for label in pairs.labels.unique().tolist()[:CLASSES]:
            found.append((f"class {label}", (pairs.labels == label).nonzero()[:COLUMNS, 0]))
    return [(name, grid(visible(pairs.take(at).images), COLUMNS, 3)) for name, at in found]


def visible(images: torch.Tensor) -> torch.Tensor:
    """Return images as 8 bits; of latents three channels, within their own range."""
    if images.shape[1] not in (1, 3):
        images = images[:, :3] if images.shape[1] > 3 else images[:, :1]
        images = images / images.abs().amax().clamp_min(1e-12)
    return to_uint8(images)
