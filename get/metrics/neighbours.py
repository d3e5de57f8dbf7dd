"""Nearest neighbours in pixel space: does a generator copy its training images?"""

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def nearest_distance(
    images: Float[Tensor, "batch channels height width"],
    others: Float[Tensor, "others channels height width"],
    batch_size: int = 512,
) -> Float[Tensor, " batch"]:
    """Return each image's distance to the nearest of `others`.

    Root mean square over pixels, so in units of the images' range whatever their size.
    """
    flat = others.flatten(1)
    scale = flat.shape[1] ** 0.5
    parts = images.flatten(1).split(batch_size)
    return torch.cat([torch.cdist(part, flat).amin(1) for part in parts]) / scale
